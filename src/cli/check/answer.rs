//! What one check found.

use serde::Serialize;

use crate::error::{Kind, Result};

/// The answer of one check.
#[derive(Debug, Serialize)]
pub(super) struct Answer {
    pub(super) check: &'static str,
    pub(super) ok: bool,
    /// Nothing is wrong now, and yet one should know.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) warning: bool,
    pub(super) detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) hint: Option<String>,
    #[serde(skip)]
    pub(super) kind: Option<Kind>,
}

impl Answer {
    pub(super) fn of(check: &'static str, result: Result<String>) -> Self {
        match result {
            Ok(detail) => Self { check, ok: true, warning: false, detail, hint: None, kind: None },
            Err(error) => {
                let (kind, hint) = (Some(error.kind()), error.hint_text().map(str::to_owned));
                Self { check, ok: false, warning: false, detail: error.to_string(), hint, kind }
            }
        }
    }

    /// Returns what is no failure, and yet to be known.
    pub(super) fn warning(check: &'static str, detail: String, hint: &str) -> Self {
        Self { check, ok: true, warning: true, detail, hint: Some(hint.to_owned()), kind: None }
    }
}
