//! Which entries are packed, and when their own objects go.
//!
//! ```text
//!   entries of 512 numbers, and their 8 pages ─► read, held against each other ─► pack, read back
//!   the next snapshot says that they are packed ─► an hour after the pack was made: their objects are deleted
//! ```
//!
//! The chain says that entries may be in packs before the first of them has no object of its own, so an older program refuses the chain
//! instead of missing them. Only what a pack has, to the byte, is deleted, and only of a pack that leads to what stands behind it.
//! Left are the first entry and the snapshots by which the end of the chain is found ([`super::head`]): fewer than a hundred.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, TimeDelta, Utc};
use futures::{StreamExt as _, TryStreamExt as _, stream};

use super::aged::GRACE;
use super::entry::{self, Entry};
use super::pack::{self, MOST_BYTES, Pack};
use super::reads::Held;
use super::reads_at_once::READS_AT_ONCE;
use super::{Chain, page, stored};
use crate::error::{Error, Kind, Result};
use crate::store::{Store, layout};
use crate::stream::invariants::{PACKED_TOGETHER, SNAPSHOT_EVERY};
use crate::stream::{Body, PageRef, StreamId, sha256};

/// So many entries behind those that are packed keep objects of their own: whoever opened the chain a while ago reads on there.
const MARGIN: u64 = 4 * SNAPSHOT_EVERY;

/// Where nothing may be deleted it is tried again after so long.
const REFUSED_FOR: TimeDelta = TimeDelta::hours(24);

/// So many packs are made in one go.
const MOST_AT_ONCE: usize = 8;

/// What is known of a chain from one look to the next.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Known {
    /// All entries before this one have no objects of their own.
    gone: u64,
    /// These are not packed, nor what is behind them: they are too large.
    left: Option<u64>,
    /// Nothing was allowed to be deleted: until then it is not tried again, for a try lists all entries that are left.
    refused_until: Option<DateTime<Utc>>,
}

/// What a look came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Packing {
    /// How many packs were made.
    pub made: u64,
    /// How many bytes of entries and pages are in them.
    pub bytes: u64,
    /// How many objects were deleted.
    pub deleted: u64,
    /// When it is to be looked again; none where nothing waits.
    pub next: Option<DateTime<Utc>>,
}

/// Packs what is old of a chain at `now`, by the store's clock.
///
/// # Errors
/// The store's.
pub async fn pack(store: &Store, chain: &Chain, now: DateTime<Utc>, known: &mut Known) -> Result<Packing> {
    let mut packing = Packing::default();
    if !pack::are_made_of(chain.stream()) {
        return Ok(packing);
    }
    let last_snapshot = chain.head() - chain.head() % SNAPSHOT_EVERY;
    let (mut first, mut before) = (chain.packed, None);
    while before != Some(first) {
        before = Some(first);
        first = stored::first_unpacked(store, chain.stream(), first, last_snapshot).await?;
    }
    for _ in 0..MOST_AT_ONCE {
        if last_snapshot < first.saturating_add(PACKED_TOGETHER + MARGIN) || known.left == Some(first) {
            return Ok(packing);
        }
        match gathered(store, chain, first).await {
            Ok(Some(pack))
                if pack.entry(first + PACKED_TOGETHER - 1).is_some_and(|(_, stored)| now < *stored + GRACE) =>
            {
                return Ok(packing);
            }
            Ok(Some(pack)) => {
                make(store, chain.stream(), first, &pack).await?;
                packing.bytes += pack.size();
            }
            Ok(None) => {
                known.left = Some(first);
                return Ok(packing);
            }
            Err(error) if super::streams::is_of_one_object(&error) => {
                tracing::warn!(stream = %chain.stream(), first, %error, "old entries are not packed; `tidelog verify` tells more");
                return Ok(packing);
            }
            Err(error) => return Err(error),
        }
        first += PACKED_TOGETHER;
        packing.made += 1;
    }
    packing.next = Some(now);
    Ok(packing)
}

/// Makes a pack and reads it back.
async fn make(store: &Store, stream: &StreamId, first: u64, pack: &Pack) -> Result<()> {
    let object = layout::pack(stream, first);
    store.create(&object, pack.encode(stream)?).await?;
    // Somebody may have been faster, whose zstd is another one maybe.
    let stored = store.get(&object).await?.ok_or_else(|| Error::new(Kind::NotFound, format!("{object} is missing")))?;
    if !is_same(pack, &Pack::decode(stream, first, &object, &stored)?) {
        return Err(Error::new(Kind::Corrupt, format!("{object} has other entries than the chain"))
            .hint("no tidelog made it: remove it, and look who may write to the archive"));
    }
    tracing::info!(%object, first, bytes = pack.size(), "old entries of a chain were packed");
    Ok(())
}

