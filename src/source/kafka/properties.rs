//! The configuration as librdkafka's properties.
//!
//! What the user writes in `[kafka.properties]` wins over the defaults of this page, except for the few properties on
//! which the archive's correctness rests: those are refused with the reason. Values may be secrets and are never shown.

use std::collections::BTreeMap;

use crate::config::{Kafka, TopicPattern};
use crate::error::{Error, Kind, Result};

/// Properties that a user cannot set, and what to do instead.
const OURS: &[(&str, &str)] = &[
    ("auto.offset.reset", "positions come from the archive; use kafka.start"),
    ("enable.auto.commit", "offsets are committed after their checkpoint"),
    ("auto.commit.enable", "offsets are committed after their checkpoint"),
    ("enable.auto.offset.store", "offsets are committed after their checkpoint"),
    ("enable.partition.eof", "the end of a partition is what coverage is made of"),
    ("bootstrap.servers", "use kafka.bootstrap_servers"),
    ("metadata.broker.list", "use kafka.bootstrap_servers"),
    ("group.id", "use kafka.group_id"),
    ("isolation.level", "use kafka.isolation"),
    ("topic.blacklist", "use kafka.exclude"),
    ("check.crcs", "a damaged record must never be archived as if it were whole"),
    ("log.queue", "the log goes to the program's own log"),
    ("plugin.library.paths", "plug-ins are not loaded"),
    ("enable.sparse.connections", "it is librdkafka's own switch"),
];

/// Defaults that a user can change.
const DEFAULTS: &[(&str, &str)] = &[
    ("client.id", "tidelog"),
    // Bounds what librdkafka holds: records that wait to be polled, and one answer of a broker. 8 MiB brought the
    // process from 82 MB to 35 MB and cost nothing.
    ("queued.max.messages.kbytes", "8192"),
    ("fetch.max.bytes", "8388608"),
    // An answer of a broker waits until it holds this much, or for fetch.wait.max.ms (half a second). By default every batch
    // of a producer is an answer of its own: at 1,000 records/s that was 55 us of CPU a record instead of 13.
    ("fetch.min.bytes", "1048576"),
    // A new topic of a regex, or a new partition, is seen this much later at most.
    ("topic.metadata.refresh.interval.ms", "10000"),
    // A partition whose fetch failed or whose queue was full is tried again after this; the default is a second.
    ("fetch.queue.backoff.ms", "100"),
    ("socket.keepalive.enable", "true"),
];

/// The properties of the group's member.
pub(super) fn consumer(config: &Kafka) -> Result<Vec<(String, String)>> {
    let mut all = common(config)?;
    let by_broker = assigned_by_broker(config);
    let mut set = |name: &str, value: &str| {
        all.entry(name.to_owned()).or_insert_with(|| value.to_owned());
    };
    set("group.id", &config.group_id);
    set("isolation.level", config.isolation.name());
    set("enable.auto.commit", "false");
    set("enable.auto.offset.store", "false");
    set("auto.offset.reset", "error");
    set("enable.partition.eof", "true");
    set("check.crcs", "true");
    if !by_broker {
        set("partition.assignment.strategy", "cooperative-sticky");
        let excluded: Vec<String> = config.exclude.iter().filter_map(as_posix_list_item).collect();
        if !excluded.is_empty() {
            set("topic.blacklist", &excluded.join(","));
        }
    }
    Ok(in_order(all))
}

/// The properties of a client that reads outside of the group: the same connection and the same limits.
fn outside(config: &Kafka) -> Result<BTreeMap<String, String>> {
    let mut all: BTreeMap<String, String> = consumer(config)?.into_iter().collect();
    let of_group = [
        "group.instance.id",
        "group.protocol",
        "group.remote.assignor",
        "partition.assignment.strategy",
        "topic.blacklist",
    ];
    all.retain(|name, _| !of_group.contains(&name.as_str()));
    Ok(all)
}

/// The properties of a client that reads ranges of partitions outside of the group. Aborted records are never given, whatever
/// is archived.
pub(super) fn ranges(config: &Kafka) -> Result<Vec<(String, String)>> {
    let mut all = outside(config)?;
    for (name, value) in [
        ("isolation.level", "read_committed"),
        // The end of a range is waited for, not a full answer; and the next range is only asked for once the broker has given the
        // answer that it holds back: 300 partitions took 64 s with 100 ms.
        ("fetch.min.bytes", "1"),
        ("fetch.wait.max.ms", "5"),
        ("fetch.error.backoff.ms", "50"),
    ] {
        all.insert(name.to_owned(), value.to_owned());
    }
    Ok(in_order(all))
}

