//! `tidelog drill`: recovery tests, run from the archive at hand against servers that it starts itself and removes, or scratch ones.

mod all;
mod corruption;
mod ending;
mod pipeline;
mod schema;
mod slot;

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
    /// Recover the whole pipeline to a random moment into scratch servers, compare tables and topics, remove all of it.
    ///
    /// The scratch cluster, workers and registry are named by the pipeline file, and may hold nothing of what comes; the database is restored
    /// into a directory of the drill's own. Exit codes and result as those of the drill corruption.
    Pipeline(pipeline::Args),
    /// Put the archived schemas of a random moment into a scratch registry, read them back, decode archived records by them.
    ///
    /// The registry has to be empty, and is empty at the end. Exit codes and result as those of the drill corruption.
    Schema(schema::Args),
    /// Bring back the slots of the archived connectors on a scratch standby (PostgreSQL 16 and newer), as recover slot does, and read them.
    ///
    /// What they give has to be what the archived log counts, and all that the archived topics have. It connects to no server of the
    /// configuration. Exit codes and result as those of the drill corruption.
    Slot(slot::Args),
    /// All of these, as far as the archive and the pipeline file reach; what is left out is said.
    ///
    /// One report; each drill keeps its own result. Exits with 3 if any has found something, else as the first that could not be
    /// carried out.
    All(all::Args),
}

/// Runs a drill.
pub(super) async fn run(args: &Args, config: &Path) -> Result<()> {
    match &args.drill {
        Drill::Corruption(args) => corruption::run(args, &Archive::load(config)?).await?.end(args.json),
        Drill::Pipeline(args) => Box::pin(pipeline::run(args, &Config::load(config)?)).await?.end(args.json),
        Drill::Schema(args) => Box::pin(schema::run(args, &Config::load(config)?)).await?.end(args.json),
        Drill::Slot(args) => Box::pin(slot::run(args, &Config::load(config)?)).await?.end(args.json),
        Drill::All(args) => Box::pin(all::run(args, config)).await,
    }
}
