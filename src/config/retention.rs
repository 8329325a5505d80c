//! The section `[retention]`, and the keys `retention` and `retention_bytes` of `[[kafka.topic]]`.

use std::time::Duration;

use super::raw::Section;
use super::{Kafka, Segment, State, TopicOverride};
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

/// How much of a topic is kept. What either of the two lets go is expired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// For so long after it was archived; none for ever.
    pub time: Option<Duration>,
    /// At least so many of the bytes that were archived last, as they are stored; none for all.
    pub bytes: Option<u64>,
}

/// How long the records of topics are kept after they were archived, and how many bytes of them.
#[derive(Debug, Clone, Default)]
pub struct RecordRetention {
    /// `retention.kafka`, for every topic that has no time of its own.
    time: Option<Duration>,
    /// `retention.kafka_bytes`, for every topic that has no size of its own.
    bytes: Option<u64>,
    /// `kafka.cluster`: the topics of other clusters in the archive have no retention of their own.
    cluster: Option<String>,
    topics: Vec<TopicOverride>,
}

impl RecordRetention {
    /// Returns how much is kept of a topic, all of its generations together; none if it is all.
    pub fn of(&self, topic: &TopicGeneration) -> Option<Kept> {
        let is_own = self.cluster.as_ref() == Some(&topic.cluster);
        let matching = self.topics.iter().rev().find(|over| is_own && over.pattern.matches(&topic.topic));
        let own = matching.map(|over| over.retention).unwrap_or_default();
        let time = own.time.map_or(self.time, Own::limit);
        // What is kept for ever is so whatever its size, unless it has a size of its own.
        let general = self.bytes.filter(|_| own.time != Some(Own::Unlimited));
        let bytes = own.bytes.map_or(general, Own::limit);
        (time.is_some() || bytes.is_some()).then_some(Kept { time, bytes })
    }

    /// Whether no topic's records are ever expired.
    pub fn keeps_everything(&self) -> bool {
        let limits = |over: &TopicOverride| {
            let TopicRetention { time, bytes } = over.retention;
            time.and_then(Own::limit).is_some() || bytes.and_then(Own::limit).is_some()
        };
        self.time.is_none() && self.bytes.is_none() && !self.topics.iter().any(limits)
    }
}

/// What a `[[kafka.topic]]` says of retention.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TopicRetention {
    /// `retention`.
    pub time: Option<Own<Duration>>,
    /// `retention_bytes`.
    pub bytes: Option<Own<u64>>,
}

/// A limit of a topic's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Own<T> {
    /// So much is kept.
    Limit(T),
    /// All is: `"forever"`, `"unlimited"`.
    Unlimited,
}

impl<T> Own<T> {
    fn limit(self) -> Option<T> {
        match self {
            Self::Limit(limit) => Some(limit),
            Self::Unlimited => None,
        }
    }
}

/// Reads what a `[[kafka.topic]]` with these segments says of retention.
pub(super) fn of_topic(section: &mut Section<'_>, segment: &Segment) -> TopicRetention {
    let max_age = segment.max_age;
    let time = section.parsed(
        "retention",
        |text| match (text, humantime::parse_duration(text)) {
            ("forever", _) => Ok(Some(Own::Unlimited)),
            (_, Ok(kept)) if kept >= max_age => Ok(Some(Own::Limit(kept))),
            (_, Ok(_)) => Err(too_short(text, "max_age", max_age)),
            (_, Err(_)) => Err(format!(
                "{text:?} is not a time span; use a number with a unit, like \"24h\" or \"7d\", or \"forever\""
            )),
        },
        None,
    );
    let bytes = match section.is_text("retention_bytes", "unlimited") {
        true => Some(Own::Unlimited),
        false => section.optional_size("retention_bytes", (segment.max_bytes, u64::MAX)).map(Own::Limit),
    };
    TopicRetention { time, bytes }
}

