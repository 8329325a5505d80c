//! Topics that stay where they are: what they hold beyond the commit is told, or taken back.
//!
//! ```text
//!   live topic   │ … up to L … │ beyond L, read by consumers already │ the last state of each of those keys up to L, or its deletion
//!   archive      │─────────── judged by the cut, as for new topics ──│   keys ─► send
//! ```
//!
//! Nothing of a topic can be removed without its consumers noticing, and groups stay where they are: whoever has read what lies beyond reads
//! on, and comes to the commit. So the archive has to have the topics whole, and nobody may write to them meanwhile.
//!
//! The ends of the topics are written down before anything is sent. A run that is begun again judges the same records, and sends all of it
//! again: a state that comes twice is the same state.

mod keys;
mod send;
mod shape;

use std::collections::BTreeMap;
use std::sync::Arc;

use self::keys::{Keys, Seen, Told};
use self::shape::Unavailable;
use super::connector::Connector;
use super::cut::Schemas;
use super::fold::change;
use super::journal::{Folder, Journal, Proof, Records};
use super::prepare::{Asked, connection};
use super::topics::{self, Judgement};
use crate::config::{Config, Isolation, Pipeline};
use crate::error::{Error, Kind, Result};
use crate::record::Record;
use crate::replay::kafka::Connection;
use crate::replay::{Part, Plan, Query, Rename, Selection, Source, look_through, readable, sources};
use crate::source::kafka::{OffsetAt, TopicPartition};
use crate::source::rest::Operator;
use crate::store::Store;
use crate::stream::TopicGeneration;
use crate::time;

/// Debezium's own `unavailable.value.placeholder`.
const UNAVAILABLE: &str = "__debezium_unavailable_value";

/// So many topics are named.
const MOST_NAMED: usize = 8;

/// Where topics end, by partition.
type Ends = BTreeMap<String, BTreeMap<i32, i64>>;

/// Refuses what topics that stay where they are cannot have.
///
/// # Errors
/// [`Kind::Config`] that names the key.
pub(super) fn may_be(config: &Config, pipeline: &Pipeline) -> Result<()> {
    let refused =
        |why: &str, hint: &str| Err(Error::new(Kind::Config, format!("--in-place: {why}")).hint(hint.to_owned()));
    let Some(kafka) = &pipeline.kafka else {
        return refused("the pipeline file has no [kafka]", "write one, with nothing in it");
    };
    if config.kafka.is_none() {
        return refused(
            "the configuration names no cluster",
            "write [kafka] into it: topics stay where they were archived from",
        );
    }
    let elsewhere = [("bootstrap_servers", kafka.bootstrap_servers.is_some()), ("rename", kafka.rename.is_some())];
    if let Some((key, _)) = elsewhere.into_iter().find(|(_, is)| *is) {
        return refused(&format!("kafka.{key} leads to other topics"), "remove it, or leave --in-place out");
    }
    if !kafka.groups.is_empty() {
        return refused(
            "kafka.groups",
            "remove it: groups stay where they are, and read on to what takes back the rest",
        );
    }
    Ok(())
}

/// Refuses while one of the connectors still runs where it was captured from: what it writes meanwhile would lie behind what takes it back.
/// Gives what could not be asked.
///
/// # Errors
/// [`Kind::Config`] for one that runs.
pub(super) async fn nobody_writes(config: &Config, connectors: &[Connector]) -> Result<Vec<String>> {
    let mut unknown = Vec::new();
    if !connectors.is_empty() && config.state.iter().all(|state| state.connect.is_empty()) {
        unknown.push("nobody could be asked whether the connectors are stopped: [state] has no connect_url".to_owned());
    }
    for server in config.state.iter().flat_map(|state| &state.connect) {
        let workers = Operator::new(server)?;
        for of in connectors {
            match workers.state(&of.name).await {
                Ok(Some(state)) if !state.is_stopped() => {
                    let message = format!("--in-place: the connector {} still runs at {}", of.name, workers.shown());
                    return Err(Error::new(Kind::Config, message)
                        .hint("stop it (PUT …/stop): what it writes meanwhile would lie behind what takes it back"));
                }
                Ok(_) => {}
                Err(error) => unknown.push(format!(
                    "{} could not be asked whether the connector {} is stopped, and must not write to its topics: {error}",
                    workers.shown(),
                    of.name
                )),
            }
        }
    }
    Ok(unknown)
}

