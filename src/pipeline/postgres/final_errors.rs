//! Errors of a server that no retry mends.

use crate::error::{Error, Kind};

/// Returns whether an error before the first success means that the configuration is wrong, and a retry helps nobody.
pub(super) fn is_final(error: &Error) -> bool {
    matches!(error.kind(), Kind::Config | Kind::Denied | Kind::Unsupported)
}
