//! What is claimed against what is true: random histories of a topic, its archivers and their clocks.

use proptest::prelude::*;

use super::*;
use crate::manifest::coverage::judge_by;

fn time(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000, 0).unwrap() + TimeDelta::seconds(seconds)
}

fn generation(number: u32) -> TopicGeneration {
    TopicGeneration::new("main", "orders", number)
}

fn report(number: u32, reached: &[(i32, i64)]) -> Report {
    let at =
        |&(partition, archived): &(i32, i64)| (partition, Reached { covered: archived, archived, received: archived });
    Report {
        stream: generation(number),
        topic: "orders".into(),
        topic_id: Some(format!("id-{number}")),
        reached: reached.iter().map(at).collect(),
    }
}

/// A round as the brokers answer it.
fn round(ledger: &mut Ledger, report: &Report, seconds: i64, ends: &[(i32, i64)], partitions: i32) {
    ledger.begin_round(std::iter::once(report), time(seconds));
    ledger.settle(report, &ends.iter().copied().collect(), partitions);
}

#[test]
fn a_claim_waits_until_the_archive_has_come_to_the_end_that_was_told() {
    let mut ledger = Ledger::default();
    round(&mut ledger, &report(0, &[(0, 5), (1, 7)]), 10, &[(0, 9), (1, 7)], 2);
    let complete = |ledger: &Ledger, partition| ledger.complete_through(&generation(0), partition);
    assert_eq!((complete(&ledger, 0), complete(&ledger, 1)), (None, Some(time(10))));
    assert_eq!(ledger.topic_complete_through(&generation(0)), None);
    round(&mut ledger, &report(0, &[(0, 9), (1, 7)]), 15, &[(0, 12), (1, 7)], 2);
    assert_eq!((complete(&ledger, 0), complete(&ledger, 1)), (Some(time(10)), Some(time(15))));
    assert_eq!(ledger.topic_complete_through(&generation(0)), Some(time(10)));
    // The broker's log is another one: it ends before what is archived.
    round(&mut ledger, &report(0, &[(0, 12), (1, 7)]), 20, &[(0, 3), (1, 7)], 2);
    assert_eq!(complete(&ledger, 0), Some(time(15)), "what the end before says");
    round(&mut ledger, &report(0, &[(0, 12), (1, 7)]), 25, &[(0, 3), (1, 7)], 2);
    assert_eq!(complete(&ledger, 0), Some(time(15)), "and no more");
}

#[test]
fn a_partition_that_nobody_has_holds_up_the_topic_and_one_of_another_process_does_not() {
    let mut ledger = Ledger::default();
    let mine = report(0, &[(0, 5)]);
    round(&mut ledger, &mine, 10, &[(0, 5)], 2);
    assert!(ledger.wants_others(&mine, time(10)));
    let mut other = Coverage::new("other", time(9));
    let claim = Claim { offset: 3, complete_through: time(8) };
    let claims = TopicClaims { topic_id: Some("id-0".to_owned()), counts: vec![], claims: [(1, claim)].into() };
    other.topics.insert(generation(0).to_string(), claims);
    ledger.learn(&mine, &[other], time(10));
    assert!(!ledger.wants_others(&mine, time(1_000)));
    assert_eq!(
        ledger.topic_complete_through(&generation(0)),
        Some(time(8)),
        "a count is taken for that of a moment ago"
    );
    round(&mut ledger, &mine, 15, &[(0, 5)], 3);
    assert_eq!(ledger.topic_complete_through(&generation(0)), Some(time(8)), "of the third nothing is known");
    assert!(ledger.wants_others(&mine, time(1_000)));
    let mine = report(0, &[(0, 5), (2, 1)]);
    round(&mut ledger, &mine, 20, &[(0, 5), (2, 1)], 3);
    assert_eq!(ledger.topic_complete_through(&generation(0)), Some(time(18)));
}

