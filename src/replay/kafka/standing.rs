//! How far a replay has come, from the target's group and, where that is gone, from what the archive knows.
//!
//! The group is committed with the records, so a mark in it is the truth. A broker forgets marks, though
//! (`offsets.retention.minutes`), partition by partition, and anybody can delete a group. Then what the archive wrote
//! down some seconds late may be behind, and going on from there would send records twice. So it counts only where the
//! target proves that nothing was committed after it: where the target partition holds no committed record behind the end
//! that it had then. What was aborted may lie there.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::Message as _;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::connection::{Logged, failed, wrong_property};
use super::marks::Identity;
use super::target::{ANSWER, Progress, Target, group_of};
use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::replay::journal::{Begun, Journal, Reached};
use crate::replay::offset_map::{At, Note};
use crate::replay::plan::{Mark, Marks};

/// How far a replay has come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// The next source record of every target partition.
    pub marks: Marks,
    /// What the marks of the group say of the map of offsets.
    pub notes: BTreeMap<At, Note>,
    /// What the user should know of how that was found.
    pub warnings: Vec<String>,
}

/// How far the replay of `journal` has come at `target`.
///
/// # Errors
/// `Kind::Config` where the target is not the one that it was begun into, or was changed by another; `Kind::Unsupported`
/// where nobody can prove how far it came.
pub async fn standing(target: &Target, journal: &Journal, progress: Progress) -> Result<Standing> {
    let Some(begun) = &journal.begun else { return Ok(Standing::default()) };
    same_target(target, begun).await?;
    let ends = begun.ends()?;
    let partitions: Vec<(String, i32)> = ends.keys().cloned().collect();
    let earlier = target.earlier(&partitions, progress).await?;
    if let Some(identity) = &earlier.identity
        && *identity != Identity::of(begun)?
    {
        let message = format!("the group {} was written by another replay of this id", group_of(&begun.replay));
        return Err(Error::new(Kind::Config, message).hint("choose another --id"));
    }
    let (mut marks, notes) = (earlier.marks, earlier.notes);
    let lost = || ends.iter().filter(|(at, _)| !marks.contains_key(*at));
    let told = (!marks.is_empty() || journal.reached.is_some()) && lost().next().is_some();
    let mut found = Vec::new();
    let mut unproven = Vec::new();
    for (at, (start, end)) in lost() {
        let known = known(at, *start, begun, journal.reached.as_ref());
        found.push((at.clone(), known.mark));
        if known.mark < *end {
            unproven.push((at.clone(), known.target_end));
        }
    }
    let missing = found.len();
    if let Some((topic, partition)) = first_with_more(target, &unproven).await? {
        return Err(lost_track(begun, &topic, partition));
    }
    marks.extend(found);
    let mut warnings = Vec::new();
    if told {
        warnings.push(format!(
            "the target's group {} has forgotten how far {missing} of {} partitions came (offsets.retention.minutes, or \
             somebody deleted it): the archive knew, and the target holds nothing after it",
            group_of(&begun.replay),
            ends.len()
        ));
    }
    Ok(Standing { marks, notes, warnings })
}

/// Where a partition was when somebody last looked.
struct Known {
    mark: Mark,
    target_end: Option<i64>,
}

fn known(at: &(String, i32), start: Mark, begun: &Begun, reached: Option<&Reached>) -> Known {
    let here = |one: &&crate::replay::journal::ReachedPartition| one.topic == at.0 && one.partition == at.1;
    if let Some(one) = reached.and_then(|reached| reached.partitions.iter().find(here)) {
        return Known { mark: Mark { generation: one.generation, offset: one.offset }, target_end: one.target_end };
    }
    let topic = begun.target.topics.iter().find(|topic| topic.topic == at.0);
    Known { mark: start, target_end: topic.and_then(|topic| topic.ends.get(&at.1).copied()) }
}

fn lost_track(begun: &Begun, topic: &str, partition: i32) -> Error {
    let message = format!(
        "the target's group {} has forgotten how far the replay {} came, and {topic} partition {partition} holds records, or held \
         them, that may be of it: going on could send some twice",
        group_of(&begun.replay),
        begun.replay
    );
    Error::new(Kind::Unsupported, message)
        .hint("delete what was sent and choose another --id, or replay under another name (--rename) and compare")
}

