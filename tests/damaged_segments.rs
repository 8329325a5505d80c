//! Segments that cannot be read: what lies in others is given all the same, no partition is given with a hole in it, and what
//! was left out comes by itself once the object is back.
//!
//! ```text
//!   four partitions in segments of several ─► a byte flipped, a file cut, a file gone ─► cat, replay, --to-stdout, --speed
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::archive::{Record, Topic, on_disk};
use crate::rig::kafka::{Kafka, shared};
use crate::rig::program::{Home, Output};
use crate::rig::s3::{Bucket, s3s_fs};
use crate::rig::s3_proxy::{Fault, Proxy, Rule};
use crate::rig::unique;
use tidelog::stream::Format;

/// An archive of the topics `orders`, of four partitions in three segments each, and `sound`, of one.
struct Shelf {
    home: Home,
    /// The segments of `orders`: offsets 0..100, 100..200, and 200..300 of each partition.
    segments: Vec<PathBuf>,
}

impl Shelf {
    fn new(format: Format) -> Shelf {
        let home = Home::new();
        let path = home.path().display();
        home.write("tidelog.toml", &format!("[archive]\nurl = \"file://{path}/archive\"\nspool_dir = \"{path}\"\n"));
        let archive = home.path().join("archive");
        Shelf::filled(home, &archive, format)
    }

    /// One whose archive is read through a bucket.
    fn in_bucket(bucket: &Bucket, format: Format) -> Shelf {
        let home = Home::new();
        let options: String = bucket.options().iter().map(|(key, value)| format!("{key} = {value:?}\n")).collect();
        let (url, path) = (bucket.url(), home.path().display());
        let archive = format!("[archive]\nurl = \"{url}/archive\"\nspool_dir = \"{path}\"\n");
        home.write("tidelog.toml", &format!("{archive}[archive.options]\n{options}"));
        let files = bucket.files().expect("a server that keeps files").join("archive");
        Shelf::filled(home, &files, format)
    }

    fn filled(home: Home, archive: &Path, format: Format) -> Shelf {
        fs::create_dir_all(archive).expect("a directory");
        let store = on_disk(archive);
        let segments = tokio::runtime::Runtime::new().expect("a runtime").block_on(async {
            let records = |partitions: i32, offsets: std::ops::Range<i64>| -> Vec<Record> {
                let of = |partition| offsets.clone().map(move |offset| large(partition, offset));
                (0..partitions).flat_map(of).collect()
            };
            let mut orders = Topic::begin_with(&store, "orders", 0, 4).await;
            let mut segments = Vec::new();
            for start in [0, 100, 200] {
                segments.push(archive.join(orders.append(format, &records(4, start..start + 100)).await));
            }
            Topic::begin(&store, "sound", 0).await.append(format, &records(1, 0..50)).await;
            segments
        });
        Shelf { home, segments }
    }

    /// Keeps the second segment of `orders` beside the archive, and changes it.
    fn damage(&self, change: impl FnOnce(Vec<u8>) -> Option<Vec<u8>>) {
        let bytes = fs::read(&self.segments[1]).expect("the segment");
        fs::write(self.home.path().join("aside"), &bytes).expect("a copy");
        match change(bytes) {
            Some(changed) => fs::write(&self.segments[1], changed).expect("damage can be done"),
            None => fs::remove_file(&self.segments[1]).expect("damage can be done"),
        }
    }

    fn repair(&self) {
        fs::copy(self.home.path().join("aside"), &self.segments[1]).expect("the copy");
    }

    fn run(&self, args: &[&str]) -> Output {
        self.home.run(&[&["-c", "tidelog.toml"], args].concat())
    }
}

/// A record that does not compress; those of the segment that is damaged are so large that a partition has blocks of its own.
fn large(partition: i32, offset: i64) -> Record {
    let seed = (i64::from(partition) * 1_000 + offset).unsigned_abs();
    let word = |n: u64| (seed * 10_000 + n).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let words = if (100..200).contains(&offset) { 1_600 } else { 16 };
    let value: Vec<u8> = (0..words).flat_map(|n| word(n).to_le_bytes()).collect();
    Record { value: Some(value), ..Record::new(partition, offset, 1_000 + offset) }
}

/// The offsets of a topic's partitions among JSON lines, which must come in order and without a hole.
fn offsets(lines: &[serde_json::Value], topic: &str) -> BTreeMap<i64, i64> {
    let mut ends: BTreeMap<i64, i64> = BTreeMap::new();
    for line in lines.iter().filter(|line| line["topic"] == topic) {
        let (partition, offset) = (line["partition"].as_i64().expect("a number"), line["offset"].as_i64());
        let end = ends.entry(partition).or_default();
        assert_eq!(offset, Some(*end), "{topic} partition {partition} has a hole or comes twice");
        *end += 1;
    }
    ends
}

/// The records of a topic of Kafka, by partition, which must be those that were archived.
fn sent(kafka: &Kafka, topic: &str) -> BTreeMap<i32, i64> {
    let mut ends: BTreeMap<i32, i64> = BTreeMap::new();
    for record in kafka.consume_all(topic) {
        let end = ends.entry(record.partition).or_default();
        let expected = large(record.partition, *end);
        assert_eq!((&record.key, &record.value), (&expected.key, &expected.value), "{topic}: {record:?}");
        *end += 1;
    }
    ends
}

/// Flips a byte in the middle of a file: in a page of one of the partitions.
fn flipped(mut bytes: Vec<u8>) -> Option<Vec<u8>> {
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x40;
    Some(bytes)
}

fn cut(mut bytes: Vec<u8>) -> Option<Vec<u8>> {
    bytes.truncate(bytes.len() / 2);
    Some(bytes)
}

