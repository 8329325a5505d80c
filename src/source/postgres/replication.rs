//! Commands of the replication protocol (chapter "Streaming Replication Protocol").

use bytes::Bytes;

use super::codec::Backend;
use super::conn::{Connection, Purpose, Server};
use super::error::server_error;
use crate::error::{Error, Kind, Result};
use crate::stream::Lsn;

/// Which cluster it is and where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Chosen by `initdb`; the same for a primary, its standbys and whatever is restored from its backups.
    pub system_id: u64,
    /// The timeline that it writes, or a standby follows.
    pub timeline: u32,
    /// Up to where its log is flushed.
    pub flush: Lsn,
}

/// What a physical slot keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotPosition {
    /// The oldest WAL that it keeps; none if it reserves none, or has lost it.
    pub restart: Option<Lsn>,
    /// The timeline of that WAL.
    pub timeline: Option<u32>,
}

/// A physical replication connection that waits for a command.
pub struct Replication {
    pub(super) connection: Connection,
}

impl Server {
    /// A physical replication connection.
    ///
    /// # Errors
    /// [`Kind::Denied`] for a wrong password or a missing right, [`Kind::Unavailable`] if no server can be reached.
    pub async fn replication(&self) -> Result<Replication> {
        Ok(Replication { connection: self.connect(Purpose::Replication).await? })
    }
}

/// A replication connection to one database, for logical decoding.
pub struct Decoding {
    connection: Connection,
}

impl Server {
    /// A replication connection to the database that `postgres.url` names.
    ///
    /// # Errors
    /// As those of [`Server::replication`].
    pub async fn decoding(&self) -> Result<Decoding> {
        Ok(Decoding { connection: self.connect(Purpose::Decoding).await? })
    }
}

impl Decoding {
    /// Makes a logical slot; gives where it begins, once the log has come to where it can. Over this protocol no snapshot is held
    /// meanwhile, with which the recovery of a standby would be in conflict.
    ///
    /// # Errors
    /// [`Kind::Config`] for a name that no slot can have.
    pub async fn create_slot(&mut self, name: &str, plugin: &str) -> Result<Lsn> {
        let doing = format!("create the logical replication slot {name}");
        let command =
            format!("CREATE_REPLICATION_SLOT {} LOGICAL {} NOEXPORT_SNAPSHOT", slot_name(name)?, identifier(plugin));
        let rows = self.connection.query(&command, &doing).await?;
        let at = rows.first().and_then(|row| row.get(1)?.as_ref()?.parse().ok());
        at.ok_or_else(|| self.connection.unexpected(&doing))
    }
}

impl Replication {
    /// The server, as it stands in messages.
    pub fn shown(&self) -> &str {
        &self.connection.shown
    }

    /// The server's version as `server_version_num` has it: 150018 for 15.18.
    pub fn version(&self) -> u32 {
        self.connection.version
    }

    /// Returns whether the connection is encrypted.
    pub fn is_tls(&self) -> bool {
        self.connection.is_tls
    }

    /// Returns which cluster it is and where it stands.
    pub async fn identify(&mut self) -> Result<Identity> {
        let rows = self.connection.query("IDENTIFY_SYSTEM", "identify the system").await?;
        let columns = rows.first().map(Vec::as_slice).unwrap_or_default();
        let text = |index: usize| columns.get(index).and_then(Option::as_deref).unwrap_or_default();
        let identity = || {
            Some(Identity {
                system_id: text(0).parse().ok()?,
                timeline: text(1).parse().ok()?,
                flush: text(2).parse().ok()?,
            })
        };
        identity().ok_or_else(|| self.connection.unexpected("identify the system"))
    }

    /// A setting of the server.
    pub async fn show(&mut self, setting: &str) -> Result<String> {
        let doing = format!("read its setting {setting}");
        let mut rows = self.connection.query(&format!("SHOW {}", identifier(setting)), &doing).await?;
        let value = rows.pop().and_then(|mut row| row.pop()).flatten();
        value.ok_or_else(|| self.connection.unexpected(&doing))
    }

    /// The size of a WAL file in bytes, chosen by `initdb --wal-segsize`.
    pub async fn wal_segment_size(&mut self) -> Result<u64> {
        let shown = self.show("wal_segment_size").await?;
        memory_size(&shown).ok_or_else(|| self.connection.unexpected(&format!("read wal_segment_size {shown:?}")))
    }

