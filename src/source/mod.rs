//! (being written)

pub mod kafka;
