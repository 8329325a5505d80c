//! Base backups into the archive.
//!
//! ```text
//!   BASE_BACKUP ─► frames of 4 MiB ─► zstd (a few threads) ─► in order ─► parts of up to 24 MiB ─► store (2 at a time)
//!                                                                                                      │
//!                                                    backup.json, when everything is durable ◄─────────┘
//! ```
//!
//! Nothing is spooled: what is under way fits into memory, whatever the size of the database, and a slow store slows
//! the server's sending down. A backup that breaks off leaves parts without `backup.json`, which count for nothing.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use super::{Status, archived_system, system_of};
use crate::config;
use crate::error::{Error, Kind, Result, ResultExt};
use crate::manifest::backups::{self, Archive, Backup, Part, Tablespace};
use crate::manifest::recoverable;
use crate::pipeline::persistence::Persistence;
use crate::pipeline::tasks::{Task, Tasks};
use crate::source::postgres::{BackupEvent, BackupOptions, BackupStream, Server};
use crate::store::{Store, layout};
use crate::stream::{FORMAT_VERSION, Lsn, sha256};

/// What is compressed at once, into a frame of its own: long enough for zstd's window at the levels in question.
const FRAME: usize = 4 << 20;

/// The frames of one object: large enough to be few, small enough that those under way fit into memory.
const FRAMES_A_PART: usize = 6;

/// How many frames are compressed at a time, whatever the machine has: each holds twice its size.
const MOST_WORKERS: usize = 4;

/// How many parts are on their way into the store.
const UPLOADS: usize = 2;

/// How long a store that is away is waited for. Meanwhile the server holds the backup open; it costs it little.
const STORE_PATIENCE: Duration = Duration::from_secs(600);

/// How often the task looks whether a backup is due.
const LOOK: Duration = Duration::from_secs(1);

/// What the task of a running service needs.
pub(crate) struct BackupTask {
    pub(crate) server: Server,
    pub(crate) config: config::Postgres,
    pub(crate) store: Store,
    pub(crate) writer: String,
    pub(crate) status: Arc<Status>,
    /// Reasons for a backup at once: a gap in the WAL, for what was before it cannot be recovered beyond it.
    pub(crate) requests: mpsc::Receiver<String>,
    pub(crate) stop: watch::Receiver<bool>,
}

/// Takes base backups by `[postgres.base_backup] every` and on request, until the service stops.
pub(crate) async fn run(mut task: BackupTask) {
    let mut persistence = Persistence::new(task.status.tasks.reporter(Task::BaseBackup, ""));
    let mut reason: Option<String> = None;
    loop {
        while let Ok(asked) = task.requests.try_recv() {
            reason = Some(asked);
        }
        if reason.is_none() {
            reason = due(&task).await;
        }
        let Some(why) = &reason else {
            tokio::select! {
                () = tokio::time::sleep(LOOK) => continue,
                () = super::asked(&mut task.stop) => return,
            }
        };
        tracing::info!(why, "taking a base backup");
        let done = Done { tasks: Arc::clone(&task.status.tasks), ..Done::default() };
        let taken = tokio::select! {
            taken = take(&task.server, &task.config, &task.store, &task.writer, &done) => taken,
            () = super::asked(&mut task.stop) => return,
        };
        match taken {
            Ok(backup) => {
                tracing::info!(name = backup.name, start = %backup.start, end = %backup.end, bytes = backup.bytes(),
                    stored_bytes = backup.stored_bytes(), "base backup taken");
                task.status.note(|now| now.last_backup = Some(backup.finished));
                persistence.succeeded();
                reason = None;
            }
            Err(error) => tokio::select! {
                () = persistence.wait_after("cannot take a base backup", error) => {}
                () = super::asked(&mut task.stop) => return,
            },
        }
    }
}

