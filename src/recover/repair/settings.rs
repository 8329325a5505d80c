//! The config of a connector, at the primary and while it reads from the scratch standby.

use std::collections::BTreeMap;

use super::asked::Asked;
use super::journal::Changed;
use crate::error::{Error, Kind, Result};
use crate::recover::connector::{CLASS, Connector};
use crate::source::rest::operate::Settings;

/// Whether a connector looks, before it begins, whether its slot has what lies behind its offset: it does, unless it is told not to.
const POSITION_CHECK: &str = "internal.log.position.check.enable";

/// Puts back what was changed of a config.
pub(super) fn put_back(config: &mut Settings, changed: &Changed) {
    for (key, was) in changed {
        match was {
            Some(was) => drop(config.insert(key.clone(), Some(was.clone()))),
            None => drop(config.remove(key)),
        }
    }
}

/// The connector as the workers have it.
///
/// # Errors
/// [`Kind::Unsupported`] for one of another kind, and one that would make a snapshot whatever it is told.
pub(super) fn of_live(name: &str, mut config: Settings) -> Result<Connector> {
    config.remove("name");
    let own = Connector::of(name, &config, None);
    let wrong = |why: &str, hint: &str| {
        Err(Error::new(Kind::Unsupported, format!("the connector {name}: {why}")).hint(hint.to_owned()))
    };
    if own.get("connector.class", "") != CLASS {
        return wrong("it is none of Debezium over Postgres", "name another one");
    }
    if ["always", "initial_only"].contains(&own.get("snapshot.mode", "initial")) {
        return wrong("its snapshot.mode makes a snapshot of all tables again", "set snapshot.mode to no_data first");
    }
    if own.prefixes.1.is_empty() || own.database().is_empty() {
        return wrong("its config has no topic.prefix, or no database.dbname", "set it");
    }
    Ok(own)
}

/// The connector as it reads from the standby.
///
/// # Errors
/// [`Kind::Config`] where the pipeline file does not say how that is reached, or would have it read something else.
pub(super) fn at_scratch(asked: &Asked, own: &Connector) -> Result<Connector> {
    let scratch = asked.pipeline.scratch.as_ref();
    let port = scratch.map_or_else(String::new, |scratch| scratch.port.to_string());
    let given = asked.captured().cloned();
    let marker = given.as_ref().and_then(|given| given.marker.clone());
    let given = given.map(|given| given.config).unwrap_or_default();
    let mut config = own.config.clone();
    let mut set = |key: &str, value: &str| drop(config.insert(key.to_owned(), Some(value.to_owned())));
    set("database.port", &port);
    set("slot.drop.on.stop", "false");
    for (key, value) in &given {
        set(key, value);
    }
    // It writes, and a standby does not.
    config.remove("heartbeat.action.query");
    // Its own offset decides: the slot of the standby begins before it.
    if config.contains_key("offset.mismatch.strategy") {
        config.insert("offset.mismatch.strategy".to_owned(), Some("no_validation".to_owned()));
    }
    // A slot that is not there is an error, never a snapshot of the standby.
    if own.get("snapshot.mode", "") == "when_needed" && !given.contains_key("snapshot.mode") {
        config.insert("snapshot.mode".to_owned(), Some("no_data".to_owned()));
    }
    if !given.contains_key(POSITION_CHECK) {
        config.remove(POSITION_CHECK);
    }
    let there = Connector { config, marker, ..own.clone() };
    for key in ["topic.prefix", "slot.name", "plugin.name", "publication.name", "database.dbname"] {
        if there.get(key, "") != own.get(key, "") {
            let message = format!("[connector.config] gives {} another {key}", own.name);
            return Err(Error::new(Kind::Config, message).hint("name there only how the standby is reached"));
        }
    }
    let same = |key: &str| there.get(key, "") == own.get(key, "");
    if scratch.is_some()
        && given.contains_key("database.hostname")
        && same("database.hostname")
        && same("database.port")
    {
        let message = format!("[connector.config] leads {} to the server that it reads already", own.name);
        return Err(Error::new(Kind::Config, message)
            .hint("give the scratch standby another [scratch] port, or name its machine in \"database.hostname\""));
    }
    if scratch.is_some() && !given.contains_key("database.hostname") {
        let message =
            "the pipeline file does not say under which name the workers reach the scratch standby".to_owned();
        return Err(Error::new(Kind::Config, message).hint(format!(
            "add [[connector]] with name = \"{}\", and [connector.config] with \"database.hostname\" = \"this-machine\"",
            own.name
        )));
    }
    Ok(there)
}

