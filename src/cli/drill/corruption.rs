//! `tidelog drill corruption`.

use std::path::PathBuf;
use std::sync::Arc;

use super::ending::{Told, scratch, seed, stopped};
use crate::cli::human;
use crate::cli::progress::{Progress, Unit};
use crate::config::Archive;
use crate::error::Result;
use crate::escape::one_line;
use crate::recover::drill::{self, Asked, Corruption, Report, Restoration};
use crate::restore::plan::Goal;
use crate::store::Store;
use crate::stream::Lsn;
use crate::time;
use crate::verify::Seen;

/// Read the whole archive, restore Postgres to a random moment into a scratch directory, open it, read every table.
///
/// It connects to no server of the configuration. Exits with 3 if anything is not as it should be, with 1 if it could not be
/// carried out. The result is kept in the archive, for the metric tidelog_drill_last_success_timestamp_seconds.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The directory below which the scratch directory is made, on a disk with room for the database [default: $TMPDIR, or /var/tmp].
    #[arg(long, value_name = "DIR")]
    pub(super) scratch: Option<PathBuf>,
    /// Where PostgreSQL's own programs of the database's version are [default: where packages have them, and PATH].
    #[arg(long, value_name = "DIR")]
    pub(super) bin_dir: Option<PathBuf>,
    /// Restore to this moment or position, and not to a random moment: RFC 3339, -90m, -2h, -7d, or an LSN.
    #[arg(long, value_name = "TIME|LSN", allow_hyphen_values = true)]
    pub(super) at: Option<String>,
    /// Choose the same random moment again that an earlier drill has told, as long as the archive is the same.
    #[arg(long, value_name = "N", conflicts_with = "at")]
    pub(super) seed: Option<u64>,
    /// The system to restore, where the archive holds several [default: each of them].
    #[arg(long, value_name = "ID")]
    pub(super) system: Option<u64>,
    /// A superuser of the database.
    #[arg(long, value_name = "NAME", default_value = "postgres")]
    pub(super) user: String,
    /// Libraries that the scratch server loads at its start (shared_preload_libraries): those without which tables cannot be read.
    #[arg(long, value_name = "LIST", default_value = "")]
    pub(super) preload: String,
    /// Print the report as JSON.
    #[arg(long)]
    pub(super) json: bool,
}

/// Runs it.
pub(super) async fn run(args: &Args, archive: &Archive) -> Result<Told> {
    let store = Store::open(archive)?;
    let asked = asked(args)?;
    let seen = Arc::new(Seen::default());
    let shown = Arc::clone(&seen);
    let bar = Progress::follow("reading the archive", Unit::Bytes, move || (shown.done(), shown.total()));
    let drilling = Box::pin(drill::corruption((&store, archive), &asked, &seen));
    // What is dropped half way stops its server and removes its directory.
    let (report, error) = tokio::select! {
        drilled = drilling => drilled?,
        stopped = stopped("its server and its scratch directory are gone") => return Err(stopped),
    };
    drop(bar);
    Told::of((&report, error), text)
}

fn asked(args: &Args) -> Result<Asked> {
    Ok(Asked {
        system: args.system,
        at: args.at.as_deref().map(goal).transpose()?,
        seed: seed(args.seed)?,
        scratch: scratch(args.scratch.as_ref()),
        bin_dir: args.bin_dir.clone(),
        user: args.user.clone(),
        preload: args.preload.clone(),
    })
}

fn goal(text: &str) -> Result<Goal> {
    match text.parse::<Lsn>() {
        Ok(lsn) => Ok(Goal::Lsn(lsn)),
        Err(_) => Ok(Goal::Time(time::parse_micros(text, time::now(), false)?)),
    }
}

fn text(report: &Report<Corruption>) -> String {
    let mut text = String::new();
    let archive = &report.about.archive;
    text += &format!(
        "archive: {}, {} with {}, {}, {} read in {:.0} s\n",
        human::many(archive.streams, "stream"),
        human::many(archive.segments, "segment"),
        human::many(archive.records, "record"),
        human::many(archive.backups, "base backup"),
        human::bytes(archive.bytes),
        archive.seconds
    );
    report.about.restored.iter().for_each(|one| text += &restoration(one, report.seed));
    text
}

fn restoration(one: &Restoration, seed: u64) -> String {
    let mut text = format!("system {}: to {} (seed {seed})", one.system_id, one.at);
    if one.backup.is_empty() {
        return text + "\n";
    }
    text += &format!(
        " from base backup {}: {} unpacked in {:.1} s\n",
        one.backup,
        human::bytes(one.bytes),
        one.restored_seconds
    );
    if let Some(reached) = one.reached {
        text += &format!(
            "  opened   PostgreSQL {} at {reached} in {:.1} s, {} of log replayed\n",
            one.server_version,
            one.opened_seconds,
            human::bytes(one.log_bytes)
        );
        let tables = one.databases.iter().map(|database| database.tables.len() as u64).sum();
        let rows = one.databases.iter().map(|database| database.rows).sum();
        text += &format!(
            "  read     {}, {}, {}\n  amcheck  {}\n",
            human::many(one.databases.len() as u64, "database"),
            human::many(tables, "table"),
            human::many(rows, "row"),
            one_line(&one.amcheck)
        );
    }
    one.notes.iter().for_each(|note| text += &format!("  note     {}\n", one_line(note)));
    text
}
