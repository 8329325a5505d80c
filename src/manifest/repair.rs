//! What can be put right in a chain without a copy of the archive: `verify --repair`.
//!
//! ```text
//!   0 ◄ … ◄ 19   (20, 21, 22 are missing)   23 ◄ … ◄ 30        23 … 30 ─► aside/, the chain ends at 19
//! ```
//!
//! A page that is missing or damaged is made again from the entries that it covers. Entries above a hole are put aside:
//! nothing can be appended to a chain with a hole, and what stands above it may not be taken for what comes next. They
//! keep their bytes and names in the chain's folder `aside`, the segments that they name stay, and the archiver reads
//! again from where the chain ends now. Nothing is thrown away, and a repair that broke off is simply made again.
//!
//! A base backup that counts, and of which an operator has removed everything, counts no longer: an entry says so. Retention
//! does not do that by itself, for it would hide that somebody has removed it.

use std::collections::VecDeque;

use chrono::{DateTime, Utc};
use object_store::path::Path;

use super::{Chain, pack, page, stored};
use crate::error::{Error, Kind, Result};
use crate::store::{Store, layout};
use crate::stream::{StreamId, sha256};

/// What was put right in one chain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Repaired {
    /// The pages that were made again.
    pub pages: Vec<Path>,
    /// Where the entries above a hole lie now.
    pub aside: Vec<Path>,
    /// The base backups that count no longer, since nothing of them is there.
    pub let_go: Vec<String>,
}

impl Repaired {
    /// Returns whether there was nothing to do.
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty() && self.aside.is_empty() && self.let_go.is_empty()
    }
}

/// Puts right what can be put right in a stream's chain. What cannot is left as it is, for `verify` to tell.
///
/// # Errors
/// The store's, and [`Kind::Corrupt`] for a chain that cannot be opened all the same.
pub async fn repair(store: &Store, stream: &StreamId, by: (&str, DateTime<Utc>)) -> Result<Repaired> {
    let aside = put_aside(store, stream).await?;
    let Some(mut chain) = Chain::open(store, stream).await? else {
        return Ok(Repaired { aside, ..Repaired::default() });
    };
    let (mut pages, mut to_look_at) = (Vec::new(), VecDeque::from(chain.pages.clone()));
    while let Some(reference) = to_look_at.pop_front() {
        let object = layout::page(stream, &reference.sha256);
        let mut read = page::read(store, stream, &reference).await;
        if matches!(&read, Err(error) if error.kind() == Kind::Corrupt) {
            if !page::remake(store, stream, &reference).await? {
                tracing::warn!(%object, "the page cannot be made again with the same bytes; its entries are read instead");
                continue;
            }
            tracing::info!(%object, first = reference.first, last = reference.last, "made a page again from its entries");
            pages.push(object);
            read = page::read(store, stream, &reference).await;
        }
        to_look_at.extend(read?.pages);
    }
    let let_go = let_go(store, &mut chain, by).await?;
    Ok(Repaired { pages, aside, let_go })
}

/// Enters that the base backups count no longer of which nothing is there. One on which others build stays until those go, too. Where
/// nothing is there of any of them, a part of the archive may be somewhere else: once it is back they have to count.
async fn let_go(store: &Store, chain: &mut Chain, (writer, now): (&str, DateTime<Utc>)) -> Result<Vec<String>> {
    let (StreamId::Postgres { system_id }, Some(counted)) = (chain.stream(), chain.backups()) else {
        return Ok(Vec::new());
    };
    let mut gone = Vec::new();
    for name in counted.keys() {
        if store.list(&layout::backup(*system_id, name)).await?.is_empty() {
            gone.push(name.clone());
        }
    }
    if !gone.is_empty() && gone.len() == counted.len() {
        let folder = layout::backups(*system_id);
        tracing::warn!(%folder, backups = gone.len(), "none of the base backups that count is there, so none is let go of: \
            bring the folder back, or take a base backup first");
        return Ok(Vec::new());
    }
    if gone.is_empty() { Ok(gone) } else { chain.expire_backups(&gone, writer, now).await }
}

/// Puts the entries above the first hole aside, the highest last to be copied and first to be deleted: as long as one of
/// them is there, the hole is seen.
async fn put_aside(store: &Store, stream: &StreamId) -> Result<Vec<Path>> {
    let folder = layout::chain(stream);
    let objects = store.list(&folder).await?;
    let mut numbers = stored::numbers(stream, objects.iter().map(|object| &object.location));
    numbers.sort_unstable();
    numbers.dedup();
    let Some(hole) = (0..).zip(&numbers).find_map(|(expected, number)| (expected != *number).then_some(expected))
    else {
        return Ok(Vec::new());
    };
    if store.size(&layout::entry(stream, hole)).await?.is_some() {
        return Ok(Vec::new());
    }
    if hole == 0 {
        let message = format!("the beginning of {stream} is missing: {}", layout::entry(stream, 0));
        return Err(Error::new(Kind::Corrupt, message)
            .hint("bring it back from a copy or an older version of the bucket: it cannot be made again"));
    }
    let mut packs = objects.iter().filter_map(|object| layout::pack_first_in(&folder, &object.location));
    if let Some(first) = packs.find(|first| hole < *first) {
        let (message, pack) = (format!("entry {hole} of {stream} is missing"), layout::pack(stream, first));
        return Err(Error::new(Kind::Corrupt, message).hint(format!(
            "bring {} back from a copy or an older version of the bucket: too much stands above it, in {pack} too, to put all of it aside",
            layout::pack(stream, pack::first_of(hole)),
        )));
    }
    let above: Vec<u64> = numbers.into_iter().filter(|number| *number > hole).collect();
    let mut aside = Vec::new();
    for &number in &above {
        let Some(bytes) = store.get(&layout::entry(stream, number)).await? else { continue };
        let key = layout::aside(stream, number, &sha256(&bytes));
        store.put(&key, bytes).await?;
        aside.push(key);
    }
    for &number in above.iter().rev() {
        store.delete(&layout::entry(stream, number)).await?;
    }
    tracing::warn!(%stream, hole, above = above.len(), "entries are missing; those above them were put aside");
    Ok(aside)
}
