//! What is done to the connectors of Kafka Connect: one is made without running, stopped, given an offset, resumed.
//!
//! ```text
//!   POST  /connectors {"name", "config", "initial_state": "STOPPED"}     3.7 (KIP-980)
//!   PUT   /connectors/{name}/config | stop | resume                      stop: 3.5 (KIP-875)
//!   DELETE /connectors/{name}/offsets, /connectors/{name}                offsets: 3.6 (KIP-875); only of one that is stopped
//!   PATCH /connectors/{name}/offsets {"offsets": [{"partition", "offset"}]}      3.6 (KIP-875); only of one that is stopped
//! ```
//!
//! Each may be sent again. Workers that rebalance say 409, and so they do of a name that is taken: whoever makes a connector looks first.

use std::collections::BTreeMap;

use reqwest::Method;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use super::client::{Client, Reply, found};
use super::connect::first_line;
use crate::config::Server;
use crate::error::{Error, Kind, Result};
use crate::escape;

const MIB: usize = 1 << 20;
const SECTION: &str = "connect";
/// The first version that makes a connector without running it.
const MAKES_STOPPED: (u32, u32) = (3, 7);

/// The workers of a Connect cluster, to be told what to do.
pub struct Operator {
    client: Client,
}

/// A connector's config. A value may be null.
pub type Settings = BTreeMap<String, Option<String>>;

/// Where a connector and its tasks are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// `RUNNING`, `STOPPED`, `FAILED`, …
    pub connector: String,
    /// Those of its tasks.
    pub tasks: Vec<String>,
    /// What it, or one of its tasks, has failed with.
    pub failed_with: Option<String>,
}

impl State {
    /// Whether it may be given an offset.
    pub fn is_stopped(&self) -> bool {
        self.connector == "STOPPED" && self.tasks.is_empty()
    }

    /// Whether it and all of its tasks run.
    pub fn is_running(&self) -> bool {
        self.connector == "RUNNING" && !self.tasks.is_empty() && self.tasks.iter().all(|task| task == "RUNNING")
    }

    /// Whether it, or a task of it, has failed.
    pub fn has_failed(&self) -> bool {
        self.tasks.iter().chain([&self.connector]).any(|state| state == "FAILED")
    }
}

#[derive(Deserialize)]
struct Root {
    version: Option<String>,
    kafka_cluster_id: Option<String>,
}

#[derive(Deserialize)]
struct Status {
    connector: One,
    #[serde(default)]
    tasks: Vec<One>,
}

#[derive(Deserialize)]
struct One {
    state: String,
    trace: Option<String>,
}

#[derive(Deserialize)]
struct Offsets {
    offsets: Vec<Offset>,
}

/// Where a connector stands in a part of what it reads.
#[derive(Debug, Deserialize)]
pub struct Offset {
    /// The part.
    pub partition: Value,
    /// The position.
    pub offset: Value,
}

impl Operator {
    /// # Errors
    /// [`Kind::Config`] for authorities that cannot be read.
    pub fn new(server: &Server) -> Result<Self> {
        Ok(Self { client: Client::new(server, SECTION)? })
    }

    /// The address, as messages have it.
    pub fn shown(&self) -> &str {
        self.client.shown()
    }

    /// Looks whether the workers answer and can do what is needed; gives their version.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] before 3.7, which would run a connector before it has an offset.
    pub async fn version(&self) -> Result<String> {
        let root: Root = found(self.client.get(&[], "", MIB).await?, || self.missing("the root"))?;
        let version = root.version.unwrap_or_default();
        if number(&version).is_some_and(|number| number >= MAKES_STOPPED) {
            return Ok(version);
        }
        let message = format!("{} is Kafka Connect {}", self.shown(), escape::name(&version));
        Err(Error::new(Kind::Unsupported, message).hint(
            "3.7 or newer is needed: an older one runs a connector as it is made, before it has been told where to go on",
        ))
    }

    /// The Kafka cluster over which the workers are.
    ///
    /// # Errors
    /// Workers that do not answer.
    pub async fn cluster_id(&self) -> Result<Option<String>> {
        let root: Root = found(self.client.get(&[], "", MIB).await?, || self.missing("the root"))?;
        Ok(root.kafka_cluster_id)
    }

    /// The config of a connector; none if there is no such.
    ///
    /// # Errors
    /// Workers that do not answer, or rebalance.
    pub async fn config(&self, name: &str) -> Result<Option<Settings>> {
        self.there(self.client.get(&["connectors", name, "config"], "", MIB).await?)
    }

