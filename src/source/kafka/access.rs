//! What may keep a cluster's records from this program although everything answers: rights, limits, and other members of the
//! group.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, CString};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::cluster::{Cluster, names_of};
use super::raw::{self, Failure, Handle, List, Resource, Rights};
use super::{TopicPartition, properties};
use crate::config::{Kafka, TopicPattern};
use crate::error::{Error, Kind, Result, ResultExt as _};

/// How many topics one request for settings names: each answers with some forty of them.
pub(super) const SETTINGS_AT_ONCE: usize = 250;

/// How long a group's coordinator is given to be found before it is asked again.
const COORDINATOR_AGAIN: Duration = Duration::from_millis(250);

/// A topic that no broker has, for its name is not one: what is committed of it is refused before anything is written.
const NO_TOPIC: &str = "tidelog-may-it-commit?";

/// A member of the group that is not tidelog, as far as it can be told (see [`is_ours`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Foreign {
    /// Its `client.id`.
    pub client_id: String,
    /// Where it runs, as the broker sees it.
    pub host: String,
    /// The partitions of archived topics that the group has given to it.
    pub takes: Vec<TopicPartition>,
    /// Whether the group has given it anything else.
    pub has_others: bool,
}

impl Foreign {
    /// Whether archived topics have nothing to do with it: it has partitions, and of other topics only.
    pub fn is_beside(&self) -> bool {
        self.takes.is_empty() && self.has_others
    }

    /// What it is and what it has, in words.
    pub fn told(&self, group: &str) -> String {
        let Self { client_id, host, takes, .. } = self;
        let takes = match takes.is_empty() {
            true if self.has_others => "partitions of topics that are not archived".to_owned(),
            true => "no partition yet".to_owned(),
            false => spans(takes),
        };
        format!(
            "client {client_id:?} on {} is a member of the group {group} and not tidelog; it has {takes}",
            host.trim_start_matches('/')
        )
    }
}

/// What to do about a foreign member.
pub const FOREIGN_HINT: &str = "give it another group.id, or tidelog another kafka.group_id (positions are the archive's, nothing is lost by it); if it is a tidelog, give it the same client.id, or one that begins with tidelog";

/// Whether a member is tidelog: by its `client.id`, which is all that the group tells of its members. It is the one that is
/// configured here, or begins with `tidelog`.
fn is_ours(config: &Kafka, client_id: &str) -> bool {
    client_id.starts_with("tidelog") || config.properties.get("client.id").is_some_and(|ours| ours == client_id)
}

/// Partitions in few words: `a [0-2, 5], b [1]`; of many topics the first few.
fn spans(partitions: &[TopicPartition]) -> String {
    const MOST_TOPICS: usize = 5;
    let mut topics: BTreeMap<&str, BTreeSet<i32>> = BTreeMap::new();
    for at in partitions {
        topics.entry(&at.topic).or_default().insert(at.partition);
    }
    let shown = topics.iter().take(MOST_TOPICS).map(|(topic, partitions)| {
        let mut runs: Vec<(i32, i32)> = Vec::new();
        for &partition in partitions {
            match runs.last_mut() {
                Some((_, last)) if *last + 1 == partition => *last = partition,
                _ => runs.push((partition, partition)),
            }
        }
        let run =
            |(first, last): &(i32, i32)| if first == last { first.to_string() } else { format!("{first}-{last}") };
        format!("{topic} [{}]", runs.iter().map(run).collect::<Vec<_>>().join(", "))
    });
    let mut text = shown.collect::<Vec<_>>().join(", ");
    if topics.len() > MOST_TOPICS {
        text += &format!(" and {} more topics", topics.len() - MOST_TOPICS);
    }
    text
}

/// A limit that keeps records back for ever as soon as one comes that is larger, or the member from its group.
#[derive(Debug, PartialEq, Eq)]
pub struct Limit {
    /// What does not fit.
    pub text: String,
    /// What to change.
    pub hint: String,
}

