//! Which files the archives of a base backup hold, seen as they go by: headers are read, and what is in the files is passed over.

use crate::error::{Error, Kind, Result, ResultExt};
use crate::restore::manifest::Tally;

/// A tar file consists of these.
const BLOCK: usize = 512;

/// What has gone by.
#[derive(Debug, Default)]
pub(super) struct Contents {
    tally: Tally,
    /// What stands before the names of the archive under way; none between archives.
    prefix: Option<String>,
    /// The header under way.
    header: Vec<u8>,
    /// What is left of the file under way, with what fills its last block.
    rest: u64,
}

impl Contents {
    /// An archive begins: that of a tablespace, or of the data directory.
    pub(super) fn begin(&mut self, tablespace: Option<u32>) -> Result<()> {
        self.end()?;
        self.prefix = Some(tablespace.map(|oid| format!("pg_tblspc/{oid}/")).unwrap_or_default());
        Ok(())
    }

    /// The next bytes; those behind the last archive, which are the manifest, are passed over.
    pub(super) fn feed(&mut self, mut bytes: &[u8]) -> Result<()> {
        while self.prefix.is_some() && !bytes.is_empty() {
            if self.rest > 0 {
                let passed = usize::try_from(self.rest).map_or(bytes.len(), |rest| rest.min(bytes.len()));
                self.rest -= passed as u64;
                bytes = &bytes[passed..];
                continue;
            }
            let (taken, others) = bytes.split_at(bytes.len().min(BLOCK - self.header.len()));
            self.header.extend_from_slice(taken);
            bytes = others;
            if self.header.len() == BLOCK {
                self.entry()?;
                self.header.clear();
            }
        }
        Ok(())
    }

    /// The archive under way ends, within no file. Gives what all archives hold so far.
    pub(super) fn end(&mut self) -> Result<Tally> {
        if self.rest > 0 || !self.header.is_empty() {
            return Err(cut("it ends within a file"));
        }
        self.prefix = None;
        Ok(self.tally.clone())
    }

    fn entry(&mut self) -> Result<()> {
        // Two of them end an archive.
        if self.header.iter().all(|byte| *byte == 0) {
            return Ok(());
        }
        let header = tar::Header::from_byte_slice(&self.header);
        let sum: u32 = self.header.iter().enumerate().map(|(at, byte)| sum_of(at, *byte)).sum();
        if header.cksum().ok() != Some(sum) {
            return Err(cut("the checksum of a header is another"));
        }
        if header.entry_type() != tar::EntryType::Regular {
            return Ok(());
        }
        let size =
            header.entry_size().or_err(Kind::Corrupt, || "an archive of the server has no size of a file".into())?;
        let path = header.path_bytes();
        let path = path.strip_prefix(b"./").unwrap_or(&path);
        self.tally.add(&[self.prefix.as_deref().unwrap_or_default().as_bytes(), path].concat(), size);
        self.rest = size.next_multiple_of(BLOCK as u64);
        Ok(())
    }
}

/// What a byte of a header counts; its checksum itself counts as spaces.
fn sum_of(at: usize, byte: u8) -> u32 {
    if (148..156).contains(&at) { u32::from(b' ') } else { u32::from(byte) }
}

fn cut(what: &str) -> Error {
    Error::new(Kind::Corrupt, format!("an archive that the server sent cannot be read: {what}"))
        .hint("the backup counts for nothing, and is taken anew")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tar_of(files: &[(&str, usize)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, size) in files {
            let mut header = tar::Header::new_ustar();
            header.set_size(*size as u64);
            builder.append_data(&mut header, name, &vec![b'x'; *size][..]).expect("appended");
        }
        builder.into_inner().expect("a tar file")
    }

    fn tally(files: &[(&str, u64)]) -> Tally {
        let mut tally = Tally::default();
        files.iter().for_each(|(path, size)| tally.add(path.as_bytes(), *size));
        tally
    }

    #[test]
    fn files_are_counted_however_the_bytes_are_cut() {
        let (base, other) = (tar_of(&[("a", 3), ("d/b", 512), ("c", 0)]), tar_of(&[("a", 1000)]));
        let expected = tally(&[("pg_tblspc/7/a", 1000), ("c", 0), ("d/b", 512), ("a", 3)]);
        for piece in [1, 100, 511, 512, 513, 100_000] {
            let mut contents = Contents::default();
            for (tablespace, bytes) in [(None, &base), (Some(7), &other)] {
                contents.begin(tablespace).expect("begun");
                bytes.chunks(piece).try_for_each(|bytes| contents.feed(bytes)).expect("an archive");
            }
            assert_eq!(contents.end().expect("whole"), expected, "pieces of {piece}");
            contents.feed(b"the manifest").expect("it is passed over");
            assert_eq!(contents.end().expect("whole"), expected);
        }
    }

    #[test]
    fn an_archive_that_is_cut_or_shifted_is_refused() {
        let bytes = tar_of(&[("a", 600)]);
        for end in [100, 512, 1000] {
            let mut contents = Contents::default();
            contents.begin(None).expect("begun");
            contents.feed(&bytes[..end]).expect("so far");
            let ended = contents.end();
            assert!(end == 512 || ended.is_err(), "{end}");
            assert!(contents.rest > 0 || end != 512);
        }
        let mut contents = Contents::default();
        contents.begin(None).expect("begun");
        assert_eq!(contents.feed(&bytes[1..]).expect_err("shifted").kind(), Kind::Corrupt);
    }
}
