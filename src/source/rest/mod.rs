//! Servers that tell their state over HTTP: Kafka Connect, and what speaks its REST API.
//!
//! ```text
//!   client     one GET of one of a server's addresses ─► found, missing, busy or failed; bounded in size and time
//!   connect    connectors with their configs, states and offsets
//!   registry   subjects with their versions, ids and schemas
//! ```

mod client;
pub mod connect;
pub mod registry;

pub use connect::Connect;
pub use registry::Registry;