/// What the client takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Client {
    receive_max: u64,
    session_timeout: u64,
    /// KIP-848: the brokers alone decide how long a session lasts.
    by_broker: bool,
}

impl Client {
    fn of(config: &Kafka) -> Result<Self> {
        let handle = Handle::consumer(&properties::consumer(config)?)?;
        let number = |name| handle.property(name).parse().unwrap_or(u64::MAX);
        let by_broker = handle.property(c"group.protocol").eq_ignore_ascii_case("consumer");
        let (receive_max, session_timeout) = (number(c"receive.message.max.bytes"), number(c"session.timeout.ms"));
        Ok(Self { receive_max, session_timeout, by_broker })
    }
}

/// librdkafka takes an answer of `receive.message.max.bytes` at most, and wants this much of it for what is around the batch
/// (`rd_kafka_new`: `receive.message.max.bytes` must exceed `fetch.max.bytes` by 512).
const AROUND_A_BATCH: u64 = 512;

/// A broker gives the first batch of a partition whole, however small `fetch.max.bytes` and `max.partition.fetch.bytes` are
/// (KIP-74), so that those hold nothing back; an answer above `receive.message.max.bytes` is thrown away and asked for again.
fn size_limit(topic: &str, settings: &BTreeMap<String, String>, client: Client) -> Option<Limit> {
    let largest: u64 = settings.get("max.message.bytes")?.parse().ok()?;
    let needed = largest.saturating_add(AROUND_A_BATCH);
    (needed > client.receive_max).then(|| Limit {
        text: format!(
            "topic {topic} takes batches of {largest} bytes (max.message.bytes), and the client answers of {} (receive.message.max.bytes): a larger batch would stop its partition",
            client.receive_max
        ),
        hint: format!(
            "set \"receive.message.max.bytes\" in [kafka.properties] to {needed} or more, or lower max.message.bytes of the topic"
        ),
    })
}

/// A member whose session is outside the broker's range is not taken in (INVALID_SESSION_TIMEOUT).
fn session_limit(settings: &BTreeMap<String, String>, client: Client) -> Option<Limit> {
    let number = |name: &str| settings.get(name)?.parse::<u64>().ok();
    let (least, most) = (number("group.min.session.timeout.ms")?, number("group.max.session.timeout.ms")?);
    let timeout = client.session_timeout;
    (!client.by_broker && !(least..=most).contains(&timeout)).then(|| Limit {
        text: format!(
            "session.timeout.ms is {timeout}, and the brokers take {least} to {most} (group.min.session.timeout.ms, group.max.session.timeout.ms): the group would not take tidelog in"
        ),
        hint: format!("set \"session.timeout.ms\" in [kafka.properties] to a value from {least} to {most}"),
    })
}

/// Asks for the members of a group. A coordinator that moves, or has just been made, is asked for again (KafkaApis, "retriable"
/// errors of a group).
fn describe(handle: &Arc<Handle>, group: &CStr, wait: Duration) -> Result<Vec<raw::Member>, Failure> {
    let until = Instant::now() + wait;
    loop {
        match raw::describe_group(handle, group, wait) {
            Err(failure) if failure.is_about_the_coordinator() && Instant::now() < until => {
                std::thread::sleep(COORDINATOR_AGAIN);
            }
            answer => return answer,
        }
    }
}

impl Cluster {
    /// The members of the configuration's group that are not tidelog.
    pub async fn foreign_members(&self, config: &Kafka) -> Result<Vec<Foreign>> {
        let group = c_name(&config.group_id)?;
        let described =
            self.request("cannot describe the consumer group", move |handle, wait| describe(handle, &group, wait));
        Ok(foreign(config, described.await?))
    }

    /// The members of a group, as clients and where they run. For a command, which may end with its question (see [`raw::members`]).
    pub async fn members(&self, group: &str) -> Result<Vec<String>> {
        let name = c_name(group)?;
        let described =
            self.request("cannot describe the consumer group", move |handle, wait| describe(handle, &name, wait));
        let members = described.await.map_err(|error| error.context(format_args!("group {group}")))?;
        let told =
            |member: raw::Member| format!("client {:?} on {}", member.client_id, member.host.trim_start_matches('/'));
        Ok(members.into_iter().map(told).collect())
    }

