//! What went out.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use super::damage::Stop;

/// What went out so far, for a progress bar on another thread.
#[derive(Debug, Default)]
pub struct Counters {
    records: AtomicU64,
    bytes: AtomicU64,
}

impl Counters {
    /// Records sent.
    pub fn records(&self) -> u64 {
        self.records.load(Ordering::Relaxed)
    }

    /// Bytes of their keys, values and headers.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(super) fn show(&self, tally: &Tally) {
        self.records.store(tally.records, Ordering::Relaxed);
        self.bytes.store(tally.bytes, Ordering::Relaxed);
    }
}

/// What went out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Records.
    pub records: u64,
    /// Bytes of their keys, values and headers.
    pub bytes: u64,
    /// Records whose timestamp, 0, the target's client cannot send: they carry 1.
    pub moved_timestamps: u64,
    /// Records whose schemas have another id at the target.
    pub renumbered: u64,
    /// Whether that was the whole plan.
    pub complete: bool,
    /// The partitions that ended before what cannot be read.
    pub stops: Vec<Stop>,
    /// The segments that were read whole for one key, because they have no filters of keys.
    pub read_whole: u64,
    /// By part of the plan and partition: first offset, offset after the last, records.
    pub partitions: BTreeMap<(usize, i32), (i64, i64, u64)>,
}

impl Tally {
    pub(super) fn add(&mut self, part: usize, partition: i32, offset: i64, bytes: u64) {
        self.records += 1;
        self.bytes += bytes;
        let (_, end, records) = self.partitions.entry((part, partition)).or_insert((offset, offset, 0));
        *end = offset + 1;
        *records += 1;
    }
}
