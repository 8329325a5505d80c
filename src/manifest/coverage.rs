//! Coverage: up to which time a stream is known to be complete.
//!
//! ```text
//!   replica a: ends of its partitions, how many the topic has, at 10:00:05 ─┐
//!   replica b: ends of its partitions, how many the topic has, at 10:00:07 ─┼─► judge ─► complete through 10:00:05
//!   the chain: where the archive of each partition stands ──────────────────┘
//! ```
//!
//! A replica that has read a partition to its end knows that everything up to now is archived, as soon as the records
//! before that end are committed. It writes such claims into one small object of its own, over and over. A claim names
//! the offset that it stands on: it counts only while the chain has come at least that far, so that neither a claim that
//! ran ahead of its checkpoint nor one that survived a restored bucket can promise too much. And since a replica knows its
//! own partitions only, it also claims how many the topic had: a topic is complete through a time only if somebody says
//! how many partitions there were then and each of them is complete through that time.
//!
//! [`through`] alone decides that, for `ls`, the warnings of a replay and the status of the service.

use std::collections::BTreeMap;

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use futures::{StreamExt, stream};
use object_store::{ObjectMeta, path::Path};
use serde::{Deserialize, Serialize};

use super::reads_at_once::READS_AT_ONCE;
use super::{Chain, entry};
use crate::error::{Error, Kind, Result, ResultExt};
use crate::store::{Store, layout};
use crate::stream::{FORMAT_VERSION, StreamId, TopicGeneration, is_name, lean};

/// A claim that lies further in the reader's future was made by a clock that is ahead, and counts for nothing.
const CLOCKS_AGREE: TimeDelta = TimeDelta::seconds(5);

/// What one replica knows to be complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Coverage {
    /// The version of the format.
    pub format: u32,
    /// The replica's id.
    pub writer: String,
    /// When it was written.
    pub at: DateTime<Utc>,
    /// The claims by stream (as [`StreamId`] is written) and partition: of Postgres, and what earlier versions of this
    /// program wrote of topics.
    pub streams: BTreeMap<String, BTreeMap<i32, Claim>>,
    /// The claims by topic, in each its generation.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub topics: BTreeMap<String, TopicClaims>,
}

/// Everything of a partition that was there at a time is archived once `offset` is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The partition's end at that time: the next offset to read.
    pub offset: i64,
    /// The time.
    pub complete_through: DateTime<Utc>,
}

/// What one replica knows of a generation of a topic.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicClaims {
    /// The id of the topic that was asked; none where the brokers have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic_id: Option<String>,
    /// How many partitions it had, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub counts: Vec<Count>,
    /// What is claimed of them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", with = "groups")]
    pub claims: BTreeMap<i32, Claim>,
}

/// At a time, a topic had no partitions but the first so many. It never has fewer later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// How many.
    pub partitions: i32,
    /// The time.
    pub at: DateTime<Utc>,
}

/// Claims as they are written: those of one time together, and of partitions that follow each other the ends alone.
mod groups {
    use std::collections::BTreeMap;

    use chrono::{DateTime, Utc};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::Claim;

    #[derive(Serialize, Deserialize)]
    struct Group {
        complete_through: DateTime<Utc>,
        /// The first partition, and the ends of it and those that follow.
        ends: Vec<(i32, Vec<i64>)>,
    }

    pub(super) fn serialize<S: Serializer>(claims: &BTreeMap<i32, Claim>, to: S) -> Result<S::Ok, S::Error> {
        let mut groups: BTreeMap<DateTime<Utc>, Vec<(i32, Vec<i64>)>> = BTreeMap::new();
        for (&partition, claim) in claims {
            let ends = groups.entry(claim.complete_through).or_default();
            match ends.last_mut() {
                Some((first, run)) if i64::from(*first) + run.len() as i64 == i64::from(partition) => {
                    run.push(claim.offset);
                }
                _ => ends.push((partition, vec![claim.offset])),
            }
        }
        to.collect_seq(groups.into_iter().map(|(complete_through, ends)| Group { complete_through, ends }))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<i32, Claim>, D::Error> {
        let mut claims = BTreeMap::new();
        for Group { complete_through, ends } in Vec::<Group>::deserialize(from)? {
            for (first, run) in ends {
                claims.extend((first..=i32::MAX).zip(run.into_iter().map(|offset| Claim { offset, complete_through })));
            }
        }
        Ok(claims)
    }
}

impl Coverage {
    /// A replica that knows nothing yet.
    pub fn new(writer: impl Into<String>, at: DateTime<Utc>) -> Self {
        let (streams, topics) = (BTreeMap::new(), BTreeMap::new());
        Self { format: FORMAT_VERSION, writer: writer.into(), at, streams, topics }
    }

