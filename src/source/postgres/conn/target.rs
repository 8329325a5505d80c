//! Where and how to connect: parameters by name in, checked and complete settings out.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::parameters::{Lookup, Parameters};
use super::password::{Secret, Wanted, from_file};
use crate::error::{Error, Kind, Result};

/// Where Debian's servers have their sockets.
const SOCKET_FOLDER: &str = "/var/run/postgresql";

/// How long one attempt to connect may take if nothing is said: a server that is gone must not stop an archiver that
/// has others to ask.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// Everything that is needed to connect.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) hosts: Vec<Host>,
    pub(super) user: String,
    pub(super) database: String,
    password: Option<Secret>,
    passfile: Option<PathBuf>,
    pub(super) options: Option<String>,
    pub(super) application_name: String,
    /// None: without end.
    pub(super) connect_timeout: Option<Duration>,
    pub(super) session: Session,
    pub(super) is_random: bool,
    pub(super) channel_binding: ChannelBinding,
    pub(super) ssl: Ssl,
    pub(super) keepalive: Keepalive,
    pub(super) allow_md5: bool,
}

/// One of the servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Host {
    /// The name is what a certificate must name; the address saves the look-up.
    Tcp { name: String, address: Option<IpAddr>, port: u16 },
    /// The directory of the socket.
    Unix { folder: PathBuf, port: u16 },
}

impl Host {
    /// As it stands in messages.
    pub(super) fn shown(&self) -> String {
        match self {
            Self::Tcp { name, port, .. } if name.contains(':') => format!("[{name}]:{port}"),
            Self::Tcp { name, port, .. } => format!("{name}:{port}"),
            Self::Unix { folder, port } => format!("{}", socket(folder, *port).display()),
        }
    }
}

/// The socket of the server at `port`.
pub(super) fn socket(folder: &Path, port: u16) -> PathBuf {
    folder.join(format!(".s.PGSQL.{port}"))
}

/// What a session must be (`target_session_attrs`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Session {
    Any,
    ReadWrite,
    ReadOnly,
    Primary,
    Standby,
    PreferStandby,
}

/// Whether SCRAM is tied to the TLS connection (RFC 5802, section 6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ChannelBinding {
    Disable,
    Prefer,
    Require,
}

/// How much TLS (`sslmode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SslMode {
    Disable,
    Allow,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

/// TLS and what it is checked with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ssl {
    pub(super) mode: SslMode,
    /// TLS from the first byte on (17 and newer), without asking.
    pub(super) is_direct: bool,
    pub(super) roots: Roots,
    /// The client's certificates and its key.
    pub(super) client: Option<(PathBuf, PathBuf)>,
}

/// Whose certificates are trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Roots {
    None,
    File(PathBuf),
    System,
}

/// Probes of idle TCP connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Keepalive {
    pub(super) is_on: bool,
    pub(super) idle: Option<Duration>,
    pub(super) interval: Option<Duration>,
    pub(super) count: Option<u32>,
    pub(super) user_timeout: Option<Duration>,
}

impl Target {
    /// Checks parameters and fills in libpq's defaults.
    ///
    /// # Errors
    /// [`Kind::Config`] for a value that cannot be, with the parameter's name.
    pub(super) fn new(all: &Parameters, environment: Lookup<'_>, allow_md5: bool) -> Result<Self> {
        let home = environment("HOME").map(PathBuf::from);
        let user = all.get("user").cloned().or_else(|| system_user(environment)).ok_or_else(|| {
            Error::new(Kind::Config, "postgres.url names no user").hint("write postgres://user@host:5432/postgres")
        })?;
        let text = |name: &str| all.get(name).map(String::as_str);
        let in_home = |name: &str| home.as_ref().map(|home| home.join(name)).filter(|path| path.is_file());
        let application = text("application_name").or_else(|| text("fallback_application_name"));
        Ok(Self {
            hosts: hosts(all)?,
            database: text("dbname").unwrap_or(&user).to_owned(),
            user,
            password: all.get("password").cloned().map(Secret::new),
            passfile: all.get("passfile").map(PathBuf::from).or_else(|| home.as_ref().map(|home| home.join(".pgpass"))),
            options: all.get("options").cloned(),
            application_name: application.unwrap_or("tidelog").to_owned(),
            connect_timeout: connect_timeout(all)?,
            session: choice(all, "target_session_attrs", SESSIONS)?,
            is_random: choice(all, "load_balance_hosts", &[("disable", false), ("random", true)])?,
            channel_binding: choice(all, "channel_binding", BINDINGS)?,
            ssl: ssl(all, in_home)?,
            keepalive: Keepalive {
                is_on: number(all, "keepalives")? != Some(0),
                idle: seconds(all, "keepalives_idle")?,
                interval: seconds(all, "keepalives_interval")?,
                count: number(all, "keepalives_count")?.filter(|count| *count > 0),
                user_timeout: number(all, "tcp_user_timeout")?
                    .filter(|ms| *ms > 0)
                    .map(|ms| Duration::from_millis(ms.into())),
            },
            allow_md5,
        })
    }

