//! The program ended, failed or delayed at each of its steps, by a seed, against real servers. Whatever happens on the way, in the end
//! everything is in the archive once, `verify` finds nothing, and the next start has tidied up what the one before left in its spool.
//!
//! ```text
//!   seed ─► order of the steps, fault and passing of each
//!             └► TIDELOG_FAILPOINTS=segment.put=kill@2 tidelog run … dead ─► the next one … ─► a whole one ─► equal to the source?
//! ```
//!
//! `make test` goes through the steps once, `make test-faults` many times. Each life says in one line what it met.

mod kafka;
mod merge;
mod postgres;
mod replay;

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::rig::program::Home;
use crate::rig::records::Random;

/// How long a life may take to come to its step before it is killed anyhow.
const LIFE: Duration = Duration::from_secs(12);

/// What a life passes once, if at all: state that changed, a whole base backup, the 64th entry of a chain, a partition that moves.
const SELDOM: &[&str] = &["state_", "backup_commit", "backups.entry", "page", "snapshot", "group.revoke"];

/// What a run of the crash tests is to do.
struct Plan {
    seeds: u64,
    first: u64,
    deadline: Option<Instant>,
    at_once: usize,
    /// Whether every step is tried, with faults that are drawn: `make test-faults`.
    is_long: bool,
}

impl Plan {
    /// One seed; as many as the environment says for `make test-faults`.
    fn from_environment() -> Plan {
        let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
        let minutes = number("CRASH_MINUTES").map(|minutes| Duration::from_secs(60 * minutes));
        Plan {
            seeds: number("CRASH_SEEDS").unwrap_or(1),
            first: number("CRASH_SEED").unwrap_or(1),
            deadline: minutes.map(|minutes| Instant::now() + minutes),
            is_long: number("CRASH_SEEDS").is_some(),
            at_once: usize::try_from(number("CRASH_AT_ONCE").unwrap_or(1)).expect("a few"),
        }
    }

    /// Runs `case` with one seed after the other, until all are done or the time is over. Every one of `steps` has to have been met
    /// by one of them.
    fn run(&self, steps: &[&str], case: impl Fn(u64, &Met) + Sync) {
        let (met, next, done) = (Met::default(), AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for _ in 0..self.at_once {
                scope.spawn(|| {
                    loop {
                        let n = next.fetch_add(1, Ordering::Relaxed);
                        if n >= self.seeds || (n > 0 && self.deadline.is_some_and(|end| end < Instant::now())) {
                            return;
                        }
                        case(self.first + n, &met);
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        let met = met.0.lock().expect("no case panicked");
        println!("{} of {} seeds, {} steps met", done.load(Ordering::Relaxed), self.seeds, met.len());
        let missed: Vec<&&str> = steps.iter().filter(|step| !met.contains(**step)).collect();
        assert!(missed.is_empty(), "no life came to {missed:?}");
    }
}

/// The steps that some life has met its fault at.
#[derive(Default)]
struct Met(Mutex<BTreeSet<String>>);

/// A step and what happens there.
struct Fault {
    step: String,
    text: String,
    ends: bool,
}

impl Fault {
    /// The end of the process at the first passing.
    fn kill(step: &str) -> Fault {
        Fault { step: step.to_owned(), text: format!("{step}=kill@1"), ends: true }
    }

    /// A fault at one of the first passings, or the only one: the end of the process more often than not.
    fn draw(step: &str, random: &mut Random) -> Fault {
        let often = !SELDOM.iter().any(|object| step.starts_with(object));
        let (kind, passing) = (random.below(10), 1 + if often { random.below(3) } else { 0 });
        let text = match kind {
            0 => format!("{step}={}@{passing}", 100 + random.below(1_500)),
            1 | 2 => format!("{step}=error@{passing}..{}", passing + random.below(3)),
            _ => format!("{step}=kill@{passing}"),
        };
        Fault { step: step.to_owned(), text, ends: kind > 2 }
    }
}

/// The program runs with a fault until it is dead or `is_done`, and is killed then. Says whether the fault was met.
fn live(home: &Home, args: &[&str], fault: &Fault, met: &Met, mut is_done: impl FnMut() -> bool) {
    let (begun, mut program) = (Instant::now(), home.start_with_faults(args, &fault.text));
    while program.is_running() && begun.elapsed() < LIFE && !is_done() {
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = program.output();
    let was_met = output.contains(&format!("failpoint {}: ", fault.step));
    println!("{}: {} after {:?}", fault.text, if was_met { "met" } else { "not met" }, begun.elapsed());
    if !was_met && fault.text.ends_with("=kill@1") {
        println!("it said:\n{output}");
    }
    if fault.ends && was_met {
        assert!(!program.is_running(), "it was to end at {}; it said:\n{output}", fault.text);
    }
    if was_met {
        met.0.lock().expect("no case panicked").insert(fault.step.clone());
    }
    program.kill();
}

/// In another order for each seed.
fn shuffled<'a>(steps: &[&'a str], random: &mut Random) -> Vec<&'a str> {
    let mut left = steps.to_vec();
    let mut all = Vec::new();
    while !left.is_empty() {
        let at = usize::try_from(random.below(left.len() as u64)).expect("an index");
        all.push(left.swap_remove(at));
    }
    all
}

/// Every step that the program has is tried by one of these tests.
#[test]
fn every_step_is_tried_or_said_not_to_be() {
    let tried: BTreeSet<&str> = [kafka::STEPS, merge::STEPS, postgres::STEPS, replay::STEPS, &crate::recover::STEPS]
        .concat()
        .into_iter()
        .collect();
    let stored =
        tidelog::failpoint::STORED.iter().flat_map(|object| ["put", "answer"].map(|at| format!("{object}.{at}")));
    let all: BTreeSet<String> = stored.chain(tidelog::failpoint::POINTS.map(str::to_owned)).collect();
    let missed: Vec<&String> = all.iter().filter(|step| !tried.contains(step.as_str())).collect();
    assert_eq!(missed, NOT_TRIED, "steps that no test passes");
    let unknown: Vec<&&str> = tried.iter().filter(|step| !all.contains(**step) && !step.ends_with(".delete")).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}

/// The history of a timeline is written after a promotion alone.
const NOT_TRIED: [&str; 2] = ["history.answer", "history.put"];
