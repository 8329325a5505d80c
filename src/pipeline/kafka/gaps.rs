//! When the records of a gap were written, as far as the archive can tell: after the newest record before it, and before
//! the oldest one after it. A gap itself knows only offsets.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::messages::{SegmenterId, TaskEvent};
use super::shared::Shared;
use super::shown::MOST_GAPS;
use super::status::GapSpan;
use crate::error::Result;
use crate::manifest::{Chain, Selection};
use crate::store::Store;
use crate::stream::{Gap, PartitionRange, StreamId};

/// Looks at the gaps of a stream that was archived before, and tells the collector. They are only shown: if it fails, they
/// are left out.
pub(super) async fn look(shared: Arc<Shared>, segmenter: SegmenterId, stream: StreamId) {
    match of_stream(&shared.store, &stream).await {
        Ok(gaps) => shared.send(TaskEvent::Gaps { segmenter, gaps }),
        Err(error) => tracing::warn!(%stream, %error, hint = error.hint_text(), "the gaps of a stream cannot be read"),
    }
}

async fn of_stream(store: &Store, stream: &StreamId) -> Result<Vec<GapSpan>> {
    let Some(chain) = Chain::open(store, stream).await? else { return Ok(Vec::new()) };
    // No record is that old, so no page is opened for its segments alone.
    let only_gaps = Selection { timestamps: Some(i64::MIN..i64::MIN + 1), partitions: None };
    let mut gaps = chain.select(&only_gaps).await?.gaps;
    gaps.sort_by_key(|gap| gap.found);
    let mut spans = Vec::new();
    for gap in gaps.split_off(gaps.len().saturating_sub(MOST_GAPS)) {
        let before = neighbour(&chain, &gap, gap.start - 1).await?.and_then(|range| range.max_timestamp);
        let after = neighbour(&chain, &gap, gap.end).await?.and_then(|range| range.min_timestamp);
        spans.push(span(&gap, before, after));
    }
    Ok(spans)
}

/// The archived range of the gap's partition that holds `offset`.
async fn neighbour(chain: &Chain, gap: &Gap, offset: i64) -> Result<Option<PartitionRange>> {
    let partitions = Some(BTreeMap::from([(gap.partition, offset..offset + 1)]));
    let found = chain.select(&Selection { timestamps: None, partitions }).await?.segments;
    let mut ranges = found.iter().flat_map(|segment| &segment.partitions);
    Ok(ranges.find(|range| range.partition == gap.partition && (range.start..range.end).contains(&offset)).copied())
}

/// A gap between the timestamps of its neighbours.
pub(super) fn span(gap: &Gap, before: Option<i64>, after: Option<i64>) -> GapSpan {
    let found = gap.found.timestamp_millis();
    let to = after.unwrap_or(found);
    GapSpan {
        partition: gap.partition,
        start: gap.start,
        end: gap.end,
        reason: gap.reason.name(),
        // Timestamps need not grow with the offsets: a span never ends before it begins.
        from: before.map(|before| before.min(to)),
        to,
        found,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use chrono::{DateTime, Utc};
    use object_store::memory::InMemory;

    use super::*;
    use crate::stream::{Begin, Change, Format, GapReason, SegmentRef, TopicGeneration};

    fn time(ms: i64) -> DateTime<Utc> {
        DateTime::from_timestamp_millis(ms).expect("a time")
    }

    fn segment(start: i64, times: (i64, i64)) -> Change {
        let range = PartitionRange {
            partition: 3,
            start,
            end: start + 10,
            records: 10,
            min_timestamp: Some(times.0),
            max_timestamp: Some(times.1),
        };
        let segment = SegmentRef {
            object: format!(
                "segments/kafka/cluster=main/topic=orders/generation=0/date=1970-01-01/000000-w-{start}.parquet"
            ),
            format: Format::Parquet,
            bytes: 1,
            sha256: "0".repeat(64),
            raw_bytes: 1,
            largest_record: 1,
            partitions: vec![range],
            last: Vec::new(),
            generation: 0,
            minimal: None,
        };
        Change { segments: vec![segment], ..Change::default() }
    }

    #[tokio::test]
    async fn a_gap_lies_between_its_neighbours() {
        let store = Store::over(Arc::new(InMemory::new()), "memory:///");
        let stream = TopicGeneration::new("main", "orders", 0).stream();
        let begin = Begin::topic(None, vec![Some(0); 4]);
        let mut chain = Chain::begin(&store, &stream, begin, "w", time(0)).await.expect("it begins");
        let (reason, found) = (GapReason::BrokerRetention, time(9_000));
        let gap = |start, end| Gap { partition: 3, start, end, reason, found, generation: 0 };
        for change in [
            segment(0, (1_000, 2_000)),
            Change { gaps: vec![gap(10, 30)], ..Change::default() },
            segment(30, (5_000, 6_000)),
            Change { gaps: vec![gap(40, 41)], ..Change::default() },
        ] {
            chain.commit(&change, "w", time(9_000)).await.expect("it is committed");
        }
        let spans = of_stream(&store, &stream).await.expect("they are read");
        let spans: Vec<_> = spans.iter().map(|span| (span.start, span.end, span.from, span.to)).collect();
        assert_eq!(spans, [(10, 30, Some(2_000), 5_000), (40, 41, Some(6_000), 9_000)]);
    }
}
