//! Whether the server is fit to be archived: everything that streaming would fail at, asked in advance.

use super::conn::Server;
use super::slots::{Slot, SlotKind, Slots};
use super::sql::Sql;
use crate::config::Postgres;
use crate::error::{Error, Kind, Result};

/// Connects as the archiver would and looks at everything that it needs. Gives what there is, in a sentence.
///
/// # Errors
/// The first thing that is missing, and the way out.
pub async fn check(config: &Postgres) -> Result<String> {
    let server = Server::new(config)?;
    // SQL first: a server that writes too little WAL takes no replication connection that could be asked why.
    let mut sql = server.sql().await?;
    wal_level(&mut sql, &server.shown()).await?;
    let slots = sql.slots().await?;
    let limit = setting(&mut sql, "max_replication_slots").await?;
    let slot = slot(config, &slots, limit.parse().unwrap_or(0))?;
    let mut replication = server.replication().await?;
    let identity = replication.identify().await?;
    let segment_size = replication.wal_segment_size().await?;
    Ok(format!(
        "{}: PostgreSQL {}.{}, system {}, timeline {} at {}, WAL files of {} MiB, {slot}{}",
        replication.shown(),
        replication.version() / 10_000,
        replication.version() % 10_000,
        identity.system_id,
        identity.timeline,
        identity.flush,
        segment_size >> 20,
        if replication.is_tls() { ", encrypted" } else { "" },
    ))
}

async fn setting(sql: &mut Sql, name: &str) -> Result<String> {
    let mut rows = sql.query(&format!("SHOW {name}"), &format!("read its setting {name}")).await?;
    Ok(rows.pop().and_then(|mut row| row.pop()).flatten().unwrap_or_default())
}

async fn wal_level(sql: &mut Sql, shown: &str) -> Result<()> {
    if setting(sql, "wal_level").await? == "minimal" {
        return Err(Error::new(Kind::Unsupported, format!("{shown} writes too little WAL: wal_level is minimal"))
            .hint("set wal_level = replica (or logical) and max_wal_senders, and restart the server"));
    }
    if setting(sql, "max_wal_senders").await? == "0" {
        return Err(Error::new(Kind::Unsupported, format!("{shown} sends no WAL: max_wal_senders is 0"))
            .hint("set max_wal_senders = 10 and restart the server"));
    }
    Ok(())
}

/// The state of the archiver's slot, or of the room for it.
fn slot(config: &Postgres, slots: &Slots, limit: usize) -> Result<String> {
    let name = &config.slot;
    let Some(slot) = slots.slots.iter().find(|slot| slot.name == *name) else {
        if !config.create_slot {
            let message = format!("postgres.slot names {name}, and the server has no such slot");
            return Err(Error::new(Kind::NotFound, message).hint(format!(
                "create it (SELECT pg_create_physical_replication_slot('{name}', true)), or set postgres.create_slot = true"
            )));
        }
        if slots.slots.len() >= limit {
            let message =
                format!("no slot is left: {} of max_replication_slots = {limit} are in use", slots.slots.len());
            return Err(Error::new(Kind::Full, message)
                .hint("raise max_replication_slots and restart the server, or drop a slot that nobody needs"));
        }
        return Ok(format!("slot {name} will be created"));
    };
    usable(slot)?;
    let is_busy = if slot.active { "in use" } else { "free" };
    Ok(format!("slot {name} is {is_busy}"))
}

fn usable(slot: &Slot) -> Result<()> {
    let name = &slot.name;
    if let SlotKind::Logical { plugin, .. } = &slot.kind {
        let message = format!("postgres.slot names {name}, which is a logical slot ({plugin})");
        return Err(
            Error::new(Kind::Config, message).hint("name another slot; tidelog needs a physical one of its own")
        );
    }
    if slot.is_lost() {
        let message = format!("the slot {name} has lost the WAL that it kept");
        return Err(Error::new(Kind::Incomplete, message)
            .hint("a running tidelog records the gap, makes the slot again and takes a base backup; raise max_slot_wal_keep_size"));
    }
    Ok(())
}
