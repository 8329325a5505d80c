//! Encodes the columns of bytes: key, value, and the parts of headers.
//!
//! The encoder of the Parquet library copies each value four times on the way to a page, into memory that it asks of
//! the system again for every page; for records of 1 KB that costs as much as half of their compression. This one
//! knows how large a page becomes before it builds it, so it copies once, into buffers that serve the whole row group.
//! The rest of the file is the library's.
//!
//! ```text
//! column chunk   [dictionary page] data page, data page, …
//! page           header (thrift, compact protocol), zstd frame
//! data page      repetition levels (if the column has them), definition levels, values; for levels, see
//!                <https://github.com/apache/parquet-format#nested-encoding>
//! ```

use std::io::Cursor;
use std::sync::Arc;

use bytes::Bytes;
use parquet::basic::{Compression, Encoding, PageType, ZstdLevel};
use parquet::column::writer::ColumnCloseResult;
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::{ColumnChunkMetaData, OffsetIndexBuilder, PageEncodingStats};
use parquet::file::reader::{ChunkReader, Length};
use parquet::schema::types::ColumnDescPtr;
use zstd::bulk::Compressor;
use zstd::zstd_safe::compress_bound;

use super::encoding::{delta, hybrid, width, zigzag};

/// Bytes of a page before compression, about: smaller ones compress worse.
const PAGE_BYTES: usize = 1 << 20;
/// Rows of a page, at most, so that a page of small records can be passed over too.
const PAGE_ROWS: usize = 20_000;

/// Encodes the column chunks of a row group, one after the other.
pub(super) struct Pages {
    compressor: Compressor<'static>,
    compression: Compression,
    plain: Vec<u8>,
    packed: Vec<u8>,
    chunk: Vec<u8>,
}

/// What a row has in a column, or one of several things.
pub(super) struct Entry<V> {
    /// Whether it is the first of its row.
    pub(super) first: bool,
    /// How much of the path to the value there is; the column's greatest level if there is a value.
    pub(super) definition: u32,
    pub(super) value: Option<V>,
}

/// The page under construction.
struct Page<V> {
    rows: usize,
    bytes: usize,
    repetitions: Vec<u32>,
    definitions: Vec<u32>,
    values: Vec<V>,
}

/// What is known of the chunk under construction.
struct Chunk<'c> {
    column: &'c ColumnDescPtr,
    encoding: Encoding,
    dictionary: Option<i64>,
    rows: usize,
    entries: usize,
    uncompressed: usize,
    pages: i32,
    index: OffsetIndexBuilder,
}

impl Pages {
    pub(super) fn new(level: ZstdLevel) -> std::io::Result<Self> {
        Ok(Self {
            compressor: Compressor::new(level.compression_level())?,
            compression: Compression::ZSTD(level),
            plain: Vec::new(),
            packed: Vec::new(),
            chunk: Vec::new(),
        })
    }

