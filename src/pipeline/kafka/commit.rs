//! The committer of one topic: the only task of this process that writes to the topic's chain.
//!
//! ```text
//!  sealed file ─► upload ─► (others that are ready, up to one checkpoint a second) ─► checkpoint ─► task event
//! ```
//!
//! The order is the product's first rule: the object is durable before the checkpoint that names it, and the checkpoint
//! before anybody is told. A failure is tried again until the process ends, for Kafka still has every record; only a
//! conflict (another process moved a partition) changes what is written.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::divergence::{self, Earlier};
use super::messages::{Dropped, Question, SegmenterId, TaskEvent};
use super::shared::Shared;
use super::topic_ids::{Verified, is_recreated, kept};
use crate::config;
use crate::error::{Error, Kind, Result};
use crate::manifest::{Chain, Change, Outcome};
use crate::segment::{Encoding, Sealed, SegmentInfo, rewrite};
use crate::source::kafka::{EpochAt, OffsetAt, Resume, TopicPartition};
use crate::store::layout;
use crate::stream::{Close, Cut, GapReason, PartitionRange, SegmentRef, TopicGeneration};
use crate::tasks::Task;
use crate::tasks::backoff::Backoff;

/// A chain takes at most one checkpoint a second of this process, so that small segments do not make a chain long.
const BETWEEN_CHECKPOINTS: Duration = Duration::from_secs(1);

/// How long the ends of a new topic's logs are asked for, and how often: they may have no leader yet.
const LATEST_WITHIN: Duration = Duration::from_secs(3);
const LATEST_AGAIN: Duration = Duration::from_millis(100);

/// What a committer is asked, in order.
pub(super) enum Request {
    /// A segment, on its way since it was sealed as the segmenter's number `seq`.
    Segment { seq: u64, sealed: Sealed },
    /// Ranges that hold no record.
    Empty { seq: u64, ranges: Vec<PartitionRange> },
    /// A question about what is archived. It comes the way of the segments (see `segmenter::Step`): all that was read before it
    /// is in the chain when it is answered.
    Ask(Question),
}

impl Request {
    /// The ranges that a checkpoint would cover.
    fn ranges(&self) -> &[PartitionRange] {
        match self {
            Self::Segment { sealed, .. } => &sealed.partitions,
            Self::Empty { ranges, .. } => ranges,
            Self::Ask(_) => &[],
        }
    }

    /// Whether its ranges begin where the batch's end. They do not when a partition was lost and came back, or was
    /// fenced, while segments of it were on their way: then the chain must judge the batch first.
    fn follows(&self, batch: &[Ready]) -> bool {
        let end = |partition| {
            let ranges = batch.iter().rev().flat_map(Ready::ranges);
            ranges.filter(|range| range.partition == partition).map(|range| range.end).max()
        };
        self.ranges().iter().all(|range| end(range.partition).is_none_or(|end| end == range.start))
    }
}

/// A segment that lies in the store, or empty ranges, before their checkpoint.
struct Ready {
    seq: u64,
    segment: Option<(Sealed, SegmentRef)>,
    empty: Vec<PartitionRange>,
}

impl Ready {
    fn ranges(&self) -> impl Iterator<Item = &PartitionRange> {
        let segment = self.segment.iter().flat_map(|(sealed, _)| &sealed.partitions);
        segment.chain(&self.empty)
    }
}

/// The task that commits one segmenter's segments.
pub(super) struct Committer {
    pub(super) segmenter: SegmenterId,
    pub(super) generation: TopicGeneration,
    pub(super) chain: Chain,
    /// The same topic's generations before, for partitions that have nothing in this one yet.
    pub(super) earlier: Earlier,
    /// Partitions that were sent once more to a position that is out of range, so that the broker is asked about its epoch.
    pub(super) asked: BTreeSet<i32>,
    pub(super) verified: Arc<Verified>,
    pub(super) encoding: Encoding,
    pub(super) inbox: mpsc::UnboundedReceiver<Request>,
    pub(super) shared: Arc<Shared>,
}

impl Committer {
    /// Serves requests until the segmenter is dropped.
    pub(super) async fn run(mut self) {
        let mut next_checkpoint = Instant::now();
        let mut put_back = None;
        while let Some(request) = match put_back.take() {
            Some(request) => Some(request),
            None => self.inbox.recv().await,
        } {
            let mut batch = Vec::new();
            let mut request = Some(request);
            while let Some(next) = request.take() {
                if !next.follows(&batch) {
                    put_back = Some(next);
                    break;
                }
                match self.prepare(next).await {
                    Ok(ready) => batch.push(ready),
                    Err(other) => {
                        put_back = Some(other);
                        break;
                    }
                }
                request = tokio::time::timeout_at(next_checkpoint, self.inbox.recv()).await.ok().flatten();
            }
            if batch.is_empty() {
                if let Some(Request::Ask(question)) = put_back.take() {
                    self.answer(question).await;
                }
                continue;
            }
            self.commit(batch).await;
            next_checkpoint = Instant::now() + BETWEEN_CHECKPOINTS;
        }
    }

