//! Which rows a reader wants, asked of a row, of a page or of a whole file.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use crate::stream::PartitionRange;

/// Which rows a reader wants. Empty means all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// The wanted offsets `[start, end)` of the wanted partitions.
    pub partitions: Option<BTreeMap<i32, Range<i64>>>,
    /// The wanted timestamps, `start <= timestamp < end`, in ms since 1970.
    pub timestamps: Option<Range<i64>>,
    /// Only records with this key are looked for: what surely has none is not read. Of what is read all rows come that are wanted
    /// otherwise.
    pub with_key: Option<Arc<[u8]>>,
}

/// How much of something a filter wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    Nothing,
    /// Perhaps some of it.
    Some,
    All,
}

impl Filter {
    /// Returns whether a row is wanted.
    pub fn matches(&self, partition: i32, offset: i64, timestamp: i64) -> bool {
        self.timestamps.as_ref().is_none_or(|wanted| wanted.contains(&timestamp))
            && self
                .partitions
                .as_ref()
                .is_none_or(|wanted| wanted.get(&partition).is_some_and(|offsets| offsets.contains(&offset)))
    }

    /// Returns how much is wanted of rows of one partition with offsets and timestamps of `least..=greatest`.
    pub(super) fn of_partition(&self, partition: i32, offsets: (i64, i64), timestamps: (i64, i64)) -> Wanted {
        let by_offset = match &self.partitions {
            None => Wanted::All,
            Some(partitions) => partitions.get(&partition).map_or(Wanted::Nothing, |wanted| overlap(wanted, offsets)),
        };
        by_offset.and(self.of_timestamps(timestamps))
    }

    /// Returns how much is wanted of rows with timestamps of `least..=greatest`.
    pub(super) fn of_timestamps(&self, timestamps: (i64, i64)) -> Wanted {
        self.timestamps.as_ref().map_or(Wanted::All, |wanted| overlap(wanted, timestamps))
    }

    /// Returns whether anything may be wanted of rows of unknown partitions with offsets of `least..=greatest`.
    pub(super) fn of_offsets(&self, offsets: (i64, i64)) -> Wanted {
        match &self.partitions {
            None => Wanted::All,
            Some(wanted) if wanted.values().any(|wanted| overlap(wanted, offsets) != Wanted::Nothing) => Wanted::Some,
            Some(_) => Wanted::Nothing,
        }
    }

    /// Returns how much is wanted of rows of partitions `least..=greatest`, as far as partitions tell.
    pub(super) fn of_partitions(&self, partitions: (i32, i32)) -> Wanted {
        match &self.partitions {
            None => Wanted::All,
            Some(wanted)
                if partitions.0 <= partitions.1 && wanted.range(partitions.0..=partitions.1).next().is_some() =>
            {
                Wanted::Some
            }
            Some(_) => Wanted::Nothing,
        }
    }

    /// Returns how much is wanted of a segment that covers `ranges`.
    pub(super) fn of_segment(&self, ranges: &[PartitionRange]) -> Wanted {
        let mut all = Wanted::All;
        let mut any = Wanted::Nothing;
        for range in ranges {
            let (Some(least), Some(greatest)) = (range.min_timestamp, range.max_timestamp) else { continue };
            let wanted =
                self.of_partition(range.partition, (range.start, range.end.saturating_sub(1)), (least, greatest));
            all = all.and(wanted);
            if wanted != Wanted::Nothing {
                any = Wanted::Some;
            }
        }
        if all == Wanted::All { all } else { any }
    }
}

impl Wanted {
    /// Returns what two conditions want together.
    pub(super) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Nothing, _) | (_, Self::Nothing) => Self::Nothing,
            (Self::All, Self::All) => Self::All,
            _ => Self::Some,
        }
    }
}

/// Returns how much of `least..=greatest` lies in `wanted`.
fn overlap(wanted: &Range<i64>, (least, greatest): (i64, i64)) -> Wanted {
    if wanted.is_empty() || greatest < wanted.start || least >= wanted.end {
        Wanted::Nothing
    } else if least >= wanted.start && greatest < wanted.end {
        Wanted::All
    } else {
        Wanted::Some
    }
}
