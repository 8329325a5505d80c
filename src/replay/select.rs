//! What a user asks of the archive (topics, partitions, times, offsets), and what of the archive can hold it.
//!
//! In goes a [`Query`]; out come [`Source`]s: the generations of topics that it names, oldest first, each with the segments
//! and gaps that can matter. Which records of a segment count is decided later, by the segment's reader.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::{Range, RangeInclusive};
use std::str::FromStr;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use regex::Regex;

use super::matching::matching;
use crate::config::TopicPattern;
use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::manifest::coverage::{self, Completeness, Coverage, Unknown};
use crate::manifest::{self, Chain, STREAMS_AT_ONCE, Selected, Selection, aged};
use crate::segment::Filter;
use crate::store::{Store, layout};
use crate::stream::{Gap, PartitionRange, SegmentRef, TopicGeneration};
use crate::time;

/// Which records are wanted. `Default` means all of them.
#[derive(Debug, Clone, Default)]
pub struct Query {
    /// The topics; none means all.
    pub topics: Vec<TopicPattern>,
    /// Which generation of the topics; none means every one, or the newest alone where `offsets` are given, for the offsets
    /// of two generations have nothing to do with each other.
    pub generation: Option<u32>,
    /// The partitions; none means all.
    pub partitions: Option<Partitions>,
    /// Record timestamps, `from <= timestamp < to`.
    pub timestamps: Option<Range<i64>>,
    /// Offsets.
    pub offsets: Option<Offsets>,
    /// Only records with this key are looked for; others may come.
    pub with_key: Option<Arc<[u8]>>,
}

/// One generation of a topic, and what it holds of a query.
#[derive(Debug, Clone)]
pub struct Source {
    /// The topic and its generation.
    pub stream: TopicGeneration,
    /// How far each partition is archived.
    pub positions: Vec<PartitionRange>,
    /// The offsets that are wanted of each partition.
    pub wanted: BTreeMap<i32, Range<i64>>,
    /// The segments that can hold wanted records, in chain order.
    pub segments: Vec<SegmentRef>,
    /// The gaps that can lie in what is wanted.
    pub gaps: Vec<Gap>,
    /// That retention has expired what was before, and the earliest timestamp of what is kept, if anything is.
    pub expired: Option<Option<i64>>,
    /// Up to which time it is known to be complete, and how many partitions it is known to have, whether they hold anything or
    /// not.
    pub complete: Completeness,
}

impl Query {
    /// The offsets that are wanted of each partition of a stream archived as far as `positions`.
    pub fn ranges(&self, positions: &[PartitionRange]) -> BTreeMap<i32, Range<i64>> {
        let wanted =
            positions.iter().filter(|at| self.partitions.as_ref().is_none_or(|set| set.contains(at.partition)));
        wanted.map(|at| (at.partition, self.offsets.map_or(at.start..at.end, |offsets| offsets.within(at)))).collect()
    }

    /// The topic generations in `archive` that the query names, by topic, oldest generation first.
    ///
    /// # Errors
    /// `Kind::NotFound` for a name that no archived topic has: a misspelt name must not end as an empty replay.
    pub fn streams(&self, archive: &[TopicGeneration], cluster: Option<&str>) -> Result<Vec<TopicGeneration>> {
        let here: Vec<&TopicGeneration> =
            archive.iter().filter(|id| cluster.is_none_or(|name| id.cluster == name)).collect();
        for pattern in &self.topics {
            if !here.iter().any(|id| pattern.matches(&id.topic)) {
                return Err(no_topic(pattern, &here));
            }
        }
        let named =
            |id: &TopicGeneration| self.topics.is_empty() || self.topics.iter().any(|topic| topic.matches(&id.topic));
        let mut streams: Vec<TopicGeneration> = here.into_iter().filter(|id| named(id)).cloned().collect();
        streams.sort();
        let newest: BTreeMap<(String, String), u32> =
            streams.iter().map(|id| ((id.cluster.clone(), id.topic.clone()), id.number)).collect();
        streams.retain(|id| match self.generation {
            Some(generation) => id.number == generation,
            None if self.offsets.is_some() => newest.get(&(id.cluster.clone(), id.topic.clone())) == Some(&id.number),
            None => true,
        });
        if let (Some(generation), true) = (self.generation, streams.is_empty()) {
            return Err(Error::new(Kind::NotFound, format!("no topic has a generation {generation}"))
                .hint("`tidelog ls` prints the generations: the number after the last dot of a stream"));
        }
        Ok(streams)
    }
}

