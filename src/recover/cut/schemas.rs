//! The schemas by which records were written, out of the archive's versions of the registry.
//!
//! A record names its schema before its value, `00` and an id of 32 bits, or in a header: `01` and a GUID (`DualSchemaIdDeserializer`
//! of Confluent's 8.x), or an id of 64 bits (Apicurio's converters, by default). An id is of one registry: where the archive has several, a schema counts that all of them agree on.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::Value;

use super::avro::Schema;
use crate::error::Result;
use crate::manifest::state as versions;
use crate::manifest::{self, Chain};
use crate::source::rest::subjects::{Document, Subject, Version};
use crate::store::Store;
use crate::stream::{StateKind, StreamId};

/// A side of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// Its key.
    Key,
    /// Its value.
    Value,
}

impl Side {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Value => "value",
        }
    }

    /// The header in which its schema is named.
    fn header(self) -> &'static [u8] {
        match self {
            Self::Key => b"__key_schema_id",
            Self::Value => b"__value_schema_id",
        }
    }

    /// The same of Apicurio. Its `globalId` is none of the ids that it tells over Confluent's API.
    fn content_id(self) -> &'static [u8] {
        match self {
            Self::Key => b"apicurio.key.contentId",
            Self::Value => b"apicurio.value.contentId",
        }
    }
}

/// What a key or a value says of its schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Name {
    /// Its id.
    Id(u32),
    /// Its GUID.
    Guid([u8; 16]),
}

/// Schemas by what records call them.
#[derive(Debug, Clone, Default)]
pub struct Schemas {
    by_id: BTreeMap<u32, Schema>,
    by_guid: BTreeMap<[u8; 16], Schema>,
    /// What several registries call differently.
    doubtful: BTreeSet<u32>,
    texts: BTreeMap<u32, String>,
}

#[derive(Deserialize)]
struct Stored {
    state: Document,
}

impl Schemas {
    /// Those of all registries that the archive has: as they were at a moment, and as they are.
    ///
    /// # Errors
    /// The store's.
    pub async fn archived(store: &Store, at: DateTime<Utc>, now: DateTime<Utc>) -> Result<Self> {
        let mut schemas = Self::default();
        for stream in manifest::streams(store).await? {
            if !matches!(&stream, StreamId::State(of) if of.kind == StateKind::Schemas) {
                continue;
            }
            let Some(chain) = Chain::open(store, &stream).await? else { continue };
            let then = versions::as_of(&chain, at.timestamp_millis(), now).await?;
            let newest = versions::newest(&chain).await?;
            for version in then.iter().chain(&newest) {
                schemas.add(&versions::read(store, &stream, version).await?);
            }
        }
        Ok(schemas)
    }

    /// Takes in what a version of a registry's state has; false if that is none.
    pub fn add(&mut self, document: &[u8]) -> bool {
        let Ok(Stored { state }) = serde_json::from_slice(document) else { return false };
        self.add_all(&state);
        true
    }

    /// Takes in all that a registry holds.
    pub fn add_all(&mut self, Document { subjects, .. }: &Document) {
        for subject in subjects.values() {
            for version in subject.versions.values().filter(|version| version.kind == "AVRO") {
                let mut referred = Vec::new();
                refer(subjects, version, &mut referred, 0);
                self.insert(version, &referred);
            }
        }
    }

    /// The same where records were given other ids, by the archived ones.
    pub fn renumbered(mut self, ids: &BTreeMap<i64, i64>) -> Self {
        let now = |id: u32| ids.get(&i64::from(id)).map_or(Some(id), |now| u32::try_from(*now).ok());
        // What got an id is not written over by what had it before.
        let is_given = |id: &u32| ids.contains_key(&i64::from(*id));
        let (given, kept): (Vec<_>, Vec<_>) = self.by_id.into_iter().partition(|(id, _)| is_given(id));
        self.by_id = kept.into_iter().chain(given).filter_map(|(id, schema)| Some((now(id)?, schema))).collect();
        self.doubtful = self.doubtful.into_iter().filter_map(now).collect();
        self
    }

