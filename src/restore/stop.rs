//! Where Postgres is told to stop, so that nothing comes back that was archived after the plan was made.
//!
//! ```text
//!   --to-lsn L    ──┬─ record ─┬─ record ─┬─ rec-L-ord ─┬──    after the last record that is whole at L
//!                              └ recovery_target_lsn, inclusive; with --exclusive the one that ends at L stays out, too
//!   --to-time T   ── commit ≤ T ─┬─ … ── commit > T ──         after the last transaction before the first one after T
//!                 ── commit ≤ T ── … ──┴─ end                  none is archived: after the last record that is
//!                 ── commit < T ─┬─ … ── commit ≥ T ──         the same with --exclusive
//!   --to-xid X    ── commit of X ┴──                           after the record of its commit, or, exclusive, as for a time
//!   --to-name N   ── restore point ┴──                         after its record, the last one of that name
//!   --to latest   ── … ──────────── end ── …                   where the archive ends once Postgres comes there
//! ```
//!
//! A target that Postgres has to reach is better than an end of the files that it runs into: with less than was planned it
//! fails ("recovery ended before configured recovery target was reached", xlogrecovery.c) instead of opening, and
//! `recovery_target_action` has an effect. Told to stop *before* a position it would need a record that comes after it,
//! and would replay one that only begins before it.
//!
//! Nor is Postgres told a time or a transaction to stop before: it stops at the record of the commit, and some of what a transaction
//! does takes effect with the records before that. `DROP DATABASE` removes the files of a database and then commits (`dropdb`,
//! commands/dbcommands.c): a recovery to the moment before it would come to a database without files (pgbackrest/pgbackrest#543,
//! EnterpriseDB/barman#723). So it stops after the last transaction that belongs to the target, ended or prepared.

use std::ops::Range;

use super::log::Log;
use crate::error::{Error, Kind, Result};
use crate::manifest::path::{Stretch, Way};
use crate::segment::wal::{MOST_BYTES, PAGE, WalScanner};
use crate::stream::Lsn;

/// Where the recovery ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Where the archive ends by the time Postgres comes there.
    End,
    /// After the record that begins here.
    After(Lsn),
}

/// What is read of the archive at a time: to the end of a segment at the most.
pub(super) struct Block;

impl Block {
    /// The block from a position on, up to another one.
    pub(super) fn at(position: Lsn, end: Lsn) -> Range<Lsn> {
        position..Lsn((position.0 + 1).next_multiple_of(MOST_BYTES)).min(end)
    }
}

/// Returns where the last record begins that ends at `until` or before it, on a way on which WAL from `from` on is archived.
pub(super) async fn last_record(log: &Log, way: &Way, from: Lsn, mut until: Lsn) -> Result<Lsn> {
    for stretch in way.stretches().iter().rev().filter(|stretch| stretch.lsns.start < stretch.lsns.end) {
        let end = until.min(stretch.lsns.end);
        if end > stretch.lsns.start
            && let Some(record) = last_of_stretch(log, stretch, from, end).await?
        {
            return Ok(record);
        }
        until = until.min(stretch.lsns.start);
    }
    let message = format!("no record of the archived WAL from {from} on is whole at the target");
    Err(Error::new(Kind::NotFound, message).hint("choose a later target, or an earlier backup with --backup"))
}

/// The same within one timeline. Most often the last 16 MiB are enough; a record may be longer.
async fn last_of_stretch(log: &Log, stretch: &Stretch, from: Lsn, end: Lsn) -> Result<Option<Lsn>> {
    let archived = log.range(stretch.timeline).unwrap_or_default();
    // A file of the timeline begins with what its parent wrote.
    let first = Lsn(from.0 / PAGE * PAGE).max(archived.start);
    if first >= end {
        return Ok(None);
    }
    let mut back = MOST_BYTES;
    loop {
        let start = Lsn(end.0.next_multiple_of(MOST_BYTES).saturating_sub(back)).max(first);
        let mut scanner = WalScanner::new(log.system(), stretch.timeline, start, stretch.lsns.start)?;
        while scanner.position() < end {
            let piece = Block::at(scanner.position(), end);
            scanner.feed(&log.bytes(stretch.timeline, &piece).await?)?;
        }
        if scanner.last_record().is_some() || start == first {
            return Ok(scanner.last_record());
        }
        back *= 2;
    }
}
