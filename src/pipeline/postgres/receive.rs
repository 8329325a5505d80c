//! From the server into the spool: the only thread that speaks the streaming protocol.
//!
//! A session is one connection and one timeline. It asks who the server is, archives the histories of its timelines,
//! finds the next range to receive, and writes what comes into the spool until the timeline ends, the connection breaks
//! or the process stops. Then the next session begins.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::runtime::{Builder, Handle};
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinHandle, yield_now};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};

use super::spool::WalSpool;
use super::timelines::{self, Next};
use super::{DRAIN_WITHIN, SPOOL_LIMIT, Shared, asked, is_final, system_of};
use crate::config::{self, Ack};
use crate::error::{Error, Kind, Result, ResultExt as _};
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

/// What receives.
pub(super) struct Receiver {
    server: Server,
    config: config::Postgres,
    shared: Arc<Shared>,
    /// The runtime of everything else: the store's connections belong to it.
    others: Handle,
    /// Whether a session got as far as streaming: what is wrong later is no mistake of the configuration.
    streamed: bool,
}

/// Why a session ended without an error.
enum Ended {
    Stopped,
    /// The next one goes on with what the server has.
    GoOn,
}

/// A receiver at work.
pub(super) struct Receiving {
    end: oneshot::Receiver<(Receiver, Result<()>)>,
    /// The receiver, once it has ended.
    receiver: Option<Receiver>,
    /// It breaks off when this is gone.
    go_on: oneshot::Sender<()>,
}

impl Receiving {
    /// Waits until it ends by itself.
    pub(super) async fn ended(&mut self) -> Result<()> {
        let end = (&mut self.end).await.or_err(Kind::Internal, || "the receiving of WAL broke off".into());
        let (receiver, received) = end?;
        self.receiver = Some(receiver);
        received
    }

    /// Ends it, and gives the receiver back once nothing is at work any more.
    pub(super) async fn break_off(self) -> Result<Receiver> {
        drop(self.go_on);
        match self.receiver {
            Some(receiver) => Ok(receiver),
            None => Ok(self.end.await.or_err(Kind::Internal, || "the receiving of WAL broke off".into())?.0),
        }
    }
}

impl Receiver {
    pub(super) fn new(server: Server, config: config::Postgres, shared: Arc<Shared>) -> Self {
        Self { server, config, shared, others: Handle::current(), streamed: false }
    }