/// The properties of a client that looks at single batches of a partition, outside of the group: one batch at a time, nothing
/// waited for, and a log that tells of every fetch.
pub(super) fn probe(config: &Kafka) -> Result<Vec<(String, String)>> {
    let mut all = outside(config)?;
    for (name, value) in [
        // An aborted record reads as well as any other.
        ("isolation.level", "read_uncommitted"),
        // KIP-74: the first batch comes whole, however small the limit is.
        // librdkafka doubles the limit of a partition with each answer that it can make nothing of, not the one of the answer.
        ("max.partition.fetch.bytes", "1"),
        ("fetch.max.bytes", "1000"),
        ("message.max.bytes", "1000"),
        ("fetch.min.bytes", "1"),
        ("fetch.wait.max.ms", "20"),
        ("fetch.error.backoff.ms", "0"),
        ("fetch.queue.backoff.ms", "0"),
        ("reconnect.backoff.ms", "10"),
        ("reconnect.backoff.max.ms", "50"),
        ("debug", "fetch,msg"),
    ] {
        all.insert(name.to_owned(), value.to_owned());
    }
    // Two names of one property: the last would win.
    all.remove("fetch.message.max.bytes");
    Ok(in_order(all))
}

/// The properties of a client for requests only: those of the consumer do not concern it.
pub(super) fn admin(config: &Kafka) -> Result<Vec<(String, String)>> {
    const CONSUMER_ONLY: &[&str] =
        &["group.", "fetch.", "queued.", "session.", "heartbeat.", "max.poll.", "partition.assignment."];
    let mut all = common(config)?;
    all.retain(|name, _| !CONSUMER_ONLY.iter().any(|prefix| name.starts_with(prefix)));
    Ok(in_order(all))
}

fn common(config: &Kafka) -> Result<BTreeMap<String, String>> {
    for name in config.properties.keys() {
        if let Some((_, instead)) = OURS.iter().find(|(ours, _)| ours == name) {
            return Err(Error::new(Kind::Config, format!("kafka.properties.{name}: cannot be set: {instead}"))
                .hint(format!("remove {name} from [kafka.properties]")));
        }
    }
    let mut all = config.properties.clone();
    for (name, value) in DEFAULTS {
        all.entry((*name).to_owned()).or_insert_with(|| (*value).to_owned());
    }
    all.insert("bootstrap.servers".to_owned(), config.bootstrap_servers.clone());
    Ok(all)
}

/// `receive.message.max.bytes` must exceed `fetch.max.bytes`, and librdkafka checks neither order; but an error of one
/// property names that property, so they are set in the order of their names.
fn in_order(all: BTreeMap<String, String>) -> Vec<(String, String)> {
    all.into_iter().collect()
}

/// KIP-848: the brokers assign the partitions (`group.protocol=consumer`).
fn assigned_by_broker(config: &Kafka) -> bool {
    config.properties.get("group.protocol").is_some_and(|protocol| protocol.eq_ignore_ascii_case("consumer"))
}

/// What to subscribe to: names, and `^` with a regex.
///
/// The regex is the configuration's, in Rust's syntax, and finds its match anywhere. Who matches it differs:
/// - classic protocol: librdkafka itself, with POSIX extended regexes (`regexec`), which find a match anywhere;
/// - KIP-848: the broker, with RE2J, and the whole name must match; so it is wrapped. librdkafka compiles it all the
///   same, and takes only what POSIX knows.
///
/// Syntax that means something else to POSIX is refused: it would silently name other topics.
pub fn subscription(config: &Kafka) -> Result<Vec<String>> {
    let by_broker = assigned_by_broker(config);
    let pattern = |topic: &String| match foreign_to_posix(topic) {
        _ if !topic.starts_with('^') => Ok(topic.clone()),
        None if by_broker => Ok(format!("^.*({topic}).*")),
        None => Ok(topic.clone()),
        Some(syntax) => Err(Error::new(
            Kind::Config,
            format!("kafka.topics: {topic:?} uses {syntax}, which Kafka's client library does not know"),
        )
        .hint("write it as a POSIX extended regex, for example [0-9] instead of \\d")),
    };
    config.topics.iter().map(pattern).collect()
}

/// A pattern as one item of `topic.blacklist`, if it can be one. Topics of the others may be assigned; the consumer
/// leaves them alone, so this only keeps the group's assignment tidy.
///
/// The list is split at every comma (rdkafka_pattern.c, where the escape by a second comma does not work).
fn as_posix_list_item(pattern: &TopicPattern) -> Option<String> {
    let item = match pattern {
        TopicPattern::Name(name) => format!("^{}$", name.replace('.', "\\.")),
        TopicPattern::Regex(regex) => regex.as_str().to_owned(),
    };
    (!item.contains(',') && foreign_to_posix(&item).is_none()).then_some(item)
}

