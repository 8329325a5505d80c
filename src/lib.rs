//! tidelog archives a change-data pipeline continuously and gives back any time range.
//!
//! A module uses only modules that stand before it here: [`escape`], [`error`], [`time`], [`stream`], [`telemetry`], [`config`],
//! [`record`], [`store`], [`segment`], [`manifest`], [`source`], [`pipeline`], [`replay`], [`restore`], [`verify`],
//! [`http`], [`cli`].

// What is printed goes through `cli::output`, which escapes it.
#![warn(clippy::print_stderr, clippy::print_stdout)]

pub mod cli;
pub mod config;
pub mod error;
pub mod escape;
pub mod http;
pub mod manifest;
pub mod pipeline;
pub mod record;
pub mod replay;
pub mod restore;
pub mod segment;
pub mod source;
pub mod store;
pub mod stream;
pub mod telemetry;
pub mod time;
pub mod verify;
