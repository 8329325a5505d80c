//! Up to when topics are complete: what `ls`, plans and the service say of it, by the same function.

use std::collections::BTreeSet;

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
    // Those of one cluster at a time: its topics follow each other.
    let mut claims: Option<(&str, Vec<Coverage>)> = None;
    let mut found = Vec::new();
    for life in lives.iter().filter(|life| !lives.contains(&life.next_generation())) {
        if claims.as_ref().is_none_or(|(of, _)| *of != life.cluster) {
            drop(claims.take());
            let loaded = coverage::load_all(store, &layout::topic_coverages(&life.cluster)).await?;
            loaded.tell_unreadable();
            claims = Some((&life.cluster, loaded.known));
        }
        let claimed = claims.as_ref().map_or(&[][..], |(_, claims)| claims);
        let chain = Chain::open(store, &life.stream()).await;
        if let Ok(Some(chain)) = manifest::isolated(store, chain).await? {
            found.push((life.clone(), coverage::judge(claimed, &chain, now).through(|_| true)));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::*;
    use crate::manifest::coverage::{Claim, Count, TopicClaims};
    use crate::stream::Begin;
    use crate::verify::{Seen, verify};

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_700_000_000 + seconds, 0).expect("a time")
    }

    #[tokio::test]
    async fn each_topic_is_as_complete_as_ls_says_and_a_damaged_one_hides_no_other() {
        let store = Store::over(Arc::new(object_store::memory::InMemory::new()), "memory:///");
        let mut coverage = Coverage::new("w", at(9));
        let lives = ["claimed", "silent", "damaged"].map(|topic| TopicLife::new("main", topic, 0));
        for life in &lives {
            let begin = Begin::topic(Some("id".into()), vec![Some(0)]);
            Chain::begin(&store, &life.stream(), begin, "w", at(0)).await.expect("it begins");
        }
        let claims = BTreeMap::from([(0, Claim { offset: 0, complete_through: at(5) })]);
        let counts = vec![Count { partitions: 1, at: at(6) }];
        for life in [&lives[0], &lives[2]] {
            let claimed = TopicClaims { topic_id: Some("id".into()), counts: counts.clone(), claims: claims.clone() };
            coverage.topics.insert(life.stream().to_string(), claimed);
        }
        coverage.save(&store, &layout::topic_coverages("main")).await.expect("stored");
        store.put(&layout::entry(&lives[2].stream(), 0), b"damaged".to_vec().into()).await.expect("stored");
        let report = verify(&store, false, &Arc::new(Seen::default())).await.expect("the store answers");
        let found: Vec<_> = report.complete.iter().map(|(life, at)| (life.topic.as_str(), at.as_ref().ok())).collect();
        assert_eq!(found.len(), 2, "{found:?}");
        let loaded = coverage::load_all(&store, &layout::topic_coverages("main")).await.expect("they can be read");
        for (life, told) in &report.complete {
            let chain = Chain::open(&store, &life.stream()).await.expect("sound").expect("begun");
            assert_eq!(*told, coverage::judge(&loaded.known, &chain, crate::time::now()).through(|_| true));
            assert_eq!(told.is_ok(), life.topic == "claimed", "{life}: {told:?}");
        }
        assert!(report.errors.iter().all(|damage| damage.stream == lives[2].stream()), "{:?}", report.errors);
        assert!(!report.errors.is_empty());
    }
}
