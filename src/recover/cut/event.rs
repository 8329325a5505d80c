//! What a record of a Debezium connector for Postgres says of its place in the log of the database.
//!
//! ```text
//!   {"before","after","source":{"connector","name","snapshot","sequence","txId","lsn","ts_us",…},"op","transaction",…}
//!   {"schema":…,"payload":{…}}                              the same, as a JSON converter with schemas writes it
//!   {"id":"841:27387888","status":"END","event_count",…}    the topic of transactions
//!   {"ts_ms":…}                                             a heartbeat
//!   {…columns…,"__lsn":…,"__txId":…}                        unwrapped (ExtractNewRecordState): as many fields as were asked for
//! ```
//! The fields are those of `SourceInfo` and `PostgresSourceInfoStructMaker` (Debezium 2.0 to 3.7): `lsn` is where the row's WAL
//! record begins, `sequence` is `["the end of the last commit that the connector had seen","lsn"]`, `txId` the xid of the top-level
//! transaction, `ts_us` the time of its commit.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;

/// What is before the name of a field or a header of an unwrapped record, unless the connector is told otherwise.
const ADDED: &str = "__";

/// What a record is, and where it stands in the log of its database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A change, or a message, that was read from the log.
    Streamed(Place),
    /// A row of a snapshot, which was taken at a position.
    Snapshot {
        /// The position.
        lsn: u64,
        /// When it was taken, by the connector's clock, in microseconds since 1970.
        at: Option<i64>,
    },
    /// A row of an incremental snapshot, with what the connector had read of the log by then.
    Incremental(Place),
    /// A transaction begins: its first record.
    Begin {
        /// The transaction.
        xid: u32,
        /// Where its first record begins.
        lsn: Option<u64>,
    },
    /// A transaction ends.
    End {
        /// The transaction.
        xid: u32,
        /// Where the record of its commit ends.
        lsn: Option<u64>,
    },
    /// A record without a value: what follows a delete.
    Tombstone,
    /// A heartbeat.
    Heartbeat,
    /// A record that does not say where it stands.
    Unplaced {
        /// When its transaction was committed, in microseconds since 1970, as far as it says so.
        at: Option<i64>,
    },
}

impl Event {
    /// Whether it shows that its connector was streaming.
    pub(super) fn was_streamed(&self) -> bool {
        match self {
            Self::Streamed(place) => !place.may_be_snapshot,
            Self::Snapshot { .. } | Self::Tombstone => false,
            _ => true,
        }
    }
}

/// A place in the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Place {
    /// The end of the last commit that the connector had seen before.
    pub after: Option<u64>,
    /// Where the record in the log begins.
    pub lsn: u64,
    /// The transaction.
    pub xid: Option<u32>,
    /// When it was committed, in microseconds since 1970.
    pub at: Option<i64>,
    /// It does not say whether it was streamed: if it is a row of a snapshot, position and xid are the snapshot's.
    pub may_be_snapshot: bool,
}

/// A record that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read {
    /// What it is.
    pub event: Event,
    /// The connector's `topic.prefix`, where it says so.
    pub connector: Option<String>,
}

impl Read {
    fn of(event: Event) -> Self {
        Self { event, connector: None }
    }

    /// A record of which nothing can be told.
    pub fn unplaced() -> Self {
        Self::of(Event::Unplaced { at: None })
    }
}

/// The fields of `source` that matter. Avro and JSON have the same names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub(super) struct Source {
    #[serde(default)]
    pub(super) connector: String,
    #[serde(default)]
    pub(super) name: String,
    #[serde(default)]
    pub(super) snapshot: Option<Flag>,
    #[serde(default)]
    pub(super) sequence: Option<String>,
    #[serde(default)]
    pub(super) lsn: Option<u64>,
    #[serde(default, rename = "txId")]
    pub(super) xid: Option<u64>,
    #[serde(default)]
    pub(super) ts_us: Option<i64>,
    #[serde(default)]
    pub(super) ts_ms: Option<i64>,
}

/// `snapshot`, which was a boolean before it was a word.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub(super) enum Flag {
    Is(bool),
    Word(String),
}

impl Source {
    /// What a record with this source is.
    pub(super) fn read(self) -> Read {
        let name = (!self.name.is_empty()).then(|| self.name.clone());
        // Another database's connector has a source, too, with other positions.
        if self.connector != "postgresql" {
            return Read { event: Event::Unplaced { at: None }, connector: name };
        }
        let at = self.ts_us.or(self.ts_ms.map(|ms| ms.saturating_mul(1_000)));
        let (after, second) = self.sequence.as_deref().map(sequence).unwrap_or_default();
        let xid = self.xid.map(low_half);
        let word = match &self.snapshot {
            None | Some(Flag::Is(false)) => "false",
            Some(Flag::Is(true)) => "true",
            Some(Flag::Word(word)) => word,
        };
        let event = match (word, self.lsn) {
            ("incremental", _) => match second {
                Some(lsn) => Event::Incremental(Place { after, lsn, xid: None, at, may_be_snapshot: false }),
                None => Event::Unplaced { at },
            },
            ("false", Some(lsn)) => Event::Streamed(Place { after, lsn, xid, at, may_be_snapshot: false }),
            ("false", None) | (_, None) => Event::Unplaced { at },
            (_, Some(lsn)) => Event::Snapshot { lsn, at },
        };
        Read { event, connector: name }
    }
}

/// An xid as `txid_current` tells it has its epoch before it.
fn low_half(xid: u64) -> u32 {
    u32::try_from(xid & u64::from(u32::MAX)).unwrap_or(u32::MAX)
}

