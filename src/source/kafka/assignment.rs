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

use super::{EpochAt, Resume, TopicPartition};

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
    /// librdkafka may not fetch it before it was sent there.
    pub(super) held: bool,
    /// The last record before `next` whose leader's epoch is known; from it to `next` there is none.
    last: Option<EpochAt>,
    /// Nothing came since the caller said where to read: what the broker says of the log is about that position.
    pub(super) fresh: bool,
    /// Its log is another one: nothing counts until the caller says where to read.
    halted: bool,
    /// The broker was said to have another log when it was to be read from here, with that epoch; it is asked once more.
    doubt: Option<(i64, i32)>,
    /// Polls since librdkafka was told to start it; none: it is there, or was stopped.
    pub(super) starting: Option<u32>,
}

impl Slot {
    /// Returns from where librdkafka fetches, and the epoch that it has the broker check there (KIP-320); -1 if none is known. It is the
    /// offset after the last record and not `next`: what lies between may be of a later epoch than that record.
    pub(super) fn fetch_from(&self) -> (i64, i32) {
        match self.last {
            Some(last) if last.offset < self.next => (last.offset + 1, last.leader_epoch),
            _ => (self.next, -1),
        }
    }
}

/// What becomes of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Accept {
    /// It counts, and the partition has moved behind it.
    Yes,
    /// It is not wanted, or came already.
    No,
    /// The log that it is from is not the one that was read before: they differ from that offset on, of which the log has
    /// that epoch.
    Diverged(EpochAt),
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
    /// Whether offsets that were found without a record stay so: aborted records are not shown.
    committed_only: bool,
    topics: Vec<Topic>,
    indexes: HashMap<Arc<str>, u32>,
}

impl Assignment {
    /// `committed_only`: aborted records are not shown.
    pub(super) fn new(committed_only: bool) -> Self {
        Self { committed_only, ..Self::default() }
    }

    /// The index of a topic, for as long as the consumer is open.
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

