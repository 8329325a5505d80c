//! A session with one server.

use std::collections::BTreeMap;
use std::io;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::ServerError;
use super::super::codec::{Backend, frame};
use super::socket::Socket;
use super::target::Session;
use crate::error::{Error, Kind, Result, ResultExt};

/// So much memory may the rows of an answer take: a million slots would not.
const MOST_OF_ROWS: usize = 64 << 20;

/// Enough for a login and for rows.
pub(super) const BUFFER: usize = 16 << 10;

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::source::postgres) enum Purpose {
    /// Commands of the replication protocol.
    Replication,
    /// SQL.
    Sql,
    /// Commands of the replication protocol that are of one database: those of logical decoding.
    Decoding,
}

/// A session with one server.
pub(in crate::source::postgres) struct Connection {
    socket: Box<dyn Socket>,
    /// `[start, filled)` was read; the message that was last given out is the first `taken` of it.
    buffer: Vec<u8>,
    start: usize,
    taken: usize,
    filled: usize,
    out: BytesMut,
    /// The server, as it stands in messages.
    pub(in crate::source::postgres) shown: String,
    pub(super) parameters: BTreeMap<String, String>,
    /// As `server_version_num`: 150018.
    pub(in crate::source::postgres) version: u32,
    pub(in crate::source::postgres) is_tls: bool,
}

impl Connection {
    /// A session over a socket, as nobody has logged in yet.
    pub(super) fn over(socket: Box<dyn Socket>, shown: String, is_tls: bool) -> Self {
        Self {
            socket,
            buffer: vec![0; BUFFER],
            start: 0,
            taken: 0,
            filled: 0,
            out: BytesMut::new(),
            shown,
            parameters: BTreeMap::new(),
            version: 0,
            is_tls,
        }
    }

    /// Takes what the server has reported of itself as somebody logged in.
    pub(super) fn is_reported(&mut self, parameters: BTreeMap<String, String>) {
        self.parameters = parameters;
        self.version = version(self.parameter("server_version"));
    }

    /// Returns what the server reported under this name.
    pub(in crate::source::postgres) fn parameter(&self, name: &str) -> &str {
        self.parameters.get(name).map_or("", String::as_str)
    }

    /// Makes room for long messages at `bytes` a read.
    pub(in crate::source::postgres) fn widen(&mut self, bytes: usize) {
        if self.buffer.len() < bytes {
            self.buffer.resize(bytes, 0);
        }
    }

