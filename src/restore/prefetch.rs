//! The files that Postgres asks for next, fetched in advance.
//!
//! ```text
//!   pg_wal/.tidelog/wanted                          what Postgres asked for last
//!                  /000000010000000000000007        fetched in advance, whole and durable; a rename delivers it
//!                  /000000010000000000000008.part   under way
//!                  /lock                            held by the process that fetches in advance
//!                  /hold                            what retention is told to keep
//!
//!   Postgres ─► wal-fetch ─► wanted, rename ─► Postgres replays …
//!                  └─ starts, where there is none ─► wal-fetch --ahead: follows `wanted`, up to PREFETCHED files before it
//! ```
//!
//! Postgres waits for each file, replays it, and asks for the next. One process goes along with it: it opens the archive
//! once and has the next files lying ready. It ends when the archive has no more whole files, when Postgres goes another
//! way, or when nobody has asked for a while, and takes away what was not asked for. Nothing is lost if it fails: the next
//! request does the work itself and tells why.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::sleep;

use super::log::{Found, Log};
use super::wal_fetch::{WalName, bring};
use crate::error::{Error, Result};

/// How many files are fetched in advance: at 16 MiB a file a few seconds of replay.
const PREFETCHED: usize = 8;

/// How many bytes of them, but at least one file.
const PREFETCHED_BYTES: u64 = PREFETCHED as u64 * (16 << 20);

/// How many of them are fetched at a time.
const AT_ONCE: usize = 3;

/// How often it is looked at what Postgres wants.
const LOOK: Duration = Duration::from_millis(10);

/// When nobody has asked for this long, nobody recovers any more.
const IDLE: Duration = Duration::from_secs(60);

/// How long a file that is under way is waited for.
const PATIENCE: Duration = Duration::from_secs(120);

/// The folder beside the file that Postgres wants.
pub(super) const FOLDER: &str = ".tidelog";
const WANTED: &str = "wanted";
const LOCK: &str = "lock";
/// What the recovery tells retention, see [`super::holding`].
pub(super) const HOLD: &str = "hold";
const UNDER_WAY: &str = "part";

/// The folder of one recovery.
#[derive(Debug, Clone)]
pub struct Prefetch {
    folder: PathBuf,
}

impl Prefetch {
    /// That of the recovery which wants a file at `path`.
    pub fn beside(path: &Path) -> Self {
        Self { folder: path.parent().unwrap_or(Path::new("")).join(FOLDER) }
    }

