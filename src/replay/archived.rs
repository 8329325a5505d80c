//! How topics were set at the end of what is replayed, as far as the archive keeps it (`[state]`).
//!
//! The version that held then has most of them. A topic that was deleted by then, or created again, is in an earlier one: topics
//! come and go with their ids, so the versions that have an id are one run, and its last one is searched for.

use std::collections::BTreeMap;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::Deserialize;

use super::plan::Plan;
use crate::error::{Kind, Result, ResultExt as _};
use crate::manifest::state::{self as versions, Version};
use crate::manifest::{self, Chain};
use crate::store::Store;
use crate::stream::{StateKind, StateOf, StreamId, TopicGeneration};
use crate::time;

/// A topic as the archive knows it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Archived {
    /// When it was found to be so.
    #[serde(skip)]
    pub at: DateTime<Utc>,
    #[serde(default)]
    id: Option<String>,
    /// How many partitions it had.
    pub partitions: i32,
    /// How many replicas each partition had.
    pub replication_factor: u32,
    /// What was set for it by name, without a value where the broker kept it secret; none where its settings were not told.
    pub settings: Option<BTreeMap<String, Option<String>>>,
}

#[cfg(test)]
impl Archived {
    pub(super) fn new(at: DateTime<Utc>, partitions: i32, settings: Option<BTreeMap<String, Option<String>>>) -> Self {
        Self { at, id: None, partitions, replication_factor: 1, settings }
    }
}

/// What the archive knows of the topics of a plan.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// By source topic.
    pub topics: BTreeMap<String, Archived>,
    /// What the user should know of the others.
    pub warnings: Vec<String>,
}

/// The topics of one version.
struct Document {
    at: DateTime<Utc>,
    topics: BTreeMap<String, Archived>,
}

/// A topic that is looked for.
struct Wanted {
    topic: String,
    id: Option<String>,
    begun: DateTime<Utc>,
}

/// Returns how the topics of `plan` were set at `until`, the end of what it sends.
///
/// # Errors
/// The store's own; what is damaged is a warning.
pub async fn archived(store: &Store, plan: &Plan, until: DateTime<Utc>, now: DateTime<Utc>) -> Result<Known> {
    let mut known = Known::default();
    let mut clusters: BTreeMap<&str, Vec<&TopicGeneration>> = BTreeMap::new();
    for part in &plan.parts {
        let generations = clusters.entry(&part.stream.cluster).or_default();
        // The newest generation is what the topic was at the end.
        generations.retain(|generation| generation.topic != part.stream.topic);
        generations.push(&part.stream);
    }
    for (cluster, generations) in clusters {
        let stream = StreamId::State(StateOf { kind: StateKind::Topics, scope: cluster.to_owned() });
        let found = of_cluster(store, &stream, &generations, (until, now), &mut known).await;
        if let Err(error) = manifest::isolated(store, found).await? {
            known.warnings.push(format!("how the topics were set cannot be read: {error}"));
        }
    }
    Ok(known)
}

async fn of_cluster(
    store: &Store,
    stream: &StreamId,
    generations: &[&TopicGeneration],
    (until, now): (DateTime<Utc>, DateTime<Utc>),
    known: &mut Known,
) -> Result<()> {
    let Some(chain) = Chain::open(store, stream).await? else { return Ok(()) };
    let mut states = States::new(store, chain);
    let Some(held) = states.held(until, now).await? else { return Ok(()) };
    let first = states.read(&held).await?;
    if first.at > until {
        known.warnings.push(format!(
            "how the topics were set is kept from {} on: they are taken as they were then",
            time::utc(first.at)
        ));
    }
    for generation in generations {
        let Some(wanted) = wanted(store, generation).await? else { continue };
        let topic = match first.has(&wanted) {
            Some(topic) => Some(topic),
            None => states.last_with(&wanted, held.number).await?,
        };
        match topic {
            Some(topic) => drop(known.topics.insert(generation.topic.clone(), topic)),
            None => known.warnings.push(format!(
                "the archive does not know how {} was set: it keeps the topics of that time, and not this one",
                generation.topic
            )),
        }
    }
    Ok(())
}

async fn wanted(store: &Store, generation: &TopicGeneration) -> Result<Option<Wanted>> {
    let Some((begun, begin)) = manifest::began(store, &generation.stream()).await? else { return Ok(None) };
    Ok(Some(Wanted { topic: generation.topic.clone(), id: begin.topic_id().map(str::to_owned), begun }))
}

/// The versions of the topics of a cluster.
struct States<'a> {
    store: &'a Store,
    chain: Chain,
    /// Versions that were read, by number: topics that are looked for share where they are looked for.
    seen: BTreeMap<i64, Arc<Document>>,
}

/// So many versions are kept in memory.
const SEEN: usize = 2 * SOON_AFTER as usize;

impl<'a> States<'a> {
    fn new(store: &'a Store, chain: Chain) -> Self {
        Self { store, chain, seen: BTreeMap::new() }
    }

    /// The version that held at `until`, or the oldest that is kept.
    async fn held(&self, until: DateTime<Utc>, now: DateTime<Utc>) -> Result<Option<Version>> {
        match versions::as_of(&self.chain, until.timestamp_millis(), now).await? {
            Some(version) => Ok(Some(version)),
            None => versions::oldest(&self.chain).await,
        }
    }

