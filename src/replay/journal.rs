//! What a replay writes down beside the archive: what it is, how far it has come, that it is finished.
//!
//! ```text
//! replays/<id>/topics.json     once topics were created: which, how they are set, and what is left to do in the end
//! replays/<id>/plan.json       put-if-absent, before the first record: generations, offsets, the target's topic ids
//! replays/<id>/progress.json   over and over, some seconds late
//! replays/<id>/finished.json   put-if-absent, after the last transaction
//! replays/<id>/map/…           which offset each record has in the target, where that is asked for (see `offset_map`)
//! replays/<id>/groups.json     which positions of consumer groups it sets, before it does
//! ```
//! The archive goes on growing while a replay runs, and may even hold what the replay itself sends. So the same id means
//! what it meant when it was begun: [`Begun`] names every generation of a topic and where each partition ends. What decides how
//! far it has come is the target's group, committed with the records. [`Reached`] is for the day on which that group is
//! gone; [`Finished`] for the day after the replay.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use object_store::path::Path;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::chosen::{Chosen, Kept};
use super::matching::PlannedPartition;
use super::offset_map::At;
use super::plan::{Mark, Marks, Part, Plan};
use super::select::Source;
use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::store::{Created, Store, layout};
use crate::stream::{FORMAT_VERSION, TopicGeneration, lean, sha256};

/// What a replay was begun as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begun {
    /// The version of the format.
    pub format: u32,
    /// The replay's id.
    pub replay: String,
    /// When it was begun.
    pub at: DateTime<Utc>,
    /// A digest of the options that say which topics and partitions go where.
    pub selection: String,
    /// The replay that it goes on after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// The range of record timestamps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamps: Option<Timestamps>,
    /// Where it goes.
    pub target: BegunTarget,
    /// What is sent.
    pub sources: Vec<Pinned>,
    /// Up to which offset every partition that the command means is sent once this is finished, by stream: where a replay
    /// `--after` this one goes on. Only of replays without a range of timestamps.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub through: BTreeMap<String, BTreeMap<i32, i64>>,
    /// Streams that the command means and that could not be read: nothing of their topics is sent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<String>,
    /// Whether it is kept which offset each record gets in the target.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub maps: bool,
}

/// A range of record timestamps in ms since 1970, `from <= timestamp < to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timestamps {
    /// The first; none where the archive's beginning is meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<i64>,
    /// The first that is not meant.
    pub to: i64,
}

/// The target as it was when the replay was begun.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BegunTarget {
    /// The cluster's own id; none where it has none.
    pub cluster_id: Option<String>,
    /// The topics that it sends to.
    pub topics: Vec<BegunTopic>,
}

/// A target topic as it was when the replay was begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BegunTopic {
    /// Its name.
    pub topic: String,
    /// Its id; none where the brokers have none.
    pub topic_id: Option<String>,
    /// How many partitions it had.
    pub partitions: i32,
    /// Where each partition ended before the first record was sent.
    pub ends: BTreeMap<i32, i64>,
}

/// One generation of a topic, and what of it is sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pinned {
    /// The stream, as [`TopicGeneration`] is written.
    pub stream: String,
    /// The topic that it is sent to.
    pub target: String,
    /// The offsets of each partition; of those with timestamps outside of the range nothing is sent.
    pub partitions: Vec<PinnedRange>,
    /// Which of them are sent, where not all are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chosen: Option<Vec<PinnedRange>>,
}

/// Offsets `[start, end)` of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinnedRange {
    /// The partition.
    pub partition: i32,
    /// The first offset.
    pub start: i64,
    /// The offset after the last.
    pub end: i64,
}

/// What becomes of the settings of a topic by name; those without a value are taken back.
pub type Changes = BTreeMap<String, Option<String>>;

/// When a topic that a replay creates gets those settings of the archive that could cost a record.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Settings {
    /// When the user gives them.
    #[default]
    Safe,
    /// At the end of the replay.
    Archived,
}

