//! A Postgres system, its archive, and a model that knows every byte of both.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::super::*;
use crate::manifest::abandon;
use crate::manifest::backups::{self, Backup, Parent, Part};
use crate::manifest::found;
use crate::manifest::holds::Held;
use crate::manifest::known::Known;
use crate::manifest::path::{Facts, Taken, Way};
use crate::manifest::recoverable;
use crate::store::layout;
use crate::stream::{Lsn, MinimalWal, System};

/// The backup that a plan by times takes: the last that was finished by then.
fn finished_before(facts: &Facts, way: &Way, ms: i64) -> Option<path::Reach> {
    let finished = |reach: &path::Reach| facts.backups[reach.backup].finished;
    let before = facts.on(way).into_iter().filter(|reach| finished(reach).timestamp_millis() <= ms);
    before.max_by_key(finished)
}

/// A unit of WAL; eight of them are a file.
const UNIT: u64 = 128 << 10;
const FILE: u64 = 8;

#[derive(Debug, Clone)]
pub(super) enum Step {
    /// WAL is written, with a commit at the end of each piece; the clock goes on meanwhile, in ms.
    Write(Vec<(u64, i64)>),
    /// The server goes on with `wal_level = minimal`, and right back.
    Minimal,
    /// What was written is archived.
    Archive,
    /// The server has removed what was not archived of files before the present one.
    Lose,
    /// A backup, that far back, with that much WAL written meanwhile, by a clock that is wrong by so many ms; an incremental one builds
    /// on some other one.
    BackUp { back: u64, length: u64, skew: i64, on: Option<usize> },
    /// One of the backups cannot be read any more.
    Damage(usize),
    /// The server goes on from an earlier place of some timeline, on a new one.
    Promote { timeline: usize, back: u64 },
    /// Retention, with a window of so many ms.
    Expire(i64),
    /// The newest timeline was a mistake: the server goes on where it came from, and its number is free.
    Abandon,
}

/// A commit: where its record begins and ends, and when it was, in ms since 1970.
#[derive(Debug, Clone, Copy)]
struct Commit {
    start: u64,
    end: u64,
    at: i64,
    /// Whether it was ever archived, on the timeline at hand.
    seen: bool,
}

/// One timeline as it really is.
#[derive(Debug, Default)]
struct Line {
    switches: Vec<(u32, u64)>,
    written: u64,
    commits: Vec<Commit>,
    /// The units that the archive has.
    bytes: BTreeSet<u64>,
    /// How many of the commits are archived.
    reported: usize,
    /// Where records begin that say `wal_level = minimal`.
    minimal: BTreeSet<u64>,
    /// The first and the last of them in each segment that is archived.
    barriers: Vec<(u64, u64)>,
}

/// Who computes for himself, as it was before there was one path: by the time at which a backup was finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Alone {
    Nobody,
    Retention,
    Listing,
    /// To whom a timeline that has the number of an abandoned one is that one.
    Abandoned,
    /// To whom an incremental backup is one like any other.
    Parents,
    /// To whom WAL of `wal_level = minimal` is WAL like any other.
    Minimal,
    Plan,
    Metrics,
    /// The question whether a backup is due.
    Due,
}

pub(super) struct World {
    store: Store,
    chain: Chain,
    alone: Alone,
    lines: BTreeMap<u32, Line>,
    now: u32,
    pub(super) clock: i64,
    backups: Vec<Backup>,
    /// Those that cannot be read.
    damaged: Vec<Backup>,
    /// What a service knows of them, which looks again and again.
    known: Known,
    count: u64,
}

fn lsn(units: u64) -> Lsn {
    Lsn(units * UNIT)
}

fn file_of(units: u64) -> u64 {
    units / FILE * FILE
}

impl World {
    pub(super) async fn new(alone: Alone) -> Self {
        let store = faultless().store();
        let system = System { system_id: 7, wal_segment_size: (UNIT * FILE) as u32, server_version: 15 };
        let stream = StreamId::Postgres { system_id: 7 };
        let chain = Chain::begin(&store, &stream, Begin::Postgres(system), "w", at(0)).await.unwrap();
        let line = Line { written: FILE, ..Line::default() };
        let clock = 1_800_000_000_000;
        let (backups, damaged) = (Vec::new(), Vec::new());
        let known = Known::default();
        Self { store, chain, alone, lines: [(1, line)].into(), now: 1, clock, backups, damaged, known, count: 0 }
    }