/// The archive went back, so that what was claimed of a partition lies beyond what it has.
#[test]
fn what_is_not_reported_is_not_taken_from_others() {
    let mut ledger = Ledger::default();
    round(&mut ledger, &report(0, &[(0, 0), (1, 0)]), 10, &[(0, 0), (1, 1)], 2);
    let mut before = Coverage::new("before", time(9));
    let claim = Claim { offset: 1, complete_through: time(9) };
    let claims = TopicClaims { topic_id: Some("id-0".to_owned()), counts: vec![], claims: [(1, claim)].into() };
    before.topics.insert(generation(0).to_string(), claims);
    ledger.learn(&report(0, &[(0, 0)]), std::slice::from_ref(&before), time(11));
    assert_eq!(ledger.complete_through(&generation(0), 1), None);
    ledger.learn(&report(0, &[(0, 0), (1, 0)]), &[before], time(11));
    assert_eq!(ledger.complete_through(&generation(0), 1), None);
}

#[test]
fn a_generation_that_ended_leaves_nothing() {
    let mut ledger = Ledger::default();
    let six: Vec<(i32, i64)> = (0..6).map(|partition| (partition, 0)).collect();
    let ends: Vec<(i32, i64)> = (0..6).map(|partition| (partition, 100)).collect();
    round(&mut ledger, &report(0, &six), 10, &ends, 6);
    round(&mut ledger, &report(1, &[(0, 5), (1, 5)]), 20, &[(0, 5), (1, 5)], 2);
    assert_eq!(ledger.topic_complete_through(&generation(1)), Some(time(18)));
    let written = ledger.coverage("w", time(20));
    assert_eq!(written.topics.keys().collect::<Vec<_>>(), [&generation(1).to_string()]);
    // A topic that is gone is put away after a while, and with it all that was known of it.
    ledger.begin_round(std::iter::empty(), time(30));
    assert!(ledger.take_resting(time(31)).is_empty());
    assert_eq!(ledger.coverage("w", time(31)).topics.len(), 1);
    let taken = ledger.take_resting(time(30 + 3_600));
    assert_eq!(taken[&generation(1).to_string()].claims.len(), 2);
    assert!(ledger.coverage("w", time(4_000)).topics.is_empty());
}

#[test]
fn a_clock_that_is_set_back_takes_its_claims_along() {
    let mut ledger = Ledger::default();
    let all = report(0, &[(0, 5)]);
    round(&mut ledger, &all, 3_600, &[(0, 5)], 1);
    assert_eq!(ledger.topic_complete_through(&generation(0)), Some(time(3_598)));
    round(&mut ledger, &all, 10, &[(0, 5)], 1);
    assert_eq!(ledger.complete_through(&generation(0), 0), Some(time(10)));
    assert_eq!(ledger.topic_complete_through(&generation(0)), Some(time(8)));
    let written = serde_json::to_string(&ledger.coverage("w", time(10))).unwrap();
    assert!(!written.contains("2027-01-15T09"), "{written}");
}

#[test]
fn questions_that_wait_long_are_thinned_out_and_none_of_the_newest_is_lost() {
    let mut ledger = Ledger::default();
    for seconds in 0..10_000 {
        round(&mut ledger, &report(0, &[(0, 0)]), seconds, &[(0, seconds + 1)], 1);
    }
    round(&mut ledger, &report(0, &[(0, 9_000)]), 10_000, &[(0, 10_001)], 1);
    let complete = ledger.complete_through(&generation(0), 0).unwrap();
    assert!(complete > time(8_000) && complete < time(9_000), "{complete}");
    round(&mut ledger, &report(0, &[(0, 10_001)]), 10_001, &[(0, 10_002)], 1);
    assert_eq!(ledger.complete_through(&generation(0), 0), Some(time(10_000)));
}

// ---- against brute force

/// One partition as it truly is.
#[derive(Default, Clone)]
struct Truth {
    /// When each record was appended.
    appended: Vec<i64>,
    /// Where the archive stands.
    archived: i64,
    /// Below this offset lies no open transaction.
    stable: i64,
}

/// A topic, its archive, and the processes that archive it.
struct World {
    now: i64,
    generation: u32,
    partitions: Vec<Truth>,
    /// Where the archive of each generation stood when the bucket was copied.
    copy: Vec<i64>,
    replicas: Vec<Replica>,
    objects: BTreeMap<usize, Coverage>,
}