/// What lies beyond the commit, for a plan; beside it how many records are judged, and their bytes.
///
/// # Errors
/// What of the archive cannot be read.
pub(super) async fn planned(
    store: &Store,
    config: &Config,
    asked: &Asked,
    (connectors, journal): (&[Connector], &Journal),
) -> Result<(String, Records, u64)> {
    let beyond = beyond(store, config, asked, (connectors, journal)).await?;
    let (told, _) = beyond.keys.close(&beyond.judged.lacking);
    let what = if asked.compensate { "taken back by their last states and deletions" } else { "told, and left" };
    let words = format!("{} records of {} keys lie beyond the commit, {what}", told.phantoms, told.keys);
    let differs = beyond.judged.differences.iter().map(|one| format!("; {one}")).collect::<String>();
    Ok((format!("{words}{differs}"), beyond.judged.records, beyond.judged.survey.bytes))
}

/// Tells what lies beyond the commit, and takes it back if that is asked for.
///
/// # Errors
/// An archive that does not have the topics whole, and a cluster that does not answer.
pub(super) async fn bring(
    store: &Store,
    config: &Config,
    (asked, connectors): (&Asked, &[Connector]),
    (folder, journal): (&Folder, &mut Journal),
) -> Result<Proof> {
    let to = connection(config, &asked.pipeline)?;
    let unknown = nobody_writes(config, connectors).await?;
    let Beyond { keys, judged, ends } = beyond(store, config, asked, (connectors, journal)).await?;
    if journal.in_place.is_none() {
        is_whole(&to, &ends).await?;
        journal.late_topics.clone_from(&judged.late);
        journal.in_place = Some(ends);
        folder.save(journal)?;
    }
    let (told, sent) = keys.close(&judged.lacking);
    let mut proof = Proof { differences: judged.differences, notes: judged.notes, ..Proof::default() };
    proof.differences.extend(unknown);
    if asked.compensate {
        send::send(&to, &journal.id, &sent).await?;
        proof.words = format!(
            "{} records of {} keys beyond the commit were taken back: {} by their last state, {} by a deletion",
            told.phantoms, told.keys, told.states, told.deletions
        );
    } else {
        proof.words = format!("{} records of {} keys lie beyond the commit, and were left", told.phantoms, told.keys);
    }
    let within = if asked.compensate { sent.len() as u64 } else { 0 };
    journal.records = Some(Records { within, out: told.phantoms, uncertain: judged.records.uncertain });
    tell(&told, asked.compensate, &mut proof);
    Ok(proof)
}

fn tell(told: &Told, is_compensated: bool, proof: &mut Proof) {
    let counts = |of: &BTreeMap<String, u64>| {
        let all = of.iter().map(|(topic, count)| format!("{topic} ({count})")).collect::<Vec<_>>();
        few(&all)
    };
    if told.phantoms > 0 && !is_compensated {
        let topics = told.topics.iter().map(|(topic, (records, keys))| format!("{topic} ({records} of {keys} keys)"));
        proof.differences.push(format!(
            "topics hold records beyond the commit, which consumers may have read: {}; --compensate takes them back",
            few(&topics.collect::<Vec<_>>())
        ));
    }
    if !told.unkeyed.is_empty() {
        proof.differences.push(format!(
            "records beyond the commit have no key (a table without one, a TRUNCATE), and nothing takes them back: {}",
            counts(&told.unkeyed)
        ));
    }
    if !is_compensated {
        return;
    }
    if !told.unknown.is_empty() {
        proof.differences.push(format!(
            "keys are left as they are, for what they were up to the commit is not known (it stands in what the archive does not have, or they \
             are in several partitions): {}",
            counts(&told.unknown)
        ));
    }
    if !told.truncated.is_empty() {
        let topics = told.truncated.iter().cloned().collect::<Vec<_>>();
        proof.differences.push(format!(
            "topics of several partitions were truncated up to the commit: rows of before that may have been sent again: {}",
            few(&topics)
        ));
    }
    if !told.without_event.is_empty() {
        proof.differences.push(format!(
            "rows that were not there at the commit are deleted by a tombstone alone, for their events are no JSON and none of them is a \
             deletion: {}",
            counts(&told.without_event)
        ));
    }
    if !told.lacking.is_empty() {
        proof.differences.push(format!(
            "large values that had not changed by then are not in the states that were sent again: {}",
            counts(&told.lacking)
        ));
    }
}

