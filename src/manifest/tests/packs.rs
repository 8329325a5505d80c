//! Old entries in packs: nothing of a chain changes for whoever reads it, writes to it or checks it.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use proptest::prelude::*;

use super::*;
use crate::error::Kind;
use crate::manifest::aged::{Aged, Clock};
use crate::manifest::packing::{self, Known, Packing};
use crate::manifest::reads::Held;
use crate::manifest::{ChainScan, ScanStep, Selection, entry, head, repair, stored};
use crate::stream::invariants::{PACKED_TOGETHER, SNAPSHOT_EVERY};
use crate::stream::{Body, CHAIN_FORMAT, Merge, Retired};

async fn opened(store: &Store) -> Chain {
    Chain::open(store, &orders()).await.unwrap().unwrap()
}

/// So much later that everything may be packed, and everything that is packed be deleted.
fn later() -> DateTime<Utc> {
    crate::time::now() + TimeDelta::hours(2)
}

async fn pack_all(store: &Store, known: &mut Known) -> u64 {
    let (chain, mut made) = (opened(store).await, 0);
    loop {
        let packing = packing::pack(store, &chain, later(), known).await.unwrap();
        made += packing.made;
        if packing.next.is_none() {
            return made;
        }
    }
}

async fn delete_all(store: &Store, known: &mut Known) -> Packing {
    packing::delete_packed(store, &opened(store).await, (&Held::default(), later()), known).await.unwrap()
}

/// A chain of so many entries of which everything is packed that can be, and only there.
async fn packed(store: &Store, head: u64) -> Chain {
    let mut chain = begun(store).await;
    grow(&mut chain, head).await;
    let mut known = Known::default();
    pack_all(store, &mut known).await;
    // The next snapshot says so.
    let next = chain.head() + SNAPSHOT_EVERY - chain.head() % SNAPSHOT_EVERY;
    grow(&mut chain, next + 1).await;
    delete_all(store, &mut known).await;
    chain
}

/// The same as [`grow`], also up to a snapshot: its writer died then.
async fn grow_to(chain: &mut Chain, head: u64) {
    if !head.is_multiple_of(SNAPSHOT_EVERY) {
        return grow(chain, head).await;
    }
    grow(chain, head - 1).await;
    let start = chain.position(0).map_or(0, |at| at.end);
    let next = append(&format!("s{start}"), vec![range(0, start, start + 10)]).into_body();
    chain.try_create(next, ("w", at(1))).await.unwrap();
    assert_eq!(chain.head(), head);
}

async fn entries(store: &Store) -> Vec<u64> {
    let folder = layout::chain(&orders());
    let objects = store.list(&folder).await.unwrap();
    objects.iter().filter_map(|object| layout::entry_number_in(&folder, &object.location)).collect()
}

async fn damages(store: &Store) -> Vec<String> {
    let mut scan = ChainScan::new(store, &orders()).await.unwrap();
    let (mut damages, mut numbers) = (Vec::new(), Vec::new());
    while let Some(step) = scan.next().await.unwrap() {
        match step {
            ScanStep::Damaged { object, error, .. } => damages.push(format!("{object}: {error}")),
            ScanStep::Entry { checkpoint, .. } => numbers.push(checkpoint.number),
            ScanStep::Page { .. } => {}
        }
    }
    if damages.is_empty() {
        assert_eq!(numbers, (0..=opened(store).await.head()).collect::<Vec<_>>());
    }
    damages
}

#[tokio::test]
async fn where_nothing_may_be_deleted_it_is_tried_once_a_day_and_not_at_each_look() {
    let faulty = faultless();
    let store = faulty.store();
    let mut chain = begun(&store).await;
    grow(&mut chain, 2_000).await;
    let mut known = Known::default();
    pack_all(&store, &mut known).await;
    grow(&mut chain, 2_048 + 10).await;
    let chain = opened(&store).await;
    faulty.keeps_all.store(true, Ordering::Relaxed);
    let mut look = async |after: DateTime<Utc>| {
        packing::delete_packed(&store, &chain, (&Held::default(), after), &mut known).await
    };
    assert_eq!(look(later()).await.expect_err("it may not").kind(), Kind::Denied);
    faulty.take_counts();
    assert_eq!(look(later() + TimeDelta::hours(20)).await.expect("nothing is tried"), Packing::default());
    assert_eq!(faulty.take_counts(), faulty::Counts::default());
    faulty.keeps_all.store(false, Ordering::Relaxed);
    assert_eq!(look(later() + TimeDelta::hours(25)).await.expect("now it may").deleted, 1_536 - 6 + 24);
}

