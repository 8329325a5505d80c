//! Which partitions this process reads, and from where: assigned, revoked, fenced.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::Collector;
use super::place::{Facts, Place, place};
use crate::error::Result;
use crate::failpoint::failpoint;
use crate::manifest::Chain;
use crate::pipeline::kafka::commit::Committer;
use crate::pipeline::kafka::divergence::Earlier;
use crate::pipeline::kafka::messages::{Resolved, SegmenterId, Unresolved};
use crate::pipeline::kafka::seal_reason::SealReason;
use crate::pipeline::kafka::segmenter::{Segmenter, Wait};
use crate::pipeline::kafka::shown::Shown;
use crate::pipeline::kafka::{gaps, resolve};
use crate::pipeline::tasks::Task;
use crate::segment::Encoding;
use crate::source::kafka::{Resume, TopicPartition};
use crate::stream::TopicGeneration;

/// How long a revoked partition may wait for its last segment's checkpoint before it is given up.
const LEAVE_WITHIN: Duration = Duration::from_secs(15);

/// Partitions that the group wants back, and the segments that should be committed first.
pub(super) struct Leaving {
    partitions: Vec<TopicPartition>,
    waits: Vec<(SegmenterId, u64)>,
    deadline: Instant,
}

/// The partitions whose positions are being looked up, each with the number of the question that counts: an answer to an
/// earlier one may be of a generation that has ended since.
#[derive(Default)]
pub(super) struct Resolving {
    tickets: BTreeMap<TopicPartition, u64>,
    next: u64,
    /// Those that have no answer now, and when they are asked for again.
    unresolved: Vec<(Instant, Vec<TopicPartition>)>,
}

impl Resolving {
    pub(super) fn len(&self) -> usize {
        self.tickets.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tickets.is_empty()
    }

    fn has(&self, at: &TopicPartition) -> bool {
        self.tickets.contains_key(at)
    }

    fn ask(&mut self, partitions: &[TopicPartition]) -> u64 {
        self.next += 1;
        self.tickets.extend(partitions.iter().map(|at| (at.clone(), self.next)));
        self.next
    }

    /// The question was answered, for this partition well or not at all. False if it was asked again since, or is not
    /// wanted any more.
    fn take(&mut self, at: &TopicPartition, ticket: u64) -> bool {
        let counts = self.tickets.get(at) == Some(&ticket);
        if counts {
            self.tickets.remove(at);
        }
        counts
    }

    fn forget(&mut self, at: &TopicPartition) {
        self.tickets.remove(at);
    }

    /// Nothing more comes of question `ticket`.
    fn end(&mut self, ticket: u64) {
        self.tickets.retain(|_, known| *known != ticket);
    }

    fn topics(&self) -> impl Iterator<Item = &str> {
        self.tickets.keys().map(|at| &*at.topic)
    }
}

impl Collector {
    /// Asks where partitions are to be read on.
    pub(super) fn resolve(&mut self, partitions: Vec<TopicPartition>) {
        if partitions.is_empty() {
            return;
        }
        let ticket = self.resolving.ask(&partitions);
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
        self.assigned.remove(&partitions);
        let mut waits = Vec::new();
        for at in &partitions {
            self.resolving.forget(at);
            let id = self.current.get(&at.topic).or_else(|| self.ending.get(&at.topic)).copied();
            if let Some(segmenter) = id.and_then(|id| self.segmenters.get_mut(&id)) {
                segmenter.seal(SealReason::Revoked);
                segmenter.hold(at.partition, Wait::Leaving);
                waits.push((segmenter.id, segmenter.sealed()));
            }
        }
        waits.sort_unstable();
        waits.dedup();
        let now = Instant::now();
        let deadline = if lost { now } else { now + LEAVE_WITHIN };
        self.leaving.push(Leaving { partitions, waits, deadline });
        self.let_go(now)
    }

    /// Partitions that the group has given again are given back no more: another revocation was answered while they waited, and
    /// librdkafka knows of one answer to all.
    pub(super) fn keep(&mut self, again: &[TopicPartition]) -> Result<()> {
        if self.leaving.is_empty() {
            return Ok(());
        }
        let again: BTreeSet<&TopicPartition> = again.iter().collect();
        let mut kept = Vec::new();
        for leaving in &mut self.leaving {
            kept.extend(leaving.partitions.extract_if(.., |at| again.contains(at)));
        }
        self.leaving.retain(|leaving| !leaving.partitions.is_empty());
        for at in kept {
            if let Some(segmenter) = self.segmenter_of(&at.topic) {
                segmenter.remove(at.partition);
            }
            self.group_offsets.remove(&at);
        }
        // Should the group wait for an answer after all, nobody else would give it.
        if self.leaving.is_empty() { self.consumer.unassign(&[]) } else { Ok(()) }
    }

