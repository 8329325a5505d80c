//! Pages: immutable lists of what entries added, from which snapshots are made.
//!
//! ```text
//!   entries     0 … 63 │ 64 … 127 │ …                 │ 4096 … 4159 │
//!   level 0     [page]   [page]     … 64 of them become   [page]
//!   level 1     [──────────── one page ──────────────]
//! ```
//!
//! A page of level 0 lists the segments, empty ranges and gaps of 64 entries; a page of level `n` lists 64 pages of level
//! `n - 1`. The page of a Postgres system or of state also tells which positions it has; a page also lists what was merged and expired. It is JSON, compressed with zstd and named by the sha256 of the compressed bytes.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, TryStreamExt};
use object_store::path::Path;
use serde::{Deserialize, Serialize};

use super::entry;
use super::reads_at_once::READS_AT_ONCE;
use super::stored;
use super::unpack::unpack;
use crate::error::{Error, Kind, Result, ResultExt};
use crate::store::{Created, Store, layout};
use crate::stream::invariants::{Checked, SNAPSHOT_EVERY, page_lists_entries, page_lists_pages, totals_add_up};
use crate::stream::{
    Abandon, Body, CHAIN_FORMAT, Expire, FORMAT_VERSION, Gap, Merge, PageMerges, PageRef, PartitionRange, Retired,
    SegmentRef, Span, StreamId, Totals, lean, sha256,
};

/// zstd's default level: pages are written once every 64 commits and read often.
const ZSTD_LEVEL: i32 = 3;

/// What a page object says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Page {
    format: u32,
    stream: String,
    level: u8,
    first: u64,
    last: u64,
    /// Level 0: the segments of its entries, in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) segments: Vec<SegmentRef>,
    /// Level 0: the ranges without a record.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) empty: Vec<PartitionRange>,
    /// Level 0: the gaps.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) gaps: Vec<Gap>,
    /// Level 0: the merges.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) merges: Vec<Merge>,
    /// Level 0: what was expired.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) expires: Vec<Expire>,
    /// Level 0: the timelines that were abandoned.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) abandons: Vec<Abandon>,
    /// Higher levels: the pages of the level below.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) pages: Vec<PageRef>,
}

/// A page that is to be written, or that should have been.
pub(super) struct Rolled {
    pub(super) reference: PageRef,
    pub(super) bytes: Bytes,
}

/// What snapshot `number` lists: the pages of the snapshot before, one more for the entries since (`tail`), and 64 of
/// a level made one of the next. The second part are the pages that are new, which must be durable before the snapshot.
pub(super) fn roll(
    stream: &StreamId,
    number: u64,
    pages: &[PageRef],
    tail: &[Body],
) -> Result<(Vec<PageRef>, Vec<Rolled>)> {
    let mut pages = pages.to_vec();
    let mut new = vec![rolled(stream, Page::of_entries(number - SNAPSHOT_EVERY, tail))?];
    pages.extend(new.last().map(|page| page.reference.clone()));
    while let Some(level) = full_level(&pages) {
        let below = pages.split_off(pages.len() - SNAPSHOT_EVERY as usize);
        let (Some(first), Some(last)) = (below.first(), below.last()) else { break };
        let page = Page { level: level + 1, first: first.first, last: last.last, pages: below, ..Page::default() };
        let page = rolled(stream, page)?;
        pages.push(page.reference.clone());
        new.push(page);
    }
    Ok((pages, new))
}

/// The level of which the list ends with 64 pages.
fn full_level(pages: &[PageRef]) -> Option<u8> {
    let level = pages.last()?.level;
    let full = pages.iter().rev().take_while(|page| page.level == level).count() as u64 == SNAPSHOT_EVERY;
    full.then_some(level)
}

