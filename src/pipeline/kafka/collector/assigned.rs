//! What the group has assigned, and since when: the lag of a partition of which nothing is known to be complete counts from there.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use crate::pipeline::kafka::status::{Incomplete, StreamStatus};
use crate::source::kafka::TopicPartition;
use crate::telemetry::metrics::TopicLabels;

/// The assigned partitions.
#[derive(Debug, Default)]
pub(super) struct Assigned(BTreeMap<TopicPartition, DateTime<Utc>>);

impl Assigned {
    /// The group has given partitions. One that it had given before keeps its time.
    pub(super) fn add(&mut self, partitions: &[TopicPartition], now: DateTime<Utc>) {
        for at in partitions {
            self.0.entry(at.clone()).or_insert(now);
        }
    }

    /// The group has taken partitions away.
    pub(super) fn remove(&mut self, partitions: &[TopicPartition]) {
        for at in partitions {
            self.0.remove(at);
        }
    }

    /// Those of which nothing is known to be complete, whether they are read (`streams`, in order) or not.
    pub(super) fn incomplete(&self, streams: &[StreamStatus], labels: &mut TopicLabels) -> Vec<Incomplete> {
        let is_complete = |at: &TopicPartition| {
            let stream = streams.binary_search_by(|stream| stream.topic.cmp(&at.topic)).ok()?;
            let partitions = &streams.get(stream)?.partitions;
            let shown = partitions.binary_search_by_key(&at.partition, |shown| shown.partition).ok()?;
            partitions.get(shown)?.complete_through
        };
        let incomplete = self.0.iter().filter(|(at, _)| is_complete(at).is_none());
        incomplete
            .map(|(at, since)| Incomplete { label: labels.of(&at.topic), partition: at.partition, since: *since })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::pipeline::kafka::status::PartitionStatus;
    use crate::stream::Totals;

    fn time(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(seconds, 0).expect("a time")
    }

    fn stream(topic: &str, partitions: &[(i32, Option<i64>)]) -> StreamStatus {
        let partition = |&(partition, complete): &(i32, Option<i64>)| PartitionStatus {
            partition,
            committed: 0,
            archived: 0,
            next: 0,
            end: None,
            complete_through: complete.map(time),
            held: false,
            stall: None,
        };
        StreamStatus {
            stream: format!("kafka/main/{topic}.0").into(),
            topic: topic.into(),
            label: topic.into(),
            generation: 0,
            partitions: partitions.iter().map(partition).collect(),
            totals: Totals::default(),
            gaps: Arc::new([]),
            records_per_second: 0.0,
            bytes_per_second: 0.0,
            waiting: 0,
            complete_through: None,
            trouble: None,
        }
    }

    #[test]
    fn what_is_assigned_is_shown_until_it_is_complete_or_taken_away_whether_it_is_read_or_not() {
        let (mut assigned, mut labels) = (Assigned::default(), TopicLabels::new(1));
        let at = |topic: &str, partition| TopicPartition::new(topic, partition);
        assigned.add(&[at("a", 0), at("a", 1), at("a", 2), at("b", 0)], time(10));
        assigned.add(&[at("a", 1)], time(20));
        let streams = [stream("a", &[(0, Some(5)), (1, None), (7, None)])];
        let mut shown = |assigned: &Assigned, streams: &[StreamStatus]| {
            let incomplete = assigned.incomplete(streams, &mut labels);
            incomplete.iter().map(|at| (at.label.to_string(), at.partition, at.since)).collect::<Vec<_>>()
        };
        let (a, other) = (|partition| ("a".to_owned(), partition, time(10)), ("(other)".to_owned(), 0, time(10)));
        assert_eq!(shown(&assigned, &streams), [a(1), a(2), other.clone()]);
        assert_eq!(shown(&assigned, &[]), [a(0), a(1), a(2), other.clone()]);
        assigned.remove(&[at("a", 2)]);
        assert_eq!(shown(&assigned, &[stream("a", &[(0, Some(5)), (1, Some(6))])]), [other]);
    }
}
