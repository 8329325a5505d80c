//! Which segments are chosen, and what is opened for that.

use std::collections::BTreeMap;
use std::ops::Range;

use super::*;
use crate::error::Kind;
use crate::manifest::Selection;
use crate::manifest::tests::faulty::{damage, lose};
use crate::store::layout;

fn times(from: i64, to: i64) -> Selection {
    Selection { timestamps: Some(from..to), ..Selection::default() }
}

fn offsets(partition: i32, from: i64, to: i64) -> Selection {
    Selection { partitions: Some(BTreeMap::from([(partition, from..to)])), ..Selection::default() }
}

#[tokio::test]
async fn everything_is_chosen_in_order_across_pages_of_all_levels() {
    let faulty = faultless();
    let mut chain = begun(&faulty.store()).await;
    grow(&mut chain, 4_300).await;
    let all = chain.select(&Selection::default()).await.unwrap();
    let starts: Vec<i64> = all.segments.iter().map(|segment| segment.partitions[0].start).collect();
    let expected: Vec<i64> = (0..chain.totals().segments as i64).map(|n| n * 10).collect();
    assert_eq!(starts, expected);
}

#[tokio::test]
async fn a_narrow_choice_opens_few_objects_and_misses_nothing() {
    let faulty = faultless();
    let mut chain = begun(&faulty.store()).await;
    grow(&mut chain, 9_000).await;
    let last = chain.position(0).unwrap().end;
    for (from, to) in [(0, 1), (9, 11), (5_000, 5_020), (41_234, 41_235), (last - 1, last), (last - 700, last - 650)] {
        for selection in [times(from, to), offsets(0, from, to)] {
            faulty.take_counts();
            let chosen = chain.select(&selection).await.unwrap();
            let starts: Vec<i64> = chosen.segments.iter().map(|segment| segment.partitions[0].start).collect();
            let expected: Vec<i64> = (0..last).step_by(10).filter(|start| *start < to && from < start + 10).collect();
            assert_eq!(starts, expected, "{selection:?}");
            let counts = faulty.take_counts();
            // By offset, two searches over 140 snapshots come before the page.
            let at_most = if selection.timestamps.is_some() { 3 } else { 20 };
            assert!(counts.read <= at_most, "{} objects for {selection:?}", counts.read);
        }
    }
    faulty.take_counts();
    assert_eq!(chain.select(&times(last, i64::MAX)).await.unwrap(), Default::default());
    assert_eq!(faulty.take_counts().read, 0);
}

#[tokio::test]
async fn offsets_of_partitions_that_came_and_went_are_found() {
    let faulty = faultless();
    let mut chain = begun(&faulty.store()).await;
    grow(&mut chain, 1_000).await;
    committed(&mut chain, &append("p1", vec![range(1, 100, 110)]), "w").await;
    grow(&mut chain, 5_000).await;
    committed(&mut chain, &append("p2", vec![range(2, 0, 10)]), "w").await;
    grow(&mut chain, 6_000).await;
    committed(&mut chain, &append("p1b", vec![range(1, 110, 120)]), "w").await;
    let chosen = async |partitions: &[(i32, Range<i64>)]| {
        let partitions = Some(partitions.iter().cloned().collect());
        let chosen = chain.select(&Selection { timestamps: None, partitions }).await.unwrap();
        chosen.segments.iter().map(|segment| called(&segment.object)).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(chosen(&[(1, 0..1_000)]).await, "p1 p1b");
    assert_eq!(chosen(&[(1, 0..100)]).await, "");
    assert_eq!(chosen(&[(1, 109..110)]).await, "p1");
    assert_eq!(chosen(&[(1, 110..111)]).await, "p1b");
    assert_eq!(chosen(&[(2, 0..i64::MAX)]).await, "p2");
    assert_eq!(chosen(&[(2, 5..6), (1, i64::MIN..101)]).await, "p1 p2");
    assert_eq!(chosen(&[(3, 0..1_000)]).await, "");
    assert_eq!(chosen(&[]).await, "");
}

#[tokio::test]
async fn disordered_timestamps_are_chosen_by_least_and_greatest() {
    let store = faultless().store();
    let mut chain = begun(&store).await;
    let disordered = |start, min, max| PartitionRange {
        min_timestamp: Some(min),
        max_timestamp: Some(max),
        ..range(0, start, start + 10)
    };
    for (name, part) in [("a", disordered(0, 50, 90)), ("b", disordered(10, -1, 70)), ("c", disordered(20, 60, 61))] {
        committed(&mut chain, &append(name, vec![part]), "w").await;
    }
    let chosen = async |from, to| {
        let chosen = chain.select(&times(from, to)).await.unwrap();
        chosen.segments.iter().map(|segment| called(&segment.object)).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(chosen(61, 62).await, "a b c");
    assert_eq!(chosen(62, 63).await, "a b");
    assert_eq!(chosen(90, 91).await, "a");
    assert_eq!(chosen(91, 99).await, "");
    assert_eq!(chosen(-1, 0).await, "b");
    // The end is not wanted, so a segment that starts there is not.
    assert_eq!(chosen(40, 50).await, "b");
}

#[tokio::test]
async fn gaps_are_chosen_by_offset_and_by_the_time_of_their_finding() {
    let store = faultless().store();
    let mut chain = begun(&store).await;
    grow(&mut chain, 10).await;
    let change = Change { gaps: vec![gap(1, 0, 100)], ..Change::default() };
    committed(&mut chain, &change, "w").await;
    grow(&mut chain, 140).await;
    let found = at(0).timestamp_millis();
    assert_eq!(chain.select(&times(found, found + 1)).await.unwrap().gaps, change.gaps);
    assert_eq!(chain.select(&times(found + 1, found + 2)).await.unwrap().gaps, []);
    assert_eq!(chain.select(&offsets(1, 99, 200)).await.unwrap().gaps, change.gaps);
    assert_eq!(chain.select(&offsets(1, 100, 200)).await.unwrap().gaps, []);
}

#[tokio::test]
async fn a_damaged_page_is_told_by_name_where_its_entries_do_not_help() {
    let faulty = faultless();
    let mut chain = begun(&faulty.store()).await;
    grow(&mut chain, 70).await;
    let page = layout::page(&orders(), &chain.pages[0].sha256);
    damage(&faulty, &page).await;
    assert_eq!(chain.select(&Selection::default()).await.unwrap().segments.len(), 69);
    lose(&faulty, &layout::entry(&orders(), 7)).await;
    let error = chain.select(&Selection::default()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    assert!(error.to_string().contains(page.as_ref()), "{error}");
}
