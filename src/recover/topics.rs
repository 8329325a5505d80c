//! The topics at the commit: every archived record judged, and those that belong sent, once.
//!
//! ```text
//!   topics of the connectors ─► survey by the cut ─► in, out, uncertain ─► replay of just those, under the recovery's id ─► groups
//! ```
//!
//! What was chosen is written down with the replay, which goes on with it after a kill: nothing is sent twice, and nothing is judged by
//! what the archive has learned since.

use std::collections::BTreeSet;
use std::sync::Arc;

use chrono::DateTime;

use super::connector::Connector;
use super::cut::{Schemas, Survey, cut_at, survey};
use super::journal::{Commit, Folder, Journal, Proof, Records};
use super::marker;
use super::prepare::{Asked, Prepared, connection};
use crate::config::{Config, TargetKafka};
use crate::error::{Error, Kind, Result};
use crate::replay::journal::{Journal as Sent, Settings};
use crate::replay::kafka::Target;
use crate::replay::{
    Counters, GroupsWanted, IdPrefixed, Moving, Outcome, Query, Request, SchemaIds, Selection, Source, Stop, Tempo,
    carry_out, expired, gaps, prepare, readable, sources, told, warnings_of,
};
use crate::restore::Log;
use crate::restore::commits::{Commits, Moment};
use crate::store::Store;
use crate::time;

/// Says which records would be sent, for a plan; beside it how many bytes are judged for that.
///
/// # Errors
/// What of the archive cannot be read.
pub(super) async fn planned(
    store: &Store,
    config: &Config,
    asked: &Asked,
    prepared: &Prepared,
) -> Result<(String, Records, u64)> {
    let selection = selection(asked, &prepared.connectors, &prepared.journal.commit);
    if selection.topics.is_empty() {
        return Ok(("no topics are known".to_owned(), Records::default(), 0));
    }
    let judged = judge(store, config, &selection, &prepared.journal.commit).await?;
    let Records { within, out, uncertain } = judged.records;
    let differs = judged.differences.iter().map(|one| format!("; {one}"));
    let words = format!(
        "{within} records sent, {out} of later transactions left out, {uncertain} uncertain, of {} MiB{}",
        judged.survey.bytes >> 20,
        differs.collect::<String>()
    );
    Ok((words, judged.records, judged.survey.bytes))
}

/// Sends them, or goes on with it.
///
/// # Errors
/// What the target has against it, and what of the archive cannot be read.
pub(super) async fn replay(
    store: &Store,
    config: &Config,
    (asked, connectors): (&Asked, &[Connector]),
    (folder, journal): (&Folder, &mut Journal),
) -> Result<Proof> {
    let kafka = asked.pipeline.kafka.as_ref().ok_or_else(|| Error::new(Kind::Internal, "no target of topics"))?;
    let selection = selection(asked, connectors, &journal.commit);
    if selection.topics.is_empty() {
        let why = "no topics are known: name them, topics of [kafka], or the connectors that write them";
        return Err(Error::new(Kind::Config, "there are no topics to bring back").hint(why));
    }
    let to = connection(config, &asked.pipeline)?;
    let target = Arc::new(Target::new(to.clone(), &journal.id)?);
    let is_begun = Sent::load(store, &journal.id).await?.begun.is_some();
    let mut proof = Proof::default();
    let mut request = request(config, (asked, kafka), selection, (journal, connectors));
    if !(is_begun && journal.records.is_some()) {
        let judged = judge(store, config, &request.selection, &journal.commit).await?;
        request.chosen = Some(judged.survey.chosen);
        journal.records = Some(judged.records);
        journal.late_topics = judged.late;
        journal.of_topics = (judged.differences, judged.notes);
        folder.save(journal)?;
    }
    (proof.differences, proof.notes) = journal.of_topics.clone();
    let prepared = prepare(store, &request, &target, time::now()).await?;
    prepared.findings.verdict()?;
    prepared.accepted(asked.yes)?;
    if !is_begun && !asked.yes {
        let existing: Vec<&String> = prepared.findings.existing.keys().collect();
        is_empty(marker::filled(&to, existing).await?)?;
    }
    let outcome =
        carry_out(store, prepared, Tempo::default(), &Arc::<Counters>::default(), std::future::pending()).await?;
    if !outcome.finished && outcome.sent.is_some() {
        return Err(Error::new(Kind::Unavailable, "not all records were sent").hint("the same command goes on"));
    }
    tell(&outcome, &mut proof);
    let groups = outcome.groups.iter().flat_map(|shown| &shown.groups);
    journal.groups = groups.filter_map(|group| serde_json::to_value(group).ok()).collect();
    let Records { within, out, uncertain } = journal.records.unwrap_or_default();
    proof.words =
        format!("{within} records sent once as the replay {}, {out} left out, {uncertain} uncertain", journal.id);
    Ok(proof)
}

