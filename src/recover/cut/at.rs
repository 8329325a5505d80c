//! A commit L to cut at, and what the archived log knows around it.

use std::collections::HashSet;

/// Which transactions had committed by E, as the log tells.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Committed {
    /// Every transaction before this one had ended by E.
    pub ended_before: u32,
    /// Those of the others that had committed.
    pub xids: HashSet<u32>,
    /// Whatever has a record before this position belongs to one that ended before. Numbers come again after 2³¹ transactions, which
    /// are days where many commit: an old event's says nothing.
    pub since: u64,
}

impl Committed {
    /// Whether a transaction of which there are change events, one of them at a position, had committed by E.
    pub fn has(&self, xid: u32, lsn: Option<u64>) -> bool {
        lsn.is_some_and(|lsn| self.is_before(lsn)) || precedes(xid, self.ended_before) || self.xids.contains(&xid)
    }

    /// Whether the transaction of a change event at this position had committed by E, whichever it is.
    pub(super) fn is_before(&self, lsn: u64) -> bool {
        lsn < self.since
    }
}

/// Whether an xid is older than another one (`TransactionIdPrecedes`: they go round).
pub(super) fn precedes(xid: u32, other: u32) -> bool {
    xid.wrapping_sub(other).cast_signed() < 0
}

/// A commit, and what is known around it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// Where its record ends: E.
    pub end: u64,
    /// Its time, in microseconds since 1970.
    pub at: i64,
    /// The time of the next commit, if there is one.
    pub next_at: Option<i64>,
    /// Where the record of the next commit begins; none if no later one is archived. Up to there, all that can be seen is L's.
    pub next_lsn: Option<u64>,
    /// What the log knows; none where it is not archived far enough back.
    pub committed: Option<Committed>,
}
