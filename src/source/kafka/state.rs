//! The state of a cluster: topics with their settings, groups with their positions, access control lists.
//!
//! ```text
//!   archiver ── a line: Question ──► child (`tidelog state-of-kafka`, the same program) ──► brokers
//!            ◄── a line: Answer ────
//! ```
//!
//! A process of its own asks, because librdkafka 2.12.1 can end the process that asks for the positions of groups while a broker goes
//! away (see [`raw::positions`]). What ends then is the child, and the next poll starts another one; archiving does not notice. The
//! child ends when its standard input does, so it never outlives the archiver. Properties, which may hold secrets, go over
//! the pipe and stand in no command line.

mod asked;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, Read as _, Write};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};

pub use asked::Asked;

use super::access::SETTINGS_AT_ONCE;
use super::cluster::{Cluster, names_of};
use super::properties;
use super::raw::{self, Failure, Resource, Source};
use crate::config::{Kafka, State, TopicPattern};
use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::source::told::{Part, Refusal};

/// How long each request of a poll may take.
const REQUEST: Duration = Duration::from_secs(10);

/// The longest question that is taken: properties, patterns, and the names of a document of [`crate::store::bounds::STATE_UNPACKED`].
const LONGEST_QUESTION: u64 = 128 << 20;

/// So many names are told of what is refused.
const MOST_NAMES: usize = 5;

/// What is asked for, and of whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    properties: Vec<(String, String)>,
    groups: Vec<String>,
    exclude_groups: Vec<String>,
    /// The archiver's own: its positions follow from the archive.
    own_group: String,
    /// The groups that were there last.
    known_groups: Vec<String>,
}

impl Question {
    /// Returns what this configuration asks for.
    pub fn new(kafka: &Kafka, state: &State) -> Result<Self> {
        Ok(Self {
            properties: properties::admin(kafka)?,
            groups: state.groups.clone(),
            exclude_groups: state.exclude_groups.clone(),
            own_group: kafka.group_id.clone(),
            known_groups: Vec::new(),
        })
    }

    /// The same question of one who knows which groups were there last: none of them is left out before its coordinator was asked.
    #[must_use]
    pub fn knowing(&self, groups: &[String]) -> Self {
        Self { known_groups: groups.to_vec(), ..self.clone() }
    }

    /// The groups that were there last, are still wanted and are not in a list.
    fn unlisted(&self, listed: &[raw::Group]) -> Vec<String> {
        let listed: BTreeSet<&str> = listed.iter().map(|group| group.name.as_str()).collect();
        let lacking = self.known_groups.iter().filter(|name| !listed.contains(name.as_str()) && self.wants(name));
        lacking.cloned().collect()
    }

    fn wants(&self, group: &str) -> bool {
        let any = |patterns: &[String]| {
            patterns.iter().filter_map(|text| TopicPattern::parse(text).ok()).any(|pattern| pattern.matches(group))
        };
        group != self.own_group && any(&self.groups) && !any(&self.exclude_groups)
    }
}

/// The state of a cluster, part by part.
#[derive(Debug, Serialize, Deserialize)]
pub struct Answer {
    /// The cluster's id, if it tells one.
    pub cluster_id: Option<String>,
    /// Topics by name.
    pub topics: Part,
    /// Groups by name.
    pub groups: Part,
    /// Access control lists.
    pub acls: Part,
}

