//! The database at the commit: restored, opened for nobody but this process, prepared, and then for everybody.
//!
//! ```text
//!   archive ─► restore ─► server at a socket of its own, with a pg_hba.conf of its own ─► LSN raised, slots, markers ─► stopped
//!                              nobody else can write                                        started again at its port ◄──┘
//! ```
//!
//! That the server stands where it is to stand is told by the history of its timeline: it begins where the recovery ended, also after a
//! restart (`writeTimeLineHistory`, timeline.c, with the end of the last record that was replayed).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use super::journal::Commit;
use super::server::{Open, Server as Started, Start};
use crate::config;
use crate::error::{Error, Kind, Result};
use crate::manifest::writer_id;
use crate::restore::holding::Holding;
use crate::restore::plan::{Asked, Goal, Plan, plan};
use crate::restore::postgres::{Action, Destination, LogSource, Places, restore};
use crate::restore::{Combiner, Foreseen, Ground, Log, PATIENCE, foresee, is_begun, patiently};
use crate::segment::wal::parse_history;
use crate::source::postgres::Server;
use crate::store::Store;
use crate::stream::Lsn;

/// How many streams of a base backup are unpacked at a time.
const JOBS: usize = 4;

/// How long the remains of a server that was killed may hold its shared memory.
const REMAINS: Duration = Duration::from_secs(20);

/// A data directory that is made, and what starts it.
#[derive(Debug, Clone, Copy)]
pub struct Made<'a> {
    /// The data directory.
    pub into: &'a Path,
    /// PostgreSQL's programs.
    pub bin_dir: &'a Path,
    /// The port.
    pub port: u16,
    /// The superuser.
    pub user: &'a str,
    /// What the server is given on its command line.
    pub settings: &'a BTreeMap<String, String>,
    /// The folder of the recovery.
    pub folder: &'a Path,
}

/// What a restore needs, and takes.
#[derive(Debug)]
pub struct Restore {
    plan: Plan,
    log_server_version: u32,
}

impl Restore {
    /// Plans it: which base backup leads to the commit.
    ///
    /// # Errors
    /// A commit to which none leads.
    pub async fn plan(store: &Store, commit: &Commit) -> Result<(Self, Log)> {
        let log = patiently(PATIENCE, || Log::open(store, Some(commit.system_id))).await?.patient();
        let restore = Self::planned(store, &log, (commit.timeline, commit.end), None).await?;
        Ok((restore, log))
    }

    /// Plans one to a position of a timeline, from a base backup that is named or the best.
    ///
    /// # Errors
    /// As those of [`Restore::plan`].
    pub async fn planned(
        store: &Store,
        log: &Log,
        (timeline, end): (u32, Lsn),
        backup: Option<String>,
    ) -> Result<Self> {
        let backups = patiently(PATIENCE, || log.backups()).await?.sound;
        let asked = Asked { goal: Goal::Lsn(end), exclusive: false, timeline: Some(timeline), backup };
        let plan = patiently(PATIENCE, || plan(store, log, &backups, &asked)).await?;
        Ok(Self { plan, log_server_version: log.system().server_version })
    }

    /// The base backup.
    pub fn backup(&self) -> &str {
        &self.plan.backup.name
    }

    /// Where the log begins that it needs.
    pub fn log_start(&self) -> Lsn {
        self.plan.lsns.start
    }

    /// How much is unpacked and replayed, in words.
    pub fn words(&self) -> String {
        format!(
            "base backup {}, {} MiB, and {} MiB of WAL",
            self.plan.backup.name,
            self.plan.bytes() >> 20,
            self.plan.log_bytes() >> 20
        )
    }

    /// How many bytes are unpacked, and how many of the log are replayed.
    pub(super) fn sizes(&self) -> (u64, u64) {
        (self.plan.bytes(), self.plan.log_bytes())
    }

    /// Looks whether it can begin, before anything is done.
    ///
    /// # Errors
    /// Programs of another version, and a directory that holds something else.
    pub fn check(&self, made: &Made<'_>, is_begun_by_us: bool) -> Result<()> {
        is_version(made.bin_dir, self.log_server_version)?;
        if is_begun_by_us {
            Ok(())
        } else {
            Ground::look(made.into, false, self.plan.backup.system.system_id).map(drop)
        }
    }

    /// Restores. What an earlier run has unpacked is kept.
    ///
    /// # Errors
    /// Those of `restore-postgres`.
    pub async fn carry_out(
        &self,
        store: &Store,
        archive: &config::Archive,
        log: &Log,
        made: &Made<'_>,
    ) -> Result<Vec<String>> {
        let fetching = LogSource::of(archive, true)?;
        self.bring(store, (log, made), fetching, &writer_id()?).await.map(|(notes, _)| notes)
    }

