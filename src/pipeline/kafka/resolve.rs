//! Where to read on: for partitions that the group has assigned, the chain of the topic's present life and the offset
//! after the last archived one. The archive decides, never the group's committed offsets.
//!
//! Where the archive of each partition begins is decided once, for all partitions of a topic, and stands in the first entry
//! of its chain: what came while a partition had no record yet and nobody was there to archive it must not be passed over.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use chrono::Utc;
use futures::{StreamExt, TryStreamExt, stream};
use tokio::sync::mpsc;

use super::Notice;
use super::commit::{Shared, another_life};
use crate::config::{Kafka, Start};
use crate::error::{Error, Kind, Result};
use crate::manifest::{Chain, topics};
use crate::pipeline::persistence::Persistence;
use crate::source::kafka::{OffsetAt, TopicInfo, TopicPartition};
use crate::stream::{Begin, TopicLife};

/// How many chains are opened at once: each costs a few requests to the store.
const CHAINS_AT_ONCE: usize = 16;

/// Partitions whose positions are wanted.
pub(super) struct Request {
    pub(super) partitions: Vec<TopicPartition>,
    /// The life that is known to have ended, though the topic's id may be the same.
    pub(super) ended: Option<TopicLife>,
    /// The partition that must be read from its first record, for its log is another one than before.
    pub(super) cut: Option<i32>,
}

/// A topic's present life, and where to read its partitions on.
pub(super) struct Resolved {
    pub(super) topic: Arc<str>,
    pub(super) life: TopicLife,
    pub(super) chain: Chain,
    pub(super) offsets: Vec<(i32, i64)>,
}

/// Partitions of which no broker says where they begin now, to be asked for again.
pub(super) struct Unresolved {
    pub(super) request: Request,
    pub(super) why: Error,
}

/// Answers requests in order until the collector ends. A failure of the store or of all brokers is tried again: without a
/// position nothing can be read.
pub(super) async fn run(kafka: Arc<Kafka>, shared: Arc<Shared>, mut inbox: mpsc::UnboundedReceiver<Request>) {
    while let Some(request) = inbox.recv().await {
        let mut persistence = Persistence::new();
        let (resolved, unresolved) = loop {
            match resolve(&kafka, &shared, &request).await {
                Ok(answer) => break answer,
                Err(error) => {
                    let what = "the positions of assigned partitions cannot be found";
                    shared.tell(Notice::NoPositions(format!("{what}: {error}").into()));
                    persistence.wait_after(what, error).await;
                }
            }
        };
        shared.tell(Notice::Resolved(resolved, unresolved));
    }
}

/// A topic of a request.
struct Wanted {
    topic: Arc<str>,
    partitions: Vec<i32>,
    info: TopicInfo,
}

/// A topic of a request, and what the archive has of it.
struct Known {
    wanted: Wanted,
    life: TopicLife,
    /// Its chain; none if it has to begin.
    chain: Option<Chain>,
    /// The same topic's life before, where this one begins after a cut.
    before: Option<Chain>,
}

impl Known {
    fn at(&self, partition: i32) -> TopicPartition {
        TopicPartition { topic: Arc::clone(&self.wanted.topic), partition }
    }

    /// The partitions of which a broker must say where they begin: all, where the chain begins, and those of which nothing
    /// is archived nor said.
    fn asked(&self, cut: Option<i32>) -> Vec<TopicPartition> {
        match &self.chain {
            None => (0..self.wanted.info.partitions).map(|partition| self.at(partition)).collect(),
            Some(chain) => {
                let unknown = |partition: &&i32| position(chain, **partition, cut).is_none();
                self.wanted.partitions.iter().filter(unknown).map(|&partition| self.at(partition)).collect()
            }
        }
    }

    /// Where a partition begins, if a broker says.
    fn start(&self, partition: i32, starts: &Starts, cut: Option<i32>) -> Option<i64> {
        let before = self.before.as_ref().filter(|_| cut != Some(partition));
        let archived = before.and_then(|before| before.position(partition)).map(|range| range.end);
        starts.of(&self.at(partition), archived, &self.life)
    }

