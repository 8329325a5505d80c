//! The subjects that a drill makes in a scratch registry: only in one that is empty and not the configured one, and removed at the end, or by
//! the next drill.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use url::Url;

use crate::config::{Config, Server};
use crate::error::{Error, Kind, Result};
use crate::recover::schemas::order;
use crate::source::rest::Registrar;
use crate::source::rest::registrar::Answer;
use crate::source::rest::subjects::Document;

/// How many names are told.
const MOST_NAMED: usize = 5;

/// What a drill makes there, and how it was before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MadeSubjects {
    /// The registry.
    pub(super) url: String,
    subjects: BTreeSet<String>,
    compatibility: Option<String>,
    mode: Option<String>,
}

impl MadeSubjects {
    /// What will be made of an archived document in a registry that holds nothing.
    ///
    /// # Errors
    /// [`Kind::Config`] for one that holds something.
    pub(super) fn of(archived: &Document, registrar: &Registrar, before: Document) -> Result<Self> {
        is_empty(registrar, &before)?;
        Ok(Self {
            url: registrar.shown().to_owned(),
            subjects: archived.subjects.keys().cloned().collect(),
            compatibility: before.compatibility,
            mode: before.mode,
        })
    }

    /// Removes them for good, and sets the registry as it was.
    ///
    /// # Errors
    /// A registry that does not answer, and [`Kind::Unsupported`] where something stays.
    pub(super) async fn remove(&self, registrar: &Registrar) -> Result<()> {
        let mut held = registrar.holds().await?;
        held.subjects.retain(|name, _| self.subjects.contains(name));
        let mut refused = Vec::new();
        let mut tell = |answer: Answer<()>| {
            if let Answer::Refused(why) = answer {
                refused.push(why);
            }
        };
        // Nothing can be removed of what may not be written.
        if self.mode.is_some() {
            tell(registrar.set_mode(None, Some("READWRITE")).await?);
        }
        for (name, subject) in &held.subjects {
            if subject.mode.is_some() {
                tell(registrar.set_mode(Some(name), None).await?);
            }
        }
        // What others refer to goes after them.
        for (name, number) in order(&held)?.into_iter().rev() {
            tell(registrar.forget(name, number).await?);
        }
        for (name, subject) in &held.subjects {
            if subject.compatibility.is_some() {
                drop(registrar.set_compatibility(Some(name), None).await?);
            }
        }
        if self.compatibility.is_some() {
            tell(registrar.set_compatibility(None, self.compatibility.as_deref()).await?);
        }
        if self.mode.is_some() {
            tell(registrar.set_mode(None, self.mode.as_deref()).await?);
        }
        let stay = registrar.holds().await?;
        let stay: Vec<&str> =
            stay.subjects.keys().filter(|name| self.subjects.contains(*name)).map(String::as_str).collect();
        if stay.is_empty() {
            return Ok(());
        }
        let why = refused.first().map(|why| format!(": {why}")).unwrap_or_default();
        let message = format!("what the drill has made at {} could not be removed ({}){why}", self.url, some(&stay));
        Err(Error::new(Kind::Unsupported, message).hint("empty the scratch registry by hand, or start a new one"))
    }
}

/// The host and the port of an address.
pub(super) fn place(url: &Url) -> (Option<String>, Option<u16>) {
    (url.host_str().map(str::to_lowercase), url.port_or_known_default())
}

/// Refuses the registry that is archived, by its address.
///
/// # Errors
/// [`Kind::Config`] that names it.
pub(super) fn is_scratch(server: &Server, config: &Config) -> Result<()> {
    let live = config.state.as_ref().map(|state| state.schema_registry.as_slice()).unwrap_or_default();
    let live: Vec<_> = live.iter().flat_map(|server| &server.urls).map(place).collect();
    match server.urls.iter().find(|url| live.contains(&place(url))) {
        None => Ok(()),
        Some(url) => {
            let message = format!("schema_registry.url: {url} is the registry that is archived");
            Err(Error::new(Kind::Config, message)
                .hint("name a scratch registry, which holds nothing: a drill never touches a live one"))
        }
    }
}

fn is_empty(registrar: &Registrar, held: &Document) -> Result<()> {
    let names: Vec<&str> = held.subjects.keys().map(String::as_str).collect();
    if names.is_empty() {
        return Ok(());
    }
    let message = format!("schema_registry.url: {} holds subjects already: {}", registrar.shown(), some(&names));
    Err(Error::new(Kind::Config, message)
        .hint("name a scratch registry, which holds nothing: a drill removes nothing that it did not make"))
}

fn some(names: &[&str]) -> String {
    let more = names.len().saturating_sub(MOST_NAMED);
    let shown = names.iter().take(MOST_NAMED).copied().collect::<Vec<_>>().join(", ");
    if more == 0 { shown } else { format!("{shown} and {more} more") }
}