    /// Delivers a file that was fetched in advance, if it was; waits for it if it is under way.
    ///
    /// # Errors
    /// A file that is there and cannot be moved to `path`.
    pub fn deliver(&self, name: WalName, path: &Path) -> Result<bool> {
        let ready = self.ready(name);
        if let Err(error) = self.want(name) {
            // Then nothing is fetched in advance.
            tracing::debug!(%error, folder = %self.folder.display(), "it cannot be told what is wanted");
        }
        let begun = Instant::now();
        loop {
            // Looked at first: what was under way then is ready now, or has failed.
            let is_under_way = self.under_way(name).exists() && self.is_locked();
            match std::fs::rename(&ready, path) {
                Ok(()) => return Ok(true),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => {
                    return Err(Error::io(error, format!("cannot move {} to {}", ready.display(), path.display())));
                }
            }
            if !is_under_way || begun.elapsed() >= PATIENCE {
                return Ok(false);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Tells who goes along what is wanted now.
    fn want(&self, name: WalName) -> std::io::Result<()> {
        let asked = self.folder.join("asked");
        if !self.folder.exists() {
            std::fs::create_dir(&self.folder)?;
        }
        std::fs::write(&asked, name.to_string())?;
        std::fs::rename(asked, self.folder.join(WANTED))
    }

    /// Returns whether a process goes along.
    pub fn is_locked(&self) -> bool {
        let file = File::open(self.folder.join(LOCK));
        file.is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
    }

    /// Goes along with Postgres, which has got `name` by now, while the lock is held.
    pub async fn follow(&self, log: Arc<Log>, name: WalName) -> Result<()> {
        let size = u64::from(log.system().wal_segment_size);
        let mut window = Window::behind(self.wanted().unwrap_or(name), size);
        self.remove_but(&window);
        let mut jobs = JoinSet::new();
        let (mut is_over, mut asked) = (false, Instant::now());
        loop {
            if let Some(wanted) = self.wanted().filter(|wanted| *wanted != window.wanted) {
                if !window.moves_to(wanted) {
                    break;
                }
                asked = Instant::now();
            }
            while !is_over && jobs.len() < AT_ONCE && window.has_room() {
                jobs.spawn(self.clone().bring(Arc::clone(&log), window.next));
                window.next = window.next.next(size);
            }
            let is_used_up = jobs.is_empty() && !window.names().any(|name| self.ready(name).exists());
            if asked.elapsed() > IDLE || (is_over && is_used_up) || !self.folder.exists() {
                break;
            }
            tokio::select! {
                // Of trouble the request for that very file tells.
                Some(brought) = jobs.join_next() => is_over |= !matches!(brought, Ok(Ok(true))),
                () = sleep(LOOK) => {}
            }
        }
        jobs.shutdown().await;
        self.remove_but(&Window::behind(window.wanted, size));
        Ok(())
    }

    /// Brings one file; whether the archive has the whole of it.
    async fn bring(self, log: Arc<Log>, name: WalName) -> Result<bool> {
        let (under_way, ready) = (self.under_way(name), self.ready(name));
        let failed = |source| Error::io(source, format!("cannot make {}", under_way.display()));
        File::create(&under_way).map_err(failed)?;
        let brought = bring(&log, name, (&under_way, &ready), |found| found == Found::Whole).await;
        if brought.is_err() {
            remove(&under_way);
        }
        Ok(brought? == Found::Whole)
    }

    fn ready(&self, name: WalName) -> PathBuf {
        self.folder.join(name.to_string())
    }

    fn under_way(&self, name: WalName) -> PathBuf {
        self.ready(name).with_extension(UNDER_WAY)
    }

    fn wanted(&self) -> Option<WalName> {
        std::fs::read_to_string(self.folder.join(WANTED)).ok()?.parse().ok()
    }

    /// Lets nobody else go along; none if somebody does.
    pub fn lock(&self) -> Result<Option<File>> {
        let path = self.folder.join(LOCK);
        let file = File::create(&path).map_err(|error| Error::io(error, format!("cannot make {}", path.display())))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(Error::io(error, format!("cannot lock {}", path.display()))),
        }
    }

    /// Removes all files of WAL but those of the window: of a process that was killed, of another timeline.
    fn remove_but(&self, window: &Window) {
        let Ok(entries) = std::fs::read_dir(&self.folder) else { return };
        let kept: Vec<String> = window.names().map(|name| name.to_string()).collect();
        for entry in entries.flatten() {
            let name = entry.file_name();
            if name != LOCK && name != WANTED && name != HOLD && !kept.iter().any(|kept| name == **kept) {
                remove(&entry.path());
            }
        }
    }
}

/// What is fetched in advance: the files behind `wanted` and before `next`.
struct Window {
    wanted: WalName,
    next: WalName,
    size: u64,
}

impl Window {
    /// An empty one.
    fn behind(wanted: WalName, size: u64) -> Self {
        Self { wanted, next: wanted.next(size), size }
    }

    fn names(&self) -> impl Iterator<Item = WalName> {
        let following = |name: &WalName| Some(name.next(self.size));
        std::iter::successors(Some(self.wanted.next(self.size)), following).take_while(|name| *name != self.next)
    }

    fn has_room(&self) -> bool {
        let most = usize::try_from(PREFETCHED_BYTES / self.size.max(1)).unwrap_or(PREFETCHED).clamp(1, PREFETCHED);
        self.names().take(most).count() < most
    }

    /// Postgres wants another file; false if it is none of those that come next.
    fn moves_to(&mut self, wanted: WalName) -> bool {
        if !self.names().any(|name| name == wanted) {
            // Postgres was faster.
            let mut later = std::iter::successors(Some(self.next), |name| Some(name.next(self.size))).take(PREFETCHED);
            if !later.any(|name| name == wanted) {
                return false;
            }
            self.next = wanted.next(self.size);
        }
        self.wanted = wanted;
        true
    }
}

fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::debug!(file = %path.display(), %error, "a file that was fetched in advance cannot be removed");
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::super::wal_fetch::write;
    use super::*;

    const SIZE: u64 = 16 << 20;

    fn wal(file: u32) -> WalName {
        format!("0000000100000000{file:08X}").parse().expect("a name")
    }

    #[test]
    fn the_window_goes_along_with_what_is_wanted() {
        let mut window = Window::behind(wal(3), SIZE);
        assert!(window.has_room() && window.names().next().is_none());
        window.next = wal(12);
        assert!(!window.has_room() && window.names().eq((4..12).map(wal)));
        assert!(window.moves_to(wal(5)) && window.has_room() && window.names().eq((6..12).map(wal)));
        assert!(window.moves_to(wal(12)) && window.next == wal(13) && window.names().next().is_none());
        assert!(window.moves_to(wal(14)) && window.next == wal(15) && window.names().next().is_none());
        for elsewhere in [wal(14), wal(3), wal(23), "00000002000000000000000F".parse().expect("a name")] {
            assert!(!window.moves_to(elsewhere), "{elsewhere}");
        }
    }

    #[test]
    fn of_long_files_fewer_are_fetched() {
        for (size, most) in [(1 << 20, 8), (16 << 20, 8), (64 << 20, 2), (1 << 30, 1)] {
            let mut window = Window::behind("000000010000000000000000".parse().expect("a name"), size);
            let mut fetched = 0;
            while window.has_room() {
                window.next = window.next.next(size);
                fetched += 1;
            }
            assert_eq!(fetched, most, "of {size} bytes");
        }
    }

    #[test]
    fn what_is_ready_is_moved_into_place_and_what_is_under_way_is_waited_for() {
        let folder = tempfile::tempdir().expect("a directory");
        let path = folder.path().join("RECOVERYXLOG");
        let prefetch = Prefetch::beside(&path);
        assert!(!prefetch.deliver(wal(3), &path).expect("nothing is there") && !prefetch.is_locked());
        write(&prefetch.under_way(wal(3)), &prefetch.ready(wal(3)), |file| file.write_all(b"wal")).expect("written");
        assert!(prefetch.deliver(wal(3), &path).expect("it is there"));
        assert_eq!((std::fs::read(&path).expect("delivered"), prefetch.wanted()), (b"wal".to_vec(), Some(wal(3))));
        // A process that was killed has left this.
        std::fs::write(prefetch.under_way(wal(4)), b"").expect("written");
        assert!(!prefetch.deliver(wal(4), &path).expect("it does not come"));
        let held = prefetch.lock().expect("locked").expect("it was free");
        assert!(prefetch.is_locked() && prefetch.lock().expect("no error").is_none());
        assert!(!prefetch.deliver(wal(5), &path).expect("it is not under way"));
        std::thread::scope(|scope| {
            let asked = scope.spawn(|| prefetch.deliver(wal(4), &path).expect("it comes"));
            while prefetch.wanted() != Some(wal(4)) {
                std::thread::yield_now();
            }
            write(&prefetch.under_way(wal(4)), &prefetch.ready(wal(4)), |file| file.write_all(b"next"))
                .expect("written");
            assert!(asked.join().expect("no panic"));
        });
        assert_eq!(std::fs::read(&path).expect("delivered"), b"next");
        drop(held);
        write(&prefetch.under_way(wal(9)), &prefetch.ready(wal(9)), |file| file.write_all(b"old")).expect("written");
        write(&prefetch.under_way(wal(6)), &prefetch.ready(wal(6)), |file| file.write_all(b"kept")).expect("written");
        prefetch.remove_but(&Window { wanted: wal(5), next: wal(8), size: SIZE });
        assert!(!prefetch.ready(wal(9)).exists() && prefetch.ready(wal(6)).exists() && prefetch.wanted().is_some());
    }
}
