//! Where consumer groups stood at a time, as the archive keeps it (`[state]`).

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::Deserialize;

use crate::config::TopicPattern;
use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::manifest::Chain;
use crate::manifest::state as versions;
use crate::replay::kafka::GROUPS;
use crate::store::Store;
use crate::stream::{StateKind, StateOf, StreamId};
use crate::time;

/// A position as a group has committed it: the offset of the next record that it reads.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Committed {
    /// The offset.
    pub offset: i64,
    /// What the group's client noted beside it.
    #[serde(default)]
    pub metadata: Option<String>,
}

/// The positions of a group by topic and partition.
pub(super) type Positions = BTreeMap<String, BTreeMap<i32, Committed>>;

/// Groups as they were.
#[derive(Debug, Clone)]
pub struct Archived {
    /// When they were found so.
    pub at: DateTime<Utc>,
    /// By name.
    pub groups: BTreeMap<String, Positions>,
    /// What the user should know of the others.
    pub warnings: Vec<String>,
}

/// So many names are told where none matches.
const MOST_NAMED: usize = 20;

/// The groups of `cluster` that `wanted` means as they were at `at`.
///
/// # Errors
/// [`Kind::NotFound`] where no state of groups is kept, none of then, or no group is meant.
pub async fn as_of(
    store: &Store,
    cluster: &str,
    wanted: &[TopicPattern],
    (at, now): (DateTime<Utc>, DateTime<Utc>),
) -> Result<Archived> {
    #[derive(Deserialize)]
    struct Group {
        positions: Option<Positions>,
    }
    #[derive(Deserialize)]
    struct Stored {
        state: BTreeMap<String, Group>,
    }
    let stream = StreamId::State(StateOf { kind: StateKind::Groups, scope: cluster.to_owned() });
    let Some(chain) = Chain::open(store, &stream).await? else {
        let message = format!("the archive keeps no consumer groups of {cluster}");
        return Err(Error::new(Kind::NotFound, message).hint(
            "`tidelog run` keeps them where the configuration has a section [state]; leave --groups away to replay the records alone",
        ));
    };
    let Some(version) = versions::as_of(&chain, at.timestamp_millis(), now).await? else {
        let begins = match versions::oldest(&chain).await? {
            Some(oldest) => format!("what is kept begins at {}", time::utc(oldest.at)),
            None => "nothing is kept yet".to_owned(),
        };
        let message = format!("no consumer groups are kept of {}: {begins}", time::utc(at));
        return Err(Error::new(Kind::NotFound, message).hint("name a later time: --groups-at"));
    };
    let json = versions::read(store, chain.stream(), &version).await?;
    let stored: Stored = serde_json::from_slice(&json).or_err(Kind::Corrupt, || {
        format!("version {} of {} does not tell of groups", version.number, chain.stream())
    })?;
    let names: Vec<String> = stored.state.keys().cloned().collect();
    let mut archived = Archived { at: version.at, groups: BTreeMap::new(), warnings: Vec::new() };
    for (name, group) in stored.state {
        if !wanted.iter().any(|pattern| pattern.matches(&name)) || name.starts_with(GROUPS) {
            continue;
        }
        match group.positions {
            Some(positions) => drop(archived.groups.insert(name, positions)),
            None => archived
                .warnings
                .push(format!("the brokers did not tell the positions of the group {name}: it is left alone")),
        }
    }
    if archived.groups.is_empty() && archived.warnings.is_empty() {
        return Err(nobody(&names, &version));
    }
    Ok(archived)
}

fn nobody(names: &[String], version: &versions::Version) -> Error {
    let message = format!("--groups means no consumer group that is kept of {}", time::utc(version.at));
    let mut shown: Vec<&str> =
        names.iter().map(String::as_str).filter(|name| !name.starts_with(GROUPS)).take(MOST_NAMED).collect();
    shown.extend((names.len() > MOST_NAMED).then_some("…"));
    let hint = match shown.as_slice() {
        [] => "there was none then; --groups-at names another time".to_owned(),
        _ => format!("there were {}; a pattern is ^ and a regex", shown.join(", ")),
    };
    Error::new(Kind::NotFound, message).hint(hint)
}
