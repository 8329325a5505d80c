//! Writes Parquet segments.
//!
//! A row group is encoded column by column, and each column goes to the file before the next is begun: beside the
//! blocks that were given, only one encoded column is ever held. Between two row groups nothing is held but what the
//! footer will say, for a writer is open for every topic.

use std::borrow::Cow;
use std::collections::HashMap;
use std::hash::Hasher;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::bloom_filter::Sbbf;
use parquet::column::writer::ColumnCloseResult;
use parquet::data_type::{DataType, Int32Type, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::metadata::{KeyValue, SortingColumn};
use parquet::file::properties::{BloomFilterPosition, EnabledStatistics, WriterProperties};
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::types::{ColumnPath, SchemaDescriptor};
use twox_hash::XxHash64;

use super::pages::{Entry, Pages};
use super::{KEY_FILTERS_KEY, Place, ROW_GROUPS_KEY, leaf, schema};
use crate::error::{Error, Kind, Result, ResultExt};
use crate::record::{Block, Header, Record, TimestampType};
use crate::segment::facts::SegmentFacts;
use crate::segment::spool::Spool;

/// Numbers that are encoded in one go.
const BATCH: usize = 1024;
/// Rows of a page of offsets or timestamps. A read by time decodes little more than it wants, at about half a byte a
/// row for the pages' heads and index entries.
const SHORT_PAGE: usize = 256;
/// How often a filter of keys lets a row group be read for a key that it does not have. Half as often takes 1.4 bits more a key.
const READ_IN_VAIN: f64 = 0.05;

/// Writes one Parquet segment.
pub(in crate::segment) struct ParquetWriter {
    file: SerializedFileWriter<Hashed>,
    columns: SchemaDescriptor,
    places: Vec<Place>,
    key_filters: KeyFilters,
    level: ZstdLevel,
}

impl ParquetWriter {
    /// Creates the file.
    pub(in crate::segment) fn create(path: &Path, zstd_level: i32) -> Result<Self> {
        let level =
            ZstdLevel::try_new(zstd_level).or_err(Kind::Config, || format!("zstd has no level {zstd_level}"))?;
        let spool = Hashed { spool: Spool::create(path)?, group: XxHash64::with_seed(0) };
        let schema = schema().or_err(Kind::Internal, || "the Parquet schema of segments is wrong".into())?;
        let properties = Arc::new(properties(Compression::ZSTD(level)));
        let columns = SchemaDescriptor::new(Arc::clone(&schema));
        let file = SerializedFileWriter::new(spool, schema, properties).map_err(failed)?;
        Ok(Self { file, columns, places: Vec::new(), key_filters: KeyFilters::default(), level })
    }

    /// Writes one row group. The blocks are in order, and none is empty.
    pub(in crate::segment) fn write(&mut self, blocks: &[Block]) -> Result<()> {
        self.next_hash()?;
        let position = self.position();
        self.write_group(blocks).map_err(failed)?;
        let hash = self.next_hash()?;
        let records = blocks.iter().map(|block| block.len() as u64).sum();
        self.places.push(Place(position, self.position() - position, records, format!("{hash:016x}")));
        Ok(())
    }

    fn write_group(&mut self, blocks: &[Block]) -> Result<(), ParquetError> {
        let columns = &self.columns;
        let mut group = self.file.next_row_group()?;
        let partitions = blocks.iter().flat_map(|block| std::iter::repeat_n(block.partition(), block.len()));
        numbers::<Int32Type>(&mut group, partitions, BATCH)?;
        numbers::<Int64Type>(&mut group, blocks.iter().flat_map(Block::offsets), SHORT_PAGE)?;
        numbers::<Int64Type>(&mut group, blocks.iter().flat_map(Block::timestamps), SHORT_PAGE)?;

        let pages = &mut Pages::new(self.level)?;
        let names = TimestampType::ALL.map(|kind| kind.name().as_bytes());
        let kinds = blocks.iter().flat_map(Block::timestamp_types).map(|kind| kind as u32);
        let kinds = kinds.map(|kind| Entry { first: true, definition: 0, value: Some(kind) });
        let close = pages.dictionary(&columns.column(leaf::TIMESTAMP_TYPE), names.into_iter(), kinds)?;
        group.append_column(&pages.chunk(), close)?;

        numbers::<Int32Type>(&mut group, blocks.iter().flat_map(Block::leader_epochs), BATCH)?;

        let records = || blocks.iter().flat_map(Block::iter);
        let part = |value: Option<_>| Entry { first: true, definition: u32::from(value.is_some()), value };
        let close = pages.bytes(&columns.column(leaf::KEY), records().map(|record| part(record.key)))?;
        let filter = Some(self.key_filters.of_group(records)?);
        group.append_column(&pages.chunk(), ColumnCloseResult { bloom_filter: filter, ..close })?;
        let close = pages.bytes(&columns.column(leaf::VALUE), records().map(|record| part(record.value)))?;
        group.append_column(&pages.chunk(), close)?;

        let names = Names::of(records());
        let mut append = |close: ColumnCloseResult, pages: &Pages| group.append_column(&pages.chunk(), close);
        let words = names.words.iter().map(|name| name.text.as_bytes());
        let close = pages.dictionary(&columns.column(leaf::HEADER_NAME), words, names.entries(records()))?;
        append(close, pages)?;
        let values = headers(records(), |header| header.value);
        let close = pages.bytes(&columns.column(leaf::HEADER_VALUE), values)?;
        append(close, pages)?;
        let exact = names.exact(records());
        let close = pages.bytes(&columns.column(leaf::HEADER_NAME_BYTES), exact)?;
        append(close, pages)?;
        group.close()?;
        Ok(())
    }

    /// The hash of what was written since the last call.
    fn next_hash(&mut self) -> Result<u64> {
        self.file.flush().map_err(|error| failed(error.into()))?;
        Ok(std::mem::replace(&mut self.file.inner_mut().group, XxHash64::with_seed(0)).finish())
    }

    /// Where the next row group begins.
    fn position(&self) -> u64 {
        self.file.bytes_written() as u64
    }

    /// Bytes that went to the file, and those of the filters that wait for its end.
    pub(in crate::segment) fn bytes_written(&self) -> u64 {
        self.position() + self.key_filters.bytes
    }

    /// Writes the footer.
    pub(in crate::segment) fn finish(mut self, facts: &SegmentFacts) -> Result<Spool> {
        let places = serde_json::to_string(&self.places)
            .or_err(Kind::Internal, || "cannot write the places of row groups as JSON".into())?;
        let filters = format!("{:016x}", self.key_filters.hash.finish());
        for (key, value) in facts.to_pairs([(ROW_GROUPS_KEY, places), (KEY_FILTERS_KEY, filters)])? {
            self.file.append_key_value_metadata(KeyValue::new(key.to_owned(), value));
        }
        Ok(self.file.into_inner().map_err(failed)?.spool)
    }
}

/// The filters of keys, which the file gets after its row groups: so that one request reads them all. Until then the encoder holds
/// them, about a byte for each record with a key of its own.
struct KeyFilters {
    /// Of all their bytes.
    hash: XxHash64,
    bytes: u64,
}

impl Default for KeyFilters {
    fn default() -> Self {
        Self { hash: XxHash64::with_seed(0), bytes: 0 }
    }
}

impl KeyFilters {
    /// Makes the filter of a row group, as small as its distinct keys allow.
    fn of_group<'a, I: Iterator<Item = Record<'a>>>(&mut self, records: impl Fn() -> I) -> Result<Sbbf, ParquetError> {
        let keys = || records().filter_map(|record| record.key);
        let mut filter = Sbbf::new_with_ndv_fpp(keys().count() as u64, READ_IN_VAIN)?;
        keys().for_each(|key| filter.insert(key));
        filter.fold_to_target_fpp(READ_IN_VAIN);
        let mut bytes = Vec::new();
        filter.write(&mut bytes)?;
        self.hash.write(&bytes);
        self.bytes += bytes.len() as u64;
        Ok(filter)
    }
}

/// The file, and the hash of the row group that goes to it.
struct Hashed {
    spool: Spool,
    group: XxHash64,
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.spool.write(bytes)?;
        self.group.write(bytes.get(..written).unwrap_or(bytes));
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.spool.flush()
    }
}

