"""What somebody with an archiver's login can do to a cluster: each try with the error that the brokers answer."""

import json
import sys

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic

address, user, password, ours, other, group = sys.argv[1:]
login = {
    "bootstrap.servers": address,
    "security.protocol": "SASL_PLAINTEXT",
    "sasl.mechanisms": "PLAIN",
    "sasl.username": user,
    "sasl.password": password,
}
answers = {}


def attempt(name, work):
    try:
        work()
        answers[name] = "allowed"
    except KafkaException as error:
        answers[name] = error.args[0].name()


def produce():
    producer, failed = Producer(login), []
    producer.produce(ours, b"forged", on_delivery=lambda error, _: failed.append(error))
    producer.flush(60)
    if failed[0] is not None:
        raise KafkaException(failed[0])


def read():
    # Whoever may READ a topic may DESCRIBE it.
    error = admin.list_topics(topic=other, timeout=60).topics[other].error
    if error is not None:
        raise KafkaException(error)


def commit():
    # One that lies before what was read, and one that lies ahead of it.
    consumer = Consumer({**login, "group.id": group})
    positions = [TopicPartition(ours, 0, 0), TopicPartition(ours, 1, 15)]
    for position in consumer.commit(offsets=positions, asynchronous=False):
        if position.error is not None:
            raise KafkaException(position.error)


def each(futures):
    for future in futures.values():
        future.result(60)


admin = AdminClient(login)
cleanup = ConfigEntry("cleanup.policy", "compact", incremental_operation=AlterConfigOpType.SET)
attempt("produce", produce)
attempt("commit positions", commit)
attempt("read another topic", read)
attempt("create a topic", lambda: each(admin.create_topics([NewTopic("forged", 1, 1)])))
attempt("delete the topic", lambda: each(admin.delete_topics([ours])))
attempt(
    "alter the topic",
    lambda: each(admin.incremental_alter_configs([ConfigResource("topic", ours, incremental_configs=[cleanup])])),
)
print(json.dumps(answers))
