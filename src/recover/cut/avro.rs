//! The few fields of an Avro record that say where it stands in the log, by the schema that it was written with.
//!
//! Values are passed over as the schema says (Avro 1.11, "Binary Encoding"): the row before and after a change comes first, and only
//! what lies behind it matters. Bytes that do not fit to their schema have no place; they never end the program.

use std::collections::BTreeMap;

use serde_json::Value;

use super::event::{Event, Flag, Read, Source, marker, unwrapped};

/// How deep values lie in each other at most; a schema may contain itself.
const DEEPEST: usize = 64;

/// So many values a record has at most, besides one for each of its bytes.
const MOST_VALUES: usize = 100_000;

/// A schema, as far as values of it have to be read.
#[derive(Debug, Clone)]
pub struct Schema {
    root: Node,
    named: BTreeMap<String, Node>,
}

#[derive(Debug, Clone)]
enum Node {
    Null,
    Boolean,
    /// `int`, `long` and `enum` are written alike.
    Number,
    Float,
    Double,
    /// `bytes` and `string` are written alike.
    Bytes,
    Fixed(usize),
    Array(Box<Node>),
    Map(Box<Node>),
    Union(Vec<Node>),
    Record(Vec<(String, Node)>),
    Named(String),
}

impl Schema {
    /// Reads a schema, with those that it refers to by name.
    pub fn parse(text: &str, referred: &[String]) -> Option<Self> {
        let mut named = BTreeMap::new();
        for text in referred {
            node(&serde_json::from_str(text).ok()?, "", &mut named, 0)?;
        }
        let root = node(&serde_json::from_str(text).ok()?, "", &mut named, 0)?;
        Some(Self { root, named })
    }
}

fn node(schema: &Value, namespace: &str, named: &mut BTreeMap<String, Node>, depth: usize) -> Option<Node> {
    if depth > DEEPEST {
        return None;
    }
    match schema {
        Value::String(name) => Some(primitive(name).unwrap_or_else(|| Node::Named(full_name(name, namespace)))),
        Value::Array(branches) => {
            let branches = branches.iter().map(|branch| node(branch, namespace, named, depth + 1));
            Some(Node::Union(branches.collect::<Option<_>>()?))
        }
        Value::Object(fields) => match fields.get("type")? {
            Value::String(kind) => complex(kind, fields, namespace, named, depth),
            inner => node(inner, namespace, named, depth + 1),
        },
        _ => None,
    }
}

fn complex(
    kind: &str,
    fields: &serde_json::Map<String, Value>,
    namespace: &str,
    named: &mut BTreeMap<String, Node>,
    depth: usize,
) -> Option<Node> {
    match kind {
        "array" => return Some(Node::Array(Box::new(node(fields.get("items")?, namespace, named, depth + 1)?))),
        "map" => return Some(Node::Map(Box::new(node(fields.get("values")?, namespace, named, depth + 1)?))),
        "record" | "error" | "enum" | "fixed" => {}
        other => return Some(primitive(other).unwrap_or_else(|| Node::Named(full_name(other, namespace)))),
    }
    let own = fields.get("namespace").and_then(Value::as_str).unwrap_or(namespace);
    let name = full_name(fields.get("name")?.as_str()?, own);
    let own = name.rsplit_once('.').map_or("", |(namespace, _)| namespace).to_owned();
    let built = match kind {
        "enum" => Node::Number,
        "fixed" => Node::Fixed(usize::try_from(fields.get("size")?.as_u64()?).ok()?),
        _ => {
            let mut inner = Vec::new();
            for field in fields.get("fields")?.as_array()? {
                let name = field.get("name")?.as_str()?.to_owned();
                inner.push((name, node(field.get("type")?, &own, named, depth + 1)?));
            }
            Node::Record(inner)
        }
    };
    named.insert(name.clone(), built);
    Some(Node::Named(name))
}

