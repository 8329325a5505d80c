//! What could go wrong at the target, said before the first record is sent.
//!
//! In go the plan and what the target says about its topics; out come the topics to create, warnings, and problems that
//! forbid the replay, all of them at once. The plan knows only bounds (a segment's largest record, its first and last
//! timestamp). Where a bound would forbid the replay, the records themselves are read first: see [`suspects`].

use std::collections::BTreeMap;

use super::created::{self, DEFAULT_MAX_MESSAGE, Understood};
use super::settings::{self, Given};
use super::survey::{Limit, Survey, largest};
use super::target::{Target, TopicFacts};
use crate::error::{Error, Kind, Result};
use crate::replay::archived::Archived;
use crate::replay::journal::{Made, Settings as When};
use crate::replay::plan::{Part, Plan};
use crate::stream::total;
use crate::time;

/// What a request adds to its one batch: header, topic, transactional id.
const REQUEST_OVERHEAD: u64 = 1_024;
/// What a record adds to its key, value and headers in a log, at most some ten bytes beside the timestamps' deltas.
const RECORD_OVERHEAD: u64 = 20;

/// A topic that the target lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Create {
    /// Its name.
    pub topic: String,
    /// As many partitions as the source has.
    pub partitions: i32,
    /// Its settings.
    pub given: Given,
}

impl Create {
    /// The settings that it is created with as one writes them.
    pub fn settings(&self) -> String {
        let config: Vec<String> = self.given.created().iter().map(|(key, value)| format!("{key}={value}")).collect();
        config.join(" ")
    }

    /// Returns what the archive says of it, and it does not get.
    pub(super) fn lacking(&self) -> Option<String> {
        let left_out = &self.given.left_out;
        (!left_out.is_empty()).then(|| format!("{} does not get {}", self.topic, left_out.join("; ")))
    }
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    /// Topics that have to be created.
    pub create: Vec<Create>,
    /// What the user should know.
    pub warnings: Vec<String>,
    /// What the target would remove or change of what is sent: a replay has to be told that this is meant.
    pub losses: Vec<String>,
    /// What forbids the replay, each with the way out.
    pub problems: Vec<String>,
    /// The partitions of the target topics that exist.
    pub existing: BTreeMap<String, i32>,
    /// The largest batch that every target topic takes.
    pub(super) max_batch: u64,
    /// The largest batch that a single record needs, before it is compressed.
    pub(super) largest: u64,
    /// Whether a record fits only compressed with zstd.
    pub(super) compressed: bool,
    /// How long a transaction may last at most, in milliseconds, where the brokers tell.
    pub(super) longest_transaction: Option<u64>,
}

/// The settings of a target topic that matter here. What the target does not tell is taken for Kafka's default.
struct Settings<'a> {
    config: Option<&'a BTreeMap<String, String>>,
}

impl Settings<'_> {
    fn number(&self, name: &str) -> Option<i64> {
        self.config?.get(name)?.parse().ok()
    }

    fn has(&self, name: &str, word: &str) -> bool {
        self.config
            .and_then(|config| config.get(name))
            .is_some_and(|value| value.split(',').any(|part| part.trim() == word))
    }

    fn max_message(&self) -> u64 {
        self.number("max.message.bytes").map_or(DEFAULT_MAX_MESSAGE, i64::unsigned_abs)
    }

    /// The largest batch that fits into a segment (UnifiedLog.append: RecordBatchTooLargeException).
    fn segment(&self) -> u64 {
        self.number("segment.bytes").map_or(u64::MAX, i64::unsigned_abs)
    }

    /// Returns whether batches stay as the producer has compressed them. Others are compressed again, or not at all, before
    /// their size is looked at (LogValidator).
    fn keeps_compression(&self) -> bool {
        self.config.and_then(|config| config.get("compression.type")).is_none_or(|kind| kind == "producer")
    }

    /// The furthest that a timestamp may lie before and after the broker's clock (KIP-937; before Kafka 3.6 one setting
    /// held for both). LogAppendTime topics take any.
    fn around_now(&self, now: i64) -> (i64, i64) {
        if self.has("message.timestamp.type", "LogAppendTime") {
            return (i64::MIN, i64::MAX);
        }
        let older = self.number("message.timestamp.difference.max.ms");
        let before = self.number("message.timestamp.before.max.ms").or(older).unwrap_or(i64::MAX);
        let after = self.number("message.timestamp.after.max.ms").or(older).unwrap_or(i64::MAX);
        (now.saturating_sub(before), now.saturating_add(after))
    }
}

