//! What the collector shows of itself: published once a second and at every change of state, never changed afterwards.

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};

use crate::pipeline::desired::State;
use crate::stream::Totals;
use crate::tasks::Failure;

/// Kafka's archiver as it stood a moment ago.
#[derive(Debug, Clone, Default)]
pub struct Status {
    /// What it is doing.
    pub state: State,
    /// Since when it is in that state.
    pub since: Option<DateTime<Utc>>,
    /// Whether the group has it as a member.
    pub member: bool,
    /// Partitions that the group has assigned and whose position in the archive is being looked up.
    pub resolving: usize,
    /// Why the brokers cannot be asked, if they cannot.
    pub brokers: Option<Trouble>,
    /// Bytes of the memory budget that records hold.
    pub memory_used: u64,
    /// Whether fetching pauses because the budget is used up.
    pub memory_full: bool,
    /// When this process last wrote a checkpoint.
    pub last_checkpoint: Option<DateTime<Utc>>,
    /// The topics of which it owns partitions, in the order of their names.
    pub streams: Vec<StreamStatus>,
    /// The assigned partitions of which nothing is known to be complete, be they read or not.
    pub incomplete: Vec<Incomplete>,
}

/// An assigned partition of which nothing is known to be complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incomplete {
    /// The topic's label in metrics.
    pub label: Arc<str>,
    /// Its number.
    pub partition: i32,
    /// Since when it is assigned to this process.
    pub since: DateTime<Utc>,
}

/// Something that fails, and is tried again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// Since when.
    pub since: DateTime<Utc>,
    /// What fails and why.
    pub text: Arc<str>,
}

impl From<&Failure> for Trouble {
    fn from(failure: &Failure) -> Self {
        Self { since: failure.since, text: Arc::clone(&failure.text) }
    }
}

/// One generation of a topic.
#[derive(Debug, Clone)]
pub struct StreamStatus {
    /// Its stream, as [`crate::stream::StreamId`] is written.
    pub stream: Arc<str>,
    /// The topic.
    pub topic: Arc<str>,
    /// The topic's label in metrics.
    pub label: Arc<str>,
    /// Which generation of the topic.
    pub generation: u32,
    /// The partitions that this process owns, in order.
    pub partitions: Vec<PartitionStatus>,
    /// What the stream's chain adds up to, other processes' checkpoints included.
    pub totals: Totals,
    /// The newest gaps, oldest first.
    pub gaps: Arc<[GapSpan]>,
    /// Records a second that came from Kafka, over the last ten seconds or so.
    pub records_per_second: f64,
    /// Bytes of keys, values and headers a second.
    pub bytes_per_second: f64,
    /// Segments that are sealed and not in a checkpoint yet.
    pub waiting: u64,
    /// What fails on the way to the store, if something does.
    pub trouble: Option<Trouble>,
    /// Up to when the topic is complete, as far as this process answers for it: of the partitions that it owns, and those
    /// that the topic has and nobody is known to own.
    pub complete_through: Option<DateTime<Utc>>,
}

impl StreamStatus {
    /// The lag of all partitions; none if it is not known of one.
    pub fn lag_records(&self) -> Option<u64> {
        self.partitions.iter().map(PartitionStatus::lag_records).sum()
    }
}

/// One partition that this process owns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionStatus {
    /// Its number.
    pub partition: i32,
    /// Checkpoints cover everything below this offset.
    pub committed: i64,
    /// Everything below this offset is archived; offsets from `committed` on have no record.
    pub archived: i64,
    /// The offset that is read next.
    pub next: i64,
    /// The partition's end on the broker, as it was last told.
    pub end: Option<i64>,
    /// Everything that was there at this time is archived.
    pub complete_through: Option<DateTime<Utc>>,
    /// Its position is being asked for again, or the group wants it back: nothing is read.
    pub held: bool,
    /// Why it stands still although there are records to read, or is not known to be complete.
    pub stall: Option<Stall>,
}

/// A partition that stands still, or of which nothing is claimed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stall {
    /// What keeps it.
    pub cause: Cause,
    /// Since when it is behind and has not moved, or is archived and nothing more is claimed of it.
    pub since: DateTime<Utc>,
    /// What was said of it.
    pub text: Arc<str>,
    /// The way out.
    pub hint: Arc<str>,
}

/// A partition that has stood still for this long makes the process unready: a minute, less the time until its end is known.
const UNREADY_AFTER: TimeDelta = TimeDelta::seconds(30);

/// One of which nothing is claimed is a note first: it is shown after half of this.
const UNREADY_UNCLAIMED: TimeDelta = TimeDelta::seconds(60);

impl Stall {
    /// Returns whether the process does not do its work because of it.
    pub fn is_failure(&self, now: DateTime<Utc>) -> bool {
        match self.cause {
            Cause::OpenTransaction => false,
            Cause::Unclaimed => now - self.since >= UNREADY_UNCLAIMED,
            _ => now - self.since >= UNREADY_AFTER,
        }
    }
}

