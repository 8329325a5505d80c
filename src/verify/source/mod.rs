//! The archive against the live topics: what one of them has and the other has not, each with the reason.
//!
//! ```text
//!  chains, then brokers: ids, ends ─► account: a name for every offset ─┬─► settled without a look
//!                                                                      ├─► only archived: counted by segment
//!                                                                      └─► in both: a sample, or all, record by record
//!  brokers once more: the same topics? generations once more? ─► else nothing is said of the topic
//! ```
//! The chains are read before the brokers are asked where logs end, so whatever is committed later is not looked for; the brokers
//! are asked for ids again at the end, so no record of another generation is taken for one that is missing. Nothing is
//! written, and no group has a member by it ([`RangeReader`](crate::source::kafka::RangeReader)).

mod account;
mod lineage;
mod pieces;
mod rows;
mod topic;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};

use futures::StreamExt as _;

pub use account::{Count, Fate, Finding, Ledger};
pub use topic::Asked;

use self::lineage::{Descent, descent};
use self::topic::{Comparison, Outcome, ends};
use crate::config::{Kafka, TopicPattern};
use crate::error::{Error, Kind, Result};
use crate::manifest;
use crate::source::kafka::{Cluster, TopicInfo};
use crate::store::Store;
use crate::stream::TopicGeneration;

/// So many topics are compared side by side, each with a client of its own.
const TOPICS_AT_ONCE: usize = 2;

/// How a topic stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It was compared.
    Compared,
    /// The source has no such topic any more: the archive alone has it.
    Gone,
    /// The source's topic is another one of that name, of which nothing is archived yet: the archive alone has what came before.
    MadeAgain,
    /// The source has it, the configuration means it, and nothing of it is archived yet.
    NotArchived,
    /// The configuration names it, and nobody has it.
    Nowhere,
    /// It could not be compared, or not to the end.
    Unchecked,
}

impl State {
    /// Its name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Compared => "compared",
            Self::Gone => "gone",
            Self::MadeAgain => "made_again",
            Self::NotArchived => "not_archived",
            Self::Nowhere => "nowhere",
            Self::Unchecked => "unchecked",
        }
    }
}

/// What was found of one topic.
#[derive(Debug)]
pub struct TopicFound {
    /// The topic.
    pub topic: String,
    /// How it stands.
    pub state: State,
    /// The generations of the archive that are of the source's topic.
    pub generations: Vec<u32>,
    /// The generations that are of topics before, of which the source has nothing.
    pub ended: Vec<u32>,
    /// Records that the archive keeps of `generations`; of all where the source has no such topic.
    pub archived: u64,
    /// Offsets that both have.
    pub common: u64,
    /// How many of them were compared.
    pub looked_at: u64,
    /// Records that were found in both, and are the same.
    pub compared: u64,
    /// What is not in both, by name.
    pub ledger: Ledger,
    /// Why the topic, or a part of it, could not be compared.
    pub troubles: Vec<Error>,
}

impl TopicFound {
    /// Nothing was found of it yet.
    pub fn new(topic: &str, state: State) -> Self {
        let (generations, ended, ledger, troubles) = (Vec::new(), Vec::new(), Ledger::default(), Vec::new());
        Self {
            topic: topic.to_owned(),
            state,
            generations,
            ended,
            archived: 0,
            common: 0,
            looked_at: 0,
            compared: 0,
            ledger,
            troubles,
        }
    }

    fn unchecked(topic: &str, error: Error) -> Self {
        Self { troubles: vec![error], ..Self::new(topic, State::Unchecked) }
    }
}

/// What was found.
#[derive(Debug, Default)]
pub struct Found {
    /// By topic.
    pub topics: Vec<TopicFound>,
}

impl Found {
    /// How much there is of a fate in all topics.
    pub fn count(&self, fate: Fate) -> Count {
        self.topics.iter().map(|topic| topic.ledger.count(fate)).fold(Count::default(), |sum, count| Count {
            offsets: sum.offsets.saturating_add(count.offsets),
            records: sum.records.saturating_add(count.records),
        })
    }

    /// The topics that could not be compared, or not to the end.
    pub fn unchecked(&self) -> impl Iterator<Item = &TopicFound> {
        self.topics.iter().filter(|topic| !topic.troubles.is_empty())
    }
}

/// How far a comparison has come, for a progress bar on another thread.
#[derive(Debug, Default)]
pub struct Passed {
    total: AtomicU64,
    done: AtomicU64,
}

impl Passed {
    /// Topics; 0 until they are counted.
    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// Topics that are compared.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }
}

/// What the brokers tell of a topic.
enum Told {
    Known(TopicInfo),
    Refused(Error),
    Nothing,
}

