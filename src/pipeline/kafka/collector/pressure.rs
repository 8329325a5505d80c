//! What the process may hold: memory is given back by encoding, and fetching pauses where that does not suffice.

use std::sync::Arc;

use super::Collector;
use crate::error::Result;
use crate::pipeline::kafka::messages::SegmenterId;
use crate::pipeline::kafka::segmenter::Segmenter;
use crate::source::kafka::TopicPartition;

impl Collector {
    /// Blocks may hold three eighths of the budget before the largest segmenters are encoded, and half of it before fetching
    /// stops; the rest is for the pool, the encoders and librdkafka. More blocks would only wait longer for an encoder.
    pub(super) fn keep_memory(&mut self) {
        let held: usize = self.segmenters.values().map(Segmenter::memory).sum();
        if held > self.memory_budget / 8 * 3 {
            let mut by_size: Vec<(u64, SegmenterId)> =
                self.segmenters.iter().map(|(id, segmenter)| (segmenter.unflushed(), *id)).collect();
            by_size.sort_unstable_by(|a, b| b.cmp(a));
            let mut to_free = (held - self.memory_budget / 4) as u64;
            for (bytes, id) in by_size {
                let Some(segmenter) = self.segmenters.get_mut(&id) else { continue };
                if bytes > 0 {
                    segmenter.flush();
                }
                to_free = to_free.saturating_sub(bytes);
                if to_free == 0 {
                    break;
                }
            }
        }
        self.full = held > if self.full { self.memory_budget / 8 * 3 } else { self.memory_budget / 2 };
    }

    pub(super) fn reconcile(&mut self) -> Result<()> {
        let (mut pause, mut resume) = (Vec::new(), Vec::new());
        let full = self.full || self.stopping.is_some() || self.is_paused();
        for (topic, id) in &self.current {
            let Some(segmenter) = self.segmenters.get_mut(id) else { continue };
            let (stop, go) = segmenter.reconcile(full);
            pause.extend(stop.into_iter().map(|partition| TopicPartition { topic: Arc::clone(topic), partition }));
            resume.extend(
                go.into_iter()
                    .map(|(partition, offset)| (TopicPartition { topic: Arc::clone(topic), partition }, offset)),
            );
        }
        if !pause.is_empty() {
            let backed_up = self.segmenters.values().filter(|segmenter| segmenter.is_backed_up()).count();
            tracing::debug!(partitions = pause.len(), memory_full = self.full, backed_up, "fetching paused");
            self.consumer.pause(&pause)?;
        }
        if !resume.is_empty() {
            self.consumer.resume(&resume)?;
        }
        Ok(())
    }
}
