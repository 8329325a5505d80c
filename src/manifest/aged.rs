//! What retention gives up of a topic, counted by the time of archiving.
//!
//! ```text
//!   entries   0 ─ 1 ─ 2 ─ … ─ 64 snapshot ─ 65 ─ 66 ─ 67 ─ …        a segment is as old as the entry that names it: given up is
//!                                 horizon ────┘                     what the entries up to 65 add, whole segments alone
//! ```
//!
//! An entry is as old as it says and as its object is by the store's clock, whichever is younger. So neither a writer with a slow
//! clock nor a copy of a bucket makes anything older than it is; timestamps of records decide nothing. Everything up to an entry goes
//! in one step, so each segment is on one side of it with all its partitions.

use std::collections::BTreeMap;
use std::ops::Range;

use chrono::{DateTime, TimeDelta, Utc};
use object_store::path::Path;

use super::reads::Held;
use super::{Chain, Selection, entry};
use crate::error::{Kind, Result};
use crate::segment::{Filter, SegmentReader};
use crate::store::layout::Name;
use crate::store::{Store, layout};
use crate::stream::invariants::SNAPSHOT_EVERY;
use crate::stream::{Body, PartitionRange, Progress, Retired, StreamId};

/// Objects are deleted this long after their segments were given up: who chose one before has read it by then, or holds it.
pub const GRACE: TimeDelta = TimeDelta::hours(1);

/// So many snapshots are given up by an entry: what the chain lists between them is in memory meanwhile.
const SNAPSHOTS_AT_ONCE: u64 = 64;

/// What a chain had added up to at a moment.
#[derive(Debug, Clone, Default)]
pub struct Then {
    /// The sum.
    pub progress: Progress,
    /// When the next entry came; none if there is none.
    pub next: Option<DateTime<Utc>>,
    /// The last snapshot by then, counted from 1; 0 if there was none.
    snapshot: u64,
}

/// An entry and its age.
async fn dated(chain: &Chain, number: u64) -> Result<(Body, DateTime<Utc>)> {
    let object = layout::entry(chain.stream(), number);
    let Some((bytes, stored)) = chain.store.get_dated(&object).await? else {
        return Err(entry::missing(chain.stream(), number));
    };
    let checkpoint = entry::decode(chain.stream(), number, object, &bytes)?.checkpoint;
    Ok((checkpoint.body, checkpoint.at.max(stored)))
}

/// What the chain had added up to at `moment`. It is looked for among the snapshots, then entry by entry.
pub async fn then(chain: &Chain, moment: DateTime<Utc>) -> Result<Then> {
    let (mut low, mut high) = (0, chain.head() / SNAPSHOT_EVERY);
    let mut then = Then::default();
    while low < high {
        let middle = high - (high - low) / 2;
        match dated(chain, middle * SNAPSHOT_EVERY).await? {
            (Body::Snapshot(snapshot), at) if at <= moment => {
                (low, then.progress, then.snapshot) = (middle, Progress::from_snapshot(&snapshot), middle);
            }
            _ => high = middle - 1,
        }
    }
    let first = if low == 0 { 0 } else { low * SNAPSHOT_EVERY + 1 };
    for number in first..=chain.head() {
        let (body, at) = dated(chain, number).await?;
        if at > moment {
            then.next = Some(at);
            break;
        }
        then.progress.add(&body);
    }
    Ok(then)
}

