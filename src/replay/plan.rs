//! What a replay will do, worked out before anything is sent, and without I/O.
//!
//! In go the [`Source`]s that hold wanted records, the query and where the topics go; out comes a [`Plan`]: parts, one a
//! generation of a topic, in the order in which they are sent, each with its segments and the exact rows wanted of them.
//!
//! Numbers are exact where a segment lies wholly in the range. A segment that straddles an end counts in full, and the
//! plan then says "at most": to count exactly would mean to read those segments twice.

use std::collections::{BTreeMap, BTreeSet};

use regex::{Captures, Regex};

use super::chosen::{Chosen, Kept};
use super::matching::{PlannedPartition, matching};
use super::schema_ids::SchemaIds;
use super::select::{Query, Source};
use crate::error::{Error, Kind, Result};
use crate::segment::Filter;
use crate::stream::{SegmentRef, TopicGeneration, total};

/// How far a replay has come: by target topic and partition.
pub type Marks = BTreeMap<(String, i32), Mark>;

/// How far one target partition has come: the next source record to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark {
    /// The generation of the source topic.
    pub generation: u32,
    /// The next source offset.
    pub offset: i64,
}

/// What a replay will do.
#[derive(Debug, Clone)]
pub struct Plan {
    /// One generation of a topic each, in the order of sending; those of one topic oldest first.
    pub parts: Vec<Part>,
    /// The schemas that have another id at the target.
    pub schema_ids: SchemaIds,
}

/// What is sent of one generation of a topic.
#[derive(Debug, Clone)]
pub struct Part {
    /// The topic and its generation.
    pub stream: TopicGeneration,
    /// The topic that it is sent to.
    pub target: String,
    /// How many partitions the source has.
    pub source_partitions: i32,
    /// The segments that can hold wanted rows, in chain order.
    pub segments: Vec<SegmentRef>,
    /// The rows that are wanted of them.
    pub filter: Filter,
    /// Those of them that are sent, by partition; none means all.
    pub kept: Option<BTreeMap<i32, Kept>>,
    /// What is sent by partition, in order.
    pub partitions: Vec<PlannedPartition>,
    /// Bytes of keys, values and headers (an estimate where a segment straddles an end).
    pub bytes: u64,
}

impl Plan {
    /// The plan of `query` over `sources`.
    ///
    /// # Errors
    /// `Kind::Config` if two topics would be sent to the same one.
    pub fn new(sources: Vec<Source>, query: &Query, rename: &Rename) -> Result<Self> {
        let mut taken: BTreeMap<String, (String, String)> = BTreeMap::new();
        let mut parts = Vec::with_capacity(sources.len());
        for source in sources {
            let target = rename.target(&source.stream.topic)?;
            let topic = (source.stream.cluster.clone(), source.stream.topic.clone());
            let first = taken.entry(target.clone()).or_insert_with(|| topic.clone());
            if *first != topic {
                return Err(Error::new(
                    Kind::Config,
                    format!("{} and {} would both be sent to {target}", first.1, topic.1),
                )
                .hint("choose a --rename that keeps the topics apart, or replay them one after the other"));
            }
            parts.push(Part::new(source, target, query));
        }
        parts.retain(|part| !part.partitions.is_empty());
        Ok(Self { parts, schema_ids: SchemaIds::default() })
    }

    /// The plan of what is `chosen` alone; of everything where nothing is.
    #[must_use]
    pub fn only(mut self, chosen: Option<&Chosen>) -> Self {
        let Some(chosen) = chosen else { return self };
        self.parts = self.parts.into_iter().map(|part| part.only(chosen)).collect();
        self.parts.retain(|part| !part.partitions.is_empty());
        self
    }

    /// The plan without what `marks` say has been sent.
    #[must_use]
    pub fn after(&self, marks: &Marks) -> Self {
        let mut rest = self.rest(marks);
        rest.parts.retain(|part| !part.partitions.is_empty());
        rest
    }

    /// The same, with every part still in its place, though nothing be left of it.
    #[must_use]
    pub(super) fn rest(&self, marks: &Marks) -> Self {
        let parts = self.parts.iter().map(|part| part.after(marks)).collect();
        Self { parts, schema_ids: self.schema_ids.clone() }
    }

    /// The records, or how many at most, and whether that is exact.
    pub fn records(&self) -> (u64, bool) {
        let all = || self.parts.iter().flat_map(|part| &part.partitions);
        (total(all().map(|partition| partition.records)), all().all(|partition| partition.exact))
    }

    /// The bytes of keys, values and headers.
    pub fn bytes(&self) -> u64 {
        total(self.parts.iter().map(|part| part.bytes))
    }

