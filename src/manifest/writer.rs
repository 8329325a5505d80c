//! The name of a writer.

use crate::error::{Error, Kind, Result};

/// A name for this process that no other has: it stands in the names of the objects that it writes.
pub(crate) fn writer_id() -> Result<String> {
    let mut bytes = [0; 6];
    getrandom::fill(&mut bytes)
        .map_err(|error| Error::new(Kind::Unavailable, format!("the system gives no random bytes: {error}")))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
