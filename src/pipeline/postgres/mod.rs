//! Postgres' write-ahead log into the archive.
//!
//! ```text
//!   server ──► receiver ──► spool (files, fdatasynced) ──► archiver ──► segments, checkpoints
//!      ▲           │ status                                   │              │
//!      └───────────┘◄──────── how far the archive is ◄────────┘              ▼
//!                                                              maintenance: merges, retention, what is recoverable
//!                                                              watermark: up to when the archive is complete
//! ```
//!
//! | queue | from → to | bound | when it is full |
//! |---|---|---|---|
//! | WAL | socket → spool | 1 MiB in the connection's buffer | the server waits |
//! | the spool | receiver → archiver | [`shared::SPOOL_LIMIT`], or the disk | receiving waits, statuses go on |
//! | WAL that the server has whole | receiver → archiver | [`buffers::MOST`] blocks of 16 MiB | receiving waits, statuses go on |
//! | segments | archiver → store | 3 at a time | cutting waits |
//! | checkpoints | archiver → chain | 1 a second, 5 when nothing more is to be done | what is ready meanwhile goes into the same one |
//! | merges | archiver → maintenance | one for each 16 MiB that came in pieces | cannot be |
//!
//! A status never waits for an upload: the receiver writes to the spool, makes it safe whenever the socket is drained, and
//! tells the server how far it is. With `ack = "archive"` that is how far the checkpoints go, with `ack = "spool"` how
//! far the local disk goes. Where to receive on is decided by the spool and the archive, never by the slot.

mod archive;
pub(super) mod backup;
mod buffers;
mod completeness;
mod count;
mod final_errors;
mod maintenance;
mod receive;
mod scan;
mod shared;
mod spool;
mod status;
mod supervisor;
mod timelines;

mod watch;
mod watermark;

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use tokio::sync::{Notify, mpsc, watch as channel};

pub use status::{SlotStatus, Snapshot, Status};
pub(super) use supervisor::Supervisor;

use crate::backup::server::system_of;
use crate::config::{self, Ack, Config};
use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::maintenance::wal::Block;
use crate::manifest::Chain;
use crate::manifest::system::archived_system;
use crate::pipeline::shutdown;
use crate::source::postgres::Server;
use crate::store::Store;
use crate::stream::{Begin, StreamId, System};
use crate::tasks::backoff::Backoff;
use crate::tasks::{Reporter, Task};
use archive::{Archiver, Ended};
use buffers::Buffers;
use final_errors::is_final;
use maintenance::Maintenance;
use receive::Receiver;
use shared::{DRAIN_WITHIN, LEAVE_WITHIN, Shared};
use spool::WalSpool;
use watermark::Watermark;

/// Archives the WAL of the server that `postgres` names until `stop` turns true. Reasons for a new base backup come out
/// of `backups`.
pub(super) async fn run(
    config: &Config,
    postgres: &config::Postgres,
    (store, writer): (Store, &str),
    status: Arc<Status>,
    backups: mpsc::Sender<String>,
    mut stop: channel::Receiver<bool>,
) -> Result<()> {
    let server = Server::new(postgres)?;
    let chain = tokio::select! {
        chain = present(&server, &store, writer, &status) => chain?,
        () = shutdown::requested(&mut stop) => return Ok(()),
    };
    let system =
        *chain.begin_facts().system().ok_or_else(|| Error::new(Kind::Internal, "the chain is of no Postgres"))?;
    status.note(|now| (now.system_id, now.slot) = (Some(system.system_id), Some(postgres.slot.clone())));
    let buffers = Arc::<Buffers>::default();
    let held = (postgres.ack == Ack::Archive).then(|| Arc::clone(&buffers));
    let shared = Arc::new(Shared {
        spool: WalSpool::open(&config.archive.spool_dir, system.system_id, held)?,
        buffers,
        store,
        writer: writer.to_owned(),
        segments: AtomicU64::new(0),
        zstd_level: postgres.zstd_level,
        system,
        status,
        archived: channel::Sender::new(chain.positions().copied().collect()),
        generations: Mutex::default(),
        look_again: Notify::new(),
        backups,
    });
    tracing::info!(
        system_id = system.system_id,
        server_version = system.server_version,
        slot = postgres.slot,
        writer,
        "archiving WAL"
    );
    let (merges, blocks) = mpsc::unbounded_channel();
    let retention = config.retention.postgres;
    let tasks = &shared.status.tasks;
    let maintenance = tasks.spawn("wal-maintenance", Maintenance::new(Arc::clone(&shared), retention).run(blocks));
    let watermark = tasks.spawn("wal-watermark", Watermark::new(Arc::clone(&shared)).run());
    let slots = tasks.spawn("wal-slots", watch::run(server.clone(), Arc::clone(&shared.status)));
    let result = serve(&server, postgres, &shared, chain, merges, stop).await;
    slots.abort();
    // Retention and merges are entries of the chain: aborted at any point they leave nothing half done.
    maintenance.abort();
    watermark.abort();
    shared.spool.close();
    result
}

