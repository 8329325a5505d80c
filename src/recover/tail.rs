//! The end of a server's log, for an error.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;

use crate::escape::one_line;

/// How many lines stand in an error.
const LINES: usize = 8;

/// The last lines of a log that were written behind a position.
pub(super) fn last_lines(log: &Path, from: u64) -> std::io::Result<Vec<String>> {
    const MOST: u64 = 16 << 10;
    let mut file = File::open(log)?;
    let end = file.metadata()?.len();
    file.seek(SeekFrom::Start(from.max(end.saturating_sub(MOST))))?;
    let mut bytes = Vec::new();
    file.take(MOST).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let last = lines.len().saturating_sub(LINES);
    Ok(lines[last..].iter().map(|line| one_line(line.trim()).into_owned()).collect())
}
