//! From the server into the spool: the only task that speaks the streaming protocol.
//!
//! A session is one connection and one timeline. It asks who the server is, archives the histories of its timelines,
//! finds the next range to receive, and writes what comes into the spool until the timeline ends, the connection breaks
//! or the process stops. Then the next session begins.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::timelines::{self, Next};
use super::{DRAIN_WITHIN, SPOOL_LIMIT, Shared, asked, is_final, system_of};
use crate::config::{self, Ack};
use crate::error::{Error, Kind, Result};
use crate::pipeline::persistence::Persistence;
use crate::segment::wal::{MOST_BYTES, Switch, check_pages, parse_history};
use crate::source::postgres::{Event, Replication, Server, Status, WalStream, is_removed_wal};
use crate::store::layout;
use crate::stream::Lsn;

/// A status is sent at least this often, and asks for an answer: it tells where the server's log ends.
const BETWEEN_STATUSES: Duration = Duration::from_secs(1);

/// A server that says nothing for this long, although it is asked every second, is gone.
const SILENT_FOR: Duration = Duration::from_secs(30);

/// While bytes keep coming the spool is made safe this often; measured, it costs nothing then.
const BETWEEN_SYNCS: Duration = Duration::from_millis(200);

/// How often a full spool is tried again.
const BETWEEN_TRIES: Duration = Duration::from_millis(500);

/// How long the good-bye to the server may take.
const LEAVE_WITHIN: Duration = Duration::from_secs(5);

/// The task that receives.
pub(super) struct Receiver {
    server: Server,
    config: config::Postgres,
    shared: Arc<Shared>,
    /// Whether a session got as far as streaming: what is wrong later is no mistake of the configuration.
    streamed: bool,
}

/// Why a session ended without an error.
enum Ended {
    Stopped,
    /// The next one goes on with what the server has.
    GoOn,
}

impl Receiver {
    pub(super) fn new(server: Server, config: config::Postgres, shared: Arc<Shared>) -> Self {
        Self { server, config, shared, streamed: false }
    }

    /// Receives until `stop` turns true; then `drain` is set, and the server is told what was archived last.
    ///
    /// # Errors
    /// A server that cannot be the right one, before the first WAL came.
    pub(super) async fn run(&mut self, mut stop: watch::Receiver<bool>, drain: &watch::Sender<bool>) -> Result<()> {
        let mut persistence = Persistence::new();
        loop {
            let began = Instant::now();
            let ended = Box::pin(self.session(&mut stop, drain)).await;
            self.shared.status.note(|now| now.connected = false);
            match ended {
                Ok(Ended::Stopped) => break,
                Ok(Ended::GoOn) => persistence = Persistence::new(),
                Err(error) if !self.streamed && is_final(&error) => return Err(error),
                Err(error) => {
                    if began.elapsed() > SILENT_FOR {
                        persistence = Persistence::new();
                    }
                    self.shared.status.note(|now| now.trouble = Some(error.to_string()));
                    tokio::select! {
                        () = persistence.wait_after("no WAL is received", error) => {}
                        () = asked(&mut stop) => break,
                    }
                }
            }
        }
        drain.send_replace(true);
        Ok(())
    }

    async fn session(&mut self, stop: &mut watch::Receiver<bool>, drain: &watch::Sender<bool>) -> Result<Ended> {
        let connected = async {
            let mut replication = self.server.replication().await?;
            let system = system_of(&mut replication).await?;
            self.expect_system(system.system_id, replication.shown())?;
            if self.config.create_slot {
                replication.create_slot(&self.config.slot).await?;
            }
            let identity = replication.identify().await?;
            let history = self.histories(&mut replication, identity.timeline).await?;
            let next = self.next(&history, identity.timeline, identity.flush)?;
            Ok::<_, Error>((replication, next))
        };
        let (replication, next) = tokio::select! {
            connected = connected => connected?,
            () = asked(stop) => return Ok(Ended::Stopped),
        };
        self.prepare_spool(&next)?;
        let host = replication.shown().to_owned();
        let slot = Some(self.config.slot.as_str());
        let stream = match replication.stream(slot, next.timeline, next.start).await {
            Ok(stream) => stream,
            Err(error) if is_removed_wal(&error) => return self.removed(&next, error).await,
            Err(error) => return Err(error),
        };
        tracing::info!(timeline = next.timeline, start = %next.start, host, "receiving WAL");
        self.shared.status.note(|now| {
            (now.connected, now.host, now.trouble) = (true, Some(host), None);
            (now.timeline, now.received, now.spooled) = (Some(next.timeline), next.start, next.start);
        });
        let mut session =
            Session { receiver: self, stream, next, at: next.start, synced: Instant::now(), heard: Instant::now() };
        let received = session.receive(stop, drain).await;
        let removed = received.as_ref().err().is_some_and(is_removed_wal);
        if removed && session.at == next.start {
            // The server noticed only after it had begun.
            drop(session);
            return match received {
                Err(error) => self.removed(&next, error).await,
                Ok(ended) => Ok(ended),
            };
        }
        drop(session);
        self.shared.spool.cut_to_safe();
        received
    }