    /// The same for a process that asks now and then; none where the brokers do not tell: of a group of the new protocol they tell it only
    /// in a way that is not safe then (see [`raw::members`]).
    pub async fn foreign_now(&self, config: &Kafka) -> Result<Option<Vec<Foreign>>> {
        let group = c_name(&config.group_id)?;
        let members = self
            .request("cannot list the members of the group", move |handle, wait| raw::members(handle, &group, wait));
        Ok(members.await?.map(|members| foreign(config, members)))
    }

    /// Whether this client may take part in the group: a commit for a topic that cannot be is refused for the topic if it may,
    /// and for the group if it may not (KafkaApis.handleOffsetCommitRequest). Nothing is written either way.
    pub async fn may_join(&self, group: &str) -> Result<()> {
        let (doing, name) = (format!("cannot take part in the consumer group {group}"), c_name(group)?);
        let asked = self.request("cannot ask for the rights of the group", move |handle, wait| {
            let mut offsets = List::new();
            offsets
                .add(NO_TOPIC, 0, 0)
                .map_err(|error| Failure { code: raw::code::INVALID_ARG, text: error.to_string() })?;
            Ok(raw::commit(handle, &name, &offsets, wait))
        });
        match asked.await? {
            Err(failure) if failure.is_about_the_group() => Err(failure.into_error(doing)),
            // What is said of the topic says that the group was allowed. That nobody answers is told elsewhere.
            _ => Ok(()),
        }
    }

    /// Of `topics` those that this client may not read, and why. One that does not exist is not in it, if the client may know.
    pub async fn unreadable(&self, topics: &[String]) -> Result<BTreeMap<String, Error>> {
        self.refused(topics, "read", |rights| (!rights.read).then_some("READ")).await
    }

    /// The same of those that it may not replay into: a replay's positions are committed for the target's topics, for which READ is
    /// needed beside WRITE (KafkaApis.handleTxnOffsetCommitRequest).
    pub async fn unwritable(&self, topics: &[String]) -> Result<BTreeMap<String, Error>> {
        let lacks = |rights: Rights| match (rights.read, rights.write) {
            (true, true) => None,
            (false, true) => Some("READ"),
            (true, false) => Some("WRITE"),
            (false, false) => Some("READ and WRITE"),
        };
        self.refused(topics, "replayed into", lacks).await
    }

    async fn refused(
        &self,
        topics: &[String],
        what: &str,
        lacks: impl Fn(Rights) -> Option<&'static str>,
    ) -> Result<BTreeMap<String, Error>> {
        let wanted = names_of(topics)?;
        if wanted.is_empty() {
            return Ok(BTreeMap::new());
        }
        let described = self.request("cannot ask for the rights of topics", move |handle, wait| {
            raw::describe_topics(handle, &wanted, true, wait)
        });
        let mut refused = BTreeMap::new();
        for topic in described.await? {
            let doing = format!("topic {} may not be {what}", topic.name);
            let error = match (topic.failure.code, topic.rights.and_then(&lacks)) {
                (0, Some(lacking)) => {
                    let message = format!("{doing}: DESCRIBE is granted, and {lacking} is not");
                    Error::new(Kind::Denied, message).hint(format!("grant {lacking} on the topic"))
                }
                (0, None) => continue,
                _ => topic.failure.into_error(doing),
            };
            if error.kind() == Kind::Denied {
                refused.insert(topic.name, error);
            }
        }
        Ok(refused)
    }

