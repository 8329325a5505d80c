//! What is chosen, for any segments; and a topic of a month that is merged as time passes, with whoever does it killed now and then.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::manifest::Selection;
use crate::store::{Store, layout};
use crate::stream::{
    Begin, Change, Format, GapReason, Merge, PartitionRange, Retired, StreamId, TopicGeneration, sha256,
};

fn generation() -> TopicGeneration {
    TopicGeneration::new("main", "orders", 0)
}

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000, 0).expect("a time") + TimeDelta::seconds(seconds)
}

/// One record an offset, with its offset as its timestamp.
fn segment(name: &str, sealed: DateTime<Utc>, bytes: u64, ranges: &[(i32, i64, i64)]) -> SegmentRef {
    let range = |&(partition, start, end): &(i32, i64, i64)| PartitionRange {
        partition,
        start,
        end,
        records: (end - start).unsigned_abs(),
        min_timestamp: Some(start),
        max_timestamp: Some(end - 1),
    };
    SegmentRef {
        object: layout::segment(&generation(), sealed, name, 0, Format::Parquet).to_string(),
        format: Format::Parquet,
        bytes,
        sha256: sha256(name.as_bytes()),
        raw_bytes: bytes * 3,
        largest_record: 100,
        partitions: ranges.iter().map(range).collect(),
        last: Vec::new(),
        generation: 0,
        minimal: None,
    }
}

fn limits(now: DateTime<Utc>) -> Limits {
    Limits { max_bytes: 1_000, max_records: 1_000, after: TimeDelta::hours(1), now }
}

proptest! {
    /// Of any segments, what becomes one is next to each other, fits, and is what an entry may say.
    #[test]
    fn whatever_is_chosen_may_be_merged(
        appends in prop::collection::vec((prop::collection::btree_map(0..3_i32, (0..3_i64, 1..400_i64, 0..8_u8), 1..3), 1..700_u64, 0..6_u8), 1..40),
    ) {
        let (mut ends, mut gaps, mut left, mut segments) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new(), Vec::new());
        let mut told = Vec::new();
        for (number, (ranges, bytes, kind)) in appends.iter().enumerate() {
            let ranges: Vec<_> = ranges.iter().map(|(partition, (hole, length, lost))| {
                let end: &mut i64 = ends.entry(*partition).or_default();
                if *hole > 0 && *lost == 0 {
                    gaps.insert((*partition, *end));
                    told.push(Gap {
                        partition: *partition, start: *end, end: *end + hole, reason: GapReason::BrokerRetention, found: at(0), generation: 0,
                    });
                }
                let start = *end + hole;
                *end = start + length;
                (*partition, start, *end)
            }).collect();
            let mut one = segment(&format!("s{number}"), at(0), *bytes, &ranges);
            if *kind == 0 {
                one.format = Format::Avro;
            }
            if *kind == 1 {
                left.insert(one.object.clone());
            }
            segments.push(one);
        }
        let found = runs(&segments, &gaps, &left, limits(at(0)));
        let mut next = 0;
        for run in &found {
            prop_assert!(next <= run.start && run.len() > 1, "{:?}", found);
            next = run.end;
            let of = &segments[run.clone()];
            let mut hull: BTreeMap<i32, PartitionRange> = BTreeMap::new();
            for range in of.iter().flat_map(|one| &one.partitions) {
                hull.entry(range.partition).and_modify(|at| at.extend(range)).or_insert(*range);
            }
            let merge = Merge {
                segment: SegmentRef {
                    format: of[0].format,
                    partitions: hull.into_values().collect(),
                    raw_bytes: of.iter().map(|one| one.raw_bytes).sum(),
                    ..segment("merged", at(0), 1, &[])
                },
                replaces: of.iter().map(|one| one.object.clone()).collect(),
                retired: Retired::of(of),
                decided: at(0),
            };
            prop_assert_eq!(crate::stream::invariants::merge_is_sound(&merge), Ok(()));
            prop_assert_eq!(crate::stream::invariants::merge_replaces_its_range(&merge, of, &told), Ok(()));
            prop_assert!(of.iter().map(|one| one.bytes).sum::<u64>() <= 1_000);
            prop_assert!(of.iter().map(SegmentRef::records).sum::<u64>() <= 1_000);
            prop_assert!(of.iter().all(|one| one.bytes <= 500 && one.format == of[0].format && !left.contains(&one.object)));
        }
        // Two that stand next to each other and would fit are not left apart.
        for pair in 0..segments.len() - 1 {
            let is_free = |at: usize| !found.iter().any(|run| run.contains(&at));
            if is_free(pair) && is_free(pair + 1) {
                prop_assert!(runs(&segments[pair..pair + 2], &gaps, &left, limits(at(0))).is_empty());
            }
        }
    }
}

