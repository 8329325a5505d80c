//! Reads Parquet segments.
//!
//! Of the footer it learns which row groups the filter may want. Each is read with one request, ahead of its turn, and
//! held against its hash before anything of it is decoded. Of one that is wanted in part, the page index says which
//! rows may match; the columns that the filter asks about are decoded for those, the others only for rows that do
//! match.
//!
//! The decoder below is not ours, and was not written against damaged files: it may panic on one. A panic (over a
//! damaged footer, for all else is hashed) is caught and reported as what it is, a damaged file.

use std::collections::VecDeque;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arrow_array::{
    Array, BinaryViewArray, BooleanArray, Int32Array, Int64Array, ListArray, RecordBatch, StringViewArray, StructArray,
    TimestampMillisecondArray,
};
use arrow_schema::{ArrowError, DataType, Field, Fields, Schema, SchemaRef, TimeUnit};
use bytes::Bytes;
use parquet::DecodeResult;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowPredicateFn, ArrowReaderMetadata, ArrowReaderOptions, RowFilter, RowSelection,
};
use parquet::arrow::push_decoder::{ParquetPushDecoder, ParquetPushDecoderBuilder};
use parquet::bloom_filter::Sbbf;
use parquet::errors::ParquetError;
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData, ParquetMetaDataPushDecoder, RowGroupMetaData};
use parquet::file::page_index::column_index::ColumnIndexMetaData;
use parquet::file::statistics::Statistics;
use twox_hash::XxHash64;

use super::{KEY_FILTERS_KEY, Place, ROW_GROUPS_KEY, guard, leaf, schema};
use crate::error::{Error, Kind, Result, ResultExt};
use crate::record::{Block, Header, TimestampType};
use crate::segment::assemble::{Assembler, RowMeta};
use crate::segment::facts::{SegmentFacts, value};
use crate::segment::fetch::{Object, Run};
use crate::segment::filter::{Filter, Wanted};
use crate::segment::limits::{MOST_AT_ONCE, MOST_HEADERS};

/// Bytes at the end of the file that are read first; they hold the footer of all but the largest segments.
const TAIL: u64 = 64 << 10;
/// Bytes of decoded rows that are held at once, about.
const BATCH_BYTES: u64 = 4 << 20;
/// No footer is larger than this, and no page index: that would be the ten thousand row groups of 80 GB.
const MOST_ABOUT: u64 = 16 << 20;
const MOST_INDEX: u64 = 16 << 20;
/// Filters of keys that are larger together are not read; the rows are.
const MOST_FILTERS: u64 = 16 << 20;
/// Before it stand the footer's length and the magic of the format.
const FOOTER_END: u64 = 8;
/// A decoder that asks for bytes of the footer more often than this goes round in a circle.
const MOST_REQUESTS: usize = 8;

/// Reads one Parquet segment.
pub(in crate::segment) struct ParquetReader {
    facts: SegmentFacts,
    metadata: ArrowReaderMetadata,
    filter: Filter,
    assembler: Assembler,
    steps: VecDeque<Step>,
    /// The bytes of the row groups in `steps`.
    run: Run,
    decoder: Option<ParquetPushDecoder>,
    /// Rows that were decoded, and how many of them the assembler has.
    batch: Option<(RecordBatch, usize)>,
    ended: bool,
    has_key_filters: bool,
}

/// A row group to read.
struct Step {
    group: usize,
    place: Place,
    /// The rows that may be wanted; none if all are.
    rows: Option<RowSelection>,
}