/// Why a backup is due, if it is. Backups by hand and of other processes count, if they lead to the end of the archive.
async fn due(task: &BackupTask) -> Option<String> {
    let every = task.config.base_backup.every?;
    let now = task.status.now();
    let system_id = now.system_id?;
    let last = match now.last_backup {
        Some(last) => Some(last),
        None => {
            let found = recoverable::freshest(&task.store, system_id).await.ok()?;
            task.status.note(|now| now.last_backup = found);
            found
        }
    };
    match last {
        None => Some("none leads to the end of the archive".to_owned()),
        Some(last) if is_due(last, every, Utc::now()) => Some("the last one is old enough".to_owned()),
        Some(_) => None,
    }
}

fn is_due(last: DateTime<Utc>, every: Duration, now: DateTime<Utc>) -> bool {
    now.signed_duration_since(last).to_std().is_ok_and(|age| age >= every)
}

/// How far a backup is, for a progress bar.
#[derive(Debug, Default)]
pub(crate) struct Done {
    /// Bytes that came.
    pub(crate) bytes: AtomicU64,
    /// Bytes that the server expects to send.
    pub(crate) total: AtomicU64,
    /// Where it says what fails.
    tasks: Arc<Tasks>,
}

/// Takes a base backup. When it returns, the backup is committed.
///
/// # Errors
/// What the server or the store refuses; [`Kind::Config`] for a server of another system than the archive's.
pub(crate) async fn take(
    server: &Server,
    config: &config::Postgres,
    store: &Store,
    writer: &str,
    done: &Done,
) -> Result<Backup> {
    let mut replication = server.replication().await?;
    let system = system_of(&mut replication).await?;
    if let Some(chain) = archived_system(store).await?
        && let Some(archived) = chain.begin_facts().system().filter(|archived| archived.system_id != system.system_id)
    {
        let message = format!(
            "{} is system {}, and the archive holds system {}",
            replication.shown(),
            system.system_id,
            archived.system_id
        );
        return Err(Error::new(Kind::Config, message).hint("give each system an archive of its own (archive.url)"));
    }
    let started = Utc::now();
    let name = format!("{}-{writer}", started.format("%Y%m%dT%H%M%SZ"));
    let label = format!("tidelog {name}");
    let options = BackupOptions { label: label.clone(), max_rate: config.base_backup.max_rate, incremental: None };
    let mut stream = replication.base_backup(&options).await?;
    done.total.store(stream.tablespaces().iter().map(|tablespace| tablespace.size).sum(), Ordering::Relaxed);
    let level = config.base_backup.zstd_level;
    let packer = Packer::new(store.clone(), system.system_id, name.clone(), level, Arc::clone(&done.tasks));
    let received = receive(&mut stream, packer, done).await;
    if received.is_err() {
        // What it has stored would stay for ever, and on a disk that is full leave no room for WAL either.
        let removed = backups::remove_parts(store, system.system_id, &name).await;
        if let Err(error) = removed {
            tracing::warn!(%error, name, "the parts of a base backup that broke off cannot be removed");
        }
    }
    let (mut archives, (end, end_timeline)) = received?;
    let manifest = archives.pop().filter(|last| last.name == MANIFEST).and_then(|last| last.parts.into_iter().next());
    let manifest =
        manifest.ok_or_else(|| Error::new(Kind::Internal, "the server sent a base backup without a manifest"))?;
    let backup = Backup {
        format: FORMAT_VERSION,
        name,
        label,
        system,
        timeline: stream.timeline(),
        start: stream.start_lsn(),
        end,
        end_timeline,
        started,
        finished: Utc::now(),
        archives,
        manifest,
    };
    backups::commit(store, &backup).await?;
    Ok(backup)
}

/// What the manifest's object is called, before its ending.
const MANIFEST: &str = "backup_manifest";

/// Brings everything that the server sends into the store. Gives the archives, the manifest's last, and the end.
async fn receive(stream: &mut BackupStream, mut packer: Packer, done: &Done) -> Result<(Vec<Archive>, (Lsn, u32))> {
    let places: Vec<_> = stream.tablespaces().iter().filter_map(|tablespace| tablespace.place.clone()).collect();
    loop {
        match stream.next().await? {
            BackupEvent::Data(bytes) => {
                done.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                let mut rest = bytes;
                while !rest.is_empty() {
                    rest = packer.fill(rest);
                    if packer.is_full() {
                        packer.compress().await?;
                    }
                }
            }
            BackupEvent::Archive { name, tablespace } => {
                let place = places.iter().find(|(oid, _)| Some(*oid) == tablespace);
                let tablespace = place.map(|(oid, path)| Tablespace { oid: *oid, path: path.clone() });
                packer.begin(name, tablespace).await?;
            }
            BackupEvent::Manifest => packer.begin(MANIFEST.to_owned(), None).await?,
            BackupEvent::Progress { .. } => {}
            BackupEvent::End { end, timeline } => return Ok((packer.finish().await?, (end, timeline))),
        }
    }
}

