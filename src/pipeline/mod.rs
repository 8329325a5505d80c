//! The running service: what flows from the sources into the archive. What it shows of itself, and what is asked of it,
//! stands on its [`board`].

pub mod board;
pub mod kafka;

mod persistence;
mod spool;

use std::sync::Arc;

use tokio::sync::watch;

use crate::config::Config;
use crate::error::{Error, Kind, Result};
use crate::store::Store;
use board::{Board, Opened};
use spool::Spool;

/// Archives everything that the configuration names, until `stop` turns true. `board` is made from the same
/// configuration.
///
/// # Errors
/// A configuration without a source, a store or spool that cannot be written, and what makes a source fail for good.
/// Everything else is waited for: a broker or a store that is away, a topic that does not exist yet.
pub async fn run(config: &Config, board: Arc<Board>, stop: watch::Receiver<bool>) -> Result<()> {
    let (Some(kafka), Some(kafka_board)) = (&config.kafka, board.kafka()) else {
        return Err(Error::new(Kind::Config, "the configuration names nothing to archive")
            .hint("add a section [kafka] with bootstrap_servers and topics"));
    };
    let store = Store::open(&config.archive)?;
    store.probe().await?;
    let opened = Opened { store, writer: writer_id()? };
    board.has_opened(&opened);
    kafka::run(config, kafka, opened, Arc::clone(kafka_board), stop).await
}

/// Tries whether the spool directory can be written.
///
/// # Errors
/// What is wrong with `archive.spool_dir`, and the way out.
pub fn probe_spool(config: &Config) -> Result<()> {
    Spool::open(&config.archive.spool_dir, &writer_id()?).map(drop)
}

/// A name for this process that no other has: it stands in the names of the objects that it writes.
fn writer_id() -> Result<String> {
    let mut bytes = [0; 6];
    getrandom::fill(&mut bytes)
        .map_err(|error| Error::new(Kind::Unavailable, format!("the system gives no random bytes: {error}")))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