#[tokio::test]
async fn entries_that_are_packed_have_no_objects_and_are_read_and_checked_as_before() {
    let faulty = faultless();
    let store = faulty.store();
    let mut chain = begun(&store).await;
    grow(&mut chain, 2_000).await;
    let before = opened(&store).await.select(&Selection::default()).await.unwrap();
    let mut known = Known::default();
    assert_eq!(pack_all(&store, &mut known).await, 3, "entries before 1536: those from 1728 on are young");
    assert_eq!(delete_all(&store, &mut known).await.deleted, 0, "the chain does not say so yet");
    grow(&mut chain, 2_048 + 10).await;
    assert_eq!(opened(&store).await.packed, 1_536);
    let soon = crate::time::now() + TimeDelta::minutes(59);
    let chain_now = opened(&store).await;
    let waits = packing::delete_packed(&store, &chain_now, (&Held::default(), soon), &mut known).await.unwrap();
    assert!(waits.deleted == 0 && waits.next.is_some_and(|next| soon < next && next < later()), "{waits:?}");
    let deleted = delete_all(&store, &mut known).await;
    let left = entries(&store).await;
    let kept: Vec<u64> = left.iter().copied().filter(|number| *number < 1_536).collect();
    assert_eq!(kept, [0, 64, 128, 256, 512, 1_024]);
    assert_eq!(deleted.deleted, 1_536 - 6 + 24);
    assert_eq!(delete_all(&store, &mut known).await, Packing::default(), "nothing is left to do");
    assert_eq!(delete_all(&store, &mut Known::default()).await.deleted, 0, "nor for whoever starts");

    let mut after = opened(&store).await.select(&Selection::default()).await.unwrap();
    assert_eq!(after.segments.len(), opened(&store).await.totals().segments as usize);
    after.segments.truncate(before.segments.len());
    assert_eq!(after, before);
    assert_eq!(damages(&store).await, Vec::<String>::new());
    assert_eq!(chain.head(), opened(&store).await.head());
    let by = ("w", at(1));
    assert!(repair(&store, &orders(), by).await.unwrap().is_empty());
    // An older program comes to the last snapshot, and that says which version it has.
    let last = head::last_snapshot(&store, &orders()).await.unwrap();
    let bytes = store.get(&layout::entry(&orders(), last)).await.unwrap().unwrap();
    let error = entry::check_format(&layout::entry(&orders(), last), &bytes, CHAIN_FORMAT - 1).unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported);
    // Pages that snapshots list are not made again because they lie in a pack.
    let pages = |objects: Vec<object_store::ObjectMeta>| {
        objects.iter().filter(|object| object.location.as_ref().contains("/pages/")).count()
    };
    let count = pages(store.list(&layout::chain(&orders())).await.unwrap());
    grow(&mut chain, 4_000).await;
    let added = (chain.head() / SNAPSHOT_EVERY - 2_048 / SNAPSHOT_EVERY) as usize;
    assert_eq!(pages(store.list(&layout::chain(&orders())).await.unwrap()), count + added);
}

/// What a search for the end looks at below the packs is there, whatever the numbers.
#[tokio::test]
async fn the_end_is_found_at_any_number() {
    let faulty = faultless();
    let store = faulty.store();
    let mut chain = begun(&store).await;
    let mut known = Known::default();
    for head in (700..9_000).step_by(613) {
        grow(&mut chain, head).await;
        pack_all(&store, &mut known).await;
        delete_all(&store, &mut known).await;
        assert_eq!(opened(&store).await.head(), chain.head());
        assert!(entries(&store).await.len() < 1_400, "{head}: {}", entries(&store).await.len());
    }
    assert_eq!(damages(&store).await, Vec::<String>::new());
}

