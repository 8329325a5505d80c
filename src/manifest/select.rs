//! Which segments and gaps can matter for a range of time or offsets.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;

use chrono::{DateTime, Utc};
use futures::{StreamExt, TryStreamExt, stream};

use super::Chain;
use super::entry::{self, Entry};
use super::order::in_order;
use super::page::{self, Page};
use super::reads_at_once::READS_AT_ONCE;
use super::stored;
use crate::error::{Kind, Result, ResultExt};
use crate::stream::invariants::{self, SNAPSHOT_EVERY};
use crate::stream::{
    Abandon, Body, Expire, Expired, Gap, Merge, PageRef, PartitionRange, SegmentRef, Snapshot, Span, StreamId, Totals,
};

/// From how many snapshots on it is worth looking for those between which wanted offsets lie: below, opening all pages
/// takes no longer.
const WORTH_SEARCHING: u64 = 64;

/// What a reader wants of a stream. The default is everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// Records with `start <= timestamp < end`, in ms since 1970.
    pub timestamps: Option<Range<i64>>,
    /// These partitions, and of each the offsets `[start, end)`.
    pub partitions: Option<BTreeMap<i32, Range<i64>>>,
}

/// What can matter for a [`Selection`], oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selected {
    /// Segments. Some of their records may lie outside the selection.
    pub segments: Vec<SegmentRef>,
    /// Gaps.
    pub gaps: Vec<Gap>,
}

impl Selection {
    /// Whether a page or an archive that adds up to `totals` can hold anything that is wanted.
    fn wants_any_of(&self, totals: &Totals) -> bool {
        // A gap has no record whose timestamp could rule it out. What was expired is of no time.
        let expires = self.timestamps.is_none() && !totals.retired.is_nothing();
        expires
            || totals.gaps > 0
            || (totals.segments > 0 && self.wants_times(totals.min_timestamp, totals.max_timestamp))
    }

    fn wants_segment(&self, segment: &SegmentRef) -> bool {
        segment
            .partitions
            .iter()
            .any(|range| self.wants_offsets(range) && self.wants_times(range.min_timestamp, range.max_timestamp))
    }

    /// What is lost had been written before the loss was found, so a gap cannot matter for times after that.
    fn wants_gap(&self, gap: &Gap) -> bool {
        let after = self.timestamps.as_ref().is_some_and(|wanted| gap.found.timestamp_millis() < wanted.start);
        !after && self.wants_offsets(&gap.range())
    }

    fn wants_times(&self, min: Option<i64>, max: Option<i64>) -> bool {
        match (&self.timestamps, min, max) {
            (None, _, _) => true,
            (Some(wanted), Some(min), Some(max)) => min < wanted.end && wanted.start <= max,
            (Some(_), _, _) => false,
        }
    }

    fn wants_offsets(&self, range: &PartitionRange) -> bool {
        self.wants_positions(range.partition, range.start..range.end)
    }

    /// Whether a page can hold anything wanted by position. One that does not say may.
    fn wants_spans(&self, spans: &[Span]) -> bool {
        spans.is_empty() || spans.iter().any(|span| self.wants_positions(span.partition, span.start..span.end))
    }

    fn wants_positions(&self, partition: i32, range: Range<i64>) -> bool {
        self.partitions.as_ref().is_none_or(|wanted| {
            wanted.get(&partition).is_some_and(|wanted| range.start < wanted.end && wanted.start < range.end)
        })
    }
}

/// Objects that are no longer needed, and since when.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Obsolete {
    /// Those that a merge has replaced or an expiry has expired.
    pub retired: BTreeMap<String, DateTime<Utc>>,
    /// Those of timelines that were abandoned.
    pub abandoned: BTreeMap<String, DateTime<Utc>>,
}

/// What the entries list that can matter, whatever became of it later.
#[derive(Default)]
struct Listed {
    segments: Vec<SegmentRef>,
    gaps: Vec<Gap>,
    merges: Vec<Merge>,
    expires: Vec<Expire>,
}

/// A selection, and the entries that can hold anything of it.
struct Wanted<'a> {
    selection: &'a Selection,
    entries: Range<u64>,
}

impl Wanted<'_> {
    fn any_of(&self, page: &PageRef) -> bool {
        let overlaps = page.first < self.entries.end && self.entries.start <= page.last;
        let merges = page.merged.as_ref().is_some_and(|merged| self.selection.wants_spans(&merged.spans));
        let by_place = (overlaps && self.selection.wants_spans(&page.spans)) || merges;
        by_place && self.selection.wants_any_of(&page.totals)
    }
}

