//! The commits of a log, from the archive alone: which there are in a range, and which is the last one at a moment.
//!
//! ```text
//!   checkpoints ── which segments can hold commits of these times, and where WAL is lost ─► parts of the way ─► scan ─► commits
//!
//!   a moment    ── commit ≤ T ─┬─ … ── commit > T ──       the last commit before the first transaction that ended later: just where
//!                              └ its end: L                a recovery to T stops (`stop`)
//! ```
//!
//! A commit lies at or before a position if its record ends there or earlier, by the end that Postgres tells: so ranges of positions
//! that follow each other name each commit once, and logical decoding and change events mean the same position.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};

use super::log::Log;
use super::refusal::no_way;
use super::search::{first_since, last_that, scan, scan_with_slots};
use crate::error::{Error, Kind, Result};
use crate::manifest::path::{Facts, Stretch, Way};
use crate::manifest::{Selection, recoverable};
use crate::segment::wal::{Ended, What};
use crate::store::Store;
use crate::stream::Lsn;
use crate::time;

/// About how many ranges of segments are looked up at a time: an archive of years has more than fit into memory.
const RANGES_AT_ONCE: u64 = 16 << 10;
/// The least and the most WAL in which they are looked up at a time.
const WINDOW: Range<u64> = (64 << 20)..(64 << 30);

/// Which commits are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Those whose records lie between these positions.
    pub lsns: Range<Lsn>,
    /// Those with these times, in microseconds since 1970.
    pub times: Range<i64>,
}

/// A moment of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// In microseconds since 1970.
    Time(i64),
    /// A position.
    Lsn(Lsn),
}

/// WAL of a way that the archive does not have: what was committed there is not known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hole {
    /// Its timeline.
    pub timeline: u32,
    /// From where to where.
    pub lsns: Range<Lsn>,
    /// Why, in words.
    pub words: &'static str,
    /// Why, in one word.
    pub reason: &'static str,
}

/// The commits on the way to one timeline.
pub struct Commits<'a> {
    store: &'a Store,
    log: &'a Log,
    facts: Facts,
    way: Way,
}

impl<'a> Commits<'a> {
    /// Those on the way to a timeline; none: the newest.
    ///
    /// # Errors
    /// [`Kind::NotFound`] for a timeline that is not archived, or of which it is not known where it comes from.
    pub async fn open(store: &'a Store, log: &'a Log, timeline: Option<u32>) -> Result<Self> {
        let facts = recoverable::facts_with(store, log.chain(), Vec::new()).await?;
        let timeline = timeline.or_else(|| facts.newest());
        let timeline = timeline.ok_or_else(|| Error::new(Kind::NotFound, "the archive holds no WAL yet"))?;
        let way = facts.way(timeline).map_err(|lack| no_way(log, &lack))?;
        Ok(Self { store, log, facts, way })
    }

    /// The timeline to which the way leads.
    pub fn timeline(&self) -> u32 {
        self.way.timeline()
    }

    /// From where to where the way is archived, holes included.
    pub fn archived(&self) -> Range<Lsn> {
        let first = self.way.stretches().iter().find_map(|stretch| self.archived_of(stretch));
        first.map_or(self.way.end(), |lsns| lsns.start)..self.way.end()
    }

    /// Up to when the archive is known to be complete, in ms since 1970.
    pub async fn complete_through(&self) -> Result<Option<i64>> {
        let complete = recoverable::complete_through(self.store, self.log.chain(), &self.way).await?;
        Ok(complete.map(|complete| complete.timestamp_millis()))
    }

