//! Up to which time the archive is complete.
//!
//! Every few seconds the collector reports how far each partition is archived; this task asks the brokers where the
//! partitions end just then. Once the archive has reached such an end, everything that was there at the time of the
//! question is archived: a claim, which is written into this process's coverage object. The same round looks whether
//! a topic has been deleted and created again.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use object_store::path::Path;
use tokio::sync::mpsc;

use super::Notice;
use super::commit::{Shared, another_life};
use super::lane::Reached;
use super::lives::Verified;
use crate::config::Isolation;
use crate::error::Result;
use crate::manifest::coverage::{self, Claim, Coverage};
use crate::pipeline::board::KafkaBoard;
use crate::pipeline::tasks::Task;
use crate::source::kafka::{OffsetAt, TopicPartition};
use crate::store::layout;
use crate::stream::TopicLife;

/// Claims that wait for their offset, by partition: with a report every 5 s enough for segments of ten minutes. When
/// there are more, the oldest stay, for they come true first.
const MOST_WAITING: usize = 128;

/// A replica that wrote no coverage for this long is gone, and its claims are taken over.
const GONE_AFTER: TimeDelta = TimeDelta::hours(1);

/// How far a partition is.
pub(super) struct Report {
    pub(super) stream: TopicLife,
    pub(super) topic_id: Option<String>,
    pub(super) verified: Arc<Verified>,
    pub(super) at: TopicPartition,
    pub(super) reached: Reached,
}

/// What a round has found of a partition.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) at: TopicPartition,
    /// Its end on the broker.
    pub(super) end: Option<i64>,
    /// Everything that was there at this time is archived.
    pub(super) complete_through: Option<DateTime<Utc>>,
}

/// The task that turns reports into claims.
pub(super) struct Watch {
    shared: Arc<Shared>,
    board: Arc<KafkaBoard>,
    folder: Path,
    coverage: Coverage,
    waiting: HashMap<TopicPartition, VecDeque<(DateTime<Utc>, i64)>>,
}

impl Watch {
    pub(super) fn new(shared: Arc<Shared>, cluster: &str, board: Arc<KafkaBoard>) -> Self {
        let coverage = Coverage::new(&shared.writer, Utc::now());
        Self { shared, board, folder: layout::topic_coverages(cluster), coverage, waiting: HashMap::new() }
    }

    /// Takes reports until the collector ends. A round that fails is left out: the next one says more.
    pub(super) async fn run(mut self, mut reports: mpsc::Receiver<Vec<Report>>) {
        if let Ok(id) = self.shared.cluster.id().await {
            self.board.learn_cluster_id(id);
        }
        if let Err(error) = self.coverage.adopt(&self.shared.store, &self.folder, Utc::now() - GONE_AFTER).await {
            tracing::warn!(%error, hint = error.hint_text(), "the coverage of replicas that are gone cannot be taken over");
        }
        let reporter = self.shared.tasks.reporter(Task::KafkaEnds, "");
        while let Some(report) = reports.recv().await {
            match self.round(&report).await {
                Ok(seen) => {
                    reporter.succeeded();
                    self.shared.tell(Notice::Seen(seen));
                }
                Err(error) => {
                    tracing::warn!(%error, hint = error.hint_text(), "coverage is not known now");
                    reporter.failed("coverage is not known now", &error, None);
                }
            }
        }
    }

    async fn round(&mut self, report: &[Report]) -> Result<Vec<Seen>> {
        if self.board.cluster_id().is_none() {
            self.board.learn_cluster_id(self.shared.cluster.id().await?);
        }
        if report.is_empty() {
            return Ok(Vec::new());
        }
        self.look_for_new_lives(report).await?;
        let mut seen = self.known_before(report).await?;
        let asked = Utc::now();
        let partitions: Vec<TopicPartition> = report.iter().map(|one| one.at.clone()).collect();
        // The log's end, not the last stable offset: records of a transaction that is open now lie before it, and a claim
        // must not be made before they are archived or aborted.
        let ends = self.shared.cluster.list_offsets(&partitions, OffsetAt::Latest, Isolation::ReadUncommitted).await?;
        for (at, end) in ends {
            // A partition that has no leader now makes no claim.
            let Ok(Some(end)) = end else { continue };
            let waiting = self.waiting.entry(at.clone()).or_default();
            seen.push(Seen { at, end: Some(end), complete_through: None });
            if waiting.len() < MOST_WAITING {
                waiting.push_back((asked, end));
            }
        }
        let mut changed = false;
        for one in report {
            let Some(waiting) = self.waiting.get_mut(&one.at) else { continue };
            let mut reached = None;
            while waiting.front().is_some_and(|(_, end)| *end <= one.reached.archived) {
                reached = waiting.pop_front();
            }
            if let Some((complete_through, end)) = reached {
                let claim = Claim { offset: end.min(one.reached.covered), complete_through };
                self.coverage.claim(&one.stream.stream(), one.at.partition, claim);
                seen.push(Seen { at: one.at.clone(), end: None, complete_through: Some(complete_through) });
                changed = true;
            }
        }
        // Claims of partitions that went to another replica come to nothing.
        if self.waiting.len() > report.len() {
            self.waiting.retain(|at, _| report.iter().any(|one| one.at == *at));
        }
        if changed {
            self.coverage.at = asked;
            self.coverage.save(&self.shared.store, &self.folder).await?;
        }
        Ok(seen)
    }

    /// Up to which time partitions that are new to this process are complete: what whoever had them before has claimed.
    async fn known_before(&self, report: &[Report]) -> Result<Vec<Seen>> {
        let new: Vec<&Report> = report.iter().filter(|one| !self.waiting.contains_key(&one.at)).collect();
        if new.is_empty() {
            return Ok(Vec::new());
        }
        let loaded = coverage::load_all(&self.shared.store, &self.folder).await?;
        loaded.tell_unreadable();
        let claimed = loaded.known;
        let seen = |one: &&Report| {
            let stream = one.stream.stream().to_string();
            let claims = claimed.iter().filter_map(|other| other.streams.get(&stream)?.get(&one.at.partition));
            let valid = claims.filter(|claim| claim.offset <= one.reached.covered);
            let complete_through = valid.map(|claim| claim.complete_through).max();
            Seen { at: one.at.clone(), end: None, complete_through }
        };
        Ok(new.iter().map(seen).collect())
    }

    /// Looks at the ids of all topics: what had come of one before the question is verified, or it has another life.
    async fn look_for_new_lives(&self, report: &[Report]) -> Result<()> {
        let mut topics: HashMap<&Arc<str>, Vec<&Report>> = HashMap::new();
        for one in report {
            topics.entry(&one.at.topic).or_default().push(one);
        }
        let names: Vec<String> = topics.keys().map(ToString::to_string).collect();
        let mut described = self.shared.cluster.describe(&names).await?;
        for (topic, reports) in topics {
            let topic_id = match described.remove(&**topic) {
                Some(Ok(info)) => info.id,
                Some(Err(error)) => {
                    tracing::warn!(%error, hint = error.hint_text(), "whether a topic was created again is not known now");
                    None
                }
                None => None,
            };
            let Some(topic_id) = topic_id else { continue };
            if another_life(reports[0].topic_id.as_deref(), Some(&topic_id)) {
                self.shared.tell(Notice::Recreated { topic: Arc::clone(topic), topic_id });
            } else {
                reports.iter().for_each(|one| one.verified.note(one.at.partition, one.reached.received));
            }
        }
        Ok(())
    }
}