    /// The password for `host`: as given, or from the password file.
    pub(super) fn password(&self, host: &Host, database: &str) -> Option<Secret> {
        if self.password.is_some() {
            return self.password.clone();
        }
        let (name, port) = match host {
            Host::Tcp { name, port, .. } => (name.as_str().into(), *port),
            Host::Unix { folder, port } if folder == Path::new(SOCKET_FOLDER) => ("localhost".into(), *port),
            Host::Unix { folder, port } => (folder.to_string_lossy(), *port),
        };
        from_file(self.passfile.as_deref()?, &Wanted { host: &name, port, database, user: &self.user })
    }
}

const SESSIONS: &[(&str, Session)] = &[
    ("any", Session::Any),
    ("read-write", Session::ReadWrite),
    ("read-only", Session::ReadOnly),
    ("primary", Session::Primary),
    ("standby", Session::Standby),
    ("prefer-standby", Session::PreferStandby),
];

const BINDINGS: &[(&str, ChannelBinding)] =
    &[("prefer", ChannelBinding::Prefer), ("disable", ChannelBinding::Disable), ("require", ChannelBinding::Require)];

const MODES: &[(&str, SslMode)] = &[
    ("prefer", SslMode::Prefer),
    ("disable", SslMode::Disable),
    ("allow", SslMode::Allow),
    ("require", SslMode::Require),
    ("verify-ca", SslMode::VerifyCa),
    ("verify-full", SslMode::VerifyFull),
];

/// The values stand in no message: in a URL that was typed wrong they may be a part of the password.
fn wrong(name: &str, problem: impl std::fmt::Display) -> Error {
    Error::new(Kind::Config, format!("postgres.url: the parameter {name} {problem}"))
}

/// One of several words; the first one is the default.
fn choice<T: Copy>(all: &Parameters, name: &str, choices: &[(&str, T)]) -> Result<T> {
    let word = all.get(name).map_or(choices[0].0, String::as_str);
    choices.iter().find(|(choice, _)| *choice == word).map(|(_, value)| *value).ok_or_else(|| {
        let words: Vec<&str> = choices.iter().map(|(choice, _)| *choice).collect();
        wrong(name, format!("is none of {}", words.join(", ")))
    })
}

fn number(all: &Parameters, name: &str) -> Result<Option<u32>> {
    let Some(text) = all.get(name) else { return Ok(None) };
    text.parse().map(Some).map_err(|_| wrong(name, "is not a whole number"))
}

fn seconds(all: &Parameters, name: &str) -> Result<Option<Duration>> {
    Ok(number(all, name)?.filter(|seconds| *seconds > 0).map(|seconds| Duration::from_secs(seconds.into())))
}

/// As libpq has it: zero and less wait without end.
fn connect_timeout(all: &Parameters) -> Result<Option<Duration>> {
    let name = "connect_timeout";
    let Some(text) = all.get(name) else { return Ok(Some(CONNECT_TIMEOUT)) };
    let seconds: i64 = text.parse().map_err(|_| wrong(name, "is not a number of seconds"))?;
    Ok(u64::try_from(seconds).ok().filter(|seconds| *seconds > 0).map(Duration::from_secs))
}

/// The user that runs this process, as libpq's default user.
fn system_user(environment: Lookup<'_>) -> Option<String> {
    let uid = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata("/proc/self").ok()?).to_string();
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let named = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid).then(|| name.to_owned())
    });
    named.or_else(|| environment("USER"))
}

