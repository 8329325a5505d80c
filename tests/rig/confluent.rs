//! A stand-in for Confluent's schema registry, which cannot be had from the package registries, with its rules about ids, modes, references
//! and deletions (`KafkaSchemaRegistry.register`, `setMode`, `AbstractSchemaRegistry.checkRegisterMode` of version 8.0).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};

use super::stand_in::{Asked, Reply, StandIn};

type Refusal = (u16, i64, String);

/// A running registry, empty at first.
pub(crate) struct Confluent {
    server: StandIn,
    state: Arc<Mutex<State>>,
}

struct State {
    compatibility: BTreeMap<Option<String>, String>,
    modes: BTreeMap<Option<String>, String>,
    subjects: BTreeMap<String, BTreeMap<i64, Value>>,
    /// After how many changes it fails every request.
    fails_after: Option<u64>,
}

impl Confluent {
    pub(crate) fn start() -> Confluent {
        let state = Arc::new(Mutex::new(State {
            compatibility: BTreeMap::from([(None, "BACKWARD".to_owned())]),
            modes: BTreeMap::from([(None, "READWRITE".to_owned())]),
            subjects: BTreeMap::new(),
            fails_after: None,
        }));
        let shared = Arc::clone(&state);
        let server = StandIn::start(move |asked| {
            let mut state = shared.lock().unwrap_or_else(PoisonError::into_inner);
            if asked.method != "GET" {
                match &mut state.fails_after {
                    Some(0) => return Reply::Says(503, String::new()),
                    Some(left) => *left -= 1,
                    None => {}
                }
            }
            match state.answer(asked) {
                Ok(body) => Reply::Says(200, body.to_string()),
                Err((status, code, message)) => {
                    Reply::Says(status, json!({ "error_code": code, "message": message }).to_string())
                }
            }
        });
        Confluent { server, state }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.server.address)
    }

    /// Lets so many changes pass, and fails all others from then on; none: no more.
    pub(crate) fn fail_after(&self, changes: Option<u64>) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).fails_after = changes;
    }

    /// A call that must be answered with 200.
    pub(crate) fn call(&self, method: &str, path: &str, body: &Value) -> Value {
        let asked = Asked { method: method.into(), path: path.into(), authorization: None, body: body.to_string() };
        self.state.lock().unwrap_or_else(PoisonError::into_inner).answer(&asked).expect("it is allowed")
    }
}

fn refused<T>(message: impl Into<String>) -> Result<T, Refusal> {
    Err((422, 42205, message.into()))
}

fn not_found() -> Result<Value, Refusal> {
    Err((404, 40401, "not found".to_owned()))
}

impl State {
    fn answer(&mut self, asked: &Asked) -> Result<Value, Refusal> {
        let (path, query) = asked.path.split_once('?').unwrap_or((&asked.path, ""));
        let segments: Vec<String> = path.trim_matches('/').split('/').map(decoded).collect();
        let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
        let body: Value = serde_json::from_str(&asked.body).unwrap_or_default();
        let deleted = query.contains("deleted=true");
        match (asked.method.as_str(), segments.as_slice()) {
            ("GET", ["subjects"]) => {
                let has = |versions: &BTreeMap<i64, Value>| versions.values().any(|one| deleted || is_live(one));
                Ok(self.subjects.iter().filter(|(_, versions)| has(versions)).map(|(name, _)| json!(name)).collect())
            }
            ("GET", ["subjects", name, "versions"]) => {
                let versions = self.subjects.get(*name).into_iter().flatten();
                let numbers: Vec<i64> =
                    versions.filter(|(_, one)| deleted || is_live(one)).map(|(number, _)| *number).collect();
                if numbers.is_empty() { not_found() } else { Ok(json!(numbers)) }
            }
            ("GET", ["subjects", name, "versions", number]) => {
                let version = number.parse().ok().and_then(|number: i64| self.subjects.get(*name)?.get(&number));
                version.filter(|one| deleted || is_live(one)).cloned().map_or_else(not_found, Ok)
            }
            ("POST", ["subjects", name, "versions"]) => self.register(name, &body),
            ("DELETE", ["subjects", name, "versions", number]) => {
                self.delete(name, number.parse().expect("a number"), query.contains("permanent=true"))
            }
            (method, [what @ ("config" | "mode"), rest @ ..]) => {
                self.setting(method, what, rest.first().map(|name| (*name).to_owned()), body)
            }
            _ => not_found(),
        }
    }

    /// Softly at first, and for good only what was deleted so; never what something else refers to.
    fn delete(&mut self, name: &str, number: i64, for_good: bool) -> Result<Value, Refusal> {
        let mode = self.modes.get(&Some(name.to_owned())).unwrap_or(&self.modes[&None]);
        if mode == "READONLY" {
            return refused(format!("Subject {name} is in read-only mode"));
        }
        let refers = |one: &Value| {
            let mut references = one["references"].as_array().into_iter().flatten();
            references.any(|to| to["subject"] == name && to["version"] == number)
        };
        if for_good && self.subjects.values().flat_map(BTreeMap::values).any(refers) {
            return Err((422, 42206, "One or more references exist to the schema".to_owned()));
        }
        let Some(versions) = self.subjects.get_mut(name) else { return not_found() };
        match versions.get_mut(&number) {
            Some(one) if for_good && is_live(one) => {
                Err((404, 40407, "was not deleted first before being permanently deleted".to_owned()))
            }
            Some(_) if for_good => {
                versions.remove(&number);
                if versions.is_empty() {
                    self.subjects.remove(name);
                }
                Ok(json!(number))
            }
            Some(one) if is_live(one) => {
                one["deleted"] = json!(true);
                Ok(json!(number))
            }
            _ => not_found(),
        }
    }

