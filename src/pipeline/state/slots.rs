//! Keeps what the Postgres server is besides its data: replication slots with their positions, and publications.

use std::sync::Arc;

use tokio::sync::watch;

use super::kept::{Kept, Refusals};
use super::status::PublishedState;
use crate::config::{Postgres, State};
use crate::error::{Error, Kind, Result};
use crate::pipeline::published::Opened;
use crate::source::postgres::Server;
use crate::source::told::Part;
use crate::stream::{StateKind, StateOf};
use crate::tasks::backoff::Backoff;
use crate::tasks::{Task, Tasks};

/// Keeps them until `stop` turns true.
pub(in crate::pipeline) async fn watch(
    (state, postgres): (State, Postgres),
    opened: Opened,
    (published, tasks): (Arc<PublishedState>, Arc<Tasks>),
    mut stop: watch::Receiver<bool>,
) {
    const PUT_OFF: &str = "the state of slots is not kept";
    let mut backoff = Backoff::new(tasks.reporter(Task::SlotState, ""));
    let work = async {
        let mut watched = Watched { postgres, state, opened, published, kept: None };
        loop {
            match watched.poll().await {
                Ok(()) => {
                    backoff.succeeded();
                    tokio::time::sleep(watched.state.every).await;
                }
                Err(error) => backoff.wait_after(PUT_OFF, error).await,
            }
        }
    };
    tokio::select! {
        biased;
        _ = stop.wait_for(|stop| *stop) => {}
        () = work => {}
    }
}

struct Watched {
    postgres: Postgres,
    state: State,
    opened: Opened,
    published: Arc<PublishedState>,
    /// Of which system they are, and its stream.
    kept: Option<(u64, Kept, Refusals)>,
}

impl Watched {
    /// Asks once, and stores what has changed.
    async fn poll(&mut self) -> Result<()> {
        // Each time anew: passwords and certificates in files may be others, and so may be the server.
        let server = Server::new(&self.postgres)?;
        if self.kept.is_none() {
            // Whose they are must be known first; what is told besides came before it was known which version is next.
            let system_id = server.state().await?.system_id;
            let of = StateOf { kind: StateKind::Slots, scope: system_id.to_string() };
            let refusals = Refusals::of(of.to_string());
            self.kept = Some((system_id, Kept::begin(&self.opened, of, self.state.every, None).await?, refusals));
        }
        let Some((known, kept, refusals)) = &mut self.kept else { return Ok(()) };
        let next = kept.next().await?;
        let told = server.state().await?;
        if told.system_id != *known {
            let message = format!("{} is of the system {}, and was of {known}", server.shown(), told.system_id);
            return Err(Error::new(Kind::Fenced, message).hint("check postgres.url: an archive holds one system"));
        }
        if let Part::Found { state, refused } = told.part {
            refusals.tell(refused.into_iter().collect(), &self.published);
            kept.keep(&state, next, crate::time::now(), &self.published).await?;
        }
        Ok(())
    }
}