    /// Notes a claim in place of an earlier one.
    pub fn claim(&mut self, stream: &StreamId, partition: i32, claim: Claim) {
        self.streams.entry(stream.to_string()).or_default().insert(partition, claim);
    }

    /// Writes the replica's object.
    pub async fn save(&self, store: &Store, folder: &Path) -> Result<()> {
        let bytes = serde_json::to_vec(self).or_err(Kind::Internal, || "cannot write coverage as JSON".into())?;
        store.put(&layout::coverage(folder, &self.writer), Bytes::from(bytes)).await
    }

    /// Takes over the claims of replicas that wrote nothing since `before` and removes their objects, so that restarts
    /// leave no heap of objects. Our own object is durable before theirs are gone; a replica that runs after all
    /// writes its object again. Of a topic the newest generation alone is taken over. Objects that were written later than
    /// `now` are removed: a clock was ahead, and they would begin to count once that time has come.
    pub async fn adopt(
        &mut self,
        store: &Store,
        folder: &Path,
        before: DateTime<Utc>,
        now: DateTime<Utc>,
    ) -> Result<()> {
        let loaded = load_all(store, folder).await?;
        loaded.tell_unreadable();
        let mut others = loaded.known;
        others.retain(|other| other.writer != self.writer);
        let (ahead, others): (Vec<_>, Vec<_>) = others.into_iter().partition(|other| other.at > now + CLOCKS_AGREE);
        let gone: Vec<Self> = others.into_iter().filter(|other| other.at < before).collect();
        if !gone.is_empty() {
            let mut with_theirs = self.clone();
            gone.iter().for_each(|other| with_theirs.take_over(other, now));
            with_theirs.forget_ended();
            with_theirs.at = now;
            // What cannot be stored is not kept either: it would be in the way of every later claim.
            with_theirs.save(store, folder).await?;
            *self = with_theirs;
        }
        for other in &ahead {
            let object = layout::coverage(folder, &other.writer);
            tracing::warn!(%object, at = %other.at, "claims of completeness were made by a clock that is ahead, and are removed");
        }
        for other in ahead.iter().chain(&gone) {
            store.delete(&layout::coverage(folder, &other.writer)).await?;
        }
        Ok(())
    }

    /// Adds what another replica claims, where that is later than what is known and not in the future.
    pub fn take_over(&mut self, other: &Self, now: DateTime<Utc>) {
        for (stream, claims) in &other.streams {
            let until = if is_by_our_clock(stream) { now } else { DateTime::<Utc>::MAX_UTC };
            merge(self.streams.entry(stream.clone()).or_default(), claims, until);
        }
        for (stream, theirs) in &other.topics {
            let ours = self
                .topics
                .entry(stream.clone())
                .or_insert_with(|| TopicClaims { topic_id: theirs.topic_id.clone(), ..TopicClaims::default() });
            if ours.topic_id == theirs.topic_id {
                merge(&mut ours.claims, &theirs.claims, now);
                ours.counts.extend(theirs.counts.iter().filter(|count| count.at <= now));
                ours.counts = sound(std::mem::take(&mut ours.counts), 0);
            }
        }
    }

