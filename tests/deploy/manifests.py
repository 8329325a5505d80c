"""Reads manifests from standard input, refuses what an API server would refuse or silently drop, and prints them as JSON.

Kubernetes' own kinds are checked against the strict schemas of kubernetes-validate; those of the Prometheus operator
against models made from its custom resource definitions.
"""

import json
import sys

import kubernetes_validate
import yaml
from cloudcoil.models.prometheus_operator import v1 as operator

VERSION = "1.37"

wrong = []
documents = [document for document in yaml.safe_load_all(sys.stdin) if document]
for document in documents:
    name = f"{document.get('kind')}/{document.get('metadata', {}).get('name')}"
    try:
        if document.get("apiVersion") == "monitoring.coreos.com/v1":
            model = getattr(operator, document["kind"]).model_validate(document)
            # The models ignore what they do not know: then it is missing from what they give back.
            kept = model.model_dump(by_alias=True, exclude_unset=True, mode="json")
            if kept != document:
                raise ValueError(f"has fields that the operator does not know; it would keep {json.dumps(kept)}")
        else:
            kubernetes_validate.validate(document, VERSION, strict=True)
    except Exception as error:  # whatever it is, it is said with the name
        where = ".".join(str(step) for step in getattr(error, "absolute_path", []))
        wrong.append(f"{name} {where}: {getattr(error, 'message', error)}")
if wrong:
    sys.exit("\n".join(wrong))
json.dump(documents, sys.stdout)