fn no_topic(pattern: &TopicPattern, here: &[&TopicGeneration]) -> Error {
    const SHOWN: usize = 20;
    let wanted = match pattern {
        TopicPattern::Name(name) => format!("the archive has no topic {name:?}"),
        TopicPattern::Regex(regex) => format!("no topic of the archive matches {:?}", regex.as_str()),
    };
    let mut topics: Vec<&str> = here.iter().map(|id| id.topic.as_str()).collect();
    topics.dedup();
    let more = if topics.len() > SHOWN { format!(" and {} more", topics.len() - SHOWN) } else { String::new() };
    topics.truncate(SHOWN);
    let hint = if topics.is_empty() {
        "the archive holds no topic of this cluster yet; `tidelog run` fills it".to_owned()
    } else {
        format!("it has {}{more}; a pattern is ^ and a regex", topics.join(", "))
    };
    Error::new(Kind::NotFound, wanted).hint(hint)
}

/// What of the archive can hold records of a query, and what of it cannot be looked at.
#[derive(Debug, Default)]
pub struct Found {
    /// What can be read.
    pub sources: Vec<Source>,
    /// Generations of topics that the query names, and why they cannot be read.
    pub damaged: Vec<(TopicGeneration, Error)>,
}

impl Found {
    /// Leaves out every generation of a topic of which one cannot be read: records of a later generation must not come where those of an
    /// earlier one are missing.
    pub fn without_damaged_topics(&mut self) {
        let damaged: BTreeSet<(&str, &str)> = self
            .damaged
            .iter()
            .map(|(generation, _)| (generation.cluster.as_str(), generation.topic.as_str()))
            .collect();
        self.sources.retain(|source| !damaged.contains(&(&*source.stream.cluster, &*source.stream.topic)));
    }
}

/// Finds what of the archive can hold records of `query`. A generation of a topic that cannot be read is in the way of no other.
///
/// # Errors
/// The store's own, and why the one generation cannot be read that the query names.
pub async fn sources(store: &Store, cluster: Option<&str>, query: &Query) -> Result<Found> {
    let streams = query.streams(&manifest::topics(store).await?, cluster)?;
    let mut found = Found::default();
    for of_cluster in streams.chunk_by(|one, other| one.cluster == other.cluster) {
        let claims = claims_of(store, of_cluster).await?;
        let mut looked = each(store, of_cluster, query, &claims);
        while let Some((generation, source)) = looked.next().await {
            match manifest::isolated(store, source).await? {
                Ok(source) => found.sources.extend(source),
                Err(error) => found.damaged.push((generation.clone(), error)),
            }
        }
    }
    match found.damaged.pop() {
        Some((_, error)) if found.sources.is_empty() && found.damaged.is_empty() => Err(error),
        last => {
            found.damaged.extend(last);
            Ok(found)
        }
    }
}

/// Finds what `streams` hold of `query`, whatever else it names.
///
/// # Errors
/// Also where one of them cannot be read: all of them are meant.
pub async fn sources_of(store: &Store, streams: Vec<TopicGeneration>, query: &Query) -> Result<Vec<Source>> {
    let mut sources = Vec::with_capacity(streams.len());
    for of_cluster in streams.chunk_by(|one, other| one.cluster == other.cluster) {
        let claims = claims_of(store, of_cluster).await?;
        let mut looked = each(store, of_cluster, query, &claims);
        while let Some((_, source)) = looked.next().await {
            sources.extend(source?);
        }
    }
    Ok(sources)
}

