//! What live topics hold beyond a commit, by key, and what takes it back: the last state of each key up to the commit, or its deletion.

use std::collections::{BTreeMap, BTreeSet};

use super::shape::{Unavailable, deletion, filled, is_row, operation};
use crate::error::{Error, Kind, Result};
use crate::recover::fold::Change;

/// What all keys may take, with their values.
const MOST_BYTES: usize = 256 << 20;

/// The headers of a record.
pub(super) type Headers = Vec<(Vec<u8>, Option<Vec<u8>>)>;

/// A record as it was archived.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen<'a> {
    pub(super) topic: &'a str,
    pub(super) partition: i32,
    pub(super) key: Option<&'a [u8]>,
    pub(super) value: Option<&'a [u8]>,
}

/// A value with its headers.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Held {
    value: Vec<u8>,
    headers: Headers,
}

/// What was the last of a key up to the commit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
enum State {
    #[default]
    Never,
    Row(Held),
    /// It was deleted, by an event if there was one.
    Gone(Option<Held>),
}

/// A key that something beyond the commit is of.
#[derive(Debug, Default)]
struct Key {
    /// Where its last record beyond the commit is.
    partition: i32,
    /// Whether it is in several partitions, which have no common order.
    is_apart: bool,
    phantoms: u64,
    /// What the first of them does, where it says so: `c` inserts the row, so that it was not there before.
    first: Option<String>,
    /// The last of them that has a value.
    last: Option<Held>,
    state: State,
}

impl Key {
    /// Whether it is not known what it was up to the commit. A row that is changed or deleted was there before: it stands in what the archive
    /// lacks. So may one of which nothing says what it does, where the archive lacks anything.
    fn is_unknown(&self, lacks: bool) -> bool {
        let is_new = self.first.as_deref() == Some("c");
        let was_there = self.first.is_some() && !is_new;
        self.is_apart || (self.state == State::Never && (was_there || (lacks && !is_new)))
    }
}

/// A record that is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sent {
    pub(super) topic: String,
    pub(super) partition: i32,
    pub(super) key: Vec<u8>,
    pub(super) value: Option<Vec<u8>>,
    pub(super) headers: Headers,
}

impl Sent {
    /// What it takes, about.
    pub(super) fn bytes(&self) -> usize {
        let headers = self.headers.iter().map(|(name, value)| name.len() + value.as_ref().map_or(0, Vec::len) + 10);
        self.key.len() + self.value.as_ref().map_or(0, Vec::len) + headers.sum::<usize>()
    }
}

/// What is told of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    /// Records beyond the commit.
    pub(super) phantoms: u64,
    /// Their keys.
    pub(super) keys: u64,
    /// Keys of which a state is sent again.
    pub(super) states: u64,
    /// Keys that are deleted.
    pub(super) deletions: u64,
    /// By topic: records beyond the commit, and their keys.
    pub(super) topics: BTreeMap<String, (u64, u64)>,
    /// Records beyond the commit that have no key, by topic: nothing takes them back.
    pub(super) unkeyed: BTreeMap<String, u64>,
    /// Keys of which it is not known what they were up to the commit, by topic.
    pub(super) unknown: BTreeMap<String, u64>,
    /// Topics that were truncated up to the commit and have several partitions, which have no common order.
    pub(super) truncated: BTreeSet<String>,
    /// Keys whose deletion has no event but a tombstone, by topic.
    pub(super) without_event: BTreeMap<String, u64>,
    /// Keys whose state lacks values that did not change by then, by topic.
    pub(super) lacking: BTreeMap<String, u64>,
}

/// All keys that something beyond the commit is of.
#[derive(Debug, Default)]
pub(super) struct Keys {
    keys: BTreeMap<(String, Vec<u8>), Key>,
    bytes: usize,
    unavailable: Unavailable,
    unkeyed: BTreeMap<String, u64>,
    truncated: BTreeSet<String>,
}

impl Keys {
    /// None yet, of connectors that send this in place of values that they leave out.
    pub(super) fn new(unavailable: Unavailable) -> Self {
        Self { unavailable, ..Self::default() }
    }