    /// The bytes of the segments that are read.
    pub fn stored_bytes(&self) -> u64 {
        total(self.parts.iter().flat_map(|part| &part.segments).map(|segment| segment.bytes))
    }

    /// How many segments are read.
    pub fn segments(&self) -> usize {
        self.parts.iter().map(|part| part.segments.len()).sum()
    }

    /// How many milliseconds lie between the least and the greatest timestamp that can come.
    pub fn span(&self) -> u64 {
        let all = || self.parts.iter().flat_map(|part| &part.partitions);
        let least = all().map(|partition| partition.min_timestamp).min();
        let greatest = all().map(|partition| partition.max_timestamp).max();
        least.zip(greatest).map_or(0, |(least, greatest)| greatest.abs_diff(least))
    }

    /// Every target partition, once.
    pub fn target_partitions(&self) -> Vec<(String, i32)> {
        let all =
            self.parts.iter().flat_map(|part| part.partitions.iter().map(|at| (part.target.clone(), at.partition)));
        all.collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// The target topics.
    pub fn targets(&self) -> BTreeSet<&str> {
        self.parts.iter().map(|part| part.target.as_str()).collect()
    }
}

impl Part {
    fn new(source: Source, target: String, query: &Query) -> Self {
        let (timestamps, with_key) = (query.timestamps.clone(), query.with_key.clone());
        let filter = Filter { partitions: Some(source.wanted), timestamps, with_key };
        let part = Self {
            source_partitions: source.complete.known,
            stream: source.stream,
            target,
            segments: source.segments,
            filter,
            kept: None,
            partitions: Vec::new(),
            bytes: 0,
        };
        part.counted()
    }

    fn only(mut self, chosen: &Chosen) -> Self {
        let kept = chosen.of(&self.stream);
        for (partition, range) in self.filter.partitions.iter_mut().flatten() {
            let within = kept.get(partition).map(|kept| kept.within(range)).unwrap_or_default();
            *range = match (within.first(), within.last()) {
                (Some(first), Some(last)) => first.start..last.end,
                _ => range.start..range.start,
            };
        }
        self.kept = Some(kept);
        self.counted()
    }

    fn after(&self, marks: &Marks) -> Self {
        let mut part = self.clone();
        for (&partition, range) in part.filter.partitions.iter_mut().flatten() {
            match marks.get(&(part.target.clone(), partition)) {
                Some(mark) if mark.generation > part.stream.number => range.start = range.end,
                Some(mark) if mark.generation == part.stream.number => range.start = range.start.max(mark.offset),
                _ => {}
            }
        }
        part.counted()
    }

    /// Drops the segments that the filter lets nothing of, and counts what it lets of the others.
    fn counted(mut self) -> Self {
        let mut partitions: BTreeMap<i32, PlannedPartition> = BTreeMap::new();
        self.bytes = 0;
        self.segments.retain(|segment| {
            let mut records: u64 = 0;
            for planned in segment.partitions.iter().filter_map(|range| matching(range, &self.filter)) {
                records = records.saturating_add(planned.records);
                partitions.entry(planned.partition).and_modify(|sum| sum.add(&planned)).or_insert(planned);
            }
            self.bytes = self.bytes.saturating_add(share(segment.raw_bytes, records, segment.records()));
            records > 0
        });
        for (partition, planned) in &mut partitions {
            let kept = self.kept.as_ref().and_then(|kept| kept.get(partition));
            planned.exact &= kept.is_none_or(|kept| kept.within(&(planned.start..planned.end)).len() <= 1);
        }
        self.partitions = partitions.into_values().collect();
        self
    }

