//! `tidelog cat --state` and `tidelog diff`: the pipeline's own state, as it was at a moment, and what changed between two.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;

use super::cluster;
use crate::cli::output::{print, print_json};
use crate::config::Config;
use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::manifest::state::{self as versions, Version};
use crate::manifest::{self, Chain};
use crate::secret;
use crate::store::Store;
use crate::stream::{StateKind, StateOf, StreamId};
use crate::time;

/// Shows what changed in the pipeline's own state between two moments.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tidelog diff --state topics --from -1d
  tidelog diff --state connectors --from -1h
  tidelog diff --state groups --from 2026-11-22T08:00:00Z --to 2026-11-22T09:00:00Z --json")]
pub(crate) struct DiffArgs {
    /// What: topics, groups, acls, connectors, schemas or slots
    #[arg(long, value_name = "KIND")]
    state: StateKind,
    /// Whose state, where the archive holds that of several: the cluster's name, as `tidelog ls` prints it after the kind
    #[arg(long, value_name = "NAME")]
    of: Option<String>,
    /// Print passwords and keys in the configs of connectors, too
    #[arg(long)]
    secrets: bool,
    /// As it was at this time: RFC 3339, now, -90m, -2h, -7d
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    from: String,
    /// As it was at this time
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, default_value = "now")]
    to: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A version as `cat --state` prints it.
#[derive(Debug, Serialize)]
struct Shown<'a> {
    stream: String,
    version: i64,
    /// When it was found.
    at: String,
    state: &'a Value,
}

/// Something that is not what it was.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Changed {
    /// The names that lead to it.
    path: Vec<String>,
    /// Absent where it is new.
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<Value>,
    /// Absent where it is gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<Value>,
}

#[derive(Debug, Serialize)]
struct Difference {
    stream: String,
    from: Moment,
    to: Moment,
    changed: Vec<Changed>,
}

#[derive(Debug, Serialize)]
struct Moment {
    version: i64,
    at: String,
}

/// Prints the state as it was at a time.
pub(super) async fn cat(
    (kind, of): (StateKind, Option<&str>),
    at: Option<&str>,
    secrets: bool,
    config: &Config,
) -> Result<()> {
    let now = time::now();
    let at = time::parse(at.unwrap_or("now"), now).map_err(|error| error.context("--at"))?;
    let store = Store::open(&config.archive)?;
    let chain = chain(&store, (kind, of), config).await?;
    let (version, mut state) = as_of(&store, &chain, at, now).await?;
    if !secrets {
        hide(kind, &mut Vec::new(), &mut state);
    }
    let shown =
        Shown { stream: chain.stream().to_string(), version: version.number, at: time::utc(version.at), state: &state };
    print_json(&shown)
}

/// Runs the command.
pub(crate) async fn diff(args: &DiffArgs, config: &Config) -> Result<()> {
    let now = time::now();
    let parse = |text: &str, option| time::parse(text, now).map_err(|error| error.context(option));
    let (from, to) = (parse(&args.from, "--from")?, parse(&args.to, "--to")?);
    if from > to {
        return Err(Error::new(
            Kind::Config,
            format!("--from {} lies after --to {}", time::rfc3339(from), time::rfc3339(to)),
        )
        .hint("what changed is told from the earlier to the later moment"));
    }
    let store = Store::open(&config.archive)?;
    let chain = chain(&store, (args.state, args.of.as_deref()), config).await?;
    let (before, old) = as_of(&store, &chain, from, now).await?;
    let (after, new) = as_of(&store, &chain, to, now).await?;
    let mut changed = Vec::new();
    compare(&mut Vec::new(), &old, &new, &mut changed);
    if !args.secrets {
        for Changed { path, from, to } in &mut changed {
            from.iter_mut().chain(to).for_each(|value| hide(args.state, &mut path.clone(), value));
        }
    }
    let moment = |version: &Version| Moment { version: version.number, at: time::utc(version.at) };
    let difference =
        Difference { stream: chain.stream().to_string(), from: moment(&before), to: moment(&after), changed };
    if args.json { print_json(&difference) } else { print(&words(&difference)) }
}

