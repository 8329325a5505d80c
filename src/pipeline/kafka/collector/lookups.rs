//! The look-ups of positions: which question of a partition counts, and what is asked again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use crate::source::kafka::TopicPartition;

/// The partitions whose positions are being looked up, each with the number of the question that counts: an answer to an
/// earlier one may be of a generation that has ended since.
#[derive(Default)]
pub(super) struct PositionLookups {
    tickets: BTreeMap<TopicPartition, u64>,
    next: u64,
    /// Those that have no answer now, and when they are asked for again.
    unresolved: Vec<(Instant, Vec<TopicPartition>)>,
}

impl PositionLookups {
    pub(super) fn len(&self) -> usize {
        self.tickets.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tickets.is_empty()
    }

    pub(super) fn has(&self, at: &TopicPartition) -> bool {
        self.tickets.contains_key(at)
    }

    pub(super) fn ask(&mut self, partitions: &[TopicPartition]) -> u64 {
        self.next += 1;
        self.tickets.extend(partitions.iter().map(|at| (at.clone(), self.next)));
        self.next
    }

    /// The question was answered, for this partition well or not at all. False if it was asked again since, or is not
    /// wanted any more.
    pub(super) fn take(&mut self, at: &TopicPartition, ticket: u64) -> bool {
        let counts = self.tickets.get(at) == Some(&ticket);
        if counts {
            self.tickets.remove(at);
        }
        counts
    }

    pub(super) fn forget(&mut self, at: &TopicPartition) {
        self.tickets.remove(at);
    }

    /// Nothing more comes of question `ticket`.
    pub(super) fn end(&mut self, ticket: u64) {
        self.tickets.retain(|_, known| *known != ticket);
    }

    /// The topics of which some position is being looked up.
    pub(super) fn topics(&self) -> BTreeSet<&str> {
        self.tickets.keys().map(|at| &*at.topic).collect()
    }

    /// There is no answer now: the partitions are asked for again at `due`.
    pub(super) fn put_off(&mut self, due: Instant, partitions: Vec<TopicPartition>) {
        self.ask(&partitions);
        self.unresolved.push((due, partitions));
    }

    /// Returns whether some are to be asked for again.
    pub(super) fn has_put_off(&self) -> bool {
        !self.unresolved.is_empty()
    }

    /// Takes those that are to be asked for again now, all that are due together. What the group has taken away meanwhile (`owns` says
    /// so) is forgotten.
    pub(super) fn due(&mut self, now: Instant, owns: impl Fn(&TopicPartition) -> bool) -> Vec<TopicPartition> {
        let mut together = Vec::new();
        for (due, mut partitions) in std::mem::take(&mut self.unresolved) {
            partitions.retain(|at| owns(at) && self.has(at));
            if due <= now {
                together.append(&mut partitions);
            } else if !partitions.is_empty() {
                self.unresolved.push((due, partitions));
            }
        }
        together
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(partition: i32) -> TopicPartition {
        TopicPartition::new("orders", partition)
    }

    #[test]
    fn only_the_answer_to_the_last_question_counts() {
        let mut lookups = PositionLookups::default();
        let first = lookups.ask(&[at(0), at(1), at(2)]);
        let second = lookups.ask(&[at(1)]);
        assert!(lookups.take(&at(0), first) && !lookups.take(&at(0), first), "once");
        assert!(!lookups.take(&at(1), first), "it was asked again since");
        assert!(lookups.take(&at(1), second));
        lookups.forget(&at(2));
        assert!(!lookups.take(&at(2), first) && lookups.is_empty(), "the group has taken it away");
        let third = lookups.ask(&[at(3), at(4)]);
        assert!(lookups.take(&at(3), third));
        lookups.end(third);
        assert_eq!(lookups.len(), 0, "nothing more comes of it");
    }

    #[test]
    fn what_has_no_answer_is_asked_for_again_when_it_is_due_unless_it_was_taken_away() {
        let (mut lookups, start) = (PositionLookups::default(), Instant::now());
        let later = |seconds| start + Duration::from_secs(seconds);
        lookups.put_off(later(1), vec![at(0), at(1)]);
        lookups.put_off(later(2), vec![at(2)]);
        lookups.put_off(later(9), vec![at(3)]);
        assert!(lookups.has_put_off() && lookups.due(start, |_| true).is_empty());
        lookups.forget(&at(1));
        assert_eq!(lookups.due(later(2), |at| at.partition != 0), [at(2)]);
        assert_eq!(lookups.due(later(9), |_| true), [at(3)]);
        assert!(!lookups.has_put_off() && lookups.due(later(99), |_| true).is_empty());
    }
}