/// Why a partition stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// What comes next cannot be decoded: the broker's log is damaged there.
    Unreadable,
    /// What comes next is larger than the client takes.
    TooLarge,
    /// The brokers refuse it for want of a right.
    Denied,
    /// The brokers refuse it.
    Refused,
    /// Where it is to be read on is being looked up.
    Position,
    /// No broker says where it ends.
    NoEnd,
    /// The store does not take the finished segments.
    Store,
    /// The memory budget is used up.
    Memory,
    /// A transaction holds its end.
    OpenTransaction,
    /// It is archived as far as is known, and cannot be claimed to be complete.
    Unclaimed,
    /// Nobody says why.
    Unknown,
}

impl Cause {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Unreadable,
        Self::TooLarge,
        Self::Denied,
        Self::Refused,
        Self::Position,
        Self::NoEnd,
        Self::Store,
        Self::Memory,
        Self::OpenTransaction,
        Self::Unclaimed,
        Self::Unknown,
    ];

    /// The name, as metrics and status documents write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unreadable => "unreadable",
            Self::TooLarge => "too_large",
            Self::Denied => "denied",
            Self::Refused => "refused",
            Self::Position => "position",
            Self::NoEnd => "no_end",
            Self::Store => "store",
            Self::Memory => "memory",
            Self::OpenTransaction => "open_transaction",
            Self::Unclaimed => "unclaimed",
            Self::Unknown => "unknown",
        }
    }

    /// Returns what it is, in words.
    pub fn text(self) -> &'static str {
        match self {
            Self::Unreadable => "what comes next cannot be decoded",
            Self::TooLarge => "what comes next is larger than the client takes",
            Self::Denied => "the brokers refuse to give it",
            Self::Refused => "the brokers do not give it",
            Self::Position => "where it is read on is being looked up",
            Self::NoEnd => "no broker says where it ends",
            Self::Store => "finished segments wait for the store",
            Self::Memory => "memory.budget is used up",
            Self::OpenTransaction => "a transaction is open, and what follows it is not read before it ends",
            Self::Unclaimed => "no broker has spoken of it since its position was taken from the archive",
            Self::Unknown => "no record comes, and neither the broker nor the client says why",
        }
    }

    /// The way out.
    pub fn hint(self) -> &'static str {
        match self {
            Self::Unreadable => {
                "the broker's copy is damaged there: move the leader to a replica whose copy is whole, or skip it: POST \
                 /connectors/kafka/skip"
            }
            Self::TooLarge => "raise receive.message.max.bytes in [kafka.properties] above the largest batch",
            Self::Denied => "grant READ and DESCRIBE on the topic",
            Self::Refused | Self::NoEnd | Self::Unclaimed => "look at the partition's leader and at the broker's log",
            Self::Position => "the log says what is waited for",
            Self::Store => "look at the store, and at tidelog_store_errors_total",
            Self::Memory => "raise memory.budget, or add a process",
            Self::OpenTransaction => "end it: kafka-transactions.sh find-hanging, then abort; or wait for its producer",
            Self::Unknown => {
                "restart tidelog; if it stands again, read the partition with another consumer from this offset; what none \
                 can read is skipped by POST /connectors/kafka/skip"
            }
        }
    }
}

impl PartitionStatus {
    /// Offsets between what is archived and the end.
    pub fn lag_records(&self) -> Option<u64> {
        self.end.map(|end| u64::try_from(end - self.archived).unwrap_or(0))
    }
}

/// A range that is lost, and when the lost records were written, as far as the archive can tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GapSpan {
    /// The partition.
    pub partition: i32,
    /// The first lost offset.
    pub start: i64,
    /// The offset after the last lost one.
    pub end: i64,
    /// Why, as metrics write it.
    pub reason: &'static str,
    /// The greatest timestamp before the gap (ms since 1970); none if nothing is archived before it.
    pub from: Option<i64>,
    /// The least timestamp after the gap or, before anything came, the time at which it was found.
    pub to: i64,
    /// When it was found (ms since 1970).
    pub found: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partition(archived: i64, end: Option<i64>, complete_through: Option<i64>) -> PartitionStatus {
        let complete_through = complete_through.and_then(DateTime::from_timestamp_millis);
        PartitionStatus {
            partition: 0,
            committed: archived,
            archived,
            next: archived,
            end,
            complete_through,
            held: false,
            stall: None,
        }
    }

    fn stream(partitions: Vec<PartitionStatus>) -> StreamStatus {
        StreamStatus {
            stream: "kafka/main/a.0".into(),
            topic: "a".into(),
            label: "a".into(),
            generation: 0,
            partitions,
            totals: Totals::default(),
            gaps: Arc::new([]),
            records_per_second: 0.0,
            bytes_per_second: 0.0,
            waiting: 0,
            trouble: None,
            complete_through: None,
        }
    }

    #[test]
    fn a_stream_lags_by_the_sum_of_its_partitions() {
        let known = stream(vec![partition(5, Some(8), Some(2_000)), partition(9, Some(7), Some(1_000))]);
        assert_eq!(known.lag_records(), Some(3), "an end that was told before more was archived is no negative lag");
        let unknown = stream(vec![partition(5, Some(8), Some(2_000)), partition(0, None, None)]);
        assert_eq!(unknown.lag_records(), None);
    }
}