/// Answers the questions that come in, a line each, until there are no more.
///
/// # Errors
/// A line that is no question, and a reader that is gone.
pub async fn answer_questions(input: &mut impl BufRead, output: &mut impl Write) -> Result<()> {
    let mut client: Option<(Vec<(String, String)>, Cluster)> = None;
    loop {
        let mut line = String::new();
        let broken = || "the question cannot be read".to_owned();
        input.take(LONGEST_QUESTION).read_line(&mut line).or_err(Kind::Internal, broken)?;
        if line.is_empty() {
            return Ok(());
        }
        let question: Question = serde_json::from_str(&line).or_err(Kind::Internal, broken)?;
        let cluster = match client.take() {
            Some((properties, cluster)) if properties == question.properties => cluster,
            _ => Cluster::with_properties(&question.properties)?.within(REQUEST),
        };
        let answer = cluster.state(&question).await;
        let mut text = serde_json::to_vec(&answer).or_err(Kind::Internal, || "cannot write the answer".to_owned())?;
        text.push(b'\n');
        output.write_all(&text).and_then(|()| output.flush()).map_err(|error| Error::io(error, "cannot answer"))?;
        client = Some((question.properties, cluster));
    }
}

/// A topic as it is.
#[derive(Debug, Serialize)]
struct Topic {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    partitions: usize,
    replication_factor: usize,
    /// What was set for the topic; none where that is not told.
    settings: Option<BTreeMap<String, Option<String>>>,
    /// What brokers were set to, and the topic follows.
    cluster_settings: Option<BTreeMap<String, Option<String>>>,
}

/// A group as it is.
#[derive(Debug, Serialize)]
struct Group {
    state: String,
    #[serde(rename = "type")]
    kind: String,
    /// By topic and partition; none where they are not told.
    positions: Option<BTreeMap<String, BTreeMap<i32, Position>>>,
}

/// A position that a group has committed.
#[derive(Debug, Serialize)]
struct Position {
    offset: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    leader_epoch: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<String>,
    /// What is no text.
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata_base64: Option<String>,
}

impl Position {
    fn of(position: &raw::Position) -> Self {
        let (metadata, metadata_base64) = match std::str::from_utf8(&position.metadata) {
            Ok("") => (None, None),
            Ok(text) => (Some(text.to_owned()), None),
            Err(_) => (None, Some(STANDARD.encode(&position.metadata))),
        };
        let leader_epoch = Some(position.leader_epoch).filter(|epoch| *epoch >= 0);
        Self { offset: position.offset, leader_epoch, metadata, metadata_base64 }
    }
}

/// TOPIC_AUTHORIZATION_FAILED, GROUP_AUTHORIZATION_FAILED, CLUSTER_AUTHORIZATION_FAILED.
const NO_RIGHT: std::ops::RangeInclusive<i32> = 29..=31;
const DESCRIBE_CLUSTER: &str =
    "DESCRIBE on the cluster: kafka-acls.sh --add --allow-principal … --operation Describe --cluster";

/// UNKNOWN_TOPIC_OR_PARTITION, GROUP_ID_NOT_FOUND: it was deleted meanwhile.
const GONE: [i32; 2] = [3, 69];

impl Cluster {
    /// The state of the cluster. What fails of one part keeps no other from being told.
    async fn state(&self, question: &Question) -> Answer {
        let told = |part: Result<Part>| part.unwrap_or_else(|error| Part::failed(&error));
        // Of brokers that are away each part would wait for its own time-out.
        if let Err(error) = self.ping().await {
            let [topics, groups, acls] = [(); 3].map(|()| Part::failed(&error));
            return Answer { cluster_id: self.id().await.ok(), topics, groups, acls };
        }
        Answer {
            cluster_id: self.id().await.ok(),
            topics: told(self.topics_state().await),
            groups: told(self.groups_state(question).await),
            acls: told(self.acls_state().await),
        }
    }

    async fn topics_state(&self) -> Result<Part> {
        let names = self.topics().await?;
        let (mut topics, mut refused) = (BTreeMap::new(), Vec::new());
        for some in names.chunks(SETTINGS_AT_ONCE) {
            let wanted = names_of(some)?;
            let described = self
                .request("cannot describe topics", move |handle, wait| {
                    raw::describe_topics(handle, &wanted, false, wait)
                })
                .await?;
            let mut settings = self.settings(Resource::Topic, some).await?;
            for topic in described {
                let own = settings.remove(&topic.name);
                if let Some(topic) = take_topic(topic, own, &mut refused)? {
                    topics.insert(topic.0, topic.1);
                }
            }
        }
        let refusal = Refusal {
            what: format!("the settings of {}", few("topic", &refused)),
            grant: "DESCRIBE_CONFIGS on the topics: kafka-acls.sh --add --allow-principal … --operation DescribeConfigs --topic …"
                .to_owned(),
        };
        Part::found(&topics, if refused.is_empty() { Vec::new() } else { vec![refusal] })
    }