/// A topic with a segment a minute of two partitions, one of them in every third only.
struct Quiet {
    store: Store,
    chain: Chain,
    ends: [i64; 2],
    merged: u64,
}

impl Quiet {
    async fn begun() -> Self {
        let store = Store::over(Arc::new(object_store::memory::InMemory::new()), "memory:///");
        let stream = StreamId::Kafka(generation());
        let begin = Begin::topic(Some("id".into()), vec![Some(0), Some(0)]);
        let chain = Chain::begin(&store, &stream, begin, "w", at(0)).await.expect("it begins");
        Self { store, chain, ends: [0, 0], merged: 0 }
    }

    async fn append(&mut self, minute: i64) {
        let mut ranges = vec![(0, self.ends[0], self.ends[0] + 60)];
        self.ends[0] += 60;
        if minute % 3 == 0 {
            ranges.push((1, self.ends[1], self.ends[1] + 5));
            self.ends[1] += 5;
        }
        let one = segment(&format!("a{minute}"), at(minute * 60), 10, &ranges);
        let change = Change { segments: vec![one], ..Change::default() };
        self.chain.commit(&change, "w", at(minute * 60)).await.expect("it is committed");
    }

    /// Merges all that is due; gives when something is due again.
    async fn merge(&mut self, looked: &mut Looked, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        loop {
            let limits = Limits { max_bytes: 64 << 20, max_records: 1_000_000, ..limits(now) };
            let runs = match looked.next(&self.chain, &BTreeSet::new(), limits).await.expect("it can be read") {
                Found::Nothing(due) => return due,
                Found::Runs(runs) => runs,
            };
            for run in runs {
                let mut hull: BTreeMap<i32, PartitionRange> = BTreeMap::new();
                for range in run.segments.iter().flat_map(|one| &one.partitions) {
                    hull.entry(range.partition).and_modify(|at| at.extend(range)).or_insert(*range);
                }
                self.merged += 1;
                let retired = Retired::of(&run.segments);
                let segment = SegmentRef {
                    partitions: hull.into_values().collect(),
                    raw_bytes: retired.raw_bytes,
                    ..segment(&format!("m{}", self.merged), run.sealed, 100, &[])
                };
                let replaces = run.segments.iter().map(|one| one.object.clone()).collect();
                let merge = Merge { segment, replaces, retired, decided: now };
                assert!(self.chain.merge(&merge, "m", now).await.expect("committed"), "it is refused");
            }
        }
    }

    async fn segments(&self, selection: &Selection) -> Vec<SegmentRef> {
        self.chain.select(selection).await.expect("it can be read").segments
    }
}

#[tokio::test]
async fn a_quiet_topic_of_days_is_left_with_a_segment_an_hour_whoever_goes_on() {
    const DAYS: i64 = 4;
    let mut topic = Quiet::begun().await;
    let mut looked = Looked::default();
    for minute in 0..DAYS * 1_440 {
        topic.append(minute).await;
        if minute % 97 == 0 {
            topic.merge(&mut looked, at(minute * 60)).await;
        }
        if minute % 701 == 0 {
            // Another process goes on, and knows nothing.
            (looked, topic.chain) = (Looked::default(), reopened(&topic).await);
        }
    }
    let end = DAYS * 86_400;
    let due = topic.merge(&mut looked, at(end)).await.expect("the last hours wait");
    assert!(at(end) < due && due <= at(end + 3_600), "{due}");
    topic.merge(&mut looked, at(end + 7_200)).await;
    let all = topic.segments(&Selection::default()).await;
    assert_eq!(all.len() as i64, DAYS * 24, "one an hour of what were {} segments", DAYS * 1_440);
    let mut next = [0, 0];
    for range in all.iter().flat_map(|one| &one.partitions) {
        let at = &mut next[range.partition as usize];
        assert_eq!((range.start, range.records), (*at, (range.end - range.start).unsigned_abs()));
        *at = range.end;
    }
    assert_eq!(next, topic.ends, "each offset once, in order");
    assert_eq!(topic.merge(&mut Looked::default(), at(end + 7_200)).await, None, "and nothing is left to do");
    // Days later by offset and by time, through the pages that tell of merges.
    let chain = reopened(&topic).await;
    assert_eq!(chain.totals().present().records, (topic.ends[0] + topic.ends[1]).unsigned_abs());
    assert!(!chain.has_expired());
    let middle = topic.ends[0] / 2;
    let of = BTreeMap::from([(0, middle..middle + 1)]);
    for selection in [
        Selection { timestamps: None, partitions: Some(of.clone()) },
        Selection { timestamps: Some(middle..middle + 1), partitions: Some(of) },
    ] {
        let found = chain.select(&selection).await.expect("it can be read").segments;
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].partitions[0].start <= middle && middle < found[0].partitions[0].end);
    }
}

