//! `tidelog drill schema`: archived schemas come into a scratch registry, which is empty before and after, and archived records are decoded
//! by what it gives back.

use std::fs;

use serde_json::{Value, json};
use tidelog::recover::schemas::bring;
use tidelog::source::rest::subjects::Document;

use crate::http::Service;
use crate::recover_schemas::{archived, registrar, wait};
use crate::rig::confluent::Confluent;
use crate::rig::kafka::shared;
use crate::rig::program::Output;
use crate::rig::registry::Registry;
use crate::rig::topics::{Codec, Message};
use crate::rig::unique;
use crate::site::Settings;
use crate::state::wait_state;

fn drill(service: &Service, url: &str, more: &[&str]) -> Output {
    service.site.home().write("scratch.toml", &format!("[schema_registry]\nurl = {url:?}\n"));
    service.site.tidelog(&[&["drill", "schema", "--pipeline", "scratch.toml", "--json"], more].concat())
}

/// A value behind the id of its schema.
fn with_id(id: u8, value: &[u8]) -> Vec<u8> {
    [&[0, 0, 0, 0, id], value].concat()
}

fn record(key: Option<Vec<u8>>, value: Vec<u8>) -> Message {
    Message { partition: Some(0), key, value: Some(value), ..Message::default() }
}

fn holds(url: &str) -> Document {
    wait(registrar(url).holds()).expect("its subjects")
}

fn result(service: &Service, name: &str) -> Value {
    let text = fs::read(service.site.home().path().join("archive/drills").join(name)).expect("the result is kept");
    serde_json::from_slice(&text).expect("JSON")
}

#[test]
fn archived_schemas_come_back_in_a_scratch_registry_and_decode_what_is_archived() {
    let (kafka, live) = (shared(), Confluent::start());
    wait(bring(&archived(), &registrar(&live.url()))).expect("the live registry");
    let (orders, counts) = (unique("orders"), unique("counts"));
    kafka.create_topic(&orders, 1, &[]);
    kafka.create_topic(&counts, 1, &[]);
    let in_header = ("apicurio.value.contentId".to_owned(), Some(12_u64.to_be_bytes().to_vec()));
    let messages = [
        record(Some(with_id(8, &[2, 4])), with_id(12, &[2, 4])),
        record(None, with_id(40, &[2])),
        Message { headers: vec![in_header], ..record(None, vec![6, 8]) },
        record(None, with_id(41, b"{\"a\": 1}")),
        record(None, with_id(50, &[10, 1, 97])),
        record(Some(b"plain".to_vec()), b"{}".to_vec()),
    ];
    kafka.produce(&orders, Codec::None, &messages);
    // A count, which begins like the name of a schema.
    kafka.produce(&counts, Codec::None, &[record(None, 5_u64.to_be_bytes().to_vec())]);
    let more = format!("[state]\nevery = \"1s\"\ngroups = [\"none\"]\nschema_registry_url = {:?}\n", live.url());
    let mut service = Service::start(kafka, &Settings { topics: &[&orders, &counts], ..Settings::default() }, &more);
    wait_state(&mut service, "schemas", "the subjects", |state| state["subjects"]["z"].is_object());
    service.site.wait_archived(kafka, &[&orders, &counts], &mut [&mut service.program]);

    let scratch = Confluent::start();
    let empty = holds(&scratch.url());
    for at in [&["--at", "now"][..], &["--seed", "7"]] {
        let report = drill(&service, &scratch.url(), at).expect(0).json();
        assert_eq!((&report["ok"], &report["subjects"], &report["versions"]), (&json!(true), &json!(4), &json!(8)));
        assert_eq!(report["other_ids"], 0, "{report}");
        let read = json!({ "topics": 2, "archived": 7, "read": 7, "decoded": 4, "named": 2, "without": 2 });
        assert_eq!(report["records"], read, "{report}");
        let note = format!("{counts}: 1 keys or values begin as if they named a schema");
        assert!(report["notes"][0].as_str().is_some_and(|text| text.starts_with(&note)), "{report}");
        assert_eq!(holds(&scratch.url()), empty);
    }
    assert_eq!(result(&service, "schema.json")["outcome"], "passed");

    // What is live, or somebody's, is left alone.
    let said = drill(&service, &live.url(), &[]).expect(2).stderr;
    assert!(said.contains("schema_registry.url") && said.contains("is the registry that is archived"), "{said}");
    let own = json!({ "schema": "\"int\"", "schemaType": "AVRO", "references": [] });
    let taken = Confluent::start();
    taken.call("POST", "/subjects/mine/versions", &own);
    let before = holds(&taken.url());
    let said = drill(&service, &taken.url(), &[]).expect(2).stderr;
    assert!(said.contains("holds subjects already: mine"), "{said}");
    assert_eq!((holds(&taken.url()), holds(&live.url())), (before, archived()));

    // It ends half way, and so does what it would do at its end.
    scratch.fail_after(Some(12));
    let report = drill(&service, &scratch.url(), &["--at", "now"]).expect(1).json();
    assert_eq!(report["outcome"], "failed", "{report}");
    scratch.fail_after(None);
    assert!(!holds(&scratch.url()).subjects.is_empty());
    assert_eq!(result(&service, "made/schema.json")["made"]["subjects"].as_array().map(Vec::len), Some(4));
    drill(&service, &scratch.url(), &["--at", "now"]).expect(0);
    assert_eq!((holds(&scratch.url()), &result(&service, "made/schema.json")["made"]), (empty, &Value::Null));

    // A real one, which gives ids and numbers of its own: what was decoded is decoded.
    let apicurio = Registry::start();
    let before = holds(&apicurio.url());
    let report = drill(&service, &apicurio.url(), &["--at", "now"]).expect(3).json();
    assert_eq!(report["records"]["decoded"], 4, "{report}");
    assert!(report["other_ids"].as_u64() > Some(0), "{report}");
    assert_eq!(holds(&apicurio.url()), before, "{report}");

    // Records that nobody can read any more.
    let bad = [record(None, with_id(13, &[2])), record(None, with_id(12, &[2, 4, 6])), record(None, with_id(41, b"{"))];
    kafka.produce(&orders, Codec::None, &bad);
    service.site.wait_archived(kafka, &[&orders], &mut [&mut service.program]);
    let report = drill(&service, &scratch.url(), &["--at", "now"]).expect(3).json();
    let found: Vec<&str> =
        report["findings"].as_array().expect("findings").iter().filter_map(|one| one["detail"].as_str()).collect();
    let expected = [
        "the value of 1 record names the schema id 12, and cannot be read with it; the first is partition 0 offset 7",
        "the value of 1 record names the schema id 13, which the registry does not have; the first is partition 0 offset 6",
        "the value of 1 record names the schema id 41, and cannot be read with it; the first is partition 0 offset 8",
    ];
    assert_eq!(found, expected, "{report}");
    assert_eq!(result(&service, "schema.json")["outcome"], "found");
    let said = drill(&service, &scratch.url(), &["--at", "-7d"]);
    assert_eq!(said.expect(0).json()["records"]["read"], 0);
}
