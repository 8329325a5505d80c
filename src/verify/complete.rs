//! Up to when topics are complete: what `ls`, plans and the service say of it, by the same function.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};

use crate::error::Result;
use crate::manifest::coverage::{self, Coverage, Unknown};
use crate::manifest::{self, Chain};
use crate::store::{Store, layout};
use crate::stream::{StreamId, TopicLife};

/// The newest life of every topic, and up to when it is complete. One whose chain cannot be read is not in it: that was told.
pub(super) async fn of(
    store: &Store,
    streams: &[StreamId],
    now: DateTime<Utc>,
) -> Result<Vec<(TopicLife, Result<DateTime<Utc>, Unknown>)>> {
    let lives: BTreeSet<TopicLife> = streams.iter().filter_map(|stream| stream.topic().cloned()).collect();
    let mut claims: BTreeMap<String, Vec<Coverage>> = BTreeMap::new();
    let mut found = Vec::new();
    for life in lives.iter().filter(|life| !lives.contains(&life.next_generation())) {
        if !claims.contains_key(&life.cluster) {
            let loaded = coverage::load_all(store, &layout::topic_coverages(&life.cluster)).await?;
            loaded.tell_unreadable();
            claims.insert(life.cluster.clone(), loaded.known);
        }
        let chain = Chain::open(store, &life.stream()).await;
        if let Ok(Some(chain)) = manifest::isolated(store, chain).await? {
            found.push((life.clone(), coverage::judge(&claims[&life.cluster], &chain, now).through(|_| true)));
        }
    }
    Ok(found)
}
