//! `tidelog recover`: the whole pipeline brought to one commit.

mod failed;
mod slot;

use std::path::PathBuf;

use self::failed::exits_with_1;
use super::output::{print, print_json};
use crate::config::{Config, Pipeline};
use crate::error::{Error, Kind, Result};
use crate::recover::plan::plan;
use crate::recover::prepare::{Asked, Named, folder_of, prepare};
use crate::recover::report::Report;
use crate::recover::run::carry_out;
use crate::store::Store;

/// Brings a pipeline to one commit: the last at or before a moment.
///
/// The database is restored to just that commit and opened for nobody; slots are made before anything else can write; the topics get the
/// archived records of transactions up to the commit and of no other; the connectors go on from their new slots, without a snapshot. What
/// was written behind the recovery is seen in the topics at the end, or the recovery has failed.
#[derive(Debug, clap::Args)]
#[command(
    subcommand_negates_reqs = true,
    after_help = "Examples:
  tidelog recover --to 2026-11-22T08:00:00Z --pipeline pipeline.toml --dry-run
  tidelog recover --to -10m --pipeline pipeline.toml
  tidelog recover --to 16/B374D848 --pipeline pipeline.toml --only postgres,slots --json
  tidelog recover --to -10m --pipeline pipeline.toml --in-place --compensate --yes      topics stay, consumers converge
  tidelog recover slot --connector shop --pipeline pipeline.toml --dry-run      only a slot was lost, the database lives on

The same command goes on after it was killed. What it has done lies in a folder beside the new data directory (<into>.recover), or
beside the pipeline file.

Exit codes: 0 all done and proven, 3 done with differences or uncertain records, 1 failed, 2 usage or configuration."
)]
pub(super) struct Args {
    /// The moment: RFC 3339, now, -90m, -2h, or a position of the log (16/B374D848)
    #[arg(long, value_name = "TIME|LSN", allow_hyphen_values = true, required = true)]
    to: Option<String>,
    /// The file that says where each part goes (TOML)
    #[arg(long, value_name = "FILE", required = true)]
    pipeline: Option<PathBuf>,
    /// Only these parts: postgres, slots, registry, topics, connectors; state for slots, registry and connectors
    #[arg(long, value_name = "PARTS", value_delimiter = ',')]
    only: Vec<Named>,
    /// Where it is written down how far it came
    #[arg(long, value_name = "DIR")]
    journal: Option<PathBuf>,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Yes: the names of the old server, registry and cluster are those of the new ones now; connectors that are there and stopped are
    /// taken over; topics hold records already
    #[arg(long)]
    yes: bool,
    /// Topics stay where they are, on the cluster that they were archived from: what they hold beyond the commit is told
    #[arg(long)]
    in_place: bool,
    /// With --in-place: take it back, by the last state of each of those keys up to the commit, or its deletion
    #[arg(long, requires = "in_place")]
    compensate: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    part: Option<Part>,
}

/// A part that is brought back by itself.
#[derive(Debug, clap::Subcommand)]
enum Part {
    /// Bring what a lost slot did not deliver, deletes included: the database lives on.
    Slot(slot::Args),
}

impl Args {
    fn asked(&self) -> Result<Asked> {
        let absolute = |path: &PathBuf| {
            std::path::absolute(path).map_err(|source| Error::io(source, "cannot tell the working directory"))
        };
        let (Some(to), Some(pipeline)) = (&self.to, &self.pipeline) else {
            return Err(Error::new(Kind::Config, "--to and --pipeline are needed"));
        };
        let file = absolute(pipeline)?;
        let pipeline = Pipeline::load(&file)?;
        let folder = match &self.journal {
            Some(folder) => absolute(folder)?,
            None => folder_of(&pipeline, &file),
        };
        let only =
            (!self.only.is_empty()).then(|| self.only.iter().flat_map(|named| named.parts.iter().copied()).collect());
        let asked = Asked {
            to: to.clone(),
            pipeline,
            only,
            folder,
            yes: self.yes,
            dry_run: self.dry_run,
            in_place: self.in_place,
            compensate: self.compensate,
            is_drill: false,
        };
        let is_nowhere = |named: &&Named| !named.parts.iter().any(|part| asked.wants(*part));
        if let Some(Named { word, .. }) = self.only.iter().find(is_nowhere) {
            let message = format!("--only names {word}, and the pipeline file has no section for it");
            return Err(Error::new(Kind::Config, message).hint(
                "postgres and slots need [postgres], registry [schema_registry], topics [kafka], connectors [connect] or [strimzi]",
            ));
        }
        Ok(asked)
    }
}

/// Runs the command.
pub(super) async fn run(args: &Args, config: &Config) -> Result<()> {
    if let Some(Part::Slot(slot)) = &args.part {
        return match args.to {
            None => slot::run(slot, config).await,
            Some(_) => Err(Error::new(
                Kind::Config,
                "--to is of the whole pipeline, and slot of a connector whose database lives on",
            )),
        };
    }
    let asked = args.asked()?;
    let store = Store::open(&config.archive)?;
    let prepared = prepare(&store, config, &asked).await?;
    if asked.dry_run {
        return show(args, &plan(&store, config, &asked, &prepared).await?);
    }
    let (report, failed) = Box::pin(carry_out(&store, config, &asked, prepared)).await?;
    show(args, &report)?;
    match failed {
        Some(error) => Err(exits_with_1(error)),
        None => report.verdict(),
    }
}

fn show(args: &Args, report: &Report) -> Result<()> {
    if args.json { print_json(report) } else { print(&report.text()) }
}
