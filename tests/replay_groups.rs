//! Consumer groups where they were: the next record that a group reads in the target is the one that it would have read.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use chrono::{DateTime, Utc};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};
use serde_json::{Value, json};
use tidelog::manifest::Chain;
use tidelog::manifest::state::{self as versions, By};
use tidelog::store::Store;
use tidelog::stream::{Begin, Format, StateKind, StateOf, StreamId};

use crate::archive::{Record as Archived, Topic};
use crate::http::{Service, site_at};
use crate::kafka::load_compacted;
use crate::replay::{Archive, base, sent_so_far};
use crate::rig::kafka::{Kafka, KafkaOptions, shared};
use crate::rig::records::Random;
use crate::rig::topics::{Codec, End, Isolation, Message, PATIENCE, Record};
use crate::rig::{unique, wait_until};
use crate::site::{STOP, Settings};
use crate::state::{now, wait_state};

type At = (String, i32);

/// What tells one record from all others.
type Content = (Option<Vec<u8>>, Option<Vec<u8>>, Option<i64>);

fn content(record: &Record) -> Content {
    (record.key.clone(), record.value.clone(), record.timestamp.to_millis())
}

const FOREIGN: &[u8] = b"somebody else's";

fn consumer(kafka: &Kafka, group: &str) -> BaseConsumer {
    let mut config = kafka.config();
    config.set("group.id", group).set("enable.auto.commit", "false").set("isolation.level", "read_committed");
    config.set("auto.offset.reset", "error").set("enable.partition.eof", "true");
    config.create().expect("a consumer can be made")
}

/// Commits positions, each with a note.
fn commit(kafka: &Kafka, group: &str, positions: &BTreeMap<At, i64>) {
    let mut list = TopicPartitionList::new();
    for ((topic, partition), offset) in positions {
        let mut element = list.add_partition(topic, *partition);
        element.set_offset(Offset::Offset(*offset)).expect("an offset");
        element.set_metadata(note(group, *offset));
    }
    let consumer = consumer(kafka, group);
    wait_until("the commit", PATIENCE, || consumer.commit(&list, CommitMode::Sync).is_ok());
}

fn note(group: &str, offset: i64) -> String {
    format!("{group} was at {offset}, ümlaut")
}

/// The note beside a group's position.
fn noted(kafka: &Kafka, group: &str, (topic, partition): &At) -> String {
    let mut list = TopicPartitionList::new();
    list.add_partition(topic, *partition);
    let offsets = consumer(kafka, group).committed_offsets(list, PATIENCE).expect("the group answers");
    offsets.elements()[0].metadata().to_owned()
}

/// What a consumer of the group reads next of a partition, from where the group is; none at the end. What others wrote is passed over.
fn next_read(kafka: &Kafka, group: &str, (topic, partition): &At) -> Option<Content> {
    let consumer = consumer(kafka, group);
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, *partition, Offset::Stored).expect("a partition");
    consumer.assign(&list).expect("it is assigned");
    let mut found = None;
    wait_until("the next record of the group", PATIENCE, || match consumer.poll(Duration::from_millis(100)) {
        None => false,
        Some(Err(KafkaError::PartitionEOF(_))) => true,
        Some(Err(error)) => panic!("{group} at {topic} {partition}: {error}"),
        Some(Ok(message)) => {
            let record = Record::of(&message);
            let foreign = record.value.as_deref() == Some(FOREIGN);
            found = (!foreign).then(|| content(&record));
            !foreign
        }
    });
    found
}

/// Writes into topics as soon as they are there, plain and in transactions, until it is dropped.
struct Foreign {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<u64>>,
}