/// Hosts, their addresses and ports are three lists side by side.
fn hosts(all: &Parameters) -> Result<Vec<Host>> {
    let list = |name: &str| -> Vec<&str> { all.get(name).map(|text| text.split(',').collect()).unwrap_or_default() };
    let (names, addresses, ports) = (list("host"), list("hostaddr"), list("port"));
    let count = names.len().max(addresses.len()).max(1);
    for (name, list) in [("host", &names), ("hostaddr", &addresses)] {
        if !list.is_empty() && list.len() != count {
            return Err(wrong(name, format!("names {}, but there are {count} hosts", list.len())));
        }
    }
    if ports.len() > 1 && ports.len() != count {
        return Err(wrong("port", format!("names {}, but there are {count} hosts", ports.len())));
    }
    let at = |list: &[&str], index: usize| list.get(index).copied().unwrap_or_default().trim().to_owned();
    let one = |index: usize| {
        let port = match at(&ports, if ports.len() == 1 { 0 } else { index }).as_str() {
            "" => 5432,
            text => {
                let port = text.parse().ok().filter(|port| *port > 0);
                port.ok_or_else(|| wrong("port", "is not a number from 1 to 65535"))?
            }
        };
        let (name, address) = (at(&names, index), at(&addresses, index));
        let address: Option<IpAddr> = match address.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|_| wrong("hostaddr", "is not an IP address"))?),
        };
        Ok(match (name.as_str(), address) {
            (name, _) if name.starts_with('/') => Host::Unix { folder: name.into(), port },
            ("", None) => default_host(port),
            ("", Some(address)) => Host::Tcp { name: address.to_string(), address: Some(address), port },
            (name, address) => Host::Tcp { name: name.to_owned(), address, port },
        })
    };
    (0..count).map(one).collect()
}

/// libpq connects to the Unix socket if none is named; where there is none, as with a server in another container,
/// `localhost` is meant.
fn default_host(port: u16) -> Host {
    if socket(Path::new(SOCKET_FOLDER), port).exists() {
        Host::Unix { folder: SOCKET_FOLDER.into(), port }
    } else {
        Host::Tcp { name: "localhost".to_owned(), address: None, port }
    }
}

