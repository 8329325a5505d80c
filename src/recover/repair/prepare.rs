//! All that takes part in a repair, looked at: what can be refused is refused here, before anything is done.

use super::asked::{Asked, missing};
use super::journal::Journal;
use super::lost::{Anchor, Conflicts, Missed, anchor, conflicts, elsewhere, missed};
use super::position::Position;
use super::primary::{Primary, SlotState, primary, slot_state};
use super::settings::{at_scratch, of_live, put_back};
use super::way::{Begins, Chosen, DECODES, Way, choose};
use crate::error::{Error, Kind, Result};
use crate::recover::connector::Connector;
use crate::recover::connectors::WORKERS;
use crate::recover::database::Restore;
use crate::recover::slots;
use crate::restore::commits::Commits;
use crate::restore::{Log, PATIENCE, patiently};
use crate::source::rest::Operator;
use crate::source::rest::operate::State;
use crate::store::Store;

/// A repair that can begin, or go on.
pub struct Prepared {
    /// How far it is; none where nothing is to be done, or nothing can.
    pub journal: Option<Journal>,
    /// Whether this run begins it.
    pub anew: bool,
    /// The primary.
    pub primary: Primary,
    /// The workers.
    pub workers: Operator,
    /// The connector at the primary.
    pub own: Connector,
    /// The connector as it reads from the standby.
    pub scratch: Connector,
    /// Where it stands.
    pub position: Position,
    /// What it is, as Connect says.
    pub state: Option<State>,
    /// The slot.
    pub slot: SlotState,
    /// What was missed by the end of the archive.
    pub missed: Missed,
    /// What would take the standby's slot away.
    pub conflicts: Conflicts,
    /// Which way.
    pub chosen: Chosen,
    /// What is to be known.
    pub notes: Vec<String>,
}

/// Looks at all that takes part.
///
/// # Errors
/// Servers that do not answer, a connector that is none of Debezium over Postgres, one that has no offset.
pub async fn prepare(store: &Store, asked: &Asked) -> Result<Prepared> {
    let known = Journal::look(&asked.folder, &asked.connector, &asked.targets())?;
    let Connected { workers, version, own, scratch } = connected(asked, known.as_ref()).await?;
    let name = own.name.as_str();
    let offsets = patiently(WORKERS, || workers.offsets(name)).await?;
    let position = Position::of(name, &own.prefixes.1, &offsets)?;
    let position = known.as_ref().and_then(|known| known.position).unwrap_or(position);
    let state = patiently(WORKERS, || workers.state(name)).await?;
    let primary = primary(asked, &own).await?;
    if let Some(known) = &known {
        known.is_of((primary.system_id, primary.timeline), &asked.folder)?;
    }
    let slot = slot_state(&mut primary.server.sql().await?, &own, position).await?;
    let Foreseen { missed, elsewhere, begins, conflicts } =
        Box::pin(foreseen(store, &primary, position, known.as_ref())).await?;
    let anew = known.is_none();
    let chosen = match &known {
        Some(known) => Chosen::going_on(known.way.clone()),
        None => choose(primary.version, &slot, (&missed, elsewhere.as_deref()), &begins, &conflicts),
    };
    let chosen = if anew { chosen.of_plugin(own.plugin()) } else { chosen };
    let anchor = match (&chosen.way, begins) {
        (Way::Standby, Begins { anchor, .. }) => anchor,
        (Way::Net, Begins { backup: Ok(backup), .. }) => Some(Anchor::at(backup, position.committed)),
        _ => None,
    };
    let journal = match (known, anchor) {
        (Some(known), _) => Some(known),
        (None, Some(anchor)) => {
            let (targets, of) = (asked.targets(), (primary.system_id, primary.timeline));
            Some(Journal::begin((name, &targets), of, (chosen.way.clone(), anchor))?)
        }
        (None, None) => None,
    };
    let mut notes = notes(&workers, &version, position);
    notes.extend(elsewhere.filter(|_| chosen.way == Way::Nothing));
    Ok(Prepared {
        journal,
        anew,
        primary,
        workers,
        own,
        scratch,
        position,
        state,
        slot,
        missed,
        conflicts,
        chosen,
        notes,
    })
}

fn notes(workers: &Operator, version: &str, position: Position) -> Vec<String> {
    let mut notes = vec![format!("{}: Kafka Connect {version}", workers.shown())];
    if position.is_within() {
        notes.push(format!(
            "its offset lies within a transaction ({} behind {}): its own reader finds the place again, and before Debezium 3.7 leaves out \
             changes of one COPY or multi-row INSERT there",
            position.processed, position.committed
        ));
    }
    notes
}

