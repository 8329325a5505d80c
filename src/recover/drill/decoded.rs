//! Archived records, read with the schemas that a registry has given back.
//!
//! ```text
//!   segments of each topic, drawn by the seed ─► keys, values ─► the schema that each names ─► decoded whole? ─► what is not, by topic
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::moment::mixed;
use super::report::{Finding, Part, Records, Report, Schemas as Drilled};
use crate::config::Config;
use crate::error::Result;
use crate::record::Record;
use crate::recover::cut::{Name, Schemas, Side, is_whole, named};
use crate::replay::{Plan, Query, Rename, Source, look_through, readable, sources};
use crate::source::rest::subjects::Document;
use crate::store::Store;
use crate::stream::total;

/// Findings of one kind that are named.
const MOST_NAMED: usize = 50;

/// Schemas by the names that archived records have for them.
pub(super) struct Known {
    schemas: Schemas,
    /// The ids of schemas in JSON and in Protobuf.
    others: BTreeSet<u32>,
    /// The greatest id of all.
    greatest: u32,
    subjects: BTreeSet<String>,
}

impl Known {
    /// Those that a registry holds, with the archived ids where it has others.
    pub(super) fn of(held: &Document, archived: &Document, ids: &BTreeMap<i64, i64>) -> Self {
        let mut schemas = Schemas::default();
        schemas.add_all(held);
        let all = || archived.subjects.values().flat_map(|subject| subject.versions.values());
        let number = |id: i64| u32::try_from(id).ok();
        let is_there = |id: i64| {
            let now = ids.get(&id).copied().unwrap_or(id);
            held.subjects.values().flat_map(|subject| subject.versions.values()).any(|version| version.id == now)
        };
        Self {
            schemas: schemas.known_as(ids),
            others: all()
                .filter(|one| one.kind != "AVRO" && is_there(one.id))
                .filter_map(|one| number(one.id))
                .collect(),
            greatest: all().filter_map(|one| number(one.id)).max().unwrap_or_default(),
            subjects: archived.subjects.keys().cloned().collect(),
        }
    }

    fn judge(&self, side: Side, bytes: &[u8], record: &Record<'_>) -> Judged {
        let headers = || record.headers().map(|header| (header.name, header.value));
        if let Some((schema, name, value)) =
            named(side, bytes, headers()).find_map(|(name, value)| Some((self.schemas.named(name)?, name, value)))
        {
            return if is_whole(value, schema) { Judged::Decoded } else { Judged::Broken(name) };
        }
        match named(side, bytes, headers()).next() {
            Some((Name::Id(id), value)) if self.others.contains(&id) => {
                let is_json = value.first() == Some(&b'{');
                match is_json && serde_json::from_slice::<serde::de::IgnoredAny>(value).is_err() {
                    true => Judged::Broken(Name::Id(id)),
                    false => Judged::Named,
                }
            }
            Some((name, _)) => Judged::Unknown(name),
            None => Judged::Without,
        }
    }

    /// Whether bytes of a topic that look like the name of a schema are one, though there is no such schema.
    fn may_be_one(&self, name: Name, topic: &str, decoded: &BTreeSet<String>) -> bool {
        let has_subject =
            || [Side::Key, Side::Value].iter().any(|side| self.subjects.contains(&format!("{topic}-{}", side.name())));
        let is_near = match name {
            Name::Id(id) => id > 0 && id <= self.greatest,
            Name::Guid(_) => false,
        };
        is_near || decoded.contains(topic) || has_subject()
    }
}

/// What a key or a value is.
enum Judged {
    Decoded,
    Named,
    Without,
    Unknown(Name),
    Broken(Name),
}

/// What cannot be read, with where it was seen first.
struct Trouble {
    count: u64,
    partition: i32,
    offset: i64,
}

/// By topic, side, the schema that is named, and whether that is there.
type Troubles = BTreeMap<(String, Side, Name, bool), Trouble>;

