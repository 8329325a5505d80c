//! The local file that a segment is written to before it is uploaded, and what is counted on the way.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::error::{Error, Kind, Result};
use crate::record::Block;
use crate::stream::{LastRecord, PartitionRange};

/// A new file, which is removed again if it is dropped before it is kept.
pub(super) struct NewFile {
    file: File,
    path: PathBuf,
    kept: bool,
}

impl NewFile {
    /// Creates the file, which must not exist.
    pub(super) fn create(path: &Path) -> Result<Self> {
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)
            .map_err(|error| Error::io(error, format!("cannot create the spool file {}", path.display())))?;
        Ok(Self { file, path: path.to_owned(), kept: false })
    }

    /// The open file.
    pub(super) fn file(&mut self) -> &mut File {
        &mut self.file
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove an unfinished spool file");
        }
    }
}

/// A new file that hashes what goes into it.
pub(super) struct Spool {
    file: NewFile,
    hash: Sha256,
    bytes: u64,
}

impl Spool {
    /// Creates the file, which must not exist.
    pub(super) fn create(path: &Path) -> Result<Self> {
        Ok(Self { file: NewFile::create(path)?, hash: Sha256::new(), bytes: 0 })
    }

    /// The file's path.
    pub(super) fn path(&self) -> &Path {
        &self.file.path
    }

    /// Keeps the file; gives its size and the sha256 of its bytes in hex.
    pub(super) fn keep(mut self) -> (u64, String) {
        self.file.kept = true;
        (self.bytes, self.hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

impl Write for Spool {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hash.update(bytes.get(..written).unwrap_or(bytes));
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Counts what goes into a segment, by partition.
#[derive(Default)]
pub(super) struct Tally {
    partitions: BTreeMap<i32, PartitionRange>,
    last: BTreeMap<i32, LastRecord>,
    pub(super) raw_bytes: u64,
    pub(super) largest_record: u64,
}

impl Tally {
    /// Counts a block, which must follow what the segment has of its partition.
    pub(super) fn add(&mut self, block: &Block) -> Result<()> {
        let (Some(first), Some(last)) = (block.first_offset(), block.last_offset()) else { return Ok(()) };
        let records = block.len() as u64;
        self.raw_bytes += block.raw_bytes();
        self.largest_record = self.largest_record.max(block.largest_record());
        let partition = block.partition();
        match block.last_leader_epoch().filter(|epoch| *epoch >= 0) {
            Some(leader_epoch) => self.last.insert(partition, LastRecord { partition, offset: last, leader_epoch }),
            None => self.last.remove(&partition),
        };
        match self.partitions.entry(partition) {
            Entry::Vacant(entry) => {
                entry.insert(PartitionRange {
                    partition,
                    start: first,
                    end: last.saturating_add(1),
                    records,
                    min_timestamp: block.min_timestamp(),
                    max_timestamp: block.max_timestamp(),
                });
            }
            Entry::Occupied(mut entry) => {
                let range = entry.get_mut();
                if first < range.end {
                    let message = format!(
                        "a block of partition {partition} begins at offset {first}, but the segment has it up to {}",
                        range.end
                    );
                    return Err(Error::new(Kind::Internal, message));
                }
                range.end = last.saturating_add(1);
                range.records += records;
                range.min_timestamp = range.min_timestamp.min(block.min_timestamp());
                range.max_timestamp = range.max_timestamp.max(block.max_timestamp());
            }
        }
        Ok(())
    }

    /// The last record of each partition whose leader's epoch is known.
    pub(super) fn last(&self) -> Vec<LastRecord> {
        self.last.values().copied().collect()
    }

    /// The counts under the ranges `(partition, start, end)` that the segment is to cover, which must hold all records.
    pub(super) fn cover(&self, ranges: &[(i32, i64, i64)]) -> Result<Vec<PartitionRange>> {
        let wrong = |message: String| Err(Error::new(Kind::Internal, message));
        let mut covered = BTreeMap::new();
        for &(partition, start, end) in ranges {
            let empty = PartitionRange { partition, start, end, records: 0, min_timestamp: None, max_timestamp: None };
            let held = self.partitions.get(&partition).copied();
            if start > end || held.is_some_and(|held| held.start < start || held.end > end) {
                return wrong(format!(
                    "a segment cannot cover offsets {start}..{end} of partition {partition} with records of {held:?}"
                ));
            }
            if covered.insert(partition, PartitionRange { start, end, ..held.unwrap_or(empty) }).is_some() {
                return wrong(format!("a segment was given two ranges for partition {partition}"));
            }
        }
        match self.partitions.keys().find(|partition| !covered.contains_key(partition)) {
            Some(partition) => wrong(format!("a segment was given no range for its partition {partition}")),
            None => Ok(covered.into_values().collect()),
        }
    }
}