/// The parts of the plan by target topic.
fn by_target(plan: &Plan) -> BTreeMap<&str, Vec<&Part>> {
    let mut targets: BTreeMap<&str, Vec<&Part>> = BTreeMap::new();
    for part in &plan.parts {
        targets.entry(&part.target).or_default().push(part);
    }
    targets
}

/// What is known of the brokers, and of the replay, beside the topics.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Around<'a> {
    /// The settings of one broker; none where it does not tell.
    pub(super) broker: Option<&'a BTreeMap<String, String>>,
    /// Now.
    pub(super) now: i64,
    /// Whether the replay may choose how it compresses.
    pub(super) compresses: bool,
    /// How the source topics were set, by name, as far as the archive knows.
    pub(super) archived: Option<&'a BTreeMap<String, Archived>>,
    /// The topics that the replay has created before.
    pub(super) made: Option<&'a Made>,
    /// When topics that it creates get what could cost a record.
    pub(super) settings: When,
}

impl<'a> Around<'a> {
    fn archived(&self, parts: &[&Part]) -> Option<&'a Archived> {
        self.archived?.get(&parts.first()?.stream.topic)
    }

    /// Returns how a topic that the replay has not made is not set as the archive says.
    fn difference(&self, topic: &str, facts: &TopicFacts, parts: &[&Part]) -> Option<String> {
        let made = self.made.is_some_and(|made| made.topics.iter().any(|one| one.topic == topic));
        let archived = self.archived(parts).filter(|_| !made)?;
        let told = settings::difference(topic, (facts.partitions, facts.config.as_ref()?, &facts.own), archived)?;
        Some(match self.settings {
            When::Archived => format!("{told}; a topic that was there is never changed, also by --settings archived"),
            When::Safe => told,
        })
    }

    /// The largest batch that a request can carry.
    fn request(&self) -> u64 {
        let most = Settings { config: self.broker }.number("socket.request.max.bytes");
        most.map_or(u64::MAX, |most| most.unsigned_abs().saturating_sub(REQUEST_OVERHEAD))
    }
}

/// The target topics for which the plan's bounds do not do, so that their records have to be read first, and what each
/// takes.
pub(super) fn suspects(
    plan: &Plan,
    facts: &BTreeMap<String, TopicFacts>,
    around: Around<'_>,
) -> BTreeMap<String, Limit> {
    let suspect = |topic: &str, parts: &[&Part]| {
        let bound = Survey::bound(parts);
        let Some(facts) = facts.get(topic) else {
            let limit = Limit { bytes: around.request(), compressed: around.compresses };
            return (bound.largest > limit.bytes).then_some(limit);
        };
        let settings = Settings { config: facts.config.as_ref() };
        let (oldest, newest) = settings.around_now(around.now);
        let bytes = settings.max_message().min(settings.segment()).min(around.request());
        let suspicious = bound.largest > bytes
            || bound.min_timestamp.is_some_and(|min| min < oldest)
            || bound.max_timestamp.is_some_and(|max| max > newest)
            || settings.has("cleanup.policy", "compact");
        suspicious.then_some(Limit { bytes, compressed: around.compresses && settings.keeps_compression() })
    };
    let targets = by_target(plan).into_iter();
    targets.filter_map(|(topic, parts)| Some((topic.to_owned(), suspect(topic, &parts)?))).collect()
}

