//! What this process knows to be complete, round by round: pure state, no I/O and no clock of its own.
//!
//! ```text
//!   report: which partitions, how far archived ─┐
//!   ends as the brokers tell them ──────────────┼─► Ledger ─► claims: the coverage object, what is shown
//!   id and number of partitions, told after ────┘
//! ```
//!
//! A round asks in this order: the clock, the ends, the topics. Whatever was in a partition at that time lies below an end
//! that was told later; whatever partition there was is among those that were counted later, for neither ends nor counts
//! fall; and if the topic's id is still the one that is archived, so it was when the ends were told, for an id that has gone
//! does not come back.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};

use super::segmenter::Reached;
use crate::manifest::coverage::{self, Claim, Count, Coverage, TopicClaims};
use crate::stream::TopicGeneration;

/// Ends that wait for the archive to reach them, by partition. When there are more, those stay that lie a thirty-second of
/// the whole time apart.
const MOST_WAITING: usize = 64;

/// A broker learns of an added partition from the controllers, a moment after producers may have learnt of it from another
/// broker: a count is taken for that of a moment ago.
pub(super) const METADATA_LAG: TimeDelta = TimeDelta::seconds(2);

/// A topic of which this process has given all partitions back for this long is no longer written over and over.
const REST_AFTER: TimeDelta = TimeDelta::hours(1);

/// How often it is looked whether somebody else has claimed what nobody is known to have.
const LEARN_AGAIN: TimeDelta = TimeDelta::minutes(1);

/// How many counts of a topic are kept: what was known of the time before partitions were added.
const MOST_COUNTS: usize = 4;

/// What a segmenter reports of its topic.
pub(super) struct Report {
    pub(super) stream: TopicGeneration,
    pub(super) topic: Arc<str>,
    pub(super) topic_id: Option<String>,
    /// How far each partition is that is read.
    pub(super) reached: Vec<(i32, Reached)>,
}

/// All that this process knows.
#[derive(Default)]
pub(super) struct Ledger {
    topics: BTreeMap<TopicGeneration, Topic>,
    /// When the last round asked.
    asked: Option<DateTime<Utc>>,
}

#[derive(Default)]
struct Topic {
    topic_id: Option<String>,
    counts: Vec<Count>,
    parts: BTreeMap<i32, Part>,
    /// Partitions that other processes have claimed something of: their matter.
    others: BTreeSet<i32>,
    /// When it was looked last what others have claimed.
    learnt: Option<DateTime<Utc>>,
    /// Since when none of them is read here.
    given_back: Option<DateTime<Utc>>,
}

#[derive(Default)]
struct Part {
    /// Whether it is read here.
    owned: bool,
    /// Whether it was looked what others have claimed of it.
    learnt: bool,
    waiting: VecDeque<(DateTime<Utc>, i64)>,
    claim: Option<Claim>,
}

