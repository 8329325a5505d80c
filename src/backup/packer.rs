//! The tar files of a base backup into objects: frames, compressed on a few threads, put in order, and parts of them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use crate::error::{Error, Kind, Result, ResultExt};
use crate::manifest::backups::{Archive, Part, Tablespace};
use crate::manifest::leftovers::WRITES_WITHIN;
use crate::store::{Store, layout};
use crate::stream::sha256;
use crate::tasks::backoff::Backoff;
use crate::tasks::{Task, Tasks};

/// What is compressed at once, into a frame of its own: long enough for zstd's window at the levels in question.
const FRAME: usize = 4 << 20;

/// The frames of one object: large enough to be few, small enough that those under way fit into memory.
const FRAMES_A_PART: usize = 6;

/// How many bytes of an archive one object holds, before compression.
pub(super) const PART: u64 = (FRAME * FRAMES_A_PART) as u64;

/// How many frames are compressed at a time, whatever the machine has: each holds twice its size.
const MOST_WORKERS: usize = 4;

/// How many parts are on their way into the store.
const UPLOADS: usize = 2;

/// How long a store that is away is waited for. Meanwhile the server holds the backup open; it costs it little.
const STORE_PATIENCE: Duration = Duration::from_secs(600);

/// What the manifest's object is called, before its ending.
pub(super) const MANIFEST: &str = "backup_manifest";

/// Compressed bytes, and how many they were before.
type Compressed = JoinHandle<Result<(Vec<u8>, u64)>>;

/// Cuts archives into frames and parts.
pub(super) struct Packer {
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
    paced: Paced,
    tasks: Arc<Tasks>,
    archives: Vec<Archive>,
}

