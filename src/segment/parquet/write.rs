//! Writes Parquet segments.
//!
//! A row group is encoded column by column, and each column goes to the file before the next is begun: beside the
//! blocks that were given, only one encoded column is ever held. Keys, values and headers are not copied on the way to
//! the encoder: it reads them where they lie in the blocks.

use std::hash::Hasher;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryViewArray, BinaryViewBuilder, DictionaryArray, Int32Array, Int64Array, ListArray, StringArray,
    StructArray, TimestampMillisecondArray, UInt8Array,
};
use arrow::buffer::{Buffer, OffsetBuffer};
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef, TimeUnit, UInt8Type};
use bytes::Bytes;
use parquet::arrow::arrow_writer::{ArrowColumnWriter, ArrowRowGroupWriterFactory, compute_leaves};
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::{KeyValue, SortingColumn};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::ColumnPath;
use twox_hash::XxHash64;

use super::{Place, ROW_GROUPS_KEY, leaf, schema};
use crate::error::{Error, Kind, Result, ResultExt};
use crate::record::{Block, Span, TimestampType};
use crate::segment::facts::SegmentFacts;
use crate::segment::spool::Spool;

/// Rows that are encoded in one go.
const BATCH: usize = 1024;
/// Rows of a page of offsets or timestamps. A read by time decodes little more than it wants, at about half a byte a
/// row for the pages' heads and index entries.
const SHORT_PAGE: usize = 256;
/// Bytes of a page of keys, values or headers, before compression: smaller pages compress worse.
const PAGE_BYTES: usize = 1 << 20;

/// Writes one Parquet segment.
pub(in crate::segment) struct ParquetWriter {
    file: SerializedFileWriter<Hashed>,
    places: Vec<Place>,
    columns: ArrowRowGroupWriterFactory,
    fields: SchemaRef,
    timestamp_types: Arc<StringArray>,
}

impl ParquetWriter {
    /// Creates the file.
    pub(in crate::segment) fn create(path: &Path, zstd_level: i32) -> Result<Self> {
        let level =
            ZstdLevel::try_new(zstd_level).or_err(Kind::Config, || format!("zstd has no level {zstd_level}"))?;
        let spool = Hashed { spool: Spool::create(path)?, group: XxHash64::with_seed(0) };
        let schema = schema().or_err(Kind::Internal, || "the Parquet schema of segments is wrong".into())?;
        let properties = Arc::new(properties(Compression::ZSTD(level)));
        let file = SerializedFileWriter::new(spool, schema, properties).map_err(failed)?;
        let fields = arrow_schema();
        let columns = ArrowRowGroupWriterFactory::new(&file, Arc::clone(&fields));
        let names = TimestampType::ALL.map(TimestampType::name);
        Ok(Self {
            file,
            places: Vec::new(),
            columns,
            fields,
            timestamp_types: Arc::new(StringArray::from_iter_values(names)),
        })
    }

    /// Writes one row group. The blocks are in order, and none is empty.
    pub(in crate::segment) fn write(&mut self, blocks: Vec<Block>) -> Result<()> {
        let records = blocks.iter().map(|block| block.len() as u64).sum();
        let rows = Rows::new(blocks);
        self.next_hash()?;
        let position = self.bytes_written();
        let ordinal = self.file.flushed_row_groups().len();
        let writers = self.columns.create_column_writers(ordinal).map_err(failed)?;
        let mut writers = writers.into_iter();
        let mut group = self.file.next_row_group().map_err(failed)?;
        for field in self.fields.fields() {
            // The headers are one field with a column for each of their parts.
            let leaves = if matches!(field.data_type(), DataType::List(_)) { 3 } else { 1 };
            let mut columns: Vec<ArrowColumnWriter> = writers.by_ref().take(leaves).collect();
            rows.encode(field, &self.timestamp_types, |array| {
                for (leaf, column) in compute_leaves(field, &array)?.iter().zip(&mut columns) {
                    column.write(leaf)?;
                }
                Ok(())
            })
            .map_err(failed)?;
            for column in columns {
                column.close().and_then(|chunk| chunk.append_to_row_group(&mut group)).map_err(failed)?;
            }
        }
        group.close().map_err(failed)?;
        let hash = self.next_hash()?;
        self.places.push(Place(position, self.bytes_written() - position, records, format!("{hash:016x}")));
        Ok(())
    }

    /// The hash of what was written since the last call.
    fn next_hash(&mut self) -> Result<u64> {
        self.file.flush().map_err(|error| failed(error.into()))?;
        Ok(std::mem::replace(&mut self.file.inner_mut().group, XxHash64::with_seed(0)).finish())
    }

    /// Bytes that went to the file.
    pub(in crate::segment) fn bytes_written(&self) -> u64 {
        self.file.bytes_written() as u64
    }

