//! The configuration as everybody may read it, in Connect's flat form.
//!
//! Of `[kafka.properties]` and `[archive.options]` only those values are shown that are known to hold no secret; a new
//! property of librdkafka is hidden until somebody has looked at it.

use std::collections::BTreeMap;

use super::names::{KAFKA, KAFKA_CLASS, POSTGRES, POSTGRES_CLASS};
use crate::config::{Ack, Config, Kafka, Postgres, Start};
use crate::time;

/// What stands in place of a value.
const HIDDEN: &str = "********";

/// Properties and options that hold no secret.
const HARMLESS: &[&str] = &[
    "acks",
    "aws_allow_http",
    "aws_conditional_put",
    "aws_default_region",
    "aws_endpoint",
    "aws_region",
    "aws_server_side_encryption",
    "aws_virtual_hosted_style_request",
    "broker.address.family",
    "client.id",
    "client.rack",
    "debug",
    "group.instance.id",
    "group.protocol",
    "group.remote.assignor",
    "partition.assignment.strategy",
    "sasl.mechanism",
    "sasl.mechanisms",
    "security.protocol",
    "socket.keepalive.enable",
    "ssl.endpoint.identification.algorithm",
    "timeout",
];

/// What ends so is a number.
const NUMBERS: &[&str] = &[".ms", ".bytes", ".kbytes", ".messages"];

/// `[kafka]` and what it archives to.
pub(super) fn kafka(config: &Config, kafka: &Kafka) -> BTreeMap<String, String> {
    let (regexes, names): (Vec<&str>, Vec<&str>) =
        kafka.topics.iter().map(String::as_str).partition(|topic| topic.starts_with('^'));
    let start = match kafka.start {
        Start::Earliest => "earliest".to_owned(),
        Start::Latest => "latest".to_owned(),
        Start::Timestamp(ms) => time::rfc3339(ms),
    };
    let segment = &kafka.segment;
    let mut all = archive(config, KAFKA, KAFKA_CLASS);
    all.extend([
        ("memory.budget".to_owned(), config.memory_budget.to_string()),
        ("kafka.cluster".to_owned(), kafka.cluster.clone()),
        ("kafka.bootstrap_servers".to_owned(), kafka.bootstrap_servers.clone()),
        ("kafka.group_id".to_owned(), kafka.group_id.clone()),
        ("kafka.start".to_owned(), start),
        ("kafka.isolation".to_owned(), kafka.isolation.name().to_owned()),
        ("kafka.segment.format".to_owned(), segment.format.name().to_owned()),
        ("kafka.segment.compression".to_owned(), format!("zstd:{}", segment.zstd_level)),
        ("kafka.segment.max_bytes".to_owned(), segment.max_bytes.to_string()),
        ("kafka.segment.max_records".to_owned(), segment.max_records.to_string()),
        ("kafka.segment.max_age".to_owned(), humantime::format_duration(segment.max_age).to_string()),
    ]);
    // Connect's own keys for what a sink reads.
    if !names.is_empty() {
        all.push(("topics".to_owned(), names.join(",")));
    }
    if !regexes.is_empty() {
        all.push(("topics.regex".to_owned(), regexes.join("|")));
    }
    let properties =
        kafka.properties.iter().map(|(name, value)| (format!("kafka.properties.{name}"), masked(name, value)));
    all.into_iter().chain(properties).collect()
}

/// `[postgres]` and what it archives to. Its URL may hold a password.
pub(super) fn postgres(config: &Config, postgres: &Postgres) -> BTreeMap<String, String> {
    let ack = if postgres.ack == Ack::Archive { "archive" } else { "spool" };
    let every = postgres.base_backup.every.map(|every| humantime::format_duration(every).to_string());
    let mut all = archive(config, POSTGRES, POSTGRES_CLASS);
    all.extend([
        ("postgres.url".to_owned(), HIDDEN.to_owned()),
        ("postgres.slot".to_owned(), postgres.slot.clone()),
        ("postgres.create_slot".to_owned(), postgres.create_slot.to_string()),
        ("postgres.ack".to_owned(), ack.to_owned()),
        ("postgres.max_age".to_owned(), humantime::format_duration(postgres.max_age).to_string()),
        ("postgres.compression".to_owned(), format!("zstd:{}", postgres.zstd_level)),
    ]);
    all.extend(every.map(|every| ("postgres.base_backup.every".to_owned(), every)));
    all.into_iter().collect()
}

/// Returns what every connector has: its name, and the archive.
fn archive(config: &Config, name: &str, class: &str) -> Vec<(String, String)> {
    let options = config.archive.options.iter();
    let options = options.map(|(name, value)| (format!("archive.options.{name}"), masked(name, value)));
    let own = [
        ("name".to_owned(), name.to_owned()),
        ("connector.class".to_owned(), class.to_owned()),
        ("archive.url".to_owned(), config.archive.url.to_string()),
        ("archive.spool_dir".to_owned(), config.archive.spool_dir.display().to_string()),
    ];
    own.into_iter().chain(options).collect()
}

fn masked(name: &str, value: &str) -> String {
    let known = HARMLESS.contains(&name) || NUMBERS.iter().any(|end| name.ends_with(end));
    // A URL with a user in it is not harmless, whatever its name.
    if known && !value.contains('@') { value.to_owned() } else { HIDDEN.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_known_to_be_harmless_is_shown() {
        let text = r#"
            [archive]
            url = "s3://bucket/prefix"
            [archive.options]
            aws_region = "eu-central-1"
            aws_endpoint = "http://key:hunter2@minio:9000"
            aws_secret_access_key = "hunter2"
            aws_access_key_id = "hunter2"
            aws_session_token = "hunter2"
            [kafka]
            bootstrap_servers = "b:1"
            topics = ["orders", "^cdc", "users", "^x"]
            [kafka.properties]
            "security.protocol" = "SASL_SSL"
            "session.timeout.ms" = 6000
            "sasl.username" = "hunter2"
            "sasl.password" = "hunter2"
            "ssl.key.pem" = "hunter2"
            "ssl.key.password" = "hunter2"
            "sasl.oauthbearer.config" = "hunter2"
            "sasl.oauthbearer.client.secret" = "hunter2"
            "some.new.property" = "hunter2"
        "#;
        let config = Config::parse(text, "test", &BTreeMap::new()).expect("it is valid");
        let shown = kafka(&config, config.kafka.as_ref().expect("[kafka] is there"));
        assert!(!format!("{shown:?}").contains("hunter2"), "{shown:?}");
        assert_eq!(shown["archive.options.aws_region"], "eu-central-1");
        assert_eq!(shown["archive.options.aws_endpoint"], HIDDEN);
        assert_eq!(shown["kafka.properties.security.protocol"], "SASL_SSL");
        assert_eq!(shown["kafka.properties.session.timeout.ms"], "6000");
        assert_eq!(shown["kafka.properties.sasl.password"], HIDDEN);
        assert_eq!((shown["topics"].as_str(), shown["topics.regex"].as_str()), ("orders,users", "^cdc|^x"));
        assert_eq!(shown["kafka.segment.max_age"], "1m");
    }
}
