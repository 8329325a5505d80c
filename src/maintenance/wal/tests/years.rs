//! What maintenance costs in an archive of years, made up.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use chrono::DateTime;

use super::super::*;
use super::made_up::*;
use crate::manifest::Selection;
use crate::store::layout;
use crate::stream::Lsn;

#[tokio::test]
async fn what_is_looked_for_at_the_start_does_not_grow_with_the_archive() {
    let mut reads = Vec::new();
    for blocks in [600, 3_000] {
        let (counting, store) = counted();
        let mut chain = begun(&store).await;
        append(&store, &mut chain, 0, ends(0..blocks, &[])).await;
        let behind = [5_000, 9_000, BLOCK, BLOCK + 9].map(|behind| blocks * BLOCK + behind);
        append(&store, &mut chain, blocks * BLOCK, behind).await;
        counting.take();
        let found = unmerged(&chain).await.expect("looked");
        let (start, end) = (Lsn(blocks * BLOCK).position(), Lsn((blocks + 1) * BLOCK).position());
        assert_eq!(found, [Block { timeline: 1, start, end }].into());
        reads.push(counting.take().0);
    }
    assert!(reads[1] <= reads[0] + 3, "objects that were read: {reads:?}");
}

#[tokio::test]
async fn what_is_retired_goes_and_nothing_else_however_much_there_is() {
    let (counting, store) = counted();
    // Where keys are cut into answers and windows, too: what is replaced stands before what has replaced it, or behind.
    let merged = [450, 899, 900, 949, 999, 1_000, 1_023, 1_024, 1_799, 1_800];
    let mut chain = begun(&store).await;
    append(&store, &mut chain, 0, ends(0..2_500, &merged)).await;
    let delete =
        async |chain: &Chain, at, horizon| delete::delete_retired(&store, chain, (at, horizon)).await.expect("looked");
    let count = async || store.list(&layout::wal_segments(7)).await.expect("listed").len();
    counting.take();
    assert_eq!(delete(&chain, now() + GRACE, None).await, 0);
    assert_eq!(counting.take().0, 0, "nothing can be retired, and the chain is not asked");
    for block in merged {
        merge(&store, &mut chain, block).await;
    }
    let expired = BTreeMap::from([(1, Lsn(3 * BLOCK).position())]);
    chain.expire(&expired, "e", now()).await.expect("expired");
    let orphan = layout::wal_segment(7, 1, 5..9, "o", 0);
    store.put(&orphan, Bytes::from_static(b"x")).await.expect("stored");
    let before = count().await;
    assert_eq!(delete(&chain, now(), None).await, 0, "not yet");
    assert_eq!(delete(&chain, now() + GRACE, None).await, 3 + 2 * 10);
    assert_eq!(count().await, before - 23);
    // Another server gets the number.
    chain.abandon((1, 0), &[], "a", now()).await.expect("abandoned");
    append(&store, &mut chain, 100 * BLOCK, ends(100..200, &[])).await;
    assert_eq!(delete(&chain, now() + GRACE, None).await, 0, "an abandoned timeline stays without a retention");
    assert_eq!(delete(&chain, now() + GRACE, Some(now())).await, 0, "and as long as it says");
    let needed = chain.select(&Selection::default()).await.expect("selected").segments;
    assert_eq!(delete(&chain, now() + GRACE, Some(now() + GRACE)).await, 2_497);
    assert_eq!(needed.len() + 1, count().await, "and one that no entry names");
    for segment in &needed {
        let key = layout::object(&segment.object).expect("a key");
        assert!(store.get(&key).await.expect("read").is_some(), "{key}");
    }
}

/// Blocks of a week, one an hour.
const A_WEEK: u64 = 7 * 24;

/// How long is kept.
const KEPT: u64 = 2 * A_WEEK;

