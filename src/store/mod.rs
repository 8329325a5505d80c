//! The store: a flat space of immutable objects, named by keys, on a disk or in a cloud.
//!
//! ```text
//!   manifest ──create──┐
//!   segment ──upload───┼──► Store ──► objects below the archive's URL
//!   coverage ──put─────┘      └─────► get, list: for every reader
//! ```
//!
//! All that tidelog needs of a store is here: an object appears whole or not at all, it is durable when the call
//! returns, and [`Store::create`] lets exactly one of several writers of a key win, and tells the others what won. That
//! is the fence between two archivers, so [`Store::probe`] tries it before anything is archived. The backends are object_store's; this room
//! opens them, names keys ([`layout`]) and turns their errors into ours, with the operation and the key.

/// Passes a step of an object, for the crash tests alone.
macro_rules! step {
    ($key:expr, $step:expr) => {
        #[cfg(debug_assertions)]
        $crate::store::steps::pass($key, $step)?;
    };
}

pub mod bounds;
pub mod layout;

mod backend;
mod code;
mod deadline;
mod disk;
pub(crate) mod fault;
mod kept;
mod listing;
mod meter;
mod passed_over;
mod patient;
mod probe;
mod root;
#[cfg(debug_assertions)]
mod steps;
mod upload;
mod uploads;

use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::{StreamExt, TryStreamExt, stream::BoxStream};
use object_store::path::Path;
use object_store::{
    GetResult, GetResultPayload, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload,
};
use tokio::sync::Semaphore;

use crate::config::Archive;
use crate::error::{Error, Kind, Result, ResultExt};
use backend::Backend;
use kept::Kept;
use meter::{Meter, Operation};
use root::Root;
use uploads::Uploads;

/// How many keys a cloud gives with one request of a listing.
const LISTED_AT_ONCE: usize = 1_000;

/// So many keys a listing of a disk gives: it reads the whole folder each time, and has no order.
const LISTED_OF_A_DISK: usize = 200_000;

/// How much is read at a time of objects that are read whole, in mebibytes: as much as the largest of them that any process
/// but a restore reads. Many readers ask for dozens of objects at once, and each of those may be as large as its kind allows.
const READ_AT_ONCE_MIB: u32 = 512;

/// An archive's objects. Clones share the connection.
#[derive(Debug, Clone)]
pub struct Store {
    objects: Arc<dyn ObjectStore>,
    /// Of `file://` alone.
    root: Option<Arc<Root>>,
    url: Arc<str>,
    uploads: Option<Arc<Uploads>>,
    meter: Meter,
    /// Mebibytes that may be read at a time.
    room: Arc<Semaphore>,
    kept: Arc<Kept>,
}

/// What [`Store::create`] found. In all three cases an object with this key is there and durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Created {
    /// The key was free.
    Yes,
    /// The key is taken by the same bytes: an earlier call succeeded and its answer was lost, or somebody else wrote
    /// what the bytes themselves decide.
    Same,
    /// The key is taken by other bytes, which are these.
    Other(Bytes),
}

/// How often a create may be refused although nothing is there. Amazon S3 answers 409 `ConditionalRequestConflict`
/// where another operation on the key was under way, even if nothing came of it ("on a 409 failure, retry the upload",
/// API reference of PutObject), and object_store gives that as `AlreadyExists` (arrow-rs-object-store#852).
const REFUSALS: u32 = 7;

/// The pause after the first refusal of that kind; it doubles, so that all of them take 6 s.
const REFUSAL_PAUSE: Duration = Duration::from_millis(100);

impl Store {
    /// Opens the archive's store. Nothing is sent yet, except that `file://` makes the directory.
    ///
    /// Every call with `memory://` makes a new, empty store; its clones share it.
    ///
    /// # Errors
    /// [`Kind::Config`] for a URL or an option that the store does not know, the errors of the file system for
    /// `file://`.
    pub fn open(archive: &Archive) -> Result<Self> {
        let Backend { objects, uploads } = backend::open(archive)?;
        let root = match archive.url.scheme() {
            "file" => Some(Arc::new(Root::open(backend::local_root(archive)?)?)),
            _ => None,
        };
        Ok(Self { root, uploads: uploads.map(Arc::new), ..Self::over(objects, archive.url.as_str()) })
    }

