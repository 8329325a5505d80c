//! Entries of random ages, shapes and numbers; readers that hold some; several that expire at once.

mod merged;

use std::collections::BTreeSet;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::manifest::Change;
use crate::manifest::reads::{self, Offsets, Reads, held};
use crate::record::{Block, TimestampType};
use crate::segment::{Encoding, SegmentInfo, SegmentWriter};
use crate::store::{Store, layout};
use crate::stream::{Begin, Format, Gap, GapReason, SegmentRef, TopicGeneration};

/// Later than the objects of a test are by their store's clock, so that what entries say decides.
fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(4_000_000_000 + seconds, 0).expect("a time")
}

fn generation() -> TopicGeneration {
    TopicGeneration::new("main", "orders", 0)
}

fn store() -> Store {
    Store::over(Arc::new(object_store::memory::InMemory::new()), "memory:///")
}

async fn opened(store: &Store) -> Chain {
    Chain::open(store, &generation().stream()).await.expect("it can be read").expect("it is there")
}

async fn begun(store: &Store) -> Chain {
    let begin = Begin::topic(Some("id".into()), vec![Some(0); 3]);
    Chain::begin(store, &generation().stream(), begin, "w", at(0)).await.expect("it begins")
}

fn range(partition: i32, start: i64, len: i64) -> PartitionRange {
    let records = len.unsigned_abs();
    let (min_timestamp, max_timestamp) = (Some(start), Some(start + len - 1));
    PartitionRange { partition, start, end: start + len, records, min_timestamp, max_timestamp }
}

fn segment(n: u64, partitions: Vec<PartitionRange>) -> SegmentRef {
    sealed(n, partitions, at(0))
}

fn sealed(n: u64, partitions: Vec<PartitionRange>, at: DateTime<Utc>) -> SegmentRef {
    SegmentRef {
        object: layout::segment(&generation(), at, "w", n, Format::Parquet).to_string(),
        format: Format::Parquet,
        bytes: 100,
        sha256: "0".repeat(64),
        raw_bytes: 500,
        largest_record: 10,
        partitions,
        last: Vec::new(),
        generation: 0,
        minimal: None,
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
    archive_more(&mut begun(store).await, all, (&mut 0, &mut 0)).await
}

async fn archive_more(chain: &mut Chain, all: &[Added], (n, time): (&mut u64, &mut i64)) -> Vec<(i64, String)> {
    let mut objects = Vec::new();
    for added in all {
        (*n, *time) = (*n + 1, *time + added.after);
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
                    found: at(*time),
                    generation: 0,
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
                let segment = segment(*n, ranges);
                objects.push((*time, segment.object.clone()));
                Change { segments: vec![segment], ..Change::default() }
            }
        };
        chain.commit(&change, "w", at(*time)).await.expect("committed");
    }
    objects
}

async fn listed(chain: &Chain) -> BTreeSet<String> {
    let all = chain.select(&Selection::default()).await.expect("selected");
    all.segments.into_iter().map(|segment| segment.object).collect()
}

/// What is to be expired, some entries at a time, and how far that goes.
async fn planned(chain: &Chain, held: &Held, clock: Clock, most: u64) -> (Vec<BTreeMap<i32, i64>>, Aged) {
    let (mut aged, mut steps) = (Aged::default(), Vec::new());
    loop {
        aged.go_on_over(chain, (clock, None), most).await.expect("looked");
        steps.push(aged.expirable(chain, held, clock).await.expect("planned"));
        if !aged.more {
            steps.retain(|step| !step.is_empty());
            return (steps, aged);
        }
    }
}

fn until(horizon: i64) -> Clock {
    Clock { now: at(9_000), horizon: at(horizon) }
}