    /// Drops the claims of generations that a later one has followed.
    pub fn forget_ended(&mut self) {
        let generation_of = |stream: &String| stream.parse::<TopicGeneration>().ok();
        let topic_of = |of: &TopicGeneration| (of.cluster.clone(), of.topic.clone());
        let mut newest: BTreeMap<(String, String), u32> = BTreeMap::new();
        for of in self.streams.keys().chain(self.topics.keys()).filter_map(generation_of) {
            let known = newest.entry(topic_of(&of)).or_default();
            *known = of.number.max(*known);
        }
        let goes_on =
            |stream: &String| generation_of(stream).is_none_or(|of| newest.get(&topic_of(&of)) == Some(&of.number));
        self.streams.retain(|stream, _| goes_on(stream));
        self.topics.retain(|stream, _| goes_on(stream));
    }

    /// Sets back all times by how much the writer's clock was ahead of the store's as it wrote. A store that keeps whole
    /// seconds makes every clock seem up to a second ahead; a claim that is a second too early is still true.
    pub(crate) fn by_the_clock_of(mut self, stored: DateTime<Utc>) -> Self {
        let ahead = self.at - stored;
        if ahead > TimeDelta::zero() {
            let back = |time: &mut DateTime<Utc>| *time = time.checked_sub_signed(ahead).unwrap_or(*time);
            let streams = self.streams.iter_mut().filter(|(stream, _)| is_by_our_clock(stream));
            let streams = streams.map(|(_, claims)| claims);
            let claims = streams.chain(self.topics.values_mut().map(|topic| &mut topic.claims));
            claims.flat_map(BTreeMap::values_mut).for_each(|claim| back(&mut claim.complete_through));
            self.topics.values_mut().flat_map(|topic| &mut topic.counts).for_each(|count| back(&mut count.at));
        }
        self
    }
}

/// Returns whether the claims of a stream are times of an archiver's clock: those of a Postgres system are times of its server, as
/// are those of the commits that they are compared with.
fn is_by_our_clock(stream: &str) -> bool {
    !stream.starts_with("postgres/")
}

fn merge(ours: &mut BTreeMap<i32, Claim>, theirs: &BTreeMap<i32, Claim>, now: DateTime<Utc>) {
    for (partition, claim) in theirs.iter().filter(|(_, claim)| claim.complete_through <= now) {
        let known = ours.entry(*partition).or_insert(*claim);
        if known.complete_through < claim.complete_through {
            *known = *claim;
        }
    }
}

/// Of so many objects, with so many bytes together, the claims of a folder are taken: the smallest first, so that no large
/// object of somebody else is in the way of what archivers write, which takes a few kilobytes each. What a reader has in memory
/// is bounded by that, and not by how many objects there are.
const MOST_OBJECTS: usize = 8192;
const MOST_TOGETHER: u64 = 32 << 20;

/// So many objects that cannot be read are told one by one, and the others as a number.
const MOST_TOLD: usize = 16;

/// What the objects of a folder of coverage say.
#[derive(Debug, Default)]
pub struct Loaded {
    /// What replicas know.
    pub known: Vec<Coverage>,
    /// Why objects cannot be read. What stands in them only counts for nothing: a stream may be complete further than is
    /// known now.
    pub unreadable: Vec<Error>,
}

impl Loaded {
    /// Tells the log of what cannot be read.
    pub fn tell_unreadable(&self) {
        for error in &self.unreadable {
            tracing::warn!(%error, hint = error.hint_text(), "claims of completeness are passed over");
        }
    }
}

/// Those objects of a folder whose claims are taken, in the order of their keys, and how many others there are.
fn within_bounds(mut objects: Vec<ObjectMeta>) -> (Vec<ObjectMeta>, usize) {
    let all = objects.len();
    objects.sort_by_key(|object| object.size);
    let mut together = 0_u64;
    // One that is larger than any may be is refused by its size, with its key, and takes nothing.
    let fit = objects.iter().take(MOST_OBJECTS).take_while(|object| {
        together += if object.size > MOST_TOGETHER { 0 } else { object.size };
        together <= MOST_TOGETHER
    });
    let fit = fit.count();
    objects.truncate(fit);
    objects.sort_unstable_by(|a, b| a.location.cmp(&b.location));
    (objects, all - fit)
}

fn too_many(folder: &Path, beyond: usize) -> Error {
    let message = format!(
        "{beyond} of the objects below {folder} are not read: together, claims of completeness have {MOST_OBJECTS} objects and \
         {MOST_TOGETHER} bytes at the most"
    );
    Error::new(Kind::Corrupt, message).hint("delete the largest of them: archivers make again what they claim")
}

/// Returns what all replicas know that write into `folder`. An object that vanishes meanwhile was adopted by another replica, and one
/// that is damaged takes away no other's claims.
pub async fn load_all(store: &Store, folder: &Path) -> Result<Loaded> {
    let (objects, beyond) = within_bounds(store.list(folder).await?);
    let read = stream::iter(objects).map(|object| async move {
        let Some((bytes, stored)) = store.get_dated(&object.location).await? else { return Ok(None) };
        decode(&object.location, &bytes).map(|coverage| Some(coverage.by_the_clock_of(stored)))
    });
    let mut read = read.buffered(READS_AT_ONCE);
    let (mut loaded, mut untold) = (Loaded::default(), 0_usize);
    while let Some(coverage) = read.next().await {
        // One that a disk cannot read takes away no other's claims, either, as long as the store answers for others.
        match super::isolated(store, coverage).await? {
            Ok(coverage) => loaded.known.extend(coverage),
            Err(error) if loaded.unreadable.len() < MOST_TOLD => loaded.unreadable.push(error),
            Err(_) => untold += 1,
        }
    }
    if untold > 0 {
        let message = format!("{untold} more objects below {folder} cannot be read");
        loaded.unreadable.push(Error::new(Kind::Corrupt, message).hint("delete those that no archiver writes"));
    }
    if beyond > 0 {
        loaded.unreadable.push(too_many(folder, beyond));
    }
    Ok(loaded)
}

pub(super) fn decode(object: &Path, bytes: &[u8]) -> Result<Coverage> {
    const WAY_OUT: &str =
        "delete the object: nothing but claims of completeness is lost with it, and archivers make them again";
    entry::check_format(object, bytes, FORMAT_VERSION)?;
    let coverage: Coverage = lean::parse(bytes)
        .map_err(|error| Error::new(Kind::Corrupt, format!("{object} cannot be read")).source(error).hint(WAY_OUT))?;
    // Whoever takes its claims over removes the object of that writer.
    let is_own = is_name(&coverage.writer)
        && object.filename().and_then(|file| file.strip_suffix(".json")) == Some(&coverage.writer);
    if !is_own {
        let message = format!("{object} says that {:?} wrote it", coverage.writer);
        return Err(Error::new(Kind::Corrupt, message).hint(WAY_OUT));
    }
    Ok(coverage)
}

/// How far a stream is complete.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Completeness {
    /// The partitions of which it is known, and up to when each is complete.
    pub partitions: BTreeMap<i32, DateTime<Utc>>,
    /// How many partitions a topic had, oldest first; none of an earlier time is greater than a later one.
    pub counts: Vec<Count>,
    /// How many partitions a topic is known to have at least.
    pub known: i32,
}

