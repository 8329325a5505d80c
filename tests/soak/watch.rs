//! What must be so at any time.
//!
//! - `COMPLETE TO` is never ahead of the truth: what was acknowledged before that time is archived.
//! - No partition stands still with records to read while every archiver says that it is ready, for more than a minute.
//!
//! What `ls` says also goes into the ledger: a record that is archived before it is lost has to be there in the end.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use serde_json::Value;
use tidelog::config::Isolation;
use tidelog::source::kafka::OffsetAt;

use super::feed::id_of;
use super::ledger::RecordId;
use super::topics::{Character, Topic};
use super::world::World;

/// A partition may stand still for so long while all archivers are ready.
const STILL_AT_MOST: Duration = Duration::from_secs(60);

/// Where the newest generation of a topic stands.
#[derive(Debug)]
pub(super) struct Standing {
    pub(super) stream: String,
    pub(super) generation: u64,
    /// Of which incarnation it is; none: of one that is not known yet.
    pub(super) incarnation: Option<usize>,
    /// Up to which offset each partition is archived, or passed over for good; without those that nothing is said of.
    pub(super) reached: BTreeMap<i32, i64>,
    pub(super) complete: Option<DateTime<Utc>>,
    pub(super) complete_partitions: BTreeMap<i32, DateTime<Utc>>,
}

/// What `tidelog ls` says now.
pub(super) fn listing(world: &World) -> Option<Vec<Value>> {
    let output = world.site.tidelog(&["ls", "--json"]);
    if output.status != Some(0) {
        world.journal.fault(format!("ls ended with {:?}; it said:\n{}{}", output.status, output.stdout, output.stderr));
        return None;
    }
    Some(output.json()["streams"].as_array().expect("streams").clone())
}

/// Entry 0 of a stream.
pub(super) fn begin_of(world: &World, stream: &str) -> Value {
    let path = world.site.home().path().join("archive/manifest").join(stream).join(format!("{:020}.json", 0));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).expect("JSON")
}

fn time(value: &Value) -> Option<DateTime<Utc>> {
    Some(DateTime::parse_from_rfc3339(value.as_str()?).expect("RFC 3339").to_utc())
}

/// The partition of a row.
pub(super) fn partition(value: &Value) -> i32 {
    value["partition"].as_i64().and_then(|partition| partition.try_into().ok()).expect("a partition")
}

/// The newest generation of a topic in a listing.
pub(super) fn standing(world: &World, listing: &[Value], topic: &Topic) -> Option<Standing> {
    let of = listing.iter().filter(|row| row["topic"] == topic.name);
    let row = of.max_by_key(|row| row["generation"].as_u64())?;
    let stream = row["stream"].as_str().expect("a stream").to_owned();
    let begin = begin_of(world, &stream);
    let incarnation = begin["topic_id"].as_str().and_then(|id| world.ledger.books().by_topic_id(id));
    let starts = begin["starts"].as_array().cloned().unwrap_or_default();
    let mut reached: BTreeMap<i32, i64> =
        (0..).zip(&starts).filter_map(|(partition, start)| Some((partition, start.as_i64()?))).collect();
    let rows = row["partitions"].as_array().expect("partitions");
    reached.extend(rows.iter().map(|row| (partition(row), row["end"].as_i64().expect("an offset"))));
    let complete_partitions =
        rows.iter().filter_map(|row| Some((partition(row), time(&row["complete_through"])?))).collect();
    let generation = row["generation"].as_u64().expect("a generation");
    let complete = time(&row["complete_through"]);
    let mut standing = Standing { stream, generation, incarnation, reached, complete, complete_partitions };
    settle_doubts(world, topic, &mut standing);
    Some(standing)
}

/// Behind an unclean election the archive may reach far and hold records that the log has lost: what it holds where the log
/// was cut tells. While that is what was lost, it does not reach further for us.
fn settle_doubts(world: &World, topic: &Topic, standing: &mut Standing) {
    let Some(incarnation) = standing.incarnation else { return };
    let doubts: Vec<(i32, i64)> = {
        let books = world.ledger.books();
        let logs = &books.incarnations[incarnation].logs;
        logs.iter().filter_map(|(partition, log)| Some((*partition, log.doubt?))).collect()
    };
    for (partition, doubt) in doubts {
        let Some(reached) = standing.reached.get_mut(&partition).filter(|reached| **reached > doubt) else { continue };
        // What the brokers lost before it was archived is no cut for the archive: the generation in which the cut of another
        // partition is seen can begin behind it.
        let generations = (0..=standing.generation).rev();
        let found = generations.map(|generation| held_at(world, topic, generation, (partition, doubt)));
        let id = found.flatten().next();
        let mut books = world.ledger.books();
        let log = books.log(incarnation, partition);
        if id.is_some_and(|id| log.lost.iter().all(|lost| lost.id != id)) {
            log.doubt = None;
        } else {
            *reached = doubt;
        }
    }
}

