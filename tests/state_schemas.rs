//! The subjects of a schema registry in the archive, from a real one, and from a stand-in with Confluent's rules where it has none of its own.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tidelog::tasks::Task;

use crate::http::{SOON, Service};
use crate::loops::is_told;
use crate::rig::kafka::shared;
use crate::rig::registry::Registry;
use crate::rig::stand_in::{Asked, Reply, StandIn};
use crate::rig::{unique, wait_until};
use crate::site::{STOP, Settings};
use crate::state::{now, polled, wait_polled, wait_state};

fn service(url: &str) -> Service {
    let (kafka, topic) = (shared(), unique("beside-schemas"));
    kafka.create_topic(&topic, 1, &[]);
    let more = format!("[state]\nevery = \"1s\"\ngroups = [\"none\"]\nschema_registry_url = {url:?}\n");
    Service::start(kafka, &Settings { topics: &[&topic], ..Settings::default() }, &more)
}

#[test]
fn a_registry_that_is_away_is_named_and_its_last_state_stays() {
    assert_eq!(Task::RegistryState.name(), "registry_state");
    let registry = Registry::start();
    let avro = |fields: &str| format!("{{\"type\":\"record\",\"name\":\"A\",\"fields\":[{fields}]}}");
    let first = avro("{\"name\":\"x\",\"type\":\"int\"}");
    let second = avro("{\"name\":\"x\",\"type\":\"int\"},{\"name\":\"y\",\"type\":\"int\",\"default\":1}");
    let by_name = "{\"type\":\"record\",\"name\":\"R\",\"fields\":[{\"name\":\"a\",\"type\":\"A\"}]}";
    let protobuf = "syntax = \"proto3\"; message P { string s = 1; }";
    let schema = "{\"$schema\":\"http://json-schema.org/draft-07/schema#\",\"type\":\"object\"}";
    let add = |subject: &str, body: Value| {
        registry.call("POST", &format!("/subjects/{subject}/versions"), &body)["id"].as_i64().expect("an id")
    };
    let ids = [add("a-value", json!({ "schema": first })), add("a-value", json!({ "schema": second }))];
    // A name with a slash, a space and another alphabet.
    let of_protobuf = add("p%2Fq%20%C3%BC", json!({ "schemaType": "PROTOBUF", "schema": protobuf }));
    add("j", json!({ "schemaType": "JSON", "schema": schema }));
    let references = json!([{ "name": "A", "subject": "a-value", "version": 1 }]);
    add("r", json!({ "schema": by_name, "references": references }));
    registry.call("PUT", "/config/a-value", &json!({ "compatibility": "FULL" }));
    let mut service = service(&registry.url());
    let found = wait_state(&mut service, "schemas", "all subjects", |state| state["subjects"]["r"].is_object());
    let subjects = &found["subjects"];
    let a = json!({ "compatibility": "FULL", "mode": null, "versions": {
        "1": { "id": ids[0], "type": "AVRO", "schema": first }, "2": { "id": ids[1], "type": "AVRO", "schema": second },
    } });
    assert_eq!(subjects["a-value"], a);
    let p = json!({ "1": { "id": of_protobuf, "type": "PROTOBUF", "schema": protobuf } });
    assert_eq!(subjects["p/q ü"]["versions"], p);
    assert_eq!(subjects["j"]["versions"]["1"]["type"], "JSON");
    assert_eq!(subjects["r"]["versions"]["1"]["references"], references);
    assert_eq!(found["compatibility"], "NONE");
    let said = service.site.tidelog(&["check", "--connect"]).expect(0).stdout;
    assert!(said.contains("registry") && said.contains(": subjects: 4\n"), "{said}");
    let before = now();

    // A soft-deleted version stays, marked; one version is kept while nothing changes.
    registry.call("DELETE", "/subjects/a-value/versions/2", &json!({}));
    wait_state(&mut service, "schemas", "the deletion", |state| {
        state["subjects"]["a-value"]["versions"]["2"]["deleted"] == true
    });
    let versions =
        |service: &Service| service.server.json("/api/status")["state"]["kinds"]["schemas"]["versions"].clone();
    let known = versions(&service);
    wait_polled(&mut service, "schemas", 2);
    assert_eq!(versions(&service), known);
    let diff = service.site.tidelog(&["diff", "--state", "schemas", "--from", &before, "--json"]).expect(0).json();
    let path = ["subjects", "a-value", "versions", "2", "deleted"];
    assert_eq!(diff["changed"], json!([{ "path": path, "to": true }]));

    let told = |service: &Service| is_told(&service.server, Task::RegistryState, "schema registry is not kept");
    let last = polled(&service, "schemas");
    registry.kill();
    wait_until("the failure to be told", SOON, || {
        service.program.assert_running();
        told(&service)
    });
    assert_eq!(service.server.get("/readyz").status, 200, "archiving goes on");
    let kept = service.site.tidelog(&["cat", "--state", "schemas"]).expect(0).json();
    assert_eq!(kept["state"]["subjects"].as_object().map(serde_json::Map::len), Some(4), "what was told last");
    registry.restart();
    wait_until("nothing to fail", SOON, || !told(&service) && polled(&service, "schemas") > last);
    wait_state(&mut service, "schemas", "the empty one", |state| state["subjects"] == json!({}));
    service.program.terminate(STOP);
    service.site.assert_sound();
}

