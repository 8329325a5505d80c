//! The one place that moves a topic to another generation.
//!
//! ```text
//!  another topic id ──┐    the lane takes nothing more, is sealed,     ┌─► ended: every partition of the topic that the
//!  a log that was cut ┼──► and asks for its end behind all that came ──┤   group has given this process is looked up,
//!  a later generation │    (ending)                                    │   whichever the old lane carried
//!  of another replica ┘                                                │
//!  the chain was ended by another process ─────────────────────────────┘
//! ```
//!
//! Between the two nothing of the topic is read, and what the resolver answers of it does not count: it may be of the
//! generation that ends.

use std::sync::Arc;

use super::Collector;
use crate::pipeline::kafka::commit::another_life;
use crate::pipeline::kafka::lane::{LaneId, Wait};
use crate::source::kafka::TopicPartition;
use crate::stream::Cut;

impl Collector {
    /// The generation of a lane is over. What came of it is committed to its own chain first. `cut`: the partition whose log
    /// left what is archived, and where.
    pub(super) fn end_generation(&mut self, id: LaneId, cut: Option<Cut>) {
        let Some(lane) = self.lanes.get_mut(&id) else { return };
        // Of a lane that ends already nobody needs to know twice: a second cut is found again where the topic goes on.
        if self.current.get(&lane.topic) != Some(&id) {
            return;
        }
        tracing::info!(topic = &*lane.topic, generation = lane.stream.generation, ?cut, "a generation ends");
        self.current.remove(&lane.topic);
        self.ending.insert(Arc::clone(&lane.topic), id);
        lane.end(cut);
    }

    /// A topic has another id than its lane.
    pub(super) fn on_recreated(&mut self, topic: &str, topic_id: &str) {
        if let Some(lane) = self.lane_of(topic)
            && another_life(lane.topic_id.as_deref(), Some(topic_id))
        {
            let id = lane.id;
            self.end_generation(id, None);
        }
    }

    /// Another process has begun a later generation of a topic, and nothing came here that would have told.
    pub(super) fn on_followed(&mut self, topic: &str, generation: u32) {
        if let Some(lane) = self.lane_of(topic)
            && lane.stream.generation < generation
        {
            let id = lane.id;
            self.end_generation(id, None);
        }
    }

    /// Nothing comes after what the chain of a lane has: all partitions of the topic go on where its next generation says.
    pub(super) fn on_ended(&mut self, id: LaneId) {
        let Some(lane) = self.lanes.get_mut(&id) else { return };
        let topic = Arc::clone(&lane.topic);
        if self.current.get(&topic) == Some(&id) {
            // Another process has ended it. What is under way comes to nothing and is read again.
            self.current.remove(&topic);
            for partition in lane.partitions() {
                lane.hold(partition, Wait::NextGeneration);
            }
            lane.seal(crate::pipeline::kafka::lane::Reason::Conflict);
        } else if self.ending.get(&topic) == Some(&id) {
            self.ending.remove(&topic);
        } else {
            return;
        }
        let owned = self.consumer.owned().filter(|(of, ..)| **of == topic);
        let owned: Vec<_> =
            owned.map(|(_, partition, _)| TopicPartition { topic: Arc::clone(&topic), partition }).collect();
        self.resolve(owned);
    }
}
