//! Starts partitions again of which nothing comes.

use std::sync::Arc;
use std::time::Instant;

use super::state::Collector;
use super::unheard::Due;
use crate::error::Result;
use crate::source::kafka::TopicPartition;

impl Collector {
    /// Starts what has been silent for too long, or replaces the client.
    pub(super) fn start_unheard(&mut self, now: Instant) -> Result<()> {
        let segmenters =
            self.topics.current.iter().filter_map(|(topic, id)| Some((topic, self.topics.segmenters.get(id)?)));
        let silent = segmenters.flat_map(|(topic, segmenter)| {
            segmenter.unheard().map(|partition| TopicPartition { topic: Arc::clone(topic), partition })
        });
        match self.unheard.due(silent, now) {
            Due::Nothing => Ok(()),
            Due::Start(partitions) => self.consumer.start_again(&partitions),
            Due::Replace(at) => {
                let (topic, partition) = (&*at.topic, at.partition);
                tracing::warn!(
                    topic,
                    partition,
                    "the client reads nothing of a partition that has a leader: it is replaced"
                );
                self.rejoin()
            }
        }
    }
}
