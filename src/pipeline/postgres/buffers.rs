//! Buffers of 16 MiB that go round between who fills them and who compresses them.
//!
//! ```text
//!   free ──► receiver, or a read of the spool ──► scan ──► compress ──► free
//! ```
//!
//! The pages of a new one cost as much as scanning it, so they are used again. [`MOST`] bounds what a receiver
//! that is faster than the archiver may fill.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::segment::wal::MOST_BYTES;

/// One is being filled, two are scanned and compressed. What comes of a segment that cannot be compressed takes as
/// much again.
pub(super) const MOST: usize = 3;

/// The buffers of one archiver.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    inner: Mutex<Inner>,
    returned: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    free: Vec<Vec<u8>>,
    /// How many are not free.
    used: usize,
}

/// Bytes of WAL in memory. They are free again when this is dropped.
#[derive(Debug)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
    home: Arc<Buffers>,
}

impl Buffers {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An empty buffer, if fewer than [`MOST`] are in use.
    pub(super) fn try_take(self: &Arc<Self>) -> Option<Buffer> {
        let mut inner = self.lock();
        if inner.used >= MOST {
            return None;
        }
        let mut buffer = self.used(&mut inner);
        buffer.bytes.clear();
        Some(buffer)
    }

    /// A buffer of `length` bytes, whatever they are, for somebody who takes few of them.
    pub(super) fn take(self: &Arc<Self>, length: u64) -> Buffer {
        let mut buffer = self.used(&mut self.lock());
        buffer.bytes.resize(usize::try_from(length).unwrap_or(usize::MAX), 0);
        buffer
    }

    fn used(self: &Arc<Self>, inner: &mut Inner) -> Buffer {
        inner.used += 1;
        let bytes = inner.free.pop().unwrap_or_else(|| Vec::with_capacity(MOST_BYTES as usize));
        Buffer { bytes, home: Arc::clone(self) }
    }

    /// Has [`Buffers::returned`] look again.
    pub(super) fn wake(&self) {
        self.returned.notify_one();
    }

    /// Waits until a buffer has come back, or somebody wakes who waits; what was since the last call counts.
    pub(super) async fn returned(&self) {
        self.returned.notified().await;
    }

    /// Gives the memory of free buffers back to the system.
    pub(super) fn shrink(&self) {
        self.lock().free.clear();
    }
}

impl Buffer {
    /// Adds bytes behind those that it holds.
    pub(super) fn extend(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut inner = self.home.lock();
        inner.used -= 1;
        inner.free.push(std::mem::take(&mut self.bytes));
        drop(inner);
        self.home.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn buffers_go_round_and_are_bounded() {
        let buffers = Arc::new(Buffers::default());
        let mut taken: Vec<Buffer> = std::iter::from_fn(|| buffers.try_take()).collect();
        assert_eq!(taken.len(), MOST);
        // A read of the spool is bounded by who reads.
        let read = buffers.take(100);
        assert_eq!(read.len(), 100);
        drop(read);
        buffers.returned().await;
        assert!(buffers.try_take().is_none());
        taken[0].extend(&[7; 10]);
        taken.truncate(1);
        let again = buffers.try_take().expect("some came back");
        assert!(again.is_empty(), "it holds nothing of its last use");
        assert_eq!(taken[0][..], [7; 10]);
        assert_eq!(buffers.lock().free.len(), MOST - 1);
        buffers.shrink();
        assert_eq!(buffers.lock().free.len(), 0);
    }
}
