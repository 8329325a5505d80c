//! Records into the target, in transactions that carry their own progress.
//!
//! ```text
//! begin ─► produce … produce ─► offsets of the source, under the replay's group ─► commit ─► begin …
//! ```
//! A transaction stays open for about [`COMMIT_EVERY`]. Whatever ends the process, the target shows the records and the
//! progress of whole transactions only (KIP-98), and the next run with the same id, whose first act fences this one, goes
//! on at the next record.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, Producer as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::runtime::Handle;
use tokio::sync::mpsc::Receiver;

use super::connection::{failed, wrong_property};
use super::effort::Effort;
use super::flight::Flight;
use super::late::Late;
use super::mapping::Mapping;
use super::marks::{Identity, noted, write_mark};
use super::preflight::Findings;
use super::producer::settings;
use super::raw::{Topic, produce};
use super::refusals::{Deliveries, code_of, out_of_time};
use super::target::Target;
use crate::error::{Error, Kind, Result};
use crate::failpoint::failpoint;
use crate::record::{Block, Record};
use crate::replay::Stop;
use crate::replay::feed::{Ended, Run, Step};
use crate::replay::offset_map::{At, SentRun};
use crate::replay::plan::{Mark, Marks, Plan};
use crate::replay::{Counters, Tally};

/// How long a transaction stays open: what an interrupted replay sends again at most, and how far a reader of committed
/// records lags. A commit costs some ten milliseconds.
const COMMIT_EVERY: Duration = Duration::from_secs(1);
/// How long the target may take over a step of a transaction at the least; as long as the transaction may last, if that is
/// longer.
const STEP: Duration = Duration::from_secs(60);
/// How long one attempt to abort a transaction may take.
const ABORT: Duration = Duration::from_millis(200);
/// How often every mark is committed again, whether it moved or not: brokers forget each by itself, as soon as
/// `offsets.retention.minutes` (a minute at the least) after it was committed.
const REFRESH: Duration = Duration::from_secs(20);
/// Marks in one request. A broker appends those of one request as one batch, which has to fit into `message.max.bytes`; with what
/// they say of the map of offsets each has up to 1 KiB.
const MARKS_AT_ONCE: usize = 500;
/// How long to wait for room in a full queue before looking again.
const QUEUE_PAUSE: Duration = Duration::from_millis(2);

/// The producer of one replay.
pub(super) struct Sink {
    // Dropped before the producer that they belong to.
    topics: Vec<Topic>,
    producer: BaseProducer<Deliveries>,
    group: ConsumerGroupMetadata,
    id: String,
    identity: Identity,
    /// Bytes that the queue holds at most.
    queue: u64,
    /// Bytes on their way at first.
    window: u64,
    /// How long the broker lets a transaction last.
    transaction: Duration,
}

/// What a run has sent.
pub(super) struct Sent {
    /// What is committed.
    pub(super) done: Done,
    /// The transaction that came to no end in time, if one did.
    pub(super) unended: Option<Unended>,
    /// The map of offsets, where it is kept.
    pub(super) mapping: Option<Mapping>,
}

/// A state that a transaction ends in.
#[derive(Debug, Clone, Default)]
pub(super) struct Done {
    /// What went out.
    pub(super) tally: Tally,
    /// Where every target partition stands.
    pub(super) marks: Marks,
}

/// A transaction that came to no end in time.
pub(super) struct Unended {
    /// Why.
    pub(super) error: Error,
    /// What it was to come to: the broker may have committed it all the same.
    pub(super) wanted: Done,
}

impl Sink {
    /// Opens the producer and fences an earlier run of the same replay. Blocks.
    pub(super) fn open(
        target: &Target,
        identity: Identity,
        findings: &Findings,
        effort: Effort,
        maps: bool,
    ) -> Result<Self> {
        let (mut settings, queue) = settings(target, findings, effort);
        // Who wants to know where records are put has to be told of each.
        settings.set("delivery.report.only.error", (!maps).to_string());
        let number = |key: &str| settings.get(key).and_then(|number| number.parse().ok());
        let transaction = number("transaction.timeout.ms").map_or(effort.transaction, Duration::from_millis);
        let producer: BaseProducer<Deliveries> =
            settings.create_with_context(Deliveries::new(maps)).map_err(|error| wrong_property(&error))?;
        let id = target.id.clone();
        let (group, window) = (target.group()?, effort.window);
        let sink = Self { topics: Vec::new(), producer, group, id, identity, queue, window, transaction };
        sink.step("begin", || sink.producer.init_transactions(STEP))?;
        Ok(sink)
    }

