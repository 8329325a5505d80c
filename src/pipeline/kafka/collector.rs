//! The collector: the one thread that holds the consumer and every lane.
//!
//! ```text
//!              ┌──────────── notices: positions, encoded, committed, fenced ◄──────────┐
//!              ▼                                                                        │
//!  librdkafka ─► collector ─► lanes ─► encoders (blocking threads) ─► committers (tasks) ┘
//!              │
//!              └► resolver (where to read on), coverage (what is complete)
//! ```
//!
//! It never waits for anything but the consumer's next messages, and that for [`POLL_WAIT`] at most: whatever takes
//! time is asked of a task, and its answer comes back as a [`Notice`]. When memory or the spool is full, partitions are
//! paused; polling goes on, so that the group keeps its member.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::commit::{Committer, Request, Shared, another_life};
use super::coverage::Archived;
use super::lane::{Encoded, Finish, Lane, LaneId, RETRY_AFTER, Reason, Step};
use super::pool::Pool;
use super::resolve::{self, Resolved};
use super::{Free, Notice};
use crate::config::Kafka;
use crate::error::Result;
use crate::record::Block;
use crate::segment::{Encoding, SegmentInfo, SegmentWriter};
use crate::source::kafka::{Consumer, Event, TopicPartition};
use crate::stream::{PartitionRange, SegmentRef};

/// How long one poll waits for messages. It is also how late a notice may be read.
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

/// How often coverage is told how far each partition is archived.
const COVERAGE_EVERY: Duration = Duration::from_secs(5);

/// How often offsets are committed to the group; they are only an echo for other tools.
const GROUP_COMMIT_EVERY: Duration = Duration::from_secs(1);

/// librdkafka tells of every attempt that fails; one line in this time is enough.
const OUTAGE_EVERY: Duration = Duration::from_secs(30);

/// How often one line says what was archived.
const SUMMARY_EVERY: Duration = Duration::from_secs(60);

/// How long a revoked partition may wait for its last segment's checkpoint before it is given up.
const LEAVE_WITHIN: Duration = Duration::from_secs(15);

/// How long leaving the group may take.
const CLOSE_WITHIN: Duration = Duration::from_secs(5);

/// How long a stop may take; Kubernetes kills after 30 s.
const STOP_WITHIN: Duration = Duration::from_secs(20);

/// Partitions that the group wants back, and the segments that should be committed first.
struct Leaving {
    partitions: Vec<TopicPartition>,
    waits: Vec<(LaneId, u64)>,
    deadline: Instant,
}

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
    notices: Receiver<Notice>,
    resolver: mpsc::UnboundedSender<resolve::Request>,
    coverage: mpsc::Sender<Vec<Archived>>,
    lanes: BTreeMap<LaneId, Lane>,
    committers: HashMap<LaneId, mpsc::UnboundedSender<Request>>,
    /// The lane that takes a topic's records now.
    current: HashMap<Arc<str>, LaneId>,
    next_lane: u32,
    /// Encoding steps under way, and how many may be.
    encoding: usize,
    encoders: usize,
    /// The lane that had the last step, so that all get their turn.
    last_encoded: Option<LaneId>,
    memory_budget: usize,
    pool: Pool,
    full: bool,
    leaving: Vec<Leaving>,
    group_offsets: BTreeMap<TopicPartition, i64>,
    message_bytes: u64,
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
    pub(super) notices: Receiver<Notice>,
    pub(super) resolver: mpsc::UnboundedSender<resolve::Request>,
    pub(super) coverage: mpsc::Sender<Vec<Archived>>,
    pub(super) memory_budget: u64,
}

impl Collector {
    pub(super) fn new(parts: Parts) -> Self {
        let Parts { kafka, shared, consumer, runtime, notices, resolver, coverage, memory_budget } = parts;
        let memory_budget = usize::try_from(memory_budget).unwrap_or(usize::MAX);
        Self {
            kafka,
            shared,
            consumer,
            runtime,
            notices,
            resolver,
            coverage,
            lanes: BTreeMap::new(),
            committers: HashMap::new(),
            current: HashMap::new(),
            next_lane: 0,
            encoding: 0,
            encoders: std::thread::available_parallelism().map_or(1, |cores| cores.get().saturating_sub(1).clamp(1, 4)),
            last_encoded: None,
            memory_budget,
            pool: Pool::new(memory_budget / POOL_PART),
            full: false,
            leaving: Vec::new(),
            group_offsets: BTreeMap::new(),
            message_bytes: 1024,
            outage_told: None,
            summary: Summary::default(),
            stopping: None,
        }
    }

