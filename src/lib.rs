//! tidelog archives a change-data pipeline continuously and gives back any time range.
//!
//! A module uses only modules above it in this list.

pub mod error;
pub mod stream;
pub mod config;
pub mod record;
pub mod store;
pub mod segment;
pub mod manifest;
pub mod source;
pub mod pipeline;
pub mod replay;
pub mod cli;
