//! Archives of WAL that are made up: whose segments are one byte each, in a store that counts what is read.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult,
};

use crate::manifest::backups::{self, Backup, Part};
use crate::manifest::{Chain, Selection};
use crate::segment::wal::MOST_BYTES;
use crate::store::{Store, layout};
use crate::stream::{Begin, Change, Format, Lsn, Merge, PartitionRange, Retired, SegmentRef, StreamId, System, sha256};

/// A store in memory that counts what is read.
#[derive(Debug, Default)]
pub(crate) struct Counting {
    inner: InMemory,
    reads: AtomicU64,
    bytes: AtomicU64,
    /// What was written, asked for and listed.
    pub(crate) log: Mutex<Vec<String>>,
}

impl Counting {
    fn note(&self, what: &str, key: Option<&Path>) {
        let key = key.map(Path::to_string).unwrap_or_default();
        self.log.lock().expect("no test panics within").push(format!("{what} {key}"));
    }

    /// What was read since the last time: objects, bytes.
    pub(crate) fn take(&self) -> (u64, u64) {
        (self.reads.swap(0, Ordering::Relaxed), self.bytes.swap(0, Ordering::Relaxed))
    }
}

impl fmt::Display for Counting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

type Answer<T> = object_store::Result<T>;

#[async_trait]
impl ObjectStore for Counting {
    async fn put_opts(&self, key: &Path, payload: PutPayload, options: PutOptions) -> Answer<PutResult> {
        self.note("put", Some(key));
        self.inner.put_opts(key, payload, options).await
    }

    async fn put_multipart_opts(&self, key: &Path, options: PutMultipartOptions) -> Answer<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(key, options).await
    }

    async fn get_opts(&self, key: &Path, options: GetOptions) -> Answer<GetResult> {
        self.note("get", Some(key));
        let got = self.inner.get_opts(key, options).await?;
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(got.range.end - got.range.start, Ordering::Relaxed);
        Ok(got)
    }

    fn delete_stream(&self, keys: BoxStream<'static, Answer<Path>>) -> BoxStream<'static, Answer<Path>> {
        self.inner.delete_stream(keys)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Answer<ObjectMeta>> {
        self.note("list", prefix);
        self.inner.list(prefix)
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Answer<ObjectMeta>> {
        self.note("list", prefix);
        self.inner.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Answer<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Answer<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

pub(crate) const BLOCK: u64 = MOST_BYTES;

pub(crate) fn now() -> DateTime<Utc> {
    DateTime::from_timestamp(1_700_000_000, 0).expect("a time")
}

/// When the commits of a block came: one block an hour.
pub(crate) fn came(block: u64) -> i64 {
    1_600_000_000_000 + 3_600_000 * block.cast_signed()
}

/// A made-up segment, its object in the store.
pub(crate) async fn segment(store: &Store, generation: u32, lsns: std::ops::Range<u64>, writer: &str) -> SegmentRef {
    let key = layout::wal_segment(7, 1, lsns.clone(), writer, u64::from(generation));
    store.put(&key, Bytes::from_static(b"x")).await.expect("stored");
    let (start, end) = (Lsn(lsns.start).position(), Lsn(lsns.end).position());
    let time = Some(came(lsns.start / BLOCK));
    let range = PartitionRange { partition: 1, start, end, records: 1, min_timestamp: time, max_timestamp: time };
    SegmentRef {
        object: key.to_string(),
        format: Format::Wal,
        bytes: 1,
        sha256: sha256(b"x"),
        raw_bytes: lsns.end - lsns.start,
        largest_record: 1,
        partitions: vec![range],
        last: Vec::new(),
        generation,
        minimal: None,
    }
}

pub(crate) async fn begun(store: &Store) -> Chain {
    let system = System { system_id: 7, wal_segment_size: 16 << 20, server_version: 15 };
    let stream = StreamId::Postgres { system_id: 7 };
    Chain::begin(store, &stream, Begin::Postgres(system), "w", now()).await.expect("begun")
}

/// Archives segments that end at these positions, many with each checkpoint.
pub(crate) async fn append(store: &Store, chain: &mut Chain, from: u64, ends: impl IntoIterator<Item = u64>) {
    let (mut from, generation) = (from, chain.generation(1));
    let ends: Vec<u64> = ends.into_iter().collect();
    for ends in ends.chunks(12) {
        let mut segments = Vec::new();
        for &end in ends {
            segments.push(segment(store, generation, from..end, "w").await);
            from = end;
        }
        chain.commit(&Change { segments, ..Change::default() }, "w", now()).await.expect("committed");
    }
}

/// Where segments of these blocks end: one each, or two.
pub(crate) fn ends(blocks: std::ops::Range<u64>, of_two: &[u64]) -> Vec<u64> {
    let mut ends: Vec<u64> = blocks.clone().map(|block| (block + 1) * BLOCK).collect();
    ends.extend(of_two.iter().filter(|block| blocks.contains(block)).map(|block| block * BLOCK + 7_000));
    ends.sort_unstable();
    ends
}

pub(crate) async fn merge(store: &Store, chain: &mut Chain, block: u64) {
    let lsns = block * BLOCK..(block + 1) * BLOCK;
    let partitions = Some(BTreeMap::from([(1, Lsn(lsns.start).position()..Lsn(lsns.end).position())]));
    let segments = chain.select(&Selection { timestamps: None, partitions }).await.expect("selected").segments;
    let replaces = segments.iter().map(|segment| segment.object.clone()).collect();
    let retired = Retired::of(&segments);
    let mut segment = segment(store, chain.generation(1), lsns, "m").await;
    segment.partitions[0].records = retired.records;
    let merge = Merge { segment, replaces, retired, decided: now() };
    assert!(chain.merge(&merge, "m", now()).await.expect("merged"));
}

pub(crate) fn counted() -> (Arc<Counting>, Store) {
    let counting = Arc::new(Counting::default());
    (Arc::clone(&counting), Store::over(counting, "memory:///"))
}

/// A base backup that was taken as a block began.
pub(crate) async fn back_up(store: &Store, block: u64) {
    let (name, at) = (format!("b{block}"), DateTime::from_timestamp_millis(came(block)).expect("a time"));
    let object = layout::backup_part(7, &name, "backup_manifest.zst").to_string();
    let backup = Backup {
        format: crate::stream::FORMAT_VERSION,
        label: String::new(),
        system: System { system_id: 7, wal_segment_size: 16 << 20, server_version: 15 },
        timeline: 1,
        start: Lsn(block * BLOCK),
        end: Lsn(block * BLOCK + 100),
        end_timeline: 1,
        started: at,
        finished: at,
        is_read_back: true,
        damaged: Vec::new(),
        checksums: None,
        parent: None,
        archives: Vec::new(),
        manifest: Part { object, bytes: 1, stored_bytes: 1, sha256: sha256(b"x") },
        name,
    };
    backups::commit(store, &backup).await.expect("committed");
}
