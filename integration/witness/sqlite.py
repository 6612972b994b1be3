"""Reads a SQLite database, through a library that is not the service's.

    sqlite.py DATABASE < {"queries": [SQL, …]}

Writes [[[cell, …], …], …]: the rows of each query; none where the database or a table is not there.
"""

import json
import sqlite3
import sys


def rows(path, query):
    try:
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)
        return [list(row) for row in connection.execute(query)]
    except sqlite3.OperationalError as error:
        if "no such table" in str(error) or "unable to open" in str(error):
            return []
        raise


def main():
    queries = json.load(sys.stdin)["queries"]
    json.dump([rows(sys.argv[1], query) for query in queries], sys.stdout)


if __name__ == "__main__":
    main()
