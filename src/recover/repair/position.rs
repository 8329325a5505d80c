//! Where a connector of Debezium stands (`PostgresOffsetContext`), as Connect keeps it.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::{Error, Kind, Result};
use crate::source::rest::operate::Offset;
use crate::stream::Lsn;

/// What a connector says of how far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The end of the last commit that it has sent as a whole: all behind it is wanted.
    pub committed: Lsn,
    /// The last change that it has sent, perhaps in the middle of a transaction.
    pub processed: Lsn,
    /// The transaction of that change.
    #[serde(default)]
    pub xid: Option<u32>,
}

impl Position {
    /// Finds it among the offsets of a connector with this `topic.prefix`.
    ///
    /// # Errors
    /// [`Kind::NotFound`] where it has none, [`Kind::Unsupported`] where a snapshot is under way.
    pub fn of(name: &str, prefix: &str, offsets: &[Offset]) -> Result<Self> {
        let partition = json!({ "server": prefix });
        let Some(found) = offsets.iter().find(|one| one.partition == partition) else {
            let message = format!("the connector {name} has no offset for topic.prefix {prefix}");
            return Err(Error::new(Kind::NotFound, message)
                .hint("what it had read before is not known: it has to begin with a snapshot"));
        };
        let offset = &found.offset;
        let is_set = |key: &str| offset.get(key).is_some_and(|value| !value.is_null() && *value != json!(false));
        let snapshots =
            [("snapshot", "its first snapshot"), ("incremental_snapshot_collections", "an incremental snapshot")];
        if let Some((_, which)) = snapshots.into_iter().find(|(key, _)| is_set(key)) {
            let message = format!("the connector {name} was in the middle of {which} when it stopped");
            return Err(Error::new(Kind::Unsupported, message)
                .hint("let it begin anew with a snapshot: DELETE …/offsets while it is stopped"));
        }
        let at = |key: &str| offset.get(key).and_then(Value::as_u64).map(Lsn);
        let Some(processed) = at("lsn_proc").or_else(|| at("lsn")) else {
            let message = format!("the offset of the connector {name} has no position: {offset}");
            return Err(Error::new(Kind::Unsupported, message).hint("is it a connector of Debezium over Postgres?"));
        };
        // Its own reader takes the one for the other where that is missing.
        let xid =
            offset.get("txId").and_then(Value::as_u64).and_then(|xid| u32::try_from(xid & u64::from(u32::MAX)).ok());
        Ok(Self { committed: at("lsn_commit").unwrap_or(processed), processed, xid })
    }

    /// Whether it stands in the middle of a transaction.
    pub fn is_within(&self) -> bool {
        self.committed < self.processed
    }

    /// Whether the cluster has acknowledged a change of a transaction, which ends there, and with it all before: Connect writes down the
    /// offset of a record once that and all earlier ones of the connector are acknowledged, of whatever topic.
    pub fn has_brought(&self, xid: u32, end: Lsn) -> bool {
        self.xid == Some(xid) || self.committed >= end
    }
}

/// The offset of a connector with this `topic.prefix`, as Connect has it.
pub(super) fn offset_of(prefix: &str, offsets: &[Offset]) -> Option<Value> {
    let partition = json!({ "server": prefix });
    offsets.iter().find(|one| one.partition == partition).map(|one| one.offset.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(offset: Value) -> Result<Position> {
        let offsets = [("other", json!({ "lsn": 1 })), ("srv", offset)]
            .map(|(prefix, offset)| Offset { partition: json!({ "server": prefix }), offset });
        Position::of("shop", "srv", &offsets)
    }

    #[test]
    fn what_was_sent_as_a_whole_is_told_from_what_was_sent() {
        let whole = of(json!({ "lsn": 90, "lsn_proc": 90, "lsn_commit": 80, "txId": 7, "ts_usec": 1 })).expect("one");
        assert_eq!((whole.committed, whole.processed, whole.is_within()), (Lsn(80), Lsn(90), true));
        let old = of(json!({ "lsn": 90, "lsn_proc": 70 })).expect("one");
        assert_eq!((old.committed, old.processed, old.is_within()), (Lsn(70), Lsn(70), false));
        assert_eq!(of(json!({ "lsn": 90 })).expect("a minimal one").committed, Lsn(90));
    }

    #[test]
    fn a_transaction_is_brought_once_the_offset_is_of_it_or_behind_it() {
        let position = |offset: Value| of(offset).expect("one");
        let within = position(json!({ "lsn": 90, "lsn_proc": 90, "lsn_commit": 80, "txId": 7 }));
        assert!(within.has_brought(7, Lsn(96)) && within.has_brought(5, Lsn(80)));
        assert!(
            !within.has_brought(8, Lsn(96)),
            "its marker came to its topic, and what was sent before is not acknowledged"
        );
        assert!(!position(json!({ "lsn": 90 })).has_brought(8, Lsn(96)));
    }

    #[test]
    fn from_the_middle_of_a_snapshot_nothing_goes_on() {
        for offset in
            [json!({ "lsn": 9, "snapshot": "INITIAL" }), json!({ "lsn": 9, "incremental_snapshot_collections": "[]" })]
        {
            assert_eq!(of(offset).expect_err("a snapshot").kind(), Kind::Unsupported);
        }
        assert!(of(json!({ "lsn": 9, "snapshot": false })).is_ok());
        assert_eq!(of(json!({ "txId": 9 })).expect_err("nowhere").kind(), Kind::Unsupported);
        assert_eq!(Position::of("shop", "srv", &[]).expect_err("none").kind(), Kind::NotFound);
    }
}
