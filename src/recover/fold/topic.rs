//! The rows that a topic comes to when its changes are applied in order: how many, and the sums of their columns.
//!
//! Rows are kept by a hash of their keys. Where those of all keys would take too much memory, the topic is read several times, each time for
//! a share of the keys.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use rdkafka::Message as _;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::Headers as _;
use rdkafka::{Offset, TopicPartitionList};
use sha2::{Digest as _, Sha256};

use std::time::{Duration, Instant};

use super::hash::hash;
use super::row::{Cell, Change, change, seen_before};
use super::table::Table;
use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::recover::cut::Schemas;
use crate::replay::kafka::Connection;

/// What the rows of one reading may take.
const MOST_BYTES: u64 = 96 << 20;

/// How long an answer of the cluster may take, and how long nothing may come.
const ANSWER: Duration = Duration::from_secs(60);

/// What a topic comes to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Folded {
    /// Rows.
    pub(super) rows: u64,
    /// The sum of each column that every row has; it is not known of others.
    pub(super) sums: BTreeMap<String, i128>,
    /// Why it cannot be compared.
    pub(super) refused: Option<String>,
}

impl Folded {
    /// Keeps the sums of the columns that every row has.
    fn settle(&mut self, table: &Table, known: &[bool]) {
        let known = table.sums.keys().zip(known).filter(|(_, known)| **known).map(|(column, _)| column);
        self.sums = known.map(|column| (column.clone(), self.sums.get(column).copied().unwrap_or_default())).collect();
    }
}

/// A column of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Held {
    /// The row does not have it, or not as text.
    No,
    Null,
    Hash(i64),
}

/// By the hash of its key: in which partition it was changed last, and the row; none of one that is gone.
type Rows = HashMap<[u8; 16], (i32, Option<Box<[Held]>>)>;

/// Several partitions, which have no order among each other, or one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Alone,
    Among(i32),
}

/// Rows as they come to be.
struct Fold<'a> {
    table: &'a Table,
    columns: Vec<&'a String>,
    rows: Rows,
    refused: Option<String>,
    /// Which share of the keys, of how many.
    share: (u64, u64),
    /// So many rows of it there may be: a table that was counted has fewer.
    most: usize,
}

impl<'a> Fold<'a> {
    fn new(table: &'a Table, share: (u64, u64)) -> Self {
        let most = usize::try_from(expected(table) * 2 / share.1).unwrap_or(usize::MAX);
        Self { table, columns: table.sums.keys().collect(), rows: Rows::new(), refused: None, share, most }
    }

    /// The hash of a key, if it is of this share.
    fn id(&self, key: &[u8]) -> Option<[u8; 16]> {
        let digest = Sha256::digest(key);
        let of = u64::from_le_bytes(*digest.last_chunk::<8>()?);
        (of % self.share.1 == self.share.0).then(|| digest.first_chunk::<16>().copied())?
    }

    fn apply(&mut self, id: Option<[u8; 16]>, change: Change, place: Place) {
        match (change, id) {
            (Change::Nothing, _) => {}
            (Change::Unread, _) => self.refuse("a record of it is no change event that can be read"),
            (Change::Truncated, _) if place != Place::Alone => {
                self.refuse("it was truncated, and its partitions have no common order");
            }
            (Change::Truncated, _) => self.rows.clear(),
            (_, None) => self.refuse("its records have no keys"),
            (change, Some(id)) => self.put(id, change, place),
        }
    }

    fn refuse(&mut self, why: &str) {
        self.refused.get_or_insert_with(|| why.to_owned());
    }

    fn put(&mut self, id: [u8; 16], change: Change, place: Place) {
        let partition = match place {
            Place::Alone => 0,
            Place::Among(partition) => partition,
        };
        let before = self.rows.get(&id);
        if before.is_some_and(|(before, _)| *before != partition) {
            return self
                .refuse("a key of it lies in several partitions, which have no common order: some were added later");
        }
        let Change::Row(cells) = change else {
            match place {
                Place::Alone => drop(self.rows.remove(&id)),
                Place::Among(_) => drop(self.rows.insert(id, (partition, None))),
            }
            return;
        };
        let text = |column: &str| match cells.get(column) {
            Some(Cell::Text(text)) => Some(text.as_str()),
            _ => None,
        };
        let (seed, before) = (self.table.seed(text), before.and_then(|(_, row)| row.as_ref()));
        let held = |(index, column): (usize, &&String)| match (cells.get(*column), seed) {
            (Some(Cell::Text(text)), Some(seed)) => Held::Hash(hash(text.as_bytes(), seed)),
            (Some(Cell::Null), _) => Held::Null,
            (Some(Cell::Unchanged), _) => before.and_then(|before| before.get(index).copied()).unwrap_or(Held::No),
            _ => Held::No,
        };
        let row = self.columns.iter().enumerate().map(held).collect();
        self.rows.insert(id, (partition, Some(row)));
        if self.rows.len() > self.most {
            self.refuse("it comes to more than twice as many rows as the table has");
        }
    }