    fn line(&mut self) -> &mut Line {
        self.lines.get_mut(&self.now).unwrap()
    }

    /// Where the archive of the present timeline goes on.
    fn archived(&self) -> u64 {
        let begins = self.lines[&self.now].switches.last().map_or(FILE, |(_, switch)| file_of(*switch));
        let position = self.chain.position(self.now.cast_signed());
        position.map_or(begins, |position| position.end.cast_unsigned() / UNIT)
    }

    pub(super) async fn take(&mut self, step: &Step) {
        match step {
            Step::Write(pieces) => {
                for (length, ms) in pieces {
                    self.clock += ms;
                    let at = self.clock;
                    let line = self.line();
                    let (start, end) = (line.written + length - 1, line.written + length);
                    line.commits.push(Commit { start, end, at, seen: false });
                    line.written = end;
                }
            }
            Step::Minimal => {
                let line = self.line();
                line.minimal.insert(line.written);
                line.written += 1;
            }
            Step::Archive => self.archive().await,
            Step::Lose => {
                let (from, until) = (self.archived(), file_of(self.lines[&self.now].written));
                if from < until {
                    let range = gap(self.now.cast_signed(), lsn(from).position(), lsn(until).position());
                    let generation = self.chain.generation(range.partition);
                    let lost = Gap { reason: GapReason::ServerRemovedWal, generation, ..range };
                    let change = Change { gaps: vec![lost], ..Change::default() };
                    committed(&mut self.chain, &change, "w").await;
                    let line = self.line();
                    line.reported = line.commits.iter().filter(|commit| commit.end <= until).count().max(line.reported);
                }
            }
            Step::BackUp { back, length, skew, on } => self.back_up(*back, *length, *skew, *on).await,
            Step::Damage(which) if !self.backups.is_empty() => {
                let backup = self.backups.remove(which % self.backups.len());
                let commit = layout::backup_commit(7, &backup.name);
                self.store.put(&commit, b"damage".to_vec().into()).await.unwrap();
                self.damaged.push(backup);
            }
            Step::Damage(_) => {}
            Step::Promote { timeline, back } => self.promote(*timeline, *back).await,
            Step::Expire(ms) => self.expire(self.clock - ms).await,
            Step::Abandon => self.abandon().await,
        }
    }

    async fn archive(&mut self) {
        let (from, until) = (self.archived(), self.lines[&self.now].written);
        if from >= until {
            return;
        }
        self.count += 1;
        let object = format!("{}", self.count);
        let partition = self.now.cast_signed();
        let line = self.line();
        let commits: Vec<i64> = line.commits[line.reported..].iter().map(|commit| commit.at).collect();
        let reported = line.reported;
        line.commits[reported..].iter_mut().for_each(|commit| commit.seen = true);
        line.reported = line.commits.len();
        line.bytes.extend(from..until);
        let mut minimal = line.minimal.range(from..until).copied();
        let minimal = minimal.next().map(|first| (first, minimal.next_back().unwrap_or(first)));
        line.barriers.extend(minimal);
        let range = PartitionRange {
            partition,
            start: lsn(from).position(),
            end: lsn(until).position(),
            records: commits.len() as u64,
            min_timestamp: commits.iter().min().copied(),
            max_timestamp: commits.iter().max().copied(),
        };
        let generation = self.chain.generation(partition);
        let minimal = minimal.map(|(first, last)| MinimalWal {
            partition,
            first: lsn(first).position(),
            last: lsn(last).position(),
        });
        let of = SegmentRef { format: Format::Wal, generation, minimal, ..segment(&object, vec![range]) };
        committed(&mut self.chain, &Change { segments: vec![of], ..Change::default() }, "w").await;
    }