    /// Encodes a chunk of bytes as `DELTA_LENGTH_BYTE_ARRAY`.
    pub(super) fn bytes<'v>(
        &mut self,
        column: &ColumnDescPtr,
        entries: impl Iterator<Item = Entry<&'v [u8]>>,
    ) -> Result<ColumnCloseResult> {
        let chunk = self.begin(column, Encoding::DELTA_LENGTH_BYTE_ARRAY);
        let mut lengths = Vec::new();
        self.encode(
            chunk,
            entries,
            |value| value.len(),
            |values, out| {
                lengths.clear();
                lengths.extend(values.iter().map(|value| value.len() as u32));
                delta(&lengths, out);
                values.iter().for_each(|value| out.extend_from_slice(value));
            },
        )
    }

    /// Encodes a chunk of places in a dictionary.
    pub(super) fn dictionary<'v>(
        &mut self,
        column: &ColumnDescPtr,
        dictionary: impl ExactSizeIterator<Item = &'v [u8]>,
        entries: impl Iterator<Item = Entry<u32>>,
    ) -> Result<ColumnCloseResult> {
        let mut chunk = self.begin(column, Encoding::RLE_DICTIONARY);
        let words = dictionary.len();
        let width = width(words.saturating_sub(1) as u32);
        for word in dictionary {
            self.plain.extend_from_slice(&(word.len() as u32).to_le_bytes());
            self.plain.extend_from_slice(word);
        }
        chunk.dictionary = Some(0);
        chunk.uncompressed += self.put_page(PageType::DICTIONARY_PAGE, words, Encoding::PLAIN)?;
        self.encode(
            chunk,
            entries,
            |_| size_of::<u32>(),
            |values, out| {
                out.push(width as u8);
                hybrid(values, width, out);
            },
        )
    }

    /// The chunk that was encoded last.
    pub(super) fn chunk(&self) -> impl ChunkReader + '_ {
        Encoded(&self.chunk)
    }

    fn begin<'c>(&mut self, column: &'c ColumnDescPtr, encoding: Encoding) -> Chunk<'c> {
        self.chunk.clear();
        self.plain.clear();
        let index = OffsetIndexBuilder::new();
        Chunk { column, encoding, dictionary: None, rows: 0, entries: 0, uncompressed: 0, pages: 0, index }
    }

    fn encode<V>(
        &mut self,
        mut chunk: Chunk<'_>,
        entries: impl Iterator<Item = Entry<V>>,
        size: impl Fn(&V) -> usize,
        mut encode: impl FnMut(&[V], &mut Vec<u8>),
    ) -> Result<ColumnCloseResult> {
        let data = self.chunk.len();
        let mut page = Page { rows: 0, bytes: 0, repetitions: Vec::new(), definitions: Vec::new(), values: Vec::new() };
        for entry in entries {
            // A row's entries are never in two pages, which the offset index could not describe.
            if entry.first && (page.bytes >= PAGE_BYTES || page.rows >= PAGE_ROWS) {
                self.end_page(&mut chunk, &mut page, &mut encode)?;
            }
            page.rows += usize::from(entry.first);
            page.repetitions.push(u32::from(!entry.first));
            page.definitions.push(entry.definition);
            if let Some(value) = entry.value {
                page.bytes += size(&value);
                page.values.push(value);
            }
        }
        if page.rows > 0 {
            self.end_page(&mut chunk, &mut page, &mut encode)?;
        }
        self.close(chunk, data)
    }

    fn end_page<V>(
        &mut self,
        chunk: &mut Chunk<'_>,
        page: &mut Page<V>,
        encode: &mut impl FnMut(&[V], &mut Vec<u8>),
    ) -> Result<()> {
        self.plain.reserve(page.bytes + page.bytes / 8);
        let greatest = [chunk.column.max_rep_level(), chunk.column.max_def_level()];
        for (levels, greatest) in [&page.repetitions, &page.definitions].into_iter().zip(greatest) {
            if greatest > 0 {
                let start = self.plain.len();
                self.plain.extend_from_slice(&[0; 4]);
                hybrid(levels, width(greatest as u32), &mut self.plain);
                let length = (self.plain.len() - start - 4) as u32;
                self.plain[start..start + 4].copy_from_slice(&length.to_le_bytes());
            }
        }
        encode(&page.values, &mut self.plain);
        let start = self.chunk.len();
        chunk.uncompressed += self.put_page(PageType::DATA_PAGE, page.definitions.len(), chunk.encoding)?;
        chunk.index.append_row_count(page.rows as i64);
        chunk.index.append_offset_and_size(start as i64, small(self.chunk.len() - start)?);
        chunk.rows += page.rows;
        chunk.entries += page.definitions.len();
        chunk.pages += 1;
        (page.rows, page.bytes) = (0, 0);
        page.repetitions.clear();
        page.definitions.clear();
        page.values.clear();
        Ok(())
    }

    /// Compresses what is in `plain` and appends it as a page; gives the page's size before compression.
    fn put_page(&mut self, page: PageType, entries: usize, encoding: Encoding) -> Result<usize> {
        self.packed.clear();
        self.packed.reserve(compress_bound(self.plain.len()));
        self.compressor.compress_to_buffer(&self.plain, &mut self.packed)?;
        let start = self.chunk.len();
        let sizes = [small(self.plain.len())?, small(self.packed.len())?];
        header(page, sizes, small(entries)?, encoding, &mut self.chunk);
        let uncompressed = self.chunk.len() - start + self.plain.len();
        self.chunk.extend_from_slice(&self.packed);
        self.plain.clear();
        // A value of many megabytes does not keep its memory.
        self.plain.shrink_to(2 * PAGE_BYTES);
        self.packed.shrink_to(2 * PAGE_BYTES);
        Ok(uncompressed)
    }

    /// Returns what the footer says of the chunk; its data pages begin at `data`.
    fn close(&mut self, chunk: Chunk<'_>, data: usize) -> Result<ColumnCloseResult> {
        let mut encodings = vec![Encoding::RLE, chunk.encoding];
        let of_pages =
            PageEncodingStats { page_type: PageType::DATA_PAGE, encoding: chunk.encoding, count: chunk.pages };
        let mut statistics = vec![of_pages];
        if chunk.dictionary.is_some() {
            encodings.push(Encoding::PLAIN);
            let page_type = PageType::DICTIONARY_PAGE;
            statistics.insert(0, PageEncodingStats { page_type, encoding: Encoding::PLAIN, count: 1 });
        }
        let metadata = ColumnChunkMetaData::builder(Arc::clone(chunk.column))
            .set_compression(self.compression)
            .set_encodings(encodings)
            .set_page_encoding_stats(statistics)
            .set_total_compressed_size(self.chunk.len() as i64)
            .set_total_uncompressed_size(chunk.uncompressed as i64)
            .set_num_values(chunk.entries as i64)
            .set_dictionary_page_offset(chunk.dictionary)
            .set_data_page_offset(data as i64)
            .build()?;
        Ok(ColumnCloseResult {
            bytes_written: self.chunk.len() as u64,
            rows_written: chunk.rows as u64,
            metadata,
            bloom_filter: None,
            column_index: None,
            offset_index: Some(chunk.index.build()),
        })
    }
}

