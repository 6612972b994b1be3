"""Runs what docs/archive-format.md prints for other tools, with the archive's path put in.

    documented.py < {"archive": PATH, "queries": [SQL, …], "pandas": EXPRESSION}

Writes {"queries": [[[cell, …], …], …], "pandas": {"rows": count}}; cells as text.
"""

import json
import sys

import duckdb
import pandas


def main():
    asked = json.load(sys.stdin)
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    told = []
    for query in asked["queries"]:
        # As text, because DuckDB's Python times need a further package.
        query = query.replace("ARCHIVE", asked["archive"])
        rows = connection.execute(f"SELECT COLUMNS(*)::VARCHAR FROM ({query})").fetchall()
        told.append([list(row) for row in rows])
    expression = asked["pandas"].replace("ARCHIVE", asked["archive"])
    frame = eval(expression, {"pandas": pandas})
    json.dump({"queries": told, "pandas": {"rows": len(frame)}}, sys.stdout)


if __name__ == "__main__":
    main()
