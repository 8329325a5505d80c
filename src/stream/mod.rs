//! The pure algebra of progress: which stream, which partition, which range of offsets, and what a checkpoint says.
//!
//! Nothing in here does I/O. Positions are `i64` offsets; a range is half-open, `[start, end)`, and counts offsets, not
//! records: control records, aborted transactions and compacted records lie inside a range without a row.

mod checkpoint;
pub mod invariants;
mod lsn;
mod progress;

use std::fmt;
use std::str::FromStr;

pub use checkpoint::{
    Begin, Body, Change, Checkpoint, FORMAT_VERSION, Format, Gap, GapReason, PageRef, PartitionRange, SegmentRef,
    Snapshot, Totals, sha256,
};
pub use lsn::Lsn;
pub use progress::Progress;

use crate::error::{Error, Kind};

/// One life of one Kafka topic: what a chain of checkpoints belongs to.
///
/// Written `kafka/<cluster>/<topic>.<generation>`; the generation stands after the last dot, for topic names may hold
/// dots themselves.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId {
    /// The name that the configuration gives the cluster (`kafka.cluster`).
    pub cluster: String,
    /// The topic's name.
    pub topic: String,
    /// Which life of the topic, from 0.
    pub generation: u32,
}

impl StreamId {
    /// The stream of `topic`'s life number `generation` on `cluster`.
    pub fn new(cluster: impl Into<String>, topic: impl Into<String>, generation: u32) -> Self {
        Self { cluster: cluster.into(), topic: topic.into(), generation }
    }

    /// The stream's next life.
    #[must_use]
    pub fn next_generation(&self) -> Self {
        Self { generation: self.generation + 1, ..self.clone() }
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kafka/{}/{}.{}", self.cluster, self.topic, self.generation)
    }
}

impl FromStr for StreamId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = || {
            Error::new(Kind::Config, format!("{text:?} is not the name of a stream"))
                .hint("a stream is written kafka/<cluster>/<topic>.<generation>; `tidelog ls` prints them")
        };
        let (cluster, topic) = text.strip_prefix("kafka/").and_then(|rest| rest.split_once('/')).ok_or_else(wrong)?;
        let (topic, generation) = topic.rsplit_once('.').ok_or_else(wrong)?;
        if cluster.is_empty() || topic.is_empty() || topic.contains('/') {
            return Err(wrong());
        }
        Ok(Self::new(cluster, topic, generation.parse().map_err(|_| wrong())?))
    }
}
