//! What one server has removed another one may still have: a standby keeps WAL by settings of its own. Before WAL is given up for
//! good, each server that `postgres.url` names is asked.

use std::time::Duration;

use tokio::time::timeout;

use super::receiver::{Detour, Receiver};
use crate::error::{Error, Kind, Result};
use crate::pipeline::postgres::timelines::Next;
use crate::source::postgres::{Event, Server, is_removed_wal, server_error};
use crate::stream::Lsn;

/// A server that has what comes next sends it at once.
const SENDS_WITHIN: Duration = Duration::from_secs(10);

impl Receiver {
    /// A server other than `host` that has what comes next; `until` is what `host` begins with.
    ///
    /// # Errors
    /// [`Kind::Unavailable`] while one of them cannot be asked: what it has is not known, and a gap is for good.
    pub(super) async fn detour(&self, next: &Next, host: &str, until: Lsn) -> Result<Option<Detour>> {
        let mut silent = None;
        for server in self.server.others(host) {
            match self.has(&server, next).await {
                Ok(true) => {
                    tracing::warn!(host = server.shown(), timeline = next.timeline, start = %next.start, %until,
                        "another server still has the WAL that was removed: it is received from there");
                    return Ok(Some(Detour { server, until }));
                }
                Ok(false) => {}
                Err(error) => silent = Some((server.shown(), error)),
            }
        }
        let Some((shown, error)) = silent else { return Ok(None) };
        let message = format!(
            "{host} has removed the WAL of timeline {} from {} to {until} before it was archived, and {shown}, which may still have it, cannot be asked",
            next.timeline, next.start
        );
        Err(Error::new(Kind::Unavailable, message).source(error).hint(format!(
            "nothing is given up before that: bring {shown} back, or take it out of postgres.url if it is gone for good"
        )))
    }

    /// Returns whether a server sends what comes next.
    async fn has(&self, server: &Server, next: &Next) -> Result<bool> {
        let mut replication = server.replication().await?;
        if replication.identify().await?.system_id != self.shared.system.system_id {
            return Ok(false);
        }
        let sends = async {
            let mut stream = replication.stream(None, next.timeline, next.start).await?;
            loop {
                match stream.next().await? {
                    Event::Data { .. } => return Ok(true),
                    Event::Keepalive { .. } => {}
                    Event::TimelineEnded { .. } => return Ok(false),
                }
            }
        };
        match timeout(SENDS_WITHIN, sends).await {
            // It has come no further, and neither removed nor written what is wanted.
            Err(_) => Ok(false),
            // It has removed it, too, or its log does not go there (elog of StartReplication, walsender.c).
            Ok(Err(error)) if is_removed_wal(&error) || says_no(&error) => Ok(false),
            Ok(sent) => sent,
        }
    }
}

/// Returns whether it is the answer to the question, and not of a server that cannot answer now.
fn says_no(error: &Error) -> bool {
    server_error(error).is_some_and(|said| said.sqlstate.starts_with("XX"))
}