/// The topics that a replay has created.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// The version of the format.
    pub format: u32,
    /// The replay's id.
    pub replay: String,
    /// When they get what is left to do.
    pub settings: Settings,
    /// The topics.
    pub topics: Vec<MadeTopic>,
}

/// A topic that a replay has created.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MadeTopic {
    /// Its name.
    pub topic: String,
    /// Its id; none where the brokers have none. Another topic of that name is not its business.
    pub topic_id: Option<String>,
    /// What it is created with.
    pub created: BTreeMap<String, String>,
    /// What is left to do once the records may go.
    pub afterwards: Changes,
    /// Whether all of that was done. It is done once: what somebody sets later stays.
    #[serde(default)]
    pub settled: bool,
}

/// How far a replay had come at a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reached {
    /// The version of the format.
    pub format: u32,
    /// The replay's id.
    pub replay: String,
    /// When.
    pub at: DateTime<Utc>,
    /// By target partition.
    pub partitions: Vec<ReachedPartition>,
}

/// How far a target partition had come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReachedPartition {
    /// The target topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// The generation of the source topic.
    pub generation: u32,
    /// The next source offset.
    pub offset: i64,
    /// Where the target partition ended after what was sent until then; nothing of the replay lies before that is not
    /// counted, and nothing behind is. None where the target did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_end: Option<i64>,
    /// How many records the target partition has had, where the map of offsets is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub records: Option<u64>,
}

/// That a replay has sent everything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finished {
    /// The version of the format.
    pub format: u32,
    /// The replay's id.
    pub replay: String,
    /// When its last transaction was committed.
    pub at: DateTime<Utc>,
    /// How many records the map of offsets has, where it is kept and whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mapped: Option<u64>,
}

/// What is written down of one replay.
#[derive(Debug, Clone, Default)]
pub struct Journal {
    /// The topics that it has created, if there are any.
    pub made: Option<Made>,
    /// What it was begun as; none if it never was.
    pub begun: Option<Begun>,
    /// How far it had come.
    pub reached: Option<Reached>,
    /// Whether it is finished.
    pub finished: Option<Finished>,
}

impl Journal {
    /// What is written down of the replay `id`.
    pub async fn load(store: &Store, id: &str) -> Result<Self> {
        let made = read(store, &layout::replay_topics(id)).await?;
        let begun: Option<Begun> = read(store, &layout::replay_plan(id)).await?;
        if begun.is_none() {
            return Ok(Self { made, ..Self::default() });
        }
        let reached = read(store, &layout::replay_progress(id)).await?;
        let finished = read(store, &layout::replay_finished(id)).await?;
        Ok(Self { made, begun, reached, finished })
    }
}

pub(super) async fn read<T: DeserializeOwned>(store: &Store, object: &Path) -> Result<Option<T>> {
    #[derive(Deserialize)]
    struct Version {
        format: u32,
    }
    let Some(bytes) = store.get(object).await? else { return Ok(None) };
    let unreadable = || format!("{object} cannot be read");
    let version: Version = serde_json::from_slice(&bytes).or_err(Kind::Corrupt, unreadable)?;
    if version.format > FORMAT_VERSION {
        let message =
            format!("{object} is written in format {}, and this program reads up to {FORMAT_VERSION}", version.format);
        return Err(Error::new(Kind::Unsupported, message).hint("a newer tidelog wrote it: update this one"));
    }
    lean::parse(&bytes).map(Some).or_err(Kind::Corrupt, unreadable)
}

pub(super) fn json<T: Serialize>(document: &T) -> Result<Bytes> {
    serde_json::to_vec(document).map(Bytes::from).or_err(Kind::Internal, || "cannot write a replay's plan".to_owned())
}

/// Names the way out where the archive takes no object.
fn unwritable(error: Error) -> Error {
    if error.kind() != Kind::Denied {
        return error;
    }
    error.context("the replay cannot be written down beside the archive").hint(
        "give the replay the right to write below replays/, or say --unrecorded: then only the target's group remembers it",
    )
}

