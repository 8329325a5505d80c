//! The write-ahead log of one system, as a restore sees it: files by name, and what is provably not there.

use std::collections::BTreeMap;
use std::io::Write;
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;

use super::gate::Gate;
use super::patience::{PATIENCE, patiently};
use crate::error::{Error, Kind, Result};
use crate::manifest::{self, Chain, Selected, Selection, found};
use crate::segment::wal::{Switch, WalReader, check_pages, parse_history};
use crate::store::Store;
use crate::stream::{Lsn, System};

/// The archived WAL of one Postgres system.
pub struct Log {
    store: Store,
    chain: Chain,
    system: System,
    /// Up to where the log was looked through when the restore was planned.
    looked_through: Option<Lsn>,
    /// Where the record begins behind which Postgres was told to stop.
    stop: Option<Lsn>,
    /// How long a store that is away is waited for.
    patience: Duration,
    /// Up to where a scratch standby gets it.
    gate: Option<Gate>,
}

/// What the archive has of a WAL file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// All of it.
    Whole,
    /// Its beginning, up to where the timeline's archive ends, or WAL is lost behind where Postgres stops. With zeros behind it, that is to
    /// Postgres where the log ends.
    Begun,
    /// Nothing, and nothing that comes later on this timeline. No such WAL was ever archived.
    Absent,
}

impl Log {
    /// Opens the log of the only system in the archive, or of the one that is named.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if there is none: an archive without a log proves nothing about what is absent from it.
    pub async fn open(store: &Store, system_id: Option<u64>) -> Result<Self> {
        let stream = manifest::system(store, system_id).await?;
        let chain = Chain::open(store, &stream).await?;
        let chain = chain.ok_or_else(|| Error::new(Kind::NotFound, format!("the chain of {stream} has gone")))?;
        let system = chain.begin_facts().system().copied();
        let system =
            system.ok_or_else(|| Error::new(Kind::Corrupt, format!("the chain of {stream} is of no Postgres")))?;
        Ok(Self {
            store: store.clone(),
            chain,
            system,
            looked_through: None,
            stop: None,
            patience: Duration::ZERO,
            gate: None,
        })
    }

    /// The same log for who has time: a store that is away is waited for.
    #[must_use]
    pub fn patient(self) -> Self {
        Self { patience: PATIENCE, ..self }
    }

    /// The same log, of which WAL behind a position has to be looked through before Postgres gets it.
    #[must_use]
    pub fn looked_through(self, until: Option<Lsn>) -> Self {
        Self { looked_through: until, ..self }
    }

    /// The same log for a recovery that stops behind the record at a position: that it could not go on from there does not matter.
    #[must_use]
    pub fn stopping_behind(self, stop: Option<Lsn>) -> Self {
        Self { stop, ..self }
    }

    /// The same log for a scratch standby, that gets it up to a gate.
    #[must_use]
    pub fn gated(self, gate: Option<Gate>) -> Self {
        Self { gate, ..self }
    }

    /// The gate behind which it ends.
    pub(super) fn gate(&self) -> Option<&Gate> {
        self.gate.as_ref()
    }

    /// Returns up to where Postgres may get it as it is; none: all of it.
    pub(super) fn is_looked_through(&self) -> Option<Lsn> {
        self.looked_through
    }

    /// Refuses an archive that has less than a restore was planned with.
    ///
    /// # Errors
    /// [`Kind::Incomplete`] for an older copy of the archive.
    pub fn expect_entry(&self, entry: Option<u64>) -> Result<()> {
        let head = self.chain.head();
        match entry.filter(|entry| head < *entry) {
            None => Ok(()),
            Some(entry) => {
                let message = format!(
                    "the archive at {} is an older copy: its chain ends with entry {head}, and the restore was planned with entry {entry}",
                    self.store.url()
                );
                Err(Error::new(Kind::Incomplete, message)
                    .hint("bring the copy up to date, or plan the restore again with `tidelog restore-postgres`"))
            }
        }
    }

    /// Returns which system it is.
    pub fn system(&self) -> System {
        self.system
    }

    /// Returns what the archive holds of a timeline; none if nothing.
    pub fn range(&self, timeline: u32) -> Option<Range<Lsn>> {
        let position = self.chain.position(timeline.cast_signed())?;
        Some(Lsn::at(position.start)..Lsn::at(position.end))
    }

    /// The timelines of which something is archived.
    pub fn timelines(&self) -> impl Iterator<Item = u32> {
        self.chain.positions().map(|position| position.partition.cast_unsigned())
    }

    /// The chain beneath.
    pub(super) fn chain(&self) -> &Chain {
        &self.chain
    }

    /// The base backups of the system.
    pub async fn backups(&self) -> Result<found::Found> {
        found::backups(&self.store, self.system.system_id, self.chain.backups()).await
    }

    /// The history file of a timeline; none if it has none in the archive.
    pub async fn history(&self, timeline: u32) -> Result<Option<Bytes>> {
        let Some(key) = self.chain.history_key(timeline) else { return Ok(None) };
        self.store.get(&key).await
    }

    /// The timelines that `timeline` comes from, oldest first.
    pub async fn ancestors(&self, timeline: u32) -> Result<Vec<Switch>> {
        if timeline == 1 {
            return Ok(Vec::new());
        }
        let history = self.history(timeline).await?.ok_or_else(|| {
            Error::new(Kind::NotFound, format!("the archive has no history of timeline {timeline}"))
                .hint("name another timeline; `tidelog ls` shows what is archived")
        })?;
        parse_history(timeline, &history)
    }