/// The claims of completeness of the cluster of these.
async fn claims_of(store: &Store, generations: &[TopicGeneration]) -> Result<Vec<Coverage>> {
    let Some(generation) = generations.first() else { return Ok(Vec::new()) };
    let loaded = coverage::load_all(store, &layout::topic_coverages(&generation.cluster)).await?;
    loaded.tell_unreadable();
    Ok(loaded.known)
}

/// What generations of one cluster hold of `query`, in order, several looked at side by side.
fn each<'a>(
    store: &'a Store,
    generations: &'a [TopicGeneration],
    query: &'a Query,
    claims: &'a [Coverage],
) -> BoxStream<'a, (&'a TopicGeneration, Result<Option<Source>>)> {
    let look = move |generation: &'a TopicGeneration| async move {
        (generation, source_of(store, generation, query, claims).await)
    };
    futures::stream::iter(generations).map(look).buffered(STREAMS_AT_ONCE).boxed()
}

/// What a generation of a topic holds of `query`; none if its chain has not begun.
async fn source_of(
    store: &Store,
    generation: &TopicGeneration,
    query: &Query,
    claims: &[Coverage],
) -> Result<Option<Source>> {
    let Some(chain) = Chain::open(store, &generation.stream()).await? else { return Ok(None) };
    let complete = coverage::judge(claims, &chain, time::now());
    let positions: Vec<PartitionRange> = chain.positions().copied().collect();
    let wanted = query.ranges(&positions);
    let selection = Selection { timestamps: query.timestamps.clone(), partitions: Some(wanted.clone()) };
    let Selected { segments, gaps } = chain.select(&selection).await?;
    let stream = generation.clone();
    let expired = match chain.has_expired() {
        true => Some(aged::oldest(&chain).await?),
        false => None,
    };
    Ok(Some(Source { stream, positions, wanted, segments, gaps, expired, complete }))
}

impl Source {
    /// What of `query` retention has expired, in words.
    pub(super) fn lacks_old(&self, query: &Query) -> Option<String> {
        let stream = self.stream.stream();
        let begins = |from: Option<i64>| match from {
            Some(from) => format!("what is kept begins at {}", time::rfc3339(from)),
            None => "nothing of it is kept".to_owned(),
        };
        let from = self.expired?;
        if let Some(offsets) = query.offsets {
            let lacks = |at: &&PartitionRange| {
                let wanted = query.partitions.as_ref().is_none_or(|set| set.contains(at.partition));
                wanted && offsets.start.is_none_or(|start| start < at.start)
            };
            let at = self.positions.iter().find(lacks)?;
            return Some(format!(
                "{stream} partition {}: retention expired what lies before offset {}",
                at.partition, at.start
            ));
        }
        // Where nothing is kept, what was there last says how old all of it was.
        let from_or_end = from.or_else(|| self.positions.iter().filter_map(|at| at.max_timestamp).max());
        let asks = query.timestamps.as_ref().is_none_or(|times| from_or_end.is_none_or(|from| times.start < from));
        asks.then(|| format!("{stream}: retention expired older records; {}", begins(from)))
    }

    /// Whether any record with a timestamp in `times` may be among what is wanted.
    pub fn has_any(&self, times: Option<Range<i64>>) -> bool {
        let filter = Filter { partitions: Some(self.wanted.clone()), timestamps: times, with_key: None };
        let ranges = self.segments.iter().flat_map(|segment| &segment.partitions);
        ranges.into_iter().any(|range| matching(range, &filter).is_some())
    }