    async fn groups_state(&self, question: &Question) -> Result<Part> {
        let wanted = self.wanted_groups(question).await?;
        let names: Vec<String> = wanted.iter().map(|group| group.name.clone()).collect();
        let positions = self.positions(&names).await?;
        let (mut groups, mut refused) = (BTreeMap::new(), Vec::new());
        for (group, positions) in wanted.into_iter().zip(positions) {
            let positions = match positions {
                Ok(positions) => Some(by_topic(&positions)?),
                Err(failure) if GONE.contains(&failure.code) => continue,
                Err(failure) if NO_RIGHT.contains(&failure.code) => {
                    refused.push(group.name.clone());
                    None
                }
                Err(failure) => {
                    return Err(
                        failure.into_error(format_args!("cannot ask for the positions of group {}", group.name))
                    );
                }
            };
            let state = if group.is_simple { "Empty".to_owned() } else { group.state };
            groups.insert(group.name, Group { state, kind: group.kind, positions });
        }
        let mut refusals = Vec::new();
        if !refused.is_empty() {
            refusals.push(Refusal {
                what: format!("the positions of {}", few("group", &refused)),
                grant: "DESCRIBE on the groups: kafka-acls.sh --add --allow-principal … --operation Describe --group …"
                    .to_owned(),
            });
        }
        if self.may_describe().await? == Some(false) {
            let what = "consumer groups that this client has no right of its own to describe".to_owned();
            refusals.push(Refusal { what, grant: DESCRIBE_CLUSTER.to_owned() });
        }
        Part::found(&groups, refusals)
    }

    /// The groups that are wanted, every one.
    ///
    /// A list may lack groups and tell of no error: a broker leaves out those of which it is not the coordinator yet, or no longer
    /// (`GroupCoordinatorService.listGroups` takes `NotCoordinatorException` for an empty list), and the brokers that are asked are those
    /// that the metadata name, without one that is away. So the coordinator of a group that was there last is asked for it by name,
    /// which fails while there is none; once it answers, it lists its groups.
    async fn wanted_groups(&self, question: &Question) -> Result<Vec<raw::Group>> {
        let list = || self.request("cannot list the consumer groups", raw::groups);
        let mut listed = list().await?;
        let unlisted = question.unlisted(&listed);
        if !unlisted.is_empty() {
            let positions = self.positions(&unlisted).await?;
            listed = list().await?;
            let still = question.unlisted(&listed);
            for (name, positions) in unlisted.into_iter().zip(positions) {
                if has_positions(&name, positions)? && still.contains(&name) {
                    let unknown = || "Unknown".to_owned();
                    listed.push(raw::Group { name, state: unknown(), kind: unknown(), is_simple: false });
                }
            }
        }
        listed.retain(|group| question.wants(&group.name));
        Ok(listed)
    }

    /// The positions of groups, in their order.
    async fn positions(&self, groups: &[String]) -> Result<Vec<raw::Positions>> {
        let asked = group_names(groups)?;
        self.request("cannot ask for the positions of groups", move |handle, wait| raw::positions(handle, &asked, wait))
            .await
    }

    async fn acls_state(&self) -> Result<Part> {
        match self.acls().await? {
            Some(acls) => Part::found(&acls, Vec::new()),
            None => {
                let what = "access control lists".to_owned();
                Ok(Part::Refused(Refusal { what, grant: DESCRIBE_CLUSTER.to_owned() }))
            }
        }
    }
}

