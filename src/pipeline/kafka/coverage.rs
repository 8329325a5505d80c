//! Up to which time the archive is complete.
//!
//! Every few seconds the collector reports how far each partition is archived; this task asks the brokers where the
//! partitions end just then, and how many there are. Once the archive has reached such an end, everything that was there
//! at the time of the question is archived: a claim, which is written into this process's coverage object (see [`completeness`]).
//! The same round looks whether a topic has been deleted and created again.
//!
//! [`completeness`]: super::completeness

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use object_store::path::Path;
use tokio::sync::mpsc;

use super::completeness::{Ledger, Report};
use super::messages::{Seen, SeenPartition, TaskEvent};
use super::segmenter::Segmenter;
use super::shared::Shared;
use super::topic_ids::{Verified, is_recreated};
use crate::config::Isolation;
use crate::error::Result;
use crate::manifest::coverage::{self, Coverage};
use crate::pipeline::published::PublishedKafka;
use crate::source::kafka::{OffsetAt, TopicInfo, TopicPartition};
use crate::store::layout;
use crate::tasks::Task;

/// How often the brokers are asked while records come, and while nothing happens.
const ROUND_EVERY: Duration = Duration::from_secs(5);
const IDLE_ROUND_EVERY: Duration = Duration::from_secs(15);

/// How often claims are written down: four objects a minute at the most. Rounds are counted by another clock's ticks, so
/// a little less is as much.
const WRITE_EVERY: Duration = Duration::from_millis(14_500);

/// A replica that wrote no coverage for this long is gone, and its claims are taken over.
const GONE_AFTER: TimeDelta = TimeDelta::hours(1);

/// What has not been read here for a while is looked for this often.
const REST_EVERY: Duration = Duration::from_secs(3600);

/// How far a topic's partitions are, and what of them is known to be of this generation.
pub(super) struct Told {
    pub(super) report: Report,
    pub(super) verified: Arc<Verified>,
}

impl Told {
    /// Returns what a segmenter has to report.
    pub(super) fn of(segmenter: &Segmenter) -> Self {
        let report = Report {
            stream: segmenter.stream.clone(),
            topic: Arc::clone(&segmenter.topic),
            topic_id: segmenter.topic_id.clone(),
            reached: segmenter.reached().collect(),
        };
        Self { report, verified: Arc::clone(&segmenter.verified) }
    }
}

/// When a report is due: soon where something has moved, and not so soon where nothing has.
pub(super) struct Cadence {
    /// When it was looked last whether something has moved: never at every turn of the collector, for that looks at all
    /// partitions.
    looked: Instant,
    /// When the last report was made.
    reported: Instant,
    /// Where everything stood then.
    stood: u64,
}

impl Cadence {
    pub(super) fn new(now: Instant) -> Self {
        Self { looked: now, reported: now, stood: 0 }
    }

    /// Returns whether a report is due; if so, it is noted as made.
    pub(super) fn is_due<'a>(&mut self, segmenters: impl Iterator<Item = &'a Segmenter>, now: Instant) -> bool {
        self.is_due_at(now, || segmenters.map(Segmenter::marks).fold(0, u64::wrapping_add))
    }

    fn is_due_at(&mut self, now: Instant, stands: impl FnOnce() -> u64) -> bool {
        if now.duration_since(self.looked) < ROUND_EVERY {
            return false;
        }
        self.looked = now;
        let stands = stands();
        if stands == self.stood && now.duration_since(self.reported) < IDLE_ROUND_EVERY {
            return false;
        }
        (self.reported, self.stood) = (now, stands);
        true
    }
}

/// Where partitions end.
#[derive(Default)]
struct Ends {
    known: HashMap<Arc<str>, BTreeMap<i32, i64>>,
    /// Why it is not known of others.
    untold: BTreeMap<TopicPartition, Arc<str>>,
}

impl Ends {
    fn of(&self, topic: &str) -> Option<&BTreeMap<i32, i64>> {
        self.known.get(topic)
    }
}

/// The topics that still are the ones that are archived.
#[derive(Default)]
struct Same {
    known: BTreeMap<String, TopicInfo>,
    /// Why it is not known of others.
    untold: BTreeMap<String, Arc<str>>,
}

/// The task that turns reports into claims.
pub(super) struct Watch {
    shared: Arc<Shared>,
    published: Arc<PublishedKafka>,
    folder: Path,
    ledger: Ledger,
    /// What was taken over from processes that are gone, and what this one no longer reads: written when it changes.
    kept: Coverage,
    written: Option<(Instant, Coverage)>,
    rested: Instant,
}