    /// The size of the largest record that can come.
    pub fn largest_record(&self) -> u64 {
        self.segments.iter().map(|segment| segment.largest_record).max().unwrap_or(0)
    }
}

/// `total` times `part / whole`.
fn share(total: u64, part: u64, whole: u64) -> u64 {
    if whole == 0 {
        return 0;
    }
    u64::try_from(u128::from(total) * u128::from(part) / u128::from(whole)).unwrap_or(total)
}

/// Where topics go: `--rename RE=TEMPLATE`. The first match of the regex in a topic's name is replaced by the template,
/// in which `$1` and `${name}` stand for its groups; a name without a match stays.
#[derive(Debug, Clone, Default)]
pub struct Rename(Option<(Regex, String)>);

impl Rename {
    /// The rule that `text` writes.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = |why: String| {
            Error::new(Kind::Config, format!("--rename {text:?}: {why}"))
                .hint("write a regex, = and what replaces it: --rename '(.*)=replay.$1'")
        };
        // A topic's name holds no `=`, a regex may.
        let (regex, template) = text.rsplit_once('=').ok_or_else(|| wrong("there is no =".to_owned()))?;
        let regex = Regex::new(regex).map_err(|error| wrong(error.to_string()))?;
        if let Some(group) = unknown_group(&regex, template) {
            return Err(wrong(format!("the regex has no group {group:?} (write ${{1}} before a letter, digit or _)")));
        }
        Ok(Self(Some((regex, template.to_owned()))))
    }

    /// The topic that `topic` is sent to.
    pub fn target(&self, topic: &str) -> Result<String> {
        let target = match &self.0 {
            Some((regex, template)) => regex.replace(topic, template).into_owned(),
            None => topic.to_owned(),
        };
        // What Kafka allows: org.apache.kafka.common.internals.Topic.
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if target.is_empty() || target.len() > 249 || target == "." || target == ".." || !target.chars().all(allowed) {
            return Err(Error::new(
                Kind::Config,
                format!("{topic} would be sent to {target:?}, which is no topic name"),
            )
            .hint("a topic's name has 1 to 249 letters, digits, dots, underscores and dashes"));
        }
        Ok(target)
    }

    /// The rule as it was written.
    pub fn text(&self) -> Option<String> {
        self.0.as_ref().map(|(regex, template)| format!("{regex}={template}"))
    }
}

