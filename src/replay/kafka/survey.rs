//! The records of a target topic, read before the first one is sent because the plan knows only bounds of them.
//!
//! # Sizes
//! Two sizes count. A client checks a record as it is (librdkafka: `rd_kafka_msg_new0` against `message.max.bytes`), a broker the
//! batch as it arrives, compressed (`max.message.bytes`, `segment.bytes`, `socket.request.max.bytes`; KAFKA-4169). A source that
//! took 5 MB of zeros compressed would refuse them as they are. So a record that is too large as it is gets compressed here, as
//! the replay will, and the broker's limits are for what comes out.

use std::collections::BTreeMap;
use std::io::{self, Write};

use crate::error::{Kind, Result, ResultExt as _};
use crate::record::Record;
use crate::replay::feed::Feed;
use crate::replay::plan::{Part, Plan};
use crate::store::Store;

/// What a batch adds to its one record: 61 bytes of batch header, and at most 36 of lengths, deltas and counts around
/// the record (org.apache.kafka.common.record.DefaultRecordBatch and DefaultRecord).
const BATCH_OVERHEAD: u64 = 61 + 36;
/// What a header adds to its name and value: two varints.
const HEADER_OVERHEAD: u64 = 10;
/// More headers than any record is thought to have, where only a bound is known.
const MANY_HEADERS: u64 = 100;
/// zstd's own level where nobody names one, which librdkafka takes, too (rdkafka_zstd.c).
const ZSTD_LEVEL: i32 = 0;
/// What librdkafka's stream may be larger than ours, in 1/64 of it and in bytes: the same library at the same level, fed in
/// other pieces.
const STREAM_MARGIN: (u64, u64) = (64, 512);

/// The largest batch that a topic takes as it is, and whether a larger one may come compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limit {
    /// The largest batch.
    pub(super) bytes: u64,
    /// Whether the broker takes a batch as the producer has compressed it, and the replay compresses.
    pub(super) compressed: bool,
}

/// What is known of the records that go to a target topic.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Survey {
    /// The batch of the largest record, as it is.
    pub(super) largest: u64,
    /// The largest batch that a broker sees of a record that comes alone.
    pub(super) largest_batch: u64,
    /// Where that record stands in the source.
    pub(super) largest_at: Option<(i32, i64)>,
    /// Whether a record has to be compressed with zstd for `largest_batch` to hold.
    pub(super) compressed: bool,
    pub(super) min_timestamp: Option<i64>,
    pub(super) max_timestamp: Option<i64>,
    /// The first record without a key.
    pub(super) null_key: Option<(i32, i64)>,
}

impl Survey {
    fn see(&mut self, partition: i32, record: &Record<'_>, limit: Limit) -> Result<()> {
        let size = record.size() + BATCH_OVERHEAD + HEADER_OVERHEAD * record.header_count() as u64;
        self.largest = self.largest.max(size);
        let mut batch = size;
        if size > limit.bytes && limit.compressed {
            let packed = compressed(record)?;
            // What compression does not make smaller is sent as it is (rdkafka_msgset_writer.c).
            batch = size.min(packed + packed / STREAM_MARGIN.0 + STREAM_MARGIN.1 + BATCH_OVERHEAD);
            self.compressed = true;
        }
        if batch > self.largest_batch {
            self.largest_batch = batch;
            self.largest_at = Some((partition, record.offset));
        }
        self.min_timestamp = Some(self.min_timestamp.map_or(record.timestamp, |min| min.min(record.timestamp)));
        self.max_timestamp = Some(self.max_timestamp.map_or(record.timestamp, |max| max.max(record.timestamp)));
        if record.key.is_none() {
            self.null_key.get_or_insert((partition, record.offset));
        }
        Ok(())
    }

