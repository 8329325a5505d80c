//! `tidelog ls`: what the archive holds, how far it is complete, and what is lost.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures::StreamExt as _;
use serde::Serialize;

use super::{ErrorRow, Place, all_read, chosen, commits, errors};
use crate::cli::human;
use crate::cli::output::{self, print, print_json};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::manifest::coverage::{self, Coverage};
use crate::manifest::found::backups;
use crate::manifest::recoverable::{self, Window, windows};
use crate::manifest::{self, Chain, STREAMS_AT_ONCE};
use crate::manifest::{aged, state};
use crate::store::{Store, layout};
use crate::stream::{Abandon, Gap, StreamId, TopicGeneration, total};
use crate::time;

/// Lists the streams of the archive, their ranges, coverage and gaps.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tidelog ls                       every stream
  tidelog ls orders '^cdc\\.'       these topics, every generation of them
  tidelog ls --json | jq '.streams[] | {stream, complete_through}'
  tidelog ls --commits --from -10m              what the database committed, with positions
  tidelog ls --commits --at 2026-11-22T08:05:12Z   the commit that a recovery to this time ends with")]
pub(crate) struct Args {
    /// Topics, ^ and a regex, or streams as this command prints them
    #[arg(value_name = "STREAM")]
    streams: Vec<String>,
    #[command(flatten)]
    commits: commits::CommitsArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Listing {
    streams: Vec<Row>,
    /// To which moments the database can be recovered; absent without WAL.
    #[serde(skip_serializing_if = "Option::is_none")]
    recoverable: Option<Vec<Recoverable>>,
    /// What cannot be read; absent if all can.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<ErrorRow>,
}

#[derive(Debug, Serialize)]
struct Recoverable {
    stream: String,
    from: String,
    to: String,
    #[serde(skip)]
    window: Window,
}

#[derive(Debug, Serialize)]
struct Row {
    stream: String,
    kind: &'static str,
    topic: Option<String>,
    generation: Option<u32>,
    records: u64,
    bytes: u64,
    stored_bytes: u64,
    segments: u64,
    min_time: Option<String>,
    max_time: Option<String>,
    complete_through: Option<String>,
    /// A later generation of the topic has begun: nothing comes any more, and `complete_through` does not move.
    ended: bool,
    gaps: Vec<GapRow>,
    partitions: Vec<PartitionRow>,
    /// Timelines that were abandoned, and whose objects may be there for a while.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    abandoned: Vec<AbandonedRow>,
    /// Of state: for how long it has not changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    age_seconds: Option<u64>,
    #[serde(skip)]
    through: Option<DateTime<Utc>>,
    #[serde(skip)]
    first: Option<i64>,
}

#[derive(Debug, Serialize)]
struct GapRow {
    partition: i32,
    start: Place,
    end: Place,
    reason: &'static str,
    #[serde(skip)]
    lost: u64,
    #[serde(skip)]
    words: &'static str,
}

#[derive(Debug, Serialize)]
struct AbandonedRow {
    partition: i32,
    start: Place,
    end: Place,
    backups: Vec<String>,
    decided: String,
}

#[derive(Debug, Serialize)]
struct PartitionRow {
    partition: i32,
    start: Place,
    end: Place,
    records: u64,
    complete_through: Option<String>,
}

/// Runs the command.
pub(crate) async fn run(args: &Args, config: &Config) -> Result<()> {
    let store = Store::open(&config.archive)?;
    if args.commits.commits {
        return commits::run(&args.commits, &args.streams, args.json, &store).await;
    }
    let archive = manifest::streams(&store).await?;
    let generations: BTreeSet<TopicGeneration> = archive.iter().filter_map(|stream| stream.topic().cloned()).collect();
    let streams = chosen(archive, &args.streams)?;
    let (mut rows, mut damaged) = (Vec::with_capacity(streams.len()), Vec::new());
    let mut recoverable: Option<Vec<Recoverable>> = None;
    let mut unreadable = None;
    // The claims of one folder at a time: the streams of a cluster follow each other.
    for of_folder in streams.chunk_by(|one, other| layout::coverages(one) == layout::coverages(other)) {
        let claims = claims(&store, of_folder).await?;
        let (store, claims) = (&store, &claims);
        let look = |stream| async move { (stream, manifest::isolated(store, look(store, stream, claims).await).await) };
        let mut looked = futures::stream::iter(of_folder).map(look).buffered(STREAMS_AT_ONCE);
        while let Some((stream, found)) = looked.next().await {
            match found? {
                Ok(None) => {}
                Ok(Some((mut row, windows, passed_over))) => {
                    unreadable = unreadable.or(passed_over);
                    row.ended = stream.topic().is_some_and(|generation| generations.contains(&generation.next()));
                    rows.push(row);
                    if let Some(windows) = windows {
                        recoverable.get_or_insert_default().extend(windows);
                    }
                }
                Err(error) => damaged.push((stream.clone(), error)),
            }
        }
    }
    if args.json {
        print_json(&Listing { streams: rows, recoverable, errors: errors(&damaged) })?;
    } else {
        let (state, rows): (Vec<Row>, Vec<Row>) = rows.into_iter().partition(|row| row.kind == "state");
        let streams = if rows.is_empty() && !state.is_empty() && damaged.is_empty() {
            String::new()
        } else {
            table(&rows, &damaged, time::now())
        };
        print(&(streams + &state_table(&state) + &recoverable_words(recoverable.as_deref())))?;
    }
    all_read(&damaged)?;
    unreadable.map_or(Ok(()), Err)
}

/// The claims of completeness in the folder of these.
async fn claims(store: &Store, streams: &[StreamId]) -> Result<Vec<Coverage>> {
    let Some(stream) = streams.first() else { return Ok(Vec::new()) };
    let loaded = coverage::load_all(store, &layout::coverages(stream)).await?;
    for error in &loaded.unreadable {
        output::tell(&format!("warning: claims of completeness are passed over: {error}"));
    }
    Ok(loaded.known)
}

/// Returns what a stream holds, of a write-ahead log to which moments it leads, and which of its backups are passed over. None if its
/// chain has not begun.
async fn look(
    store: &Store,
    stream: &StreamId,
    claims: &[Coverage],
) -> Result<Option<(Row, Option<Vec<Recoverable>>, Option<Error>)>> {
    let Some(chain) = Chain::open(store, stream).await? else { return Ok(None) };
    let row = row(stream, &chain, claims, time::now()).await?;
    let StreamId::Postgres { system_id } = stream else { return Ok(Some((row, None, None))) };
    let found = backups(store, *system_id, chain.backups()).await?;
    let facts = recoverable::facts(store, &chain, &found.sound).await?;
    let recoverable = |window: Window| Recoverable {
        stream: stream.to_string(),
        from: time::utc(window.from),
        to: time::utc(window.to),
        window,
    };
    let windows = windows(store, &chain, &facts).await?.into_iter().map(recoverable).collect();
    Ok(Some((row, Some(windows), found.error())))
}

/// The windows in words, one a line.
fn recoverable_words(windows: Option<&[Recoverable]>) -> String {
    let short = |time: DateTime<Utc>| time::short(time.timestamp_millis());
    match windows {
        None => String::new(),
        Some([]) => "recoverable: nothing yet; a base backup is needed, and the WAL through its end (`tidelog backup` takes one), and one transaction for the time\n".to_owned(),
        Some([one]) => {
            format!("recoverable: Postgres from {} to {}, gaps: none\n", short(one.window.from), short(one.window.to))
        }
        Some(several) => {
            let line = |at: &Recoverable| format!("recoverable: Postgres from {} to {}\n", short(at.window.from), short(at.window.to));
            let lines: String = several.iter().map(line).collect();
            lines + &format!("             gaps: {} between them\n", several.len() - 1)
        }
    }
}

async fn row(stream: &StreamId, chain: &Chain, claims: &[Coverage], now: DateTime<Utc>) -> Result<Row> {
    let totals = chain.totals().present();
    let complete = coverage::judge(claims, chain, now);
    let partitions: Vec<PartitionRow> = chain
        .positions()
        .map(|at| PartitionRow {
            partition: at.partition,
            start: Place::of(stream, at.start),
            end: Place::of(stream, at.end),
            records: at.records,
            complete_through: complete.partitions.get(&at.partition).map(|through| time::utc(*through)),
        })
        .collect();
    let generation = stream.topic();
    let first = match stream {
        StreamId::Kafka(_) => aged::oldest(chain).await?,
        StreamId::State(_) => state::oldest(chain).await?.map(|version| version.at.timestamp_millis()),
        StreamId::Postgres { .. } => recoverable::first_commit(chain).await?,
    };
    let changed = totals.max_timestamp.filter(|_| stream.state().is_some()).and_then(DateTime::from_timestamp_millis);
    let through = match generation {
        // A topic is complete where all of its partitions are, a write-ahead log where its last timeline is.
        Some(_) => complete.through(|_| true).ok(),
        None => complete.latest(),
    };
    Ok(Row {
        stream: stream.to_string(),
        kind: match stream {
            StreamId::Kafka(_) => "kafka",
            StreamId::Postgres { .. } => "postgres",
            StreamId::State(_) => "state",
        },
        topic: generation.map(|generation| generation.topic.clone()),
        generation: generation.map(|generation| generation.number),
        records: totals.records,
        bytes: totals.raw_bytes,
        stored_bytes: totals.stored_bytes,
        segments: totals.segments,
        min_time: first.map(time::rfc3339),
        max_time: totals.max_timestamp.map(time::rfc3339),
        complete_through: through.map(time::utc),
        ended: false,
        gaps: if totals.gaps > 0 { gaps(stream, chain).await? } else { Vec::new() },
        partitions,
        abandoned: chain.abandoned().iter().map(|abandon| abandoned(stream, abandon)).collect(),
        age_seconds: changed.map(|changed| (now - changed).num_seconds().max(0).unsigned_abs()),
        through,
        first,
    })
}

fn abandoned(stream: &StreamId, abandon: &Abandon) -> AbandonedRow {
    AbandonedRow {
        partition: abandon.partition,
        start: Place::of(stream, abandon.start),
        end: Place::of(stream, abandon.end),
        backups: abandon.backups.clone(),
        decided: time::utc(abandon.decided),
    }
}

async fn gaps(stream: &StreamId, chain: &Chain) -> Result<Vec<GapRow>> {
    let row = |gap: &Gap| GapRow {
        partition: gap.partition,
        start: Place::of(stream, gap.start),
        end: Place::of(stream, gap.end),
        lost: gap.end.abs_diff(gap.start),
        reason: gap.reason.name(),
        words: gap.reason.words(),
    };
    Ok(recoverable::gaps(chain).await?.iter().map(row).collect())
}

const HEADINGS: [&str; 9] = ["STREAM", "PARTS", "RECORDS", "STORED", "RATIO", "FROM", "COMPLETE TO", "LAG", "GAPS"];
/// Which columns are numbers, and stand to the right.
const RIGHT: [bool; 9] = [false, true, true, true, true, false, false, true, false];

fn table(rows: &[Row], damaged: &[(StreamId, Error)], now: DateTime<Utc>) -> String {
    if rows.is_empty() && damaged.is_empty() {
        return "the archive is empty: `tidelog run` fills it\n".to_owned();
    }
    let mut generations: BTreeMap<&str, u32> = BTreeMap::new();
    for row in rows {
        *generations.entry(row.name()).or_default() += 1;
    }
    let cells = |row: &Row| {
        // The number of a generation matters where there are several, or where the name looks as if it had one.
        let only_generation =
            row.generation == Some(0) && generations.get(row.name()) == Some(&1) && !ends_with_a_number(row.name());
        [
            if only_generation { row.name().to_owned() } else { row.stream.clone() },
            row.partitions.len().to_string(),
            row.generation.map_or("–".to_owned(), |_| human::rough(row.records)),
            human::bytes(row.stored_bytes),
            ratio(row.bytes, row.stored_bytes),
            row.first.map_or("–".to_owned(), time::short),
            row.through.map_or("not known".to_owned(), |through| time::short(through.timestamp_millis())),
            if row.ended {
                "ended".to_owned()
            } else {
                row.through.map_or("–".to_owned(), |through| lag(now, through))
            },
            row.gap_words(),
        ]
    };
    let unknown = |(stream, _): &(StreamId, Error)| {
        let mut cells = [(); 9].map(|()| "–".to_owned());
        (cells[0], cells[6]) = (stream.to_string(), "damaged".to_owned());
        cells
    };
    let rows: Vec<_> = rows.iter().map(cells).chain(damaged.iter().map(unknown)).collect();
    human::table(HEADINGS, RIGHT, &rows)
}

/// Returns whether a name without the number of a generation looks like one with it.
fn ends_with_a_number(name: &str) -> bool {
    name.rsplit_once('.').is_some_and(|(_, end)| !end.is_empty() && end.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Returns what is kept of state, in a table of its own; nothing if nothing is.
fn state_table(rows: &[Row]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let cells = |row: &Row| {
        [
            row.stream.clone(),
            human::exact(row.records),
            human::bytes(row.stored_bytes),
            row.first.map_or("–".to_owned(), time::short),
            row.max_time.clone().unwrap_or("–".to_owned()),
            row.age_seconds.map_or("–".to_owned(), |age| human::span(Duration::from_secs(age))),
        ]
    };
    let rows: Vec<_> = rows.iter().map(cells).collect();
    let headings = ["STATE", "VERSIONS", "STORED", "FROM", "LAST CHANGED", "AGE"];
    human::table(headings, [false, true, true, false, false, true], &rows)
}

fn ratio(bytes: u64, stored: u64) -> String {
    if stored == 0 { "–".to_owned() } else { format!("{:.1}×", bytes as f64 / stored as f64) }
}

fn lag(now: DateTime<Utc>, through: DateTime<Utc>) -> String {
    human::span((now - through).to_std().unwrap_or(Duration::ZERO))
}

impl Row {
    /// The stream without the number of a topic's generation.
    fn name(&self) -> &str {
        match self.generation {
            Some(_) => self.stream.rsplit_once('.').map_or("", |(name, _)| name),
            None => &self.stream,
        }
    }

    fn gap_words(&self) -> String {
        let Some(first) = self.gaps.first() else { return "none".to_owned() };
        let lost = total(self.gaps.iter().map(|gap| gap.lost));
        let lost = match self.generation {
            Some(_) => format!("{} offsets", human::exact(lost)),
            None => human::bytes(lost),
        };
        format!("{} ({lost} lost: {})", self.gaps.len(), first.words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(stream: &str, generation: u32, gaps: Vec<GapRow>) -> Row {
        let partition = PartitionRow {
            partition: 0,
            start: Place::Offset(0),
            end: Place::Offset(5),
            records: 5,
            complete_through: None,
        };
        Row {
            stream: format!("kafka/main/{stream}.{generation}"),
            kind: "kafka",
            topic: Some(stream.to_owned()),
            generation: Some(generation),
            records: 4_100_000,
            bytes: 1_766_640_844,
            stored_bytes: 327_155_712,
            segments: 3,
            min_time: None,
            max_time: None,
            complete_through: None,
            ended: false,
            gaps,
            partitions: vec![partition],
            abandoned: Vec::new(),
            age_seconds: None,
            through: DateTime::from_timestamp_millis(1_795_334_710_000),
            first: Some(1_794_729_601_000),
        }
    }

    #[test]
    fn the_table_reads_as_the_contract_shows_it() {
        let now = DateTime::from_timestamp_millis(1_795_334_712_345).expect("a time");
        let lost = GapRow {
            partition: 1,
            start: Place::Offset(0),
            end: Place::Offset(1_204),
            reason: "broker_retention",
            lost: 1_204,
            words: "broker retention",
        };
        let text =
            table(&[row("orders", 0, vec![]), row("cdc.users", 0, vec![]), row("cdc.users", 1, vec![lost])], &[], now);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[0],
            "STREAM                  PARTS  RECORDS   STORED  RATIO  FROM                 COMPLETE TO          LAG  GAPS"
        );
        assert_eq!(
            lines[1],
            "kafka/main/orders           1    4.1 M  312 MiB   5.4×  2026-11-15 08:00:01  2026-11-22 08:05:10  2 s  none"
        );
        assert!(lines[2].starts_with("kafka/main/cdc.users.0 "));
        assert!(lines[3].ends_with("1 (1,204 offsets lost: broker retention)"));
        let like_a_generation = table(&[row("orders.0", 0, vec![])], &[], now);
        assert!(like_a_generation.contains("kafka/main/orders.0.0 "), "{like_a_generation}");
        let unknown = Row { through: None, first: None, stored_bytes: 0, ..row("a", 0, vec![]) };
        assert!(table(&[unknown], &[], now).contains("not known"));
        let ended = Row { ended: true, ..row("a", 0, vec![]) };
        assert!(table(&[ended, row("a", 1, vec![])], &[], now).contains("2026-11-22 08:05:10  ended  none"));
    }
}
