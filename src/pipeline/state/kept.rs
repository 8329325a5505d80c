//! One stream of state, and the versions that are added to it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use metrics::Counter;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::status::PublishedState;
use crate::error::Result;
use crate::manifest::Chain;
use crate::manifest::state::{self as versions, By};
use crate::pipeline::published::Opened;
use crate::source::told::Refusal;
use crate::stream::{Begin, StateOf, StreamId, sha256};
use crate::telemetry::metrics::{STATE_VERSIONS, STORED_BYTES};

/// One stream of state.
pub(super) struct Kept {
    of: StateOf,
    opened: Opened,
    every: Duration,
    chain: Chain,
    /// The number of the newest version, and the hash of its document.
    newest: Option<(i64, String)>,
    /// The number of a version, and the names of what it tells of.
    names: Option<(i64, Vec<String>)>,
    versions: Counter,
    stored: Counter,
    /// How many objects were written.
    written: u64,
}

impl Kept {
    /// Begins the stream, or opens it.
    pub(super) async fn begin(
        opened: &Opened,
        of: StateOf,
        every: Duration,
        cluster_id: Option<String>,
    ) -> Result<Self> {
        let begin = Begin::State { state: of.kind, cluster_id };
        let stream = StreamId::State(of.clone());
        let chain = Chain::begin(&opened.store, &stream, begin, &opened.writer, crate::time::now()).await?;
        let versions = STATE_VERSIONS.counter(&[("kind", of.kind.name())]);
        let stored = STORED_BYTES.counter(&[("kind", "state")]);
        Ok(Self { of, opened: opened.clone(), every, chain, newest: None, names: None, versions, stored, written: 0 })
    }

    /// The number of the next version, which is asked for before the servers are.
    pub(super) async fn next(&mut self) -> Result<i64> {
        self.chain.refresh().await?;
        Ok(versions::next(&self.chain))
    }

    /// Appends what was found as the version `next`, unless it is what is there, or is too soon.
    pub(super) async fn keep(
        &mut self,
        state: &RawValue,
        next: i64,
        now: DateTime<Utc>,
        published: &PublishedState,
    ) -> Result<()> {
        let document = versions::document(&self.of, state)?;
        let hash = sha256(&document);
        let newest = self.look().await?;
        let same = newest.as_ref().is_some_and(|(_, known)| *known == hash);
        let last = self.chain.totals().max_timestamp.and_then(DateTime::from_timestamp_millis);
        if !same && !last.is_some_and(|last| is_soon(now - last, self.every)) {
            self.written += 1;
            let by = By { writer: &self.opened.writer, n: self.written, at: now };
            if versions::append(&mut self.chain, next, &document, by).await? {
                self.newest = Some((next, hash));
                if self.names.is_some() {
                    self.names = Some((next, names_in(&document)));
                }
                self.versions.increment(1);
                let stored = versions::newest(&self.chain).await?.map_or(0, |version| version.stored_bytes());
                self.stored.increment(stored);
                tracing::info!(stream = %self.of, version = next, bytes = stored, "a version of the state is kept");
            }
        }
        published.polled(&self.of, versions::next(&self.chain), self.chain.totals().max_timestamp, now);
        Ok(())
    }

    /// The document of the newest version; none before the first, and where it cannot be read.
    pub(super) async fn newest_document(&self) -> Result<Option<Vec<u8>>> {
        let Some(version) = versions::newest(&self.chain).await? else { return Ok(None) };
        match versions::read(&self.opened.store, self.chain.stream(), &version).await {
            Err(error) if error.is_transient() => Err(error),
            read => Ok(read.ok()),
        }
    }

    /// The names of what the newest version tells of; none before the first, and where it cannot be read.
    pub(super) async fn names(&mut self) -> Result<&[String]> {
        let last = versions::next(&self.chain) - 1;
        if self.names.as_ref().is_none_or(|(number, _)| *number != last) {
            let names = match self.newest_document().await? {
                Some(document) => names_in(&document),
                None => Vec::new(),
            };
            self.names = Some((last, names));
        }
        Ok(self.names.as_ref().map_or(&[], |(_, names)| names))
    }

    /// The number of the newest version and the hash of its document; it is read where another process wrote it.
    async fn look(&mut self) -> Result<Option<(i64, String)>> {
        let last = versions::next(&self.chain) - 1;
        if last < 0 {
            return Ok(None);
        }
        if self.newest.as_ref().is_none_or(|(number, _)| *number != last) {
            let stream = self.chain.stream().clone();
            self.newest = match versions::newest(&self.chain).await? {
                None => None,
                Some(version) => match versions::read(&self.opened.store, &stream, &version).await {
                    Ok(document) => Some((version.number, sha256(&document))),
                    // What comes is stored all the same: it is the better for it.
                    Err(error) if !error.is_transient() => {
                        tracing::error!(stream = %self.of, %error, hint = error.hint_text(), "a version of the state cannot be read");
                        None
                    }
                    Err(error) => return Err(error),
                },
            };
        }
        Ok(self.newest.clone())
    }
}

/// The names of what a document tells of; none of one that tells otherwise than this version of the program.
fn names_in(document: &[u8]) -> Vec<String> {
    #[derive(Deserialize)]
    struct Stored {
        state: BTreeMap<String, IgnoredAny>,
    }
    serde_json::from_slice(document).map_or_else(|_| Vec::new(), |stored: Stored| stored.state.into_keys().collect())
}

/// Returns whether a version would follow the one before too soon: replicas poll at different times, and the clocks of two differ a little.
fn is_soon(age: TimeDelta, every: Duration) -> bool {
    let least = TimeDelta::from_std(every).unwrap_or(TimeDelta::MAX).checked_div(10).unwrap_or(TimeDelta::MAX) * 9;
    // One from the future is of a clock that was set back.
    (TimeDelta::zero()..least).contains(&age)
}

/// What one server was told to refuse.
pub(super) struct Refusals {
    /// Who tells it: the brokers, or an address.
    who: String,
    told: BTreeSet<Refusal>,
}

impl Refusals {
    pub(super) fn of(who: impl Into<String>) -> Self {
        Self { who: who.into(), told: BTreeSet::new() }
    }

    /// Tells of what is refused, once.
    pub(super) fn tell(&mut self, refused: BTreeSet<Refusal>, published: &PublishedState) {
        let who = self.who.as_str();
        for Refusal { what, grant } in refused.difference(&self.told) {
            tracing::warn!(who, what, hint = format!("grant {grant}"), "this is not told, so its state is not kept");
        }
        for Refusal { what, .. } in self.told.difference(&refused) {
            tracing::info!(who, what, "this is told again, or it is gone");
        }
        published.refused(who, refused.iter().cloned().collect());
        self.told = refused;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_replicas_one_writes() {
        let every = Duration::from_secs(30);
        for (seconds, soon) in
            [(0, true), (15, true), (26, true), (27, false), (30, false), (3_600, false), (-60, false)]
        {
            assert_eq!(is_soon(TimeDelta::seconds(seconds), every), soon, "{seconds}");
        }
    }
}
