//! The drill `corruption`: the archive, and a database at a random moment of it, read whole and thrown away.

use std::sync::Arc;
use std::time::Instant;

use super::asked::Asked;
use super::report::{Archived, Corruption, Finding, Part, Report, Restoration};
use super::scratch::Scratch;
use super::{contents, restored};
use crate::config::Archive;
use crate::error::{Error, Kind, Result};
use crate::manifest;
use crate::store::Store;
use crate::stream::StreamId;
use crate::verify::{self, DamageKind, Seen};

/// Runs the drill `corruption`, and keeps its result in the archive. What keeps it from being carried out stands in the report, and is
/// given beside it.
///
/// # Errors
/// Before it has begun: a scratch directory that cannot be had.
pub async fn corruption(
    (store, archive): (&Store, &Archive),
    asked: &Asked,
    seen: &Arc<Seen>,
) -> Result<(Report<Corruption>, Option<Error>)> {
    let scratch = tokio::task::block_in_place(|| Scratch::make(&asked.scratch))?;
    let mut report = Report::begin("corruption", asked.seed, Corruption::default());
    let carried = carry_out((store, archive), asked, seen, &scratch, &mut report).await;
    tokio::task::block_in_place(|| drop(scratch));
    Ok(report.end(store, carried.err()).await)
}

async fn carry_out(
    (store, archive): (&Store, &Archive),
    asked: &Asked,
    seen: &Arc<Seen>,
    scratch: &Scratch,
    report: &mut Report<Corruption>,
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
        report.about.restored.push(restoration);
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
async fn read_archive(store: &Store, seen: &Arc<Seen>, report: &mut Report<Corruption>) -> Result<u64> {
    let begun = Instant::now();
    let found = verify::verify(store, true, seen).await?;
    report.about.archive = Archived {
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