/// Returns what stands against the plan, and what has to be done for it.
pub(super) fn check(
    plan: &Plan,
    facts: &BTreeMap<String, TopicFacts>,
    surveys: &BTreeMap<String, Survey>,
    around: Around<'_>,
) -> Findings {
    let Around { broker, now, .. } = around;
    let of_broker = Settings { config: broker };
    let knows = |name: &str| broker.is_none_or(|config| config.contains_key(name));
    let understood = Understood { both_limits: knows("log.message.timestamp.after.max.ms") };
    let longest_transaction = of_broker.number("transaction.max.timeout.ms").map(i64::unsigned_abs);
    let mut findings = Findings { max_batch: u64::MAX, longest_transaction, ..Findings::default() };
    if facts.values().any(|facts| facts.config.is_none()) {
        let unknown = "the target does not tell how its topics are set: size limits, retention and timestamp type are not checked";
        findings.warnings.push(unknown.to_owned());
    }
    for (topic, parts) in by_target(plan) {
        let seen = surveys.get(topic).cloned().unwrap_or_else(|| Survey::bound(&parts));
        findings.largest = findings.largest.max(seen.largest);
        findings.compressed |= seen.compressed;
        let Some(facts) = facts.get(topic) else {
            findings.problems.extend(owned_by_brokers(topic));
            findings.problems.extend(request_too_large(topic, around, &seen));
            findings.warnings.extend(as_compacted(topic, &parts));
            let create = missing(topic, &parts, understood, &of_broker, around.archived(&parts));
            findings.warnings.extend(in_the_end(&create, &parts, around));
            findings.warnings.extend(fewer_replicas(topic, around.archived(&parts), &of_broker));
            findings.max_batch = findings.max_batch.min(DEFAULT_MAX_MESSAGE);
            findings.create.push(create);
            continue;
        };
        findings.existing.insert(topic.to_owned(), facts.partitions);
        let settings = Settings { config: facts.config.as_ref() };
        findings.max_batch = findings.max_batch.min(settings.max_message()).min(settings.segment());
        findings.problems.extend(too_few_partitions(topic, &parts, facts.partitions));
        findings.problems.extend(owned_by_brokers(topic));
        findings.problems.extend(request_too_large(topic, around, &seen));
        findings.problems.extend(not_in_step(topic, &settings, facts.in_sync));
        findings.problems.extend(problems(topic, &settings, &seen, now));
        findings.losses.extend(losses(topic, &parts, &settings, now));
        findings.warnings.extend(more_partitions(topic, &parts, facts.partitions));
        findings.warnings.extend(validated(topic, &settings));
        findings.warnings.extend(around.difference(topic, facts, &parts));
    }
    findings
}

/// Looks once more at topics that were just created: a policy of the cluster may have changed what was asked for, and a
/// topic with fewer replicas than `min.insync.replicas` takes nothing at all.
pub(super) async fn still_fits(target: &Target, plan: &Plan, findings: &Findings) -> Result<()> {
    if findings.create.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = findings.create.iter().map(|create| create.topic.as_str()).collect();
    let facts = target.describe(&names).await?;
    let mut found = Findings::default();
    for create in &findings.create {
        let Some(facts) = facts.get(&create.topic) else { continue };
        let settings = Settings { config: facts.config.as_ref() };
        found.problems.extend(not_in_step(&create.topic, &settings, facts.in_sync));
        let parts: Vec<&Part> = plan.parts.iter().filter(|part| part.target == create.topic).collect();
        found.problems.extend(too_few_partitions(&create.topic, &parts, facts.partitions));
        let differs = |(name, wanted): (&String, &String)| {
            let got = facts.config.as_ref()?.get(name)?;
            (got != wanted).then(|| format!("{} was created with {name}={got} instead of {wanted}", create.topic))
        };
        found.problems.extend(create.given.needed.iter().filter_map(differs));
    }
    found.verdict()
}

/// The topic to create: records stay as long as nobody decides otherwise, with the timestamps that they have.
fn missing(
    topic: &str,
    parts: &[&Part],
    understood: Understood,
    broker: &Settings<'_>,
    archived: Option<&Archived>,
) -> Create {
    let source = parts.first().map_or(topic, |part| part.stream.topic.as_str());
    let default = |name: &str| broker.number(name).map(i64::unsigned_abs);
    let largest = largest(parts).max(DEFAULT_MAX_MESSAGE);
    let needed = created::settings(source, largest, understood, default);
    // What the archive counts otherwise is of now, and partitions may have been added behind the range.
    let partitions = match archived {
        Some(archived) if (1..=MOST_PARTITIONS).contains(&archived.partitions) => {
            archived.partitions.max(partitions_of(parts))
        }
        _ => parts.iter().map(|part| part.source_partitions).max().unwrap_or(1),
    };
    Create { topic: topic.to_owned(), partitions, given: settings::given(needed, archived, largest) }
}

/// Returns what the brokers will remove once the topic is set as archived.
fn in_the_end(create: &Create, parts: &[&Part], around: Around<'_>) -> Vec<String> {
    if around.settings == When::Safe {
        return Vec::new();
    }
    let of_broker = |name: &str| around.broker.and_then(|broker| broker.get(name)).cloned();
    let hours = of_broker("log.retention.hours").and_then(|hours| hours.parse::<i64>().ok());
    let by_hours = hours.map(|hours| hours.saturating_mul(3_600_000).to_string());
    let mut config = create.given.created();
    for (name, change) in &create.given.afterwards {
        let followed = || match name.as_str() {
            "retention.ms" => of_broker("log.retention.ms").or(by_hours.clone()),
            _ => of_broker(&format!("log.{name}")),
        };
        match change.clone().or_else(followed) {
            Some(value) => drop(config.insert(name.clone(), value)),
            None => drop(config.remove(name)),
        }
    }
    losses(&create.topic, parts, &Settings { config: Some(&config) }, around.now)
        .into_iter()
        .map(|loss| format!("as archived, at the end: {loss}"))
        .collect()
}