impl Foreign {
    fn into(kafka: &'static Kafka, topics: Vec<String>, partitions: i32) -> Foreign {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut written = 0;
            let message = |partition| Message {
                partition: Some(partition),
                key: Some(b"k".to_vec()),
                value: Some(FOREIGN.to_vec()),
                ..Message::default()
            };
            while !stopped.load(Ordering::Relaxed) {
                for topic in topics.iter().filter(|topic| kafka.partitions(topic) == Some(partitions)) {
                    let all: Vec<Message> = (0..partitions).map(message).collect();
                    kafka.produce(topic, Codec::None, &all);
                    let end = if written % 3 == 0 { End::Abort } else { End::Commit };
                    kafka.produce_transaction(topic, &all, end);
                    written += 1;
                }
                thread::sleep(Duration::from_millis(5));
            }
            written
        });
        Foreign { stop, thread: Some(thread) }
    }

    fn end(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().expect("it runs").join().expect("no panic")
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

const PARTITIONS: i32 = 2;

/// A piece of a topic's history: plain records, and transactions of many records and of one, committed and aborted.
fn live_on(kafka: &Kafka, topic: &str, random: &mut Random, number: &mut u64) {
    for _ in 0..4 + random.below(4) {
        let mut messages = |count: u64| -> Vec<Message> {
            let one = |_| {
                *number += 1;
                Message::new(
                    (*number % PARTITIONS.unsigned_abs() as u64) as i32,
                    &format!("k{}", *number % 7),
                    &format!("{topic} {number}"),
                )
            };
            (0..count).map(one).collect()
        };
        match random.below(4) {
            0 => kafka.produce(topic, Codec::Lz4, &messages(40)),
            1 => kafka.produce_transaction(topic, &messages(25), End::Abort),
            2 => kafka.produce_transaction(topic, &messages(25), End::Commit),
            _ => (0..8).for_each(|_| kafka.produce_transaction(topic, &messages(2), End::Commit)),
        }
    }
}

/// The second cluster.
fn other() -> &'static Kafka {
    static OTHER: std::sync::LazyLock<Kafka> = std::sync::LazyLock::new(|| Kafka::start(KafkaOptions::default()));
    &OTHER
}

