//! The section `[retention]`, and the key `retention` of `[[kafka.topic]]`.

use std::time::Duration;

use super::raw::Section;
use super::{Kafka, State, TopicOverride};
use crate::stream::TopicGeneration;

/// `[retention]`. What is absent is kept for ever.
#[derive(Debug, Clone, Default)]
pub struct Retention {
    /// `postgres`: every moment of this time before now stays recoverable.
    pub postgres: Option<Duration>,
    /// `kafka`, and what single topics have instead.
    pub kafka: RecordRetention,
    /// `state`: the state as of every moment of this time before now stays known.
    pub state: Option<Duration>,
}

impl Retention {
    /// Whether there is nothing that is ever expired.
    pub fn keeps_everything(&self) -> bool {
        self.postgres.is_none() && self.state.is_none() && self.kafka.keeps_everything()
    }
}

/// How long the records of topics are kept after they were archived.
#[derive(Debug, Clone, Default)]
pub struct RecordRetention {
    /// `retention.kafka`, for every topic that has no time of its own.
    default: Option<Duration>,
    /// `kafka.cluster`: the topics of other clusters in the archive have no times of their own.
    cluster: Option<String>,
    topics: Vec<TopicOverride>,
}

impl RecordRetention {
    /// Returns how long records of a topic are kept after they were archived; none for ever.
    pub fn of(&self, topic: &TopicGeneration) -> Option<Duration> {
        let is_own = self.cluster.as_ref() == Some(&topic.cluster);
        let matching = self.topics.iter().rev().find(|over| is_own && over.pattern.matches(&topic.topic));
        match matching.and_then(|over| over.retention) {
            Some(TopicRetention::Time(kept)) => Some(kept),
            Some(TopicRetention::Forever) => None,
            None => self.default,
        }
    }

    /// Whether no topic's records are ever expired.
    pub fn keeps_everything(&self) -> bool {
        let is_time = |over: &TopicOverride| matches!(over.retention, Some(TopicRetention::Time(_)));
        self.default.is_none() && !self.topics.iter().any(is_time)
    }
}

/// `retention` of a `[[kafka.topic]]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TopicRetention {
    /// So long after they were archived.
    Time(Duration),
    /// `"forever"`.
    Forever,
}

/// Reads `retention` of a `[[kafka.topic]]` whose segments are sealed after `max_age`.
pub(super) fn of_topic(section: &mut Section<'_>, max_age: Duration) -> Option<TopicRetention> {
    section.parsed(
        "retention",
        |text| match (text, humantime::parse_duration(text)) {
            ("forever", _) => Ok(Some(TopicRetention::Forever)),
            (_, Ok(kept)) if kept >= max_age => Ok(Some(TopicRetention::Time(kept))),
            (_, Ok(_)) => Err(too_short(text, "max_age", max_age)),
            (_, Err(_)) => Err(format!(
                "{text:?} is not a time span; use a number with a unit, like \"24h\" or \"7d\", or \"forever\""
            )),
        },
        None,
    )
}

/// Reads the section, which may not be there.
pub(super) fn read(section: Option<Section<'_>>, kafka: Option<&Kafka>, state: Option<&State>) -> Retention {
    let cluster = kafka.map(|kafka| kafka.cluster.clone());
    let topics = kafka.map(|kafka| kafka.overrides.clone()).unwrap_or_default();
    let records = RecordRetention { default: None, cluster, topics };
    let Some(mut section) = section else { return Retention { kafka: records, ..Retention::default() } };
    let mut span = |key: &'static str, least: Option<(&str, Duration)>| {
        let kept = section.optional_duration(key, Duration::from_secs(1))?;
        if let Some((what, least)) = least.filter(|(_, least)| kept < *least) {
            section.problem(key, too_short(&humantime::format_duration(kept).to_string(), what, least));
        }
        Some(kept)
    };
    // What has a time of its own was compared with its own age.
    let followers = records.topics.iter().filter(|over| over.retention.is_none()).map(|over| over.segment.max_age);
    let oldest = kafka.and_then(|kafka| followers.chain([kafka.segment.max_age]).max());
    let default = span("kafka", oldest.map(|age| ("max_age of segments", age)));
    let postgres = span("postgres", None);
    let state = span("state", state.map(|state| ("state.every", state.every)));
    if section.text("kafka_bytes").is_some() {
        section
            .problem("kafka_bytes", "is not supported by this version, which expires records by time; remove the key");
    }
    section.finish();
    Retention { postgres, kafka: RecordRetention { default, ..records }, state }
}

