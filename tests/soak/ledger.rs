//! The truth: what was sent, what the brokers acknowledged and where, and what they have lost for good.
//!
//! A topic name has one *incarnation* after another, each with an id of Kafka's. A record carries its number, by which the
//! archive's records are found here again. Each partition of an incarnation has a log: what is acknowledged at which
//! offset. An unclean election takes records out of it; what retention takes stays in it, below `start`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, Utc};

/// A record by its number.
pub(super) type RecordId = usize;

/// How a transaction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Open,
    Committed,
    /// By its producer, or by the broker after it was left open.
    Aborted,
    /// The commit was asked for, and nobody knows whether it came to be.
    Unknown,
}

/// What was sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    pub(super) incarnation: usize,
    pub(super) partition: i32,
    pub(super) transaction: Option<usize>,
    /// How many unclean elections its incarnation had had.
    pub(super) elections: usize,
    /// Where the broker said that it stands, and when. None: not said, and it may be in the log all the same.
    pub(super) acknowledged: Option<(i64, DateTime<Utc>)>,
}

/// A record that an unclean election took.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lost {
    pub(super) id: RecordId,
    pub(super) offset: i64,
    /// Which election of the incarnation, from 1.
    pub(super) election: usize,
    /// It was archived before.
    pub(super) kept: bool,
}

/// The log of a partition, as it is.
#[derive(Debug, Default)]
pub(super) struct Log {
    pub(super) records: BTreeMap<i64, RecordId>,
    pub(super) lost: Vec<Lost>,
    /// The elections that put another broker's log in the place of the one before, each with the offset from where on.
    pub(super) parted: Vec<(usize, i64)>,
    /// The archive has been seen to reach as far.
    pub(super) kept: i64,
    /// Retention has taken what lies before.
    pub(super) start: i64,
    /// Behind this offset the log may be another one than what is archived there: to be looked at.
    pub(super) doubt: Option<i64>,
}

#[derive(Debug)]
pub(super) struct Incarnation {
    pub(super) topic: String,
    pub(super) topic_id: String,
    /// The topic was deleted.
    pub(super) ended: bool,
    pub(super) elections: usize,
    pub(super) logs: BTreeMap<i32, Log>,
}

#[derive(Debug, Default)]
pub(super) struct Books {
    pub(super) sent: Vec<Sent>,
    pub(super) incarnations: Vec<Incarnation>,
    pub(super) outcomes: Vec<Outcome>,
}

impl Books {
    /// How the transaction of a record ended; one without is committed.
    pub(super) fn outcome(&self, id: RecordId) -> Outcome {
        self.sent[id].transaction.map_or(Outcome::Committed, |transaction| self.outcomes[transaction])
    }

    pub(super) fn log(&mut self, incarnation: usize, partition: i32) -> &mut Log {
        self.incarnations[incarnation].logs.entry(partition).or_default()
    }

    /// Which incarnation has this id of Kafka's.
    pub(super) fn by_topic_id(&self, topic_id: &str) -> Option<usize> {
        self.incarnations.iter().position(|incarnation| incarnation.topic_id == topic_id)
    }

    /// The first record at `from` or behind, before `until`, that must come to be archived or is not known not to.
    pub(super) fn first_wanted(
        &self,
        incarnation: usize,
        partition: i32,
        from: i64,
        until: i64,
    ) -> Option<(i64, RecordId)> {
        let log = self.incarnations[incarnation].logs.get(&partition)?;
        let from = from.max(log.start);
        let mut found = log.records.range(from..until.max(from)).map(|(offset, id)| (*offset, *id));
        found.find(|(_, id)| self.outcome(*id) != Outcome::Aborted)
    }
}

/// The books, shared by all threads.
#[derive(Debug, Default)]
pub(super) struct Ledger(Mutex<Books>);

impl Ledger {
    pub(super) fn books(&self) -> MutexGuard<'_, Books> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A topic was created; gives its incarnation.
    pub(super) fn begin(&self, topic: &str, topic_id: &str) -> usize {
        let mut books = self.books();
        books.incarnations.push(Incarnation {
            topic: topic.to_owned(),
            topic_id: topic_id.to_owned(),
            ended: false,
            elections: 0,
            logs: BTreeMap::new(),
        });
        books.incarnations.len() - 1
    }

    /// A record is about to be sent.
    pub(super) fn send(&self, incarnation: usize, partition: i32, transaction: Option<usize>) -> RecordId {
        let mut books = self.books();
        let elections = books.incarnations[incarnation].elections;
        books.sent.push(Sent { incarnation, partition, transaction, elections, acknowledged: None });
        books.sent.len() - 1
    }

    /// A record was acknowledged.
    pub(super) fn acknowledged(&self, id: RecordId, offset: i64) {
        let mut books = self.books();
        books.sent[id].acknowledged = Some((offset, tidelog::time::now()));
        let Sent { incarnation, partition, .. } = books.sent[id];
        books.log(incarnation, partition).records.insert(offset, id);
    }

    /// A transaction begins.
    pub(super) fn transaction(&self) -> usize {
        let mut books = self.books();
        books.outcomes.push(Outcome::Open);
        books.outcomes.len() - 1
    }

    pub(super) fn outcome(&self, transaction: usize, outcome: Outcome) {
        self.books().outcomes[transaction] = outcome;
    }

    /// The log of a partition begins at `start` now.
    pub(super) fn starts_at(&self, incarnation: usize, partition: i32, start: i64) {
        let mut books = self.books();
        let log = books.log(incarnation, partition);
        log.start = log.start.max(start);
    }

    /// An unclean election is over, and a partition's log holds just `held` (offset, record). Gives how many records are lost.
    pub(super) fn elected(&self, incarnation: usize, partition: i32, held: &BTreeSet<(i64, RecordId)>) -> usize {
        let mut books = self.books();
        let election = books.incarnations[incarnation].elections;
        let log = books.log(incarnation, partition);
        let gone = |offset: &i64, id: &mut RecordId| *offset >= log.start && !held.contains(&(*offset, *id));
        let lost: Vec<(i64, RecordId)> = log.records.extract_if(.., gone).collect();
        let Some((first, _)) = lost.first().copied() else { return 0 };
        let kept = log.kept;
        log.lost.extend(lost.iter().map(|&(offset, id)| Lost { id, offset, election, kept: offset < kept }));
        log.kept = log.kept.min(first);
        log.doubt = Some(log.doubt.map_or(first, |doubt| doubt.min(first)));
        lost.len()
    }

    /// From `offset` on an unclean election put another log in the place of the one before.
    pub(super) fn parted(&self, incarnation: usize, partition: i32, offset: i64) {
        let mut books = self.books();
        let election = books.incarnations[incarnation].elections;
        books.log(incarnation, partition).parted.push((election, offset));
    }
}
