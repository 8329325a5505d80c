//! What retention expires of the versions of a state document.
//!
//! ```text
//!   versions   0 ── 1 ── 2 ─────── 3 ── 4 ──►        0 and 1 are expired: what [`super::as_of`] answers for every moment
//!                        horizon ┘                   from the horizon on stays what it was
//! ```
//!
//! What goes follows from the very search that [`super::as_of`] makes, so the two cannot disagree. The newest version stays however
//! old it is: it is what is there now, and the next one is numbered after it.

use std::collections::BTreeMap;
use std::ops::Range;

use chrono::{DateTime, TimeDelta, Utc};
use object_store::path::Path;

use super::{found_by, versions};
use crate::error::Result;
use crate::manifest::{Chain, Selection};
use crate::store::layout::Name;
use crate::store::{Store, layout};
use crate::stream::Retired;

/// So many versions are expired by an entry, and looked at in one go: what the chain lists of them is in memory meanwhile.
const MOST_AT_ONCE: i64 = 5_000;

/// Objects are deleted this long after their versions were expired: who chose one before has read it by then.
pub const GRACE: TimeDelta = TimeDelta::hours(1);

/// The versions that are not needed to tell the state as of every moment from `horizon` on; none where nothing goes.
pub async fn expirable(chain: &Chain, horizon: DateTime<Utc>) -> Result<Option<Range<i64>>> {
    let Some(kept) = versions(chain) else { return Ok(None) };
    let held = found_by(chain, horizon.timestamp_millis()).await?;
    Ok(held.map(|version| kept.start..version.number).filter(|range| !range.is_empty()))
}

/// Returns what these versions add up to.
pub async fn sum(chain: &Chain, range: Range<i64>) -> Result<Retired> {
    let mut sum = Retired::default();
    for part in parts(range) {
        let partitions = Some(BTreeMap::from([(0, part)]));
        sum.add(&Retired::of(&chain.select(&Selection { timestamps: None, partitions }).await?.segments));
    }
    Ok(sum)
}

/// Expires the [`expirable`]. Gives what was retired by this chain's own entries: of several that do so at once one has the number.
pub async fn expire(chain: &mut Chain, horizon: DateTime<Utc>, by: (&str, DateTime<Utc>)) -> Result<Retired> {
    let mut given = Retired::default();
    let Some(range) = expirable(chain, horizon).await? else { return Ok(given) };
    for part in parts(range) {
        given.add(&chain.expire(&BTreeMap::from([(0, part.end)]), by.0, by.1).await?);
    }
    if !given.is_nothing() {
        let (stream, versions, bytes) = (chain.stream(), given.segments, given.stored_bytes);
        tracing::info!(%stream, versions, bytes, "retention expired versions of state");
    }
    Ok(given)
}

/// Deletes the objects of versions that were expired longer ago than [`GRACE`] at `now`, by the store's clock, and those that lost
/// the race for a number that has been expired since. The others are not even listed.
pub async fn delete_expired(store: &Store, chain: &Chain, now: DateTime<Utc>) -> Result<u64> {
    let (Some(of), Some(kept)) = (chain.stream().state(), versions(chain)) else { return Ok(0) };
    let (folder, mut deleted) = (layout::state_versions(of), 0);
    let below = |key: &Path| match Name::parse(key.as_ref()) {
        Ok(Name::State { of: named, version, .. }) if named == *of => {
            Some((i64::try_from(version).ok().filter(|version| *version < kept.start)?, key.clone()))
        }
        _ => None,
    };
    let mut after = folder.clone();
    loop {
        let found = store.list_after(&folder, &after, below).await?;
        let Some((_, last)) = found.last() else { break };
        after = last.clone();
        for window in found.chunks(MOST_AT_ONCE.unsigned_abs() as usize) {
            let ends = window.first().zip(window.last());
            let Some(range) = ends.map(|((first, _), (last, _))| *first..last.saturating_add(1)) else { continue };
            let retired = chain.retired(BTreeMap::from([(0, range)])).await?.retired;
            for (_, key) in window {
                // What no entry names cannot come into the chain any more: another one has its number.
                if retired.get(key.as_ref()).is_none_or(|decided| *decided + GRACE <= now) {
                    store.delete(key).await?;
                    deleted += 1;
                }
            }
        }
    }
    if deleted > 0 {
        tracing::info!(stream = %chain.stream(), objects = deleted, "deleted versions of state that were expired");
    }
    Ok(deleted)
}

