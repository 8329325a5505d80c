//! Where librdkafka fetches: it is sent to where partitions are to be read on, and started again where it has stopped.

use std::time::Duration;

use super::super::assignment::Key;
use super::super::raw::{Failure, code};
use super::super::{Resume, TopicPartition};
use super::Consumer;
use crate::error::Result;

/// How long librdkafka's own thread may take to move the fetchers of all partitions. It asks nobody; a moment is enough.
const SEEK_WAIT: Duration = Duration::from_secs(5);

/// A partition that librdkafka was told to start and that does not answer to a seek in so many polls is started again.
const START_POLLS: u32 = 100;

impl Consumer {
    /// Goes on elsewhere: also the way on after [`Event::OutOfRange`](crate::source::kafka::Event::OutOfRange).
    pub fn seek<P: Copy + Into<Resume>>(&mut self, partitions: &[(TopicPartition, P)]) -> Result<()> {
        for (at, to) in partitions {
            if let Some(key) = self.assignment.key(at) {
                self.assignment.send_to(key, (*to).into());
            }
        }
        self.settle()
    }

    /// Sends librdkafka to where partitions shall go on. While the group waits for partitions, librdkafka holds all of
    /// them still; they are moved when it has its answer.
    pub(super) fn settle(&mut self) -> Result<()> {
        if self.revoked.is_some() {
            return Ok(());
        }
        let away = self.assignment.away();
        if away.is_empty() {
            return Ok(());
        }
        let mut list = self.positions(&away);
        match self.handle.seek(&mut list, SEEK_WAIT) {
            Ok(()) => {}
            // A process that was frozen meanwhile, or a machine without a free core.
            Err(failure) if failure.code == code::TIMED_OUT => tracing::warn!("librdkafka is slow to move partitions"),
            Err(failure) => return Err(failure.into_error("cannot move partitions")),
        }
        let (mut stopped, mut there) = (Vec::new(), Vec::new());
        for entry in list.iter() {
            let key = (self.assignment.index(&String::from_utf8_lossy(entry.topic)), entry.partition);
            match entry.code {
                0 if self.assignment.arrived(key) => there.push(key),
                0 => {}
                // Its fetcher is not running: it gave up after an out-of-range, or has not started yet.
                code::STATE | code::UNKNOWN_PARTITION => {
                    if self.assignment.still_starts(key).is_none_or(|polls| polls > START_POLLS) {
                        stopped.push(key);
                    }
                }
                code => {
                    tracing::debug!(topic = %self.assignment.name(key.0), partition = key.1, code, "seek is retried")
                }
            }
        }
        self.handle
            .resume(&mut self.names(&there))
            .map_err(|failure| failure.into_error("cannot resume partitions"))?;
        self.restart(&stopped).map_err(|failure| failure.into_error("cannot start partitions again"))
    }

    /// Keeps librdkafka from fetching partitions before they were sought: all that it is about to start and that are away.
    ///
    /// It fetches at once where it is told to start. A log that was cut, and has not grown as far again, has nothing there: the
    /// answer would stop the fetcher before the seek that has the broker asked about the epoch, again and again.
    pub(super) fn hold(&mut self) -> Result<(), Failure> {
        let keys = self.assignment.to_hold();
        self.handle.pause(&mut self.names(&keys))?;
        keys.into_iter().for_each(|key| self.assignment.set_held(key));
        Ok(())
    }

    /// Takes partitions out of librdkafka's assignment and puts them in again. The group does not notice. They are sent to where
    /// they belong at the next poll: only a seek has the broker check an epoch.
    fn restart(&mut self, stopped: &[Key]) -> Result<(), Failure> {
        if stopped.is_empty() {
            return Ok(());
        }
        for key in stopped {
            self.assignment.started(*key);
        }
        if !self.cooperative {
            return self.assign_all();
        }
        self.hold()?;
        let list = self.positions(stopped);
        self.handle.incremental_unassign(&list)?;
        self.handle.incremental_assign(&list)
    }

    /// Starts partitions again, where they stand, of which nothing has come although they are read. That was seen of partitions
    /// that came back after a lost session (`make soak`, librdkafka 2.12.1); nothing tells of it, and why is not known.
    pub fn start_again(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        if self.revoked.is_some() {
            return Ok(());
        }
        let is_read = |key: &Key| self.assignment.slot(*key).is_some_and(|slot| slot.reading && !slot.paused);
        let keys: Vec<Key> = self.keys(partitions).into_iter().filter(is_read).collect();
        for key in &keys {
            let (at, slot) = (self.assignment.at(*key), self.assignment.slot(*key));
            tracing::warn!(
                topic = &*at.topic,
                partition = at.partition,
                ?slot,
                "nothing comes of a partition: it is started again"
            );
            self.assignment.start_again(*key);
        }
        if keys.is_empty() {
            return Ok(());
        }
        let resumed = self.handle.resume(&mut self.names(&keys));
        self.restart(&keys).and(resumed).map_err(|failure| failure.into_error("cannot start partitions again"))
    }
}
