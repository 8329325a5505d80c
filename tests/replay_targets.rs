//! Targets that would lose or refuse what is sent: everything arrives and stays, or it is said before the first record.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::executor::block_on;
use rdkafka::admin::{AdminOptions, ResourceSpecifier};
use serde_json::json;
use tidelog::stream::Format;

use crate::archive::{Record, Topic};
use crate::replay::{Archive, base, expected, found, sent_so_far};
use crate::rig::kafka::{Kafka, KafkaOptions, free_port, java, shared};
use crate::rig::program;
use crate::rig::records::Random;
use crate::rig::slow_link::slow_link;
use crate::rig::topics::{Codec, Message};
use crate::rig::{unique, wait_until};

const SOON: Duration = Duration::from_secs(60);

fn settings(kafka: &Kafka, topic: &str) -> BTreeMap<String, String> {
    let asked = [ResourceSpecifier::Topic(topic)];
    let answer = block_on(kafka.admin().describe_configs(&asked, &AdminOptions::new())).expect("the broker answers");
    let found = answer.into_iter().next().expect("one answer").expect("settings");
    found.entries.into_iter().filter_map(|entry| Some((entry.name, entry.value?))).collect()
}

fn fill(archive: &Archive, topic: &str, partitions: usize, records: &[Record]) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let mut topic = Topic::begin_with(&archive.store, topic, 0, partitions).await;
        topic.append(Format::Parquet, records).await;
    });
}

#[test]
fn a_created_topic_keeps_everything_whatever_the_brokers_defaults_are() {
    let defaults = [
        ("log.retention.bytes", "300000"),
        ("log.retention.ms", "60000"),
        ("log.cleanup.policy", "compact,delete"),
        ("log.segment.bytes", "1048576"),
        ("log.message.timestamp.type", "LogAppendTime"),
        ("log.message.timestamp.after.max.ms", "1000"),
        ("log.message.timestamp.before.max.ms", "60000"),
        ("compression.type", "uncompressed"),
        ("log.cleaner.min.cleanable.ratio", "0.01"),
    ];
    let properties = defaults.map(|(name, value)| (name, value.to_owned())).to_vec();
    let kafka = Kafka::start(KafkaOptions { properties, ..KafkaOptions::default() });
    let archive = Archive::beside(&kafka);
    let ahead = tidelog::time::now().timestamp_millis() + 2 * 86_400_000;
    let one = |n: i64| Record {
        key: Some(format!("k{}", n % 50).into()),
        value: Some(vec![b'v'; 200]),
        timestamp: if n % 1_000 == 0 { ahead } else { base() + n },
        ..Record::new(if n % 2 == 0 { 1 } else { 3 }, n / 2, 0)
    };
    let records: Vec<Record> = (0..20_000).map(one).collect();
    // Six partitions, of which four are empty.
    fill(&archive, "orders", 6, &records);
    archive.replay(&["--all", "--topics", "orders", "--rename", "(.*)=$1.copy"]).expect(0);
    assert_eq!(kafka.partitions("orders.copy"), Some(6));
    // A topic that takes the brokers' defaults loses records meanwhile: then their cleaner has been round.
    kafka.create_topic("canary", 1, &[]);
    let message = |n: usize| Message { value: Some(vec![b'v'; 200]), ..Message::new(0, &format!("k{}", n % 50), "") };
    kafka.produce("canary", Codec::None, &(0..20_000).map(message).collect::<Vec<_>>());
    wait_until("the brokers' defaults to do their work", SOON, || kafka.consume_all("canary").len() < 15_000);
    assert!(found(&kafka, "orders.copy") == expected(&records), "{} of 20,000", sent_so_far(&kafka, "orders.copy"));
}

#[test]
fn topics_of_connect_and_the_registry_come_back_compacted() {
    let kafka = Kafka::start(KafkaOptions::default());
    let archive = Archive::beside(&kafka);
    for topic in ["connect-offsets", "connect-configs", "_schemas", "orders"] {
        fill(&archive, topic, 1, &[Record::new(0, 0, base())]);
    }
    let sent = archive.replay(&["--all", "--yes", "--json"]).expect(0).json();
    assert!(sent["warnings"].to_string().contains("connect-offsets will be created compacted"), "{sent}");
    let policy = |topic: &str| settings(&kafka, topic)["cleanup.policy"].clone();
    for topic in ["connect-offsets", "connect-configs", "_schemas"] {
        assert_eq!(policy(topic), "compact", "{topic}");
    }
    assert_eq!(policy("orders"), "delete");
}

