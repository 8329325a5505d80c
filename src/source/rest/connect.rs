//! What a cluster of Kafka Connect tells of its connectors: config, state, offsets.
//!
//! ```text
//!   GET /                                         the version, the id of the Kafka cluster
//!   GET /connectors?expand=info&expand=status     configs, states of connectors and tasks (KIP-465)
//!   GET /connectors                               their names: the one before leaves out whose status is not there yet
//!   GET /connectors/{name}/offsets                of each (KIP-875, 3.5)
//! ```
//!
//! What changes without meaning is left out: which worker runs what, and all of a trace but its first line. A connector that is
//! deleted between two questions is not there.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::client::{Client, Ended, Found, Reply, found, there};
use crate::config::Server;
use crate::error::{Error, Kind, Result};
use crate::escape;
use crate::secret;
use crate::source::told::{Part, Refusal};

const SECTION: &str = "state.connect";

/// How long all questions of one poll may take.
const POLL: Duration = Duration::from_secs(300);

/// How many connectors are asked about at the same time: for the offsets of each a worker reads its topic to the end.
const AT_ONCE: usize = 4;

const MIB: usize = 1 << 20;
/// The configs and states of all connectors: 3,000 of 5 KiB each.
const MOST_LISTED: usize = 16 * MIB;
/// The offsets of one connector: 30,000 partitions.
const MOST_OFFSETS: usize = 4 * MIB;
const MOST_CONNECTORS: usize = 10_000;
/// The most bytes of what a connector has failed with.
const MOST_OF_TRACE: usize = 500;

/// The workers of a Connect cluster.
pub struct Connect {
    client: Client,
}

/// What was told.
#[derive(Debug)]
pub enum Told {
    /// The state, or what keeps it from being told.
    Found {
        /// The document.
        part: Part,
        /// Connectors that have failed, or of which a task has.
        failed: BTreeSet<String>,
        /// Configs that hold a secret as plain text: connector and key.
        secrets: BTreeSet<(String, String)>,
    },
    /// The workers rebalance, or the leader is not known: it is asked again later.
    Busy(String),
}

#[derive(Deserialize)]
struct Root {
    version: Option<String>,
    kafka_cluster_id: Option<String>,
}

#[derive(Deserialize)]
struct Listed {
    info: Option<Info>,
    status: Option<Status>,
}

#[derive(Deserialize)]
struct Info {
    config: BTreeMap<String, Option<String>>,
    #[serde(rename = "type")]
    kind: Option<String>,
}

#[derive(Deserialize)]
struct Status {
    connector: ItsState,
    #[serde(default)]
    tasks: Vec<TaskState>,
}

#[derive(Deserialize)]
struct ItsState {
    state: String,
    trace: Option<String>,
}

#[derive(Deserialize)]
struct TaskState {
    id: i64,
    #[serde(flatten)]
    its: ItsState,
}

#[derive(Deserialize)]
struct Offsets {
    offsets: Vec<Offset>,
}

/// Where a connector stands in what it reads.
#[derive(Debug, Serialize, Deserialize)]
struct Offset {
    partition: Value,
    offset: Value,
}

#[derive(Debug, Serialize)]
struct Document {
    version: Option<String>,
    kafka_cluster_id: Option<String>,
    connectors: BTreeMap<String, Connector>,
}

#[derive(Debug, Serialize)]
struct Connector {
    #[serde(rename = "type")]
    kind: Option<String>,
    config: BTreeMap<String, Option<String>>,
    /// None where the workers have not written it yet.
    state: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failed_with: Option<String>,
    tasks: Vec<Task>,
    /// None where they are not told.
    offsets: Option<Vec<Offset>>,
    /// Why they are not told.
    #[serde(skip_serializing_if = "Option::is_none")]
    offsets_unknown: Option<String>,
}

#[derive(Debug, Serialize)]
struct Task {
    id: i64,
    state: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    failed_with: Option<String>,
}

impl Connect {
    /// # Errors
    /// [`Kind::Config`] for authorities that cannot be read.
    pub fn new(server: &Server) -> Result<Self> {
        Ok(Self { client: Client::new(server, SECTION)? })
    }

    /// Looks once whether the workers answer, and says what they have.
    ///
    /// # Errors
    /// A server that does not answer, does not let in, or is none of Connect.
    pub async fn probe(&self) -> Result<String> {
        let root: Root = found(self.client.get(&[], "", MIB).await?, || self.no_such())?;
        let names: BTreeSet<String> =
            found(self.client.get(&["connectors"], "", MOST_LISTED).await?, || self.no_such())?;
        let version = root.version.unwrap_or_default();
        Ok(format!("{}: Connect {}, connectors: {}", self.client.shown(), escape::name(&version), names.len()))
    }