impl ParquetReader {
    pub(in crate::segment) async fn open(object: Object, filter: Filter) -> Result<Self> {
        let tail = Tail::read(&object).await?;
        let metadata = tail.metadata(&object).await?;
        let (facts, places) = understand(&metadata)?;
        check(&metadata, &facts, &places)?;
        let mut assembler = Assembler::new(&facts, filter.clone());
        let all = assembler.wants_all();
        let metadata = if all { metadata } else { tail.with_page_index(&object, metadata).await? };
        let mut steps = guarded(|| Ok(plan(&metadata, places, &filter, all)))??;
        let filters = match &filter.with_key {
            Some(_) => KeyFilters::read(&metadata, &tail, &object).await?,
            None => None,
        };
        let has_key_filters = filters.is_some();
        if let Some((filters, key)) = filters.zip(filter.with_key.as_ref()) {
            let planned = steps.len();
            steps = guarded(|| filters.pick(steps, key))?;
            if steps.len() < planned {
                assembler.leave_out();
            }
        }
        let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true).with_schema(arrow_schema());
        let metadata = guarded(|| ArrowReaderMetadata::try_new(Arc::new(metadata), options))?;
        let run = Run::new(object, steps.iter().map(|step| step.place.bytes()));
        Ok(Self {
            facts,
            metadata,
            filter,
            assembler,
            steps,
            run,
            decoder: None,
            batch: None,
            ended: false,
            has_key_filters,
        })
    }

    pub(in crate::segment) fn facts(&self) -> &SegmentFacts {
        &self.facts
    }

    /// Returns whether filters of keys told what has to be read.
    pub(in crate::segment) fn has_key_filters(&self) -> bool {
        self.has_key_filters
    }

    pub(in crate::segment) async fn next(&mut self) -> Result<Option<Block>> {
        loop {
            if let Some(block) = self.assembler.next() {
                return Ok(Some(block));
            }
            if let Some((batch, at)) = self.batch.take() {
                let at = take(&mut self.assembler, &batch, at)?;
                self.batch = (at < batch.num_rows()).then_some((batch, at));
            } else if let Some(decoder) = &mut self.decoder {
                match guarded(|| decoder.try_decode())? {
                    DecodeResult::Data(batch) => self.batch = Some((batch, 0)),
                    DecodeResult::Finished => self.decoder = None,
                    DecodeResult::NeedsData(_) => {
                        return Err(Error::new(Kind::Corrupt, "a row group of it lies outside its place"));
                    }
                }
            } else if let Some(step) = self.steps.pop_front() {
                let bytes = self.run.next().await?;
                let bytes = bytes.ok_or_else(|| Error::new(Kind::Internal, "a planned row group was not read"))?;
                self.decoder = Some(self.begin(step, bytes)?);
            } else if self.ended {
                return Ok(None);
            } else {
                self.ended = true;
                self.assembler.finish()?;
            }
        }
    }

    /// Sets up the decoder of a row group, whose bytes are what was written.
    fn begin(&self, step: Step, bytes: Bytes) -> Result<ParquetPushDecoder> {
        let Step { group, place, rows } = step;
        if format!("{:016x}", XxHash64::oneshot(0, &bytes)) != place.3 {
            let message = format!("its row group at {} of {} bytes is not what it hashes to", place.0, place.1);
            return Err(Error::new(Kind::Corrupt, message));
        }
        guarded(|| Ok(guard::row_group(self.metadata.metadata().row_group(group), place.0, &bytes)))??;
        let raw_bytes = self.metadata.metadata().row_group(group).total_byte_size().max(0) as u64;
        let row_bytes = (raw_bytes / place.2.max(1)).max(1);
        guarded(|| {
            let mut builder = ParquetPushDecoderBuilder::new_with_metadata(self.metadata.clone())
                .with_row_groups(vec![group])
                .with_batch_size((BATCH_BYTES / row_bytes).clamp(16, 4096) as usize);
            if let Some(rows) = rows {
                let filter = row_filter(&self.filter, self.metadata.metadata());
                builder = builder.with_row_selection(rows).with_row_filter(filter);
            }
            let mut decoder = builder.build()?;
            decoder.push_range(place.bytes(), bytes)?;
            Ok(decoder)
        })
    }
}

