//! Writes one segment of WAL to a local file, as the bytes come.

use std::io::Write;
use std::path::Path;

use zstd::stream::write::Encoder;

use super::{Seen, WalFacts};
use crate::error::{Error, Kind, Result};
use crate::segment::Sealed;
use crate::segment::spool::Spool;
use crate::stream::{Format, PartitionRange};

/// Writes one segment of WAL. Dropped before [`WalWriter::finish`], it leaves no file behind.
pub struct WalWriter {
    facts: WalFacts,
    encoder: Encoder<'static, Spool>,
    written: u64,
}

impl WalWriter {
    /// Creates the file, which must not exist.
    pub fn create(path: &Path, facts: WalFacts, zstd_level: i32) -> Result<Self> {
        let failed = |source| Error::io(source, format!("cannot write the spool file {}", path.display()));
        let mut spool = Spool::create(path)?;
        spool.write_all(&facts.to_frame()?).map_err(failed)?;
        let mut encoder = Encoder::new(spool, zstd_level).map_err(failed)?;
        encoder.include_checksum(true).map_err(failed)?;
        encoder.include_contentsize(true).map_err(failed)?;
        encoder.set_pledged_src_size(Some(facts.len())).map_err(failed)?;
        Ok(Self { facts, encoder, written: 0 })
    }

    /// Writes the next bytes. Holds no more than the compressor's window.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.written += bytes.len() as u64;
        self.encoder.write_all(bytes).map_err(|source| self.failed(source))
    }

    fn failed(&self, source: std::io::Error) -> Error {
        Error::io(source, format!("cannot write the spool file {}", self.encoder.get_ref().path().display()))
    }

    /// Completes the file; `seen` is what a [`super::Walker`] found in the bytes.
    pub fn finish(self, seen: &Seen) -> Result<Sealed> {
        let Self { facts, encoder, written } = self;
        if written != facts.len() {
            let message = format!("a segment from {} to {} was given {written} bytes of WAL", facts.start, facts.end);
            return Err(Error::new(Kind::Internal, message));
        }
        let path = encoder.get_ref().path().to_owned();
        let failed = |source| Error::io(source, format!("cannot write the spool file {}", path.display()));
        let mut spool = encoder.finish().map_err(failed)?;
        spool.flush().map_err(failed)?;
        let (bytes, sha256) = spool.keep();
        let range = PartitionRange {
            partition: facts.timeline.cast_signed(),
            start: facts.start.position(),
            end: facts.end.position(),
            records: seen.commits,
            min_timestamp: seen.first_commit,
            max_timestamp: seen.last_commit,
        };
        let (raw_bytes, largest_record) = (facts.len(), seen.largest_record);
        Ok(Sealed { path, format: Format::Wal, bytes, sha256, raw_bytes, largest_record, partitions: vec![range] })
    }
}
