//! Parquet segments.
//!
//! ```text
//! row group   what one call of the writer was given, sorted by partition and offset
//!   partition       INT32, dictionary, statistics of the row group
//!   offset          INT64, DELTA_BINARY_PACKED, statistics of the row group and of each page
//!   timestamp       INT64 TIMESTAMP(MILLIS, UTC), the same, in short pages: a time index
//!   timestamp_type  BYTE_ARRAY STRING, dictionary: NoTimestampType, CreateTime, LogAppendTime
//!   leader_epoch    INT32, dictionary; -1 = unknown
//!   key, value      BYTE_ARRAY, optional: null is not empty; DELTA_LENGTH_BYTE_ARRAY
//!   headers         LIST of (name STRING, dictionary; value, name_bytes BYTE_ARRAY, optional)
//! …
//! filters     of the keys of each row group, one after the other: split block Bloom filters
//! footer      the facts of the segment as key-value metadata, page indexes
//! ```
//!
//! A header's `name_bytes` is null unless its name is not valid UTF-8: then it is the name, and `name` is the nearest
//! text. All pages are zstd. Encodings are those of the format's second version, which DuckDB, pyarrow, Spark and
//! Trino read, in data pages of the first; see
//! <https://github.com/apache/parquet-format/blob/master/Encodings.md>.

//!
//! Parquet's own checksums are those of pages, which the encoder below does not write, and neither it nor zstd would
//! notice a flipped bit in a value. So the key `tidelog.row_groups` says where each row group lies and what it hashes
//! to: a JSON list with a [`Place`] for each, in their order,
//!
//! ```text
//! [[position, length, records, XXH64 with seed 0 in 16 hex digits], …]
//! ```
//!
//! The key `tidelog.key_filters` is the XXH64 of all filters of keys together. They are those of the Parquet format
//! (<https://github.com/apache/parquet-format/blob/master/BloomFilter.md>), at the places that the metadata of the column `key` name.
//! Files of older versions have none.

mod encoding;
mod guard;
mod pages;
mod read;
mod thrift;
mod write;

pub(super) use read::ParquetReader;
pub(super) use write::ParquetWriter;

use std::sync::Arc;

use parquet::errors::ParquetError;
use parquet::schema::parser::parse_message_type;
use parquet::schema::types::Type;
use serde::{Deserialize, Serialize};

const ROW_GROUPS_KEY: &str = "tidelog.row_groups";

/// The hash of the filters of keys, as [`Place`] has that of a row group.
const KEY_FILTERS_KEY: &str = "tidelog.key_filters";

/// A row group: its position in the file, its length, its records, the hash of its bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Place(u64, u64, u64, String);

/// The columns, in the notation of the Parquet tools.
const SCHEMA: &str = "
    message record {
        REQUIRED INT32 partition;
        REQUIRED INT64 offset;
        REQUIRED INT64 timestamp (TIMESTAMP(MILLIS, true));
        REQUIRED BYTE_ARRAY timestamp_type (STRING);
        REQUIRED INT32 leader_epoch;
        OPTIONAL BYTE_ARRAY key;
        OPTIONAL BYTE_ARRAY value;
        REQUIRED GROUP headers (LIST) {
            REPEATED GROUP list {
                REQUIRED GROUP element {
                    REQUIRED BYTE_ARRAY name (STRING);
                    OPTIONAL BYTE_ARRAY value;
                    OPTIONAL BYTE_ARRAY name_bytes;
                }
            }
        }
    }
";

/// Leaf columns by their place in [`SCHEMA`].
mod leaf {
    pub(super) const PARTITION: usize = 0;
    pub(super) const OFFSET: usize = 1;
    pub(super) const TIMESTAMP: usize = 2;
    pub(super) const TIMESTAMP_TYPE: usize = 3;
    pub(super) const KEY: usize = 5;
    pub(super) const VALUE: usize = 6;
    pub(super) const HEADER_NAME: usize = 7;
    pub(super) const HEADER_VALUE: usize = 8;
    pub(super) const HEADER_NAME_BYTES: usize = 9;
}

fn schema() -> Result<Arc<Type>, ParquetError> {
    parse_message_type(SCHEMA).map(Arc::new)
}
