//! What lies behind an offset in the archived log, and whether a standby can decode it.
//!
//! ```text
//!   backup ends ─► file ends ─► running transactions … ─► the slot is consistent ≤ offset        (SnapBuildFindSnapshot, snapbuild.c)
//!        └─ from here on every clean-up of a catalog with a horizon at or behind the slot's first xid takes the slot away
//! ```
//!
//! Both are told by the records of the log, before anything is made. The slot's first xid lies between the next ones of the records of
//! running transactions before and behind the place where it is made; the one that is worse is taken.

use std::ops::{ControlFlow, Range};

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::manifest::found::Brief;
use crate::restore::commits::{Commits, Hole, Wanted};
use crate::segment::wal::{Cleanup, Ended, Relations, Running, SlotRecord, What};
use crate::stream::Lsn;
use crate::time;

/// All times.
const ALWAYS: Range<i64> = i64::MIN..i64::MAX;

/// A commit as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitShown {
    /// Where its record begins.
    pub lsn: Lsn,
    /// Where it ends.
    pub end: Lsn,
    /// Its transaction.
    pub xid: u32,
    /// When it was.
    pub time: String,
}

/// Commits that consumers have not seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missed {
    /// The end of the last commit that they have seen.
    pub from: Lsn,
    /// Up to where it is counted.
    pub to: Lsn,
    /// How many transactions of the connector's database were committed; some may have changed nothing that it captures.
    pub commits: u64,
    /// The first of them.
    pub first: Option<CommitShown>,
    /// The last of them.
    pub last: Option<CommitShown>,
    /// Parts of the log that the archive has not, in words.
    pub holes: Vec<String>,
}

/// Counts the commits of a database between two positions.
///
/// # Errors
/// WAL that cannot be read.
pub async fn missed(commits: &Commits<'_>, lsns: Range<Lsn>, database: u32) -> Result<Missed> {
    let wanted = Wanted { lsns: lsns.clone(), times: ALWAYS };
    let mut missed = Missed { from: lsns.start, to: lsns.end, commits: 0, first: None, last: None, holes: Vec::new() };
    let begins = commits.archived().start;
    if lsns.start < begins {
        missed.holes.push(format!("the archive begins at {begins}"));
    }
    let words = |hole: &Hole| format!("WAL from {} to {} is lost: {}", hole.lsns.start, hole.lsns.end, hole.words);
    missed.holes.extend(commits.holes(&wanted).await?.iter().map(words));
    commits
        .each(&wanted, false, |ended| {
            if let What::Commit(transaction) = &ended.what
                && transaction.database.is_none_or(|its| its == database)
            {
                let (end, time) = (ended.end_with_padding(), time::rfc3339_micros(ended.at));
                let shown = CommitShown { lsn: ended.start, end, xid: transaction.xid, time };
                missed.commits += 1;
                missed.first.get_or_insert_with(|| shown.clone());
                missed.last = Some(shown);
            }
            ControlFlow::Continue(())
        })
        .await?;
    Ok(missed)
}

/// Why an offset is perhaps none of this timeline; none where it is.
///
/// # Errors
/// WAL that cannot be read.
pub async fn elsewhere(commits: &Commits<'_>, began: Option<Lsn>, committed: Lsn) -> Result<Option<String>> {
    /// No record of a commit is as long.
    const LONGEST: u64 = 64 << 20;
    let Some(began) = began.filter(|began| *began < committed) else { return Ok(None) };
    if commits.archived().end < committed {
        // It is looked at again once the marker is archived, which lies behind it.
        return Ok(None);
    }
    let near = began.max(Lsn(committed.0.saturating_sub(LONGEST)));
    let (wanted, mut ends) = (Wanted { lsns: near..committed, times: ALWAYS }, Vec::new());
    let is_there = |ended: &Ended| matches!(ended.what, What::Commit(_)) && ended.end_with_padding() == committed;
    commits
        .each(&wanted, false, |ended| {
            ends.extend(is_there(ended).then_some(committed));
            ControlFlow::Continue(())
        })
        .await?;
    let timeline = commits.timeline();
    Ok(ends.is_empty().then(|| {
        format!(
            "its offset {committed} lies behind {began}, where timeline {timeline} began, and no commit of that ends there: it may be of the \
             timeline that was left"
        )
    }))
}

/// From where a slot is made on a standby.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Anchor {
    /// The base backup.
    pub backup: String,
    /// Where that ends: the slot is made from here on …
    pub backup_end: Lsn,
    /// … up to the end of the file.
    pub gate: Lsn,
    /// Where it decodes from, at the latest.
    pub decodes_from: Lsn,
    /// The least xid that its `catalog_xmin` can be.
    pub least_xid: u32,
}

impl Anchor {
    /// That of a server that is made up to a position, and decodes nothing before.
    pub(super) fn at(backup: String, position: Lsn) -> Self {
        Self { backup, backup_end: Lsn(0), gate: position, decodes_from: position, least_xid: 0 }
    }
}