    /// Segments and gaps of a timeline that touch `lsns`.
    pub(super) async fn select(&self, timeline: u32, lsns: &Range<Lsn>) -> Result<Selected> {
        let range = lsns.start.position()..lsns.end.position();
        let partitions = Some(BTreeMap::from([(timeline.cast_signed(), range)]));
        let wanted = Selection { timestamps: None, partitions };
        patiently(self.patience, || self.chain.select(&wanted)).await
    }

    /// Returns whether the archive goes beyond `start` on a timeline.
    pub fn reaches(&self, timeline: u32, start: Lsn) -> bool {
        self.range(timeline).is_some_and(|archived| start < archived.end)
    }

    /// Writes a file of WAL, by its timeline and the position of its first byte, as far as the archive has it: segment by segment, for
    /// it may be longer than fits into memory.
    ///
    /// # Errors
    /// Whenever the archive should have it and cannot give it: a gap, a segment that is missing or damaged, WAL that was
    /// there before the archive began or that retention has let go.
    pub async fn file(&self, timeline: u32, start: Lsn, into: &mut impl Write) -> Result<Found> {
        let size = u64::from(self.system.wal_segment_size);
        let end = start + size;
        let Some(archived) = self.range(timeline) else { return Ok(Found::Absent) };
        if start >= archived.end {
            return Ok(Found::Absent);
        }
        let mut until = end.min(archived.end);
        if let Some(gate) = &self.gate {
            // A file of which more comes later is not begun: who reads it keeps the one that it has open.
            if start >= gate.until || until < end.min(gate.until) {
                return Ok(Found::Absent);
            }
            until = until.min(gate.until);
        }
        if start < archived.start {
            return self.before_its_beginning(timeline, start..end, archived.start).await;
        }
        let wanted = start..self.before_what_is_lost(timeline, start..until).await?;
        self.pieces(timeline, &wanted, |at, piece| {
            check_pages(self.system.server_version, at, &piece)?;
            into.write_all(&piece).map_err(|source| Error::io(source, "cannot write a WAL file"))
        })
        .await?;
        Ok(if wanted.end == end { Found::Whole } else { Found::Begun })
    }

    /// The end of what is wanted; where WAL is lost in it behind where Postgres stops, where that begins. Without a place to stop, a
    /// recovery must not take the beginning of a hole for the end of the log.
    async fn before_what_is_lost(&self, timeline: u32, wanted: Range<Lsn>) -> Result<Lsn> {
        let Some(stop) = self.stop.filter(|stop| *stop < wanted.end) else { return Ok(wanted.end) };
        let gaps = self.select(timeline, &wanted).await?.gaps;
        let lost = gaps.first().map(|gap| Lsn::at(gap.start)).filter(|lost| stop < *lost && wanted.start < *lost);
        Ok(lost.unwrap_or(wanted.end))
    }

    /// A timeline's files begin with the one in which it left its parent. One before that never was.
    async fn before_its_beginning(&self, timeline: u32, file: Range<Lsn>, archived: Lsn) -> Result<Found> {
        if let Some(origin) = self.ancestors(timeline).await?.last()
            && file.end <= origin.at
        {
            return Ok(Found::Absent);
        }
        let message = format!(
            "WAL of timeline {timeline} from {} on is wanted, and the archive begins at {archived}",
            file.start
        );
        Err(Error::new(Kind::Incomplete, message)
            .hint("use a newer base backup: what comes before was never archived, or retention has let it go"))
    }

    /// The bytes of `wanted`, all of which the chain says are archived.
    pub(super) async fn bytes(&self, timeline: u32, wanted: &Range<Lsn>) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.pieces(timeline, wanted, |_, piece| {
            // The usual case: it is one segment.
            if bytes.is_empty() {
                bytes = piece
            } else {
                bytes.extend_from_slice(&piece)
            }
            Ok(())
        })
        .await?;
        Ok(bytes)
    }

    /// The same, piece by piece, each with its position.
    async fn pieces(
        &self,
        timeline: u32,
        wanted: &Range<Lsn>,
        mut each: impl FnMut(Lsn, Vec<u8>) -> Result<()>,
    ) -> Result<()> {
        let Selected { segments, gaps } = self.select(timeline, wanted).await?;
        if let Some(gap) = gaps.first() {
            let (start, end) = (Lsn::at(gap.start), Lsn::at(gap.end));
            let message = format!("WAL of timeline {timeline} from {start} to {end} is lost: {}", gap.reason.words());
            return Err(Error::new(Kind::Incomplete, message)
                .hint("recover to a moment before it, or from a base backup that was taken after it"));
        }
        let mut at = wanted.start;
        for segment in &segments {
            let reader = patiently(self.patience, || WalReader::open(&self.store, segment)).await;
            let reader = reader.map_err(|error| missing(error, &segment.object))?;
            let (start, end) = (reader.facts().start, reader.facts().end.min(wanted.end));
            if start > at {
                break;
            }
            if end <= at {
                continue;
            }
            let mut piece = reader.all()?;
            piece.truncate(usize::try_from(end - start).unwrap_or(usize::MAX));
            piece.drain(..usize::try_from(at - start).unwrap_or(usize::MAX).min(piece.len()));
            each(at, piece)?;
            at = end;
        }
        if at != wanted.end {
            let message = format!("the archive's segments of timeline {timeline} do not hold {at}, as its chain says");
            return Err(Error::new(Kind::Corrupt, message).hint("run `tidelog verify`"));
        }
        Ok(())
    }
}

/// A segment that an entry names and that is not there is damage of the archive, for whoever reads it.
fn missing(error: Error, object: &str) -> Error {
    if error.kind() != Kind::NotFound {
        return error;
    }
    Error::new(Kind::Incomplete, format!("{object} is missing: {error}"))
        .hint("restore the object from a copy of the archive, or recover to a moment before it")
}
