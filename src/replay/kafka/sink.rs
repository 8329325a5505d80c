//! Records into the target, in transactions that carry their own progress.
//!
//! ```text
//! begin ─► produce … produce ─► offsets of the source, under the replay's group ─► commit ─► begin …
//! ```
//! A transaction stays open for about [`COMMIT_EVERY`]. Whatever ends the process, the target shows the records and the
//! progress of whole transactions only (KIP-98), and the next run with the same id, whose first act fences this one, goes
//! on at the next record.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::Message as _;
use rdkafka::producer::{BaseProducer, DeliveryResult, Producer as _, ProducerContext};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::runtime::Handle;
use tokio::sync::mpsc::Receiver;

use super::connection::{failed, wrong_property};
use super::flight::Flight;
use super::late::Late;
use super::preflight::Findings;
use super::raw::{Topic, produce};
use super::target::{Identity, Target, group_of, write_mark};
use crate::error::{Error, Kind, Result};
use crate::replay::feed::{Run, Step};
use crate::replay::plan::{Mark, Marks, Plan};
use crate::replay::{Counters, Tally};

/// How long a transaction stays open: what an interrupted replay sends again at most, and how far a reader of committed
/// records lags. A commit costs some ten milliseconds.
const COMMIT_EVERY: Duration = Duration::from_secs(1);
/// How long the target may take over a step of a transaction. The broker aborts a transaction after a minute
/// (`transaction.timeout.ms`).
const STEP: Duration = Duration::from_secs(60);
/// How long a transaction may last unless the brokers allow less (`transaction.max.timeout.ms`), or are slow.
const TRANSACTION: Duration = Duration::from_secs(60);
/// How often every mark is committed again, whether it moved or not: brokers forget each by itself, as soon as
/// `offsets.retention.minutes` (a minute at the least) after it was committed.
const REFRESH: Duration = Duration::from_secs(20);
/// Marks in one request. A broker appends those of one request as one batch, which has to fit into `message.max.bytes`.
const MARKS_AT_ONCE: usize = 1_000;
/// How long to wait for room in a full queue before looking again.
const QUEUE_PAUSE: Duration = Duration::from_millis(2);
/// Keys and values that wait for the target at most.
const QUEUE_KBYTES: u64 = 48 * 1024;
/// librdkafka's own limit of `batch.size` and `message.max.bytes` unless a record needs more.
const USUAL_BATCH: u64 = 1_000_000;
/// What a batch's header and its estimates take off the size that a broker counts.
const BATCH_MARGIN: u64 = 512;

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
}

/// What the target said about records that it did not take.
#[derive(Debug, Default)]
struct Deliveries {
    failures: Mutex<Failures>,
}

#[derive(Debug, Default)]
struct Failures {
    count: u64,
    first: Option<(String, Option<RDKafkaErrorCode>)>,
}

impl ClientContext for Deliveries {
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(facility, "librdkafka: {message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, "librdkafka: {reason}");
    }
}

impl ProducerContext for Deliveries {
    /// The source offset.
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, offset: usize) {
        let Err((error, message)) = result else { return };
        // What an abort throws away did not fail by itself.
        if matches!(error.rdkafka_error_code(), Some(RDKafkaErrorCode::PurgeQueue | RDKafkaErrorCode::PurgeInflight)) {
            return;
        }
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.count += 1;
        failures.first.get_or_insert_with(|| {
            let place =
                format!("{} partition {} (offset {offset} of the source)", message.topic(), message.partition());
            (format!("{place}: {error}"), error.rdkafka_error_code())
        });
    }
}

impl Deliveries {
    /// The failures as one error, if there are any.
    fn verdict(&self) -> Result<()> {
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((first, code)) = &failures.first else { return Ok(()) };
        let message = match failures.count {
            1 => format!("the target refused {first}"),
            count => format!("the target refused {count} records, the first of them {first}"),
        };
        let error = Error::new(Kind::Unavailable, message);
        Err(match code.and_then(way_out) {
            Some(hint) => error.hint(hint),
            None => error,
        })
    }
}

/// What to do about a record that the target did not take.
fn way_out(code: RDKafkaErrorCode) -> Option<&'static str> {
    use RDKafkaErrorCode as Code;
    Some(match code {
        Code::MessageTimedOut | Code::OperationTimedOut => {
            "the target takes records too slowly (a slow link, a quota): --rate 100kB/s sends no more than that"
        }
        Code::MessageSizeTooLarge => "raise max.message.bytes on the topic",
        Code::InvalidTimestamp => {
            "raise message.timestamp.before.max.ms and message.timestamp.after.max.ms on the topic"
        }
        Code::InvalidRecord => "a compacted topic takes no record without a key: replay into one that is not",
        Code::NotEnoughReplicas | Code::NotEnoughReplicasAfterAppend => {
            "fewer replicas are in step than min.insync.replicas of the topic: see that its brokers are up"
        }
        Code::TopicAuthorizationFailed => "give the replay's user the right to write to the topic",
        Code::PolicyViolation => "a policy of the target's cluster refuses such records",
        _ => return None,
    })
}

