//! From the server into the spool: the only thread that speaks the streaming protocol.
//!
//! A session is one connection and one timeline. It asks who the server is, archives the histories of its timelines,
//! finds the next range to receive (`timeline_path`), and writes what comes into the spool until the timeline ends, the connection
//! breaks or the process stops (`session`). Then the next session begins.

mod detour;
mod leaving;
mod receiver;
mod session;
mod timeline_path;

use std::sync::Arc;

use tokio::runtime::{Builder, Handle};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::final_errors::is_final;
use super::shared::Shared;
use super::timelines::Next;
use crate::backup::server::system_of;
use crate::config::{self, Ack};
use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::manifest::origin::reaches;
use crate::pipeline::shutdown;
use crate::segment::wal::MOST_BYTES;
use crate::source::postgres::{Server, is_removed_wal, is_wrong_state};
use crate::stream::Lsn;
use crate::tasks::Task;
use crate::tasks::backoff::Backoff;
pub(super) use receiver::Receiver;
use receiver::{Ended, SILENT_FOR};
use session::{Session, prepare};

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
        let end = (&mut self.end).await.or_err(Kind::Internal, || "the receiving of WAL was aborted".into());
        let (receiver, received) = end?;
        self.receiver = Some(receiver);
        received
    }

    /// Ends it, and gives the receiver back once nothing is at work any more.
    pub(super) async fn break_off(self) -> Result<Receiver> {
        drop(self.go_on);
        match self.receiver {
            Some(receiver) => Ok(receiver),
            None => Ok(self.end.await.or_err(Kind::Internal, || "the receiving of WAL was aborted".into())?.0),
        }
    }
}

impl Receiver {
    pub(super) fn new(server: Server, config: config::Postgres, shared: Arc<Shared>) -> Self {
        let backoff = Backoff::new(shared.status.tasks.reporter(Task::WalReceive, ""));
        Self { backoff, server, config, shared, others: Handle::current(), streamed: false, detour: None }
    }

