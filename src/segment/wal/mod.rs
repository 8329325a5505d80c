//! Segments of a write-ahead log: raw bytes of one timeline, compressed, and what they must be.
//!
//! ```text
//!  object   50 2a 4d 18        a skippable frame (RFC 8878, 3.1.2), which every zstd passes over
//!           u32                the length of the JSON
//!           JSON               WalFacts: whose bytes these are
//!           zstd frame         the bytes of WAL from `start` to `end`, with content size and checksum
//!
//!  bytes ─► seal ─► object ─► (store) ─► object ─► WalReader ─► the same bytes
//!    └────► WalScanner: page headers, records, their CRCs, the times of commits
//! ```
//!
//! `zstd -dc` of an object gives the WAL itself. A segment holds at most [`MOST_BYTES`], so that an object can be held
//! in memory as a whole, however large the server's WAL files are. The layout of pages and records is that of
//! `access/xlog_internal.h` and `access/xlogrecord.h` of PostgreSQL 13 to 18.

mod ended;
mod harmless;
mod history;
mod read;
mod records;
mod slots;
mod write;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

pub use ended::{Ended, Limits, Transaction, What};
pub use harmless::{Relations, make_harmless};
pub use history::{Switch, parse_history};
pub use read::WalReader;
pub use records::{LONG_HEADER, PAGE, SHORT_HEADER, Seen, WalScanner, check_pages, page_magic};
pub use slots::{Cleanup, Running, SlotRecord};
pub use write::seal;

use crate::error::{Error, Kind, Result, ResultExt};
use crate::stream::{FORMAT_VERSION, Lsn, System};

/// A segment ends where the LSN is a multiple of this at the latest: the size of a WAL file unless `initdb` was told
/// otherwise, so that a segment is a file where nothing cuts it earlier.
pub const MOST_BYTES: u64 = 16 << 20;

/// The first magic number of a skippable frame.
const SKIPPABLE: u32 = 0x184D_2A50;

/// The most bytes of the JSON, which has about 300.
const MOST_OF_FACTS: usize = 64 << 10;

/// The bytes before the JSON: the magic number and the length.
const FRAME_HEADER: usize = 8;

/// What a segment of WAL says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalFacts {
    /// The version of the format.
    pub format: u32,
    /// The server's system identifier, WAL file size and major version.
    #[serde(flatten)]
    pub system: System,
    /// The timeline.
    pub timeline: u32,
    /// The position of the first byte.
    pub start: Lsn,
    /// The position after the last byte.
    pub end: Lsn,
    /// The id of the process that wrote the segment.
    pub writer: String,
    /// When it did.
    pub created: DateTime<Utc>,
}

impl WalFacts {
    /// The facts of a segment that is about to be written.
    pub fn new(
        system: System,
        timeline: u32,
        lsns: std::ops::Range<Lsn>,
        writer: &str,
        created: DateTime<Utc>,
    ) -> Self {
        let (start, end) = (lsns.start, lsns.end);
        Self { format: FORMAT_VERSION, system, timeline, start, end, writer: writer.to_owned(), created }
    }

    /// Returns how many bytes of WAL the segment holds.
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    /// Returns whether it holds none; no segment that is written does.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn to_frame(&self) -> Result<Vec<u8>> {
        let failed = || "cannot write the facts of a segment of WAL".to_owned();
        let json = serde_json::to_vec(self).or_err(Kind::Internal, failed)?;
        let length = u32::try_from(json.len()).or_err(Kind::Internal, failed)?;
        let mut frame = Vec::with_capacity(FRAME_HEADER + json.len());
        frame.extend_from_slice(&SKIPPABLE.to_le_bytes());
        frame.extend_from_slice(&length.to_le_bytes());
        frame.extend_from_slice(&json);
        Ok(frame)
    }

    /// Reads the facts at the beginning of an object; gives them and the length of their frame.
    fn from_frame(object: &[u8]) -> Result<(Self, usize)> {
        /// Nothing else is made of what a later version may say.
        #[derive(Deserialize)]
        struct Version {
            format: u64,
        }
        let corrupt = |what: &str| Error::new(Kind::Corrupt, format!("it is no segment of WAL: {what}"));
        let (magic, rest) = object.split_first_chunk::<4>().ok_or_else(|| corrupt("it is too short"))?;
        let (length, rest) = rest.split_first_chunk::<4>().ok_or_else(|| corrupt("it is too short"))?;
        if u32::from_le_bytes(*magic) != SKIPPABLE {
            return Err(corrupt("it does not begin with a skippable frame"));
        }
        let length = u32::from_le_bytes(*length) as usize;
        if length > MOST_OF_FACTS {
            return Err(corrupt(&format!("its facts have {length} bytes")));
        }
        let json = rest.get(..length).ok_or_else(|| corrupt("its facts are cut off"))?;
        let version: Version =
            serde_json::from_slice(json).map_err(|error| corrupt("its facts name no format").source(error))?;
        let version = version.format;
        if version > u64::from(FORMAT_VERSION) {
            let message = format!("it has format version {version}, this tidelog reads up to {FORMAT_VERSION}");
            return Err(Error::new(Kind::Unsupported, message).hint("read it with the newer tidelog that wrote it"));
        }
        let facts: Self =
            serde_json::from_slice(json).map_err(|error| corrupt("its facts cannot be read").source(error))?;
        if facts.start >= facts.end || facts.len() > MOST_BYTES {
            return Err(corrupt(&format!("it says that it goes from {} to {}", facts.start, facts.end)));
        }
        Ok((facts, FRAME_HEADER + length))
    }
}

#[cfg(test)]
mod tests;