fn few(all: &[String]) -> String {
    let more = all.len().saturating_sub(MOST_NAMED);
    let shown = all[..all.len() - more].join(", ");
    if more == 0 { shown } else { format!("{shown} and {more} more") }
}

/// What lies beyond the commit.
struct Beyond {
    keys: Keys,
    judged: Judgement,
    /// Where the topics ended when it was judged.
    ends: Ends,
}

async fn beyond(
    store: &Store,
    config: &Config,
    asked: &Asked,
    (connectors, journal): (&[Connector], &Journal),
) -> Result<Beyond> {
    let selection = topics::selection(asked, connectors, &journal.commit);
    if selection.topics.is_empty() {
        return Err(Error::new(Kind::Config, "there are no topics to look at")
            .hint("name them, topics of [kafka], or the connectors that write them"));
    }
    let judged = topics::judge(store, config, &selection, &journal.commit).await?;
    if asked.pipeline.kafka.as_ref().is_none_or(|kafka| kafka.topics.is_empty()) {
        are_their_own(connectors, &judged)?;
    }
    let found = found(store, config, &selection).await?;
    let ends = journal.in_place.clone().unwrap_or_else(|| ends_of(&found));
    let newest = found.iter().map(|source| (source.stream.topic.clone(), source.stream.number)).collect();
    let now = time::now();
    let at = chrono::DateTime::from_timestamp_micros(journal.commit.at).unwrap_or(now);
    let schemas = Schemas::archived(store, at, now).await?;
    let query: Query = selection.query(None)?;
    let plan = Arc::new(Plan::new(found, &query, &Rename::default())?);
    let others = others(connectors);
    let unavailable = connectors.iter().map(|of| of.get("unavailable.value.placeholder", UNAVAILABLE));
    let keys = Keys::new(Unavailable::of(unavailable.chain([UNAVAILABLE])));
    let mut reading = Reading { judged: &judged, ends: &ends, newest, others, schemas, keys, failed: None };
    for is_within in [false, true] {
        let see =
            |part: &Part, partition, record: &Record<'_>| reading.see(is_within, (&part.stream, partition), record);
        // What cannot be read would be taken for what is not there.
        topics::is_whole(&look_through(store, &plan, see).await?)?;
    }
    let Reading { keys, failed, .. } = reading;
    match failed {
        Some(error) => Err(error),
        None => Ok(Beyond { keys, judged, ends }),
    }
}

/// Refuses topics in which another connector writes, the prefix of which goes on behind one of these: its records are of another database.
fn are_their_own(connectors: &[Connector], judged: &Judgement) -> Result<()> {
    let own: Vec<&str> = connectors.iter().map(|of| of.prefixes.0.as_str()).collect();
    match judged.survey.connectors.keys().find(|name| !own.contains(&name.as_str())) {
        None => Ok(()),
        Some(other) => {
            let message = format!("--in-place: the topics of {} hold records of the connector {other}", own.join(", "));
            Err(Error::new(Kind::Config, message)
                .hint("name the topics in kafka.topics of the pipeline file, if they are to be looked at all the same"))
        }
    }
}

/// The archived records of topics, read twice: what lies beyond the commit, and then what its keys were up to it.
struct Reading<'a> {
    judged: &'a Judgement,
    ends: &'a Ends,
    /// The newest generation of each topic, which is the live one.
    newest: BTreeMap<String, u32>,
    others: Vec<String>,
    schemas: Schemas,
    keys: Keys,
    failed: Option<Error>,
}

impl Reading<'_> {
    fn see(&mut self, is_within: bool, (stream, partition): (&TopicGeneration, i32), record: &Record<'_>) {
        let topic = stream.topic.as_str();
        let end = self.ends.get(topic).and_then(|ends| ends.get(&partition)).copied().unwrap_or_default();
        // Of a topic that was made again, what was in the older one is not there; what was written since is our own.
        let is_live = self.newest.get(topic) == Some(&stream.number) && record.offset < end;
        if self.failed.is_some() || !is_live || self.others.iter().any(|other| other == topic) {
            return;
        }
        let chosen = self.judged.survey.chosen.0.get(stream).and_then(|partitions| partitions.get(&partition));
        if chosen.is_some_and(|kept| kept.has(record.offset)) != is_within {
            return;
        }
        let seen = Seen { topic, partition, key: record.key, value: record.value };
        let taken = match is_within {
            false => self.keys.beyond(seen, || headers(record)),
            true => {
                let headers_of = || record.headers().map(|one| (one.name, one.value));
                self.keys.within(seen, || change(record.value, headers_of(), &self.schemas), || headers(record))
            }
        };
        self.failed = taken.err();
    }
}

