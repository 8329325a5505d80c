//! Which partitions this member has, and the next offset of each: the pure half of the consumer.
//!
//! ```text
//!   Assigned ──► owned ── assign ──► reading at `next` ── unassign ──► free
//!                  │                    │  ▲
//!                  └── Revoked          └──┘ seek, resume: nothing counts until librdkafka is there
//! ```
//!
//! Why the offsets are tracked here although librdkafka has its own (2.12.1):
//! - `rd_kafka_q_serve_rkmessages` (rdkafka_queue.c) sets the application's position to `offset + 1` for whatever it
//!   returned, also for an end of partition and other errors, whose offset is the one of the *next* fetch. A pause
//!   (`rd_kafka_toppar_pause_resume`, rdkafka_partition.c) then fetches on from there: one record would be skipped.
//!   librdkafka pauses by itself at every rebalance. Such a partition is `ahead`, and is sent back to `next` after it.
//!   (If nothing was appended meanwhile, the fetch lies beyond the log's end and comes back as out of range.)
//! - A pause that comes while a batch is on its way to us fetches the batch again: records below `next` are dropped.

use std::collections::HashMap;
use std::sync::Arc;

use super::TopicPartition;

/// Where a partition stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Slot {
    /// The group gave it to this member.
    pub(super) owned: bool,
    /// librdkafka was told to read it.
    pub(super) reading: bool,
    /// The caller paused it.
    pub(super) paused: bool,
    /// The lowest offset that was not yet given.
    pub(super) next: i64,
    /// librdkafka's idea of the position may be beyond `next`.
    ahead: bool,
    /// librdkafka must be sent to `next`; until then nothing of this partition counts.
    pub(super) away: bool,
}

/// A partition by its topic's index.
pub(super) type Key = (u32, i32);

struct Topic {
    name: Arc<str>,
    slots: Vec<Slot>,
}

/// All partitions that this member has or had.
#[derive(Default)]
pub(super) struct Assignment {
    topics: Vec<Topic>,
    indexes: HashMap<Arc<str>, u32>,
}

impl Assignment {
    /// The index of a topic, for the life of the consumer.
    pub(super) fn index(&mut self, name: &str) -> u32 {
        if let Some(index) = self.indexes.get(name) {
            return *index;
        }
        let name: Arc<str> = name.into();
        let index = u32::try_from(self.topics.len()).unwrap_or(u32::MAX);
        self.topics.push(Topic { name: Arc::clone(&name), slots: Vec::new() });
        self.indexes.insert(name, index);
        index
    }

    pub(super) fn name(&self, index: u32) -> &Arc<str> {
        &self.topics[index as usize].name
    }

    pub(super) fn at(&self, (topic, partition): Key) -> TopicPartition {
        TopicPartition { topic: Arc::clone(self.name(topic)), partition }
    }

    /// The key of a partition that the group has given at some time.
    pub(super) fn key(&self, at: &TopicPartition) -> Option<Key> {
        let topic = *self.indexes.get(&at.topic)?;
        self.slot((topic, at.partition)).map(|_| (topic, at.partition))
    }

    pub(super) fn slot(&self, (topic, partition): Key) -> Option<&Slot> {
        self.topics[topic as usize].slots.get(usize::try_from(partition).ok()?)
    }

    fn slot_mut(&mut self, (topic, partition): Key) -> Option<&mut Slot> {
        self.topics[topic as usize].slots.get_mut(usize::try_from(partition).ok()?)
    }

    fn slots_mut(&mut self) -> impl Iterator<Item = &mut Slot> {
        self.topics.iter_mut().flat_map(|topic| topic.slots.iter_mut())
    }

    /// The partitions whose slot `wanted` names, with their next offsets.
    fn select(&self, wanted: impl Fn(&Slot) -> bool) -> Vec<(Key, i64)> {
        let mut found = Vec::new();
        for (topic, index) in self.topics.iter().zip(0..) {
            let slots = topic.slots.iter().zip(0..).filter(|(slot, _)| wanted(slot));
            found.extend(slots.map(|(slot, partition)| ((index, partition), slot.next)));
        }
        found
    }

    /// The group gave a partition.
    pub(super) fn own(&mut self, topic: &str, partition: i32) -> TopicPartition {
        let index = self.index(topic);
        if let Ok(position) = usize::try_from(partition) {
            let slots = &mut self.topics[index as usize].slots;
            if slots.len() <= position {
                slots.resize(position + 1, Slot::default());
            }
            slots[position].owned = true;
        }
        self.at((index, partition))
    }

    /// The group takes a partition away; it is read until [`Assignment::free`].
    pub(super) fn disown(&mut self, key: Key) {
        if let Some(slot) = self.slot_mut(key) {
            slot.owned = false;
        }
    }

    /// Reading begins at `next`. False for a partition that the group has taken away meanwhile.
    pub(super) fn start(&mut self, key: Key, next: i64) -> bool {
        match self.slot_mut(key) {
            Some(slot) if slot.owned => {
                *slot = Slot { owned: true, reading: true, paused: false, next, ahead: false, away: false };
                true
            }
            _ => false,
        }
    }

    /// Reading has ended.
    pub(super) fn free(&mut self, key: Key) {
        if let Some(slot) = self.slot_mut(key) {
            *slot = Slot { owned: slot.owned, ..Slot::default() };
        }
    }

