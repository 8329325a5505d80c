//! The pure algebra of progress: which stream, which partition, which range of offsets, and what a checkpoint says.
//!
//! Nothing in here does I/O. Positions are `i64`: offsets of a topic, LSNs of a write-ahead log. A range is half-open,
//! `[start, end)`, and counts positions, not records: control records, aborted transactions and compacted records lie
//! inside a range without a row, and of a log only commits and aborts are counted as records.

mod abandon;
mod checkpoint;
mod entered;
mod gap_reason;
pub mod invariants;
pub mod lean;
mod lsn;
mod minimal;
mod name;
mod progress;
mod state;

use std::fmt;
use std::str::FromStr;

pub use abandon::Abandon;
pub(crate) use checkpoint::decimal;
pub use checkpoint::{
    Begin, Body, CHAIN_FORMAT, Change, Checkpoint, Close, Cut, Expire, Expired, FORMAT_VERSION, Format, Gap,
    LastRecord, Merge, PageMerges, PageRef, PartitionRange, Retired, SegmentRef, Snapshot, Span, System, Totals,
    sha256,
};
pub use entered::{BackupRef, CountedBackup, CountedBackups, Entered, unneeded};
pub use gap_reason::GapReason;
pub use lsn::Lsn;
pub use minimal::MinimalWal;
pub use name::{is_name, is_topic_name};
pub use progress::Progress;
pub use state::{StateKind, StateOf};

/// Adds up what an archive says of itself. Whoever can write into it can say any number, so the sum ends at the greatest one.
pub fn total(numbers: impl IntoIterator<Item = u64>) -> u64 {
    numbers.into_iter().fold(0, u64::saturating_add)
}

use crate::error::{Error, Kind};

/// What a chain of checkpoints belongs to: one generation of one Kafka topic, the write-ahead log of one Postgres system, or the
/// versions of one document of the pipeline's state.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StreamId {
    /// Its partitions are the topic's, its positions offsets.
    Kafka(TopicGeneration),
    /// Its partitions are the timelines, its positions LSNs: bytes of WAL since the system began.
    Postgres {
        /// `pg_control`'s system identifier.
        system_id: u64,
    },
    /// Its one partition is 0, its positions are version numbers.
    State(StateOf),
}

/// One generation of one Kafka topic.
///
/// Written `kafka/<cluster>/<topic>.<generation>`; the generation stands after the last dot, for topic names may hold
/// dots themselves.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicGeneration {
    /// The name that the configuration gives the cluster (`kafka.cluster`).
    pub cluster: String,
    /// The topic's name.
    pub topic: String,
    /// Which generation of the topic, from 0.
    pub number: u32,
}

impl TopicGeneration {
    /// The generation of `topic` on `cluster` with this number.
    pub fn new(cluster: impl Into<String>, topic: impl Into<String>, number: u32) -> Self {
        Self { cluster: cluster.into(), topic: topic.into(), number }
    }

    /// The topic's next generation.
    #[must_use]
    pub fn next(&self) -> Self {
        Self { number: self.number.saturating_add(1), ..self.clone() }
    }

    /// The stream that archives it.
    pub fn stream(&self) -> StreamId {
        StreamId::Kafka(self.clone())
    }
}

impl StreamId {
    /// The generation of a topic that it archives, if it is one.
    pub fn topic(&self) -> Option<&TopicGeneration> {
        match self {
            Self::Kafka(generation) => Some(generation),
            Self::Postgres { .. } | Self::State(_) => None,
        }
    }

    /// The versions that it keeps, if it is of state.
    pub fn state(&self) -> Option<&StateOf> {
        match self {
            Self::State(of) => Some(of),
            Self::Kafka(_) | Self::Postgres { .. } => None,
        }
    }
}

impl fmt::Display for TopicGeneration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kafka/{}/{}.{}", self.cluster, self.topic, self.number)
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kafka(generation) => generation.fmt(f),
            Self::Postgres { system_id } => write!(f, "postgres/{system_id}"),
            Self::State(of) => of.fmt(f),
        }
    }
}

fn no_stream(text: &str) -> Error {
    Error::new(Kind::Config, format!("{text:?} is not the name of a stream")).hint(
        "a stream is written kafka/<cluster>/<topic>.<generation>, postgres/<system id> or state/<kind>/<cluster>; `tidelog ls` prints them",
    )
}

impl FromStr for TopicGeneration {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let parts = text.strip_prefix("kafka/").and_then(|rest| rest.split_once('/'));
        let parts = parts.and_then(|(cluster, name)| Some((cluster, name.rsplit_once('.')?)));
        let Some((cluster, (topic, number))) = parts else { return Err(no_stream(text)) };
        let generation = Self::new(cluster, topic, number.parse().map_err(|_| no_stream(text))?);
        // Nothing is a stream but what is written like one: not `+1`, not `007`. A generation behind it must be possible.
        let is_last = generation.number == u32::MAX;
        if is_name(cluster) && is_topic_name(topic) && !is_last && generation.to_string() == text {
            Ok(generation)
        } else {
            Err(no_stream(text))
        }
    }
}

impl FromStr for StreamId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if let Some(of) = text.strip_prefix("state/") {
            return StateOf::parse(of).map(Self::State).ok_or_else(|| no_stream(text));
        }
        let Some(system_id) = text.strip_prefix("postgres/") else { return text.parse().map(Self::Kafka) };
        let parsed = system_id.parse().ok().filter(|number: &u64| number.to_string() == system_id);
        parsed.map(|system_id| Self::Postgres { system_id }).ok_or_else(|| no_stream(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_read_as_they_are_written() {
        for text in [
            "kafka/main/cdc.users.3",
            "kafka/main/orders.4294967294",
            "kafka/a-b/orders.0",
            "postgres/7291123456789012345",
            "state/topics/main",
            "state/groups/a-b",
            "state/acls/main",
        ] {
            assert_eq!(text.parse::<StreamId>().expect(text).to_string(), text);
        }
        for wrong in [
            "",
            "kafka/main",
            "kafka/main/orders",
            "kafka//orders.0",
            "kafka/a/b/c.0",
            "postgres/",
            "postgres/07",
            "kafka/main/orders.+1",
            "kafka/main/orders.01",
            "kafka/main/orders.4294967295",
            "kafka/main/...0",
            "kafka/../orders.0",
            "state/topics",
            "state/topics/",
            "state/topics/a/b",
            "state/things/main",
            "state/topics/..",
            "state/topics/ma\nin",
            "kafka/main/or\u{1b}ders.0",
            "kafka/ma\nin/orders.0",
            "kafka/main/\u{202e}orders.0",
        ] {
            assert_eq!(wrong.parse::<StreamId>().expect_err(wrong).exit_code(), 2);
        }
    }
}
