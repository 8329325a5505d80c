//! The member of the group: one thread polls it, and everything that the group or a partition does comes out of
//! [`Consumer::poll`].
//!
//! A poll serves librdkafka's callbacks and takes a batch of messages in one call (`rd_kafka_consume_batch_queue`);
//! records are borrowed from the batch, so nothing is allocated for a record. Nothing blocks it for longer than its
//! `wait`: a consumer that is polled stays in its group.

mod settle;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::assignment::{Accept, Assignment, Key};
use super::raw::{self, Callback, Failure, Handle, List, OFFSET_INVALID, Queue, RawHeaders, RawMessage, code};
use super::{EpochAt, Event, Resume, TopicPartition, properties};
use crate::config::{Isolation, Kafka, TopicPattern};
use crate::error::{Error, Kind, Result};
use crate::failpoint::failpoint;
use crate::record::{Header, TimestampType};

/// A member that is given nothing counts as one after this: longer than the others need to notice that it joined
/// (`heartbeat.interval.ms`, 3 s by default).
const RESTS_AFTER: Duration = Duration::from_secs(5);

/// One record, borrowed from the batch that is being given.
pub struct Message<'a> {
    /// The topic's name.
    pub topic: &'a Arc<str>,
    /// The topic's number in this consumer, from 0 without holes: an index for the caller's own table.
    pub topic_index: u32,
    /// The partition.
    pub partition: i32,
    /// The offset.
    pub offset: i64,
    /// Milliseconds since 1970; -1 if the record has none.
    pub timestamp: i64,
    /// Who set the timestamp.
    pub timestamp_type: TimestampType,
    /// The leader's epoch when the record was appended; -1 if it is not known.
    pub leader_epoch: i32,
    /// The key; null is not empty.
    pub key: Option<&'a [u8]>,
    /// The value; null is not empty.
    pub value: Option<&'a [u8]>,
    raw: RawMessage<'a>,
}

impl<'a> Message<'a> {
    /// The headers, in their order, duplicates included. A NUL byte inside a header's name ends it: librdkafka gives
    /// names as C strings.
    pub fn headers(&self) -> Headers<'a> {
        Headers(self.raw.headers())
    }
}

/// The headers of one [`Message`].
#[derive(Clone)]
pub struct Headers<'a>(RawHeaders<'a>);

impl<'a> Iterator for Headers<'a> {
    type Item = Header<'a>;

    fn next(&mut self) -> Option<Header<'a>> {
        self.0.next().map(|(name, value)| Header { name, value })
    }
}

/// A member of the consumer group.
pub struct Consumer {
    handle: Arc<Handle>,
    queue: Queue,
    assignment: Assignment,
    /// What is subscribed to.
    topics: Vec<String>,
    /// Whether the group has assigned anything, be it nothing, since this member joined it.
    member: bool,
    /// When it assigned last.
    joined: Option<Instant>,
    /// Topics that are not read although the group assigns them.
    exclude: Vec<TopicPattern>,
    /// Whether the group moves single partitions or all at once.
    cooperative: bool,
    /// What the group has taken away and waits for.
    revoked: Option<BTreeSet<Key>>,
    callbacks: Vec<Callback>,
}

/// Whether librdkafka takes the topics and the properties; nobody joins the group.
///
/// # Errors
/// [`Kind::Config`], naming the topic or the property.
pub fn validate(config: &Kafka) -> Result<()> {
    properties::subscription(config)?;
    Handle::consumer(&properties::consumer(config)?).map(drop)
}

impl Consumer {
    /// Joins the group and subscribes. Nothing is connected yet when it returns: a broker that cannot be reached is told
    /// by [`Event::AllBrokersDown`] and [`Event::Fault`].
    pub fn new(config: &Kafka) -> Result<Self> {
        let handle = Arc::new(Handle::consumer(&properties::consumer(config)?)?);
        let queue = Queue::of_consumer(&handle)?;
        let consumer = Self {
            handle,
            queue,
            assignment: Assignment::new(config.isolation == Isolation::ReadCommitted),
            topics: properties::subscription(config)?,
            member: false,
            joined: None,
            exclude: config.exclude.clone(),
            cooperative: true,
            revoked: None,
            callbacks: Vec::new(),
        };
        consumer.join()?;
        Ok(consumer)
    }

    /// Subscribes.
    fn join(&self) -> Result<()> {
        let mut topics = List::new();
        for topic in &self.topics {
            topics.add(topic, -1, OFFSET_INVALID)?;
        }
        self.handle.subscribe(&topics).map_err(|failure| {
            Error::new(Kind::Config, format!("kafka.topics: cannot subscribe: {}", failure.text))
                .hint("a topic is a name, or ^ and a regex")
        })
    }

