//! Which of the archived connectors are brought back, and what each of them is at the target.
//!
//! ```text
//!   state/connectors as of the commit ─► those of Debezium over Postgres ─► named, or with a slot of this system ─► config over theirs
//! ```
//!
//! What of a config cannot be is refused by the [connector](super::connector) itself.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::Value;

use crate::config::{Config, Pipeline, Server, TopicPattern};
use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::manifest::state::{self as versions, Version};
use crate::manifest::{self, Chain};
use crate::source::kafka::acls::Acls;
use crate::source::rest::operate::Offset;
use crate::source::rest::subjects::Document;
use crate::store::Store;
use crate::stream::{StateKind, StateOf, StreamId};
use crate::time;

use super::connector::{CLASS, Config_, Connector, are_apart, setting};
use super::journal::Commit;

/// Slots by their names, and whether standbys are to have them, too.
pub type Slots = BTreeMap<String, bool>;

/// The connectors, and what is to be known of the choice.
#[derive(Debug, Default)]
pub struct Chosen {
    /// Those that are brought back, by name.
    pub connectors: Vec<Connector>,
    /// What is not known, or left out.
    pub notes: Vec<String>,
    /// The furthest position that any of them had read.
    pub furthest: Option<u64>,
}

#[derive(Deserialize)]
struct Kept {
    connectors: BTreeMap<String, KeptConnector>,
}

#[derive(Deserialize)]
struct KeptConnector {
    config: Config_,
    offsets: Option<Vec<KeptOffset>>,
}

#[derive(Deserialize)]
struct KeptOffset {
    #[serde(default)]
    partition: Value,
    offset: Value,
}

/// The archived connectors as of the commit, and the furthest position that each had read by now.
pub struct Archived {
    kept: BTreeMap<String, KeptConnector>,
    notes: Vec<String>,
    furthest: BTreeMap<String, u64>,
}

/// Reads them.
///
/// # Errors
/// [`Kind::NotFound`] where no state of connectors was kept, [`Kind::Config`] where that of several clusters was.
pub async fn archived(store: &Store, config: &Config, pipeline: &Pipeline, commit: &Commit) -> Result<Archived> {
    let scope = scope(store, config, pipeline).await?;
    let at = commit.at.div_euclid(1_000);
    let (version, then) = as_of(store, &scope, at).await?;
    let kept: Kept = serde_json::from_value(then)
        .or_err(Kind::Corrupt, || format!("{scope} is kept in a way that this version does not read"))?;
    let mut notes = Vec::new();
    if version.at.timestamp_millis() > at {
        notes.push(format!(
            "the connectors are those of {}: none were kept before, and the commit is of {}",
            time::utc(version.at),
            time::rfc3339(at)
        ));
    }
    let (_, newest) = as_of(store, &scope, i64::MAX).await?;
    let newest: Option<Kept> = serde_json::from_value(newest).ok();
    let furthest = newest.map(|newest| furthest(&newest)).unwrap_or_default();
    Ok(Archived { furthest, kept: kept.connectors, notes })
}

/// The furthest position that each connector had read. Each is of a server of its own, and says nothing of another one's.
fn furthest(kept: &Kept) -> BTreeMap<String, u64> {
    let of = |one: &KeptConnector| {
        let offsets = one.offsets.iter().flatten();
        offsets.filter_map(|kept| kept.offset.get("lsn").and_then(Value::as_u64)).max()
    };
    kept.connectors.iter().filter_map(|(name, one)| Some((name.clone(), of(one)?))).collect()
}

impl Archived {
    /// Where each connector stood.
    pub fn positions(&self) -> BTreeMap<String, Vec<Offset>> {
        let of = |one: &KeptConnector| {
            let kept = one.offsets.iter().flatten();
            kept.map(|kept| Offset { partition: kept.partition.clone(), offset: kept.offset.clone() }).collect()
        };
        self.kept.iter().map(|(name, one)| (name.clone(), of(one))).collect()
    }

