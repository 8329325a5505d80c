//! What one object of a chain says, as it stands in the archive (JSON, described in `docs/FORMAT.md`).

use std::ops::Range;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::abandon::{Abandon, is_first, is_nothing};
use super::entered::{BackupRef, Entered};
use super::gap_reason::GapReason;
use super::minimal::MinimalWal;
use super::state::StateKind;

/// The version of every format that this program writes where nothing newer is said. A reader refuses a higher one.
pub const FORMAT_VERSION: u32 = 1;

/// The newest version of the entries of a chain: 2 knows of timelines that were abandoned, and of base
/// backups, 3 of WAL over which Postgres recovers nothing, 4 of merges of records, 5 of packs.
pub const CHAIN_FORMAT: u32 = 5;

/// One object of a chain: an entry with its number, its link to the entry before and its writer. It is read by
/// [`Checkpoint::parse`] alone: what serde makes of `flatten` and `tag` holds everything in memory beforehand, 32 bytes for each
/// digit that somebody wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Checkpoint {
    /// The version of the format, [`Body::format`].
    pub format: u32,
    /// The stream that the chain belongs to, as [`crate::stream::StreamId`] is written.
    pub stream: String,
    /// The entry's number, from 0, without a hole.
    pub number: u64,
    /// The sha256 (hex) of the bytes of entry `number - 1`; none for entry 0.
    pub previous: Option<String>,
    /// The id of the process that wrote the entry.
    pub writer: String,
    /// When it was written, by the writer's clock.
    pub at: DateTime<Utc>,
    /// What it says.
    #[serde(flatten)]
    pub body: Body,
}

/// What an entry of a chain says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Body {
    /// Entry 0: a generation of a topic or a Postgres system begins.
    Begin(Begin),
    /// Segments are added, and the positions of their partitions move.
    Append(Change),
    /// Offsets are lost for good, and the positions of their partitions move over them.
    Gap {
        /// The lost ranges.
        gaps: Vec<Gap>,
    },
    /// One segment takes the place of several; no position moves.
    Merge(Merge),
    /// What lies before some positions is expired; the beginnings of their partitions move.
    Expire(Expire),
    /// A timeline was archived by mistake: what is archived of it leads nowhere any more.
    Abandon(Abandon),
    /// Base backups count from now on, or no longer.
    Backups(Entered),
    /// The topic goes on in another generation; no position of this one moves forward any more.
    Close(Close),
    /// Everything before, summed up, so that a reader need not go further back.
    Snapshot(Snapshot),
}

/// One segment in the place of several that lie next to each other and hold the same: bytes of WAL, or records of a topic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Merge {
    /// The segment that holds them all.
    pub segment: SegmentRef,
    /// The objects that are no longer needed, in the order of their ranges.
    pub replaces: Vec<String>,
    /// What those add up to.
    pub retired: Retired,
    /// When it was decided. Replays that began before may still read the objects.
    pub decided: DateTime<Utc>,
}

impl Merge {
    /// The keys of all objects that it names.
    pub fn objects(&self) -> impl Iterator<Item = &str> {
        self.replaces.iter().chain([&self.segment.object]).map(String::as_str)
    }

    /// Whether it is of records.
    pub fn is_of_records(&self) -> bool {
        matches!(self.segment.format, Format::Parquet | Format::Avro)
    }
}

/// The end of a retention time: what lies wholly before a position is no longer a part of the archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expire {
    /// The partitions that lose their beginnings, each once.
    pub ranges: Vec<Expired>,
    /// What the segments that lie wholly before add up to.
    pub retired: Retired,
    /// When it was decided.
    pub decided: DateTime<Utc>,
}

/// The end of a generation whose topic goes on under the same id: its log was cut by an unclean election. It is the fence
/// between two generations: each partition goes on in the next one where this chain ends, so nobody may append to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Close {
    /// The partitions whose log is known to be another one from an offset on, each once. The others go on where they are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cuts: Vec<Cut>,
    /// When it was decided.
    pub decided: DateTime<Utc>,
}

