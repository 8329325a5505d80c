//! The invariant run of replays: whatever is asked for, of whatever target, with whatever accident on the way, the target
//! holds what was produced, each record once and in order, or nothing was sent and the message says why.
//!
//! ```text
//!   origin: producers ─► broker ─► tidelog run ─► archive ─► tidelog replay ─► target broker
//!              │ delivery reports                    ▲              ▲             │
//!              ▼                                    ask         accident          ▼
//!           what was produced ──────────────── brute force ──────────────────► verdict
//! ```
//!
//! What is expected is worked out from the list of produced records and the offsets that the broker reported, never from
//! the archive. [`origin`] fills an archive with everything that makes records odd; [`ask`] draws what a round asks for,
//! [`target`] what it is sent into and whether that has to be refused, [`round`] lets an [`accident`] happen and judges.
//!
//! `make soak-replay SOAK_MINUTES=20 SOAK_SEED=7` runs it for longer. The same seed draws the same rounds; `SOAK_ROUND=12`
//! plays this one alone.

mod accident;
mod ask;
mod origin;
mod round;
mod target;

use std::time::{Duration, Instant};

use self::origin::Origin;
use self::target::Cluster;
use crate::rig::records::Random;

/// Unless `SOAK_MINUTES` says otherwise: what a run of all tests can bear.
const MINUTES: u64 = 1;

/// Unless `SOAK_SEED` says otherwise: any other one is as good.
const SEED: u64 = 5;

/// So many rounds are played with one archive and one target cluster before both are made again.
const ROUNDS_OF_AN_ARCHIVE: u64 = 25;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok().filter(|value| !value.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

#[test]
fn what_was_produced_is_replayed_once_or_refused_whatever_happens() {
    let seed = number("SOAK_SEED").unwrap_or(SEED);
    let time = Duration::from_secs(60 * number("SOAK_MINUTES").unwrap_or(MINUTES));
    let only = number("SOAK_ROUND");
    eprintln!("soak-replay: SOAK_SEED={seed}, {} minutes", time.as_secs() / 60);
    let (start, mut played) = (Instant::now(), 0);
    let mut world: Option<(u64, Origin, Cluster)> = None;
    for number in only.unwrap_or(0).. {
        if start.elapsed() >= time || (only.is_some() && played > 0) {
            break;
        }
        let archive = number / ROUNDS_OF_AN_ARCHIVE;
        if world.as_ref().is_none_or(|(of, ..)| *of != archive) {
            let mut random = Random::new(seed.wrapping_mul(1_000_003).wrapping_add(archive));
            drop(world.take());
            world = Some((archive, Origin::fill(&mut random), Cluster::start(&mut random)));
        }
        let (_, origin, cluster) = world.as_ref().expect("it was just made");
        let random = Random::new(seed.wrapping_mul(1_000_033).wrapping_add(number));
        round::play(number, random, origin, cluster);
        played += 1;
    }
    eprintln!("soak-replay: {played} rounds in {} s", start.elapsed().as_secs());
    assert!(played > 0, "not a single round");
}
