//! Whether the server is fit to be archived: everything that streaming would fail at, asked in advance.

use super::conn::Server;
use super::replication::Replication;
use super::slots::{Slot, SlotKind, Slots};
use crate::config::Postgres;
use crate::error::{Error, Kind, Result};

/// Connects as the archiver would and looks at everything that it needs. Gives what there is, in a sentence.
///
/// # Errors
/// The first thing that is missing, and the way out.
pub async fn check(config: &Postgres) -> Result<String> {
    let server = Server::new(config)?;
    let mut replication = server.replication().await?;
    let identity = replication.identify().await?;
    wal_level(&mut replication).await?;
    let segment_size = replication.wal_segment_size().await?;
    let limit = replication.show("max_replication_slots").await?;
    let mut sql = server.sql().await.map_err(|error| {
        let reached = format!("{} lets us in for replication, but not for SQL", replication.shown());
        error.context(reached)
    })?;
    let slots = sql.slots().await?;
    let slot = slot(config, &slots, limit.parse().unwrap_or(0))?;
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

async fn wal_level(replication: &mut Replication) -> Result<()> {
    let level = replication.show("wal_level").await?;
    if level == "minimal" {
        let message = format!("{} writes too little WAL: wal_level is minimal", replication.shown());
        return Err(
            Error::new(Kind::Unsupported, message).hint("set wal_level = replica (or logical) and restart the server")
        );
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
            .hint("a running tidelog records the gap, makes the slot anew and takes a base backup; raise max_slot_wal_keep_size"));
    }
    Ok(())
}
