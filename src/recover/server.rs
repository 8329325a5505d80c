//! A PostgreSQL server of our own over a data directory that was restored.
//!
//! ```text
//!   Server::start ─► thread "postgres" ─► postgres -D … (child)          lives as long as the server does
//!        │                ▲    │
//!        │   signals ─────┘    └─► how it ended                          the log: a file, its end in every error
//!        └─► opened: postmaster.pid says "ready" ─► SQL: still recovering? ─► position and timeline
//! ```
//!
//! The system kills the server when the thread that has started it ends, whatever ends it (`PR_SET_PDEATHSIG`): a drill that is
//! killed leaves no server. "The parent" of that is the thread, not the process (prctl(2)), so it is one of our own: those of the
//! runtime come and go. A server that is to outlive this process is started without it.
//!
//! PostgreSQL refuses to run as root (`check_root`, main.c), and in a data directory that another user owns (`checkDataDir`,
//! miscinit.c). Where this process is root, the server runs as the owner of the directory, or as the user `postgres`, who gets it.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, lchown};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::tail;
use crate::error::{Error, Kind, Result};
use crate::source::postgres::{self as source, Sql, server_error};
use crate::stream::Lsn;

/// How often a server is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// How long a fast shutdown may take, with its checkpoint, before an immediate one is asked for.
const STOPS_WITHIN: Duration = Duration::from_secs(60);

/// How long an immediate shutdown may take: the postmaster kills its children after 5 s (`SIGKILL_CHILDREN_AFTER_SECS`).
const QUITS_WITHIN: Duration = Duration::from_secs(10);

/// The longest path of a Unix socket (`sun_path`, unix(7)), with the zero at its end.
const LONGEST_SOCKET: usize = 107;

/// A server that is to be started.
#[derive(Debug, Clone)]
pub struct Start {
    /// The directory of PostgreSQL's own programs, of the data directory's version.
    pub bin_dir: PathBuf,
    /// The data directory.
    pub data: PathBuf,
    /// The directory of its socket, which is made, and private.
    pub socket: PathBuf,
    /// Its port, which names the socket, too.
    pub port: u16,
    /// Where it listens beside the socket (`listen_addresses`); empty: nowhere.
    pub listen: String,
    /// The file of its log, which is added to.
    pub log: PathBuf,
    /// Settings over those of its files.
    pub settings: Vec<(String, String)>,
    /// Whether it goes on when this process ends.
    pub outlives: bool,
}

/// What a server is when its recovery has come to where it was to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Open {
    /// It takes writes.
    ForWriting,
    /// It waits at the target, and can be read.
    Paused,
    /// It follows its log, as a standby, and can be read.
    Following,
}

/// Where a recovery has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reached {
    /// The end of the last record that was replayed; none where the server did not recover since its start.
    pub replayed: Option<Lsn>,
    /// The timeline on which it is now.
    pub timeline: u32,
}

/// A server that was started. Dropping it stops it at once, unless it outlives this process.
pub struct Server {
    how: Start,
    id: u32,
    /// How long the log was before the start.
    logged: u64,
    keeper: Option<Keeper>,
}

impl Server {
    /// Starts it, and does not wait.
    ///
    /// # Errors
    /// No program, no user to run it as, a directory that cannot be made.
    pub fn start(how: Start) -> Result<Self> {
        is_short(&how.socket, how.port)?;
        make_private(&how.socket)?;
        let failed = |source| Error::io(source, format!("cannot write {}", how.log.display()));
        let log = File::options().create(true).append(true).open(&how.log).map_err(failed)?;
        let logged = log.metadata().map_err(failed)?.len();
        let mut command = command(&how);
        command.stdin(Stdio::null()).stdout(log.try_clone().map_err(failed)?).stderr(log);
        if let Some((user, group)) = user_of(&how)? {
            command.uid(user).gid(group);
        }
        let (keeper, id) = Keeper::start(command, how.outlives)?;
        Ok(Self { how, id, logged, keeper: Some(keeper) })
    }

