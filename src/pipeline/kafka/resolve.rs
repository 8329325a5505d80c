//! Where to read on: for partitions that the group has assigned, the chain of the topic's present generation and the offset
//! after the last archived one. The archive decides, never the group's committed offsets.
//!
//! Where the archive of each partition begins is decided once, for all partitions of a topic, and stands in the first entry
//! of its chain: what came while a partition had no record yet and nobody was there to archive it must not be passed over.
//!
//! Topics share a request, for a question to the brokers costs the same for one as for all of them, but no failure: a chain
//! that is damaged, refused or too new keeps its own topic from being read, and is asked for again by itself.

use futures::{StreamExt, stream};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio::sync::mpsc;

use super::divergence::{Earlier, resume};
use super::identity;
use super::messages::{Resolved, TaskEvent, Unresolved};
use super::shared::Shared;
use super::topic_ids::is_recreated;
use super::untold::Untold;
use super::waits::{AGAIN, Waits};
use crate::config::{Kafka, Start};
use crate::error::{Error, Kind, Result};
use crate::manifest::{self, Chain};
use crate::source::kafka::{OffsetAt, TopicInfo, TopicPartition};
use crate::store::Store;
use crate::stream::{Begin, TopicGeneration};
use crate::tasks::Task;
use crate::tasks::backoff::Backoff;

/// How many chains are opened at once: each costs a few requests to the store.
const CHAINS_AT_ONCE: usize = 16;

/// Partitions whose positions are wanted.
pub(super) struct Request {
    /// The number of the question, for the answer.
    pub(super) ticket: u64,
    pub(super) partitions: Vec<TopicPartition>,
}

/// Answers requests in order until the collector ends. Only what concerns every topic (no broker answers, the archive cannot
/// be listed) is tried again here: without a position nothing can be read. What concerns one topic is that topic's answer.
pub(super) async fn run(kafka: Arc<Kafka>, shared: Arc<Shared>, mut inbox: mpsc::UnboundedReceiver<Request>) {
    if let Err(error) = admitted(&kafka, &shared).await {
        return shared.send(TaskEvent::Refused(error));
    }
    let mut waits = Waits::default();
    let mut untold = Untold::default();
    while let Some(request) = inbox.recv().await {
        let mut backoff = Backoff::new(shared.tasks.reporter(Task::KafkaPositions, ""));
        let (resolved, unresolved) = loop {
            match resolve(&kafka, &shared, &request, (&mut waits, &mut untold)).await {
                Ok(answer) => break answer,
                Err(error) => {
                    backoff.wait_after("the positions of assigned partitions cannot be found", error).await;
                }
            }
        };
        shared.send(TaskEvent::Resolved { ticket: request.ticket, resolved, unresolved });
    }
}

