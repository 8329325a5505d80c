//! Schemas that have another id at the target: the id with which a record's key or value begins is replaced.
//!
//! ```text
//!   00 │ id, 4 bytes, the most significant first │ … (Confluent's wire format)
//! ```
//!
//! Records that name their schema in a header do it by a hash of the schema, which is the same in every registry, and stay as they are.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::record::Record;

/// The ids of schemas at the target, by the ids that records have. What is not in it stays.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SchemaIds(Arc<BTreeMap<u32, u32>>);

/// Room for one record's key and value.
#[derive(Debug, Default)]
pub(super) struct Room {
    key: Vec<u8>,
    value: Vec<u8>,
}

impl SchemaIds {
    /// Makes one of ids; those that are none of the wire format are in no record.
    pub fn new(ids: impl IntoIterator<Item = (i64, i64)>) -> Self {
        let ids = ids.into_iter().filter_map(|(of, to)| Some((u32::try_from(of).ok()?, u32::try_from(to).ok()?)));
        Self(Arc::new(ids.collect()))
    }

    /// Returns the record with its ids at the target; none where they are the same.
    pub(super) fn at_target<'a>(&self, record: &Record<'a>, room: &'a mut Room) -> Option<Record<'a>> {
        if self.0.is_empty() {
            return None;
        }
        let (key, value) = (self.replaced(record.key, &mut room.key), self.replaced(record.value, &mut room.value));
        if !key && !value {
            return None;
        }
        let mut changed = *record;
        if key {
            changed.key = Some(&room.key);
        }
        if value {
            changed.value = Some(&room.value);
        }
        Some(changed)
    }

    /// Whether bytes have another id at the target; they are in `room` then.
    fn replaced(&self, bytes: Option<&[u8]>, room: &mut Vec<u8>) -> bool {
        let Some([0, a, b, c, d, rest @ ..]) = bytes else { return false };
        let Some(id) = self.0.get(&u32::from_be_bytes([*a, *b, *c, *d])) else { return false };
        room.clear();
        room.push(0);
        room.extend_from_slice(&id.to_be_bytes());
        room.extend_from_slice(rest);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Block, TimestampType};

    #[test]
    fn an_id_is_replaced_and_nothing_else() {
        let ids = SchemaIds::new([(1, 300), (2, 1), (-1, 5), (7, i64::MAX)]);
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
        let mut room = Room::default();
        let mut seen = Vec::new();
        for record in block.iter() {
            let changed = ids
                .at_target(&record, &mut room)
                .map(|changed| (changed.offset, changed.key.map(<[u8]>::to_vec), changed.value.map(<[u8]>::to_vec)));
            seen.extend(changed);
        }
        let expected = [
            (0, Some(vec![0, 0, 0, 1, 44, 9]), Some(vec![0, 0, 0, 0, 1])),
            (5, Some(b"k".to_vec()), Some(vec![0, 0, 0, 1, 44, 0, 0, 0, 0, 1])),
            (7, Some(vec![0, 0, 0, 0, 1, 2]), None),
        ];
        assert_eq!(seen, expected);
        assert!(block.iter().all(|record| SchemaIds::default().at_target(&record, &mut room).is_none()));
    }
}
