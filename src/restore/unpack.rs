//! A base backup onto the disk, each file checked against the server's manifest.
//!
//! ```text
//!   chunk ─► its parts: read, check, decompress (a few prefetched) ─► channel ─► a thread: tar ─► files, sha256 ─► manifest
//!   chunk ─► …                                                                           several chunks at a time
//! ```
//!
//! The parts that are in memory at a time are bounded by [`MEMORY`], however many chunks are read beside each other. A file that the
//! manifest does not know, that is missing or that differs ends the restore: what is on the disk then is not to be used.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::{StreamExt, TryStreamExt};
use sha2::{Digest, Sha256};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::manifest::Files;
use super::patience::{PATIENCE, patiently};
use super::runs::Chunk;
use crate::error::{Error, Kind, Result, ResultExt};
use crate::escape;
use crate::manifest::backups::Part;
use crate::store::Store;

/// How many parts of a chunk are read and decompressed before the disk takes them, at least: where there are fewer chunks than readers, each of
/// these reads a part.
const PREFETCHED: usize = 3;

/// How many KiB of parts are in memory at a time, as they are stored and decompressed: four of the largest.
const MEMORY: u32 = 192 << 10;

/// The files that were written, by their paths in the manifest.
pub(super) type Written = BTreeSet<Vec<u8>>;

/// What all chunks of a restore share.
#[derive(Clone)]
pub(super) struct Unpacking {
    store: Store,
    files: Arc<Files>,
    /// Those that are there already: they are passed over.
    whole: Arc<Written>,
    /// Bytes of archives, and of objects that were read.
    done: Arc<AtomicU64>,
    fetched: Arc<AtomicU64>,
    memory: Arc<Semaphore>,
}

impl Unpacking {
    pub(super) fn new(store: &Store, files: &Arc<Files>, whole: Written, done: &Arc<AtomicU64>) -> Self {
        Self {
            store: store.clone(),
            files: Arc::clone(files),
            whole: Arc::new(whole),
            done: Arc::clone(done),
            fetched: Arc::default(),
            memory: Arc::new(Semaphore::new(MEMORY as usize)),
        }
    }

    /// The files that are passed over.
    pub(super) fn whole(&self) -> &Written {
        &self.whole
    }

    /// How many bytes of objects were read.
    pub(super) fn fetched(&self) -> u64 {
        self.fetched.load(Ordering::Relaxed)
    }

    /// Unpacks chunks, as many at a time as there are `readers`; that with the control file when all others are done.
    pub(super) async fn all(&self, chunks: Vec<Chunk>, readers: usize) -> Result<Written> {
        let (last, first): (Vec<Chunk>, Vec<Chunk>) = chunks.into_iter().partition(|chunk| chunk.has_control);
        let mut written = Written::new();
        for some in [first, last] {
            let prefetched = PREFETCHED.max(readers.div_ceil(some.len().max(1)));
            let unpacked =
                futures::stream::iter(some).map(|chunk| self.chunk(chunk, prefetched)).buffer_unordered(readers.max(1));
            written.extend(unpacked.try_collect::<Vec<_>>().await?.into_iter().flatten());
        }
        Ok(written)
    }

    /// Unpacks one chunk, or looks at it only if it goes nowhere.
    #[expect(clippy::async_yields_async, reason = "a part is read while the next one waits for room")]
    async fn chunk(&self, chunk: Chunk, prefetched: usize) -> Result<Written> {
        let (sender, receiver) = mpsc::channel(1);
        let unpacker = Unpacker {
            into: chunk.into,
            prefix: chunk.prefix,
            files: Arc::clone(&self.files),
            whole: Arc::clone(&self.whole),
            written: Written::new(),
        };
        let pieces = Pieces { done: Arc::clone(&self.done), ..Pieces::of(receiver, (chunk.skip, chunk.length)) };
        let writer = tokio::task::spawn_blocking(move || unpacker.run(pieces));
        // Room is made in the order in which the parts are used, so that nobody waits for room who holds what comes later.
        let read = futures::stream::iter(chunk.parts).then(|part| async move {
            let room = Arc::clone(&self.memory).acquire_many_owned(room_for(&part)).await;
            tokio::spawn(self.clone().read(part, room.ok()))
        });
        let mut read = std::pin::pin!(read.buffered(prefetched));
        let mut failure = None;
        while let Some(piece) = read.next().await {
            match piece
                .or_err(Kind::Internal, || "the reading of a base backup was aborted".to_owned())
                .and_then(|piece| piece)
            {
                Ok(piece) => {
                    // Nobody takes it: the writer's own error says why.
                    if sender.send(piece).await.is_err() {
                        break;
                    }
                }
                Err(error) => {
                    failure = Some(error);
                    break;
                }
            }
        }
        drop(sender);
        let written = writer.await.or_err(Kind::Internal, || "unpacking was aborted".to_owned())?;
        match failure {
            Some(error) => Err(error),
            None => written.map_err(|error| error.context(format!("cannot unpack {}", chunk.archive))),
        }
    }

