//! A replay makes topics as they were: settings and partitions as of the end of its range, what could cost a record at the end of
//! the replay or by hand.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::executor::block_on;
use rdkafka::admin::{AdminOptions, AlterConfig, ResourceSpecifier};
use serde_json::{Value, json};
use tidelog::stream::Format;

use crate::archive::Record;
use crate::http::{Service, site_at};
use crate::replay::{Archive, base};
use crate::rig::kafka::{Kafka, java, shared};
use crate::rig::program;
use crate::rig::topics::{Codec, Message, PATIENCE};
use crate::rig::{unique, wait_until};
use crate::site::{STOP, Settings};
use crate::state::{now, wait_state};

type Config = BTreeMap<String, String>;

/// The settings that somebody has set for a topic, as `kafka-configs.sh --describe` tells them.
fn described(kafka: &Kafka, topic: &str) -> Config {
    let mut command = java();
    command.args(["kafka.admin.ConfigCommand", "--bootstrap-server", &kafka.bootstrap()]);
    command.args(["--describe", "--topic", topic]);
    let output = program::run(command).expect(0).stdout;
    let one = |line: &str| {
        let (setting, _) = line.trim().split_once(" sensitive=")?;
        let (name, value) = setting.split_once('=')?;
        Some((name.to_owned(), value.to_owned()))
    };
    output.lines().filter_map(one).collect()
}

fn alter(kafka: &Kafka, topic: &str, settings: &[(&str, &str)]) {
    let config = settings
        .iter()
        .fold(AlterConfig::new(ResourceSpecifier::Topic(topic)), |config, (name, value)| config.set(name, value));
    let altered = block_on(kafka.admin().alter_configs([&config], &AdminOptions::new())).expect("the cluster answers");
    assert!(altered.iter().all(Result::is_ok), "{altered:?}");
}

