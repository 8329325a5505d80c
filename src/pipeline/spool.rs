//! The spool: one directory a process, below `archive.spool_dir`, for segments that are not in the archive yet.
//!
//! ```text
//! <writer>.lock     held by the process as long as it runs
//! <writer>/         its segments
//! ```
//!
//! Its content is worthless without its process: what was not committed is read from Kafka again. So a directory whose
//! process is gone (its lock is free) is removed when the next one starts. The lock is there before the directory and goes after
//! it, so that a process that is killed at any moment leaves nothing that the next one would not know.

use std::fs::{DirBuilder, File, Permissions, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};

/// What a lock's name ends in.
const LOCK: &str = "lock";

/// Makes a directory that nobody else may enter, and takes the rights of others away from one that is there: records and WAL lie
/// in it as they are.
pub(super) fn make_private(directory: &Path) -> std::io::Result<()> {
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            let mode = std::fs::metadata(directory)?.permissions().mode();
            if mode & 0o077 == 0 { Ok(()) } else { std::fs::set_permissions(directory, Permissions::from_mode(0o700)) }
        }
        made => made,
    }
}

/// This process's directory for unfinished segments.
#[derive(Debug)]
pub(super) struct Spool {
    directory: PathBuf,
    next: AtomicU64,
}

/// Removes the spool when it is dropped, by whoever knows that nothing is written to it any more: a task that is still at work
/// when the process ends keeps a spool, and never drops it.
#[derive(Debug)]
pub(super) struct SpoolGuard {
    directory: PathBuf,
    lock: Lock,
}

impl Spool {
    /// Makes the directory of `writer` below `root`, which is there until what comes with it is dropped, and removes those of
    /// processes that are gone.
    pub(super) fn open(root: &Path, writer: &str) -> Result<(Self, SpoolGuard)> {
        let hint = "set archive.spool_dir to a directory on a local disk that tidelog may write to";
        std::fs::create_dir_all(root).map_err(|source| {
            Error::io(source, format!("cannot make the spool directory {}", root.display())).hint(hint)
        })?;
        remove_left_over(root)?;
        let directory = root.join(writer);
        let made = Lock::take(root.join(format!("{writer}.{LOCK}"))).and_then(|lock| {
            make_private(&directory)?;
            // A disk without a free block still makes directories and empty files; a segment would fail later.
            std::fs::write(directory.join("probe"), [0; 64 << 10])?;
            std::fs::remove_file(directory.join("probe"))?;
            Ok(lock)
        });
        let lock = made.map_err(|source| {
            Error::io(source, format!("cannot write to the spool directory {}", root.display())).hint(hint)
        })?;
        Ok((Self { directory: directory.clone(), next: AtomicU64::new(0) }, SpoolGuard { directory, lock }))
    }

    /// A number for a new segment, and the path of its file.
    pub(super) fn next_file(&self) -> (u64, PathBuf) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        (number, self.directory.join(format!("{number}.segment")))
    }

    /// Removes a file that is not needed any more. One that is left costs disk, not correctness.
    pub(super) fn remove(&self, file: &Path) {
        if let Err(error) = std::fs::remove_file(file)
            && error.kind() != ErrorKind::NotFound
        {
            tracing::warn!(file = %file.display(), %error, "cannot remove a spool file");
        }
    }
}

impl Drop for SpoolGuard {
    fn drop(&mut self) {
        if let Err(error) = remove_with_lock(&self.directory, &self.lock.path) {
            tracing::warn!(directory = %self.directory.display(), %error, "cannot remove the spool directory");
        }
    }
}

/// A file that is locked until its process is gone.
#[derive(Debug)]
struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    /// Makes the file at `path` and locks it. A process that starts between the two may take it for one that is left over and
    /// remove it; then it is made again.
    fn take(path: PathBuf) -> std::io::Result<Self> {
        loop {
            let file = File::create(&path)?;
            file.lock()?;
            if is_at(&file, &path)? {
                return Ok(Self { path, _file: file });
            }
        }
    }
}

