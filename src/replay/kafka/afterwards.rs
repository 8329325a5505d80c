//! What is left to do with topics that a replay has created once its records may go: giving them the settings that could have cost
//! a record, as far as nobody has set them otherwise meanwhile.

use std::collections::BTreeMap;

use super::preflight::Create;
use super::target::{Target, TopicFacts};
use crate::error::{Error, Kind, Result};
use crate::replay::journal::{Changes, Journal, Made, MadeTopic, Settings};
use crate::replay::plan::Plan;
use crate::stream::FORMAT_VERSION;

/// The settings of a topic that the replay has created.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Afterwards {
    /// The topic.
    pub topic: String,
    /// What it was given in the end.
    pub given: Changes,
    /// What is left to the user.
    pub left: Changes,
    /// What stays otherwise, each with the reason.
    pub told: Vec<String>,
}

/// The topics of `plan` that earlier runs of this replay have created, with when they get what waits.
pub(super) fn made_before(id: &str, journal: &Journal, plan: &Plan, settings: Option<Settings>) -> Made {
    let before = journal.made.clone().unwrap_or_default();
    let targets = plan.targets();
    let topics = before.topics.into_iter().filter(|topic| targets.contains(topic.topic.as_str())).collect();
    Made { format: FORMAT_VERSION, replay: id.to_owned(), settings: settings.unwrap_or(before.settings), topics }
}

/// Creates what is missing, and adds what was created to `made`. A topic that came to be there meanwhile is somebody else's.
pub(super) async fn create(target: &Target, create: &[Create], made: &mut Made) -> Result<()> {
    let created = target.create(create).await?;
    let ids = target.ids(&created.iter().cloned().collect::<Vec<_>>()).await?;
    made.topics.retain(|topic| !created.contains(&topic.topic));
    made.topics.extend(create.iter().filter(|create| created.contains(&create.topic)).map(|create| MadeTopic {
        topic: create.topic.clone(),
        topic_id: ids.get(&create.topic).cloned().flatten(),
        created: create.given.created(),
        afterwards: create.given.afterwards.clone(),
        settled: false,
    }));
    Ok(())
}

/// Does what is left to do, or says what it is. What was done is noted in `made`.
///
/// # Errors
/// The target's, where it cannot be asked. What it refuses is part of what is said.
pub(super) async fn settle(target: &Target, made: &mut Made) -> Result<Vec<Afterwards>> {
    let waits = |topic: &&mut MadeTopic| !topic.afterwards.is_empty() && !topic.settled;
    let waiting: Vec<&mut MadeTopic> = made.topics.iter_mut().filter(waits).collect();
    if waiting.is_empty() {
        return Ok(Vec::new());
    }
    let names: Vec<String> = waiting.iter().map(|topic| topic.topic.clone()).collect();
    let ids = target.ids(&names).await?;
    let facts = target.describe(&names.iter().map(String::as_str).collect::<Vec<_>>()).await?;
    let mut all = Vec::with_capacity(waiting.len());
    for topic in waiting {
        let (Some(id), Some(facts)) = (ids.get(&topic.topic), facts.get(&topic.topic)) else { continue };
        if *id != topic.topic_id {
            continue;
        }
        let mut done = due(topic, facts);
        if made.settings == Settings::Archived && facts.config.is_some() {
            give(target, facts, &mut done).await?;
            topic.settled = done.left.is_empty();
        }
        all.push(done);
    }
    Ok(all)
}

/// Returns what is left to do for a topic. What somebody has set meanwhile stays as it is.
fn due(topic: &MadeTopic, facts: &TopicFacts) -> Afterwards {
    let mut due = Afterwards { topic: topic.topic.clone(), ..Afterwards::default() };
    if facts.config.is_none() {
        due.left.clone_from(&topic.afterwards);
        due.told.push("the target does not tell how it is set: grant DESCRIBE_CONFIGS on the topic".to_owned());
        return due;
    }
    for (name, wanted) in &topic.afterwards {
        let (now, then) = (facts.own.get(name), topic.created.get(name));
        if now == wanted.as_ref() {
            continue;
        }
        if now == then {
            due.left.insert(name.clone(), wanted.clone());
        } else {
            let now = now.map_or_else(|| "is not set".to_owned(), |now| format!("is {now}"));
            due.told.push(format!("{name} {now}: somebody has set it while the replay ran, and it stays"));
        }
    }
    due
}