/// Compressed bytes, and how many they were before.
type Compressed = JoinHandle<Result<(Vec<u8>, u64)>>;

/// Cuts archives into frames and parts.
struct Packer {
    store: Store,
    system_id: u64,
    name: String,
    level: i32,
    workers: usize,
    /// The frame that is being filled.
    frame: Vec<u8>,
    /// Frames of the archive under way that are compressed, in order.
    compressing: VecDeque<Compressed>,
    part: Vec<u8>,
    part_bytes: u64,
    part_frames: usize,
    uploads: JoinSet<Result<()>>,
    tasks: Arc<Tasks>,
    archives: Vec<Archive>,
}

impl Packer {
    fn new(store: Store, system_id: u64, name: String, level: i32, tasks: Arc<Tasks>) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            store,
            system_id,
            name,
            level,
            workers: processors.min(MOST_WORKERS),
            frame: Vec::with_capacity(FRAME),
            compressing: VecDeque::new(),
            part: Vec::new(),
            part_bytes: 0,
            part_frames: 0,
            uploads: JoinSet::new(),
            tasks,
            archives: Vec::new(),
        }
    }

    /// Takes what fits into the frame, and gives back the rest.
    fn fill<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let (taken, rest) = bytes.split_at(bytes.len().min(FRAME - self.frame.len()));
        self.frame.extend_from_slice(taken);
        rest
    }

    fn is_full(&self) -> bool {
        self.frame.len() == FRAME
    }

    /// Hands the frame to a thread, and waits for the first of the others if all are at work.
    async fn compress(&mut self) -> Result<()> {
        if self.compressing.len() == self.workers {
            self.collect().await?;
        }
        let (frame, level) = (std::mem::replace(&mut self.frame, Vec::with_capacity(FRAME)), self.level);
        self.compressing.push_back(tokio::task::spawn_blocking(move || {
            let compressed = compressor(level).and_then(|mut compressor| compressor.compress(&frame));
            let compressed = compressed.or_err(Kind::Internal, || "a base backup cannot be compressed".to_owned())?;
            Ok((compressed, frame.len() as u64))
        }));
        Ok(())
    }

    /// Adds the first frame under way to the part.
    async fn collect(&mut self) -> Result<()> {
        let Some(first) = self.compressing.pop_front() else { return Ok(()) };
        let (compressed, bytes) = first.await.or_err(Kind::Internal, || "compressing broke off".to_owned())??;
        self.part.extend_from_slice(&compressed);
        self.part_bytes += bytes;
        self.part_frames += 1;
        if self.part_frames == FRAMES_A_PART { self.upload().await } else { Ok(()) }
    }

    /// Sends the part on its way.
    async fn upload(&mut self) -> Result<()> {
        let Some(archive) = self.archives.last_mut() else {
            return Err(Error::new(Kind::Corrupt, "the server sent data of no archive"));
        };
        let file = match archive.name.as_str() {
            MANIFEST => format!("{MANIFEST}.zst"),
            name => format!("{name}.{:05}.zst", archive.parts.len()),
        };
        let key = layout::backup_part(self.system_id, &self.name, &file);
        let bytes = Bytes::from(std::mem::take(&mut self.part));
        archive.parts.push(Part {
            object: key.to_string(),
            bytes: std::mem::take(&mut self.part_bytes),
            stored_bytes: bytes.len() as u64,
            sha256: sha256(&bytes),
        });
        self.part_frames = 0;
        if self.uploads.len() == UPLOADS {
            self.uploaded().await?;
        }
        let store = self.store.clone();
        let reporter = self.tasks.reporter(Task::BaseBackup, key.as_ref());
        self.uploads.spawn(async move {
            let mut persistence = Persistence::new(reporter);
            let begun = Instant::now();
            loop {
                match store.put(&key, bytes.clone()).await {
                    Err(error) if error.is_transient() && begun.elapsed() < STORE_PATIENCE => {
                        persistence.wait_after("a part of a base backup cannot be stored", error).await;
                    }
                    result => return result,
                }
            }
        });
        Ok(())
    }

    async fn uploaded(&mut self) -> Result<()> {
        match self.uploads.join_next().await {
            None => Ok(()),
            Some(result) => result.or_err(Kind::Internal, || "an upload broke off".to_owned())?,
        }
    }

    /// Ends the archive under way.
    async fn end_archive(&mut self) -> Result<()> {
        if !self.frame.is_empty() {
            self.compress().await?;
        }
        while !self.compressing.is_empty() {
            self.collect().await?;
        }
        if self.part_frames > 0 { self.upload().await } else { Ok(()) }
    }

    async fn begin(&mut self, name: String, tablespace: Option<Tablespace>) -> Result<()> {
        self.end_archive().await?;
        self.archives.push(Archive { name, tablespace, parts: Vec::new() });
        Ok(())
    }

    /// Waits until everything is durable.
    async fn finish(mut self) -> Result<Vec<Archive>> {
        self.end_archive().await?;
        while !self.uploads.is_empty() {
            self.uploaded().await?;
        }
        Ok(self.archives)
    }
}

