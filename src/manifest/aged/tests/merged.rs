//! Retention of a topic of which something was merged: by time, by size and both.

use super::*;
use crate::manifest::merging::{Limits, runs};
use crate::stream::Merge;

/// What a merged segment has, of however many it was made.
const MERGED_BYTES: u64 = 60;

/// Merges what lies next to each other, at most so many at once and none that is left; gives what was put in the place of what.
async fn merge(chain: &mut Chain, (most, left): (u64, &BTreeSet<String>)) -> BTreeMap<String, Vec<String>> {
    let found = chain.select(&Selection::default()).await.expect("selected");
    let gaps = found.gaps.iter().map(|gap| (gap.partition, gap.start)).collect();
    let limits = Limits { max_bytes: most * 100, max_records: u64::MAX, after: TimeDelta::seconds(1), now: at(1_000) };
    let mut merged = BTreeMap::new();
    for run in runs(&found.segments, &gaps, left, limits) {
        let of = &found.segments[run];
        let mut ranges: BTreeMap<i32, PartitionRange> = BTreeMap::new();
        for range in of.iter().flat_map(|one| &one.partitions) {
            ranges.entry(range.partition).and_modify(|at| at.extend(range)).or_insert(*range);
        }
        let retired = Retired::of(of);
        let number = 100_000 + merged.len() as u64;
        let one = SegmentRef {
            bytes: MERGED_BYTES,
            raw_bytes: retired.raw_bytes,
            ..segment(number, ranges.into_values().collect())
        };
        let replaces: Vec<String> = of.iter().map(|one| one.object.clone()).collect();
        merged.insert(one.object.clone(), replaces.clone());
        let merge = Merge { segment: one, replaces, retired, decided: at(1_000) };
        assert!(chain.merge(&merge, "m", at(1_000)).await.expect("an answer"), "it is refused");
    }
    merged
}

async fn case(all: Vec<Added>, (most, left): (u64, Vec<usize>), (kept, horizon): (Option<u64>, i64), at_once: u64) {
    let store = store();
    let objects = archived(&store, &all).await;
    let mut chain = opened(&store).await;
    let left = left.iter().filter_map(|at| objects.get(at % objects.len().max(1))).map(|one| one.1.clone()).collect();
    let merged = merge(&mut chain, (most, &left)).await;
    assert_eq!(chain.has_merges(), !merged.is_empty());
    assert!(!chain.has_expired(), "merging expires nothing");
    // What is there, by the place of the youngest entry that each holds, with its age and size.
    let place = |object: &String| objects.iter().position(|one| one.1 == *object).expect("it was archived");
    let live = listed(&chain).await;
    let mut there: Vec<(usize, i64, u64, String)> = Vec::new();
    for object in &live {
        let (youngest, bytes) = match merged.get(object) {
            Some(replaced) => (replaced.iter().map(place).max().expect("some"), MERGED_BYTES),
            None => (place(object), 100),
        };
        there.push((youngest, objects[youngest].0, bytes, object.clone()));
    }
    there.sort();
    let clock = until(horizon);
    let mut aged = Aged::default();
    loop {
        aged.go_on_over(&chain, (clock, kept), at_once).await.expect("looked");
        let step = aged.expirable(&chain, &Held::default(), clock).await.expect("planned");
        let expected = sum(&chain, std::slice::from_ref(&step)).await.expect("summed");
        let gone = expire(&mut chain, &[step], ("e", at(9_000))).await.expect("expired");
        assert_eq!(gone, expected);
        if !aged.more {
            break;
        }
    }
    let old = there.iter().take_while(|one| one.1 <= horizon).count();
    let stays = |from: usize| there[from..].iter().map(|one| one.2).sum::<u64>();
    let beyond = kept.map_or(0, |kept| (0..=there.len()).rev().find(|from| kept <= stays(*from)).unwrap_or(0));
    let expected: BTreeSet<String> = there[old.max(beyond)..].iter().map(|one| one.3.clone()).collect();
    assert_eq!(listed(&chain).await, expected, "each as a whole, the youngest of it decides: {there:?}");
    let after = opened(&store).await;
    assert_eq!(after.totals().present().segments, expected.len() as u64);
    assert_eq!(after.totals().present().stored_bytes, stays(old.max(beyond)));
    assert_eq!(after.has_expired(), expected.len() < live.len());
    let begins = |at: &PartitionRange| after.position(at.partition).is_some_and(|now| now.start <= at.start);
    let kept = after.select(&Selection::default()).await.expect("selected").segments;
    assert!(kept.iter().flat_map(|segment| &segment.partitions).all(begins), "none is cut");
    let firsts = after.select(&Selection::default()).await.expect("selected").segments;
    let firsts = firsts.iter().flat_map(|segment| &segment.partitions);
    let mut starts: BTreeMap<i32, i64> = BTreeMap::new();
    for at in firsts {
        starts.entry(at.partition).or_insert(at.start);
    }
    if after.has_expired() {
        assert_eq!(
            oldest(&after).await.expect("looked"),
            starts.values().min().copied(),
            "timestamps are offsets here"
        );
    }
    let mut scan = crate::manifest::ChainScan::new(&store, &generation().stream()).await.expect("a scan");
    while let Some(step) = scan.next().await.expect("an answer") {
        assert!(!matches!(step, crate::manifest::ScanStep::Damaged { .. }), "{step:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn what_was_merged_goes_as_a_whole_when_the_youngest_of_it_may(
        all in prop::collection::vec(added(), 1..150),
        most in 2..20_u64,
        left in prop::collection::vec(0..150_usize, 0..6),
        kept in prop::option::of(0..4_000_u64),
        horizon in prop_oneof![Just(-1), -1..300_i64],
        at_once in 1..100_u64,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(case(all, (most, left), (kept, horizon), at_once));
    }
}

/// Somebody else may merge what does not stand next to each other: the segment between goes with what stays, or not at all.
#[tokio::test]
async fn what_lies_behind_something_that_stays_is_never_cut() {
    let store = store();
    let mut chain = begun(&store).await;
    for (n, ranges) in
        [vec![range(0, 0, 10), range(2, 0, 10)], vec![range(0, 10, 10), range(1, 0, 10)], vec![range(2, 10, 10)]]
            .into_iter()
            .enumerate()
    {
        let change = Change { segments: vec![segment(n as u64, ranges)], ..Change::default() };
        chain.commit(&change, "w", at(n as i64)).await.expect("committed");
    }
    let before = chain.select(&Selection::default()).await.expect("selected").segments;
    let of = [before[0].clone(), before[2].clone()];
    let merge = Merge {
        segment: SegmentRef { raw_bytes: 1_000, ..segment(9, vec![range(0, 0, 10), range(2, 0, 20)]) },
        replaces: of.iter().map(|one| one.object.clone()).collect(),
        retired: Retired::of(&of),
        decided: at(3),
    };
    assert!(chain.merge(&merge, "m", at(3)).await.expect("an answer"), "it is refused");
    let (steps, _) = planned(&chain, &Held::default(), until(1), 100).await;
    assert_eq!(steps, Vec::<BTreeMap<i32, i64>>::new(), "what is old is kept by what was merged with something young");
    assert_eq!(planned(&chain, &Held::default(), until(3), 100).await.0.len(), 1);
}
