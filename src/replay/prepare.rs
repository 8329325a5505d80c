//! What a request means: the plan that it was begun with or a new one, how far an earlier run came, and what the target
//! has against it.

use std::ops::Range;
use std::sync::Arc;

use chrono::{DateTime, Utc};

use super::archived::archived;
use super::groups::{self, Groups};
use super::journal::{self, Begun, Finished, Journal, Settings, Timestamps};
use super::kafka::{self, Beside, Connection, Findings, Identity, Progress as Known, Target};
use super::nothing::unmatched;
use super::plan::{Plan, Rename};
use super::request::{Moving, Request};
use super::select::{self, Found, Query, Source, sources_of, topic_pattern};
use super::shortfalls::shortfalls;
use crate::config::Kafka;
use crate::error::{Error, Kind, Result};
use crate::store::Store;
use crate::stream::{FORMAT_VERSION, TopicGeneration};
use crate::time;

/// A replay that is planned and checked.
pub struct Prepared {
    /// Its id.
    pub id: String,
    /// What was asked for, with the times that it was begun with.
    pub query: Query,
    /// What it is, and how far it is known to be.
    pub journal: Journal,
    /// Whether this run begins it.
    pub anew: bool,
    /// All of it.
    pub whole: Plan,
    /// What is left to send.
    pub plan: Plan,
    /// What the target has against it.
    pub findings: Findings,
    /// Where it goes.
    pub target: Arc<Target>,
    /// A target topic is the source itself.
    pub into_itself: bool,
    /// What was left out, for it cannot be read.
    pub left_out: Vec<TopicGeneration>,
    /// When created topics get what could cost a record.
    pub settings: Settings,
    /// What is to become of consumer groups.
    pub groups: Option<Groups>,
    pub(super) asked: Option<Settings>,
    pub(super) recorded: bool,
}

impl Prepared {
    /// When it was finished, if an earlier run has done so.
    pub fn finished(&self) -> Option<&Finished> {
        self.journal.finished.as_ref()
    }

    /// Whether records may go to this target.
    ///
    /// # Errors
    /// What the target would lose, and a target that is the source itself, unless the user said `yes`.
    pub fn accepted(&self, yes: bool) -> Result<()> {
        self.findings.accepted(yes)?;
        if self.into_itself && !yes {
            return Err(Error::new(Kind::Config, "records would be sent into the very topic that they came from")
                .hint("give the copies another name with --rename, or say --yes if this is what you want"));
        }
        Ok(())
    }
}

/// What is meant, before the target is looked at.
struct Meant {
    query: Query,
    journal: Journal,
    anew: bool,
    whole: Plan,
    plan: Plan,
    warnings: Vec<String>,
    left_out: Vec<TopicGeneration>,
}

/// Prepares what is asked for: works out what is left to send, and looks at the target.
///
/// # Errors
/// An id that was begun otherwise, a target that is not the one that it was begun into, and what of archive and target cannot be
/// read.
pub async fn prepare(store: &Store, asked: &Request, target: &Arc<Target>, now: DateTime<Utc>) -> Result<Prepared> {
    let query = asked.selection.query(asked.timestamps.clone())?;
    let rename = asked.selection.renames()?;
    let journal = Journal::load(store, &target.id).await?;
    let meant = match journal.begun.is_some() {
        true => again(asked, store, query, (journal, &rename), target).await?,
        false => anew(asked, store, query, (journal, &rename), (target, now)).await?,
    };
    let Meant { query, journal, anew, mut whole, plan, mut warnings, left_out } = meant;
    whole.schema_ids = asked.schema_ids.clone();
    let begun = journal.begun.as_ref().map_or(now, |begun| begun.at);
    let known = archived(store, &plan, end_of(&query, asked.until, begun), now).await?;
    warnings.extend(known.warnings);
    let settings = asked.settings.or(journal.made.as_ref().map(|made| made.settings)).unwrap_or_default();
    let beside = Beside { archived: &known.topics, journal: &journal, settings, now };
    let mut findings = kafka::preflight(store, target, &plan, beside).await?;
    if asked.settings == Some(Settings::Archived) {
        settings_are_known(&findings)?;
    }
    let into_itself = match &asked.own {
        Some(kafka) => {
            let (itself, tailed) = returns(&plan, kafka, target, asked.into_own).await?;
            warnings.extend(tailed);
            itself
        }
        None => false,
    };
    let (partitions, end) = (query.partitions.as_ref(), end_of(&query, asked.until, begun));
    let of = groups::Of { journal: &journal, anew, whole: &whole, partitions, end };
    let groups = groups::plan(asked.groups.as_ref(), store, target, of, now).await?.map(|(groups, problems)| {
        findings.problems.extend(problems);
        warnings.extend(groups.warnings());
        groups
    });
    findings.warnings.splice(0..0, warnings);
    let (id, target) = (target.id.clone(), Arc::clone(target));
    let (asked, recorded) = (asked.settings, asked.recorded);
    Ok(Prepared {
        id,
        query,
        journal,
        anew,
        whole,
        plan,
        findings,
        target,
        into_itself,
        left_out,
        settings,
        groups,
        asked,
        recorded,
    })
}