fn primitive(name: &str) -> Option<Node> {
    Some(match name {
        "null" => Node::Null,
        "boolean" => Node::Boolean,
        "int" | "long" => Node::Number,
        "float" => Node::Float,
        "double" => Node::Double,
        "bytes" | "string" => Node::Bytes,
        _ => return None,
    })
}

fn full_name(name: &str, namespace: &str) -> String {
    if name.contains('.') || namespace.is_empty() { name.to_owned() } else { format!("{namespace}.{name}") }
}

/// What is kept of a value.
#[derive(Debug, Clone, PartialEq)]
pub enum Kept {
    /// There is none.
    Null,
    /// A boolean.
    Flag(bool),
    /// An `int` or a `long`.
    Number(i64),
    /// A text, or bytes that are one.
    Text(String),
    /// A record.
    Fields(BTreeMap<String, Kept>),
    /// A value that is there and does not matter.
    Other,
}

impl Kept {
    fn field(&self, name: &str) -> Option<&Self> {
        match self {
            Self::Fields(fields) => fields.get(name),
            _ => None,
        }
    }

    fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    fn number(&self) -> Option<i64> {
        match self {
            Self::Number(number) => Some(*number),
            _ => None,
        }
    }

    fn scalar(&self) -> Option<String> {
        match self {
            Self::Flag(flag) => Some(flag.to_string()),
            Self::Number(number) => Some(number.to_string()),
            Self::Text(text) => Some(text.clone()),
            _ => None,
        }
    }
}

/// The fields that are kept: those of an envelope, its source, and a marker of a transaction; of others those that a connector adds.
fn matters(field: &str) -> bool {
    const FIELDS: [&str; 13] = [
        "source",
        "op",
        "status",
        "id",
        "event_count",
        "connector",
        "name",
        "snapshot",
        "sequence",
        "lsn",
        "txId",
        "ts_us",
        "ts_ms",
    ];
    FIELDS.contains(&field) || field.starts_with("__")
}

struct Bytes<'a> {
    rest: &'a [u8],
    /// So many more values may be read: those of no bytes could be there without end.
    values: usize,
    /// Whether every field matters.
    all: bool,
    named: &'a BTreeMap<String, Node>,
}

impl Bytes<'_> {
    fn read(value: &[u8], schema: &Schema, all: bool) -> Option<Kept> {
        let values = MOST_VALUES.saturating_add(value.len());
        Bytes { rest: value, values, all, named: &schema.named }.value(&schema.root, true, 0)
    }

    fn take(&mut self, length: usize) -> Option<&[u8]> {
        let (taken, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some(taken)
    }

    /// Zigzag, seven bits a byte, the lowest first.
    fn number(&mut self) -> Option<i64> {
        let mut coded: u64 = 0;
        for shift in (0..64).step_by(7) {
            let byte = *self.take(1)?.first()?;
            coded |= u64::from(byte & 0x7f).checked_shl(shift)?;
            if byte & 0x80 == 0 {
                return Some((coded >> 1).cast_signed() ^ -(coded & 1).cast_signed());
            }
        }
        None
    }

    fn length(&mut self) -> Option<usize> {
        usize::try_from(self.number()?).ok()
    }

    fn value(&mut self, node: &Node, keep: bool, depth: usize) -> Option<Kept> {
        self.values = self.values.checked_sub(1).filter(|_| depth <= DEEPEST)?;
        match node {
            Node::Null => return Some(Kept::Null),
            Node::Boolean => return self.take(1).map(|byte| Kept::Flag(byte != [0])),
            Node::Number => return self.number().map(Kept::Number),
            Node::Float => self.take(4).map(|_| ())?,
            Node::Double => self.take(8).map(|_| ())?,
            Node::Fixed(size) => self.take(*size).map(|_| ())?,
            Node::Bytes => {
                let length = self.length()?;
                let bytes = self.take(length)?;
                if let Some(text) = keep.then(|| std::str::from_utf8(bytes).ok()).flatten() {
                    return Some(Kept::Text(text.to_owned()));
                }
            }
            Node::Array(items) => self.blocks(|bytes| bytes.value(items, false, depth + 1).map(|_| ()))?,
            Node::Map(values) => self.blocks(|bytes| {
                let length = bytes.length()?;
                bytes.take(length)?;
                bytes.value(values, false, depth + 1).map(|_| ())
            })?,
            Node::Union(branches) => {
                let branch = self.length()?;
                return self.value(branches.get(branch)?, keep, depth + 1);
            }
            Node::Record(fields) => {
                let mut kept = BTreeMap::new();
                for (name, node) in fields {
                    let value = self.value(node, keep && (self.all || matters(name)), depth + 1)?;
                    if keep {
                        kept.insert(name.clone(), value);
                    }
                }
                return Some(if keep { Kept::Fields(kept) } else { Kept::Other });
            }
            Node::Named(name) => {
                let named = self.named;
                return self.value(named.get(name)?, keep, depth + 1);
            }
        }
        Some(Kept::Other)
    }

    /// The blocks of an array or a map, each a count and, where that is negative, a size before its items.
    fn blocks(&mut self, mut item: impl FnMut(&mut Self) -> Option<()>) -> Option<()> {
        loop {
            let count = self.number()?;
            match count {
                0 => return Some(()),
                ..0 => {
                    let size = self.length()?;
                    self.take(size)?;
                }
                _ => {
                    for _ in 0..count {
                        // An item of no bytes could be there any number of times.
                        let before = self.rest.len();
                        item(self)?;
                        if self.rest.len() == before {
                            break;
                        }
                    }
                }
            }
        }
    }
}