impl Begun {
    /// Writes the plan down, before the first record is sent.
    ///
    /// # Errors
    /// [`Kind::Fenced`] if another run has begun the same id meanwhile, [`Kind::Denied`] for an archive that is read-only.
    pub async fn save(&self, store: &Store) -> Result<()> {
        let (object, bytes) = (layout::replay_plan(&self.replay), json(self)?);
        match store.create(&object, bytes).await.map_err(unwritable)? {
            Created::Yes | Created::Same => Ok(()),
            Created::Other(_) => {
                Err(Error::new(Kind::Fenced, format!("another run has just begun the replay {}", self.replay))
                    .hint("run the command again to go on with what it has begun, or choose another --id"))
            }
        }
    }

    /// A digest of what is sent, which stands beside the progress in the target's group.
    pub fn pinned_digest(&self) -> Result<String> {
        digest_of(&self.sources)
    }

    /// The generations of topics that are sent, in the order of sending.
    pub fn streams(&self) -> Result<Vec<TopicGeneration>> {
        self.sources.iter().map(|pinned| pinned.stream.parse()).collect()
    }

    /// Which records are sent, where not all are.
    pub fn chosen(&self) -> Result<Option<Chosen>> {
        if self.sources.iter().all(|pinned| pinned.chosen.is_none()) {
            return Ok(None);
        }
        let mut chosen = Chosen::default();
        for pinned in &self.sources {
            chosen.0.insert(pinned.stream.parse()?, pinned.kept());
        }
        Ok(Some(chosen))
    }

    /// The range of record timestamps.
    pub fn timestamps(&self) -> Option<Range<i64>> {
        self.timestamps.map(|range| range.from.unwrap_or(i64::MIN)..range.to)
    }

    /// Every target partition, with the source position before its first record and the one behind its last.
    pub fn ends(&self) -> Result<BTreeMap<(String, i32), (Mark, Mark)>> {
        let mut ends: BTreeMap<(String, i32), (Mark, Mark)> = BTreeMap::new();
        for pinned in &self.sources {
            let generation = pinned.stream.parse::<TopicGeneration>()?.number;
            for range in &pinned.partitions {
                let at = |offset| Mark { generation, offset };
                let entry = ends.entry((pinned.target.clone(), range.partition));
                entry.and_modify(|(_, end)| *end = at(range.end)).or_insert((at(range.start), at(range.end)));
            }
        }
        Ok(ends)
    }

    /// Narrows `sources` to what was meant when the replay was begun.
    ///
    /// # Errors
    /// [`Kind::NotFound`] where the archive has expired some of it since.
    pub fn pin(&self, sources: &mut [Source]) -> Result<()> {
        for pinned in &self.sources {
            let gone = |what: String| {
                Error::new(
                    Kind::NotFound,
                    format!("the archive no longer has {what}, which the replay {} is to send", self.replay),
                )
                .hint("choose another --id for what is there now")
            };
            let source = sources.iter_mut().find(|source| source.stream.to_string() == pinned.stream);
            let source = source.ok_or_else(|| gone(pinned.stream.clone()))?;
            for range in &pinned.partitions {
                let at = source.positions.iter().find(|at| at.partition == range.partition);
                if at.is_none_or(|at| at.start > range.start || at.end < range.end) {
                    return Err(gone(format!(
                        "offsets {}..{} of {} partition {}",
                        range.start, range.end, pinned.stream, range.partition
                    )));
                }
            }
            source.wanted = pinned.partitions.iter().map(|range| (range.partition, range.start..range.end)).collect();
        }
        Ok(())
    }
}

impl Pinned {
    /// Which records are sent of each partition.
    pub fn kept(&self) -> BTreeMap<i32, Kept> {
        let mut ranges: BTreeMap<i32, Vec<Range<i64>>> = BTreeMap::new();
        for range in self.chosen.as_ref().unwrap_or(&self.partitions) {
            ranges.entry(range.partition).or_default().push(range.start..range.end);
        }
        ranges.into_iter().map(|(partition, ranges)| (partition, Kept::of(ranges))).collect()
    }
}

