//! The target cluster: which topics it has and how they are set, and how far an earlier run of the same replay came.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, ConfigSource, ResourceSpecifier};
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerGroupMetadata};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::metadata::{MetadataPartition, MetadataTopic};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::connection::{Connection, Failed as _, Logged, wrong_property};
use super::marks::{Identity, read_mark};
use crate::config::Isolation;
use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::replay::journal::{BegunTarget, BegunTopic};
use crate::replay::offset_map::{At, Note};
use crate::replay::plan::{Mark, Marks};
use crate::source::kafka::{Cluster, OffsetAt, TopicPartition};

/// How long an answer of the target may take.
pub(super) const ANSWER: Duration = Duration::from_secs(20);

/// How long to wait before a broker is asked again.
pub(super) const PAUSE: Duration = Duration::from_millis(100);

/// How long to wait for a cluster's id, which only tells whether two addresses are one cluster.
const CLUSTER_ID: Duration = Duration::from_secs(5);

/// How the groups and transactional ids of replays begin.
pub const GROUPS: &str = "tidelog-replay-";

/// The group and the transactional id of the replay `id`.
pub(super) fn group_of(id: &str) -> String {
    format!("{GROUPS}{id}")
}

/// What an earlier run of the same id left behind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Earlier {
    /// What it was; none if there was no earlier run.
    pub identity: Option<Identity>,
    /// How far it came.
    pub marks: Marks,
    /// What its marks say of the map of offsets.
    pub notes: BTreeMap<At, Note>,
}

/// What the target says about one of its topics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TopicFacts {
    /// How many partitions it has.
    pub(super) partitions: i32,
    /// The least number of replicas in step with the leader that a partition has, and which partition that is; none in step
    /// where it has no leader.
    pub(super) in_sync: (usize, i32),
    /// Its settings by name; none where the target cannot be asked.
    pub(super) config: Option<BTreeMap<String, String>>,
    /// Which of them somebody has set for the topic.
    pub(super) own: BTreeMap<String, String>,
}

/// The settings of a topic: all, and those that somebody has set for it.
type Configs = (BTreeMap<String, String>, BTreeMap<String, String>);

/// Offsets by topic and partition.
type Offsets = BTreeMap<(String, i32), i64>;

/// A connection to the target cluster for one replay.
pub struct Target {
    pub(super) connection: Connection,
    /// The id of the replay.
    pub id: String,
    pub(super) admin: AdminClient<Logged>,
    pub(super) cluster: Cluster,
    consumer: Arc<BaseConsumer<Logged>>,
}

/// Which progress counts while a transaction of an earlier run is neither committed nor aborted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// What was committed before it: enough to plan with.
    Known,
    /// What is true once it is decided: asked after this run has fenced the earlier one, before it sends anything
    /// (KIP-447, `require_stable`).
    Settled,
}

impl Target {
    /// Prepares the clients; nothing is asked yet.
    pub fn new(connection: Connection, id: &str) -> Result<Self> {
        let admin = connection.client().create_with_context(Logged).map_err(|error| wrong_property(&error))?;
        let cluster = Cluster::with_properties(&connection.properties())?;
        let consumer = Arc::new(consumer(&connection, id, Progress::Known)?);
        Ok(Self { connection, id: id.to_owned(), admin, cluster, consumer })
    }

    /// The address that was given.
    pub fn bootstrap(&self) -> &str {
        self.connection.bootstrap()
    }

    /// The id of the cluster; none where it has none.
    pub async fn cluster_id(&self) -> Result<Option<String>> {
        ask(&self.consumer, |consumer| Ok(consumer.client().fetch_cluster_id(CLUSTER_ID))).await
    }

    /// The ids of those of `topics` that the target has; none where its brokers have none.
    pub(super) async fn ids(&self, topics: &[String]) -> Result<BTreeMap<String, Option<String>>> {
        let described = self.cluster.describe(topics).await?;
        described.into_iter().map(|(topic, info)| info.map(|info| (topic, info.id))).collect()
    }

    /// Where `partitions` end, whatever is committed of them. A partition whose leader moves, or is new, is asked for again
    /// for as long as `patience` lasts.
    pub(super) async fn ends(&self, partitions: &[(String, i32)], patience: Duration) -> Result<Offsets> {
        self.offsets(partitions, OffsetAt::Latest, patience).await
    }