/// Waits until it is known that the brokers are those of the archive's cluster.
async fn admitted(kafka: &Kafka, shared: &Shared) -> Result<()> {
    let mut backoff = Backoff::new(shared.tasks.reporter(Task::KafkaPositions, ""));
    loop {
        match identity::admit(&shared.store, kafka, &shared.cluster).await {
            Err(error) if error.kind() != Kind::Config => {
                let what = "whether the brokers are those of the archive's cluster is not known yet";
                backoff.wait_after(what, error).await;
            }
            admitted => return admitted,
        }
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
    generation: TopicGeneration,
    /// Its chain; none if it has to begin.
    chain: Option<Chain>,
    /// The same topic's generations before, which were ended because a log was cut.
    earlier: Earlier,
}

impl Known {
    fn at(&self, partition: i32) -> TopicPartition {
        TopicPartition { topic: Arc::clone(&self.wanted.topic), partition }
    }

    /// The partitions of which a broker must say where they begin: all, where the chain begins, and those of which nothing
    /// is archived nor said.
    fn asked(&self) -> Vec<TopicPartition> {
        match &self.chain {
            None => (0..self.wanted.info.partitions).map(|partition| self.at(partition)).collect(),
            Some(chain) => {
                let unknown = |partition: &&i32| chain.reached(**partition).is_none();
                self.wanted.partitions.iter().filter(unknown).map(|&partition| self.at(partition)).collect()
            }
        }
    }

    /// Returns where a partition begins, if a broker says.
    fn start(&self, partition: i32, start_offsets: &StartOffsets) -> Option<i64> {
        let archived = self.earlier.left_at(partition);
        let last = self.earlier.holder(partition).and_then(|holder| holder.last_record(partition));
        start_offsets.of(&self.at(partition), archived.map(|offset| (offset, last.is_some())), &self.generation)
    }

    /// The topic with its chain, begun if there is none, and the offsets of those of its partitions that have one. None
    /// where no broker says of any partition where it begins: the chain cannot begin without.
    async fn resolved(mut self, asking: &Asking<'_>, start_offsets: &StartOffsets) -> Result<Option<Resolved>> {
        let shared = asking.shared;
        let chain = match self.chain.take() {
            Some(chain) => chain,
            None => {
                let start_offsets: Vec<_> =
                    (0..self.wanted.info.partitions).map(|partition| self.start(partition, start_offsets)).collect();
                if start_offsets.iter().all(Option::is_none) {
                    return Ok(None);
                }
                let begin =
                    Begin::topic(self.wanted.info.id.clone(), start_offsets).on_cluster(asking.cluster_id.clone());
                Chain::begin(&shared.store, &self.generation.stream(), begin, &shared.writer, crate::time::now())
                    .await?
            }
        };
        let from = |partition| {
            let next = chain.reached(partition).or_else(|| self.start(partition, start_offsets))?;
            Some((partition, resume(&chain, &self.earlier, partition, next)))
        };
        let offsets = self.wanted.partitions.iter().filter_map(|&partition| from(partition));
        let offsets = offsets.collect();
        let Self { wanted: Wanted { topic, .. }, generation, earlier, .. } = self;
        Ok(Some(Resolved { topic, generation, chain, earlier, offsets }))
    }
}

/// Who is asked.
struct Asking<'a> {
    kafka: &'a Kafka,
    shared: &'a Shared,
    /// The cluster's id, if the brokers tell one.
    cluster_id: Option<String>,
}

/// Why topics have no answer, by topic.
#[derive(Default)]
struct Failures {
    /// The brokers do not tell.
    brokers: BTreeMap<Arc<str>, Error>,
    /// Its archive cannot be read or begun.
    archive: BTreeMap<Arc<str>, Error>,
}

async fn resolve(
    kafka: &Kafka,
    shared: &Shared,
    request: &Request,
    (waits, untold): (&mut Waits, &mut Untold),
) -> Result<(Vec<Resolved>, Vec<Unresolved>)> {
    let mut failures = Failures::default();
    let (told, why) = untold.told(&shared.cluster, kafka.isolation, &request.partitions).await;
    failures.brokers.extend(why);
    let wanted = describe(shared, &told, &mut failures).await?;
    let asking = Asking { kafka, shared, cluster_id: identity::told(&shared.cluster).await };
    let known = known(&asking, wanted, &mut failures).await?;
    let asked: Vec<TopicPartition> = known.iter().flat_map(Known::asked).collect();
    let start_offsets = StartOffsets::ask(kafka, shared, &asked, &mut failures).await;
    let begun = stream::iter(known).map(|known| {
        let topic = Arc::clone(&known.wanted.topic);
        let resolved = known.resolved(&asking, &start_offsets);
        async move { (topic, resolved.await) }
    });
    let begun: Vec<_> = begun.buffered(CHAINS_AT_ONCE).collect().await;
    let mut resolved = Vec::with_capacity(begun.len());
    for (topic, one) in begun {
        match one {
            Ok(one) => resolved.extend(one),
            Err(error) => drop(failures.archive.insert(topic, error)),
        }
    }
    let damaged: BTreeSet<Arc<str>> = failures.archive.keys().cloned().collect();
    let unresolved = unanswered(request, &resolved, failures, waits);
    let by_brokers = unresolved.iter().filter(|one| !damaged.contains(&one.topic));
    untold.note(&request.partitions, by_brokers.flat_map(|one| &one.partitions));
    Ok((resolved, unresolved))
}

