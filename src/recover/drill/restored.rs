//! The database at a moment, restored into a scratch directory and opened.
//!
//! ```text
//!   archive ─► plan ─► room? ─► restore (checked by the manifest) ─► PostgreSQL replays up to the moment ─► promotes ─► open
//! ```
//!
//! The server reads a `postgresql.conf` of the drill's own and none of the other server's, so that no port, path, library or size of that
//! machine counts here. What `ALTER SYSTEM` has set there comes with the data directory: the command line, which wins over it, takes back
//! what would reach out of the scratch directory, need what is not here, or hide damage. Settings of databases and roles win over the command
//! line: sessions set their own (see `contents`).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use super::asked::Asked;
use super::moment;
use super::report::{Finding, Part, Restoration};
use super::scratch::Scratch;
use crate::config::Archive;
use crate::error::{Error, Kind, Result};
use crate::manifest::recoverable::{self, Window};
use crate::manifest::{self, Chain};
use crate::recover::server::{Open, Server, Start};
use crate::restore::holding::Holding;
use crate::restore::plan::{Asked as Wanted, Goal, Plan, plan};
use crate::restore::postgres::{Action, Destination, LogSource, Places, restore};
use crate::restore::{Combiner, Foreseen, Log, PATIENCE, foresee, limits_of, patiently, programs, room};
use crate::store::{Store, layout};
use crate::stream::{StreamId, total};
use crate::time;

/// How many streams of a base backup are unpacked at a time.
const JOBS: usize = 4;

/// The log that a recovery keeps beside the data: it removes what it has replayed at each restart point (`max_wal_size`).
const LOG_KEPT: u64 = 1 << 30;

/// What a server for a drill is told on its command line, since which version.
const SETTINGS: [(&str, &str, u32); 39] = [
    // Nothing leaves the scratch directory, and nobody comes in.
    ("archive_mode", "off", 13),
    ("archive_command", "", 13),
    ("archive_library", "", 15),
    ("primary_conninfo", "", 13),
    ("listen_addresses", "", 13),
    ("ssl", "off", 13),
    ("unix_socket_permissions", "0700", 13),
    ("external_pid_file", "", 13),
    ("logging_collector", "off", 13),
    ("log_destination", "stderr", 13),
    ("log_statement", "none", 13),
    ("max_logical_replication_workers", "0", 13),
    // Nothing starts by itself that the database brings with it.
    ("session_preload_libraries", "", 13),
    ("local_preload_libraries", "", 13),
    ("session_replication_role", "replica", 13),
    ("event_triggers", "off", 17),
    ("jit", "off", 13),
    ("autovacuum", "off", 13),
    // This machine is a small one.
    ("shared_buffers", "128MB", 13),
    ("huge_pages", "off", 13),
    ("work_mem", "4MB", 13),
    ("maintenance_work_mem", "64MB", 13),
    ("max_wal_size", "512MB", 13),
    ("min_wal_size", "80MB", 13),
    ("max_parallel_workers_per_gather", "0", 13),
    ("dynamic_shared_memory_type", "mmap", 13),
    ("fsync", "off", 13),
    ("temp_tablespaces", "", 13),
    // Damage is told, whatever is set where it may have come from.
    ("ignore_checksum_failure", "off", 13),
    ("zero_damaged_pages", "off", 13),
    ("ignore_invalid_pages", "off", 13),
    ("ignore_system_indexes", "off", 13),
    ("statement_timeout", "0", 13),
    // Languages and zones of that machine may be missing here.
    ("lc_messages", "C", 13),
    ("lc_monetary", "C", 13),
    ("lc_numeric", "C", 13),
    ("lc_time", "C", 13),
    ("timezone", "UTC", 13),
    ("log_timezone", "UTC", 13),
];

/// PostgreSQL on this machine.
pub(super) struct Machine {
    pub(super) bin_dir: PathBuf,
}

/// A restored database: its server, and what is told of it.
pub(super) struct Restored {
    pub(super) server: Server,
    pub(super) version: u32,
    pub(super) bin_dir: PathBuf,
}

