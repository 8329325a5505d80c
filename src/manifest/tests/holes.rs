//! A bucket that lost entries or pages, or was put back to an earlier state.

use std::collections::BTreeSet;

use super::faulty::lose;
use super::*;
use crate::error::Kind;
use crate::manifest::{ChainScan, ScanStep, Selection, repair};
use crate::store::layout;

async fn damaged(store: &Store) -> usize {
    let (mut scan, mut damaged) = (ChainScan::new(store, &orders()).await.unwrap(), 0);
    while let Some(step) = scan.next().await.unwrap() {
        damaged += usize::from(matches!(step, ScanStep::Damaged { .. }));
    }
    damaged
}

async fn segments(store: &Store) -> usize {
    let chain = Chain::open(store, &orders()).await.unwrap().unwrap();
    chain.select(&Selection::default()).await.unwrap().segments.len()
}

#[tokio::test]
async fn whatever_stands_above_a_hole_of_any_width_is_seen() {
    for (head, hole) in
        [(65, 62..65), (30, 20..23), (80, 20..71), (80, 64..79), (300, 257..299), (300, 257..258), (66, 20..66)]
    {
        let faulty = faultless();
        let mut chain = begun(&faulty.store()).await;
        grow(&mut chain, head).await;
        for number in hole.clone() {
            lose(&faulty, &layout::entry(&orders(), number)).await;
        }
        // A snapshot above it needs nothing below.
        let opened = Chain::open(&faulty.store(), &orders()).await;
        match opened {
            Ok(opened) => assert_eq!((opened.unwrap().head(), hole.start < 64 && head < 66), (head, true), "{hole:?}"),
            Err(error) => {
                assert_eq!(error.kind(), Kind::Corrupt, "{error}");
                assert!(error.to_string().contains("is missing"), "{error}");
                assert!(error.hint_text().unwrap().contains("verify --repair"), "{error:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_commit_writes_nothing_above_a_hole_and_goes_on_from_what_is_there() {
    for lost in [1, 3, 10] {
        let faulty = faultless();
        let mut chain = begun(&faulty.store()).await;
        grow(&mut chain, 30).await;
        for number in 31 - lost..31 {
            lose(&faulty, &layout::entry(&orders(), number)).await;
        }
        let next = append("next", vec![range(0, 300, 310)]);
        let moved = chain.commit(&next, "w", at(1)).await.unwrap();
        assert_eq!(moved, Outcome::Moved(BTreeSet::from([0])), "{lost} lost");
        let left = 30 - lost;
        assert_eq!((chain.head(), chain.position(0).unwrap().end), (left, i64::try_from(left).unwrap() * 10));
        grow(&mut chain, 70).await;
        assert_eq!((segments(&faulty.store()).await, damaged(&faulty.store()).await), (69, 0));
    }
}

#[tokio::test]
async fn a_chain_that_is_gone_is_not_begun_again_by_a_commit() {
    let faulty = faultless();
    let mut chain = begun(&faulty.store()).await;
    grow(&mut chain, 2).await;
    for number in 0..3 {
        lose(&faulty, &layout::entry(&orders(), number)).await;
    }
    let error = chain.commit(&append("x", vec![range(0, 20, 21)]), "w", at(1)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt, "{error}");
    assert!(faulty.store().list(&layout::chain(&orders())).await.unwrap().is_empty());
}

#[tokio::test]
async fn what_stands_above_a_hole_is_put_aside_and_the_chain_goes_on() {
    let faulty = faultless();
    let store = faulty.store();
    let mut chain = begun(&store).await;
    grow(&mut chain, 30).await;
    let last = store.get(&layout::entry(&orders(), 30)).await.unwrap().unwrap();
    for number in [20, 21, 25] {
        lose(&faulty, &layout::entry(&orders(), number)).await;
    }
    // The writer that knew entry 30 is told as long as the hole is there.
    let next = append("next", vec![range(0, 300, 310)]);
    lose(&faulty, &layout::entry(&orders(), 30)).await;
    assert_eq!(chain.commit(&next, "w", at(1)).await.unwrap_err().kind(), Kind::Corrupt);
    store.put(&layout::entry(&orders(), 30), last.clone()).await.unwrap();

    let done = repair(&store, &orders(), ("r", at(3))).await.unwrap();
    assert_eq!((done.aside.len(), done.pages.len()), (8, 0));
    assert_eq!(store.get(&done.aside[7]).await.unwrap().unwrap(), last, "nothing is thrown away");
    assert_eq!((damaged(&store).await, segments(&store).await), (0, 19));
    assert!(repair(&store, &orders(), ("r", at(3))).await.unwrap().is_empty(), "a second time there is nothing to do");
    assert_eq!(chain.commit(&next, "w", at(1)).await.unwrap(), Outcome::Moved(BTreeSet::from([0])));
    grow(&mut chain, 30).await;
    assert_eq!((damaged(&store).await, segments(&store).await), (0, 30));
}

#[tokio::test]
async fn a_page_that_is_missing_costs_no_record_and_is_made_again() {
    let faulty = faultless();
    let store = faulty.store();
    let mut chain = begun(&store).await;
    grow(&mut chain, 4_096 + 130).await;
    let all = segments(&store).await;
    let pages: Vec<_> = chain.pages.iter().map(|page| layout::page(&orders(), &page.sha256)).collect();
    assert_eq!(chain.pages.iter().map(|page| page.level).collect::<Vec<_>>(), [1, 0, 0]);
    lose(&faulty, &pages[0]).await;
    lose(&faulty, &pages[1]).await;
    super::faulty::damage(&faulty, &pages[2]).await;
    assert_eq!((segments(&store).await, damaged(&store).await), (all, 3));
    let done = repair(&store, &orders(), ("r", at(3))).await.unwrap();
    assert_eq!((done.pages, done.aside.len()), (pages, 0));
    assert_eq!((segments(&store).await, damaged(&store).await), (all, 0));
}

#[tokio::test]
async fn a_page_that_is_missing_is_made_again_by_whoever_writes_the_next_snapshots() {
    let faulty = faultless();
    let store = faulty.store();
    let mut chain = begun(&store).await;
    grow(&mut chain, 200).await;
    let newest = layout::page(&orders(), &chain.pages.last().unwrap().sha256);
    lose(&faulty, &newest).await;
    assert_eq!(damaged(&store).await, 1);
    // Another process: what it knows is from the store.
    let mut chain = Chain::open(&store, &orders()).await.unwrap().unwrap();
    grow(&mut chain, 256).await;
    assert_eq!((damaged(&store).await, segments(&store).await), (0, 253));
    // An older one is found within 16 snapshots, and one that cannot be made again stops no commit.
    let [old, hopeless] = [0, 2].map(|index: usize| layout::page(&orders(), &chain.pages[index].sha256));
    lose(&faulty, &old).await;
    lose(&faulty, &hopeless).await;
    lose(&faulty, &layout::entry(&orders(), 130)).await;
    let mut chain = Chain::open(&store, &orders()).await.unwrap().unwrap();
    grow(&mut chain, 256 + 16 * 64).await;
    assert!(store.size(&old).await.unwrap().is_some(), "the older page is there again");
    assert_eq!(damaged(&store).await, 2, "an entry, and the page that lists it");
}