fn rolled(stream: &StreamId, page: Page) -> Result<Rolled> {
    let merged = page.merged();
    let format = match (&merged, page.abandons.is_empty()) {
        (Some(_), _) => 4,
        (None, false) => 2,
        (None, true) => FORMAT_VERSION,
    };
    let page = Page { format, stream: stream.to_string(), ..page };
    let what = || format!("cannot write the page of entries {}..={}", page.first, page.last);
    let json = serde_json::to_vec(&page).or_err(Kind::Internal, what)?;
    let bytes = zstd::bulk::compress(&json, ZSTD_LEVEL).or_err(Kind::Internal, what)?;
    let Page { level, first, last, .. } = page;
    let spans = if stream.topic().is_none() { page.spans() } else { Vec::new() };
    let reference = PageRef { sha256: sha256(&bytes), level, first, last, totals: page.totals(), spans, merged };
    Ok(Rolled { reference, bytes: bytes.into() })
}

impl Page {
    /// Whether the page keeps the rules, and lists exactly what these entries add, if they are given.
    pub(super) fn lists(&self, entries: Option<&[Body]>) -> Checked {
        page_lists_pages(self.level, self.first, &self.pages)?;
        let Some(entries) = entries else { return Ok(()) };
        let listed = Self::of_entries(self.first, entries);
        let same = (&self.segments, &self.empty, &self.gaps) == (&listed.segments, &listed.empty, &listed.gaps)
            && (&self.merges, &self.expires) == (&listed.merges, &listed.expires)
            && self.abandons == listed.abandons;
        page_lists_entries(self.first, self.last, same)
    }

    /// The page of level 0 that begins with entry `first`.
    fn of_entries(first: u64, entries: &[Body]) -> Self {
        Self {
            first,
            last: first + SNAPSHOT_EVERY - 1,
            segments: entries.iter().flat_map(Body::segments).cloned().collect(),
            empty: entries.iter().flat_map(Body::empty).copied().collect(),
            gaps: entries.iter().flat_map(Body::gaps).cloned().collect(),
            merges: entries.iter().filter_map(Body::merge).cloned().collect(),
            expires: entries.iter().filter_map(Body::expire).cloned().collect(),
            abandons: entries.iter().filter_map(Body::abandon).cloned().collect(),
            ..Self::default()
        }
    }

    fn totals(&self) -> Totals {
        let mut totals = Totals::of(&self.segments, &self.gaps);
        self.merges.iter().for_each(|merge| totals.add(&Totals::of_merge(merge)));
        self.expires.iter().for_each(|expire| totals.add(&Totals::of_expire(expire)));
        self.abandons.iter().for_each(|abandon| totals.add(&Totals::of_abandon(abandon)));
        self.pages.iter().for_each(|page| totals.add(&page.totals));
        totals
    }
}

/// From where to where something tells of each partition.
#[derive(Default)]
struct Spans(BTreeMap<i32, Span>);

impl Spans {
    fn cover(&mut self, partition: i32, start: i64, end: i64) {
        let span = self.0.entry(partition).or_insert(Span { partition, start, end });
        (span.start, span.end) = (span.start.min(start), span.end.max(end));
    }
}

impl Page {
    /// What the page merges of records.
    fn merged(&self) -> Option<PageMerges> {
        let (mut spans, mut retired, mut any) = (Spans::default(), Retired::default(), false);
        for merge in self.merges.iter().filter(|merge| merge.is_of_records()) {
            merge.segment.partitions.iter().for_each(|range| spans.cover(range.partition, range.start, range.end));
            retired.add(&merge.retired);
            any = true;
        }
        for below in self.pages.iter().filter_map(|page| page.merged.as_ref()) {
            below.spans.iter().for_each(|span| spans.cover(span.partition, span.start, span.end));
            retired.add(&below.retired);
            any = true;
        }
        any.then(|| PageMerges { retired, spans: spans.0.into_values().collect() })
    }

    /// From where to where the page tells of each partition.
    fn spans(&self) -> Vec<Span> {
        let mut spans = Spans::default();
        let mut cover = |partition, start, end| spans.cover(partition, start, end);
        let segments = self.segments.iter().chain(self.merges.iter().map(|merge| &merge.segment));
        let ranges = segments.flat_map(|segment| &segment.partitions).chain(&self.empty);
        ranges.for_each(|range| cover(range.partition, range.start, range.end));
        self.gaps.iter().for_each(|gap| cover(gap.partition, gap.start, gap.end));
        let expired = self.expires.iter().flat_map(|expire| &expire.ranges);
        expired.for_each(|expired| cover(expired.partition, expired.from, expired.before));
        self.pages.iter().flat_map(|page| &page.spans).for_each(|span| cover(span.partition, span.start, span.end));
        spans.0.into_values().collect()
    }
}