/// Where the log of a partition left what is archived of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cut {
    /// The partition.
    pub partition: i32,
    /// What is archived below is in its log, as far as is known; from here on the next generation has it.
    pub offset: i64,
}

/// How far the beginning of a partition moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expired {
    /// The partition.
    pub partition: i32,
    /// Where its archive began so far.
    pub from: i64,
    /// Where it begins from now on.
    pub before: i64,
    /// Which generation of the timeline is meant.
    #[serde(default, rename = "life", skip_serializing_if = "is_first")]
    pub generation: u32,
}

/// What objects add up to that are no longer needed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retired {
    /// Segments.
    pub segments: u64,
    /// Records.
    pub records: u64,
    /// Bytes before encoding.
    pub raw_bytes: u64,
    /// Bytes of the objects.
    pub stored_bytes: u64,
}

impl Retired {
    /// What these segments add up to.
    pub fn of<'a>(segments: impl IntoIterator<Item = &'a SegmentRef>) -> Self {
        let mut retired = Self::default();
        for segment in segments {
            retired.add(&Self {
                segments: 1,
                records: segment.records(),
                raw_bytes: segment.raw_bytes,
                stored_bytes: segment.bytes,
            });
        }
        retired
    }

    /// Adds `other`, up to the greatest number.
    pub fn add(&mut self, other: &Self) {
        self.segments = self.segments.saturating_add(other.segments);
        self.records = self.records.saturating_add(other.records);
        self.raw_bytes = self.raw_bytes.saturating_add(other.raw_bytes);
        self.stored_bytes = self.stored_bytes.saturating_add(other.stored_bytes);
    }

    /// Whether nothing was retired.
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// What one checkpoint adds to a chain, all of it or nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Segments whose objects are durable, in the order in which their ranges follow each other.
    pub segments: Vec<SegmentRef>,
    /// Ranges that were read and hold no record at all (control records, aborted transactions, compacted records).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub empty: Vec<PartitionRange>,
    /// Ranges that are lost for good. A change of nothing but gaps becomes a `gap` entry.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gaps: Vec<Gap>,
}

impl Change {
    /// Whether it adds nothing.
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty() && self.empty.is_empty() && self.gaps.is_empty()
    }

    /// The entry that makes the change.
    pub fn into_body(self) -> Body {
        if self.segments.is_empty() && self.empty.is_empty() {
            Body::Gap { gaps: self.gaps }
        } else {
            Body::Append(self)
        }
    }
}

impl Body {
    /// The entry's kind as it stands in JSON.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Begin(_) => "begin",
            Self::Append(_) => "append",
            Self::Gap { .. } => "gap",
            Self::Merge(_) => "merge",
            Self::Expire(_) => "expire",
            Self::Abandon(_) => "abandon",
            Self::Backups(_) => "backups",
            Self::Close(_) => "close",
            Self::Snapshot(_) => "snapshot",
        }
    }

    /// The facts of the chain's beginning, where the entry says them.
    pub fn begin(&self) -> Option<&Begin> {
        match self {
            Self::Begin(begin) => Some(begin),
            Self::Snapshot(snapshot) => Some(&snapshot.begin),
            _ => None,
        }
    }

    /// The segment that the entry puts in the place of others.
    pub fn merge(&self) -> Option<&Merge> {
        match self {
            Self::Merge(merge) => Some(merge),
            _ => None,
        }
    }

    /// That the entry ends the generation.
    pub fn close(&self) -> Option<&Close> {
        match self {
            Self::Close(close) => Some(close),
            _ => None,
        }
    }

    /// What the entry expires.
    pub fn expire(&self) -> Option<&Expire> {
        match self {
            Self::Expire(expire) => Some(expire),
            _ => None,
        }
    }

    /// The segments by which the entry moves positions.
    pub fn segments(&self) -> &[SegmentRef] {
        match self {
            Self::Append(change) => &change.segments,
            _ => &[],
        }
    }

    /// The ranges without a record that the entry adds.
    pub fn empty(&self) -> &[PartitionRange] {
        match self {
            Self::Append(change) => &change.empty,
            _ => &[],
        }
    }

    /// The gaps that the entry adds.
    pub fn gaps(&self) -> &[Gap] {
        match self {
            Self::Append(change) => &change.gaps,
            Self::Gap { gaps } => gaps,
            _ => &[],
        }
    }

    /// Every range by which the entry moves a partition, ordered by partition and start.
    pub fn ranges(&self) -> Vec<PartitionRange> {
        let mut ranges: Vec<_> = self.segments().iter().flat_map(|segment| &segment.partitions).copied().collect();
        ranges.extend_from_slice(self.empty());
        ranges.extend(self.gaps().iter().map(Gap::range));
        ranges.sort_unstable_by_key(|range| (range.partition, range.start));
        ranges
    }
}

