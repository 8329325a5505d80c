//! What Kafka Connect had written down of a connector: the offset of a record only once that and all before it were acknowledged.
//!
//! ```text
//!   state/connectors ─► the first version behind L in which lsn_commit is E or more ─► all up to L had come by then
//! ```
//!
//! With `heartbeat.interval.ms` Debezium moves its offset over a commit behind which nothing follows. Without, it names a commit with
//! the first change behind it, and that shows as much.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::error::Result;
use crate::manifest::state as versions;
use crate::manifest::{self, Chain};
use crate::store::Store;
use crate::stream::{StateKind, StreamId};

#[derive(Default, Deserialize)]
struct Stored {
    #[serde(default)]
    state: State,
}

#[derive(Default, Deserialize)]
struct State {
    #[serde(default)]
    connectors: BTreeMap<String, Kept>,
}

#[derive(Deserialize)]
struct Kept {
    offsets: Option<Vec<Offset>>,
}

#[derive(Deserialize)]
struct Offset {
    partition: Value,
    offset: Value,
}

impl State {
    /// Whether the connector of this `topic.prefix` had sent the commit that ends at `end`. An offset without `lsn_commit` was set by
    /// somebody, and shows nothing; nor does one of a snapshot that is under way.
    fn has_sent(&self, prefix: &str, end: u64) -> bool {
        let partition = json!({ "server": prefix });
        let offsets = self.connectors.values().flat_map(|kept| kept.offsets.iter().flatten());
        offsets.filter(|one| one.partition == partition).any(|Offset { offset, .. }| {
            let snapshots = offset.get("snapshot").is_some_and(|value| !value.is_null() && *value != json!(false));
            !snapshots && offset.get("lsn_commit").and_then(Value::as_u64).is_some_and(|commit| commit >= end)
        })
    }
}

/// Returns when (ms since 1970) each of these connectors, by `topic.prefix`, is known to have sent all up to the commit that ends at `end`
/// and is of the time `at` (µs since 1970). One of which several clusters tell is left out: only one of them is meant.
///
/// # Errors
/// The store's. A version that is damaged shows nothing.
pub(super) async fn acknowledged(
    store: &Store,
    prefixes: &BTreeSet<String>,
    (end, at): (u64, i64),
) -> Result<BTreeMap<String, i64>> {
    let mut found: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    if prefixes.is_empty() {
        return Ok(BTreeMap::new());
    }
    for stream in manifest::streams(store).await? {
        if !matches!(&stream, StreamId::State(of) if of.kind == StateKind::Connectors) {
            continue;
        }
        let Some(chain) = Chain::open(store, &stream).await? else { continue };
        let Some(kept) = versions::versions(&chain) else { continue };
        let mut read = Read { store, chain: &chain, states: BTreeMap::new() };
        for prefix in prefixes {
            if let Some(ms) =
                read.first(kept.clone(), at.div_euclid(1_000), |state| state.has_sent(prefix, end)).await?
            {
                found.entry(prefix.clone()).or_default().push(ms);
            }
        }
    }
    let only = |(prefix, times): (String, Vec<i64>)| Some((prefix, *times.first().filter(|_| times.len() == 1)?));
    Ok(found.into_iter().filter_map(only).collect())
}

/// Versions of one stream that were read.
struct Read<'a> {
    store: &'a Store,
    chain: &'a Chain,
    states: BTreeMap<i64, Option<(i64, State)>>,
}

