//! Which records belong to transactions that committed at or before a commit L, judged record by record, without I/O.
//!
//! ```text
//!   E = the end of L's commit record                                       what decides
//!   lsn >= E, or sequence[0] >= E            out                            its commit lies behind its record, and behind every commit seen before
//!   lsn < E and the log knows the xid        in, if it committed by E       commits of the log, as far as transactions could be open at E
//!   lsn < E and sequence[0] < G              in                             G: the last commit before E that the connector has seen at all
//!   sequence[0] = G                          in, if the commit at E is L's  else by the time of its commit: uncertain
//!   a snapshot's lsn <= N                    in                             N: where the record of the next commit begins
//! ```
//! `sequence[0] < E` alone does not do. A connector sees no commit of another database, and none of a transaction that changed no
//! published table (PostgreSQL 15 leaves those out: `pgoutput` "skip empty transactions"). If L is such a one, the next transaction has
//! the commit before L in its `sequence[0]`, which is less than E, and it committed after L. So the log decides where it can, and
//! `sequence` is held against it.
//!
//! What does not say where it stands is judged by its neighbours in the partition, for a connector writes in the order of commits: what
//! lies before a record that is in is in, what lies behind one that is out is out. Between the two the time decides, and that is counted.

use std::collections::BTreeMap;
use std::ops::Range;

use super::at::Cut;
use super::event::{Event, Place, Read};
use crate::replay::Kept;

/// What is said of a record before all have been read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    In,
    Out,
    /// In, though it may show more than there was at E.
    Doubtful,
    /// It depends on the last commit that the connector saw before E.
    After {
        /// None of the first transaction that a connector has read from a new slot.
        sequence: Option<u64>,
        in_time: bool,
    },
    /// It depends on its neighbours.
    Between {
        in_time: bool,
    },
    /// A heartbeat is never missed.
    ByTime {
        in_time: bool,
    },
    /// It depends on the end of its transaction, which is the next record.
    WithNext {
        in_time: bool,
    },
}

impl Said {
    /// The same, or that it is in if that is decided by now: the last commit that a connector has seen before E only rises.
    fn settled(self, connector: Option<&Connector>) -> Self {
        match self {
            Self::After { sequence: Some(sequence), .. }
                if connector.is_some_and(|one| one.has_seen_behind(sequence)) =>
            {
                Self::In
            }
            said => said,
        }
    }
}

/// Neighbouring records of which the same is said.
#[derive(Debug, Clone)]
struct Stretch {
    offsets: Range<i64>,
    records: u64,
    said: Said,
}

/// How many records of a partition are in, out, and of those how many are not certain.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Records that belong to the cut.
    pub included: u64,
    /// Records behind it.
    pub excluded: u64,
    /// Those of both that were judged by time alone.
    pub uncertain: u64,
}

impl Counts {
    /// Adds others.
    pub fn add(&mut self, other: Self) {
        self.included += other.included;
        self.excluded += other.excluded;
        self.uncertain += other.uncertain;
    }
}

/// What is known of one connector.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Connector {
    /// The last commit before E that it has seen.
    pub last_seen: Option<u64>,
    /// Whether it has seen a commit that ends at E.
    pub saw_end: bool,
    /// The least timestamp of a record of it that shows that it has read beyond L, in ms since 1970.
    pub passed_at: Option<i64>,
    /// The least timestamp of a row of a snapshot behind L, in ms since 1970. It does not show what was streamed before.
    pub snapshot_at: Option<i64>,
    /// Events of transactions that the log did not know as committed, though a later commit says otherwise, or the other way round.
    pub contradictions: u64,
    /// The greatest `sequence[0]` of events that the log says are out.
    last_out: Option<u64>,
}

impl Connector {
    /// Whether it has seen a commit before E that is later than this one.
    fn has_seen_behind(&self, commit: u64) -> bool {
        self.last_seen.is_some_and(|seen| commit < seen)
    }
}

/// Judges the records of one partition, which come in the order of their offsets.
#[derive(Debug, Clone, Default)]
pub struct Partition {
    stretches: Vec<Stretch>,
    /// The key of the last record, and what was said of it.
    last_key: Vec<u8>,
    last_said: Option<Said>,
    /// The connector of its records.
    connector: String,
    /// The offset of the first record in it that was streamed and lies beyond L.
    pub first_beyond: Option<i64>,
    has_heartbeats: bool,
    has_others: bool,
}

