//! What of a segment a replay can send, as its checkpoint tells.

use crate::segment::Filter;
use crate::stream::PartitionRange;

/// What is sent of one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlannedPartition {
    /// The partition, in the source and in the target.
    pub partition: i32,
    /// The first source offset.
    pub start: i64,
    /// The source offset after the last.
    pub end: i64,
    /// How many records, or how many at most.
    pub records: u64,
    /// Whether `records` is exact.
    pub exact: bool,
    /// The least timestamp that can come.
    pub min_timestamp: i64,
    /// The greatest timestamp that can come.
    pub max_timestamp: i64,
}

impl PlannedPartition {
    pub(super) fn add(&mut self, more: &Self) {
        self.start = self.start.min(more.start);
        self.end = self.end.max(more.end);
        self.records = self.records.saturating_add(more.records);
        self.exact &= more.exact;
        self.min_timestamp = self.min_timestamp.min(more.min_timestamp);
        self.max_timestamp = self.max_timestamp.max(more.max_timestamp);
    }
}

/// Returns what of a segment's range can pass `filter`, if anything.
pub(super) fn matching(range: &PartitionRange, filter: &Filter) -> Option<PlannedPartition> {
    let all = range.start..range.end;
    let wanted = match &filter.partitions {
        Some(ranges) => ranges.get(&range.partition)?,
        None => &all,
    };
    let (start, end) = (range.start.max(wanted.start), range.end.min(wanted.end));
    let (min, max) = (range.min_timestamp?, range.max_timestamp?);
    let times = filter.timestamps.clone().unwrap_or(i64::MIN..i64::MAX);
    if start >= end || max < times.start || min >= times.end {
        return None;
    }
    let whole = start == range.start && end == range.end;
    Some(PlannedPartition {
        partition: range.partition,
        start,
        end,
        records: range.records.min((end - start).unsigned_abs()),
        exact: whole && min >= times.start && (max < times.end || filter.timestamps.is_none()),
        min_timestamp: min.max(times.start),
        max_timestamp: max.min(times.end - 1),
    })
}