/// A registry of Confluent's rules, as far as reading goes: subjects with numbers and whether they are deleted.
type Subjects = Arc<Mutex<BTreeMap<String, BTreeMap<i64, bool>>>>;

fn confluent(subjects: &Subjects, asked: &Asked) -> Reply {
    let subjects = subjects.lock().expect("it is whole");
    let (path, query) = asked.path.split_once('?').unwrap_or((&asked.path, ""));
    let with_deleted = query == "deleted=true";
    let missing = |code: u32| Reply::Says(404, json!({ "error_code": code, "message": "not found" }).to_string());
    let say = |value: Value| Reply::Says(200, value.to_string());
    match path.trim_start_matches('/').split('/').collect::<Vec<_>>()[..] {
        ["config"] => say(json!({ "compatibilityLevel": "BACKWARD" })),
        ["mode"] => say(json!({ "mode": "READONLY" })),
        // No subject has its own.
        ["config", _] => missing(40408),
        ["mode", _] => missing(40409),
        ["subjects"] => {
            let names = subjects.iter().filter(|(_, versions)| with_deleted || versions.values().any(|gone| !gone));
            say(names.map(|(name, _)| json!(name)).collect())
        }
        ["subjects", name, "versions"] => {
            let Some(versions) = subjects.get(name) else { return missing(40401) };
            let numbers: Vec<i64> =
                versions.iter().filter(|(_, gone)| with_deleted || !**gone).map(|(number, _)| *number).collect();
            if numbers.is_empty() { missing(40404) } else { say(json!(numbers)) }
        }
        ["subjects", name, "versions", number] => {
            let number: i64 = number.parse().expect("a number");
            if !subjects.get(name).is_some_and(|versions| versions.contains_key(&number)) {
                return missing(40402);
            }
            say(json!({
                "subject": name, "version": number, "id": number + 100, "guid": format!("g{number}"), "schemaType": "JSON",
                "schema": "{}", "metadata": { "tags": {} }, "references": null,
            }))
        }
        _ => panic!("{} was not to be asked for", asked.path),
    }
}

#[test]
fn a_text_is_asked_for_once_and_a_deletion_is_seen_all_the_same() {
    let subjects: Subjects = Arc::default();
    let set = |name: &str, versions: &[(i64, bool)]| {
        subjects.lock().expect("it is whole").insert(name.to_owned(), versions.iter().copied().collect());
    };
    for n in 0..20 {
        set(&format!("s{n}"), &[(1, false), (2, false)]);
    }
    set("gone", &[(1, true)]);
    let server = StandIn::start({
        let subjects = Arc::clone(&subjects);
        move |asked| confluent(&subjects, asked)
    });
    // Those of texts, since the last look.
    let texts = |server: &StandIn| {
        let asked = server.take_asked();
        asked
            .iter()
            .filter(|asked| asked.path.matches('/').count() == 4)
            .map(|asked| asked.path.clone())
            .collect::<Vec<_>>()
    };
    let mut service = service(&format!("http://{}", server.address));
    let found = wait_state(&mut service, "schemas", "all", |state| state["subjects"]["s19"].is_object());
    assert_eq!((&found["mode"], &found["compatibility"]), (&json!("READONLY"), &json!("BACKWARD")));
    assert_eq!(found["subjects"]["gone"]["versions"]["1"]["deleted"], true, "all of its versions are");
    let one = json!({ "id": 101, "guid": "g1", "type": "JSON", "schema": "{}", "metadata": { "tags": {} } });
    assert_eq!(found["subjects"]["s0"]["versions"]["1"], one);
    assert_eq!(texts(&server).len(), 41, "each once");
    wait_polled(&mut service, "schemas", 1);
    assert_eq!(texts(&server), [""; 0]);

    set("s3", &[(1, false), (2, true), (3, false)]);
    subjects.lock().expect("it is whole").remove("s4");
    let found = wait_state(&mut service, "schemas", "the change", |state| state["subjects"]["s4"].is_null());
    assert_eq!(found["subjects"]["s3"]["versions"]["2"]["deleted"], true);
    assert_eq!(texts(&server), ["/subjects/s3/versions/3?deleted=true"]);

    // Another process knows what the archive holds.
    service.program.terminate(STOP);
    service.program = service.site.start();
    service.wait_ready();
    wait_until("a poll", SOON, || !polled(&service, "schemas").is_empty());
    assert_eq!(texts(&server), [""; 0]);

    // What fails in the middle changes nothing.
    let last = polled(&service, "schemas");
    server.answers({
        let subjects = Arc::clone(&subjects);
        move |asked| match asked.path.ends_with("s7/versions") {
            true => Reply::Says(
                500,
                json!({ "error_code": 50001, "message": "Error in the backend data store" }).to_string(),
            ),
            false => confluent(&subjects, asked),
        }
    });
    wait_until("the failure", SOON, || {
        is_told(&service.server, Task::RegistryState, "Error in the backend data store")
    });
    assert!(polled(&service, "schemas") >= last);
    let kept = service.site.tidelog(&["cat", "--state", "schemas"]).expect(0).json();
    assert_eq!(kept["state"]["subjects"]["s7"], found["subjects"]["s7"]);
    service.program.terminate(STOP);
    service.site.assert_sound();
}
