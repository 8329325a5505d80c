//! The progress of a replay into the archive, some seconds late: for the day on which the target has forgotten it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::mapping::{Kept, Mapping};
use super::target::Target;
use crate::replay::journal::Reached;
use crate::replay::plan::Marks;
use crate::store::Store;

/// How late it may be. It costs a question to the target's leaders and one small object.
const EVERY: Duration = Duration::from_secs(5);
/// How long the last one may take: a store that is away must not hold up a replay that has ended.
const LAST: Duration = Duration::from_secs(15);

/// Writes down how far a replay has come.
pub(super) struct Late {
    /// None where the replay is not written down.
    store: Option<Store>,
    target: Arc<Target>,
    due: Instant,
    /// Where target partitions ended when they were last asked for.
    ends: BTreeMap<(String, i32), i64>,
    /// Those to which something was committed since.
    touched: BTreeSet<(String, i32)>,
    writing: Option<JoinHandle<Option<Kept>>>,
    /// The map of offsets, where it is kept.
    pub(super) mapping: Option<Mapping>,
}

impl Late {
    /// Of a replay whose partitions stand at `marks`.
    pub(super) fn new(store: Option<Store>, target: Arc<Target>, marks: &Marks, mapping: Option<Mapping>) -> Self {
        let due = Instant::now() + EVERY;
        // Also where nothing is sent any more the end is asked for once: it goes with the mark that this run found.
        let touched = marks.keys().cloned().collect();
        Self { store, target, due, ends: BTreeMap::new(), touched, writing: None, mapping }
    }

    /// `moved` is committed, and makes it `all`. Blocks for a moment where it is time to write that down.
    pub(super) fn committed(&mut self, moved: &Marks, all: &Marks) {
        self.touched.extend(moved.keys().cloned());
        let busy = self.writing.as_ref().is_some_and(|writing| !writing.is_finished());
        if !busy && let Some(writing) = self.writing.take() {
            let written = Handle::current().block_on(writing).ok().flatten();
            self.kept(written);
        }
        if Instant::now() >= self.due && !busy {
            self.write(all);
            self.due = Instant::now() + EVERY;
        }
    }

    /// No more will be committed. Blocks until that is written down, or for [`LAST`].
    pub(super) fn last(mut self, all: &Marks) -> Option<Mapping> {
        let runtime = Handle::current();
        for write in [false, true] {
            if write {
                self.write(all);
            }
            let Some(writing) = self.writing.take() else { continue };
            match runtime.block_on(async { tokio::time::timeout(LAST, writing).await }) {
                Ok(written) => self.kept(written.ok().flatten()),
                Err(_elapsed) => {
                    tracing::warn!("the archive did not take the progress of the replay in time; the target has it");
                    break;
                }
            }
        }
        self.mapping
    }

    fn kept(&mut self, written: Option<Kept>) {
        if let (Some(mapping), Some(kept)) = (&mut self.mapping, written) {
            mapping.kept(kept);
        }
    }

    fn write(&mut self, all: &Marks) {
        let Some(store) = self.store.clone() else { return };
        let asked: Vec<(String, i32)> = self.touched.iter().cloned().collect();
        match Handle::current().block_on(self.target.ends(&asked, Duration::ZERO)) {
            Ok(ends) => {
                self.ends.extend(ends);
                self.touched.clear();
            }
            Err(error) => {
                tracing::debug!(%error, "where the target ends is not known; it is asked again");
                self.ends.retain(|at, _| !asked.contains(at));
            }
        }
        let mut reached = Reached::new(&self.target.id, crate::time::now(), all, &self.ends);
        let keeping = self.mapping.as_ref().map(Mapping::keeping);
        if let Some(mapping) = &self.mapping {
            reached = reached.with_records(&mapping.records());
        }
        self.writing = Some(Handle::current().spawn(async move {
            // The progress counts where the group is gone, and then the map has to be as far.
            let kept = match keeping {
                None => Ok(None),
                Some(keeping) => keeping.save().await.map(Some),
            };
            let written = match kept {
                Ok(kept) => reached.save(&store).await.map(|()| kept),
                Err(error) => Err(error),
            };
            written.unwrap_or_else(|error| {
                tracing::warn!(%error, "the progress of the replay is not in the archive; the target has it");
                None
            })
        }));
    }
}
