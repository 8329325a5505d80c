//! The server's manifest of a base backup: every file with its size and SHA-256 (chapter "Backup Manifest Format").

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read};

use serde::Deserialize;
use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use sha2::{Digest, Sha256};

use crate::error::{Error, Kind, Result, ResultExt};

/// What a file must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Expected {
    pub(crate) size: u64,
    /// None if the server was told to leave it out.
    pub(crate) sha256: Option<String>,
    /// How many files the manifest names before it.
    pub(crate) number: usize,
}

/// The files by their paths below the data directory.
pub(super) type Files = BTreeMap<Vec<u8>, Expected>;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    path: Option<String>,
    #[serde(rename = "Encoded-Path")]
    encoded_path: Option<String>,
    size: u64,
    #[serde(rename = "Checksum-Algorithm")]
    algorithm: Option<String>,
    checksum: Option<String>,
}

impl Entry {
    fn read(self) -> Result<(Vec<u8>, Expected)> {
        let path = match (self.path, self.encoded_path) {
            (Some(path), _) => path.into_bytes(),
            (None, Some(digits)) => unhex(&digits).ok_or_else(|| corrupt("has a path that cannot be read"))?,
            (None, None) => return Err(corrupt("has a file without a path")),
        };
        let sha256 = match self.algorithm.as_deref() {
            Some("SHA256") => self.checksum,
            None => None,
            Some(other) => return Err(corrupt(&format!("has checksums by {other}, and SHA256 was asked for"))),
        };
        Ok((path, Expected { size: self.size, sha256, number: 0 }))
    }
}

fn corrupt(what: &str) -> Error {
    Error::new(Kind::Corrupt, format!("the backup manifest {what}")).hint("use another base backup")
}

/// Reads a manifest of `most` files at the most, and checks its own checksum: that of everything before its last line.
pub(super) fn parse(text: impl Read, most: u64) -> Result<Files> {
    let mut files = Files::new();
    each_file(text, |path, expected| {
        let number = files.len();
        files.insert(path.to_vec(), Expected { number, ..expected });
        if files.len() as u64 > most {
            return Err(corrupt("names more files than the archives can hold"));
        }
        Ok(())
    })?;
    Ok(files)
}

/// Reads a manifest file by file, without holding it, and checks its own checksum when it is through.
pub(crate) fn each_file(text: impl Read, mut each: impl FnMut(&[u8], Expected) -> Result<()>) -> Result<()> {
    let mut text = Lines::new(text);
    let mut failure = None;
    let mut visitor = EachFile {
        each: |entry: Entry| {
            let told = entry.read().and_then(|(path, expected)| each(&path, expected));
            told.map_err(|error| failure = Some(error)).is_ok()
        },
    };
    let mut json = serde_json::Deserializer::from_reader(&mut text);
    let read = json.deserialize_map(&mut visitor).and_then(|found| json.end().map(|()| found));
    drop(json);
    if let Some(failure) = failure {
        return Err(failure);
    }
    let (version, checksum) = read.or_err(Kind::Corrupt, || "the backup manifest cannot be read".into())?;
    if !(1..=2).contains(&version) {
        let message = format!("the backup manifest has version {version}");
        return Err(Error::new(Kind::Unsupported, message).hint("use a newer tidelog"));
    }
    if text.into_inner().before_the_last() != checksum {
        return Err(corrupt("is damaged: its checksum is another"));
    }
    Ok(())
}

/// Goes through a manifest's JSON; gives its version and its checksum.
struct EachFile<F> {
    each: F,
}

impl<'de, F: FnMut(Entry) -> bool> Visitor<'de> for &mut EachFile<F> {
    type Value = (u32, String);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a backup manifest")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut version, mut files, mut checksum) = (None, None, None);
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "PostgreSQL-Backup-Manifest-Version" => version = Some(map.next_value()?),
                "Files" => files = Some(map.next_value_seed(&mut *self)?),
                "Manifest-Checksum" => checksum = Some(map.next_value()?),
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        let missing = de::Error::missing_field;
        files.ok_or_else(|| missing("Files"))?;
        Ok((version.ok_or_else(|| missing("Version"))?, checksum.ok_or_else(|| missing("Manifest-Checksum"))?))
    }
}

impl<'de, F: FnMut(Entry) -> bool> DeserializeSeed<'de> for &mut EachFile<F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, list: D) -> Result<(), D::Error> {
        list.deserialize_seq(Entries(self))
    }
}

/// The list of files.
struct Entries<'a, F>(&'a mut EachFile<F>);

impl<'de, F: FnMut(Entry) -> bool> Visitor<'de> for Entries<'_, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of files")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while let Some(entry) = list.next_element()? {
            if !(self.0.each)(entry) {
                return Err(de::Error::custom("a file cannot be read"));
            }
        }
        Ok(())
    }
}