/// Returns what of a request has no answer, by topic.
fn unanswered(request: &Request, resolved: &[Resolved], mut failures: Failures, waits: &mut Waits) -> Vec<Unresolved> {
    let found: BTreeSet<(&str, i32)> =
        resolved.iter().flat_map(|one| one.offsets.iter().map(|(partition, _)| (&*one.topic, *partition))).collect();
    let mut missing: BTreeMap<Arc<str>, Vec<TopicPartition>> = BTreeMap::new();
    for at in request.partitions.iter().filter(|at| !found.contains(&(&*at.topic, at.partition))) {
        missing.entry(Arc::clone(&at.topic)).or_default().push(at.clone());
    }
    for one in resolved {
        waits.end(&one.topic);
    }
    let unresolved = missing.into_iter().map(|(topic, partitions)| {
        let (why, again) = match failures.archive.remove(&topic) {
            Some(error) => (error, waits.longer(&topic)),
            None => {
                let without =
                    || Error::new(Kind::Unavailable, format!("no broker says where {} begins", partitions[0]));
                (failures.brokers.remove(&topic).unwrap_or_else(without), AGAIN)
            }
        };
        Unresolved { topic, partitions, why, again }
    });
    unresolved.collect()
}

/// The request's topics as the brokers know them.
async fn describe(shared: &Shared, asked: &[TopicPartition], failures: &mut Failures) -> Result<Vec<Wanted>> {
    let mut partitions: BTreeMap<Arc<str>, Vec<i32>> = BTreeMap::new();
    for at in asked {
        partitions.entry(Arc::clone(&at.topic)).or_default().push(at.partition);
    }
    let names: Vec<String> = partitions.keys().map(ToString::to_string).collect();
    let mut described = shared.cluster.describe(&names).await?;
    let mut wanted = Vec::with_capacity(partitions.len());
    for (topic, partitions) in partitions {
        let unknown = || Err(Error::new(Kind::Unavailable, format!("the brokers do not know the topic {topic} now")));
        match described.remove(&*topic).unwrap_or_else(unknown) {
            Ok(info) => wanted.push(Wanted { topic, partitions, info }),
            Err(error) => drop(failures.brokers.insert(topic, error)),
        }
    }
    Ok(wanted)
}

/// Returns what the archive has of the topics.
async fn known(asking: &Asking<'_>, wanted: Vec<Wanted>, failures: &mut Failures) -> Result<Vec<Known>> {
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let names: BTreeSet<&str> = wanted.iter().map(|wanted| &*wanted.topic).collect();
    let mut generations: BTreeMap<String, Vec<TopicGeneration>> = BTreeMap::new();
    for generation in manifest::generations_named(&asking.shared.store, &asking.kafka.cluster).await? {
        if names.contains(generation.topic.as_str()) {
            generations.entry(generation.topic.clone()).or_default().push(generation);
        }
    }
    let known = stream::iter(wanted).map(|wanted| {
        let mut generations = generations.remove(&*wanted.topic).unwrap_or_default();
        generations.sort_unstable_by_key(|generation| generation.number);
        async move {
            let topic = Arc::clone(&wanted.topic);
            (topic, known_of(asking, wanted, &generations).await)
        }
    });
    let known: Vec<_> = known.buffered(CHAINS_AT_ONCE).collect().await;
    let mut sound = Vec::with_capacity(known.len());
    for (topic, known) in known {
        match known {
            Ok(known) => sound.push(known),
            Err(error) => drop(failures.archive.insert(topic, error)),
        }
    }
    Ok(sound)
}

/// Returns what the archive has of one topic, of which it may hold these generations, oldest first.
async fn known_of(asking: &Asking<'_>, wanted: Wanted, generations: &[TopicGeneration]) -> Result<Known> {
    let (generation, chain) = present_generation(asking, &wanted, generations).await?;
    let all = 0..wanted.info.partitions.max(0);
    let has = |partition: &i32| chain.as_ref().is_some_and(|chain| chain.position(*partition).is_some());
    let lacks = all.filter(|partition| !has(partition)).collect();
    let earlier = Earlier::load(&asking.shared.store, &generation, wanted.info.id.as_deref(), lacks).await?;
    Ok(Known { wanted, generation, chain, earlier })
}

