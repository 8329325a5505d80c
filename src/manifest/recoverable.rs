//! To which moments a Postgres system can be recovered, and what that needs.
//!
//! ```text
//!   backups          ●───────────────●──────────────────────●
//!   WAL       ├──────────────────────────────┤ gap ├───────────────────────►
//!   windows          [──────────────────────]                [──────────────]
//! ```
//!
//! A base backup can be rolled forward over the WAL from its start on, as far as that has no gap. So the backups before
//! a gap make one window: from the end of the first of them to the last commit before the gap.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use super::backups::{Backup, backups};
use super::{Chain, Selection};
use crate::error::Result;
use crate::segment::wal::MOST_BYTES;
use crate::store::Store;
use crate::stream::{Gap, Lsn, SegmentRef, StreamId};

/// Every moment from one to another to which the database can be recovered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// The first moment.
    pub from: DateTime<Utc>,
    /// The last.
    pub to: DateTime<Utc>,
}

/// Base backups that are of use: the archive holds the WAL that each of them needs at least.
pub async fn usable(store: &Store, chain: &Chain, gaps: &[Gap]) -> Result<Vec<Backup>> {
    let StreamId::Postgres { system_id } = chain.stream() else { return Ok(Vec::new()) };
    let found = backups(store, *system_id).await?;
    Ok(found.into_iter().filter(|backup| is_usable(backup, chain, gaps)).collect())
}

fn is_usable(backup: &Backup, chain: &Chain, gaps: &[Gap]) -> bool {
    let position = |timeline: u32| chain.position(timeline.cast_signed());
    let begun = position(backup.timeline).is_some_and(|at| at.start <= backup.start.position());
    let ended = position(backup.end_timeline).is_some_and(|at| at.end >= backup.end.position());
    let torn = gaps.iter().any(|gap| {
        let timelines = backup.timeline.cast_signed()..=backup.end_timeline.cast_signed();
        timelines.contains(&gap.partition) && gap.start < backup.end.position() && gap.end > backup.start.position()
    });
    begun && ended && !torn
}

/// The time of the first commit that is still archived, in ms since 1970: a chain's sums keep what retention has let go.
pub async fn first_commit(chain: &Chain) -> Result<Option<i64>> {
    for position in chain.positions() {
        let mut reach = MOST_BYTES.cast_signed();
        loop {
            let end = position.start.saturating_add(reach).min(position.end);
            let partitions = Some(BTreeMap::from([(position.partition, position.start..end)]));
            let selected = chain.select(&Selection { timestamps: None, partitions }).await?;
            let first = selected.segments.iter().filter_map(SegmentRef::min_timestamp).min();
            if first.is_some() {
                return Ok(first);
            }
            if end == position.end {
                break;
            }
            reach = reach.saturating_mul(8);
        }
    }
    Ok(None)
}

/// The gaps of a chain.
pub async fn gaps(chain: &Chain) -> Result<Vec<Gap>> {
    if chain.totals().gaps == 0 {
        return Ok(Vec::new());
    }
    // No record is that old, so no page is opened for its segments alone.
    let only_gaps = Selection { timestamps: Some(i64::MIN..i64::MIN + 1), partitions: None };
    Ok(chain.select(&only_gaps).await?.gaps)
}

/// The windows of the system that `chain` archives, oldest first; `complete_through` is when the last one ends, as far
/// as that is known.
pub async fn windows(store: &Store, chain: &Chain, complete_through: Option<DateTime<Utc>>) -> Result<Vec<Window>> {
    let gaps = gaps(chain).await?;
    let mut windows: BTreeMap<(i32, i64), Window> = BTreeMap::new();
    for backup in usable(store, chain, &gaps).await? {
        let limit = limit_of(&backup, &gaps);
        // What no gap limits comes last.
        let key = limit.map_or((i32::MAX, i64::MAX), |gap| (gap.partition, gap.start));
        if let Some(window) = windows.get_mut(&key) {
            (window.from, window.to) = (window.from.min(backup.finished), window.to.max(backup.finished));
            continue;
        }
        let to = match limit {
            Some(gap) => last_commit_before(chain, gap).await?,
            None => complete_through.max(chain.totals().max_timestamp.and_then(DateTime::from_timestamp_millis)),
        };
        // Before the end of a backup nothing can be recovered from it, and nothing may have been committed since.
        let to = to.map_or(backup.finished, |to| to.max(backup.finished));
        windows.insert(key, Window { from: backup.finished, to });
    }
    Ok(windows.into_values().collect())
}

/// The first gap behind a backup.
fn limit_of<'a>(backup: &Backup, gaps: &'a [Gap]) -> Option<&'a Gap> {
    let from = (backup.end_timeline.cast_signed(), backup.end.position());
    gaps.iter().filter(|gap| (gap.partition, gap.start) >= from).min_by_key(|gap| (gap.partition, gap.start))
}

/// The time of the last commit before a gap, on its timeline.
async fn last_commit_before(chain: &Chain, gap: &Gap) -> Result<Option<DateTime<Utc>>> {
    let partitions = Some(BTreeMap::from([(gap.partition, 0..gap.start)]));
    let before = chain.select(&Selection { timestamps: None, partitions }).await?;
    let earlier =
        before.segments.iter().filter(|segment| segment.partitions.iter().all(|range| range.end <= gap.start));
    Ok(earlier.filter_map(|segment| segment.max_timestamp()).max().and_then(DateTime::from_timestamp_millis))
}

/// What retention lets go.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Surplus {
    /// The positions of the timelines before which nothing is needed.
    pub before: BTreeMap<i32, i64>,
    /// The backups that are not needed.
    pub backups: Vec<Backup>,
}

/// What is not needed to recover to any moment from `horizon` on: everything before the newest backup that was finished
/// by then. WAL files stay whole.
pub async fn surplus(store: &Store, chain: &Chain, horizon: DateTime<Utc>) -> Result<Surplus> {
    let Some(system) = chain.begin_facts().system() else { return Ok(Surplus::default()) };
    let gaps = gaps(chain).await?;
    let usable = usable(store, chain, &gaps).await?;
    let Some(oldest) = usable.iter().rev().find(|backup| backup.finished <= horizon) else {
        return Ok(Surplus::default());
    };
    let file = u64::from(system.wal_segment_size);
    let kept_from = Lsn(oldest.start.0 / file * file).position();
    let mut before = BTreeMap::new();
    for position in chain.positions() {
        let until = match position.partition.cmp(&oldest.timeline.cast_signed()) {
            std::cmp::Ordering::Less => position.end,
            std::cmp::Ordering::Equal => kept_from,
            std::cmp::Ordering::Greater => continue,
        };
        if position.start < until {
            before.insert(position.partition, until);
        }
    }
    let all = backups(store, system.system_id).await?;
    let backups = all.into_iter().filter(|backup| backup.finished < oldest.finished).collect();
    Ok(Surplus { before, backups })
}
