//! Which segments and gaps can matter for a range of time or offsets.

use std::collections::BTreeMap;
use std::ops::Range;

use futures::{StreamExt, TryStreamExt, stream};

use super::entry::{self, Entry};
use super::page::{self, Page};
use super::{Chain, READS_AT_ONCE};
use crate::error::{Kind, Result, ResultExt};
use crate::stream::invariants::{self, SNAPSHOT_EVERY};
use crate::stream::{Body, Gap, PageRef, PartitionRange, SegmentRef, Snapshot, Totals};

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
        // A gap has no record whose timestamp could rule it out.
        totals.gaps > 0 || (totals.segments > 0 && self.wants_times(totals.min_timestamp, totals.max_timestamp))
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
        self.partitions.as_ref().is_none_or(|wanted| {
            wanted.get(&range.partition).is_some_and(|wanted| range.start < wanted.end && wanted.start < range.end)
        })
    }
}

/// A selection, and the entries that can hold anything of it.
struct Wanted<'a> {
    selection: &'a Selection,
    entries: Range<u64>,
}

impl Wanted<'_> {
    fn any_of(&self, page: &PageRef) -> bool {
        page.first < self.entries.end && self.entries.start <= page.last && self.selection.wants_any_of(&page.totals)
    }
}

impl Chain {
    /// The segments and gaps that can matter, oldest first. Pages that cannot match are not opened.
    pub async fn select(&self, selection: &Selection) -> Result<Selected> {
        let wanted = Wanted { selection, entries: self.entries_of(selection).await? };
        let mut pages: Vec<PageRef> = self.pages.iter().filter(|page| wanted.any_of(page)).cloned().collect();
        while pages.iter().any(|page| page.level > 0) {
            pages = self.one_level_down(pages, &wanted).await?;
        }
        let mut selected = Selected::default();
        let mut read = stream::iter(pages).map(|page| self.read_page(page)).buffered(READS_AT_ONCE);
        while let Some(page) = read.try_next().await? {
            selected.segments.extend(page.segments.into_iter().filter(|segment| selection.wants_segment(segment)));
            selected.gaps.extend(page.gaps.into_iter().filter(|gap| selection.wants_gap(gap)));
        }
        for body in &self.tail {
            let segments = body.segments().iter().filter(|segment| selection.wants_segment(segment));
            selected.segments.extend(segments.cloned());
            selected.gaps.extend(body.gaps().iter().filter(|gap| selection.wants_gap(gap)).cloned());
        }
        Ok(selected)
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
    async fn read_page(&self, reference: PageRef) -> Result<Page> {
        let (store, stream) = (self.store.clone(), self.stream.clone());
        let read = tokio::spawn(async move { page::read(&store, &stream, &reference).await });
        read.await.or_err(Kind::Internal, || "the reading of a page broke off".into())?
    }

    /// The entries that can hold wanted offsets. A snapshot says how far every partition had come by then, so two binary
    /// searches over the snapshots find the first and the last page that can matter.
    async fn entries_of(&self, selection: &Selection) -> Result<Range<u64>> {
        let snapshots = self.pages.last().map_or(0, |page| page.last + 1) / SNAPSHOT_EVERY;
        let Some(wanted) = selection.partitions.as_ref().filter(|_| snapshots >= WORTH_SEARCHING) else {
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
    async fn first_snapshot(&self, snapshots: u64, holds: impl Fn(&Snapshot) -> bool) -> Result<u64> {
        let (mut low, mut high) = (1, snapshots + 1);
        while low < high {
            let middle = low + (high - low) / 2;
            let number = middle * SNAPSHOT_EVERY;
            let read = entry::read(&self.store, &self.stream, number).await?;
            let Entry { object, checkpoint, .. } = read.ok_or_else(|| entry::missing(&self.stream, number))?;
            invariants::snapshot_at_multiple(number, &checkpoint.body).map_err(|broken| broken.in_object(object))?;
            let holds = matches!(&checkpoint.body, Body::Snapshot(snapshot) if holds(snapshot));
            if holds { high = middle } else { low = middle + 1 }
        }
        Ok(low)
    }
}
