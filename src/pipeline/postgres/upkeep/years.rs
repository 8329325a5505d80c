//! What upkeep costs in an archive of years, made up.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult,
};

use super::*;
use crate::stream::{Begin, Change, Format, PartitionRange, System, sha256};

/// A store in memory that counts what is read.
#[derive(Debug, Default)]
struct Counting {
    inner: InMemory,
    reads: AtomicU64,
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
        self.inner.put_opts(key, payload, options).await
    }

    async fn put_multipart_opts(&self, key: &Path, options: PutMultipartOptions) -> Answer<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(key, options).await
    }

    async fn get_opts(&self, key: &Path, options: GetOptions) -> Answer<GetResult> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.inner.get_opts(key, options).await
    }

    fn delete_stream(&self, keys: BoxStream<'static, Answer<Path>>) -> BoxStream<'static, Answer<Path>> {
        self.inner.delete_stream(keys)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Answer<ObjectMeta>> {
        self.inner.list(prefix)
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Answer<ObjectMeta>> {
        self.inner.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Answer<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Answer<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

const BLOCK: u64 = MOST_BYTES;

fn now() -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000, 0).expect("a time")
}

/// A made-up segment, its object in the store.
async fn segment(store: &Store, lsns: std::ops::Range<u64>, writer: &str) -> SegmentRef {
    let key = layout::wal_segment(7, 1, lsns.clone(), writer, 0);
    store.put(&key, Bytes::from_static(b"x")).await.expect("stored");
    let (start, end) = (Lsn(lsns.start).position(), Lsn(lsns.end).position());
    SegmentRef {
        object: key.to_string(),
        format: Format::Wal,
        bytes: 1,
        sha256: sha256(b"x"),
        raw_bytes: lsns.end - lsns.start,
        largest_record: 1,
        partitions: vec![PartitionRange {
            partition: 1,
            start,
            end,
            records: 0,
            min_timestamp: None,
            max_timestamp: None,
        }],
        last: Vec::new(),
        life: 0,
    }
}

/// An archive with so many blocks of one segment each, then one of three, and one that is not complete.
async fn archive(store: &Store, blocks: u64) -> Chain {
    let system = System { system_id: 7, wal_segment_size: 16 << 20, server_version: 15 };
    let stream = StreamId::Postgres { system_id: 7 };
    let mut chain = Chain::begin(store, &stream, Begin::Postgres(system), "w", now()).await.expect("begun");
    let last = blocks * BLOCK;
    let mut cuts: Vec<u64> = (0..=blocks).map(|block| block * BLOCK).collect();
    cuts.extend([5_000, 9_000, BLOCK, BLOCK + 9].map(|behind| last + behind));
    cuts.sort_unstable();
    for lsns in cuts.windows(2).map(|pair| pair[0]..pair[1]) {
        let change = Change { segments: vec![segment(store, lsns, "w").await], ..Change::default() };
        chain.commit(&change, "w", now()).await.expect("committed");
    }
    chain
}

#[tokio::test]
async fn what_is_looked_for_at_the_start_does_not_grow_with_the_archive() {
    let mut reads = Vec::new();
    for blocks in [600, 3_000] {
        let counting = Arc::new(Counting::default());
        let store = Store::over(Arc::clone(&counting) as Arc<dyn ObjectStore>, "memory:///");
        let chain = archive(&store, blocks).await;
        counting.reads.store(0, Ordering::Relaxed);
        let found = unmerged(&chain).await.expect("looked");
        let (start, end) = (Lsn(blocks * BLOCK).position(), Lsn((blocks + 1) * BLOCK).position());
        assert_eq!(found, [Block { timeline: 1, start, end }].into());
        reads.push(counting.reads.load(Ordering::Relaxed));
    }
    assert!(reads[1] <= reads[0] + 3, "objects that were read: {reads:?}");
}
