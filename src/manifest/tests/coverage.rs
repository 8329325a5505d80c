//! Claims count only as far as the chain has come, and a topic is complete only if all its partitions are counted and claimed.

use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::*;
use crate::error::Kind;
use crate::manifest::coverage::{Claim, Count, Coverage, TopicClaims, Unknown, judge, load_all};
use crate::store::layout;

/// A time that has passed by the store's clock.
fn at(seconds: i64) -> DateTime<Utc> {
    super::at(seconds) - TimeDelta::days(365)
}

fn claim(offset: i64, seconds: i64) -> Claim {
    Claim { offset, complete_through: at(seconds) }
}

fn count(partitions: i32, seconds: i64) -> Count {
    Count { partitions, at: at(seconds) }
}

/// What a replica claims of the topic.
fn claims(writer: &str, counts: &[Count], of: &[(i32, Claim)]) -> Coverage {
    let mut coverage = Coverage::new(writer, at(0));
    let topic = TopicClaims { topic_id: None, counts: counts.to_vec(), claims: of.iter().copied().collect() };
    coverage.topics.insert(orders().to_string(), topic);
    coverage
}

const LATER: i64 = 1_000;

#[tokio::test]
async fn the_latest_claim_counts_that_the_chain_has_reached() {
    let store = faultless().store();
    let mut chain = begun(&store).await;
    committed(&mut chain, &append("a", vec![range(0, 0, 10), range(1, 0, 10), range(2, 0, 10)]), "w").await;
    let a = claims("a", &[count(3, 4)], &[(0, claim(10, 5)), (1, claim(10, 7)), (3, claim(1, 9))]);
    let b = claims("b", &[count(3, 7)], &[(0, claim(11, 8)), (1, claim(10, 6)), (2, claim(10, 6))]);
    let folder = layout::coverages(&orders());
    a.save(&store, &folder).await.unwrap();
    b.save(&store, &folder).await.unwrap();
    let all = load_all(&store, &folder).await.unwrap().known;
    let judged = judge(&all, &chain, at(LATER));
    assert_eq!(judged.partitions, [(0, at(5)), (1, at(7)), (2, at(6))].into());
    assert_eq!(judged.through(|_| true), Ok(at(5)));
    assert_eq!(judged.through(|partition| partition > 0), Ok(at(6)));
    assert!(load_all(&store, &layout::topic_coverages("other")).await.unwrap().known.is_empty());
}

#[tokio::test]
async fn a_topic_is_complete_only_where_somebody_has_counted_its_partitions() {
    let store = faultless().store();
    let mut chain = begun(&store).await;
    let all = (0..6).map(|partition| range(partition, 0, 10)).collect();
    committed(&mut chain, &append("a", all), "w").await;
    let first = [(0, claim(10, 9)), (1, claim(10, 9)), (2, claim(10, 9))];
    let through = |coverages: &[Coverage]| judge(coverages, &chain, at(LATER)).through(|_| true);
    // What earlier versions wrote counts nothing.
    let mut earlier = Coverage::new("earlier", at(0));
    first.iter().for_each(|(partition, claim)| earlier.claim(&orders(), *partition, *claim));
    assert_eq!(through(&[earlier.clone()]), Err(Unknown::Partition(3)), "the chain knows of it");
    let a = claims("a", &[count(3, 5)], &[]);
    assert_eq!(through(&[earlier.clone(), a.clone()]), Ok(at(5)), "it says what a partition was complete through");
    // Partitions were added: what is known of the time before stays.
    let b = claims("b", &[count(3, 7), count(6, 9)], &first);
    assert_eq!(through(std::slice::from_ref(&b)), Ok(at(7)));
    assert_eq!(through(&[earlier, a, b.clone()]), Ok(at(7)));
    let c = claims("c", &[], &[(3, claim(10, 8)), (4, claim(10, 8)), (5, claim(10, 12))]);
    assert_eq!(through(&[b.clone(), c.clone()]), Ok(at(8)), "all six are");
    // One that was told an old number contradicts what was counted before, and counts for nothing.
    let stale = claims("stale", &[count(3, 20)], &[(0, claim(10, 20)), (1, claim(10, 20)), (2, claim(10, 20))]);
    assert_eq!(through(&[b, c, stale.clone()]), Ok(at(8)));
    let fewer = claims("fewer", &[count(2, 20)], &[]);
    assert_eq!(through(std::slice::from_ref(&stale)), Ok(at(20)));
    assert_eq!(through(&[fewer]), Err(Unknown::Partition(0)), "fewer than as the archive began");
    let uncounted =
        claims("uncounted", &[], &stale.topics[&orders().to_string()].claims.clone().into_iter().collect::<Vec<_>>());
    assert_eq!(judge(&[uncounted], &chain, at(LATER)).through(|partition| partition < 3), Err(Unknown::Count));
}

