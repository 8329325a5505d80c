//! The whole pipeline at one commit, and the proof that the archive leads there.
//!
//! ```text
//!   schemas     archived subjects ─► another registry, with their ids, or told which they are now
//!   server     a data directory ─► PostgreSQL over it, until it is open ─► positions, stopped again
//! ```

pub mod schemas;
pub mod server;
