//! What keeps records from the archive although every server answers: rights, limits, and other members of the group. What
//! `check --connect` names beforehand, the running process names, too, and goes on by itself once it is over.

use std::process::Command;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use serde_json::Value;

use crate::http::{SOON, Service, site_with_listener};
use crate::rig::kafka::{Kafka, KafkaOptions, free_port, java, shared};
use crate::rig::program;
use crate::rig::topics::{Codec, Message, PATIENCE};
use crate::rig::{unique, wait_for, wait_until};
use crate::site::{STOP, Settings, Site};

fn produce(kafka: &Kafka, topic: &str, partitions: i32, records: std::ops::Range<i32>) {
    let messages: Vec<Message> = records.map(|n| Message::new(n % partitions, "key", &format!("record {n}"))).collect();
    kafka.produce(topic, Codec::None, &messages);
}

/// The answers of `check --connect` that are not plainly well, and how it ended.
pub(crate) fn findings(site: &Site) -> (Option<i32>, Vec<Value>) {
    let output = site.tidelog(&["check", "--connect", "--json"]);
    let mut answers = output.json()["checks"].as_array().expect("checks").clone();
    answers.retain(|answer| answer["ok"] == false || answer["warning"] == true);
    (output.status, answers)
}

/// The one finding of a check, which holds all of `words`.
fn assert_found(site: &Site, status: i32, check: &str, words: &[&str]) {
    let (ended, found) = findings(site);
    let text = Value::from(found.clone()).to_string();
    assert_eq!((ended, found.len()), (Some(status), 1), "{text}");
    assert!(found[0]["check"] == check && words.iter().all(|word| text.contains(word)), "{check} {words:?}: {text}");
}

// ---- members

/// A program of somebody else's in a group.
struct Stranger(BaseConsumer);

impl Stranger {
    fn join(kafka: &Kafka, group: &str, topic: &str, properties: &[(&str, &str)]) -> Self {
        let mut config = kafka.config();
        config.set("group.id", group).set("client.id", "billing");
        for (name, value) in properties {
            config.set(*name, *value);
        }
        let consumer: BaseConsumer = config.create().expect("a consumer can be made");
        consumer.subscribe(&[topic]).expect("it subscribes");
        Self(consumer)
    }

    /// Polls, and says how many partitions it has.
    fn partitions(&self) -> usize {
        drop(self.0.poll(Duration::from_millis(100)));
        self.0.assignment().expect("an assignment").count()
    }
}

const MEMBERS: &str = "tidelog_task_failing{task=\"kafka_members\"}";

fn the_process_names(service: &mut Service, stranger: &Stranger, words: &[&str]) {
    let reason = wait_for("a reason that names the stranger", SOON, || {
        service.program.assert_running();
        drop(stranger.0.poll(Duration::from_millis(100)));
        let answer = service.server.get("/readyz");
        let reasons = answer.json()["reasons"].to_string();
        (answer.status == 503 && words.iter().all(|word| reasons.contains(word))).then_some(reasons)
    });
    assert!(reason.contains("archived by nobody"), "{reason}");
    assert_eq!(service.metric(MEMBERS), Some(1.0));
    let failing = service.server.json("/api/status")["failing"].to_string();
    assert!(failing.contains("billing"), "{failing}");
}

/// Another client in the group of a running archiver. `told`: the process names it, too, and not only the check.
fn a_stranger_is_named(properties: &[(&str, &str)], strategy: &[(&str, &str)], told: bool) {
    let (kafka, topic) = (shared(), unique("stranger"));
    kafka.create_topic(&topic, 4, &[]);
    let settings = Settings { topics: &[&topic], properties, ..Settings::default() };
    let mut service = Service::start(kafka, &settings, "");
    let group = service.site.group.clone();
    // Alone in its group there is nothing to find, also while it runs.
    assert_eq!(findings(&service.site), (Some(0), vec![]));
    let stranger = Stranger::join(kafka, &group, &topic, strategy);
    wait_until("the stranger to have half of the partitions", PATIENCE, || stranger.partitions() == 2);
    let words = ["billing", "127.0.0.1", &topic, "kafka.group_id"];
    assert_found(&service.site, 2, "group", &words);
    if told {
        the_process_names(&mut service, &stranger, &words);
    }
    // It leaves, and all is well by itself.
    drop(stranger);
    produce(kafka, &topic, 4, 0..40);
    service.site.wait_archived(kafka, &[&topic], &mut [&mut service.program]);
    service.wait_ready();
    assert_eq!(service.metric(MEMBERS), Some(0.0));
    assert_eq!(findings(&service.site), (Some(0), vec![]));
    service.program.terminate(STOP);
}

