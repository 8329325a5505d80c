//! Real PostgreSQL servers as child processes, several at once, each in a directory of its own.
//!
//! ```text
//!   Postgres::start ──► initdb ─┐
//!   primary.standby ──► pg_basebackup ─┼─► <scratch>/postgres-…/{data/, log}, a free port and a Unix socket
//!   Postgres::adopt ──► a directory that somebody else has made ┘
//! ```
//!
//! A server refuses to run as root. Where the tests do, it runs in a user namespace in which root has another number
//! (user_namespaces(7)): all files stay the test's own, and its signals arrive. What the rig sets, it sets by the
//! command line, so that a restored directory with another server's `postgresql.conf` starts too.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tempfile::TempDir;

use super::kafka::free_port;
use super::process::{Process, tail, temporary_directory};
use super::program::{self, Output};
use super::{parts, wait_for};

/// A start takes a second on an idle machine, and recovery after a crash some more.
const START_DEADLINE: Duration = Duration::from_secs(120);

/// Which server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Version {
    /// The distribution's, with all its tools.
    #[default]
    Debian,
    /// 13: the last but one whose BASE_BACKUP sends an archive a CopyOut. The server only.
    V13,
    /// 14: the last one of that kind. The server only.
    V14,
    /// 16. The server only.
    V16,
    /// 17: the first with incremental backups. With its tools.
    V17,
    /// 18, with its tools.
    V18,
}

impl Version {
    pub(crate) const ALL: [Version; 6] =
        [Version::V13, Version::V14, Version::Debian, Version::V16, Version::V17, Version::V18];

    /// One of its programs; the distribution's where this version came without it.
    pub(crate) fn program(self, name: &str) -> PathBuf {
        let folder = match self {
            Version::Debian => "debian",
            Version::V13 => "13",
            Version::V14 => "14",
            Version::V16 => "16",
            Version::V17 => "17",
            Version::V18 => "18",
        };
        let own = parts().postgres.join(folder).join("bin").join(name);
        if own.exists() { own } else { parts().postgres.join("debian/bin").join(name) }
    }
}

/// What a server is to be.
#[derive(Clone, Copy, Default)]
pub(crate) struct PostgresOptions<'a> {
    pub(crate) version: Version,
    /// Settings, over the rig's own.
    pub(crate) config: &'a [(&'a str, &'a str)],
    /// Lines of `pg_hba.conf`, before the rig's own, which trust everybody.
    pub(crate) hba: &'a [&'a str],
    /// More arguments of `initdb`.
    pub(crate) initdb: &'a [&'a str],
}

/// A server, running or not. Dropping it stops it and removes its data.
pub(crate) struct Postgres {
    version: Version,
    port: u16,
    data: PathBuf,
    /// `-c name=value`, all that the server is told.
    settings: Vec<(String, String)>,
    process: Mutex<Option<Process>>,
    directory: TempDir,
}

impl Postgres {
    /// Makes a new cluster, starts it and waits until it answers. Superuser `postgres`, no password.
    pub(crate) fn start(options: PostgresOptions<'_>) -> Postgres {
        let postgres = Postgres::prepare(options, None);
        let mut initdb = unprivileged(&options.version.program("initdb"));
        initdb.args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync"]);
        initdb.args(options.initdb).arg("-D").arg(&postgres.data);
        program::run(initdb).expect(0);
        postgres.allow(options.hba);
        postgres.launch();
        postgres.wait_ready();
        postgres
    }

    /// A server over a directory that somebody else has made, started and not waited for: it may have to end by itself.
    pub(crate) fn adopt(data: &Path, options: PostgresOptions<'_>) -> Postgres {
        let postgres = Postgres::prepare(options, Some(data));
        postgres.launch();
        postgres
    }

    /// A streaming standby of this server by `pg_basebackup -R`, ready for queries.
    pub(crate) fn standby(&self, options: PostgresOptions<'_>) -> Postgres {
        let standby = Postgres::prepare(PostgresOptions { version: self.version, ..options }, None);
        let mut backup = self.client("pg_basebackup");
        backup.args(["-U", "postgres", "-R", "-X", "stream", "-c", "fast", "--no-sync", "-D"]).arg(&standby.data);
        program::run(backup).expect(0);
        standby.launch();
        standby.wait_ready();
        standby
    }

    /// A server that somebody else has started, by its socket. It is not stopped with this handle.
    pub(crate) fn of_another(version: Version, data: &Path, (socket, port): (&Path, u16)) -> Postgres {
        let options = PostgresOptions { version, ..PostgresOptions::default() };
        let mut another = Postgres::prepare(options, Some(data));
        another.port = port;
        let name = format!(".s.PGSQL.{port}");
        let link = std::os::unix::fs::symlink(socket.join(&name), another.directory.path().join(&name));
        link.expect("a link can be made");
        another
    }

