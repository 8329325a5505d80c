//! The path from a base backup to a target: one computation for all who promise it or rely on it.
//!
//! ```text
//!   timeline 1  ├──backup A──────────┬─ ─ backup B ─ ─ ─┤      the way to 3: 1 up to its switch to 2, 2 up to its
//!   timeline 2                       └──┤gap├───┬─ ─          switch to 3, 3 up to where its archive ends
//!   timeline 3                                  └──backup C──────┤
//!
//!   way to 3         A ═══════════════════╡                     A leads to the gap, C to the end, B nowhere
//!                                                   C ═══════════╡
//!   way to 1         A ══════════════════════════════╡          B leads to the end of 1, and so does A
//! ```
//!
//! In come plain facts: what is archived of each timeline, what of it is lost, where timelines left their parents, and from
//! where to where each backup needs WAL. Out come [`Reach`]es. The plan of a restore, `ls`, the metrics, retention and the
//! question whether a backup is due ask here and nowhere else, so that they cannot disagree. Nothing in here does I/O,
//! and no clock decides: which backup lies before a target is a matter of positions.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

pub use super::lines::{Lines, Taken};
use crate::segment::wal::Switch;
use crate::stream::{Gap, Lsn, MinimalWal, PartitionRange};

/// All that decides what can be recovered.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Facts {
    /// The size of a WAL file: Postgres asks for whole files.
    pub file: u64,
    /// What is archived of each timeline, gaps included. An expiry moves the beginning.
    pub archived: BTreeMap<u32, Range<Lsn>>,
    /// What is lost, and ever was: what was committed in a gap is not known, also when retention has expired it.
    pub gaps: Vec<Gap>,
    /// Where the server went on with `wal_level = minimal`: Postgres recovers nothing over it.
    pub minimal: Vec<MinimalWal>,
    /// The timelines that each one comes from, oldest first; nothing for one that came from none, and no entry where the history
    /// is not archived.
    pub histories: BTreeMap<u32, Vec<Switch>>,
    /// The base backups.
    pub backups: Vec<Taken>,
    /// A restore under way needs everything from here on, on whatever timeline.
    pub held: Option<Lsn>,
    /// The names of the backups on which others build that cannot be read now: they may be mended.
    pub parents: BTreeSet<String>,
}

/// A stretch of one timeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stretch {
    /// The timeline.
    pub timeline: u32,
    /// From where it left its parent to where the next one left it, or to where its archive ends.
    pub lsns: Range<Lsn>,
    /// Where the WAL file begins in which it left its parent: its own copy of that file has the parent's bytes before the switch.
    pub file: Lsn,
}

/// The timelines that lead to one of them, oldest first, that one last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way(Vec<Stretch>);

/// How far a base backup leads along a way: every position from `from` to `until` can be recovered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reach {
    /// The backup, as an index of [`Facts::backups`].
    pub backup: usize,
    /// Where its WAL begins.
    pub start: Lsn,
    /// The end of the backup: the database is consistent from here on.
    pub from: Lsn,
    /// Up to where the WAL after `start` is archived without a hole.
    pub until: Lsn,
    /// Why it does not lead further.
    pub limit: Limit,
}

/// What ends a [`Reach`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Limit {
    /// The archive ends there.
    End,
    /// WAL is lost.
    Gap(Gap),
    /// The server went on with `wal_level = minimal` there.
    Minimal(Lsn),
    /// A timeline of the way is not archived that far, or not from where it is needed.
    Missing {
        /// The timeline.
        timeline: u32,
        /// What of it is needed next.
        from: Lsn,
    },
}

/// A run of positions of a way that can all be recovered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// The end of the first backup that leads to it.
    pub from: Lsn,
    /// The last position.
    pub until: Lsn,
    /// Whether it goes to the end of the archive.
    pub is_open: bool,
}