    /// What of `query` has not been reached, in words.
    pub(super) fn not_reached(&self, query: &Query, now: DateTime<Utc>) -> Option<String> {
        let topic = &self.stream.topic;
        if self.complete.known == 0 {
            return Some(format!(
                "nothing of {topic} is archived yet: up to when it is complete is not known, records may be missing"
            ));
        }
        let wanted = |partition: i32| query.partitions.as_ref().is_none_or(|set| set.contains(partition));
        if let Some(end) = query.offsets.and_then(|offsets| offsets.end) {
            return (0..self.complete.known).filter(|partition| wanted(*partition)).find_map(|partition| {
                match self.positions.iter().find(|at| at.partition == partition) {
                    None => Some(format!("nothing of {topic} partition {partition} is archived")),
                    Some(at) if at.end < end => {
                        Some(format!("{topic} partition {partition} is archived up to offset {}", at.end))
                    }
                    Some(_) => None,
                }
            });
        }
        let to = query.timestamps.as_ref().map_or(now.timestamp_millis(), |times| times.end);
        match self.complete.through(wanted) {
            Err(Unknown::Partition(unknown)) => Some(format!(
                "{topic}: up to when partition {unknown} is complete is not known, records may be missing"
            )),
            Err(Unknown::Count) => Some(format!(
                "{topic}: up to when it is complete is not known, for no archiver has said how many partitions it has; \
                 records may be missing"
            )),
            Ok(through) => (through.timestamp_millis() < to).then(|| {
                format!(
                    "{topic} is complete through {}: of later records some or all may be missing",
                    time::utc(through)
                )
            }),
        }
    }
}

/// Topics as a user writes them: a name, or `^` and a regex.
pub fn topic_pattern(text: &str) -> Result<TopicPattern> {
    if text.is_empty() {
        return Err(Error::new(Kind::Config, "a topic's name is empty").hint("write a name, or ^ and a regex"));
    }
    if !text.starts_with('^') {
        return Ok(TopicPattern::Name(text.to_owned()));
    }
    Regex::new(text).map(TopicPattern::Regex).or_err(Kind::Config, || format!("{text:?} is not a regex"))
}

/// A set of partitions as a user writes it: `0,3-5`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partitions(Vec<RangeInclusive<i32>>);

impl Partitions {
    /// Whether `partition` is in it.
    pub fn contains(&self, partition: i32) -> bool {
        self.0.iter().any(|range| range.contains(&partition))
    }

    /// The partitions and ranges that are written and of which none is in `known`.
    pub fn without(&self, known: &BTreeSet<i32>) -> Vec<String> {
        let missing = self.0.iter().filter(|range| known.range((*range).clone()).next().is_none());
        missing.map(|range| Self(vec![range.clone()]).to_string()).collect()
    }

    /// The partition, if it is one alone.
    pub fn single(&self) -> Option<i32> {
        match self.0.as_slice() {
            [one] if one.start() == one.end() => Some(*one.start()),
            _ => None,
        }
    }
}

impl FromStr for Partitions {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = || {
            Error::new(Kind::Config, format!("{text:?} is not a list of partitions"))
                .hint("write numbers and ranges: --partitions 0,3-5")
        };
        let number = |text: &str| text.trim().parse::<i32>().ok().filter(|number| *number >= 0).ok_or_else(wrong);
        let ranges = text.split(',').map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let range = number(first)?..=number(last)?;
            if range.is_empty() { Err(wrong()) } else { Ok(range) }
        });
        ranges.collect::<Result<_>>().map(Self)
    }
}

impl fmt::Display for Partitions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.0.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            if range.start() == range.end() {
                write!(f, "{comma}{}", range.start())?;
            } else {
                write!(f, "{comma}{}-{}", range.start(), range.end())?;
            }
        }
        Ok(())
    }
}

/// Offsets as a user writes them, `A..B`: from A up to, and without, B. Either may be left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offsets {
    start: Option<i64>,
    end: Option<i64>,
}

impl Offsets {
    /// What of them a partition holds that is archived as far as `at`.
    fn within(self, at: &PartitionRange) -> Range<i64> {
        let start = self.start.unwrap_or(at.start).max(at.start);
        start..self.end.unwrap_or(at.end).min(at.end).max(start)
    }
}

impl FromStr for Offsets {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = || {
            Error::new(Kind::Config, format!("{text:?} is not a range of offsets"))
                .hint("write --offsets A..B: from A up to, and without, B; either may be left out")
        };
        let (start, end) = text.split_once("..").ok_or_else(wrong)?;
        let number = |text: &str| match text {
            "" => Ok(None),
            digits => digits.parse::<i64>().ok().filter(|number| *number >= 0).map(Some).ok_or_else(wrong),
        };
        let offsets = Self { start: number(start)?, end: number(end)? };
        match (offsets.start, offsets.end) {
            (None, None) => Err(wrong()),
            (Some(start), Some(end)) if start >= end => Err(wrong()),
            _ => Ok(offsets),
        }
    }
}