impl Partition {
    /// One of this topic, the name of which begins with the connector's `topic.prefix` as long as no record says otherwise.
    pub fn of_topic(topic: &str) -> Self {
        let prefix = topic.strip_suffix(".transaction").or_else(|| topic.split('.').next());
        Self { connector: prefix.unwrap_or(topic).to_owned(), ..Self::default() }
    }

    /// The connector of its records.
    pub fn connector(&self) -> &str {
        &self.connector
    }

    /// Whether it has nothing but heartbeats: its topic, `__debezium-heartbeat.` and the prefix, is of no connector of that name.
    pub fn is_of_heartbeats(&self) -> bool {
        self.has_heartbeats && !self.has_others
    }

    fn push(&mut self, stretch: Stretch) {
        match self.stretches.last_mut().filter(|last| last.said == stretch.said) {
            Some(last) => {
                last.offsets.end = stretch.offsets.end;
                last.records += stretch.records;
            }
            None => self.stretches.push(stretch),
        }
    }

    /// Says of the last stretch that it is in, once its connector has seen a later commit before E: each transaction would be a stretch
    /// of its own otherwise.
    fn settle(&mut self, connector: Option<&Connector>) {
        if let Some(last) = self.stretches.pop() {
            self.push(Stretch { said: last.said.settled(connector), ..last });
        }
    }
}

/// Judges the records of all partitions.
#[derive(Debug)]
pub struct Judge {
    cut: Cut,
    /// The connectors by their `topic.prefix`.
    pub connectors: BTreeMap<String, Connector>,
}

/// A record as it is judged.
#[derive(Debug, Clone, Copy)]
pub struct Judged<'a> {
    /// Its offset.
    pub offset: i64,
    /// Its timestamp, in ms since 1970.
    pub timestamp: i64,
    /// Its key.
    pub key: Option<&'a [u8]>,
}

impl Judge {
    /// Judges by `cut`.
    pub fn new(cut: Cut) -> Self {
        Self { cut, connectors: BTreeMap::new() }
    }

    /// Takes a record of a partition in.
    pub fn see(&mut self, partition: &mut Partition, record: Judged<'_>, read: &Read) {
        let other = read.connector.as_ref().filter(|name| **name != partition.connector);
        if let Some(name) = other {
            // What came before is of the connector that it was said to be of then.
            partition.settle(self.connectors.get(&partition.connector));
            partition.connector.clone_from(name);
        }
        let said = match (&read.event, partition.last_said) {
            // A tombstone follows its record.
            (Event::Tombstone, Some(said)) if record.key == Some(&partition.last_key[..]) => said,
            _ => self.say(&read.event, record, &partition.connector),
        };
        let connector = self.connectors.get(&partition.connector);
        if other.is_none() {
            partition.settle(connector);
        }
        let said = said.settled(connector);
        if said == Said::Out && read.event.was_streamed() {
            partition.first_beyond.get_or_insert(record.offset);
        }
        partition.has_heartbeats |= read.event == Event::Heartbeat;
        partition.has_others |= !matches!(read.event, Event::Heartbeat | Event::Tombstone);
        let offsets = record.offset..record.offset.saturating_add(1);
        partition.push(Stretch { offsets, records: 1, said });
        partition.last_key.clear();
        partition.last_key.extend_from_slice(record.key.unwrap_or_default());
        partition.last_said = record.key.map(|_| said);
    }

    fn say(&mut self, event: &Event, record: Judged<'_>, connector: &str) -> Said {
        let in_time = self.in_time(None, record.timestamp);
        match event {
            Event::Streamed(place) => self.streamed(*place, record.timestamp, connector),
            Event::Incremental(place) => self.incremental(*place, record.timestamp, connector),
            Event::Snapshot { lsn, at } => self.snapshot((*lsn, *at), record.timestamp, connector),
            Event::End { lsn: Some(lsn), .. } => {
                if *lsn >= self.cut.end {
                    self.beyond(connector, record.timestamp);
                }
                if *lsn <= self.cut.end { Said::In } else { Said::Out }
            }
            Event::Begin { xid, lsn } => match &self.cut.committed {
                _ if lsn.is_some_and(|lsn| lsn >= self.cut.end) => Said::Out,
                Some(committed) if committed.has(*xid, *lsn) => Said::In,
                Some(_) => Said::Out,
                None => Said::WithNext { in_time },
            },
            Event::End { xid, lsn: None } => match &self.cut.committed {
                Some(committed) if committed.has(*xid, None) => Said::In,
                Some(_) => Said::Out,
                None => Said::Between { in_time },
            },
            Event::Heartbeat => Said::ByTime { in_time },
            Event::Tombstone => Said::Between { in_time },
            Event::Unplaced { at } => Said::Between { in_time: self.in_time(*at, record.timestamp) },
        }
    }

