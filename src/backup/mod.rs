//! Base backups into the archive.
//!
//! ```text
//!   BASE_BACKUP ─► frames of 4 MiB ─► zstd (a few threads) ─► in order ─► parts of up to 24 MiB ─► store (2 at a time)
//!                                                                                                      │
//!                                                    backup.json, when everything is durable ◄─────────┘
//! ```
//!
//! Nothing is spooled: what is under way fits into memory, whatever the size of the database, and a slow store slows
//! the server's sending down. A backup that is aborted leaves parts without `backup.json`, which count for nothing.
//!
//! The service takes them when they are due, `tidelog backup` by hand; both call [`take()`].

mod contents;
mod followed;
mod in_place;
mod incremental;
mod job;
mod packer;
pub(crate) mod server;
mod take;

pub(crate) use job::{BackupJob, BackupKind};
pub(crate) use take::{Done, take};
