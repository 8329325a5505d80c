//! What may not be read, and who else takes partitions of the group: looked at now and then, for no event tells.
//!
//! A topic without the right to read it is not assigned, or its partitions stand still without a record; partitions that the
//! group has given to another program are archived by nobody. Both look like a topic in which nothing happens. Members of the group
//! that are no tidelog are named at once; any other is noticed by what nobody does (see [`unattended`]).
//!
//! [`unattended`]: super::unattended

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::sync::oneshot;
use tokio::time::{MissedTickBehavior, interval};

use super::shared::Shared;
use super::status::Status;
use super::unattended::Unattended;
use crate::config::{Kafka, TopicPattern};
use crate::error::{Error, Kind, Result};
use crate::pipeline::desired::State;
use crate::pipeline::published::PublishedKafka;
use crate::source::kafka::{FOREIGN_HINT, Foreign, is_archived};
use crate::tasks::{Reporter, Task};

/// How often it is looked. What is wrong is told within this; every look asks about all topics.
const LOOK_EVERY: Duration = Duration::from_secs(20);

/// What other processes do is looked at every so many times: once a minute.
const ELSEWHERE: u32 = 3;

/// So many foreign members are named.
const MOST_NAMED: usize = 3;

/// Looks until `ended`.
pub(super) async fn watch(
    kafka: Arc<Kafka>,
    shared: Arc<Shared>,
    published: Arc<PublishedKafka>,
    mut ended: oneshot::Receiver<()>,
) {
    let reporter = shared.tasks.reporter(Task::KafkaWatch, "");
    let mut watch = Watch::new(kafka, shared, published);
    let mut ticks = interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = &mut ended => return,
            _ = ticks.tick() => {}
        }
        match watch.look(crate::time::now()).await {
            Ok(()) => reporter.succeeded(),
            Err(error) => {
                if reporter.failed("rights, members or other processes cannot be looked at", &error, Some(LOOK_EVERY)) {
                    tracing::debug!(%error, "rights, members or other processes are not known now");
                }
            }
        }
    }
}

struct Watch {
    kafka: Arc<Kafka>,
    shared: Arc<Shared>,
    published: Arc<PublishedKafka>,
    patterns: Vec<TopicPattern>,
    /// Topics of regexes that were there once: one that may not be seen any more is in no list.
    seen: BTreeSet<String>,
    refused: BTreeMap<String, Reporter>,
    members: Reporter,
    /// How many foreign members there were.
    foreign: usize,
    unattended: Unattended,
    /// How often it was looked.
    looks: u32,
}

impl Watch {
    fn new(kafka: Arc<Kafka>, shared: Arc<Shared>, published: Arc<PublishedKafka>) -> Self {
        let (patterns, members) = (kafka.patterns(), shared.tasks.reporter(Task::KafkaMembers, ""));
        let named = patterns.iter().filter_map(|pattern| match pattern {
            TopicPattern::Name(name) if !kafka.excludes(name) => Some(name.clone()),
            _ => None,
        });
        let seen = named.collect();
        let unattended = Unattended::new(Arc::clone(&shared), &kafka);
        let (refused, foreign, looks) = (BTreeMap::new(), 0, 0);
        Self { kafka, shared, published, patterns, seen, refused, members, foreign, unattended, looks }
    }

    /// Looks at each, whether or not the others can be looked at: a group's coordinator may be away for long while its topics are
    /// read.
    async fn look(&mut self, now: DateTime<Utc>) -> Result<()> {
        let others = if self.looks.is_multiple_of(ELSEWHERE) { self.look_elsewhere(now).await } else { Ok(()) };
        self.looks = self.looks.wrapping_add(1);
        let members = self.look_for_members().await;
        members.and(self.look_for_refusals().await).and(others)
    }

    async fn look_for_members(&mut self) -> Result<()> {
        if let Some(members) = self.shared.cluster.foreign_now(&self.kafka).await? {
            self.tell_members(members);
        }
        Ok(())
    }

    async fn look_for_refusals(&mut self) -> Result<()> {
        if self.patterns.iter().any(|pattern| matches!(pattern, TopicPattern::Regex(_))) {
            let there = self.shared.cluster.topics().await?.into_iter();
            self.seen.extend(there.filter(|topic| is_archived(&self.patterns, &self.kafka, topic)));
        }
        let topics: Vec<String> = self.seen.iter().cloned().collect();
        let refused = self.shared.cluster.unreadable(&topics).await?;
        self.tell_refused(refused);
        Ok(())
    }

    /// Looks at what other processes do.
    async fn look_elsewhere(&mut self, now: DateTime<Utc>) -> Result<()> {
        let status = self.published.status();
        if status.state != State::Running {
            self.unattended.rests();
            return Ok(());
        }
        let elsewhere = self.elsewhere(&status).await;
        let read = status.streams.iter().map(|stream| (stream.topic.to_string(), stream.generation)).collect();
        self.unattended.look(elsewhere, &read, now).await
    }

    /// The partitions that are not read here.
    async fn elsewhere(&self, status: &Status) -> Result<BTreeMap<String, BTreeSet<i32>>> {
        let topics: Vec<String> = self.seen.iter().cloned().collect();
        let described = self.shared.cluster.describe(&topics).await?;
        let counts = described.into_iter().filter_map(|(topic, info)| Some((topic, info.ok()?.partitions)));
        let mut elsewhere: BTreeMap<String, BTreeSet<i32>> =
            counts.map(|(topic, count)| (topic, (0..count).collect())).collect();
        for stream in &status.streams {
            if let Some(partitions) = elsewhere.get_mut(&*stream.topic) {
                partitions.retain(|partition| stream.partitions.iter().all(|at| at.partition != *partition));
            }
        }
        elsewhere.retain(|topic, partitions| !partitions.is_empty() && !self.refused.contains_key(topic));
        Ok(elsewhere)
    }

    fn tell_refused(&mut self, refused: BTreeMap<String, Error>) {
        self.refused.retain(|topic, _| {
            let stays = refused.contains_key(topic);
            if !stays {
                tracing::info!(topic, "the topic may be read again");
            }
            stays
        });
        for (topic, error) in refused {
            let new = || self.shared.tasks.reporter(Task::KafkaRights, topic.as_str());
            let reporter = self.refused.entry(topic.clone()).or_insert_with(new);
            if reporter.failed("it is not archived", &error, Some(LOOK_EVERY)) {
                tracing::warn!(topic, %error, hint = error.hint_text(), "a topic may not be read");
            }
        }
    }

    fn tell_members(&mut self, members: Vec<Foreign>) {
        let taking: Vec<Foreign> = members.into_iter().filter(|member| !member.takes.is_empty()).collect();
        let before = std::mem::replace(&mut self.foreign, taking.len());
        if taking.is_empty() {
            self.members.succeeded();
            if before > 0 {
                tracing::info!(group = self.kafka.group_id, "no other client takes partitions of the group any more");
            }
            return;
        }
        let error = Error::new(Kind::Config, told(&taking, &self.kafka.group_id)).hint(FOREIGN_HINT);
        if self.members.failed("partitions are archived by nobody", &error, Some(LOOK_EVERY)) {
            tracing::warn!(%error, hint = error.hint_text(), "another client takes partitions of the group");
        }
    }
}

fn told(members: &[Foreign], group: &str) -> String {
    let mut text = members.iter().take(MOST_NAMED).map(|member| member.told(group)).collect::<Vec<_>>().join("; ");
    let more = members.len().saturating_sub(MOST_NAMED);
    if more > 0 {
        text += &format!("; and {more} more members");
    }
    text
}