    /// Commits where every target partition stands, before the first record: from then on a mark that is not there is one
    /// that was lost. Blocks.
    pub(super) fn mark_all(&self, marks: &Marks, mapping: Option<&mut Mapping>) -> Result<()> {
        self.step("begin", || self.producer.begin_transaction())?;
        self.commit(marks, mapping)
    }

    /// Sends what comes until the channel closes, and commits all of it. Blocks. When it fails, the last transaction is
    /// aborted, and what was committed before stays. `done` is what earlier runs have sent, and where every target
    /// partition stands.
    pub(super) fn drain(
        mut self,
        plan: &Plan,
        mut steps: Receiver<Step>,
        counters: &Counters,
        (done, late): (Done, Late),
    ) -> Result<Sent> {
        self.topics =
            plan.parts.iter().map(|part| Topic::new(&self.producer, &part.target)).collect::<Result<Vec<_>>>()?;
        let refreshed = Instant::now();
        let mut work = Work {
            sink: &self,
            plan,
            tally: done.tally.clone(),
            marks: Marks::new(),
            generations: BTreeMap::new(),
            open_since: None,
            done,
            refreshed,
            late,
            flight: Flight::new(self.window, self.queue, refreshed),
        };
        let sent = work.run(&mut steps, counters);
        let lasted = work.open_since.map(|since| since.elapsed());
        if sent.is_err()
            && work.open_since.is_some()
            && let Err(abort) = self.abort()
        {
            tracing::debug!(error = %abort, "the transaction is left to the target's timeout");
        }
        let mapping = work.late.last(&work.done.marks);
        let Err(error) = sent else { return Ok(Sent { done: work.done, unended: None, mapping }) };
        // A record that was refused is the reason why the transaction failed.
        let (error, code) = self.producer.context().failure().unwrap_or_else(|| {
            let code = code_of(&error);
            (error, code)
        });
        if !code.is_some_and(|code| out_of_time(code, lasted.is_some_and(|lasted| lasted >= self.transaction))) {
            return Err(error);
        }
        let mut wanted = Done { tally: work.tally, marks: work.done.marks.clone() };
        wanted.marks.extend(work.marks);
        Ok(Sent { done: work.done, unended: Some(Unended { error, wanted }), mapping })
    }

    /// Aborts the open transaction. librdkafka waits there until all reports of what it throws away were looked at, and nobody
    /// else looks (rdkafka_txnmgr.c, rd_kafka_abort_transaction): so it is asked for short times, with a look between them.
    fn abort(&self) -> KafkaResult<()> {
        let deadline = Instant::now() + STEP;
        loop {
            match self.producer.abort_transaction(ABORT) {
                Err(KafkaError::Transaction(error)) if error.is_retriable() && Instant::now() < deadline => {
                    self.producer.poll(QUEUE_PAUSE);
                }
                ended => return ended,
            }
        }
    }

    /// One step of the transaction, taken again while the target says that it may succeed.
    fn step(&self, doing: &str, step: impl Fn() -> KafkaResult<()>) -> Result<()> {
        let deadline = Instant::now() + STEP.max(self.transaction);
        loop {
            let error = match step() {
                Ok(()) => return Ok(()),
                Err(KafkaError::Transaction(error)) if error.is_retriable() && Instant::now() < deadline => {
                    self.producer.poll(QUEUE_PAUSE);
                    continue;
                }
                Err(error) => failed(error, || format!("the replay {} cannot {doing} a transaction", self.id)),
            };
            return Err(if error.kind() == Kind::Fenced {
                error.hint("another run with this --id has taken over; only one can go on")
            } else {
                error
            });
        }
    }
}

/// A drain under way.
struct Work<'a> {
    sink: &'a Sink,
    plan: &'a Plan,
    /// What went out, with the open transaction.
    tally: Tally,
    /// The progress that the open transaction will commit.
    marks: Marks,
    /// Of which generation is what the open transaction has of a target partition, where the map of offsets is kept.
    generations: BTreeMap<(String, i32), u32>,
    open_since: Option<Instant>,
    /// What is committed.
    done: Done,
    /// When all marks were last committed.
    refreshed: Instant,
    late: Late,
    flight: Flight,
}

