//! Which files the archives of a base backup hold, and where, seen as they go by: headers are read, and what is in the files is
//! passed over.

use std::collections::BTreeMap;

use super::packer::PART;
use crate::error::{Error, Kind, Result, ResultExt};
use crate::manifest::backups::{Archive, Place};
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
    /// How many bytes of the archive under way have gone by.
    at: u64,
    /// How many files of it.
    files: u64,
    places: Vec<Place>,
    /// Its directories, and whether a file lies in them.
    directories: BTreeMap<Vec<u8>, bool>,
    /// Of the archives that have ended.
    ended: Vec<Index>,
}

/// What a reader of an archive may want to know before.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Index {
    places: Vec<Place>,
    empty: Vec<String>,
}

impl Index {
    /// Writes it into what is known of the archive.
    pub(super) fn note(self, archive: &mut Archive) {
        (archive.places, archive.empty) = (self.places, self.empty);
    }
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
                self.at += passed as u64;
                bytes = &bytes[passed..];
                continue;
            }
            let (taken, others) = bytes.split_at(bytes.len().min(BLOCK - self.header.len()));
            self.header.extend_from_slice(taken);
            self.at += taken.len() as u64;
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
        if self.prefix.take().is_some() {
            let empty = std::mem::take(&mut self.directories).into_iter().filter(|(_, has_file)| !has_file);
            let empty: Option<Vec<String>> = empty.map(|(path, _)| String::from_utf8(path).ok()).collect();
            let places = std::mem::take(&mut self.places);
            // Where a name cannot be written down, a reader has to read everything.
            self.ended.push(empty.map_or_else(Index::default, |empty| Index { places, empty }));
            (self.at, self.files) = (0, 0);
        }
        Ok(self.tally.clone())
    }

    /// Returns what is known of the archives that have ended, in order.
    pub(super) fn indices(self) -> Vec<Index> {
        self.ended
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
        let begins = self.at - BLOCK as u64;
        if self.places.last().is_none_or(|last| last.at / PART < begins / PART) {
            self.places.push(Place { at: begins, files: self.files });
        }
        let path = header.path_bytes();
        let path = path.strip_prefix(b"./").unwrap_or(&path);
        if header.entry_type() == tar::EntryType::Directory {
            let path = path.strip_suffix(b"/").unwrap_or(path);
            if !path.is_empty() {
                self.directories.entry(path.to_vec()).or_default();
            }
        }
        if header.entry_type() != tar::EntryType::Regular {
            return Ok(());
        }
        let size =
            header.entry_size().or_err(Kind::Corrupt, || "an archive of the server has no size of a file".into())?;
        if let Some(end) = path.iter().rposition(|byte| *byte == b'/') {
            self.directories.insert(path[..end].to_vec(), true);
        }
        self.files += 1;
        self.tally.add(&[self.prefix.as_deref().unwrap_or_default().as_bytes(), path].concat(), size);
        self.rest = size.next_multiple_of(BLOCK as u64);
        Ok(())
    }
}

/// Returns what a byte of a header counts; its checksum itself counts as spaces.
fn sum_of(at: usize, byte: u8) -> u32 {
    if (148..156).contains(&at) { u32::from(b' ') } else { u32::from(byte) }
}

fn cut(what: &str) -> Error {
    Error::new(Kind::Corrupt, format!("an archive that the server sent cannot be read: {what}"))
        .hint("the backup counts for nothing, and is taken again")
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
    fn it_is_known_where_entries_begin_and_which_directories_are_empty() {
        let part = usize::try_from(PART).expect("small");
        let mut builder = tar::Builder::new(Vec::new());
        let mut add = |name: &str, kind, size: usize| {
            let mut header = tar::Header::new_ustar();
            header.set_entry_type(kind);
            header.set_size(size as u64);
            builder.append_data(&mut header, name, &vec![b'x'; size][..]).expect("appended");
        };
        for name in ["base", "base/1", "pg_notify", "pg_wal", "pg_wal/archive_status"] {
            add(name, tar::EntryType::Directory, 0);
        }
        add("base/1/a", tar::EntryType::Regular, 2 * part);
        add("base/1/b", tar::EntryType::Regular, 5);
        add("base/1/c", tar::EntryType::Regular, 5);
        let bytes = builder.into_inner().expect("a tar file");
        let mut contents = Contents::default();
        contents.begin(None).expect("begun");
        bytes.chunks(100_000).try_for_each(|bytes| contents.feed(bytes)).expect("an archive");
        contents.end().expect("whole");
        let [index] = &contents.indices()[..] else { panic!("one archive") };
        assert_eq!(index.empty, ["base", "pg_notify", "pg_wal", "pg_wal/archive_status"]);
        let behind = 6 * BLOCK as u64 + 2 * PART;
        assert_eq!(index.places, [Place { at: 0, files: 0 }, Place { at: behind, files: 1 }]);
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
