//! The objects of records that were merged, deleted once their grace is over.
//!
//! Merges are taken in the order of their entries, and the objects of each in theirs: where the last one of a merge is gone, all before
//! it are, too, so whoever starts looks back until it finds one that is gone. Only what an entry replaces is deleted.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use super::Chain;
use super::aged::GRACE;
use super::reads::Held;
use crate::error::Result;
use crate::store::{Store, layout};
use crate::stream::{Body, Merge, PageRef};

/// How far the merges of a chain are done with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Done {
    /// All merges of the entries up to this one; none where that is not known yet.
    through: Option<u64>,
    /// How many of those behind.
    of_next: usize,
}

/// What became of the objects of what was merged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Deletion {
    /// How many were deleted.
    pub deleted: u64,
    /// When the next ones may be, where some stay for now: their time has not come, or somebody reads them.
    pub next: Option<DateTime<Utc>>,
}

/// Deletes the objects that merges have replaced longer ago than [`GRACE`] at `now`, by the store's clock, and that nobody reads.
pub async fn delete_replaced(
    store: &Store,
    chain: &Chain,
    (held, now): (&Held, DateTime<Utc>),
    done: &mut Done,
) -> Result<Deletion> {
    let mut deleting = Deleting { store, chain, held, now, deletion: Deletion::default() };
    let through = match done.through {
        Some(through) => through,
        None => deleting.done_before().await?,
    };
    done.through = Some(through);
    for page in deleting.pages_after(through).await? {
        let last = page.last;
        let merges = chain.read_page(page).await?.merges;
        if !deleting.delete(&merges, done).await? {
            return Ok(deleting.deletion);
        }
        *done = Done { through: Some(last), of_next: 0 };
    }
    // The entries since the last snapshot become a page later, with the same merges in the same order.
    let merges: Vec<Merge> = chain.tail.iter().filter_map(Body::merge).cloned().collect();
    deleting.delete(&merges, done).await?;
    if deleting.deletion.deleted > 0 {
        tracing::info!(stream = %chain.stream(), objects = deleting.deletion.deleted, "deleted segments that were merged");
    }
    Ok(deleting.deletion)
}

struct Deleting<'a> {
    store: &'a Store,
    chain: &'a Chain,
    held: &'a Held,
    now: DateTime<Utc>,
    deletion: Deletion,
}

impl Deleting<'_> {
    /// Goes on with the merges of a page; false if one has to wait.
    async fn delete(&mut self, merges: &[Merge], done: &mut Done) -> Result<bool> {
        for merge in merges.iter().skip(done.of_next) {
            let due = merge.decided.checked_add_signed(GRACE).unwrap_or(DateTime::<Utc>::MAX_UTC);
            if self.now <= due || self.is_read(merge) {
                self.deletion.next = Some(due.max(self.now));
                return Ok(false);
            }
            if !self.is_gone(merge).await? {
                for object in &merge.replaces {
                    self.store.delete(&layout::object(object)?).await?;
                    self.deletion.deleted += 1;
                }
            }
            done.of_next += 1;
        }
        Ok(true)
    }

    fn is_read(&self, merge: &Merge) -> bool {
        let ranges = merge.segment.partitions.iter();
        let offsets: BTreeMap<_, _> = ranges.map(|range| (range.partition, range.start..range.end)).collect();
        self.held.any_of(&self.chain.stream().to_string(), &offsets)
    }

    async fn is_gone(&self, merge: &Merge) -> Result<bool> {
        let Some(last) = merge.replaces.last() else { return Ok(true) };
        Ok(self.store.size(&layout::object(last)?).await?.is_none())
    }

    /// The pages of level 0 behind an entry that have merges, in order.
    async fn pages_after(&self, through: u64) -> Result<Vec<PageRef>> {
        let mut open: Vec<PageRef> = self.chain.pages.iter().rev().cloned().collect();
        let mut found = Vec::new();
        while let Some(page) = open.pop() {
            if page.merged.is_none() || page.last <= through {
                continue;
            }
            match page.level {
                0 => found.push(page),
                _ => open.extend(self.chain.read_page(page).await?.pages.into_iter().rev()),
            }
        }
        Ok(found)
    }

    /// The last entry up to which somebody has deleted what merges have replaced: before the youngest page that has a merge of which
    /// the objects are gone.
    async fn done_before(&self) -> Result<u64> {
        let mut pages = self.chain.pages.clone();
        while let Some(page) = pages.pop() {
            if page.merged.is_none() {
                continue;
            }
            let (level, first) = (page.level, page.first);
            let read = self.chain.read_page(page).await?;
            if level > 0 {
                pages.extend(read.pages);
                continue;
            }
            for merge in &read.merges {
                if self.is_gone(merge).await? {
                    return Ok(first.saturating_sub(1));
                }
            }
        }
        Ok(0)
    }
}
