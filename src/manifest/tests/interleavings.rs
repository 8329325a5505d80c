//! Several writers of one chain, in every order, with requests that fail, answers that get lost, writes that come late
//! and processes that die between two steps.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::faulty::{Dice, Faults};
use super::scan::scanned;
use super::*;
use crate::manifest::Selection;

#[derive(Debug, Clone)]
struct Plan {
    seed: u64,
    writers: u64,
    partitions: u64,
    steps: u64,
    /// Whether every writer takes every partition, or each its own share.
    overlap: bool,
    faults: Faults,
}

fn plans() -> impl Strategy<Value = Plan> {
    let faults = (0..15_u64, 0..15_u64, 0..10_u64, 0..4_u64);
    (any::<u64>(), 1..5_u64, 1..5_u64, any::<bool>(), faults).prop_map(
        |(seed, writers, partitions, overlap, (fail, lose_answer, write_late, yields))| Plan {
            seed,
            writers,
            partitions,
            steps: 60,
            overlap,
            faults: Faults { fail, lose_answer, write_late, yields },
        },
    )
}

/// One writer's process, which is replaced by a new one when it dies.
struct Writer {
    plan: Plan,
    index: u64,
    dice: Dice,
    store: Store,
    /// How often the process was started: part of its id.
    incarnations: u64,
    sealed: u64,
    acknowledged: Vec<Change>,
}

impl Writer {
    fn id(&self) -> String {
        format!("w{}-{}", self.index, self.incarnations)
    }

    async fn run(mut self) -> Vec<Change> {
        let mut chain = None;
        let mut pending: Option<Change> = None;
        for step in 0..self.plan.steps {
            if self.dice.percent(4) {
                // SIGKILL: what was not acknowledged is forgotten.
                (chain, pending) = (None, None);
            }
            let Some(open) = &mut chain else {
                self.incarnations += 1;
                let (store, id) = (self.store.clone(), self.id());
                chain = Chain::begin(&store, &orders(), begin_of("id"), &id, at(step as i64)).await.ok();
                continue;
            };
            if self.dice.percent(10) && open.refresh().await.is_err() {
                continue;
            }
            let change = match pending.take() {
                Some(change) if self.dice.percent(70) => change,
                Some(change) => self.with_more(change),
                None => self.change(open),
            };
            match open.commit(&change, &self.id(), at(step as i64)).await {
                Ok(Outcome::Committed { .. }) => self.acknowledged.push(change),
                // The records of what was moved are read again, from the position that the chain says. It was moved by
                // another writer, or by an earlier incarnation whose write came late.
                Ok(Outcome::Moved(partitions)) => {
                    assert!(
                        !partitions.is_empty() && (self.plan.overlap || self.incarnations > 1),
                        "{change:?} was ours"
                    );
                }
                Ok(Outcome::Closed) => panic!("nobody has ended this chain"),
                Err(error) => {
                    assert!(error.is_transient(), "{error}");
                    pending = Some(change);
                }
            }
        }
        self.acknowledged
    }

    /// The next records of some partitions.
    fn change(&mut self, chain: &Chain) -> Change {
        let mut change = Change::default();
        let mut parts = Vec::new();
        let mine = |partition: u64| self.plan.overlap || partition % self.plan.writers == self.index;
        let taken: Vec<i32> = (0..self.plan.partitions + self.plan.writers)
            .filter(|partition| mine(*partition))
            .map(|partition| i32::try_from(partition).unwrap())
            .collect();
        for partition in taken {
            let position = chain.position(partition).map_or(0, |position| position.end);
            let end = position + 1 + self.dice.below(20) as i64;
            match self.dice.below(8) {
                0 => change.gaps.push(gap(partition, position, end)),
                1 => change.empty.push(PartitionRange {
                    records: 0,
                    min_timestamp: None,
                    max_timestamp: None,
                    ..range(partition, position, end)
                }),
                2 | 3 => parts.push(range(partition, position, end)),
                _ => {}
            }
        }
        if parts.is_empty() && change.is_empty() {
            let partition = if self.plan.overlap { 0 } else { i32::try_from(self.index).unwrap() };
            let position = chain.position(partition).map_or(0, |position| position.end);
            parts.push(range(partition, position, position + 1));
        }
        if !parts.is_empty() {
            change.segments.push(self.seal(parts));
        }
        change
    }

