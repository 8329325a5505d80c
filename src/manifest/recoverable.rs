//! To which moments a Postgres system can be recovered, and what that needs.
//!
//! ```text
//!   backups          ●───────────────●──────────────────────●
//!   WAL       ├──────────────────────────────┤ gap ├───────────────────────►
//!   windows          [──────────────────────]                [──────────────]
//! ```
//!
//! Which positions can be recovered is computed by [`super::path`] alone. What is added here are the facts, out of the store, and
//! the times: those of the commits, by the clock of the server that wrote them. What a window claims, a plan accepts:
//! where the checkpoints know a time to the millisecond only, the window is the smaller one.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};

use super::backups::Backup;
use super::found::{Brief, backups};
use super::histories::histories;
use super::holds::Held;
use super::path::{Facts, Limit, Reach, Span, Taken, Way};
use super::{Chain, Selection, coverage};
use crate::error::Result;
use crate::segment::wal::MOST_BYTES;
use crate::store::{Store, layout};
use crate::stream::{Abandon, Gap, Lsn, PartitionRange, SegmentRef, StreamId};

/// Every moment from one to another to which the database can be recovered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// The first moment.
    pub from: DateTime<Utc>,
    /// The last.
    pub to: DateTime<Utc>,
    /// The timeline that a recovery to it follows.
    pub timeline: u32,
    /// The first position.
    pub start: Lsn,
    /// The last.
    pub end: Lsn,
}

/// What decides what can be recovered of the system that `chain` archives, with its backups.
pub async fn facts(store: &Store, chain: &Chain, backups: &[Brief]) -> Result<Facts> {
    facts_with(store, chain, backups.iter().map(|backup| backup.taken.clone()).collect()).await
}

/// The same, where no more is known of the backups than this.
pub async fn facts_with(store: &Store, chain: &Chain, mut backups: Vec<Taken>) -> Result<Facts> {
    backups.iter_mut().for_each(|taken| taken.is_abandoned = chain.is_abandoned(&taken.name));
    let StreamId::Postgres { system_id } = chain.stream() else { return Ok(Facts::default()) };
    let mut facts = Facts {
        file: chain.begin_facts().system().map_or(MOST_BYTES, |system| u64::from(system.wal_segment_size)),
        gaps: chain.gaps_ever().await?,
        minimal: chain.minimal().to_vec(),
        backups,
        ..Facts::default()
    };
    for position in chain.positions() {
        facts.archived.insert(position.partition.cast_unsigned(), Lsn::at(position.start)..Lsn::at(position.end));
    }
    facts.histories.insert(1, Vec::new());
    // A damaged one keeps its own timeline from being followed, and no other.
    let archived: BTreeSet<u32> = facts.archived.keys().copied().collect();
    let is_current = |timeline: u32, generation| generation == chain.generation(timeline.cast_signed());
    let found = histories(store, *system_id, is_current, |timeline| archived.contains(&timeline)).await?;
    for ((timeline, _), history) in found.known {
        // The server has gone on there, and the first of its log is on its way: what leads to it must not be expired.
        let begins = history.last().map_or(Lsn(0), |switch| Lsn(switch.at.0 / facts.file.max(1) * facts.file.max(1)));
        facts.archived.entry(timeline).or_insert(begins..begins);
        facts.histories.insert(timeline, history);
    }
    Ok(facts)
}

impl Taken {
    /// What a path needs to know of a backup.
    pub fn of(backup: &Backup) -> Self {
        Self {
            name: backup.name.clone(),
            timeline: backup.timeline,
            start: backup.start,
            end_timeline: backup.end_timeline,
            end: backup.end,
            finished: backup.finished,
            is_damaged: !backup.damaged.is_empty(),
            is_abandoned: false,
            parent: backup.parent.as_ref().map(|parent| parent.name.clone()),
        }
    }
}