    fn expect_system(&self, found: u64, shown: &str) -> Result<()> {
        let archived = self.shared.system.system_id;
        if found == archived {
            return Ok(());
        }
        let message =
            format!("{shown} is the Postgres system {found}, and the archive holds the WAL of the system {archived}");
        Err(Error::new(Kind::Config, message).hint(
            "point postgres.url at the right server; a system that initdb or pg_upgrade made anew needs an archive of its own",
        ))
    }

    /// The timelines that `current` comes from; its history and those of its ancestors are archived first.
    async fn histories(&self, replication: &mut Replication, current: u32) -> Result<Vec<Switch>> {
        if current == 1 {
            return Ok(Vec::new());
        }
        let switches = self.history(replication, current).await?;
        for ancestor in switches.iter().map(|switch| switch.timeline).filter(|timeline| *timeline > 1) {
            // A restore along this way can do without; a server may have lost the file.
            if let Err(error) = self.history(replication, ancestor).await {
                if error.is_transient() {
                    return Err(error);
                }
                tracing::warn!(timeline = ancestor, %error, "the history of an earlier timeline cannot be archived");
            }
        }
        Ok(switches)
    }

    async fn history(&self, replication: &mut Replication, timeline: u32) -> Result<Vec<Switch>> {
        let key = layout::history(self.shared.system.system_id, timeline);
        if let Some(text) = self.shared.store.get(&key).await? {
            return parse_history(timeline, &text);
        }
        let text = replication.timeline_history(timeline).await?;
        let switches = parse_history(timeline, &text)?;
        self.shared.store.create(&key, text).await?;
        tracing::info!(timeline, "archived the history of a timeline");
        Ok(switches)
    }

    /// What to receive next.
    fn next(&self, history: &[Switch], current: u32, flush: Lsn) -> Result<Next> {
        let file = u64::from(self.shared.system.wal_segment_size);
        let mut known: BTreeMap<u32, Lsn> = BTreeMap::new();
        for position in &*self.shared.archived.borrow() {
            known.insert(position.partition.cast_unsigned(), Lsn::at(position.end));
        }
        for extent in self.shared.spool.extents() {
            let end = known.entry(extent.timeline).or_insert(extent.safe);
            *end = (*end).max(extent.safe);
        }
        if let Some(newer) = known.keys().next_back().filter(|newest| **newest > current) {
            let message = format!("the server is on timeline {current}, and timeline {newer} is archived already");
            return Err(Error::new(Kind::Unavailable, message)
                .hint("it is a server that was left behind: point postgres.url at the one that was promoted"));
        }
        let Some(next) = timelines::next(history, current, &known, file) else {
            if !known.is_empty() {
                tracing::warn!(
                    timeline = current,
                    "no archived timeline leads to the server's; it begins a history of its own"
                );
            }
            // The file that the server is writing is the first of the archive: it has it whole.
            let start = Lsn(flush.0 / file * file);
            return Ok(Next { timeline: current, start, switch: None, beyond: None });
        };
        if let Some(end) = next.beyond {
            tracing::warn!(timeline = next.timeline, %end, "the WAL that the archive has behind the switch is of no server that lives");
        }
        Ok(next)
    }

    /// The spool's last file must end where receiving goes on.
    fn prepare_spool(&self, next: &Next) -> Result<()> {
        let spool = &self.shared.spool;
        spool.cut_to_safe();
        match spool.end() {
            Some((timeline, end)) if (timeline, end) == (next.timeline, next.start) => Ok(()),
            end => {
                // Behind the archive: another process has come further.
                if end.is_some_and(|(timeline, _)| timeline == next.timeline) {
                    spool.clear();
                }
                spool.begin(next.timeline, next.start, false)
            }
        }
    }

