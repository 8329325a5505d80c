//! Which segments of a topic are merged: those that were sealed within one span of time, once it is over for long enough.
//!
//! ```text
//!   segments in order   a a a A a a │ b b b │ c c        spans of `after`, by when they were sealed
//!                       └─┬─┘   └┬┘   └─┬─┘    └ not old enough
//!                        run    run    run               A is large, and stays
//! ```
//!
//! A run is what lies next to each other of one span: so it takes the place of its segments in the order of each partition,
//! whatever partitions it has, and retention still expires records about when they come of age. A segment is merged once: each entry that
//! merges moves a frontier behind which nothing is looked at again, so whoever starts goes on where somebody stopped.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;

use chrono::{DateTime, TimeDelta, Utc};

use super::Chain;
use crate::error::Result;
use crate::store::layout::Name;
use crate::stream::invariants::SNAPSHOT_EVERY;
use crate::stream::{Body, Gap, PageRef, SegmentRef};

/// A segment that is larger is not merged, whatever `max_bytes` is: it is in memory while it is read.
const MOST_SOURCE: u64 = 16 << 20;

/// One with a larger record is not merged either: it is in memory several times while it is written again.
const MOST_RECORD: u64 = 4 << 20;

/// So many segments are merged into one at the most: their keys stand in the entry.
const MOST_SOURCES: usize = 4_096;

/// So many ranges of segments are kept while a span goes on. One that has more is merged in parts.
const MOST_RANGES: usize = 100_000;

/// What decides which segments are merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// No merged segment is estimated to be larger. What has half of it is not small.
    pub max_bytes: u64,
    /// None has more records.
    pub max_records: u64,
    /// Segments are merged that were sealed within such a span, once it is over for as long.
    pub after: TimeDelta,
    /// By the store's clock.
    pub now: DateTime<Utc>,
}

impl Limits {
    fn is_small(&self, segment: &SegmentRef) -> bool {
        segment.bytes <= (self.max_bytes / 2).min(MOST_SOURCE) && segment.largest_record <= MOST_RECORD
    }

    /// The span in which something was sealed.
    fn span_of(&self, sealed: DateTime<Utc>) -> i64 {
        sealed.timestamp_millis().div_euclid(self.after.num_milliseconds().max(1))
    }

    /// When the segments of a span may be merged.
    fn due(&self, span: i64) -> Option<DateTime<Utc>> {
        let millis = span.checked_add(2)?.checked_mul(self.after.num_milliseconds().max(1))?;
        DateTime::from_timestamp_millis(millis)
    }
}

/// Segments that become one, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// The segments, at least two.
    pub segments: Vec<SegmentRef>,
    /// When the last of them was sealed.
    pub sealed: DateTime<Utc>,
}

/// Which of these segments, which stand in order, become one each. `gaps` are those between them, by partition and start, and those
/// that are `left` stay as they are.
pub fn runs(
    segments: &[SegmentRef],
    gaps: &BTreeSet<(i32, i64)>,
    left: &BTreeSet<String>,
    limits: Limits,
) -> Vec<Range<usize>> {
    let mut found: Vec<Range<usize>> = Vec::new();
    let mut open = Open::default();
    for (at, segment) in segments.iter().enumerate() {
        let takes_part = limits.is_small(segment) && !left.contains(&segment.object);
        if !takes_part || !open.takes(segment, gaps, limits) {
            found.extend(open.close(at));
        }
        if takes_part {
            open.add(at, segment);
        }
    }
    found.extend(open.close(segments.len()));
    found
}

/// The run that goes on.
#[derive(Default)]
struct Open<'a> {
    first: Option<(usize, &'a SegmentRef)>,
    count: usize,
    bytes: u64,
    records: u64,
    ends: BTreeMap<i32, i64>,
}

