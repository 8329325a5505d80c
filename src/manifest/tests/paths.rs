//! Random histories of one Postgres system: commits, backups, promotions, gaps and expiries. What `ls` claims, what a plan
//! accepts, what retention keeps and when a backup is due are held against a model that knows every byte.
//!
//! ```text
//!   history ─► a chain in memory, histories, backups ─► facts, windows, expirable, freshest     what the program says
//!      └─────► a map of bytes, a list of commits      ─► is every byte there?                 what is so
//! ```

use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};

mod world;

use world::{Alone, Step, World};

fn step() -> impl Strategy<Value = Step> {
    let piece = (1..4_u64, 0..40_i64);
    // Mostly the newest.
    let on = prop_oneof![2 => Just(None), 2 => Just(Some(0)), 1 => (0..8_usize).prop_map(Some)];
    prop_oneof![
        4 => prop::collection::vec(piece, 1..4).prop_map(Step::Write),
        4 => Just(Step::Archive),
        1 => Just(Step::Lose),
        1 => Just(Step::Minimal),
        3 => (0..6_u64, 1..6_u64, -2_000..2_000_i64, on).prop_map(|(back, length, skew, on)| Step::BackUp { back, length, skew, on }),
        1 => (0..8_usize).prop_map(Step::Damage),
        1 => (any::<prop::sample::Index>(), 0..40_u64)
            .prop_map(|(timeline, back)| Step::Promote { timeline: timeline.index(8), back }),
        2 => prop_oneof![Just(1), 0..300_i64].prop_map(Step::Expire),
        1 => Just(Step::Abandon),
    ]
}

/// A server that was archived by mistake, backed up, and abandoned, and another one that gets its number and comes past that
/// place: random steps find no such history by chance.
fn mistake() -> impl Strategy<Value = Vec<Step>> {
    let pieces = || prop::collection::vec((1..4_u64, 0..40_i64), 2..5);
    let places = (any::<prop::sample::Index>(), 0..12_u64, 0..12_u64, 1..6_u64);
    (places, pieces(), pieces()).prop_map(|((timeline, back, again, length), wrong, right)| {
        let promote = |back| Step::Promote { timeline: timeline.index(8), back };
        let back_up = Step::BackUp { back: 1, length, skew: 0, on: None };
        let first = [promote(back), Step::Write(wrong), Step::Archive, back_up, Step::Archive, Step::Abandon];
        let second = [promote(again), Step::Write(right.clone()), Step::Write(right), Step::Archive];
        [&first[..], &second].concat()
    })
}

async fn run_histories(alone: Alone, steps: &[Step]) -> Result<(), TestCaseError> {
    let mut world = World::new(alone).await;
    for step in steps {
        let Step::Expire(ms) = step else {
            world.take(step).await;
            continue;
        };
        world.check_claims().await?;
        let horizon = world.clock - ms;
        let before = world.accepted(horizon).await?;
        world.take(step).await;
        world.check_parents().await?;
        let after = world.accepted(horizon).await?;
        let lost: Vec<_> = before.difference(&after).collect();
        prop_assert!(lost.is_empty(), "retention promised everything from {horizon} on, and took {lost:?}");
        world.check_positions().await?;
        world.check_claims().await?;
    }
    world.check_positions().await?;
    world.check_claims().await
}

fn tried(alone: Alone, steps: &[Step]) -> Result<(), TestCaseError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(run_histories(alone, steps))
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let some = prop_oneof![24 => step().prop_map(|step| vec![step]), 1 => mistake()];
    prop::collection::vec(some, 1..28).prop_map(|some| some.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, max_shrink_iters: 4_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_ls_claims_a_plan_accepts_before_and_after_any_expire(steps in steps()) {
        tried(Alone::Nobody, &steps)?;
    }
}

#[test]
fn a_branch_that_was_expired_and_is_the_newest_again_has_a_backup_due() {
    let steps = [
        Step::BackUp { back: 0, length: 1, skew: 0, on: None },
        Step::Archive,
        Step::Write(vec![(1, 0)]),
        Step::Promote { timeline: 0, back: 1 },
        Step::Archive,
        Step::Promote { timeline: 0, back: 0 },
        Step::Expire(1),
        Step::Abandon,
    ];
    tried(Alone::Nobody, &steps).expect("it holds");
}

#[test]
fn one_user_who_computes_for_himself_is_found() {
    for (alone, told) in [
        (Alone::Retention, "retention promised"),
        (Alone::Listing, "ls claims"),
        (Alone::Abandoned, "Ok(Reach"),
        (Alone::Parents, "Ok(Reach"),
        (Alone::Minimal, "Ok(Reach"),
        (Alone::Plan, "is in the backup only"),
        (Alone::Metrics, "the metrics say something else than ls"),
        (Alone::Due, "none is due for the sake of"),
    ] {
        let config = ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() };
        let random = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
        let found = TestRunner::new_with_rng(config, random).run(&steps(), |steps| tried(alone, &steps));
        let found = found.expect_err("it is found").to_string();
        println!("{alone:?}: {found}");
        assert!(found.contains(told), "{found}");
    }
}
