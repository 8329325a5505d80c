//! The spool of WAL: received bytes on a local disk, from the socket until they are in the archive.
//!
//! ```text
//!  <spool_dir>/postgres-<system id>/wal.lock                             held by the process that uses it
//!                                   <timeline, 8 hex>-<start, 16 hex>.wal    raw bytes from `start` on
//!                                   <timeline, 8 hex>-<start, 16 hex>.gap    the server has nothing before `start`
//!                                   lives                                    which generation of each timeline they are of
//!                                   <timeline, 8 hex>-<start, 16 hex>.abandoned    of a timeline that was abandoned meanwhile
//!                                   spare                                    zeros, for the next file
//!
//!  receiver ─► append, sync ─► files ─► read ─► archiver ─► release (files are removed)
//! ```
//!
//! Unlike the spool of segments it outlives its process: with `postgres.ack = "spool"` the server has been told that
//! these bytes are safe, and may have removed its own. A file ends where the LSN is a multiple of 16 MiB, so that they
//! can be removed one by one. Files of one timeline follow each other without a hole, unless a `.gap` file says that the
//! server had nothing in between.
//!
//! A file may have been filled with zeros before: to make bytes safe in a file that does not grow takes half the time, for
//! nothing but the bytes has to be written. Such a file is never the last one once it is complete, so the last one of full
//! length ends where its zeros begin. Zeros that came from the server are lost to that at a restart, and come again: they
//! are within a WAL file that the server still has.
//!
//! ## What goes through memory
//!
//! With `postgres.ack = "archive"` the server keeps everything until the archive has it. A block of 16 MiB that the server
//! has whole already would gain nothing by a stay on the disk: it is held in memory until the archiver takes it, and comes
//! again if the process ends before. Such blocks are few ([`super::buffers::MOST`]), and receiving waits for one to come back.
//! What is on the disk goes on where the archive ends: nothing is written behind a block in memory before that is archived.

mod extent;
mod removal;

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};

use super::buffers::{Buffer, Buffers};
use crate::error::{Error, Kind, Result};
use crate::failpoint::failpoint;
use crate::pipeline::spool::make_private;
use crate::segment::wal::MOST_BYTES;
use crate::stream::Lsn;
pub(super) use extent::Extent;
use extent::{SPARE, left_over, remove, sync_directory};

const LOCK: &str = "wal.lock";

/// Received WAL on the local disk.
#[derive(Debug)]
pub(super) struct WalSpool {
    directory: PathBuf,
    inner: Mutex<Inner>,
    /// Held by who makes the spare file: there is one.
    preparing: Mutex<()>,
    /// Counts what readers may want to know of: bytes that are safe now, files that went.
    changes: watch::Sender<u64>,
    /// A block in memory is full.
    full: Notify,
    /// Where blocks are held in memory; none where all has to be on the disk.
    buffers: Option<Arc<Buffers>>,
    lock: File,
}

#[derive(Debug, Default)]
struct Inner {
    files: VecDeque<Extent>,
    /// The blocks in memory, by where they begin. They are the last of `files`.
    held: BTreeMap<(u32, Lsn), Held>,
    /// Up to where the archive is known to have each timeline.
    archived: BTreeMap<u32, Lsn>,
    open: Option<Arc<File>>,
    spare: Option<File>,
}

/// A block that never was on the disk.
#[derive(Debug)]
enum Held {
    Here(Buffer),
    /// The archiver has it.
    Taken,
}

impl Inner {
    /// Whether the archive has all of it. A later timeline in the archive says nothing: it may be one that was given up.
    fn is_archived(&self, file: &Extent) -> bool {
        let is_empty = file.start == file.end && !file.after_gap;
        is_empty || self.archived.get(&file.timeline).is_some_and(|archived| file.end <= *archived)
    }
}

