//! The sink that is a Kafka cluster: where it is, what stands against the replay, and the sending itself.
//!
//! The order matters, and [`send`] keeps it: topics are created, then this run fences an earlier one of the same id, then
//! the progress is read (it can no longer change), and only then is the first record sent. [`sending`] goes on by itself
//! after a time-out.

mod connection;
mod created;
mod effort;
mod flight;
mod late;
mod preflight;
mod raw;
mod refusals;
mod sending;
mod sink;
mod standing;
mod survey;
mod target;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

use chrono::{DateTime, Utc};

use self::sending::Sending;
use super::journal::{Finished, Journal};
use super::plan::Plan;
use super::{Counters, Tally, Tempo};
use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::store::Store;

pub use connection::Connection;
use preflight::Around;
pub use preflight::{Create, Findings};
pub use standing::{Standing, same_target, standing};
pub use target::{Earlier, Identity, Progress, Target};

/// Asks the target about its topics, and reads those records of the plan that only a look at them can judge.
pub async fn preflight(store: &Store, target: &Target, plan: &Plan, now: DateTime<Utc>) -> Result<Findings> {
    let topics: Vec<&str> = plan.targets().into_iter().collect();
    let facts = target.describe(&topics).await?;
    let broker = target.broker_config().await?;
    let compresses = target.connection.leaves_compression();
    let around = Around { broker: broker.as_ref(), now: now.timestamp_millis(), compresses };
    let suspects = preflight::suspects(plan, &facts, around);
    let surveys = if suspects.is_empty() { BTreeMap::new() } else { survey::survey(store, plan, &suspects).await? };
    let mut findings = preflight::check(plan, &facts, &surveys, around);
    findings.problems.extend(target.refusals(&findings.create).await?);
    findings.problems.extend(target.missing_rights(&findings.existing).await?);
    Ok(findings)
}

/// A replay that is ready to be sent.
pub struct Ready<'a> {
    /// The archive.
    pub store: &'a Store,
    /// Where it goes.
    pub target: Arc<Target>,
    /// What it is, and how far the archive knows it to be.
    pub journal: Journal,
    /// Whether this run begins it.
    pub anew: bool,
    /// Whether it is written down beside the archive.
    pub recorded: bool,
    /// What is sent, of which an earlier run may have sent some already.
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
    let Ready { store, target, mut journal, anew, recorded, plan, findings } = ready;
    target.create(&findings.create).await?;
    preflight::still_fits(&target, &plan, &findings).await?;
    let Some(begun) = journal.begun.as_mut() else {
        return Err(Error::new(Kind::Internal, "a replay without a plan cannot be sent"));
    };
    if anew {
        let topics: Vec<String> = plan.targets().into_iter().map(str::to_owned).collect();
        begun.target = target.as_begun(&topics).await?;
        if recorded {
            begun.save(store).await?;
        }
    }
    let sending = Sending { store, target: &target, journal: &journal, recorded, findings: Arc::new(findings), tempo };
    let (plan, tally) = sending.to_its_end(&plan, anew, counters, stop).await?;
    if let (true, Some(begun)) = (tally.complete, &journal.begun) {
        // A topic that was deleted and created again meanwhile takes records as if nothing had been: a broker that knows
        // nothing of a producer takes any sequence number (KIP-360).
        same_target(&target, begun).await?;
        if recorded {
            Finished::save(&begun.replay, Utc::now(), store).await?;
        }
    }
    Ok((plan, tally))
}

/// Writes down that the replay of `journal` has nothing left to send, where an earlier run could not.
pub async fn finish(store: &Store, journal: &Journal) -> Result<()> {
    match &journal.begun {
        Some(begun) if journal.finished.is_none() => Finished::save(&begun.replay, Utc::now(), store).await.map(|_| ()),
        _ => Ok(()),
    }
}

/// Runs what blocks on a thread that may.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.or_err(Kind::Internal, || "the replay's producer failed".to_owned())?
}