    /// The bounds that the plan knows; whether a key is null it does not.
    pub(super) fn bound(parts: &[&Part]) -> Self {
        let partitions = || parts.iter().flat_map(|part| &part.partitions);
        let largest = largest(parts);
        Self {
            largest,
            largest_batch: largest,
            min_timestamp: partitions().map(|planned| planned.min_timestamp).min(),
            max_timestamp: partitions().map(|planned| planned.max_timestamp).max(),
            ..Self::default()
        }
    }
}

/// A bound of the largest batch that one record of `parts` needs, as it is.
pub(super) fn largest(parts: &[&Part]) -> u64 {
    let record = parts.iter().map(|part| part.largest_record()).max().unwrap_or(0);
    record + BATCH_OVERHEAD + HEADER_OVERHEAD * MANY_HEADERS
}

/// Reads the records of the plan that go to the topics of `limits`. A topic of which no record lies in the range has nothing to
/// mind, whatever the segments hold that were looked through.
pub(super) async fn survey(
    store: &Store,
    plan: &Plan,
    limits: &BTreeMap<String, Limit>,
) -> Result<BTreeMap<String, Survey>> {
    let parts: Vec<Part> = plan.parts.iter().filter(|part| limits.contains_key(&part.target)).cloned().collect();
    let plan = std::sync::Arc::new(Plan { parts, schema_ids: Default::default() });
    let mut surveys: BTreeMap<String, Survey> = limits.keys().map(|topic| (topic.clone(), Survey::default())).collect();
    let mut feed = Feed::new(store, &plan, false);
    while let Some(run) = feed.next().await? {
        let target = &plan.parts[run.part].target;
        let Some(limit) = limits.get(target) else { continue };
        let survey = surveys.entry(target.clone()).or_default();
        for record in run.block.iter() {
            survey.see(run.block.partition(), &record, *limit)?;
        }
    }
    Ok(surveys)
}

/// Counts what is written.
#[derive(Default)]
struct Count(u64);

impl Write for Count {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Returns how many bytes a record's are with zstd.
fn compressed(record: &Record<'_>) -> Result<u64> {
    let pack = || -> io::Result<u64> {
        let mut encoder = zstd::Encoder::new(Count::default(), ZSTD_LEVEL)?;
        for bytes in [record.key, record.value].into_iter().flatten() {
            encoder.write_all(bytes)?;
        }
        for header in record.headers() {
            encoder.write_all(header.name)?;
            encoder.write_all(header.value.unwrap_or_default())?;
        }
        encoder.finish().map(|count| count.0)
    };
    pack().or_err(Kind::Internal, || format!("the record at offset {} cannot be compressed", record.offset))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Block, TimestampType};

    fn seen(value: &[u8], limit: Limit) -> Survey {
        let mut block = Block::new(0, 1);
        block.push(7, 1_000, TimestampType::Create, 0, Some(b"k"), Some(value), std::iter::empty());
        let mut survey = Survey::default();
        survey.see(0, &block.get(0).expect("a record"), limit).expect("a size");
        survey
    }

    #[test]
    fn what_is_too_large_as_it_is_counts_as_it_will_arrive() {
        let (zeros, limit) = (vec![0; 5_000_000], |compressed| Limit { bytes: 1_048_588, compressed });
        let small = seen(&zeros, limit(true));
        assert!(small.largest > 5_000_000 && small.largest_batch < 20_000 && small.compressed, "{small:?}");
        let as_it_is = seen(&zeros, limit(false));
        assert!(as_it_is.largest_batch > 5_000_000 && !as_it_is.compressed);
        assert_eq!(as_it_is.largest_at, Some((0, 7)));
        // Noise stays what it is, and what fits is not looked at.
        let noise: Vec<u8> =
            (0..2_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13).to_le_bytes()[1]).collect();
        let large = seen(&noise, limit(true));
        assert!(large.largest_batch <= large.largest);
        let fits = seen(&[0; 1_000], limit(true));
        assert!(!fits.compressed && fits.largest_batch == fits.largest);
    }
}
