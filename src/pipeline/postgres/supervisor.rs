//! Starts and stops the archiver of WAL as its desired state says.
//!
//! A pause and a stop are the same to it: it archives what it has received, closes its connection and waits. Its slot
//! stays and keeps the WAL on the server, so a pause fills the server's disk; a restart opens everything again.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use crate::config::{self, Config};
use crate::error::Result;
use crate::pipeline::desired::{Desired, DesiredState, State};
use crate::pipeline::published::{Opened, PublishedPostgres};
use crate::pipeline::shutdown;

/// How often the desired state is polled.
const LOOK: Duration = Duration::from_millis(200);

/// What the archiver runs with, each time that it runs.
pub(in crate::pipeline) struct Supervisor<'a> {
    pub(in crate::pipeline) config: &'a Config,
    pub(in crate::pipeline) postgres: &'a config::Postgres,
    pub(in crate::pipeline) opened: &'a Opened,
    pub(in crate::pipeline) published: &'a PublishedPostgres,
    /// Reasons for a new base backup come out of it.
    pub(in crate::pipeline) backups: mpsc::Sender<String>,
}

impl Supervisor<'_> {
    /// Archives until `stop` turns true, except while somebody wants it to rest.
    pub(in crate::pipeline) async fn run(&self, mut stop: watch::Receiver<bool>) -> Result<()> {
        loop {
            let desired = self.published.control.read();
            if desired.state == DesiredState::Run {
                self.published.enter(State::Connecting);
                self.archive(desired, stop.clone()).await?;
            } else {
                self.published.enter(resting(desired.state));
                tracing::warn!("WAL is not received until a resume; the slot keeps it on the server");
                tokio::select! {
                    () = self.changed(desired) => tracing::warn!("archiving WAL goes on: it was asked for"),
                    () = shutdown::requested(&mut stop) => {}
                }
            }
            if *stop.borrow() {
                self.published.enter(State::Ending);
                return Ok(());
            }
        }
    }

    /// Archives until another state is desired, or the process stops.
    async fn archive(&self, desired: Desired, mut stop: watch::Receiver<bool>) -> Result<()> {
        let Self { config, postgres, opened, published, .. } = *self;
        let (rest, resting) = watch::channel(false);
        let store = (opened.store.clone(), opened.writer.as_str());
        let run = super::run(config, postgres, store, Arc::clone(&published.status), self.backups.clone(), resting);
        let mut run = Box::pin(run);
        tokio::select! {
            result = &mut run => return result,
            () = self.changed(desired) => {
                let next = published.control.read();
                published.enter(if next.state == DesiredState::Run { State::Restarting } else { self::resting(next.state) });
            }
            () = shutdown::requested(&mut stop) => published.enter(State::Ending),
        }
        rest.send_replace(true);
        run.await
    }

    async fn changed(&self, desired: Desired) {
        while self.published.control.read() == desired {
            tokio::time::sleep(LOOK).await;
        }
    }
}

fn resting(state: DesiredState) -> State {
    if state == DesiredState::Stop { State::Stopped } else { State::Paused }
}