    /// Chooses those that the pipeline file names, or all of this database. `slots` are those of the system, if they were kept. Where
    /// nobody `makes` connectors, their configs are nobody's.
    ///
    /// # Errors
    /// [`Kind::NotFound`] for a name that was not kept; [`Kind::Config`] for one that cannot be brought back as it is asked for.
    pub fn choose(self, pipeline: &Pipeline, slots: Option<&Slots>, (yes, makes): (bool, bool)) -> Result<Chosen> {
        let mut chosen = Chosen { connectors: Vec::new(), notes: self.notes, furthest: None };
        let known: Vec<&str> = self.kept.keys().map(String::as_str).collect();
        for captured in &pipeline.connectors {
            let Some(kept) = self.kept.get(&captured.name) else {
                let message = format!("no connector {:?} was kept as of the commit", captured.name);
                return Err(Error::new(Kind::NotFound, message).hint(format!("there were: {}", known.join(", "))));
            };
            if setting(&kept.config, "connector.class") != Some(CLASS) {
                let message = format!("{} is no connector of Debezium over Postgres", captured.name);
                return Err(Error::new(Kind::Unsupported, message)
                    .hint("bring it back by hand: `tidelog cat --state connectors`"));
            }
            chosen.connectors.push(Connector::of(&captured.name, &kept.config, Some(captured)));
        }
        if pipeline.connectors.is_empty() {
            for (name, kept) in &self.kept {
                let connector = Connector::of(name, &kept.config, None);
                if setting(&kept.config, "connector.class") != Some(CLASS) {
                    chosen
                        .notes
                        .push(format!("the connector {name} is none of Debezium over Postgres, and is left out"));
                } else if slots.is_some_and(|slots| !slots.contains_key(connector.slot())) {
                    chosen.notes.push(format!("the connector {name} has no slot of this system, and is left out"));
                } else {
                    chosen.connectors.push(connector);
                }
            }
        }
        for connector in &chosen.connectors {
            let archived = &self.kept[&connector.name].config;
            connector.is_placed()?;
            if makes {
                connector.is_sound(archived, yes)?;
            }
            if makes && !yes {
                connector.leads_to_targets(archived, pipeline)?;
            }
        }
        for connector in &mut chosen.connectors {
            connector.has_failover |=
                slots.and_then(|slots| slots.get(connector.slot())).is_some_and(|failover| *failover);
        }
        are_apart(&chosen.connectors)?;
        chosen.furthest = chosen.connectors.iter().filter_map(|of| self.furthest.get(&of.name).copied()).max();
        Ok(chosen)
    }
}

/// Under which name the connectors were kept.
async fn scope(store: &Store, config: &Config, pipeline: &Pipeline) -> Result<StateOf> {
    let named = pipeline.connect_cluster().map(str::to_owned);
    let configured = config.state.as_ref().map(|state| state.connect.as_slice()).unwrap_or_default();
    scope_of(store, StateKind::Connectors, (named, configured)).await
}

/// The state of a kind that is meant: the one that is named, or configured, or the only one.
async fn scope_of(store: &Store, kind: StateKind, (named, configured): (Option<String>, &[Server])) -> Result<StateOf> {
    let scope = match (named, configured) {
        (Some(name), _) => name,
        (None, [one]) => one.name.clone(),
        (None, _) => {
            let streams = manifest::streams(store).await?;
            let kept = streams.iter().filter_map(StreamId::state).filter(|of| of.kind == kind);
            let scopes: Vec<&str> = kept.map(|of| of.scope.as_str()).collect();
            match scopes.as_slice() {
                [one] => (*one).to_owned(),
                [] => return Err(nothing(kind)),
                several => {
                    let message = format!("the {kind} of several clusters were kept: {}", several.join(", "));
                    return Err(Error::new(Kind::Config, message).hint("name one in its section: cluster"));
                }
            }
        }
    };
    Ok(StateOf { kind, scope })
}

