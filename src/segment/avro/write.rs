//! Writes Avro segments.
//!
//! The blocks go to a body file beside the segment; when all are written, the segment's file gets the header, which
//! holds the index of the blocks, and the body after it. Between two calls nothing is held but the index, for a writer is
//! open for every topic.

use std::collections::BTreeMap;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use zstd::bulk::Compressor;
use zstd::zstd_safe::{CParameter, compress_bound};

use super::cursor::{put_bytes, put_long, put_nullable};
use super::{CODEC, CODEC_KEY, Entry, INDEX_KEY, MAGIC, Part, SCHEMA, SCHEMA_KEY, Sync};
use crate::error::{Error, Kind, Result, ResultExt};
use crate::record::{Block, Record};
use crate::segment::facts::SegmentFacts;
use crate::segment::spool::{NewFile, Spool};

/// Bytes of records that a block holds, about: smaller blocks compress worse, larger ones make reads by time coarse.
const BLOCK: usize = 1 << 20;
/// A block that holds this much ends where the partition changes; a smaller one would compress too badly.
const SPLIT: usize = 256 << 10;

/// Writes one Avro segment.
pub(in crate::segment) struct AvroWriter {
    path: PathBuf,
    body: BufWriter<NewFile>,
    written: u64,
    zstd_level: i32,
    sync: Sync,
    index: Vec<Entry>,
}

/// The block under construction.
struct OpenBlock {
    compressor: Compressor<'static>,
    raw: Vec<u8>,
    packed: Vec<u8>,
    records: u64,
    parts: BTreeMap<i32, Part>,
    /// What it has of the partition that was written last; not in `parts` yet.
    current: Option<Part>,
}

impl AvroWriter {
    /// Creates the body file. The segment's own file is created by [`AvroWriter::finish`].
    pub(in crate::segment) fn create(path: &Path, zstd_level: i32) -> Result<Self> {
        let levels = zstd::compression_level_range();
        if !levels.contains(&zstd_level) {
            return Err(Error::new(Kind::Config, format!("zstd has no level {zstd_level}")));
        }
        let mut sync = Sync::default();
        getrandom::fill(&mut sync)
            .map_err(|error| Error::new(Kind::Internal, format!("the system gives no random bytes: {error}")))?;
        let mut name = path.as_os_str().to_owned();
        name.push(".body");
        let body = BufWriter::new(NewFile::create(Path::new(&name))?);
        if path.exists() {
            return Err(Error::new(Kind::Internal, format!("the spool file {} exists already", path.display())));
        }
        Ok(Self { path: path.to_owned(), body, written: 0, zstd_level, sync, index: Vec::new() })
    }

    /// Writes blocks, which are in order.
    pub(in crate::segment) fn write(&mut self, blocks: &[Block]) -> Result<()> {
        let unusable = || "cannot set up zstd".to_owned();
        let mut compressor = Compressor::new(self.zstd_level).or_err(Kind::Internal, unusable)?;
        compressor.set_parameter(CParameter::ChecksumFlag(true)).or_err(Kind::Internal, unusable)?;
        let mut open = OpenBlock {
            compressor,
            raw: Vec::new(),
            packed: Vec::new(),
            records: 0,
            parts: BTreeMap::new(),
            current: None,
        };
        for block in blocks {
            let other = open.current.is_some_and(|part| part.0 != block.partition());
            if other && open.raw.len() >= SPLIT {
                self.end_block(&mut open)?;
            }
            for record in block.iter() {
                open.push(block.partition(), &record);
                if open.raw.len() >= BLOCK {
                    self.end_block(&mut open)?;
                }
            }
        }
        self.end_block(&mut open)
    }

    /// Bytes of the blocks.
    pub(in crate::segment) fn bytes_written(&self) -> u64 {
        self.written
    }

    /// Writes the file, header first.
    pub(in crate::segment) fn finish(self, facts: &SegmentFacts) -> Result<Spool> {
        let header = self.header(facts)?;
        let failed = |error| Error::io(error, format!("cannot write the spool file {}", self.path.display()));
        let mut body = self.body.into_inner().map_err(|error| failed(error.into_error()))?;
        let mut spool = Spool::create(&self.path)?;
        spool.write_all(&header).map_err(failed)?;
        body.file().seek(SeekFrom::Start(0)).map_err(failed)?;
        let copied = std::io::copy(&mut body.file(), &mut spool).map_err(failed)?;
        if copied != self.written {
            let message = format!("the body of {} has {copied} bytes, not {}", self.path.display(), self.written);
            return Err(Error::new(Kind::Internal, message));
        }
        Ok(spool)
    }

