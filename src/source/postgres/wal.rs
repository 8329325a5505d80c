//! WAL as it comes: `START_REPLICATION … PHYSICAL`.
//!
//! ```text
//!   START_REPLICATION ──► CopyBoth ──► data, keepalives … ──► CopyDone ──► (next timeline, its start) ──► ready
//!                    │                    ▲ status                ▲ CopyDone                          ▲
//!                    │                                                                                 │
//!                    └──────────── asked to start exactly at the timeline's end ────────────────────────┘
//! ```
//!
//! What the server sends next to each other comes next to each other: a piece that does not begin where the last one
//! ended is refused, so a caller that trusts [`Event::Data`] can lose nothing.

use postgres_protocol::message::frontend::copy_done;

use super::codec::{Backend, Stream, standby_status};
use super::replication::{Replication, slot_name};
use crate::error::{Error, Kind, Result};
use crate::stream::Lsn;

/// Room for eight of the server's pieces of 128 KiB (`MAX_SEND_SIZE`, walsender.c): few reads, and what is left at
/// the end of the buffer is seldom moved to its front.
const BUFFER: usize = 1 << 20;

/// What comes from the server.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// WAL.
    Data {
        /// The position of the first byte.
        start: Lsn,
        /// Where the server's own log ends.
        server_end: Lsn,
        /// The server's clock, in microseconds since 1970.
        sent_us: i64,
        /// The bytes.
        bytes: &'a [u8],
    },
    /// A keepalive.
    Keepalive {
        /// Where the server's own log ends.
        server_end: Lsn,
        /// The server's clock, in microseconds since 1970.
        sent_us: i64,
        /// The server closes the connection soon if no status comes.
        reply_requested: bool,
    },
    /// The timeline is at its end, and all of it was given. [`WalStream::finish`] frees the connection.
    TimelineEnded {
        /// The timeline that goes on.
        next_timeline: u32,
        /// Where it branches off.
        switch: Lsn,
    },
}

/// How far the receiver is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// Received and written.
    pub write: Lsn,
    /// Durable: the slot keeps nothing before it, and a synchronous commit waits for it.
    pub flush: Lsn,
    /// Applied: for `synchronous_commit = remote_apply`.
    pub apply: Lsn,
    /// The server is to answer at once, as a proof that the connection is alive.
    pub reply: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Streaming,
    /// The server is done; ours is queued, and the result is read.
    Ending {
        next: Option<(u32, Lsn)>,
    },
    Ended {
        next: Option<(u32, Lsn)>,
    },
}

/// A stream of one timeline's WAL.
pub struct WalStream {
    replication: Replication,
    timeline: u32,
    /// Where the next piece has to begin.
    position: Lsn,
    state: State,
}

impl Replication {
    /// Starts streaming WAL of `timeline` from `start` on.
    ///
    /// # Errors
    /// One for which [`is_removed_wal`](super::is_removed_wal) holds when the server has no such WAL any more; it may
    /// also come with the first [`WalStream::next`].
    pub async fn stream(self, slot: Option<&str>, timeline: u32, start: Lsn) -> Result<WalStream> {
        let slot = slot.map(slot_name).transpose()?.map(|slot| format!("SLOT {slot} ")).unwrap_or_default();
        WalStream::start(
            self,
            &format!("START_REPLICATION {slot}PHYSICAL {start} TIMELINE {timeline}"),
            timeline,
            start,
        )
        .await
    }
}

impl WalStream {
    pub(super) async fn start(mut replication: Replication, command: &str, timeline: u32, start: Lsn) -> Result<Self> {
        let connection = &mut replication.connection;
        connection.widen(BUFFER);
        connection.send(command).await?;
        let doing = format!("stream WAL of timeline {timeline} from {start}");
        let state = loop {
            match connection.next().await? {
                Backend::CopyBoth => break State::Streaming,
                Backend::Error(error) => return Err(connection.refused(error, &doing)),
                // Nothing is left to stream: the result comes at once.
                Backend::RowDescription => break State::Ending { next: None },
                Backend::ReadyForQuery => return Err(connection.unexpected(&doing)),
                _ => {}
            }
        };
        Ok(Self { replication, timeline, position: start, state })
    }

    /// The timeline that is streamed.
    pub fn timeline(&self) -> u32 {
        self.timeline
    }