/// When the newest backup was finished that leads to the end of what is archived of a system, or will: none if a new one is
/// due at once.
pub async fn freshest(store: &Store, system_id: u64) -> Result<Option<DateTime<Utc>>> {
    let Some(chain) = Chain::open(store, &StreamId::Postgres { system_id }).await? else { return Ok(None) };
    let facts = facts(store, &chain, &backups(store, system_id, chain.backups()).await?.sound).await?;
    Ok(facts.freshest().map(|backup| backup.finished))
}

/// The time of the first commit that is still archived, in ms since 1970: a chain's sums keep what retention has let go.
pub async fn first_commit(chain: &Chain) -> Result<Option<i64>> {
    for position in chain.positions() {
        let mut reach = MOST_BYTES.cast_signed();
        loop {
            let end = position.start.saturating_add(reach).min(position.end);
            let partitions = Some(BTreeMap::from([(position.partition, position.start..end)]));
            let selected = chain.select(&Selection { timestamps: None, partitions }).await?;
            let first = selected.segments.iter().filter_map(SegmentRef::min_timestamp).min();
            if first.is_some() {
                return Ok(first);
            }
            if end == position.end {
                break;
            }
            reach = reach.saturating_mul(8);
        }
    }
    Ok(None)
}

/// The gaps of a chain.
pub async fn gaps(chain: &Chain) -> Result<Vec<Gap>> {
    if chain.totals().gaps == 0 {
        return Ok(Vec::new());
    }
    // No record is that old, so no page is opened for its segments alone.
    let only_gaps = Selection { timestamps: Some(i64::MIN..i64::MIN + 1), partitions: None };
    Ok(chain.select(&only_gaps).await?.gaps)
}

/// The windows of the system that `chain` archives, oldest first: those on the way to its newest timeline.
pub async fn windows(store: &Store, chain: &Chain, facts: &Facts) -> Result<Vec<Window>> {
    let Some(way) = facts.newest().and_then(|newest| facts.way(newest).ok()) else { return Ok(Vec::new()) };
    windows_on(store, chain, facts, &way).await
}

/// The windows on one way, oldest first.
pub async fn windows_on(store: &Store, chain: &Chain, facts: &Facts, way: &Way) -> Result<Vec<Window>> {
    let mut windows = Vec::new();
    for span in facts.spans(way) {
        windows.extend(window(store, chain, facts, way, &span).await?);
    }
    Ok(windows)
}

/// The moments to which one backup leads along a way; none where no commit tells a time.
pub async fn window_from(
    store: &Store,
    chain: &Chain,
    facts: &Facts,
    (way, reach): &(Way, Reach),
) -> Result<Option<Window>> {
    if !reach.is_usable() {
        return Ok(None);
    }
    let span = Span { from: reach.from, until: reach.until, is_open: reach.limit == Limit::End };
    window(store, chain, facts, way, &span).await
}

async fn window(store: &Store, chain: &Chain, facts: &Facts, way: &Way, span: &Span) -> Result<Option<Window>> {
    let moments = (first_moment(chain, facts, way, span).await?, last_moment(store, chain, way, span).await?);
    let (Some(from), Some(to)) = moments else { return Ok(None) };
    let (from, to) = (time(from), time(to));
    let window = Window { from, to, timeline: way.timeline(), start: span.from, end: span.until };
    Ok((from <= to).then_some(window))
}

fn time(ms: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_millis(ms).unwrap_or_default()
}

/// From when on, in ms since 1970, every moment comes after all that the first backup of a span holds.
async fn first_moment(chain: &Chain, facts: &Facts, way: &Way, span: &Span) -> Result<Option<i64>> {
    let Some(known) = known_after(chain, facts, way, span.from).await? else { return Ok(None) };
    let latest = latest_before(chain, way, span.from).await?;
    Ok(Some(latest.map_or(known, |latest| latest.max(known)).saturating_add(1)))
}