impl Watch {
    pub(super) fn new(shared: Arc<Shared>, cluster: &str, published: Arc<PublishedKafka>) -> Self {
        let kept = Coverage::new(format!("{}k", shared.writer), crate::time::now());
        let folder = layout::topic_coverages(cluster);
        Self { shared, published, folder, ledger: Ledger::default(), kept, written: None, rested: Instant::now() }
    }

    /// Takes reports until the collector ends. A round that fails is left out: the next one says more.
    pub(super) async fn run(mut self, mut reports: mpsc::Receiver<Vec<Told>>) {
        if let Ok(id) = self.shared.cluster.id().await {
            self.published.learn_cluster_id(id);
        }
        let now = crate::time::now();
        if let Err(error) = self.kept.adopt(&self.shared.store, &self.folder, now - GONE_AFTER, now).await {
            tracing::warn!(%error, hint = error.hint_text(), "the coverage of replicas that are gone cannot be taken over");
        }
        let reporter = self.shared.tasks.reporter(Task::KafkaEnds, "");
        while let Some(told) = reports.recv().await {
            let round = async {
                let seen = self.round(&told).await?;
                self.shared.send(TaskEvent::Seen(seen));
                self.write(reports.is_closed()).await
            };
            match round.await {
                Ok(()) => reporter.succeeded(),
                Err(error) => {
                    tracing::warn!(%error, hint = error.hint_text(), "coverage is not known now");
                    reporter.failed("coverage is not known now", &error, None);
                }
            }
        }
    }

    async fn round(&mut self, told: &[Told]) -> Result<Seen> {
        if self.published.cluster_id().is_none() {
            self.published.learn_cluster_id(self.shared.cluster.id().await?);
        }
        let asked = crate::time::now();
        self.ledger.begin_round(told.iter().map(|told| &told.report), asked);
        if told.is_empty() {
            return Ok(Seen::default());
        }
        self.learn_from_others(told, asked).await?;
        // The ends first, then the ids and counts: see `claims`.
        let ends = self.ends(told).await?;
        let topics = self.topics(told).await?;
        for Told { report, .. } in told {
            let Some(info) = topics.known.get(&*report.topic) else {
                self.ledger.reach(report);
                continue;
            };
            self.ledger.settle(report, ends.of(&report.topic).unwrap_or(&BTreeMap::new()), info.partitions);
        }
        Ok(self.seen(told, &ends, &topics))
    }

    /// What whoever had a partition before has claimed of it, and who has those that nobody is known to have.
    async fn learn_from_others(&mut self, told: &[Told], now: DateTime<Utc>) -> Result<()> {
        if told.iter().any(|told| self.ledger.wants_others(&told.report, now)) {
            let others = coverage::load_all(&self.shared.store, &self.folder).await?;
            others.tell_unreadable();
            told.iter().for_each(|told| self.ledger.learn(&told.report, &others.known, now));
        }
        Ok(())
    }

    /// Returns where the partitions end. Of one that has no leader now it is not known.
    async fn ends(&self, told: &[Told]) -> Result<Ends> {
        let at = |report: &Report, partition| TopicPartition { topic: Arc::clone(&report.topic), partition };
        let all = told.iter().map(|told| &told.report);
        let partitions: Vec<TopicPartition> =
            all.flat_map(|report| report.reached.iter().map(|(partition, _)| at(report, *partition))).collect();
        // The log's end, not the last stable offset: records of a transaction that is open now lie before it, and a claim
        // must not be made before they are archived or aborted.
        let listed =
            self.shared.cluster.list_offsets(&partitions, OffsetAt::Latest, Isolation::ReadUncommitted).await?;
        let mut ends = Ends::default();
        for (at, end) in listed {
            match end {
                Ok(Some(end)) => drop(ends.known.entry(at.topic).or_default().insert(at.partition, end)),
                Ok(None) => {}
                Err(error) => drop(ends.untold.insert(at, error.to_string().into())),
            }
        }
        Ok(ends)
    }

