//! Packs: old entries of a chain, and the pages of level 0 that list them, in one object.
//!
//! ```text
//!   entries    0 … 511 │ 512 … 1023 │ 1024 … 1535 │ 1536 ─ 1537 ─ …
//!              [pack]    [pack]       both           objects of their own: what is young
//!
//!   pack, one zstd frame:   {"format":1,…,"entries":[…],"pages":[…]}\n  entry entry … page page …
//! ```
//!
//! A pack has the very bytes of each, so nothing of what a chain proves is lost: each entry names the sha256 of the one before, and
//! each page is named by its own. It also tells when the store had dated each entry.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use object_store::path::Path;
use serde::{Deserialize, Serialize};

use super::entry;
use super::unpack::unpack;
use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::store::{Store, layout};
use crate::stream::invariants::PACKED_TOGETHER;
use crate::stream::{FORMAT_VERSION, StreamId, lean};

/// zstd's default level.
const ZSTD_LEVEL: i32 = 3;

/// So many bytes of entries and pages are packed at the most: as much is in memory of each pack that is read.
pub(super) const MOST_BYTES: u64 = 8 << 20;

/// An entry's bytes, and when it was written by the store's clock.
pub(super) type Dated = (Bytes, DateTime<Utc>);

/// What stands before the entries and pages.
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    format: u32,
    stream: String,
    first: u64,
    last: u64,
    entries: Vec<EntryHead>,
    pages: Vec<PageHead>,
}

#[derive(Debug, Serialize, Deserialize)]
struct EntryHead {
    bytes: usize,
    stored: DateTime<Utc>,
}

#[derive(Debug, Serialize, Deserialize)]
struct PageHead {
    sha256: String,
    bytes: usize,
}

/// A pack that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pack {
    first: u64,
    entries: Vec<Dated>,
    pages: BTreeMap<String, Bytes>,
}

/// The first entry of the pack that an entry is in, or will be.
pub(super) fn first_of(number: u64) -> u64 {
    number - number % PACKED_TOGETHER
}

/// Whether old entries of a stream are packed.
pub(super) fn are_made_of(stream: &StreamId) -> bool {
    stream.topic().is_some()
}

/// The pack that an entry is in; none if there is none.
pub(super) async fn read(store: &Store, stream: &StreamId, number: u64) -> Result<Option<Arc<Pack>>> {
    if !are_made_of(stream) {
        return Ok(None);
    }
    let first = first_of(number);
    let object = layout::pack(stream, first);
    store.made_of(&object, |bytes| Pack::decode(stream, first, &object, &bytes)).await
}

/// An entry of a pack that was read just now, as whoever reads on does.
pub(super) fn entry_read_before(store: &Store, stream: &StreamId, number: u64) -> Option<Dated> {
    let pack: Arc<Pack> = store.made_before(&layout::pack(stream, first_of(number)))?;
    pack.entry(number).cloned()
}

/// Whether there is a pack for an entry.
pub(super) async fn exists(store: &Store, stream: &StreamId, number: u64) -> Result<bool> {
    Ok(are_made_of(stream) && store.size(&layout::pack(stream, first_of(number))).await?.is_some())
}

impl Pack {
    pub(super) fn new(first: u64, entries: Vec<Dated>, pages: BTreeMap<String, Bytes>) -> Self {
        Self { first, entries, pages }
    }

    /// An entry that is in it.
    pub(super) fn entry(&self, number: u64) -> Option<&Dated> {
        self.entries.get(usize::try_from(number.checked_sub(self.first)?).ok()?)
    }

    /// The numbers of its entries.
    pub(super) fn numbers(&self) -> Range<u64> {
        self.first..self.first.saturating_add(self.entries.len() as u64)
    }

    /// A page that is in it, by its sha256.
    pub(super) fn page(&self, sha256: &str) -> Option<&Bytes> {
        self.pages.get(sha256)
    }

    /// The sha256 of its pages.
    pub(super) fn page_names(&self) -> impl Iterator<Item = &str> {
        self.pages.keys().map(String::as_str)
    }

    /// How many bytes its entries and pages have.
    pub(super) fn size(&self) -> u64 {
        let bytes = self.entries.iter().map(|(bytes, _)| bytes).chain(self.pages.values());
        bytes.fold(0, |sum, bytes| sum.saturating_add(bytes.len() as u64))
    }

    pub(super) fn encode(&self, stream: &StreamId) -> Result<Bytes> {
        let what = || format!("cannot write the pack of entries {} and on", self.first);
        let entries = self.entries.iter().map(|(bytes, stored)| EntryHead { bytes: bytes.len(), stored: *stored });
        let pages = self.pages.iter().map(|(sha256, bytes)| PageHead { sha256: sha256.clone(), bytes: bytes.len() });
        let head = Head {
            format: FORMAT_VERSION,
            stream: stream.to_string(),
            first: self.first,
            last: self.numbers().end.saturating_sub(1),
            entries: entries.collect(),
            pages: pages.collect(),
        };
        let mut raw = serde_json::to_vec(&head).or_err(Kind::Internal, what)?;
        raw.push(b'\n');
        let bodies = self.entries.iter().map(|(bytes, _)| bytes).chain(self.pages.values());
        bodies.for_each(|bytes| raw.extend_from_slice(bytes));
        zstd::bulk::compress(&raw, ZSTD_LEVEL).map(Bytes::from).or_err(Kind::Internal, what)
    }

    pub(super) fn decode(stream: &StreamId, first: u64, object: &Path, bytes: &[u8]) -> Result<Self> {
        let damaged = |what: &str| {
            Error::new(Kind::Corrupt, format!("{object} {what}"))
                .hint("restore the object from a copy of the archive: entries lie in it that are nowhere else")
        };
        let raw = Bytes::from(unpack(object, bytes)?);
        let end = raw.iter().position(|byte| *byte == b'\n').ok_or_else(|| damaged("has no head"))?;
        let head = raw.slice(..end);
        entry::check_format(object, &head, FORMAT_VERSION)?;
        let head: Head = lean::parse(&head).map_err(|error| damaged("cannot be read").source(error))?;
        let last = first.saturating_add(PACKED_TOGETHER - 1);
        if (head.stream.as_str(), head.first, head.last) != (stream.to_string().as_str(), first, last) {
            let what = format!("says that it has the entries {}..={} of {}", head.first, head.last, head.stream);
            return Err(damaged(&what));
        }
        let mut at = end + 1;
        let mut next = |length: usize| {
            let range = at..at.checked_add(length).filter(|end| *end <= raw.len())?;
            at = range.end;
            Some(raw.slice(range))
        };
        let entries = head.entries.iter().map(|one| Some((next(one.bytes)?, one.stored)));
        let entries: Option<Vec<Dated>> = entries.collect();
        let pages = head.pages.iter().map(|one| Some((one.sha256.clone(), next(one.bytes)?)));
        let pages: Option<BTreeMap<String, Bytes>> = pages.collect();
        let whole =
            entries.zip(pages).filter(|(entries, _)| at == raw.len() && entries.len() as u64 == PACKED_TOGETHER);
        let (entries, pages) = whole.ok_or_else(|| damaged("is not as long as it says"))?;
        Ok(Self { first, entries, pages })
    }
}