/// What an archive costs that was kept in order for so many weeks, with a base backup each: objects and bytes that are read as the
/// service starts, as it works out what can be recovered, as it tidies what a week has left, and as it tidies without anything to do.
async fn cost(weeks: u64) -> [(u64, u64); 4] {
    let (counting, store) = counted();
    let mut chain = begun(&store).await;
    let horizon = |blocks: u64| DateTime::from_timestamp_millis(came(blocks.saturating_sub(KEPT))).expect("a time");
    for blocks in (0..weeks).map(|week| week * A_WEEK..(week + 1) * A_WEEK) {
        back_up(&store, blocks.start).await;
        append(&store, &mut chain, blocks.start * BLOCK, ends(blocks.clone(), &[blocks.start])).await;
        merge(&store, &mut chain, blocks.start).await;
        let known = Known::read(&store, &chain).await.expect("read");
        counting.take();
        expire(&store, &mut chain, known, (horizon(blocks.end), now()), "e").await.expect("expired");
        delete_obsolete(&store, &chain, (crate::time::now() + GRACE, None)).await.expect("tidied");
    }
    let works = counting.take();
    let mut chain = Chain::open(&store, chain.stream()).await.expect("opened").expect("a chain");
    assert_eq!(unmerged(&chain).await.expect("looked"), BTreeSet::new());
    let start = counting.take();
    let mut known = Known::default();
    known.look(&store, 7, chain.backups()).await.expect("looked");
    let facts = recoverable::facts_with(&store, &chain, known.taken()).await.expect("facts");
    let windows = recoverable::windows(&store, &chain, &facts).await.expect("windows");
    assert_eq!(windows.len(), 1);
    assert!(windows[0].from <= horizon(weeks * A_WEEK), "{windows:?}");
    let look = counting.take();
    let given = expire(&store, &mut chain, known.taken(), (horizon(weeks * A_WEEK), now()), "e").await.expect("looked");
    assert_eq!(given, Expiry::default());
    assert_eq!(delete_obsolete(&store, &chain, (crate::time::now() + GRACE, None)).await.expect("tidied"), 0);
    [start, look, works, counting.take()]
}

/// What is read is what is in memory: nothing is kept between rounds but the backups' positions.
#[tokio::test]
async fn what_maintenance_costs_after_three_years_is_what_it_cost_after_weeks() {
    let (young, old) = (cost(12).await, cost(156).await);
    eprintln!("objects and bytes of a start, a look, two tidies: {young:?} after 12 weeks, {old:?} after 156");
    // To open a chain takes the entries since its last snapshot, up to 63.
    for ((young, old), more) in young.into_iter().zip(old).zip([70, 8, 16, 8]) {
        assert!(old.0 <= young.0 + more, "objects: {young:?}, {old:?}");
        assert!(old.1 <= young.1 * 2 + 100_000, "bytes: {young:?}, {old:?}");
    }
}

#[tokio::test]
async fn who_expires_says_so_before_it_looks_who_holds() {
    let (counting, store) = counted();
    let mut chain = begun(&store).await;
    for block in 0..4 {
        back_up(&store, block * 2).await;
        append(&store, &mut chain, block * 2 * BLOCK, ends(block * 2..block * 2 + 2, &[])).await;
    }
    let horizon = DateTime::from_timestamp_millis(came(6)).expect("a time");
    let known = Known::read(&store, &chain).await.expect("read");
    counting.log.lock().expect("a log").clear();
    let given = expire(&store, &mut chain, known, (horizon, now()), "e").await.expect("expired");
    assert!(given.backups > 0 && given.wal.segments > 0, "{given:?}");
    let log = counting.log.lock().expect("a log").clone();
    let at = |what: &str, from: usize| {
        let found = log[from..].iter().position(|line| line.starts_with(what));
        from + found.unwrap_or_else(|| panic!("no {what} in {:?}", &log[from..]))
    };
    let said = at("put holds/postgres/7/gives-up-e", 0);
    let looked = at("list holds/postgres/7", said);
    let entered = at("put manifest/postgres/7", 0);
    assert!(said < looked && looked < entered, "{log:?}");
    let left = store.list(&layout::holds(7)).await.expect("listed");
    assert!(left.iter().all(|object| object.location.filename() == Some("clock")), "{left:?}");
}

/// What a clock has jumped over was not lived through.
#[tokio::test]
async fn a_machine_whose_clock_is_ahead_of_the_store_s_expires_nothing_of_the_window() {
    let (_, store) = counted();
    let mut chain = begun(&store).await;
    for block in 0..4 {
        back_up(&store, block * 2).await;
        append(&store, &mut chain, block * 2 * BLOCK, ends(block * 2..block * 2 + 2, &[])).await;
    }
    let horizon = DateTime::from_timestamp_millis(came(6)).expect("a time");
    let days = TimeDelta::days(10);
    let mut expired = Vec::new();
    for clock in [crate::time::now() + days, crate::time::now() - days] {
        let known = Known::read(&store, &chain).await.expect("read");
        let given = expire(&store, &mut chain, known, (horizon, clock), "e").await.expect("looked");
        expired.push(given.backups);
    }
    assert_eq!(expired[0], 0, "{expired:?}");
    assert!(expired[1] > 0, "one that is behind the store's says what is old: {expired:?}");
}