impl Ledger {
    /// A round begins at `now`, with what is read here now. What is not read here any more waits for nothing; generations
    /// that others have followed are forgotten; and so is what lies in the future, for the clock was set back.
    pub(super) fn begin_round<'a>(&mut self, reports: impl Iterator<Item = &'a Report> + Clone, now: DateTime<Utc>) {
        if self.asked.is_some_and(|asked| now < asked) {
            self.topics.values_mut().for_each(|topic| topic.forget_after(now));
        }
        self.asked = Some(now);
        let present: BTreeMap<(&str, &str), u32> = reports
            .clone()
            .map(|report| ((&*report.stream.cluster, &*report.stream.topic), report.stream.number))
            .collect();
        self.topics.retain(|generation, _| {
            present.get(&(&*generation.cluster, &*generation.topic)).is_none_or(|number| generation.number >= *number)
        });
        let reported: BTreeSet<&TopicGeneration> = reports.clone().map(|report| &report.stream).collect();
        for (generation, topic) in &mut self.topics {
            if !reported.contains(generation) {
                topic.own(&[]);
                topic.given_back.get_or_insert(now);
            }
        }
        for report in reports {
            if !self.topics.contains_key(&report.stream) {
                let topic = Topic { topic_id: report.topic_id.clone(), ..Topic::default() };
                self.topics.insert(report.stream.clone(), topic);
            }
            if let Some(topic) = self.topics.get_mut(&report.stream) {
                topic.own(&report.reached);
                topic.given_back = report.reached.is_empty().then(|| topic.given_back.unwrap_or(now));
            }
        }
    }

    /// Returns whether it must be looked what others have claimed: of a partition that is new here, and now and then of one that
    /// nobody is known to have.
    pub(super) fn wants_others(&self, report: &Report, now: DateTime<Utc>) -> bool {
        self.topics.get(&report.stream).is_some_and(|topic| {
            topic.parts.values().any(|part| part.owned && !part.learnt)
                || (topic.learnt.is_none_or(|at| now - at >= LEARN_AGAIN || now < at)
                    && topic.unclaimed().next().is_some())
        })
    }

    /// Takes in what others have claimed of a topic: what they know of its partitions is known here, too.
    pub(super) fn learn(&mut self, report: &Report, others: &[Coverage], now: DateTime<Utc>) {
        let Some(topic) = self.topics.get_mut(&report.stream) else { return };
        let covered: BTreeMap<i32, i64> =
            report.reached.iter().map(|(partition, reached)| (*partition, reached.covered)).collect();
        let stream = report.stream.stream();
        let reached = |partition: i32| Some(covered.get(&partition).copied().unwrap_or(i64::MAX));
        let known = coverage::judge_by(others, &stream, (topic.topic_id.as_deref(), 0), reached, now);
        for (partition, complete_through) in known.partitions {
            let part = topic.parts.get_mut(&partition).filter(|part| part.owned).zip(covered.get(&partition).copied());
            let Some((part, offset)) = part else {
                topic.others.insert(partition);
                continue;
            };
            if part.claim.is_none_or(|claim| claim.complete_through < complete_through) {
                part.claim = Some(Claim { offset, complete_through });
            }
        }
        topic.count_all(known.counts);
        topic.learnt = Some(now);
        topic.parts.values_mut().for_each(|part| part.learnt = true);
    }

    /// What the brokers tell of a topic that is still the one that is archived, all asked after the round's time: the ends of
    /// its partitions, and how many it has.
    pub(super) fn settle(&mut self, report: &Report, ends: &BTreeMap<i32, i64>, partitions: i32) {
        let (Some(asked), Some(topic)) = (self.asked, self.topics.get_mut(&report.stream)) else { return };
        topic.count_all([Count { partitions, at: asked - METADATA_LAG }]);
        for (partition, reached) in &report.reached {
            let Some(part) = topic.parts.get_mut(partition) else { continue };
            // A log that ends below what was archived of it is not that log: nothing can be said of it.
            if let Some(end) = ends.get(partition).copied().filter(|end| *end >= reached.archived) {
                part.wait_for(asked, end);
            }
            part.reach(reached);
        }
    }

    /// What is not asked of the brokers now, but has come further.
    pub(super) fn reach(&mut self, report: &Report) {
        let Some(topic) = self.topics.get_mut(&report.stream) else { return };
        for (partition, reached) in &report.reached {
            if let Some(part) = topic.parts.get_mut(partition) {
                part.reach(reached);
            }
        }
    }

    /// Returns up to when a partition is complete.
    pub(super) fn complete_through(&self, generation: &TopicGeneration, partition: i32) -> Option<DateTime<Utc>> {
        Some(self.topics.get(generation)?.parts.get(&partition)?.claim?.complete_through)
    }

    /// Returns up to when a topic is complete, as far as this process answers for it: of the partitions that it reads, and those that
    /// nobody is known to read.
    pub(super) fn topic_complete_through(&self, generation: &TopicGeneration) -> Option<DateTime<Utc>> {
        let topic = self.topics.get(generation)?;
        let claims =
            topic.parts.iter().filter_map(|(partition, part)| Some((*partition, part.claim?.complete_through)));
        let here = |partition: i32| {
            let owned = topic.parts.get(&partition).is_some_and(|part| part.owned);
            owned || !topic.others.contains(&partition)
        };
        coverage::through(&claims.collect(), &topic.counts, here)
    }

    /// Everything that this process writes over and over.
    pub(super) fn coverage(&self, writer: &str, now: DateTime<Utc>) -> Coverage {
        let mut coverage = Coverage::new(writer, now);
        for (generation, topic) in &self.topics {
            let claims = topic.claims();
            if !claims.claims.is_empty() {
                coverage.topics.insert(generation.to_string(), claims);
            }
        }
        coverage
    }

    /// Takes out what has not been read here for an hour, to be written down once.
    pub(super) fn take_resting(&mut self, now: DateTime<Utc>) -> BTreeMap<String, TopicClaims> {
        let rests = |topic: &Topic| topic.given_back.is_some_and(|since| now - since >= REST_AFTER);
        let resting: Vec<TopicGeneration> =
            self.topics.iter().filter(|(_, topic)| rests(topic)).map(|(generation, _)| generation.clone()).collect();
        let taken = resting
            .into_iter()
            .filter_map(|generation| Some((generation.to_string(), self.topics.remove(&generation)?.claims())));
        taken.collect()
    }
}

