//! Kafka in: records and what happens to their partitions, in one enum.
//!
//! ```text
//!              librdkafka's threads                        one thread of ours
//!  brokers ──► fetch ──► consumer queue (bounded) ──► Consumer::poll ──► records, borrowed, in order a partition
//!                              ▲                                   └───► Event: assigned, revoked, end of partition, …
//!              group coordinator: rebalance callbacks
//!
//!  brokers ◄── Cluster: topic ids, offsets by time, topics (a client of its own)
//! ```
//!
//! Two things decide all of it. Positions are the caller's: the committed offsets of the group and
//! `auto.offset.reset` are never read. And a record is given at most once for a position: [`Consumer`] knows the next
//! offset of every partition and drops what librdkafka delivers a second time or late.
//!
//! What no event tells: that a topic was deleted and created again. If its new log is long enough, librdkafka reads on
//! in it (rdkafka_topic.c, "an offset reset must be triggered"). A topic id that [`Cluster::describe`] gives *after*
//! records came, and that is still the one of before, proves that they are of that generation: ids never come back.

mod access;
pub mod acls;
mod assignment;
mod cluster;
mod consumer;
mod error;
mod probe;
mod properties;
mod range;
mod raw;
pub mod state;

use std::fmt;
use std::sync::Arc;

pub use access::{FOREIGN_HINT, Foreign, Limit, is_archived};
pub use cluster::{Cluster, OffsetAt, TopicInfo};
pub use consumer::{Consumer, Headers, Message, validate};
pub use probe::{Unreadable, unreadable};
pub use properties::subscription;
pub use range::{Came, RangeReader};

use crate::error::Error;

/// One partition of one topic.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicPartition {
    /// The topic's name.
    pub topic: Arc<str>,
    /// The partition's number.
    pub partition: i32,
}

impl TopicPartition {
    /// Partition `partition` of `topic`.
    pub fn new(topic: impl Into<Arc<str>>, partition: i32) -> Self {
        Self { topic: topic.into(), partition }
    }
}

/// Where a partition is to be read on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resume {
    /// The next offset.
    pub next: i64,
    /// The last record before it, if its leader's epoch is known: the broker is asked whether its log still is the one that
    /// had this record (KIP-320), and [`Event::Truncated`] tells if not.
    pub last: Option<EpochAt>,
}

impl From<i64> for Resume {
    fn from(next: i64) -> Self {
        Self { next, last: None }
    }
}

/// An offset, and the epoch of the leader that appended there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpochAt {
    /// The offset.
    pub offset: i64,
    /// The leader's epoch.
    pub leader_epoch: i32,
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} partition {}", self.topic, self.partition)
    }
}

/// What happens to partitions, beside their records.
///
/// The events of one [`Consumer::poll`] come after its records; rebalances come before ends of partitions. An event of
/// a partition may come after its `Revoked`: until `unassign` the partition is still read.
#[derive(Debug)]
pub enum Event {
    /// The group gave these partitions to this member. Nothing is read until [`Consumer::assign`] says from where;
    /// that may be done in several calls, as the positions become known.
    Assigned(Vec<TopicPartition>),
    /// The group takes these partitions away. The group and all other partitions wait until [`Consumer::unassign`]
    /// is called with them.
    Revoked {
        /// Which partitions.
        partitions: Vec<TopicPartition>,
        /// They may belong to another member already: their offsets cannot be committed any more.
        lost: bool,
    },
    /// Everything that may be read of the partition was given: up to its log's end, or to its last stable offset.
    EndOfPartition {
        /// Which partition.
        at: TopicPartition,
        /// The offset of the next record at the earliest; control records and aborted ones lie before it.
        next_offset: i64,
    },
    /// The broker does not have the next offset: its log begins after it, or ends before it. Nothing is read of the
    /// partition until [`Consumer::seek`]. [`Cluster::list_offsets`] tells which it is.
    OutOfRange {
        /// Which partition.
        at: TopicPartition,
        /// The offset that was asked for.
        offset: i64,
    },
    /// The broker lost records that were given (an unclean leader election, KIP-320): its log is another one from there
    /// on, even if it has grown beyond the next offset again. Nothing is read of the partition until
    /// [`Consumer::seek`].
    Truncated {
        /// Which partition.
        at: TopicPartition,
        /// What the broker said.
        error: Error,
        /// Where its log left what was read, as far as the broker tells: the end of the last epoch that is not newer than the
        /// one that was read, and that epoch.
        diverged: Option<EpochAt>,
        /// Whether it is about the position that the caller gave last, and not about what came since.
        fresh: bool,
    },
    /// A partition cannot be read now. librdkafka goes on trying.
    PartitionError {
        /// Which partition.
        at: TopicPartition,
        /// Why.
        error: Error,
    },
    /// A subscribed topic is not there or may not be read. librdkafka goes on looking for it.
    TopicError {
        /// Which topic, or which regex.
        topic: Arc<str>,
        /// Why.
        error: Error,
    },
    /// Something else went wrong; after a fatal fault the consumer must be built again.
    Fault {
        /// What.
        error: Error,
        /// Whether the client has stopped working for good.
        fatal: bool,
    },
    /// No broker can be reached. librdkafka goes on trying.
    AllBrokersDown,
}

#[cfg(test)]
pub(crate) mod tests;
