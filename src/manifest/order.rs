//! Segments of records in their order once some of them were merged.
//!
//! An entry that merges stands far behind what it replaces, so the order of entries is no order of records any more. What counts is
//! that the ranges of each partition follow each other, as whoever reads takes them one after the other:
//!
//! ```text
//!   appended   a0 ─ a1 ─ a2 ─ a3        p0 │ a0 │ merged │ a3 │
//!   merged     a1 + a2 = merged         p1 │    │ merged │ a3 │        ─►  a0, merged, a3
//! ```

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use crate::stream::SegmentRef;

/// Puts `merged` among `appended`, which are in order, so that the ranges of each partition follow each other. Where partitions leave
/// it open, what was merged comes first: it is older.
pub(super) fn in_order(appended: Vec<SegmentRef>, merged: Vec<SegmentRef>) -> Vec<SegmentRef> {
    if merged.is_empty() {
        return appended;
    }
    let mut segments: Vec<Option<SegmentRef>> = merged.into_iter().chain(appended).map(Some).collect();
    let (followers, mut before) = neighbours(&segments);
    let mut free: BinaryHeap<Reverse<usize>> =
        before.iter().enumerate().filter(|(_, before)| **before == 0).map(|(at, _)| Reverse(at)).collect();
    let mut left: BTreeSet<usize> = (0..segments.len()).collect();
    let mut ordered = Vec::with_capacity(segments.len());
    // No chain of ours has a circle; in one that somebody else wrote, the first one that is left goes on.
    while let Some(at) = free.pop().map(|Reverse(at)| at).or_else(|| left.first().copied()) {
        if !left.remove(&at) {
            continue;
        }
        ordered.extend(segments.get_mut(at).and_then(Option::take));
        for follower in followers.get(at).into_iter().flatten() {
            if let Some(before) = before.get_mut(*follower) {
                *before = before.saturating_sub(1);
                free.extend((*before == 0).then_some(Reverse(*follower)));
            }
        }
    }
    ordered
}

/// Which segments follow each of these in some partition, and how many come before each.
fn neighbours(segments: &[Option<SegmentRef>]) -> (Vec<Vec<usize>>, Vec<usize>) {
    let mut partitions: BTreeMap<i32, Vec<(i64, usize)>> = BTreeMap::new();
    for (at, segment) in segments.iter().enumerate() {
        for range in segment.iter().flat_map(|segment| &segment.partitions) {
            partitions.entry(range.partition).or_default().push((range.start, at));
        }
    }
    let (mut followers, mut before) = (vec![Vec::new(); segments.len()], vec![0; segments.len()]);
    for mut ranges in partitions.into_values() {
        ranges.sort_unstable();
        for pair in ranges.windows(2) {
            if let [(_, first), (_, second)] = *pair
                && let (Some(of), Some(count)) = (followers.get_mut(first), before.get_mut(second))
            {
                of.push(second);
                *count += 1;
            }
        }
    }
    (followers, before)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::stream::{Format, PartitionRange};

    fn segment(name: &str, ranges: &[(i32, i64, i64)]) -> SegmentRef {
        let range = |&(partition, start, end): &(i32, i64, i64)| PartitionRange {
            partition,
            start,
            end,
            records: 0,
            min_timestamp: None,
            max_timestamp: None,
        };
        SegmentRef {
            object: name.to_owned(),
            format: Format::Parquet,
            bytes: 1,
            sha256: String::new(),
            raw_bytes: 1,
            largest_record: 1,
            partitions: ranges.iter().map(range).collect(),
            last: Vec::new(),
            generation: 0,
            minimal: None,
        }
    }

    proptest! {
        /// Runs of segments are merged, and some are not selected: each partition is in order, and all are there once.
        #[test]
        fn each_partition_is_in_order_whatever_was_merged(
            appends in prop::collection::vec(prop::collection::btree_map(0..4_i32, 1..5_i64, 1..4), 1..30),
            cuts in prop::collection::vec((0..30_usize, 2..6_usize, any::<bool>()), 0..8),
        ) {
            let mut ends = BTreeMap::new();
            let mut appended: Vec<SegmentRef> = Vec::new();
            for (number, lengths) in appends.iter().enumerate() {
                let ranges: Vec<_> = lengths.iter().map(|(partition, length)| {
                    let end: &mut i64 = ends.entry(*partition).or_default();
                    let start = *end;
                    *end += length;
                    (*partition, start, *end)
                }).collect();
                appended.push(segment(&format!("a{number}"), &ranges));
            }
            let (mut merged, mut gone) = (Vec::new(), BTreeSet::new());
            for (from, length, selected) in cuts {
                let run = from..(from + length).min(appended.len());
                if run.len() < 2 || run.clone().any(|at| gone.contains(&at)) {
                    continue;
                }
                let mut hull: BTreeMap<i32, (i64, i64)> = BTreeMap::new();
                for range in run.clone().flat_map(|at| &appended[at].partitions) {
                    hull.entry(range.partition).or_insert((range.start, range.end)).1 = range.end;
                }
                let ranges: Vec<_> = hull.into_iter().map(|(partition, (start, end))| (partition, start, end)).collect();
                merged.extend(selected.then(|| segment(&format!("m{from}"), &ranges)));
                gone.extend(run);
            }
            // As an entry would be that was written at another time.
            merged.reverse();
            let kept = appended.iter().enumerate().filter(|(at, _)| !gone.contains(at)).map(|(_, one)| one.clone());
            let kept: Vec<SegmentRef> = kept.collect();
            let count = kept.len() + merged.len();
            let ordered = in_order(kept.clone(), merged);
            prop_assert_eq!(ordered.len(), count);
            for partition in 0..4 {
                let starts: Vec<i64> = ordered.iter().flat_map(|one| &one.partitions)
                    .filter(|range| range.partition == partition).map(|range| range.start).collect();
                prop_assert!(starts.is_sorted(), "partition {}: {:?}", partition, starts);
            }
            let left: Vec<&String> = ordered.iter().map(|one| &one.object).filter(|name| name.starts_with('a')).collect();
            if ordered.len() == kept.len() {
                prop_assert_eq!(left, kept.iter().map(|one| &one.object).collect::<Vec<_>>(), "nothing was merged");
            }
        }
    }

    #[test]
    fn a_circle_that_somebody_wrote_ends() {
        let one = segment("one", &[(0, 0, 5), (1, 5, 10)]);
        let other = segment("other", &[(0, 5, 10), (1, 0, 5)]);
        assert_eq!(in_order(vec![one], vec![other]).len(), 2);
    }
}
