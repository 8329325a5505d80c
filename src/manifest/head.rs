//! Finding the end of a chain without listing it.
//!
//! Snapshots stand at known numbers. Doubling steps (64, 128, 256, …) find one that does not exist, a binary search
//! between the last two finds the last one that does, and from there on entries are read until one does not exist.
//!
//! All that holds only while nobody deleted an entry. So what lies beyond the end is looked at as well: the entry after
//! the next, and by one listing whether anything has a higher number at all. A writer that took a hole for the end would
//! start a second chain within the first, and a reader would miss what lies above it.

use futures::{StreamExt, TryStreamExt, stream};

use super::entry::{self, Entry};
use super::stored;
use crate::error::Result;
use crate::store::{Store, layout};
use crate::stream::StreamId;
use crate::stream::invariants::SNAPSHOT_EVERY;

/// The most entries that are read ahead at a time: each beyond the end is a request in vain.
pub(super) const WINDOW: u64 = 16;

/// No chain has more: a commit every millisecond makes as many in 500,000 years. Objects with higher numbers are somebody else's.
const MOST_SNAPSHOTS: u64 = 1 << 48;

/// The number of the last snapshot; 0, where a chain begins, if there is none.
pub(super) async fn last_snapshot(store: &Store, stream: &StreamId) -> Result<u64> {
    let mut found = 0;
    let mut step = 1;
    while step < MOST_SNAPSHOTS && exists(store, stream, step * SNAPSHOT_EVERY).await? {
        found = step;
        step *= 2;
    }
    let mut missing = step;
    while missing - found > 1 {
        let middle = found + (missing - found) / 2;
        if exists(store, stream, middle * SNAPSHOT_EVERY).await? {
            found = middle;
        } else {
            missing = middle;
        }
    }
    Ok(found * SNAPSHOT_EVERY)
}

async fn exists(store: &Store, stream: &StreamId, number: u64) -> Result<bool> {
    Ok(store.size(&layout::entry(stream, number)).await?.is_some())
}

/// Entries in order, and whether more may follow.
pub(super) struct Prefetched {
    pub(super) entries: Vec<Entry>,
    pub(super) more: bool,
}

/// Reads the `width` entries from number `from` on, at most [`WINDOW`], or those before the first that does not exist.
pub(super) async fn prefetch(store: &Store, stream: &StreamId, from: u64, width: u64) -> Result<Prefetched> {
    let window = stream::iter(from..from + width).map(|number| entry::read(store, stream, number));
    let read: Vec<Option<Entry>> = window.buffered(WINDOW as usize).try_collect().await?;
    let later = read.iter().skip_while(|entry| entry.is_some()).any(Option::is_some);
    let mut entries: Vec<Entry> = read.into_iter().map_while(|entry| entry).collect();
    if (entries.len() as u64) < width {
        let packed = stored::packed_from(store, stream, from + entries.len() as u64).await?;
        if !packed.is_empty() {
            entries.extend(packed);
            return Ok(Prefetched { entries, more: true });
        }
    }
    if later {
        // Another writer may have created it after it was asked for and before the later one was.
        let number = from + entries.len() as u64;
        let missed = entry::read(store, stream, number).await?;
        entries.push(missed.ok_or_else(|| entry::missing(stream, number))?);
    }
    Ok(Prefetched { more: later || entries.len() as u64 == width, entries })
}

/// Returns whether entry `head` is the last; false if more were written in the meantime.
///
/// # Errors
/// [`crate::error::Kind::Corrupt`] if `head + 1` does not exist and a later entry does.
pub(super) async fn is_end(store: &Store, stream: &StreamId, head: u64) -> Result<bool> {
    let (chain, last) = (layout::chain(stream), layout::entry(stream, head));
    // A listing may lag behind on some stores; what is asked for by its key does not.
    let (next_but_one, listed) = futures::try_join!(
        exists(store, stream, head + 2),
        store.list_after(&chain, &last, |key| layout::entry_number_in(&chain, key))
    )?;
    let beyond = if next_but_one { Some(head + 2) } else { listed.into_iter().find(|number| *number > head) };
    let Some(beyond) = beyond else { return Ok(true) };
    if beyond == head + 1 || exists(store, stream, head + 1).await? {
        return Ok(false);
    }
    Err(entry::missing_before(stream, head + 1, beyond))
}