#[test]
fn ten_groups_of_random_topics_read_on_in_another_cluster_where_they_were() {
    let (kafka, target, seed) = (shared(), other(), 20);
    let mut random = Random::new(seed);
    println!("seed {seed}");
    let prefix = unique("moved");
    let topics: Vec<String> = (0..10).map(|n| format!("{prefix}-{n}")).collect();
    let names: Vec<&str> = topics.iter().map(String::as_str).collect();
    let mut number = 0;
    for (n, topic) in topics.iter().enumerate() {
        // Compacted, with transactions; those with a gap are 2, 5 and 8.
        if n % 4 == 3 {
            load_compacted(kafka, topic);
        } else {
            kafka.create_topic(topic, PARTITIONS, &[]);
            live_on(kafka, topic, &mut random, &mut number);
        }
    }
    let settings = Settings { topics: &names, ..Settings::default() };
    let groups = format!("[state]\nevery = \"1s\"\ngroups = [\"^{prefix}\"]\n");
    let (site, server) = site_at(&kafka.bootstrap(), &settings, &groups);
    site.archive(kafka, &names);
    let mut truth: BTreeMap<At, BTreeMap<i64, Content>> = BTreeMap::new();
    let mut learn = || {
        for topic in &topics {
            for record in kafka.consume(topic, Isolation::Committed) {
                let of = truth.entry((topic.clone(), record.partition)).or_default();
                of.insert(record.offset, content(&record));
            }
        }
    };
    learn();
    for (n, topic) in topics.iter().enumerate() {
        let archived = kafka.watermarks(topic);
        live_on(kafka, topic, &mut random, &mut number);
        if n % 3 == 2 {
            for (partition, (was, is)) in (0..).zip(archived.iter().zip(kafka.watermarks(topic))) {
                let lost = was.1 + 1 + random.below((is.1 - was.1).unsigned_abs().max(2) / 2) as i64;
                kafka.delete_records(topic, partition, lost);
            }
        }
    }
    learn();
    let mut service = Service { program: site.start(), site, server };
    service.site.wait_archived(kafka, &names, &mut [&mut service.program]);
    let mut committed: BTreeMap<String, BTreeMap<At, i64>> = BTreeMap::new();
    for (n, topic) in topics.iter().enumerate() {
        let group = if n % 2 == 0 { format!("{prefix}-g{n}") } else { format!("{prefix}-connect-sink{n}") };
        let positions = (0..).zip(kafka.watermarks(topic)).map(|(partition, (_, end))| {
            // Any offset: on a record, on a marker, where a record was that is gone, at the beginning and at the end.
            let drawn = random.below(end.unsigned_abs() + 3);
            ((topic.clone(), partition), i64::try_from(drawn).expect("small").saturating_sub(1).clamp(0, end))
        });
        let positions: BTreeMap<At, i64> = positions.collect();
        commit(kafka, &group, &positions);
        committed.insert(group, positions);
    }
    wait_state(&mut service, "groups", "all groups", |state| {
        committed.iter().all(|(group, positions)| {
            positions.iter().all(|((topic, partition), offset)| {
                state[group]["positions"][topic][partition.to_string()]["offset"] == *offset
            })
        })
    });
    let then = now();
    // What they read later does not count.
    for (group, positions) in &committed {
        commit(kafka, group, &positions.keys().map(|at| (at.clone(), 0)).collect());
    }
    wait_state(&mut service, "groups", "what they read later", |state| {
        committed.iter().all(|(group, positions)| {
            positions
                .keys()
                .all(|(topic, partition)| state[group]["positions"][topic][partition.to_string()]["offset"] == 0)
        })
    });
    service.program.terminate(STOP);

    let restored = |topic: &str| format!("restored.{topic}");
    let foreign = Foreign::into(target, topics.iter().map(|topic| restored(topic)).collect(), PARTITIONS);
    let groups = format!("^{prefix}-");
    let args = ["replay", "--all", "--rename", "(.*)=restored.$1", "--into", &target.bootstrap(), "--groups", &groups];
    let args = [&args[..], &["--groups-at", &then, "--rate", "1500/s", "--settings", "safe", "--json"]].concat();
    let sent = service.site.tidelog(&args).expect(0).json();
    println!("{} foreign rounds beside {} records", foreign.end(), sent["records"]);
    let mut answers: BTreeMap<String, u32> = BTreeMap::new();
    for (group, positions) in &committed {
        let shown = sent["groups"]["groups"].as_array().expect("groups").iter().find(|one| one["group"] == **group);
        let shown = shown.unwrap_or_else(|| panic!("{group} is not in {}", sent["groups"]));
        assert_eq!(shown["state"], "set", "{shown}");
        for (at, offset) in positions {
            let mut of = shown["positions"].as_array().expect("positions").iter();
            let one = of.find(|one| one["partition"] == at.1).expect("the position");
            *answers.entry(one["answer"].to_string()).or_default() += 1;
            let there = (restored(&at.0), at.1);
            let wanted = truth[at].range(offset..).next().map(|(_, content)| content.clone());
            assert_eq!(next_read(target, group, &there), wanted, "{group} at {at:?} {offset}: {one}");
            assert_eq!(one["old"], *offset);
            assert_eq!(noted(target, group, &there), note(group, *offset));
        }
    }
    println!("{answers:?}");
    assert!(answers.contains_key("\"exact\""), "{answers:?}");
}

// ---- on archives that the test writes

fn at(ms: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_millis(ms).expect("a time")
}

/// Keeps groups in an archive as they were at times (ms).
fn keep_groups(store: &Store, kept: &[(i64, Value)]) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let of = StateOf { kind: StateKind::Groups, scope: "main".into() };
        let begin = Begin::State { state: StateKind::Groups, cluster_id: None };
        let stream = StreamId::State(of.clone());
        let mut chain = Chain::begin(store, &stream, begin, "test", at(0)).await.expect("it begins");
        for (ms, groups) in kept {
            let number = versions::next(&chain);
            let document = versions::document(&of, groups).expect("JSON");
            let by = By { writer: "test", n: number.unsigned_abs(), at: at(*ms) };
            assert!(versions::append(&mut chain, number, &document, by).await.expect("stored"));
        }
    });
}

