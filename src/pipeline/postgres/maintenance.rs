//! What keeps an archive of WAL in order while it grows: small segments are merged, what retention lets go is expired,
//! objects that nobody needs any more are deleted, and what can be recovered is worked out.
//!
//! Everything here is an entry of the chain like the archiver's own, made by a chain of its own under a writer's id of
//! its own; broken off at any point it leaves nothing half done.

mod delete;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use object_store::path::Path;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use super::shared::{Block, Shared};
use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::manifest::backups::remove;
use crate::manifest::known::Known;
use crate::manifest::path::Taken;
use crate::manifest::{Chain, Selection, holds, leftovers, recoverable};
use crate::pipeline::tasks::Task;
use crate::segment::wal::{MOST_BYTES, Seen, WalFacts, WalReader, seal};
use crate::store::{Store, layout};
use crate::stream::{Lsn, Merge, Retired, SegmentRef, StreamId};

/// How often it is looked whether something is to be done.
const ROUND: Duration = Duration::from_secs(5);

/// How often the archive is tidied: retention, and objects that are no longer needed.
const TIDY_EVERY: TimeDelta = TimeDelta::minutes(10);

/// How often it is worked out what can be recovered.
const LOOK_EVERY: TimeDelta = TimeDelta::seconds(30);

/// Objects that an entry has retired are deleted after this time: a restore that chose them before is done by then, or
/// asks again.
const GRACE: TimeDelta = TimeDelta::hours(1);

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

    /// Works until it is aborted. What fails is told and comes up again.
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
        let since = |last: Option<DateTime<Utc>>, every| last.is_none_or(|last| now - last >= every);
        let (tidy, look) = (since(self.tidied, TIDY_EVERY), since(self.looked, LOOK_EVERY));
        let timelines = self.shared.status.timelines();
        // The chain is not read over and over for a server that stays on an older timeline.
        let older = self.older.filter(|(_, then)| *then == timelines).map(|(at, _)| at);
        let is_due = since(self.expired, TIDY_EVERY) && since(older, TIDY_EVERY);
        let expire = self.retention.is_some() && is_due && self.shared.status.is_connected();
        if self.blocks.is_empty() && !tidy && !look && !expire {
            return Ok(());
        }
        // Kept open from round to round: to open a chain anew takes some dozens of requests. After an error it is opened
        // anew all the same.
        let opened = match self.chain.take() {
            Some(mut chain) => {
                chain.refresh().await?;
                Some(chain)
            }
            None => Chain::open(&self.shared.store, &self.stream()).await?,
        };
        let Some(mut chain) = opened else { return Ok(()) };
        if self.tidied.is_none() {
            self.blocks.extend(unmerged(&chain).await?);
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
            self::expire(&self.shared.store, &mut chain, known, horizon, &writer).await?;
            self.expired = Some(now);
        }
        if tidy {
            // By the store's clock, which dates what is to go.
            let at = holds::store_time(&self.shared.store, self.shared.system.system_id).await?;
            left_to_others(delete_obsolete(&self.shared.store, &chain, (at, horizon)).await)?;
            self.tidied = Some(now);
        }
        looked.and(merged)?;
        self.chain = Some(chain);
        Ok(())
    }

    /// Merges the blocks that wait for it. One that cannot be read stays, and holds up no other.
    async fn merge_all(&mut self, chain: &mut Chain) -> Result<()> {
        let mut failed = Ok(());
        for block in self.blocks.clone() {
            match self.merge(chain, block).await {
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

    /// Makes one segment of those that lie in a block; false if they are one already, or not all there.
    async fn merge(&self, chain: &mut Chain, block: Block) -> Result<bool> {
        chain.refresh().await?;
        let partitions = BTreeMap::from([(block.timeline, block.start..block.end)]);
        let segments = chain.select(&Selection { timestamps: None, partitions: Some(partitions) }).await?.segments;
        let Some((start, end)) = range_of(&segments).filter(|_| segments.len() > 1) else { return Ok(false) };
        if end != block.end || start < block.start {
            return Ok(false);
        }
        let timeline = block.timeline.cast_unsigned();
        let (start, end) = (Lsn::at(start), Lsn::at(end));
        let writer = format!("{}m", self.shared.writer);
        let number = self.shared.next_number();
        let key = layout::wal_segment(self.shared.system.system_id, timeline, start.0..end.0, &writer, number);
        let facts = WalFacts::new(self.shared.system, timeline, start..end, &writer, crate::time::now());
        let (mut merged, object) = self.rewrite(&segments, facts, &key).await?;
        merged.generation = chain.generation(block.timeline);
        self.shared.store.put(&key, object).await?;
        let merge = Merge {
            segment: merged,
            replaces: segments.iter().map(|segment| segment.object.clone()).collect(),
            retired: Retired::of(&segments),
            decided: crate::time::now(),
        };
        chain.merge(&merge, &writer, merge.decided).await
    }

    /// The bytes of several segments as one, which is to be stored as `key`.
    async fn rewrite(&self, segments: &[SegmentRef], facts: WalFacts, key: &Path) -> Result<(SegmentRef, Bytes)> {
        let mut wal = Vec::with_capacity(usize::try_from(facts.len()).unwrap_or(0));
        let mut seen = Seen::default();
        for segment in segments {
            let reader = WalReader::open(&self.shared.store, segment).await?;
            let read = tokio::task::spawn_blocking(move || {
                wal.extend_from_slice(&reader.all()?);
                Ok::<_, Error>(wal)
            });
            wal = read.await.or_err(Kind::Internal, || "a merge broke off".into())??;
            seen.add(&Seen {
                commits: segment.records(),
                first_commit: segment.min_timestamp(),
                last_commit: segment.max_timestamp(),
                largest_record: segment.largest_record,
                minimal: segment.minimal.map(|one| (Lsn::at(one.first), Lsn::at(one.last))),
            });
        }
        let (key, level) = (key.clone(), self.shared.zstd_level);
        let sealed = tokio::task::spawn_blocking(move || seal(&key, &facts, &wal, &seen, level));
        sealed.await.or_err(Kind::Internal, || "a merge broke off".into())?
    }
}

/// From where to where segments go that follow each other without a hole.
fn range_of(segments: &[SegmentRef]) -> Option<(i64, i64)> {
    let mut ranges = segments.iter().filter_map(|segment| segment.partitions.first());
    let first = ranges.next()?;
    let end = ranges.try_fold(first.end, |end, range| (range.start == end).then_some(range.end))?;
    Some((first.start, end))
}

/// What was expired.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Expiry {
    /// Segments of WAL. Their objects are deleted after a grace time.
    pub wal: Retired,
    /// Base backups. Their objects, too.
    pub backups: u64,
}

/// Expires what is not needed to recover to any moment from `horizon` on, and what nobody holds. What is `known` of the backups
/// tells whether there is anything; before something is expired, each is read again.
pub async fn expire(
    store: &Store,
    chain: &mut Chain,
    known: Vec<Taken>,
    horizon: DateTime<Utc>,
    writer: &str,
) -> Result<Expiry> {
    let StreamId::Postgres { system_id } = *chain.stream() else { return Ok(Expiry::default()) };
    let held = holds::held(store, system_id, holds::store_time(store, system_id).await?).await?;
    if recoverable::expirable(store, chain, known, horizon, &held).await?.is_empty() {
        return Ok(Expiry::default());
    }
    let read = Known::read(store, chain).await?;
    // Whoever restores from now on waits, or is seen.
    let expiring = holds::Expiring::begin(store, system_id, writer).await?;
    let expired = expire_unheld((store, system_id), chain, (read, horizon), &expiring, writer).await;
    expiring.end(store).await;
    let expired = expired?;
    if expired != Expiry::default() {
        tracing::info!(stream = %chain.stream(), segments = expired.wal.segments, bytes = expired.wal.stored_bytes, backups = expired.backups, "retention expired WAL and backups");
    }
    Ok(expired)
}

/// Expires what nobody holds, of a system with these base backups.
async fn expire_unheld(
    (store, system_id): (&Store, u64),
    chain: &mut Chain,
    (backups, horizon): (Vec<Taken>, DateTime<Utc>),
    expiring: &holds::Expiring,
    writer: &str,
) -> Result<Expiry> {
    let held = holds::held(store, system_id, holds::store_time(store, system_id).await?).await?;
    let expirable = recoverable::expirable(store, chain, backups, horizon, &held).await?;
    expiring.is_in_time()?;
    let wal = match expirable.before.is_empty() {
        true => Retired::default(),
        false => chain.expire(&expirable.before, writer, crate::time::now()).await?,
    };
    // A backup whose WAL is expired is of no use; one that is left by a crash here goes the next time.
    let backups = chain.expire_backups(&expirable.backups, writer, crate::time::now()).await?;
    for backup in &backups {
        remove(store, system_id, backup).await?;
    }
    Ok(Expiry { wal, backups: backups.len() as u64 })
}

/// Deletes the objects of what was expired or merged longer ago than the grace time at `now`, and what is left of backups that do
/// not count. What belongs to a timeline that was abandoned stays until `horizon` has come to that.
pub async fn delete_obsolete(
    store: &Store,
    chain: &Chain,
    (now, horizon): (DateTime<Utc>, Option<DateTime<Utc>>),
) -> Result<u64> {
    let StreamId::Postgres { system_id } = *chain.stream() else { return Ok(0) };
    let held = holds::held(store, system_id, now).await?;
    let parts = leftovers::remove(store, (system_id, chain.backups()), &held, now).await?;
    holds::remove_lapsed(store, system_id, now).await?;
    Ok(parts + delete::delete_retired(store, chain, (now - GRACE, horizon)).await?)
}

/// Where this process may not delete, whoever may does (`tidelog expire` with rights of its own, docs/SECURITY.md): nothing else waits
/// for that.
pub(in crate::pipeline) fn left_to_others(deleted: Result<u64>) -> Result<()> {
    match deleted {
        Err(error) if error.kind() == Kind::Denied => {
            tracing::warn!(%error, "what is no longer needed stays until `tidelog expire` runs with the right to delete it");
            Ok(())
        }
        deleted => deleted.map(drop),
    }
}

/// How much of a timeline is looked at for blocks that were not merged, before what comes before it is.
const LOOKED_AT: i64 = 64 * MOST_BYTES.cast_signed();

/// The complete blocks that lie in several segments: what an archiver left behind that was killed. It stands at the end of a
/// timeline, so each is looked at from its end backwards until a long stretch is merged, and not back to its beginning.
async fn unmerged(chain: &Chain) -> Result<BTreeSet<Block>> {
    let mut found = BTreeSet::new();
    for position in chain.positions() {
        let mut end = position.end;
        while end > position.start {
            // On a border of blocks.
            let start = (end - 1).div_euclid(LOOKED_AT) * LOOKED_AT;
            let partitions = Some(BTreeMap::from([(position.partition, start.max(position.start)..end)]));
            let segments = chain.select(&Selection { timestamps: None, partitions }).await?.segments;
            let blocks = several(&segments, position.end);
            if blocks.is_empty() && end < position.end {
                break;
            }
            found.extend(blocks);
            end = start;
        }
    }
    Ok(found)
}

/// The blocks before `archived` that lie in several of these segments.
fn several(segments: &[SegmentRef], archived: i64) -> BTreeSet<Block> {
    let mut blocks: BTreeMap<Block, u64> = BTreeMap::new();
    for range in segments.iter().flat_map(|segment| &segment.partitions) {
        let end = Lsn((Lsn::at(range.start).0 + 1).next_multiple_of(MOST_BYTES)).position();
        let start = end.saturating_sub(MOST_BYTES.cast_signed());
        if end <= archived {
            *blocks.entry(Block { timeline: range.partition, start, end }).or_default() += 1;
        }
    }
    blocks.into_iter().filter(|(_, segments)| *segments > 1).map(|(block, _)| block).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_not_be_deleted_is_left_to_whoever_may() {
        let failed = |kind| left_to_others(Err(Error::new(kind, "no"))).map_err(|error| error.kind());
        assert_eq!(failed(Kind::Denied), Ok(()));
        assert_eq!(failed(Kind::Unavailable), Err(Kind::Unavailable));
    }
}

#[cfg(test)]
mod years;
