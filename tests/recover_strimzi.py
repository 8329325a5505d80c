"""Reads the resources that `recover` prints for Strimzi, refuses what an API server would refuse, and prints them as a JSON list.

A ConfigMap is checked against Kubernetes' own strict schema. Of a KafkaConnector there is no such model here: its fields are those that
the custom resource definition of Strimzi 0.49 documents (kafka.strimzi.io/v1, KafkaConnector).
"""

import json
import re
import sys

import kubernetes_validate
import yaml

SPEC = {"class": str, "tasksMax": int, "version": str, "config": dict, "state": str, "listOffsets": dict, "alterOffsets": dict,
        "autoRestart": dict}
FORBIDDEN = {"name", "connector.class", "tasks.max", "connector.plugin.version"}

documents = list(yaml.safe_load_all(sys.argv[1]))
for document in documents:
    if document["kind"] == "ConfigMap":
        kubernetes_validate.validate(document, "1.37", strict=True)
        continue
    assert (document["apiVersion"], document["kind"]) == ("kafka.strimzi.io/v1", "KafkaConnector"), document
    assert set(document) == {"apiVersion", "kind", "metadata", "spec"}, document
    metadata, spec = document["metadata"], document["spec"]
    assert set(metadata) == {"name", "namespace", "labels", "annotations"}, metadata
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", metadata["name"]), metadata
    for key, value in spec.items():
        assert type(value) is SPEC[key], f"{key}: {value!r}"
    assert spec["tasksMax"] >= 1 and spec["state"] in ("paused", "stopped", "running"), spec
    assert set(spec["alterOffsets"]) == {"fromConfigMap"} and set(spec["alterOffsets"]["fromConfigMap"]) == {"name"}, spec
    assert not FORBIDDEN & set(spec["config"]), spec
    assert all(isinstance(value, (str, int, float, bool)) for value in spec["config"].values()), spec
print(json.dumps(documents))
