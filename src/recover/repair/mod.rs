//! What a lost slot did not deliver, brought by the connector itself out of the archive.
//!
//! ```text
//!   commits  ── offset ────────────── missed ──────────────── S ─── M ─── … ──      S: a new slot on the primary   M: a marker behind it
//!                 │                                                 │
//!   archive ─► base backup ─► standby, its slot of the same name ─► │ gate           the connector reads here, with the offset that it has,
//!                 └─ decodes from before the offset                 │                until M has come to its topic …
//!   primary                                          S ──── slot ─► M ─── … ──       … and goes on there, from M
//! ```
//!
//! - `asked`, `settings`, `primary`: what is asked for, the connector's config here and there, the server and its slot
//! - `position`  where a connector stands, by its own offset
//! - `lost`      which commits lie behind that, which base backup leads there, and what would take the standby's slot away
//! - `way`       which way is taken, and why
//! - `prepare`   all that takes part, looked at
//! - `journal`   how far it is
//! - `standby`   the scratch server
//! - `net`, `comparing`: where no standby decodes: the tables compared at both ends, and what differs read by the connector
//! - `run`, `steps`, `net_steps`, `back`, `marking`, `reading`: the steps, each with a proof
//! - `leftovers` what was made on this machine, taken away
//! - `report`    what is said at the end
//!
//! The marker is the proof: changes come in the order of commits, so once it is in its topic, and Connect has its offset, all that was
//! committed before it is in the topics, too.

pub mod asked;
mod back;
mod comparing;
pub mod journal;
mod leftovers;
pub mod lost;
mod marking;
pub mod net;
mod net_steps;
pub mod position;
pub mod prepare;
pub mod primary;
mod reading;
pub mod report;
pub mod run;
mod settings;
pub(in crate::recover) mod standby;
mod steps;
pub mod way;