/// A connector, and its workers.
struct Connected {
    workers: Operator,
    version: String,
    own: Connector,
    scratch: Connector,
}

async fn connected(asked: &Asked, known: Option<&Journal>) -> Result<Connected> {
    let server = asked.pipeline.connect.as_ref();
    let workers = Operator::new(server.ok_or_else(|| missing("[connect]", "url = \"http://connect:8083\""))?)?;
    let version = workers.version().await?;
    let name = asked.connector.as_str();
    let Some(mut config) = patiently(WORKERS, || workers.config(name)).await? else {
        let message = format!("there is no connector {name} at {}", workers.shown());
        let hint = "its config and its offset are needed: name one that is there";
        return Err(Error::new(Kind::NotFound, message).hint(hint));
    };
    if let Some(changed) = known.and_then(|known| known.changed.as_ref()) {
        put_back(&mut config, changed);
    }
    let own = of_live(name, config)?;
    let scratch = at_scratch(asked, &own)?;
    Ok(Connected { workers, version, own, scratch })
}

/// What of the log lies behind a position.
struct Foreseen {
    missed: Missed,
    /// Why the position is perhaps none of this timeline.
    elsewhere: Option<String>,
    begins: Begins,
    conflicts: Conflicts,
}

/// What of the log lies behind a position, from where a standby reads it, and what would take its slot away there.
async fn foreseen(store: &Store, primary: &Primary, position: Position, known: Option<&Journal>) -> Result<Foreseen> {
    let log = patiently(PATIENCE, || Log::open(store, Some(primary.system_id))).await?.patient();
    let commits = Commits::open(store, &log, Some(primary.timeline)).await?;
    let archived = commits.archived().end;
    let missed = missed(&commits, position.committed..archived.max(position.committed), primary.database).await?;
    let began = log.ancestors(primary.timeline).await?.last().map(|left| left.at);
    let elsewhere = elsewhere(&commits, began, position.committed).await?;
    let file = u64::from(log.system().wal_segment_size);
    let anchor = match known {
        Some(known) => Some(known.anchor.clone()).filter(|_| known.way == Way::Standby),
        None if primary.version >= DECODES && missed.holes.is_empty() => {
            let backups = patiently(PATIENCE, || log.backups()).await?.sound;
            anchor(&commits, &backups, (position.committed, file)).await?
        }
        None => None,
    };
    let conflicts = match &anchor {
        Some(begins) => conflicts(&commits, begins, archived, (primary.database, &primary.harmless)).await?,
        None => Conflicts::default(),
    };
    let backup = match Restore::planned(store, &log, (primary.timeline, position.committed), None).await {
        Ok(restore) => Ok(restore.backup().to_owned()),
        Err(error) if error.is_transient() => return Err(error),
        Err(error) => Err(error.to_string()),
    };
    let begins = Begins { anchor, backup };
    Ok(Foreseen { missed, elsewhere, begins, conflicts })
}

/// Refuses what would keep a repair from coming to its end, or is perhaps not meant, before it begins.
///
/// # Errors
/// [`Kind::Config`] for a connector that runs, a slot that somebody else may have made, and a pipeline file without a scratch standby.
pub(super) async fn may_begin(asked: &Asked, prepared: &Prepared) -> Result<()> {
    asked.scratch()?;
    let own = &prepared.own;
    let runs = prepared.state.as_ref().is_some_and(State::is_running);
    if runs && !asked.yes {
        let message = format!("the connector {} runs", own.name);
        return Err(Error::new(Kind::Config, message)
            .hint("its slot was lost all the same? stop it, or say --yes to have it stopped"));
    }
    if let (SlotState::Later(at), false) = (&prepared.slot, asked.yes) {
        let message =
            format!("there is a slot {} already, which begins at {at}, behind what {} has sent", own.slot(), own.name);
        return Err(Error::new(Kind::Config, message)
            .hint("say --yes to drop it and to have a new one made: what lies before that comes out of the archive"));
    }
    slots::can_be_made(&prepared.primary.server).await?;
    let mut sql = prepared.primary.server.sql().await?;
    slots::has_publication(&mut sql, own).await?;
    slots::marker(&prepared.scratch, "t", prepared.primary.version).map(drop)
}