/// A page's header in thrift's compact protocol: `PageHeader` of
/// <https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift>. A field begins with a byte of
/// the distance to the last field's number and of its type (5: i32, 12: struct); 0 ends a struct.
fn header(page: PageType, sizes: [i32; 2], entries: i32, encoding: Encoding, out: &mut Vec<u8>) {
    const NEXT_I32: u8 = 0x15;
    let [uncompressed, compressed] = sizes;
    let (of_page, numbers) = match page {
        // Field 7, dictionary_page_header: num_values, encoding.
        PageType::DICTIONARY_PAGE => (0x4c, &[entries, encoding as i32][..]),
        // Field 5, data_page_header: num_values, encoding, definition_level_encoding, repetition_level_encoding.
        _ => (0x2c, &[entries, encoding as i32, Encoding::RLE as i32, Encoding::RLE as i32][..]),
    };
    for number in [page as i32, uncompressed, compressed] {
        out.push(NEXT_I32);
        zigzag(number.into(), out);
    }
    out.push(of_page);
    for number in numbers {
        out.push(NEXT_I32);
        zigzag((*number).into(), out);
    }
    out.extend_from_slice(&[0, 0]);
}

/// A number that a page's header can hold.
fn small(number: usize) -> Result<i32> {
    i32::try_from(number).map_err(|_| ParquetError::General(format!("a page of {number} bytes is too large")))
}

/// An encoded chunk, for the library to copy into the file.
struct Encoded<'a>(&'a [u8]);

impl Length for Encoded<'_> {
    fn len(&self) -> u64 {
        self.0.len() as u64
    }
}

impl<'a> ChunkReader for Encoded<'a> {
    type T = Cursor<&'a [u8]>;

    fn get_read(&self, start: u64) -> Result<Self::T> {
        Ok(Cursor::new(self.0.get(start as usize..).unwrap_or_default()))
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        let bytes = self.0.get(start as usize..).and_then(|bytes| bytes.get(..length));
        bytes.map(Bytes::copy_from_slice).ok_or_else(|| ParquetError::EOF("a chunk ends too early".into()))
    }
}
