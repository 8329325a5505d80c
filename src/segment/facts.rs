//! What a segment says about itself: the checkpoint's facts, repeated in the file's own metadata.
//!
//! | key | value |
//! |---|---|
//! | `tidelog.format` | the version of the format, [`FORMAT_VERSION`] |
//! | `tidelog.stream` | the stream, `kafka/<cluster>/<topic>.<generation>` |
//! | `tidelog.cluster`, `tidelog.topic`, `tidelog.generation` | its parts, for other tools |
//! | `tidelog.topic_id` | the topic's id on the cluster; absent where the broker has none |
//! | `tidelog.writer` | the id of the process that wrote the segment |
//! | `tidelog.created` | when it began to, RFC 3339 |
//! | `tidelog.raw_bytes` | bytes of all keys, values and headers before encoding |
//! | `tidelog.largest_record` | bytes (key, value, headers) of the largest record |
//! | `tidelog.ranges` | a JSON list of what [`PartitionRange`] says, one for each partition |
//! | `tidelog.row_groups` or `tidelog.index` | where the records lie, see the format |
//! | `tidelog.check` | XXH64 (seed 0, 16 hex digits) of all of these |
//!
//! In Parquet they are key-value metadata of the footer, in Avro metadata of the header. What is hashed for
//! `tidelog.check` is every other key that begins with `tidelog.`, in byte order: the key, a zero byte, its value, a
//! zero byte.

use std::hash::Hasher;

use chrono::{DateTime, SecondsFormat, Utc};
use twox_hash::XxHash64;

use super::info::SegmentInfo;
use crate::error::{Error, Kind, Result, ResultExt};
use crate::stream::{FORMAT_VERSION, PartitionRange, TopicGeneration, total};

const FORMAT: &str = "tidelog.format";
const STREAM: &str = "tidelog.stream";
const CLUSTER: &str = "tidelog.cluster";
const TOPIC: &str = "tidelog.topic";
const GENERATION: &str = "tidelog.generation";
const TOPIC_ID: &str = "tidelog.topic_id";
const WRITER: &str = "tidelog.writer";
const CREATED: &str = "tidelog.created";
const RAW_BYTES: &str = "tidelog.raw_bytes";
const LARGEST_RECORD: &str = "tidelog.largest_record";
const RANGES: &str = "tidelog.ranges";
const CHECK: &str = "tidelog.check";
const PREFIX: &str = "tidelog.";

/// What a segment file says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentFacts {
    /// The version of the format.
    pub format_version: u32,
    /// The stream.
    pub stream: TopicGeneration,
    /// The topic's id on the cluster, if the broker has one.
    pub topic_id: Option<String>,
    /// The id of the process that wrote the segment.
    pub writer: String,
    /// When it began to.
    pub created: DateTime<Utc>,
    /// Bytes of all keys, values and headers before encoding.
    pub raw_bytes: u64,
    /// Bytes (key, value, headers) of the largest record.
    pub largest_record: u64,
    /// The ranges that the segment covers, by partition.
    pub partitions: Vec<PartitionRange>,
}

impl SegmentFacts {
    /// Returns how many records the segment holds.
    pub fn records(&self) -> u64 {
        total(self.partitions.iter().map(|range| range.records))
    }

    pub(super) fn new(
        info: &SegmentInfo,
        raw_bytes: u64,
        largest_record: u64,
        partitions: Vec<PartitionRange>,
    ) -> Self {
        Self {
            format_version: FORMAT_VERSION,
            stream: info.stream.clone(),
            topic_id: info.topic_id.clone(),
            writer: info.writer.clone(),
            created: info.created,
            raw_bytes,
            largest_record,
            partitions,
        }
    }