impl Chain {
    /// The segments and gaps that can matter, oldest first, so that the ranges of each partition follow each other; those of WAL by
    /// timeline and position. What a merge has replaced or an expiry has expired is left out. Pages that cannot match are not opened.
    pub async fn select(&self, selection: &Selection) -> Result<Selected> {
        let Listed { mut segments, mut gaps, merges, .. } = self.listed(selection).await?;
        let replaced: HashSet<&str> = merges.iter().flat_map(|merge| &merge.replaces).map(String::as_str).collect();
        let is_left = |segment: &&SegmentRef| !replaced.contains(segment.object.as_str());
        segments.retain(|segment| is_left(&segment));
        let merged = merges.iter().map(|merge| &merge.segment).filter(is_left).cloned();
        if let StreamId::Kafka(_) = self.stream {
            segments = in_order(segments, merged.collect());
        } else {
            segments.extend(merged);
        }
        if let StreamId::Postgres { .. } = self.stream {
            segments.sort_by_key(|segment| segment.partitions.first().map(|range| (range.partition, range.start)));
        }
        segments
            .retain(|segment| self.is_of_now(segment) && segment.partitions.iter().any(|range| self.is_kept(range)));
        gaps.retain(|gap| self.generation(gap.partition) == gap.generation && self.is_kept(&gap.range()));
        Ok(Selected { segments, gaps })
    }

    /// The ranges of all segments that were ever archived and can matter, also of those that a merge has replaced or an expiry
    /// has expired: the times of their commits stay true. Those of an abandoned timeline are left out.
    pub async fn ranges(&self, selection: &Selection) -> Result<Vec<PartitionRange>> {
        let Listed { segments, merges, .. } = self.listed(selection).await?;
        let all = segments.iter().chain(merges.iter().map(|merge| &merge.segment));
        Ok(all.filter(|segment| self.is_of_now(segment)).flat_map(|segment| &segment.partitions).copied().collect())
    }

    /// All gaps there ever were, also those of what an expiry has expired.
    pub async fn gaps_ever(&self) -> Result<Vec<Gap>> {
        if self.totals().gaps == 0 {
            return Ok(Vec::new());
        }
        // No record is that old, so no page is opened for its segments alone.
        let only_gaps = Selection { timestamps: Some(i64::MIN..i64::MIN + 1), partitions: None };
        let mut gaps = self.listed(&only_gaps).await?.gaps;
        gaps.retain(|gap| self.generation(gap.partition) == gap.generation);
        Ok(gaps)
    }

    /// Objects of the ranges `partitions` that are no longer needed, and since when: those that were merged or expired, and
    /// those of timelines that were abandoned.
    pub async fn retired(&self, partitions: BTreeMap<i32, Range<i64>>) -> Result<Obsolete> {
        let selection = Selection { timestamps: None, partitions: Some(partitions) };
        let Listed { segments, merges, expires, .. } = self.listed(&selection).await?;
        let Obsolete { mut retired, mut abandoned } = Obsolete::default();
        for segment in segments.iter().chain(merges.iter().map(|merge| &merge.segment)) {
            abandoned.extend(self.abandoned_by(segment).map(|decided| (segment.object.clone(), decided)));
            let expired = expires.iter().find(|expire| {
                let below = |range: &PartitionRange| {
                    let covers = |expired: &Expired| {
                        (expired.partition, expired.generation) == (range.partition, segment.generation)
                            && range.end <= expired.before
                    };
                    expire.ranges.iter().any(covers)
                };
                segment.partitions.iter().all(below)
            });
            retired.extend(expired.map(|expire| (segment.object.clone(), expire.decided)));
        }
        for merge in &merges {
            retired.extend(merge.replaces.iter().map(|object| (object.clone(), merge.decided)));
        }
        Ok(Obsolete { retired, abandoned })
    }

    /// Whether a segment is of the generation of its timeline that is archived now.
    fn is_of_now(&self, segment: &SegmentRef) -> bool {
        segment.partitions.first().is_none_or(|range| self.generation(range.partition) == segment.generation)
    }

    /// When the timeline of a segment was abandoned, if it was.
    fn abandoned_by(&self, segment: &SegmentRef) -> Option<DateTime<Utc>> {
        let partition = segment.partitions.first()?.partition;
        let ends = |abandon: &&Abandon| (abandon.partition, abandon.generation) == (partition, segment.generation);
        self.abandoned().iter().find(ends).map(|abandon| abandon.decided)
    }

    /// Whether no expiry covers the whole range.
    fn is_kept(&self, range: &PartitionRange) -> bool {
        self.position(range.partition).is_none_or(|position| position.start < range.end)
    }

