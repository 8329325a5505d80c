//! The connectors of Kafka Connect in the archive: configs, states and offsets as of any moment, from a real worker; what is refused and
//! what fails, from a server that says it when a test needs it.

use serde_json::{Value, json};
use tidelog::tasks::Task;

use crate::http::{SOON, Service};
use crate::loops::is_told;
use crate::rig::connect::{Connect, shared_worker};
use crate::rig::kafka::{free_port, shared};
use crate::rig::stand_in::{Reply, StandIn};
use crate::rig::{unique, wait_until};
use crate::site::{STOP, Settings};
use crate::state::{now, polled, wait_polled, wait_state};

const SECRET: &str = "hunter2";

fn watching(url: &str, more: &str) -> String {
    format!("[state]\nevery = \"1s\"\ngroups = [\"none\"]\nconnect_url = {url:?}\n{more}")
}

/// An archiver of one topic that nobody writes, which asks Connect.
fn service(url: &str, more: &str) -> Service {
    let (kafka, topic) = (shared(), unique("beside-connect"));
    kafka.create_topic(&topic, 1, &[]);
    Service::start(kafka, &Settings { topics: &[&topic], ..Settings::default() }, &watching(url, more))
}

fn connector(service: &Service, name: &str, at: &str, more: &[&str]) -> Value {
    let args = [&["cat", "--state", "connectors", "--at", at], more].concat();
    service.site.tidelog(&args).expect(0).json()["state"]["connectors"][name].clone()
}

/// Returns whether a kind of state is behind what it was told.
fn versions(service: &Service) -> Value {
    service.server.json("/api/status")["state"]["kinds"]["connectors"]["versions"].clone()
}

