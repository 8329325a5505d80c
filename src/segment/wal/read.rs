//! Reads one segment of WAL: whole from the store, and decompressed in one piece, for it holds 16 MiB at the most.

use bytes::Bytes;
use zstd::bulk::Decompressor;

use super::WalFacts;
use crate::error::{Error, Kind, Result, ResultExt};
use crate::store::{Store, layout};
use crate::stream::{SegmentRef, sha256};

/// Gives back the bytes of WAL of one segment.
pub struct WalReader {
    facts: WalFacts,
    /// The zstd frame.
    compressed: Bytes,
}

impl WalReader {
    /// Opens the segment that a checkpoint names. Its object must be, byte for byte, what the checkpoint says.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if there is no such object, [`Kind::Corrupt`] if it is another one, and the store's errors.
    pub async fn open(store: &Store, segment: &SegmentRef) -> Result<Self> {
        let key = layout::object(&segment.object)?;
        let object = store.get_at_most(&key, segment.bytes).await?.ok_or_else(|| {
            Error::new(Kind::NotFound, format!("the segment {key} is missing"))
                .hint("restore the object from a copy of the archive; `tidelog verify` lists all damage")
        })?;
        let found = sha256(&object);
        if found != segment.sha256 {
            let message =
                format!("the segment {key} is damaged: its sha256 is {found}, its checkpoint says {}", segment.sha256);
            return Err(Error::new(Kind::Corrupt, message)
                .hint("restore the object from a copy of the archive; `tidelog verify` lists all damage"));
        }
        let reader = Self::decode(object).map_err(|error| error.context(format_args!("segment {key}")))?;
        let facts = &reader.facts;
        let said = (facts.timeline.cast_signed(), facts.start.position(), facts.end.position());
        match segment.partitions.as_slice() {
            [range] if (range.partition, range.start, range.end) == said => Ok(reader),
            ranges => {
                let message = format!(
                    "the segment {key} holds timeline {} from {} to {}, its checkpoint says {ranges:?}",
                    facts.timeline, facts.start, facts.end
                );
                Err(Error::new(Kind::Corrupt, message))
            }
        }
    }

    /// Opens an object's bytes, wherever they come from.
    pub fn decode(object: Bytes) -> Result<Self> {
        let (facts, length) = WalFacts::from_frame(&object)?;
        Ok(Self { facts, compressed: object.slice(length..) })
    }

    /// Returns what the segment says about itself.
    pub fn facts(&self) -> &WalFacts {
        &self.facts
    }

    /// All its bytes: [`super::MOST_BYTES`] at the most.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] for bytes that cannot be decompressed, and for more or fewer than the segment says.
    pub fn all(self) -> Result<Vec<u8>> {
        let length = usize::try_from(self.facts.len()).unwrap_or(usize::MAX);
        let damaged = || "its bytes cannot be decompressed".to_owned();
        let mut decompressor = Decompressor::new().or_err(Kind::Internal, damaged)?;
        let bytes = decompressor.decompress(&self.compressed, length).or_err(Kind::Corrupt, damaged)?;
        if bytes.len() != length {
            let message = format!(
                "it holds {} bytes of WAL, and from {} to {} there are {length}",
                bytes.len(),
                self.facts.start,
                self.facts.end
            );
            return Err(Error::new(Kind::Corrupt, message));
        }
        Ok(bytes)
    }
}