/// Reads a value without its prefix. Never fails: what is not understood has no place.
pub(super) fn of_avro(value: &[u8], schema: &Schema) -> Read {
    Bytes::read(value, schema, false).map_or_else(Read::unplaced, |kept| of_kept(&kept))
}

/// Reads all fields of a value without its prefix, also of the records within it; none if it is not understood.
pub fn fields_of(value: &[u8], schema: &Schema) -> Option<Kept> {
    Bytes::read(value, schema, true)
}

/// Whether a value without its prefix is one of this schema, from its first byte to its last: bytes that were written with another schema
/// may well begin like one of this.
pub fn is_whole(value: &[u8], schema: &Schema) -> bool {
    let values = MOST_VALUES.saturating_add(value.len());
    let mut bytes = Bytes { rest: value, values, all: false, named: &schema.named };
    bytes.value(&schema.root, false, 0).is_some() && bytes.rest.is_empty()
}

fn of_kept(kept: &Kept) -> Read {
    let event = |event| Read { event, connector: None };
    if let (Some(source @ Kept::Fields(_)), Some(_)) = (kept.field("source"), kept.field("op")) {
        return source_of(source).read();
    }
    if kept.field("event_count").is_some()
        && let (Some(status), Some(id)) =
            (kept.field("status").and_then(Kept::text), kept.field("id").and_then(Kept::text))
        && let Some(marker) = marker(status, id)
    {
        return event(marker);
    }
    match kept {
        Kept::Fields(fields) if fields.len() == 1 && fields.contains_key("ts_ms") => event(Event::Heartbeat),
        _ => event(unwrapped(|name| kept.field(name)?.scalar())),
    }
}

fn source_of(source: &Kept) -> Source {
    let text = |name: &str| source.field(name).and_then(Kept::text).map(str::to_owned);
    let number = |name: &str| source.field(name).and_then(Kept::number);
    let positive = |name: &str| number(name).and_then(|number| u64::try_from(number).ok());
    Source {
        connector: text("connector").unwrap_or_default(),
        name: text("name").unwrap_or_default(),
        snapshot: text("snapshot").map(Flag::Word),
        sequence: text("sequence"),
        lsn: positive("lsn"),
        xid: positive("txId"),
        ts_us: number("ts_us"),
        ts_ms: number("ts_ms"),
    }
}