    /// Leaves the group. What is assigned comes back as [`Event::Revoked`], and the group waits for its answer first.
    pub fn leave(&mut self) -> Result<()> {
        self.member = false;
        self.handle.unsubscribe().map_err(|failure| failure.into_error("cannot leave the group"))
    }

    /// Whether the group has this member, as far as it has told, and has come to rest. A member that joins a cooperative group is
    /// given nothing at first, and something in the rebalance that follows at once; one that leaves between the two is kept by the
    /// group until its session has timed out, for its word waits behind the answer to its request to join.
    pub fn is_member(&self) -> bool {
        let rests = || self.joined.is_some_and(|joined| joined.elapsed() >= RESTS_AFTER);
        self.member && (self.assignment.owned().next().is_some() || rests())
    }

    /// Whether the group has given a partition to this member and not taken it away since.
    pub fn owns(&self, at: &TopicPartition) -> bool {
        self.assignment.key(at).and_then(|key| self.assignment.slot(key)).is_some_and(|slot| slot.owned)
    }

    /// The partitions that the group has given to this member and not taken away since, and whether each is read, by topic.
    pub fn owned(&self) -> impl Iterator<Item = (&Arc<str>, i32, bool)> {
        self.assignment.owned()
    }

    /// Gives at most `max` records to `on_message` and everything else to `events`; returns when it has `max`, or when
    /// `wait` is over. Records of a partition come in the order of their offsets, each offset once.
    ///
    /// An error means that librdkafka refuses what it must do: the consumer must be built again.
    pub fn poll(
        &mut self,
        max: usize,
        wait: Duration,
        mut on_message: impl FnMut(Message<'_>),
        events: &mut Vec<Event>,
    ) -> Result<()> {
        self.settle()?;
        let Self { handle, queue, assignment, .. } = self;
        let batch = queue.consume(max, wait);
        // Before the records: a rebalance in this batch tells which of them count.
        handle.take_callbacks(&mut self.callbacks);
        let rebalance = |callback: &Callback| matches!(callback, Callback::Assigned(_) | Callback::Revoked { .. });
        if self.callbacks.iter().any(rebalance) {
            assignment.shaken();
        }
        let mut ends = Vec::new();
        let (mut address, mut index) = (0, 0);
        for raw in batch.iter() {
            if raw.topic_address() != address || address == 0 {
                let Some(name) = raw.topic() else {
                    ends.push(fault(handle, raw.failure()));
                    continue;
                };
                index = assignment.index(&String::from_utf8_lossy(name));
                address = raw.topic_address();
            }
            if raw.code() != 0 {
                ends.extend(error_event(assignment, index, raw));
                continue;
            }
            let key = (index, raw.partition());
            match assignment.accept(key, raw.offset(), raw.leader_epoch()) {
                Accept::Yes => on_message(message(assignment.name(index), index, raw)),
                Accept::No => {}
                Accept::Diverged(at) => ends.push(diverged_event(assignment, key, at)),
            }
        }
        drop(batch);
        self.take_callbacks(events)?;
        events.append(&mut ends);
        Ok(())
    }

    /// Turns what was called back into events.
    fn take_callbacks(&mut self, events: &mut Vec<Event>) -> Result<()> {
        for callback in std::mem::take(&mut self.callbacks) {
            match callback {
                Callback::Assigned(partitions) => {
                    self.cooperative = self.handle.is_cooperative();
                    (self.member, self.joined) = (true, Some(Instant::now()));
                    let wanted = partitions.into_iter().filter(|(topic, _)| !self.excludes(topic));
                    let owned: Vec<_> = wanted.collect();
                    if !owned.is_empty() {
                        let owned = owned.iter().map(|(topic, partition)| self.assignment.own(topic, *partition));
                        events.push(Event::Assigned(owned.collect()));
                        // What the group gives again is not waited for any more.
                        let assignment = &self.assignment;
                        let is_gone = |key: &Key| assignment.slot(*key).is_some_and(|slot| !slot.owned);
                        self.revoked.iter_mut().for_each(|revoked| revoked.retain(is_gone));
                    }
                }
                Callback::Revoked { partitions, lost } => {
                    self.member &= !lost;
                    self.revoke(partitions, lost, events)?;
                }
                Callback::CommitFailed(failure) => {
                    events.push(Event::Fault { error: failure.into_error("cannot commit offsets"), fatal: false });
                }
                Callback::Error { failure, .. } if failure.code == code::ALL_BROKERS_DOWN => {
                    events.push(Event::AllBrokersDown);
                }
                Callback::Error { failure, fatal } => {
                    events.push(Event::Fault { error: failure.into_error("Kafka client"), fatal });
                }
            }
        }
        Ok(())
    }

    fn excludes(&self, topic: &str) -> bool {
        self.exclude.iter().any(|pattern| pattern.matches(topic))
    }

    fn revoke(&mut self, partitions: Vec<(String, i32)>, lost: bool, events: &mut Vec<Event>) -> Result<()> {
        let known: Vec<TopicPartition> = partitions
            .into_iter()
            .map(|(topic, partition)| TopicPartition::new(topic, partition))
            .filter(|at| self.assignment.key(at).is_some())
            .collect();
        let keys: Vec<Key> = known.iter().filter_map(|at| self.assignment.key(at)).collect();
        for key in &keys {
            self.assignment.disown(*key);
        }
        self.revoked.get_or_insert_default().extend(keys);
        if known.is_empty() {
            return self.unassign(&[]); // the group waits for an answer all the same
        }
        events.push(Event::Revoked { partitions: known, lost });
        Ok(())
    }

    /// Starts to read partitions that [`Event::Assigned`] named, each at its offset. Partitions that were revoked since
    /// are left out.
    pub fn assign<P: Copy + Into<Resume>>(&mut self, partitions: &[(TopicPartition, P)]) -> Result<()> {
        let mut keys = Vec::new();
        for (at, from) in partitions {
            let Some(key) = self.assignment.key(at) else { continue };
            if self.assignment.slot(key).is_some_and(|slot| slot.reading) {
                self.assignment.send_to(key, (*from).into());
            } else if self.assignment.start(key, (*from).into()) {
                keys.push(key);
            }
        }
        let added = self.positions(&keys);
        if keys.is_empty() {
            return self.settle();
        }
        let done = if self.cooperative {
            self.hold().and_then(|()| self.handle.incremental_assign(&added))
        } else {
            self.assign_all()
        };
        done.map_err(|failure| {
            for key in keys {
                self.assignment.free(key);
            }
            failure.into_error("cannot assign partitions")
        })?;
        self.settle()
    }

    /// An eager group knows only the whole assignment.
    fn assign_all(&mut self) -> Result<(), Failure> {
        self.assignment.all_start();
        self.hold()?;
        self.handle.assign(&self.positions(&self.assignment.reading()))
    }

    /// Partitions, and from where librdkafka fetches them.
    fn positions(&self, keys: &[Key]) -> List {
        let from = |key: &Key| self.assignment.slot(*key).map_or((OFFSET_INVALID, -1), |slot| slot.fetch_from());
        self.list(keys.iter().map(|key| (*key, from(key))))
    }

    fn names<'a>(&self, keys: impl IntoIterator<Item = &'a Key>) -> List {
        self.list(keys.into_iter().map(|key| (*key, (OFFSET_INVALID, -1))))
    }