    /// The server has no more what comes next. A slot that was lost is made anew; if that does not help, the range up to
    /// what the server has is given up: the archiver records it as a gap.
    async fn removed(&self, next: &Next, error: Error) -> Result<Ended> {
        tracing::error!(timeline = next.timeline, start = %next.start, %error, "the server has removed WAL that is not archived");
        let mut sql = self.server.sql().await?;
        let slots = sql.slots().await?;
        let own = slots.slots.iter().find(|slot| slot.name == self.config.slot);
        if self.config.create_slot && own.is_some_and(|slot| slot.is_lost()) {
            let mut replication = self.server.replication().await?;
            replication.drop_slot(&self.config.slot).await?;
            replication.create_slot(&self.config.slot).await?;
            tracing::warn!(slot = self.config.slot, "the lost slot was made anew");
            return Ok(Ended::GoOn);
        }
        let file = u64::from(self.shared.system.wal_segment_size);
        let kept = own.and_then(|slot| slot.restart).map(|kept| Lsn(kept.0 / file * file));
        let listed = format!(
            "SELECT min(name) FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{{24}}$' AND left(name, 8) = '{:08X}'",
            next.timeline
        );
        let oldest = match sql.query(&listed, "list the WAL files").await {
            Ok(rows) => rows.into_iter().flatten().next().flatten().and_then(|name| self.file_start(&name)),
            // Only pg_monitor may list them. What the slot keeps is there for sure, but there may be more.
            Err(listing) if listing.kind() == Kind::Denied => {
                tracing::warn!(error = %listing, hint = "grant pg_monitor to the role of postgres.url", "the oldest WAL file of the server is not known");
                kept.filter(|_| next.switch.is_none())
            }
            Err(listing) => return Err(listing),
        };
        match oldest.or(next.switch).filter(|start| *start > next.start) {
            Some(start) => {
                self.shared.spool.begin(next.timeline, start, true)?;
                Ok(Ended::GoOn)
            }
            // It was there when we looked again.
            None => {
                Err(Error::new(Kind::Unavailable, "the WAL that was said to be removed may be there again")
                    .source(error))
            }
        }
    }

    /// Where a WAL file begins, by its name (`XLogFromFileName`, xlog_internal.h).
    fn file_start(&self, name: &str) -> Option<Lsn> {
        let file = u64::from(self.shared.system.wal_segment_size);
        let part = |range| u64::from_str_radix(name.get(range)?, 16).ok();
        Some(Lsn((part(8..16)? << 32) + part(16..24)? * file))
    }
}

/// One connection that streams one timeline.
struct Session<'a> {
    receiver: &'a mut Receiver,
    stream: WalStream,
    next: Next,
    /// Up to where WAL was received.
    at: Lsn,
    /// When the spool was last made safe.
    synced: Instant,
    /// When the server last said something.
    heard: Instant,
}