    /// The topics that still are the ones that are archived. What had come of one before the question is verified; one with
    /// another id has another generation.
    async fn topics(&self, told: &[Told]) -> Result<Same> {
        let names: Vec<String> = told.iter().map(|told| told.report.topic.to_string()).collect();
        let mut described = self.shared.cluster.describe(&names).await?;
        let mut same = Same::default();
        for Told { report, verified } in told {
            let info = match described.remove(&*report.topic) {
                Some(Ok(info)) => info,
                Some(Err(error)) => {
                    tracing::warn!(%error, hint = error.hint_text(), "whether a topic was created again is not known now");
                    same.untold.insert(report.topic.to_string(), error.to_string().into());
                    continue;
                }
                None => {
                    same.untold.insert(report.topic.to_string(), "the brokers do not know the topic now".into());
                    continue;
                }
            };
            match &info.id {
                Some(id) if is_recreated(report.topic_id.as_deref(), Some(id)) => {
                    let topic = Arc::clone(&report.topic);
                    same.untold.insert(report.topic.to_string(), "the topic was created again".into());
                    self.shared.send(TaskEvent::Recreated { topic, topic_id: id.clone() });
                }
                Some(_) => {
                    report.reached.iter().for_each(|(partition, reached)| verified.note(*partition, reached.received));
                    same.known.insert(report.topic.to_string(), info);
                }
                // Where the brokers have no ids, nobody can tell; where they had one, it is not known now.
                None if report.topic_id.is_none() => drop(same.known.insert(report.topic.to_string(), info)),
                None => {
                    drop(same.untold.insert(report.topic.to_string(), "the brokers do not tell the topic's id".into()))
                }
            }
        }
        Ok(same)
    }

    fn seen(&self, told: &[Told], ends: &Ends, topics: &Same) -> Seen {
        let mut seen = Seen::default();
        for Told { report, .. } in told {
            let of_topic = ends.of(&report.topic);
            seen.partitions.extend(report.reached.iter().map(|&(partition, reached)| {
                let at = TopicPartition { topic: Arc::clone(&report.topic), partition };
                let end = of_topic.and_then(|ends| ends.get(&partition)).copied();
                let below = || {
                    let end = end.filter(|end| *end < reached.archived)?;
                    Some(format!("its log ends at {end}, below {} where the archive is", reached.archived).into())
                };
                SeenPartition {
                    untold: ends.untold.get(&at).or_else(|| topics.untold.get(&*at.topic)).cloned().or_else(below),
                    end,
                    complete_through: self.ledger.complete_through(&report.stream, partition),
                    at,
                }
            }));
            seen.topics.push((report.stream.clone(), self.ledger.topic_complete_through(&report.stream)));
        }
        seen
    }

    /// Writes down what is claimed, if that is something else than before, and not too often unless it is the `last` word.
    async fn write(&mut self, last: bool) -> Result<()> {
        let now = Instant::now();
        if self.written.as_ref().is_some_and(|(written, _)| !last && now.duration_since(*written) < WRITE_EVERY) {
            return Ok(());
        }
        let at = crate::time::now();
        if now.duration_since(self.rested) >= REST_EVERY {
            self.rested = now;
            self.keep(at).await?;
        }
        let claims = self.ledger.coverage(&self.shared.writer, at);
        let same = |(_, before): &(Instant, Coverage)| before.topics == claims.topics;
        if claims.topics.is_empty() && self.written.is_none() || self.written.as_ref().is_some_and(same) {
            return Ok(());
        }
        claims.save(&self.shared.store, &self.folder).await?;
        self.written = Some((now, claims));
        Ok(())
    }

    /// Puts away what is no longer read here, so that what is written over and over does not grow with it.
    async fn keep(&mut self, now: DateTime<Utc>) -> Result<()> {
        let mut resting = Coverage::new("", now);
        resting.topics = self.ledger.take_resting(now);
        if resting.topics.is_empty() {
            return Ok(());
        }
        self.kept.take_over(&resting, now);
        self.kept.forget_ended();
        self.kept.at = now;
        self.kept.save(&self.shared.store, &self.folder).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_come_soon_where_something_moves_and_nothing_is_looked_at_in_between() {
        let start = Instant::now();
        let (mut cadence, mut looks, mut due) = (Cadence::new(start), 0, Vec::new());
        for turn in 0..=1_200_u64 {
            let now = start + Duration::from_millis(50) * u32::try_from(turn).expect("a turn");
            let looked = || {
                looks += 1;
                // Something moves between 20 and 30 s.
                (turn / 20).clamp(20, 30)
            };
            if cadence.is_due_at(now, looked) {
                due.push(turn / 20);
            }
        }
        assert_eq!(due, [5, 20, 25, 30, 45, 60]);
        assert_eq!(looks, 12, "once in five seconds, and not at each of 1,200 turns");
    }
}