    async fn back_up(&mut self, back: u64, length: u64, skew: i64, on: Option<usize>) {
        let parent = on
            .and_then(|on| self.backups.iter().rev().nth(on))
            .map(|parent| parent.name.clone())
            .map(|name| Parent { sha256: self.chain.backups().unwrap()[&name].sha256.clone(), name });
        let began = self.lines[&self.now].switches.last().map_or(FILE, |(_, switch)| *switch);
        let start = self.lines[&self.now].written.saturating_sub(back).max(began);
        self.line().written += length;
        let end = self.lines[&self.now].written;
        self.count += 1;
        let time = DateTime::from_timestamp_millis(self.clock + skew).unwrap();
        let system = *self.chain.begin_facts().system().unwrap();
        let object =
            layout::backup_part(system.system_id, &format!("b{}", self.count), "backup_manifest.zst").to_string();
        let part = Part { object, bytes: 0, stored_bytes: 0, sha256: String::new() };
        let backup = Backup {
            format: backups::BACKUP_FORMAT,
            name: format!("b{}", self.count),
            label: String::new(),
            system,
            timeline: self.now,
            start: lsn(start),
            end: lsn(end),
            end_timeline: self.now,
            started: time,
            finished: time,
            is_read_back: true,
            damaged: Vec::new(),
            checksums: None,
            parent,
            archives: Vec::new(),
            manifest: part,
        };
        let hash = backups::commit(&self.store, &backup).await.unwrap();
        let generation = self.chain.generation(self.now.cast_signed());
        self.chain.enter(&backup, &hash, [generation, generation], ("b", at(2))).await.unwrap();
        self.backups.push(backup);
    }

    async fn promote(&mut self, timeline: usize, back: u64) {
        let parent = (timeline as u32 % self.lines.len() as u32) + 1;
        let begins = self.lines[&parent].switches.last().map_or(FILE, |(_, switch)| *switch);
        let switch = self.lines[&parent].written.saturating_sub(back).max(begins);
        let switches = [&self.lines[&parent].switches[..], &[(parent, switch)]].concat();
        let text: String = switches.iter().map(|(line, at)| format!("{line}\t{}\tno reason\n", lsn(*at))).collect();
        let new = self.lines.len() as u32 + 1;
        let key = layout::history(7, new, self.chain.generation(new.cast_signed()));
        self.store.create(&key, text.into_bytes().into()).await.unwrap();
        // Its first file begins with a copy of what the parent has there.
        let shared = self.lines[&parent].commits.iter();
        let shared = shared.filter(|commit| commit.start >= file_of(switch) && commit.end <= switch);
        let commits = shared.map(|commit| Commit { seen: false, ..*commit }).collect();
        let minimal = self.lines[&parent].minimal.range(file_of(switch)..switch).copied().collect();
        let line = Line { switches, written: switch, commits, minimal, ..Line::default() };
        self.lines.insert(new, line);
        self.now = new;
    }

    async fn abandon(&mut self) {
        let newest = self.lines.len() as u32;
        let Some((parent, _)) = self.lines[&newest].switches.last().copied() else { return };
        abandon::abandon(&self.store, &mut self.chain, (newest, true), "a").await.unwrap();
        self.lines.remove(&newest);
        self.backups.retain(|backup| backup.timeline != newest);
        self.now = if self.now == newest { parent } else { self.now };
    }

    /// The way to a timeline, as it really is.
    fn stretches(&self, timeline: u32, end: u64) -> Vec<(u32, u64, u64)> {
        let mut start = 0;
        let mut stretches = Vec::new();
        for (parent, switch) in &self.lines[&timeline].switches {
            stretches.push((*parent, start, *switch));
            start = *switch;
        }
        stretches.push((timeline, start, end.max(start)));
        stretches
    }

    /// Whether every byte from a backup to a position is there.
    fn leads(&self, backup: &Backup, stretches: &[(u32, u64, u64)], position: u64) -> bool {
        let (start, end) = (backup.start.0 / UNIT, backup.end.0 / UNIT);
        let last = stretches.len() - 1;
        let on = stretches.iter().enumerate().position(|(number, (timeline, from, until))| {
            *timeline == backup.timeline && *from <= start && (number == last || end <= *until)
        });
        let Some(first) = on.filter(|_| end <= position) else { return false };
        stretches[first..].iter().enumerate().all(|(number, (timeline, from, until))| {
            let begins = if number == 0 { start } else { *from };
            let needed = file_of(begins)..position.min(*until);
            let stops = |(first, last): &(u64, u64)| {
                *first < *until && *last >= begins && position.min(*until) > begins.max(*first)
            };
            // A timeline that was left where it began has given nothing to the next one.
            let is_nothing = first + number < last && begins >= *until;
            is_nothing
                || (number > 0 && begins >= position)
                || (needed.clone().all(|unit| self.lines[timeline].bytes.contains(&unit))
                    && !self.lines[timeline].barriers.iter().any(stops))
        })
    }