/// Whether two packs have the same but for dates: a store that was copied has others.
fn is_same(one: &Pack, other: &Pack) -> bool {
    one.numbers() == other.numbers()
        && one.page_names().eq(other.page_names())
        && one.page_names().all(|name| one.page(name) == other.page(name))
        && one.numbers().all(|number| match (one.entry(number), other.entry(number)) {
            (Some((one, _)), Some((other, _))) => one == other,
            _ => false,
        })
}

/// The entries from `first` on that are packed together, with their pages: all links hold, up to the entry behind them, and each page
/// lists just its entries. None where they are too large.
async fn gathered(store: &Store, chain: &Chain, first: u64) -> Result<Option<Pack>> {
    let stream = chain.stream();
    let mut read = stream::iter(first..first + PACKED_TOGETHER)
        .map(async |number| {
            let found = store.get_dated(&layout::entry(stream, number)).await?;
            found.ok_or_else(|| entry::missing(stream, number))
        })
        .buffered(READS_AT_ONCE);
    let (mut entries, mut size) = (Vec::<pack::Dated>::new(), 0_u64);
    while let Some(entry) = read.try_next().await? {
        size = size.saturating_add(entry.0.len() as u64);
        if size > MOST_BYTES {
            return Ok(None);
        }
        entries.push(entry);
    }
    drop(read);
    let mut pages = BTreeMap::new();
    let bodies = linked(store, stream, &Pack::new(first, entries.clone(), BTreeMap::new())).await?;
    for reference in pages_of(chain, first).await? {
        let of_page = bodies.iter().filter(|(number, _)| (reference.first..=reference.last).contains(number));
        let added =
            |(_, body): &(u64, Body)| (!matches!(body, Body::Begin(_) | Body::Snapshot(_))).then(|| body.clone());
        let listed: Vec<Body> = of_page.filter_map(added).collect();
        let object = layout::page(stream, &reference.sha256);
        let missing = || Error::new(Kind::NotFound, format!("{object} is missing"));
        let bytes = store.get(&object).await?.ok_or_else(missing)?;
        let page = page::decode(stream, &reference, &object, &bytes)?;
        page.lists(Some(&listed)).map_err(|violation| violation.in_object(&object))?;
        pages.insert(reference.sha256, bytes);
    }
    let pack = Pack::new(first, entries, pages);
    Ok(Some(pack).filter(|pack| pack.size() <= MOST_BYTES))
}

/// What the entries of a pack say, each of which must name the one before, and the entry behind them the last.
async fn linked(store: &Store, stream: &StreamId, pack: &Pack) -> Result<Vec<(u64, Body)>> {
    let (mut bodies, mut before) = (Vec::new(), None);
    let next = pack.numbers().end;
    let behind = stored::read(store, stream, next).await?.ok_or_else(|| entry::missing(stream, next))?;
    let of_pack = pack.numbers().filter_map(|number| Some(stored::of_pack(stream, number, pack.entry(number)?)));
    for found in of_pack.chain([Ok(behind)]) {
        let Entry { object, sha256, checkpoint } = found?;
        if before.is_some() && before != checkpoint.previous {
            return Err(Error::new(Kind::Corrupt, format!("{object} does not name the entry before it"))
                .hint("`tidelog verify` lists all damage"));
        }
        before = Some(sha256);
        bodies.push((checkpoint.number, checkpoint.body));
    }
    bodies.pop();
    Ok(bodies)
}

/// The pages of level 0 of the entries that are packed together from `first` on.
async fn pages_of(chain: &Chain, first: u64) -> Result<Vec<PageRef>> {
    let is_of = |page: &PageRef| page.first < first + PACKED_TOGETHER && first <= page.last;
    let mut open: Vec<PageRef> = chain.pages.iter().filter(|page| is_of(page)).cloned().collect();
    let mut found = Vec::new();
    while let Some(page) = open.pop() {
        match page.level {
            0 => found.push(page),
            _ => open.extend(chain.read_page(page).await?.pages.into_iter().filter(is_of)),
        }
    }
    Ok(found)
}

