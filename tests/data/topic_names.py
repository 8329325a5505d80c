"""Reads the segments of an archive by the recipes of docs/FORMAT.md, and tells what each reader makes of it.

    python topic_names.py ARCHIVE…

Each archive is read by itself, for a reader types the folders of all topics that it sees together. Prints JSON: for each archive
by reader a list of [topic, generation, records, records without a key, tombstones, headers], ordered by topic.
"""

import json
import sys


def duckdb_rows(root):
    import duckdb

    query = """
        select topic, generation, count(*), count(*) filter (key is null), count(*) filter (value is null), sum(len(headers))
        from read_parquet(?, hive_partitioning = true, hive_types = {'topic': varchar, 'cluster': varchar})
        group by all order by topic
    """
    rows = duckdb.connect().execute(query, [root + "/segments/kafka/**/*.parquet"]).fetchall()
    return [[topic, generation, *map(int, counts)] for topic, generation, *counts in rows]


def pyarrow_rows(root):
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.dataset as ds

    folders = pa.schema([("cluster", pa.string()), ("topic", pa.string()), ("generation", pa.int32()), ("date", pa.date32())])
    segments = root + "/segments/kafka"
    dataset = ds.dataset(segments, partitioning=ds.partitioning(folders, flavor="hive"), partition_base_dir=segments)
    table = dataset.to_table()
    rows = []
    for topic in sorted(set(table["topic"].to_pylist())):
        part = table.filter(pc.equal(table["topic"], topic))
        headers = sum(len(headers) for headers in part["headers"].to_pylist())
        rows.append([topic, part["generation"][0].as_py(), len(part), part["key"].null_count, part["value"].null_count, headers])
    return rows


def footers(root):
    """The topics as the files themselves say them."""
    import glob
    import pyarrow.parquet as pq

    files = glob.glob(root + "/segments/kafka/**/*.parquet", recursive=True)
    return sorted(pq.read_metadata(file).metadata[b"tidelog.topic"].decode() for file in files)


if __name__ == "__main__":
    readers = {"duckdb": duckdb_rows, "pyarrow": pyarrow_rows, "footers": footers}
    print(json.dumps([{name: rows(root) for name, rows in readers.items()} for root in sys.argv[1:]]))