    /// Whether the archive's URL and options are ones that a store knows. Nothing is sent, and nothing made.
    ///
    /// # Errors
    /// [`Kind::Config`], as of [`Store::open`].
    pub fn validate(archive: &Archive) -> Result<()> {
        backend::validate(archive)
    }

    /// The options that a store of the archive is opened with, those that the environment gives included.
    pub fn options_in_force(archive: &Archive) -> BTreeMap<String, String> {
        backend::options_in_force(archive)
    }

    /// A store over objects that are already open, for wrappers that count, limit or break requests.
    pub fn over(objects: Arc<dyn ObjectStore>, url: &str) -> Self {
        let room = Arc::new(Semaphore::new(READ_AT_ONCE_MIB as usize));
        Self { objects, root: None, url: url.into(), uploads: None, meter: Meter::new(), room, kept: Arc::default() }
    }

    /// The objects, with keys relative to the archive's root.
    pub fn objects(&self) -> Arc<dyn ObjectStore> {
        Arc::clone(&self.objects)
    }

    /// The archive's URL, as the configuration has it.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Creates an object if its key is free, and says what has the key now. A store that says that the object exists is
    /// not believed: the object is read back, and where there is none, the create is tried again.
    ///
    /// An error leaves it open whether the object was created: the answer may have been lost on its way.
    ///
    /// # Errors
    /// [`Kind::Unavailable`] for a store that goes on refusing the object as existing where nothing can be read, and the
    /// store's own errors.
    pub async fn create(&self, key: &Path, bytes: Bytes) -> Result<Created> {
        let mut pause = REFUSAL_PAUSE;
        for refusals in 1.. {
            if self.try_create(key, bytes.clone()).await? {
                return Ok(Created::Yes);
            }
            match self.get(key).await? {
                Some(found) if found == bytes => return Ok(Created::Same),
                Some(found) => return Ok(Created::Other(found)),
                None if refusals >= REFUSALS => break,
                None => {}
            }
            tracing::warn!(%key, refusals, retry_in = ?pause, "the store refuses an object as existing, and there is none");
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        let message = format!("{key} is refused as existing {REFUSALS} times in a row, and it cannot be read");
        Err(Error::new(Kind::Unavailable, message).hint(
            "the store contradicts itself: `tidelog check --connect` tries it; look for a proxy or a cache between \
             tidelog and the store",
        ))
    }

    /// Sends one create; false if the store says that the key is taken.
    async fn try_create(&self, key: &Path, bytes: Bytes) -> Result<bool> {
        Self::fits(key, &bytes)?;
        let options = PutOptions::from(PutMode::Create);
        let create = async {
            self.is_there().await?;
            step!(key, "put");
            let created = match self.objects.put_opts(key, PutPayload::from_bytes(bytes), options).await {
                Ok(_) => true,
                Err(object_store::Error::AlreadyExists { .. }) => false,
                Err(error) => return Err(self.fault(error, "create", key)),
            };
            step!(key, "answer");
            self.is_there().await.map(|()| created)
        };
        self.meter.time(Operation::Create, create).await
    }

    /// Writes an object, over an older one if there is one. It is durable when the call returns.
    pub async fn put(&self, key: &Path, bytes: Bytes) -> Result<()> {
        Self::fits(key, &bytes)?;
        let put = async {
            self.is_there().await?;
            step!(key, "put");
            let put = self.objects.put(key, PutPayload::from_bytes(bytes)).await;
            put.map_err(|error| self.fault(error, "write", key))?;
            step!(key, "answer");
            self.is_there().await
        };
        self.meter.time(Operation::Put, put).await
    }

    /// An object's bytes; none if there is no such object.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] for one that is larger than an object with such a key may be (see [`bounds`]): of that, nothing is
    /// read. Else the store's.
    pub async fn get(&self, key: &Path) -> Result<Option<Bytes>> {
        self.get_at_most(key, u64::MAX).await
    }

    /// What `make` makes of an object that never changes, which it is asked for once while it is kept; none if there is no such object.
    ///
    /// # Errors
    /// The store's, and those of `make`.
    pub async fn made_of<T: Send + Sync + 'static>(
        &self,
        key: &Path,
        make: impl FnOnce(Bytes) -> Result<T>,
    ) -> Result<Option<Arc<T>>> {
        self.kept.get(key, async || self.get(key).await?.map(make).transpose()).await
    }