/// Why it is not known up to when a topic is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unknown {
    /// Of this partition it is not known.
    Partition(i32),
    /// Nobody has claimed how many partitions the topic had.
    Count,
}

impl Completeness {
    /// Returns up to when those partitions of a topic are complete that are `wanted`, or why that is not known.
    ///
    /// # Errors
    /// The first partition of which nothing is known, or that their number is not.
    pub fn through(&self, wanted: impl Fn(i32) -> bool) -> Result<DateTime<Utc>, Unknown> {
        through(&self.partitions, &self.counts, &wanted).ok_or_else(|| {
            let unknown =
                (0..self.known).find(|partition| wanted(*partition) && !self.partitions.contains_key(partition));
            unknown.map_or(Unknown::Count, Unknown::Partition)
        })
    }

    /// Returns up to when the partition is complete that is complete the longest: of a Postgres system its last timeline.
    pub fn latest(&self) -> Option<DateTime<Utc>> {
        self.partitions.values().max().copied()
    }
}

/// Returns up to when a topic is complete: the greatest time of which somebody says how many partitions there were then, or later,
/// and through which each of them that is `wanted` is complete.
///
/// A count that was asked for after a time bounds what there was at that time, for the number never falls. So a partition
/// that was added holds up what is said of the time since, and not what was known of the time before.
pub fn through(
    complete: &BTreeMap<i32, DateTime<Utc>>,
    counts: &[Count],
    wanted: impl Fn(i32) -> bool,
) -> Option<DateTime<Utc>> {
    let up_to = |count: &Count| {
        let mut all = (0..count.partitions).filter(|partition| wanted(*partition));
        all.try_fold(count.at, |least, partition| Some(least.min(*complete.get(&partition)?)))
    };
    counts.iter().filter_map(up_to).max()
}