    /// The topic with its chain, begun if there is none, and the offsets of those of its partitions that have one. None
    /// where no broker says of any partition where it begins: the chain cannot begin without.
    async fn resolved(mut self, shared: &Shared, starts: &Starts, cut: Option<i32>) -> Result<Option<Resolved>> {
        let chain = match self.chain.take() {
            Some(chain) => chain,
            None => {
                let starts: Vec<_> =
                    (0..self.wanted.info.partitions).map(|partition| self.start(partition, starts, cut)).collect();
                if starts.iter().all(Option::is_none) {
                    return Ok(None);
                }
                let begin = Begin::topic(self.wanted.info.id.clone(), starts);
                Chain::begin(&shared.store, &self.life.stream(), begin, &shared.writer, Utc::now()).await?
            }
        };
        let offset = |partition| position(&chain, partition, cut).or_else(|| self.start(partition, starts, cut));
        let offsets = self.wanted.partitions.iter().filter_map(|&partition| Some((partition, offset(partition)?)));
        let offsets = offsets.collect();
        Ok(Some(Resolved { topic: self.wanted.topic, life: self.life, chain, offsets }))
    }
}

/// Where a partition's archive stands. Whoever began the chain did not know of a `cut` partition that its log is another one,
/// so where that one begins says nothing.
fn position(chain: &Chain, partition: i32, cut: Option<i32>) -> Option<i64> {
    if cut == Some(partition) { chain.position(partition).map(|range| range.end) } else { chain.reached(partition) }
}

async fn resolve(kafka: &Kafka, shared: &Shared, request: &Request) -> Result<(Vec<Resolved>, Option<Unresolved>)> {
    let (wanted, mut why) = describe(shared, request).await?;
    let known = known(kafka, shared, request, wanted).await?;
    let asked: Vec<TopicPartition> = known.iter().flat_map(|known| known.asked(request.cut)).collect();
    let starts = Starts::ask(kafka, shared, &asked).await.unwrap_or_else(|error| {
        why.get_or_insert(error);
        Starts::default()
    });
    let mut resolved = Vec::with_capacity(known.len());
    let mut begun =
        stream::iter(known).map(|known| known.resolved(shared, &starts, request.cut)).buffered(CHAINS_AT_ONCE);
    while let Some(one) = begun.try_next().await? {
        resolved.extend(one);
    }
    drop(begun);
    let found: BTreeSet<(&str, i32)> = resolved
        .iter()
        .flat_map(|one: &Resolved| one.offsets.iter().map(|(partition, _)| (&*one.topic, *partition)))
        .collect();
    let missing = request.partitions.iter().filter(|at| !found.contains(&(&*at.topic, at.partition)));
    let missing: Vec<TopicPartition> = missing.cloned().collect();
    let unresolved = missing.first().cloned().map(|first| {
        let without = || Error::new(Kind::Unavailable, format!("no broker says where {first} begins"));
        let why = why.or(starts.refused).unwrap_or_else(without);
        Unresolved { request: Request { partitions: missing, ended: request.ended.clone(), cut: request.cut }, why }
    });
    Ok((resolved, unresolved))
}

/// The request's topics as the brokers know them, and why one of them is missing.
async fn describe(shared: &Shared, request: &Request) -> Result<(Vec<Wanted>, Option<Error>)> {
    let mut partitions: BTreeMap<Arc<str>, Vec<i32>> = BTreeMap::new();
    for at in &request.partitions {
        partitions.entry(Arc::clone(&at.topic)).or_default().push(at.partition);
    }
    let names: Vec<String> = partitions.keys().map(ToString::to_string).collect();
    let mut described = shared.cluster.describe(&names).await?;
    let (mut wanted, mut why) = (Vec::with_capacity(partitions.len()), None);
    for (topic, partitions) in partitions {
        match described.remove(&*topic) {
            Some(Ok(info)) => wanted.push(Wanted { topic, partitions, info }),
            Some(Err(error)) => why = Some(error),
            None => why = Some(Error::new(Kind::Unavailable, format!("the brokers do not know the topic {topic} now"))),
        }
    }
    Ok((wanted, why))
}