    /// Adds what this share comes to.
    fn close(self, into: &mut Folded, known: &mut Vec<bool>) {
        known.resize(self.columns.len(), true);
        for row in self.rows.into_values().filter_map(|(_, row)| row) {
            into.rows += 1;
            for ((held, column), known) in row.iter().zip(&self.columns).zip(known.iter_mut()) {
                match held {
                    Held::No => *known = false,
                    Held::Null => {}
                    Held::Hash(hash) => *into.sums.entry((*column).clone()).or_default() += i128::from(*hash),
                }
            }
        }
        into.refused = into.refused.take().or(self.refused);
    }
}

/// How many rows a topic is expected to come to: as many as the table has, and room for what may differ.
fn expected(table: &Table) -> u64 {
    table.rows.max(50_000)
}

/// Reads a topic from its beginning to where it ended, or ends now.
///
/// # Errors
/// A cluster that does not answer.
pub(super) fn fold(
    to: &Connection,
    (topic, ends): (&str, Option<BTreeMap<i32, i64>>),
    table: &Table,
    schemas: &Schemas,
) -> Result<Folded> {
    let consumer = consumer(to)?;
    let mut partitions = partitions(&consumer, topic)?;
    if let Some(ends) = ends {
        partitions.iter_mut().for_each(|(partition, (_, end))| *end = ends.get(partition).copied().unwrap_or_default());
    }
    let records: u64 = partitions.values().map(|(first, end)| end.saturating_sub(*first).max(0).unsigned_abs()).sum();
    let a_row = 72 + 16 * table.sums.len() as u64;
    // A row may be changed a thousand times.
    let shares = records.min(expected(table) * 2).saturating_mul(a_row).div_ceil(MOST_BYTES).max(1);
    let (mut folded, mut known) = (Folded::default(), Vec::new());
    for share in 0..shares {
        let mut fold = Fold::new(table, (share, shares));
        read(&consumer, topic, &partitions, |message| {
            let id = message.key().and_then(|key| fold.id(key));
            if fold.refused.is_some() || (message.key().is_some() && id.is_none()) {
                return;
            }
            let headers = message.headers().into_iter().flat_map(|headers| headers.iter());
            let headers = headers.map(|header| (header.key.as_bytes(), header.value));
            let place = if partitions.len() == 1 { Place::Alone } else { Place::Among(message.partition()) };
            fold.apply(id, change(message.payload(), headers, schemas), place);
        })?;
        fold.close(&mut folded, &mut known);
    }
    folded.settle(table, &known);
    Ok(folded)
}

/// What the changes of a topic come to that a connector wrote after it had seen a commit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sent {
    /// Rows that are there by the last of their changes: what of their columns can be read as text, and NULL.
    pub rows: Vec<BTreeMap<String, Option<String>>>,
    /// How many changes have no key.
    pub without_key: u64,
}

/// Reads the changes of a topic that were written, since a moment in ms since 1970, after their connector had seen the commit that ends at
/// a position.
///
/// # Errors
/// A cluster that does not answer.
pub(super) fn sent_since(
    to: &Connection,
    topic: &str,
    (since, seen): (Option<i64>, u64),
    schemas: &Schemas,
) -> Result<Sent> {
    let consumer = consumer(to)?;
    let mut partitions = partitions(&consumer, topic)?;
    if let Some(since) = since.filter(|_| !partitions.is_empty()) {
        let mut times = TopicPartitionList::new();
        let doing = || format!("cannot find a moment in {topic}");
        for partition in partitions.keys() {
            times.add_partition_offset(topic, *partition, Offset::Offset(since)).or_err(Kind::Internal, doing)?;
        }
        let found = consumer.offsets_for_times(times, ANSWER).or_err(Kind::Unavailable, doing)?;
        for element in found.elements() {
            if let Some((first, end)) = partitions.get_mut(&element.partition()) {
                // Where nothing came since then it is the end.
                *first = match element.offset() {
                    Offset::Offset(offset) => offset.clamp(*first, *end),
                    _ => *end,
                };
            }
        }
    }
    let (mut rows, mut sent) = (HashMap::<Vec<u8>, Option<BTreeMap<String, Option<String>>>>::new(), Sent::default());
    read(&consumer, topic, &partitions, |message| {
        let Some(value) = message.payload() else { return };
        let headers = || {
            let headers = message.headers().into_iter().flat_map(|headers| headers.iter());
            headers.map(|header| (header.key.as_bytes(), header.value))
        };
        if seen_before(value, headers(), schemas).is_none_or(|before| before < seen) {
            return;
        }
        match (message.key(), change(Some(value), headers(), schemas)) {
            (Some(key), Change::Row(cells)) => drop(rows.insert(key.to_owned(), Some(texts(cells)))),
            (Some(key), Change::Gone) => drop(rows.insert(key.to_owned(), None)),
            (None, Change::Row(_) | Change::Gone) => sent.without_key += 1,
            _ => {}
        }
    })?;
    sent.rows = rows.into_values().flatten().collect();
    Ok(sent)
}