#[test]
fn a_stranger_in_the_group_is_named_with_what_it_takes() {
    a_stranger_is_named(&[], &[("partition.assignment.strategy", "cooperative-sticky")], true);
}

#[test]
fn a_stranger_in_a_group_of_the_new_protocol_is_named_with_what_it_takes() {
    let new = [("group.protocol", "consumer")];
    a_stranger_is_named(&new, &new, false);
}

#[test]
fn a_stranger_that_only_has_other_topics_is_a_note_and_another_tidelog_is_none() {
    let (kafka, topic, other) = (shared(), unique("beside"), unique("beside-other"));
    kafka.create_topic(&topic, 2, &[]);
    kafka.create_topic(&other, 2, &[]);
    let site = Site::new(&kafka.bootstrap(), &Settings { topics: &[&topic], ..Settings::default() });
    let stranger = Stranger::join(kafka, &site.group, &other, &[]);
    wait_until("the stranger to have its partitions", PATIENCE, || stranger.partitions() == 2);
    assert_found(&site, 0, "group", &["billing", "not archived"]);
    drop(stranger);
    let ours = Stranger::join(kafka, &site.group, &topic, &[("client.id", "tidelog-2")]);
    wait_until("the other tidelog to have its partitions", PATIENCE, || ours.partitions() == 2);
    assert_eq!(findings(&site), (Some(0), vec![]));
}

/// How long what nobody in the archive does may take to be told.
const UNATTENDED: Duration = Duration::from_secs(300);

/// The group tells of its members only what they call themselves, and both are a tidelog.
#[test]
fn two_archives_in_one_group_name_the_partitions_that_they_do_not_get() {
    let (kafka, topic, one) = (shared(), unique("halves"), unique("halves-one"));
    kafka.create_topic(&topic, 4, &[]);
    kafka.create_topic(&one, 1, &[]);
    let settings = Settings { topics: &[&topic, &one], ..Settings::default() };
    let mut first = Service::start(kafka, &settings, "");
    let (site, server) = site_with_listener(kafka, &settings, "");
    site.reconfigure(&site.group, &first.site.group);
    let mut second = Service { program: site.start(), server, site };
    produce(kafka, &topic, 4, 0..40);
    for service in [&mut first, &mut second] {
        let words = ["archived by nobody", "no process of this archive", "halves", "kafka.group_id"];
        let reason = wait_for("a reason that names partitions", UNATTENDED, || {
            service.program.assert_running();
            let answer = service.server.get("/readyz");
            let reasons = answer.json()["reasons"].to_string();
            (answer.status == 503 && words.iter().all(|word| reasons.contains(word))).then_some(reasons)
        });
        assert!(reason.contains(&format!("{topic} partitions ")), "{reason}");
        assert_eq!(service.metric(MEMBERS), Some(1.0));
    }
    second.program.terminate(STOP);
    first.site.wait_archived(kafka, &[&topic, &one], &mut [&mut first.program]);
    first.wait_ready();
    assert_eq!(first.metric(MEMBERS), Some(0.0));
    first.program.terminate(STOP);
}

/// What a rolling update does: the next process is stopped the moment that one says ready.
#[test]
fn a_process_that_is_stopped_as_soon_as_it_is_ready_leaves_the_group_at_once() {
    let (kafka, topic) = (shared(), unique("rolled"));
    kafka.create_topic(&topic, 6, &[]);
    let settings = Settings { topics: &[&topic], ..Settings::default() };
    let mut first = Service::start(kafka, &settings, "");
    let (site, server) = site_with_listener(kafka, &settings, "");
    site.reconfigure(&site.group, &first.site.group);
    for _ in 0..3 {
        let mut program = site.start();
        wait_until("the second to be ready", PATIENCE, || {
            program.assert_running();
            server.is_up() && server.get("/readyz").status == 200
        });
        let metrics = server.get("/metrics").body;
        let owns = metrics.lines().find_map(|line| line.strip_prefix("tidelog_assigned_partitions "));
        assert!(owns.is_some_and(|owns| owns != "0"), "it is ready and has no partition");
        program.terminate(STOP);
        // The group would keep it for its session of 45 s.
        wait_until("the first to have all", Duration::from_secs(25), || {
            first.program.assert_running();
            first.metric("tidelog_assigned_partitions") == Some(6.0)
        });
    }
    first.program.terminate(STOP);
}