/// A topic that will have fewer replicas than it had.
fn fewer_replicas(topic: &str, archived: Option<&Archived>, broker: &Settings<'_>) -> Option<String> {
    let default = broker.number("default.replication.factor").filter(|count| *count > 0)?;
    let had = archived.map(|archived| i64::from(archived.replication_factor)).filter(|had| *had > default)?;
    Some(format!(
        "{topic} had {had} replicas and gets {default}, the target's default.replication.factor: create it yourself, or change it with \
         kafka-reassign-partitions.sh"
    ))
}

/// More than any cluster has of one topic: what says more was not written by a broker.
const MOST_PARTITIONS: i32 = 200_000;

/// Returns how many partitions the records of a topic need.
fn partitions_of(parts: &[&Part]) -> i32 {
    let all = parts.iter().flat_map(|part| &part.partitions);
    all.map(|planned| planned.partition.saturating_add(1)).max().unwrap_or(0)
}

fn too_few_partitions(topic: &str, parts: &[&Part], has: i32) -> Option<String> {
    let needed = partitions_of(parts);
    (needed > has).then(|| {
        format!("{topic} has {has} partitions, and the records need {needed}: add partitions to it, or replay only some with --partitions")
    })
}

/// Topics that only brokers write.
fn owned_by_brokers(topic: &str) -> Option<String> {
    matches!(topic, "__consumer_offsets" | "__transaction_state" | "__share_group_state" | "__cluster_metadata").then(|| {
        format!("{topic} is written by brokers alone: give the copy another name with --rename, or leave it out of --topics")
    })
}

fn as_compacted(topic: &str, parts: &[&Part]) -> Option<String> {
    parts.iter().any(|part| created::is_compacted(&part.stream.topic)).then(|| {
        format!(
            "{topic} will be created compacted, as the name says that its owner (Kafka Connect, a schema registry) wants it: in the \
             end only the last record of each key stays; for a full copy create it yourself"
        )
    })
}

fn request_too_large(topic: &str, around: Around<'_>, seen: &Survey) -> Option<String> {
    let most = around.request();
    (seen.largest_batch > most).then(|| {
        format!(
            "the largest record for {topic} needs {} bytes, and the brokers take requests of at most {}: raise \
             socket.request.max.bytes on them",
            seen.largest_batch,
            most + REQUEST_OVERHEAD
        )
    })
}

/// A partition that has no leader or too few replicas in step takes no record of a producer with acks=all.
fn not_in_step(topic: &str, settings: &Settings<'_>, (in_sync, partition): (usize, i32)) -> Option<String> {
    let least = settings.number("min.insync.replicas").map_or(1, i64::unsigned_abs);
    if in_sync == 0 {
        return Some(format!("{topic} partition {partition} has no leader: see that its brokers are up"));
    }
    ((in_sync as u64) < least).then(|| {
        format!(
            "{topic} partition {partition} has {in_sync} replicas in step and min.insync.replicas={least}: it takes no record \
             until there are more, or min.insync.replicas is lowered"
        )
    })
}

fn more_partitions(topic: &str, parts: &[&Part], has: i32) -> Option<String> {
    let source = parts.iter().map(|part| part.source_partitions).max()?;
    (source > 0 && has > source).then(|| {
        format!(
            "{topic} has {has} partitions and the source {source}: records keep their partition, and producers will put the \
             same keys elsewhere"
        )
    })
}

/// Confluent's brokers can refuse records without a known schema.
fn validated(topic: &str, settings: &Settings<'_>) -> Option<String> {
    let on = |name: &&str| settings.has(name, "true");
    let name = ["confluent.key.schema.validation", "confluent.value.schema.validation"].into_iter().find(on)?;
    Some(format!("{topic} has {name}=true: the broker refuses records whose schema its registry does not know"))
}