#[tokio::test]
async fn claims_of_another_topic_and_of_times_to_come_count_for_nothing() {
    let store = faultless().store();
    let mut chain = begun(&store).await;
    committed(&mut chain, &append("a", (0..3).map(|partition| range(partition, 0, 10)).collect()), "w").await;
    let of = |seconds| [(0, claim(10, seconds)), (1, claim(10, seconds)), (2, claim(10, seconds))];
    let with_id = |id: &str, mut coverage: Coverage| {
        coverage.topics.values_mut().for_each(|topic| topic.topic_id = Some(id.to_owned()));
        coverage
    };
    let now = at(100);
    let same = with_id("id", claims("a", &[count(3, 50)], &of(60)));
    assert_eq!(judge(std::slice::from_ref(&same), &chain, now).through(|_| true), Ok(at(50)));
    let other = with_id("another", claims("b", &[count(3, 90)], &of(90)));
    assert_eq!(judge(&[same.clone(), other], &chain, now).through(|_| true), Ok(at(50)));
    let to_come = with_id("id", claims("c", &[count(3, 3_600)], &of(3_600)));
    assert_eq!(judge(&[same.clone(), to_come], &chain, now).through(|_| true), Ok(at(50)));
    let just_ahead = with_id("id", claims("d", &[count(3, 103)], &of(103)));
    assert_eq!(judge(&[same, just_ahead], &chain, now).through(|_| true), Ok(now), "never beyond now");
}

#[tokio::test]
async fn a_partition_without_a_record_is_complete_from_where_it_begins() {
    let store = faultless().store();
    let starts = vec![Some(0), Some(50), Some(50), None, None];
    let mut chain = Chain::begin(&store, &orders(), Begin::topic(None, starts), "w", at(0)).await.unwrap();
    committed(&mut chain, &append("a", vec![range(0, 0, 10)]), "w").await;
    let of =
        [(0, 10), (1, 50), (2, 51), (3, 0), (4, 1), (5, 0)].map(|(partition, offset)| (partition, claim(offset, 5)));
    let judged = judge(&[claims("a", &[count(6, 5)], &of)], &chain, at(LATER));
    let complete: Vec<i32> = judged.partitions.keys().copied().collect();
    assert_eq!(complete, [0, 1, 3, 5], "2 has not come as far, and where 4 begins nobody knew");
    assert_eq!((judged.known, judged.through(|_| true)), (6, Err(Unknown::Partition(2))));
}

#[tokio::test]
async fn the_claims_of_dead_replicas_are_adopted_and_their_objects_removed() {
    let store = faultless().store();
    let folder = layout::topic_coverages("main");
    for (writer, written) in [("dead", 10), ("alive", 100), ("ahead", 7_200)] {
        let mut coverage = claims(writer, &[count(1, written)], &[(0, claim(10, written))]);
        coverage.at = at(written);
        // A generation that has ended, and one of a topic that is gone.
        coverage.topics.insert("kafka/main/others.3".to_owned(), TopicClaims::default());
        coverage.topics.insert("kafka/main/others.4".to_owned(), TopicClaims::default());
        coverage.save(&store, &folder).await.unwrap();
    }
    let mut mine = Coverage::new("mine", at(120));
    mine.adopt(&store, &folder, at(60), at(120)).await.unwrap();
    assert_eq!(mine.topics[&orders().to_string()].claims[&0], claim(10, 10));
    assert!(mine.topics.contains_key("kafka/main/others.4") && !mine.topics.contains_key("kafka/main/others.3"));
    let all = load_all(&store, &folder).await.unwrap().known;
    assert_eq!(all.iter().map(|coverage| coverage.writer.as_str()).collect::<Vec<_>>(), ["alive", "mine"]);
    for gone in ["dead", "ahead"] {
        assert!(store.get(&layout::coverage(&folder, gone)).await.unwrap().is_none(), "{gone}");
    }
}