#[test]
fn a_record_larger_than_the_queue_is_sent_and_does_not_hang() {
    let kafka = Kafka::start(KafkaOptions::default());
    let archive = Archive::beside(&kafka);
    let large = Record { value: Some(vec![0; 60_000_000]), ..Record::new(0, 0, base()) };
    fill(&archive, "large", 1, &[large, Record::new(0, 1, base())]);
    let sent = archive.replay(&["--all", "--topics", "large", "--rename", "(.*)=$1.copy", "--json"]).expect(0).json();
    assert_eq!((&sent["records"], &sent["finished"]), (&json!(2), &json!(true)), "{sent}");
    assert_eq!(kafka.watermarks("large.copy")[0].0, 0);
    // Brokers that take requests of 2 MB take it, too, compressed; and what does not compress is refused.
    let small = Kafka::start(KafkaOptions {
        properties: vec![("socket.request.max.bytes", "2000000".into())],
        ..KafkaOptions::default()
    });
    archive.replay(&["--all", "--topics", "large", "--into", &small.bootstrap()]).expect(0);
    let noise = Record { value: Some(Random::new(1).bytes(3_000_000)), ..Record::new(0, 0, base()) };
    fill(&archive, "noise", 1, &[noise]);
    let said = archive.replay(&["--all", "--topics", "noise", "--into", &small.bootstrap()]).expect(1).stderr;
    assert!(said.contains("socket.request.max.bytes") && said.contains("nothing was sent"), "{said}");
    assert!(small.partitions("noise").is_none());
}

#[test]
fn what_a_source_took_compressed_is_taken_by_a_topic_of_its_settings() {
    let (kafka, archive, topic) = (shared(), Archive::new(), unique("zeros"));
    let zeros = Record { value: Some(vec![0; 5_000_000]), ..Record::new(0, 0, base()) };
    let records = [zeros, Record::new(0, 1, base())];
    fill(&archive, &topic, 1, &records);
    let into = |name: &str, configs: &[(&str, &str)]| {
        let target = unique(name);
        kafka.create_topic(&target, 1, configs);
        let rename = format!(".*={target}");
        (archive.replay(&["--all", "--topics", &topic, "--rename", &rename]), target)
    };
    archive.replay(&["--all", "--topics", &topic, "--rename", "(.*)=$1.copy"]).expect(0);
    assert!(found(kafka, &format!("{topic}.copy")) == expected(&records), "a created topic");
    let (said, target) = into("zeros-to", &[]);
    said.expect(0);
    assert!(found(kafka, &target) == expected(&records), "a topic with the default of 1 MB");
    for (configs, named) in [
        ([("max.message.bytes", "300")], "compressed with zstd: raise max.message.bytes on it"),
        ([("segment.bytes", "1048576")], ""),
        ([("compression.type", "uncompressed")], "raise max.message.bytes on it"),
    ] {
        let (said, target) = into("zeros-refused", &configs);
        if named.is_empty() {
            said.expect(0);
            continue;
        }
        let said = said.expect(1).stderr;
        assert!(said.contains(named) && said.contains("offset 0") && said.contains("nothing was sent"), "{said}");
        assert!(sent_so_far(kafka, &target) == 0);
    }
    // Who says how records are compressed is taken at the word.
    let (connection, target) = (archive.home.write("gzip", "compression.type=gzip\n"), unique("zeros-gzip"));
    kafka.create_topic(&target, 1, &[]);
    let (file, rename) = (connection.display().to_string(), format!(".*={target}"));
    let args = ["--all", "--topics", &topic, "--rename", &rename, "--into-config", &file, "--into", &kafka.bootstrap()];
    assert!(archive.replay(&args).expect(1).stderr.contains("raise max.message.bytes on it"));
}

#[test]
fn a_created_topic_takes_what_the_brokers_would_not_by_default() {
    let defaults =
        [("message.max.bytes", "200000"), ("log.segment.bytes", "1048576"), ("transaction.max.timeout.ms", "20000")];
    let properties = defaults.map(|(name, value)| (name, value.to_owned())).to_vec();
    let kafka = Kafka::start(KafkaOptions { properties, ..KafkaOptions::default() });
    let (archive, mut random) = (Archive::beside(&kafka), Random::new(3));
    let lengths = [300_000, 100, 2_000_000, 100, 900_000];
    let one =
        |(offset, length): (i64, u64)| Record { value: Some(random.bytes(length)), ..Record::new(0, offset, base()) };
    let records: Vec<Record> = (0..).zip(lengths).map(one).collect();
    fill(&archive, "large", 1, &records);
    archive.replay(&["--all", "--topics", "large", "--rename", "(.*)=$1.copy"]).expect(0);
    assert!(found(&kafka, "large.copy") == expected(&records));
    // One that was there before has the brokers' limits.
    kafka.create_topic("small", 1, &[("max.message.bytes", "5000000")]);
    let said = archive.replay(&["--all", "--topics", "large", "--rename", ".*=small"]).expect(1).stderr;
    assert!(said.contains("segment.bytes") && said.contains("nothing was sent"), "{said}");
}

