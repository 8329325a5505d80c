//! What the running archiver of WAL knows of itself, for metrics, the status page and the REST interface.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use tokio::time::interval;

use super::completeness::Completeness;
use crate::manifest::Chain;
use crate::manifest::recoverable::Window;
use crate::source::postgres::Slot;
use crate::stream::Lsn;
use crate::tasks::{Failure, Tasks, Weight};

/// How often the receiver shows that it runs.
const BETWEEN_BEATS: Duration = Duration::from_secs(1);

/// The state of the running archiver. One for as long as the process runs.
#[derive(Debug, Default)]
pub struct Status {
    /// Where the tasks of the archiver say what fails.
    pub(in crate::pipeline) tasks: Arc<Tasks>,
    inner: Mutex<Inner>,
    /// When the receiver last came round; none while there is none.
    beat: Mutex<Option<Instant>>,
}

#[derive(Debug, Default)]
struct Inner {
    now: Snapshot,
    completeness: Completeness,
}

/// The state at one moment.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Whether WAL is being received right now.
    pub connected: bool,
    /// The server that it comes from.
    pub host: Option<String>,
    /// What is wrong, in words; none while all is well.
    pub trouble: Option<String>,
    /// The system that is archived.
    pub system_id: Option<u64>,
    /// The timeline that is received.
    pub timeline: Option<u32>,
    /// The end of the server's WAL, as it last said.
    pub server: Lsn,
    /// Up to where WAL was received.
    pub received: Lsn,
    /// Up to where it is safe in the spool.
    pub spooled: Lsn,
    /// Up to where it is in the archive, with its checkpoint.
    pub durable: Lsn,
    /// Bytes from there to the end of the server's WAL.
    pub lag_bytes: u64,
    /// Everything that the server had written by then is in the archive.
    pub complete_through: Option<DateTime<Utc>>,
    /// The time of the last commit that is in the archive.
    pub last_commit: Option<DateTime<Utc>>,
    /// Bytes of WAL archived since the start of the process.
    pub raw_bytes: u64,
    /// Bytes of their objects.
    pub stored_bytes: u64,
    /// Segments archived since the start.
    pub segments: u64,
    /// Blocks of 16 MiB whose segments were merged since the start.
    pub merged: u64,
    /// Gaps recorded since the start.
    pub gaps: u64,
    /// The slot by which WAL is received.
    pub slot: Option<String>,
    /// All replication slots of the server.
    pub slots: Vec<SlotStatus>,
    /// When they were looked at.
    pub slots_at: Option<DateTime<Utc>>,
    /// The end of the last base backup.
    pub last_backup: Option<DateTime<Utc>>,
    /// The times to which the database can be recovered, oldest first.
    pub windows: Vec<Window>,
}

/// A replication slot, and when the server will remove what it needs if nothing changes.
#[derive(Debug, Clone)]
pub struct SlotStatus {
    /// The slot.
    pub slot: Slot,
    /// Seconds until its WAL is removed, where a limit is set and WAL is being written.
    pub seconds_to_loss: Option<f64>,
}

impl Status {
    /// A process that has not begun yet.
    pub(in crate::pipeline) fn new(tasks: Arc<Tasks>) -> Arc<Self> {
        Arc::new(Self { tasks, ..Self::default() })
    }

    /// The state now.
    pub fn now(&self) -> Snapshot {
        let mut now = self.lock().now.clone();
        now.lag_bytes = now.server - now.durable;
        let failing = self.tasks.failing();
        let stops = |failure: &&Failure| failure.task.is_of_postgres() && failure.task.weight() == Weight::Stops;
        now.trouble = failing.iter().find(stops).map(|failure| failure.text.to_string());
        now
    }

    /// Returns how long the receiver's thread has been held up: no time where there is no receiver.
    pub fn silent_for(&self, now: Instant) -> Duration {
        let beat = *self.beat.lock().unwrap_or_else(PoisonError::into_inner);
        beat.map_or(Duration::ZERO, |beat| now.saturating_duration_since(beat))
    }

    /// Shows that the thread of the receiver goes on, as long as this is polled there.
    pub(super) async fn beat(&self) -> Infallible {
        let mut tick = interval(BETWEEN_BEATS);
        loop {
            let at = tick.tick().await.into_std();
            *self.beat.lock().unwrap_or_else(PoisonError::into_inner) = Some(at);
        }
    }

    /// There is no receiver any more.
    pub(super) fn rest(&self) {
        *self.beat.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Returns whether WAL comes from a server.
    pub(super) fn is_connected(&self) -> bool {
        self.lock().now.connected
    }

    /// Returns whether WAL comes from the newest timeline that is archived: what an older one needs no more, the server's own may.
    pub(super) fn is_at_newest(&self, chain: &Chain) -> bool {
        let now = &self.lock().now;
        let newest = chain.positions().map(|position| position.partition.cast_unsigned()).max();
        now.connected && now.timeline.is_some() && now.timeline == newest
    }

    /// The timeline that is received, and the one on which the archive is.
    pub(super) fn timelines(&self) -> (Option<u32>, Option<u32>) {
        let inner = self.lock();
        (inner.now.timeline, inner.completeness.durable_on())
    }

    /// Notes something.
    pub(super) fn note(&self, change: impl FnOnce(&mut Snapshot)) {
        change(&mut self.lock().now);
    }

    /// Returns up to when which timeline is complete, once the archive has come to a place on it.
    pub(super) fn complete(&self) -> Option<(u32, Lsn, DateTime<Utc>)> {
        self.lock().completeness.through()
    }

    /// A connection begins: what was said last on another one is no answer to its first keepalive.
    pub(super) fn begins(&self) {
        self.lock().completeness.begins();
    }

    /// The server's WAL ended at `end` as it sent a piece of it, by its own clock.
    pub(super) fn server_ends(&self, end: Lsn, at: DateTime<Utc>) {
        self.learn(|completeness, timeline| completeness.server_ends(timeline, end, at));
    }

    /// The server has sent its WAL up to `end`, by a keepalive.
    pub(super) fn server_has_sent(&self, end: Lsn, at: DateTime<Utc>) {
        self.learn(|completeness, timeline| completeness.server_has_sent(timeline, end, at));
    }

    /// The archive has come to `durable` on a timeline.
    pub(super) fn durable_to(&self, timeline: u32, durable: Lsn) {
        self.lock().now.durable = durable;
        self.learn(|completeness, _| completeness.durable_to(timeline, durable));
    }

    /// Takes something in, and shows what follows from it.
    fn learn(&self, what: impl FnOnce(&mut Completeness, Option<u32>)) {
        let mut inner = self.lock();
        let Inner { now, completeness } = &mut *inner;
        what(completeness, now.timeline);
        now.server = now.server.max(completeness.server());
        now.complete_through = completeness.through().map(|(_, _, through)| through).or(now.complete_through);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_receiver_that_is_held_up_is_silent() {
        let (status, now) = (Arc::<Status>::default(), Instant::now());
        assert_eq!(status.silent_for(now), Duration::ZERO, "there is none yet");
        let later = now + Duration::from_secs(60);
        tokio::select! {
            never = status.beat() => match never {},
            () = async { while status.silent_for(later).is_zero() { tokio::task::yield_now().await } } => {}
        }
        assert!(status.silent_for(later) > Duration::from_secs(30));
        status.rest();
        assert_eq!(status.silent_for(later), Duration::ZERO, "a stopped one is not silent");
    }
}
