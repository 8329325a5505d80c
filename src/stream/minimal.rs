//! WAL over which Postgres recovers nothing: the server went on with `wal_level = minimal`, and so it logged too little.
//!
//! ```text
//!   WAL   ├── replica ──┤ record of the change │── minimal ──┤ record of the change │── replica ──►
//!                       first ... last: such records within one segment
//! ```
//!
//! The record is `XLOG_PARAMETER_CHANGE` (`XLogReportParameters`, xlog.c). A recovery that comes to it ends, or, in PostgreSQL 13, warns
//! that data may be missing (`CheckRequiredParameterValues`). The WAL is archived all the same: a gap would say that it is not.

use serde::{Deserialize, Serialize};

/// So many of a timeline are told apart. Beyond that the two that lie next to each other become one, between which nothing can
/// be recovered either: whoever may write WAL could make a snapshot grow without end.
const MOST_APART: usize = 64;

/// Where a timeline went on with `wal_level = minimal`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MinimalWal {
    /// The timeline.
    pub partition: i32,
    /// Where the first record begins that says so.
    pub first: i64,
    /// Where the last one begins.
    pub last: i64,
}

/// Adds another one to those of a chain, which are ordered by timeline and position.
pub(super) fn add(known: &mut Vec<MinimalWal>, added: MinimalWal) {
    let at = known.partition_point(|before| (before.partition, before.first) < (added.partition, added.first));
    known.insert(at, added);
    let of_it = known.partition_point(|before| before.partition < added.partition)
        ..known.partition_point(|before| before.partition <= added.partition);
    if of_it.len() > MOST_APART
        && let Some(nearest) =
            (of_it.start..of_it.end - 1).min_by_key(|at| known[at + 1].first.saturating_sub(known[*at].last))
    {
        known[nearest].last = known[nearest].last.max(known[nearest + 1].last);
        known.remove(nearest + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(partition: i32, first: i64, last: i64) -> MinimalWal {
        MinimalWal { partition, first, last }
    }

    #[test]
    fn they_are_in_order_and_the_nearest_become_one_when_there_are_too_many() {
        let mut known = Vec::new();
        add(&mut known, at(2, 5, 6));
        add(&mut known, at(1, 70, 70));
        add(&mut known, at(1, 10, 20));
        assert_eq!(known, [at(1, 10, 20), at(1, 70, 70), at(2, 5, 6)]);
        for more in 0..1_000 {
            add(&mut known, at(1, 1_000 + 100 * more, 1_000 + 100 * more));
        }
        let (one, other): (Vec<_>, Vec<_>) = known.iter().partition(|one| one.partition == 1);
        assert_eq!((one.len(), other), (MOST_APART, vec![at(2, 5, 6)]));
        let is_within = |position: i64| one.iter().any(|one| (one.first..=one.last).contains(&position));
        assert!((0..1_000).all(|more| is_within(1_000 + 100 * more)) && is_within(15) && is_within(70));
        assert!(one.is_sorted_by_key(|one| one.first) && !is_within(5));
    }

    #[test]
    fn positions_at_both_ends_overflow_nothing() {
        let mut known = Vec::new();
        for more in 0..100 {
            add(&mut known, at(1, i64::MIN + more, i64::MAX - more));
        }
        assert_eq!(known.len(), MOST_APART);
    }
}
