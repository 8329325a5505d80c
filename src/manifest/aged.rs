//! What retention expires of a topic: what was archived long ago, and what lies beyond a size.
//!
//! ```text
//!   entries   0 ─ 1 ─ 2 ─ … ─ 64 snapshot ─ 65 ─ 66 ─ 67 ─ …        a segment is as old as the entry that names it: expired is
//!             ▲           horizon ─────────────────┘                 what the entries up to 65 add, whole segments alone
//!             └ from what was expired last on, one after the other
//! ```
//!
//! Dates may fall: a clock was behind, or ahead, and then right. So an entry counts for old only if it and all before it that are
//! kept say so: what it says, what the store says of its object, and what its segments say of when they were sealed and of the latest
//! of their records. A date that lies ahead of now is wrong and says nothing; an entry of which nothing else is known is as old as
//! one behind it is. A wrong date of a record so keeps it at most as long again, and never expires it. Everything up to an entry
//! goes in one step, so each segment is on one side of it with all its partitions. What goes because of its [size] goes however young
//! it is, and keeps nothing behind it that is old.

use std::collections::BTreeMap;
use std::ops::Range;

use chrono::{DateTime, TimeDelta, Utc};
use futures::{StreamExt as _, TryStreamExt as _, stream};

use super::reads::Held;
use super::reads_at_once::READS_AT_ONCE;
use super::{Chain, Selection, entry, stored};
use crate::error::Result;
use crate::store::layout::Name;
use crate::stream::invariants::SNAPSHOT_EVERY;
use crate::stream::{Body, PartitionRange, Progress, Retired, SegmentRef, StreamId};

mod delete;
mod size;

use size::{Fit, Surplus};

pub use delete::{Deletion, Stays, delete_expired};

/// Objects are deleted this long after their segments were expired: who chose one before has read it by then, or holds it.
pub const GRACE: TimeDelta = TimeDelta::hours(1);

/// So many entries are expired by an entry, and looked at in one go: what the chain lists of them is in memory meanwhile.
const ENTRIES_AT_ONCE: u64 = 64 * SNAPSHOT_EVERY;

/// When it is looked, and until when what was archived is old.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clock {
    /// By the store's clock.
    pub now: DateTime<Utc>,
    /// What was archived until then is old.
    pub horizon: DateTime<Utc>,
}

/// What an entry's dates say of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Age {
    Old,
    /// It was archived then.
    Young(DateTime<Utc>),
    /// Nothing: it is dated ahead of now.
    Unknown,
}

/// An entry, and how it is dated.
struct Dated {
    number: u64,
    body: Body,
    sha256: String,
    /// When it was written, by its writer's clock.
    at: DateTime<Utc>,
    /// The same by the store's.
    stored: DateTime<Utc>,
}

impl Dated {
    async fn read(chain: &Chain, number: u64) -> Result<Self> {
        let read = stored::read_dated(&chain.store, chain.stream(), number).await?;
        let (entry, stored) = read.ok_or_else(|| entry::missing(chain.stream(), number))?;
        Ok(Self { number, at: entry.checkpoint.at, body: entry.checkpoint.body, sha256: entry.sha256, stored })
    }

    fn age(&self, clock: Clock) -> Age {
        let segments = self.body.segments().iter().flat_map(dates);
        let all = [self.at, self.stored].into_iter().chain(segments);
        match all.filter(|date| clock.horizon < *date && *date <= clock.now).max() {
            Some(date) => Age::Young(date),
            None if self.at.max(self.stored) <= clock.horizon => Age::Old,
            None => Age::Unknown,
        }
    }
}

/// When a segment was sealed, and the latest timestamps of its records.
fn dates(segment: &SegmentRef) -> impl Iterator<Item = DateTime<Utc>> {
    let latest = segment.partitions.iter().filter_map(|range| range.max_timestamp);
    sealed(segment).into_iter().chain(latest.filter_map(DateTime::from_timestamp_millis))
}

/// When a segment was sealed.
fn sealed(segment: &SegmentRef) -> Option<DateTime<Utc>> {
    match Name::parse(&segment.object) {
        Ok(Name::Records { sealed, .. }) => Some(sealed),
        _ => None,
    }
}

/// What is archived by an entry and all before it.
#[derive(Debug, Clone, Default)]
struct Taken {
    progress: Progress,
    /// That entry, and the sha256 of its bytes; none where none is.
    through: Option<(u64, String)>,
    /// The latest of their dates: no later than that were their segments sealed, by right clocks.
    latest: Option<DateTime<Utc>>,
}

