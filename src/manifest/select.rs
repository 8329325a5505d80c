//! Which segments and gaps can matter for a range of time or offsets.

use std::collections::BTreeMap;
use std::ops::Range;

use futures::{StreamExt, TryStreamExt, stream};

use super::{Chain, READS_AT_ONCE, page};
use crate::error::Result;
use crate::stream::{Gap, PageRef, PartitionRange, SegmentRef, Totals};

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

impl Chain {
    /// The segments and gaps that can matter, oldest first. Pages that cannot match are not opened.
    pub async fn select(&self, wanted: &Selection) -> Result<Selected> {
        let mut pages: Vec<PageRef> =
            self.pages.iter().filter(|page| wanted.wants_any_of(&page.totals)).cloned().collect();
        while pages.iter().any(|page| page.level > 0) {
            pages = self.one_level_down(pages, wanted).await?;
        }
        let read = stream::iter(&pages).map(|reference| page::read(&self.store, &self.stream, reference));
        let mut selected = Selected::default();
        let mut read = read.buffered(READS_AT_ONCE);
        while let Some(page) = read.try_next().await? {
            selected.segments.extend(page.segments.into_iter().filter(|segment| wanted.wants_segment(segment)));
            selected.gaps.extend(page.gaps.into_iter().filter(|gap| wanted.wants_gap(gap)));
        }
        for body in &self.tail {
            selected.segments.extend(body.segments().iter().filter(|segment| wanted.wants_segment(segment)).cloned());
            selected.gaps.extend(body.gaps().iter().filter(|gap| wanted.wants_gap(gap)).cloned());
        }
        Ok(selected)
    }

    /// Replaces the pages above level 0 by those that they list and that can match, in their order.
    async fn one_level_down(&self, pages: Vec<PageRef>, wanted: &Selection) -> Result<Vec<PageRef>> {
        let opened = stream::iter(pages).map(|reference| async move {
            if reference.level == 0 {
                return Ok(vec![reference]);
            }
            let page = page::read(&self.store, &self.stream, &reference).await?;
            Ok(page.pages.into_iter().filter(|below| wanted.wants_any_of(&below.totals)).collect())
        });
        let opened: Vec<Vec<PageRef>> = opened.buffered(READS_AT_ONCE).try_collect().await?;
        Ok(opened.into_iter().flatten().collect())
    }
}
