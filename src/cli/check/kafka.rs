//! What `tidelog check --connect` asks of Kafka: is it there, and would everything be archived?

use std::collections::BTreeSet;

use super::answer::Answer;
use crate::config::{Kafka, TopicPattern};
use crate::error::{Error, Kind, Result};
use crate::source::kafka::{Cluster, FOREIGN_HINT, Limit};

/// All answers. That nobody answers is told once, as the check `kafka`.
pub(super) async fn check(kafka: &Kafka) -> Vec<Answer> {
    match ask(kafka).await {
        Ok(answers) => answers,
        Err(error) => vec![Answer::of("kafka", Err(error))],
    }
}

async fn ask(kafka: &Kafka) -> Result<Vec<Answer>> {
    let cluster = Cluster::new(kafka)?;
    let brokers = cluster.ping().await?;
    let there = cluster.topics().await?;
    let patterns = kafka.patterns();
    let wanted = |topic: &&String| patterns.iter().any(|pattern| pattern.matches(topic)) && !kafka.excludes(topic);
    let matched: BTreeSet<String> = there.iter().filter(wanted).cloned().collect();
    let named = patterns.iter().filter_map(|pattern| match pattern {
        TopicPattern::Name(name) if !kafka.excludes(name) => Some(name.clone()),
        _ => None,
    });
    // A topic that this client may not see is not in the list of all, and is not missing either.
    let topics: Vec<String> = matched.iter().cloned().chain(named).collect::<BTreeSet<_>>().into_iter().collect();
    let refused = cluster.unreadable(&topics).await?;
    let missing: Vec<&str> = topics
        .iter()
        .filter(|topic| !matched.contains(*topic) && !refused.contains_key(*topic))
        .map(String::as_str)
        .collect();
    let mut answers = vec![match missing.as_slice() {
        [] => Answer::of("kafka", Ok(reached(kafka, brokers, matched.len()))),
        missing => Answer::of("kafka", Err(not_there(kafka, missing))),
    }];
    let readable: Vec<String> = matched.into_iter().filter(|topic| !refused.contains_key(topic)).collect();
    answers.extend(refused.into_values().map(|error| Answer::of("rights", Err(error))));
    answers.extend(group(&cluster, kafka).await?);
    answers.extend(limits(&cluster, kafka, &readable).await?);
    Ok(answers)
}

/// Returns whether this client may take part in the group, and who else does.
async fn group(cluster: &Cluster, kafka: &Kafka) -> Result<Vec<Answer>> {
    if let Err(error) = cluster.may_join(&kafka.group_id).await {
        return if error.kind() == Kind::Denied { Ok(vec![Answer::of("rights", Err(error))]) } else { Err(error) };
    }
    let told = cluster.foreign_members(kafka).await?.into_iter().map(|member| {
        let text = member.told(&kafka.group_id);
        if member.is_beside() {
            Answer::warning("group", text, FOREIGN_HINT)
        } else {
            Answer::of("group", Err(Error::new(Kind::Config, text).hint(FOREIGN_HINT)))
        }
    });
    Ok(told.collect())
}

async fn limits(cluster: &Cluster, kafka: &Kafka, topics: &[String]) -> Result<Vec<Answer>> {
    let (limits, untold) = cluster.limits(kafka, topics).await?;
    let failed = |Limit { text, hint }| Answer::of("limits", Err(Error::new(Kind::Config, text).hint(hint)));
    let mut answers: Vec<Answer> = limits.into_iter().map(failed).collect();
    if let [first, more @ ..] = untold.as_slice() {
        let more = if more.is_empty() { String::new() } else { format!(", and those of {} more", more.len()) };
        let hint = "grant DESCRIBE_CONFIGS on the topics to have it checked that their largest batches fit; tidelog run needs it not";
        answers.push(Answer::warning("limits", format!("{first}{more}"), hint));
    }
    Ok(answers)
}

fn not_there(kafka: &Kafka, missing: &[&str]) -> Error {
    let message = format!("kafka.topics names {}, which {} does not have", missing.join(", "), kafka.bootstrap_servers);
    Error::new(Kind::NotFound, message).hint("create what is missing, or mend its name; a running tidelog waits for it")
}

fn reached(kafka: &Kafka, brokers: usize, topics: usize) -> String {
    format!("{}: {}, {} to archive", kafka.bootstrap_servers, count(brokers, "broker"), count(topics, "topic"))
}

fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}