/// When what is meant ended: the settings of its topics are those of then.
fn end_of(query: &Query, until: Option<DateTime<Utc>>, begun: DateTime<Utc>) -> DateTime<Utc> {
    let end = query.timestamps.as_ref().and_then(|range| DateTime::from_timestamp_millis(range.end)).or(until);
    end.map_or(begun, |end| end.min(begun))
}

/// Refuses to create a topic as archived whose settings the archive does not have.
fn settings_are_known(findings: &Findings) -> Result<()> {
    let unknown: Vec<&str> = findings
        .create
        .iter()
        .filter(|create| create.given.as_of.is_none())
        .map(|create| create.topic.as_str())
        .collect();
    if unknown.is_empty() {
        return Ok(());
    }
    let message = format!("the archive does not know how the topics were set that become {}", unknown.join(", "));
    Err(Error::new(Kind::NotFound, message).hint(
        "it does where [state] was on and topics could be described: create the topics yourself, or leave --settings away",
    ))
}

/// Goes on with what was begun under this id.
async fn again(
    asked: &Request,
    store: &Store,
    mut query: Query,
    (journal, rename): (Journal, &Rename),
    target: &Target,
) -> Result<Meant> {
    let Some(begun) = &journal.begun else {
        return Err(Error::new(Kind::Internal, "a replay that was never begun cannot go on"));
    };
    let selection = asked.selection.digest(asked.cluster.as_deref());
    let typed = Typed { selection, after: asked.after.clone(), times: query.timestamps.clone() };
    settle(begun, &typed, asked.moving)?;
    query.timestamps = begun.timestamps();
    let mut sources = sources_of(store, begun.streams()?, &query).await?;
    begun.pin(&mut sources)?;
    let mut warnings = shortfalls(&sources, &query, begun.at);
    let left_out = begun.left_out.iter().map(|stream| stream.parse()).collect::<Result<Vec<TopicGeneration>>>()?;
    warnings.extend(left_out.iter().map(|generation| {
        format!(
            "{} could not be read when this replay was begun: nothing of {} is replayed",
            generation.stream(),
            generation.topic
        )
    }));
    let whole = Plan::new(sources, &query, rename)?.only(begun.chosen()?.as_ref());
    let plan = if journal.finished.is_some() {
        kafka::same_target(target, begun).await?;
        Plan { parts: Vec::new(), schema_ids: Default::default() }
    } else {
        let standing = kafka::standing(target, &journal, Known::Known).await?;
        warnings.extend(standing.warnings);
        whole.after(&standing.marks)
    };
    Ok(Meant { query, anew: false, whole, plan, warnings, journal, left_out })
}

/// Works out what an id that nobody has used stands for.
async fn anew(
    asked: &Request,
    store: &Store,
    mut query: Query,
    (mut journal, rename): (Journal, &Rename),
    (target, now): (&Target, DateTime<Utc>),
) -> Result<Meant> {
    let (mut sources, left_out) = readable(select::sources(store, asked.cluster.as_deref(), &query).await?);
    let selection = asked.selection.digest(asked.cluster.as_deref());
    if let Some(before) = &asked.after {
        journal::only_after(&mut sources, &before_this(store, before, &selection, target).await?);
    }
    let earlier = target.earlier(&partitions(&sources, rename)?, Known::Known).await?;
    if let Some(identity) = &earlier.identity
        && identity.timestamps != query.timestamps
    {
        settle_times(&identity.timestamps, &query.timestamps, asked.moving, &target.id)?;
        query.timestamps.clone_from(&identity.timestamps);
        (sources, _) = readable(select::sources(store, asked.cluster.as_deref(), &query).await?);
    }
    let mut warnings = warnings_of(&left_out);
    warnings.extend(shortfalls(&sources, &query, now));
    warnings.extend(unmatched(&sources, &query));
    let through = if query.timestamps.is_none() { journal::through(&sources) } else { Default::default() };
    let whole = Plan::new(sources, &query, rename)?.only(asked.chosen.as_ref());
    let bounds =
        |range: &Range<i64>| Timestamps { from: (range.start != i64::MIN).then_some(range.start), to: range.end };
    let begun = Begun {
        format: FORMAT_VERSION,
        replay: target.id.clone(),
        at: now,
        selection,
        after: asked.after.clone(),
        timestamps: query.timestamps.as_ref().map(bounds),
        target: Default::default(),
        sources: journal::pinned(&whole),
        through,
        left_out: left_out.iter().map(|(generation, _)| generation.to_string()).collect(),
        maps: asked.groups.is_some(),
    };
    if let Some(identity) = &earlier.identity {
        unwritten(identity, &begun, earlier.marks.len())?;
    }
    let plan = whole.after(&earlier.marks);
    journal.begun = Some(begun);
    let left_out = left_out.into_iter().map(|(generation, _)| generation).collect();
    Ok(Meant { query, journal, anew: true, whole, plan, warnings, left_out })
}