proptest! {
    #[test]
    fn a_search_for_the_end_comes_to_no_number_that_was_deleted(packed in 1..1_u64 << 40, more in 0..1_u64 << 20) {
        let (packed, last) = (packed * 8, packed * 8 + more);
        let looked_at = |snapshot: u64| snapshot >= packed || packing::is_kept(snapshot * 64, packed * 64);
        let mut step = 1;
        while step <= last {
            prop_assert!(looked_at(step));
            step *= 2;
        }
        let (mut found, mut missing) = (step / 2, step);
        while missing - found > 1 {
            let middle = found + (missing - found) / 2;
            if middle <= last {
                prop_assert!(looked_at(middle), "{} of {}", middle, last);
                found = middle;
            } else {
                missing = middle;
            }
        }
        prop_assert_eq!(found, last);
    }
}

/// A writer that stood still at any entry while the chain went on: it never writes where something was.
#[tokio::test]
async fn a_writer_that_knows_only_what_is_packed_writes_nothing_there() {
    for stood_at in [1, 63, 64, 65, 127, 128, 511, 512, 513, 700, 1_023, 1_024, 1_025, 1_400] {
        let faulty = faultless();
        let store = faulty.store();
        let mut chain = begun(&store).await;
        grow_to(&mut chain, stood_at).await;
        let (mut same, mut other) = (opened(&store).await, opened(&store).await);
        assert_eq!(same.head(), stood_at);
        grow(&mut chain, 2_000).await;
        let mut known = Known::default();
        pack_all(&store, &mut known).await;
        grow(&mut chain, 2_050).await;
        delete_all(&store, &mut known).await;
        let before = entries(&store).await;

        // What it read last was covered meanwhile …
        let stale = same.position(0).map_or(0, |at| at.end);
        let change = append("stale", vec![range(0, stale, stale + 10)]);
        let outcome = same.commit(&change, "stale", at(9)).await.unwrap();
        assert_eq!(outcome, Outcome::Moved([0].into()), "{stood_at}");
        assert_eq!(entries(&store).await, before, "{stood_at}: nothing is there that was not");
        // … and what nobody else moved goes in behind all of it.
        let change = append("own", vec![range(1, 0, 10)]);
        let Outcome::Committed { number } = other.commit(&change, "own", at(9)).await.unwrap() else { panic!("moved") };
        assert!(number > 2_050);
        assert_eq!(damages(&store).await, Vec::<String>::new(), "{stood_at}");
    }
}

/// The same where the answer to the look at the pack is lost, and where the process dies before it.
#[tokio::test]
async fn an_entry_in_the_place_of_a_packed_one_is_nobodys() {
    let faulty = faultless();
    let store = faulty.store();
    let mut chain = begun(&store).await;
    grow_to(&mut chain, 64).await;
    let mut stale = opened(&store).await;
    grow(&mut chain, 2_000).await;
    let mut known = Known::default();
    pack_all(&store, &mut known).await;
    grow(&mut chain, 2_050).await;
    delete_all(&store, &mut known).await;
    // As it leaves it that created its entry and heard no more.
    let start = stale.position(0).unwrap().end;
    let change = append("stale", vec![range(0, start, start + 10)]);
    let bytes = store.get(&layout::entry(&orders(), 64)).await.unwrap().unwrap();
    let mine = crate::stream::Checkpoint {
        format: 1,
        stream: orders().to_string(),
        number: 65,
        previous: Some(sha256(&bytes)),
        writer: "stale".into(),
        at: at(8),
        body: Body::Append(change.clone()),
    };
    store.put(&layout::entry(&orders(), 65), entry::encode(&mine).unwrap()).await.unwrap();
    let outcome = stale.commit(&change, "stale", at(9)).await.unwrap();
    assert_eq!(outcome, Outcome::Moved([0].into()), "it is not taken for one of the chain");
    assert_eq!(stale.head(), chain.head());
    // Whoever looks after the packs removes it.
    assert!(entries(&store).await.contains(&65));
    assert!(delete_all(&store, &mut Known::default()).await.deleted > 0);
    assert!(!entries(&store).await.contains(&65));
    assert_eq!(damages(&store).await, Vec::<String>::new());
}

