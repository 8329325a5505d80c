//! The spool of WAL: received bytes on a local disk, from the socket until they are in the archive.
//!
//! ```text
//!  <spool_dir>/postgres-<system id>/wal.lock                             held by the process that uses it
//!                                   <timeline, 8 hex>-<start, 16 hex>.wal    raw bytes from `start` on
//!                                   <timeline, 8 hex>-<start, 16 hex>.gap    the server has nothing before `start`
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

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::error::{Error, Kind, Result};
use crate::segment::wal::MOST_BYTES;
use crate::stream::Lsn;

const LOCK: &str = "wal.lock";

/// A file of zeros that is ready to become the next one.
const SPARE: &str = "spare";

/// Received WAL on the local disk.
#[derive(Debug)]
pub(super) struct WalSpool {
    directory: PathBuf,
    inner: Mutex<Inner>,
    /// Held by who makes the spare file: there is one.
    preparing: Mutex<()>,
    /// Counts what readers may want to know of: bytes that are safe now, files that went.
    changes: watch::Sender<u64>,
    _lock: File,
}

#[derive(Debug, Default)]
struct Inner {
    files: VecDeque<Extent>,
    open: Option<Arc<File>>,
    spare: Option<File>,
}

/// A file of the spool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) timeline: u32,
    pub(super) start: Lsn,
    /// Up to where it was written.
    pub(super) end: Lsn,
    /// Up to where it is on the disk.
    pub(super) safe: Lsn,
    /// Whether the server has nothing between the file before and this one.
    pub(super) after_gap: bool,
}

impl Extent {
    fn name(&self) -> String {
        format!("{:08X}-{:016X}.wal", self.timeline, self.start.0)
    }

    /// Where the file ends at the latest.
    fn full(&self) -> Lsn {
        Lsn((self.start.0 + 1).next_multiple_of(MOST_BYTES))
    }
}

