//! What keeps an archive of WAL in order while it grows: small segments are merged, what retention lets go is expired,
//! objects that nobody needs any more are deleted, and what can be recovered is worked out.
//!
//! Everything here is an entry of the chain like the archiver's own, made by a chain of its own under a writer's id of
//! its own; aborted at any point it leaves nothing half done.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use super::shared::Shared;
use crate::error::Result;
use crate::maintenance::left_to_others;
use crate::maintenance::wal::{self, Block, Merger};
use crate::manifest::known::Known;
use crate::manifest::{Chain, holds, recoverable};
use crate::stream::StreamId;
use crate::tasks::Task;

/// How often it is looked whether something is to be done.
const ROUND: Duration = Duration::from_secs(5);

/// How often the archive is tidied: retention, and objects that are no longer needed.
const TIDY_EVERY: TimeDelta = TimeDelta::minutes(10);

/// How often it is worked out what can be recovered.
const LOOK_EVERY: TimeDelta = TimeDelta::seconds(30);

/// The timeline that is received, and the one on which the archive is.
type Timelines = (Option<u32>, Option<u32>);

/// The task.
pub(super) struct Maintenance {
    shared: Arc<Shared>,
    retention: Option<Duration>,
    /// Blocks that may lie in several segments.
    blocks: BTreeSet<Block>,
    tidied: Option<DateTime<Utc>>,
    /// When retention was last tried. A process that was just started is not connected yet, and tries again in the next round.
    expired: Option<DateTime<Utc>>,
    /// When the server was found to be on an older timeline than the archive, and which both were.
    older: Option<(DateTime<Utc>, Timelines)>,
    looked: Option<DateTime<Utc>>,
    chain: Option<Chain>,
    backups: Known,
}

impl Maintenance {
    pub(super) fn new(shared: Arc<Shared>, retention: Option<Duration>) -> Self {
        Self {
            shared,
            retention,
            blocks: BTreeSet::new(),
            tidied: None,
            expired: None,
            older: None,
            looked: None,
            chain: None,
            backups: Known::default(),
        }
    }

    /// Works until it is aborted. What fails is reported, and tried again in the next round.
    pub(super) async fn run(mut self, mut blocks: mpsc::UnboundedReceiver<Block>) {
        let mut tick = interval(ROUND);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let reporter = self.shared.status.tasks.reporter(Task::WalMaintenance, "");
        loop {
            tokio::select! {
                Some(block) = blocks.recv() => drop(self.blocks.insert(block)),
                _ = tick.tick() => {
                    let what = "the maintenance of the archived WAL is put off";
                    match self.round().await {
                        Ok(()) => reporter.succeeded(),
                        Err(error) => {
                            tracing::warn!(%error, hint = error.hint_text(), "{what}");
                            reporter.failed(what, &error, Some(ROUND));
                        }
                    }
                }
            }
        }
    }

    fn stream(&self) -> StreamId {
        StreamId::Postgres { system_id: self.shared.system.system_id }
    }

    async fn round(&mut self) -> Result<()> {
        let now = crate::time::now();
        // A clock that was set back puts nothing off.
        let since = |last: Option<DateTime<Utc>>, every| last.is_none_or(|last| (now - last).abs() >= every);
        let (tidy, look) = (since(self.tidied, TIDY_EVERY), since(self.looked, LOOK_EVERY));
        let timelines = self.shared.status.timelines();
        // The chain is not read over and over for a server that stays on an older timeline.
        let older = self.older.filter(|(_, then)| *then == timelines).map(|(at, _)| at);
        let is_due = since(self.expired, TIDY_EVERY) && since(older, TIDY_EVERY);
        let expire = self.retention.is_some() && is_due && self.shared.status.is_connected();
        if self.blocks.is_empty() && !tidy && !look && !expire {
            return Ok(());
        }
        // Kept open from round to round: to open a chain again takes some dozens of requests. After an error it is
        // opened again all the same.
        let opened = match self.chain.take() {
            Some(mut chain) => {
                chain.refresh().await?;
                Some(chain)
            }
            None => Chain::open(&self.shared.store, &self.stream()).await?,
        };
        let Some(mut chain) = opened else { return Ok(()) };
        if self.tidied.is_none() {
            self.blocks.extend(wal::unmerged(&chain).await?);
        }
        // One after the other, and what cannot be done keeps nothing else from being done.
        let looked = if look { self.look_at_windows(&chain).await } else { Ok(()) };
        if looked.is_ok() && look {
            self.looked = Some(now);
        }
        let merged = self.merge_all(&mut chain).await;
        let horizon = self.retention.and_then(|kept| Some(now - TimeDelta::from_std(kept).ok()?));
        if expire && !self.shared.status.is_at_newest(&chain) {
            self.older = Some((now, timelines));
        } else if let Some(horizon) = horizon.filter(|_| expire) {
            let (known, writer) = (self.backups.taken(), format!("{}e", self.shared.writer));
            wal::expire(&self.shared.store, &mut chain, known, (horizon, now), &writer).await?;
            self.expired = Some(now);
        }
        if tidy {
            // By the store's clock, which dates what is to go.
            let at = holds::store_time(&self.shared.store, self.shared.system.system_id).await?;
            let horizon = horizon.map(|horizon| wal::lived_through(horizon, now, at));
            left_to_others(wal::delete_obsolete(&self.shared.store, &chain, (at, horizon)).await)?;
            self.tidied = Some(now);
        }
        looked.and(merged)?;
        self.chain = Some(chain);
        Ok(())
    }

    /// Merges the blocks that wait for it. One that cannot be read stays, and holds up no other.
    async fn merge_all(&mut self, chain: &mut Chain) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let merger = Merger {
            store: &shared.store,
            system: shared.system,
            writer: format!("{}m", shared.writer),
            numbers: &shared.segments,
            zstd_level: shared.zstd_level,
        };
        let mut failed = Ok(());
        for block in self.blocks.clone() {
            match merger.merge(chain, block).await {
                Ok(merged) => {
                    self.shared.status.note(|status| status.merged += u64::from(merged));
                    self.blocks.remove(&block);
                }
                Err(error) if error.is_transient() => return Err(error),
                Err(error) => failed = Err(error),
            }
        }
        failed
    }

    /// Works out what can be recovered.
    async fn look_at_windows(&mut self, chain: &Chain) -> Result<()> {
        let store = &self.shared.store;
        self.backups.look(store, self.shared.system.system_id, chain.backups()).await?;
        let facts = recoverable::facts_with(store, chain, self.backups.taken()).await?;
        let windows = recoverable::windows(store, chain, &facts).await?;
        let last = facts.freshest().map(|backup| backup.finished);
        self.shared.status.note(|status| (status.windows, status.last_backup) = (windows, last));
        Ok(())
    }
}

#[cfg(test)]
mod tests;