/// What a replay has not done, and what is to be known of it.
fn tell(outcome: &Outcome, proof: &mut Proof) {
    proof.differences.extend(outcome.verdict().err().map(|error| error.to_string()));
    proof.notes.extend(outcome.warnings.iter().cloned());
    if let Some((plan, tally)) = &outcome.sent {
        proof.differences.extend(told(plan, &tally.stops));
    }
}

fn is_empty(filled: Vec<String>) -> Result<()> {
    if filled.is_empty() {
        return Ok(());
    }
    let message = format!("topics hold records already, and what comes would lie behind them: {}", filled.join(", "));
    Err(Error::new(Kind::Config, message)
        .hint("name others by rename, delete them, or say --yes if this is what you want"))
}

/// Which archived topics, and where they go.
pub(super) fn selection(asked: &Asked, connectors: &[Connector], commit: &Commit) -> Selection {
    let kafka = asked.pipeline.kafka.as_ref();
    let more = kafka.map(|kafka| kafka.topics.clone()).unwrap_or_default();
    Selection {
        topics: connectors.iter().map(Connector::topics).chain(more).collect(),
        rename: kafka.and_then(|kafka| kafka.rename.clone()),
        chosen_by: Some(format!("commit {}", commit.end)),
        ..Selection::default()
    }
}

/// Which records begin with the id of a schema: by the names of subjects, and by the converters of the connectors.
fn written(journal: &Journal, connectors: &[Connector]) -> IdPrefixed {
    let of = |side: &str| {
        let own = connectors.iter().filter(|of| of.writes_ids(side));
        own.map(|of| format!("{}.", of.prefixes.0)).collect()
    };
    IdPrefixed { subjects: journal.schema_subjects.clone(), keys: of("key"), values: of("value") }
}

fn request(
    config: &Config,
    (asked, kafka): (&Asked, &TargetKafka),
    selection: Selection,
    (journal, connectors): (&Journal, &[Connector]),
) -> Request {
    let groups = GroupsWanted { groups: kafka.groups.clone(), at: None };
    Request {
        cluster: config.kafka.as_ref().map(|kafka| kafka.cluster.clone()),
        selection,
        timestamps: None,
        moving: Moving::default(),
        after: None,
        chosen: None,
        schema_ids: SchemaIds::new(journal.schema_ids.clone(), written(journal, connectors)),
        until: DateTime::from_timestamp_millis(journal.moment()),
        settings: kafka.archived_settings.then_some(Settings::Archived),
        groups: (!groups.groups.is_empty()).then_some(groups),
        recorded: !asked.is_drill,
        own: config.kafka.clone(),
        into_own: kafka.bootstrap_servers.is_none(),
    }
}

/// What came of judging.
pub(super) struct Judgement {
    pub(super) survey: Survey,
    pub(super) records: Records,
    pub(super) differences: Vec<String>,
    pub(super) notes: Vec<String>,
    /// Topics of which the archive does not have the beginning.
    pub(super) late: BTreeSet<String>,
    /// Topics of which the archive lacks anything that was there.
    pub(super) lacking: BTreeSet<String>,
}

