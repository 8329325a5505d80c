//! Takes base backups by the clock and on request, for as long as the service runs.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::sync::{mpsc, watch};

use super::status::Status;
use crate::backup::{BackupJob, BackupKind, Done, take};
use crate::config;
use crate::error::{Kind, Result};
use crate::manifest::recoverable;
use crate::pipeline::shutdown;
use crate::source::postgres::Server;
use crate::store::Store;
use crate::tasks::Task;
use crate::tasks::backoff::Backoff;

/// How often the task looks whether a backup is due.
const LOOK: Duration = Duration::from_secs(1);

/// How long a backup waits that found damage, the server's or the store's: each attempt reads the whole database, and no
/// page becomes sound by that.
const DAMAGE_WAIT: Duration = Duration::from_secs(3_600);

/// What the task of a running service needs.
pub(crate) struct BackupTask {
    pub(crate) server: Server,
    pub(crate) config: config::Postgres,
    pub(crate) store: Store,
    pub(crate) writer: String,
    pub(crate) status: Arc<Status>,
    /// Reasons for a backup at once: a gap in the WAL, for what was before it cannot be recovered beyond it.
    pub(crate) requests: mpsc::Receiver<String>,
    pub(crate) stop: watch::Receiver<bool>,
}

/// Takes base backups by `[postgres.base_backup] every` and on request, until the service stops.
pub(crate) async fn run(mut task: BackupTask) {
    let mut backoff = Backoff::new(task.status.tasks.reporter(Task::BaseBackup, ""));
    let mut reason: Option<String> = None;
    loop {
        while let Ok(asked) = task.requests.try_recv() {
            reason = Some(asked);
        }
        if reason.is_none() {
            match due(&task).await {
                Ok(found) => {
                    backoff.succeeded();
                    reason = found;
                }
                Err(error) => tokio::select! {
                    () = backoff.wait_after("it cannot be told whether a base backup is due", error) => continue,
                    () = shutdown::requested(&mut task.stop) => return,
                },
            }
        }
        let Some(why) = &reason else {
            tokio::select! {
                () = tokio::time::sleep(LOOK) => continue,
                () = shutdown::requested(&mut task.stop) => return,
            }
        };
        tracing::info!(why, "taking a base backup");
        let done = Done::of(&task.status.tasks);
        let kind = match task.config.base_backup.incrementals {
            0 => BackupKind::Full,
            most => BackupKind::Within(most),
        };
        let (server, config, store, writer) = (&task.server, &task.config, &task.store, &*task.writer);
        let job = BackupJob { server, config, store, writer, kind };
        let taken = tokio::select! {
            taken = take(&job, &done) => taken,
            () = shutdown::requested(&mut task.stop) => return,
        };
        match taken {
            Ok(backup) => {
                tracing::info!(name = backup.name, start = %backup.start, end = %backup.end, bytes = backup.bytes(),
                    stored_bytes = backup.stored_bytes(), "base backup taken");
                task.status.note(|now| now.last_backup = Some(backup.finished));
                backoff.succeeded();
                reason = None;
            }
            Err(error) => {
                let least = if error.kind() == Kind::Corrupt { DAMAGE_WAIT } else { Duration::ZERO };
                tokio::select! {
                    () = backoff.wait_at_least(least, "cannot take a base backup", error) => {}
                    () = shutdown::requested(&mut task.stop) => return,
                }
            }
        }
    }
}

/// Returns why a backup is due, if it is. Backups by hand and of other processes count, if they lead to the end of the archive.
async fn due(task: &BackupTask) -> Result<Option<String>> {
    let now = task.status.now();
    let (Some(every), Some(system_id)) = (task.config.base_backup.every, now.system_id) else { return Ok(None) };
    let last = match now.last_backup {
        Some(last) => Some(last),
        None => {
            let found = recoverable::freshest(&task.store, system_id).await?;
            task.status.note(|now| now.last_backup = found);
            found
        }
    };
    Ok(match last {
        None => Some("none leads to the end of the archive".to_owned()),
        Some(last) if is_due(last, every, crate::time::now()) => Some("the last one is old enough".to_owned()),
        Some(_) => None,
    })
}

fn is_due(last: DateTime<Utc>, every: Duration, now: DateTime<Utc>) -> bool {
    now.signed_duration_since(last).to_std().is_ok_and(|age| age >= every)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backup_is_due_by_its_age() {
        let at = |seconds| DateTime::from_timestamp(seconds, 0).expect("a time");
        let every = Duration::from_secs(60);
        assert!(!is_due(at(1000), every, at(1059)) && is_due(at(1000), every, at(1060)));
        assert!(!is_due(at(1000), every, at(900)), "a clock that was set back");
    }
}
