//! The scratch servers of a drill: kept apart from what is live, empty before, and empty afterwards.
//!
//! ```text
//!   addresses ─► cluster ids: those of the archive, Connect's own ─► what is there ─► drills/made/pipeline.json ─► … ─► removed
//! ```
//!
//! A Connect group lives in one cluster: workers over the scratch cluster are no live ones. The archive tells the ids of the clusters that it
//! is fed by, so no live one is asked.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use futures::{StreamExt as _, TryStreamExt as _};
use serde::{Deserialize, Serialize};
use url::Url;

use super::cluster::Cluster;
use super::subjects::{MadeSubjects, is_scratch, place};
use crate::config::{Config, Pipeline, TopicPattern};
use crate::error::{Error, Kind, Result};
use crate::manifest::{self, STREAMS_AT_ONCE};
use crate::recover::connector::Connector;
use crate::recover::prepare::connection;
use crate::replay::kafka::GROUPS;
use crate::restore::patiently;
use crate::source::rest::operate::State;
use crate::source::rest::{Operator, Registrar};
use crate::store::Store;
use crate::stream::StreamId;

/// How long workers that rebalance are waited for.
const WORKERS: Duration = Duration::from_secs(120);

const SCRATCH: &str = "name a scratch one: a drill never touches what is live";

/// The servers.
pub(super) struct Targets {
    cluster: Option<(Cluster, String)>,
    workers: Option<Operator>,
    pub(super) registrar: Option<Registrar>,
}

/// What a drill makes on them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MadePipeline {
    cluster: Option<String>,
    topics: BTreeSet<String>,
    /// Prefixes of topics, and patterns of groups.
    prefixes: BTreeSet<String>,
    groups: Vec<String>,
    connect: Option<String>,
    connectors: BTreeSet<String>,
    registry: Option<MadeSubjects>,
}

impl Targets {
    /// Looks at them, and refuses those that are live: by their addresses, and by the ids of their clusters.
    ///
    /// # Errors
    /// [`Kind::Config`] that names the key; servers that do not answer.
    pub(super) async fn look(store: &Store, config: &Config, pipeline: &Pipeline) -> Result<Self> {
        let cluster = match &pipeline.kafka {
            None => None,
            Some(kafka) => {
                let Some(bootstrap) = &kafka.bootstrap_servers else {
                    let message = "kafka.bootstrap_servers: is missing, and would be the configured cluster";
                    return Err(Error::new(Kind::Config, message).hint(SCRATCH));
                };
                let live = config.kafka.as_ref().map(|kafka| kafka.bootstrap_servers.as_str()).unwrap_or_default();
                if let Some(same) = addresses(bootstrap).intersection(&addresses(live)).next() {
                    let message = format!("kafka.bootstrap_servers: {same} is of the cluster that is archived");
                    return Err(Error::new(Kind::Config, message).hint(SCRATCH));
                }
                let cluster = Cluster::of(&connection(config, pipeline)?)?;
                let id = cluster.id().await?;
                Some((cluster, id))
            }
        };
        if let Some(server) = &pipeline.connect {
            let live = config.state.as_ref().map(|state| state.connect.as_slice()).unwrap_or_default();
            let live: Vec<_> = live.iter().flat_map(|server| &server.urls).map(place).collect();
            if let Some(url) = server.urls.iter().find(|url| live.contains(&place(url))) {
                let message = format!("connect.url: {url} are the workers that are archived");
                return Err(Error::new(Kind::Config, message).hint(SCRATCH));
            }
        }
        if let Some(server) = &pipeline.schema_registry {
            is_scratch(server, config)?;
        }
        let workers = pipeline.connect.as_ref().map(Operator::new).transpose()?;
        let registrar = pipeline.schema_registry.as_ref().map(Registrar::new).transpose()?;
        let targets = Self { cluster, workers, registrar };
        targets.are_apart(&live_clusters(store, config).await?).await?;
        Ok(targets)
    }