    /// Makes a physical slot that keeps WAL from now on. One that is there already is taken as it is.
    ///
    /// # Errors
    /// [`Kind::Full`] when all slots are in use; [`Kind::Config`] for a name that no slot can have.
    pub async fn create_slot(&mut self, name: &str) -> Result<()> {
        let slot = slot_name(name)?;
        let command = if self.version() >= 150_000 {
            format!("CREATE_REPLICATION_SLOT {slot} PHYSICAL (RESERVE_WAL)")
        } else {
            format!("CREATE_REPLICATION_SLOT {slot} PHYSICAL RESERVE_WAL")
        };
        match self.connection.query(&command, &format!("create the replication slot {name}")).await {
            Ok(_) => Ok(()),
            // duplicate_object
            Err(error) if server_error(&error).is_some_and(|server| server.sqlstate == "42710") => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Returns what a slot keeps; none if there is no such slot.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] before PostgreSQL 15, where [`Sql::slots`](super::Sql::slots) tells; and for a logical slot.
    pub async fn read_slot(&mut self, name: &str) -> Result<Option<SlotPosition>> {
        let doing = format!("read the replication slot {name}");
        if self.version() < 150_000 {
            let message = format!("{}: cannot {doing} by the replication protocol before PostgreSQL 15", self.shown());
            return Err(Error::new(Kind::Unsupported, message));
        }
        let rows = self.connection.query(&format!("READ_REPLICATION_SLOT {}", slot_name(name)?), &doing).await?;
        let columns = rows.first().map(Vec::as_slice).unwrap_or_default();
        let text = |index: usize| columns.get(index).and_then(Option::as_deref);
        // slot_type is null where there is no slot.
        Ok(text(0).map(|_| SlotPosition {
            restart: text(1).and_then(|lsn| lsn.parse().ok()),
            timeline: text(2).and_then(|timeline| timeline.parse().ok()),
        }))
    }

    /// Drops a slot. The WAL that only it kept is removed at the next checkpoint.
    pub async fn drop_slot(&mut self, name: &str) -> Result<()> {
        let command = format!("DROP_REPLICATION_SLOT {}", slot_name(name)?);
        self.connection.query(&command, &format!("drop the replication slot {name}")).await.map(drop)
    }

    /// The history file of a timeline, as it lies in the server's `pg_wal`. Timeline 1 has none.
    pub async fn timeline_history(&mut self, timeline: u32) -> Result<Bytes> {
        let doing = format!("read the history of timeline {timeline}");
        self.connection.send(&format!("TIMELINE_HISTORY {timeline}")).await?;
        let (mut content, mut failure) = (None, None);
        loop {
            match self.connection.next().await? {
                // Two columns, the file's name and its bytes, which need not be text.
                Backend::DataRow(row) => content = row.bytes(1).map(Bytes::copy_from_slice),
                Backend::Error(error) if error.severity != "ERROR" => {
                    return Err(self.connection.refused(error, &doing));
                }
                Backend::Error(error) => failure = Some(error),
                Backend::ReadyForQuery => break,
                _ => {}
            }
        }
        match (failure, content) {
            (Some(error), _) => Err(self.connection.refused(error, &doing)),
            (None, Some(content)) => Ok(content),
            (None, None) => Err(self.connection.unexpected(&doing)),
        }
    }

    /// Whether the server makes incremental base backups.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] if not: before PostgreSQL 17, and with `summarize_wal = off`, as it is by default. With `wal_level = minimal`
    /// there is no base backup at all.
    pub async fn makes_incremental_backups(&mut self) -> Result<()> {
        if self.version() < 170_000 {
            let message = format!("{} cannot make incremental base backups", self.shown());
            return Err(
                Error::new(Kind::Unsupported, message).hint("they need PostgreSQL 17 or newer: take a full one")
            );
        }
        if self.show("summarize_wal").await? == "on" {
            return Ok(());
        }
        let message = format!("{} makes no incremental base backups: its setting summarize_wal is off", self.shown());
        Err(Error::new(Kind::Unsupported, message).hint(
            "ALTER SYSTEM SET summarize_wal = on, SELECT pg_reload_conf(), and then a full base backup: incremental ones can build on what \
             is taken from then on",
        ))
    }
}

/// A slot's name as the protocol takes it.
pub(super) fn slot_name(name: &str) -> Result<String> {
    // ReplicationSlotValidateName (slot.c)
    let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    if name.is_empty() || name.len() > 63 || !name.bytes().all(legal) {
        return Err(Error::new(Kind::Config, format!("{name:?} cannot be the name of a replication slot"))
            .hint("use lower case letters, digits and _, 63 at most"));
    }
    Ok(identifier(name))
}

/// A name between double quotes.
fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text between single quotes.
pub(super) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// `16MB` in bytes, as `SHOW` writes settings that are sizes.
fn memory_size(text: &str) -> Option<u64> {
    let split = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(split);
    let factor = match unit {
        "B" => 1,
        "kB" => 1 << 10,
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_texts_cannot_break_out_of_a_command() {
        assert_eq!(identifier("a\"b"), "\"a\"\"b\"");
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(slot_name("tidelog_1").expect("a name"), "\"tidelog_1\"");
        for name in ["", "A", "a-b", "a b", &"a".repeat(64)] {
            assert_eq!(slot_name(name).expect_err("no name").kind(), Kind::Config, "{name}");
        }
    }

    #[test]
    fn sizes_are_read_as_show_writes_them() {
        assert_eq!(
            ["16MB", "1GB", "512kB", "8192B"].map(memory_size),
            [Some(16 << 20), Some(1 << 30), Some(512 << 10), Some(8192)]
        );
        assert_eq!(["", "16", "MB", "16 MB"].map(memory_size), [None; 4]);
    }
}
