//! The steps of net changes (see `run`, `net`).

use super::comparing::Comparing;
use super::journal::Net;
use super::steps::Repair;
use crate::error::{Kind, Result};
use crate::recover::connectors;
use crate::recover::fold;
use crate::recover::journal::Proof;
use crate::source::postgres::is_refusal;

impl Repair<'_> {
    fn comparing(&self) -> Comparing<'_> {
        let Self { store, config, prepared, standby, .. } = self;
        Comparing { store, config, prepared, standby }
    }

    /// Reads the tables at the marker.
    pub(super) async fn end(&mut self) -> Result<Proof> {
        let gate = self.gate()?.0;
        self.journal.restores = true;
        self.save()?;
        let (net, words) =
            self.comparing().read_end(&self.journal, (self.position().committed, gate), self.compares).await?;
        self.journal.net = net;
        Ok(words.into())
    }

    /// Makes the server at the offset.
    pub(super) async fn start(&mut self) -> Result<Proof> {
        self.journal.restores = true;
        self.save()?;
        let at = self.position().committed;
        let ((server, limits, words), from) = self.comparing().make_start(&self.journal, at).await?;
        (self.server, self.journal.limits) = (Some(server), limits);
        self.journal.net = Net { from: Some(from), mark: None, counts: None, ..self.journal.net.clone() };
        Ok(format!("{words}; it stands at {at}").into())
    }

    /// Changes the tables there to those of the marker, and tells the connector to begin at the slot before the changes.
    pub(super) async fn changes(&mut self) -> Result<Proof> {
        if let Err(error) = self.serve().await {
            // A primary that is away says nothing of it.
            if error.kind() == Kind::Unsupported {
                self.make_standby_again().await?;
            }
            return Err(error);
        }
        let (end, at) = self.gate()?;
        let mut journal = self.journal.clone();
        let folder = &self.folder;
        let changed = self.comparing().change(&mut journal, &self.to, |journal| folder.save(journal)).await;
        self.journal = journal;
        let (slot, words, notes) = match changed {
            // What does not come to the same once does not the next time.
            Err(error) if matches!(error.kind(), Kind::Internal | Kind::Unsupported) || is_refusal(&error) => {
                return Err(Box::pin(self.take_back(error)).await);
            }
            changed => changed?,
        };
        self.journal.decodes_from = Some(slot);
        let mut differences = [self.journal.net.differences.as_slice(), &self.journal.net.unmade].concat();
        if let Some((_, reached)) = self.journal.net.mark.filter(|(_, reached)| *reached > end) {
            differences.push(format!(
                "source.lsn of the changes goes up to {reached}, beyond the marker at {end}: who orders by it has to wait until the primary's \
                 log is there"
            ));
        }
        connectors::stop(&self.prepared.workers, &self.prepared.own).await?;
        self.journal.net.is_told = true;
        self.save()?;
        connectors::go_on_from(&self.prepared.workers, &self.prepared.own, slot, at).await?;
        Ok(Proof { words, differences, notes })
    }

    /// Compares the topics, once the connector has read all and is stopped, with the tables at the marker.
    pub(super) async fn compared(&self) -> Result<Proof> {
        let tables = &self.journal.net.counted;
        if tables.is_empty() {
            return Ok(Proof::default());
        }
        fold::compare_now(self.store, (&self.prepared.own, tables), &self.to).await
    }
}