impl Taken {
    fn add(&mut self, entry: Dated, clock: Clock) {
        self.progress.add(&entry.body);
        let dates = entry.body.segments().iter().filter_map(sealed).chain([entry.at]);
        self.latest = dates.chain(self.latest).filter(|date| *date <= clock.now).max();
        self.through = Some((entry.number, entry.sha256));
    }
}

/// One pass over the entries behind those that go.
struct Pass {
    clock: Clock,
    surplus: Option<Surplus>,
    /// With entries of which it is not plain yet whether they go: one behind them tells.
    pending: Option<Taken>,
    /// The date of the first of them that is young, which keeps what is old behind it.
    young: Option<DateTime<Utc>>,
}

impl Pass {
    /// Whether an entry may follow that goes with all that are pending: a merge may have left thousands without anything of their own.
    fn is_open(&self) -> bool {
        self.pending.is_some() && self.surplus.as_ref().is_some_and(|surplus| surplus.left > 0)
    }

    /// Adds an entry to `aged` if it goes; whether neither it nor any behind it does.
    fn ends_at(&mut self, entry: Dated, aged: &mut Aged, chain: &Chain) -> bool {
        let fit = self.surplus.as_mut().map_or(Fit::Stays, |surplus| surplus.fit(chain, &entry.body));
        let age = entry.age(self.clock);
        if fit == Fit::Goes || (age == Age::Old && self.young.is_none()) {
            if let Some(pending) = self.pending.take() {
                aged.taken = pending;
            }
            aged.taken.add(entry, self.clock);
            (aged.wanted, self.young) = (None, None);
            return false;
        }
        if let Age::Young(date) = age {
            self.young = self.young.or(Some(date));
        }
        if fit == Fit::Stays && self.young.is_some() {
            return true;
        }
        self.pending.get_or_insert_with(|| aged.taken.clone()).add(entry, self.clock);
        false
    }
}

/// How far a chain has come of age, and goes beyond its size. It is gone on with as time passes, so that each entry is read about once.
#[derive(Debug, Clone, Default)]
pub struct Aged {
    /// What is archived by the last entry that goes.
    taken: Taken,
    /// So much more than now would have to be too much that what is next goes for it; none where that is not known.
    wanted: Option<u64>,
    /// The date of the one behind it that is too young; none if there is none.
    pub next: Option<DateTime<Utc>>,
    /// Whether there may be more that goes: it is to be gone on with.
    pub more: bool,
}

impl Aged {
    /// What is archived by the last entry that goes.
    pub fn progress(&self) -> &Progress {
        &self.taken.progress
    }

    fn through(&self) -> Option<u64> {
        self.taken.through.as_ref().map(|(number, _)| *number)
    }

    /// Goes on to the last entry that goes now, or over some thousand entries: what is old, and what lies beyond the size `kept`.
    pub async fn go_on(&mut self, chain: &Chain, clock: Clock, kept: Option<u64>) -> Result<()> {
        self.go_on_over(chain, (clock, kept), ENTRIES_AT_ONCE).await
    }

    async fn go_on_over(&mut self, chain: &Chain, (clock, kept): (Clock, Option<u64>), most: u64) -> Result<()> {
        let is_known = match &self.taken.through {
            Some((number, sha256)) => stored::is_there(&chain.store, chain.stream(), *number, sha256).await?,
            None => false,
        };
        if !is_known {
            *self = Self::expired(chain).await?;
        }
        (self.next, self.more) = (None, false);
        let first = self.through().map_or(0, |through| through + 1);
        let last = chain.head().min(first.saturating_add(most - 1));
        let mut pass = Pass { clock, surplus: self.surplus_of_size(chain, kept).await?, pending: None, young: None };
        let (mut number, mut width, mut has_ended) = (first, 1, false);
        while !has_ended {
            let last = if pass.is_open() { chain.head() } else { last };
            if last < number {
                break;
            }
            let window = number..last.saturating_add(1).min(number + width);
            (number, width) = (window.end, (width * 4).min(READS_AT_ONCE as u64));
            let read = stream::iter(window).map(|number| Dated::read(chain, number)).buffered(READS_AT_ONCE);
            let entries: Vec<Dated> = read.try_collect().await?;
            if let Some(surplus) = &mut pass.surplus {
                surplus.look_ahead(chain, entries.iter().map(|entry| &entry.body)).await?;
            }
            has_ended = entries.into_iter().any(|entry| pass.ends_at(entry, self, chain));
        }
        if let Some(surplus) = pass.surplus {
            self.wanted = surplus.wanted;
        }
        self.next = pass.young;
        self.more = !has_ended && last < chain.head() && self.through().is_some_and(|through| first <= through);
        Ok(())
    }