impl Place {
    fn bytes(&self) -> Range<u64> {
        self.0..self.0.saturating_add(self.1)
    }
}

/// The end of the file.
struct Tail {
    range: Range<u64>,
    bytes: Bytes,
}

impl Tail {
    /// As much of the end as holds the footer, which is looked through before it is decoded.
    async fn read(object: &Object) -> Result<Self> {
        let tail = Self::of(object, TAIL).await?;
        let length =
            tail.bytes.len().checked_sub(FOOTER_END as usize).and_then(|at| tail.bytes.get(at..)?.first_chunk());
        let length = length.map_or(0, |length| u64::from(u32::from_le_bytes(*length)));
        if length > MOST_ABOUT {
            return Err(guard::refused(&format!("its footer has {length} bytes")));
        }
        let tail = if length + FOOTER_END > TAIL { Self::of(object, length + FOOTER_END).await? } else { tail };
        let end = tail.bytes.len().saturating_sub(FOOTER_END as usize);
        // A file without room for it is told by the decoder.
        if let Some(footer) = end.checked_sub(length as usize).and_then(|start| tail.bytes.get(start..end)) {
            guard::footer(footer)?;
        }
        Ok(tail)
    }

    async fn of(object: &Object, length: u64) -> Result<Self> {
        let range = object.size().saturating_sub(length)..object.size();
        Ok(Self { bytes: object.get(range.clone()).await?, range })
    }

    /// The footer.
    async fn metadata(&self, object: &Object) -> Result<ParquetMetaData> {
        let decoder = guarded(|| ParquetMetaDataPushDecoder::try_new(object.size()))?;
        self.decode(object, decoder.with_page_index_policy(PageIndexPolicy::Skip)).await
    }

    /// The footer with its page index.
    async fn with_page_index(&self, object: &Object, metadata: ParquetMetaData) -> Result<ParquetMetaData> {
        let places = guarded(|| Ok(page_indexes(&metadata)))??;
        for (of, place) in places {
            guard::page_index(&self.get(object, place).await?, of)?;
        }
        let decoder = guarded(|| ParquetMetaDataPushDecoder::try_new_with_metadata(object.size(), metadata))?;
        self.decode(object, decoder.with_page_index_policy(PageIndexPolicy::Optional)).await
    }

    /// A range of the file, which may lie in this end of it.
    async fn get(&self, object: &Object, range: Range<u64>) -> Result<Bytes> {
        match range.start.checked_sub(self.range.start) {
            Some(start) if range.end <= self.range.end => {
                Ok(self.bytes.slice(start as usize..(range.end - self.range.start) as usize))
            }
            _ => object.get(range).await,
        }
    }

    async fn decode(&self, object: &Object, mut decoder: ParquetMetaDataPushDecoder) -> Result<ParquetMetaData> {
        guarded(|| decoder.push_range(self.range.clone(), self.bytes.clone()))?;
        let mut asked = 0;
        for _ in 0..MOST_REQUESTS {
            match guarded(|| decoder.try_decode())? {
                DecodeResult::Data(metadata) => return Ok(metadata),
                DecodeResult::NeedsData(ranges) => {
                    for range in ranges {
                        asked += range.end.saturating_sub(range.start);
                        if asked > MOST_INDEX {
                            return Err(guard::refused(&format!("its page index has more than {MOST_INDEX} bytes")));
                        }
                        let bytes = object.get(range.clone()).await?;
                        guarded(|| decoder.push_range(range, bytes))?;
                    }
                }
                DecodeResult::Finished => break,
            }
        }
        Err(Error::new(Kind::Corrupt, "its footer leads nowhere"))
    }
}

/// The filters of the keys of each row group, one after the other.
struct KeyFilters {
    bytes: Bytes,
    lengths: Vec<usize>,
}

