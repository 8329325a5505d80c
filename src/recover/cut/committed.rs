//! A commit to cut at, out of the archived log.
//!
//! ```text
//!   R'  running transactions: next xid ≤ oldest of R      R  the last running transactions before E: oldest       E
//!   ├──────────────── every commit of a transaction that could be open at R, or began later ────────────────────┤
//! ```
//! A transaction that is older than the oldest one of R had ended by R. One that is not began behind R', so its commit lies there, too.

use std::ops::{ControlFlow, Range};

use super::at::{Committed, Cut, precedes};
use crate::error::Result;
use crate::restore::commits::{Commits, Moment, Wanted};
use crate::segment::wal::{Ended, Running, SlotRecord, Transaction, What};
use crate::stream::Lsn;

/// So much WAL before E is looked through at first, and each time twice as much.
const FIRST: u64 = 32 << 20;
/// No more than this: a transaction that was open all this time is judged by `sequence`.
const MOST: u64 = 16 << 30;

/// A commit, and how to cut at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The commit.
    pub commit: Ended,
    /// The cut.
    pub cut: Cut,
}

impl Found {
    /// The transaction.
    pub fn xid(&self) -> Option<u32> {
        match &self.commit.what {
            What::Commit(Transaction { xid, .. }) => Some(*xid),
            _ => None,
        }
    }

    /// The end of its commit record.
    pub fn end(&self) -> Lsn {
        Lsn(self.cut.end)
    }
}

/// Finds the last commit at or before a moment, and what the log knows around it.
///
/// # Errors
/// As [`Commits::last`], and what of the archive cannot be read.
pub async fn cut_at(commits: &Commits<'_>, moment: Moment) -> Result<Found> {
    let commit = commits.last(moment).await?;
    let end = commit.end_with_padding();
    let next = first_behind(commits, end).await?;
    let next_at = match &next {
        Some(next) => Some(next.at),
        // Whatever is committed later than the log is known has a later time.
        None => commits.complete_through().await?.map(|ms| ms.saturating_add(1).saturating_mul(1_000)),
    };
    let next_lsn = match &next {
        Some(next) => Some(next_lsn(commits, end, next).await?.0),
        None => None,
    };
    let committed = committed_by(commits, end).await?;
    let cut = Cut { end: end.0, at: commit.at, next_at, next_lsn, committed };
    Ok(Found { commit, cut })
}

/// The first commit behind a position.
async fn first_behind(commits: &Commits<'_>, from: Lsn) -> Result<Option<Ended>> {
    let mut first = None;
    let wanted = Wanted { lsns: from..Lsn(u64::MAX), times: i64::MIN..i64::MAX };
    let tell = |ended: &Ended| {
        first = Some(ended.clone());
        ControlFlow::Break(())
    };
    commits.each(&wanted, false, tell).await?;
    Ok(first)
}

/// The position up to which nothing was committed behind `end`: where a hole lies before the next commit, `end` itself.
async fn next_lsn(commits: &Commits<'_>, end: Lsn, next: &Ended) -> Result<Lsn> {
    let between = Wanted { lsns: end..next.start, times: i64::MIN..i64::MAX };
    Ok(if commits.holes(&between).await?.is_empty() { next.start } else { end })
}

/// Which transactions had committed by `end`; none where the log does not reach far enough back, or has a hole there.
async fn committed_by(commits: &Commits<'_>, end: Lsn) -> Result<Option<Committed>> {
    let begins = commits.archived().start;
    let mut back = FIRST;
    loop {
        let from = Lsn(end.0.saturating_sub(back)).max(begins);
        let wanted = Wanted { lsns: from..end, times: i64::MIN..i64::MAX };
        let mut log = Log::default();
        commits.each(&wanted, true, |ended| log.take(ended)).await?;
        if let Some((since, committed)) = log.committed() {
            let within = Wanted { lsns: since..end, ..wanted };
            return Ok(commits.holes(&within).await?.is_empty().then_some(committed));
        }
        if from == begins || back >= MOST {
            return Ok(None);
        }
        back *= 2;
    }
}

/// What a part of the log tells.
#[derive(Debug, Default)]
struct Log {
    commits: Vec<(Lsn, u32)>,
    running: Vec<(Lsn, Running)>,
}

impl Log {
    fn take(&mut self, ended: &Ended) -> ControlFlow<()> {
        match &ended.what {
            What::Commit(Transaction { xid, .. }) => self.commits.push((ended.start, *xid)),
            What::OfSlots(SlotRecord::Running(running)) => self.running.push((ended.start, *running)),
            _ => {}
        }
        ControlFlow::Continue(())
    }

    /// What had committed by its end, and from where on it tells so.
    fn committed(&self) -> Option<(Lsn, Committed)> {
        let (_, last) = self.running.last()?;
        let oldest = last.oldest_running_xid;
        let (since, _) = self.running.iter().rev().find(|(_, earlier)| !precedes(oldest, earlier.next_xid))?;
        let behind: Range<Lsn> = *since..Lsn(u64::MAX);
        let xids = self.commits.iter().filter(|(at, _)| behind.contains(at)).map(|(_, xid)| *xid).collect();
        Some((*since, Committed { ended_before: oldest, xids, since: since.0 }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn running(next_xid: u32, oldest_running_xid: u32) -> Running {
        let latest_completed_xid = next_xid - 1;
        Running { running: 0, next_xid, oldest_running_xid, latest_completed_xid, is_overflowed: false }
    }

    #[test]
    fn commits_count_from_before_the_oldest_transaction_that_was_open() {
        let mut log = Log {
            commits: vec![(Lsn(5), 90), (Lsn(15), 101), (Lsn(25), 103), (Lsn(45), 100)],
            running: vec![(Lsn(30), running(104, 100)), (Lsn(40), running(104, 100))],
        };
        assert_eq!(log.committed(), None, "100 was open already");
        log.running.insert(0, (Lsn(10), running(100, 100)));
        let (since, committed) = log.committed().expect("100 had not begun");
        assert_eq!(since, Lsn(10));
        assert_eq!(committed, Committed { ended_before: 100, xids: [101, 103, 100].into(), since: 10 });
        assert!(committed.has(90, Some(12)) && committed.has(103, Some(12)) && !committed.has(102, Some(12)));
        // A number from three thousand million transactions ago.
        assert!(committed.has(1_300_000_000, Some(9)) && !committed.has(1_300_000_000, Some(10)));
    }

    #[test]
    fn a_quiet_log_needs_one_record_alone() {
        let log = Log { commits: vec![(Lsn(5), 90)], running: vec![(Lsn(10), running(100, 100))] };
        let (_, committed) = log.committed().expect("nothing was open");
        assert!(committed.has(90, None) && !committed.has(100, None));
    }
}
