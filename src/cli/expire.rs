//! `tidelog expire`: retention by hand.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;

use super::human;
use super::inspect::all_read;
use super::output::{self, print, print_json};
use crate::config::{Config, Retention};
use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::maintenance;
use crate::maintenance::wal::Expiry;
use crate::manifest::replaced::{self, Done};
use crate::manifest::{self, Chain, packing, writer_id};
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
    let merges = config.kafka.as_ref().is_some_and(|kafka| kafka.merge.is_some());
    if config.retention.keeps_everything() && !merges {
        return Err(Error::new(Kind::Config, "[retention] says nothing, and everything is kept")
            .hint("set one, for example [retention] postgres = \"7d\""));
    }
    let (now, postgres) = (time::now(), config.retention.postgres);
    let horizon = postgres.map(|kept| before(now, kept)).transpose()?;
    let store = Store::open(&config.archive)?;
    let writer = if args.dry_run { None } else { Some(writer_id()?) };
    let (mut gone, mut damaged) = (Gone::default(), Vec::new());
    let streams = manifest::streams(&store).await?;
    let topics = streams.iter().filter_map(StreamId::topic).cloned().collect();
    let kafka = &config.retention.kafka;
    for (generation, one) in maintenance::topics::by_hand(&store, topics, kafka, now, writer.as_deref()).await? {
        match one {
            Ok(done) => {
                gone.deleted += done.deleted;
                gone.topics.push(Topic::of(&generation.stream(), &done));
            }
            Err(error) => damaged.push((generation.stream(), error)),
        }
    }
    for stream in streams {
        if let (Some(generation), false) = (stream.topic(), args.dry_run) {
            match manifest::isolated(&store, delete_unneeded(&store, generation).await).await? {
                Ok(deleted) => gone.deleted += deleted,
                Err(error) => damaged.push((stream.clone(), error)),
            }
        }
        let one = expire(&store, &stream, (&config.retention, horizon), now, writer.as_deref()).await;
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

/// What goes of one stream that has a retention.
async fn expire(
    store: &Store,
    stream: &StreamId,
    (retention, horizon): (&Retention, Option<DateTime<Utc>>),
    now: DateTime<Utc>,
    writer: Option<&str>,
) -> Result<Gone> {
    let mut gone = Gone::default();
    match (stream, horizon, retention.state) {
        (StreamId::Postgres { .. }, Some(horizon), _) => {
            let done = maintenance::wal::by_hand(store, stream, (horizon, now), writer).await?;
            gone = Gone { expired: done.expired, deleted: done.deleted, passed_over: done.passed_over, ..gone };
        }
        (StreamId::State(_), _, Some(kept)) => {
            let done = maintenance::state::by_hand(store, stream, (kept, now), writer).await?;
            gone.deleted = done.as_ref().map_or(0, |done| done.deleted);
            gone.documents.extend(done.map(|done| Document::of(stream, &done)));
        }
        _ => {}
    }
    Ok(gone)
}

/// Deletes what merges have replaced in a generation of a topic, and entries that are in packs, whatever retention it has.
async fn delete_unneeded(store: &Store, generation: &TopicGeneration) -> Result<u64> {
    let Some(chain) = Chain::open(store, &generation.stream()).await? else { return Ok(0) };
    if !chain.has_merges() && !chain.has_packs() {
        return Ok(0);
    }
    let at = maintenance::topics::Moment::now(store, &generation.cluster).await?;
    let by = (&at.held, at.now);
    let replaced = replaced::delete_replaced(store, &chain, by, &mut Done::default()).await?.deleted;
    match packing::delete_packed(store, &chain, by, &mut packing::Known::default()).await {
        // That is a right of its own: who has it can cut chains.
        Err(error) if error.kind() == Kind::Denied => {
            let stream = chain.stream();
            output::tell(&format!(
                "note: {stream}: entries that are in packs keep objects of their own, for they may not be deleted here ({error}); \
                 docs/SECURITY.md, \"Least rights\""
            ));
            Ok(replaced)
        }
        deleted => Ok(replaced + deleted?.deleted),
    }
}

impl Topic {
    fn of(stream: &StreamId, done: &maintenance::topics::ByHand) -> Self {
        let (expired, before) = (&done.expired, &done.before);
        Self {
            stream: stream.to_string(),
            segments: expired.segments,
            records: expired.records,
            stored_bytes: expired.stored_bytes,
            kept_records: before.records.saturating_sub(expired.records),
            kept_bytes: done.kept_bytes(),
            held: done.held,
        }
    }
}

impl Document {
    fn of(stream: &StreamId, done: &maintenance::state::ByHand) -> Self {
        let (expired, before) = (&done.expired, &done.before);
        Self {
            stream: stream.to_string(),
            versions: expired.segments,
            stored_bytes: expired.stored_bytes,
            kept_versions: before.segments.saturating_sub(expired.segments),
            kept_bytes: before.stored_bytes.saturating_sub(expired.stored_bytes),
            kept_from: done.oldest.as_ref().map(|version| time::utc(version.at)),
        }
    }
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