impl WalSpool {
    /// Opens the spool of a system, with what an earlier process left in it.
    ///
    /// # Errors
    /// [`Kind::Config`] if another process uses it, and those of the file system.
    pub(super) fn open(root: &Path, system_id: u64) -> Result<Self> {
        let directory = root.join(format!("postgres-{system_id}"));
        let hint = "set archive.spool_dir to a directory on a local disk that tidelog may write to";
        let failed = |source| Error::io(source, format!("cannot open the spool {}", directory.display())).hint(hint);
        std::fs::create_dir_all(&directory).map_err(failed)?;
        let lock = File::create(directory.join(LOCK)).map_err(failed)?;
        if lock.try_lock().is_err() {
            return Err(Error::new(Kind::Config, format!("another process uses the spool {}", directory.display()))
                .hint("two archivers of one Postgres need an archive.spool_dir each"));
        }
        let files = left_over(&directory).map_err(failed)?;
        sync_directory(&directory).map_err(failed)?;
        let inner = Mutex::new(Inner { files, open: None, spare: None });
        Ok(Self { directory, inner, preparing: Mutex::default(), changes: watch::Sender::new(0), _lock: lock })
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

    /// Bytes that it holds.
    pub(super) fn bytes(&self) -> u64 {
        self.lock().files.iter().map(|file| file.end - file.start).sum()
    }

    /// The timeline and the position behind the last byte; none if it is empty.
    pub(super) fn end(&self) -> Option<(u32, Lsn)> {
        self.lock().files.back().map(|file| (file.timeline, file.end))
    }

    /// Begins a file at `start`, of a timeline that begins there or behind what the server has no more.
    pub(super) fn begin(&self, timeline: u32, start: Lsn, after_gap: bool) -> Result<()> {
        let extent = Extent { timeline, start, end: start, safe: start, after_gap };
        let (before, mut inner) = (self.last().ok(), self.lock());
        if let Some((last, open)) = before.filter(|(last, _)| last.end < last.full()) {
            // Nothing more comes into it, so it must have the length of what it holds.
            let cut = open.set_len(last.end - last.start).and_then(|()| open.sync_all());
            cut.map_err(|source| self.failed(source))?;
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
        Ok(())
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

    /// Writes the next bytes of the last file's timeline. After an error the same call can be made again with what is
    /// missing.
    pub(super) fn append(&self, mut bytes: &[u8]) -> Result<()> {
        loop {
            let (mut last, open) = self.last()?;
            let full = last.full();
            if last.end == full {
                self.sync()?;
                self.begin(last.timeline, full, false)?;
                continue;
            }
            if bytes.is_empty() {
                return Ok(());
            }
            let piece = &bytes[..bytes.len().min(usize::try_from(full - last.end).unwrap_or(bytes.len()))];
            open.write_all_at(piece, last.end - last.start).map_err(|source| self.failed(source))?;
            last.end = last.end + piece.len() as u64;
            self.update(last);
            bytes = &bytes[piece.len()..];
        }
    }

    /// The last file, opened if it is not.
    fn last(&self) -> Result<(Extent, Arc<File>)> {
        let mut inner = self.lock();
        let last = *inner.files.back().ok_or_else(|| Error::new(Kind::Internal, "the spool of WAL has no file"))?;
        if let Some(open) = &inner.open {
            return Ok((last, Arc::clone(open)));
        }
        let file = File::options().read(true).write(true).open(self.directory.join(last.name()));
        let file = Arc::new(file.map_err(|source| self.failed(source))?);
        inner.open = Some(Arc::clone(&file));
        Ok((last, file))
    }

    fn update(&self, extent: Extent) {
        let mut inner = self.lock();
        if let Some(last) =
            inner.files.back_mut().filter(|last| (last.timeline, last.start) == (extent.timeline, extent.start))
        {
            *last = extent;
        }
    }

    /// Brings everything that was written to the disk; gives up to where it is safe.
    pub(super) fn sync(&self) -> Result<Lsn> {
        let (mut last, open) = self.last()?;
        if last.safe < last.end {
            open.sync_data().map_err(|source| self.failed(source))?;
            last.safe = last.end;
            self.update(last);
            self.changed();
        }
        Ok(last.safe)
    }

    /// Forgets what was written and is not safe: after a failed sync nobody knows what the disk has.
    pub(super) fn cut_to_safe(&self) -> Result<()> {
        let mut inner = self.lock();
        inner.open = None;
        if let Some(last) = inner.files.back_mut().filter(|last| last.safe < last.end) {
            let file = File::options().write(true).open(self.directory.join(last.name()));
            file.and_then(|file| file.set_len(last.safe - last.start)).map_err(|source| self.failed(source))?;
            last.end = last.safe;
        }
        Ok(())
    }

    /// Forgets everything from `end` of the timeline on: it is no WAL, and has to be received again.
    pub(super) fn cut(&self, timeline: u32, end: Lsn) -> Result<()> {
        let mut inner = self.lock();
        inner.open = None;
        while let Some(last) = inner.files.back().copied() {
            if (last.timeline, last.end) <= (timeline, end) {
                break;
            }
            let path = self.directory.join(last.name());
            if (last.timeline, last.start) < (timeline, end) && last.timeline == timeline {
                let cut = File::options().write(true).open(&path).and_then(|file| file.set_len(end - last.start));
                cut.map_err(|source| self.failed(source))?;
                inner.files.pop_back();
                inner.files.push_back(Extent { end, safe: end, ..last });
                break;
            }
            remove(&path);
            remove(&path.with_extension("gap"));
            inner.files.pop_back();
        }
        Ok(())
    }

    /// Forgets everything: the archive has come further.
    pub(super) fn clear(&self) {
        let mut inner = self.lock();
        inner.open = None;
        for extent in inner.files.drain(..) {
            let path = self.directory.join(extent.name());
            remove(&path);
            remove(&path.with_extension("gap"));
        }
    }

    /// Reads `length` bytes of a timeline from `start`, which it holds.
    pub(super) fn read(&self, timeline: u32, start: Lsn, buffer: &mut [u8]) -> Result<()> {
        let mut filled = 0;
        while filled < buffer.len() {
            let at = start + filled as u64;
            let found = self
                .lock()
                .files
                .iter()
                .copied()
                .find(|file| file.timeline == timeline && file.start <= at && at < file.end);
            let extent = found.ok_or_else(|| {
                Error::new(Kind::Internal, format!("the spool does not hold the WAL of timeline {timeline} at {at}"))
            })?;
            let length = (buffer.len() - filled).min(usize::try_from(extent.end - at).unwrap_or(usize::MAX));
            let path = self.directory.join(extent.name());
            let read = File::open(&path)
                .and_then(|file| file.read_exact_at(&mut buffer[filled..filled + length], at - extent.start));
            read.map_err(|source| Error::io(source, format!("cannot read the spool file {}", path.display())))?;
            filled += length;
        }
        Ok(())
    }

    /// Removes the files that lie wholly before `end` of `timeline`, which the archive holds.
    pub(super) fn release(&self, timeline: u32, end: Lsn) {
        let mut inner = self.lock();
        // The last file stays: it says where to receive on.
        while inner.files.len() > 1 {
            let Some(first) = inner.files.front().copied() else { break };
            if first.timeline > timeline || (first.timeline == timeline && first.end > end) {
                break;
            }
            let path = self.directory.join(first.name());
            remove(&path);
            remove(&path.with_extension("gap"));
            inner.files.pop_front();
        }
        drop(inner);
        self.changed();
    }

    fn failed(&self, source: std::io::Error) -> Error {
        Error::io(source, format!("cannot write to the spool {}", self.directory.display()))
            .hint("make room on the disk of archive.spool_dir; nothing is lost, the server keeps what was not received")
    }
}

fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(file = %path.display(), %error, "cannot remove a spool file");
    }
}

/// The files that an earlier process left. One that does not follow the others is put aside: it says nothing that can be
/// used, and is not ours to delete.
fn left_over(directory: &Path) -> std::io::Result<VecDeque<Extent>> {
    remove(&directory.join(SPARE));
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let parsed = name.strip_suffix(".wal").and_then(|name| name.split_once('-')).and_then(|(timeline, start)| {
            Some((u32::from_str_radix(timeline, 16).ok()?, Lsn(u64::from_str_radix(start, 16).ok()?)))
        });
        let Some((timeline, start)) = parsed else { continue };
        let file = File::open(&path)?;
        file.sync_data()?;
        let end = start + file.metadata()?.len();
        found.push(Extent { timeline, start, end, safe: end, after_gap: path.with_extension("gap").exists() });
    }
    found.sort_by_key(|extent| (extent.timeline, extent.start));
    let mut kept: VecDeque<Extent> = VecDeque::new();
    for extent in found {
        let follows = kept.back().is_none_or(|last: &Extent| {
            last.timeline < extent.timeline || last.end == extent.start || (extent.after_gap && last.end < extent.start)
        });
        if follows {
            kept.push_back(extent);
        } else {
            let path = directory.join(extent.name());
            tracing::error!(file = %path.display(), "a spool file does not follow those before it, and is put aside");
            std::fs::rename(&path, path.with_extension("stray"))?;
        }
    }
    if let Some(last) = kept.back_mut().filter(|last| last.end - last.start == MOST_BYTES) {
        let bytes = std::fs::read(directory.join(last.name()))?;
        // Records, and what a server sends, end at multiples of 8: a commit must not lose the zeros at its end.
        let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |at| (at + 1).next_multiple_of(8));
        (last.end, last.safe) = (last.start + used as u64, last.start + used as u64);
    }
    Ok(kept)
}

