//! `tidelog restore-postgres --list`: the base backups of the archive, and what a restore reaches from each.
//!
//! What is said here is what a plan accepts: both ask [`crate::manifest::path`].

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::cli::human;
use crate::cli::output::{print, print_json};
use crate::config::Archive;
use crate::error::Result;
use crate::manifest::found::{Brief, Found, Unreadable, backups};
use crate::manifest::path::{Facts, Limit, Reach, Way};
use crate::manifest::recoverable::{self, Window};
use crate::manifest::{self, Chain};
use crate::store::{Store, layout};
use crate::stream::{Lsn, StreamId};
use crate::time;

#[derive(Debug, Serialize)]
struct Listing {
    backups: Vec<Row>,
    /// Those that cannot be read; absent if all can.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<Passed>,
}

#[derive(Debug, Serialize)]
struct Row {
    name: String,
    system_id: String,
    server_version: u32,
    /// Its folder, below the archive's URL.
    path: String,
    started: String,
    finished: String,
    age_seconds: u64,
    bytes: u64,
    stored_bytes: u64,
    timeline: u32,
    start: Lsn,
    end: Lsn,
    damaged: Vec<String>,
    /// The one that it builds on; none of a full one.
    parent: Option<String>,
    /// What it builds on, and is not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    lacks: Option<String>,
    usable: bool,
    /// None if it lies on no timeline that can be followed.
    reaches: Option<Reaches>,
}

/// How far a restore from a backup comes.
#[derive(Debug, Serialize)]
struct Reaches {
    /// The timelines on the way, oldest first; a restore follows the last one.
    timelines: Vec<u32>,
    start: Lsn,
    end: Lsn,
    /// The first moment; none without a commit that tells the time.
    from: Option<String>,
    to: Option<String>,
    /// What ends it: `end` of the archive, a `gap`, WAL that is `missing`.
    limit: &'static str,
    #[serde(skip)]
    words: String,
}

#[derive(Debug, Serialize)]
struct Passed {
    name: String,
    object: String,
    kind: &'static str,
    detail: String,
}

/// Lists the base backups of every system, or of the one that is named.
pub(super) async fn run((system, json): (Option<u64>, bool), archive: &Archive) -> Result<()> {
    let store = Store::open(archive)?;
    let (mut rows, mut passed_over) = (Vec::new(), Found::default());
    for stream in manifest::streams(&store).await? {
        let StreamId::Postgres { system_id } = stream else { continue };
        if system.is_none_or(|wanted| wanted == system_id)
            && let Some(chain) = Chain::open(&store, &stream).await?
        {
            let found = backups(&store, system_id, chain.backups()).await?;
            rows.extend(rows_of(&store, &chain, &found.sound).await?);
            passed_over.add_unreadable(found);
        }
    }
    if json {
        print_json(&Listing { backups: rows, errors: passed_over.unreadable.iter().map(passed).collect() })?;
    } else {
        print(&table(&rows))?;
    }
    passed_over.error().map_or(Ok(()), Err)
}

fn passed(one: &Unreadable) -> Passed {
    Passed { name: one.name.clone(), object: one.object.clone(), kind: one.kind.name(), detail: one.why.clone() }
}

async fn rows_of(store: &Store, chain: &Chain, backups: &[Brief]) -> Result<Vec<Row>> {
    let facts = recoverable::facts(store, chain, backups).await?;
    let (mut rows, lines) = (Vec::with_capacity(backups.len()), facts.lines());
    for (index, backup) in backups.iter().enumerate() {
        let leads = facts.leads(index, &lines);
        let window = match &leads {
            Some(leads) => recoverable::window_from(store, chain, &facts, leads).await?,
            None => None,
        };
        let lacks = lines.lack(index);
        rows.push(row((backup, lacks), leads.as_ref().map(|leads| reaches(&facts, leads, window)), time::now()));
    }
    Ok(rows)
}

