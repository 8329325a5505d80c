//! Merges and expiries: what they refuse, what readers see, and three writers at once (an archiver, a merger and
//! retention) in every order, with requests that fail, answers that get lost, writes that come late and processes that
//! die between two steps.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::faulty::{Dice, Faults};
use super::*;
use crate::error::Kind;
use crate::manifest::{ChainScan, ScanStep, Selection};
use crate::store::layout;
use crate::stream::{Merge, Retired, System};

/// The bytes of a block, after which a segment ends.
const BLOCK: i64 = 64;

fn postgres() -> StreamId {
    StreamId::Postgres { system_id: 7 }
}

fn system() -> Begin {
    Begin::Postgres(System { system_id: 7, wal_segment_size: 16 << 20, server_version: 15 })
}

fn wal(object: &str, timeline: i32, start: i64, end: i64) -> SegmentRef {
    let bytes = u64::try_from(end - start).unwrap();
    let key = layout::wal_segment(7, timeline.cast_unsigned(), start.cast_unsigned()..end.cast_unsigned(), object, 0);
    SegmentRef {
        object: key.to_string(),
        format: Format::Wal,
        bytes,
        raw_bytes: bytes,
        ..segment(object, vec![range(timeline, start, end)])
    }
}

fn appended(object: &str, timeline: i32, start: i64, end: i64) -> Change {
    Change { segments: vec![wal(object, timeline, start, end)], ..Change::default() }
}

fn merged(object: &str, replaced: &[SegmentRef]) -> Merge {
    let (first, last) = (replaced[0].partitions[0], replaced[replaced.len() - 1].partitions[0]);
    Merge {
        segment: wal(object, first.partition, first.start, last.end),
        replaces: replaced.iter().map(|segment| segment.object.clone()).collect(),
        retired: Retired::of(replaced),
        decided: at(5),
    }
}

async fn opened(store: &Store) -> Chain {
    Chain::begin(store, &postgres(), system(), "w", at(0)).await.unwrap()
}

async fn named(chain: &Chain, partitions: &[(i32, i64, i64)]) -> String {
    let partitions = partitions.iter().map(|(timeline, start, end)| (*timeline, *start..*end)).collect();
    let selected = chain.select(&Selection { timestamps: None, partitions: Some(partitions) }).await.unwrap();
    let name = |segment: &SegmentRef| called(&segment.object);
    selected.segments.iter().map(name).collect::<Vec<_>>().join(" ")
}

/// Four segments of 16 on timeline 1, named a to d.
async fn four(store: &Store) -> (Chain, Vec<SegmentRef>) {
    let mut chain = opened(store).await;
    let mut segments = Vec::new();
    for (n, name) in ["a", "b", "c", "d"].iter().enumerate() {
        let start = n as i64 * 16;
        let change = appended(name, 1, start, start + 16);
        committed(&mut chain, &change, "w").await;
        segments.extend(change.segments);
    }
    (chain, segments)
}

#[tokio::test]
async fn a_merge_takes_the_place_of_what_it_replaces() {
    let store = faultless().store();
    let (mut chain, segments) = four(&store).await;
    assert!(chain.merge(&merged("m", &segments[1..3]), "m", at(5)).await.unwrap());
    let again = Chain::open(&store, &postgres()).await.unwrap().unwrap();
    for chain in [&chain, &again] {
        assert_eq!(named(chain, &[(1, 0, 64)]).await, "a m d");
        assert_eq!(named(chain, &[(1, 20, 21)]).await, "m");
        assert_eq!(chain.position(1).map(|at| (at.start, at.end)), Some((0, 64)));
        let present = chain.totals().present();
        assert_eq!((present.segments, present.raw_bytes, present.records), (3, 64, 64));
    }
    // A merge of a merge, and the same one again: it is there.
    let all = [segments[0].clone(), merged("m", &segments[1..3]).segment, segments[3].clone()];
    assert!(chain.merge(&merged("all", &all), "m", at(5)).await.unwrap());
    assert_eq!(named(&chain, &[(1, 0, 64)]).await, "all");
    assert!(!chain.merge(&merged("all", &all), "m", at(5)).await.unwrap(), "it came a second time");
    let retired = chain.retired(BTreeMap::from([(1, 0..64)])).await.unwrap().retired;
    assert_eq!(retired.keys().map(|key| called(key)).collect::<Vec<_>>(), ["a", "b", "m", "c", "d"]);
}