/// Finds the oldest transaction that may have run at a position; none where the log does not tell.
///
/// # Errors
/// WAL that cannot be read.
pub async fn oldest_running(commits: &Commits<'_>, lsns: Range<Lsn>) -> Result<Option<u32>> {
    let (until, mut oldest) = (lsns.end, None);
    commits
        .each(&Wanted { lsns, times: ALWAYS }, true, |ended| {
            if let What::OfSlots(SlotRecord::Running(running)) = ended.what
                && ended.end_with_padding() <= until
            {
                oldest = Some(running.oldest_running_xid);
            }
            ControlFlow::Continue(())
        })
        .await?;
    Ok(oldest)
}

/// Finds the newest base backup from which a slot decodes before a position; none if there is none.
///
/// # Errors
/// WAL that cannot be read.
pub async fn anchor(commits: &Commits<'_>, backups: &[Brief], (until, file): (Lsn, u64)) -> Result<Option<Anchor>> {
    let is_candidate = |brief: &&Brief| {
        let taken = &brief.taken;
        taken.end < until && !taken.is_abandoned && !taken.is_damaged && taken.start >= commits.archived().start
    };
    let mut candidates: Vec<&Brief> = backups.iter().filter(is_candidate).collect();
    candidates.sort_by_key(|brief| std::cmp::Reverse(brief.taken.end));
    for brief in candidates {
        let taken = &brief.taken;
        let mut newborn = Newborn::new(taken.end, Lsn(taken.end.0.next_multiple_of(file.max(1))));
        let wanted = Wanted { lsns: taken.start..until, times: ALWAYS };
        if !commits.holes(&wanted).await?.is_empty() {
            continue;
        }
        commits.each(&wanted, true, |ended| newborn.goes_by(ended)).await?;
        if let Phase::Consistent(decodes_from) = newborn.phase {
            return Ok(Some(Anchor {
                backup: taken.name.clone(),
                backup_end: taken.end,
                gate: newborn.gate,
                decodes_from,
                least_xid: newborn.least_xid,
            }));
        }
    }
    Ok(None)
}

/// A slot that is being made, as the log decides about it.
struct Newborn {
    backup_end: Lsn,
    gate: Lsn,
    /// The next xid of the last record before it is made.
    least_xid: u32,
    /// The next xid of the first record behind the gate: records with older transactions are passed over.
    horizon: Option<u32>,
    phase: Phase,
}

/// What is known of transactions (`SnapBuildState`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Start,
    Building(u32),
    Full(u32),
    Consistent(Lsn),
}

impl Newborn {
    fn new(backup_end: Lsn, gate: Lsn) -> Self {
        Self { backup_end, gate, least_xid: 0, horizon: None, phase: Phase::Start }
    }

    fn goes_by(&mut self, ended: &Ended) -> ControlFlow<()> {
        let What::OfSlots(SlotRecord::Running(running)) = ended.what else { return ControlFlow::Continue(()) };
        let end = ended.end_with_padding();
        if end <= self.backup_end {
            self.least_xid = running.next_xid;
        }
        if end <= self.gate {
            return ControlFlow::Continue(());
        }
        let horizon = *self.horizon.get_or_insert(running.next_xid);
        self.phase = self.phase.after(&running, horizon, end);
        match self.phase {
            Phase::Consistent(_) => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    }
}

impl Phase {
    fn after(self, running: &Running, horizon: u32, end: Lsn) -> Self {
        let Running { oldest_running_xid: oldest, next_xid: next, .. } = *running;
        if precedes(oldest, horizon) {
            return self;
        }
        match self {
            _ if oldest == next => Self::Consistent(end),
            Self::Start => Self::Building(next),
            Self::Building(at) if !precedes(oldest, at) => Self::Full(next),
            Self::Full(at) if !precedes(oldest, at) => Self::Consistent(end),
            same => same,
        }
    }
}

/// Whether an xid is older than another one: they go round (`TransactionIdPrecedes`, transam.c).
fn precedes(one: u32, other: u32) -> bool {
    one.wrapping_sub(other).cast_signed() < 0
}

/// A clean-up that takes the slot away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conflict {
    /// Where it is.
    pub lsn: Lsn,
    /// The time of the last commit before it.
    pub after: Option<String>,
    /// The number of the catalog's file (`pg_relation_filenode`).
    pub relation: u32,
}

/// What would take the slot away.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conflicts {
    /// Clean-ups that are made harmless in the standby's copy of the log.
    pub harmless: u64,
    /// The first of those.
    pub first_harmless: Option<Conflict>,
    /// Others.
    pub real: u64,
    /// The first of those.
    pub first_real: Option<Conflict>,
}