/// Passes text on and hashes it, all but its last line, which only its end tells to be the last.
struct Lines<R> {
    text: R,
    hash: Sha256,
    /// From the last line that has begun.
    last: Vec<u8>,
}

/// No line of a manifest is longer. It names one file (`AddFileToBackupManifest`, backup_manifest.c), and a path has 4 KiB at
/// the most, twice as many as hexadecimal digits.
const LONGEST_LINE: usize = 64 << 10;

impl<R: Read> Lines<R> {
    fn new(text: R) -> io::BufReader<Self> {
        io::BufReader::new(Self { text, hash: Sha256::new(), last: Vec::new() })
    }
}

impl<R: Read> Read for Lines<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.text.read(buffer)?;
        self.last.extend_from_slice(&buffer[..count]);
        let before = self.last.len().saturating_sub(1);
        if let Some(newline) = self.last[..before].iter().rposition(|byte| *byte == b'\n') {
            self.hash.update(&self.last[..=newline]);
            self.last.drain(..=newline);
        }
        if self.last.len() > LONGEST_LINE {
            return Err(io::Error::other(format!("it has a line of more than {LONGEST_LINE} bytes")));
        }
        Ok(count)
    }
}

impl<R> Lines<R> {
    /// The sha256 of all lines but the last.
    fn before_the_last(self) -> String {
        self.hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// What many files amount to, whatever their order: their number, their bytes, and a sum of the hashes of names and sizes. It
/// takes no more room for more files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    files: u64,
    bytes: u64,
    sum: [u64; 4],
}

impl Tally {
    /// Adds a file.
    pub(crate) fn add(&mut self, path: &[u8], size: u64) {
        let hash = Sha256::new().chain_update(size.to_le_bytes()).chain_update(path).finalize();
        self.files += 1;
        self.bytes = self.bytes.wrapping_add(size);
        for (sum, lane) in self.sum.iter_mut().zip(hash.chunks_exact(8)) {
            *sum = lane.iter().fold(0, |lane, byte| (lane << 8) | u64::from(*byte)).wrapping_add(*sum);
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} files with {} bytes (names {:016x})", self.files, self.bytes, self.sum[0])
    }
}

fn unhex(digits: &str) -> Option<Vec<u8>> {
    let bytes = digits.as_bytes().chunks(2);
    bytes.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::sha256;

    fn with_checksum(body: &str) -> Vec<u8> {
        format!("{body}\"Manifest-Checksum\": \"{}\"}}\n", sha256(body.as_bytes())).into_bytes()
    }

    const BODY: &str = "{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [\n\
        { \"Path\": \"a\", \"Size\": 3, \"Last-Modified\": \"x\", \"Checksum-Algorithm\": \"SHA256\", \"Checksum\": \"ab\" },\n\
        { \"Encoded-Path\": \"ff62\", \"Size\": 0, \"Last-Modified\": \"x\" }\n],\n\"WAL-Ranges\": [],\n";

    #[test]
    fn files_are_read_by_their_paths() {
        let files = parse(&with_checksum(BODY)[..], 2).expect("a manifest");
        assert_eq!(files[&b"a"[..]], Expected { size: 3, sha256: Some("ab".into()), number: 0 });
        assert_eq!(files[&b"\xffb"[..]], Expected { size: 0, sha256: None, number: 1 });
    }

    #[test]
    fn a_manifest_that_was_changed_is_refused() {
        let text = String::from_utf8(with_checksum(BODY)).expect("text").replace("\"Size\": 3", "\"Size\": 4");
        assert!(parse(text.as_bytes(), 2).expect_err("it was changed").to_string().contains("checksum is another"));
        assert_eq!(parse(&b"{}"[..], 2).expect_err("no manifest").kind(), Kind::Corrupt);
        let newer = with_checksum(&BODY.replace("Version\": 1", "Version\": 3"));
        assert_eq!(parse(&newer[..], 2).expect_err("a newer one").kind(), Kind::Unsupported);
        let weak = with_checksum(&BODY.replace("SHA256", "CRC32C"));
        assert!(parse(&weak[..], 2).expect_err("another algorithm").to_string().contains("CRC32C"));
    }

    #[test]
    fn a_manifest_takes_no_more_memory_than_its_archives_allow() {
        let many = parse(&with_checksum(BODY)[..], 1).expect_err("there is room for one file");
        assert!(many.kind() == Kind::Corrupt && many.to_string().contains("more files"), "{many}");
        let long = with_checksum(&BODY.replace("\"a\"", &format!("\"{}\"", "a".repeat(2 * LONGEST_LINE))));
        let long = parse(&long[..], 2).map(|files| files.len()).expect_err("a line without end");
        assert!(long.kind() == Kind::Corrupt && long.to_string().contains("a line of more"), "{long}");
    }
}