impl fmt::Display for Offsets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |bound: Option<i64>| bound.map_or(String::new(), |bound| bound.to_string());
        write!(f, "{}..{}", number(self.start), number(self.end))
    }
}

#[cfg(test)]
mod tests {
    use super::super::shortfalls::shortfalls;
    use super::*;
    use crate::manifest::coverage::Count;

    fn archive() -> Vec<TopicGeneration> {
        let ids = [("main", "orders", 1), ("main", "orders", 0), ("main", "cdc.users", 0), ("other", "orders", 0)];
        ids.map(|(cluster, topic, generation)| TopicGeneration::new(cluster, topic, generation)).to_vec()
    }

    fn named(query: &Query) -> Result<Vec<String>> {
        Ok(query.streams(&archive(), Some("main"))?.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn topics_are_named_and_matched_and_every_generation_is_meant() {
        let query = |text: &str| Query { topics: vec![topic_pattern(text).expect(text)], ..Query::default() };
        assert_eq!(named(&query("orders")).expect("name"), ["kafka/main/orders.0", "kafka/main/orders.1"]);
        assert_eq!(named(&query("^cdc\\.")).expect("regex"), ["kafka/main/cdc.users.0"]);
        assert_eq!(named(&Query::default()).expect("all").len(), 3);
        let error = named(&query("order")).expect_err("a name is not a prefix");
        assert!(error.hint_text().is_some_and(|hint| hint.contains("cdc.users") && hint.contains("orders")));
        assert!(named(&query("^x")).is_err());
        assert!(topic_pattern("^(").is_err() && topic_pattern("").is_err());
    }

    #[test]
    fn offsets_mean_the_newest_generation_unless_another_is_named() {
        let mut query = Query { offsets: Some("5..9".parse().expect("offsets")), ..Query::default() };
        assert_eq!(named(&query).expect("newest"), ["kafka/main/cdc.users.0", "kafka/main/orders.1"]);
        query.generation = Some(0);
        assert_eq!(named(&query).expect("named"), ["kafka/main/cdc.users.0", "kafka/main/orders.0"]);
        query.generation = Some(7);
        assert!(named(&query).is_err());
    }

    #[test]
    fn partitions_and_offsets_are_read_and_written_back() {
        let partitions: Partitions = "0,3-5".parse().expect("list");
        assert_eq!((0..7).filter(|p| partitions.contains(*p)).collect::<Vec<_>>(), [0, 3, 4, 5]);
        assert_eq!(partitions.to_string(), "0,3-5");
        assert_eq!(partitions.single(), None);
        assert_eq!("4".parse::<Partitions>().expect("one").single(), Some(4));
        assert!("0-2147483647".parse::<Partitions>().expect("wide").contains(i32::MAX));
        for wrong in ["", "a", "5-3", "-1", "1,,2", "1-2-3"] {
            assert_eq!(wrong.parse::<Partitions>().expect_err(wrong).exit_code(), 2);
        }
        for text in ["5..9", "5..", "..9"] {
            assert_eq!(text.parse::<Offsets>().expect(text).to_string(), text);
        }
        for wrong in ["", "..", "9..5", "5..5", "5-9", "-1..5", "a..b"] {
            assert_eq!(wrong.parse::<Offsets>().expect_err(wrong).exit_code(), 2);
        }
    }

    #[test]
    fn what_the_archive_has_not_reached_or_has_lost_is_said() {
        let at = |partition| PartitionRange {
            partition,
            start: 0,
            end: 100,
            records: 1,
            min_timestamp: Some(0),
            max_timestamp: Some(0),
        };
        let time = |ms| chrono::DateTime::from_timestamp_millis(ms).expect("a time");
        let lost = Gap {
            partition: 1,
            start: 5,
            end: 9,
            reason: crate::stream::GapReason::BrokerRetention,
            found: time(0),
            generation: 0,
        };
        let old = Source {
            expired: None,
            stream: TopicGeneration::new("main", "orders", 0),
            positions: vec![at(0), at(1)],
            wanted: BTreeMap::from([(0, 0..100), (1, 0..100)]),
            segments: Vec::new(),
            gaps: Vec::new(),
            complete: Completeness { known: 2, ..Completeness::default() },
        };
        let new = Source {
            stream: old.stream.next(),
            complete: Completeness {
                partitions: BTreeMap::from([(0, time(2_000)), (1, time(1_000))]),
                counts: vec![Count { partitions: 2, at: time(1_500) }],
                known: 2,
            },
            ..old.clone()
        };
        let until = |to| Query { timestamps: Some(0..to), ..Query::default() };
        assert!(
            shortfalls(&[old.clone(), new.clone()], &until(1_000), time(9_000)).is_empty(),
            "the old generation is over"
        );
        let late = shortfalls(&[old.clone(), new.clone()], &until(1_001), time(9_000));
        assert!(late.len() == 1 && late[0].contains("complete through 1970-01-01T00:00:01.000Z"), "{late:?}");
        assert!(shortfalls(std::slice::from_ref(&old), &until(1), time(9_000))[0].contains("not known"));
        let begun = Source { positions: Vec::new(), complete: Completeness::default(), ..old.clone() };
        assert!(shortfalls(&[begun], &until(1), time(9_000))[0].contains("nothing of orders is archived yet"));
        let offsets = Query { offsets: Some("0..101".parse().expect("offsets")), ..Query::default() };
        assert!(
            shortfalls(std::slice::from_ref(&new), &offsets, time(9_000))[0]
                .contains("partition 0 is archived up to offset 100")
        );
        let claims = new.complete.clone();
        let uncounted = Source { complete: Completeness { counts: Vec::new(), ..claims.clone() }, ..new.clone() };
        let unknown = shortfalls(&[uncounted], &until(1_000), time(9_000));
        assert!(unknown[0].contains("no archiver has said how many partitions it has"), "{unknown:?}");
        let counts = vec![Count { partitions: 3, at: time(1_500) }];
        let one_never_came = Source { complete: Completeness { counts, known: 3, ..claims }, ..new.clone() };
        let unknown = shortfalls(std::slice::from_ref(&one_never_came), &until(1_000), time(9_000));
        assert!(unknown[0].contains("up to when partition 2 is complete is not known"), "{unknown:?}");
        let everything = shortfalls(std::slice::from_ref(&one_never_came), &Query::default(), time(9_000));
        assert_eq!(everything, unknown, "who asks for everything is told, too");
        let late = shortfalls(std::slice::from_ref(&new), &Query::default(), time(1_001));
        assert!(late.len() == 1 && late[0].contains("complete through 1970-01-01T00:00:01.000Z"), "{late:?}");
        let third = Query { partitions: Some("2".parse().expect("partitions")), ..offsets };
        assert!(
            shortfalls(&[one_never_came], &third, time(9_000))[0].contains("nothing of orders partition 2 is archived")
        );
        let gap = shortfalls(&[Source { gaps: vec![lost], ..new }], &until(1_000), time(9_000));
        assert!(gap[0].contains("offsets 5..9 are lost (broker retention)"), "{gap:?}");
    }

    #[test]
    fn offsets_are_cut_to_what_is_archived() {
        let at = |start, end| PartitionRange {
            partition: 0,
            start,
            end,
            records: 1,
            min_timestamp: None,
            max_timestamp: None,
        };
        let within = |text: &str| text.parse::<Offsets>().expect(text).within(&at(10, 20));
        assert_eq!(within("5..15"), 10..15);
        assert_eq!(within("12.."), 12..20);
        assert_eq!(within("..12"), 10..12);
        assert!(within("30..40").is_empty() && within("1..5").is_empty());
    }
}