    /// Brings a segment into the store. A request of another sort is given back.
    async fn prepare(&self, request: Request) -> Result<Ready, Request> {
        match request {
            Request::Segment { seq, sealed } => {
                let reference = self.upload(&sealed).await;
                Ok(Ready { seq, segment: Some((sealed, reference)), empty: Vec::new() })
            }
            Request::Empty { seq, ranges } => Ok(Ready { seq, segment: None, empty: ranges }),
            other => Err(other),
        }
    }

    async fn upload(&self, sealed: &Sealed) -> SegmentRef {
        let (number, _) = self.shared.spool.next_file();
        let key = layout::segment(&self.generation, crate::time::now(), &self.shared.writer, number, sealed.format);
        let mut backoff = self.backoff(Task::KafkaUpload);
        loop {
            let permit = self.shared.uploads.acquire().await;
            let uploaded = self.shared.store.upload(&key, &sealed.path, &sealed.sha256).await;
            drop(permit);
            match uploaded {
                Ok(()) => return sealed.to_ref(key.to_string()),
                Err(error) => backoff.wait_after("a segment cannot be uploaded", error).await,
            }
        }
    }

    /// Puts a checkpoint over the batch; what may be of another generation of the topic, and what another process has covered
    /// meanwhile, is taken out of it first.
    async fn commit(&mut self, batch: Vec<Ready>) {
        let mut batch = self.of_this_generation(batch).await;
        let mut lost: BTreeMap<i32, u64> = BTreeMap::new();
        let now = crate::time::now();
        while !batch.is_empty() {
            let change = Change {
                segments: batch.iter().filter_map(|ready| Some(ready.segment.as_ref()?.1.clone())).collect(),
                empty: batch.iter().flat_map(|ready| ready.empty.iter().copied()).collect(),
                gaps: Vec::new(),
            };
            if change.segments.is_empty() && change.empty.is_empty() {
                break;
            }
            match self.append(&change, now).await {
                Outcome::Committed { number } => {
                    self.asked.clear();
                    tracing::debug!(
                        topic = self.generation.topic,
                        checkpoint = number,
                        segments = change.segments.len(),
                        "committed"
                    );
                    break;
                }
                Outcome::Moved(moved) => {
                    self.shared.counters.conflicts.increment(1);
                    tracing::warn!(topic = self.generation.topic, partitions = ?moved, "another process has archived these partitions, or the archive went back");
                    for ready in &batch {
                        lost.extend(
                            ready
                                .ranges()
                                .filter(|range| moved.contains(&range.partition))
                                .map(|range| (range.partition, ready.seq)),
                        );
                    }
                    let end =
                        |range: &PartitionRange| if moved.contains(&range.partition) { range.start } else { range.end };
                    batch = self.cut(batch, end).await;
                }
                Outcome::Closed => {
                    tracing::warn!(
                        topic = self.generation.topic,
                        generation = self.generation.number,
                        "another process has ended this generation: what it does not have is read again into the next one"
                    );
                    batch = self.cut(batch, |range| range.start).await;
                    self.shared.send(TaskEvent::Ended { segmenter: self.segmenter });
                    break;
                }
            }
        }
        self.shared.send(TaskEvent::Archived { segmenter: self.segmenter, totals: *self.chain.totals() });
        self.tell_committed(batch);
        if !lost.is_empty() {
            let dropped = lost.into_iter().filter_map(|(partition, seq)| {
                Some(Dropped { partition, seq, from: self.resume(partition, self.chain.reached(partition)?) })
            });
            self.shared.send(TaskEvent::Fenced { segmenter: self.segmenter, dropped: dropped.collect() });
        }
    }

    pub(super) async fn append(&mut self, change: &Change, now: DateTime<Utc>) -> Outcome {
        let mut backoff = self.backoff(Task::KafkaCheckpoint);
        loop {
            match self.chain.commit(change, &self.shared.writer, now).await {
                Ok(outcome) => return outcome,
                Err(error) => backoff.wait_after("a checkpoint cannot be written", error).await,
            }
        }
    }