    /// The same as far as it is kept: nothing is asked of the store.
    pub fn made_before<T: Send + Sync + 'static>(&self, key: &Path) -> Option<Arc<T>> {
        self.kept.now(key)
    }

    /// The same as [`Store::get`], for an object that must not have more than `most` bytes either.
    pub async fn get_at_most(&self, key: &Path, most: u64) -> Result<Option<Bytes>> {
        Ok(self.read(key, most).await?.map(|(bytes, _)| bytes))
    }

    /// An object's bytes, and when it was written by the store's clock; none if there is no such object.
    pub async fn get_dated(&self, key: &Path) -> Result<Option<(Bytes, DateTime<Utc>)>> {
        self.read(key, u64::MAX).await
    }

    async fn read(&self, key: &Path, most: u64) -> Result<Option<(Bytes, DateTime<Utc>)>> {
        let bound = bounds::of(key);
        let most = most.min(bound.most);
        let get = async {
            self.is_there().await?;
            let Some(got) = self.found(self.objects.get(key).await, "read", key)? else { return Ok(None) };
            let (size, written) = (got.meta.size, got.meta.last_modified);
            if size > most {
                return Err(bounds::too_large(key, bound.what, (size, most)));
            }
            // All that is read at a time: many objects of a few kilobytes, or few that are large.
            let share = u32::try_from(size >> 20).unwrap_or(u32::MAX).min(READ_AT_ONCE_MIB);
            let _room = self.room.acquire_many(share).await.or_err(Kind::Internal, || format!("cannot read {key}"))?;
            match self.found(body(got, most).await, "read", key)? {
                Some(Some(bytes)) => Ok(Some((bytes, written))),
                Some(None) => Err(bounds::too_large(key, bound.what, (most.saturating_add(1), most))),
                None => Ok(None),
            }
        };
        self.meter.time(Operation::Get, get).await
    }

    /// Writes nothing that no reader would take.
    fn fits(key: &Path, bytes: &Bytes) -> Result<()> {
        let (bound, size) = (bounds::of(key), bytes.len() as u64);
        if size <= bound.most {
            return Ok(());
        }
        let message = format!("{key} would have {size} bytes, and {} has {} at the most", bound.what, bound.most);
        Err(Error::new(Kind::Unsupported, message)
            .hint("report it with what is archived: docs/FORMAT.md lists the bounds"))
    }

    /// An object's size in bytes; none if there is no such object.
    pub async fn size(&self, key: &Path) -> Result<Option<u64>> {
        let head = async {
            self.is_there().await?;
            let head = self.objects.head(key).await.map(|meta| meta.size);
            self.found(head, "look at", key)
        };
        self.meter.time(Operation::Head, head).await
    }

    /// The objects whose keys lie below `prefix`, in the order of their keys.
    pub async fn list(&self, prefix: &Path) -> Result<Vec<ObjectMeta>> {
        let list = async {
            self.is_there().await?;
            let listed: object_store::Result<Vec<_>> = self.objects.list(Some(prefix)).try_collect().await;
            listed.map_err(|error| self.fault(error, "list", prefix))
        };
        let mut objects = self.meter.time(Operation::List, list).await?;
        objects.sort_unstable_by(|a, b| a.location.cmp(&b.location));
        Ok(objects)
    }

    /// The keys below `prefix` that sort after `key` and that `pick` makes something of, in order: the first answer of the
    /// listing alone, which is 1,000 keys of a cloud, and 200,000 of a disk.
    pub async fn list_after<T: Ord>(
        &self,
        prefix: &Path,
        key: &Path,
        pick: impl Fn(&Path) -> Option<T>,
    ) -> Result<Vec<T>> {
        let list = async {
            self.is_there().await?;
            let most = if self.root.is_some() { usize::MAX } else { LISTED_AT_ONCE };
            let mut listed: BoxStream<'_, _> = self.objects.list_with_offset(Some(prefix), key).take(most).boxed();
            let mut picked = BinaryHeap::new();
            while let Some(object) = listed.next().await {
                let object = object.map_err(|error| self.fault(error, "list", prefix))?;
                picked.extend(pick(&object.location));
                if picked.len() > LISTED_OF_A_DISK {
                    picked.pop();
                }
            }
            Ok(picked.into_sorted_vec())
        };
        self.meter.time(Operation::List, list).await
    }

    /// Whether at least one object lies below `prefix`.
    pub async fn any_below(&self, prefix: &Path) -> Result<bool> {
        let list = async {
            self.is_there().await?;
            let mut listed: BoxStream<'_, _> = self.objects.list(Some(prefix));
            listed.next().await.transpose().map_err(|error| self.fault(error, "list", prefix))
        };
        Ok(self.meter.time(Operation::List, list).await?.is_some())
    }

    /// The folders right below `prefix`, in the order of their names. On `file://` one may be empty.
    pub async fn list_folders(&self, prefix: &Path) -> Result<Vec<Path>> {
        let list = async {
            self.is_there().await?;
            let listed = self.objects.list_with_delimiter(Some(prefix)).await;
            listed.map(|listed| listed.common_prefixes).map_err(|error| self.fault(error, "list", prefix))
        };
        let mut folders = self.meter.time(Operation::List, list).await?;
        folders.sort_unstable();
        Ok(folders)
    }

    /// Deletes an object; it is no error if there is none.
    pub async fn delete(&self, key: &Path) -> Result<()> {
        let delete = async {
            self.is_there().await?;
            step!(key, "delete");
            let deleted = self.objects.delete(key).await;
            self.found(deleted, "delete", key).map(|_| ())
        };
        self.meter.time(Operation::Delete, delete).await
    }

    /// Aborts the uploads in parts of this archive that were begun before a time and not finished, those of processes that were
    /// killed; gives their number. Only S3 tells of them: a disk has none, Azure forgets the blocks of one after a week.
    pub async fn abort_uploads(&self, before: DateTime<Utc>) -> Result<u64> {
        let Some(uploads) = &self.uploads else { return Ok(0) };
        let abort = async {
            let aborted =
                uploads.abort(before).await.map_err(|error| self.fault(error, "abort", &Path::from("uploads")))?;
            for key in &aborted {
                tracing::info!(%key, "aborted an upload that was never finished");
            }
            Ok(aborted.len() as u64)
        };
        self.meter.time(Operation::Delete, abort).await
    }

    /// Before whatever is asked of the store, and after what was written: see [`root`].
    async fn is_there(&self) -> Result<()> {
        match &self.root {
            Some(root) => root.is_there().await,
            None => Ok(()),
        }
    }

    /// Turns "not found" into none. A missing bucket is an error all the same: it is not an empty archive.
    fn found<T>(&self, got: object_store::Result<T>, operation: &str, key: &Path) -> Result<Option<T>> {
        match got {
            Ok(got) => Ok(Some(got)),
            Err(error @ object_store::Error::NotFound { .. }) if !fault::is_missing_bucket(&error) => Ok(None),
            Err(error) => Err(self.fault(error, operation, key)),
        }
    }

    fn fault(&self, error: object_store::Error, operation: &str, key: &Path) -> Error {
        fault::translate(error, format!("cannot {operation} {key} in {}", self.url))
    }
}

/// The bytes of an object that says that it has `most` at the most; none if more come. Memory follows what came, and not what
/// was said.
async fn body(got: GetResult, most: u64) -> object_store::Result<Option<Bytes>> {
    if matches!(got.payload, GetResultPayload::File(..)) {
        // One read of a file as long as it is.
        return got.bytes().await.map(Some);
    }
    let mut pieces = got.into_stream();
    let mut bytes = Vec::new();
    while let Some(piece) = pieces.try_next().await? {
        if (bytes.len() + piece.len()) as u64 > most {
            return Ok(None);
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(Some(bytes.into()))
}

#[cfg(test)]
mod tests;