#[tokio::test]
async fn nothing_goes_whose_pack_is_damaged_or_leads_elsewhere_and_the_damage_is_told() {
    let faulty = faultless();
    let store = faulty.store();
    let mut chain = begun(&store).await;
    grow(&mut chain, 1_000).await;
    let mut known = Known::default();
    assert_eq!(pack_all(&store, &mut known).await, 1);
    grow(&mut chain, 1_100).await;
    let object = layout::pack(&orders(), 0);
    let sound = store.get(&object).await.unwrap().unwrap();
    let before = entries(&store).await;
    let mut changed = sound.to_vec();
    let middle = changed.len() / 2;
    changed[middle] ^= 1;
    // Of another chain: each entry is sound, and its last is not the one that the next names.
    let other_store = faultless().store();
    let mut other = Chain::begin(&other_store, &orders(), begin_of("other"), "w", at(0)).await.unwrap();
    grow(&mut other, 1_000).await;
    pack_all(&other_store, &mut Known::default()).await;
    let elsewhere = other_store.get(&object).await.unwrap().unwrap();
    for bytes in [changed, elsewhere.to_vec()] {
        store.put(&object, bytes.into()).await.unwrap();
        let chain = opened(&store).await;
        let error = packing::delete_packed(&store, &chain, (&Held::default(), later()), &mut Known::default()).await;
        assert_eq!(error.unwrap_err().kind(), Kind::Corrupt);
        assert_eq!(entries(&store).await, before);
        assert_eq!(damages(&store).await, Vec::<String>::new(), "the entries have objects of their own");
    }
    store.put(&object, sound.clone()).await.unwrap();
    delete_all(&store, &mut known).await;
    assert_eq!(damages(&store).await, Vec::<String>::new());
    // Then it is all that is there of them: without it there is a hole, and no repair puts aside what stands above.
    store.delete(&object).await.unwrap();
    let fresh = faulty.store();
    let damaged = damages(&fresh).await;
    assert!(damaged.iter().any(|damage| damage.contains("00000000000000000001.json is missing")), "{damaged:?}");
    let chain = opened(&fresh).await;
    grow(&mut { chain }, 1_900).await;
    pack_all(&fresh, &mut Known::default()).await;
    let count = entries(&fresh).await.len();
    let error = repair(&fresh, &orders(), ("w", at(1))).await.unwrap_err();
    assert!(error.hint_text().unwrap().contains(object.as_ref()), "{error:?}");
    assert_eq!(entries(&fresh).await.len(), count);
    fresh.put(&object, sound).await.unwrap();
    assert_eq!(damages(&fresh).await, Vec::<String>::new());
}

/// Objects of entries in the folder are fewer by far, and each entry and page is the same to the byte.
#[tokio::test]
async fn a_pack_has_the_very_bytes_and_dates() {
    let faulty = faultless();
    let store = faulty.store();
    let mut chain = begun(&store).await;
    grow(&mut chain, 800).await;
    let mut before = Vec::new();
    for number in 0..512 {
        let (bytes, dated) = store.get_dated(&layout::entry(&orders(), number)).await.unwrap().unwrap();
        before.push((sha256(&bytes), dated));
    }
    let mut known = Known::default();
    pack_all(&store, &mut known).await;
    grow(&mut chain, 850).await;
    delete_all(&store, &mut known).await;
    for (number, before) in (0..512).zip(before) {
        let (entry, dated) = stored::read_dated(&store, &orders(), number).await.unwrap().unwrap();
        assert_eq!((entry.sha256, dated), before, "{number}");
    }
    assert_eq!(PACKED_TOGETHER, 512);
}