fn group(positions: &[(&str, i32, i64)]) -> Value {
    let mut topics = json!({});
    for (topic, partition, offset) in positions {
        topics[topic][partition.to_string()] = json!({ "offset": offset });
    }
    json!({ "state": "Empty", "type": "Classic", "positions": topics })
}

/// Records of which every third offset has none.
fn sparse(partitions: i32, each: i64, from: i64) -> Vec<Archived> {
    let of = |partition| {
        (0..each).filter(|offset| offset % 3 != 2).map(move |offset| Archived::new(partition, offset, from + offset))
    };
    (0..partitions).flat_map(of).collect()
}

fn position<'a>(result: &'a Value, group: &str, partition: i32) -> &'a Value {
    let groups = result["groups"]["groups"].as_array().unwrap_or_else(|| panic!("no groups: {result}"));
    let group = groups.iter().find(|one| one["group"] == group).unwrap_or_else(|| panic!("no {group}: {result}"));
    let mut of = group["positions"].as_array().expect("positions").iter();
    of.find(|one| one["partition"] == partition).unwrap_or_else(|| panic!("no partition {partition}: {group}"))
}

fn state_of(result: &Value, group: &str) -> String {
    let groups = result["groups"]["groups"].as_array().unwrap_or_else(|| panic!("no groups: {result}"));
    let group = groups.iter().find(|one| one["group"] == group).unwrap_or_else(|| panic!("no {group}: {result}"));
    group["state"].as_str().expect("a state").to_owned()
}

/// Where each source offset of a partition went, by what the records say.
fn went(kafka: &Kafka, topic: &str, partition: i32) -> BTreeMap<i64, i64> {
    let of = |record: Record| {
        let text = String::from_utf8(record.value?).ok()?;
        Some((text.rsplit_once("offset ")?.1.parse().ok()?, record.offset))
    };
    let all = kafka.consume(topic, Isolation::Committed).into_iter().filter(|record| record.partition == partition);
    all.filter_map(of).collect()
}

#[test]
fn a_replay_that_is_killed_ten_times_puts_every_group_where_it_was() {
    let (kafka, archive, topic) = (other(), Archive::beside(other()), unique("groups-killed"));
    let from = base();
    let records = sparse(3, 6_000, from);
    let halves = records.split_at(4_000);
    archive.fill(&topic, 0, &[(Format::Parquet, halves.0.to_vec()), (Format::Avro, halves.1.to_vec())]);
    let mut random = Random::new(7);
    let name = |n: usize| format!("{topic}-{n:02}");
    let drawn: Vec<i64> = (0..30).map(|_| random.below(6_001) as i64).collect();
    let all: serde_json::Map<String, Value> = drawn
        .iter()
        .enumerate()
        .map(|(n, offset)| {
            (name(n), group(&[(&topic, 0, *offset), (&topic, 1, 6_000 - *offset), (&topic, 2, *offset)]))
        })
        .collect();
    keep_groups(&archive.store, &[(from, all.into())]);
    let (id, target) = (unique("r-groups"), format!("{topic}.copy"));
    let pattern = format!("^{topic}-");
    let args = [
        "-c",
        "tidelog.toml",
        "replay",
        "--all",
        "--topics",
        &topic,
        "--rename",
        "(.*)=$1.copy",
        "--id",
        &id,
        "--groups",
        &pattern,
    ];
    let foreign = Foreign::into(kafka, vec![target.clone()], 3);
    for round in 0..10 {
        let reached = || match kafka.partitions(&target) {
            Some(_) => kafka.committed(&format!("tidelog-replay-{id}"), &target).values().sum::<i64>(),
            None => 0,
        };
        let before = reached();
        let mut program = archive.home.start(&[&args[..], &["--rate", "300/s"]].concat());
        wait_until("some of it to be committed", Duration::from_secs(60), || {
            assert!(program.is_running(), "round {round}: {}", program.output());
            reached() > before + 100
        });
        program.kill();
    }
    let last = archive.replay(&[&args[3..], &["--json"]].concat()).expect(0).json();
    println!("{} foreign rounds, {} records left for the last run", foreign.end(), last["records"]);
    for partition in 0..3 {
        let went = went(kafka, &target, partition);
        assert_eq!(went.len(), 4_000, "each record once");
        let end = went.values().max().expect("records") + 1;
        for (n, drawn) in drawn.iter().enumerate() {
            let old = if partition == 1 { 6_000 - drawn } else { *drawn };
            let wanted = went.range(old..).next().map_or(end, |(_, offset)| *offset);
            let one = position(&last, &name(n), partition);
            assert_eq!(one["new"], wanted, "{one}");
            assert_eq!(kafka.committed(&name(n), &target)[&partition], wanted);
        }
    }
    // Typed again it puts nobody back who reads on.
    let moved = BTreeMap::from([((target.clone(), 0), 1)]);
    commit(kafka, &name(3), &moved);
    let again = archive.replay(&[&args[3..], &["--json"]].concat()).expect(0).json();
    assert_eq!(
        (state_of(&again, &name(3)), state_of(&again, &name(4))),
        ("already_set".to_owned(), "already_set".to_owned())
    );
    assert_eq!(kafka.committed(&name(3), &target)[&0], 1);
}