    /// The caller paused or resumed a partition that is read.
    pub(super) fn set_paused(&mut self, key: Key, paused: bool) {
        if let Some(slot) = self.slot_mut(key) {
            slot.paused = paused;
        }
    }

    /// The caller wants a partition from `next` on.
    pub(super) fn send_to(&mut self, key: Key, next: i64) {
        if let Some(slot) = self.slot_mut(key).filter(|slot| slot.reading) {
            slot.next = next;
            slot.away = true;
        }
    }

    /// A rebalance paused and resumed everything inside librdkafka.
    pub(super) fn shaken(&mut self) {
        for slot in self.slots_mut().filter(|slot| slot.reading && slot.ahead) {
            slot.away = true;
        }
    }

    /// librdkafka is at `next` again.
    pub(super) fn arrived(&mut self, key: Key) {
        if let Some(slot) = self.slot_mut(key) {
            slot.away = false;
            slot.ahead = false;
        }
    }

    /// Whether a record counts; if so, the partition has moved behind it.
    pub(super) fn accept(&mut self, key: Key, offset: i64) -> bool {
        match self.slot_mut(key) {
            Some(slot) if slot.reading && !slot.away && offset >= slot.next => {
                slot.next = offset + 1;
                slot.ahead = false;
                true
            }
            _ => false,
        }
    }

    /// Whether an end of partition at `next` counts.
    pub(super) fn accept_end(&mut self, key: Key, next: i64) -> bool {
        match self.slot_mut(key) {
            Some(slot) if slot.reading && !slot.away && next >= slot.next => {
                slot.next = next;
                slot.ahead = true;
                true
            }
            _ => false,
        }
    }

    /// Whether an error of a partition concerns this member.
    pub(super) fn accept_error(&mut self, key: Key) -> bool {
        match self.slot_mut(key) {
            Some(slot) if slot.reading => {
                slot.ahead = true;
                true
            }
            _ => false,
        }
    }

    /// What the group has given, and whether it is read.
    pub(super) fn owned(&self) -> impl Iterator<Item = (&Arc<str>, i32, bool)> {
        self.topics.iter().flat_map(|topic| {
            let owned = (0..).zip(&topic.slots).filter(|(_, slot)| slot.owned);
            owned.map(|(partition, slot)| (&topic.name, partition, slot.reading))
        })
    }

    /// What librdkafka must be sent to.
    pub(super) fn away(&self) -> Vec<(Key, i64)> {
        self.select(|slot| slot.reading && slot.away)
    }

    /// What is read.
    pub(super) fn reading(&self) -> Vec<(Key, i64)> {
        self.select(|slot| slot.reading)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one() -> (Assignment, Key) {
        let mut assignment = Assignment::default();
        let at = assignment.own("a", 2);
        let key = assignment.key(&at).unwrap();
        assert!(assignment.start(key, 10));
        (assignment, key)
    }

    #[test]
    fn a_record_counts_once_and_in_order() {
        let (mut assignment, key) = one();
        assert!(!assignment.accept(key, 9));
        assert!(assignment.accept(key, 10));
        assert!(!assignment.accept(key, 10));
        assert!(assignment.accept(key, 15), "offsets without a record");
        assert_eq!(assignment.slot(key).unwrap().next, 16);
        assert!(!assignment.accept((key.0, 0), 100), "never assigned");
        assert!(!assignment.accept((key.0, 7), 100), "never heard of");
    }

    #[test]
    fn nothing_counts_between_a_seek_and_its_arrival() {
        let (mut assignment, key) = one();
        assert!(assignment.accept(key, 10));
        assignment.send_to(key, 5);
        assert!(!assignment.accept(key, 11));
        assert!(!assignment.accept_end(key, 12));
        assert_eq!(assignment.away(), [(key, 5)]);
        assignment.arrived(key);
        assert!(assignment.away().is_empty());
        assert!(assignment.accept(key, 5));
    }

    #[test]
    fn a_rebalance_sends_back_only_what_stands_at_its_end() {
        let (mut assignment, key) = one();
        assignment.shaken();
        assert!(assignment.away().is_empty());
        assert!(assignment.accept_end(key, 12));
        assignment.shaken();
        assert_eq!(assignment.away(), [(key, 12)]);
        assignment.arrived(key);
        assert!(assignment.accept_end(key, 12));
        assert!(assignment.accept(key, 12));
        assignment.shaken();
        assert!(assignment.away().is_empty(), "a record puts librdkafka's position right");
    }

    #[test]
    fn what_was_revoked_cannot_start() {
        let (mut assignment, key) = one();
        assignment.disown(key);
        assert!(assignment.accept(key, 10), "it is read until it is freed");
        assignment.free(key);
        assert!(!assignment.accept(key, 11));
        assert!(!assignment.start(key, 11));
        assignment.own("a", 2);
        assert!(assignment.start(key, 11));
    }

    #[test]
    fn a_freed_partition_starts_without_a_trace_of_its_past() {
        let (mut assignment, key) = one();
        assignment.set_paused(key, true);
        assignment.send_to(key, 3);
        assignment.free(key);
        assert_eq!(assignment.slot(key), Some(&Slot { owned: true, ..Slot::default() }));
    }
}