/// A topic by its name; none if it was deleted meanwhile, or is not this client's to see.
fn take_topic(
    topic: raw::Described,
    settings: Option<raw::Settings>,
    refused: &mut Vec<String>,
) -> Result<Option<(String, Topic)>> {
    let failed = |failure: Failure| failure.into_error(format_args!("cannot describe topic {}", topic.name));
    match topic.failure.code {
        0 => {}
        code if GONE.contains(&code) || NO_RIGHT.contains(&code) => return Ok(None),
        _ => return Err(failed(topic.failure.clone())),
    }
    let settings = match settings {
        Some(Ok(settings)) => Some(settings),
        Some(Err(failure)) if NO_RIGHT.contains(&failure.code) => {
            refused.push(topic.name.clone());
            None
        }
        Some(Err(failure)) if !GONE.contains(&failure.code) => return Err(failed(failure)),
        Some(Err(_)) | None => return Ok(None),
    };
    let of = |source: Source| {
        let all = settings.as_ref()?.iter().filter(|(_, setting)| setting.source == source);
        Some(all.map(|(name, setting)| (name.clone(), setting.value.clone())).collect())
    };
    let described = Topic {
        id: (topic.id != [0; 16]).then(|| URL_SAFE_NO_PAD.encode(topic.id)),
        partitions: topic.partitions,
        replication_factor: topic.replicas,
        settings: of(Source::Topic),
        cluster_settings: of(Source::Broker),
    };
    Ok(Some((topic.name, described)))
}

/// Whether a group is known to have positions, by what its coordinator has told. One that this client may not look into is one that
/// it is not told of.
///
/// # Errors
/// A coordinator that is away, or has not told.
fn has_positions(group: &str, told: raw::Positions) -> Result<bool> {
    match told {
        Ok(positions) => Ok(by_topic(&positions)?.values().any(|of| !of.is_empty())),
        Err(failure) if GONE.contains(&failure.code) || NO_RIGHT.contains(&failure.code) => Ok(false),
        Err(failure) => Err(failure.into_error(format_args!(
            "the list of consumer groups lacks {group}, which was there last, and its coordinator does not tell of it"
        ))),
    }
}

/// Positions by topic and partition. One that is below 0 is none.
fn by_topic(positions: &[raw::Position]) -> Result<BTreeMap<String, BTreeMap<i32, Position>>> {
    let mut topics: BTreeMap<String, BTreeMap<i32, Position>> = BTreeMap::new();
    for position in positions {
        if position.code != 0 {
            let failure = Failure { code: position.code, text: raw::text_of(position.code) };
            let of = format_args!("cannot ask for the position in {} partition {}", position.topic, position.partition);
            return Err(failure.into_error(of));
        }
        if position.offset >= 0 {
            topics.entry(position.topic.clone()).or_default().insert(position.partition, Position::of(position));
        }
    }
    Ok(topics)
}

fn group_names(names: &[String]) -> Result<Vec<std::ffi::CString>> {
    let c_name = |name: &String| std::ffi::CString::new(name.as_str());
    names
        .iter()
        .map(c_name)
        .collect::<Result<_, _>>()
        .or_err(Kind::Internal, || "a group's name holds a NUL byte".into())
}

