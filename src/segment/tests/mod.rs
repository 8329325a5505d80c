//! What is written comes back; what is damaged is refused.

mod damage;
mod golden;
mod merging;
mod other_readers;
mod round_trip;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use chrono::DateTime;
use object_store::ObjectStoreExt;
use object_store::memory::InMemory;
use proptest::prelude::*;

use super::*;
use crate::error::Kind;
use crate::record::{Header, Record, TimestampType};
use crate::stream::TopicGeneration;

/// A record that owns its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Owned {
    partition: i32,
    offset: i64,
    timestamp: i64,
    timestamp_type: TimestampType,
    leader_epoch: i32,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

impl Owned {
    fn of(partition: i32, record: &Record<'_>) -> Self {
        Self {
            partition,
            offset: record.offset,
            timestamp: record.timestamp,
            timestamp_type: record.timestamp_type,
            leader_epoch: record.leader_epoch,
            key: record.key.map(<[u8]>::to_vec),
            value: record.value.map(<[u8]>::to_vec),
            headers: record.headers().map(|h| (h.name.to_vec(), h.value.map(<[u8]>::to_vec))).collect(),
        }
    }

    fn push_to(&self, block: &mut Block) {
        let headers = self.headers.iter().map(|(name, value)| Header { name, value: value.as_deref() });
        block.push(
            self.offset,
            self.timestamp,
            self.timestamp_type,
            self.leader_epoch,
            self.key.as_deref(),
            self.value.as_deref(),
            headers,
        );
    }
}

fn bytes(longest: usize) -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        3 => prop::collection::vec(any::<u8>(), 0..longest),
        1 => "[a-z]{0,20}".prop_map(String::into_bytes),
    ]
}

fn timestamps() -> impl Strategy<Value = i64> {
    prop_oneof![8 => 1_000_i64..2_000, 1 => Just(-1), 1 => any::<i64>()]
}

/// A record without its place; the number is the hole before its offset.
fn record() -> impl Strategy<Value = (i64, Owned)> {
    let parts = (
        prop_oneof![4 => Just(1_i64), 1 => 1_i64..1_000],
        timestamps(),
        prop::sample::select(TimestampType::ALL.to_vec()),
        -1..5,
        prop::option::of(bytes(40)),
        prop::option::of(bytes(200)),
        prop::collection::vec((bytes(12), prop::option::of(bytes(12))), 0..4),
    );
    parts.prop_map(|(hole, timestamp, timestamp_type, leader_epoch, key, value, headers)| {
        let owned = Owned { partition: 0, offset: 0, timestamp, timestamp_type, leader_epoch, key, value, headers };
        (hole, owned)
    })
}

/// Calls of the writer, each with its blocks, each with its records.
pub(super) type Calls = Vec<Vec<Vec<Owned>>>;

fn calls(most: usize) -> impl Strategy<Value = Calls> {
    let block = (0..4_i32, prop::collection::vec(record(), 0..most));
    prop::collection::vec(prop::collection::vec(block, 0..5), 1..4).prop_map(|calls| {
        let mut next: BTreeMap<i32, i64> = BTreeMap::new();
        let mut place = |partition: i32, records: Vec<(i64, Owned)>| {
            let next = next.entry(partition).or_insert(100 * i64::from(partition));
            let place = |(hole, record)| {
                *next += hole;
                Owned { partition, offset: *next, ..record }
            };
            records.into_iter().map(place).collect::<Vec<_>>()
        };
        calls.into_iter().map(|call| call.into_iter().map(|(p, records)| place(p, records)).collect()).collect()
    })
}

fn info() -> SegmentInfo {
    SegmentInfo {
        stream: TopicGeneration::new("main", "cdc.orders", 2),
        topic_id: Some("p8Bm5Jq_TDqyy2zL9Dg_Kw".into()),
        writer: "a41c".into(),
        created: DateTime::from_timestamp_millis(1_763_822_345_678).unwrap(),
    }
}

fn encoding(format: Format) -> Encoding {
    Encoding { format, zstd_level: 1 }
}

/// The ranges that the records need, by partition.
fn ranges(records: &[Owned]) -> Vec<(i32, i64, i64)> {
    let mut ranges: BTreeMap<i32, (i64, i64)> = BTreeMap::new();
    for record in records {
        let range = ranges.entry(record.partition).or_insert((record.offset, record.offset));
        range.1 = record.offset + 1;
    }
    ranges.into_iter().map(|(partition, (start, end))| (partition, start, end)).collect()
}

fn flat(calls: &Calls) -> Vec<Owned> {
    calls.iter().flatten().flatten().cloned().collect()
}

fn write(path: &Path, format: Format, calls: &Calls) -> Result<Sealed> {
    let mut writer = SegmentWriter::create(path, info(), encoding(format))?;
    for call in calls {
        writer.write(call.iter().map(|records| block(records)).collect())?;
    }
    writer.finish(&ranges(&flat(calls)))
}

fn block(records: &[Owned]) -> Block {
    let mut block = Block::new(records.first().map_or(0, |record| record.partition), 0);
    records.iter().for_each(|record| record.push_to(&mut block));
    block
}

/// Writes a segment and gives what it is and its bytes.
fn encoded(format: Format, calls: &Calls) -> (Sealed, Vec<u8>) {
    let folder = tempfile::tempdir().unwrap();
    let sealed = write(&folder.path().join("segment"), format, calls).unwrap();
    let bytes = std::fs::read(&sealed.path).unwrap();
    (sealed, bytes)
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

/// Reads a segment of these bytes.
fn read(bytes: &[u8], size: u64, format: Format, filter: Filter) -> Result<(SegmentFacts, Vec<Owned>)> {
    wait(async {
        let store = Arc::new(InMemory::new());
        let path = object_store::path::Path::from("segment");
        store.put(&path, bytes.to_vec().into()).await.unwrap();
        let mut reader = SegmentReader::open(store, &path, size, format, filter).await?;
        let mut records = Vec::new();
        while let Some(block) = reader.next().await? {
            records.extend(block.iter().map(|record| Owned::of(block.partition(), &record)));
        }
        Ok((reader.facts().clone(), records))
    })
}

/// The order that a reader keeps: offsets within each partition.
fn by_partition(mut records: Vec<Owned>) -> Vec<Owned> {
    records.sort_by_key(|record| record.partition);
    records
}
