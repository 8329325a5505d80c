//! Maintenance of the archive of a topic: records that retention lets go.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use super::left_to_others;
use crate::config::{Kept, RecordRetention};
use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::manifest::aged::{self, Aged, Clock, Deletion, Stays};
use crate::manifest::{self, Chain, holds, reads};
use crate::store::{Store, layout};
use crate::stream::{Retired, TopicGeneration, Totals};

/// A stream that seems to change no more is looked at again after this time.
const SELDOM: TimeDelta = TimeDelta::hours(24);

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

/// What is known of a generation from one look to the next.
#[derive(Default)]
pub(crate) struct Known {
    /// When it is looked at again.
    pub(crate) due: Option<DateTime<Utc>>,
    aged: Aged,
    stays: Stays,
    /// What was there of it when it was looked at last, as it is stored.
    pub(crate) bytes: u64,
}

/// Puts the newest generation of each topic first: an older one has what they leave of the topic's size.
pub(crate) fn newest_first(generations: &mut [TopicGeneration]) {
    generations.sort_by(|one, other| {
        (&one.cluster, &one.topic, other.number).cmp(&(&other.cluster, &other.topic, one.number))
    });
}

/// What is there of the generations of a topic that were looked at before.
#[derive(Debug, Default)]
pub(crate) struct Newer {
    topic: Option<(String, String)>,
    bytes: u64,
}

impl Newer {
    /// Returns what of `kept` the newer generations leave to this one.
    pub(crate) fn leave(&mut self, generation: &TopicGeneration, kept: Kept) -> Kept {
        let topic = Some((generation.cluster.clone(), generation.topic.clone()));
        if self.topic != topic {
            *self = Self { topic, bytes: 0 };
        }
        Kept { bytes: kept.bytes.map(|bytes| bytes.saturating_sub(self.bytes)), ..kept }
    }

    /// Adds what is there of it.
    pub(crate) fn add(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
    }
}

/// Expires what is old of one generation and deletes what was expired; gives when to look again.
pub(crate) async fn tidy(
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

/// Returns when something that was archived at `next` comes of age; nothing is left alone for longer than a day, whatever it is dated.
fn due(next: Option<DateTime<Utc>>, Clock { now, horizon }: Clock) -> DateTime<Utc> {
    let seldom = now.checked_add_signed(SELDOM).unwrap_or(now);
    let of_age = next.and_then(|next| next.checked_add_signed(now - horizon));
    of_age.unwrap_or(seldom).clamp(now, seldom)
}

/// What a run by hand does to a generation of a topic.
#[derive(Debug)]
pub struct ByHand {
    /// What is expired, or would be.
    pub expired: Retired,
    /// What was there before.
    pub before: Totals,
    /// Whether it would be more if nobody read it.
    pub held: bool,
    /// Objects that were deleted, expired earlier.
    pub deleted: u64,
}

impl ByHand {
    /// Returns how many bytes of objects stay.
    pub fn kept_bytes(&self) -> u64 {
        self.before.stored_bytes.saturating_sub(self.expired.stored_bytes)
    }
}

/// Expires what retention lets go of these generations of topics, and deletes what was expired earlier. Without a writer it only says
/// what would go. Each generation has its own outcome, in the order of their names: what is damaged in one keeps nothing of the others.
///
/// # Errors
/// The store's.
pub async fn by_hand(
    store: &Store,
    mut generations: Vec<TopicGeneration>,
    retention: &RecordRetention,
    now: DateTime<Utc>,
    writer: Option<&str>,
) -> Result<Vec<(TopicGeneration, Result<ByHand>)>> {
    newest_first(&mut generations);
    let (mut newer, mut done) = (Newer::default(), Vec::new());
    for generation in generations {
        let Some(kept) = retention.of(&generation) else { continue };
        let kept = newer.leave(&generation, kept);
        let one = one_by_hand(store, &generation, (kept, now), writer).await;
        match manifest::isolated(store, one).await? {
            Ok(None) => {}
            Ok(Some(one)) => {
                newer.add(one.kept_bytes());
                done.push((generation, Ok(one)));
            }
            Err(error) => done.push((generation, Err(error))),
        }
    }
    done.sort_by_cached_key(|(generation, _)| generation.to_string());
    Ok(done)
}

/// Expires what of a generation of a topic was archived longer ago or lies beyond the size than is kept.
async fn one_by_hand(
    store: &Store,
    generation: &TopicGeneration,
    (kept, now): (Kept, DateTime<Utc>),
    writer: Option<&str>,
) -> Result<Option<ByHand>> {
    let Some(mut chain) = Chain::open(store, &generation.stream()).await? else { return Ok(None) };
    let at = match writer {
        None => Moment::at(store, &generation.cluster, now).await?,
        Some(_) => Moment::now(store, &generation.cluster).await?,
    };
    let clock = at.clock(kept.time)?;
    let (mut aged, mut steps, mut held) = (Aged::default(), Vec::new(), false);
    loop {
        aged.go_on(&chain, clock, kept.bytes).await?;
        let step = aged.expirable(&chain, &at.held, clock).await?;
        held |= step != aged.expirable(&chain, &reads::Held::default(), clock).await?;
        steps.push(step);
        if !aged.more {
            break;
        }
    }
    let expired = aged::sum(&chain, &steps).await?;
    let mut done = ByHand { expired, before: chain.totals().present(), held, deleted: 0 };
    if let Some(writer) = writer {
        aged::expire(&mut chain, &steps, (writer, at.now)).await?;
        let sealed_by = aged.sealed_by(clock);
        done.deleted = aged::delete_expired(store, &chain, sealed_by, &at.held, &mut Stays::default()).await?.deleted;
    }
    Ok(Some(done))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + seconds, 0).expect("a time")
    }

    #[test]
    fn the_next_look_is_within_a_day_whatever_an_entry_is_dated() {
        for kept in [1, 86_400, 1 << 40] {
            let clock = Clock { now: at(0), horizon: at(0) - TimeDelta::seconds(kept) };
            for next in [None, Some(DateTime::<Utc>::MAX_UTC), Some(DateTime::<Utc>::MIN_UTC), Some(at(1 - kept))] {
                let due = due(next, clock);
                assert!((at(0)..=at(0) + SELDOM).contains(&due), "{next:?} {due}");
            }
            assert_eq!(due(Some(at(60 - kept)), clock), at(60));
        }
        let last = Clock { now: DateTime::<Utc>::MAX_UTC, horizon: at(0) };
        assert_eq!(due(None, last), DateTime::<Utc>::MAX_UTC);
    }

    #[test]
    fn the_generations_of_a_topic_share_its_size_and_the_newest_has_it_first() {
        let of = |topic: &str, number| TopicGeneration::new("main", topic, number);
        let mut all = vec![of("a", 0), of("b", 0), of("a", 10), of("a", 2)];
        newest_first(&mut all);
        assert_eq!(all, [of("a", 10), of("a", 2), of("a", 0), of("b", 0)]);
        let (kept, mut newer) = (Kept { time: None, bytes: Some(100) }, Newer::default());
        let mut left = Vec::new();
        for (generation, bytes) in all.iter().zip([70, 50, 5, 90]) {
            left.push(newer.leave(generation, kept).bytes);
            newer.add(bytes);
        }
        assert_eq!(left, [Some(100), Some(30), Some(0), Some(100)]);
    }
}