#[tokio::test]
async fn a_merge_that_does_not_fit_is_refused_and_nothing_is_written() {
    let faulty = faultless();
    let (mut chain, segments) = four(&faulty.store()).await;
    faulty.take_counts();
    let late = [
        ("a hole", [segments[0].clone(), segments[2].clone()].to_vec()),
        ("unknown", [segments[0].clone(), wal("x", 1, 16, 32)].to_vec()),
        ("not archived", [segments[3].clone(), wal("e", 1, 64, 80)].to_vec()),
    ];
    for (why, replaced) in late {
        let mut merge = merged("m", &replaced);
        // Sound in itself: only the chain can tell.
        merge.segment.raw_bytes = merge.retired.raw_bytes;
        let records = &mut merge.segment.partitions[0];
        (records.records, records.min_timestamp, records.max_timestamp) = (merge.retired.records, Some(0), Some(1));
        assert!(!chain.merge(&merge, "m", at(5)).await.unwrap(), "{why}");
    }
    let mut wrong = merged("m", &segments[..1]);
    assert_eq!(chain.merge(&wrong, "m", at(5)).await.unwrap_err().kind(), Kind::Internal, "one is no merge");
    wrong = merged("m", &segments[..2]);
    wrong.retired.records += 1;
    assert_eq!(chain.merge(&wrong, "m", at(5)).await.unwrap_err().kind(), Kind::Internal, "it does not add up");
    assert_eq!(faulty.take_counts().written, 0);
    let error = begun(&faulty.store()).await.commit(&appended("a", 1, 0, 5), "w", at(1)).await.unwrap_err();
    assert!(error.to_string().contains("does not belong here"), "{error}");
}

#[tokio::test]
async fn what_is_expired_is_seen_no_more() {
    let store = faultless().store();
    let (mut chain, segments) = four(&store).await;
    let gap = Gap { reason: GapReason::ServerRemovedWal, ..gap(1, 64, 70) };
    committed(&mut chain, &Change { gaps: vec![gap], ..Change::default() }, "w").await;
    let retired = chain.expire(&BTreeMap::from([(1, 40)]), "e", at(6)).await.unwrap();
    assert_eq!(retired, Retired::of(&segments[..2]), "c is still needed for its end");
    assert_eq!(chain.expire(&BTreeMap::from([(1, 40), (2, 9)]), "e", at(6)).await.unwrap(), Retired::default());
    let mut again = Chain::open(&store, &postgres()).await.unwrap().unwrap();
    for chain in [&mut chain, &mut again] {
        assert_eq!(named(chain, &[(1, 0, 100)]).await, "c d");
        assert_eq!(chain.position(1).map(|at| (at.start, at.end)), Some((40, 70)));
        assert_eq!(chain.totals().present().segments, 2);
        assert!(!chain.merge(&merged("m", &segments[2..]), "m", at(7)).await.unwrap(), "its beginning is expired");
        let error = chain.expire(&BTreeMap::from([(1, 71)]), "e", at(7)).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Internal, "nothing is archived there");
    }
    chain.expire(&BTreeMap::from([(1, 70)]), "e", at(8)).await.unwrap();
    let all = chain.select(&Selection::default()).await.unwrap();
    assert_eq!((all.segments, all.gaps), (vec![], vec![]));
    committed(&mut chain, &appended("e", 1, 70, 80), "w").await;
    assert_eq!(named(&chain, &[(1, 0, 100)]).await, "e");
}

