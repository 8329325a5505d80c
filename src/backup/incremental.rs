//! What a base backup builds on: nothing, or the newest one that is whole.
//!
//! ```text
//!   full ◄── incremental ◄── incremental        each names its parent and the hash of that one's backup.json
//!     the manifest of the last ─► UPLOAD_MANIFEST ─► BASE_BACKUP … INCREMENTAL: what has changed since that one began
//! ```
//!
//! The server decides whether it can: it needs its summaries of the log since the parent began, and a parent in its own history.
//! What a service cannot take as an incremental one it takes as a full one, and says so: a backup is worth more than its size.

use std::collections::HashMap;

use super::job::{BackupJob, BackupKind};
use crate::error::{Error, Kind, Result};
use crate::manifest::backups::{Backup, Parent, Part};
use crate::manifest::found::{self, Brief};
use crate::manifest::{Chain, recoverable};
use crate::restore::{PATIENCE, patiently};
use crate::source::postgres::{BackupOptions, BackupStream, Replication, is_refusal};
use crate::store::{Store, layout};

/// A base backup on which another one builds.
struct Base {
    /// That one, after those on which it builds itself, the full one first.
    line: Vec<Backup>,
    parent: Parent,
}

impl Base {
    /// Returns how many it builds on itself.
    fn depth(&self) -> u64 {
        (self.line.len() as u64).saturating_sub(1)
    }
}

/// Begins a base backup; gives its parent if it is incremental. `chain` is the archive's, where it has one, and `checksums` says whether
/// the server's pages have them.
pub(super) async fn begin(
    job: &BackupJob<'_>,
    replication: Replication,
    (chain, checksums): (Option<&Chain>, bool),
    options: &BackupOptions,
) -> Result<(BackupStream, Option<Parent>)> {
    if job.kind == BackupKind::Full {
        return Ok((replication.base_backup(options).await?, None));
    }
    let begun = match base(job.store, chain).await {
        Ok(base) => match (base, job.kind) {
            (Some(base), BackupKind::Within(most)) if base.depth() >= most => return full(job, options).await,
            (Some(base), _) => match is_fit(job.store, &base, checksums).await {
                Ok(()) => begin_on(job.store, replication, base, options).await,
                Err(error) => Err(error),
            },
            (None, BackupKind::Within(_)) => return full(job, options).await,
            (None, _) => {
                Err(Error::new(Kind::NotFound, "there is no base backup that an incremental one could build on")
                    .hint("take a full one: `tidelog backup`"))
            }
        },
        Err(error) => Err(error),
    };
    match begun {
        Err(error) if job.kind != BackupKind::Incremental && is_hopeless(&error) => {
            tracing::warn!(%error, hint = error.hint_text(), "an incremental base backup cannot be taken: a full one is");
            full(job, options).await
        }
        begun => begun.map(|(stream, parent)| (stream, Some(parent))),
    }
}

/// Returns whether another attempt would end as this one.
fn is_hopeless(error: &Error) -> bool {
    is_refusal(error) || !error.is_transient()
}

/// On a connection of its own: that of before may have ended with an error.
async fn full(job: &BackupJob<'_>, options: &BackupOptions) -> Result<(BackupStream, Option<Parent>)> {
    Ok((job.server.replication().await?.base_backup(options).await?, None))
}

/// The base backup on which one that is taken now builds.
async fn base(store: &Store, chain: Option<&Chain>) -> Result<Option<Base>> {
    let Some((chain, system_id)) = chain.and_then(|chain| Some((chain, chain.begin_facts().system()?.system_id)))
    else {
        return Ok(None);
    };
    let found = found::backups(store, system_id, chain.backups()).await?.sound;
    let facts = recoverable::facts(store, chain, &found).await?;
    let line = facts.base().and_then(|index| facts.line(index).ok()).unwrap_or_default();
    let briefs: Vec<&Brief> = line.into_iter().filter_map(|index| found.get(index)).collect();
    let Some(last) = briefs.last() else { return Ok(None) };
    let parent = Parent { name: last.name().to_owned(), sha256: last.sha256.clone() };
    let mut line = Vec::with_capacity(briefs.len());
    for backup in briefs {
        line.push(backup.whole(store).await?);
    }
    Ok(Some(Base { line, parent }))
}

/// Whether what builds on it could be restored: every part of the line is there, and what the server does not send again can be read
/// by a server with its checksums. `pg_checksums` writes all pages, and nothing into the log, so an incremental backup has none of
/// them: restored, every connection ends with "invalid page".
///
/// # Errors
/// [`Kind::Incomplete`] and [`Kind::Unsupported`] if not.
async fn is_fit(store: &Store, base: &Base, checksums: bool) -> Result<()> {
    let unfit = |kind, what: String| {
        let message = format!("nothing can build on the base backup {}: {what}", base.parent.name);
        Err(Error::new(kind, message)
            .hint("take a full one with `tidelog backup`: the next incremental ones build on that"))
    };
    if checksums && base.line.last().is_some_and(|last| last.checksums != Some(true)) {
        let what =
            "the server's pages have checksums, and when it was taken they had none, or it is not known (pg_checksums)";
        return unfit(Kind::Unsupported, what.to_owned());
    }
    for backup in &base.line {
        let objects = store.list(&layout::backup(backup.system.system_id, &backup.name)).await?;
        let sizes: HashMap<&str, u64> = objects.iter().map(|object| (object.location.as_ref(), object.size)).collect();
        let is_there = |part: &&Part| sizes.get(part.object.as_str()) == Some(&part.stored_bytes);
        if let Some(part) = backup.parts().find(|part| !is_there(part)) {
            return unfit(Kind::Incomplete, format!("{} is missing, or has another size", part.object));
        }
    }
    Ok(())
}

async fn begin_on(
    store: &Store,
    mut replication: Replication,
    base: Base,
    options: &BackupOptions,
) -> Result<(BackupStream, Parent)> {
    replication.makes_incremental_backups().await?;
    let name = &base.parent.name;
    let manifest = base.line.last().map(|last| &last.manifest);
    let manifest = manifest.ok_or_else(|| Error::new(Kind::Internal, "an incremental backup builds on nothing"))?;
    let stored = patiently(PATIENCE, || manifest.read(store)).await;
    let stored = stored.map_err(|error| error.context(format!("nothing can build on the base backup {name}")))?;
    let mut manifest = manifest.reader(&stored)?;
    let begun = replication.base_backup_on(options, &mut manifest).await;
    let stream = begun.map_err(|error| {
        let why = format!("the server takes no incremental base backup on {name}");
        let error = error.context(why);
        if is_refusal(&error) && error.hint_text().is_none() {
            return error.hint("take a full one with `tidelog backup`: the next incremental ones build on that");
        }
        error
    })?;
    tracing::info!(parent = name, "the base backup is incremental");
    Ok((stream, base.parent))
}
