//! What must be so in the end: the archive against the ledger, and against the logs as they are.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use chrono::Utc;
use serde::Deserialize;
use serde_json::Value;
use tidelog::config;
use tidelog::source::kafka::OffsetAt;

use super::elections::placed;
use super::feed::id_of;
use super::ledger::{Books, Outcome, RecordId};
use super::topics::{Character, Topic};
use super::watch::{begin_of, listing, partition, standing};
use super::world::World;
use crate::rig::topics::Isolation;

/// How long the archive may take for what is left when all is well again.
const CATCH_UP: Duration = Duration::from_secs(150);

/// So many faults of a kind are told.
const MOST_TOLD: usize = 5;

/// Ends the records, and waits until the archive has all of them and says so.
pub(super) fn settle(world: &World) {
    if world.is_over() {
        return;
    }
    world.be_quiet();
    world.topics.iter().for_each(Topic::pause);
    world.wait("open transactions to end", CATCH_UP, || world.topics.iter().all(|topic| is_stable(world, topic)));
    let quiet = tidelog::time::now();
    world.journal.note("all records are sent");
    let mut lacks = String::new();
    let settled = world.wait("the archive to be complete", CATCH_UP, || {
        let Some(listing) = listing(world) else { return false };
        let lacking: Vec<String> =
            world.topics.iter().filter_map(|topic| lacking(world, &listing, topic, quiet)).collect();
        lacks = lacking.join("\n");
        lacks.is_empty()
    });
    if !settled {
        world.journal.note(format!("what it lacks:\n{lacks}\n{}", world.archivers.answers().join("\n")));
    }
}

/// Whether everything in a topic can be read.
fn is_stable(world: &World, topic: &Topic) -> bool {
    let (_, partitions) = topic.present();
    let ends = |isolation| world.offsets(topic.name, partitions, OffsetAt::Latest, isolation);
    let committed = ends(config::Isolation::ReadCommitted);
    committed.len() == partitions.unsigned_abs() as usize && committed == ends(config::Isolation::ReadUncommitted)
}

/// What the archive does not have of a topic yet.
fn lacking(world: &World, listing: &[Value], topic: &Topic, quiet: chrono::DateTime<Utc>) -> Option<String> {
    let (incarnation, partitions) = topic.present();
    let Some(standing) = standing(world, listing, topic) else { return Some(format!("{}: nothing", topic.name)) };
    let is_there = |(partition, end): &(i32, i64)| {
        let reached = standing.reached.get(partition).copied().unwrap_or(0);
        world.ledger.books().first_wanted(incarnation, *partition, reached, *end).is_none()
    };
    let ends = world.offsets(topic.name, partitions, OffsetAt::Latest, config::Isolation::ReadCommitted);
    let whole = standing.incarnation == Some(incarnation) && ends.iter().all(is_there);
    let told = standing.complete.is_some_and(|complete| complete >= quiet);
    (!whole || !told).then(|| format!("{}: the logs end at {ends:?}, the archive is at {standing:?}", topic.name))
}

/// A line of `tidelog cat`.
#[derive(Deserialize)]
struct Line {
    partition: i32,
    offset: i64,
    value: String,
}

/// Where the archive has a record.
#[derive(Clone, Copy, Debug)]
struct Archived {
    stream: usize,
    partition: i32,
    offset: i64,
}

/// One generation in the archive.
struct Stream {
    name: String,
    topic: String,
    generation: u64,
    incarnation: Option<usize>,
    /// Where the archive of each partition begins.
    starts: BTreeMap<i32, i64>,
    gaps: Vec<Gap>,
}

#[derive(Deserialize, Debug)]
struct Gap {
    partition: i32,
    start: i64,
    end: i64,
    reason: String,
}

struct Judge<'a> {
    world: &'a World,
    books: &'a Books,
    streams: Vec<Stream>,
    archived: HashMap<RecordId, Archived>,
    /// Records that a generation has twice, or where they were not acknowledged: only the log tells whether it has them there, too.
    odd: Vec<(RecordId, Archived)>,
    told: RefCell<BTreeMap<&'static str, usize>>,
}

/// Compares. The archivers are stopped before.
pub(super) fn run(world: &World) {
    if world.journal.is_faulty() {
        return;
    }
    for at in 0..super::archivers::PLACES {
        world.archivers.stop(at);
    }
    world
        .topics
        .iter()
        .filter(|topic| topic.character != Character::Unclean)
        .for_each(|topic| topic.learn_all_starts(world));
    verify(world);
    let Some(listing) = listing(world) else { return };
    let streams = listing.iter().map(|row| stream(world, row)).collect();
    let books = world.ledger.books();
    let judge =
        Judge { world, books: &books, streams, archived: HashMap::new(), odd: Vec::new(), told: RefCell::default() };
    judge.run();
}

