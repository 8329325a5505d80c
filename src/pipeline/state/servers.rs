//! Keeps the state of servers that are asked over HTTP: the connectors of Connect, the subjects of a schema registry.
//!
//! Each server has a loop of its own, so that one that is away delays no other. While it is away its last state stays, and how
//! old that is is a metric.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::kept::{Kept, Refusals};
use super::status::PublishedState;
use crate::config::Server;
use crate::error::{Error, Kind, Result};
use crate::escape;
use crate::pipeline::published::Opened;
use crate::source::rest::{Connect, Registry, connect, registry};
use crate::source::told::Part;
use crate::stream::{StateKind, StateOf};
use crate::tasks::backoff::Backoff;
use crate::tasks::{Task, Tasks};

/// How long a server may be busy before that is a failure: a rebalance of Connect takes seconds, and up to
/// `scheduled.rebalance.max.delay.ms` (5 minutes) where a worker has gone.
const BUSY: Duration = Duration::from_secs(600);

/// So many names are told in a line of the log.
const MOST_NAMES: usize = 5;

/// Keeps what one server tells until `stop` turns true.
pub(in crate::pipeline) async fn watch(
    (kind, server, every): (StateKind, Server, Duration),
    opened: Opened,
    (published, tasks): (Arc<PublishedState>, Arc<Tasks>),
    mut stop: watch::Receiver<bool>,
) {
    let (task, put_off) = match kind {
        StateKind::Schemas => (Task::RegistryState, "the state of the schema registry is not kept"),
        _ => (Task::ConnectState, "the state of Connect is not kept"),
    };
    let mut backoff = Backoff::new(tasks.reporter(task, server.name.clone()));
    let of = StateOf { kind, scope: server.name.clone() };
    let work = async {
        let asked = loop {
            match Asked::new(kind, &server) {
                Ok(asked) => break asked,
                Err(error) => backoff.wait_after(put_off, error).await,
            }
        };
        let refusals = Refusals::of(of.to_string());
        let mut watched = Watched { asked, of, every, opened, published, kept: None, refusals, seen: Seen::default() };
        loop {
            match watched.poll().await {
                Ok(()) => {
                    backoff.succeeded();
                    tokio::time::sleep(every).await;
                }
                Err(error) => backoff.wait_after(put_off, error).await,
            }
        }
    };
    tokio::select! {
        biased;
        _ = stop.wait_for(|stop| *stop) => {}
        () = work => {}
    }
}

/// Who is asked.
enum Asked {
    Connect(Connect),
    Registry(Box<Registry>),
}

impl Asked {
    fn new(kind: StateKind, server: &Server) -> Result<Self> {
        match kind {
            StateKind::Schemas => Ok(Self::Registry(Box::new(Registry::new(server)?))),
            _ => Connect::new(server).map(Self::Connect),
        }
    }

    async fn ask(&mut self) -> Result<connect::Told> {
        match self {
            Self::Connect(connect) => connect.ask().await,
            Self::Registry(registry) => Ok(match registry.ask().await? {
                registry::Told::Busy(text) => connect::Told::Busy(text),
                registry::Told::Found(part) => {
                    connect::Told::Found { part, failed: BTreeSet::new(), secrets: BTreeSet::new() }
                }
            }),
        }
    }
}

struct Watched {
    asked: Asked,
    of: StateOf,
    every: Duration,
    opened: Opened,
    published: Arc<PublishedState>,
    kept: Option<Kept>,
    refusals: Refusals,
    seen: Seen,
}

/// What was told once.
#[derive(Default)]
struct Seen {
    secrets: BTreeSet<(String, String)>,
    failed: BTreeSet<String>,
    busy_since: Option<Instant>,
}

impl Watched {
    /// Asks once, and stores what has changed.
    async fn poll(&mut self) -> Result<()> {
        if self.kept.is_none() {
            // Which Kafka it works with stands in the document: after a recovery it may be another one.
            let kept = Kept::begin(&self.opened, self.of.clone(), self.every, None).await?;
            if let Asked::Registry(registry) = &mut self.asked
                && let Some(document) = kept.newest_document().await?
            {
                registry.knows(&document);
            }
            self.kept = Some(kept);
        }
        let Some(kept) = &mut self.kept else { return Ok(()) };
        let next = kept.next().await?;
        let (part, failed, secrets) = match self.asked.ask().await? {
            connect::Told::Busy(text) => return self.seen.busy(&text),
            connect::Told::Found { part, failed, secrets } => (part, failed, secrets),
        };
        self.seen.busy_since = None;
        let now = crate::time::now();
        match part {
            Part::Failed { text, .. } => Err(Error::new(Kind::Unavailable, text)),
            Part::Refused(refusal) => {
                self.refusals.tell(BTreeSet::from([refusal]), &self.published);
                Ok(())
            }
            Part::Found { state, refused } => {
                self.refusals.tell(refused.into_iter().collect(), &self.published);
                self.seen.tell(&self.of, &failed, secrets);
                kept.keep(&state, next, now, &self.published).await?;
                if self.of.kind == StateKind::Connectors {
                    self.published.failed(&self.of, failed);
                }
                Ok(())
            }
        }
    }
}

impl Seen {
    /// A server that is busy is asked again at the next poll, and fails once that has lasted.
    fn busy(&mut self, text: &str) -> Result<()> {
        let since = *self.busy_since.get_or_insert_with(Instant::now);
        if since.elapsed() < BUSY {
            tracing::debug!(text, "the server is busy; it is asked again at the next poll");
            return Ok(());
        }
        let message = format!("the server has been busy for {} s: {text}", since.elapsed().as_secs());
        Err(Error::new(Kind::Unavailable, message)
            .hint("look at the logs of its workers: they do not get through a rebalance"))
    }

    /// Tells of connectors that have failed, and of secrets in plain text, once.
    fn tell(&mut self, of: &StateOf, failed: &BTreeSet<String>, secrets: BTreeSet<(String, String)>) {
        let names = |all: Vec<String>| {
            let more = if all.len() > MOST_NAMES { ", …" } else { "" };
            let first: Vec<_> = all.iter().take(MOST_NAMES).map(|name| escape::name(name)).collect();
            format!("{}{more}", first.join(", "))
        };
        let (come, gone): (Vec<String>, Vec<String>) =
            (failed.difference(&self.failed).cloned().collect(), self.failed.difference(failed).cloned().collect());
        if !come.is_empty() {
            let hint = "`tidelog cat --state connectors` shows failed_with; restart it by Connect's REST API";
            tracing::warn!(stream = %of, connectors = names(come), hint, "connectors have failed");
        }
        if !gone.is_empty() {
            tracing::info!(stream = %of, connectors = names(gone), "connectors have failed no longer");
        }
        let new: Vec<String> = secrets.difference(&self.secrets).map(|(name, key)| format!("{name}: {key}")).collect();
        if !new.is_empty() {
            let hint = "who may read the archive may read them: name them by a config provider, like ${file:/path:key}";
            tracing::warn!(
                stream = %of, number = new.len(), settings = names(new), hint,
                "configs of connectors hold secrets as plain text, and are kept as they are"
            );
        }
        self.secrets.extend(secrets);
        self.failed.clone_from(failed);
    }
}
