//! What a Parquet file asks of its reader, looked at before the decoder is let at it.
//!
//! The decoder believes sizes: it makes room for as many bytes as a page says it unpacks to, for as many values as a dictionary or
//! a run of lengths says it has, and for as many items as a list says. Where there is no room the process ends, and nobody can
//! catch that. Whoever can write into the bucket decides those sizes, and the hash of the bytes besides. So each is held against
//! what a segment can have.

use std::io::{BufReader, Read};

use bytes::Bytes;
use parquet::basic::{Compression, Type};
use parquet::file::metadata::{ColumnChunkMetaData, RowGroupMetaData};

use super::thrift::{Bad, Thrift, kind};
use crate::error::{Error, Kind, Result};
use crate::segment::limits::MOST_AT_ONCE;

/// The most values that a column has in a row group; more records or headers are never written at once.
pub(super) const MOST_VALUES: u64 = 1 << 23;

/// The longest list of a footer, which is that of its row groups.
const LONGEST_LIST: u64 = 1 << 14;

/// The least that a value of a dictionary takes: the number, or the length of text.
const LEAST_IN_DICTIONARY: u64 = 4;

/// The encodings that a segment may have, by their numbers in `parquet.thrift`: plain, dictionaries, the two with deltas. Of the
/// others, that of common prefixes makes much out of little.
const ENCODINGS: [i64; 5] = [0, 2, 5, 6, 8];
const DELTA_LENGTHS: i64 = 6;

/// The error for a file that the decoder is not let at.
pub(super) fn refused(what: &str) -> Error {
    Error::new(Kind::Corrupt, format!("it cannot be decoded as Parquet: {what}"))
        .hint("restore the object from a copy of the archive; `tidelog verify` lists all damage")
}

/// How many fields each part of the schema of a segment has, in the order in which they stand in a footer: the record, seven
/// columns, the headers as a list of elements with three columns.
const CHILDREN: [i64; 14] = [8, 0, 0, 0, 0, 0, 0, 0, 1, 1, 3, 0, 0, 0];

/// Looks through a footer.
pub(super) fn footer(bytes: &[u8]) -> Result<()> {
    let looked = Thrift::new(bytes, LONGEST_LIST).skip(kind::STRUCT).and_then(|()| schema_of(bytes));
    looked.map_err(|what| refused(&format!("in its footer, {what}")))
}

/// Looks at the schema of a footer: the decoder makes room for as many fields as a part says it has, and goes into parts within
/// parts as deep as they are.
fn schema_of(footer: &[u8]) -> Result<(), Bad> {
    const OTHER: Bad = "the schema is not that of a segment";
    let (mut thrift, mut last) = (Thrift::new(footer, LONGEST_LIST), 0);
    while let Some(field) = thrift.field(&mut last)? {
        match field {
            (2, kind::LIST) if thrift.list()? == (CHILDREN.len() as u64, kind::STRUCT) => {
                for expected in CHILDREN {
                    if children(&mut thrift)? != expected {
                        return Err(OTHER);
                    }
                }
            }
            (2, _) => return Err(OTHER),
            (_, kind) => thrift.skip(kind)?,
        }
    }
    Ok(())
}

/// Returns how many fields a `SchemaElement` says it has.
fn children(thrift: &mut Thrift<'_>) -> Result<i64, Bad> {
    let (mut children, mut last) = (0, 0);
    while let Some(field) = thrift.field(&mut last)? {
        match field {
            (5, kind::I32) => children = thrift.number()?,
            (5, _) => return Err("the schema has no number of fields"),
            (_, kind) => thrift.skip(kind)?,
        }
    }
    Ok(children)
}

/// Looks at where the pages of a column lie, each of which takes three numbers and the end of a struct; or at what they hold, where
/// each takes a byte in each of three lists.
pub(super) fn page_index(bytes: &[u8], of: Index) -> Result<()> {
    let bytes_of_page = match of {
        Index::Places => 4,
        Index::Values => 3,
    };
    Thrift::new(bytes, bytes.len() as u64 / bytes_of_page)
        .skip(kind::STRUCT)
        .map_err(|what| refused(&format!("in its page index, {what}")))
}