/// Makes a page durable. Its name is the sha256 of its bytes, so whatever else has that name is damage, and is replaced.
pub(super) async fn write(store: &Store, stream: &StreamId, page: Rolled) -> Result<()> {
    let object = layout::page(stream, &page.reference.sha256);
    match store.create(&object, page.bytes.clone()).await {
        Ok(Created::Yes | Created::Same) => Ok(()),
        Err(error) if error.kind() != Kind::Corrupt => Err(error),
        // One that is too large to be read is none either.
        Ok(Created::Other(_)) | Err(_) => {
            tracing::warn!(%object, "a damaged page is replaced by the sound one");
            store.put(&object, page.bytes).await
        }
    }
}

/// How many snapshots it takes until all pages that they list were looked after.
const TENDED_WITHIN: u64 = 16;

/// Makes pages again that an earlier snapshot lists and that are gone. Whoever writes snapshot `number` looks after one in 16,
/// the newest among them: a few small requests in 64 commits, however old the archive. Readers put together what is
/// missing, so nothing waits for this, and nothing fails by it.
pub(super) async fn tend(store: &Store, stream: &StreamId, number: u64, listed: &[PageRef]) {
    let is_due = |page: &&PageRef| {
        let index = page.first / SNAPSHOT_EVERY.saturating_pow(u32::from(page.level) + 1);
        (number / SNAPSHOT_EVERY).saturating_sub(index) % TENDED_WITHIN == 2
    };
    for reference in listed.iter().filter(is_due) {
        let object = layout::page(stream, &reference.sha256);
        let made = match store.size(&object).await {
            Ok(Some(_)) => continue,
            Ok(None) if read(store, stream, reference).await.is_ok() => continue,
            Ok(None) => remake(store, stream, reference).await,
            Err(error) => Err(error),
        };
        match made {
            Ok(true) => tracing::warn!(%object, "a page was missing and was made again from its entries"),
            Ok(false) => tracing::warn!(%object, "a page is missing; its entries are read instead"),
            Err(error) => tracing::warn!(%object, %error, "a page is missing or cannot be looked at"),
        }
    }
}

/// Reads a page; it must be what its reference says.
pub(super) async fn read(store: &Store, stream: &StreamId, reference: &PageRef) -> Result<Page> {
    let object = layout::page(stream, &reference.sha256);
    let named = (reference.sha256.as_str(), reference.first);
    let bytes = stored::page(store, stream, named).await?.ok_or_else(|| {
        let message = format!("{object}, which lists entries {}..={}, is missing", reference.first, reference.last);
        Error::new(Kind::Corrupt, message).hint("`tidelog verify --repair` makes it again from the entries")
    })?;
    decode(stream, reference, &object, &bytes)
}

/// Reads a page for somebody who wants what it lists. One that is missing or damaged is put together again from the
/// entries that it covers, which are never removed.
pub(super) async fn read_or_rebuild(store: &Store, stream: &StreamId, reference: &PageRef) -> Result<Page> {
    match read(store, stream, reference).await {
        Err(error) if error.kind() == Kind::Corrupt => {
            let object = layout::page(stream, &reference.sha256);
            let (page, _) = rebuild(store, stream, reference.level, reference.first).await.map_err(|entries| {
                tracing::warn!(%object, error = %entries, "the page cannot be put together from its entries either");
                error
            })?;
            totals_add_up("page", &reference.totals, &page.totals()).map_err(|wrong| wrong.in_object(&object))?;
            tracing::warn!(%object, "a page is missing or damaged; its entries were read instead. `tidelog verify --repair` makes it again");
            Ok(page)
        }
        read => read,
    }
}