    fn prepare(options: PostgresOptions<'_>, data: Option<&Path>) -> Postgres {
        let directory = temporary_directory("postgres");
        let port = free_port();
        let own = [
            ("port", port.to_string()),
            ("listen_addresses", "127.0.0.1".to_owned()),
            ("unix_socket_directories", directory.path().display().to_string()),
        ];
        let mut settings: Vec<(String, String)> = own.map(|(name, value)| (name.to_owned(), value)).into();
        let fixed = FIXED_SETTINGS.iter().chain(options.config);
        settings.extend(fixed.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        Postgres {
            version: options.version,
            port,
            data: data.map_or_else(|| directory.path().join("data"), Path::to_owned),
            settings,
            process: Mutex::new(None),
            directory,
        }
    }

    /// Puts lines before those of `pg_hba.conf`. A running server sees them after [`Postgres::reload`].
    pub(crate) fn allow(&self, lines: &[&str]) {
        let file = self.data.join("pg_hba.conf");
        let old = std::fs::read_to_string(&file).expect("pg_hba.conf can be read");
        let new: String = lines.iter().map(|line| format!("{line}\n")).collect();
        std::fs::write(&file, new + &old).expect("pg_hba.conf can be written");
    }

    /// Where a client connects, by TCP, as libpq's URL.
    pub(crate) fn url(&self, user: &str) -> String {
        format!("postgres://{user}@127.0.0.1:{}/postgres", self.port)
    }

    /// Where a client connects, by the Unix socket, as libpq's URL.
    pub(crate) fn socket_url(&self, user: &str) -> String {
        let folder = self.directory.path().display().to_string().replace('/', "%2F");
        format!("postgres://{user}@{folder}:{}/postgres", self.port)
    }

    /// Its TCP port on 127.0.0.1.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The directory of its cluster.
    pub(crate) fn data_dir(&self) -> &Path {
        &self.data
    }

    /// The directory of its write-ahead log.
    pub(crate) fn wal_dir(&self) -> PathBuf {
        self.data.join("pg_wal")
    }

    /// One of PostgreSQL's client programs, pointed at this server.
    pub(crate) fn client(&self, name: &str) -> Command {
        let mut command = Command::new(self.version.program(name));
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("PG") {
                command.env_remove(variable);
            }
        }
        command.env("PGHOST", self.directory.path()).env("PGPORT", self.port.to_string());
        command.env("PGPASSFILE", "/dev/null").env("PGUSER", "postgres").env("PGDATABASE", "postgres");
        command
    }

    /// What `psql` prints for these statements: rows by line, columns by `|`.
    pub(crate) fn psql(&self, sql: &str) -> String {
        self.try_psql(sql).expect(0).stdout.trim_end().to_owned()
    }

    /// As [`Postgres::psql`], for statements that may fail.
    pub(crate) fn try_psql(&self, sql: &str) -> Output {
        let mut command = self.client("psql");
        command.args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-c", sql]);
        program::run(command)
    }

    /// Runs `pgbench` to its end.
    pub(crate) fn pgbench(&self, args: &[&str]) -> String {
        let mut command = self.client("pgbench");
        command.args(args);
        program::run(command).expect(0).stdout
    }

    /// Starts `pgbench` and leaves it running, its output in a file of the server's directory.
    pub(crate) fn pgbench_start(&self, args: &[&str]) -> Process {
        let mut command = self.client("pgbench");
        command.args(args);
        Process::start(command, &self.directory.path().join("pgbench.log"))
    }

    /// Reads the configuration files again.
    pub(crate) fn reload(&self) {
        self.signal(libc::SIGHUP);
    }

    /// A fast shutdown: clients are sent away, a checkpoint is written.
    pub(crate) fn stop(&self) {
        self.stop_by(libc::SIGINT);
    }

    /// A smart shutdown: it waits for its clients to go, and refuses new ones.
    pub(crate) fn stop_smart(&self) {
        self.stop_by(libc::SIGTERM);
    }

    fn stop_by(&self, signal: i32) {
        let process = self.process().take();
        if let Some(mut process) = process {
            process.signal(signal);
            if process.wait(START_DEADLINE).is_none() {
                panic!("PostgreSQL did not stop; the end of its log:\n{}", tail(&self.log(), 40));
            }
        }
    }

    /// SIGKILL for the postmaster; its children end as they find it gone.
    pub(crate) fn kill(&self) {
        self.process().take();
    }

    fn signal(&self, signal: i32) {
        self.process().as_mut().expect("the server runs").signal(signal);
    }