#[test]
fn connectors_are_told_as_they_were_at_any_moment() {
    let worker = shared_worker();
    let (topic, source, sink) = (unique("lines"), unique("Quelle ü 日本"), unique("sink"));
    shared().create_topic(&topic, 1, &[]);
    let lines = worker.file(&unique("lines"), "one\ntwo\n");
    let elsewhere = worker.file(&unique("secrets"), &format!("password={SECRET}\n"));
    let reference = format!("${{file:{elsewhere}:password}}");
    let more =
        json!({ "database.password": SECRET, "ssl.key.password": reference, "url": format!("http://me:{SECRET}@h/p") });
    worker.copy_lines(&source, &lines, &topic, more);
    let encoded = "Quelle%20%C3%BC%20%E6%97%A5%E6%9C%AC".to_owned() + source.rsplit_once("日本").expect("its number").1;
    worker.wait_state(&encoded, "RUNNING");
    let into = worker.file(&unique("into"), "");
    let config = json!({
        "connector.class": "org.apache.kafka.connect.file.FileStreamSinkConnector", "topics": topic, "file": into,
    });
    worker.call("PUT", &format!("/connectors/{sink}/config"), &config);
    worker.wait_state(&sink, "RUNNING");
    let mut service = service(&worker.url(), "");

    let read = json!([{ "partition": { "filename": lines }, "offset": { "position": 8 } }]);
    let written =
        json!([{ "partition": { "kafka_topic": topic, "kafka_partition": 0 }, "offset": { "kafka_offset": 2 } }]);
    let found = wait_state(&mut service, "connectors", "the offsets of both", |state| {
        state["connectors"][&source]["offsets"] == read && state["connectors"][&sink]["offsets"] == written
    });
    assert_eq!(found["version"], "4.3.1");
    assert!(found["kafka_cluster_id"].is_string(), "{found}");
    let of = &found["connectors"][&source];
    assert_eq!((&of["type"], &of["state"]), (&json!("source"), &json!("RUNNING")));
    assert_eq!(of["tasks"], json!([{ "id": 0, "state": "RUNNING" }]));
    assert_eq!(found["connectors"][&sink]["type"], "sink");

    // Secrets are hidden where they are shown, and are told once; where they are stays readable.
    let config = &of["config"];
    assert_eq!((&config["database.password"], &config["url"]), (&json!("********"), &json!("http://me:********@h/p")));
    assert_eq!(config["ssl.key.password"], reference);
    let plain = connector(&service, &source, "now", &["--secrets"]);
    assert_eq!(plain["config"]["database.password"], SECRET);

    // What does not change is one version, however often it is asked for.
    wait_polled(&mut service, "connectors", 2);
    let (before, known) = (now(), versions(&service));
    wait_polled(&mut service, "connectors", 2);
    assert_eq!(versions(&service), known);

    // A change, a failure, a deletion.
    let directory = std::path::Path::new(&into).parent().expect("its folder").display().to_string();
    worker.call("PUT", &format!("/connectors/{sink}/stop"), &json!({}));
    worker.wait_state(&sink, "STOPPED");
    let config = json!({
        "connector.class": "org.apache.kafka.connect.file.FileStreamSinkConnector", "topics": topic, "file": directory,
        "connection.password": SECRET,
    });
    worker.call("PUT", &format!("/connectors/{sink}/config"), &config);
    wait_state(&mut service, "connectors", "the stop", |state| state["connectors"][&sink]["state"] == "STOPPED");
    let stopped = now();
    worker.call("PUT", &format!("/connectors/{sink}/resume"), &json!({}));
    let failed = wait_state(&mut service, "connectors", "the failure", |state| {
        state["connectors"][&sink]["tasks"][0]["state"] == "FAILED"
    });
    let why = failed["connectors"][&sink]["tasks"][0]["failed_with"].as_str().expect("a reason");
    assert!(why.contains("Exception") && !why.contains('\n'), "{why}");
    let series = "tidelog_connectors_failed{cluster=\"main\"}";
    wait_until("the failure in the metrics", SOON, || service.metric(series) >= Some(1.0));
    let status = service.server.json("/api/status")["state"].clone();
    assert!(status["streams"].to_string().contains(&format!("{sink:?}")), "{status}");
    let at_failure = now();
    worker.call("DELETE", &format!("/connectors/{encoded}"), &json!({}));
    wait_state(&mut service, "connectors", "the deletion", |state| state["connectors"][&source].is_null());
    worker.call("DELETE", &format!("/connectors/{sink}"), &json!({}));

    assert_eq!(connector(&service, &source, &before, &[])["offsets"], read);
    let then = connector(&service, &sink, &stopped, &[]);
    assert_eq!((&then["state"], &then["tasks"], &then["offsets"]), (&json!("STOPPED"), &json!([]), &written));
    let diff = ["diff", "--state", "connectors", "--from", &before, "--to", &at_failure];
    for args in [&diff[..], &[&diff[..], &["--json"]].concat()] {
        let said = service.site.tidelog(args).expect(0).stdout;
        assert!(said.contains("connection.password") && said.contains("********"), "{said}");
        assert!(!said.contains(SECRET), "{said}");
    }
    let said = service.site.tidelog(&[&diff[..], &["--secrets"]].concat()).expect(0).stdout;
    assert!(said.contains(SECRET), "{said}");

    assert!(service.metric("tidelog_state_versions_total{kind=\"connectors\"}") >= Some(4.0));
    assert!(service.metric("tidelog_state_polled_timestamp_seconds{kind=\"connectors\"}") > Some(1.7e9));
    for path in ["/api/status", "/metrics", "/connectors", "/readyz"] {
        assert!(!service.server.get(path).body.contains(SECRET), "{path}");
    }
    let log = service.program.output();
    assert!(!log.contains(SECRET), "{log}");
    assert_eq!(log.matches("hold secrets as plain text").count(), 2, "one of each connector\n{log}");
    assert!(log.contains("connectors have failed"), "{log}");
    service.program.terminate(STOP);
    let listed = service.site.tidelog(&["ls", "state/connectors/main", "--json"]).expect(0).json();
    assert!(listed["streams"][0]["records"].as_u64() >= Some(4), "{listed}");
    service.site.assert_sound();
}

