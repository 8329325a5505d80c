//! Opening and committing.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use super::faulty::{damage, lose};
use super::*;
use crate::error::Kind;
use crate::manifest::streams;
use crate::store::layout;
use crate::stream::{Close, Cut, LastRecord};

#[tokio::test]
async fn a_chain_that_has_not_begun_is_none() {
    assert!(Chain::open(&faultless().store(), &orders()).await.unwrap().is_none());
}

#[tokio::test]
async fn what_was_committed_is_found_again() {
    let store = faultless().store();
    let mut chain = begun(&store).await;
    let change = Change {
        segments: vec![segment("a", vec![range(0, 5, 10), range(3, 0, 4)])],
        empty: vec![PartitionRange { records: 0, min_timestamp: None, max_timestamp: None, ..range(0, 10, 12) }],
        gaps: vec![gap(3, 4, 9)],
    };
    assert_eq!(committed(&mut chain, &change, "w").await, 1);
    let gap_only = Change { gaps: vec![gap(0, 12, 20)], ..Change::default() };
    assert_eq!(committed(&mut chain, &gap_only, "w").await, 2);

    let chain = Chain::open(&store, &orders()).await.unwrap().unwrap();
    assert_eq!((chain.head(), chain.begin_facts()), (2, &begin_of("id")));
    let position = chain.position(0).unwrap();
    assert_eq!((position.start, position.end, position.records), (5, 20, 5));
    assert_eq!((position.min_timestamp, position.max_timestamp), (Some(5), Some(9)));
    assert_eq!(chain.position(3).unwrap().end, 9);
    assert_eq!((chain.totals().segments, chain.totals().records, chain.totals().gaps), (1, 9, 2));
    let json = store.get(&layout::entry(&orders(), 2)).await.unwrap().unwrap();
    assert!(String::from_utf8_lossy(&json).contains(r#""kind":"gap""#));
}

#[tokio::test]
async fn chains_of_every_length_around_the_snapshots_are_opened() {
    let store = faultless().store();
    let mut chain = begun(&store).await;
    for head in [1, 63, 65, 66, 127, 129, 200, 255, 257, 700] {
        grow(&mut chain, head).await;
        let opened = Chain::open(&store, &orders()).await.unwrap().unwrap();
        assert_eq!(opened.head(), head);
        assert!(opened.positions().eq(chain.positions()));
        assert_eq!(opened.totals(), chain.totals());
    }
    assert_eq!(streams(&store).await.unwrap(), [orders()]);
}

#[tokio::test]
async fn a_snapshot_without_the_commit_that_wanted_it_is_a_sound_end() {
    let faulty = faultless();
    let mut chain = begun(&faulty.store()).await;
    grow(&mut chain, 65).await;
    lose(&faulty, &layout::entry(&orders(), 65)).await;
    let mut again = Chain::open(&faulty.store(), &orders()).await.unwrap().unwrap();
    assert_eq!((again.head(), again.position(0).unwrap().end), (64, 630));
    grow(&mut again, 65).await;
}

#[tokio::test]
async fn two_writers_of_different_partitions_both_commit() {
    let store = faultless().store();
    let (mut a, mut b) = (begun(&store).await, begun(&store).await);
    assert_eq!(committed(&mut a, &append("a", vec![range(0, 0, 5)]), "a").await, 1);
    assert_eq!(committed(&mut b, &append("b", vec![range(1, 0, 5)]), "b").await, 2);
    assert_eq!(b.position(0).unwrap().end, 5);
    a.refresh().await.unwrap();
    assert!(a.positions().eq(b.positions()));
}

#[tokio::test]
async fn a_writer_whose_partition_was_moved_yields_it_and_keeps_the_rest() {
    let store = faultless().store();
    let (mut frozen, mut next) = (begun(&store).await, begun(&store).await);
    committed(&mut next, &append("n", vec![range(0, 0, 50)]), "n").await;
    let late = append("f", vec![range(0, 0, 5), range(1, 0, 5)]);
    let outcome = frozen.commit(&late, "f", at(2)).await.unwrap();
    assert_eq!(outcome, Outcome::Moved(BTreeSet::from([0])));
    assert_eq!((frozen.head(), frozen.position(1)), (1, None));
    committed(&mut frozen, &append("f2", vec![range(1, 0, 5)]), "f").await;
    // The other one went on beyond a hole that this writer could not know of.
    let beyond = append("g", vec![range(0, 60, 65)]);
    assert_eq!(frozen.commit(&beyond, "f", at(2)).await.unwrap(), Outcome::Moved(BTreeSet::from([0])));
}

/// A session that was lost and came back at once: a partition is read again from before what its process had under way.
#[tokio::test]
async fn what_follows_a_change_that_came_too_late_is_too_late_itself() {
    let store = faultless().store();
    let mut chain = begun(&store).await;
    committed(&mut chain, &append("a", vec![range(0, 0, 50)]), "w").await;
    let moved = Outcome::Moved(BTreeSet::from([0]));
    for again in [range(0, 30, 60), range(0, 60, 65), range(0, 65, 70)] {
        assert_eq!(chain.commit(&append("b", vec![again]), "w", at(2)).await.unwrap(), moved);
    }
    committed(&mut chain, &append("c", vec![range(0, 50, 70)]), "w").await;
    let hole = chain.commit(&append("d", vec![range(0, 71, 72)]), "w", at(2)).await.unwrap_err();
    assert_eq!(hole.kind(), Kind::Internal, "{hole}");
}

#[tokio::test]
async fn a_position_that_was_learned_elsewhere_is_looked_up_before_it_is_called_a_hole() {
    let store = faultless().store();
    let mut frozen = begun(&store).await;
    committed(&mut frozen, &append("f", vec![range(0, 0, 5)]), "f").await;
    let mut next = begun(&store).await;
    committed(&mut next, &append("n", vec![range(0, 5, 50)]), "n").await;
    // The partition comes back to the first writer, and whoever gave it away has read the chain to its end.
    let back = append("g", vec![range(0, 50, 65)]);
    assert_eq!(committed(&mut frozen, &back, "f").await, 3);
}

#[tokio::test]
async fn changes_that_break_a_rule_are_refused_before_they_are_written() {
    let faulty = faultless();
    let mut chain = begun(&faulty.store()).await;
    committed(&mut chain, &append("a", vec![range(0, 0, 5)]), "w").await;
    let mut wrong = vec![
        ("a hole", append("b", vec![range(0, 6, 9)])),
        ("not a range", append("b", vec![range(0, 5, 5)])),
        ("appears twice", append("b", vec![range(1, 0, 1), range(1, 1, 2)])),
        ("an overlap", Change { gaps: vec![gap(1, 0, 5), gap(1, 4, 8)], ..Change::default() }),
        ("covers no partition", append("b", vec![])),
        ("no segment", Change::default()),
        ("listed as empty", Change { empty: vec![range(1, 0, 5)], ..Change::default() }),
        ("records cannot lie", append("b", vec![PartitionRange { records: 3, ..range(1, 0, 2) }])),
        ("least timestamp", append("b", vec![PartitionRange { min_timestamp: Some(9), ..range(1, 0, 2) }])),
    ];
    let mut change = append("b", vec![range(1, 0, 2)]);
    change.segments[0].sha256 = "5EG".into();
    wrong.push(("not a sha256", change));
    faulty.take_counts();
    for (expected, change) in wrong {
        let error = chain.commit(&change, "w", at(1)).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Internal);
        assert!(error.to_string().contains(expected), "{error} does not say {expected:?}");
    }
    assert_eq!(faulty.take_counts().written, 0);
}

#[tokio::test]
async fn a_lost_answer_is_recognised_also_when_more_was_added_to_the_change() {
    for more in [false, true] {
        for refreshed in [false, true] {
            let faulty = Faulty::new(1, Faults { lose_answer: 100, ..Faults::default() });
            begun(&faulty.sound_store()).await;
            let mut chain = Chain::open(&faulty.store(), &orders()).await.unwrap().unwrap();
            let mut change = append("a", vec![range(0, 0, 5), range(1, 0, 5)]);
            chain.commit(&change, "w", at(1)).await.unwrap_err();
            chain.store = faulty.sound_store();
            if refreshed {
                chain.refresh().await.unwrap();
            }
            if more {
                change.segments.push(segment("b", vec![range(0, 5, 9)]));
            }
            let expected = if more { 2 } else { 1 };
            assert_eq!(committed(&mut chain, &change, "w").await, expected);
            assert_eq!(chain.totals().segments, expected);
            assert_eq!(Chain::open(&faulty.sound_store(), &orders()).await.unwrap().unwrap().head(), expected);
        }
    }
}

#[tokio::test]
async fn a_lost_answer_before_a_snapshot_is_recognised_after_it() {
    let faulty = Faulty::new(1, Faults { lose_answer: 100, ..Faults::default() });
    let mut chain = begun(&faulty.sound_store()).await;
    grow(&mut chain, 62).await;
    chain.store = faulty.store();
    let mut change = append("a", vec![range(7, 0, 5)]);
    chain.commit(&change, "w", at(1)).await.unwrap_err();
    chain.store = faulty.sound_store();
    change.segments.push(segment("b", vec![range(7, 5, 9)]));
    assert_eq!(committed(&mut chain, &change, "w").await, 65);
    assert_eq!(chain.position(7).unwrap().end, 9);
}

#[tokio::test]
async fn several_lost_answers_in_a_row_are_all_recognised() {
    let faulty = Faulty::new(1, Faults { lose_answer: 100, ..Faults::default() });
    let mut chain = begun(&faulty.sound_store()).await;
    chain.store = faulty.store();
    let mut change = Change::default();
    for n in 0..3 {
        change.segments.push(segment(&format!("s{n}"), vec![range(0, n, n + 1)]));
        chain.commit(&change, "w", at(1)).await.unwrap_err();
        chain.refresh().await.unwrap();
    }
    chain.store = faulty.sound_store();
    // Another change of the same writer comes in between and is no answer to the first.
    assert_eq!(committed(&mut chain, &append("x", vec![range(1, 0, 5)]), "w").await, 4);
    assert_eq!(committed(&mut chain, &change, "w").await, 3);
    assert_eq!((chain.head(), chain.totals().segments), (4, 4));
    // It is answered once; later the range is simply covered.
    assert_eq!(chain.commit(&change, "w", at(1)).await.unwrap(), Outcome::Moved(BTreeSet::from([0])));
}

#[tokio::test]
async fn a_create_refused_although_nothing_is_there_is_tried_again() {
    let faulty = faultless();
    let mut chain = begun(&faulty.store()).await;
    faulty.refuse.store(2, Ordering::Relaxed);
    assert_eq!(committed(&mut chain, &append("a", vec![range(0, 0, 5)]), "w").await, 1);
    faulty.refuse.store(u64::MAX, Ordering::Relaxed);
    let error = chain.commit(&append("b", vec![range(0, 5, 9)]), "w", at(1)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
}

#[tokio::test]
async fn another_topic_id_is_fenced_and_an_unknown_one_is_not() {
    let store = faultless().store();
    begun(&store).await;
    let error = Chain::begin(&store, &orders(), begin_of("other"), "w", at(0)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Fenced);
    Chain::begin(&store, &orders(), Begin::topic(None, vec![Some(0)]), "w", at(0)).await.unwrap();
}

#[tokio::test]
async fn a_name_that_a_key_cannot_hold_is_refused() {
    for cluster in ["..", "a b%", "ä"] {
        let stream = TopicGeneration::new(cluster, "t", 0).stream();
        let error = Chain::begin(&faultless().store(), &stream, begin_of("id"), "w", at(0)).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Config, "{cluster}");
    }
}

#[tokio::test]
async fn a_hole_is_never_taken_for_the_end() {
    for hole in [0, 1, 64, 100, 128, 129, 192, 256, 257, 280, 298, 299] {
        let faulty = faultless();
        let mut chain = begun(&faulty.store()).await;
        grow(&mut chain, 300).await;
        lose(&faulty, &layout::entry(&orders(), hole)).await;
        match Chain::open(&faulty.store(), &orders()).await {
            // The entries since the last snapshot do not need what lies before it.
            Ok(opened) => {
                assert!(hole < 256, "the hole at {hole} was not seen");
                assert_eq!(opened.unwrap().head(), 300);
            }
            Err(error) => {
                assert_eq!(error.kind(), Kind::Corrupt);
                assert!(error.to_string().contains(&format!("{hole:020}.json is missing")), "{error}");
            }
        }
    }
}

#[tokio::test]
async fn a_deleted_beginning_is_not_begun_again() {
    let faulty = faultless();
    let mut chain = begun(&faulty.store()).await;
    grow(&mut chain, 700).await;
    for number in 0..650 {
        lose(&faulty, &layout::entry(&orders(), number)).await;
    }
    let error = Chain::begin(&faulty.store(), &orders(), begin_of("id"), "w", at(0)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
}

#[tokio::test]
async fn a_damaged_entry_names_its_object() {
    let faulty = faultless();
    let mut chain = begun(&faulty.store()).await;
    grow(&mut chain, 10).await;
    damage(&faulty, &layout::entry(&orders(), 7)).await;
    let error = Chain::open(&faulty.store(), &orders()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    assert!(
        error.to_string().contains("00000000000000000007.json")
            || error.to_string().contains("00000000000000000008.json")
    );
}

#[tokio::test]
async fn a_newer_format_is_refused_with_the_way_out() {
    let faulty = faultless();
    begun(&faulty.store()).await;
    let json = br#"{"format":6,"what":"is this"}"#;
    faulty.store().put(&layout::entry(&orders(), 1), json.to_vec().into()).await.unwrap();
    let error = Chain::open(&faulty.store(), &orders()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported);
    assert!(error.hint_text().unwrap().contains("update"));
}

#[tokio::test]
async fn an_entry_of_another_stream_or_number_is_refused() {
    let faulty = faultless();
    let mut chain = begun(&faulty.store()).await;
    grow(&mut chain, 1).await;
    let bytes = faulty.store().get(&layout::entry(&orders(), 1)).await.unwrap().unwrap();
    faulty.store().put(&layout::entry(&orders(), 2), bytes).await.unwrap();
    let error = Chain::open(&faulty.store(), &orders()).await.unwrap_err();
    assert!(error.to_string().contains("says that it is entry 1"), "{error}");
}

fn close_at(partition: i32, offset: i64) -> Close {
    Close { cuts: vec![Cut { partition, offset }], decided: at(2) }
}

#[tokio::test]
async fn nothing_is_added_to_a_generation_that_has_ended() {
    let store = faultless().store();
    let mut chain = begun(&store).await;
    grow(&mut chain, 2).await;
    let mut other = Chain::open(&store, &orders()).await.unwrap().unwrap();
    chain.close(&close_at(0, 15), "w", at(2)).await.unwrap();
    chain.close(&close_at(0, 5), "w", at(2)).await.unwrap();
    assert_eq!((chain.head(), chain.closed()), (3, Some(&close_at(0, 15))), "it ends once");

    let append = append("late", vec![range(1, 0, 4)]);
    let gap = Change { gaps: vec![gap(1, 0, 4)], ..Change::default() };
    for change in [append, gap] {
        assert_eq!(other.commit(&change, "o", at(3)).await.unwrap(), Outcome::Closed, "{change:?}");
    }
    let opened = Chain::open(&store, &orders()).await.unwrap().unwrap();
    assert_eq!((opened.head(), opened.closed()), (3, chain.closed()));
    assert_eq!(super::scan::scanned(&store).await, (4, 0, vec![]), "a scan finds it sound");
}

#[tokio::test]
async fn an_end_whose_answer_was_lost_is_not_written_twice_and_a_wrong_one_not_at_all() {
    let store = faultless().store();
    let mut chain = begun(&store).await;
    grow(&mut chain, 62).await;
    for wrong in [close_at(0, 10_000), close_at(7, 0)] {
        assert_eq!(chain.close(&wrong, "w", at(2)).await.unwrap_err().kind(), Kind::Internal, "{wrong:?}");
    }
    let mut again = Chain::open(&store, &orders()).await.unwrap().unwrap();
    chain.close(&close_at(0, 15), "w", at(2)).await.unwrap();
    again.close(&close_at(0, 15), "w", at(2)).await.unwrap();
    assert_eq!((chain.head(), again.head()), (63, 63));
}

#[tokio::test]
async fn the_last_record_is_known_through_snapshots_and_until_something_is_lost_behind_it() {
    let store = faultless().store();
    let mut chain = begun(&store).await;
    grow(&mut chain, 61).await;
    let next = chain.position(0).unwrap().end;
    let last = LastRecord { partition: 0, offset: next + 9, leader_epoch: 4 };
    let mut change = append("with-epoch", vec![range(0, next, next + 10)]);
    change.segments[0].last = vec![LastRecord { offset: next + 10, ..last }];
    assert_eq!(chain.commit(&change, "w", at(1)).await.unwrap_err().kind(), Kind::Internal, "it is not in the segment");
    change.segments[0].last = vec![last];
    committed(&mut chain, &change, "w").await;
    let empty =
        PartitionRange { records: 0, min_timestamp: None, max_timestamp: None, ..range(0, next + 10, next + 12) };
    committed(&mut chain, &Change { empty: vec![empty], ..Change::default() }, "w").await;
    committed(&mut chain, &append("other", vec![range(1, 0, 4)]), "w").await;
    let mut opened = Chain::open(&store, &orders()).await.unwrap().unwrap();
    assert_eq!((opened.head(), opened.last_record(0), opened.last_record(1)), (65, Some(last), None), "by snapshot 64");
    let lost = Change { gaps: vec![gap(0, next + 12, next + 20)], ..Change::default() };
    committed(&mut opened, &lost, "w").await;
    assert_eq!(opened.last_record(0), None, "nobody can ask for what lies before a gap");
    change = append("without-epoch", vec![range(0, next + 20, next + 30)]);
    committed(&mut opened, &change, "w").await;
    assert_eq!(opened.last_record(0), None);
    assert_eq!(super::scan::scanned(&store).await.2, Vec::<String>::new());
}
