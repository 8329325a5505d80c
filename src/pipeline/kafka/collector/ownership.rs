//! Which partitions this process reads, and from where: assigned, revoked, fenced.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;

use super::place::{Facts, Place, place};
use super::state::Collector;
use crate::error::Result;
use crate::failpoint::failpoint;
use crate::manifest::Chain;
use crate::pipeline::checkpointer::Checkpointer;
use crate::pipeline::kafka::commit::Committer;
use crate::pipeline::kafka::divergence::Earlier;
use crate::pipeline::kafka::messages::{Resolved, SegmenterId, Unresolved};
use crate::pipeline::kafka::seal_reason::SealReason;
use crate::pipeline::kafka::segmenter::{Segmenter, Wait};
use crate::pipeline::kafka::shown::Shown;
use crate::pipeline::kafka::{gaps, resolve};
use crate::segment::Encoding;
use crate::source::kafka::{Resume, TopicPartition};
use crate::stream::TopicGeneration;
use crate::tasks::Task;

impl Collector {
    /// Asks where partitions are to be read on.
    pub(super) fn resolve(&mut self, partitions: Vec<TopicPartition>) {
        if partitions.is_empty() {
            return;
        }
        let ticket = self.lookups.ask(&partitions);
        if self.resolver.send(resolve::Request { ticket, partitions }).is_err() {
            tracing::debug!("the resolver has ended");
        }
    }

    /// Seals what is open of the revoked partitions, and lets them go once it is committed. Partitions that were lost
    /// have another owner already: the fence decides whose segment counts.
    pub(super) fn on_revoked(&mut self, partitions: Vec<TopicPartition>, lost: bool) -> Result<()> {
        failpoint!("group.revoke");
        tracing::info!(partitions = partitions.len(), lost, "partitions revoked");
        self.shared.counters.rebalances.increment(1);
        self.membership.assigned.remove(&partitions);
        let mut waits = Vec::new();
        for at in &partitions {
            self.lookups.forget(at);
            let id = self.topics.current.get(&at.topic).or_else(|| self.topics.ending.get(&at.topic)).copied();
            if let Some(segmenter) = id.and_then(|id| self.topics.segmenters.get_mut(&id)) {
                segmenter.seal(SealReason::Revoked);
                segmenter.hold(at.partition, Wait::Leaving);
                waits.push((segmenter.id, segmenter.sealed()));
            }
        }
        let now = Instant::now();
        self.membership.leave(partitions, waits, lost, now);
        self.let_go(now)
    }

    /// Partitions that the group has given again are given back no more: another revocation was answered while they waited, and
    /// librdkafka knows of one answer to all.
    pub(super) fn keep(&mut self, again: &[TopicPartition]) -> Result<()> {
        if self.membership.is_settled() {
            return Ok(());
        }
        for at in self.membership.keep(again) {
            if let Some(segmenter) = self.topics.of(&at.topic) {
                segmenter.remove(at.partition);
            }
        }
        // Should the group wait for an answer after all, nobody else would give it.
        if self.membership.is_settled() { self.consumer.unassign(&[]) } else { Ok(()) }
    }

    pub(super) fn let_go(&mut self, now: Instant) -> Result<()> {
        let segmenters = &self.topics.segmenters;
        let committed = |id: SegmenterId, seq| segmenters.get(&id).is_none_or(|segmenter| segmenter.committed() >= seq);
        let mut gone = Vec::new();
        while let Some(partitions) = self.membership.next_to_go(now, committed) {
            gone.push(partitions);
        }
        for partitions in gone {
            self.commit_to_group();
            for at in &partitions {
                if let Some(segmenter) = self.topics.of(&at.topic) {
                    segmenter.remove(at.partition);
                }
                self.membership.forget(at);
            }
            self.consumer.unassign(&partitions)?;
        }
        Ok(())
    }

    /// Reads partitions on from where the archive stands.
    pub(super) fn reposition(&mut self, id: SegmenterId, positions: &[(i32, Resume)]) -> Result<()> {
        let Some(segmenter) = self.topics.segmenters.get_mut(&id) else { return Ok(()) };
        for (partition, from) in positions {
            segmenter.reposition(*partition, from.next);
        }
        if self.topics.current.get(&segmenter.topic) != Some(&id) {
            return Ok(());
        }
        let at = |partition| TopicPartition { topic: Arc::clone(&segmenter.topic), partition };
        let seek: Vec<_> = positions.iter().map(|&(partition, from)| (at(partition), from)).collect();
        self.consumer.seek(&seek)
    }

    /// Takes on what is resolved. Only answers to the last question count, and only for the generation that the topic's segmenter
    /// has: another one is not taken on beside it, the topic moves to it as a whole.
    pub(super) fn on_resolved(
        &mut self,
        ticket: u64,
        resolved: Vec<Resolved>,
        unresolved: Vec<Unresolved>,
    ) -> Result<()> {
        let (mut assign, mut done) = (Vec::new(), Vec::new());
        for Resolved { topic, generation, chain, earlier, offsets } in resolved {
            done.push(Arc::clone(&topic));
            let at = |partition| TopicPartition { topic: Arc::clone(&topic), partition };
            let mut wanted = Vec::new();
            for (partition, from) in offsets {
                // The group may have taken it away meanwhile.
                if self.lookups.take(&at(partition), ticket) && self.consumer.owns(&at(partition)) {
                    wanted.push((partition, from));
                }
            }
            // What arrives while the topic moves is asked for with all others once it has.
            if wanted.is_empty() || self.topics.ending.contains_key(&topic) {
                continue;
            }
            let id = match self.topics.of(&topic) {
                None => self.open_segmenter(&topic, generation, (chain, earlier)),
                Some(segmenter) if segmenter.stream == generation => segmenter.id,
                Some(segmenter) => {
                    let id = segmenter.id;
                    self.end_generation(id, None);
                    continue;
                }
            };
            let Some(segmenter) = self.topics.segmenters.get_mut(&id) else { continue };
            for (partition, from) in wanted {
                segmenter.add(partition, from.next);
                assign.push((at(partition), from));
            }
        }
        self.note_unresolved(ticket, done, unresolved);
        self.consumer.assign(&assign)?;
        // Those that are read already, in the generation that has ended, may be paused.
        let next: Vec<_> = assign.iter().map(|(at, from)| (at.clone(), from.next)).collect();
        self.consumer.resume(&next)
    }

