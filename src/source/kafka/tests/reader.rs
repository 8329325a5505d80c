//! A consumer that a test watches. The integration tests include this file too: what it needs comes from its parent.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Consumer, Event, Format, Isolation, Kafka, Message, Segment, Start, TimestampType, TopicPartition};

/// A configuration as the parser would give it.
pub(crate) fn config(bootstrap: &str, topics: &[&str], properties: &[(&str, &str)]) -> Kafka {
    Kafka {
        cluster: "main".into(),
        cluster_id: None,
        bootstrap_servers: bootstrap.into(),
        group_id: "tidelog".into(),
        topics: topics.iter().map(|topic| (*topic).to_owned()).collect(),
        exclude: Vec::new(),
        start: Start::Earliest,
        isolation: Isolation::ReadCommitted,
        properties: properties.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        segment: Segment {
            format: Format::Parquet,
            zstd_level: 3,
            max_bytes: 1 << 26,
            max_records: 1_000_000,
            max_age: Duration::from_secs(60),
        },
        merge: None,
        overrides: Vec::new(),
    }
}

/// What a record said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) offset: i64,
    pub(crate) timestamp: i64,
    pub(crate) timestamp_type: TimestampType,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) headers: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

/// A consumer that answers rebalances at once and remembers everything.
pub(crate) struct Reader {
    pub(crate) consumer: Consumer,
    pub(crate) seen: BTreeMap<TopicPartition, Vec<Seen>>,
    /// Where each partition goes on when it is assigned; 0 if it is not named.
    pub(crate) positions: BTreeMap<TopicPartition, i64>,
    pub(crate) owned: BTreeSet<TopicPartition>,
    pub(crate) epochs: BTreeSet<i32>,
    pub(crate) ends: BTreeMap<TopicPartition, i64>,
    pub(crate) events: Vec<Event>,
}

impl Reader {
    pub(crate) fn new(config: &Kafka) -> Self {
        Self {
            consumer: Consumer::new(config).expect("a consumer"),
            seen: BTreeMap::new(),
            positions: BTreeMap::new(),
            owned: BTreeSet::new(),
            epochs: BTreeSet::new(),
            ends: BTreeMap::new(),
            events: Vec::new(),
        }
    }

    pub(crate) fn poll(&mut self) {
        let mut events = Vec::new();
        let (seen, positions, epochs) = (&mut self.seen, &mut self.positions, &mut self.epochs);
        let note = |message: Message<'_>| {
            let at = TopicPartition::new(Arc::clone(message.topic), message.partition);
            positions.insert(at.clone(), message.offset + 1);
            epochs.insert(message.leader_epoch);
            let own = |bytes: Option<&[u8]>| bytes.map(<[u8]>::to_vec);
            seen.entry(at).or_default().push(Seen {
                offset: message.offset,
                timestamp: message.timestamp,
                timestamp_type: message.timestamp_type,
                key: own(message.key),
                value: own(message.value),
                headers: message.headers().map(|header| (header.name.to_vec(), own(header.value))).collect(),
            });
        };
        self.consumer.poll(100, Duration::from_millis(20), note, &mut events).expect("a poll");
        for event in events {
            match &event {
                Event::Assigned(partitions) => {
                    self.owned.extend(partitions.iter().cloned());
                    let from = |at: &TopicPartition| (at.clone(), self.positions.get(at).copied().unwrap_or(0));
                    let from: Vec<_> = partitions.iter().map(from).collect();
                    self.consumer.assign(&from).expect("an assignment");
                }
                Event::Revoked { partitions, .. } => {
                    partitions.iter().for_each(|at| assert!(self.owned.remove(at)));
                    self.consumer.unassign(partitions).expect("a revocation");
                }
                Event::EndOfPartition { at, next_offset } => {
                    let position = self.positions.entry(at.clone()).or_default();
                    *position = (*position).max(*next_offset);
                    self.ends.insert(at.clone(), *next_offset);
                }
                _ => {}
            }
            self.events.push(event);
        }
    }

    /// Polls until `done`; panics with what was seen if that does not come.
    pub(crate) fn until(&mut self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let start = Instant::now();
        while !done(self) {
            assert!(
                start.elapsed() < Duration::from_secs(30),
                "no {what}; ends {:?}, events {:?}",
                self.ends,
                self.events
            );
            self.poll();
        }
    }

    pub(crate) fn offsets(&self, at: &TopicPartition) -> Vec<i64> {
        self.seen.get(at).map_or_else(Vec::new, |seen| seen.iter().map(|one| one.offset).collect())
    }

    pub(crate) fn rest(&mut self, time: Duration) {
        let start = Instant::now();
        while start.elapsed() < time {
            self.poll();
        }
    }
}

pub(crate) fn at(topic: &str, partition: i32) -> TopicPartition {
    TopicPartition::new(topic, partition)
}
