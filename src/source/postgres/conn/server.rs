//! Where servers are, and how one gets in.

use std::collections::BTreeSet;
use std::path::Path;

use super::connection::{Connection, Purpose};
use super::login::{Secured, log_in};
use super::parameters;
use super::socket::{self, Attempt};
use super::target::{Host, Session, Target};
use super::tls::Tls;
use crate::config::{Hidden, Postgres};
use crate::error::{Error, Kind, Result};

/// The oldest version that is tested and that reports what the slot watch reads.
const OLDEST: u32 = 130_000;

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

    pub(in crate::source::postgres) fn with(
        config: &Postgres,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self> {
        let parameters = parameters::parameters(config.url.reveal(), environment)?;
        let target = Target::new(&parameters, environment, config.allow_md5)?;
        Ok(Self { tls: Tls::new(&target.ssl)?, target: target.into() })
    }

    /// Reads another URL than the configuration's, as [`Server::new`] does.
    ///
    /// # Errors
    /// [`Kind::Config`] for what cannot be.
    pub fn of_url(url: &Hidden) -> Result<Self> {
        let environment = |name: &str| std::env::var(name).ok();
        let target = Target::new(&parameters::parameters(url.reveal(), &environment)?, &environment, false)?;
        Ok(Self { tls: Tls::new(&target.ssl)?, target: target.into() })
    }

    /// A server of our own at a Unix socket, whatever the environment says of others.
    ///
    /// # Errors
    /// [`Kind::Config`] for a name that cannot be.
    pub fn at_socket((folder, port): (&Path, u16), user: &str, database: &str) -> Result<Self> {
        let quoted = |text: &str| format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"));
        let (folder, user, database) = (quoted(&folder.to_string_lossy()), quoted(user), quoted(database));
        // A role or a database may have a limit (`ALTER DATABASE … SET`) that is over before a first statement could take it back.
        let options = "options='-c statement_timeout=0'";
        let url = format!("host={folder} port={port} user={user} dbname={database} sslmode=disable {options}");
        let none = |_: &str| None;
        let target = Target::new(&parameters::parameters(&url, &none)?, &none, false)?;
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

    /// The same servers, and another database of theirs.
    #[must_use]
    pub fn of_database(&self, name: &str) -> Self {
        let mut target = Target::clone(&self.target);
        name.clone_into(&mut target.database);
        Self { target: target.into(), tls: self.tls.clone() }
    }

    /// Who logs in.
    pub fn user(&self) -> &str {
        &self.target.user
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
    pub(in crate::source::postgres) async fn connect(&self, purpose: Purpose) -> Result<Connection> {
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
        let mut connection = Connection::over(opened.socket, host.shown(), secured.is_tls);
        let reported = log_in(&mut connection, &self.target, host, purpose, &secured).await?;
        connection.is_reported(reported);
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