    /// Starts it, stopped or killed before, on its old port and data, and waits until it answers.
    pub(crate) fn restart(&self) {
        self.stop();
        // Backends of a killed postmaster hold its shared memory for a moment; it refuses to start beside them.
        wait_for("the server to start again", START_DEADLINE, || {
            let said = self.log().len();
            self.launch();
            self.ready_or_ended().err().map_or(Some(()), |log| {
                assert!(log[said..].contains("still in use"), "it ended; the end of its log:\n{}", tail(&log, 40));
                None
            })
        });
    }

    /// Ends recovery: a standby becomes a primary on a timeline of its own.
    pub(crate) fn promote(&self) {
        assert_eq!(self.psql("SELECT pg_promote(true, 120)"), "t", "{}", tail(&self.log(), 40));
    }

    /// All that it has logged so far.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.log_file()).unwrap_or_default()).into_owned()
    }

    /// Waits until it answers queries, and panics with its log if it ends instead.
    pub(crate) fn wait_ready(&self) {
        if let Err(log) = self.ready_or_ended() {
            panic!("PostgreSQL did not start; the end of its log:\n{}", tail(&log, 40));
        }
    }

    /// Waits until it ends by itself.
    pub(crate) fn wait_ended(&self, timeout: Duration) -> Option<ExitStatus> {
        self.process().as_mut().expect("the server was started").wait(timeout)
    }

    /// `postmaster.pid` says when it takes connections (`PM_STATUS_READY` in pidfile.h), so no client has to try.
    fn ready_or_ended(&self) -> Result<(), String> {
        let what = "PostgreSQL to take connections";
        wait_for(what, START_DEADLINE, || {
            let mut process = self.process();
            let process = process.as_mut().expect("the server was started");
            if let Some(status) = process.ended() {
                return Some(Err(format!("{}\nthe server ended: {status}", self.log())));
            }
            let file = std::fs::read_to_string(self.data.join("postmaster.pid")).unwrap_or_default();
            let lines: Vec<&str> = file.lines().map(str::trim).collect();
            let is_ours = lines.first().is_some_and(|id| *id == process.id().to_string());
            (is_ours && lines.get(7) == Some(&"ready")).then_some(Ok(()))
        })
    }

    fn launch(&self) {
        let mut command = unprivileged(&self.version.program("postgres"));
        command.arg("-D").arg(&self.data).current_dir(self.directory.path());
        for (name, value) in &self.settings {
            command.arg("-c").arg(format!("{name}={value}"));
            if (name.as_str(), value.as_str()) == GERMAN {
                command.env("LANGUAGE", "de");
            }
        }
        *self.process() = Some(Process::start(command, &self.log_file()));
    }

    /// That the server has said it in German. Some images of Debian come without translations.
    pub(crate) fn assert_german(&self, words: &str) {
        let mut look = Command::new("find");
        look.args(["/usr/share/locale/de/LC_MESSAGES", "-name", "postgres-*.mo"]);
        if program::run(look).stdout.is_empty() {
            eprintln!("SKIPPED: PostgreSQL's translations are not installed, so that it has spoken English");
            return;
        }
        let log = self.log();
        assert!(log.contains(words), "{words} is not in {log}");
    }

    fn log_file(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Postgres {
    /// An immediate shutdown first: a postmaster that is killed leaves its System V shared memory behind.
    fn drop(&mut self) {
        if let Some(mut process) = self.process().take() {
            process.signal(libc::SIGQUIT);
            process.wait(Duration::from_secs(10));
        }
    }
}

/// A command that does not run as root.
fn unprivileged(program: &Path) -> Command {
    let is_root = std::fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0);
    let mut command = if is_root {
        let mut command = Command::new("unshare");
        // Any user that every system knows: initdb asks for its name.
        command.args(["--user", "--map-user=65534", "--map-group=65534"]).arg(program);
        command
    } else {
        Command::new(program)
    };
    command.env("LC_ALL", "C.UTF-8").env_remove("PGDATA").env_remove("PGOPTIONS");
    command
}

/// With this setting Debian's server speaks German: gettext asks for a language unless the locale is `C` itself.
pub(crate) const GERMAN: (&str, &str) = ("lc_messages", "C.UTF-8");

const FIXED_SETTINGS: &[(&str, &str)] = &[
    // The tests kill processes, never the machine.
    ("fsync", "off"),
    ("wal_level", "replica"),
    ("max_wal_senders", "10"),
    ("max_replication_slots", "10"),
    ("hot_standby", "on"),
    // Small and quick: several servers run beside each other.
    ("shared_buffers", "16MB"),
    ("min_wal_size", "32MB"),
    // Files in the data directory instead of /dev/shm: a server that is killed leaves nothing behind.
    ("dynamic_shared_memory_type", "mmap"),
    ("logging_collector", "off"),
    ("log_line_prefix", "%m [%p] %a "),
    ("timezone", "UTC"),
];
