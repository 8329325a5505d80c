//! Records out of the archive: a pure plan, then a sink.
//!
//! ```text
//! Query ─► select ─► Plan ─► preflight ─► feed (decode, merge, pace) ─► bounded channel ─► sink: Kafka or JSON lines
//! ```
//! A plan is worked out from checkpoints alone, so that it can be shown before anything moves. Decoding runs on the
//! runtime's threads, the sink on a thread of its own; [`running::STEPS_IN_FLIGHT`] bounds what lies between them.

mod archived;
mod damage;
mod feed;
pub mod groups;
mod holding;
pub mod journal;
mod json;
pub mod kafka;
mod matching;
mod moment;
pub mod offset_map;
mod pace;
mod plan;
mod running;
mod select;
mod stdout;
mod tally;
mod tempo;

pub use archived::{Archived, Known, archived};
pub use damage::{Stop, WAY_OUT, told};
pub use holding::Holding;
pub use matching::PlannedPartition;
pub use moment::{Beginning, Moment, Seen, at_moment};
pub use pace::{Rate, Speed};
pub use plan::{Mark, Marks, Part, Plan, Rename};
pub use running::to_lines;
pub use select::{Found, Offsets, Partitions, Query, Source, expired, shortfalls, sources, sources_of, topic_pattern};
pub use stdout::Only;
pub use tally::{Counters, Tally};
pub use tempo::Tempo;
