//! The steps of a repair, each with its proof.
//!
//! ```text
//!   stop       the connector                                              its offset
//!   slot       a new one on the primary                                   where it begins: S
//!   mark       a marker behind it                                         its commit is in the archive, with all before it
//!   standby    out of the archive, up to that commit; its slot            decodes from before the offset
//!   read       the connector reads from there                             the marker has come to its topic
//!   handover   the new slot and the offset moved behind the marker,       read back
//!              the config put back; it runs at the primary
//!   marker     another one                                                it has come, and the first one once
//!   remove     the standby                                                is gone
//! ```
//!
//! For net changes, in place of `standby`:
//!
//! ```text
//!   end        a server at the marker                                     its tables are read
//!   start      one at the offset                                          it stands there
//!   changes    its tables become those of the marker                      count and sum of each are the same
//! ```

use super::asked::Asked;
use super::journal::Journal;
use super::leftovers::{clear_folder, is_for_a_journal};
use super::prepare::{Prepared, may_begin};
use super::primary::SlotState;
use super::report::Report;
use super::standby::Standby;
use super::steps::{Repair, steps_of};
use super::way::Way;
use crate::config::{Config, Scratch};
use crate::error::{Error, Kind, Result};
use crate::recover::journal::Folder;
use crate::recover::prepare::connection;
use crate::recover::report::State;
use crate::restore::Ground;
use crate::store::Store;

/// What each would do.
fn words(step: &str, prepared: &Prepared) -> String {
    let (name, slot) = (&prepared.own.name, prepared.own.slot());
    match step {
        "stop" => format!("the connector {name}"),
        "slot" => format!(
            "{slot} on the primary, {}",
            if prepared.slot == SlotState::Missing { "made" } else { "dropped and made again" }
        ),
        "mark" => "a marker written behind it, and its commit in the archive".to_owned(),
        "standby" => format!("restored, its slot {slot} made there"),
        "end" => "a scratch server at the marker, its captured tables read".to_owned(),
        "start" => "another one at the offset".to_owned(),
        "changes" => format!("the slot {slot} made there, and its tables changed to those of the marker"),
        "read" => format!("{name} reads from it, until the marker has come"),
        "handover" => format!("{name} goes on at the primary, from the marker"),
        "marker" => "another one written, and seen".to_owned(),
        _ => "the standby".to_owned(),
    }
}

/// Says what would be done.
pub fn plan(prepared: &Prepared) -> Report {
    let mut report = Report::new(prepared, true);
    if matches!(prepared.chosen.way, Way::Standby | Way::Net) {
        for step in steps_of(&prepared.chosen.way).iter().copied() {
            match prepared.journal.as_ref().and_then(|journal| journal.steps.get(step)) {
                Some(done) => report.done(step, done),
                None => report.not_done(step, State::Planned, words(step, prepared)),
            }
        }
    }
    report.close();
    report
}

/// Carries it out, or goes on with it. The report says how far it came, also of one that failed.
///
/// # Errors
/// What keeps it from beginning; a journal that cannot be written.
pub async fn carry_out(
    store: &Store,
    config: &Config,
    asked: &Asked,
    prepared: &Prepared,
) -> Result<(Report, Option<Error>)> {
    let mut report = Report::new(prepared, false);
    let journal = match (&prepared.chosen.way, &prepared.journal) {
        (Way::Standby | Way::Net, Some(journal)) => journal.clone(),
        (Way::Nothing, _) => {
            report.close();
            return Ok((report, None));
        }
        _ => {
            return Ok((report, prepared.chosen.refusal()));
        }
    };
    let scratch = ground(asked, prepared).await?;
    let to = connection(config, &asked.pipeline)?;
    let folder = taken(asked, prepared, &journal)?;
    let standby = Standby { scratch, folder: &asked.folder, of: &prepared.scratch };
    let compares = asked.pipeline.postgres.as_ref().is_none_or(|postgres| postgres.compare);
    let mut repair = Repair { store, config, prepared, standby, to, folder, journal, compares, server: None };
    let failed = repair.steps(&mut report).await?;
    if let Some(missed) = &repair.journal.missed {
        report.missed = missed.clone();
    }
    report.offset = repair.journal.position.unwrap_or(report.offset);
    report.close();
    if let Some(server) = repair.server.take() {
        server.stop().await?;
    }
    if failed.is_none() {
        // The same command may be needed again one day, and begins anew then.
        clear_folder(&asked.folder)?;
    }
    Ok((report, failed))
}

/// Where the standby is made. Of a repair that begins it is looked whether it may.
async fn ground<'a>(asked: &'a Asked, prepared: &Prepared) -> Result<&'a Scratch> {
    if prepared.anew {
        may_begin(asked, prepared).await?;
    }
    let scratch = asked.scratch()?;
    if prepared.anew {
        Ground::look(&scratch.into, false, prepared.primary.system_id)?;
    }
    Ok(scratch)
}

/// Takes the folder of the journal, if no other run has gone on meanwhile.
fn taken(asked: &Asked, prepared: &Prepared, journal: &Journal) -> Result<Folder> {
    if prepared.anew {
        is_for_a_journal(&asked.folder)?;
    }
    let folder = Folder::take(&asked.folder)?;
    let now = Journal::look(&asked.folder, &asked.connector, &asked.targets())?;
    if now.as_ref() != (!prepared.anew).then_some(journal) {
        let message = "another run has gone on with this repair meanwhile";
        return Err(Error::new(Kind::Fenced, message).hint("run the same command again: it goes on from there"));
    }
    if prepared.anew {
        folder.save(journal)?;
    }
    Ok(folder)
}