/// The beginnings of partitions once everything is given up that is archived by `then`, of a stream that is archived as far as
/// `now`. Empty where nothing goes, or where something of it is read.
pub fn beginnings(stream: &StreamId, then: &Progress, now: &Progress, held: &Held) -> BTreeMap<i32, i64> {
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

/// What is to be given up, in steps of which each is small, the oldest first.
pub async fn surplus(chain: &Chain, then: &Then, held: &Held) -> Result<Vec<BTreeMap<i32, i64>>> {
    steps(chain, then, held, SNAPSHOTS_AT_ONCE).await
}

async fn steps(chain: &Chain, then: &Then, held: &Held, at_once: u64) -> Result<Vec<BTreeMap<i32, i64>>> {
    let last = beginnings(chain.stream(), &then.progress, &chain.progress, held);
    let mut steps = Vec::new();
    if last.is_empty() {
        return Ok(steps);
    }
    for snapshot in (1..=then.snapshot / at_once).map(|step| step * at_once) {
        if let (Body::Snapshot(snapshot), _) = dated(chain, snapshot * SNAPSHOT_EVERY).await? {
            let progress = Progress::from_snapshot(&snapshot);
            steps.push(beginnings(chain.stream(), &progress, &chain.progress, held));
        }
    }
    steps.push(last);
    steps.retain(|step| !step.is_empty());
    Ok(steps)
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

/// Gives the steps up. Gives what was retired by this chain's own entries: of several that do so at once one has the number.
pub async fn give_up(
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
        tracing::info!(%stream, segments, records = given.records, bytes, "retention gave up records");
    }
    Ok(given)
}

/// What became of the objects of what was given up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// How many were deleted.
    pub deleted: u64,
    /// Whether some stay for now: their time has not come, or somebody reads them.
    pub waits: bool,
}

/// Deletes the objects of segments that were given up longer ago than [`GRACE`] at `now`. Looked at is what was sealed before
/// `horizon`; what a segment says of itself tells whether it lies before the beginnings that its partitions had then. One that no
/// entry names and that lies there goes, too: positions never come back to it.
pub async fn sweep(
    store: &Store,
    chain: &Chain,
    (now, horizon): (DateTime<Utc>, DateTime<Utc>),
    held: &Held,
) -> Result<Swept> {
    let mut swept = Swept::default();
    let Some(life) = chain.stream().topic().filter(|_| !chain.totals().retired.is_nothing()) else { return Ok(swept) };
    let before = then(chain, now - GRACE).await?.progress;
    let floors: BTreeMap<i32, i64> = before.positions().map(|at| (at.partition, at.start)).collect();
    swept.waits = chain.positions().any(|at| floors.get(&at.partition) != Some(&at.start));
    let gone = floors.iter().map(|(partition, floor)| (*partition, i64::MIN..*floor)).collect();
    if held.any_of(&chain.stream().to_string(), &gone) {
        return Ok(Swept { waits: true, ..swept });
    }
    let folder = layout::topic_segments(life);
    let old = |key: &Path| match Name::parse(key.as_ref()) {
        Ok(Name::Records { life: named, sealed, .. }) if named == *life && sealed <= horizon => Some(key.clone()),
        _ => None,
    };
    let mut after = folder.clone();
    loop {
        let found = store.list_after(&folder, &after, old).await?;
        let Some(last) = found.last().cloned() else { break };
        for key in found {
            if lies_before(store, chain.stream(), &key, &floors).await? {
                store.delete(&key).await?;
                swept.deleted += 1;
            }
        }
        after = last;
    }
    if swept.deleted > 0 {
        tracing::info!(stream = %chain.stream(), objects = swept.deleted, "deleted segments that were given up");
    }
    Ok(swept)
}

/// Whether a segment lies before `floors` with all that it covers. What cannot be read lies nowhere: it stays.
async fn lies_before(store: &Store, stream: &StreamId, key: &Path, floors: &BTreeMap<i32, i64>) -> Result<bool> {
    let Ok(Name::Records { format, .. }) = Name::parse(key.as_ref()) else { return Ok(false) };
    let Some(size) = store.size(key).await? else { return Ok(false) };
    let opened = SegmentReader::open(store.objects(), key, size, format, Filter::default()).await;
    let reader = match opened {
        Ok(reader) => reader,
        Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::Unsupported | Kind::NotFound) => {
            tracing::warn!(%key, %error, "an old segment cannot be read, and is not deleted");
            return Ok(false);
        }
        Err(error) => return Err(error),
    };
    let facts = reader.facts();
    let below = |at: &PartitionRange| floors.get(&at.partition).is_some_and(|floor| at.end <= *floor);
    Ok(facts.stream.stream() == *stream && !facts.partitions.is_empty() && facts.partitions.iter().all(below))
}

/// The earliest timestamp of what is kept first of each partition, in ms since 1970. Where nothing was given up, it is that of all.
pub async fn oldest(chain: &Chain) -> Result<Option<i64>> {
    let totals = chain.totals();
    if totals.retired.is_nothing() {
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
            if let Some(min) = range.min_timestamp
                && open.get(&range.partition).is_some_and(|at| range.end > at.start)
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