/// What a page index tells of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Index {
    /// `OffsetIndex` of `parquet.thrift`.
    Places,
    /// `ColumnIndex`.
    Values,
}

/// Looks at every page of a row group, the bytes of which begin at `start` of the file.
pub(super) fn row_group(group: &RowGroupMetaData, start: u64, bytes: &Bytes) -> Result<()> {
    let mut unpacked = 0;
    for column in group.columns() {
        let (from, length) = column.byte_range();
        let at = from.checked_sub(start).and_then(|at| Some((at, at.checked_add(length)?)));
        let of = at.and_then(|(from, to)| bytes.get(usize::try_from(from).ok()?..usize::try_from(to).ok()?));
        let read = of.ok_or("a column lies outside").and_then(|bytes| pages(column, bytes, &mut unpacked));
        read.map_err(|what| refused(&format!("in its row group at {start}, {what}")))?;
    }
    Ok(())
}

/// Looks at the pages of a column; `unpacked` is how many bytes those of the row group have so far.
fn pages(column: &ColumnChunkMetaData, mut bytes: &[u8], unpacked: &mut u64) -> Result<(), Bad> {
    if !matches!(column.compression(), Compression::ZSTD(_)) {
        return Err("a column is not compressed by zstd");
    }
    let mut values = 0;
    while !bytes.is_empty() {
        let (page, body) = Page::read(bytes)?;
        let (data, rest) = body.split_at_checked(page.stored).ok_or("a page lies outside its column")?;
        *unpacked += page.unpacked;
        if *unpacked > MOST_AT_ONCE {
            return Err("it unpacks to more than a row group has");
        }
        match page.kind {
            DICTIONARY if page.values > page.unpacked / LEAST_IN_DICTIONARY => {
                return Err("a dictionary has no room for its values");
            }
            DICTIONARY => {}
            DATA => values += page.values,
            _ => return Err("a page is of a kind that no segment has"),
        }
        if values > MOST_VALUES {
            return Err("a column has more values than a row group has");
        }
        if !ENCODINGS.contains(&page.encoding) {
            return Err("a page has an encoding that no segment has");
        }
        if page.encoding == DELTA_LENGTHS
            && column.column_type() == Type::BYTE_ARRAY
            && lengths(column, data)? > page.values
        {
            return Err("a page has more lengths than values");
        }
        bytes = rest;
    }
    Ok(())
}

/// `PageType` of `parquet.thrift`.
const DATA: i64 = 0;
const DICTIONARY: i64 = 2;

/// What the header of a page says.
struct Page {
    kind: i64,
    unpacked: u64,
    stored: usize,
    values: u64,
    encoding: i64,
}

impl Page {
    /// Reads the `PageHeader` at the front of bytes; gives what follows it, too.
    fn read(bytes: &[u8]) -> Result<(Self, &[u8]), Bad> {
        let mut thrift = Thrift::new(bytes, 0);
        let (mut kind, mut unpacked, mut stored, mut of_kind) = (None, None, None, (None, None));
        let mut last = 0;
        while let Some(field) = thrift.field(&mut last)? {
            match field {
                (1, kind::I32) => kind = Some(thrift.number()?),
                (2, kind::I32) => unpacked = u64::try_from(thrift.number()?).ok(),
                (3, kind::I32) => stored = usize::try_from(thrift.number()?).ok(),
                (5 | 7, kind::STRUCT) => of_kind = Self::of_kind(&mut thrift)?,
                (_, kind) => thrift.skip(kind)?,
            }
        }
        let (Some(kind), Some(unpacked), Some(stored), (Some(values), Some(encoding))) =
            (kind, unpacked, stored, of_kind)
        else {
            return Err("the header of a page says too little");
        };
        Ok((Self { kind, unpacked, stored, values, encoding }, thrift.rest()))
    }

    /// The number of values and the encoding, of `DataPageHeader` and of `DictionaryPageHeader`.
    fn of_kind(thrift: &mut Thrift<'_>) -> Result<(Option<u64>, Option<i64>), Bad> {
        let (mut values, mut encoding, mut last) = (None, None, 0);
        while let Some(field) = thrift.field(&mut last)? {
            match field {
                (1, kind::I32) => values = u64::try_from(thrift.number()?).ok(),
                (2, kind::I32) => encoding = Some(thrift.number()?),
                (_, kind) => thrift.skip(kind)?,
            }
        }
        Ok((values, encoding))
    }
}

