//! Who sees what records hold, and whose turn it is to look.

use tokio::sync::Semaphore;

use super::auth::Token;

/// Those who know the token of `http.reader_token_file`.
pub(super) struct Readers {
    pub(super) token: Token,
    /// One request at a time reads.
    pub(super) turn: Semaphore,
}

impl Readers {
    pub(super) fn of(token: Token) -> Self {
        Self { token, turn: Semaphore::new(1) }
    }
}