#[test]
fn every_position_that_cannot_be_translated_has_an_answer_that_is_printed() {
    let (kafka, archive, topic) = (shared(), Archive::new(), unique("groups-answers"));
    let from = base();
    // Partition 3 has records before the range alone, partition 4 none that is meant.
    let mut records = sparse(3, 3_000, from);
    records.extend((0..10).map(|offset| Archived::new(3, offset, from + offset)));
    records.extend((0..10).map(|offset| Archived::new(4, offset, from + offset)));
    archive.fill(&topic, 0, &[(Format::Avro, records)]);
    archive.fill(&format!("{topic}.other"), 0, &[(Format::Avro, sparse(1, 10, from))]);
    let other = format!("{topic}.other");
    let (low, high, away, connect) =
        (format!("{topic}-low"), format!("{topic}-high"), format!("{topic}-away"), format!("{topic}-connect-sink"));
    let early = json!({ &low: group(&[(&topic, 0, 1)]) });
    let groups = json!({
        &low: group(&[(&topic, 0, 5), (&topic, 1, 1_000), (&topic, 2, 1_001), (&topic, 3, 4)]),
        &high: group(&[(&topic, 0, 2_950), (&topic, 1, 3_000), (&topic, 2, 9_000), (&topic, 9, 5)]),
        &away: group(&[(&other, 0, 3), ("never archived", 0, 3)]),
        &connect: group(&[(&topic, 0, 1_500), (&topic, 1, 2), (&topic, 4, 3)]),
        "tidelog-replay-x": group(&[(&topic, 0, 1)]),
    });
    keep_groups(&archive.store, &[(from + 1, early), (from + 2_000, groups)]);
    let (begin, end) = (tidelog::time::rfc3339(from + 1_000), tidelog::time::rfc3339(from + 2_900));
    let (id, target) = (unique("r-answers"), format!("{topic}.copy"));
    let pattern = format!("^{topic}-");
    let base = ["--from", &begin, "--to", &end, "--topics", &topic, "--partitions", "0-3", "--rename", "(.*)=$1.copy"];
    let args = [&base[..], &["--id", &id, "--groups", &pattern]].concat();
    let planned = archive.replay(&[&args[..], &["--dry-run"]].concat()).expect(0).stdout;
    for line in [
        format!("{topic} 1: 1000 -> the record 1000, whose offset in {target} is known once it is sent"),
        format!(
            "{topic} 3: 4 -> after all that is sent to {target} (records that it had not read are not in this replay)"
        ),
        format!("{topic} 4: 3 (not in this replay: left alone)"),
        format!("{away} has no position in what is replayed"),
    ] {
        assert!(planned.contains(&line), "{line:?} is not in:\n{planned}");
    }
    assert_eq!(kafka.partitions(&target), None);
    let sent = archive.replay(&[&args[..], &["--json"]].concat()).expect(0).json();
    let went: Vec<BTreeMap<i64, i64>> = (0..4).map(|partition| went(kafka, &target, partition)).collect();
    let last = |partition: usize| *went[partition].values().max().expect("records") + 1;
    for (group, partition, new, answer) in [
        (&low, 0, Some(went[0][&1_000]), "skips"),
        (&low, 1, Some(went[1][&1_000]), "exact"),
        // 1001 is none, and nothing lies between it and the next one.
        (&low, 2, Some(went[2][&1_002]), "exact"),
        (&low, 3, Some(0), "skips"),
        (&high, 0, Some(last(0)), "skips"),
        (&high, 1, Some(last(1)), "ahead"),
        (&high, 2, Some(last(2)), "ahead"),
        (&connect, 0, Some(went[0][&1_500]), "exact"),
        (&connect, 1, Some(went[1][&1_000]), "skips"),
        (&connect, 4, None, "not_replayed"),
    ] {
        let one = position(&sent, group, partition);
        assert_eq!((&one["new"], &one["answer"]), (&json!(new), &json!(answer)), "{group} {partition}: {one}");
        assert_eq!(kafka.committed(group, &target).get(&partition).copied(), new);
    }
    assert_eq!(state_of(&sent, &away), "nothing");
    // Asked for another time, groups go there, by the same map; the plan of a finished replay knows every number.
    let earlier = tidelog::time::rfc3339(from + 1);
    let again = [&args[..], &["--groups-at", &earlier]].concat();
    let planned = archive.replay(&[&again[..], &["--dry-run", "--json"]].concat()).expect(0).json();
    assert_eq!(position(&planned, &low, 0)["new"], went[0][&1_000], "{planned}");
    assert_eq!(position(&archive.replay(&[&again[..], &["--json"]].concat()).expect(0).json(), &low, 0)["old"], 1);
}

