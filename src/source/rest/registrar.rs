//! What is done to a schema registry that speaks Confluent's API: schemas are registered under their own ids, or under new ones.
//!
//! ```text
//!   PUT    /mode/{s} {"mode": "IMPORT"}                        Confluent 5.2, Redpanda 25.3; others have no modes, or do not heed them
//!   POST   /subjects/{s}/versions {"schema", "id", "version"}  an id is heeded in IMPORT alone
//!   POST   /subjects/{s} {"schema"}                            under which number it is there
//!   DELETE /subjects/{s}/versions/{v}                          a soft deletion; with ?permanent=true, behind it, for good
//!   PUT    /config/{s}, /mode/{s}; DELETE of either            back to what counts for all
//! ```
//!
//! An answer of 200 proves nothing: Apicurio takes `IMPORT`, an id and a version, and drops all three. Whoever registers compares the id that
//! comes back.

use reqwest::Method;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use super::client::{Client, Reply};
use super::registry::Registry;
use super::subjects::{Document, Version};
use crate::config::Server;
use crate::error::Result;

const SECTION: &str = "schema_registry";
const MIB: usize = 1 << 20;
const MOST_OF_SCHEMA: usize = 8 * MIB;

/// A registry, to be told what to hold.
pub struct Registrar {
    client: Client,
    server: Server,
}

/// What came of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer<T> {
    /// It is done.
    Done(T),
    /// The registry says why it does not do it.
    Refused(String),
}

#[derive(Deserialize)]
struct Registered {
    id: i64,
}

#[derive(Deserialize)]
struct Numbered {
    version: i64,
}

impl Registrar {
    /// # Errors
    /// [`Kind::Config`](crate::error::Kind::Config) for authorities that cannot be read.
    pub fn new(server: &Server) -> Result<Self> {
        Ok(Self { client: Client::new(server, SECTION)?, server: server.clone() })
    }

    /// The address, as messages have it.
    pub fn shown(&self) -> &str {
        self.client.shown()
    }

    /// All that it holds now.
    ///
    /// # Errors
    /// A server that does not answer, or not as a registry does.
    pub async fn holds(&self) -> Result<Document> {
        Registry::below(&self.server, SECTION)?.whole().await
    }

    /// Lets ids be given from now on, of a subject that holds nothing.
    ///
    /// # Errors
    /// A server that does not answer, or does not let in.
    pub async fn import(&self, subject: &str) -> Result<Answer<()>> {
        self.put(&["mode", subject], &json!({ "mode": "IMPORT" })).await
    }

    /// Sets the mode of a subject, or of all; none: that of all counts.
    ///
    /// # Errors
    /// As those of [`Registrar::import`].
    pub async fn set_mode(&self, subject: Option<&str>, mode: Option<&str>) -> Result<Answer<()>> {
        self.set("mode", subject, mode.map(|mode| json!({ "mode": mode }))).await
    }

    /// Sets the compatibility of a subject, or of all; none: that of all counts.
    ///
    /// # Errors
    /// As those of [`Registrar::import`].
    pub async fn set_compatibility(&self, subject: Option<&str>, level: Option<&str>) -> Result<Answer<()>> {
        self.set("config", subject, level.map(|level| json!({ "compatibility": level }))).await
    }

    async fn set(&self, what: &str, subject: Option<&str>, to: Option<Value>) -> Result<Answer<()>> {
        let path: Vec<&str> = [what].into_iter().chain(subject).collect();
        match to {
            Some(body) => self.put(&path, &body).await,
            None => answer(self.client.send::<IgnoredAny>(Method::DELETE, &path, None, MIB).await?, true).map(done),
        }
    }

    async fn put(&self, path: &[&str], body: &Value) -> Result<Answer<()>> {
        answer(self.client.send::<IgnoredAny>(Method::PUT, path, Some(body), MIB).await?, false).map(done)
    }