    fn list(&self, partitions: impl Iterator<Item = (Key, (i64, i32))>) -> List {
        let mut list = List::new();
        for ((topic, partition), (offset, leader_epoch)) in partitions {
            // A name that came from librdkafka can go back to it: it holds no NUL.
            if let Err(error) = list.add_with_epoch(self.assignment.name(topic), partition, offset, leader_epoch) {
                tracing::error!(%error, "a topic's name cannot be given to librdkafka");
            }
        }
        list
    }

    fn keys(&self, partitions: &[TopicPartition]) -> BTreeSet<Key> {
        partitions.iter().filter_map(|at| self.assignment.key(at)).collect()
    }

    /// Stops to read partitions; no record of them is given any more. If the group waits for partitions, they go too:
    /// this is the answer to [`Event::Revoked`], and the group goes on from here.
    pub fn unassign(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        let mut leaving = self.keys(partitions);
        let answer = self.revoked.take();
        leaving.extend(answer.iter().flatten());
        let (leaving, idle): (Vec<Key>, Vec<Key>) =
            leaving.into_iter().partition(|key| self.assignment.slot(*key).is_some_and(|slot| slot.reading));
        for key in idle {
            self.assignment.free(key);
        }
        if leaving.is_empty() && answer.is_none() {
            return Ok(());
        }
        let is_paused = |key: &&Key| self.assignment.slot(**key).is_some_and(|slot| slot.paused || slot.held);
        let mut paused = self.names(leaving.iter().filter(is_paused));
        let removed = self.names(&leaving);
        for key in leaving {
            self.assignment.free(key);
        }
        // librdkafka keeps the flag of a paused partition over its next assignment.
        let resumed = self.handle.resume(&mut paused);
        let done = if self.cooperative {
            self.handle.incremental_unassign(&removed)
        } else if answer.is_some() {
            self.handle.unassign_all()
        } else {
            self.assign_all()
        };
        done.and(resumed).map_err(|failure| failure.into_error("cannot give partitions back"))?;
        self.settle()
    }

