//! What the process may hold: memory is given back by encoding, and fetching pauses where that does not suffice.

use std::sync::Arc;

use super::Collector;
use crate::error::Result;
use crate::pipeline::kafka::lane::{Lane, LaneId};
use crate::source::kafka::TopicPartition;

impl Collector {
    /// Blocks may hold three eighths of the budget before the largest lanes are encoded, and half of it before fetching
    /// stops; the rest is for the pool, the encoders and librdkafka. More blocks would only wait longer for an encoder.
    pub(super) fn keep_memory(&mut self) {
        let held: usize = self.lanes.values().map(Lane::memory).sum();
        if held > self.memory_budget / 8 * 3 {
            let mut by_size: Vec<(u64, LaneId)> = self.lanes.iter().map(|(id, lane)| (lane.unflushed(), *id)).collect();
            by_size.sort_unstable_by(|a, b| b.cmp(a));
            let mut to_free = (held - self.memory_budget / 4) as u64;
            for (bytes, id) in by_size {
                let Some(lane) = self.lanes.get_mut(&id) else { continue };
                if bytes > 0 {
                    lane.flush();
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
            let Some(lane) = self.lanes.get_mut(id) else { continue };
            let (stop, go) = lane.reconcile(full);
            pause.extend(stop.into_iter().map(|partition| TopicPartition { topic: Arc::clone(topic), partition }));
            resume.extend(
                go.into_iter()
                    .map(|(partition, offset)| (TopicPartition { topic: Arc::clone(topic), partition }, offset)),
            );
        }
        if !pause.is_empty() {
            let backed_up = self.lanes.values().filter(|lane| lane.is_backed_up()).count();
            tracing::debug!(partitions = pause.len(), memory_full = self.full, backed_up, "fetching paused");
            self.consumer.pause(&pause)?;
        }
        if !resume.is_empty() {
            self.consumer.resume(&resume)?;
        }
        Ok(())
    }
}