fn row((backup, lacks): (&Brief, Option<&str>), reaches: Option<(bool, Reaches)>, now: DateTime<Utc>) -> Row {
    let (usable, reaches) = reaches.map_or((false, None), |(usable, reaches)| (usable, Some(reaches)));
    Row {
        name: backup.name().to_owned(),
        system_id: backup.system.system_id.to_string(),
        server_version: backup.system.server_version,
        path: layout::backup(backup.system.system_id, backup.name()).to_string(),
        started: time::utc(backup.started),
        finished: time::utc(backup.taken.finished),
        age_seconds: (now - backup.taken.finished).num_seconds().try_into().unwrap_or(0),
        bytes: backup.bytes,
        stored_bytes: backup.stored_bytes,
        timeline: backup.taken.timeline,
        start: backup.taken.start,
        end: backup.taken.end,
        damaged: backup.damaged.clone(),
        parent: backup.parent.as_ref().map(|parent| parent.name.clone()),
        lacks: lacks.map(str::to_owned),
        usable,
        reaches,
    }
}

/// Whether the backup can be used, and what it reaches.
fn reaches(facts: &Facts, (way, reach): &(Way, Reach), window: Option<Window>) -> (bool, Reaches) {
    let first = facts.backups.get(reach.backup).map_or(0, |taken| taken.timeline);
    let timelines = way.stretches().iter().map(|stretch| stretch.timeline).skip_while(|timeline| *timeline != first);
    let (limit, ends) = match &reach.limit {
        Limit::End => ("end", String::new()),
        Limit::Gap(gap) => ("gap", format!("WAL from {} to {} is lost", Lsn::at(gap.start), Lsn::at(gap.end))),
        Limit::Minimal(at) => ("wal_level_minimal", format!("the server ran with wal_level = minimal from {at} on")),
        Limit::Missing { timeline, from } => {
            ("missing", format!("WAL of timeline {timeline} from {from} on is not archived"))
        }
    };
    let short = |time: DateTime<Utc>| time::short(time.timestamp_millis());
    let words = match (reach.is_usable(), &window) {
        (true, Some(window)) => format!("{} to {}", short(window.from), short(window.to)),
        (true, None) => format!("{} to {}, no commit tells a time yet", reach.from, reach.until),
        (false, _) if reach.is_pending() => format!("nothing yet: WAL up to {} is to be archived", reach.from),
        (false, _) => "nothing".to_owned(),
    };
    let reaches = Reaches {
        timelines: timelines.collect(),
        start: reach.from,
        end: reach.until,
        from: window.map(|window| time::utc(window.from)),
        to: window.map(|window| time::utc(window.to)),
        limit,
        words: if ends.is_empty() { words } else { format!("{words}: {ends}") },
    };
    (reach.is_usable(), reaches)
}

const HEADINGS: [&str; 6] = ["BACKUP", "AGE", "SIZE", "STORED", "TIMELINES", "REACHES"];
const RIGHT: [bool; 6] = [false, true, true, true, false, false];

fn table(rows: &[Row]) -> String {
    if rows.is_empty() {
        return "the archive holds no base backup: `tidelog backup` takes one\n".to_owned();
    }
    let mut text = String::new();
    for of_one in rows.chunk_by(|a, b| a.system_id == b.system_id) {
        text += &format!("PostgreSQL {}, system {}\n", of_one[0].server_version, of_one[0].system_id);
        text += &human::table(HEADINGS, RIGHT, &of_one.iter().map(cells).collect::<Vec<_>>());
    }
    text
}

fn cells(row: &Row) -> [String; 6] {
    let nowhere = || {
        let why = row.lacks.as_ref().map_or_else(
            || "it lies on no timeline that can be followed".to_owned(),
            |lacks| format!("{lacks}, which it builds on, is missing or cannot be read"),
        );
        ("–".to_owned(), format!("nothing: {why}"))
    };
    let (timelines, mut words) = row.reaches.as_ref().map_or_else(nowhere, |reaches| {
        let timelines: Vec<String> = reaches.timelines.iter().map(u32::to_string).collect();
        (timelines.join(" → "), reaches.words.clone())
    });
    if let Some(parent) = &row.parent {
        words += &format!("; incremental, on {parent}");
    }
    if !row.damaged.is_empty() {
        words += "; it has bad pages";
    }
    [
        row.name.clone(),
        human::span(Duration::from_secs(row.age_seconds)),
        human::bytes(row.bytes),
        human::bytes(row.stored_bytes),
        timelines,
        words,
    ]
}