#[tokio::test]
async fn what_a_replay_reads_keeps_all_of_it() {
    let faulty = faultless();
    let store = faulty.store();
    let chain = packed(&store, 700).await;
    drop(chain);
    let mut chain = opened(&store).await;
    grow(&mut chain, 1_400).await;
    let mut known = Known::default();
    pack_all(&store, &mut known).await;
    grow(&mut chain, 1_500).await;
    let offsets = BTreeMap::from([(orders().to_string(), BTreeMap::from([(0, 3..4)]))]);
    let reads = crate::manifest::reads::Reads::new("r".into(), "a replay".into(), offsets);
    reads.write(&store, "main").await.unwrap();
    let held = crate::manifest::reads::held(&store, "main", crate::time::now()).await.unwrap();
    let count = entries(&store).await.len();
    let waits = packing::delete_packed(&store, &opened(&store).await, (&held, later()), &mut known).await.unwrap();
    assert!(waits.deleted == 0 && waits.next.is_some());
    assert_eq!(entries(&store).await.len(), count);
    assert!(delete_all(&store, &mut known).await.deleted > 400);
}

/// Two archives of the same history: one of them packs, the other never does.
struct Twins {
    packs: Store,
    keeps: Store,
    chains: [Chain; 2],
    known: Known,
    live: Vec<SegmentRef>,
    made: u64,
}

impl Twins {
    async fn begun() -> Self {
        let (packs, keeps) = (faultless().store(), faultless().store());
        let chains = [begun(&packs).await, begun(&keeps).await];
        Self { packs, keeps, chains, known: Known::default(), live: Vec::new(), made: 0 }
    }

    fn end(&self, partition: i32) -> i64 {
        self.chains[0].position(partition).map_or(0, |at| at.end)
    }

    async fn commit(&mut self, change: &Change) {
        for chain in &mut self.chains {
            let number = i64::try_from(chain.head()).unwrap();
            chain.commit(change, "w", at(number * 60)).await.unwrap();
        }
    }

    async fn append(&mut self, partition: i32, length: i64) {
        let start = self.end(partition);
        self.made += 1;
        let one = segment(&format!("s{}", self.made), vec![range(partition, start, start + length)]);
        self.live.push(one.clone());
        self.commit(&Change { segments: vec![one], ..Change::default() }).await;
    }

    async fn lose(&mut self, partition: i32, length: i64, empty: bool) {
        let start = self.end(partition);
        let nothing = PartitionRange {
            records: 0,
            min_timestamp: None,
            max_timestamp: None,
            ..range(partition, start, start + length)
        };
        let (empty, gaps) =
            if empty { (vec![nothing], vec![]) } else { (vec![], vec![gap(partition, start, start + length)]) };
        self.commit(&Change { segments: vec![], empty, gaps }).await;
    }

    /// Merges what lies next to each other of a partition, if nothing between is lost.
    async fn merge(&mut self, partition: i32, most: usize) {
        let of: Vec<SegmentRef> =
            self.live.iter().filter(|one| one.partitions[0].partition == partition).cloned().collect();
        let Some(at_least) = of.len().checked_sub(most) else { return };
        let run = of[at_least / 2..at_least / 2 + most].to_vec();
        let (first, last) = (run[0].partitions[0], run[most - 1].partitions[0]);
        self.made += 1;
        let whole = PartitionRange {
            records: run.iter().map(SegmentRef::records).sum(),
            ..range(partition, first.start, last.end)
        };
        let raw_bytes = run.iter().map(|one| one.raw_bytes).sum();
        let one = SegmentRef { raw_bytes, ..segment(&format!("m{}", self.made), vec![whole]) };
        let merge = Merge {
            segment: one.clone(),
            replaces: run.iter().map(|one| one.object.clone()).collect(),
            retired: Retired::of(&run),
            decided: at(1),
        };
        let [packs, keeps] = &mut self.chains;
        let merged = packs.merge(&merge, "m", at(1)).await.unwrap();
        assert_eq!(keeps.merge(&merge, "m", at(1)).await.unwrap(), merged);
        if merged {
            let place = self.live.iter().position(|segment| segment.object == run[0].object).unwrap();
            self.live[place] = one;
            self.live.retain(|segment| !run[1..].iter().any(|gone| gone.object == segment.object));
        }
    }

    async fn expire(&mut self, partition: i32, before: i64) {
        let before = before.min(self.end(partition));
        for chain in &mut self.chains {
            chain.expire(&BTreeMap::from([(partition, before)]), "e", at(1)).await.unwrap();
        }
        self.live.retain(|one| one.partitions[0].partition != partition || before < one.partitions[0].end);
    }

