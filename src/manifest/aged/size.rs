//! What of a chain lies beyond a size: the oldest, as long as at least so many bytes stay of what was archived last.
//!
//! ```text
//!   entries            0 ─ 1 ─ 2 ─ 3 ─ …                 ─ head
//!   bytes now          70  –  40  64                            of the segments that end with that entry; none where it has none
//!   surplus of 120     ├──────────┤                             what is there less what is to stay: 70 + 40 go, with 64 too much would
//! ```
//!
//! Counted is what is there now: what a merge made of segments counts, with its own bytes, where the last of them stood.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::error::Result;
use crate::manifest::{Chain, Selection};
use crate::stream::{Body, PartitionRange, SegmentRef};

/// Whether an entry lies beyond the size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fit {
    /// It goes, with all before it.
    Goes,
    /// It has no bytes: it goes with one behind it that does.
    Empty,
    /// It stays.
    Stays,
}

/// How much more may go, over a walk from entry to entry.
#[derive(Debug)]
pub(super) struct Surplus {
    pub(super) left: u64,
    /// So much would have to be left that more goes, once something stays.
    pub(super) wanted: Option<u64>,
    /// Where the partitions end with the entry that was looked at last.
    ends: BTreeMap<i32, i64>,
    /// The segments of the entries that are looked at next.
    segments: Vec<SegmentRef>,
}

impl Surplus {
    /// Begins behind these ends of partitions, of which so many bytes are still there: something that is read keeps them, and they go
    /// later. None where nothing more goes.
    pub(super) fn beyond(chain: &Chain, kept: u64, (ends, going): (BTreeMap<i32, i64>, u64)) -> Option<Self> {
        let surplus = chain.totals().present().stored_bytes.saturating_sub(kept);
        let left = surplus.saturating_sub(going);
        (left > 0).then_some(Self { left, wanted: None, ends, segments: Vec::new() })
    }

    /// Looks the segments of the next entries up.
    pub(super) async fn look_ahead<'a>(
        &mut self,
        chain: &Chain,
        entries: impl Iterator<Item = &'a Body>,
    ) -> Result<()> {
        let mut window: BTreeMap<i32, Range<i64>> = BTreeMap::new();
        for range in entries.flat_map(Body::ranges) {
            window.entry(range.partition).and_modify(|at| at.end = range.end).or_insert(range.start..range.end);
        }
        self.segments.clear();
        if !window.is_empty() {
            let selected = chain.select(&Selection { timestamps: None, partitions: Some(window) }).await?;
            // The beginning of one may lie before the entries, its end never.
            let later = |segment: &SegmentRef| !self.ends_all(&segment.partitions);
            self.segments = selected.segments.into_iter().filter(later).collect();
        }
        Ok(())
    }

    /// Goes on over one entry.
    pub(super) fn fit(&mut self, chain: &Chain, entry: &Body) -> Fit {
        self.ends.extend(entry.ranges().iter().map(|range| (range.partition, range.end)));
        let segments = std::mem::take(&mut self.segments);
        let (ended, open): (Vec<_>, Vec<_>) = segments.into_iter().partition(|one| self.ends_all(&one.partitions));
        self.segments = open;
        if ended.is_empty() {
            let is_gone =
                |(partition, end): (&i32, &i64)| chain.position(*partition).is_some_and(|now| *end <= now.start);
            return if self.ends.iter().all(is_gone) { Fit::Goes } else { Fit::Empty };
        }
        let bytes = ended.iter().map(|segment| segment.bytes).fold(0, u64::saturating_add);
        match self.left.checked_sub(bytes) {
            Some(left) => {
                self.left = left;
                Fit::Goes
            }
            None => {
                // Whatever comes behind it stays.
                (self.left, self.wanted) = (0, self.wanted.or(Some(bytes)));
                Fit::Stays
            }
        }
    }

    /// Whether these ranges have come to their ends.
    fn ends_all(&self, ranges: &[PartitionRange]) -> bool {
        ranges.iter().all(|range| self.ends.get(&range.partition).is_some_and(|end| range.end <= *end))
    }
}
