//! Keeps the state of Kafka: topics, groups and access control lists, a version of each whenever it has changed.
//!
//! ```text
//!   every ─► which version comes next ─► ask (a child, see source::kafka::state) ─► same as the newest? ─► append
//! ```
//!
//! Replicas do this side by side and need not agree: each looks up which version comes next before it asks, and whoever is slower
//! drops what it has. None appends sooner than [`Kafka state's every`](crate::config::State::every) after the version before,
//! whoever wrote that, so that several replicas write no more versions than one.

pub(super) mod maintenance;
pub mod status;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use metrics::Counter;
use serde_json::value::RawValue;
use tokio::sync::watch;

use super::published::Opened;
use crate::config::{Kafka, State};
use crate::error::{Error, Kind, Result};
use crate::manifest::Chain;
use crate::manifest::state::{self as versions, By};
use crate::source::kafka::state::{Answer, Asked, Part, Question, Refusal};
use crate::store::Store;
use crate::stream::{Begin, StateKind, StateOf, StreamId, sha256};
use crate::tasks::backoff::Backoff;
use crate::tasks::{Task, Tasks};
use crate::telemetry::metrics::{STATE_VERSIONS, STORED_BYTES};
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

/// One stream of state.
struct Kept {
    chain: Chain,
    /// The number of the newest version, and the hash of its document.
    newest: Option<(i64, String)>,
    versions: Counter,
    stored: Counter,
}

struct Poller {
    question: Question,
    asked: Asked,
    every: Duration,
    cluster: String,
    /// The id that the cluster must have, if one is configured.
    wanted: Option<String>,
    store: Store,
    writer: String,
    published: Arc<PublishedState>,
    /// The id of the cluster that the streams are of.
    cluster_id: Option<String>,
    kept: BTreeMap<StateKind, Kept>,
    /// How many objects were written.
    written: u64,
    /// What was told to be refused.
    told: BTreeSet<Refusal>,
}

impl Poller {
    fn new(kafka: &Kafka, state: &State, opened: &Opened, published: &Arc<PublishedState>) -> Result<Self> {
        Ok(Self {
            question: Question::new(kafka, state)?,
            asked: Asked::default(),
            every: state.every,
            cluster: kafka.cluster.clone(),
            wanted: kafka.cluster_id.clone(),
            store: opened.store.clone(),
            writer: opened.writer.clone(),
            published: Arc::clone(published),
            cluster_id: None,
            kept: BTreeMap::new(),
            written: 0,
            told: BTreeSet::new(),
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
            kept.chain.refresh().await?;
            next.insert(*kind, versions::next(&kept.chain));
        }
        let Answer { cluster_id, topics, groups, acls } = self.asked.ask(&self.question).await?;
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
        self.tell(refused);
        failed.map_or(Ok(()), Err)
    }

    /// Begins the streams, or opens them, as those of the cluster with this id.
    async fn begin(&mut self, id: String) -> Result<()> {
        if let Some(wanted) = self.wanted.as_ref().filter(|wanted| **wanted != id) {
            let message = format!("the brokers are of the cluster {id}, and {wanted} is to be archived");
            return Err(Error::new(Kind::Fenced, message).hint("check kafka.cluster_id and kafka.bootstrap_servers"));
        }
        let mut kept = BTreeMap::new();
        for kind in StateKind::ALL {
            let stream = StreamId::State(StateOf { kind, scope: self.cluster.clone() });
            let begin = Begin::State { state: kind, cluster_id: Some(id.clone()) };
            let chain = Chain::begin(&self.store, &stream, begin, &self.writer, crate::time::now()).await?;
            let versions = STATE_VERSIONS.counter(&[("kind", kind.name())]);
            let stored = STORED_BYTES.counter(&[("kind", "state")]);
            kept.insert(kind, Kept { chain, newest: None, versions, stored });
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
                match next {
                    Some(next) => self.keep(kind, &state, next, now).await,
                    None => Ok(()),
                }
            }
        }
    }

    /// Appends what was found as the version `next`, unless it is what is there, or is too soon.
    async fn keep(&mut self, kind: StateKind, state: &RawValue, next: i64, now: DateTime<Utc>) -> Result<()> {
        let of = StateOf { kind, scope: self.cluster.clone() };
        let document = versions::document(&of, state)?;
        let hash = sha256(&document);
        let Some(kept) = self.kept.get_mut(&kind) else { return Ok(()) };
        let newest = kept.look(&self.store).await?;
        let same = newest.as_ref().is_some_and(|(_, known)| *known == hash);
        let last = kept.chain.totals().max_timestamp.and_then(DateTime::from_timestamp_millis);
        if !same && !last.is_some_and(|last| is_soon(now - last, self.every)) {
            self.written += 1;
            let by = By { writer: &self.writer, n: self.written, at: now };
            if versions::append(&mut kept.chain, next, &document, by).await? {
                kept.newest = Some((next, hash));
                kept.versions.increment(1);
                let stored = versions::newest(&kept.chain).await?.map_or(0, |version| version.stored_bytes());
                kept.stored.increment(stored);
                tracing::info!(stream = %of, version = next, bytes = stored, "the state of Kafka has changed");
            }
        }
        self.published.polled(kind, versions::next(&kept.chain), kept.chain.totals().max_timestamp, now);
        Ok(())
    }

    /// Tells of what is refused, once.
    fn tell(&mut self, refused: BTreeSet<Refusal>) {
        for Refusal { what, grant } in refused.difference(&self.told) {
            tracing::warn!(
                what,
                hint = format!("grant {grant}"),
                "the brokers do not tell this, so its state is not kept"
            );
        }
        for Refusal { what, .. } in self.told.difference(&refused) {
            tracing::info!(what, "the brokers tell this again, or it is gone");
        }
        self.published.refused(refused.iter().cloned().collect());
        self.told = refused;
    }
}

impl Kept {
    /// The number of the newest version and the hash of its document; it is read where another process wrote it.
    async fn look(&mut self, store: &Store) -> Result<Option<(i64, String)>> {
        let last = versions::next(&self.chain) - 1;
        if last < 0 {
            return Ok(None);
        }
        if self.newest.as_ref().is_none_or(|(number, _)| *number != last) {
            let stream = self.chain.stream().clone();
            self.newest = match versions::newest(&self.chain).await? {
                None => None,
                Some(version) => match versions::read(store, &stream, &version).await {
                    Ok(document) => Some((version.number, sha256(&document))),
                    // What comes is stored all the same: it is the better for it.
                    Err(error) if !error.is_transient() => {
                        tracing::error!(%error, hint = error.hint_text(), "a version of the state of Kafka cannot be read");
                        None
                    }
                    Err(error) => return Err(error),
                },
            };
        }
        Ok(self.newest.clone())
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

/// Returns whether a version would follow the one before too soon: replicas poll at different times, and the clocks of two differ a little.
fn is_soon(age: TimeDelta, every: Duration) -> bool {
    let least = TimeDelta::from_std(every).unwrap_or(TimeDelta::MAX).checked_div(10).unwrap_or(TimeDelta::MAX) * 9;
    // One from the future is of a clock that was set back.
    (TimeDelta::zero()..least).contains(&age)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_replicas_one_writes() {
        let every = Duration::from_secs(30);
        for (seconds, soon) in
            [(0, true), (15, true), (26, true), (27, false), (30, false), (3_600, false), (-60, false)]
        {
            assert_eq!(is_soon(TimeDelta::seconds(seconds), every), soon, "{seconds}");
        }
    }
}
