//! Drills: whether the archive gives back what it should, tried before it is needed.
//!
//! ```text
//!   corruption   verify --deep of everything
//!                a random moment ─► restored into a scratch directory ─► opened ─► every table read ─► pg_amcheck
//!   pipeline     recover to a random moment, into scratch servers: differences are findings ─► removed
//!   slot         a slot lost at an archived position ─► made on a scratch standby, read: the transactions of log and topics
//!   schema       subjects of a random moment ─► a scratch registry, read back ─► archived records decoded by them ─► removed
//!                                                                                        └─► report, drills/<name>.json
//! ```
//!
//! A drill connects to no server of the configuration, and writes into the archive, below `drills/`, its result alone, which `tidelog run`
//! reads, and what it makes on servers that are not its own, so that the next one can remove what one that was killed has left; and while
//! it restores the hold that every restore has.

mod asked;
mod cluster;
mod contents;
mod corruption;
mod decoded;
mod left;
mod moment;
mod pipeline;
mod report;
mod restored;
mod schema;
mod scratch;
mod slot;
mod subjects;
mod targets;

pub use asked::{Asked, AskedPipeline, AskedSchema, AskedSlot};
pub use corruption::corruption;
pub use pipeline::pipeline;
pub use report::{
    Archived, Corruption, Database, Finding, OfSlot, Part, Pipeline, Records, Report, Restoration, Schemas, Slots,
    Table,
};
pub use schema::schema;
pub use slot::slot;