    /// Tells the commits that are wanted, in the order of the log; with `of_slots` also what decides about logical slots. That has no
    /// time: it is told from the first transaction on that ended within the times, up to the first that ended behind them.
    pub async fn each(
        &self,
        wanted: &Wanted,
        of_slots: bool,
        mut tell: impl FnMut(&Ended) -> ControlFlow<()>,
    ) -> Result<()> {
        let of_slots_in = if of_slots { self.positions_of(&wanted.times).await? } else { Lsn(0)..Lsn(0) };
        // No index says which segments have it.
        let times = if of_slots { i64::MIN..i64::MAX } else { wanted.times.clone() };
        let ended_early = Cell::new(false);
        let mut pass_on = |ended: &Ended, from: Lsn| {
            let is_wanted = match &ended.what {
                What::Commit(_) => wanted.times.contains(&ended.at),
                What::OfSlots(_) => of_slots_in.contains(&ended.start),
                _ => false,
            };
            let lies_within = from <= ended.start && ended.end_with_padding() <= wanted.lsns.end;
            if is_wanted && lies_within && tell(ended).is_break() {
                ended_early.set(true);
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        };
        for stretch in self.way.stretches() {
            let Some(archived) = self.archived_of(stretch) else { continue };
            let from = wanted.lsns.start.max(archived.start);
            let mut at = from;
            let until = wanted.lsns.end.min(archived.end);
            while at < until {
                let window = at..until.min(at + self.window());
                for part in self.parts(stretch, &window, &times).await? {
                    let tell = |ended: &Ended| pass_on(ended, from);
                    match of_slots {
                        false => scan(self.log, stretch, &part, tell).await?,
                        true => scan_with_slots(self.log, stretch, &part, tell).await?,
                    }
                    if ended_early.get() {
                        return Ok(());
                    }
                }
                at = window.end;
            }
        }
        Ok(())
    }

    /// From the first transaction on that ended at the first of these times or later, up to the first that ended at the last one or later.
    async fn positions_of(&self, times: &Range<i64>) -> Result<Range<Lsn>> {
        let position = async |us: i64| {
            let first = first_since(self.log, &self.way, us).await?;
            Ok::<Lsn, Error>(first.map_or(self.way.end(), |first| first.start))
        };
        let start = if times.start == i64::MIN { Lsn(0) } else { position(times.start).await? };
        let end = if times.end == i64::MAX { self.way.end() } else { position(times.end).await? };
        Ok(start..end)
    }

    /// The last commit at or before a moment: what a recovery to it ends with.
    ///
    /// # Errors
    /// [`Kind::NotFound`] for a moment that the archive has not reached, or before its first commit; [`Kind::Incomplete`] if WAL is lost
    /// in which a later one may have been.
    pub async fn last(&self, moment: Moment) -> Result<Ended> {
        let until = match moment {
            Moment::Lsn(lsn) if lsn <= self.way.end() => lsn,
            Moment::Lsn(lsn) => {
                let message = format!("{lsn} lies behind the end of the archived WAL, {}", self.way.end());
                return Err(
                    Error::new(Kind::NotFound, message).hint("wait until it is archived, or name an earlier one")
                );
            }
            Moment::Time(us) => self.before_later(us).await?,
        };
        let begins = self.archived().start;
        let hole = self.holes_in(&(Lsn(0)..until)).into_iter().next_back();
        let from = hole.as_ref().map_or(begins, |hole| hole.lsns.end.max(begins)).min(until);
        if let Some(found) = self.last_within(from..until).await? {
            return Ok(found);
        }
        Err(match hole {
            None => Error::new(
                Kind::NotFound,
                format!("no commit before {until} is archived: the archive begins at {begins}"),
            )
            .hint("name a later moment"),
            Some(Hole { lsns, words, .. }) => {
                let (start, end) = (lsns.start, lsns.end);
                let message = format!(
                    "between {end} and {until} nothing was committed, and WAL from {start} to {end} is lost: {words}"
                );
                Error::new(Kind::Incomplete, message)
                    .hint("name a moment before it, or behind the first commit after it")
            }
        })
    }

    /// The position before which every transaction had ended by a time, and behind which none had.
    async fn before_later(&self, us: i64) -> Result<Lsn> {
        if let Some(later) = first_since(self.log, &self.way, us.saturating_add(1)).await? {
            return Ok(later.start);
        }
        let complete = self.complete_through().await?;
        if complete.is_some_and(|complete| us <= complete.saturating_mul(1_000)) {
            return Ok(self.way.end());
        }
        let known = complete.map_or_else(|| "an unknown time".to_owned(), time::rfc3339);
        let message = format!(
            "{} lies after the end of the archived WAL, which is complete up to {known}",
            time::rfc3339_micros(us)
        );
        Err(Error::new(Kind::NotFound, message)
            .hint("a moment that has just passed is reached once `tidelog ls` says that the log is complete up to it"))
    }

    /// The WAL that is not archived and in which commits may have been that are wanted, oldest first. Where the last commit before it is
    /// later than all that are wanted, or the first behind it earlier, nothing is missing.
    pub async fn holes(&self, wanted: &Wanted) -> Result<Vec<Hole>> {
        let mut holes = Vec::new();
        let mut from = self.archived().start;
        for hole in self.holes_in(&wanted.lsns) {
            let behind = self.first_behind(hole.lsns.end).await?;
            let before = self.last_within(from.min(hole.lsns.start)..hole.lsns.start).await?;
            let ends_before = behind.is_some_and(|behind| behind.at < wanted.times.start);
            let begins_behind = before.is_some_and(|before| before.at >= wanted.times.end);
            from = hole.lsns.end;
            if !ends_before && !begins_behind {
                holes.push(hole);
            }
        }
        Ok(holes)
    }

    /// The first commit behind a position.
    async fn first_behind(&self, from: Lsn) -> Result<Option<Ended>> {
        let mut first = None;
        let wanted = Wanted { lsns: from..Lsn(u64::MAX), times: i64::MIN..i64::MAX };
        self.each(&wanted, false, |ended| {
            first = Some(ended.clone());
            ControlFlow::Break(())
        })
        .await?;
        Ok(first)
    }

    /// The last commit between two positions, all of which is archived.
    async fn last_within(&self, lsns: Range<Lsn>) -> Result<Option<Ended>> {
        let is_wanted = |ended: &Ended| {
            let lies_within = lsns.start <= ended.start && ended.end_with_padding() <= lsns.end;
            lies_within && matches!(ended.what, What::Commit(_))
        };
        last_that(self.log, &self.way, lsns.clone(), is_wanted).await
    }

    /// The WAL between two positions, from where the archive begins, that it does not have.
    fn holes_in(&self, lsns: &Range<Lsn>) -> Vec<Hole> {
        let archived = self.archived();
        let wanted = lsns.start.max(archived.start)..lsns.end.min(archived.end);
        let lost = self.facts.gaps.iter().filter_map(|gap| {
            let lsns = self.way.part(&gap.range())?;
            let timeline = gap.partition.cast_unsigned();
            Some(Hole { timeline, lsns, words: gap.reason.words(), reason: gap.reason.name() })
        });
        // A timeline that was left, and of which the end has never come.
        let inner = self.way.stretches().split_last().map_or(&[][..], |(_, inner)| inner);
        let ends = inner.iter().filter_map(|stretch| {
            let until = self.log.range(stretch.timeline).map_or(Lsn(0), |archived| archived.end);
            let lsns = until.max(stretch.lsns.start)..stretch.lsns.end;
            let (words, reason) = ("its timeline was left and is not archived up to there", "not_archived");
            (lsns.start < lsns.end).then_some(Hole { timeline: stretch.timeline, lsns, words, reason })
        });
        let mut holes: Vec<Hole> =
            lost.chain(ends).filter(|hole| hole.lsns.start < wanted.end && wanted.start < hole.lsns.end).collect();
        holes.sort_by_key(|hole| (hole.lsns.start, hole.timeline));
        holes
    }

    /// The parts of a stretch within a window that are archived and can hold a transaction that ended at one of these times.
    async fn parts(&self, stretch: &Stretch, window: &Range<Lsn>, times: &Range<i64>) -> Result<Vec<Range<Lsn>>> {
        let timestamps = (*times != (i64::MIN..i64::MAX))
            .then(|| times.start.div_euclid(1_000)..times.end.div_euclid(1_000).saturating_add(1));
        let positions = window.start.position()..window.end.position();
        let partitions = Some(BTreeMap::from([(stretch.timeline.cast_signed(), positions)]));
        let mut ranges = self.log.chain().ranges(&Selection { timestamps: timestamps.clone(), partitions }).await?;
        ranges.retain(|range| {
            timestamps.as_ref().is_none_or(|wanted| {
                let ends = range.min_timestamp.zip(range.max_timestamp);
                ends.is_some_and(|(first, last)| first < wanted.end && wanted.start <= last)
            })
        });
        ranges.sort_by_key(|range| (range.start, range.end));
        let mut parts: Vec<Range<Lsn>> = Vec::new();
        for range in &ranges {
            let (start, end) = (Lsn::at(range.start).max(window.start), Lsn::at(range.end).min(window.end));
            match parts.last_mut().filter(|last| start <= last.end) {
                Some(last) => last.end = last.end.max(end),
                None if start < end => parts.push(start..end),
                None => {}
            }
        }
        Ok(parts)
    }

    /// What is archived of a stretch; none if nothing is.
    fn archived_of(&self, stretch: &Stretch) -> Option<Range<Lsn>> {
        let archived = self.log.range(stretch.timeline)?;
        let lsns = archived.start.max(stretch.lsns.start)..archived.end.min(stretch.lsns.end);
        (lsns.start < lsns.end).then_some(lsns)
    }

    /// How much WAL about as many ranges cover as are looked up at a time.
    fn window(&self) -> u64 {
        let totals = self.log.chain().totals();
        let each = totals.raw_bytes / totals.segments.max(1);
        each.saturating_mul(RANGES_AT_ONCE).clamp(WINDOW.start, WINDOW.end)
    }
}
