//! The HTTP listener of a running archiver: what everybody may read, what only the token may change, and what real tools
//! (Prometheus, promtool, clients of Kafka Connect) make of it.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::rig::http::Server;
use crate::rig::kafka::{Kafka, KafkaOptions, free_port, shared};
use crate::rig::postgres::{Postgres, PostgresOptions};
use crate::rig::process::Process;
use crate::rig::program::{Home, Program};
use crate::rig::topics::{Codec, Message};
use crate::rig::{parts, python, unique, wait_for, wait_until};
use crate::site::{STOP, Settings, Site};

/// How long something that happens within seconds on an idle machine may take.
pub(crate) const SOON: Duration = Duration::from_secs(180);

pub(crate) const TOKEN: &str = "correct-horse-battery-staple";

/// The token with which records are shown.
pub(crate) const READER: &str = "a-reader-of-what-was-archived";

/// An archiver with a listener.
pub(crate) struct Service {
    pub(crate) site: Site,
    pub(crate) server: Server,
    pub(crate) program: Program,
}

/// A site whose configuration has a listener and a token.
pub(crate) fn site_with_listener(kafka: &Kafka, settings: &Settings<'_>, more: &str) -> (Site, Server) {
    site_at(&kafka.bootstrap(), settings, more)
}

/// The same for any address of the brokers.
pub(crate) fn site_at(bootstrap: &str, settings: &Settings<'_>, more: &str) -> (Site, Server) {
    let site = Site::new(bootstrap, settings);
    let token = site.home().write("token", TOKEN);
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).expect("the token's rights");
    let reader = site.home().write("reader", READER);
    fs::set_permissions(&reader, fs::Permissions::from_mode(0o600)).expect("the token's rights");
    let server = Server::new(format!("127.0.0.1:{}", free_port()));
    let http = format!(
        "[http]\nlisten = {:?}\nadmin_token_file = {:?}\nreader_token_file = {:?}\n{more}\n[kafka]\n",
        server.address,
        token.display().to_string(),
        reader.display().to_string()
    );
    site.reconfigure("[kafka]\n", &http);
    (site, server)
}

impl Service {
    /// Starts one and waits until it is ready.
    pub(crate) fn start(kafka: &Kafka, settings: &Settings<'_>, more: &str) -> Service {
        let (site, server) = site_with_listener(kafka, settings, more);
        let program = site.start();
        let mut service = Service { site, server, program };
        service.wait_ready();
        service
    }

    pub(crate) fn wait_ready(&mut self) {
        let ready = || self.server.is_up() && self.server.get("/readyz").status == 200;
        wait_until("the archiver to be ready", SOON, || {
            self.program.assert_running();
            ready()
        });
    }

    /// A changing call with the token.
    fn change(&self, method: &str, path: &str) -> u16 {
        self.server.request(method, path, &[("Authorization", &format!("Bearer {TOKEN}"))]).status
    }

    pub(crate) fn state(&self) -> String {
        let status = self.server.json("/connectors/kafka/status");
        status["connector"]["state"].as_str().expect("a state").to_owned()
    }

    pub(crate) fn wait_state(&self, state: &str) {
        wait_until(&format!("the connector to be {state}"), SOON, || self.state() == state);
    }

    fn tasks(&self) -> usize {
        self.server.json("/connectors/kafka/tasks").as_array().expect("tasks").len()
    }

    /// The value of a series of /metrics, named with its labels.
    pub(crate) fn metric(&self, series: &str) -> Option<f64> {
        let text = self.server.get("/metrics").body;
        text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
    }
}

fn produce(kafka: &Kafka, topic: &str, partitions: i32, count: i32) {
    let messages: Vec<Message> =
        (0..count).map(|n| Message::new(n % partitions, &format!("key-{n}"), &format!("record {n}"))).collect();
    kafka.produce(topic, Codec::Lz4, &messages);
}

// ---- reading

