//! What is left of base backups that do not count: those that a killed process has begun, and those that were expired.
//!
//! ```text
//!   parts, no backup.json                       begun, and under way or left behind   ─► removed a day after the last part
//!   parts, removed.json, no backup.json         expired by retention                 ─► removed an hour after that
//!   backup.json that no entry names             left behind before it was entered     ─► removed a day after the last part
//!   backup.json                                 a backup                              ─► never touched here
//! ```
//!
//! Ages are by the store's clock. A writer stores a part, or looks whether all are there, at least every
//! [`WRITES_WITHIN`], or gives up by itself: so no backup under way is ever as old as [`LEFT_AFTER`]. In a folder only
//! objects are removed that have the names of a backup's own.

use std::pin::pin;

use chrono::{DateTime, TimeDelta, Utc};
use futures::{Stream, TryStreamExt as _, stream};
use object_store::ObjectMeta;
use object_store::path::Path;

use super::found::MOST_NAMED;
use super::holds::Held;
use crate::error::{Kind, Result};
use crate::store::{Store, layout};
use crate::stream::{CountedBackups, total};

/// A backup that goes on longer than this without storing anything is given up by its writer.
pub const WRITES_WITHIN: TimeDelta = TimeDelta::hours(8);

/// The parts of a backup that was never finished are removed this long after the last of them was stored.
pub const LEFT_AFTER: TimeDelta = TimeDelta::hours(24);

/// The parts of a backup that was expired are removed this long after that: a restore that has chosen it is done by then, or has
/// a hold.
pub const REMOVED_AFTER: TimeDelta = TimeDelta::hours(1);

/// The folder of a backup that does not count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    /// Its name.
    pub name: String,
    /// The objects of a backup in it.
    pub objects: Vec<Path>,
    /// The size of these.
    pub bytes: u64,
    /// When the last of them was stored.
    pub touched: DateTime<Utc>,
    /// When it was expired; none for one that was never finished.
    pub expired: Option<DateTime<Utc>>,
}

impl Leftover {
    /// Returns whether nobody can need it any more.
    pub fn is_over(&self, now: DateTime<Utc>) -> bool {
        match self.expired {
            Some(expired) => expired + REMOVED_AFTER <= now,
            None => self.touched + LEFT_AFTER <= now,
        }
    }

    fn of(name: &str, objects: Vec<ObjectMeta>) -> Option<Self> {
        let own: Vec<ObjectMeta> = objects.into_iter().filter(|object| is_own(&object.location)).collect();
        let touched = own.iter().map(|object| object.last_modified).max()?;
        let mark = own.iter().find(|object| object.location.filename() == Some(layout::BACKUP_REMOVED));
        let expired = mark.map(|mark| mark.last_modified);
        let bytes = total(own.iter().map(|object| object.size));
        let mut objects: Vec<Path> = own.into_iter().map(|object| object.location).collect();
        // The mark goes last: what a crash leaves is still known to be expired.
        objects.sort_by_key(|key| key.filename() == Some(layout::BACKUP_REMOVED));
        Some(Self { name: name.to_owned(), objects, bytes, touched, expired })
    }
}

fn is_own(key: &Path) -> bool {
    layout::is_backup_object(key) || key.filename() == Some("backup.json")
}

/// The folders of a system without a `backup.json`, and those of backups that the chain does not know of, once it knows of any: one
/// after the other, for there may be any number.
pub fn leftovers<'a>(
    store: &'a Store,
    (system_id, entered): (u64, Option<&'a CountedBackups>),
) -> impl Stream<Item = Result<Leftover>> + 'a {
    let folders = stream::once(async move { store.list_folders(&layout::backups(system_id)).await })
        .map_ok(|folders| stream::iter(folders.into_iter().map(Ok)))
        .try_flatten();
    folders.try_filter_map(move |folder| async move {
        let Some(name) = layout::backup_name(&folder) else { return Ok(None) };
        let is_left = match entered {
            Some(entered) => !entered.contains_key(name),
            None => match store.size(&layout::backup_commit(system_id, name)).await {
                // A pipe, say: something is there.
                Err(error) if error.kind() == Kind::Corrupt => false,
                size => size?.is_none(),
            },
        };
        Ok(if is_left { Leftover::of(name, store.list(&folder).await?) } else { None })
    })
}

