//! What went while it was verified: a verification may take longer than the grace of what retention expires.

use std::collections::{BTreeSet, HashSet};

use super::{Damage, DamageKind, Work, wal};
use crate::error::Result;
use crate::manifest;
use crate::store::layout;
use crate::stream::StreamId;

impl Work<'_> {
    /// Looks once more whether the chains still need what is missing. What was expired, merged or abandoned meanwhile is no damage.
    pub(super) async fn look_again(&mut self) -> Result<()> {
        let is_missing = |damage: &&Damage| damage.kind == DamageKind::Missing;
        let streams: BTreeSet<StreamId> =
            self.report.errors.iter().filter(is_missing).map(|damage| damage.stream.clone()).collect();
        for stream in streams {
            // A chain that cannot be read now needs all that it needed.
            let Ok(retired) = manifest::isolated(self.store, wal::Retired::of(self.store, &stream).await).await? else {
                continue;
            };
            let gone: HashSet<&str> = self
                .missing
                .iter()
                .filter(|segment| retired.has(segment))
                .map(|segment| segment.object.as_str())
                .collect();
            let counts = |object: &str| match (&stream, &retired.backups) {
                (StreamId::Postgres { system_id }, Some(backups)) => {
                    let below = object.strip_prefix(layout::backups(*system_id).as_ref());
                    let name = below.and_then(|below| below.strip_prefix('/')?.split('/').next());
                    name.is_none_or(|name| backups.contains_key(name))
                }
                _ => true,
            };
            self.report.errors.retain(|damage| {
                let went = gone.contains(damage.object.as_str()) || !counts(&damage.object);
                damage.stream != stream || damage.kind != DamageKind::Missing || !went
            });
        }
        Ok(())
    }
}
