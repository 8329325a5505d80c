//! What the pipeline's own state is kept as: one stream for each kind of document and each server that it is of.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A kind of state document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StateKind {
    /// Topics: ids, partition counts, replication factors, settings.
    Topics,
    /// Consumer groups and their positions.
    Groups,
    /// Access control lists.
    Acls,
    /// Connectors of Kafka Connect: configs, states, offsets.
    Connectors,
    /// Subjects of a schema registry: versions, ids, schemas, compatibility, modes.
    Schemas,
    /// Replication slots of a Postgres system, and the publications of its databases.
    Slots,
}

impl StateKind {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Topics, Self::Groups, Self::Acls, Self::Connectors, Self::Schemas, Self::Slots];

    /// Those that the brokers of a cluster tell.
    pub const OF_KAFKA: [Self; 3] = [Self::Topics, Self::Groups, Self::Acls];

    /// Its name, in streams, keys, metrics and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Topics => "topics",
            Self::Groups => "groups",
            Self::Acls => "acls",
            Self::Connectors => "connectors",
            Self::Schemas => "schemas",
            Self::Slots => "slots",
        }
    }
}

impl fmt::Display for StateKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for StateKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|kind| kind.name() == text);
        known.ok_or_else(|| {
            format!("{text:?} is no kind of state; the kinds are topics, groups, acls, connectors, schemas and slots")
        })
    }
}

/// The versions of one document.
///
/// Written `state/<kind>/<scope>`. Its one partition is 0, its positions are the numbers of versions, from 0; each version is a
/// segment of one record, whose timestamp says when it was found so.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StateOf {
    /// What the document says.
    pub kind: StateKind,
    /// The name of the cluster (`kafka.cluster`), or that of the workers of Connect (`state.connect_url`).
    pub scope: String,
}

impl fmt::Display for StateOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "state/{}/{}", self.kind, self.scope)
    }
}

impl StateOf {
    /// Reads what stands after `state/`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (kind, scope) = text.split_once('/')?;
        let scope = Some(scope).filter(|scope| super::is_name(scope))?.to_owned();
        Some(Self { kind: kind.parse().ok()?, scope })
    }
}
