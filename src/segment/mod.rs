//! Segments: immutable files of records, their writers and their readers. Bytes only; where they lie is the store's
//! business, and what they mean for progress is the manifest's.
//!
//! ```text
//! blocks ─► SegmentWriter ─► spool file ─► (store) ─► object ─► SegmentReader ─► blocks
//!              Parquet: a row group for each call          by ranges, only what the filter may want
//!              Avro: blocks of about 1 MiB, then the header with their index
//! ```
//!
//! Both formats hold the same columns (described in the modules `parquet` and `avro`) and say the same about
//! themselves (see [`SegmentFacts`]). Rows of a partition stand in offset order; those of one call of the writer stand
//! together by partition. A reader gives back exactly the records that were written: null is not empty, headers keep
//! their order and their duplicates, names that are not text keep their bytes.
//!
//! The segments of a write-ahead log are another thing, in [`wal`].
//!
//! A reader trusts nothing: damaged bytes are an error of [`Kind::Corrupt`] that says what is wrong.

mod assemble;
mod avro;
mod facts;
mod fetch;
mod filter;
mod info;
mod limits;
mod merge;
mod parquet;
mod spool;
pub mod wal;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use object_store::ObjectStore;
use object_store::local::LocalFileSystem;

use self::avro::{AvroReader, AvroWriter};
pub use self::facts::SegmentFacts;
use self::fetch::Object;
pub use self::filter::Filter;
pub use self::info::SegmentInfo;
pub use self::merge::Merging;
use self::parquet::{ParquetReader, ParquetWriter};
use self::spool::Tally;
use crate::error::{Error, Kind, Result, ResultExt};
use crate::failpoint::failpoint;
use crate::record::Block;
pub use crate::stream::Format;
use crate::stream::{LastRecord, PartitionRange, SegmentRef};

/// The most bytes of records that a writer puts together, which leaves room for what is said of each. It is far above what is
/// written at once, but for a record of that size. (Kafka's `message.max.bytes` is 1 MiB unless it is raised.)
const MOST_WRITTEN: u64 = 384 << 20;

/// How a segment is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Encoding {
    /// The format.
    pub format: Format,
    /// The level of zstd.
    pub zstd_level: i32,
}

/// Writes one segment to a local file.
///
/// Dropped before [`SegmentWriter::finish`], it leaves no file behind.
pub struct SegmentWriter {
    info: SegmentInfo,
    tally: Tally,
    encoder: Encoder,
}

enum Encoder {
    Parquet(Box<ParquetWriter>),
    Avro(Box<AvroWriter>),
}

impl SegmentWriter {
    /// Creates the file, which must not exist. Avro needs a second one beside it while it writes, `<path>.body`.
    pub fn create(path: &Path, info: SegmentInfo, encoding: Encoding) -> Result<Self> {
        let encoder = match encoding.format {
            Format::Parquet => Encoder::Parquet(Box::new(ParquetWriter::create(path, encoding.zstd_level)?)),
            Format::Avro => Encoder::Avro(Box::new(AvroWriter::create(path, encoding.zstd_level)?)),
            Format::Wal | Format::State => return Err(no_records()),
        };
        Ok(Self { info, tally: Tally::default(), encoder })
    }

    /// Writes blocks, in any order: as one row group of Parquet, as a run of Avro blocks. What is given of a partition
    /// must follow what was given of it before. Holds the given blocks and one encoded column or Avro block, no more,
    /// and gives the blocks back.
    pub fn write(&mut self, mut blocks: Vec<Block>) -> Result<Vec<Block>> {
        failpoint!("segment.bytes");
        blocks.retain(|block| !block.is_empty());
        blocks.sort_by_key(|block| (block.partition(), block.first_offset()));
        for block in &blocks {
            if block.raw_bytes() > MOST_WRITTEN {
                let message = format!(
                    "a record of {} bytes is too large: a segment takes records of {MOST_WRITTEN} bytes at the most",
                    block.largest_record()
                );
                return Err(Error::new(Kind::Unsupported, message).hint("leave the topic out: add it to kafka.exclude"));
            }
            self.tally.add(block)?;
        }
        let mut rest = &blocks[..];
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = rest.iter().take_while(|block| {
                bytes += block.raw_bytes();
                bytes <= MOST_WRITTEN
            });
            let (together, after) = rest.split_at(fits.count());
            match &mut self.encoder {
                Encoder::Parquet(writer) => writer.write(together)?,
                Encoder::Avro(writer) => writer.write(together)?,
            }
            rest = after;
        }
        Ok(blocks)
    }

    /// Encoded bytes so far.
    pub fn bytes_written(&self) -> u64 {
        match &self.encoder {
            Encoder::Parquet(writer) => writer.bytes_written(),
            Encoder::Avro(writer) => writer.bytes_written(),
        }
    }

    /// Completes the file, which covers `ranges` of `(partition, start, end)`: every partition that was written, and
    /// all its records.
    pub fn finish(self, ranges: &[(i32, i64, i64)]) -> Result<Sealed> {
        failpoint!("segment.seal");
        let partitions = self.tally.cover(ranges)?;
        let last = self.tally.last();
        let Tally { raw_bytes, largest_record, .. } = self.tally;
        let facts = SegmentFacts::new(&self.info, raw_bytes, largest_record, partitions);
        let (format, spool) = match self.encoder {
            Encoder::Parquet(writer) => (Format::Parquet, writer.finish(&facts)?),
            Encoder::Avro(writer) => (Format::Avro, writer.finish(&facts)?),
        };
        let path = spool.path().to_owned();
        let (bytes, sha256) = spool.keep();
        Ok(Sealed { path, format, bytes, sha256, raw_bytes, largest_record, partitions: facts.partitions, last })
    }
}

