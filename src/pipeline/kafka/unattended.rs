//! What other processes of this archive do with the partitions of archived topics that are not read here: which of them nobody
//! brings on, for the group has given them to another archive's process or to another program, and which topics have gone on in
//! another generation.
//!
//! ```text
//!   partitions of the topics ─ those that are read here ─► claims of all processes ─ none is new ─► positions in the chains
//!                                                                                     ─ none has moved ─► told
//! ```
//!
//! The group tells no more of its members than what they call themselves. What the processes of this archive do stands in the
//! archive: each claims every few seconds what is complete of its partitions, and one that catches up moves their positions.
//!
//! Whoever sees that a log was cut begins the next generation of its topic. A process that has something to write to the ended
//! one is told so by its chain; one whose partitions are idle learns it here, from what the other claims. Until it follows, nobody
//! knows up to when the topic is complete.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use super::messages::TaskEvent;
use super::shared::Shared;
use crate::config::Kafka;
use crate::error::{Error, Kind, Result};
use crate::manifest::coverage::{self, Coverage};
use crate::manifest::{self, Chain};
use crate::store::layout;
use crate::stream::TopicGeneration;
use crate::tasks::{Reporter, Task};

/// How often it is looked.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// A partition that nobody has brought on for so long is told. A process that was killed is missed by the group after its session
/// of 45 s, and whoever has its partitions then claims within 30 s.
const TOLD_AFTER: TimeDelta = TimeDelta::seconds(120);

/// So many topics are named, and so many partitions of each.
const MOST_TOPICS: usize = 3;
const MOST_PARTITIONS: usize = 10;

const HINT: &str = "does another archive's tidelog, or another program, take part in the group? Give it another kafka.group_id (positions \
                    are the archive's, nothing is lost by it). If a process of this archive has them, its /readyz says what keeps it";

/// Partitions by topic.
type Partitions = BTreeMap<String, BTreeSet<i32>>;

/// What was seen of a partition last.
#[derive(Debug, Clone, Copy)]
struct Mark {
    claimed: Option<DateTime<Utc>>,
    position: Option<i64>,
    /// Since when nothing of it has moved.
    since: DateTime<Utc>,
}

/// What is known of partitions that are not read here.
#[derive(Debug, Default)]
struct Marks(BTreeMap<(String, i32), Mark>);

impl Marks {
    /// Takes in what is claimed of the partitions `elsewhere`, and forgets all others. Gives the topics that have one of which
    /// nothing new is claimed.
    fn claimed(
        &mut self,
        elsewhere: &Partitions,
        claimed: impl Fn(&str, i32) -> Option<DateTime<Utc>>,
        now: DateTime<Utc>,
    ) -> BTreeSet<String> {
        self.0.retain(|(topic, partition), _| elsewhere.get(topic).is_some_and(|known| known.contains(partition)));
        let mut still = BTreeSet::new();
        for (topic, partitions) in elsewhere {
            for partition in partitions {
                let claim = claimed(topic, *partition);
                let new = Mark { claimed: claim, position: None, since: now };
                let mark = self.0.entry((topic.clone(), *partition)).or_insert(new);
                if mark.claimed != claim || mark.since > now {
                    (mark.claimed, mark.since) = (claim, now);
                } else if mark.since < now {
                    still.insert(topic.clone());
                }
            }
        }
        still
    }

    /// Takes in where the archive of a topic stands.
    fn stands(&mut self, topic: &str, position: impl Fn(i32) -> Option<i64>, now: DateTime<Utc>) {
        for ((_, partition), mark) in self.0.iter_mut().filter(|((of, _), _)| of == topic) {
            let position = position(*partition);
            if mark.position != position {
                // What is seen for the first time has not moved.
                mark.since = if mark.position.is_none() { mark.since } else { now };
                mark.position = position;
            }
        }
    }

    /// Returns what nobody has brought on for too long.
    fn unattended(&self, now: DateTime<Utc>) -> Partitions {
        let mut found = Partitions::new();
        for ((topic, partition), _) in self.0.iter().filter(|(_, mark)| now - mark.since >= TOLD_AFTER) {
            found.entry(topic.clone()).or_default().insert(*partition);
        }
        found
    }
}

/// Looks for such partitions, and tells of them.
pub(super) struct Unattended {
    shared: Arc<Shared>,
    cluster: String,
    marks: Marks,
    reporter: Reporter,
}

