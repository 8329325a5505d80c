//! Growing waits between the attempts of something that is tried until it succeeds.

use std::time::Duration;

use crate::error::Error;

/// The first wait after a failure; it doubles up to [`LONGEST_WAIT`].
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// How long the next wait is.
pub(super) struct Persistence {
    wait: Duration,
    /// Whether anything has failed.
    pub(super) has_waited: bool,
}

impl Persistence {
    pub(super) fn new() -> Self {
        Self { wait: FIRST_WAIT, has_waited: false }
    }

    /// Tells that `what` failed, and waits. What does not pass by itself waits for a person: asking often would not
    /// help.
    pub(super) async fn wait_after(&mut self, what: &str, error: Error) {
        if !error.is_transient() {
            self.wait = LONGEST_WAIT;
        }
        tracing::error!(%error, hint = error.hint_text(), retry_in = ?self.wait, "{what}");
        self.has_waited = true;
        tokio::time::sleep(self.wait).await;
        self.wait = (self.wait * 2).min(LONGEST_WAIT);
    }
}
