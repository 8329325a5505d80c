//! What one Kafka record is, and the [`Block`] that carries many of one partition.
//!
//! The consumer fills blocks, the segment writers encode them, the segment readers give them back, and a replay sends
//! them out. Nothing in between owns a record of its own: a [`Record`] borrows from its block.
//!
//! ```text
//! block of partition 3
//!   data     key0 value0 name value name value │ key1 value1 │ key2 value2 name value │ …
//!   rows     { offset, timestamp, type, epoch, start of its bytes, key length, value length, first header } per record
//!   headers  { name length, value length } per header
//! ```
//!
//! So a record costs three appends to vectors that grow by doubling, and no allocation of its own. Lengths are those
//! of Kafka's protocol, which has them as 32-bit integers, so [`u32::MAX`] is free to stand for null.

/// What a record's timestamp means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum TimestampType {
    /// The record has none (message format 0).
    NotAvailable = 0,
    /// The producer set it.
    Create = 1,
    /// The broker set it when it appended the record.
    LogAppend = 2,
}

impl TimestampType {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::NotAvailable, Self::Create, Self::LogAppend];

    /// The name, as Kafka's own tools and the segment files have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::NotAvailable => "NoTimestampType",
            Self::Create => "CreateTime",
            Self::LogAppend => "LogAppendTime",
        }
    }

    /// The type that [`TimestampType::name`] writes so.
    pub fn from_name(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name().as_bytes() == name)
    }

    /// The type with this number in librdkafka (`rd_kafka_timestamp_type_t`) and in Avro segments.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }
}

/// One header of a record. Names may repeat, and neither part need be text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header<'a> {
    /// The name.
    pub name: &'a [u8],
    /// The value; null is not empty.
    pub value: Option<&'a [u8]>,
}

/// One record, borrowed from its block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// The offset.
    pub offset: i64,
    /// The timestamp in ms since 1970; -1 is Kafka's "none".
    pub timestamp: i64,
    /// What the timestamp means.
    pub timestamp_type: TimestampType,
    /// The leader epoch of the record's batch; -1 is Kafka's "unknown".
    pub leader_epoch: i32,
    /// The key; null is not empty.
    pub key: Option<&'a [u8]>,
    /// The value; null (a tombstone) is not empty.
    pub value: Option<&'a [u8]>,
    headers: &'a [HeaderRow],
    header_bytes: &'a [u8],
}

impl<'a> Record<'a> {
    /// The headers, in their order.
    pub fn headers(&self) -> impl Iterator<Item = Header<'a>> + use<'a> {
        let mut rest = self.header_bytes;
        self.headers.iter().map(move |header| {
            let (name, after) = rest.split_at_checked(header.name as usize).unwrap_or((rest, &[]));
            let (value, after) = take(after, header.value);
            rest = after;
            Header { name, value }
        })
    }

    /// Returns how many headers there are.
    pub fn header_count(&self) -> usize {
        self.headers.len()
    }

    /// Bytes of the key, the value and the headers' names and values.
    pub fn size(&self) -> u64 {
        let length = |bytes: Option<&[u8]>| bytes.map_or(0, <[u8]>::len);
        (length(self.key) + length(self.value) + self.header_bytes.len()) as u64
    }
}

/// Stands for null among lengths.
const NULL: u32 = u32::MAX;

#[derive(Debug, Clone, Copy)]
struct Row {
    offset: i64,
    timestamp: i64,
    /// Where the record's bytes begin in `data`; they end where the next one's begin.
    start: usize,
    key: u32,
    value: u32,
    /// The record's first header in `headers`; its last is before the next record's first.
    headers: u32,
    leader_epoch: i32,
    timestamp_type: TimestampType,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct HeaderRow {
    name: u32,
    value: u32,
}

/// An append-only arena of records of one partition, in offset order.
#[derive(Debug)]
pub struct Block {
    partition: i32,
    data: Vec<u8>,
    rows: Vec<Row>,
    headers: Vec<HeaderRow>,
    largest: u64,
    timestamps: Option<(i64, i64)>,
}

impl Block {
    /// An empty block that holds `capacity` bytes before it grows. Growth doubles, so a quiet partition may begin with
    /// a small one.
    pub fn new(partition: i32, capacity: usize) -> Self {
        let data = Vec::with_capacity(capacity);
        Self { partition, data, rows: Vec::new(), headers: Vec::new(), largest: 0, timestamps: None }
    }

