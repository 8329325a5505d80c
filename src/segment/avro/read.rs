//! Reads Avro segments: the header with its index, then the blocks that the filter may want, and no others.

use bytes::Bytes;
use zstd::bulk::Decompressor;
use zstd::zstd_safe::get_frame_content_size;

use super::cursor::{Bad, Cursor};
use super::{CODEC, CODEC_KEY, Entry, INDEX_KEY, MAGIC, SCHEMA, SCHEMA_KEY, Sync};
use crate::error::{Error, Kind, Result, ResultExt};
use crate::record::{Block, Header, TimestampType};
use crate::segment::assemble::{Assembler, RowMeta};
use crate::segment::facts::{SegmentFacts, value};
use crate::segment::fetch::{Object, Run};
use crate::segment::filter::{Filter, Wanted};
use crate::segment::limits::{MOST_AT_ONCE, MOST_HEADERS};

/// Bytes at the start of the file that are read first; they hold the header of all but the largest segments.
const HEAD: u64 = 64 << 10;
/// No header is larger than this: that would be an index of more than half a million blocks.
const LARGEST_HEAD: u64 = 64 << 20;
/// No header says more than this of the file.
const MOST_PAIRS: usize = 1 << 10;

/// Reads one Avro segment.
pub(in crate::segment) struct AvroReader {
    facts: SegmentFacts,
    sync: Sync,
    assembler: Assembler,
    /// The blocks to read, and what the index says of them.
    blocks: std::vec::IntoIter<Entry>,
    run: Run,
    decompressor: Decompressor<'static>,
    /// The block that is being decoded, decompressed.
    raw: Vec<u8>,
    /// Where it lies behind the header, how far it is decoded, and how many records are left.
    position: u64,
    decoded: usize,
    left: u64,
    ended: bool,
}

impl AvroReader {
    pub(in crate::segment) async fn open(object: Object, filter: Filter) -> Result<Self> {
        let head = Head::read(&object).await?;
        check_index(&head, object.size())?;
        let wanted = |entry: &Entry| {
            entry
                .3
                .iter()
                .any(|part| filter.of_partition(part.0, (part.2, part.3), (part.4, part.5)) != Wanted::Nothing)
        };
        let blocks: Vec<Entry> = head.index.into_iter().filter(wanted).collect();
        let start = head.length;
        let run = Run::new(object, blocks.iter().map(|block| start + block.0..start + block.0 + block.1));
        let decompressor = Decompressor::new().or_err(Kind::Internal, || "cannot set up zstd".into())?;
        Ok(Self {
            assembler: Assembler::new(&head.facts, filter),
            facts: head.facts,
            sync: head.sync,
            blocks: blocks.into_iter(),
            run,
            decompressor,
            raw: Vec::new(),
            position: 0,
            decoded: 0,
            left: 0,
            ended: false,
        })
    }

    pub(in crate::segment) fn facts(&self) -> &SegmentFacts {
        &self.facts
    }

    pub(in crate::segment) async fn next(&mut self) -> Result<Option<Block>> {
        loop {
            if let Some(block) = self.assembler.next() {
                return Ok(Some(block));
            }
            if self.ended {
                return Ok(None);
            }
            if self.left > 0 {
                self.decode().map_err(|error| self.in_block(error))?;
                continue;
            }
            match (self.blocks.next(), self.run.next().await?) {
                (Some(entry), Some(bytes)) => {
                    self.position = entry.0;
                    self.unpack(&entry, &bytes).map_err(|error| self.in_block(error))?;
                }
                _ => {
                    self.ended = true;
                    self.assembler.finish()?;
                }
            }
        }
    }

    fn in_block(&self, error: Error) -> Error {
        error.context(format_args!("its block at {} after the header", self.position))
    }

    /// Decompresses a block.
    fn unpack(&mut self, entry: &Entry, bytes: &Bytes) -> Result<()> {
        let (records, packed) = parse_block(bytes, &self.sync).map_err(Bad::report)?;
        if records != entry.3.iter().fold(0, |sum: u64, part| sum.saturating_add(part.1)) {
            return Err(Bad::Wrong("its number of records is not that of the index").report());
        }
        unpack(&mut self.decompressor, packed, entry.2, &mut self.raw)?;
        (self.decoded, self.left) = (0, records);
        if records == 0 { self.is_decoded() } else { Ok(()) }
    }