fn verify(world: &World) {
    let output = world.site.tidelog(&["verify", "--deep", "--json"]);
    if output.status != Some(0) || output.json()["errors"] != serde_json::json!([]) {
        world
            .journal
            .fault(format!("verify --deep ended with {:?}: {}{}", output.status, output.stdout, output.stderr));
    }
}

fn stream(world: &World, row: &Value) -> Stream {
    let name = row["stream"].as_str().expect("a stream").to_owned();
    let begin = begin_of(world, &name);
    let ranges = row["partitions"].as_array().expect("partitions");
    let mut starts: BTreeMap<i32, i64> =
        ranges.iter().map(|range| (partition(range), range["start"].as_i64().expect("an offset"))).collect();
    let begun = begin["starts"].as_array().into_iter().flatten();
    starts.extend((0..).zip(begun).filter_map(|(partition, start)| Some((partition, start.as_i64()?))));
    Stream {
        starts,
        incarnation: begin["topic_id"].as_str().and_then(|id| world.ledger.books().by_topic_id(id)),
        topic: row["topic"].as_str().expect("a topic").to_owned(),
        generation: row["generation"].as_u64().expect("a generation"),
        gaps: serde_json::from_value(row["gaps"].clone()).expect("gaps"),
        name,
    }
}

/// What can be read of a topic now.
fn held(world: &World, topic: &Topic) -> BTreeSet<(i32, i64, RecordId)> {
    world.kafka.consume(topic.name, Isolation::Committed).iter().filter_map(placed).collect()
}