    pub(super) fn let_go(&mut self, now: Instant) -> Result<()> {
        let mut index = 0;
        while index < self.leaving.len() {
            let leaving = &self.leaving[index];
            let committed = |(id, seq): &(SegmenterId, u64)| {
                self.segmenters.get(id).is_none_or(|segmenter| segmenter.committed() >= *seq)
            };
            if now < leaving.deadline && !leaving.waits.iter().all(committed) {
                index += 1;
                continue;
            }
            let leaving = self.leaving.remove(index);
            self.commit_to_group();
            for at in &leaving.partitions {
                if let Some(segmenter) = self.segmenter_of(&at.topic) {
                    segmenter.remove(at.partition);
                }
                self.group_offsets.remove(at);
            }
            self.consumer.unassign(&leaving.partitions)?;
        }
        Ok(())
    }

    /// Reads partitions on from where the archive stands.
    pub(super) fn reposition(&mut self, id: SegmenterId, positions: &[(i32, Resume)]) -> Result<()> {
        let Some(segmenter) = self.segmenters.get_mut(&id) else { return Ok(()) };
        for (partition, from) in positions {
            segmenter.reposition(*partition, from.next);
        }
        if self.current.get(&segmenter.topic) != Some(&id) {
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
                if self.resolving.take(&at(partition), ticket) && self.consumer.owns(&at(partition)) {
                    wanted.push((partition, from));
                }
            }
            // What arrives while the topic moves is asked for with all others once it has.
            if wanted.is_empty() || self.ending.contains_key(&topic) {
                continue;
            }
            let id = match self.segmenter_of(&topic) {
                None => self.open_segmenter(&topic, generation, (chain, earlier)),
                Some(segmenter) if segmenter.stream == generation => segmenter.id,
                Some(segmenter) => {
                    let id = segmenter.id;
                    self.end_generation(id, None);
                    continue;
                }
            };
            let Some(segmenter) = self.segmenters.get_mut(&id) else { continue };
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
            partitions.retain(|at| self.resolving.take(at, ticket));
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
            self.resolving.ask(&partitions);
            self.resolving.unresolved.push((Instant::now() + again, partitions));
        }
        self.resolving.end(ticket);
    }

    /// Asks again for partitions whose positions were not known, where the group has not taken them away meanwhile. Those
    /// that are due ask together.
    pub(super) fn resolve_again(&mut self, now: Instant) {
        if self.resolving.unresolved.is_empty() {
            return;
        }
        let mut together = Vec::new();
        for (due, mut partitions) in std::mem::take(&mut self.resolving.unresolved) {
            partitions.retain(|at| self.consumer.owns(at) && self.resolving.has(at));
            if due <= now {
                together.append(&mut partitions);
            } else if !partitions.is_empty() {
                self.resolving.unresolved.push((due, partitions));
            }
        }
        self.resolve(together);
        let resolving: BTreeSet<&str> = self.resolving.topics().collect();
        self.news.unresolved.retain(|topic, _| resolving.contains(&**topic));
    }

    /// Looks whether each partition that the group has given is read, or waits for something that has a name (see
    /// [`place()`]). One that is neither would never be archived, without a word: that is a fault of this program, which is
    /// told and put right.
    pub(super) fn check_ownership(&mut self) {
        let mut nowhere = Vec::new();
        for (topic, partition, reading) in self.consumer.owned() {
            let segmenter = self.current.get(topic).and_then(|id| self.segmenters.get(id));
            let carried = segmenter.and_then(|segmenter| segmenter.carries(partition));
            if reading && carried == Some(None) {
                continue; // as good as always, and without making a key
            }
            let at = TopicPartition { topic: Arc::clone(topic), partition };
            let facts = Facts {
                reading,
                carried,
                resolving: self.resolving.has(&at),
                ending: self.ending.contains_key(topic),
                leaving: self.leaving.iter().any(|leaving| leaving.partitions.contains(&at)),
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
        let id = SegmenterId(self.next_segmenter);
        self.next_segmenter += 1;
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
        let committer = Committer {
            segmenter: id,
            generation,
            chain,
            earlier,
            asked: BTreeSet::new(),
            verified,
            encoding,
            inbox,
            shared,
        };
        self.published.tasks.spawn_on(&self.runtime, "committer", committer.run());
        self.committers.insert(id, send);
        self.segmenters.insert(id, segmenter);
        self.current.insert(Arc::clone(topic), id);
        id
    }
}
