//! The collector: the one thread that holds the consumer and every segmenter.
//!
//! ```text
//!              ┌────────── task events: positions, encoded, committed, fenced ◄──────────┐
//!              ▼                                                                         │
//!  librdkafka ─► collector ─► segmenters ─► encoders (blocking threads) ─► committers (tasks)
//!              │
//!              └► resolver (where to read on), coverage (what is complete)
//! ```
//!
//! It never waits for anything but the consumer's next messages, and that for [`POLL_WAIT`] at most: whatever takes
//! time is asked of a task, and its answer comes back as a [`TaskEvent`]. When memory or the spool is full, partitions are
//! paused; polling goes on, so that the group keeps its member.

mod assigned;
mod desired;
mod encode;
mod generations;
mod ownership;
mod place;
mod pressure;
mod show;
mod skips;
mod unheard;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::commit::Request;
use super::coverage::{Cadence, Told};
use super::messages::{Question, SegmenterId, TaskEvent};
use super::pool::Pool;
use super::resolve;
use super::seal_reason::SealReason;
use super::segmenter::{Segmenter, Wait};
use super::shared::Shared;
use super::stalls::Refusal;
use crate::config::Kafka;
use crate::error::Result;
use crate::pipeline::published::PublishedKafka;
use crate::source::kafka::{Consumer, Event, TopicPartition};
use crate::stream::{PartitionRange, SegmentRef};
use crate::telemetry::metrics::TopicLabels;

/// How long one poll waits for messages. It is also how late a task event may be read.
const POLL_WAIT: Duration = Duration::from_millis(50);

/// One poll takes at most this many messages, and about this many bytes by the size of the last ones: their memory is
/// librdkafka's until the poll ends.
const POLL_MESSAGES: usize = 4096;
const POLL_BYTES: u64 = 4 << 20;

/// This part of the memory budget may wait in the pool: two row groups of the default budget, the one that an encoder
/// gives back and the one that is being filled meanwhile.
const POOL_PART: usize = 12;

/// How often ages, pauses and leaving partitions are looked at.
const TICK: Duration = Duration::from_millis(100);

/// How often the state is published for whoever looks.
const PUBLISH_EVERY: Duration = Duration::from_secs(1);

/// How often offsets are committed to the group; they are only an echo for other tools.
const GROUP_COMMIT_EVERY: Duration = Duration::from_secs(1);

/// librdkafka tells of every attempt that fails; one line in this time is enough.
const OUTAGE_EVERY: Duration = Duration::from_secs(30);

/// How often one line says what was archived.
const SUMMARY_EVERY: Duration = Duration::from_secs(60);

/// How long leaving the group may take.
const CLOSE_WITHIN: Duration = Duration::from_secs(5);

/// How long a stop may take; Kubernetes kills after 30 s.
const STOP_WITHIN: Duration = Duration::from_secs(20);

/// What was archived since the last summary.
#[derive(Default)]
struct Summary {
    segments: u64,
    records: u64,
    raw_bytes: u64,
    stored_bytes: u64,
}

pub(super) struct Collector {
    kafka: Arc<Kafka>,
    shared: Arc<Shared>,
    consumer: Consumer,
    runtime: Handle,
    task_events: Receiver<TaskEvent>,
    resolver: mpsc::UnboundedSender<resolve::Request>,
    coverage: mpsc::Sender<Vec<Told>>,
    still: mpsc::Sender<Vec<TopicPartition>>,
    segmenters: BTreeMap<SegmenterId, Segmenter>,
    committers: HashMap<SegmenterId, mpsc::UnboundedSender<Request>>,
    /// The segmenter that takes a topic's records now.
    current: HashMap<Arc<str>, SegmenterId>,
    /// Of a topic that moves to another generation the segmenter that ends. Such a topic has no current one.
    ending: HashMap<Arc<str>, SegmenterId>,
    next_segmenter: u32,
    /// Encoding steps under way, and how many may be.
    encoding: usize,
    encoders: usize,
    /// The segmenter that had the last step, so that all get their turn.
    last_encoded: Option<SegmenterId>,
    memory_budget: usize,
    pool: Pool,
    full: bool,
    leaving: Vec<ownership::Leaving>,
    group_offsets: BTreeMap<TopicPartition, i64>,
    message_bytes: u64,
    published: Arc<PublishedKafka>,
    applied: desired::Applied,
    news: show::News,
    labels: TopicLabels,
    assigned: assigned::Assigned,
    /// Partitions whose positions are being looked up.
    resolving: ownership::Resolving,
    unheard: unheard::Unheard,
    /// When it was last said that no broker can be reached.
    outage_told: Option<Instant>,
    summary: Summary,
    stopping: Option<Instant>,
}