    /// The backups there are.
    fn leading(&self, timeline: u32, end: u64, position: u64) -> Vec<&Backup> {
        let stretches = self.stretches(timeline, end);
        let is_whole = |backup: &Backup| {
            let mut at = Some(backup);
            while let Some(parent) = at.and_then(|backup| backup.parent.as_ref()) {
                at = self.backups.iter().find(|backup| backup.name == parent.name);
            }
            at.is_some()
        };
        self.backups.iter().filter(|backup| is_whole(backup) && self.leads(backup, &stretches, position)).collect()
    }

    /// The first commit on a way that was archived or expired, later than a time in ms.
    fn first_later(&self, way: &Way, ms: i64) -> Option<u64> {
        let mut found = Vec::new();
        for stretch in way.stretches() {
            let line = &self.lines[&stretch.timeline];
            let seen = line.commits.iter().filter(|commit| commit.seen && commit.at > ms);
            let on = seen.filter(|commit| stretch.file <= lsn(commit.start) && lsn(commit.end) <= stretch.lsns.end);
            found.extend(on.map(|commit| commit.start));
        }
        found.into_iter().min()
    }

    async fn facts(&self) -> Facts {
        let found = found::backups(&self.store, 7, self.chain.backups()).await.unwrap().sound;
        let mut facts = recoverable::facts(&self.store, &self.chain, &found).await.unwrap();
        if self.alone == Alone::Abandoned {
            facts.backups.iter_mut().for_each(|taken| taken.is_abandoned = false);
        }
        if self.alone == Alone::Parents {
            facts.backups.iter_mut().for_each(|taken| taken.parent = None);
        }
        if self.alone == Alone::Minimal {
            facts.minimal.clear();
        }
        facts
    }

    /// What a plan for a time comes to, as `restore::plan` makes it.
    async fn plan(&self, facts: &Facts, way: &Way, (ms, name): (i64, Option<&str>)) -> Option<(Lsn, path::Reach)> {
        let position = lsn(self.first_later(way, ms)?);
        let reach = match (self.alone, name) {
            (Alone::Plan, None) => finished_before(facts, way, ms)?,
            _ => facts.path(way, position, name).ok()?,
        };
        let known = recoverable::known_after(&self.chain, facts, way, reach.from).await.unwrap();
        known.filter(|known| ms > *known).map(|_| (position, reach))
    }

    /// What comes back by a plan is what was committed by then.
    fn check_result(&self, way: &Way, ms: i64, (position, reach): &(Lsn, path::Reach)) -> Result<(), TestCaseError> {
        for stretch in way.stretches() {
            for commit in &self.lines[&stretch.timeline].commits {
                let on = stretch.lsns.start <= lsn(commit.start) && lsn(commit.end) <= stretch.lsns.end;
                let within = lsn(commit.end) <= *position;
                prop_assert!(!on || !within || commit.at <= ms, "{commit:?} comes back at {ms}");
                prop_assert!(!on || lsn(commit.end) > reach.from || within, "{commit:?} is in the backup only");
                prop_assert!(!on || within || commit.at > ms || lsn(commit.start) >= *position, "{commit:?} is lost");
            }
        }
        Ok(())
    }

    /// What is promised of positions is so, and all that is so is promised.
    pub(super) async fn check_positions(&self) -> Result<(), TestCaseError> {
        let facts = self.facts().await;
        for (&timeline, archived) in &facts.archived {
            let way = facts.way(timeline).expect("its history is archived");
            let end = archived.end.0 / UNIT;
            for position in 0..=way.end().0 / UNIT {
                let (said, is) = (facts.path(&way, lsn(position), None), self.leading(timeline, end, position));
                prop_assert_eq!(said.is_ok(), !is.is_empty(), "timeline {}, {}: {:?}", timeline, lsn(position), said);
                if let Ok(reach) = said {
                    let name = &facts.backups[reach.backup].name;
                    prop_assert!(is.iter().any(|backup| backup.name == *name), "{name} does not lead there");
                    prop_assert!(is.iter().all(|backup| backup.end <= reach.from), "a newer one leads there");
                }
                let in_span = facts.spans(&way).iter().any(|span| (span.from..=span.until).contains(&lsn(position)));
                prop_assert_eq!(in_span, !is.is_empty(), "timeline {}, {}: a span", timeline, lsn(position));
            }
        }
        let leads = facts.newest().is_some_and(|newest| {
            let end = facts.archived[&newest].end.0 / UNIT;
            let end = end.max(self.stretches(newest, end).last().unwrap().1);
            // A branch that was expired while the server was on another one, which was abandoned then: a backup leads to where it
            // begins, and to nothing that comes of it.
            let is_expired = self.chain.position(newest.cast_signed()).is_some_and(|at| at.start == at.end);
            !is_expired && !self.leading(newest, end, end).is_empty()
        });
        prop_assert!(!leads || facts.freshest().is_some(), "a backup is due although one leads to the end");
        self.check_due(&facts)
    }

