//! What the process may hold: memory is given back by encoding, and fetching pauses where that does not suffice.

use std::sync::Arc;

use super::state::Collector;
use crate::error::Result;
use crate::pipeline::kafka::messages::SegmenterId;
use crate::source::kafka::TopicPartition;

impl Collector {
    /// Encodes the largest segmenters early where blocks hold too much.
    pub(super) fn keep_memory(&mut self) {
        let mut to_free = self.memory.holds(self.topics.memory());
        if to_free == 0 {
            return;
        }
        let segmenters = &mut self.topics.segmenters;
        let mut by_size: Vec<(u64, SegmenterId)> =
            segmenters.iter().map(|(id, segmenter)| (segmenter.unflushed(), *id)).collect();
        by_size.sort_unstable_by(|a, b| b.cmp(a));
        for (bytes, id) in by_size {
            let Some(segmenter) = segmenters.get_mut(&id) else { continue };
            if bytes > 0 {
                segmenter.flush();
            }
            to_free = to_free.saturating_sub(bytes);
            if to_free == 0 {
                break;
            }
        }
    }

    pub(super) fn reconcile(&mut self) -> Result<()> {
        let (mut pause, mut resume) = (Vec::new(), Vec::new());
        let full = self.memory.is_full() || self.stopping.is_some() || self.is_paused();
        for (topic, id) in &self.topics.current {
            let Some(segmenter) = self.topics.segmenters.get_mut(id) else { continue };
            let (stop, go) = segmenter.reconcile(full);
            pause.extend(stop.into_iter().map(|partition| TopicPartition { topic: Arc::clone(topic), partition }));
            resume.extend(
                go.into_iter()
                    .map(|(partition, offset)| (TopicPartition { topic: Arc::clone(topic), partition }, offset)),
            );
        }
        if !pause.is_empty() {
            let backed_up = self.topics.segmenters.values().filter(|segmenter| segmenter.is_backed_up()).count();
            tracing::debug!(
                partitions = pause.len(),
                memory_full = self.memory.is_full(),
                backed_up,
                "fetching paused"
            );
            self.consumer.pause(&pause)?;
        }
        if !resume.is_empty() {
            self.consumer.resume(&resume)?;
        }
        Ok(())
    }
}
