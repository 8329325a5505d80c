//! What replays have sent, or will: by what is written down of them beside the archive.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use futures::{StreamExt as _, TryStreamExt as _, stream};

use crate::error::{Error, Kind, Result};
use crate::replay::chosen::Kept;
use crate::replay::journal::{self, Begun, Journal};
use crate::replay::offset_map::{At, Lookup, Piece};
use crate::store::{Store, layout};
use crate::stream::TopicGeneration;

/// Pieces of a map that are fetched at once.
const PIECES_AT_ONCE: usize = 8;

/// What a replay has sent, or will.
#[derive(Debug, Clone)]
pub struct Replayed {
    begun: Begun,
    kept: BTreeMap<(TopicGeneration, i32), Kept>,
    /// The range of record timestamps.
    pub(super) timestamps: Option<Range<i64>>,
    /// How many records its map has, if it is finished and the map is whole.
    mapped: Option<u64>,
}

impl Replayed {
    fn new(begun: Begun, mapped: Option<u64>) -> Result<Self> {
        let mut kept = BTreeMap::new();
        for pinned in &begun.sources {
            let stream: TopicGeneration = pinned.stream.parse()?;
            kept.extend(pinned.kept().into_iter().map(|(partition, kept)| ((stream.clone(), partition), kept)));
        }
        let timestamps = begun.timestamps();
        Ok(Self { begun, kept, timestamps, mapped })
    }

    /// The offsets of a partition that it sends, from one on.
    pub(super) fn ranges(&self, stream: &TopicGeneration, partition: i32, from: i64) -> Vec<Range<i64>> {
        self.within(stream, partition, &(from..i64::MAX))
    }

    /// The offsets of a partition in a range that it sends.
    pub(super) fn within(&self, stream: &TopicGeneration, partition: i32, range: &Range<i64>) -> Vec<Range<i64>> {
        self.kept.get(&(stream.clone(), partition)).map(|kept| kept.within(range)).unwrap_or_default()
    }

    /// The generations of topics that it sends.
    pub(super) fn streams(&self) -> impl Iterator<Item = &TopicGeneration> {
        self.kept.keys().map(|(stream, _)| stream)
    }

    /// The topic that it sends a source topic to.
    pub(super) fn target(&self, topic: &str) -> Option<&str> {
        let of = |pinned: &&journal::Pinned| {
            pinned.stream.parse::<TopicGeneration>().is_ok_and(|stream| stream.topic == topic)
        };
        self.begun.sources.iter().find(of).map(|pinned| pinned.target.as_str())
    }

    /// Where a target partition ended before the first record.
    pub(super) fn began_at(&self, (topic, partition): &At) -> Option<i64> {
        let at = self.begun.target.topics.iter().find(|one| one.topic == *topic)?;
        at.ends.get(partition).copied()
    }
}

/// The replay of `journal` and those that it goes on after, the first one first.
///
/// # Errors
/// The store's, and a replay that it goes on after and that is not written down any more.
pub async fn history(store: &Store, journal: &Journal) -> Result<Vec<Replayed>> {
    let mut all = Vec::new();
    let mut seen = BTreeSet::new();
    let mut next = Some(journal.clone());
    while let Some(Journal { begun: Some(begun), finished, .. }) = next {
        next = match &begun.after {
            Some(id) if seen.insert(id.clone()) => Some(Journal::load(store, id).await?),
            _ => None,
        };
        all.push(Replayed::new(begun, finished.and_then(|finished| finished.mapped))?);
    }
    all.reverse();
    Ok(all)
}

impl Replayed {
    /// What its map says of what is asked.
    pub(super) async fn ask(&self, store: &Store, mut lookup: Lookup) -> Result<Lookup> {
        let id = &self.begun.replay;
        let Some(mapped) = self.mapped else { return Err(no_map(id)) };
        let pieces = store.list(&layout::replay_maps(id)).await?;
        let keys: Vec<_> = pieces.into_iter().map(|piece| piece.location).collect();
        let keys = keys.into_iter().filter(|key| layout::replay_map_number(key).is_some());
        let mut read = stream::iter(keys)
            .map(|key| async move {
                let piece: Option<Piece> = journal::read(store, &key).await?;
                piece
                    .filter(|piece| piece.replay == *id)
                    .ok_or_else(|| Error::new(Kind::Corrupt, format!("{key} is gone, or is of another replay")))
            })
            .buffered(PIECES_AT_ONCE);
        while let Some(piece) = read.try_next().await? {
            lookup.add(&piece);
        }
        if lookup.records() != Some(mapped) {
            let message = format!(
                "the map of offsets of the replay {id} is not whole: objects below {} are missing",
                layout::replay_maps(id)
            );
            return Err(Error::new(Kind::Corrupt, message)
                .hint("restore them from a copy of the archive; no position is set without them"));
        }
        Ok(lookup)
    }
}

/// Refuses to go on after a replay that has no map: what it has sent could not be told.
///
/// # Errors
/// [`Kind::Unsupported`] that names it.
pub fn whole_history(replays: &[Replayed]) -> Result<()> {
    let before = replays.split_last().map_or(&[][..], |(_, before)| before);
    match before.iter().find(|replay| replay.mapped.is_none()) {
        Some(replay) => Err(no_map(&replay.begun.replay)),
        None => Ok(()),
    }
}

/// Says that a replay was begun without a map, or went on without.
fn no_map(id: &str) -> Error {
    let message = format!(
        "the replay {id} has no whole map of offsets, so nobody can tell where consumer groups were in the target"
    );
    Error::new(Kind::Unsupported, message)
        .hint("it has to be begun with --groups, and to be gone on with by no older tidelog: choose another --id, which sends everything again")
}