    /// Gives rows of the block to the assembler until it has enough.
    fn decode(&mut self) -> Result<()> {
        let mut cursor = Cursor::new(self.raw.get(self.decoded..).unwrap_or_default());
        let mut headers = Vec::new();
        while self.left > 0 && !self.assembler.is_ready() {
            let (row, key, value) = parse_record(&mut cursor, &mut headers).map_err(Bad::report)?;
            if self.assembler.wants(&row)? {
                self.assembler.push(row, key, value, headers.iter().copied());
            }
            self.left -= 1;
        }
        self.decoded = self.raw.len() - cursor.rest().len();
        if self.left == 0 { self.is_decoded() } else { Ok(()) }
    }

    /// Called behind the last record of a block.
    fn is_decoded(&mut self) -> Result<()> {
        if self.decoded != self.raw.len() {
            return Err(Bad::Wrong("bytes follow its last record").report());
        }
        // A large block does not keep its memory.
        self.raw.clear();
        self.raw.shrink_to(LEAST_KEPT);
        self.decoded = 0;
        Ok(())
    }
}

/// What the buffer of decompressed data keeps between blocks.
const LEAST_KEPT: usize = 4 << 20;

/// Decompresses a block. Its size is known from the index and, again, from the zstd frame, and cannot be larger than
/// the compressed bytes allow, so that damaged bytes never ask for much memory.
fn unpack(decompressor: &mut Decompressor<'_>, packed: &[u8], size: u64, raw: &mut Vec<u8>) -> Result<()> {
    // A block of a zstd frame takes at least 4 bytes and yields at most 128 KiB (RFC 8878, 3.1.1.2).
    let most = (packed.len() as u64 / 4 + 1) << 17;
    if get_frame_content_size(packed).ok().flatten() != Some(size) || size > most.min(MOST_AT_ONCE) {
        return Err(Error::new(Kind::Corrupt, format!("its data are not a zstd frame of {size} bytes")));
    }
    raw.clear();
    raw.try_reserve_exact(size as usize).or_err(Kind::Full, || format!("no memory for {size} bytes"))?;
    let unpacked = decompressor.decompress_to_buffer(packed, raw);
    let unpacked = unpacked.or_err(Kind::Corrupt, || "its data cannot be decompressed".into())?;
    if unpacked as u64 != size {
        return Err(Error::new(Kind::Corrupt, format!("its data are {unpacked} bytes, not {size}")));
    }
    Ok(())
}

/// A block: how many records it has, and its compressed data.
fn parse_block<'a>(bytes: &'a [u8], sync: &Sync) -> Result<(u64, &'a [u8]), Bad> {
    let mut cursor = Cursor::new(bytes);
    let records = cursor.length()? as u64;
    let packed = cursor.bytes()?;
    if cursor.array()? != *sync || !cursor.rest().is_empty() {
        return Err(Bad::Wrong("it does not end with the sync marker"));
    }
    Ok((records, packed))
}

/// A record: what it says, its key, its value; its headers go to `headers`.
#[allow(clippy::type_complexity, reason = "the parts of a record, named by its only caller")]
fn parse_record<'a>(
    cursor: &mut Cursor<'a>,
    headers: &mut Vec<Header<'a>>,
) -> Result<(RowMeta, Option<&'a [u8]>, Option<&'a [u8]>), Bad> {
    let partition = cursor.int()?;
    let offset = cursor.long()?;
    let timestamp = cursor.long()?;
    let number = u8::try_from(cursor.long()?).ok();
    let timestamp_type =
        number.and_then(TimestampType::from_number).ok_or(Bad::Wrong("a timestamp type does not exist"))?;
    let leader_epoch = cursor.int()?;
    let key = cursor.nullable()?;
    let value = cursor.nullable()?;
    headers.clear();
    loop {
        let count = cursor.count()?;
        if count == 0 {
            break;
        }
        for _ in 0..count {
            if headers.len() == MOST_HEADERS {
                return Err(Bad::Wrong("a record has more headers than any has"));
            }
            let text = cursor.string()?;
            let value = cursor.nullable()?;
            let name = cursor.nullable()?.unwrap_or(text.as_bytes());
            headers.push(Header { name, value });
        }
    }
    Ok((RowMeta { partition, offset, timestamp, timestamp_type, leader_epoch }, key, value))
}

