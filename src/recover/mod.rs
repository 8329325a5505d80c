//! The whole pipeline at one commit, and the proof that the archive leads there.
//!
//! ```text
//!   schemas    archived subjects ─► another registry, with their ids, or told which they are now
//!   server     a data directory ─► PostgreSQL over it, until it is open ─► positions, stopped again
//!   cut        the records of topics that belong to transactions up to one commit, and no other
//!   drill      the archive, and a database at a random moment of it: read whole, and thrown away
//! ```

pub mod cut;
pub mod drill;
pub mod schemas;
pub mod server;