/// The chain of a kind of state: of the cluster that is named, or that is configured, or of the only one.
async fn chain(store: &Store, (kind, of): (StateKind, Option<&str>), config: &Config) -> Result<Chain> {
    let nothing = || {
        Error::new(Kind::NotFound, format!("the archive at {} holds no state of the kind {kind}", store.url())).hint(
            "`tidelog run` keeps it where the configuration has a section [state]; `tidelog ls` lists what there is",
        )
    };
    let scope = match of.or_else(|| configured(kind, config)) {
        Some(scope) => scope.to_owned(),
        None => {
            let streams = manifest::streams(store).await?;
            let of = streams.iter().filter_map(StreamId::state).filter(|of| of.kind == kind);
            let scopes: Vec<&str> = of.map(|of| of.scope.as_str()).collect();
            match scopes.as_slice() {
                [] => return Err(nothing()),
                [one] => (*one).to_owned(),
                several => {
                    let message = format!("the archive holds the state of several clusters: {}", several.join(", "));
                    return Err(Error::new(Kind::Config, message).hint("name one by --of"));
                }
            }
        }
    };
    Chain::open(store, &StreamId::State(StateOf { kind, scope })).await?.ok_or_else(nothing)
}

/// The one whose state is meant where nobody says it; none if there may be several.
fn configured(kind: StateKind, config: &Config) -> Option<&str> {
    let servers = match kind {
        StateKind::Connectors => config.state.as_ref().map(|state| &state.connect),
        StateKind::Schemas => config.state.as_ref().map(|state| &state.schema_registry),
        // They are of a Postgres system, and an archive holds one.
        StateKind::Slots => None,
        StateKind::Topics | StateKind::Groups | StateKind::Acls => return cluster(config),
    };
    match servers.map_or(&[][..], Vec::as_slice) {
        [one] => Some(&one.name),
        _ => None,
    }
}

