//! Maintenance of the archive of Kafka's state: versions that retention lets go.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use super::left_to_others;
use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::manifest::state::{self as versions, Version, retention};
use crate::manifest::{Chain, holds};
use crate::store::{Store, layout};
use crate::stream::{Retired, StreamId, Totals};

/// Expires and deletes what retention lets go of one kind of state.
pub(crate) async fn tidy(store: &Store, stream: &StreamId, at: (Duration, DateTime<Utc>), writer: &str) -> Result<()> {
    let Some(mut chain) = Chain::open(store, stream).await? else { return Ok(()) };
    expire(&mut chain, at, writer).await?;
    left_to_others(retention::delete_expired(store, &chain, at.1).await)
}

/// The time by the store's clock: no machine with a wrong clock expires too much.
pub(crate) async fn now(store: &Store) -> Result<DateTime<Utc>> {
    holds::store_time_in(store, &layout::state_holds()).await
}

/// The moment from which on all is told.
///
/// # Errors
/// [`Kind::Config`] for a time that no calendar reaches back.
fn horizon(kept: Duration, now: DateTime<Utc>) -> Result<DateTime<Utc>> {
    let span = TimeDelta::from_std(kept).or_err(Kind::Config, || "retention.state is too long".to_owned())?;
    now.checked_sub_signed(span).ok_or_else(|| Error::new(Kind::Config, "retention.state is too long"))
}

/// Expires what is not needed to tell one kind of state as of every moment of the time `kept` before `now`.
async fn expire(chain: &mut Chain, (kept, now): (Duration, DateTime<Utc>), writer: &str) -> Result<Retired> {
    retention::expire(chain, horizon(kept, now)?, (writer, now)).await
}

/// What a run by hand does to a document of state.
#[derive(Debug)]
pub struct ByHand {
    /// What is expired, or would be.
    pub expired: Retired,
    /// What was there before.
    pub before: Totals,
    /// The first version that stays.
    pub oldest: Option<Version>,
    /// Objects that were deleted, expired earlier.
    pub deleted: u64,
}

/// Expires the versions of a document that are not needed to tell it as of every moment of the time `kept`, and deletes what was expired
/// earlier. Without a writer it only says what would go. None if there is no such document.
///
/// # Errors
/// [`Kind::Config`] for a time that no calendar reaches back, the store's, and what is damaged in the chain.
pub async fn by_hand(
    store: &Store,
    stream: &StreamId,
    (kept, dry): (Duration, DateTime<Utc>),
    writer: Option<&str>,
) -> Result<Option<ByHand>> {
    let Some(mut chain) = Chain::open(store, stream).await? else { return Ok(None) };
    let now = if writer.is_some() { now(store).await? } else { dry };
    let planned = retention::expirable(&chain, horizon(kept, now)?).await?;
    let oldest = match &planned {
        Some(range) => versions::version(&chain, range.end).await?,
        None => versions::oldest(&chain).await?,
    };
    let expired = retention::sum(&chain, planned.unwrap_or(0..0)).await?;
    let mut done = ByHand { expired, before: chain.totals().present(), oldest, deleted: 0 };
    if let Some(writer) = writer {
        expire(&mut chain, (kept, now), writer).await?;
        done.deleted = retention::delete_expired(store, &chain, now).await?;
    }
    Ok(Some(done))
}
