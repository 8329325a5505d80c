//! Files of the log as a gate gives them (see `gate`).

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use super::log::Log;
use super::wal_name::WalName;
use crate::error::{Error, Result};
use crate::segment::wal::{self, PAGE, WalScanner};
use crate::stream::Lsn;

/// So much of the log before and behind a file is looked at with it: a record that cleans a page up has the images of a few pages at the
/// most, 8 KiB each.
const AROUND: u64 = 8 * PAGE;

/// Whether Postgres, which wants a file at `path`, has the one already in which the gate stands.
pub(super) fn is_delivered(log: &Log, wal: WalName, path: &Path) -> Result<bool> {
    let Some(gate) = log.gate() else { return Ok(false) };
    let size = u64::from(log.system().wal_segment_size);
    let start = wal.start(size)?;
    let is_last = start < gate.until && gate.until < start + size;
    Ok(is_last && path.with_file_name(wal.to_string()).exists())
}

/// Makes those clean-ups in a file of the log harmless that the gate names; also those that begin before it or end behind it.
pub(super) async fn make_harmless(log: &Log, wal: WalName, file: &mut File) -> Result<()> {
    let Some(gate) = log.gate().filter(|gate| !gate.harmless.is_empty()) else { return Ok(()) };
    let (timeline, size) = (wal.timeline(), u64::from(log.system().wal_segment_size));
    let Some(archived) = log.range(timeline) else { return Ok(()) };
    let start = wal.start(size)?;
    let from = Lsn(start.0.saturating_sub(AROUND)).max(Lsn(archived.start.0.next_multiple_of(PAGE))).min(start);
    let until = (start + size).min(archived.end);
    let behind = (until + AROUND).min(archived.end);
    let begins = log.ancestors(timeline).await?.last().map_or(Lsn(0), |origin| origin.at);
    // Before its own beginning the log is its parent's, which may have gone another way.
    let from = from.max(Lsn(begins.0 / PAGE * PAGE)).min(start);
    let failed = |source| Error::io(source, format!("cannot read the file {wal} again"));
    let mut bytes = log.bytes(timeline, &(from..start)).await?;
    let before = bytes.len();
    file.seek(SeekFrom::Start(0)).map_err(failed)?;
    file.read_to_end(&mut bytes).map_err(failed)?;
    // The gate may have cut it: what follows is looked at, and not given.
    let given = start + (bytes.len() - before) as u64;
    if given < behind {
        bytes.extend(log.bytes(timeline, &(given..behind)).await?);
    }
    let scanner = WalScanner::new(log.system(), timeline, from, begins)?;
    let count = wal::make_harmless(scanner, &mut bytes, &gate.harmless)?;
    if count > 0 {
        let given = usize::try_from(given - from).unwrap_or(usize::MAX).min(bytes.len());
        file.write_all_at(&bytes[before..given], 0).map_err(failed)?;
    }
    Ok(())
}
