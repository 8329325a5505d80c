//! What to do where this process may not delete.

use crate::error::{Kind, Result};

/// Where this process may not delete, whoever may does (`tidelog expire` with rights of its own, docs/SECURITY.md): nothing else waits
/// for that.
pub(crate) fn left_to_others(deleted: Result<u64>) -> Result<()> {
    match deleted {
        Err(error) if error.kind() == Kind::Denied => {
            tracing::warn!(%error, "what is no longer needed stays until `tidelog expire` runs with the right to delete it");
            Ok(())
        }
        deleted => deleted.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn what_may_not_be_deleted_is_left_to_whoever_may() {
        let failed = |kind| left_to_others(Err(Error::new(kind, "no"))).map_err(|error| error.kind());
        assert_eq!(failed(Kind::Denied), Ok(()));
        assert_eq!(failed(Kind::Unavailable), Err(Kind::Unavailable));
    }
}