/// Deletes the objects of entries and pages that are in packs, once the chain says so and [`GRACE`] is over, unless somebody reads of
/// the stream.
///
/// # Errors
/// The store's; [`Kind::Denied`] where this process may not delete entries, and then no more for a day.
pub async fn delete_packed(
    store: &Store,
    chain: &Chain,
    (held, now): (&Held, DateTime<Utc>),
    known: &mut Known,
) -> Result<Packing> {
    if chain.packed == known.gone || known.refused_until.is_some_and(|until| now < until) {
        return Ok(Packing::default());
    }
    let deleted = delete_due(store, chain, (held, now), known).await;
    if deleted.as_ref().is_err_and(|error| error.kind() == Kind::Denied) {
        known.refused_until = now.checked_add_signed(REFUSED_FOR);
    }
    deleted
}

async fn delete_due(
    store: &Store,
    chain: &Chain,
    (held, now): (&Held, DateTime<Utc>),
    known: &mut Known,
) -> Result<Packing> {
    let (stream, mut done) = (chain.stream(), Packing::default());
    let all = chain.positions().map(|at| (at.partition, i64::MIN..i64::MAX)).collect();
    if held.any_of(&stream.to_string(), &all) {
        done.next = Some(now);
        return Ok(done);
    }
    let mut is_done = true;
    for (first, entries) in own_objects(store, chain).await? {
        let object = layout::pack(stream, first);
        // As it is stored now, and not as it is kept in memory.
        let Some((bytes, made)) = store.get_dated(&object).await? else {
            is_done = false;
            continue;
        };
        let due = made.checked_add_signed(GRACE).unwrap_or(DateTime::<Utc>::MAX_UTC);
        if now < due {
            is_done = false;
            done.next = Some(done.next.map_or(due, |next| next.min(due)));
            continue;
        }
        let pack = Pack::decode(stream, first, &object, &bytes)?;
        done.deleted += delete(store, stream, &pack, &entries).await?;
    }
    if is_done {
        known.gone = chain.packed;
    }
    if done.deleted > 0 {
        tracing::info!(%stream, objects = done.deleted, "deleted entries and pages that are in packs");
    }
    Ok(done)
}

/// The entries before `packed` that have objects of their own and are to have none, by the first of their packs.
async fn own_objects(store: &Store, chain: &Chain) -> Result<BTreeMap<u64, BTreeSet<u64>>> {
    let folder = layout::chain(chain.stream());
    let (mut found, mut after) = (BTreeMap::<u64, BTreeSet<u64>>::new(), folder.clone());
    loop {
        let numbers = store.list_after(&folder, &after, |key| layout::entry_number_in(&folder, key)).await?;
        for number in numbers.iter().copied().filter(|number| *number < chain.packed && !is_kept(*number, chain.packed))
        {
            found.entry(pack::first_of(number)).or_default().insert(number);
        }
        match numbers.last().filter(|last| **last < chain.packed) {
            Some(last) => after = layout::entry(chain.stream(), *last),
            None => return Ok(found),
        }
    }
}

/// Deletes the objects of one pack's entries and pages: the pages first, for while an entry is left it is looked at again.
async fn delete(store: &Store, stream: &StreamId, pack: &Pack, entries: &BTreeSet<u64>) -> Result<u64> {
    linked(store, stream, pack).await?;
    for name in pack.page_names() {
        if pack.page(name).is_none_or(|bytes| sha256(bytes) != name) {
            return Err(Error::new(Kind::Corrupt, format!("a pack of {stream} has damaged bytes of the page {name}"))
                .hint("restore the pack from a copy of the archive"));
        }
    }
    let mut deleted = 0;
    for name in pack.page_names() {
        store.delete(&layout::page(stream, name)).await?;
        deleted += 1;
    }
    for number in entries {
        store.delete(&layout::entry(stream, *number)).await?;
        deleted += 1;
    }
    Ok(deleted)
}

/// Whether an entry before `packed` keeps its object: the first, and the snapshots that a search for the end looks at. That doubles its
/// steps, and then halves them; a number that it comes to has the leading digits of the end in base 2, and zeros.
pub(super) fn is_kept(number: u64, packed: u64) -> bool {
    if !number.is_multiple_of(SNAPSHOT_EVERY) {
        return false;
    }
    let (snapshot, packed) = (number / SNAPSHOT_EVERY, packed / SNAPSHOT_EVERY);
    let zeros = snapshot.trailing_zeros();
    snapshot == 0 || snapshot.is_power_of_two() || packed >> zeros == snapshot >> zeros
}
