//! Claims count only as far as the chain has come.

use super::*;
use std::collections::BTreeSet;

use bytes::Bytes;

use crate::error::Kind;
use crate::manifest::coverage::{Claim, Coverage, complete_through, load_all, partitions};
use crate::store::layout;

fn claim(offset: i64, seconds: i64) -> Claim {
    Claim { offset, complete_through: at(seconds) }
}

#[tokio::test]
async fn the_latest_claim_counts_that_the_chain_has_reached() {
    let store = faultless().store();
    let mut chain = begun(&store).await;
    committed(&mut chain, &append("a", vec![range(0, 0, 10), range(1, 0, 10)]), "w").await;
    let (mut a, mut b) = (Coverage::new("a", at(0)), Coverage::new("b", at(0)));
    a.claim(&orders(), 0, claim(10, 5));
    a.claim(&orders(), 0, claim(9, 4));
    a.claim(&orders(), 1, claim(10, 7));
    a.claim(&orders(), 2, claim(0, 9));
    b.claim(&orders(), 0, claim(11, 8));
    b.claim(&orders(), 1, claim(10, 6));
    let folder = layout::coverages(&orders());
    a.save(&store, &folder).await.unwrap();
    b.save(&store, &folder).await.unwrap();
    let all = load_all(&store, &folder).await.unwrap().known;
    let complete: Vec<_> = complete_through(&all, &chain).into_iter().collect();
    assert_eq!(complete, [(0, at(5)), (1, at(7))]);
    assert!(load_all(&store, &layout::topic_coverages("other")).await.unwrap().known.is_empty());
}

#[tokio::test]
async fn a_partition_without_a_record_is_complete_from_where_it_begins() {
    let store = faultless().store();
    let starts = vec![Some(0), Some(50), Some(50), None];
    let mut chain = Chain::begin(&store, &orders(), Begin::topic(None, starts), "w", at(0)).await.unwrap();
    committed(&mut chain, &append("a", vec![range(0, 0, 10)]), "w").await;
    let mut claims = Coverage::new("a", at(0));
    for (partition, offset) in [(0, 10), (1, 50), (2, 51), (3, 0), (4, 0)] {
        claims.claim(&orders(), partition, claim(offset, 5));
    }
    let complete: Vec<_> = complete_through(&[claims], &chain).into_keys().collect();
    assert_eq!(complete, [0, 1, 4], "2 has not come as far, of 3 nothing is known");
    assert_eq!(partitions(&chain), BTreeSet::from([0, 1, 2, 3]));
}

#[tokio::test]
async fn the_claims_of_dead_replicas_are_adopted_and_their_objects_removed() {
    let store = faultless().store();
    let folder = layout::topic_coverages("main");
    for (writer, written) in [("dead", 10), ("alive", 100)] {
        let mut coverage = Coverage::new(writer, at(written));
        coverage.claim(&orders(), 0, claim(10, written));
        coverage.save(&store, &folder).await.unwrap();
    }
    let mut mine = Coverage::new("mine", at(120));
    mine.adopt(&store, &folder, at(60)).await.unwrap();
    assert_eq!(mine.streams[&orders().to_string()][&0], claim(10, 10));
    let all = load_all(&store, &folder).await.unwrap().known;
    assert_eq!(all.iter().map(|coverage| coverage.writer.as_str()).collect::<Vec<_>>(), ["alive", "mine"]);
    assert!(store.get(&layout::coverage(&folder, "dead")).await.unwrap().is_none());
}

#[tokio::test]
async fn damaged_claims_take_away_no_others() {
    let store = faultless().store();
    let folder = layout::topic_coverages("main");
    let mut sound = Coverage::new("sound", at(10));
    sound.claim(&orders(), 0, claim(10, 10));
    sound.save(&store, &folder).await.unwrap();
    for (writer, bytes) in [("cut", b"{\"form".as_slice()), ("empty", b""), ("newer", b"{\"format\":2}")] {
        store.put(&layout::coverage(&folder, writer), Bytes::from_static(bytes)).await.unwrap();
    }
    let loaded = load_all(&store, &folder).await.unwrap();
    assert_eq!(loaded.known, [sound]);
    let unreadable: Vec<_> =
        loaded.unreadable.iter().map(|error| (error.kind(), error.hint_text().is_some())).collect();
    assert_eq!(unreadable, [(Kind::Corrupt, true), (Kind::Corrupt, true), (Kind::Unsupported, true)]);

    let mut mine = Coverage::new("mine", at(120));
    mine.adopt(&store, &folder, at(60)).await.unwrap();
    assert_eq!(mine.streams[&orders().to_string()][&0], claim(10, 10));
    assert_eq!(load_all(&store, &folder).await.unwrap().unreadable.len(), 3, "what is not understood is not deleted");
}
