//! The files of an archive on a disk. object_store keeps them, and they are listed here: its own listing ends at the first
//! name that is no key (an ASCII control, bytes that are no UTF-8) and at a link that leads back to where it lies.
//!
//! What is listed is what object_store would list: files below the prefix, through links, but those that lead nowhere, and but
//! for uploads that are under way (`name#1`, `is_valid_file_path` in its `local.rs`). A directory that may not be read is an
//! error: what lies in it may be missed. Whatever else is no file, such as a pipe, is listed, and refused when it is read: opening
//! a pipe waits for somebody who writes to it.

use std::fmt;
use std::fs::Metadata;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use object_store::local::LocalFileSystem;
use object_store::path::{Path, PathPart};
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, RenameOptions, Result,
};

use super::passed_over::PassedOver;

/// The objects below a directory.
#[derive(Debug)]
pub(super) struct Disk {
    files: LocalFileSystem,
    folders: Arc<Folders>,
}

impl Disk {
    /// The objects of `files`, which lie below `root`.
    pub(super) fn new(files: LocalFileSystem, root: PathBuf) -> Self {
        Self { files, folders: Arc::new(Folders { root, passed_over: PassedOver::default() }) }
    }

    fn walk(&self, prefix: Option<&Path>, after: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let walk = Walk {
            folders: Arc::clone(&self.folders),
            after: after.cloned(),
            left: vec![Folder { key: prefix.cloned().unwrap_or_default(), above: Vec::new() }],
        };
        stream::try_unfold(walk, Walk::next).try_flatten().boxed()
    }
}

impl Disk {
    /// Whether an object can be read, as far as it is no pipe, socket or device: to open one waits for somebody who writes to
    /// it, and a device has no end. What is not there is told by whoever opens it.
    async fn is_file(&self, location: &Path) -> Result<()> {
        let place = self.files.path_to_filesystem(location)?;
        let key = location.clone();
        blocking(move || match std::fs::metadata(&place) {
            Ok(facts) if !facts.is_file() && !facts.is_dir() => Err(io::Error::other(NoFile { key })),
            _ => Ok(()),
        })
        .await
    }
}

/// What lies in the place of an object is not a file.
#[derive(Debug)]
pub(super) struct NoFile {
    key: Path,
}

impl fmt::Display for NoFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is a pipe, a socket or a device, and not a file", self.key)
    }
}

impl std::error::Error for NoFile {}

/// A listing under way.
struct Walk {
    folders: Arc<Folders>,
    after: Option<Path>,
    left: Vec<Folder>,
}

impl Walk {
    /// The objects of the next directory.
    async fn next(mut self) -> Result<Option<(BoxStream<'static, Result<ObjectMeta>>, Self)>> {
        let Some(folder) = self.left.pop() else { return Ok(None) };
        let (folders, after) = (Arc::clone(&self.folders), self.after.clone());
        let found = blocking(move || folders.read(&folder, after.as_ref())).await?;
        self.left.extend(found.folders);
        Ok(Some((stream::iter(found.objects).map(Ok).boxed(), self)))
    }
}

/// Reads on a thread of its own where there is a runtime: a network's file system may hang.
async fn blocking<T: Send + 'static>(read: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T> {
    let done = match tokio::runtime::Handle::try_current() {
        Ok(runtime) => runtime.spawn_blocking(read).await?,
        Err(_) => read(),
    };
    done.map_err(|error| object_store::Error::Generic { store: "LocalFileSystem", source: Box::new(error) })
}

#[derive(Debug)]
struct Folders {
    root: PathBuf,
    passed_over: PassedOver,
}

/// A directory that is to be read.
struct Folder {
    key: Path,
    /// Device and inode of those that it lies in.
    above: Vec<(u64, u64)>,
}

#[derive(Default)]
struct Found {
    objects: Vec<ObjectMeta>,
    folders: Vec<Folder>,
}

