//! Uploads that a killed process has left in the bucket are aborted, now and then, by every service beside its work.

use std::time::Duration;

use chrono::{TimeDelta, Utc};
use tokio::time::{MissedTickBehavior, interval};

use crate::error::{Error, Kind};
use crate::store::Store;

/// How often it is looked for them.
const EVERY: Duration = Duration::from_secs(6 * 3600);

/// An upload that was begun this long ago is nobody's any more.
const LEFT_AFTER: TimeDelta = TimeDelta::hours(24);

/// Works until it is aborted. Nothing waits for it: what fails is told, and tried again the next time.
pub(super) async fn run(store: Store) {
    let mut tick = interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        if let Err(error) = store.abort_uploads(Utc::now() - LEFT_AFTER).await {
            tell(&error);
        }
    }
}

fn tell(error: &Error) {
    let hint = match error.kind() {
        Kind::Denied => {
            "give the right s3:ListBucketMultipartUploads on the bucket, or let a lifecycle rule of the bucket abort them \
             (docs/OPERATIONS.md)"
        }
        _ => "it is tried again in six hours; a lifecycle rule of the bucket can do it as well (docs/OPERATIONS.md)",
    };
    tracing::info!(%error, hint, "uploads that killed processes may have left are not aborted");
}
