//! How far a replay has come, as the target's group keeps it.
//!
//! # The marks
//! A replay with the id `x` keeps its progress where Kafka keeps offsets: under the group `tidelog-replay-x`, by target
//! topic and partition. The offset is the next **source** offset to send; the metadata says what the offset belongs to:
//!
//! ```text
//! tidelog/1 generation=0 from=1795331112000 to=1795334712000 plan=9f3ac1d27be04421 pinned=03be1c9f7a55d210
//! ```
//! `map` follows where the map of offsets is kept (see `offset_map`).
//! `from` and `to` are `-` where the range is open; `plan` is a digest of everything else that the command says about
//! which records are sent where, `pinned` one of the generations and offsets that it stood for when it was begun. Offsets are committed in the transaction of the records that they speak of (KIP-98, KIP-447), so a mark
//! never lies ahead of the records or behind them. Brokers forget a group without members after
//! `offsets.retention.minutes` (seven days unless it is set otherwise).

use std::collections::BTreeMap;
use std::ops::Range;

use crate::error::Result;
use crate::replay::journal::Begun;
use crate::replay::offset_map::{Note, read_note};

/// What a replay is, apart from how far it has come: the same id with another identity is another replay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The range of timestamps.
    pub timestamps: Option<Range<i64>>,
    /// A digest of everything else that decides which records are sent where.
    pub digest: String,
    /// A digest of the generations and offsets that are sent; none in marks of a version that did not know it.
    pub pinned: Option<String>,
}

impl Identity {
    /// The identity of a replay that was begun.
    pub fn of(begun: &Begun) -> Result<Self> {
        let digest = match &begun.after {
            Some(after) => format!("{}/{after}", begun.selection),
            None => begun.selection.clone(),
        };
        Ok(Self { timestamps: begun.timestamps(), digest, pinned: Some(begun.pinned_digest()?) })
    }
}

/// The metadata of a mark.
pub(super) fn write_mark(identity: &Identity, generation: u32) -> String {
    let bound = |bound: Option<i64>| bound.map_or("-".to_owned(), |ms| ms.to_string());
    let (from, to) = identity.timestamps.as_ref().map(|range| (range.start, range.end)).unzip();
    let pinned = identity.pinned.as_ref().map_or(String::new(), |pinned| format!(" pinned={pinned}"));
    format!("tidelog/1 generation={generation} from={} to={} plan={}{pinned}", bound(from), bound(to), identity.digest)
}

/// What the metadata of a mark say besides where the map of offsets is kept.
pub(super) fn noted(note: &str) -> String {
    format!(" map={note}")
}

pub(super) fn read_mark(text: &str) -> Option<(Identity, u32, Option<Note>)> {
    let fields: BTreeMap<&str, &str> =
        text.strip_prefix("tidelog/1 ")?.split(' ').map(|field| field.split_once('=')).collect::<Option<_>>()?;
    let bound = |name: &str| match *fields.get(name)? {
        "-" => Some(None),
        ms => ms.parse::<i64>().ok().map(Some),
    };
    let timestamps = bound("from")?.zip(bound("to")?).map(|(from, to)| from..to);
    let pinned = fields.get("pinned").map(|pinned| (*pinned).to_owned());
    let identity = Identity { timestamps, digest: (*fields.get("plan")?).to_owned(), pinned };
    let note = fields.get("map").map_or(Some(None), |note| read_note(note).map(Some))?;
    Some((identity, fields.get("generation")?.parse().ok()?, note))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::offset_map::write_note;

    #[test]
    fn a_mark_is_read_back_and_nothing_else_is_one() {
        for timestamps in [None, Some(-5..1_795_334_712_000)] {
            for pinned in [None, Some("03be".to_owned())] {
                let identity = Identity { timestamps: timestamps.clone(), digest: "9f3a/r-1".to_owned(), pinned };
                let mark = write_mark(&identity, 7);
                assert_eq!(read_mark(&mark), Some((identity.clone(), 7, None)));
                let note = Note::Kept(5, "a0".to_owned());
                assert_eq!(read_mark(&format!("{mark}{}", noted(&write_note(&note)))), Some((identity, 7, Some(note))));
            }
        }
        for other in ["", "tidelog/2 generation=0 from=- to=- plan=a", "tidelog/1 generation=0", "some tool's note"] {
            assert_eq!(read_mark(other), None, "{other}");
        }
    }
}