#[test]
fn every_path_answers_as_documented() {
    let (kafka, a, b) = (shared(), unique("http-a"), unique("http-b"));
    kafka.create_topic(&a, 2, &[]);
    kafka.create_topic(&b, 1, &[]);
    produce(kafka, &a, 2, 100);
    let mut service = Service::start(kafka, &Settings { topics: &[&a, &b], ..Settings::default() }, "");
    service.site.wait_archived(kafka, &[&a], &mut [&mut service.program]);
    let server = service.server.clone();

    let root = server.json("/");
    assert_eq!((&root["version"], root["commit"].is_string()), (&json!(env!("CARGO_PKG_VERSION")), true));
    wait_until("the cluster's id to be known", SOON, || server.json("/")["kafka_cluster_id"].is_string());
    assert_eq!(server.json("/connectors"), json!(["kafka"]));
    assert_eq!(server.json("/connector-plugins")[0]["class"], "tidelog.Kafka");

    wait_until("three tasks", SOON, || service.tasks() == 3);
    let info = server.json("/connectors/kafka");
    assert_eq!(
        (&info["name"], &info["type"], info["tasks"].as_array().map(Vec::len)),
        (&json!("kafka"), &json!("sink"), Some(3))
    );
    assert_eq!(info["config"], server.json("/connectors/kafka/config"));
    assert_eq!(info["config"]["topics"], format!("{a},{b}"));
    let task = json!({ "id": { "connector": "kafka", "task": 1 },
        "config": { "task.class": "tidelog.Kafka", "topic": a, "partition": "1" } });
    assert_eq!(server.json("/connectors/kafka/tasks")[1], task);
    assert_eq!(server.json("/connectors/kafka/tasks/2/status")["state"], "RUNNING");
    assert_eq!(server.json("/connectors/kafka/topics"), json!({ "kafka": { "topics": [a, b] } }));
    wait_until("the offsets of what was archived", SOON, || {
        let offset = |partition: i32| json!({ "partition": { "kafka_topic": a, "kafka_partition": partition }, "offset": { "kafka_offset": 50 } });
        let offsets = server.json("/connectors/kafka/offsets");
        [0, 1].iter().all(|partition| offsets["offsets"].as_array().expect("offsets").contains(&offset(*partition)))
    });
    let expanded = server.json("/connectors?expand=info&expand=status");
    assert_eq!(expanded["kafka"]["info"]["name"], "kafka");
    assert_eq!(expanded["kafka"]["status"]["connector"]["state"], "RUNNING");
    assert_eq!(expanded["kafka"]["status"]["tasks"].as_array().map(Vec::len), Some(3));

    assert_eq!(server.json("/healthz")["status"], "ok");
    assert_eq!(server.json("/readyz")["status"], "ready");
    wait_until("coverage of what was archived", SOON, || {
        let stream = server.json(&format!("/api/streams/{a}"));
        let partition = &stream["partitions"][1];
        stream["records"] == 100 && partition["lag_records"] == 0 && partition["complete_through"].is_string()
    });
    let answer = server.get("/api/status");
    let tag = answer.header("etag").expect("an ETag").to_owned();
    assert_eq!(answer.json()["kafka"]["streams"].as_array().map(Vec::len), Some(2));
    wait_until("an answer that has not changed", SOON, || {
        let again = server.request("GET", "/api/status", &[("If-None-Match", &tag)]);
        let tag = again.header("etag").expect("an ETag").to_owned();
        server.request("GET", "/api/status", &[("If-None-Match", &tag)]).status == 304
    });

    for (path, status, says) in [
        ("/nowhere", 404, "there is no /nowhere"),
        ("/connectors/other", 404, "Connector other not found"),
        ("/connectors/other/status", 404, "Connector other not found"),
        ("/connectors/kafka/tasks/3/status", 404, "No status found for task kafka-3"),
        ("/connectors/kafka/tasks/x/status", 404, "No status found"),
        ("/api/streams/none", 404, "no partition of a topic none"),
        ("/connectors/kafka/pause", 405, "GET is not allowed on /connectors/kafka/pause: it takes PUT"),
        ("/connectors/kafka/restart", 405, "it takes POST"),
    ] {
        let answer = server.get(path);
        assert_eq!((answer.status, &answer.json()["error_code"]), (status, &json!(status)), "{path}");
        assert!(answer.json()["message"].as_str().expect("a message").contains(says), "{path}: {answer:?}");
    }
    for (method, path, says) in [
        ("POST", "/connectors", "is set in the configuration"),
        ("PUT", "/connectors/kafka/config", "is set in the configuration"),
        ("DELETE", "/connectors/kafka", "is set in the configuration"),
        ("POST", "/metrics", "it is only read, with GET"),
    ] {
        let answer = server.request(method, path, &[]);
        assert!(answer.status == 405 && answer.body.contains(says), "{method} {path}: {answer:?}");
    }
    assert_eq!(server.request("GET", "/", &[("Content-Length", "70000")]).status, 413);
    assert_eq!(server.request("GET", "/", &[("X-Long", &"x".repeat(40_000))]).status, 431);
    assert_eq!(server.request("HEAD", "/metrics", &[]).body, "");

    let page = server.request("GET", "/", &[("Accept", "text/html,*/*;q=0.8")]);
    assert!(page.header("content-type").is_some_and(|kind| kind.starts_with("text/html")), "{page:?}");
    let policy = page.header("content-security-policy").expect("a policy");
    assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    for path in ["/page.css", "/page.js", "/text.js"] {
        assert_eq!(server.get(path).header("x-content-type-options"), Some("nosniff"), "{path}");
    }
    service.program.terminate(STOP);
}

// ---- changing

