//! What the tasks around the collector share: the store, the cluster, and where they tell what they found.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::count::Counters;
use super::messages::TaskEvent;
use super::topic_ids::TopicIds;
use crate::pipeline::spool::Spool;
use crate::source::kafka::Cluster;
use crate::store::Store;
use crate::tasks::Tasks;

/// What every task shares.
pub(super) struct Shared {
    pub(super) store: Store,
    pub(super) spool: Spool,
    pub(super) cluster: Cluster,
    pub(super) topic_ids: TopicIds,
    pub(super) writer: String,
    /// How many uploads may run at once.
    pub(super) uploads: Semaphore,
    pub(super) events: std::sync::mpsc::Sender<TaskEvent>,
    pub(super) counters: Counters,
    pub(super) tasks: Arc<Tasks>,
}

impl Shared {
    /// Tells the collector. It outlives every committer; where it does not, the process is ending.
    pub(super) fn send(&self, event: TaskEvent) {
        if self.events.send(event).is_err() {
            tracing::debug!("the collector has ended");
        }
    }
}
