//! What the tasks that archive WAL share.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use object_store::path::Path;
use tokio::sync::{Notify, mpsc, watch as channel};

use super::buffers::Buffers;
use super::spool::WalSpool;
use super::status::Status;
use crate::error::Result;
use crate::manifest::Chain;
use crate::store::{Store, layout};
use crate::stream::{PartitionRange, System};

/// The spool is not filled further than this. An archive that is away is waited for, with WAL of several minutes at full
/// speed or of days of a quiet server; beyond that the server keeps its own files.
pub(super) const SPOOL_LIMIT: u64 = 8 << 30;

/// How long the last WAL may take on its way into the archive as the process stops.
pub(super) const DRAIN_WITHIN: Duration = Duration::from_secs(20);

/// How long the good-bye to the server may take.
pub(super) const LEAVE_WITHIN: Duration = Duration::from_secs(5);

/// What the tasks share.
pub(super) struct Shared {
    pub(super) store: Store,
    pub(super) spool: WalSpool,
    pub(super) buffers: Arc<Buffers>,
    pub(super) writer: String,
    /// Segments of this writer so far; the number is part of a segment's key.
    pub(super) segments: AtomicU64,
    pub(super) zstd_level: i32,
    pub(super) system: System,
    pub(super) status: Arc<Status>,
    /// How far each timeline is archived.
    pub(super) archived: channel::Sender<Vec<PartitionRange>>,
    /// Which generation of each timeline is archived; those that were never abandoned are in their first.
    pub(super) generations: Mutex<BTreeMap<u32, u32>>,
    /// Somebody else may have changed what stands in the way: the chain is to be looked at again.
    pub(super) look_again: Notify,
    /// Asks for a new base backup, with the reason.
    pub(super) backups: mpsc::Sender<String>,
}

impl Shared {
    /// A number for a new segment.
    pub(super) fn next_number(&self) -> u64 {
        self.segments.fetch_add(1, Ordering::Relaxed)
    }

    /// The history of a timeline, in the generation of it that is archived.
    pub(super) fn history_key(&self, timeline: u32) -> Path {
        let generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        layout::history(self.system.system_id, timeline, generations.get(&timeline).copied().unwrap_or(0))
    }

    /// Whether a timeline was abandoned that this process does not know to be.
    pub(super) fn is_overtaken_by(&self, chain: &Chain) -> bool {
        *self.generations.lock().unwrap_or_else(PoisonError::into_inner) != generations(chain)
    }

    /// Goes on with the timelines as the chain has them: what is received of one that was abandoned is of no use.
    pub(super) fn follow(&self, chain: &Chain) -> Result<()> {
        let now = generations(chain);
        self.spool.follow(&now)?;
        *self.generations.lock().unwrap_or_else(PoisonError::into_inner) = now;
        // Before anything is received: where to go on must not be decided by where the generation before ended.
        self.archived.send_replace(chain.positions().copied().collect());
        Ok(())
    }
}

/// Which generation of each timeline is archived, of those that were abandoned.
fn generations(chain: &Chain) -> BTreeMap<u32, u32> {
    let timelines = chain.abandoned().iter().map(|abandon| abandon.partition);
    timelines.map(|timeline| (timeline.cast_unsigned(), chain.generation(timeline))).collect()
}
