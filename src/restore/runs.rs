//! The archives of a backup, cut where entries of their tar files begin: what is needed of them is read by itself, and beside the rest.
//!
//! ```text
//!   parts   |───────|───────|───────|───────|───────|         objects
//!   places  ^  a    b^  c     d ^  e    f ^        g          where an entry begins, about one in each part
//!   runs     0        1          2         3                  from place to place, with the files that begin there
//!   chunks           ╰────── needed ──────╯                   runs that follow each other: read by one reader
//! ```
//!
//! The server's manifest names files in the order in which they stand in the archives (`AddFileToBackupManifest` is called as each is
//! sent, basebackup.c), so that a place needs to tell only how many files stand before it.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::PathBuf;

use super::manifest::Files;
use crate::manifest::backups::{Archive, Part, Place};
use crate::stream;

/// Postgres does not start without it, so it is written last.
pub(super) const CONTROL_FILE: &str = "global/pg_control";
pub(super) const CONTROL: &[u8] = CONTROL_FILE.as_bytes();

/// A chunk reads the part in which it begins, and so does the one before it: with fewer parts that would be noticed.
const LEAST_PARTS: u64 = 8;

/// Longer ones would leave other readers without work at the end.
const MOST_PARTS: u64 = 64;

/// How many files are compared one after the other.
const LISTED: usize = 64;

/// What one reader reads.
#[derive(Debug, Clone)]
pub(super) struct Chunk {
    /// The archive, for errors.
    pub(super) archive: String,
    /// Where its files go; none: nowhere.
    pub(super) into: Option<PathBuf>,
    /// What stands before its files in the manifest.
    pub(super) prefix: Vec<u8>,
    pub(super) parts: Vec<Part>,
    /// How many bytes of the parts stand before it.
    pub(super) skip: u64,
    /// How many bytes it has.
    pub(super) length: u64,
    /// Whether the control file is in it.
    pub(super) has_control: bool,
}

/// From one place of an archive to the next.
#[derive(Debug, PartialEq, Eq)]
struct Run {
    bytes: Range<u64>,
    /// The files that begin in it; none where that is not known.
    files: Option<Range<usize>>,
}

/// An archive that is to be unpacked.
#[derive(Debug)]
pub(super) struct Placed<'a> {
    archive: &'a Archive,
    into: Option<PathBuf>,
    prefix: Vec<u8>,
    /// The names of its files, in order.
    names: Vec<&'a [u8]>,
    runs: Vec<Run>,
}

/// Returns what stands before an archive's files in the manifest.
pub(super) fn prefix(archive: &Archive) -> Vec<u8> {
    let oid = archive.tablespace.as_ref().map(|tablespace| tablespace.oid);
    oid.map(|oid| format!("pg_tblspc/{oid}/").into_bytes()).unwrap_or_default()
}

/// The archives of a backup with their runs; `into` says where each goes.
pub(super) fn placed<'a>(
    archives: &'a [Archive],
    files: &'a Files,
    into: impl Fn(&Archive) -> Option<PathBuf>,
) -> Vec<Placed<'a>> {
    let prefixes: Vec<Vec<u8>> = archives.iter().map(prefix).filter(|prefix| !prefix.is_empty()).collect();
    let of = |archive: &'a Archive| {
        let prefix = prefix(archive);
        let is_of_it = |name: &[u8]| match prefix.is_empty() {
            true => !prefixes.iter().any(|other| name.starts_with(other)),
            false => name.starts_with(&prefix),
        };
        let named = files.iter().filter(|(name, _)| is_of_it(name));
        let mut named: Vec<(usize, &[u8])> = named.map(|(name, file)| (file.number, &name[..])).collect();
        named.sort_unstable();
        let names: Vec<&[u8]> = named.into_iter().map(|(_, name)| name).collect();
        let runs = runs(archive, names.len());
        Placed { archive, into: into(archive), prefix, names, runs }
    };
    archives.iter().map(of).collect()
}

