//! A restore, and the recovery that follows it, tell retention what they still need.
//!
//! ```text
//!   restore-postgres ─► holds/postgres/…/<name>.json, again every 10 minutes     (see `manifest::holds`)
//!          └─► pg_wal/.tidelog/hold, the same ─► wal-fetch writes it again while Postgres asks for files
//! ```
//!
//! The end of the recovery removes the folder, and the hold ends by itself. What keeps a hold from being written keeps
//! nobody from restoring: an archive may well be read-only for who restores.

use std::path::{Path, PathBuf};

use chrono::{DateTime, TimeDelta, Utc};
use tokio::task::JoinHandle;

use super::log::Log;
use super::plan::Plan;
use crate::error::{Error, Kind, Result};
use crate::manifest::holds::{self, Hold, RENEW_EVERY};
use crate::store::{Store, layout};
use crate::stream::Lsn;

/// A hold that is written again and again until it is dropped.
pub struct Holding {
    hold: Hold,
    renewing: JoinHandle<()>,
}

impl Drop for Holding {
    fn drop(&mut self) {
        self.renewing.abort();
    }
}

impl Holding {
    /// Holds what a plan needs; none where no hold can be written, which is told. `name` is one that nobody else uses.
    ///
    /// # Errors
    /// [`Kind::Incomplete`] if retention expired the plan's base backup before it could be held.
    pub async fn begin(store: &Store, log: &Log, plan: &Plan, name: &str, host: &str) -> Result<Option<Self>> {
        let (system_id, backup) = (log.system().system_id, &plan.backup);
        let what = format!("restore-postgres of base backup {} on {host}", backup.name);
        let hold = Hold::new(name.to_owned(), what, backup.start, Some(backup.name.clone()));
        if let Err(error) = hold.write(store, system_id).await {
            tracing::warn!(%error, "no hold can be written: retention does not know of this restore, and keeps what it needs \
                only as long as [retention] postgres says");
            return Ok(None);
        }
        if let Err(error) = still_there(store, log, plan).await {
            take_back(store, system_id, &hold).await;
            return Err(error);
        }
        let (renewed, store) = (hold.clone(), store.clone());
        let renewing = tokio::spawn(async move {
            loop {
                tokio::time::sleep(RENEW_EVERY).await;
                if let Err(error) = renewed.write(&store, system_id).await {
                    tracing::warn!(%error, name = renewed.name, "the hold of this restore cannot be written again");
                }
            }
        });
        Ok(Some(Self { hold, renewing }))
    }

    /// Takes the hold back: nothing was restored, and there is nothing to go on with.
    pub async fn give_back(self, store: &Store, system_id: u64) {
        self.renewing.abort();
        take_back(store, system_id, &self.hold).await;
    }

    /// Hands the hold over to the recovery of what was restored.
    pub async fn hand_over(self, store: &Store, system_id: u64, data: &Path) {
        let hold = Hold { backup: None, ..self.hold.clone() };
        let handed = hold.write(store, system_id).await.and_then(|()| {
            let file = Kept::beside(&data.join("pg_wal/file")).file;
            let folder = file.parent().map_or(Ok(()), std::fs::create_dir_all);
            let bytes = hold.bytes()?;
            folder
                .and_then(|()| std::fs::write(&file, &bytes))
                .map_err(|source| Error::io(source, format!("cannot write {}", file.display())))
        });
        if let Err(error) = handed {
            tracing::warn!(%error, "the recovery holds only what it asks for itself");
        }
    }
}

/// Removes a hold of which nobody has need. One that stays ends by itself.
async fn take_back(store: &Store, system_id: u64, hold: &Hold) {
    if let Err(error) = store.delete(&layout::hold(system_id, &hold.name)).await {
        tracing::warn!(%error, name = hold.name, "the hold of this restore cannot be removed: retention waits for it for hours");
    }
}

/// Only behind a hold, and when nobody is expiring any more, is it sure that what was planned with stays, if it is still there.
async fn still_there(store: &Store, log: &Log, plan: &Plan) -> Result<()> {
    let (system_id, backup) = (log.system().system_id, &plan.backup);
    holds::wait_for_expiry(store, system_id).await?;
    let mut is_there = true;
    for backup in plan.backups() {
        is_there &= store.size(&layout::backup_commit(system_id, &backup.name)).await?.is_some();
    }
    let now = Log::open(store, Some(system_id)).await?;
    let begins = now.range(backup.timeline).is_some_and(|range| range.start <= backup.start);
    if is_there && begins {
        return Ok(());
    }
    let message =
        format!("retention expired the base backup {}, or its WAL, while the restore was planned", backup.name);
    Err(Error::new(Kind::Incomplete, message).hint("begin again: a newer backup is chosen"))
}