#[test]
fn connect_that_is_away_is_named_and_its_last_state_stays() {
    assert_eq!(Task::ConnectState.name(), "connect_state");
    let worker = Connect::start(&shared().bootstrap());
    let (topic, name) = (unique("away"), unique("away"));
    let lines = worker.file("lines", "one\n");
    shared().create_topic(&topic, 1, &[]);
    worker.copy_lines(&name, &lines, &topic, json!({}));
    // One address of two answers.
    let url = format!("http://127.0.0.1:{},{}", free_port(), worker.url());
    let mut service = service(&url, "");
    let position = |state: &Value| state["connectors"][&name]["offsets"][0]["offset"]["position"].clone();
    // Nothing below its name can be asked for: its config and its state are known all the same.
    worker.copy_lines("sl/ash", &lines, &topic, json!({}));
    let slash = wait_state(&mut service, "connectors", "a name with a slash", |state| {
        state["connectors"]["sl/ash"]["state"] == "RUNNING"
    });
    let slash = &slash["connectors"]["sl/ash"];
    assert_eq!((&slash["config"]["topic"], &slash["offsets"]), (&json!(topic), &Value::Null), "{slash}");
    assert!(slash["offsets_unknown"].as_str().is_some_and(|why| why.contains("400")), "{slash}");
    wait_state(&mut service, "connectors", "the offset", |state| position(state) == 4);
    let told = |service: &Service| is_told(&service.server, Task::ConnectState, "the state of Connect is not kept");
    assert!(!told(&service));
    let check = || service.site.tidelog(&["check", "--connect"]);
    let said = check().expect(0).stdout;
    assert!(said.contains(&format!("{}/: Connect 4.", worker.url())) && said.contains("connectors: 2\n"), "{said}");

    worker.kill();
    let said = check().expect(1).stdout;
    assert!(said.contains("FAILED connect        no answer of http://127.0.0.1:"), "{said}");
    wait_until("the failure to be told", SOON, || {
        service.program.assert_running();
        told(&service)
    });
    assert_eq!(service.server.get("/readyz").status, 200, "archiving goes on");
    let (last, known) = (polled(&service, "connectors"), versions(&service));
    assert_eq!(connector(&service, &name, "now", &[])["state"], "RUNNING", "what was told last");
    worker.restart();
    wait_until("nothing to fail", SOON, || !told(&service) && polled(&service, "connectors") > last);
    std::fs::write(&lines, "one\ntwo\n").expect("written");
    wait_state(&mut service, "connectors", "the next offset", |state| position(state) == 8);
    assert!(versions(&service).as_i64() > known.as_i64());
    service.program.terminate(STOP);
    service.site.assert_sound();
}

/// What Connect would say of one connector.
fn one(name: &str, n: u64) -> impl Fn(&str) -> Reply + use<> {
    let name = name.to_owned();
    move |path: &str| match path {
        "/" => Reply::Says(200, json!({ "version": "4.3.1", "commit": "c", "kafka_cluster_id": "k" }).to_string()),
        "/connectors" => Reply::Says(200, json!([name]).to_string()),
        path if path.starts_with("/connectors?") => {
            let info = json!({ "name": name, "config": { "n": n.to_string() }, "tasks": [], "type": "source" });
            let its = json!({ "state": "RUNNING", "worker_id": "w:1" });
            let status = json!({ "name": name, "connector": its, "tasks": [], "type": "source" });
            Reply::Says(200, json!({ &name: { "info": info, "status": status } }).to_string())
        }
        path if path.ends_with("/offsets") => Reply::Says(200, json!({ "offsets": [] }).to_string()),
        path => panic!("{path} was not to be asked for"),
    }
}