async fn reopened(topic: &Quiet) -> Chain {
    Chain::open(&topic.store, topic.chain.stream()).await.expect("sound").expect("begun")
}

#[tokio::test]
async fn a_gap_and_a_large_segment_end_a_run_and_the_rest_goes_on() {
    let mut topic = Quiet::begun().await;
    let one = |name: &str, bytes, start: i64, end: i64| segment(name, at(0), bytes, &[(0, start, end)]);
    let lost = Gap { partition: 0, start: 20, end: 25, reason: GapReason::Unreadable, found: at(0), generation: 0 };
    for (segment, gaps) in [
        (one("a", 10, 0, 10), Vec::new()),
        (one("b", 10, 10, 20), vec![lost]),
        (one("c", 10, 25, 30), Vec::new()),
        (one("d", 10, 31, 40), Vec::new()),
        (one("e", 40 << 20, 40, 50), Vec::new()),
        (one("f", 10, 50, 60), Vec::new()),
        (one("g", 10, 60, 70), Vec::new()),
    ] {
        let hole = PartitionRange { records: 0, min_timestamp: None, max_timestamp: None, ..segment.partitions[0] };
        let empty = if hole.start == 31 { vec![PartitionRange { start: 30, end: 31, ..hole }] } else { Vec::new() };
        let change = Change { segments: vec![segment], empty, gaps };
        topic.chain.commit(&change, "w", at(0)).await.expect("it is committed");
    }
    assert!(topic.merge(&mut Looked::default(), at(10)).await.is_some(), "it is young");
    assert_eq!(topic.merge(&mut Looked::default(), at(9_000)).await, None);
    let ranges: Vec<_> = topic
        .segments(&Selection::default())
        .await
        .iter()
        .map(|one| (one.partitions[0].start, one.partitions[0].end))
        .collect();
    assert_eq!(ranges, [(0, 20), (25, 40), (40, 50), (50, 70)]);
    assert_eq!(topic.chain.select(&Selection::default()).await.expect("read").gaps.len(), 1);
}

/// What a scan of the chain finds damaged, once its last entry is this one.
async fn damaged_by(topic: &Quiet, merge: Merge) -> u64 {
    let (stream, number) = (topic.chain.stream(), topic.chain.head() + 1);
    let before = topic.store.get(&layout::entry(stream, number - 1)).await.expect("read").expect("there");
    let checkpoint = crate::stream::Checkpoint {
        format: 4,
        stream: stream.to_string(),
        number,
        previous: Some(sha256(&before)),
        writer: "w".into(),
        at: at(9_000),
        body: Body::Merge(merge),
    };
    let bytes = crate::manifest::entry::encode(&checkpoint).expect("encoded");
    topic.store.put(&layout::entry(stream, number), bytes).await.expect("stored");
    let mut scan = crate::manifest::ChainScan::new(&topic.store, stream).await.expect("a scan");
    let mut damaged = 0;
    while let Some(step) = scan.next().await.expect("an answer") {
        damaged += u64::from(matches!(step, crate::manifest::ScanStep::Damaged { .. }));
    }
    damaged
}

