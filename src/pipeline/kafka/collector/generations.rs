//! The one place that moves a topic to another generation.
//!
//! ```text
//!  another topic id ──┐    the segmenter takes nothing more,          ┌─► ended: every partition of the topic that the
//!  a log that was cut ┼──► is sealed, and asks for its end behind ──┤   group has given this process is looked up,
//!  a later generation │    all that came (ending)                    │   whichever the old segmenter carried
//!  of another replica ┘                                              │
//!  the chain was ended by another process ───────────────────────────┘
//! ```
//!
//! Between the two nothing of the topic is read, and what the resolver answers of it does not count: it may be of the
//! generation that ends.

use std::sync::Arc;

use super::state::Collector;
use crate::pipeline::kafka::messages::SegmenterId;
use crate::pipeline::kafka::segmenter::Wait;
use crate::pipeline::kafka::topic_ids::is_recreated;
use crate::source::kafka::TopicPartition;
use crate::stream::Cut;

impl Collector {
    /// The generation of a segmenter is over. What came of it is committed to its own chain first. `cut`: the partition whose log
    /// left what is archived, and where.
    pub(super) fn end_generation(&mut self, id: SegmenterId, cut: Option<Cut>) {
        let Some(segmenter) = self.topics.segmenters.get_mut(&id) else { return };
        // Of a segmenter that ends already nobody needs to know twice: a second cut is found again where the topic goes on.
        if self.topics.current.get(&segmenter.topic) != Some(&id) {
            return;
        }
        tracing::info!(topic = &*segmenter.topic, generation = segmenter.stream.number, ?cut, "a generation ends");
        self.topics.current.remove(&segmenter.topic);
        self.topics.ending.insert(Arc::clone(&segmenter.topic), id);
        segmenter.end(cut);
    }

    /// A topic has another id than its segmenter.
    pub(super) fn on_recreated(&mut self, topic: &str, topic_id: &str) {
        if let Some(segmenter) = self.topics.of(topic)
            && is_recreated(segmenter.topic_id.as_deref(), Some(topic_id))
        {
            let id = segmenter.id;
            self.end_generation(id, None);
        }
    }

    /// Another process has begun a later generation of a topic, and nothing came here that would have told.
    pub(super) fn on_followed(&mut self, topic: &str, generation: u32) {
        if let Some(segmenter) = self.topics.of(topic)
            && segmenter.stream.number < generation
        {
            let id = segmenter.id;
            self.end_generation(id, None);
        }
    }

    /// Nothing comes after what the chain of a segmenter has: all partitions of the topic go on where its next generation says.
    pub(super) fn on_ended(&mut self, id: SegmenterId) {
        let Some(segmenter) = self.topics.segmenters.get_mut(&id) else { return };
        let topic = Arc::clone(&segmenter.topic);
        if self.topics.current.get(&topic) == Some(&id) {
            // Another process has ended it. What is under way comes to nothing and is read again.
            self.topics.current.remove(&topic);
            for partition in segmenter.partitions() {
                segmenter.hold(partition, Wait::NextGeneration);
            }
            segmenter.seal(crate::pipeline::kafka::seal_reason::SealReason::Conflict);
        } else if self.topics.ending.get(&topic) == Some(&id) {
            self.topics.ending.remove(&topic);
        } else {
            return;
        }
        let owned = self.consumer.owned().filter(|(of, ..)| **of == topic);
        let owned: Vec<_> =
            owned.map(|(_, partition, _)| TopicPartition { topic: Arc::clone(&topic), partition }).collect();
        self.resolve(owned);
    }
}
