//! A data directory out of a base backup, ready to start.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;

pub use super::settings::{Action, LogSource, shell_word};
pub use super::tablespaces::Places;

use futures::StreamExt;

use super::existing::{self, Ground, Restoring, Surplus};
use super::foresight::Foreseen;
use super::inherited::Inherited;
use super::manifest::{self, Files};
use super::patience::{PATIENCE, patiently};
use super::plan::Plan;
use super::runs::{Placed, placed};
use super::tablespaces::write_map;
use super::unpack::{Unpacking, Written, sync_directories};
use super::{limits, settings};
use crate::error::{Error, Kind, Result, ResultExt};
use crate::manifest::backups::{Archive, Backup, Part};
use crate::store::Store;
use crate::stream::total;

/// Where and how to restore.
#[derive(Debug, Clone)]
pub struct Destination {
    /// The data directory: missing, empty, or of a restore that was not finished.
    pub data: PathBuf,
    /// Whether it may be a data directory, of which what is whole is kept.
    pub is_delta: bool,
    /// How many chunks of archives are read and unpacked at a time.
    pub jobs: usize,
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
    /// How many bytes of files were there and whole.
    pub kept: u64,
    /// How many files were removed, for the backup does not have them.
    pub removed: u64,
    /// How many bytes of objects were read.
    pub fetched: u64,
}

/// Restores what `plan` says. `done` counts bytes of archives, of the plan's [`bytes`](crate::manifest::backups::Backup::bytes).
///
/// # Errors
/// A directory that must not be written over, a part or a file that is missing or damaged, a full disk.
pub async fn restore(store: &Store, plan: &Plan, into: &Destination, done: &Arc<AtomicU64>) -> Result<Restored> {
    let restored = unpack_and_set_up(store, plan, into, done).await;
    restored.map_err(|error| match error.kind() {
        Kind::Full => error.hint("make room on that disk, and run the same command again: what is whole is kept"),
        Kind::Unavailable if error.hint_text().is_none() => {
            error.hint("run the same command again: what is whole is kept")
        }
        _ => error,
    })
}

async fn unpack_and_set_up(store: &Store, plan: &Plan, into: &Destination, done: &Arc<AtomicU64>) -> Result<Restored> {
    let backup = &plan.backup;
    let ground = Ground::look(&into.data, into.is_delta, backup.system.system_id)?;
    let places = into.tablespaces.of(&backup.archives, &into.data)?;
    let later = into.tablespaces.made_later(&into.foreseen, &into.data)?;
    places.values().chain(&later).try_for_each(|place| ground.accepts(place))?;
    let (manifest, files) = patiently(PATIENCE, || manifest_of(store, backup)).await?;
    make_private(&into.data)?;
    places.values().chain(&later).try_for_each(|place| make_private(place))?;
    let restoring = Restoring::begin(&into.data)?;
    let surplus = Surplus::find(&into.data, &places, backup, &files)?;
    restoring.mark(&ground, places.values().chain(&later).cloned())?;
    let removed = surplus.remove(&into.data)?;
    let place_of = |archive: &Archive| {
        let place = archive.tablespace.as_ref().and_then(|tablespace| places.get(&tablespace.oid));
        Some(place.unwrap_or(&into.data).clone())
    };
    let placed = placed(&backup.archives, &files, place_of);
    let whole = if ground.has_files { whole_of(&placed, &files, into.jobs).await? } else { BTreeSet::new() };
    let kept = total(whole.iter().filter_map(|name| files.get(name)).map(|file| file.size));
    let unpacking = Unpacking::new(store, &files, whole, done);
    unpack(&unpacking, &placed, &files, into.jobs).await?;
    for folder in placed.iter().flat_map(Placed::empty).filter(|folder| !folder.exists()) {
        make_private(&folder)?;
    }
    write_map(&into.data, &places)?;
    copy_manifest(&backup.manifest, &manifest, &into.data.join("backup_manifest"))?;
    let notes = set_up(plan, into)?;
    for root in places.values().chain([&into.data]) {
        sync_directories(root)?;
    }
    restoring.finish()?;
    let tablespaces = places.into_values().chain(later).collect();
    Ok(Restored { tablespaces, notes, kept, removed, fetched: unpacking.fetched() })
}

/// Which files are there already.
async fn whole_of(placed: &[Placed<'_>], files: &Arc<Files>, readers: usize) -> Result<Written> {
    let look = |(root, prefix, names): (PathBuf, Vec<u8>, Vec<Vec<u8>>)| {
        let files = Arc::clone(files);
        tokio::task::spawn_blocking(move || existing::whole(&root, &prefix, &names, &files))
    };
    let lists = placed.iter().flat_map(Placed::lists);
    let mut found = futures::stream::iter(lists).map(look).buffer_unordered(readers.max(1));
    let mut whole = Written::new();
    while let Some(some) = found.next().await {
        whole.extend(some.or_err(Kind::Internal, || "comparing files broke off".to_owned())?);
    }
    Ok(whole)
}

/// Unpacks what is not there. Where the manifest and an archive do not have the files in the same order, all of it.
async fn unpack(unpacking: &Unpacking, placed: &[Placed<'_>], files: &Files, readers: usize) -> Result<()> {
    let chunks = |all| placed.iter().flat_map(|one| one.chunks(unpacking.whole(), readers, all)).collect();
    let written = unpacking.all(chunks(false), readers).await?;
    let is_there = |name: &Vec<u8>, written: &Written| unpacking.whole().contains(name) || written.contains(name);
    if files.keys().all(|name| is_there(name, &written)) {
        return Ok(());
    }
    let written = unpacking.all(chunks(true), readers).await?;
    all_there(files, |name| is_there(name, &written))
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
    let placed = placed(&backup.archives, &files, |_| None);
    let unpacking = Unpacking::new(store, &files, Written::new(), &Arc::default());
    let chunks = placed.iter().flat_map(|one| one.chunks(unpacking.whole(), 1, true)).collect();
    let written = unpacking.all(chunks, 1).await?;
    all_there(&files, |name| written.contains(name))
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

/// Postgres refuses a data directory that others may read.
fn make_private(folder: &Path) -> Result<()> {
    let made = fs::create_dir_all(folder).and_then(|()| fs::set_permissions(folder, fs::Permissions::from_mode(0o700)));
    made.map_err(|source| Error::io(source, format!("cannot make {}", folder.display())))
}

/// Every file of the manifest must be there.
fn all_there(files: &Files, is_there: impl Fn(&Vec<u8>) -> bool) -> Result<()> {
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