impl Session<'_> {
    async fn receive(&mut self, stop: &mut watch::Receiver<bool>, drain: &watch::Sender<bool>) -> Result<Ended> {
        let mut archived = self.receiver.shared.archived.subscribe();
        let mut tick = interval(BETWEEN_STATUSES);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // A stop comes first. What was archived or made safe is told before more is read: a commit waits for it.
            tokio::select! {
                biased;
                () = asked(stop) => return self.leave(drain).await,
                _ = archived.changed() => self.tell(false).await?,
                _ = tick.tick() => self.ask().await?,
                event = self.stream.next() => {
                    self.heard = Instant::now();
                    let mut wanted = false;
                    let mut full = None;
                    match event? {
                        Event::Data { start, server_end, bytes, .. } => {
                            let shared = &self.receiver.shared;
                            if start != self.at {
                                let message = format!("WAL came from {start} on, and {} was next", self.at);
                                return Err(Error::new(Kind::Corrupt, message));
                            }
                            check_pages(shared.system.server_version, start, bytes)?;
                            self.receiver.streamed = true;
                            shared.status.server_ends(server_end, Utc::now());
                            self.at = start + bytes.len() as u64;
                            full = spool(shared, bytes).err().map(|error| (error, bytes.to_vec()));
                        }
                        Event::Keepalive { server_end, reply_requested, .. } => {
                            self.receiver.shared.status.server_ends(server_end, Utc::now());
                            wanted = reply_requested;
                        }
                        Event::TimelineEnded { next_timeline, switch } => return self.switch(next_timeline, switch),
                    }
                    if let Some((error, bytes)) = full {
                        self.wait_for_room(error, &bytes, stop).await?;
                    }
                    let moved = self.sync_if_due()?;
                    if wanted || (moved && self.receiver.config.ack == Ack::Spool) {
                        self.tell(false).await?;
                    }
                }
            }
        }
    }

    /// Makes the spool safe when nothing more has arrived, or when it is time; whether that moved anything.
    fn sync_if_due(&mut self) -> Result<bool> {
        if self.stream.is_drained() || self.synced.elapsed() >= BETWEEN_SYNCS { self.sync() } else { Ok(false) }
    }

    fn sync(&mut self) -> Result<bool> {
        let shared = &self.receiver.shared;
        let safe = tokio::task::block_in_place(|| shared.spool.sync())?;
        self.synced = Instant::now();
        let mut moved = false;
        shared.status.note(|now| {
            moved = now.spooled < safe;
            (now.received, now.spooled) = (safe, safe);
        });
        Ok(moved)
    }

    /// Keeps the connection while the spool is full.
    async fn wait_for_room(&mut self, mut error: Error, bytes: &[u8], stop: &mut watch::Receiver<bool>) -> Result<()> {
        if error.kind() != Kind::Full {
            return Err(error);
        }
        tracing::error!(%error, hint = error.hint_text(), "the spool is full: receiving waits");
        loop {
            self.receiver.shared.status.note(|now| now.trouble = Some(error.to_string()));
            // What fits is archived, and so makes room.
            if let Err(error) = self.sync() {
                tracing::debug!(%error, "the spool cannot be made safe");
            }
            self.tell(false).await?;
            tokio::select! {
                () = tokio::time::sleep(BETWEEN_TRIES) => {}
                () = asked(stop) => return Err(error),
            }
            match spool_from(&self.receiver.shared, self.at, bytes) {
                Ok(()) => break,
                Err(again) if again.kind() == Kind::Full => error = again,
                Err(other) => return Err(other),
            }
        }
        tracing::info!("the spool has room again");
        self.receiver.shared.status.note(|now| now.trouble = None);
        self.heard = Instant::now();
        Ok(())
    }

    /// Asks the server for a sign of life.
    async fn ask(&mut self) -> Result<()> {
        if self.heard.elapsed() > SILENT_FOR {
            return Err(Error::new(
                Kind::Unavailable,
                format!("the server has said nothing for {} s", SILENT_FOR.as_secs()),
            ));
        }
        self.tell(true).await
    }

    /// Tells the server how far the WAL is safe.
    async fn tell(&mut self, reply: bool) -> Result<()> {
        let flush = self.safe();
        let status = Status { write: self.at, flush, apply: Lsn(0), reply };
        self.stream.send_status(status).await
    }

    /// Up to where the server need not keep anything: 0/0, which it passes over, where nothing of the timeline is safe.
    fn safe(&self) -> Lsn {
        let shared = &self.receiver.shared;
        match self.receiver.config.ack {
            Ack::Spool => shared.spool.end().map_or(Lsn(0), |_| shared.status.now().spooled),
            Ack::Archive => {
                let archived = shared.archived.borrow();
                let own = archived.iter().find(|position| position.partition == self.next.timeline.cast_signed());
                own.map_or(Lsn(0), |position| Lsn::at(position.end).min(self.at))
            }
        }
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
        drain.send_replace(true);
        let mut archived = self.receiver.shared.archived.subscribe();
        let deadline = Instant::now() + DRAIN_WITHIN;
        while self.safe() < self.at && Instant::now() < deadline {
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

/// Writes received bytes; refuses where the spool has come to its limit.
fn spool(shared: &Shared, bytes: &[u8]) -> Result<()> {
    if shared.spool.bytes() + bytes.len() as u64 > SPOOL_LIMIT.max(2 * MOST_BYTES) {
        return Err(Error::new(Kind::Full, format!("the spool holds {SPOOL_LIMIT} bytes that are not archived yet"))
            .hint("the archive does not keep up: see the errors of its store"));
    }
    tokio::task::block_in_place(|| shared.spool.append(bytes))
}

/// Writes what is missing of bytes that end at `end`, after a part of them may have been written.
fn spool_from(shared: &Shared, end: Lsn, bytes: &[u8]) -> Result<()> {
    let written = shared.spool.end().map_or(end, |(_, written)| written);
    let missing = usize::try_from(end - written).unwrap_or(0).min(bytes.len());
    spool(shared, &bytes[bytes.len() - missing..])
}
