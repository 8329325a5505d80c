//! The map from source to target offsets as a replay goes on: in the marks, then beside the archive.
//!
//! ```text
//! reports ─► runs of the open transaction ─► the marks' metadata, committed with the records ─► a piece beside the archive, later
//!                                       └─ too many for a mark: an object of their own first, which the mark names
//! ```
//! What a mark holds is true just if its records are committed, whatever ends the process. A piece holds runs of committed
//! transactions alone; so it does not matter who wrote it, or whether another piece says the same.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::runtime::Handle;

use crate::error::{Error, Kind, Result};
use crate::replay::journal::{self, Journal};
use crate::replay::offset_map::{At, Note, Piece, SentRun, Tail, write_note};
use crate::replay::plan::Marks;
use crate::store::{Created, Store, layout};

/// The longest note of a mark. A broker takes 4,096 bytes of metadata unless it is set otherwise (`offset.metadata.max.bytes`).
const LONGEST_NOTE: usize = 700;

/// What of the map is not kept beside the archive yet.
pub(super) struct Mapping {
    store: Store,
    id: Arc<str>,
    /// Of what is committed.
    tails: BTreeMap<At, Tail>,
    /// What the open transaction has sent.
    open: BTreeMap<At, Vec<SentRun>>,
    /// The notes that were too long, by the name under which they are kept.
    elsewhere: BTreeMap<At, String>,
    /// The number of the next piece.
    next: u64,
}

/// A piece that is to be kept.
pub(super) struct Keeping {
    store: Store,
    number: u64,
    piece: Piece,
    through: BTreeMap<At, u64>,
}

/// What was kept.
pub(super) struct Kept {
    next: u64,
    through: BTreeMap<At, u64>,
}

impl Mapping {
    /// The map of a replay of which `marks` and `notes` were read from the target's group. None where it has a hole.
    pub(super) async fn open(
        store: &Store,
        journal: &Journal,
        marks: &Marks,
        notes: BTreeMap<At, Note>,
    ) -> Result<Option<Self>> {
        let Some(begun) = journal.begun.as_ref().filter(|begun| begun.maps) else { return Ok(None) };
        let mut tails = BTreeMap::new();
        for (at, (start, _)) in begun.ends()? {
            let tail = match notes.get(&at) {
                Some(Note::Here(tail)) => tail.clone(),
                Some(Note::Kept(sent, token)) => open_tail(store, &begun.replay, (&at, *sent), token).await?,
                None if marks.get(&at).is_none_or(|mark| *mark == start) => Tail::default(),
                None => match journal.reached.as_ref().and_then(|reached| reached.records_at(&at, marks.get(&at))) {
                    Some(sent) => Tail { sent, runs: Vec::new() },
                    None => {
                        tracing::warn!(
                            topic = at.0,
                            partition = at.1,
                            "the map of offsets has a hole, for a tidelog that keeps none has gone on with this replay: positions of \
                             groups cannot be set by it"
                        );
                        return Ok(None);
                    }
                },
            };
            tails.insert(at, tail);
        }
        let pieces = store.list(&layout::replay_maps(&begun.replay)).await?;
        let last = pieces.iter().filter_map(|piece| layout::replay_map_number(&piece.location)).max();
        let next = last.map_or(0, |last| last.saturating_add(1));
        let (store, id) = (store.clone(), begun.replay.as_str().into());
        Ok(Some(Self { store, id, tails, open: BTreeMap::new(), elsewhere: BTreeMap::new(), next }))
    }

    /// The open transaction has sent this.
    pub(super) fn sent(&mut self, placed: BTreeMap<At, Vec<SentRun>>) {
        placed.keys().for_each(|at| drop(self.elsewhere.remove(at)));
        self.open = placed;
    }

    /// The open transaction is committed.
    pub(super) fn committed(&mut self) {
        for (at, runs) in std::mem::take(&mut self.open) {
            self.tails.entry(at).or_default().extend(runs);
        }
    }

    /// The runs of a partition with those of the open transaction.
    fn tail(&self, at: &At) -> Tail {
        let mut tail = self.tails.get(at).cloned().unwrap_or_default();
        tail.extend(self.open.get(at).cloned().unwrap_or_default());
        tail
    }

