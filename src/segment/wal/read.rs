//! Reads one segment of WAL: whole from the store, then decompressed piece by piece.

use std::io::{Cursor, Read};

use bytes::Bytes;
use zstd::stream::read::Decoder;

use super::WalFacts;
use crate::error::{Error, Kind, Result, ResultExt};
use crate::store::{Store, layout};
use crate::stream::{SegmentRef, sha256};

/// The largest window that a decompressor makes room for, as a power of two: that of level 19 for [`super::MOST_BYTES`].
const WINDOW_LOG_MAX: u32 = 24;

/// Gives back the bytes of WAL of one segment.
pub struct WalReader {
    facts: WalFacts,
    decoder: Decoder<'static, Cursor<Bytes>>,
    left: u64,
}

impl WalReader {
    /// Opens the segment that a checkpoint names. Its object must be, byte for byte, what the checkpoint says.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if there is no such object, [`Kind::Corrupt`] if it is another one, and the store's errors.
    pub async fn open(store: &Store, segment: &SegmentRef) -> Result<Self> {
        let key = layout::object(&segment.object)?;
        let object = store.get(&key).await?.ok_or_else(|| {
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
        let damaged = || "its bytes cannot be decompressed".to_owned();
        let mut decoder = Decoder::with_buffer(Cursor::new(object.slice(length..))).or_err(Kind::Corrupt, damaged)?;
        decoder.window_log_max(WINDOW_LOG_MAX).or_err(Kind::Internal, damaged)?;
        Ok(Self { left: facts.len(), facts, decoder })
    }

    /// What the segment says about itself.
    pub fn facts(&self) -> &WalFacts {
        &self.facts
    }

    /// Reads the next bytes of WAL; 0 at the end.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] for bytes that cannot be decompressed, and for more or fewer than the segment says.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let read = self.decoder.read(buffer).or_err(Kind::Corrupt, || "its bytes cannot be decompressed".into())?;
        let expected = if read == 0 { self.left == 0 } else { read as u64 <= self.left };
        if !expected {
            let message =
                format!("it holds another number of bytes of WAL than from {} to {}", self.facts.start, self.facts.end);
            return Err(Error::new(Kind::Corrupt, message));
        }
        self.left -= read as u64;
        Ok(read)
    }

    /// All bytes that are left: [`super::MOST_BYTES`] at the most.
    pub fn all(mut self) -> Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(self.left).unwrap_or(0)];
        let mut filled = 0;
        while filled < bytes.len() {
            match self.read(&mut bytes[filled..])? {
                0 => break,
                read => filled += read,
            }
        }
        // What follows must be the end.
        self.read(&mut [0])?;
        Ok(bytes)
    }
}
