//! `tidelog recover slot`: what a lost slot did not deliver.

use std::path::PathBuf;

use super::failed::exits_with_1;
use crate::cli::output::{print, print_json};
use crate::config::{Config, Pipeline};
use crate::error::{Error, Result};
use crate::recover::repair::asked::Asked;
use crate::recover::repair::prepare::prepare;
use crate::recover::repair::report::Report;
use crate::recover::repair::run::{carry_out, plan};
use crate::store::Store;

/// Brings what a connector missed when its slot was lost, deletes included, in order and in its own shape.
///
/// The connector itself reads it, with the offset that it has, from a scratch standby that is made out of the archive (PostgreSQL 16 and
/// newer), and goes on from a new slot on the primary. Where no standby decodes, it reads the net changes of the captured tables from a
/// scratch server: each key that differs, once. With --dry-run it says which commits were missed, whether the archive has all of
/// the log behind them, and which way it will take.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tidelog recover slot --connector shop --pipeline pipeline.toml --dry-run
  tidelog recover slot --connector shop --pipeline pipeline.toml

The pipeline file names the workers ([connect] url), the primary ([postgres] url), where the standby is made ([scratch] into, bin_dir,
port), and how the workers reach it ([[connector]] with \"database.hostname\" in [connector.config]).
The same command goes on after it was killed. What it has done lies in a folder beside the scratch directory (<into>.recover), which is
removed with it at the end.

Exit codes: 0 all done and proven, or nothing was missed; 3 done with differences, 1 failed, or no way is certain; 2 usage or configuration.")]
pub(super) struct Args {
    /// The connector whose slot was lost
    #[arg(long, value_name = "NAME")]
    connector: String,
    /// The file that says where everything is (TOML)
    #[arg(long, value_name = "FILE")]
    pipeline: PathBuf,
    /// Where it is written down how far it came: a directory of its own
    #[arg(long, value_name = "DIR")]
    journal: Option<PathBuf>,
    /// Say what was missed and what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Yes: the connector runs and may be stopped; a slot that was made later may be dropped
    #[arg(long)]
    yes: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Args {
    fn asked(&self) -> Result<Asked> {
        let absolute = |path: &PathBuf| {
            std::path::absolute(path).map_err(|source| Error::io(source, "cannot tell the working directory"))
        };
        let file = absolute(&self.pipeline)?;
        let pipeline = Pipeline::load(&file)?;
        let folder = match &self.journal {
            Some(folder) => absolute(folder)?,
            None => {
                let beside = pipeline.scratch.as_ref().map_or(&file, |scratch| &scratch.into);
                let mut name = beside.file_name().unwrap_or_default().to_owned();
                name.push(".recover");
                beside.with_file_name(name)
            }
        };
        Ok(Asked { connector: self.connector.clone(), pipeline, folder, yes: self.yes })
    }
}

/// Runs the command.
pub(super) async fn run(args: &Args, config: &Config) -> Result<()> {
    let asked = args.asked()?;
    let store = Store::open(&config.archive)?;
    let prepared = Box::pin(prepare(&store, &asked)).await?;
    if args.dry_run {
        show(args, &plan(&prepared))?;
        return prepared.chosen.refusal().map_or(Ok(()), |error| Err(exits_with_1(error)));
    }
    let (report, failed) = Box::pin(carry_out(&store, config, &asked, &prepared)).await?;
    show(args, &report)?;
    match failed {
        Some(error) => Err(exits_with_1(error)),
        None => report.verdict(),
    }
}

fn show(args: &Args, report: &Report) -> Result<()> {
    if args.json { print_json(report) } else { print(&report.text()) }
}