/// Judges the records of topics by a commit.
///
/// # Errors
/// What of the archive cannot be read.
pub(super) async fn judge(store: &Store, config: &Config, selection: &Selection, commit: &Commit) -> Result<Judgement> {
    let log = Log::open(store, Some(commit.system_id)).await?;
    let commits = Commits::open(store, &log, Some(commit.timeline)).await?;
    let found = cut_at(&commits, Moment::Lsn(commit.end)).await?;
    if found.end() != commit.end {
        let message = format!("the commit that ends at {} is found at {} now", commit.end, found.end());
        return Err(
            Error::new(Kind::Fenced, message).hint("the archive is another one than the recovery was begun with")
        );
    }
    let query: Query = selection.query(None)?;
    let cluster = config.kafka.as_ref().map(|kafka| kafka.cluster.as_str());
    let (sources, left_out) = readable(sources(store, cluster, &query).await?);
    let now = time::now();
    let at = DateTime::from_timestamp_micros(commit.at).unwrap_or(now);
    let lost = gaps(&sources);
    let late = late(&sources);
    let without = lost.iter().map(|one| &one.stream).chain(left_out.iter().map(|(stream, _)| stream));
    let lacking = without.map(|stream| stream.topic.clone()).chain(late.iter().cloned()).collect();
    let mut notes = expired(&sources, &query);
    let schemas = Schemas::archived(store, at, now).await?;
    let survey = survey(store, sources, &query, found.cut, &schemas).await?;
    is_whole(&survey.stops)?;
    let total = survey.total();
    let records = Records { within: total.included, out: total.excluded, uncertain: total.uncertain };
    let mut differences: Vec<String> = warnings_of(&left_out);
    for one in lost {
        // What lies behind the first later transaction is of no earlier one.
        let beyond = survey.beyond.get(&(one.stream, one.partition));
        let told = if beyond.is_some_and(|beyond| one.start > *beyond) { &mut notes } else { &mut differences };
        told.push(one.words);
    }
    differences.extend(survey.incomplete.iter().cloned());
    if total.uncertain > 0 {
        differences.push(format!(
            "{} records do not say to which transaction they belong, and were judged by their time: compare their rows with the tables",
            total.uncertain
        ));
    }
    if survey.contradictions > 0 {
        differences.push(format!(
            "{} records say something else of their transactions than the log does: the log was believed",
            survey.contradictions
        ));
    }
    notes.extend(survey.warnings.iter().cloned());
    Ok(Judgement { survey, records, differences, notes, late, lacking })
}

/// Topics of which the archive does not have the beginning.
fn late(sources: &[Source]) -> BTreeSet<String> {
    let is_late = |source: &&Source| source.expired.is_some() || source.positions.iter().any(|at| at.start > 0);
    sources.iter().filter(is_late).map(|source| source.stream.topic.clone()).collect()
}

/// Refuses topics of which a part cannot be read: what is behind it would be missing at the target, without a word.
pub(super) fn is_whole(stops: &[Stop]) -> Result<()> {
    /// A damaged archive may have thousands.
    const MOST_NAMED: usize = 5;
    let Some(first) = stops.first() else { return Ok(()) };
    let tell = |stop: &Stop| {
        let why = stop.why.strip_prefix(&format!("segment {}: ", stop.object)).unwrap_or(&stop.why);
        format!("{}: partition {} from offset {} to {} ({why})", stop.object, stop.partition, stop.from, stop.to)
    };
    let mut told: Vec<String> = stops.iter().take(MOST_NAMED).map(tell).collect();
    if stops.len() > MOST_NAMED {
        told.push(format!("and {} more", stops.len() - MOST_NAMED));
    }
    let kind = if first.kind == Kind::Corrupt { Kind::Corrupt } else { Kind::Unavailable };
    Err(Error::new(kind, format!("archived records cannot be read, and nothing was sent: {}", told.join("; "))).hint(
        "put the object back, or give the right to read it, and the same command goes on; or leave the topic out: name only other \
         connectors and topics in the pipeline file",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_is_refused_before_anything_is_chosen() {
        let stop = |partition, kind| Stop {
            part: 0,
            partition,
            from: 10,
            to: 20,
            object: "segments/kafka/a.tls".to_owned(),
            why: "segment segments/kafka/a.tls: does not exist".to_owned(),
            kind,
        };
        assert!(is_whole(&[]).is_ok());
        let error = is_whole(&[stop(3, Kind::NotFound)]).expect_err("a hole");
        assert_eq!(error.kind(), Kind::Unavailable);
        let text = error.to_string();
        assert!(text.contains("segments/kafka/a.tls: partition 3 from offset 10 to 20 (does not exist)"), "{text}");
        assert_eq!(is_whole(&[stop(0, Kind::Corrupt)]).expect_err("damage").kind(), Kind::Corrupt);
        let many: Vec<Stop> = (0..7).map(|partition| stop(partition, Kind::Denied)).collect();
        assert!(is_whole(&many).expect_err("several").to_string().contains("and 2 more"));
    }
}