/// Holds the archive's topics of the configured cluster, and those that the configuration means, against the brokers.
///
/// # Errors
/// No broker answers, or the archive cannot be listed. What concerns one topic is in its row.
pub async fn compare(store: &Store, kafka: &Kafka, asked: Asked<'_>, passed: &Passed) -> Result<Found> {
    let cluster = Cluster::new(kafka)?;
    let archive = generations(store, kafka).await?;
    let meant = meant(&cluster, kafka).await?;
    let names: Vec<String> = archive.keys().cloned().chain(meant).collect::<BTreeSet<_>>().into_iter().collect();
    passed.total.store(names.len() as u64, Ordering::Relaxed);
    let mut described = cluster.describe(&names).await?;
    let mut refused = cluster.unreadable(&names).await?;
    let policies = cluster.setting(&names, "cleanup.policy").await?;
    let look = names.iter().map(|name| {
        let told = match (refused.remove(name), described.remove(name)) {
            (Some(error), _) | (None, Some(Err(error))) => Told::Refused(error),
            (None, Some(Ok(info))) => Told::Known(info),
            (None, None) => Told::Nothing,
        };
        let of = Comparison {
            store,
            kafka,
            cluster: &cluster,
            topic: name,
            compacts: matches!(policies.get(name), Some(Ok(policy)) if policy.contains("compact")),
            asked,
        };
        let generations = archive.get(name).map_or(&[][..], Vec::as_slice);
        async move {
            let id = match &told {
                Told::Known(info) => info.id.clone(),
                Told::Refused(_) | Told::Nothing => None,
            };
            let looked = manifest::isolated(store, one(&of, generations, told).await).await;
            let found = match looked {
                Ok(Ok(found)) => found,
                Ok(Err(error)) | Err(error) => TopicFound::unchecked(name, error),
            };
            passed.done.fetch_add(1, Ordering::Relaxed);
            (id, found)
        }
    });
    let looks: Vec<_> = look.collect();
    let found: Vec<(Option<String>, TopicFound)> =
        futures::stream::iter(looks).buffered(TOPICS_AT_ONCE).collect().await;
    let topics = judged(store, kafka, &cluster, found).await?;
    for found in topics.iter().filter(|found| found.ledger.count(Fate::Unexplained).records > 0) {
        if let Some(Err(error)) = policies.get(&found.topic) {
            tracing::warn!(topic = %found.topic, %error, hint = error.hint_text(), "why records are gone from the source cannot be told");
        }
    }
    Ok(Found { topics })
}

/// What is to be said of topics that were compared, each with the id that it had then.
async fn judged(
    store: &Store,
    kafka: &Kafka,
    cluster: &Cluster,
    found: Vec<(Option<String>, TopicFound)>,
) -> Result<Vec<TopicFound>> {
    let described = cluster.describe(&names_of(found.iter().map(|(_, found)| found))).await?;
    let archive = generations(store, kafka).await?;
    let judge = |(id, found): (Option<String>, TopicFound)| {
        let now = described.get(&found.topic).and_then(|info| info.as_ref().ok());
        let newest = archive.get(&found.topic).and_then(|all| all.last()).map(|newest| newest.number);
        match became_another(&found, id.as_deref(), now, newest) {
            Some(error) => TopicFound::unchecked(&found.topic, error),
            None => found,
        }
    };
    Ok(found.into_iter().map(judge).collect())
}

fn names_of<'a>(found: impl Iterator<Item = &'a TopicFound>) -> Vec<String> {
    found.filter(|found| found.state == State::Compared).map(|found| found.topic.clone()).collect()
}

/// Whether a topic that was compared had another id when that was done, or goes on in another generation of the archive: then
/// records of two topics, or of two logs, may have been held against each other.
fn became_another(found: &TopicFound, id: Option<&str>, now: Option<&TopicInfo>, newest: Option<u32>) -> Option<Error> {
    let how = match now {
        _ if found.state != State::Compared => return None,
        Some(now) if now.id.as_deref() == id && newest <= found.generations.last().copied() => return None,
        Some(now) if now.id.as_deref() == id => "another generation of it began while it was compared",
        _ => "it was deleted or created again while it was compared",
    };
    let error =
        Error::new(Kind::Unavailable, format!("topic {}: {how}, so that nothing can be said of it", found.topic));
    Some(error.hint("verify again"))
}

/// The generations of the cluster's topics, the oldest first.
async fn generations(store: &Store, kafka: &Kafka) -> Result<BTreeMap<String, Vec<TopicGeneration>>> {
    let mut topics: BTreeMap<String, Vec<TopicGeneration>> = BTreeMap::new();
    for generation in manifest::topics(store).await? {
        if generation.cluster == kafka.cluster {
            topics.entry(generation.topic.clone()).or_default().push(generation);
        }
    }
    topics.values_mut().for_each(|generations| generations.sort_unstable_by_key(|generation| generation.number));
    Ok(topics)
}

