//! What a committer answers of its topic: where a partition is read on, why the broker does not have an offset, where a log was cut.

use std::sync::Arc;

use super::commit::Committer;
use super::divergence;
use super::messages::{Question, TaskEvent};
use super::topic_ids::is_recreated;
use crate::config;
use crate::error::{Error, Kind, Result};
use crate::manifest::Outcome;
use crate::source::kafka::{EpochAt, OffsetAt, Resume, TopicPartition};
use crate::stream::{Close, Cut, GapReason};
use crate::tasks::Task;

impl Committer {
    /// What others have committed counts in every answer: they may have had a partition in between, and where a log was cut is
    /// told by all that is archived of it.
    pub(super) async fn answer(&mut self, question: Question) {
        let mut backoff = self.backoff(Task::KafkaPositions);
        while let Err(error) = self.checkpoints.refresh().await {
            backoff.wait_after("what others have archived of a topic cannot be read", error).await;
        }
        drop(backoff);
        match question {
            Question::Where { seq, partitions } => {
                let end = |partition| self.checkpoints.chain().position(partition).map(|range| range.end);
                let positions = partitions
                    .into_iter()
                    .map(|(partition, first)| (partition, self.resume(partition, end(partition).unwrap_or(first))));
                self.shared.send(TaskEvent::Positioned {
                    segmenter: self.segmenter,
                    seq,
                    positions: positions.collect(),
                });
            }
            Question::OutOfRange { partition } => self.out_of_range(partition).await,
            Question::Truncated { partition, diverged, fresh } => self.truncated(partition, diverged, fresh).await,
            Question::Skip { partition, start, end } => self.skip(partition, start..end).await,
            Question::End { cut } => self.end(cut).await,
        }
    }

    /// Ends the chain where the log was cut, and tells that everything before is committed.
    async fn end(&mut self, cut: Option<Cut>) {
        if let Some(cut) = cut {
            let within = |end: i64| Cut { offset: cut.offset.min(end), ..cut };
            let cuts =
                self.checkpoints.chain().position(cut.partition).map(|range| within(range.end)).into_iter().collect();
            let close = Close { cuts, decided: crate::time::now() };
            self.checkpoints.close(&close, "the end of a generation cannot be written").await;
        }
        self.shared.send(TaskEvent::Ended { segmenter: self.segmenter });
    }

    /// Returns where a partition is read on, with the record before it that the broker is asked about.
    pub(super) fn resume(&self, partition: i32, next: i64) -> Resume {
        divergence::resume(self.checkpoints.chain(), &self.earlier, partition, next)
    }

    pub(super) fn found(&self, partition: i32, from: Resume) {
        self.shared.send(TaskEvent::Found { segmenter: self.segmenter, partition, from });
    }

    /// The log was cut below what was read. If that was not said of the archived position itself, the broker is asked about
    /// that one first. If nothing of the partition is archived in this generation yet, as after an election that cut several
    /// partitions, it begins where its log left the generation before. Otherwise another generation begins.
    async fn truncated(&mut self, partition: i32, diverged: Option<EpochAt>, fresh: bool) {
        self.asked.remove(&partition);
        let (id, earliest, _) = self.present(partition).await;
        if is_recreated(self.checkpoints.chain().begin_facts().topic_id(), id.as_deref()) {
            return self.shared.send(TaskEvent::GenerationEnds { segmenter: self.segmenter, cut: None });
        }
        let archived = self.checkpoints.chain().position(partition).map(|range| range.end);
        if let Some(end) = archived
            && self.checkpoints.chain().last_record(partition).is_some()
            && !fresh
        {
            return self.found(partition, self.resume(partition, end));
        }
        let offset = match diverged {
            Some(diverged) => self.left_at(partition, diverged).await.max(earliest),
            None => earliest,
        };
        let Some(end) = archived else { return self.found(partition, offset.into()) };
        let cut = Cut { partition, offset: offset.min(end) };
        tracing::error!(
            topic = self.generation.topic,
            partition,
            archived = end,
            offset = cut.offset,
            "the brokers lost records that are archived (an unclean election): the topic goes on in another generation"
        );
        self.shared.send(TaskEvent::GenerationEnds { segmenter: self.segmenter, cut: Some(cut) });
    }

