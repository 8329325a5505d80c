//! Which offset each record of a replay has in the target: pure, without I/O.
//!
//! ```text
//! source   5 6 7   9 10 │ 12 13          runs: records that lie side by side in the target, with what the brokers said
//! target   0 1 2   3  4 │  7  8          where each of them is (delivery reports): (5..=10 → 0, 5 records), (12..=13 → 7, 2)
//!                       └ the transaction's marker, and what others wrote
//! ```
//! A run ends where the next record is not the next offset of the target. So there is one a transaction and partition, and
//! more where others write between. Offsets that have no record in the source (markers, compaction) do not end it: a run says how many
//! records it has, and the archive which. The records of a partition are counted from the replay's beginning, so that a hole in
//! the map is seen.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::stream::FORMAT_VERSION;

/// A target topic and partition.
pub type At = (String, i32);

/// The offset of a record of which the brokers did not tell it: they had it already when it came a second time (librdkafka's
/// DUPLICATE_SEQUENCE_NUMBER).
pub const UNTOLD: i64 = -1;

/// Records of one generation and partition that lie side by side in the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Row", into = "Row")]
pub struct SentRun {
    /// The generation of the source topic.
    pub generation: u32,
    /// The source offset of the first record.
    pub first: i64,
    /// The source offset of the last record.
    pub last: i64,
    /// The target offset of the first record, or [`UNTOLD`].
    pub target: i64,
    /// How many records.
    pub records: u64,
}

type Row = (u32, i64, i64, i64, u64);

impl From<Row> for SentRun {
    fn from((generation, first, last, target, records): Row) -> Self {
        Self { generation, first, last, target, records }
    }
}

impl From<SentRun> for Row {
    fn from(run: SentRun) -> Self {
        (run.generation, run.first, run.last, run.target, run.records)
    }
}

impl SentRun {
    /// A run of one record.
    pub fn of(generation: u32, source: i64, target: i64) -> Self {
        Self { generation, first: source, last: source, target, records: 1 }
    }

    /// Takes a record in, if it is the next one.
    pub fn takes(&mut self, source: i64, target: i64) -> bool {
        let next = if self.target == UNTOLD { UNTOLD } else { self.target.saturating_add_unsigned(self.records) };
        let fits = source > self.last && target == next;
        if fits {
            self.last = source;
            self.records += 1;
        }
        fits
    }

    /// Whether each offset from the first to the last is a record.
    pub fn is_dense(&self) -> bool {
        self.last.checked_sub(self.first).and_then(|span| u64::try_from(span).ok()).map(|span| span + 1)
            == Some(self.records)
    }

    /// The target offset of its record after `before` others; none where the brokers did not tell it.
    pub fn place(&self, before: u64) -> Option<i64> {
        (self.target != UNTOLD && before < self.records).then(|| self.target.saturating_add_unsigned(before))
    }

    /// The target offset after its last record.
    pub fn end(&self) -> Option<i64> {
        (self.target != UNTOLD).then(|| self.target.saturating_add_unsigned(self.records))
    }
}

/// The last runs of a partition, as far as they are not kept yet, and how many records it has had.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tail {
    /// Records from the replay's beginning to the mark.
    pub sent: u64,
    /// The last of them.
    pub runs: Vec<SentRun>,
}

impl Tail {
    /// How many records come before its runs.
    pub fn before(&self) -> u64 {
        self.sent.saturating_sub(self.runs.iter().map(|run| run.records).sum())
    }

    /// Takes in what was sent next.
    pub fn extend(&mut self, runs: Vec<SentRun>) {
        self.sent = runs.iter().fold(self.sent, |sent, run| sent.saturating_add(run.records));
        self.runs.extend(runs);
    }

    /// Drops the runs that lie before the record `kept`.
    pub fn forget(&mut self, kept: u64) {
        let mut end = self.before();
        let gone = self.runs.iter().take_while(|run| {
            end = end.saturating_add(run.records);
            end <= kept
        });
        let gone = gone.count();
        self.runs.drain(..gone);
    }
}

/// What a mark says of the map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// The runs themselves.
    Here(Tail),
    /// How many records, and under which name the runs are kept.
    Kept(u64, String),
}

/// A text of a mark's metadata; [`read_note`] reads it.
pub fn write_note(note: &Note) -> String {
    match note {
        Note::Kept(sent, token) => format!("{sent};@{token}"),
        Note::Here(tail) => {
            let mut text = format!("{};", tail.sent);
            for (number, SentRun { generation, first, last, target, records }) in tail.runs.iter().enumerate() {
                let comma = if number == 0 { "" } else { "," };
                text.push_str(&format!("{comma}{generation}.{first}.{}.{target}.{records}", last - first));
            }
            text
        }
    }
}

