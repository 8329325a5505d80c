//! Servers that tell their state over HTTP: Kafka Connect, and what speaks its REST API.
//!
//! ```text
//!   client     one GET of one of a server's addresses ─► found, missing, busy or failed; bounded in size and time
//!   connect    connectors with their configs, states and offsets
//!   registry   subjects with their versions, ids and schemas; registrar: subjects registered again
//!   subjects   what a registry holds
//! ```

mod client;
pub mod connect;
pub mod registrar;
pub mod registry;
pub mod subjects;

pub use connect::Connect;
pub use registrar::Registrar;
pub use registry::Registry;