fn missing(text: &str) -> Reply {
    Reply::Says(404, json!({ "error_code": 404, "message": text }).to_string())
}

#[test]
fn half_an_answer_is_never_kept_and_what_is_refused_is_told_once() {
    let server = StandIn::start({
        let one = one("a", 1);
        move |asked| one(&asked.path)
    });
    let password = "[state.connect]\nuser = \"me\"\npassword = \"hunter2\"\n";
    let mut service = service(&format!("http://{}", server.address), password);
    let number = |state: &Value| state["connectors"]["a"]["config"]["n"].as_str().and_then(|n| n.parse::<u64>().ok());
    wait_state(&mut service, "connectors", "the first", |state| number(state) == Some(1));
    // Base64 of me:hunter2 (RFC 7617).
    assert!(server.take_asked().iter().all(|asked| asked.authorization.as_deref() == Some("Basic bWU6aHVudGVyMg==")));

    // Each of these would be another state if it were taken for one.
    type Broken = fn(&str) -> Option<Reply>;
    let half: Broken = |path| (path.starts_with("/connectors?")).then(|| Reply::Half("{}".into()));
    let no_json: Broken = |path| (path.starts_with("/connectors?")).then(|| Reply::Says(200, "<html>".into()));
    let other: Broken = |path| (path == "/connectors").then(|| Reply::Says(200, "{\"a\":\"hunter2\"}".into()));
    let timed_out: Broken = |path| {
        path.ends_with("/offsets")
            .then(|| Reply::Says(500, "{\"error_code\":500,\"message\":\"Request timed out\"}".into()))
    };
    let stopping: Broken = |path| path.ends_with("/offsets").then(|| Reply::Says(503, String::new()));
    let unknown: Broken = |path| path.starts_with("/connectors").then(|| missing("HTTP 404 Not Found"));
    let cases: [(&str, Broken, &str); 6] = [
        ("half an answer", half, "no answer of"),
        ("no JSON", no_json, "is not what this version reads: line 1, column 1"),
        ("another server", other, "is not what this version reads"),
        ("a time-out", timed_out, "Request timed out"),
        ("a worker that stops", stopping, "answers 503"),
        ("no Connect", unknown, "knows no connectors"),
    ];
    for (at, (what, broken, says)) in cases.into_iter().enumerate() {
        let n = u64::try_from(at).expect("few") + 2;
        let last = polled(&service, "connectors");
        let whole = one("a", n);
        server.answers(move |asked| broken(&asked.path).unwrap_or_else(|| whole(&asked.path)));
        wait_until(what, SOON, || {
            service.program.assert_running();
            is_told(&service.server, Task::ConnectState, says)
        });
        let whole = one("a", n);
        server.answers(move |asked| whole(&asked.path));
        let state = wait_state(&mut service, "connectors", what, |state| number(state) > Some(n - 1));
        assert_eq!(number(&state), Some(n), "{what}");
        assert!(polled(&service, "connectors") > last);
    }
    // One version a case: nothing was kept in between.
    assert_eq!(versions(&service), json!(7));

    // A right that is missing is told once, with what to do; the rest is told meanwhile.
    let refused = |service: &Service| service.server.json("/api/status")["state"]["refused"].to_string();
    server.answers(|_| Reply::Says(401, String::new()));
    wait_until("what is refused", SOON, || refused(&service).contains("check user and password of [state.connect]"));
    server.take_asked();
    wait_until("two more polls", SOON, || server.take_asked().is_empty() || server.take_asked().len() > 1);
    let log = service.program.output();
    assert_eq!(log.matches("this is not told, so its state is not kept").count(), 1, "{log}");
    let said = service.site.tidelog(&["check", "--connect"]).expect(1).stdout;
    assert!(said.contains("check user and password of [state.connect]") && !said.contains("hunter2"), "{said}");
    assert!(!log.contains("hunter2") && !log.contains("bWU6"), "{log}");
    let whole = one("a", 99);
    server.answers(move |asked| whole(&asked.path));
    wait_state(&mut service, "connectors", "it again", |state| number(state) == Some(99));
    wait_until("nothing to be refused", SOON, || refused(&service) == "[]");
    assert_eq!(service.server.get("/readyz").status, 200);
    service.program.terminate(STOP);
    service.site.assert_sound();
}