impl Sink {
    /// Opens the producer and fences an earlier run of the same replay. Blocks.
    pub(super) fn open(target: &Target, identity: Identity, findings: &Findings) -> Result<Self> {
        let (settings, queue) = settings(target, findings);
        let producer: BaseProducer<Deliveries> =
            settings.create_with_context(Deliveries::default()).map_err(|error| wrong_property(&error))?;
        let id = target.id.clone();
        let sink = Self { topics: Vec::new(), producer, group: target.group()?, id, identity, queue };
        sink.step("begin", || sink.producer.init_transactions(STEP))?;
        Ok(sink)
    }

    /// Commits where every target partition stands, before the first record: from then on a mark that is not there is one
    /// that was lost. Blocks.
    pub(super) fn mark_all(&self, marks: &Marks) -> Result<()> {
        self.step("begin", || self.producer.begin_transaction())?;
        self.commit(marks)
    }

    /// Sends what comes until the channel closes, and commits all of it. Blocks. When it fails, the last transaction is
    /// aborted, and what was committed before stays. `all` is where every target partition stands.
    pub(super) fn drain(
        mut self,
        plan: &Plan,
        mut steps: Receiver<Step>,
        counters: &Counters,
        (all, late): (Marks, Late),
    ) -> Result<Tally> {
        self.topics =
            plan.parts.iter().map(|part| Topic::new(&self.producer, &part.target)).collect::<Result<Vec<_>>>()?;
        let refreshed = Instant::now();
        let mut work = Work {
            sink: &self,
            plan,
            tally: Tally::default(),
            marks: Marks::new(),
            open_since: None,
            all,
            refreshed,
            late,
            flight: Flight::new(self.queue, refreshed),
        };
        let sent = work.run(&mut steps, counters);
        if sent.is_err()
            && work.open_since.is_some()
            && let Err(abort) = self.producer.abort_transaction(STEP)
        {
            tracing::debug!(error = %abort, "the transaction is left to the target's timeout");
        }
        work.late.last(&work.all);
        let Err(error) = sent else { return Ok(work.tally) };
        // A record that was refused is the reason why the transaction failed.
        self.producer.context().verdict()?;
        Err(error)
    }

