//! The objects of what was expired, deleted once its grace is over.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use object_store::path::Path;

use super::super::reads::Held;
use super::{Clock, GRACE};
use crate::error::{Kind, Result};
use crate::manifest::Chain;
use crate::segment::{Filter, SegmentReader};
use crate::store::layout::Name;
use crate::store::{Store, layout};
use crate::stream::{Expire, StreamId, TopicGeneration};

/// So many segments are opened in vain in one go. Those that may go are the oldest by name, so what lies behind as many is kept.
const MOST_IN_VAIN: usize = 1_000;

/// So many of them are remembered.
const MOST_REMEMBERED: usize = 10_000;

/// What became of the objects of what was expired.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Deletion {
    /// How many were deleted.
    pub deleted: u64,
    /// Whether some stay for now: their time has not come, or somebody reads them.
    pub waits: bool,
}

/// The end of each partition of a segment; none of one that cannot be read.
type Ends = Option<BTreeMap<i32, i64>>;

/// What is remembered of the segments of a generation that stay, so that none is opened again and again.
#[derive(Debug, Default)]
pub struct Stays {
    /// Where the partitions began when all that lies before was deleted.
    done: Option<BTreeMap<i32, i64>>,
    pub(super) segments: BTreeMap<Path, Ends>,
}

/// Deletes the objects of segments that were expired longer ago than [`GRACE`]. Looked at is what was sealed before the horizon;
/// what a segment says of itself tells whether it lies before the beginnings that its partitions had then. One that no entry names
/// and that lies there goes, too: positions never come back to it.
pub async fn delete_expired(
    store: &Store,
    chain: &Chain,
    clock: Clock,
    held: &Held,
    stays: &mut Stays,
) -> Result<Deletion> {
    let mut deletion = Deletion::default();
    let Some(generation) = chain.stream().topic().filter(|_| chain.has_expired()) else {
        return Ok(deletion);
    };
    let floors = floors(chain, clock.now - GRACE).await?;
    deletion.waits = chain.positions().any(|at| floors.get(&at.partition) != Some(&at.start));
    if stays.done.as_ref() == Some(&floors) {
        return Ok(deletion);
    }
    let gone = floors.iter().map(|(partition, floor)| (*partition, i64::MIN..*floor)).collect();
    if held.any_of(&chain.stream().to_string(), &gone) {
        return Ok(Deletion { waits: true, ..deletion });
    }
    deletion.deleted = delete(store, generation, (&floors, clock.horizon), stays).await?;
    stays.done = Some(floors);
    if deletion.deleted > 0 {
        tracing::info!(stream = %chain.stream(), objects = deletion.deleted, "deleted segments that were expired");
    }
    Ok(deletion)
}

/// Where the partitions began at a moment. It is asked for the youngest of what was expired, and back from there until something
/// is older: the entries since the last snapshot are in memory, and a page says whether it has any.
async fn floors(chain: &Chain, moment: DateTime<Utc>) -> Result<BTreeMap<i32, i64>> {
    let mut floors: BTreeMap<i32, i64> = chain.positions().map(|at| (at.partition, at.start)).collect();
    let mut back_over = |expire: &Expire| {
        let is_young = moment < expire.decided;
        for expired in expire.ranges.iter().filter(|_| is_young) {
            floors.entry(expired.partition).and_modify(|floor| *floor = expired.from.min(*floor));
        }
        is_young
    };
    if !chain.tail.iter().rev().filter_map(|body| body.expire()).all(&mut back_over) {
        return Ok(floors);
    }
    let mut pages = chain.pages.clone();
    while let Some(page) = pages.pop() {
        let merged = page.merged.as_ref().map(|merged| merged.retired).unwrap_or_default();
        if page.totals.retired == merged {
            continue;
        }
        let page = chain.read_page(page).await?;
        if !page.expires.iter().rev().all(&mut back_over) {
            break;
        }
        pages.extend(page.pages);
    }
    Ok(floors)
}

async fn delete(
    store: &Store,
    generation: &TopicGeneration,
    (floors, horizon): (&BTreeMap<i32, i64>, DateTime<Utc>),
    stays: &mut Stays,
) -> Result<u64> {
    let folder = layout::topic_segments(generation);
    let old = |key: &Path| match Name::parse(key.as_ref()) {
        Ok(Name::Records { generation: named, sealed, .. }) if named == *generation && sealed <= horizon => {
            Some(key.clone())
        }
        _ => None,
    };
    let (mut after, mut deleted, mut in_vain) = (folder.clone(), 0, 0);
    loop {
        let found = store.list_after(&folder, &after, old).await?;
        let Some(last) = found.last().cloned() else { return Ok(deleted) };
        for key in found {
            if !stays.segments.contains_key(&key) {
                if in_vain == MOST_IN_VAIN || stays.segments.len() == MOST_REMEMBERED {
                    return Ok(deleted);
                }
                let ends = ends(store, &generation.stream(), &key).await?;
                stays.segments.insert(key.clone(), ends);
                in_vain += 1;
            }
            if lies_before(stays.segments.get(&key), floors) {
                store.delete(&key).await?;
                deleted += 1;
                in_vain = in_vain.saturating_sub(1);
                stays.segments.remove(&key);
            }
        }
        after = last;
    }
}

/// Whether a segment lies before `floors` with all that it covers. What cannot be read lies nowhere: it stays.
fn lies_before(ends: Option<&Ends>, floors: &BTreeMap<i32, i64>) -> bool {
    let below = |(partition, end): (&i32, &i64)| floors.get(partition).is_some_and(|floor| end <= floor);
    ends.and_then(Option::as_ref).is_some_and(|ends| !ends.is_empty() && ends.iter().all(below))
}

/// Where a segment of this stream ends, as it says itself.
async fn ends(store: &Store, stream: &StreamId, key: &Path) -> Result<Ends> {
    let Ok(Name::Records { format, .. }) = Name::parse(key.as_ref()) else { return Ok(None) };
    let Some(size) = store.size(key).await? else { return Ok(None) };
    let opened = SegmentReader::open(store.objects(), key, size, format, Filter::default()).await;
    let reader = match opened {
        Ok(reader) => reader,
        Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::Unsupported | Kind::NotFound) => {
            tracing::warn!(%key, %error, "an old segment cannot be read, and is not deleted");
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let facts = reader.facts();
    let is_own = facts.stream.stream() == *stream;
    Ok(is_own.then(|| facts.partitions.iter().map(|at| (at.partition, at.end)).collect()))
}
