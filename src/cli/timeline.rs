//! `tidelog timeline abandon`: a timeline that was archived by mistake is taken out of the way.

use serde::Serialize;

use super::human;
use super::output::{print, print_json};
use crate::config::Config;
use crate::error::{Error, Kind, Result};
use crate::manifest::abandon::abandon;
use crate::manifest::writer_id;
use crate::manifest::{self, Chain};
use crate::store::Store;
use crate::stream::Lsn;
use crate::time;

/// What `tidelog timeline` is asked.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Take a timeline out of the way that was archived by mistake, or that another server has otherwise.
    ///
    /// What is archived of it leads nowhere from then on, and the number may be archived again. Its objects stay for
    /// retention.postgres from now on, and for ever where that is not set. Stop the archiver of the wrong server first: one
    /// that goes on would archive it again.
    Abandon(AbandonArgs),
}

#[derive(Debug, clap::Args)]
struct AbandonArgs {
    /// The timeline, as `tidelog ls --json` and `/readyz` name it.
    #[arg(value_name = "N")]
    timeline: u32,
    /// The system, where the archive holds several.
    #[arg(long, value_name = "ID")]
    system: Option<u64>,
    /// Also what was archived of it since it was abandoned the last time
    #[arg(long)]
    again: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Outcome {
    stream: String,
    timeline: u32,
    start: Lsn,
    end: Lsn,
    segments: u64,
    stored_bytes: u64,
    backups: Vec<String>,
    decided: String,
}

/// Runs the command.
pub(super) async fn run(args: &Args, config: &Config) -> Result<()> {
    let What::Abandon(args) = &args.command;
    let store = Store::open(&config.archive)?;
    let stream = manifest::system(&store, args.system).await?;
    let chain = Chain::open(&store, &stream).await?;
    let mut chain = chain.ok_or_else(|| Error::new(Kind::NotFound, format!("the chain of {stream} has gone")))?;
    let abandoned = abandon(&store, &mut chain, (args.timeline, args.again), &writer_id()?).await?;
    let outcome = Outcome {
        stream: stream.to_string(),
        timeline: args.timeline,
        start: Lsn::at(abandoned.start),
        end: Lsn::at(abandoned.end),
        segments: abandoned.retired.segments,
        stored_bytes: abandoned.retired.stored_bytes,
        backups: abandoned.backups,
        decided: time::utc(abandoned.decided),
    };
    if args.json { print_json(&outcome) } else { print(&text(&outcome, config)) }
}

fn text(outcome: &Outcome, config: &Config) -> String {
    let kept = config.retention.postgres.map_or("for ever, for retention.postgres is not set".to_owned(), |kept| {
        format!("for {} from now on (retention.postgres)", human::span(kept))
    });
    format!(
        "timeline {} of {} is abandoned: {} to {}, {} ({}), {}\n\
         it leads nowhere any more, and the objects stay {kept}\n\
         `tidelog run` goes on within half a minute; take a base backup if none leads to the present (`tidelog ls`)\n",
        outcome.timeline,
        outcome.stream,
        outcome.start,
        outcome.end,
        human::many(outcome.segments, "segment"),
        human::bytes(outcome.stored_bytes),
        human::many(outcome.backups.len() as u64, "base backup"),
    )
}
