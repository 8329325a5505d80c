//! What the archiver of WAL counts for `/metrics`.

use metrics::Counter;

use crate::stream::{GapReason, Lsn, SegmentRef};
use crate::telemetry::metrics::{ARCHIVED_BYTES, FENCE_CONFLICTS, GAPS, SEGMENTS_SEALED, STORED_BYTES};

/// This part's value of the label `kind`.
const KIND: (&str, &str) = ("kind", "postgres");

/// One handle a series, for the life of the archiver.
pub(super) struct Counters {
    raw_bytes: Counter,
    stored_bytes: Counter,
    full: Counter,
    early: Counter,
    pub(super) gaps: Counter,
    pub(super) conflicts: Counter,
}

impl Counters {
    pub(super) fn new() -> Self {
        let sealed = |reason| SEGMENTS_SEALED.counter(&[KIND, ("reason", reason)]);
        Self {
            raw_bytes: ARCHIVED_BYTES.counter(&[KIND]),
            stored_bytes: STORED_BYTES.counter(&[KIND]),
            full: sealed("size"),
            early: sealed("age"),
            gaps: GAPS.counter(&[KIND, ("reason", GapReason::ServerRemovedWal.name())]),
            conflicts: FENCE_CONFLICTS.counter(&[]),
        }
    }

    /// Counts a segment that is in a checkpoint. One that ends at a multiple of `full` was sealed for its size.
    pub(super) fn archived(&self, segment: &SegmentRef, full: u64) {
        self.raw_bytes.increment(segment.raw_bytes);
        self.stored_bytes.increment(segment.bytes);
        let is_full = segment.partitions.iter().all(|range| Lsn::at(range.end).0.is_multiple_of(full));
        if is_full { self.full.increment(1) } else { self.early.increment(1) }
    }
}
