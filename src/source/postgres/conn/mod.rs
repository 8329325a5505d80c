//! Connections: the only room that sees a socket.
//!
//! ```text
//!   postgres.url, service file, PG* ─► parameters ─► target ─┐
//!   sslrootcert, sslcert, sslkey ────────────────────► tls ──┴─► Server::connect ─► login ─► Connection
//!                                                                 host by host      password, SCRAM
//!   Connection::next    socket ─► one buffer ─► a message that borrows from it
//!   Connection::queue, flush    messages ─► socket
//! ```
//!
//! Bytes are copied once, from the socket into the buffer. [`Connection::next`] and [`Connection::flush`] may be
//! dropped half way: what was read or not yet written stays where it is.

mod login;
mod parameters;
mod password;
mod socket;
mod target;
mod tls;

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use self::login::{Secured, log_in};
use self::socket::{Attempt, Socket};
use self::target::{Host, Session, Target};
use self::tls::Tls;
use super::codec::{Backend, frame};
use crate::config::Postgres;
use crate::error::{Error, Kind, Result, ResultExt};

/// So much memory may the rows of an answer take: a million slots would not.
const MOST_OF_ROWS: usize = 64 << 20;

/// Enough for a login and for rows.
const BUFFER: usize = 16 << 10;

/// The oldest version that is tested and that reports what the slot watch reads.
const OLDEST: u32 = 130_000;

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Commands of the replication protocol.
    Replication,
    /// SQL.
    Sql,
}

/// A PostgreSQL server, or several of which one is meant: where they are, and how one gets in. Nothing is connected yet.
#[derive(Clone)]
pub struct Server {
    target: std::sync::Arc<Target>,
    tls: Tls,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.target.fmt(f)
    }
}

impl Server {
    /// Reads `postgres.url` as libpq does, with the service file and the environment's `PG…` variables.
    ///
    /// # Errors
    /// [`Kind::Config`] for what cannot be, with the parameter and the way out.
    pub fn new(config: &Postgres) -> Result<Self> {
        Self::with(config, &|name| std::env::var(name).ok())
    }

    pub(super) fn with(config: &Postgres, environment: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        let parameters = parameters::parameters(config.url.reveal(), environment)?;
        let target = Target::new(&parameters, environment, config.allow_md5)?;
        Ok(Self { tls: Tls::new(&target.ssl)?, target: target.into() })
    }

    /// The hosts, as they stand in messages.
    pub fn shown(&self) -> String {
        let hosts: Vec<String> = self.target.hosts.iter().map(Host::shown).collect();
        hosts.join(", ")
    }

    /// One of the servers alone, by the name that a connection to it shows, whatever `target_session_attrs` wants: what one
    /// connection has told is decided with the same server, and not with another one.
    #[must_use]
    pub fn only(&self, shown: &str) -> Self {
        let mut target = Target::clone(&self.target);
        target.hosts.retain(|host| host.shown() == shown);
        target.session = Session::Any;
        Self { target: target.into(), tls: self.tls.clone() }
    }

    /// Each of the other servers that are named, by itself.
    pub fn others(&self, shown: &str) -> Vec<Self> {
        let names: BTreeSet<String> = self.target.hosts.iter().map(Host::shown).filter(|name| name != shown).collect();
        names.iter().map(|name| self.only(name)).collect()
    }

    /// Connects to the first host that can be reached and is of the kind that `target_session_attrs` wants.
    ///
    /// As libpq does, it goes on to the next host if one cannot be reached or is of the wrong kind, and not if a server
    /// refuses the user.
    pub(super) async fn connect(&self, purpose: Purpose) -> Result<Connection> {
        let mut hosts: Vec<&Host> = self.target.hosts.iter().collect();
        if self.target.is_random {
            shuffle(&mut hosts)?;
        }
        let rounds = match self.target.session {
            Session::PreferStandby => vec![Session::Standby, Session::Any],
            session => vec![session],
        };
        let mut failure = None;
        for session in rounds {
            for host in &hosts {
                match self.connect_to(host, purpose, session).await {
                    Ok(connection) => return Ok(connection),
                    Err(error) if error.is_transient() || error.kind() == Kind::NotFound => failure = Some(error),
                    Err(error) => return Err(error),
                }
            }
        }
        let failure = failure.unwrap_or_else(|| Error::new(Kind::Config, "postgres.url names no host"));
        Err(if hosts.len() > 1 { failure.context(format!("none of {} can be used", self.shown())) } else { failure })
    }

    async fn connect_to(&self, host: &Host, purpose: Purpose, session: Session) -> Result<Connection> {
        let mut attempts = Attempt::in_order(host, self.target.ssl.mode).iter();
        let connection = loop {
            let attempt = attempts.next().copied().unwrap_or(Attempt::Plain);
            match self.within_time(host, self.attempt(host, purpose, attempt)).await {
                // Another try with or without TLS: libpq's `allow` and `prefer`.
                Err(error) if error.kind() == Kind::Denied && attempts.len() > 0 => {}
                result => break result,
            }
        };
        let mut connection = connection?;
        if connection.version < OLDEST {
            let message = format!("{} is PostgreSQL {}", connection.shown, connection.version / 10_000);
            return Err(Error::new(Kind::Unsupported, message).hint("PostgreSQL 13 or newer is needed"));
        }
        if connection.suits(session).await? {
            return Ok(connection);
        }
        Err(Error::new(
            Kind::Unavailable,
            format!("{} is not of the kind that target_session_attrs asks for", host.shown()),
        )
        .hint("name the servers of the whole cluster in postgres.url, or wait until one is promoted"))
    }

