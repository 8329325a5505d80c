//! A segmenter carries one topic's records from the consumer to sealed segments: pure state, no I/O, no clock of its own.
//!
//! ```text
//!  records ─► block of each partition ─► pending blocks ─► steps (a row group each) ─► the segment's writer ─► sealed
//!             128 KiB, growing            8 MiB              in order, one at a time under way
//! ```
//!
//! Each partition has two marks: `start`, where the open segment's range begins, and `next`, the offset that the
//! consumer is to bring next. Sealing takes the range `[start, next)` of every partition and moves `start` to `next`;
//! so ranges follow each other without a hole, whatever offsets had no record.

mod partition;
mod step;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::messages::{Question, SegmenterId};
use super::pool::{BLOCK_BYTES, Pool};
use super::seal_reason::SealReason;
use super::shown::Shown;
use super::status::{PartitionStatus, StreamStatus};
use super::topic_ids::Verified;
use crate::config;
use crate::record::Block;
use crate::segment::SegmentWriter;
use crate::source::kafka::Message;
use crate::stream::{Cut, PartitionRange, TopicGeneration};
use partition::OpenPartition;
pub(super) use partition::{Reached, Wait};
pub(super) use step::{EncodeStep, Encoded, Finish};

/// The first block of a partition of which nothing is known is this large; a later one as large as the last was.
const FIRST_BLOCK_BYTES: usize = 4 << 10;

/// A row group is written when this many bytes of a topic are pending. Its size changes neither CPU nor compression
/// ratio, but a reader of a time range skips whole row groups.
const ROW_GROUP_BYTES: u64 = 8 << 20;

/// A segment that was sealed but is not in a checkpoint yet has its file in the spool; a segmenter with this many of them
/// takes no more records, so that a store that is away fills no disk.
const MOST_WAITING: u64 = 4;

/// One topic on its way into the archive.
pub(super) struct Segmenter {
    pub(super) id: SegmenterId,
    pub(super) topic: Arc<str>,
    pub(super) stream: TopicGeneration,
    pub(super) topic_id: Option<String>,
    pub(super) verified: Arc<Verified>,
    settings: config::Segment,
    parts: Vec<Option<OpenPartition>>,
    /// When the first record of the open segment came.
    since: Option<Instant>,
    records: u64,
    /// Records of segments that are not open any more, and bytes that are not pending any more: what came in all is this
    /// and what is open.
    records_before: u64,
    bytes_before: u64,
    pending: Vec<Block>,
    pending_bytes: u64,
    steps: VecDeque<EncodeStep>,
    /// The open segment's writer, while no step is under way; none before its first row group.
    writer: Option<SegmentWriter>,
    busy: bool,
    sealed: u64,
    committed: u64,
    /// Nothing is encoded before this, after a failure.
    retry_at: Option<Instant>,
    memory: usize,
    pub(super) shown: Shown,
}

impl Segmenter {
    pub(super) fn new(
        id: SegmenterId,
        (topic, stream): (Arc<str>, TopicGeneration),
        topic_id: Option<String>,
        settings: config::Segment,
        shown: Shown,
    ) -> Self {
        Self {
            id,
            topic,
            stream,
            topic_id,
            verified: Arc::default(),
            settings,
            parts: Vec::new(),
            since: None,
            records: 0,
            records_before: 0,
            bytes_before: 0,
            pending: Vec::new(),
            pending_bytes: 0,
            steps: VecDeque::new(),
            writer: None,
            busy: false,
            sealed: 0,
            committed: 0,
            retry_at: None,
            memory: 0,
            shown,
        }
    }

    pub(super) fn settings(&self) -> &config::Segment {
        &self.settings
    }

    /// Bytes of the memory budget that blocks of this segmenter hold, also those in steps under way.
    pub(super) fn memory(&self) -> usize {
        self.memory
    }

    /// Bytes that a flush would free soon.
    pub(super) fn unflushed(&self) -> u64 {
        self.pending_bytes + self.live().filter_map(|(_, part)| part.block.as_ref()).map(Block::raw_bytes).sum::<u64>()
    }

    fn live(&self) -> impl Iterator<Item = (i32, &OpenPartition)> {
        (0..).zip(&self.parts).filter_map(|(partition, part)| Some((partition, part.as_ref()?)))
    }

    fn live_mut(&mut self) -> impl Iterator<Item = (i32, &mut OpenPartition)> {
        (0..).zip(&mut self.parts).filter_map(|(partition, part)| Some((partition, part.as_mut()?)))
    }

    fn part_mut(&mut self, partition: i32) -> Option<&mut OpenPartition> {
        self.parts.get_mut(usize::try_from(partition).ok()?)?.as_mut()
    }

