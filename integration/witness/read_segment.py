"""Opens a segment as DuckDB and as pandas do, with nothing of dacapo, and says what they see.

    read_segment.py SEGMENT.parquet    one file
    read_segment.py ARCHIVE/segments   all of an archive's, through its Hive partitions

Writes {"duckdb": {"columns": {name: type}, "rows": […]}, "pandas": {…}, "footer": {name: text}}.
Rows are in the order of stream and sequence; bytes are told as {"hex": …}, times as RFC 3339 in
UTC, maps as objects.
"""

import datetime
import json
import math
import os
import sys

import duckdb
import pandas
import pyarrow.parquet

# Not columns of the file but folders of its path.
PARTITIONS = ("stream", "date", "hour")


def tell(value):
    if hasattr(value, "tolist") and not isinstance(value, (bytes, str)):
        value = value.tolist()
    if isinstance(value, (bytes, bytearray)):
        return {"hex": bytes(value).hex()}
    if isinstance(value, pandas.Timestamp):
        value = value.to_pydatetime()
    if isinstance(value, datetime.datetime):
        utc = value.replace(tzinfo=value.tzinfo or datetime.timezone.utc)
        return utc.astimezone(datetime.timezone.utc).isoformat().replace("+00:00", "Z")
    if isinstance(value, datetime.date):
        return value.isoformat()
    if isinstance(value, float) and math.isnan(value):
        return None
    if value is pandas.NaT or value is pandas.NA:
        return None
    if isinstance(value, dict):
        return {name: tell(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        # pandas shows a map as a list of pairs.
        if value and all(isinstance(item, tuple) and len(item) == 2 for item in value):
            return {name: tell(item) for name, item in value}
        return [tell(item) for item in value]
    return value


def by_duckdb(path):
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    if os.path.isdir(path):
        source = f"read_parquet('{path}/**/*.parquet', hive_partitioning = true)"
        order = "stream, sequence"
    else:
        source = f"read_parquet('{path}', hive_partitioning = false)"
        order = "sequence"
    described = connection.execute(f"DESCRIBE SELECT * FROM {source}").fetchall()
    columns = {row[0]: row[1] for row in described}
    # As text, because DuckDB's Python times need a further package.
    shown = ", ".join(
        f"strftime({name}, '%Y-%m-%dT%H:%M:%S.%fZ') AS {name}"
        if kind.startswith("TIMESTAMP")
        else name
        for name, kind in columns.items()
    )
    rows = connection.execute(f"SELECT {shown} FROM {source} ORDER BY {order}").fetchall()
    return {
        "columns": columns,
        "rows": [{name: tell(v) for name, v in zip(columns, row)} for row in rows],
    }


def by_pandas(path):
    if os.path.isdir(path):
        frame = pandas.read_parquet(path)
        frame = frame.sort_values(["stream", "sequence"])
    else:
        # Given as a file, so that its path is not taken for partitions.
        with open(path, "rb") as file:
            frame = pandas.read_parquet(file)
        frame = frame.sort_values("sequence")
    return {
        "columns": {name: str(kind) for name, kind in frame.dtypes.items()},
        "rows": [
            {name: tell(value) for name, value in row.items()}
            for row in frame.to_dict(orient="records")
        ],
    }


def footer(path):
    if os.path.isdir(path):
        return None
    with open(path, "rb") as file:
        found = pyarrow.parquet.ParquetFile(file).metadata.metadata or {}
    return {name.decode(): value.decode("utf-8", "replace") for name, value in found.items()}


def main():
    path = sys.argv[1]
    told = {"duckdb": by_duckdb(path), "pandas": by_pandas(path), "footer": footer(path)}
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    main()