fn runs(archive: &Archive, files: usize) -> Vec<Run> {
    let total = stream::total(archive.parts.iter().map(|part| part.bytes));
    let places = &archive.places;
    let count = |files: u64| usize::try_from(files).unwrap_or(usize::MAX);
    let is_ordered = places.first().is_some_and(|first| first.at == 0 && first.files == 0)
        && places.windows(2).all(|pair| pair[0].at < pair[1].at && pair[0].files <= pair[1].files)
        && places.last().is_some_and(|last| last.at < total && count(last.files) <= files);
    if !is_ordered {
        return vec![Run { bytes: 0..total, files: None }];
    }
    let ends = places.iter().skip(1).map(|next| (next.at, count(next.files))).chain([(total, files)]);
    let run = |(place, (end, until)): (&Place, (u64, usize))| Run {
        bytes: place.at..end,
        files: Some(count(place.files)..until),
    };
    places.iter().zip(ends).map(run).collect()
}

impl Placed<'_> {
    /// The chunks for as many readers that hold what is not `whole`; with `all` those, too, in which everything is. What is known of no
    /// file is read in any case.
    pub(super) fn chunks(&self, whole: &BTreeSet<Vec<u8>>, readers: usize, all: bool) -> Vec<Chunk> {
        let is_needed = |run: &Run| match &run.files {
            _ if all => true,
            None => true,
            Some(files) => self.names[files.clone()].iter().any(|name| !whole.contains(*name)),
        };
        let most = self.most_bytes(readers);
        let mut chunks: Vec<Range<usize>> = Vec::new();
        for (number, run) in self.runs.iter().enumerate().filter(|(_, run)| is_needed(run)) {
            let follows = |chunk: &&mut Range<usize>| {
                chunk.end == number && run.bytes.end - self.runs[chunk.start].bytes.start <= most
            };
            match chunks.last_mut().filter(follows) {
                Some(chunk) => chunk.end = number + 1,
                None => chunks.push(number..number + 1),
            }
        }
        chunks.into_iter().map(|runs| self.chunk(&runs)).collect()
    }

    fn most_bytes(&self, readers: usize) -> u64 {
        let parts = self.archive.parts.len() as u64 / (4 * readers.max(1) as u64);
        let part = self.archive.parts.iter().map(|part| part.bytes).max().unwrap_or(0);
        parts.clamp(LEAST_PARTS, MOST_PARTS).saturating_mul(part)
    }

    fn chunk(&self, runs: &Range<usize>) -> Chunk {
        let (first, last) = (&self.runs[runs.start], &self.runs[runs.end - 1]);
        let bytes = first.bytes.start..last.bytes.end;
        let (mut at, mut skip, mut parts) = (0, 0, Vec::new());
        for part in &self.archive.parts {
            let end = at + part.bytes;
            if at < bytes.end && end > bytes.start {
                if parts.is_empty() {
                    skip = bytes.start - at;
                }
                parts.push(part.clone());
            }
            at = end;
        }
        let files = first.files.as_ref().zip(last.files.as_ref()).map(|(first, last)| first.start..last.end);
        let has_control = self.prefix.is_empty() && files.is_none_or(|files| self.names[files].contains(&CONTROL));
        Chunk {
            archive: self.archive.name.clone(),
            into: self.into.clone(),
            prefix: self.prefix.clone(),
            parts,
            skip,
            length: bytes.end - bytes.start,
            has_control,
        }
    }

    /// Its files in lists, to be looked for beside each other: where they go, what stands before their names, and the names.
    pub(super) fn lists(&self) -> impl Iterator<Item = (PathBuf, Vec<u8>, Vec<Vec<u8>>)> {
        let list = |into: &PathBuf, names: &[&[u8]]| {
            let names = names.iter().map(|name| name.to_vec()).collect();
            (into.clone(), self.prefix.clone(), names)
        };
        self.into.iter().flat_map(move |into| self.names.chunks(LISTED).map(move |names| list(into, names)))
    }

    /// The directories in which no file lies.
    pub(super) fn empty(&self) -> impl Iterator<Item = PathBuf> {
        self.into.iter().flat_map(|into| self.archive.empty.iter().map(move |folder| into.join(folder)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::restore::manifest::Expected;

    const PART: u64 = 100;

    /// An archive of 40 parts, with a file in each run: that of run 10 is ten parts long, the last one is the control file.
    fn archive() -> (Archive, Files) {
        let part =
            |number: u64| Part { object: number.to_string(), bytes: PART, stored_bytes: 1, sha256: String::new() };
        let begins: Vec<u64> = (0..40).filter(|number| !(11..20).contains(number)).collect();
        let place =
            |(files, number): (usize, &u64)| Place { at: number * PART + 7 * (*number).min(1), files: files as u64 };
        let places: Vec<Place> = begins.iter().enumerate().map(place).collect();
        let last = places.len() - 1;
        let name = |number| if number == last { CONTROL.to_vec() } else { format!("{}", 99 - number).into_bytes() };
        let files = (0..=last).map(|number| (name(number), Expected { size: 1, sha256: None, number })).collect();
        let (parts, empty) = ((0..40).map(part).collect(), Vec::new());
        (Archive { name: "base.tar".into(), tablespace: None, parts, places, empty }, files)
    }

    fn chunks(archive: &Archive, files: &Files, missing: &[&str], readers: usize) -> Vec<Chunk> {
        let archives = [archive.clone()];
        let whole = files.keys().filter(|name| !missing.iter().any(|missing| missing.as_bytes() == &name[..])).cloned();
        let placed = placed(&archives, files, |_| None);
        placed[0].chunks(&whole.collect(), readers, false)
    }

    fn parts(chunk: &Chunk) -> (&str, &str, u64, u64) {
        let (first, last) = (&chunk.parts[0], &chunk.parts[chunk.parts.len() - 1]);
        (&first.object, &last.object, chunk.skip, chunk.length)
    }

    #[test]
    fn only_what_is_missing_is_read_and_what_follows_is_read_together() {
        let (archive, files) = archive();
        assert_eq!(chunks(&archive, &files, &[], 4).len(), 0);
        let read = chunks(&archive, &files, &["99", "96", "95", "89", "global/pg_control"], 4);
        let read: Vec<_> = read.iter().map(|chunk| (parts(chunk), chunk.has_control)).collect();
        assert_eq!(
            read,
            [
                (("0", "1", 0, 107), false),
                (("3", "5", 7, 200), false),
                (("10", "20", 7, 1000), false),
                (("39", "39", 7, 93), true)
            ]
        );
    }

    #[test]
    fn everything_is_read_once_however_many_read() {
        let (archive, files) = archive();
        let all: Vec<String> = files.keys().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        for readers in [1, 4, 32] {
            let read = chunks(&archive, &files, &all, readers);
            let mut at = 0;
            for chunk in &read {
                let first: u64 = chunk.parts[0].object.parse().expect("a number");
                assert_eq!(first * PART + chunk.skip, at, "{readers} readers");
                at += chunk.length;
            }
            assert!(at == 40 * PART && (4..=6).contains(&read.len()), "{readers} readers: {at}, {}", read.len());
            assert!(read.iter().filter(|chunk| chunk.has_control).count() == 1 && read[read.len() - 1].has_control);
        }
    }

    #[test]
    fn an_archive_of_which_nothing_is_known_is_one_chunk() {
        let (sound, files) = archive();
        let changed = |change: fn(&mut Archive)| {
            let mut archive = sound.clone();
            change(&mut archive);
            archive
        };
        for archive in [
            changed(|archive| archive.places.clear()),
            changed(|archive| archive.places[0].at = 1),
            changed(|archive| archive.places.swap(3, 4)),
            changed(|archive| archive.places[29].files = 1_000),
            changed(|archive| archive.places[29].at = 40 * PART),
        ] {
            let read = chunks(&archive, &files, &[], 4);
            assert_eq!(read.iter().map(parts).collect::<Vec<_>>(), [("0", "39", 0, 40 * PART)]);
            assert!(read[0].has_control);
        }
    }
}
