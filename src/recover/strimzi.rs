//! Connectors as resources for Strimzi, which makes them itself: one that was made over REST it would delete.
//!
//! ```text
//!   ConfigMap: offsets.json, just where the slot begins ◄── alterOffsets ── KafkaConnector: stopped, annotated with `alter`
//!     the operator stops it, sets its offsets, and takes the annotation away ─► state: running, by hand ─► the marker comes
//! ```
//!
//! Before strimzi/strimzi-kafka-operator#12974 the operator made a connector running and stopped it afterwards (#11754). In that moment it
//! has no offset, and would begin a snapshot; with `snapshot.mode = no_data` it begins at its slot, which is where it is to begin.

use serde_json::{Value, json};

use super::connector::Connector;
use crate::config::Strimzi;
use crate::error::{Error, Kind, Result};
use crate::secret;

/// What a resource says of itself elsewhere than in its config.
const APART: [&str; 4] = ["name", "connector.class", "tasks.max", "connector.plugin.version"];

/// Returns the resources of one connector, with what is to be done with them as comments.
///
/// # Errors
/// [`Kind::Config`] for a name that no resource may have.
pub(super) fn resources(of: &Connector, to: &Strimzi, (partition, offset): (Value, Value)) -> Result<String> {
    let name = &of.name;
    is_name(name)?;
    let Strimzi { connect, namespace, api_version, .. } = to;
    let (offsets, credentials) = (format!("{name}-recovered-offsets"), format!("{name}-credentials"));
    let json = json!({ "offsets": [{ "partition": partition, "offset": offset }] }).to_string();
    let (secrets, config) = config(of, &format!("{namespace}/{credentials}"));
    let own = |key: &str| of.config.get(key).and_then(Option::as_deref).filter(|value| !value.is_empty());
    let tasks = own("tasks.max").and_then(|tasks| tasks.parse::<u32>().ok()).unwrap_or(1).max(1);
    let version =
        own("connector.plugin.version").map_or_else(String::new, |version| format!("  version: {}\n", quoted(version)));
    let mut text = format!(
        "# The connector {name}. 1. kubectl apply -f this file. 2. Wait until the annotation is gone: the offset is set.\n"
    );
    text.push_str(&format!("# 3. kubectl -n {namespace} patch kafkaconnector {name} --type merge -p '{{\"spec\":{{\"state\":\"running\"}}}}'\n"));
    if !secrets.is_empty() {
        text.push_str(&format!(
            "# Before: the Secret {credentials} with {}, which are not shown here (tidelog cat --state connectors --secrets), and in the\n\
             # KafkaConnect config.providers: secrets, config.providers.secrets.class: io.strimzi.kafka.KubernetesSecretConfigProvider\n",
            secrets.join(", ")
        ));
    }
    text.push_str(&format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {}\n  namespace: {}\n  labels:\n    strimzi.io/cluster: {}\ndata:\n  offsets.json: {}\n---\n",
        quoted(&offsets),
        quoted(namespace),
        quoted(connect),
        quoted(&json),
    ));
    text.push_str(&format!(
        "apiVersion: kafka.strimzi.io/{api_version}\nkind: KafkaConnector\nmetadata:\n  name: {}\n  namespace: {}\n  labels:\n    strimzi.io/cluster: {}\n  \
         annotations:\n    strimzi.io/connector-offsets: alter\n",
        quoted(name),
        quoted(namespace),
        quoted(connect),
    ));
    let class = quoted(own("connector.class").unwrap_or(super::connector::CLASS));
    text.push_str(&format!(
        "spec:\n  class: {class}\n{version}  tasksMax: {tasks}\n  state: stopped\n  alterOffsets:\n    fromConfigMap:\n      name: {}\n  config:\n{config}",
        quoted(&offsets)
    ));
    Ok(text)
}

/// The config of a resource, without secrets; beside it the keys of those, which are references to a Secret.
fn config<'a>(of: &'a Connector, credentials: &str) -> (Vec<&'a str>, String) {
    let (mut secrets, mut config) = (Vec::new(), String::new());
    for (key, value) in of.config.iter().filter(|(key, _)| !APART.contains(&key.as_str())) {
        let Some(value) = value else { continue };
        let value = match secret::is_plain(key, value) {
            true => {
                secrets.push(key.as_str());
                format!("${{secrets:{credentials}:{key}}}")
            }
            false if begins_with_rows(key, value) => "no_data".to_owned(),
            false => value.clone(),
        };
        config.push_str(&format!("    {}: {}\n", quoted(key), quoted(&value)));
    }
    if !of.config.contains_key("snapshot.mode") {
        config.push_str("    \"snapshot.mode\": \"no_data\"\n");
    }
    (secrets, config)
}

/// Whether a connector without an offset would begin with the rows of its tables.
fn begins_with_rows(key: &str, value: &str) -> bool {
    key == "snapshot.mode" && ["initial", "when_needed"].contains(&value)
}

/// A text of JSON is one of YAML between double quotes.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// What a resource may be called (RFC 1123), so that its other objects may be, too.
fn is_name(name: &str) -> Result<()> {
    let part = |part: &str| {
        let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        !part.is_empty() && part.chars().all(inner) && !part.starts_with('-') && !part.ends_with('-')
    };
    if name.len() <= 230 && name.split('.').all(part) {
        return Ok(());
    }
    let message =
        format!("the connector {name} cannot be a resource: names have lower-case letters, digits, - and . alone");
    Err(Error::new(Kind::Config, message)
        .hint("Strimzi has not made it: use [connect], or bring the others back alone ([[connector]])"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recover::connectors::position;
    use crate::stream::Lsn;

    #[test]
    fn no_secret_stands_in_a_resource_and_no_snapshot_is_begun() {
        let config = [
            ("connector.class", "c"),
            ("name", "shop"),
            ("database.password", "hunter2"),
            ("database.user", "${secrets:kafka/db:user}"),
            ("snapshot.mode", "when_needed"),
            ("note", "a \"quoted\" line\nand #another: one"),
        ];
        let config = config.map(|(key, value)| (key.to_owned(), Some(value.to_owned())));
        let mut of = Connector::of("shop", &config.into(), None);
        let to = Strimzi {
            connect: "my-connect".to_owned(),
            namespace: "cdc".to_owned(),
            api_version: "v1".to_owned(),
            cluster: None,
        };
        let resources = |of: &Connector| resources(of, &to, position(of, Lsn(0x10), 7));
        let text = resources(&of).expect("resources");
        assert!(!text.contains("hunter2") && !text.contains("when_needed"), "{text}");
        for part in [
            "\"database.password\": \"${secrets:cdc/shop-credentials:database.password}\"\n",
            "\"database.user\": \"${secrets:kafka/db:user}\"\n",
            "\"snapshot.mode\": \"no_data\"\n",
            "\"note\": \"a \\\"quoted\\\" line\\nand #another: one\"\n",
            "state: stopped\n",
        ] {
            assert!(text.contains(part), "{part} is not in:\n{text}");
        }
        for name in ["Shop", "a_b", "-a", "a..b", ""] {
            name.clone_into(&mut of.name);
            assert_eq!(resources(&of).expect_err(name).kind(), Kind::Config);
        }
    }
}