fn texts(cells: BTreeMap<String, Cell>) -> BTreeMap<String, Option<String>> {
    let text = |(name, cell)| match cell {
        Cell::Text(text) => Some((name, Some(text))),
        Cell::Null => Some((name, None)),
        Cell::Unchanged | Cell::Other => None,
    };
    cells.into_iter().filter_map(text).collect()
}

/// Returns which of these topics have lost records at their beginning.
///
/// # Errors
/// A cluster that does not answer.
pub(super) fn without_beginning(to: &Connection, topics: Vec<String>) -> Result<BTreeSet<String>> {
    let consumer = consumer(to)?;
    let mut late = BTreeSet::new();
    for topic in topics {
        if partitions(&consumer, &topic)?.values().any(|(first, _)| *first > 0) {
            late.insert(topic);
        }
    }
    Ok(late)
}

fn consumer(to: &Connection) -> Result<BaseConsumer> {
    let mut client = to.client();
    client
        .set("group.id", "tidelog-recover")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false");
    client
        .set("auto.offset.reset", "error")
        .set("isolation.level", "read_committed")
        .set("enable.partition.eof", "true");
    client.set("queued.max.messages.kbytes", "16384");
    client.create().or_err(Kind::Config, || "cannot read from the target".to_owned())
}

fn partitions(consumer: &BaseConsumer, topic: &str) -> Result<BTreeMap<i32, (i64, i64)>> {
    let doing = || format!("cannot tell what {topic} holds");
    let metadata = consumer.fetch_metadata(Some(topic), ANSWER).or_err(Kind::Unavailable, doing)?;
    let mut partitions = BTreeMap::new();
    for partition in metadata.topics().iter().flat_map(|topic| topic.partitions()) {
        let marks = consumer.fetch_watermarks(topic, partition.id(), ANSWER).or_err(Kind::Unavailable, doing)?;
        partitions.insert(partition.id(), marks);
    }
    Ok(partitions)
}