    async fn read(self, part: Part, room: Option<OwnedSemaphorePermit>) -> Result<Piece> {
        let stored = patiently(PATIENCE, || part.read(&self.store)).await?;
        self.fetched.fetch_add(stored.len() as u64, Ordering::Relaxed);
        let decompress =
            tokio::task::spawn_blocking(move || Ok(Piece { bytes: part.decompress(&stored)?, _memory: room }));
        decompress.await.or_err(Kind::Internal, || "decompressing was aborted".to_owned())?
    }
}

/// How many KiB a part takes.
fn room_for(part: &Part) -> u32 {
    u32::try_from(part.bytes.saturating_add(part.stored_bytes) / 1024 + 1).unwrap_or(MEMORY).min(MEMORY)
}

/// The bytes of a part, and the room that they take.
struct Piece {
    bytes: Vec<u8>,
    _memory: Option<OwnedSemaphorePermit>,
}

/// A part of a tar file, piece by piece.
struct Pieces {
    receiver: mpsc::Receiver<Piece>,
    piece: Piece,
    at: usize,
    /// How many bytes stand before it.
    skip: u64,
    /// How many bytes of it are left.
    rest: u64,
    done: Arc<AtomicU64>,
}

impl Pieces {
    /// So many bytes behind those that are skipped.
    fn of(receiver: mpsc::Receiver<Piece>, (skip, rest): (u64, u64)) -> Self {
        Self { receiver, piece: Piece { bytes: Vec::new(), _memory: None }, at: 0, skip, rest, done: Arc::default() }
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.piece.bytes.len() && self.rest > 0 {
            // Its room goes first: readers that wait for their next parts would keep it from each other for ever.
            (self.piece, self.at) = (Piece { bytes: Vec::new(), _memory: None }, 0);
            let Some(piece) = self.receiver.blocking_recv() else { return Ok(0) };
            let skipped = usize::try_from(self.skip).map_or(piece.bytes.len(), |skip| skip.min(piece.bytes.len()));
            self.skip -= skipped as u64;
            (self.piece, self.at) = (piece, skipped);
        }
        let left = (self.piece.bytes.len() - self.at).min(usize::try_from(self.rest).unwrap_or(usize::MAX));
        let count = buffer.len().min(left);
        buffer[..count].copy_from_slice(&self.piece.bytes[self.at..self.at + count]);
        self.at += count;
        self.rest -= count as u64;
        self.done.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

struct Unpacker {
    /// None: nothing is written.
    into: Option<PathBuf>,
    prefix: Vec<u8>,
    files: Arc<Files>,
    whole: Arc<Written>,
    written: Written,
}

impl Unpacker {
    fn run(mut self, pieces: Pieces) -> Result<Written> {
        let damaged = || "the archive cannot be read".to_owned();
        let mut tar = tar::Archive::new(pieces);
        for entry in tar.entries().or_err(Kind::Corrupt, damaged)? {
            self.entry(&mut entry.or_err(Kind::Corrupt, damaged)?)?;
        }
        Ok(self.written)
    }

    fn entry(&mut self, entry: &mut tar::Entry<'_, impl Read>) -> Result<()> {
        let path = entry.path().or_err(Kind::Corrupt, || "the archive holds a name that is none".to_owned())?;
        let path: PathBuf = path.components().filter(|part| *part != Component::CurDir).collect();
        if path.components().any(|part| !matches!(part, Component::Normal(_))) {
            return Err(Error::new(
                Kind::Corrupt,
                format!("the archive holds {}, which leads out of it", shown(&path)),
            ));
        }
        let target = self.into.as_ref().map(|into| into.join(&path));
        // Postgres refuses a data directory that others may enter, and nothing below it is theirs either.
        let mode = entry.header().mode().unwrap_or(0o600) & 0o750;
        match (entry.header().entry_type(), target) {
            (tar::EntryType::Directory, None) => Ok(()),
            (tar::EntryType::Directory, Some(target)) => {
                let made = folders(&target)
                    .and_then(|()| fs::set_permissions(&target, fs::Permissions::from_mode(mode | 0o700)));
                made.map_err(|source| Error::io(source, format!("cannot make {}", shown(&target))))
            }
            (tar::EntryType::Regular, target) => {
                let name = [&self.prefix[..], path.as_os_str().as_bytes()].concat();
                if self.whole.contains(&name) {
                    return Ok(());
                }
                self.file(entry, name, target.as_deref().map(|target| (target, mode)))
            }
            // The link of a tablespace, which Postgres makes by the map that the restore writes.
            (tar::EntryType::Symlink, _) if self.prefix.is_empty() && is_of_tablespace(&path) => Ok(()),
            (other, _) => {
                let message = format!("the archive holds {}, which is a {other:?}", shown(&path));
                Err(Error::new(Kind::Unsupported, message)
                    .hint("use pg_basebackup for a data directory with links of its own making"))
            }
        }
    }

    /// Reads a file through, checks it, and writes it if it has a target.
    fn file(&mut self, from: &mut impl Read, name: Vec<u8>, target: Option<(&Path, u32)>) -> Result<()> {
        let failed = |source| {
            let target = target.map(|(target, _)| shown(target)).unwrap_or_default();
            Error::io(source, format!("cannot write {target}"))
        };
        let mut file = target.map(|(target, _)| create(target)).transpose().map_err(failed)?;
        let (mut hash, mut size, mut buffer) = (Sha256::new(), 0u64, vec![0; 256 << 10]);
        loop {
            let count = from.read(&mut buffer).or_err(Kind::Corrupt, || "the archive is cut off".to_owned())?;
            if count == 0 {
                break;
            }
            if let Some(file) = &mut file {
                file.write_all(&buffer[..count]).map_err(failed)?;
            }
            hash.update(&buffer[..count]);
            size += count as u64;
        }
        if let (Some(file), Some((_, mode))) = (file, target) {
            let set = file.set_permissions(fs::Permissions::from_mode(mode));
            // An empty file is its name, which its directory makes durable: there may be hundreds of thousands.
            set.and_then(|()| if size > 0 { file.sync_all() } else { Ok(()) }).map_err(failed)?;
        }
        let own = escape::name(&String::from_utf8_lossy(&name)).into_owned();
        let wrong = |what: String| {
            Error::new(Kind::Corrupt, format!("{own} of the base backup {what}"))
                .hint("use another base backup: --backup NAME")
        };
        let Some(expected) = self.files.get(&name) else {
            return Err(wrong("is not in the server's manifest".to_owned()));
        };
        if expected.size != size {
            return Err(wrong(format!("has {size} bytes, and the server's manifest says {}", expected.size)));
        }
        let found: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        if expected.sha256.as_ref().is_some_and(|expected| *expected != found) {
            return Err(wrong(format!("has sha256 {found}, and the server's manifest says another")));
        }
        self.written.insert(name);
        Ok(())
    }
}

/// Reads an archive of which nothing is known, without a byte on the disk.
#[cfg(any(fuzzing, test))]
pub(super) fn read_through(tar: &[u8]) {
    let (sender, receiver) = mpsc::channel(1);
    if sender.try_send(Piece { bytes: tar.to_vec(), _memory: None }).is_ok() {
        drop(sender);
        let unpacker = Unpacker {
            into: None,
            prefix: Vec::new(),
            files: Arc::default(),
            whole: Arc::default(),
            written: Written::new(),
        };
        drop(unpacker.run(Pieces::of(receiver, (0, tar.len() as u64))));
    }
}

/// A file of nobody else, whatever the process is started with: its mode in the backup is set when it is whole.
fn create(target: &Path) -> io::Result<File> {
    if let Some(folder) = target.parent() {
        folders(folder)?;
    }
    File::options().write(true).create(true).truncate(true).mode(0o600).open(target)
}

/// Makes a directory and those above it, as far as they are missing.
fn folders(target: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(target)
}

/// Returns whether it is the name of a tablespace's link: a number in `pg_tblspc`.
fn is_of_tablespace(path: &Path) -> bool {
    let number = path.strip_prefix("pg_tblspc").map(|name| name.as_os_str().as_bytes()).unwrap_or_default();
    !number.is_empty() && number.iter().all(u8::is_ascii_digit)
}

/// A path as a message has it: whoever made the archive has named it.
fn shown(path: &Path) -> String {
    escape::name(&path.to_string_lossy()).into_owned()
}

/// Makes the names in a directory, and in all below it, durable.
pub(super) fn sync_directories(root: &Path) -> Result<()> {
    let failed = |path: &Path| {
        let shown = path.display().to_string();
        move |source| Error::io(source, format!("cannot make {shown} durable"))
    };
    let mut waiting = vec![root.to_owned()];
    while let Some(folder) = waiting.pop() {
        for entry in fs::read_dir(&folder).map_err(failed(&folder))?.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                waiting.push(entry.path());
            }
        }
        File::open(&folder).and_then(|opened| opened.sync_all()).map_err(failed(&folder))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::restore::manifest::Expected;
    use crate::stream::sha256;

    fn tar_of(entries: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, bytes) in entries {
            let mut header = tar::Header::new_ustar();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o600);
            // As it stands, for names that the builder would refuse.
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_cksum();
            builder.append(&header, *bytes).expect("appended");
        }
        builder.into_inner().expect("a tar file")
    }

    fn files(known: &[(&str, &[u8])]) -> Arc<Files> {
        let expected = |bytes: &[u8]| Expected { size: bytes.len() as u64, sha256: Some(sha256(bytes)), number: 0 };
        Arc::new(known.iter().map(|(name, bytes)| (name.as_bytes().to_vec(), expected(bytes))).collect())
    }

    fn run(tar: &[u8], files: &Arc<Files>) -> (tempfile::TempDir, Result<Written>) {
        run_part(tar, (0, tar.len() as u64), files, &[])
    }

    /// Unpacks what lies behind some bytes, but for the files that are there.
    fn run_part(
        tar: &[u8],
        part: (u64, u64),
        files: &Arc<Files>,
        whole: &[&str],
    ) -> (tempfile::TempDir, Result<Written>) {
        let into = tempfile::tempdir().expect("a directory");
        let (sender, receiver) = mpsc::channel(tar.len() / 100 + 1);
        for piece in tar.chunks(100) {
            sender.try_send(Piece { bytes: piece.to_vec(), _memory: None }).expect("there is room");
        }
        drop(sender);
        let unpacker = Unpacker {
            into: Some(into.path().to_owned()),
            prefix: b"p/".to_vec(),
            files: Arc::clone(files),
            whole: Arc::new(whole.iter().map(|name| name.as_bytes().to_vec()).collect()),
            written: Written::new(),
        };
        let result = unpacker.run(Pieces::of(receiver, part));
        (into, result)
    }

    #[test]
    fn a_part_of_an_archive_is_unpacked_by_itself_and_what_is_there_is_left_alone() {
        let contents = [("a", &[1; 700][..]), ("b", b"b"), ("c", b"c"), ("d", b"d")];
        let known: Vec<(String, &[u8])> = contents.iter().map(|(name, bytes)| (format!("p/{name}"), *bytes)).collect();
        let known: Vec<(&str, &[u8])> = known.iter().map(|(name, bytes)| (&name[..], *bytes)).collect();
        let tar = tar_of(&contents);
        // From the header of b to the end of c.
        let (into, written) = run_part(&tar, (512 + 1024, 2048), &files(&known), &["p/c"]);
        assert_eq!(written.expect("all is well"), [b"p/b".to_vec()].into());
        assert_eq!(fs::read_dir(into.path()).expect("a directory").count(), 1);
        let (_, written) = run_part(&tar, (512 + 1024, 1500), &files(&known), &[]);
        assert!(written.is_err(), "it ends within a file");
    }

    /// Bytes that do not get smaller, so that a part takes as much room stored as it does unpacked.
    fn noise(seed: u64) -> Vec<u8> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        };
        (0..200_000).map(|_| next()).collect()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn readers_do_not_keep_room_from_each_other() {
        let store = Store::over(Arc::new(object_store::memory::InMemory::new()), "memory:///");
        let (mut chunks, mut contents) = (Vec::new(), Vec::new());
        for number in 0..6 {
            let (name, bytes) = (format!("f{number}"), noise(number as u64 + 1));
            let (tar, mut parts) = (tar_of(&[(&name, &bytes)]), Vec::new());
            for (at, piece) in tar.chunks(64 << 10).enumerate() {
                let stored = zstd::bulk::compress(piece, 1).expect("compressed");
                let object = format!("backups/postgres/system=7/b/base.tar.{:07}.zst", number * 1_000 + at);
                store.put(&object.as_str().into(), stored.clone().into()).await.expect("stored");
                let (bytes, stored_bytes) = (piece.len() as u64, stored.len() as u64);
                parts.push(Part { object, bytes, stored_bytes, sha256: sha256(&stored) });
            }
            let (skip, length, has_control) = (0, tar.len() as u64, false);
            let (archive, into, prefix) = ("base.tar".to_owned(), None, Vec::new());
            chunks.push(Chunk { archive, into, prefix, parts, skip, length, has_control });
            contents.push((name, bytes));
        }
        let known: Vec<(&str, &[u8])> = contents.iter().map(|(name, bytes)| (&name[..], &bytes[..])).collect();
        // For as many parts as there are readers, but one.
        let memory = Arc::new(Semaphore::new(5 * 129));
        let unpacking = Unpacking { memory, ..Unpacking::new(&store, &files(&known), Written::new(), &Arc::default()) };
        let all = tokio::time::timeout(std::time::Duration::from_secs(60), unpacking.all(chunks, 6)).await;
        assert_eq!(all.expect("nobody waits for ever").expect("all is well").len(), 6);
    }

    #[test]
    fn files_are_written_and_checked() {
        let tar = tar_of(&[("./d/a", b"hello"), ("b", b"")]);
        let (into, written) = run(&tar, &files(&[("p/d/a", b"hello"), ("p/b", b"")]));
        assert_eq!(written.expect("all is well").len(), 2);
        assert_eq!(fs::read(into.path().join("d/a")).expect("it is there"), b"hello");
    }

    #[test]
    fn whatever_the_rights_in_the_backup_nothing_is_open_to_others() {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, kind, mode) in [
            ("./", tar::EntryType::Directory, 0o777),
            ("d/", tar::EntryType::Directory, 0o555),
            ("d/a", tar::EntryType::Regular, 0o666),
            ("e/f/a", tar::EntryType::Regular, 0o666),
        ] {
            let mut header = tar::Header::new_ustar();
            header.set_size(0);
            header.set_mode(mode);
            header.set_entry_type(kind);
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_cksum();
            builder.append(&header, &b""[..]).expect("appended");
        }
        let (into, written) =
            run(&builder.into_inner().expect("a tar file"), &files(&[("p/d/a", b""), ("p/e/f/a", b"")]));
        written.expect("all is well");
        let mode = |path: &Path| fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
        // What Postgres accepts is 0700 and 0750 (`checkDataDir`, miscinit.c).
        assert_eq!(
            (mode(into.path()), mode(&into.path().join("d")), mode(&into.path().join("d/a"))),
            (0o750, 0o750, 0o640)
        );
        assert_eq!(mode(&into.path().join("e/f")), 0o700, "the archive says nothing of it");
        drop(create(&into.path().join("new/file")).expect("made"));
        assert_eq!(mode(&into.path().join("new/file")), 0o600, "before its own mode is set");
    }

    #[test]
    fn a_name_of_megabytes_is_told_by_its_ends() {
        for (start, kind) in
            [("x/", tar::EntryType::Regular), ("../", tar::EntryType::Regular), ("x/", tar::EntryType::Fifo)]
        {
            let name = format!("{start}{}\u{1b}end", "n".repeat(8 << 20));
            let mut builder = tar::Builder::new(Vec::new());
            let mut header = tar::Header::new_gnu();
            header.set_size(name.len() as u64);
            header.set_entry_type(tar::EntryType::GNULongName);
            header.set_cksum();
            builder.append(&header, name.as_bytes()).expect("appended");
            header.set_size(0);
            header.set_entry_type(kind);
            header.set_cksum();
            builder.append(&header, &b""[..]).expect("appended");
            let (_, written) = run(&builder.into_inner().expect("a tar file"), &files(&[]));
            let error = written.expect_err("it must not pass");
            let said = format!("{error:?}");
            assert!(said.contains(&start[..1]) && said.len() < 4_000, "{} bytes: {said:.300}", said.len());
            assert!(!said.contains(escape::is_unsafe), "{said:?}");
        }
    }

    /// A link that leads out, and what would be written through it.
    #[test]
    fn no_link_of_an_archive_is_made_and_nothing_is_written_through_one() {
        let outside = tempfile::tempdir().expect("a directory");
        for kind in [tar::EntryType::Symlink, tar::EntryType::Link, tar::EntryType::Fifo, tar::EntryType::Char] {
            let mut builder = tar::Builder::new(Vec::new());
            let mut header = tar::Header::new_gnu();
            header.set_size(0);
            header.set_entry_type(kind);
            builder.append_link(&mut header, "out", outside.path()).expect("appended");
            let mut header = tar::Header::new_gnu();
            header.set_size(5);
            header.set_mode(0o600);
            builder.append_data(&mut header, "out/file", &b"hello"[..]).expect("appended");
            let tar = builder.into_inner().expect("a tar file");
            let (into, written) = run(&tar, &files(&[("p/out/file", b"hello"), ("p/out", b"")]));
            assert_eq!(written.expect_err("it must not pass").kind(), Kind::Unsupported, "{kind:?}");
            assert!(into.path().join("out").symlink_metadata().is_err(), "{kind:?} is made");
            assert_eq!(fs::read_dir(outside.path()).expect("a directory").count(), 0, "{kind:?}");
        }
    }

    /// Postgres makes it by the map.
    #[test]
    fn the_link_of_a_tablespace_is_passed_over() {
        let outside = tempfile::tempdir().expect("a directory");
        let linked = |name: &str| {
            let mut builder = tar::Builder::new(Vec::new());
            let mut header = tar::Header::new_gnu();
            header.set_size(0);
            header.set_entry_type(tar::EntryType::Symlink);
            builder.append_link(&mut header, name, outside.path()).expect("appended");
            let unpacker = Unpacker {
                into: Some(outside.path().join("data")),
                prefix: Vec::new(),
                files: Arc::default(),
                whole: Arc::default(),
                written: Written::new(),
            };
            let tar = builder.into_inner().expect("a tar file");
            let (sender, receiver) = mpsc::channel(1);
            let length = tar.len() as u64;
            sender.try_send(Piece { bytes: tar, _memory: None }).expect("there is room");
            drop(sender);
            unpacker.run(Pieces::of(receiver, (0, length)))
        };
        assert!(linked("pg_tblspc/16384").expect("passed over").is_empty());
        for name in ["pg_tblspc/16384/x", "pg_tblspc/x", "pg_tblspc", "pg_wal", "16384"] {
            assert_eq!(linked(name).expect_err("it must not pass").kind(), Kind::Unsupported, "{name}");
        }
        assert_eq!(fs::read_dir(outside.path()).expect("a directory").count(), 0);
    }

    #[test]
    fn what_the_manifest_does_not_say_is_refused() {
        let refused = |tar: &[u8], known: &[(&str, &[u8])]| {
            let (_, written) = run(tar, &files(known));
            let error = written.expect_err("it must not pass");
            assert_eq!(error.kind(), Kind::Corrupt);
            error.to_string()
        };
        assert!(refused(&tar_of(&[("a", b"hello")]), &[("p/a", b"hellO")]).contains("sha256"));
        assert!(refused(&tar_of(&[("a", b"hello")]), &[("p/a", b"hell")]).contains("5 bytes"));
        assert!(refused(&tar_of(&[("a", b"hello")]), &[]).contains("not in the server's manifest"));
        assert!(refused(&tar_of(&[("../a", b"hello")]), &[("p/../a", b"hello")]).contains("leads out"));
        let tar = tar_of(&[("a", &[1; 2000])]);
        assert!(refused(&tar[..1000], &[("p/a", &[1; 2000])]).contains("bytes"));
    }
}
