//! A prepared replay carried out: what is left is sent, topics are settled, groups are put where they were.

use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use super::groups::GroupsShown;
use super::holding::Holding;
use super::journal::Settings;
use super::kafka::{self, Afterwards, Ready, Sent};
use super::plan::Plan;
use super::prepare::Prepared;
use super::tally::{Counters, Tally};
use super::tempo::Tempo;
use super::verdict::{all_decoded, also_left_out, as_asked};
use crate::error::Result;
use crate::store::Store;
use crate::stream::TopicGeneration;

/// What a run of a replay has come to.
#[derive(Debug)]
pub struct Outcome {
    /// What was left of the plan, and what of it was sent; none where nothing was left.
    pub sent: Option<(Arc<Plan>, Tally)>,
    /// How long the sending took.
    pub seconds: f64,
    /// What the user should know.
    pub warnings: Vec<String>,
    /// The settings of the topics that it has created, once all is sent.
    pub settings: Vec<Afterwards>,
    /// What became of consumer groups, once all is sent.
    pub groups: Option<GroupsShown>,
    /// Whether groups wait for a run that sends the rest.
    pub groups_wait: bool,
    /// Whether the whole replay is done, by this run and those before it.
    pub finished: bool,
    /// What could not be read at all.
    pub left_out: Vec<TopicGeneration>,
    asked: Option<Settings>,
}

impl Outcome {
    /// Whether all is as it was asked for, as far as this run came.
    ///
    /// # Errors
    /// [`Kind::Incomplete`](crate::error::Kind::Incomplete) that says what is not.
    pub fn verdict(&self) -> Result<()> {
        also_left_out(self.as_asked(), &self.left_out)
    }

    fn as_asked(&self) -> Result<()> {
        if let Some((plan, tally)) = &self.sent {
            all_decoded(plan, tally)?;
        }
        as_asked(self.asked, &self.settings)?;
        self.groups.as_ref().map_or(Ok(()), GroupsShown::verdict)
    }
}

/// Carries a replay out, until all is done or `stop` is; either way what was sent is committed.
///
/// # Errors
/// What the archive cannot give and the target does not take. What was committed before stays, and the same id goes on from there.
pub async fn carry_out(
    store: &Store,
    replay: Prepared,
    tempo: Tempo,
    counters: &Arc<Counters>,
    stop: impl Future<Output = ()>,
) -> Result<Outcome> {
    if replay.plan.parts.is_empty() {
        return settle(store, replay).await;
    }
    let Prepared { id, journal, anew, whole, findings, target, groups, left_out, asked, recorded, .. } = replay;
    // All of it, for the same id to go on with it: what was sent already is asked for again then.
    let holding = Holding::begin(store, &whole, &id).await;
    let (started, warnings) = (Instant::now(), findings.told());
    let ready =
        Ready { store, target: Arc::clone(&target), journal, anew, recorded, plan: whole, findings, settings: asked };
    let Sent { plan, tally, settings } = kafka::send(ready, tempo, counters, stop).await?;
    let (seconds, finished) = (started.elapsed().as_secs_f64(), tally.complete);
    let groups_wait = groups.is_some() && !finished;
    let groups = match groups.filter(|_| finished) {
        Some(groups) => Some(groups.put(store, &target).await?),
        None => None,
    };
    // Groups are translated by what the archive holds.
    if finished {
        holding.end().await;
    }
    let sent = Some((plan, tally));
    Ok(Outcome { sent, seconds, warnings, settings, groups, groups_wait, finished, left_out, asked })
}

/// Does what is left to do for topics and groups of a replay that has nothing left to send.
async fn settle(store: &Store, replay: Prepared) -> Result<Outcome> {
    let finished = !replay.whole.parts.is_empty();
    let mut outcome = Outcome {
        sent: None,
        seconds: 0.0,
        warnings: replay.findings.told(),
        settings: Vec::new(),
        groups: None,
        groups_wait: false,
        finished,
        left_out: replay.left_out,
        asked: replay.asked,
    };
    if finished && replay.recorded && !replay.anew {
        let plan = (&replay.whole, &replay.journal);
        outcome.settings = kafka::finish(store, &replay.target, plan, replay.asked).await?;
    }
    if let (true, Some(groups)) = (finished, replay.groups) {
        outcome.groups = Some(groups.put(store, &replay.target).await?);
    }
    Ok(outcome)
}
