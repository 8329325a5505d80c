//! A connector as it will be at the target.
//!
//! Whatever would go on without a word from somewhere else is refused here: a config that still points at the old server, a slot that is
//! dropped when the connector stops, a prefix that does not follow the topics.

use std::collections::{BTreeMap, BTreeSet};

use crate::config::{Captured, Pipeline};
use crate::error::{Error, Kind, Result};
use crate::replay::Rename;

/// The class of the connectors that are brought back.
pub(super) const CLASS: &str = "io.debezium.connector.postgresql.PostgresConnector";

pub(super) type Config_ = BTreeMap<String, Option<String>>;

pub(super) fn setting<'a>(config: &'a Config_, key: &str) -> Option<&'a str> {
    config.get(key).and_then(Option::as_deref).filter(|value| !value.is_empty())
}

/// A connector as it will be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connector {
    /// Its name.
    pub name: String,
    /// Its whole config at the target.
    pub config: BTreeMap<String, Option<String>>,
    /// Its config as archived, by which the archived records were written.
    pub archived: BTreeMap<String, Option<String>>,
    /// `topic.prefix` as archived, and at the target.
    pub prefixes: (String, String),
    /// The statement that writes its marker; none: a logical decoding message does.
    pub marker: Option<String>,
    /// Whether its slot was one that standbys are to have, too (PostgreSQL 17 and newer).
    pub has_failover: bool,
}

impl Connector {
    /// One with this config, and what differs at the target.
    pub(super) fn of(name: &str, archived: &Config_, captured: Option<&Captured>) -> Self {
        let mut config = archived.clone();
        let given = captured.map(|captured| captured.config.clone()).unwrap_or_default();
        config.extend(given.into_iter().map(|(key, value)| (key, Some(value))));
        let prefix = |of: &Config_| setting(of, "topic.prefix").unwrap_or_default().to_owned();
        Self {
            name: name.to_owned(),
            prefixes: (prefix(archived), prefix(&config)),
            has_failover: setting(&config, "slot.failover") == Some("true"),
            config,
            archived: archived.clone(),
            marker: captured.and_then(|captured| captured.marker.clone()),
        }
    }

    /// A setting, or its default.
    pub(super) fn get<'a>(&'a self, key: &str, default: &'a str) -> &'a str {
        setting(&self.config, key).unwrap_or(default)
    }

    /// Its slot.
    pub fn slot(&self) -> &str {
        self.get("slot.name", "debezium")
    }

    /// The plugin of its slot.
    pub fn plugin(&self) -> &str {
        self.get("plugin.name", "decoderbufs")
    }

    /// Its publication.
    pub fn publication(&self) -> &str {
        self.get("publication.name", "dbz_publication")
    }

    /// Its database.
    pub fn database(&self) -> &str {
        self.get("database.dbname", "")
    }

    /// Whether its keys or values begin with the id of a schema, as far as its own config says.
    pub fn writes_ids(&self, side: &str) -> bool {
        let class = self.get(&format!("{side}.converter"), "").to_lowercase();
        ["avro", "jsonschema", "protobuf"].iter().any(|kind| class.contains(kind))
    }

    /// The topics that it wrote, as a pattern of archived topics.
    pub fn topics(&self) -> String {
        let prefix = regex::escape(&self.prefixes.0);
        let beats = regex::escape(self.get("topic.heartbeat.prefix", "__debezium-heartbeat"));
        format!("^(?:{prefix}\\.|{beats}\\.{prefix}$)")
    }
}

/// Refuses connectors of which one would take what is the other's.
pub(super) fn are_apart(connectors: &[Connector]) -> Result<()> {
    let (mut slots, mut prefixes) = (BTreeSet::new(), BTreeSet::new());
    for connector in connectors {
        if !slots.insert(connector.slot()) {
            let message = format!("two connectors have the slot {}", connector.slot());
            return Err(Error::new(Kind::Config, message).hint("give one another slot.name in [connector.config]"));
        }
        if !prefixes.insert(&connector.prefixes.1) {
            let message = format!(
                "two connectors have the topic.prefix {}: what one of them writes would show that the other runs",
                connector.prefixes.1
            );
            return Err(Error::new(Kind::Config, message).hint("give one another topic.prefix in [connector.config]"));
        }
    }
    Ok(())
}