/// Writes a column of numbers, in batches that end with a page if that is due.
fn numbers<T: DataType>(
    group: &mut SerializedRowGroupWriter<'_, Hashed>,
    mut values: impl Iterator<Item = T::T>,
    size: usize,
) -> Result<(), ParquetError> {
    let column = group.next_column()?;
    let mut column = column.ok_or_else(|| ParquetError::General("the schema has fewer columns".into()))?;
    let mut batch = Vec::with_capacity(size);
    loop {
        batch.extend(values.by_ref().take(size));
        if batch.is_empty() {
            return column.close();
        }
        column.typed::<T>().write_batch(&batch, None, None)?;
        batch.clear();
    }
}

/// The entries of a part of headers that may be null.
fn headers<'a>(
    records: impl Iterator<Item = Record<'a>>,
    mut part: impl FnMut(Header<'a>) -> Option<&'a [u8]>,
) -> impl Iterator<Item = Entry<&'a [u8]>> {
    // 0: the record has no headers; 1: the part is null; 2: it is there.
    in_rows(records, move |header| {
        let value = part(header);
        (1 + u32::from(value.is_some()), value)
    })
}

/// The entries of headers: at least one for each record.
fn in_rows<'a, V>(
    records: impl Iterator<Item = Record<'a>>,
    mut entry: impl FnMut(Header<'a>) -> (u32, Option<V>),
) -> impl Iterator<Item = Entry<V>> {
    let mut rest = None;
    let mut records = records;
    std::iter::from_fn(move || {
        if let Some(header) = rest.as_mut().and_then(Iterator::next) {
            let (definition, value) = entry(header);
            return Some(Entry { first: false, definition, value });
        }
        let mut headers = records.next()?.headers();
        let first = headers.next();
        rest = Some(headers);
        let (definition, value) = first.map_or((0, None), &mut entry);
        Some(Entry { first: true, definition, value })
    })
}

