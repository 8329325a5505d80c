//! Archived subjects in another registry: one with Confluent's rules keeps their ids, a real one that does not heed ids says which they are.

use serde_json::{Value, json};
use tidelog::config::{Access, Server};
use tidelog::error::Result;
use tidelog::recover::schemas::{Brought, bring};
use tidelog::source::rest::Registrar;
use tidelog::source::rest::subjects::Document;
use url::Url;

use crate::rig::confluent::Confluent;
use crate::rig::registry::Registry;

pub(crate) fn registrar(url: &str) -> Registrar {
    let server = Server { name: "main".into(), urls: vec![Url::parse(url).expect("a URL")], access: Access::default() };
    Registrar::new(&server).expect("a registrar")
}

pub(crate) fn wait<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Runtime::new().expect("a runtime").block_on(work)
}

pub(crate) fn record(name: &str, fields: &[&str]) -> String {
    let fields: Vec<Value> = fields.iter().map(|name| json!({ "name": name, "type": "int", "default": 0 })).collect();
    json!({ "type": "record", "name": name, "fields": fields }).to_string()
}

/// Subjects with everything that an import has to mind: gaps in the numbers, ids out of order, references to a name that sorts behind and
/// to a deleted version, a deleted version whose id comes again, a change that is not compatible, other kinds, another alphabet.
pub(crate) fn archived() -> Document {
    let uses = |subject: &str, version: i64| json!([{ "name": "A", "subject": subject, "version": version }]);
    let by_name = json!({ "type": "record", "name": "R", "fields": [{ "name": "a", "type": "A" }] }).to_string();
    let document = json!({
        "compatibility": "FULL", "mode": "READWRITE",
        "subjects": {
            "a/r ü": { "compatibility": null, "mode": null, "versions": {
                "1": { "id": 9, "type": "AVRO", "schema": by_name, "references": uses("z", 2) },
            } },
            "orders-value": { "compatibility": "NONE", "mode": null, "versions": {
                "1": { "id": 40, "type": "AVRO", "schema": record("O", &["x"]), "deleted": true },
                "3": { "id": 12, "type": "AVRO", "schema": record("P", &["x", "y"]) },
                "4": { "id": 40, "type": "AVRO", "schema": record("O", &["x"]) },
            } },
            "text": { "compatibility": null, "mode": "READONLY", "versions": {
                "1": { "id": 41, "type": "JSON", "schema": "{\"$schema\":\"http://json-schema.org/draft-07/schema#\",\"type\":\"object\"}" },
                "2": { "id": 50, "type": "PROTOBUF", "schema": "syntax = \"proto3\"; message P { string s = 1; }" },
            } },
            "z": { "compatibility": null, "mode": null, "versions": {
                "2": { "id": 7, "type": "AVRO", "schema": record("A", &["n"]), "deleted": true },
                "5": { "id": 8, "type": "AVRO", "schema": record("A", &["n", "m"]) },
            } },
        },
    });
    serde_json::from_value(document).expect("a document")
}

fn brought(registry: &Confluent, archived: &Document) -> Result<Brought> {
    wait(bring(archived, &registrar(&registry.url())))
}

#[test]
fn subjects_keep_their_ids_however_often_they_are_brought() {
    let (archived, registry) = (archived(), Confluent::start());
    let first = brought(&registry, &archived).expect("brought");
    assert_eq!(first, Brought { registered: 8, ..Brought::default() });
    let holds = || wait(registrar(&registry.url()).holds()).expect("its subjects");
    assert_eq!(holds(), archived);
    assert_eq!(brought(&registry, &archived).expect("again"), Brought { there: 8, ..Brought::default() });
    assert_eq!(holds(), archived);
}

#[test]
fn an_import_that_ended_at_any_change_goes_on() {
    let archived = archived();
    for changes in 0.. {
        let registry = Confluent::start();
        registry.fail_after(Some(changes));
        let Err(error) = brought(&registry, &archived) else {
            assert!(changes > 20, "it took {changes} changes");
            break;
        };
        assert!(error.is_transient(), "{error}");
        registry.fail_after(None);
        let second = brought(&registry, &archived).expect("brought");
        assert_eq!((&second.ids, &second.differences), (&[].into(), &vec![]), "after {changes} changes");
        assert_eq!(
            wait(registrar(&registry.url()).holds()).expect("its subjects"),
            archived,
            "after {changes} changes"
        );
    }
}