impl Work<'_> {
    fn run(&mut self, steps: &mut Receiver<Step>, counters: &Counters) -> Result<()> {
        let runtime = Handle::current();
        loop {
            let step = match self.open_since {
                None => steps.blocking_recv(),
                Some(since) => {
                    let left = (since + COMMIT_EVERY).saturating_duration_since(Instant::now());
                    match runtime.block_on(async { tokio::time::timeout(left, steps.recv()).await }) {
                        Ok(step) => step,
                        Err(_elapsed) => {
                            self.commit()?;
                            continue;
                        }
                    }
                }
            };
            match step {
                Some(Step::Send(run)) => self.send(&run)?,
                Some(Step::Complete(Ended { stops, .. })) => {
                    self.mark_ends(&stops)?;
                    self.tally.complete = stops.is_empty();
                    self.tally.stops = stops;
                    return self.commit();
                }
                None => return self.commit(),
            }
            counters.show(&self.tally);
            if self.is_due() {
                self.commit()?;
            }
        }
    }

    fn begin(&mut self) -> Result<()> {
        if self.open_since.is_none() {
            self.sink.step("begin", || self.sink.producer.begin_transaction())?;
            self.open_since = Some(Instant::now());
        }
        Ok(())
    }

    /// Sends a run, in more than one transaction where that takes long: a run may hold more than the target takes in the
    /// time that a transaction has.
    fn send(&mut self, run: &Run) -> Result<()> {
        let part = &self.plan.parts[run.part];
        let partition = run.block.partition();
        let at = |offset| ((part.target.clone(), partition), Mark { generation: part.stream.number, offset });
        self.keep_generations_apart(&part.target, partition, part.stream.number)?;
        let sides = self.plan.schema_ids.sides(&part.stream.topic);
        let (mut next, mut room) = (None, Block::new(partition, 0));
        for record in run.records() {
            self.begin()?;
            let at_target = self.plan.schema_ids.at_target(&record, sides, &mut room);
            self.tally.renumbered += u64::from(at_target.is_some());
            self.put(run.part, partition, &at_target.unwrap_or(record))?;
            self.tally.add(run.part, partition, record.offset, record.size());
            next = Some(record.offset + 1);
            if self.is_due() {
                self.marks.extend([at(record.offset + 1)]);
                self.commit()?;
            }
        }
        self.marks.extend(next.map(at));
        self.sink.producer.poll(Duration::ZERO);
        self.sink.producer.context().verdict()
    }

    /// Ends the transaction that has another generation of the topic: who is told where records were put could not tell whose they
    /// are.
    fn keep_generations_apart(&mut self, target: &str, partition: i32, generation: u32) -> Result<()> {
        if self.late.mapping.is_none() {
            return Ok(());
        }
        let at = (target.to_owned(), partition);
        if self.generations.get(&at).is_some_and(|other| *other != generation) {
            self.commit()?;
        }
        self.generations.insert(at, generation);
        Ok(())
    }

    /// Puts a record into the queue, as soon as there is room.
    fn put(&mut self, part: usize, partition: i32, record: &Record<'_>) -> Result<()> {
        // librdkafka takes 0 for "now" (rdkafka_msg.c, rd_kafka_msg_new0), so 1970's first millisecond cannot be
        // sent; its second one is nearest.
        let timestamp = if record.timestamp == 0 { 1 } else { record.timestamp };
        self.tally.moved_timestamps += u64::from(record.timestamp == 0);
        self.await_room()?;
        let (producer, topic) = (&self.sink.producer, &self.sink.topics[part]);
        failpoint!("replay.produce");
        loop {
            let code = match produce(producer, topic, partition, timestamp, record) {
                Ok(()) => break,
                // Whatever waits in the queue arrives or times out, and makes room.
                Err(RDKafkaErrorCode::QueueFull) if producer.in_flight_count() > 0 => {
                    producer.poll(QUEUE_PAUSE);
                    producer.context().verdict()?;
                    continue;
                }
                Err(code) => code,
            };
            let target = &self.plan.parts[part].target;
            let error = failed(KafkaError::MessageProduction(code), || {
                let place = format!("{target} partition {partition} (offset {} of the source)", record.offset);
                format!("the target cannot take {place}, of {} bytes", record.size())
            });
            return Err(match code {
                RDKafkaErrorCode::QueueFull => error.hint(
                    "the record alone is larger than the queue: raise queue.buffering.max.kbytes in --into-config",
                ),
                _ => error,
            });
        }
        self.flight.sent(record.size());
        Ok(())
    }

    /// Whether the open transaction has lasted for long enough.
    fn is_due(&self) -> bool {
        self.open_since.is_some_and(|since| since.elapsed() >= COMMIT_EVERY)
    }

    /// Waits while as much is on its way as the target takes in some seconds. Whatever is on its way arrives or times out.
    fn await_room(&mut self) -> Result<()> {
        let producer = &self.sink.producer;
        while !self.flight.has_room(u64::try_from(producer.in_flight_count()).unwrap_or(0), Instant::now()) {
            producer.poll(QUEUE_PAUSE);
            producer.context().verdict()?;
        }
        Ok(())
    }

    /// All is sent: every planned partition is marked as done to its end, whether its last offsets held a record or not. Those
    /// that stopped before something that cannot be read stay where they are: the same id goes on there.
    fn mark_ends(&mut self, stops: &[Stop]) -> Result<()> {
        self.begin()?;
        let stopped: BTreeSet<(&str, i32)> =
            stops.iter().map(|stop| (&*self.plan.parts[stop.part].target, stop.partition)).collect();
        for part in &self.plan.parts {
            for planned in part.partitions.iter().filter(|at| !stopped.contains(&(&*part.target, at.partition))) {
                let mark = Mark { generation: part.stream.number, offset: planned.end };
                self.marks.insert((part.target.clone(), planned.partition), mark);
            }
        }
        Ok(())
    }

    fn commit(&mut self) -> Result<()> {
        if self.open_since.is_none() {
            return Ok(());
        }
        let producer = &self.sink.producer;
        // `flush` waits for reports, and where only failures are reported would sleep past the end of the queue.
        while producer.in_flight_count() > 0 {
            producer.poll(QUEUE_PAUSE);
            producer.context().verdict()?;
        }
        let mut all = self.done.marks.clone();
        all.extend(self.marks.iter().map(|(at, mark)| (at.clone(), *mark)));
        let refresh = self.refreshed.elapsed() >= REFRESH;
        let mut mapping = self.late.mapping.as_mut();
        if let Some(mapping) = &mut mapping {
            mapping.sent(of_generations(self.sink.producer.context().placed(), &self.generations));
        }
        failpoint!("replay.commit");
        self.sink.commit(if refresh { &all } else { &self.marks }, mapping)?;
        failpoint!("replay.committed");
        self.refreshed = if refresh { Instant::now() } else { self.refreshed };
        if let Some(mapping) = &mut self.late.mapping {
            mapping.committed();
        }
        self.done = Done { tally: self.tally.clone(), marks: all };
        self.open_since = None;
        let moved = std::mem::take(&mut self.marks);
        self.late.committed(&moved, &self.done.marks);
        Ok(())
    }
}