    /// The backup for the sake of which none is due leads as far as the archive goes.
    fn check_due(&self, facts: &Facts) -> Result<(), TestCaseError> {
        let freshest = match self.alone {
            Alone::Due => facts.backups.iter().max_by_key(|taken| taken.finished),
            _ => facts.freshest(),
        };
        let (Some(freshest), Some(newest)) = (freshest, facts.newest()) else { return Ok(()) };
        let found = self.backups.iter().find(|backup| backup.name == freshest.name);
        prop_assert!(found.is_some(), "none is due for the sake of {}, which is of no use", freshest.name);
        let end = facts.archived[&newest].end.0 / UNIT;
        // What it needs behind the end of the archive will come.
        let so_far = found.map(|backup| Backup { end: backup.end.min(lsn(end)), ..backup.clone() });
        let leads = |backup: &Backup| self.leads(backup, &self.stretches(newest, end), end);
        let is_so = so_far.is_some_and(|backup| backup.start.0 / UNIT >= end || leads(&backup));
        prop_assert!(is_so, "none is due for the sake of {}, which does not lead to the end", freshest.name);
        Ok(())
    }

    /// The metrics and the page say what `ls` says, although a service reads each backup but once.
    async fn check_metrics(&mut self, facts: &Facts) -> Result<(), TestCaseError> {
        self.known.look(&self.store, 7, self.chain.backups()).await.unwrap();
        let mut known = recoverable::facts_with(&self.store, &self.chain, self.known.taken()).await.unwrap();
        match self.alone {
            Alone::Abandoned => known.backups.iter_mut().for_each(|taken| taken.is_abandoned = false),
            Alone::Parents => known.backups.iter_mut().for_each(|taken| taken.parent = None),
            Alone::Minimal => known.minimal.clear(),
            _ => {}
        }
        let mut shown = recoverable::windows(&self.store, &self.chain, &known).await.unwrap();
        if self.alone == Alone::Metrics
            && let (Some(first), Some(oldest)) = (shown.first_mut(), known.backups.first())
        {
            first.from = oldest.finished;
        }
        let listed = recoverable::windows(&self.store, &self.chain, facts).await.unwrap();
        prop_assert_eq!(shown, listed, "the metrics say something else than ls");
        prop_assert_eq!(known.freshest(), facts.freshest(), "the metrics tell of another backup");
        Ok(())
    }

    /// What `ls` claims, a plan accepts, and what comes back is what was committed by then.
    pub(super) async fn check_claims(&mut self) -> Result<(), TestCaseError> {
        let facts = self.facts().await;
        self.check_metrics(&facts).await?;
        for window in recoverable::windows(&self.store, &self.chain, &facts).await.unwrap() {
            let (mut from, to) = (window.from.timestamp_millis(), window.to.timestamp_millis());
            if self.alone == Alone::Listing {
                from = facts.backups.iter().map(|backup| backup.finished.timestamp_millis()).min().unwrap_or(from);
            }
            let way = facts.way(window.timeline).expect("ls follows it");
            for ms in (from..=to).take(60).chain([to, from + (to - from) / 2]) {
                match self.plan(&facts, &way, (ms, None)).await {
                    Some(plan) => self.check_result(&way, ms, &plan)?,
                    None => prop_assert!(false, "ls claims {from} to {to}, and a plan for {ms} is refused"),
                }
            }
        }
        self.check_list(&facts).await
    }

