//! Which partitions this process reads, and from where: assigned, revoked, fenced, begun anew.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::Collector;
use crate::error::Result;
use crate::manifest::Chain;
use crate::pipeline::kafka::commit::Committer;
use crate::pipeline::kafka::gaps;
use crate::pipeline::kafka::lane::{Lane, LaneId, Reason};
use crate::pipeline::kafka::resolve::{self, Resolved, Unresolved};
use crate::pipeline::kafka::shown::Shown;
use crate::pipeline::tasks::Task;
use crate::segment::Encoding;
use crate::source::kafka::TopicPartition;
use crate::stream::TopicLife;

/// How long a revoked partition may wait for its last segment's checkpoint before it is given up.
const LEAVE_WITHIN: Duration = Duration::from_secs(15);

/// Partitions that the group wants back, and the segments that should be committed first.
pub(super) struct Leaving {
    partitions: Vec<TopicPartition>,
    waits: Vec<(LaneId, u64)>,
    deadline: Instant,
}

impl Collector {
    pub(super) fn resolve(&mut self, request: resolve::Request) {
        self.resolving.extend(request.partitions.iter().cloned());
        if self.resolver.send(request).is_err() {
            tracing::debug!("the resolver has ended");
        }
    }

    /// Seals what is open of the revoked partitions, and lets them go once it is committed. Partitions that were lost
    /// have another owner already: the fence decides whose segment counts.
    pub(super) fn on_revoked(&mut self, partitions: Vec<TopicPartition>, lost: bool) -> Result<()> {
        tracing::info!(partitions = partitions.len(), lost, "partitions revoked");
        self.shared.counters.rebalances.increment(1);
        let mut waits = Vec::new();
        for at in &partitions {
            self.seal_topic(&at.topic, Reason::Revoked);
            if let Some(lane) = self.lane_of(&at.topic) {
                lane.leave(at.partition);
                waits.push((lane.id, lane.sealed()));
            }
        }
        waits.sort_unstable();
        waits.dedup();
        let now = Instant::now();
        let deadline = if lost { now } else { now + LEAVE_WITHIN };
        self.leaving.push(Leaving { partitions, waits, deadline });
        self.let_go(now)
    }

    pub(super) fn let_go(&mut self, now: Instant) -> Result<()> {
        let mut index = 0;
        while index < self.leaving.len() {
            let leaving = &self.leaving[index];
            let committed = |(id, seq): &(LaneId, u64)| self.lanes.get(id).is_none_or(|lane| lane.committed() >= *seq);
            if now < leaving.deadline && !leaving.waits.iter().all(committed) {
                index += 1;
                continue;
            }
            let leaving = self.leaving.remove(index);
            self.commit_to_group();
            for at in &leaving.partitions {
                if let Some(lane) = self.lane_of(&at.topic) {
                    lane.remove(at.partition);
                }
                self.group_offsets.remove(at);
            }
            self.consumer.unassign(&leaving.partitions)?;
        }
        Ok(())
    }

    /// Reads partitions on from where the archive stands.
    pub(super) fn reposition(&mut self, id: LaneId, positions: &[(i32, i64)]) -> Result<()> {
        let Some(lane) = self.lanes.get_mut(&id) else { return Ok(()) };
        for (partition, offset) in positions {
            lane.reposition(*partition, *offset);
        }
        if self.current.get(&lane.topic) != Some(&id) {
            return Ok(());
        }
        let at = |partition| TopicPartition { topic: Arc::clone(&lane.topic), partition };
        let seek: Vec<_> = positions.iter().map(|&(partition, offset)| (at(partition), offset)).collect();
        self.consumer.seek(&seek)
    }

    /// A topic's life has ended: what came of it is committed to its own chain, and its partitions are asked for anew.
    /// `cut`: the partition whose log is another one now.
    pub(super) fn begin_new_life(&mut self, topic: &Arc<str>, cut: Option<i32>) {
        self.seal_topic(topic, Reason::Conflict);
        let Some(id) = self.current.remove(topic) else { return };
        let Some(lane) = self.lanes.get_mut(&id) else { return };
        let partitions = lane.partitions();
        for &partition in &partitions {
            lane.hold(partition);
        }
        let ended = Some(lane.stream.clone());
        let partitions =
            partitions.into_iter().map(|partition| TopicPartition { topic: Arc::clone(topic), partition }).collect();
        self.resolve(resolve::Request { partitions, ended, cut });
    }