/// Returns how many there are, and the names of the first few.
fn few(what: &str, names: &[String]) -> String {
    let shown = names.iter().take(MOST_NAMES).cloned().collect::<Vec<_>>().join(", ");
    let more = if names.len() > MOST_NAMES { ", …" } else { "" };
    let plural = if names.len() == 1 { "" } else { "s" };
    format!("{} {what}{plural} ({shown}{more})", names.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(groups: &[&str], exclude: &[&str]) -> Question {
        let texts = |all: &[&str]| all.iter().map(|text| (*text).to_owned()).collect();
        Question {
            properties: Vec::new(),
            groups: texts(groups),
            exclude_groups: texts(exclude),
            own_group: "tidelog".to_owned(),
            known_groups: Vec::new(),
        }
    }

    #[test]
    fn groups_are_chosen_and_our_own_is_none() {
        let all = question(&["^.*"], &["^console-"]);
        assert!(all.wants("billing") && all.wants("tidelog-2"));
        assert!(!all.wants("console-consumer-123") && !all.wants("tidelog"));
        assert!(!question(&["billing"], &[]).wants("billing-2"));
    }

    #[test]
    fn a_group_that_was_there_last_is_missed_where_it_is_still_wanted() {
        let group = |name: &str| raw::Group {
            name: name.to_owned(),
            state: "Empty".to_owned(),
            kind: "Classic".to_owned(),
            is_simple: true,
        };
        let names = ["a", "b", "left-out", "tidelog"].map(str::to_owned);
        let question = question(&["^.*"], &["^left"]).knowing(&names);
        assert_eq!(question.unlisted(&[group("a"), group("new")]), ["b"]);
        assert_eq!(question.unlisted(&[group("a"), group("b")]), [""; 0]);
    }

    #[test]
    fn a_group_is_gone_where_its_coordinator_says_so_and_not_where_it_says_nothing() {
        let failed = |code| Err(Failure { code, text: "refused".to_owned() });
        let position = |offset| raw::Position {
            topic: "a".into(),
            partition: 0,
            offset,
            leader_epoch: -1,
            metadata: Vec::new(),
            code: 0,
        };
        let told = |told| has_positions("g", told).map_err(|error| error.kind());
        assert_eq!(
            (told(Ok(vec![position(5)])), told(Ok(Vec::new())), told(Ok(vec![position(-1)]))),
            (Ok(true), Ok(false), Ok(false))
        );
        for gone in [69, 30] {
            assert_eq!(told(failed(gone)), Ok(false), "{gone}");
        }
        // COORDINATOR_LOAD_IN_PROGRESS, COORDINATOR_NOT_AVAILABLE, NOT_COORDINATOR, librdkafka's time-out.
        for away in [14, 15, 16, -185] {
            assert_eq!(told(failed(away)), Err(Kind::Unavailable), "{away}");
        }
    }

    #[test]
    fn positions_are_told_as_they_were_committed() {
        let position = |partition, offset, leader_epoch, metadata: &[u8]| raw::Position {
            topic: "a".into(),
            partition,
            offset,
            leader_epoch,
            metadata: metadata.to_vec(),
            code: 0,
        };
        let all = [
            position(10, 5, 3, b"note"),
            position(2, 7, -1, b""),
            position(3, -1, -1, b""),
            position(4, 0, 0, b"\xff"),
        ];
        let json = serde_json::to_string(&by_topic(&all).expect("positions")).expect("JSON");
        assert_eq!(
            json,
            r#"{"a":{"2":{"offset":7},"4":{"offset":0,"leader_epoch":0,"metadata_base64":"/w=="},"10":{"offset":5,"leader_epoch":3,"metadata":"note"}}}"#
        );
        let refused = raw::Position { code: 29, ..position(1, 1, 1, b"") };
        assert_eq!(by_topic(&[refused]).expect_err("refused").kind(), Kind::Denied);
    }

    #[test]
    fn many_names_are_few_words() {
        let names: Vec<String> = (0..7).map(|n| format!("t{n}")).collect();
        assert_eq!(few("topic", &names), "7 topics (t0, t1, t2, t3, t4, …)");
        assert_eq!(few("topic", &names[..1]), "1 topic (t0)");
    }

    #[tokio::test]
    async fn a_child_ends_with_its_input_and_refuses_what_is_no_question() {
        let mut said = Vec::new();
        answer_questions(&mut &b""[..], &mut said).await.expect("the end");
        let error = answer_questions(&mut &b"nonsense\n"[..], &mut said).await.expect_err("no question");
        assert_eq!(error.kind(), Kind::Internal);
        assert_eq!(said, b"");
    }
}
