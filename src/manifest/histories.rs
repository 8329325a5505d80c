//! The histories of a system's timelines, of which no checkpoint names one: whoever can write the bucket can put any number there.
//!
//! Those of timelines of which WAL is archived are read first, the newest first: what others put there takes nothing from them.

use std::collections::BTreeMap;

use futures::{StreamExt as _, stream};
use object_store::path::Path;

use super::found::MOST_NAMED;
use super::reads_at_once::READS_AT_ONCE;
use crate::error::{Error, Kind, Result};
use crate::segment::wal::{Switch, parse_history};
use crate::store::{Store, layout};

/// So many histories of a system are read.
pub const MOST_HISTORIES: usize = 4_096;

/// So many lines they have together, 16 MiB in memory: those of 1,400 promotions one after the other.
pub const MOST_SWITCHES: usize = 1 << 20;

/// What the histories of a system say.
#[derive(Debug, Default)]
pub struct Histories {
    /// By timeline and generation: the timelines that it comes from, oldest first.
    pub known: BTreeMap<(u32, u32), Vec<Switch>>,
    /// The first of those that cannot be read, by their keys, and why.
    pub unreadable: Vec<(String, Error)>,
    /// Others that cannot be read, and those that are not for there are too many: how many.
    pub more: u64,
}

/// Reads them. `is_wanted` says of a timeline and a generation of it whether its history counts, `is_archived` whether WAL of it does.
///
/// # Errors
/// Only those of a store that does not answer.
pub async fn histories(
    store: &Store,
    system_id: u64,
    is_wanted: impl Fn(u32, u32) -> bool,
    is_archived: impl Fn(u32) -> bool,
) -> Result<Histories> {
    let objects = store.list(&layout::histories(system_id)).await?;
    let named = objects.into_iter().filter_map(|object| {
        let (timeline, generation) = layout::history_timeline(&object.location)?;
        is_wanted(timeline, generation).then_some((timeline, generation, object.location))
    });
    let mut wanted: Vec<(u32, u32, Path)> = named.collect();
    wanted.sort_by_key(|(timeline, generation, _)| std::cmp::Reverse((is_archived(*timeline), *timeline, *generation)));
    let mut found = Histories { more: wanted.len().saturating_sub(MOST_HISTORIES) as u64, ..Histories::default() };
    wanted.truncate(MOST_HISTORIES);
    let read = stream::iter(wanted).map(async |(timeline, generation, key)| {
        let text = store.get(&key).await;
        let history = text.and_then(|text| text.map(|text| parse_history(timeline, &text)).transpose());
        (timeline, generation, key, history)
    });
    let (mut read, mut left) = (std::pin::pin!(read.buffered(READS_AT_ONCE)), MOST_SWITCHES);
    while let Some((timeline, generation, key, history)) = read.next().await {
        match history {
            Ok(None) => {}
            Ok(Some(history)) if history.len() <= left => {
                left -= history.len();
                found.known.insert((timeline, generation), history);
            }
            Ok(Some(_)) => found.more += 1,
            Err(error) if error.kind() == Kind::Corrupt && found.unreadable.len() < MOST_NAMED => {
                found.unreadable.push((key.to_string(), error));
            }
            Err(error) if error.kind() == Kind::Corrupt => found.more += 1,
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    async fn put(store: &Store, timeline: u32, text: String) {
        store.put(&layout::history(7, timeline, 0), text.into_bytes().into()).await.expect("stored");
    }

    #[tokio::test]
    async fn histories_take_no_more_than_their_bound_and_archived_timelines_come_first() {
        let store = Store::over(Arc::new(object_store::memory::InMemory::new()), "memory:///");
        // Each as many lines as an object has room for, and one of a timeline that is archived.
        let lines: String = (1..100_000).map(|timeline| format!("{timeline}\t0/1\n")).collect();
        for timeline in 100_000..100_020 {
            put(&store, timeline, lines.clone()).await;
        }
        put(&store, 2, "1\t0/1\n".to_owned()).await;
        for timeline in 200_000..200_030 {
            put(&store, timeline, "none".to_owned()).await;
        }
        let found = histories(&store, 7, |_, _| true, |timeline| timeline == 2).await.expect("read");
        let switches: usize = found.known.values().map(Vec::len).sum();
        assert!(switches <= MOST_SWITCHES, "{switches}");
        assert_eq!((found.known.len(), found.unreadable.len(), found.more), (11, 10, 20 + 10));
        assert!(found.known.contains_key(&(2, 0)), "what is archived comes first");
        for timeline in 300_000..300_000 + MOST_HISTORIES as u32 {
            put(&store, timeline, "1\t0/1\n".to_owned()).await;
        }
        let found = histories(&store, 7, |_, _| true, |timeline| timeline == 2).await.expect("read");
        assert_eq!(
            (found.known.len(), found.more),
            (MOST_HISTORIES, 51),
            "one of a timeline that is archived, and the newest"
        );
        assert!(found.known.contains_key(&(2, 0)), "what is archived comes first");
    }
}