#[tokio::test]
async fn merges_far_behind_what_they_replace_are_found_with_few_requests() {
    let faulty = faultless();
    let mut chain = opened(&faulty.store()).await;
    let mut segments = Vec::new();
    for n in 0..5_000 {
        let change = appended(&format!("s{n}"), 1, n * 16, n * 16 + 16);
        committed(&mut chain, &change, "w").await;
        segments.extend(change.segments);
    }
    assert!(chain.merge(&merged("m", &segments[8..12]), "m", at(5)).await.unwrap());
    for n in 5_000..5_300 {
        committed(&mut chain, &appended(&format!("s{n}"), 1, n * 16, n * 16 + 16), "w").await;
    }
    let chain = Chain::open(&faulty.store(), &postgres()).await.unwrap().unwrap();
    faulty.take_counts();
    assert_eq!(named(&chain, &[(1, 9 * 16, 13 * 16)]).await, "m s12");
    assert!(faulty.take_counts().read <= 6, "the pages that tell of these positions, and no others");
    assert_eq!(named(&chain, &[(1, 5_200 * 16, 5_201 * 16)]).await, "s5200");
}

/// Who does what.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Role {
    Archiver,
    Merger,
    Retention,
}

struct Process {
    role: Role,
    name: String,
    dice: Dice,
    store: Store,
    sealed: u64,
}

impl Process {
    /// Works for some steps, dying now and then. Gives the segments that it was told are in the chain.
    async fn run(mut self, steps: u64) -> Vec<SegmentRef> {
        let (mut chain, mut acknowledged, mut incarnations) = (None, Vec::new(), 0);
        for step in 0..steps {
            if self.dice.percent(4) {
                chain = None;
            }
            let Some(open) = &mut chain else {
                incarnations += 1;
                chain = Chain::begin(&self.store, &postgres(), system(), &self.name, at(step as i64)).await.ok();
                continue;
            };
            let writer = format!("{}-{incarnations}", self.name);
            let done = match self.role {
                Role::Archiver => self.append(open, &writer, &mut acknowledged).await,
                Role::Merger => self.merge(open, &writer).await,
                Role::Retention => self.expire(open, &writer).await,
            };
            if let Err(error) = done {
                assert!(error.is_transient(), "{error}");
            }
        }
        acknowledged
    }

    async fn append(
        &mut self,
        chain: &mut Chain,
        writer: &str,
        told: &mut Vec<SegmentRef>,
    ) -> crate::error::Result<()> {
        let timeline = 1 + i32::from(self.dice.percent(10));
        let start = chain.position(timeline).map_or(0, |at| at.end);
        let end = (start + 1 + self.dice.below(30) as i64).min((start / BLOCK + 1) * BLOCK);
        self.sealed += 1;
        let change = appended(&format!("{writer}-{}", self.sealed), timeline, start, end);
        if let Outcome::Committed { .. } = chain.commit(&change, writer, at(1)).await? {
            told.extend(change.segments);
        }
        Ok(())
    }

    async fn merge(&mut self, chain: &mut Chain, writer: &str) -> crate::error::Result<()> {
        if self.dice.percent(50) {
            chain.refresh().await?;
        }
        let blocks = chain.position(1).map_or(0, |at| at.end / BLOCK);
        let block = self.dice.below(blocks.cast_unsigned() + 1) as i64 * BLOCK;
        let partitions = Some(BTreeMap::from([(1, block..block + BLOCK)]));
        let segments = chain.select(&Selection { timestamps: None, partitions }).await?.segments;
        if segments.len() > 1 {
            self.sealed += 1;
            let merge = merged(&format!("{writer}-{}", self.sealed), &segments);
            chain.merge(&merge, writer, at(2)).await?;
        }
        Ok(())
    }

    async fn expire(&mut self, chain: &mut Chain, writer: &str) -> crate::error::Result<()> {
        let Some(position) = chain.position(1).copied() else { return chain.refresh().await };
        let before = position.start + (self.dice.below(40) as i64).min(position.end - position.start);
        chain.expire(&BTreeMap::from([(1, before)]), writer, at(3)).await.map(drop)
    }
}

