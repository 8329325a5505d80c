//! What a server tells of a part of its state, and what it refuses to tell.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::error::{Error, Kind, Result, ResultExt as _};

/// One part of the state.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// It was found.
    Found {
        /// As JSON.
        state: Box<RawValue>,
        /// What of it is not told.
        refused: Vec<Refusal>,
    },
    /// The server tells nothing of it.
    Refused(Refusal),
    /// It could not be asked for now.
    Failed {
        /// Why.
        text: String,
        /// What to do about it.
        hint: Option<String>,
    },
}

/// Something that this client may not know.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Refusal {
    /// What.
    pub what: String,
    /// The right that is missing.
    pub grant: String,
}

impl Part {
    /// What was found, as JSON.
    pub(crate) fn found<T: Serialize>(state: &T, refused: Vec<Refusal>) -> Result<Self> {
        let state = serde_json::value::to_raw_value(state);
        let state = state.or_err(Kind::Internal, || "cannot write state as JSON".to_owned())?;
        Ok(Self::Found { state, refused })
    }

    /// What keeps it from being known now.
    pub(crate) fn failed(error: &Error) -> Self {
        Self::Failed { text: error.to_string(), hint: error.hint_text().map(str::to_owned) }
    }
}