#[test]
fn a_record_outside_of_the_range_refuses_nothing() {
    let (kafka, archive, topic, mut random) = (shared(), Archive::new(), unique("outside"), Random::new(5));
    let large = Record { value: Some(random.bytes(3_000_000)), ..Record::new(0, 0, base()) };
    fill(&archive, &topic, 1, &[large, Record::new(0, 1, base() + 10_000)]);
    let beside = format!("{topic}.beside");
    fill(&archive, &beside, 1, &[Record::new(0, 0, base() + 5_000)]);
    for topic in [&topic, &beside] {
        kafka.create_topic(&format!("{topic}.copy"), 1, &[("retention.ms", "-1")]);
    }
    // Nothing of the first topic lies in it; its segment begins before and ends behind.
    let range = [("--from", base() + 4_000), ("--to", base() + 6_000)];
    let range = range.map(|(option, ms)| format!("{option}={}", tidelog::time::rfc3339(ms)));
    let args = ["--rename", "(.*)=$1.copy", "--json", &range[0], &range[1]];
    assert_eq!(archive.replay(&args).expect(0).json()["records"], 1);
}

#[test]
fn a_target_under_a_quota_gets_everything() {
    let kafka = Kafka::start(KafkaOptions::default());
    let mut command = java();
    let quota = ["--alter", "--add-config", "producer_byte_rate=50000", "--entity-type", "clients"];
    command.args(["kafka.admin.ConfigCommand", "--bootstrap-server", &kafka.bootstrap()]);
    command.args(quota).args(["--entity-name", "tidelog"]);
    program::run(command).expect(0);
    let archive = Archive::beside(&kafka);
    let mut random = Random::new(7);
    let one = |n: i64| Record { value: Some(random.bytes(4_000)), ..Record::new(0, n, base() + n) };
    let records: Vec<Record> = (0..1_000).map(one).collect();
    fill(&archive, "slow", 1, &records);
    // 4 MB: 80 s, of which a transaction may take 60.
    archive.replay(&["--all", "--topics", "slow", "--rename", "(.*)=$1.copy"]).expect(0);
    assert!(found(&kafka, "slow.copy") == expected(&records));
}

#[test]
fn a_transaction_that_takes_too_long_is_tried_again_with_less() {
    let (real, slow) = (free_port(), free_port());
    let properties = vec![
        ("advertised.listeners", format!("PLAINTEXT://127.0.0.1:{{port}},SLOW://127.0.0.1:{slow}")),
        ("listener.security.protocol.map", "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SLOW:PLAINTEXT".to_owned()),
    ];
    let listener = Some(format!("SLOW://127.0.0.1:{real}"));
    let kafka = Kafka::start(KafkaOptions { properties, listener, ..KafkaOptions::default() });
    slow_link(slow, real, 25_000);
    let archive = Archive::beside(&kafka);
    let mut random = Random::new(9);
    let one = |n: i64| Record { value: Some(random.bytes(2_000)), ..Record::new(0, n, base() + n) };
    let records: Vec<Record> = (0..130).map(one).collect();
    fill(&archive, "slow", 1, &records);
    // All of it is on its way at once, which takes 10 s, and a transaction may take 6.
    let file = archive.home.write("slow", "transaction.timeout.ms=6000\n").display().to_string();
    let into = format!("127.0.0.1:{slow}");
    let args =
        ["--all", "--topics", "slow", "--rename", "(.*)=$1.copy", "--into-config", &file, "--into", &into, "--json"];
    let sent = archive.replay(&args).expect(0);
    assert!(sent.stderr.contains("a transaction did not end in time"), "{}", sent.stderr);
    assert_eq!((&sent.json()["records"], &sent.json()["finished"]), (&json!(130), &json!(true)), "{}", sent.stdout);
    assert!(found(&kafka, "slow.copy") == expected(&records));
}

