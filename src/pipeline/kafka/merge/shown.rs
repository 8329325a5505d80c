//! What is shown of the merging of segments.

use std::sync::{Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, Utc};

/// What this process has merged since its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Merges {
    /// Merged segments that are in the archive now.
    pub merges: u64,
    /// The segments that they have replaced.
    pub segments: u64,
    /// The size of those.
    pub bytes_before: u64,
    /// The size of the merged ones.
    pub bytes_after: u64,
    /// Objects of replaced segments that were deleted.
    pub deleted: u64,
    /// Segments that cannot be read, and stay as they are.
    pub damaged: u64,
    /// When the last merge was.
    pub last: Option<DateTime<Utc>>,
}

/// Where it is shown.
#[derive(Debug, Default)]
pub struct PublishedMerges(Mutex<Merges>);

impl PublishedMerges {
    /// What was merged up to now.
    pub fn now(&self) -> Merges {
        *self.lock()
    }

    pub(super) fn note(&self, change: impl FnOnce(&mut Merges)) {
        change(&mut self.lock());
    }

    fn lock(&self) -> MutexGuard<'_, Merges> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
