//! `restore_command = 'tidelog wal-fetch %f %p'`: one file for Postgres.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use super::foresight::look_at;
use super::gated;
use super::log::{Found, Log};
pub use super::wal_name::{Name, WalName};
use crate::error::{Error, Result};

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
    let mut unnamed = path.as_os_str().to_owned();
    unnamed.push(format!(".{}.tmp", std::process::id()));
    let unnamed = Path::new(&unnamed);
    match name {
        Name::History(timeline) => {
            let Some(history) = log.history(timeline).await? else { return Ok(Answer::Absent) };
            write(unnamed, path, |file| file.write_all(&history))?;
            Ok(Answer::Delivered)
        }
        Name::Wal(wal) if gated::is_delivered(log, wal, path)? => Ok(Answer::Absent),
        Name::Wal(wal) => match bring(log, wal, (unnamed, path), |found| found != Found::Absent).await? {
            Found::Whole | Found::Begun => Ok(Answer::Delivered),
            Found::Absent => Ok(Answer::Absent),
        },
        Name::Other => Ok(Answer::Absent),
    }
}

/// Brings a WAL file that Postgres may get, under another name until it is whole and durable; none but those that are `wanted`.
pub(super) async fn bring(
    log: &Log,
    wal: WalName,
    (unnamed, path): (&Path, &Path),
    wanted: impl Fn(Found) -> bool,
) -> Result<Found> {
    look_at(log, wal).await?;
    let size = u64::from(log.system().wal_segment_size);
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(unnamed)
        .map_err(|error| failed(error, unnamed, path))?;
    let found = log.file(wal.timeline(), wal.start(size)?, &mut file).await;
    let found = match found {
        Ok(found @ (Found::Whole | Found::Begun)) => gated::make_harmless(log, wal, &mut file).await.map(|()| found),
        found => found,
    };
    let found = found.inspect_err(|_| drop(std::fs::remove_file(unnamed)))?;
    if wanted(found) {
        // What is not archived yet is zeros.
        file.set_len(size).and_then(|()| named(&file, unnamed, path)).map_err(|error| failed(error, unnamed, path))?;
    } else {
        drop(std::fs::remove_file(unnamed));
    }
    Ok(found)
}

/// Writes a file under another name and gives it its own when it is whole and durable.
pub(super) fn write(unnamed: &Path, path: &Path, content: impl FnOnce(&mut File) -> std::io::Result<()>) -> Result<()> {
    let written = File::create(unnamed).and_then(|mut file| {
        content(&mut file)?;
        named(&file, unnamed, path)
    });
    written.map_err(|error| failed(error, unnamed, path))
}

fn named(file: &File, unnamed: &Path, path: &Path) -> std::io::Result<()> {
    // Postgres does it at once if we do not (`KeepFileRestoredFromArchive`, xlogarchive.c).
    file.sync_all()?;
    std::fs::rename(unnamed, path)
}

fn failed(error: std::io::Error, unnamed: &Path, path: &Path) -> Error {
    drop(std::fs::remove_file(unnamed));
    Error::io(error, format!("cannot write {}", path.display()))
}
