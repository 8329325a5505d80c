//! Small segments of WAL, made into one for each block of 16 MiB.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use object_store::path::Path;

use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::manifest::{Chain, Selection};
use crate::segment::wal::{MOST_BYTES, Seen, WalFacts, WalReader, seal};
use crate::store::{Store, layout};
use crate::stream::{Lsn, Merge, Retired, SegmentRef, System};

/// A range of 16 MiB of one timeline, as positions in its chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Block {
    pub(crate) timeline: i32,
    pub(crate) start: i64,
    pub(crate) end: i64,
}

/// Who merges, and where.
pub(crate) struct Merger<'a> {
    pub(crate) store: &'a Store,
    pub(crate) system: System,
    pub(crate) writer: String,
    /// Numbers for the segments of this process: they are part of keys.
    pub(crate) numbers: &'a AtomicU64,
    pub(crate) zstd_level: i32,
}

impl Merger<'_> {
    /// Makes one segment of those that lie in a block; false if they are one already, or not all there.
    pub(crate) async fn merge(&self, chain: &mut Chain, block: Block) -> Result<bool> {
        chain.refresh().await?;
        let partitions = BTreeMap::from([(block.timeline, block.start..block.end)]);
        let segments = chain.select(&Selection { timestamps: None, partitions: Some(partitions) }).await?.segments;
        let Some((start, end)) = range_of(&segments).filter(|_| segments.len() > 1) else { return Ok(false) };
        if end != block.end || start < block.start {
            return Ok(false);
        }
        let timeline = block.timeline.cast_unsigned();
        let (start, end) = (Lsn::at(start), Lsn::at(end));
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let key = layout::wal_segment(self.system.system_id, timeline, start.0..end.0, &self.writer, number);
        let facts = WalFacts::new(self.system, timeline, start..end, &self.writer, crate::time::now());
        let (mut merged, object) = self.rewrite(&segments, facts, &key).await?;
        merged.generation = chain.generation(block.timeline);
        self.store.put(&key, object).await?;
        let merge = Merge {
            segment: merged,
            replaces: segments.iter().map(|segment| segment.object.clone()).collect(),
            retired: Retired::of(&segments),
            decided: crate::time::now(),
        };
        chain.merge(&merge, &self.writer, merge.decided).await
    }

    /// The bytes of several segments as one, which is to be stored as `key`.
    async fn rewrite(&self, segments: &[SegmentRef], facts: WalFacts, key: &Path) -> Result<(SegmentRef, Bytes)> {
        let mut wal = Vec::with_capacity(usize::try_from(facts.len()).unwrap_or(0));
        let mut seen = Seen::default();
        for segment in segments {
            let reader = WalReader::open(self.store, segment).await?;
            let read = tokio::task::spawn_blocking(move || {
                wal.extend_from_slice(&reader.all()?);
                Ok::<_, Error>(wal)
            });
            wal = read.await.or_err(Kind::Internal, || "a merge was aborted".into())??;
            seen.add(&Seen {
                commits: segment.records(),
                first_commit: segment.min_timestamp(),
                last_commit: segment.max_timestamp(),
                largest_record: segment.largest_record,
                minimal: segment.minimal.map(|one| (Lsn::at(one.first), Lsn::at(one.last))),
            });
        }
        let (key, level) = (key.clone(), self.zstd_level);
        let sealed = tokio::task::spawn_blocking(move || seal(&key, &facts, &wal, &seen, level));
        sealed.await.or_err(Kind::Internal, || "a merge was aborted".into())?
    }
}

/// Returns from where to where segments go that follow each other without a hole.
fn range_of(segments: &[SegmentRef]) -> Option<(i64, i64)> {
    let mut ranges = segments.iter().filter_map(|segment| segment.partitions.first());
    let first = ranges.next()?;
    let end = ranges.try_fold(first.end, |end, range| (range.start == end).then_some(range.end))?;
    Some((first.start, end))
}

/// How much of a timeline is looked at for blocks that were not merged, before what comes before it is.
const LOOKED_AT: i64 = 64 * MOST_BYTES.cast_signed();

/// The complete blocks that lie in several segments: what an archiver left behind that was killed. It stands at the end of a
/// timeline, so each is looked at from its end backwards until a long stretch is merged, and not back to its beginning.
pub(crate) async fn unmerged(chain: &Chain) -> Result<BTreeSet<Block>> {
    let mut found = BTreeSet::new();
    for position in chain.positions() {
        let mut end = position.end;
        while end > position.start {
            // On a border of blocks.
            let start = (end - 1).div_euclid(LOOKED_AT) * LOOKED_AT;
            let partitions = Some(BTreeMap::from([(position.partition, start.max(position.start)..end)]));
            let segments = chain.select(&Selection { timestamps: None, partitions }).await?.segments;
            let blocks = several(&segments, position.end);
            if blocks.is_empty() && end < position.end {
                break;
            }
            found.extend(blocks);
            end = start;
        }
    }
    Ok(found)
}

/// The blocks before `archived` that lie in several of these segments.
fn several(segments: &[SegmentRef], archived: i64) -> BTreeSet<Block> {
    let mut blocks: BTreeMap<Block, u64> = BTreeMap::new();
    for range in segments.iter().flat_map(|segment| &segment.partitions) {
        let end = Lsn((Lsn::at(range.start).0 + 1).next_multiple_of(MOST_BYTES)).position();
        let start = end.saturating_sub(MOST_BYTES.cast_signed());
        if end <= archived {
            *blocks.entry(Block { timeline: range.partition, start, end }).or_default() += 1;
        }
    }
    blocks.into_iter().filter(|(_, segments)| *segments > 1).map(|(block, _)| block).collect()
}
