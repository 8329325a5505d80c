//! The loop: task events, messages, encoders, and what is due.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::state::{CLOSE_WITHIN, Collector, Summary};
use crate::error::Result;
use crate::pipeline::kafka::coverage::{Cadence, Told};
use crate::pipeline::kafka::messages::{Question, SegmenterId, TaskEvent};
use crate::pipeline::kafka::seal_reason::SealReason;
use crate::pipeline::kafka::segmenter::{Segmenter, Wait};
use crate::pipeline::kafka::stalls::Refusal;
use crate::source::kafka::{Event, TopicPartition};
use crate::stream::{PartitionRange, SegmentRef};

/// How long one poll waits for messages. It is also how late a task event may be read.
const POLL_WAIT: Duration = Duration::from_millis(50);

/// One poll takes at most this many messages, and about this many bytes by the size of the last ones: their memory is
/// librdkafka's until the poll ends.
const POLL_MESSAGES: usize = 4096;
const POLL_BYTES: u64 = 4 << 20;

/// How often ages, pauses and leaving partitions are looked at.
const TICK: Duration = Duration::from_millis(100);

/// How often the state is published for whoever looks.
const PUBLISH_EVERY: Duration = Duration::from_secs(1);

/// How often offsets are committed to the group; they are only an echo for other tools.
const GROUP_COMMIT_EVERY: Duration = Duration::from_secs(1);

/// librdkafka tells of every attempt that fails; one line in this time is enough.
const OUTAGE_EVERY: Duration = Duration::from_secs(30);

/// How often one line says what was archived.
const SUMMARY_EVERY: Duration = Duration::from_secs(60);

/// How long a stop may take; Kubernetes kills after 30 s.
const STOP_WITHIN: Duration = Duration::from_secs(20);

impl Collector {
    /// Runs until a stop is asked for and done, or the consumer fails for good.
    pub(in crate::pipeline::kafka) fn run(mut self) -> Result<()> {
        let ended = self.collect();
        // Without a word the group would wait for this member until its session ends, however it ended here. That is all that is
        // lost where nobody hears the word, as when the group's coordinator is away: what was read is archived.
        if let Err(error) = self.consumer.close(CLOSE_WITHIN) {
            tracing::warn!(%error, "the group notices only when this member's session has timed out");
        }
        ended
    }

    fn collect(&mut self) -> Result<()> {
        let mut events = Vec::new();
        let start = Instant::now();
        let (mut tick, mut publish, mut group, mut summary) = (start, start, start, start);
        let mut coverage = Cadence::new(start);
        loop {
            self.read_task_events()?;
            self.poll(&mut events)?;
            for event in events.drain(..) {
                self.on_event(event)?;
            }
            self.encode();
            let now = Instant::now();
            if due(&mut tick, TICK, now) {
                self.on_tick(now)?;
                if self.is_stopped(now) {
                    break;
                }
            }
            if due(&mut publish, PUBLISH_EVERY, now) {
                self.start_unheard(now)?;
                self.publish(now);
            }
            if due(&mut group, GROUP_COMMIT_EVERY, now) {
                self.commit_to_group();
            }
            if coverage.is_due(self.topics.present(), now) {
                self.tell_coverage();
                self.ask_for_stable();
            }
            if due(&mut summary, SUMMARY_EVERY, now) {
                self.log_summary();
            }
        }
        self.commit_to_group();
        self.tell_coverage();
        self.log_summary();
        Ok(())
    }

    fn poll(&mut self, events: &mut Vec<Event>) -> Result<()> {
        let most = usize::try_from(POLL_BYTES / self.message_bytes.max(1)).unwrap_or(1).clamp(16, POLL_MESSAGES);
        let now = Instant::now();
        let (mut bytes, mut count) = (0, 0);
        let (segmenters, current, pool) = (&mut self.topics.segmenters, &self.topics.current, &mut self.memory.pool);
        let mut last: Option<(u32, Option<SegmenterId>)> = None;
        self.consumer.poll(
            most,
            POLL_WAIT,
            |message| {
                bytes += (message.key.map_or(0, <[u8]>::len) + message.value.map_or(0, <[u8]>::len)) as u64;
                count += 1;
                let segmenter = match &last {
                    Some((topic, segmenter)) if *topic == message.topic_index => *segmenter,
                    _ => {
                        let segmenter = current.get(message.topic).copied();
                        last = Some((message.topic_index, segmenter));
                        segmenter
                    }
                };
                if let Some(segmenter) = segmenter.and_then(|id| segmenters.get_mut(&id)) {
                    segmenter.push(&message, now, pool);
                }
            },
            events,
        )?;
        if let Some(mean) = bytes.checked_div(count) {
            // Follow growing messages at once, shrinking ones slowly.
            self.message_bytes = mean.max(self.message_bytes / 2).max(1);
        }
        Ok(())
    }

