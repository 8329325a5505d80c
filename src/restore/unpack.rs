//! A base backup onto the disk, each file checked against the server's manifest.
//!
//! ```text
//!   parts ─► read, check, decompress (a few ahead) ─► channel ─► a thread an archive: tar ─► files, sha256 ─► manifest
//! ```
//!
//! Archives are unpacked beside each other. A file that the manifest does not know, that is missing or that differs ends
//! the restore: what is on the disk then is of no use, and the error says so.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::StreamExt;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use super::manifest::Files;
use crate::error::{Error, Kind, Result, ResultExt};
use crate::manifest::backups::{Archive, Part};
use crate::store::Store;

/// How many parts of an archive are read and decompressed ahead of the disk.
const AHEAD: usize = 3;

/// The files that were written, by their paths in the manifest.
pub(super) type Written = BTreeSet<Vec<u8>>;

/// Unpacks one archive into `into`, or looks at it only if there is none; its files stand below `prefix` in the
/// manifest.
pub(super) async fn unpack(
    store: &Store,
    archive: &Archive,
    (into, prefix): (Option<PathBuf>, Vec<u8>),
    files: &Arc<Files>,
    done: &Arc<AtomicU64>,
) -> Result<Written> {
    let (sender, receiver) = mpsc::channel(1);
    let (files, done) = (Arc::clone(files), Arc::clone(done));
    let writer = tokio::task::spawn_blocking(move || {
        Unpacker { into, prefix, files, written: Written::new() }.run(Pieces {
            receiver,
            piece: Vec::new(),
            at: 0,
            done,
        })
    });
    let read = archive.parts.iter().cloned().map(|part| tokio::spawn(read(store.clone(), part)));
    let mut read = futures::stream::iter(read).buffered(AHEAD);
    let mut failure = None;
    while let Some(piece) = read.next().await {
        match piece.or_err(Kind::Internal, || "reading a base backup broke off".to_owned()).and_then(|piece| piece) {
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
    let written = writer.await.or_err(Kind::Internal, || "unpacking broke off".to_owned())?;
    match failure {
        Some(error) => Err(error),
        None => written.map_err(|error| error.context(format!("cannot unpack {}", archive.name))),
    }
}

async fn read(store: Store, part: Part) -> Result<Vec<u8>> {
    let stored = part.read(&store).await?;
    let decompress = tokio::task::spawn_blocking(move || part.decompress(&stored));
    decompress.await.or_err(Kind::Internal, || "decompressing broke off".to_owned())?
}

/// The tar file, piece by piece.
struct Pieces {
    receiver: mpsc::Receiver<Vec<u8>>,
    piece: Vec<u8>,
    at: usize,
    done: Arc<AtomicU64>,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.piece.len() {
            let Some(piece) = self.receiver.blocking_recv() else { return Ok(0) };
            (self.piece, self.at) = (piece, 0);
        }
        let count = buffer.len().min(self.piece.len() - self.at);
        buffer[..count].copy_from_slice(&self.piece[self.at..self.at + count]);
        self.at += count;
        self.done.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

struct Unpacker {
    /// None: nothing is written.
    into: Option<PathBuf>,
    prefix: Vec<u8>,
    files: Arc<Files>,
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
                format!("the archive holds {}, which leads out of it", path.display()),
            ));
        }
        let target = self.into.as_ref().map(|into| into.join(&path));
        // Postgres refuses a data directory that others may enter, and nothing below it is theirs either.
        let mode = entry.header().mode().unwrap_or(0o600) & 0o750;
        match (entry.header().entry_type(), target) {
            (tar::EntryType::Directory, None) => Ok(()),
            (tar::EntryType::Directory, Some(target)) => {
                let made = fs::create_dir_all(&target)
                    .and_then(|()| fs::set_permissions(&target, fs::Permissions::from_mode(mode | 0o700)));
                made.map_err(|source| Error::io(source, format!("cannot make {}", target.display())))
            }
            (tar::EntryType::Regular, target) => {
                let name = [&self.prefix[..], path.as_os_str().as_bytes()].concat();
                self.file(entry, name, target.as_deref().map(|target| (target, mode)))
            }
            (other, _) => {
                let message = format!("the archive holds {}, which is a {other:?}", path.display());
                Err(Error::new(Kind::Unsupported, message)
                    .hint("use pg_basebackup for a data directory with links of its own making"))
            }
        }
    }

    /// Reads a file through, checks it, and writes it if it has a target.
    fn file(&mut self, from: &mut impl Read, name: Vec<u8>, target: Option<(&Path, u32)>) -> Result<()> {
        let failed = |source| {
            let shown = target.map(|(target, _)| target.display().to_string()).unwrap_or_default();
            Error::io(source, format!("cannot write {shown}"))
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
        let shown = String::from_utf8_lossy(&name).into_owned();
        let wrong = |what: String| {
            Error::new(Kind::Corrupt, format!("{shown} of the base backup {what}"))
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
    if sender.try_send(tar.to_vec()).is_ok() {
        drop(sender);
        let pieces = Pieces { receiver, piece: Vec::new(), at: 0, done: Arc::default() };
        let unpacker = Unpacker { into: None, prefix: Vec::new(), files: Arc::default(), written: Written::new() };
        drop(unpacker.run(pieces));
    }
}

fn create(target: &Path) -> io::Result<File> {
    if let Some(folder) = target.parent() {
        fs::create_dir_all(folder)?;
    }
    File::create(target)
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
        let expected = |bytes: &[u8]| Expected { size: bytes.len() as u64, sha256: Some(sha256(bytes)) };
        Arc::new(known.iter().map(|(name, bytes)| (name.as_bytes().to_vec(), expected(bytes))).collect())
    }

    fn run(tar: &[u8], files: &Arc<Files>) -> (tempfile::TempDir, Result<Written>) {
        let into = tempfile::tempdir().expect("a directory");
        let (sender, receiver) = mpsc::channel(tar.len() / 100 + 1);
        for piece in tar.chunks(100) {
            sender.try_send(piece.to_vec()).expect("there is room");
        }
        drop(sender);
        let pieces = Pieces { receiver, piece: Vec::new(), at: 0, done: Arc::default() };
        let unpacker = Unpacker {
            into: Some(into.path().to_owned()),
            prefix: b"p/".to_vec(),
            files: Arc::clone(files),
            written: Written::new(),
        };
        let result = unpacker.run(pieces);
        (into, result)
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
        ] {
            let mut header = tar::Header::new_ustar();
            header.set_size(0);
            header.set_mode(mode);
            header.set_entry_type(kind);
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_cksum();
            builder.append(&header, &b""[..]).expect("appended");
        }
        let (into, written) = run(&builder.into_inner().expect("a tar file"), &files(&[("p/d/a", b"")]));
        written.expect("all is well");
        let mode = |path: &Path| fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
        // What Postgres accepts is 0700 and 0750 (`checkDataDir`, miscinit.c).
        assert_eq!(
            (mode(into.path()), mode(&into.path().join("d")), mode(&into.path().join("d/a"))),
            (0o750, 0o750, 0o640)
        );
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
