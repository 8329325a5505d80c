//! The collector's state as others see it: once a second, and at once when it changes what it does.

use std::sync::Arc;
use std::time::Instant;

use super::state::Collector;
use crate::config::Isolation;
use crate::pipeline::kafka::messages::Seen;
use crate::pipeline::kafka::stalls::Around;
use crate::pipeline::kafka::status::{Status, Trouble};
use crate::source::kafka::TopicPartition;
use crate::tasks::Task;

impl Collector {
    /// Takes in where partitions end, and how far they and their topics are complete.
    pub(super) fn on_seen(&mut self, seen: Seen) {
        for partition in &seen.partitions {
            if let Some(segmenter) = self.topics.of(&partition.at.topic) {
                segmenter.shown.see(partition);
            }
        }
        for (generation, complete_through) in seen.topics {
            if let Some(segmenter) =
                self.topics.of(&generation.topic).filter(|segmenter| segmenter.stream == generation)
            {
                segmenter.shown.complete_through = complete_through;
            }
        }
    }

    /// Takes in up to where everything is decided of partitions that stand still.
    pub(super) fn on_stable(&mut self, offsets: &[(TopicPartition, i64)]) {
        let committed_only = self.kafka.isolation == Isolation::ReadCommitted;
        for (at, offset) in offsets {
            self.unheard.is_answered(at);
            // Who reads everything waits for no transaction.
            if let Some(segmenter) = self.topics.of(&at.topic).filter(|_| committed_only) {
                segmenter.shown.still.is_stable_to(at.partition, *offset);
            }
        }
    }

    /// Asks for the last stable offsets of partitions that stand still: an open transaction may hold them, or the client is stuck.
    pub(super) fn ask_for_stable(&mut self) {
        let now = crate::time::now();
        let mut still = Vec::new();
        for (topic, id) in &self.topics.current {
            let Some(segmenter) = self.topics.segmenters.get(id) else { continue };
            let of_segmenter = segmenter.shown.still.unexplained(now);
            still.extend(of_segmenter.map(|partition| TopicPartition { topic: Arc::clone(topic), partition }));
        }
        // One question is under way at most: the next round asks again.
        if !still.is_empty() && self.still.try_send(still).is_err() {
            tracing::debug!("the last stable offsets are being asked for");
        }
    }

    /// Publishes when the state has changed, without waiting for the second to end.
    pub(super) fn publish_change(&mut self, now: Instant) {
        if self.news.state.is_none_or(|(state, _)| state != self.state()) {
            self.publish(now);
        }
    }

    /// Publishes what is so now.
    pub(super) fn publish(&mut self, now: Instant) {
        let state = self.state();
        let since = match self.news.state {
            Some((before, since)) if before == state => since,
            _ => crate::time::now(),
        };
        self.news.state = Some((state, since));
        let (paused, fault) = (self.is_paused() || self.stopping.is_some(), self.news.fault.as_ref());
        let memory = self.topics.memory();
        let failing = self.published.tasks.failing();
        let no_ends = failing.iter().any(|failure| failure.task == Task::KafkaEnds);
        let mut streams = Vec::with_capacity(self.topics.current.len());
        for id in self.topics.current.values() {
            let Some(segmenter) = self.topics.segmenters.get_mut(id) else { continue };
            let mut stream = segmenter.show(now);
            let around = Around {
                paused,
                memory_full: self.memory.is_full(),
                backed_up: segmenter.is_backed_up(),
                no_ends,
                fault,
            };
            segmenter.shown.still.look(&mut stream.partitions, around, crate::time::now());
            if !stream.partitions.is_empty() {
                streams.push(stream);
            }
        }
        for failure in failing.iter().filter(|failure| !failure.task.is_of_postgres()) {
            let about = streams.iter_mut().find(|stream| stream.topic == failure.about);
            if let Some(stream) = about {
                stream.trouble.get_or_insert_with(|| failure.into());
            }
        }
        streams.sort_unstable_by(|a, b| a.topic.cmp(&b.topic));
        self.published.publish(Status {
            state,
            since: Some(since),
            member: self.consumer.is_member(),
            resolving: self.lookups.len(),
            brokers: failing.iter().find(|failure| failure.task == Task::KafkaEnds).map(Trouble::from),
            memory_used: memory as u64,
            memory_full: self.memory.is_full(),
            last_checkpoint: self.news.last_checkpoint,
            incomplete: self.membership.assigned.incomplete(&streams, &mut self.labels),
            streams,
        });
    }
}
