//! What others' tools for copying topics were reported to get wrong, tried on replays with real brokers.
//!
//! Null and empty keys, values and headers, and headers that repeat, are in `replay::what_is_replayed_equals_what_was_archived`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::json;
use tidelog::stream::Format;

use crate::archive::Record;
use crate::replay::{Archive, base, expected, found, sent_so_far};
use crate::rig::kafka::{Kafka, KafkaOptions, shared};
use crate::rig::topics::Message;
use crate::rig::{unique, wait_until};
use crate::site::{Settings, Site};

const SOON: Duration = Duration::from_secs(60);

fn records(count: i64) -> Vec<Record> {
    let partition = |n: i64| i32::try_from(n % 3).expect("small");
    (0..count).map(|n| Record::new(partition(n), n / 3, base() + n)).collect()
}

/// lensesio/stream-reactor#868, itadventurer/kafka-backup#32: keys that were on one partition come back on another, and
/// producers go on with a third.
#[test]
fn a_key_goes_on_where_it_was_in_a_rebuilt_topic() {
    const KEYS: usize = 3;
    let (kafka, topic) = (shared(), unique("hashed"));
    kafka.create_topic(&topic, 6, &[]);
    // As the Java client partitions; the last partitions get nothing.
    let send = |topic: &str, value: &str| {
        let producer = kafka.producer(&[("partitioner", "murmur2_random")]);
        for n in 0..KEYS {
            let message =
                Message { key: Some(format!("key {n}").into()), value: Some(value.into()), ..Message::default() };
            producer.send(topic, &message);
        }
        producer.flush();
    };
    send(&topic, "before");
    assert!(kafka.consume_all(&topic).iter().all(|record| record.partition < 4), "keys that hash elsewhere");
    let site = Site::new(&kafka.bootstrap(), &Settings { topics: &[&topic], ..Settings::default() });
    site.archive(kafka, &[&topic]);
    let copy = format!("{topic}.copy");
    site.replay(&topic, &copy, &[]);
    assert_eq!(kafka.partitions(&copy), Some(6));
    send(&copy, "after");
    let mut partitions: BTreeMap<Option<Vec<u8>>, Vec<i32>> = BTreeMap::new();
    for record in kafka.consume_all(&copy) {
        partitions.entry(record.key).or_default().push(record.partition);
    }
    assert_eq!(partitions.len(), KEYS);
    for (key, at) in partitions {
        assert!(at.len() == 2 && at[0] == at[1], "{key:?} is on {at:?}");
    }
}

