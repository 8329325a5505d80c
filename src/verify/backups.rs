//! Base backups: their parts are there, and their bytes are those that were written. `deep` looks at every file within, by the
//! server's manifest. One is held at a time, however many there are.

use std::collections::BTreeMap;
use std::pin::pin;

use futures::TryStreamExt as _;

use super::{Damage, DamageKind, Finding, Work};
use crate::error::{Error, Result};
use crate::manifest::backups::{Backup, Parent};
use crate::manifest::found::{self, Brief, Found, MOST_NAMED, Unreadable, backups};
use crate::manifest::histories::histories;
use crate::manifest::leftovers::leftovers;
use crate::restore::postgres as restore;
use crate::store::layout;
use crate::stream::{StreamId, total};

/// Of the backups that are whole by themselves: the hash, and the one that it builds on.
type Whole = BTreeMap<String, (String, Option<Parent>)>;

impl Work<'_> {
    /// Looks at the base backups of a system, and at the histories of its timelines.
    pub(super) async fn backups(&mut self, stream: &StreamId, system_id: u64) -> Result<()> {
        let entered = self.retired.backups.clone();
        let mut left = pin!(leftovers(self.store, (system_id, entered.as_ref())));
        while let Some(leftover) = left.try_next().await? {
            self.report.leftovers += 1;
            self.report.leftover_bytes = total([self.report.leftover_bytes, leftover.bytes]);
        }
        let found = backups(self.store, system_id, entered.as_ref()).await?;
        self.passed_over(stream, system_id, &found);
        self.histories(stream, system_id).await?;
        let (mut whole, mut incremental) = (Whole::new(), Vec::new());
        for brief in found.sound {
            self.report.backups += 1;
            let commit = layout::backup_commit(system_id, brief.name()).to_string();
            let (is_whole, damaged) = (self.parts(stream, &commit, &brief).await?, brief.parent.clone());
            let name = brief.taken.name;
            if is_whole {
                whole.insert(name.clone(), (brief.sha256, brief.parent));
            }
            incremental.extend(damaged.map(|parent| (name, commit, parent)));
        }
        let mut lacking = BTreeMap::new();
        for (name, object, parent) in incremental {
            let Some(lacks) = lacks(&parent, &whole, &mut lacking) else { continue };
            let detail = format!("the incremental base backup {name} cannot be restored: {lacks}");
            self.damaged(stream, object, (DamageKind::Unreadable, detail));
        }
        Ok(())
    }

    fn damaged(&mut self, stream: &StreamId, object: String, (kind, detail): (DamageKind, String)) {
        self.report.errors.push(Damage { stream: stream.clone(), object, kind, detail, ranges: Vec::new() });
    }

    fn passed_over(&mut self, stream: &StreamId, system_id: u64, found: &Found) {
        for name in &found.missing {
            let object = layout::backup_commit(system_id, name).to_string();
            let detail = "it is gone: bring it back, or remove its folder and run `tidelog verify --repair`".to_owned();
            self.damaged(stream, object, (DamageKind::Missing, detail));
        }
        for Unreadable { object, why, .. } in &found.unreadable {
            self.damaged(stream, object.clone(), (DamageKind::Unreadable, why.clone()));
        }
        let folder = layout::backups(system_id).to_string();
        if found.more_odd > 0 {
            let detail = format!("{} more folders have names that no base backup has", found.more_odd);
            self.damaged(stream, folder.clone(), (DamageKind::Unreadable, detail));
        }
        if found.beyond > 0 {
            self.damaged(stream, folder, (DamageKind::Unreadable, found::too_many(found.beyond).to_string()));
        }
    }

    async fn histories(&mut self, stream: &StreamId, system_id: u64) -> Result<()> {
        let found = histories(self.store, system_id, |_, _| true, |_| false).await?;
        for (object, error) in found.unreadable {
            self.damaged(stream, object, (DamageKind::Unreadable, error.to_string()));
        }
        if found.more > 0 {
            let detail = format!("{} more histories cannot be read, or are more than are read", found.more);
            self.damaged(stream, layout::histories(system_id).to_string(), (DamageKind::Unreadable, detail));
        }
        Ok(())
    }

    /// Returns whether all parts of a backup are there, and sound.
    async fn parts(&mut self, stream: &StreamId, commit: &str, brief: &Brief) -> Result<bool> {
        let (mut found, mut more) = (Vec::new(), 0_u64);
        let mut tell = |object: &str, error: Error| match found.len() {
            0..MOST_NAMED => found.push((object.to_owned(), error)),
            _ => more += 1,
        };
        match brief.whole(self.store).await {
            Err(error) => tell(commit, error),
            Ok(backup) => {
                for part in backup.parts() {
                    self.report.bytes = total([self.report.bytes, part.stored_bytes]);
                    if let Err(error) = part.read(self.store).await {
                        tell(&part.object, error);
                    }
                }
                let is_whole = found.is_empty();
                if self.deep && is_whole {
                    found.extend(self.files(&backup).await.err().map(|error| (commit.to_owned(), error)));
                }
            }
        }
        let is_whole = found.is_empty();
        for (object, error) in found {
            let damage = match Finding::of(error) {
                Finding::Damage(kind, detail) => (kind, detail),
                Finding::Trouble(error) => return Err(error),
            };
            self.damaged(stream, object, damage);
        }
        if more > 0 {
            let detail = format!("{more} more of its parts are missing or damaged");
            self.damaged(stream, commit.to_owned(), (DamageKind::Unreadable, detail));
        }
        Ok(is_whole)
    }

    async fn files(&self, backup: &Backup) -> Result<()> {
        restore::check(self.store, backup).await
    }
}

/// Returns what an incremental backup lacks of all that it builds on; none if nothing. What is known of others on the way is `told` already.
fn lacks(parent: &Parent, whole: &Whole, told: &mut BTreeMap<String, Option<String>>) -> Option<String> {
    let (mut way, mut at) = (Vec::new(), parent);
    let lacks = loop {
        let Some((hash, next)) = whole.get(&at.name) else {
            break Some(format!("{}, which it builds on, is missing or damaged", at.name));
        };
        if *hash != at.sha256 {
            break Some(format!("{}, which it builds on, is another one now", at.name));
        }
        if let Some(told) = told.get(&at.name) {
            break told.clone();
        }
        // No line goes round: each has the hash of what it builds on.
        way.push(at.name.clone());
        match next {
            Some(next) => at = next,
            None => break None,
        }
    };
    told.extend(way.into_iter().map(|name| (name, lacks.clone())));
    lacks
}
