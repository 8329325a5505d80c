//! What commits and openings cost does not grow with the archive's age.

use super::faulty::Counts;
use super::*;
use crate::manifest::aged::{Aged, Clock, Stays, delete_expired};
use crate::manifest::reads::Held;

/// Commits, measured over two snapshots: as many commits as lie between the same points of the counter.
async fn cost_of_128_commits(faulty: &Faulty, chain: &mut Chain) -> Counts {
    faulty.take_counts();
    let head = chain.head();
    grow(chain, head + 128).await;
    faulty.take_counts()
}

#[tokio::test]
async fn commits_and_openings_cost_the_same_in_an_old_archive() {
    let faulty = faultless();
    let mut chain = begun(&faulty.store()).await;
    grow(&mut chain, 1_000).await;
    let young = cost_of_128_commits(&faulty, &mut chain).await;
    grow(&mut chain, 20_000).await;
    let old = cost_of_128_commits(&faulty, &mut chain).await;
    // Where the counter stands as it stood when young: it has gone round five times.
    grow(&mut chain, 1_000 + 5 * 4_096).await;
    let same_place = cost_of_128_commits(&faulty, &mut chain).await;
    // 126 changes, 2 snapshots and 2 pages; each entry is written only after the one before it was read.
    for counts in [young, old, same_place] {
        assert_eq!((counts.written, counts.read, counts.listed), (130, 128, 0));
        // Each entry is looked after once it is created; each of the two snapshots looks for the next pack, after the newest page, and
        // after few others.
        assert!((132..=146).contains(&counts.looked_at), "{counts:?}");
    }
    let bytes = (young.bytes_written, old.bytes_written, same_place.bytes_written);
    assert!(bytes.1 * 2 < bytes.0 * 3 && bytes.2 * 20 < bytes.0 * 21, "bytes of 128 commits: {bytes:?}");

    faulty.take_counts();
    let opened = Chain::open(&faulty.store(), &orders()).await.unwrap().unwrap();
    assert_eq!(opened.head(), chain.head());
    let opening = faulty.take_counts();
    // At most 63 entries since the last snapshot, the snapshot, and a window of reads beyond the end.
    assert!(opening.read <= 80 && opening.looked_at <= 40, "{opening:?}");
    assert_eq!(opening.listed, 1);
}

#[tokio::test]
async fn the_pages_of_a_snapshot_are_a_counter_of_base_64() {
    let faulty = faultless();
    let mut chain = begun(&faulty.store()).await;
    grow(&mut chain, 4_096 + 129).await;
    let levels: Vec<u8> = chain.pages.iter().map(|page| page.level).collect();
    assert_eq!(levels, [1, 0, 0]);
    let covered: Vec<(u64, u64)> = chain.pages.iter().map(|page| (page.first, page.last)).collect();
    assert_eq!(covered, [(0, 4095), (4096, 4159), (4160, 4223)]);
}

/// What a round of retention asks the store for where nothing is to be done: of a process that has just begun, and of one that has
/// looked before.
async fn cost_of_idle_rounds(faulty: &Arc<Faulty>, chain: &mut Chain) -> [Counts; 2] {
    let end = chain.position(0).map_or(0, |at| at.end);
    chain.expire(&std::collections::BTreeMap::from([(0, end - 50)]), "e", at(1)).await.unwrap();
    let clock = Clock { now: at(10_000), horizon: at(0) };
    let (mut aged, mut stays) = (Aged::default(), Stays::default());
    let mut round = async || {
        faulty.take_counts();
        aged.go_on(chain, clock, None).await.unwrap();
        assert!(aged.expirable(chain, &Held::default(), clock).await.unwrap().is_empty());
        let deletion = delete_expired(&faulty.store(), chain, clock, &Held::default(), &mut stays).await.unwrap();
        assert_eq!((deletion.deleted, deletion.waits), (0, false));
        faulty.take_counts()
    };
    [round().await, round().await]
}

#[tokio::test]
async fn a_round_of_retention_with_nothing_to_do_costs_the_same_in_an_old_archive() {
    let faulty = faultless();
    let mut chain = begun(&faulty.store()).await;
    grow(&mut chain, 1_000).await;
    let [begun, known] = cost_of_idle_rounds(&faulty, &mut chain).await;
    grow(&mut chain, 1_000 + 5 * 4_096).await;
    let [begun_old, known_old] = cost_of_idle_rounds(&faulty, &mut chain).await;
    // The entry that was looked at last, and the next one.
    assert_eq!((known.read, known.listed, known.looked_at), (2, 0, 0));
    assert_eq!(known_old, Counts { bytes_written: known.bytes_written, ..known });
    // By halving, up to the last snapshot and to the next entry; the pages that say what was expired last.
    assert!(begun.read <= 12 && begun.listed == 1, "{begun:?}");
    assert!(begun_old.read <= begun.read + 7 && begun_old.listed == 1, "{begun_old:?}");
}