    /// The limits of topics and brokers that this configuration's client cannot take, and the topics whose limits this client
    /// is not told.
    pub async fn limits(&self, config: &Kafka, topics: &[String]) -> Result<(Vec<Limit>, Vec<Error>)> {
        let client = Client::of(config)?;
        let (mut limits, mut untold) = (Vec::new(), Vec::new());
        for some in topics.chunks(SETTINGS_AT_ONCE) {
            for (topic, settings) in self.settings(Resource::Topic, some).await? {
                match settings {
                    Ok(settings) => limits.extend(size_limit(&topic, &values(settings), client)),
                    Err(failure) => {
                        untold.push(failure.into_error(format_args!("the limits of topic {topic} are not known")))
                    }
                }
            }
        }
        let broker = self.request("cannot ask for the brokers", |handle, wait| raw::controller(handle, wait)).await?;
        for (_, settings) in self.settings(Resource::Broker, &[broker.to_string()]).await? {
            // Whoever may not see the brokers' settings is not in need of them: the defaults fit.
            limits.extend(settings.ok().and_then(|settings| session_limit(&values(settings), client)));
        }
        Ok((limits, untold))
    }

    pub(super) async fn settings(&self, of: Resource, names: &[String]) -> Result<BTreeMap<String, raw::Settings>> {
        let wanted = names_of(names)?;
        self.request("cannot ask for settings", move |handle, wait| raw::describe_configs(handle, of, &wanted, wait))
            .await
    }

    /// What one setting of topics is in force with, or why that is not told. Topics that do not exist are not in it.
    pub async fn setting(&self, topics: &[String], name: &str) -> Result<BTreeMap<String, Result<String>>> {
        let mut told = BTreeMap::new();
        for some in topics.chunks(SETTINGS_AT_ONCE) {
            for (topic, settings) in self.settings(Resource::Topic, some).await? {
                let value = settings
                    .map(|settings| values(settings).remove(name).unwrap_or_default())
                    .map_err(|failure| failure.into_error(format_args!("{name} of topic {topic} is not known")));
                told.insert(topic, value);
            }
        }
        Ok(told)
    }

    /// Sets a topic otherwise: all of `changes` or none of them. What has no value is taken back, so that the topic follows its
    /// cluster; what is not named stays.
    ///
    /// # Errors
    /// `Kind::Config` for a setting that the brokers do not know, or a value that they do not take.
    pub async fn alter_topic(&self, topic: &str, changes: &BTreeMap<String, Option<String>>) -> Result<()> {
        let name = |text: &str| CString::new(text).or_err(Kind::Config, || format!("{text:?} holds a NUL byte"));
        let topic = name(topic)?;
        let changes = changes
            .iter()
            .map(|(setting, value)| Ok((name(setting)?, value.as_deref().map(name).transpose()?)))
            .collect::<Result<Vec<_>>>()?;
        self.request("cannot set the topic", move |handle, wait| raw::alter_topic(handle, &topic, &changes, wait)).await
    }
}

fn values(settings: BTreeMap<String, raw::Setting>) -> BTreeMap<String, String> {
    settings.into_iter().filter_map(|(name, setting)| Some((name, setting.value?))).collect()
}

fn foreign(config: &Kafka, members: Vec<raw::Member>) -> Vec<Foreign> {
    let patterns = config.patterns();
    let archived = |topic: &str| is_archived(&patterns, config, topic);
    let strangers = members.into_iter().filter(|member| !is_ours(config, &member.client_id));
    strangers
        .map(|member| {
            let (takes, others): (Vec<_>, Vec<_>) = member.assigned.into_iter().partition(|(topic, _)| archived(topic));
            Foreign {
                client_id: member.client_id,
                host: member.host,
                takes: takes.into_iter().map(|(topic, partition)| TopicPartition::new(topic, partition)).collect(),
                has_others: !others.is_empty(),
            }
        })
        .collect()
}

/// Whether the configuration archives `topic`.
pub fn is_archived(patterns: &[TopicPattern], config: &Kafka, topic: &str) -> bool {
    patterns.iter().any(|pattern| pattern.matches(topic)) && !config.excludes(topic)
}

fn c_name(group: &str) -> Result<CString> {
    CString::new(group).or_err(Kind::Config, || "kafka.group_id holds a NUL byte".to_owned())
}