/// Makes the page that a reference names again, from its entries; false where that gives other bytes: they were
/// compressed by another version of zstd. Readers do without it all the same.
pub(super) async fn remake(store: &Store, stream: &StreamId, reference: &PageRef) -> Result<bool> {
    let (_, page) = rebuild(store, stream, reference.level, reference.first).await?;
    if page.reference != *reference {
        return Ok(false);
    }
    write(store, stream, page).await.map(|()| true)
}

/// The page of `level` that begins with entry `first`, from the entries.
fn rebuild<'a>(store: &'a Store, stream: &'a StreamId, level: u8, first: u64) -> BoxFuture<'a, Result<(Page, Rolled)>> {
    async move {
        let page = if level == 0 {
            // The first one is the beginning of the chain or a snapshot, which add nothing.
            let read = futures::stream::iter(first + 1..first + SNAPSHOT_EVERY).map(async |number| {
                let entry = stored::read(store, stream, number).await?;
                Ok::<_, Error>(entry.ok_or_else(|| entry::missing(stream, number))?.checkpoint.body)
            });
            let entries: Vec<Body> = read.buffered(READS_AT_ONCE).try_collect().await?;
            Page::of_entries(first, &entries)
        } else {
            let below = SNAPSHOT_EVERY.pow(u32::from(level));
            let mut pages = Vec::new();
            for child in 0..SNAPSHOT_EVERY {
                pages.push(child_page(store, stream, level, first + child * below, child).await?);
            }
            Page { level, first, last: first + SNAPSHOT_EVERY * below - 1, pages, ..Page::default() }
        };
        let rolled = rolled(stream, page.clone())?;
        Ok((page, rolled))
    }
    .boxed()
}

/// The reference of the page below `level` that begins with entry `first`. The snapshot behind it lists it last, except
/// for the last of 64, in whose place stands the page of the level above.
async fn child_page(store: &Store, stream: &StreamId, level: u8, first: u64, child: u64) -> Result<PageRef> {
    if child + 1 == SNAPSHOT_EVERY {
        return Ok(rebuild(store, stream, level - 1, first).await?.1.reference);
    }
    let number = first + SNAPSHOT_EVERY.pow(u32::from(level));
    let entry = stored::read(store, stream, number).await?.ok_or_else(|| entry::missing(stream, number))?;
    let listed = match entry.checkpoint.body {
        Body::Snapshot(snapshot) => snapshot.pages.last().cloned(),
        _ => None,
    };
    listed.filter(|page| (page.level, page.first) == (level - 1, first)).ok_or_else(|| {
        Error::new(Kind::Corrupt, format!("{} does not list the page of entries {first} and on", entry.object))
    })
}

/// Reads the bytes of a page.
pub(super) fn decode(stream: &StreamId, reference: &PageRef, object: &Path, bytes: &[u8]) -> Result<Page> {
    let found = sha256(bytes);
    if found != reference.sha256 {
        return Err(Error::new(Kind::Corrupt, format!("{object} is damaged: its sha256 is {found}"))
            .hint("restore the object from a copy of the archive"));
    }
    let json = unpack(object, bytes)?;
    entry::check_format(object, &json, CHAIN_FORMAT)?;
    let page: Page = lean::parse(&json).or_err(Kind::Corrupt, || format!("{object} cannot be read"))?;
    let said = (reference.level, reference.first, reference.last);
    if page.stream != stream.to_string() || (page.level, page.first, page.last) != said {
        let message = format!(
            "{object} says that it is the page of level {} of entries {}..={} of {}",
            page.level, page.first, page.last, page.stream
        );
        return Err(Error::new(Kind::Corrupt, message));
    }
    let named = page.merges.iter().flat_map(Merge::objects);
    entry::names_its_own(stream, object, page.segments.iter().map(|segment| segment.object.as_str()).chain(named))?;
    totals_add_up("page", &reference.totals, &page.totals()).map_err(|violation| violation.in_object(object))?;
    if page.merged() != reference.merged {
        return Err(Error::new(Kind::Corrupt, format!("{object} lists other merges than its reference says")));
    }
    Ok(page)
}