    /// Keeps what the marks of `partitions` have no room for, before they are committed. Blocks.
    pub(super) fn make_room<'a>(&mut self, partitions: impl Iterator<Item = &'a At>) -> Result<()> {
        let long =
            |at: &&At| !self.elsewhere.contains_key(*at) && write_note(&Note::Here(self.tail(at))).len() > LONGEST_NOTE;
        let long: Vec<At> = partitions.filter(long).cloned().collect();
        if long.is_empty() {
            return Ok(());
        }
        let token = token()?;
        let tails: BTreeMap<At, Tail> = long.iter().map(|at| (at.clone(), self.tail(at))).collect();
        let piece = Piece::of(&self.id, &tails);
        let key = layout::replay_open_map(&self.id, &token);
        Handle::current().block_on(self.store.put(&key, journal::json(&piece)?))?;
        self.elsewhere.extend(long.into_iter().map(|at| (at, token.clone())));
        Ok(())
    }

    /// What the mark of a partition says.
    pub(super) fn note(&self, at: &At) -> String {
        let tail = self.tail(at);
        write_note(&match self.elsewhere.get(at) {
            Some(token) => Note::Kept(tail.sent, token.clone()),
            None => Note::Here(tail),
        })
    }

    /// How many records each partition has had that are committed.
    pub(super) fn records(&self) -> BTreeMap<At, u64> {
        self.tails.iter().map(|(at, tail)| (at.clone(), tail.sent)).collect()
    }

    /// What is committed and not kept yet.
    pub(super) fn keeping(&self) -> Keeping {
        let piece = Piece::of(&self.id, &self.tails);
        Keeping { store: self.store.clone(), number: self.next, piece, through: self.records() }
    }

    /// Drops what is kept.
    pub(super) fn kept(&mut self, kept: Kept) {
        self.next = kept.next;
        for (at, through) in kept.through {
            if let Some(tail) = self.tails.get_mut(&at) {
                tail.forget(through);
                self.elsewhere.remove(&at);
            }
        }
    }

    /// Keeps the rest at the replay's end, and says how many records the whole map has.
    pub(super) async fn finish(self) -> Result<u64> {
        self.keeping().save().await?;
        let folder = layout::replay_maps(&self.id);
        for object in self.store.list(&folder).await? {
            // Nothing refers to these any more; what stays takes a little room.
            if layout::replay_map_number(&object.location).is_none()
                && let Err(error) = self.store.delete(&object.location).await
            {
                tracing::debug!(%error, key = %object.location, "an object of the map stays behind");
            }
        }
        Ok(self.tails.values().map(|tail| tail.sent).sum())
    }
}

impl Keeping {
    /// Writes the piece down under the next free number.
    pub(super) async fn save(self) -> Result<Kept> {
        let Self { store, mut number, piece, through } = self;
        if !piece.partitions.is_empty() {
            let bytes = journal::json(&piece)?;
            while let Created::Other(_) =
                store.create(&layout::replay_map(&piece.replay, number), bytes.clone()).await?
            {
                number = number.saturating_add(1);
            }
            number = number.saturating_add(1);
        }
        Ok(Kept { next: number, through })
    }
}

/// The runs that a mark had no room for.
async fn open_tail(store: &Store, id: &str, (at, sent): (&At, u64), token: &str) -> Result<Tail> {
    let key = layout::replay_open_map(id, token);
    let piece: Option<Piece> = journal::read(store, &key).await?;
    let of = piece.and_then(|piece| {
        piece.partitions.into_iter().find(|of| of.topic == at.0 && of.partition == at.1).map(|of| of.runs)
    });
    let tail = of.map(|runs| Tail { sent, runs });
    tail.ok_or_else(|| {
        Error::new(Kind::Corrupt, format!("{key} is missing or does not tell of {} partition {}", at.0, at.1))
            .hint("the replay's map of offsets is damaged: choose another --id, which sends everything again")
    })
}

fn token() -> Result<String> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|error| Error::new(Kind::Internal, format!("no random numbers: {error}")))?;
    Ok(format!("{:016x}", u64::from_be_bytes(bytes)))
}