/// The subjects of the schema registry at a moment (ms since 1970), and how many of their versions are from the document after it.
///
/// # Errors
/// [`Kind::NotFound`] where none were kept.
pub async fn subjects(store: &Store, config: &Config, of: &Server, ms: i64) -> Result<(Document, usize)> {
    let scope = scope_of_registry(store, config, of).await?;
    let read = |state: Value| {
        serde_json::from_value::<Document>(state)
            .or_err(Kind::Corrupt, || format!("{scope} is kept in a way that this version does not read"))
    };
    let (version, state) = as_of(store, &scope, ms).await?;
    let mut document = read(state)?;
    let chain = opened(store, &scope).await?;
    // One that was found after the moment has all that the one before it would have missed.
    let next = match version.at.timestamp_millis() <= ms {
        true => versions::version(&chain, version.number + 1).await?,
        false => None,
    };
    let added = match next {
        Some(next) => with_next(&mut document, read(state_of(store, &chain, &next).await?)?),
        None => 0,
    };
    Ok((document, added))
}

/// Since when the subjects of the schema registry are kept.
///
/// # Errors
/// [`Kind::NotFound`] where none were kept.
pub async fn subjects_since(store: &Store, config: &Config, of: &Server) -> Result<DateTime<Utc>> {
    let scope = scope_of_registry(store, config, of).await?;
    let oldest = versions::oldest(&opened(store, &scope).await?).await?;
    oldest.map(|version| version.at).ok_or_else(|| nothing(scope.kind))
}

/// Under which name the schema registry was kept.
async fn scope_of_registry(store: &Store, config: &Config, of: &Server) -> Result<StateOf> {
    let named = Some(of.name.clone()).filter(|name| !name.is_empty());
    let configured = config.state.as_ref().map(|state| state.schema_registry.as_slice()).unwrap_or_default();
    scope_of(store, StateKind::Schemas, (named, configured)).await
}

/// Adds the versions of the next document that this one has not: what was registered just before the moment may have been found only
/// after it. How many there were.
fn with_next(document: &mut Document, next: Document) -> usize {
    let mut added = 0;
    for (name, subject) in next.subjects {
        match document.subjects.entry(name) {
            Entry::Vacant(none) => {
                added += subject.versions.len();
                none.insert(subject);
            }
            Entry::Occupied(mut known) => {
                for (number, version) in subject.versions {
                    if let Entry::Vacant(none) = known.get_mut().versions.entry(number) {
                        added += 1;
                        none.insert(version);
                    }
                }
            }
        }
    }
    added
}

fn nothing(kind: StateKind) -> Error {
    Error::new(Kind::NotFound, format!("the archive holds no state of the kind {kind}"))
        .hint("leave that section out: [state] of the configuration says what is kept")
}