/// What stands before the blocks.
struct Head {
    facts: SegmentFacts,
    index: Vec<Entry>,
    sync: Sync,
    length: u64,
}

impl Head {
    async fn read(object: &Object) -> Result<Self> {
        let mut bytes = object.get(0..HEAD.min(object.size())).await?;
        loop {
            match Self::parse(&bytes) {
                Err(Bad::Short) => {
                    let have = bytes.len() as u64;
                    let more = (have * 4).min(object.size()).min(LARGEST_HEAD);
                    if more <= have {
                        return Err(Bad::Short.report());
                    }
                    bytes = object.get(0..more).await?;
                }
                parsed => return parsed.map_err(Bad::report)?,
            }
        }
    }

    /// The header, if the bytes hold all of it; what it says is looked at only then.
    fn parse(bytes: &[u8]) -> Result<Result<Self>, Bad> {
        let mut cursor = Cursor::new(bytes);
        if cursor.array()? != MAGIC {
            return Err(Bad::Wrong("it does not begin as an object container file"));
        }
        let mut pairs = Vec::new();
        loop {
            let count = cursor.count()?;
            if count == 0 {
                break;
            }
            for _ in 0..count {
                if pairs.len() == MOST_PAIRS {
                    return Err(Bad::Wrong("its metadata have too many keys"));
                }
                pairs.push((cursor.string()?, cursor.bytes()?));
            }
        }
        let sync = cursor.array()?;
        let length = (bytes.len() - cursor.rest().len()) as u64;
        Ok(Self::understand(&pairs, sync, length))
    }

    fn understand<'a>(pairs: &[(&'a str, &'a [u8])], sync: Sync, length: u64) -> Result<Self> {
        let text = |(key, value): &(&'a str, &'a [u8])| Some((*key, std::str::from_utf8(value).ok()?));
        let pairs: Vec<(&str, &str)> = pairs.iter().filter_map(text).collect();
        let facts = SegmentFacts::from_pairs(&pairs)?;
        let value = |key: &str| value(&pairs, key);
        if value(SCHEMA_KEY) != Some(SCHEMA) {
            return Err(Error::new(Kind::Corrupt, format!("its {SCHEMA_KEY} is not that of a segment")));
        }
        if value(CODEC_KEY) != Some(CODEC) {
            return Err(Error::new(Kind::Corrupt, format!("its {CODEC_KEY} is not {CODEC}")));
        }
        let index = serde_json::from_str(value(INDEX_KEY).unwrap_or_default())
            .or_err(Kind::Corrupt, || format!("its {INDEX_KEY} is not a list of blocks"))?;
        Ok(Self { facts, index, sync, length })
    }
}

/// The blocks follow each other from the header to the end of the file, and hold as many records as the facts say.
fn check_index(head: &Head, size: u64) -> Result<()> {
    let wrong = |message: String| Err(Error::new(Kind::Corrupt, message));
    let body = size.saturating_sub(head.length);
    let mut end = 0_u64;
    let mut records = 0_u64;
    for Entry(position, length, _, parts) in &head.index {
        if *position != end || *length > (body - end).min(MOST_AT_ONCE) {
            return wrong(format!("its {INDEX_KEY} has a block of {length} bytes at {position} of {body}"));
        }
        end += length;
        records = parts.iter().fold(records, |sum, part| sum.saturating_add(part.1));
    }
    if end != body {
        return wrong(format!("its {INDEX_KEY} ends at {end} of {body} bytes"));
    }
    if records != head.facts.records() {
        return wrong(format!("it holds {records} records, and says {}", head.facts.records()));
    }
    Ok(())
}