/// Looks for what takes a slot away that is made there, up to a position.
///
/// # Errors
/// WAL that cannot be read.
pub async fn conflicts(
    commits: &Commits<'_>,
    anchor: &Anchor,
    until: Lsn,
    (database, harmless): (u32, &Relations),
) -> Result<Conflicts> {
    let (mut found, mut last) = (Conflicts::default(), None);
    let wanted = Wanted { lsns: anchor.backup_end..until, times: ALWAYS };
    commits
        .each(&wanted, true, |ended| {
            match &ended.what {
                What::Commit(_) => last = Some(ended.at),
                What::OfSlots(SlotRecord::Cleanup(cleanup)) if takes(cleanup, anchor.least_xid, database) => {
                    found.add(ended.start, last, cleanup, harmless);
                }
                _ => {}
            }
            ControlFlow::Continue(())
        })
        .await?;
    Ok(found)
}

/// Whether a clean-up takes a slot of a database away (`InvalidatePossiblyObsoleteSlot`, slot.c).
fn takes(cleanup: &Cleanup, catalog_xmin: u32, database: u32) -> bool {
    (cleanup.database == 0 || cleanup.database == database) && !precedes(cleanup.horizon, catalog_xmin)
}

impl Conflicts {
    fn add(&mut self, lsn: Lsn, last: Option<i64>, cleanup: &Cleanup, harmless: &Relations) {
        let conflict = || Conflict { lsn, after: last.map(time::rfc3339_micros), relation: cleanup.relation };
        let (count, first) = match harmless.contains(&(cleanup.database, cleanup.relation)) {
            true => (&mut self.harmless, &mut self.first_harmless),
            false => (&mut self.real, &mut self.first_real),
        };
        *count += 1;
        first.get_or_insert_with(conflict);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn running(at: u64, oldest: u32, next: u32) -> Ended {
        let what = What::OfSlots(SlotRecord::Running(Running {
            running: u32::from(oldest != next),
            next_xid: next,
            oldest_running_xid: oldest,
            latest_completed_xid: next.wrapping_sub(1),
            is_overflowed: false,
        }));
        Ended { start: Lsn(at), end: Lsn(at + 8), at: i64::MIN, what }
    }

    /// Where a slot decodes from that is made at 100, and its least xid.
    fn consistent(records: &[Ended]) -> (Option<Lsn>, u32) {
        let mut newborn = Newborn::new(Lsn(90), Lsn(100));
        let broke = records.iter().any(|record| newborn.goes_by(record).is_break());
        match newborn.phase {
            Phase::Consistent(at) if broke => (Some(at), newborn.least_xid),
            _ => (None, newborn.least_xid),
        }
    }

    #[test]
    fn a_slot_is_consistent_where_nothing_runs_or_when_all_that_ran_has_ended_twice() {
        let before = running(80, 40, 50);
        assert_eq!(consistent(&[before.clone(), running(200, 60, 60)]), (Some(Lsn(208)), 50));
        // Before the gate nothing counts, and while a transaction runs that is older than the slot neither.
        assert_eq!(consistent(&[before.clone(), running(88, 60, 60)]), (None, 50));
        let old = [running(200, 55, 60), running(300, 59, 70)];
        assert_eq!(consistent(&old), (None, 0));
        let late = [running(200, 60, 61), running(300, 60, 65), running(400, 65, 70), running(500, 70, 75)];
        assert_eq!(consistent(&late), (None, 0));
        let three = [
            running(200, 59, 60),
            running(300, 60, 65),
            running(400, 66, 70),
            running(500, 69, 75),
            running(600, 71, 79),
        ];
        assert_eq!(consistent(&three).0, Some(Lsn(608)));
        let round = [running(200, u32::MAX - 1, u32::MAX), running(304, 2, 2)];
        assert_eq!(consistent(&round).0, Some(Lsn(312)), "xids go round");
    }

    #[test]
    fn a_clean_up_takes_slots_of_its_database_with_an_xmin_at_or_before_its_horizon() {
        let cleanup = |database: u32, horizon: u32| Cleanup { horizon, database, relation: 1259 };
        assert!(takes(&cleanup(5, 50), 50, 5) && takes(&cleanup(0, 51), 50, 5));
        assert!(!takes(&cleanup(5, 49), 50, 5) && !takes(&cleanup(6, 60), 50, 5));
        let mut found = Conflicts::default();
        let harmless = Relations::from([(5, 2619)]);
        for (at, relation) in [(10, 2619), (20, 1259), (30, 2619), (40, 1249)] {
            found.add(Lsn(at), Some(0), &Cleanup { horizon: 60, database: 5, relation }, &harmless);
        }
        assert_eq!((found.harmless, found.real), (2, 2));
        assert_eq!(found.first_real.map(|first| (first.lsn, first.relation)), Some((Lsn(20), 1259)));
        assert_eq!(found.first_harmless.map(|first| first.lsn), Some(Lsn(10)));
    }
}
