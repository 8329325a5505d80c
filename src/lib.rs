//! tidelog archives a change-data pipeline continuously and gives back any time range.
//!
//! A module uses only modules above it in this list.

pub mod cli;
pub mod config;
pub mod error;
pub mod manifest;
pub mod pipeline;
pub mod record;
pub mod replay;
pub mod segment;
pub mod source;
pub mod store;
pub mod stream;
