//! The one writer of a stream's checkpoints, for topics and WAL alike.
//!
//! What fails is tried again until the process ends: the source still has everything. Only where somebody else was faster does the
//! caller have to decide, for it knows what it would write instead ([`Outcome::Moved`], [`Outcome::Closed`]).

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::error::Result;
use crate::manifest::{Chain, Change, Outcome};
use crate::stream::Close;
use crate::tasks::backoff::Backoff;
use crate::tasks::{Task, Tasks};

/// A chain takes at most one checkpoint a second of this process, so that many segments share one.
const BETWEEN_CHECKPOINTS: Duration = Duration::from_secs(1);

/// Writes checkpoints to one chain.
pub(super) struct Checkpointer {
    chain: Chain,
    writer: String,
    tasks: Arc<Tasks>,
    /// What fails, and of what: where it is reported.
    task: (Task, Arc<str>),
    /// When the last checkpoint was written.
    written: Option<Instant>,
}

impl Checkpointer {
    pub(super) fn new(chain: Chain, writer: &str, tasks: &Arc<Tasks>, task: (Task, Arc<str>)) -> Self {
        Self { chain, writer: writer.to_owned(), tasks: Arc::clone(tasks), task, written: None }
    }

    /// The chain as it was after the last checkpoint or look.
    pub(super) fn chain(&self) -> &Chain {
        &self.chain
    }

    /// Returns when the next checkpoint may be written: a second after the last one.
    pub(super) fn next(&self) -> Instant {
        self.next_within(BETWEEN_CHECKPOINTS)
    }

    /// The same, `least` after the last one.
    pub(super) fn next_within(&self, least: Duration) -> Instant {
        self.written.map_or_else(Instant::now, |written| written + least)
    }

    /// Commits a change. It counts for the pace of checkpoints whatever came of it.
    pub(super) async fn commit(&mut self, change: &Change, what: &str) -> Outcome {
        let outcome = self.append(change, what).await;
        self.written = Some(Instant::now());
        outcome
    }

    /// Commits a change that waits for nothing, such as a gap.
    pub(super) async fn append(&mut self, change: &Change, what: &str) -> Outcome {
        let mut backoff = self.backoff();
        loop {
            match self.chain.commit(change, &self.writer, crate::time::now()).await {
                Ok(outcome) => return outcome,
                Err(error) => backoff.wait_after(what, error).await,
            }
        }
    }

    /// Ends the chain.
    pub(super) async fn close(&mut self, close: &Close, what: &str) {
        let mut backoff = self.backoff();
        while let Err(error) = self.chain.close(close, &self.writer, crate::time::now()).await {
            backoff.wait_after(what, error).await;
        }
    }

    /// Takes in what others have written.
    ///
    /// # Errors
    /// The store's.
    pub(super) async fn refresh(&mut self) -> Result<()> {
        self.chain.refresh().await
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(self.tasks.reporter(self.task.0, Arc::clone(&self.task.1)))
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;
    use crate::store::Store;
    use crate::stream::{Begin, PartitionRange, StreamId, TopicGeneration};

    fn empty(start: i64, end: i64) -> Change {
        let range = PartitionRange { partition: 0, start, end, records: 0, min_timestamp: None, max_timestamp: None };
        Change { empty: vec![range], ..Change::default() }
    }

    fn stream() -> StreamId {
        StreamId::Kafka(TopicGeneration::new("main", "orders", 0))
    }

    async fn checkpointer() -> (Store, Checkpointer) {
        let store = Store::over(Arc::new(object_store::memory::InMemory::new()), "memory:///");
        let begin = Begin::topic(None, vec![Some(0)]);
        let chain = Chain::begin(&store, &stream(), begin, "w", DateTime::UNIX_EPOCH).await.expect("begun");
        (store, Checkpointer::new(chain, "w", &Arc::default(), (Task::KafkaCheckpoint, "orders".into())))
    }

    #[tokio::test]
    async fn checkpoints_are_a_second_apart_and_a_gap_waits_for_nothing() {
        let (_, mut checkpoints) = checkpointer().await;
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        assert!(checkpoints.next() <= Instant::now(), "the first may be written at once");
        assert!(matches!(checkpoints.append(&empty(0, 5), "no").await, Outcome::Committed { .. }));
        assert!(checkpoints.next() <= Instant::now(), "it is no checkpoint over segments");
        assert!(matches!(checkpoints.commit(&empty(5, 9), "no").await, Outcome::Committed { .. }));
        let next = checkpoints.next();
        assert!(start + second <= next && next <= Instant::now() + second);
        assert_eq!(next - checkpoints.next_within(second / 5), second - second / 5);
        assert_eq!(checkpoints.chain().reached(0), Some(9));
    }

    #[tokio::test]
    async fn where_somebody_else_was_faster_the_caller_decides_and_the_pace_is_kept() {
        let (store, mut checkpoints) = checkpointer().await;
        let (start, now) = (Instant::now(), DateTime::UNIX_EPOCH);
        let mut other = Chain::open(&store, &stream()).await.expect("opened").expect("a chain");
        other.commit(&empty(0, 5), "other", now).await.expect("committed");
        assert_eq!(checkpoints.commit(&empty(0, 7), "no").await, Outcome::Moved([0].into()));
        assert!(checkpoints.next() >= start + BETWEEN_CHECKPOINTS);
        assert_eq!(checkpoints.chain().reached(0), Some(5), "it knows how far the other one is");
        other.close(&Close { cuts: Vec::new(), decided: now }, "other", now).await.expect("closed");
        checkpoints.refresh().await.expect("looked");
        assert_eq!(checkpoints.commit(&empty(5, 6), "no").await, Outcome::Closed);
    }
}
