//! Creating the topics that a target lacks, as their archive says and the target allows.

use std::collections::BTreeSet;
use std::future::Future;

use rdkafka::admin::{AdminOptions, NewTopic, TopicReplication, TopicResult};
use rdkafka::error::RDKafkaErrorCode;

use super::connection::Failed as _;
use super::preflight::Create;
use super::settings::Config;
use super::target::{ANSWER, PAUSE, Target};
use crate::error::{Error, Kind, Result};

/// A topic to create.
struct Wanted<'a> {
    topic: &'a str,
    partitions: i32,
    config: Config,
}

impl<'a> Wanted<'a> {
    fn of(missing: &'a [Create]) -> Vec<Self> {
        missing.iter().map(|one| Self::with(one, one.given.created())).collect()
    }

    fn with(create: &'a Create, config: Config) -> Self {
        Self { topic: &create.topic, partitions: create.partitions, config }
    }

    /// Returns what the topic shall be in the end, as far as the archive says.
    fn in_the_end(create: &'a Create) -> Self {
        let mut config = create.given.needed.clone();
        config.extend(create.given.wished());
        Self::with(create, config)
    }
}

/// Returns whether the target does not take a setting, or the value, by its nature or its policy. It does not say which.
fn is_about_settings(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode::{InvalidConfig, InvalidRequest, PolicyViolation};
    matches!(code, InvalidConfig | InvalidRequest | PolicyViolation)
}

/// Returns which of `wished` the target does not take beside `needed`, tried one by one.
async fn refused<F: Future<Output = Result<bool>>>(
    needed: &Config,
    wished: &Config,
    takes: impl Fn(Config) -> F,
) -> Result<Vec<String>> {
    let mut refused = Vec::new();
    // What is refused without them is another matter.
    if !takes(needed.clone()).await? {
        return Ok(refused);
    }
    let mut taken = needed.clone();
    for (name, value) in wished {
        let mut more = taken.clone();
        more.insert(name.clone(), value.clone());
        match takes(more.clone()).await? {
            true => taken = more,
            false => refused.push(name.clone()),
        }
    }
    Ok(refused)
}

impl Target {
    /// Leaves out of `missing` the archived settings that the target does not take: an older broker, one without tiered storage,
    /// a policy.
    pub(super) async fn leave_out_refused(&self, missing: &mut [Create]) -> Result<()> {
        let wanted: Vec<Wanted<'_>> = missing.iter().map(Wanted::in_the_end).collect();
        let answers = self.ask_to_create(&wanted, true).await?;
        for (create, answer) in missing.iter_mut().zip(answers) {
            let Err((_, code)) = answer else { continue };
            if !is_about_settings(code) {
                continue;
            }
            let takes = async |config| {
                let answers = self.ask_to_create(&[Wanted::with(create, config)], true).await?;
                Ok(!answers.iter().any(|answer| matches!(answer, Err((_, code)) if is_about_settings(*code))))
            };
            let refused = refused(&create.given.needed, &create.given.wished(), takes).await?;
            create.given.without(&refused);
        }
        Ok(())
    }

    /// Returns what the cluster has against creating topics, as problems: it is asked to look only (`validateOnly` of CreateTopics), at the
    /// names, the settings, its own policies and the rights.
    pub(super) async fn refusals(&self, missing: &[Create]) -> Result<Vec<String>> {
        let told = |(topic, code)| match code {
            RDKafkaErrorCode::TopicAlreadyExists => None,
            RDKafkaErrorCode::InvalidTopic => Some(format!(
                "{topic} cannot be created: {code}. Is there a topic whose name differs from it in \".\" and \"_\" alone? Give it \
                 another name with --rename"
            )),
            _ => Some(format!("{topic} cannot be created: {code}")),
        };
        Ok(self
            .ask_to_create(&Wanted::of(missing), true)
            .await?
            .into_iter()
            .filter_map(Result::err)
            .filter_map(told)
            .collect())
    }

    async fn ask_to_create(&self, wanted: &[Wanted<'_>], validate_only: bool) -> Result<Vec<TopicResult>> {
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let topics: Vec<NewTopic<'_>> = wanted
            .iter()
            .map(|wanted| {
                // -1: the cluster's own default.replication.factor (KIP-464).
                let new = NewTopic::new(wanted.topic, wanted.partitions, TopicReplication::Fixed(-1));
                wanted.config.iter().fold(new, |new, (key, value)| new.set(key, value))
            })
            .collect();
        let options = AdminOptions::new().request_timeout(Some(ANSWER)).operation_timeout(Some(ANSWER));
        self.admin
            .create_topics(&topics, &options.validate_only(validate_only))
            .await
            .or_failed(|| "cannot create topics in the target".to_owned())
    }

    /// Creates what is missing, and waits until the target knows it. Tells what of it was not there.
    pub(super) async fn create(&self, missing: &[Create]) -> Result<BTreeSet<String>> {
        let mut created = BTreeSet::new();
        if missing.is_empty() {
            return Ok(created);
        }
        let answers = self.ask_to_create(&Wanted::of(missing), false).await?;
        for answer in answers {
            match answer {
                Ok(topic) => drop(created.insert(topic)),
                Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((topic, code)) => {
                    let config = missing.iter().find(|one| one.topic == topic).map(Create::settings);
                    return Err(Error::new(Kind::Denied, format!("the target refuses to create {topic}"))
                        .source(code)
                        .hint(format!(
                            "create it yourself, as nearly as the cluster allows with {}, and run the same command again",
                            config.unwrap_or_default()
                        )));
                }
            }
        }
        self.await_topics(missing).await?;
        Ok(created)
    }

    async fn await_topics(&self, created: &[Create]) -> Result<()> {
        let deadline = tokio::time::Instant::now() + ANSWER;
        let topics: Vec<&str> = created.iter().map(|topic| topic.topic.as_str()).collect();
        loop {
            let known = self.describe(&topics).await?;
            if created
                .iter()
                .all(|topic| known.get(&topic.topic).is_some_and(|facts| facts.partitions >= topic.partitions))
            {
                return Ok(());
            }
            if tokio::time::Instant::now() > deadline {
                return Err(Error::new(
                    Kind::Unavailable,
                    format!("the target created {} but does not show it", topics.join(", ")),
                ));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_the_target_does_not_take_is_found_one_by_one() {
        let config = |names: &[&str]| names.iter().map(|name| ((*name).to_owned(), "1".to_owned())).collect::<Config>();
        let wished = config(&["a", "flush.ms", "message.format.version", "segment.ms"]);
        let takes =
            async |config: Config| Ok(!config.contains_key("a") && !config.contains_key("message.format.version"));
        let found = refused(&config(&["retention.ms"]), &wished, takes).await.expect("asked");
        assert_eq!(found, ["a", "message.format.version"]);
        let found = refused(&config(&["retention.ms"]), &wished, async |_| Ok(false)).await.expect("asked");
        assert!(found.is_empty(), "the topic is refused for another reason: {found:?}");
    }
}