/// Entry 0 of a chain: the facts that stay the same as long as its stream exists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, from = "parse::AnyBegin")]
pub enum Begin {
    /// A Postgres system begins.
    Postgres(System),
    /// The versions of a state document begin.
    State {
        /// What the document says.
        state: StateKind,
        /// The id of the cluster that it is of, as its brokers tell it; none where they tell none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cluster_id: Option<String>,
    },
    /// A generation of a topic begins.
    Topic {
        /// The topic's id on the cluster, as Kafka's tools print it; none where the broker has none.
        topic_id: Option<String>,
        /// The id of the cluster, as its brokers tell it; none where they tell none, and in archives of before this was kept.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cluster_id: Option<String>,
        /// How many partitions the topic had when its archive began. Those that it got later are archived from their
        /// first record on, wherever the first ones began.
        #[serde(default)]
        partitions: i32,
        /// The offset from which each of them is archived; none where no broker had the partition. Empty in archives of
        /// before this was kept.
        #[serde(default, rename = "starts", skip_serializing_if = "Vec::is_empty")]
        start_offsets: Vec<Option<i64>>,
    },
}

impl Begin {
    /// The beginning of a generation of a topic, and where each of its partitions begins.
    pub fn topic(topic_id: Option<String>, start_offsets: Vec<Option<i64>>) -> Self {
        let partitions = i32::try_from(start_offsets.len()).unwrap_or(i32::MAX);
        Self::Topic { topic_id, cluster_id: None, partitions, start_offsets }
    }

    /// The same topic on the cluster with this id.
    #[must_use]
    pub fn on_cluster(self, id: Option<String>) -> Self {
        match self {
            Self::Topic { topic_id, partitions, start_offsets, .. } => {
                Self::Topic { topic_id, cluster_id: id, partitions, start_offsets }
            }
            Self::State { state, .. } => Self::State { state, cluster_id: id },
            Self::Postgres(_) => self,
        }
    }

    /// The topic's id, of a topic that has one.
    pub fn topic_id(&self) -> Option<&str> {
        match self {
            Self::Topic { topic_id, .. } => topic_id.as_deref(),
            Self::Postgres(_) | Self::State { .. } => None,
        }
    }

    /// The id of the cluster that it is of, where it is known.
    pub fn cluster_id(&self) -> Option<&str> {
        match self {
            Self::Topic { cluster_id, .. } | Self::State { cluster_id, .. } => cluster_id.as_deref(),
            Self::Postgres(_) => None,
        }
    }

    /// The partitions that the topic had at its beginning, as far as it says where they begin; none of what is no topic.
    pub fn partitions(&self) -> Range<i32> {
        match self {
            Self::Topic { partitions, start_offsets, .. } if !start_offsets.is_empty() => 0..*partitions,
            Self::Topic { .. } | Self::Postgres(_) | Self::State { .. } => 0..0,
        }
    }

    /// How many partitions the topic had as its archive began; 0 of what is no topic.
    pub fn partition_count(&self) -> i32 {
        match self {
            Self::Topic { partitions, .. } => *partitions,
            Self::Postgres(_) | Self::State { .. } => 0,
        }
    }

