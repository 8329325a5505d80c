//! Records out of the archive: a pure plan, then a sink.
//!
//! ```text
//! Query ─► select ─► Plan ─► preflight ─► feed (decode, merge, pace) ─► bounded channel ─► sink: Kafka or JSON lines
//! ```
//! [`prepare()`] turns a [`Request`] into what is left to send and what the target has against it, [`carry_out()`] does it; a command
//! only asks and prints. A plan is worked out from checkpoints alone, so that it can be shown before anything moves. Decoding runs on the
//! runtime's threads, the sink on a thread of its own; [`running::STEPS_IN_FLIGHT`] bounds what lies between them.

mod archived;
mod carry_out;
mod chosen;
mod damage;
mod feed;
pub mod groups;
mod holding;
pub mod journal;
mod json;
pub mod kafka;
mod look;
mod matching;
mod moment;
mod nothing;
pub mod offset_map;
mod pace;
mod plan;
mod prepare;
mod request;
mod running;
mod schema_ids;
mod select;
mod shortfalls;
mod stdout;
mod tally;
mod tempo;
mod verdict;

pub use archived::{Archived, Known, archived};
pub use carry_out::{Outcome, carry_out};
pub use chosen::{Chosen, Kept};
pub use damage::{Stop, WAY_OUT, told};
pub use holding::Holding;
pub use look::look_through;
pub use matching::PlannedPartition;
pub use moment::{Beginning, Moment, Seen, at_moment};
pub use nothing::unmatched;
pub use pace::{Rate, Speed};
pub use plan::{Mark, Marks, Part, Plan, Rename};
pub use prepare::{Prepared, prepare, readable, warnings_of};
pub use request::{GroupsWanted, Moving, Request, Selection};
pub use running::to_lines;
pub use schema_ids::{IdPrefixed, SchemaIds};
pub use select::{Found, Offsets, Partitions, Query, Source, sources, sources_of, topic_pattern};
pub use shortfalls::{expired, gaps, shortfalls};
pub use stdout::Only;
pub use tally::{Counters, Tally};
pub use tempo::Tempo;
pub use verdict::{all_decoded, also_left_out, nothing_left_out};
