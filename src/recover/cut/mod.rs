//! The cut: the records of topics that belong to transactions that committed at or before one commit.
//!
//! ```text
//!   the log ─► L, E = the end of L's commit record, who was open then (`committed`) ─► Cut
//!   topics  ─► every record: what it says of its place (`event`, `avro`) ─► in, out, uncertain (`judge`) ─► Chosen ─► replay
//! ```
//! How it is decided, and why `sequence[0] < E` alone is not enough, is told in [`judge`].

mod avro;
pub mod committed;
pub mod event;
pub mod judge;
mod schemas;
mod survey;

pub use committed::{Found, cut_at};
pub use judge::{Committed, Connector, Counts, Cut};
pub use schemas::Schemas;
pub use survey::{Survey, survey};

#[cfg(test)]
mod tests;