    /// Takes a record in that lies beyond the commit.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] where they would take too much memory.
    pub(super) fn beyond(&mut self, seen: Seen<'_>, headers: impl FnOnce() -> Headers) -> Result<()> {
        let Some(key) = seen.key else {
            *self.unkeyed.entry(seen.topic.to_owned()).or_default() += 1;
            return Ok(());
        };
        let known = self.keys.entry((seen.topic.to_owned(), key.to_vec())).or_insert_with(|| {
            self.bytes += key.len() + seen.topic.len() + 160;
            let first = match seen.value {
                None => Some("d".to_owned()),
                Some(value) => operation(value),
            };
            Key { partition: seen.partition, first, ..Key::default() }
        });
        known.is_apart |= known.partition != seen.partition;
        known.partition = seen.partition;
        known.phantoms += 1;
        if let Some(value) = seen.value {
            let was = known.last.as_ref().map_or(0, |held| held.value.len());
            self.bytes = self.bytes + value.len() - was;
            known.last = Some(Held { value: value.to_vec(), headers: headers() });
        }
        self.fits()
    }

    /// Takes a record in that belongs to the commit. All of those beyond it are known by then.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] where they would take too much memory.
    pub(super) fn within(
        &mut self,
        seen: Seen<'_>,
        change: impl FnOnce() -> Change,
        headers: impl FnOnce() -> Headers,
    ) -> Result<()> {
        let Some(key) = seen.key else {
            self.truncate(seen, change);
            return Ok(());
        };
        let Some(known) = self.keys.get_mut(&(seen.topic.to_owned(), key.to_vec())) else {
            return Ok(());
        };
        known.is_apart |= known.partition != seen.partition;
        let size = |state: &State| match state {
            State::Row(held) | State::Gone(Some(held)) => held.value.len(),
            State::Never | State::Gone(None) => 0,
        };
        let was = size(&known.state);
        let held = |value: &[u8]| Held { value: value.to_vec(), headers: headers() };
        known.state = match (change(), seen.value, std::mem::take(&mut known.state)) {
            // A tombstone behind the event.
            (Change::Gone, None, State::Gone(event)) => State::Gone(event),
            (Change::Gone, None, _) => State::Gone(None),
            (Change::Gone, Some(value), _) => State::Gone(Some(held(value))),
            (Change::Nothing | Change::Truncated, _, before) | (_, None, before) => before,
            (_, Some(value), State::Row(before)) if self.unavailable.is_in(value) => {
                let mut held = held(value);
                if let Some(value) = filled(value, &before.value, &self.unavailable) {
                    held.value = value;
                }
                State::Row(held)
            }
            (_, Some(value), _) => State::Row(held(value)),
        };
        self.bytes = self.bytes + size(&known.state) - was;
        self.fits()
    }

    /// A TRUNCATE has no key: none of the rows before it is there.
    fn truncate(&mut self, seen: Seen<'_>, change: impl FnOnce() -> Change) {
        let first = (seen.topic.to_owned(), Vec::new());
        let is_any = self.keys.range(first.clone()..).next().is_some_and(|((topic, _), _)| topic == seen.topic);
        if !is_any || !matches!(change(), Change::Truncated) {
            return;
        }
        for (_, known) in self.keys.range_mut(first..).take_while(|((topic, _), _)| topic == seen.topic) {
            if known.partition == seen.partition {
                known.state = State::Gone(None);
            } else {
                self.truncated.insert(seen.topic.to_owned());
            }
        }
    }

    fn fits(&self) -> Result<()> {
        if self.bytes <= MOST_BYTES {
            return Ok(());
        }
        let message = format!("the keys of what lies beyond the commit take more than {} MiB", MOST_BYTES >> 20);
        Err(Error::new(Kind::Unsupported, message)
            .hint("bring the connectors back one by one ([[connector]]), or into new topics, without --in-place"))
    }