    /// A row of a snapshot shows what was committed by its position, and there may be nothing between L and the next commit.
    fn snapshot(&mut self, (lsn, at): (u64, Option<i64>), timestamp: i64, name: &str) -> Said {
        let is_behind = lsn > self.cut.end;
        if lsn > self.cut.next_lsn.unwrap_or(u64::MAX).max(self.cut.end) {
            let first = &mut self.connector(name).snapshot_at;
            *first = Some(first.map_or(timestamp, |before| before.min(timestamp)));
            return Said::Out;
        }
        let at = at.or_else(|| is_behind.then(|| timestamp.saturating_mul(1_000)));
        match (at, self.cut.next_at) {
            // A snapshot that goes on from a slot that was there names the slot's position, which may be older than its rows. And where
            // no later commit is archived, one may have come behind the end of what is.
            (Some(at), Some(next)) if at >= next => Said::Doubtful,
            (_, None) if is_behind => Said::Doubtful,
            _ => Said::In,
        }
    }

    /// A row of an incremental snapshot was read before the record at its position was written.
    fn incremental(&mut self, place: Place, timestamp: i64, name: &str) -> Said {
        let end = self.cut.end;
        let shows_just_end = place.lsn >= end && self.cut.next_lsn.is_some_and(|next| place.lsn <= next);
        if shows_just_end && place.after.is_none_or(|after| after <= end) {
            self.has_seen(place.after, name);
            self.beyond(name, timestamp);
            return Said::In;
        }
        self.streamed(Place { xid: None, ..place }, timestamp, name)
    }

    /// Notes the last commit that a connector had seen.
    fn has_seen(&mut self, commit: Option<u64>, name: &str) {
        let (Some(commit), end) = (commit, self.cut.end) else { return };
        let connector = self.connector(name);
        connector.saw_end |= commit == end;
        if commit < end {
            connector.last_seen = connector.last_seen.max(Some(commit));
        }
    }

    /// Whether the log says that the transaction of a change event had committed by E.
    fn known(&self, xid: Option<u32>, lsn: u64) -> Option<bool> {
        let committed = self.cut.committed.as_ref()?;
        if committed.is_before(lsn) {
            return Some(true);
        }
        xid.map(|xid| committed.has(xid, Some(lsn)))
    }

    fn streamed(&mut self, place: Place, timestamp: i64, name: &str) -> Said {
        let Place { after, lsn, xid, at, may_be_snapshot } = place;
        let (end, in_time) = (self.cut.end, self.in_time(at, timestamp));
        self.has_seen(after, name);
        let known = self.known(xid, lsn);
        // Of a row of a snapshot, xid and position are the snapshot's: the log knows no commit of it, and it proves nothing.
        if may_be_snapshot && (lsn >= end || known != Some(true)) {
            return self.perhaps_snapshot(lsn, in_time);
        }
        if lsn >= end || after.is_some_and(|after| after >= end) {
            self.beyond(name, timestamp);
            // Its record lies before E, and so would its commit, says the log.
            if lsn < end && known == Some(true) {
                self.connector(name).contradictions += 1;
            }
            return Said::Out;
        }
        match (known, after) {
            (Some(true), _) => Said::In,
            (Some(false), after) => {
                let connector = self.connector(name);
                connector.last_out = connector.last_out.max(after);
                self.beyond(name, timestamp);
                Said::Out
            }
            (None, sequence) => Said::After { sequence, in_time },
        }
    }

    /// What may be a row of a snapshot as well as a change: out where both are, and by time where one of them is in.
    fn perhaps_snapshot(&self, lsn: u64, in_time: bool) -> Said {
        let last = self.cut.next_lsn.unwrap_or(u64::MAX).max(self.cut.end);
        if lsn > last { Said::Out } else { Said::After { sequence: None, in_time } }
    }

    fn connector(&mut self, name: &str) -> &mut Connector {
        self.connectors.entry(name.to_owned()).or_default()
    }

