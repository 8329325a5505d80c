//! Which objects of WAL nobody needs any more.
//!
//! ```text
//!   keys of a timeline, in order ─► suspects: they share a range, ─► windows ─► held against the chain ─► deleted
//!                                   lie before what is kept, or
//!                                   may be of a generation that ended
//! ```
//!
//! Archives have more segments than fit into memory, and most are needed. A segment is replaced by one that covers its range, given
//! up by an expiry that moved the beginning of its timeline behind it, or left behind by a timeline that was abandoned: keys tell all
//! of that but for certain, so the chain is asked about suspects only, about as many as lie within a window at a time.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;

use chrono::{DateTime, Utc};
use object_store::path::Path;

use crate::error::Result;
use crate::manifest::{Chain, Obsolete, Selection};
use crate::segment::wal::MOST_BYTES;
use crate::store::{Store, layout};
use crate::stream::{Lsn, StreamId};

/// So many suspects are held against the chain at a time, …
const MOST_AT_ONCE: usize = 1_000;

/// … and of no more of the log than this: what the chain lists of it is in memory meanwhile.
const WINDOW: u64 = 1_024 * MOST_BYTES;

/// An object of WAL.
struct Object {
    key: Path,
    timeline: u32,
    lsns: Range<u64>,
}

/// Finds, in the keys of one timeline, those that may be retired.
struct Suspects {
    /// What begins before this is one.
    below: u64,
    /// Up to where the ones before came.
    reached: u64,
    /// The last one, unless it was told.
    last: Option<Object>,
}

impl Suspects {
    fn of(chain: &Chain, timeline: u32) -> Self {
        let partition = timeline.cast_signed();
        // What no entry knows of a timeline without a position is on its way, or an orphan.
        let kept = chain.position(partition).map_or(u64::MAX, |position| Lsn::at(position.start).0);
        let ended = chain.abandoned().iter().filter(|abandon| abandon.partition == partition);
        let ended = ended.map(|abandon| Lsn::at(abandon.end).0).max();
        Self { below: ended.map_or(kept, |ended| ended.max(kept)), reached: 0, last: None }
    }

    /// Takes the next one; gives the suspects that it brings out.
    fn next(&mut self, object: Object) -> impl Iterator<Item = Object> + use<> {
        let is_shared = object.lsns.start < self.reached;
        self.reached = self.reached.max(object.lsns.end);
        let before = self.last.take().filter(|_| is_shared);
        let mut own = None;
        if is_shared || object.lsns.start < self.below {
            own = Some(object);
        } else {
            self.last = Some(object);
        }
        before.into_iter().chain(own)
    }
}

/// The suspects of a window.
struct Window<'a> {
    store: &'a Store,
    chain: &'a Chain,
    /// Objects that entries before this have retired go.
    before: DateTime<Utc>,
    /// Those of timelines that were abandoned before this.
    horizon: DateTime<Utc>,
    suspects: Vec<Object>,
    deleted: u64,
}

/// Deletes the objects of WAL that entries before `before` have retired, and those of timelines that were abandoned before `horizon`,
/// too. Those that no entry names are left alone: they may be on their way into the chain.
pub(super) async fn delete_retired(
    store: &Store,
    chain: &Chain,
    (before, horizon): (DateTime<Utc>, Option<DateTime<Utc>>),
) -> Result<u64> {
    let StreamId::Postgres { system_id } = chain.stream() else { return Ok(0) };
    let horizon = horizon.unwrap_or(DateTime::<Utc>::MIN_UTC).min(before);
    let mut window = Window { store, chain, before, horizon, suspects: Vec::new(), deleted: 0 };
    for folder in store.list_folders(&layout::wal_segments(*system_id)).await? {
        let (mut after, mut suspects) = (folder.clone(), None);
        loop {
            let found = store.list_after(&folder, &after, |key| Some(key.clone())).await?;
            let Some(last) = found.last() else { break };
            after = last.clone();
            for key in found {
                let Some((timeline, lsns)) = layout::wal_segment_range(&key) else { continue };
                let suspects = suspects.get_or_insert_with(|| Suspects::of(chain, timeline));
                for suspect in suspects.next(Object { key, timeline, lsns }) {
                    window.take(suspect).await?;
                }
            }
        }
        window.empty().await?;
    }
    let deleted = window.deleted;
    if deleted > 0 {
        tracing::info!(objects = deleted, "deleted segments of WAL that are no longer needed");
    }
    Ok(deleted)
}

impl Window<'_> {
    async fn take(&mut self, suspect: Object) -> Result<()> {
        let first = self.suspects.first();
        if first.is_some_and(|first| suspect.lsns.end.saturating_sub(first.lsns.start) > WINDOW)
            || self.suspects.len() == MOST_AT_ONCE
        {
            self.empty().await?;
        }
        self.suspects.push(suspect);
        Ok(())
    }

    /// Holds the suspects against the chain, and deletes those that are retired.
    async fn empty(&mut self) -> Result<()> {
        let suspects = std::mem::take(&mut self.suspects);
        let (Some(first), Some(end)) = (suspects.first(), suspects.iter().map(|suspect| suspect.lsns.end).max()) else {
            return Ok(());
        };
        let positions = Lsn(first.lsns.start).position()..Lsn(end).position();
        let partitions = BTreeMap::from([(first.timeline.cast_signed(), positions)]);
        let Obsolete { retired, abandoned } = self.chain.retired(partitions.clone()).await?;
        let selection = Selection { timestamps: None, partitions: Some(partitions) };
        let needed = self.chain.select(&selection).await?.segments.into_iter().map(|segment| segment.object);
        let needed: HashSet<String> = needed.collect();
        let is_before = |decided: Option<&DateTime<Utc>>, limit| decided.is_some_and(|decided| *decided < limit);
        for Object { key, .. } in suspects.iter().filter(|suspect| !needed.contains(suspect.key.as_ref())) {
            if is_before(retired.get(key.as_ref()), self.before) || is_before(abandoned.get(key.as_ref()), self.horizon)
            {
                self.store.delete(key).await?;
                self.deleted += 1;
            }
        }
        Ok(())
    }
}
