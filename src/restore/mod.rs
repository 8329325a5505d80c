//! From the archive back to a running Postgres.
//!
//! ```text
//!   backup.json ─► plan (which backup, which timelines, where to stop?) ─► foresight (what will the log do, and need?)
//!                                                                              └─► unpack, checked by the manifest
//!                                                                                             │
//!   a data directory, ready to start  ◄── recovery settings ◄─────────────────────────────────┘
//!           │
//!           └─ Postgres asks for WAL, file by file ─► wal_fetch ─► log ─► the file, or "there is none", or "stop"
//!                                                     └─► prefetch: the files that it asks for next
//! ```
//!
//! What Postgres must never get is a wrong "there is none": it would take it for the end of the log, open with less than
//! was archived, and call it success. So [`wal_fetch`] says so only where the archive proves it.

pub mod commits;
pub mod gate;
pub mod holding;
pub mod plan;
pub mod postgres;
pub mod prefetch;
pub mod programs;
pub mod room;
pub mod wal_fetch;

pub(crate) mod manifest;

mod asked;
mod combine;
mod existing;
mod foresight;
mod gated;
mod inherited;
mod limits;
mod log;
mod patience;
mod refusal;
mod runs;
mod search;
mod settings;
mod stop;
mod tablespaces;
mod unpack;
mod wal_name;

pub use combine::Combiner;
pub use existing::{Ground, is_begun};
pub use foresight::{Foreseen, foresee};
pub use limits::limits_of;
pub use log::Log;
pub use patience::{PATIENCE, patiently};
pub use stop::Stop;

/// The door for `fuzz/`; `cargo fuzz` sets this configuration.
#[cfg(any(fuzzing, test))]
pub mod fuzzing {
    /// Reads the bytes as the server's manifest of a base backup, as an archive of it, and as its configuration.
    pub fn backup_bytes(bytes: &[u8]) {
        String::from_utf8_lossy(bytes).lines().for_each(|line| drop(super::inherited::setting(line)));
        drop(super::manifest::parse(bytes, u64::MAX));
        super::unpack::read_through(bytes);
    }
}
