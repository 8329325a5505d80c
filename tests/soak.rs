//! The invariant run: whatever happens to brokers, topics and archivers, what the brokers acknowledged is archived once.
//!
//! ```text
//!   feed, transactions ─► 3 brokers ─► 3 archivers (one group) ─► archive ─► ls, cat, verify
//!          │ delivery reports   ▲               ▲                   │
//!          ▼                    └── schedule ───┘                   ▼
//!       ledger (the truth) ◄──────── log starts, logs ──── watch (all the time), judge (in the end)
//! ```
//!
//! [`schedule`] draws what happens from a seed: topics are deleted, created again and given more partitions, leaders are
//! killed, elections are unclean, retention runs, archivers are killed, stopped, frozen and started again. [`ledger`] knows
//! what the brokers acknowledged and what they lost for good. [`watch`] asserts at all times that `COMPLETE TO` is not
//! ahead of the truth and that no partition stands still while every archiver is ready; [`judge`] compares the archive with the
//! ledger and with the logs in the end.
//!
//! `make soak SOAK_MINUTES=20 SOAK_SEED=7` runs it for longer; the same seed draws the same schedule, though not the same
//! moments. `SOAK_KINDS=recreate,grow` lets only these things happen. `SOAK_KEEP` names where a run leaves its files; without it
//! only a failed one leaves them.

mod archivers;
mod elections;
mod feed;
mod journal;
mod judge;
mod ledger;
mod schedule;
mod topics;
mod transactions;
mod watch;
mod world;

use std::thread;
use std::time::Duration;

use self::journal::Journal;
use self::world::World;

/// Unless `SOAK_MINUTES` says otherwise.
const MINUTES: u64 = 2;

/// Unless `SOAK_SEED` says otherwise: any other one is as good.
const SEED: u64 = 11;

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn number(name: &str, default: u64) -> u64 {
    variable(name).map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name}={value} is no number")))
}

#[test]
fn what_the_brokers_acknowledged_is_archived_once_whatever_happens() {
    let (seed, minutes) = (number("SOAK_SEED", SEED), number("SOAK_MINUTES", MINUTES));
    let world = World::new(seed, Journal::new(seed));
    world.journal.note(format!("seed {seed}, {minutes} minutes: {}", world.setting));
    thread::scope(|scope| {
        // A panic in this thread must end the others, too, or the scope would wait for them.
        let _end = world.ends_with_this();
        scope.spawn(|| world.guarded("feed", || feed::run(&world)));
        scope.spawn(|| world.guarded("transactions", || transactions::run(&world)));
        scope.spawn(|| world.guarded("archivers", || archivers::poll(&world)));
        scope.spawn(|| world.guarded("watch", || watch::run(&world)));
        world.guarded("schedule", || {
            schedule::run(&world, Duration::from_secs(60 * minutes));
            judge::settle(&world);
        });
    });
    world.guarded("judge", || judge::run(&world));
    world.conclude();
}