    /// Waits of a loop that works for this topic.
    fn backoff(&self, task: Task) -> Backoff {
        Backoff::new(self.shared.tasks.reporter(task, self.generation.topic.as_str()))
    }

    fn tell_committed(&self, batch: Vec<Ready>) {
        for Ready { seq, segment, empty } in batch {
            if let Some((sealed, _)) = &segment {
                self.shared.spool.remove(&sealed.path);
            }
            let segment = segment.map(|(_, reference)| reference);
            self.shared.send(TaskEvent::Committed { segmenter: self.segmenter, seq, segment, empty });
        }
    }

    /// The batch without what may have been fetched from another generation of the topic.
    async fn of_this_generation(&self, batch: Vec<Ready>) -> Vec<Ready> {
        let id = match self.chain.begin_facts().topic_id() {
            Some(known) => self.shared.topic_ids.id_of(&self.generation.topic).await.filter(|id| id != known),
            None => None,
        };
        let Some(topic_id) = id else { return batch };
        self.shared.send(TaskEvent::Recreated { topic: Arc::from(self.generation.topic.as_str()), topic_id });
        let mut fetched: BTreeMap<i32, PartitionRange> = BTreeMap::new();
        for range in batch.iter().flat_map(Ready::ranges) {
            fetched.entry(range.partition).or_insert(*range).end = range.end;
        }
        let mut ends = BTreeMap::new();
        let until = Instant::now() + LATEST_WITHIN;
        for (partition, PartitionRange { start, end, .. }) in fetched {
            let kept = kept(start, end, self.verified.of(partition), self.latest(partition, until).await);
            if kept < end {
                tracing::warn!(
                    topic = self.generation.topic,
                    generation = self.generation.number,
                    partition,
                    start = kept,
                    end,
                    "the topic was deleted and created again: offsets that may be of its new generation are not kept in the old one"
                );
            }
            ends.insert(partition, kept);
        }
        self.cut(batch, |range| ends.get(&range.partition).map_or(range.end, |end| range.end.min(*end))).await
    }

    /// Where a partition of the topic's new generation ends: nowhere yet if it has no such partition, unknown if no broker tells
    /// until then.
    async fn latest(&self, partition: i32, until: Instant) -> Option<i64> {
        let at = TopicPartition { topic: Arc::from(self.generation.topic.as_str()), partition };
        loop {
            match tokio::time::timeout_at(until, self.offset(&at, OffsetAt::Latest)).await.ok()? {
                Ok(latest) => return Some(latest),
                Err(error) if error.kind() == Kind::NotFound => return Some(0),
                Err(error) => tracing::debug!(%at, %error, "the end of a new log is not known yet"),
            }
            tokio::time::timeout_at(until, tokio::time::sleep(LATEST_AGAIN)).await.ok()?;
        }
    }

    /// The batch with every range up to its `end` only; what ends where it begins is left out.
    async fn cut(&self, batch: Vec<Ready>, end: impl Fn(&PartitionRange) -> i64) -> Vec<Ready> {
        let mut kept = Vec::new();
        for mut ready in batch {
            ready.empty.iter_mut().for_each(|range| range.end = end(range));
            ready.empty.retain(|range| range.start < range.end);
            ready.segment = match ready.segment {
                Some((sealed, _)) if sealed.partitions.iter().any(|range| end(range) < range.end) => {
                    let ranges = sealed.partitions.iter().map(|range| (range.partition, range.start, end(range)));
                    let ranges: Vec<_> = ranges.filter(|(_, start, end)| start < end).collect();
                    self.rewritten(sealed, &ranges).await
                }
                other => other,
            };
            // One without anything left still counts as done.
            kept.push(ready);
        }
        kept
    }

    async fn rewritten(&self, sealed: Sealed, ranges: &[(i32, i64, i64)]) -> Option<(Sealed, SegmentRef)> {
        if ranges.is_empty() {
            self.shared.spool.remove(&sealed.path);
            return None;
        }
        let mut backoff = self.backoff(Task::KafkaSpool);
        let new = loop {
            let (_, path) = self.shared.spool.next_file();
            let info = SegmentInfo {
                stream: self.generation.clone(),
                topic_id: self.chain.begin_facts().topic_id().map(str::to_owned),
                writer: self.shared.writer.clone(),
                created: crate::time::now(),
            };
            match rewrite(&sealed, ranges, info, self.encoding, &path).await {
                Ok(new) => break new,
                Err(error) => backoff.wait_after("a segment cannot be written again", error).await,
            }
        };
        drop(backoff);
        self.shared.spool.remove(&sealed.path);
        let reference = self.upload(&new).await;
        Some((new, reference))
    }