fn owned(settings: &[(&str, &str)]) -> Config {
    settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

const FIRST: [(&str, &str); 9] = [
    ("retention.ms", "864000000"),
    ("retention.bytes", "1000000000"),
    ("segment.bytes", "2097152"),
    ("segment.ms", "7200000"),
    ("max.message.bytes", "3000000"),
    ("compression.type", "zstd"),
    ("flush.messages", "5000"),
    ("index.interval.bytes", "8192"),
    ("message.timestamp.type", "LogAppendTime"),
];
const SECOND: [(&str, &str); 8] = [
    ("cleanup.policy", "compact,delete"),
    ("delete.retention.ms", "7000000"),
    ("min.cleanable.dirty.ratio", "0.9"),
    ("max.compaction.lag.ms", "900000000"),
    ("min.compaction.lag.ms", "600000"),
    ("retention.ms", "1728000000"),
    ("message.timestamp.after.max.ms", "86400000"),
    ("max.message.bytes", "2000"),
];
const THIRD: [(&str, &str); 7] = [
    ("file.delete.delay.ms", "50000"),
    ("preallocate", "true"),
    ("segment.jitter.ms", "1000"),
    ("segment.index.bytes", "1048576"),
    ("unclean.leader.election.enable", "true"),
    ("min.insync.replicas", "1"),
    ("flush.ms", "60000"),
];

#[test]
fn a_topic_is_made_again_as_it_was_at_three_moments_and_after_it_was_deleted() {
    let (kafka, topic) = (shared(), unique("as-it-was"));
    kafka.create_topic(&topic, 6, &FIRST);
    let settings = Settings { topics: &[&topic], ..Settings::default() };
    let (site, server) = site_at(&kafka.bootstrap(), &settings, "[state]\nevery = \"1s\"\n");
    let mut service = Service { program: site.start(), site, server };
    let mut moments = Vec::new();
    for (partitions, settings) in [(6, &FIRST[..]), (6, &SECOND[..]), (8, &THIRD[..])] {
        if !moments.is_empty() {
            alter(kafka, &topic, settings);
        }
        if kafka.partitions(&topic) != Some(partitions) {
            kafka.grow_topic(&topic, partitions);
        }
        // Five partitions of six have no record.
        let messages: Vec<Message> = (0..10).map(|n| Message::new(2, &format!("k{n}"), "value")).collect();
        kafka.produce(&topic, Codec::None, &messages);
        let wanted = (json!(partitions), json!(owned(settings)));
        wait_state(&mut service, "topics", "the topic as it is", |state| {
            (&state[&topic]["partitions"], &state[&topic]["settings"]) == (&wanted.0, &wanted.1)
        });
        moments.push((now(), partitions, owned(settings)));
        // The next moment begins in another millisecond.
        std::thread::sleep(Duration::from_millis(2));
    }
    service.site.wait_archived(kafka, &[&topic], &mut [&mut service.program]);
    // It differs from what was archived last, and a plan says how.
    alter(kafka, &topic, &[("retention.ms", "86400000"), ("flush.ms", "60000")]);
    let named = |warnings: &Value| {
        let text = warnings.to_string();
        ["retention.ms=86400000 (not set)", "preallocate=false (true archived)"].iter().all(|part| text.contains(part))
    };
    let before = &moments[2].0;
    let planned =
        service.site.tidelog(&["replay", "--to", before, "--topics", &topic, "--dry-run", "--json"]).expect(0);
    assert!(named(&planned.json()["warnings"]), "{}", planned.stdout);
    let last = json!(owned(&[("retention.ms", "86400000"), ("flush.ms", "60000")]));
    wait_state(&mut service, "topics", "what it is last", |state| state[&topic]["settings"] == last);
    kafka.delete_topic(&topic);
    wait_state(&mut service, "topics", "that it is gone", |state| state[&topic].is_null());
    service.program.terminate(STOP);

    let asked = |more: &[&str], to: &str| {
        let rename = format!(".*={to}");
        let args = ["replay", "--topics", &topic, "--rename", &rename, "--json"];
        service.site.tidelog(&[&args, more].concat())
    };
    for (n, (at, partitions, settings)) in moments.iter().enumerate() {
        let target = format!("{topic}.{n}");
        let sent = asked(&["--to", at, "--settings", "archived"], &target).expect(0).json();
        assert_eq!(sent["records"], 10 * (n + 1), "{sent}");
        assert_eq!(sent["settings"][0]["left"], json!({}), "{sent}");
        assert_eq!((kafka.partitions(&target), &described(kafka, &target)), (Some(*partitions), settings), "{at}");
    }
    // The topic is gone by the end of this range: what it was last counts. Without a word it is left to the user.
    let target = format!("{topic}.safe");
    let plan = asked(&["--all", "--dry-run"], &target).expect(0);
    assert!(!plan.json()["warnings"].to_string().contains("archive"), "{}", plan.stdout);
    let sent = asked(&["--all"], &target).expect(0).json();
    let command = sent["settings"][0]["command"].as_str().expect("something is left").to_owned();
    let own = described(kafka, &target);
    assert_eq!((own["retention.ms"].as_str(), own["flush.ms"].as_str()), ("-1", "60000"));
    let words = service.site.home().shell(&format!("set -- {command}; shift; printf '%s\\n' \"$@\""));
    let words = program::run(words).expect(0).stdout;
    let mut typed = java();
    typed.arg("kafka.admin.ConfigCommand").args(words.lines());
    program::run(typed).expect(0);
    assert_eq!(described(kafka, &target), owned(&[("retention.ms", "86400000"), ("flush.ms", "60000")]));
    assert_eq!(kafka.partitions(&target), Some(8));
}

#[test]
fn what_the_archive_does_not_know_is_not_made_up() {
    let (archive, topic) = (Archive::new(), unique("no-state"));
    archive.fill(&topic, 0, &[(Format::Parquet, vec![Record::new(0, 0, base())])]);
    let target = format!(".*={topic}.copy");
    let said = archive.replay(&["--all", "--rename", &target, "--settings", "archived"]).expect(1).stderr;
    assert!(said.contains("does not know how the topics were set") && said.contains("[state]"), "{said}");
    assert_eq!(shared().partitions(&format!("{topic}.copy")), None);
}

#[test]
fn a_replay_that_was_killed_still_gives_the_settings_and_leaves_what_somebody_has_set() {
    let (kafka, topic) = (shared(), unique("killed-settings"));
    kafka.create_topic(
        &topic,
        3,
        &[("retention.ms", "864000000"), ("retention.bytes", "5000000000"), ("flush.ms", "90000")],
    );
    let settings = Settings { topics: &[&topic], ..Settings::default() };
    let (site, server) = site_at(&kafka.bootstrap(), &settings, "[state]\nevery = \"1s\"\n");
    let mut service = Service { program: site.start(), site, server };
    let messages: Vec<Message> = (0..600).map(|n| Message::new(n % 3, &format!("k{n}"), "value")).collect();
    kafka.produce(&topic, Codec::None, &messages);
    wait_state(&mut service, "topics", "the topic", |state| state[&topic]["settings"].is_object());
    service.site.wait_archived(kafka, &[&topic], &mut [&mut service.program]);
    service.program.terminate(STOP);
    let (site, target) = (&service.site, format!("{topic}.copy"));
    let rename = format!(".*={target}");
    let args = ["replay", "--all", "--topics", &topic, "--rename", &rename, "--id", "killed", "--json"];
    let refused = site.tidelog(&[&args[..], &["--settings", "archived", "--unrecorded"]].concat()).expect(2).stderr;
    assert!(refused.contains("--unrecorded"), "{refused}");
    let slow = [&["-c", "tidelog.toml"], &args[..], &["--settings", "archived", "--rate", "100/s"]].concat();
    let program = site.home().start(&slow);
    wait_until("the first records", PATIENCE, || {
        kafka.partitions(&target).is_some() && !kafka.consume_all(&target).is_empty()
    });
    program.kill();
    let during = described(kafka, &target);
    assert_eq!((during["retention.ms"].as_str(), during["flush.ms"].as_str()), ("-1", "90000"));
    // Somebody gives it another retention by hand; the rest of what is left to do is done by the run that goes on.
    alter(
        kafka,
        &target,
        &during
            .iter()
            .map(|(name, value)| match name.as_str() {
                "retention.ms" => ("retention.ms", "1000000000"),
                _ => (name.as_str(), value.as_str()),
            })
            .collect::<Vec<_>>(),
    );
    let sent = site.tidelog(&args).expect(0).json();
    assert_eq!(sent["finished"], true, "{sent}");
    assert!(
        sent["settings"][0]["told"][0].as_str().is_some_and(|told| told.starts_with("retention.ms is 1000000000")),
        "{sent}"
    );
    let wanted = owned(&[("retention.ms", "1000000000"), ("retention.bytes", "5000000000"), ("flush.ms", "90000")]);
    assert_eq!(described(kafka, &target), wanted);
    assert_eq!(kafka.consume_all(&target).len(), 600);
    // What was done is done once: the same id leaves alone what somebody sets later, to the very value of the replay, too.
    alter(kafka, &target, &[("retention.ms", "-1"), ("retention.bytes", "-1"), ("cleanup.policy", "delete")]);
    let later = described(kafka, &target);
    assert!(site.tidelog(&args).expect(0).json()["settings"].is_null());
    assert_eq!(described(kafka, &target), later);
}