/// Says of what was placed which generation it is of.
fn of_generations(
    mut placed: BTreeMap<At, Vec<SentRun>>,
    generations: &BTreeMap<At, u32>,
) -> BTreeMap<At, Vec<SentRun>> {
    for (at, runs) in &mut placed {
        let generation = generations.get(at).copied().unwrap_or(0);
        runs.iter_mut().for_each(|run| run.generation = generation);
    }
    placed
}

impl Sink {
    /// Commits the open transaction, with `marks` and what they say of the map.
    fn commit(&self, marks: &Marks, mut mapping: Option<&mut Mapping>) -> Result<()> {
        if let Some(mapping) = &mut mapping {
            mapping.make_room(marks.keys())?;
        }
        let marks: Vec<_> = marks.iter().collect();
        for some in marks.chunks(MARKS_AT_ONCE) {
            let offsets = self.offsets(some, mapping.as_deref())?;
            self.step("commit", || self.producer.send_offsets_to_transaction(&offsets, &self.group, STEP))?;
        }
        self.step("commit", || self.producer.commit_transaction(STEP))
    }

    fn offsets(&self, marks: &[(&At, &Mark)], mapping: Option<&Mapping>) -> Result<TopicPartitionList> {
        let mut list = TopicPartitionList::with_capacity(marks.len());
        let mut notes: BTreeMap<u32, String> = BTreeMap::new();
        for (at, mark) in marks {
            let note = notes.entry(mark.generation).or_insert_with(|| write_mark(&self.identity, mark.generation));
            let mut element = list.add_partition(&at.0, at.1);
            match mapping {
                None => element.set_metadata(note.as_str()),
                Some(mapping) => element.set_metadata(format!("{note}{}", noted(&mapping.note(at)))),
            }
            element
                .set_offset(Offset::Offset(mark.offset))
                .map_err(|error| failed(error, || format!("the offset {} cannot be committed", mark.offset)))?;
        }
        Ok(list)
    }
}
