"""Reads the objects of an archive with a reader that is not tidelog's, in the order in which they are named, and prints
for each partition how many records it has and a SHA-256 over all of their fields: the same as rig/compare.rs takes over
what a consumer gives.

    python readers.py pyarrow|duckdb|fastavro FILE...
"""

import hashlib
import json
import struct
import sys

MILLISECOND = 1000


def pyarrow_rows(path):
    import pyarrow.parquet as pq

    for batch in pq.ParquetFile(path).iter_batches(batch_size=8192):
        yield from zip(
            batch["partition"].to_pylist(),
            batch["offset"].to_pylist(),
            batch["timestamp"].cast("int64").to_pylist(),
            batch["key"].to_pylist(),
            batch["value"].to_pylist(),
            batch["headers"].to_pylist(),
        )


def duckdb_rows(path):
    import duckdb

    query = 'select "partition", "offset", epoch_ms("timestamp"), "key", "value", headers from read_parquet(?, hive_partitioning = false)'
    cursor = duckdb.connect(config={"threads": "1"})
    cursor.execute("set enable_progress_bar = false")
    cursor.execute(query, [path])
    while rows := cursor.fetchmany(8192):
        yield from rows


def fastavro_rows(path):
    import fastavro

    with open(path, "rb") as file:
        for row in fastavro.reader(file):
            timestamp = row["timestamp"]
            if not isinstance(timestamp, int):
                timestamp = round(timestamp.timestamp() * MILLISECOND)
            yield row["partition"], row["offset"], timestamp, row["key"], row["value"], row["headers"]


def field(parts, data):
    if data is None:
        parts.append(NULL)
    else:
        parts.append(LENGTH(len(data)))
        parts.append(bytes(data))


LENGTH = struct.Struct("<q").pack
NULL = LENGTH(-1)


def main(reader, paths):
    rows = {"pyarrow": pyarrow_rows, "duckdb": duckdb_rows, "fastavro": fastavro_rows}[reader]
    counts, hashes, last = {}, {}, {}
    for path in paths:
        for partition, offset, timestamp, key, value, headers in rows(path):
            assert last.get(partition, -1) < offset, f"{path}: offset {offset} of partition {partition} comes late"
            last[partition] = offset
            parts = [LENGTH(timestamp)]
            field(parts, key)
            field(parts, value)
            parts.append(LENGTH(len(headers)))
            for header in headers:
                exact = header["name_bytes"]
                field(parts, header["name"].encode() if exact is None else exact)
                field(parts, header["value"])
            if partition not in hashes:
                hashes[partition], counts[partition] = hashlib.sha256(), 0
            hashes[partition].update(b"".join(parts))
            counts[partition] += 1
    print(json.dumps({partition: [counts[partition], hashes[partition].hexdigest()] for partition in sorted(hashes)}))


main(sys.argv[1], sys.argv[2:])
