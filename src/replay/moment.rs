//! The first records of a topic at or after a moment, by their timestamps, whatever partition they are in.
//!
//! ```text
//!   segments by the least timestamp within ─► read those that can come sooner than the last of the best ─► the best so far
//! ```
//!
//! It is for somebody who looks: little is kept of each record, one segment is open at a time, and what cannot be read is told and
//! left out.

use std::collections::BTreeMap;

use super::damage::of_segment;
use super::matching::matching;
use super::plan::{Part, Plan, Rename};
use super::select::{Query, sources};
use crate::config::TopicPattern;
use crate::error::{Error, Kind, Result};
use crate::record::{Record, TimestampType};
use crate::segment::{Filter, SegmentReader};
use crate::store::{Store, layout};
use crate::stream::SegmentRef;

/// How far is looked, in ms: further while less is found than was asked for.
const SPANS: [i64; 4] = [60_000, 3_600_000, 86_400_000, 7 * 86_400_000];

/// A segment with a larger record is left out: it is for commands, which have a process of their own.
const MOST_RECORD: u64 = 4 << 20;

/// So many bytes of a key, a value or a header's value are kept.
const MOST_KEPT: usize = 4 << 10;

/// So many headers of a record are kept.
const MOST_HEADERS: usize = 32;

/// What was found of a moment.
#[derive(Debug, Clone, Default)]
pub struct Moment {
    /// The records, by timestamp.
    pub records: Vec<Seen>,
    /// From which timestamp more may be asked for, in ms: all before it was looked at.
    pub until: i64,
    /// The segments that were left out, and why.
    pub left_out: Vec<(String, String)>,
}

/// A record as it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The generation of the topic.
    pub generation: u32,
    /// The partition.
    pub partition: i32,
    /// The offset.
    pub offset: i64,
    /// In ms since 1970.
    pub timestamp: i64,
    /// Who gave the timestamp.
    pub timestamp_type: TimestampType,
    /// The key, which may be null.
    pub key: Option<Beginning>,
    /// The value, which is null in a tombstone.
    pub value: Option<Beginning>,
    /// Names and values of the first headers.
    pub headers: Vec<(Beginning, Option<Beginning>)>,
    /// How many headers there are.
    pub header_count: usize,
}

/// The first bytes of something, and how many it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beginning {
    /// The first bytes: all of them, or as many as are kept.
    pub bytes: Vec<u8>,
    /// How many there are.
    pub length: usize,
}

impl Beginning {
    fn of(bytes: &[u8]) -> Self {
        let kept = &bytes[..bytes.len().min(MOST_KEPT)];
        // Text that is cut stays text.
        let kept = match std::str::from_utf8(kept) {
            Err(cut) if bytes.len() > MOST_KEPT && cut.error_len().is_none() => &kept[..cut.valid_up_to()],
            _ => kept,
        };
        Self { bytes: kept.to_vec(), length: bytes.len() }
    }
}

impl Seen {
    fn of(generation: u32, partition: i32, record: &Record<'_>) -> Self {
        let headers = record.headers().take(MOST_HEADERS);
        Self {
            generation,
            partition,
            offset: record.offset,
            timestamp: record.timestamp,
            timestamp_type: record.timestamp_type,
            key: record.key.map(Beginning::of),
            value: record.value.map(Beginning::of),
            headers: headers.map(|header| (Beginning::of(header.name), header.value.map(Beginning::of))).collect(),
            header_count: record.header_count(),
        }
    }
}

/// Returns the first `most` records of a cluster's topic with timestamps of `from` and later, as far as they lie within a week.
///
/// # Errors
/// The store's own; [`Kind::NotFound`] for a topic that is not archived.
pub async fn at_moment(store: &Store, cluster: &str, topic: &str, from: i64, most: usize) -> Result<Moment> {
    let (mut found, mut best, mut begun) = (Moment::default(), Best { most, records: BTreeMap::new() }, from);
    for span in SPANS {
        let until = from.saturating_add(span);
        let query = Query {
            topics: vec![TopicPattern::Name(topic.to_owned())],
            timestamps: Some(begun..until),
            ..Query::default()
        };
        let selected = sources(store, Some(cluster), &query).await?;
        let damaged = selected.damaged.iter().map(|(of, error)| (of.stream().to_string(), error.to_string()));
        found.left_out.extend(damaged);
        let plan = Plan::new(selected.sources, &query, &Rename::default())?;
        best.read(store, &plan, begun..until, &mut found.left_out).await?;
        found.until = until;
        if let Some(last) = best.last().filter(|_| best.records.len() >= most) {
            // Others may have the same timestamp. Whoever goes on from here gets on.
            found.until = last.max(from.saturating_add(1));
            break;
        }
        begun = until;
    }
    found.left_out.sort();
    found.left_out.dedup();
    found.records = best.records.into_values().collect();
    Ok(found)
}