    /// What others have committed counts in every answer: they may have had a partition in between, and where a log was cut is
    /// told by all that is archived of it.
    async fn answer(&mut self, question: Question) {
        let mut backoff = self.backoff(Task::KafkaPositions);
        while let Err(error) = self.chain.refresh().await {
            backoff.wait_after("what others have archived of a topic cannot be read", error).await;
        }
        drop(backoff);
        match question {
            Question::Where { seq, partitions } => {
                let end = |partition| self.chain.position(partition).map(|range| range.end);
                let positions = partitions
                    .into_iter()
                    .map(|(partition, first)| (partition, self.resume(partition, end(partition).unwrap_or(first))));
                self.shared.send(TaskEvent::Positioned {
                    segmenter: self.segmenter,
                    seq,
                    positions: positions.collect(),
                });
            }
            Question::OutOfRange { partition } => self.out_of_range(partition).await,
            Question::Truncated { partition, diverged, fresh } => self.truncated(partition, diverged, fresh).await,
            Question::Skip { partition, start, end } => self.skip(partition, start..end).await,
            Question::End { cut } => self.end(cut).await,
        }
    }

    /// Ends the chain where the log was cut, and tells that everything before is committed.
    async fn end(&mut self, cut: Option<Cut>) {
        if let Some(cut) = cut {
            let within = |end: i64| Cut { offset: cut.offset.min(end), ..cut };
            let cuts = self.chain.position(cut.partition).map(|range| within(range.end)).into_iter().collect();
            let close = Close { cuts, decided: crate::time::now() };
            let mut backoff = self.backoff(Task::KafkaCheckpoint);
            while let Err(error) = self.chain.close(&close, &self.shared.writer, crate::time::now()).await {
                backoff.wait_after("the end of a generation cannot be written", error).await;
            }
        }
        self.shared.send(TaskEvent::Ended { segmenter: self.segmenter });
    }

    /// Where a partition is read on, with the record before it that the broker is asked about.
    pub(super) fn resume(&self, partition: i32, next: i64) -> Resume {
        divergence::resume(&self.chain, &self.earlier, partition, next)
    }

    pub(super) fn found(&self, partition: i32, from: Resume) {
        self.shared.send(TaskEvent::Found { segmenter: self.segmenter, partition, from });
    }

    /// The log was cut below what was read. If that was not said of the archived position itself, the broker is asked about
    /// that one first. If nothing of the partition is archived in this generation yet, as after an election that cut several
    /// partitions, it begins where its log left the generation before. Otherwise another generation begins.
    async fn truncated(&mut self, partition: i32, diverged: Option<EpochAt>, fresh: bool) {
        self.asked.remove(&partition);
        let (id, earliest, _) = self.present(partition).await;
        if is_recreated(self.chain.begin_facts().topic_id(), id.as_deref()) {
            return self.shared.send(TaskEvent::GenerationEnds { segmenter: self.segmenter, cut: None });
        }
        let archived = self.chain.position(partition).map(|range| range.end);
        if let Some(end) = archived
            && self.chain.last_record(partition).is_some()
            && !fresh
        {
            return self.found(partition, self.resume(partition, end));
        }
        let offset = match diverged {
            Some(diverged) => self.left_at(partition, diverged).await.max(earliest),
            None => earliest,
        };
        let Some(end) = archived else { return self.found(partition, offset.into()) };
        let cut = Cut { partition, offset: offset.min(end) };
        tracing::error!(
            topic = self.generation.topic,
            partition,
            archived = end,
            offset = cut.offset,
            "the brokers lost records that are archived (an unclean election): the topic goes on in another generation"
        );
        self.shared.send(TaskEvent::GenerationEnds { segmenter: self.segmenter, cut: Some(cut) });
    }

    /// Where a log left what is archived of it.
    async fn left_at(&self, partition: i32, diverged: EpochAt) -> i64 {
        let mut backoff = self.backoff(Task::KafkaPositions);
        loop {
            match divergence::left_at(&self.shared.store, &self.chain, &self.earlier, partition, diverged).await {
                Ok(offset) => return offset,
                Err(error) => backoff.wait_after("what is archived of a partition cannot be listed", error).await,
            }
        }
    }