#[test]
fn what_stands_against_groups_is_said_before_the_first_record() {
    let (kafka, archive, topic) = (shared(), Archive::new(), unique("groups-refused"));
    let from = base();
    archive.fill(&topic, 0, &[(Format::Avro, sparse(1, 300, from))]);
    let target = format!("{topic}.copy");
    let args = |more: &[&str]| {
        let args = ["--all", "--topics", &topic, "--rename", "(.*)=$1.copy", "--groups"];
        archive.replay(&[&args[..], more].concat())
    };
    let refused = |more: &[&str], status: i32, says: &str| {
        let said = args(more).expect(status);
        assert!(said.stderr.contains(says) || said.stdout.contains(says), "{says:?}:\n{}{}", said.stdout, said.stderr);
        assert_eq!(kafka.partitions(&target), None, "nothing was sent");
    };
    let name = format!("{topic}-reader");
    refused(&[&name], 1, "keeps no consumer groups");
    keep_groups(
        &archive.store,
        &[(from, json!({ &name: group(&[(&topic, 0, 100)]), "elsewhere": group(&[("x", 0, 1)]) }))],
    );
    refused(&["nobody"], 1, "means no consumer group");
    refused(&["^[", "--dry-run"], 2, "is not a regex");
    refused(&[&name, "--groups-at", "2001-01-01T00:00:00Z"], 1, "what is kept begins at");
    refused(&[&name, "--groups-at", "2101-01-01T00:00:00Z"], 2, "ahead of now");
    refused(&["elsewhere"], 1, "none of these groups has a position");
    refused(&[&name, "--unrecorded"], 2, "--unrecorded");
    let stdout = archive.replay(&["--all", "--topics", &topic, "--to-stdout", "--groups", &name]).expect(2);
    assert!(stdout.stderr.contains("--to-stdout"), "{}", stdout.stderr);
    let read = format!("{topic}.read");
    kafka.create_topic(&read, 1, &[]);
    for protocol in ["classic", "consumer"] {
        let mut config = kafka.config();
        config.set("group.id", &name).set("group.protocol", protocol);
        let member: BaseConsumer = config.create().expect("a consumer can be made");
        member.subscribe(&[&read]).expect("it subscribes");
        wait_until("it to be a member", PATIENCE, || {
            drop(member.poll(Duration::from_millis(100)));
            let said = args(&[&name, "--dry-run"]);
            said.stdout.contains(&format!("the group {name} has members on the target"))
                || said.stderr.contains("has members")
        });
        refused(&[&name], 1, &format!("the group {name} has members"));
        drop(member);
        wait_until("it to be gone", PATIENCE, || args(&[&name, "--dry-run"]).status == Some(0));
        kafka.delete_group(&name);
    }
    // Begun without, it has no map.
    let id = unique("r-without");
    let without = ["--all", "--topics", &topic, "--rename", "(.*)=$1.copy", "--id", &id];
    archive.replay(&without).expect(0);
    let with = archive.replay(&[&without[..], &["--groups", &name]].concat()).expect(2);
    assert!(with.stderr.contains("was begun without --groups"), "{}", with.stderr);
}

