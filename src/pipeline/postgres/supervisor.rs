//! The archiver of WAL, as long as it is wanted.
//!
//! A pause and a stop are the same to it: it archives what it has received, closes its connection and waits. Its slot
//! stays and keeps the WAL on the server, so a pause fills the server's disk; a restart opens everything anew.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use super::asked;
use crate::config::{self, Config};
use crate::error::Result;
use crate::pipeline::board::{Opened, Order, PostgresBoard, State, Wish};

/// How often the orders are looked at.
const LOOK: Duration = Duration::from_millis(200);

/// What the archiver runs with, each time that it runs.
pub(in crate::pipeline) struct Supervisor<'a> {
    pub(in crate::pipeline) config: &'a Config,
    pub(in crate::pipeline) postgres: &'a config::Postgres,
    pub(in crate::pipeline) opened: &'a Opened,
    pub(in crate::pipeline) board: &'a PostgresBoard,
    /// Reasons for a new base backup come out of it.
    pub(in crate::pipeline) backups: mpsc::Sender<String>,
}

impl Supervisor<'_> {
    /// Archives until `stop` turns true, except while somebody wants it to rest.
    pub(in crate::pipeline) async fn run(&self, mut stop: watch::Receiver<bool>) -> Result<()> {
        loop {
            let order = self.board.orders.read();
            if order.wish == Wish::Run {
                self.board.enter(State::Connecting);
                self.archive(order, stop.clone()).await?;
            } else {
                self.board.enter(resting(order.wish));
                tracing::warn!("WAL is not received until a resume; the slot keeps it on the server");
                tokio::select! {
                    () = self.changed(order) => tracing::warn!("archiving WAL goes on: it was asked for"),
                    () = asked(&mut stop) => {}
                }
            }
            if *stop.borrow() {
                self.board.enter(State::Ending);
                return Ok(());
            }
        }
    }

    /// Archives until there is another order, or the process stops.
    async fn archive(&self, order: Order, mut stop: watch::Receiver<bool>) -> Result<()> {
        let Self { config, postgres, opened, board, .. } = *self;
        let (rest, resting) = watch::channel(false);
        let store = (opened.store.clone(), opened.writer.as_str());
        let run = super::run(config, postgres, store, Arc::clone(&board.status), self.backups.clone(), resting);
        let mut run = Box::pin(run);
        tokio::select! {
            result = &mut run => return result,
            () = self.changed(order) => {
                let next = board.orders.read();
                board.enter(if next.wish == Wish::Run { State::Restarting } else { self::resting(next.wish) });
            }
            () = asked(&mut stop) => board.enter(State::Ending),
        }
        rest.send_replace(true);
        run.await
    }

    async fn changed(&self, order: Order) {
        while self.board.orders.read() == order {
            tokio::time::sleep(LOOK).await;
        }
    }
}

fn resting(wish: Wish) -> State {
    if wish == Wish::Stop { State::Stopped } else { State::Paused }
}
