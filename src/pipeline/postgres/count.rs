//! What the archiver of WAL counts for `/metrics`. Handles are taken once.

use metrics::Counter;

use crate::stream::{GapReason, SegmentRef};
use crate::telemetry::metrics::{ARCHIVED_BYTES, FENCE_CONFLICTS, GAPS, SEGMENTS_SEALED, STORED_BYTES};

/// This part's value of the label `kind`.
const KIND: (&str, &str) = ("kind", "postgres");

/// Why a segment of WAL ends where it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// The LSN is a multiple of 16 MiB.
    Size,
    /// Its first byte is as old as `postgres.max_age`.
    Age,
    /// Nothing more comes of its timeline, or before a gap.
    End,
    /// The process stops.
    Stop,
}

impl Reason {
    const ALL: [Self; 4] = [Self::Size, Self::Age, Self::End, Self::Stop];

    fn name(self) -> &'static str {
        match self {
            Self::Size => "size",
            Self::Age => "age",
            Self::End => "timeline_end",
            Self::Stop => "stop",
        }
    }
}

/// What is counted.
pub(super) struct Counters {
    pub(super) conflicts: Counter,
    pub(super) gaps: Counter,
    raw_bytes: Counter,
    stored_bytes: Counter,
    sealed: [Counter; Reason::ALL.len()],
}

impl Counters {
    pub(super) fn new() -> Self {
        Self {
            conflicts: FENCE_CONFLICTS.counter(&[]),
            gaps: GAPS.counter(&[KIND, ("reason", GapReason::ServerRemovedWal.name())]),
            raw_bytes: ARCHIVED_BYTES.counter(&[KIND]),
            stored_bytes: STORED_BYTES.counter(&[KIND]),
            sealed: Reason::ALL.map(|reason| SEGMENTS_SEALED.counter(&[KIND, ("reason", reason.name())])),
        }
    }

    pub(super) fn sealed(&self, reason: Reason) {
        self.sealed[reason as usize].increment(1);
    }

    /// Counts a segment that is in a checkpoint.
    pub(super) fn archived(&self, segment: &SegmentRef) {
        self.raw_bytes.increment(segment.raw_bytes);
        self.stored_bytes.increment(segment.bytes);
    }
}