/// Where a record stands: by timestamp, and those with the same one by generation, partition and offset.
type Place = (i64, u32, i32, i64);

/// The records that come first, so far.
struct Best {
    most: usize,
    records: BTreeMap<Place, Seen>,
}

impl Best {
    /// The timestamp of the last one.
    fn last(&self) -> Option<i64> {
        self.records.last_key_value().map(|((timestamp, ..), _)| *timestamp)
    }

    async fn read(
        &mut self,
        store: &Store,
        plan: &Plan,
        times: std::ops::Range<i64>,
        left_out: &mut Vec<(String, String)>,
    ) -> Result<()> {
        let mut order: Vec<(i64, &Part, &SegmentRef)> = Vec::new();
        for part in &plan.parts {
            for segment in &part.segments {
                let within = segment.partitions.iter().filter_map(|range| matching(range, &part.filter));
                order.extend(within.map(|range| range.min_timestamp).min().map(|least| (least, part, segment)));
            }
        }
        order.sort_by_key(|(least, ..)| *least);
        for (least, part, segment) in order {
            let end = match self.last() {
                Some(last) if self.records.len() >= self.most => last.saturating_add(1).min(times.end),
                _ => times.end,
            };
            if least >= end {
                break;
            }
            let read = match segment.largest_record > MOST_RECORD {
                true => Err(Error::new(Kind::Unsupported, "it has records of more than 4 MiB: use `tidelog cat`")),
                false => self.read_segment(store, part, segment, times.start..end).await,
            };
            if let Err(error) = read {
                left_out.push((segment.object.clone(), of_segment(error)?.to_string()));
            }
        }
        Ok(())
    }

    async fn read_segment(
        &mut self,
        store: &Store,
        part: &Part,
        segment: &SegmentRef,
        times: std::ops::Range<i64>,
    ) -> Result<()> {
        let rows = segment.partitions.iter().filter_map(|range| matching(range, &part.filter));
        let rows = rows.map(|rows| (rows.partition, rows.start..rows.end)).collect();
        let filter = Filter { partitions: Some(rows), timestamps: Some(times), with_key: None };
        let object = layout::object(&segment.object)?;
        let mut reader = SegmentReader::open(store.objects(), &object, segment.bytes, segment.format, filter).await?;
        while let Some(block) = reader.next().await? {
            for record in block.iter() {
                let place = (record.timestamp, part.stream.number, block.partition(), record.offset);
                let comes = self.records.len() < self.most
                    || self.records.last_key_value().is_some_and(|(last, _)| place < *last);
                if comes {
                    self.records.insert(place, Seen::of(part.stream.number, block.partition(), &record));
                }
                if self.records.len() > self.most {
                    self.records.pop_last();
                }
            }
            // Decoding goes on for long: whoever else has the thread to do something gets it.
            tokio::task::yield_now().await;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cut_is_text_where_it_was() {
        let long = "ü".repeat(MOST_KEPT);
        for shift in 0..4 {
            let text = format!("{}{long}", "a".repeat(shift));
            let kept = Beginning::of(text.as_bytes());
            assert_eq!(kept.length, text.len());
            let kept = String::from_utf8(kept.bytes).expect("text");
            assert!(text.starts_with(&kept) && kept.len() + 4 >= MOST_KEPT && kept.len() <= MOST_KEPT);
        }
        assert_eq!(Beginning::of(b"short"), Beginning { bytes: b"short".to_vec(), length: 5 });
        assert_eq!(Beginning::of(&[0x80; MOST_KEPT + 1]).bytes.len(), MOST_KEPT, "no text, cut as it comes");
    }
}
