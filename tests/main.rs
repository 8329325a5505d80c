//! The integration tests: one binary, so that all modules share one broker and one link step.

mod archive;
mod cli;
mod replay;
mod rig;
mod source;
mod store;