    /// Waits until it is open, however long the recovery takes.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] with the end of its log if it ends instead; a refusal of what it is asked.
    pub async fn opened(&mut self, open: Open, user: &str) -> Result<Reached> {
        while !self.is_ready() {
            self.is_alive()?;
            tokio::time::sleep(LOOK).await;
        }
        let mut sql = None;
        loop {
            self.is_alive()?;
            match self.look(&mut sql, open, user).await {
                Ok(Some(reached)) => return Ok(reached),
                Ok(None) => {}
                // It says so itself when it has ended; a session may be sent away when a recovery ends.
                Err(error) if error.is_transient() => sql = None,
                Err(error) => return Err(error),
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// How one gets into a database of it, by its socket.
    ///
    /// # Errors
    /// [`Kind::Config`] for a name that no server can have.
    pub fn at(&self, user: &str, database: &str) -> Result<source::Server> {
        source::Server::at_socket((&self.how.socket, self.how.port), user, database)
    }

    /// The directory of its socket, and its port.
    pub fn place(&self) -> (&Path, u16) {
        (&self.how.socket, self.how.port)
    }

    /// The last lines that it has logged since this start.
    pub fn last_lines(&self) -> Vec<String> {
        tail::last_lines(&self.how.log, self.logged).unwrap_or_default()
    }

    /// Stops it: sessions are sent away, a checkpoint is written.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] if it did not end by itself, or not well.
    pub async fn stop(mut self) -> Result<()> {
        let Some(mut keeper) = self.keeper.take() else { return Ok(()) };
        keeper.order(Order::Signal(libc::SIGINT));
        let ended = tokio::time::timeout(STOPS_WITHIN, keeper.ended()).await;
        match ended {
            Ok(Some(status)) if status.success() => Ok(()),
            Ok(status) => Err(self.failed("did not stop well", status)),
            Err(_) => {
                keeper.outlives = false;
                drop(keeper);
                Err(self.failed("did not stop within a minute, and was killed", None))
            }
        }
    }

    async fn look(&self, sql: &mut Option<Sql>, open: Open, user: &str) -> Result<Option<Reached>> {
        let sql = match sql {
            Some(sql) => sql,
            none => none.insert(self.anywhere(user).await?),
        };
        // Since 14 a pause that was asked for is told from one that has come.
        let paused = if sql.version() >= 140_000 {
            "pg_get_wal_replay_pause_state() = 'paused'"
        } else {
            "pg_is_wal_replay_paused()"
        };
        let asked = format!(
            "SELECT pg_is_in_recovery(), CASE WHEN pg_is_in_recovery() THEN {paused} END, pg_last_wal_replay_lsn(), \
             CASE WHEN NOT pg_is_in_recovery() THEN substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8) END, \
             (SELECT timeline_id FROM pg_control_checkpoint())"
        );
        let rows = sql.query(&asked, "ask the restored server how far it is").await?;
        let Some([recovers, paused, replayed, written, checkpoint]) = rows.first().and_then(|row| row.first_chunk())
        else {
            return Err(Error::new(Kind::Internal, "the restored server does not say how far it is"));
        };
        let is = |text: &Option<String>| text.as_deref() == Some("t");
        // From 14 on it pauses where a setting is too low for the log, and would wait for a person.
        if open != Open::Paused && is(recovers) && is(paused) {
            return Err(self.failed("pauses in its recovery, before the target", None));
        }
        let is_there = match open {
            Open::ForWriting => !is(recovers),
            Open::Paused => is(paused),
            Open::Following => is(recovers),
        };
        let timeline = match (written, checkpoint) {
            (Some(hex), _) => u32::from_str_radix(hex, 16).ok(),
            (None, Some(number)) => number.parse().ok(),
            _ => None,
        };
        let replayed = replayed.as_ref().and_then(|text| text.parse().ok());
        Ok(is_there.then_some(Reached { replayed, timeline: timeline.unwrap_or_default() }))
    }

    /// Connects to a database that every server has, or nearly every one.
    ///
    /// # Errors
    /// A server that lets nobody in.
    pub async fn anywhere(&self, user: &str) -> Result<Sql> {
        match self.at(user, "postgres")?.sql().await {
            Err(error) if server_error(&error).is_some_and(|said| said.sqlstate == "3D000") => {
                self.at(user, "template1")?.sql().await
            }
            connected => connected,
        }
    }

    /// `postmaster.pid` says when connections are taken (`PM_STATUS_READY`, pidfile.h), of a recovery, too.
    fn is_ready(&self) -> bool {
        let text = fs::read_to_string(self.how.data.join("postmaster.pid")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        lines.first() == Some(&self.id.to_string().as_str()) && lines.get(7) == Some(&"ready")
    }

    fn is_alive(&self) -> Result<()> {
        let ended = self.keeper.as_ref().and_then(|keeper| *keeper.ended.borrow());
        ended.map_or(Ok(()), |status| Err(self.failed("ended before it was open", Some(status))))
    }

    fn failed(&self, how: &str, status: Option<ExitStatus>) -> Error {
        let status = status.map(|status| format!(" ({status})")).unwrap_or_default();
        let log = self.last_lines();
        let said = if log.is_empty() { "nothing".to_owned() } else { log.join(" | ") };
        Error::new(
            Kind::Unsupported,
            format!("PostgreSQL over {} {how}{status}; its log says: {said}", self.how.data.display()),
        )
        .hint(format!("the whole log is {}", self.how.log.display()))
    }
}

fn command(how: &Start) -> Command {
    let mut command = Command::new(how.bin_dir.join("postgres"));
    command.arg("-D").arg(&how.data).current_dir(&how.data).process_group(0);
    let own = [
        ("port", how.port.to_string()),
        ("listen_addresses", how.listen.clone()),
        ("unix_socket_directories", format!("\"{}\"", how.socket.display())),
    ];
    for (name, value) in own
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .chain(how.settings.iter().map(|(name, value)| (name.as_str(), value.as_str())))
    {
        command.arg("-c").arg(format!("{name}={value}"));
    }
    // What clients of this machine are told of other servers is none of this one's.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"PG")) {
        command.env_remove(name);
    }
    command.env("LC_ALL", "C");
    command
}

fn is_short(socket: &Path, port: u16) -> Result<()> {
    let path = socket.join(format!(".s.PGSQL.{port}"));
    if path.as_os_str().len() < LONGEST_SOCKET {
        return Ok(());
    }
    let message = format!("{} is too long for a socket: {LONGEST_SOCKET} bytes are the most", path.display());
    Err(Error::new(Kind::Config, message).hint("name a directory with a shorter path"))
}

/// Makes a directory that its owner alone may enter.
pub(super) fn make_private(folder: &Path) -> Result<()> {
    let made = fs::create_dir_all(folder).and_then(|()| fs::set_permissions(folder, fs::Permissions::from_mode(0o700)));
    made.map_err(|source| Error::io(source, format!("cannot make {}", folder.display())))
}

/// Returns as whom it runs, where not as this process: what it writes belongs to that user then.
fn user_of(how: &Start) -> Result<Option<(u32, u32)>> {
    let failed = |place: &Path| {
        let place = place.display().to_string();
        move |source| Error::io(source, format!("cannot look at {place}"))
    };
    let own = fs::metadata("/proc/self").map_err(failed(Path::new("/proc/self")))?.uid();
    if own != 0 {
        return Ok(None);
    }
    let facts = fs::metadata(&how.data).map_err(failed(&how.data))?;
    let user = if facts.uid() == 0 {
        let postgres = named("postgres").ok_or_else(|| {
            Error::new(Kind::Config, "PostgreSQL does not run as root, and no user postgres is here")
                .hint("run the command as the user that is to own the data directory: sudo -u USER tidelog …")
        })?;
        let links = fs::read_dir(how.data.join("pg_tblspc")).into_iter().flatten().flatten();
        for place in links.filter_map(|link| fs::canonicalize(link.path()).ok()).chain([how.data.clone()]) {
            give(&place, postgres)?;
        }
        postgres
    } else {
        (facts.uid(), facts.gid())
    };
    give(&how.socket, user)?;
    Ok(Some(user))
}

/// The numbers of a user and its group.
fn named(user: &str) -> Option<(u32, u32)> {
    let number = |option: &str| {
        let said = Command::new("id").args([option, user]).output().ok().filter(|said| said.status.success())?;
        String::from_utf8_lossy(&said.stdout).trim().parse().ok()
    };
    Some((number("-u")?, number("-g")?))
}

/// Gives a directory with all that is in it to a user; links stay links.
pub(super) fn give(place: &Path, (user, group): (u32, u32)) -> Result<()> {
    let failed = |source| Error::io(source, format!("cannot give {} to user {user}", place.display()));
    lchown(place, Some(user), Some(group)).map_err(failed)?;
    if fs::symlink_metadata(place).map_err(failed)?.is_dir() {
        for entry in fs::read_dir(place).map_err(failed)? {
            give(&entry.map_err(failed)?.path(), (user, group))?;
        }
    }
    Ok(())
}

/// What is wanted of the thread that has started a server.
enum Order {
    /// To send it a signal.
    Signal(i32),
    /// To leave it to itself.
    Leave,
}

/// The thread that has started a server, and waits for its end.
struct Keeper {
    /// Hung up: the server is stopped at once.
    orders: Option<mpsc::Sender<Order>>,
    ended: watch::Receiver<Option<ExitStatus>>,
    thread: Option<JoinHandle<()>>,
    outlives: bool,
}

impl Keeper {
    fn start(command: Command, outlives: bool) -> Result<(Self, u32)> {
        let program = command.get_program().to_string_lossy().into_owned();
        let (orders, wanted) = mpsc::channel();
        let (tell, ended) = watch::channel(None);
        let (started, starting) = mpsc::sync_channel(1);
        let keep = move || {
            let spawned = spawn(command, outlives);
            let child = match spawned {
                Ok(child) => {
                    drop(started.send(Ok(child.id())));
                    child
                }
                Err(error) => return drop(started.send(Err(error))),
            };
            if let Some(status) = keep(child, &wanted) {
                tell.send_replace(Some(status));
            }
        };
        let failed = |source| Error::io(source, format!("cannot run {program}"));
        let thread = std::thread::Builder::new().name("postgres".to_owned()).spawn(keep).map_err(failed)?;
        let id = starting.recv().unwrap_or_else(|_| Err(std::io::Error::other("its thread ended"))).map_err(failed)?;
        Ok((Self { orders: Some(orders), ended, thread: Some(thread), outlives }, id))
    }

    fn order(&self, order: Order) {
        if self.orders.as_ref().is_some_and(|orders| orders.send(order).is_err()) {
            tracing::debug!("PostgreSQL has ended already");
        }
    }

    async fn ended(&mut self) -> Option<ExitStatus> {
        self.ended.wait_for(Option::is_some).await.ok().and_then(|status| *status)
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if self.outlives {
            self.order(Order::Leave);
        }
        drop(self.orders.take());
        drop(self.thread.take().map(JoinHandle::join));
    }
}

/// Starts a child that the system stops when the thread of the caller ends.
#[expect(unsafe_code, reason = "what runs between fork and exec, and prctl, are functions of C")]
fn spawn(mut command: Command, outlives: bool) -> std::io::Result<Child> {
    let own = std::process::id();
    if !outlives {
        let bind = move || {
            // SAFETY: prctl and getppid are calls of the system, without memory of ours (signal-safety(7)).
            let bound = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGQUIT) };
            // SAFETY: as above.
            let parent = unsafe { libc::getppid() };
            match bound {
                0 if parent.cast_unsigned() == own => Ok(()),
                // It has ended before the signal was asked for.
                0 => Err(std::io::Error::from_raw_os_error(libc::ESRCH)),
                _ => Err(std::io::Error::last_os_error()),
            }
        };
        // SAFETY: the closure calls nothing but what may be called between fork and exec.
        unsafe { command.pre_exec(bind) };
    }
    command.spawn()
}

/// Passes signals on until the child has ended; none if it was left to itself.
fn keep(mut child: Child, wanted: &mpsc::Receiver<Order>) -> Option<ExitStatus> {
    loop {
        match wanted.recv_timeout(LOOK) {
            Ok(Order::Signal(signal)) => send(&child, signal),
            Ok(Order::Leave) => return None,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return quit(&mut child),
        }
        match child.try_wait() {
            Ok(None) => {}
            Ok(ended) => return ended,
            Err(_) => return Some(ExitStatus::from_raw(libc::SIGKILL)),
        }
    }
}

/// Ends the child at once.
fn quit(child: &mut Child) -> Option<ExitStatus> {
    send(child, libc::SIGQUIT);
    let begun = Instant::now();
    while begun.elapsed() < QUITS_WITHIN {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        std::thread::sleep(LOOK);
    }
    drop(child.kill());
    child.wait().ok()
}

/// Sends a signal to a child that was not waited for yet, so that its number is its own.
#[expect(unsafe_code, reason = "kill is a function of C")]
fn send(child: &Child, signal: i32) {
    // SAFETY: a call of the system, without memory of ours.
    let sent = unsafe { libc::kill(child.id().cast_signed(), signal) };
    if sent != 0 {
        tracing::warn!(pid = child.id(), signal, "PostgreSQL cannot be sent a signal");
    }
}
