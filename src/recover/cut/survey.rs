//! The records of topics, judged by a cut: which are in, and whether the archive has all that belong to it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use chrono::{DateTime, Utc};

use super::acknowledged::acknowledged;
use super::at::Cut;
use super::event::{Event, Read, of_headers, of_json};
use super::judge::{Connector, Counts, Judge, Judged, Partition};
use super::schemas::Schemas;
use super::{avro, event};
use crate::error::Result;
use crate::record::Record;
use crate::replay::{Chosen, Plan, Query, Rename, Source, Stop, look_through};
use crate::store::Store;
use crate::stream::TopicGeneration;
use crate::time;

/// What came of judging topics by a cut.
#[derive(Debug, Clone, Default)]
pub struct Survey {
    /// The records that are in.
    pub chosen: Chosen,
    /// Bytes of all keys and values that were judged.
    pub bytes: u64,
    /// How many are in and out.
    pub topics: BTreeMap<TopicGeneration, Counts>,
    /// What is known of connectors, by their `topic.prefix`.
    pub connectors: BTreeMap<String, Connector>,
    /// Why records may be missing that belong to the cut, in words.
    pub incomplete: Vec<String>,
    /// How often the log and what a connector says disagree.
    pub contradictions: u64,
    /// Where in each partition what lies beyond the cut begins.
    pub beyond: BTreeMap<(TopicGeneration, i32), i64>,
    /// Where the archive could not be read.
    pub stops: Vec<Stop>,
    /// What else the user should know.
    pub warnings: Vec<String>,
}

impl Survey {
    /// All counts together.
    pub fn total(&self) -> Counts {
        let mut total = Counts::default();
        self.topics.values().for_each(|counts| total.add(*counts));
        total
    }
}

/// Up to when the archive has each partition.
type Through = BTreeMap<(TopicGeneration, i32), DateTime<Utc>>;

/// Judges every record of `sources`.
///
/// # Errors
/// The store's own: what cannot be read is part of what is said.
pub async fn survey(store: &Store, sources: Vec<Source>, query: &Query, cut: Cut, schemas: &Schemas) -> Result<Survey> {
    let through: Through = sources.iter().flat_map(complete_of).collect();
    let known = known_of(&sources);
    let plan = Arc::new(Plan::new(sources, query, &Rename::default())?);
    let commit = (cut.end, cut.at);
    let mut judge = Judge::new(cut);
    let mut partitions: BTreeMap<(TopicGeneration, i32), Partition> = BTreeMap::new();
    let mut unknown: BTreeSet<u32> = BTreeSet::new();
    let mut bytes = 0_u64;
    let stops = look_through(store, &plan, |part, number, record| {
        let read = read(record, schemas, &mut unknown);
        bytes += [record.key, record.value].iter().flatten().map(|part| part.len() as u64).sum::<u64>();
        let at = (part.stream.clone(), number);
        let partition = partitions.entry(at).or_insert_with(|| Partition::of_topic(&part.stream.topic));
        let judged = Judged { offset: record.offset, timestamp: record.timestamp, key: record.key };
        judge.see(partition, judged, &read);
    })
    .await?;
    for (name, at) in acknowledged(store, &not_shown(&judge, &partitions), commit).await? {
        judge.connectors.entry(name).or_default().passed_at = Some(at);
    }
    let mut survey = Survey {
        bytes,
        contradictions: judge.contradictions(),
        incomplete: incomplete(&judge, &partitions, (&known, &through)),
        ..Survey::default()
    };
    let begins = |(at, partition): (&(TopicGeneration, i32), &Partition)| Some((at.clone(), partition.first_beyond?));
    survey.beyond = partitions.iter().filter_map(begins).collect();
    for ((stream, number), partition) in partitions {
        let (kept, counts) = judge.decide(&partition);
        survey.topics.entry(stream.clone()).or_default().add(counts);
        survey.chosen.0.entry(stream).or_default().insert(number, kept);
    }
    if !unknown.is_empty() {
        let ids: Vec<String> = unknown.iter().map(u32::to_string).collect();
        survey.warnings.push(format!(
            "records name schemas that no archived version of a registry has ({}): they are judged by their neighbours and their time",
            ids.join(", ")
        ));
    }
    survey.connectors = judge.connectors;
    survey.stops = stops;
    Ok(survey)
}

