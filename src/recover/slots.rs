//! The slots of the connectors, made before anything else is written, and the markers that are written behind them.
//!
//! ```text
//!   E ── end of recovery ── raised ──┬── slot: S ──┬── marker ── … whatever is written from now on
//!                                    └ nobody writes in between, if the server is ours
//! ```
//!
//! A slot that is made waits for every transaction that runs to end, so prepared ones are looked for first. The offset that a connector is
//! given is just S: below it would be the same, above it would lose every commit in between, without a word.

use super::connector::Connector;
use super::journal::{Commit, Folder, Journal};
use crate::error::{Error, Kind, Result};
use crate::source::postgres::{Server, Sql};
use crate::stream::Lsn;

/// The first version whose `pgoutput` passes logical decoding messages on.
const MESSAGES: u32 = 140_000;

/// The first version that copies slots to standbys, if they say so.
const FAILOVER: u32 = 170_000;

/// Refuses what makes a slot impossible, before one is tried.
///
/// # Errors
/// [`Kind::Unsupported`] for too low a `wal_level` and prepared transactions.
pub async fn can_be_made(server: &Server) -> Result<()> {
    let mut sql = server.sql().await?;
    let level = one(&mut sql, "SHOW wal_level", "read its wal_level").await?;
    if level.as_deref() != Some("logical") {
        let message = format!("its wal_level is {}, and a logical slot needs logical", level.unwrap_or_default());
        return Err(Error::new(Kind::Unsupported, message)
            .hint("set wal_level = \"logical\" in [postgres.settings], or in its postgresql.conf"));
    }
    let rows =
        sql.query("SELECT gid, database FROM pg_prepared_xacts ORDER BY prepared", "look for prepared transactions");
    let prepared: Vec<String> =
        rows.await?.into_iter().map(|row| row.into_iter().flatten().collect::<Vec<_>>().join(" in ")).collect();
    if prepared.is_empty() {
        return Ok(());
    }
    let message =
        format!("transactions are prepared, and no slot can be made before they end: {}", prepared.join(", "));
    Err(Error::new(Kind::Unsupported, message)
        .hint("start the server by hand, COMMIT or ROLLBACK PREPARED each as the application decides, stop it, and run this again"))
}

/// Makes the slot of a connector, or finds the one that an earlier run has made; gives where it begins.
///
/// # Errors
/// A publication that was not there at the commit, and a slot of that name that is not ours.
pub async fn make(server: &Server, of: &Connector, (folder, journal): (&Folder, &mut Journal)) -> Result<Lsn> {
    let server = server.of_database(of.database());
    let mut sql = server.sql().await?;
    has_publication(&mut sql, of).await?;
    let known = journal.connector(&of.name).clone();
    let asked = format!(
        "SELECT plugin, database, confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = {}",
        literal(of.slot())
    );
    let rows = sql.query(&asked, "look for the slot").await?;
    if let Some([plugin, database, at]) = rows.first().and_then(|row| row.first_chunk()) {
        let is_same = plugin.as_deref() == Some(of.plugin()) && database.as_deref() == Some(of.database());
        let at = at.as_deref().and_then(|at| at.parse().ok());
        return match (known.slot, at) {
            (Some(slot), _) if is_same => Ok(slot),
            (None, Some(at)) if is_same && known.makes_slot => settled(of, at, (folder, journal)),
            _ => Err(not_ours(of)),
        };
    }
    if known.slot.is_some() {
        let message = format!("the slot {}, which was made, is gone", of.slot());
        return Err(Error::new(Kind::Fenced, message).hint("what was written since is in no topic: begin again"));
    }
    if !known.makes_slot {
        journal.connector(&of.name).makes_slot = true;
        folder.save(journal)?;
    }
    let at = create(&mut sql, of).await?;
    settled(of, at, (folder, journal))
}

/// Makes the slot of a connector; gives where it begins.
///
/// # Errors
/// A transaction that does not end within a minute.
pub(super) async fn create(sql: &mut Sql, of: &Connector) -> Result<Lsn> {
    // It would wait for ever for a transaction that does not end.
    sql.query("SET statement_timeout = '60s'", "limit a statement").await?;
    let more = if of.has_failover && sql.version() >= FAILOVER { ", failover => true" } else { "" };
    let (slot, plugin) = (literal(of.slot()), literal(of.plugin()));
    let made = format!("SELECT lsn FROM pg_create_logical_replication_slot({slot}, {plugin}{more})");
    let at = one(sql, &made, &format!("make the slot {}", of.slot())).await?.and_then(|at| at.parse().ok());
    at.ok_or_else(|| Error::new(Kind::Internal, "the server does not tell where its slot begins"))
}