    /// The first offset that the brokers have of each of `partitions`.
    pub(super) async fn earliest_offsets(&self, partitions: &[(String, i32)], patience: Duration) -> Result<Offsets> {
        self.offsets(partitions, OffsetAt::Earliest, patience).await
    }

    async fn offsets(&self, partitions: &[(String, i32)], at: OffsetAt, patience: Duration) -> Result<Offsets> {
        let deadline = Instant::now() + patience;
        let mut asked: Vec<TopicPartition> =
            partitions.iter().map(|(topic, partition)| TopicPartition::new(topic.as_str(), *partition)).collect();
        let mut found = BTreeMap::new();
        loop {
            let listed = self.cluster.list_offsets(&asked, at, Isolation::ReadUncommitted).await?;
            asked.clear();
            for (at, offset) in listed {
                match offset {
                    Ok(offset) => {
                        found.insert((at.topic.to_string(), at.partition), offset.unwrap_or(0));
                    }
                    Err(error) if error.is_transient() && Instant::now() < deadline => asked.push(at),
                    Err(error) => return Err(error),
                }
            }
            if asked.is_empty() {
                return Ok(found);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// What `topics` are before the first record is sent.
    pub(super) async fn as_begun(&self, topics: &[String]) -> Result<BegunTarget> {
        let cluster_id = self.cluster_id().await?;
        let described = self.cluster.describe(topics).await?;
        let mut begun = Vec::with_capacity(described.len());
        for (topic, info) in described {
            let info = info?;
            let all: Vec<(String, i32)> = (0..info.partitions).map(|partition| (topic.clone(), partition)).collect();
            let ends =
                self.ends(&all, ANSWER).await?.into_iter().map(|((_, partition), end)| (partition, end)).collect();
            begun.push(BegunTopic { topic, topic_id: info.id, partitions: info.partitions, ends });
        }
        Ok(BegunTarget { cluster_id, topics: begun })
    }

    /// What the target says about `topics`; a topic that it does not have is left out.
    pub(super) async fn describe(&self, topics: &[&str]) -> Result<BTreeMap<String, TopicFacts>> {
        let bootstrap = self.bootstrap().to_owned();
        // All topics are asked for: a question for one by name may create it, where the broker is set so.
        let (partitions, broker): (BTreeMap<String, (i32, (usize, i32))>, i32) = ask(&self.consumer, move |consumer| {
            let metadata = consumer
                .fetch_metadata(None, ANSWER)
                .or_failed(|| format!("the target cluster at {bootstrap} does not answer"))?;
            let count = |topic: &MetadataTopic| topic.partitions().len().try_into().unwrap_or(i32::MAX);
            let in_step = |topic: &MetadataTopic| {
                let of = |at: &MetadataPartition| (if at.leader() < 0 { 0 } else { at.isr().len() }, at.id());
                topic.partitions().iter().map(of).min().unwrap_or((0, 0))
            };
            let facts = |topic: &MetadataTopic| (topic.name().to_owned(), (count(topic), in_step(topic)));
            let partitions = metadata.topics().iter().map(facts).collect();
            Ok((partitions, metadata.orig_broker_id()))
        })
        .await?;
        let present: Vec<&str> = topics.iter().copied().filter(|topic| partitions.contains_key(*topic)).collect();
        let mut configs = self.configs(&present, broker).await?;
        let facts = present.into_iter().map(|topic| {
            let (config, own) = configs.as_mut().and_then(|configs| configs.remove(topic)).unzip();
            let (partitions, in_sync) = partitions.get(topic).copied().unwrap_or((0, (0, 0)));
            (topic.to_owned(), TopicFacts { partitions, in_sync, config, own: own.unwrap_or_default() })
        });
        Ok(facts.collect())
    }

    /// The settings of one of the target's brokers; none if it does not tell.
    pub(super) async fn broker_config(&self) -> Result<Option<BTreeMap<String, String>>> {
        let broker = ask(&self.consumer, |consumer| {
            let metadata =
                consumer.fetch_metadata(None, ANSWER).or_failed(|| "the target does not answer".to_owned())?;
            Ok(metadata.orig_broker_id())
        });
        let broker = broker.await?;
        let options = AdminOptions::new().request_timeout(Some(ANSWER)).broker_id(broker);
        let Ok(answers) = self.admin.describe_configs(&[ResourceSpecifier::Broker(broker)], &options).await else {
            return Ok(None);
        };
        let config = answers.into_iter().find_map(Result::ok);
        let config =
            config.map(|found| found.entries.into_iter().filter_map(|one| Some((one.name, one.value?))).collect());
        Ok(config.filter(|config: &BTreeMap<String, String>| !config.is_empty()))
    }

    /// The settings of `topics`; none if the target does not tell settings. Any broker knows them, so the one that just
    /// answered is asked: librdkafka would look for the controller, which its own mock cluster does not have.
    async fn configs(&self, topics: &[&str], broker: i32) -> Result<Option<BTreeMap<String, Configs>>> {
        if topics.is_empty() {
            return Ok(Some(BTreeMap::new()));
        }
        let asked: Vec<ResourceSpecifier<'_>> = topics.iter().map(|topic| ResourceSpecifier::Topic(topic)).collect();
        let options = AdminOptions::new().request_timeout(Some(ANSWER)).broker_id(broker);
        let answers = match self.admin.describe_configs(&asked, &options).await {
            Ok(answers) => answers,
            Err(KafkaError::AdminOp(RDKafkaErrorCode::UnsupportedFeature)) => return Ok(None),
            Err(error) => return Err(error).or_failed(|| "the target does not tell how its topics are set".to_owned()),
        };
        let mut configs = BTreeMap::new();
        for (topic, answer) in topics.iter().zip(answers) {
            match answer {
                // The crate rdkafka 0.39 does not look at a topic's error (`rd_kafka_ConfigResource_error`): one whose settings may not be
                // known seems to have none, and every topic has some.
                Ok(resource) if resource.entries.is_empty() => return Ok(None),
                Ok(resource) => {
                    let (mut all, mut own) = Configs::default();
                    for entry in resource.entries {
                        let Some(value) = entry.value else { continue };
                        if entry.source == ConfigSource::DynamicTopic {
                            own.insert(entry.name.clone(), value.clone());
                        }
                        all.insert(entry.name, value);
                    }
                    configs.insert((*topic).to_owned(), (all, own));
                }
                Err(RDKafkaErrorCode::TopicAuthorizationFailed) => return Ok(None),
                Err(code) => {
                    return Err(Error::new(Kind::Unavailable, format!("the target does not tell how {topic} is set"))
                        .source(code));
                }
            }
        }
        Ok(Some(configs))
    }

    /// Which rights the replay lacks, as problems: on the topics that exist, and on its group. Whether it may use its transactional
    /// id nobody can ask without fencing who uses it.
    pub(super) async fn missing_rights(&self, existing: &BTreeMap<String, i32>) -> Result<Vec<String>> {
        let topics: Vec<String> = existing.keys().cloned().collect();
        let mut refused: Vec<Error> = self.cluster.unwritable(&topics).await?.into_values().collect();
        refused.extend(self.may_commit().await.err());
        let told = |error: Error| match error.hint_text() {
            Some(hint) => format!("{error}; {hint}"),
            None => error.to_string(),
        };
        Ok(refused.into_iter().map(told).collect())
    }

    /// Whether the replay may commit how far it has come.
    async fn may_commit(&self) -> Result<()> {
        let group = group_of(&self.id);
        let denied = |error: Error| match error.kind() {
            Kind::Denied => error.hint(format!("grant READ on the group {group}, or on all that begin with {GROUPS}")),
            _ => error,
        };
        self.cluster.may_join(&group).await.map_err(denied)
    }

    /// What an earlier run left behind for `partitions` (target topics with their partitions).
    ///
    /// # Errors
    /// `Kind::Config` where the group's offsets were not written by a replay.
    pub async fn earlier(&self, partitions: &[(String, i32)], progress: Progress) -> Result<Earlier> {
        let consumer = match progress {
            Progress::Known => Arc::clone(&self.consumer),
            Progress::Settled => Arc::new(consumer(&self.connection, &self.id, progress)?),
        };
        let mut list = TopicPartitionList::with_capacity(partitions.len());
        for (topic, partition) in partitions {
            list.add_partition(topic, *partition);
        }
        let (id, bootstrap) = (self.id.clone(), self.bootstrap().to_owned());
        let asked = ask(&consumer, move |consumer| {
            let offsets = committed(consumer, &list)
                .or_failed(|| format!("the target at {bootstrap} does not say how far the replay {id} has come"))
                .map_err(|error| match error.kind() {
                    Kind::Unavailable => error.hint("is the address right, and the cluster up? --into names another"),
                    _ => error,
                })?;
            let mut earlier = Earlier::default();
            for element in offsets.elements() {
                let Offset::Offset(offset) = element.offset() else { continue };
                let (identity, generation, note) = read_mark(element.metadata()).ok_or_else(|| {
                    Error::new(Kind::Config, format!("the group {} was not written by a replay", group_of(&id)))
                        .hint("choose another --id")
                })?;
                earlier.identity = Some(identity);
                let at = (element.topic().to_owned(), element.partition());
                earlier.notes.extend(note.map(|note| (at.clone(), note)));
                earlier.marks.insert(at, Mark { generation, offset });
            }
            Ok(earlier)
        });
        // librdkafka asks for the coordinator of a group that may not be seen until time is over.
        tokio::select! {
            biased;
            Err(denied) = self.denied() => Err(denied),
            answer = asked => answer,
        }
    }

    /// Why the replay may not use its group; whatever else is wrong is told by who asks the group.
    async fn denied(&self) -> Result<()> {
        match self.may_commit().await {
            Err(error) if error.kind() == Kind::Denied => Err(error),
            _ => Ok(()),
        }
    }

    /// What a transaction needs to know of the group.
    pub(super) fn group(&self) -> Result<ConsumerGroupMetadata> {
        self.consumer.group_metadata().ok_or_else(|| Error::new(Kind::Internal, "the replay's consumer has no group"))
    }
}

fn consumer(connection: &Connection, id: &str, progress: Progress) -> Result<BaseConsumer<Logged>> {
    let isolation = match progress {
        Progress::Known => "read_uncommitted",
        Progress::Settled => "read_committed",
    };
    let mut config = connection.client();
    config.set("group.id", group_of(id)).set("enable.auto.commit", "false").set("isolation.level", isolation);
    config.create_with_context(Logged).map_err(|error| wrong_property(&error))
}

/// What the group has committed for the partitions of `list`. A coordinator that is about to move, to load or to decide a
/// transaction is asked again; a partition that cannot be answered for is an error, for taken as "nothing was sent" it
/// would have its records sent twice.
pub(super) fn committed(consumer: &BaseConsumer<Logged>, list: &TopicPartitionList) -> KafkaResult<TopicPartitionList> {
    let passes = |code: Option<RDKafkaErrorCode>| {
        matches!(
            code,
            Some(
                RDKafkaErrorCode::NotCoordinator
                    | RDKafkaErrorCode::CoordinatorNotAvailable
                    | RDKafkaErrorCode::CoordinatorLoadInProgress
                    | RDKafkaErrorCode::UnstableOffsetCommit
            )
        )
    };
    let deadline = Instant::now() + ANSWER;
    loop {
        let answer = consumer.committed_offsets(list.clone(), ANSWER).and_then(|offsets| {
            let refused = offsets.elements().iter().find_map(|element| element.error().err());
            // A topic that is yet to be created has no offsets.
            let unknown = Some(RDKafkaErrorCode::UnknownTopicOrPartition);
            refused.filter(|error| error.rdkafka_error_code() != unknown).map_or(Ok(offsets), Err)
        });
        match answer {
            Err(error) if passes(error.rdkafka_error_code()) && Instant::now() < deadline => std::thread::sleep(PAUSE),
            answer => return answer,
        }
    }
}

/// A question to librdkafka that blocks.
async fn ask<T: Send + 'static>(
    consumer: &Arc<BaseConsumer<Logged>>,
    question: impl FnOnce(&BaseConsumer<Logged>) -> Result<T> + Send + 'static,
) -> Result<T> {
    let consumer = Arc::clone(consumer);
    tokio::task::spawn_blocking(move || question(&consumer))
        .await
        .or_err(Kind::Internal, || "a question to the target failed".to_owned())?
}