    /// The partitions whose slot `wanted` names.
    fn select(&self, wanted: impl Fn(&Slot) -> bool) -> Vec<Key> {
        let mut found = Vec::new();
        for (topic, index) in self.topics.iter().zip(0..) {
            let slots = topic.slots.iter().zip(0..).filter(|(slot, _)| wanted(slot));
            found.extend(slots.map(|(_, partition)| (index, partition)));
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

    /// Reading begins. False for a partition that the group has taken away meanwhile.
    pub(super) fn start(&mut self, key: Key, from: Resume) -> bool {
        match self.slot_mut(key) {
            Some(slot) if slot.owned => {
                // An assignment alone has nothing checked, only a seek has (`rd_kafka_toppar_fetch_start` and
                // `rd_kafka_toppar_seek`, rdkafka_partition.c).
                let (next, last, away) = (from.next, from.last, from.last.is_some());
                let starting = away.then_some(0);
                *slot = Slot { owned: true, reading: true, next, last, away, fresh: true, starting, ..Slot::default() };
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

    /// The caller says where a partition is to be read on.
    pub(super) fn send_to(&mut self, key: Key, to: Resume) {
        if let Some(slot) = self.slot_mut(key).filter(|slot| slot.reading) {
            (slot.next, slot.last) = (to.next, to.last);
            (slot.away, slot.fresh, slot.halted) = (true, true, false);
        }
    }

    /// The caller goes on at `next`, where the partition should stand.
    pub(super) fn go_on(&mut self, key: Key, next: i64) {
        if let Some(slot) = self.slot_mut(key).filter(|slot| slot.reading) {
            if slot.next != next {
                (slot.next, slot.last) = (next, None);
            }
            slot.away = true;
        }
    }

    /// librdkafka is told to start a partition, which it has not begun to read yet.
    pub(super) fn started(&mut self, key: Key) {
        if let Some(slot) = self.slot_mut(key) {
            slot.starting = Some(0);
        }
    }

    /// librdkafka was given the whole assignment again, and has forgotten what it asked the brokers about: see [`Assignment::start`].
    pub(super) fn all_start(&mut self) {
        for slot in self.slots_mut().filter(|slot| slot.reading && !slot.halted && slot.last.is_some()) {
            (slot.away, slot.starting) = (true, Some(0));
        }
    }

    /// Another poll in which librdkafka has not started a partition; gives how many there were.
    pub(super) fn still_starts(&mut self, key: Key) -> Option<u32> {
        let polls = self.slot_mut(key)?.starting.as_mut()?;
        *polls += 1;
        Some(*polls)
    }

    /// librdkafka says that a partition's log is another one. True at the second time.
    ///
    /// It compares the broker's answer with where the partition is read when the answer comes, though it asked about where it was read
    /// before: a seek does not ask again while an answer is awaited (`rd_kafka_offset_validate`: "validation is already ongoing",
    /// and `rd_kafka_toppar_handle_OffsetForLeaderEpoch`, rdkafka_offset.c, 2.12.1). So the partition is sent to the same place
    /// once more, now that no answer is awaited.
    pub(super) fn is_certain(&mut self, key: Key) -> bool {
        let Some(slot) = self.slot_mut(key).filter(|slot| slot.reading) else { return false };
        let from = Some(slot.fetch_from());
        if slot.doubt == from && !slot.away {
            return true;
        }
        (slot.doubt, slot.away) = (from, true);
        false
    }

    /// The broker says that a partition's log is another one. Gives whether it says so of where the caller wanted to read.
    pub(super) fn halt(&mut self, key: Key) -> bool {
        self.slot_mut(key).is_some_and(|slot| {
            slot.halted = true;
            slot.fresh && !slot.away
        })
    }

    /// A rebalance paused and resumed everything inside librdkafka.
    pub(super) fn shaken(&mut self) {
        for slot in self.slots_mut().filter(|slot| slot.reading && slot.ahead) {
            slot.away = true;
        }
    }

    /// Returns what librdkafka is about to start, and must be sent elsewhere first: see [`Assignment::start`].
    pub(super) fn to_hold(&self) -> Vec<Key> {
        self.select(|slot| slot.reading && slot.away && !slot.held && slot.starting == Some(0))
    }

    /// librdkafka does not fetch a partition until it has arrived.
    pub(super) fn set_held(&mut self, key: Key) {
        if let Some(slot) = self.slot_mut(key) {
            slot.held = true;
        }
    }

    /// librdkafka is at `next` again. Gives whether it was held until now, and goes on.
    pub(super) fn arrived(&mut self, key: Key) -> bool {
        let Some(slot) = self.slot_mut(key) else { return false };
        (slot.away, slot.ahead, slot.starting) = (false, false, None);
        std::mem::take(&mut slot.held) && !slot.paused
    }

    /// Returns whether a record counts. It is from another log if its leader's epoch is older than that of the record before, for epochs
    /// grow within a log, or if it stands where the log that was read has none.
    pub(super) fn accept(&mut self, key: Key, offset: i64, leader_epoch: i32) -> Accept {
        let committed_only = self.committed_only;
        let Some(slot) = self.slot_mut(key).filter(|slot| slot.reading && !slot.away && !slot.halted) else {
            return Accept::No;
        };
        if offset < slot.next {
            return match slot.last {
                Some(last) if committed_only && offset > last.offset => {
                    slot.halted = true;
                    Accept::Diverged(EpochAt { offset: last.offset + 1, leader_epoch: last.leader_epoch })
                }
                _ => Accept::No,
            };
        }
        if leader_epoch >= 0 && slot.last.is_some_and(|last| leader_epoch < last.leader_epoch) {
            slot.halted = true;
            return Accept::Diverged(EpochAt { offset, leader_epoch });
        }
        slot.next = offset + 1;
        slot.last = (leader_epoch >= 0).then_some(EpochAt { offset, leader_epoch });
        (slot.ahead, slot.fresh, slot.doubt) = (false, false, None);
        Accept::Yes
    }

    /// Returns whether an end of partition at `end` counts, and the next offset then. A log may end before it, behind the last record.
    pub(super) fn accept_end(&mut self, key: Key, end: i64) -> Option<i64> {
        match self.slot_mut(key) {
            Some(slot) if slot.reading && !slot.away && !slot.halted && end >= slot.fetch_from().0 => {
                slot.next = slot.next.max(end);
                (slot.ahead, slot.fresh, slot.doubt) = (true, false, None);
                Some(slot.next)
            }
            _ => None,
        }
    }

    /// Returns whether an error of a partition concerns this member.
    pub(super) fn accept_error(&mut self, key: Key) -> bool {
        match self.slot_mut(key) {
            Some(slot) if slot.reading => {
                slot.ahead = true;
                true
            }
            _ => false,
        }
    }

    /// What is read next cannot be decoded. librdkafka goes on all the same: behind an unknown magic byte it fetches from the next
    /// offset on (`rd_kafka_msgset_reader_peek_msg_version`, rdkafka_msgset_reader.c), and should the batch be whole again, as
    /// after a change of leader, its first record would be missing. So it is sent back each time, and nothing of what it read
    /// behind counts, an error least of all: behind a wrong CRC it takes any bytes for the next batch, of any format and offset
    /// (`rd_kafka_buf_skip_to(rkbuf, crc_len)` in `rd_kafka_msgset_reader_v2` takes a length for a position).
    pub(super) fn accept_unreadable(&mut self, key: Key) -> bool {
        let is_first = self.slot(key).is_some_and(|slot| !slot.away);
        let reads = is_first && self.accept_error(key);
        if let Some(slot) = self.slot_mut(key).filter(|_| reads) {
            slot.away = true;
        }
        reads
    }

    /// Returns what the group has given, and whether it is read.
    pub(super) fn owned(&self) -> impl Iterator<Item = (&Arc<str>, i32, bool)> {
        self.topics.iter().flat_map(|topic| {
            let owned = (0..).zip(&topic.slots).filter(|(_, slot)| slot.owned);
            owned.map(|(partition, slot)| (&topic.name, partition, slot.reading))
        })
    }

    /// A partition is to be started again where it stands.
    pub(super) fn start_again(&mut self, key: Key) {
        if let Some(slot) = self.slot_mut(key).filter(|slot| slot.reading) {
            (slot.away, slot.halted, slot.held) = (true, false, false);
        }
    }

    /// Returns what librdkafka must be sent to.
    pub(super) fn away(&self) -> Vec<Key> {
        self.select(|slot| slot.reading && slot.away)
    }

    /// Returns what is read.
    pub(super) fn reading(&self) -> Vec<Key> {
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
        assert!(assignment.start(key, 10.into()));
        (assignment, key)
    }

    #[test]
    fn partitions_that_are_assigned_anew_with_all_others_are_checked_again() {
        let mut assignment = Assignment::default();
        let [asked, halted, new] = [0, 1, 2].map(|partition| {
            let at = assignment.own("a", partition);
            assignment.key(&at).unwrap()
        });
        let from = Resume { next: 10, last: Some(EpochAt { offset: 9, leader_epoch: 3 }) };
        for key in [asked, halted] {
            assignment.start(key, from);
            assignment.arrived(key);
        }
        assignment.halt(halted);
        assignment.start(new, 10.into());
        assignment.all_start();
        assert_eq!(assignment.away(), [asked], "the answer about it is not awaited any more");
        assert_eq!(assignment.accept(asked, 10, 4), Accept::No);
        assert_eq!(assignment.accept(new, 10, 4), Accept::Yes);
    }

    #[test]
    fn what_is_to_be_sought_is_held_until_it_is_there() {
        let (mut assignment, new) = one();
        let at = assignment.own("a", 0);
        let key = assignment.key(&at).unwrap();
        assignment.start(key, Resume { next: 10, last: Some(EpochAt { offset: 9, leader_epoch: 3 }) });
        assert_eq!(assignment.to_hold(), [key], "the other one has no epoch to be asked about");
        assignment.set_held(key);
        assert!(assignment.to_hold().is_empty(), "it is held already");
        assert!(assignment.arrived(key) && !assignment.arrived(key), "it goes on once");
        assignment.go_on(new, 10);
        assignment.started(new);
        assert_eq!(assignment.to_hold(), [new], "its fetcher had stopped");
        assignment.set_held(new);
        assignment.set_paused(new, true);
        assert!(!assignment.arrived(new), "the caller has paused it");
        assert!(!assignment.slot(new).unwrap().held, "and resumes it");
    }

    #[test]
    fn a_partition_that_is_started_again_counts_from_where_it_stood() {
        let (mut assignment, key) = one();
        assert!(assignment.halt(key));
        assert_eq!(assignment.accept(key, 10, -1), Accept::No);
        assignment.start_again(key);
        assert_eq!(assignment.accept(key, 10, -1), Accept::No, "librdkafka is not there yet");
        assert_eq!(assignment.away(), [key]);
        assignment.arrived(key);
        assert_eq!(assignment.accept(key, 10, -1), Accept::Yes);
    }

    #[test]
    fn a_record_counts_once_and_in_order() {
        let (mut assignment, key) = one();
        assert_eq!(assignment.accept(key, 9, -1), Accept::No);
        assert_eq!(assignment.accept(key, 10, -1), Accept::Yes);
        assert_eq!(assignment.accept(key, 10, -1), Accept::No);
        assert_eq!(assignment.accept(key, 15, -1), Accept::Yes, "offsets without a record");
        assert_eq!(assignment.slot(key).unwrap().next, 16);
        assert_eq!(assignment.accept((key.0, 0), 100, -1), Accept::No, "never assigned");
        assert_eq!(assignment.accept((key.0, 7), 100, -1), Accept::No, "never heard of");
    }

    #[test]
    fn nothing_counts_between_a_seek_and_its_arrival() {
        let (mut assignment, key) = one();
        assert_eq!(assignment.accept(key, 10, -1), Accept::Yes);
        assignment.send_to(key, 5.into());
        assert_eq!(assignment.accept(key, 11, -1), Accept::No);
        assert_eq!(assignment.accept_end(key, 12), None);
        assert_eq!(assignment.away(), [key]);
        assert_eq!(assignment.slot(key).unwrap().next, 5);
        assignment.arrived(key);
        assert!(assignment.away().is_empty());
        assert_eq!(assignment.accept(key, 5, -1), Accept::Yes);
    }

    #[test]
    fn a_rebalance_sends_back_only_what_stands_at_its_end() {
        let (mut assignment, key) = one();
        assignment.shaken();
        assert!(assignment.away().is_empty());
        assert_eq!(assignment.accept_end(key, 12), Some(12));
        assignment.shaken();
        assert_eq!(assignment.away(), [key]);
        assert_eq!(assignment.slot(key).unwrap().next, 12);
        assignment.arrived(key);
        assert_eq!(assignment.accept_end(key, 12), Some(12));
        assert_eq!(assignment.accept(key, 12, -1), Accept::Yes);
        assignment.shaken();
        assert!(assignment.away().is_empty(), "a record puts librdkafka's position right");
    }

    #[test]
    fn nothing_behind_what_cannot_be_read_counts() {
        let (mut assignment, key) = one();
        assert_eq!(assignment.accept(key, 10, -1), Accept::Yes);
        assert!(assignment.accept_unreadable(key));
        assert!(!assignment.accept_unreadable(key), "it was told");
        assert_eq!((assignment.accept(key, 12, -1), assignment.accept_end(key, 13)), (Accept::No, None));
        assert_eq!((assignment.away(), assignment.slot(key).unwrap().fetch_from()), (vec![key], (11, -1)));
        assignment.arrived(key);
        assert!(assignment.accept_unreadable(key), "it still stands there");
        assignment.arrived(key);
        assert_eq!(assignment.accept(key, 11, -1), Accept::Yes, "it is whole again");
        assert!(!assignment.accept_unreadable((key.0, 0)), "never assigned");
    }

    #[test]
    fn another_log_counts_when_it_was_said_twice_of_one_place() {
        let (mut assignment, key) = one();
        assert_eq!(assignment.accept(key, 10, 1), Accept::Yes);
        assert!(!assignment.is_certain(key), "it may be about where it was read before");
        assert!(!assignment.is_certain(key), "it has not been sent there again");
        assignment.arrived(key);
        assert!(assignment.is_certain(key));
        assert_eq!(assignment.accept(key, 11, 1), Accept::Yes);
        assert!(!assignment.is_certain(key), "it was read on meanwhile");
        assignment.arrived(key);
        assert_eq!(assignment.accept_end(key, 12), Some(12));
        assert!(!assignment.is_certain(key), "it was well meanwhile");
        assert!(!assignment.is_certain((key.0, 0)), "never assigned");
    }

    #[test]
    fn what_was_revoked_cannot_start() {
        let (mut assignment, key) = one();
        assignment.disown(key);
        assert_eq!(assignment.accept(key, 10, -1), Accept::Yes, "it is read until it is freed");
        assignment.free(key);
        assert_eq!(assignment.accept(key, 11, -1), Accept::No);
        assert!(!assignment.start(key, 11.into()));
        assignment.own("a", 2);
        assert!(assignment.start(key, 11.into()));
    }

    #[test]
    fn a_freed_partition_starts_without_a_trace_of_its_past() {
        let (mut assignment, key) = one();
        assignment.set_paused(key, true);
        assignment.send_to(key, 3.into());
        assignment.free(key);
        assert_eq!(assignment.slot(key), Some(&Slot { owned: true, ..Slot::default() }));
    }

    /// Archived up to offset 20, the last record at 14 with epoch 3.
    fn resumed() -> (Assignment, Key) {
        let (mut assignment, key) = one();
        assignment.committed_only = true;
        assignment.send_to(key, Resume { next: 20, last: Some(EpochAt { offset: 14, leader_epoch: 3 }) });
        assert_eq!(assignment.slot(key).unwrap().fetch_from(), (15, 3), "the epoch is that of offset 14, not of 19");
        assignment.arrived(key);
        (assignment, key)
    }

    #[test]
    fn epochs_grow_within_a_log() {
        let (mut assignment, key) = resumed();
        assert_eq!(assignment.accept(key, 20, 3), Accept::Yes);
        assert_eq!(assignment.accept(key, 21, 5), Accept::Yes);
        assert_eq!(assignment.slot(key).unwrap().fetch_from(), (22, 5));
        assert_eq!(assignment.accept(key, 22, -1), Accept::Yes, "one without an epoch says nothing");
        assert_eq!(assignment.accept(key, 23, 4), Accept::Yes);
        assert_eq!(assignment.accept(key, 24, 2), Accept::Diverged(EpochAt { offset: 24, leader_epoch: 2 }));
        assert_eq!(
            assignment.accept(key, 25, 9),
            Accept::No,
            "nothing counts until the caller has said where to go on"
        );
        assignment.send_to(key, 24.into());
        assignment.arrived(key);
        assert_eq!(assignment.accept(key, 24, 2), Accept::Yes);
    }

    #[test]
    fn a_record_where_the_log_had_none_is_from_another_log() {
        let (mut assignment, key) = resumed();
        assert_eq!(assignment.accept(key, 14, 3), Accept::No, "it came already");
        assert_eq!(assignment.accept(key, 16, 4), Accept::Diverged(EpochAt { offset: 15, leader_epoch: 3 }));
        assert!(assignment.halt(key), "it is about where the caller wanted to read");
        let (mut assignment, key) = resumed();
        assignment.committed_only = false;
        assert_eq!(assignment.accept(key, 16, 4), Accept::No, "it may be an aborted one");
    }

    #[test]
    fn a_log_may_end_behind_its_last_record() {
        let (mut assignment, key) = resumed();
        assert_eq!(assignment.accept_end(key, 14), None);
        assert_eq!(assignment.accept_end(key, 17), Some(20));
        assert_eq!(assignment.accept_end(key, 22), Some(22));
        assignment.go_on(key, 22);
        assert_eq!(assignment.slot(key).unwrap().fetch_from(), (15, 3), "a pause forgets no epoch");
        assignment.go_on(key, 21);
        assert_eq!(assignment.slot(key).unwrap().fetch_from(), (21, -1), "of another position it says nothing");
    }
}