async fn case(all: Vec<Added>, horizon: i64, read: Option<(i32, i64, i64)>, at_once: u64) {
    let store = store();
    let objects = archived(&store, &all).await;
    let (mut one, mut two) = (opened(&store).await, opened(&store).await);
    let before = opened(&store).await;
    let offsets = read.map(|(partition, start, len)| {
        Offsets::from([(generation().stream().to_string(), BTreeMap::from([(partition, start..start + len)]))])
    });
    if let Some(offsets) = &offsets {
        Reads::new("r".into(), "a test".into(), offsets.clone()).write(&store, "main").await.expect("written");
    }
    let held = held(&store, "main", crate::time::now()).await.expect("read");
    let (steps, past) = planned(&one, &held, until(horizon), at_once).await;
    let expected = sum(&one, &steps).await.expect("summed");
    let first = expire(&mut one, &steps, ("e", at(9_000))).await.expect("expired");
    let second = expire(&mut two, &steps, ("f", at(9_001))).await.expect("expired");
    assert_eq!((first, second), (expected, Retired::default()), "one of the two has it");

    let after = opened(&store).await;
    let kept = listed(&after).await;
    let young: BTreeSet<String> = objects.iter().filter(|(time, _)| *time > horizon).map(|one| one.1.clone()).collect();
    assert!(young.is_subset(&kept), "nothing younger than the horizon goes");
    let reads_old = offsets.as_ref().is_some_and(|offsets| {
        let ranges = before.positions().filter_map(|now| {
            let old = past.progress().position(now.partition)?;
            Some((now.partition, now.start..old.end)).filter(|(_, range)| !range.is_empty())
        });
        let going: BTreeMap<i32, Range<i64>> = ranges.collect();
        offsets.values().flatten().any(|(partition, read)| {
            going.get(partition).is_some_and(|going| read.start < going.end && going.start < read.end)
        })
    });
    let read = Selection { timestamps: None, partitions: offsets.and_then(|of| of.into_values().next()) };
    let needed = before.select(&read).await.expect("selected").segments;
    match reads_old {
        true => assert!(needed.iter().all(|segment| kept.contains(&segment.object)), "what is read stays"),
        false => assert_eq!(kept, young, "all that is older goes, whole segments alone"),
    }
    assert_eq!(after.totals().present().segments, kept.len() as u64);
    for now in before.positions() {
        assert_eq!(after.position(now.partition).map(|at| at.end), Some(now.end), "where archiving goes on");
        assert_eq!(after.reached(now.partition), before.reached(now.partition));
    }
    if !reads_old {
        assert_eq!(planned(&after, &held, until(horizon), at_once).await.0, Vec::<BTreeMap<i32, i64>>::new());
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
        at_once in 1..100_u64,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(case(all, horizon, read, at_once));
    }
}