impl KeyFilters {
    /// Reads those of a file, if it has any, and holds them against their hash.
    async fn read(metadata: &ParquetMetaData, tail: &Tail, object: &Object) -> Result<Option<Self>> {
        let pairs = metadata.file_metadata().key_value_metadata().into_iter().flatten();
        let Some(hash) = pairs.filter(|pair| pair.key == KEY_FILTERS_KEY).find_map(|pair| pair.value.as_ref()) else {
            return Ok(None);
        };
        let wrong = |what: &str| Error::new(Kind::Corrupt, format!("its filters of keys {what}"));
        let mut place: Option<Range<u64>> = None;
        let mut lengths = Vec::with_capacity(metadata.num_row_groups());
        for group in metadata.row_groups() {
            let column = group.columns().get(leaf::KEY).ok_or_else(|| wrong("are of no column"))?;
            let start = column.bloom_filter_offset().and_then(|start| u64::try_from(start).ok());
            let length = column.bloom_filter_length().and_then(|length| u32::try_from(length).ok());
            let (start, length) = start.zip(length).ok_or_else(|| wrong("lie nowhere"))?;
            let end = start.checked_add(u64::from(length)).filter(|end| *end <= object.size());
            let end = end.ok_or_else(|| wrong("lie outside of it"))?;
            match &mut place {
                Some(place) if place.end == start => place.end = end,
                Some(_) => return Err(wrong("do not lie together")),
                None => place = Some(start..end),
            }
            lengths.push(length as usize);
        }
        let place = place.unwrap_or_default();
        if place.end - place.start > MOST_FILTERS {
            return Ok(None);
        }
        let bytes = if place.is_empty() { Bytes::new() } else { tail.get(object, place).await? };
        if format!("{:016x}", XxHash64::oneshot(0, &bytes)) != *hash {
            return Err(wrong("are not what they hash to"));
        }
        Ok(Some(Self { bytes, lengths }))
    }

    /// Leaves those of the row groups that may have a record with `key`.
    fn pick(&self, steps: VecDeque<Step>, key: &[u8]) -> Result<VecDeque<Step>, ParquetError> {
        let mut at = 0;
        let mut may_have = Vec::with_capacity(self.lengths.len());
        for length in &self.lengths {
            may_have.push(Sbbf::from_bytes(&self.bytes[at..at + length])?.check(key));
            at += length;
        }
        Ok(steps.into_iter().filter(|step| may_have[step.group]).collect())
    }
}

/// Returns where the page indexes lie: two for each column of each row group. Several in one place would be decoded several times.
fn page_indexes(metadata: &ParquetMetaData) -> Result<Vec<(guard::Index, Range<u64>)>> {
    let columns = metadata.row_groups().iter().flat_map(RowGroupMetaData::columns);
    let mut bytes = 0;
    let mut places = Vec::new();
    for column in columns {
        let of = |start: Option<i64>, length: Option<i32>| {
            let (start, length) = (u64::try_from(start?).ok()?, u64::try_from(length?).ok()?);
            Some(start..start.saturating_add(length))
        };
        let offsets = of(column.offset_index_offset(), column.offset_index_length());
        let values = of(column.column_index_offset(), column.column_index_length());
        bytes += offsets.iter().chain(&values).map(|place| place.end - place.start).sum::<u64>();
        places.extend(offsets.map(|place| (guard::Index::Places, place)));
        places.extend(values.map(|place| (guard::Index::Values, place)));
    }
    if bytes > MOST_INDEX {
        return Err(guard::refused(&format!("its page index has {bytes} bytes")));
    }
    Ok(places)
}

/// Runs the decoder, which reports damage by an error or by a panic.
fn guarded<T>(decode: impl FnOnce() -> Result<T, ParquetError>) -> Result<T> {
    const DAMAGED: &str = "it cannot be decoded as Parquet";
    match catch_unwind(AssertUnwindSafe(decode)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(Error::new(Kind::Corrupt, DAMAGED).source(error)),
        Err(panic) => {
            let said = panic.downcast_ref::<String>().map(String::as_str);
            let said = said.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no reason given");
            Err(Error::new(Kind::Corrupt, format!("{DAMAGED}: {said}")))
        }
    }
}