impl<'a> Open<'a> {
    fn takes(&self, segment: &SegmentRef, gaps: &BTreeSet<(i32, i64)>, limits: Limits) -> bool {
        let Some((_, first)) = self.first else { return true };
        let follows = segment.partitions.iter().all(|range| match self.ends.get(&range.partition) {
            Some(end) => {
                *end <= range.start
                    && gaps.range((range.partition, *end)..(range.partition, range.start)).next().is_none()
            }
            None => true,
        });
        follows
            && first.format == segment.format
            && self.count < MOST_SOURCES
            && self.bytes.saturating_add(segment.bytes) <= limits.max_bytes
            && self.records.saturating_add(segment.records()) <= limits.max_records
    }

    fn add(&mut self, at: usize, segment: &'a SegmentRef) {
        self.first.get_or_insert((at, segment));
        self.count += 1;
        self.bytes = self.bytes.saturating_add(segment.bytes);
        self.records = self.records.saturating_add(segment.records());
        self.ends.extend(segment.partitions.iter().map(|range| (range.partition, range.end)));
    }

    /// Ends before the segment `end`; gives the run, if it is one.
    fn close(&mut self, end: usize) -> Option<Range<usize>> {
        let closed = std::mem::take(self);
        closed.first.map(|(first, _)| first..end).filter(|run| run.len() > 1)
    }
}

/// How far it was looked in a chain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Looked {
    /// Nothing before this entry waits; none where that is not known yet.
    from: Option<u64>,
}

/// What was found in a look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// The runs of the first span that has any.
    Runs(Vec<Run>),
    /// Nothing now; then something may be. None where nothing waits.
    Nothing(Option<DateTime<Utc>>),
}

impl Looked {
    /// Looks for the first runs of a topic's chain. Those that were given are to be merged before it is looked again, or they come
    /// again, unless a segment of them is `left` alone.
    pub async fn next(&mut self, chain: &Chain, left: &BTreeSet<String>, limits: Limits) -> Result<Found> {
        let frontier = Frontier::of(chain);
        let first = match self.from {
            Some(from) => from,
            None => frontier.first_entry(chain).await?,
        };
        self.from = Some(first);
        let mut span =
            Span { limits, left, number: None, begins: None, held: Held::default(), sealed: DateTime::default() };
        let mut pages: VecDeque<PageRef> = chain.pages.iter().filter(|page| first <= page.last).cloned().collect();
        while let Some(page) = pages.pop_front() {
            if page.last < first {
                continue;
            }
            // Where segments are large on average, there is not much to gain.
            let totals = page.totals;
            if totals.segments > 0 && totals.stored_bytes / totals.segments >= limits.max_bytes / 4 {
                span.held.bar();
                continue;
            }
            let begins = page.first;
            let read = chain.read_page(page).await?;
            pages = read.pages.into_iter().chain(pages).collect();
            span.held.gaps.extend(read.gaps.iter().map(place));
            for segment in read.segments {
                if let Some(found) = span.take(begins, segment, &frontier) {
                    self.from = span.begins.filter(|_| matches!(found, Found::Nothing(_))).or(self.from);
                    return Ok(found);
                }
            }
            self.from = Some(span.begins.unwrap_or(begins));
        }
        let begins = chain.number - chain.number % SNAPSHOT_EVERY;
        span.held.gaps.extend(chain.tail.iter().flat_map(Body::gaps).map(place));
        for segment in chain.tail.iter().flat_map(Body::segments) {
            if let Some(found) = span.take(begins, segment.clone(), &frontier) {
                return Ok(found);
            }
        }
        Ok(span.runs().map_or(Found::Nothing(None), Found::Runs))
    }
}

fn place(gap: &Gap) -> (i32, i64) {
    (gap.partition, gap.start)
}

/// The span of time that is gone through.
struct Span<'a> {
    limits: Limits,
    left: &'a BTreeSet<String>,
    number: Option<i64>,
    /// The first entry of the page in which it begins.
    begins: Option<u64>,
    held: Held,
    /// When the last segment was sealed that is not dated ahead.
    sealed: DateTime<Utc>,
}

/// Segments of a span so far.
#[derive(Default)]
struct Held {
    segments: Vec<SegmentRef>,
    ranges: usize,
    /// Before these, by their place, lies something that is not merged.
    bars: BTreeSet<usize>,
    gaps: BTreeSet<(i32, i64)>,
}