/// Syntax of Rust's regexes that POSIX extended regexes lack or read otherwise.
fn foreign_to_posix(pattern: &str) -> Option<&'static str> {
    let mut rest = pattern;
    let mut in_class = false;
    while let Some(first) = rest.chars().next() {
        let tail = &rest[first.len_utf8()..];
        let next = tail.chars().next();
        match first {
            '\\' if in_class => return Some("an escape inside [ ]"),
            // An escaped letter or digit is a class, an anchor or a code point; only punctuation stands for itself.
            '\\' if next.is_none_or(char::is_alphanumeric) => return Some("an escape such as \\d, \\w or \\b"),
            '\\' => {
                rest = &tail[next.map_or(0, char::len_utf8)..];
                continue;
            }
            '[' if in_class && next != Some(':') => return Some("a class inside a class"),
            '[' => in_class = true,
            '&' | '-' | '~' if in_class && next == Some(first) => return Some("a set operation inside [ ]"),
            ']' => in_class = false,
            '(' if !in_class && next == Some('?') => return Some("a group such as (?: or (?i"),
            '*' | '+' | '?' | '}' if !in_class && matches!(next, Some('?' | '+' | '*')) => {
                return Some("a lazy repetition");
            }
            _ => {}
        }
        rest = tail;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_property_of_the_user_wins() {
        let config = super::super::tests::config("localhost:1", &["a"], &[("fetch.max.bytes", "1000000")]);
        let all: BTreeMap<_, _> = consumer(&config).unwrap().into_iter().collect();
        assert_eq!(all["fetch.max.bytes"], "1000000");
        assert_eq!(all["queued.max.messages.kbytes"], "8192");
        assert_eq!(all["partition.assignment.strategy"], "cooperative-sticky");
        assert_eq!(all["auto.offset.reset"], "error");
    }

    #[test]
    fn what_correctness_needs_is_refused_with_the_way_out() {
        for (name, _) in OURS {
            let config = super::super::tests::config("localhost:1", &["a"], &[(name, "x-secret-x")]);
            let error = consumer(&config).unwrap_err();
            assert_eq!(error.kind(), Kind::Config);
            assert!(error.to_string().starts_with(&format!("kafka.properties.{name}: ")), "{error}");
            assert!(!error.to_string().contains("x-secret-x"));
        }
    }

    #[test]
    fn no_client_side_strategy_where_the_brokers_assign() {
        let mut config = super::super::tests::config("localhost:1", &["^a"], &[("group.protocol", "consumer")]);
        config.exclude = vec![TopicPattern::Name("b".into())];
        let all: BTreeMap<_, _> = consumer(&config).unwrap().into_iter().collect();
        assert!(!all.contains_key("partition.assignment.strategy"));
        assert!(!all.contains_key("topic.blacklist"));
        assert_eq!(subscription(&config).unwrap(), ["^.*(^a).*"]);
    }

    #[test]
    fn excluded_topics_become_a_blacklist_where_the_dialects_agree() {
        let mut config = super::super::tests::config("localhost:1", &["^a"], &[]);
        let regex = |text: &str| TopicPattern::Regex(regex::Regex::new(text).unwrap());
        config.exclude =
            vec![TopicPattern::Name("a.b".into()), regex("^__"), regex(r"^x\d"), regex("^y{1,3}"), regex("^(?i)z")];
        let all: BTreeMap<_, _> = consumer(&config).unwrap().into_iter().collect();
        assert_eq!(all["topic.blacklist"], r"^a\.b$,^__");
    }

    #[test]
    fn a_regex_that_posix_reads_otherwise_is_refused() {
        for good in ["^cdc\\.", "^(a|b)-[0-9]+$", "^[[:alnum:]]+\\.x$", "^.*", "^a\\-b", "^[a-z_.-]*$"] {
            let config = super::super::tests::config("localhost:1", &[good], &[]);
            assert_eq!(subscription(&config).unwrap(), [good]);
        }
        for bad in ["^a\\d", "^\\w+", "^(?:a|b)", "^(?i)a", "^a.*?b", "^\\p{L}", "^[\\w.]", "^[a&&b]", "^a++"] {
            let config = super::super::tests::config("localhost:1", &[bad], &[]);
            let error = subscription(&config).unwrap_err();
            assert!(error.to_string().contains("kafka.topics"), "{error}");
        }
    }
}
