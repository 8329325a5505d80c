//! What the program tells of itself while it runs.
//!
//! ```text
//!  counters, histograms: handles, kept where it happens ──► recorder ─────┐
//!  gauges: what is so now, asked for when somebody reads ──► Exposition ──┴──► GET /metrics
//!  events ──► log ──► standard error, as text or JSON
//! ```
//!
//! [`metrics`] names every metric once, with its type, its labels and its help. [`process`] reads what the system knows
//! of this process.

pub mod metrics;
pub mod process;

mod log;

pub use log::{LogFormat, start};

/// The program's version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit that the program was built from, as the build named it by the variable `TIDELOG_REVISION`.
pub const REVISION: &str = match option_env!("TIDELOG_REVISION") {
    Some(revision) => revision,
    None => "unknown",
};