    /// Returns what comes next. The bytes live until the next call; the call may be dropped half way, as `select!` does.
    ///
    /// The server says nothing while nothing happens and statuses arrive: a caller that wants to know whether the server is alive
    /// asks with [`Status::reply`].
    ///
    /// # Errors
    /// [`Kind::Unavailable`] when the server stops or the connection breaks; [`Kind::Corrupt`] when a piece does not
    /// follow the one before.
    pub async fn next(&mut self) -> Result<Event<'_>> {
        if self.state == State::Streaming && self.is_at_end().await? {
            self.replication.connection.queue(|out| {
                copy_done(out);
                Ok(())
            })?;
            self.state = State::Ending { next: None };
        }
        if self.state == State::Streaming {
            return self.data();
        }
        self.read_result().await?;
        match self.state {
            State::Ended { next: Some((next_timeline, switch)) } => Ok(Event::TimelineEnded { next_timeline, switch }),
            // Only a stream that we ended ends without a timeline that goes on.
            _ => Err(self.replication.connection.unexpected("stream WAL")),
        }
    }

    /// Reads until there is a message for the caller. True: the server has sent all of the timeline.
    async fn is_at_end(&mut self) -> Result<bool> {
        loop {
            let connection = &mut self.replication.connection;
            match connection.next().await? {
                Backend::CopyData(_) => return Ok(false),
                Backend::CopyDone => return Ok(true),
                Backend::Error(error) => {
                    let doing = format!("stream WAL of timeline {} at {}", self.timeline, self.position);
                    return Err(connection.refused(error, &doing));
                }
                // walsender.c, WalSndDone: the server shuts down, and everything was sent and confirmed.
                Backend::CommandComplete => {
                    return Err(Error::new(Kind::Unavailable, format!("{} is shutting down", connection.shown)));
                }
                _ => {}
            }
        }
    }

    /// The message that the connection's buffer holds.
    fn data(&mut self) -> Result<Event<'_>> {
        let Backend::CopyData(data) = self.replication.connection.current()? else {
            return Err(Error::new(Kind::Internal, "the stream's message has gone"));
        };
        match Stream::parse(data)? {
            Stream::Wal { start, server_end, sent_us, bytes } => {
                if start != self.position {
                    let message = format!("the server sends WAL from {start}, but {} comes next", self.position);
                    return Err(Error::new(Kind::Corrupt, message));
                }
                self.position = start + bytes.len() as u64;
                Ok(Event::Data { start, server_end, sent_us, bytes })
            }
            Stream::Keepalive { server_end, sent_us, reply_requested } => {
                Ok(Event::Keepalive { server_end, sent_us, reply_requested })
            }
        }
    }

    /// Reads up to where the connection is free again.
    async fn read_result(&mut self) -> Result<()> {
        let connection = &mut self.replication.connection;
        connection.flush().await?;
        while let State::Ending { next } = &mut self.state {
            match connection.next().await? {
                Backend::DataRow(row) => {
                    let texts = row.texts();
                    let text = |index: usize| texts.get(index).and_then(Option::as_deref);
                    let timeline = text(0).and_then(|text| text.parse().ok());
                    *next = timeline.zip(text(1).and_then(|text| text.parse().ok()));
                }
                Backend::Error(error) => return Err(connection.refused(error, "end the stream of WAL")),
                Backend::ReadyForQuery => self.state = State::Ended { next: *next },
                _ => {}
            }
        }
        Ok(())
    }

    /// Tells the server how far we are. May be dropped half way: the rest is sent with the next one.
    ///
    /// At the end of a timeline, when nobody listens to it any more, it does nothing.
    pub async fn send_status(&mut self, status: Status) -> Result<()> {
        if self.state != State::Streaming {
            return Ok(());
        }
        let positions = [status.write, status.flush, status.apply];
        let now_us = crate::time::now().timestamp_micros();
        self.replication.connection.queue(|out| {
            standby_status(out, positions, now_us, status.reply);
            Ok(())
        })?;
        self.replication.connection.flush().await
    }

    /// Ends the stream and gives the connection back. WAL that was on its way is dropped.
    pub async fn finish(mut self) -> Result<Replication> {
        if self.state == State::Streaming {
            self.replication.connection.queue(|out| {
                copy_done(out);
                Ok(())
            })?;
            self.state = State::Ending { next: None };
        }
        self.read_result().await?;
        Ok(self.replication)
    }
}
