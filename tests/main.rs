//! The integration tests: one binary, so that all modules share one broker and one link step.

mod archive;
mod cli;
mod complete;
mod deploy;
mod docs;
mod faults;
mod generations;
mod http;
mod isolation;
mod kafka;
mod page;
mod postgres_lost;
mod postgres_path;
mod postgres_restore;
mod postgres_source;
mod postgres_targets;
mod replay;
mod replay_identity;
mod rig;
mod site;
mod source;
mod stalls;
mod store;
mod store_faults;
mod wal;