    /// A change that was not answered, and one segment more behind it.
    fn with_more(&mut self, mut change: Change) -> Change {
        let ranges = change.clone().into_body().ranges();
        let last = ranges.last().unwrap();
        let more = self.seal(vec![range(last.partition, last.end, last.end + 3)]);
        change.segments.push(more);
        change
    }

    fn seal(&mut self, parts: Vec<PartitionRange>) -> SegmentRef {
        self.sealed += 1;
        segment(&format!("{}-{}", self.id(), self.sealed), parts)
    }
}

/// Runs the plan; gives what was acknowledged to anybody.
async fn run(plan: &Plan, faulty: &Arc<Faulty>) -> Vec<Change> {
    let writers: Vec<_> = (0..plan.writers)
        .map(|index| {
            let writer = Writer {
                plan: plan.clone(),
                index,
                dice: Dice::new(plan.seed ^ (index + 1)),
                store: faulty.store(),
                incarnations: 0,
                sealed: 0,
                acknowledged: Vec::new(),
            };
            tokio::spawn(writer.run())
        })
        .collect();
    let mut acknowledged = Vec::new();
    for writer in writers {
        acknowledged.extend(writer.await.unwrap());
    }
    // Writes that come late.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    acknowledged
}

async fn check(plan: Plan) {
    let faulty = Faulty::new(plan.seed, plan.faults);
    let acknowledged = run(&plan, &faulty).await;
    let store = faulty.sound_store();
    let Some(chain) = Chain::open(&store, &orders()).await.unwrap() else {
        assert!(acknowledged.is_empty());
        return;
    };
    let (entries, _, damaged) = scanned(&store).await;
    assert_eq!((entries, damaged), (chain.head() + 1, vec![]));

    let all = chain.select(&Selection::default()).await.unwrap();
    let mut objects = BTreeMap::new();
    for segment in &all.segments {
        assert!(objects.insert(segment.object.clone(), segment).is_none(), "{} is there twice", segment.object);
    }
    let gaps: BTreeSet<_> = all.gaps.iter().map(|gap| (gap.partition, gap.start, gap.end)).collect();
    assert_eq!(gaps.len(), all.gaps.len());
    for change in &acknowledged {
        for segment in &change.segments {
            assert_eq!(objects.get(&segment.object), Some(&segment), "an acknowledged segment");
        }
        for gap in &change.gaps {
            assert!(gaps.contains(&(gap.partition, gap.start, gap.end)), "an acknowledged gap");
        }
    }
    // Every offset lies in exactly one range: what the scan checks entry by entry, summed up once more by hand.
    let mut offsets: BTreeMap<i32, i64> = BTreeMap::new();
    for range in all.segments.iter().flat_map(|segment| &segment.partitions) {
        *offsets.entry(range.partition).or_default() += range.end - range.start;
    }
    for gap in &all.gaps {
        *offsets.entry(gap.partition).or_default() += gap.end - gap.start;
    }
    for position in chain.positions() {
        assert_eq!(position.start, 0);
        assert!(offsets.get(&position.partition).copied().unwrap_or(0) <= position.end);
    }
}

fn single_threaded(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(test);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_lost_and_nothing_is_there_twice(plan in plans()) {
        single_threaded(check(plan));
    }
}

#[test]
fn writers_of_their_own_partitions_are_never_told_to_yield() {
    let faults = Faults { yields: 3, ..Faults::default() };
    let plan = Plan { seed: 7, writers: 4, partitions: 4, steps: 100, overlap: false, faults };
    single_threaded(async move {
        let faulty = Faulty::new(plan.seed, plan.faults);
        let acknowledged = run(&plan, &faulty).await;
        let chain = Chain::open(&faulty.sound_store(), &orders()).await.unwrap().unwrap();
        let snapshots = chain.head() / 64;
        assert_eq!(acknowledged.len() as u64, chain.head() - snapshots);
        assert!(chain.head() > 300, "the writers got on: {}", chain.head());
    });
}