/// Returns what the segment says about itself, and where its row groups lie.
fn understand(metadata: &ParquetMetaData) -> Result<(SegmentFacts, Vec<Place>)> {
    let pairs = metadata.file_metadata().key_value_metadata().into_iter().flatten();
    let pairs: Vec<(&str, &str)> = pairs.filter_map(|pair| Some((pair.key.as_str(), pair.value.as_deref()?))).collect();
    let facts = SegmentFacts::from_pairs(&pairs)?;
    let places = serde_json::from_str(value(&pairs, ROW_GROUPS_KEY).unwrap_or_default())
        .or_err(Kind::Corrupt, || format!("its {ROW_GROUPS_KEY} is not a list of row groups"))?;
    Ok((facts, places))
}

/// Holds the footer against the format and the segment's own facts.
fn check(metadata: &ParquetMetaData, facts: &SegmentFacts, places: &[Place]) -> Result<()> {
    let wrong = |message: String| Err(Error::new(Kind::Corrupt, message));
    let expected = guarded(schema)?;
    if metadata.file_metadata().schema().get_fields() != expected.get_fields() {
        return wrong("its columns are not those of a segment".into());
    }
    let lies = |(group, place): (&RowGroupMetaData, &Place)| {
        group_bytes(group) == place.bytes()
            && u64::try_from(group.num_rows()) == Ok(place.2)
            && place.1 <= MOST_AT_ONCE
            && place.2 <= guard::MOST_VALUES
    };
    let lie = guarded(|| Ok(metadata.row_groups().iter().zip(places).all(lies)))?;
    if !lie || metadata.num_row_groups() != places.len() {
        return wrong(format!("its row groups are not those of its {ROW_GROUPS_KEY}"));
    }
    let records = places.iter().fold(0, |sum: u64, place| sum.saturating_add(place.2));
    if records != facts.records() {
        return wrong(format!("it holds {records} records, and says {}", facts.records()));
    }
    Ok(())
}

/// Returns where a row group lies in the file: from its first column's first byte to its last column's last.
fn group_bytes(group: &RowGroupMetaData) -> Range<u64> {
    let bounds = |(start, length): (u64, u64)| (start, start.saturating_add(length));
    let columns = || group.columns().iter().map(|column| bounds(column.byte_range()));
    columns().map(|(start, _)| start).min().unwrap_or(0)..columns().map(|(_, end)| end).max().unwrap_or(0)
}

/// Returns which row groups are read, and which of their rows.
fn plan(metadata: &ParquetMetaData, places: Vec<Place>, filter: &Filter, all: bool) -> Result<VecDeque<Step>> {
    let mut steps = VecDeque::new();
    for (group, (about, place)) in metadata.row_groups().iter().zip(places).enumerate() {
        let rows = match if all { Wanted::All } else { of_group(about, filter) } {
            Wanted::Nothing => continue,
            Wanted::All => None,
            Wanted::Some => Some(of_pages(metadata, group, filter)?),
        };
        if rows.as_ref().is_none_or(RowSelection::selects_any) {
            steps.push_back(Step { group, place, rows });
        }
    }
    Ok(steps)
}

/// Returns how much is wanted of a row group, by its statistics.
fn of_group(group: &RowGroupMetaData, filter: &Filter) -> Wanted {
    let partitions = match group.column(leaf::PARTITION).statistics() {
        Some(Statistics::Int32(values)) => values.min_opt().copied().zip(values.max_opt().copied()),
        _ => None,
    };
    let of = |leaf: usize| match group.column(leaf).statistics() {
        Some(Statistics::Int64(values)) => values.min_opt().copied().zip(values.max_opt().copied()),
        _ => None,
    };
    match (partitions, of(leaf::OFFSET), of(leaf::TIMESTAMP)) {
        (Some((only, last)), Some(offsets), Some(timestamps)) if only == last => {
            filter.of_partition(only, offsets, timestamps)
        }
        (Some(partitions), _, Some(timestamps)) => {
            filter.of_partitions(partitions).and(filter.of_timestamps(timestamps))
        }
        _ => Wanted::Some,
    }
}