/// Why there is no path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lack {
    /// Nothing of this timeline is archived.
    Timeline(u32),
    /// The history of this timeline is not archived.
    History(u32),
    /// No backup lies on the way.
    Backup,
    /// The target lies before the end of the first backup that can be used, at this position.
    TooEarly(Lsn),
    /// The target lies behind the end of the archive, at this position.
    TooLate(Lsn),
    /// Backups lie before the target, and none leads there: this one leads furthest.
    Torn(Reach),
    /// The incremental backup builds on one that is not there, or cannot be used.
    Parent {
        /// Its name.
        backup: String,
        /// The name of that one.
        parent: String,
    },
}

/// What retention lets go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expirable {
    /// The positions of the timelines before which nothing is needed.
    pub before: BTreeMap<u32, Lsn>,
    /// The backups that are not needed, as indices of [`Facts::backups`].
    pub backups: Vec<usize>,
}

impl Way {
    /// Its stretches, oldest first.
    pub fn stretches(&self) -> &[Stretch] {
        &self.0
    }

    /// The parts of the way from one position to another, as ranges of the chain's partitions.
    pub fn parts(&self, lsns: Range<Lsn>) -> BTreeMap<i32, Range<i64>> {
        let part = |stretch: &Stretch| {
            let (start, end) = (stretch.file.max(lsns.start), stretch.lsns.end.min(lsns.end));
            (start < end).then(|| (stretch.timeline.cast_signed(), start.position()..end.position()))
        };
        self.0.iter().filter_map(part).collect()
    }

    /// The timeline that it leads to.
    pub fn timeline(&self) -> u32 {
        self.0.last().map_or(0, |last| last.timeline)
    }

    /// The end of the archive on it.
    pub fn end(&self) -> Lsn {
        self.0.last().map_or(Lsn(0), |last| last.lsns.end)
    }

    /// The part of a range of a timeline that lies on the way; none if nothing does.
    pub fn part(&self, range: &PartitionRange) -> Option<Range<Lsn>> {
        let stretch = self.0.iter().find(|stretch| stretch.timeline.cast_signed() == range.partition)?;
        let part = Lsn::at(range.start).max(stretch.file)..Lsn::at(range.end).min(stretch.lsns.end);
        (part.start < part.end).then_some(part)
    }

    /// The first of these ranges, by position, with a commit later than `ms` since 1970: before its beginning there is
    /// none. Ranges tell the least and the greatest time of their commits.
    pub fn first_later<'a>(&self, ranges: impl IntoIterator<Item = &'a PartitionRange>, ms: i64) -> Option<Range<Lsn>> {
        let later = ranges.into_iter().filter(|range| range.max_timestamp.is_some_and(|last| last > ms));
        later.filter_map(|range| self.part(range)).min_by_key(|part| (part.start, part.end))
    }

    /// No commit before `until` is later than this, in ms since 1970; none where these ranges hold no commit before it.
    pub fn latest_before<'a>(&self, ranges: impl IntoIterator<Item = &'a PartitionRange>, until: Lsn) -> Option<i64> {
        let before = ranges.into_iter().filter(|range| self.part(range).is_some_and(|part| part.start < until));
        before.filter_map(|range| range.max_timestamp).max()
    }

    /// Some commit that ends at `until` or before it has this time, in ms since 1970.
    pub fn latest_within<'a>(&self, ranges: impl IntoIterator<Item = &'a PartitionRange>, until: Lsn) -> Option<i64> {
        // A range that goes on behind the switch may have its latest commit there. What one has before its timeline began are
        // the bytes of the parent.
        let within = ranges
            .into_iter()
            .filter(|range| self.part(range).is_some_and(|part| part.end <= until && part.end == Lsn::at(range.end)));
        within.filter_map(|range| range.max_timestamp).max()
    }
}

impl Reach {
    /// Whether the backup can be used: the archive has the WAL that it needs at least.
    pub fn is_usable(&self) -> bool {
        self.until >= self.from
    }

