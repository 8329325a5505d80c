//! The sink that is a Kafka cluster: where it is, what stands against the replay, and the sending itself.
//!
//! The order matters, and [`send`] keeps it: topics are created, then this run fences an earlier one of the same id, then
//! the progress is read (it can no longer change), and only then is the first record sent. [`sending`] goes on by itself
//! after a time-out.

mod afterwards;
mod blocking;
mod connection;
mod created;
mod creation;
mod effort;
mod flight;
mod late;
mod mapping;
mod marks;
mod placed;
mod positions;
mod preflight;
mod producer;
mod raw;
mod refusals;
mod sending;
mod settings;
mod sink;
mod standing;
mod survey;
mod target;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

use chrono::{DateTime, Utc};

use self::mapping::Mapping;
use self::sending::Sending;
use super::archived::Archived;
use super::journal::{Finished, Journal, Settings};
use super::plan::Plan;
use super::{Counters, Tally, Tempo};
use crate::error::{Error, Kind, Result};
use crate::store::Store;

pub use afterwards::Afterwards;
pub use connection::Connection;
pub use marks::Identity;
pub use positions::Position;
use preflight::Around;
pub use preflight::{Create, Findings};
pub use settings::{Given, command};
pub use standing::{Standing, same_target, standing};
pub use target::{Earlier, GROUPS, Progress, Target};

/// What is known of a replay beside its plan when its target is looked at.
#[derive(Debug, Clone, Copy)]
pub struct Beside<'a> {
    /// How the source topics were set, as far as the archive knows.
    pub archived: &'a BTreeMap<String, Archived>,
    /// What earlier runs have written down.
    pub journal: &'a Journal,
    /// When topics that it creates get what could cost a record.
    pub settings: Settings,
    /// Now.
    pub now: DateTime<Utc>,
}

/// Asks the target about its topics, and reads those records of the plan that only a look at them can judge.
pub async fn preflight(store: &Store, target: &Target, plan: &Plan, beside: Beside<'_>) -> Result<Findings> {
    let topics: Vec<&str> = plan.targets().into_iter().collect();
    let facts = target.describe(&topics).await?;
    let broker = target.broker_config().await?;
    let around = Around {
        broker: broker.as_ref(),
        now: beside.now.timestamp_millis(),
        compresses: target.connection.leaves_compression(),
        archived: Some(beside.archived),
        made: beside.journal.made.as_ref(),
        settings: beside.settings,
    };
    let suspects = preflight::suspects(plan, &facts, around);
    let surveys = if suspects.is_empty() { BTreeMap::new() } else { survey::survey(store, plan, &suspects).await? };
    let mut findings = preflight::check(plan, &facts, &surveys, around);
    target.leave_out_refused(&mut findings.create).await?;
    findings.warnings.extend(findings.create.iter().filter_map(Create::lacking));
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
    /// When created topics get what could cost a record; none means as it was said before.
    pub settings: Option<Settings>,
}

/// What a replay has done.
#[derive(Debug)]
pub struct Sent {
    /// What of the plan was left to do.
    pub plan: Arc<Plan>,
    /// What was sent.
    pub tally: Tally,
    /// The settings of the topics that it has created, once all is sent.
    pub settings: Vec<Afterwards>,
}

/// Sends the records, until all are sent or `stop` is done; either way what was sent is committed.
///
/// # Errors
/// What the archive cannot give and the target does not take. What was committed before stays, and the same id goes on
/// from there.
pub async fn send(
    ready: Ready<'_>,
    tempo: Tempo,
    counters: &Arc<Counters>,
    stop: impl Future<Output = ()>,
) -> Result<Sent> {
    let Ready { store, target, mut journal, anew, recorded, plan, findings, settings } = ready;
    let mut made = afterwards::made_before(&target.id, &journal, &plan, settings);
    afterwards::create(&target, &findings.create, &mut made).await?;
    if recorded && !findings.create.is_empty() {
        made.save(store).await?;
    }
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
    let (plan, tally, mapping) = sending.to_its_end(&plan, anew, counters, stop).await?;
    let mut settings = Vec::new();
    if let (true, Some(begun)) = (tally.complete, &journal.begun) {
        // A topic that was deleted and created again meanwhile takes records as if nothing had been: a broker that knows
        // nothing of a producer takes any sequence number (KIP-360).
        same_target(&target, begun).await?;
        settings = afterwards::settle(&target, &mut made).await?;
        if recorded {
            if !settings.is_empty() {
                made.save(store).await?;
            }
            let mapped = finish_map(mapping).await?;
            Finished::save(&begun.replay, crate::time::now(), mapped, store).await?;
        }
    }
    Ok(Sent { plan, tally, settings })
}

/// Keeps what is left of the map of offsets, and says how many records it has.
async fn finish_map(mapping: Option<Mapping>) -> Result<Option<u64>> {
    match mapping {
        Some(mapping) => mapping.finish().await.map(Some),
        None => Ok(None),
    }
}

/// Writes down that the replay of `journal` has nothing left to send, where an earlier run could not, and settles its topics.
pub async fn finish(
    store: &Store,
    target: &Target,
    (plan, journal): (&Plan, &Journal),
    settings: Option<Settings>,
) -> Result<Vec<Afterwards>> {
    let Some(begun) = &journal.begun else { return Ok(Vec::new()) };
    let mut made = afterwards::made_before(&target.id, journal, plan, settings);
    let settled = afterwards::settle(target, &mut made).await?;
    if !settled.is_empty() {
        made.save(store).await?;
    }
    if journal.finished.is_none() {
        let Standing { marks, notes, .. } = standing(target, journal, Progress::Known).await?;
        let mapped = finish_map(Mapping::open(store, journal, &marks, notes).await?).await?;
        Finished::save(&begun.replay, crate::time::now(), mapped, store).await?;
    }
    Ok(settled)
}