/// Restores a system to a moment; none where damage keeps it from it, which is then a finding.
///
/// # Errors
/// What keeps a drill from being carried out: no room, no programs, a store that is away, a moment that cannot be reached.
pub(super) async fn restored(
    (store, archive): (&Store, &Archive),
    system_id: u64,
    asked: &Asked,
    scratch: &Scratch,
    report: &mut Restoration,
) -> Result<Option<Restored>> {
    let begun = Instant::now();
    let log = patiently(PATIENCE, || Log::open(store, Some(system_id))).await?.patient();
    let version = log.system().server_version;
    report.server_version = version;
    let machine = Machine::look(asked.bin_dir.as_deref(), version)?;
    let goal = match goal(store, system_id, asked).await {
        Ok((at, goal)) => {
            report.at = at;
            goal
        }
        Err(error) => return report.found(Part::Restore, error).map(|()| None),
    };
    let plan = match planned(store, &log, goal).await {
        Ok(plan) => plan,
        // Whoever names a moment may be wrong; what the archive claims to reach, it must.
        Err(error) if asked.at.is_some() => return Err(error),
        Err(error) => return report.found(Part::Restore, error).map(|()| None),
    };
    report.backup.clone_from(&plan.backup.name);
    report.timeline = plan.timeline;
    has_room(&plan, scratch)?;
    let data = scratch.at("data");
    let held = manifest::writer_id()?;
    let unpacked = unpack((store, archive), &log, (&plan, &held), &machine, scratch).await;
    let (foreseen, is_held) = match unpacked {
        Ok(unpacked) => unpacked,
        Err(error) => return report.found(Part::Restore, error).map(|()| None),
    };
    report.restored_seconds = begun.elapsed().as_secs_f64();
    report.bytes = plan.bytes();
    report.log_bytes = plan.log_bytes();
    let start = start(&data, &machine, (version, &foreseen), asked, scratch)?;
    let server = opened(start, asked, report).await;
    if is_held && let Err(error) = store.delete(&layout::hold(system_id, &held)).await {
        tracing::warn!(%error, name = held, "the hold of this drill cannot be removed: retention waits for it for hours");
    }
    Ok(server?.map(|server| Restored { server, version, bin_dir: machine.bin_dir }))
}

/// Starts the server and waits until it is open; none where it does not open, which is then a finding.
async fn opened(start: Start, asked: &Asked, report: &mut Restoration) -> Result<Option<Server>> {
    let opening = Instant::now();
    let mut server = Server::start(start)?;
    match server.opened(Open::ForWriting, &asked.user).await {
        Ok(reached) => {
            report.opened_seconds = opening.elapsed().as_secs_f64();
            (report.reached, report.timeline) = (reached.replayed, reached.timeline);
            Ok(Some(server))
        }
        // Its log is gone with the scratch directory: the error has its end.
        Err(error) if error.kind() == Kind::Unsupported => {
            let finding = Finding { part: Part::Open, about: "PostgreSQL".to_owned(), detail: error.to_string() };
            report.findings.push(finding);
            Ok(None)
        }
        Err(error) if error.kind() == Kind::Denied => Err(error.hint("name a superuser of the database: --user NAME")),
        Err(error) => Err(error),
    }
}

/// Returns where to: what was asked for, or a moment of what can be recovered.
async fn goal(store: &Store, system_id: u64, asked: &Asked) -> Result<(String, Goal)> {
    if let Some(at) = &asked.at {
        let shown = match at {
            Goal::Time(us) => time::rfc3339_micros(*us),
            Goal::Lsn(lsn) => lsn.to_string(),
            _ => "the end".to_owned(),
        };
        return Ok((shown, at.clone()));
    }
    let windows = patiently(PATIENCE, || windows(store, system_id)).await?;
    let moment = moment::of_seed(&windows, asked.seed).ok_or_else(|| {
        Error::new(
            Kind::Incomplete,
            format!(
                "nothing of the system {system_id} can be recovered: no base backup with its WAL, and a commit after it"
            ),
        )
        .hint("`tidelog ls` says what there is; `tidelog backup` takes a base backup")
    })?;
    Ok((time::utc(moment), Goal::Time(moment.timestamp_micros())))
}

/// What of a system can be recovered.
///
/// # Errors
/// The store's.
pub(super) async fn windows(store: &Store, system_id: u64) -> Result<Vec<Window>> {
    let Some(chain) = Chain::open(store, &StreamId::Postgres { system_id }).await? else { return Ok(Vec::new()) };
    let backups = manifest::found::backups(store, system_id, chain.backups()).await?;
    let facts = recoverable::facts(store, &chain, &backups.sound).await?;
    recoverable::windows(store, &chain, &facts).await
}

async fn planned(store: &Store, log: &Log, goal: Goal) -> Result<Plan> {
    let backups = patiently(PATIENCE, || log.backups()).await?.sound;
    let wanted = Wanted { goal, exclusive: false, timeline: None, backup: None };
    patiently(PATIENCE, || plan(store, log, &backups, &wanted)).await
}

