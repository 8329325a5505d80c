//! Servers that tell their state over HTTP: Kafka Connect, and what speaks its REST API.
//!
//! ```text
//!   client     one GET of one of a server's addresses ─► found, missing, busy or failed; bounded in size and time
//!   connect    connectors with their configs, states and offsets
//! ```

mod client;
pub mod connect;

pub use connect::Connect;