    /// Whether the WAL that it needs at least may still come.
    pub fn is_pending(&self) -> bool {
        !self.is_usable() && self.limit == Limit::End
    }

    /// Whether a position can be recovered from the backup.
    pub fn leads_to(&self, position: Lsn) -> bool {
        self.from <= position && position <= self.until
    }
}

impl Facts {
    /// The newest timeline of which something is archived: where a restore goes unless it is told otherwise.
    pub fn newest(&self) -> Option<u32> {
        self.archived.keys().next_back().copied()
    }

    /// The way that leads to the end of `timeline`.
    ///
    /// # Errors
    /// A timeline that is not archived, or not known where it comes from.
    pub fn way(&self, timeline: u32) -> Result<Way, Lack> {
        let archived = self.archived.get(&timeline).ok_or(Lack::Timeline(timeline))?;
        let history = self.histories.get(&timeline).ok_or(Lack::History(timeline))?;
        let mut stretches = Vec::with_capacity(history.len() + 1);
        let mut start = Lsn(0);
        for switch in history {
            let file = self.file_of(start);
            stretches.push(Stretch { timeline: switch.timeline, lsns: start..switch.at, file });
            start = switch.at;
        }
        stretches.push(Stretch { timeline, lsns: start..archived.end.max(start), file: self.file_of(start) });
        Ok(Way(stretches))
    }

    /// What each backup builds on.
    pub fn lines(&self) -> Lines {
        Lines::of(&self.backups)
    }

    /// A backup with those that it builds on, the full one first.
    ///
    /// # Errors
    /// [`Lack::Parent`] if one of them is not there, cannot be read, or went with an abandoned timeline. What they need of the log does
    /// not matter: a recovery begins where the last of them does.
    pub fn line(&self, index: usize) -> Result<Vec<usize>, Lack> {
        let lines = self.lines();
        match (lines.lack(index), self.backups.get(index)) {
            (None, _) => Ok(lines.of_one(index)),
            (Some(parent), backup) => Err(Lack::Parent {
                backup: backup.map(|backup| backup.name.clone()).unwrap_or_default(),
                parent: parent.to_owned(),
            }),
        }
    }

    /// Of the backups that are lost by themselves, those on which no other one builds that is not.
    pub fn unneeded(&self, lost: &BTreeSet<usize>) -> Vec<usize> {
        let is_parent =
            |index: &usize| self.backups.get(*index).is_some_and(|taken| self.parents.contains(&taken.name));
        let stay = (0..self.backups.len()).filter(|index| !lost.contains(index) || is_parent(index));
        let needed = self.lines().with_ancestors(stay);
        lost.difference(&needed).copied().collect()
    }

    /// The backup on which an incremental one builds best: the newest on the way to the newest timeline, with all that it builds on.
    /// One with bad pages is left out, for what builds on it has them too.
    pub fn base(&self) -> Option<usize> {
        let way = self.way(self.newest()?).ok()?;
        let sound = |reach: &Reach| !self.backups[reach.backup].is_damaged;
        self.on(&way).into_iter().rev().find(sound).map(|reach| reach.backup)
    }

    /// How far a backup leads along a way; none if it does not lie on it, or lacks what it builds on.
    fn reach(&self, way: &Way, index: usize, lines: &Lines) -> Option<Reach> {
        let taken = self.backups.get(index).filter(|taken| !taken.is_abandoned)?;
        let last = way.0.len().checked_sub(1)?;
        let at = |timeline: u32, lsn: Lsn| {
            let found = way.0.iter().position(|stretch| stretch.timeline == timeline)?;
            let lsns = &way.0[found].lsns;
            // What lies behind the archive's end may still come.
            (lsns.start <= lsn && (found == last || lsn <= lsns.end)).then_some(found)
        };
        let (first, ends) = (at(taken.timeline, taken.start)?, at(taken.end_timeline, taken.end)?);
        if ends < first || lines.lack(index).is_some() {
            return None;
        }
        let (until, limit) = self.follow(&way.0[first..], taken.start);
        Some(Reach { backup: index, start: taken.start, from: taken.end, until, limit })
    }