    /// What counts for a subject, or for all.
    fn setting(&mut self, method: &str, what: &str, subject: Option<String>, body: Value) -> Result<Value, Refusal> {
        if what == "mode" && method == "PUT" {
            self.may_be(&subject, body["mode"].as_str().expect("a mode"))?;
        }
        let (map, key) = match what {
            "mode" => (&mut self.modes, "mode"),
            _ => (&mut self.compatibility, if method == "GET" { "compatibilityLevel" } else { "compatibility" }),
        };
        let found = match method {
            "GET" => map.get(&subject).cloned(),
            "DELETE" => map.remove(&subject),
            _ => {
                map.insert(subject, body[key].as_str().expect("a value").to_owned());
                return Ok(body);
            }
        };
        found.map_or_else(not_found, |value| Ok(json!({ key: value })))
    }

    /// IMPORT is for subjects without live versions, and lets their soft-deleted ones go for good.
    fn may_be(&mut self, subject: &Option<String>, mode: &str) -> Result<(), Refusal> {
        if mode != "IMPORT" || self.modes.get(subject).is_some_and(|now| now == mode) {
            return Ok(());
        }
        let in_scope = |name: &String| subject.as_ref().is_none_or(|subject| subject == name);
        if self.subjects.iter().any(|(name, versions)| in_scope(name) && versions.values().any(is_live)) {
            return refused("Cannot import since found existing subjects");
        }
        self.subjects.retain(|name, _| !in_scope(name));
        Ok(())
    }

    fn register(&mut self, name: &str, body: &Value) -> Result<Value, Refusal> {
        let subject = Some(name.to_owned());
        let of = |map: &BTreeMap<Option<String>, String>| map.get(&subject).unwrap_or(&map[&None]).clone();
        let (mode, compatibility) = (of(&self.modes), of(&self.compatibility));
        let (id, number) = (body["id"].as_i64(), body["version"].as_i64());
        match (mode.as_str(), id) {
            ("READWRITE", None) | ("IMPORT", Some(_)) => {}
            ("READONLY", _) => return refused(format!("Subject {name} is in read-only mode")),
            (_, Some(_)) => return refused(format!("Subject {name} is not in import mode")),
            (_, None) => return refused(format!("Subject {name} is not in read-write mode")),
        }
        for reference in body["references"].as_array().into_iter().flatten() {
            let subject = self.subjects.get(reference["subject"].as_str().expect("a subject"));
            if subject.and_then(|versions| versions.get(&reference["version"].as_i64().expect("a number"))).is_none() {
                return Err((422, 42201, format!("Invalid schema: no schema reference found for {reference}")));
            }
        }
        let same = |one: &Value| {
            one["schema"] == body["schema"]
                && one["schemaType"] == body["schemaType"]
                && one["references"] == body["references"]
        };
        let all = || self.subjects.values().flat_map(BTreeMap::values);
        if id.is_some_and(|id| all().any(|one| one["id"] == id && !same(one))) {
            return refused(format!("Overwrite new schema with id {} is not permitted.", id.expect("given")));
        }
        let known = all().find(|one| same(one)).and_then(|one| one["id"].as_i64());
        let next = all().filter_map(|one| one["id"].as_i64()).max().unwrap_or(0) + 1;
        let id = id.or(known).unwrap_or(next);
        let versions = self.subjects.entry(name.to_owned()).or_default();
        if mode == "READWRITE" {
            if let Some(there) = versions.values().find(|one| is_live(one) && same(one)) {
                return Ok(json!({ "id": there["id"] }));
            }
            let record = |schema: &Value| {
                let parsed: Option<Value> = schema.as_str().and_then(|text| serde_json::from_str(text).ok());
                parsed.map(|schema| schema["name"].clone())
            };
            // One of Avro's rules: a record of another name is none that can be read.
            let last = versions.values().rfind(|one| is_live(one));
            if compatibility != "NONE" && last.is_some_and(|last| record(&last["schema"]) != record(&body["schema"])) {
                let message = "Schema being registered is incompatible with an earlier schema: NAME_MISMATCH";
                return Err((409, 409, message.to_owned()));
            }
        }
        let after = versions.keys().next_back().copied().unwrap_or(0) + 1;
        let number = if mode == "IMPORT" { number.unwrap_or(after) } else { after };
        versions.retain(|_, one| is_live(one) || one["id"] != id);
        let mut version = body.clone();
        version["id"] = json!(id);
        version["version"] = json!(number);
        version["subject"] = json!(name);
        versions.insert(number, version);
        Ok(json!({ "id": id }))
    }
}

fn is_live(version: &Value) -> bool {
    version["deleted"] != true
}

fn decoded(segment: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = segment.as_bytes();
    while let [first, more @ ..] = rest {
        match (first, more) {
            (b'%', [high, low, after @ ..]) => {
                let hex = std::str::from_utf8(&[*high, *low]).map(str::to_owned).expect("hex digits");
                bytes.push(u8::from_str_radix(&hex, 16).expect("hex digits"));
                rest = after;
            }
            _ => {
                bytes.push(*first);
                rest = more;
            }
        }
    }
    String::from_utf8(bytes).expect("a name in UTF-8")
}