    fn no_such(&self) -> Error {
        let message = format!("{} knows no connectors (404)", self.client.shown());
        Error::new(Kind::Unavailable, message).hint("check that state.connect_url is the REST API of Kafka Connect")
    }

    /// Asks for the connectors.
    ///
    /// # Errors
    /// A server that does not answer, or not as Connect does.
    pub async fn ask(&self) -> Result<Told> {
        let asked = tokio::time::timeout(POLL, self.document()).await.map_err(|_| {
            Error::new(
                Kind::Unavailable,
                format!("{} has not told its connectors within {POLL:?}", self.client.shown()),
            )
        })?;
        match asked {
            Ok((document, refused)) => {
                let (failed, secrets) = (document.failed(), document.secrets());
                Ok(Told::Found { part: Part::found(&document, refused)?, failed, secrets })
            }
            Err(Ended::Busy(text)) => Ok(Told::Busy(text)),
            Err(Ended::Failed(error)) if error.kind() == Kind::Denied => {
                let refusal = Refusal {
                    what: format!("the connectors: {error}"),
                    grant: format!("access: {}", error.hint_text().unwrap_or_default()),
                };
                Ok(Told::Found { part: Part::Refused(refusal), failed: BTreeSet::new(), secrets: BTreeSet::new() })
            }
            Err(Ended::Failed(error)) => Err(error),
        }
    }

    async fn document(&self) -> Found<(Document, Vec<Refusal>)> {
        let root: Option<Root> = there(self.client.get(&[], "", MIB).await?)?;
        let root = root.unwrap_or(Root { version: None, kafka_cluster_id: None });
        let listed = self.listed().await?;
        let tells = &std::sync::atomic::AtomicBool::new(true);
        let asked = listed.into_iter().map(|(name, listed)| async move {
            let offsets = self.offsets(&name, tells).await?;
            Found::Ok(offsets.map(|offsets| (name, Connector::of(listed, offsets))))
        });
        let connectors: Vec<Option<(String, Connector)>> =
            futures::stream::iter(asked).buffered(AT_ONCE).try_collect().await?;
        let connectors: BTreeMap<_, _> = connectors.into_iter().flatten().collect();
        let silent: Vec<&str> =
            connectors.iter().filter(|(_, of)| of.offsets.is_none()).map(|(name, _)| name.as_str()).collect();
        let refused = silent.first().map(|first| Refusal {
            what: format!(
                "the offsets of {} of {} connectors ({}, …)",
                silent.len(),
                connectors.len(),
                escape::name(first)
            ),
            grant: "an upgrade: Connect tells offsets from 3.5 on; `offsets_unknown` in the state says why".to_owned(),
        });
        let Root { version, kafka_cluster_id } = root;
        Ok((Document { version, kafka_cluster_id, connectors }, refused.into_iter().collect()))
    }

    /// The connectors with their configs and states.
    async fn listed(&self) -> Found<BTreeMap<String, (Info, Option<Status>)>> {
        let expand = "expand=info&expand=status";
        let listed: BTreeMap<String, Listed> =
            there(self.client.get(&["connectors"], expand, MOST_LISTED).await?)?.ok_or_else(|| self.no_such())?;
        let names: BTreeSet<String> =
            there(self.client.get(&["connectors"], "", MOST_LISTED).await?)?.ok_or_else(|| self.no_such())?;
        if names.len().max(listed.len()) > MOST_CONNECTORS {
            let message = format!("{} has more than {MOST_CONNECTORS} connectors", self.client.shown());
            return Err(Error::new(Kind::Unsupported, message).into());
        }
        let (mut found, mut rest) = (BTreeMap::new(), Vec::new());
        for (name, listed) in listed {
            match listed.info {
                Some(info) => drop(found.insert(name, (info, listed.status))),
                None => rest.push(name),
            }
        }
        rest.extend(names.into_iter().filter(|name| !found.contains_key(name)));
        for name in rest {
            // Whose status nobody has written yet is in the list of names alone, and one that is being deleted in either.
            let info: Option<Info> = there(self.client.get(&["connectors", &name], "", MIB).await?)?;
            if let Some(info) = info {
                let status = there(self.client.get(&["connectors", &name, "status"], "", MIB).await?)?;
                found.insert(name, (info, status));
            }
        }
        Ok(found)
    }

