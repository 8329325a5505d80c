//! The resources that a recovery prints for Strimzi, checked, and carried out on a real worker as the operator does it. No Kubernetes can be
//! had here: that the operator does so is what its documentation and its source say.

use serde_json::{Value, json};

use crate::deploy::tool;
use crate::rig::connect::Connect;

/// The resources, which an API server would take.
fn parsed(yaml: &str) -> Vec<Value> {
    let documents = tool("python", &["-c", include_str!("recover_strimzi.py"), yaml]).expect(0).json();
    documents.as_array().expect("a list").clone()
}

/// Makes the connector as an operator before strimzi/strimzi-kafka-operator#12974: running at first, and stopped as soon as it does. Then
/// its offsets are altered, and somebody sets its state to running.
pub(crate) fn operate(worker: &Connect, yaml: &str, password: &str) {
    assert!(!yaml.contains(password), "a secret is in the resources:\n{yaml}");
    let resources = parsed(yaml);
    let [offsets, connector] = &resources[..] else { panic!("two resources: {resources:?}") };
    let (metadata, spec) = (&connector["metadata"], &connector["spec"]);
    let name = metadata["name"].as_str().expect("a name");
    assert_eq!(
        (&metadata["labels"]["strimzi.io/cluster"], &metadata["namespace"]),
        (&"workers".into(), &"kafka".into())
    );
    assert_eq!(
        (&metadata["annotations"]["strimzi.io/connector-offsets"], &spec["state"]),
        (&"alter".into(), &"stopped".into())
    );
    assert_eq!(spec["alterOffsets"]["fromConfigMap"]["name"], offsets["metadata"]["name"]);

    let mut config = spec["config"].clone();
    let reference = format!("${{secrets:kafka/{name}-credentials:database.password}}");
    assert_eq!(config["database.password"], reference.as_str());
    config["database.password"] = json!(password);
    config["connector.class"] = spec["class"].clone();
    config["tasks.max"] = spec["tasksMax"].to_string().into();
    config["name"] = name.into();
    worker.call("PUT", &format!("/connectors/{name}/config"), &config);
    worker.wait_state(name, "RUNNING");
    worker.call("PUT", &format!("/connectors/{name}/stop"), &Value::Null);
    worker.wait_state(name, "STOPPED");
    let offsets = offsets["data"]["offsets.json"].as_str().expect("the offsets");
    worker.call("PATCH", &format!("/connectors/{name}/offsets"), &serde_json::from_str(offsets).expect("JSON"));
    worker.call("PUT", &format!("/connectors/{name}/resume"), &Value::Null);
}