fn read(
    consumer: &BaseConsumer,
    topic: &str,
    partitions: &BTreeMap<i32, (i64, i64)>,
    mut see: impl FnMut(&rdkafka::message::BorrowedMessage<'_>),
) -> Result<()> {
    let doing = || format!("cannot read {topic}");
    let mut list = TopicPartitionList::new();
    for (partition, (first, _)) in partitions {
        list.add_partition_offset(topic, *partition, Offset::Offset(*first)).or_err(Kind::Internal, doing)?;
    }
    consumer.assign(&list).or_err(Kind::Internal, doing)?;
    let mut left: BTreeSet<i32> =
        partitions.iter().filter(|(_, (first, end))| first < end).map(|(partition, _)| *partition).collect();
    let mut heard = Instant::now();
    while !left.is_empty() {
        match consumer.poll(Duration::from_millis(200)) {
            Some(Ok(message)) => {
                heard = Instant::now();
                let end = partitions.get(&message.partition()).map_or(0, |(_, end)| *end);
                if message.offset() < end && left.contains(&message.partition()) {
                    see(&message);
                }
                // The last may be a marker of a transaction, which is not told.
                if message.offset() + 1 >= end {
                    left.remove(&message.partition());
                }
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                left.remove(&partition);
            }
            Some(Err(error)) if heard.elapsed() > ANSWER => return Err(error).or_err(Kind::Unavailable, doing),
            None if heard.elapsed() > ANSWER => {
                return Err(Error::new(Kind::Unavailable, doing()).hint("nothing came for a minute: try again"));
            }
            Some(Err(_)) | None => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let sums = ["id", "note"].map(|column| (column.to_owned(), 0)).into();
        Table { key: vec!["id".to_owned()], sums, ..Table::default() }
    }

    fn row(id: &str, note: Option<Cell>) -> Change {
        let cells = [("id".to_owned(), Cell::Text(id.to_owned()))].into_iter();
        Change::Row(cells.chain(note.map(|note| ("note".to_owned(), note))).collect())
    }

    fn text(text: &str) -> Option<Cell> {
        Some(Cell::Text(text.to_owned()))
    }

    fn folded(changes: &[(&str, Change)], shares: u64) -> Folded {
        let (table, mut folded, mut known) = (table(), Folded::default(), Vec::new());
        for share in 0..shares {
            let mut fold = Fold::new(&table, (share, shares));
            for (key, change) in changes {
                match fold.id(key.as_bytes()) {
                    Some(id) => fold.apply(Some(id), change.clone(), Place::Alone),
                    None => assert!(shares > 1, "{key}"),
                }
            }
            fold.close(&mut folded, &mut known);
        }
        folded.settle(&table, &known);
        folded
    }

    #[test]
    fn the_last_change_of_each_key_counts() {
        let seed = hash(b"1", 0);
        let changes = [
            ("1", row("1", text("a"))),
            ("2", row("2", text("b"))),
            ("1", row("1", Some(Cell::Unchanged))),
            ("2", Change::Gone),
            ("3", Change::Nothing),
        ];
        let one = folded(&changes, 1);
        let sums = BTreeMap::from([
            ("id".to_owned(), i128::from(hash(b"1", seed))),
            ("note".to_owned(), i128::from(hash(b"a", seed))),
        ]);
        assert_eq!(one, Folded { rows: 1, sums, refused: None });
        assert_eq!(folded(&changes, 3), one, "read in three shares");
    }

    #[test]
    fn a_value_in_another_row_is_another_one() {
        let swapped =
            |first: &str, second: &str| folded(&[("1", row("1", text(first))), ("2", row("2", text(second)))], 1);
        assert_ne!(swapped("a", "b").sums, swapped("b", "a").sums);
    }

    #[test]
    fn a_column_that_some_row_does_not_have_is_not_compared() {
        let some = folded(&[("1", row("1", text("a"))), ("2", row("2", None))], 1);
        assert_eq!(some.sums.keys().collect::<Vec<_>>(), ["id"]);
        // What was never told cannot be unchanged.
        let never = folded(&[("1", row("1", Some(Cell::Unchanged)))], 1);
        assert_eq!(never.sums.keys().collect::<Vec<_>>(), ["id"]);
        let null = folded(&[("1", row("1", Some(Cell::Null)))], 1);
        assert_eq!(null.sums.get("note"), Some(&0));
    }

    #[test]
    fn what_has_no_order_or_no_key_is_refused() {
        let (table, row) = (table(), row("1", None));
        let mut fold = Fold::new(&table, (0, 1));
        let id = fold.id(b"1");
        fold.apply(id, row.clone(), Place::Alone);
        fold.apply(None, Change::Truncated, Place::Alone);
        assert!(fold.rows.is_empty() && fold.refused.is_none());
        fold.apply(None, Change::Truncated, Place::Among(0));
        assert!(fold.refused.as_ref().expect("refused").contains("truncated"));
        for (id, change) in [(None, row.clone()), (id, Change::Unread)] {
            let mut fold = Fold::new(&table, (0, 1));
            fold.apply(id, change, Place::Alone);
            assert!(fold.refused.is_some());
        }
        // Its row may be the older one or the newer one.
        for first in [row.clone(), Change::Gone] {
            let mut fold = Fold::new(&table, (0, 1));
            fold.apply(id, first, Place::Among(0));
            assert!(fold.refused.is_none());
            fold.apply(id, row.clone(), Place::Among(3));
            assert!(fold.refused.as_ref().expect("refused").contains("several partitions"));
        }
    }

    #[test]
    fn what_comes_to_far_more_than_the_table_has_is_not_kept() {
        let table = table();
        let mut fold = Fold { most: 2, ..Fold::new(&table, (0, 1)) };
        for key in ["1", "2", "3"] {
            let id = fold.id(key.as_bytes());
            fold.apply(id, row(key, None), Place::Alone);
        }
        assert!(fold.refused.is_some());
    }
}
