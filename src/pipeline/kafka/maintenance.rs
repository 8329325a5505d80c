//! Expires the records that retention lets go, at the start and every ten minutes, beside archiving.
//!
//! Every generation of every topic of the cluster is looked at once, and again when something of it may have come of age: one that has ended
//! and of which nothing is left costs nothing more. Entries are made under a writer's id of their own; broken off at any point it
//! leaves nothing half done, and of several processes that do so at once one has the number.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tokio::time::Instant;

use crate::config::RecordRetention;
use crate::error::Result;
use crate::maintenance::left_to_others;
use crate::maintenance::topics::{Known, Moment, Newer, newest_first, tidy};
use crate::manifest::aged::GRACE;
use crate::manifest::{self, reads};
use crate::pipeline::published::Opened;
use crate::stream::TopicGeneration;
use crate::tasks::Reporter;
use crate::tasks::backoff::Backoff;

/// How often it is looked whether something is to be done.
const EVERY: Duration = Duration::from_secs(600);

/// By so much the store's clock may go ahead of this machine's stopwatch between two looks.
const NO_JUMP: TimeDelta = TimeDelta::minutes(5);

/// Works until it is aborted. What fails is reported, and tried again in the next round.
pub(in crate::pipeline) async fn run(
    (cluster, retention): (String, RecordRetention),
    opened: Opened,
    reporter: Reporter,
) {
    let mut backoff = Backoff::new(reporter);
    let mut maintenance = Maintenance::new(opened, cluster, retention);
    loop {
        match maintenance.round().await {
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

const PUT_OFF: &str = "the maintenance of the archived topics is put off";

/// What is known of the generations of a cluster's topics from one look to the next.
struct Maintenance {
    opened: Opened,
    cluster: String,
    retention: RecordRetention,
    generations: BTreeMap<TopicGeneration, Known>,
    steady: Steady,
}

impl Maintenance {
    fn new(opened: Opened, cluster: String, retention: RecordRetention) -> Self {
        Self { opened, cluster, retention, generations: BTreeMap::new(), steady: Steady::default() }
    }

    /// Looks at the generations that are due. Within is the first error of one of them, which keeps none of the others; the store's own
    /// are errors.
    async fn round(&mut self) -> Result<Result<()>> {
        let (store, writer) = (&self.opened.store, format!("{}e", self.opened.writer));
        let at = Moment::now(store, &self.cluster).await?;
        if !self.steady.is(at.now, Instant::now()) {
            tracing::warn!(now = %at.now, "the clock of the store went ahead: nothing is expired for an hour, if it is right");
            return Ok(Ok(()));
        }
        left_to_others(reads::remove_lapsed(store, &self.cluster, at.now).await.map(|()| 0))?;
        let (mut failed, mut newer) = (Ok(()), Newer::default());
        let mut generations = manifest::generations_named(store, &self.cluster).await?;
        newest_first(&mut generations);
        for generation in generations {
            let Some(kept) = self.retention.of(&generation) else { continue };
            let kept = newer.leave(&generation, kept);
            let known = self.generations.entry(generation.clone()).or_default();
            if known.due.is_none_or(|due| due <= at.now) {
                match manifest::isolated(store, tidy(store, &generation, (&at, kept, known), &writer).await).await? {
                    Ok(next) => known.due = Some(next),
                    Err(error) => failed = failed.and(Err(error)),
                }
            }
            newer.add(known.bytes);
        }
        Ok(failed)
    }
}

/// Whether the store's clock goes as fast as a stopwatch. One that goes ahead of it is believed after an hour: by then a jump that
/// was a mistake may have been put right, and nothing was expired by it.
#[derive(Default)]
struct Steady {
    last: Option<(DateTime<Utc>, Instant)>,
    jumped: Option<Instant>,
}

impl Steady {
    fn is(&mut self, now: DateTime<Utc>, instant: Instant) -> bool {
        if let Some((then, at)) = self.last.replace((now, instant)) {
            let passed = TimeDelta::from_std(instant.duration_since(at)).unwrap_or(TimeDelta::MAX);
            let ahead = now.signed_duration_since(then).checked_sub(&passed).is_some_and(|ahead| ahead > NO_JUMP);
            self.jumped = if ahead { Some(instant) } else { self.jumped };
        }
        let grace = GRACE.to_std().unwrap_or(Duration::MAX);
        self.jumped.is_none_or(|jumped| instant.duration_since(jumped) >= grace)
    }
}

#[cfg(test)]
mod tests;