    /// Begins to receive on a thread of its own. It writes and syncs where it reads, so that a commit that waits for the
    /// spool waits for no other thread to wake up.
    pub(super) fn begin(mut self, stop: watch::Receiver<bool>, drain: watch::Sender<bool>) -> Result<Receiving> {
        let (ended, end) = oneshot::channel();
        let (go_on, mut broken_off) = oneshot::channel::<()>();
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|source| Error::io(source, "cannot start the receiver of WAL"))?;
        let tasks = Arc::clone(&self.shared.status.tasks);
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
        tasks.thread("wal-receiver", receive)?;
        Ok(Receiving { end, receiver: None, go_on })
    }

    /// Receives until `stop` turns true; then `drain` is set, and the server is told what was archived last.
    ///
    /// # Errors
    /// A server that cannot be the right one, before the first WAL came.
    pub(super) async fn run(&mut self, mut stop: watch::Receiver<bool>, drain: &watch::Sender<bool>) -> Result<()> {
        loop {
            let began = Instant::now();
            let ended = Box::pin(self.session(&mut stop, drain)).await;
            self.shared.status.note(|now| now.connected = false);
            match ended {
                Ok(Ended::Stopped) => break,
                Ok(Ended::GoOn) => self.backoff.succeeded(),
                Err(error) if !self.streamed && is_final(&error) => return Err(error),
                Err(error) => {
                    // What stands in the way may be abandoned meanwhile.
                    self.shared.look_again.notify_one();
                    if began.elapsed() > SILENT_FOR {
                        self.backoff.reset();
                    }
                    tokio::select! {
                        () = self.backoff.wait_after("no WAL is received", error) => {}
                        () = shutdown::requested(&mut stop) => break,
                    }
                }
            }
        }
        drain.send_replace(true);
        Ok(())
    }

    async fn session(&mut self, stop: &mut watch::Receiver<bool>, drain: &watch::Sender<bool>) -> Result<Ended> {
        let detour = self.detour.take();
        let server = detour.as_ref().map_or(&self.server, |detour| &detour.server);
        let connected = async {
            let mut replication = server.replication().await?;
            let system = system_of(&mut replication).await?;
            self.expect_system(system.system_id, replication.shown())?;
            // A slot that nobody reads would fill the disk of that server.
            if self.config.create_slot && detour.is_none() {
                replication.create_slot(&self.config.slot).await?;
            }
            let identity = replication.identify().await?;
            let history = self.histories(&mut replication, identity.timeline).await?;
            let next = self.next(&history, identity.timeline, identity.flush)?;
            if next.timeline == identity.timeline {
                reaches(identity.timeline, identity.flush, next.start)?;
            }
            // A timeline that was left ends there, however far the server has come on another one.
            Ok::<_, Error>((replication, next, next.switch.unwrap_or(identity.flush)))
        };
        let (replication, next, server_end) = tokio::select! {
            connected = connected => connected?,
            () = shutdown::requested(stop) => return Ok(Ended::Stopped),
        };
        // Who waits for the spool waits for every sync. In smaller WAL files the zeros behind a switch could be lost.
        let prepares = self.config.ack == Ack::Spool && u64::from(self.shared.system.wal_segment_size) >= MOST_BYTES;
        if prepares && self.shared.spool.wants_spare() {
            prepare(&self.shared.spool);
        }
        tokio::select! {
            prepared = self.prepare_spool(&next, server_end) => prepared?,
            () = shutdown::requested(stop) => return Ok(Ended::Stopped),
        }
        let host = replication.shown().to_owned();
        let slot = Some(self.config.slot.as_str()).filter(|_| detour.is_none());
        let stream = match replication.stream(slot, next.timeline, next.start).await {
            Ok(stream) => stream,
            Err(error) if self.has_removed(&error, &host).await? => {
                return self.removed_until((&next, &host), error, stop).await;
            }
            Err(error) => return Err(error),
        };
        tracing::info!(timeline = next.timeline, start = %next.start, host = host.as_str(), "receiving WAL");
        self.backoff.goes_on();
        self.shared.status.begins();
        self.shared.status.note(|now| {
            (now.connected, now.host) = (true, Some(host.clone()));
            (now.timeline, now.received, now.spooled) = (Some(next.timeline), next.start, next.start);
        });
        let mut session = Session::new(self, stream, next, prepares);
        session.only_until(detour.map(|detour| detour.until));
        let received = session.receive(stop, drain).await;
        let has_nothing = session.has_nothing();
        drop(session);
        match received {
            // The server noticed only after it had begun.
            Err(error) if has_nothing && self.has_removed(&error, &host).await? => {
                self.removed_until((&next, &host), error, stop).await
            }
            received => {
                self.shared.spool.cut_to_safe()?;
                received
            }
        }
    }

    /// Returns whether the server has no more of the WAL that it was asked for. Where its answer may be of the slot, the catalog
    /// tells what became of that.
    async fn has_removed(&self, error: &Error, host: &str) -> Result<bool> {
        if !is_wrong_state(error) {
            return Ok(is_removed_wal(error));
        }
        let slots = self.server.only(host).sql().await?.slots().await?;
        Ok(slots.slots.iter().any(|slot| slot.name == self.config.slot && slot.is_lost()))
    }

    fn expect_system(&self, found: u64, shown: &str) -> Result<()> {
        let archived = self.shared.system.system_id;
        if found == archived {
            return Ok(());
        }
        let message =
            format!("{shown} is the Postgres system {found}, and the archive holds the WAL of the system {archived}");
        Err(Error::new(Kind::Config, message).hint(
            "point postgres.url at the right server; a system that initdb or pg_upgrade made new needs an archive of its own",
        ))
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

    async fn removed_until(
        &mut self,
        (next, host): (&Next, &str),
        error: Error,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<Ended> {
        tokio::select! {
            ended = self.removed(next, error, host) => ended,
            () = shutdown::requested(stop) => Ok(Ended::Stopped),
        }
    }
}