/// The topic's present generation, and its chain if it has begun.
async fn present_generation(
    asking: &Asking<'_>,
    wanted: &Wanted,
    generations: &[TopicGeneration],
) -> Result<(TopicGeneration, Option<Chain>)> {
    let id = wanted.info.id.as_deref();
    for newest in generations.iter().rev() {
        // On file:// a folder without an entry is left when the very first write of a chain fails.
        let Some(chain) = Chain::open(&asking.shared.store, &newest.stream()).await? else { continue };
        let begin = chain.begin_facts();
        // A topic that kept its id is the same one, whatever id its cluster was given since.
        let moved = identity::is_another(asking.kafka, newest, begin, asking.cluster_id.as_deref())?
            && (id.is_none() || begin.topic_id() != id);
        if chain.closed().is_some() || moved || is_recreated(begin.topic_id(), id) {
            // Of the same cluster for certain: whoever goes back to an older cluster on purpose finds its topics' ids again.
            let same_cluster = begin.cluster_id().is_some() && begin.cluster_id() == asking.cluster_id.as_deref();
            if same_cluster
                && is_recreated(begin.topic_id(), id)
                && had_before(&asking.shared.store, generations, newest, id).await
            {
                let message = format!("a broker tells the topic id of an earlier generation of {}", wanted.topic);
                return Err(Error::new(Kind::Unavailable, message).hint("it lags behind the others; it is asked again"));
            }
            let next = newest.next();
            tracing::warn!(topic = &*wanted.topic, generation = next.number, "the topic has begun another generation");
            return Ok((next, None));
        }
        return Ok((newest.clone(), Some(chain)));
    }
    Ok((TopicGeneration::new(&asking.kafka.cluster, &*wanted.topic, 0), None))
}

/// Returns whether the generation before `newest` had that topic id. Ids never come back, so a broker that tells it has not yet heard
/// that the topic was created again; a generation that begins for it would be the old topic's, once more.
async fn had_before(
    store: &Store,
    generations: &[TopicGeneration],
    newest: &TopicGeneration,
    id: Option<&str>,
) -> bool {
    for generation in generations.iter().rev().filter(|generation| generation.number < newest.number) {
        match Chain::open(store, &generation.stream()).await {
            Ok(Some(chain)) => return id.is_some() && chain.begin_facts().topic_id() == id,
            Ok(None) => {}
            // A damaged one says nothing, and must not keep the topic from being read.
            Err(_) => return false,
        }
    }
    false
}

/// What the brokers say of where partitions begin. One without a leader is not in it.
#[derive(Default)]
struct StartOffsets {
    earliest: BTreeMap<TopicPartition, i64>,
    latest: BTreeMap<TopicPartition, i64>,
    /// By `kafka.start`.
    configured: BTreeMap<TopicPartition, i64>,
}

impl StartOffsets {
    /// Asks the brokers; why one says nothing of a topic is noted in `failures`.
    async fn ask(kafka: &Kafka, shared: &Shared, partitions: &[TopicPartition], failures: &mut Failures) -> Self {
        let (start_offsets, refused) = match Self::listed(kafka, shared, partitions).await {
            Ok(answer) => answer,
            Err(error) => {
                let told = |at: &TopicPartition| (Arc::clone(&at.topic), Error::new(error.kind(), error.to_string()));
                (Self::default(), partitions.iter().map(told).collect())
            }
        };
        failures.brokers.extend(refused);
        start_offsets
    }