    /// Up to where these stretches are archived without a hole, from a position of the first one on.
    fn follow(&self, stretches: &[Stretch], from: Lsn) -> (Lsn, Limit) {
        let mut until = from;
        for (number, Stretch { timeline, lsns, .. }) in stretches.iter().enumerate() {
            let begins = lsns.start.max(from);
            if begins >= lsns.end && number + 1 < stretches.len() {
                // Left where it began: nothing of it is needed.
                continue;
            }
            let needed = self.file_of(begins);
            let archived = self.archived.get(timeline).cloned().unwrap_or_default();
            if archived.start > needed || (archived.end < begins && number + 1 < stretches.len()) {
                return (until, Limit::Missing { timeline: *timeline, from: needed });
            }
            if let Some((at, limit)) = self.first_barrier(*timeline, begins..lsns.end) {
                return (until.max(at), limit);
            }
            until = until.max(archived.end.min(lsns.end));
            if archived.end < lsns.end && number + 1 < stretches.len() {
                return (until, Limit::Missing { timeline: *timeline, from: archived.end });
            }
        }
        (until, Limit::End)
    }

    /// The first place of a part of a timeline over which no recovery comes, and why.
    fn first_barrier(&self, timeline: u32, lsns: Range<Lsn>) -> Option<(Lsn, Limit)> {
        let needed = self.file_of(lsns.start);
        let gaps = self.gaps.iter().filter(|gap| gap.partition == timeline.cast_signed());
        let lost = gaps.filter(|gap| Lsn::at(gap.start) < lsns.end && Lsn::at(gap.end) > needed);
        let minimal = self.minimal.iter().filter(|one| one.partition == timeline.cast_signed());
        let minimal = minimal.filter(|one| Lsn::at(one.first) < lsns.end && Lsn::at(one.last) >= lsns.start);
        let minimal = minimal.map(|one| Lsn::at(one.first).max(lsns.start)).map(|at| (at, Limit::Minimal(at)));
        let lost = lost.map(|gap| (Lsn::at(gap.start), Limit::Gap(gap.clone())));
        lost.chain(minimal).min_by_key(|(at, _)| *at)
    }

    /// Where the last hole ends that the archive has on a way before a position: what was committed there is not known.
    pub fn hole_before(&self, way: &Way, until: Lsn) -> Option<Lsn> {
        let gaps = self.gaps.iter().filter_map(|gap| way.part(&gap.range()));
        let (_, inner) = way.0.split_last()?;
        let tails = inner.iter().filter_map(|stretch| {
            let archived = self.archived.get(&stretch.timeline).map_or(Lsn(0), |archived| archived.end);
            let from = archived.max(stretch.lsns.start);
            (from < stretch.lsns.end).then_some(from..stretch.lsns.end)
        });
        gaps.chain(tails).filter(|hole| hole.start < until).map(|hole| hole.end).max()
    }

    /// Where the WAL file begins that holds a position.
    fn file_of(&self, position: Lsn) -> Lsn {
        let file = self.file.max(1);
        Lsn(position.0 / file * file)
    }

    /// The backups on a way, by where they end.
    pub fn on(&self, way: &Way) -> Vec<Reach> {
        let lines = self.lines();
        let mut found: Vec<Reach> =
            (0..self.backups.len()).filter_map(|index| self.reach(way, index, &lines)).collect();
        found.sort_by_key(|reach| (reach.from, reach.start));
        found
    }

