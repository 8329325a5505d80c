//! From a fresh socket to a session that takes commands: startup, authentication, the server's parameters.

use std::collections::BTreeMap;

use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{self, ScramSha256};
use postgres_protocol::message::frontend;

use super::connection::{Connection, Purpose};
use super::password::Secret;
use super::target::{ChannelBinding, Host, Target};
use crate::error::{Error, Kind, Result, ResultExt};
use crate::source::postgres::codec::{Authentication, Backend};

const SCRAM: &[u8] = b"SCRAM-SHA-256";
const SCRAM_PLUS: &[u8] = b"SCRAM-SHA-256-PLUS";

/// What is known of the socket before the login.
pub(super) struct Secured {
    pub(super) is_tls: bool,
    /// What channel binding binds to.
    pub(super) end_point: Option<Vec<u8>>,
}

/// So many parameters of a server are kept; PostgreSQL reports fifteen (`GUC_REPORT` in its `guc_tables.c`). What sends others without end
/// is no server, and runs into the time for a login.
const MOST_PARAMETERS: usize = 256;

/// So many bytes may one of them have, with its name.
const MOST_OF_PARAMETER: usize = 4 << 10;

/// Logs in. Gives the parameters that the server reports.
pub(super) async fn log_in(
    connection: &mut Connection,
    target: &Target,
    host: &Host,
    purpose: Purpose,
    secured: &Secured,
) -> Result<BTreeMap<String, String>> {
    let database = match purpose {
        // pg_hba.conf and password files know replication connections by this name.
        Purpose::Replication => "replication",
        Purpose::Sql | Purpose::Decoding => &target.database,
    };
    start_up(connection, target, database, purpose)?;
    connection.flush().await?;
    let mut login = Login {
        target,
        password: target.password(host, database),
        secured,
        is_local: matches!(host, Host::Unix { .. }),
        scram: None,
        is_bound: false,
    };
    let mut parameters = BTreeMap::new();
    loop {
        // The answer is built while the message is still borrowed from the connection's buffer.
        let answer = match connection.next().await? {
            Backend::Authentication(asked) => login.answer(asked)?,
            Backend::ParameterStatus { name, value } => {
                let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
                if parameters.len() < MOST_PARAMETERS && name.len() + value.len() <= MOST_OF_PARAMETER {
                    parameters.insert(text(name), text(value));
                }
                None
            }
            Backend::Error(error) => {
                return Err(error.into_error(format!("{} does not let {} in", host.shown(), target.user)));
            }
            Backend::ReadyForQuery => return Ok(parameters),
            _ => None,
        };
        if let Some(answer) = answer {
            connection.queue(|out| match &answer {
                Answer::Password(password) => frontend::password_message(password, out),
                Answer::Begin { mechanism, data } => frontend::sasl_initial_response(mechanism, data, out),
                Answer::Go { data } => frontend::sasl_response(data, out),
            })?;
            connection.flush().await?;
        }
    }
}

fn start_up(connection: &mut Connection, target: &Target, database: &str, purpose: Purpose) -> Result<()> {
    let mut startup = vec![
        ("user", target.user.as_str()),
        ("database", database),
        ("application_name", target.application_name.as_str()),
        ("client_encoding", "UTF8"),
    ];
    match purpose {
        Purpose::Replication => startup.push(("replication", "true")),
        Purpose::Decoding => startup.push(("replication", "database")),
        Purpose::Sql => {}
    }
    if let Some(options) = &target.options {
        startup.push(("options", options));
    }
    connection.queue(|out| frontend::startup_message(startup, out))
}

enum Answer {
    Password(Vec<u8>),
    Begin { mechanism: &'static str, data: Vec<u8> },
    Go { data: Vec<u8> },
}

/// Where the authentication stands.
struct Login<'a> {
    target: &'a Target,
    password: Option<Secret>,
    secured: &'a Secured,
    is_local: bool,
    scram: Option<ScramSha256>,
    /// SCRAM is tied to the TLS connection.
    is_bound: bool,
}