    /// Returns what the brokers say, and by topic why one of them says nothing of a partition.
    async fn listed(
        kafka: &Kafka,
        shared: &Shared,
        partitions: &[TopicPartition],
    ) -> Result<(Self, BTreeMap<Arc<str>, Error>)> {
        let (mut start_offsets, mut refused) = (Self::default(), BTreeMap::new());
        if partitions.is_empty() {
            return Ok((start_offsets, refused));
        }
        let mut list = async |at: OffsetAt| -> Result<BTreeMap<TopicPartition, i64>> {
            let mut known = BTreeMap::new();
            for (at, offset) in shared.cluster.list_offsets(partitions, at, kafka.isolation).await? {
                match offset {
                    Ok(offset) => known.extend(offset.map(|offset| (at, offset))),
                    Err(error) => drop(refused.insert(at.topic, error)),
                }
            }
            Ok(known)
        };
        start_offsets.earliest = list(OffsetAt::Earliest).await?;
        start_offsets.latest = list(OffsetAt::Latest).await?;
        start_offsets.configured = match kafka.start {
            Start::Earliest => start_offsets.earliest.clone(),
            Start::Latest => start_offsets.latest.clone(),
            Start::Timestamp(time) => {
                let mut found = start_offsets.latest.clone();
                found.extend(list(OffsetAt::Timestamp(time)).await?);
                found
            }
        };
        Ok((start_offsets, refused))
    }

    /// Returns where a partition of `generation` begins. A topic's first generation begins as configured; a later one with its first record,
    /// or where the `archived` of the same topic ends: what retention has removed behind it is found to be a gap. If its log
    /// ends before that, it was cut, too; where, the broker tells if the epoch of its last record is known.
    fn of(&self, at: &TopicPartition, archived: Option<(i64, bool)>, generation: &TopicGeneration) -> Option<i64> {
        if generation.number == 0 {
            return self.configured.get(at).copied();
        }
        let (first, end) = (*self.earliest.get(at)?, *self.latest.get(at)?);
        let archived = archived.filter(|(offset, epoch_known)| *offset <= end || *epoch_known);
        Some(archived.map_or(first, |(offset, _)| offset))
    }
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::*;

    #[tokio::test]
    async fn a_topic_id_of_an_earlier_generation_is_that_of_a_broker_that_lags() {
        let store = Store::over(Arc::new(InMemory::new()), "memory:///");
        let generations: Vec<TopicGeneration> =
            (0..3).map(|generation| TopicGeneration::new("main", "orders", generation)).collect();
        for (generation, id) in generations.iter().zip(["a", "b", "c"]) {
            let begin = Begin::topic(Some(id.to_owned()), vec![Some(0)]);
            Chain::begin(&store, &generation.stream(), begin, "w", crate::time::now()).await.expect("it begins");
        }
        assert!(had_before(&store, &generations, &generations[2], Some("b")).await);
        for other in [Some("d"), Some("c"), None] {
            assert!(!had_before(&store, &generations, &generations[2], other).await, "{other:?}");
        }
        assert!(
            !had_before(&store, &generations, &generations[0], Some("a")).await,
            "nothing was before the first one"
        );
    }

    #[test]
    fn a_generation_after_a_cut_begins_where_the_archive_ends_and_the_broker_can_be_asked() {
        let at = TopicPartition::new("orders", 0);
        let start_offsets = StartOffsets {
            earliest: [(at.clone(), 50)].into(),
            latest: [(at.clone(), 100)].into(),
            configured: [(at.clone(), 100)].into(),
        };
        let of =
            |archived, generation| start_offsets.of(&at, archived, &TopicGeneration::new("main", "orders", generation));
        assert_eq!(of(None, 0), Some(100), "as configured");
        assert_eq!(of(None, 1), Some(50));
        assert_eq!(of(Some((80, false)), 1), Some(80));
        assert_eq!(of(Some((20, false)), 1), Some(20), "what retention has removed since will be a gap");
        assert_eq!(of(Some((200, true)), 1), Some(200), "it was cut, too: the broker tells where");
        assert_eq!(of(Some((200, false)), 1), Some(50), "it was cut, and nobody can tell where");
        assert_eq!(
            start_offsets.of(&TopicPartition::new("orders", 1), Some((80, true)), &TopicGeneration::new("m", "o", 1)),
            None
        );
    }
}