/// The hold of a recovery, as it lies beside its files.
pub struct Kept {
    file: PathBuf,
    makes_folder: bool,
}

impl Kept {
    /// That of the recovery which wants a file at `path`.
    pub fn beside(path: &Path) -> Self {
        let folder = path.parent().unwrap_or(Path::new("")).join(super::prefetch::FOLDER);
        Self { file: folder.join(super::prefetch::HOLD), makes_folder: true }
    }

    /// The same for who goes along with the recovery. Where the folder is gone, the recovery is over, and nothing is made again.
    pub fn along(path: &Path) -> Self {
        Self { makes_folder: false, ..Self::beside(path) }
    }

    /// Writes the hold again if it is time to; where there is none, one for a recovery that begins at `from`, by a new `name`.
    ///
    /// # Errors
    /// The store's and the disk's, which must keep nobody from recovering.
    pub async fn renew(
        &self,
        store: &Store,
        (system_id, from): (u64, Lsn),
        now: DateTime<Utc>,
        name: impl FnOnce() -> Result<String>,
    ) -> Result<()> {
        let written = std::fs::metadata(&self.file).and_then(|facts| facts.modified()).ok();
        let age = written.map(|written| now.signed_duration_since(DateTime::<Utc>::from(written)).abs());
        if age.is_some_and(|age| TimeDelta::from_std(RENEW_EVERY).is_ok_and(|every| age < every)) {
            return Ok(());
        }
        let kept = std::fs::read(&self.file).ok().and_then(|bytes| Hold::parse(&bytes).ok());
        let mut hold = match kept {
            Some(hold) => hold,
            None => Hold::new(name()?, "a recovery".to_owned(), from, None),
        };
        hold.goes_on(from, now);
        let failed = |source| Error::io(source, format!("cannot write {}", self.file.display()));
        // First, so that a store which refuses it is not asked with each file. A place that is not there is not made.
        match self.file.parent().filter(|_| self.makes_folder).map(std::fs::create_dir) {
            Some(Err(error)) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(failed(error)),
            _ => {}
        }
        std::fs::write(&self.file, hold.bytes()?).map_err(failed)?;
        hold.write(store, system_id).await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::manifest::holds::{SPAN, held};

    #[tokio::test]
    async fn a_recovery_keeps_its_hold_alive_and_makes_one_where_there_is_none() {
        let store = Store::over(Arc::new(object_store::memory::InMemory::new()), "memory:///");
        let folder = tempfile::tempdir().expect("a directory");
        let wal = folder.path().join("pg_wal");
        let kept = Kept::beside(&wal.join("RECOVERYXLOG"));
        let name = || Ok("first".to_owned());
        let refused =
            kept.renew(&store, (7, Lsn(500)), crate::time::now(), name).await.expect_err("Postgres has no such place");
        assert!(refused.to_string().contains(".tidelog/hold") && !wal.exists(), "{refused}");
        assert_eq!(held(&store, 7, crate::time::now()).await.expect("none").holds, []);
        std::fs::create_dir(&wal).expect("Postgres has it");
        let along = Kept::along(&wal.join("RECOVERYXLOG"));
        along.renew(&store, (7, Lsn(500)), crate::time::now(), name).await.expect_err("the recovery is over");
        assert_eq!(std::fs::read_dir(&wal).expect("a directory").count(), 0, "nothing is made again");
        assert_eq!(held(&store, 7, crate::time::now()).await.expect("none").holds, []);
        kept.renew(&store, (7, Lsn(500)), crate::time::now(), name).await.expect("written");
        let found = held(&store, 7, crate::time::now()).await.expect("one");
        assert_eq!((found.from(), found.holds[0].name.as_str()), (Some(Lsn(500)), "first"));
        store.delete(&layout::hold(7, "first")).await.expect("it is gone");
        kept.renew(&store, (7, Lsn(900)), crate::time::now(), name).await.expect("it was just written");
        assert_eq!(held(&store, 7, crate::time::now()).await.expect("none").holds, []);
        let later = crate::time::now() + RENEW_EVERY * 2;
        kept.renew(&store, (7, Lsn(900)), later, || Ok("second".to_owned())).await.expect("written again");
        let found = held(&store, 7, crate::time::now() + SPAN / 2).await.expect("one");
        assert_eq!((found.from(), found.holds[0].name.as_str()), (Some(Lsn(500)), "first"), "what a crash needs again");
    }
}
