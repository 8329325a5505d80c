//! The Kubernetes manifests: built, checked against the schemas, and looked through for what a cluster would only show later:
//! selectors that find nothing, ports that differ, pods that may too much.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use serde_json::{Value, json};

use super::{deploy, tool};
use crate::rig::process::temporary_directory;

/// What somebody applies.
pub(super) const BUILDS: [&str; 13] = [
    "base",
    "overlays/plain",
    "overlays/s3",
    "overlays/replay",
    "overlays/replay-s3",
    "overlays/postgres",
    "overlays/postgres-s3",
    "overlays/restore-postgres",
    "overlays/restore-postgres-s3",
    "overlays/recover",
    "overlays/recover-s3",
    "overlays/drill",
    "overlays/drill-s3",
];

/// What `kubectl apply -k` would send, after the schemas of the API server and of the Prometheus operator have been asked.
pub(super) fn build(folder: &str) -> &'static [Value] {
    static BUILT: LazyLock<Vec<Vec<Value>>> = LazyLock::new(|| {
        let directory = temporary_directory("manifests");
        let files = BUILDS.map(|folder| {
            let built = tool("kubectl", &["kustomize", &deploy("kubernetes").join(folder).display().to_string()]);
            let built = built.expect(0);
            assert_eq!(built.stderr, "", "{folder}: kustomize has something to say");
            let file = directory.path().join(folder.replace('/', "-"));
            std::fs::write(&file, built.stdout).expect("a file can be written");
            file.display().to_string()
        });
        let files: Vec<&str> = files.iter().map(String::as_str).collect();
        let checked = tool("python", &[&["-c", include_str!("manifests.py")], files.as_slice()].concat()).expect(0);
        serde_json::from_value(checked.json()).expect("lists of resources")
    });
    let at = BUILDS.iter().position(|build| *build == folder).expect("a folder of BUILDS");
    &BUILT[at]
}

/// The resources of a kind.
pub(super) fn of_kind<'a>(resources: &'a [Value], kind: &str) -> Vec<&'a Value> {
    resources.iter().filter(|resource| resource["kind"] == kind).collect()
}

/// The one resource of a kind.
pub(super) fn the<'a>(resources: &'a [Value], kind: &str) -> &'a Value {
    let found = of_kind(resources, kind);
    assert_eq!(found.len(), 1, "resources of kind {kind}");
    found[0]
}

/// The pods that resources ask for, each with the name of what asks for it.
fn pods(resources: &[Value]) -> Vec<(String, &Value)> {
    let template = |resource: &'_ Value| {
        ["/spec/template", "/spec/jobTemplate/spec/template"].into_iter().find(|path| resource.pointer(path).is_some())
    };
    let named = |resource: &Value| format!("{} {}", resource["kind"], resource["metadata"]["name"]);
    resources.iter().filter_map(|one| Some((named(one), one.pointer(template(one)?)?))).collect()
}

/// Strings of a list under `pointer`.
fn texts(value: &Value, pointer: &str) -> Vec<String> {
    let list = value.pointer(pointer).and_then(Value::as_array).cloned().unwrap_or_default();
    list.iter().map(|text| text.as_str().expect("a text").to_owned()).collect()
}

/// Whether a selector's labels are among a pod's.
fn selects(selector: &Value, pod: &Value) -> bool {
    let labels = selector.get("matchLabels").unwrap_or(selector).as_object().expect("labels");
    labels.iter().all(|(name, value)| &pod["metadata"]["labels"][name] == value)
}