    /// What takes everything back, in the order of topics and keys. Of some topics the archive lacks a part: a row that was there all the
    /// time may stand in it, so nothing is sent of a key that it does not know.
    pub(super) fn close(self, lacking: &BTreeSet<String>) -> (Told, Vec<Sent>) {
        let mut told = Told { unkeyed: self.unkeyed, truncated: self.truncated, ..Told::default() };
        let mut all = Vec::new();
        for ((topic, key), known) in self.keys {
            let is_unknown = known.is_unknown(lacking.contains(&topic));
            let Key { partition, phantoms, last, state, .. } = known;
            told.phantoms += phantoms;
            told.keys += 1;
            let of_topic = told.topics.entry(topic.clone()).or_default();
            *of_topic = (of_topic.0 + phantoms, of_topic.1 + 1);
            if is_unknown {
                *told.unknown.entry(topic).or_default() += 1;
                continue;
            }
            let mut send = |value: Option<Vec<u8>>, headers: Headers| {
                let (topic, key) = (topic.clone(), key.clone());
                all.push(Sent { topic, partition, key, value, headers });
            };
            let event = match state {
                State::Row(held) => {
                    told.states += 1;
                    if self.unavailable.is_in(&held.value) {
                        *told.lacking.entry(topic.clone()).or_default() += 1;
                    }
                    send(Some(held.value), held.headers);
                    continue;
                }
                State::Gone(Some(held)) => Some(held),
                State::Gone(None) | State::Never => last.and_then(|held| {
                    let value = deletion(&held.value);
                    if value.is_none() && !is_row(&held.value) {
                        *told.without_event.entry(topic.clone()).or_default() += 1;
                    }
                    Some(Held { value: value?, headers: of_deletion(held.headers) })
                }),
            };
            told.deletions += 1;
            if let Some(event) = event {
                send(Some(event.value), event.headers);
            }
            send(None, Vec::new());
        }
        for (topic, count) in &told.unkeyed {
            told.phantoms += count;
            told.topics.entry(topic.clone()).or_default().0 += count;
        }
        (told, all)
    }
}

