//! Base backups get a place in the chain, and lose it.
//!
//! ```text
//!   parts, backup.json ─► entered (its sha256, in the chain) ─► it counts ─► expired (in the chain) ─► mark, deleted
//! ```
//!
//! An archive of before has no such entry, and all backups in it count. The first one that is entered takes those along that are
//! there then. From then on a `backup.json` that no entry names is what a process left that was killed before it came so far,
//! and one that is another than was entered is damage.

use chrono::{DateTime, Utc};

use super::backups::{Backup, Parent};
use super::chain::Tried;
use super::found::Brief;
use super::{Chain, found};
use crate::error::{Error, Kind, Result};
use crate::store::Store;
use crate::stream::{BackupRef, Body, Entered, StreamId, unneeded};

impl Chain {
    /// Makes a backup count, whose `backup.json` with this hash is durable. `generations` are those of its timelines as it began.
    ///
    /// # Errors
    /// [`Kind::Fenced`] if one of its timelines was abandoned meanwhile, or what it builds on was expired, and the store's errors. The same call tells after an
    /// error whether it was done.
    pub async fn enter(
        &mut self,
        backup: &Backup,
        sha256: &str,
        generations: [u32; 2],
        (writer, now): (&str, DateTime<Utc>),
    ) -> Result<()> {
        let mut added = vec![backup_ref(backup, sha256.to_owned())];
        if self.backups().is_none() {
            let before = there(&self.store, self.stream()).await?;
            added.extend(before.into_iter().filter(|other| other.name != backup.name));
        }
        loop {
            let current =
                [backup.timeline, backup.end_timeline].map(|timeline| self.generation(timeline.cast_signed()));
            if current != generations {
                let message = format!("a timeline of the base backup {} was abandoned while it was taken", backup.name);
                return Err(Error::new(Kind::Fenced, message).hint("it counts for nothing, and another one is taken"));
            }
            // Somebody else may have taken those of before along.
            let known = |name: &String| self.backups().is_some_and(|known| known.contains_key(name));
            added.retain(|backup| !known(&backup.name));
            if added.is_empty() {
                return Ok(());
            }
            let is_parent = |parent: &Parent| {
                let entered = self.backups().and_then(|known| known.get(&parent.name)).map(|counted| &counted.sha256);
                let taken_along = added.iter().find(|other| other.name == parent.name).map(|other| &other.sha256);
                entered.or(taken_along) == Some(&parent.sha256)
            };
            if let Some(parent) = backup.parent.as_ref().filter(|parent| !is_parent(parent)) {
                let message = format!(
                    "the base backup {}, on which {} builds, was expired or exchanged while that was taken",
                    parent.name, backup.name
                );
                return Err(Error::new(Kind::Fenced, message).hint("it counts for nothing: take another one"));
            }
            let entered = Entered { added: added.clone(), removed: Vec::new(), decided: now };
            self.try_to_enter(entered, (writer, now)).await?;
        }
    }

    /// Backups count no longer; gives the names of those that may be removed. One stays on which another builds that stays: it may
    /// have been entered since it was decided what goes.
    pub async fn expire_backups(&mut self, names: &[String], writer: &str, now: DateTime<Utc>) -> Result<Vec<String>> {
        loop {
            // An archive of before knows of none, and none of its own builds on another one.
            let Some(known) = self.backups() else { return Ok(names.to_vec()) };
            let free = unneeded(known, names);
            let removed: Vec<String> =
                free.iter().filter(|name| known.contains_key(**name)).cloned().cloned().collect();
            if removed.is_empty() {
                return Ok(names.iter().filter(|name| free.contains(name)).cloned().collect());
            }
            self.try_to_enter(Entered { added: Vec::new(), removed, decided: now }, (writer, now)).await?;
        }
    }

    /// Whatever came of it, the chain tells at the next look.
    async fn try_to_enter(&mut self, entered: Entered, by: (&str, DateTime<Utc>)) -> Result<()> {
        let body = Body::Backups(entered);
        self.progress.accepts(&body).map_err(|violation| {
            Error::new(Kind::Internal, "base backups cannot be entered like this").source(violation)
        })?;
        match self.try_create(body, by).await? {
            Tried::Created(_) | Tried::Again => Ok(()),
            Tried::WentBack => Err(Error::new(Kind::Unavailable, "the archive went back in time meanwhile")),
        }
    }
}

fn backup_ref(backup: &Backup, sha256: String) -> BackupRef {
    BackupRef { name: backup.name.clone(), sha256, parent: backup.parent.as_ref().map(|parent| parent.name.clone()) }
}

/// The backups that are there and can be read, with the hashes of what is there.
async fn there(store: &Store, of: &StreamId) -> Result<Vec<BackupRef>> {
    let StreamId::Postgres { system_id } = *of else { return Ok(Vec::new()) };
    let found = found::backups(store, system_id, None).await?;
    if found.beyond > 0 {
        // They would count no more, and nobody would have said so.
        return Err(found::too_many(found.beyond));
    }
    Ok(found.sound.iter().map(Brief::entered).collect())
}
