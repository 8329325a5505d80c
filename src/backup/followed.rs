//! Whether what is archived can follow a base backup: the log of the server that sent it must be the archived one, where both have it.
//!
//! ```text
//!   archive   1 ├───────────── a ──────────────►
//!   server    1 ├── copied ── b ──●backup●──►       an older copy of the data directory, put back, that has written on
//! ```
//!
//! The name of the system, the timeline and the positions say nothing of that: such a backup would be called usable, and a restore would
//! replay the log of one server over the pages of another. So bytes are compared: those that a restore replays first, from the start of
//! the backup on, with its checkpoint and the time of that; where the archive has not come so far, the last ones that it has, for histories
//! that went apart do not meet again. The receiver compares what comes behind the archive's end.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::timeout;

use crate::error::{Error, Kind, Result};
use crate::manifest::backups::Backup;
use crate::manifest::origin::differs;
use crate::manifest::system::archived_system;
use crate::manifest::{Chain, Selection};
use crate::segment::wal::{MOST_BYTES, Switch, WalReader, parse_history};
use crate::source::postgres::{Event, Replication, is_removed_wal};
use crate::store::Store;
use crate::stream::{Lsn, PartitionRange};

/// How much of the log is compared at the most.
const COMPARED: u64 = 2 * MOST_BYTES;

/// A server that has this log sends it at once.
const SENDS_WITHIN: Duration = Duration::from_secs(60);

/// Compares the log of the server that has sent a backup with what is archived by now. What cannot be compared, because the server has
/// removed it or the archive does not answer, is told and does not make hours of work void.
///
/// # Errors
/// [`Kind::Unavailable`] for another log: the right server may answer the next time.
pub(super) async fn by_the_archive(replication: Replication, store: &Store, backup: &Backup) -> Result<()> {
    let compared = timeout(SENDS_WITHIN, first_difference(replication, store, backup)).await;
    let compared = compared.unwrap_or_else(|_| Err(Error::new(Kind::Unavailable, "the server sends no WAL")));
    match compared {
        Ok(None) => Ok(()),
        Ok(Some((timeline, at))) => Err(differs(timeline, at)),
        // A server keeps no more than it needs and what its slots ask for: mostly nothing of what is archived.
        Err(error) if is_removed_wal(&error) => Ok(()),
        Err(error) => {
            let name = &backup.name;
            tracing::warn!(%error, name, "the log of this base backup's server cannot be compared with what is archived");
            Ok(())
        }
    }
}

/// The first position, with its timeline, at which the server has another byte than the archive.
async fn first_difference(mut replication: Replication, store: &Store, backup: &Backup) -> Result<Option<(u32, Lsn)>> {
    let Some(chain) = archived_system(store).await? else { return Ok(None) };
    let history = match backup.end_timeline {
        1 => Vec::new(),
        timeline => parse_history(timeline, &replication.timeline_history(timeline).await?)?,
    };
    let newest = chain_end(&chain, &history, (backup.end_timeline, backup.end));
    let Some((timeline, position, until)) = newest else { return Ok(None) };
    let own = if timeline == backup.timeline { backup.start } else { until };
    let before = Lsn(until.0.saturating_sub(COMPARED));
    let from = Lsn::at(position.start).max(if own < until { own } else { before });
    let until = until.min(from + COMPARED);
    if from >= until {
        return Ok(None);
    }
    let partitions = BTreeMap::from([(position.partition, from.position()..until.position())]);
    let selection = Selection { timestamps: None, partitions: Some(partitions) };
    let segments = chain.select(&selection).await?.segments;
    let sent = log_of(replication, timeline, from, until).await?;
    for segment in &segments {
        let Some(start) = segment.partitions.first().map(|range| Lsn::at(range.start)) else { continue };
        let archived = WalReader::open(store, segment).await?.all()?;
        // One of the two begins later.
        let (ours, theirs) = (from.max(start) - start, from.max(start) - from);
        let (ours, theirs) = (archived.get(ours as usize..), sent.get(theirs as usize..));
        let mut pairs = ours.unwrap_or_default().iter().zip(theirs.unwrap_or_default());
        if let Some(at) = pairs.position(|(one, other)| one != other) {
            return Ok(Some((timeline, from.max(start) + at as u64)));
        }
    }
    Ok(None)
}

/// The newest timeline on the server's way of which something is archived, with that, and up to where both have it.
fn chain_end<'a>(
    chain: &'a Chain,
    history: &[Switch],
    (timeline, end): (u32, Lsn),
) -> Option<(u32, &'a PartitionRange, Lsn)> {
    let way = history.iter().map(|switch| (switch.timeline, switch.at)).chain([(timeline, end)]);
    let mut both = way.filter_map(|(timeline, end)| {
        let position = chain.position(timeline.cast_signed())?;
        Some((timeline, position, end.min(Lsn::at(position.end))))
    });
    both.next_back()
}

/// The server's log from one position to another.
async fn log_of(replication: Replication, timeline: u32, from: Lsn, until: Lsn) -> Result<Vec<u8>> {
    let wanted = usize::try_from(until - from).unwrap_or(usize::MAX);
    let mut sent = Vec::new();
    let mut stream = replication.stream(None, timeline, from).await?;
    while sent.len() < wanted {
        match stream.next().await? {
            Event::Data { bytes, .. } => sent.extend_from_slice(bytes),
            Event::Keepalive { .. } => {}
            Event::TimelineEnded { .. } => break,
        }
    }
    sent.truncate(wanted);
    Ok(sent)
}