/// Whether any of these groups was kept at a moment (ms since 1970).
///
/// # Errors
/// What of them cannot be read.
pub async fn has_groups(store: &Store, config: &Config, wanted: &[TopicPattern], ms: i64) -> Result<bool> {
    let Some(kafka) = &config.kafka else { return Ok(false) };
    let of = StateOf { kind: StateKind::Groups, scope: kafka.cluster.clone() };
    let state = match as_of(store, &of, ms).await {
        Ok((_, state)) => state,
        Err(error) if error.kind() == Kind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let is_wanted = |name: &String| wanted.iter().any(|pattern| pattern.matches(name));
    Ok(state.as_object().is_some_and(|groups| groups.keys().any(is_wanted)))
}

/// The version that held at a time, or the oldest where none is as old, and its state.
async fn as_of(store: &Store, of: &StateOf, ms: i64) -> Result<(Version, Value)> {
    let chain = opened(store, of).await?;
    let version = match versions::as_of(&chain, ms, time::now()).await? {
        Some(version) => version,
        None => versions::oldest(&chain).await?.ok_or_else(|| nothing(of.kind))?,
    };
    let state = state_of(store, &chain, &version).await?;
    Ok((version, state))
}

async fn opened(store: &Store, of: &StateOf) -> Result<Chain> {
    Chain::open(store, &StreamId::State(of.clone())).await?.ok_or_else(|| nothing(of.kind))
}

async fn state_of(store: &Store, chain: &Chain, version: &Version) -> Result<Value> {
    let json = versions::read(store, chain.stream(), version).await?;
    let document: Value = serde_json::from_slice(&json)
        .or_err(Kind::Corrupt, || format!("a version of {} is no JSON", chain.stream()))?;
    Ok(document.get("state").cloned().unwrap_or(Value::Null))
}

/// Since when connectors are kept.
///
/// # Errors
/// [`Kind::NotFound`] where none were kept.
pub(super) async fn connectors_since(
    store: &Store,
    config: &Config,
    pipeline: &Pipeline,
) -> Result<Option<DateTime<Utc>>> {
    let chain = opened(store, &scope(store, config, pipeline).await?).await?;
    Ok(versions::oldest(&chain).await?.map(|version| version.at))
}

/// The access control lists of the archived cluster at a moment (ms since 1970).
///
/// # Errors
/// [`Kind::NotFound`] where none were kept.
pub(super) async fn acls(store: &Store, config: &Config, ms: i64) -> Result<Acls> {
    let named = config.kafka.as_ref().map(|kafka| kafka.cluster.clone());
    let of = scope_of(store, StateKind::Acls, (named, &[])).await?;
    let (_, state) = as_of(store, &of, ms).await?;
    serde_json::from_value(state)
        .or_err(Kind::Corrupt, || format!("{of} is kept in a way that this version does not read"))
}

/// The names of all archived topics of the cluster.
///
/// # Errors
/// The store's.
pub(super) async fn topics(store: &Store, config: &Config) -> Result<BTreeSet<String>> {
    let cluster = config.kafka.as_ref().map(|kafka| kafka.cluster.as_str());
    let streams = manifest::streams(store).await?;
    let of_cluster =
        streams.iter().filter_map(StreamId::topic).filter(|of| cluster.is_none_or(|name| name == of.cluster));
    Ok(of_cluster.map(|of| of.topic.clone()).collect())
}

/// The logical slots of a system, as they were kept at the commit and last; none where they were not.
///
/// # Errors
/// What of them cannot be read.
pub async fn slots(store: &Store, commit: &Commit) -> Result<Option<Slots>> {
    let of = StateOf { kind: StateKind::Slots, scope: commit.system_id.to_string() };
    let mut names = Slots::new();
    for ms in [commit.at.div_euclid(1_000), i64::MAX] {
        match as_of(store, &of, ms).await {
            Ok((_, state)) => {
                for (name, slot) in state.get("slots").and_then(Value::as_object).into_iter().flatten() {
                    let is = slot.get("failover").and_then(Value::as_bool).unwrap_or_default();
                    *names.entry(name.clone()).or_default() |= is;
                }
            }
            Err(error) if error.kind() == Kind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    Ok(Some(names))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::{Captured, TargetKafka};
    use crate::replay::Rename;

    fn archived(more: &[(&str, &str)]) -> Archived {
        let mut config = json!({
            "connector.class": CLASS, "topic.prefix": "srv", "database.hostname": "old", "database.port": "5432",
            "database.dbname": "shop", "slot.name": "dbz", "plugin.name": "pgoutput",
        });
        for (key, value) in more {
            config[*key] = json!(value);
        }
        let kept = json!({ "connectors": { "shop": { "config": config, "offsets": null }, "sink": { "config": { "connector.class": "x" }, "offsets": null } } });
        let kept: Kept = serde_json::from_value(kept).expect("a state");
        Archived { kept: kept.connectors, notes: Vec::new(), furthest: BTreeMap::new() }
    }

    fn pipeline(named: &[(&str, &[(&str, &str)])]) -> Pipeline {
        let pairs = |config: &[(&str, &str)]| config.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        let of = |(name, config): &(&str, &[(&str, &str)])| Captured {
            name: (*name).to_owned(),
            marker: None,
            config: pairs(config),
        };
        Pipeline {
            postgres: None,
            kafka: None,
            connect: None,
            strimzi: None,
            schema_registry: None,
            connectors: named.iter().map(of).collect(),
            scratch: None,
        }
    }

    #[test]
    fn all_of_this_database_are_chosen_or_those_that_are_named() {
        let all = archived(&[]).choose(&pipeline(&[]), None, (true, true)).expect("chosen");
        assert_eq!(all.connectors.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(), ["shop"]);
        assert_eq!(all.notes.len(), 1, "{:?}", all.notes);
        let others = Slots::from([("another".to_owned(), true)]);
        assert!(
            archived(&[]).choose(&pipeline(&[]), Some(&others), (true, true)).expect("chosen").connectors.is_empty()
        );
        let named = pipeline(&[("shop", &[("database.port", "5433")])]);
        let one = archived(&[]).choose(&named, Some(&others), (false, true)).expect("it is named").connectors.remove(0);
        assert_eq!(
            (one.slot(), one.plugin(), one.publication(), one.database()),
            ("dbz", "pgoutput", "dbz_publication", "shop")
        );
        assert!(!one.has_failover);
        let own = Slots::from([("dbz".to_owned(), true)]);
        assert!(archived(&[]).choose(&named, Some(&own), (false, true)).expect("chosen").connectors[0].has_failover);
        assert_eq!(one.config["database.port"].as_deref(), Some("5433"));
        assert_eq!(one.topics(), "^(?:srv\\.|__debezium\\-heartbeat\\.srv$)");
        for (name, kind) in [("none", Kind::NotFound), ("sink", Kind::Unsupported)] {
            let error = archived(&[]).choose(&pipeline(&[(name, &[])]), None, (true, true)).expect_err(name);
            assert_eq!(error.kind(), kind);
        }
    }

    #[test]
    fn what_would_lose_changes_without_a_word_is_refused() {
        let away: &[(&str, &str)] = &[("database.port", "1")];
        for (archived_with, given, part) in [
            (&[][..], &[][..], "the server that it was of"),
            (&[("slot.drop.on.stop", "true")], away, "slot.drop.on.stop would drop"),
            (&[("snapshot.mode", "always")], away, "a snapshot of all tables again"),
            (&[], &[("topic.prefix", ""), ("database.port", "1")], "has no topic.prefix"),
        ] {
            let error =
                archived(archived_with).choose(&pipeline(&[("shop", given)]), None, (false, true)).expect_err(part);
            assert!(error.to_string().contains(part) && error.exit_code() == 2, "{error}");
        }
        let unmade = |given: &[(&str, &str)]| {
            archived(&[]).choose(&pipeline(&[("shop", given)]), None, (false, false)).map(drop)
        };
        assert!(unmade(&[]).is_ok(), "nobody makes it: it connects to no server");
        assert!(unmade(&[("topic.prefix", "")]).is_err(), "its topics are not known");
        let two = archived(&[]).choose(&pipeline(&[("shop", away), ("shop", away)]), None, (false, true));
        assert!(two.expect_err("one slot").to_string().contains("have the slot dbz"));
    }

    #[test]
    fn the_prefix_has_to_follow_the_topics() {
        let one = |given: &[(&str, &str)]| {
            archived(&[])
                .choose(&pipeline(&[("shop", given)]), None, (true, true))
                .expect("chosen")
                .connectors
                .remove(0)
        };
        let rename = Rename::parse("^srv=new").expect("a rule");
        assert!(
            one(&[]).follows(&Rename::default()).is_ok() && one(&[("topic.prefix", "new")]).follows(&rename).is_ok()
        );
        for (given, rename) in [(&[][..], &rename), (&[("topic.prefix", "new")], &Rename::default())] {
            assert!(one(given).follows(rename).expect_err("apart").to_string().contains("would go to"));
        }
    }

    fn server(url: &str) -> Server {
        Server { name: String::new(), urls: vec![url.parse().expect("a URL")], access: Default::default() }
    }

    #[test]
    fn the_log_is_raised_behind_what_the_chosen_ones_have_read() {
        let offset = |lsn: u64| json!({ "config": {}, "offsets": [{ "offset": { "lsn": lsn } }, { "offset": {} }] });
        let newest = json!({ "connectors": { "shop": offset(7), "elsewhere": offset(900), "none": { "config": {}, "offsets": null } } });
        let newest: Kept = serde_json::from_value(newest).expect("a state");
        let all = furthest(&newest);
        assert_eq!(all, BTreeMap::from([("shop".to_owned(), 7), ("elsewhere".to_owned(), 900)]));
        let mut kept = archived(&[]);
        kept.furthest = all;
        assert_eq!(kept.choose(&pipeline(&[]), None, (true, true)).expect("chosen").furthest, Some(7));
    }

    #[test]
    fn two_connectors_share_no_prefix() {
        let mut kept = archived(&[]);
        let mut config = kept.kept["shop"].config.clone();
        config.insert("slot.name".to_owned(), Some("other".to_owned()));
        kept.kept.insert("more".to_owned(), KeptConnector { config, offsets: None });
        let error = kept.choose(&pipeline(&[]), None, (true, true)).expect_err("one topic for the markers of two");
        assert!(error.to_string().contains("topic.prefix srv") && error.kind() == Kind::Config, "{error}");
    }

    #[test]
    fn a_config_that_names_the_old_registry_or_cluster_is_refused() {
        let (registry, history) = ("value.converter.schema.registry.url", "schema.history.kafka.bootstrap.servers");
        let with = [(registry, "http://old:8081"), (history, "old:9092")];
        let choose = |given: &[(&str, &str)], yes: bool, has: (bool, bool)| {
            let given = [&[("database.port", "1")], given].concat();
            let mut to = pipeline(&[("shop", given.as_slice())]);
            to.connect = Some(server("http://connect:8083"));
            to.schema_registry = has.0.then(|| server("http://new:8081"));
            to.kafka = has.1.then(|| TargetKafka {
                bootstrap_servers: Some("new:9092".to_owned()),
                properties: BTreeMap::new(),
                rename: None,
                topics: Vec::new(),
                groups: Vec::new(),
                acls: false,
                archived_settings: false,
            });
            archived(&with).choose(&to, None, (yes, true)).map(drop)
        };
        assert!(choose(&[], false, (false, false)).is_ok(), "neither is another one");
        for (has, key) in [((true, false), registry), ((false, true), history)] {
            let error = choose(&[], false, has).expect_err(key);
            assert!(error.to_string().contains(key) && error.exit_code() == 2, "{error}");
            assert!(choose(&[], true, has).is_ok(), "it is meant");
        }
        assert!(choose(&[(registry, "http://new:8081/"), (history, "new:9092")], false, (true, true)).is_ok());
    }

    #[test]
    fn what_already_names_the_target_is_right() {
        let mut to = pipeline(&[("shop", &[("database.port", "1")])]);
        (to.connect, to.schema_registry) = (Some(server("http://connect:8083")), Some(server("http://same:8081")));
        let kept = archived(&[("value.converter.schema.registry.url", "http://same:8081")]);
        assert!(kept.choose(&to, None, (false, true)).is_ok());
    }

    #[test]
    fn versions_that_were_found_only_after_the_moment_are_added() {
        let document = |subjects: Value| -> Document {
            serde_json::from_value(json!({ "compatibility": null, "mode": null, "subjects": subjects }))
                .expect("a document")
        };
        let version = |id: i64| json!({ "id": id, "schema": "\"int\"" });
        let subject = |compatibility: &str, versions: Value| json!({ "compatibility": compatibility, "mode": null, "versions": versions });
        let mut then = document(json!({ "a": subject("FULL", json!({ "1": version(1) })) }));
        let next = document(json!({
            "a": subject("NONE", json!({ "1": version(9), "2": version(2) })),
            "b": subject("NONE", json!({ "1": version(3) })),
        }));
        assert_eq!(with_next(&mut then, next), 2);
        let ids = |name: &str| then.subjects[name].versions.values().map(|version| version.id).collect::<Vec<_>>();
        assert_eq!((ids("a"), ids("b")), (vec![1, 2], vec![3]));
        assert_eq!(then.subjects["a"].compatibility.as_deref(), Some("FULL"), "that is of the moment");
    }
}
