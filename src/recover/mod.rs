//! The whole pipeline at one commit, and the proof that the archive leads there.
//!
//! ```text
//!   --to ─► L, the last commit at or before it; E, where that ends (restore::commits)
//!   postgres ─► raise ─► slots ─► markers ─► open ─► registry ─► acls ─► topics ─► connectors ─► marker ─► fold     run: the steps, each with a proof
//!   journal     beside what is made: which step is done, which slot and connector is ours
//!   cut         which archived records belong to transactions that committed up to L
//!   fold        captured tables beside the rows that their topics come to
//!   in_place    topics that stay where they are: what lies beyond the commit is told, or taken back
//!   schemas     archived subjects ─► another registry, with their ids, or told which they are now
//!   repair      a slot was lost: what it did not deliver, by the connector itself from a scratch standby
//!   server      a data directory ─► PostgreSQL over it, until it is open ─► positions, stopped again
//!   expected    how long each step takes, as far as its sizes tell
//!   drill       the archive, and a database at a random moment of it: read whole, and thrown away
//! ```
//!
//! A step may be killed at any point and begun again: what it finds of its own it takes, by the journal, and what is somebody else's it
//! refuses.

mod acls;
pub mod archived;
pub mod connector;
pub mod connectors;
pub mod cut;
pub mod database;
pub mod drill;
mod expected;
pub mod fold;
mod in_place;
pub mod journal;
pub mod marker;
mod may_begin;
pub mod plan;
pub mod prepare;
mod reach;
pub mod repair;
pub mod report;
pub mod run;
pub mod schemas;
pub mod server;
pub mod slots;
mod step;
mod strimzi;
mod tail;
mod topics;
mod words;