#[test]
fn an_id_that_is_taken_is_another_one_and_other_versions_stay() {
    let (mut archived, registry) = (archived(), Confluent::start());
    // 12 is taken by another schema; of z there is something else, and what is archived of it does not fit that.
    let taken = json!({ "schema": record("T", &["t"]), "schemaType": "AVRO", "references": [] });
    registry.call("PUT", "/mode/taken", &json!({ "mode": "IMPORT" }));
    let with = |body: &Value, id: i64| {
        let mut body = body.clone();
        (body["id"], body["version"]) = (json!(id), json!(1));
        body
    };
    registry.call("POST", "/subjects/taken/versions", &with(&taken, 12));
    let other = json!({ "schema": record("Z", &["z"]), "schemaType": "AVRO", "references": [] });
    registry.call("POST", "/subjects/z/versions", &other);
    let came = brought(&registry, &archived).expect("brought");
    let id = came.ids[&12];
    assert_eq!(came.ids.len(), 1, "{came:?}");
    let holds = wait(registrar(&registry.url()).holds()).expect("its subjects");
    let orders = &holds.subjects["orders-value"];
    assert_eq!(orders.compatibility.as_deref(), Some("NONE"));
    assert!(orders.versions.values().any(|one| one.id == id && one.schema == record("P", &["x", "y"])), "{orders:?}");
    assert_eq!(holds.subjects["z"].versions[&1].schema, record("Z", &["z"]));
    assert_eq!((holds.compatibility.as_deref(), holds.mode.as_deref()), (Some("BACKWARD"), Some("READWRITE")));
    let told = came.differences.join("\n");
    assert!(told.contains("schema z version 2 is refused") && told.contains("NAME_MISMATCH"), "{told}");
    assert!(told.contains("set its compatibility to NONE"), "{told}");
    assert!(told.contains("a/r ü version 1 is refused"), "{told}");

    // One that lives on keeps what was set since.
    let living = Confluent::start();
    brought(&living, &archived).expect("brought");
    for (path, level) in [("/config", "NONE"), ("/config/orders-value", "FORWARD")] {
        living.call("PUT", path, &json!({ "compatibility": level }));
    }
    let newer = json!({ "schema": record("O", &["x", "z"]), "schemaType": "AVRO", "references": [] });
    living.call("POST", "/subjects/orders-value/versions", &newer);
    let came = brought(&living, &archived).expect("again");
    assert_eq!((came.registered, came.there, came.differences), (0, 8, vec![]));
    let holds = wait(registrar(&living.url()).holds()).expect("its subjects");
    assert_eq!(holds.compatibility.as_deref(), Some("NONE"));
    assert_eq!(holds.subjects["orders-value"].compatibility.as_deref(), Some("FORWARD"));

    // One that is read-only is left alone.
    registry.call("PUT", "/mode", &json!({ "mode": "READONLY" }));
    let error = brought(&registry, &archived).expect_err("it is read-only");
    assert!(error.to_string().contains("is read-only: its mode is READONLY"), "{error}");

    // A circle is none that a registry held.
    let circle = json!([{ "name": "R", "subject": "a/r ü", "version": 1 }]);
    let z = archived.subjects.get_mut("z").expect("a subject");
    z.versions.get_mut(&2).expect("a version").references = vec![circle[0].clone()];
    let error = brought(&Confluent::start(), &archived).expect_err("a circle");
    assert!(error.to_string().contains("refer to each other in a circle"), "{error}");
}

/// Apicurio takes the mode and the ids, and heeds neither.
#[test]
fn a_registry_that_does_not_heed_ids_says_which_they_are() {
    let registry = Registry::start();
    let mut archived = archived();
    archived.mode = None;
    for subject in archived.subjects.values_mut() {
        subject.mode = None;
    }
    let came = wait(bring(&archived, &registrar(&registry.url()))).expect("brought");
    let ids: Vec<i64> =
        archived.subjects.values().flat_map(|subject| subject.versions.values()).map(|one| one.id).collect();
    for id in &ids {
        let now = came.ids.get(id).copied().unwrap_or(*id);
        let answer = registry.server.get(&format!("{}/schemas/ids/{now}", crate::rig::registry::API));
        assert_eq!(answer.status, 200, "{id} is {now} now: {came:?}");
        let answer = answer.json();
        let mut versions = archived.subjects.values().flat_map(|subject| subject.versions.values());
        let was = &versions.find(|one| one.id == *id).expect("archived").schema;
        assert_eq!(answer["schema"].as_str(), Some(was.as_str()), "{id} is {now} now: {came:?}");
    }
    assert!(!came.ids.is_empty() && came.differences.iter().any(|text| text.contains("is version 1 now")), "{came:?}");
}