    async fn surplus_of_size(&mut self, chain: &Chain, kept: Option<u64>) -> Result<Option<Surplus>> {
        let Some(kept) = kept else { return Ok(None) };
        if chain.totals().present().stored_bytes <= kept {
            return Ok(None);
        }
        let ends: BTreeMap<i32, i64> = self.progress().positions().map(|at| (at.partition, at.end)).collect();
        let going = sum(chain, std::slice::from_ref(&ends)).await?.stored_bytes;
        let found = Surplus::beyond(chain, kept, (ends, going));
        // Less than the last time when nothing went: what would go was looked at then.
        let wanted = self.wanted.unwrap_or(0);
        Ok(found.filter(|surplus| wanted <= surplus.left))
    }

    /// When the segments were sealed at the latest that [`delete_expired`] is to look at.
    pub fn sealed_by(&self, clock: Clock) -> Clock {
        Clock { horizon: self.taken.latest.map_or(clock.horizon, |latest| latest.max(clock.horizon)), ..clock }
    }

    /// As far as all is expired: how old that is does not matter any more. Positions never fall, so it is found by halving.
    async fn expired(chain: &Chain) -> Result<Self> {
        let is_kept = |at: &PartitionRange| chain.position(at.partition).is_none_or(|now| now.start < at.end);
        let snapshots = if chain.has_expired() { chain.head() / SNAPSHOT_EVERY } else { 0 };
        let first = chain.first_snapshot(snapshots, |snapshot| snapshot.positions.iter().any(is_kept)).await?;
        let number = first.saturating_sub(1) * SNAPSHOT_EVERY;
        if number == 0 {
            return Ok(Self::default());
        }
        let Dated { body, sha256, at, .. } = Dated::read(chain, number).await?;
        let Body::Snapshot(snapshot) = body else { return Ok(Self::default()) };
        let (progress, through) = (Progress::from_snapshot(&snapshot), Some((number, sha256)));
        Ok(Self { taken: Taken { progress, through, latest: Some(at) }, ..Self::default() })
    }

    /// The beginnings of partitions once all that is old is expired. Empty where nothing goes, or where something of it is read.
    ///
    /// # Errors
    /// The store's.
    pub async fn expirable(&self, chain: &Chain, held: &Held, clock: Clock) -> Result<BTreeMap<i32, i64>> {
        let beginnings = beginnings(chain.stream(), self.progress(), &chain.progress, held);
        if beginnings.is_empty() {
            return Ok(beginnings);
        }
        let beginnings = before_what_is_merged(chain, beginnings).await?;
        if beginnings.is_empty() {
            return Ok(beginnings);
        }
        // On a store that dates by this machine's clock, that clock is behind, or was ahead: it is waited until it is plain.
        let last = Dated::read(chain, chain.head()).await?;
        if last.stored.signed_duration_since(clock.now) > GRACE {
            tracing::warn!(stream = %chain.stream(), stored = %last.stored, now = %clock.now, "the last entry is dated ahead: \
                the clock of the store was ahead, or is behind now, and nothing of this topic is expired until it is past that");
            return Ok(BTreeMap::new());
        }
        Ok(beginnings)
    }
}

/// The beginnings of partitions once everything is expired that is archived by `then`, of a stream that is archived as far as
/// `now`. Empty where nothing goes, or where something of it is read.
fn beginnings(stream: &StreamId, then: &Progress, now: &Progress, held: &Held) -> BTreeMap<i32, i64> {
    let ends: BTreeMap<i32, i64> = then.positions().map(|at| (at.partition, at.end)).collect();
    let going: BTreeMap<i32, Range<i64>> = now
        .positions()
        .filter_map(|at| Some((at.partition, at.start..(*ends.get(&at.partition)?).min(at.end))))
        .filter(|(_, range)| !range.is_empty())
        .collect();
    if going.is_empty() || held.any_of(&stream.to_string(), &going) {
        return BTreeMap::new();
    }
    ends
}

