//! Drills: whether the archive gives back what it should, tried before it is needed.
//!
//! ```text
//!   corruption   verify --deep of everything
//!                a random moment ─► restored into a scratch directory ─► opened ─► every table read ─► pg_amcheck
//!                                                                                        └─► report, drills/<name>.json
//! ```
//!
//! A drill connects to no server of the configuration, and writes into the archive two objects alone: while it restores the hold that
//! every restore has, and at its end the result, which `tidelog run` reads.

mod asked;
mod contents;
mod moment;
mod report;
mod restored;
mod scratch;

use std::sync::Arc;
use std::time::Instant;

use chrono::{DateTime, SubsecRound as _, Utc};

pub use asked::Asked;
pub use report::{Archived, Database, Finding, Part, Report, Restoration, Table};

use crate::config::Archive;
use crate::error::{Error, Kind, Result};
use crate::manifest;
use crate::manifest::drills::{Drilled, Outcome};
use crate::store::Store;
use crate::stream::{FORMAT_VERSION, StreamId};
use crate::time;
use crate::verify::{self, DamageKind, Seen};
use scratch::Scratch;

/// Runs the drill `corruption`, and keeps its result in the archive. What keeps it from being carried out stands in the report, and is
/// given beside it.
///
/// # Errors
/// Before it has begun: a scratch directory that cannot be had.
pub async fn corruption(
    (store, archive): (&Store, &Archive),
    asked: &Asked,
    seen: &Arc<Seen>,
) -> Result<(Report, Option<Error>)> {
    let scratch = tokio::task::block_in_place(|| Scratch::make(&asked.scratch))?;
    let begun = Instant::now();
    let mut report = Report {
        drill: "corruption",
        outcome: Outcome::Passed,
        ok: true,
        started: now(),
        seconds: 0.0,
        seed: asked.seed,
        archive: Archived::default(),
        restored: Vec::new(),
        findings: Vec::new(),
        skipped: Vec::new(),
        error: None,
    };
    let carried = carry_out((store, archive), asked, seen, &scratch, &mut report).await;
    tokio::task::block_in_place(|| drop(scratch));
    let error = carried.err();
    report.outcome = match (&error, report.findings.is_empty()) {
        (_, false) => Outcome::Found,
        (Some(_), true) => Outcome::Failed,
        (None, true) => Outcome::Passed,
    };
    report.ok = report.outcome == Outcome::Passed;
    report.error = error.as_ref().map(ToString::to_string);
    report.seconds = begun.elapsed().as_secs_f64();
    keep(store, &report).await;
    Ok((report, error))
}

async fn carry_out(
    (store, archive): (&Store, &Archive),
    asked: &Asked,
    seen: &Arc<Seen>,
    scratch: &Scratch,
    report: &mut Report,
) -> Result<()> {
    let systems = systems(store, asked.system).await?;
    let unchecked = read_archive(store, seen, report).await?;
    if systems.is_empty() {
        report.skipped.push("restore: the archive holds no Postgres".to_owned());
    }
    for system_id in systems {
        let mut restoration = Restoration { system_id: system_id.to_string(), ..Restoration::default() };
        let done = one_system((store, archive), (system_id, asked), scratch, &mut restoration).await;
        report.findings.append(&mut restoration.findings);
        report.restored.push(restoration);
        done?;
    }
    match unchecked {
        0 => Ok(()),
        count => Err(Error::new(Kind::Unavailable, format!("{count} objects could not be checked"))
            .hint(DamageKind::Unchecked.hint())),
    }
}

/// Restores one system and reads it; its server is stopped, and its files are gone, before the next one.
async fn one_system(
    archived: (&Store, &Archive),
    (system_id, asked): (u64, &Asked),
    scratch: &Scratch,
    report: &mut Restoration,
) -> Result<()> {
    let Some(restored) = restored::restored(archived, system_id, asked, scratch, report).await? else {
        return scratch.empty();
    };
    contents::read(&restored, &asked.user, report).await?;
    // Nobody needs what it would write at its end.
    tokio::task::block_in_place(|| drop(restored));
    scratch.empty()
}

/// The systems that are restored.
async fn systems(store: &Store, wanted: Option<u64>) -> Result<Vec<u64>> {
    if let Some(wanted) = wanted {
        manifest::system(store, Some(wanted)).await?;
        return Ok(vec![wanted]);
    }
    let streams = manifest::streams(store).await?;
    let system = |stream: StreamId| match stream {
        StreamId::Postgres { system_id } => Some(system_id),
        StreamId::Kafka(_) | StreamId::State(_) => None,
    };
    Ok(streams.into_iter().filter_map(system).collect())
}

/// Reads the whole archive; gives how many objects could not be checked.
async fn read_archive(store: &Store, seen: &Arc<Seen>, report: &mut Report) -> Result<u64> {
    let begun = Instant::now();
    let found = verify::verify(store, true, seen).await?;
    report.archive = Archived {
        streams: found.streams,
        segments: found.segments,
        records: found.records,
        backups: found.backups,
        bytes: found.bytes,
        seconds: begun.elapsed().as_secs_f64(),
    };
    let (unchecked, damaged): (Vec<_>, Vec<_>) =
        found.errors.into_iter().partition(|damage| damage.kind == DamageKind::Unchecked);
    let finding = |damage: verify::Damage| Finding { part: Part::Archive, about: damage.object, detail: damage.detail };
    report.findings.extend(damaged.into_iter().map(finding));
    Ok(unchecked.len() as u64)
}

/// The time, as results have it.
fn now() -> DateTime<Utc> {
    time::now().trunc_subsecs(3)
}

/// Tells `tidelog run`. An archive that is read-only for who drills keeps nobody from it.
async fn keep(store: &Store, report: &Report) {
    let drilled = Drilled {
        format: FORMAT_VERSION,
        drill: report.drill.to_owned(),
        outcome: report.outcome,
        started: report.started,
        finished: now(),
        seed: report.seed,
        findings: report.findings.len() as u64,
        last_success: None,
    };
    if let Err(error) = drilled.write(store).await {
        tracing::warn!(%error, hint = error.hint_text(), "the result of the drill cannot be kept: no metric, and no alert, knows of it");
    }
}