fn headers(record: &Record<'_>) -> keys::Headers {
    record.headers().map(|header| (header.name.to_vec(), header.value.map(<[u8]>::to_vec))).collect()
}

/// Topics of connectors that hold no rows: nothing is folded of them.
fn others(connectors: &[Connector]) -> Vec<String> {
    let of = |of: &Connector| {
        let (prefix, beats) = (&of.prefixes.0, of.get("topic.heartbeat.prefix", "__debezium-heartbeat"));
        [format!("{prefix}.transaction"), format!("{prefix}.message"), format!("{beats}.{prefix}")]
    };
    connectors.iter().flat_map(of).collect()
}

async fn found(store: &Store, config: &Config, selection: &Selection) -> Result<Vec<Source>> {
    let query: Query = selection.query(None)?;
    let cluster = config.kafka.as_ref().map(|kafka| kafka.cluster.as_str());
    Ok(readable(sources(store, cluster, &query).await?).0)
}

/// Where the archive of the newest generation of each topic ends.
fn ends_of(found: &[Source]) -> Ends {
    let mut newest: BTreeMap<&str, &Source> = BTreeMap::new();
    for source in found {
        newest.insert(&source.stream.topic, source);
    }
    let of = |source: &Source| source.positions.iter().map(|at| (at.partition, at.end)).collect();
    newest.into_iter().map(|(topic, source)| (topic.to_owned(), of(source))).collect()
}

/// Refuses topics of which the archive does not have the end.
async fn is_whole(to: &Connection, archived: &Ends) -> Result<()> {
    let all = archived
        .iter()
        .flat_map(|(topic, ends)| ends.keys().map(|partition| TopicPartition::new(topic.as_str(), *partition)));
    let all: Vec<TopicPartition> = all.collect();
    let live = to.cluster()?.list_offsets(&all, OffsetAt::Latest, Isolation::ReadCommitted).await?;
    for (at, end) in live {
        let known = archived.get(&*at.topic).and_then(|ends| ends.get(&at.partition)).copied().unwrap_or_default();
        let end = match end {
            Ok(end) => end.unwrap_or_default(),
            Err(error) if error.kind() == Kind::NotFound => {
                let message = format!("--in-place: the cluster has no topic {}", at.topic);
                return Err(Error::new(Kind::Config, message).hint("leave --in-place out: it is made, and filled"));
            }
            Err(error) => return Err(error),
        };
        if end != known {
            let message = format!("--in-place: {at} ends at {end}, and its archive at {known}");
            return Err(Error::new(Kind::Unsupported, message).hint(
                "what lies beyond the commit is known by the archive alone: let `tidelog run` come to the end, with nobody writing, and run \
                 this again",
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_topics_that_stay_where_they_are_are_in_place() {
        let place = tempfile::tempdir().expect("a directory");
        let pipeline = |text: &str| {
            let file = place.path().join("p.toml");
            std::fs::write(&file, text).expect("written");
            Pipeline::load(&file).expect("valid")
        };
        let told = |config: &Config, text: &str| may_be(config, &pipeline(text)).expect_err(text).to_string();
        let config = |kafka: &str| {
            let file = place.path().join("c.toml");
            let text = format!(
                "[archive]\nurl = \"file:///a\"\nspool_dir = \"/s\"\n{kafka}[postgres]\nurl = \"postgres://a@h/d\"\n"
            );
            std::fs::write(&file, text).expect("written");
            Config::load(&file).expect("valid")
        };
        let whole =
            config("[kafka]\ncluster = \"main\"\nbootstrap_servers = \"h:1\"\ngroup_id = \"g\"\ntopics = [\"^a\"]\n");
        for (text, part) in [
            ("[kafka]\nbootstrap_servers = \"n:1\"\n", "kafka.bootstrap_servers leads to other topics"),
            ("[kafka]\nrename = \"a=b\"\n", "kafka.rename leads to other topics"),
            ("[kafka]\ngroups = [\"g\"]\n", "kafka.groups"),
            ("[postgres]\nurl = \"host=h\"\n", "has no [kafka]"),
        ] {
            assert!(told(&whole, text).contains(part), "{text}");
        }
        assert!(told(&config(""), "[kafka]\n").contains("names no cluster"));
        assert!(may_be(&whole, &pipeline("[kafka]\n")).is_ok());
    }
}