    /// One step of the transaction, taken again while the target says that it may succeed.
    fn step(&self, doing: &str, step: impl Fn() -> KafkaResult<()>) -> Result<()> {
        let deadline = Instant::now() + STEP;
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
    tally: Tally,
    /// The progress that the open transaction will commit.
    marks: Marks,
    open_since: Option<Instant>,
    /// What is committed, of every target partition.
    all: Marks,
    /// When all of it was last committed.
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
                Some(Step::Complete) => {
                    self.mark_ends()?;
                    self.commit()?;
                    self.tally.complete = true;
                    return Ok(());
                }
                None => return self.commit(),
            }
            counters.show(&self.tally);
            if self.open_since.is_some_and(|since| since.elapsed() >= COMMIT_EVERY) {
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

    fn send(&mut self, run: &Run) -> Result<()> {
        self.begin()?;
        let part = &self.plan.parts[run.part];
        let partition = run.block.partition();
        let mut next = None;
        for record in run.records() {
            // librdkafka takes 0 for "now" (rdkafka_msg.c, rd_kafka_msg_new0), so 1970's first millisecond cannot be
            // sent; its second one is nearest.
            let timestamp = if record.timestamp == 0 { 1 } else { record.timestamp };
            self.tally.moved_timestamps += u64::from(record.timestamp == 0);
            self.await_room()?;
            loop {
                match produce(&self.sink.producer, &self.sink.topics[run.part], partition, timestamp, &record) {
                    Ok(()) => break,
                    // Whatever waits in the queue arrives or times out, and makes room.
                    Err(RDKafkaErrorCode::QueueFull) if self.sink.producer.in_flight_count() > 0 => {
                        self.sink.producer.poll(QUEUE_PAUSE);
                        self.sink.producer.context().verdict()?;
                    }
                    Err(code) => {
                        let place =
                            format!("{} partition {partition} (offset {} of the source)", part.target, record.offset);
                        let error = failed(KafkaError::MessageProduction(code), || {
                            format!("the target cannot take {place}, of {} bytes", record.size())
                        });
                        return Err(match code {
                            RDKafkaErrorCode::QueueFull => error.hint(
                                "the record alone is larger than the queue: raise queue.buffering.max.kbytes in --into-config",
                            ),
                            _ => error,
                        });
                    }
                }
            }
            self.flight.sent(record.size());
            self.tally.add(run.part, partition, record.offset, record.size());
            next = Some(record.offset + 1);
        }
        if let Some(offset) = next {
            let mark = Mark { generation: part.stream.generation, offset };
            self.marks.insert((part.target.clone(), partition), mark);
        }
        self.sink.producer.poll(Duration::ZERO);
        self.sink.producer.context().verdict()
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

    /// All is sent: every planned partition is marked as done to its end, whether its last offsets held a record or not.
    fn mark_ends(&mut self) -> Result<()> {
        self.begin()?;
        for part in &self.plan.parts {
            for planned in &part.partitions {
                let mark = Mark { generation: part.stream.generation, offset: planned.end };
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
        // Only failures are reported, so `flush`, which waits for reports, would sleep past the end of the queue.
        while producer.in_flight_count() > 0 {
            producer.poll(QUEUE_PAUSE);
            producer.context().verdict()?;
        }
        let moved = std::mem::take(&mut self.marks);
        let mut all = self.all.clone();
        all.extend(moved.iter().map(|(at, mark)| (at.clone(), *mark)));
        let refresh = self.refreshed.elapsed() >= REFRESH;
        self.sink.commit(if refresh { &all } else { &moved })?;
        self.refreshed = if refresh { Instant::now() } else { self.refreshed };
        self.all = all;
        self.open_since = None;
        self.late.committed(&moved, &self.all);
        Ok(())
    }
}

impl Sink {
    /// Commits the open transaction, with `marks`.
    fn commit(&self, marks: &Marks) -> Result<()> {
        let marks: Vec<_> = marks.iter().collect();
        for some in marks.chunks(MARKS_AT_ONCE) {
            let offsets = self.offsets(some)?;
            self.step("commit", || self.producer.send_offsets_to_transaction(&offsets, &self.group, STEP))?;
        }
        self.step("commit", || self.producer.commit_transaction(STEP))
    }

    fn offsets(&self, marks: &[(&(String, i32), &Mark)]) -> Result<TopicPartitionList> {
        let mut list = TopicPartitionList::with_capacity(marks.len());
        let mut notes: BTreeMap<u32, String> = BTreeMap::new();
        for ((topic, partition), mark) in marks {
            let note = notes.entry(mark.generation).or_insert_with(|| write_mark(&self.identity, mark.generation));
            let mut element = list.add_partition(topic, *partition);
            element.set_metadata(note.as_str());
            element
                .set_offset(Offset::Offset(mark.offset))
                .map_err(|error| failed(error, || format!("the offset {} cannot be committed", mark.offset)))?;
        }
        Ok(list)
    }
}

/// librdkafka's settings of a replay: what exactly-once needs is fixed, what tunes it may stand in the connection's
/// properties already.
fn settings(target: &Target, findings: &Findings) -> (ClientConfig, u64) {
    let batch = USUAL_BATCH.min(findings.max_batch.saturating_sub(BATCH_MARGIN)).max(1);
    let message = USUAL_BATCH.max(findings.largest + BATCH_MARGIN);
    // A queue that cannot hold the largest record would never take it.
    let kbytes = QUEUE_KBYTES.max(message.div_ceil(1024) + 1);
    let transaction = findings.longest_transaction.unwrap_or(u64::MAX).min(TRANSACTION.as_millis() as u64);
    let mut config = target.connection.client();
    for (key, value) in [
        ("transaction.timeout.ms", transaction.to_string()),
        ("batch.size", batch.to_string()),
        ("linger.ms", "10".to_owned()),
        ("message.max.bytes", message.to_string()),
        ("queue.buffering.max.kbytes", kbytes.to_string()),
        ("queue.buffering.max.messages", "1000000".to_owned()),
    ] {
        if config.get(key).is_none() {
            config.set(key, value);
        }
    }
    // `compression.codec` and `compression.type` are one property with two names: whoever said either has decided.
    if target.connection.leaves_compression() {
        config.set("compression.codec", if findings.compressed { "zstd" } else { "lz4" });
    }
    config
        .set("transactional.id", group_of(&target.id))
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("delivery.report.only.error", "true");
    let kbytes = config.get("queue.buffering.max.kbytes").and_then(|kbytes| kbytes.parse().ok()).unwrap_or(kbytes);
    (config, kbytes.saturating_mul(1024))
}
