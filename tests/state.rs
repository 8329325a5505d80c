//! The state of Kafka in the archive: topics with their settings, groups with their positions, access control lists, as of any
//! moment; what is refused, and what fails.

use std::time::Duration;

use futures::executor::block_on;
use rdkafka::admin::{AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::{Message as _, Offset, TopicPartitionList};
use serde_json::{Value, json};
use tidelog::tasks::Task;

use crate::connect_check::{Guarded, LOGIN};
use crate::http::{SOON, Service, site_at};
use crate::loops::is_told;
use crate::rig::kafka::{Kafka, KafkaOptions, shared};
use crate::rig::topics::{Codec, Message, PATIENCE};
use crate::rig::{unique, wait_for, wait_until};
use crate::site::{STOP, Settings, Site};

const OFTEN: &str = "[state]\nevery = \"1s\"\n";

pub(crate) fn now() -> String {
    tidelog::time::now().to_rfc3339_opts(chrono::SecondsFormat::Millis, true)
}

/// The state of a kind as of a time.
fn state(site: &Site, kind: &str, at: &str) -> Value {
    site.tidelog(&["cat", "--state", kind, "--at", at]).expect(0).json()["state"].clone()
}

/// Waits until the newest version of a kind is as wanted, and gives its state.
pub(crate) fn wait_state(service: &mut Service, kind: &str, what: &str, is: impl Fn(&Value) -> bool) -> Value {
    wait_for(what, SOON, || {
        service.program.assert_running();
        let output = service.site.tidelog(&["cat", "--state", kind]);
        let state = (output.status == Some(0)).then(|| output.json()["state"].clone())?;
        is(&state).then_some(state)
    })
}

/// When a kind was last told by the brokers.
pub(crate) fn polled(service: &Service, kind: &str) -> String {
    service.server.json("/api/status")["state"]["kinds"][kind]["polled"].as_str().unwrap_or_default().to_owned()
}

/// Waits until `polls` polls have begun and ended from now on.
pub(crate) fn wait_polled(service: &mut Service, kind: &str, polls: usize) {
    // The first that ends may have begun before.
    for _ in 0..=polls {
        let before = polled(service, kind);
        wait_until("the next poll", SOON, || {
            service.program.assert_running();
            polled(service, kind) > before
        });
    }
}

fn alter(kafka: &Kafka, topic: &str, settings: &[(&str, &str)]) {
    let mut config = AlterConfig::new(ResourceSpecifier::Topic(topic));
    for (name, value) in settings {
        config = config.set(name, value);
    }
    let altered = block_on(kafka.admin().alter_configs([&config], &AdminOptions::new())).expect("the cluster answers");
    assert!(altered.iter().all(Result::is_ok), "{altered:?}");
}

/// A member of a group that reads of each partition of a topic and commits, as `enable.auto.commit` does: with the epochs of the
/// leaders. It stays in the group. Gives its positions, too.
fn read_of_each(kafka: &Kafka, group: &str, protocol: &str, topic: &str) -> (BaseConsumer, Value) {
    let mut config = kafka.config();
    config.set("group.id", group).set("auto.offset.reset", "earliest").set("enable.auto.commit", "false");
    let consumer: BaseConsumer = config.set("group.protocol", protocol).create().expect("a consumer can be made");
    consumer.subscribe(&[topic]).expect("it subscribes");
    let mut next = serde_json::Map::new();
    wait_until("a record of each of three partitions", PATIENCE, || {
        if let Some(message) = consumer.poll(Duration::from_millis(100)) {
            let message = message.expect("a record");
            next.insert(message.partition().to_string(), json!({ "offset": message.offset() + 1, "leader_epoch": 0 }));
        }
        next.len() == 3
    });
    consumer.commit_consumer_state(CommitMode::Sync).expect("committed");
    (consumer, next.into())
}

pub(crate) fn commit(kafka: &Kafka, group: &str, topic: &str, offset: i64, metadata: &str) {
    let consumer: BaseConsumer = kafka.config().set("group.id", group).create().expect("a consumer can be made");
    let mut list = TopicPartitionList::new();
    let mut element = list.add_partition(topic, 0);
    element.set_offset(Offset::Offset(offset)).expect("an offset");
    element.set_metadata(metadata);
    // A group that nobody has used yet has no coordinator at first.
    wait_until("the commit", PATIENCE, || consumer.commit(&list, CommitMode::Sync).is_ok());
}

fn fill(kafka: &Kafka, topic: &str, partitions: i32) {
    let messages: Vec<Message> = (0..30).map(|n| Message::new(n % partitions, "key", &format!("record {n}"))).collect();
    kafka.produce(topic, Codec::None, &messages);
}

#[test]
fn topics_and_groups_are_told_as_they_were_at_any_moment() {
    let (kafka, topic) = (shared(), unique("kept"));
    kafka.create_topic(&topic, 3, &[("retention.ms", "86400000"), ("cleanup.policy", "delete")]);
    fill(kafka, &topic, 3);
    let [classic, new, left, own] = ["classic", "new", "left-out", "own"].map(|name| format!("{topic}-{name}"));
    let more =
        format!("{OFTEN}groups = [{:?}]\nexclude_groups = [{left:?}]\n", format!("^{}-", topic.replace('.', "[.]")));
    let (site, server) = site_at(&kafka.bootstrap(), &Settings { topics: &[&topic], ..Settings::default() }, &more);
    site.reconfigure(&site.group, &own);
    let mut service = Service { program: site.start(), site, server };
    let topics = wait_state(&mut service, "topics", "the topic", |state| state[&topic]["settings"].is_object());
    let described = &topics[&topic];
    assert_eq!(described["settings"], json!({ "cleanup.policy": "delete", "retention.ms": "86400000" }));
    assert_eq!((&described["partitions"], &described["replication_factor"]), (&json!(3), &json!(1)));
    assert_eq!(described["cluster_settings"]["min.insync.replicas"], "1", "{described}");
    let id = described["id"].as_str().expect("an id").to_owned();
    let before = now();

    kafka.grow_topic(&topic, 6);
    alter(kafka, &topic, &[("retention.ms", "1000000"), ("max.message.bytes", "12345")]);
    let (first, of_first) = read_of_each(kafka, &classic, "classic", &topic);
    let (second, of_second) = read_of_each(kafka, &new, "consumer", &topic);
    commit(kafka, &left, &topic, 1, "");
    let changed =
        |state: &Value| state[&topic]["settings"]["max.message.bytes"] == "12345" && state[&topic]["partitions"] == 6;
    wait_state(&mut service, "topics", "the change", changed);
    let groups = wait_state(&mut service, "groups", "both groups", |state| {
        [&classic, &new]
            .iter()
            .all(|group| state[group]["positions"][&topic].as_object().is_some_and(|at| at.len() == 3))
    });
    for (group, kind, positions) in [(&classic, "Classic", &of_first), (&new, "Consumer", &of_second)] {
        assert_eq!(
            groups[group],
            json!({ "state": "Stable", "type": kind, "positions": { &topic: positions } }),
            "{group}"
        );
    }
    assert_eq!(
        groups.as_object().expect("groups").keys().collect::<Vec<_>>(),
        [&classic, &new],
        "neither left out nor our own"
    );
    drop((first, second));
    let after = now();
    commit(kafka, &classic, &topic, 7, "by hand");
    let by_hand = json!({ "offset": 7, "metadata": "by hand" });
    wait_state(&mut service, "groups", "what was set by hand", |state| {
        state[&classic]["positions"][&topic]["0"] == by_hand && state[&classic]["state"] == "Empty"
    });

    // As of each moment it is what it was.
    assert_eq!(state(&service.site, "topics", &before)[&topic], *described);
    assert_eq!(state(&service.site, "topics", &after)[&topic]["id"], id);
    assert_eq!(state(&service.site, "groups", &after)[&classic]["positions"][&topic], of_first);
    let diff = ["diff", "--state", "topics", "--from", &before, "--to", &after, "--json"];
    let diff = service.site.tidelog(&diff).expect(0).json();
    let ours = diff["changed"].as_array().expect("changes").iter().filter(|change| change["path"][0] == topic);
    let expected = json!([
        { "path": [topic, "partitions"], "from": 3, "to": 6 },
        { "path": [topic, "settings", "cleanup.policy"], "from": "delete" },
        { "path": [topic, "settings", "max.message.bytes"], "to": "12345" },
        { "path": [topic, "settings", "retention.ms"], "from": "86400000", "to": "1000000" },
    ]);
    assert_eq!(ours.cloned().collect::<Value>(), expected);
    let early = service.site.tidelog(&["cat", "--state", "topics", "--at", "2001-01-01T00:00:00Z"]).expect(1);
    assert!(early.stderr.contains("what is kept begins at"), "{}", early.stderr);

    // What does not change is one version, however often it is asked for; and everything tells of it.
    assert_eq!(state(&service.site, "acls", "now"), json!({ "authorizer": false, "acls": [] }));
    wait_polled(&mut service, "acls", 2);
    let status = service.server.json("/api/status")["state"].clone();
    assert_eq!((&status["kinds"]["acls"]["versions"], &status["refused"]), (&json!(1), &json!([])), "{status}");
    assert_eq!(service.metric("tidelog_state_versions_total{kind=\"acls\"}"), Some(1.0));
    assert!(service.metric("tidelog_state_versions_total{kind=\"topics\"}") >= Some(2.0));
    assert!(service.metric("tidelog_state_polled_timestamp_seconds{kind=\"groups\"}") > Some(1.7e9));
    service.program.terminate(STOP);
    let listed = service.site.tidelog(&["ls", "state", "--json"]).expect(0).json();
    let rows = listed["streams"].as_array().expect("streams");
    assert_eq!(
        rows.iter().map(|row| row["stream"].clone()).collect::<Value>(),
        json!(["state/topics/main", "state/groups/main", "state/acls/main"])
    );
    assert_eq!((&rows[2]["kind"], &rows[2]["records"], &rows[2]["gaps"]), (&json!("state"), &json!(1), &json!([])));
    assert!(rows[2]["age_seconds"].is_u64(), "{listed}");
    assert!(service.site.tidelog(&["ls"]).expect(0).stdout.contains("state/acls/main"));
    service.site.assert_sound();
    damage_is_found(&service.site);
}

/// An object of a version that is changed or gone is found, and is given by nobody.
fn damage_is_found(site: &Site) {
    let folder = site.home().path().join("archive/segments/state/acls/scope=main");
    let object = std::fs::read_dir(folder).expect("the versions").next().expect("one").expect("a file").path();
    let bytes = std::fs::read(&object).expect("its bytes");
    let mut damaged = bytes.clone();
    *damaged.last_mut().expect("a byte") ^= 1;
    std::fs::write(&object, &damaged).expect("written");
    let verified = site.tidelog(&["verify", "--json"]).expect(3).json();
    assert_eq!(
        (&verified["errors"][0]["stream"], &verified["errors"][0]["kind"]),
        (&json!("state/acls/main"), &json!("changed"))
    );
    assert!(site.tidelog(&["cat", "--state", "acls"]).expect(3).stderr.contains("not what was written"));
    std::fs::remove_file(&object).expect("removed");
    assert_eq!(site.tidelog(&["verify", "--json"]).expect(3).json()["errors"][0]["kind"], "missing");
    std::fs::write(&object, &bytes).expect("written");
    let verified = site.tidelog(&["verify", "--json"]).expect(0).json();
    assert_eq!(verified["orphans"], 0, "{verified}");
}

#[test]
fn a_part_that_is_refused_is_named_once_with_its_right_and_the_rest_goes_on() {
    let guarded = Guarded::start();
    let (kafka, topic, group) = (&guarded.kafka, unique("guarded"), unique("theirs"));
    kafka.create_topic(&topic, 1, &[("retention.ms", "1234567")]);
    fill(kafka, &topic, 1);
    commit(kafka, &group, &topic, 3, "");
    let settings = Settings { topics: &[&topic], properties: &LOGIN, ..Settings::default() };
    let (site, server) = site_at(&guarded.address, &settings, OFTEN);
    guarded.grant("Read", &["--topic", &topic, "--group", &site.group]);
    let mut service = Service { program: site.start(), site, server };
    let refused = |service: &Service| service.server.json("/api/status")["state"]["refused"].clone();
    let all = wait_for("what is refused", SOON, || {
        service.program.assert_running();
        let refused = service.server.is_up().then(|| refused(&service))?;
        (refused.as_array().is_some_and(|all| all.len() == 3)).then_some(refused)
    });
    let text = all.to_string();
    for words in [
        "access control lists",
        &format!("the settings of 1 topic ({topic})"),
        "no right of its own to describe",
        "DESCRIBE on the cluster",
        "DESCRIBE_CONFIGS on the topics",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    // The rest is kept, and the process is well.
    let known = wait_state(&mut service, "topics", "the topic", |state| state[&topic].is_object());
    assert_eq!((&known[&topic]["settings"], &known[&topic]["partitions"]), (&Value::Null, &json!(1)));
    service.wait_ready();
    service.site.tidelog(&["cat", "--state", "acls"]).expect(1);
    wait_polled(&mut service, "topics", 2);
    let said = service.program.output();
    assert_eq!(said.matches("access control lists").count(), 1, "{said}");

    guarded.grant("Describe", &["--cluster"]);
    guarded.grant("DescribeConfigs", &["--topic", &topic]);
    wait_state(&mut service, "topics", "its settings", |state| state[&topic]["settings"]["retention.ms"] == "1234567");
    let acls = wait_state(&mut service, "acls", "access control lists", |state| state["authorizer"] == true);
    let acl = json!({
        "resource": "CLUSTER", "name": "kafka-cluster", "pattern": "LITERAL", "principal": "User:archiver", "host": "*",
        "operation": "DESCRIBE", "permission": "ALLOW",
    });
    assert!(acls["acls"].as_array().expect("lists").contains(&acl), "{acls}");
    // A group that is listed and may not be looked into.
    wait_state(&mut service, "groups", "the group", |state| {
        state[&group]["positions"] == Value::Null && state[&group].is_object()
    });
    wait_until("the group to be named", SOON, || {
        refused(&service).to_string().contains(&format!("the positions of 1 group ({group})"))
    });
    guarded.grant("Describe", &["--group", &group]);
    guarded.grant("Describe", &["--topic", &topic]);
    wait_state(&mut service, "groups", "its position", |state| state[&group]["positions"][&topic]["0"]["offset"] == 3);
    wait_until("nothing to be refused", SOON, || refused(&service) == json!([]));
    service.program.terminate(STOP);
    service.site.assert_sound();
}

/// The processes that a process has started.
fn children(id: u32) -> Vec<i32> {
    let tasks = std::fs::read_dir(format!("/proc/{id}/task")).expect("the process runs");
    let of = |task: std::io::Result<std::fs::DirEntry>| {
        std::fs::read_to_string(task.expect("a task").path().join("children")).unwrap_or_default()
    };
    let all: String = tasks.map(of).collect();
    all.split_whitespace().map(|id| id.parse().expect("a process id")).collect()
}

#[test]
fn a_poll_that_fails_is_named_until_it_succeeds_and_archiving_goes_on() {
    let (kafka, topic) = (Kafka::start(KafkaOptions::default()), unique("failing"));
    kafka.create_topic(&topic, 1, &[]);
    commit(&kafka, "theirs", &topic, 0, "");
    let mut service = Service::start(&kafka, &Settings { topics: &[&topic], ..Settings::default() }, OFTEN);
    wait_state(&mut service, "groups", "the group", |state| state["theirs"].is_object());
    let told = |service: &Service| is_told(&service.server, Task::KafkaState, "the state of Kafka is not kept");
    assert!(!told(&service) && Task::KafkaState.name() == "kafka_state");

    // A child that is gone is started again.
    let [child] = children(service.program.id())[..] else { panic!("one child") };
    nix_kill(child);
    wait_polled(&mut service, "groups", 1);
    let [another] = children(service.program.id())[..] else { panic!("one child") };
    assert_ne!(child, another);

    // A broker that dies while it is asked and comes back, again and again: no request of librdkafka's ends the archiver.
    for round in 0..2 {
        kafka.kill(1);
        wait_until("the failure to be told", SOON, || {
            service.program.assert_running();
            told(&service)
        });
        kafka.restart(1);
        commit(&kafka, "theirs", &topic, round + 1, "");
        wait_state(&mut service, "groups", "the state to be kept again", |state| {
            state["theirs"]["positions"][&topic]["0"]["offset"] == round + 1
        });
        wait_until("nothing to fail", SOON, || !told(&service));
    }
    fill(&kafka, &topic, 1);
    service.site.wait_archived(&kafka, &[&topic], &mut [&mut service.program]);
    let [child] = children(service.program.id())[..] else { panic!("one child") };
    service.program.kill();
    wait_until("the child to end with the archiver", SOON, || {
        !std::path::Path::new(&format!("/proc/{child}/exe")).exists()
    });
    service.site.assert_sound();
}

fn nix_kill(id: i32) {
    let status = std::process::Command::new("kill").args(["-9", &id.to_string()]).status().expect("kill runs");
    assert!(status.success());
}

/// The partition of `__consumer_offsets` that a group's coordinator leads: Java's hash of the name, modulo their number (`GroupCoordinatorService.partitionFor`).
fn offsets_partition(group: &str, partitions: i32) -> i32 {
    let hash = group.bytes().fold(0i32, |hash, byte| hash.wrapping_mul(31).wrapping_add(i32::from(byte)));
    (hash & i32::MAX) % partitions
}

/// The broker that leads a partition.
fn leader(kafka: &Kafka, topic: &str, partition: i32) -> usize {
    let metadata = kafka.admin().inner().fetch_metadata(Some(topic), PATIENCE).expect("metadata");
    let leader =
        metadata.topics()[0].partitions().iter().find(|of| of.id() == partition).expect("it is there").leader();
    usize::try_from(leader).expect("it has one")
}

#[test]
fn groups_of_a_broker_that_is_away_are_in_every_version() {
    // One replica of each group's positions: nobody can tell of those of a broker that is away, and the list of groups lacks them
    // without an error.
    let properties = vec![
        ("offsets.topic.replication.factor", "1".to_owned()),
        ("broker.session.timeout.ms", "3000".to_owned()),
        ("broker.heartbeat.interval.ms", "500".to_owned()),
    ];
    let (kafka, topic) =
        (Kafka::start(KafkaOptions { brokers: 3, properties, ..KafkaOptions::default() }), unique("spread"));
    kafka.create_topic(&topic, 1, &[]);
    let groups: Vec<String> = (0..8).map(|n| format!("of-{n}")).collect();
    for group in &groups {
        commit(&kafka, group, &topic, 3, "");
    }
    let mut service = Service::start(&kafka, &Settings { topics: &[&topic], ..Settings::default() }, OFTEN);
    let all = |state: &Value| groups.iter().all(|group| state[group]["positions"][&topic]["0"]["offset"] == 3);
    wait_state(&mut service, "groups", "all groups", all);
    let began = tidelog::time::now();

    let away = leader(&kafka, "__consumer_offsets", offsets_partition(&groups[0], 4));
    kafka.kill(away);
    let told = |service: &Service| is_told(&service.server, Task::KafkaState, "the state of Kafka is not kept");
    wait_until("the others to know", PATIENCE, || {
        let metadata = kafka.admin().inner().fetch_metadata(None, PATIENCE).expect("metadata");
        metadata.brokers().len() == 2
    });
    wait_until("the groups to be missed", PATIENCE, || {
        service.program.assert_running();
        told(&service)
    });
    wait_until("the failure to have a name", PATIENCE, || {
        service.program.output().contains("cannot ask for the positions of groups")
            || service.program.output().contains("its coordinator does not tell of it")
    });
    kafka.restart(away);
    wait_until("nothing to fail", PATIENCE, || !told(&service));
    wait_polled(&mut service, "groups", 2);
    for ms in (began.timestamp_millis()..=tidelog::time::now().timestamp_millis()).step_by(1_000) {
        let moment = chrono::DateTime::from_timestamp_millis(ms).expect("a time").to_rfc3339();
        let found = state(&service.site, "groups", &moment);
        assert!(all(&found), "{moment}: {found}");
    }

    // One that is deleted is gone, whoever knew of it.
    kafka.delete_group(&groups[0]);
    let left = wait_state(&mut service, "groups", "the group to be gone", |state| state[&groups[0]].is_null());
    assert!(groups[1..].iter().all(|group| left[group].is_object()), "{left}");
    service.program.terminate(STOP);
    service.site.assert_sound();
}

#[test]
fn two_replicas_write_the_versions_of_one() {
    let (kafka, topic, group) = (shared(), unique("replicas"), unique("moving"));
    kafka.create_topic(&topic, 1, &[]);
    fill(kafka, &topic, 1);
    let site = Site::new(&kafka.bootstrap(), &Settings { topics: &[&topic], ..Settings::default() });
    site.reconfigure("[kafka]\n", &format!("[state]\nevery = \"2s\"\ngroups = [{group:?}]\n[kafka]\n"));
    let mut programs = [site.start(), site.start()];
    let offset = |site: &Site| {
        let output = site.tidelog(&["cat", "--state", "groups"]);
        (output.status == Some(0))
            .then(|| output.json()["state"][&group]["positions"][&topic]["0"]["offset"].as_i64())?
    };
    let versions = |site: &Site| {
        let listed = site.tidelog(&["ls", "state/groups/main", "--json"]).json();
        listed["streams"][0]["records"].as_u64().unwrap_or(0)
    };
    commit(kafka, &group, &topic, 0, "");
    wait_until("the first position", SOON, || offset(&site) == Some(0));
    let (before, begun) = (versions(&site), std::time::Instant::now());
    let mut last = 0;
    while begun.elapsed() < Duration::from_secs(8) {
        last += 1;
        commit(kafka, &group, &topic, last, "");
    }
    wait_until("the last position", SOON, || offset(&site) == Some(last));
    let (written, span) = (versions(&site) - before, begun.elapsed());
    // One a time, whichever of the two it was; without the rule it is about twice as many.
    let most = span.as_millis().div_ceil(1_800) as u64 + 1;
    assert!((2..=most).contains(&written), "{written} versions in {span:?}");
    for program in &mut programs {
        program.assert_running();
    }
    for program in programs {
        program.terminate(STOP);
    }
    site.assert_sound();
    // Whoever wrote them, versions never go back.
    let mut seen = -1;
    let files = site.tidelog(&["files", "state/groups/main", "--json"]).expect(0).json();
    assert!(files["files"].as_array().is_some_and(|files| files.len() as u64 >= written), "{files}");
    let listed = site.tidelog(&["ls", "state/groups/main", "--json"]).expect(0).json();
    let at = |name: &str| {
        let time = listed["streams"][0][name].as_str().expect("a time");
        chrono::DateTime::parse_from_rfc3339(time).expect("RFC 3339").timestamp_millis()
    };
    for ms in (at("min_time")..=at("max_time")).step_by(500) {
        let moment = chrono::DateTime::from_timestamp_millis(ms).expect("a time");
        let moment = moment.to_rfc3339_opts(chrono::SecondsFormat::Millis, true);
        let found = state(&site, "groups", &moment)[&group]["positions"][&topic]["0"]["offset"].as_i64().unwrap_or(-1);
        assert!(found >= seen, "{found} after {seen} at {moment}");
        seen = found;
    }
    assert_eq!(offset(&site), Some(last));
}

/// Versions and when the oldest was found, of the topics.
fn kept(site: &Site) -> (u64, String) {
    let said = site.tidelog(&["ls", "state", "--json"]).expect(0).json();
    let rows = said["streams"].as_array().expect("streams").clone();
    let topics = rows.into_iter().find(|row| row["stream"] == "state/topics/main").expect("that of topics");
    (topics["segments"].as_u64().expect("a number"), topics["min_time"].as_str().expect("a time").to_owned())
}

#[test]
fn versions_that_retention_lets_go_are_expired_and_what_is_left_is_told_as_before() {
    assert_eq!(Task::KafkaStateMaintenance.name(), "kafka_state_upkeep");
    let (kafka, topic) = (shared(), unique("given-up"));
    kafka.create_topic(&topic, 1, &[]);
    let mut service = Service::start(kafka, &Settings { topics: &[&topic], ..Settings::default() }, OFTEN);
    let mut began = String::new();
    for ms in ["1000001", "1000002", "1000003"] {
        alter(kafka, &topic, &[("retention.ms", ms)]);
        wait_state(&mut service, "topics", ms, |state| state[&topic]["settings"]["retention.ms"] == ms);
        began = if began.is_empty() { now() } else { began };
    }
    let last = now();
    service.program.terminate(STOP);
    let (site, server) = (service.site, service.server);
    let (versions, oldest) = kept(&site);
    assert!(versions >= 3 && oldest < began, "{versions} {oldest} {began}");
    let as_of_last = state(&site, "topics", &last)[&topic].clone();
    let path = site.home().path().join("tidelog.toml");
    let config = std::fs::read_to_string(&path).expect("the configuration");
    std::fs::write(&path, format!("{config}[retention]\nstate = \"1s\"\n")).expect("written");
    wait_until("the versions to be old", SOON, || {
        site.tidelog(&["expire", "--dry-run", "--json"]).expect(0).json()["state"]
            .as_array()
            .expect("documents")
            .iter()
            .any(|row| row["stream"] == "state/topics/main" && row["kept_versions"] == 1)
    });
    assert_eq!(kept(&site), (versions, oldest.clone()), "a dry run changes nothing");

    // The service does it by itself, and says so while it cannot.
    let holds = site.home().path().join("archive/holds");
    std::fs::write(&holds, "").expect("a file in its place");
    let program = site.start();
    let mut service = Service { site, server, program };
    wait_until("the maintenance to be told", PATIENCE, || {
        service.program.assert_running();
        service.server.is_up() && is_told(&service.server, Task::KafkaStateMaintenance, "is put off")
    });
    std::fs::remove_file(&holds).expect("removed");
    wait_until("the old versions to be expired", PATIENCE, || {
        service.program.assert_running();
        kept(&service.site).1 > oldest
    });
    let (_, from) = kept(&service.site);
    let said = service.site.tidelog(&["cat", "--state", "topics", "--at", &oldest]).expect(1);
    assert!(said.stderr.contains(&format!("what is kept begins at {from}")), "{}", said.stderr);
    assert!(from > oldest && from <= now());
    if from <= last {
        assert_eq!(state(&service.site, "topics", &last)[&topic], as_of_last);
    }
    // What comes is numbered on.
    alter(kafka, &topic, &[("retention.ms", "1000004")]);
    wait_state(&mut service, "topics", "the next", |state| state[&topic]["settings"]["retention.ms"] == "1000004");
    service.program.terminate(STOP);
    service.site.assert_sound();
}
