//! `tidelog expire`: retention by hand.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;

use super::human;
use super::inspect::all_read;
use super::output::{print, print_json};
use crate::config::{Config, Kept, RecordRetention, Retention};
use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::manifest::aged::{self, Aged, Stays};
use crate::manifest::found::backups;
use crate::manifest::state::{self as versions, retention};
use crate::manifest::{self, Chain, holds, reads, recoverable};
use crate::pipeline::kafka::maintenance::{Moment, Newer, newest_first};
use crate::pipeline::postgres::{Expiry, delete_obsolete, expire};
use crate::pipeline::state::maintenance;
use crate::pipeline::writer_id;
use crate::store::Store;
use crate::stream::{StreamId, TopicGeneration};
use crate::time;

/// Expires what `[retention]` lets go: WAL and base backups without which every moment of the time stays recoverable, records
/// that were archived before their time or lie beyond their topic's size, and versions of state without which the state as of every moment of its time is told.
///
/// `tidelog run` does this by itself. Objects are deleted an hour after they were expired: whoever chose them before still
/// finds them.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tidelog expire --dry-run     what would go
  tidelog expire")]
pub(crate) struct Args {
    /// Only print what would expire
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Outcome {
    dry_run: bool,
    /// Every moment from here on stays recoverable; none where all of Postgres is kept.
    keep_from: Option<String>,
    segments: u64,
    stored_bytes: u64,
    backups: u64,
    /// Objects that were deleted now, expired earlier.
    deleted: u64,
    /// The generations of topics; none where all of their records are kept.
    kafka: Vec<Topic>,
    /// The documents of state; none where all of their versions are kept.
    state: Vec<Document>,
}

/// What is expired of a generation of a topic, and what stays.
#[derive(Debug, Serialize)]
struct Topic {
    stream: String,
    segments: u64,
    records: u64,
    stored_bytes: u64,
    kept_records: u64,
    kept_bytes: u64,
    /// Whether it would be more if nobody read it.
    held: bool,
}

/// What is expired of a document of state, and what stays.
#[derive(Debug, Serialize)]
struct Document {
    stream: String,
    versions: u64,
    stored_bytes: u64,
    kept_versions: u64,
    kept_bytes: u64,
    /// When the first one was found that stays: it is told for every moment from there on.
    kept_from: Option<String>,
}

/// Runs the command.
pub(crate) async fn run(args: &Args, config: &Config) -> Result<()> {
    let Retention { postgres, kafka, state } = &config.retention;
    if config.retention.keeps_everything() {
        return Err(Error::new(Kind::Config, "[retention] says nothing, and everything is kept")
            .hint("set one, for example [retention] postgres = \"7d\""));
    }
    let now = time::now();
    let (postgres, state) = (*postgres, *state);
    let horizon = postgres.map(|kept| before(now, kept)).transpose()?;
    let store = Store::open(&config.archive)?;
    let (mut gone, mut damaged) = (Gone::default(), Vec::new());
    let streams = manifest::streams(&store).await?;
    expire_topics(&store, (kafka, &streams), args.dry_run, (&mut gone, &mut damaged)).await?;
    for stream in streams {
        let one = match &stream {
            StreamId::Postgres { .. } => match horizon {
                Some(horizon) => expire_wal(&store, &stream, (horizon, now), args.dry_run).await,
                None => continue,
            },
            StreamId::Kafka(_) => continue,
            StreamId::State(_) => match state {
                Some(kept) => expire_state(&store, &stream, kept, args.dry_run).await,
                None => continue,
            },
        };
        match manifest::isolated(&store, one).await? {
            Ok(one) => gone.add(one),
            Err(error) => damaged.push((stream, error)),
        }
    }
    let Gone { expired, deleted, topics, documents, passed_over } = gone;
    let outcome = Outcome {
        dry_run: args.dry_run,
        keep_from: horizon.map(time::utc),
        segments: expired.wal.segments,
        stored_bytes: expired.wal.stored_bytes,
        backups: expired.backups,
        deleted,
        kafka: topics,
        state: documents,
    };
    if args.json {
        print_json(&outcome)?
    } else {
        print(&text(&outcome, postgres))?
    }
    all_read(&damaged)?;
    passed_over.map_or(Ok(()), Err)
}

fn before(now: DateTime<Utc>, kept: Duration) -> Result<DateTime<Utc>> {
    let too_long = || "retention.postgres is too long".to_owned();
    let span = TimeDelta::from_std(kept).or_err(Kind::Config, too_long)?;
    now.checked_sub_signed(span).ok_or_else(|| Error::new(Kind::Config, too_long()))
}

/// What has gone, or would.
#[derive(Debug, Default)]
struct Gone {
    expired: Expiry,
    /// Objects that were deleted, expired earlier.
    deleted: u64,
    /// The generations of topics.
    topics: Vec<Topic>,
    /// The documents of state.
    documents: Vec<Document>,
    /// The base backups that cannot be read, and stay.
    passed_over: Option<Error>,
}

impl Gone {
    fn add(&mut self, more: Self) {
        self.expired.wal.add(&more.expired.wal);
        self.expired.backups += more.expired.backups;
        self.deleted += more.deleted;
        self.topics.extend(more.topics);
        self.documents.extend(more.documents);
        self.passed_over = self.passed_over.take().or(more.passed_over);
    }
}

/// Expires what one stream does not need to lead to every moment from `horizon` on.
async fn expire_wal(
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
    let taken = found.sound.into_iter().map(|backup| backup.taken).collect();
    if dry_run {
        let held = holds::held(store, system_id, now).await?;
        let expirable = recoverable::expirable(store, &chain, taken, horizon, &held).await?;
        gone.expired.wal = chain.to_expire(&expirable.before, now).await?.retired;
        gone.expired.backups = expirable.backups.len() as u64;
    } else {
        gone.expired = expire(store, &mut chain, taken, horizon, &writer_id()?).await?;
        gone.deleted =
            delete_obsolete(store, &chain, (holds::store_time(store, system_id).await?, Some(horizon))).await?;
    }
    Ok(gone)
}

/// Expires what retention lets go of the topics among the streams.
async fn expire_topics(
    store: &Store,
    (retention, streams): (&RecordRetention, &[StreamId]),
    dry_run: bool,
    (gone, damaged): (&mut Gone, &mut Vec<(StreamId, Error)>),
) -> Result<()> {
    let mut generations: Vec<TopicGeneration> = streams.iter().filter_map(StreamId::topic).cloned().collect();
    newest_first(&mut generations);
    let mut newer = Newer::default();
    for generation in generations {
        let Some(kept) = retention.of(&generation) else { continue };
        let one = expire_topic(store, &generation, newer.leave(&generation, kept), dry_run).await;
        match manifest::isolated(store, one).await? {
            Ok(one) => {
                newer.add(one.topics.iter().map(|topic| topic.kept_bytes).sum());
                gone.add(one);
            }
            Err(error) => damaged.push((generation.stream(), error)),
        }
    }
    gone.topics.sort_by(|one, other| one.stream.cmp(&other.stream));
    Ok(())
}

/// Expires what of a generation of a topic was archived longer ago or lies beyond the size than is kept.
async fn expire_topic(store: &Store, generation: &TopicGeneration, kept: Kept, dry_run: bool) -> Result<Gone> {
    let mut gone = Gone::default();
    let Some(mut chain) = Chain::open(store, &generation.stream()).await? else { return Ok(gone) };
    let at = match dry_run {
        true => Moment::at(store, &generation.cluster, time::now()).await?,
        false => Moment::now(store, &generation.cluster).await?,
    };
    let clock = at.clock(kept.time)?;
    let (mut aged, mut steps, mut held) = (Aged::default(), Vec::new(), false);
    loop {
        aged.go_on(&chain, clock, kept.bytes).await?;
        let step = aged.expirable(&chain, &at.held, clock).await?;
        held |= step != aged.expirable(&chain, &reads::Held::default(), clock).await?;
        steps.push(step);
        if !aged.more {
            break;
        }
    }
    let given = aged::sum(&chain, &steps).await?;
    let there = chain.totals().present();
    if !dry_run {
        aged::expire(&mut chain, &steps, (&writer_id()?, at.now)).await?;
        gone.deleted =
            aged::delete_expired(store, &chain, aged.sealed_by(clock), &at.held, &mut Stays::default()).await?.deleted;
    }
    gone.topics.push(Topic {
        stream: generation.stream().to_string(),
        segments: given.segments,
        records: given.records,
        stored_bytes: given.stored_bytes,
        kept_records: there.records.saturating_sub(given.records),
        kept_bytes: there.stored_bytes.saturating_sub(given.stored_bytes),
        held,
    });
    Ok(gone)
}

/// Expires the versions of a document that are not needed to tell it as of every moment of the time `kept`.
async fn expire_state(store: &Store, stream: &StreamId, kept: Duration, dry_run: bool) -> Result<Gone> {
    let mut gone = Gone::default();
    let Some(mut chain) = Chain::open(store, stream).await? else { return Ok(gone) };
    let now = if dry_run { time::now() } else { maintenance::now(store).await? };
    let planned = retention::expirable(&chain, maintenance::horizon(kept, now)?).await?;
    let oldest = match &planned {
        Some(range) => versions::version(&chain, range.end).await?,
        None => versions::oldest(&chain).await?,
    };
    let given = retention::sum(&chain, planned.unwrap_or(0..0)).await?;
    let there = chain.totals().present();
    if !dry_run {
        maintenance::expire(&mut chain, (kept, now), &writer_id()?).await?;
        gone.deleted = retention::delete_expired(store, &chain, now).await?;
    }
    gone.documents.push(Document {
        stream: stream.to_string(),
        versions: given.segments,
        stored_bytes: given.stored_bytes,
        kept_versions: there.segments.saturating_sub(given.segments),
        kept_bytes: there.stored_bytes.saturating_sub(given.stored_bytes),
        kept_from: oldest.map(|version| time::utc(version.at)),
    });
    Ok(gone)
}

fn text(outcome: &Outcome, kept: Option<Duration>) -> String {
    let verb = if outcome.dry_run { "would expire" } else { "expired" };
    let mut text = String::new();
    if let Some(kept) = kept {
        text += &format!(
            "{} of WAL ({}) and {} {verb}; every moment of the last {} stays recoverable\n",
            human::many(outcome.segments, "segment"),
            human::bytes(outcome.stored_bytes),
            human::many(outcome.backups, "base backup"),
            human::span(kept)
        );
    }
    for topic in &outcome.kafka {
        let held = if topic.held { "; the rest of what is old is being read" } else { "" };
        text += &format!(
            "{}: {} in {} ({}) {verb}; {} ({}) kept{held}\n",
            topic.stream,
            human::many(topic.records, "record"),
            human::many(topic.segments, "segment"),
            human::bytes(topic.stored_bytes),
            human::many(topic.kept_records, "record"),
            human::bytes(topic.kept_bytes),
        );
    }
    for document in &outcome.state {
        let from = document.kept_from.as_ref().map_or(String::new(), |from| format!(", from {from} on"));
        text += &format!(
            "{}: {} ({}) {verb}; {} ({}) kept{from}\n",
            document.stream,
            human::many(document.versions, "version"),
            human::bytes(document.stored_bytes),
            human::many(document.kept_versions, "version"),
            human::bytes(document.kept_bytes),
        );
    }
    if outcome.deleted > 0 {
        text += &format!("{} deleted that were expired earlier\n", human::many(outcome.deleted, "object"));
    }
    text
}