/// What was committed before a position and is not in the archive (before it began, or in a hole of it) was so by this time, in ms
/// since 1970: that of the first commit behind it. None where there is no such commit yet.
pub async fn known_after(chain: &Chain, facts: &Facts, way: &Way, until: Lsn) -> Result<Option<i64>> {
    let Some(hole) = facts.hole_before(way, until) else {
        let positions = way.stretches().iter().filter_map(|stretch| chain.position(stretch.timeline.cast_signed()));
        return Ok(positions.filter_map(|position| position.min_timestamp).min());
    };
    first_after(chain, way, hole).await
}

/// Up to when, in ms since 1970, a span leads.
async fn last_moment(store: &Store, chain: &Chain, way: &Way, span: &Span) -> Result<Option<i64>> {
    let near = ranges_before(chain, way, span.until).await?;
    // Whether later transactions of the very same time are archived is not known.
    let latest = way.latest_within(&near, span.until).map(|latest| latest.saturating_sub(1));
    let complete = match span.is_open {
        true => complete_through(store, chain, way).await?.map(|complete| complete.timestamp_millis()),
        false => None,
    };
    Ok(latest.max(complete))
}

/// Up to when the archive is complete on a way's last timeline: what is known of another one says nothing about it.
pub async fn complete_through(store: &Store, chain: &Chain, way: &Way) -> Result<Option<DateTime<Utc>>> {
    let coverages = coverage::load_all(store, &layout::coverages(chain.stream())).await?;
    coverages.tell_unreadable();
    let complete = coverage::judge(&coverages.known, chain, crate::time::now()).partitions;
    Ok(complete.get(&way.timeline().cast_signed()).copied())
}

/// No commit on the way before a position is later than this; none where no commit before it was ever archived.
async fn latest_before(chain: &Chain, way: &Way, until: Lsn) -> Result<Option<i64>> {
    let near = ranges_before(chain, way, until).await?;
    let Some(latest) = way.latest_before(&near, until) else { return Ok(None) };
    // A clock that was set back leaves later times farther away.
    let later =
        Selection { timestamps: Some(latest.saturating_add(1)..i64::MAX), partitions: Some(way.parts(Lsn(0)..until)) };
    Ok(Some(latest.max(way.latest_before(&chain.ranges(&later).await?, until).unwrap_or(latest))))
}

/// The last ranges with commits before a position, as many as have to be looked at to find one; none if there is none.
async fn ranges_before(chain: &Chain, way: &Way, until: Lsn) -> Result<Vec<PartitionRange>> {
    let mut reach = MOST_BYTES;
    loop {
        let from = Lsn(until.0.saturating_sub(reach));
        let partitions = Some(way.parts(from..until));
        let found = chain.ranges(&Selection { timestamps: None, partitions }).await?;
        if from == Lsn(0) || way.latest_within(&found, until).is_some() {
            return Ok(found);
        }
        reach = reach.saturating_mul(8);
    }
}

/// The latest time of the first commits behind a position that stand in one segment.
async fn first_after(chain: &Chain, way: &Way, from: Lsn) -> Result<Option<i64>> {
    let mut reach = MOST_BYTES;
    loop {
        let until = way.end().min(from + reach);
        let partitions = Some(way.parts(from..until));
        let found = chain.ranges(&Selection { timestamps: None, partitions }).await?;
        let behind = |range: &&PartitionRange| way.part(range).is_some_and(|part| part.start >= from);
        let with_commits = found.iter().filter(|range| range.max_timestamp.is_some()).filter(behind);
        let first = with_commits.min_by_key(|range| way.part(range).map(|part| (part.start, part.end)));
        if first.is_some() || until == way.end() {
            return Ok(first.and_then(|range| range.max_timestamp));
        }
        reach = reach.saturating_mul(8);
    }
}

/// What retention lets go.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Expirable {
    /// The positions of the timelines before which nothing is needed.
    pub before: BTreeMap<i32, i64>,
    /// The backups that are not needed, by their names.
    pub backups: Vec<String>,
}

impl Expirable {
    /// Whether all is needed.
    pub fn is_empty(&self) -> bool {
        self.before.is_empty() && self.backups.is_empty()
    }
}