/// Which records of the partitions of `part` are sent, where not all are.
fn chosen_of(part: &Part) -> Option<Vec<PinnedRange>> {
    let kept = part.kept.as_ref()?;
    let of = |at: &PlannedPartition| {
        let partition = at.partition;
        let within = kept.get(&partition).map(|kept| kept.within(&(at.start..at.end))).unwrap_or_default();
        within.into_iter().map(move |range| PinnedRange { partition, start: range.start, end: range.end })
    };
    Some(part.partitions.iter().flat_map(of).collect())
}

/// What `plan` stands for once the archive goes on growing.
pub fn pinned(plan: &Plan) -> Vec<Pinned> {
    let one = |part: &Part| Pinned {
        stream: part.stream.to_string(),
        target: part.target.clone(),
        partitions: part
            .partitions
            .iter()
            .map(|at| PinnedRange { partition: at.partition, start: at.start, end: at.end })
            .collect(),
        chosen: chosen_of(part),
    };
    plan.parts.iter().map(one).collect()
}

/// A digest of what is sent.
pub fn digest_of(sources: &[Pinned]) -> Result<String> {
    let mut digest = sha256(&json(&sources)?);
    digest.truncate(16);
    Ok(digest)
}

/// Up to which offset `sources` are wanted, by stream and partition.
pub fn through(sources: &[Source]) -> BTreeMap<String, BTreeMap<i32, i64>> {
    let ends = |source: &Source| source.wanted.iter().map(|(partition, wanted)| (*partition, wanted.end)).collect();
    sources.iter().map(|source| (source.stream.to_string(), ends(source))).collect()
}

/// Narrows `sources` to what has come into the archive since `before` was begun, whatever its timestamps.
pub fn only_after(sources: &mut [Source], before: &Begun) {
    for source in sources {
        let Some(sent) = before.through.get(&source.stream.to_string()) else { continue };
        for (partition, wanted) in &mut source.wanted {
            if let Some(end) = sent.get(partition) {
                wanted.start = wanted.start.max(*end).min(wanted.end);
            }
        }
    }
}

impl Made {
    /// Writes it down.
    pub async fn save(&self, store: &Store) -> Result<()> {
        store.put(&layout::replay_topics(&self.replay), json(self)?).await.map_err(unwritable)
    }
}

impl Reached {
    /// What is known of `marks` at `at`, with where the target's partitions ended.
    pub fn new(id: &str, at: DateTime<Utc>, marks: &Marks, ends: &BTreeMap<At, i64>) -> Self {
        let partitions = marks.iter().map(|(of, mark)| ReachedPartition {
            topic: of.0.clone(),
            partition: of.1,
            generation: mark.generation,
            offset: mark.offset,
            target_end: ends.get(of).copied(),
            records: None,
        });
        Self { format: FORMAT_VERSION, replay: id.to_owned(), at, partitions: partitions.collect() }
    }

    /// How many records each partition has had.
    #[must_use]
    pub fn with_records(mut self, records: &BTreeMap<At, u64>) -> Self {
        for one in &mut self.partitions {
            one.records = records.get(&(one.topic.clone(), one.partition)).copied();
        }
        self
    }

    /// How many records a target partition had had when it stood at `mark`, as far as that is told.
    pub fn records_at(&self, at: &At, mark: Option<&Mark>) -> Option<u64> {
        let one = self.partitions.iter().find(|one| one.topic == at.0 && one.partition == at.1)?;
        let then = Mark { generation: one.generation, offset: one.offset };
        one.records.filter(|_| mark == Some(&then))
    }

    /// Writes it over what was written before.
    pub async fn save(&self, store: &Store) -> Result<()> {
        store.put(&layout::replay_progress(&self.replay), json(self)?).await.map_err(unwritable)
    }
}

