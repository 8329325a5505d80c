//! Whether two topics hold the same records, a million as well as three, in constant memory.
//!
//! Same means: for every partition the same keys, values, headers and timestamps in the same order. Offsets may
//! differ (a replay writes no transaction markers and no holes), and so may the timestamp's type.
//!
//! ```text
//!   topic ─► each record ─► SHA-256 of its partition ┐
//!                                                    ├─ equal? else read both again, side by side, to the first difference
//!   topic ─► each record ─► SHA-256 of its partition ┘
//! ```

use std::collections::BTreeMap;

use rdkafka::Message as _;
use rdkafka::message::{BorrowedMessage, Headers};
use sha2::{Digest, Sha256};

use super::kafka::Kafka;
use super::topics::{Isolation, Record};

/// The committed records of a partition: how many, and a hash of all they hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Contents {
    pub(crate) records: u64,
    pub(crate) sha256: String,
}

/// What every partition of `topic` holds; a partition without records is there with none.
pub(crate) fn contents(kafka: &Kafka, topic: &str) -> BTreeMap<i32, Contents> {
    let partitions = kafka.partitions(topic).unwrap_or_else(|| panic!("there is no topic {topic}"));
    let mut running: BTreeMap<i32, (u64, Sha256)> = (0..partitions).map(|p| (p, (0, Sha256::new()))).collect();
    kafka.visit(topic, Isolation::Committed, |message| {
        let (records, hash) = running.get_mut(&message.partition()).expect("a partition of the topic");
        *records += 1;
        add(hash, message);
    });
    let finish = |(partition, (records, hash)): (i32, (u64, Sha256))| {
        let sha256 = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        (partition, Contents { records, sha256 })
    };
    running.into_iter().map(finish).collect()
}

/// Panics with the first record that differs unless both topics hold the same; gives the number of records.
pub(crate) fn assert_same(expected: (&Kafka, &str), actual: (&Kafka, &str)) -> u64 {
    compare(expected, actual).unwrap_or_else(|difference| panic!("{difference}"))
}

/// How many records both topics hold, or what differs first.
pub(crate) fn compare(expected: (&Kafka, &str), actual: (&Kafka, &str)) -> Result<u64, String> {
    let (left, right) = (contents(expected.0, expected.1), contents(actual.0, actual.1));
    let names = format!("{} and {}", expected.1, actual.1);
    if left.len() != right.len() {
        return Err(format!("{names} have {} and {} partitions", left.len(), right.len()));
    }
    for (partition, contents) in &left {
        let other = &right[partition];
        if contents != other {
            let counts = format!("{} and {} records", contents.records, other.records);
            let difference = first_difference(expected, actual, *partition);
            return Err(format!("partition {partition} of {names} differs, {counts}; {difference}"));
        }
    }
    Ok(left.values().map(|contents| contents.records).sum())
}

/// Every field with its length before it, so that no two records run into the same bytes.
fn add(hash: &mut Sha256, message: &BorrowedMessage<'_>) {
    hash.update(message.timestamp().to_millis().unwrap_or(-1).to_le_bytes());
    add_bytes(hash, message.key());
    add_bytes(hash, message.payload());
    let headers = message.headers();
    hash.update((headers.map_or(0, Headers::count) as u64).to_le_bytes());
    for header in headers.iter().flat_map(|headers| headers.iter()) {
        add_bytes(hash, Some(header.key.as_bytes()));
        add_bytes(hash, header.value);
    }
}

fn add_bytes(hash: &mut Sha256, bytes: Option<&[u8]>) {
    let length = bytes.map_or(-1, |bytes| bytes.len() as i64);
    hash.update(length.to_le_bytes());
    hash.update(bytes.unwrap_or_default());
}

fn first_difference(expected: (&Kafka, &str), actual: (&Kafka, &str), partition: i32) -> String {
    let mut left = expected.0.read_partition(expected.1, partition);
    let mut right = actual.0.read_partition(actual.1, partition);
    for number in 0_u64.. {
        let pair = (left.next(), right.next());
        match &pair {
            (None, None) => break,
            (Some(left), Some(right)) if same(left, right) => {}
            _ => {
                return format!(
                    "record {number} (from 0) is\n  {}\nin one and\n  {}\nin the other",
                    show(&pair.0),
                    show(&pair.1)
                );
            }
        }
    }
    "yet they were equal when read again: one of them was still being written".into()
}

fn same(left: &Record, right: &Record) -> bool {
    let fields = |record: &Record| (record.timestamp.to_millis(), record.key.clone(), record.value.clone());
    fields(left) == fields(right) && left.headers == right.headers
}

fn show(record: &Option<Record>) -> String {
    let Some(record) = record else { return "missing".into() };
    let text = |bytes: &Option<Vec<u8>>| match bytes {
        Some(bytes) => format!("{} bytes \"{}\"", bytes.len(), bytes[..bytes.len().min(200)].escape_ascii()),
        None => "null".into(),
    };
    let (key, value) = (text(&record.key), text(&record.value));
    let headers: Vec<String> =
        record.headers.iter().map(|(name, value)| format!("{name:?}: {}", text(value))).collect();
    let Record { offset, timestamp, .. } = record;
    format!("offset {offset}, {timestamp:?}, key {key}, value {value}, headers [{}]", headers.join(", "))
}