#[test]
fn who_joins_while_records_are_sent_is_left_alone_and_named_and_the_same_command_tries_again() {
    let (kafka, archive, topic) = (shared(), Archive::new(), unique("groups-joined"));
    let from = base();
    archive.fill(&topic, 0, &[(Format::Avro, sparse(1, 3_000, from))]);
    let (joined, quiet) = (format!("{topic}-joined"), format!("{topic}-quiet"));
    let kept = json!({ &joined: group(&[(&topic, 0, 1_000)]), &quiet: group(&[(&topic, 0, 2_000)]) });
    keep_groups(&archive.store, &[(from, kept)]);
    let (id, target) = (unique("r-joined"), format!("{topic}.copy"));
    let pattern = format!("^{topic}-");
    let args = [
        "-c",
        "tidelog.toml",
        "replay",
        "--all",
        "--topics",
        &topic,
        "--rename",
        "(.*)=$1.copy",
        "--id",
        &id,
        "--groups",
        &pattern,
    ];
    let mut program = archive.home.start(&[&args[..], &["--rate", "400/s"]].concat());
    wait_until("some of it to be sent", PATIENCE, || {
        program.assert_running();
        sent_so_far(kafka, &target) > 0
    });
    let mut config = kafka.config();
    config.set("group.id", &joined).set("enable.auto.commit", "false");
    let member: BaseConsumer = config.create().expect("a consumer can be made");
    member.subscribe(&[&target]).expect("it subscribes");
    wait_until("it to have the partition", PATIENCE, || {
        drop(member.poll(Duration::from_millis(100)));
        member.assignment().expect("an assignment").count() > 0
    });
    // It stays a member for as long as the replay runs.
    while program.is_running() {
        drop(member.poll(Duration::from_millis(100)));
    }
    let said = program.output();
    assert_eq!(program.wait(PATIENCE), 3, "{said}");
    assert!(said.contains(&format!("these groups are not where they were: {joined}")), "{said}");
    let went = went(kafka, &target, 0);
    assert_eq!(kafka.committed(&quiet, &target)[&0], went[&2_001], "the others are in nobody's way");
    assert!(kafka.committed(&joined, &target).is_empty());
    drop(member);
    wait_until("it to have left", PATIENCE, || archive.replay(&[&args[3..], &["--json"]].concat()).status == Some(0));
    assert_eq!(kafka.committed(&joined, &target)[&0], went[&1_000]);
}

