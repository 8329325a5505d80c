//! The admin view of the cluster: what topics there are, which generation of a topic it is, and where logs begin and end.
//!
//! A client of its own, so that a slow request never waits behind fetches. librdkafka answers on queues; a blocking
//! thread waits for each answer.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::raw::{self, Callback, Failure, Handle, List, code};
use super::{TopicPartition, properties};
use crate::config::{Isolation, Kafka};
use crate::error::{Error, Kind, Result, ResultExt as _};

/// How long a request may take. A broker that is just starting answers within this.
const REQUEST: Duration = Duration::from_secs(15);

/// How many partitions one request for offsets names: librdkafka looks for each of them among all of its request
/// (`rd_kafka_topic_partition_list_find`), so that one of 5,000 costs ten times as much as twenty of 250.
const LISTED_AT_ONCE: usize = 250;

/// A topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicInfo {
    /// The topic's id, as Kafka's tools print it (URL-safe base64 of 16 bytes); none where the brokers have none.
    pub id: Option<String>,
    /// How many partitions it has.
    pub partitions: i32,
}

/// Which offset of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OffsetAt {
    /// The first that the broker has.
    Earliest,
    /// The one after the last: of the log, or below the first open transaction under `read_committed`.
    Latest,
    /// The first record at or after this time (ms since 1970).
    Timestamp(i64),
}

/// A view of one cluster.
#[derive(Clone)]
pub struct Cluster {
    handle: Arc<Handle>,
    /// How long a request may take.
    wait: Duration,
}

impl Cluster {
    /// A client with the consumer's connection properties. Nothing is connected yet when it returns.
    pub fn new(config: &Kafka) -> Result<Self> {
        Ok(Self { handle: Arc::new(Handle::admin(&properties::admin(config)?)?), wait: REQUEST })
    }

    /// A client of another cluster, which these librdkafka properties describe.
    pub fn with_properties(properties: &[(String, String)]) -> Result<Self> {
        Ok(Self { handle: Arc::new(Handle::admin(properties)?), wait: REQUEST })
    }

    /// The same client, whose requests may take only this long.
    pub fn within(&self, wait: Duration) -> Self {
        Self { wait, ..self.clone() }
    }

    /// Returns how many brokers there are. An error if none answers.
    pub async fn ping(&self) -> Result<usize> {
        Ok(self.request("cannot reach the Kafka cluster", |handle, wait| raw::metadata(handle, wait)).await?.brokers)
    }

    /// The cluster's own id, as its brokers tell it.
    pub async fn id(&self) -> Result<String> {
        self.request("cannot ask for the cluster's id", raw::cluster_id).await
    }

    /// All topics that this client may see.
    pub async fn topics(&self) -> Result<Vec<String>> {
        let metadata = self.request("cannot list topics", |handle, wait| raw::metadata(handle, wait)).await?;
        Ok(metadata.topics.into_iter().filter(|(_, code)| *code == 0).map(|(name, _)| name).collect())
    }

    /// The topics of `topics` that exist. An error of one (no right to see it) does not keep the others from their answer.
    pub async fn describe(&self, topics: &[String]) -> Result<BTreeMap<String, Result<TopicInfo>>> {
        let wanted = names_of(topics)?;
        if wanted.is_empty() {
            return Ok(BTreeMap::new());
        }
        let described = self
            .request("cannot describe topics", move |handle, wait| raw::describe_topics(handle, &wanted, false, wait));
        let mut found = BTreeMap::new();
        for topic in described.await? {
            if topic.failure.code != 0 {
                let error = topic.failure.into_error(format_args!("cannot describe topic {}", topic.name));
                if error.kind() != Kind::NotFound {
                    found.insert(topic.name, Err(error));
                }
                continue;
            }
            let id = (topic.id != [0; 16]).then(|| URL_SAFE_NO_PAD.encode(topic.id));
            let partitions = i32::try_from(topic.partitions).unwrap_or(i32::MAX);
            found.insert(topic.name, Ok(TopicInfo { id, partitions }));
        }
        Ok(found)
    }

    /// Returns where partitions stand, asked of each leader once. None: there is no record at or after the time. An error of a
    /// partition (no leader, no such partition) does not keep the others from their answer.
    pub async fn list_offsets(
        &self,
        partitions: &[TopicPartition],
        at: OffsetAt,
        isolation: Isolation,
    ) -> Result<Vec<(TopicPartition, Result<Option<i64>>)>> {
        let mut listed = Vec::with_capacity(partitions.len());
        for some in partitions.chunks(LISTED_AT_ONCE) {
            listed.extend(self.list_some(some, at, isolation).await?);
        }
        Ok(listed)
    }