fn sync_directory(directory: &Path) -> std::io::Result<()> {
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    const M: u64 = MOST_BYTES;

    fn read(spool: &WalSpool, timeline: u32, start: u64, length: usize) -> Vec<u8> {
        let mut buffer = vec![0; length];
        spool.read(timeline, Lsn(start), &mut buffer).expect("it is there");
        buffer
    }

    #[test]
    fn what_was_synced_is_found_again_and_what_is_archived_goes() {
        let root = tempfile::tempdir().expect("a directory");
        let bytes: Vec<u8> = (0..M + 5_000).map(|n| (n % 251) as u8).collect();
        {
            let spool = WalSpool::open(root.path(), 7).expect("a spool");
            assert!(WalSpool::open(root.path(), 7).is_err_and(|error| error.kind() == Kind::Config), "it is in use");
            spool.begin(1, Lsn(M - 1_000), false).expect("a file");
            bytes.chunks(70_000).for_each(|piece| spool.append(piece).expect("room"));
            assert_eq!(spool.sync().expect("a disk"), Lsn(2 * M + 4_000));
            assert_eq!(spool.extents().len(), 3);
        }
        let spool = WalSpool::open(root.path(), 7).expect("a spool");
        assert_eq!((spool.end(), spool.bytes()), (Some((1, Lsn(2 * M + 4_000))), M + 5_000));
        assert_eq!(read(&spool, 1, M - 1_000, bytes.len()), bytes);
        spool.append(&[9; 10]).expect("it goes on");
        assert_eq!(read(&spool, 1, 2 * M + 3_999, 11)[1..], [9; 10]);
        spool.release(1, Lsn(2 * M - 1));
        assert_eq!(spool.extents()[0].start, Lsn(M));
        spool.release(1, Lsn(3 * M));
        assert_eq!(spool.extents().len(), 1, "the last file says where to go on");
    }

    #[test]
    fn a_file_that_was_made_ready_ends_where_its_bytes_end() {
        let root = tempfile::tempdir().expect("a directory");
        let bytes: Vec<u8> = (0..M + 3_000).map(|n| (n % 250) as u8 + 1).collect();
        let length = |name: &str| std::fs::metadata(root.path().join("postgres-7").join(name)).map(|facts| facts.len());
        {
            let spool = WalSpool::open(root.path(), 7).expect("a spool");
            spool.prepare().expect("room");
            assert!(!spool.wants_spare());
            spool.begin(1, Lsn(M), false).expect("a file");
            assert!(spool.wants_spare());
            std::thread::scope(|scope| {
                for _ in 0..2 {
                    scope.spawn(|| spool.prepare().expect("room"));
                }
            });
            spool.append(&bytes[..1_993]).expect("room");
            spool.append(&[0; 7]).expect("room");
            spool.sync().expect("a disk");
        }
        {
            let spool = WalSpool::open(root.path(), 7).expect("a spool");
            assert_eq!(length("00000001-0000000001000000.wal").ok(), Some(M));
            assert_eq!((spool.end(), spool.wants_spare()), (Some((1, Lsn(M + 2_000))), true));
            assert!(length("spare").is_err(), "it may be half made");
            // Zeros to the end of the block, as behind a switch of files: nothing says that they come again.
            let mut bytes = bytes[2_000..].to_vec();
            bytes[1_000_000..M as usize - 2_000].fill(0);
            spool.append(&bytes[..M as usize - 2_000]).expect("room");
        }
        {
            let spool = WalSpool::open(root.path(), 7).expect("a spool");
            assert_eq!(spool.end(), Some((1, Lsn(2 * M))));
            spool.prepare().expect("room");
            spool.append(&bytes[..M as usize + 10]).expect("room");
            spool.prepare().expect("room");
            spool.append(&bytes[..M as usize]).expect("room");
            spool.sync().expect("a disk");
            assert_eq!(length("00000001-0000000004000000.wal").ok(), Some(M));
            spool.append(&[7; 100]).expect("room");
            spool.cut_to_safe().expect("a disk");
            // Another timeline: the file that was left has the length of what it holds.
            spool.begin(2, Lsn(4 * M + 10), false).expect("a file");
            assert_eq!(length("00000001-0000000004000000.wal").ok(), Some(10));
        }
        let spool = WalSpool::open(root.path(), 7).expect("a spool");
        let ends: Vec<_> = spool.extents().iter().map(|extent| (extent.timeline, extent.end.0)).collect();
        assert_eq!(ends, [(1, 2 * M), (1, 3 * M), (1, 4 * M), (1, 4 * M + 10), (2, 4 * M + 10)]);
    }

    #[test]
    fn a_hole_needs_a_reason() {
        let root = tempfile::tempdir().expect("a directory");
        {
            let spool = WalSpool::open(root.path(), 7).expect("a spool");
            for (start, gap) in [(0, false), (M, true), (3 * M, false)] {
                spool.begin(1, Lsn(start), gap).expect("a file");
                spool.append(&[1; 100]).expect("room");
                spool.sync().expect("a disk");
            }
            spool.begin(2, Lsn(2 * M), false).expect("a file");
        }
        let spool = WalSpool::open(root.path(), 7).expect("a spool");
        let kept: Vec<_> =
            spool.extents().iter().map(|extent| (extent.timeline, extent.start.0, extent.after_gap)).collect();
        assert_eq!(kept, [(1, 0, false), (1, M, true), (2, 2 * M, false)]);
        assert!(root.path().join("postgres-7/00000001-0000000003000000.stray").exists());
        spool.cut(1, Lsn(M + 40)).expect("a disk");
        assert_eq!(spool.end(), Some((1, Lsn(M + 40))));
    }
}
