//! A data directory out of a base backup, ready to start.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;

pub use super::settings::{Action, LogSource, shell_word};
pub use super::tablespaces::Places;

use super::foresight::Foreseen;
use super::inherited::Inherited;
use super::manifest::{self, Files};
use super::plan::Plan;
use super::tablespaces::write_map;
use super::unpack::{Written, sync_directories, unpack};
use super::{limits, settings};
use crate::error::{Error, Kind, Result};
use crate::manifest::backups::{Archive, Backup, Part};
use crate::store::Store;

/// Where and how to restore.
#[derive(Debug, Clone)]
pub struct Destination {
    /// The data directory: missing or empty.
    pub data: PathBuf,
    /// Where tablespaces go.
    pub tablespaces: Places,
    /// What the log will do.
    pub foreseen: Foreseen,
    /// What Postgres does at the target.
    pub action: Action,
    /// How it gets its log.
    pub fetching: LogSource,
}

/// What came of a restore, besides the data directory.
#[derive(Debug, Default)]
pub struct Restored {
    /// The places of tablespaces.
    pub tablespaces: Vec<PathBuf>,
    /// What it keeps of the server that it comes from, and an operator should know of.
    pub notes: Vec<String>,
}

/// Restores what `plan` says. `done` counts bytes of archives, of the plan's [`bytes`](crate::manifest::backups::Backup::bytes).
///
/// # Errors
/// A directory that is not empty, a part or a file that is missing or damaged, a full disk.
pub async fn restore(store: &Store, plan: &Plan, into: &Destination, done: &Arc<AtomicU64>) -> Result<Restored> {
    let restored = unpack_and_set_up(store, plan, into, done).await;
    restored.map_err(|error| match error.kind() {
        Kind::Full => error.hint("make room on that disk, empty the directory, and begin again"),
        _ => error,
    })
}

async fn unpack_and_set_up(store: &Store, plan: &Plan, into: &Destination, done: &Arc<AtomicU64>) -> Result<Restored> {
    let backup = &plan.backup;
    must_be_empty(&into.data)?;
    let places = into.tablespaces.of(&backup.archives, &into.data)?;
    let later = into.tablespaces.made_later(&into.foreseen, &into.data)?;
    for place in places.values().chain(&later) {
        must_be_empty(place)?;
    }
    let (manifest, files) = manifest_of(store, backup).await?;
    make_private(&into.data)?;
    let jobs = backup.archives.iter().map(|archive| {
        let place = archive.tablespace.as_ref().and_then(|tablespace| places.get(&tablespace.oid));
        let target = place.unwrap_or(&into.data);
        let (files, done) = (&files, done);
        async move {
            make_private(target)?;
            unpack(store, archive, (Some(target.clone()), prefix(archive)), files, done).await
        }
    });
    let written = futures::future::try_join_all(jobs).await?;
    all_there(&files, &written)?;
    later.iter().try_for_each(|place| make_private(place))?;
    write_map(&into.data, &places)?;
    copy_manifest(&backup.manifest, &manifest, &into.data.join("backup_manifest"))?;
    let notes = set_up(plan, into)?;
    for root in places.values().chain([&into.data]) {
        sync_directories(root)?;
    }
    Ok(Restored { tablespaces: places.into_values().chain(later).collect(), notes })
}

/// Tells Postgres what it is to do; gives what it keeps of the server that it comes from.
fn set_up(plan: &Plan, into: &Destination) -> Result<Vec<String>> {
    if !into.data.join("backup_label").exists() {
        // Postgres would take the control file's word for where to begin, and open with damage.
        return Err(Error::new(Kind::Corrupt, "the base backup has no backup_label")
            .hint("use another base backup: --backup NAME"));
    }
    let inherited = Inherited::read(&into.data);
    let needed = limits::of_control_file(&into.data)?.max(into.foreseen.limits);
    let raised = limits::to_raise(needed, &inherited);
    settings::write(&into.data, plan, into.action, &into.fetching, &raised)?;
    Ok(inherited.notes())
}

