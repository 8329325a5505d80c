//! Offsets that are lost for good: a gap is committed behind everything that came before it, and what follows is read.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::commit::{Committer, NOT_WRITTEN};
use super::gaps;
use super::messages::{SegmenterId, TaskEvent};
use super::shared::Shared;
use super::topic_ids::is_recreated;
use crate::config::{Isolation, Kafka};
use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::manifest::{Change, Outcome};
use crate::pipeline::skips::Skip;
use crate::source::kafka::{OffsetAt, unreadable};
use crate::stream::{Gap, GapReason};

/// How long it is looked how far something cannot be read. A hundred thousand offsets take about a minute, one by one; what is
/// not looked at by then takes another request.
const LOOK_WITHIN: Duration = Duration::from_secs(180);

/// Looks how far what a request names cannot be read, and tells the collector.
pub(super) async fn look(shared: Arc<Shared>, kafka: Arc<Kafka>, segmenter: SegmenterId, skip: Arc<Skip>) {
    let lost = measure(&shared, kafka, &skip).await;
    shared.send(TaskEvent::Measured { segmenter, skip, lost });
}

async fn measure(shared: &Shared, kafka: Arc<Kafka>, skip: &Skip) -> Result<Range<i64>> {
    let (at, offset) = (skip.at.clone(), skip.offset);
    // What is appended from now on lies behind this end, and none of it is looked at.
    let listed = shared.cluster.list_offsets(std::slice::from_ref(&at), OffsetAt::Latest, Isolation::ReadUncommitted);
    let end = listed.await?.into_iter().next().and_then(|(_, end)| end.transpose()).transpose()?;
    let Some(end) = end.filter(|end| *end > offset) else {
        return Err(Error::new(Kind::NotFound, format!("{at} has nothing at offset {offset}")));
    };
    let looked = tokio::task::spawn_blocking(move || {
        let found = unreadable(&kafka, &at, (offset, end), Instant::now() + LOOK_WITHIN)?;
        found.ok_or_else(|| {
            Error::new(Kind::NotFound, format!("{at} can be read at offset {offset}"))
                .hint("it goes on by itself; if it does not, restart tidelog")
        })
    });
    let found = looked.await.or_err(Kind::Internal, || "the look was given up".to_owned())??;
    tracing::warn!(at = %skip.at, start = found.lost.start, end = found.lost.end, why = found.why, "what is to be skipped cannot be read");
    Ok(found.lost)
}

impl Committer {
    /// Commits that offsets are lost; what is told of it is told only then.
    pub(super) async fn lose(&mut self, partition: i32, lost: Range<i64>, reason: GapReason) -> Outcome {
        let now = crate::time::now();
        let gap = Gap { partition, start: lost.start, end: lost.end, reason, found: now, generation: 0 };
        let before = self.checkpoints.chain().position(partition).and_then(|range| range.max_timestamp);
        let shown = gaps::span(&gap, before, None);
        let outcome = self.checkpoints.append(&Change { gaps: vec![gap], ..Change::default() }, NOT_WRITTEN).await;
        if let Outcome::Committed { .. } = outcome {
            self.shared.counters.lost(reason);
            self.shared.send(TaskEvent::Gaps { segmenter: self.segmenter, gaps: vec![shown] });
            self.shared
                .send(TaskEvent::Archived { segmenter: self.segmenter, totals: *self.checkpoints.chain().totals() });
            tracing::error!(
                topic = self.generation.topic,
                partition,
                start = lost.start,
                end = lost.end,
                offsets = lost.end - lost.start,
                reason = reason.words(),
                "offsets are lost; the gap is recorded"
            );
        }
        outcome
    }

    /// Records that what stands at the archived position cannot be read, as somebody has ordered. If the partition is somewhere
    /// else by now, nothing is skipped.
    pub(super) async fn skip(&mut self, partition: i32, lost: Range<i64>) {
        let (segmenter, start, end) = (self.segmenter, lost.start, lost.end);
        let (id, ..) = self.present(partition).await;
        let recreated = is_recreated(self.checkpoints.chain().begin_facts().topic_id(), id.as_deref());
        let stands = !recreated && self.checkpoints.chain().reached(partition).is_none_or(|reached| reached == start);
        let outcome = if stands { Some(self.lose(partition, lost, GapReason::Unreadable).await) } else { None };
        let end = matches!(outcome, Some(Outcome::Committed { .. })).then_some(end);
        self.shared.send(TaskEvent::Skipped { segmenter, partition, start, end });
        if recreated {
            return self.shared.send(TaskEvent::GenerationEnds { segmenter, cut: None });
        }
        if outcome == Some(Outcome::Closed) {
            return self.shared.send(TaskEvent::Ended { segmenter });
        }
        let next = self.checkpoints.chain().reached(partition).unwrap_or(start);
        self.found(partition, self.resume(partition, next));
    }
}