#[test]
fn positions_of_a_topic_that_was_created_again_and_of_a_replay_after_another_are_told_apart() {
    let (kafka, archive, topic) = (shared(), Archive::new(), unique("groups-again"));
    let from = base();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    // Both generations have the same offsets; the second one says so in its records.
    let second = |range: std::ops::Range<i64>| -> Vec<Archived> {
        let of = |offset| Archived {
            value: Some(format!("second offset {}", 10_000 + offset).into_bytes()),
            ..Archived::new(0, offset, from + 1_000 + offset)
        };
        range.filter(|offset| offset % 5 != 4).map(of).collect()
    };
    let mut newest = runtime.block_on(async {
        let mut first = Topic::begin(&archive.store, &topic, 0).await;
        first.append(Format::Avro, &sparse(1, 300, from)).await;
        let mut newest = Topic::begin(&archive.store, &topic, 1).await;
        newest.append(Format::Parquet, &second(0..100)).await;
        newest
    });
    let name = format!("{topic}-reader");
    keep_groups(&archive.store, &[(from, json!({ &name: group(&[(&topic, 0, 50)]) }))]);
    let (target, pattern) = (format!("{topic}.copy"), format!("^{topic}-"));
    let (first, then) = (unique("r-first"), unique("r-then"));
    let base = ["--topics", &topic, "--rename", "(.*)=$1.copy", "--groups", &pattern, "--json"];
    let of = |more: &[&str]| archive.replay(&[&base[..], more].concat());
    let sent = of(&["--all", "--id", &first]).expect(0).json();
    let before = went(kafka, &target, 0);
    assert_eq!(
        position(&sent, &name, 0)["new"],
        before[&10_050],
        "a position of then is one of the second generation: {sent}"
    );

    runtime.block_on(newest.append(Format::Avro, &second(100..200)));
    let sent = of(&["--after", &first, "--id", &then]).expect(0).json();
    assert_eq!(sent["records"], 80, "{sent}");
    assert_eq!(position(&sent, &name, 0)["new"], before[&10_050], "the replay before has sent that record: {sent}");
    assert_eq!(position(&sent, &name, 0)["answer"], "exact");

    // One that goes on after a replay without a map cannot tell.
    let (bare, after) = (unique("r-bare"), unique("r-after"));
    let bare_target = ["--topics", &topic, "--rename", "(.*)=$1.bare", "--json"];
    archive.replay(&[&bare_target[..], &["--all", "--id", &bare]].concat()).expect(0);
    runtime.block_on(newest.append(Format::Avro, &second(200..210)));
    let refused = archive
        .replay(&[&bare_target[..], &["--after", &bare, "--id", &after, "--groups", &pattern]].concat())
        .expect(1);
    assert!(refused.stderr.contains(&format!("the replay {bare} has no whole map")), "{}", refused.stderr);
}

#[test]
fn a_map_of_which_a_piece_is_missing_sets_nothing_and_says_so() {
    let (kafka, archive, topic) = (shared(), Archive::new(), unique("groups-hole"));
    let from = base();
    archive.fill(&topic, 0, &[(Format::Avro, sparse(1, 300, from))]);
    let name = format!("{topic}-reader");
    keep_groups(&archive.store, &[(from, json!({ &name: group(&[(&topic, 0, 100)]) }))]);
    let id = unique("r-hole");
    let args = ["--all", "--topics", &topic, "--rename", "(.*)=$1.copy", "--id", &id, "--groups", &name];
    archive.replay(&args).expect(0);
    kafka.delete_group(&name);
    let map = archive.home.path().join("archive/replays").join(&id).join("map");
    let pieces: Vec<_> = std::fs::read_dir(&map).expect("the map").map(|piece| piece.expect("a file").path()).collect();
    let bytes = std::fs::read(&pieces[0]).expect("a piece");
    std::fs::remove_file(&pieces[0]).expect("it can be removed");
    let said = archive.replay(&args).expect(3);
    assert!(said.stderr.contains("is not whole"), "{}", said.stderr);
    std::fs::write(&pieces[0], bytes).expect("it can be put back");
    // The group was deleted meanwhile, so it is set again.
    let again = archive.replay(&[&args[..], &["--json"]].concat()).expect(0).json();
    assert_eq!(state_of(&again, &name), "set");
    assert_eq!(kafka.committed(&name, &format!("{topic}.copy"))[&0], went(kafka, &format!("{topic}.copy"), 0)[&100]);
}