    /// The partitions that the segmenter carries now.
    pub(super) fn partitions(&self) -> Vec<i32> {
        self.live().map(|(partition, _)| partition).collect()
    }

    /// Takes a partition on, from `offset`.
    pub(super) fn add(&mut self, partition: i32, offset: i64) {
        let Ok(index) = usize::try_from(partition) else { return };
        self.shown.forget(partition);
        self.verified.forget(partition);
        if self.parts.len() <= index {
            self.parts.resize_with(index + 1, || None);
        }
        self.parts[index] = Some(OpenPartition {
            start: offset,
            next: offset,
            rows_end: offset,
            committed: offset,
            again_after: self.sealed,
            held: None,
            heard: false,
            paused: false,
            block: None,
            block_bytes: FIRST_BLOCK_BYTES,
        });
    }

    /// Gives a partition up, with what is not sealed of it: its next owner reads it again.
    pub(super) fn remove(&mut self, partition: i32) {
        let slot = usize::try_from(partition).ok().and_then(|index| self.parts.get_mut(index));
        if let Some(block) = slot.and_then(Option::take).and_then(|part| part.block) {
            self.memory -= block.memory();
        }
        self.shown.forget(partition);
    }

    /// Stops taking a partition's records, until [`Segmenter::reposition`]; of one that leaves until it is removed or given to the
    /// segmenter again.
    pub(super) fn hold(&mut self, partition: i32, wait: Wait) {
        if let Some(part) = self.part_mut(partition).filter(|part| part.held != Some(Wait::Leaving)) {
            part.held = Some(wait);
        }
    }

    /// Returns whether the segmenter carries a partition, and what that waits for.
    pub(super) fn carries(&self, partition: i32) -> Option<Option<Wait>> {
        let part = usize::try_from(partition).ok().and_then(|index| self.parts.get(index)?.as_ref());
        part.map(|part| part.held)
    }

    /// Returns where a partition is read next, and what it waits for.
    pub(super) fn stands(&self, partition: i32) -> Option<(i64, Option<Wait>)> {
        let part = usize::try_from(partition).ok().and_then(|index| self.parts.get(index)?.as_ref());
        part.map(|part| (part.next, part.held))
    }

    /// Asks the committer something, after everything that came before: what is open is sealed first, and the question
    /// stands behind it.
    pub(super) fn ask(&mut self, question: Question) {
        self.seal(SealReason::Conflict);
        self.push_question(question);
    }

    fn push_question(&mut self, question: Question) {
        self.steps.push_back(EncodeStep { blocks: Vec::new(), memory: 0, finish: None, question: Some(question) });
    }

    /// Takes nothing more of any partition, and ends what is open: the topic goes on in another generation.
    pub(super) fn end(&mut self, cut: Option<Cut>) {
        for partition in self.partitions() {
            self.hold(partition, Wait::NextGeneration);
        }
        self.ask(Question::End { cut });
    }

    /// Begins a partition again at `offset`: what the archive says. The open segment must have been sealed before.
    pub(super) fn reposition(&mut self, partition: i32, offset: i64) {
        let sealed = self.sealed;
        self.verified.forget(partition);
        if let Some(part) = self.part_mut(partition).filter(|part| part.held != Some(Wait::Leaving)) {
            part.again_after = sealed;
            part.start = offset;
            part.next = offset;
            part.rows_end = offset;
            part.committed = offset;
            part.held = None;
            part.heard = false;
            if let Some(block) = part.block.take() {
                self.memory -= block.memory();
            }
        }
    }

    /// Returns whether the segmenter must read a partition again because segment number `seq` of it was dropped.
    pub(super) fn misses(&mut self, partition: i32, seq: u64) -> bool {
        self.part_mut(partition).is_some_and(|part| part.again_after < seq)
    }

    /// Copies a record in. A record that is not wanted (of a partition given up or held, or one that came already) is
    /// passed over.
    pub(super) fn push(&mut self, message: &Message<'_>, now: Instant, pool: &mut Pool) {
        let Some(part) = usize::try_from(message.partition).ok().and_then(|index| self.parts.get_mut(index)?.as_mut())
        else {
            return;
        };
        if part.held.is_some() || message.offset < part.next {
            return;
        }
        let block = part.block.get_or_insert_with(|| pool.take(message.partition, part.block_bytes));
        let before = if block.is_empty() { 0 } else { block.memory() };
        block.push(
            message.offset,
            message.timestamp,
            message.timestamp_type,
            message.leader_epoch,
            message.key,
            message.value,
            message.headers(),
        );
        part.heard = true;
        part.next = message.offset + 1;
        part.rows_end = part.next;
        self.memory = self.memory + block.memory() - before;
        self.records += 1;
        self.since.get_or_insert(now);
        // Before it would grow: another record like the largest does not fit.
        if block.raw_bytes() + block.largest_record() > BLOCK_BYTES as u64 {
            Self::cut_block(part, &mut self.pending, &mut self.pending_bytes);
            if self.pending_bytes >= ROW_GROUP_BYTES.min(self.settings.max_bytes) {
                self.flush();
            }
        }
        if self.records >= self.settings.max_records {
            self.seal(SealReason::Records);
        }
    }