/// Expires by time and size, some entries at a time, in a chain that grows; held against the segments in their order.
async fn size_case(all: Vec<Added>, (kept, horizon): (u64, i64), rounds: usize, at_once: u64) {
    let store = store();
    let mut objects: Vec<(i64, String)> = Vec::new();
    let (mut aged, mut time, mut n) = (Aged::default(), 0, 0);
    let mut chain = begun(&store).await;
    let clock = Clock { now: at(9_000), horizon: at(horizon) };
    for some in all.chunks(all.len().div_ceil(rounds)) {
        objects.extend(archive_more(&mut chain, some, (&mut n, &mut time)).await);
        let before = listed(&chain).await;
        let nobody = Held::default();
        loop {
            aged.go_on_over(&chain, (clock, Some(kept)), at_once).await.expect("looked");
            let step = aged.expirable(&chain, &nobody, clock).await.expect("planned");
            expire(&mut chain, &[step], ("e", at(time))).await.expect("expired");
            if !aged.more {
                break;
            }
        }
        let after = listed(&chain).await;
        // Every segment has a hundred bytes. What was there in the order of the entries, of which one may name several.
        let there: Vec<&(i64, String)> = objects.iter().filter(|one| before.contains(&one.1)).collect();
        let old = there.iter().take_while(|one| one.0 <= horizon).count();
        let beyond = (there.len() as u64).saturating_sub(kept.div_ceil(100)) as usize;
        let expected: BTreeSet<String> = there[old.max(beyond)..].iter().map(|one| one.1.clone()).collect();
        assert_eq!(after, expected, "the newest {kept} bytes at least, and nothing that is not needed for it");
        let again = aged.wanted;
        aged.go_on_over(&chain, (clock, Some(kept)), at_once).await.expect("looked");
        assert_eq!(aged.expirable(&chain, &nobody, clock).await.expect("planned"), BTreeMap::new(), "{again:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// What is known from round to round and what a new process finds out are the same, also across snapshots.
    #[test]
    fn what_lies_beyond_the_size_goes_and_no_more(
        all in prop::collection::vec(added(), 1..200),
        kept in prop_oneof![Just(0), 1..30_u64].prop_flat_map(|segments| segments * 100..segments * 100 + 100),
        horizon in prop_oneof![Just(-1), -1..300_i64],
        rounds in 1..6_usize,
        at_once in 1..100_u64,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(size_case(all, (kept, horizon), rounds, at_once));
    }
}

/// The service has what it knows of the last round, a command has nothing: they decide the same.
#[tokio::test]
async fn a_size_is_decided_the_same_from_what_is_known_and_from_nothing() {
    let store = store();
    let mut chain = begun(&store).await;
    let clock = Clock { now: at(9_000), horizon: DateTime::<Utc>::MIN_UTC };
    let mut known = Aged::default();
    for n in 0..300_u64 {
        let change = Change { segments: vec![segment(n, vec![range(0, n as i64 * 10, 10)])], ..Change::default() };
        chain.commit(&change, "w", at(n as i64)).await.expect("committed");
        if n % 37 > 0 {
            continue;
        }
        let mut fresh = Aged::default();
        let mut steps = Vec::new();
        for aged in [&mut known, &mut fresh] {
            aged.go_on(&chain, clock, Some(2_000)).await.expect("looked");
            steps.push(aged.expirable(&chain, &Held::default(), clock).await.expect("planned"));
        }
        assert_eq!(steps[0], steps[1]);
        let dated = fresh.sealed_by(clock).horizon;
        assert!(steps[0].is_empty() || dated == at(steps[0][&0] / 10 - 1), "no younger segment is looked at: {dated}");
        expire(&mut chain, &steps[..1], ("e", at(n as i64))).await.expect("expired");
        let left = chain.totals().present().stored_bytes;
        assert_eq!(left, 2_000.min((n + 1) * 100), "just the size: a segment more would leave less");
    }
}

/// The first of partition 1 lies behind a stretch without records; a later segment, which partition 0 begins with, has more of it.
#[tokio::test]
async fn the_oldest_record_is_found_behind_a_stretch_without_any() {
    let store = store();
    let mut chain = begun(&store).await;
    let mut commit = async |change: Change, seconds: i64| {
        chain.commit(&change, "w", at(seconds)).await.expect("committed");
    };
    let records = |n, ranges| Change { segments: vec![segment(n, ranges)], ..Change::default() };
    commit(records(0, vec![range(2, 0, 10)]), 0).await;
    let none = PartitionRange { records: 0, min_timestamp: None, max_timestamp: None, ..range(1, 0, 10) };
    commit(Change { empty: vec![none], ..Change::default() }, 100).await;
    commit(records(1, vec![range(1, 10, 5)]), 101).await;
    commit(records(2, vec![range(0, 500, 5), range(1, 15, 5)]), 102).await;
    let (steps, _) = planned(&chain, &Held::default(), until(50), 100).await;
    expire(&mut chain, &steps, ("e", at(9_000))).await.expect("expired");
    assert!(!chain.totals().retired.is_nothing(), "something is expired");
    assert_eq!(oldest(&chain).await.expect("looked"), Some(10));
}

#[tokio::test]
async fn what_the_store_has_dated_later_is_as_young_as_that() {
    let store = store();
    // A writer whose clock is years behind, or a bucket that was copied.
    let long_ago = DateTime::from_timestamp(1_000_000_000, 0).expect("a time");
    let begin = Begin::topic(Some("id".into()), vec![Some(0)]);
    let stream = generation().stream();
    let mut chain = Chain::begin(&store, &stream, begin, "w", long_ago).await.expect("it begins");
    let change = Change { segments: vec![segment(0, vec![range(0, 0, 10)])], ..Change::default() };
    chain.commit(&change, "w", long_ago).await.expect("committed");
    let aged = async |horizon: DateTime<Utc>| {
        let mut aged = Aged::default();
        aged.go_on(&chain, Clock { now: crate::time::now() + TimeDelta::hours(2), horizon }, None)
            .await
            .expect("looked");
        aged.progress().positions().count()
    };
    assert_eq!(aged(crate::time::now() - TimeDelta::hours(1)).await, 0);
    assert_eq!(aged(crate::time::now() + TimeDelta::hours(1)).await, 1, "and no younger");
}

/// An entry, and the clock by which it was written.
#[derive(Debug, Clone)]
struct Clocked {
    after: i64,
    /// By how much the clock was ahead, or behind.
    off: i64,
    records: bool,
}

fn clocked() -> impl Strategy<Value = Vec<Clocked>> {
    let off = prop_oneof![3 => Just(0), 2 => -100_000..0_i64, 1 => 0..3_000_i64];
    let stretch = (off, prop::collection::vec((0..40_i64, prop::bool::weighted(0.8)), 1..25));
    prop::collection::vec(stretch, 1..8).prop_map(|stretches| {
        let all = stretches
            .into_iter()
            .flat_map(|(off, all)| all.into_iter().map(move |(after, records)| Clocked { after, off, records }));
        all.collect()
    })
}

/// What was archived: when by the right time, and how it is dated.
struct Archived {
    time: i64,
    dated: i64,
    object: Option<String>,
}

/// Commits a range; one with records says in them when they were written, or nothing of use.
async fn archived_by(chain: &mut Chain, n: u64, (entry, time): (&Clocked, i64), are_told: bool) -> Archived {
    let start = chain.position(0).map_or(0, |at| at.end);
    let written = Some(if are_told { at(time).timestamp_millis() } else { 0 });
    let range = PartitionRange { min_timestamp: written, max_timestamp: written, ..range(0, start, 5) };
    let none = PartitionRange { records: 0, min_timestamp: None, max_timestamp: None, ..range };
    let dated = time + entry.off;
    let segment = sealed(n, vec![range], at(dated));
    let object = entry.records.then(|| segment.object.clone());
    let change = match entry.records {
        true => Change { segments: vec![segment], ..Change::default() },
        false => Change { empty: vec![none], ..Change::default() },
    };
    chain.commit(&change, "w", at(dated)).await.expect("committed");
    Archived { time, dated, object }
}

async fn clocks_case(all: Vec<Clocked>, kept: i64, are_told: bool) {
    let store = store();
    let begin = Begin::topic(Some("id".into()), vec![Some(0); 3]);
    let mut chain = Chain::begin(&store, &generation().stream(), begin, "w", at(-200_000)).await.expect("it begins");
    let (mut now, mut kept_from, mut archived, mut aged) = (0, 0, Vec::new(), Aged::default());
    for (n, entry) in (0..).zip(&all) {
        now += entry.after;
        archived.push(archived_by(&mut chain, n, (entry, now), are_told).await);
        // Rounds with what is known of the last one, and without.
        let clock = Clock { now: at(now), horizon: at(now - kept) };
        match n % 5 {
            0 => aged = Aged::default(),
            1 => {}
            _ => continue,
        }
        aged.go_on(&chain, clock, None).await.expect("looked");
        let step = aged.expirable(&chain, &Held::default(), clock).await.expect("planned");
        expire(&mut chain, &[step], ("w", at(now))).await.expect("expired");
        let left = listed(&chain).await;
        let mut youngest = i64::MIN;
        for entry in archived.iter().skip(kept_from) {
            youngest = youngest.max(if entry.dated <= now { entry.dated } else { i64::MIN });
            let is_gone = entry.object.as_ref().is_some_and(|object| !left.contains(object));
            // Where the records tell the right time nothing goes that is younger than the age by the right time.
            assert!(!is_gone || !are_told || entry.time <= now - kept, "{} went at {now}", entry.time);
            assert!(!is_gone || youngest <= now - kept, "something before it is young: {} at {now}", entry.time);
        }
        kept_from = chain.position(0).map_or(0, |at| at.start / 5) as usize;
    }
    // What was dated ahead keeps nothing for ever.
    let latest = archived.iter().map(|entry| entry.dated.max(entry.time)).max().unwrap_or(0);
    let clock = Clock { now: at(latest + kept), horizon: at(latest) };
    let (steps, _) = planned(&chain, &Held::default(), clock, 1_000).await;
    expire(&mut chain, &steps, ("w", clock.now)).await.expect("expired");
    assert_eq!(listed(&chain).await, BTreeSet::new());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Clocks that are behind, ahead, and right by turns; the store's is the same one, as on a disk.
    #[test]
    fn no_order_of_dates_expires_what_is_young(
        all in clocked(), kept in 1..600_i64, are_told in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(clocks_case(all, kept, are_told));
    }
}

#[tokio::test]
async fn nothing_is_expired_while_the_last_entry_is_dated_ahead_of_now() {
    let folder = tempfile::tempdir().expect("a directory");
    let files = object_store::local::LocalFileSystem::new_with_prefix(folder.path()).expect("opened");
    let store = Store::over(Arc::new(files), "file:///archive");
    let mut chain = begun(&store).await;
    for n in 0..2 {
        let change = Change { segments: vec![segment(n, vec![range(0, n as i64 * 10, 10)])], ..Change::default() };
        chain.commit(&change, "w", at(n as i64)).await.expect("committed");
    }
    let (now, horizon) = (at(9_000), at(1));
    for (ahead, goes) in [(TimeDelta::seconds(1), false), (TimeDelta::zero(), true)] {
        let file = folder.path().join(layout::entry(chain.stream(), chain.head()).as_ref());
        let file = std::fs::File::options().write(true).open(file).expect("opened");
        file.set_modified((now + GRACE + ahead).into()).expect("dated");
        let clock = Clock { now, horizon };
        let (steps, aged) = planned(&chain, &Held::default(), clock, 1_000).await;
        assert_eq!(
            aged.progress().positions().map(|at| at.end).collect::<Vec<_>>(),
            [10],
            "the first of the two is old"
        );
        assert_eq!(!steps.is_empty(), goes);
    }
}

/// A real segment of these ranges, uploaded at a time; none of it in the chain yet.
async fn stored(store: &Store, n: u64, ranges: &[(i32, i64, i64)]) -> SegmentRef {
    let folder = tempfile::tempdir().expect("a directory");
    let info = SegmentInfo { stream: generation(), topic_id: Some("id".into()), writer: "w".into(), created: at(0) };
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
    let key = layout::segment(&generation(), at(0), "w", n, Format::Avro);
    store.put(&key, std::fs::read(&sealed.path).expect("read").into()).await.expect("stored");
    sealed.to_ref(key.to_string())
}

#[tokio::test]
async fn objects_go_an_hour_after_they_were_expired_unless_they_are_read() {
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
    let damaged = layout::segment(&generation(), at(0), "w", 12, Format::Avro);
    store.put(&damaged, b"damaged".to_vec().into()).await.expect("stored");
    let there = async || {
        let listed = store.list(&layout::topic_segments(&generation())).await.expect("a list");
        listed.into_iter().map(|object| object.location.to_string()).collect::<BTreeSet<_>>()
    };
    let all = there().await;
    let nobody = Held::default();
    let (steps, past) = planned(&chain, &nobody, until(150), 1_000).await;
    assert_eq!(past.next, Some(at(200)));
    let clock = |now| Clock { now, horizon: at(150) };
    let fresh = Stays::default;
    expire(&mut chain, &steps, ("e", at(300))).await.expect("expired");
    let hour = at(300) + GRACE;
    let early = delete_expired(&store, &chain, clock(hour - TimeDelta::seconds(1)), &nobody, &mut fresh())
        .await
        .expect("deleted");
    assert_eq!((early, there().await), (Deletion { deleted: 0, waits: true }, all.clone()));
    let offsets = BTreeMap::from([(1, 3..4)]);
    let read = Reads::new("r".into(), "a test".into(), Offsets::from([(generation().stream().to_string(), offsets)]));
    read.write(&store, "main").await.expect("written");
    let read = held(&store, "main", crate::time::now()).await.expect("read");
    let held_up = delete_expired(&store, &chain, clock(hour), &read, &mut fresh()).await.expect("deleted");
    assert_eq!((held_up, there().await), (Deletion { deleted: 0, waits: true }, all.clone()));
    let mut stays = Stays::default();
    let deletion = delete_expired(&store, &chain, clock(hour), &nobody, &mut stays).await.expect("deleted");
    assert_eq!(deletion, Deletion { deleted: 3, waits: false });
    let gone: BTreeSet<String> = [keys[0].clone(), keys[1].clone(), lost].into();
    assert_eq!(there().await, all.difference(&gone).cloned().collect());
    assert!(there().await.contains(&may_count) && there().await.contains(damaged.as_ref()));
    // What stays is not opened again, neither where nothing was expired since nor where something was.
    let kept = layout::object(&keys[2]).expect("a key");
    for key in [may_count.as_str(), damaged.as_ref()] {
        let key = layout::object(key).expect("a key");
        assert!(stays.segments.contains_key(&key), "{key}");
        store.put(&key, b"changed".to_vec().into()).await.expect("stored");
    }
    assert_eq!(delete_expired(&store, &chain, clock(hour), &nobody, &mut stays).await.expect("deleted").deleted, 0);
    assert_eq!(delete_expired(&store, &chain, clock(hour), &nobody, &mut fresh()).await.expect("deleted").deleted, 0);
    expire(&mut chain, &[BTreeMap::from([(0, 30), (1, 12)])], ("e", at(400))).await.expect("expired");
    let hour = at(400) + GRACE;
    let last = delete_expired(&store, &chain, clock(hour), &nobody, &mut stays).await.expect("deleted");
    assert_eq!((last.deleted, there().await.contains(kept.as_ref())), (1, false), "and goes without in its time");
    assert!(there().await.contains(&may_count), "it reaches beyond what was expired");
    // A replay of what is kept is in nobody's way, one that cannot be read in everybody's.
    let hold = layout::topic_hold("main", "x");
    store.put(&hold, b"{".to_vec().into()).await.expect("stored");
    let odd = held(&store, "main", crate::time::now()).await.expect("read");
    assert!(odd.any_of("kafka/main/other.0", &BTreeMap::new()));
    let late = held(&store, "main", crate::time::now() + TimeDelta::hours(7)).await.expect("read");
    assert!(!late.any_of(&generation().stream().to_string(), &BTreeMap::from([(1, 0..99)])), "its time is over");
    for (hours, left) in [(7, 3), (25, 1)] {
        store.put(&layout::topic_holds("main").join("clock"), b"{}".to_vec().into()).await.expect("stored");
        reads::remove_lapsed(&store, "main", crate::time::now() + TimeDelta::hours(hours)).await.expect("deleted");
        assert_eq!(store.list(&layout::topic_holds("main")).await.expect("a list").len(), left, "the clock stays");
    }
}

#[tokio::test]
async fn a_replay_of_very_many_partitions_is_held_too() {
    let store = store();
    let partitions: BTreeMap<i32, Range<i64>> = (0..20_000).map(|partition| (partition, 0..1_000_000)).collect();
    let offsets = Offsets::from([(generation().stream().to_string(), partitions.clone())]);
    Reads::new("large".into(), "a replay".into(), offsets).write(&store, "main").await.expect("it is written");
    let held = held(&store, "main", crate::time::now()).await.expect("it is read");
    assert!(held.any_of(
        &generation().stream().to_string(),
        &BTreeMap::from([partitions.last_key_value().map(|(at, range)| (*at, range.clone())).expect("the last")])
    ));
}

/// What lies beyond a size is young: its objects go all the same, and nothing that is sealed later is opened for it.
#[tokio::test]
async fn objects_beyond_a_size_go_an_hour_later_however_young_they_are_and_held_ones_stay() {
    let store = store();
    let mut chain = begun(&store).await;
    let mut sizes = Vec::new();
    for n in 0..4_i64 {
        let segment = stored(&store, n.unsigned_abs(), &[(0, n * 10, n * 10 + 10)]).await;
        sizes.push(segment.bytes);
        let change = Change { segments: vec![segment], ..Change::default() };
        chain.commit(&change, "w", at(n)).await.expect("committed");
    }
    let clock = |now| Clock { now, horizon: DateTime::<Utc>::MIN_UTC };
    let read = BTreeMap::from([(0, 12..13)]);
    let read = Reads::new("r".into(), "a test".into(), Offsets::from([(generation().stream().to_string(), read)]));
    read.write(&store, "main").await.expect("written");
    let held = held(&store, "main", crate::time::now()).await.expect("read");
    let (nobody, mut aged) = (Held::default(), Aged::default());
    // Just the last two, and a byte more: then the one before them is needed, too.
    // What is read keeps it there meanwhile, and it is not counted twice.
    let two = sizes[2] + sizes[3];
    for (kept, end) in [(two + 1, 10), (two, 20), (two, 20)] {
        aged.go_on(&chain, clock(at(9)), Some(kept)).await.expect("looked");
        assert_eq!(aged.expirable(&chain, &nobody, clock(at(9))).await.expect("planned"), BTreeMap::from([(0, end)]));
    }
    assert_eq!(aged.expirable(&chain, &held, clock(at(9))).await.expect("planned"), BTreeMap::new(), "it is read");
    expire(&mut chain, &[BTreeMap::from([(0, 20)])], ("e", at(9))).await.expect("expired");
    let hour = aged.sealed_by(clock(at(9) + GRACE));
    assert!(at(1) <= hour.horizon && hour.horizon < at(2), "no later than what goes: {}", hour.horizon);
    let of = async |held: &Held| {
        delete_expired(&store, &chain, hour, held, &mut Stays::default()).await.expect("deleted").deleted
    };
    assert_eq!((of(&held).await, of(&nobody).await), (0, 2));
}