#[test]
fn what_connect_says_in_passing_is_no_failure() {
    let server = StandIn::start({
        let one = one("a", 1);
        move |asked| one(&asked.path)
    });
    let mut service = service(&format!("http://{}", server.address), "");
    wait_state(&mut service, "connectors", "the first", |state| state["connectors"]["a"].is_object());
    // A rebalance: nothing is kept and nothing fails; the next poll has it.
    let busy =
        json!({ "error_code": 409, "message": "Cannot complete request momentarily due to stale configuration" });
    let one_a = one("a", 2);
    server.answers(move |asked| match asked.path.as_str() {
        "/" => one_a("/"),
        _ => Reply::Says(409, busy.to_string()),
    });
    let polls = |server: &StandIn, wanted: usize| {
        let mut times = 0;
        wait_until("polls", SOON, || {
            times += server.take_asked().iter().filter(|asked| asked.path == "/").count();
            times >= wanted
        });
    };
    server.take_asked();
    // The first of them may have begun before.
    polls(&server, 2);
    let (known, last) = (versions(&service), polled(&service, "connectors"));
    polls(&server, 3);
    assert!(!is_told(&service.server, Task::ConnectState, ""));
    assert_eq!((versions(&service), polled(&service, "connectors")), (known, last));

    // One whose status nobody has written yet is left out by the list with details, one is deleted between two questions, an old
    // worker tells no offsets, and a plugin is missing.
    server.answers(move |asked| match asked.path.as_str() {
        "/connectors" => Reply::Says(200, json!(["a", "gone", "new/one ü?", "old"]).to_string()),
        "/connectors/new%2Fone%20%C3%BC%3F" => {
            Reply::Says(200, json!({ "name": "n", "config": { "k": null }, "type": "sink" }).to_string())
        }
        "/connectors/new%2Fone%20%C3%BC%3F/offsets" => {
            Reply::Says(500, json!({ "error_code": 500, "message": "Failed to find any class\nthat" }).to_string())
        }
        "/connectors/old" => Reply::Says(200, json!({ "config": {}, "type": "source" }).to_string()),
        "/connectors/old/status" => Reply::Says(200, json!({ "connector": { "state": "UNASSIGNED" } }).to_string()),
        path if path.starts_with("/connectors/gone") => missing("Connector gone not found"),
        path if path.ends_with("/status") => missing("No status found for connector new"),
        path if path.ends_with("/old/offsets") => missing("HTTP 404 Not Found"),
        path => one("a", 2)(path),
    });
    let state = wait_state(&mut service, "connectors", "the others", |state| state["connectors"]["old"].is_object());
    let all = &state["connectors"];
    assert_eq!(all.as_object().expect("connectors").keys().collect::<Vec<_>>(), ["a", "new/one ü?", "old"]);
    assert_eq!((&all["new/one ü?"]["state"], &all["new/one ü?"]["offsets"]), (&Value::Null, &Value::Null));
    let why = all["new/one ü?"]["offsets_unknown"].as_str().expect("why");
    assert!(why.contains("Failed to find any class"), "{why}");
    assert_eq!(all["old"]["offsets_unknown"], "this version of Connect does not tell offsets");
    assert_eq!(all["old"]["state"], "UNASSIGNED");
    assert!(
        service.server.json("/api/status")["state"]["refused"].to_string().contains("the offsets of 2 of 3 connectors")
    );
    service.program.terminate(STOP);
    service.site.assert_sound();
}
