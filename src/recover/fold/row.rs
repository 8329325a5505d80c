//! What a change event makes of its row, in the few types of values that a table and its topic write alike.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::recover::cut::{Kept, Schemas, fields_of};

/// What a connector sends in place of a large value that did not change (`unavailable.value.placeholder`), unless it is told otherwise.
const UNCHANGED: &str = "__debezium_unavailable_value";

/// A value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::recover) enum Cell {
    /// There is none.
    Null,
    /// As the server writes it as text.
    Text(String),
    /// What it was before.
    Unchanged,
    /// One of another type.
    Other,
}

/// What a record does to the rows of its table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::recover) enum Change {
    /// The row of its key is this one.
    Row(BTreeMap<String, Cell>),
    /// There is no row of its key.
    Gone,
    /// There are no rows at all.
    Truncated,
    /// Nothing: it is none of a row.
    Nothing,
    /// It could not be read.
    Unread,
}

/// Reads what a record does.
pub(in crate::recover) fn change<'v>(
    value: Option<&'v [u8]>,
    headers: impl Iterator<Item = (&'v [u8], Option<&'v [u8]>)>,
    schemas: &Schemas,
) -> Change {
    // A tombstone follows a deletion; unwrapped it is the deletion.
    let Some(value) = value else { return Change::Gone };
    match (schemas.of(value, headers), value) {
        (Some((schema, value)), _) => fields_of(value, schema).map_or(Change::Unread, |kept| of_kept(&kept)),
        (None, [0, _, _, _, _, rest @ ..]) if rest.first() == Some(&b'{') => of_json(rest),
        (None, value) => of_json(value),
    }
}

/// The end of the last commit that the connector had seen when it wrote a change (`source.sequence`); none where that is not told.
pub(super) fn seen_before<'v>(
    value: &'v [u8],
    headers: impl Iterator<Item = (&'v [u8], Option<&'v [u8]>)>,
    schemas: &Schemas,
) -> Option<u64> {
    let sequence = match (schemas.of(value, headers), value) {
        (Some((schema, value)), _) => match fields_of(value, schema)? {
            Kept::Fields(mut fields) => match fields.remove("source")? {
                Kept::Fields(mut source) => match source.remove("sequence")? {
                    Kept::Text(text) => text,
                    _ => return None,
                },
                _ => return None,
            },
            _ => return None,
        },
        (None, [0, _, _, _, _, rest @ ..]) if rest.first() == Some(&b'{') => sequence_of(rest)?,
        (None, value) => sequence_of(value)?,
    };
    serde_json::from_str::<Vec<Option<String>>>(&sequence).ok()?.into_iter().next()??.parse().ok()
}

fn sequence_of(value: &[u8]) -> Option<String> {
    let value: Value = serde_json::from_slice(value).ok()?;
    let event = value.get("payload").unwrap_or(&value);
    event.get("source")?.get("sequence")?.as_str().map(str::to_owned)
}

type Fields<'a> = BTreeMap<Cow<'a, str>, &'a RawValue>;

fn of_json(value: &[u8]) -> Change {
    let Ok(fields) = serde_json::from_slice::<Fields<'_>>(value) else { return Change::Unread };
    if fields.len() == 2
        && let (Some(_), Some(payload)) = (fields.get("schema"), fields.get("payload"))
    {
        return match serde_json::from_str::<Option<Fields<'_>>>(payload.get()) {
            Ok(Some(fields)) => of_fields(&fields),
            Ok(None) => Change::Gone,
            Err(_) => Change::Unread,
        };
    }
    of_fields(&fields)
}

fn of_fields(fields: &Fields<'_>) -> Change {
    let text = |name: &str| fields.get(name).and_then(|value| serde_json::from_str::<String>(value.get()).ok());
    if let (Some(op), true) = (text("op"), fields.contains_key("source")) {
        let after = fields.get("after").and_then(|after| serde_json::from_str::<Option<Row>>(after.get()).ok());
        return of_envelope(&op, after.flatten().map(Row::cells));
    }
    let row: BTreeMap<String, Value> = fields
        .iter()
        .filter_map(|(name, value)| Some((name.to_string(), serde_json::from_str(value.get()).ok()?)))
        .collect();
    unwrapped(Row(row).cells())
}

#[derive(Deserialize)]
struct Row(BTreeMap<String, Value>);

impl Row {
    fn cells(self) -> BTreeMap<String, Cell> {
        let cell = |value: Value| match value {
            Value::Null => Cell::Null,
            Value::Bool(is) => Cell::Text(is.to_string()),
            Value::Number(number) if number.is_i64() || number.is_u64() => Cell::Text(number.to_string()),
            Value::String(text) => of_text(text),
            _ => Cell::Other,
        };
        self.0.into_iter().map(|(name, value)| (name, cell(value))).collect()
    }
}

