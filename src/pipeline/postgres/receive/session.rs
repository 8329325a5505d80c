//! One connection that streams: what comes goes into the spool, and the server is told how far it is safe.
//!
//! While the spool has no room nothing is read, and statuses go on.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::sync::watch;
use tokio::task::{JoinHandle, yield_now};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};

use super::leaving::Leaving;
use super::receiver::{Ended, Receiver, SILENT_FOR};
use crate::config::Ack;
use crate::error::{Error, Kind, Result};
use crate::pipeline::postgres::shared::{DRAIN_WITHIN, LEAVE_WITHIN, SPOOL_LIMIT, Shared};
use crate::pipeline::postgres::spool::WalSpool;
use crate::pipeline::postgres::timelines::Next;
use crate::pipeline::shutdown;
use crate::segment::wal::{MOST_BYTES, check_pages};
use crate::source::postgres::{Event, Status, WalStream};
use crate::stream::Lsn;
use crate::tasks::Task;

/// A status is sent at least this often, and asks for an answer if none is owed: it tells where the server's log ends.
const BETWEEN_STATUSES: Duration = Duration::from_secs(1);

/// While bytes keep coming the spool is made safe this often; measured, it costs nothing then.
const BETWEEN_SYNCS: Duration = Duration::from_millis(200);

/// How often a full spool is tried again.
const BETWEEN_TRIES: Duration = Duration::from_millis(500);

/// One connection that streams one timeline.
pub(super) struct Session<'a> {
    receiver: &'a mut Receiver,
    stream: WalStream,
    next: Next,
    /// Up to where WAL was received.
    at: Lsn,
    /// Up to where it is safe in the spool.
    safe: Lsn,
    /// Where the server's log ended when it sent the last piece: up to there more comes at once.
    server_end: Lsn,
    /// The last of what was received, while the spool has no room for it.
    waiting: Vec<u8>,
    /// Whether files of the spool are made ready in advance.
    prepares: bool,
    /// The work on the next one.
    preparing: Option<JoinHandle<()>>,
    /// When the spool was last made safe.
    synced: Instant,
    /// When the server last said something.
    heard: Instant,
    /// Whether it still owes the keepalive that it was asked for.
    owes: bool,
    /// Whether it waits for us to shut down.
    leaving: Leaving,
    /// Nothing beyond this is asked of this server.
    until: Option<Lsn>,
}

impl<'a> Session<'a> {
    pub(super) fn new(receiver: &'a mut Receiver, stream: WalStream, next: Next, prepares: bool) -> Self {
        Self {
            receiver,
            stream,
            next,
            at: next.start,
            safe: next.start,
            server_end: Lsn(0),
            waiting: Vec::new(),
            prepares,
            preparing: None,
            synced: Instant::now(),
            heard: Instant::now(),
            owes: false,
            leaving: Leaving::default(),
            until: None,
        }
    }

    /// Asks this server for nothing beyond a position: it is asked for what another one has removed.
    pub(super) fn only_until(&mut self, until: Option<Lsn>) {
        self.until = until;
    }

    /// Whether no WAL has come.
    pub(super) fn has_nothing(&self) -> bool {
        self.at == self.next.start
    }