/// What the archive has of the topics.
async fn known(kafka: &Kafka, shared: &Shared, request: &Request, wanted: Vec<Wanted>) -> Result<Vec<Known>> {
    let names: BTreeSet<&str> = wanted.iter().map(|wanted| &*wanted.topic).collect();
    let mut newest: BTreeMap<String, TopicLife> = BTreeMap::new();
    for life in topics(&shared.store).await? {
        if life.cluster == kafka.cluster && names.contains(life.topic.as_str()) {
            let known = newest.entry(life.topic.clone()).or_insert_with(|| life.clone());
            if known.generation < life.generation {
                *known = life;
            }
        }
    }
    let known = stream::iter(wanted).map(|wanted| {
        let newest = newest.remove(&*wanted.topic);
        async move {
            let ended = request.ended.as_ref();
            let (life, chain) = present_life(kafka, shared, &wanted, newest, ended).await?;
            let before = match &chain {
                None => same_topic_before(shared, &life, &wanted.info).await?,
                Some(_) => None,
            };
            Ok(Known { wanted, life, chain, before })
        }
    });
    known.buffered(CHAINS_AT_ONCE).try_collect().await
}

/// The topic's present life, and its chain if it has begun.
async fn present_life(
    kafka: &Kafka,
    shared: &Shared,
    wanted: &Wanted,
    newest: Option<TopicLife>,
    ended: Option<&TopicLife>,
) -> Result<(TopicLife, Option<Chain>)> {
    let Some(newest) = newest else { return Ok((TopicLife::new(&kafka.cluster, &*wanted.topic, 0), None)) };
    let Some(chain) = Chain::open(&shared.store, &newest.stream()).await? else { return Ok((newest, None)) };
    if ended == Some(&newest) || another_life(chain.begin_facts().topic_id(), wanted.info.id.as_deref()) {
        let next = newest.next_generation();
        tracing::warn!(topic = &*wanted.topic, generation = next.generation, "the topic has begun another life");
        return Ok((next, None));
    }
    Ok((newest, Some(chain)))
}

/// The life before, if it was the same topic by its id (its log was cut): what is archived there need not come again.
async fn same_topic_before(shared: &Shared, life: &TopicLife, info: &TopicInfo) -> Result<Option<Chain>> {
    let Some(generation) = life.generation.checked_sub(1) else { return Ok(None) };
    let before = TopicLife { generation, ..life.clone() };
    let before = Chain::open(&shared.store, &before.stream()).await?;
    Ok(before.filter(|before| info.id.is_some() && before.begin_facts().topic_id() == info.id.as_deref()))
}

/// What the brokers say of where partitions begin. One without a leader is not in it.
#[derive(Default)]
struct Starts {
    earliest: BTreeMap<TopicPartition, i64>,
    latest: BTreeMap<TopicPartition, i64>,
    /// By `kafka.start`.
    configured: BTreeMap<TopicPartition, i64>,
    /// What was said of one that is not in it.
    refused: Option<Error>,
}

impl Starts {
    async fn ask(kafka: &Kafka, shared: &Shared, partitions: &[TopicPartition]) -> Result<Self> {
        let mut starts = Self::default();
        if partitions.is_empty() {
            return Ok(starts);
        }
        let mut refused = None;
        let mut list = async |at: OffsetAt| -> Result<BTreeMap<TopicPartition, i64>> {
            let mut known = BTreeMap::new();
            for (at, offset) in shared.cluster.list_offsets(partitions, at, kafka.isolation).await? {
                match offset {
                    Ok(offset) => known.extend(offset.map(|offset| (at, offset))),
                    Err(error) => refused = Some(error),
                }
            }
            Ok(known)
        };
        starts.earliest = list(OffsetAt::Earliest).await?;
        starts.latest = list(OffsetAt::Latest).await?;
        starts.configured = match kafka.start {
            Start::Earliest => starts.earliest.clone(),
            Start::Latest => starts.latest.clone(),
            Start::Timestamp(time) => {
                let mut found = starts.latest.clone();
                found.extend(list(OffsetAt::Timestamp(time)).await?);
                found
            }
        };
        starts.refused = refused;
        Ok(starts)
    }

    /// Where a partition of `life` begins. A topic's first life begins as configured; a later one with its first record, or
    /// behind what is `archived` of the same topic, where its log still has that offset.
    fn of(&self, at: &TopicPartition, archived: Option<i64>, life: &TopicLife) -> Option<i64> {
        if life.generation == 0 {
            return self.configured.get(at).copied();
        }
        let (first, end) = (*self.earliest.get(at)?, *self.latest.get(at)?);
        Some(archived.filter(|offset| (first..=end).contains(offset)).unwrap_or(first))
    }
}
