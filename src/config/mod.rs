//! The configuration: a TOML file and the environment in, one validated and immutable [`Config`] out.
//!
//! `raw` reads the keys and collects every mistake, so that all of them are told at once; nothing in the rest of the
//! program ever sees an invalid value. A section that is absent switches its part off.

pub(crate) mod exposed;
mod load;
mod merge;
mod pipeline;
mod postgres;
mod raw;
mod retention;
mod state;
mod values;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use regex::Regex;
use url::Url;

pub use merge::Merge;
pub use pipeline::{Captured, Pipeline, Recovered, Scratch, Strimzi, TargetKafka, TargetPostgres};
pub use postgres::{Ack, BaseBackup, Hidden, Postgres};
pub use retention::{Kept, Own, RecordRetention, Retention, TopicRetention};
pub use state::{Access, Server};

use crate::stream::{Format, StateKind, StateOf};

/// Everything that the program was told.
#[derive(Debug, Clone)]
pub struct Config {
    /// `[archive]`: where the archive lies.
    pub archive: Archive,
    /// `[memory] budget`: bytes that all open builders and buffers may hold together.
    pub memory_budget: u64,
    /// `[kafka]`: what is read from Kafka, if anything is.
    pub kafka: Option<Kafka>,
    /// `[postgres]`: which server's WAL is archived, if any is.
    pub postgres: Option<Postgres>,
    /// `[state]`: what is kept of the pipeline's own state, if anything is.
    pub state: Option<State>,
    /// `[retention]`: how long things are kept.
    pub retention: Retention,
    /// `[http]`: the listener, if there is one.
    pub http: Option<Http>,
}

impl Config {
    /// The streams of state that are this configuration's, kept now or not.
    pub fn state_streams(&self) -> Vec<StateOf> {
        let Some(kafka) = &self.kafka else { return Vec::new() };
        let own = StateKind::ALL.map(|kind| StateOf { kind, scope: kafka.cluster.clone() });
        let connect = self.state.iter().flat_map(|state| &state.connect);
        let connect = connect.map(|server| StateOf { kind: StateKind::Connectors, scope: server.name.clone() });
        let registries = self.state.iter().flat_map(|state| &state.schema_registry);
        let registries = registries.map(|server| StateOf { kind: StateKind::Schemas, scope: server.name.clone() });
        let all: std::collections::BTreeSet<StateOf> = own.into_iter().chain(connect).chain(registries).collect();
        all.into_iter().collect()
    }
}

/// `[state]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// `every`: how often the servers are asked.
    pub every: Duration,
    /// `groups`: the consumer groups whose positions are kept: names, or `^` and a regex.
    pub groups: Vec<String>,
    /// `exclude_groups`: those that are not kept although `groups` names them.
    pub exclude_groups: Vec<String>,
    /// `connect_url`: the Connect clusters whose connectors are kept.
    pub connect: Vec<Server>,
    /// `schema_registry_url`: the schema registries whose subjects are kept.
    pub schema_registry: Vec<Server>,
}

/// `[archive]`.
#[derive(Debug, Clone)]
pub struct Archive {
    /// `url`: `file://`, `s3://`, `gs://`, `az://` or `memory://`.
    pub url: Url,
    /// `spool_dir`: the local directory of unfinished segments.
    pub spool_dir: PathBuf,
    /// `[archive.options]`: object_store's own keys, lower case.
    pub options: BTreeMap<String, String>,
}

/// `[http]`.
#[derive(Debug, Clone)]
pub struct Http {
    /// `listen`: where the listener listens.
    pub listen: SocketAddr,
    /// `admin_token_file`: the file that holds the token of changing calls; without it there are none.
    pub admin_token_file: Option<PathBuf>,
    /// `reader_token_file`: the file that holds the token with which records are shown; without it none are.
    pub reader_token_file: Option<PathBuf>,
    /// `max_topic_labels`: how many topics have series of their own in `/metrics`.
    pub max_topic_labels: usize,
}

/// `[kafka]`.
#[derive(Debug, Clone)]
pub struct Kafka {
    /// `cluster`: the name under which the archive keeps this cluster's topics.
    pub cluster: String,
    /// `cluster_id`: the id of the one cluster that may be archived under that name.
    pub cluster_id: Option<String>,
    /// `bootstrap_servers`.
    pub bootstrap_servers: String,
    /// `group_id`.
    pub group_id: String,
    /// `topics`: names, or `^` and a regex, as librdkafka subscribes to them.
    pub topics: Vec<String>,
    /// `exclude`: topics that are not archived although `topics` names them.
    pub exclude: Vec<TopicPattern>,
    /// `start`: where a partition begins that the archive does not know.
    pub start: Start,
    /// `isolation`.
    pub isolation: Isolation,
    /// `[kafka.properties]`: any librdkafka property.
    pub properties: BTreeMap<String, String>,
    /// `[kafka.segment]`.
    pub segment: Segment,
    /// `[kafka.merge]`; none where it is switched off.
    pub merge: Option<Merge>,
    /// `[[kafka.topic]]`, in order; of several that match a topic the last one counts.
    pub overrides: Vec<TopicOverride>,
}

/// Where a partition begins that the archive does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// The oldest record that the broker has.
    Earliest,
    /// Only what comes from now on.
    Latest,
    /// The first record at or after this time (ms since 1970).
    Timestamp(i64),
}

/// Which records of transactions are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// Only those of committed transactions.
    ReadCommitted,
    /// All.
    ReadUncommitted,
}

impl Isolation {
    /// librdkafka's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::ReadCommitted => "read_committed",
            Self::ReadUncommitted => "read_uncommitted",
        }
    }
}

/// `[kafka.segment]`: how records become segments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// `format`.
    pub format: Format,
    /// `compression`: the level of zstd.
    pub zstd_level: i32,
    /// `max_bytes`: a segment is sealed when its encoded bytes reach this.
    pub max_bytes: u64,
    /// `max_records`: a segment is sealed when it holds this many records.
    pub max_records: u64,
    /// `max_age`: a segment is sealed this long after its first record came.
    pub max_age: Duration,
}

/// `[[kafka.topic]]`: other settings for the topics that match.
#[derive(Debug, Clone)]
pub struct TopicOverride {
    /// `match`.
    pub pattern: TopicPattern,
    /// The settings of such a topic, the general ones filled in.
    pub segment: Segment,
    /// `retention` and `retention_bytes`, where it has its own.
    pub retention: TopicRetention,
}

/// A topic's name, or `^` and a regex.
#[derive(Debug, Clone)]
pub enum TopicPattern {
    /// This very topic.
    Name(String),
    /// Every topic that the regex finds (anchored at its start by its `^`).
    Regex(Regex),
}

impl TopicPattern {
    /// Whether the pattern means `topic`.
    pub fn matches(&self, topic: &str) -> bool {
        match self {
            Self::Name(name) => name == topic,
            Self::Regex(regex) => regex.is_match(topic),
        }
    }
}

impl Kafka {
    /// How records of `topic` become segments.
    pub fn segment_of(&self, topic: &str) -> &Segment {
        self.overrides.iter().rev().find(|over| over.pattern.matches(topic)).map_or(&self.segment, |over| &over.segment)
    }

    /// What `topics` names. Each was read once already, when the configuration was.
    pub fn patterns(&self) -> Vec<TopicPattern> {
        self.topics.iter().filter_map(|text| TopicPattern::parse(text).ok()).collect()
    }

    /// Whether `topic`, which the subscription names, is left out.
    pub fn excludes(&self, topic: &str) -> bool {
        self.exclude.iter().any(|pattern| pattern.matches(topic))
    }
}