struct Replica {
    ledger: Ledger,
    /// How much its clock is ahead; behind, if it is negative.
    ahead: i64,
    owns: BTreeSet<i32>,
    /// What it was told last of others' claims.
    round: u32,
}

#[derive(Debug, Clone)]
enum Step {
    Wait(i64),
    Append {
        partition: usize,
        open: bool,
    },
    EndTransactions,
    AddPartition,
    /// The archive of a partition comes further, or to its end.
    Archive {
        partition: usize,
        most: i64,
    },
    /// Partitions are dealt out again; those beyond `known` have no owner yet.
    Assign {
        seed: u64,
        known: usize,
    },
    Round {
        replica: usize,
    },
    Write {
        replica: usize,
    },
    Learn {
        replica: usize,
    },
    /// The process dies and another one comes.
    Restart {
        replica: usize,
    },
    Copy,
    Restore,
    Recreate {
        partitions: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let replica = 0..3_usize;
    prop_oneof![
        4 => (1..8_i64).prop_map(Step::Wait),
        6 => (0..6_usize, prop::bool::weighted(0.2)).prop_map(|(partition, open)| Step::Append { partition, open }),
        1 => Just(Step::EndTransactions),
        2 => Just(Step::AddPartition),
        6 => (0..6_usize, 1..20_i64).prop_map(|(partition, most)| Step::Archive { partition, most }),
        2 => (any::<u64>(), 1..8_usize).prop_map(|(seed, known)| Step::Assign { seed, known }),
        8 => replica.clone().prop_map(|replica| Step::Round { replica }),
        6 => replica.clone().prop_map(|replica| Step::Write { replica }),
        2 => replica.clone().prop_map(|replica| Step::Learn { replica }),
        1 => replica.prop_map(|replica| Step::Restart { replica }),
        1 => Just(Step::Copy),
        1 => Just(Step::Restore),
        1 => (1..4_usize).prop_map(|partitions| Step::Recreate { partitions }),
    ]
}

impl World {
    fn new(clocks: &[i64]) -> Self {
        let replica = |&ahead: &i64| Replica { ledger: Ledger::default(), ahead, owns: BTreeSet::new(), round: 0 };
        let mut world = Self {
            now: 1_000,
            generation: 0,
            partitions: vec![Truth::default(); 2],
            copy: vec![0; 2],
            replicas: clocks.iter().map(replica).collect(),
            objects: BTreeMap::new(),
        };
        world.assign(0, 8);
        world
    }

    fn take(&mut self, step: &Step) {
        let now = self.now;
        match *step {
            Step::Wait(seconds) => self.now += seconds,
            Step::Append { partition, open } => {
                if let Some(truth) = self.partitions.get_mut(partition) {
                    let all_stable = truth.stable == truth.appended.len() as i64;
                    truth.appended.push(now);
                    truth.stable += i64::from(all_stable && !open);
                }
            }
            Step::EndTransactions => {
                self.partitions.iter_mut().for_each(|truth| truth.stable = truth.appended.len() as i64);
            }
            Step::AddPartition if self.partitions.len() < 6 => {
                self.partitions.push(Truth::default());
                self.copy.push(0);
            }
            Step::AddPartition => {}
            Step::Archive { partition, most } => {
                let owned = self.replicas.iter().any(|replica| replica.owns.contains(&(partition as i32)));
                if let Some(truth) = self.partitions.get_mut(partition).filter(|_| owned) {
                    truth.archived = (truth.archived + most).min(truth.stable).max(truth.archived);
                }
            }
            Step::Assign { seed, known } => self.assign(seed, known),
            Step::Round { replica } => self.round(replica),
            Step::Write { replica } => {
                let one = &self.replicas[replica];
                let object = one.ledger.coverage(&replica.to_string(), time(now + one.ahead));
                self.objects.insert(replica, object);
            }
            Step::Learn { replica } => {
                let report = self.report(replica);
                let read = self.read();
                let clock = time(now + self.replicas[replica].ahead);
                self.replicas[replica].ledger.learn(&report, &read, clock);
            }
            Step::Restart { replica } => self.replicas[replica].ledger = Ledger::default(),
            Step::Copy => self.copy = self.partitions.iter().map(|truth| truth.archived).collect(),
            Step::Restore => {
                // With nobody running; whoever comes reads on from there.
                self.replicas.iter_mut().for_each(|replica| replica.ledger = Ledger::default());
                for (truth, archived) in self.partitions.iter_mut().zip(&self.copy) {
                    truth.archived = *archived;
                }
            }
            Step::Recreate { partitions } => {
                self.generation += 1;
                self.partitions = vec![Truth::default(); partitions];
                self.copy = vec![0; partitions];
                self.assign(0, 8);
            }
        }
    }