    /// Finds out why the broker does not have the offset after the archive's last: its retention has outrun the
    /// archiver (a gap is recorded), the log ends before it (another generation of the topic), or neither (try again).
    async fn out_of_range(&mut self, partition: i32) {
        let (id, earliest, latest) = self.present(partition).await;
        if is_recreated(self.chain.begin_facts().topic_id(), id.as_deref()) {
            return self.shared.send(TaskEvent::GenerationEnds { segmenter: self.segmenter, cut: None });
        }
        loop {
            let Some(archived) = self.chain.reached(partition) else {
                // Nobody knows where it begins: with the broker's oldest record.
                return self.found(partition, earliest.into());
            };
            // The log is another one. From where on, the broker tells if it is asked with an epoch; it told of the offset alone
            // if the election came in between.
            let from = self.resume(partition, archived);
            if archived > latest && from.last.is_some() && self.asked.insert(partition) {
                return self.found(partition, from);
            }
            if archived > latest && self.chain.position(partition).is_none() {
                // Nothing of it is archived here: it begins where its log is.
                let begins = if self.generation.number == 0 { latest } else { earliest };
                return self.found(partition, begins.into());
            }
            if archived > latest {
                tracing::error!(
                    topic = self.generation.topic,
                    partition,
                    archived,
                    latest,
                    "the log ends before the archive's position"
                );
                let cut = Some(Cut { partition, offset: earliest });
                return self.shared.send(TaskEvent::GenerationEnds { segmenter: self.segmenter, cut });
            }
            if archived >= earliest {
                // A record that the broker has removed is nothing to ask it about.
                let last = from.last.filter(|last| last.offset + 1 >= earliest);
                return self.found(partition, Resume { last, ..from });
            }
            if self.lose(partition, archived..earliest, GapReason::BrokerRetention).await == Outcome::Closed {
                return self.shared.send(TaskEvent::Ended { segmenter: self.segmenter });
            }
        }
    }

    /// The topic's id, and the partition's first offset and end, as the broker has them now.
    pub(super) async fn present(&self, partition: i32) -> (Option<String>, i64, i64) {
        let mut backoff = self.backoff(Task::KafkaPositions);
        loop {
            match self.try_present(partition).await {
                Ok(present) => return present,
                Err(error) => backoff.wait_after("the offsets of a partition cannot be listed", error).await,
            }
        }
    }

    async fn try_present(&self, partition: i32) -> Result<(Option<String>, i64, i64)> {
        let mut described = self.shared.cluster.describe(std::slice::from_ref(&self.generation.topic)).await?;
        let id = described.remove(&self.generation.topic).transpose()?.and_then(|info| info.id);
        let at = TopicPartition { topic: Arc::from(self.generation.topic.as_str()), partition };
        Ok((id, self.offset(&at, OffsetAt::Earliest).await?, self.offset(&at, OffsetAt::Latest).await?))
    }

    async fn offset(&self, at: &TopicPartition, when: OffsetAt) -> Result<i64> {
        let listed = self
            .shared
            .cluster
            .list_offsets(std::slice::from_ref(at), when, config::Isolation::ReadUncommitted)
            .await?;
        let (_, offset) =
            listed.into_iter().next().ok_or_else(|| Error::new(Kind::Unavailable, "the broker gave no offset"))?;
        offset?.ok_or_else(|| Error::new(Kind::Unavailable, "the broker has no offset"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(partition: i32, start: i64, end: i64) -> PartitionRange {
        PartitionRange { partition, start, end, records: 0, min_timestamp: None, max_timestamp: None }
    }

    fn request(ranges: &[PartitionRange]) -> Request {
        Request::Empty { seq: 9, ranges: ranges.to_vec() }
    }

    fn batch(ranges: &[&[PartitionRange]]) -> Vec<Ready> {
        (1..).zip(ranges).map(|(seq, ranges)| Ready { seq, segment: None, empty: ranges.to_vec() }).collect()
    }

    #[test]
    fn a_request_joins_a_batch_whose_ranges_it_follows() {
        let batch = batch(&[&[range(0, 5, 9), range(1, 0, 3)], &[range(0, 9, 12)]]);
        for follower in [vec![range(0, 12, 13)], vec![range(1, 3, 4), range(2, 50, 60)], vec![range(3, 0, 1)], vec![]] {
            assert!(request(&follower).follows(&batch), "{follower:?}");
        }
        assert!(request(&[range(0, 40, 41)]).follows(&[]), "the first of a batch is the chain's to judge");
    }

    #[test]
    fn a_request_that_was_read_anew_does_not_join() {
        let batch = batch(&[&[range(0, 5, 9), range(1, 0, 3)], &[range(0, 9, 12)]]);
        for stranger in [vec![range(0, 9, 20)], vec![range(0, 13, 14)], vec![range(2, 0, 1), range(1, 0, 3)]] {
            assert!(!request(&stranger).follows(&batch), "{stranger:?}");
        }
    }
}
