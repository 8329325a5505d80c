//! The primary: which server it is, and what has become of the slot.

use super::asked::{Asked, missing};
use super::position::Position;
use crate::config::Recovered;
use crate::error::{Error, Kind, Result};
use crate::recover::connector::Connector;
use crate::recover::prepare::there;
use crate::recover::slots::{literal, one};
use crate::segment::wal::Relations;
use crate::source::postgres::{Server, Sql};
use crate::stream::Lsn;

/// The primary.
#[derive(Debug, Clone)]
pub struct Primary {
    /// How one gets into the connector's database.
    pub server: Server,
    /// Its version as `server_version_num` has it.
    pub version: u32,
    /// The number of that database.
    pub database: u32,
    /// Whose log it is.
    pub system_id: u64,
    /// Its timeline.
    pub timeline: u32,
    /// The catalogs of that database that decoding does not read: the statistics of the planner.
    pub harmless: Relations,
}

/// What has become of the slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SlotState {
    /// It is not there.
    Missing,
    /// It is there, and cannot be read from any more.
    Lost,
    /// It begins behind what the connector has sent: it was made later.
    Later(Lsn),
    /// It begins at or before what the connector has sent.
    Sound,
}

impl SlotState {
    /// In words.
    pub fn words(&self) -> String {
        match self {
            Self::Missing => "is not there".to_owned(),
            Self::Lost => "is lost (wal_status)".to_owned(),
            Self::Later(at) => format!("was made later, and begins at {at}"),
            Self::Sound => "is there, with all that the connector wants".to_owned(),
        }
    }
}

/// Asks it which server it is.
///
/// # Errors
/// [`Kind::Config`] for a standby, and for a pipeline file that names none.
pub(super) async fn primary(asked: &Asked, own: &Connector) -> Result<Primary> {
    let url = match asked.pipeline.postgres.as_ref().map(|postgres| &postgres.server) {
        Some(Recovered::There(url)) => url,
        Some(Recovered::Made { .. }) => {
            let message = "[postgres] of the pipeline file makes a server, and the primary is needed";
            return Err(Error::new(Kind::Config, message)
                .hint("name the primary by url; the scratch standby is described by [scratch]"));
        }
        None => return Err(missing("[postgres]", "url = \"postgres://postgres@primary:5432/postgres\"")),
    };
    let server = there(url, own.database())?;
    let mut sql = server.sql().await?;
    let facts = "SELECT (SELECT oid FROM pg_database WHERE datname = current_database()), \
        (SELECT system_identifier FROM pg_control_system()), \
        CASE WHEN NOT pg_is_in_recovery() THEN substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) END, pg_is_in_recovery()";
    let rows = sql.query(facts, "ask which server it is").await?;
    let text = |at: usize| rows.first().and_then(|row| row.get(at)?.clone()).unwrap_or_default();
    if text(3) == "t" {
        let message = format!("{} is a standby", server.shown());
        return Err(Error::new(Kind::Config, message).hint("name the primary: the connector goes on there"));
    }
    // Not that of the last checkpoint, which is the old one for a while after a failover.
    let timeline = || u32::from_str_radix(&text(2), 16).ok();
    let facts = || Some((text(0).parse().ok()?, text(1).parse().ok()?, timeline()?));
    let Some((database, system_id, timeline)) = facts() else {
        return Err(Error::new(Kind::Internal, "the primary does not say which server it is"));
    };
    let harmless = statistics(&mut sql, database).await?;
    let version = sql.version();
    Ok(Primary { server, version, database, system_id, timeline, harmless })
}

/// The catalogs of a database that decoding does not read: the statistics of the planner.
///
/// # Errors
/// A server that does not answer.
pub(in crate::recover) async fn statistics(sql: &mut Sql, database: u32) -> Result<Relations> {
    /// `pg_statistic`, its index, and what is stored beside it, as `initdb` makes them.
    const STATISTICS: [u32; 4] = [2619, 2696, 2840, 2841];
    let files = "SELECT pg_relation_filenode(c.oid) FROM pg_class c WHERE c.oid IN (2619, (SELECT reltoastrelid FROM pg_class WHERE oid = 2619)) \
        OR c.oid IN (SELECT indexrelid FROM pg_index WHERE indrelid IN (2619, (SELECT reltoastrelid FROM pg_class WHERE oid = 2619)))";
    let rows = sql.query(files, "look for the planner's statistics").await?;
    let files = rows.iter().filter_map(|row| row.first()?.as_ref()?.parse().ok());
    Ok(files.chain(STATISTICS).map(|file| (database, file)).collect())
}