    fn assign(&mut self, seed: u64, known: usize) {
        self.replicas.iter_mut().for_each(|replica| replica.owns.clear());
        let count = self.replicas.len() as u64;
        for partition in 0..self.partitions.len().min(known) {
            let replica = (seed >> (2 * partition)) % count;
            self.replicas[replica as usize].owns.insert(partition as i32);
        }
    }

    fn report(&self, replica: usize) -> Report {
        let owns = self.replicas[replica].owns.iter().copied();
        let reached: Vec<(i32, i64)> = owns.map(|at| (at, self.partitions[at as usize].archived)).collect();
        report(self.generation, &reached)
    }

    fn round(&mut self, replica: usize) {
        let report = self.report(replica);
        let ends = report.reached.iter().map(|(at, _)| (*at, self.partitions[*at as usize].appended.len() as i64));
        let (ends, partitions) = (ends.collect(), self.partitions.len() as i32);
        let one = &mut self.replicas[replica];
        one.ledger.begin_round(std::iter::once(&report), time(self.now + one.ahead));
        one.ledger.settle(&report, &ends, partitions);
        one.round += 1;
    }

    /// The objects as a reader has them: the store's clock is right.
    fn read(&self) -> Vec<Coverage> {
        self.objects
            .iter()
            .map(|(replica, object)| {
                let stored = object.at - TimeDelta::seconds(self.replicas[*replica].ahead);
                object.clone().by_the_clock_of(stored)
            })
            .collect()
    }

    /// Up to when the archive says that it is complete.
    fn claimed(&self) -> Option<DateTime<Utc>> {
        let reached = |at: i32| Some(self.partitions.get(usize::try_from(at).ok()?)?.archived);
        let id = format!("id-{}", self.generation);
        let stream = generation(self.generation).stream();
        judge_by(&self.read(), &stream, (Some(&id), 1), reached, time(self.now)).through(|_| true).ok()
    }

    /// The first record that is not archived.
    fn first_missing(&self) -> Option<i64> {
        let missing = |truth: &Truth| truth.appended.iter().skip(truth.archived as usize).min().copied();
        self.partitions.iter().filter_map(missing).min()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_called_complete_is_true_and_is_known_once_all_is_archived(
        steps in prop::collection::vec(step(), 1..120),
        clocks in prop::collection::vec(prop_oneof![3 => Just(0_i64), 1 => -40..40_i64, 1 => Just(3_600)], 3),
    ) {
        let mut world = World::new(&clocks);
        for (number, step) in steps.iter().enumerate() {
            world.take(step);
            if let (Some(claimed), Some(missing)) = (world.claimed(), world.first_missing()) {
                prop_assert!(claimed <= time(missing), "after step {number}, {step:?}: complete to {claimed}, but a record of {} is missing", time(missing));
            }
        }
        // Everything comes to rest: one round after another, each written.
        world.take(&Step::EndTransactions);
        world.assign(7, 8);
        world.now += 100;
        for partition in 0..world.partitions.len() {
            world.take(&Step::Archive { partition, most: 1_000 });
        }
        for replica in 0..3 {
            world.take(&Step::Round { replica });
            world.take(&Step::Write { replica });
        }
        let slowest = clocks.iter().copied().min().unwrap_or(0).min(0);
        let least = time(world.now + slowest) - METADATA_LAG - TimeDelta::seconds(2);
        prop_assert!(world.claimed().is_some_and(|claimed| claimed >= least), "{:?} < {least}", world.claimed());
    }
}
