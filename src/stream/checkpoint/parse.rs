//! An entry from its JSON: first what every entry says, then what one of its kind does. Both are read from the bytes, so that
//! nothing is kept of what neither asks for.

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{Begin, Body, Checkpoint, Gap, System};
use crate::stream::lean;
use crate::stream::state::StateKind;

/// What every entry says.
#[derive(Deserialize)]
struct Head {
    format: u32,
    stream: String,
    number: u64,
    previous: Option<String>,
    writer: String,
    at: DateTime<Utc>,
    kind: Kind,
}

/// The kinds of [`Body`], as they stand in JSON.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Begin,
    Append,
    Gap,
    Merge,
    Expire,
    Abandon,
    Backups,
    Close,
    Snapshot,
}

#[derive(Deserialize)]
struct Gaps {
    gaps: Vec<Gap>,
}

impl Checkpoint {
    /// Reads an entry.
    ///
    /// # Errors
    /// It is no JSON, or lacks what an entry of its kind has.
    pub fn parse(json: &[u8]) -> serde_json::Result<Self> {
        let Head { format, stream, number, previous, writer, at, kind } = lean::parse(json)?;
        Ok(Self { format, stream, number, previous, writer, at, body: body(&kind, json)? })
    }
}

fn body(kind: &Kind, json: &[u8]) -> serde_json::Result<Body> {
    /// Its length was looked at with the head.
    fn of<T: DeserializeOwned>(json: &[u8]) -> serde_json::Result<T> {
        serde_json::from_slice(json)
    }
    Ok(match kind {
        Kind::Begin => Body::Begin(of(json)?),
        Kind::Append => Body::Append(of(json)?),
        Kind::Gap => Body::Gap { gaps: of::<Gaps>(json)?.gaps },
        Kind::Merge => Body::Merge(of(json)?),
        Kind::Expire => Body::Expire(of(json)?),
        Kind::Abandon => Body::Abandon(of(json)?),
        Kind::Backups => Body::Backups(of(json)?),
        Kind::Close => Body::Close(of(json)?),
        Kind::Snapshot => Body::Snapshot(of(json)?),
    })
}

/// [`Begin`] as it stands in JSON: what says all of a system is one, what says of which state it is is one, everything else
/// is a topic.
#[derive(Deserialize)]
pub(super) struct AnyBegin {
    #[serde(default, with = "optional_decimal")]
    system_id: Option<u64>,
    wal_segment_size: Option<u32>,
    server_version: Option<u32>,
    state: Option<StateKind>,
    topic_id: Option<String>,
    cluster_id: Option<String>,
    #[serde(default)]
    partitions: i32,
    #[serde(default, rename = "starts")]
    start_offsets: Vec<Option<i64>>,
}

impl From<AnyBegin> for Begin {
    fn from(any: AnyBegin) -> Self {
        match (any.system_id, any.wal_segment_size, any.server_version, any.state) {
            (Some(system_id), Some(wal_segment_size), Some(server_version), _) => {
                Self::Postgres(System { system_id, wal_segment_size, server_version })
            }
            (.., Some(state)) => Self::State { state, cluster_id: any.cluster_id },
            _ => Self::Topic {
                topic_id: any.topic_id,
                cluster_id: any.cluster_id,
                partitions: any.partitions,
                start_offsets: any.start_offsets,
            },
        }
    }
}

/// A number as [`super::decimal`] reads it, of a field that is there.
mod optional_decimal {
    use serde::Deserializer;

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
        super::super::decimal::deserialize(deserializer).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beginning_is_a_system_where_it_says_all_of_one() {
        let read = |json: &str| serde_json::from_str::<Begin>(json);
        let system = System { system_id: u64::MAX, wal_segment_size: 1 << 24, server_version: 17 };
        let text = r#"{"system_id":"18446744073709551615","wal_segment_size":16777216,"server_version":17}"#;
        assert_eq!(read(text).expect("a system"), Begin::Postgres(system));
        assert_eq!(serde_json::to_string(&Begin::Postgres(system)).expect("JSON"), text);
        let bare = Begin::Topic { topic_id: None, cluster_id: None, partitions: 0, start_offsets: Vec::new() };
        assert_eq!(read(r#"{"topic_id":null}"#).expect("a topic"), bare);
        assert!(read(r#"{"system_id":7,"wal_segment_size":16777216,"server_version":17}"#).is_err());
    }
}