/// Returns how many lengths stand at the beginning of a page, behind its levels: the third number of DELTA_BINARY_PACKED
/// (<https://github.com/apache/parquet-format/blob/master/Encodings.md>).
fn lengths(column: &ColumnChunkMetaData, stored: &[u8]) -> Result<u64, Bad> {
    const DAMAGED: Bad = "a page cannot be decompressed";
    if stored.is_empty() {
        return Ok(0);
    }
    let decoder = zstd::Decoder::with_buffer(stored).map_err(|_| DAMAGED)?;
    let mut page = BufReader::with_capacity(4096, decoder);
    let description = column.column_descr();
    for level in [description.max_rep_level(), description.max_def_level()] {
        if level > 0 {
            let mut length = [0; 4];
            page.read_exact(&mut length).map_err(|_| DAMAGED)?;
            let skipped =
                std::io::copy(&mut page.by_ref().take(u32::from_le_bytes(length).into()), &mut std::io::sink());
            skipped.map_err(|_| DAMAGED)?;
        }
    }
    // Three numbers of ten bytes at the most; a page of nulls may have none.
    let mut head = Vec::with_capacity(32);
    page.take(32).read_to_end(&mut head).map_err(|_| DAMAGED)?;
    if head.is_empty() {
        return Ok(0);
    }
    let mut numbers = Thrift::new(&head, 0);
    numbers.varint().and(numbers.varint()).and(numbers.varint())
}

#[cfg(test)]
mod tests {
    use parquet::basic::ZstdLevel;
    use parquet::schema::types::SchemaDescriptor;

    use super::super::encoding::{delta, varint, zigzag};
    use super::super::{leaf, schema};
    use super::*;

    fn column(leaf: usize) -> ColumnChunkMetaData {
        let schema = SchemaDescriptor::new(schema().expect("a schema"));
        let column = ColumnChunkMetaData::builder(schema.column(leaf));
        column.set_compression(Compression::ZSTD(ZstdLevel::default())).build().expect("a column")
    }

    /// A page as it is written, and what its header says of it.
    fn page(kind: i64, unpacked: i64, (values, encoding): (i64, i64), data: &[u8]) -> Vec<u8> {
        let (mut page, stored) = (Vec::new(), zstd::bulk::compress(data, 1).expect("compressed"));
        let field = |head: u8, number: i64, page: &mut Vec<u8>| {
            page.push(head);
            zigzag(number, page);
        };
        field(0x15, kind, &mut page);
        field(0x15, unpacked, &mut page);
        field(0x15, stored.len() as i64, &mut page);
        // The header of the kind is field 5 or 7.
        page.push(if kind == DATA { 0x2c } else { 0x4c });
        field(0x15, values, &mut page);
        field(0x15, encoding, &mut page);
        page.extend([0, 0]);
        [page, stored].concat()
    }

    /// The levels of a column that may be null, and three lengths.
    fn lengths_of(values: &[u32]) -> Vec<u8> {
        let mut data = vec![2, 0, 0, 0, 6, 1];
        delta(values, &mut data);
        data
    }

    fn looked_at(pages_of: &[Vec<u8>]) -> Result<(), Bad> {
        pages(&column(leaf::KEY), &pages_of.concat(), &mut 0)
    }