#[test]
fn only_the_token_changes_something_and_a_pause_is_told_everywhere() {
    let (kafka, topic) = (shared(), unique("http-pause"));
    kafka.create_topic(&topic, 2, &[]);
    produce(kafka, &topic, 2, 10);
    let mut service = Service::start(kafka, &Settings { topics: &[&topic], ..Settings::default() }, "");
    service.site.wait_archived(kafka, &[&topic], &mut [&mut service.program]);

    let refused = |headers: &[(&str, &str)]| {
        for (method, what) in [("PUT", "pause"), ("PUT", "resume"), ("PUT", "stop"), ("POST", "restart")] {
            let answer = service.server.request(method, &format!("/connectors/kafka/{what}"), headers);
            let expected = if headers.is_empty() { 401 } else { 403 };
            assert_eq!(
                (answer.status, &answer.json()["error_code"]),
                (expected, &json!(expected)),
                "{what}: {answer:?}"
            );
            assert_eq!(answer.header("www-authenticate").is_some(), expected == 401, "{what}");
        }
    };
    refused(&[]);
    refused(&[("Authorization", "Bearer correct-horse-battery-stapl")]);
    refused(&[("Authorization", &format!("Basic {}", STANDARD.encode("me:wrong")))]);
    assert_eq!(service.change("PUT", "/connectors/other/pause"), 404);
    assert_eq!(service.metric("tidelog_paused{connector=\"kafka\"}"), Some(0.0));
    assert!(!service.program.output().contains("paused"), "nothing was changed: {}", service.program.output());

    assert_eq!(service.change("PUT", "/connectors/kafka/pause"), 202);
    service.wait_state("PAUSED");
    produce(kafka, &topic, 2, 10);
    wait_until("the lag of a paused archiver", SOON, || {
        service.metric(&format!("tidelog_lag_records{{topic=\"{topic}\",partition=\"1\"}}")) == Some(5.0)
    });
    assert_eq!(service.metric("tidelog_paused{connector=\"kafka\"}"), Some(1.0));
    assert_eq!(service.site.ends(&topic).values().sum::<i64>(), 10, "nothing is archived meanwhile");
    let ready = service.server.json("/readyz");
    assert!(ready["notes"][0].as_str().is_some_and(|note| note.contains("kafka is paused since")), "{ready}");
    let tasks = service.server.json("/connectors/kafka/status")["tasks"].clone();
    assert!(tasks.as_array().expect("tasks").iter().all(|task| task["state"] == "PAUSED"), "{tasks}");
    assert_eq!(service.server.json("/api/status")["kafka"]["state"], "paused");
    assert!(service.program.output().contains("paused: nothing is read until a resume"));
    assert_eq!(service.tasks(), 2, "it keeps its partitions");

    // By password, as Connect's clients do.
    let basic = format!("Basic {}", STANDARD.encode(format!("admin:{TOKEN}")));
    let resumed = service.server.request("PUT", "/connectors/kafka/resume", &[("Authorization", &basic)]);
    assert_eq!(resumed.status, 202);
    service.wait_state("RUNNING");
    service.site.wait_archived(kafka, &[&topic], &mut [&mut service.program]);
    service.program.terminate(STOP);
    service.site.assert_sound();
    service.site.assert_holds(&topic, 0, &kafka.consume_all(&topic));
}

#[test]
fn stopped_it_leaves_its_partitions_to_others_and_restarted_it_begins_at_the_archive() {
    let (kafka, topic) = (shared(), unique("http-stop"));
    kafka.create_topic(&topic, 4, &[]);
    produce(kafka, &topic, 4, 40);
    let mut service = Service::start(kafka, &Settings { topics: &[&topic], ..Settings::default() }, "");
    wait_until("four partitions", SOON, || service.tasks() == 4);

    assert_eq!(service.change("POST", "/connectors/kafka/restart"), 204);
    let path = "/connectors/kafka/restart?includeTasks=true&onlyFailed=false";
    let answer = service.server.request("POST", path, &[("Authorization", &format!("Bearer {TOKEN}"))]);
    assert_eq!((answer.status, &answer.json()["connector"]["state"]), (202, &json!("RESTARTING")));
    service.wait_state("RUNNING");
    wait_until("four partitions again", SOON, || service.tasks() == 4);
    produce(kafka, &topic, 4, 40);
    service.site.wait_archived(kafka, &[&topic], &mut [&mut service.program]);

    assert_eq!(service.change("PUT", "/connectors/kafka/stop"), 204);
    service.wait_state("STOPPED");
    wait_until("no partition", SOON, || service.tasks() == 0);
    let series = || {
        let text = service.server.get("/metrics").body;
        text.lines().filter(|line| line.starts_with("tidelog_checkpoint_position{")).count()
    };
    assert_eq!((series(), service.metric("tidelog_paused{connector=\"kafka\"}")), (0, Some(1.0)));
    // Another member of the group takes over.
    let port = free_port();
    service.site.reconfigure(&service.server.address, &format!("127.0.0.1:{port}"));
    let mut other = service.site.start();
    produce(kafka, &topic, 4, 40);
    service.site.wait_archived(kafka, &[&topic], &mut [&mut service.program, &mut other]);
    other.terminate(STOP);

    assert_eq!(service.change("PUT", "/connectors/kafka/resume"), 202);
    service.wait_state("RUNNING");
    wait_until("four partitions", SOON, || service.tasks() == 4);
    produce(kafka, &topic, 4, 40);
    service.site.wait_archived(kafka, &[&topic], &mut [&mut service.program]);
    service.program.terminate(STOP);
    service.site.assert_sound();
    service.site.assert_holds(&topic, 0, &kafka.consume_all(&topic));
}