    /// Stops to fetch partitions; what librdkafka has of them is thrown away.
    pub fn pause(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        let mut keys = self.keys(partitions);
        keys.retain(|key| self.assignment.slot(*key).is_some_and(|slot| slot.reading && !slot.paused));
        self.handle.pause(&mut self.names(&keys)).map_err(|failure| failure.into_error("cannot pause partitions"))?;
        for key in keys {
            self.assignment.set_paused(key, true);
        }
        Ok(())
    }

    /// Goes on with paused partitions, each at the caller's own next offset: librdkafka's may be one record too far
    /// (see `assignment`).
    pub fn resume(&mut self, partitions: &[(TopicPartition, i64)]) -> Result<()> {
        let mut keys = Vec::new();
        for (at, next) in partitions {
            let Some(key) = self.assignment.key(at) else { continue };
            if self.assignment.slot(key).is_some_and(|slot| slot.reading && slot.paused) {
                self.assignment.go_on(key, *next);
                keys.push(key);
            }
        }
        for key in &keys {
            self.assignment.set_paused(*key, false);
        }
        self.settle()?;
        // What is still held goes on when it is there.
        keys.retain(|key| self.assignment.slot(*key).is_some_and(|slot| !slot.held));
        self.handle.resume(&mut self.names(&keys)).map_err(|failure| failure.into_error("cannot resume partitions"))
    }

    /// Tells the group how far the archive is. It is an echo for other tools: the answer is not waited for, and a failure
    /// comes as an [`Event::Fault`].
    pub fn commit(&mut self, offsets: &[(TopicPartition, i64)]) -> Result<()> {
        let mut list = List::new();
        for (at, next) in offsets {
            list.add(&at.topic, at.partition, *next)?;
        }
        if list.is_empty() {
            return Ok(()); // an empty list would mean librdkafka's own positions
        }
        failpoint!("group.commit");
        self.handle.commit(&list).map_err(|failure| failure.into_error("cannot commit offsets"))
    }

    /// Leaves the group, so that others take over at once, and waits for commits under way; at most `wait` long. Without
    /// it the group finds out after its session timeout.
    pub fn close(mut self, wait: Duration) -> Result<()> {
        self.end(wait)
    }

    /// Leaves the group and joins it with another client, which knows nothing of what this one knew. What is still assigned is
    /// lost without an [`Event::Revoked`].
    pub fn renew(&mut self, config: &Kafka, wait: Duration) -> Result<()> {
        if let Err(error) = self.end(wait) {
            tracing::debug!(%error, "the client is replaced all the same");
        }
        *self = Self::new(config)?;
        Ok(())
    }

    fn end(&mut self, wait: Duration) -> Result<()> {
        let until = Instant::now() + wait;
        if self.revoked.is_some() {
            self.unassign(&[])?;
        }
        let mut queue = Queue::new(&self.handle);
        queue.close().map_err(|failure| failure.into_error("cannot leave the group"))?;
        while !self.handle.is_closed() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::new(Kind::Unavailable, "the group did not let go of this member in time"));
            }
            drop(queue.consume(1000, left.min(Duration::from_millis(50))));
        }
        Ok(())
    }
}

/// A message that is about no topic. librdkafka gives a fatal error of a consumer so (`rd_kafka_set_fatal_error0`,
/// rdkafka.c), and not to the error callback; what it was is asked for.
fn fault(handle: &Handle, failure: Failure) -> Event {
    match handle.fatal_error() {
        Some(cause) if failure.code == code::FATAL => {
            Event::Fault { error: cause.into_error("the member of the consumer group has ended for good"), fatal: true }
        }
        _ => Event::Fault { error: failure.into_error("Kafka consumer"), fatal: false },
    }
}