/// Takes the secrets out of the configs of connectors, and the passwords out of URLs anywhere beside them. The path leads to the value.
fn hide(kind: StateKind, path: &mut Vec<String>, value: &mut Value) {
    if kind != StateKind::Connectors {
        return;
    }
    match value {
        Value::Object(below) => {
            for (name, value) in below {
                path.push(name.clone());
                hide(kind, path, value);
                path.pop();
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| hide(kind, path, item)),
        Value::String(text) => {
            let shown = match path.as_slice() {
                [_, _, part, key] if part == "config" => secret::shown(key, text),
                _ => secret::within(text),
            };
            *text = shown.into_owned();
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// The version that held at a time, and its state.
async fn as_of(store: &Store, chain: &Chain, at: i64, now: DateTime<Utc>) -> Result<(Version, Value)> {
    let Some(version) = versions::as_of(chain, at, now).await? else {
        let first = versions::oldest(chain).await?.map_or("nothing is kept yet".to_owned(), |oldest| {
            format!("what is kept begins at {}", time::utc(oldest.at))
        });
        let message = format!("{} is not known as of {}: {first}", chain.stream(), time::rfc3339(at));
        return Err(Error::new(Kind::NotFound, message).hint("`tidelog ls` shows from when on state is kept"));
    };
    let json = versions::read(store, chain.stream(), &version).await?;
    let document: Value =
        serde_json::from_slice(&json).or_err(Kind::Corrupt, || "the version is no JSON".to_owned())?;
    Ok((version, document.get("state").cloned().unwrap_or(Value::Null)))
}

/// Notes what differs. Lists are held to be sets: their order says nothing.
fn compare(path: &mut Vec<String>, old: &Value, new: &Value, changed: &mut Vec<Changed>) {
    let note = |path: &[String], from: Option<&Value>, to: Option<&Value>| Changed {
        path: path.to_vec(),
        from: from.cloned(),
        to: to.cloned(),
    };
    match (old, new) {
        (old, new) if old == new => {}
        (Value::Object(before), Value::Object(after)) => {
            let names: std::collections::BTreeSet<&String> = before.keys().chain(after.keys()).collect();
            for name in names {
                path.push(name.clone());
                match (before.get(name), after.get(name)) {
                    (Some(before), Some(after)) => compare(path, before, after, changed),
                    (before, after) => changed.push(note(path, before, after)),
                }
                path.pop();
            }
        }
        (Value::Array(before), Value::Array(after)) => {
            let gone = before.iter().filter(|one| !after.contains(one));
            changed.extend(gone.map(|one| note(path, Some(one), None)));
            let come = after.iter().filter(|one| !before.contains(one));
            changed.extend(come.map(|one| note(path, None, Some(one))));
        }
        (old, new) => changed.push(note(path, Some(old), Some(new))),
    }
}

fn words(difference: &Difference) -> String {
    let Difference { stream, from, to, changed } = difference;
    let mut text =
        format!("{stream} from version {} ({}) to version {} ({})\n", from.version, from.at, to.version, to.at);
    if changed.is_empty() {
        text += "nothing changed\n";
    }
    for Changed { path, from, to } in changed {
        let path = path.join(" / ");
        text += &match (from, to) {
            (None, Some(to)) => format!("+ {path}: {to}\n"),
            (Some(from), None) => format!("- {path}: {from}\n"),
            (from, to) => {
                let shown = |value: &Option<Value>| value.as_ref().map_or_else(String::new, Value::to_string);
                format!("~ {path}: {} -> {}\n", shown(from), shown(to))
            }
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn changed(old: &Value, new: &Value) -> Vec<Changed> {
        let mut changed = Vec::new();
        compare(&mut Vec::new(), old, new, &mut changed);
        changed
    }

    #[test]
    fn what_changed_is_told_by_its_path() {
        let old = json!({ "orders": { "partitions": 3, "settings": { "retention.ms": "1" } }, "gone": {} });
        let new = json!({ "orders": { "partitions": 6, "settings": { "cleanup.policy": "compact" } }, "come": {} });
        let difference = Difference {
            stream: "state/topics/main".into(),
            from: Moment { version: 0, at: "T1".into() },
            to: Moment { version: 3, at: "T2".into() },
            changed: changed(&old, &new),
        };
        assert_eq!(
            words(&difference),
            "state/topics/main from version 0 (T1) to version 3 (T2)\n\
             + come: {}\n\
             - gone: {}\n\
             ~ orders / partitions: 3 -> 6\n\
             + orders / settings / cleanup.policy: \"compact\"\n\
             - orders / settings / retention.ms: \"1\"\n"
        );
        let none = Difference { changed: Vec::new(), ..difference };
        assert!(words(&none).ends_with("nothing changed\n"));
    }

    #[test]
    fn secrets_of_connectors_are_hidden_wherever_the_change_begins() {
        let connector = json!({ "config": { "database.password": "hunter2", "tasks.max": "1" }, "failed_with": "http://u:hunter2@h" });
        let whole = json!({ "connectors": { "a": connector } });
        let paths: [&[&str]; 4] = [&[], &["connectors"], &["connectors", "a"], &["connectors", "a", "config"]];
        for path in paths {
            let mut value = path.iter().fold(whole.clone(), |value, name| value[*name].clone());
            hide(StateKind::Connectors, &mut path.iter().map(|name| (*name).to_owned()).collect(), &mut value);
            let text = value.to_string();
            assert!(
                !text.contains("hunter2") && text.contains("********") && text.contains("\"1\""),
                "{path:?}: {text}"
            );
        }
        let mut untouched = whole.clone();
        hide(StateKind::Topics, &mut Vec::new(), &mut untouched);
        assert_eq!(untouched, whole);
    }

    #[test]
    fn the_order_of_a_list_is_no_change() {
        let (old, new) = (json!({ "acls": [1, 2, 3] }), json!({ "acls": [3, 1, 4] }));
        let path = vec!["acls".to_owned()];
        let gone = Changed { path: path.clone(), from: Some(json!(2)), to: None };
        let come = Changed { path, from: None, to: Some(json!(4)) };
        assert_eq!(changed(&old, &new), [gone, come]);
    }

    fn state() -> impl Strategy<Value = Value> {
        let settings = prop::collection::btree_map("[a-c]", 0..3_u8, 0..3);
        prop::collection::btree_map("[a-d]", (0..3_u8, settings), 0..4).prop_map(|topics| json!(topics))
    }

    proptest! {
        #[test]
        fn nothing_is_told_just_where_nothing_changed(old in state(), new in state()) {
            prop_assert_eq!(changed(&old, &new).is_empty(), old == new);
            prop_assert_eq!(changed(&old, &new).len(), changed(&new, &old).len());
        }
    }
}