/// The two positions of `sequence`.
fn sequence(text: &str) -> (Option<u64>, Option<u64>) {
    let positions: Vec<Option<String>> = serde_json::from_str(text).unwrap_or_default();
    let position = |index: usize| positions.get(index)?.as_deref()?.parse().ok();
    (position(0), position(1))
}

/// `xid:lsn`, as the topic of transactions names them; `xid` alone in old versions.
fn transaction_id(id: &str) -> Option<(u32, Option<u64>)> {
    let (xid, lsn) = id.split_once(':').map_or((id, None), |(xid, lsn)| (xid, Some(lsn)));
    let lsn = lsn.map(str::parse).transpose().ok()?;
    Some((xid.parse().ok().map(low_half)?, lsn))
}

/// What a marker of the topic of transactions is.
pub(super) fn marker(status: &str, id: &str) -> Option<Event> {
    let (xid, lsn) = transaction_id(id)?;
    match status {
        "BEGIN" => Some(Event::Begin { xid, lsn }),
        "END" => Some(Event::End { xid, lsn }),
        _ => None,
    }
}

type Fields<'a> = BTreeMap<Cow<'a, str>, &'a RawValue>;

/// Reads the value of a record that was written as JSON. Never fails: what is not understood has no place.
pub fn of_json(value: &[u8]) -> Read {
    let Ok(fields) = serde_json::from_slice::<Fields<'_>>(value) else { return Read::unplaced() };
    if fields.len() == 2
        && let (Some(_), Some(payload)) = (fields.get("schema"), fields.get("payload"))
    {
        return match serde_json::from_str::<Option<Fields<'_>>>(payload.get()) {
            Ok(Some(fields)) => of_fields(&fields),
            Ok(None) => Read::of(Event::Tombstone),
            Err(_) => Read::unplaced(),
        };
    }
    of_fields(&fields)
}

fn of_fields(fields: &Fields<'_>) -> Read {
    let text = |name: &str| fields.get(name).and_then(|value| serde_json::from_str::<String>(value.get()).ok());
    if fields.contains_key("op")
        && let Some(source) = fields.get("source").and_then(|source| serde_json::from_str::<Source>(source.get()).ok())
    {
        return source.read();
    }
    if fields.contains_key("event_count")
        && let (Some(status), Some(id)) = (text("status"), text("id"))
        && let Some(event) = marker(&status, &id)
    {
        return Read::of(event);
    }
    if fields.len() == 1 && fields.contains_key("ts_ms") {
        return Read::of(Event::Heartbeat);
    }
    let scalar = |name: &str| serde_json::from_str::<Scalar>(fields.get(name)?.get()).ok().map(Scalar::into_text);
    Read::of(unwrapped(scalar))
}

/// A value of which the text is wanted, whatever it is written as.
#[derive(Deserialize)]
#[serde(untagged)]
enum Scalar {
    Number(i64),
    Flag(bool),
    Text(String),
}

impl Scalar {
    fn into_text(self) -> String {
        match self {
            Self::Number(number) => number.to_string(),
            Self::Flag(flag) => flag.to_string(),
            Self::Text(text) => text,
        }
    }
}

/// What an unwrapped record is, by the fields that were added to it.
pub(super) fn unwrapped(field: impl Fn(&str) -> Option<String>) -> Event {
    let added = |name: &str| field(&format!("{ADDED}{name}")).or_else(|| field(&format!("{ADDED}source_{name}")));
    let number = |text: String| text.parse::<u64>().ok();
    let at = added("ts_us").and_then(|text| text.parse().ok());
    // `__ts_ms` is when the connector came by, `__source_ts_ms` the commit.
    let in_ms = || field(&format!("{ADDED}source_ts_ms"))?.parse::<i64>().ok().map(|ms| ms.saturating_mul(1_000));
    let at = at.or_else(in_ms);
    let Some(lsn) = added("lsn").and_then(number) else { return Event::Unplaced { at } };
    let is_snapshot = match added("snapshot") {
        Some(word) => Some(word != "false"),
        None => added("op").map(|op| op == "r"),
    };
    if is_snapshot == Some(true) {
        return Event::Snapshot { lsn, at };
    }
    let after = added("sequence").and_then(|text| sequence(&text).0);
    let xid = added("txId").and_then(number).map(low_half);
    // No row of a snapshot names a commit that was seen before.
    let may_be_snapshot = is_snapshot.is_none() && after.is_none();
    Event::Streamed(Place { after, lsn, xid, at, may_be_snapshot })
}

/// What the headers of an unwrapped record say (`add.headers`), written by whichever converter.
pub fn of_headers<'a>(headers: impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)>) -> Option<Event> {
    let added: BTreeMap<&str, &str> = headers
        .filter_map(|(name, value)| Some((std::str::from_utf8(name).ok()?, std::str::from_utf8(value?).ok()?)))
        .filter(|(name, _)| name.starts_with(ADDED))
        .collect();
    match unwrapped(|name| added.get(name).map(|text| header_text(text))) {
        Event::Unplaced { at: None } => None,
        event => Some(event),
    }
}

/// The value of a header: bare, quoted, or with its schema.
fn header_text(text: &str) -> String {
    #[derive(Deserialize)]
    struct WithSchema {
        payload: Scalar,
    }
    let with_schema = serde_json::from_str::<WithSchema>(text).map(|value| value.payload);
    let scalar = with_schema.or_else(|_| serde_json::from_str::<Scalar>(text));
    scalar.map_or_else(|_| text.to_owned(), Scalar::into_text)
}
