//! Entries of random ages, shapes and numbers; readers that hold some; several that give up at once.

use std::collections::BTreeSet;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::manifest::Change;
use crate::manifest::reads::{Offsets, Reads, held};
use crate::record::{Block, TimestampType};
use crate::segment::{Encoding, SegmentInfo, SegmentWriter};
use crate::stream::{Begin, Format, Gap, GapReason, SegmentRef, TopicLife};

/// Later than the objects of a test are by their store's clock, so that what entries say decides.
fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(4_000_000_000 + seconds, 0).expect("a time")
}

fn life() -> TopicLife {
    TopicLife::new("main", "orders", 0)
}

fn store() -> Store {
    Store::over(Arc::new(object_store::memory::InMemory::new()), "memory:///")
}

async fn opened(store: &Store) -> Chain {
    Chain::open(store, &life().stream()).await.expect("it can be read").expect("it is there")
}

async fn begun(store: &Store) -> Chain {
    let begin = Begin::topic(Some("id".into()), vec![Some(0); 3]);
    Chain::begin(store, &life().stream(), begin, "w", at(0)).await.expect("it begins")
}

fn range(partition: i32, start: i64, len: i64) -> PartitionRange {
    let records = len.unsigned_abs();
    let (min_timestamp, max_timestamp) = (Some(start), Some(start + len - 1));
    PartitionRange { partition, start, end: start + len, records, min_timestamp, max_timestamp }
}

fn segment(n: u64, partitions: Vec<PartitionRange>) -> SegmentRef {
    SegmentRef {
        object: layout::segment(&life(), at(0), "w", n, Format::Parquet).to_string(),
        format: Format::Parquet,
        bytes: 100,
        sha256: "0".repeat(64),
        raw_bytes: 500,
        largest_record: 10,
        partitions,
        last: Vec::new(),
        life: 0,
    }
}

/// What an entry adds to each partition: records, a gap, or nothing that can be read.
#[derive(Debug, Clone)]
struct Added {
    after: i64,
    lens: [i64; 3],
    gap: bool,
    empty: bool,
}

fn added() -> impl Strategy<Value = Added> {
    let len = || prop_oneof![Just(0), 1..20_i64];
    ((0..5_i64), [len(), len(), len()], prop::bool::weighted(0.1), prop::bool::weighted(0.1))
        .prop_map(|(after, lens, gap, empty)| Added { after, lens, gap, empty })
}

/// Commits them; gives the objects of each entry with its age.
async fn archived(store: &Store, all: &[Added]) -> Vec<(i64, String)> {
    let mut chain = begun(store).await;
    let (mut time, mut objects) = (0, Vec::new());
    for (n, added) in (0..).zip(all) {
        time += added.after;
        let place = |partition: usize| chain.position(partition as i32).map_or(0, |at| at.end);
        let filled = (0..3).filter(|partition| added.lens[*partition] > 0);
        let ranges: Vec<_> = filled.map(|p| range(p as i32, place(p), added.lens[p])).collect();
        if ranges.is_empty() {
            continue;
        }
        let change = match (added.gap, added.empty) {
            (true, _) => {
                let gap = |lost: &PartitionRange| Gap {
                    partition: lost.partition,
                    start: lost.start,
                    end: lost.end,
                    reason: GapReason::BrokerRetention,
                    found: at(time),
                    life: 0,
                };
                Change { gaps: ranges.iter().map(gap).collect(), ..Change::default() }
            }
            (_, true) => {
                let none = |at: &PartitionRange| PartitionRange {
                    records: 0,
                    min_timestamp: None,
                    max_timestamp: None,
                    ..*at
                };
                Change { empty: ranges.iter().map(none).collect(), ..Change::default() }
            }
            _ => {
                let segment = segment(n, ranges);
                objects.push((time, segment.object.clone()));
                Change { segments: vec![segment], ..Change::default() }
            }
        };
        chain.commit(&change, "w", at(time)).await.expect("committed");
    }
    objects
}

async fn listed(chain: &Chain) -> BTreeSet<String> {
    let all = chain.select(&Selection::default()).await.expect("selected");
    all.segments.into_iter().map(|segment| segment.object).collect()
}