/// The same without what was merged with something younger: each segment expires with all of its records, or stays.
async fn before_what_is_merged(chain: &Chain, mut beginnings: BTreeMap<i32, i64>) -> Result<BTreeMap<i32, i64>> {
    if !chain.has_merges() {
        return Ok(beginnings);
    }
    let going = |beginnings: &BTreeMap<i32, i64>| -> BTreeMap<i32, Range<i64>> {
        let of = |at: &PartitionRange| Some((at.partition, at.start..*beginnings.get(&at.partition)?));
        chain.positions().filter_map(of).filter(|(_, range)| !range.is_empty()).collect()
    };
    let wanted = Selection { timestamps: None, partitions: Some(going(&beginnings)) };
    let segments = chain.select(&wanted).await?.segments;
    // One that stays keeps what lies behind it, and that may keep others.
    loop {
        let before = beginnings.clone();
        for segment in segments.iter().rev() {
            let end = |range: &PartitionRange| beginnings.get(&range.partition).copied();
            if segment.partitions.iter().all(|range| end(range).is_some_and(|end| range.end <= end)) {
                continue;
            }
            for range in &segment.partitions {
                beginnings.entry(range.partition).and_modify(|end| *end = range.start.min(*end));
            }
        }
        if beginnings == before {
            break;
        }
    }
    Ok(if going(&beginnings).is_empty() { BTreeMap::new() } else { beginnings })
}

/// What these steps would retire.
pub async fn sum(chain: &Chain, steps: &[BTreeMap<i32, i64>]) -> Result<Retired> {
    let mut from: BTreeMap<i32, i64> = chain.positions().map(|at| (at.partition, at.start)).collect();
    let mut sum = Retired::default();
    for step in steps {
        let range = |(partition, before): (&i32, &i64)| {
            let start = from.get(partition).copied()?;
            Some((*partition, start..*before)).filter(|(_, range)| !range.is_empty())
        };
        let partitions = step.iter().filter_map(range).collect();
        let found = chain.select(&Selection { timestamps: None, partitions: Some(partitions) }).await?.segments;
        let goes = |at: &PartitionRange| step.get(&at.partition).is_some_and(|before| at.end <= *before);
        sum.add(&Retired::of(found.iter().filter(|segment| segment.partitions.iter().all(goes))));
        from.extend(step.iter().map(|(partition, before)| (*partition, *before)));
    }
    Ok(sum)
}

/// Expires the steps. Gives what was retired by this chain's own entries: of several that do so at once one has the number.
pub async fn expire(
    chain: &mut Chain,
    steps: &[BTreeMap<i32, i64>],
    (writer, now): (&str, DateTime<Utc>),
) -> Result<Retired> {
    let mut given = Retired::default();
    for step in steps {
        given.add(&chain.expire(step, writer, now).await?);
    }
    if !given.is_nothing() {
        let (stream, segments, bytes) = (chain.stream(), given.segments, given.stored_bytes);
        tracing::info!(%stream, segments, records = given.records, bytes, "retention expired records");
    }
    Ok(given)
}

/// The earliest timestamp of what is kept first of each partition, in ms since 1970. Where nothing was expired, it is that of all.
pub async fn oldest(chain: &Chain) -> Result<Option<i64>> {
    let totals = chain.totals();
    if !chain.has_expired() {
        return Ok(totals.min_timestamp);
    }
    let mut reach = 1_i64;
    let mut open: BTreeMap<i32, PartitionRange> =
        chain.positions().filter(|at| at.start < at.end).map(|at| (at.partition, *at)).collect();
    let mut oldest: Option<i64> = None;
    while !open.is_empty() {
        let window = |at: &PartitionRange| at.start..at.start.saturating_add(reach).min(at.end);
        let partitions = open.iter().map(|(partition, at)| (*partition, window(at))).collect();
        let found = chain.select(&Selection { timestamps: None, partitions: Some(partitions) }).await?.segments;
        for range in found.iter().flat_map(|segment| &segment.partitions) {
            // A segment that another partition asked for may hold a later range of this one, behind its first, which is not asked for yet.
            let is_asked_for = |at: &PartitionRange| {
                let asked = window(at);
                range.start < asked.end && asked.start < range.end
            };
            if let Some(min) = range.min_timestamp
                && open.get(&range.partition).is_some_and(is_asked_for)
            {
                oldest = Some(oldest.map_or(min, |oldest| oldest.min(min)));
                open.remove(&range.partition);
            }
        }
        open.retain(|_, at| at.start.saturating_add(reach) < at.end);
        reach = reach.saturating_mul(64);
    }
    Ok(oldest)
}

#[cfg(test)]
mod tests;