    /// Keeps what has no answer, to ask again, and shows why.
    fn note_unresolved(&mut self, ticket: u64, done: Vec<Arc<str>>, unresolved: Vec<Unresolved>) {
        for topic in done.iter().filter(|topic| unresolved.iter().all(|other| other.topic != **topic)) {
            self.news.unresolved.remove(topic);
        }
        for Unresolved { topic, mut partitions, why, again } in unresolved {
            partitions.retain(|at| self.lookups.take(at, ticket));
            if partitions.is_empty() {
                continue;
            }
            let count = partitions.len();
            let reporter = self.news.unresolved.entry(Arc::clone(&topic));
            let reporter =
                reporter.or_insert_with(|| self.published.tasks.reporter(Task::KafkaPositions, Arc::clone(&topic)));
            // Told once, not at every attempt.
            if reporter.failed(format!("{count} assigned partitions cannot be read yet"), &why, Some(again)) {
                let (topic, hint) = (&*topic, why.hint_text());
                tracing::warn!(topic, partitions = count, %why, hint, retry_in = ?again, "assigned partitions cannot be read yet");
            }
            self.lookups.put_off(Instant::now() + again, partitions);
        }
        self.lookups.end(ticket);
    }

    /// Asks again for partitions whose positions were not known, where the group has not taken them away meanwhile. Those
    /// that are due ask together.
    pub(super) fn resolve_again(&mut self, now: Instant) {
        if !self.lookups.has_put_off() {
            return;
        }
        let consumer = &self.consumer;
        let together = self.lookups.due(now, |at| consumer.owns(at));
        self.resolve(together);
        let resolving = self.lookups.topics();
        self.news.unresolved.retain(|topic, _| resolving.contains(&**topic));
    }

    /// Looks whether each partition that the group has given is read, or waits for something that has a name (see
    /// [`place()`]). One that is neither would never be archived, without a word: that is a fault of this program, which is
    /// told and put right.
    pub(super) fn check_ownership(&mut self) {
        let mut nowhere = Vec::new();
        for (topic, partition, reading) in self.consumer.owned() {
            let segmenter = self.topics.current.get(topic).and_then(|id| self.topics.segmenters.get(id));
            let carried = segmenter.and_then(|segmenter| segmenter.carries(partition));
            if reading && carried == Some(None) {
                continue; // as good as always, and without making a key
            }
            let at = TopicPartition { topic: Arc::clone(topic), partition };
            let facts = Facts {
                reading,
                carried,
                resolving: self.lookups.has(&at),
                ending: self.topics.ending.contains_key(topic),
                leaving: self.membership.is_leaving(&at),
            };
            if place(facts) == Place::Nowhere {
                nowhere.push((at, facts));
            }
        }
        if nowhere.is_empty() {
            return;
        }
        for (at, facts) in &nowhere {
            tracing::error!(
                topic = &*at.topic,
                partition = at.partition,
                ?facts,
                "an assigned partition was not read: its position is looked up again"
            );
        }
        debug_assert!(nowhere.is_empty(), "assigned and not read: {nowhere:?}");
        self.shared.counters.unread.increment(nowhere.len() as u64);
        self.resolve(nowhere.into_iter().map(|(at, _)| at).collect());
    }

    pub(super) fn open_segmenter(
        &mut self,
        topic: &Arc<str>,
        generation: TopicGeneration,
        (chain, earlier): (Chain, Earlier),
    ) -> SegmenterId {
        let id = self.topics.next_id();
        let settings = self.kafka.segment_of(topic).clone();
        let encoding = Encoding { format: settings.format, zstd_level: settings.zstd_level };
        let topic_id = chain.begin_facts().topic_id().map(str::to_owned);
        let shown = Shown::new(
            self.labels.of(topic),
            *chain.totals(),
            self.published.tasks.reporter(Task::KafkaSpool, Arc::clone(topic)),
        );
        if shown.totals.gaps > 0 {
            let look = gaps::look(Arc::clone(&self.shared), id, chain.stream().clone());
            self.published.tasks.spawn_on(&self.runtime, "gaps", look);
        }
        let segmenter = Segmenter::new(id, (Arc::clone(topic), generation.clone()), topic_id, settings, shown);
        let (send, inbox) = mpsc::unbounded_channel();
        let shared = Arc::clone(&self.shared);
        let verified = Arc::clone(&segmenter.verified);
        let task = (Task::KafkaCheckpoint, Arc::clone(topic));
        let committer = Committer {
            segmenter: id,
            generation,
            checkpoints: Checkpointer::new(chain, &shared.writer, &shared.tasks, task),
            earlier,
            asked: BTreeSet::new(),
            verified,
            encoding,
            inbox,
            shared,
        };
        self.published.tasks.spawn_on(&self.runtime, "committer", committer.run());
        self.topics.open(segmenter, send);
        id
    }
}