/// KAFKA-7190, KAFKA-7298, confluentinc/librdkafka#3584: a producer whose records are deleted under it fails with
/// UNKNOWN_PRODUCER_ID or an out-of-order sequence.
#[test]
fn records_that_are_deleted_behind_a_replay_do_not_stop_it() {
    let (kafka, archive, topic) = (shared(), Archive::new(), unique("deleted-behind"));
    let all = records(3_000);
    archive.fill(&topic, 0, &[(Format::Parquet, all.clone())]);
    let target = format!("{topic}.copy");
    let args = [
        "-c",
        "tidelog.toml",
        "replay",
        "--from=-2h",
        "--topics",
        &topic,
        "--rename",
        "(.*)=$1.copy",
        "--rate",
        "500/s",
    ];
    let mut program = archive.home.start(&args);
    wait_until("some of it to be committed", SOON, || sent_so_far(kafka, &target) > 0);
    let mut deleted = 0;
    while program.is_running() {
        for (partition, (first, end)) in (0..).zip(kafka.watermarks(&target)) {
            if first < end {
                kafka.delete_records(&target, partition, end);
                deleted += 1;
            }
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let said = program.output();
    assert_eq!(program.wait(SOON), 0, "{said}");
    assert!(said.contains("sent 3,000 records") && deleted > 2, "deleted {deleted} times; {said}");
    let (found, all) = (found(kafka, &target), expected(&all));
    for partition in 0..3 {
        let of = |shapes: &[crate::replay::Shape]| {
            shapes.iter().filter(|one| one.0 == partition).cloned().collect::<Vec<_>>()
        };
        assert!(of(&all).ends_with(&of(&found)), "what is left of partition {partition} is the end of it");
    }
}

/// Brokers that look every second which transactions have lasted too long.
fn strict() -> Kafka {
    Kafka::start(KafkaOptions {
        properties: vec![("transaction.abort.timed.out.transaction.cleanup.interval.ms", "1000".into())],
        ..KafkaOptions::default()
    })
}

/// A replay with transactions of five seconds at most.
fn slow_replay(archive: &Archive, id: &str, rate: &[&str]) -> Vec<String> {
    let file = archive.home.write("short", "transaction.timeout.ms=5000\n").display().to_string();
    let config = std::fs::read_to_string(archive.home.path().join("tidelog.toml")).expect("the configuration");
    let bootstrap = config.lines().find_map(|line| line.strip_prefix("bootstrap_servers = ")).expect("an address");
    let into = bootstrap.trim_matches('"');
    let args = ["-c", "tidelog.toml", "replay", "--all", "--topics", "frozen", "--rename", "(.*)=$1.copy", "--id", id];
    let more = ["--into-config", &file, "--into", into];
    [&args[..], &more[..], rate].concat().into_iter().map(str::to_owned).collect()
}

/// confluentinc/librdkafka#3297, KIP-588: a process that stands still for longer than its transaction may last is fenced, as if
/// another had come, and is of no use any more.
#[test]
fn a_replay_that_stood_still_for_longer_than_its_transaction_goes_on() {
    let kafka = strict();
    let archive = Archive::beside(&kafka);
    let all = records(6_000);
    archive.fill("frozen", 0, &[(Format::Parquet, all.clone())]);
    let (id, target) = (unique("frozen"), "frozen.copy");
    let args = slow_replay(&archive, &id, &["--rate", "400/s"]);
    let mut program = archive.home.start(&args.iter().map(String::as_str).collect::<Vec<_>>());
    wait_until("some of it to be committed", SOON, || {
        program.assert_running();
        sent_so_far(&kafka, target) > 500
    });
    program.freeze();
    std::thread::sleep(Duration::from_secs(8));
    program.thaw();
    let start = Instant::now();
    while program.is_running() {
        assert!(start.elapsed() < SOON, "it does not end; it said:\n{}", program.output());
        std::thread::sleep(Duration::from_millis(20));
    }
    let said = program.output();
    assert_eq!(program.wait(SOON), 0, "{said}");
    assert!(said.contains("a transaction did not end in time"), "{said}");
    assert!(found(&kafka, target) == expected(&all), "{} of 6,000", sent_so_far(&kafka, target));
}

/// The same, and another process with the same id was there meanwhile.
#[test]
fn a_replay_that_stood_still_while_another_went_on_gives_way() {
    let kafka = strict();
    let archive = Archive::beside(&kafka);
    let all = records(6_000);
    archive.fill("frozen", 0, &[(Format::Parquet, all.clone())]);
    let (id, target) = (unique("frozen"), "frozen.copy");
    let slow = slow_replay(&archive, &id, &["--rate", "400/s"]);
    let mut program = archive.home.start(&slow.iter().map(String::as_str).collect::<Vec<_>>());
    wait_until("some of it to be committed", SOON, || {
        program.assert_running();
        sent_so_far(&kafka, target) > 500
    });
    program.freeze();
    let fast = slow_replay(&archive, &id, &["--json"]);
    let other = archive.home.run(&fast.iter().map(String::as_str).collect::<Vec<_>>()).expect(0).json();
    assert_eq!(other["finished"], json!(true), "{other}");
    std::thread::sleep(Duration::from_secs(6));
    program.thaw();
    let start = Instant::now();
    while program.is_running() {
        assert!(start.elapsed() < SOON, "it does not end; it said:\n{}", program.output());
        std::thread::sleep(Duration::from_millis(20));
    }
    let said = program.output();
    assert_eq!(program.wait(SOON), 1, "{said}");
    assert!(said.contains("has taken over"), "{said}");
    assert!(found(&kafka, target) == expected(&all), "{} of 6,000", sent_so_far(&kafka, target));
}