    /// Returns where a log left what is archived of it.
    async fn left_at(&self, partition: i32, diverged: EpochAt) -> i64 {
        let mut backoff = self.backoff(Task::KafkaPositions);
        loop {
            match divergence::left_at(&self.shared.store, self.checkpoints.chain(), &self.earlier, partition, diverged)
                .await
            {
                Ok(offset) => return offset,
                Err(error) => backoff.wait_after("what is archived of a partition cannot be listed", error).await,
            }
        }
    }

    /// Finds out why the broker does not have the offset after the archive's last: its retention has outrun the
    /// archiver (a gap is recorded), the log ends before it (another generation of the topic), or neither (try again).
    async fn out_of_range(&mut self, partition: i32) {
        let (id, earliest, latest) = self.present(partition).await;
        if is_recreated(self.checkpoints.chain().begin_facts().topic_id(), id.as_deref()) {
            return self.shared.send(TaskEvent::GenerationEnds { segmenter: self.segmenter, cut: None });
        }
        loop {
            let Some(archived) = self.checkpoints.chain().reached(partition) else {
                // Nobody knows where it begins: with the broker's oldest record.
                return self.found(partition, earliest.into());
            };
            // The log is another one. From where on, the broker tells if it is asked with an epoch; it told of the offset alone
            // if the election came in between.
            let from = self.resume(partition, archived);
            if archived > latest && from.last.is_some() && self.asked.insert(partition) {
                return self.found(partition, from);
            }
            if archived > latest && self.checkpoints.chain().position(partition).is_none() {
                // Nothing of it is archived here: it begins where its log is.
                let begins = if self.generation.number == 0 { latest } else { earliest };
                return self.found(partition, begins.into());
            }
            if archived > latest {
                tracing::error!(
                    topic = self.generation.topic,
                    partition,
                    archived,
                    latest,
                    "the log ends before the archive's position"
                );
                let cut = Some(Cut { partition, offset: earliest });
                return self.shared.send(TaskEvent::GenerationEnds { segmenter: self.segmenter, cut });
            }
            if archived >= earliest {
                // A record that the broker has removed is nothing to ask it about.
                let last = from.last.filter(|last| last.offset + 1 >= earliest);
                return self.found(partition, Resume { last, ..from });
            }
            if self.lose(partition, archived..earliest, GapReason::BrokerRetention).await == Outcome::Closed {
                return self.shared.send(TaskEvent::Ended { segmenter: self.segmenter });
            }
        }
    }

    /// The topic's id, and the partition's first offset and end, as the broker has them now.
    pub(super) async fn present(&self, partition: i32) -> (Option<String>, i64, i64) {
        let mut backoff = self.backoff(Task::KafkaPositions);
        loop {
            match self.try_present(partition).await {
                Ok(present) => return present,
                Err(error) => backoff.wait_after("the offsets of a partition cannot be listed", error).await,
            }
        }
    }

    async fn try_present(&self, partition: i32) -> Result<(Option<String>, i64, i64)> {
        let mut described = self.shared.cluster.describe(std::slice::from_ref(&self.generation.topic)).await?;
        let id = described.remove(&self.generation.topic).transpose()?.and_then(|info| info.id);
        let at = TopicPartition { topic: Arc::from(self.generation.topic.as_str()), partition };
        Ok((id, self.offset(&at, OffsetAt::Earliest).await?, self.offset(&at, OffsetAt::Latest).await?))
    }

    pub(super) async fn offset(&self, at: &TopicPartition, when: OffsetAt) -> Result<i64> {
        let listed = self
            .shared
            .cluster
            .list_offsets(std::slice::from_ref(at), when, config::Isolation::ReadUncommitted)
            .await?;
        let (_, offset) =
            listed.into_iter().next().ok_or_else(|| Error::new(Kind::Unavailable, "the broker gave no offset"))?;
        offset?.ok_or_else(|| Error::new(Kind::Unavailable, "the broker has no offset"))
    }
}