impl Finished {
    /// Writes down that the replay `id` has sent everything. Twice is as good as once.
    pub async fn save(id: &str, at: DateTime<Utc>, mapped: Option<u64>, store: &Store) -> Result<Self> {
        let finished = Self { format: FORMAT_VERSION, replay: id.to_owned(), at, mapped };
        store.create(&layout::replay_finished(id), json(&finished)?).await.map_err(unwritable)?;
        Ok(finished)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::coverage::Completeness;
    use crate::stream::PartitionRange;

    fn source(stream: &str, ranges: &[(i32, i64, i64)]) -> Source {
        let at = |&(partition, start, end): &(i32, i64, i64)| PartitionRange {
            partition,
            start,
            end,
            records: 1,
            min_timestamp: Some(0),
            max_timestamp: Some(0),
        };
        Source {
            expired: None,
            stream: stream.parse().expect("a stream"),
            positions: ranges.iter().map(at).collect(),
            wanted: ranges.iter().map(|&(partition, start, end)| (partition, start..end)).collect(),
            segments: Vec::new(),
            gaps: Vec::new(),
            complete: Completeness { known: 2, ..Completeness::default() },
        }
    }

    fn of_source(source: &Source) -> Pinned {
        let range =
            |(&partition, range): (&i32, &Range<i64>)| PinnedRange { partition, start: range.start, end: range.end };
        Pinned {
            stream: source.stream.to_string(),
            target: source.stream.topic.clone(),
            partitions: source.wanted.iter().map(range).collect(),
            chosen: None,
        }
    }

    fn begun(sources: &[Source]) -> Begun {
        Begun {
            format: FORMAT_VERSION,
            replay: "r-1".to_owned(),
            at: DateTime::UNIX_EPOCH,
            selection: "a".to_owned(),
            after: None,
            timestamps: Some(Timestamps { from: None, to: 5 }),
            target: BegunTarget::default(),
            sources: sources.iter().map(of_source).collect(),
            through: through(sources),
            left_out: Vec::new(),
            maps: false,
        }
    }

    #[test]
    fn an_id_means_what_it_meant_when_it_was_begun() {
        let then = [source("kafka/main/orders.0", &[(0, 0, 10)])];
        let begun = begun(&then);
        let mut now = vec![source("kafka/main/orders.0", &[(0, 0, 25), (1, 0, 7), (2, 0, 3)])];
        begun.pin(&mut now).expect("all is there");
        assert_eq!(now[0].wanted, then[0].wanted);
        let target = ("orders".to_owned(), 0);
        let (start, end) = begun.ends().expect("streams")[&target];
        assert_eq!((start.offset, end.offset), (0, 10));
        assert_eq!(begun.ends().expect("streams").len(), 1);
        let mut shorter = vec![source("kafka/main/orders.0", &[(0, 3, 25), (1, 0, 7)])];
        assert!(begun.pin(&mut shorter).expect_err("expired").to_string().contains("offsets 0..10"));
        assert!(begun.pin(&mut []).is_err(), "the generation is gone");
    }

    #[test]
    fn what_came_since_begins_where_the_plan_before_ended() {
        let begun = begun(&[source("kafka/main/orders.0", &[(0, 0, 10), (1, 0, 7)])]);
        let mut now = [
            source("kafka/main/orders.0", &[(0, 0, 25), (1, 0, 7), (2, 0, 3)]),
            source("kafka/main/orders.1", &[(0, 0, 4)]),
        ];
        only_after(&mut now, &begun);
        assert_eq!(now[0].wanted, BTreeMap::from([(0, 10..25), (1, 7..7), (2, 0..3)]));
        assert_eq!(now[1].wanted, BTreeMap::from([(0, 0..4)]));
    }

    #[test]
    fn plans_are_read_back_and_tell_ranges_apart() {
        let one = begun(&[source("kafka/main/orders.0", &[(0, 0, 10)])]);
        let read: Begun = serde_json::from_slice(&json(&one).expect("JSON")).expect("read back");
        assert_eq!(read, one);
        assert_eq!(read.timestamps(), Some(i64::MIN..5));
        let other = begun(&[source("kafka/main/orders.0", &[(0, 0, 11)])]);
        assert_ne!(one.pinned_digest().expect("a digest"), other.pinned_digest().expect("a digest"));
    }
}