fn problems(topic: &str, settings: &Settings<'_>, seen: &Survey, now: i64) -> Vec<String> {
    let mut problems = Vec::new();
    let at = |place: Option<(i32, i64)>| {
        place.map_or(String::new(), |(partition, offset)| {
            format!(" (partition {partition}, offset {offset} of the source)")
        })
    };
    for (most, name) in [(settings.max_message(), "max.message.bytes"), (settings.segment(), "segment.bytes")] {
        if seen.largest_batch > most {
            let how = if seen.compressed { ", compressed with zstd" } else { "" };
            problems.push(format!(
                "{topic} takes batches of at most {most} bytes, and the largest record{} needs {}{how}: raise {name} on it",
                at(seen.largest_at),
                seen.largest_batch
            ));
        }
    }
    let (oldest, newest) = settings.around_now(now);
    if let Some(min) = seen.min_timestamp.filter(|min| *min < oldest) {
        problems.push(format!(
            "{topic} refuses timestamps before {}, and there are records of {}: raise message.timestamp.before.max.ms on it",
            time::rfc3339(oldest),
            time::rfc3339(min)
        ));
    }
    if let Some(max) = seen.max_timestamp.filter(|max| *max > newest) {
        problems.push(format!(
            "{topic} refuses timestamps after {}, and there are records of {}: raise message.timestamp.after.max.ms on it",
            time::rfc3339(newest),
            time::rfc3339(max)
        ));
    }
    if settings.has("cleanup.policy", "compact") && seen.null_key.is_some() {
        problems.push(format!(
            "{topic} is compacted and refuses records without a key, and there are such{}: replay into a topic without compaction",
            at(seen.null_key)
        ));
    }
    problems
}

fn losses(topic: &str, parts: &[&Part], settings: &Settings<'_>, now: i64) -> Vec<String> {
    let mut warnings = Vec::new();
    let rewritten = settings.has("message.timestamp.type", "LogAppendTime");
    if rewritten {
        warnings
            .push(format!("{topic} has message.timestamp.type=LogAppendTime: the records get the time of the replay"));
    }
    // Kafka's default is `delete`.
    let deletes = settings.has("cleanup.policy", "delete");
    let oldest = parts.iter().flat_map(|part| &part.partitions).map(|planned| planned.min_timestamp).min();
    let kept = settings.number("retention.ms").filter(|ms| *ms >= 0 && deletes && !rewritten);
    if let Some(kept) = kept.filter(|kept| oldest.is_some_and(|oldest| oldest < now.saturating_sub(*kept))) {
        let kept = humantime::format_duration(std::time::Duration::from_millis(kept.unsigned_abs()));
        warnings.push(format!(
            "{topic} keeps records for {kept}: records older than that will be removed by the broker soon after"
        ));
    }
    if let Some(retention) = settings.number("retention.bytes").filter(|bytes| *bytes >= 0 && deletes) {
        let most = largest_partition(parts);
        if most > retention.unsigned_abs() {
            warnings.push(format!(
                "{topic} keeps {retention} bytes a partition, and up to {most} come: the broker will remove the oldest"
            ));
        }
    }
    let wanted = parts.iter().all(|part| created::is_compacted(&part.stream.topic));
    if settings.has("cleanup.policy", "compact") && !wanted {
        warnings.push(format!("{topic} is compacted: in the end only the last record of each key stays"));
    }
    warnings
}

/// The most bytes that come for one partition: what a part holds, shared by how many of its records are of it.
fn largest_partition(parts: &[&Part]) -> u64 {
    let mut bytes: BTreeMap<i32, u64> = BTreeMap::new();
    for part in parts {
        let all = total(part.partitions.iter().map(|planned| planned.records));
        for planned in &part.partitions {
            let share = u128::from(part.bytes) * u128::from(planned.records) / u128::from(all.max(1));
            let share = u64::try_from(share).unwrap_or(u64::MAX);
            let overhead = planned.records.saturating_mul(RECORD_OVERHEAD);
            let sum = bytes.entry(planned.partition).or_default();
            *sum = total([*sum, share, overhead]);
        }
    }
    bytes.into_values().max().unwrap_or(0)
}

impl Findings {
    /// Returns what the user should know, losses first.
    pub fn told(&self) -> Vec<String> {
        self.losses.iter().chain(&self.warnings).cloned().collect()
    }

    /// All losses as one error.
    pub fn accepted(&self, yes: bool) -> Result<()> {
        if yes || self.losses.is_empty() {
            return Ok(());
        }
        let message = format!("the target would not keep what is sent, nothing was sent: {}", self.losses.join("; "));
        Err(Error::new(Kind::Unsupported, message)
            .hint("change the topic, send to another one (--rename), or say --yes if this is what you want"))
    }

    /// All problems as one error.
    pub fn verdict(&self) -> Result<()> {
        if self.problems.is_empty() {
            return Ok(());
        }
        Err(Error::new(
            Kind::Unsupported,
            format!("the target does not fit, nothing was sent: {}", self.problems.join("; ")),
        ))
    }
}

#[cfg(test)]
mod tests;
