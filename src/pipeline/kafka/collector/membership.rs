//! What the group has given to this process and wants back, and the offsets that it is told.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::assigned::Assigned;
use crate::pipeline::kafka::messages::SegmenterId;
use crate::source::kafka::TopicPartition;

/// How long a revoked partition may wait for its last segment's checkpoint before it is given back without.
const LEAVE_WITHIN: Duration = Duration::from_secs(15);

/// Partitions that the group wants back, and the segments that should be committed first.
struct Leaving {
    partitions: Vec<TopicPartition>,
    waits: Vec<(SegmenterId, u64)>,
    deadline: Instant,
}

/// This process as a member of its group.
#[derive(Default)]
pub(super) struct Membership {
    pub(super) assigned: Assigned,
    leaving: Vec<Leaving>,
    /// Offsets that were archived since they were last committed to the group.
    offsets: BTreeMap<TopicPartition, i64>,
}

impl Membership {
    /// The group wants partitions back: they go once these segments are committed. Those that were `lost` have another owner already,
    /// and go at once.
    pub(super) fn leave(
        &mut self,
        partitions: Vec<TopicPartition>,
        mut waits: Vec<(SegmenterId, u64)>,
        lost: bool,
        now: Instant,
    ) {
        waits.sort_unstable();
        waits.dedup();
        let deadline = if lost { now } else { now + LEAVE_WITHIN };
        self.leaving.push(Leaving { partitions, waits, deadline });
    }

    /// Returns whether nothing is being given back.
    pub(super) fn is_settled(&self) -> bool {
        self.leaving.is_empty()
    }

    /// Returns whether a partition is being given back.
    pub(super) fn is_leaving(&self, at: &TopicPartition) -> bool {
        self.leaving.iter().any(|leaving| leaving.partitions.contains(at))
    }

    /// The group has given partitions again: returns those that were being given back, and are no longer.
    pub(super) fn keep(&mut self, again: &[TopicPartition]) -> Vec<TopicPartition> {
        let again: BTreeSet<&TopicPartition> = again.iter().collect();
        let mut kept = Vec::new();
        for leaving in &mut self.leaving {
            kept.extend(leaving.partitions.extract_if(.., |at| again.contains(at)));
        }
        self.leaving.retain(|leaving| !leaving.partitions.is_empty());
        for at in &kept {
            self.offsets.remove(at);
        }
        kept
    }

    /// Takes the next partitions that may go: all that they wait for is `committed`, or their time is over.
    pub(super) fn next_to_go(
        &mut self,
        now: Instant,
        committed: impl Fn(SegmenterId, u64) -> bool,
    ) -> Option<Vec<TopicPartition>> {
        let goes =
            |leaving: &Leaving| now >= leaving.deadline || leaving.waits.iter().all(|(id, seq)| committed(*id, *seq));
        let index = self.leaving.iter().position(goes)?;
        Some(self.leaving.remove(index).partitions)
    }

    /// Partitions up to these offsets are in the archive.
    pub(super) fn archived(&mut self, offsets: impl IntoIterator<Item = (TopicPartition, i64)>) {
        self.offsets.extend(offsets);
    }

    /// Takes the offsets that the group is to be told.
    pub(super) fn take_offsets(&mut self) -> Vec<(TopicPartition, i64)> {
        std::mem::take(&mut self.offsets).into_iter().collect()
    }

    /// A partition is no longer this member's: its offsets are no longer told.
    pub(super) fn forget(&mut self, at: &TopicPartition) {
        self.offsets.remove(at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(partition: i32) -> TopicPartition {
        TopicPartition::new("orders", partition)
    }

    #[test]
    fn what_is_revoked_goes_when_its_segments_are_committed_or_its_time_is_over() {
        let (mut member, start) = (Membership::default(), Instant::now());
        let (a, b) = (SegmenterId(1), SegmenterId(2));
        member.leave(vec![at(0), at(1)], vec![(a, 3), (a, 3), (b, 1)], false, start);
        member.leave(vec![at(2)], vec![(b, 9)], true, start);
        assert!(member.is_leaving(&at(1)) && !member.is_leaving(&at(3)) && !member.is_settled());
        assert_eq!(member.next_to_go(start, |_, _| false), Some(vec![at(2)]), "it was lost, and waits for nothing");
        assert_eq!(member.next_to_go(start, |id, _| id == a), None, "the other segment is not committed");
        assert_eq!(member.next_to_go(start, |id, seq| (id, seq) != (b, 9)), Some(vec![at(0), at(1)]));
        assert!(member.is_settled());
        member.leave(vec![at(4)], vec![(a, 4)], false, start);
        assert_eq!(member.next_to_go(start + LEAVE_WITHIN, |_, _| false), Some(vec![at(4)]));
    }

    #[test]
    fn what_the_group_gives_again_is_not_given_back_and_its_offsets_are_not_told() {
        let (mut member, start) = (Membership::default(), Instant::now());
        member.archived([(at(0), 10), (at(1), 20)]);
        member.archived([(at(0), 11)]);
        member.leave(vec![at(0), at(1)], vec![(SegmenterId(1), 1)], false, start);
        assert_eq!(member.keep(&[at(0), at(7)]), [at(0)]);
        assert_eq!(member.next_to_go(start, |_, _| true), Some(vec![at(1)]));
        assert_eq!(member.take_offsets(), [(at(1), 20)]);
        member.archived([(at(1), 30)]);
        member.forget(&at(1));
        assert!(member.take_offsets().is_empty());
    }
}