/// Returns what the chain and the claims of all replicas say at `now`. Claims count that stand on what the chain has reached, of
/// the topic that it archives, and that were not made by a clock that is ahead. Of a partition whose beginning nobody knew
/// when the chain began, and that has got no record since, a claim counts that takes nothing to be archived.
pub fn judge(coverages: &[Coverage], chain: &Chain, now: DateTime<Utc>) -> Completeness {
    let begin = chain.begin_facts();
    let reached = |partition| Some(chain.reached(partition).unwrap_or(0));
    let mut judged = judge_by(coverages, chain.stream(), (begin.topic_id(), begin.partition_count()), reached, now);
    let archived = chain.positions().map(|at| at.partition);
    let last = archived.chain(judged.partitions.keys().copied()).max().map_or(0, |last| last.saturating_add(1));
    judged.known = judged.known.max(begin.partition_count()).max(last);
    judged
}

/// The same of a stream that has come to `reached`, whose topic had that id and at least so many partitions.
pub fn judge_by(
    coverages: &[Coverage],
    stream: &StreamId,
    (topic_id, least): (Option<&str>, i32),
    reached: impl Fn(i32) -> Option<i64>,
    now: DateTime<Utc>,
) -> Completeness {
    let stream = stream.to_string();
    let until = if is_by_our_clock(&stream) { now } else { DateTime::<Utc>::MAX_UTC - CLOCKS_AGREE };
    let known = |time: DateTime<Utc>| (time <= until + CLOCKS_AGREE).then(|| time.min(until));
    let mut judged = Completeness::default();
    let mut take = |claims: &BTreeMap<i32, Claim>| {
        for (partition, claim) in claims {
            let Some(time) = known(claim.complete_through) else { continue };
            if reached(*partition).is_some_and(|end| end >= claim.offset) {
                let through = judged.partitions.entry(*partition).or_insert(time);
                *through = time.max(*through);
            }
        }
    };
    for coverage in coverages {
        coverage.streams.get(&stream).into_iter().for_each(&mut take);
        let Some(topic) = coverage.topics.get(&stream) else { continue };
        if topic_id.is_some() && topic.topic_id.is_some() && topic.topic_id.as_deref() != topic_id {
            continue;
        }
        take(&topic.claims);
        let counts = topic.counts.iter();
        judged.counts.extend(counts.filter_map(|count| Some(Count { at: known(count.at)?, ..*count })));
    }
    judged.counts = sound(judged.counts, least);
    judged.known = judged.counts.last().map_or(0, |count| count.partitions);
    judged
}

/// The counts that no earlier one contradicts, oldest first, of each number the last. Whoever counted fewer than was counted
/// before was told an old number.
pub fn sound(mut counts: Vec<Count>, least: i32) -> Vec<Count> {
    counts.sort_unstable_by_key(|count| (count.at, -i64::from(count.partitions)));
    let mut sound: Vec<Count> = Vec::with_capacity(counts.len());
    for count in counts {
        let before = sound.last().map_or(least.max(1), |last| last.partitions);
        if count.partitions < before {
            continue;
        }
        sound.pop_if(|last| last.partitions == count.partitions);
        sound.push(count);
    }
    sound
}