#[tokio::test]
async fn a_scan_finds_a_merge_of_records_that_lies() {
    let mut topic = Quiet::begun().await;
    for minute in 0..6 {
        topic.append(minute).await;
    }
    let segments = topic.segments(&Selection::default()).await;
    let of = |replaced: &[SegmentRef], partitions: Vec<PartitionRange>| {
        let retired = Retired::of(replaced);
        let replaces = replaced.iter().map(|one| one.object.clone()).collect();
        let segment = SegmentRef { partitions, raw_bytes: retired.raw_bytes, ..segment("merged", at(0), 10, &[]) };
        Merge { segment, replaces, retired, decided: at(9_000) }
    };
    let range = |partition, start: i64, end: i64| segment("r", at(0), 1, &[(partition, start, end)]).partitions[0];
    let true_one = of(&segments[1..3], vec![range(0, 60, 180)]);
    assert_eq!(damaged_by(&topic, true_one.clone()).await, 0, "one that tells the truth");
    // Two, of which one is not what lies there; one that leaves out what lies in its range; one that leaves out a partition.
    let mut other = true_one.clone();
    other.replaces[1] = segments[4].object.clone();
    let around =
        of(&[segments[1].clone(), segments[4].clone()], vec![PartitionRange { records: 120, ..range(0, 60, 300) }]);
    let half = of(&segments[2..4], vec![PartitionRange { records: 125, ..range(0, 120, 240) }]);
    for lie in [other, around, half] {
        assert_eq!(damaged_by(&topic, lie.clone()).await, 1, "{lie:?}");
    }
    assert_eq!(damaged_by(&topic, true_one).await, 0);

    // One over what is lost is refused, and found where somebody has written it all the same.
    let mut topic = Quiet::begun().await;
    let lost = Gap { partition: 0, start: 10, end: 15, reason: GapReason::Unreadable, found: at(0), generation: 0 };
    for (name, start, end, gaps) in [("a", 0, 10, vec![lost]), ("b", 15, 20, Vec::new())] {
        let change = Change { segments: vec![segment(name, at(0), 10, &[(0, start, end)])], gaps, ..Change::default() };
        topic.chain.commit(&change, "w", at(0)).await.expect("it is committed");
    }
    let segments = topic.segments(&Selection::default()).await;
    let over = of(&segments, vec![PartitionRange { records: 15, ..range(0, 0, 20) }]);
    assert!(!topic.chain.merge(&over, "m", at(9_000)).await.expect("an answer"), "it is taken");
    let other = of(&segments, vec![PartitionRange { records: 15, ..range(0, 0, 20) }]);
    assert_eq!(damaged_by(&topic, other).await, 1);
}

#[test]
fn the_golden_entry_of_a_merge_of_records_is_read_and_written_to_the_byte() {
    let bytes = include_bytes!("../tests/golden/record-merge.json");
    let stream = StreamId::Kafka(generation());
    let read = crate::manifest::entry::decode(&stream, 3, layout::entry(&stream, 3), bytes).expect("it is read");
    let small = [segment("a", at(0), 10, &[(0, 0, 20)]), segment("b", at(0), 10, &[(0, 20, 30), (1, 5, 9)])];
    let merge = Merge {
        segment: SegmentRef { raw_bytes: 60, ..segment("merged", at(0), 10, &[(0, 0, 30), (1, 5, 9)]) },
        replaces: small.iter().map(|one| one.object.clone()).collect(),
        retired: Retired::of(&small),
        decided: at(2),
    };
    assert_eq!((read.checkpoint.body.merge(), read.checkpoint.format), (Some(&merge), 4));
    assert_eq!(crate::manifest::entry::encode(&read.checkpoint).expect("encoded"), bytes[..]);
}

#[tokio::test]
async fn entries_of_before_a_merge_stay_readable_for_programs_of_before_and_those_behind_do_not() {
    let mut topic = Quiet::begun().await;
    for minute in 0..63 {
        topic.append(minute).await;
    }
    topic.merge(&mut Looked::default(), at(9_000)).await;
    for minute in 63..130 {
        topic.append(minute).await;
    }
    let mut formats = Vec::new();
    for number in 0..=topic.chain.head() {
        let bytes = topic.store.get(&layout::entry(topic.chain.stream(), number)).await.expect("read").expect("there");
        let json: serde_json::Value = serde_json::from_slice(&bytes).expect("JSON");
        formats.push((number, json["kind"].as_str().expect("a kind").to_owned(), json["format"].as_u64()));
    }
    let newer: Vec<_> = formats.iter().filter(|(_, _, format)| *format != Some(1)).collect();
    assert!(
        newer.iter().all(|(number, kind, format)| (kind == "merge" || *number == 128) && *format == Some(4)),
        "{newer:?}"
    );
    assert!(newer.len() >= 2 && newer.last().is_some_and(|(number, ..)| *number == 128), "{newer:?}");
}
