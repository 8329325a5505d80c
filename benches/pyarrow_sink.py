"""What one would write by hand: a topic into one Parquet file of the same columns, by confluent-kafka and pyarrow.

    pyarrow_sink.py BOOTSTRAP TOPIC PARTITIONS RECORDS ZSTD_LEVEL FILE
"""

import sys

import confluent_kafka as kafka
import pyarrow as pa
import pyarrow.parquet as pq

TYPES = {0: "NoTimestampType", 1: "CreateTime", 2: "LogAppendTime"}
HEADER = pa.struct([("name", pa.string()), ("value", pa.binary()), ("name_bytes", pa.binary())])
SCHEMA = pa.schema([
    pa.field("partition", pa.int32(), False), pa.field("offset", pa.int64(), False),
    pa.field("timestamp", pa.timestamp("ms", "UTC"), False), pa.field("timestamp_type", pa.string(), False),
    pa.field("leader_epoch", pa.int32(), False), pa.field("key", pa.binary()), pa.field("value", pa.binary()),
    pa.field("headers", pa.list_(HEADER), False),
])
DICTIONARIES = ["partition", "timestamp_type", "leader_epoch", "headers.list.element.name"]
BATCH = 10_000


def main():
    bootstrap, topic, partitions, records, level, path = sys.argv[1:]
    consumer = kafka.Consumer({"bootstrap.servers": bootstrap, "group.id": "pyarrow", "enable.auto.commit": False,
                               "check.crcs": True, "queued.max.messages.kbytes": 8192, "fetch.max.bytes": 8388608})
    consumer.assign([kafka.TopicPartition(topic, number, kafka.OFFSET_BEGINNING) for number in range(int(partitions))])
    left = int(records)
    with pq.ParquetWriter(path, SCHEMA, compression="zstd", compression_level=int(level), use_dictionary=DICTIONARIES,
                          write_statistics=["offset", "timestamp"]) as writer:
        while left > 0:
            messages = consumer.consume(min(BATCH, left), timeout=1)
            for message in messages:
                if message.error():
                    sys.exit(str(message.error()))
            if messages:
                writer.write_table(table(messages), row_group_size=BATCH)
            left -= len(messages)
    consumer.close()


def table(messages):
    times = [message.timestamp() for message in messages]
    columns = [
        [message.partition() for message in messages], [message.offset() for message in messages],
        [time[1] for time in times], [TYPES[time[0]] for time in times],
        [-1 if message.leader_epoch() is None else message.leader_epoch() for message in messages],
        [message.key() for message in messages], [message.value() for message in messages],
        [[{"name": name, "value": value} for name, value in message.headers() or []] for message in messages],
    ]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA)]
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


main()
