# Two clients of Kafka Connect's REST interface watch and steer a running tidelog: kafka-connect-py, which sends Basic
# authentication, and kafka-connect-api, to which a bearer token is given as a header.
import sys
import time

from kafka_connect import KafkaConnect
from kafka_connect_api.kafka_connect_api import Api, Cluster
from requests.exceptions import HTTPError

url, token, topic = sys.argv[1:]


def wait_for(what, condition):
    deadline = time.monotonic() + 60
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"waited in vain for: {what}")
        time.sleep(0.05)


client = KafkaConnect(url=url, auth=f"admin:{token}")
assert client.get_cluster_info()["version"]
assert client.list_connectors() == ["kafka"]
assert set(client.list_connectors(expand="status")["kafka"]) == {"status"}
assert client.get_connector("kafka")["type"] == "sink"
assert client.get_connector_config("kafka")["topics"] == topic
state = lambda: client.get_connector_status("kafka")["connector"]["state"]
assert state() == "RUNNING"

stranger = KafkaConnect(url=url, auth="admin:another-token-altogether")
for change in (stranger.pause_connector, stranger.resume_connector):
    try:
        change("kafka")
        sys.exit("a stranger could change something")
    except HTTPError as error:
        assert error.response.status_code == 403, error
assert state() == "RUNNING"

client.pause_connector("kafka")
wait_for("a pause", lambda: state() == "PAUSED")
assert client.list_connectors(state="paused") == ["kafka"]
client.resume_connector("kafka")
wait_for("the end of a pause", lambda: state() == "RUNNING")
answer = client.restart_connector("kafka", include_tasks=True)
assert answer["connector"]["state"] == "RESTARTING", answer

# An order is carried out a moment after its answer, so what follows waits for what it needs.

api = Api(url=url)
api.headers["Authorization"] = f"Bearer {token}"
cluster = Cluster(api)
wait_for("the cluster's id", lambda: cluster.version and cluster.kafka_cluster)
connector = cluster.connectors["kafka"]
assert connector.exists() and connector.connector_class == "tidelog.Kafka"
wait_for("the end of a restart", lambda: connector.state == "RUNNING")
connector.pause()
wait_for("a pause", lambda: connector.state == "PAUSED")
connector.resume()
wait_for("the end of a pause", lambda: connector.state == "RUNNING")
# A pause that was seen means that the restart before it is done: from here on tasks only come.
wait_for("three tasks that run", lambda: [task["state"] for task in connector.status["tasks"]] == ["RUNNING"] * 3)
assert [task.config["partition"] for task in connector.tasks] == ["0", "1", "2"]
assert all(task.is_running() for task in connector.tasks)
print("both clients are content")
