//! `tidelog drill`: recovery tests, run from the archive at hand against servers that it starts itself and removes, or scratch ones.

mod corruption;
mod ending;
mod schema;

use std::path::Path;

use clap::Subcommand;

use crate::config::{Archive, Config};
use crate::error::Result;

/// Which drill.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    drill: Drill,
}

#[derive(Debug, Subcommand)]
enum Drill {
    /// Read the whole archive, restore Postgres to a random moment into a scratch directory, open it, read every table.
    ///
    /// It connects to no server of the configuration. Exits with 3 if anything is not as it should be, with 1 if it could not be
    /// carried out. The result is kept in the archive, for the metric tidelog_drill_last_success_timestamp_seconds.
    Corruption(corruption::Args),
    /// Put the archived schemas of a random moment into a scratch registry, read them back, decode archived records by them.
    ///
    /// The registry has to be empty, and is empty at the end. Exit codes and result as those of the drill corruption.
    Schema(schema::Args),
}

/// Runs a drill.
pub(super) async fn run(args: &Args, config: &Path) -> Result<()> {
    match &args.drill {
        Drill::Corruption(args) => corruption::run(args, &Archive::load(config)?).await,
        Drill::Schema(args) => Box::pin(schema::run(args, &Config::load(config)?)).await,
    }
}
