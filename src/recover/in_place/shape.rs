//! What a deletion looks like where none was archived, and values that were left out filled in: the text of change events in JSON, of which
//! nothing else is changed.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use serde_json::value::RawValue;

/// What connectors send in place of a large value that did not change (`unavailable.value.placeholder`): as text, and as `bytea` is written.
#[derive(Debug)]
pub(super) struct Unavailable(Vec<String>);

impl Default for Unavailable {
    fn default() -> Self {
        Self::of(["__debezium_unavailable_value"])
    }
}

impl Unavailable {
    /// Those of connectors with these placeholders.
    pub(super) fn of<'a>(placeholders: impl IntoIterator<Item = &'a str>) -> Self {
        let forms = |text: &str| {
            let hex: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
            [text.to_owned(), STANDARD.encode(text), URL_SAFE.encode(text), hex]
        };
        Self(placeholders.into_iter().filter(|text| !text.is_empty()).flat_map(forms).collect())
    }

    /// Whether an event has one.
    pub(super) fn is_in(&self, value: &[u8]) -> bool {
        self.0.iter().any(|form| value.windows(form.len()).any(|part| part == form.as_bytes()))
    }

    fn is(&self, value: &RawValue) -> bool {
        serde_json::from_str::<String>(value.get()).is_ok_and(|text| self.0.contains(&text))
    }
}

type Fields = BTreeMap<String, Box<RawValue>>;

/// A change event in JSON, with whatever stands around it.
struct Event {
    /// The id of a JSON Schema, before the text.
    prefix: Vec<u8>,
    /// The fields around the payload, where there is a schema.
    around: Option<Fields>,
    fields: Fields,
}

impl Event {
    fn parse(value: &[u8]) -> Option<Self> {
        let (prefix, text) = match value {
            [0, _, _, _, _, b'{', ..] => value.split_at(5),
            _ => value.split_at(0),
        };
        let fields: Fields = serde_json::from_slice(text).ok()?;
        let is_around = fields.len() == 2 && fields.contains_key("schema");
        let (around, fields) = match fields.get("payload").filter(|_| is_around) {
            Some(payload) => (serde_json::from_str(payload.get()).ok().map(|inner| (Some(fields), inner)))?,
            None => (None, fields),
        };
        Some(Self { prefix: prefix.to_vec(), around, fields })
    }

    fn text(&self, name: &str) -> Option<String> {
        serde_json::from_str(self.fields.get(name)?.get()).ok()
    }

    /// The operation, if it is no row by itself.
    fn op(&self) -> Option<String> {
        self.text("op").filter(|_| self.fields.contains_key("source"))
    }

    fn row(&self, name: &str) -> Option<Fields> {
        serde_json::from_str(self.fields.get(name)?.get()).ok()
    }

    fn bytes(self) -> Option<Vec<u8>> {
        let Self { mut prefix, around, fields } = self;
        let text = match around {
            Some(mut around) => {
                around.insert("payload".to_owned(), raw(&fields)?);
                serde_json::to_vec(&around).ok()?
            }
            None => serde_json::to_vec(&fields).ok()?,
        };
        prefix.extend(text);
        Some(prefix)
    }
}

fn raw(value: &impl serde::Serialize) -> Option<Box<RawValue>> {
    serde_json::value::to_raw_value(value).ok()
}

/// The deletion of the row that an event is about; none where it cannot be written: a row by itself has none but its tombstone, and what is
/// no JSON needs a writer of its schema.
pub(super) fn deletion(value: &[u8]) -> Option<Vec<u8>> {
    let mut event = Event::parse(value)?;
    match event.op().as_deref() {
        Some("d") => return Some(value.to_vec()),
        Some(_) => {
            if event.row("before").is_none() {
                let after = event.fields.get("after")?.clone();
                event.fields.insert("before".to_owned(), after);
            }
            event.fields.insert("after".to_owned(), raw(&())?);
            event.fields.insert("op".to_owned(), raw(&"d")?);
        }
        None if event.fields.contains_key("__deleted") => {
            event.fields.insert("__deleted".to_owned(), raw(&"true")?);
        }
        None => return None,
    }
    event.bytes()
}

/// What an event does with its row, where it says so.
pub(super) fn operation(value: &[u8]) -> Option<String> {
    let event = Event::parse(value)?;
    event.op().or_else(|| event.text("__op"))
}