/// Reads what [`write_note`] wrote.
pub fn read_note(text: &str) -> Option<Note> {
    let (sent, runs) = text.split_once(';')?;
    let sent = sent.parse().ok()?;
    if let Some(token) = runs.strip_prefix('@') {
        return Some(Note::Kept(sent, token.to_owned()));
    }
    let run = |text: &str| {
        let mut numbers = text.split('.');
        let mut number = || numbers.next()?.parse::<i64>().ok();
        let (generation, first, span, target, records) = (number()?, number()?, number()?, number()?, number()?);
        let generation = u32::try_from(generation).ok()?;
        Some(SentRun {
            generation,
            first,
            last: first.checked_add(span)?,
            target,
            records: u64::try_from(records).ok()?,
        })
    };
    let runs = runs.split(',').filter(|run| !run.is_empty()).map(run).collect::<Option<_>>()?;
    Some(Note::Here(Tail { sent, runs }))
}

/// A piece of the map as it is kept beside the archive.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// The version of the format.
    pub format: u32,
    /// The replay's id.
    pub replay: String,
    /// By target partition.
    pub partitions: Vec<PieceOf>,
}

/// What a piece of the map has of a target partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PieceOf {
    /// The target topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// How many records of the replay come before in the partition.
    pub before: u64,
    /// The runs: generation, first and last source offset, first target offset, records.
    pub runs: Vec<SentRun>,
}

impl Piece {
    /// What `tails` hold.
    pub fn of<'a>(replay: &str, tails: impl IntoIterator<Item = (&'a At, &'a Tail)>) -> Self {
        let one = |((topic, partition), tail): (&At, &Tail)| PieceOf {
            topic: topic.clone(),
            partition: *partition,
            before: tail.before(),
            runs: tail.runs.clone(),
        };
        let partitions = tails.into_iter().filter(|(_, tail)| !tail.runs.is_empty()).map(one).collect();
        Self { format: FORMAT_VERSION, replay: replay.to_owned(), partitions }
    }
}

/// Where a source record went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// It is in this run, after the run's first record.
    Within(SentRun),
    /// The target offset is known.
    Known(i64),
    /// The map does not say.
    Unknown,
}

/// What is looked for in a map, and what was found until now. Pieces go in one after the other, so a map of any size can be asked.
#[derive(Debug, Default)]
pub struct Lookup {
    partitions: BTreeMap<At, Walk>,
}

/// A partition's way through its runs.
#[derive(Debug, Default)]
struct Walk {
    wanted: BTreeMap<(u32, i64), Option<SentRun>>,
    last: Option<SentRun>,
    /// How many records were passed.
    passed: u64,
    /// Records are missing in between.
    hole: bool,
}

impl Lookup {
    /// Asks for the record of a generation at a source offset, which is known to have been sent.
    pub fn want(&mut self, at: &At, generation: u32, offset: i64) {
        self.partitions.entry(at.clone()).or_default().wanted.insert((generation, offset), None);
    }

    /// Asks for the end of what was sent to a partition, which is known of one that had nothing, too.
    pub fn want_end(&mut self, at: &At) {
        self.partitions.entry(at.clone()).or_default();
    }

    /// Takes in the next piece.
    pub fn add(&mut self, piece: &Piece) {
        for part in &piece.partitions {
            let at = (part.topic.clone(), part.partition);
            self.partitions.entry(at).or_default().add(part.before, &part.runs);
        }
    }

    /// How many records the map has; none where some are missing in between.
    pub fn records(&self) -> Option<u64> {
        let walks = || self.partitions.values();
        (!walks().any(|walk| walk.hole)).then(|| walks().map(|walk| walk.passed).sum())
    }

    /// Where a record is that was asked for.
    pub fn place(&self, at: &At, generation: u32, offset: i64) -> Place {
        let Some(walk) = self.partitions.get(at).filter(|walk| !walk.hole) else { return Place::Unknown };
        let Some(run) = walk.wanted.get(&(generation, offset)).copied().flatten() else { return Place::Unknown };
        if run.generation != generation || offset < run.first {
            return Place::Unknown;
        }
        let before = if run.is_dense() { u64::try_from(offset - run.first).ok() } else { None };
        let before = before.or((offset == run.first).then_some(0));
        match before {
            None if run.target == UNTOLD => Place::Unknown,
            None => Place::Within(run),
            Some(before) => run.place(before).map_or(Place::Unknown, Place::Known),
        }
    }

    /// The target offset after the last record of a partition, and how many it has had; none where the map does not say, and
    /// `Some((None, 0))` where it had none.
    pub fn end(&self, at: &At) -> Option<(Option<i64>, u64)> {
        let walk = self.partitions.get(at).filter(|walk| !walk.hole)?;
        match walk.last {
            None => Some((None, 0)),
            Some(run) => run.end().map(|end| (Some(end), walk.passed)),
        }
    }
}

impl Walk {
    fn add(&mut self, before: u64, runs: &[SentRun]) {
        let mut before = before;
        for run in runs {
            let end = before.saturating_add(run.records);
            // What is kept twice is the same.
            if end > self.passed {
                self.hole |= before != self.passed;
                self.take(*run);
                self.passed = end;
            }
            before = end;
        }
    }

