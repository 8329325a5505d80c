//! Where on a way a target lies: the scan of WAL that finds a commit, an abort or a restore point.
//!
//! ```text
//!   checkpoints    ── max ≤ T ──┬── max > T ──┬──          which segment can hold the first commit after T: in milliseconds
//!   WAL            ── c ── c ── c ─┬─ c ─ c ──             which record it is: in microseconds, and where it begins
//!                                  └ everything before it was committed by T
//! ```

use std::iter::successors;
use std::ops::{ControlFlow, Range};

use futures::{StreamExt, TryStreamExt, stream};

use super::log::Log;
use super::stop::Block;
use crate::error::Result;
use crate::manifest::Selection;
use crate::manifest::path::{Stretch, Way};
use crate::segment::wal::{Ended, MOST_BYTES, PAGE, Transaction, WalScanner, What};
use crate::stream::Lsn;

/// How much WAL is scanned at a time, from the end of a way to its beginning.
const STEP: u64 = 16 * MOST_BYTES;

/// How many blocks of 16 MiB are read at a time: one is scanned, and the next ones come meanwhile.
const READ_AHEAD: usize = 3;

/// The first transaction on a way that ended at `us` since 1970 or later, if it is archived.
pub(super) async fn first_since(log: &Log, way: &Way, us: i64) -> Result<Option<Ended>> {
    let least = us.div_euclid(1_000);
    let partitions = Some(way.parts(Lsn(0)..way.end()));
    let selection = Selection { timestamps: Some(least..i64::MAX), partitions };
    // Also what retention has expired: a later transaction there means that every backup comes too late.
    let mut ranges = log.chain().ranges(&selection).await?;
    ranges.retain(|range| range.max_timestamp.is_some_and(|last| last >= least));
    let mut parts: Vec<(u32, Range<Lsn>)> =
        ranges.iter().filter_map(|range| Some((range.partition.cast_unsigned(), way.part(range)?))).collect();
    parts.sort_by_key(|(_, part)| (part.start, part.end));
    for (timeline, part) in parts {
        let Some(stretch) = way.stretches().iter().find(|stretch| stretch.timeline == timeline) else { continue };
        if part.start < log.range(timeline).unwrap_or_default().start {
            // What it was, and when exactly, cannot be read any more.
            return Ok(Some(Ended {
                start: part.start,
                end: part.start,
                at: us,
                what: What::Commit(Transaction::default()),
            }));
        }
        let mut found = None;
        scan(log, stretch, &part, |ended| {
            if ended.at < us || !matches!(ended.what, What::Commit(_) | What::Abort(_)) {
                return ControlFlow::Continue(());
            }
            found = Some(ended.clone());
            ControlFlow::Break(())
        })
        .await?;
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// The last record between two positions of a way that is what is looked for; where the WAL in between is all archived.
pub(super) async fn last_that(
    log: &Log,
    way: &Way,
    lsns: Range<Lsn>,
    is: impl Fn(&Ended) -> bool,
) -> Result<Option<Ended>> {
    for stretch in way.stretches().iter().rev() {
        let (start, mut end) = (stretch.lsns.start.max(lsns.start), stretch.lsns.end.min(lsns.end));
        // What is looked for happened not long ago, most often.
        while start < end {
            let part = start.max(Lsn(end.0.saturating_sub(STEP)))..end;
            let mut found = None;
            scan(log, stretch, &part, |ended| {
                if is(ended) {
                    found = Some(ended.clone());
                }
                ControlFlow::Continue(())
            })
            .await?;
            if found.is_some() {
                return Ok(found);
            }
            end = part.start;
        }
    }
    Ok(None)
}

/// Tells the records that end within a part of a stretch, in their order.
pub(super) async fn scan(
    log: &Log,
    stretch: &Stretch,
    part: &Range<Lsn>,
    tell: impl FnMut(&Ended) -> ControlFlow<()>,
) -> Result<()> {
    let from = beginning(log, stretch, part.start).await?;
    let scanner = WalScanner::new(log.system(), stretch.timeline, from, stretch.lsns.start)?.telling();
    scan_with(log, scanner, part, tell).await
}

/// The same of the records that decide about logical slots, too.
pub(super) async fn scan_with_slots(
    log: &Log,
    stretch: &Stretch,
    part: &Range<Lsn>,
    tell: impl FnMut(&Ended) -> ControlFlow<()>,
) -> Result<()> {
    let from = beginning(log, stretch, part.start).await?;
    let scanner = WalScanner::new(log.system(), stretch.timeline, from, stretch.lsns.start)?.telling_of_slots();
    scan_with(log, scanner, part, tell).await
}

async fn scan_with(
    log: &Log,
    mut scanner: WalScanner,
    part: &Range<Lsn>,
    mut tell: impl FnMut(&Ended) -> ControlFlow<()>,
) -> Result<()> {
    let (timeline, end) = (scanner.timeline(), part.end);
    let next = |at: Lsn| (at < end).then(|| Block::at(at, end));
    let blocks = stream::iter(successors(next(scanner.position()), |block| next(block.end)));
    let mut read = blocks.map(|block| async move { log.bytes(timeline, &block).await }).buffered(READ_AHEAD);
    while let Some(bytes) = read.try_next().await? {
        scanner.feed(&bytes)?;
        for ended in scanner.told().iter().filter(|ended| ended.end > part.start) {
            if tell(ended).is_break() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Returns where to begin so that the record that goes on at a position is seen whole: a block earlier, if that is archived.
async fn beginning(log: &Log, stretch: &Stretch, at: Lsn) -> Result<Lsn> {
    let archived = log.range(stretch.timeline).unwrap_or_default();
    let block = Lsn((at.0 / MOST_BYTES * MOST_BYTES).saturating_sub(MOST_BYTES));
    let before = block.max(archived.start)..at;
    let lost = log.select(stretch.timeline, &before).await?.gaps.iter().map(|gap| Lsn::at(gap.end)).max();
    let from = before.start.max(lost.unwrap_or_default()).min(at);
    Ok(if from.0.is_multiple_of(PAGE) { from } else { at })
}