    async fn read(&mut self, version: &Version) -> Result<Arc<Document>> {
        #[derive(Deserialize)]
        struct Stored {
            state: BTreeMap<String, Archived>,
        }
        let json = versions::read(self.store, self.chain.stream(), version).await?;
        let stored: Stored = serde_json::from_slice(&json).or_err(Kind::Corrupt, || {
            format!("version {} of {} does not tell of topics", version.number, self.chain.stream())
        })?;
        let document = Arc::new(Document { at: version.at, topics: stored.state });
        if self.seen.len() >= SEEN {
            self.seen.pop_last();
        }
        self.seen.insert(version.number, Arc::clone(&document));
        Ok(document)
    }

    async fn topic(&mut self, number: i64, wanted: &Wanted) -> Result<Option<Archived>> {
        if let Some(document) = self.seen.get(&number) {
            return Ok(document.has(wanted));
        }
        match versions::version(&self.chain, number).await? {
            Some(version) => Ok(self.read(&version).await?.has(wanted)),
            None => Ok(None),
        }
    }

    /// The topic in the last version before `held` that has it. It is there from about when its generation began in the archive.
    async fn last_with(&mut self, wanted: &Wanted, held: i64) -> Result<Option<Archived>> {
        let Some(kept) = versions::versions(&self.chain) else { return Ok(None) };
        let begun = versions::as_of(&self.chain, wanted.begun.timestamp_millis(), DateTime::<Utc>::MAX_UTC).await?;
        let from = begun.map_or(kept.start, |version| version.number);
        let mut low = None;
        for number in from..held.min(from.saturating_add(SOON_AFTER)) {
            if let Some(topic) = self.topic(number, wanted).await? {
                low = Some((number, topic));
                break;
            }
        }
        let Some((mut low, mut topic)) = low else { return Ok(None) };
        let mut high = held;
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            match self.topic(middle, wanted).await? {
                Some(found) => (low, topic) = (middle, found),
                None => high = middle,
            }
        }
        Ok(Some(topic))
    }
}

/// Within so many versions from where its generation began in the archive a topic has to be told.
const SOON_AFTER: i64 = 16;

impl Document {
    fn has(&self, wanted: &Wanted) -> Option<Archived> {
        let same = |topic: &&Archived| wanted.id.is_none() || topic.id.is_none() || topic.id == wanted.id;
        self.topics.get(&wanted.topic).filter(same).map(|topic| Archived { at: self.at, ..topic.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::state::{By, append, document};
    use crate::stream::Begin;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_700_000_000 + seconds, 0).expect("a time")
    }

    /// A version every ten seconds: what the topic is in each, as id and partitions.
    async fn kept(store: &Store, versions: &[Option<(&str, i32)>]) -> Chain {
        let of = StateOf { kind: StateKind::Topics, scope: "main".into() };
        let begin = Begin::State { state: StateKind::Topics, cluster_id: None };
        let mut chain = Chain::begin(store, &StreamId::State(of.clone()), begin, "w", at(0)).await.expect("it begins");
        for (number, topic) in (0i64..).zip(versions) {
            let topics: BTreeMap<&str, serde_json::Value> = topic
                .iter()
                .map(|(id, partitions)| {
                    let topic = serde_json::json!({
                        "id": id, "partitions": partitions, "replication_factor": 1, "settings": {}, "cluster_settings": {},
                        "other": number,
                    });
                    ("orders", topic)
                })
                .collect();
            let document = document(&of, &topics).expect("JSON");
            let by = By { writer: "w", n: number.unsigned_abs(), at: at(number * 10) };
            assert!(append(&mut chain, number, &document, by).await.expect("stored"));
        }
        chain
    }

    #[tokio::test]
    async fn a_topic_that_is_gone_or_another_one_is_what_it_was_last() {
        let store = Store::over(std::sync::Arc::new(object_store::memory::InMemory::new()), "memory:///");
        // Ten versions without it, one generation that grows for 50, ten without, another generation for 30, then none.
        let generation = |id, partitions| Some((id, partitions));
        let versions: Vec<_> = std::iter::repeat_n(None, 10)
            .chain((0..50).map(|n| generation("x", 1 + n / 10)))
            .chain(std::iter::repeat_n(None, 10))
            .chain(std::iter::repeat_n(generation("y", 2), 30))
            .chain([None])
            .collect();
        let mut states = States::new(&store, kept(&store, &versions).await);
        let wanted = |id: &str, begun| Wanted { topic: "orders".to_owned(), id: Some(id.to_owned()), begun: at(begun) };
        let last = states.held(at(5_000), at(5_000)).await.expect("looked").expect("some");
        assert_eq!(last.number, 100);
        for (id, begun, partitions, found) in [("x", 101, 5, 590), ("y", 705, 2, 990)] {
            let topic = states.last_with(&wanted(id, begun), last.number).await.expect("read").expect("it was there");
            assert_eq!((topic.partitions, topic.at), (partitions, at(found)), "{id}");
        }
        assert_eq!(states.last_with(&wanted("z", 101), last.number).await.expect("read"), None);
        let held = states.held(at(300), at(5_000)).await.expect("looked").expect("some");
        let document = states.read(&held).await.expect("read");
        assert_eq!(document.has(&wanted("x", 101)).map(|topic| topic.partitions), Some(3));
        assert!(document.has(&wanted("y", 101)).is_none(), "it is another topic of that name");
        let first = states.held(at(-5), at(5_000)).await.expect("looked").expect("the oldest that is kept");
        assert_eq!(first.number, 0);
    }
}
