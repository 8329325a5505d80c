//! Several segments of records made into one.
//!
//! ```text
//! bytes of a segment ─► held against its checkpoint ─► blocks ─► row groups of about 8 MiB ─► the merged segment
//! ```
//!
//! Records are decoded and encoded once: pages that were copied as they are would leave as many row groups as there were segments,
//! each with dictionaries of its own, and a footer of megabytes. What comes out is held against what went in: as many records of each
//! partition, from the same first to the same last timestamp, as many bytes.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt as _, PutPayload};

use super::{Encoding, Filter, SegmentInfo, SegmentReader, SegmentWriter};
use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::record::Block;
use crate::segment::Sealed;
use crate::stream::{PartitionRange, SegmentRef, sha256};

/// Blocks of about this many bytes are written at once.
const WRITTEN_AT_ONCE: u64 = 8 << 20;

/// What a record takes in memory beside its bytes, about.
const RECORD_BYTES: u64 = 64;

/// A segment that others are written into.
pub struct Merging {
    writer: SegmentWriter,
    blocks: Vec<Block>,
    held: u64,
    covered: BTreeMap<i32, PartitionRange>,
    raw_bytes: u64,
}

impl Merging {
    /// Creates its file, which must not exist.
    pub fn create(path: &Path, info: SegmentInfo, encoding: Encoding) -> Result<Self> {
        let writer = SegmentWriter::create(path, info, encoding)?;
        Ok(Self { writer, blocks: Vec::new(), held: 0, covered: BTreeMap::new(), raw_bytes: 0 })
    }

    /// Opens the next segment, of which these are the bytes. All of its records are to be taken in before the next one is opened.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] if the bytes are not those that the checkpoint says, or say other things of themselves.
    pub async fn open(&mut self, bytes: Bytes, segment: &SegmentRef) -> Result<SegmentReader> {
        let damaged = |what: &str| Error::new(Kind::Corrupt, format!("segment {}: {what}", segment.object));
        let (found, size) = (sha256(&bytes), bytes.len() as u64);
        if found != segment.sha256 {
            return Err(damaged(&format!("its sha256 is {found}, its checkpoint says {}", segment.sha256)));
        }
        let (store, path) = (Arc::new(InMemory::new()), object_store::path::Path::from(segment.object.as_str()));
        let put = store.put(&path, PutPayload::from_bytes(bytes)).await;
        put.or_err(Kind::Internal, || "the bytes of a segment cannot be kept in memory".to_owned())?;
        let objects: Arc<dyn ObjectStore> = store;
        let reader = SegmentReader::open(objects, &path, size, segment.format, Filter::default()).await?;
        let facts = reader.facts();
        let said = (&facts.partitions, facts.raw_bytes, facts.largest_record);
        if said != (&segment.partitions, segment.raw_bytes, segment.largest_record) {
            return Err(damaged("it says other things of itself than its checkpoint"));
        }
        for range in &segment.partitions {
            self.covered.entry(range.partition).and_modify(|covered| covered.extend(range)).or_insert(*range);
        }
        self.raw_bytes = self.raw_bytes.saturating_add(segment.raw_bytes);
        Ok(reader)
    }

    /// Takes in records; true if it is time to write.
    pub fn add(&mut self, block: Block) -> bool {
        self.held += block.raw_bytes() + block.len() as u64 * RECORD_BYTES;
        self.blocks.push(block);
        self.held >= WRITTEN_AT_ONCE
    }

    /// Writes what was taken in.
    pub fn write(&mut self) -> Result<()> {
        self.held = 0;
        self.writer.write(std::mem::take(&mut self.blocks)).map(drop)
    }

    /// Completes the segment.
    ///
    /// # Errors
    /// [`Kind::Internal`] if it does not hold what the others say.
    pub fn finish(mut self) -> Result<Sealed> {
        self.write()?;
        let ranges: Vec<_> = self.covered.values().map(|range| (range.partition, range.start, range.end)).collect();
        let sealed = self.writer.finish(&ranges)?;
        if sealed.partitions.iter().eq(self.covered.values()) && sealed.raw_bytes == self.raw_bytes {
            return Ok(sealed);
        }
        if let Err(error) = std::fs::remove_file(&sealed.path) {
            tracing::warn!(path = %sealed.path.display(), %error, "cannot remove a spool file");
        }
        Err(Error::new(Kind::Internal, "a merged segment does not hold what the segments hold that it is of"))
    }
}