    /// Registers a version, under a number and an id if they are given; gives the id that it got.
    ///
    /// # Errors
    /// As those of [`Registrar::import`].
    pub async fn register(&self, subject: &str, version: &Version, under: Option<(i64, i64)>) -> Result<Answer<i64>> {
        let mut body = body(version);
        if let Some((number, id)) = under {
            (body["version"], body["id"]) = (json!(number), json!(id));
        }
        let path = ["subjects", subject, "versions"];
        let reply = self.client.send::<Registered>(Method::POST, &path, Some(&body), MIB).await?;
        Ok(match answer(reply, false)? {
            Answer::Done(Some(registered)) => Answer::Done(registered.id),
            Answer::Done(None) => Answer::Refused("it says no id".to_owned()),
            Answer::Refused(why) => Answer::Refused(why),
        })
    }

    /// Whether a subject holds something under a number.
    ///
    /// # Errors
    /// As those of [`Registrar::import`].
    pub async fn has(&self, subject: &str, number: i64) -> Result<bool> {
        let path = ["subjects", subject, "versions", &number.to_string()];
        match self.client.get::<IgnoredAny>(&path, "deleted=true", MOST_OF_SCHEMA).await? {
            Reply::Failed(error) => Err(error),
            reply => Ok(matches!(reply, Reply::Found(_))),
        }
    }

    /// The number under which a subject holds a schema; none if it does not.
    ///
    /// # Errors
    /// As those of [`Registrar::import`].
    pub async fn number(&self, subject: &str, version: &Version) -> Result<Option<i64>> {
        let reply = self
            .client
            .send::<Numbered>(Method::POST, &["subjects", subject], Some(&body(version)), MOST_OF_SCHEMA)
            .await?;
        Ok(match answer(reply, true)? {
            Answer::Done(found) => found.map(|found| found.version),
            Answer::Refused(_) => None,
        })
    }

    /// Deletes a version softly: its id still leads to it.
    ///
    /// # Errors
    /// As those of [`Registrar::import`].
    pub async fn delete(&self, subject: &str, number: i64) -> Result<Answer<()>> {
        let path = ["subjects", subject, "versions", &number.to_string()];
        answer(self.client.send::<IgnoredAny>(Method::DELETE, &path, None, MIB).await?, true).map(done)
    }

    /// Removes a version for good: nothing leads to it any more. Registries do that only to what was deleted softly before.
    ///
    /// # Errors
    /// As those of [`Registrar::import`].
    pub async fn forget(&self, subject: &str, number: i64) -> Result<Answer<()>> {
        drop(self.delete(subject, number).await?);
        let path = ["subjects", subject, "versions", &number.to_string()];
        answer(self.client.send_with::<IgnoredAny>(Method::DELETE, (&path, "permanent=true"), None, MIB).await?, true)
            .map(done)
    }
}

fn body(version: &Version) -> Value {
    let mut body = json!({ "schema": version.schema, "schemaType": version.kind, "references": version.references });
    let more = [("metadata", &version.metadata), ("ruleSet", &version.rule_set)];
    for (key, value) in more.into_iter().filter_map(|(key, value)| Some((key, value.as_ref()?))) {
        body[key] = value.clone();
    }
    body
}

/// What of a reply is an answer. A 409 is one: it says that a schema does not fit those before it.
fn answer<T>(reply: Reply<T>, may_be_missing: bool) -> Result<Answer<Option<T>>> {
    match reply {
        Reply::Found(found) => Ok(Answer::Done(Some(found))),
        Reply::Missing if may_be_missing => Ok(Answer::Done(None)),
        Reply::Missing => Ok(Answer::Refused("it knows no such path (404)".to_owned())),
        Reply::Busy(why) => Ok(Answer::Refused(why)),
        Reply::Failed(error) if error.is_transient() => Err(error),
        Reply::Failed(error) => Ok(Answer::Refused(error.to_string())),
    }
}

fn done<T>(answer: Answer<T>) -> Answer<()> {
    match answer {
        Answer::Done(_) => Answer::Done(()),
        Answer::Refused(why) => Answer::Refused(why),
    }
}