/// Whether it is this file that `path` leads to: another process may have removed it, and its owner made it again.
fn is_at(file: &File, path: &Path) -> std::io::Result<bool> {
    match std::fs::metadata(path) {
        Ok(there) => Ok(there.ino() == file.metadata()?.ino()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes a spool, its lock last: what is half removed is still known to be left over.
fn remove_with_lock(directory: &Path, lock: &Path) -> std::io::Result<()> {
    for removed in [std::fs::remove_dir_all(directory), std::fs::remove_file(lock)] {
        match removed {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// The lock and the directory of the spool that an entry of the root belongs to. Older versions had the lock in the directory;
/// whatever has none is not ours.
fn lock_and_directory(entry: PathBuf) -> Option<(PathBuf, PathBuf)> {
    let inside = entry.join(LOCK);
    match entry.extension() {
        Some(end) if end == LOCK && entry.is_file() => {
            let directory = entry.with_extension("");
            Some((entry, directory))
        }
        _ => inside.is_file().then_some((inside, entry)),
    }
}

fn remove_left_over(root: &Path) -> Result<()> {
    let entries = std::fs::read_dir(root)
        .map_err(|source| Error::io(source, format!("cannot read the spool directory {}", root.display())))?;
    for (lock, directory) in entries.flatten().filter_map(|entry| lock_and_directory(entry.path())) {
        // Its process has just stopped and removed it.
        let Ok(held) = File::open(&lock) else { continue };
        match held.try_lock() {
            Ok(()) if !is_at(&held, &lock).unwrap_or(false) => {}
            Ok(()) => match remove_with_lock(&directory, &lock) {
                Ok(()) => {
                    tracing::info!(directory = %directory.display(), "removed the spool of a process that is gone")
                }
                Err(error) => tracing::warn!(directory = %directory.display(), %error, "cannot remove an old spool"),
            },
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => {
                tracing::warn!(directory = %directory.display(), %error, "cannot tell whether an old spool is in use");
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_else_may_look_into_a_spool() {
        let root = tempfile::tempdir().expect("a directory");
        let mode = |path: &Path| std::fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
        let (spool, _guard) = Spool::open(root.path(), "w").expect("it can be opened");
        assert_eq!(mode(&spool.directory), 0o700);
        // As an older version has left it.
        let old = root.path().join("postgres-1");
        std::fs::create_dir(&old).expect("a directory");
        std::fs::set_permissions(&old, Permissions::from_mode(0o755)).expect("its rights");
        make_private(&old).expect("it is ours");
        assert_eq!(mode(&old), 0o700);
    }

    #[test]
    fn the_spool_of_a_process_that_is_gone_is_removed_and_that_of_a_living_one_is_not() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let at = |name: &str| root.path().join(name);
        let directory = |name: &str| std::fs::create_dir(at(name)).expect("a directory");
        let file = |name: &str| std::fs::write(at(name), "half").expect("a file");
        let (living, _guard) = Spool::open(root.path(), "living").expect("the spool opens");
        directory("gone");
        file("gone.lock");
        file("gone/0.segment");
        // Killed before it had a directory, and in the middle of a removal.
        file("begun.lock");
        directory("old");
        file("old/lock");
        directory("foreign");
        directory("postgres-1");
        file("postgres-1/1.wal");

        let (own, guard) = Spool::open(root.path(), "own").expect("the spool opens");
        let (number, written) = living.next_file();
        std::fs::write(&written, "data").expect("the living one can still write");
        assert_eq!((number, own.next_file().0), (0, 0));
        drop(guard);
        let mut left: Vec<_> =
            std::fs::read_dir(root.path()).expect("the root").flatten().map(|one| one.file_name()).collect();
        left.sort();
        assert_eq!(left, ["foreign", "living", "living.lock", "postgres-1"]);
        assert!(written.exists() && at("postgres-1/1.wal").exists());
    }

    /// Whoever starts at the same moment takes the locks of others that are not locked yet for left over.
    #[test]
    fn spools_that_open_at_once_keep_their_locks() {
        let root = tempfile::tempdir().expect("a temporary directory");
        std::thread::scope(|scope| {
            for writer in 0..8 {
                let root = root.path();
                scope.spawn(move || {
                    for _ in 0..50 {
                        let (spool, guard) = Spool::open(root, &writer.to_string()).expect("the spool opens");
                        std::fs::write(spool.next_file().1, "data").expect("it can be written to");
                        assert!(guard.lock.path.exists() && spool.directory.exists());
                    }
                });
            }
        });
        assert_eq!(std::fs::read_dir(root.path()).expect("the root").count(), 0);
    }

    #[test]
    fn a_spool_that_cannot_be_written_says_so() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        let error = Spool::open(file.path(), "w").expect_err("a file is no directory");
        assert!(error.to_string().contains("cannot make the spool directory"), "{error}");
        assert!(error.hint_text().is_some_and(|hint| hint.contains("archive.spool_dir")));
    }
}