    /// Empties the block, for records of `partition`; it keeps its memory.
    pub fn clear(&mut self, partition: i32) {
        self.partition = partition;
        self.data.clear();
        self.rows.clear();
        self.headers.clear();
        self.largest = 0;
        self.timestamps = None;
    }

    /// Returns how many bytes of keys, values and headers it holds before it grows.
    pub fn capacity(&self) -> usize {
        self.data.capacity()
    }

    /// The partition of all its records.
    pub fn partition(&self) -> i32 {
        self.partition
    }

    /// Appends a record, whose bytes are copied in. Its offset must lie above the last one's.
    #[allow(clippy::too_many_arguments, reason = "one argument for each part of a Kafka record")]
    pub fn push<'h>(
        &mut self,
        offset: i64,
        timestamp: i64,
        timestamp_type: TimestampType,
        leader_epoch: i32,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: impl Iterator<Item = Header<'h>>,
    ) {
        let start = self.data.len();
        let first_header = self.headers.len() as u32;
        self.data.reserve(key.map_or(0, <[u8]>::len) + value.map_or(0, <[u8]>::len));
        let key = append(&mut self.data, key);
        let value = append(&mut self.data, value);
        for header in headers {
            let name = append(&mut self.data, Some(header.name));
            let value = append(&mut self.data, header.value);
            self.headers.push(HeaderRow { name, value });
        }
        self.largest = self.largest.max((self.data.len() - start) as u64);
        let (least, greatest) = self.timestamps.unwrap_or((timestamp, timestamp));
        self.timestamps = Some((least.min(timestamp), greatest.max(timestamp)));
        self.rows.push(Row {
            offset,
            timestamp,
            start,
            key,
            value,
            headers: first_header,
            leader_epoch,
            timestamp_type,
        });
    }

    /// Returns how many records it holds.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Returns whether it holds no record.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Bytes of all keys, values and headers.
    pub fn raw_bytes(&self) -> u64 {
        self.data.len() as u64
    }

    /// Bytes that it really holds of the process's memory.
    pub fn memory(&self) -> usize {
        size_of::<Self>()
            + self.data.capacity()
            + self.rows.capacity() * size_of::<Row>()
            + self.headers.capacity() * size_of::<HeaderRow>()
    }

    /// Bytes (key, value, headers) of the largest record.
    pub fn largest_record(&self) -> u64 {
        self.largest
    }

    /// The first record's offset.
    pub fn first_offset(&self) -> Option<i64> {
        self.rows.first().map(|row| row.offset)
    }

    /// The last record's offset.
    pub fn last_offset(&self) -> Option<i64> {
        self.rows.last().map(|row| row.offset)
    }

    /// The least timestamp.
    pub fn min_timestamp(&self) -> Option<i64> {
        self.timestamps.map(|(least, _)| least)
    }

    /// The greatest timestamp.
    pub fn max_timestamp(&self) -> Option<i64> {
        self.timestamps.map(|(_, greatest)| greatest)
    }

    /// The record at `index`, counted from 0.
    pub fn get(&self, index: usize) -> Option<Record<'_>> {
        let row = self.rows.get(index)?;
        let (end, last_header) = self.ends(index);
        let (key, rest) = take(self.data.get(row.start..end)?, row.key);
        let (value, header_bytes) = take(rest, row.value);
        Some(Record {
            offset: row.offset,
            timestamp: row.timestamp,
            timestamp_type: row.timestamp_type,
            leader_epoch: row.leader_epoch,
            key,
            value,
            headers: self.headers.get(row.headers as usize..last_header)?,
            header_bytes,
        })
    }

    /// The records, in offset order.
    pub fn iter(&self) -> impl Iterator<Item = Record<'_>> {
        (0..self.len()).filter_map(|index| self.get(index))
    }

    /// The offsets, one a record.
    pub fn offsets(&self) -> impl Iterator<Item = i64> {
        self.rows.iter().map(|row| row.offset)
    }

    /// The timestamps, one a record.
    pub fn timestamps(&self) -> impl Iterator<Item = i64> {
        self.rows.iter().map(|row| row.timestamp)
    }

    /// Returns what the timestamps mean, one a record.
    pub fn timestamp_types(&self) -> impl Iterator<Item = TimestampType> {
        self.rows.iter().map(|row| row.timestamp_type)
    }

    /// The leader epochs, one a record.
    pub fn leader_epochs(&self) -> impl Iterator<Item = i32> {
        self.rows.iter().map(|row| row.leader_epoch)
    }

    /// The leader epoch of the last record; -1 if it is not known.
    pub fn last_leader_epoch(&self) -> Option<i32> {
        self.rows.last().map(|row| row.leader_epoch)
    }

    /// Returns where the bytes and the headers of the record at `index` end.
    fn ends(&self, index: usize) -> (usize, usize) {
        self.rows
            .get(index + 1)
            .map_or((self.data.len(), self.headers.len()), |next| (next.start, next.headers as usize))
    }
}