    /// Runs until a stop is asked for and done, or the consumer fails for good.
    pub(super) fn run(mut self) -> Result<()> {
        let mut events = Vec::new();
        let start = Instant::now();
        let (mut tick, mut group, mut coverage, mut summary) = (start, start, start, start);
        loop {
            self.read_notices()?;
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
            if due(&mut group, GROUP_COMMIT_EVERY, now) {
                self.commit_to_group();
            }
            if due(&mut coverage, COVERAGE_EVERY, now) {
                self.tell_coverage();
            }
            if due(&mut summary, SUMMARY_EVERY, now) {
                self.log_summary();
            }
        }
        self.commit_to_group();
        self.tell_coverage();
        self.log_summary();
        self.consumer.close(CLOSE_WITHIN)
    }

    fn poll(&mut self, events: &mut Vec<Event>) -> Result<()> {
        let most = usize::try_from(POLL_BYTES / self.message_bytes.max(1)).unwrap_or(1).clamp(16, POLL_MESSAGES);
        let now = Instant::now();
        let (mut bytes, mut count) = (0, 0);
        let (lanes, current, pool) = (&mut self.lanes, &self.current, &mut self.pool);
        let mut last: Option<(u32, Option<LaneId>)> = None;
        self.consumer.poll(
            most,
            POLL_WAIT,
            |message| {
                bytes += (message.key.map_or(0, <[u8]>::len) + message.value.map_or(0, <[u8]>::len)) as u64;
                count += 1;
                let lane = match &last {
                    Some((topic, lane)) if *topic == message.topic_index => *lane,
                    _ => {
                        let lane = current.get(message.topic).copied();
                        last = Some((message.topic_index, lane));
                        lane
                    }
                };
                if let Some(lane) = lane.and_then(|id| lanes.get_mut(&id)) {
                    lane.push(&message, now, pool);
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
                self.resolve(resolve::Request { partitions, ended: None, cut: None });
            }
            Event::Revoked { partitions, lost } => self.on_revoked(partitions, lost)?,
            Event::EndOfPartition { at, next_offset } => {
                if let Some(lane) = self.lane_of(&at.topic) {
                    lane.advance(at.partition, next_offset, Instant::now());
                }
            }
            Event::OutOfRange { at, offset } => {
                tracing::warn!(
                    topic = &*at.topic,
                    partition = at.partition,
                    offset,
                    "the broker does not have the next offset"
                );
                self.seal_topic(&at.topic, Reason::Conflict);
                if let Some(lane) = self.lane_of(&at.topic) {
                    lane.hold(at.partition);
                    let id = lane.id;
                    self.ask(id, Request::OutOfRange { partition: at.partition });
                }
            }
            Event::Truncated { at, error } => {
                tracing::error!(topic = &*at.topic, partition = at.partition, %error, "the log was cut below the archive's position");
                self.begin_new_life(&at.topic, Some(at.partition));
            }
            Event::PartitionError { at, error } => {
                tracing::warn!(topic = &*at.topic, partition = at.partition, %error, hint = error.hint_text(), "partition error");
            }
            Event::TopicError { topic, error } => {
                tracing::warn!(topic = &*topic, %error, hint = error.hint_text(), "a topic cannot be read");
            }
            Event::AllBrokersDown => {
                let now = Instant::now();
                if self.outage_told.is_none_or(|told| now.duration_since(told) >= OUTAGE_EVERY) {
                    self.outage_told = Some(now);
                    tracing::warn!(bootstrap_servers = %self.kafka.bootstrap_servers, "no broker can be reached; waiting");
                }
            }
            Event::Fault { error, fatal: true } => return Err(error),
            Event::Fault { error, fatal: false } => tracing::warn!(%error, hint = error.hint_text(), "kafka"),
        }
        Ok(())
    }

    fn resolve(&self, request: resolve::Request) {
        if self.resolver.send(request).is_err() {
            tracing::debug!("the resolver has ended");
        }
    }

    /// Seals what is open of the revoked partitions, and lets them go once it is committed. Partitions that were lost
    /// have another owner already: the fence decides whose segment counts.
    fn on_revoked(&mut self, partitions: Vec<TopicPartition>, lost: bool) -> Result<()> {
        tracing::info!(partitions = partitions.len(), lost, "partitions revoked");
        let mut waits = Vec::new();
        for at in &partitions {
            self.seal_topic(&at.topic, Reason::Revoked);
            if let Some(lane) = self.lane_of(&at.topic) {
                lane.leave(at.partition);
                waits.push((lane.id, lane.sealed()));
            }
        }
        waits.sort_unstable();
        waits.dedup();
        let now = Instant::now();
        let deadline = if lost { now } else { now + LEAVE_WITHIN };
        self.leaving.push(Leaving { partitions, waits, deadline });
        self.let_go(now)
    }

    fn let_go(&mut self, now: Instant) -> Result<()> {
        let mut index = 0;
        while index < self.leaving.len() {
            let leaving = &self.leaving[index];
            let committed = |(id, seq): &(LaneId, u64)| self.lanes.get(id).is_none_or(|lane| lane.committed() >= *seq);
            if now < leaving.deadline && !leaving.waits.iter().all(committed) {
                index += 1;
                continue;
            }
            let leaving = self.leaving.remove(index);
            self.commit_to_group();
            for at in &leaving.partitions {
                if let Some(lane) = self.lane_of(&at.topic) {
                    lane.remove(at.partition);
                }
                self.group_offsets.remove(at);
            }
            self.consumer.unassign(&leaving.partitions)?;
        }
        Ok(())
    }

    fn read_notices(&mut self) -> Result<()> {
        while let Ok(notice) = self.notices.try_recv() {
            self.on_notice(notice)?;
        }
        Ok(())
    }

    fn on_notice(&mut self, notice: Notice) -> Result<()> {
        match notice {
            Notice::Resolved(resolved) => self.on_resolved(resolved)?,
            Notice::Encoded { lane, memory, result } => self.on_encoded(lane, memory, result),
            Notice::Committed { lane, seq, segment, empty } => self.on_committed(lane, seq, segment, empty),
            Notice::Fenced { lane: id, mut dropped } => {
                let Some(lane) = self.lanes.get_mut(&id) else { return Ok(()) };
                dropped.retain(|dropped| lane.misses(dropped.partition, dropped.seq));
                if !dropped.is_empty() {
                    // What came after the dropped segment does not follow what is archived: it ends here, to be dropped.
                    lane.seal(Reason::Conflict);
                    let positions: Vec<_> = dropped.iter().map(|dropped| (dropped.partition, dropped.offset)).collect();
                    self.reposition(id, &positions)?;
                }
            }
            Notice::Found { lane, partition, offset } => self.reposition(lane, &[(partition, offset)])?,
            Notice::Positioned { lane: id, seq, positions } => {
                if let Some(lane) = self.lanes.get_mut(&id) {
                    lane.covered(seq, &[]);
                }
                self.reposition(id, &positions)?;
            }
            Notice::LifeEnded { lane } => {
                if let Some(lane) = self.lanes.get(&lane) {
                    let topic = Arc::clone(&lane.topic);
                    self.begin_new_life(&topic, None);
                }
            }
            Notice::Recreated { topic, topic_id } => {
                let known = self.lane_of(&topic).and_then(|lane| lane.topic_id.as_deref());
                if another_life(known, Some(&topic_id)) {
                    self.begin_new_life(&topic, None);
                }
            }
            Notice::Stop => self.stop()?,
        }
        Ok(())
    }

    /// Reads partitions on from where the archive stands.
    fn reposition(&mut self, id: LaneId, positions: &[(i32, i64)]) -> Result<()> {
        let Some(lane) = self.lanes.get_mut(&id) else { return Ok(()) };
        for (partition, offset) in positions {
            lane.reposition(*partition, *offset);
        }
        if self.current.get(&lane.topic) != Some(&id) {
            return Ok(());
        }
        let at = |partition| TopicPartition { topic: Arc::clone(&lane.topic), partition };
        let seek: Vec<_> = positions.iter().map(|&(partition, offset)| (at(partition), offset)).collect();
        self.consumer.seek(&seek)
    }

    /// A topic's life has ended: what came of it is committed to its own chain, and its partitions are asked for anew.
    /// `cut`: the partition whose log is another one now.
    fn begin_new_life(&mut self, topic: &Arc<str>, cut: Option<i32>) {
        self.seal_topic(topic, Reason::Conflict);
        let Some(id) = self.current.remove(topic) else { return };
        let Some(lane) = self.lanes.get_mut(&id) else { return };
        let partitions = lane.partitions();
        for &partition in &partitions {
            lane.hold(partition);
        }
        let ended = Some(lane.stream.clone());
        let partitions =
            partitions.into_iter().map(|partition| TopicPartition { topic: Arc::clone(topic), partition }).collect();
        self.resolve(resolve::Request { partitions, ended, cut });
    }

    fn on_resolved(&mut self, resolved: Vec<Resolved>) -> Result<()> {
        let mut assign = Vec::new();
        for Resolved { topic, chain, offsets } in resolved {
            let known = self.lane_of(&topic).filter(|lane| lane.stream == *chain.stream()).map(|lane| lane.id);
            let id = known.unwrap_or_else(|| self.open_lane(&topic, chain));
            let Some(lane) = self.lanes.get_mut(&id) else { continue };
            for (partition, offset) in offsets {
                lane.add(partition, offset);
                assign.push((TopicPartition { topic: Arc::clone(&topic), partition }, offset));
            }
        }
        self.consumer.assign(&assign)?;
        // Those that are read already, in the life of the topic that has ended, may be paused.
        self.consumer.resume(&assign)
    }

    fn open_lane(&mut self, topic: &Arc<str>, chain: crate::manifest::Chain) -> LaneId {
        let id = LaneId(self.next_lane);
        self.next_lane += 1;
        let settings = self.kafka.segment_of(topic).clone();
        let encoding = Encoding { format: settings.format, zstd_level: settings.zstd_level };
        let topic_id = chain.begin_facts().topic_id.clone();
        let lane = Lane::new(id, Arc::clone(topic), chain.stream().clone(), topic_id, settings);
        let (send, inbox) = mpsc::unbounded_channel();
        let shared = Arc::clone(&self.shared);
        let committer = Committer { lane: id, topic: Arc::clone(topic), chain, encoding, inbox, shared };
        self.runtime.spawn(committer.run());
        self.committers.insert(id, send);
        self.lanes.insert(id, lane);
        self.current.insert(Arc::clone(topic), id);
        id
    }

    fn lane_of(&mut self, topic: &str) -> Option<&mut Lane> {
        self.lanes.get_mut(self.current.get(topic)?)
    }

    fn seal_topic(&mut self, topic: &str, reason: Reason) {
        if let Some(lane) = self.lane_of(topic) {
            lane.seal(reason);
        }
    }

    fn ask(&self, lane: LaneId, request: Request) {
        if let Some(committer) = self.committers.get(&lane)
            && committer.send(request).is_err()
        {
            tracing::debug!("a committer has ended");
        }
    }

    /// Gives the encoders as many steps as they may have, the lanes in turn.
    fn encode(&mut self) {
        let now = Instant::now();
        while self.encoding < self.encoders {
            let after = self.last_encoded.map_or(0, |id| id.0 + 1);
            let mut ready = self.lanes.iter().filter(|(_, lane)| lane.is_ready(now)).map(|(id, _)| *id);
            let Some(first) = ready.next() else { break };
            let id = if first.0 >= after { first } else { ready.find(|id| id.0 >= after).unwrap_or(first) };
            self.last_encoded = Some(id);
            let Some(lane) = self.lanes.get_mut(&id) else { break };
            let Some((step, writer)) = lane.next_step(now) else { break };
            self.start_step(id, step, writer);
        }
    }

    fn start_step(&mut self, id: LaneId, step: Step, writer: Option<SegmentWriter>) {
        if let Some(Finish { seq, ranges, has_rows: false, .. }) = &step.finish {
            let empty = |&(partition, start, end): &(i32, i64, i64)| PartitionRange {
                partition,
                start,
                end,
                records: 0,
                min_timestamp: None,
                max_timestamp: None,
            };
            let request = Request::Empty { seq: *seq, ranges: ranges.iter().map(empty).collect() };
            if let Some(lane) = self.lanes.get_mut(&id) {
                lane.step_done(0, None);
            }
            return self.ask(id, request);
        }
        let Some(lane) = self.lanes.get(&id) else { return };
        let settings = lane.settings();
        let encoding = Encoding { format: settings.format, zstd_level: settings.zstd_level };
        let info = SegmentInfo {
            stream: lane.stream.clone(),
            topic_id: lane.topic_id.clone(),
            writer: self.shared.writer.clone(),
            created: chrono::Utc::now(),
        };
        let committer = self.committers.get(&id).cloned();
        let (shared, topic) = (Arc::clone(&self.shared), Arc::clone(&lane.topic));
        self.encoding += 1;
        self.runtime.spawn_blocking(move || {
            let memory = step.memory;
            let finished = step.finish.as_ref().map(|finish| (finish.seq, finish.reason));
            let result = write(&shared, step, writer, info, encoding);
            let result = result.map(|(encoded, blocks)| {
                let writer = match (encoded, finished, committer) {
                    (Encoded::Sealed(sealed), Some((seq, reason)), Some(committer)) => {
                        let records = sealed.partitions.iter().map(|range| range.records).sum::<u64>();
                        tracing::debug!(
                            topic = &*topic,
                            reason = reason.name(),
                            records,
                            bytes = sealed.bytes,
                            "segment sealed"
                        );
                        // The committer has it before the collector hears of it: their order is the segments' order.
                        if committer.send(Request::Segment { seq, sealed }).is_err() {
                            tracing::debug!("a committer has ended");
                        }
                        None
                    }
                    (Encoded::Open(writer), ..) => Some(writer),
                    (Encoded::Sealed(_), ..) => None,
                };
                Free { writer, blocks }
            });
            shared.tell(Notice::Encoded { lane: id, memory, result });
        });
    }

    fn on_encoded(&mut self, id: LaneId, memory: usize, result: Result<Free>) {
        self.encoding -= 1;
        let Some(lane) = self.lanes.get_mut(&id) else { return };
        match result {
            Ok(Free { writer, blocks }) => {
                lane.step_done(memory, writer);
                self.pool.give_back(blocks);
            }
            Err(error) => {
                tracing::error!(
                    topic = &*lane.topic,
                    %error,
                    hint = error.hint_text(),
                    retry_in = ?RETRY_AFTER,
                    "a segment cannot be written to the spool; its records will be read again"
                );
                lane.begin_anew(Instant::now() + RETRY_AFTER);
                let request = Request::Where { seq: lane.sealed(), partitions: lane.committed_offsets() };
                self.ask(id, request);
            }
        }
    }

    fn on_committed(&mut self, id: LaneId, seq: u64, segment: Option<SegmentRef>, empty: Vec<PartitionRange>) {
        if let Some(segment) = &segment {
            self.summary.segments += 1;
            self.summary.records += segment.records();
            self.summary.raw_bytes += segment.raw_bytes;
            self.summary.stored_bytes += segment.bytes;
        }
        let ranges = segment.map_or(empty, |segment| segment.partitions);
        let Some(lane) = self.lanes.get_mut(&id) else { return };
        lane.covered(seq, &ranges);
        if self.current.get(&lane.topic) == Some(&id) {
            let at = |partition| TopicPartition { topic: Arc::clone(&lane.topic), partition };
            self.group_offsets.extend(ranges.iter().map(|range| (at(range.partition), range.end)));
        }
    }

    fn on_tick(&mut self, now: Instant) -> Result<()> {
        for lane in self.lanes.values_mut() {
            lane.seal_if_old(now);
        }
        self.keep_memory();
        self.reconcile()?;
        self.let_go(now)?;
        let (current, committers) = (&self.current, &mut self.committers);
        self.lanes.retain(|id, lane| {
            let needed = current.get(&lane.topic) == Some(id) || !lane.is_idle();
            if !needed {
                committers.remove(id);
            }
            needed
        });
        Ok(())
    }

    /// Blocks may hold three eighths of the budget before the largest lanes are encoded, and half of it before fetching
    /// stops; the rest is for the pool, the encoders and librdkafka. More blocks would only wait longer for an encoder.
    fn keep_memory(&mut self) {
        let held: usize = self.lanes.values().map(Lane::memory).sum();
        if held > self.memory_budget / 8 * 3 {
            let mut by_size: Vec<(u64, LaneId)> = self.lanes.iter().map(|(id, lane)| (lane.unflushed(), *id)).collect();
            by_size.sort_unstable_by(|a, b| b.cmp(a));
            let mut to_free = (held - self.memory_budget / 4) as u64;
            for (bytes, id) in by_size {
                let Some(lane) = self.lanes.get_mut(&id) else { continue };
                if bytes > 0 {
                    lane.flush();
                }
                to_free = to_free.saturating_sub(bytes);
                if to_free == 0 {
                    break;
                }
            }
        }
        self.full = held > if self.full { self.memory_budget / 8 * 3 } else { self.memory_budget / 2 };
    }

    fn reconcile(&mut self) -> Result<()> {
        let (mut pause, mut resume) = (Vec::new(), Vec::new());
        let full = self.full || self.stopping.is_some();
        for (topic, id) in &self.current {
            let Some(lane) = self.lanes.get_mut(id) else { continue };
            let (stop, go) = lane.reconcile(full);
            pause.extend(stop.into_iter().map(|partition| TopicPartition { topic: Arc::clone(topic), partition }));
            resume.extend(
                go.into_iter()
                    .map(|(partition, offset)| (TopicPartition { topic: Arc::clone(topic), partition }, offset)),
            );
        }
        if !pause.is_empty() {
            let backed_up = self.lanes.values().filter(|lane| lane.is_backed_up()).count();
            tracing::debug!(partitions = pause.len(), memory_full = self.full, backed_up, "fetching paused");
            self.consumer.pause(&pause)?;
        }
        if !resume.is_empty() {
            self.consumer.resume(&resume)?;
        }
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
        let mut report = Vec::new();
        for (topic, id) in &self.current {
            let Some(lane) = self.lanes.get_mut(id) else { continue };
            report.extend(lane.archived().map(|(partition, covered, archived)| Archived {
                stream: lane.stream.clone(),
                topic_id: lane.topic_id.clone(),
                at: TopicPartition { topic: Arc::clone(topic), partition },
                covered,
                archived,
            }));
        }
        // One that is still busy with the last report, because no broker answers, misses this one.
        if self.coverage.try_send(report).is_err() {
            tracing::debug!("coverage is busy");
        }
    }

    fn log_summary(&mut self) {
        let Summary { segments, records, raw_bytes, stored_bytes } = std::mem::take(&mut self.summary);
        let memory_bytes: usize = self.lanes.values().map(Lane::memory).sum();
        let topics = self.current.len();
        tracing::info!(topics, records, segments, raw_bytes, stored_bytes, memory_bytes, "archived");
    }

    /// Stops fetching, and seals what came.
    fn stop(&mut self) -> Result<()> {
        self.stopping.get_or_insert_with(|| Instant::now() + STOP_WITHIN);
        self.reconcile()?;
        for lane in self.lanes.values_mut() {
            lane.seal(Reason::Stop);
        }
        Ok(())
    }

    fn is_stopped(&self, now: Instant) -> bool {
        let Some(deadline) = self.stopping else { return false };
        let idle = self.lanes.values().all(Lane::is_idle);
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

/// Writes a step's blocks to the segment's file, which is made if this is its first step, and ends it if it is its last.
fn write(
    shared: &Shared,
    step: Step,
    writer: Option<SegmentWriter>,
    info: SegmentInfo,
    encoding: Encoding,
) -> Result<(Encoded, Vec<Block>)> {
    let mut writer = match writer {
        Some(writer) => writer,
        None => SegmentWriter::create(&shared.spool.next_file().1, info, encoding)?,
    };
    let blocks = writer.write(step.blocks)?;
    let encoded = match step.finish {
        Some(finish) => Encoded::Sealed(writer.finish(&finish.ranges)?),
        None => Encoded::Open(writer),
    };
    Ok((encoded, blocks))
}
