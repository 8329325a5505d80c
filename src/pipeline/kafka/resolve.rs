//! Where to read on: for partitions that the group has assigned, the chain of the topic's present life and the offset
//! after the last archived one. The archive decides, never the group's committed offsets.

use std::collections::BTreeMap;
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

/// Answers requests in order until the collector ends. A failure is tried again: without a position nothing can be read.
pub(super) async fn run(kafka: Arc<Kafka>, shared: Arc<Shared>, mut inbox: mpsc::UnboundedReceiver<Request>) {
    while let Some(request) = inbox.recv().await {
        let mut persistence = Persistence::new();
        let resolved = loop {
            match resolve(&kafka, &shared, &request).await {
                Ok(resolved) => break resolved,
                Err(error) => {
                    let what = "the positions of assigned partitions cannot be found";
                    shared.tell(Notice::NoPositions(Some(format!("{what}: {error}").into())));
                    persistence.wait_after(what, error).await;
                }
            }
        };
        if persistence.has_waited {
            shared.tell(Notice::NoPositions(None));
        }
        shared.tell(Notice::Resolved(resolved));
    }
}

async fn resolve(kafka: &Kafka, shared: &Shared, request: &Request) -> Result<Vec<Resolved>> {
    let mut wanted: BTreeMap<Arc<str>, Vec<i32>> = BTreeMap::new();
    for at in &request.partitions {
        wanted.entry(Arc::clone(&at.topic)).or_default().push(at.partition);
    }
    let names: Vec<String> = wanted.keys().map(ToString::to_string).collect();
    let described = shared.cluster.describe(&names).await?;
    let mut newest: BTreeMap<String, TopicLife> = BTreeMap::new();
    for life in topics(&shared.store).await? {
        if life.cluster == kafka.cluster && wanted.contains_key(life.topic.as_str()) {
            let known = newest.entry(life.topic.clone()).or_insert_with(|| life.clone());
            if known.generation < life.generation {
                *known = life;
            }
        }
    }
    stream::iter(wanted)
        .map(|(topic, partitions)| {
            let (newest, info) = (newest.get(&*topic), described.get(&*topic));
            async move {
                let (life, chain) = present_life(kafka, shared, &topic, newest, info, request.ended.as_ref()).await?;
                let offsets = offsets(kafka, shared, &life, &chain, &partitions, request.cut).await?;
                Ok(Resolved { topic, life, chain, offsets })
            }
        })
        .buffered(CHAINS_AT_ONCE)
        .try_collect()
        .await
}

/// The chain of the topic's present life, begun if there is none.
async fn present_life(
    kafka: &Kafka,
    shared: &Shared,
    topic: &str,
    newest: Option<&TopicLife>,
    info: Option<&TopicInfo>,
    ended: Option<&TopicLife>,
) -> Result<(TopicLife, Chain)> {
    let topic_id = info.and_then(|info| info.id.clone());
    let life = match newest {
        None => TopicLife::new(&kafka.cluster, topic, 0),
        Some(newest) => match Chain::open(&shared.store, &newest.stream()).await? {
            None => newest.clone(),
            Some(chain)
                if ended == Some(newest) || another_life(chain.begin_facts().topic_id(), topic_id.as_deref()) =>
            {
                let next = newest.next_generation();
                tracing::warn!(topic, generation = next.generation, "the topic has begun another life");
                next
            }
            Some(chain) => return Ok((newest.clone(), chain)),
        },
    };
    let begin = Begin::topic(topic_id, info.map_or(0, |info| info.partitions));
    let chain = Chain::begin(&shared.store, &life.stream(), begin, &shared.writer, Utc::now()).await?;
    Ok((life, chain))
}

/// The offset to read each partition on from.
async fn offsets(
    kafka: &Kafka,
    shared: &Shared,
    life: &TopicLife,
    chain: &Chain,
    partitions: &[i32],
    cut: Option<i32>,
) -> Result<Vec<(i32, i64)>> {
    let mut offsets: Vec<(i32, i64)> =
        partitions.iter().filter_map(|&partition| Some((partition, chain.position(partition)?.end))).collect();
    let unknown: Vec<i32> =
        partitions.iter().copied().filter(|&partition| chain.position(partition).is_none()).collect();
    if unknown.is_empty() {
        return Ok(offsets);
    }
    let topic: Arc<str> = Arc::from(life.topic.as_str());
    let broker = Broker { shared, kafka, topic: &topic, partitions: &unknown };
    let earliest = broker.all(OffsetAt::Earliest).await?;
    if life.generation > 0 {
        let before = same_topic_before(shared, life, chain).await?;
        let latest = broker.all(OffsetAt::Latest).await?;
        offsets.extend(unknown.iter().map(|&partition| {
            let (first, end) = (earliest[&partition], latest[&partition]);
            let archived = before.as_ref().and_then(|chain| chain.position(partition)).map(|range| range.end);
            let read_on = archived.filter(|offset| cut != Some(partition) && (first..=end).contains(offset));
            (partition, read_on.unwrap_or(first))
        }));
        return Ok(offsets);
    }
    let start = match kafka.start {
        Start::Earliest => earliest.clone(),
        Start::Latest => broker.all(OffsetAt::Latest).await?,
        Start::Timestamp(time) => {
            let mut found = broker.all(OffsetAt::Latest).await?;
            found.extend(broker.known(OffsetAt::Timestamp(time)).await?);
            found
        }
    };
    // A partition that the topic got while it was archived is new as a whole: nothing of it may be passed over.
    let first_ones = chain.begin_facts().partitions();
    offsets.extend(
        unknown.iter().map(|partition| {
            (*partition, if *partition < first_ones { start[partition] } else { earliest[partition] })
        }),
    );
    Ok(offsets)
}

/// The life before, if it was the same topic by its id (its log was cut): what is archived there need not come again.
async fn same_topic_before(shared: &Shared, life: &TopicLife, chain: &Chain) -> Result<Option<Chain>> {
    let before = TopicLife { generation: life.generation - 1, ..life.clone() };
    let before = Chain::open(&shared.store, &before.stream()).await?;
    let id = chain.begin_facts().topic_id();
    Ok(before.filter(|before| id.is_some() && before.begin_facts().topic_id() == id))
}

/// What the broker says of some partitions of a topic.
struct Broker<'a> {
    shared: &'a Shared,
    kafka: &'a Kafka,
    topic: &'a Arc<str>,
    partitions: &'a [i32],
}

impl Broker<'_> {
    /// The offset of each partition; all must have one.
    async fn all(&self, at: OffsetAt) -> Result<BTreeMap<i32, i64>> {
        let known = self.known(at).await?;
        match self.partitions.iter().find(|partition| !known.contains_key(partition)) {
            None => Ok(known),
            Some(partition) => {
                let message = format!("the broker gave no offset of {} partition {partition}", self.topic);
                Err(Error::new(Kind::Unavailable, message))
            }
        }
    }

    /// The offset of each partition that has one.
    async fn known(&self, at: OffsetAt) -> Result<BTreeMap<i32, i64>> {
        let at_partition = |&partition| TopicPartition { topic: Arc::clone(self.topic), partition };
        let wanted: Vec<TopicPartition> = self.partitions.iter().map(at_partition).collect();
        let mut known = BTreeMap::new();
        for (at, offset) in self.shared.cluster.list_offsets(&wanted, at, self.kafka.isolation).await? {
            if let Some(offset) = offset? {
                known.insert(at.partition, offset);
            }
        }
        Ok(known)
    }
}