    fn insert(&mut self, version: &Version, referred: &[String]) {
        let Some(schema) = Schema::parse(&version.schema, referred) else { return };
        if let Some(guid) = version.guid.as_deref().and_then(guid) {
            self.by_guid.insert(guid, schema.clone());
        }
        let Ok(id) = u32::try_from(version.id) else { return };
        match self.texts.get(&id) {
            Some(text) if *text != version.schema => {
                self.doubtful.insert(id);
            }
            _ => {
                self.texts.insert(id, version.schema.clone());
                self.by_id.insert(id, schema);
            }
        }
    }

    /// The same where what it was made of gave other ids than records have: those of the records, with the other ones.
    pub fn known_as(mut self, ids: &BTreeMap<i64, i64>) -> Self {
        let number = |id: i64| u32::try_from(id).ok();
        let own = |(was, is): (&i64, &i64)| Some((number(*was)?, self.by_id.get(&number(*is)?)?.clone()));
        let renamed: Vec<_> = ids.iter().filter_map(own).collect();
        self.by_id.extend(renamed);
        self
    }

    /// The schema of a value and the value itself, if one of the archived schemas is named.
    pub fn of<'a, 'v>(
        &'a self,
        value: &'v [u8],
        headers: impl Iterator<Item = (&'v [u8], Option<&'v [u8]>)>,
    ) -> Option<(&'a Schema, &'v [u8])> {
        let known = |(name, value): (Name, &'v [u8])| Some((self.named(name)?, value));
        named(Side::Value, value, headers).find_map(known)
    }

    /// The schema of a name.
    pub fn named(&self, name: Name) -> Option<&Schema> {
        match name {
            Name::Id(id) => self.by_id.get(&id).filter(|_| !self.doubtful.contains(&id)),
            Name::Guid(guid) => self.by_guid.get(&guid),
        }
    }
}

/// What a key or a value says of its schema, in headers first, and then before itself; and it itself, each time.
pub fn named<'v>(
    side: Side,
    bytes: &'v [u8],
    headers: impl Iterator<Item = (&'v [u8], Option<&'v [u8]>)>,
) -> impl Iterator<Item = (Name, &'v [u8])> {
    let of_header = move |(name, own): (&[u8], Option<&'v [u8]>)| match name {
        name if name == side.header() => prefix(own?).map(|(name, _)| name),
        name if name == side.content_id() => {
            u32::try_from(u64::from_be_bytes(own?.try_into().ok()?)).ok().map(Name::Id)
        }
        _ => None,
    };
    headers.filter_map(of_header).map(move |name| (name, bytes)).chain(prefix(bytes))
}

fn prefix(bytes: &[u8]) -> Option<(Name, &[u8])> {
    match bytes.split_first()? {
        (0, rest) => rest.split_first_chunk::<4>().map(|(id, rest)| (Name::Id(u32::from_be_bytes(*id)), rest)),
        (1, rest) => rest.split_first_chunk::<16>().map(|(guid, rest)| (Name::Guid(*guid), rest)),
        _ => None,
    }
}

/// The texts of the schemas that a version refers to, those first that others need.
fn refer(subjects: &BTreeMap<String, Subject>, version: &Version, into: &mut Vec<String>, depth: usize) {
    for reference in version.references.iter().filter(|_| depth < 16) {
        let subject = reference.get("subject").and_then(Value::as_str).and_then(|name| subjects.get(name));
        let number = reference.get("version").and_then(Value::as_i64);
        let Some(referred) = subject.zip(number).and_then(|(subject, number)| subject.versions.get(&number)) else {
            continue;
        };
        refer(subjects, referred, into, depth + 1);
        if !into.contains(&referred.schema) {
            into.push(referred.schema.clone());
        }
    }
}

fn guid(text: &str) -> Option<[u8; 16]> {
    let hex: String = text.chars().filter(|c| *c != '-').collect();
    u128::from_str_radix(&hex, 16).ok().filter(|_| hex.len() == 32).map(u128::to_be_bytes)
}
