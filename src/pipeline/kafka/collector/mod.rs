//! The collector: the one thread that holds the consumer and every segmenter.
//!
//! ```text
//!              ┌────────── task events: positions, encoded, committed, fenced ◄──────────┐
//!              ▼                                                                         │
//!  librdkafka ─► collector ─► segmenters ─► encoders (blocking threads) ─► committers (tasks)
//!              │
//!              └► resolver (where to read on), coverage (what is complete)
//! ```
//!
//! It never waits for anything but the consumer's next messages, and that for `POLL_WAIT` at most: whatever takes
//! time is asked of a task, and its answer comes back as a `TaskEvent`. When memory or the spool is full, partitions are
//! paused; polling goes on, so that the group keeps its member.

mod applied;
mod assigned;
mod desired;
mod encode;
mod encoders;
mod generations;
mod lookups;
mod membership;
mod memory;
mod news;
mod ownership;
mod place;
mod pressure;
mod run;
mod show;
mod skips;
mod start_again;
mod state;
mod topics;
mod unheard;

pub(super) use state::{Collector, Parts};