impl Topic {
    /// These partitions are read here, and no others.
    fn own(&mut self, reached: &[(i32, Reached)]) {
        for part in self.parts.values_mut() {
            part.owned = false;
        }
        for (partition, _) in reached {
            self.parts.entry(*partition).or_default().owned = true;
            self.others.remove(partition);
        }
        for (partition, part) in self.parts.iter_mut().filter(|(_, part)| !part.owned) {
            part.waiting.clear();
            part.learnt = false;
            self.others.insert(*partition);
        }
        self.parts.retain(|_, part| part.owned || part.claim.is_some());
    }

    /// Partitions that the topic has and nobody is known to read.
    fn unclaimed(&self) -> impl Iterator<Item = i32> {
        let count = self.counts.last().map_or(0, |count| count.partitions);
        (0..count).filter(|partition| !self.parts.contains_key(partition) && !self.others.contains(partition))
    }

    fn count_all(&mut self, counts: impl IntoIterator<Item = Count>) {
        self.counts.extend(counts);
        self.counts = coverage::sound(std::mem::take(&mut self.counts), 0);
        self.counts.drain(..self.counts.len().saturating_sub(MOST_COUNTS));
    }

    fn forget_after(&mut self, now: DateTime<Utc>) {
        self.counts.retain(|count| count.at <= now);
        for part in self.parts.values_mut() {
            part.claim.take_if(|claim| claim.complete_through > now);
            part.waiting.retain(|(asked, _)| *asked <= now);
        }
    }

    fn claims(&self) -> TopicClaims {
        let claims = self.parts.iter().filter_map(|(partition, part)| Some((*partition, part.claim?)));
        TopicClaims { topic_id: self.topic_id.clone(), counts: self.counts.clone(), claims: claims.collect() }
    }
}

impl Part {
    fn wait_for(&mut self, asked: DateTime<Utc>, end: i64) {
        // What ends where it ended before is answered by the later question.
        if self.waiting.back().is_some_and(|(_, before)| *before == end) {
            self.waiting.pop_back();
        }
        if let Some(&(oldest, _)) = self.waiting.front().filter(|_| self.waiting.len() >= MOST_WAITING) {
            let (apart, mut last) = ((asked - oldest) / (MOST_WAITING as i32 / 2), None);
            self.waiting.retain(|&(at, _)| {
                let keep = last.is_none_or(|last| at - last >= apart);
                last = if keep { Some(at) } else { last };
                keep
            });
        }
        self.waiting.push_back((asked, end));
    }

    fn reach(&mut self, reached: &Reached) {
        while let Some(&(complete_through, end)) = self.waiting.front().filter(|(_, end)| *end <= reached.archived) {
            self.waiting.pop_front();
            self.claim = Some(Claim { offset: end.min(reached.covered), complete_through });
        }
    }
}

#[cfg(test)]
mod tests;