    fn beyond(&mut self, name: &str, timestamp: i64) {
        let passed = &mut self.connector(name).passed_at;
        *passed = Some(passed.map_or(timestamp, |before| before.min(timestamp)));
    }

    /// Whether something lies at or before L by its time: that of its commit, in microseconds, or else its timestamp, in ms.
    fn in_time(&self, at: Option<i64>, timestamp: i64) -> bool {
        match (at, self.cut.next_at) {
            (Some(at), _) => at <= self.cut.at,
            (None, Some(next)) => timestamp < next.div_euclid(1_000),
            (None, None) => true,
        }
    }

    /// How often the log and `sequence` disagree about a connector's events. Known once all records have been seen.
    pub fn contradictions(&self) -> u64 {
        let of = |connector: &Connector| {
            let is_late = connector.last_out.zip(connector.last_seen).is_some_and(|(out, seen)| out < seen);
            connector.contradictions + u64::from(is_late)
        };
        self.connectors.values().map(of).sum()
    }

    /// Says of the records of a partition which are in. All partitions have to have been seen.
    pub fn decide(&self, partition: &Partition) -> (Kept, Counts) {
        let connector = self.connectors.get(&partition.connector);
        let decided: Vec<Decided> =
            partition.stretches.iter().map(|stretch| Decided::first(stretch.said, connector)).collect();
        let next = next_certain(&decided);
        let (mut kept, mut counts, mut after) = (Kept::default(), Counts::default(), i64::MIN);
        let mut before = None;
        for (index, stretch) in partition.stretches.iter().enumerate() {
            let (is_in, is_certain) = decided[index].settled(before, decided.get(index + 1), next[index]);
            if let Decided::Certain(certain) = decided[index] {
                before = Some(certain);
            }
            let records = stretch.records;
            if is_in {
                kept.add(after, stretch.offsets.start);
                kept.add(stretch.offsets.start + 1, stretch.offsets.end - 1);
            }
            counts.add(Counts {
                included: if is_in { records } else { 0 },
                excluded: if is_in { 0 } else { records },
                uncertain: if is_certain { 0 } else { records },
            });
            after = stretch.offsets.end;
        }
        (kept, counts)
    }
}

/// What is certain next behind each of them.
fn next_certain(decided: &[Decided]) -> Vec<Option<bool>> {
    let mut next = vec![None; decided.len()];
    let mut last = None;
    for (index, one) in decided.iter().enumerate().rev() {
        next[index] = last;
        if let Decided::Certain(is_in) = one {
            last = Some(*is_in);
        }
    }
    next
}

/// What is said of a stretch once the connectors are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Decided {
    Certain(bool),
    Uncertain(bool),
    Certainly { in_time: bool },
    Between { in_time: bool },
    WithNext { in_time: bool },
}

impl Decided {
    fn first(said: Said, connector: Option<&Connector>) -> Self {
        match said {
            Said::In => Self::Certain(true),
            Said::Out => Self::Certain(false),
            Said::Doubtful => Self::Uncertain(true),
            Said::ByTime { in_time } => Self::Certainly { in_time },
            Said::Between { in_time } => Self::Between { in_time },
            Said::WithNext { in_time } => Self::WithNext { in_time },
            Said::After { sequence, in_time } => match connector {
                Some(connector) if sequence.is_some_and(|commit| connector.has_seen_behind(commit)) => {
                    Self::Certain(true)
                }
                // The transaction behind the last commit that was seen before E: L's own, if a commit at E was seen.
                Some(connector) if sequence.is_some() && connector.saw_end => Self::Certain(true),
                _ => Self::Uncertain(in_time),
            },
        }
    }

    /// Whether it is in, and whether that is certain, by what was last certain before it, by what follows, and by what is certain next.
    fn settled(self, before: Option<bool>, follows: Option<&Self>, next: Option<bool>) -> (bool, bool) {
        match self {
            Self::Certain(is_in) => (is_in, true),
            Self::Uncertain(is_in) => (is_in, false),
            Self::Certainly { in_time } => (in_time, true),
            Self::WithNext { in_time } => match follows {
                Some(Self::Certain(is_in)) => (*is_in, true),
                _ => (in_time, false),
            },
            Self::Between { in_time } => match (before, next) {
                (Some(true) | None, Some(true)) => (true, true),
                (Some(false), Some(false) | None) => (false, true),
                _ => (in_time, false),
            },
        }
    }
}

#[cfg(test)]
mod tests;
