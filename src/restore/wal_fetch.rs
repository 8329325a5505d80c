//! `restore_command = 'tidelog wal-fetch %f %p'`: one file for Postgres, and the next ones in advance.
//!
//! ```text
//!   pg_wal/.tidelog/000000010000000000000007   fetched in advance, whole and checked; a rename delivers it
//!                  /lock                       held by the process that fetches in advance
//! ```
//!
//! Postgres waits for each file, replays it, and asks for the next. So whoever delivers one starts a process that gets
//! the next ones ready meanwhile; nothing is lost if it fails, for then the next request does the work and tells why.

use std::fs::{File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::log::{Found, Log};
use crate::error::{Error, Kind, Result, ResultExt};
use crate::stream::Lsn;

/// How many files are fetched in advance: at 16 MiB a file a few seconds of replay.
pub const AHEAD: u32 = 8;

/// How many of them are fetched at a time.
const AT_ONCE: usize = 3;

/// The folder of what is fetched in advance, beside the file that Postgres wants.
const FOLDER: &str = ".tidelog";

/// What Postgres asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Name {
    /// A WAL file.
    Wal(WalName),
    /// A timeline's history.
    History(u32),
    /// A backup's history file or the like, which the archive never has.
    Other,
}

/// The name of a WAL file: the timeline, and two numbers that depend on the size of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalName {
    /// The timeline.
    pub timeline: u32,
    log: u32,
    file: u32,
}

impl WalName {
    /// The position of the file's first byte (`XLogFromFileName`, xlog_internal.h).
    ///
    /// # Errors
    /// [`Kind::Config`] for a name that a server with files of that size never asks for.
    pub fn start(self, size: u64) -> Result<Lsn> {
        if size == 0 || u64::from(self.file) >= (1 << 32) / size {
            let message = format!("{self} is no WAL file of a server whose files have {size} bytes");
            return Err(Error::new(Kind::Config, message).hint("the archive is that of another server"));
        }
        Ok(Lsn((u64::from(self.log) << 32) + u64::from(self.file) * size))
    }

    /// The file after it.
    #[must_use]
    pub fn next(self, size: u64) -> Self {
        let last = ((1u64 << 32) / size.max(1)).saturating_sub(1);
        if u64::from(self.file) < last {
            Self { file: self.file + 1, ..self }
        } else {
            Self { log: self.log.wrapping_add(1), file: 0, ..self }
        }
    }
}

impl std::fmt::Display for WalName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:08X}{:08X}{:08X}", self.timeline, self.log, self.file)
    }
}

impl std::str::FromStr for Name {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let hexadecimal = |text: &str| text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'A'..=b'F'));
        let number = |text: &str| u32::from_str_radix(text, 16).ok();
        let stem = name.split_once('.').map_or(name, |(stem, _)| stem);
        let known = || match (stem.len(), name.len()) {
            _ if !hexadecimal(stem) => None,
            (24, 24) => Some(Self::Wal(WalName {
                timeline: number(&name[..8])?,
                log: number(&name[8..16])?,
                file: number(&name[16..])?,
            })),
            (8, 16) if name.ends_with(".history") => Some(Self::History(number(stem)?)),
            (24, _) => Some(Self::Other),
            _ => None,
        };
        known().ok_or_else(|| {
            Error::new(Kind::Config, format!("{name:?} is not a file of a write-ahead log"))
                .hint("use it as restore_command = 'tidelog wal-fetch %f %p'")
        })
    }
}

/// What came of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The file is where Postgres wants it, and is what it should be.
    Delivered,
    /// The archive proves that there is no such file.
    Absent,
}

/// Brings the file `name` to `path`.
///
/// # Errors
/// Whatever keeps it from knowing: Postgres has to stop then.
pub async fn fetch(log: &Log, name: Name, path: &Path) -> Result<Answer> {
    let bytes = match name {
        Name::History(timeline) => log.history(timeline).await?.map(|history| history.to_vec()),
        Name::Wal(wal) => match log.file(wal.timeline, wal.start(log.system().wal_segment_size.into())?).await? {
            Found::Whole(bytes) | Found::Begun(bytes) => Some(bytes),
            Found::Absent => None,
        },
        Name::Other => None,
    };
    let Some(bytes) = bytes else { return Ok(Answer::Absent) };
    write(path, &bytes)?;
    Ok(Answer::Delivered)
}