impl Folders {
    /// Returns what lies right in a directory; nothing if there is none. Objects up to `after` are left out.
    fn read(&self, folder: &Folder, after: Option<&Path>) -> io::Result<Found> {
        let place = self.root.join(folder.key.as_ref());
        let is_none = |error: &io::Error| matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory);
        let at = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", place.display()));
        let (entries, own) = match std::fs::read_dir(&place).and_then(|entries| Ok((entries, place.metadata()?))) {
            Ok(both) => both,
            Err(error) if is_none(&error) => return Ok(Found::default()),
            Err(error) => return Err(at(error)),
        };
        let mut above = if folder.above.is_empty() { self.above(&folder.key) } else { folder.above.clone() };
        above.push((own.dev(), own.ino()));
        let mut found = Found::default();
        for entry in entries {
            let entry = entry.map_err(at)?;
            let Some(key) = self.key(&folder.key, &entry.file_name()) else { continue };
            let is_link = entry.file_type().map_err(at)?.is_symlink();
            let facts = match std::fs::metadata(entry.path()) {
                Ok(facts) => facts,
                Err(error) if is_none(&error) => continue,
                Err(_) if is_link => {
                    self.passed_over.tell(key.as_ref(), "it is a link that cannot be followed");
                    continue;
                }
                Err(error) => return Err(at(error)),
            };
            if facts.is_dir() {
                if above.contains(&(facts.dev(), facts.ino())) {
                    self.passed_over.tell(key.as_ref(), "it is a link that leads back to where it lies");
                } else {
                    found.folders.push(Folder { key, above: above.clone() });
                }
            } else if is_whole(&key) && after.is_none_or(|after| key > *after) {
                // Pipes, sockets and devices, too: whoever reads one learns that it is no file, and it is not missed in silence.
                found.objects.push(object(key, &facts));
            }
        }
        Ok(found)
    }

    /// The directories that the first one of a listing lies in.
    fn above(&self, key: &Path) -> Vec<(u64, u64)> {
        let keys = std::iter::successors(key.parent(), Path::parent);
        let facts = keys.filter_map(|key| std::fs::metadata(self.root.join(key.as_ref())).ok());
        facts.map(|facts| (facts.dev(), facts.ino())).collect()
    }

    /// The key of what lies in a folder; none for what can have none.
    fn key(&self, folder: &Path, name: &std::ffi::OsStr) -> Option<Path> {
        let part = name.to_str().and_then(|name| PathPart::parse(name).ok());
        if part.is_none() {
            let name = format!("{folder}/{}", name.to_string_lossy());
            self.passed_over.tell(&name, "its name is none that the client for stores takes");
        }
        Some(folder.clone().join(part?))
    }
}

/// Returns whether a file is not the first half of one: object_store writes `name#1`, and gives it its name when it is whole.
fn is_whole(key: &Path) -> bool {
    let suffix = key.filename().and_then(|name| name.split_once('#')).map_or("", |(_, suffix)| suffix);
    suffix.is_empty() || !suffix.bytes().all(|byte| byte.is_ascii_digit())
}

fn object(location: Path, facts: &Metadata) -> ObjectMeta {
    let last_modified = facts.modified().map_or(DateTime::<Utc>::UNIX_EPOCH, DateTime::from);
    ObjectMeta { location, last_modified, size: facts.len(), e_tag: None, version: None }
}

impl fmt::Display for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.files.fmt(f)
    }
}

#[async_trait]
impl ObjectStore for Disk {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        self.files.put_opts(location, payload, opts).await
    }

    async fn put_multipart_opts(&self, at: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.files.put_multipart_opts(at, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.is_file(location).await?;
        self.files.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.is_file(location).await?;
        self.files.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.files.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.walk(prefix, None)
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        self.walk(prefix, Some(offset))
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let folder = Folder { key: prefix.cloned().unwrap_or_default(), above: Vec::new() };
        let folders = Arc::clone(&self.folders);
        let Found { objects, folders } = blocking(move || folders.read(&folder, None)).await?;
        let common_prefixes = folders.into_iter().map(|folder| folder.key).collect();
        Ok(ListResult { common_prefixes, objects, extensions: Default::default() })
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.files.copy_opts(from, to, options).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.files.rename_opts(from, to, options).await
    }
}
