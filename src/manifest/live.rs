//! Which segments are needed: those that no merge has replaced, no expiry covers, and whose timeline was not abandoned.
//!
//! Entries flow in one by one. Before each, what it says of others can be held against them: that a merge replaces just
//! what covers its ranges, and, of WAL, that an expiry retires just what lies before.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::stream::invariants::{self, Checked};
use crate::stream::{Body, Expire, Gap, Merge, Retired, SegmentRef};

/// The segments that are needed, by each partition that they cover and where they start in it.
#[derive(Debug, Default)]
pub(super) struct Live {
    segments: BTreeMap<(i32, i64), Arc<SegmentRef>>,
    /// What is lost of a topic.
    gaps: Vec<Gap>,
    is_of_records: bool,
}

impl Live {
    /// Those of a topic. What an expiry says that it retires of it is believed: nothing is decided by it.
    pub(super) fn of_records() -> Self {
        Self { is_of_records: true, ..Self::default() }
    }

    /// Whether `body` fits these segments.
    pub(super) fn allows(&self, body: &Body) -> Checked {
        if let Some(merge) = body.merge() {
            invariants::merge_replaces_its_range(merge, &self.covered(merge), &self.gaps)?;
        }
        if let Some(abandon) = body.abandon() {
            invariants::abandon_adds_up(abandon, &Retired::of(self.of_timeline(abandon.partition)))?;
        }
        let expire = body.expire().filter(|_| !self.is_of_records);
        expire.map_or(Ok(()), |expire| invariants::expire_adds_up(expire, &Retired::of(self.before(expire))))
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
        for expired in body.expire().into_iter().flat_map(|expire| &expire.ranges) {
            let of = (expired.partition, i64::MIN)..(expired.partition, expired.before);
            let ends_before = |segment: &SegmentRef| {
                segment.partitions.iter().any(|at| at.partition == expired.partition && at.end <= expired.before)
            };
            let below = self.segments.range(of).filter(|(_, segment)| ends_before(segment));
            let gone: Vec<(i32, i64)> = below.map(|(place, _)| *place).collect();
            gone.iter().for_each(|place| drop(self.segments.remove(place)));
            self.gaps.retain(|gap| gap.partition != expired.partition || expired.before < gap.end);
        }
        if self.is_of_records {
            self.gaps.extend(body.gaps().iter().cloned());
        }
        for segment in body.segments().iter().chain(body.merge().map(|merge| &merge.segment)) {
            let segment = Arc::new(segment.clone());
            for range in &segment.partitions {
                self.segments.insert((range.partition, range.start), Arc::clone(&segment));
            }
        }
    }

    /// The segments of a timeline.
    fn of_timeline(&self, partition: i32) -> impl Iterator<Item = &SegmentRef> {
        self.segments.range((partition, i64::MIN)..=(partition, i64::MAX)).map(|(_, segment)| &**segment)
    }

    /// The segments that lie in the ranges of a merge: what it names in its order, then what it does not.
    fn covered(&self, merge: &Merge) -> Vec<SegmentRef> {
        let ranges = merge.segment.partitions.iter().filter(|range| range.start < range.end);
        let places = ranges.map(|range| (range.partition, range.start)..(range.partition, range.end));
        let found = places.flat_map(|places| self.segments.range(places));
        let mut found: BTreeMap<&str, &SegmentRef> =
            found.map(|(_, segment)| (segment.object.as_str(), &**segment)).collect();
        let named: Vec<&SegmentRef> =
            merge.replaces.iter().filter_map(|object| found.remove(object.as_str())).collect();
        named.into_iter().chain(found.into_values()).cloned().collect()
    }

    /// The segments that an expiry expires.
    fn before<'a>(&'a self, expire: &'a Expire) -> impl Iterator<Item = &'a SegmentRef> {
        let of = |expired: &crate::stream::Expired| {
            let below = self.segments.range((expired.partition, i64::MIN)..(expired.partition, expired.before));
            let before = expired.before;
            below
                .map(|(_, segment)| &**segment)
                .filter(move |segment| segment.partitions.iter().all(|at| at.end <= before))
        };
        expire.ranges.iter().flat_map(of)
    }
}
