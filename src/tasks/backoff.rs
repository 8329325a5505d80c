//! Growing waits between the attempts of something that is tried until it succeeds. A loop that waits like this cannot be
//! written without a place to report to: what fails is in `/readyz`, in metrics and on the page, and not in the log alone.

use std::time::Duration;

use super::Reporter;
use crate::error::Error;

/// The first wait after a failure; it doubles up to [`LONGEST_WAIT`].
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// How long the next wait is, and where failures are reported. The report ends with a success, or with this.
pub(crate) struct Backoff {
    wait: Duration,
    reporter: Reporter,
}

impl Backoff {
    pub(crate) fn new(reporter: Reporter) -> Self {
        Self { wait: FIRST_WAIT, reporter }
    }

    /// Reports that `what` failed, and waits. What does not pass by itself waits for a person: asking often would not
    /// help.
    pub(crate) async fn wait_after(&mut self, what: &str, error: Error) {
        self.wait_at_least(Duration::ZERO, what, error).await;
    }

    /// The same, for what is dear to try: not again before `least`.
    pub(crate) async fn wait_at_least(&mut self, least: Duration, what: &str, error: Error) {
        if !error.is_transient() {
            self.wait = LONGEST_WAIT;
        }
        let wait = self.wait.max(least);
        tracing::error!(%error, hint = error.hint_text(), retry_in = ?wait, "{what}");
        self.reporter.failed(what, &error, Some(wait));
        tokio::time::sleep(wait).await;
        self.wait = (self.wait * 2).min(LONGEST_WAIT);
    }

    /// Waits briefly again after the next failure; what failed stays reported until it succeeds.
    pub(crate) fn reset(&mut self) {
        self.wait = FIRST_WAIT;
    }

    /// It goes on for now: nothing fails, and the next failure waits as long as if this had not been.
    pub(crate) fn goes_on(&self) {
        self.reporter.succeeded();
    }

    /// It has succeeded.
    pub(crate) fn succeeded(&mut self) {
        self.reset();
        self.goes_on();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures::FutureExt as _;

    use super::super::{Task, Tasks};
    use super::*;
    use crate::error::Kind;

    #[tokio::test]
    async fn a_loop_is_failing_from_its_first_failure_to_its_success() {
        let tasks = Arc::<Tasks>::default();
        let mut backoff = Backoff::new(tasks.reporter(Task::KafkaUpload, "orders"));
        assert_eq!(tasks.failing(), []);
        for kind in [Kind::Unavailable, Kind::Denied] {
            let waiting = backoff.wait_after("an upload", Error::new(kind, "no")).now_or_never();
            assert_eq!((waiting, tasks.failing_of(Task::KafkaUpload).0), (None, 1), "from before the wait");
        }
        assert_eq!(backoff.wait, LONGEST_WAIT, "what a person must mend is not asked for often");
        backoff.succeeded();
        assert_eq!((tasks.failing().len(), backoff.wait), (0, FIRST_WAIT));
        assert_eq!(backoff.wait_after("an upload", Error::new(Kind::Unavailable, "no")).now_or_never(), None);
        drop(backoff);
        assert_eq!(tasks.failing(), [], "a loop that is gone fails no more");
    }
}