#[test]
fn every_build_is_taken_and_stays_in_the_namespace() {
    for folder in BUILDS {
        let resources = build(folder);
        assert!(!pods(resources).is_empty(), "{folder} runs nothing");
        for resource in resources {
            assert_eq!(resource["metadata"]["namespace"], "data-ingestion", "{folder}: {resource}");
        }
        let kinds: BTreeSet<&str> = resources.iter().filter_map(|resource| resource["kind"].as_str()).collect();
        assert!(!kinds.contains("Secret"), "{folder} brings a secret");
        assert!(!kinds.iter().any(|kind| kind.contains("Role")), "{folder} gives rights at the API server");
        // Of the builds of Jobs the Job alone is sent, also to a cluster that does not know the operator's kinds.
        let with_operator = ["base", "overlays/s3", "overlays/postgres", "overlays/postgres-s3"].contains(&folder);
        for kind in ["PodMonitor", "PrometheusRule"] {
            assert_eq!(kinds.contains(kind), with_operator, "{folder}: {kind}");
        }
    }
    let folders = std::fs::read_dir(deploy("kubernetes/overlays")).expect("a folder");
    for folder in folders.map(|folder| folder.expect("a folder").file_name().to_string_lossy().into_owned()) {
        assert!(BUILDS.contains(&format!("overlays/{folder}").as_str()), "nobody looks at overlays/{folder}");
    }
    let example = super::read("deploy/kubernetes/base/secret.example.yaml");
    assert!(example.contains("kind: Secret\nmetadata:\n  name: tidelog\n"), "{example}");
}

#[test]
fn no_pod_may_more_than_it_needs() {
    for folder in BUILDS {
        let resources = build(folder);
        for (name, pod) in pods(resources) {
            let spec = &pod["spec"];
            let context = &spec["securityContext"];
            assert_eq!(spec["automountServiceAccountToken"], false, "{folder} {name}");
            assert_eq!(spec["serviceAccountName"], "tidelog", "{folder} {name}");
            assert_eq!(context["runAsNonRoot"], true, "{folder} {name}");
            // A directory of Postgres belongs to Postgres' user: 999 in its image.
            let drills = name.contains("drill");
            let user = if drills || name.contains("restore") { 999 } else { 65532 };
            assert_eq!((&context["runAsUser"], &context["fsGroup"]), (&json!(user), &json!(user)), "{folder} {name}");
            assert_eq!(context["seccompProfile"]["type"], "RuntimeDefault", "{folder} {name}");
            assert_eq!(spec["containers"].as_array().map(Vec::len), Some(1), "{folder} {name}");
            let container = &spec["containers"][0];
            let context = &container["securityContext"];
            assert_eq!(context["allowPrivilegeEscalation"], false, "{folder} {name}");
            assert_eq!(context["readOnlyRootFilesystem"], true, "{folder} {name}");
            assert_eq!(context["capabilities"], json!({"drop": ["ALL"]}), "{folder} {name}");
            let resources = &container["resources"];
            // A drill has a whole server beside it.
            let (requests, limits) = if drills { ("512Mi", "1Gi") } else { ("256Mi", "256Mi") };
            assert_eq!(resources["requests"], json!({"cpu": "100m", "memory": requests}), "{folder} {name}");
            assert_eq!(resources["limits"]["memory"], limits, "{folder} {name}");
            // Each mount has its volume, each volume its mount.
            let named = |list: &Value| -> BTreeSet<String> {
                let list = list.as_array().expect("a list");
                list.iter().map(|item| item["name"].as_str().expect("a name").to_owned()).collect()
            };
            assert_eq!(named(&container["volumeMounts"]), named(&spec["volumes"]), "{folder} {name}");
        }
    }
    let account = build("base");
    assert_eq!(the(account, "ServiceAccount")["automountServiceAccountToken"], false);
}

#[test]
fn a_volume_has_one_archiver_and_a_bucket_several() {
    let base = build("base");
    let volume = the(base, "Deployment");
    assert_eq!((&volume["spec"]["replicas"], &volume["spec"]["strategy"]), (&json!(1), &json!({"type": "Recreate"})));
    assert_eq!(volume["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"], "500m");
    let claims = of_kind(base, "PersistentVolumeClaim");
    let claims: Vec<&str> = claims.iter().filter_map(|claim| claim["metadata"]["name"].as_str()).collect();
    assert_eq!(claims, ["tidelog-archive", "tidelog-spool"]);

    let s3 = build("overlays/s3");
    let bucket = the(s3, "Deployment");
    assert_eq!(
        (&bucket["spec"]["replicas"], &bucket["spec"]["strategy"]["type"]),
        (&json!(3), &json!("RollingUpdate"))
    );
    assert!(of_kind(s3, "PersistentVolumeClaim").is_empty(), "a claim for one node is left");
    let pod = &bucket["spec"]["template"];
    let spread = pod["spec"]["topologySpreadConstraints"].as_array().expect("a spread");
    assert_eq!(spread.len(), 2, "nodes and zones");
    assert!(spread.iter().all(|one| selects(&one["labelSelector"], pod)), "{spread:?}");
    assert!(pod["spec"]["volumes"].to_string().contains("volumeClaimTemplate"), "each replica has its own spool");
}

