//! What the Kafka pipeline counts for `/metrics`. Handles are taken once; a count is one addition to an atomic number,
//! made for a segment or an event and never for a record.

use std::sync::Arc;

use metrics::Counter;

use super::seal_reason::SealReason;
use crate::stream::{GapReason, SegmentRef};
use crate::telemetry::metrics::{
    ARCHIVED_BYTES, ARCHIVED_RECORDS, FENCE_CONFLICTS, GAPS, REBALANCES, SEGMENTS_SEALED, STORED_BYTES,
    UNREAD_PARTITIONS,
};

/// This part's value of the label `kind`.
const KIND: (&str, &str) = ("kind", "kafka");

/// What is counted for the whole process.
pub(super) struct Counters {
    pub(super) rebalances: Counter,
    pub(super) conflicts: Counter,
    removed: Counter,
    unreadable: Counter,
    pub(super) unread: Counter,
    sealed: [Counter; SealReason::ALL.len()],
}

impl Counters {
    pub(super) fn new() -> Self {
        let sealed = |reason: SealReason| SEGMENTS_SEALED.counter(&[KIND, ("reason", reason.name())]);
        let lost = |reason: GapReason| GAPS.counter(&[KIND, ("reason", reason.name())]);
        Self {
            rebalances: REBALANCES.counter(&[]),
            conflicts: FENCE_CONFLICTS.counter(&[]),
            unread: UNREAD_PARTITIONS.counter(&[]),
            removed: lost(GapReason::BrokerRetention),
            unreadable: lost(GapReason::Unreadable),
            sealed: SealReason::ALL.map(sealed),
        }
    }

    /// Counts a range that is lost.
    pub(super) fn lost(&self, reason: GapReason) {
        let counter = if reason == GapReason::Unreadable { &self.unreadable } else { &self.removed };
        counter.increment(1);
    }

    pub(super) fn sealed(&self, reason: SealReason) {
        self.sealed[reason as usize].increment(1);
    }
}

/// What is counted for a topic.
pub(super) struct TopicCounters {
    records: Counter,
    raw_bytes: Counter,
    stored_bytes: Counter,
}

impl TopicCounters {
    pub(super) fn new(label: &Arc<str>) -> Self {
        let topic = ("topic", &**label);
        Self {
            records: ARCHIVED_RECORDS.counter(&[topic]),
            raw_bytes: ARCHIVED_BYTES.counter(&[KIND, topic]),
            stored_bytes: STORED_BYTES.counter(&[KIND, topic]),
        }
    }

    /// Counts a segment that is in a checkpoint.
    pub(super) fn archived(&self, segment: &SegmentRef) {
        self.records.increment(segment.records());
        self.raw_bytes.increment(segment.raw_bytes);
        self.stored_bytes.increment(segment.bytes);
    }
}
