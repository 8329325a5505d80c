//! What maintenance costs in an archive of years, made up.

use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult,
};

use super::*;
use crate::manifest::backups::{self, Backup, Part};
use crate::stream::{Begin, Change, Format, PartitionRange, System, sha256};

/// A store in memory that counts what is read.
#[derive(Debug, Default)]
struct Counting {
    inner: InMemory,
    reads: AtomicU64,
    bytes: AtomicU64,
    /// What was written, asked for and listed.
    log: Mutex<Vec<String>>,
}

impl Counting {
    fn note(&self, what: &str, key: Option<&Path>) {
        let key = key.map(Path::to_string).unwrap_or_default();
        self.log.lock().expect("no test panics within").push(format!("{what} {key}"));
    }

    /// What was read since the last time: objects, bytes.
    fn take(&self) -> (u64, u64) {
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

const BLOCK: u64 = MOST_BYTES;

fn now() -> DateTime<Utc> {
    DateTime::from_timestamp(1_700_000_000, 0).expect("a time")
}

/// When the commits of a block came: one block an hour.
fn came(block: u64) -> i64 {
    1_600_000_000_000 + 3_600_000 * block.cast_signed()
}

/// A made-up segment, its object in the store.
async fn segment(store: &Store, generation: u32, lsns: std::ops::Range<u64>, writer: &str) -> SegmentRef {
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

async fn begun(store: &Store) -> Chain {
    let system = System { system_id: 7, wal_segment_size: 16 << 20, server_version: 15 };
    let stream = StreamId::Postgres { system_id: 7 };
    Chain::begin(store, &stream, Begin::Postgres(system), "w", now()).await.expect("begun")
}

/// Archives segments that end at these positions, many with each checkpoint.
async fn append(store: &Store, chain: &mut Chain, from: u64, ends: impl IntoIterator<Item = u64>) {
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
fn ends(blocks: std::ops::Range<u64>, of_two: &[u64]) -> Vec<u64> {
    let mut ends: Vec<u64> = blocks.clone().map(|block| (block + 1) * BLOCK).collect();
    ends.extend(of_two.iter().filter(|block| blocks.contains(block)).map(|block| block * BLOCK + 7_000));
    ends.sort_unstable();
    ends
}

async fn merge(store: &Store, chain: &mut Chain, block: u64) {
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

fn counted() -> (Arc<Counting>, Store) {
    let counting = Arc::new(Counting::default());
    (Arc::clone(&counting), Store::over(counting, "memory:///"))
}

#[tokio::test]
async fn what_is_looked_for_at_the_start_does_not_grow_with_the_archive() {
    let mut reads = Vec::new();
    for blocks in [600, 3_000] {
        let (counting, store) = counted();
        let mut chain = begun(&store).await;
        append(&store, &mut chain, 0, ends(0..blocks, &[])).await;
        let behind = [5_000, 9_000, BLOCK, BLOCK + 9].map(|behind| blocks * BLOCK + behind);
        append(&store, &mut chain, blocks * BLOCK, behind).await;
        counting.take();
        let found = unmerged(&chain).await.expect("looked");
        let (start, end) = (Lsn(blocks * BLOCK).position(), Lsn((blocks + 1) * BLOCK).position());
        assert_eq!(found, [Block { timeline: 1, start, end }].into());
        reads.push(counting.take().0);
    }
    assert!(reads[1] <= reads[0] + 3, "objects that were read: {reads:?}");
}

#[tokio::test]
async fn what_is_retired_goes_and_nothing_else_however_much_there_is() {
    let (counting, store) = counted();
    // Where keys are cut into answers and windows, too: what is replaced stands before what has replaced it, or behind.
    let merged = [450, 899, 900, 949, 999, 1_000, 1_023, 1_024, 1_799, 1_800];
    let mut chain = begun(&store).await;
    append(&store, &mut chain, 0, ends(0..2_500, &merged)).await;
    let delete =
        async |chain: &Chain, at, horizon| delete::delete_retired(&store, chain, (at, horizon)).await.expect("looked");
    let count = async || store.list(&layout::wal_segments(7)).await.expect("listed").len();
    counting.take();
    assert_eq!(delete(&chain, now() + GRACE, None).await, 0);
    assert_eq!(counting.take().0, 0, "nothing can be retired, and the chain is not asked");
    for block in merged {
        merge(&store, &mut chain, block).await;
    }
    let expired = BTreeMap::from([(1, Lsn(3 * BLOCK).position())]);
    chain.expire(&expired, "e", now()).await.expect("expired");
    let orphan = layout::wal_segment(7, 1, 5..9, "o", 0);
    store.put(&orphan, Bytes::from_static(b"x")).await.expect("stored");
    let before = count().await;
    assert_eq!(delete(&chain, now(), None).await, 0, "not yet");
    assert_eq!(delete(&chain, now() + GRACE, None).await, 3 + 2 * 10);
    assert_eq!(count().await, before - 23);
    // Another server gets the number.
    chain.abandon((1, 0), &[], "a", now()).await.expect("abandoned");
    append(&store, &mut chain, 100 * BLOCK, ends(100..200, &[])).await;
    assert_eq!(delete(&chain, now() + GRACE, None).await, 0, "an abandoned timeline stays without a retention");
    assert_eq!(delete(&chain, now() + GRACE, Some(now())).await, 0, "and as long as it says");
    let needed = chain.select(&Selection::default()).await.expect("selected").segments;
    assert_eq!(delete(&chain, now() + GRACE, Some(now() + GRACE)).await, 2_497);
    assert_eq!(needed.len() + 1, count().await, "and one that no entry names");
    for segment in &needed {
        let key = layout::object(&segment.object).expect("a key");
        assert!(store.get(&key).await.expect("read").is_some(), "{key}");
    }
}

/// Blocks of a week, one an hour.
const A_WEEK: u64 = 7 * 24;

/// How long is kept.
const KEPT: u64 = 2 * A_WEEK;

/// A base backup that was taken as a block began.
async fn back_up(store: &Store, block: u64) {
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

/// What an archive costs that was kept in order for so many weeks, with a base backup each: objects and bytes that are read as the
/// service starts, as it works out what can be recovered, as it tidies what a week has left, and as it tidies without anything to do.
async fn cost(weeks: u64) -> [(u64, u64); 4] {
    let (counting, store) = counted();
    let mut chain = begun(&store).await;
    let horizon = |blocks: u64| DateTime::from_timestamp_millis(came(blocks.saturating_sub(KEPT))).expect("a time");
    for blocks in (0..weeks).map(|week| week * A_WEEK..(week + 1) * A_WEEK) {
        back_up(&store, blocks.start).await;
        append(&store, &mut chain, blocks.start * BLOCK, ends(blocks.clone(), &[blocks.start])).await;
        merge(&store, &mut chain, blocks.start).await;
        let known = Known::read(&store, &chain).await.expect("read");
        counting.take();
        expire(&store, &mut chain, known, horizon(blocks.end), "e").await.expect("expired");
        delete_obsolete(&store, &chain, (crate::time::now() + GRACE, None)).await.expect("tidied");
    }
    let works = counting.take();
    let mut chain = Chain::open(&store, chain.stream()).await.expect("opened").expect("a chain");
    assert_eq!(unmerged(&chain).await.expect("looked"), BTreeSet::new());
    let start = counting.take();
    let mut known = Known::default();
    known.look(&store, 7, chain.backups()).await.expect("looked");
    let facts = recoverable::facts_with(&store, &chain, known.taken()).await.expect("facts");
    let windows = recoverable::windows(&store, &chain, &facts).await.expect("windows");
    assert_eq!(windows.len(), 1);
    assert!(windows[0].from <= horizon(weeks * A_WEEK), "{windows:?}");
    let look = counting.take();
    let given = expire(&store, &mut chain, known.taken(), horizon(weeks * A_WEEK), "e").await.expect("looked");
    assert_eq!(given, Expiry::default());
    assert_eq!(delete_obsolete(&store, &chain, (crate::time::now() + GRACE, None)).await.expect("tidied"), 0);
    [start, look, works, counting.take()]
}

/// What is read is what is in memory: nothing is kept between rounds but the backups' positions.
#[tokio::test]
async fn what_maintenance_costs_after_three_years_is_what_it_cost_after_weeks() {
    let (young, old) = (cost(12).await, cost(156).await);
    eprintln!("objects and bytes of a start, a look, two tidies: {young:?} after 12 weeks, {old:?} after 156");
    // To open a chain takes the entries since its last snapshot, up to 63.
    for ((young, old), more) in young.into_iter().zip(old).zip([70, 8, 16, 8]) {
        assert!(old.0 <= young.0 + more, "objects: {young:?}, {old:?}");
        assert!(old.1 <= young.1 * 2 + 100_000, "bytes: {young:?}, {old:?}");
    }
}

/// The maintenance of a service, whose archive keeps a day.
fn service(store: &Store, spool: &std::path::Path) -> Maintenance {
    let system = System { system_id: 7, wal_segment_size: 16 << 20, server_version: 15 };
    let shared = Shared {
        store: store.clone(),
        spool: crate::pipeline::postgres::WalSpool::open(spool, 7, None).expect("a spool"),
        buffers: Arc::default(),
        writer: "w".to_owned(),
        segments: AtomicU64::new(0),
        zstd_level: 1,
        system,
        status: Arc::default(),
        archived: tokio::sync::watch::Sender::new(Vec::new()),
        generations: Mutex::default(),
        look_again: tokio::sync::Notify::new(),
        backups: mpsc::channel(1).0,
    };
    Maintenance::new(Arc::new(shared), Some(Duration::from_secs(86_400)))
}

#[tokio::test]
async fn a_server_on_an_older_timeline_costs_no_request_until_it_has_come_to_the_newest() {
    let (counting, store) = counted();
    let mut chain = begun(&store).await;
    append(&store, &mut chain, 0, ends(0..4, &[])).await;
    let mut newer = segment(&store, 0, 3 * BLOCK..4 * BLOCK, "w").await;
    newer.partitions[0].partition = 2;
    chain.commit(&Change { segments: vec![newer], ..Change::default() }, "w", now()).await.expect("committed");
    let spool = tempfile::tempdir().expect("a directory");
    let mut maintenance = service(&store, spool.path());
    maintenance.shared.status.note(|now| (now.connected, now.timeline) = (true, Some(1)));
    maintenance.round().await.expect("the first round");
    assert!(
        counting.take().0 > 0 && maintenance.expired.is_none(),
        "it was looked, and the server is on an older timeline"
    );
    counting.log.lock().expect("a log").clear();
    for _ in 0..20 {
        maintenance.round().await.expect("a round");
    }
    let log = counting.log.lock().expect("a log").clone();
    assert_eq!((counting.take().0, log), (0, Vec::<String>::new()));
    // The server is promoted, and the archive follows.
    maintenance.shared.status.note(|now| now.timeline = Some(2));
    maintenance.round().await.expect("a round");
    assert!(maintenance.expired.is_some(), "at once, and not after ten minutes");
}

#[tokio::test]
async fn who_expires_says_so_before_it_looks_who_holds() {
    let (counting, store) = counted();
    let mut chain = begun(&store).await;
    for block in 0..4 {
        back_up(&store, block * 2).await;
        append(&store, &mut chain, block * 2 * BLOCK, ends(block * 2..block * 2 + 2, &[])).await;
    }
    let horizon = DateTime::from_timestamp_millis(came(6)).expect("a time");
    let known = Known::read(&store, &chain).await.expect("read");
    counting.log.lock().expect("a log").clear();
    let given = expire(&store, &mut chain, known, horizon, "e").await.expect("expired");
    assert!(given.backups > 0 && given.wal.segments > 0, "{given:?}");
    let log = counting.log.lock().expect("a log").clone();
    let at = |what: &str, from: usize| {
        let found = log[from..].iter().position(|line| line.starts_with(what));
        from + found.unwrap_or_else(|| panic!("no {what} in {:?}", &log[from..]))
    };
    let said = at("put holds/postgres/7/gives-up-e", 0);
    let looked = at("list holds/postgres/7", said);
    let entered = at("put manifest/postgres/7", 0);
    assert!(said < looked && looked < entered, "{log:?}");
    let left = store.list(&layout::holds(7)).await.expect("listed");
    assert!(left.iter().all(|object| object.location.filename() == Some("clock")), "{left:?}");
}