/// Looks for the slot.
///
/// # Errors
/// [`Kind::Config`] for one of another database or plugin.
pub(super) async fn slot_state(sql: &mut Sql, own: &Connector, position: Position) -> Result<SlotState> {
    let asked = format!(
        "SELECT plugin, database, wal_status, restart_lsn, confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = {}",
        literal(own.slot())
    );
    let rows = sql.query(&asked, "look for the slot").await?;
    let Some([plugin, database, status, restart, confirmed]) = rows.first().and_then(|row| row.first_chunk()) else {
        return Ok(SlotState::Missing);
    };
    if plugin.as_deref() != Some(own.plugin()) || database.as_deref() != Some(own.database()) {
        let message = format!("the slot {} is there, and of another database or plugin", own.slot());
        return Err(Error::new(Kind::Config, message)
            .hint("drop it if nobody needs it, or give the connector another slot.name"));
    }
    let at = |text: &Option<String>| text.as_deref().and_then(|text| text.parse::<Lsn>().ok());
    Ok(match (at(restart), at(confirmed)) {
        (Some(_), Some(confirmed)) if status.as_deref() != Some("lost") => match confirmed > position.committed {
            true => SlotState::Later(confirmed),
            false => SlotState::Sound,
        },
        _ => SlotState::Lost,
    })
}

/// Moves a slot that nobody reads to a position, and reads it back.
///
/// # Errors
/// [`Kind::Fenced`] for one that is gone, [`Kind::Unsupported`] for one that somebody else reads from.
pub(super) async fn advance(sql: &mut Sql, slot: &str, to: Lsn) -> Result<()> {
    let slot_is = format!("SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = {}", literal(slot));
    let at = async |sql: &mut Sql| {
        let at = one(sql, &slot_is, "read where the slot stands").await?.and_then(|at| at.parse::<Lsn>().ok());
        at.ok_or_else(|| {
            Error::new(Kind::Fenced, format!("the slot {slot}, which was made, is gone"))
                .hint("what was written since is in no topic: begin again")
        })
    };
    if at(sql).await? < to {
        let moves = format!("SELECT pg_replication_slot_advance({}, '{to}')", literal(slot));
        sql.query(&moves, &format!("move the slot {slot} to {to}")).await?;
    }
    match at(sql).await? {
        at if at == to => Ok(()),
        at => Err(Error::new(Kind::Unsupported, format!("the slot {slot} was moved to {to}, and stands at {at}"))
            .hint("somebody else reads from it: the connector was not started")),
    }
}

/// Whether somebody reads, or has read, from a slot since it was made; none where it is not there.
///
/// # Errors
/// A server that does not answer.
pub(super) async fn is_touched(sql: &mut Sql, slot: &str, made_at: Lsn) -> Result<Option<bool>> {
    let asked = format!(
        "SELECT active OR confirmed_flush_lsn IS DISTINCT FROM '{made_at}' FROM pg_replication_slots WHERE slot_name = {}",
        literal(slot)
    );
    Ok(one(sql, &asked, "ask who reads from the new slot").await?.map(|touched| touched == "t"))
}

/// Where a slot begins that nobody has read from yet; none where it is not there.
///
/// # Errors
/// A server that does not answer.
pub(super) async fn made_slot(sql: &mut Sql, slot: &str) -> Result<Option<Lsn>> {
    let asked = format!("SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = {}", literal(slot));
    Ok(one(sql, &asked, "look for the slot").await?.and_then(|at| at.parse().ok()))
}

/// Drops a slot.
///
/// # Errors
/// One that is read from.
pub(super) async fn drop_slot(sql: &mut Sql, slot: &str) -> Result<()> {
    let drops = format!("SELECT pg_drop_replication_slot({})", literal(slot));
    sql.query(&drops, &format!("drop the slot {slot}")).await.map(drop)
}