// ---- limits

#[test]
fn limits_that_the_client_cannot_take_are_named_with_both_values_and_the_property() {
    let (kafka, topic, small) = (shared(), unique("limits"), unique("limits-small"));
    kafka.create_topic(&topic, 1, &[("max.message.bytes", "3000000")]);
    kafka.create_topic(&small, 1, &[("max.message.bytes", "1000000")]);
    let properties =
        [("receive.message.max.bytes", "2000000"), ("fetch.max.bytes", "1000000"), ("session.timeout.ms", "45000")];
    let settings = Settings { topics: &[&topic, &small], properties: &properties, ..Settings::default() };
    let site = Site::new(&kafka.bootstrap(), &settings);
    let words = [topic.as_str(), "3000000", "max.message.bytes", "2000000", "receive.message.max.bytes", "3000512"];
    assert_found(&site, 2, "limits", &words);
    site.reconfigure("\"receive.message.max.bytes\" = \"2000000\"", "\"receive.message.max.bytes\" = \"3000512\"");
    assert_eq!(findings(&site), (Some(0), vec![]));
    site.reconfigure("\"session.timeout.ms\" = \"45000\"", "\"session.timeout.ms\" = \"900\"");
    assert_found(&site, 2, "limits", &["session.timeout.ms is 900", "group.min.session.timeout.ms", "1000 to 1800000"]);
}

// ---- rights

/// A broker with an authorizer: what has no ACL is refused to everybody but those who come without a name, as the tests do.
pub(crate) struct Guarded {
    pub(crate) kafka: Kafka,
    pub(crate) address: String,
}

impl Guarded {
    pub(crate) fn start() -> Self {
        let address = format!("127.0.0.1:{}", free_port());
        let login = "org.apache.kafka.common.security.plain.PlainLoginModule required user_archiver=\"a secret\" user_replayer=\"another secret\";";
        let properties = [
            ("listener.security.protocol.map", "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,GUARDED:SASL_PLAINTEXT"),
            ("sasl.enabled.mechanisms", "PLAIN"),
            ("listener.name.guarded.plain.sasl.jaas.config", login),
            ("authorizer.class.name", "org.apache.kafka.metadata.authorizer.StandardAuthorizer"),
            ("super.users", "User:ANONYMOUS"),
        ];
        let kafka = Kafka::start(KafkaOptions {
            properties: properties.map(|(name, value)| (name, value.to_owned())).to_vec(),
            listener: Some(format!("GUARDED://{address}")),
            ..KafkaOptions::default()
        });
        Self { kafka, address }
    }

    /// Kafka's own tool for rights.
    pub(crate) fn acls(&self, args: &[&str]) {
        let mut tool: Command = java();
        tool.args(["org.apache.kafka.tools.AclCommand", "--bootstrap-server", &self.kafka.bootstrap()]);
        tool.args(args);
        program::run(tool).expect(0);
    }

    pub(crate) fn grant(&self, operation: &str, resource: &[&str]) {
        self.acls(&[&["--add", "--allow-principal", "User:archiver", "--operation", operation], resource].concat());
    }

    fn withdraw(&self, operation: &str, resource: &[&str]) {
        let args = ["--remove", "--force", "--allow-principal", "User:archiver", "--operation", operation];
        self.acls(&[&args, resource].concat());
    }
}

pub(crate) const LOGIN: [(&str, &str); 4] = [
    ("security.protocol", "SASL_PLAINTEXT"),
    ("sasl.mechanisms", "PLAIN"),
    ("sasl.username", "archiver"),
    ("sasl.password", "a secret"),
];