fn of_text(text: String) -> Cell {
    if text == UNCHANGED { Cell::Unchanged } else { Cell::Text(text) }
}

fn of_kept(kept: &Kept) -> Change {
    let Kept::Fields(fields) = kept else { return Change::Unread };
    let cells = |fields: &BTreeMap<String, Kept>| {
        let cell = |kept: &Kept| match kept {
            Kept::Null => Cell::Null,
            Kept::Flag(is) => Cell::Text(is.to_string()),
            Kept::Number(number) => Cell::Text(number.to_string()),
            Kept::Text(text) => of_text(text.clone()),
            Kept::Fields(_) | Kept::Other => Cell::Other,
        };
        fields.iter().map(|(name, kept)| (name.clone(), cell(kept))).collect::<BTreeMap<_, _>>()
    };
    if let (Some(Kept::Text(op)), true) = (fields.get("op"), fields.contains_key("source")) {
        let after = match fields.get("after") {
            Some(Kept::Fields(after)) => Some(cells(after)),
            _ => None,
        };
        return of_envelope(op, after);
    }
    unwrapped(cells(fields))
}

fn of_envelope(op: &str, after: Option<BTreeMap<String, Cell>>) -> Change {
    match (op, after) {
        ("c" | "u" | "r", Some(row)) => Change::Row(row),
        ("d", _) => Change::Gone,
        ("t", _) => Change::Truncated,
        ("m", _) => Change::Nothing,
        _ => Change::Unread,
    }
}

/// A row without its envelope; `delete.tombstone.handling.mode = rewrite` says so of one that is gone.
fn unwrapped(row: BTreeMap<String, Cell>) -> Change {
    if row.get("__deleted") == Some(&Cell::Text("true".to_owned())) {
        return Change::Gone;
    }
    match row.get("__op") {
        Some(Cell::Text(op)) if op == "t" => Change::Truncated,
        _ => Change::Row(row),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> Change {
        change(Some(text.as_bytes()), std::iter::empty(), &Schemas::default())
    }

    fn row(cells: &[(&str, Cell)]) -> Change {
        Change::Row(cells.iter().map(|(name, cell)| ((*name).to_owned(), cell.clone())).collect())
    }

    #[test]
    fn rows_are_read_of_every_shape() {
        let text = |text: &str| Cell::Text(text.to_owned());
        let wanted = row(&[
            ("id", text("7")),
            ("is", text("true")),
            ("note", Cell::Null),
            ("doc", Cell::Unchanged),
            ("n", Cell::Other),
        ]);
        let cells = r#"{"id":7,"is":true,"note":null,"doc":"__debezium_unavailable_value","n":1.5}"#;
        let envelope = format!(r#"{{"before":null,"after":{cells},"source":{{"lsn":1}},"op":"u"}}"#);
        assert_eq!(json(&envelope), wanted);
        assert_eq!(json(&format!(r#"{{"schema":{{}},"payload":{envelope}}}"#)), wanted);
        assert_eq!(json(cells), wanted);
        let framed = [&[0, 0, 0, 0, 9][..], envelope.as_bytes()].concat();
        assert_eq!(change(Some(&framed), std::iter::empty(), &Schemas::default()), wanted);
    }

    #[test]
    fn what_was_seen_before_is_told_by_the_sequence_alone() {
        let of = |text: &str| seen_before(text.as_bytes(), std::iter::empty(), &Schemas::default());
        let event = r#"{"after":{},"source":{"lsn":9,"sequence":"[\"24023119\",\"24023128\"]"},"op":"c"}"#;
        assert_eq!(of(event), Some(24_023_119));
        assert_eq!(of(&format!(r#"{{"schema":{{}},"payload":{event}}}"#)), Some(24_023_119));
        let none = [r#"{"source":{"sequence":"[null,\"24023128\"]"}}"#, r#"{"source":{"lsn":9}}"#, r#"{"id":7}"#, "x"];
        assert!(none.into_iter().all(|text| of(text).is_none()));
    }

    #[test]
    fn what_is_no_row_is_told_apart() {
        for (text, wanted) in [
            (r#"{"before":{"id":1},"after":null,"source":{},"op":"d"}"#, Change::Gone),
            (r#"{"schema":{},"payload":null}"#, Change::Gone),
            (r#"{"id":1,"__deleted":"true"}"#, Change::Gone),
            (r#"{"after":null,"source":{},"op":"t"}"#, Change::Truncated),
            (r#"{"op":"m","source":{},"message":{}}"#, Change::Nothing),
            (r#"{"op":"u","source":{},"after":null}"#, Change::Unread),
            ("[1]", Change::Unread),
            ("no JSON", Change::Unread),
        ] {
            assert_eq!(json(text), wanted, "{text}");
        }
        assert_eq!(change(None, std::iter::empty(), &Schemas::default()), Change::Gone);
    }
}