fn ssl(all: &Parameters, in_home: impl Fn(&str) -> Option<PathBuf>) -> Result<Ssl> {
    let mut mode = choice(all, "sslmode", MODES)?;
    let is_direct = choice(all, "sslnegotiation", &[("postgres", false), ("direct", true)])?;
    if is_direct && matches!(mode, SslMode::Disable | SslMode::Allow | SslMode::Prefer) {
        return Err(wrong("sslnegotiation", "is direct, which needs sslmode=require, verify-ca or verify-full"));
    }
    let roots = match all.get("sslrootcert").map(String::as_str) {
        Some("system") => {
            if all.contains_key("sslmode") && mode != SslMode::VerifyFull {
                return Err(wrong("sslrootcert", "is system, which needs sslmode=verify-full"));
            }
            mode = SslMode::VerifyFull;
            Roots::System
        }
        Some(file) => Roots::File(file.into()),
        None => in_home(".postgresql/root.crt").map_or(Roots::None, Roots::File),
    };
    if roots == Roots::None && matches!(mode, SslMode::VerifyCa | SslMode::VerifyFull) {
        return Err(wrong("sslmode", "wants the server's certificate checked, and no root certificate is named")
            .hint("set sslrootcert to a file of trusted certificates, or to `system` for those of the system"));
    }
    // libpq: with a root certificate at hand, `require` checks it.
    if mode == SslMode::Require && matches!(roots, Roots::File(_)) {
        mode = SslMode::VerifyCa;
    }
    let file = |name: &str, default: &str| all.get(name).map(PathBuf::from).or_else(|| in_home(default));
    let certificate = file("sslcert", ".postgresql/postgresql.crt");
    let client = match (certificate, file("sslkey", ".postgresql/postgresql.key")) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (Some(_), None) => return Err(wrong("sslcert", "needs sslkey, the file of its private key")),
        (None, _) => None,
    };
    Ok(Ssl { mode, is_direct, roots, client })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::postgres::conn::parameters::parameters;

    fn none(_: &str) -> Option<String> {
        None
    }

    fn target(url: &str) -> Result<Target> {
        Target::new(&parameters(url, &none)?, &none, false)
    }

    fn tcp(name: &str, port: u16) -> Host {
        Host::Tcp { name: name.into(), address: None, port }
    }

    #[test]
    fn defaults_are_those_of_libpq() {
        let target = target("postgres://u@h").expect("it is enough");
        assert_eq!((target.hosts, target.database.as_str()), (vec![tcp("h", 5432)], "u"));
        assert_eq!(
            (target.ssl.mode, target.session, target.channel_binding),
            (SslMode::Prefer, Session::Any, ChannelBinding::Prefer)
        );
        assert_eq!((target.application_name.as_str(), target.connect_timeout), ("tidelog", Some(CONNECT_TIMEOUT)));
        assert!(target.keepalive.is_on && !target.is_random);
    }

    #[test]
    fn hosts_addresses_and_ports_stand_side_by_side() {
        let hosts = |url: &str| target(url).expect(url).hosts;
        assert_eq!(hosts("postgres://u@a:1,b:2"), [tcp("a", 1), tcp("b", 2)]);
        assert_eq!(hosts("host=a,b port=7 user=u"), [tcp("a", 7), tcp("b", 7)]);
        assert_eq!(hosts("host=/run/pg user=u"), [Host::Unix { folder: "/run/pg".into(), port: 5432 }]);
        let address = Some("10.0.0.1".parse().expect("an address"));
        assert_eq!(hosts("hostaddr=10.0.0.1 host=db user=u"), [Host::Tcp { name: "db".into(), address, port: 5432 }]);
        assert_eq!(hosts("postgres://u@[::1]:9")[0].shown(), "[::1]:9");
        assert_eq!(hosts("host=/run/pg user=u")[0].shown(), "/run/pg/.s.PGSQL.5432");
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        for (url, part) in [
            ("host=a,b port=1,2,3 user=u", "port names 3, but there are 2 hosts"),
            ("host=a port=x user=u", "port is not a number from 1 to 65535"),
            ("hostaddr=a user=u", "hostaddr is not an IP address"),
            ("host=a user=u sslmode=on", "sslmode is none of prefer, disable"),
            ("host=a user=u sslmode=verify-full", "no root certificate"),
            ("host=a user=u sslrootcert=system sslmode=require", "needs sslmode=verify-full"),
            ("host=a user=u sslnegotiation=direct", "needs sslmode=require"),
            ("host=a user=u sslcert=/c", "needs sslkey"),
            ("host=a user=u connect_timeout=soon", "connect_timeout"),
            ("host=a user=u target_session_attrs=master", "is none of any, read-write"),
        ] {
            let error = target(url).expect_err(url);
            assert!(error.kind() == Kind::Config && error.to_string().contains(part), "{url}: {error}");
        }
    }

    #[test]
    fn a_root_certificate_is_used_where_there_is_one() {
        let mode = |url: &str| target(url).expect(url).ssl.mode;
        assert_eq!(mode("host=a user=u sslmode=require sslrootcert=/r"), SslMode::VerifyCa);
        assert_eq!(mode("host=a user=u sslrootcert=system"), SslMode::VerifyFull);
        assert_eq!(mode("host=a user=u sslmode=require"), SslMode::Require);
    }

    #[test]
    fn passwords_are_not_shown() {
        let target = target("postgres://u:s3cret@h").expect("it is enough");
        assert!(!format!("{target:?}").contains("s3cret"));
        assert_eq!(target.password(&target.hosts[0], "replication").expect("it is given").reveal(), b"s3cret");
    }

    #[test]
    fn a_password_file_is_asked_by_host() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "h1:5432:replication:u:one\nlocalhost:5432:*:u:two\n/run:5432:*:u:three\n")
            .expect("written");
        let url = format!("host=h1,/var/run/postgresql,/run,h2 user=u passfile={}", file.path().display());
        let target = target(&url).expect("it is enough");
        let password = |index: usize| target.password(&target.hosts[index], "replication");
        let found: Vec<_> = (0..3).map(|index| password(index).expect("a line fits").reveal().to_vec()).collect();
        assert_eq!(found, [b"one".to_vec(), b"two".to_vec(), b"three".to_vec()]);
        assert!(password(3).is_none());
    }
}