#[test]
fn rights_that_are_missing_are_named_by_topic_and_group() {
    let guarded = Guarded::start();
    let [open, dark, shown] = ["open", "dark", "shown"].map(unique);
    for topic in [&open, &dark, &shown] {
        guarded.kafka.create_topic(topic, 1, &[]);
    }
    let settings = Settings { topics: &[&open, &dark, &shown], properties: &LOGIN, ..Settings::default() };
    let site = Site::new(&guarded.address, &settings);
    // Nothing is granted: all three topics and the group are named, and none is called missing.
    let (status, found) = findings(&site);
    let text = Value::from(found.clone()).to_string();
    assert_eq!((status, found.len()), (Some(1), 4), "{text}");
    assert!(found.iter().all(|answer| answer["check"] == "rights"), "{text}");
    for words in
        [open.as_str(), &dark, &shown, &site.group, "grant READ and DESCRIBE on the topic", "grant READ on the group"]
    {
        assert!(text.contains(words), "{words}: {text}");
    }
    guarded.grant("Read", &["--topic", &open, "--topic", &dark, "--group", &site.group]);
    guarded.grant("Describe", &["--topic", &shown]);
    guarded.withdraw("Read", &["--topic", &dark]);
    let (status, found) = findings(&site);
    let text = Value::from(found.clone()).to_string();
    let of = |check: &str, word: &str| {
        found.iter().any(|answer| answer["check"] == check && answer.to_string().contains(word))
    };
    assert_eq!((status, found.len()), (Some(1), 3), "{text}");
    assert!(of("rights", &dark) && of("rights", &shown) && text.contains("READ is not"), "{text}");
    // Whether the batches of the one that may be read fit is not told without a right more: a note, and no failure.
    assert!(of("limits", &open) && text.contains("DESCRIBE_CONFIGS"), "{text}");
    guarded.grant("Read", &["--topic", &dark, "--topic", &shown]);
    guarded.grant("DescribeConfigs", &["--topic", &open, "--topic", &dark, "--topic", &shown]);
    assert_eq!(findings(&site), (Some(0), vec![]));
    // A topic that is not there, beside one that may not be seen.
    site.reconfigure(&format!("{dark:?}"), "\"nowhere\"");
    guarded.grant("Describe", &["--topic", "nowhere"]);
    assert_found(&site, 1, "kafka", &["nowhere", "create what is missing"]);
}

#[test]
fn a_right_that_is_withdrawn_is_named_and_what_came_meanwhile_is_archived_once_it_is_back() {
    let guarded = Guarded::start();
    let (kafka, topics) = (&guarded.kafka, ["kept", "taken", "never"].map(unique));
    let [kept, taken, never] = &topics;
    for topic in &topics {
        kafka.create_topic(topic, 2, &[]);
        produce(kafka, topic, 2, 0..20);
    }
    let regex = format!("^{}$", taken.replace('.', "[.]"));
    let settings = Settings { topics: &[kept, &regex, never], properties: &LOGIN, ..Settings::default() };
    let (site, server) = crate::http::site_at(&guarded.address, &settings, "");
    guarded.grant("Read", &["--topic", kept, "--topic", taken, "--group", &site.group]);
    let mut service = Service { program: site.start(), site, server };
    let unready = |service: &mut Service, topic: &str, words: &[&str]| {
        wait_for(&format!("a reason that names {topic}"), SOON, || {
            service.program.assert_running();
            let answer = service.server.is_up().then(|| service.server.get("/readyz"))?;
            let reasons = answer.json()["reasons"].clone();
            let about = |reason: &&Value| {
                reason
                    .as_str()
                    .is_some_and(|text| text.starts_with(topic) && words.iter().all(|word| text.contains(word)))
            };
            reasons.as_array()?.iter().find(about).filter(|_| answer.status == 503).cloned()
        })
    };
    // One was never granted: the others are archived all the same.
    unready(&mut service, never, &["may not be read", "do: grant READ"]);
    service.site.wait_archived(kafka, &[kept, taken], &mut [&mut service.program]);
    guarded.grant("Read", &["--topic", never]);
    service.site.wait_archived(kafka, &[never], &mut [&mut service.program]);
    service.wait_ready();

    // One is withdrawn, and given back.
    guarded.withdraw("Read", &["--topic", taken]);
    produce(kafka, taken, 2, 20..60);
    produce(kafka, kept, 2, 20..60);
    unready(&mut service, taken, &["may not be read", "do: grant READ"]);
    assert_eq!(service.metric("tidelog_task_failing{task=\"kafka_rights\"}"), Some(1.0));
    service.site.wait_archived(kafka, &[kept], &mut [&mut service.program]);
    guarded.grant("Read", &["--topic", taken]);
    service.site.wait_archived(kafka, &[taken], &mut [&mut service.program]);
    service.wait_ready();
    for topic in &topics {
        service.site.assert_holds(topic, 0, &kafka.consume_all(topic));
    }
    service.program.terminate(STOP);
}