    /// The offset from which a partition of the topic is archived, as far as that is known: of one that the topic got later
    /// all is.
    pub fn start_of(&self, partition: i32) -> Option<i64> {
        match self {
            Self::Topic { partitions, start_offsets, .. } => {
                let later = *partitions > 0 && partition >= *partitions;
                let known = usize::try_from(partition).ok().and_then(|index| start_offsets.get(index).copied());
                known.unwrap_or(later.then_some(0))
            }
            Self::State { .. } => Some(0),
            Self::Postgres(_) => None,
        }
    }

    /// The facts of a Postgres system.
    pub fn system(&self) -> Option<&System> {
        match self {
            Self::Postgres(system) => Some(system),
            Self::Topic { .. } | Self::State { .. } => None,
        }
    }
}

/// What never changes in a Postgres system: `initdb` chose it, and `pg_upgrade` makes a new system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct System {
    /// `pg_control`'s system identifier. In JSON a text, for it needs more digits than a JSON number safely has.
    #[serde(with = "decimal")]
    pub system_id: u64,
    /// The size of a WAL file in bytes, 16 MiB unless `initdb --wal-segsize` said otherwise.
    pub wal_segment_size: u32,
    /// The server's major version.
    pub server_version: u32,
}

mod parse;

/// A `u64` as a text of decimal digits.
pub(crate) mod decimal {
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(crate) fn serialize<S: Serializer>(number: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(number)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|_| de::Error::custom(format_args!("{text:?} is not a system identifier")))
    }
}

/// An encoding of segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Apache Parquet.
    Parquet,
    /// An Avro object container file.
    Avro,
    /// The raw bytes of a write-ahead log, compressed with zstd.
    Wal,
    /// A state document: JSON, compressed with zstd.
    State,
}

impl Format {
    /// The format's name; objects of records have it as their extension.
    pub fn name(self) -> &'static str {
        match self {
            Self::Parquet => "parquet",
            Self::Avro => "avro",
            Self::Wal => "wal",
            Self::State => "state",
        }
    }
}

/// One segment object and what it covers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentRef {
    /// The object's key below the archive's root.
    pub object: String,
    /// Its encoding.
    pub format: Format,
    /// Its size in bytes.
    pub bytes: u64,
    /// The sha256 of its bytes, hex.
    pub sha256: String,
    /// The bytes of the keys, values and headers within, before encoding.
    pub raw_bytes: u64,
    /// The bytes (key, value, headers) of the largest record within.
    pub largest_record: u64,
    /// The ranges that it covers, by partition, each partition once.
    pub partitions: Vec<PartitionRange>,
    /// The last record of each partition whose leader's epoch is known (KIP-320).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub last: Vec<LastRecord>,
    /// Which generation of its timeline it belongs to, of WAL.
    #[serde(default, rename = "life", skip_serializing_if = "is_first")]
    pub generation: u32,
    /// Where the server went on in it with `wal_level = minimal`, of WAL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimal: Option<MinimalWal>,
}

/// The last record of a partition and the epoch of the leader that appended it. No two logs have different records of the same
/// epoch at one offset, so it tells whether a log still is the one that was archived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastRecord {
    /// The partition.
    pub partition: i32,
    /// The record's offset.
    pub offset: i64,
    /// Its leader's epoch.
    pub leader_epoch: i32,
}

impl SegmentRef {
    /// How many records it holds.
    pub fn records(&self) -> u64 {
        self.partitions.iter().fold(0, |sum, range| sum.saturating_add(range.records))
    }

    /// The least record timestamp, if it holds a record.
    pub fn min_timestamp(&self) -> Option<i64> {
        self.partitions.iter().filter_map(|range| range.min_timestamp).min()
    }

    /// The greatest record timestamp, if it holds a record.
    pub fn max_timestamp(&self) -> Option<i64> {
        self.partitions.iter().filter_map(|range| range.max_timestamp).max()
    }
}

