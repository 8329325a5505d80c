//! The spool: one directory a process, below `archive.spool_dir`, for segments that are not in the archive yet.
//!
//! Its content is worthless without its process: what was not committed is read from Kafka again. So a directory whose
//! process is gone (its lock is free) is removed when the next one starts.

use std::fs::{DirBuilder, File, Permissions, TryLockError};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};

const LOCK: &str = "lock";

/// Makes a directory that nobody else may enter, and takes the rights of others away from one that is there: records and WAL lie
/// in it as they are.
pub(super) fn make_private(directory: &Path) -> std::io::Result<()> {
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
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
    /// Held for the life of the process.
    _lock: File,
}

impl Spool {
    /// Makes the directory of `writer` below `root`, and removes those of processes that are gone.
    pub(super) fn open(root: &Path, writer: &str) -> Result<Self> {
        let hint = "set archive.spool_dir to a directory on a local disk that tidelog may write to";
        std::fs::create_dir_all(root).map_err(|source| {
            Error::io(source, format!("cannot make the spool directory {}", root.display())).hint(hint)
        })?;
        remove_left_over(root)?;
        let directory = root.join(writer);
        let made = make_private(&directory).and_then(|()| {
            // Locked before it has its name: another process that starts now would take it for one that is left over.
            let unnamed = directory.join("lock.new");
            let lock = File::create(&unnamed)?;
            lock.lock()?;
            std::fs::rename(&unnamed, directory.join(LOCK))?;
            // A disk without a free block still makes directories and empty files; a segment would fail later.
            std::fs::write(directory.join("probe"), [0; 64 << 10])?;
            std::fs::remove_file(directory.join("probe"))?;
            Ok(lock)
        });
        let lock = made.map_err(|source| {
            Error::io(source, format!("cannot write to the spool directory {}", root.display())).hint(hint)
        })?;
        Ok(Self { directory, next: AtomicU64::new(0), _lock: lock })
    }

    /// A number for a new segment, and the path of its file.
    pub(super) fn next_file(&self) -> (u64, PathBuf) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        (number, self.directory.join(format!("{number}.segment")))
    }

    /// Removes a file that is not needed any more. One that is left costs disk, not correctness.
    pub(super) fn remove(&self, file: &Path) {
        if let Err(error) = std::fs::remove_file(file)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(file = %file.display(), %error, "cannot remove a spool file");
        }
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.directory) {
            tracing::warn!(directory = %self.directory.display(), %error, "cannot remove the spool directory");
        }
    }
}

fn remove_left_over(root: &Path) -> Result<()> {
    let entries = std::fs::read_dir(root)
        .map_err(|source| Error::io(source, format!("cannot read the spool directory {}", root.display())))?;
    for directory in entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()) {
        // A directory without a lock file is not ours, or its process has not made it yet: let it be.
        let Ok(lock) = File::open(directory.join(LOCK)) else { continue };
        match lock.try_lock() {
            Ok(()) => match std::fs::remove_dir_all(&directory) {
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
        let spool = Spool::open(root.path(), "w").expect("it can be opened");
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
        let living = Spool::open(root.path(), "living").expect("the spool opens");
        let gone = root.path().join("gone");
        std::fs::create_dir(&gone).expect("a directory");
        std::fs::write(gone.join(LOCK), "").expect("its lock file");
        std::fs::write(gone.join("0.segment"), "half").expect("a left-over file");
        let foreign = root.path().join("foreign");
        std::fs::create_dir(&foreign).expect("a directory");

        let own = Spool::open(root.path(), "own").expect("the spool opens");
        assert!(!gone.exists() && foreign.exists());
        let (number, file) = living.next_file();
        std::fs::write(&file, "data").expect("the living one can still write");
        assert_eq!((number, own.next_file().0), (0, 0));
        drop(own);
        assert!(!root.path().join("own").exists() && file.exists());
    }

    #[test]
    fn a_spool_that_cannot_be_written_says_so() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        let error = Spool::open(file.path(), "w").expect_err("a file is no directory");
        assert!(error.to_string().contains("cannot make the spool directory"), "{error}");
        assert!(error.hint_text().is_some_and(|hint| hint.contains("archive.spool_dir")));
    }
}