    /// Receives until the timeline ends or `stop` turns true.
    pub(super) async fn receive(
        &mut self,
        stop: &mut watch::Receiver<bool>,
        drain: &watch::Sender<bool>,
    ) -> Result<Ended> {
        let shared = Arc::clone(&self.receiver.shared);
        let mut archived = shared.archived.subscribe();
        let mut tick = interval(BETWEEN_STATUSES);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let waits = !self.waiting.is_empty();
            let (has_all, due) = (self.at >= self.server_end, self.synced + BETWEEN_SYNCS);
            // Looked at once more: what has come meanwhile is made safe together with what came before.
            let drained = async move { if has_all { yield_now().await } else { sleep_until(due).await } };
            // A stop comes first. What was archived or made safe is told before more is read: a commit waits for it.
            tokio::select! {
                biased;
                () = shutdown::requested(stop) => return self.leave(drain).await,
                _ = archived.changed() => self.tell(false).await?,
                _ = tick.tick() => self.ask().await?,
                () = shared.spool.room(), if waits => self.go_on(stop).await?,
                event = self.stream.next(), if !waits => {
                    self.heard = Instant::now();
                    let mut wanted = false;
                    let mut full = None;
                    match event? {
                        Event::Data { start, server_end, sent_us, bytes } => {
                            if start != self.at {
                                let message = format!("WAL came from {start} on, and {} was next", self.at);
                                return Err(Error::new(Kind::Corrupt, message));
                            }
                            check_pages(shared.system.server_version, start, bytes)?;
                            self.receiver.streamed = true;
                            if self.until.is_none() {
                                shared.status.server_ends(server_end, clock(sent_us));
                            }
                            (self.at, self.server_end) = (start + bytes.len() as u64, server_end);
                            match spool(&shared, (self.next.timeline, start), bytes, server_end) {
                                Ok(taken) => self.waiting.extend_from_slice(&bytes[taken..]),
                                Err(error) => full = Some((error, bytes.to_vec())),
                            }
                        }
                        Event::Keepalive { server_end, sent_us, reply_requested } => {
                            match self.until {
                                None => shared.status.server_has_sent(server_end, clock(sent_us)),
                                Some(_) => self.server_end = self.server_end.max(server_end),
                            }
                            wanted = reply_requested;
                            // One that wants an answer is none.
                            self.owes &= reply_requested;
                        }
                        Event::TimelineEnded { next_timeline, switch } => return self.switch(next_timeline, switch),
                    }
                    if let Some((error, bytes)) = full {
                        self.wait_for_room(error, &bytes, stop).await?;
                    }
                    if self.safe < self.at && self.synced.elapsed() >= BETWEEN_SYNCS {
                        self.sync_and_tell().await?;
                    }
                    // Where it ends, too: what it gets later is asked for again.
                    let enough = self.until.is_some_and(|until| self.at >= until.min(self.server_end));
                    if enough && self.waiting.is_empty() {
                        self.sync()?;
                        return Ok(Ended::GoOn);
                    }
                    if wanted {
                        if self.at >= self.server_end && self.acknowledged() < self.at {
                            self.leaving.asked_again(&self.receiver.server, &self.receiver.others);
                        }
                        self.tell(false).await?;
                    }
                }
                () = drained, if self.safe < self.at && !waits => {
                    if self.prepares {
                        self.prepare();
                    }
                    self.sync_and_tell().await?;
                }
            }
        }
    }

    /// Makes the spool safe, and tells the server if that is what it waits for.
    async fn sync_and_tell(&mut self) -> Result<()> {
        self.sync()?;
        if self.receiver.config.ack == Ack::Spool { self.tell(false).await } else { Ok(()) }
    }

    /// Has the spool's next file made ready, by somebody else.
    fn prepare(&mut self) {
        let is_at_work = self.preparing.as_ref().is_some_and(|work| !work.is_finished());
        if is_at_work || !self.receiver.shared.spool.wants_spare() {
            return;
        }
        let shared = Arc::clone(&self.receiver.shared);
        self.preparing = Some(self.receiver.others.spawn_blocking(move || prepare(&shared.spool)));
    }

    fn sync(&mut self) -> Result<()> {
        let shared = &self.receiver.shared;
        let safe = shared.spool.sync()?;
        (self.safe, self.synced) = (safe, Instant::now());
        shared.status.note(|now| (now.received, now.spooled) = (safe, safe));
        Ok(())
    }

    /// Writes what waited for room in the spool.
    async fn go_on(&mut self, stop: &mut watch::Receiver<bool>) -> Result<()> {
        let waiting = std::mem::take(&mut self.waiting);
        let at = Lsn(self.at.0 - waiting.len() as u64);
        match spool(&self.receiver.shared, (self.next.timeline, at), &waiting, self.server_end) {
            Ok(taken) => self.waiting.extend_from_slice(&waiting[taken..]),
            Err(error) => self.wait_for_room(error, &waiting, stop).await?,
        }
        Ok(())
    }

    /// Keeps the connection while the spool is full.
    async fn wait_for_room(&mut self, mut error: Error, bytes: &[u8], stop: &mut watch::Receiver<bool>) -> Result<()> {
        if error.kind() != Kind::Full {
            return Err(error);
        }
        tracing::error!(%error, hint = error.hint_text(), "the spool is full: receiving waits");
        let reporter = self.receiver.shared.status.tasks.reporter(Task::WalSpool, "");
        loop {
            reporter.failed("receiving waits", &error, Some(BETWEEN_TRIES));
            // What fits is archived, and so makes room.
            if let Err(error) = self.sync() {
                tracing::debug!(%error, "the spool cannot be made safe");
            }
            self.tell(false).await?;
            tokio::select! {
                () = tokio::time::sleep(BETWEEN_TRIES) => {}
                () = shutdown::requested(stop) => return Err(error),
            }
            match self.spool_missing(bytes) {
                Ok(rest) => {
                    self.waiting.extend_from_slice(rest);
                    break;
                }
                Err(again) if again.kind() == Kind::Full => error = again,
                Err(other) => return Err(other),
            }
        }
        tracing::info!("the spool has room again");
        self.heard = Instant::now();
        Ok(())
    }

    /// Writes what is missing of the last bytes received, after a part of them may have been written; gives the rest.
    fn spool_missing<'b>(&self, bytes: &'b [u8]) -> Result<&'b [u8]> {
        let shared = &self.receiver.shared;
        let written = shared.spool.end().map_or(self.at, |(_, written)| written);
        let missing = usize::try_from(self.at - written).unwrap_or(0).min(bytes.len());
        let (at, missing) = (Lsn(self.at.0 - missing as u64), &bytes[bytes.len() - missing..]);
        Ok(&missing[spool(shared, (self.next.timeline, at), missing, self.server_end)?..])
    }

    /// Asks the server for a keepalive.
    async fn ask(&mut self) -> Result<()> {
        if self.leaving.look().await {
            self.sync()?;
            tracing::warn!(received = %self.at, archived = %self.archived(),
                "the server shuts down: it is told that what lies in the spool is safe");
        }
        if !self.waiting.is_empty() {
            // Nothing is read until there is room for it.
            self.heard = Instant::now();
            return self.tell(false).await;
        }
        if self.heard.elapsed() > SILENT_FOR {
            return Err(Error::new(
                Kind::Unavailable,
                format!("the server has said nothing for {} s", SILENT_FOR.as_secs()),
            ));
        }
        // Two that wait for the same slow connection to take them would not show that the server has looked in between.
        let asks = !self.owes;
        self.owes = true;
        self.tell(asks).await
    }

    /// Tells the server how far the WAL is safe.
    async fn tell(&mut self, reply: bool) -> Result<()> {
        let flush = self.acknowledged();
        let status = Status { write: self.at, flush, apply: Lsn(0), reply };
        self.stream.send_status(status).await
    }

    /// Up to where the server need not keep anything: 0/0, which it passes over, where nothing of the timeline is safe.
    fn acknowledged(&self) -> Lsn {
        // The spool outlives this process, and is archived first by the next one.
        let is_leaving = self.leaving.is_certain() && self.receiver.shared.spool.is_all_on_disk();
        match self.receiver.config.ack {
            Ack::Archive if !is_leaving => self.archived(),
            Ack::Archive | Ack::Spool => self.safe,
        }
    }

    /// Up to where the timeline is archived.
    fn archived(&self) -> Lsn {
        let archived = self.receiver.shared.archived.borrow();
        let own = archived.iter().find(|position| position.partition == self.next.timeline.cast_signed());
        own.map_or(Lsn(0), |position| Lsn::at(position.end).min(self.at))
    }

    /// The server has left this timeline.
    fn switch(&mut self, next_timeline: u32, switch: Lsn) -> Result<Ended> {
        self.sync()?;
        if self.at != switch {
            let message =
                format!("the server left timeline {} at {switch}, and sent it up to {}", self.next.timeline, self.at);
            return Err(Error::new(Kind::Corrupt, message));
        }
        tracing::info!(timeline = self.next.timeline, %switch, next_timeline, "the server has changed to another timeline");
        Ok(Ended::GoOn)
    }

    /// Says good-bye once what was received is archived, so that the slot keeps nothing that is not needed.
    async fn leave(&mut self, drain: &watch::Sender<bool>) -> Result<Ended> {
        self.sync()?;
        // What waits for room comes again.
        self.at = self.safe;
        drain.send_replace(true);
        let mut archived = self.receiver.shared.archived.subscribe();
        let deadline = Instant::now() + DRAIN_WITHIN;
        while self.acknowledged() < self.at && Instant::now() < deadline {
            tokio::select! {
                _ = archived.changed() => {}
                () = tokio::time::sleep(BETWEEN_STATUSES) => {}
            }
            self.tell(false).await?;
        }
        if !matches!(timeout(LEAVE_WITHIN, self.tell(false)).await, Ok(Ok(()))) {
            tracing::debug!("the server does not listen any more");
        }
        Ok(Ended::Stopped)
    }
}

/// The server's clock. Commits carry its time, whatever ours says.
fn clock(sent_us: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_micros(sent_us).unwrap_or_default()
}

/// Makes the spool's next file ready. Without it everything works all the same.
pub(super) fn prepare(spool: &WalSpool) {
    if let Err(error) = spool.prepare() {
        tracing::debug!(%error, "no file of the spool is ready in advance");
    }
}

/// Writes bytes received of a timeline from a place on, or the first of them where the rest has to wait; gives how many.
/// Refuses where the spool has come to its limit.
fn spool(shared: &Shared, at: (u32, Lsn), bytes: &[u8], server_end: Lsn) -> Result<usize> {
    if shared.spool.bytes() + bytes.len() as u64 > SPOOL_LIMIT.max(2 * MOST_BYTES) {
        return Err(Error::new(Kind::Full, format!("the spool holds {SPOOL_LIMIT} bytes that are not archived yet"))
            .hint("the archive does not keep up: see the errors of its store"));
    }
    shared.spool.append(at, bytes, server_end)
}