    /// The backup from which a position of a way is recovered: the newest that leads there, for the less WAL has to be
    /// replayed, the sooner Postgres is back. With a name, that one.
    ///
    /// # Errors
    /// Why no backup leads there.
    pub fn path(&self, way: &Way, position: Lsn, name: Option<&str>) -> Result<Reach, Lack> {
        let named = |reach: &Reach| name.is_none_or(|name| self.backups[reach.backup].name == name);
        let reaches: Vec<Reach> = self.on(way).into_iter().filter(named).collect();
        if let Some(found) = self.leading(&reaches, position) {
            return Ok(found.clone());
        }
        let usable = || reaches.iter().filter(|reach| reach.is_usable());
        match (usable().next(), usable().rev().find(|reach| reach.from <= position)) {
            (None, _) => Err(reaches.into_iter().next_back().map_or_else(|| self.no_backup(name), Lack::Torn)),
            (Some(first), None) => Err(Lack::TooEarly(first.from)),
            (Some(_), Some(before)) if before.limit == Limit::End => Err(Lack::TooLate(before.until)),
            (Some(_), Some(before)) => Err(Lack::Torn(before.clone())),
        }
    }

    /// Why no backup is there, or not the one with that name.
    fn no_backup(&self, name: Option<&str>) -> Lack {
        let named = self.backups.iter().position(|taken| name == Some(&taken.name));
        named.and_then(|index| self.line(index).err()).unwrap_or(Lack::Backup)
    }

