//! The commit of a marker, found in the archive: up to there a standby gets the log.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use super::journal::Mark;
use crate::error::{Error, Kind, Result};
use crate::restore::commits::{Commits, Wanted};
use crate::restore::{Log, PATIENCE, patiently};
use crate::segment::wal::What;
use crate::store::Store;
use crate::stream::Lsn;

/// How long the archive may take to have a commit: it seals its WAL after `postgres.max_age`.
const ARCHIVED: Duration = Duration::from_secs(300);

/// Waits until the commit of a marker is in the archive; gives where it ends, and when it was.
///
/// # Errors
/// [`Kind::Unavailable`] where it does not come.
pub(super) async fn archived(
    store: &Store,
    (system_id, timeline): (u64, u32),
    mark: &Mark,
    from: Lsn,
) -> Result<(Lsn, i64)> {
    let begun = Instant::now();
    loop {
        let log = patiently(PATIENCE, || Log::open(store, Some(system_id))).await?.patient();
        let commits = Commits::open(store, &log, Some(timeline)).await?;
        let mut found = None;
        let wanted = Wanted { lsns: from..Lsn(u64::MAX), times: i64::MIN..i64::MAX };
        commits
            .each(&wanted, false, |ended| match &ended.what {
                What::Commit(transaction) if transaction.xid == mark.xid => {
                    found = Some((ended.end_with_padding(), ended.at));
                    ControlFlow::Break(())
                }
                _ => ControlFlow::Continue(()),
            })
            .await?;
        if let Some(found) = found {
            return Ok(found);
        }
        if begun.elapsed() > ARCHIVED {
            let message =
                format!("the archive has not the commit of transaction {} after {} s", mark.xid, ARCHIVED.as_secs());
            return Err(Error::new(Kind::Unavailable, message)
                .hint("does `tidelog run` archive this server? start it, and run this again"));
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
