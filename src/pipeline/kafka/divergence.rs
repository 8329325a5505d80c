//! Where a log left what is archived of it, after an unclean election; and the generations before, which have what a partition
//! does not have in the present one.
//!
//! ```text
//!   archive   epoch 0 ────────────┬─ epoch 1 ──────►            the broker: "my epoch 0 ends at 325"
//!                                 325
//!   log       epoch 0 ────────────┴─ epoch 2 ──────►            both are the same below min(325, where epoch 1 begins)
//! ```
//!
//! A segment can hold records of several epochs, and its checkpoint tells that of the last record alone: the one in which the
//! epoch changes is read, for each record says its epoch.

use std::collections::BTreeMap;

use crate::error::{Kind, Result};
use crate::manifest::{Chain, Selection};
use crate::segment::{Filter, SegmentReader};
use crate::source::kafka::{EpochAt, Resume};
use crate::store::{Store, layout};
use crate::stream::{PartitionRange, SegmentRef, TopicGeneration};

/// The generations before of the same topic by its id, whose log was cut: the newest first. What is archived there need not come
/// again. A generation can end before a partition got a record in it, so there may have to be several.
#[derive(Default)]
pub(super) struct Earlier(Vec<Chain>);

impl Earlier {
    /// Opens as many as it takes until each of `partitions` is found in one.
    pub(super) async fn load(
        store: &Store,
        generation: &TopicGeneration,
        topic_id: Option<&str>,
        mut partitions: Vec<i32>,
    ) -> Result<Self> {
        let mut chains = Vec::new();
        for number in (0..generation.number).rev() {
            let before = TopicGeneration { number, ..generation.clone() };
            if partitions.is_empty() || topic_id.is_none() {
                break;
            }
            // On file:// a folder without an entry is left when the very first write of a chain fails.
            let Some(chain) = Chain::open(store, &before.stream()).await? else { continue };
            if chain.begin_facts().topic_id() != topic_id {
                break;
            }
            partitions.retain(|partition| chain.position(*partition).is_none());
            chains.push(chain);
        }
        Ok(Self(chains))
    }

    /// The newest generation that has something of a partition.
    pub(super) fn holder(&self, partition: i32) -> Option<&Chain> {
        self.0.iter().find(|chain| chain.position(partition).is_some())
    }

    /// Returns up to where a partition's log is what these generations have of it: to the end of what is archived, or to where it was
    /// cut.
    pub(super) fn left_at(&self, partition: i32) -> Option<i64> {
        let holder = self.holder(partition)?;
        let cuts = holder.closed().into_iter().flat_map(|close| &close.cuts);
        let cut = cuts.filter(|cut| cut.partition == partition).map(|cut| cut.offset).min();
        cut.or_else(|| holder.position(partition).map(|range| range.end))
    }
}

/// The generation that has the last of what is archived of a partition: the present one, or one before.
fn holder<'a>(chain: &'a Chain, earlier: &'a Earlier, partition: i32) -> Option<&'a Chain> {
    match chain.position(partition) {
        Some(_) => Some(chain),
        None => earlier.holder(partition),
    }
}

/// Returns where a partition is read on, at `next`, and the last archived record before it. A partition that has nothing in its
/// generation yet goes on where the one before ends: its last record is there.
pub(super) fn resume(chain: &Chain, earlier: &Earlier, partition: i32, next: i64) -> Resume {
    let ends_there = |chain: &&Chain| chain.position(partition).is_some_and(|range| range.end == next);
    let last = holder(chain, earlier, partition).filter(ends_there).and_then(|chain| chain.last_record(partition));
    Resume { next, last: last.map(|last| EpochAt { offset: last.offset, leader_epoch: last.leader_epoch }) }
}

/// Returns where a log left what is archived of it, in this generation or, while that has nothing, in an earlier one.
pub(super) async fn left_at(
    store: &Store,
    chain: &Chain,
    earlier: &Earlier,
    partition: i32,
    diverged: EpochAt,
) -> Result<i64> {
    let Some(holder) = holder(chain, earlier, partition) else { return Ok(diverged.offset) };
    let partitions = Some(BTreeMap::from([(partition, 0..i64::MAX)]));
    let selected = holder.select(&Selection { timestamps: None, partitions }).await?;
    let of = |segment: &SegmentRef| {
        let range = *segment.partitions.iter().find(|range| range.partition == partition)?;
        Some((range, segment.last.iter().find(|last| last.partition == partition).map(|last| last.leader_epoch)))
    };
    let ranges = selected.segments.iter().map(of);
    // What was expired cannot be looked at any more.
    let expired =
        holder.position(partition).map(|at| at.start).zip(holder.begin_facts().start_of(partition).or(Some(0)));
    let begins =
        expired.and_then(|(start, began)| (began < start && !holder.totals().retired.is_nothing()).then_some(began));
    let Shared { below, turns_in } = shared(diverged, ranges, begins);
    let Some(segment) = turns_in.and_then(|index| selected.segments.get(index)) else { return Ok(below) };
    match first_above(store, segment, partition, diverged.leader_epoch).await {
        Ok(offset) => Ok(diverged.offset.min(offset.unwrap_or(i64::MAX)).max(below)),
        Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::NotFound | Kind::Unsupported) => {
            let object = &segment.object;
            tracing::warn!(object, %error, "it cannot be seen where an epoch ends: the whole segment is archived again");
            Ok(below)
        }
        Err(error) => Err(error),
    }
}