impl WalSpool {
    /// Opens the spool of a system, with what an earlier process left in it. With `buffers`, memory is used where the disk is
    /// of no use.
    ///
    /// # Errors
    /// [`Kind::Config`] if another process uses it, and those of the file system.
    pub(super) fn open(root: &Path, system_id: u64, buffers: Option<Arc<Buffers>>) -> Result<Self> {
        let directory = root.join(format!("postgres-{system_id}"));
        let hint = "set archive.spool_dir to a directory on a local disk that tidelog may write to";
        let failed = |source| Error::io(source, format!("cannot open the spool {}", directory.display())).hint(hint);
        std::fs::create_dir_all(root).and_then(|()| make_private(&directory)).map_err(failed)?;
        let lock = File::create(directory.join(LOCK)).map_err(failed)?;
        if lock.try_lock().is_err() {
            return Err(Error::new(Kind::Config, format!("another process uses the spool {}", directory.display()))
                .hint("two archivers of one Postgres need an archive.spool_dir each"));
        }
        let files = left_over(&directory).map_err(failed)?;
        sync_directory(&directory).map_err(failed)?;
        let inner = Mutex::new(Inner { files, ..Inner::default() });
        Ok(Self {
            directory,
            inner,
            preparing: Mutex::default(),
            changes: watch::Sender::new(0),
            full: Notify::new(),
            buffers,
            lock,
        })
    }