    /// The facts as keys and values, with the format's `own`, and the hash of them all.
    pub(super) fn to_pairs(
        &self,
        own: impl IntoIterator<Item = (&'static str, String)>,
    ) -> Result<Vec<(&'static str, String)>> {
        let ranges = serde_json::to_string(&self.partitions)
            .or_err(Kind::Internal, || "cannot write the ranges of a segment as JSON".into())?;
        let mut pairs = vec![
            (FORMAT, self.format_version.to_string()),
            (STREAM, self.stream.to_string()),
            (CLUSTER, self.stream.cluster.clone()),
            (TOPIC, self.stream.topic.clone()),
            (GENERATION, self.stream.number.to_string()),
            (WRITER, self.writer.clone()),
            (CREATED, self.created.to_rfc3339_opts(SecondsFormat::Millis, true)),
            (RAW_BYTES, self.raw_bytes.to_string()),
            (LARGEST_RECORD, self.largest_record.to_string()),
            (RANGES, ranges),
        ];
        pairs.extend(own);
        pairs.extend(self.topic_id.clone().map(|id| (TOPIC_ID, id)));
        let check = check(pairs.iter().map(|(key, value)| (*key, value.as_str())));
        pairs.push((CHECK, check));
        Ok(pairs)
    }

    /// Reads the facts from the metadata of a file.
    pub(super) fn from_pairs(pairs: &[(&str, &str)]) -> Result<Self> {
        let value = |key: &str| value(pairs, key);
        let needed = |key: &str| value(key).ok_or_else(|| Error::new(Kind::Corrupt, format!("it has no {key}")));
        let number = |key: &str| -> Result<u64> {
            let text = needed(key)?;
            text.parse().or_err(Kind::Corrupt, || format!("its {key} {text:?} is not a number"))
        };
        let format_version = u32::try_from(number(FORMAT)?).unwrap_or(u32::MAX);
        if format_version > FORMAT_VERSION {
            let message = format!("it has format version {format_version}, this tidelog reads up to {FORMAT_VERSION}");
            return Err(Error::new(Kind::Unsupported, message).hint("read it with the newer tidelog that wrote it"));
        }
        if needed(CHECK)? != check(pairs.iter().copied()) {
            return Err(Error::new(Kind::Corrupt, format!("its metadata are not what its {CHECK} says")));
        }
        let stream = needed(STREAM)?;
        let created = needed(CREATED)?;
        let partitions: Vec<PartitionRange> = serde_json::from_str(needed(RANGES)?)
            .or_err(Kind::Corrupt, || format!("its {RANGES} is not a list of ranges"))?;
        check_ranges(&partitions)?;
        Ok(Self {
            format_version,
            stream: stream.parse().map_err(|error: Error| Error::new(Kind::Corrupt, error.to_string()))?,
            topic_id: value(TOPIC_ID).map(str::to_owned),
            writer: needed(WRITER)?.to_owned(),
            created: created.parse().or_err(Kind::Corrupt, || format!("its {CREATED} {created:?} is not a time"))?,
            raw_bytes: number(RAW_BYTES)?,
            largest_record: number(LARGEST_RECORD)?,
            partitions,
        })
    }
}

/// The value of a key.
pub(super) fn value<'a>(pairs: &[(&str, &'a str)], key: &str) -> Option<&'a str> {
    pairs.iter().find(|(name, _)| *name == key).map(|(_, value)| *value)
}

/// Returns what `tidelog.check` says of metadata.
fn check<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut pairs: Vec<_> = pairs.filter(|(key, _)| key.starts_with(PREFIX) && *key != CHECK).collect();
    pairs.sort_unstable();
    let mut hash = XxHash64::with_seed(0);
    for (key, value) in pairs {
        for text in [key, value] {
            hash.write(text.as_bytes());
            hash.write(&[0]);
        }
    }
    format!("{:016x}", hash.finish())
}

/// The ranges stand in the order of their partitions, each once, and hold no more records than offsets.
fn check_ranges(ranges: &[PartitionRange]) -> Result<()> {
    for range in ranges {
        let offsets = range.end.checked_sub(range.start).and_then(|offsets| u64::try_from(offsets).ok());
        if offsets.is_none_or(|offsets| offsets < range.records) {
            let message = format!(
                "its {RANGES} gives partition {} {} records in offsets {}..{}",
                range.partition, range.records, range.start, range.end
            );
            return Err(Error::new(Kind::Corrupt, message));
        }
    }
    if ranges.is_sorted_by(|a, b| a.partition < b.partition) {
        return Ok(());
    }
    Err(Error::new(Kind::Corrupt, format!("its {RANGES} does not name its partitions in order, each once")))
}