/// The transactions of which topics have an event, and the position of that.
///
/// # Errors
/// The store's own; what cannot be read is passed over.
pub async fn transactions(
    (store, sources, query): (&Store, Vec<Source>, &Query),
    schemas: &Schemas,
    wants: impl Fn(u32) -> bool,
) -> Result<BTreeSet<(u32, u64)>> {
    let plan = Arc::new(Plan::new(sources, query, &Rename::default())?);
    let (mut seen, mut last) = (BTreeSet::new(), None);
    look_through(store, &plan, |_, _, record| {
        if let Event::Streamed(place) = read(record, schemas, &mut BTreeSet::new()).event
            && let Some(xid) = place.xid
            && !place.may_be_snapshot
            && last != Some(xid)
        {
            last = Some(xid);
            if wants(xid) {
                seen.insert((xid, place.lsn));
            }
        }
    })
    .await?;
    Ok(seen)
}

fn complete_of(source: &Source) -> impl Iterator<Item = ((TopicGeneration, i32), DateTime<Utc>)> + use<> {
    let stream = source.stream.clone();
    let all: Vec<_> = source.complete.partitions.iter().map(|(partition, at)| (*partition, *at)).collect();
    all.into_iter().map(move |(partition, at)| ((stream.clone(), partition), at))
}

/// The partitions that the newest generation of each topic has, also those of which nothing is archived.
fn known_of(sources: &[Source]) -> BTreeSet<(TopicGeneration, i32)> {
    let mut newest: BTreeMap<(&str, &str), &Source> = BTreeMap::new();
    for source in sources {
        newest.insert((&source.stream.cluster, &source.stream.topic), source);
    }
    let of = |source: &Source| {
        let stream = source.stream.clone();
        (0..source.complete.known).map(move |partition| (stream.clone(), partition))
    };
    newest.into_values().flat_map(of).collect()
}

/// Reads what a record says of itself.
fn read(record: &Record<'_>, schemas: &Schemas, unknown: &mut BTreeSet<u32>) -> Read {
    let Some(value) = record.value else { return Read { event: Event::Tombstone, connector: None } };
    let headers = || record.headers().map(|header| (header.name, header.value));
    let mut read = match (schemas.of(value, headers()), value) {
        (Some((schema, value)), _) => avro::of_avro(value, schema),
        // JSON Schema has the id before the text.
        (None, [0, _, _, _, _, rest @ ..]) if rest.first() == Some(&b'{') => of_json(rest),
        (None, [0, a, b, c, d, _, ..]) => {
            unknown.insert(u32::from_be_bytes([*a, *b, *c, *d]));
            event::Read::unplaced()
        }
        (None, value) => of_json(value),
    };
    if matches!(read.event, Event::Unplaced { .. })
        && let Some(event) = of_headers(headers())
    {
        read.event = event;
    }
    read
}

/// The connectors of which no record shows that they have read beyond the cut.
fn not_shown(judge: &Judge, partitions: &BTreeMap<(TopicGeneration, i32), Partition>) -> BTreeSet<String> {
    let names = partitions.values().filter(|partition| !partition.is_of_heartbeats()).map(Partition::connector);
    let is_shown = |name: &str| judge.connectors.get(name).is_some_and(|connector| connector.passed_at.is_some());
    names.filter(|name| !is_shown(name)).map(str::to_owned).collect()
}

/// Says why records of transactions up to the cut may not have come into the archive. A connector has written all of them once it has
/// written anything that lies behind, or Connect an offset that does; the archive has them once it is complete up to then.
fn incomplete(
    judge: &Judge,
    partitions: &BTreeMap<(TopicGeneration, i32), Partition>,
    (known, through): (&BTreeSet<(TopicGeneration, i32)>, &Through),
) -> Vec<String> {
    let mut words = Vec::new();
    let of_connectors = || partitions.iter().filter(|(_, partition)| !partition.is_of_heartbeats());
    let names: BTreeSet<&str> = of_connectors().map(|(_, partition)| partition.connector()).collect();
    for name in names {
        let connector = judge.connectors.get(name);
        words.extend(connector.and_then(|connector| only_snapshot(name, connector)));
        let passed = connector.and_then(|connector| connector.passed_at);
        let Some(passed) = passed else {
            words.push(format!(
                "nothing shows that the connector {name} has written all that was committed up to the cut: no record of a later transaction is \
                 archived, nor a marker of the topic of transactions, nor an offset of it in Connect (kept by [state]; over a quiet database \
                 it moves with heartbeat.interval.ms)"
            ));
            continue;
        };
        let of_it =
            of_connectors().filter(|(_, partition)| partition.connector() == name && partition.first_beyond.is_none());
        // What is in a partition without records may not have come yet.
        let silent = known.iter().filter(|at| !partitions.contains_key(at));
        let silent = silent.filter(|(stream, _)| Partition::of_topic(&stream.topic).connector() == name);
        for at @ (stream, number) in of_it.map(|(at, _)| at).chain(silent) {
            if through.get(at).is_none_or(|through| through.timestamp_millis() < passed) {
                let known = through.get(at).map_or_else(|| "not known".to_owned(), |at| time::utc(*at));
                words.push(format!(
                    "{} partition {number} is complete up to {known}, and the connector {name} had written all at {}",
                    stream.topic,
                    time::rfc3339(passed)
                ));
            }
        }
    }
    words
}