/// Headers that say what happened say that it was a deletion.
fn of_deletion(headers: Headers) -> Headers {
    let is_op = |name: &[u8]| name == b"__op";
    headers
        .into_iter()
        .map(|(name, value)| if is_op(&name) { (name, Some(b"d".to_vec())) } else { (name, value) })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap as Map;

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    /// A change of one row, or the tombstone behind a deletion.
    #[derive(Debug, Clone)]
    struct Change_ {
        key: u8,
        /// The value; none: it is deleted.
        to: Option<u8>,
    }

    fn changes() -> impl Strategy<Value = Vec<Change_>> {
        let change = (0_u8..4, prop::option::of(0_u8..9)).prop_map(|(key, to)| Change_ { key, to });
        prop::collection::vec(change, 0..12)
    }

    /// As a table has them: what is not there is inserted, and not deleted.
    fn records(changes: &[Change_], rows: &mut BTreeSet<u8>) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
        let mut records = Vec::new();
        for Change_ { key, to } in changes {
            let was_there = if to.is_some() { !rows.insert(*key) } else { rows.remove(key) };
            let op = match (to, was_there) {
                (Some(_), true) => "u",
                (Some(_), false) => "c",
                (None, true) => "d",
                (None, false) => continue,
            };
            let after = to.map(|n| json!({ "n": n }));
            let value = json!({ "before": null, "after": after, "source": {}, "op": op }).to_string().into_bytes();
            records.push((vec![*key], Some(value)));
            if to.is_none() {
                records.push((vec![*key], None));
            }
        }
        records
    }

    /// The rows that whoever reads events, or whoever reads tombstones alone, comes to.
    fn folded(records: &[(Vec<u8>, Option<Vec<u8>>)], by_events: bool) -> Map<Vec<u8>, Value> {
        let mut rows = Map::new();
        for (key, value) in records {
            let event = value.as_ref().map(|value| serde_json::from_slice::<Value>(value).expect("JSON"));
            match event {
                Some(event) if event["op"] != "d" => drop(rows.insert(key.clone(), event["after"].clone())),
                Some(_) if !by_events => {}
                Some(_) | None => drop(rows.remove(key)),
            }
        }
        rows
    }

    fn seen<'a>((key, value): &'a (Vec<u8>, Option<Vec<u8>>)) -> Seen<'a> {
        Seen { topic: "t", partition: 0, key: Some(key), value: value.as_deref() }
    }

    fn change_of(value: Option<&[u8]>) -> Change {
        let event = value.map(|value| serde_json::from_slice::<Value>(value).expect("JSON"));
        if event.is_none_or(|event| event["op"] == "d") { Change::Gone } else { Change::Row(Map::new()) }
    }

    fn compensated(within: &[(Vec<u8>, Option<Vec<u8>>)], beyond: &[(Vec<u8>, Option<Vec<u8>>)]) -> (Told, Vec<Sent>) {
        let mut keys = Keys::default();
        beyond.iter().for_each(|record| keys.beyond(seen(record), Vec::new).expect("room"));
        within
            .iter()
            .for_each(|record| keys.within(seen(record), || change_of(record.1.as_deref()), Vec::new).expect("room"));
        keys.close(&BTreeSet::new())
    }

    proptest! {
        #[test]
        fn whoever_has_read_what_lies_beyond_comes_back_to_the_commit(within in changes(), beyond in changes(), killed in 0_usize..20) {
            let mut rows = BTreeSet::new();
            let within = records(&within, &mut rows);
            let beyond = records(&beyond, &mut rows);
            let (told, sent) = compensated(&within, &beyond);
            prop_assert_eq!(told.phantoms, beyond.len() as u64);
            prop_assert_eq!(told.states + told.deletions, told.keys);
            let sent: Vec<_> = sent.into_iter().map(|sent| (sent.key, sent.value)).collect();
            // Ended at any record, and begun again.
            let again = [&sent[..killed.min(sent.len())], &sent[..]].concat();
            for by_events in [true, false] {
                let expected = folded(&within, by_events);
                prop_assert_eq!(&folded(&[&within[..], &beyond[..], &again[..]].concat(), by_events), &expected);
            }
        }
    }

    #[test]
    fn what_cannot_be_taken_back_is_told() {
        let avro = (b"k".to_vec(), Some(vec![0, 0, 0, 0, 1, 2, 3]));
        let (told, sent) = compensated(&[], std::slice::from_ref(&avro));
        assert_eq!((told.without_event.get("t"), sent.len(), &sent[0].value), (Some(&1), 1, &None));
        let mut keys = Keys::default();
        keys.beyond(Seen { key: None, ..seen(&avro) }, Vec::new).expect("room");
        let (told, sent) = keys.close(&BTreeSet::new());
        assert_eq!((told.unkeyed.get("t"), told.phantoms, sent.len()), (Some(&1), 1, 0));
    }
    #[test]
    fn a_row_that_may_stand_in_what_the_archive_lacks_is_not_deleted() {
        let event = |op: &str| {
            let value = json!({ "before": null, "after": { "n": 1 }, "source": {}, "op": op }).to_string().into_bytes();
            (op.as_bytes().to_vec(), Some(value))
        };
        let mut keys = Keys::default();
        for op in ["c", "u", "r"] {
            keys.beyond(seen(&event(op)), Vec::new).expect("room");
        }
        let (told, sent) = keys.close(&BTreeSet::from(["t".to_owned()]));
        assert_eq!((told.unknown.get("t"), told.deletions), (Some(&2), 1));
        assert!(sent.iter().all(|sent| sent.key == b"c"), "an insert was no row before: {sent:?}");
        // A change says by itself that its row was there; where nothing does, the archive has to be whole.
        let avro = (b"k".to_vec(), Some(vec![0, 0, 0, 0, 1, 2, 3]));
        for (record, lacks, expected) in [(event("u"), false, 0), (avro.clone(), false, 1), (avro, true, 0)] {
            let mut keys = Keys::default();
            keys.beyond(seen(&record), Vec::new).expect("room");
            let lacking = if lacks { BTreeSet::from(["t".to_owned()]) } else { BTreeSet::new() };
            let (told, sent) = keys.close(&lacking);
            assert_eq!((told.deletions, sent.len() as u64), (expected, expected));
        }
    }

    /// Partitions were added: its row up to the commit lies in another one than what came later.
    #[test]
    fn a_key_in_several_partitions_is_left_as_it_is() {
        let row = (vec![1], Some(json!({ "after": { "n": 1 }, "source": {}, "op": "c" }).to_string().into_bytes()));
        for (within, beyond) in [(0, [3, 3]), (3, [0, 3])] {
            let mut keys = Keys::default();
            for partition in beyond {
                keys.beyond(Seen { partition, ..seen(&row) }, Vec::new).expect("room");
            }
            keys.within(Seen { partition: within, ..seen(&row) }, || Change::Row(Map::new()), Vec::new).expect("room");
            let (told, sent) = keys.close(&BTreeSet::new());
            assert_eq!((told.unknown.get("t"), sent.len()), (Some(&1), 0));
        }
    }

    #[test]
    fn what_was_truncated_up_to_the_commit_is_not_sent_again() {
        let row = (vec![1], Some(json!({ "after": { "n": 1 }, "source": {}, "op": "c" }).to_string().into_bytes()));
        for (partition, other) in [(0, false), (1, true)] {
            let mut keys = Keys::default();
            keys.beyond(seen(&row), Vec::new).expect("room");
            keys.within(seen(&row), || Change::Row(Map::new()), Vec::new).expect("room");
            let truncate = Seen { topic: "t", partition, key: None, value: Some(b"{}") };
            keys.within(truncate, || Change::Truncated, Vec::new).expect("room");
            let (told, _) = keys.close(&BTreeSet::new());
            assert_eq!((told.states == 1, told.truncated.contains("t")), (other, other));
        }
    }
}
