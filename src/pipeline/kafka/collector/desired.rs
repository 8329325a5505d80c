//! Applies the desired state: pause, stop, restart, go on. The collector polls it at every tick, and applies what has
//! changed.
//!
//! ```text
//!            pause: fetching stops, what is open is sealed        stop: the group is left, and takes the partitions
//!  run ◄──────────────────────────────────────────────► paused ────────────────────────► stopped
//!   ▲   resume: fetching goes on at the segmenters' own offsets                             │
//!   └──────────────────────── resume: the group is joined once all is given back ◄───────────┘
//! ```
//!
//! A restart is a stop that joins again by itself; positions then come from the archive, as at every start.

use super::state::{CLOSE_WITHIN, Collector};
use crate::error::Result;
use crate::pipeline::desired::{DesiredState, State};
use crate::pipeline::kafka::seal_reason::SealReason;

impl Collector {
    /// Returns whether the partitions that this process has are not to be read.
    pub(super) fn is_paused(&self) -> bool {
        self.applied.desired.state == DesiredState::Pause
    }

    /// Applies what was requested since the last tick. A process that is ending applies nothing more.
    pub(super) fn apply_desired_state(&mut self) -> Result<()> {
        if self.stopping.is_some() {
            return Ok(());
        }
        let desired = self.published.control.read();
        let before = std::mem::replace(&mut self.applied.desired, desired);
        if desired.state != before.state {
            self.apply(before.state, desired.state)?;
        }
        if desired.restarts != before.restarts && desired.state != DesiredState::Stop {
            tracing::warn!("restarting: partitions are given back to the group, and it is joined again");
            self.rejoin()?;
        }
        if self.applied.rejoin && self.has_given_all_back() {
            self.applied.rejoin = false;
            self.consumer.renew(&self.kafka, CLOSE_WITHIN)?;
        }
        Ok(())
    }

    /// Gives everything back to the group, to join it again with a new client: one that is stuck is as good as a new process then.
    pub(super) fn rejoin(&mut self) -> Result<()> {
        self.consumer.leave()?;
        self.applied.rejoin = true;
        Ok(())
    }

    fn apply(&mut self, before: DesiredState, state: DesiredState) -> Result<()> {
        match state {
            DesiredState::Run => tracing::warn!("archiving goes on: it was asked for"),
            DesiredState::Pause => {
                tracing::warn!("paused: nothing is read until a resume; partitions and positions are kept")
            }
            DesiredState::Stop => tracing::warn!("stopped: partitions are given back to the group until a resume"),
        }
        match (before, state) {
            (_, DesiredState::Stop) => {
                self.applied.rejoin = false;
                // What is assigned comes back as revoked, is sealed and committed, and goes.
                self.consumer.leave()?;
            }
            (DesiredState::Stop, _) => self.applied.rejoin = true,
            _ => {}
        }
        // What is open when a pause begins would wait for its end.
        self.reconcile()?;
        if state == DesiredState::Pause {
            for segmenter in self.topics.segmenters.values_mut() {
                segmenter.seal(SealReason::Paused);
            }
        }
        Ok(())
    }

    fn has_given_all_back(&self) -> bool {
        self.membership.is_settled()
            && self.lookups.is_empty()
            && self.topics.ending.is_empty()
            && self.topics.segmenters.values().all(|segmenter| segmenter.partitions().is_empty())
    }

    /// Returns what the collector is doing.
    pub(super) fn state(&self) -> State {
        match self.applied.desired.state {
            _ if self.stopping.is_some() => State::Ending,
            DesiredState::Stop => State::Stopped,
            _ if self.applied.rejoin => State::Restarting,
            _ if !self.consumer.is_member() => State::Connecting,
            DesiredState::Pause => State::Paused,
            DesiredState::Run => State::Running,
        }
    }
}
