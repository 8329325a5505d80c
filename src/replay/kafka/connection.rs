//! How the target cluster is reached: the archiver's own cluster, a bootstrap address, or a properties file.

use std::collections::BTreeMap;
use std::path::Path;

use rdkafka::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, KafkaResult};

use crate::config;
use crate::error::{Error, Kind, Result};
use crate::source::kafka::Cluster;

const BOOTSTRAP: &str = "bootstrap.servers";

/// Which of the archiver's properties say how a cluster is reached, by how they begin; its others tune its consumer.
const CONNECTION: [&str; 12] = [
    "api.version.",
    "broker.address.",
    "client.dns.",
    "client.id",
    "client.rack",
    "enable.sasl.",
    "enable.ssl.",
    "https.",
    "sasl.",
    "security.",
    "socket.",
    "ssl.",
];

/// What a replay itself decides, for it could not be exactly once otherwise.
const RESERVED: [&str; 5] = ["acks", "enable.idempotence", "group.id", "request.required.acks", "transactional.id"];

/// How a cluster is reached.
#[derive(Debug, Clone)]
pub struct Connection {
    properties: BTreeMap<String, String>,
}

impl Connection {
    /// The archiver's own cluster, with those of its properties that say how it is reached.
    pub fn of_config(kafka: &config::Kafka) -> Self {
        let reaches = |key: &str| CONNECTION.iter().any(|start| key.starts_with(start));
        let mut properties: BTreeMap<String, String> = kafka
            .properties
            .iter()
            .filter(|(key, _)| reaches(key))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        properties.insert(BOOTSTRAP.to_owned(), kafka.bootstrap_servers.clone());
        Self { properties }
    }

    /// A cluster without TLS and SASL. The archiver's own credentials are never sent to another address.
    pub fn plain(bootstrap: &str) -> Self {
        Self { properties: BTreeMap::from([(BOOTSTRAP.to_owned(), bootstrap.to_owned())]) }
    }

    /// Returns what the file at `path` says: `key=value` lines of librdkafka's properties, `#` before a comment, as kcat reads
    /// them. `bootstrap`, if given, replaces what the file names.
    ///
    /// # Errors
    /// `Kind::Config` for a line that is none, a property that librdkafka does not know or a replay decides itself.
    pub fn of_file(path: &Path, bootstrap: Option<&str>) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| Error::io(error, format!("cannot read {}", path.display())))?;
        Self::of_text(&text, bootstrap).map_err(|error| error.context(path.display()))
    }

    /// Another cluster, by its address and librdkafka's properties.
    ///
    /// # Errors
    /// `Kind::Config` for a property that librdkafka does not know or a replay decides itself.
    pub fn of_properties(bootstrap: &str, properties: &BTreeMap<String, String>) -> Result<Self> {
        if let Some(key) = RESERVED.iter().find(|key| properties.contains_key(**key)) {
            let message = format!("{key} is decided by the replay itself");
            return Err(Error::new(Kind::Config, message).hint("leave it out"));
        }
        let mut properties = properties.clone();
        properties.insert(BOOTSTRAP.to_owned(), bootstrap.to_owned());
        let connection = Self { properties };
        connection.client().create_native_config().map_err(|error| wrong_property(&error))?;
        Ok(connection)
    }

    fn of_text(text: &str, bootstrap: Option<&str>) -> Result<Self> {
        let mut properties = BTreeMap::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = |why: &str| Error::new(Kind::Config, format!("line {}: {why}", index + 1));
            let (key, value) = line
                .split_once('=')
                .map(|(key, value)| (key.trim(), value.trim()))
                .ok_or_else(|| wrong("there is no =").hint("write one librdkafka property a line: key=value"))?;
            if RESERVED.contains(&key) {
                return Err(wrong(&format!("{key} is decided by the replay itself")).hint("leave it out"));
            }
            properties.insert(key.to_owned(), value.to_owned());
        }
        if let Some(servers) = properties.remove("metadata.broker.list") {
            properties.entry(BOOTSTRAP.to_owned()).or_insert(servers);
        }
        if let Some(bootstrap) = bootstrap {
            properties.insert(BOOTSTRAP.to_owned(), bootstrap.to_owned());
        }
        if !properties.contains_key(BOOTSTRAP) {
            return Err(Error::new(Kind::Config, "bootstrap.servers is missing")
                .hint("add bootstrap.servers=HOST:PORT, or give the address with --into"));
        }
        let connection = Self { properties };
        connection.client().create_native_config().map_err(|error| wrong_property(&error))?;
        Ok(connection)
    }

    /// The address that was given.
    pub fn bootstrap(&self) -> &str {
        self.properties.get(BOOTSTRAP).map_or("", String::as_str)
    }

    /// Returns whether nobody but the replay says how records are compressed.
    pub(super) fn leaves_compression(&self) -> bool {
        !self.properties.keys().any(|key| key.starts_with("compression."))
    }

    /// The properties of a client for requests.
    pub(super) fn properties(&self) -> Vec<(String, String)> {
        let mut properties = self.properties.clone();
        properties.entry("client.id".to_owned()).or_insert_with(|| "tidelog".to_owned());
        properties.into_iter().collect()
    }

    /// The admin view of this cluster.
    ///
    /// # Errors
    /// `Kind::Config` for properties that librdkafka does not take.
    pub fn cluster(&self) -> Result<Cluster> {
        Cluster::with_properties(&self.properties())
    }

    /// A librdkafka client of this cluster, to which the caller adds what it needs.
    pub fn client(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        client.set("client.id", "tidelog");
        client.set_log_level(RDKafkaLogLevel::Warning);
        for (key, value) in &self.properties {
            client.set(key, value);
        }
        client
    }
}

