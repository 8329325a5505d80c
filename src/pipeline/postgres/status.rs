//! What the running archiver of WAL knows of itself, for metrics, the status page and the REST interface.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use tokio::time::interval;

use crate::manifest::Chain;
use crate::manifest::recoverable::Window;
use crate::source::postgres::Slot;
use crate::stream::Lsn;
use crate::tasks::{Failure, Tasks, Weight};

/// Ends of WAL that wait until the archive has reached them. With one a second, enough for a store that is away for
/// an hour; when there are more, the oldest stay, for they come true first.
const MOST_WAITING: usize = 3_600;

/// Two ends of WAL are noted at least this far apart.
const BETWEEN_ENDS: TimeDelta = TimeDelta::seconds(1);

/// A commit is in the log this long after the time that it carries, unless a disk hangs.
const COMMITS_WITHIN: TimeDelta = TimeDelta::seconds(1);

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
    /// The end of the server's WAL that is known, on the timeline that is received.
    known: Lsn,
    on: Option<u32>,
    /// The last keepalive, if no WAL has come since.
    sign: Option<(DateTime<Utc>, Lsn)>,
    /// The timeline on which the archive is at `now.durable`.
    durable_on: Option<u32>,
    /// What `now.complete_through` stands on.
    complete_at: Option<(u32, Lsn)>,
    /// When the server's WAL ended where.
    ends: VecDeque<(DateTime<Utc>, Lsn)>,
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

    /// How long the receiver's thread has been held up: no time where there is no receiver.
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

    /// Whether WAL comes from a server.
    pub(super) fn is_connected(&self) -> bool {
        self.lock().now.connected
    }

    /// Whether WAL comes from the newest timeline that is archived: what an older one needs no more, the server's own may.
    pub(super) fn is_at_newest(&self, chain: &Chain) -> bool {
        let now = &self.lock().now;
        let newest = chain.positions().map(|position| position.partition.cast_unsigned()).max();
        now.connected && now.timeline.is_some() && now.timeline == newest
    }

    /// The timeline that is received, and the one on which the archive is.
    pub(super) fn timelines(&self) -> (Option<u32>, Option<u32>) {
        let inner = self.lock();
        (inner.now.timeline, inner.durable_on)
    }

    /// Notes something.
    pub(super) fn note(&self, change: impl FnOnce(&mut Snapshot)) {
        change(&mut self.lock().now);
    }

    /// Up to when which timeline is complete, once the archive has come to a place on it.
    pub(super) fn complete(&self) -> Option<(u32, Lsn, DateTime<Utc>)> {
        let inner = self.lock();
        let (timeline, end) = inner.complete_at?;
        Some((timeline, end, inner.now.complete_through?))
    }

    /// A connection begins: what was said last on another one is no answer to its first keepalive.
    pub(super) fn begins(&self) {
        self.lock().sign = None;
    }

    /// The server's WAL ended at `end` as it sent a piece of it, by its own clock.
    ///
    /// It looks where its log ends, reads the piece, and takes the time last (`XLogSendPhysical`, walsender.c); a commit
    /// takes its own time before it is in the log. What came in between is allowed for.
    pub(super) fn server_ends(&self, end: Lsn, at: DateTime<Utc>) {
        let mut inner = self.lock();
        inner.sign = None;
        inner.ended(end, at - COMMITS_WITHIN);
    }

    /// The server has sent its WAL up to `end`, by a keepalive. That it has no more is known when the next one says the same
    /// (`WalSndKeepalive`, walsender.c), asked for after the first one came: between the two it has looked. What was not in
    /// the log yet is allowed for as in [`Status::server_ends`].
    pub(super) fn server_has_sent(&self, end: Lsn, at: DateTime<Utc>) {
        let mut inner = self.lock();
        let before = inner.sign.replace((at, end));
        if let Some((before, _)) = before.filter(|(_, same)| *same == end) {
            inner.ended(end, before.min(at - COMMITS_WITHIN));
        }
    }

    /// The archive has come to `durable` on a timeline.
    pub(super) fn durable_to(&self, timeline: u32, durable: Lsn) {
        let mut inner = self.lock();
        inner.now.durable = durable;
        inner.durable_on = Some(timeline);
        inner.complete();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn ended(&mut self, end: Lsn, at: DateTime<Utc>) {
        if self.on != self.now.timeline {
            // The new timeline may never come to where the old one ended.
            (self.on, self.known) = (self.now.timeline, Lsn(0));
            self.ends.clear();
        }
        if end < self.known {
            return;
        }
        self.known = end;
        self.now.server = self.now.server.max(end);
        let due = self.ends.back().is_none_or(|(last, _)| at - *last >= BETWEEN_ENDS);
        if due && self.ends.len() < MOST_WAITING {
            self.ends.push_back((at, end));
        }
        self.complete();
    }

    fn complete(&mut self) {
        if self.durable_on != self.on {
            return;
        }
        while let Some((at, end)) = self.ends.front().copied().filter(|(_, end)| *end <= self.now.durable) {
            self.now.complete_through = Some(at);
            self.complete_at = self.on.map(|timeline| (timeline, end));
            self.ends.pop_front();
        }
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

    #[test]
    fn what_the_server_had_is_complete_once_the_archive_has_reached_it() {
        let status = Arc::<Status>::default();
        let at = |seconds: i64| DateTime::from_timestamp(1_800_000_000 + seconds, 0).expect("a time");
        status.note(|now| now.timeline = Some(1));
        status.server_ends(Lsn(100), at(1));
        status.server_ends(Lsn(150), at(1) + TimeDelta::milliseconds(10));
        status.server_ends(Lsn(200), at(6));
        status.durable_to(1, Lsn(199));
        let now = status.now();
        assert_eq!((now.complete_through, now.lag_bytes), (Some(at(0)), 1));
        status.durable_to(1, Lsn(200));
        assert_eq!((status.now().complete_through, status.now().lag_bytes), (Some(at(5)), 0));
        status.server_has_sent(Lsn(200), at(10));
        assert_eq!(status.now().complete_through, Some(at(5)), "there may be more that it has not sent");
        status.server_has_sent(Lsn(200), at(11));
        assert_eq!(status.now().complete_through, Some(at(10)), "there was no more");
        status.server_ends(Lsn(900), at(12));
        for seconds in [13, 14] {
            status.server_has_sent(Lsn(300), at(seconds));
        }
        status.durable_to(1, Lsn(300));
        assert_eq!(status.now().complete_through, Some(at(10)), "it had sent that much, and had more");
        status.note(|now| now.timeline = Some(2));
        status.server_ends(Lsn(310), at(21));
        status.durable_to(1, Lsn(400));
        assert_eq!(status.now().complete_through, Some(at(10)), "that is of the timeline before");
        status.durable_to(2, Lsn(310));
        assert_eq!(status.now().complete_through, Some(at(20)), "the new timeline is complete");
    }

    #[test]
    fn a_keepalive_needs_one_that_confirms_it() {
        let status = Arc::<Status>::default();
        let at = |ms: i64| DateTime::from_timestamp_millis(1_800_000_000_000 + ms).expect("a time");
        status.note(|now| now.timeline = Some(1));
        status.durable_to(1, Lsn(100));
        status.server_has_sent(Lsn(100), at(0));
        status.begins();
        status.server_has_sent(Lsn(100), at(5_000));
        assert_eq!(status.complete(), None, "the other connection broke, and there may be more");
        status.server_has_sent(Lsn(100), at(5_010));
        assert_eq!(status.complete(), Some((1, Lsn(100), at(4_010))), "a commit may be on its way into the log");
        status.server_has_sent(Lsn(100), at(9_000));
        assert_eq!(status.complete(), Some((1, Lsn(100), at(5_010))));
        status.note(|now| now.timeline = Some(2));
        status.server_ends(Lsn(300), at(20_000));
        status.durable_to(2, Lsn(200));
        assert_eq!(status.complete(), Some((1, Lsn(100), at(5_010))), "nothing is known of the new timeline");
    }
}
