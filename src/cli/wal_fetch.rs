//! `tidelog wal-fetch`: the files that a recovering Postgres asks for.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::output;
use super::runtime::block_on;
use crate::config::Archive;
use crate::error::{Kind, Result, ResultExt};
use crate::manifest;
use crate::manifest::holds::RENEW_EVERY;
use crate::restore::Log;
use crate::restore::gate::Gate;
use crate::restore::holding::Kept;
use crate::restore::prefetch::Prefetch;
use crate::restore::wal_fetch::{self, Answer, Name};
use crate::store::Store;
use crate::stream::Lsn;
use crate::telemetry::{self, LogFormat};
use crate::time;

/// What `tidelog wal-fetch` is asked.
#[derive(Debug, clap::Args)]
pub(super) struct FetchArgs {
    /// The file that Postgres wants: %f.
    name: String,
    /// Where it wants it: %p.
    path: PathBuf,
    /// The system, where the archive holds several.
    #[arg(long, value_name = "ID")]
    system: Option<u64>,
    /// The last entry of the archive's chain when the restore was planned: one that has fewer is an older copy.
    #[arg(long, value_name = "N")]
    entry: Option<u64>,
    /// Up to where the log was looked through when the restore was planned: WAL behind it that makes a tablespace is refused.
    #[arg(long, value_name = "LSN")]
    planned: Option<Lsn>,
    /// Where the record begins behind which Postgres was told to stop: what is lost behind that in a file is not needed.
    #[arg(long, value_name = "LSN")]
    stop: Option<Lsn>,
    /// A file that says up to where a scratch standby gets the log.
    #[arg(long, value_name = "FILE", hide = true)]
    gate: Option<PathBuf>,
    /// Fetch the files after NAME into a folder beside PATH; wal-fetch starts this by itself.
    #[arg(long = "ahead", hide = true)]
    prefetch: bool,
}

/// The exit code for "it is not known": above 125, Postgres stops the recovery (`RestoreArchivedFile`, xlogarchive.c).
pub(super) const UNKNOWN: u8 = 200;

/// The exit code for "there is provably none".
const ABSENT: u8 = 1;

/// How long `wal-fetch` asks a store again that does not answer, while Postgres waits.
const FETCH_PATIENCE: Duration = Duration::from_secs(60);

/// Answers Postgres. A panic is an answer, too: its usual exit code would mean that there is no such file.
pub(super) fn fetch(args: &FetchArgs, config_file: &Path, log_format: Option<LogFormat>) -> u8 {
    let answered = std::panic::catch_unwind(|| {
        telemetry::start(log_format, "warn")?;
        answer(args, config_file)
    });
    match answered {
        Ok(Ok(Answer::Delivered)) => 0,
        Ok(Ok(Answer::Absent)) => ABSENT,
        Ok(Err(error)) => {
            output::report("", &error, "  do     ");
            UNKNOWN
        }
        Err(_) => UNKNOWN,
    }
}

fn answer(args: &FetchArgs, config_file: &Path) -> Result<Answer> {
    let name: Name = args.name.parse()?;
    // Taken before the archive is opened, which takes a while.
    let lock = if args.prefetch { Prefetch::beside(&args.path).lock()? } else { None };
    if args.prefetch && lock.is_none() {
        return Ok(Answer::Delivered);
    }
    if let (Name::Wal(wal), false) = (name, args.prefetch)
        && Prefetch::beside(&args.path).deliver(wal, &args.path)?
    {
        start_prefetch(args, config_file);
        return Ok(Answer::Delivered);
    }
    block_on(Fetching { args, config_file, name }.run())
}

/// One request.
struct Fetching<'a> {
    args: &'a FetchArgs,
    config_file: &'a Path,
    name: Name,
}

impl Fetching<'_> {
    /// Fetches, again and again while the store does not answer.
    async fn run(self) -> Result<Answer> {
        let archive = Archive::load(self.config_file)?;
        let begun = Instant::now();
        loop {
            match self.once(&archive).await {
                Err(error) if error.is_transient() && begun.elapsed() < FETCH_PATIENCE && !self.args.prefetch => {
                    output::report("", &error, "  do     ");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                result => return result,
            }
        }
    }

    async fn once(&self, archive: &Archive) -> Result<Answer> {
        let store = Store::open(archive)?;
        let log = Log::open(&store, self.args.system)
            .await?
            .looked_through(self.args.planned)
            .stopping_behind(self.args.stop)
            .gated(self.args.gate.as_deref().map(Gate::read).transpose()?);
        log.expect_entry(self.args.entry)?;
        match self.name {
            Name::Wal(wal) if self.args.prefetch => {
                let log = Arc::new(log);
                let renewing = async {
                    loop {
                        self.hold(&store, &log).await;
                        tokio::time::sleep(RENEW_EVERY / 4).await;
                    }
                };
                let follow = Prefetch::beside(&self.args.path);
                tokio::select! {
                    followed = follow.follow(Arc::clone(&log), wal) => followed.map(|()| Answer::Delivered),
                    () = renewing => Ok(Answer::Delivered),
                }
            }
            name => {
                let size = u64::from(log.system().wal_segment_size);
                if let Name::Wal(wal) = name
                    && log.reaches(wal.timeline(), wal.start(size)?)
                {
                    // It gets the next ones while this one is fetched.
                    start_prefetch(self.args, self.config_file);
                }
                self.hold(&store, &log).await;
                wal_fetch::fetch(&log, name, &self.args.path).await
            }
        }
    }

    /// Tells retention that a recovery goes on. A recovery does not fail for that.
    async fn hold(&self, store: &Store, log: &Log) {
        let Name::Wal(wal) = self.name else { return };
        let system = log.system();
        let Ok(from) = wal.start(system.wal_segment_size.into()) else { return };
        let kept = if self.args.prefetch { Kept::along(&self.args.path) } else { Kept::beside(&self.args.path) };
        if let Err(error) = kept.renew(store, (system.system_id, from), time::now(), manifest::writer_id).await {
            tracing::warn!(%error, "no hold can be written: retention does not know of this recovery");
        }
    }
}

/// Starts a process that fetches the next files, where there is none. Nobody hears what keeps it from starting: the next
/// request works without it.
fn start_prefetch(args: &FetchArgs, config_file: &Path) {
    let started = || -> Result<()> {
        if Prefetch::beside(&args.path).is_locked() {
            return Ok(());
        }
        use std::os::unix::process::CommandExt as _;
        let program = std::env::current_exe().or_err(Kind::Internal, || "where is this program?".to_owned())?;
        let mut command = Command::new(program);
        command.arg("--config").arg(config_file).args(["wal-fetch", "--ahead"]);
        if let Some(system) = args.system {
            command.args(["--system", &system.to_string()]);
        }
        if let Some(entry) = args.entry {
            command.args(["--entry", &entry.to_string()]);
        }
        if let Some(gate) = &args.gate {
            command.arg("--gate").arg(gate);
        }
        if let Some(planned) = args.planned {
            command.args(["--planned", &planned.to_string()]);
        }
        command.arg(&args.name).arg(&args.path);
        // Its own group, and none of Postgres' files: it must not hold up anything that waits for this request.
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().map(drop).or_err(Kind::Internal, || "cannot start".to_owned())
    };
    if let Err(error) = started() {
        tracing::debug!(%error, "nothing is fetched in advance");
    }
}