    fn take(&mut self, run: SentRun) {
        let from = self.last.map_or((0, i64::MIN), |last| (last.generation, last.last.saturating_add(1)));
        let to = (run.generation, run.last);
        if from <= to {
            self.wanted.range_mut(from..=to).for_each(|(_, found)| *found = Some(run));
        }
        self.last = Some(run);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Records with their source offsets and where they went, as runs make them.
    fn runs_of(records: &[(u32, i64, i64)]) -> Vec<SentRun> {
        let mut runs: Vec<SentRun> = Vec::new();
        for &(generation, source, target) in records {
            let fits = runs.last_mut().is_some_and(|run| run.generation == generation && run.takes(source, target));
            if !fits {
                runs.push(SentRun::of(generation, source, target));
            }
        }
        runs
    }

    /// Steps of the source, of the target and whether a new transaction, piece or generation begins.
    fn steps() -> impl Strategy<Value = Vec<(i64, i64, bool, bool)>> {
        let step = (
            prop_oneof![4 => Just(1_i64), 1 => 2..6_i64],
            prop_oneof![5 => Just(1_i64), 1 => 2..5_i64],
            prop::bool::weighted(0.2),
            prop::bool::weighted(0.05),
        );
        prop::collection::vec(step, 1..80)
    }

    proptest! {
        #[test]
        fn every_record_is_found_where_it_went_whatever_was_kept_twice(steps in steps(), again in any::<prop::sample::Index>()) {
            let at = ("t".to_owned(), 0);
            let (mut source, mut target, mut generation) = (-1, -1, 0);
            let mut records = Vec::new();
            let mut pieces: Vec<Vec<(u32, i64, i64)>> = vec![Vec::new()];
            for (over, past, piece, new) in steps {
                if new { generation += 1; source = -1; }
                (source, target) = (source + over, target + past);
                if piece { pieces.push(Vec::new()); }
                let record = (generation, source, target);
                records.push(record);
                pieces.last_mut().expect("one").push(record);
            }
            let mut before = 0;
            let mut kept = Vec::new();
            for records in &pieces {
                let tail = Tail { sent: before + records.len() as u64, runs: runs_of(records) };
                before = tail.sent;
                let note = Note::Here(tail.clone());
                prop_assert_eq!(read_note(&write_note(&note)), Some(note));
                kept.push(Piece::of("r", [(&at, &tail)]));
            }
            let mut lookup = Lookup::default();
            records.iter().for_each(|&(generation, source, _)| lookup.want(&at, generation, source));
            let twice = again.index(kept.len());
            for (number, piece) in kept.iter().enumerate() {
                lookup.add(piece);
                if number >= twice { lookup.add(&kept[twice]); }
            }
            for &(generation, source, target) in &records {
                match lookup.place(&at, generation, source) {
                    Place::Known(found) => prop_assert_eq!(found, target),
                    Place::Within(run) => {
                        let inside = |one: &&(u32, i64, i64)| one.0 == generation && one.1 >= run.first && one.1 < source;
                        let before = records.iter().filter(inside).count() as u64;
                        prop_assert_eq!(run.place(before), Some(target));
                    }
                    Place::Unknown => prop_assert!(false, "{} is known", source),
                }
            }
            prop_assert_eq!(lookup.end(&at), Some((Some(target + 1), records.len() as u64)));
            // Without one piece in the middle nothing is told.
            if kept.len() > 2 && kept.iter().all(|piece| !piece.partitions.is_empty()) {
                let mut lookup = Lookup::default();
                lookup.want_end(&at);
                kept.iter().enumerate().filter(|(number, _)| *number != 1).for_each(|(_, piece)| lookup.add(piece));
                prop_assert_eq!(lookup.end(&at), None);
            }
        }

        #[test]
        fn no_text_makes_a_reader_panic(text in "[0-9;.,@a-]{0,40}") {
            read_note(&text);
        }
    }

    #[test]
    fn what_is_kept_is_forgotten_and_the_count_goes_on() {
        let mut tail = Tail::default();
        tail.extend(vec![SentRun::of(0, 5, 0), SentRun { records: 3, ..SentRun::of(0, 7, 4) }]);
        assert_eq!((tail.sent, tail.before()), (4, 0));
        tail.forget(1);
        assert_eq!((tail.sent, tail.before(), tail.runs.len()), (4, 1, 1));
        tail.forget(3);
        assert_eq!(tail.runs.len(), 1, "part of a run is kept with the rest");
        tail.forget(4);
        assert_eq!((tail.before(), tail.runs.len()), (4, 0));
    }

    #[test]
    fn what_the_brokers_did_not_tell_is_not_told() {
        let at = ("t".to_owned(), 0);
        let mut run = SentRun::of(0, 5, UNTOLD);
        assert!(run.takes(6, UNTOLD) && !run.takes(7, 9));
        let mut lookup = Lookup::default();
        lookup.want(&at, 0, 5);
        lookup.want(&at, 0, 6);
        lookup.add(&Piece::of("r", [(&at, &Tail { sent: 2, runs: vec![run] })]));
        assert_eq!((lookup.place(&at, 0, 5), lookup.place(&at, 0, 6)), (Place::Unknown, Place::Unknown));
        assert_eq!(lookup.end(&at), None);
    }
}
