//! Whether the server waits for this process to shut down.
//!
//! A server that shuts down sends its whole log first, and waits until whoever receives it says that it is safe (`WalSndDone`,
//! walsender.c). With `postgres.ack = "archive"` that would be as long as the store is away: for hours, while somebody wants to
//! restart a database. The protocol does not say that a server is about to leave; it asks for an answer again and again, and takes
//! no new connections.

use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::source::postgres::{Server, takes_no_connection};

/// Two requests for an answer within this time are more than a keepalive: those come every half `wal_sender_timeout`.
const CLOSE: Duration = Duration::from_secs(2);

/// How long the server has for its answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// What is known of it, on one connection.
#[derive(Debug, Default)]
pub(super) struct Leaving {
    asked: Option<Instant>,
    looking: Option<JoinHandle<bool>>,
    is_certain: bool,
}

impl Leaving {
    /// Returns whether the server is shutting down.
    pub(super) fn is_certain(&self) -> bool {
        self.is_certain
    }

    /// Notes that the server wants an answer although it has sent everything.
    pub(super) fn asked_again(&mut self, server: &Server, others: &Handle) {
        let before = self.asked.replace(Instant::now());
        let is_close = before.is_some_and(|before| before.elapsed() < CLOSE);
        if is_close && !self.is_certain && self.looking.is_none() {
            let server = server.clone();
            self.looking = Some(others.spawn(async move {
                let connected = timeout(ANSWER_WITHIN, server.sql()).await;
                matches!(connected, Ok(Err(error)) if takes_no_connection(&error))
            }));
        }
    }

    /// Looks at what came of a try to connect; whether it has just become certain.
    pub(super) async fn look(&mut self) -> bool {
        let Some(looking) = self.looking.take_if(|looking| looking.is_finished()) else { return false };
        self.is_certain |= matches!(looking.await, Ok(true));
        self.is_certain
    }
}
