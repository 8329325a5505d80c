//! What keeps an archive in order while it grows: small segments are merged, what retention lets go is expired, and objects that
//! nobody needs any more are deleted.
//!
//! ```text
//!   the service, every few minutes ──┐
//!                                    ├─► topics, state, wal ─► entries of the chains ─► an hour later: objects are deleted
//!   `tidelog expire`, by hand ───────┘
//! ```
//!
//! Merges and expiries are entries of a chain like any other, made under a writer's id of their own: aborted at any point they leave
//! nothing half done, and of several processes that do the same at once one has the number.

pub mod state;
pub mod topics;
pub mod wal;

mod denied;

pub(crate) use denied::left_to_others;