#[tokio::test]
async fn a_clock_that_is_ahead_of_the_store_s_is_set_back() {
    let store = faultless().store();
    let folder = layout::topic_coverages("main");
    let now = crate::time::now();
    let written = |writer: &str, ahead: TimeDelta| {
        let mut coverage = Coverage::new(writer, now + ahead);
        let through = now + ahead - TimeDelta::seconds(15);
        let claim = Claim { offset: 10, complete_through: through };
        let counts = vec![Count { partitions: 1, at: through }];
        let topic = TopicClaims { topic_id: None, counts, claims: [(0, claim)].into() };
        coverage.topics.insert(orders().to_string(), topic);
        coverage.claim(&StreamId::Postgres { system_id: 7 }, 1, claim);
        coverage
    };
    for (writer, ahead) in [("ahead", 40), ("right", 0), ("behind", -40)] {
        written(writer, TimeDelta::seconds(ahead)).save(&store, &folder).await.unwrap();
    }
    let stored = load_all(&store, &folder).await.unwrap().known;
    let times = stored.iter().map(|coverage| {
        let topic = &coverage.topics[&orders().to_string()];
        assert_eq!(topic.claims[&0].complete_through, topic.counts[0].at);
        (topic.counts[0].at - now).num_seconds()
    });
    assert_eq!(times.collect::<Vec<_>>().iter().map(|time| (time + 16) / 5).collect::<Vec<_>>(), [0, -7, 0]);
    let postgres = stored[0].streams["postgres/7"][&1].complete_through;
    assert_eq!(postgres, now + TimeDelta::seconds(25), "a time of the server's clock");
}

#[tokio::test]
async fn damaged_claims_take_away_no_others() {
    let store = faultless().store();
    let folder = layout::topic_coverages("main");
    let mut sound = claims("sound", &[count(1, 10)], &[(0, claim(10, 10))]);
    sound.at = at(10);
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
    mine.adopt(&store, &folder, at(60), at(120)).await.unwrap();
    assert_eq!(mine.topics[&orders().to_string()].claims[&0], claim(10, 10));
    assert_eq!(load_all(&store, &folder).await.unwrap().unreadable.len(), 3, "what is not understood is not deleted");
}

#[tokio::test]
async fn the_claims_of_a_folder_are_taken_the_smallest_first_up_to_a_bound() {
    let store = faultless().store();
    let folder = layout::topic_coverages("main");
    let sound = claims("sound", &[count(1, 10)], &[(0, claim(10, 10))]);
    sound.save(&store, &folder).await.unwrap();
    // Sound objects, with white space behind them: before and behind the one that counts.
    for (writer, mib) in [("a", 31), ("b", 32), ("z", 20)] {
        let mut bytes = serde_json::to_vec(&Coverage::new(writer, at(10))).unwrap();
        bytes.resize(mib << 20, b' ');
        store.put(&layout::coverage(&folder, writer), Bytes::from(bytes)).await.unwrap();
    }
    let loaded = load_all(&store, &folder).await.unwrap();
    let writers: Vec<_> = loaded.known.iter().map(|coverage| coverage.writer.as_str()).collect();
    assert_eq!(writers, ["sound", "z"]);
    let told: Vec<_> = loaded.unreadable.iter().map(|error| (error.kind(), error.to_string())).collect();
    assert!(told.len() == 1 && told[0].0 == Kind::Corrupt && told[0].1.contains("2 of the objects below"), "{told:?}");
}

#[tokio::test]
async fn many_damaged_claims_are_told_as_a_number_and_many_objects_are_not_read() {
    let store = faultless().store();
    let folder = layout::topic_coverages("main");
    for n in 0..8_200 {
        store.put(&layout::coverage(&folder, &format!("w{n:05}")), Bytes::from_static(b"{")).await.unwrap();
    }
    let loaded = load_all(&store, &folder).await.unwrap();
    assert!(loaded.known.is_empty());
    let told: Vec<_> = loaded.unreadable.iter().skip(16).map(ToString::to_string).collect();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[0].contains("8176 more objects below"), "{}", told[0]);
    assert!(told[1].contains("8 of the objects below"), "{}", told[1]);
}

#[tokio::test]
async fn claims_that_cannot_be_stored_are_not_taken_over() {
    let faulty = faultless();
    let (store, folder) = (faulty.store(), layout::topic_coverages("main"));
    claims("dead", &[count(1, 10)], &[(0, claim(10, 10))]).save(&store, &folder).await.unwrap();
    faulty.refuse.store(1, Ordering::Relaxed);
    let mut mine = Coverage::new("mine", at(120));
    mine.adopt(&store, &folder, at(60), at(120)).await.unwrap_err();
    assert_eq!(mine, Coverage::new("mine", at(120)));
    mine.adopt(&store, &folder, at(60), at(120)).await.unwrap();
    assert_eq!(mine.topics[&orders().to_string()].claims[&0], claim(10, 10));
}