/// What is not needed to recover to any moment after `horizon`, nor held by anybody. `backups` are those that can be read: what
/// cannot be read stays, for nobody knows who needs it.
pub async fn expirable(
    store: &Store,
    chain: &Chain,
    backups: Vec<Taken>,
    horizon: DateTime<Utc>,
    held: &Held,
) -> Result<Expirable> {
    let StreamId::Postgres { .. } = chain.stream() else { return Ok(Expirable::default()) };
    let facts = facts_with(store, chain, backups).await?;
    let parents = parents_of_unread(store, chain, &facts.backups).await?;
    let facts = Facts { held: held.from(), parents, ..facts };
    let expirable = facts.expirable({
        let horizons = horizons(chain, &facts, horizon.timestamp_millis()).await?;
        move |way| horizons.get(&way.timeline()).copied()
    });
    let before = expirable.before.iter().map(|(timeline, before)| (timeline.cast_signed(), before.position()));
    let long_abandoned = |backup: &&Taken| {
        let ends = |abandon: &&Abandon| abandon.backups.contains(&backup.name);
        chain.abandoned().iter().find(ends).is_some_and(|abandon| abandon.decided < horizon)
    };
    let is_lost = |index: &usize, backup: &Taken| expirable.backups.contains(index) || long_abandoned(&backup);
    let lost =
        facts.backups.iter().enumerate().filter(|(index, backup)| is_lost(index, backup) && !held.backup(&backup.name));
    // What somebody restores from stays with all that it builds on.
    let expired = facts.unneeded(&lost.map(|(index, _)| index).collect());
    let expired = expired.into_iter().filter_map(|index| facts.backups.get(index)).map(|backup| backup.name.clone());
    Ok(Expirable { before: before.collect(), backups: expired.collect() })
}

/// The names of those on which others build that count, are not among `read`, and of which something is there: what they say
/// of themselves cannot be read now, and once it is mended they need what they build on. The chain names that.
async fn parents_of_unread(store: &Store, chain: &Chain, read: &[Taken]) -> Result<BTreeSet<String>> {
    let StreamId::Postgres { system_id } = *chain.stream() else { return Ok(BTreeSet::new()) };
    let read: BTreeSet<&str> = read.iter().map(|taken| taken.name.as_str()).collect();
    let mut parents = BTreeSet::new();
    for (name, counted) in chain.backups().into_iter().flatten().filter(|(name, _)| !read.contains(name.as_str())) {
        let Some(parent) = &counted.parent else { continue };
        if !store.list(&layout::backup(system_id, name)).await?.is_empty() {
            parents.insert(parent.clone());
        }
    }
    Ok(parents)
}

/// Where a time lies on the way to each timeline: before the first range with a later commit. Without one there is none.
async fn horizons(chain: &Chain, facts: &Facts, ms: i64) -> Result<BTreeMap<u32, Lsn>> {
    let mut horizons = BTreeMap::new();
    for way in facts.archived.keys().filter_map(|timeline| facts.way(*timeline).ok()) {
        horizons.extend(first_later(chain, &way, ms).await?.map(|first| (way.timeline(), first)));
    }
    Ok(horizons)
}

/// Where the first range begins that has a commit at `ms` or later. It is looked for from the front, where retention has left it:
/// an archive lists more ranges than fit into memory.
async fn first_later(chain: &Chain, way: &Way, ms: i64) -> Result<Option<Lsn>> {
    let archived = way.stretches().iter().filter_map(|stretch| chain.position(stretch.timeline.cast_signed()));
    let Some(mut from) = archived.map(|position| Lsn::at(position.start)).min() else { return Ok(None) };
    let mut reach = 64 * MOST_BYTES;
    while from < way.end() {
        let until = way.end().min(from + reach);
        let selection = Selection { timestamps: Some(ms..i64::MAX), partitions: Some(way.parts(from..until)) };
        let first = way.first_later(&chain.ranges(&selection).await?, ms.saturating_sub(1));
        if let Some(first) = first {
            return Ok(Some(first.start));
        }
        (from, reach) = (until, reach.saturating_mul(2));
    }
    Ok(None)
}
