//! Where an entry or a page is stored: in an object of its own, or in a [`pack`].
//!
//! Entries are asked for by their own keys first, unless the pack is in memory. While both are there they are the same, but for one: what a writer has created
//! that stood still for so long that the entry after the last that it knew was packed and gone. The pack is right then ([`settled`]).

use bytes::Bytes;
use chrono::{DateTime, Utc};
use object_store::path::Path;

use super::entry::{self, Entry};
use super::pack::{self, Pack};
use crate::error::Result;
use crate::store::{Store, layout};
use crate::stream::invariants::PACKED_TOGETHER;
use crate::stream::{StreamId, sha256};

/// The bytes of entry `number`; none if it does not exist.
pub(super) async fn bytes(store: &Store, stream: &StreamId, number: u64) -> Result<Option<Bytes>> {
    if let Some((bytes, _)) = pack::entry_read_before(store, stream, number) {
        return Ok(Some(bytes));
    }
    match store.get(&layout::entry(stream, number)).await? {
        None => Ok(packed(store, stream, number).await?.map(|(bytes, _)| bytes)),
        found => Ok(found),
    }
}

/// Entry `number`; none if it does not exist.
pub(super) async fn read(store: &Store, stream: &StreamId, number: u64) -> Result<Option<Entry>> {
    let bytes = bytes(store, stream, number).await?;
    bytes.map(|bytes| entry::decode(stream, number, layout::entry(stream, number), &bytes)).transpose()
}

/// Entry `number`, and when it was written by the store's clock; none if it does not exist.
pub(super) async fn read_dated(
    store: &Store,
    stream: &StreamId,
    number: u64,
) -> Result<Option<(Entry, DateTime<Utc>)>> {
    let object = layout::entry(stream, number);
    let found = match pack::entry_read_before(store, stream, number) {
        None => match store.get_dated(&object).await? {
            None => packed(store, stream, number).await?,
            found => found,
        },
        found => found,
    };
    found.map(|(bytes, stored)| Ok((entry::decode(stream, number, object, &bytes)?, stored))).transpose()
}

async fn packed(store: &Store, stream: &StreamId, number: u64) -> Result<Option<pack::Dated>> {
    Ok(pack::read(store, stream, number).await?.and_then(|pack| pack.entry(number).cloned()))
}

/// The entries of a pack from `number` on; none where there is no pack for it.
pub(super) async fn packed_from(store: &Store, stream: &StreamId, number: u64) -> Result<Vec<Entry>> {
    let Some(pack) = pack::read(store, stream, number).await? else { return Ok(Vec::new()) };
    (number..pack.numbers().end).filter_map(|number| Some(of_pack(stream, number, pack.entry(number)?))).collect()
}

/// An entry as it is in a pack.
pub(super) fn of_pack(stream: &StreamId, number: u64, (bytes, _): &pack::Dated) -> Result<Entry> {
    entry::decode(stream, number, layout::entry(stream, number), bytes)
}

/// The numbers of the entries of a chain that these keys name or that are in packs which they name, in no order and maybe twice.
pub(super) fn numbers<'a>(stream: &StreamId, keys: impl Iterator<Item = &'a Path>) -> Vec<u64> {
    let (chain, mut numbers) = (layout::chain(stream), Vec::new());
    for key in keys {
        numbers.extend(layout::entry_number_in(&chain, key));
        let first = layout::pack_first_in(&chain, key).filter(|first| pack::first_of(*first) == *first);
        numbers.extend(first.into_iter().flat_map(|first| first..first.saturating_add(PACKED_TOGETHER)));
    }
    numbers
}

/// Whether entry `number` is there with the bytes that have this sha256.
pub(super) async fn is_there(store: &Store, stream: &StreamId, number: u64, hash: &str) -> Result<bool> {
    Ok(bytes(store, stream, number).await?.is_some_and(|bytes| sha256(&bytes) == hash))
}

/// Whether entry `number` is in a pack with the bytes that have this sha256.
pub(super) async fn is_packed(store: &Store, stream: &StreamId, number: u64, hash: &str) -> Result<bool> {
    Ok(packed(store, stream, number).await?.is_some_and(|(bytes, _)| sha256(&bytes) == hash))
}

/// What the chain has in the place of an entry that a writer finds as its own: the entry, unless there is a pack that has another one.
pub(super) async fn settled(store: &Store, stream: &StreamId, found: Entry) -> Result<Entry> {
    let number = found.checkpoint.number;
    if !pack::exists(store, stream, number).await? {
        return Ok(found);
    }
    match packed(store, stream, number).await? {
        Some(dated) if sha256(&dated.0) != found.sha256 => of_pack(stream, number, &dated),
        _ => Ok(found),
    }
}

/// The bytes of the page with this sha256, which begins with entry `first`; none if it does not exist.
pub(super) async fn page(store: &Store, stream: &StreamId, (sha256, first): (&str, u64)) -> Result<Option<Bytes>> {
    match store.get(&layout::page(stream, sha256)).await? {
        None => Ok(pack::read(store, stream, first)
            .await?
            .and_then(|pack: std::sync::Arc<Pack>| pack.page(sha256).cloned())),
        found => Ok(found),
    }
}

/// So many packs are looked for at a time: a snapshot is not to wait for all that an archive of years has.
const LOOKED_FOR: usize = 64;

/// The first entry that is in no pack, of those before `number`, where all before `packed` are in one; or one of the next packs.
pub(super) async fn first_unpacked(store: &Store, stream: &StreamId, packed: u64, number: u64) -> Result<u64> {
    let mut packed = packed;
    for _ in 0..LOOKED_FOR {
        let is_before = packed.checked_add(PACKED_TOGETHER).is_some_and(|end| end <= number);
        if !is_before || !pack::exists(store, stream, packed).await? {
            break;
        }
        packed += PACKED_TOGETHER;
    }
    Ok(packed)
}
