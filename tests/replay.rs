//! Replays: what comes out equals what was archived, in whatever way it is asked for and however often it is stopped.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;
use rdkafka::Timestamp;
use serde_json::{Value, json};
use tidelog::config::TopicPattern;
use tidelog::replay::{self, Counters, Only, Plan, Query, Rename, Tempo};
use tidelog::store::Store;
use tidelog::stream::Format;

use crate::archive::{Record, Topic, memory, on_disk};
use crate::rig::kafka::{Kafka, KafkaOptions, shared};
use crate::rig::program::{Home, Output};
use crate::rig::topics::{self, Isolation};
use crate::rig::{unique, wait_until};
use crate::source::reader::{self, Reader};

// ---- by time, against brute force

/// What a sink of JSON lines wrote.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no panic").write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Partition, offset and timestamp of every record that `query` gives, in the order in which they come.
async fn replayed(store: &Store, query: &Query, tempo: Tempo) -> Vec<(i64, i64, i64)> {
    let sources = replay::sources(store, None, query).await.expect("the archive answers").sources;
    let plan = Arc::new(Plan::new(sources, query, &Rename::default()).expect("a plan"));
    let (lines, counters) = (Lines::default(), Arc::new(Counters::default()));
    let sent = replay::to_lines(store, &plan, tempo, Only::default(), lines.clone(), &counters, std::future::pending());
    let tally = sent.await.expect("records come");
    let (most, exact) = plan.records();
    assert!(if exact { tally.records == most } else { tally.records <= most }, "{} of {most}", tally.records);
    let text = lines.0.lock().expect("no panic").clone();
    let number = |record: &Value, field: &str| record[field].as_i64().expect("a number");
    let time = |record: &Value| {
        let text = record["timestamp"].as_str().expect("a time");
        tidelog::time::parse(text, chrono::DateTime::default()).expect("RFC 3339")
    };
    let line = |line: &[u8]| {
        let record: Value = serde_json::from_slice(line).expect("JSON");
        (number(&record, "partition"), number(&record, "offset"), time(&record))
    };
    text.split(|byte| *byte == b'\n').filter(|bytes| !bytes.is_empty()).map(line).collect()
}

/// A segment, Avro or Parquet, by partition, step to the next offset, and timestamp of its records.
type Drawn = (bool, Vec<(i32, i64, i64)>);