/// What the collector is made of.
pub(super) struct Parts {
    pub(super) kafka: Arc<Kafka>,
    pub(super) shared: Arc<Shared>,
    pub(super) consumer: Consumer,
    pub(super) runtime: Handle,
    pub(super) task_events: Receiver<TaskEvent>,
    pub(super) resolver: mpsc::UnboundedSender<resolve::Request>,
    pub(super) coverage: mpsc::Sender<Vec<Told>>,
    pub(super) still: mpsc::Sender<Vec<TopicPartition>>,
    pub(super) published: Arc<PublishedKafka>,
    pub(super) memory_budget: u64,
    /// How many topics have series of their own in the metrics.
    pub(super) most_labels: usize,
}

impl Collector {
    pub(super) fn new(parts: Parts) -> Self {
        let memory_budget = usize::try_from(parts.memory_budget).unwrap_or(usize::MAX);
        Self {
            kafka: parts.kafka,
            shared: parts.shared,
            consumer: parts.consumer,
            runtime: parts.runtime,
            task_events: parts.task_events,
            resolver: parts.resolver,
            coverage: parts.coverage,
            still: parts.still,
            segmenters: BTreeMap::new(),
            committers: HashMap::new(),
            current: HashMap::new(),
            ending: HashMap::new(),
            next_segmenter: 0,
            encoding: 0,
            encoders: std::thread::available_parallelism().map_or(1, |cores| cores.get().saturating_sub(1).clamp(1, 4)),
            last_encoded: None,
            memory_budget,
            pool: Pool::new(memory_budget / POOL_PART),
            full: false,
            leaving: Vec::new(),
            group_offsets: BTreeMap::new(),
            message_bytes: 1024,
            news: show::News::default(),
            published: parts.published,
            applied: desired::Applied::default(),
            labels: TopicLabels::new(parts.most_labels),
            assigned: assigned::Assigned::default(),
            resolving: ownership::Resolving::default(),
            unheard: unheard::Unheard::default(),
            outage_told: None,
            summary: Summary::default(),
            stopping: None,
        }
    }

    /// Runs until a stop is asked for and done, or the consumer fails for good.
    pub(super) fn run(mut self) -> Result<()> {
        let ended = self.collect();
        // Without a word the group would wait for this member until its session ends, however it ended here. That is all that is
        // lost where nobody hears the word, as when the group's coordinator is away: what was read is archived.
        if let Err(error) = self.consumer.close(CLOSE_WITHIN) {
            tracing::warn!(%error, "the group notices only when this member's session has timed out");
        }
        ended
    }

    fn collect(&mut self) -> Result<()> {
        let mut events = Vec::new();
        let start = Instant::now();
        let (mut tick, mut publish, mut group, mut summary) = (start, start, start, start);
        let mut coverage = Cadence::new(start);
        loop {
            self.read_task_events()?;
            self.poll(&mut events)?;
            for event in events.drain(..) {
                self.on_event(event)?;
            }
            self.encode();
            let now = Instant::now();
            if due(&mut tick, TICK, now) {
                self.on_tick(now)?;
                if self.is_stopped(now) {
                    break;
                }
            }
            if due(&mut publish, PUBLISH_EVERY, now) {
                self.start_unheard(now)?;
                self.publish(now);
            }
            if due(&mut group, GROUP_COMMIT_EVERY, now) {
                self.commit_to_group();
            }
            if coverage.is_due(self.current.values().filter_map(|id| self.segmenters.get(id)), now) {
                self.tell_coverage();
                self.ask_for_stable();
            }
            if due(&mut summary, SUMMARY_EVERY, now) {
                self.log_summary();
            }
        }
        self.commit_to_group();
        self.tell_coverage();
        self.log_summary();
        Ok(())
    }

