//! The whole pipeline at one commit, and the proof that the archive leads there.
//!
//! ```text
//!   server     a data directory ─► PostgreSQL over it, until it is open ─► positions, stopped again
//! ```

pub mod server;