    /// Whatever is asked of one is told by the other.
    async fn are_the_same(&self, long: &[Chain; 2]) {
        let opened = [opened(&self.packs).await, opened(&self.keeps).await];
        for [packs, keeps] in [&opened, long] {
            assert_eq!((packs.head(), &packs.progress), (keeps.head(), &keeps.progress));
            let end = packs.position(0).map_or(0, |at| at.end);
            for partitions in [None, Some(BTreeMap::from([(0, end / 3..end / 2)])), Some(BTreeMap::from([(1, 5..9)]))] {
                for timestamps in [None, Some(end / 4..end / 3)] {
                    let wanted = Selection { timestamps, partitions: partitions.clone() };
                    assert_eq!(
                        packs.select(&wanted).await.unwrap(),
                        keeps.select(&wanted).await.unwrap(),
                        "{wanted:?}"
                    );
                }
            }
            assert_eq!(packs.gaps_ever().await.unwrap(), keeps.gaps_ever().await.unwrap());
            let all = BTreeMap::from([(0, 0..i64::MAX), (1, 0..i64::MAX)]);
            assert_eq!(packs.retired(all.clone()).await.unwrap(), keeps.retired(all).await.unwrap());
        }
        self.give_up_the_same(&opened).await;
    }

    /// Retention gives up the same, by time and by size.
    async fn give_up_the_same(&self, [packs, keeps]: &[Chain; 2]) {
        for (old, kept) in [(800, None), (0, Some(packs.totals().present().stored_bytes * 3 / 4))] {
            let clock = Clock { now: at(10_000_000), horizon: at(old * 60) };
            let mut beginnings = Vec::new();
            for chain in [packs, keeps] {
                let mut aged = Aged::default();
                aged.go_on(chain, clock, kept).await.unwrap();
                beginnings.push(aged.expirable(chain, &Held::default(), clock).await.unwrap());
            }
            assert_eq!(beginnings[0], beginnings[1], "{old} {kept:?}");
        }
    }
}

async fn twins(seed: u64) {
    let (mut dice, mut twins) = (super::faulty::Dice::new(seed), Twins::begun().await);
    let mut long = [opened(&twins.packs).await, opened(&twins.keeps).await];
    let mut packed = 0;
    while twins.chains[0].head() < 1_320 {
        let partition = i32::try_from(dice.below(2)).unwrap();
        match dice.below(100) {
            0..=2 => twins.lose(partition, 1 + dice.below(5) as i64, true).await,
            3..=4 => twins.lose(partition, 1 + dice.below(5) as i64, false).await,
            5..=9 => twins.merge(partition, 2 + dice.below(6) as usize).await,
            10 => {
                let before = twins.end(partition) / 8;
                twins.expire(partition, before).await;
            }
            _ => twins.append(partition, 1 + dice.below(9) as i64).await,
        }
        if dice.below(150) == 0 {
            packed += pack_all(&twins.packs, &mut twins.known).await;
        }
        if dice.below(150) == 0 {
            // What is deleted while somebody has the chain open, and before whoever comes later opens it.
            delete_all(&twins.packs, &mut twins.known).await;
        }
        if dice.below(500) == 0 {
            twins.are_the_same(&long).await;
            if dice.below(2) == 0 {
                long = [opened(&twins.packs).await, opened(&twins.keeps).await];
            }
        }
        assert_eq!(long[0].head(), long[1].head());
    }
    packed += pack_all(&twins.packs, &mut twins.known).await;
    twins.append(0, 1).await;
    assert_eq!(packed, 2, "before 1024 all is packed");
    delete_all(&twins.packs, &mut Known::default()).await;
    twins.are_the_same(&long).await;
    assert_eq!(damages(&twins.packs).await, Vec::<String>::new());
    for chain in &mut long {
        chain.refresh().await.unwrap();
    }
    assert_eq!(long[0].head(), twins.chains[0].head(), "who had it open reads on");
    twins.are_the_same(&long).await;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2))]

    #[test]
    fn what_a_chain_tells_is_the_same_before_during_and_after(seed in any::<u64>()) {
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap().block_on(twins(seed));
    }
}