    /// Writes the footer.
    pub(in crate::segment) fn finish(mut self, facts: &SegmentFacts) -> Result<Spool> {
        let places = serde_json::to_string(&self.places)
            .or_err(Kind::Internal, || "cannot write the places of row groups as JSON".into())?;
        for (key, value) in facts.to_pairs((ROW_GROUPS_KEY, places))? {
            self.file.append_key_value_metadata(KeyValue::new(key.to_owned(), value));
        }
        Ok(self.file.into_inner().map_err(failed)?.spool)
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

/// The rows of several blocks, one after the other.
struct Rows {
    blocks: Vec<Arc<Block>>,
    /// The blocks' bytes, shared with the arrays that point into them.
    data: Vec<Buffer>,
}

/// Lets arrays point into a block.
struct Data(Arc<Block>);

impl AsRef<[u8]> for Data {
    fn as_ref(&self) -> &[u8] {
        self.0.data()
    }
}

impl Rows {
    fn new(blocks: Vec<Block>) -> Self {
        let blocks: Vec<Arc<Block>> = blocks.into_iter().map(Arc::new).collect();
        let data = blocks.iter().map(|block| Buffer::from(Bytes::from_owner(Data(Arc::clone(block))))).collect();
        Self { blocks, data }
    }

    /// Gives the arrays of one column, [`BATCH`] or [`SHORT_PAGE`] rows at a time.
    fn encode(
        &self,
        field: &Field,
        timestamp_types: &Arc<StringArray>,
        mut sink: impl FnMut(ArrayRef) -> Result<(), ParquetError>,
    ) -> Result<(), ParquetError> {
        let blocks = || self.blocks.iter();
        match field.name().as_str() {
            "partition" => {
                let rows = blocks().flat_map(|block| std::iter::repeat_n(block.partition(), block.len()));
                batches(rows, BATCH, |rows| sink(Arc::new(Int32Array::from_iter_values(rows))))
            }
            "offset" => batches(blocks().flat_map(|block| block.offsets()), SHORT_PAGE, |rows| {
                sink(Arc::new(Int64Array::from_iter_values(rows)))
            }),
            "timestamp" => batches(blocks().flat_map(|block| block.timestamps()), SHORT_PAGE, |rows| {
                sink(Arc::new(TimestampMillisecondArray::from_iter_values(rows).with_timezone("UTC")))
            }),
            "timestamp_type" => batches(blocks().flat_map(|block| block.timestamp_types()), BATCH, |rows| {
                let numbers = UInt8Array::from_iter_values(rows.map(|kind| kind as u8));
                let names: ArrayRef = Arc::clone(timestamp_types) as ArrayRef;
                sink(Arc::new(DictionaryArray::<UInt8Type>::try_new(numbers, names)?))
            }),
            "leader_epoch" => batches(blocks().flat_map(|block| block.leader_epochs()), BATCH, |rows| {
                sink(Arc::new(Int32Array::from_iter_values(rows)))
            }),
            "key" => {
                let rows = blocks().enumerate().flat_map(|(at, block)| block.key_spans().map(move |key| (at, key)));
                batches(rows, BATCH, |rows| sink(Arc::new(self.bytes(rows)?)))
            }
            "value" => {
                let rows = blocks().enumerate().flat_map(|(at, block)| block.value_spans().map(move |key| (at, key)));
                batches(rows, BATCH, |rows| sink(Arc::new(self.bytes(rows)?)))
            }
            _ => {
                let rows = blocks().enumerate().flat_map(|(at, block)| (0..block.len()).map(move |row| (at, row)));
                batches(rows, BATCH, |rows| sink(Arc::new(self.headers(rows)?)))
            }
        }
    }

    /// An array that points into the blocks.
    fn bytes(&self, rows: impl Iterator<Item = (usize, Option<Span>)>) -> Result<BinaryViewArray, ParquetError> {
        let mut views = Views::default();
        for (block, span) in rows {
            views.push(&self.data, block, span)?;
        }
        Ok(views.builder.finish())
    }

    /// The headers of rows that are given by their block and their place in it.
    fn headers(&self, rows: impl Iterator<Item = (usize, usize)>) -> Result<ListArray, ParquetError> {
        let (mut names, mut values, mut name_bytes) = (Views::default(), Views::default(), Views::default());
        let mut ends = vec![0_i32];
        let mut headers = 0;
        for (at, row) in rows {
            let Some(block) = self.blocks.get(at) else { continue };
            for header in block.header_spans(row) {
                let name = block.data().get(header.name.start..header.name.start + header.name.length).unwrap_or(&[]);
                if std::str::from_utf8(name).is_ok() {
                    names.push(&self.data, at, Some(header.name))?;
                    name_bytes.push(&self.data, at, None)?;
                } else {
                    names.builder.try_append_value(String::from_utf8_lossy(name).as_bytes())?;
                    name_bytes.push(&self.data, at, Some(header.name))?;
                }
                values.push(&self.data, at, header.value)?;
                headers += 1;
            }
            ends.push(headers);
        }
        let parts: Vec<ArrayRef> = vec![
            Arc::new(names.builder.finish()),
            Arc::new(values.builder.finish()),
            Arc::new(name_bytes.builder.finish()),
        ];
        let element = Arc::new(StructArray::try_new(header_fields(), parts, None)?);
        Ok(ListArray::try_new(header_element(), OffsetBuffer::new(ends.into()), element, None)?)
    }
}

/// A view array under construction, which knows the block that it pointed into last.
#[derive(Default)]
struct Views {
    builder: BinaryViewBuilder,
    last: Option<(usize, u32)>,
}

impl Views {
    fn push(&mut self, data: &[Buffer], block: usize, span: Option<Span>) -> Result<(), ParquetError> {
        let (Some(span), Some(buffer)) = (span, data.get(block)) else {
            self.builder.append_null();
            return Ok(());
        };
        let number = match self.last {
            Some((last, number)) if last == block => number,
            _ => self.builder.append_block(buffer.clone()),
        };
        self.last = Some((block, number));
        Ok(self.builder.try_append_view(number, span.start as u32, span.length as u32)?)
    }
}

/// Cuts rows into batches.
fn batches<T, I: Iterator<Item = T>>(
    rows: I,
    size: usize,
    mut each: impl FnMut(std::iter::Take<&mut std::iter::Peekable<I>>) -> Result<(), ParquetError>,
) -> Result<(), ParquetError> {
    let mut rows = rows.peekable();
    while rows.peek().is_some() {
        each(rows.by_ref().take(size))?;
    }
    Ok(())
}

/// What the arrays look like that are given to the encoder; the file's schema is [`super::SCHEMA`].
fn arrow_schema() -> SchemaRef {
    let names = DataType::Dictionary(Box::new(DataType::UInt8), Box::new(DataType::Utf8));
    Arc::new(Schema::new(vec![
        Field::new("partition", DataType::Int32, false),
        Field::new("offset", DataType::Int64, false),
        Field::new("timestamp", DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into())), false),
        Field::new("timestamp_type", names, false),
        Field::new("leader_epoch", DataType::Int32, false),
        Field::new("key", DataType::BinaryView, true),
        Field::new("value", DataType::BinaryView, true),
        Field::new("headers", DataType::List(header_element()), false),
    ]))
}

