//! Schemas that have another id at the target: the id by which a record's key or value names its schema is replaced.
//!
//! ```text
//!   00 │ id, 4 bytes, the most significant first │ …                        Confluent's wire format
//!   headers __key_schema_id, __value_schema_id: 00 │ id, 4 bytes            the same in headers (Confluent 8)
//!   headers apicurio.key.contentId, apicurio.value.contentId: id, 8 bytes   Apicurio's converters and serializers, by default
//! ```
//!
//! A header with a hash of the schema (01 │ GUID) is the same in every registry, and stays as it is.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::record::{Block, Header, Record};

/// The ids of schemas at the target, by the ids that records have. What is not in it stays.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SchemaIds {
    ids: Arc<BTreeMap<u32, u32>>,
    written: Arc<IdPrefixed>,
}

/// Which keys and values begin with the id of a schema: a number of eight bytes begins as one does, too.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IdPrefixed {
    /// The subjects of the registry: `<topic>-key` and `<topic>-value` say it of a topic.
    pub subjects: BTreeSet<String>,
    /// What the names of topics begin with of which all keys do.
    pub keys: Vec<String>,
    /// The same of values.
    pub values: Vec<String>,
}

/// What of a topic's records begins with an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sides {
    key: bool,
    value: bool,
}

impl SchemaIds {
    /// Makes one of ids; those that are none of the wire format are in no record.
    pub fn new(ids: impl IntoIterator<Item = (i64, i64)>, written: IdPrefixed) -> Self {
        let ids = ids.into_iter().filter_map(|(of, to)| Some((u32::try_from(of).ok()?, u32::try_from(to).ok()?)));
        Self { ids: Arc::new(ids.collect()), written: Arc::new(written) }
    }

    /// Returns what of a topic's records is looked at.
    pub(super) fn sides(&self, topic: &str) -> Sides {
        let IdPrefixed { subjects, keys, values } = &*self.written;
        let has = |side: &str, prefixes: &[String]| {
            !self.ids.is_empty()
                && (subjects.contains(&format!("{topic}-{side}"))
                    || prefixes.iter().any(|prefix| topic.starts_with(prefix.as_str())))
        };
        Sides { key: has("key", keys), value: has("value", values) }
    }

    /// Returns the record with its ids at the target, in `room`; none where they are the same.
    pub(super) fn at_target<'a>(&self, record: &Record<'_>, sides: Sides, room: &'a mut Block) -> Option<Record<'a>> {
        if self.ids.is_empty() {
            return None;
        }
        let key = record.key.filter(|_| sides.key).and_then(|key| self.in_bytes(key));
        let value = record.value.filter(|_| sides.value).and_then(|value| self.in_bytes(value));
        let headers: Vec<_> = record.headers().map(|header| (header, self.in_header(&header))).collect();
        if key.is_none() && value.is_none() && headers.iter().all(|(_, changed)| changed.is_none()) {
            return None;
        }
        room.clear(room.partition());
        room.push(
            record.offset,
            record.timestamp,
            record.timestamp_type,
            record.leader_epoch,
            key.as_deref().or(record.key),
            value.as_deref().or(record.value),
            headers
                .iter()
                .map(|(header, changed)| Header { name: header.name, value: changed.as_deref().or(header.value) }),
        );
        room.get(0)
    }

    /// Bytes that begin with an id that is another one at the target, with that.
    fn in_bytes(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let [0, a, b, c, d, rest @ ..] = bytes else { return None };
        let id = self.ids.get(&u32::from_be_bytes([*a, *b, *c, *d]))?;
        Some([&[0], &id.to_be_bytes()[..], rest].concat())
    }

