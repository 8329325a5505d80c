//! Maintenance of an archive of WAL.

mod delete;
mod merge;

use chrono::{DateTime, TimeDelta, Utc};

use crate::error::{Error, Result};
use crate::manifest::backups::remove;
use crate::manifest::found::backups;
use crate::manifest::known::Known;
use crate::manifest::path::Taken;
use crate::manifest::{Chain, holds, leftovers, recoverable};
use crate::store::Store;
use crate::stream::{Retired, StreamId};
pub(crate) use merge::{Block, Merger, unmerged};

/// Objects that an entry has retired are deleted after this time: a restore that chose them before is done by then, or
/// asks again.
const GRACE: TimeDelta = TimeDelta::hours(1);

/// What was expired.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Expiry {
    /// Segments of WAL. Their objects are deleted after a grace time.
    pub wal: Retired,
    /// Base backups. Their objects, too.
    pub backups: u64,
}

/// Expires what is not needed to recover to any moment from `horizon` on, which was reckoned by this machine's clock at `now`, and what
/// nobody holds. What is `known` of the backups tells whether there is anything; before something is expired, each is read again.
pub async fn expire(
    store: &Store,
    chain: &mut Chain,
    known: Vec<Taken>,
    (horizon, now): (DateTime<Utc>, DateTime<Utc>),
    writer: &str,
) -> Result<Expiry> {
    let StreamId::Postgres { system_id } = *chain.stream() else { return Ok(Expiry::default()) };
    let at = holds::store_time(store, system_id).await?;
    let horizon = lived_through(horizon, now, at);
    let held = holds::held(store, system_id, at).await?;
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

/// Returns the horizon by the store's clock where this machine's, which says `now`, is ahead of it: what a clock has jumped over was not
/// lived through.
pub fn lived_through(horizon: DateTime<Utc>, now: DateTime<Utc>, store: DateTime<Utc>) -> DateTime<Utc> {
    horizon - (now - store).max(TimeDelta::zero())
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

/// What a run by hand does to the WAL of a system.
#[derive(Debug, Default)]
pub struct ByHand {
    /// What is expired, or would be.
    pub expired: Expiry,
    /// Objects that were deleted, expired earlier.
    pub deleted: u64,
    /// The base backups that cannot be read, and stay.
    pub passed_over: Option<Error>,
}

/// Expires what one system does not need to lead to every moment from `horizon` on, and deletes what was expired earlier. Without a
/// writer it only says what would go.
///
/// # Errors
/// The store's, and what is damaged in the chain.
pub async fn by_hand(
    store: &Store,
    stream: &StreamId,
    (horizon, now): (DateTime<Utc>, DateTime<Utc>),
    writer: Option<&str>,
) -> Result<ByHand> {
    let mut done = ByHand::default();
    let StreamId::Postgres { system_id } = *stream else { return Ok(done) };
    let Some(mut chain) = Chain::open(store, stream).await? else { return Ok(done) };
    let found = backups(store, system_id, chain.backups()).await?;
    done.passed_over = found.error();
    let taken = found.sound.into_iter().map(|backup| backup.taken).collect();
    let Some(writer) = writer else {
        // Nothing is written, so that the store's clock is not known.
        let held = holds::held(store, system_id, now).await?;
        let expirable = recoverable::expirable(store, &chain, taken, horizon, &held).await?;
        done.expired.wal = chain.to_expire(&expirable.before, now).await?.retired;
        done.expired.backups = expirable.backups.len() as u64;
        return Ok(done);
    };
    done.expired = expire(store, &mut chain, taken, (horizon, now), writer).await?;
    let at = holds::store_time(store, system_id).await?;
    done.deleted = delete_obsolete(store, &chain, (at, Some(lived_through(horizon, now, at)))).await?;
    Ok(done)
}

#[cfg(test)]
pub(crate) mod tests;