/// Whether an event is a row by itself, whose deletion is its tombstone.
pub(super) fn is_row(value: &[u8]) -> bool {
    Event::parse(value).is_some_and(|event| event.op().is_none())
}

/// The event with the values that were left out, by an earlier one of its row; none where it is no JSON.
pub(super) fn filled(value: &[u8], earlier: &[u8], unavailable: &Unavailable) -> Option<Vec<u8>> {
    let (mut event, earlier) = (Event::parse(value)?, Event::parse(earlier)?);
    let fill = |row: &mut Fields, earlier: &Fields| {
        for (column, value) in row.iter_mut().filter(|(_, value)| unavailable.is(value)) {
            if let Some(known) = earlier.get(column) {
                value.clone_from(known);
            }
        }
    };
    if event.op().is_none() {
        fill(&mut event.fields, &earlier.fields);
        return event.bytes();
    }
    let (mut after, before) = (event.row("after")?, earlier.row("after")?);
    fill(&mut after, &before);
    event.fields.insert("after".to_owned(), raw(&after)?);
    event.bytes()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(bytes: &[u8]) -> Value {
        serde_json::from_slice(bytes).expect("JSON")
    }

    #[test]
    fn a_deletion_has_the_shape_of_the_event_that_it_undoes() {
        let event = json!({ "before": null, "after": { "id": 1, "n": 12345678901234567890_u64 }, "source": { "lsn": 7 }, "op": "c" });
        let gone = deletion(event.to_string().as_bytes()).expect("JSON");
        let expected = json!({ "before": event["after"], "after": null, "source": { "lsn": 7 }, "op": "d" });
        assert_eq!(read(&gone), expected);
        let around = json!({ "schema": { "type": "struct" }, "payload": event });
        assert_eq!(
            read(&deletion(around.to_string().as_bytes()).expect("JSON")),
            json!({ "schema": around["schema"], "payload": expected })
        );
        let mut prefixed = vec![0, 0, 0, 0, 9];
        prefixed.extend(event.to_string().bytes());
        let gone = deletion(&prefixed).expect("JSON Schema");
        assert_eq!((&gone[..5], read(&gone[5..])), (&prefixed[..5], expected.clone()));
        // What is a deletion is one, byte for byte.
        let text = expected.to_string();
        assert_eq!(deletion(text.as_bytes()).as_deref(), Some(text.as_bytes()));
        let rewritten = json!({ "id": 1, "__deleted": "false" }).to_string();
        assert_eq!(read(&deletion(rewritten.as_bytes()).expect("a row"))["__deleted"], "true");
        let row = json!({ "id": 1 }).to_string();
        assert_eq!((deletion(row.as_bytes()), is_row(row.as_bytes())), (None, true));
        assert_eq!((deletion(&[0, 0, 0, 0, 1, 2, 3]), is_row(&[0, 0, 0, 0, 1, 2, 3])), (None, false));
    }

    #[test]
    fn what_was_left_out_is_what_it_was_and_no_number_changes() {
        let earlier =
            r#"{"after":{"id":1,"d":0.1000000000000000055511151231257827,"note":"long"},"source":{},"op":"r"}"#;
        let later = r#"{"after":{"id":1,"d":1.10,"note":"__debezium_unavailable_value"},"source":{},"op":"u"}"#;
        let unavailable = Unavailable::default();
        assert!(unavailable.is_in(later.as_bytes()) && !unavailable.is_in(earlier.as_bytes()));
        let filled = filled(later.as_bytes(), earlier.as_bytes(), &unavailable).expect("JSON");
        let filled = String::from_utf8(filled).expect("text");
        assert_eq!(filled, r#"{"after":{"d":1.10,"id":1,"note":"long"},"op":"u","source":{}}"#);
    }

    #[test]
    fn a_placeholder_is_known_however_it_is_written() {
        let unavailable = Unavailable::of(["gone", ""]);
        for form in ["gone", "Z29uZQ==", "676f6e65"] {
            let later = json!({ "after": { "b": form }, "source": {}, "op": "u" }).to_string();
            let earlier = json!({ "after": { "b": "AAE=" }, "source": {}, "op": "c" }).to_string();
            assert!(unavailable.is_in(later.as_bytes()), "{form}");
            let filled = filled(later.as_bytes(), earlier.as_bytes(), &unavailable).expect("JSON");
            assert_eq!(read(&filled)["after"]["b"], "AAE=");
        }
    }
}