    fn cut_block(part: &mut OpenPartition, pending: &mut Vec<Block>, pending_bytes: &mut u64) {
        if let Some(block) = part.block.take() {
            let used = usize::try_from(block.raw_bytes()).unwrap_or(usize::MAX);
            part.block_bytes = used.next_power_of_two().clamp(1 << 10, BLOCK_BYTES);
            *pending_bytes += block.raw_bytes();
            pending.push(block);
        }
    }

    /// The consumer has seen everything of `partition` below `next`, with records or without.
    pub(super) fn advance(&mut self, partition: i32, next: i64, now: Instant) {
        let Some(part) = self.part_mut(partition).filter(|part| part.held.is_none()) else { return };
        part.heard = true;
        if part.next < next {
            part.next = next;
            self.since.get_or_insert(now);
        }
    }

    /// Sends everything that is gathered to the encoder as a row group.
    pub(super) fn flush(&mut self) {
        self.push_step(None);
    }

    fn push_step(&mut self, finish: Option<Finish>) {
        for part in self.parts.iter_mut().flatten() {
            Self::cut_block(part, &mut self.pending, &mut self.pending_bytes);
        }
        let blocks = std::mem::take(&mut self.pending);
        self.bytes_before += std::mem::take(&mut self.pending_bytes);
        if blocks.is_empty() && finish.is_none() {
            return;
        }
        let memory = blocks.iter().map(Block::memory).sum();
        self.steps.push_back(EncodeStep { blocks, memory, finish, question: None });
    }

    /// Ends the open segment, if anything was seen since the last one ended.
    pub(super) fn seal(&mut self, reason: SealReason) {
        let mut ranges = Vec::new();
        for (partition, part) in self.live_mut() {
            if part.start < part.next {
                ranges.push((partition, part.start, part.next));
                part.start = part.next;
            }
        }
        let has_rows = self.records > 0;
        self.since = None;
        self.records_before += std::mem::take(&mut self.records);
        if ranges.is_empty() {
            return;
        }
        self.sealed += 1;
        self.push_step(Some(Finish { seq: self.sealed, reason, ranges, has_rows }));
    }

    /// Seals the open segment if it is old enough.
    pub(super) fn seal_if_old(&mut self, now: Instant) {
        if self.since.is_some_and(|since| now.duration_since(since) >= self.settings.max_age) {
            self.seal(SealReason::Age);
        }
    }

    /// Returns how many segments ended so far; each is in a checkpoint once [`Segmenter::committed`] has reached its number.
    pub(super) fn sealed(&self) -> u64 {
        self.sealed
    }

    pub(super) fn committed(&self) -> u64 {
        self.committed
    }

    /// Returns whether nothing of the segmenter is under way any more.
    pub(super) fn is_idle(&self) -> bool {
        !self.busy && self.steps.is_empty() && self.since.is_none() && self.committed == self.sealed
    }

    /// The next step with the writer that it goes to, if the encoder may work for this segmenter now.
    pub(super) fn next_step(&mut self, now: Instant) -> Option<(EncodeStep, Option<SegmentWriter>)> {
        if self.busy || self.retry_at.is_some_and(|at| now < at) {
            return None;
        }
        let step = self.steps.pop_front()?;
        self.busy = true;
        Some((step, self.writer.take()))
    }

    /// Returns whether there is a step that [`Segmenter::next_step`] would give now.
    pub(super) fn is_ready(&self, now: Instant) -> bool {
        !self.busy && !self.steps.is_empty() && self.retry_at.is_none_or(|at| now >= at)
    }

    /// A step ended well. `writer` is the segment's, unless the step finished it.
    pub(super) fn step_done(&mut self, memory: usize, writer: Option<SegmentWriter>) {
        self.busy = false;
        self.memory -= memory;
        let encoded = writer.as_ref().map_or(0, SegmentWriter::bytes_written);
        self.writer = writer;
        let finishing = self.steps.iter().any(|step| step.finish.is_some());
        if encoded >= self.settings.max_bytes && !finishing {
            self.seal(SealReason::Size);
        }
    }

