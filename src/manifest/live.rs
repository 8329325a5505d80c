//! Which segments of WAL are needed: those that no merge has replaced, no expiry covers, and whose timeline was not abandoned.
//!
//! Entries flow in one by one. Before each, what it says of others can be held against them: that a merge replaces just
//! what covers its range, and that an expiry retires just what lies before.

use std::collections::BTreeMap;

use crate::stream::invariants::{self, Checked};
use crate::stream::{Body, Expire, Merge, Retired, SegmentRef};

/// The segments that are needed, by partition and start. Each covers one partition.
#[derive(Debug, Default)]
pub(super) struct Live {
    segments: BTreeMap<(i32, i64), SegmentRef>,
}

impl Live {
    /// Whether `body` fits these segments.
    pub(super) fn allows(&self, body: &Body) -> Checked {
        if let Some(merge) = body.merge() {
            invariants::merge_replaces_its_range(merge, &self.covered(merge), &[])?;
        }
        if let Some(abandon) = body.abandon() {
            invariants::abandon_adds_up(abandon, &Retired::of(self.of_timeline(abandon.partition)))?;
        }
        body.expire().map_or(Ok(()), |expire| invariants::expire_adds_up(expire, &Retired::of(self.before(expire))))
    }

    /// Takes in `body`, which fits.
    pub(super) fn take_in(&mut self, body: &Body) {
        if let Some(merge) = body.merge() {
            for segment in self.covered(merge) {
                segment.partitions.iter().for_each(|range| drop(self.segments.remove(&(range.partition, range.start))));
            }
        }
        if let Some(abandon) = body.abandon() {
            self.segments.retain(|(partition, _), _| *partition != abandon.partition);
        }
        if let Some(expire) = body.expire() {
            let gone: Vec<SegmentRef> = self.before(expire).cloned().collect();
            for range in gone.iter().flat_map(|segment| &segment.partitions) {
                self.segments.remove(&(range.partition, range.start));
            }
        }
        for segment in body.segments().iter().chain(body.merge().map(|merge| &merge.segment)) {
            for range in &segment.partitions {
                self.segments.insert((range.partition, range.start), segment.clone());
            }
        }
    }

    /// The segments of a timeline.
    fn of_timeline(&self, partition: i32) -> impl Iterator<Item = &SegmentRef> {
        self.segments.range((partition, i64::MIN)..=(partition, i64::MAX)).map(|(_, segment)| segment)
    }

    /// The segments that lie in the range of a merge.
    fn covered(&self, merge: &Merge) -> Vec<SegmentRef> {
        let Some(range) = merge.segment.partitions.first().filter(|range| range.start < range.end) else {
            return Vec::new();
        };
        let keys = (range.partition, range.start)..(range.partition, range.end);
        self.segments.range(keys).map(|(_, segment)| segment.clone()).collect()
    }

    /// The segments that an expiry expires.
    fn before<'a>(&'a self, expire: &'a Expire) -> impl Iterator<Item = &'a SegmentRef> {
        let of = |expired: &crate::stream::Expired| {
            let below = self.segments.range((expired.partition, i64::MIN)..(expired.partition, expired.before));
            let before = expired.before;
            below
                .map(|(_, segment)| segment)
                .filter(move |segment| segment.partitions.iter().all(|at| at.end <= before))
        };
        expire.ranges.iter().flat_map(of)
    }
}