async fn check(seed: u64, archivers: u64, faults: Faults) {
    let faulty = Faulty::new(seed, faults);
    let roles = (0..archivers).map(|_| Role::Archiver).chain([Role::Merger, Role::Merger, Role::Retention]);
    let processes = roles.enumerate().map(|(n, role)| {
        let process = Process {
            role,
            name: format!("p{n}"),
            dice: Dice::new(seed ^ (n as u64 + 1)),
            store: faulty.store(),
            sealed: 0,
        };
        tokio::spawn(process.run(80))
    });
    let mut told = Vec::new();
    for process in processes.collect::<Vec<_>>() {
        told.extend(process.await.unwrap());
    }
    // Writes that come late.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    let store = faulty.sound_store();
    let Some(chain) = Chain::open(&store, &postgres()).await.unwrap() else { return };
    let mut scan = ChainScan::new(&store, &postgres()).await.unwrap();
    while let Some(step) = scan.next().await.unwrap() {
        if let ScanStep::Damaged { object, error, .. } = step {
            panic!("{object}: {error}");
        }
    }
    // Whatever was merged and expired: what a reader sees covers every position that is kept, once.
    let all = chain.select(&Selection::default()).await.unwrap();
    for position in chain.positions() {
        let own: Vec<PartitionRange> = all
            .segments
            .iter()
            .flat_map(|segment| &segment.partitions)
            .filter(|range| range.partition == position.partition)
            .copied()
            .collect();
        let mut next = own.first().map_or(position.end, |range| range.start);
        assert!(next <= position.start);
        for range in &own {
            assert_eq!(range.start, next, "a hole or an overlap");
            next = range.end;
        }
        assert_eq!(next, position.end);
    }
    let present = chain.totals().present();
    assert_eq!(
        (present.segments, present.raw_bytes),
        (all.segments.len() as u64, Retired::of(&all.segments).raw_bytes)
    );
    // What was acknowledged is needed, or an entry says why it is not.
    let needed: BTreeSet<&str> = all.segments.iter().map(|segment| segment.object.as_str()).collect();
    let ranges = chain.positions().map(|position| (position.partition, 0..i64::MAX)).collect();
    let retired = chain.retired(ranges).await.unwrap().retired;
    for segment in &told {
        assert!(
            needed.contains(segment.object.as_str()) != retired.contains_key(&segment.object),
            "{}",
            segment.object
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_archiver_mergers_and_retention_work_at_once(
        seed in any::<u64>(), archivers in 1..3_u64, faults in (0..12_u64, 0..12_u64, 0..8_u64, 0..4_u64),
    ) {
        let (fail, lose_answer, write_late, yields) = faults;
        let faults = Faults { fail, lose_answer, write_late, yields };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(check(seed, archivers, faults));
    }
}

#[tokio::test]
async fn a_scan_finds_a_merge_or_an_expiry_that_lies() {
    let store = faultless().store();
    let (chain, segments) = four(&store).await;
    let previous = sha256(&store.get(&layout::entry(&postgres(), 4)).await.unwrap().unwrap());
    let mut lie = merged("m", &segments[..2]);
    lie.replaces[1] = segments[2].object.clone();
    for body in [
        crate::stream::Body::Merge(lie),
        crate::stream::Body::Expire(crate::stream::Expire {
            ranges: vec![crate::stream::Expired { partition: 1, from: 0, before: 32, generation: 0 }],
            retired: Retired::of(&segments[..1]),
            decided: at(6),
        }),
    ] {
        let checkpoint = crate::stream::Checkpoint {
            format: 1,
            stream: postgres().to_string(),
            number: chain.head() + 1,
            previous: Some(previous.clone()),
            writer: "w".into(),
            at: at(9),
            body,
        };
        let bytes = crate::manifest::entry::encode(&checkpoint).unwrap();
        store.put(&layout::entry(&postgres(), 5), bytes).await.unwrap();
        let mut scan = ChainScan::new(&store, &postgres()).await.unwrap();
        let mut damaged = 0;
        while let Some(step) = scan.next().await.unwrap() {
            damaged += u64::from(matches!(step, ScanStep::Damaged { number: 5, .. }));
        }
        assert_eq!(damaged, 1);
    }
}
