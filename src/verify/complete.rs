//! Up to when topics are complete: what `ls`, plans and the service say of it, by the same function.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};

use crate::error::Result;
use crate::manifest::coverage::{self, Coverage, Unknown};
use crate::manifest::{self, Chain};
use crate::store::{Store, layout};
use crate::stream::{StreamId, TopicGeneration};

/// The newest generation of every topic, and up to when it is complete. One whose chain cannot be read is not in it: that was told.
pub(super) async fn of(
    store: &Store,
    streams: &[StreamId],
    now: DateTime<Utc>,
) -> Result<Vec<(TopicGeneration, Result<DateTime<Utc>, Unknown>)>> {
    let generations: BTreeSet<TopicGeneration> = streams.iter().filter_map(|stream| stream.topic().cloned()).collect();
    // Those of one cluster at a time: its topics follow each other.
    let mut claims: Option<(&str, Vec<Coverage>)> = None;
    let mut found = Vec::new();
    for generation in generations.iter().filter(|generation| !generations.contains(&generation.next())) {
        if claims.as_ref().is_none_or(|(of, _)| *of != generation.cluster) {
            drop(claims.take());
            let loaded = coverage::load_all(store, &layout::topic_coverages(&generation.cluster)).await?;
            loaded.tell_unreadable();
            claims = Some((&generation.cluster, loaded.known));
        }
        let claimed = claims.as_ref().map_or(&[][..], |(_, claims)| claims);
        let chain = Chain::open(store, &generation.stream()).await;
        if let Ok(Some(chain)) = manifest::isolated(store, chain).await? {
            found.push((generation.clone(), coverage::judge(claimed, &chain, now).through(|_| true)));
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
        let generations = ["claimed", "silent", "damaged"].map(|topic| TopicGeneration::new("main", topic, 0));
        for generation in &generations {
            let begin = Begin::topic(Some("id".into()), vec![Some(0)]);
            Chain::begin(&store, &generation.stream(), begin, "w", at(0)).await.expect("it begins");
        }
        let claims = BTreeMap::from([(0, Claim { offset: 0, complete_through: at(5) })]);
        let counts = vec![Count { partitions: 1, at: at(6) }];
        for generation in [&generations[0], &generations[2]] {
            let claimed = TopicClaims { topic_id: Some("id".into()), counts: counts.clone(), claims: claims.clone() };
            coverage.topics.insert(generation.stream().to_string(), claimed);
        }
        coverage.save(&store, &layout::topic_coverages("main")).await.expect("stored");
        store.put(&layout::entry(&generations[2].stream(), 0), b"damaged".to_vec().into()).await.expect("stored");
        let report = verify(&store, false, &Arc::new(Seen::default())).await.expect("the store answers");
        let found: Vec<_> =
            report.complete.iter().map(|(generation, at)| (generation.topic.as_str(), at.as_ref().ok())).collect();
        assert_eq!(found.len(), 2, "{found:?}");
        let loaded = coverage::load_all(&store, &layout::topic_coverages("main")).await.expect("they can be read");
        for (generation, told) in &report.complete {
            let chain = Chain::open(&store, &generation.stream()).await.expect("sound").expect("begun");
            assert_eq!(*told, coverage::judge(&loaded.known, &chain, crate::time::now()).through(|_| true));
            assert_eq!(told.is_ok(), generation.topic == "claimed", "{generation}: {told:?}");
        }
        assert!(report.errors.iter().all(|damage| damage.stream == generations[2].stream()), "{:?}", report.errors);
        assert!(!report.errors.is_empty());
    }
}
