//! Expires the records that retention lets go, at the start and every ten minutes, beside archiving.
//!
//! Every generation of every topic of the cluster is looked at once, and again when something of it may have come of age: one that has ended
//! and of which nothing is left costs nothing more. Entries are made under a writer's id of their own; broken off at any point it
//! leaves nothing half done, and of several processes that do so at once one has the number.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tokio::time::Instant;

use crate::config::{Kept, RecordRetention};
use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::manifest::aged::{self, Aged, Clock, Deletion, GRACE, Stays};
use crate::manifest::{self, Chain, holds, reads};
use crate::pipeline::backoff::Backoff;
use crate::pipeline::postgres::left_to_others;
use crate::pipeline::published::Opened;
use crate::pipeline::tasks::Reporter;
use crate::store::{Store, layout};
use crate::stream::{Retired, TopicGeneration};

/// How often it is looked whether something is to be done.
const EVERY: Duration = Duration::from_secs(600);

/// A stream that seems to change no more is looked at again after this time.
const SELDOM: TimeDelta = TimeDelta::hours(24);

/// By so much the store's clock may go ahead of this machine's stopwatch between two looks.
const NO_JUMP: TimeDelta = TimeDelta::minutes(5);

/// Works until it is aborted. What fails is told and comes up again.
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

/// What is known of one.
#[derive(Default)]
struct Known {
    /// When it is looked at again.
    due: Option<DateTime<Utc>>,
    aged: Aged,
    stays: Stays,
    /// What was there of it when it was looked at last, as it is stored.
    bytes: u64,
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

/// Puts the newest generation of each topic first: an older one has what they leave of the topic's size.
pub fn newest_first(generations: &mut [TopicGeneration]) {
    generations.sort_by(|one, other| {
        (&one.cluster, &one.topic, other.number).cmp(&(&other.cluster, &other.topic, one.number))
    });
}

/// What is there of the generations of a topic that were looked at before.
#[derive(Debug, Default)]
pub struct Newer {
    topic: Option<(String, String)>,
    bytes: u64,
}

impl Newer {
    /// Returns what of `kept` the newer generations leave to this one.
    pub fn leave(&mut self, generation: &TopicGeneration, kept: Kept) -> Kept {
        let topic = Some((generation.cluster.clone(), generation.topic.clone()));
        if self.topic != topic {
            *self = Self { topic, bytes: 0 };
        }
        Kept { bytes: kept.bytes.map(|bytes| bytes.saturating_sub(self.bytes)), ..kept }
    }

    /// Adds what is there of it.
    pub fn add(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
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

/// When it is looked, and what is read then.
pub struct Moment {
    /// By the store's clock.
    pub now: DateTime<Utc>,
    /// What is read of the cluster's topics.
    pub held: reads::Held,
}

impl Moment {
    /// Now, by the store's clock: no machine with a wrong clock expires too much.
    pub async fn now(store: &Store, cluster: &str) -> Result<Self> {
        let now = holds::store_time_in(store, &layout::topic_holds(cluster)).await?;
        Self::at(store, cluster, now).await
    }

    /// At a time.
    pub async fn at(store: &Store, cluster: &str, now: DateTime<Utc>) -> Result<Self> {
        Ok(Self { now, held: reads::held(store, cluster, now).await? })
    }

    /// Returns until when what was archived is old: nothing is where all is kept.
    ///
    /// # Errors
    /// [`Kind::Config`] for a time that no calendar reaches back.
    pub fn clock(&self, kept: Option<Duration>) -> Result<Clock> {
        let Some(kept) = kept else { return Ok(Clock { now: self.now, horizon: DateTime::<Utc>::MIN_UTC }) };
        let too_long = || "retention.kafka is too long".to_owned();
        let span = TimeDelta::from_std(kept).or_err(Kind::Config, too_long)?;
        let horizon = self.now.checked_sub_signed(span).ok_or_else(|| Error::new(Kind::Config, too_long()))?;
        Ok(Clock { now: self.now, horizon })
    }
}

/// Expires what is old of one generation and deletes what was expired; gives when to look again.
async fn tidy(
    store: &Store,
    generation: &TopicGeneration,
    (at, kept, known): (&Moment, Kept, &mut Known),
    writer: &str,
) -> Result<DateTime<Utc>> {
    let (now, clock) = (at.now, at.clock(kept.time)?);
    let Some(mut chain) = Chain::open(store, &generation.stream()).await? else { return Ok(now) };
    known.aged.go_on(&chain, clock, kept.bytes).await?;
    let step = known.aged.expirable(&chain, &at.held, clock).await?;
    let given = aged::expire(&mut chain, std::slice::from_ref(&step), (writer, now)).await?;
    let deletion =
        match aged::delete_expired(store, &chain, known.aged.sealed_by(clock), &at.held, &mut known.stays).await {
            Ok(deletion) => deletion,
            Err(error) => {
                left_to_others(Err(error))?;
                Deletion::default()
            }
        };
    let is_left = |old: i32, end: i64| chain.position(old).is_some_and(|now| now.start < end);
    let is_held = step.is_empty() && known.aged.progress().positions().any(|old| is_left(old.partition, old.end));
    known.bytes = chain.totals().present().stored_bytes;
    // The size of a topic is that of all its generations: what comes into one may be too much of another.
    let may_grow = kept.bytes.is_some() && known.bytes > 0;
    match may_grow || deletion.waits || is_held || known.aged.more || given != Retired::default() {
        true => Ok(now),
        false => Ok(due(known.aged.next, clock)),
    }
}

/// When something that was archived at `next` comes of age; nothing is left alone for longer than a day, whatever it is dated.
fn due(next: Option<DateTime<Utc>>, Clock { now, horizon }: Clock) -> DateTime<Utc> {
    let seldom = now.checked_add_signed(SELDOM).unwrap_or(now);
    let of_age = next.and_then(|next| next.checked_add_signed(now - horizon));
    of_age.unwrap_or(seldom).clamp(now, seldom)
}

#[cfg(test)]
mod tests;