#[test]
fn nothing_that_runs_from_a_bucket_has_a_volume_archive() {
    for folder in BUILDS {
        for (name, pod) in pods(build(folder)) {
            let text = pod["spec"].to_string();
            let bucket = text.contains("TIDELOG__ARCHIVE__URL");
            assert_eq!(bucket, folder.ends_with("s3"), "{folder} {name}");
            assert_eq!(text.contains("tidelog-archive"), !bucket, "{folder} {name}");
        }
    }
    // One connection holds the replication slot.
    assert_eq!(the(build("overlays/postgres-s3"), "Deployment")["spec"]["replicas"], 1);
}

#[test]
fn what_selects_pods_finds_them() {
    for folder in BUILDS {
        let resources = build(folder);
        let pods = pods(resources);
        let archiver = &the(resources, "Deployment")["spec"]["template"];
        assert!(selects(&the(resources, "Deployment")["spec"]["selector"], archiver));
        assert!(selects(&the(resources, "Service")["spec"]["selector"], archiver));
        let budget = the(resources, "PodDisruptionBudget");
        assert!(selects(&budget["spec"]["selector"], archiver));
        assert_eq!(budget["spec"]["maxUnavailable"], 1, "a node with the one replica must be drainable");
        for monitor in of_kind(resources, "PodMonitor") {
            assert!(selects(&monitor["spec"]["selector"], archiver));
        }
        let policies = of_kind(resources, "NetworkPolicy");
        for (name, pod) in &pods {
            let denied: Vec<_> = policies
                .iter()
                .filter(|policy| selects(&policy["spec"]["podSelector"], pod))
                .filter(|policy| policy["spec"].get("ingress").is_none() && policy["spec"].get("egress").is_none())
                .collect();
            assert_eq!(denied.len(), 1, "{folder}: {name} is not closed by default");
            assert_eq!(texts(denied[0], "/spec/policyTypes"), ["Ingress", "Egress"]);
        }
        for policy in policies {
            assert!(pods.iter().any(|(_, pod)| selects(&policy["spec"]["podSelector"], pod)), "{folder}: {policy}");
        }
    }
}

#[test]
fn every_way_to_the_listener_names_the_same_port() {
    let base = build("base");
    let container = &the(base, "Deployment")["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["ports"], json!([{"name": "http", "containerPort": 9095}]));
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        assert_eq!(container[probe]["httpGet"]["port"], "http", "{probe}");
    }
    let ports = &the(base, "Service")["spec"]["ports"];
    assert_eq!(ports, &json!([{"name": "http", "port": 9095, "targetPort": "http"}]));
    assert_eq!(the(base, "PodMonitor")["spec"]["podMetricsEndpoints"][0]["port"], "http");
    let annotations = &the(base, "Deployment")["spec"]["template"]["metadata"]["annotations"];
    assert_eq!(
        annotations,
        &json!({"prometheus.io/scrape": "true", "prometheus.io/port": "9095", "prometheus.io/path": "/metrics"})
    );
    let ingress = of_kind(base, "NetworkPolicy").into_iter().filter_map(|policy| policy["spec"].get("ingress"));
    let ports: Vec<_> = ingress.map(|rules| rules[0]["ports"].clone()).collect();
    assert_eq!(ports, [json!([{"protocol": "TCP", "port": "http"}]), json!([{"protocol": "TCP", "port": "http"}])]);
}
