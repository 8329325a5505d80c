//! Expires the versions of state that retention lets go, at the start and every ten minutes, beside the keeping of new ones.
//!
//! An entry of the chain expires them, made under a writer's id of its own; their objects are deleted an hour later. Broken off at
//! any point it leaves nothing half done. Replicas do this side by side: of two entries for the same versions one is written.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::manifest::state::retention;
use crate::manifest::{self, Chain, holds};
use crate::pipeline::backoff::Backoff;
use crate::pipeline::postgres::left_to_others;
use crate::pipeline::published::Opened;
use crate::pipeline::tasks::Reporter;
use crate::store::{Store, layout};
use crate::stream::{Retired, StateKind, StateOf, StreamId};

/// How often it is looked whether something is to be done.
const EVERY: Duration = Duration::from_secs(600);

/// Works until it is aborted. What fails is told and comes up again.
pub(in crate::pipeline) async fn run((cluster, kept): (String, Duration), opened: Opened, reporter: Reporter) {
    let mut backoff = Backoff::new(reporter);
    loop {
        match round(&opened, &cluster, kept).await {
            Ok(Ok(())) => {
                backoff.succeeded();
                tokio::time::sleep(EVERY).await;
            }
            // The rest was looked at: what is damaged is no reason to ask for all of it sooner.
            Ok(Err(error)) => backoff.wait_at_least(EVERY, PUT_OFF, error).await,
            Err(error) => backoff.wait_after(PUT_OFF, error).await,
        }
    }
}

const PUT_OFF: &str = "the maintenance of the state of Kafka is put off";

/// Looks at each kind of state of a cluster. Within is the first error of one of them, which keeps none of the others; the store's
/// own are errors.
async fn round(opened: &Opened, cluster: &str, kept: Duration) -> Result<Result<()>> {
    let (store, writer) = (&opened.store, format!("{}e", opened.writer));
    let now = now(store).await?;
    let mut failed = Ok(());
    for kind in StateKind::ALL {
        let stream = StreamId::State(StateOf { kind, scope: cluster.to_owned() });
        failed = failed.and(manifest::isolated(store, tidy(store, &stream, (kept, now), &writer).await).await?);
    }
    Ok(failed)
}

async fn tidy(store: &Store, stream: &StreamId, at: (Duration, DateTime<Utc>), writer: &str) -> Result<()> {
    let Some(mut chain) = Chain::open(store, stream).await? else { return Ok(()) };
    expire(&mut chain, at, writer).await?;
    left_to_others(retention::delete_expired(store, &chain, at.1).await)
}

/// The time by the store's clock: no machine with a wrong clock expires too much.
pub async fn now(store: &Store) -> Result<DateTime<Utc>> {
    holds::store_time_in(store, &layout::state_holds()).await
}

/// The moment from which on all is told.
///
/// # Errors
/// [`Kind::Config`] for a time that no calendar reaches back.
pub fn horizon(kept: Duration, now: DateTime<Utc>) -> Result<DateTime<Utc>> {
    let span = TimeDelta::from_std(kept).or_err(Kind::Config, || "retention.state is too long".to_owned())?;
    now.checked_sub_signed(span).ok_or_else(|| Error::new(Kind::Config, "retention.state is too long"))
}

/// Expires what is not needed to tell one kind of state as of every moment of the time `kept` before `now`.
pub async fn expire(chain: &mut Chain, (kept, now): (Duration, DateTime<Utc>), writer: &str) -> Result<Retired> {
    retention::expire(chain, horizon(kept, now)?, (writer, now)).await
}
