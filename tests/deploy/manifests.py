"""Reads files of manifests, refuses what an API server would refuse or silently drop, and prints them as one JSON list a file.

Kubernetes' own kinds are checked against the strict schemas of kubernetes-validate; those of the Prometheus operator
against models made from its custom resource definitions.
"""

import json
import sys

import kubernetes_validate
import yaml
from cloudcoil.models.prometheus_operator import v1 as operator

VERSION = "1.37"



def refusal(document):
    """Why the document would not be taken as it is; None if it would."""
    try:
        if document["apiVersion"] == "monitoring.coreos.com/v1":
            model = getattr(operator, document["kind"]).model_validate(document)
            # The models ignore what they do not know: then it is missing from what they give back.
            kept = model.model_dump(by_alias=True, exclude_unset=True, mode="json")
            if kept != document:
                return f"has fields that the operator does not know; it would keep {json.dumps(kept)}"
        else:
            kubernetes_validate.validate(document, VERSION, strict=True)
    except Exception as error:  # whatever it is, the caller says it with the document's name
        where = ".".join(str(step) for step in getattr(error, "absolute_path", []))
        return f"{where}: {getattr(error, 'message', error)}"
    return None


wrong, files = [], []
for path in sys.argv[1:]:
    with open(path, encoding="utf-8") as file:
        documents = [document for document in yaml.safe_load_all(file) if document]
    files.append(documents)
    for document in documents:
        if why := refusal(document):
            wrong.append(f"{path}: {document.get('kind')}/{document['metadata']['name']}: {why}")
if wrong:
    sys.exit("\n".join(wrong))
json.dump(files, sys.stdout)