/// Refuses a disk on which it does not fit, before anything is written there.
fn has_room(plan: &Plan, scratch: &Scratch) -> Result<()> {
    let place = scratch.at("");
    let failed = |source| Error::io(source, format!("cannot look at {}", place.display()));
    let (free, compresses) = (room::free(&place).map_err(failed)?, room::compresses(&place).map_err(failed)?);
    // What is made of several backups lies beside them, and is about as large as the full one.
    let made = plan.parents.first().map_or(0, |full| full.bytes().max(plan.backup.bytes()));
    let needed = total([plan.bytes(), made, plan.log_bytes().min(LOG_KEPT)]);
    if needed <= free || compresses {
        return Ok(());
    }
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    let message =
        format!("{}: the drill needs {} MiB there, and {} MiB are free", place.display(), mib(needed), mib(free));
    Err(Error::new(Kind::Full, message).hint("make room, or name a directory on a larger disk: --scratch DIR"))
}

/// Unpacks the base backup and sets the recovery up; gives whether what it needs is held, by that name.
async fn unpack(
    (store, archive): (&Store, &Archive),
    log: &Log,
    (plan, name): (&Plan, &str),
    machine: &Machine,
    scratch: &Scratch,
) -> Result<(Foreseen, bool)> {
    let (system_id, data) = (log.system().system_id, scratch.at("data"));
    let combiner = match plan.parents.first() {
        Some(_) => Some(Combiner::find(Some(&machine.bin_dir), plan.backup.system.server_version)?),
        None => None,
    };
    let holding = Holding::begin(store, log, plan, name, "a drill's machine").await?;
    let restoring = async {
        let foreseen = foresee(log, plan, &Arc::default()).await?;
        let into = Destination {
            data: data.clone(),
            is_delta: false,
            jobs: JOBS,
            tablespaces: Places { moved: moved(plan, scratch), old_too: false },
            combiner,
            foreseen,
            action: Action::Promote,
            fetching: LogSource::of(archive, true)?,
        };
        restore(store, plan, &into, &Arc::default()).await?;
        Ok(into.foreseen)
    };
    let restored = restoring.await;
    let is_held = holding.is_some();
    match (holding, &restored) {
        (Some(holding), Ok(_)) => holding.hand_over(store, system_id, &data).await,
        (Some(holding), Err(_)) => holding.give_back(store, system_id).await,
        _ => {}
    }
    restored.map(|foreseen| (foreseen, is_held))
}

/// Where tablespaces go: beside the data directory, wherever they were.
fn moved(plan: &Plan, scratch: &Scratch) -> BTreeMap<PathBuf, PathBuf> {
    let tablespaces = plan.backup.archives.iter().filter_map(|archive| archive.tablespace.as_ref());
    let tablespaces = tablespaces.filter(|one| !one.is_in_place());
    tablespaces.map(|one| (PathBuf::from(&one.path), scratch.at(&format!("tablespace-{}", one.oid)))).collect()
}

fn start(
    data: &Path,
    machine: &Machine,
    (version, foreseen): (u32, &Foreseen),
    asked: &Asked,
    scratch: &Scratch,
) -> Result<Start> {
    let file = |name: &str, text: &str| {
        let file = scratch.at(name);
        let failed = |source| Error::io(source, format!("cannot write {}", file.display()));
        fs::write(&file, text).map_err(failed).map(|()| file.display().to_string())
    };
    let mut settings: Vec<(String, String)> = Vec::new();
    let mut set = |name: &str, value: String| settings.push((name.to_owned(), value));
    set("config_file", file("postgresql.conf", "# Of a drill: all settings are on the command line.\n")?);
    set("hba_file", file("pg_hba.conf", "local all all trust\n")?);
    set("ident_file", file("pg_ident.conf", "")?);
    for (name, value, _) in SETTINGS.iter().filter(|(_, _, since)| version >= *since) {
        set(name, (*value).to_owned());
    }
    set("shared_preload_libraries", asked.preload.clone());
    for (name, value) in limits_of(data, foreseen)? {
        set(name, value.to_string());
    }
    Ok(Start {
        bin_dir: machine.bin_dir.clone(),
        data: data.to_owned(),
        socket: scratch.at("socket"),
        port: 5432,
        listen: String::new(),
        log: scratch.at("server.log"),
        settings,
        outlives: false,
    })
}

impl Machine {
    /// Looks for PostgreSQL's programs of a version.
    ///
    /// # Errors
    /// [`Kind::Config`] if there are none.
    pub(super) fn look(bin_dir: Option<&Path>, version: u32) -> Result<Self> {
        match programs::find("postgres", bin_dir, version) {
            Ok(program) => Ok(Self { bin_dir: program.parent().unwrap_or(Path::new("/")).to_owned() }),
            Err(others) => {
                let others = if others.is_empty() { String::new() } else { format!(" ({})", others.join("; ")) };
                let message =
                    format!("the drill starts PostgreSQL {version}, and no program postgres of it is found{others}");
                Err(Error::new(Kind::Config, message).hint(format!(
                    "install PostgreSQL {version}, and name the directory of its programs where it is none of those of packages: --bin-dir DIR"
                )))
            }
        }
    }
}
