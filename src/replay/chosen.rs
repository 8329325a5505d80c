//! Which records of a plan are sent, where not all of them are: offsets by generation and partition.
//!
//! Whoever judges records (a cut at a commit) does it before the replay and hands over what came of it. It is written down with
//! the plan, so the same id sends the same records whatever the archive has learned since.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::stream::TopicGeneration;

/// Offsets of one partition, in order, apart from each other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kept(Vec<Range<i64>>);

impl Kept {
    /// Takes a record in. Records come in the order of their offsets; `after` is the offset after the last record that was judged
    /// before this one, so that offsets without a record do not split what belongs together.
    pub fn add(&mut self, after: i64, offset: i64) {
        match self.0.last_mut() {
            Some(last) if last.end >= after => last.end = offset.saturating_add(1),
            _ => self.0.push(offset..offset.saturating_add(1)),
        }
    }

    /// Makes one of ranges, which are in order and apart from each other.
    pub fn of(ranges: Vec<Range<i64>>) -> Self {
        Self(ranges)
    }

    /// Returns the ranges.
    pub fn ranges(&self) -> &[Range<i64>] {
        &self.0
    }

    /// From the first offset that is kept to behind the last; nothing if none is.
    pub fn extent(&self) -> Option<Range<i64>> {
        Some(self.0.first()?.start..self.0.last()?.end)
    }

    /// Returns what of it lies in `range`.
    pub fn within(&self, range: &Range<i64>) -> Vec<Range<i64>> {
        let from = self.0.partition_point(|kept| kept.end <= range.start);
        let within = self.0[from..].iter().take_while(|kept| kept.start < range.end);
        within.map(|kept| kept.start.max(range.start)..kept.end.min(range.end)).collect()
    }

    /// Whether an offset is kept.
    pub fn has(&self, offset: i64) -> bool {
        let at = self.0.partition_point(|kept| kept.end <= offset);
        self.0.get(at).is_some_and(|kept| kept.start <= offset)
    }
}

/// The records that are sent. Nothing is sent of a stream or a partition that is not in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chosen(pub BTreeMap<TopicGeneration, BTreeMap<i32, Kept>>);

impl Chosen {
    /// Returns what is sent of a generation of a topic.
    pub fn of(&self, stream: &TopicGeneration) -> BTreeMap<i32, Kept> {
        self.0.get(stream).cloned().unwrap_or_default()
    }

    /// Whether the same is sent by both: of a partition of which nothing is, one of them may not know.
    pub fn is_same_as(&self, other: &Self) -> bool {
        self.ranges().eq(other.ranges())
    }

    fn ranges(&self) -> impl Iterator<Item = (&TopicGeneration, i32, &Range<i64>)> {
        self.0.iter().flat_map(|(stream, partitions)| {
            partitions.iter().flat_map(move |(partition, kept)| {
                let ranges = kept.ranges().iter().filter(|range| !range.is_empty());
                ranges.map(move |range| (stream, *partition, range))
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_was_taken_in_is_kept_and_nothing_else(records in prop::collection::vec((1_i64..4, any::<bool>()), 0..60)) {
            let (mut kept, mut offset, mut after) = (Kept::default(), 0, i64::MIN);
            let mut judged = BTreeMap::new();
            for (step, is_kept) in records {
                offset += step;
                judged.insert(offset, is_kept);
                if is_kept {
                    kept.add(after, offset);
                }
                after = offset + 1;
            }
            for (&offset, &is_kept) in &judged {
                prop_assert_eq!(kept.has(offset), is_kept);
            }
            let between = kept.within(&(5..40));
            for (&offset, &is_kept) in judged.range(5..40) {
                prop_assert_eq!(between.iter().any(|range| range.contains(&offset)), is_kept);
            }
            prop_assert!(between.iter().all(|range| range.start >= 5 && range.end <= 40 && !range.is_empty()));
        }
    }

    #[test]
    fn what_is_chosen_is_the_same_if_its_ranges_are() {
        let chosen = |partitions: &[(i32, &[Range<i64>])]| {
            let kept = partitions.iter().map(|(partition, ranges)| (*partition, Kept::of(ranges.to_vec())));
            let stream = TopicGeneration::new("main", "t", 0);
            Chosen([(stream, kept.collect())].into())
        };
        let begun = chosen(&[(0, &[3..9, 12..13])]);
        assert!(begun.is_same_as(&chosen(&[(0, &[3..9, 12..13]), (1, &[])])), "nothing is sent of partition 1");
        assert!(!begun.is_same_as(&chosen(&[(0, &[3..9, 12..14])])), "a late record");
        assert!(!begun.is_same_as(&chosen(&[(0, &[3..9, 12..13]), (1, &[0..1, 5..6])])));
        assert!(Chosen::default().is_same_as(&chosen(&[(0, &[])])));
    }
}