/// The record that a generation has at an offset.
fn held_at(world: &World, topic: &Topic, generation: u64, (partition, offset): (i32, i64)) -> Option<RecordId> {
    let (generation, partition) = (generation.to_string(), partition.to_string());
    let offsets = format!("{offset}..{}", offset + 1);
    let place = ["--generation", &generation, "--partition", &partition, "--offsets", &offsets];
    let output = world.site.tidelog(&[&["cat", "--topic", topic.name], &place[..]].concat());
    let line: Value = serde_json::from_str(output.stdout.lines().next()?).ok()?;
    id_of(line["value"].as_str()?)
}

/// Notes how far a topic is archived, and gives it. None if the archive is at another incarnation.
pub(super) fn keep(world: &World, topic: &Topic) -> Option<BTreeMap<i32, i64>> {
    let standing = standing(world, &listing(world)?, topic)?;
    note_kept(world, topic, &standing).then_some(standing.reached)
}

fn note_kept(world: &World, topic: &Topic, standing: &Standing) -> bool {
    let (incarnation, _) = topic.present();
    if standing.incarnation != Some(incarnation) {
        return false;
    }
    let mut books = world.ledger.books();
    for (partition, reached) in &standing.reached {
        let log = books.log(incarnation, *partition);
        log.kept = log.kept.max(*reached);
    }
    true
}

/// A partition as it stood when it last moved.
struct Still {
    at: (u64, i64),
    since: Instant,
}

/// Looks every two seconds until the run is over.
pub(super) fn run(world: &World) {
    let mut still = BTreeMap::new();
    while !world.is_over() {
        let before: Vec<Option<u64>> = world.topics.iter().map(Topic::changes).collect();
        let Some(listing) = listing(world) else { return };
        for (topic, before) in world.topics.iter().zip(before) {
            let standing = standing(world, &listing, topic);
            // While a topic changes nobody can say what is true of it.
            if before.is_none() || topic.changes() != before {
                still.retain(|(name, _), _| *name != topic.name);
                continue;
            }
            if let Some(standing) = &standing {
                check_completeness(world, topic, standing);
                note_kept(world, topic, standing);
            }
            if topic.character != Character::Unclean {
                topic.learn_starts(world);
            }
            check_stillness(world, topic, standing.as_ref(), &mut still);
        }
        world.rest(Duration::from_secs(2));
    }
}

/// What was acknowledged before the time up to which the archive is complete is archived.
fn check_completeness(world: &World, topic: &Topic, standing: &Standing) {
    let (incarnation, _) = topic.present();
    let is_present = standing.incarnation == Some(incarnation);
    let books = world.ledger.books();
    for (partition, log) in &books.incarnations[incarnation].logs {
        let of_partition = standing.complete_partitions.get(partition).copied().filter(|_| is_present);
        let Some(complete) = standing.complete.max(of_partition) else { continue };
        let reached = standing.reached.get(partition).copied().filter(|_| is_present);
        let mut from = reached.unwrap_or(0);
        while let Some((offset, id)) = books.first_wanted(incarnation, *partition, from, i64::MAX) {
            from = offset + 1;
            let acknowledged = books.sent[id].acknowledged.map(|(_, at)| at);
            // Times in JSON have milliseconds.
            if let Some(at) = acknowledged.filter(|at| *at + Duration::from_millis(1) < complete) {
                world.journal.fault(format!(
                    "{} ({}) is said to be complete to {complete} (the partition: {of_partition:?}); record {id} of partition {partition}, offset {offset}, was acknowledged at {at} and is not archived: that reaches {reached:?} of the log that begins at {}, in doubt behind {:?}",
                    topic.name, standing.stream, log.start, log.doubt
                ));
                return;
            }
        }
    }
}

/// No partition stands still for long while all are ready.
fn check_stillness(
    world: &World,
    topic: &Topic,
    standing: Option<&Standing>,
    still: &mut BTreeMap<(&'static str, i32), Still>,
) {
    let (incarnation, partitions) = topic.present();
    let ends: BTreeMap<i32, i64> =
        world.offsets(topic.name, partitions, OffsetAt::Latest, Isolation::ReadCommitted).into_iter().collect();
    let present = standing.filter(|standing| standing.incarnation == Some(incarnation));
    for partition in 0..partitions {
        let reached = present.and_then(|standing| standing.reached.get(&partition)).copied().unwrap_or(0);
        let first = ends.get(&partition).and_then(|end| {
            let books = world.ledger.books();
            books.first_wanted(incarnation, partition, reached, *end)
        });
        let Some((offset, id)) = first else {
            still.remove(&(topic.name, partition));
            continue;
        };
        let at = (present.map_or(0, |standing| standing.generation), reached);
        let stood = still.entry((topic.name, partition)).or_insert(Still { at, since: Instant::now() });
        if stood.at != at {
            *stood = Still { at, since: Instant::now() };
        }
        let since = stood.since.max(world.archivers.ready_since());
        if since.elapsed() > STILL_AT_MOST {
            world.journal.fault(format!(
                "{} partition {partition} stands at {reached} of {standing:?} for {} s, with record {id} at offset {offset} to read (the log can be read to {:?}), and every archiver is ready:\n{}",
                topic.name,
                since.elapsed().as_secs(),
                ends.get(&partition),
                world.archivers.answers().join("\n")
            ));
            return;
        }
    }
}