/// Delivers a file that was fetched in advance, if it was; waits for it if it is being fetched.
pub fn deliver_prefetched(name: WalName, path: &Path, patience: Duration) -> Result<bool> {
    let folder = folder_of(path);
    let ready = folder.join(name.to_string());
    let begun = Instant::now();
    loop {
        // The lock is looked at first: whoever held it may have finished the file before giving it back.
        let is_at_work = is_locked(&folder);
        match std::fs::rename(&ready, path) {
            Ok(()) => return Ok(true),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(Error::io(error, format!("cannot move {} to {}", ready.display(), path.display())));
            }
        }
        if !is_at_work || begun.elapsed() >= patience {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether files should be fetched in advance now: half of them are used up, and nobody is at it.
pub fn wants_more(name: WalName, path: &Path, size: u64) -> bool {
    let folder = folder_of(path);
    let mut next = name;
    let ready = (0..AHEAD).filter(|_| {
        next = next.next(size);
        folder.join(next.to_string()).exists()
    });
    ready.count() <= AHEAD as usize / 2 && !is_locked(&folder)
}

/// Fetches the files after `name`, as far as they are whole, into the folder beside `path`.
pub async fn fetch_ahead(log: &Log, name: WalName, path: &Path) -> Result<()> {
    use futures::StreamExt as _;
    let folder = folder_of(path);
    std::fs::create_dir_all(&folder).map_err(|error| Error::io(error, format!("cannot make {}", folder.display())))?;
    let Some(_lock) = lock(&folder)? else { return Ok(()) };
    let size = u64::from(log.system().wal_segment_size);
    let mut wanted = Vec::new();
    let mut next = name;
    for _ in 0..AHEAD {
        next = next.next(size);
        wanted.push(next);
    }
    remove_others(&folder, &wanted);
    wanted.retain(|name| !folder.join(name.to_string()).exists());
    let found = futures::stream::iter(wanted).map(|name| async move {
        let found = log.file(name.timeline, name.start(size)?).await?;
        Ok::<_, Error>((name, found))
    });
    let mut found = found.buffered(AT_ONCE);
    // The first that is not whole is the end; of trouble the request for that very file tells.
    while let Some(Ok((name, Found::Whole(bytes)))) = found.next().await {
        write(&folder.join(name.to_string()), &bytes)?;
    }
    Ok(())
}

fn folder_of(path: &Path) -> PathBuf {
    path.parent().unwrap_or(Path::new("")).join(FOLDER)
}

fn lock_file(folder: &Path) -> PathBuf {
    folder.join("lock")
}

fn is_locked(folder: &Path) -> bool {
    File::open(lock_file(folder)).is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
}

fn lock(folder: &Path) -> Result<Option<File>> {
    let path = lock_file(folder);
    let file = File::create(&path).map_err(|error| Error::io(error, format!("cannot make {}", path.display())))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(Error::io(error, format!("cannot lock {}", path.display()))),
    }
}

/// Removes what was fetched in advance and not asked for: a change of timeline, an end of recovery.
fn remove_others(folder: &Path, wanted: &[WalName]) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let is_wanted = wanted.iter().any(|wanted| *name == *wanted.to_string()) || name == "lock";
        if !is_wanted && let Err(error) = std::fs::remove_file(entry.path()) {
            tracing::debug!(file = %entry.path().display(), %error, "an old file cannot be removed");
        }
    }
}

/// Writes a file under another name and gives it its own when it is whole and durable.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut unnamed = path.as_os_str().to_owned();
    unnamed.push(format!(".{}.tmp", std::process::id()));
    let unnamed = PathBuf::from(unnamed);
    let written = File::create(&unnamed).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&unnamed, path)
    });
    written.map_err(|error| {
        drop(std::fs::remove_file(&unnamed));
        Error::io(error, format!("cannot write {}", path.display()))
    })
}

/// The size of a delivered WAL file, which is that of all of them.
pub fn size_of(path: &Path) -> Result<u64> {
    let facts = std::fs::metadata(path).or_err(Kind::Internal, || format!("cannot look at {}", path.display()))?;
    Ok(facts.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 16 << 20;

    fn wal(name: &str) -> WalName {
        match name.parse().expect("a name") {
            Name::Wal(wal) => wal,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn names_are_what_postgres_asks_for() {
        let name = wal("00000002000000A1000000FE");
        assert_eq!(name.start(SIZE).expect("a position"), Lsn(0xA1_FE00_0000));
        assert_eq!(name.next(SIZE).to_string(), "00000002000000A1000000FF");
        assert_eq!(name.next(SIZE).next(SIZE).to_string(), "00000002000000A200000000");
        assert_eq!(wal("000000010000000000000003").next(1 << 30).to_string(), "000000010000000100000000");
        assert_eq!(name.start(64 << 20).expect_err("of another size").kind(), Kind::Config);
        assert_eq!("00000003.history".parse::<Name>().expect("a name"), Name::History(3));
        for other in ["000000010000000000000002.00000028.backup", "000000010000000000000002.partial"] {
            assert_eq!(other.parse::<Name>().expect("a name"), Name::Other, "{other}");
        }
        for wrong in ["", "x", "00000003", "%f", "00000001000000000000000g", "../00000003.history"] {
            assert!(wrong.parse::<Name>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_was_fetched_in_advance_is_moved_into_place() {
        let folder = tempfile::tempdir().expect("a directory");
        let path = folder.path().join("RECOVERYXLOG");
        let name = wal("000000010000000000000003");
        assert!(!deliver_prefetched(name, &path, Duration::from_secs(9)).expect("nothing is there"));
        assert!(wants_more(name, &path, SIZE));
        let ahead = folder_of(&path);
        std::fs::create_dir(&ahead).expect("a directory");
        write(&ahead.join(name.to_string()), b"wal").expect("written");
        assert!(deliver_prefetched(name, &path, Duration::ZERO).expect("it is there"));
        assert_eq!(std::fs::read(&path).expect("delivered"), b"wal");
        let held = lock(&ahead).expect("locked").expect("it was free");
        assert!(!wants_more(name, &path, SIZE) && lock(&ahead).expect("no error").is_none());
        let next = name.next(SIZE);
        let late = ahead.join(next.to_string());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                write(&late, b"next").expect("written");
                drop(held);
            });
            assert!(deliver_prefetched(next, &path, Duration::from_secs(60)).expect("it is waited for"));
        });
        assert_eq!(std::fs::read(&path).expect("delivered"), b"next");
        write(&ahead.join(name.to_string()), b"old").expect("written");
        remove_others(&ahead, &[next]);
        assert!(!ahead.join(name.to_string()).exists() && lock_file(&ahead).exists());
    }
}