#[test]
fn what_a_topic_would_not_keep_is_refused_unless_one_says_so() {
    let (kafka, archive, topic) = (shared(), Archive::new(), unique("unkept"));
    let records: Vec<Record> = (0..300).map(|n| Record::new(0, n, base() + n)).collect();
    fill(&archive, &topic, 1, &records);
    let refused = |config: (&str, &str), named: &str| {
        let target = unique("unkept-to");
        kafka.create_topic(&target, 1, &[config]);
        let rename = format!(".*={target}");
        let args = ["--all", "--topics", &topic, "--rename", &rename];
        let said = archive.replay(&args).expect(1).stderr;
        assert!(said.contains(named) && said.contains("nothing was sent"), "{named}: {said}");
        assert!(sent_so_far(kafka, &target) == 0);
        let plan = archive.replay(&[&args[..], &["--dry-run", "--json"]].concat());
        (args.map(str::to_owned), plan)
    };
    for (config, named) in [
        (("retention.ms", "60000"), "keeps records for 1m"),
        (("retention.bytes", "1000"), "keeps 1000 bytes a partition"),
        (("cleanup.policy", "compact"), "is compacted"),
        (("message.timestamp.type", "LogAppendTime"), "get the time of the replay"),
    ] {
        let (args, plan) = refused(config, named);
        assert!(plan.expect(0).json()["warnings"].to_string().contains(named));
        archive.replay(&[&args.each_ref().map(String::as_str)[..], &["--yes"]].concat()).expect(0);
    }
    let (_, plan) = refused(("min.insync.replicas", "2"), "1 replicas in step and min.insync.replicas=2");
    plan.expect(1);
    let said = archive.replay(&["--all", "--topics", &topic, "--rename", ".*=__consumer_offsets"]).expect(1).stderr;
    assert!(said.contains("written by brokers alone"), "{said}");
}

/// Two names that differ in "." and "_" alone are one in the brokers' metrics, and refused.
#[test]
fn a_topic_that_cannot_be_created_is_told_before_anything_is_begun() {
    let (kafka, archive, topic) = (shared(), Archive::new(), unique("uncreated"));
    fill(&archive, &topic, 1, &[Record::new(0, 0, base())]);
    let there = unique("uncreated_to");
    kafka.create_topic(&there, 1, &[]);
    let rename = format!(".*={}", there.replace('_', "."));
    let args = ["--all", "--topics", &topic, "--rename", &rename, "--id", &unique("uncreated-id")];
    for more in [&["--dry-run"][..], &[]] {
        let said = archive.replay(&[&args[..], more].concat()).expect(1).stderr;
        assert!(said.contains("cannot be created") && said.contains("nothing was sent"), "{said}");
        assert!(said.contains("\".\" and \"_\" alone"), "{said}");
    }
    archive.replay(&["--all", "--topics", &topic, "--rename", &format!(".*={there}"), "--id", args[6]]).expect(0);
}

#[test]
fn what_matches_nothing_is_said_and_how_long_a_pace_takes() {
    let (archive, topic) = (Archive::new(), unique("nothing"));
    let (first, two_days) = (base(), 2 * 86_400_000);
    fill(&archive, &topic, 1, &[Record::new(0, 0, first - two_days), Record::new(0, 1, first)]);
    let args = ["--topics", &topic, "--rename", "(.*)=$1.copy"];
    let replay = |more: &[&str]| archive.replay(&[&args[..], more].concat()).expect(0);
    let none = replay(&["--all", "--partitions", "9", "--json"]).json();
    assert_eq!(none["records"], 0);
    assert!(none["warnings"].to_string().contains("no topic of this replay has partition 9"), "{none}");
    let said = replay(&["--from", "1969-01-01T00:00:00Z", "--to", "1970-01-01T00:00:00Z"]).stdout;
    assert!(said.contains("no record lies in this range") && said.contains("has timestamps from"), "{said}");
    let far = replay(&["--from", "+010000-01-01T00:00:00Z", "--to", "+020000-01-01T00:00:00Z", "--json"]).json();
    assert!(far["warnings"].to_string().contains("no record lies in this range"), "{far}");
    let slow = replay(&["--all", "--speed", "10x", "--dry-run", "--json"]).json();
    assert_eq!(slow["expected_seconds"].as_f64(), Some(17_280.0), "{slow}");
    assert!(replay(&["--all", "--speed", "10x", "--dry-run"]).stdout.contains("takes     4h 48m"));
    archive.replay(&[&args[..], &["--from", "2026-01-01T00:00:00"]].concat()).expect(2);
}