impl Login<'_> {
    fn answer(&mut self, asked: Authentication<'_>) -> Result<Option<Answer>> {
        match asked {
            // SCRAM works both ways: who lets us in before its own proof does not know the password.
            Authentication::Ok if self.scram.is_some() => Err(out_of_turn()),
            Authentication::Ok if self.target.channel_binding == ChannelBinding::Require && !self.is_bound => {
                Err(self.unbound())
            }
            Authentication::Ok => Ok(None),
            Authentication::Cleartext if self.secured.is_tls || self.is_local => {
                Ok(Some(Answer::Password(self.password()?.reveal().to_vec())))
            }
            Authentication::Cleartext => {
                Err(Error::new(Kind::Denied, "the server wants the password in clear text over a connection without TLS")
                    .hint("let pg_hba.conf say scram-sha-256, or set sslmode=verify-full in postgres.url"))
            }
            Authentication::Md5 { salt } if self.target.allow_md5 => {
                let hash = md5_hash(self.target.user.as_bytes(), self.password()?.reveal(), salt);
                Ok(Some(Answer::Password(hash.into_bytes())))
            }
            Authentication::Md5 { .. } => {
                Err(Error::new(Kind::Denied, "the server wants the password hashed with md5, which can be replayed and is broken")
                    .hint("set password_encryption = 'scram-sha-256' and the user's password again, or allow it with postgres.allow_md5 = true"))
            }
            Authentication::Sasl(mechanisms) => self.begin_scram(&mechanisms).map(Some),
            Authentication::SaslContinue(data) => {
                let scram = self.scram.as_mut().ok_or_else(out_of_turn)?;
                scram.update(data).or_err(Kind::Denied, || "the server's part of SCRAM is wrong".to_owned())?;
                Ok(Some(Answer::Go { data: scram.message().to_vec() }))
            }
            Authentication::SaslFinal(data) => {
                let mut scram = self.scram.take().ok_or_else(out_of_turn)?;
                scram.finish(data).or_err(Kind::Denied, || {
                    "the server does not know the password it asks for: it is not the one it claims to be".to_owned()
                })?;
                Ok(None)
            }
            Authentication::Other(number) => {
                Err(Error::new(Kind::Unsupported, format!("the server wants authentication method {number}, which tidelog does not have"))
                    .hint("let pg_hba.conf say scram-sha-256 or cert for tidelog's user"))
            }
        }
    }

    fn begin_scram(&mut self, mechanisms: &[&[u8]]) -> Result<Answer> {
        let offers = |name: &[u8]| mechanisms.contains(&name);
        let wanted = self.target.channel_binding != ChannelBinding::Disable;
        let end_point = self.secured.end_point.as_ref().filter(|_| wanted);
        let (mechanism, binding) = match end_point {
            Some(end_point) if offers(SCRAM_PLUS) => {
                self.is_bound = true;
                ("SCRAM-SHA-256-PLUS", sasl::ChannelBinding::tls_server_end_point(end_point.clone()))
            }
            _ if self.target.channel_binding == ChannelBinding::Require => return Err(self.unbound()),
            // We could, and the server says that it cannot: told, so that it notices if somebody took its offer away.
            Some(_) if offers(SCRAM) => ("SCRAM-SHA-256", sasl::ChannelBinding::unrequested()),
            None if offers(SCRAM) => ("SCRAM-SHA-256", sasl::ChannelBinding::unsupported()),
            _ => {
                let names: Vec<_> = mechanisms.iter().map(|name| String::from_utf8_lossy(name)).collect();
                return Err(Error::new(Kind::Unsupported, format!("the server offers only {}", names.join(", ")))
                    .hint("let pg_hba.conf say scram-sha-256 for tidelog's user"));
            }
        };
        let scram = ScramSha256::new(self.password()?.reveal(), binding);
        let data = scram.message().to_vec();
        self.scram = Some(scram);
        Ok(Answer::Begin { mechanism, data })
    }

    fn password(&self) -> Result<&Secret> {
        self.password.as_ref().ok_or_else(|| {
            Error::new(Kind::Denied, "the server wants a password, and none is given")
                .hint("set PGPASSWORD, put it into the password file (~/.pgpass, or passfile in postgres.url; rights 0600), or write postgres.url as { file = \"…\" } with the password in it")
        })
    }

    fn unbound(&self) -> Error {
        Error::new(Kind::Denied, "channel_binding is require, and the login is not bound to the TLS connection")
            .hint("it needs TLS and scram-sha-256 on the server; or set channel_binding=prefer in postgres.url")
    }
}

fn out_of_turn() -> Error {
    Error::new(Kind::Denied, "the server breaks off SCRAM before it has proven that it knows the password")
        .hint("look for what answers in the server's place")
}