/// A group that `template` names and `regex` does not have: it would silently stand for nothing.
fn unknown_group(regex: &Regex, template: &str) -> Option<String> {
    let reference = Regex::new(r"\$(?:\$|([0-9A-Za-z_]+)|\{([^}]*)\})").ok()?;
    let name_of = |captures: &Captures<'_>| captures.get(1).or(captures.get(2)).map(|name| name.as_str().to_owned());
    let known = |name: &str| match name.parse::<usize>() {
        Ok(number) => number < regex.captures_len(),
        Err(_) => regex.capture_names().flatten().any(|known| known == name),
    };
    reference.captures_iter(template).filter_map(|captures| name_of(&captures)).find(|name| !known(name))
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::*;
    use crate::manifest::coverage::Completeness;
    use crate::replay::journal;
    use crate::stream::Format;
    use crate::stream::PartitionRange;

    fn range(partition: i32, offsets: Range<i64>, records: u64, times: Range<i64>) -> PartitionRange {
        PartitionRange {
            partition,
            start: offsets.start,
            end: offsets.end,
            records,
            min_timestamp: (records > 0).then_some(times.start),
            max_timestamp: (records > 0).then_some(times.end - 1),
        }
    }

    fn segment(partitions: Vec<PartitionRange>) -> SegmentRef {
        SegmentRef {
            object: String::new(),
            format: Format::Parquet,
            bytes: 10,
            sha256: String::new(),
            raw_bytes: 1000,
            largest_record: 50,
            partitions,
            last: Vec::new(),
            generation: 0,
            minimal: None,
        }
    }

    /// Partition 0: offsets 0..20 at 100..200 and 20..30 at 150..300; partition 1: 5..15 at 100..200, two of them empty.
    fn source(generation: u32) -> Source {
        let segments = vec![
            segment(vec![range(0, 0..20, 20, 100..200), range(1, 5..15, 8, 100..200)]),
            segment(vec![range(0, 20..30, 10, 150..300), range(1, 15..16, 0, 0..0)]),
        ];
        Source {
            expired: None,
            stream: TopicGeneration::new("main", "orders", generation),
            positions: vec![range(0, 0..30, 30, 100..300), range(1, 5..16, 8, 100..200)],
            wanted: BTreeMap::new(),
            segments,
            gaps: Vec::new(),
            complete: Completeness { known: 2, ..Completeness::default() },
        }
    }

    #[test]
    fn what_is_chosen_alone_is_planned_and_goes_on_as_it_was_begun() {
        let whole = plan(&Query::default(), &Marks::new());
        let kept = Kept::of(vec![3..8, 12..22]);
        let chosen = Chosen([(source(0).stream, BTreeMap::from([(0, kept)]))].into());
        let only = whole.clone().only(Some(&chosen));
        assert_eq!(only.parts.len(), 1, "nothing is chosen of the other generation");
        let planned = &only.parts[0].partitions;
        assert_eq!((planned.len(), planned[0].start, planned[0].end), (1, 3, 22), "nor of the other partition");
        assert!(!only.records().1, "the offsets between are not sent");
        let pinned = journal::pinned(&only);
        assert_ne!(
            journal::digest_of(&pinned).expect("a digest"),
            journal::digest_of(&journal::pinned(&whole)).expect("a digest")
        );
        assert_eq!(pinned[0].kept(), chosen.of(&source(0).stream));
        assert_eq!(whole.clone().only(None).records(), whole.records());
        let marks = [(("orders".to_owned(), 0), Mark { generation: 0, offset: 10 })].into();
        assert_eq!(only.after(&marks).parts[0].kept, only.parts[0].kept);
    }

    fn plan(query: &Query, marks: &Marks) -> Plan {
        let wanted = |mut source: Source| {
            source.wanted = query.ranges(&source.positions);
            source
        };
        let sources = vec![wanted(source(0)), wanted(source(1))];
        Plan::new(sources, query, &Rename::default()).expect("a plan").after(marks)
    }

    #[test]
    fn everything_is_counted_exactly() {
        let plan = plan(&Query::default(), &Marks::new());
        assert_eq!(plan.records(), (76, true));
        assert_eq!((plan.bytes(), plan.stored_bytes(), plan.segments()), (4000, 40, 4));
        assert_eq!(plan.parts[0].partitions.iter().map(|p| (p.start, p.end)).collect::<Vec<_>>(), [(0, 30), (5, 15)]);
    }

    #[test]
    fn a_segment_that_straddles_the_range_counts_at_most_and_others_not_at_all() {
        let query = Query { timestamps: Some(200..400), ..Query::default() };
        let straddling = plan(&query, &Marks::new());
        assert_eq!(straddling.records(), (20, false));
        assert_eq!(straddling.segments(), 2, "the first segment of each generation ends before the range");
        let whole = plan(&Query { timestamps: Some(100..300), ..Query::default() }, &Marks::new());
        assert_eq!(whole.records(), (76, true));
        assert!(plan(&Query { timestamps: Some(300..400), ..Query::default() }, &Marks::new()).parts.is_empty());
    }

    #[test]
    fn offsets_bound_the_count() {
        let query = Query {
            offsets: Some("18..22".parse().expect("offsets")),
            partitions: Some("0".parse().expect("partitions")),
            ..Query::default()
        };
        assert_eq!(
            plan(&query, &Marks::new()).parts[0].partitions.first().map(|p| (p.start, p.end, p.records)),
            Some((18, 22, 4))
        );
    }

    #[test]
    fn what_was_sent_is_not_planned_again_and_generations_stay_apart() {
        let mark = |generation, offset| Mark { generation, offset };
        let marks =
            |first, second| Marks::from([(("orders".to_owned(), 0), first), (("orders".to_owned(), 1), second)]);
        let resumed = plan(&Query::default(), &marks(mark(0, 20), mark(1, 7)));
        let planned: Vec<_> = resumed
            .parts
            .iter()
            .flat_map(|part| part.partitions.iter().map(|p| (part.stream.number, p.partition, p.start, p.end)))
            .collect();
        assert_eq!(planned, [(0, 0, 20, 30), (1, 0, 0, 30), (1, 1, 7, 15)]);
        assert!(plan(&Query::default(), &marks(mark(1, 30), mark(1, 15))).parts.is_empty(), "a finished replay");
    }

    #[test]
    fn two_topics_never_go_to_one() {
        let other = Source { stream: TopicGeneration::new("main", "users", 0), ..source(0) };
        let rename = Rename::parse(".*=all").expect("a rule");
        let error = Plan::new(vec![source(0), other], &Query::default(), &rename).expect_err("a clash");
        assert!(error.to_string().contains("orders and users would both be sent to all"));
        assert_eq!(error.exit_code(), 2);
    }

    #[test]
    fn topics_are_renamed() {
        let target = |rule: &str, topic: &str| Rename::parse(rule).and_then(|rule| rule.target(topic));
        assert_eq!(target("(.*)=replay.$1", "cdc.users").expect("a rule"), "replay.cdc.users");
        assert_eq!(target("^cdc\\.=old.", "cdc.users").expect("a rule"), "old.users");
        assert_eq!(target("^cdc\\.=old.", "orders").expect("no match"), "orders");
        assert_eq!(target("(?P<name>.*)=${name}_copy", "a").expect("a rule"), "a_copy");
        for wrong in ["x", "(=y", "(.*)=$1_copy", "(.*)=$2", "(.*)=${what}"] {
            assert_eq!(Rename::parse(wrong).expect_err(wrong).exit_code(), 2);
        }
        for wrong in [".*=", ".*=a b", ".*=..", ".*=ä"] {
            assert_eq!(target(wrong, "a").expect_err(wrong).exit_code(), 2);
        }
    }
}