    /// The same for a server that gets its log in a way of its own, held by this name; gives beside the notes what the log will need.
    ///
    /// # Errors
    /// As those of [`Restore::carry_out`].
    pub async fn bring(
        &self,
        store: &Store,
        (log, made): (&Log, &Made<'_>),
        fetching: LogSource,
        held: &str,
    ) -> Result<(Vec<String>, Foreseen)> {
        let (plan, system_id) = (&self.plan, log.system().system_id);
        let combiner = match plan.parents.first() {
            Some(_) => Some(Combiner::find(Some(made.bin_dir), plan.backup.system.server_version)?),
            None => None,
        };
        let holding = Holding::begin(store, log, plan, held, "a recovery").await?;
        let restoring = async {
            let into = Destination {
                data: made.into.to_owned(),
                is_delta: false,
                jobs: JOBS,
                tablespaces: Places { moved: BTreeMap::new(), old_too: false },
                combiner,
                foreseen: foresee(log, plan, &Arc::default()).await?,
                action: Action::Promote,
                fetching,
            };
            let restored = restore(store, plan, &into, &Arc::default()).await?;
            Ok::<_, Error>((restored.notes, into.foreseen))
        };
        let restored = restoring.await;
        match (holding, &restored) {
            (Some(holding), Ok(_)) => holding.hand_over(store, system_id, made.into).await,
            // The same command goes on with what is there, and finds what it needs.
            (Some(holding), Err(_)) if !is_begun(made.into) => holding.give_back(store, system_id).await,
            _ => {}
        }
        restored
    }
}

/// Whether a data directory is whole, that was being made.
pub fn is_whole(into: &Path) -> bool {
    into.join("PG_VERSION").is_file() && !is_begun(into)
}

/// Refuses programs of another version than the data is of.
fn is_version(bin_dir: &Path, wanted: u32) -> Result<()> {
    let program = bin_dir.join("postgres");
    let said = Command::new(&program).arg("--version").output();
    let said =
        said.map_err(|source| Error::io(source, format!("cannot run {}", program.display())).hint("check bin_dir"))?;
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    let major = text.split_whitespace().nth(2).and_then(|word| {
        let digits: String = word.chars().take_while(char::is_ascii_digit).collect();
        digits.parse::<u32>().ok()
    });
    // Archives have the version as 15, or as 150018.
    let wanted = if wanted >= 10_000 { wanted / 10_000 } else { wanted };
    if major == Some(wanted) {
        return Ok(());
    }
    let message = format!("{} is {:?}, and the base backup is of PostgreSQL {wanted}", program.display(), text.trim());
    Err(Error::new(Kind::Config, message).hint("name that version's programs: bin_dir"))
}

impl Made<'_> {
    fn socket(&self) -> PathBuf {
        self.folder.join("socket")
    }

    /// Where nobody but this process gets in.
    ///
    /// # Errors
    /// A name that no server can have.
    pub fn at(&self, database: &str) -> Result<Server> {
        Server::at_socket((&self.socket(), self.port), self.user, database)
    }

    /// Starts the server so that nobody else can connect, and waits until it takes writes. It ends with this process.
    ///
    /// # Errors
    /// A server that does not open, with the end of its log.
    pub async fn open_privately(&self) -> Result<Started> {
        let hba = self.folder.join("pg_hba.conf");
        let lines = format!("local all {0} trust\nlocal replication {0} trust\n", quoted_name(self.user));
        fs::write(&hba, lines).map_err(|source| Error::io(source, format!("cannot write {}", hba.display())))?;
        let own = [("hba_file", hba.display().to_string()), ("unix_socket_permissions", "0700".to_owned())];
        let own = own.map(|(name, value)| (name.to_owned(), value));
        opened(&self.how("", own.into_iter(), false), Open::ForWriting, self.user).await
    }

    /// Starts the server for everybody, as its configuration has it. It may go on when this process ends.
    ///
    /// # Errors
    /// A server that does not open, with the end of its log.
    pub async fn open_to_all(&self, listen: &str, outlives: bool) -> Result<Started> {
        let mut how = self.how(listen, std::iter::empty(), true);
        how.outlives = outlives;
        let mut server = Started::start(how)?;
        match server.opened(Open::ForWriting, self.user).await {
            // It takes connections, and its own pg_hba.conf does not let this process in.
            Err(error) if error.kind() == Kind::Denied => Ok(server),
            opened => opened.map(|_| server),
        }
    }

    fn how(&self, listen: &str, own: impl Iterator<Item = (String, String)>, outlives: bool) -> Start {
        let given = self.settings.iter().map(|(name, value)| (name.clone(), value.clone()));
        // While nobody else is to get in, what listens is not the user's to say.
        let given =
            given.filter(|(name, _)| outlives || (name != "listen_addresses" && name != "unix_socket_directories"));
        Start {
            bin_dir: self.bin_dir.to_owned(),
            data: self.into.to_owned(),
            socket: self.socket(),
            port: self.port,
            listen: listen.to_owned(),
            log: self.folder.join("server.log"),
            settings: given.chain(own).collect(),
            outlives,
        }
    }
}

