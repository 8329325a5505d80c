//! The cut: the records of topics that belong to transactions that committed at or before one commit.
//!
//! ```text
//!   the log ─► L, E = the end of L's commit record, who was open then (`committed`) ─► Cut
//!   topics  ─► every record: what it says of its place (`event`, `avro`) ─► in, out, uncertain (`judge`) ─► Chosen ─► replay
//! ```
//! How it is decided, and why `sequence[0] < E` alone is not enough, is told in [`judge`].

mod acknowledged;
mod at;
mod avro;
pub mod committed;
pub mod event;
pub mod judge;
mod schemas;
mod survey;

pub use at::{Committed, Cut};
pub use avro::{Kept, fields_of, is_whole};
pub use committed::{Found, cut_at};
pub use judge::{Connector, Counts};
pub use schemas::{Name, Schemas, Side, named};
pub use survey::{Survey, survey, transactions};

/// The door for `fuzz/`; `cargo fuzz` sets this configuration.
#[cfg(any(fuzzing, test))]
pub mod fuzzing {
    /// Reads the bytes as a change event, and as a schema and a value that was written with it, which a zero parts.
    pub fn event_bytes(bytes: &[u8]) {
        super::event::of_json(bytes);
        super::event::of_headers([(&b"__lsn"[..], Some(bytes)), (bytes, None)].into_iter());
        super::Schemas::default().add(bytes);
        let (schema, value) = bytes.split_at(bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len()));
        if let Some(schema) = super::avro::Schema::parse(&String::from_utf8_lossy(schema), &[]) {
            super::avro::of_avro(value.get(1..).unwrap_or_default(), &schema);
        }
    }
}

#[cfg(test)]
mod tests;