    async fn are_apart(&self, live: &BTreeSet<String>) -> Result<()> {
        let own = self.cluster.as_ref().map(|(_, id)| id);
        if let Some(id) = own.filter(|id| live.contains(*id)) {
            let message = format!("kafka.bootstrap_servers: leads to {id}, a cluster that is archived");
            return Err(Error::new(Kind::Config, message).hint(SCRATCH));
        }
        let Some(workers) = &self.workers else { return Ok(()) };
        let theirs = workers.cluster_id().await?;
        let why = match (&theirs, own) {
            (None, _) => "does not say over which cluster its workers are".to_owned(),
            (Some(theirs), _) if live.contains(theirs) => {
                format!("has workers over {theirs}, a cluster that is archived")
            }
            (Some(theirs), Some(own)) if theirs != own => {
                format!("has workers over the cluster {theirs}, and kafka.bootstrap_servers leads to {own}")
            }
            _ => return Ok(()),
        };
        Err(Error::new(Kind::Config, format!("connect.url: {} {why}", workers.shown()))
            .hint("name workers that are over the scratch cluster: what a connector writes goes there"))
    }

    /// What a recovery will make; refuses a cluster where anything of that is. What workers and registry hold is refused where that is looked
    /// at.
    ///
    /// # Errors
    /// [`Kind::Config`] that names what is there.
    pub(super) async fn empty(
        &self,
        pipeline: &Pipeline,
        (connectors, topics): (&[Connector], BTreeSet<String>),
        (id, registry): (&str, Option<MadeSubjects>),
    ) -> Result<MadePipeline> {
        let has_workers = self.workers.is_some();
        let made = MadePipeline {
            cluster: self.cluster.as_ref().map(|(_, id)| id.clone()),
            topics,
            prefixes: connectors.iter().map(|of| format!("{}.", of.prefixes.1)).collect(),
            groups: pipeline
                .kafka
                .iter()
                .flat_map(|kafka| kafka.groups.clone())
                .chain([format!("{GROUPS}{id}")])
                .collect(),
            connect: self.workers.as_ref().map(|workers| workers.shown().to_owned()),
            connectors: connectors.iter().filter(|_| has_workers).map(|of| of.name.clone()).collect(),
            registry,
        };
        if let Some((cluster, _)) = &self.cluster {
            let (topics, groups) = (cluster.topics().await?, cluster.groups().await?);
            let topics = topics.iter().filter(|topic| made.has_topic(topic)).map(|topic| format!("the topic {topic}"));
            let groups = groups.iter().filter(|group| made.has_group(group)).map(|group| format!("the group {group}"));
            let there: Vec<String> = topics.chain(groups).take(5).collect();
            if !there.is_empty() {
                let message = format!("kafka.bootstrap_servers: the cluster has {} already", there.join(", "));
                return Err(Error::new(Kind::Config, message)
                    .hint("name a scratch cluster without them, or others by rename: a drill removes nothing that it did not make"));
            }
        }
        Ok(made)
    }
}

impl MadePipeline {
    fn has_topic(&self, topic: &str) -> bool {
        self.topics.contains(topic) || self.prefixes.iter().any(|prefix| topic.starts_with(prefix.as_str()))
    }

    fn has_group(&self, group: &str) -> bool {
        let patterns = self.groups.iter().filter_map(|text| TopicPattern::parse(text).ok());
        patterns.into_iter().any(|pattern| pattern.matches(group))
    }

    /// Removes all of it. What cannot be reached any more is told.
    ///
    /// # Errors
    /// Servers that do not answer, and what stays.
    pub(super) async fn remove(&self, targets: &Targets) -> Result<Vec<String>> {
        let mut elsewhere = Vec::new();
        if !self.connectors.is_empty() {
            match targets.workers.as_ref().filter(|workers| self.connect.as_deref() == Some(workers.shown())) {
                None => elsewhere.extend(self.connect.clone()),
                Some(workers) => {
                    for name in &self.connectors {
                        removed(workers, name).await?;
                    }
                }
            }
        }
        match targets.cluster.as_ref().filter(|(_, id)| self.cluster.as_ref() == Some(id)) {
            None => elsewhere.extend(self.cluster.as_ref().map(|id| format!("the cluster {id}"))),
            Some((cluster, _)) => {
                cluster.remove(|topic| self.has_topic(topic), |group| self.has_group(group)).await?;
            }
        }
        if let Some(made) = &self.registry {
            match targets.registrar.as_ref().filter(|registrar| registrar.shown() == made.url) {
                None => elsewhere.push(made.url.clone()),
                Some(registrar) => made.remove(registrar).await?,
            }
        }
        Ok(elsewhere)
    }
}

