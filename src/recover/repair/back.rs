//! The way back of a repair: what leads to no end is made again, or taken back.

use super::leftovers::clear_folder;
use super::primary::{drop_slot, is_touched};
use super::steps::Repair;
use super::way::Way;
use crate::error::{Error, Result};
use crate::recover::connectors;

impl Repair<'_> {
    /// Lets the next run make the standby anew. The connector would make a slot there by itself, in the wrong place.
    pub(super) async fn make_standby_again(&mut self) -> Result<()> {
        for step in ["standby", "start", "changes"] {
            self.journal.steps.remove(step);
        }
        // Another one has other positions, and its changes come again.
        (self.journal.net.mark, self.journal.net.counts) = (None, None);
        self.journal.restarts += u32::from(self.journal.way == Way::Net);
        self.save()?;
        connectors::stop(&self.prepared.workers, &self.prepared.scratch).await
    }

    /// Takes back what was made, where it can lead to no end: the connector is stopped and has the config that it had, and the next run
    /// plans anew from the offset that it has now.
    pub(super) async fn take_back(&mut self, error: Error) -> Error {
        let taken = async {
            let own = &self.prepared.own;
            connectors::stop(&self.prepared.workers, own).await?;
            self.own_config().await?;
            if let (true, Some(offset)) = (self.journal.net.is_told, &self.journal.net.offset) {
                connectors::put_offset(&self.prepared.workers, own, offset).await?;
            }
            if let (true, Some(at)) = (self.journal.makes_slot, self.journal.slot) {
                let mut sql = self.prepared.primary.server.sql().await?;
                if is_touched(&mut sql, own.slot(), at).await? == Some(false) {
                    drop_slot(&mut sql, own.slot()).await?;
                }
            }
            if self.journal.restores {
                self.remove().await?;
            }
            clear_folder(&self.folder.path)
        };
        match taken.await {
            Ok(()) => error.context("what was made is removed, the new slot too, and the next run plans anew"),
            Err(other) => {
                tracing::warn!(error = %other, "what was made is not removed");
                error
            }
        }
    }
}