    /// Where a connector is; none where the workers have not written it yet, or there is no such.
    ///
    /// # Errors
    /// As those of [`Operator::config`].
    pub async fn state(&self, name: &str) -> Result<Option<State>> {
        let status: Option<Status> = self.there(self.client.get(&["connectors", name, "status"], "", MIB).await?)?;
        Ok(status.map(|Status { connector, tasks }| {
            let failed_with = tasks.iter().chain([&connector]).find_map(|one| first_line(one.trace.as_deref()));
            let tasks = tasks.into_iter().map(|task| task.state).collect();
            State { connector: connector.state, tasks, failed_with }
        }))
    }

    /// Makes a connector that does not run.
    ///
    /// # Errors
    /// [`Kind::Unavailable`] also for a name that is taken.
    pub async fn create_stopped(&self, name: &str, config: &Settings) -> Result<()> {
        let body = json!({ "name": name, "config": config, "initial_state": "STOPPED" });
        self.change(Method::POST, &["connectors"], Some(&body)).await
    }

    /// Gives a connector another config.
    ///
    /// # Errors
    /// As those of [`Operator::config`].
    pub async fn configure(&self, name: &str, config: &Settings) -> Result<()> {
        self.change(Method::PUT, &["connectors", name, "config"], Some(&json!(config))).await
    }

    /// Stops it: its tasks end, and it is as it was made.
    ///
    /// # Errors
    /// As those of [`Operator::config`].
    pub async fn stop(&self, name: &str) -> Result<()> {
        self.change(Method::PUT, &["connectors", name, "stop"], None).await
    }

    /// Lets it run.
    ///
    /// # Errors
    /// As those of [`Operator::config`].
    pub async fn resume(&self, name: &str) -> Result<()> {
        self.change(Method::PUT, &["connectors", name, "resume"], None).await
    }

    /// Where it goes on.
    ///
    /// # Errors
    /// As those of [`Operator::config`].
    pub async fn offsets(&self, name: &str) -> Result<Vec<Offset>> {
        let offsets = self.there(self.client.get::<Offsets>(&["connectors", name, "offsets"], "", MIB).await?)?;
        Ok(offsets.map(|found| found.offsets).unwrap_or_default())
    }

    /// Tells a stopped connector where to go on in a part of what it reads.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] for one that is not stopped.
    pub async fn set_offset(&self, name: &str, partition: &Value, offset: &Value) -> Result<()> {
        let body = json!({ "offsets": [{ "partition": partition, "offset": offset }] });
        self.change(Method::PATCH, &["connectors", name, "offsets"], Some(&body)).await
    }

    /// Forgets where a stopped connector stood.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] for one that is not stopped.
    pub async fn forget_offsets(&self, name: &str) -> Result<()> {
        self.change(Method::DELETE, &["connectors", name, "offsets"], None).await
    }

    /// Deletes a connector. What it has written stays.
    ///
    /// # Errors
    /// As those of [`Operator::config`].
    pub async fn delete(&self, name: &str) -> Result<()> {
        self.change(Method::DELETE, &["connectors", name], None).await
    }

    async fn change(&self, method: Method, path: &[&str], body: Option<&Value>) -> Result<()> {
        let reply = self.client.send::<IgnoredAny>(method, path, body, MIB).await?;
        found(reply, || self.missing(path.get(1).unwrap_or(&"the connectors"))).map(drop)
    }

    fn there<T>(&self, reply: Reply<T>) -> Result<Option<T>> {
        match reply {
            Reply::Missing => Ok(None),
            reply => found(reply, || self.missing("it")).map(Some),
        }
    }

    fn missing(&self, what: &str) -> Error {
        Error::new(Kind::NotFound, format!("{} knows no {} (404)", self.shown(), escape::name(what)))
            .hint("check that connect.url is the REST API of Kafka Connect")
    }
}

/// `3.9.1` and `7.6.0-ccs` as their first two numbers. What Confluent ships counts otherwise: 7.7 has Kafka 3.7.
fn number(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split(['.', '-']);
    let (major, minor) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    match (major, version.contains("-c")) {
        (7, true) => Some((3, minor)),
        _ => Some((major, minor)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_told_apart() {
        assert_eq!((number("4.3.1"), number("7.6.0-ccs"), number("x")), (Some((4, 3)), Some((3, 6)), None));
        assert!(number("3.10.0") > Some(MAKES_STOPPED) && number("3.6.2") < Some(MAKES_STOPPED));
    }

    #[test]
    fn a_connector_runs_only_with_a_task() {
        let state = |connector: &str, tasks: &[&str]| State {
            connector: connector.to_owned(),
            tasks: tasks.iter().map(|task| (*task).to_owned()).collect(),
            failed_with: None,
        };
        assert!(state("STOPPED", &[]).is_stopped() && !state("STOPPED", &["RUNNING"]).is_stopped());
        assert!(state("RUNNING", &["RUNNING"]).is_running() && !state("RUNNING", &[]).is_running());
        assert!(state("RUNNING", &["FAILED"]).has_failed() && !state("PAUSED", &[]).has_failed());
    }
}