    /// The offsets of a connector, or why they are not told; none if it was deleted meanwhile. A version that has no such path
    /// is asked once a poll.
    async fn offsets(
        &self,
        name: &str,
        tells: &std::sync::atomic::AtomicBool,
    ) -> Found<Option<std::result::Result<Vec<Offset>, String>>> {
        use std::sync::atomic::Ordering::Relaxed;
        const TOO_OLD: &str = "this version of Connect does not tell offsets";
        if !tells.load(Relaxed) {
            return Ok(Some(Err(TOO_OLD.to_owned())));
        }
        match self.client.get::<Offsets>(&["connectors", name, "offsets"], "", MOST_OFFSETS).await? {
            Reply::Found(Offsets { offsets }) => Ok(Some(Ok(in_order(offsets)))),
            Reply::Busy(text) => Err(Ended::Busy(text)),
            Reply::Failed(error) if error.is_transient() => Err(Ended::Failed(error)),
            Reply::Failed(error) => Ok(Some(Err(error.to_string()))),
            Reply::Missing => {
                let is_there = there(self.client.get::<Info>(&["connectors", name], "", MIB).await?)?.is_some();
                if is_there {
                    tells.store(false, Relaxed);
                }
                Ok(is_there.then(|| Err(TOO_OLD.to_owned())))
            }
        }
    }
}

/// Workers tell partitions in any order.
fn in_order(mut offsets: Vec<Offset>) -> Vec<Offset> {
    offsets.sort_by_cached_key(|offset| offset.partition.to_string());
    offsets
}

impl Connector {
    fn of((info, status): (Info, Option<Status>), offsets: std::result::Result<Vec<Offset>, String>) -> Self {
        let (its, mut tasks) = status.map_or((None, Vec::new()), |status| (Some(status.connector), status.tasks));
        tasks.sort_by_key(|task| task.id);
        let failed_with = |its: &ItsState| first_line(its.trace.as_deref());
        let task = |task: TaskState| Task { id: task.id, failed_with: failed_with(&task.its), state: task.its.state };
        let (offsets, offsets_unknown) = match offsets {
            Ok(offsets) => (Some(offsets), None),
            Err(why) => (None, Some(why)),
        };
        Self {
            kind: info.kind,
            config: info.config,
            failed_with: its.as_ref().and_then(failed_with),
            state: its.map(|its| its.state),
            tasks: tasks.into_iter().map(task).collect(),
            offsets,
            offsets_unknown,
        }
    }
}

/// The first line of a trace, without the secrets in it: a driver names the whole address that it could not connect to.
pub(super) fn first_line(trace: Option<&str>) -> Option<String> {
    let first = trace?.lines().next().filter(|line| !line.is_empty())?;
    Some(escape::shortened(secret::within(first), MOST_OF_TRACE).into_owned())
}

impl Document {
    fn failed(&self) -> BTreeSet<String> {
        let has_failed = |of: &Connector| {
            let states = of.tasks.iter().map(|task| task.state.as_str()).chain(of.state.as_deref());
            states.into_iter().any(|state| state == "FAILED")
        };
        self.connectors.iter().filter(|(_, of)| has_failed(of)).map(|(name, _)| name.clone()).collect()
    }

    fn secrets(&self) -> BTreeSet<(String, String)> {
        let of = |(name, of): (&String, &Connector)| {
            let keys = of
                .config
                .iter()
                .filter(|(key, value)| value.as_ref().is_some_and(|value| secret::is_plain(key, value)));
            keys.map(|(key, _)| (name.clone(), key.clone())).collect::<Vec<_>>()
        };
        self.connectors.iter().flat_map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_trace_the_first_line_is_told_without_its_secrets() {
        let trace = "no connection to jdbc:postgresql://u:hunter2@db/shop with password=hunter2\n\tat a.B.c(B.java:1)";
        let told = first_line(Some(trace)).expect("a line");
        assert!(told.starts_with("no connection to") && !told.contains("hunter2") && !told.contains("a.B.c"), "{told}");
        assert_eq!((first_line(None), first_line(Some(""))), (None, None));
        // What is cut off may be what a secret is known by.
        let long = format!("{} password=hunter2{}", "x".repeat(MOST_OF_TRACE - 12), "y".repeat(MOST_OF_TRACE));
        assert!(!first_line(Some(&long)).expect("a line").contains("hun"));
    }
}