impl Packer {
    pub(super) fn new(store: Store, system_id: u64, name: String, level: i32, tasks: Arc<Tasks>) -> Self {
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
            paced: Paced::begin(crate::time::now()),
            tasks,
            archives: Vec::new(),
        }
    }

    /// Returns where it stores.
    pub(super) fn store(&self) -> Store {
        self.store.clone()
    }

    /// Takes what fits into the frame, and gives back the rest.
    pub(super) fn fill<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let (taken, rest) = bytes.split_at(bytes.len().min(FRAME - self.frame.len()));
        self.frame.extend_from_slice(taken);
        rest
    }

    pub(super) fn is_full(&self) -> bool {
        self.frame.len() == FRAME
    }

    /// Hands the frame to a thread, and waits for the first of the others if all are at work.
    pub(super) async fn compress(&mut self) -> Result<()> {
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
        let (compressed, bytes) = first.await.or_err(Kind::Internal, || "compressing was aborted".to_owned())??;
        self.part.extend_from_slice(&compressed);
        self.part_bytes += bytes;
        self.part_frames += 1;
        // The server's manifest is one object, however long it is: `backup.json` has room for one, which every reader knows.
        let is_cut = self.archives.last().is_some_and(|archive| archive.name != MANIFEST);
        if is_cut && self.part_frames >= FRAMES_A_PART { self.upload().await } else { Ok(()) }
    }

    /// Sends the part on its way.
    async fn upload(&mut self) -> Result<()> {
        let Some(archive) = self.archives.last_mut() else {
            return Err(Error::new(Kind::Corrupt, "the server sent data of no archive"));
        };
        let file = match archive.name.as_str() {
            MANIFEST => format!("{MANIFEST}.zst"),
            // As many digits as let names of parts sort by their numbers up to 240 TB: `cat base.tar.*.zst` relies on it.
            name => format!("{name}.{:07}.zst", archive.parts.len()),
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
        self.paced.goes_on(crate::time::now())?;
        if self.uploads.len() == UPLOADS {
            self.uploaded().await?;
        }
        let store = self.store.clone();
        let reporter = self.tasks.reporter(Task::BaseBackup, key.as_ref());
        self.uploads.spawn(async move {
            let what = "a part of a base backup cannot be stored";
            while_away(Backoff::new(reporter), what, || store.put(&key, bytes.clone())).await
        });
        Ok(())
    }

    async fn uploaded(&mut self) -> Result<()> {
        match self.uploads.join_next().await {
            None => Ok(()),
            Some(result) => result.or_err(Kind::Internal, || "an upload was aborted".to_owned())?,
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

    pub(super) async fn begin(&mut self, name: String, tablespace: Option<Tablespace>) -> Result<()> {
        self.end_archive().await?;
        self.archives.push(Archive { name, tablespace, parts: Vec::new(), places: Vec::new(), empty: Vec::new() });
        Ok(())
    }

    /// Waits until everything is durable.
    pub(super) async fn finish(mut self) -> Result<(Vec<Archive>, Paced)> {
        self.end_archive().await?;
        while !self.uploads.is_empty() {
            self.uploaded().await?;
        }
        Ok((self.archives, self.paced))
    }
}

/// Makes `attempt` until it succeeds, fails for good, or the store has been away for too long.
pub(super) async fn while_away<T, F: Future<Output = Result<T>>>(
    mut backoff: Backoff,
    what: &str,
    attempt: impl Fn() -> F,
) -> Result<T> {
    let begun = Instant::now();
    loop {
        match attempt().await {
            Err(error) if error.is_transient() && begun.elapsed() < STORE_PATIENCE => {
                backoff.wait_after(what, error).await;
            }
            result => return result,
        }
    }
}

/// Whether a backup goes on fast enough to be told from one that was left behind.
#[derive(Debug, Clone, Copy)]
pub(super) struct Paced {
    /// By both clocks: one does not go on while the machine sleeps, the other may be set.
    last: (Instant, DateTime<Utc>),
}

impl Paced {
    fn begin(now: DateTime<Utc>) -> Self {
        Self { last: (Instant::now(), now) }
    }

    /// It goes on now.
    ///
    /// # Errors
    /// [`Kind::Unavailable`] after a pause in which its parts may have been taken for left behind.
    pub(super) fn goes_on(&mut self, now: DateTime<Utc>) -> Result<()> {
        let slept = now.signed_duration_since(self.last.1).abs();
        let waited = TimeDelta::from_std(self.last.0.elapsed()).unwrap_or(TimeDelta::MAX);
        if slept.max(waited) > WRITES_WITHIN {
            let message =
                format!("a base backup stored nothing for {} hours, and is given up", slept.max(waited).num_hours());
            return Err(Error::new(Kind::Unavailable, message)
                .hint("it is begun again; look for what held it up: the server, the store, or a machine that slept"));
        }
        self.last = (Instant::now(), now);
        Ok(())
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
    use crate::config;

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
        let (archives, _) = packer.finish().await.expect("stored");
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
    async fn a_manifest_of_many_frames_is_one_object_and_comes_back_whole() {
        let store = memory();
        let mut packer = Packer::new(store.clone(), 1, "b".to_owned(), 1, Arc::default());
        packer.begin(MANIFEST.to_owned(), None).await.expect("begun");
        let text: Vec<u8> =
            (0..FRAME * (2 * FRAMES_A_PART) + 5).map(|at| ((at / 16 * 2_654_435_761) >> 8) as u8).collect();
        let mut rest = &text[..];
        while !rest.is_empty() {
            rest = packer.fill(rest);
            if packer.is_full() {
                packer.compress().await.expect("compressed");
            }
        }
        let (archives, _) = packer.finish().await.expect("stored");
        let [manifest] = &archives[0].parts[..] else { panic!("{:?}", archives[0].parts) };
        let stored = manifest.read(&store).await.expect("it is what was written");
        assert!(manifest.decompress(&stored).expect("it is whole") == text);
    }

    #[tokio::test]
    async fn the_parts_of_the_largest_database_sort_by_their_numbers() {
        let store = memory();
        let mut packer = Packer::new(store.clone(), 1, "b".to_owned(), 1, Arc::default());
        packer.begin("base.tar".to_owned(), None).await.expect("begun");
        let part = Part { object: String::new(), bytes: 0, stored_bytes: 0, sha256: String::new() };
        // 3 TB of a database are 125,000 parts.
        for count in [99_999, 100_000, 124_999] {
            packer.archives[0].parts.resize(count, part.clone());
            packer.fill(b"x");
            packer.end_archive().await.expect("stored");
        }
        let named: Vec<&str> =
            packer.archives[0].parts.iter().map(|part| &part.object[..]).filter(|key| !key.is_empty()).collect();
        assert!(named.len() == 3 && named.is_sorted(), "{named:?}");
    }

    #[test]
    fn a_backup_that_paused_too_long_is_given_up_by_its_writer() {
        let begun = DateTime::from_timestamp(1_800_000_000, 0).expect("a time");
        let mut paced = Paced::begin(begun);
        paced.goes_on(begun + WRITES_WITHIN).expect("just in time");
        paced.goes_on(begun + WRITES_WITHIN * 2).expect("each pause counts by itself");
        let error = paced.goes_on(begun + WRITES_WITHIN * 3 + TimeDelta::seconds(1)).expect_err("too late");
        assert!(error.to_string().contains("8 hours"), "{error}");
        assert!(paced.goes_on(begun - WRITES_WITHIN).is_err(), "a clock that was set back says nothing of a pause");
    }

    #[tokio::test]
    async fn data_of_no_archive_are_refused() {
        let mut packer = Packer::new(memory(), 1, "b".to_owned(), 1, Arc::default());
        packer.fill(b"x");
        assert_eq!(packer.end_archive().await.expect_err("of which archive?").kind(), Kind::Corrupt);
    }
}