    async fn within_time<T>(&self, host: &Host, work: impl Future<Output = Result<T>>) -> Result<T> {
        let Some(limit) = self.target.connect_timeout else { return work.await };
        tokio::time::timeout(limit, work).await.unwrap_or_else(|_| {
            let message = format!("{} did not answer within {} s", host.shown(), limit.as_secs());
            Err(Error::new(Kind::Unavailable, message).hint(
                "check host and port of postgres.url and what lies between; connect_timeout is the limit in seconds",
            ))
        })
    }

    async fn attempt(&self, host: &Host, purpose: Purpose, attempt: Attempt) -> Result<Connection> {
        let opened = socket::open(host, &self.target, &self.tls, attempt).await?;
        let secured = Secured { is_tls: opened.is_tls, end_point: opened.end_point };
        let mut connection = Connection {
            socket: opened.socket,
            buffer: vec![0; BUFFER],
            start: 0,
            taken: 0,
            filled: 0,
            out: BytesMut::new(),
            shown: host.shown(),
            parameters: BTreeMap::new(),
            version: 0,
            is_tls: secured.is_tls,
        };
        connection.parameters = log_in(&mut connection, &self.target, host, purpose, &secured).await?;
        connection.version = version(connection.parameter("server_version"));
        Ok(connection)
    }
}

/// Puts hosts into a random order (`load_balance_hosts=random`).
fn shuffle(hosts: &mut [&Host]) -> Result<()> {
    for last in (1..hosts.len()).rev() {
        let mut random = [0; 8];
        getrandom::fill(&mut random)
            .map_err(|error| Error::new(Kind::Unavailable, format!("the system gives no random bytes: {error}")))?;
        hosts.swap(last, (u64::from_ne_bytes(random) % (last as u64 + 1)) as usize);
    }
    Ok(())
}

/// `15.18 (Debian 15.18-0+deb12u1)` as 150018, `18beta1` as 180000: PostgreSQL's `server_version_num`.
fn version(text: &str) -> u32 {
    let number = |text: &str| {
        let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        text[..end].parse().unwrap_or(0u32)
    };
    let (major, minor) = text.split_once('.').unwrap_or((text, ""));
    number(major).saturating_mul(10_000).saturating_add(number(minor).min(9_999))
}

/// A session with one server.
pub(super) struct Connection {
    socket: Box<dyn Socket>,
    /// `[start, filled)` was read; the message that was last given out is the first `taken` of it.
    buffer: Vec<u8>,
    start: usize,
    taken: usize,
    filled: usize,
    out: BytesMut,
    /// The server, as it stands in messages.
    pub(super) shown: String,
    parameters: BTreeMap<String, String>,
    /// As `server_version_num`: 150018.
    pub(super) version: u32,
    pub(super) is_tls: bool,
}

impl Connection {
    /// What the server reported under this name.
    pub(super) fn parameter(&self, name: &str) -> &str {
        self.parameters.get(name).map_or("", String::as_str)
    }

    /// Makes room for long messages at `bytes` a read.
    pub(super) fn widen(&mut self, bytes: usize) {
        if self.buffer.len() < bytes {
            self.buffer.resize(bytes, 0);
        }
    }

    /// The next message; it borrows from the buffer until the next call. May be dropped half way.
    pub(super) async fn next(&mut self) -> Result<Backend<'_>> {
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
    pub(super) fn current(&self) -> Result<Backend<'_>> {
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
    pub(super) fn queue(&mut self, write: impl FnOnce(&mut BytesMut) -> io::Result<()>) -> Result<()> {
        write(&mut self.out).or_err(Kind::Config, || format!("a message to {} cannot be written", self.shown))
    }

    /// Sends what is queued. May be dropped half way; the next call sends the rest.
    pub(super) async fn flush(&mut self) -> Result<()> {
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
    pub(super) async fn query(&mut self, command: &str, doing: &str) -> Result<Vec<Vec<Option<String>>>> {
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
    pub(super) async fn send(&mut self, command: &str) -> Result<()> {
        self.queue(|out| postgres_protocol::message::frontend::query(command, out))?;
        self.flush().await
    }

    /// The server's refusal as an error.
    pub(super) fn refused(&self, error: super::ServerError, doing: &str) -> Error {
        error.into_error(format!("{}: cannot {doing}", self.shown))
    }

    /// The server answers something that the protocol does not have there.
    pub(super) fn unexpected(&self, doing: &str) -> Error {
        Error::new(Kind::Corrupt, format!("{}: an answer out of turn; cannot {doing}", self.shown))
            .hint("look for a proxy between tidelog and the server: replication does not pass through poolers")
    }

    /// Whether the session is of the kind that is wanted. From 14 on the server reports it.
    async fn suits(&mut self, session: Session) -> Result<bool> {
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

#[cfg(test)]
mod tests;