impl Unattended {
    pub(super) fn new(shared: Arc<Shared>, kafka: &Kafka) -> Self {
        let reporter = shared.tasks.reporter(Task::KafkaMembers, "unattended");
        Self { shared, cluster: kafka.cluster.clone(), marks: Marks::default(), reporter }
    }

    /// Nothing can be said now: this process reads nothing.
    pub(super) fn rests(&mut self) {
        self.marks = Marks::default();
        self.reporter.succeeded();
    }

    /// Looks at the partitions that are not read here. `read`: in which generation each topic is read, which is looked at also
    /// where the brokers do not tell what partitions there are.
    pub(super) async fn look(
        &mut self,
        elsewhere: Result<Partitions>,
        read: &BTreeMap<String, u32>,
        now: DateTime<Utc>,
    ) -> Result<()> {
        if elsewhere.as_ref().is_ok_and(BTreeMap::is_empty) {
            self.rests();
            return Ok(());
        }
        let store = &self.shared.store;
        let loaded = coverage::load_all(store, &layout::topic_coverages(&self.cluster)).await?;
        self.follow(gone_on(&loaded.known, &self.cluster, read)).await;
        let elsewhere = elsewhere?;
        let claims = newest_claims(&loaded.known);
        let claimed = |topic: &str, partition| claims.get(topic)?.get(&partition).copied();
        let still = self.marks.claimed(&elsewhere, claimed, now);
        if !still.is_empty() {
            for generation in newest_generations(manifest::generations_named(store, &self.cluster).await?, &still) {
                // A chain that is damaged is told by whoever archives the topic.
                if let Ok(Some(chain)) = Chain::open(store, &generation.stream()).await {
                    self.marks.stands(&generation.topic, |partition| chain.reached(partition), now);
                }
            }
        }
        self.tell(&self.marks.unattended(now));
        Ok(())
    }

    /// Tells of topics that have gone on in a generation that is there.
    async fn follow(&self, generations: Vec<TopicGeneration>) {
        for generation in generations {
            // Claims prove nothing. Where the chain cannot be read now, it is looked at again, like the claims.
            if matches!(manifest::begin_of(&self.shared.store, &generation.stream()).await, Ok(Some(_))) {
                self.shared.send(TaskEvent::Followed { topic: generation.topic, generation: generation.number });
            }
        }
    }

    fn tell(&self, unattended: &Partitions) {
        if unattended.is_empty() {
            self.reporter.succeeded();
            return;
        }
        let error = Error::new(Kind::Config, told(unattended)).hint(HINT);
        if self.reporter.failed("partitions are archived by nobody", &error, Some(LOOK_EVERY)) {
            tracing::warn!(%error, hint = error.hint_text(), "no process of this archive brings partitions on");
        }
    }
}

/// Returns up to when partitions are claimed to be complete, by topic, whatever the generation: later is newer.
fn newest_claims(known: &[Coverage]) -> BTreeMap<String, BTreeMap<i32, DateTime<Utc>>> {
    let mut newest: BTreeMap<String, BTreeMap<i32, DateTime<Utc>>> = BTreeMap::new();
    for (stream, topic) in known.iter().flat_map(|coverage| &coverage.topics) {
        let Ok(generation) = stream.parse::<TopicGeneration>() else { continue };
        let of_topic = newest.entry(generation.topic).or_default();
        for (partition, claim) in &topic.claims {
            let known = of_topic.entry(*partition).or_insert(claim.complete_through);
            *known = claim.complete_through.max(*known);
        }
    }
    newest
}

/// The generations of which somebody claims something while this process reads their topic in an earlier one.
fn gone_on(known: &[Coverage], cluster: &str, read: &BTreeMap<String, u32>) -> Vec<TopicGeneration> {
    let mut newest: BTreeMap<String, TopicGeneration> = BTreeMap::new();
    for generation in known.iter().flat_map(|coverage| coverage.topics.keys()).filter_map(|stream| stream.parse().ok())
    {
        let generation: TopicGeneration = generation;
        let is_later = read.get(&generation.topic).is_some_and(|number| *number < generation.number);
        let is_newest = newest.get(&generation.topic).is_none_or(|known| known.number < generation.number);
        if generation.cluster == cluster && is_later && is_newest {
            newest.insert(generation.topic.clone(), generation);
        }
    }
    newest.into_values().collect()
}