/// Starts a server, and waits until it is open.
///
/// # Errors
/// A server that does not open, with the end of its log.
pub(super) async fn opened(how: &Start, open: Open, user: &str) -> Result<Started> {
    let begun = tokio::time::Instant::now();
    loop {
        let mut server = Started::start(how.clone())?;
        match server.opened(open, user).await {
            Ok(_) => return Ok(server),
            // Processes of one that was killed with an earlier run hold its memory, or its directory, for a moment.
            Err(error) if begun.elapsed() < REMAINS && is_held(&server) => {
                tracing::warn!(%error, "the server is started again");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            Err(error) => return Err(error),
        }
    }
}

fn is_held(server: &Started) -> bool {
    said(server, "still in use") || said(server, "lock file \"postmaster.pid\" already exists")
}

fn said(server: &Started, words: &str) -> bool {
    server.last_lines().iter().any(|line| line.contains(words))
}

pub(super) fn quoted_name(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Looks whether a server stands just behind the commit, on a timeline that begins there.
///
/// # Errors
/// [`Kind::Unsupported`] for a server of another system, one that stands somewhere else, and one that still recovers.
pub async fn stands_at(server: &Server, commit: &Commit) -> Result<String> {
    let wrong = |why: String| {
        Err(Error::new(Kind::Unsupported, format!("{}: {why}", server.shown()))
            .hint(format!("it has to be restored to just {} of the system {}", commit.end, commit.system_id)))
    };
    let mut session = server.replication().await?;
    let identity = session.identify().await?;
    if identity.system_id != commit.system_id {
        return wrong(format!("it is of the system {}", identity.system_id));
    }
    let rows = server.sql().await?.query("SELECT pg_is_in_recovery()", "ask whether it recovers").await?;
    if rows.first().and_then(|row| row.first()) != Some(&Some("f".to_owned())) {
        return wrong("it still recovers, or is a standby".to_owned());
    }
    if identity.timeline == 1 {
        return wrong("it was never recovered: its timeline is the first".to_owned());
    }
    let history = session.timeline_history(identity.timeline).await?;
    let switch = parse_history(identity.timeline, &history)?.pop();
    match switch {
        Some(switch) if switch.at == commit.end => {
            Ok(format!("timeline {} begins at {}, where the commit ends", identity.timeline, commit.end))
        }
        Some(switch) => wrong(format!("its timeline {} begins at {}", identity.timeline, switch.at)),
        None => wrong(format!("its timeline {} tells no beginning", identity.timeline)),
    }
}

/// Where the server listens by its own files.
///
/// # Errors
/// A server that is away.
pub async fn listens(server: &Server) -> Result<String> {
    const ASKED: &str =
        "SELECT setting FROM pg_file_settings WHERE name = 'listen_addresses' ORDER BY seqno DESC LIMIT 1";
    let rows = server.sql().await?.query(ASKED, "read where it listens").await?;
    let found = rows.into_iter().next().and_then(|row| row.into_iter().next().flatten());
    Ok(found.unwrap_or_else(|| "localhost".to_owned()))
}

/// Raises the position of the log to `until`, so that no position of the branch that was left comes again. The WAL stays without a hole.
///
/// # Errors
/// A server that is away, or has no room.
pub async fn raise(server: &Server, until: Lsn) -> Result<Lsn> {
    /// Files of WAL by one statement: a quarter of a second each, and between them it can be stopped.
    const STEPS: u32 = 16;
    let mut sql = server.sql().await?;
    let mut rounds = 0_u32;
    loop {
        let rows = sql.query("SELECT pg_current_wal_insert_lsn()", "read its position").await?;
        let at = rows.first().and_then(|row| row.first()?.as_ref()?.parse::<Lsn>().ok());
        let at = at.ok_or_else(|| Error::new(Kind::Internal, "the server tells no position"))?;
        if at >= until {
            return Ok(at);
        }
        // A bare switch does not move the position where nothing was written since the last.
        let step = format!(
            "DO $$ BEGIN FOR i IN 1..{STEPS} LOOP EXIT WHEN pg_current_wal_insert_lsn() >= '{until}'; \
             PERFORM pg_logical_emit_message(false, 'tidelog', ''); PERFORM pg_switch_wal(); END LOOP; END $$"
        );
        sql.query(&step, "raise its position").await?;
        rounds += 1;
        if rounds.is_multiple_of(4) {
            sql.query("CHECKPOINT", "give the WAL of that free again").await?;
        }
    }
}
