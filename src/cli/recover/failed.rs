//! How a step that failed ends the command.

use crate::error::{Error, Kind};

/// A step that failed is a failure, whatever it failed at: 3 means that all is done, 2 that nothing was begun.
pub(super) fn exits_with_1(error: Error) -> Error {
    if error.exit_code() == 1 {
        return error;
    }
    let hint = error.hint_text().unwrap_or("the same command goes on with that step").to_owned();
    Error::new(Kind::Unsupported, "a step has failed").source(error).hint(hint)
}
