//! The scan tells all damage, and only damage.

use super::faulty::{damage, lose};
use super::*;
use crate::manifest::{ChainScan, ScanStep};
use crate::store::layout;

/// Entries, pages, and the objects that are told as damaged.
pub(super) async fn scanned(store: &Store) -> (u64, u64, Vec<String>) {
    let mut scan = ChainScan::new(store, &orders()).await.unwrap();
    let (mut entries, mut pages, mut damaged) = (0, 0, Vec::new());
    while let Some(step) = scan.next().await.unwrap() {
        match step {
            ScanStep::Entry { .. } => entries += 1,
            ScanStep::Page { .. } => pages += 1,
            ScanStep::Damaged { object, error, .. } => {
                println!("{object}: {error}");
                damaged.push(object.to_string());
            }
        }
    }
    (entries, pages, damaged)
}

#[tokio::test]
async fn a_sound_chain_is_scanned_without_a_word() {
    let faulty = faultless();
    assert_eq!(scanned(&faulty.store()).await, (0, 0, vec![]));
    let mut chain = begun(&faulty.store()).await;
    grow(&mut chain, 4_200).await;
    // 65 pages of level 0 and one of level 1.
    assert_eq!(scanned(&faulty.store()).await, (4_201, 66, vec![]));
}

#[tokio::test]
async fn every_missing_or_damaged_entry_is_told() {
    for broken in [0, 1, 63, 64, 65, 100, 128, 150] {
        for lost in [true, false] {
            let faulty = faultless();
            let mut chain = begun(&faulty.store()).await;
            grow(&mut chain, 150).await;
            let key = layout::entry(&orders(), broken);
            if lost && broken == 150 {
                continue; // the last entry of a chain leaves no trace
            }
            if lost {
                lose(&faulty, &key).await
            } else {
                damage(&faulty, &key).await
            }
            let (entries, pages, damaged) = scanned(&faulty.store()).await;
            assert!(
                damaged.contains(&key.to_string())
                    || damaged.contains(&layout::entry(&orders(), broken + 1).to_string())
            );
            assert!(damaged.len() <= 2, "{broken}: {damaged:?}");
            assert!(entries >= 150);
            // A page that lists something else than the entry says now is told.
            let told = damaged.iter().filter(|object| object.contains("/pages/")).count() as u64;
            assert_eq!(pages + told, if broken == 128 || broken == 64 { pages } else { 2 });
        }
    }
}

#[tokio::test]
async fn every_missing_or_damaged_page_is_told() {
    let faulty = faultless();
    let mut chain = begun(&faulty.store()).await;
    grow(&mut chain, 4_200).await;
    let top = layout::page(&orders(), &chain.pages[0].sha256);
    let newest = layout::page(&orders(), &chain.pages[1].sha256);
    damage(&faulty, &top).await;
    lose(&faulty, &newest).await;
    let (entries, pages, damaged) = scanned(&faulty.store()).await;
    assert_eq!((entries, pages), (4_201, 63));
    assert_eq!(damaged, [top.to_string(), newest.to_string()]);
}

#[tokio::test]
async fn a_page_that_lists_something_else_is_told() {
    let faulty = faultless();
    let mut chain = begun(&faulty.store()).await;
    grow(&mut chain, 63).await;
    // A program with a bug: its snapshot leaves a segment out, and the sums still fit.
    let left_out = chain.tail.len() - 1;
    let crate::stream::Body::Append(change) = &mut chain.tail[left_out] else { panic!("not an append") };
    change.segments[0].largest_record += 1;
    grow(&mut chain, 65).await;
    let page = layout::page(&orders(), &chain.pages[0].sha256);
    assert_eq!(scanned(&faulty.store()).await, (66, 0, vec![page.to_string()]));
}
