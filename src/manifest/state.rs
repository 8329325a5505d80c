//! Versions of state documents: how they are stored, found and read.
//!
//! ```text
//!   document (JSON) ─► zstd ─► segments/state/<kind>/scope=…/<version>-….json.zst ─► append: partition 0, [version, version + 1)
//! ```
//!
//! A writer looks up which version comes next *before* it asks the servers, and appends just that one: where another one was faster,
//! what it has may be older than what is there, and is dropped. So versions follow each other as the state did, whoever wrote
//! them, and their times never go back.

pub mod retention;

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use object_store::path::Path;
use serde::{Deserialize, Serialize};

use super::unpack::unpack;
use super::{Chain, Change, Outcome, Selection};
use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::store::{Store, bounds, layout};
use crate::stream::{Format, PartitionRange, SegmentRef, StateKind, StateOf, StreamId, sha256};

/// The version of the format of documents.
pub const DOCUMENT_FORMAT: u32 = 1;

const ZSTD_LEVEL: i32 = 3;

/// A version of a state document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// Its number, from 0.
    pub number: i64,
    /// When the state was found to be so: it may have become so up to a poll before.
    pub at: DateTime<Utc>,
    segment: SegmentRef,
}

impl Version {
    fn of(segment: SegmentRef) -> Option<Self> {
        let at = DateTime::from_timestamp_millis(segment.min_timestamp()?)?;
        Some(Self { number: segment.partitions.first()?.start, at, segment })
    }

    /// Its size in the archive.
    pub fn stored_bytes(&self) -> u64 {
        self.segment.bytes
    }
}

/// Which versions are kept; none before the first.
pub fn versions(chain: &Chain) -> Option<Range<i64>> {
    chain.position(0).map(|position| position.start..position.end).filter(|range| !range.is_empty())
}

/// The number that the next version gets.
pub fn next(chain: &Chain) -> i64 {
    chain.position(0).map_or(0, |position| position.end)
}

/// A version by its number.
pub async fn version(chain: &Chain, number: i64) -> Result<Option<Version>> {
    let partitions = Some(BTreeMap::from([(0, number..number.saturating_add(1))]));
    let selected = chain.select(&Selection { timestamps: None, partitions }).await?;
    Ok(selected.segments.into_iter().find_map(Version::of))
}

/// The oldest version that is kept; none before the first.
pub async fn oldest(chain: &Chain) -> Result<Option<Version>> {
    match versions(chain) {
        Some(range) => version(chain, range.start).await,
        None => Ok(None),
    }
}

/// The newest version; none before the first.
pub async fn newest(chain: &Chain) -> Result<Option<Version>> {
    match versions(chain) {
        Some(range) => version(chain, range.end - 1).await,
        None => Ok(None),
    }
}

/// The version that held at a time (ms since 1970): the newest that was found then or before. None where the first is later.
/// From `now` on it is the newest of all, whatever the clock of the process said that found it.
pub async fn as_of(chain: &Chain, ms: i64, now: DateTime<Utc>) -> Result<Option<Version>> {
    if ms >= now.timestamp_millis() {
        return newest(chain).await;
    }
    found_by(chain, ms).await
}

/// The newest version that was found at a time or before.
async fn found_by(chain: &Chain, ms: i64) -> Result<Option<Version>> {
    let Some(Range { start, end }) = versions(chain) else { return Ok(None) };
    let (mut low, mut high, mut found) = (start, end, None);
    while low < high {
        let middle = low + (high - low) / 2;
        match version(chain, middle).await?.filter(|version| version.at.timestamp_millis() <= ms) {
            Some(version) => (low, found) = (middle + 1, Some(version)),
            None => high = middle,
        }
    }
    Ok(found)
}

/// The JSON of a version, after its hash, its format and its name were checked.
pub async fn read(store: &Store, stream: &StreamId, version: &Version) -> Result<Vec<u8>> {
    let key = layout::segment_of(stream, &version.segment.object)?;
    let Some(bytes) = store.get(&key).await? else {
        return Err(damaged(&key, "does not exist, and the chain has the version"));
    };
    if sha256(&bytes) != version.segment.sha256 {
        return Err(damaged(&key, "is not what was written: its sha256 is another one"));
    }
    open(stream, &key, &bytes)
}