/// The topics that the configuration means: those that it names, and those of the source that it matches.
async fn meant(cluster: &Cluster, kafka: &Kafka) -> Result<Vec<String>> {
    let patterns = kafka.patterns();
    let mut meant = cluster.topics().await?;
    meant.retain(|topic| patterns.iter().any(|pattern| pattern.matches(topic)));
    meant.extend(patterns.iter().filter_map(|pattern| match pattern {
        TopicPattern::Name(name) => Some(name.clone()),
        TopicPattern::Regex(_) => None,
    }));
    meant.retain(|topic| !kafka.excludes(topic));
    Ok(meant)
}

/// Compares one topic.
async fn one(of: &Comparison<'_>, generations: &[TopicGeneration], told: Told) -> Result<TopicFound> {
    let numbers = |of: &[TopicGeneration]| of.iter().map(|generation| generation.number).collect::<Vec<_>>();
    let info = match told {
        Told::Refused(error) => return Ok(TopicFound::unchecked(of.topic, error)),
        Told::Nothing if generations.is_empty() => return Ok(TopicFound::new(of.topic, State::Nowhere)),
        Told::Nothing => {
            let archived = kept(of.store, generations).await?;
            let ended = numbers(generations);
            return Ok(TopicFound { archived, ended, ..TopicFound::new(of.topic, State::Gone) });
        }
        Told::Known(info) => info,
    };
    if generations.is_empty() {
        return waiting(of, &info, TopicFound::new(of.topic, State::NotArchived)).await;
    }
    let lineage = match descent(of.store, generations, info.id.as_deref()).await? {
        Descent::Same(lineage) => lineage,
        Descent::MadeAgain => {
            let (archived, ended) = (kept(of.store, generations).await?, numbers(generations));
            let found = TopicFound { archived, ended, ..TopicFound::new(of.topic, State::MadeAgain) };
            return waiting(of, &info, found).await;
        }
        Descent::Lags => {
            let message =
                format!("topic {}: a broker tells the id of the topic before the one that is archived", of.topic);
            return Err(Error::new(Kind::Unavailable, message).hint("that broker lags behind the others: verify again"));
        }
    };
    let same: Vec<u32> = lineage.parts.iter().map(|part| part.generation).collect();
    let mut ended = numbers(generations);
    ended.retain(|number| !same.contains(number));
    let outcome = of.run(&lineage, info.partitions).await?;
    let Outcome { archived, common, looked_at, compared, ledger, troubles } = outcome;
    let (topic, state) = (of.topic.to_owned(), State::Compared);
    Ok(TopicFound { topic, state, generations: same, ended, archived, common, looked_at, compared, ledger, troubles })
}

/// Names everything that the source has as not archived yet.
async fn waiting(of: &Comparison<'_>, info: &TopicInfo, mut found: TopicFound) -> Result<TopicFound> {
    for (partition, ends) in ends(of.cluster, of.topic, info.partitions, &mut found.troubles).await? {
        let range = ends.low..ends.high;
        if !range.is_empty() {
            let fate = Fate::NotYet;
            let (records, detail) = (None, None);
            let generation = found.ended.last().map_or(0, |last| last.saturating_add(1));
            found.ledger.add(Finding { fate, generation, partition, range, records, on_source: true, detail });
        }
    }
    Ok(found)
}

/// How many records the archive keeps of these generations.
async fn kept(store: &Store, generations: &[TopicGeneration]) -> Result<u64> {
    let mut records = 0_u64;
    for generation in generations {
        if let Some(chain) = manifest::Chain::open(store, &generation.stream()).await? {
            let totals = chain.totals();
            records = records.saturating_add(totals.records.saturating_sub(totals.retired.records));
        }
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_said_of_a_topic_that_became_another_one_meanwhile() {
        let compared = TopicFound { generations: vec![1, 2], ..TopicFound::new("orders", State::Compared) };
        let info = |id: &str| TopicInfo { id: Some(id.to_owned()), partitions: 1 };
        let judge = |now: Option<&TopicInfo>, newest| became_another(&compared, Some("a"), now, newest);
        assert!(judge(Some(&info("a")), Some(2)).is_none());
        for (now, newest, how) in [
            (Some(info("b")), Some(2), "created again"),
            (None, Some(2), "deleted"),
            (Some(info("a")), Some(3), "another generation"),
        ] {
            let error = judge(now.as_ref(), newest).expect("it became another one");
            assert!(error.to_string().contains(how) && error.is_transient(), "{error}");
        }
        let gone = TopicFound { state: State::Gone, ..compared };
        assert!(became_another(&gone, Some("a"), None, Some(2)).is_none());
    }
}