/// Appends `bytes` and gives their length as a row has it.
fn append(data: &mut Vec<u8>, bytes: Option<&[u8]>) -> u32 {
    let Some(bytes) = bytes else { return NULL };
    debug_assert!(bytes.len() < NULL as usize, "Kafka's lengths are 32-bit integers");
    data.extend_from_slice(bytes);
    bytes.len() as u32
}

/// Splits off what a length of a row stands for. The lengths were written together with the bytes, so they fit.
fn take(bytes: &[u8], field: u32) -> (Option<&[u8]>, &[u8]) {
    if field == NULL {
        return (None, bytes);
    }
    let (part, rest) = bytes.split_at_checked(field as usize).unwrap_or((bytes, &[]));
    (Some(part), rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(block: &mut Block, offset: i64, key: Option<&[u8]>, value: Option<&[u8]>, headers: &[Header<'_>]) {
        block.push(offset, 1_000 - offset, TimestampType::Create, 4, key, value, headers.iter().copied());
    }

    #[test]
    fn records_come_back_as_they_were_pushed() {
        let headers = [
            Header { name: b"a", value: Some(b"1") },
            Header { name: b"a", value: None },
            Header { name: b"", value: Some(b"") },
        ];
        let mut block = Block::new(7, 0);
        push(&mut block, 10, Some(b"key"), None, &headers);
        push(&mut block, 12, None, Some(b""), &[]);
        push(&mut block, 13, Some(b""), Some(b"value"), &headers[1..]);
        let parts = |record: &Record<'_>| (record.offset, record.key.map(<[u8]>::len), record.value.map(<[u8]>::len));
        assert_eq!(
            block.iter().map(|record| parts(&record)).collect::<Vec<_>>(),
            [(10, Some(3), None), (12, None, Some(0)), (13, Some(0), Some(5))]
        );
        assert_eq!(block.get(0).unwrap().headers().collect::<Vec<_>>(), headers);
        assert_eq!(block.get(1).unwrap().header_count(), 0);
        assert_eq!(block.get(2).unwrap().headers().collect::<Vec<_>>(), headers[1..]);
        assert_eq!(block.get(3), None);
        let sizes: Vec<u64> = block.iter().map(|record| record.size()).collect();
        assert_eq!((sizes.clone(), block.raw_bytes(), block.largest_record()), (vec![6, 0, 6], 12, 6));
        assert_eq!((block.first_offset(), block.last_offset()), (Some(10), Some(13)));
        assert_eq!((block.min_timestamp(), block.max_timestamp()), (Some(987), Some(990)));
    }

    #[test]
    fn a_quiet_partition_holds_little_memory() {
        let mut block = Block::new(0, 0);
        assert!(block.is_empty() && block.memory() < 256);
        push(&mut block, 1, Some(b"key"), Some(&[0; 100]), &[]);
        assert!(block.memory() < 1_024, "{}", block.memory());
    }

    #[test]
    fn names_and_numbers_of_timestamp_types_come_back() {
        for kind in TimestampType::ALL {
            assert_eq!(TimestampType::from_name(kind.name().as_bytes()), Some(kind));
            assert_eq!(TimestampType::from_number(kind as u8), Some(kind));
        }
        assert_eq!((TimestampType::from_name(b""), TimestampType::from_number(3)), (None, None));
    }
}
