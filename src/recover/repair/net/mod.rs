//! Net changes: where no standby decodes what was missed, the captured tables are compared at both ends of it.
//!
//! ```text
//!   archive ─► scratch server at the marker ─► per table: the rows written since the offset, all keys, a count and a sum   (files)
//!   archive ─► scratch server at the offset ─► promoted, a slot ─► DELETE, UPDATE, INSERT until count and sum are the same
//!                                                                        └─► the connector reads that: its own shape
//! ```
//!
//! A key that was changed several times comes once, with its last row; one that came and went does not come. What the connector reads
//! lies on a timeline of the scratch server that begins at the offset, so that `source.lsn` is above all that was sent before.
//!
//! - `captured`   the tables of a publication, as a server has them
//! - `statements` the SQL of it
//! - `end`        what is read at the marker
//! - `changes`    what is done at the offset

pub mod captured;
pub mod changes;
pub mod end;
mod statements;
