//! Positions in the source become positions in the target.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::archived::{Archived, Committed};
use super::next::{Answer, Next, Shelf};
use super::replayed::Replayed;
use crate::error::{Kind, Result, ResultExt as _};
use crate::manifest::state as versions;
use crate::manifest::{self, Chain};
use crate::replay::offset_map::{At, Lookup, Place};
use crate::replay::select::Partitions;
use crate::store::Store;
use crate::stream::{StateKind, StateOf, StreamId, TopicGeneration};

/// A position, and what becomes of it.
#[derive(Debug, Clone, Serialize)]
pub struct Moved {
    /// The group.
    pub group: String,
    /// The source topic.
    pub topic: String,
    /// The partition, in the source and in the target.
    pub partition: i32,
    /// The target topic, if the replay has it.
    pub target_topic: Option<String>,
    /// The position in the source.
    pub old: i64,
    /// The source offset of the next record that the group reads; none where that is none of the replay's.
    pub record: Option<i64>,
    /// The position in the target; none where the group is left alone, and of a replay that is not finished.
    pub new: Option<i64>,
    /// What it means.
    pub answer: Answer,
    /// What the group's client noted beside it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<String>,
}

/// A position with the record that comes next.
struct Looked {
    moved: Moved,
    next: Option<Next>,
    generation: Option<TopicGeneration>,
}

/// What becomes of the positions of `archived` by `replays`, which are `finished` or not.
///
/// # Errors
/// What of the archive cannot be read, [`Kind::Unsupported`] where the map of offsets is not kept or has a hole.
pub async fn translate(
    store: &Store,
    replays: &[Replayed],
    archived: &Archived,
    partitions: Option<&Partitions>,
    finished: bool,
) -> Result<Vec<Moved>> {
    let mut shelf = Shelf::new(store);
    let generations = Generations::load(store, replays, archived.at).await?;
    let mut all = Vec::new();
    for (group, topics) in &archived.groups {
        for (topic, positions) in topics {
            for (&partition, committed) in positions {
                let looked = Looked::new(group, topic, partition, committed);
                let wanted = partitions.is_none_or(|wanted| wanted.contains(partition));
                all.push(looked.look(&mut shelf, replays, &generations, wanted).await?);
            }
        }
    }
    if finished {
        let maps = maps(store, replays, &all).await?;
        for looked in &mut all {
            looked.place(&mut shelf, replays, &maps).await?;
        }
    }
    Ok(all.into_iter().map(|looked| looked.moved).collect())
}

impl Looked {
    fn new(group: &str, topic: &str, partition: i32, committed: &Committed) -> Self {
        let moved = Moved {
            group: group.to_owned(),
            topic: topic.to_owned(),
            partition,
            target_topic: None,
            old: committed.offset,
            record: None,
            new: None,
            answer: Answer::NotReplayed,
            metadata: committed.metadata.clone(),
        };
        Self { moved, next: None, generation: None }
    }

    /// Finds the next record, by the archive alone.
    async fn look(
        mut self,
        shelf: &mut Shelf<'_>,
        replays: &[Replayed],
        generations: &Generations,
        wanted: bool,
    ) -> Result<Self> {
        let moved = &mut self.moved;
        let target = replays.iter().find_map(|replay| replay.target(&moved.topic));
        let Some(target) = target.filter(|_| wanted) else { return Ok(self) };
        moved.target_topic = Some(target.to_owned());
        let Some(generation) = generations.of(&moved.topic) else {
            moved.answer = Answer::Unknown;
            return Ok(self);
        };
        let (next, answer) = shelf.next(replays, (generation, moved.partition), moved.old).await?;
        (moved.record, moved.answer) = (next.as_ref().map(|next| next.offset), answer);
        (self.next, self.generation) = (next, Some(generation.clone()));
        Ok(self)
    }

    fn at(&self) -> Option<At> {
        self.moved.target_topic.clone().filter(|_| self.generation.is_some()).map(|topic| (topic, self.moved.partition))
    }

    /// Finds where that is in the target.
    async fn place(&mut self, shelf: &mut Shelf<'_>, replays: &[Replayed], maps: &[Lookup]) -> Result<()> {
        let (Some(at), Some(generation)) = (self.at(), self.generation.clone()) else { return Ok(()) };
        let new = match &self.next {
            None => end(replays, maps, &at),
            Some(next) => {
                let of = TopicGeneration { number: next.generation, ..generation };
                match maps[next.replay].place(&at, next.generation, next.offset) {
                    Place::Known(offset) => Some(offset),
                    Place::Unknown => None,
                    Place::Within(run) => {
                        let replay = &replays[next.replay];
                        let all = shelf.count(replay, &of, (at.1, run.first..run.last.saturating_add(1))).await?;
                        let before = shelf.count(replay, &of, (at.1, run.first..next.offset)).await?;
                        // What the archive has lost since cannot be counted.
                        if all == run.records { run.place(before) } else { None }
                    }
                }
            }
        };
        self.moved.new = new;
        if new.is_none() {
            self.moved.answer = match self.next.is_none() && replays.iter().all(|replay| replay.began_at(&at).is_none())
            {
                true => Answer::NotReplayed,
                false => Answer::Unknown,
            };
        }
        Ok(())
    }
}