/// What is replayed, and what is left out with the whole of its topic.
pub fn readable(mut found: Found) -> (Vec<Source>, Vec<(TopicGeneration, Error)>) {
    found.without_damaged_topics();
    (found.sources, found.damaged)
}

/// What is left out, as warnings.
pub fn warnings_of(left_out: &[(TopicGeneration, Error)]) -> Vec<String> {
    let told = left_out.iter().map(|(generation, error)| {
        let hint = error.hint_text().map(|hint| format!("; {hint}")).unwrap_or_default();
        format!(
            "{} cannot be read, and nothing of {} is replayed: {error}{hint}",
            generation.stream(),
            generation.topic
        )
    });
    told.collect()
}

/// Refuses to go on with what an earlier run left in the target's group, unless it is known to be just this.
fn unwritten(identity: &Identity, begun: &Begun, marks: usize) -> Result<()> {
    let refused = |why: &str| {
        Err(Error::new(Kind::Config, format!("the replay {} was begun before, and {why}", begun.replay))
            .hint("choose another --id; what was sent stays, so send to another topic (--rename) or delete it first"))
    };
    let now = Identity::of(begun)?;
    if identity.digest != now.digest {
        return refused("with other topics, partitions, offsets or names");
    }
    if identity.pinned != now.pinned {
        return refused("what it stood for is not written down in this archive, which has changed since");
    }
    if marks != begun.ends()?.len() {
        return refused("the target's group has forgotten how far some partitions came");
    }
    Ok(())
}

/// The replay after which another one goes on.
async fn before_this(store: &Store, id: &str, selection: &str, target: &Target) -> Result<Begun> {
    let wrong = |why: &str, hint: &str| Err(Error::new(Kind::Config, format!("--after {id}: {why}")).hint(hint));
    let journal = Journal::load(store, id).await?;
    let Some(begun) = journal.begun else {
        return wrong(
            "there is no such replay in this archive",
            "one that had nothing to send leaves nothing: name the one before",
        );
    };
    if journal.finished.is_none() {
        return wrong("it is not finished", "run it again to its end first");
    }
    if begun.timestamps.is_some() || begun.through.is_empty() {
        return wrong(
            "it was a range of times or offsets: records outside of it were left out",
            "begin with --all, and go on --after that",
        );
    }
    if begun.selection != selection {
        return wrong("it had other topics, partitions or names", "repeat its --topics, --partitions and --rename");
    }
    kafka::same_target(target, &begun).await?;
    Ok(begun)
}

/// Every target partition that the sources have.
fn partitions(sources: &[Source], rename: &Rename) -> Result<Vec<(String, i32)>> {
    let mut all = std::collections::BTreeSet::new();
    for source in sources {
        let topic = rename.target(&source.stream.topic)?;
        all.extend(source.positions.iter().map(|at| (topic.clone(), at.partition)));
    }
    Ok(all.into_iter().collect())
}

/// What a command says about which records are meant.
struct Typed {
    selection: String,
    after: Option<String>,
    times: Option<Range<i64>>,
}

/// Whether this command may go on with what was `begun` under its id.
fn settle(begun: &Begun, typed: &Typed, moving: Moving) -> Result<()> {
    if begun.selection != typed.selection || begun.after != typed.after {
        let how = "with other topics, partitions, offsets or names, or after another replay";
        return Err(begun_otherwise(&begun.replay, how));
    }
    settle_times(&begun.timestamps(), &typed.times, moving, &begun.replay)
}