#[test]
fn clients_of_kafka_connect_steer_it() {
    let (kafka, topic) = (shared(), unique("http-connect"));
    kafka.create_topic(&topic, 3, &[]);
    produce(kafka, &topic, 3, 30);
    let mut service = Service::start(kafka, &Settings { topics: &[&topic], ..Settings::default() }, "");
    wait_until("three partitions", SOON, || service.tasks() == 3);
    let url = format!("http://{}", service.server.address);
    let said = python::run(include_str!("data/connect_clients.py"), &[&url, TOKEN, &topic]);
    assert!(said.ends_with("both clients are content\n"), "{said}");
    service.site.wait_archived(kafka, &[&topic], &mut [&mut service.program]);
    service.program.terminate(STOP);
    service.site.assert_holds(&topic, 0, &kafka.consume_all(&topic));
}

#[test]
fn a_gap_is_counted_once_and_shown_for_ever() {
    let (kafka, topic) = (shared(), unique("http-gap"));
    kafka.create_topic(&topic, 1, &[]);
    produce(kafka, &topic, 1, 10);
    let (site, server) = site_with_listener(kafka, &Settings { topics: &[&topic], ..Settings::default() }, "");
    site.archive(kafka, &[&topic]);
    produce(kafka, &topic, 1, 50);
    kafka.delete_records(&topic, 0, 35);
    let mut service = Service { program: site.start(), site, server };
    service.site.wait_archived(kafka, &[&topic], &mut [&mut service.program]);
    let counter = "tidelog_gaps_total{kind=\"kafka\",reason=\"broker_retention\"}";
    assert_eq!(service.metric(counter), Some(1.0));
    let gap = |service: &Service| {
        let gaps = service.server.json(&format!("/api/streams/{topic}"))["gaps"].clone();
        gaps.as_array().filter(|gaps| gaps.len() == 1).map(|gaps| gaps[0].clone())
    };
    let found = wait_for("the gap to be shown", SOON, || gap(&service));
    assert_eq!((&found["start"], &found["end"], &found["offsets"]), (&json!(10), &json!(35), &json!(25)));
    assert!(found["from"].as_str() <= found["to"].as_str() && found["from"].is_string(), "{found}");
    service.program.terminate(STOP);

    // Another process counts nothing, and still knows when the lost records were written: between their neighbours.
    service.program = service.site.start();
    service.wait_ready();
    let known = wait_for("the gap of the archive", SOON, || gap(&service));
    assert_eq!((&known["from"], &known["start"], service.metric(counter)), (&found["from"], &json!(10), Some(0.0)));
    assert!(
        known["to"].as_str() <= found["to"].as_str(),
        "the next record was written before the gap was found: {known}"
    );
    service.program.terminate(STOP);
}

// ---- health

#[test]
fn readiness_says_what_is_away() {
    let (kafka, topic) = (Kafka::start(KafkaOptions::default()), unique("http-ready"));
    kafka.create_topic(&topic, 1, &[]);
    produce(&kafka, &topic, 1, 10);
    let mut service = Service::start(&kafka, &Settings { topics: &[&topic], ..Settings::default() }, "");
    service.site.wait_archived(&kafka, &[&topic], &mut [&mut service.program]);
    let unready = |service: &mut Service, says: &str| {
        let reason = wait_for(&format!("a reason that says {says:?}"), SOON, || {
            service.program.assert_running();
            let answer = service.server.get("/readyz");
            (answer.status == 503 && answer.body.contains(says)).then(|| answer.json()["reasons"].clone())
        });
        assert!(reason.as_array().is_some_and(|reasons| !reasons.is_empty()), "{reason}");
        assert_eq!(service.metric("tidelog_ready"), Some(0.0));
    };
    // The archive's disk is gone, or another one is mounted there.
    let (manifest, away) =
        (service.site.home().path().join("archive/manifest"), service.site.home().path().join("away"));
    fs::rename(&manifest, &away).expect("the manifest is taken away");
    unready(&mut service, "has lost manifest/kafka/main/");
    fs::rename(&away, &manifest).expect("the manifest is brought back");
    service.wait_ready();

    kafka.stop(1);
    unready(&mut service, "kafka: ");
    assert_eq!(service.server.get("/healthz").status, 200, "killing it would not help");
    kafka.restart(1);
    service.wait_ready();
    service.program.terminate(STOP);
}