/// Unpacks the object of a version and looks whether it is a document of the stream.
pub fn open(stream: &StreamId, key: &Path, bytes: &[u8]) -> Result<Vec<u8>> {
    #[derive(Deserialize)]
    struct Head {
        format: u32,
        kind: String,
        cluster: String,
    }
    let json = unpack(key, bytes)?;
    let head: Head = serde_json::from_slice(&json).or_err(Kind::Corrupt, || format!("{key} is no state document"))?;
    if head.format > DOCUMENT_FORMAT {
        let message = format!("{key} is written in format {}, and this program reads {DOCUMENT_FORMAT}", head.format);
        return Err(Error::new(Kind::Unsupported, message).hint("a newer tidelog wrote it: update this one"));
    }
    let is_of = |of: &StateOf| head.kind == of.kind.name() && head.cluster == of.scope;
    if !stream.state().is_some_and(is_of) {
        return Err(damaged(key, &format!("says that it is of {}/{}", head.kind, head.cluster)));
    }
    Ok(json)
}

/// A document of this stream, as it is stored. What is the same gives the same bytes.
pub fn document<T: Serialize + ?Sized>(of: &StateOf, state: &T) -> Result<Vec<u8>> {
    #[derive(Serialize)]
    struct Document<'a, T: ?Sized> {
        format: u32,
        kind: &'static str,
        cluster: &'a str,
        state: &'a T,
    }
    let document = Document { format: DOCUMENT_FORMAT, kind: of.kind.name(), cluster: &of.scope, state };
    serde_json::to_vec(&document).or_err(Kind::Internal, || format!("cannot write the state of {of} as JSON"))
}

/// Who appends a version, and when.
pub struct By<'a> {
    /// The process.
    pub writer: &'a str,
    /// The how manyth object of state it writes.
    pub n: u64,
    /// When the state was found to be so.
    pub at: DateTime<Utc>,
}

/// Appends a document as the version `number`, which [`next`] gave before the servers were asked. False if somebody else was faster:
/// nothing was added.
///
/// # Errors
/// [`Kind::Unsupported`] for a document that no reader would take, and the store's. An error leaves it open whether it was added.
pub async fn append(chain: &mut Chain, number: i64, document: &[u8], by: By<'_>) -> Result<bool> {
    let Some(of) = chain.stream().state().cloned() else {
        return Err(Error::new(Kind::Internal, format!("{} keeps no state", chain.stream())));
    };
    let key = layout::state_version(&of, number.unsigned_abs(), by.writer, by.n);
    let most = bounds::STATE_UNPACKED;
    if document.len() as u64 > most {
        let message = format!("the state of {of} has {} bytes, and {most} are kept at the most", document.len());
        let error = Error::new(Kind::Unsupported, message);
        return Err(match of.kind {
            StateKind::Groups => error.hint("keep fewer groups: state.groups, state.exclude_groups"),
            _ => error,
        });
    }
    let bytes = zstd::bulk::compress(document, ZSTD_LEVEL).or_err(Kind::Internal, || format!("cannot write {key}"))?;
    let bytes = Bytes::from(bytes);
    // A clock that was set back does not put a version before the one that it follows.
    let last = chain.totals().max_timestamp.unwrap_or(i64::MIN);
    let at = Some(by.at.timestamp_millis().max(last));
    let range = PartitionRange {
        partition: 0,
        start: number,
        end: number.saturating_add(1),
        records: 1,
        min_timestamp: at,
        max_timestamp: at,
    };
    let segment = SegmentRef {
        object: key.to_string(),
        format: Format::State,
        bytes: bytes.len() as u64,
        sha256: sha256(&bytes),
        raw_bytes: document.len() as u64,
        largest_record: document.len() as u64,
        partitions: vec![range],
        last: Vec::new(),
        generation: 0,
        minimal: None,
    };
    chain.store.put(&key, bytes).await?;
    let change = Change { segments: vec![segment], ..Change::default() };
    match chain.commit(&change, by.writer, by.at).await? {
        Outcome::Committed { .. } => Ok(true),
        Outcome::Moved(_) | Outcome::Closed => Ok(false),
    }
}