/// The range `[start, end)` of a partition's offsets, and the records that lie in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionRange {
    /// The partition.
    pub partition: i32,
    /// The first offset.
    pub start: i64,
    /// The offset after the last.
    pub end: i64,
    /// How many records lie in the range; fewer than offsets where control, aborted or compacted records were.
    pub records: u64,
    /// The least record timestamp in ms since 1970, if there is a record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_timestamp: Option<i64>,
    /// The greatest record timestamp in ms since 1970, if there is a record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_timestamp: Option<i64>,
}

/// A range of offsets that is lost for good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// The partition.
    pub partition: i32,
    /// The first lost offset.
    pub start: i64,
    /// The offset after the last lost one.
    pub end: i64,
    /// Why.
    pub reason: GapReason,
    /// When it was found.
    pub found: DateTime<Utc>,
    /// Which generation of its timeline it belongs to, of WAL.
    #[serde(default, rename = "life", skip_serializing_if = "is_first")]
    pub generation: u32,
}

/// What a list of entries adds up to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Segments.
    pub segments: u64,
    /// Records.
    pub records: u64,
    /// Bytes of keys, values and headers.
    pub raw_bytes: u64,
    /// Bytes of the segment objects.
    pub stored_bytes: u64,
    /// Gaps.
    pub gaps: u64,
    /// The least record timestamp.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_timestamp: Option<i64>,
    /// The greatest record timestamp.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_timestamp: Option<i64>,
    /// What of the segments is no longer needed: replaced by merges, or expired.
    #[serde(default, skip_serializing_if = "Retired::is_nothing")]
    pub retired: Retired,
}

/// The sum of all entries before this one. Its cost does not grow with the archive's age: `pages` is a counter of
/// base 64, in which 64 pages of one level are replaced by one page of the next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The chain's first entry, repeated.
    pub begin: Begin,
    /// How far each partition is archived, by partition: everything from the first offset archived to the next to read.
    pub positions: Vec<PartitionRange>,
    /// What all entries before add up to.
    pub totals: Totals,
    /// The pages that list the segments and gaps before, oldest first.
    pub pages: Vec<PageRef>,
    /// That the generation has ended, if it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closed: Option<Close>,
    /// The last archived record of each partition of which the leader's epoch is known and nothing was lost behind it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub last: Vec<LastRecord>,
    /// The timelines that were abandoned, in the order of their entries.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub abandoned: Vec<Abandon>,
    /// The base backups that count; none before the first one was entered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backups: Option<Vec<BackupRef>>,
    /// Where the server went on with `wal_level = minimal` in what is archived, by timeline and position.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub minimal: Vec<MinimalWal>,
    /// The entries before this one may be in packs, and have no objects of their own; 0 where none is.
    #[serde(default, skip_serializing_if = "is_nothing")]
    pub packed: u64,
}

/// A page of a snapshot: an immutable object that lists entries (level 0) or pages of the level below.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageRef {
    /// The sha256 of the object's bytes, hex; the object is named by it.
    pub sha256: String,
    /// 0 for a page that lists segments and gaps, `n` for one that lists pages of level `n - 1`.
    pub level: u8,
    /// The first entry of the chain that it covers.
    pub first: u64,
    /// The last entry of the chain that it covers.
    pub last: u64,
    /// What it adds up to, to pass over it without opening it.
    pub totals: Totals,
    /// For WAL: the least and the greatest position of each timeline that it says anything of, for the same purpose.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub spans: Vec<Span>,
    /// For records: what is merged by entries of it; none if nothing is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merged: Option<PageMerges>,
}

/// What the merges of records in a page add up to. They may stand far behind what they replace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageMerges {
    /// The segments that they replace.
    pub retired: Retired,
    /// From the least to the greatest offset of each partition that they cover.
    pub spans: Vec<Span>,
}

/// From the least to the greatest position of a partition that something tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// The partition.
    pub partition: i32,
    /// The least position.
    pub start: i64,
    /// The position after the greatest.
    pub end: i64,
}

/// The sha256 of `bytes` as every object of the archive writes it: 64 lower-case hexadecimal digits.
pub fn sha256(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}