#[test]
fn what_keeps_the_listener_from_its_work_is_told_at_the_start() {
    let kafka = shared();
    let (site, server) = site_with_listener(kafka, &Settings { topics: &["none"], ..Settings::default() }, "");
    let _taken = std::net::TcpListener::bind(&server.address).expect("the port is free");
    let refused = site.tidelog(&["run"]).expect(1);
    assert!(refused.stderr.contains(&format!("cannot listen on {}", server.address)), "{}", refused.stderr);
    assert!(
        refused.stderr.contains("Address already in use") && refused.stderr.contains("http.listen"),
        "{}",
        refused.stderr
    );

    let token = site.home().path().join("token");
    fs::set_permissions(&token, fs::Permissions::from_mode(0o644)).expect("the token's rights");
    for command in [&["run"][..], &["check"], &["check", "--connect"]] {
        let refused = site.tidelog(command).expect(2);
        let said = format!("{}{}", refused.stdout, refused.stderr);
        assert!(said.contains("is open to every user of this machine (mode 0644)"), "{said}");
        assert!(said.contains("chmod o-rwx") && !said.contains(TOKEN), "{said}");
    }
    fs::set_permissions(&token, fs::Permissions::from_mode(0o440)).expect("the token's rights");
    site.tidelog(&["check"]).expect(0);
    // Others may read the archive without the right to read the token.
    fs::remove_file(&token).expect("the token is removed");
    site.tidelog(&["ls"]).expect(0);
    site.tidelog(&["check"]).expect(2);
}

#[test]
fn without_a_token_nothing_can_be_changed() {
    let (kafka, topic) = (shared(), unique("http-closed"));
    kafka.create_topic(&topic, 1, &[]);
    let (site, server) = site_with_listener(kafka, &Settings { topics: &[&topic], ..Settings::default() }, "");
    let token = site.home().path().join("token").display().to_string();
    site.reconfigure(&format!("admin_token_file = {token:?}\n"), "");
    let mut program = site.start();
    wait_until("the listener", SOON, || {
        program.assert_running();
        server.is_up()
    });
    for headers in [&[][..], &[("Authorization", "Bearer correct-horse-battery-staple")]] {
        let answer = server.request("PUT", "/connectors/kafka/pause", headers);
        assert_eq!(answer.status, 403);
        assert!(answer.body.contains("http.admin_token_file is not set"), "{answer:?}");
    }
    program.terminate(STOP);
}

// ---- Prometheus

/// The names of CONTRACT for what the Kafka pipeline does, and those that every process has.
const NAMES: &[&str] = &[
    "tidelog_archived_records_total",
    "tidelog_archived_bytes_total",
    "tidelog_stored_bytes_total",
    "tidelog_segments_sealed_total",
    "tidelog_checkpoint_position",
    "tidelog_lag_records",
    "tidelog_lag_seconds",
    "tidelog_complete_through_timestamp_seconds",
    "tidelog_gaps_total",
    "tidelog_fence_conflicts_total",
    "tidelog_store_request_seconds_bucket",
    "tidelog_store_errors_total",
    "tidelog_memory_used_bytes",
    "tidelog_memory_budget_bytes",
    "tidelog_rebalances_total",
    "tidelog_build_info",
    "tidelog_paused",
    "tidelog_ready",
    "tidelog_assigned_partitions",
    "tidelog_segments_waiting",
    "tidelog_last_checkpoint_timestamp_seconds",
    "process_cpu_seconds_total",
    "process_resident_memory_bytes",
    "process_virtual_memory_bytes",
    "process_open_fds",
    "process_max_fds",
    "process_start_time_seconds",
];

/// A Prometheus that scrapes `target` every second.
pub(crate) fn start_prometheus(directory: &Path, target: &str) -> (Process, Server) {
    let config = format!(
        "global: {{ scrape_interval: 1s }}\n\
         scrape_configs: [{{ job_name: tidelog, static_configs: [{{ targets: [{target:?}] }}] }}]\n"
    );
    fs::write(directory.join("prometheus.yml"), config).expect("its configuration");
    let server = Server::new(format!("127.0.0.1:{}", free_port()));
    let mut command = Command::new(parts().prometheus.join("usr/bin/prometheus"));
    command
        .arg(format!("--config.file={}", directory.join("prometheus.yml").display()))
        .arg(format!("--storage.tsdb.path={}", directory.join("prometheus").display()))
        .arg(format!("--web.listen-address={}", server.address));
    let mut process = Process::start(command, &directory.join("prometheus.log"));
    wait_until("Prometheus to be ready", SOON, || {
        assert!(process.ended().is_none(), "Prometheus has ended:\n{}", process.output());
        server.is_up() && server.get("/-/ready").status == 200
    });
    (process, server)
}

/// The result of a query, as Prometheus's HTTP API gives it.
pub(crate) fn query(prometheus: &Server, text: &str) -> Vec<Value> {
    let query: String = url::form_urlencoded::byte_serialize(text.as_bytes()).collect();
    let answer = prometheus.json(&format!("/api/v1/query?query={query}"));
    answer["data"]["result"].as_array().expect("a result").clone()
}

/// promtool has nothing to say about the metrics in `file`.
fn assert_lints(file: &Path) {
    let mut promtool = Command::new(parts().prometheus.join("usr/bin/promtool"));
    promtool.args(["check", "metrics"]).stdin(fs::File::open(file).expect("the metrics"));
    let checked = promtool.output().expect("promtool can be started");
    let said = format!("{}{}", String::from_utf8_lossy(&checked.stdout), String::from_utf8_lossy(&checked.stderr));
    assert!(checked.status.success() && said.trim().is_empty(), "promtool: {said}");
}