    fn header(&self, facts: &SegmentFacts) -> Result<Vec<u8>> {
        let index = serde_json::to_string(&self.index)
            .or_err(Kind::Internal, || "cannot write the index of a segment as JSON".into())?;
        let mut pairs = vec![(SCHEMA_KEY, SCHEMA.to_owned()), (CODEC_KEY, CODEC.to_owned())];
        pairs.extend(facts.to_pairs([(INDEX_KEY, index)])?);
        let mut header = MAGIC.to_vec();
        put_long(&mut header, pairs.len() as i64);
        for (key, value) in &pairs {
            put_bytes(&mut header, key.as_bytes());
            put_bytes(&mut header, value.as_bytes());
        }
        put_long(&mut header, 0);
        header.extend_from_slice(&self.sync);
        Ok(header)
    }

    /// Compresses and writes the block under construction, if it holds anything.
    fn end_block(&mut self, block: &mut OpenBlock) -> Result<()> {
        if block.records == 0 {
            return Ok(());
        }
        block.settle();
        block.packed.clear();
        block.packed.reserve(compress_bound(block.raw.len()));
        let packed = block.compressor.compress_to_buffer(&block.raw, &mut block.packed);
        packed.or_err(Kind::Internal, || "cannot compress an Avro block".into())?;
        let mut head = Vec::with_capacity(20);
        put_long(&mut head, block.records as i64);
        put_long(&mut head, block.packed.len() as i64);
        for bytes in [&head[..], &block.packed, &self.sync] {
            let written = self.body.write_all(bytes);
            written.map_err(|error| Error::io(error, format!("cannot write {}.body", self.path.display())))?;
        }
        let length = (head.len() + block.packed.len() + self.sync.len()) as u64;
        let parts = std::mem::take(&mut block.parts).into_values().collect();
        self.index.push(Entry(self.written, length, block.raw.len() as u64, parts));
        self.written += length;
        block.records = 0;
        block.raw.clear();
        // A record of many megabytes does not keep its memory.
        block.raw.shrink_to(2 * BLOCK);
        block.packed.shrink_to(2 * BLOCK);
        Ok(())
    }
}

impl OpenBlock {
    fn push(&mut self, partition: i32, record: &Record<'_>) {
        let (offset, time) = (record.offset, record.timestamp);
        match &mut self.current {
            Some(part) if part.0 == partition => part.add(&Part(partition, 1, offset, offset, time, time)),
            _ => {
                self.settle();
                self.current = Some(Part(partition, 1, offset, offset, time, time));
            }
        }
        self.records += 1;
        let out = &mut self.raw;
        put_long(out, i64::from(partition));
        put_long(out, offset);
        put_long(out, time);
        put_long(out, record.timestamp_type as i64);
        put_long(out, i64::from(record.leader_epoch));
        put_nullable(out, record.key);
        put_nullable(out, record.value);
        if record.header_count() > 0 {
            put_long(out, record.header_count() as i64);
            for header in record.headers() {
                match std::str::from_utf8(header.name) {
                    Ok(name) => put_bytes(out, name.as_bytes()),
                    Err(_) => put_bytes(out, String::from_utf8_lossy(header.name).as_bytes()),
                }
                put_nullable(out, header.value);
                put_nullable(out, std::str::from_utf8(header.name).is_err().then_some(header.name));
            }
        }
        put_long(out, 0);
    }

    /// Adds the partition that was written last to the others.
    fn settle(&mut self) {
        if let Some(part) = self.current.take() {
            self.parts.entry(part.0).and_modify(|known| known.add(&part)).or_insert(part);
        }
    }
}

impl Part {
    fn add(&mut self, more: &Self) {
        self.1 += more.1;
        self.2 = self.2.min(more.2);
        self.3 = self.3.max(more.3);
        self.4 = self.4.min(more.4);
        self.5 = self.5.max(more.5);
    }
}