/// Removes a connector with its offsets, which a later one of its name would go on from.
async fn removed(workers: &Operator, name: &str) -> Result<()> {
    if patiently(WORKERS, || workers.config(name)).await?.is_none() {
        return Ok(());
    }
    patiently(WORKERS, || workers.stop(name)).await?;
    let begun = Instant::now();
    while !patiently(WORKERS, || workers.state(name)).await?.as_ref().is_some_and(State::is_stopped) {
        if begun.elapsed() > WORKERS {
            let message = format!("the connector {name} of the drill does not stop");
            return Err(Error::new(Kind::Unavailable, message).hint("delete it at its workers"));
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    patiently(WORKERS, || workers.forget_offsets(name)).await?;
    patiently(WORKERS, || workers.delete(name)).await
}

/// Refuses a connector that would still lead to what is live.
///
/// # Errors
/// [`Kind::Config`] that names the key.
pub(super) fn is_apart(of: &Connector, config: &Config, port: Option<u16>) -> Result<()> {
    let its = of.get("database.port", "5432");
    if let Some(port) = port.filter(|port| *port.to_string() != *its) {
        let message =
            format!("the connector {}: its database.port is {its}, and the drill's server has {port}", of.name);
        return Err(Error::new(Kind::Config, message)
            .hint("set \"database.port\" in [connector.config] to postgres.port: a drill never touches what is live"));
    }
    let mut live = addresses(config.kafka.as_ref().map(|kafka| kafka.bootstrap_servers.as_str()).unwrap_or_default());
    let servers = config.state.iter().flat_map(|state| state.connect.iter().chain(&state.schema_registry));
    let told = |url: &Url| url.host_str().zip(url.port_or_known_default()).map(|(host, port)| format!("{host}:{port}"));
    live.extend(servers.flat_map(|server| &server.urls).filter_map(told));
    for (key, value) in of.config.iter().filter_map(|(key, value)| Some((key, value.as_deref()?))) {
        let is_archived = of.archived.get(key).and_then(Option::as_deref) == Some(value);
        let names_server = key.ends_with("registry.url") || key.ends_with("bootstrap.servers");
        let is_live = live.iter().any(|address| names(value, address));
        if is_live || (names_server && is_archived) {
            let message = format!("the connector {}: its {key} leads to what is archived", of.name);
            return Err(Error::new(Kind::Config, message).hint(format!(
                "set \"{key}\" in [connector.config] to the scratch server: a drill never touches what is live"
            )));
        }
    }
    Ok(())
}

/// Whether a text has an address, and not a longer one.
fn names(text: &str, address: &str) -> bool {
    let text = text.to_lowercase();
    let within = |char: Option<char>| char.is_some_and(|char| char.is_alphanumeric() || "-_.".contains(char));
    text.match_indices(address).any(|(at, _)| {
        let (before, behind) = (text[..at].chars().next_back(), text[at + address.len()..].chars().next());
        !within(before) && !behind.is_some_and(char::is_alphanumeric)
    })
}

fn addresses(bootstrap: &str) -> BTreeSet<String> {
    let bare = |address: &str| address.trim().rsplit('/').next().unwrap_or_default().to_lowercase();
    bootstrap.split(',').map(bare).filter(|address| !address.is_empty()).collect()
}

/// The ids of the clusters that the archive is fed by, as it tells them itself.
async fn live_clusters(store: &Store, config: &Config) -> Result<BTreeSet<String>> {
    let streams = manifest::streams(store).await?;
    let of_clusters = streams.into_iter().filter(|stream| !matches!(stream, StreamId::Postgres { .. }));
    let began = of_clusters.map(|stream| async move { manifest::began(store, &stream).await });
    let began: Vec<_> = futures::stream::iter(began).buffer_unordered(STREAMS_AT_ONCE).try_collect().await?;
    let told = began.iter().flatten().filter_map(|(_, begin)| begin.cluster_id().map(str::to_owned));
    let configured = config.kafka.as_ref().and_then(|kafka| kafka.cluster_id.clone());
    let known: BTreeSet<String> = told.chain(configured).collect();
    if known.is_empty() && began.iter().any(Option::is_some) {
        let message = "kafka.cluster_id: the archive does not tell the id of the cluster that it is fed by";
        return Err(Error::new(Kind::Config, message)
            .hint("write it into the configuration: without it a drill cannot tell a scratch cluster from that one"));
    }
    Ok(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_no_part_of_another_one() {
        for (text, is) in [
            ("http://registry:8081", true),
            ("http://Registry:8081/apis", true),
            ("a:1,registry:8081,b:2", true),
            ("http://scratch-registry:8081", false),
            ("http://my.registry:8081", false),
            ("http://registry:80812", false),
        ] {
            assert_eq!(names(text, "registry:8081"), is, "{text}");
        }
    }
}
