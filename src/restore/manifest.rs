//! The server's manifest of a base backup: every file with its size and SHA-256 (chapter "Backup Manifest Format").

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::error::{Error, Kind, Result, ResultExt};
use crate::stream::sha256;

/// What a file must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Expected {
    pub(super) size: u64,
    /// None if the server was told to leave it out.
    pub(super) sha256: Option<String>,
}

/// The files by their paths below the data directory.
pub(super) type Files = BTreeMap<Vec<u8>, Expected>;

#[derive(Deserialize)]
struct Manifest {
    #[serde(rename = "PostgreSQL-Backup-Manifest-Version")]
    version: u32,
    #[serde(rename = "Files")]
    files: Vec<Entry>,
    #[serde(rename = "Manifest-Checksum")]
    checksum: String,
}

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

/// Reads a manifest, and checks its own checksum: that of everything before its last line.
pub(super) fn parse(text: &[u8]) -> Result<Files> {
    let corrupt =
        |what: &str| Error::new(Kind::Corrupt, format!("the backup manifest {what}")).hint("use another base backup");
    let manifest: Manifest =
        serde_json::from_slice(text).or_err(Kind::Corrupt, || "the backup manifest cannot be read".into())?;
    if !(1..=2).contains(&manifest.version) {
        let message = format!("the backup manifest has version {}", manifest.version);
        return Err(Error::new(Kind::Unsupported, message).hint("use a newer tidelog"));
    }
    let body = text.strip_suffix(b"\n").unwrap_or(text);
    let last = body.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    if sha256(&text[..last]) != manifest.checksum {
        return Err(corrupt("is damaged: its checksum is another"));
    }
    let mut files = Files::new();
    for entry in manifest.files {
        let path = match (entry.path, entry.encoded_path) {
            (Some(path), _) => path.into_bytes(),
            (None, Some(digits)) => unhex(&digits).ok_or_else(|| corrupt("has a path that cannot be read"))?,
            (None, None) => return Err(corrupt("has a file without a path")),
        };
        let sha256 = match entry.algorithm.as_deref() {
            Some("SHA256") => entry.checksum,
            None => None,
            Some(other) => return Err(corrupt(&format!("has checksums by {other}, and SHA256 was asked for"))),
        };
        files.insert(path, Expected { size: entry.size, sha256 });
    }
    Ok(files)
}

fn unhex(digits: &str) -> Option<Vec<u8>> {
    let bytes = digits.as_bytes().chunks(2);
    bytes.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_checksum(body: &str) -> Vec<u8> {
        format!("{body}\"Manifest-Checksum\": \"{}\"}}\n", sha256(body.as_bytes())).into_bytes()
    }

    const BODY: &str = "{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [\n\
        { \"Path\": \"a\", \"Size\": 3, \"Last-Modified\": \"x\", \"Checksum-Algorithm\": \"SHA256\", \"Checksum\": \"ab\" },\n\
        { \"Encoded-Path\": \"ff62\", \"Size\": 0, \"Last-Modified\": \"x\" }\n],\n\"WAL-Ranges\": [],\n";

    #[test]
    fn files_are_read_by_their_paths() {
        let files = parse(&with_checksum(BODY)).expect("a manifest");
        assert_eq!(files[&b"a"[..]], Expected { size: 3, sha256: Some("ab".into()) });
        assert_eq!(files[&b"\xffb"[..]], Expected { size: 0, sha256: None });
    }

    #[test]
    fn a_manifest_that_was_changed_is_refused() {
        let text = String::from_utf8(with_checksum(BODY)).expect("text").replace("\"Size\": 3", "\"Size\": 4");
        assert!(parse(text.as_bytes()).expect_err("it was changed").to_string().contains("checksum is another"));
        assert_eq!(parse(b"{}").expect_err("no manifest").kind(), Kind::Corrupt);
        let newer = with_checksum(&BODY.replace("Version\": 1", "Version\": 3"));
        assert_eq!(parse(&newer).expect_err("a newer one").kind(), Kind::Unsupported);
        let weak = with_checksum(&BODY.replace("SHA256", "CRC32C"));
        assert!(parse(&weak).expect_err("another algorithm").to_string().contains("CRC32C"));
    }
}
