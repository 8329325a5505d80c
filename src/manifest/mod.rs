//! The manifest: one chain of checkpoints a stream, the only truth about what is archived.
//!
//! ```text
//!   0 begin ◄─ 1 append ◄─ 2 append ◄─ 3 gap ◄─ … ◄─ 64 snapshot ◄─ 65 append ◄─ …      each names the sha256 of
//!                                                     │                                 the entry before it
//!                                                     └► pages: lists of segments and gaps, of base 64
//! ```
//!
//! Segments that are durable flow in as [`Change`]s, entries flow out to every reader. A writer creates entry `n + 1`
//! with put-if-absent and so learns whether it still knows the chain's end ([`Chain::commit`]). Every 64th entry is a
//! snapshot: the sum of all before it, and a list of pages. The pages are a counter of base 64, in which 64 pages of a
//! level become one of the next, so that neither a commit nor the opening of a chain costs more in an old archive than
//! in a new one. A page is named by its sha256 and written before the snapshot that lists it: writers that race write
//! the same object.
//!
//! [`Chain::select`] answers which segments can matter for a range of time or offsets, [`ChainScan`] reads every entry and
//! page for `verify`, [`coverage`] keeps what is known to be complete.

pub mod abandon;
pub mod aged;
pub mod backups;
pub mod coverage;
pub mod drills;
pub mod found;
pub mod histories;
pub mod holds;
pub mod known;
pub mod leftovers;
pub mod merging;
pub(crate) mod origin;
pub mod packing;
pub mod path;
pub mod reads;
pub mod recoverable;
pub mod replaced;
pub mod state;
pub(crate) mod system;

mod chain;
mod entered;
mod entry;
mod head;
mod lines;
mod live;
mod maintenance;
mod order;
mod pack;
mod page;
mod reads_at_once;
mod repair;
mod scan;
mod select;
mod stored;
mod streams;
mod unpack;
mod writer;

pub use crate::stream::Change;
pub use chain::{Chain, Outcome};
pub use reads_at_once::STREAMS_AT_ONCE;
pub use repair::{Repaired, repair};
pub use scan::{ChainScan, ScanStep};
pub use select::{Obsolete, Selected, Selection};
pub use streams::{began, begin_of, generations_named, isolated, state_streams, streams, system, topics};
pub(crate) use writer::writer_id;

/// The door for `fuzz/`; `cargo fuzz` sets this configuration.
#[cfg(any(fuzzing, test))]
pub mod fuzzing {
    use object_store::path::Path;

    use super::{backups, coverage, entry, page};
    use crate::stream::{PageRef, StreamId, Totals, sha256};

    /// Reads the bytes as each kind of object that describes an archive.
    pub fn object_bytes(bytes: &[u8]) {
        let object = Path::from("object");
        drop((coverage::decode(&object, bytes), backups::parse(&object, bytes)));
        let streams = ["kafka/main/orders.0", "postgres/7291123456789012345", "state/topics/main"];
        let compressed = zstd::bulk::compress(bytes, 1).unwrap_or_default();
        for stream in streams.iter().filter_map(|stream| stream.parse::<StreamId>().ok()) {
            for number in [0, 1, 64] {
                drop(entry::decode(&stream, number, object.clone(), bytes));
            }
            let object_of_pack = crate::store::layout::pack(&stream, 0);
            drop(super::pack::Pack::decode(&stream, 0, &object_of_pack, &compressed));
            for level in [0, 1] {
                let (sha256, last) = (sha256(&compressed), if level == 0 { 63 } else { 4095 });
                let reference = PageRef {
                    sha256,
                    level,
                    first: 0,
                    last,
                    totals: Totals::default(),
                    spans: Vec::new(),
                    merged: None,
                };
                drop(page::decode(&stream, &reference, &object, &compressed));
            }
        }
    }
}

#[cfg(test)]
mod tests;