/// Records of three partitions in segments, with timestamps in any order and offsets with holes.
fn segments() -> impl Strategy<Value = Vec<Drawn>> {
    let record = (0i32..3, 1i64..4, 0i64..1_000);
    prop::collection::vec((any::<bool>(), prop::collection::vec(record, 1..40)), 1..6)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn replay_by_time_equals_brute_force(segments in segments(), start in 0i64..1_000, length in 1i64..1_000) {
        let range = start..start + length;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let (all, in_order, by_time) = runtime.block_on(async {
            let store = memory();
            let mut topic = Topic::begin(&store, "orders", 0).await;
            let mut next = [0; 3];
            let mut all: Vec<(i64, i64, i64)> = Vec::new();
            for (avro, records) in segments {
                let records: Vec<Record> = records.into_iter().map(|(partition, step, timestamp)| {
                    let offset = &mut next[usize::try_from(partition).expect("small")];
                    *offset += step;
                    Record::new(partition, *offset, timestamp)
                }).collect();
                all.extend(records.iter().map(|record| (i64::from(record.partition), record.offset, record.timestamp)));
                topic.append(if avro { Format::Avro } else { Format::Parquet }, &records).await;
            }
            let query = Query { timestamps: Some(range.clone()), ..Query::default() };
            let in_order = replayed(&store, &query, Tempo::default()).await;
            let fast = Tempo { speed: Some("1000000x".parse().expect("a speed")), ..Tempo::default() };
            (all, in_order, replayed(&store, &query, fast).await)
        });
        let mut expected: Vec<_> = all.into_iter().filter(|(_, _, timestamp)| range.contains(timestamp)).collect();
        expected.sort_unstable();
        for (way, records) in [("in order", &in_order), ("by time", &by_time)] {
            let mut sorted = records.clone();
            sorted.sort_unstable();
            prop_assert_eq!(&sorted, &expected, "{}", way);
            for partition in 0..3 {
                let offsets: Vec<i64> = records.iter().filter(|(p, _, _)| *p == partition).map(|(_, offset, _)| *offset).collect();
                prop_assert!(offsets.is_sorted(), "{}: partition {} in offset order", way, partition);
            }
        }
        // Side by side, no partition runs ahead: a record waits for every earlier one that its partition's order lets go.
        let mut clocks: BTreeMap<i64, i64> = BTreeMap::new();
        let due: Vec<i64> = by_time.iter().map(|(partition, _, timestamp)| {
            let clock = clocks.entry(*partition).or_insert(*timestamp);
            *clock = (*clock).max(*timestamp);
            *clock
        }).collect();
        prop_assert!(due.is_sorted(), "merged by time: {:?}", due);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn generations_of_a_topic_come_one_after_the_other_and_topics_apart() {
    let store = memory();
    for (topic, generation) in [("orders", 0), ("orders", 1), ("users", 0)] {
        let mut topic = Topic::begin(&store, topic, generation).await;
        topic.append(Format::Avro, &[Record::new(0, 5, 100 - i64::from(generation))]).await;
    }
    let named = |name: &str| Query { topics: vec![TopicPattern::Name(name.into())], ..Query::default() };
    assert_eq!(replayed(&store, &named("orders"), Tempo::default()).await, [(0, 5, 100), (0, 5, 99)]);
    let fast = Tempo { speed: Some("1000000x".parse().expect("a speed")), ..Tempo::default() };
    assert_eq!(replayed(&store, &named("orders"), fast).await, [(0, 5, 100), (0, 5, 99)], "the old generation first");
    assert_eq!(replayed(&store, &named("users"), Tempo::default()).await.len(), 1);
    let newest = Query { offsets: Some("5..6".parse().expect("offsets")), ..named("orders") };
    assert_eq!(replayed(&store, &newest, Tempo::default()).await, [(0, 5, 99)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limited_or_stopped_replay_ends_early_and_cleanly() {
    let store = memory();
    let mut topic = Topic::begin(&store, "orders", 0).await;
    let records: Vec<Record> = (0..5_000).map(|offset| Record::new(0, offset, 1_000 + offset)).collect();
    topic.append(Format::Parquet, &records).await;
    let sources = replay::sources(&store, None, &Query::default()).await.expect("the archive answers").sources;
    let plan = Arc::new(Plan::new(sources, &Query::default(), &Rename::default()).expect("a plan"));
    let counters = Arc::new(Counters::default());
    let seven = Only { limit: Some(7), key: None };
    let limited =
        replay::to_lines(&store, &plan, Tempo::default(), seven, Lines::default(), &counters, std::future::pending());
    assert_eq!(limited.await.expect("seven records").records, 7);
    let slow = Tempo { rate: Some("100/s".parse().expect("a rate")), ..Tempo::default() };
    let stop = tokio::time::sleep(Duration::from_millis(300));
    let stopped = replay::to_lines(&store, &plan, slow, Only::default(), Lines::default(), &counters, stop);
    let records = stopped.await.expect("a stop is no error").records;
    assert!((1..100).contains(&records), "{records} records in 0.3 s at 100/s");
}

// ---- into Kafka

/// A home with an archive of its own on disk, and the shared broker as its cluster.
pub(crate) struct Archive {
    pub(crate) home: Home,
    pub(crate) store: Store,
}

impl Archive {
    pub(crate) fn new() -> Archive {
        Archive::beside(shared())
    }

    pub(crate) fn beside(kafka: &Kafka) -> Archive {
        let home = Home::new();
        let directory = home.path().join("archive");
        std::fs::create_dir(&directory).expect("a directory can be made");
        let (url, spool) = (url::Url::from_directory_path(&directory).expect("a path"), home.path().join("spool"));
        let config = format!(
            "[archive]\nurl = \"{url}\"\nspool_dir = \"{}\"\n[kafka]\ncluster = \"main\"\nbootstrap_servers = \"{}\"\ntopics = [\"^tailed-\"]\n",
            spool.display(),
            kafka.bootstrap()
        );
        home.write("tidelog.toml", &config);
        Archive { home, store: on_disk(&directory) }
    }

    /// Archives segments of a topic.
    pub(crate) fn fill(&self, topic: &str, generation: u32, segments: &[(Format, Vec<Record>)]) {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        runtime.block_on(async {
            let mut topic = Topic::begin(&self.store, topic, generation).await;
            for (format, records) in segments {
                topic.append(*format, records).await;
            }
        });
    }

    pub(crate) fn replay(&self, args: &[&str]) -> Output {
        self.home.run(&[&["-c", "tidelog.toml", "replay"], args].concat())
    }
}

/// What a record should look like in the target: everything but the offset.
pub(crate) type Shape = (i32, Timestamp, Option<Vec<u8>>, Option<Vec<u8>>, Vec<(String, Option<Vec<u8>>)>);

pub(crate) fn expected(records: &[Record]) -> Vec<Shape> {
    let headers = |record: &Record| {
        let text = |name: &Vec<u8>| String::from_utf8(name.clone()).expect("a name that the rig can read");
        record.headers.iter().map(|(name, value)| (text(name), value.clone())).collect()
    };
    let time = |ms| if ms == -1 { Timestamp::NotAvailable } else { Timestamp::CreateTime(ms) };
    let shape = |record: &Record| {
        (record.partition, time(record.timestamp), record.key.clone(), record.value.clone(), headers(record))
    };
    let mut shapes: Vec<(i64, Shape)> = records.iter().map(|record| (record.offset, shape(record))).collect();
    shapes.sort_by_key(|(offset, shape)| (shape.0, *offset));
    shapes.into_iter().map(|(_, shape)| shape).collect()
}

pub(crate) fn found(kafka: &Kafka, topic: &str) -> Vec<Shape> {
    let shape = |record: topics::Record| (record.partition, record.timestamp, record.key, record.value, record.headers);
    kafka.consume(topic, Isolation::Committed).into_iter().map(shape).collect()
}

/// Records of every kind that Kafka knows, over `partitions` partitions with timestamps out of order.
pub(crate) fn all_kinds(partitions: i32, each: i64, base: i64) -> Vec<Record> {
    type Content = (Option<Vec<u8>>, Option<Vec<u8>>, Vec<(Vec<u8>, Option<Vec<u8>>)>);
    let kinds = |offset: i64| -> Content {
        let text = |text: &str| Some(text.as_bytes().to_vec());
        match offset % 7 {
            0 => (None, text("no key"), vec![]),
            1 => (text("tombstone"), None, vec![(b"h".to_vec(), None)]),
            2 => (Some(vec![]), Some(vec![]), vec![(b"empty".to_vec(), Some(vec![]))]),
            3 => (Some(vec![0, 255, 254]), Some((0..=255).collect()), vec![]),
            4 => (None, None, vec![(vec![], Some(b"a name may be empty".to_vec()))]),
            5 => (
                text("dup"),
                text("x"),
                vec![(b"a".to_vec(), text("1")), (b"b".to_vec(), None), (b"a".to_vec(), text("2"))],
            ),
            _ => (text("k"), Some(vec![b'v'; 2_000]), vec![]),
        }
    };
    let record = |partition: i32, offset: i64| {
        let (key, value, headers) = kinds(offset);
        let timestamp = base + (offset * 7_919) % 5_000;
        Record { partition, offset, timestamp, key, value, headers }
    };
    (0..partitions).flat_map(|partition| (0..each).map(move |offset| record(partition, offset))).collect()
}

/// A time of the archive's records: not long ago, so that no broker minds.
pub(crate) fn base() -> i64 {
    tidelog::time::now().timestamp_millis() - 3_600_000
}

#[test]
fn what_is_replayed_equals_what_was_archived() {
    let (kafka, archive, topic) = (shared(), Archive::new(), unique("replay-kinds"));
    let mut records = all_kinds(4, 500, base());
    records[0].timestamp = -1;
    let (first, second): (Vec<Record>, Vec<Record>) = records.iter().cloned().partition(|record| record.offset < 300);
    archive.fill(&topic, 0, &[(Format::Parquet, first), (Format::Avro, second)]);
    let args = ["--from", "1970-01-01T00:00:00Z", "--topics", &topic, "--rename", "(.*)=$1.copy", "--id"];
    let id = unique("r-kinds");
    let target = format!("{topic}.copy");

    // A record without a timestamp lies in no range of times; one from before 1970 on has it.
    let args = [&["--from", "1969-12-31T00:00:00Z"], &args[2..], &[id.as_str()]].concat();
    let dry = archive.replay(&[&args[..], &["--dry-run", "--json"]].concat()).expect(0).json();
    assert_eq!((&dry["dry_run"], &dry["records"], &dry["segments"]), (&json!(true), &json!(2_000), &json!(2)), "{dry}");
    assert!(kafka.partitions(&target).is_none(), "a plan creates nothing");

    let sent = archive.replay(&[&args[..], &["--json"]].concat()).expect(0).json();
    assert_eq!((&sent["records"], &sent["replay_id"]), (&json!(2_000), &json!(id)), "{sent}");
    let partition = &sent["partitions"][1];
    assert_eq!(
        partition,
        &json!({"topic": topic, "partition": 1, "target_topic": target, "generation": 0, "start": 0, "end": 500, "records": 500})
    );
    assert_eq!(kafka.partitions(&target), Some(4));
    assert_eq!(found(kafka, &target), expected(&records));

    let again = archive.replay(&args).expect(0);
    assert!(again.stdout.contains("nothing left to send"), "{}", again.stdout);
    let other = archive.replay(&[&args[2..], &["--from", "2020-01-01T00:00:00Z"]].concat()).expect(2);
    assert!(other.stderr.contains("was begun with --from 1969-12-31T00:00:00.000Z"), "{}", other.stderr);
    let other = archive.replay(&[&args[..], &["--partitions", "1"]].concat()).expect(2);
    assert!(other.stderr.contains("begun with other topics"), "{}", other.stderr);
    assert_eq!(found(kafka, &target).len(), 2_000);
    assert_eq!(kafka.committed(&format!("tidelog-replay-{id}"), &target).get(&1), Some(&500));
}

#[test]
fn a_replay_that_was_killed_or_stopped_goes_on_exactly_once() {
    let (kafka, archive, topic) = (shared(), Archive::new(), unique("replay-killed"));
    let records: Vec<Record> =
        (0..12_000).map(|n| Record::new(i32::try_from(n % 3).expect("small"), n / 3, base() + n)).collect();
    let halves = records.split_at(6_000);
    archive.fill(&topic, 0, &[(Format::Parquet, halves.0.to_vec()), (Format::Avro, halves.1.to_vec())]);
    let (id, target) = (unique("r-killed"), format!("{topic}.copy"));
    // The range moves with the clock: the one that was fixed first has to hold.
    let args = [
        "-c",
        "tidelog.toml",
        "replay",
        "--from=-2h",
        "--to",
        "now",
        "--topics",
        &topic,
        "--rename",
        "(.*)=$1.copy",
        "--id",
        &id,
    ];

    for kill in [true, false, true] {
        let before = sent_so_far(kafka, &target);
        let mut program = archive.home.start(&[&args[..], &["--rate", "500/s"]].concat());
        wait_until("some of it to be committed", Duration::from_secs(60), || {
            program.assert_running();
            sent_so_far(kafka, &target) > before + 1_000
        });
        if kill {
            program.kill();
        } else {
            program.interrupt();
            let said = program.output();
            assert_eq!(program.wait(Duration::from_secs(30)), 1, "{said}");
        }
    }
    let last = archive.replay(&[&args[3..], &["--json"]].concat()).expect(0).json();
    assert!(last["records"].as_u64().expect("a number") < 9_000, "the rest only: {last}");
    assert_eq!(found(kafka, &target), expected(&records));
}

#[test]
fn a_target_that_restarts_meanwhile_is_waited_for() {
    let kafka = Kafka::start(KafkaOptions::default());
    let (archive, topic) = (Archive::beside(&kafka), unique("replay-restart"));
    let records: Vec<Record> =
        (0..8_000).map(|n| Record::new(i32::try_from(n % 3).expect("small"), n / 3, base() + n)).collect();
    archive.fill(&topic, 0, &[(Format::Parquet, records.clone())]);
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
        "1000/s",
    ];
    let mut program = archive.home.start(&args);
    wait_until("some of it to be committed", Duration::from_secs(60), || {
        program.assert_running();
        sent_so_far(&kafka, &target) > 1_000
    });
    kafka.kill(1);
    kafka.restart(1);
    assert_eq!(program.wait(Duration::from_secs(120)), 0);
    assert_eq!(found(&kafka, &target), expected(&records));
}

pub(crate) fn sent_so_far(kafka: &Kafka, topic: &str) -> usize {
    if kafka.partitions(topic).is_some() { kafka.consume_all(topic).len() } else { 0 }
}

#[test]
fn two_generations_of_a_topic_go_into_one_target_in_order() {
    let (kafka, archive, topic) = (shared(), Archive::new(), unique("replay-generations"));
    let from = base();
    let generation =
        |start: i64| -> Vec<Record> { (0..50).map(|offset| Record::new(0, offset, from + start + offset)).collect() };
    archive.fill(&topic, 0, &[(Format::Avro, generation(0))]);
    archive.fill(&topic, 1, &[(Format::Parquet, generation(1_000))]);
    let (id, target) = (unique("r-generations"), format!("{topic}.copy"));
    let args = ["--from", "-2h", "--topics", &topic, "--rename", "(.*)=$1.copy", "--id", &id];
    let sent = archive.replay(&[&args[..], &["--json"]].concat()).expect(0).json();
    assert_eq!(sent["records"], 100, "{sent}");
    let times: Vec<i64> = found(kafka, &target).into_iter().filter_map(|shape| shape.1.to_millis()).collect();
    let expected: Vec<i64> = generation(0).iter().chain(&generation(1_000)).map(|record| record.timestamp).collect();
    assert_eq!(times, expected, "the old generation first");
    assert!(archive.replay(&args).expect(0).stdout.contains("nothing left to send"));
}

#[test]
fn what_does_not_fit_is_said_before_the_first_record() {
    let (kafka, archive, topic) = (shared(), Archive::new(), unique("replay-misfit"));
    archive.fill(&topic, 0, &[(Format::Parquet, all_kinds(3, 70, base()))]);
    let refused = |name: &str, partitions: i32, configs: &[(&str, &str)], named: &[&str]| {
        let target = unique(name);
        kafka.create_topic(&target, partitions, configs);
        let rename = format!(".*={target}");
        let args = ["--from=-2h", "--topics", &topic, "--rename", &rename];
        for mode in [&["--dry-run"] as &[&str], &[]] {
            let said = archive.replay(&[&args[..], mode].concat()).expect(1).stderr;
            for word in named {
                assert!(said.contains(word), "{word} in {said}");
            }
        }
        assert!(kafka.consume(&target, Isolation::Uncommitted).is_empty());
    };
    refused("misfit-narrow", 2, &[], &["has 2 partitions", "need 3"]);
    refused(
        "misfit-small",
        3,
        &[("max.message.bytes", "300")],
        &["at most 300 bytes", "offset 6", "compressed with zstd", "max.message.bytes"],
    );
    refused("misfit-compacted", 3, &[("cleanup.policy", "compact")], &["compacted", "without a key"]);
    refused("misfit-old", 3, &[("message.timestamp.before.max.ms", "60000")], &["refuses timestamps before"]);

    // Smaller than the plan's bound of a record, and yet large enough for every record and its batches.
    let target = unique("fits");
    kafka.create_topic(&target, 3, &[("max.message.bytes", "2400"), ("retention.ms", "60000")]);
    let rename = format!(".*={target}");
    let args = ["--from=-2h", "--topics", &topic, "--rename", &rename, "--json"];
    let said = archive.replay(&args).expect(1).stderr;
    assert!(said.contains("keeps records for") && said.contains("--yes"), "{said}");
    let sent = archive.replay(&[&args[..], &["--yes"]].concat()).expect(0).json();
    assert_eq!(sent["records"], 210, "{sent}");
    assert!(sent["warnings"].to_string().contains("keeps records for"), "{sent}");
}

#[test]
fn a_topic_is_not_sent_into_itself_unasked() {
    let (kafka, archive, topic) = (shared(), Archive::new(), unique("tailed-replay"));
    archive.fill(&topic, 0, &[(Format::Avro, vec![Record::new(0, 0, base())])]);
    kafka.create_topic(&topic, 1, &[]);
    let args = ["--from=-2h", "--topics", &topic];
    let said = archive.replay(&args).expect(2);
    assert!(said.stderr.contains("the very topic") && said.stderr.contains("--yes"), "{}", said.stderr);
    assert!(said.stdout.contains("will be archived again"), "{}", said.stdout);
    // The same cluster under another address is the same cluster.
    let address = shared().bootstrap().replace("127.0.0.1", "localhost");
    archive.replay(&[&args[..], &["--into", &address]].concat()).expect(2);
    assert!(kafka.consume_all(&topic).is_empty());
    archive.replay(&[&args[..], &["--yes"]].concat()).expect(0);
    assert_eq!(kafka.consume_all(&topic).len(), 1);
}

#[test]
fn a_target_that_does_not_answer_is_an_error_and_not_a_wait() {
    let (archive, topic) = (Archive::new(), unique("replay-nobody"));
    archive.fill(&topic, 0, &[(Format::Avro, vec![Record::new(0, 0, base())])]);
    let said = archive.replay(&["--from=-2h", "--topics", &topic, "--into", "127.0.0.1:1"]).expect(1);
    assert!(said.stderr.contains("127.0.0.1:1"), "{}", said.stderr);
}

#[test]
fn the_original_pace_is_kept_into_kafka_too() {
    let (kafka, archive, topic) = (shared(), Archive::new(), unique("replay-pace"));
    let start = base();
    let records: Vec<Record> =
        (0..40).map(|n| Record::new(i32::try_from(n % 4).expect("small"), n / 4, start + n * 100)).collect();
    archive.fill(&topic, 0, &[(Format::Parquet, records.clone())]);
    let sent = archive
        .replay(&["--from=-2h", "--topics", &topic, "--rename", "(.*)=$1.copy", "--speed", "2x", "--json"])
        .expect(0)
        .json();
    let seconds = sent["seconds"].as_f64().expect("a number");
    assert!((1.9..30.0).contains(&seconds), "3.9 s of records at twice the pace took {seconds} s");
    assert_eq!(found(kafka, &format!("{topic}.copy")), expected(&records));
}

#[test]
fn header_names_that_are_no_text_keep_their_bytes() {
    let (archive, topic) = (Archive::new(), unique("replay-names"));
    let headers = vec![(vec![0xff, 0xfe, b'x'], Some(b"1".to_vec())), ("caf\u{e9}".as_bytes().to_vec(), None)];
    let record = Record { headers: headers.clone(), ..Record::new(0, 0, base()) };
    archive.fill(&topic, 0, &[(Format::Parquet, vec![record])]);
    archive.replay(&["--from=-2h", "--topics", &topic, "--rename", "(.*)=$1.copy"]).expect(0);
    let target = reader::at(&format!("{topic}.copy"), 0);
    let mut config = reader::config(&shared().bootstrap(), &[&target.topic], &[]);
    config.group_id = unique("names");
    let mut reader = Reader::new(&config);
    reader.until("record", |reader| !reader.offsets(&target).is_empty());
    assert_eq!(reader.seen[&target][0].headers, headers);
}
