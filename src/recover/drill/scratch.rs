//! The directory in which a drill works, and of which nothing stays.
//!
//! ```text
//!   <scratch>/tidelog-drill/lock     held while a drill runs (flock(2)): who is killed lets go of it
//!                          /data, tablespace-*, socket, server.log, …
//! ```
//!
//! A drill that finds the directory, and nobody who holds it, removes what one that was killed has left. It removes nothing that it
//! does not know to be a drill's: a directory of this name, of its own user, with that file in it.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::{Error, Kind, Result};

const NAME: &str = "tidelog-drill";
const LOCK: &str = "lock";

/// How long a server of a drill that was killed may take to end: its postmaster kills what is left of it after 5 s.
const REMAINS: Duration = Duration::from_secs(30);

/// A directory of a drill's own. Dropping it removes it.
#[derive(Debug)]
pub(super) struct Scratch {
    folder: PathBuf,
    lock: Option<File>,
}

impl Scratch {
    /// Makes it below a directory; what a drill that was killed has left there is removed first.
    ///
    /// # Errors
    /// [`Kind::Config`] while another drill runs there, and for a directory that is not a drill's.
    pub(super) fn make(below: &Path) -> Result<Self> {
        let below =
            std::path::absolute(below).map_err(|source| Error::io(source, "cannot tell the working directory"))?;
        let folder = below.join(NAME);
        let failed = |source| {
            Error::io(source, format!("cannot make {}", folder.display()))
                .hint("name a directory on a disk with room for the database, in which the user of this process may write: --scratch DIR")
        };
        // A server that may not run as root has to get to its data.
        let mode = if user()? == 0 { 0o711 } else { 0o700 };
        loop {
            match fs::DirBuilder::new().mode(mode).create(&folder) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => is_ours(&folder)?,
                Err(error) => return Err(failed(error)),
            }
            let lock =
                File::options().write(true).create(true).truncate(false).open(folder.join(LOCK)).map_err(failed)?;
            match lock.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    let message = format!("another drill works in {}", folder.display());
                    return Err(Error::new(Kind::Config, message)
                        .hint("wait for its end, or name another directory: --scratch DIR"));
                }
                Err(TryLockError::Error(error)) => return Err(failed(error)),
            }
            // One that has just ended may have removed the file before it was locked here.
            let is_same = |there: fs::Metadata| lock.metadata().is_ok_and(|own| own.ino() == there.ino());
            if fs::symlink_metadata(folder.join(LOCK)).is_ok_and(is_same) {
                let scratch = Self { folder, lock: Some(lock) };
                scratch.empty()?;
                return Ok(scratch);
            }
        }
    }

    /// A place in it.
    pub(super) fn at(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Removes all that lies in it but the lock.
    ///
    /// # Errors
    /// A server that still runs there; files of another user.
    pub(super) fn empty(&self) -> Result<()> {
        wait_for_remains(&self.at("data"))?;
        let failed = |source| Error::io(source, format!("cannot empty {}", self.folder.display()));
        for entry in fs::read_dir(&self.folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.file_name() == LOCK {
                continue;
            }
            let is_folder = entry.file_type().map_err(failed)?.is_dir();
            let removed = if is_folder { fs::remove_dir_all(entry.path()) } else { fs::remove_file(entry.path()) };
            removed.map_err(failed)?;
        }
        Ok(())
    }

    fn remove(&mut self) -> Result<()> {
        self.empty()?;
        let failed = |source| Error::io(source, format!("cannot remove {}", self.folder.display()));
        fs::remove_file(self.at(LOCK)).map_err(failed)?;
        // Another drill may have come meanwhile.
        match fs::remove_dir(&self.folder) {
            Err(error)
                if error.kind() != io::ErrorKind::DirectoryNotEmpty && error.kind() != io::ErrorKind::NotFound =>
            {
                Err(failed(error))
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            tracing::warn!(%error, "the directory of the drill stays; the next drill removes it");
        }
        drop(self.lock.take());
    }
}

/// The user of this process.
fn user() -> Result<u32> {
    fs::metadata("/proc/self").map(|own| own.uid()).map_err(|source| Error::io(source, "cannot look at /proc/self"))
}

/// Whether a directory is one that a drill of this user has made.
fn is_ours(folder: &Path) -> Result<()> {
    let failed = |source| Error::io(source, format!("cannot look at {}", folder.display()));
    let facts = fs::symlink_metadata(folder).map_err(failed)?;
    let own = user()?;
    // Before it has its lock it is empty.
    let is_known =
        || folder.join(LOCK).is_file() || fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none());
    if facts.is_dir() && facts.uid() == own && is_known() {
        return Ok(());
    }
    let message = format!("{} is there, and no drill of this user has made it", folder.display());
    Err(Error::new(Kind::Config, message).hint("look what it is; or name another directory: --scratch DIR"))
}

/// Waits until the server of a drill that was killed is gone: the system has told it to end.
fn wait_for_remains(data: &Path) -> Result<()> {
    let begun = Instant::now();
    loop {
        let text = fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
        let pid: Option<u32> = text.lines().next().and_then(|line| line.trim().parse().ok());
        let Some(pid) = pid.filter(|pid| *pid != std::process::id() && works_on(*pid, data)) else { return Ok(()) };
        if begun.elapsed() > REMAINS {
            let message = format!("a server still runs on {}: process {pid}", data.display());
            return Err(Error::new(Kind::Config, message).hint(format!("stop it: kill -QUIT {pid}")));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Whether a process is a server over a data directory: that is where it stands.
fn works_on(pid: u32, data: &Path) -> bool {
    let stands = fs::read_link(format!("/proc/{pid}/cwd"));
    stands.is_ok_and(|stands| stands == data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_that_was_killed_has_left_is_removed_and_nothing_stays() {
        let below = tempfile::tempdir().expect("a directory");
        let scratch = Scratch::make(below.path()).expect("made");
        fs::create_dir_all(scratch.at("data/base")).expect("made");
        fs::write(scratch.at("data/base/1"), "x").expect("written");
        std::os::unix::fs::symlink("/etc", scratch.at("data/link")).expect("linked");
        // Killed: the lock is let go, and nothing is removed.
        let mut killed = scratch;
        drop(killed.lock.take());
        std::mem::forget(killed);
        let next = Scratch::make(below.path()).expect("nobody holds it");
        assert!(!next.at("data").exists() && Path::new("/etc/passwd").exists());
        let error = Scratch::make(below.path()).expect_err("one runs");
        assert!(error.to_string().contains("another drill works in"), "{error}");
        drop(next);
        assert_eq!(fs::read_dir(below.path()).expect("a directory").count(), 0);
    }

    #[test]
    fn what_no_drill_has_made_is_left_alone() {
        let below = tempfile::tempdir().expect("a directory");
        let folder = below.path().join(NAME);
        fs::create_dir(&folder).expect("made");
        fs::write(folder.join("mine"), "x").expect("written");
        let error = Scratch::make(below.path()).expect_err("it is somebody's");
        assert!(error.exit_code() == 2 && folder.join("mine").exists(), "{error}");
        fs::rename(&folder, below.path().join("elsewhere")).expect("renamed");
        fs::write(below.path().join("elsewhere").join(LOCK), "").expect("written");
        std::os::unix::fs::symlink(below.path().join("elsewhere"), &folder).expect("linked");
        Scratch::make(below.path()).expect_err("a link is followed nowhere");
        assert!(below.path().join("elsewhere/mine").exists());
    }
}
