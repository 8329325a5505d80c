//! Gives up the records that retention lets go, at the start and every ten minutes, beside archiving.
//!
//! Every life of every topic of the cluster is looked at once, and again when something of it may have come of age: one that has ended
//! and of which nothing is left costs nothing more. Entries are made under a writer's id of their own; broken off at any point it
//! leaves nothing half done, and of several processes that do so at once one has the number.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::manifest::{self, Chain, aged, holds, reads};
use crate::pipeline::backoff::Backoff;
use crate::pipeline::postgres::left_to_others;
use crate::pipeline::published::Opened;
use crate::pipeline::tasks::Reporter;
use crate::store::{Store, layout};
use crate::stream::{Retired, TopicLife};

/// How often it is looked whether something is to be done.
const EVERY: Duration = Duration::from_secs(600);

/// A stream that seems to change no more is looked at again after this time.
const SELDOM: TimeDelta = TimeDelta::hours(24);

/// Works until it is aborted. What fails is told and comes up again.
pub(in crate::pipeline) async fn run((cluster, kept): (String, Duration), opened: Opened, reporter: Reporter) {
    let mut backoff = Backoff::new(reporter);
    let mut due = BTreeMap::new();
    loop {
        match round(&opened, (&cluster, kept), &mut due).await {
            Ok(()) => {
                backoff.succeeded();
                tokio::time::sleep(EVERY).await;
            }
            Err(error) => backoff.wait_after("the upkeep of the archived topics is put off", error).await,
        }
    }
}

/// Looks at the lives that are due. One that is damaged keeps none of the others.
async fn round(
    opened: &Opened,
    (cluster, kept): (&str, Duration),
    due: &mut BTreeMap<TopicLife, DateTime<Utc>>,
) -> Result<()> {
    let (store, writer) = (&opened.store, format!("{}e", opened.writer));
    let at = Moment::now(store, cluster, kept).await?;
    let mut failed = Ok(());
    for life in manifest::lives_named(store, cluster).await? {
        if due.get(&life).is_some_and(|due| at.now < *due) {
            continue;
        }
        match tidy(store, &life, &at, &writer).await {
            Ok(next) => drop(due.insert(life, next)),
            Err(error) if error.is_transient() => return Err(error),
            Err(error) => failed = failed.and(Err(error)),
        }
    }
    failed
}

/// When it is looked, and what is read then.
pub struct Moment {
    /// By the store's clock.
    pub now: DateTime<Utc>,
    /// What was archived until then goes.
    pub horizon: DateTime<Utc>,
    /// What is read of the cluster's topics.
    pub held: reads::Held,
}

impl Moment {
    /// Now, by the store's clock: no machine with a wrong clock gives up too much.
    pub async fn now(store: &Store, cluster: &str, kept: Duration) -> Result<Self> {
        let now = holds::store_time_in(store, &layout::topic_holds(cluster)).await?;
        Self::at(store, cluster, (kept, now)).await
    }

    /// At a time.
    ///
    /// # Errors
    /// [`Kind::Config`] for a time that no calendar reaches back, and the store's.
    pub async fn at(store: &Store, cluster: &str, (kept, now): (Duration, DateTime<Utc>)) -> Result<Self> {
        let too_long = || "retention.kafka is too long".to_owned();
        let span = TimeDelta::from_std(kept).or_err(Kind::Config, too_long)?;
        let horizon = now.checked_sub_signed(span).ok_or_else(|| Error::new(Kind::Config, too_long()))?;
        Ok(Self { now, horizon, held: reads::held(store, cluster, now).await? })
    }
}

/// Gives up what is old of one life and deletes what was given up; gives when to look again.
async fn tidy(store: &Store, life: &TopicLife, at: &Moment, writer: &str) -> Result<DateTime<Utc>> {
    let Some(mut chain) = Chain::open(store, &life.stream()).await? else { return Ok(at.now) };
    let then = aged::then(&chain, at.horizon).await?;
    let steps = aged::surplus(&chain, &then, &at.held).await?;
    let given = aged::give_up(&mut chain, &steps, (writer, at.now)).await?;
    let swept = match aged::sweep(store, &chain, (at.now, at.horizon), &at.held).await {
        Ok(swept) => swept,
        Err(error) => {
            left_to_others(Err(error))?;
            aged::Swept::default()
        }
    };
    let is_held = steps.is_empty()
        && then.progress.positions().any(|old| chain.position(old.partition).is_some_and(|now| now.start < old.end));
    if swept.waits || is_held || given != Retired::default() {
        return Ok(at.now);
    }
    let age = at.now - at.horizon;
    Ok(then.next.map_or(at.now + SELDOM, |next| next + age).max(at.now))
}