fn parts(range: Range<i64>) -> impl Iterator<Item = Range<i64>> {
    let mut start = range.start;
    std::iter::from_fn(move || {
        let part = start..start.saturating_add(MOST_AT_ONCE).min(range.end);
        start = part.end;
        (!part.is_empty()).then_some(part)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::super::{By, Version, append, as_of, document, newest, next, read, version};
    use super::*;
    use crate::stream::{Begin, StateKind, StateOf, StreamId};

    fn of() -> StateOf {
        StateOf { kind: StateKind::Groups, scope: "main".into() }
    }

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_700_000_000 + seconds, 0).expect("a time")
    }

    async fn opened(store: &Store) -> Chain {
        Chain::open(store, &StreamId::State(of())).await.expect("it can be read").expect("it is there")
    }

    /// Versions that were found at these times, and one object besides that lost the race for the first number.
    async fn kept(times: &[i64]) -> Store {
        let store = Store::over(Arc::new(object_store::memory::InMemory::new()), "memory:///");
        let begin = Begin::State { state: StateKind::Groups, cluster_id: Some("id".into()) };
        let stream = StreamId::State(of());
        let mut chain = Chain::begin(&store, &stream, begin, "w", at(0)).await.expect("it begins");
        store.put(&layout::state_version(&of(), 0, "loser", 1), vec![1].into()).await.expect("stored");
        for (number, seconds) in (0_i64..).zip(times) {
            let document = document(&of(), &serde_json::json!({ "n": number })).expect("JSON");
            let by = By { writer: "w", n: number.unsigned_abs(), at: at(*seconds) };
            assert!(append(&mut chain, number, &document, by).await.expect("stored"));
        }
        store
    }

    async fn objects(store: &Store) -> BTreeSet<String> {
        let listed = store.list(&layout::state_versions(&of())).await.expect("a list");
        listed.iter().map(|object| object.location.to_string()).collect()
    }

    /// Returns what is told from a horizon on: there, and about each time at which a version was found.
    async fn told(store: &Store, from: i64, times: &[i64]) -> Vec<Option<Version>> {
        let (chain, mut told) = (opened(store).await, Vec::new());
        let about: BTreeSet<i64> = times.iter().flat_map(|time| [*time, time + 1]).chain([from]).collect();
        for seconds in about.range(from..) {
            told.push(as_of(&chain, at(*seconds).timestamp_millis(), at(99_999)).await.expect("looked"));
        }
        told
    }

    async fn case(times: Vec<i64>, horizon: i64) {
        let store = kept(&times).await;
        let (before, stored) = (told(&store, horizon, &times).await, objects(&store).await);
        let (mut one, mut two) = (opened(&store).await, opened(&store).await);
        let was = opened(&store).await;
        let planned = expirable(&one, at(horizon)).await.expect("planned").unwrap_or(0..0);
        let expected = sum(&one, planned.clone()).await.expect("summed");
        // Two that do so at once: one of them has it, and both are content.
        let first = expire(&mut one, at(horizon), ("e", at(1_000))).await.expect("expired");
        let second = expire(&mut two, at(horizon), ("f", at(1_001))).await.expect("expired");
        assert_eq!((first, second), (expected, Retired::default()), "{times:?} {horizon}");
        assert_eq!(expected.segments, planned.end.abs_diff(planned.start));

        let after = opened(&store).await;
        assert_eq!(
            told(&store, horizon, &times).await,
            before,
            "every moment from the horizon on: {times:?} {horizon}"
        );
        assert_eq!((next(&after), after.position(0).map(|at| at.end)), (next(&was), was.position(0).map(|at| at.end)));
        assert_eq!(newest(&after).await.expect("looked"), newest(&was).await.expect("looked"));
        assert_eq!(after.totals().present().segments + expected.segments, was.totals().segments);
        assert_eq!(expirable(&after, at(horizon)).await.expect("planned"), None, "nothing is left to expire");
        // No more than the newest of those before the horizon is kept of them.
        let old =
            times.iter().scan(i64::MIN, |last, time| Some(std::mem::replace(last, (*last).max(*time)).max(*time)));
        let old = old.filter(|time| *time <= horizon).count();
        assert_eq!(expected.segments as usize, old.saturating_sub(1), "{times:?} {horizon}");

        assert_eq!(was.totals().retired, Retired::default());
        let soon = delete_expired(&store, &after, at(1_000) + GRACE - TimeDelta::seconds(1)).await.expect("deleted");
        assert_eq!(soon, u64::from(!planned.is_empty()), "the loser alone");
        let late = delete_expired(&store, &after, at(1_000) + GRACE).await.expect("deleted");
        assert_eq!(late, expected.segments);
        let left = objects(&store).await;
        assert!(left.is_subset(&stored) && left.len() as u64 + soon + late == stored.len() as u64);
        for number in planned.end..next(&after) {
            let version = version(&after, number).await.expect("looked").expect("it is there");
            read(&store, after.stream(), &version).await.expect("its object is there");
        }
        // And the next version follows.
        let document = document(&of(), &serde_json::json!("new")).expect("JSON");
        let by = By { writer: "w", n: 1_000, at: at(5_000) };
        let mut next_chain = opened(&store).await;
        assert!(append(&mut next_chain, next(&was), &document, by).await.expect("stored"));
    }

    #[tokio::test]
    async fn a_document_of_which_nothing_was_kept_gives_nothing_up() {
        let store = kept(&[]).await;
        let mut chain = opened(&store).await;
        assert_eq!(expire(&mut chain, at(99), ("e", at(99))).await.expect("nothing"), Retired::default());
        assert_eq!(delete_expired(&store, &chain, at(9_999)).await.expect("nothing"), 0);
    }

    #[tokio::test]
    async fn a_page_that_expires_and_adds_nothing_is_read_for_the_grace_of_what_it_expired() {
        let store = kept(&(0..126).collect::<Vec<_>>()).await;
        let mut chain = opened(&store).await;
        assert_eq!(chain.head(), 127);
        for before in 1..=63 {
            chain.expire(&BTreeMap::from([(0, before)]), "e", at(1_000)).await.expect("expired");
        }
        let document = document(&of(), &serde_json::json!("new")).expect("JSON");
        assert!(append(&mut chain, 126, &document, By { writer: "w", n: 999, at: at(1_000) }).await.expect("stored"));
        assert_eq!(chain.head(), 193, "the page of entries 128 to 191 is written");
        let soon = delete_expired(&store, &chain, at(1_000) + GRACE - TimeDelta::seconds(1)).await.expect("deleted");
        assert_eq!(soon, 1, "what lost a race alone");
        assert_eq!(delete_expired(&store, &chain, at(1_000) + GRACE).await.expect("deleted"), 63);
    }

    #[test]
    fn a_long_history_is_expired_in_parts() {
        let all: Vec<Range<i64>> = parts(3..12_000).collect();
        assert_eq!(all, [3..5_003, 5_003..10_003, 10_003..12_000]);
        assert_eq!(parts(7..7).count(), 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// Also across snapshots (every 64 entries), with clocks that jump, and a horizon before all and after all.
        #[test]
        fn every_moment_from_the_horizon_on_is_told_as_before(
            times in prop::collection::vec(0..200_i64, 1..90), sorted in any::<bool>(), horizon in -5..220_i64,
        ) {
            let mut times = times;
            if sorted {
                times.sort_unstable();
            }
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            runtime.block_on(case(times, horizon));
        }
    }
}