    pub(super) fn on_resolved(&mut self, resolved: Vec<Resolved>, unresolved: Vec<Unresolved>) -> Result<()> {
        for one in resolved.iter().filter(|one| unresolved.iter().all(|other| other.topic != one.topic)) {
            self.news.unresolved.remove(&one.topic);
        }
        for Unresolved { topic, request, why, again } in unresolved {
            let partitions = request.partitions.len();
            let reporter = self.news.unresolved.entry(Arc::clone(&topic));
            let reporter =
                reporter.or_insert_with(|| self.board.tasks.reporter(Task::KafkaPositions, Arc::clone(&topic)));
            let what = format!("{partitions} assigned partitions cannot be read yet");
            // Told once, not at every attempt.
            if reporter.failed(what, &why, Some(again)) {
                let (topic, hint) = (&*topic, why.hint_text());
                tracing::warn!(topic, partitions, %why, hint, retry_in = ?again, "assigned partitions cannot be read yet");
            }
            self.unresolved.push((Instant::now() + again, request));
        }
        let mut assign = Vec::new();
        for Resolved { topic, life, chain, offsets } in resolved {
            let known = self.lane_of(&topic).filter(|lane| lane.stream == life).map(|lane| lane.id);
            let id = known.unwrap_or_else(|| self.open_lane(&topic, life, chain));
            let Some(lane) = self.lanes.get_mut(&id) else { continue };
            for (partition, offset) in offsets {
                let at = TopicPartition { topic: Arc::clone(&topic), partition };
                // The group may have taken it away meanwhile; what was given back and assigned anew is answered once.
                if self.resolving.remove(&at) && self.consumer.owns(&at) {
                    lane.add(partition, offset);
                    assign.push((at, offset));
                }
            }
        }
        self.consumer.assign(&assign)?;
        // Those that are read already, in the life of the topic that has ended, may be paused.
        self.consumer.resume(&assign)
    }

    /// Asks again for partitions whose positions were not known, where the group has not taken them away meanwhile. Those
    /// that are due ask together.
    pub(super) fn resolve_again(&mut self, now: Instant) {
        if self.unresolved.is_empty() {
            return;
        }
        let mut together = resolve::Request { partitions: Vec::new(), ended: None, cut: None };
        for (due, mut request) in std::mem::take(&mut self.unresolved) {
            for at in request.partitions.extract_if(.., |at| !self.consumer.owns(at)) {
                self.resolving.remove(&at);
            }
            if request.partitions.is_empty() {
                continue;
            }
            if due > now {
                self.unresolved.push((due, request));
            } else if request.ended.is_none() && request.cut.is_none() {
                together.partitions.append(&mut request.partitions);
            } else {
                self.resolve(request);
            }
        }
        if !together.partitions.is_empty() {
            self.resolve(together);
        }
        let resolving: BTreeSet<&str> = self.resolving.iter().map(|at| &*at.topic).collect();
        self.news.unresolved.retain(|topic, _| resolving.contains(&**topic));
    }

    pub(super) fn open_lane(&mut self, topic: &Arc<str>, life: TopicLife, chain: Chain) -> LaneId {
        let id = LaneId(self.next_lane);
        self.next_lane += 1;
        let settings = self.kafka.segment_of(topic).clone();
        let encoding = Encoding { format: settings.format, zstd_level: settings.zstd_level };
        let topic_id = chain.begin_facts().topic_id().map(str::to_owned);
        let shown = Shown::new(
            self.labels.of(topic),
            *chain.totals(),
            self.board.tasks.reporter(Task::KafkaSpool, Arc::clone(topic)),
        );
        if shown.totals.gaps > 0 {
            let look = gaps::look(Arc::clone(&self.shared), id, chain.stream().clone());
            self.board.tasks.spawn_on(&self.runtime, "gaps", look);
        }
        let lane = Lane::new(id, (Arc::clone(topic), life.clone()), topic_id, settings, shown);
        let (send, inbox) = mpsc::unbounded_channel();
        let shared = Arc::clone(&self.shared);
        let verified = Arc::clone(&lane.verified);
        let committer = Committer { lane: id, life, chain, verified, encoding, inbox, shared };
        self.board.tasks.spawn_on(&self.runtime, "committer", committer.run());
        self.committers.insert(id, send);
        self.lanes.insert(id, lane);
        self.current.insert(Arc::clone(topic), id);
        id
    }
}
