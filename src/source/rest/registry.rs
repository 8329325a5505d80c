//! What a schema registry tells that speaks Confluent's API: subjects, versions, ids, schemas, compatibility, modes.
//!
//! ```text
//!   GET /config, /mode                                    of all subjects
//!   GET /subjects?deleted=true, /subjects                 their names, with those whose versions are all deleted
//!   GET /subjects/{s}/versions?deleted=true, …/versions   numbers: of all, and of those that are not deleted
//!   GET /config/{s}, /mode/{s}                            where a subject has its own (404 otherwise)
//!   GET /subjects/{s}/versions/{v}?deleted=true           one that is not known yet
//! ```
//!
//! A version never changes, so its text is asked for once: what the archive holds is known from the start. A poll looks at every subject that
//! is new, and at [`DUE`] of the others, those first that were looked at longest ago.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use serde::Deserialize;

use super::client::{Client, Ended, Found, Reply, found, there};
use super::subjects::{Document, Subject, Version};
use crate::config::Server;
use crate::error::{Error, Kind, Result};
use crate::source::told::{Part, Refusal};

const SECTION: &str = "state.schema_registry";

/// How long all questions of one poll may take: the first asks for every version.
const POLL: Duration = Duration::from_secs(1800);

/// How many subjects are looked at again in a poll: four requests each.
const DUE: usize = 250;

/// How many subjects are asked about at the same time.
const AT_ONCE: usize = 8;

const MIB: usize = 1 << 20;
const MOST_SUBJECTS: usize = 100_000;
const MOST_OF_NAMES: usize = 16 * MIB;
const MOST_OF_SCHEMA: usize = 8 * MIB;

/// A registry, and what of it is known.
pub struct Registry {
    client: Client,
    known: BTreeMap<String, Subject>,
    /// In which poll a subject was looked at last.
    looked: BTreeMap<String, u64>,
    polls: u64,
}

#[derive(Deserialize)]
struct Compatibility {
    #[serde(rename = "compatibilityLevel", alias = "compatibility")]
    level: Option<String>,
}

#[derive(Deserialize)]
struct Mode {
    mode: Option<String>,
}

/// What was told.
#[derive(Debug)]
pub enum Told {
    /// The state, or what keeps it from being told.
    Found(Part),
    /// The registry is busy with something that passes.
    Busy(String),
}

impl Registry {
    /// # Errors
    /// [`Kind::Config`] for authorities that cannot be read.
    pub fn new(server: &Server) -> Result<Self> {
        Self::below(server, SECTION)
    }

    /// The one that another section names.
    pub(super) fn below(server: &Server, section: &'static str) -> Result<Self> {
        let client = Client::new(server, section)?;
        Ok(Self { client, known: BTreeMap::new(), looked: BTreeMap::new(), polls: 0 })
    }

    /// Takes what the archive holds for known. What cannot be read of it is asked for again.
    pub fn knows(&mut self, state: &[u8]) {
        #[derive(Deserialize)]
        struct Stored {
            state: Document,
        }
        if let Ok(Stored { state }) = serde_json::from_slice(state) {
            self.known = state.subjects;
        }
    }

    /// Looks once whether the registry answers, and says what it has.
    ///
    /// # Errors
    /// A server that does not answer, does not let in, or is no registry.
    pub async fn probe(&self) -> Result<String> {
        let names: BTreeSet<String> =
            found(self.client.get(&["subjects"], "", MOST_OF_NAMES).await?, || self.no_such())?;
        Ok(format!("{}: subjects: {}", self.client.shown(), names.len()))
    }

    fn no_such(&self) -> Error {
        let message = format!("{} knows no subjects (404)", self.client.shown());
        Error::new(Kind::Unavailable, message)
            .hint("check that state.schema_registry_url is Confluent's API; Apicurio has it below /apis/ccompat/v7")
    }

    /// Asks once for all of it.
    pub(super) async fn whole(mut self) -> Result<Document> {
        match self.document().await {
            Ok(document) => Ok(document),
            Err(Ended::Failed(error)) => Err(error),
            Err(Ended::Busy(why)) => Err(Error::new(Kind::Unavailable, format!("{}: {why}", self.client.shown()))),
        }
    }

