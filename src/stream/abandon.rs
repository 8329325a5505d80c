//! A timeline that was archived by mistake, or of which another server is archived from now on.
//!
//! ```text
//!   timeline 2, generation 0   ├── of a copy that was archived by mistake ──┤ abandoned
//!   timeline 2, generation 1                          ├── of the server that was promoted later ──►
//! ```
//!
//! Postgres gives a timeline the next number that the server knows to be free, so two servers of one system come to the same
//! number in different ways. What was archived of a number before it was abandoned is another **generation** of it than what comes
//! after, and the two never mix: segments, gaps and expiries name the generation that they belong to, and an entry that names
//! another one than the current is refused.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{Body, Retired};

/// The end of one generation of a timeline: what is archived of it leads nowhere any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Abandon {
    /// The timeline.
    pub partition: i32,
    /// Which generation of it ends, from 0.
    #[serde(default, rename = "life", skip_serializing_if = "is_first")]
    pub generation: u32,
    /// Where its archive began.
    pub start: i64,
    /// Where it ended; the same as `start` where nothing but its history was archived.
    pub end: i64,
    /// The base backups that go with it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub backups: Vec<String>,
    /// What its segments add up to.
    pub retired: Retired,
    /// When it was decided. The objects stay for the retention time from then on.
    pub decided: DateTime<Utc>,
}

/// Whether a generation is the first one, which is not written down.
pub(super) fn is_first(generation: &u32) -> bool {
    *generation == 0
}

/// Whether nothing is packed: it is not written then.
pub(super) fn is_nothing(packed: &u64) -> bool {
    *packed == 0
}

impl Body {
    /// The timeline that the entry abandons.
    pub fn abandon(&self) -> Option<&Abandon> {
        match self {
            Self::Abandon(abandon) => Some(abandon),
            _ => None,
        }
    }

    /// The partitions that the entry says anything of, and the generation of each that it means.
    pub fn generations(&self) -> impl Iterator<Item = (i32, u32)> {
        let segments = self.segments().iter().chain(self.merge().map(|merge| &merge.segment));
        let segments =
            segments.flat_map(|segment| segment.partitions.iter().map(|at| (at.partition, segment.generation)));
        let gaps = self.gaps().iter().map(|gap| (gap.partition, gap.generation));
        let expired = self.expire().into_iter().flat_map(|expire| &expire.ranges);
        let expired = expired.map(|expired| (expired.partition, expired.generation));
        segments.chain(gaps).chain(expired).chain(self.abandon().map(|abandon| (abandon.partition, abandon.generation)))
    }

    /// The version of the format that a reader must know to understand the entry.
    pub fn format(&self) -> u32 {
        match self {
            // A program that does not know of packs would miss the entries in them.
            Self::Snapshot(snapshot) if snapshot.packed > 0 => super::CHAIN_FORMAT,
            // A program that does not know of it would call recoverable what is not.
            Self::Append(change) if change.segments.iter().any(|segment| segment.minimal.is_some()) => 3,
            Self::Snapshot(snapshot) if !snapshot.minimal.is_empty() => 3,
            Self::Abandon(_) | Self::Backups(_) => 2,
            Self::Snapshot(snapshot) if !snapshot.abandoned.is_empty() || snapshot.backups.is_some() => 2,
            Self::Merge(merge) if merge.is_of_records() => 4,
            Self::Snapshot(snapshot) if snapshot.pages.iter().any(|page| page.merged.is_some()) => 4,
            _ => super::FORMAT_VERSION,
        }
    }
}
