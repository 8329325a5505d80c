//! Keeps the state of the pipeline: a version of each document whenever it has changed. This is Kafka's part, topics, groups and access
//! control lists; [`servers`] asks what speaks HTTP.
//!
//! ```text
//!   every ─► which version comes next ─► ask ─► same as the newest? ─► append
//!                                         ├─ brokers: a child, see source::kafka::state
//!                                         └─ Connect: source::rest
//! ```
//!
//! Replicas do this side by side and need not agree: each looks up which version comes next before it asks, and whoever is slower
//! drops what it has. None appends sooner than [`Kafka state's every`](crate::config::State::every) after the version before,
//! whoever wrote that, so that several replicas write no more versions than one.

mod kept;
pub(super) mod maintenance;
mod servers;
mod slots;
pub mod status;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::sync::watch;

use super::published::Opened;
use crate::config::{Kafka, State};
use crate::error::{Error, Kind, Result};
use crate::source::kafka::state::{Answer, Asked, Question};
use crate::source::told::{Part, Refusal};
use crate::stream::{StateKind, StateOf};
use crate::tasks::backoff::Backoff;
use crate::tasks::{Task, Tasks};
use kept::{Kept, Refusals};
pub(super) use servers::watch;
pub(super) use slots::watch as watch_slots;
use status::PublishedState;

/// Keeps the state until `stop` turns true.
pub(super) async fn run(
    (kafka, state): (Kafka, State),
    opened: Opened,
    (published, tasks): (Arc<PublishedState>, Arc<Tasks>),
    mut stop: watch::Receiver<bool>,
) {
    let mut backoff = Backoff::new(tasks.reporter(Task::KafkaState, ""));
    let work = async {
        let mut poller = loop {
            match Poller::new(&kafka, &state, &opened, &published) {
                Ok(poller) => break poller,
                Err(error) => backoff.wait_after("the state of Kafka is not kept", error).await,
            }
        };
        loop {
            match poller.poll().await {
                Ok(()) => {
                    backoff.succeeded();
                    tokio::time::sleep(state.every).await;
                }
                Err(error) => backoff.wait_after("the state of Kafka is not kept", error).await,
            }
        }
    };
    tokio::select! {
        biased;
        _ = stop.wait_for(|stop| *stop) => {}
        () = work => {}
    }
}

struct Poller {
    question: Question,
    asked: Asked,
    every: Duration,
    cluster: String,
    /// The id that the cluster must have, if one is configured.
    wanted: Option<String>,
    opened: Opened,
    published: Arc<PublishedState>,
    /// The id of the cluster that the streams are of.
    cluster_id: Option<String>,
    kept: BTreeMap<StateKind, Kept>,
    refusals: Refusals,
}

impl Poller {
    fn new(kafka: &Kafka, state: &State, opened: &Opened, published: &Arc<PublishedState>) -> Result<Self> {
        Ok(Self {
            question: Question::new(kafka, state)?,
            asked: Asked::default(),
            every: state.every,
            cluster: kafka.cluster.clone(),
            wanted: kafka.cluster_id.clone(),
            opened: opened.clone(),
            published: Arc::clone(published),
            cluster_id: None,
            kept: BTreeMap::new(),
            refusals: Refusals::of("the brokers"),
        })
    }

    /// Asks once, and stores what has changed.
    ///
    /// # Errors
    /// What failed of it. What did not is stored all the same.
    async fn poll(&mut self) -> Result<()> {
        if self.kept.is_empty() {
            // Whose state it is must be known first; what is told besides came before it was known which version is next.
            let Answer { cluster_id, topics, .. } = self.asked.ask(&self.question).await?;
            self.begin(told(cluster_id, &topics)?).await?;
        }
        let mut next = BTreeMap::new();
        for (kind, kept) in &mut self.kept {
            next.insert(*kind, kept.next().await?);
        }
        let known = match self.kept.get_mut(&StateKind::Groups) {
            Some(kept) => kept.names().await?,
            None => &[],
        };
        let question = self.question.knowing(known);
        let Answer { cluster_id, topics, groups, acls } = self.asked.ask(&question).await?;
        let id = told(cluster_id, &topics)?;
        if self.cluster_id.as_ref() != Some(&id) {
            self.kept.clear();
            let before = self.cluster_id.as_deref().unwrap_or_default();
            let message = format!("the brokers are of the cluster {id}, and were of {before}");
            return Err(Error::new(Kind::Fenced, message).hint("check kafka.bootstrap_servers and kafka.cluster"));
        }
        let now = crate::time::now();
        let (mut failed, mut refused) = (None, BTreeSet::new());
        for (kind, part) in [(StateKind::Topics, topics), (StateKind::Groups, groups), (StateKind::Acls, acls)] {
            let result = self.part((kind, part), next.get(&kind).copied(), now, &mut refused).await;
            failed = failed.or(result.err());
        }
        self.refusals.tell(refused, &self.published);
        failed.map_or(Ok(()), Err)
    }

    /// Begins the streams, or opens them, as those of the cluster with this id.
    async fn begin(&mut self, id: String) -> Result<()> {
        if let Some(wanted) = self.wanted.as_ref().filter(|wanted| **wanted != id) {
            let message = format!("the brokers are of the cluster {id}, and {wanted} is to be archived");
            return Err(Error::new(Kind::Fenced, message).hint("check kafka.cluster_id and kafka.bootstrap_servers"));
        }
        let mut kept = BTreeMap::new();
        for kind in StateKind::OF_KAFKA {
            let of = StateOf { kind, scope: self.cluster.clone() };
            kept.insert(kind, Kept::begin(&self.opened, of, self.every, Some(id.clone())).await?);
        }
        (self.kept, self.cluster_id) = (kept, Some(id));
        Ok(())
    }

    async fn part(
        &mut self,
        (kind, part): (StateKind, Part),
        next: Option<i64>,
        now: DateTime<Utc>,
        refused: &mut BTreeSet<Refusal>,
    ) -> Result<()> {
        match part {
            Part::Failed { text, hint } => Err(failed(text, hint)),
            Part::Refused(refusal) => {
                refused.insert(refusal);
                Ok(())
            }
            Part::Found { state, refused: also } => {
                refused.extend(also);
                match self.kept.get_mut(&kind).zip(next) {
                    Some((kept, next)) => kept.keep(&state, next, now, &self.published).await,
                    None => Ok(()),
                }
            }
        }
    }
}

/// The cluster's id, or why it was not told.
fn told(id: Option<String>, topics: &Part) -> Result<String> {
    match (id, topics) {
        (Some(id), _) => Ok(id),
        (None, Part::Failed { text, hint }) => Err(failed(text.clone(), hint.clone())),
        (None, _) => Err(Error::new(Kind::Unavailable, "the brokers do not tell the id of their cluster")),
    }
}

fn failed(text: String, hint: Option<String>) -> Error {
    hint.into_iter().fold(Error::new(Kind::Unavailable, text), Error::hint)
}