/// What is to be put back one day: of what an earlier run noted, and of the keys that differ by now.
pub(super) fn noted(earlier: Option<Changed>, own: &Connector, there: &Connector) -> Changed {
    let mut all = changed(own, there);
    all.extend(earlier.unwrap_or_default());
    all
}

/// The keys that differ, with what they were.
fn changed(own: &Connector, there: &Connector) -> Changed {
    let keys = own.config.keys().chain(there.config.keys());
    let differs = |key: &&String| own.config.get(*key) != there.config.get(*key);
    let changed: BTreeMap<_, _> =
        keys.filter(differs).map(|key| (key.clone(), own.config.get(key).cloned().flatten())).collect();
    changed
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::config::Pipeline;

    #[test]
    fn what_is_changed_for_the_standby_is_put_back_as_it_was() {
        let config = [
            ("topic.prefix", "srv"),
            ("database.dbname", "shop"),
            ("connector.class", CLASS),
            ("database.port", "5432"),
            ("heartbeat.action.query", "INSERT"),
            ("snapshot.mode", "when_needed"),
            (POSITION_CHECK, "false"),
        ];
        let config: Settings = config.map(|(key, value)| (key.to_owned(), Some(value.to_owned()))).into();
        let own = of_live("shop", config.clone()).expect("a connector");
        let text = "[postgres]\nurl = \"host=h\"\n[scratch]\ninto = \"/s\"\nbin_dir = \"/b\"\nport = 5499\n[[connector]]\nname = \"shop\"\n[connector.config]\n\"database.hostname\" = \"here\"\n";
        let place = tempfile::tempdir().expect("a directory");
        let asked = |text: &str| {
            let file = place.path().join("p.toml");
            std::fs::write(&file, text).expect("written");
            let pipeline = Pipeline::load(&file).expect("valid");
            Asked { connector: "shop".to_owned(), pipeline, folder: PathBuf::new(), yes: false }
        };
        let there = at_scratch(&asked(text), &own).expect("at the standby");
        assert_eq!((there.get("database.port", ""), there.get("database.hostname", "")), ("5499", "here"));
        assert!(["heartbeat.action.query", POSITION_CHECK].iter().all(|key| !there.config.contains_key(*key)));
        assert_eq!(there.get("snapshot.mode", ""), "no_data");
        let first = noted(None, &own, &there);
        let mut back = there.config.clone();
        put_back(&mut back, &first);
        assert_eq!(back, config);
        // The same command with one more key: what was noted before holds, and the key goes, too.
        let more = at_scratch(&asked(&(text.to_owned() + "\"database.sslmode\" = \"disable\"\n")), &own).expect("more");
        let both = noted(Some([("database.port".to_owned(), Some("1".to_owned()))].into()), &own, &more);
        assert_eq!(both.get("database.port"), Some(&Some("1".to_owned())));
        let mut back = more.config.clone();
        put_back(&mut back, &noted(Some(first), &own, &more));
        assert_eq!(back, config);
        let error = at_scratch(&asked(&text.replace("hostname", "server")), &own).expect_err("how is it reached?");
        assert!(error.hint_text().unwrap_or_default().contains("database.hostname"), "{error}");
        assert!(at_scratch(&asked(&(text.to_owned() + "\"slot.name\" = \"other\"\n")), &own).is_err());
        let mut same = own.clone();
        let place = [("database.hostname", "here"), ("database.port", "5499")];
        same.config.extend(place.map(|(key, value)| (key.to_owned(), Some(value.to_owned()))));
        let error = at_scratch(&asked(text), &same).expect_err("it is the primary");
        assert!(error.to_string().contains("reads already"), "{error}");
    }
}