/// Gives a topic what is left to do; of what the target refuses, all else.
async fn give(target: &Target, facts: &TopicFacts, done: &mut Afterwards) -> Result<()> {
    let (in_step, _) = facts.in_sync;
    let too_many = |name: &str, value: &Option<String>| {
        let least = value.as_ref().and_then(|value| value.parse::<usize>().ok());
        name == "min.insync.replicas" && least.is_some_and(|least| least > in_step)
    };
    let (later, all): (Changes, Changes) =
        std::mem::take(&mut done.left).into_iter().partition(|(name, value)| too_many(name, value));
    done.told.extend(later.values().flatten().map(|least| {
        format!("min.insync.replicas={least}: a partition has {in_step} replicas in step, and would take no record of acks=all")
    }));
    done.left = later;
    if all.is_empty() {
        return Ok(());
    }
    match target.cluster.alter_topic(&done.topic, &all).await {
        Ok(()) => done.given = all,
        Err(error) if is_refusal(&error) => {
            for (name, value) in all {
                let one = BTreeMap::from([(name.clone(), value.clone())]);
                match target.cluster.alter_topic(&done.topic, &one).await {
                    Ok(()) => drop(done.given.insert(name, value)),
                    Err(error) if is_refusal(&error) => {
                        let denied = error.kind() == Kind::Denied;
                        let way = if denied { ": grant ALTER_CONFIGS on the topic" } else { "" };
                        done.told.push(format!("{name}: {error}{way}"));
                        done.left.insert(name, value);
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Returns whether asking again is of no use: the setting, a policy, or a right (ALTER_CONFIGS) is in the way.
fn is_refusal(error: &Error) -> bool {
    matches!(error.kind(), Kind::Config | Kind::Denied)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(settings: &[(&str, &str)]) -> BTreeMap<String, String> {
        settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn what_somebody_has_set_meanwhile_stays_and_what_is_done_is_not_done_again() {
        let afterwards = [
            ("cleanup.policy", Some("compact")),
            ("flush.ms", Some("5")),
            ("retention.bytes", None),
            ("retention.ms", Some("7")),
        ];
        let topic = MadeTopic {
            topic: "orders".to_owned(),
            topic_id: None,
            settled: false,
            created: config(&[("cleanup.policy", "delete"), ("retention.bytes", "-1"), ("retention.ms", "-1")]),
            afterwards: afterwards.map(|(name, value)| (name.to_owned(), value.map(str::to_owned))).into(),
        };
        let facts = |own: &[(&str, &str)]| TopicFacts {
            partitions: 1,
            in_sync: (1, 0),
            config: Some(config(own)),
            own: config(own),
        };
        let untouched =
            due(&topic, &facts(&[("cleanup.policy", "delete"), ("retention.bytes", "-1"), ("retention.ms", "-1")]));
        assert_eq!((untouched.left.len(), untouched.told.len()), (4, 0));
        let touched = due(&topic, &facts(&[("cleanup.policy", "delete"), ("retention.ms", "99"), ("flush.ms", "1")]));
        assert_eq!(touched.left.keys().collect::<Vec<_>>(), ["cleanup.policy"]);
        assert_eq!(touched.told.len(), 2, "{touched:?}");
        let done = due(&topic, &facts(&[("cleanup.policy", "compact"), ("retention.ms", "7"), ("flush.ms", "5")]));
        assert_eq!((done.left.len(), done.told.len()), (0, 0));
        let untold = due(&topic, &TopicFacts { config: None, ..facts(&[]) });
        assert_eq!((untold.left.len(), untold.told.len()), (4, 1), "nobody knows what is done");
    }
}
