//! The scan of the records of a timeline, from one segment to the next, and from one process to the next.
//!
//! A process that starts in the middle of a record needs what came before it: the last block of the archive is read
//! back and scanned, so that every record's CRC is checked and every commit is counted once.

use std::collections::BTreeMap;

use super::buffers::Buffer;
use super::shared::Shared;
use crate::error::{Kind, Result, ResultExt as _};
use crate::manifest::{Chain, Selection};
use crate::segment::wal::{MOST_BYTES, Seen, WalReader, WalScanner, parse_history};
use crate::store::Store;
use crate::stream::{Lsn, SegmentRef};

/// How much is read at a time.
const PIECE: usize = 256 << 10;

/// A scan of one timeline.
pub(super) struct WalScan {
    timeline: u32,
    scanner: WalScanner,
}

impl WalScan {
    /// Returns whether the scan has come just to this place.
    pub(super) fn is_at(&self, timeline: u32, at: Lsn) -> bool {
        self.timeline == timeline && self.scanner.position() == at
    }

    /// The end of the last record that was right.
    pub(super) fn verified(&self) -> Option<Lsn> {
        self.scanner.verified()
    }

    /// Goes on through the bytes from `start` to `end`, which the spool holds; gives them.
    pub(super) fn over(&mut self, shared: &Shared, start: Lsn, end: Lsn) -> Result<(Buffer, Seen)> {
        if let Some(buffer) = shared.spool.take(self.timeline, start, end) {
            self.scanner.feed(&buffer)?;
            return Ok((buffer, self.scanner.take()));
        }
        let mut buffer = shared.buffers.take(end - start);
        // Scanned while the processor still has them.
        for piece in buffer.chunks_mut(PIECE) {
            shared.spool.read(self.timeline, self.scanner.position(), piece)?;
            self.scanner.feed(piece)?;
        }
        Ok((buffer, self.scanner.take()))
    }
}

/// A scan that goes on at `at`.
pub(super) async fn resume(shared: &Shared, chain: &Chain, timeline: u32, at: Lsn) -> Result<WalScan> {
    let switch = switch_of(&shared.store, chain, timeline).await?;
    let partition = timeline.cast_signed();
    let block = Lsn(at.0.saturating_sub(1) / MOST_BYTES * MOST_BYTES);
    let archived = chain.position(partition).filter(|position| Lsn::at(position.end) == at);
    if let Some(position) = archived {
        let from = block.max(Lsn::at(position.start));
        let partitions = BTreeMap::from([(partition, from.position()..at.position())]);
        let selected = chain.select(&Selection { timestamps: None, partitions: Some(partitions) }).await?;
        match through(shared, timeline, switch, &selected.segments, at).await {
            Ok(scanner) => return Ok(WalScan { timeline, scanner }),
            // The archive's damage is verify's matter. What comes now is scanned from the next page on.
            Err(error) => {
                tracing::error!(%error, hint = error.hint_text(), "the end of the archived WAL cannot be read back");
            }
        }
    }
    Ok(WalScan { timeline, scanner: WalScanner::new(shared.system, timeline, at, switch)? })
}

/// A scanner that has come through these segments to `at`.
async fn through(shared: &Shared, timeline: u32, switch: Lsn, segments: &[SegmentRef], at: Lsn) -> Result<WalScanner> {
    let start =
        segments.first().and_then(|segment| segment.partitions.first()).map_or(at, |range| Lsn::at(range.start));
    let mut scanner = WalScanner::new(shared.system, timeline, start, switch)?;
    for segment in segments {
        let reader = WalReader::open(&shared.store, segment).await?;
        if reader.facts().start != scanner.position() {
            // A gap: what lies before it is of no use.
            scanner = WalScanner::new(shared.system, timeline, reader.facts().start, switch)?;
        }
        let scanned = tokio::task::spawn_blocking(move || {
            let bytes = reader.all()?;
            scanner.feed(&bytes).map(|()| scanner)
        });
        scanner = scanned.await.or_err(Kind::Internal, || "the scan of WAL was aborted".into())??;
    }
    if scanner.position() != at {
        return WalScanner::new(shared.system, timeline, at, switch);
    }
    // What is archived was counted when it was.
    scanner.take();
    Ok(scanner)
}

/// Returns where a timeline left its parent: 0/0 for the first, the greatest LSN where its history is not archived.
pub(super) async fn switch_of(store: &Store, chain: &Chain, timeline: u32) -> Result<Lsn> {
    let Some(key) = chain.history_key(timeline).filter(|_| timeline > 1) else { return Ok(Lsn(0)) };
    let history = store.get(&key).await?;
    let switches = history.map(|text| parse_history(timeline, &text)).transpose()?.unwrap_or_default();
    Ok(switches.last().map_or(Lsn(u64::MAX), |switch| switch.at))
}
