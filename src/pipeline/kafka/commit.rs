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

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::divergence::Earlier;
use super::messages::{Dropped, Question, SegmenterId, TaskEvent};
use super::shared::Shared;
use super::topic_ids::{Verified, kept};
use crate::error::{Kind, Result};
use crate::manifest::{Change, Outcome};
use crate::pipeline::checkpointer::Checkpointer;
use crate::segment::{Encoding, Sealed, SegmentInfo, rewrite};
use crate::source::kafka::{OffsetAt, TopicPartition};
use crate::store::layout;
use crate::stream::{PartitionRange, SegmentRef, TopicGeneration};
use crate::tasks::Task;
use crate::tasks::backoff::Backoff;

/// What is reported of a checkpoint that fails.
pub(super) const NOT_WRITTEN: &str = "a checkpoint cannot be written";

/// How long the ends of a new topic's logs are asked for, and how often: they may have no leader yet.
const LATEST_WITHIN: Duration = Duration::from_secs(3);
const LATEST_AGAIN: Duration = Duration::from_millis(100);

/// What a committer is asked, in order.
pub(super) enum Request {
    /// A segment, on its way since it was sealed as the segmenter's number `seq`.
    Segment { seq: u64, sealed: Sealed },
    /// Ranges that hold no record.
    Empty { seq: u64, ranges: Vec<PartitionRange> },
    /// A question about what is archived. It comes the way of the segments (see `segmenter::EncodeStep`): all that was read before it
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
    pub(super) checkpoints: Checkpointer,
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
                request = tokio::time::timeout_at(self.checkpoints.next(), self.inbox.recv()).await.ok().flatten();
            }
            if batch.is_empty() {
                if let Some(Request::Ask(question)) = put_back.take() {
                    self.answer(question).await;
                }
                continue;
            }
            self.commit(batch).await;
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
        while !batch.is_empty() {
            let change = Change {
                segments: batch.iter().filter_map(|ready| Some(ready.segment.as_ref()?.1.clone())).collect(),
                empty: batch.iter().flat_map(|ready| ready.empty.iter().copied()).collect(),
                gaps: Vec::new(),
            };
            if change.segments.is_empty() && change.empty.is_empty() {
                break;
            }
            match self.checkpoints.commit(&change, NOT_WRITTEN).await {
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
        self.shared.send(TaskEvent::Archived { segmenter: self.segmenter, totals: *self.checkpoints.chain().totals() });
        self.tell_committed(batch);
        if !lost.is_empty() {
            let dropped = lost.into_iter().filter_map(|(partition, seq)| {
                Some(Dropped {
                    partition,
                    seq,
                    from: self.resume(partition, self.checkpoints.chain().reached(partition)?),
                })
            });
            self.shared.send(TaskEvent::Fenced { segmenter: self.segmenter, dropped: dropped.collect() });
        }
    }

    /// Waits of a loop that works for this topic.
    pub(super) fn backoff(&self, task: Task) -> Backoff {
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
        let id = match self.checkpoints.chain().begin_facts().topic_id() {
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
                topic_id: self.checkpoints.chain().begin_facts().topic_id().map(str::to_owned),
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