/// The target offset after all that was sent to a partition; where it began if nothing was.
fn end(replays: &[Replayed], maps: &[Lookup], at: &At) -> Option<i64> {
    for map in maps.iter().rev() {
        match map.end(at) {
            None => return None,
            Some((Some(end), _)) => return Some(end),
            Some((None, _)) => {}
        }
    }
    replays.iter().find_map(|replay| replay.began_at(at))
}

/// The maps of `replays`, asked for all that is wanted of them.
async fn maps(store: &Store, replays: &[Replayed], all: &[Looked]) -> Result<Vec<Lookup>> {
    let mut maps = Vec::with_capacity(replays.len());
    for (number, replay) in replays.iter().enumerate() {
        let mut lookup = Lookup::default();
        for looked in all {
            let Some(at) = looked.at() else { continue };
            lookup.want_end(&at);
            if let Some(next) = looked.next.as_ref().filter(|next| next.replay == number) {
                lookup.want(&at, next.generation, next.offset);
            }
        }
        maps.push(replay.ask(store, lookup).await?);
    }
    Ok(maps)
}

/// Which generation of each topic positions of a time are of.
struct Generations(BTreeMap<String, Option<TopicGeneration>>);

impl Generations {
    async fn load(store: &Store, replays: &[Replayed], at: DateTime<Utc>) -> Result<Self> {
        let topics: BTreeSet<(&str, &str)> = replays
            .iter()
            .flat_map(Replayed::streams)
            .map(|stream| (stream.cluster.as_str(), stream.topic.as_str()))
            .collect();
        let archived = manifest::topics(store).await?;
        let (mut found, mut ids) = (BTreeMap::new(), None);
        for (cluster, topic) in topics {
            let of: Vec<&TopicGeneration> =
                archived.iter().filter(|one| one.cluster == cluster && one.topic == topic).collect();
            let generation = match of.as_slice() {
                [] => None,
                [one] => Some((*one).clone()),
                several => {
                    if ids.is_none() {
                        ids = Some(topic_ids(store, cluster, at).await?);
                    }
                    let id = ids.as_ref().and_then(|ids| ids.get(topic)).cloned().flatten();
                    generation_of(store, several, id.as_deref(), at).await?
                }
            };
            found.insert(topic.to_owned(), generation);
        }
        Ok(Self(found))
    }

    fn of(&self, topic: &str) -> Option<&TopicGeneration> {
        self.0.get(topic).and_then(Option::as_ref)
    }
}

/// The generation with a topic's id of then; where that is not kept, the last one that had begun.
async fn generation_of(
    store: &Store,
    several: &[&TopicGeneration],
    id: Option<&str>,
    at: DateTime<Utc>,
) -> Result<Option<TopicGeneration>> {
    let mut last = None;
    for generation in several {
        let Some((begun, begin)) = manifest::began(store, &generation.stream()).await? else { continue };
        if id.is_some() && begin.topic_id() == id {
            return Ok(Some((*generation).clone()));
        }
        if begun <= at {
            last = Some((*generation).clone());
        }
    }
    Ok(last)
}

/// The ids that topics had at a time, as far as they are kept.
async fn topic_ids(store: &Store, cluster: &str, at: DateTime<Utc>) -> Result<BTreeMap<String, Option<String>>> {
    #[derive(Deserialize)]
    struct Topic {
        #[serde(default)]
        id: Option<String>,
    }
    #[derive(Deserialize)]
    struct Stored {
        state: BTreeMap<String, Topic>,
    }
    let stream = StreamId::State(StateOf { kind: StateKind::Topics, scope: cluster.to_owned() });
    let Some(chain) = Chain::open(store, &stream).await? else { return Ok(BTreeMap::new()) };
    let Some(version) = versions::as_of(&chain, at.timestamp_millis(), at).await? else { return Ok(BTreeMap::new()) };
    let json = versions::read(store, chain.stream(), &version).await?;
    let stored: Stored = serde_json::from_slice(&json)
        .or_err(Kind::Corrupt, || format!("version {} of {stream} does not tell of topics", version.number))?;
    Ok(stored.state.into_iter().map(|(name, topic)| (name, topic.id)).collect())
}