/// What a log and the archive share of a partition.
#[derive(Debug, PartialEq, Eq)]
struct Shared {
    /// Below this both are the same.
    below: i64,
    /// The segment that begins there, by its index, if it may hold records of an epoch that the log has, too.
    turns_in: Option<usize>,
}

/// The log has `diverged.leader_epoch` up to `diverged.offset`, and no newer epoch that the archive has. `ranges`: what is
/// archived, in its order, with the epoch of the last record of each, where it is known. Epochs grow, so what is archived
/// behind the last range of an epoch that the log has may be of another log. Where retention has expired what came before, and no
/// range that is left is of an epoch that the log has, nothing tells where they part: all is archived again from where it began.
fn shared(
    diverged: EpochAt,
    ranges: impl Iterator<Item = Option<(PartitionRange, Option<i32>)>>,
    begins: Option<i64>,
) -> Shared {
    // Since where nothing is known of what is archived, behind something that is.
    let (mut is_known, mut unknown) = (false, None);
    for (index, found) in ranges.enumerate() {
        match found {
            Some((_, Some(epoch))) if epoch > diverged.leader_epoch && !is_known && begins.is_some() => break,
            Some((range, Some(epoch))) if epoch > diverged.leader_epoch => {
                let start = unknown.unwrap_or(range.start);
                let turns_in = (start < diverged.offset && unknown.is_none()).then_some(index);
                return Shared { below: diverged.offset.min(start), turns_in };
            }
            Some((_, Some(_))) => (is_known, unknown) = (true, None),
            Some((range, None)) if is_known => unknown = unknown.or(Some(range.start)),
            Some((_, None)) | None => {}
        }
    }
    let begins = begins.filter(|_| !is_known).unwrap_or(i64::MAX);
    Shared { below: diverged.offset.min(begins), turns_in: None }
}

/// The offset of a partition's first record in a segment whose epoch is above `epoch`, or is not known.
async fn first_above(store: &Store, segment: &SegmentRef, partition: i32, epoch: i32) -> Result<Option<i64>> {
    let filter =
        Filter { partitions: Some(BTreeMap::from([(partition, 0..i64::MAX)])), timestamps: None, with_key: None };
    let object = layout::object(&segment.object)?;
    let mut reader = SegmentReader::open(store.objects(), &object, segment.bytes, segment.format, filter).await?;
    while let Some(block) = reader.next().await? {
        let mut records = block.offsets().zip(block.leader_epochs());
        if let Some((offset, _)) = records.find(|(_, found)| *found < 0 || *found > epoch) {
            return Ok(Some(offset));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: i64, end: i64) -> PartitionRange {
        PartitionRange { partition: 0, start, end, records: 0, min_timestamp: None, max_timestamp: None }
    }

    #[test]
    fn a_log_left_the_archive_behind_the_last_epoch_that_both_have() {
        let archived = [(range(0, 50), None), (range(50, 100), Some(1)), (range(100, 200), Some(2))];
        let left = |offset, leader_epoch| {
            let Shared { below, turns_in } =
                shared(EpochAt { offset, leader_epoch }, archived.into_iter().map(Some), None);
            (below, turns_in)
        };
        assert_eq!(left(150, 2), (150, None), "the epoch is the archive's own: the broker's answer is exact");
        assert_eq!(left(150, 1), (100, Some(2)), "records of epoch 1 may stand in the last segment, too");
        assert_eq!(left(100, 1), (100, None));
        assert_eq!(left(80, 1), (80, None));
        assert_eq!(left(150, 0), (50, Some(1)), "of what was archived before epochs were kept nothing is known");
        let nothing = shared(EpochAt { offset: 7, leader_epoch: 0 }, std::iter::empty(), None);
        assert_eq!(nothing, Shared { below: 7, turns_in: None });
    }

    #[test]
    fn a_range_without_a_known_epoch_in_between_is_not_taken_for_shared() {
        let archived = [(range(0, 50), Some(0)), (range(50, 100), None), (range(100, 200), Some(2))];
        let found = shared(EpochAt { offset: 150, leader_epoch: 0 }, archived.into_iter().map(Some), None);
        assert_eq!(found, Shared { below: 50, turns_in: None });
    }

    #[test]
    fn a_segment_behind_a_gap_may_begin_with_what_both_have() {
        let archived = [(range(0, 762), Some(0)), (range(838, 1043), Some(1))];
        let found = shared(EpochAt { offset: 938, leader_epoch: 0 }, archived.into_iter().map(Some), None);
        assert_eq!(found, Shared { below: 838, turns_in: Some(1) });
    }

    #[test]
    fn where_what_came_before_was_expired_all_is_archived_again_unless_something_left_is_shared() {
        let left = |archived: &[(PartitionRange, Option<i32>)], leader_epoch| {
            let diverged = EpochAt { offset: 150, leader_epoch };
            shared(diverged, archived.iter().copied().map(Some), Some(3)).below
        };
        assert_eq!(left(&[], 0), 3, "nothing is left");
        assert_eq!(left(&[(range(100, 200), Some(2))], 1), 3, "the epochs before may part anywhere");
        assert_eq!(left(&[(range(50, 100), Some(1)), (range(100, 200), Some(2))], 1), 100);
        assert_eq!(left(&[(range(100, 200), Some(2))], 2), 150, "the epoch is the archive's own");
        assert_eq!(left(&[(range(100, 200), None)], 2), 3);
    }
}