#[test]
fn prometheus_scrapes_every_metric_and_promtool_finds_no_fault() {
    let (kafka, a, b) = (shared(), unique("http-prom-a"), unique("http-prom-b"));
    kafka.create_topic(&a, 2, &[]);
    kafka.create_topic(&b, 2, &[]);
    produce(kafka, &a, 2, 1000);
    let settings = Settings { topics: &[&a, &b], ..Settings::default() };
    let mut service = Service::start(kafka, &settings, "max_topic_labels = 1");
    service.site.wait_archived(kafka, &[&a], &mut [&mut service.program]);
    let (mut process, prometheus) = start_prometheus(service.site.home().path(), &service.server.address);
    for name in NAMES {
        wait_until(&format!("{name} in Prometheus"), SOON, || {
            service.program.assert_running();
            assert!(process.ended().is_none(), "Prometheus has ended:\n{}", process.output());
            !query(&prometheus, name).is_empty()
        });
    }
    assert_eq!(query(&prometheus, "up == 1").len(), 1);
    // Of two topics one has labels of its own.
    let topics = query(&prometheus, "count by (topic) (tidelog_lag_records)");
    let topics: BTreeSet<&str> = topics.iter().filter_map(|series| series["metric"]["topic"].as_str()).collect();
    assert!(topics.len() == 2 && topics.contains("(other)"), "{topics:?}");
    wait_until("all records to be counted", SOON, || {
        let sum = query(&prometheus, "sum(tidelog_archived_records_total)");
        sum.first().is_some_and(|sum| sum["value"][1] == "1000")
    });

    let metrics = service.server.get("/metrics");
    assert_eq!(metrics.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    assert_lints(&service.site.home().write("metrics", &metrics.body));
    let described: BTreeSet<&str> =
        metrics.body.lines().filter_map(|line| line.strip_prefix("# HELP ")?.split(' ').next()).collect();
    let typed: BTreeSet<&str> =
        metrics.body.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    assert_eq!(described, typed);
    service.program.terminate(STOP);
}

#[test]
fn a_replay_shows_how_far_it_is() {
    let (kafka, topic, target) = (shared(), unique("http-replay"), unique("http-replay-to"));
    kafka.create_topic(&topic, 1, &[]);
    produce(kafka, &topic, 1, 5000);
    let (site, _) = site_with_listener(kafka, &Settings { topics: &[&topic], ..Settings::default() }, "");
    site.archive(kafka, &[&topic]);
    let server = Server::new(format!("127.0.0.1:{}", free_port()));
    let rename = format!("^.*$={target}");
    let mut program = site.home().start(&[
        "-c",
        "tidelog.toml",
        "replay",
        "--from",
        "2000-01-01T00:00:00Z",
        "--topics",
        &topic,
        "--rename",
        &rename,
        "--rate",
        "500/s",
        "--id",
        "r-http",
        "--metrics",
        &server.address,
    ]);
    let sent = || {
        let text = server.get("/metrics").body;
        text.lines()
            .find_map(|line| line.strip_prefix("tidelog_replay_records_total{replay=\"r-http\"} ")?.parse::<u64>().ok())
    };
    wait_until("records to be counted", SOON, || {
        program.assert_running();
        server.is_up() && sent() > Some(0)
    });
    assert_lints(&site.home().write("metrics", &server.get("/metrics").body));
    program.kill();
}

// ---- Postgres

#[test]
fn postgres_is_shown_and_controlled() {
    let settings = [("autovacuum", "off"), ("max_slot_wal_keep_size", "16MB"), ("bgwriter_delay", "10s")];
    let postgres = Postgres::start(PostgresOptions { config: &settings, ..PostgresOptions::default() });
    postgres.psql("create table t (n int); select pg_create_physical_replication_slot('idle', true)");
    // The server trusts everybody, so that this password is not needed; it must not be seen all the same.
    let url = postgres.url("postgres").replace("postgres@", "postgres:hunter2-hunter2@");
    let server = Server::new(format!("127.0.0.1:{}", free_port()));
    let home = Home::new();
    let path = home.path().display();
    let token = home.write("token", TOKEN);
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).expect("the token's rights");
    home.write(
        "tidelog.toml",
        &format!(
            "[archive]\nurl = \"file://{path}/archive\"\nspool_dir = \"{path}/spool\"\n\
             [postgres]\nurl = \"{url}\"\nmax_age = \"500ms\"\n[postgres.base_backup]\nevery = \"1h\"\n\
             [http]\nlisten = {:?}\nadmin_token_file = \"{path}/token\"\n",
            server.address
        ),
    );
    let mut command = home.command(&["-c", "tidelog.toml", "run"]);
    command.env("TIDELOG_LOG", "debug,tidelog=trace");
    let mut program = Program::start(command, &home.path().join("output"));
    let metric = |series: &str| {
        let text = server.get("/metrics").body;
        text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse::<f64>().ok())
    };
    let change = |method: &str, path: &str| {
        server.request(method, path, &[("Authorization", &format!("Bearer {TOKEN}"))]).status
    };
    let wait_state = |state: &str| {
        wait_until(&format!("postgres to be {state}"), SOON, || {
            server.json("/connectors/postgres/status")["connector"]["state"] == state
        });
    };
    let durable = || server.json("/api/status")["postgres"]["durable_lsn"].clone();
    wait_until("the archiver to be ready", SOON, || {
        program.assert_running();
        server.is_up() && server.get("/readyz").status == 200
    });
    assert_eq!(server.json("/connectors"), json!(["postgres"]));
    wait_state("RUNNING");

    // A base backup makes moments recoverable. Its checkpoint is over before a slot is left behind: nothing is removed until the next.
    wait_until("a base backup", SOON, || metric("tidelog_base_backup_last_success_timestamp_seconds").is_some());
    for _ in 0..3 {
        postgres.psql("insert into t select generate_series(1, 1000); select pg_switch_wal()");
    }
    let state = postgres.psql("select wal_status from pg_replication_slots where slot_name = 'idle'");
    assert_eq!(state, "unreserved");
    wait_until("the slot to be named", SOON, || {
        let notes = server.json("/readyz")["notes"].to_string();
        notes.contains("the replication slot idle can be lost within an hour")
    });
    // A slot that nobody reads is lost by and by.
    for _ in 0..4 {
        postgres.psql("insert into t select generate_series(1, 1000); select pg_switch_wal(); checkpoint");
    }
    for series in [
        "tidelog_wal_received_lsn_bytes",
        "tidelog_wal_durable_lsn_bytes",
        "tidelog_wal_lag_bytes",
        "tidelog_wal_lag_seconds",
        "tidelog_slot_retained_bytes{slot=\"tidelog\"}",
        "tidelog_slot_safe_bytes{slot=\"tidelog\"}",
        "tidelog_base_backup_last_success_timestamp_seconds",
        "tidelog_recoverable_from_timestamp_seconds",
        "tidelog_recoverable_to_timestamp_seconds",
        "tidelog_gaps_total{kind=\"postgres\",reason=\"server_removed_wal\"}",
        "tidelog_segments_sealed_total{kind=\"postgres\",reason=\"age\"}",
    ] {
        wait_until(series, SOON, || {
            program.assert_running();
            metric(series).is_some()
        });
    }
    wait_until("a slot to be lost", SOON, || metric("tidelog_slot_lost{slot=\"idle\"}") == Some(1.0));
    assert_eq!(metric("tidelog_slot_lost{slot=\"tidelog\"}"), Some(0.0));
    assert!(metric("tidelog_archived_bytes_total{kind=\"postgres\"}").is_some_and(|bytes| bytes > 0.0));
    let notes = server.json("/readyz")["notes"].to_string();
    assert!(notes.contains("the replication slot idle is lost"), "{notes}");
    assert_lints(&home.write("metrics", &server.get("/metrics").body));

    // Paused it receives nothing, and goes on where it stood.
    assert_eq!(server.request("PUT", "/connectors/postgres/pause", &[]).status, 401);
    assert_eq!(change("PUT", "/connectors/postgres/pause"), 202);
    wait_state("PAUSED");
    wait_until("the connection to be closed", SOON, || {
        postgres.psql("select count(*) from pg_stat_replication") == "0"
    });
    assert_eq!(metric("tidelog_paused{connector=\"postgres\"}"), Some(1.0));
    let before = durable();
    postgres.psql("insert into t select generate_series(1, 1000)");
    assert!(server.json("/readyz")["notes"].to_string().contains("postgres is paused since"));
    assert_eq!(durable(), before);
    assert_eq!(change("PUT", "/connectors/postgres/resume"), 202);
    wait_state("RUNNING");
    let end = postgres.psql("select pg_current_wal_flush_lsn()");
    let lsn = |text: &str| text.parse::<tidelog::stream::Lsn>().expect("an LSN");
    wait_until("what was written meanwhile", SOON, || durable().as_str().is_some_and(|at| lsn(at) >= lsn(&end)));
    let offsets = server.json("/connectors/postgres/offsets");
    assert!(offsets["offsets"][0]["offset"]["lsn"].is_string(), "{offsets}");
    assert_eq!(change("POST", "/connectors/postgres/restart"), 204);
    wait_state("RUNNING");

    // A pause while the store takes nothing: what is not archived waits in the spool.
    let (segments, away) = (home.path().join("archive/segments"), home.path().join("away"));
    fs::rename(&segments, &away).expect("the segments are taken away");
    fs::write(&segments, "").expect("a file can be written");
    postgres.psql("insert into t select generate_series(1, 1000)");
    wait_until("an upload to fail", SOON, || program.output().contains("a segment of WAL cannot be uploaded"));
    assert_eq!(change("PUT", "/connectors/postgres/pause"), 202);
    wait_until("the pause to give up", SOON, || program.output().contains("stopped before all WAL was archived"));
    wait_state("PAUSED");
    assert_eq!(change("PUT", "/connectors/postgres/resume"), 202);
    wait_until("the connection to be open", SOON, || {
        program.assert_running();
        postgres.psql("select count(*) from pg_stat_replication") == "1"
    });
    fs::remove_file(&segments).expect("the file is removed");
    fs::rename(&away, &segments).expect("the segments are brought back");
    let end = postgres.psql("select pg_current_wal_flush_lsn()");
    wait_until("what had waited", SOON, || durable().as_str().is_some_and(|at| lsn(at) >= lsn(&end)));
    wait_state("RUNNING");

    let mut said = program.output();
    for path in
        ["/api/status", "/connectors?expand=info&expand=status", "/connectors/postgres/config", "/readyz", "/metrics"]
    {
        said += &server.get(path).body;
    }
    assert!(said.contains("\"postgres.url\":\"********\""), "the key is shown, its value is not");
    assert_eq!(said.lines().find(|line| line.contains("hunter2")), None, "a secret was shown");
    program.terminate(STOP);
    let log = fs::read_to_string(home.path().join("output")).expect("the log");
    assert!(
        log.contains(r#""message":"archived""#) && log.contains(r#""connector":"postgres""#),
        "the last summary: {log}"
    );
}