/// Reads the section, which may not be there.
pub(super) fn read(section: Option<Section<'_>>, kafka: Option<&Kafka>, state: Option<&State>) -> Retention {
    let cluster = kafka.map(|kafka| kafka.cluster.clone());
    let topics = kafka.map(|kafka| kafka.overrides.clone()).unwrap_or_default();
    let records = RecordRetention { time: None, bytes: None, cluster, topics };
    let Some(mut section) = section else { return Retention { kafka: records, ..Retention::default() } };
    let mut span = |key: &'static str, least: Option<(&str, Duration)>| {
        let kept = section.optional_duration(key, Duration::from_secs(1))?;
        if let Some((what, least)) = least.filter(|(_, least)| kept < *least) {
            section.problem(key, too_short(&humantime::format_duration(kept).to_string(), what, least));
        }
        Some(kept)
    };
    // What has a time of its own was compared with its own age.
    let followers = records.topics.iter().filter(|over| over.retention.time.is_none()).map(|over| over.segment.max_age);
    let oldest = kafka.and_then(|kafka| followers.chain([kafka.segment.max_age]).max());
    let time = span("kafka", oldest.map(|age| ("max_age of segments", age)));
    let postgres = span("postgres", None);
    let state = span("state", state.map(|state| ("state.every", state.every)));
    // Less than one segment would be a slip of the pen that costs everything but the newest.
    let followers =
        records.topics.iter().filter(|over| over.retention.bytes.is_none()).map(|over| over.segment.max_bytes);
    let largest = kafka.and_then(|kafka| followers.chain([kafka.segment.max_bytes]).max()).unwrap_or(1);
    let bytes = section.optional_size("kafka_bytes", (largest, u64::MAX));
    section.finish();
    Retention { postgres, kafka: RecordRetention { time, bytes, ..records }, state }
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
            kept.and_then(|kept| kept.time).map(|kept| kept.as_secs() / 86_400)
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
    fn a_size_is_each_topics_own_or_the_general_one_and_what_is_kept_for_ever_has_none() {
        let retention = parse(
            "[[kafka.topic]]\nmatch = \"large\"\nretention_bytes = \"2TiB\"\n\
             [[kafka.topic]]\nmatch = \"all\"\nretention_bytes = \"unlimited\"\n\
             [[kafka.topic]]\nmatch = \"audit\"\nretention = \"forever\"\n\
             [[kafka.topic]]\nmatch = \"bounded\"\nretention = \"forever\"\nretention_bytes = \"1TiB\"\n\
             [[kafka.topic]]\nmatch = \"short\"\nretention = \"2h\"\n\
             [retention]\nkafka_bytes = \"500GiB\"\n",
        )
        .expect("valid");
        let of = |cluster: &str, topic: &str| {
            let kept = retention.kafka.of(&TopicGeneration::new(cluster, topic, 0));
            kept.map(|kept| (kept.time.map(|time| time.as_secs()), kept.bytes.map(|bytes| bytes >> 30)))
        };
        assert_eq!(of("main", "orders"), Some((None, Some(500))));
        assert_eq!(of("main", "large"), Some((None, Some(2048))));
        assert_eq!(of("main", "all"), None);
        assert_eq!(of("main", "audit"), None, "for ever is for ever");
        assert_eq!(of("main", "bounded"), Some((None, Some(1024))));
        assert_eq!(of("main", "short"), Some((Some(7200), Some(500))), "both count");
        assert_eq!(of("other", "all"), Some((None, Some(500))), "another cluster's");
        assert!(!retention.keeps_everything());
        let one = |value: &str| parse(&format!("[[kafka.topic]]\nmatch = \"noise\"\nretention_bytes = {value}\n"));
        assert!(!one("\"1GiB\"").expect("valid").keeps_everything());
        assert!(one("\"unlimited\"").expect("valid").keeps_everything());
        for (text, told) in [
            (one("\"63MiB\""), "kafka.topic[0].retention_bytes: 66060288 is not allowed, use 64 MiB or more"),
            (one("\"much\""), "kafka.topic[0].retention_bytes: "),
            (
                parse("[retention]\nkafka_bytes = 500\n"),
                "retention.kafka_bytes: 500 is not allowed, use 64 MiB or more",
            ),
        ] {
            let problems = text.expect_err(told);
            assert!(problems.contains(told), "{problems}");
        }
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