async fn case(all: Vec<Added>, horizon: i64, read: Option<(i32, i64, i64)>, at_once: u64) {
    let store = store();
    let objects = archived(&store, &all).await;
    let (mut one, mut two) = (opened(&store).await, opened(&store).await);
    let before = opened(&store).await;
    let offsets = read.map(|(partition, start, len)| {
        Offsets::from([(life().stream().to_string(), BTreeMap::from([(partition, start..start + len)]))])
    });
    if let Some(offsets) = &offsets {
        Reads::new("r".into(), "a test".into(), offsets.clone()).write(&store, "main").await.expect("written");
    }
    let held = held(&store, "main", crate::time::now()).await.expect("read");
    let past = then(&one, at(horizon)).await.expect("looked");
    let steps = steps(&one, &past, &held, at_once).await.expect("planned");
    let expected = sum(&one, &steps).await.expect("summed");
    let first = give_up(&mut one, &steps, ("e", at(9_000))).await.expect("given up");
    let second = give_up(&mut two, &steps, ("f", at(9_001))).await.expect("given up");
    assert_eq!((first, second), (expected, Retired::default()), "one of the two has it");

    let after = opened(&store).await;
    let kept = listed(&after).await;
    let young: BTreeSet<String> = objects.iter().filter(|(time, _)| *time > horizon).map(|one| one.1.clone()).collect();
    assert!(young.is_subset(&kept), "nothing younger than the horizon goes");
    let reads_old = offsets.is_some_and(|offsets| {
        let ranges = before.positions().filter_map(|now| {
            let old = past.progress.position(now.partition)?;
            Some((now.partition, now.start..old.end)).filter(|(_, range)| !range.is_empty())
        });
        let going: BTreeMap<i32, Range<i64>> = ranges.collect();
        offsets.values().flatten().any(|(partition, read)| {
            going.get(partition).is_some_and(|going| read.start < going.end && going.start < read.end)
        })
    });
    match reads_old {
        true => assert_eq!(kept, listed(&before).await, "what is read stays"),
        false => assert_eq!(kept, young, "and all that is older goes, whole segments alone"),
    }
    assert_eq!(after.totals().present().segments, kept.len() as u64);
    for now in before.positions() {
        assert_eq!(after.position(now.partition).map(|at| at.end), Some(now.end), "where archiving goes on");
        assert_eq!(after.reached(now.partition), before.reached(now.partition));
    }
    let again = then(&after, at(horizon)).await.expect("looked");
    if !reads_old {
        assert_eq!(surplus(&after, &again, &held).await.expect("planned"), Vec::<BTreeMap<i32, i64>>::new());
        let first = after.select(&Selection::default()).await.expect("selected").segments;
        let ranges = first.iter().flat_map(|segment| &segment.partitions);
        let mut firsts: BTreeMap<i32, i64> = BTreeMap::new();
        for at in ranges {
            firsts.entry(at.partition).or_insert(at.start);
        }
        let told = oldest(&after).await.expect("looked");
        match after.totals().retired.is_nothing() {
            true => assert_eq!(told, after.totals().min_timestamp),
            false => assert_eq!(told, firsts.values().min().copied(), "timestamps are offsets here"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Also across snapshots, by one and by many entries, and with a horizon before all and after all.
    #[test]
    fn what_goes_is_old_whole_and_not_read_and_archiving_goes_on_where_it_was(
        all in prop::collection::vec(added(), 1..150),
        horizon in -1..300_i64,
        read in prop::option::of((0..3_i32, 0..400_i64, 1..50_i64)),
        at_once in 1..3_u64,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(case(all, horizon, read, at_once));
    }
}

#[tokio::test]
async fn what_the_store_has_dated_later_is_as_young_as_that() {
    let store = store();
    // A writer whose clock is years behind, or a bucket that was copied.
    let long_ago = DateTime::from_timestamp(1_000_000_000, 0).expect("a time");
    let begin = Begin::topic(Some("id".into()), vec![Some(0)]);
    let stream = life().stream();
    let mut chain = Chain::begin(&store, &stream, begin, "w", long_ago).await.expect("it begins");
    let change = Change { segments: vec![segment(0, vec![range(0, 0, 10)])], ..Change::default() };
    chain.commit(&change, "w", long_ago).await.expect("committed");
    let past = then(&chain, crate::time::now() - TimeDelta::hours(1)).await.expect("looked");
    assert_eq!(past.progress.positions().count(), 0);
    let later = then(&chain, crate::time::now() + TimeDelta::hours(1)).await.expect("looked");
    assert_eq!(later.progress.positions().count(), 1, "and no younger");
    assert_eq!(surplus(&chain, &past, &Held::default()).await.expect("planned"), Vec::<BTreeMap<i32, i64>>::new());
}

/// A real segment of these ranges, uploaded at a time; none of it in the chain yet.
async fn stored(store: &Store, n: u64, ranges: &[(i32, i64, i64)]) -> SegmentRef {
    let folder = tempfile::tempdir().expect("a directory");
    let info = SegmentInfo { stream: life(), topic_id: Some("id".into()), writer: "w".into(), created: at(0) };
    let encoding = Encoding { format: Format::Avro, zstd_level: 1 };
    let path = folder.path().join("segment");
    let mut writer = SegmentWriter::create(&path, info, encoding).expect("created");
    let blocks = ranges.iter().map(|(partition, start, end)| {
        let mut block = Block::new(*partition, 64);
        for offset in *start..*end {
            block.push(offset, offset, TimestampType::Create, 0, None, Some(b"value"), std::iter::empty());
        }
        block
    });
    drop(writer.write(blocks.collect()).expect("written"));
    let sealed = writer.finish(ranges).expect("finished");
    let key = layout::segment(&life(), at(0), "w", n, Format::Avro);
    store.put(&key, std::fs::read(&sealed.path).expect("read").into()).await.expect("stored");
    sealed.to_ref(key.to_string())
}

#[tokio::test]
async fn objects_go_an_hour_after_they_were_given_up_unless_they_are_read() {
    let store = store();
    let mut chain = begun(&store).await;
    let mut keys = Vec::new();
    for (n, ranges) in [[(0, 0, 10), (1, 0, 5)], [(0, 10, 20), (1, 5, 9)], [(0, 20, 30), (1, 9, 12)]].iter().enumerate()
    {
        let segment = stored(&store, n as u64, ranges).await;
        keys.push(segment.object.clone());
        let change = Change { segments: vec![segment], ..Change::default() };
        chain.commit(&change, "w", at(n as i64 * 100)).await.expect("committed");
    }
    // Lost a race for what is old, and for what is kept.
    let lost = stored(&store, 10, &[(0, 0, 20)]).await.object;
    let may_count = stored(&store, 11, &[(0, 10, 40)]).await.object;
    let damaged = layout::segment(&life(), at(0), "w", 12, Format::Avro);
    store.put(&damaged, b"damaged".to_vec().into()).await.expect("stored");
    let there = async || {
        let listed = store.list(&layout::topic_segments(&life())).await.expect("a list");
        listed.into_iter().map(|object| object.location.to_string()).collect::<BTreeSet<_>>()
    };
    let all = there().await;
    let nobody = Held::default();
    let past = then(&chain, at(150)).await.expect("looked");
    assert_eq!(past.next, Some(at(200)));
    let steps = surplus(&chain, &past, &nobody).await.expect("planned");
    give_up(&mut chain, &steps, ("e", at(300))).await.expect("given up");
    let hour = at(300) + GRACE;
    let early = sweep(&store, &chain, (hour - TimeDelta::seconds(1), at(150)), &nobody).await.expect("swept");
    assert_eq!((early, there().await), (Swept { deleted: 0, waits: true }, all.clone()));
    let offsets = BTreeMap::from([(1, 3..4)]);
    let read = Reads::new("r".into(), "a test".into(), Offsets::from([(life().stream().to_string(), offsets)]));
    read.write(&store, "main").await.expect("written");
    let read = held(&store, "main", crate::time::now()).await.expect("read");
    let held_up = sweep(&store, &chain, (hour, at(150)), &read).await.expect("swept");
    assert_eq!((held_up, there().await), (Swept { deleted: 0, waits: true }, all.clone()));
    let swept = sweep(&store, &chain, (hour, at(150)), &nobody).await.expect("swept");
    assert_eq!(swept, Swept { deleted: 3, waits: false });
    let gone: BTreeSet<String> = [keys[0].clone(), keys[1].clone(), lost].into();
    assert_eq!(there().await, all.difference(&gone).cloned().collect());
    assert!(there().await.contains(&may_count) && there().await.contains(damaged.as_ref()));
    assert_eq!(sweep(&store, &chain, (hour, at(150)), &nobody).await.expect("swept").deleted, 0);
    // A replay of what is kept is in nobody's way, one that cannot be read in everybody's.
    let hold = layout::topic_hold("main", "x");
    store.put(&hold, b"{".to_vec().into()).await.expect("stored");
    let odd = held(&store, "main", crate::time::now()).await.expect("read");
    assert!(odd.any_of("kafka/main/other.0", &BTreeMap::new()));
    let late = held(&store, "main", crate::time::now() + TimeDelta::hours(7)).await.expect("read");
    assert!(!late.any_of(&life().stream().to_string(), &BTreeMap::from([(1, 0..99)])), "its time is over");
}

#[tokio::test]
async fn a_replay_of_very_many_partitions_is_held_too() {
    let store = store();
    let partitions: BTreeMap<i32, Range<i64>> = (0..20_000).map(|partition| (partition, 0..1_000_000)).collect();
    let offsets = Offsets::from([(life().stream().to_string(), partitions.clone())]);
    Reads::new("large".into(), "a replay".into(), offsets).write(&store, "main").await.expect("it is written");
    let held = held(&store, "main", crate::time::now()).await.expect("it is read");
    assert!(held.any_of(
        &life().stream().to_string(),
        &BTreeMap::from([partitions.last_key_value().map(|(at, range)| (*at, range.clone())).expect("the last")])
    ));
}