    /// A step failed: everything that is not sealed to disk is given up and will be read again. The partitions are held
    /// until the committer has said where the archive stands.
    pub(super) fn start_over(&mut self, retry_at: Instant) {
        self.busy = false;
        self.writer = None;
        self.steps.retain(|step| step.question.is_some());
        self.pending.clear();
        self.bytes_before += std::mem::take(&mut self.pending_bytes);
        self.records_before += std::mem::take(&mut self.records);
        self.since = None;
        self.memory = 0;
        self.retry_at = Some(retry_at);
        for (_, part) in self.live_mut() {
            part.block = None;
            part.held.get_or_insert(Wait::Position);
        }
        self.push_question(Question::Where { seq: self.sealed, partitions: self.committed_offsets() });
    }

    /// Checkpoints cover these ranges, and all segments up to number `seq`.
    pub(super) fn covered(&mut self, seq: u64, ranges: &[PartitionRange]) {
        self.committed = self.committed.max(seq);
        for range in ranges {
            if let Some(part) = self.part_mut(range.partition) {
                part.committed = part.committed.max(range.end);
            }
        }
    }

    /// Returns which partitions to pause, and which to resume and from where, so that fetching agrees with what the segmenter can
    /// take. `full`: the process holds all the memory that it may.
    pub(super) fn reconcile(&mut self, full: bool) -> (Vec<i32>, Vec<(i32, i64)>) {
        let waiting = self.sealed - self.committed;
        let (mut pause, mut resume) = (Vec::new(), Vec::new());
        for (partition, part) in self.live_mut() {
            let held = part.held.is_some();
            let stop = held || full || waiting >= MOST_WAITING;
            let go = !held && !full && waiting <= MOST_WAITING / 2;
            if stop && !part.paused {
                part.paused = true;
                pause.push(partition);
            } else if go && part.paused {
                part.paused = false;
                resume.push((partition, part.next));
            }
        }
        (pause, resume)
    }

    /// Returns whether the segmenter holds more finished segments than it may, because the store does not take them.
    pub(super) fn is_backed_up(&self) -> bool {
        self.sealed - self.committed >= MOST_WAITING
    }

    /// The partitions that should be read and of which the broker has said nothing since their position was taken.
    pub(super) fn unheard(&self) -> impl Iterator<Item = i32> {
        self.live()
            .filter(|(_, part)| part.held.is_none() && !part.heard && !part.paused)
            .map(|(partition, _)| partition)
    }

    /// For coverage: how far each partition is. Of one that the broker has not spoken of since its position was taken from the
    /// archive, nothing is claimed: its log may have been cut below.
    pub(super) fn reached(&self) -> impl Iterator<Item = (i32, Reached)> {
        self.live().filter(|(_, part)| part.held.is_none() && part.heard).map(|(partition, part)| {
            let archived = if part.rows_end <= part.committed { part.next } else { part.committed };
            (partition, Reached { covered: part.committed, archived, received: part.next })
        })
    }

    /// A number that is another one when a partition has come further, or another one is read: a change that it hides is seen
    /// at the next look.
    pub(super) fn marks(&self) -> u64 {
        let mark = |(partition, part): (i32, &OpenPartition)| {
            let moved = part.next.cast_unsigned().wrapping_add(part.committed.cast_unsigned());
            moved.wrapping_add(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(u64::from(partition.cast_unsigned()) + 1))
        };
        self.live().map(mark).fold(u64::from(self.id.0), u64::wrapping_add)
    }

    /// The segmenter as it is shown, and a sample of its pace.
    pub(super) fn show(&mut self, now: Instant) -> StreamStatus {
        let (records, bytes) = (self.records_before + self.records, self.bytes_before + self.unflushed());
        let (records_per_second, bytes_per_second) = self.shown.pace.sample(now, records, bytes);
        let partitions = self.live().map(|(partition, part)| {
            let archived = if part.rows_end <= part.committed { part.next } else { part.committed };
            let (committed, next, held) = (part.committed, part.next, part.held.is_some());
            let mut status = PartitionStatus {
                partition,
                committed,
                archived,
                next,
                end: None,
                complete_through: None,
                held,
                stall: None,
            };
            self.shown.fill(&mut status);
            status
        });
        StreamStatus {
            stream: self.stream.stream().to_string().into(),
            topic: Arc::clone(&self.topic),
            label: Arc::clone(&self.shown.label),
            generation: self.stream.number,
            partitions: partitions.collect(),
            totals: self.shown.totals,
            gaps: Arc::clone(&self.shown.gaps),
            records_per_second,
            bytes_per_second,
            waiting: self.sealed - self.committed,
            trouble: None,
            complete_through: self.shown.complete_through,
        }
    }

    /// Returns where the archive stands for each partition, as far as this segmenter knows.
    fn committed_offsets(&self) -> Vec<(i32, i64)> {
        self.live().map(|(partition, part)| (partition, part.committed)).collect()
    }
}

/// How long a segmenter waits after a failure of its spool before it tries again.
pub(super) const RETRY_AFTER: Duration = Duration::from_secs(5);

#[cfg(test)]
pub(super) mod tests;