    /// Lets it be opened again, although a task that was aborted may still know it for a moment.
    pub(super) fn close(&self) {
        if let Err(error) = self.lock.unlock() {
            tracing::warn!(%error, "the lock of the spool of WAL cannot be given back");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    /// Tells of every change that a reader may want to know of.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// What it holds, oldest first.
    pub(super) fn extents(&self) -> Vec<Extent> {
        self.lock().files.iter().copied().collect()
    }

    /// Waits until a block in memory is full; one that became full since the last call counts.
    pub(super) async fn full(&self) {
        self.full.notified().await;
    }

    /// Bytes that it holds on the disk.
    pub(super) fn bytes(&self) -> u64 {
        let inner = self.lock();
        let files = inner.files.iter().filter(|file| !inner.held.contains_key(&file.key()));
        files.map(|file| file.end - file.start).sum()
    }

    /// The timeline and the position behind the last byte; none if it is empty.
    pub(super) fn end(&self) -> Option<(u32, Lsn)> {
        self.lock().files.back().map(|file| (file.timeline, file.end))
    }

    /// Begins a block at `start`, of a timeline that begins there or behind what the server has no more. It is held in
    /// memory if the server, whose log ends at `server_end`, has it whole; else it is a file.
    ///
    /// False: nothing was begun, for no block of memory is free, or blocks in memory have to be archived first. That may be
    /// different once [`WalSpool::room`] has come.
    pub(super) fn begin(&self, timeline: u32, start: Lsn, after_gap: bool, server_end: Lsn) -> Result<bool> {
        let extent = Extent { timeline, start, end: start, safe: start, after_gap };
        self.end_last()?;
        let mut inner = self.lock();
        if let Some(buffers) = self.buffers.as_ref().filter(|_| !after_gap && extent.full() <= server_end) {
            let Some(buffer) = buffers.try_take() else { return Ok(false) };
            inner.held.insert(extent.key(), Held::Here(buffer));
            inner.open = None;
            inner.files.push_back(extent);
            return Ok(true);
        }
        if inner.files.iter().any(|file| inner.held.contains_key(&file.key()) && !inner.is_archived(file)) {
            return Ok(false);
        }
        if after_gap {
            let marker = self.directory.join(extent.name()).with_extension("gap");
            File::create(&marker).and_then(|file| file.sync_all()).map_err(|source| self.failed(source))?;
        }
        let path = self.directory.join(extent.name());
        let spare = inner.spare.take_if(|_| start.0.is_multiple_of(MOST_BYTES));
        let file = match spare {
            Some(spare) => std::fs::rename(self.directory.join(SPARE), path).map(|()| spare),
            None => File::options().create(true).truncate(true).read(true).write(true).open(path),
        };
        let file = file.map_err(|source| self.failed(source))?;
        sync_directory(&self.directory).map_err(|source| self.failed(source))?;
        inner.open = Some(Arc::new(file));
        inner.files.push_back(extent);
        drop(inner);
        self.changed();
        Ok(true)
    }

    /// Nothing more comes into the last file, so it must have the length of what it holds.
    fn end_last(&self) -> Result<()> {
        let Some(last) = self.lock().files.back().copied().filter(|last| last.end < last.full()) else { return Ok(()) };
        let Some(file) = self.file(&last)? else { return Ok(()) };
        file.set_len(last.end - last.start).and_then(|()| file.sync_all()).map_err(|source| self.failed(source))
    }

    /// Waits until [`WalSpool::begin`] may have room; one waits at a time.
    pub(super) async fn room(&self) {
        match &self.buffers {
            Some(buffers) => buffers.returned().await,
            None => std::future::pending().await,
        }
    }

    /// Whether [`WalSpool::prepare`] has something to do.
    pub(super) fn wants_spare(&self) -> bool {
        self.lock().spare.is_none()
    }

    /// Makes a file ready to become the next one, if there is none.
    pub(super) fn prepare(&self) -> Result<()> {
        let _preparing = self.preparing.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.wants_spare() {
            return Ok(());
        }
        let zeros = vec![0; 1 << 20];
        let path = self.directory.join(SPARE);
        let prepared =
            File::options().create(true).truncate(true).read(true).write(true).open(&path).and_then(|file| {
                for at in (0..MOST_BYTES).step_by(zeros.len()) {
                    file.write_all_at(&zeros, at)?;
                }
                file.sync_all()?;
                Ok(file)
            });
        match prepared {
            Ok(file) => self.lock().spare = Some(file),
            Err(source) => {
                // It must not take the room that the WAL itself needs.
                remove(&path);
                return Err(self.failed(source));
            }
        }
        Ok(())
    }

    /// Takes the bytes of a timeline from `at` on, where the last block ends; `server_end` is where the server's log ends.
    /// Gives how many bytes it took: fewer than there are where [`WalSpool::begin`] had no room. After an error the same call
    /// can be made again with what is missing.
    ///
    /// # Errors
    /// [`Kind::Unavailable`] if it ends elsewhere, for something was cut off or forgotten meanwhile: they come again.
    pub(super) fn append(&self, (timeline, at): (u32, Lsn), bytes: &[u8], server_end: Lsn) -> Result<usize> {
        failpoint!("wal.spool");
        let mut taken = 0;
        loop {
            let mut last = self.last()?;
            if (last.timeline, last.end) != (timeline, at + taken as u64) {
                let message = format!("the spool of WAL ends at {} now, not at {}", last.end, at + taken as u64);
                return Err(Error::new(Kind::Unavailable, message));
            }
            let full = last.full();
            if last.end == full {
                self.sync()?;
                if !self.begin(last.timeline, full, false, server_end)? {
                    return Ok(taken);
                }
                continue;
            }
            let rest = &bytes[taken..];
            if rest.is_empty() {
                return Ok(taken);
            }
            let piece = &rest[..rest.len().min(usize::try_from(full - last.end).unwrap_or(rest.len()))];
            taken += piece.len();
            if self.hold(&last, piece) {
                continue;
            }
            let file = self.file(&last)?.ok_or_else(|| Error::new(Kind::Internal, "a block of WAL is nowhere"))?;
            file.write_all_at(piece, last.end - last.start).map_err(|source| self.failed(source))?;
            last.end = last.end + piece.len() as u64;
            self.update(last);
        }
    }

    /// Adds bytes to the last block if it is in memory.
    fn hold(&self, last: &Extent, bytes: &[u8]) -> bool {
        let mut inner = self.lock();
        let Some(Held::Here(block)) = inner.held.get_mut(&last.key()) else { return false };
        block.extend(bytes);
        let end = last.end + bytes.len() as u64;
        if let Some(extent) = inner.files.back_mut() {
            (extent.end, extent.safe) = (end, end);
        }
        drop(inner);
        if end == last.full() {
            self.full.notify_one();
        }
        true
    }

    /// The last file or block.
    fn last(&self) -> Result<Extent> {
        self.lock().files.back().copied().ok_or_else(|| Error::new(Kind::Internal, "the spool of WAL has no file"))
    }

    /// The last file, opened if it is not; none for a block in memory.
    fn file(&self, last: &Extent) -> Result<Option<Arc<File>>> {
        let mut inner = self.lock();
        if inner.held.contains_key(&last.key()) {
            return Ok(None);
        }
        if let Some(open) = &inner.open {
            return Ok(Some(Arc::clone(open)));
        }
        let file = File::options().read(true).write(true).open(self.directory.join(last.name()));
        let file = Arc::new(file.map_err(|source| self.failed(source))?);
        inner.open = Some(Arc::clone(&file));
        Ok(Some(file))
    }

    /// Gives away a full block that is in memory; none if it is not there.
    pub(super) fn take(&self, timeline: u32, start: Lsn, end: Lsn) -> Option<Buffer> {
        let mut inner = self.lock();
        inner.files.iter().find(|file| file.key() == (timeline, start) && file.end == end && end == file.full())?;
        let held = inner.held.get_mut(&(timeline, start))?;
        match std::mem::replace(held, Held::Taken) {
            Held::Here(block) => Some(block),
            Held::Taken => None,
        }
    }

    /// Forgets the blocks in memory: they have to be received again. True if there were any.
    pub(super) fn forget(&self) -> bool {
        let mut inner = self.lock();
        let held = std::mem::take(&mut inner.held);
        inner.files.retain(|file| !held.contains_key(&file.key()));
        !held.is_empty()
    }

    fn update(&self, extent: Extent) {
        let mut inner = self.lock();
        if let Some(last) =
            inner.files.back_mut().filter(|last| (last.timeline, last.start) == (extent.timeline, extent.start))
        {
            *last = extent;
        }
    }

    /// Whether nothing of it is in memory alone, so that what is [safe](Extent::safe) outlives this process.
    pub(super) fn is_all_on_disk(&self) -> bool {
        self.lock().held.is_empty()
    }

    /// Brings everything that was written to the disk; gives up to where it is safe.
    pub(super) fn sync(&self) -> Result<Lsn> {
        let mut last = self.last()?;
        match self.file(&last)? {
            Some(file) if last.safe < last.end => {
                failpoint!("wal.sync");
                file.sync_data().map_err(|source| self.failed(source))?;
                last.safe = last.end;
                self.update(last);
                self.changed();
            }
            Some(_) => {}
            None => self.changed(),
        }
        Ok(last.safe)
    }

    /// Reads `length` bytes of a timeline from `start`, which it holds.
    pub(super) fn read(&self, timeline: u32, start: Lsn, buffer: &mut [u8]) -> Result<()> {
        let mut filled = 0;
        while filled < buffer.len() {
            let at = start + filled as u64;
            let missing = || {
                Error::new(Kind::Internal, format!("the spool does not hold the WAL of timeline {timeline} at {at}"))
            };
            let inner = self.lock();
            let holds = |file: &&Extent| file.timeline == timeline && file.start <= at && at < file.end;
            let extent = *inner.files.iter().find(holds).ok_or_else(missing)?;
            let length = (buffer.len() - filled).min(usize::try_from(extent.end - at).unwrap_or(usize::MAX));
            if let Some(held) = inner.held.get(&extent.key()) {
                let Held::Here(block) = held else { return Err(missing()) };
                let from = usize::try_from(at - extent.start).unwrap_or(usize::MAX);
                buffer[filled..filled + length].copy_from_slice(&block[from..from + length]);
                filled += length;
                continue;
            }
            drop(inner);
            let path = self.directory.join(extent.name());
            let read = File::open(&path)
                .and_then(|file| file.read_exact_at(&mut buffer[filled..filled + length], at - extent.start));
            read.map_err(|source| Error::io(source, format!("cannot read the spool file {}", path.display())))?;
            filled += length;
        }
        Ok(())
    }

    /// Removes the files of which the archive, that is at these positions, holds all.
    pub(super) fn release(&self, archived: BTreeMap<u32, Lsn>) {
        let mut inner = self.lock();
        inner.archived = archived;
        // The last file stays: it says where to receive on.
        while inner.files.len() > 1 {
            let Some(first) = inner.files.front().copied().filter(|first| inner.is_archived(first)) else { break };
            if inner.held.remove(&first.key()).is_none() {
                let path = self.directory.join(first.name());
                remove(&path);
                remove(&path.with_extension("gap"));
            }
            inner.files.pop_front();
        }
        drop(inner);
        self.changed();
        if let Some(buffers) = &self.buffers {
            buffers.wake();
        }
    }

    fn failed(&self, source: std::io::Error) -> Error {
        Error::io(source, format!("cannot write to the spool {}", self.directory.display()))
            .hint("make room on the disk of archive.spool_dir; nothing is lost, the server keeps what was not received")
    }
}

#[cfg(test)]
mod tests;