/// Removes what nobody can need any more; gives the number of objects.
pub async fn remove(
    store: &Store,
    (system_id, entered): (u64, Option<&CountedBackups>),
    held: &Held,
    now: DateTime<Utc>,
) -> Result<u64> {
    let (mut removed, mut told, mut left) = (0, 0, pin!(leftovers(store, (system_id, entered))));
    while let Some(leftover) = left.try_next().await? {
        if !leftover.is_over(now) || held.backup(&leftover.name) {
            continue;
        }
        for key in &leftover.objects {
            store.delete(key).await?;
            removed += 1;
        }
        told += 1;
        if told > MOST_NAMED {
            continue;
        }
        let (name, bytes) = (leftover.name, leftover.bytes);
        let what = if leftover.expired.is_some() { "was expired" } else { "was never finished" };
        tracing::info!(name, bytes, objects = leftover.objects.len(), "removed the parts of a base backup that {what}");
    }
    if told > MOST_NAMED {
        let more = told - MOST_NAMED;
        tracing::info!(more, "removed the parts of more base backups that were expired or never finished");
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::manifest::holds::Hold;
    use crate::stream::Lsn;

    async fn put(store: &Store, name: &str, object: &str) {
        store.put(&layout::backup_part(7, name, object), b"x".to_vec().into()).await.expect("stored");
    }

    async fn left_now(store: &Store) -> Leftover {
        pin!(leftovers(store, (7, None))).try_next().await.expect("listed").expect("one")
    }

    async fn left(store: &Store) -> Vec<String> {
        let objects = store.list(&layout::backups(7)).await.expect("a list");
        let below = |object: &ObjectMeta| {
            let parts: Vec<String> = object.location.parts().skip(3).map(|part| part.as_ref().to_owned()).collect();
            parts.join("/")
        };
        objects.iter().map(below).collect()
    }

    #[tokio::test]
    async fn only_what_no_writer_and_no_reader_can_need_is_removed() {
        let store = Store::over(Arc::new(object_store::memory::InMemory::new()), "memory:///");
        for object in ["base.tar.0000000.zst", "16384.tar.0000000.zst", "backup_manifest.zst"] {
            for name in ["killed", "given-up", "sound"] {
                put(&store, name, object).await;
            }
        }
        put(&store, "killed", "notes.txt").await;
        put(&store, "sound", "backup.json").await;
        put(&store, "sound", layout::BACKUP_REMOVED).await;
        put(&store, "given-up", layout::BACKUP_REMOVED).await;
        let (now, free) = (crate::time::now(), Held::default());
        let second = TimeDelta::seconds(1);
        let remove = async |held: &Held, now| remove(&store, (7, None), held, now).await.expect("removed");
        assert_eq!(remove(&free, now + REMOVED_AFTER - second * 60).await, 0, "the promised hour");
        let hold = Hold::new("r".into(), "a restore".into(), Lsn(0), Some("given-up".into()));
        let held = Held { holds: vec![hold], is_everything: false };
        assert_eq!(remove(&held, now + LEFT_AFTER - second * 60).await, 0, "it is read, and the other may be written");
        assert_eq!(remove(&free, now + REMOVED_AFTER + second).await, 4);
        assert_eq!(remove(&free, now + LEFT_AFTER + second).await, 3);
        let sound = [
            "sound/16384.tar.0000000.zst",
            "sound/backup.json",
            "sound/backup_manifest.zst",
            "sound/base.tar.0000000.zst",
            "sound/removed.json",
        ];
        assert_eq!(
            left(&store).await,
            [&["killed/notes.txt"][..], &sound[..]].concat(),
            "what is somebody else's stays"
        );
        assert_eq!(remove(&free, now + LEFT_AFTER * 100).await, 0);
    }

    #[tokio::test]
    async fn a_part_that_comes_makes_a_backup_young_again() {
        let store = Store::over(Arc::new(object_store::memory::InMemory::new()), "memory:///");
        put(&store, "slow", "base.tar.0000000.zst").await;
        let first = left_now(&store).await;
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        put(&store, "slow", "base.tar.0000001.zst").await;
        let second = left_now(&store).await;
        assert!(second.touched > first.touched && !second.is_over(first.touched + LEFT_AFTER));
        assert!(WRITES_WITHIN * 3 <= LEFT_AFTER, "a writer gives up long before");
    }
}
