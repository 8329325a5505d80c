//! Postgres in: write-ahead log, base backups and what is known of replication slots, over the streaming replication
//! protocol of PostgreSQL 13 to 18.
//!
//! ```text
//!               ┌─ Replication ── identify, show, slots, timeline history ─┐
//!   Server ─────┤       ├─► WalStream ──► Event: data, keepalive, end of timeline        status ◄── the caller
//!   (url, TLS,  │       └─► BackupStream ──► BackupEvent: archive, data, manifest, progress, end
//!    password)  └─ Sql ── plain queries, slots
//!                     │
//!   codec (bytes only) ◄── conn (sockets only)
//! ```
//!
//! Positions are the caller's: nothing here reads where a slot stands to decide where to go on. Nothing is retried
//! here either; an error says whether another try can help ([`Error::is_transient`]), and [`is_removed_wal`] whether
//! the WAL that was asked for is gone for good.
//!
//! A physical replication connection speaks no SQL, so SQL has a connection of its own. Both are made by [`Server`],
//! with the protocol's simple queries: a handful of rows as text needs no driver.
//!
//! [`Error::is_transient`]: crate::error::Error::is_transient

mod backup;
mod check;
mod codec;
mod conn;
mod error;
mod replication;
mod slots;
mod sql;
mod state;
mod wal;

pub use backup::{BackupEvent, BackupOptions, BackupStream, Tablespace};
pub use check::check;
pub use conn::Server;
pub use error::{ServerError, is_refusal, is_removed_wal, is_wrong_state, server_error, takes_no_connection};
pub use replication::{Decoding, Identity, Replication, SlotPosition};
pub use slots::{Rate, Slot, SlotKind, Slots, WalStatus};
pub use sql::Sql;
pub use wal::{Event, Status, WalStream};

/// The door for `fuzz/`; `cargo fuzz` sets this configuration.
#[cfg(any(fuzzing, test))]
pub mod fuzzing {
    use super::codec::{Archive, Backend, Stream, frame};

    /// Does with a server's bytes what a connection does, from the socket to the innermost message.
    pub fn server_bytes(mut bytes: &[u8]) {
        while let Ok(Some(length)) = frame(bytes) {
            let Some((message, rest)) = bytes.split_at_checked(length) else { return };
            if let Ok(Backend::CopyData(data)) = Backend::parse(message[0], &message[5..]) {
                drop((Stream::parse(data), Archive::parse(data)));
            }
            bytes = rest;
        }
    }
}
