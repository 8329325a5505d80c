//! What a schema registry holds, as it is kept in the archive.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What a registry holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Document {
    /// The compatibility of subjects that have none of their own.
    pub compatibility: Option<String>,
    /// The mode of subjects that have none of their own; none where the registry has no modes.
    pub mode: Option<String>,
    /// The subjects by name.
    pub subjects: BTreeMap<String, Subject>,
}

/// A subject.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    /// Its own; none where that of all counts.
    pub compatibility: Option<String>,
    /// Its own; none where that of all counts.
    pub mode: Option<String>,
    /// Its versions by number, with those that are soft-deleted.
    pub versions: BTreeMap<i64, Version>,
}

/// A version of a subject: a schema.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// The number by which records name the schema.
    pub id: i64,
    /// The same in headers (Confluent 8): a hash of the schema and its references.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guid: Option<String>,
    /// `AVRO`, `JSON` or `PROTOBUF`; absent in an answer: `AVRO`.
    #[serde(rename = "type", alias = "schemaType", default = "avro")]
    pub kind: String,
    /// Its text.
    pub schema: String,
    /// What it uses of other subjects: `name`, `subject` and `version` of each.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "or_none")]
    pub references: Vec<Value>,
    /// Properties, tags and the like.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Value>,
    /// Rules of conversion and of validation.
    #[serde(default, rename = "ruleSet", skip_serializing_if = "Option::is_none")]
    pub rule_set: Option<Value>,
    /// Soft-deleted: its id still leads to it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deleted: bool,
}

fn avro() -> String {
    "AVRO".to_owned()
}

/// Some registries write null for none.
fn or_none<'de, D: serde::Deserializer<'de>>(from: D) -> std::result::Result<Vec<Value>, D::Error> {
    Ok(Option::<Vec<Value>>::deserialize(from)?.unwrap_or_default())
}