fn message<'a>(topic: &'a Arc<str>, topic_index: u32, raw: RawMessage<'a>) -> Message<'a> {
    let (timestamp, kind) = raw.timestamp();
    Message {
        topic,
        topic_index,
        partition: raw.partition(),
        offset: raw.offset(),
        timestamp,
        timestamp_type: match kind {
            1 => TimestampType::Create,
            2 => TimestampType::LogAppend,
            _ => TimestampType::NotAvailable,
        },
        leader_epoch: raw.leader_epoch(),
        key: raw.key(),
        value: raw.value(),
        raw,
    }
}

/// An error in a message's place, if it concerns a partition that is read.
fn error_event(assignment: &mut Assignment, index: u32, raw: RawMessage<'_>) -> Option<Event> {
    let key = (index, raw.partition());
    match raw.code() {
        code::PARTITION_EOF => {
            let next_offset = assignment.accept_end(key, raw.offset())?;
            Some(Event::EndOfPartition { at: assignment.at(key), next_offset })
        }
        code::AUTO_OFFSET_RESET => reset_event(assignment, key, raw),
        // No offset: it is about the topic, and the partition means nothing (rd_kafka_propagate_consumer_topic_errors).
        _ if raw.offset() == OFFSET_INVALID => {
            let topic = Arc::clone(assignment.name(index));
            let error = raw.failure().into_error(format_args!("topic {topic}"));
            Some(Event::TopicError { topic, error })
        }
        _ => {
            let unreadable = matches!(raw.code(), code::BAD_MSG | code::BAD_COMPRESSION | code::NOT_IMPLEMENTED);
            let reads = if unreadable { assignment.accept_unreadable(key) } else { assignment.accept_error(key) };
            reads.then(|| {
                let at = assignment.at(key);
                let error = raw.failure().into_error(&at);
                Event::PartitionError { at, error }
            })
        }
    }
}

/// librdkafka stopped a fetcher (`auto.offset.reset=error`). The error is never outdated (its version is 0), and a fetch
/// at a position that was too far (see `assignment`) gives one, too: only one about the next offset is true, and after
/// any other the partition is sent to where it belongs.
fn reset_event(assignment: &mut Assignment, key: Key, raw: RawMessage<'_>) -> Option<Event> {
    let slot = *assignment.slot(key).filter(|slot| slot.reading)?;
    let failure = raw.failure();
    let at = assignment.at(key);
    if failure.text.contains(&raw::text_of(code::LOG_TRUNCATION)) {
        if !assignment.is_certain(key) {
            return None;
        }
        let (diverged, fresh) = (diverged(&failure.text), assignment.halt(key));
        return Some(Event::Truncated { error: failure.into_error(&at), at, diverged, fresh });
    }
    let known = raw.offset() == slot.next || raw.offset() == slot.fetch_from().0;
    if known && !slot.away {
        return Some(Event::OutOfRange { at, offset: raw.offset() });
    }
    assignment.go_on(key, slot.next);
    None
}

/// A record showed that the log is another one.
fn diverged_event(assignment: &mut Assignment, key: Key, diverged: EpochAt) -> Event {
    let (at, fresh) = (assignment.at(key), assignment.halt(key));
    let EpochAt { offset, leader_epoch } = diverged;
    let why = format!("{at}: the log has a record of epoch {leader_epoch} at {offset} where what was read had another");
    Event::Truncated { at, error: Error::new(Kind::Corrupt, why), diverged: Some(diverged), fresh }
}

/// Where librdkafka says that the log left what was read: the broker's answer to OffsetForLeaderEpoch, which stands in the text
/// only ("… broker end offset is 100 (offset leader epoch 4) …", `rd_kafka_toppar_handle_OffsetForLeaderEpoch`).
fn diverged(text: &str) -> Option<EpochAt> {
    let after = |words: &str| {
        let (_, rest) = text.split_once(words)?;
        rest.split(|c: char| !c.is_ascii_digit()).next()
    };
    let offset = after("broker end offset is ")?.parse().ok()?;
    Some(EpochAt { offset, leader_epoch: after("(offset leader epoch ")?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_truncation_tells_where_the_log_left() {
        let text = "Partition log truncation detected at offset 200 (leader epoch 3): broker end offset is 100 (offset \
                    leader epoch 2). Reset to INVALID.: Local: Partition log truncation (broker 2)";
        assert_eq!(diverged(text), Some(EpochAt { offset: 100, leader_epoch: 2 }));
        let none = "No epoch found less or equal to offset 5 (leader epoch 9): broker end offset is -1 (offset leader \
                    epoch -1). Reset using configured policy.";
        assert_eq!((diverged(none), diverged("")), (None, None));
    }
}