    async fn list_some(
        &self,
        partitions: &[TopicPartition],
        at: OffsetAt,
        isolation: Isolation,
    ) -> Result<Vec<(TopicPartition, Result<Option<i64>>)>> {
        let spec = match at {
            OffsetAt::Earliest => -2,
            OffsetAt::Latest => -1,
            OffsetAt::Timestamp(time) => time.max(0),
        };
        let wanted = partitions.to_vec();
        let committed = isolation == Isolation::ReadCommitted;
        let listed = self
            .request("cannot list offsets", move |handle, wait| {
                let mut list = List::new();
                for at in &wanted {
                    list.add(&at.topic, at.partition, spec)
                        .map_err(|error| Failure { code: code::INVALID_ARG, text: error.to_string() })?;
                }
                raw::list_offsets(handle, &mut list, committed, wait)
            })
            .await?;
        let names: BTreeMap<&str, &Arc<str>> = partitions.iter().map(|at| (&*at.topic, &at.topic)).collect();
        let answers = listed.into_iter().map(|one| {
            let topic =
                names.get(one.topic.as_str()).map_or_else(|| one.topic.as_str().into(), |name| Arc::clone(name));
            let at = TopicPartition { topic, partition: one.partition };
            let offset = if one.code == 0 {
                Ok((one.offset >= 0).then_some(one.offset))
            } else {
                Err(Failure { code: one.code, text: raw::text_of(one.code) }
                    .into_error(format_args!("cannot list offsets of {at}")))
            };
            (at, offset)
        });
        Ok(answers.collect())
    }

    /// Runs one request on a thread that may block. If it fails, what librdkafka reported meanwhile tells why: the
    /// request itself only knows that nobody answered.
    pub(super) async fn request<T: Send + 'static>(
        &self,
        doing: &'static str,
        ask: impl FnOnce(&Arc<Handle>, Duration) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T> {
        let (handle, wait) = (Arc::clone(&self.handle), self.wait);
        let answer = tokio::task::spawn_blocking(move || {
            let mut reported = Vec::new();
            handle.serve(&mut reported);
            reported.clear();
            ask(&handle, wait).map_err(|failure| {
                handle.serve(&mut reported);
                let error = failure.into_error(doing);
                match reported.into_iter().rev().find_map(cause) {
                    Some(cause) => Error::new(cause.kind(), error.to_string())
                        .hint(cause.hint_text().unwrap_or("check kafka.bootstrap_servers and that the brokers are up"))
                        .source(cause),
                    None => error,
                }
            })
        });
        answer.await.or_err(Kind::Internal, || format!("{doing}: the request was given up"))?
    }
}

/// Names for librdkafka, each once.
pub(super) fn names_of(names: &[String]) -> Result<Vec<CString>> {
    let mut names = names.to_vec();
    names.sort_unstable();
    names.dedup();
    let c_name = |name| CString::new(name).or_err(Kind::Config, || "a topic's name holds a NUL byte".to_owned());
    names.into_iter().map(c_name).collect()
}

/// Returns what a callback reported, if it says more than that nobody answers.
fn cause(callback: Callback) -> Option<Error> {
    match callback {
        Callback::Error { failure, .. } if failure.code != code::ALL_BROKERS_DOWN => {
            Some(failure.into_error("Kafka client"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_cluster_that_is_not_there_is_unavailable_and_the_cause_is_told() {
        // A port that was free a moment ago: nothing listens there.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = super::super::tests::config(&format!("127.0.0.1:{port}"), &["a"], &[]);
        let cluster = Cluster::new(&config).unwrap().within(Duration::from_secs(1));
        let error = cluster.ping().await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable);
        assert!(error.to_string().contains("Connection refused"), "{error}");
        assert!(error.hint_text().unwrap().contains("kafka.bootstrap_servers"));
        let error = cluster.describe(&["a".into()]).await.unwrap_err();
        assert!(error.is_transient(), "{error}");
    }

    #[tokio::test]
    async fn tokens_are_made_without_a_poll() {
        let properties = [
            ("security.protocol", "SASL_PLAINTEXT"),
            ("sasl.mechanism", "OAUTHBEARER"),
            ("enable.sasl.oauthbearer.unsecure.jwt", "true"),
        ];
        let config = super::super::tests::config("127.0.0.1:1", &["a"], &properties);
        assert!(Cluster::new(&config).is_ok());
    }
}
