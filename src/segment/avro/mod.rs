//! Avro segments: ordinary object container files, as the Avro specification has them
//! (<https://avro.apache.org/docs/1.11.1/specification/#object-container-files>).
//!
//! ```text
//! header   "Obj" 1
//!          metadata   avro.schema, avro.codec = zstandard, the facts of the segment, tidelog.index
//!          sync       16 bytes, random, the same after each block
//! block    records    how many, long
//!          length     bytes of what follows, long
//!          data       one zstd frame with content size and checksum
//!          sync
//! …
//! ```
//!
//! A block holds about 1 MiB of records before compression, of one partition where there is enough of it. So that a
//! reader need not scan, `tidelog.index` says where each block lies and what it holds. It is JSON, a list with an
//! [`Entry`] for each block, in their order:
//!
//! ```text
//! [[position, length, raw, [[partition, records, min offset, max offset, min timestamp, max timestamp], …]], …]
//! ```
//!
//! `position` counts from the end of the header, `length` is that of the whole block up to and with its sync marker,
//! `raw` that of its data before compression. The header is written last, when all that is known.

mod cursor;
mod read;
mod write;

pub(super) use read::AvroReader;
pub(super) use write::AvroWriter;

use serde::{Deserialize, Serialize};

/// How an object container file begins.
const MAGIC: [u8; 4] = *b"Obj\x01";
const SCHEMA_KEY: &str = "avro.schema";
const CODEC_KEY: &str = "avro.codec";
const CODEC: &str = "zstandard";
const INDEX_KEY: &str = "tidelog.index";

/// The columns.
const SCHEMA: &str = concat!(
    r#"{"type":"record","name":"Record","namespace":"tidelog","fields":["#,
    r#"{"name":"partition","type":"int"},"#,
    r#"{"name":"offset","type":"long"},"#,
    r#"{"name":"timestamp","type":{"type":"long","logicalType":"timestamp-millis"}},"#,
    r#"{"name":"timestamp_type","type":{"type":"enum","name":"TimestampType","#,
    r#""symbols":["NoTimestampType","CreateTime","LogAppendTime"]}},"#,
    r#"{"name":"leader_epoch","type":"int"},"#,
    r#"{"name":"key","type":["null","bytes"]},"#,
    r#"{"name":"value","type":["null","bytes"]},"#,
    r#"{"name":"headers","type":{"type":"array","items":{"type":"record","name":"Header","fields":["#,
    r#"{"name":"name","type":"string"},"#,
    r#"{"name":"value","type":["null","bytes"]},"#,
    r#"{"name":"name_bytes","type":["null","bytes"]}]}}}]}"#,
);

type Sync = [u8; 16];

/// A block in the index: its position, its length, the length of its data before compression, what it holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry(u64, u64, u64, Vec<Part>);

/// A partition in a block: its number, its records, their least and greatest offset, their least and greatest
/// timestamp.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Part(i32, u64, i64, i64, i64, i64);