impl Read<'_> {
    /// When the first version was found, not before `after`, of which something is true from then on. Where it is true of the newest, any
    /// earlier one of which it is true shows as much, so that a version that contradicts only makes it later.
    async fn first(&mut self, kept: Range<i64>, after: i64, is: impl Fn(&State) -> bool) -> Result<Option<i64>> {
        let (mut low, mut high, mut found) = (kept.start, kept.end, None);
        while low < high {
            // The newest first: mostly, if it is not true of it, it is of none.
            let middle = if found.is_none() { high - 1 } else { low + (high - low) / 2 };
            match self.version(middle).await?.filter(|(ms, state)| *ms >= after && is(state)) {
                Some((ms, _)) => (high, found) = (middle, Some(*ms)),
                None if found.is_none() => break,
                None => low = middle + 1,
            }
        }
        Ok(found)
    }

    async fn version(&mut self, number: i64) -> Result<Option<&(i64, State)>> {
        if !self.states.contains_key(&number) {
            let read = match versions::version(self.chain, number).await? {
                None => None,
                Some(version) => match versions::read(self.store, self.chain.stream(), &version).await {
                    Err(error) if error.is_transient() => return Err(error),
                    json => {
                        let state = json.ok().and_then(|json| serde_json::from_slice::<Stored>(&json).ok());
                        state.map(|stored| (version.at.timestamp_millis(), stored.state))
                    }
                },
            };
            self.states.insert(number, read);
        }
        Ok(self.states.get(&number).and_then(Option::as_ref))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use chrono::{DateTime, Utc};

    use super::*;
    use crate::manifest::state::By;
    use crate::stream::{Begin, StateOf};

    fn memory() -> Store {
        Store::over(Arc::new(object_store::memory::InMemory::new()), "memory:///")
    }

    fn at(ms: i64) -> DateTime<Utc> {
        DateTime::from_timestamp_millis(ms).expect("a time")
    }

    /// Keeps these offsets of the connector `srv` as versions, at these times.
    async fn keep(store: &Store, cluster: &str, kept: &[(i64, Value)]) {
        let of = StateOf { kind: StateKind::Connectors, scope: cluster.to_owned() };
        let begin = Begin::State { state: of.kind, cluster_id: None };
        let mut chain = Chain::begin(store, &StreamId::State(of.clone()), begin, "w", at(0)).await.expect("begun");
        for (n, (ms, offset)) in (0..).zip(kept) {
            let offsets = json!([{ "partition": { "server": "srv" }, "offset": offset }]);
            let state =
                json!({ "connectors": { "shop": { "config": {}, "offsets": offsets }, "sink": { "config": {} } } });
            let document = versions::document(&of, &state).expect("a document");
            let by = By { writer: "w", n, at: at(*ms) };
            assert!(versions::append(&mut chain, n.cast_signed(), &document, by).await.expect("appended"));
        }
    }

    async fn found(store: &Store, end: u64, after_ms: i64) -> Option<i64> {
        let prefixes = BTreeSet::from(["srv".to_owned()]);
        let known = acknowledged(store, &prefixes, (end, after_ms * 1_000)).await.expect("the store answers");
        known.get("srv").copied()
    }

    #[tokio::test]
    async fn the_first_version_that_shows_it_counts() {
        let store = memory();
        let commits = [10, 20, 30, 30, 50, 60, 70];
        let kept: Vec<_> =
            (1..).map(|n| n * 1_000).zip(commits.map(|commit| json!({ "lsn": 99, "lsn_commit": commit }))).collect();
        keep(&store, "main", &kept).await;
        assert_eq!(found(&store, 30, 0).await, Some(3_000));
        assert_eq!(found(&store, 31, 0).await, Some(5_000));
        assert_eq!(found(&store, 70, 0).await, Some(7_000));
        assert_eq!(found(&store, 71, 0).await, None);
        assert_eq!(found(&store, 5, 0).await, Some(1_000));
        assert_eq!(found(&store, 30, 3_500).await, Some(4_000), "one from before the commit is of another history");
        let nobody = acknowledged(&store, &BTreeSet::from(["other".to_owned()]), (1, 0)).await;
        assert!(nobody.expect("the store answers").is_empty());
    }

    #[tokio::test]
    async fn what_somebody_set_and_a_snapshot_under_way_show_nothing() {
        for offset in [
            json!({ "lsn": 99, "ts_usec": 1 }),
            json!({ "lsn": 99, "lsn_proc": 99 }),
            json!({ "lsn": 99, "lsn_commit": 99, "snapshot": "INITIAL" }),
            json!({ "lsn": 99, "lsn_commit": 99, "snapshot": true }),
        ] {
            let store = memory();
            keep(&store, "main", &[(1_000, offset.clone())]).await;
            assert_eq!(found(&store, 30, 0).await, None, "{offset}");
        }
        let store = memory();
        keep(&store, "main", &[(1_000, json!({ "lsn_commit": 99, "snapshot": false }))]).await;
        assert_eq!(found(&store, 30, 0).await, Some(1_000));
    }

    #[tokio::test]
    async fn of_two_clusters_neither_is_meant() {
        let store = memory();
        for cluster in ["main", "other"] {
            keep(&store, cluster, &[(1_000, json!({ "lsn_commit": 99 }))]).await;
        }
        assert_eq!(found(&store, 30, 0).await, None);
    }
}
