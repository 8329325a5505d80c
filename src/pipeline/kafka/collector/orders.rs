//! What somebody asked for by REST: pause, stop, restart, go on. The collector looks at the order as it stands, at every
//! tick, and does what has changed.
//!
//! ```text
//!            pause: fetching stops, what is open is sealed        stop: the group is left, and takes the partitions
//!  run ◄──────────────────────────────────────────────► paused ────────────────────────► stopped
//!   ▲   resume: fetching goes on at the segmenters' own offsets                             │
//!   └──────────────────────── resume: the group is joined once all is given back ◄───────────┘
//! ```
//!
//! A restart is a stop that joins again by itself; positions then come from the archive, as at every start.

use super::{CLOSE_WITHIN, Collector};
use crate::error::Result;
use crate::pipeline::board::{Order, State, Wish};
use crate::pipeline::kafka::segmenter::Reason;

/// What was done of the orders.
#[derive(Debug, Default)]
pub(super) struct Obeyed {
    order: Order,
    /// The group was left, and is joined again once everything is given back.
    rejoin: bool,
}

impl Collector {
    /// Whether the partitions that this process has are not to be read.
    pub(super) fn is_paused(&self) -> bool {
        self.obeyed.order.wish == Wish::Pause
    }

    /// Does what was asked since the last look. A process that is ending follows no orders.
    pub(super) fn follow_orders(&mut self) -> Result<()> {
        if self.stopping.is_some() {
            return Ok(());
        }
        let order = self.board.orders.read();
        let before = std::mem::replace(&mut self.obeyed.order, order);
        if order.wish != before.wish {
            self.obey(before.wish, order.wish)?;
        }
        if order.restarts != before.restarts && order.wish != Wish::Stop {
            tracing::warn!("restarting: partitions are given back to the group, and it is joined again");
            self.rejoin()?;
        }
        if self.obeyed.rejoin && self.has_given_all_back() {
            self.obeyed.rejoin = false;
            self.consumer.renew(&self.kafka, CLOSE_WITHIN)?;
        }
        Ok(())
    }

    /// Gives everything back to the group, to join it again with a new client: one that is stuck is as good as a new process then.
    pub(super) fn rejoin(&mut self) -> Result<()> {
        self.consumer.leave()?;
        self.obeyed.rejoin = true;
        Ok(())
    }

    fn obey(&mut self, before: Wish, wish: Wish) -> Result<()> {
        match wish {
            Wish::Run => tracing::warn!("archiving goes on: it was asked for"),
            Wish::Pause => tracing::warn!("paused: nothing is read until a resume; partitions and positions are kept"),
            Wish::Stop => tracing::warn!("stopped: partitions are given back to the group until a resume"),
        }
        match (before, wish) {
            (_, Wish::Stop) => {
                self.obeyed.rejoin = false;
                // What is assigned comes back as revoked, is sealed and committed, and goes.
                self.consumer.leave()?;
            }
            (Wish::Stop, _) => self.obeyed.rejoin = true,
            _ => {}
        }
        // What is open when a pause begins would wait for its end.
        self.reconcile()?;
        if wish == Wish::Pause {
            for segmenter in self.segmenters.values_mut() {
                segmenter.seal(Reason::Paused);
            }
        }
        Ok(())
    }

    fn has_given_all_back(&self) -> bool {
        self.leaving.is_empty()
            && self.resolving.is_empty()
            && self.ending.is_empty()
            && self.segmenters.values().all(|segmenter| segmenter.partitions().is_empty())
    }

    /// What the collector is doing.
    pub(super) fn state(&self) -> State {
        match self.obeyed.order.wish {
            _ if self.stopping.is_some() => State::Ending,
            Wish::Stop => State::Stopped,
            _ if self.obeyed.rejoin => State::Restarting,
            _ if !self.consumer.is_member() => State::Connecting,
            Wish::Pause => State::Paused,
            Wish::Run => State::Running,
        }
    }
}
