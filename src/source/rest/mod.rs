//! Servers that tell their state over HTTP: Kafka Connect, and what speaks its REST API.
//!
//! ```text
//!   client     one request to one of a server's addresses ─► found, missing, busy or failed; bounded in size and time
//!   connect    connectors with their configs, states and offsets
//!   operate    a connector made, stopped, given an offset, resumed
//!   registry   subjects with their versions, ids and schemas; registrar: subjects registered again
//!   subjects   what a registry holds
//! ```

mod client;
pub mod connect;
pub mod operate;
pub mod registrar;
pub mod registry;
pub mod subjects;

pub use connect::Connect;
pub use operate::Operator;
pub use registrar::Registrar;
pub use registry::Registry;
