//! The command line: what a user types, in; what the program did, out.
//!
//! Results go to standard output, everything else (logs, progress, errors) to standard error. Exit codes: 0 done,
//! 1 failed, 2 usage or configuration, 3 finished, and what was found is damaged or incomplete.

mod allocator;
mod backup;
mod check;
mod core_dumps;
mod demo;
mod drill;
mod expire;
mod human;
mod inspect;
mod leave;
mod output;
mod progress;
mod recover;
mod replay;
mod restore;
mod run;
mod runtime;
mod shell;
mod state;
mod timeline;
mod umask;
mod wal_fetch;

use std::path::PathBuf;

use clap::{CommandFactory, Parser, Subcommand};

use crate::config::{Archive, Config};
use crate::error::{Error, Kind, Result};
use crate::telemetry::{self, LogFormat};
use runtime::block_on;

/// Archives a change-data pipeline continuously and gives back any time range.
#[derive(Debug, Parser)]
#[command(name = "tidelog", version, after_help = EXAMPLES, arg_required_else_help = true)]
struct Cli {
    /// The configuration file.
    #[arg(short, long, global = true, value_name = "FILE", default_value = "/etc/tidelog/tidelog.toml")]
    config: PathBuf,
    /// How log lines look on standard error [default: text on a terminal, json elsewhere].
    #[arg(long, global = true, value_enum, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "Examples:
  tidelog demo                                   see it work, without any server
  tidelog check --connect -c tidelog.toml        try the configuration against broker and store
  tidelog run -c tidelog.toml                    archive until stopped
  tidelog ls                                     what is archived, how far, what is missing
  tidelog cat --topic orders --from -10m         records as JSON lines
  tidelog replay --from -1h --to now --topics orders --rename '(.*)=replay.$1' --dry-run
  tidelog verify --deep                          prove that the archive is whole

Exit codes: 0 done, 1 failed, 2 usage or configuration, 3 finished but damaged or incomplete.
Every key of the configuration can be set by the environment: TIDELOG__KAFKA__BOOTSTRAP_SERVERS=broker:9092";

#[derive(Debug, Subcommand)]
enum Command {
    /// Archive continuously, until SIGTERM or Ctrl-C.
    Run,
    /// Validate the configuration; with --connect, try every server and the store.
    Check(check::Args),
    /// List streams, how far they are archived, and what is missing.
    Ls(inspect::LsArgs),
    /// Print the committed objects, one a line, for DuckDB, Spark and the like.
    Files(inspect::FilesArgs),
    /// Print archived records as JSON lines.
    Cat(inspect::CatArgs),
    /// Show what changed in the pipeline's own state between two moments.
    Diff(inspect::DiffArgs),
    /// Send a time range of archived records to Kafka or to standard output.
    Replay(replay::Args),
    /// Check chains, objects and counts; with --deep, decode every record.
    Verify(inspect::VerifyArgs),
    /// Take a Postgres base backup now.
    Backup(backup::Args),
    /// Make a Postgres data directory out of the archive, ready to start.
    RestorePostgres(restore::RestoreArgs),
    /// Bring the whole pipeline to one commit: database, slots, topics, connectors.
    Recover(recover::Args),
    /// Give Postgres a file of its write-ahead log: restore_command = 'tidelog wal-fetch %f %p'. Exit codes: 0
    /// delivered, 1 provably absent, 200 anything else.
    WalFetch(wal_fetch::FetchArgs),
    /// Expire the records, WAL, base backups and versions of state that retention lets go.
    Expire(expire::Args),
    /// Try a recovery from the archive against a scratch server, and remove it again.
    Drill(drill::Args),
    /// Take a timeline of Postgres out of the way that was archived by mistake.
    Timeline(timeline::Args),
    /// Show everything at work on this machine, without any server.
    Demo(demo::Args),
    /// Answer the questions of `tidelog run` about the state of Kafka, in a process of its own.
    #[command(hide = true)]
    StateOfKafka,
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// Runs the command that the process was started with, and ends the process.
pub fn main() -> ! {
    leave::leave(exit_code())
}

fn exit_code() -> u8 {
    allocator::keep_little();
    core_dumps::switch_off();
    umask::keep_others_from_writing();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // Help and version are no failure; clap knows.
        Err(error) => {
            drop(error.print());
            let code = u8::try_from(error.exit_code()).unwrap_or(2);
            // To Postgres every code up to 125 means that there is no such file.
            let is_asked_by_postgres = std::env::args_os().any(|word| word == "wal-fetch");
            return if is_asked_by_postgres && code != 0 { wal_fetch::UNKNOWN } else { code };
        }
    };
    if let Command::WalFetch(args) = &cli.command {
        return wal_fetch::fetch(args, &cli.config, cli.log_format);
    }
    match run_command(cli) {
        Ok(()) => 0,
        Err(error) => {
            output::report("", &error, "  do     ");
            error.exit_code()
        }
    }
}

fn run_command(cli: Cli) -> Result<()> {
    // What serves logs its work; what answers a question logs only what it could not do.
    let level = if matches!(cli.command, Command::Run) { "info" } else { "warn" };
    telemetry::start(cli.log_format, level)?;
    let config = || Config::load(&cli.config);
    match cli.command {
        Command::Run => block_on(run::run(&config()?)),
        Command::Check(args) => block_on(check::run(&args, &cli.config)),
        Command::Ls(args) => block_on(inspect::ls(&args, &config()?)),
        Command::Files(args) => block_on(inspect::files(&args, &config()?)),
        Command::Cat(args) => block_on(inspect::cat(&args, &config()?)),
        Command::Diff(args) => block_on(inspect::diff(&args, &config()?)),
        Command::Replay(args) => block_on(replay::run(&args, &config()?)),
        Command::Verify(args) => block_on(inspect::verify(&args, &config()?)),
        Command::Backup(args) => block_on(backup::run(&args, &config()?)),
        Command::RestorePostgres(args) => block_on(restore::run(&args, &Archive::load(&cli.config)?)),
        Command::Recover(args) => block_on(recover::run(&args, &config()?)),
        // Answered before: its exit codes are Postgres'.
        Command::WalFetch(_) => Err(Error::new(Kind::Internal, "wal-fetch was not answered")),
        Command::Expire(args) => block_on(expire::run(&args, &config()?)),
        Command::Drill(args) => block_on(drill::run(&args, &cli.config)),
        Command::Timeline(args) => block_on(timeline::run(&args, &config()?)),
        Command::Demo(args) => block_on(demo::run(&args)),
        Command::StateOfKafka => block_on(state::run()),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "tidelog", &mut script);
            output::print(&String::from_utf8_lossy(&script))
        }
    }
}