impl Failure {
    /// COORDINATOR_LOAD_IN_PROGRESS, COORDINATOR_NOT_AVAILABLE, NOT_COORDINATOR (Kafka's protocol, "Error codes").
    fn is_about_the_coordinator(&self) -> bool {
        matches!(self.code, 14..=16)
    }

    /// GROUP_AUTHORIZATION_FAILED.
    pub(super) fn is_about_the_group(&self) -> bool {
        self.code == 30
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(all: &[(&str, &str)]) -> BTreeMap<String, String> {
        all.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_member_is_ours_by_its_client_id() {
        let config = super::super::tests::config("localhost:1", &["a"], &[("client.id", "archiver-of-shop")]);
        let ours = ["tidelog", "tidelog-2", "archiver-of-shop"];
        assert!(ours.iter().all(|client| is_ours(&config, client)));
        assert!(!["rdkafka", "", "archiver", "my-tidelog"].iter().any(|client| is_ours(&config, client)));
    }

    #[test]
    fn what_a_member_has_is_told_in_few_words() {
        let at = |topic: &str, partition| TopicPartition::new(topic, partition);
        assert_eq!(spans(&[at("b", 1), at("a", 2), at("a", 0), at("a", 1), at("a", 5)]), "a [0-2, 5], b [1]");
        let many: Vec<TopicPartition> = (0..7).map(|n| at(&format!("t{n}"), 0)).collect();
        assert!(spans(&many).ends_with("t4 [0] and 2 more topics"), "{}", spans(&many));
        let foreign = |takes, has_others| Foreign { client_id: "c".into(), host: "/h".into(), takes, has_others };
        assert!(!foreign(vec![at("a", 0)], true).is_beside());
        assert!(foreign(vec![], true).is_beside());
        assert!(!foreign(vec![], false).is_beside(), "it may be given anything at the next rebalance");
        assert!(foreign(vec![at("a", 0)], false).told("g").contains("client \"c\" on h is a member of the group g"));
    }

    #[test]
    fn a_batch_that_may_come_must_fit_with_what_is_around_it() {
        let client = Client { receive_max: 1_000, session_timeout: 45_000, by_broker: false };
        assert_eq!(size_limit("a", &settings(&[("max.message.bytes", "488")]), client), None);
        let limit = size_limit("a", &settings(&[("max.message.bytes", "489")]), client).expect("one byte too much");
        assert!(limit.text.contains("topic a takes batches of 489 bytes") && limit.text.contains("1000"), "{limit:?}");
        assert!(limit.hint.contains("1001"), "{limit:?}");
        assert_eq!(size_limit("a", &settings(&[]), client), None, "a broker that does not tell");
    }

    #[test]
    fn a_session_must_lie_within_the_brokers_range_where_the_client_sets_it() {
        let client = |session_timeout, by_broker| Client { receive_max: 1, session_timeout, by_broker };
        let range = settings(&[("group.min.session.timeout.ms", "6000"), ("group.max.session.timeout.ms", "30000")]);
        for (timeout, fits) in [(5_999, false), (6_000, true), (30_000, true), (30_001, false)] {
            assert_eq!(session_limit(&range, client(timeout, false)).is_none(), fits, "{timeout}");
        }
        assert_eq!(session_limit(&range, client(45_000, true)), None);
        assert_eq!(session_limit(&settings(&[]), client(1, false)), None);
    }

    #[test]
    fn what_the_client_takes_is_asked_of_the_client() {
        let defaults = Client::of(&super::super::tests::config("localhost:1", &["a"], &[])).expect("a client");
        assert_eq!((defaults.receive_max, defaults.by_broker), (100_000_000, false));
        let set = [("receive.message.max.bytes", "20000000"), ("session.timeout.ms", "7000")];
        let set = Client::of(&super::super::tests::config("localhost:1", &["a"], &set)).expect("a client");
        assert_eq!((set.receive_max, set.session_timeout), (20_000_000, 7_000));
    }
}