    /// Begins to receive on a thread of its own. It writes and syncs where it reads, so that a commit that waits for the
    /// spool waits for no other thread to wake up.
    pub(super) fn begin(mut self, stop: watch::Receiver<bool>, drain: watch::Sender<bool>) -> Result<Receiving> {
        let (ended, end) = oneshot::channel();
        let (go_on, mut broken_off) = oneshot::channel::<()>();
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|source| Error::io(source, "cannot start the receiver of WAL"))?;
        let receive = move || {
            let status = Arc::clone(&self.shared.status);
            let received = runtime.block_on(async {
                tokio::select! {
                    received = self.run(stop, &drain) => received,
                    _ = &mut broken_off => Ok(()),
                    never = status.beat() => match never {},
                }
            });
            status.rest();
            if ended.send((self, received)).is_err() {
                tracing::debug!("the receiver of WAL was given up");
            }
        };
        let thread = std::thread::Builder::new().name("wal-receiver".into()).spawn(receive);
        thread.map_err(|source| Error::io(source, "cannot start the receiver of WAL"))?;
        Ok(Receiving { end, receiver: None, go_on })
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
            Ok::<_, Error>((replication, next, identity.flush))
        };
        let (replication, next, server_end) = tokio::select! {
            connected = connected => connected?,
            () = asked(stop) => return Ok(Ended::Stopped),
        };
        // Who waits for the spool waits for every sync. In smaller WAL files the zeros behind a switch could be lost.
        let prepares = self.config.ack == Ack::Spool && u64::from(self.shared.system.wal_segment_size) >= MOST_BYTES;
        if prepares && self.shared.spool.wants_spare() {
            prepare(&self.shared.spool);
        }
        tokio::select! {
            prepared = self.prepare_spool(&next, server_end) => prepared?,
            () = asked(stop) => return Ok(Ended::Stopped),
        }
        let host = replication.shown().to_owned();
        let slot = Some(self.config.slot.as_str());
        let stream = match replication.stream(slot, next.timeline, next.start).await {
            Ok(stream) => stream,
            Err(error) if is_removed_wal(&error) => return self.removed_until(&next, error, stop).await,
            Err(error) => return Err(error),
        };
        tracing::info!(timeline = next.timeline, start = %next.start, host, "receiving WAL");
        self.shared.status.note(|now| {
            (now.connected, now.host, now.trouble) = (true, Some(host), None);
            (now.timeline, now.received, now.spooled) = (Some(next.timeline), next.start, next.start);
        });
        let mut session = Session {
            receiver: self,
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
        };
        let received = session.receive(stop, drain).await;
        let removed = received.as_ref().err().is_some_and(is_removed_wal);
        if removed && session.at == next.start {
            // The server noticed only after it had begun.
            drop(session);
            return match received {
                Err(error) => self.removed_until(&next, error, stop).await,
                Ok(ended) => Ok(ended),
            };
        }
        drop(session);
        self.shared.spool.cut_to_safe()?;
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
        let (store, of) = (self.shared.store.clone(), key.clone());
        if let Some(text) = self.apart(async move { store.get(&of).await }).await? {
            return parse_history(timeline, &text);
        }
        let text = replication.timeline_history(timeline).await?;
        let switches = parse_history(timeline, &text)?;
        let store = self.shared.store.clone();
        self.apart(async move { store.create(&key, text).await }).await?;
        tracing::info!(timeline, "archived the history of a timeline");
        Ok(switches)
    }

    /// Does something where the store's connections live.
    async fn apart<T: Send + 'static>(&self, work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
        self.others.spawn(work).await.or_err(Kind::Internal, || "a request to the store broke off".into())?
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
    async fn prepare_spool(&self, next: &Next, server_end: Lsn) -> Result<()> {
        let spool = &self.shared.spool;
        spool.cut_to_safe()?;
        let end = spool.end();
        if end == Some((next.timeline, next.start)) {
            return Ok(());
        }
        // Behind the archive: another process has come further.
        if end.is_some_and(|(timeline, _)| timeline == next.timeline) {
            spool.clear();
        }
        self.begin_file(next.timeline, next.start, false, server_end).await
    }

    /// Begins a part of the spool once there is room for it.
    async fn begin_file(&self, timeline: u32, start: Lsn, after_gap: bool, server_end: Lsn) -> Result<()> {
        while !self.shared.spool.begin(timeline, start, after_gap, server_end)? {
            self.shared.spool.room().await;
        }
        Ok(())
    }

    async fn removed_until(&self, next: &Next, error: Error, stop: &mut watch::Receiver<bool>) -> Result<Ended> {
        tokio::select! {
            ended = self.removed(next, error) => ended,
            () = asked(stop) => Ok(Ended::Stopped),
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
                self.begin_file(next.timeline, start, true, start).await?;
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
}

impl Session<'_> {
    async fn receive(&mut self, stop: &mut watch::Receiver<bool>, drain: &watch::Sender<bool>) -> Result<Ended> {
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
                () = asked(stop) => return self.leave(drain).await,
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
                            shared.status.server_ends(server_end, clock(sent_us));
                            (self.at, self.server_end) = (start + bytes.len() as u64, server_end);
                            match spool(&shared, bytes, server_end) {
                                Ok(taken) => self.waiting.extend_from_slice(&bytes[taken..]),
                                Err(error) => full = Some((error, bytes.to_vec())),
                            }
                        }
                        Event::Keepalive { server_end, sent_us, reply_requested } => {
                            shared.status.server_has_sent(server_end, clock(sent_us));
                            wanted = reply_requested;
                        }
                        Event::TimelineEnded { next_timeline, switch } => return self.switch(next_timeline, switch),
                    }
                    if let Some((error, bytes)) = full {
                        self.wait_for_room(error, &bytes, stop).await?;
                    }
                    if self.safe < self.at && self.synced.elapsed() >= BETWEEN_SYNCS {
                        self.sync_and_tell().await?;
                    }
                    if wanted {
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
        match spool(&self.receiver.shared, &waiting, self.server_end) {
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
            match spool_from(&self.receiver.shared, (self.at, self.server_end), bytes) {
                Ok(rest) => {
                    self.waiting.extend_from_slice(rest);
                    break;
                }
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
        self.tell(true).await
    }

    /// Tells the server how far the WAL is safe.
    async fn tell(&mut self, reply: bool) -> Result<()> {
        let flush = self.acknowledged();
        let status = Status { write: self.at, flush, apply: Lsn(0), reply };
        self.stream.send_status(status).await
    }

    /// Up to where the server need not keep anything: 0/0, which it passes over, where nothing of the timeline is safe.
    fn acknowledged(&self) -> Lsn {
        let shared = &self.receiver.shared;
        match self.receiver.config.ack {
            Ack::Spool => self.safe,
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
fn prepare(spool: &WalSpool) {
    if let Err(error) = spool.prepare() {
        tracing::debug!(%error, "no file of the spool is ready in advance");
    }
}

/// Writes received bytes, or the first of them where the rest has to wait; gives how many. Refuses where the spool has come
/// to its limit.
fn spool(shared: &Shared, bytes: &[u8], server_end: Lsn) -> Result<usize> {
    if shared.spool.bytes() + bytes.len() as u64 > SPOOL_LIMIT.max(2 * MOST_BYTES) {
        return Err(Error::new(Kind::Full, format!("the spool holds {SPOOL_LIMIT} bytes that are not archived yet"))
            .hint("the archive does not keep up: see the errors of its store"));
    }
    shared.spool.append(bytes, server_end)
}

/// Writes what is missing of bytes that end at `end`, after a part of them may have been written; gives the rest.
fn spool_from<'a>(shared: &Shared, (end, server_end): (Lsn, Lsn), bytes: &'a [u8]) -> Result<&'a [u8]> {
    let written = shared.spool.end().map_or(end, |(_, written)| written);
    let missing = usize::try_from(end - written).unwrap_or(0).min(bytes.len());
    let missing = &bytes[bytes.len() - missing..];
    Ok(&missing[spool(shared, missing, server_end)?..])
}