/// librdkafka's word on a property, without the value: it may be a secret.
pub(super) fn wrong_property(error: &KafkaError) -> Error {
    match error {
        KafkaError::ClientConfig(_, _, key, _) => {
            Error::new(Kind::Config, format!("librdkafka has no property {key:?}, or not with this value"))
                .hint("the names are librdkafka's (CONFIGURATION.md there), which differ from the Java client's")
        }
        KafkaError::ClientCreation(why) => {
            Error::new(Kind::Config, format!("librdkafka refuses the properties: {why}"))
        }
        other => Error::new(Kind::Config, format!("librdkafka refuses the properties: {other}")),
    }
}

/// What every client here does with librdkafka's own messages: they go to the log. An unreachable broker is one of them:
/// whoever waits for an answer sees its absence.
#[derive(Debug, Default)]
pub(super) struct Logged;

impl ClientContext for Logged {
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(facility, "librdkafka: {message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, "librdkafka: {reason}");
    }
}

impl rdkafka::consumer::ConsumerContext for Logged {}

/// Names what was being done when librdkafka said `error`.
pub(super) fn failed(error: KafkaError, doing: impl FnOnce() -> String) -> Error {
    use rdkafka::error::RDKafkaErrorCode as Code;
    // rdkafka's own `rdkafka_error_code` does not know this variant.
    let code = if let KafkaError::AdminOp(code) = &error { Some(*code) } else { error.rdkafka_error_code() };
    let kind = match code {
        Some(
            Code::TopicAuthorizationFailed
            | Code::GroupAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::TransactionalIdAuthorizationFailed
            | Code::SaslAuthenticationFailed
            | Code::Authentication,
        ) => Kind::Denied,
        Some(Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch) => Kind::Fenced,
        Some(Code::UnsupportedFeature | Code::UnsupportedVersion) => Kind::Unsupported,
        _ => Kind::Unavailable,
    };
    let hint = match code {
        Some(Code::TopicAuthorizationFailed) => Some("grant READ and WRITE on the target's topics"),
        Some(Code::GroupAuthorizationFailed) => Some("grant READ on the groups that begin with tidelog-replay-"),
        Some(Code::TransactionalIdAuthorizationFailed) => {
            Some("grant WRITE on the transactional ids that begin with tidelog-replay-")
        }
        _ => None,
    };
    let error = Error::new(kind, doing()).source(error);
    match hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

/// A short name for a result of rdkafka.
pub(super) trait Failed<T> {
    /// Names what was being done.
    fn or_failed(self, doing: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Failed<T> for KafkaResult<T> {
    fn or_failed(self, doing: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| failed(error, doing))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_properties_file_is_read() {
        let text = "# staging\n\nbootstrap.servers = kafka:9092\nsecurity.protocol=plaintext\nsasl.password=a=b\n";
        let connection = Connection::of_text(text, None).expect("valid");
        assert_eq!(connection.bootstrap(), "kafka:9092");
        assert_eq!(connection.properties.get("sasl.password").map(String::as_str), Some("a=b"));
        assert_eq!(Connection::of_text(text, Some("other:1")).expect("valid").bootstrap(), "other:1");
        assert_eq!(Connection::of_text("metadata.broker.list=a:1", None).expect("kcat's name").bootstrap(), "a:1");
    }

    #[test]
    fn what_cannot_be_is_refused_and_secrets_are_not_shown() {
        for (text, named) in [
            ("bootstrap.servers=a\nsasl.jaas.config=secret", "sasl.jaas.config"),
            ("bootstrap.servers=a\nlinger.ms=secret", "linger.ms"),
            ("bootstrap.servers=a\nacks=0", "line 2: acks"),
            ("bootstrap.servers=a\ntransactional.id=x", "transactional.id"),
            ("bootstrap.servers", "line 1"),
            ("security.protocol=plaintext", "bootstrap.servers is missing"),
        ] {
            let error = Connection::of_text(text, None).expect_err(text);
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(named), "{error}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }
}
