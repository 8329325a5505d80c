//! The chain over a memory store, whole and broken.

mod abandoned;
mod chain;
mod cost;
mod coverage;
mod entered;
mod facts;
mod faulty;
mod formats;
mod holes;
mod interleavings;
mod merges;
mod minimal;
mod packs;
mod paths;
mod scan;
mod select;

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};

use super::{Chain, Change, Outcome, path};
use crate::store::{Store, layout};
use crate::stream::{Begin, Format, Gap, GapReason, PartitionRange, SegmentRef, StreamId, TopicGeneration, sha256};
use faulty::{Faults, Faulty};

fn generation() -> TopicGeneration {
    TopicGeneration::new("main", "orders", 0)
}

fn orders() -> StreamId {
    generation().stream()
}

fn begin_of(id: &str) -> Begin {
    Begin::Topic { topic_id: Some(id.to_owned()), cluster_id: None, partitions: 3, start_offsets: Vec::new() }
}

/// The time of a test, `seconds` after it began.
fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000, 0).unwrap() + TimeDelta::seconds(seconds)
}

/// A range with one record an offset, whose timestamps are its offsets.
fn range(partition: i32, start: i64, end: i64) -> PartitionRange {
    let records = u64::try_from(end - start).unwrap();
    PartitionRange { partition, start, end, records, min_timestamp: Some(start), max_timestamp: Some(end - 1) }
}

fn segment(object: &str, partitions: Vec<PartitionRange>) -> SegmentRef {
    SegmentRef {
        object: layout::segment(&generation(), at(0), object, 0, Format::Parquet).to_string(),
        format: Format::Parquet,
        bytes: 1000,
        sha256: sha256(object.as_bytes()),
        raw_bytes: 5000,
        largest_record: 100,
        partitions,
        last: Vec::new(),
        generation: 0,
        minimal: None,
    }
}

/// The name that a test gave to a segment.
fn called(key: &str) -> String {
    match layout::Name::parse(key).unwrap() {
        layout::Name::Records { writer, .. }
        | layout::Name::Wal { writer, .. }
        | layout::Name::State { writer, .. } => writer,
        layout::Name::Part { part, .. } => part,
    }
}

/// A segment of WAL of one timeline.
fn of_wal(object: &str, timeline: i32, start: i64, end: i64) -> SegmentRef {
    let lsns = start.cast_unsigned()..end.cast_unsigned();
    let key = layout::wal_segment(7, timeline.cast_unsigned(), lsns, object, 0).to_string();
    SegmentRef { object: key, format: Format::Wal, ..segment(object, vec![range(timeline, start, end)]) }
}

fn gap(partition: i32, start: i64, end: i64) -> Gap {
    Gap { partition, start, end, reason: GapReason::BrokerRetention, found: at(0), generation: 0 }
}

fn append(object: &str, partitions: Vec<PartitionRange>) -> Change {
    Change { segments: vec![segment(object, partitions)], ..Change::default() }
}

fn faultless() -> Arc<Faulty> {
    Faulty::new(0, Faults::default())
}

async fn begun(store: &Store) -> Chain {
    Chain::begin(store, &orders(), begin_of("id"), "w", at(0)).await.unwrap()
}

async fn committed(chain: &mut Chain, change: &Change, writer: &str) -> u64 {
    match chain.commit(change, writer, at(1)).await.unwrap() {
        Outcome::Committed { number } => number,
        other => panic!("{other:?}"),
    }
}

/// Commits one segment of ten records of partition 0 until the chain's head is `head`.
async fn grow(chain: &mut Chain, head: u64) {
    while chain.head() < head {
        let start = chain.position(0).map_or(0, |position| position.end);
        let change = append(&format!("s{start}"), vec![range(0, start, start + 10)]);
        committed(chain, &change, "w").await;
    }
}
