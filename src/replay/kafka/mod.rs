//! The sink that is a Kafka cluster: where it is, what stands against the replay, and the sending itself.
//!
//! The order matters, and [`send`] keeps it: topics are created, then this run fences an earlier one of the same id, then
//! the progress is read (it can no longer change), and only then is the first record sent.

mod connection;
mod preflight;
mod raw;
mod sink;
mod target;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

use chrono::{DateTime, Utc};

use super::plan::Plan;
use super::{Counters, Tally, Tempo, run};
use crate::error::{Kind, Result, ResultExt as _};
use crate::store::Store;

pub use connection::Connection;
pub use preflight::{Create, Findings};
pub use target::{Earlier, Identity, Progress, Target};

/// Asks the target about its topics, and reads those records of the plan that only a look at them can judge.
pub async fn preflight(store: &Store, target: &Target, plan: &Plan, now: DateTime<Utc>) -> Result<Findings> {
    let topics: Vec<&str> = plan.targets().into_iter().collect();
    let facts = target.describe(&topics).await?;
    let now = now.timestamp_millis();
    let suspects = preflight::suspects(plan, &facts, now);
    let surveys = if suspects.is_empty() { BTreeMap::new() } else { preflight::survey(store, plan, &suspects).await? };
    Ok(preflight::check(plan, &facts, &surveys, now))
}

/// A replay that is ready to be sent.
pub struct Ready<'a> {
    /// The archive.
    pub store: &'a Store,
    /// Where it goes.
    pub target: Arc<Target>,
    /// What it is.
    pub identity: Identity,
    /// What is sent.
    pub plan: Plan,
    /// What the target was found to be.
    pub findings: Findings,
}

/// Sends the records, until all are sent or `stop` is done; either way what was sent is committed. Says what of the plan
/// was left to do, and what was sent.
///
/// # Errors
/// What the archive cannot give and the target does not take. What was committed before stays, and the same id goes on
/// from there.
pub async fn send(
    ready: Ready<'_>,
    tempo: Tempo,
    counters: &Arc<Counters>,
    stop: impl Future<Output = ()>,
) -> Result<(Arc<Plan>, Tally)> {
    let Ready { store, target, identity, plan, findings } = ready;
    target.create(&findings.create).await?;
    let for_sink = Arc::clone(&target);
    let sink = tokio::task::spawn_blocking(move || sink::Sink::open(&for_sink, identity, &findings))
        .await
        .or_err(Kind::Internal, || "the replay's producer failed".to_owned())??;
    let earlier = target.earlier(&plan.target_partitions(), Progress::Settled).await?;
    let plan = Arc::new(plan.after(&earlier.marks));
    let (for_sink, counters) = (Arc::clone(&plan), Arc::clone(counters));
    let tally = run(store, &plan, tempo, move |steps| sink.drain(&for_sink, steps, &counters), stop).await?;
    Ok((plan, tally))
}