/// A complete segment in a local file: what its checkpoint will say, but for the object's key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// The file.
    pub path: PathBuf,
    /// Its format.
    pub format: Format,
    /// Its size.
    pub bytes: u64,
    /// The sha256 of its bytes, hex.
    pub sha256: String,
    /// The bytes of the keys, values and headers within, before encoding.
    pub raw_bytes: u64,
    /// The bytes (key, value, headers) of the largest record within.
    pub largest_record: u64,
    /// The ranges that it covers, by partition.
    pub partitions: Vec<PartitionRange>,
    /// The last record of each partition whose leader's epoch is known.
    pub last: Vec<LastRecord>,
}

impl Sealed {
    /// What its checkpoint says once it is uploaded as `object`.
    pub fn to_ref(&self, object: String) -> SegmentRef {
        SegmentRef {
            object,
            format: self.format,
            bytes: self.bytes,
            sha256: self.sha256.clone(),
            raw_bytes: self.raw_bytes,
            largest_record: self.largest_record,
            partitions: self.partitions.clone(),
            last: self.last.clone(),
            generation: 0,
            minimal: None,
        }
    }
}

/// Reads the records of one segment.
pub struct SegmentReader {
    object: Object,
    decoder: Decoder,
}

enum Decoder {
    Parquet(Box<ParquetReader>),
    Avro(Box<AvroReader>),
}

impl SegmentReader {
    /// Opens the segment `object` of `size` bytes, and plans what to read of it.
    pub async fn open(
        store: Arc<dyn ObjectStore>,
        object: &object_store::path::Path,
        size: u64,
        format: Format,
        filter: Filter,
    ) -> Result<Self> {
        let object = Object::new(store, object.clone(), size);
        let decoder = match format {
            Format::Parquet => ParquetReader::open(object.clone(), filter).await.map(Box::new).map(Decoder::Parquet),
            Format::Avro => AvroReader::open(object.clone(), filter).await.map(Box::new).map(Decoder::Avro),
            Format::Wal | Format::State => Err(no_records()),
        };
        match decoder {
            Ok(decoder) => Ok(Self { object, decoder }),
            Err(error) => Err(error.context(format_args!("segment {}", object.path()))),
        }
    }

    /// The next records: of one partition, in its offset order; otherwise as they stand in the file. None after the
    /// last.
    pub async fn next(&mut self) -> Result<Option<Block>> {
        let next = match &mut self.decoder {
            Decoder::Parquet(reader) => reader.next().await,
            Decoder::Avro(reader) => reader.next().await,
        };
        next.map_err(|error| error.context(format_args!("segment {}", self.object.path())))
    }

    /// Returns whether only what may have the key of the filter is read. Avro, and Parquet of older versions, is read whole.
    pub fn has_key_filters(&self) -> bool {
        match &self.decoder {
            Decoder::Parquet(reader) => reader.has_key_filters(),
            Decoder::Avro(_) => false,
        }
    }

    /// What the file says about itself.
    pub fn facts(&self) -> &SegmentFacts {
        match &self.decoder {
            Decoder::Parquet(reader) => reader.facts(),
            Decoder::Avro(reader) => reader.facts(),
        }
    }
}

fn no_records() -> Error {
    Error::new(Kind::Unsupported, "a segment of a write-ahead log holds no records of a topic")
}

/// Blocks of about this many bytes are written at once when a segment is written again.
const REWRITE: u64 = 8 << 20;

/// Writes the rows of `sealed` that lie in `ranges` of `(partition, start, end)` to the new file `to`. For a writer that
/// may not keep all that it has sealed.
pub async fn rewrite(
    sealed: &Sealed,
    ranges: &[(i32, i64, i64)],
    info: SegmentInfo,
    encoding: Encoding,
    to: &Path,
) -> Result<Sealed> {
    let wanted: BTreeMap<_, _> = ranges.iter().map(|&(partition, start, end)| (partition, start..end)).collect();
    let filter = Filter { partitions: Some(wanted), timestamps: None, with_key: None };
    let doing = || format!("cannot read the spool file {}", sealed.path.display());
    let path = object_store::path::Path::from_filesystem_path(&sealed.path).or_err(Kind::Internal, doing)?;
    let store: Arc<dyn ObjectStore> = Arc::new(LocalFileSystem::new());
    let mut reader = SegmentReader::open(store, &path, sealed.bytes, sealed.format, filter).await?;
    let mut writer = SegmentWriter::create(to, info, encoding)?;
    let mut blocks = Vec::new();
    let mut held = 0;
    while let Some(block) = reader.next().await? {
        held += block.raw_bytes();
        blocks.push(block);
        if held >= REWRITE {
            writer.write(std::mem::take(&mut blocks))?;
            held = 0;
        }
    }
    writer.write(blocks)?;
    writer.finish(ranges)
}

#[cfg(test)]
mod tests;
