//! A replay tells retention what it reads, as long as it runs (see [`crate::manifest::reads`]).
//!
//! What keeps a hold from being written keeps nobody from replaying: an archive may well be read-only for who replays.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::plan::Plan;
use crate::manifest::holds::RENEW_EVERY;
use crate::manifest::reads::{Offsets, Reads};
use crate::store::{Store, layout};

/// Holds that are written again and again until they are dropped.
pub struct Holding {
    store: Store,
    holds: Vec<(String, Reads)>,
    renewing: JoinHandle<()>,
    /// The renewing goes on until this is dropped.
    stop: Option<oneshot::Sender<()>>,
}

/// So long is waited at the end for a hold that is just being written again.
const ENDS_WITHIN: Duration = Duration::from_secs(60);

impl Drop for Holding {
    fn drop(&mut self) {
        self.renewing.abort();
    }
}

impl Holding {
    /// Holds what `plan` reads, under a name that nobody else uses.
    pub async fn begin(store: &Store, plan: &Plan, name: &str) -> Self {
        let mut clusters: BTreeMap<String, Offsets> = BTreeMap::new();
        for part in &plan.parts {
            let of = clusters.entry(part.stream.cluster.clone()).or_default();
            let ranges = part.partitions.iter().map(|at| (at.partition, at.start..at.end));
            of.entry(part.stream.stream().to_string()).or_default().extend(ranges);
        }
        let what = format!("the replay {name}");
        let reads = |(cluster, offsets)| (cluster, Reads::new(name.to_owned(), what.clone(), offsets));
        let holds: Vec<(String, Reads)> = clusters.into_iter().map(reads).collect();
        for (cluster, reads) in &holds {
            if let Err(error) = reads.write(store, cluster).await {
                tracing::warn!(%error, "no hold can be written: retention does not know of this replay, and keeps what it \
                    reads for an hour after it expired it");
            }
        }
        let (renewed, again) = (holds.clone(), store.clone());
        let (stop, mut stopped) = oneshot::channel();
        let renewing = tokio::spawn(async move {
            while tokio::time::timeout(RENEW_EVERY, &mut stopped).await.is_err() {
                for (cluster, reads) in &renewed {
                    if let Err(error) = reads.write(&again, cluster).await {
                        tracing::warn!(%error, name = reads.name, "the hold of this replay cannot be written again");
                    }
                }
            }
        });
        Self { store: store.clone(), holds, renewing, stop: Some(stop) }
    }

    /// Takes the holds back: nothing more is read. Those that stay end by themselves.
    pub async fn end(mut self) {
        // A write that is under way, and that cannot be called back, would bring back what is removed here.
        drop(self.stop.take());
        if tokio::time::timeout(ENDS_WITHIN, &mut self.renewing).await.is_err() {
            tracing::warn!("a hold of this replay may be written after its end: retention waits for it for hours");
        }
        for (cluster, reads) in &self.holds {
            if let Err(error) = self.store.delete(&layout::topic_hold(cluster, &reads.name)).await {
                tracing::warn!(%error, name = reads.name, "the hold of this replay cannot be removed: retention waits for it for hours");
            }
        }
    }
}