    fn poll(&mut self, events: &mut Vec<Event>) -> Result<()> {
        let most = usize::try_from(POLL_BYTES / self.message_bytes.max(1)).unwrap_or(1).clamp(16, POLL_MESSAGES);
        let now = Instant::now();
        let (mut bytes, mut count) = (0, 0);
        let (segmenters, current, pool) = (&mut self.segmenters, &self.current, &mut self.pool);
        let mut last: Option<(u32, Option<SegmenterId>)> = None;
        self.consumer.poll(
            most,
            POLL_WAIT,
            |message| {
                bytes += (message.key.map_or(0, <[u8]>::len) + message.value.map_or(0, <[u8]>::len)) as u64;
                count += 1;
                let segmenter = match &last {
                    Some((topic, segmenter)) if *topic == message.topic_index => *segmenter,
                    _ => {
                        let segmenter = current.get(message.topic).copied();
                        last = Some((message.topic_index, segmenter));
                        segmenter
                    }
                };
                if let Some(segmenter) = segmenter.and_then(|id| segmenters.get_mut(&id)) {
                    segmenter.push(&message, now, pool);
                }
            },
            events,
        )?;
        if let Some(mean) = bytes.checked_div(count) {
            // Follow growing messages at once, shrinking ones slowly.
            self.message_bytes = mean.max(self.message_bytes / 2).max(1);
        }
        Ok(())
    }