/// An end of the range that moves with the clock gives way to the one that was fixed when the replay began.
fn settle_times(then: &Option<Range<i64>>, now: &Option<Range<i64>>, moving: Moving, id: &str) -> Result<()> {
    match (then, now) {
        (None, None) => Ok(()),
        (Some(then), Some(now)) if (moving.from || then.start == now.start) && (moving.to || then.end == now.end) => {
            Ok(())
        }
        (Some(then), _) => {
            Err(begun_otherwise(id, &format!("with {}--to {}", from_option(then), time::rfc3339(then.end))))
        }
        (None, Some(_)) => Err(begun_otherwise(id, "with no range of times")),
    }
}

fn begun_otherwise(id: &str, how: &str) -> Error {
    Error::new(Kind::Config, format!("the replay {id} was begun {how}"))
        .hint("repeat the options that it was begun with, or choose another --id")
}

fn from_option(range: &Range<i64>) -> String {
    if range.start == i64::MIN { String::new() } else { format!("--from {} ", time::rfc3339(range.start)) }
}

/// Whether records go back into their own topic, and which targets the archiver reads itself.
async fn returns(plan: &Plan, kafka: &Kafka, target: &Target, into_own: bool) -> Result<(bool, Vec<String>)> {
    let patterns = kafka.topics.iter().map(|text| topic_pattern(text)).collect::<Result<Vec<_>>>()?;
    let tailed = |topic: &str| patterns.iter().any(|pattern| pattern.matches(topic)) && !kafka.excludes(topic);
    let own = |topic: &str| plan.parts.iter().any(|part| part.target == topic && part.stream.topic == topic);
    let close: Vec<&str> = plan.targets().into_iter().filter(|topic| tailed(topic) || own(topic)).collect();
    if close.is_empty() || !same_cluster(kafka, target, into_own).await? {
        return Ok((false, Vec::new()));
    }
    let warn = |topic: &&&str| tailed(topic);
    let warnings = close.iter().filter(warn).map(|topic| {
        format!("{topic} is archived by this configuration itself: what is replayed into it will be archived again")
    });
    Ok((close.iter().any(|topic| own(topic)), warnings.collect()))
}

async fn same_cluster(kafka: &Kafka, target: &Target, into_own: bool) -> Result<bool> {
    if into_own || target.bootstrap() == kafka.bootstrap_servers {
        return Ok(true);
    }
    let source = Target::new(Connection::of_config(kafka), &target.id)?;
    let (source, target) = tokio::try_join!(source.cluster_id(), target.cluster_id())?;
    // A source that does not answer is not where the records are going.
    Ok(source.is_some() && source == target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_goes_on_only_with_what_it_was_begun_with() {
        let begun = Begun {
            format: FORMAT_VERSION,
            replay: "r-1".to_owned(),
            at: DateTime::UNIX_EPOCH,
            selection: "a".to_owned(),
            after: None,
            timestamps: Some(Timestamps { from: Some(0), to: 1_000 }),
            target: Default::default(),
            sources: Vec::new(),
            through: Default::default(),
            left_out: Vec::new(),
            maps: false,
        };
        let typed = |times, selection: &str| Typed { selection: selection.to_owned(), after: None, times };
        let again = |range, moving| settle(&begun, &typed(range, "a"), moving);
        let moves = |from, to| Moving { from, to };
        let (fixed, absent, end) = (moves(false, false), moves(true, true), moves(false, true));
        assert!(again(Some(0..1_000), fixed).is_ok());
        assert!(again(Some(5..1_005), absent).is_ok(), "both ends moved with the clock");
        assert!(again(Some(0..1_005), end).is_ok(), "the end did");
        for (range, moving) in [(Some(5..1_000), fixed), (Some(0..1_005), fixed), (Some(5..1_005), end)] {
            let error = again(range, moving).expect_err("a fixed end differs");
            assert!(error.to_string().contains("--from 1970-01-01T00:00:00.000Z --to 1970-01-01T00:00:01.000Z"));
        }
        assert!(again(None, absent).is_err(), "no range");
        assert!(settle(&begun, &typed(Some(0..1_000), "b"), fixed).is_err(), "other topics");
        let after = Typed { after: Some("x".to_owned()), ..typed(Some(0..1_000), "a") };
        assert!(settle(&begun, &after, fixed).is_err(), "after another replay");
    }
}