    /// The next message; it borrows from the buffer until the next call. May be dropped half way.
    pub(in crate::source::postgres) async fn next(&mut self) -> Result<Backend<'_>> {
        self.start += std::mem::take(&mut self.taken);
        loop {
            let length = self.framed(frame(&self.buffer[self.start..self.filled]))?;
            match length {
                Some(length) if length <= self.filled - self.start => {
                    self.taken = length;
                    break;
                }
                length => self.fill(length.unwrap_or(5)).await?,
            }
        }
        self.current()
    }

    /// The message that [`Connection::next`] gave last, once more.
    pub(in crate::source::postgres) fn current(&self) -> Result<Backend<'_>> {
        match &self.buffer[self.start..self.start + self.taken] {
            [tag, _, _, _, _, body @ ..] => self.framed(Backend::parse(*tag, body)),
            _ => Err(Error::new(Kind::Internal, "no message was read yet")),
        }
    }

    fn framed<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|error| error.context(&self.shown))
    }

    /// Reads until something comes, with room for a message of `length` bytes.
    async fn fill(&mut self, length: usize) -> Result<()> {
        if self.start == self.filled {
            (self.start, self.filled) = (0, 0);
        }
        // What is left of the buffer is too short: the piece that is there moves to the front.
        if self.filled == self.buffer.len() || self.buffer.len() - self.start < length {
            self.buffer.copy_within(self.start..self.filled, 0);
            (self.start, self.filled) = (0, self.filled - self.start);
        }
        self.widen(length);
        match self.socket.read(&mut self.buffer[self.filled..]).await {
            Ok(0) => Err(Error::new(Kind::Unavailable, format!("{} closed the connection", self.shown))),
            Ok(count) => {
                self.filled += count;
                Ok(())
            }
            Err(source) => Err(self.broke(source)),
        }
    }

    /// Adds a message to those that [`Connection::flush`] sends.
    pub(in crate::source::postgres) fn queue(
        &mut self,
        write: impl FnOnce(&mut BytesMut) -> io::Result<()>,
    ) -> Result<()> {
        write(&mut self.out).or_err(Kind::Config, || format!("a message to {} cannot be written", self.shown))
    }

    /// Sends what is queued. May be dropped half way; the next call sends the rest.
    pub(in crate::source::postgres) async fn flush(&mut self) -> Result<()> {
        while !self.out.is_empty() {
            if let Err(source) = self.socket.write_buf(&mut self.out).await {
                return Err(self.broke(source));
            }
        }
        match self.socket.flush().await {
            Ok(()) => Ok(()),
            Err(source) => Err(self.broke(source)),
        }
    }

    fn broke(&self, source: io::Error) -> Error {
        Error::new(Kind::Unavailable, format!("the connection to {} broke", self.shown)).source(source)
    }

    /// Sends a command and gathers its rows, as texts; `doing` says what for.
    pub(in crate::source::postgres) async fn query(
        &mut self,
        command: &str,
        doing: &str,
    ) -> Result<Vec<Vec<Option<String>>>> {
        self.send(command).await?;
        let (mut rows, mut failure, mut left) = (Vec::new(), None, MOST_OF_ROWS);
        loop {
            match self.next().await? {
                Backend::DataRow(row) => {
                    let texts = row.texts();
                    let bytes = texts.iter().flatten().map(String::len).sum::<usize>();
                    let takes = bytes + (texts.len() + 1) * size_of::<Option<String>>();
                    let Some(room) = left.checked_sub(takes) else { return Err(self.too_many_rows(doing)) };
                    left = room;
                    rows.push(texts);
                }
                // After a fatal error nothing comes any more.
                Backend::Error(error) if error.severity != "ERROR" => return Err(self.refused(error, doing)),
                Backend::Error(error) => failure = Some(error),
                Backend::ReadyForQuery => break,
                Backend::CopyBoth | Backend::CopyOut | Backend::CopyIn => return Err(self.unexpected(doing)),
                _ => {}
            }
        }
        match failure {
            Some(error) => Err(self.refused(error, doing)),
            None => Ok(rows),
        }
    }

    fn too_many_rows(&self, doing: &str) -> Error {
        let message = format!("{}: cannot {doing}: the answer takes more than {MOST_OF_ROWS} bytes", self.shown);
        Error::new(Kind::Unsupported, message)
            .hint("look for a proxy between tidelog and the server that does not speak PostgreSQL's protocol")
    }

    /// Sends a command; its answer is read with [`Connection::next`].
    pub(in crate::source::postgres) async fn send(&mut self, command: &str) -> Result<()> {
        self.queue(|out| postgres_protocol::message::frontend::query(command, out))?;
        self.flush().await
    }

    /// The server's refusal as an error.
    pub(in crate::source::postgres) fn refused(&self, error: ServerError, doing: &str) -> Error {
        error.into_error(format!("{}: cannot {doing}", self.shown))
    }

    /// The server answers something that the protocol does not have there.
    pub(in crate::source::postgres) fn unexpected(&self, doing: &str) -> Error {
        Error::new(Kind::Corrupt, format!("{}: an answer out of turn; cannot {doing}", self.shown))
            .hint("look for a proxy between tidelog and the server: replication does not pass through poolers")
    }

    /// Returns whether the session is of the kind that is wanted. From 14 on the server reports it.
    pub(super) async fn suits(&mut self, session: Session) -> Result<bool> {
        if session == Session::Any {
            return Ok(true);
        }
        let (is_standby, is_read_only) = if self.version >= 140_000 {
            let is_standby = self.parameter("in_hot_standby") == "on";
            (is_standby, is_standby || self.parameter("default_transaction_read_only") == "on")
        } else {
            let rows = self.query("SHOW transaction_read_only", "ask whether it is a standby").await?;
            let is_read_only = rows.first().and_then(|row| row.first()) == Some(&Some("on".to_owned()));
            (is_read_only, is_read_only)
        };
        Ok(match session {
            Session::Any => true,
            Session::ReadWrite => !is_read_only,
            Session::ReadOnly => is_read_only,
            Session::Primary => !is_standby,
            Session::Standby | Session::PreferStandby => is_standby,
        })
    }
}

/// `15.18 (Debian 15.18-0+deb12u1)` as 150018, `18beta1` as 180000: PostgreSQL's `server_version_num`.
pub(super) fn version(text: &str) -> u32 {
    let number = |text: &str| {
        let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        text[..end].parse().unwrap_or(0u32)
    };
    let (major, minor) = text.split_once('.').unwrap_or((text, ""));
    number(major).saturating_mul(10_000).saturating_add(number(minor).min(9_999))
}