/// The rows of a row group that may be wanted, by the page index.
fn of_pages(metadata: &ParquetMetaData, group: usize, filter: &Filter) -> Result<RowSelection> {
    let index = metadata.page_index_for_row_group(group);
    let rows = metadata.row_group(group).num_rows() as usize;
    let mut selection = RowSelection::from_consecutive_ranges(std::iter::once(0..rows), rows);
    for leaf in [leaf::OFFSET, leaf::TIMESTAMP] {
        let (Some(ColumnIndexMetaData::INT64(values)), Some(places)) =
            (index.column_index(leaf), index.offset_index(leaf))
        else {
            continue;
        };
        let places = places.page_locations();
        let starts = places.iter().map(|place| usize::try_from(place.first_row_index).unwrap_or(usize::MAX));
        let starts: Vec<usize> = starts.chain([rows]).collect();
        if values.num_pages() != places.len() as u64 || !starts.is_sorted() || starts.first() != Some(&0) {
            return Err(Error::new(Kind::Corrupt, "its page index does not fit its row groups"));
        }
        let wanted = starts.windows(2).enumerate().filter_map(|(page, rows)| {
            let of = match (values.min_value(page), values.max_value(page)) {
                (Some(least), Some(greatest)) if leaf == leaf::OFFSET => filter.of_offsets((*least, *greatest)),
                (Some(least), Some(greatest)) => filter.of_timestamps((*least, *greatest)),
                _ => Wanted::Some,
            };
            (of != Wanted::Nothing && rows[0] < rows[1]).then_some(rows[0]..rows[1])
        });
        selection = selection.intersection(&RowSelection::from_consecutive_ranges(wanted, rows));
    }
    Ok(selection)
}

/// The filter as the decoder asks it, before it decodes keys, values and headers.
fn row_filter(filter: &Filter, metadata: &ParquetMetaData) -> RowFilter {
    let leaves = [leaf::PARTITION, leaf::OFFSET, leaf::TIMESTAMP];
    let columns = ProjectionMask::leaves(metadata.file_metadata().schema_descr(), leaves);
    let filter = filter.clone();
    let matches = move |batch: RecordBatch| -> Result<BooleanArray, ArrowError> {
        let wrong = || ArrowError::SchemaError("the columns of the filter are missing".into());
        let partitions = column::<Int32Array>(&batch, 0).ok_or_else(wrong)?;
        let offsets = column::<Int64Array>(&batch, 1).ok_or_else(wrong)?;
        let timestamps = column::<TimestampMillisecondArray>(&batch, 2).ok_or_else(wrong)?;
        let rows = partitions.values().iter().zip(offsets.values()).zip(timestamps.values());
        Ok(rows.map(|((partition, offset), time)| Some(filter.matches(*partition, *offset, *time))).collect())
    };
    RowFilter::new(vec![Box::new(ArrowPredicateFn::new(columns, matches))])
}

fn column<A: 'static>(batch: &RecordBatch, index: usize) -> Option<&A> {
    batch.columns().get(index)?.as_any().downcast_ref()
}

/// The columns of a decoded batch.
struct Columns<'a> {
    partition: &'a Int32Array,
    offset: &'a Int64Array,
    timestamp: &'a TimestampMillisecondArray,
    timestamp_type: &'a StringViewArray,
    leader_epoch: &'a Int32Array,
    key: &'a BinaryViewArray,
    value: &'a BinaryViewArray,
    headers: &'a ListArray,
    name: &'a StringViewArray,
    header_value: &'a BinaryViewArray,
    name_bytes: &'a BinaryViewArray,
}

