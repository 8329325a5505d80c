//! `tidelog drill pipeline`.

use std::path::PathBuf;

use super::ending::{Told, scratch, seed, stopped};
use crate::config::Config;
use crate::error::Result;
use crate::escape::one_line;
use crate::recover::drill::{self, AskedPipeline, Pipeline, Report};
use crate::store::Store;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The file that names the scratch servers (TOML), as that of recover; its section postgres has neither into nor url.
    #[arg(long, value_name = "FILE")]
    pub(super) pipeline: PathBuf,
    /// The directory below which the scratch directory is made, on a disk with room for the database [default: $TMPDIR, or /var/tmp].
    #[arg(long, value_name = "DIR")]
    pub(super) scratch: Option<PathBuf>,
    /// Where PostgreSQL's own programs of the database's version are [default: where packages have them, and PATH].
    #[arg(long, value_name = "DIR")]
    pub(super) bin_dir: Option<PathBuf>,
    /// Recover to this moment or position, and not to a random moment: RFC 3339, -90m, -2h, -7d, or an LSN.
    #[arg(long, value_name = "TIME|LSN", allow_hyphen_values = true)]
    pub(super) at: Option<String>,
    /// Choose the same random moment again that an earlier drill has told, as long as the archive is the same.
    #[arg(long, value_name = "N", conflicts_with = "at")]
    pub(super) seed: Option<u64>,
    /// Print the report as JSON.
    #[arg(long)]
    pub(super) json: bool,
}

/// Runs it.
pub(super) async fn run(args: &Args, config: &Config) -> Result<Told> {
    let asked = AskedPipeline {
        pipeline: args.pipeline.clone(),
        at: args.at.clone(),
        seed: seed(args.seed)?,
        scratch: scratch(args.scratch.as_ref()),
        bin_dir: args.bin_dir.clone(),
    };
    let store = Store::open(&config.archive)?;
    let stop = stopped("what it had made is removed");
    let (report, error) = Box::pin(drill::pipeline((&store, config), &asked, stop)).await?;
    Told::of((&report, error), text)
}

fn text(report: &Report<Pipeline>) -> String {
    let Pipeline { at, recovery, notes } = &report.about;
    let mut text = format!("pipeline: to {at} (seed {})\n", report.seed);
    text += &recovery.as_ref().map(|recovery| recovery.text()).unwrap_or_default();
    notes.iter().for_each(|note| text += &format!("  note     {}\n", one_line(note)));
    text
}