fn damaged(key: &Path, what: &str) -> Error {
    Error::new(Kind::Corrupt, format!("{key} {what}"))
        .hint("restore the object from a copy of the archive; `tidelog verify` lists all damage")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::Value;

    use super::*;
    use crate::stream::Begin;

    fn of() -> StateOf {
        StateOf { kind: StateKind::Topics, scope: "main".into() }
    }

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_700_000_000 + seconds, 0).expect("a time")
    }

    async fn begun(store: &Store, writer: &str) -> Chain {
        let begin = Begin::State { state: StateKind::Topics, cluster_id: Some("id".into()) };
        Chain::begin(store, &StreamId::State(of()), begin, writer, at(0)).await.expect("it begins")
    }

    async fn add(chain: &mut Chain, number: i64, at: DateTime<Utc>) -> bool {
        let document = document(&of(), &serde_json::json!({ "n": number })).expect("JSON");
        append(chain, number, &document, By { writer: "w", n: number.unsigned_abs(), at }).await.expect("stored")
    }

    fn store() -> Store {
        Store::over(Arc::new(object_store::memory::InMemory::new()), "memory:///")
    }

    #[tokio::test]
    async fn as_of_a_time_it_is_the_newest_version_that_was_found_by_then() {
        let store = store();
        let mut chain = begun(&store, "w").await;
        assert_eq!(as_of(&chain, i64::MAX, at(9_000)).await.expect("looked"), None);
        for number in 0..200 {
            assert!(add(&mut chain, number, at(number * 10)).await);
        }
        let chain = Chain::open(&store, &StreamId::State(of())).await.expect("sound").expect("begun");
        for (ms, expected) in [
            (at(0).timestamp_millis() - 1, None),
            (at(0).timestamp_millis(), Some(0)),
            (at(1_234).timestamp_millis(), Some(123)),
            (at(1_240).timestamp_millis() - 1, Some(123)),
            (at(1_240).timestamp_millis(), Some(124)),
            (i64::MAX, Some(199)),
        ] {
            let found = as_of(&chain, ms, at(9_000)).await.expect("looked");
            assert_eq!(found.as_ref().map(|version| version.number), expected, "{ms}");
            if let Some(version) = found {
                let json = read(&store, chain.stream(), &version).await.expect("sound");
                let value: Value = serde_json::from_slice(&json).expect("JSON");
                assert_eq!(value["state"]["n"], version.number);
            }
        }
        assert_eq!(newest(&chain).await.expect("looked").map(|version| version.number), Some(199));
    }

    #[tokio::test]
    async fn of_two_writers_that_asked_at_the_same_time_one_appends_and_the_other_is_told() {
        let store = store();
        let (mut first, mut second) = (begun(&store, "a").await, begun(&store, "b").await);
        let (one, two) = (next(&first), next(&second));
        assert!(add(&mut first, one, at(1)).await);
        assert!(!add(&mut second, two, at(2)).await, "what it has may be older");
        assert_eq!(next(&second), 1, "and now it knows");
        assert!(add(&mut second, 1, at(3)).await);
    }

    #[tokio::test]
    async fn a_clock_that_goes_back_does_not_turn_versions_round() {
        let store = store();
        let mut chain = begun(&store, "w").await;
        for (number, seconds) in [(0, 100), (1, 50), (2, 60)] {
            assert!(add(&mut chain, number, at(seconds)).await);
        }
        let found = as_of(&chain, at(100).timestamp_millis(), at(9_000)).await.expect("looked");
        assert_eq!(found.map(|version| version.number), Some(2));
        assert_eq!(as_of(&chain, at(99).timestamp_millis(), at(9_000)).await.expect("looked"), None);
        // The first was found by a clock that was ahead, and is behind again.
        let found = as_of(&chain, at(70).timestamp_millis(), at(70)).await.expect("looked");
        assert_eq!(found.map(|version| version.number), Some(2), "what is there now is the newest");
    }

    #[tokio::test]
    async fn another_cluster_under_the_same_name_is_refused() {
        let store = store();
        begun(&store, "w").await;
        let begin = Begin::State { state: StateKind::Topics, cluster_id: Some("other".into()) };
        let error = Chain::begin(&store, &StreamId::State(of()), begin, "w", at(0)).await.expect_err("refused");
        assert_eq!(error.kind(), Kind::Fenced);
    }

    #[tokio::test]
    async fn what_is_damaged_is_told_and_never_given() {
        let store = store();
        let mut chain = begun(&store, "w").await;
        assert!(add(&mut chain, 0, at(0)).await);
        let version = newest(&chain).await.expect("looked").expect("one");
        let key = Path::from(version.segment.object.as_str());
        let stream = chain.stream().clone();
        for bytes in [&b"x"[..], &zstd::bulk::compress(b"{\"format\":1}", 1).expect("packed")] {
            store.put(&key, bytes.to_vec().into()).await.expect("stored");
            assert_eq!(read(&store, &stream, &version).await.expect_err("damaged").kind(), Kind::Corrupt);
            assert_eq!(open(&stream, &key, bytes).expect_err("damaged").kind(), Kind::Corrupt);
        }
        let other = StateOf { scope: "other".into(), ..of() };
        let foreign = document(&other, &Value::Null).expect("JSON");
        let foreign = zstd::bulk::compress(&foreign, 1).expect("packed");
        assert_eq!(open(&stream, &key, &foreign).expect_err("of another cluster").kind(), Kind::Corrupt);
        store.delete(&key).await.expect("deleted");
        assert_eq!(read(&store, &stream, &version).await.expect_err("missing").kind(), Kind::Corrupt);
    }
}