impl Held {
    /// No run goes on from here.
    fn bar(&mut self) {
        self.bars.insert(self.segments.len());
    }
}

impl Span<'_> {
    /// Takes in the next segment. Gives the runs of the span before, if that has any, or that the span is too young that begins.
    fn take(&mut self, page: u64, segment: SegmentRef, frontier: &Frontier) -> Option<Found> {
        if !frontier.is_before(&segment) {
            self.held.bar();
            return None;
        }
        let sealed = match Name::parse(&segment.object) {
            Ok(Name::Records { sealed, .. }) => sealed,
            _ => self.sealed,
        };
        // Clocks differ: a span goes on until something was sealed after it, and what is dated ahead says nothing.
        let sealed = if sealed <= self.limits.now { sealed.max(self.sealed) } else { self.sealed };
        let number = self.limits.span_of(sealed);
        let is_over = self.number.is_some_and(|of| of < number) || self.held.ranges > MOST_RANGES;
        if let Some(runs) = Some(()).filter(|()| is_over).and_then(|()| self.runs()) {
            return Some(Found::Runs(runs));
        }
        if is_over || self.number.is_none() {
            let gaps = std::mem::take(&mut self.held.gaps);
            self.held = Held { gaps, ..Held::default() };
            (self.number, self.begins) = (Some(number), Some(page));
            if let Some(due) = self.limits.due(number).filter(|due| self.limits.now < *due) {
                return Some(Found::Nothing(Some(due)));
            }
        }
        self.sealed = sealed;
        self.held.ranges += segment.partitions.len() + 1;
        self.held.segments.push(segment);
        None
    }

    /// The runs of the span; none if it has none.
    fn runs(&self) -> Option<Vec<Run>> {
        let Held { segments, bars, gaps, .. } = &self.held;
        let mut found = Vec::new();
        let ends = bars.iter().copied().chain([segments.len()]);
        let mut start = 0;
        for end in ends {
            let together = segments.get(start..end).unwrap_or_default();
            for run in runs(together, gaps, self.left, self.limits) {
                let segments = together.get(run).unwrap_or_default().to_vec();
                found.push(Run { segments, sealed: self.sealed });
            }
            start = end;
        }
        Some(found).filter(|found| !found.is_empty())
    }
}

/// Up to where partitions are merged or expired.
struct Frontier(BTreeMap<i32, i64>);

impl Frontier {
    fn of(chain: &Chain) -> Self {
        let mut ends: BTreeMap<i32, i64> = chain.positions().map(|at| (at.partition, at.start)).collect();
        let mut reach = |partition: i32, end: i64| {
            let at = ends.entry(partition).or_insert(end);
            *at = end.max(*at);
        };
        let spans = chain.pages.iter().filter_map(|page| page.merged.as_ref()).flat_map(|merged| &merged.spans);
        spans.for_each(|span| reach(span.partition, span.end));
        let merged = chain.tail.iter().filter_map(Body::merge).flat_map(|merge| &merge.segment.partitions);
        merged.for_each(|range| reach(range.partition, range.end));
        Self(ends)
    }

    /// Whether it lies before a segment, with all its partitions.
    fn is_before(&self, segment: &SegmentRef) -> bool {
        let is_behind = |partition, start| self.0.get(&partition).is_none_or(|end| *end <= start);
        segment.partitions.iter().all(|range| is_behind(range.partition, range.start))
    }

    /// The first entry of the first page that may have something behind it.
    async fn first_entry(&self, chain: &Chain) -> Result<u64> {
        let snapshots = chain.number / SNAPSHOT_EVERY;
        let is_behind = |partition: i32, end: i64| self.0.get(&partition).is_none_or(|at| *at < end);
        let begun = chain.first_snapshot(snapshots, |snapshot| {
            snapshot.positions.iter().any(|position| is_behind(position.partition, position.end))
        });
        Ok(begun.await?.saturating_sub(1) * SNAPSHOT_EVERY)
    }
}

#[cfg(test)]
mod tests;