/// What was printed or sent of the four partitions: all of them whole but those that stop in the damaged segment.
fn assert_stopped(ends: impl Iterator<Item = i64>, least_whole: usize, how: &str) {
    let ends: Vec<i64> = ends.collect();
    let whole = ends.iter().filter(|end| **end == 300).count();
    let stopped = ends.iter().filter(|end| (100..200).contains(*end)).count();
    assert_eq!((ends.len(), whole + stopped), (4, 4), "{how}: {ends:?}");
    assert!(stopped > 0 && whole >= least_whole, "{how}: {ends:?}");
}

fn everything_but_the_damage_is_given(format: Format, least_whole: usize, change: fn(Vec<u8>) -> Option<Vec<u8>>) {
    let shelf = Shelf::new(format);
    shelf.damage(change);
    let object = shelf.segments[1].file_name().expect("a name").to_string_lossy().into_owned();
    let told = |output: &Output| {
        assert_eq!(output.stderr.lines().filter(|line| line.contains(&object)).count(), 1, "{}", output.stderr);
        assert!(output.stderr.contains("restore the object"), "{}", output.stderr);
    };
    let range = ["--from", "1970-01-01T00:00:00Z", "--to", "2000-01-01T00:00:00Z"];
    let commands: [&[&str]; 3] =
        [&["cat", "--topic", "^"], &["replay", "--to-stdout"], &["replay", "--to-stdout", "--speed", "1000000x"]];
    for command in commands {
        let output = shelf.run(&[command, if command[0] == "cat" { &[] } else { &range[..] }].concat()).expect(3);
        let lines = output.json_lines();
        assert_eq!(offsets(&lines, "sound"), [(0, 50)].into(), "{command:?}");
        assert_stopped(offsets(&lines, "orders").into_values(), least_whole, &format!("{command:?}"));
        told(&output);
    }
    let (kafka, id) = (shared(), unique("damaged"));
    let (rename, into) = (format!("^={id}."), kafka.bootstrap());
    let replay = ["replay", "--all", "--json", "--rename", &rename, "--into", &into, "--id", &id];
    let orders = format!("{id}.orders");
    // Typed again it sends nothing twice, and says the same.
    for _ in 0..2 {
        let output = shelf.run(&replay).expect(3);
        let outcome = output.json();
        assert_eq!(outcome["finished"], false, "{outcome}");
        let warnings = outcome["warnings"].to_string();
        assert!(warnings.contains(&object) && warnings.contains("stops before offset"), "{warnings}");
        assert!(output.stderr.contains("all is replayed but orders partition"), "{}", output.stderr);
        assert_stopped(sent(kafka, &orders).into_values(), least_whole, "replay");
        assert_eq!(sent(kafka, &format!("{id}.sound")), [(0, 50)].into());
    }
    // Once the object is back, the same id sends the rest.
    shelf.repair();
    assert_eq!(shelf.run(&replay).expect(0).json()["finished"], true);
    assert_eq!(sent(kafka, &orders), (0..4).map(|partition| (partition, 300)).collect());
    assert_eq!(shelf.run(&replay).expect(0).json()["records"], 0);
}

#[test]
fn a_flipped_byte_in_parquet_stops_the_partitions_of_its_row_group() {
    everything_but_the_damage_is_given(Format::Parquet, 0, flipped);
}

#[test]
fn a_flipped_byte_in_avro_stops_the_partitions_of_its_block_and_behind_it() {
    everything_but_the_damage_is_given(Format::Avro, 1, flipped);
}

#[test]
fn a_cut_file_and_a_missing_one_stop_the_partitions_that_lie_in_them() {
    everything_but_the_damage_is_given(Format::Avro, 0, cut);
    everything_but_the_damage_is_given(Format::Parquet, 0, |_| None);
}

#[test]
fn a_partition_stops_for_good_in_later_generations_of_its_topic_too() {
    let shelf = Shelf::new(Format::Parquet);
    let archive = shelf.home.path().join("archive");
    let store = on_disk(&archive);
    tokio::runtime::Runtime::new().expect("a runtime").block_on(async {
        let records: Vec<Record> = (0..4).map(|partition| Record::new(partition, 0, 1_000)).collect();
        Topic::begin_with(&store, "orders", 1, 4).await.append(Format::Parquet, &records).await;
    });
    shelf.damage(|_| None);
    let lines = shelf.run(&["cat", "--topic", "orders"]).expect(3).json_lines();
    assert_eq!(offsets(&lines, "orders"), (0..4).map(|partition| (partition, 100)).collect());
}

#[test]
fn a_segment_that_may_not_be_read_stops_its_partitions_and_nothing_else() {
    let mut bucket = s3s_fs();
    let proxy = Proxy::before(&mut bucket);
    let shelf = Shelf::in_bucket(&bucket, Format::Parquet);
    let object = shelf.segments[1].file_name().expect("a name").to_string_lossy().into_owned();
    let refused = proxy.add(Rule::new("GET", &object, Fault::Answer(403, "AccessDenied")));
    let output = shelf.run(&["cat", "--topic", "^"]).expect(3);
    let lines = output.json_lines();
    assert_eq!(offsets(&lines, "sound"), [(0, 50)].into());
    assert_eq!(offsets(&lines, "orders"), (0..4).map(|partition| (partition, 100)).collect());
    assert!(refused.met() > 0 && output.stderr.contains("the right to read it"), "{}", output.stderr);
    proxy.clear();
    let lines = shelf.run(&["cat", "--topic", "^"]).expect(0).json_lines();
    assert_eq!(offsets(&lines, "orders"), (0..4).map(|partition| (partition, 300)).collect());
}