fn too_short(kept: &str, what: &str, least: Duration) -> String {
    format!("{kept} is not allowed, use {what} ({}) or more", humantime::format_duration(least))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::config::Config;

    const LEAST: &str = "[archive]\nurl = \"file:///a\"\n[kafka]\nbootstrap_servers = \"a:9092\"\ntopics = [\"^.*\"]\n";

    fn parse(text: &str) -> Result<Retention, String> {
        let config = Config::parse(&format!("{LEAST}{text}"), "test", &BTreeMap::new());
        config.map(|config| config.retention).map_err(|error| error.to_string())
    }

    #[test]
    fn of_a_topic_the_last_section_that_matches_decides_and_other_clusters_have_the_general_time() {
        let retention = parse(
            "[[kafka.topic]]\nmatch = \"^cdc\\\\.\"\nretention = \"2d\"\n\
             [[kafka.topic]]\nmatch = \"cdc.audit\"\nretention = \"forever\"\n\
             [[kafka.topic]]\nmatch = \"cdc.plain\"\nformat = \"avro\"\n\
             [retention]\nkafka = \"7d\"\n",
        )
        .expect("valid");
        let days = |cluster: &str, topic: &str| {
            let kept = retention.kafka.of(&TopicGeneration::new(cluster, topic, 3));
            kept.map(|kept| kept.as_secs() / 86_400)
        };
        assert_eq!(days("main", "cdc.users"), Some(2));
        assert_eq!(days("main", "cdc.audit"), None, "for ever");
        assert_eq!(days("main", "cdc.plain"), Some(7), "it alone counts, and it says nothing of it");
        assert_eq!(days("main", "orders"), Some(7));
        assert_eq!(days("other", "cdc.audit"), Some(7), "another cluster's");
        assert!(!retention.keeps_everything());
    }

    #[test]
    fn a_topic_may_have_a_time_where_all_others_are_kept() {
        let one = "[[kafka.topic]]\nmatch = \"noise\"\nretention = \"1h\"\n";
        let retention = parse(one).expect("valid");
        assert!(!retention.keeps_everything());
        assert_eq!(retention.kafka.of(&TopicGeneration::new("main", "orders", 0)), None);
        let forever = "[[kafka.topic]]\nmatch = \"noise\"\nretention = \"forever\"\n";
        assert!(parse(forever).expect("valid").keeps_everything());
        assert!(parse("").expect("valid").keeps_everything());
    }

    #[test]
    fn a_time_that_is_shorter_than_what_is_open_is_refused_with_the_least() {
        let of_topic = |rest: &str| format!("[[kafka.topic]]\nmatch = \"noise\"\n{rest}\n");
        for (text, told) in [
            (of_topic("retention = \"59s\""), "kafka.topic[0].retention: 59s is not allowed, use max_age (1m) or more"),
            (of_topic("retention = \"7\""), "kafka.topic[0].retention: \"7\" is not a time span"),
            (
                of_topic("max_age = \"2h\"\n[retention]\nkafka = \"1h\""),
                "retention.kafka: 1h is not allowed, use max_age of segments (2h) or more",
            ),
        ] {
            let problems = parse(&text).expect_err(&text);
            assert!(problems.contains(told), "{text}: {problems}");
        }
        let own = of_topic("max_age = \"2h\"\nretention = \"3h\"\n[retention]\nkafka = \"1h\"");
        assert!(parse(&own).is_ok(), "what has a time of its own does not limit the others");
    }
}
