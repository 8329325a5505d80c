//! A memory store that counts what it is asked, yields between steps and breaks requests as a seed says.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

use crate::store::Store;

/// xorshift64*: small, seeded, and the same on every machine.
#[derive(Debug)]
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound
    }

    pub(super) fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }
}

/// How often requests go wrong, in percent.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Faults {
    /// The object is not written, and the caller gets an error.
    pub(super) fail: u64,
    /// The object is written, and the caller gets an error.
    pub(super) lose_answer: u64,
    /// The caller gets an error, and the object is written some time later.
    pub(super) write_late: u64,
    /// How many times at the most a request lets other tasks run before and after it does its work.
    pub(super) yields: u64,
}

/// What the store was asked since the last [`Faulty::take_counts`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) written: u64,
    pub(super) bytes_written: u64,
    pub(super) read: u64,
    pub(super) looked_at: u64,
    pub(super) listed: u64,
}

#[derive(Debug)]
pub(super) struct Faulty {
    pub(super) inner: Arc<InMemory>,
    faults: Faults,
    dice: Mutex<Dice>,
    counts: Mutex<Counts>,
    /// Creates that are refused as existing although nothing is there, as Amazon S3 does it when two of them meet.
    pub(super) refuse: AtomicU64,
    /// Nothing may be deleted.
    pub(super) keeps_all: AtomicBool,
    pub(super) read_by_key: Mutex<BTreeMap<Path, u64>>,
}

impl Faulty {
    pub(super) fn new(seed: u64, faults: Faults) -> Arc<Self> {
        Arc::new(Self {
            inner: Arc::new(InMemory::new()),
            faults,
            dice: Mutex::new(Dice::new(seed)),
            counts: Mutex::default(),
            refuse: AtomicU64::new(0),
            keeps_all: AtomicBool::new(false),
            read_by_key: Mutex::default(),
        })
    }

    /// The store through which requests may go wrong.
    pub(super) fn store(self: &Arc<Self>) -> Store {
        Store::over(Arc::clone(self) as Arc<dyn ObjectStore>, "memory:///")
    }

    /// The same objects without faults.
    pub(super) fn sound_store(&self) -> Store {
        Store::over(Arc::clone(&self.inner) as Arc<dyn ObjectStore>, "memory:///")
    }

    pub(super) fn take_counts(&self) -> Counts {
        std::mem::take(&mut self.counts.lock().unwrap())
    }

    fn count(&self, add: impl FnOnce(&mut Counts)) {
        add(&mut self.counts.lock().unwrap());
    }

    fn percent(&self, chance: u64) -> bool {
        self.dice.lock().unwrap().percent(chance)
    }

    async fn let_others_run(&self) {
        let times = self.dice.lock().unwrap().below(self.faults.yields + 1);
        for _ in 0..times {
            tokio::task::yield_now().await;
        }
    }
}

fn broken() -> object_store::Error {
    object_store::Error::Generic { store: "faulty", source: "the connection broke".into() }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("faulty")
    }
}

#[async_trait::async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        self.let_others_run().await;
        if self.refuse.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
            return Err(object_store::Error::AlreadyExists { path: location.to_string(), source: "409".into() });
        }
        if self.percent(self.faults.fail) {
            return Err(broken());
        }
        if self.percent(self.faults.write_late) {
            let (inner, location) = (Arc::clone(&self.inner), location.clone());
            let later = self.dice.lock().unwrap().below(40);
            tokio::spawn(async move {
                for _ in 0..later {
                    tokio::task::yield_now().await;
                }
                inner.put_opts(&location, payload, opts).await.ok();
            });
            return Err(broken());
        }
        let bytes = payload.content_length() as u64;
        let put = self.inner.put_opts(location, payload, opts).await;
        if put.is_ok() {
            self.count(|counts| {
                counts.written += 1;
                counts.bytes_written += bytes;
            });
        }
        self.let_others_run().await;
        if self.percent(self.faults.lose_answer) { Err(broken()) } else { put }
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.let_others_run().await;
        if self.percent(self.faults.fail) {
            return Err(broken());
        }
        if options.head {
            self.count(|counts| counts.looked_at += 1);
        } else {
            self.count(|counts| counts.read += 1);
            *self.read_by_key.lock().unwrap().entry(location.clone()).or_default() += 1;
        }
        let got = self.inner.get_opts(location, options).await;
        self.let_others_run().await;
        got
    }

    async fn put_multipart_opts(&self, location: &Path, o: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, o).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.inner.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        if !self.keeps_all.load(Ordering::Relaxed) {
            return self.inner.delete_stream(locations);
        }
        let denied = |path: Result<Path>| {
            Err(object_store::Error::PermissionDenied {
                path: path?.to_string(),
                source: "nothing may be deleted".into(),
            })
        };
        futures::StreamExt::boxed(futures::StreamExt::map(locations, denied))
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.count(|counts| counts.listed += 1);
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.count(|counts| counts.listed += 1);
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// Deletes an object behind the store's back.
pub(super) async fn lose(store: &Faulty, key: &Path) {
    store.inner.head(key).await.expect("the object to lose exists");
    store.inner.delete(key).await.unwrap();
}

/// Flips a bit of an object behind the store's back.
pub(super) async fn damage(store: &Faulty, key: &Path) {
    let mut bytes = store.inner.get(key).await.unwrap().bytes().await.unwrap().to_vec();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    store.inner.put(key, bytes.into()).await.unwrap();
}
