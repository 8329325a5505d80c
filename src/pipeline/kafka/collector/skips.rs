//! What was requested to be skipped: only what stands at the offset that the request names, and only as far as it cannot be read.

use std::ops::Range;
use std::sync::Arc;

use super::state::Collector;
use crate::error::{Error, Kind, Result};
use crate::pipeline::desired::State;
use crate::pipeline::kafka::lost;
use crate::pipeline::kafka::messages::{Question, SegmenterId};
use crate::pipeline::kafka::segmenter::Wait;
use crate::pipeline::skips::{Refused, Skip, Told};
use crate::source::kafka::TopicPartition;
use crate::stream::GapReason;

impl Collector {
    /// Begins with the requests that came.
    pub(super) fn follow_skips(&mut self) {
        for skip in self.published.skips.take() {
            match self.stands(&skip) {
                Ok(segmenter) => {
                    let look = lost::look(Arc::clone(&self.shared), Arc::clone(&self.kafka), segmenter, skip);
                    self.published.tasks.spawn_on(&self.runtime, "skip", look);
                }
                Err(told) => skip.tell(told),
            }
        }
    }

    /// The segmenter whose partition stands where a request says, or what is to be told instead.
    fn stands(&self, skip: &Skip) -> Result<SegmenterId, Told> {
        let because = |why: String| Err(Told::Refused(Refused::Because(why)));
        let Skip { at, offset, .. } = skip;
        let segmenter = self.topics.current.get(&at.topic).and_then(|id| self.topics.segmenters.get(id));
        let Some((segmenter, (next, wait))) =
            segmenter.and_then(|segmenter| Some((segmenter, segmenter.stands(at.partition)?)))
        else {
            return Err(Told::Refused(Refused::NotHere));
        };
        let unreadable = GapReason::Unreadable.name();
        let mut gaps =
            segmenter.shown.gaps.iter().filter(|gap| gap.partition == at.partition && gap.reason == unreadable);
        if let Some(gap) = gaps.find(|gap| gap.start == *offset) {
            return Err(Told::Skipped(gap.start..gap.end));
        }
        if self.state() != State::Running {
            return because(format!("nothing is read now: kafka is {}", self.state().name()));
        }
        if wait.is_some() {
            return because(format!("where {at} is read on is being looked up: ask again in a moment"));
        }
        if next != *offset {
            return because(format!("{at} stands at offset {next}, not at {offset}"));
        }
        Ok(segmenter.id)
    }

    /// It is known how far what a request names cannot be read. If the partition still stands there, that is recorded behind
    /// everything that came before.
    pub(super) fn on_measured(&mut self, id: SegmenterId, skip: &Skip, lost: Result<Range<i64>>) {
        let lost = match (lost, self.stands(skip)) {
            (Err(error), _) => return skip.refuse(error_text(&error)),
            (_, Err(told)) => return skip.tell(told),
            (Ok(_), Ok(segmenter)) if segmenter != id => return skip.refuse("the topic was created again meanwhile"),
            (Ok(lost), Ok(_)) => lost,
        };
        if let Some(segmenter) = self.topics.segmenters.get_mut(&id) {
            segmenter.hold(skip.at.partition, Wait::Skip);
            segmenter.ask(Question::Skip { partition: skip.at.partition, start: lost.start, end: lost.end });
        }
    }

    /// What was to be skipped is recorded, or was not there any more.
    pub(super) fn on_skipped(&mut self, id: SegmenterId, partition: i32, (start, end): (i64, Option<i64>)) {
        let Some(segmenter) = self.topics.segmenters.get(&id) else { return };
        let at = TopicPartition { topic: Arc::clone(&segmenter.topic), partition };
        let Some(skip) = self.published.skips.find(&at, start) else { return };
        match end {
            Some(end) => skip.tell(Told::Skipped(start..end)),
            None => skip.refuse(error_text(&moved(&at, start))),
        }
    }
}

fn moved(at: &TopicPartition, start: i64) -> Error {
    Error::new(Kind::Fenced, format!("{at} does not stand at offset {start} any more: it was moved meanwhile"))
        .hint("look where it stands now")
}

fn error_text(error: &Error) -> String {
    let hint = error.hint_text().map(|hint| format!(" (do: {hint})")).unwrap_or_default();
    format!("{error}{hint}")
}