fn newest_generations(generations: Vec<TopicGeneration>, topics: &BTreeSet<String>) -> Vec<TopicGeneration> {
    let mut newest: BTreeMap<String, TopicGeneration> = BTreeMap::new();
    for generation in generations.into_iter().filter(|generation| topics.contains(&generation.topic)) {
        let known = newest.entry(generation.topic.clone()).or_insert_with(|| generation.clone());
        if known.number < generation.number {
            *known = generation;
        }
    }
    newest.into_values().collect()
}

fn told(unattended: &Partitions) -> String {
    let of = |(topic, partitions): (&String, &BTreeSet<i32>)| {
        let named: Vec<String> = partitions.iter().take(MOST_PARTITIONS).map(i32::to_string).collect();
        let more = partitions.len().saturating_sub(MOST_PARTITIONS);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        format!("{topic} partitions {}{more}", named.join(", "))
    };
    let mut text = unattended.iter().take(MOST_TOPICS).map(of).collect::<Vec<_>>().join("; ");
    let more = unattended.len().saturating_sub(MOST_TOPICS);
    if more > 0 {
        text += &format!("; and {more} more topics");
    }
    let seconds = TOLD_AFTER.num_seconds();
    format!("{text}: no process of this archive has archived anything of them, or found them complete, for {seconds} s")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::coverage::TopicClaims;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(seconds, 0).expect("a time")
    }

    fn two() -> Partitions {
        Partitions::from([("a".to_owned(), BTreeSet::from([0, 1]))])
    }

    #[test]
    fn what_is_claimed_or_moves_is_attended_and_what_does_neither_is_told() {
        let mut marks = Marks::default();
        let mut told_at = Vec::new();
        for now in (0..600).step_by(60) {
            // Partition 0 is claimed again each time; 1 moves until 120 s.
            let claimed = |_: &str, partition| (partition == 0).then(|| at(now - 10));
            let still = marks.claimed(&two(), claimed, at(now));
            assert_eq!(still.contains("a"), now > 0);
            marks.stands("a", |partition| (partition == 1).then_some(now.min(120)), at(now));
            told_at.extend(marks.unattended(at(now)).into_values().map(|partitions| (now, partitions)));
        }
        let only = BTreeSet::from([1]);
        assert_eq!(told_at, [240, 300, 360, 420, 480, 540].map(|now| (now, only.clone())));
        assert!(marks.claimed(&Partitions::new(), |_, _| None, at(600)).is_empty());
        assert!(marks.unattended(at(9_000)).is_empty(), "it is read here now");
    }

    #[test]
    fn what_was_never_claimed_is_told_after_its_time_and_a_clock_that_is_set_back_tells_nothing() {
        let mut marks = Marks::default();
        marks.claimed(&two(), |_, _| None, at(1_000));
        assert!(marks.unattended(at(1_119)).is_empty());
        assert_eq!(marks.unattended(at(1_120)), two());
        marks.claimed(&two(), |_, _| None, at(500));
        assert!(marks.unattended(at(600)).is_empty());
    }

    #[test]
    fn few_are_named() {
        let many = |topic: &str| (topic.to_owned(), (0..12).collect());
        let text = told(&["a", "b", "c", "d"].map(many).into());
        assert!(text.starts_with("a partitions 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more; b "), "{text}");
        assert!(text.contains("; and 1 more topics: no process of this archive"), "{text}");
    }

    #[test]
    fn a_topic_is_followed_into_the_newest_generation_that_is_claimed_and_never_back() {
        let mut coverage = Coverage::new("other", at(0));
        for generation in ["kafka/main/a.1", "kafka/main/a.10", "kafka/main/a.9", "kafka/main/b.0", "kafka/else/c.3"] {
            coverage.topics.insert(generation.to_owned(), TopicClaims::default());
        }
        let read = BTreeMap::from([("a".to_owned(), 1), ("b".to_owned(), 1), ("c".to_owned(), 0)]);
        let newest = TopicGeneration::new("main", "a", 10);
        assert_eq!(gone_on(&[coverage.clone()], "main", &read), [newest]);
        assert_eq!(gone_on(&[coverage], "main", &BTreeMap::from([("a".to_owned(), 10)])), []);
    }

    #[test]
    fn the_newest_generation_is_the_one_that_is_looked_at() {
        let generations = [("a", 0), ("a", 10), ("a", 9), ("b", 1)]
            .map(|(topic, number)| TopicGeneration::new("main", topic, number));
        assert_eq!(
            newest_generations(generations.to_vec(), &BTreeSet::from(["a".to_owned()])),
            [generations[1].clone()]
        );
    }
}