    fn on_event(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Assigned(partitions) => {
                tracing::info!(partitions = partitions.len(), "partitions assigned");
                self.shared.counters.rebalances.increment(1);
                self.membership.assigned.add(&partitions, crate::time::now());
                self.keep(&partitions)?;
                self.resolve(partitions);
            }
            Event::Revoked { partitions, lost } => self.on_revoked(partitions, lost)?,
            Event::EndOfPartition { at, next_offset } => {
                if let Some(segmenter) = self.topics.of(&at.topic) {
                    segmenter.advance(at.partition, next_offset, Instant::now());
                }
            }
            Event::OutOfRange { at, offset } => {
                tracing::warn!(
                    topic = &*at.topic,
                    partition = at.partition,
                    offset,
                    "the broker does not have the next offset"
                );
                if let Some(segmenter) = self.topics.of(&at.topic) {
                    segmenter.hold(at.partition, Wait::OutOfRange);
                    segmenter.ask(Question::OutOfRange { partition: at.partition });
                }
            }
            Event::Truncated { at, error, diverged, fresh } => {
                tracing::error!(topic = &*at.topic, partition = at.partition, %error, "the log was cut below the archive's position");
                if let Some(segmenter) = self.topics.of(&at.topic) {
                    segmenter.hold(at.partition, Wait::Truncated);
                    segmenter.ask(Question::Truncated { partition: at.partition, diverged, fresh });
                }
            }
            Event::PartitionError { at, error } => {
                tracing::warn!(topic = &*at.topic, partition = at.partition, %error, hint = error.hint_text(), "partition error");
                if let Some(segmenter) = self.topics.of(&at.topic) {
                    segmenter.shown.still.refuse(at.partition, Refusal::of(&error));
                }
            }
            Event::TopicError { topic, error } => {
                tracing::warn!(topic = &*topic, %error, hint = error.hint_text(), "a topic cannot be read");
                if let Some(segmenter) = self.topics.of(&topic) {
                    segmenter.shown.still.refuse_all(Refusal::of(&error));
                }
            }
            Event::AllBrokersDown => self.log_outage(Instant::now()),
            Event::Fault { error, fatal: true } => return Err(error),
            Event::Fault { error, fatal: false } => {
                tracing::warn!(%error, hint = error.hint_text(), "kafka");
                self.news.fault = Some(Refusal::of(&error));
            }
        }
        Ok(())
    }

    fn log_outage(&mut self, now: Instant) {
        if self.outage_told.is_none_or(|told| now.duration_since(told) >= OUTAGE_EVERY) {
            self.outage_told = Some(now);
            tracing::warn!(bootstrap_servers = %self.kafka.bootstrap_servers, "no broker can be reached; waiting");
        }
    }

    fn read_task_events(&mut self) -> Result<()> {
        while let Ok(event) = self.task_events.try_recv() {
            self.on_task_event(event)?;
        }
        Ok(())
    }

    fn on_task_event(&mut self, event: TaskEvent) -> Result<()> {
        match event {
            TaskEvent::Resolved { ticket, resolved, unresolved } => self.on_resolved(ticket, resolved, unresolved)?,
            TaskEvent::Encoded { segmenter, memory, result } => self.on_encoded(segmenter, memory, result),
            TaskEvent::Committed { segmenter, seq, segment, empty } => {
                self.on_committed(segmenter, seq, segment, empty)
            }
            TaskEvent::Fenced { segmenter: id, mut dropped } => {
                let Some(segmenter) = self.topics.segmenters.get_mut(&id) else { return Ok(()) };
                dropped.retain(|dropped| segmenter.misses(dropped.partition, dropped.seq));
                if !dropped.is_empty() {
                    // What came after the dropped segment does not follow what is archived: it ends here, to be dropped.
                    segmenter.seal(SealReason::Conflict);
                    let positions: Vec<_> = dropped.iter().map(|dropped| (dropped.partition, dropped.from)).collect();
                    self.reposition(id, &positions)?;
                }
            }
            TaskEvent::Found { segmenter, partition, from } => self.reposition(segmenter, &[(partition, from)])?,
            TaskEvent::Positioned { segmenter: id, seq, positions } => {
                if let Some(segmenter) = self.topics.segmenters.get_mut(&id) {
                    segmenter.covered(seq, &[]);
                }
                self.reposition(id, &positions)?;
            }
            TaskEvent::GenerationEnds { segmenter, cut } => self.end_generation(segmenter, cut),
            TaskEvent::Ended { segmenter } => self.on_ended(segmenter),
            TaskEvent::Recreated { topic, topic_id } => self.on_recreated(&topic, &topic_id),
            TaskEvent::Followed { topic, generation } => self.on_followed(&topic, generation),
            TaskEvent::Archived { segmenter, totals } => {
                if let Some(segmenter) = self.topics.segmenters.get_mut(&segmenter) {
                    segmenter.shown.totals = totals;
                }
                self.news.last_checkpoint = Some(crate::time::now());
            }
            TaskEvent::Gaps { segmenter, gaps } => {
                if let Some(segmenter) = self.topics.segmenters.get_mut(&segmenter) {
                    segmenter.shown.add_gaps(gaps);
                }
            }
            TaskEvent::Measured { segmenter, skip, lost } => self.on_measured(segmenter, &skip, lost),
            TaskEvent::Skipped { segmenter, partition, start, end } => {
                self.on_skipped(segmenter, partition, (start, end))
            }
            TaskEvent::Refused(error) => return Err(error),
            TaskEvent::Seen(seen) => self.on_seen(seen),
            TaskEvent::Stable(offsets) => self.on_stable(&offsets),
            TaskEvent::Stop => self.stop()?,
        }
        Ok(())
    }

    fn on_committed(&mut self, id: SegmenterId, seq: u64, segment: Option<SegmentRef>, empty: Vec<PartitionRange>) {
        if let Some(segment) = &segment {
            self.summary.segments += 1;
            self.summary.records += segment.records();
            self.summary.raw_bytes += segment.raw_bytes;
            self.summary.stored_bytes += segment.bytes;
        }
        let Some(segmenter) = self.topics.segmenters.get_mut(&id) else { return };
        if let Some(segment) = &segment {
            segmenter.shown.counters.archived(segment);
            segment.partitions.iter().for_each(|range| segmenter.shown.follow(range));
        }
        let ranges = segment.map_or(empty, |segment| segment.partitions);
        segmenter.covered(seq, &ranges);
        if self.topics.current.get(&segmenter.topic) == Some(&id) {
            let at = |partition| TopicPartition { topic: Arc::clone(&segmenter.topic), partition };
            self.membership.archived(ranges.iter().map(|range| (at(range.partition), range.end)));
        }
    }

    fn on_tick(&mut self, now: Instant) -> Result<()> {
        self.published.tick(now);
        self.apply_desired_state()?;
        self.follow_skips();
        for segmenter in self.topics.segmenters.values_mut() {
            segmenter.seal_if_old(now);
        }
        self.keep_memory();
        self.reconcile()?;
        self.let_go(now)?;
        self.resolve_again(now);
        self.check_ownership();
        self.publish_change(now);
        self.topics.drop_done();
        Ok(())
    }

    pub(super) fn commit_to_group(&mut self) {
        let offsets = self.membership.take_offsets();
        if offsets.is_empty() {
            return;
        }
        if let Err(error) = self.consumer.commit(&offsets) {
            tracing::debug!(%error, "offsets were not committed to the group; the archive has them");
        }
    }

    fn tell_coverage(&mut self) {
        let report = self.topics.present().map(Told::of).collect();
        // One that is still busy with the last report, because no broker answers, misses this one.
        if self.coverage.try_send(report).is_err() {
            tracing::debug!("coverage is busy");
        }
    }

    fn log_summary(&mut self) {
        let Summary { segments, records, raw_bytes, stored_bytes } = std::mem::take(&mut self.summary);
        let memory_bytes = self.topics.memory();
        let (state, topics) = (self.state().name(), self.topics.current.len());
        tracing::info!(
            connector = "kafka",
            state,
            topics,
            records,
            segments,
            raw_bytes,
            stored_bytes,
            memory_bytes,
            "archived"
        );
    }

    /// Stops fetching, and seals what came.
    fn stop(&mut self) -> Result<()> {
        self.stopping.get_or_insert_with(|| Instant::now() + STOP_WITHIN);
        self.reconcile()?;
        for segmenter in self.topics.segmenters.values_mut() {
            segmenter.seal(SealReason::Stop);
        }
        Ok(())
    }

    fn is_stopped(&self, now: Instant) -> bool {
        let Some(deadline) = self.stopping else { return false };
        let idle = self.topics.segmenters.values().all(Segmenter::is_idle);
        if !idle && now >= deadline {
            tracing::warn!("stopped before the last segments were committed; they will be read again");
        }
        idle || now >= deadline
    }
}

/// Returns whether something that happens every `period` is due, and if so, notes it as done.
fn due(last: &mut Instant, period: Duration, now: Instant) -> bool {
    let due = now.duration_since(*last) >= period;
    if due {
        *last = now;
    }
    due
}