    /// What is said of one backup, a plan from that backup accepts.
    async fn check_list(&self, facts: &Facts) -> Result<(), TestCaseError> {
        for (index, taken) in facts.backups.iter().enumerate() {
            let Some(leads) = facts.leads(index, &facts.lines()) else { continue };
            prop_assert_eq!(leads.1.is_usable(), facts.is_usable(index), "{} on the way that is told", taken.name);
            let Some(window) = recoverable::window_from(&self.store, &self.chain, facts, &leads).await.unwrap() else {
                continue;
            };
            let (from, to) = (window.from.timestamp_millis(), window.to.timestamp_millis());
            for ms in [from, to, from + (to - from) / 2] {
                match self.plan(facts, &leads.0, (ms, Some(&taken.name))).await {
                    Some(plan) => self.check_result(&leads.0, ms, &plan)?,
                    None => prop_assert!(false, "{} is said to reach {from} to {to}, and not {ms}", taken.name),
                }
            }
        }
        Ok(())
    }

    /// Expires what is older; whatever a plan accepted of the window, it accepts afterwards.
    async fn expire(&mut self, horizon: i64) {
        let before = DateTime::from_timestamp_millis(horizon).unwrap();
        let expirable = match self.alone {
            Alone::Retention => self.newest_before(before),
            _ => {
                let taken = self.backups.iter().map(Taken::of).collect();
                recoverable::expirable(&self.store, &self.chain, taken, before, &Held::default()).await.unwrap()
            }
        };
        self.chain.expire(&expirable.before, "e", at(2)).await.unwrap();
        let gone = self.chain.expire_backups(&expirable.backups, "e", at(2)).await.unwrap();
        for backup in &gone {
            backups::remove(&self.store, 7, backup).await.unwrap();
        }
        self.backups.retain(|backup| !gone.contains(&backup.name));
        for (timeline, line) in &mut self.lines {
            let start =
                self.chain.position(timeline.cast_signed()).map_or(0, |position| position.start.cast_unsigned());
            line.bytes.retain(|unit| lsn(*unit) >= Lsn(start));
            line.barriers.retain(|(_, last)| lsn(*last) >= Lsn(start));
        }
    }

    /// Whatever builds on another one, damaged or not, finds it: once it is mended it can be restored.
    pub(super) async fn check_parents(&self) -> Result<(), TestCaseError> {
        for backup in self.damaged.iter().chain(&self.backups) {
            let Some(parent) = &backup.parent else { continue };
            let is_there = self.store.size(&layout::backup_commit(7, &parent.name)).await.unwrap().is_some();
            prop_assert!(is_there, "{} builds on {}, which was expired", backup.name, parent.name);
        }
        Ok(())
    }

    /// What retention that looks for no path expires: everything before the newest backup that was finished in time.
    fn newest_before(&self, horizon: DateTime<Utc>) -> recoverable::Expirable {
        let mut expirable = recoverable::Expirable::default();
        let usable = self.backups.iter().filter(|backup| {
            let position = self.chain.position(backup.timeline.cast_signed());
            position.is_some_and(|at| at.start <= backup.start.position() && at.end >= backup.end.position())
        });
        let oldest = usable.filter(|backup| backup.finished <= horizon).max_by_key(|backup| backup.finished);
        let Some(oldest) = oldest else { return expirable };
        for position in self.chain.positions() {
            let until = match position.partition.cmp(&oldest.timeline.cast_signed()) {
                std::cmp::Ordering::Less => position.end,
                std::cmp::Ordering::Equal => lsn(file_of(oldest.start.0 / UNIT)).position(),
                std::cmp::Ordering::Greater => continue,
            };
            expirable.before.extend((position.start < until).then_some((position.partition, until)));
        }
        let older = self.backups.iter().filter(|backup| backup.finished < oldest.finished);
        expirable.backups = older.map(|backup| backup.name.clone()).collect();
        expirable
    }

    /// What a plan accepts of the time from a horizon on: by timeline and ms, and the present.
    pub(super) async fn accepted(&self, horizon: i64) -> Result<BTreeSet<(u32, i64)>, TestCaseError> {
        let facts = self.facts().await;
        let mut accepted = BTreeSet::new();
        for way in facts.archived.keys().filter_map(|timeline| facts.way(*timeline).ok()) {
            for ms in horizon..=self.clock {
                if let Some(plan) = self.plan(&facts, &way, (ms, None)).await {
                    self.check_result(&way, ms, &plan)?;
                    accepted.insert((way.timeline(), ms));
                }
            }
            let is_present = facts.newest() == Some(way.timeline());
            if is_present && facts.path(&way, way.end(), None).is_ok() {
                accepted.insert((way.timeline(), i64::MAX));
            }
        }
        Ok(accepted)
    }
}
