//! Uploads that a killed process has left in the bucket are aborted, now and then, by every service beside its work.

use std::time::Duration;

use chrono::TimeDelta;

use crate::error::{Error, Kind};
use crate::store::Store;
use crate::tasks::Reporter;
use crate::tasks::backoff::Backoff;

/// How often it is looked for them.
const EVERY: Duration = Duration::from_secs(6 * 3600);

/// How soon again where a person has to mend something.
const AGAIN: Duration = Duration::from_secs(600);

/// An upload that was begun this long ago is nobody's any more.
const LEFT_AFTER: TimeDelta = TimeDelta::hours(24);

/// Works until it is aborted. Nothing waits for it. A store that cannot list them is told of once.
pub(super) async fn run(store: Store, reporter: Reporter) {
    let mut backoff = Backoff::new(reporter);
    let what = "uploads that killed processes may have left are not aborted";
    loop {
        match store.abort_uploads(crate::time::now() - LEFT_AFTER).await {
            Ok(_) => {
                backoff.succeeded();
                tokio::time::sleep(EVERY).await;
            }
            Err(error) if error.kind() == Kind::Unsupported => {
                let hint = hint(&error);
                tracing::info!(%error, hint, "{what}");
                return;
            }
            Err(error) => {
                let least = if error.is_transient() { Duration::ZERO } else { AGAIN };
                let hint = hint(&error);
                backoff.wait_at_least(least, what, error.hint(hint)).await;
            }
        }
    }
}

fn hint(error: &Error) -> &'static str {
    match error.kind() {
        Kind::Denied => {
            "give the right s3:ListBucketMultipartUploads on the bucket, or let a lifecycle rule of the bucket abort them \
             (docs/OPERATIONS.md)"
        }
        _ => "a lifecycle rule of the bucket can do it as well (docs/OPERATIONS.md)",
    }
}
