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

use std::collections::VecDeque;

use object_store::path::Path;

use super::{Chain, page};
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
}

impl Repaired {
    /// Whether there was nothing to do.
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty() && self.aside.is_empty()
    }
}

/// Puts right what can be put right in a stream's chain. What cannot is left as it is, for `verify` to tell.
///
/// # Errors
/// The store's, and [`Kind::Corrupt`] for a chain that cannot be opened all the same.
pub async fn repair(store: &Store, stream: &StreamId) -> Result<Repaired> {
    let aside = put_aside(store, stream).await?;
    let Some(chain) = Chain::open(store, stream).await? else { return Ok(Repaired { aside, ..Repaired::default() }) };
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
    Ok(Repaired { pages, aside })
}

/// Puts the entries above the first hole aside, the highest last to be copied and first to be deleted: as long as one of
/// them is there, the hole is seen.
async fn put_aside(store: &Store, stream: &StreamId) -> Result<Vec<Path>> {
    let folder = layout::chain(stream);
    let mut numbers: Vec<u64> = store
        .list(&folder)
        .await?
        .iter()
        .filter_map(|object| layout::entry_number_in(&folder, &object.location))
        .collect();
    numbers.sort_unstable();
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