    async fn listed(&self, selection: &Selection) -> Result<Listed> {
        let wanted = Wanted { selection, entries: self.entries_of(selection).await? };
        let mut pages: Vec<PageRef> = self.pages.iter().filter(|page| wanted.any_of(page)).cloned().collect();
        while pages.iter().any(|page| page.level > 0) {
            pages = self.one_level_down(pages, &wanted).await?;
        }
        let mut listed = Listed::default();
        let mut read = stream::iter(pages).map(|page| self.read_page(page)).buffered(READS_AT_ONCE);
        while let Some(page) = read.try_next().await? {
            listed.segments.extend(page.segments.into_iter().filter(|segment| selection.wants_segment(segment)));
            listed.gaps.extend(page.gaps.into_iter().filter(|gap| selection.wants_gap(gap)));
            listed.merges.extend(page.merges.into_iter().filter(|merge| selection.wants_segment(&merge.segment)));
            listed.expires.extend(page.expires);
        }
        for body in &self.tail {
            let segments = body.segments().iter().filter(|segment| selection.wants_segment(segment));
            listed.segments.extend(segments.cloned());
            listed.gaps.extend(body.gaps().iter().filter(|gap| selection.wants_gap(gap)).cloned());
            listed.merges.extend(body.merge().filter(|merge| selection.wants_segment(&merge.segment)).cloned());
            listed.expires.extend(body.expire().cloned());
        }
        Ok(listed)
    }

    /// Replaces the pages above level 0 by those that they list and that can match, in their order.
    async fn one_level_down(&self, pages: Vec<PageRef>, wanted: &Wanted<'_>) -> Result<Vec<PageRef>> {
        let opened = stream::iter(pages).map(|page| async move {
            if page.level == 0 {
                return Ok::<_, crate::error::Error>(vec![page]);
            }
            let page = self.read_page(page).await?;
            Ok(page.pages.into_iter().filter(|below| wanted.any_of(below)).collect())
        });
        let opened: Vec<Vec<PageRef>> = opened.buffered(READS_AT_ONCE).try_collect().await?;
        Ok(opened.into_iter().flatten().collect())
    }

    /// Reads a page as a task of its own: to unpack thousands of them takes more than one core.
    pub(super) async fn read_page(&self, reference: PageRef) -> Result<Page> {
        let (store, stream) = (self.store.clone(), self.stream.clone());
        let read = tokio::spawn(async move { page::read_or_rebuild(&store, &stream, &reference).await });
        read.await.or_err(Kind::Internal, || "the reading of a page was aborted".into())?
    }

    /// The entries that can hold wanted offsets. A snapshot says how far every partition had come by then, so two binary
    /// searches over the snapshots find the first and the last page that can matter.
    async fn entries_of(&self, selection: &Selection) -> Result<Range<u64>> {
        let snapshots = self.pages.last().map_or(0, |page| page.last + 1) / SNAPSHOT_EVERY;
        // Pages of WAL say themselves which positions they tell of, and a merge may stand far behind what it replaces: pages of a
        // topic say that of merges.
        let searched = snapshots >= WORTH_SEARCHING && self.stream.topic().is_some();
        let Some(wanted) = selection.partitions.as_ref().filter(|_| searched) else {
            return Ok(0..u64::MAX);
        };
        let reached = |snapshot: &Snapshot, partition: i32, offset: i64| {
            snapshot.positions.iter().any(|position| position.partition == partition && position.end >= offset)
        };
        let begun = |snapshot: &Snapshot| {
            wanted.iter().any(|(partition, offsets)| reached(snapshot, *partition, offsets.start.saturating_add(1)))
        };
        let done =
            |snapshot: &Snapshot| wanted.iter().all(|(partition, offsets)| reached(snapshot, *partition, offsets.end));
        let first = self.first_snapshot(snapshots, begun).await?;
        let last = self.first_snapshot(snapshots, done).await?;
        Ok((first - 1) * SNAPSHOT_EVERY..last * SNAPSHOT_EVERY)
    }

    /// Which of the `snapshots` snapshots, from 1, is the first for which `holds`; one more than there are if none is.
    /// If it holds for one, it holds for all that follow.
    pub(super) async fn first_snapshot(&self, snapshots: u64, holds: impl Fn(&Snapshot) -> bool) -> Result<u64> {
        let (mut low, mut high) = (1, snapshots + 1);
        while low < high {
            let middle = low + (high - low) / 2;
            let number = middle * SNAPSHOT_EVERY;
            let read = stored::read(&self.store, &self.stream, number).await?;
            let Entry { object, checkpoint, .. } = read.ok_or_else(|| entry::missing(&self.stream, number))?;
            invariants::snapshot_at_multiple(number, &checkpoint.body).map_err(|broken| broken.in_object(object))?;
            let holds = matches!(&checkpoint.body, Body::Snapshot(snapshot) if holds(snapshot));
            if holds { high = middle } else { low = middle + 1 }
        }
        Ok(low)
    }
}