    /// Asks for the subjects.
    ///
    /// # Errors
    /// A server that does not answer, or not as a registry does.
    pub async fn ask(&mut self) -> Result<Told> {
        let shown = self.client.shown().to_owned();
        let asked = tokio::time::timeout(POLL, self.document())
            .await
            .map_err(|_| Error::new(Kind::Unavailable, format!("{shown} has not told its subjects within {POLL:?}")))?;
        match asked {
            Ok(document) => Ok(Told::Found(Part::found(&document, Vec::new())?)),
            Err(Ended::Busy(text)) => Ok(Told::Busy(text)),
            Err(Ended::Failed(error)) if error.kind() == Kind::Denied => Ok(Told::Found(Part::Refused(Refusal {
                what: format!("the subjects: {error}"),
                grant: format!("access: {}", error.hint_text().unwrap_or_default()),
            }))),
            Err(Ended::Failed(error)) => Err(error),
        }
    }

    async fn document(&mut self) -> Found<Document> {
        let compatibility = there(self.client.get::<Compatibility>(&["config"], "", MIB).await?)?;
        let mode = self.mode(&["mode"]).await?;
        let names = self.names().await?;
        self.known.retain(|name, _| names.contains(name));
        self.looked.retain(|name, _| names.contains(name));
        self.polls += 1;
        let (new, mut old): (Vec<&String>, Vec<&String>) =
            names.iter().partition(|name| !self.looked.contains_key(*name) && !self.known.contains_key(*name));
        old.sort_by_key(|name| self.looked.get(*name));
        let due: Vec<String> = new.into_iter().chain(old.into_iter().take(DUE)).cloned().collect();
        let (this, has_modes) = (&*self, mode.is_some());
        let asked = due.into_iter().map(|name| async move {
            let subject = this.subject(&name, has_modes).await?;
            Found::Ok((name, subject))
        });
        let asked: Vec<(String, Option<Subject>)> =
            futures::stream::iter(asked).buffer_unordered(AT_ONCE).try_collect().await?;
        for (name, subject) in asked {
            self.looked.insert(name.clone(), self.polls);
            match subject {
                Some(subject) => drop(self.known.insert(name, subject)),
                None => drop(self.known.remove(&name)),
            }
        }
        let compatibility = compatibility.and_then(|found| found.level);
        Ok(Document { compatibility, mode, subjects: self.known.clone() })
    }

    /// The subjects, with those whose versions are all deleted.
    async fn names(&self) -> Found<BTreeSet<String>> {
        let all: BTreeSet<String> = there(self.client.get(&["subjects"], "deleted=true", MOST_OF_NAMES).await?)?
            .ok_or_else(|| self.no_such())?;
        let live: BTreeSet<String> =
            there(self.client.get(&["subjects"], "", MOST_OF_NAMES).await?)?.ok_or_else(|| self.no_such())?;
        let names = &all | &live;
        if names.len() > MOST_SUBJECTS {
            let message = format!("{} has more than {MOST_SUBJECTS} subjects", self.client.shown());
            return Err(Error::new(Kind::Unsupported, message).into());
        }
        Ok(names)
    }

    /// A subject as it is; none if it was deleted meanwhile.
    async fn subject(&self, name: &str, has_modes: bool) -> Found<Option<Subject>> {
        let path = ["subjects", name, "versions"];
        let all: Option<BTreeSet<i64>> = there(self.client.get(&path, "deleted=true", MIB).await?)?;
        // Of one whose versions are all deleted there are none.
        let live: BTreeSet<i64> = there(self.client.get(&path, "", MIB).await?)?.unwrap_or_default();
        let numbers = &all.unwrap_or_default() | &live;
        if numbers.is_empty() {
            return Ok(None);
        }
        let own = there(self.client.get::<Compatibility>(&["config", name], "", MIB).await?)?;
        let mode = if has_modes { self.mode(&["mode", name]).await? } else { None };
        let known = self.known.get(name);
        let mut subject = Subject { compatibility: own.and_then(|own| own.level), mode, versions: BTreeMap::new() };
        for number in numbers {
            let version = match known.and_then(|known| known.versions.get(&number)) {
                Some(version) => Some(version.clone()),
                None => self.version(name, number).await?,
            };
            let deleted = !live.contains(&number);
            subject.versions.extend(version.map(|version| (number, Version { deleted, ..version })));
        }
        Ok(Some(subject))
    }

    async fn version(&self, name: &str, number: i64) -> Found<Option<Version>> {
        let number = number.to_string();
        let path = ["subjects", name, "versions", &number];
        there(self.client.get(&path, "deleted=true", MOST_OF_SCHEMA).await?)
    }

    /// A mode; none where the registry, or the subject, has none. Not every registry has modes.
    async fn mode(&self, path: &[&str]) -> Found<Option<String>> {
        match self.client.get::<Mode>(path, "", MIB).await? {
            Reply::Failed(error) if !error.is_transient() => Ok(None),
            reply => Ok(there(reply)?.and_then(|found| found.mode)),
        }
    }
}
