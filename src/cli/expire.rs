//! `tidelog expire`: retention by hand.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;

use super::human;
use super::inspect::all_read;
use super::output::{print, print_json};
use crate::config::Config;
use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::manifest::backups::backups;
use crate::manifest::path::Taken;
use crate::manifest::{self, Chain, holds, recoverable};
use crate::pipeline::postgres::{Given, give_up, sweep};
use crate::pipeline::writer_id;
use crate::store::Store;
use crate::stream::StreamId;
use crate::time;

/// Gives up what `[retention]` lets go: WAL and base backups without which every moment of the time stays recoverable.
///
/// `tidelog run` does this by itself. Objects are deleted an hour after they were given up: a restore that is under way
/// still finds them.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tidelog expire --dry-run     what would go
  tidelog expire")]
pub(crate) struct Args {
    /// Only print what would be given up
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Outcome {
    dry_run: bool,
    /// Every moment from here on stays recoverable.
    keep_from: String,
    segments: u64,
    stored_bytes: u64,
    backups: u64,
    /// Objects that were deleted now, given up earlier.
    deleted: u64,
}

/// Runs the command.
pub(crate) async fn run(args: &Args, config: &Config) -> Result<()> {
    let kept = config.retention.postgres.ok_or_else(|| {
        Error::new(Kind::Config, "retention.postgres is not set, and everything is kept")
            .hint("set it, for example [retention] postgres = \"7d\"")
    })?;
    let now = Utc::now();
    let horizon =
        now - TimeDelta::from_std(kept).or_err(Kind::Config, || "retention.postgres is too long".to_owned())?;
    let store = Store::open(&config.archive)?;
    let (mut gone, mut damaged) = (Gone::default(), Vec::new());
    for stream in manifest::streams(&store).await?.into_iter().filter(|stream| stream.topic().is_none()) {
        let one = expire(&store, &stream, (horizon, now), args.dry_run).await;
        match manifest::isolated(&store, one).await? {
            Ok(one) => gone.add(one),
            Err(error) => damaged.push((stream, error)),
        }
    }
    let Gone { given, deleted, passed_over } = gone;
    let outcome = Outcome {
        dry_run: args.dry_run,
        keep_from: time::utc(horizon),
        segments: given.wal.segments,
        stored_bytes: given.wal.stored_bytes,
        backups: given.backups,
        deleted,
    };
    if args.json {
        print_json(&outcome)?
    } else {
        print(&text(&outcome, kept))?
    }
    all_read(&damaged)?;
    passed_over.map_or(Ok(()), Err)
}

/// What has gone, or would.
#[derive(Debug, Default)]
struct Gone {
    given: Given,
    /// Objects that were deleted, given up earlier.
    deleted: u64,
    /// The base backups that cannot be read, and stay.
    passed_over: Option<Error>,
}

impl Gone {
    fn add(&mut self, more: Self) {
        self.given.wal.add(&more.given.wal);
        self.given.backups += more.given.backups;
        self.deleted += more.deleted;
        self.passed_over = self.passed_over.take().or(more.passed_over);
    }
}

/// Gives up what one stream does not need to lead to every moment from `horizon` on.
async fn expire(
    store: &Store,
    stream: &StreamId,
    (horizon, now): (DateTime<Utc>, DateTime<Utc>),
    dry_run: bool,
) -> Result<Gone> {
    let mut gone = Gone::default();
    let StreamId::Postgres { system_id } = *stream else { return Ok(gone) };
    let Some(mut chain) = Chain::open(store, stream).await? else { return Ok(gone) };
    let found = backups(store, system_id, chain.backups()).await?;
    gone.passed_over = found.error();
    let taken = found.sound.iter().map(Taken::of).collect();
    if dry_run {
        let held = holds::held(store, system_id, now).await?;
        let surplus = recoverable::surplus(store, &chain, taken, horizon, &held).await?;
        gone.given.wal = chain.to_expire(&surplus.before, now).await?.retired;
        gone.given.backups = surplus.backups.len() as u64;
    } else {
        gone.given = give_up(store, &mut chain, taken, horizon, &writer_id()?).await?;
        gone.deleted = sweep(store, &chain, (holds::store_time(store, system_id).await?, Some(horizon))).await?;
    }
    Ok(gone)
}

fn text(outcome: &Outcome, kept: Duration) -> String {
    let verb = if outcome.dry_run { "would be given up" } else { "given up" };
    let mut text = format!(
        "{} of WAL ({}) and {} {verb}; every moment of the last {} stays recoverable\n",
        human::many(outcome.segments, "segment"),
        human::bytes(outcome.stored_bytes),
        human::many(outcome.backups, "base backup"),
        human::span(kept)
    );
    if outcome.deleted > 0 {
        text.push_str(&format!("{} deleted that were given up earlier\n", human::many(outcome.deleted, "object")));
    }
    text
}