    fn in_header(&self, header: &Header<'_>) -> Option<Vec<u8>> {
        match header.name {
            b"__key_schema_id" | b"__value_schema_id" => {
                header.value.filter(|value| value.len() == 5).and_then(|value| self.in_bytes(value))
            }
            b"apicurio.key.contentId" | b"apicurio.value.contentId" => {
                let id = u32::try_from(u64::from_be_bytes(header.value?.try_into().ok()?)).ok()?;
                self.ids.get(&id).map(|id| u64::from(*id).to_be_bytes().to_vec())
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::TimestampType;

    #[test]
    fn an_id_is_replaced_and_nothing_else() {
        let written = IdPrefixed { subjects: ["a-key".to_owned()].into(), keys: vec![], values: vec!["a".to_owned()] };
        let ids = SchemaIds::new([(1, 300), (2, 1), (-1, 5), (7, i64::MAX)], written);
        let both = ids.sides("a");
        assert_eq!(both, Sides { key: true, value: true });
        let mut block = Block::new(0, 64);
        let values: [(Option<&[u8]>, Option<&[u8]>); 8] = [
            (Some(&[0, 0, 0, 0, 1, 9]), Some(&[0, 0, 0, 0, 2])),
            (None, Some(&[0, 0, 0, 0, 3, 0, 0, 0, 1])),
            (Some(&[0, 0, 0, 0]), None),
            (Some(&[]), Some(b"{\"a\":1}")),
            (Some(&[1, 0, 0, 0, 1]), Some(&[0, 1, 0, 0, 0])),
            (Some(b"k"), Some(&[0, 0, 0, 0, 1, 0, 0, 0, 0, 1])),
            (Some(&[0, 0, 0, 0, 7]), Some(&[0, 255, 255, 255, 255])),
            (Some(&[0, 0, 0, 0, 2, 2]), None),
        ];
        for (offset, (key, value)) in (0..).zip(values) {
            block.push(offset, 0, TimestampType::Create, -1, key, value, std::iter::empty());
        }
        let mut room = Block::new(0, 64);
        let mut seen = Vec::new();
        for record in block.iter() {
            let changed = ids
                .at_target(&record, both, &mut room)
                .map(|changed| (changed.offset, changed.key.map(<[u8]>::to_vec), changed.value.map(<[u8]>::to_vec)));
            seen.extend(changed);
        }
        let expected = [
            (0, Some(vec![0, 0, 0, 1, 44, 9]), Some(vec![0, 0, 0, 0, 1])),
            (5, Some(b"k".to_vec()), Some(vec![0, 0, 0, 1, 44, 0, 0, 0, 0, 1])),
            (7, Some(vec![0, 0, 0, 0, 1, 2]), None),
        ];
        assert_eq!(seen, expected);
        let header = |name: &'static str, value: &'static [u8]| Header { name: name.as_bytes(), value: Some(value) };
        let headers = [
            header("apicurio.value.contentId", &[0, 0, 0, 0, 0, 0, 0, 1]),
            header("apicurio.key.contentId", &[0, 0, 0, 0, 0, 0, 0, 3]),
            header("apicurio.value.globalId", &[0, 0, 0, 0, 0, 0, 0, 1]),
            header("__key_schema_id", &[0, 0, 0, 0, 2]),
            header("__value_schema_id", &[1, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 2]),
            header("a", &[0, 0, 0, 0, 2]),
        ];
        let mut one = Block::new(3, 64);
        one.push(5, 6, TimestampType::LogAppend, 7, None, Some(&[2]), headers.into_iter());
        let record = one.get(0).expect("one");
        let changed = ids.at_target(&record, both, &mut room).expect("another");
        let mut expected = headers.map(|header| header.value);
        (expected[0], expected[3]) = (Some([0, 0, 0, 0, 0, 0, 1, 44].as_slice()), Some([0, 0, 0, 0, 1].as_slice()));
        assert_eq!(changed.headers().map(|header| header.value).collect::<Vec<_>>(), expected);
        let rest = |record: &Record<'_>| {
            (
                record.offset,
                record.timestamp,
                record.timestamp_type,
                record.leader_epoch,
                record.key.is_none(),
                record.value.map(<[u8]>::len),
            )
        };
        assert_eq!(rest(&changed), rest(&record));

        assert!(block.iter().all(|record| SchemaIds::default().at_target(&record, both, &mut room).is_none()));

        // A key that is a number of eight bytes begins as one with an id does.
        let number = [0, 0, 0, 0, 1, 0, 0, 9];
        let mut one = Block::new(3, 64);
        one.push(5, 6, TimestampType::Create, 7, Some(&number), Some(&number), std::iter::empty());
        let record = one.get(0).expect("one");
        let value_alone = ids.at_target(&record, ids.sides("ab"), &mut room).expect("another");
        assert_eq!((value_alone.key, value_alone.value.map(|value| value[4])), (Some(&number[..]), Some(44)));
        assert!(ids.at_target(&record, ids.sides("b"), &mut room).is_none());
    }
}
