//! Steps to the encoders and back.

use std::sync::Arc;
use std::time::Instant;

use super::state::Collector;
use crate::error::Result;
use crate::pipeline::kafka::commit::Request;
use crate::pipeline::kafka::messages::{Free, SegmenterId, TaskEvent};
use crate::pipeline::kafka::segmenter::{EncodeStep, Encoded, Finish, RETRY_AFTER};
use crate::pipeline::kafka::shared::Shared;
use crate::record::Block;
use crate::segment::{Encoding, SegmentInfo, SegmentWriter};
use crate::stream::PartitionRange;
use crate::tasks::caught;

impl Collector {
    /// Gives the encoders as many steps as they may have, the segmenters in turn.
    pub(super) fn encode(&mut self) {
        let now = Instant::now();
        loop {
            let ready =
                self.topics.segmenters.iter().filter(|(_, segmenter)| segmenter.is_ready(now)).map(|(id, _)| *id);
            let Some(id) = self.encoders.next(ready) else { break };
            let Some(segmenter) = self.topics.segmenters.get_mut(&id) else { break };
            let Some((step, writer)) = segmenter.next_step(now) else { break };
            self.start_step(id, step, writer);
        }
    }

    fn start_step(&mut self, id: SegmenterId, mut step: EncodeStep, writer: Option<SegmentWriter>) {
        if let Some(question) = step.question.take() {
            if let Some(segmenter) = self.topics.segmenters.get_mut(&id) {
                segmenter.step_done(0, writer);
            }
            return self.topics.ask(id, Request::Ask(question));
        }
        if let Some(Finish { seq, ranges, has_rows: false, .. }) = &step.finish {
            if let Some(segmenter) = self.topics.segmenters.get_mut(&id) {
                segmenter.step_done(0, None);
            }
            return self.topics.ask(id, Request::Empty { seq: *seq, ranges: ranges.iter().map(empty).collect() });
        }
        let Some(segmenter) = self.topics.segmenters.get(&id) else { return };
        let settings = segmenter.settings();
        let encoding = Encoding { format: settings.format, zstd_level: settings.zstd_level };
        let info = SegmentInfo {
            stream: segmenter.stream.clone(),
            topic_id: segmenter.topic_id.clone(),
            writer: self.shared.writer.clone(),
            created: crate::time::now(),
        };
        let committer = self.topics.committers.get(&id).cloned();
        let (shared, topic) = (Arc::clone(&self.shared), Arc::clone(&segmenter.topic));
        self.encoders.begin();
        self.runtime.spawn_blocking(move || {
            let memory = step.memory;
            let finished = step.finish.as_ref().map(|finish| (finish.seq, finish.reason));
            // A panic is this topic's failure alone: its records are read again, and the segmenter is not busy for ever.
            let result = caught("the encoding of a segment", || write(&shared, step, writer, info, encoding));
            let result = result.map(|(encoded, blocks)| {
                let writer = match (encoded, finished, committer) {
                    (Encoded::Sealed(sealed), Some((seq, reason)), Some(committer)) => {
                        shared.counters.sealed(reason);
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
            shared.send(TaskEvent::Encoded { segmenter: id, memory, result });
        });
    }

    pub(super) fn on_encoded(&mut self, id: SegmenterId, memory: usize, result: Result<Free>) {
        self.encoders.end();
        let Some(segmenter) = self.topics.segmenters.get_mut(&id) else { return };
        match result {
            Ok(Free { writer, blocks }) => {
                segmenter.step_done(memory, writer);
                segmenter.shown.encoding.succeeded();
                self.memory.pool.give_back(blocks);
            }
            Err(error) => {
                let what = "a segment cannot be written to the spool; its records will be read again";
                tracing::error!(topic = &*segmenter.topic, %error, hint = error.hint_text(), retry_in = ?RETRY_AFTER, "{what}");
                segmenter.shown.encoding.failed(what, &error, Some(RETRY_AFTER));
                segmenter.start_over(Instant::now() + RETRY_AFTER);
            }
        }
    }
}

/// Writes a step's blocks to the segment's file, which is made if this is its first step, and ends it if it is its last.
fn write(
    shared: &Shared,
    step: EncodeStep,
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

/// Returns a range that holds no record.
fn empty(&(partition, start, end): &(i32, i64, i64)) -> PartitionRange {
    PartitionRange { partition, start, end, records: 0, min_timestamp: None, max_timestamp: None }
}