// ---- secrets

#[test]
fn no_secret_is_ever_shown() {
    let (kafka, topic) = (shared(), unique("http-secret"));
    kafka.create_topic(&topic, 1, &[]);
    produce(kafka, &topic, 1, 10);
    // None of these is needed by a broker without TLS and SASL; librdkafka takes them all the same.
    let secret = "hunter2-hunter2-hunter2";
    let properties = [
        ("sasl.username", secret),
        ("sasl.password", secret),
        ("ssl.key.password", secret),
        ("ssl.keystore.password", secret),
        ("debug", "all"),
    ];
    let settings = Settings { topics: &[&topic], properties: &properties, ..Settings::default() };
    let (site, server) = site_with_listener(kafka, &settings, "");
    // An object store that is not there: its client talks of what it tries.
    let s3 = site.home().write(
        "s3.toml",
        &fs::read_to_string(site.home().path().join("tidelog.toml")).expect("the configuration").replace(
            &format!("url = \"file://{}/archive\"", site.home().path().display()),
            "url = \"s3://bucket/prefix\"\noptions = { aws_endpoint = \"http://127.0.0.1:9\", aws_allow_http = \"true\", \
             aws_region = \"r\", aws_access_key_id = \"hunter2-hunter2-hunter2\", \
             aws_secret_access_key = \"hunter2-hunter2-hunter2\", aws_session_token = \"hunter2-hunter2-hunter2\" }",
        ),
    );
    let token = site.home().path().join("token");
    fs::write(&token, secret).expect("the token");

    let mut said = String::new();
    let mut checked = site.home().command(&["check", "--connect", "-c", &s3.display().to_string()]);
    checked.env("TIDELOG_LOG", "debug,tidelog=trace,librdkafka=debug");
    let checked = crate::rig::program::run(checked).expect(1);
    said += &format!("{}{}", checked.stdout, checked.stderr);

    let mut command = site.home().command(&["-c", "tidelog.toml", "run"]);
    command.env("TIDELOG_LOG", "debug,tidelog=trace,librdkafka=debug");
    let mut program = Program::start(command, &site.home().path().join("output"));
    site.wait_archived(kafka, &[&topic], &mut [&mut program]);
    wait_until("the archiver to be ready", SOON, || server.get("/readyz").status == 200);
    let wrong = [("Authorization", "Bearer hunter2-hunter2-hunter2x")];
    assert_eq!(server.request("PUT", "/connectors/kafka/pause", &wrong).status, 403);
    let right = [("Authorization", "Bearer hunter2-hunter2-hunter2")];
    assert_eq!(server.request("PUT", "/connectors/kafka/pause", &right).status, 202);
    for path in [
        "/",
        "/metrics",
        "/healthz",
        "/readyz",
        "/api/status",
        "/connectors?expand=info&expand=status",
        "/connectors/kafka",
        "/connectors/kafka/config",
        "/connectors/kafka/tasks",
        "/connectors/kafka/offsets",
    ] {
        said += &server.get(path).body;
    }
    said += &server.get(&format!("/api/streams/{topic}")).body;
    said += &program.output();
    program.terminate(STOP);
    assert!(said.contains("\"kafka.properties.sasl.password\":\"********\""), "the key is shown, its value is not");
    assert!(said.contains("segment sealed") && said.len() > 10_000, "the log was at its most talkative");
    for form in [secret.to_owned(), STANDARD.encode(secret), "hunter2".to_owned()] {
        let line = said.lines().find(|line| line.contains(&form));
        assert_eq!(line, None, "a secret was shown");
    }
    // Mistakes in a configuration are told without its secrets.
    for (from, to) in
        [("[archive]\n", "[archive]\nhunter2 = hunter2\n"), ("[kafka]\n", "[kafka]\n\"sasl.password\" = hunter2\n")]
    {
        site.reconfigure(from, to);
        let refused = site.tidelog(&["check"]).expect(2);
        assert!(
            !refused.stderr.contains("hunter2") && refused.stderr.contains("is not TOML: line "),
            "{}",
            refused.stderr
        );
        site.reconfigure(to, from);
    }
}