impl Connector {
    fn wrong(&self, why: &str, hint: &str) -> Result<()> {
        Err(Error::new(Kind::Config, format!("the connector {}: {why}", self.name)).hint(hint.to_owned()))
    }

    /// Refuses one of which it is not known where its slot and its topics are.
    pub(super) fn is_placed(&self) -> Result<()> {
        match ["topic.prefix", "database.dbname"].into_iter().find(|key| setting(&self.config, key).is_none()) {
            Some(key) => self.wrong(&format!("its config has no {key}"), "set it in [connector.config]"),
            None => Ok(()),
        }
    }

    /// Refuses what would lose changes, or send other ones, without a word.
    pub(super) fn is_sound(&self, archived: &Config_, yes: bool) -> Result<()> {
        let wrong = |why: &str, hint: &str| self.wrong(why, hint);
        if setting(&self.config, "database.hostname").is_none() {
            return wrong("its config has no database.hostname", "set it in [connector.config]");
        }
        let same = |key: &str| setting(&self.config, key) == setting(archived, key);
        if same("database.hostname") && same("database.port") && !yes {
            return wrong(
                "it would connect to the server that it was of",
                "set database.hostname and database.port in [connector.config], or say --yes if that name is the restored server's now",
            );
        }
        if self.get("slot.drop.on.stop", "false") == "true" {
            return wrong(
                "slot.drop.on.stop would drop its slot, and lose what comes while it is stopped",
                "set \"slot.drop.on.stop\" = \"false\" in [connector.config]",
            );
        }
        if ["always", "initial_only"].contains(&self.get("snapshot.mode", "initial")) {
            return wrong(
                "its snapshot.mode makes a snapshot of all tables again",
                "set \"snapshot.mode\" = \"no_data\" in [connector.config]",
            );
        }
        Ok(())
    }

    /// Refuses a config that still names the old registry or the old cluster where the pipeline has another one.
    pub(super) fn leads_to_targets(&self, archived: &Config_, pipeline: &Pipeline) -> Result<()> {
        let bare = |url: &str| url.trim().trim_end_matches('/').to_owned();
        let registry = pipeline.schema_registry.as_ref().map(|server| {
            let urls = server.urls.iter().map(|url| bare(url.as_str())).collect::<BTreeSet<_>>();
            ("registry.url", "[schema_registry]", urls)
        });
        let cluster = pipeline
            .kafka
            .as_ref()
            .and_then(|kafka| kafka.bootstrap_servers.as_deref())
            .map(|servers| ("bootstrap.servers", "[kafka]", servers.split(',').map(bare).collect()));
        for (end, section, targets) in [registry, cluster].into_iter().flatten() {
            // Whose value is a target's already is right, changed or not.
            let leads_there = |value: &str| value.split(',').all(|one| targets.contains(&bare(one)));
            let is_old = |key: &&String| {
                let its = setting(&self.config, key);
                key.ends_with(end) && its == setting(archived, key) && its.is_some_and(|value| !leads_there(value))
            };
            if let Some(key) = self.config.keys().find(is_old) {
                let message = format!(
                    "the connector {}: its {key} is still the archived one, and {section} names another",
                    self.name
                );
                return Err(Error::new(Kind::Config, message).hint(format!(
                    "set \"{key}\" in [connector.config], or say --yes if that name leads to the new one by now"
                )));
            }
        }
        Ok(())
    }

    /// Refuses a prefix that does not follow the topics: what comes from now on would go somewhere else.
    ///
    /// # Errors
    /// [`Kind::Config`] that names the two.
    pub fn follows(&self, rename: &Rename) -> Result<()> {
        let (old, new) = &self.prefixes;
        let (to, goes_on) = (rename.target(&format!("{old}.public.orders"))?, format!("{new}.public.orders"));
        if to == goes_on {
            return Ok(());
        }
        let message = format!(
            "the connector {}: {old}.public.orders is replayed as {to}, and what comes from now on would go to {goes_on}",
            self.name
        );
        Err(Error::new(Kind::Config, message)
            .hint("let kafka.rename and topic.prefix of [connector.config] say the same"))
    }
}