/// Reads records up to a moment, of each topic about as many as are asked for, and tells what cannot be read.
///
/// # Errors
/// The store's own.
pub(super) async fn read(
    store: &Store,
    config: &Config,
    known: &Known,
    (until, seed, most): (i64, u64, u64),
    report: &mut Report<Drilled>,
) -> Result<()> {
    let query = Query { timestamps: Some(i64::MIN..until.saturating_add(1)), ..Query::default() };
    let cluster = config.kafka.as_ref().map(|kafka| kafka.cluster.as_str());
    let (mut sources, damaged) = readable(sources(store, cluster, &query).await?);
    for (generation, error) in damaged {
        report.found(Part::Records, generation.stream().to_string(), error.to_string());
    }
    let archived = Plan::new(sources.clone(), &query, &Rename::default())?.records().0;
    for (number, source) in (0..).zip(&mut sources) {
        draw(source, mixed(seed ^ mixed(number)), most);
    }
    let plan = Arc::new(Plan::new(sources, &query, &Rename::default())?);
    let mut counts = Records { topics: plan.parts.len() as u64, archived, ..Records::default() };
    let (mut troubles, mut decoded) = (Troubles::new(), BTreeSet::new());
    let stops = look_through(store, &plan, |part, partition, record| {
        counts.read += 1;
        let topic = &part.stream.topic;
        for (side, bytes) in [(Side::Key, record.key), (Side::Value, record.value)] {
            let Some(bytes) = bytes else { continue };
            let (name, is_there) = match known.judge(side, bytes, record) {
                Judged::Decoded => {
                    counts.decoded += 1;
                    if !decoded.contains(topic) {
                        decoded.insert(topic.clone());
                    }
                    continue;
                }
                Judged::Named => {
                    counts.named += 1;
                    continue;
                }
                Judged::Without => {
                    counts.without += 1;
                    continue;
                }
                Judged::Unknown(name) => (name, false),
                Judged::Broken(name) => (name, true),
            };
            let first = Trouble { count: 0, partition, offset: record.offset };
            troubles.entry((topic.clone(), side, name, is_there)).or_insert(first).count += 1;
        }
    })
    .await?;
    for stop in stops {
        let detail = format!("partition {} from offset {} to {}: {}", stop.partition, stop.from, stop.to, stop.why);
        report.found(Part::Records, stop.object, detail);
    }
    report.about.records = counts;
    tell(known, &troubles, &decoded, report);
    Ok(())
}

/// Leaves of a source some segments, drawn by the seed, that hold about as many records as are asked for.
fn draw(source: &mut Source, seed: u64, most: u64) {
    if total(source.segments.iter().map(|segment| segment.records())) <= most {
        return;
    }
    let mut drawn: Vec<usize> = (0..source.segments.len()).collect();
    drawn.sort_by_key(|number| mixed(seed ^ mixed(*number as u64)));
    let mut records = 0_u64;
    drawn.retain(|number| {
        let wanted = records < most;
        records = records.saturating_add(if wanted { source.segments[*number].records() } else { 0 });
        wanted
    });
    let kept: BTreeSet<usize> = drawn.into_iter().collect();
    let mut number = 0;
    source.segments.retain(|_| {
        number += 1;
        kept.contains(&(number - 1))
    });
}

fn tell(known: &Known, troubles: &Troubles, decoded: &BTreeSet<String>, report: &mut Report<Drilled>) {
    let (mut findings, mut others) = (Vec::new(), BTreeMap::<&str, u64>::new());
    for ((topic, side, name, is_there), Trouble { count, partition, offset }) in troubles {
        if !is_there && !known.may_be_one(*name, topic, decoded) {
            *others.entry(topic).or_default() += count;
            continue;
        }
        let side = side.name();
        let schema = match name {
            Name::Id(id) => format!("the schema id {id}"),
            Name::Guid(guid) => format!("the schema {:032x}", u128::from_be_bytes(*guid)),
        };
        let why = match is_there {
            true => "and cannot be read with it",
            false => "which the registry does not have",
        };
        let records = if *count == 1 { "1 record" } else { &format!("{count} records") };
        let detail = format!(
            "the {side} of {records} names {schema}, {why}; the first is partition {partition} offset {offset}"
        );
        findings.push(Finding { part: Part::Records, about: topic.clone(), detail });
    }
    let more = findings.len().saturating_sub(MOST_NAMED);
    findings.truncate(MOST_NAMED);
    report.findings.append(&mut findings);
    if more > 0 {
        report.found(Part::Records, "topics", format!("and {more} more of these"));
    }
    let told = others.into_iter().map(|(topic, count)| {
        format!("{topic}: {count} keys or values begin as if they named a schema, and no subject or record of it says that they do")
    });
    report.about.notes.extend(told);
}