    /// The newest of these that leads to a position; a damaged one only if there is no other.
    fn leading<'a>(&self, reaches: &'a [Reach], position: Lsn) -> Option<&'a Reach> {
        let mut leading = reaches.iter().rev().filter(|reach| reach.leads_to(position));
        let newest = leading.clone().next();
        leading.find(|reach| !self.backups[reach.backup].is_damaged).or(newest)
    }

    /// Whether a backup can be used: on some way, whatever the target.
    pub fn is_usable(&self, index: usize) -> bool {
        let ways = self.archived.keys().filter_map(|timeline| self.way(*timeline).ok());
        let lines = self.lines();
        ways.filter_map(|way| self.reach(&way, index, &lines)).any(|reach| reach.is_usable())
    }

    /// The positions of a way that can be recovered, oldest first.
    pub fn spans(&self, way: &Way) -> Vec<Span> {
        let mut spans: Vec<Span> = Vec::new();
        for reach in self.on(way).iter().filter(|reach| reach.is_usable()) {
            match spans.last_mut().filter(|span| reach.from <= span.until) {
                Some(span) => span.until = span.until.max(reach.until),
                None => spans.push(Span { from: reach.from, until: reach.until, is_open: false }),
            }
            if let Some(span) = spans.last_mut() {
                span.is_open |= reach.limit == Limit::End;
            }
        }
        spans
    }

    /// How far a backup leads, and on which way: that to the newest timeline for which it can be used, or else on which it lies.
    /// None if it lies on no way that is archived.
    pub fn leads(&self, index: usize, lines: &Lines) -> Option<(Way, Reach)> {
        let ways = self.archived.keys().rev().filter_map(|timeline| self.way(*timeline).ok());
        let mut leads: Vec<(Way, Reach)> =
            ways.filter_map(|way| self.reach(&way, index, lines).map(|reach| (way, reach))).collect();
        let chosen = leads.iter().position(|(_, reach)| reach.is_usable()).unwrap_or(0);
        (chosen < leads.len()).then(|| leads.swap_remove(chosen))
    }

    /// Why a backup can never be used, as far as it lies on an archived way; none while what it needs is there or may still come.
    pub fn never_usable(&self, index: usize) -> Option<Limit> {
        let ways = self.archived.keys().filter_map(|timeline| self.way(*timeline).ok());
        let lines = self.lines();
        let reaches: Vec<Reach> = ways.filter_map(|way| self.reach(&way, index, &lines)).collect();
        let is_hopeless = |reach: &Reach| !reach.is_usable() && !reach.is_pending();
        if reaches.iter().all(is_hopeless) { reaches.into_iter().next().map(|reach| reach.limit) } else { None }
    }

    /// The newest backup that leads to the end of the newest timeline, or will once its WAL is archived: a new one is
    /// due when there is none, or when it is old.
    pub fn freshest(&self) -> Option<&Taken> {
        let way = self.way(self.newest()?).ok()?;
        let leading = self.on(&way).into_iter().rev().find(|reach| reach.limit == Limit::End)?;
        self.backups.get(leading.backup)
    }

    /// What is not needed to recover to any moment after a horizon. `horizon` says where it lies on a way: no later
    /// commit stands before that position; none where no later commit is archived at all.
    pub fn expirable(&self, horizon: impl Fn(&Way) -> Option<Lsn>) -> Expirable {
        let mut needed: BTreeMap<u32, Lsn> = BTreeMap::new();
        for (&timeline, archived) in &self.archived {
            let Ok(way) = self.way(timeline) else {
                // Nobody knows who needs it.
                need(&mut needed, timeline, archived.start);
                continue;
            };
            let is_newest = Some(timeline) == self.newest();
            let position = horizon(&way);
            // A branch on which nothing was committed since is expired; the present never is.
            let Some(position) = position.or_else(|| is_newest.then(|| way.end())) else { continue };
            self.need_from(&way, position, is_newest, &mut needed);
        }
        let mut expirable = Expirable::default();
        for (&timeline, archived) in &self.archived {
            if let Some(held) = self.held {
                need(&mut needed, timeline, self.file_of(held));
            }
            // What is held may begin behind the end of a timeline that was left: nothing of that is needed.
            let until = needed.get(&timeline).copied().unwrap_or(archived.end).min(archived.end);
            if archived.start < until {
                expirable.before.insert(timeline, until);
            }
        }
        let lost = (0..self.backups.len()).filter(|index| self.is_lost(*index, &expirable.before)).collect();
        expirable.backups = self.unneeded(&lost);
        expirable
    }

    /// Notes what has to stay so that every position of a way from one on can be recovered.
    fn need_from(&self, way: &Way, position: Lsn, is_newest: bool, needed: &mut BTreeMap<u32, Lsn>) {
        let reaches = self.on(way);
        let usable = || reaches.iter().filter(|reach| reach.is_usable());
        let leading = self.leading(&reaches, position).filter(|reach| reach.is_usable());
        // Where nothing leads to the horizon, the first backup after it does to what can be recovered then.
        let base = leading.or_else(|| usable().find(|reach| reach.from > position)).or_else(|| usable().next_back());
        let pending = reaches.iter().filter(|reach| is_newest && reach.is_pending());
        for reach in base.into_iter().chain(pending) {
            let timeline = self.backups[reach.backup].timeline;
            for stretch in way.0.iter().skip_while(|stretch| stretch.timeline != timeline) {
                need(needed, stretch.timeline, self.file_of(stretch.lsns.start.max(reach.start)));
            }
        }
        if base.is_none() {
            for stretch in &way.0 {
                need(needed, stretch.timeline, Lsn(0));
            }
        }
    }

    /// Whether a backup is of no use once what lies before these positions is expired.
    fn is_lost(&self, index: usize, before: &BTreeMap<u32, Lsn>) -> bool {
        let taken = &self.backups[index];
        // Those of abandoned timelines go by the time of that.
        let archived = self.archived.get(&taken.timeline).filter(|_| !taken.is_abandoned);
        let Some(archived) = archived else { return false };
        let begins = before.get(&taken.timeline).copied().unwrap_or(archived.start);
        self.file_of(taken.start) < begins || begins >= archived.end
    }
}

fn need(needed: &mut BTreeMap<u32, Lsn>, timeline: u32, from: Lsn) {
    let known = needed.entry(timeline).or_insert(from);
    *known = (*known).min(from);
}