/// A publication is a part of the database: one that was not there at the commit was made later.
pub(super) async fn has_publication(sql: &mut Sql, of: &Connector) -> Result<()> {
    if of.plugin() == "pgoutput" {
        let asked = format!("SELECT pubname FROM pg_publication WHERE pubname = {}", literal(of.publication()));
        if one(sql, &asked, "look for the publication").await?.is_none() {
            let message = format!("the database {} has no publication {}", of.database(), of.publication());
            return Err(Error::new(Kind::NotFound, message).hint(
                "if it was made behind the commit choose a later moment, or leave the connector out and let it begin anew",
            ));
        }
    }
    Ok(())
}

fn settled(of: &Connector, at: Lsn, (folder, journal): (&Folder, &mut Journal)) -> Result<Lsn> {
    is_behind(at, &journal.commit)?;
    journal.connector(&of.name).slot = Some(at);
    folder.save(journal)?;
    Ok(at)
}

fn is_behind(at: Lsn, commit: &Commit) -> Result<()> {
    if at >= commit.end {
        return Ok(());
    }
    let message = format!("a slot begins at {at}, before the commit ends at {}", commit.end);
    Err(Error::new(Kind::Internal, message).hint("it is of another server: drop it, and begin again"))
}

fn not_ours(of: &Connector) -> Error {
    let message = format!("there is a slot {} already, which this recovery has not made", of.slot());
    Error::new(Kind::Config, message).hint(
        "where it begins says nothing of what its reader has seen: drop it, or give the connector another slot.name",
    )
}

/// Writes what a connector has to bring to its topic; gives the transaction by which it did.
///
/// # Errors
/// [`Kind::Config`] where the connector would not see a message, and no statement is given.
pub async fn write_marker(server: &Server, of: &Connector, token: &str) -> Result<u32> {
    let mut sql = server.of_database(of.database()).sql().await?;
    let statement = marker(of, token, sql.version())?;
    let doing = format!("write the marker of {}", of.name);
    sql.query("BEGIN", &doing).await?;
    sql.query(&statement, &doing).await?;
    let xid = one(&mut sql, "SELECT pg_current_xact_id()", &doing).await?.and_then(|xid| xid.parse::<u64>().ok());
    sql.query("COMMIT", &doing).await?;
    // The log has 32 bits of it.
    let xid = xid.and_then(|xid| u32::try_from(xid & u64::from(u32::MAX)).ok());
    xid.ok_or_else(|| Error::new(Kind::Internal, "the server does not tell its transaction"))
}

/// The statement that writes a marker.
///
/// # Errors
/// [`Kind::Config`] where the connector would not see a message, and no statement is given.
pub(super) fn marker(of: &Connector, token: &str, version: u32) -> Result<String> {
    let statement = match &of.marker {
        Some(marker) => marker.replace("{token}", &token.replace('\'', "''")),
        None if sees_messages(of, version) => {
            format!("SELECT pg_logical_emit_message(true, {}, '')", literal(token))
        }
        None => {
            let message =
                format!("the connector {} does not pass messages on, so none can show that it reads all", of.name);
            return Err(Error::new(Kind::Config, message).hint(
                "give it a statement that writes a row which it captures: marker = \"INSERT INTO heartbeat(note) VALUES ('{token}')\"",
            ));
        }
    };
    Ok(statement)
}

/// Whether a connector brings logical decoding messages of any prefix.
pub fn sees_messages(of: &Connector, version: u32) -> bool {
    let limits = ["message.prefix.include.list", "message.prefix.exclude.list"];
    let is_limited = limits
        .iter()
        .any(|key| of.config.get(*key).is_some_and(|value| value.as_deref().is_some_and(|v| !v.is_empty())));
    of.plugin() == "pgoutput" && version >= MESSAGES && !is_limited
}

/// The first value of an answer.
pub(super) async fn one(sql: &mut Sql, asked: &str, doing: &str) -> Result<Option<String>> {
    let rows = sql.query(asked, doing).await?;
    Ok(rows.into_iter().next().and_then(|row| row.into_iter().next().flatten()))
}

/// A text between single quotes.
pub(super) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}