    fn on_event(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Assigned(partitions) => {
                tracing::info!(partitions = partitions.len(), "partitions assigned");
                self.shared.counters.rebalances.increment(1);
                self.assigned.add(&partitions, crate::time::now());
                self.keep(&partitions)?;
                self.resolve(partitions);
            }
            Event::Revoked { partitions, lost } => self.on_revoked(partitions, lost)?,
            Event::EndOfPartition { at, next_offset } => {
                if let Some(segmenter) = self.segmenter_of(&at.topic) {
                    segmenter.advance(at.partition, next_offset, Instant::now());
                }
            }
            Event::OutOfRange { at, offset } => {
                tracing::warn!(
                    topic = &*at.topic,
                    partition = at.partition,
                    offset,
                    "the broker does not have the next offset"
                );
                if let Some(segmenter) = self.segmenter_of(&at.topic) {
                    segmenter.hold(at.partition, Wait::OutOfRange);
                    segmenter.ask(Question::OutOfRange { partition: at.partition });
                }
            }
            Event::Truncated { at, error, diverged, fresh } => {
                tracing::error!(topic = &*at.topic, partition = at.partition, %error, "the log was cut below the archive's position");
                if let Some(segmenter) = self.segmenter_of(&at.topic) {
                    segmenter.hold(at.partition, Wait::Truncated);
                    segmenter.ask(Question::Truncated { partition: at.partition, diverged, fresh });
                }
            }
            Event::PartitionError { at, error } => {
                tracing::warn!(topic = &*at.topic, partition = at.partition, %error, hint = error.hint_text(), "partition error");
                if let Some(segmenter) = self.segmenter_of(&at.topic) {
                    segmenter.shown.still.refuse(at.partition, Refusal::of(&error));
                }
            }
            Event::TopicError { topic, error } => {
                tracing::warn!(topic = &*topic, %error, hint = error.hint_text(), "a topic cannot be read");
                if let Some(segmenter) = self.segmenter_of(&topic) {
                    segmenter.shown.still.refuse_all(Refusal::of(&error));
                }
            }
            Event::AllBrokersDown => self.log_outage(Instant::now()),
            Event::Fault { error, fatal: true } => return Err(error),
            Event::Fault { error, fatal: false } => {
                tracing::warn!(%error, hint = error.hint_text(), "kafka");
                self.news.fault = Some(Refusal::of(&error));
            }
        }
        Ok(())
    }

    fn log_outage(&mut self, now: Instant) {
        if self.outage_told.is_none_or(|told| now.duration_since(told) >= OUTAGE_EVERY) {
            self.outage_told = Some(now);
            tracing::warn!(bootstrap_servers = %self.kafka.bootstrap_servers, "no broker can be reached; waiting");
        }
    }

    fn read_task_events(&mut self) -> Result<()> {
        while let Ok(event) = self.task_events.try_recv() {
            self.on_task_event(event)?;
        }
        Ok(())
    }

    fn on_task_event(&mut self, event: TaskEvent) -> Result<()> {
        match event {
            TaskEvent::Resolved { ticket, resolved, unresolved } => self.on_resolved(ticket, resolved, unresolved)?,
            TaskEvent::Encoded { segmenter, memory, result } => self.on_encoded(segmenter, memory, result),
            TaskEvent::Committed { segmenter, seq, segment, empty } => {
                self.on_committed(segmenter, seq, segment, empty)
            }
            TaskEvent::Fenced { segmenter: id, mut dropped } => {
                let Some(segmenter) = self.segmenters.get_mut(&id) else { return Ok(()) };
                dropped.retain(|dropped| segmenter.misses(dropped.partition, dropped.seq));
                if !dropped.is_empty() {
                    // What came after the dropped segment does not follow what is archived: it ends here, to be dropped.
                    segmenter.seal(SealReason::Conflict);
                    let positions: Vec<_> = dropped.iter().map(|dropped| (dropped.partition, dropped.from)).collect();
                    self.reposition(id, &positions)?;
                }
            }
            TaskEvent::Found { segmenter, partition, from } => self.reposition(segmenter, &[(partition, from)])?,
            TaskEvent::Positioned { segmenter: id, seq, positions } => {
                if let Some(segmenter) = self.segmenters.get_mut(&id) {
                    segmenter.covered(seq, &[]);
                }
                self.reposition(id, &positions)?;
            }
            TaskEvent::GenerationEnds { segmenter, cut } => self.end_generation(segmenter, cut),
            TaskEvent::Ended { segmenter } => self.on_ended(segmenter),
            TaskEvent::Recreated { topic, topic_id } => self.on_recreated(&topic, &topic_id),
            TaskEvent::Followed { topic, generation } => self.on_followed(&topic, generation),
            TaskEvent::Archived { segmenter, totals } => {
                if let Some(segmenter) = self.segmenters.get_mut(&segmenter) {
                    segmenter.shown.totals = totals;
                }
                self.news.last_checkpoint = Some(crate::time::now());
            }
            TaskEvent::Gaps { segmenter, gaps } => {
                if let Some(segmenter) = self.segmenters.get_mut(&segmenter) {
                    segmenter.shown.add_gaps(gaps);
                }
            }
            TaskEvent::Measured { segmenter, skip, lost } => self.on_measured(segmenter, &skip, lost),
            TaskEvent::Skipped { segmenter, partition, start, end } => {
                self.on_skipped(segmenter, partition, (start, end))
            }
            TaskEvent::Refused(error) => return Err(error),
            TaskEvent::Seen(seen) => self.on_seen(seen),
            TaskEvent::Stable(offsets) => self.on_stable(&offsets),
            TaskEvent::Stop => self.stop()?,
        }
        Ok(())
    }

    fn segmenter_of(&mut self, topic: &str) -> Option<&mut Segmenter> {
        self.segmenters.get_mut(self.current.get(topic)?)
    }

    fn ask(&self, segmenter: SegmenterId, request: Request) {
        if let Some(committer) = self.committers.get(&segmenter)
            && committer.send(request).is_err()
        {
            tracing::debug!("a committer has ended");
        }
    }

    fn on_committed(&mut self, id: SegmenterId, seq: u64, segment: Option<SegmentRef>, empty: Vec<PartitionRange>) {
        if let Some(segment) = &segment {
            self.summary.segments += 1;
            self.summary.records += segment.records();
            self.summary.raw_bytes += segment.raw_bytes;
            self.summary.stored_bytes += segment.bytes;
        }
        let Some(segmenter) = self.segmenters.get_mut(&id) else { return };
        if let Some(segment) = &segment {
            segmenter.shown.counters.archived(segment);
            segment.partitions.iter().for_each(|range| segmenter.shown.follow(range));
        }
        let ranges = segment.map_or(empty, |segment| segment.partitions);
        segmenter.covered(seq, &ranges);
        if self.current.get(&segmenter.topic) == Some(&id) {
            let at = |partition| TopicPartition { topic: Arc::clone(&segmenter.topic), partition };
            self.group_offsets.extend(ranges.iter().map(|range| (at(range.partition), range.end)));
        }
    }

    fn on_tick(&mut self, now: Instant) -> Result<()> {
        self.published.tick(now);
        self.apply_desired_state()?;
        self.follow_skips();
        for segmenter in self.segmenters.values_mut() {
            segmenter.seal_if_old(now);
        }
        self.keep_memory();
        self.reconcile()?;
        self.let_go(now)?;
        self.resolve_again(now);
        self.check_ownership();
        self.publish_change(now);
        let (current, ending, committers) = (&self.current, &self.ending, &mut self.committers);
        self.segmenters.retain(|id, segmenter| {
            let known = current.get(&segmenter.topic) == Some(id) || ending.get(&segmenter.topic) == Some(id);
            let needed = known || !segmenter.is_idle();
            if !needed {
                committers.remove(id);
            }
            needed
        });
        Ok(())
    }

    fn commit_to_group(&mut self) {
        if self.group_offsets.is_empty() {
            return;
        }
        let offsets: Vec<(TopicPartition, i64)> = std::mem::take(&mut self.group_offsets).into_iter().collect();
        if let Err(error) = self.consumer.commit(&offsets) {
            tracing::debug!(%error, "offsets were not committed to the group; the archive has them");
        }
    }

    fn tell_coverage(&mut self) {
        let report = self.current.values().filter_map(|id| self.segmenters.get(id)).map(Told::of).collect();
        // One that is still busy with the last report, because no broker answers, misses this one.
        if self.coverage.try_send(report).is_err() {
            tracing::debug!("coverage is busy");
        }
    }

    fn log_summary(&mut self) {
        let Summary { segments, records, raw_bytes, stored_bytes } = std::mem::take(&mut self.summary);
        let memory_bytes: usize = self.segmenters.values().map(Segmenter::memory).sum();
        let (state, topics) = (self.state().name(), self.current.len());
        tracing::info!(
            connector = "kafka",
            state,
            topics,
            records,
            segments,
            raw_bytes,
            stored_bytes,
            memory_bytes,
            "archived"
        );
    }

    /// Stops fetching, and seals what came.
    fn stop(&mut self) -> Result<()> {
        self.stopping.get_or_insert_with(|| Instant::now() + STOP_WITHIN);
        self.reconcile()?;
        for segmenter in self.segmenters.values_mut() {
            segmenter.seal(SealReason::Stop);
        }
        Ok(())
    }

    fn is_stopped(&self, now: Instant) -> bool {
        let Some(deadline) = self.stopping else { return false };
        let idle = self.segmenters.values().all(Segmenter::is_idle);
        if !idle && now >= deadline {
            tracing::warn!("stopped before the last segments were committed; they will be read again");
        }
        idle || now >= deadline
    }
}

/// Whether something that happens every `period` is due, and if so, notes it as done.
fn due(last: &mut Instant, period: Duration, now: Instant) -> bool {
    let due = now.duration_since(*last) >= period;
    if due {
        *last = now;
    }
    due
}