impl Judge<'_> {
    fn fault(&self, kind: &'static str, text: impl FnOnce() -> String) {
        let count = {
            let mut told = self.told.borrow_mut();
            let count = told.entry(kind).or_default();
            *count += 1;
            *count
        };
        if count <= MOST_TOLD {
            self.world.journal.fault(format!("{kind}: {}", text()));
        }
    }

    fn run(mut self) {
        for at in 0..self.streams.len() {
            self.read(at);
            self.judge_gaps(at);
        }
        self.judge_order();
        for incarnation in 0..self.books.incarnations.len() {
            self.judge_incarnation(incarnation);
        }
        let world = self.world;
        for topic in &world.topics {
            self.judge_log(topic);
        }
        self.judge_odd();
        for (kind, count) in self.told.borrow().iter() {
            world.journal.note(format!("in all {count} times: {kind}"));
        }
        world.journal.note(format!("{} records in {} generations", self.archived.len(), self.streams.len()));
    }

    /// Generations follow each other as the topics did.
    fn judge_order(&self) {
        let mut all: Vec<(String, u64, Option<usize>)> =
            self.streams.iter().map(|one| (one.topic.clone(), one.generation, one.incarnation)).collect();
        all.sort();
        for pair in all.windows(2) {
            let [(topic, _, before), (other, _, after)] = pair else { continue };
            if topic == other && before > after {
                self.fault("generations in another order than the topics", || format!("{pair:?}"));
            }
        }
    }

    /// Every record of a generation was sent, to this incarnation and partition, and not aborted; none comes twice.
    fn read(&mut self, at: usize) {
        let (topic, generation) = (self.streams[at].topic.clone(), self.streams[at].generation.to_string());
        let output = self.world.site.tidelog(&["cat", "--topic", &topic, "--generation", &generation]).expect(0);
        // Which elections took records that are here, and the last one after which a record was sent, by partition.
        let mut taken: BTreeMap<i32, (usize, RecordId)> = BTreeMap::new();
        let mut later: BTreeMap<i32, (usize, RecordId)> = BTreeMap::new();
        let lost: HashMap<RecordId, usize> = self.losses().map(|(_, _, lost)| (lost.id, lost.election)).collect();
        for line in output.stdout.lines() {
            let line: Line = serde_json::from_str(line).expect("a line of cat");
            let Some(id) = id_of(&line.value).filter(|id| *id < self.books.sent.len()) else {
                self.fault("a record that was never sent", || format!("{topic} {generation}: {}", line.value));
                continue;
            };
            let found = Archived { stream: at, partition: line.partition, offset: line.offset };
            self.judge_record(id, found);
            match lost.get(&id) {
                Some(election) if taken.get(&line.partition).is_none_or(|(known, _)| election < known) => {
                    taken.insert(line.partition, (*election, id));
                }
                Some(_) => {}
                None => {
                    let elections = self.books.sent[id].elections;
                    let last = later.entry(line.partition).or_insert((elections, id));
                    if last.0 < elections {
                        *last = (elections, id);
                    }
                }
            }
        }
        for (partition, (election, gone)) in taken {
            let Some((elections, id)) = later.get(&partition).copied().filter(|(last, _)| *last >= election) else {
                continue;
            };
            self.fault("what an unclean election took and what came after it, in one generation", || {
                format!("{topic} {generation} partition {partition}: record {gone}, lost in election {election}, and record {id}, sent after {elections}")
            });
        }
    }

    fn losses(&self) -> impl Iterator<Item = (usize, i32, super::ledger::Lost)> + '_ {
        self.books.incarnations.iter().enumerate().flat_map(|(incarnation, one)| {
            one.logs
                .iter()
                .flat_map(move |(partition, log)| log.lost.iter().map(move |lost| (incarnation, *partition, *lost)))
        })
    }

    fn judge_record(&mut self, id: RecordId, found: Archived) {
        let sent = self.books.sent[id];
        let stream = &self.streams[found.stream];
        let place = format!("record {id} in {} {found:?}", stream.name);
        if stream.incarnation != Some(sent.incarnation) {
            let topic_id = &self.books.incarnations[sent.incarnation].topic_id;
            self.fault("a record in another generation", || format!("{place}: it was sent to {topic_id}"));
        }
        if sent.partition != found.partition {
            self.fault("a record in another place", || format!("{place}: {sent:?}"));
        }
        if sent.acknowledged.is_some_and(|(offset, _)| offset != found.offset) {
            self.odd.push((id, found));
        }
        if self.books.outcome(id) == Outcome::Aborted {
            self.fault("a record that was aborted", || place.clone());
        }
        let Some(before) = self.archived.insert(id, found) else { return };
        let (other, stream) = (&self.streams[before.stream], &self.streams[found.stream]);
        let first = before.offset.min(found.offset);
        if other.generation == stream.generation && before.offset != found.offset {
            self.odd.extend([(id, before), (id, found)]);
        } else if other.generation == stream.generation || !self.may_be_in_two_logs(id, first) {
            let parted = self.parted(id);
            self.fault("a record twice", || {
                format!("{place}, and {before:?}; {sent:?}; the logs parted at {parted:?}")
            });
        }
        // The log as it is has the later one; where one log has both, the place that was acknowledged counts.
        let is_acknowledged = sent.acknowledged.is_some_and(|(offset, _)| offset == before.offset);
        if other.generation > stream.generation || (other.generation == stream.generation && is_acknowledged) {
            self.archived.insert(id, before);
        }
    }

    /// Where the logs of a record's partition have parted, with the election.
    fn parted(&self, id: RecordId) -> &[(usize, i64)] {
        let sent = self.books.sent[id];
        let log = self.books.incarnations[sent.incarnation].logs.get(&sent.partition);
        log.map_or(&[], |log| &log.parted)
    }

    /// Whether a record at this offset or behind was sent when the brokers' logs of its partition were two: what one of them did
    /// not acknowledge was sent again to the other.
    fn may_be_in_two_logs(&self, id: RecordId, offset: i64) -> bool {
        let elections = self.books.sent[id].elections;
        self.parted(id).iter().any(|(election, parted)| elections < *election && offset >= *parted)
    }

    /// A gap is told only of what the broker had removed.
    fn judge_gaps(&self, at: usize) {
        let stream = &self.streams[at];
        let Some(incarnation) = stream.incarnation else { return };
        let logs = &self.books.incarnations[incarnation].logs;
        let removed = |gap: &&Gap| logs.get(&gap.partition).is_some_and(|log| gap.end <= log.start);
        let wrong: Vec<String> = stream
            .gaps
            .iter()
            .filter(|gap| gap.reason != "broker_retention" || !removed(gap))
            .map(|gap| {
                let start = logs.get(&gap.partition).map(|log| log.start);
                format!("{} {gap:?}: the log began at {start:?}", stream.name)
            })
            .collect();
        for text in wrong {
            self.fault("a gap of what was not removed", || text);
        }
    }

    fn in_gap(&self, incarnation: usize, partition: i32, offset: i64) -> bool {
        let of = self.streams.iter().filter(|stream| stream.incarnation == Some(incarnation));
        of.flat_map(|stream| &stream.gaps)
            .any(|gap| gap.partition == partition && (gap.start..gap.end).contains(&offset))
    }

    /// Whether an offset was removed before the archive of an incarnation began.
    fn is_before(&self, incarnation: usize, partition: i32, offset: i64) -> bool {
        let of = self.streams.iter().filter(|stream| stream.incarnation == Some(incarnation));
        let began = of.min_by_key(|stream| stream.generation).and_then(|stream| stream.starts.get(&partition).copied());
        let removed = self.books.incarnations[incarnation].logs.get(&partition).map_or(0, |log| log.start);
        began.is_some_and(|began| offset < began && began <= removed)
    }

    /// Everything that was acknowledged is there, unless it was lost before it was archived.
    fn judge_incarnation(&self, incarnation: usize) {
        let one = &self.books.incarnations[incarnation];
        for (partition, log) in &one.logs {
            for (offset, id) in &log.records {
                let free = one.ended && *offset >= log.kept;
                let gone =
                    self.in_gap(incarnation, *partition, *offset) || self.is_before(incarnation, *partition, *offset);
                if self.archived.contains_key(id) || free || gone {
                    continue;
                }
                if self.books.outcome(*id) == Outcome::Committed {
                    self.fault("a record is lost", || {
                        format!("record {id} of {} ({}) partition {partition} offset {offset}, acknowledged {:?}; the log begins at {}, the archive reached {}",
                            one.topic, one.topic_id, self.books.sent[*id].acknowledged, log.start, log.kept)
                    });
                }
            }
            for lost in log.lost.iter().filter(|lost| lost.kept && !self.archived.contains_key(&lost.id)) {
                self.fault("a record that was archived is lost", || {
                    format!(
                        "record {} of {} ({}) partition {partition} offset {}, lost in election {}",
                        lost.id, one.topic, one.topic_id, lost.offset, lost.election
                    )
                });
            }
        }
    }

    /// A producer whose leader dies may send a record again that the log has already, under a new epoch of its own: then the log has
    /// both, and so has the archive. Of a log that is still there that is seen; of one that is gone the acknowledged one must be there.
    fn judge_odd(&self) {
        let logs: Vec<(usize, BTreeSet<(i32, i64, RecordId)>)> =
            self.world.topics.iter().map(|topic| (topic.present().0, held(self.world, topic))).collect();
        for (id, found) in &self.odd {
            let sent = self.books.sent[*id];
            let log = logs.iter().find(|(incarnation, _)| *incarnation == sent.incarnation).map(|(_, held)| held);
            let first = log.and_then(|held| held.range((found.partition, 0, 0)..).next());
            let is_readable =
                first.is_some_and(|(partition, first, _)| *partition == found.partition && found.offset >= *first);
            let in_log = log.is_some_and(|held| held.contains(&(found.partition, found.offset, *id)));
            let acknowledged = sent.acknowledged.map(|(offset, _)| offset);
            let has_the_other = self.archived.get(id).is_some_and(|kept| Some(kept.offset) == acknowledged);
            let in_two_logs = self.may_be_in_two_logs(*id, acknowledged.unwrap_or(found.offset).min(found.offset));
            if !(in_two_logs || in_log || (!is_readable && has_the_other)) {
                self.fault("a record in another place", || {
                    format!(
                        "record {id} in {} {found:?}: {sent:?}; the logs parted at {:?}",
                        self.streams[found.stream].name,
                        self.parted(*id)
                    )
                });
            }
        }
        if !self.odd.is_empty() {
            self.world.journal.note(format!("{} places of records that were sent twice", self.odd.len()));
        }
    }

    /// What can be read now is archived where it is; what is archived and not removed can be read.
    fn judge_log(&self, topic: &Topic) {
        let (incarnation, _) = topic.present();
        let held = held(self.world, topic);
        for (partition, offset, id) in &held {
            let found = self.archived.get(id);
            let is_here = |found: &Archived| (found.partition, found.offset) == (*partition, *offset);
            let twice = || self.odd.iter().any(|(odd, found)| odd == id && is_here(found));
            if !found.is_some_and(is_here) && !twice() && !self.in_gap(incarnation, *partition, *offset) {
                self.fault("a record of the log is not archived", || {
                    format!("record {id} of {} partition {partition} offset {offset}; archived: {found:?}", topic.name)
                });
            }
        }
        let lost: BTreeSet<RecordId> = self.losses().map(|(.., lost)| lost.id).collect();
        // Retention goes on while we look: what lies before the first record may have been removed just now.
        let mut firsts: BTreeMap<i32, i64> = BTreeMap::new();
        for (partition, offset, _) in held.iter().rev() {
            firsts.insert(*partition, *offset);
        }
        let phantom = |id: &RecordId, found: &Archived| {
            self.books.sent[*id].incarnation == incarnation
                && firsts.get(&found.partition).is_some_and(|first| found.offset >= *first)
                && !lost.contains(id)
                && !held.contains(&(found.partition, found.offset, *id))
        };
        let phantoms: Vec<(RecordId, Archived)> =
            self.archived.iter().map(|(id, found)| (*id, *found)).filter(|(id, found)| phantom(id, found)).collect();
        for (id, found) in phantoms {
            self.fault("a record that the log does not have", || format!("record {id} of {}: {found:?}", topic.name));
        }
    }
}