fn compressor(level: i32) -> std::io::Result<zstd::bulk::Compressor<'static>> {
    let mut compressor = zstd::bulk::Compressor::new(level)?;
    compressor.include_checksum(true)?;
    compressor.include_contentsize(true)?;
    Ok(compressor)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn memory() -> Store {
        let url = url::Url::parse("memory:///").expect("a URL");
        let archive = config::Archive { url, spool_dir: Default::default(), options: BTreeMap::new() };
        Store::open(&archive).expect("a store")
    }

    #[tokio::test]
    async fn the_parts_of_an_archive_are_one_stream() {
        let store = memory();
        let mut packer = Packer::new(store.clone(), 1, "b".to_owned(), 1, Arc::default());
        let large: Vec<u8> = (0..FRAME * (FRAMES_A_PART + 1) + 17).map(|at| (at / 1000) as u8).collect();
        for (name, bytes) in [("1.tar", &large[..]), ("base.tar", &large[..FRAME]), (MANIFEST, b"{}")] {
            packer.begin(name.to_owned(), None).await.expect("begun");
            for piece in bytes.chunks(100_000) {
                let mut rest = piece;
                while !rest.is_empty() {
                    rest = packer.fill(rest);
                    if packer.is_full() {
                        packer.compress().await.expect("compressed");
                    }
                }
            }
        }
        let archives = packer.finish().await.expect("stored");
        let parts: Vec<usize> = archives.iter().map(|archive| archive.parts.len()).collect();
        assert_eq!(parts, [2, 1, 1]);
        let mut stored = Vec::new();
        for part in &archives[0].parts {
            stored.extend_from_slice(&part.read(&store).await.expect("it is sound"));
        }
        assert!(zstd::decode_all(&stored[..]).expect("one stream") == large);
        assert_eq!(archives[2].parts[0].object, "backups/postgres/system=1/b/backup_manifest.zst");
    }

    #[tokio::test]
    async fn data_of_no_archive_are_refused() {
        let mut packer = Packer::new(memory(), 1, "b".to_owned(), 1, Arc::default());
        packer.fill(b"x");
        assert_eq!(packer.end_archive().await.expect_err("of which archive?").kind(), Kind::Corrupt);
    }

    #[test]
    fn a_backup_is_due_by_its_age() {
        let at = |seconds| DateTime::from_timestamp(seconds, 0).expect("a time");
        let every = Duration::from_secs(60);
        assert!(!is_due(at(1000), every, at(1059)) && is_due(at(1000), every, at(1060)));
        assert!(!is_due(at(1000), every, at(900)), "a clock that was set back");
    }
}