/// Refuses a target that is not the one into which the replay was begun.
pub async fn same_target(target: &Target, begun: &Begun) -> Result<()> {
    let cluster = target.cluster_id().await?;
    if let (Some(then), Some(now)) = (&begun.target.cluster_id, &cluster)
        && then != now
    {
        let message =
            format!("the replay {} was begun into the cluster {then}, and this is the cluster {now}", begun.replay);
        return Err(
            Error::new(Kind::Config, message).hint("name the cluster that it was begun into, or choose another --id")
        );
    }
    let names: Vec<String> = begun.target.topics.iter().map(|topic| topic.topic.clone()).collect();
    let found = target.ids(&names).await?;
    for topic in &begun.target.topics {
        let changed = match found.get(&topic.topic) {
            None => Some("was deleted"),
            Some(id) if id.is_some() && topic.topic_id.is_some() && *id != topic.topic_id => {
                Some("was deleted and created again")
            }
            Some(_) => None,
        };
        if let Some(what) = changed {
            let message = format!(
                "{} {what} since the replay {} was begun: what had been sent to it is gone",
                topic.topic, begun.replay
            );
            return Err(Error::new(Kind::Config, message).hint("choose another --id, which sends everything again"));
        }
    }
    Ok(())
}

type End = ((String, i32), Option<i64>);

/// The first of `partitions` in which a committed record lies at or behind the end that is known of it, or may have lain: what the
/// brokers have removed since cannot be looked at.
async fn first_with_more(target: &Target, partitions: &[End]) -> Result<Option<(String, i32)>> {
    if partitions.is_empty() {
        return Ok(None);
    }
    let asked: Vec<(String, i32)> = partitions.iter().map(|(at, _)| at.clone()).collect();
    let ends = target.ends(&asked, ANSWER).await?;
    let mut grown: BTreeMap<String, Vec<(i32, i64)>> = BTreeMap::new();
    for ((topic, partition), known) in partitions {
        match (known, ends.get(&(topic.clone(), *partition))) {
            (Some(known), Some(end)) if known == end => {}
            (Some(known), Some(end)) if known < end => {
                grown.entry(topic.clone()).or_default().push((*partition, *known));
            }
            _ => return Ok(Some((topic.clone(), *partition))),
        }
    }
    if let Some(removed) = first_removed(target, &grown).await? {
        return Ok(Some(removed));
    }
    for (topic, from) in grown {
        let consumer = target.reader()?;
        let read = tokio::task::spawn_blocking(move || Ok((committed_since(&consumer, &topic, &from)?, topic)));
        let (found, topic) = read.await.or_err(Kind::Internal, || "a question to the target failed".to_owned())??;
        if let Some(partition) = found {
            return Ok(Some((topic, partition)));
        }
    }
    Ok(None)
}

/// The first of `grown` of which the brokers have removed something at or behind its offset.
async fn first_removed(target: &Target, grown: &BTreeMap<String, Vec<(i32, i64)>>) -> Result<Option<(String, i32)>> {
    let all = || {
        let of = |(topic, from): (&String, &Vec<(i32, i64)>)| {
            let topic = topic.clone();
            from.clone().into_iter().map(move |(partition, known)| ((topic.clone(), partition), known))
        };
        grown.iter().flat_map(of)
    };
    let asked: Vec<(String, i32)> = all().map(|(at, _)| at).collect();
    let earliest = target.earliest_offsets(&asked, ANSWER).await?;
    Ok(all().find(|(at, known)| earliest.get(at).is_some_and(|start| known < start)).map(|(at, _)| at))
}

/// The first partition of `topic` in which a committed record lies at or behind its offset in `from`, or did until it was removed
/// just now. Blocks.
fn committed_since(consumer: &BaseConsumer<Logged>, topic: &str, from: &[(i32, i64)]) -> Result<Option<i32>> {
    let doing = || format!("cannot read what {topic} holds");
    let mut list = TopicPartitionList::with_capacity(from.len());
    for (partition, offset) in from {
        let added = list.add_partition_offset(topic, *partition, Offset::Offset(*offset));
        added.map_err(|error| failed(error, doing))?;
    }
    consumer.assign(&list).map_err(|error| failed(error, doing))?;
    let mut open: Vec<i32> = from.iter().map(|(partition, _)| *partition).collect();
    let deadline = Instant::now() + ANSWER;
    while !open.is_empty() {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => return Ok(Some(message.partition())),
            Some(Err(KafkaError::MessageConsumption(Code::AutoOffsetReset))) => return Ok(open.first().copied()),
            Some(Err(KafkaError::PartitionEOF(partition))) => open.retain(|one| *one != partition),
            Some(Err(error)) if Instant::now() > deadline => return Err(failed(error, doing)),
            None if Instant::now() > deadline => return Err(Error::new(Kind::Unavailable, doing())),
            Some(Err(_)) | None => {}
        }
    }
    Ok(None)
}

impl Target {
    /// A reader of committed records that stands nowhere yet.
    fn reader(&self) -> Result<BaseConsumer<Logged>> {
        let mut config = self.connection.client();
        config
            .set("group.id", group_of(&self.id))
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .set("auto.offset.reset", "error")
            .set("isolation.level", "read_committed");
        config.create_with_context(Logged).map_err(|error| wrong_property(&error))
    }
}