/// Reads a backup through and checks every file against the server's manifest, without a byte on the disk.
///
/// # Errors
/// [`Kind::Corrupt`] and [`Kind::NotFound`] for what a restore would fail at.
pub async fn check(store: &Store, backup: &Backup) -> Result<()> {
    let (manifest, files) = manifest_of(store, backup).await?;
    drop(manifest);
    let mut written = Vec::new();
    for archive in &backup.archives {
        written.push(unpack(store, archive, (None, prefix(archive)), &files, &Arc::default()).await?);
    }
    all_there(&files, &written)
}

/// The server's manifest, still compressed, and the files that it names. Its text may be longer than memory is large.
async fn manifest_of(store: &Store, backup: &Backup) -> Result<(Bytes, Arc<Files>)> {
    let stored = backup.manifest.read(store).await?;
    // Each of its files has a header in an archive.
    let unpacked = backup.archives.iter().flat_map(|archive| &archive.parts);
    let most = unpacked.fold(0, |sum: u64, part| sum.saturating_add(part.bytes)) / TAR_HEADER;
    let files = manifest::parse(backup.manifest.reader(&stored)?, most)?;
    Ok((stored, Arc::new(files)))
}

/// What a file takes of a tar file at the least.
const TAR_HEADER: u64 = 512;

/// Writes the server's manifest into the data directory, as the server had sent it.
fn copy_manifest(part: &Part, stored: &[u8], to: &Path) -> Result<()> {
    let failed = |source| Error::io(source, format!("cannot write {}", to.display()));
    let mut file = fs::File::create(to).map_err(failed)?;
    let copied = std::io::copy(&mut part.reader(stored)?, &mut file).map_err(failed)?;
    part.is_length(copied)
}

/// What stands before an archive's files in the manifest.
fn prefix(archive: &Archive) -> Vec<u8> {
    archive
        .tablespace
        .as_ref()
        .map(|tablespace| format!("pg_tblspc/{}/", tablespace.oid).into_bytes())
        .unwrap_or_default()
}

/// Refuses a directory in which something is.
///
/// # Errors
/// [`Kind::Config`] for one that is not empty.
pub fn must_be_empty(folder: &Path) -> Result<()> {
    let failed = |error| Error::io(error, format!("cannot look into {}", folder.display()));
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(failed)?,
    };
    let names = entries.take(2).map(|entry| Ok(entry?.file_name())).collect::<std::io::Result<Vec<_>>>();
    let refused = |what: &str| Error::new(Kind::Config, format!("{} {what}", folder.display()));
    match &names.map_err(failed)?[..] {
        [] => Ok(()),
        // Postgres wants a directory of its own, too (`warn_on_mount_point`, initdb.c).
        [name] if name == "lost+found" => {
            let below = folder.join("data");
            Err(refused("is the root of a file system: it holds lost+found")
                .hint(format!("name a directory below it: {}", below.display())))
        }
        _ => Err(refused("is not empty").hint(
            "nothing is written over: name an empty directory, or one that does not exist (tablespaces: --tablespace OLD=NEW)",
        )),
    }
}

/// Postgres refuses a data directory that others may read.
fn make_private(folder: &Path) -> Result<()> {
    let made = fs::create_dir_all(folder).and_then(|()| fs::set_permissions(folder, fs::Permissions::from_mode(0o700)));
    made.map_err(|source| Error::io(source, format!("cannot make {}", folder.display())))
}

/// Every file of the manifest must have come out of an archive.
fn all_there(files: &Files, written: &[Written]) -> Result<()> {
    let is_there = |name: &Vec<u8>| written.iter().any(|archive| archive.contains(name));
    match files.keys().find(|name| !is_there(name)) {
        None => Ok(()),
        Some(missing) => {
            let message = format!(
                "the base backup lacks {}, which is in the server's manifest",
                String::from_utf8_lossy(missing)
            );
            Err(Error::new(Kind::Corrupt, message).hint("use another base backup: --backup NAME"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_written_over() {
        let folder = tempfile::tempdir().expect("a directory");
        must_be_empty(folder.path()).expect("it is empty");
        must_be_empty(&folder.path().join("none")).expect("it is missing");
        fs::write(folder.path().join("x"), "").expect("a file");
        assert_eq!(must_be_empty(folder.path()).expect_err("it is not").kind(), Kind::Config);
    }
}