/// Says that a connector took a new snapshot behind the cut before anything later was streamed.
fn only_snapshot(name: &str, connector: &Connector) -> Option<String> {
    let at = connector.snapshot_at.filter(|at| connector.passed_at.is_none_or(|passed| *at <= passed))?;
    Some(format!(
        "the connector {name} took a snapshot behind the cut ({}) before anything later was streamed: what lies between its last change \
         up to the cut and that snapshot is not shown",
        time::rfc3339(at)
    ))
}

#[cfg(test)]
mod tests {
    use super::super::event::Place;
    use super::*;

    /// Says why the records of these topics, all complete up to 9,000, may not be all up to a cut that ends at 100.
    fn told(records: &[(&str, i64, Event)]) -> Vec<String> {
        let mut judge = Judge::new(Cut { end: 100, at: 0, next_at: None, next_lsn: Some(150), committed: None });
        let (mut partitions, mut through) = (BTreeMap::new(), Through::new());
        for (offset, (topic, timestamp, event)) in (0..).zip(records) {
            let at = (TopicGeneration::new("main", *topic, 0), 0);
            through.insert(at.clone(), DateTime::from_timestamp_millis(9_000).expect("a time"));
            let partition = partitions.entry(at).or_insert_with(|| Partition::of_topic(topic));
            let read = Read { event: event.clone(), connector: None };
            judge.see(partition, Judged { offset, timestamp: *timestamp, key: None }, &read);
        }
        incomplete(&judge, &partitions, (&BTreeSet::new(), &through))
    }

    fn streamed(lsn: u64) -> Event {
        Event::Streamed(Place { after: Some(lsn - 1), lsn, ..Place::default() })
    }

    #[test]
    fn a_partition_without_records_is_asked_about_too() {
        let stream = TopicGeneration::new("main", "srv.public.t", 0);
        let mut judge = Judge::new(Cut { end: 100, at: 0, next_at: None, next_lsn: Some(150), committed: None });
        let mut partition = Partition::of_topic(&stream.topic);
        let event = Judged { offset: 0, timestamp: 8_000, key: None };
        judge.see(&mut partition, event, &Read { event: streamed(200), connector: None });
        let partitions = BTreeMap::from([((stream.clone(), 0), partition)]);
        let told = |known: &[(&str, i32)], complete: &[(i32, i64)]| {
            let known =
                known.iter().map(|(topic, number)| (TopicGeneration::new("main", *topic, 0), *number)).collect();
            let at = |ms| DateTime::from_timestamp_millis(ms).expect("a time");
            let through = complete.iter().map(|(number, ms)| ((stream.clone(), *number), at(*ms))).collect();
            incomplete(&judge, &partitions, (&known, &through))
        };
        let both = [("srv.public.t", 0), ("srv.public.t", 1), ("other", 0)];
        let unknown = told(&both, &[]);
        assert!(unknown.len() == 1 && unknown[0].contains("partition 1 is complete up to not known"), "{unknown:?}");
        assert_eq!(told(&both, &[(1, 7_999)]).len(), 1);
        assert!(told(&both, &[(1, 8_000)]).is_empty());
    }

    #[test]
    fn heartbeats_have_no_connector_to_wait_for() {
        let told = told(&[
            ("__debezium-heartbeat.srv", 1_000, Event::Heartbeat),
            ("srv.public.t", 1_000, streamed(50)),
            ("srv.public.t", 8_000, streamed(200)),
        ]);
        assert!(told.is_empty(), "{told:?}");
    }

    #[test]
    fn a_new_snapshot_leaves_open_what_was_streamed_before() {
        let snapshot = |timestamp| ("srv.public.t", timestamp, Event::Snapshot { lsn: 200, at: None });
        let (before, later) = (("srv.public.t", 1_000, streamed(50)), |at| ("srv.public.t", at, streamed(300)));
        let of_snapshot = |told: &[String]| told.iter().filter(|words| words.contains("took a snapshot")).count();
        let only = told(&[before.clone(), snapshot(5_000)]);
        assert_eq!((of_snapshot(&only), only.len()), (1, 2), "{only:?}");
        let first = told(&[before.clone(), snapshot(5_000), later(6_000)]);
        assert_eq!((of_snapshot(&first), first.len()), (1, 1), "{first:?}");
        let afterwards = told(&[before, later(5_000), snapshot(6_000)]);
        assert!(afterwards.is_empty(), "{afterwards:?}");
    }
}