fn header_element() -> Arc<Field> {
    Arc::new(Field::new("element", DataType::Struct(header_fields()), false))
}

fn header_fields() -> Fields {
    Fields::from(vec![
        // Text in the file; here its bytes, which are known to be text.
        Field::new("name", DataType::BinaryView, false),
        Field::new("value", DataType::BinaryView, true),
        Field::new("name_bytes", DataType::BinaryView, true),
    ])
}

fn properties(compression: Compression) -> WriterProperties {
    let column = |path: &str| ColumnPath::from(path.split('.').map(str::to_owned).collect::<Vec<_>>());
    let mut properties = WriterProperties::builder()
        .set_compression(compression)
        .set_write_batch_size(BATCH)
        .set_data_page_size_limit(PAGE_BYTES)
        .set_dictionary_enabled(false)
        .set_statistics_enabled(EnabledStatistics::None)
        .set_max_row_group_row_count(None)
        .set_sorting_columns(Some(
            [leaf::PARTITION, leaf::OFFSET]
                .map(|leaf| SortingColumn { column_idx: leaf as i32, descending: false, nulls_first: false })
                .to_vec(),
        ))
        .set_column_statistics_enabled(column("partition"), EnabledStatistics::Chunk);
    for path in ["offset", "timestamp"] {
        properties = properties
            .set_column_encoding(column(path), Encoding::DELTA_BINARY_PACKED)
            .set_column_statistics_enabled(column(path), EnabledStatistics::Page)
            .set_column_data_page_row_count_limit(column(path), SHORT_PAGE);
    }
    for path in ["partition", "timestamp_type", "leader_epoch", "headers.list.element.name"] {
        properties = properties.set_column_dictionary_enabled(column(path), true);
    }
    let bytes = ["key", "value", "headers.list.element.name", "headers.list.element.value"];
    for path in bytes.into_iter().chain(["headers.list.element.name_bytes"]) {
        properties = properties.set_column_encoding(column(path), Encoding::DELTA_LENGTH_BYTE_ARRAY);
    }
    properties.build()
}

/// What the encoder reports: a failure of the file below it, or a mistake of ours.
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
