//! The settings of a topic that a replay creates: every one by which a broker could drop, refuse or change a record is set,
//! whatever the broker's own default is.

use std::collections::BTreeMap;

use regex::Regex;

/// Topics whose owners start only on compacted ones, by how they are named: Kafka Connect's three, schema registries',
/// MirrorMaker's, and the changelogs of Kafka Streams.
const COMPACTED: &str = r"(?x)
    (^|[._-])connect[._-](.*[._-])?(configs?|offsets?|status(es)?)$
  | (^|[._-])_?schemas$
  | (^|[._-])mm2-(configs|offsets|status)[._-].*internal$ | [._-]checkpoints[._-]internal$
  | -changelog$";

/// `max.message.bytes` where a broker is not asked: Kafka's default.
pub(super) const DEFAULT_MAX_MESSAGE: u64 = 1_048_588;

/// What the target is known to understand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Understood {
    /// Two limits of timestamps, before and after now (KIP-937, Kafka 3.6), in place of one.
    pub(super) both_limits: bool,
}

/// Returns whether `topic` is one that has to be compacted for its owner to start.
pub(super) fn is_compacted(topic: &str) -> bool {
    Regex::new(COMPACTED).is_ok_and(|names| names.is_match(topic))
}

/// Kafka's own default, and room for any batch.
const SEGMENT: u64 = 1 << 30;

/// The settings of a topic that is to keep the records of `source` just as they are sent, the largest batch of which needs
/// `largest` bytes at most. `default` are the brokers' own settings by name, as far as they tell: what does by default is
/// left to them, for managed clusters allow few settings.
pub(super) fn settings(
    source: &str,
    largest: u64,
    understood: Understood,
    default: impl Fn(&str) -> Option<u64>,
) -> BTreeMap<String, String> {
    let policy = if is_compacted(source) { "compact" } else { "delete" };
    let mut config: BTreeMap<&str, String> = BTreeMap::from([
        ("cleanup.policy", policy.to_owned()),
        ("compression.type", "producer".to_owned()),
        ("message.timestamp.type", "CreateTime".to_owned()),
        ("retention.bytes", "-1".to_owned()),
        ("retention.ms", "-1".to_owned()),
    ]);
    let any = i64::MAX.to_string();
    if understood.both_limits {
        config.insert("message.timestamp.after.max.ms", any.clone());
        config.insert("message.timestamp.before.max.ms", any);
    } else {
        config.insert("message.timestamp.difference.max.ms", any);
    }
    if default("message.max.bytes").unwrap_or(DEFAULT_MAX_MESSAGE) < largest {
        config.insert("max.message.bytes", largest.to_string());
    }
    // A batch has to fit into a segment (UnifiedLog.append).
    if default("log.segment.bytes").unwrap_or(SEGMENT) < largest {
        config.insert("segment.bytes", SEGMENT.max(largest).to_string());
    }
    config.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_that_their_owners_want_compacted_are_known_by_name() {
        for topic in [
            "connect-offsets",
            "connect-configs",
            "my-connect-cluster.connect_status",
            "connect-cluster-offsets",
            "_schemas",
            "mm2-offsets.a.internal",
            "a.checkpoints.internal",
            "app-store-changelog",
        ] {
            assert!(is_compacted(topic), "{topic}");
        }
        for topic in ["orders", "connections", "offsets", "cdc.schemas.changes", "reconnect", "connect-orders"] {
            assert!(!is_compacted(topic), "{topic}");
        }
    }

    #[test]
    fn an_older_broker_has_one_limit_of_timestamps() {
        let unknown = |_: &str| None;
        let old = settings("orders", 5_000_000, Understood { both_limits: false }, unknown);
        assert!(
            old.contains_key("message.timestamp.difference.max.ms")
                && !old.contains_key("message.timestamp.after.max.ms")
        );
        assert_eq!(old["max.message.bytes"], "5000000");
        let registry = settings("_schemas", DEFAULT_MAX_MESSAGE, Understood { both_limits: true }, unknown);
        assert_eq!(registry["cleanup.policy"], "compact");
        assert!(!registry.contains_key("max.message.bytes") && !registry.contains_key("segment.bytes"));
    }

    #[test]
    fn brokers_that_take_less_by_default_are_overruled() {
        let small = |name: &str| (name == "message.max.bytes" || name == "log.segment.bytes").then_some(200_000);
        let config = settings("orders", DEFAULT_MAX_MESSAGE, Understood { both_limits: true }, small);
        assert_eq!(config["max.message.bytes"], DEFAULT_MAX_MESSAGE.to_string());
        assert_eq!(config["segment.bytes"], SEGMENT.to_string());
    }
}