/// The names of the headers of a row group, each once.
struct Names<'a> {
    words: Vec<Name<'a>>,
    /// The place of each header's name in `words`, header for header.
    places: Vec<u32>,
}

struct Name<'a> {
    bytes: &'a [u8],
    /// The bytes, or the nearest text if they are none.
    text: Cow<'a, str>,
}

impl<'a> Names<'a> {
    fn of(records: impl Iterator<Item = Record<'a>>) -> Self {
        let mut known: HashMap<&[u8], u32> = HashMap::new();
        let mut words: Vec<Name<'a>> = Vec::new();
        let mut places: Vec<u32> = Vec::new();
        let mut last_record = 0;
        for record in records {
            let this_record = places.len();
            for (at, header) in record.headers().enumerate() {
                // Most often a record's headers have the same names as those of the one before.
                let guess = places.get(last_record + at).copied();
                let guess = guess.filter(|place| words.get(*place as usize).is_some_and(|w| w.bytes == header.name));
                places.push(guess.unwrap_or_else(|| {
                    *known.entry(header.name).or_insert_with(|| {
                        words.push(Name { bytes: header.name, text: String::from_utf8_lossy(header.name) });
                        (words.len() - 1) as u32
                    })
                }));
            }
            last_record = this_record;
        }
        Self { words, places }
    }

    /// The entries of the names' text.
    fn entries(&self, records: impl Iterator<Item = Record<'a>>) -> impl Iterator<Item = Entry<u32>> {
        let mut places = self.places.iter();
        in_rows(records, move |_| (1, places.next().copied()))
    }

    /// The entries of the exact names, where they are not text.
    fn exact(&self, records: impl Iterator<Item = Record<'a>>) -> impl Iterator<Item = Entry<&'a [u8]>> {
        let mut places = self.places.iter();
        let is_text =
            |place: &u32| self.words.get(*place as usize).is_some_and(|name| matches!(name.text, Cow::Borrowed(_)));
        headers(records, move |header| (!places.next().is_some_and(is_text)).then_some(header.name))
    }
}

fn properties(compression: Compression) -> WriterProperties {
    let column = |name: &str| ColumnPath::from(name.to_owned());
    let mut properties = WriterProperties::builder()
        .set_created_by(concat!("tidelog version ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_compression(compression)
        .set_write_batch_size(BATCH)
        .set_dictionary_enabled(false)
        .set_bloom_filter_position(BloomFilterPosition::End)
        .set_statistics_enabled(EnabledStatistics::None)
        .set_sorting_columns(Some(
            [leaf::PARTITION, leaf::OFFSET]
                .map(|leaf| SortingColumn { column_idx: leaf as i32, descending: false, nulls_first: false })
                .to_vec(),
        ))
        .set_column_statistics_enabled(column("partition"), EnabledStatistics::Chunk);
    for name in ["offset", "timestamp"] {
        properties = properties
            .set_column_encoding(column(name), Encoding::DELTA_BINARY_PACKED)
            .set_column_statistics_enabled(column(name), EnabledStatistics::Page)
            .set_column_data_page_row_count_limit(column(name), SHORT_PAGE);
    }
    for name in ["partition", "leader_epoch"] {
        properties = properties.set_column_dictionary_enabled(column(name), true);
    }
    properties.build()
}

/// Returns what the encoder reports: a failure of the file below it, or a mistake of ours.
fn failed(error: ParquetError) -> Error {
    const DOING: &str = "cannot write a Parquet segment";
    match error {
        ParquetError::External(source) => match source.downcast::<std::io::Error>() {
            Ok(source) => Error::io(*source, DOING),
            Err(source) => Error::new(Kind::Internal, DOING).source(source),
        },
        other => Error::new(Kind::Internal, DOING).source(other),
    }
}
