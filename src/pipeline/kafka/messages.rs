//! What the collector and its tasks tell each other. All of it is plain data, so that neither side uses the other.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::divergence::Earlier;
use super::status::GapSpan;
use crate::error::{Error, Result};
use crate::manifest::Chain;
use crate::pipeline::skips::Skip;
use crate::record::Block;
use crate::segment::SegmentWriter;
use crate::source::kafka::{EpochAt, Resume, TopicPartition};
use crate::stream::{Cut, PartitionRange, SegmentRef, TopicGeneration, Totals};

/// Which segmenter, for as long as the process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct SegmenterId(pub(super) u32);

/// What the collector is told.
pub(super) enum TaskEvent {
    /// The answer to the question of that number: where to read partitions on, and those of which it is not known yet.
    Resolved { ticket: u64, resolved: Vec<Resolved>, unresolved: Vec<Unresolved> },
    /// A step has ended, and its blocks are free.
    Encoded { segmenter: SegmenterId, memory: usize, result: Result<Free> },
    /// The segmenter's segment number `seq` is in a checkpoint, or nothing was left of it.
    Committed { segmenter: SegmenterId, seq: u64, segment: Option<SegmentRef>, empty: Vec<PartitionRange> },
    /// Another process has moved these partitions: what the segmenter sealed of each, up to the segment of that number, was
    /// dropped, and the archive stands at that offset.
    Fenced { segmenter: SegmenterId, dropped: Vec<Dropped> },
    /// The broker did not have a partition's next offset; this is where it goes on.
    Found { segmenter: SegmenterId, partition: i32, from: Resume },
    /// The answer to a segmenter that began again.
    Positioned { segmenter: SegmenterId, seq: u64, positions: Vec<(i32, Resume)> },
    /// The segmenter's topic is another one now, or its log was cut: another generation has to begin.
    GenerationEnds { segmenter: SegmenterId, cut: Option<Cut> },
    /// Everything that the segmenter had is in its chain, and nothing comes after it.
    Ended { segmenter: SegmenterId },
    /// A topic has another id than its segmenter.
    Recreated { topic: Arc<str>, topic_id: String },
    /// A topic goes on in this generation, which another process has begun.
    Followed { topic: String, generation: u32 },
    /// What the segmenter's chain adds up to after a checkpoint.
    Archived { segmenter: SegmenterId, totals: Totals },
    /// Gaps of the segmenter's chain.
    Gaps { segmenter: SegmenterId, gaps: Vec<GapSpan> },
    /// How far what a request names cannot be read.
    Measured { segmenter: SegmenterId, skip: Arc<Skip>, lost: Result<Range<i64>> },
    /// A request to skip from `start` on is done, up to `end`; none: the partition was not there any more.
    Skipped { segmenter: SegmenterId, partition: i32, start: i64, end: Option<i64> },
    /// The brokers are not those of the cluster that may be archived: nothing is read from them.
    Refused(Error),
    /// Where partitions end, and how far they are complete.
    Seen(Seen),
    /// The last stable offsets of partitions that stand still.
    Stable(Vec<(TopicPartition, i64)>),
    /// Seal, commit, leave the group, end.
    Stop,
}

/// What was sealed of a partition and not committed, because another process owns it.
pub(super) struct Dropped {
    pub(super) partition: i32,
    /// The number of the last segment that lost it.
    pub(super) seq: u64,
    /// Where the archive stands.
    pub(super) from: Resume,
}

/// What a step gives back: the writer, unless the segment is whole, and the blocks, to be filled again.
pub(super) struct Free {
    pub(super) writer: Option<SegmentWriter>,
    pub(super) blocks: Vec<Block>,
}

/// What a segmenter asks of its committer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Question {
    /// The segmenter gave up everything up to number `seq`: where does the archive stand? The offsets are what holds for a
    /// partition that the chain does not know yet.
    Where { seq: u64, partitions: Vec<(i32, i64)> },
    /// The broker does not have the offset that was asked for.
    OutOfRange { partition: i32 },
    /// The log is another one, as the broker or its records show: from where, and whether it was said of the archived position
    /// itself.
    Truncated { partition: i32, diverged: Option<EpochAt>, fresh: bool },
    /// Somebody has ordered to skip `[start, end)`, which cannot be read and stands next.
    Skip { partition: i32, start: i64, end: i64 },
    /// The topic goes on in another generation: nothing more comes of this one. A log that was cut ends its chain, too.
    End { cut: Option<Cut> },
}

/// A topic's present generation, and where to read its partitions on.
pub(super) struct Resolved {
    pub(super) topic: Arc<str>,
    pub(super) generation: TopicGeneration,
    pub(super) chain: Chain,
    pub(super) earlier: Earlier,
    pub(super) offsets: Vec<(i32, Resume)>,
}

/// Partitions of one topic whose positions are not known now, to be asked for again after a while.
pub(super) struct Unresolved {
    pub(super) topic: Arc<str>,
    pub(super) partitions: Vec<TopicPartition>,
    pub(super) why: Error,
    pub(super) again: Duration,
}

/// What a round has found.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) partitions: Vec<SeenPartition>,
    /// Up to when topics are complete, as far as this process answers for them.
    pub(super) topics: Vec<(TopicGeneration, Option<DateTime<Utc>>)>,
}

/// What a round has found of a partition.
#[derive(Debug)]
pub(super) struct SeenPartition {
    pub(super) at: TopicPartition,
    /// Its end on the broker; none if the brokers do not tell now.
    pub(super) end: Option<i64>,
    /// Everything that was there at this time is archived.
    pub(super) complete_through: Option<DateTime<Utc>>,
    /// Why this round says nothing of it, if it does not.
    pub(super) untold: Option<Arc<str>>,
}
