//! A data directory out of a base backup, ready to start.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;

pub use super::settings::{Action, LogSource};
pub use super::tablespaces::Places;

use futures::StreamExt;

use super::combine::{Combiner, Workshop};
use super::existing::{self, Expirable, Ground, Restoring};
use super::foresight::Foreseen;
use super::inherited::Inherited;
use super::manifest::{self, Files};
use super::patience::{PATIENCE, patiently};
use super::plan::Plan;
use super::runs::{Placed, placed};
use super::tablespaces::{has_in_place, within, write_map};
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
    /// What combines backups, where one is incremental.
    pub combiner: Option<Combiner>,
    /// What the log will do.
    pub foreseen: Foreseen,
    /// What Postgres does at the target.
    pub action: Action,
    /// How it gets its log.
    pub fetching: LogSource,
}

impl Destination {
    fn combiner(&self) -> Result<&Combiner> {
        self.combiner.as_ref().ok_or_else(|| Error::new(Kind::Internal, "nothing was found that combines backups"))
    }
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

/// Restores what `plan` says. `done` counts bytes of archives, of the plan's [`bytes`](Plan::bytes).
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
    let workshop = Workshop::new(&into.data, &places);
    let own = Member::read(store, backup, (into.data.clone(), places.clone())).await?;
    make_private(&into.data)?;
    places.values().chain(&later).try_for_each(|place| make_private(place))?;
    let restoring = Restoring::begin(&into.data)?;
    let mark = || restoring.mark(&ground, places.values().chain(&later).cloned());
    let bringing = Bringing { store, jobs: into.jobs, done };
    let mut restored = if plan.parents.is_empty() {
        if ground.has_files {
            // Of another backup, into which the restore that was interrupted went.
            workshop.finish()?;
        }
        bringing.bring(own, ground.has_files, mark).await?
    } else {
        mark()?;
        bringing.combine(plan, &workshop, into.combiner()?).await?
    };
    write_map(&into.data, &places)?;
    restored.notes.extend(set_up(plan, into)?);
    workshop.finish()?;
    for root in places.values().chain([&into.data]) {
        sync_directories(root)?;
    }
    restoring.finish()?;
    restored.tablespaces = places.into_values().chain(later).collect();
    Ok(restored)
}

/// A backup that is to be unpacked, and where to.
struct Member<'a> {
    backup: &'a Backup,
    /// The server's manifest, still compressed, and the files that it names.
    manifest: Bytes,
    files: Arc<Files>,
    data: PathBuf,
    places: BTreeMap<u32, PathBuf>,
}

impl<'a> Member<'a> {
    async fn read(
        store: &Store,
        backup: &'a Backup,
        (data, places): (PathBuf, BTreeMap<u32, PathBuf>),
    ) -> Result<Self> {
        let (manifest, files) = patiently(PATIENCE, || manifest_of(store, backup)).await?;
        Ok(Self { backup, manifest, files, data, places })
    }
}

/// How backups are brought from the store.
struct Bringing<'a> {
    store: &'a Store,
    jobs: usize,
    done: &'a Arc<AtomicU64>,
}

impl Bringing<'_> {
    /// Unpacks a backup into directories in which something may lie. `mark` is called when nothing is left to refuse.
    async fn bring(&self, member: Member<'_>, has_files: bool, mark: impl FnOnce() -> Result<()>) -> Result<Restored> {
        let Member { backup, manifest, files, data, places } = member;
        let expirable = Expirable::find(&data, &places, backup, &files)?;
        mark()?;
        let removed = expirable.remove(&data)?;
        let place_of = |archive: &Archive| {
            let oid = archive.tablespace.as_ref().map(|tablespace| tablespace.oid);
            let place = oid.map(|oid| places.get(&oid).cloned().unwrap_or_else(|| within(&data, oid)));
            Some(place.unwrap_or_else(|| data.clone()))
        };
        let placed = placed(&backup.archives, &files, place_of);
        let whole = if has_files { whole_of(&placed, &files, self.jobs).await? } else { BTreeSet::new() };
        let kept = total(whole.iter().filter_map(|name| files.get(name)).map(|file| file.size));
        let unpacking = Unpacking::new(self.store, &files, whole, self.done);
        unpack(&unpacking, &placed, &files, self.jobs).await?;
        for folder in placed.iter().flat_map(Placed::empty).filter(|folder| !folder.exists()) {
            make_private(&folder)?;
        }
        copy_manifest(&backup.manifest, &manifest, &data.join("backup_manifest"))?;
        Ok(Restored { kept, removed, fetched: unpacking.fetched(), ..Restored::default() })
    }

    /// Unpacks an incremental backup and all that it builds on, and makes one of them. What an earlier attempt has unpacked is kept.
    async fn combine(&self, plan: &Plan, workshop: &Workshop<'_>, combiner: &Combiner) -> Result<Restored> {
        workshop.clear(plan.backup.system.server_version)?;
        let mut restored = Restored::default();
        for backup in plan.backups() {
            let (data, places) = workshop.member(backup);
            let has_files = data.exists();
            make_private(&data)?;
            places.values().try_for_each(|place| make_private(place))?;
            let member = Member::read(self.store, backup, (data, places)).await?;
            let brought =
                self.bring(member, has_files, || Ok(())).await.map_err(|error| error.context(&backup.name))?;
            restored.kept += brought.kept;
            restored.fetched += brought.fetched;
        }
        let line: Vec<&Backup> = plan.backups().collect();
        restored.notes = tokio::task::block_in_place(|| workshop.combine(combiner, &line))?;
        Ok(restored)
    }
}

/// Returns which files are there already.
async fn whole_of(placed: &[Placed<'_>], files: &Arc<Files>, readers: usize) -> Result<Written> {
    let look = |(root, prefix, names): (PathBuf, Vec<u8>, Vec<Vec<u8>>)| {
        let files = Arc::clone(files);
        tokio::task::spawn_blocking(move || existing::whole(&root, &prefix, &names, &files))
    };
    let lists = placed.iter().flat_map(Placed::lists);
    let mut found = futures::stream::iter(lists).map(look).buffer_unordered(readers.max(1));
    let mut whole = Written::new();
    while let Some(some) = found.next().await {
        whole.extend(some.or_err(Kind::Internal, || "the comparison of files was aborted".to_owned())?);
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
    let has_in_place = into.foreseen.in_place || has_in_place(&into.data);
    let recovery = settings::Recovery { plan, action: into.action, fetching: &into.fetching, has_in_place };
    settings::write(&into.data, &recovery, &raised)?;
    Ok(inherited.notes())
}

/// Reads a backup through and checks every file against the server's manifest, without a byte on the disk.
///
/// # Errors
/// [`Kind::Corrupt`] and [`Kind::Incomplete`] for what a restore would fail at.
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