impl<'a> Columns<'a> {
    fn of(batch: &'a RecordBatch) -> Option<Self> {
        let headers = column::<ListArray>(batch, 7)?;
        let parts = headers.values().as_any().downcast_ref::<StructArray>()?;
        let part = |index: usize| parts.columns().get(index).map(|part| part.as_any());
        Some(Self {
            partition: column(batch, 0)?,
            offset: column(batch, 1)?,
            timestamp: column(batch, 2)?,
            timestamp_type: column(batch, 3)?,
            leader_epoch: column(batch, 4)?,
            key: column(batch, 5)?,
            value: column(batch, 6)?,
            headers,
            name: part(0)?.downcast_ref()?,
            header_value: part(1)?.downcast_ref()?,
            name_bytes: part(2)?.downcast_ref()?,
        })
    }

    fn header(&self, at: usize) -> Header<'a> {
        let name = bytes(self.name_bytes, at).unwrap_or_else(|| self.name.value(at).as_bytes());
        Header { name, value: bytes(self.header_value, at) }
    }
}

fn bytes(array: &BinaryViewArray, at: usize) -> Option<&[u8]> {
    array.is_valid(at).then(|| array.value(at))
}

/// Gives rows of a decoded batch to the assembler, from `at` on and until it has enough; gives how far it came. The same bytes
/// may stand in many rows, so that those together are more than any memory.
fn take(assembler: &mut Assembler, batch: &RecordBatch, mut at: usize) -> Result<usize> {
    let wrong = |message: &str| Error::new(Kind::Corrupt, message);
    let columns = Columns::of(batch).ok_or_else(|| wrong("its columns are not those of a segment"))?;
    let ends = columns.headers.value_offsets();
    while at < batch.num_rows() && !assembler.is_ready() {
        let row = RowMeta {
            partition: columns.partition.value(at),
            offset: columns.offset.value(at),
            timestamp: columns.timestamp.value(at),
            timestamp_type: TimestampType::from_name(columns.timestamp_type.value(at).as_bytes())
                .ok_or_else(|| wrong("it has a timestamp type that does not exist"))?,
            leader_epoch: columns.leader_epoch.value(at),
        };
        if assembler.wants(&row)? {
            let headers = || (ends[at] as usize..ends[at + 1] as usize).map(|at| columns.header(at));
            let length = |part: Option<&[u8]>| part.map_or(0, <[u8]>::len) as u64;
            let (key, value) = (bytes(columns.key, at), bytes(columns.value, at));
            let headers_length = headers().map(|header| length(Some(header.name)) + length(header.value));
            if length(key) + length(value) + headers_length.sum::<u64>() > MOST_AT_ONCE
                || headers().len() > MOST_HEADERS
            {
                return Err(guard::refused("a record is larger than any is"));
            }
            assembler.push(row, key, value, headers());
        }
        at += 1;
    }
    Ok(at)
}

/// Returns how the columns are decoded: bytes stay where they were decompressed.
fn arrow_schema() -> SchemaRef {
    let parts = Fields::from(vec![
        Field::new("name", DataType::Utf8View, false),
        Field::new("value", DataType::BinaryView, true),
        Field::new("name_bytes", DataType::BinaryView, true),
    ]);
    let element = Field::new("element", DataType::Struct(parts), false);
    Arc::new(Schema::new(vec![
        Field::new("partition", DataType::Int32, false),
        Field::new("offset", DataType::Int64, false),
        Field::new("timestamp", DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into())), false),
        Field::new("timestamp_type", DataType::Utf8View, false),
        Field::new("leader_epoch", DataType::Int32, false),
        Field::new("key", DataType::BinaryView, true),
        Field::new("value", DataType::BinaryView, true),
        Field::new("headers", DataType::List(Arc::new(element)), false),
    ]))
}