    #[test]
    fn a_page_has_what_it_says() {
        let sound = lengths_of(&[1, 1, 1]);
        let data = |unpacked, said, data: &[u8]| looked_at(&[page(DATA, unpacked, said, data)]);
        assert_eq!(data(100, (3, DELTA_LENGTHS), &sound), Ok(()));
        assert_eq!(data(100, (3, DELTA_LENGTHS), &lengths_of(&[])), Ok(()), "all of them are null");
        assert_eq!(data(0, (3, DELTA_LENGTHS), &[]), Err("a page cannot be decompressed"), "it has no levels");
        let mut many = vec![2, 0, 0, 0, 6, 1];
        [128, 4, 1 << 40, 0].into_iter().for_each(|number| varint(number, &mut many));
        assert_eq!(data(100, (3, DELTA_LENGTHS), &many), Err("a page has more lengths than values"));
        assert_eq!(data(i32::MAX.into(), (3, 0), &sound), Err("it unpacks to more than a row group has"));
        assert_eq!(data(100, (1 << 30, 0), &sound), Err("a column has more values than a row group has"));
        assert_eq!(data(100, (3, 7), &sound), Err("a page has an encoding that no segment has"));
        assert_eq!(data(100, (-1, 0), &sound), Err("the header of a page says too little"));
        assert_eq!(looked_at(&[page(3, 100, (3, 0), &sound)]), Err("a page is of a kind that no segment has"));
        let dictionary = |values| looked_at(&[page(DICTIONARY, 40, (values, 0), b"text")]);
        assert_eq!((dictionary(10), dictionary(11)), (Ok(()), Err("a dictionary has no room for its values")));
        // Each by itself is as large as a row group may be.
        let large = page(DATA, 300 << 20, (3, 0), &sound);
        assert_eq!(looked_at(&[large.clone(), large]), Err("it unpacks to more than a row group has"));
        let mut cut = page(DATA, 100, (3, 0), &sound);
        cut.pop();
        assert_eq!(looked_at(&[cut]), Err("a page lies outside its column"));
    }

    #[test]
    fn a_list_is_no_longer_than_its_bytes() {
        let list = |count: u64| {
            let mut bytes = vec![0x19, 0xfc];
            varint(count, &mut bytes);
            [bytes, vec![0; 40]].concat()
        };
        for count in [1 << 31, 1 << 14, 50] {
            assert!(footer(&list(count)).expect_err("it has 40 items").to_string().contains("a list is too long"));
            for of in [Index::Places, Index::Values] {
                let error = page_index(&list(count), of).expect_err("it has 40 items");
                assert!(error.to_string().contains("a list is too long"), "{of:?}: {error}");
            }
        }
        assert_eq!(Thrift::new(&list(39), LONGEST_LIST).skip(kind::STRUCT), Ok(()), "39 items and the end");
        assert!(footer(&[0x1c; 100]).expect_err("structs in structs").to_string().contains("too deep"));
        let many = [&list(20_000)[..], &[0; 20_000]].concat();
        assert!(footer(&many).expect_err("too many row groups").to_string().contains("a list is too long"));
    }
    /// A footer with a schema that has a part for each of these: how many fields it says it has.
    fn footer_with(children: impl IntoIterator<Item = i64>) -> Vec<u8> {
        let parts: Vec<i64> = children.into_iter().collect();
        let mut footer = vec![0x15, 2, 0x19, 0xfc];
        varint(parts.len() as u64, &mut footer);
        for children in parts {
            // The repetition, the name, the number of fields.
            footer.extend([0x35, 0, 0x18, 1, b'g', 0x15]);
            zigzag(children, &mut footer);
            footer.push(0);
        }
        footer.extend([0x16, 0, 0x19, 0x0c, 0]);
        footer
    }

    #[test]
    fn a_schema_is_that_of_a_segment() {
        footer(&footer_with(CHILDREN)).expect("the schema");
        let with = |at: usize, children: i64| {
            CHILDREN.iter().enumerate().map(move |(n, own)| if n == at { children } else { *own })
        };
        for other in [
            footer_with([1; 3_000]),
            footer_with([1; 16_000]),
            footer_with([i64::from(i32::MAX), 0]),
            footer_with([-1, 0]),
            footer_with(with(0, i64::from(i32::MAX))),
            footer_with(with(8, -1)),
            footer_with(with(13, 1)),
            footer_with([]),
            [&footer_with(CHILDREN)[..8], &[0; 8]].concat(),
        ] {
            assert_eq!(footer(&other).expect_err("another schema").kind(), Kind::Corrupt);
        }
        // A field may come twice, and the decoder takes either.
        let mut twice = footer_with(CHILDREN);
        twice.pop();
        let deep = footer_with([1; 3_000]);
        twice.extend([&[0x09, 4][..], &deep[3..]].concat());
        assert_eq!(schema_of(&twice), Err("the schema is not that of a segment"));
    }
}