/// Receives and archives. Bytes that turn out to be no WAL are received again.
async fn serve(
    server: &Server,
    postgres: &config::Postgres,
    shared: &Arc<Shared>,
    chain: Chain,
    merges: mpsc::UnboundedSender<Block>,
    stop: channel::Receiver<bool>,
) -> Result<()> {
    let reporter = |task| shared.status.tasks.reporter(task, "");
    let mut backoff = Backoff::new(reporter(Task::WalSpool));
    let mut chain = Some(chain);
    let mut receiver = Receiver::new(server.clone(), postgres.clone(), Arc::clone(shared));
    loop {
        let opened = match chain.take() {
            Some(chain) => chain,
            None => opened(&shared.store, shared.system.system_id, reporter(Task::WalOpen)).await,
        };
        shared.follow(&opened)?;
        // The archiver goes on until what the receiver has left behind is archived.
        let (drain, drained) = channel::channel(false);
        let archiver = Archiver::new(Arc::clone(shared), opened, postgres.max_age, merges.clone());
        let mut archiver = shared.status.tasks.spawn("wal-archiver", archiver.run(drained));
        let mut receiving = receiver.begin(stop.clone(), drain)?;
        // It counts from the stop on, whoever has waited for whom meanwhile.
        let mut late = std::pin::pin!(too_late(stop.clone()));
        let ended = tokio::select! {
            received = receiving.ended() => {
                received?;
                tokio::select! {
                    archived = &mut archiver => Some(archived),
                    () = &mut late => None,
                }
            }
            () = &mut late => {
                // The server is told what was archived last, if it listens.
                if let Ok(received) = tokio::time::timeout(LEAVE_WITHIN, receiving.ended()).await {
                    received?;
                }
                None
            }
            archived = &mut archiver => {
                if matches!(archived, Ok(Ok(Ended::Done))) {
                    // Everything is archived, and the receiver tells the server so.
                    receiving.ended().await?;
                }
                Some(archived)
            }
        };
        let Some(ended) = ended else {
            archiver.abort();
            // Not before its tasks are told to end, too, may the spool be given to another one.
            drop(archiver.await);
            tracing::warn!("stopped before all WAL was archived; the rest is archived after the next start");
            return Ok(());
        };
        match ended.or_err(Kind::Internal, || "the archiving of WAL was aborted".into())? {
            Ok(Ended::Done) => return Ok(()),
            Ok(Ended::Overtaken) => receiver = receiving.break_off().await?,
            Err(error) if error.kind() == Kind::Corrupt => {
                receiver = receiving.break_off().await?;
                backoff.wait_after("what was received cannot be archived; it is received again", error).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Waits until the last WAL has had its time after a stop.
async fn too_late(mut stop: channel::Receiver<bool>) {
    shutdown::requested(&mut stop).await;
    tokio::time::sleep(DRAIN_WITHIN).await;
}

async fn opened(store: &Store, system_id: u64, reporter: Reporter) -> Chain {
    let mut backoff = Backoff::new(reporter);
    loop {
        let error = match Chain::open(store, &StreamId::Postgres { system_id }).await {
            Ok(Some(chain)) => return chain,
            Ok(None) => Error::new(Kind::NotFound, "the chain of the write-ahead log has gone"),
            Err(error) => error,
        };
        backoff.wait_after("the chain of the write-ahead log cannot be opened", error).await;
    }
}

/// The archive's chain, begun if there is none. A store or a server that is away is waited for.
async fn present(server: &Server, store: &Store, writer: &str, status: &Status) -> Result<Chain> {
    let mut backoff = Backoff::new(status.tasks.reporter(Task::WalOpen, ""));
    loop {
        let error = match archived_system(store).await {
            Ok(Some(chain)) => return Ok(chain),
            Ok(None) => return begin(server, store, writer, status).await,
            Err(error) if error.kind() == Kind::Config => return Err(error),
            // Damage waits for whoever repairs it, and topics are archived meanwhile.
            Err(error) => error,
        };
        backoff.wait_after("the archive's write-ahead log cannot be looked up", error).await;
    }
}

/// Begins the chain of the system that the server belongs to. A server or a store that is away is waited for.
async fn begin(server: &Server, store: &Store, writer: &str, status: &Status) -> Result<Chain> {
    let system = reached(server, Backoff::new(status.tasks.reporter(Task::WalReceive, ""))).await?;
    let stream = StreamId::Postgres { system_id: system.system_id };
    let mut backoff = Backoff::new(status.tasks.reporter(Task::WalOpen, ""));
    loop {
        let error = match Chain::begin(store, &stream, Begin::Postgres(system), writer, crate::time::now()).await {
            Ok(chain) => return Ok(chain),
            Err(error) if is_final(&error) || error.kind() == Kind::Fenced => return Err(error),
            Err(error) => error,
        };
        backoff.wait_after("the chain of the write-ahead log cannot be begun", error).await;
    }
}

/// The system that the server belongs to, once it answers.
async fn reached(server: &Server, mut backoff: Backoff) -> Result<System> {
    loop {
        let system = async { system_of(&mut server.replication().await?).await };
        match system.await {
            Err(error) if !is_final(&error) => {
                backoff.wait_after("the Postgres server cannot be reached", error).await;
            }
            system => return system,
        }
    }
}
