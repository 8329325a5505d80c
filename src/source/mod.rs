//! Where data comes from: the readers of foreign systems. Foreign callbacks become one event enum each.

pub mod kafka;
pub mod postgres;
pub mod rest;
pub mod told;
