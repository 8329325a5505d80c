//! What somebody still reads, told to retention: a restore, and the recovery that follows it, keep what they need.
//!
//! ```text
//! holds/postgres/<system id>/<name>.json   written when a restore is planned, and again and again while it or its recovery runs
//!                            clock         written by whoever expires: its time is that of the store
//!                            gives-up-<writer>   there while that one reads the holds and expires what none is about
//! ```
//!
//! Whoever expires says so, then reads the holds, then writes the entry. Who restores writes its hold, then waits until nobody says so,
//! then looks whether what it needs is still there. So one of the two sees the other.
//!
//! A hold counts for [`SPAN`] after it was last written, by the store's clock alone, so that no machine with a wrong clock ends it
//! or keeps it for ever. A restore that was killed holds things up for that long, and no longer.

use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use object_store::path::Path;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::error::{Error, Kind, Result, ResultExt};
use crate::store::{Store, layout};
use crate::stream::{FORMAT_VERSION, Lsn, is_name, lean};

/// How long a hold counts after it was last written: long enough to start a server in peace after a restore.
pub const SPAN: TimeDelta = TimeDelta::hours(6);

/// How often a hold is written again while somebody reads.
pub const RENEW_EVERY: Duration = Duration::from_secs(600);

/// Who has not expired by then after it said that it would does not do so any more: it was killed, or stood still.
const EXPIRES_WITHIN: TimeDelta = TimeDelta::minutes(3);

/// Up to when it may begin to write the entry, which the store may take a while to take.
const BEGINS_WITHIN: Duration = Duration::from_secs(60);

/// How often a restore looks whether somebody still expires.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What one reader needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// The version of the format.
    pub format: u32,
    /// Its name, which nobody else uses.
    pub name: String,
    /// What it is for, for people.
    pub what: String,
    /// WAL is needed from here on, on every timeline.
    pub from: Lsn,
    /// The base backup that is read; none once it is unpacked, or where it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<String>,
    /// What a recovery asked for at a time, from which on it needs WAL once it has gone on for [`MOVES_AFTER`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked: Option<(DateTime<Utc>, Lsn)>,
}

/// A recovery that starts again begins where it last noted how far it was, at least once a day (`checkpoint_timeout`). So a standby
/// that fetches for ever does not hold for ever what it began with.
pub const MOVES_AFTER: TimeDelta = TimeDelta::hours(25);

impl Hold {
    /// A recovery asks for `lsn` at `now`.
    pub fn goes_on(&mut self, lsn: Lsn, now: DateTime<Utc>) {
        self.from = self.from.min(lsn);
        match self.asked {
            Some((since, _)) if now.signed_duration_since(since) < MOVES_AFTER => {}
            Some((_, reached)) => (self.from, self.asked) = (reached.min(lsn), Some((now, lsn))),
            None => self.asked = Some((now, lsn)),
        }
    }

    /// A new one.
    pub fn new(name: String, what: String, from: Lsn, backup: Option<String>) -> Self {
        Self { format: FORMAT_VERSION, name, what, from, backup, asked: None }
    }

    /// Writes it, for the first time or again.
    ///
    /// # Errors
    /// The store's: [`Kind::Denied`] for an archive that is read-only.
    pub async fn write(&self, store: &Store, system_id: u64) -> Result<()> {
        let key = layout::hold(system_id, &self.name);
        store.put(&key, self.bytes()?).await
    }

    /// As it is stored.
    pub fn bytes(&self) -> Result<Bytes> {
        serde_json::to_vec(self)
            .map(Bytes::from)
            .or_err(Kind::Internal, || format!("cannot write the hold {}", self.name))
    }

    /// Reads one.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let hold: Self = lean::parse(bytes).or_err(Kind::Corrupt, || "a hold cannot be read".to_owned())?;
        match hold.format {
            1..=FORMAT_VERSION if is_name(&hold.name) && hold.backup.as_deref().is_none_or(is_name) => Ok(hold),
            1..=FORMAT_VERSION => Err(Error::new(Kind::Corrupt, format!("a hold says that it is {:?}", hold.name))),
            newer => Err(Error::new(Kind::Unsupported, format!("the hold {} has format version {newer}", hold.name))
                .hint("use the newer tidelog that wrote it")),
        }
    }
}

/// What is held at a time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Held {
    /// Those that can be read.
    pub holds: Vec<Hold>,
    /// Whether one cannot: then everything is held until it ends, for nobody knows what it needs.
    pub is_everything: bool,
}

impl Held {
    /// Returns whether a base backup must stay.
    pub fn backup(&self, name: &str) -> bool {
        self.is_everything || self.holds.iter().any(|hold| hold.backup.as_deref() == Some(name))
    }

    /// Returns from where on WAL must stay.
    pub fn from(&self) -> Option<Lsn> {
        if self.is_everything { Some(Lsn(0)) } else { self.holds.iter().map(|hold| hold.from).min() }
    }
}

/// Returns what is held at `now`, by the store's clock.
pub async fn held(store: &Store, system_id: u64, now: DateTime<Utc>) -> Result<Held> {
    let mut held = Held::default();
    for object in store.list(&layout::holds(system_id)).await? {
        if !is_hold(&object.location) || object.last_modified + SPAN <= now {
            continue;
        }
        // One that has gone meanwhile was taken back.
        let read = match store.get(&object.location).await {
            Ok(None) => continue,
            Ok(Some(bytes)) => Hold::parse(&bytes),
            Err(error) if error.kind() == Kind::Corrupt => Err(error),
            Err(error) => return Err(error),
        };
        match read {
            Ok(hold) => held.holds.push(hold),
            Err(error) => {
                tracing::warn!(key = %object.location, %error, "nothing is expired while this hold counts");
                held.is_everything = true;
            }
        }
    }
    Ok(held)
}

/// Removes the holds that ended long ago.
pub async fn remove_lapsed(store: &Store, system_id: u64, now: DateTime<Utc>) -> Result<()> {
    for object in store.list(&layout::holds(system_id)).await? {
        let is_own = is_hold(&object.location) || is_expiring(&object.location);
        if is_own && object.last_modified + SPAN * 4 <= now {
            store.delete(&object.location).await?;
        }
    }
    Ok(())
}

/// The time by the store's clock, which dates every object.
pub async fn store_time(store: &Store, system_id: u64) -> Result<DateTime<Utc>> {
    store_time_in(store, &layout::holds(system_id)).await
}

/// The same, by an object in this folder.
pub async fn store_time_in(store: &Store, folder: &Path) -> Result<DateTime<Utc>> {
    let key = folder.clone().join("clock");
    store.put(&key, Bytes::from_static(b"{}")).await?;
    let read = store.get_dated(&key).await?;
    let (_, written) = read.ok_or_else(|| {
        Error::new(Kind::Unavailable, format!("{key} was written, and cannot be read"))
            .hint("`tidelog check --connect` tries the store")
    })?;
    Ok(written)
}

/// Somebody is about to expire what no hold is about.
#[must_use]
pub struct Expiring {
    key: Path,
    begun: Instant,
}

impl Expiring {
    /// Says so. The holds are to be read after this.
    pub async fn begin(store: &Store, system_id: u64, writer: &str) -> Result<Self> {
        let (key, begun) = (layout::holds(system_id).join(format!("{EXPIRING}{writer}")), Instant::now());
        store.put(&key, Bytes::from_static(b"{}")).await?;
        Ok(Self { key, begun })
    }

    /// Refuses once a restore may not wait for it any more.
    ///
    /// # Errors
    /// [`Kind::Unavailable`]: it is to be begun again.
    pub fn is_in_time(&self) -> Result<()> {
        if self.begun.elapsed() < BEGINS_WITHIN {
            return Ok(());
        }
        Err(Error::new(Kind::Unavailable, "retention stood still between the look at the holds and what it expires")
            .hint("it is tried again; nothing was expired"))
    }

    /// It is done, or was given up.
    pub async fn end(self, store: &Store) {
        if let Err(error) = store.delete(&self.key).await {
            tracing::warn!(%error, "restores that begin now wait for up to {} minutes", EXPIRES_WITHIN.num_minutes());
        }
    }
}

/// Waits until nobody is expiring without having seen the holds that are there now.
///
/// # Errors
/// The store's.
pub async fn wait_for_expiry(store: &Store, system_id: u64) -> Result<()> {
    let mut is_told = false;
    while expires(store, system_id, store_time(store, system_id).await?).await? {
        if !is_told {
            tracing::warn!("retention is expiring something: the restore waits until it is done, for minutes at most");
        }
        is_told = true;
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}

async fn expires(store: &Store, system_id: u64, now: DateTime<Utc>) -> Result<bool> {
    let objects = store.list(&layout::holds(system_id)).await?;
    Ok(objects.iter().any(|object| is_expiring(&object.location) && object.last_modified + EXPIRES_WITHIN > now))
}

/// How the names begin of what [`Expiring`] writes.
const EXPIRING: &str = "gives-up-";

fn is_expiring(key: &Path) -> bool {
    key.filename().is_some_and(|name| name.starts_with(EXPIRING))
}

fn is_hold(key: &Path) -> bool {
    key.extension() == Some("json")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use object_store::ObjectStoreExt;

    use super::*;

    fn hold(name: &str, from: u64) -> Hold {
        Hold::new(name.into(), "a restore".into(), Lsn(from), Some(format!("backup-{name}")))
    }

    #[tokio::test]
    async fn a_restore_waits_for_who_expires_and_not_for_one_that_was_killed() {
        let store = Store::over(Arc::new(object_store::memory::InMemory::new()), "memory:///");
        wait_for_expiry(&store, 7).await.expect("nobody");
        let giving = Expiring::begin(&store, 7, "w").await.expect("begun");
        giving.is_in_time().expect("it was just begun");
        let now = store_time(&store, 7).await.expect("a time");
        assert_eq!(held(&store, 7, now).await.expect("none"), Held::default());
        let mut waiting = Box::pin(wait_for_expiry(&store, 7));
        tokio::time::timeout(LOOK_EVERY * 3, &mut waiting).await.expect_err("it waits");
        assert!(!expires(&store, 7, now + EXPIRES_WITHIN).await.expect("looked"), "its time is over");
        giving.end(&store).await;
        waiting.await.expect("it goes on");
        assert!(BEGINS_WITHIN * 2 <= EXPIRES_WITHIN.to_std().expect("positive"), "the store may take a minute");
        let killed = Expiring::begin(&store, 7, "w").await.expect("begun");
        let late = Expiring { begun: killed.begun - BEGINS_WITHIN, ..killed };
        assert_eq!(late.is_in_time().expect_err("late").kind(), Kind::Unavailable);
        remove_lapsed(&store, 7, now + SPAN * 5).await.expect("removed");
        assert!(!expires(&store, 7, now).await.expect("looked"), "nothing of it is left");
    }

    #[tokio::test]
    async fn a_hold_counts_until_its_time_is_over() {
        let store = Store::over(Arc::new(object_store::memory::InMemory::new()), "memory:///");
        let now = store_time(&store, 7).await.expect("a time");
        assert_eq!(held(&store, 7, now).await.expect("none"), Held::default(), "the clock is no hold");
        for (name, from) in [("a", 500), ("b", 300)] {
            hold(name, from).write(&store, 7).await.expect("written");
        }
        let until = |span| now + span;
        let found = held(&store, 7, until(SPAN - TimeDelta::seconds(1))).await.expect("two");
        assert_eq!((found.from(), found.backup("backup-a"), found.backup("c")), (Some(Lsn(300)), true, false));
        let after = until(SPAN + TimeDelta::minutes(1));
        assert_eq!(held(&store, 7, after).await.expect("none").from(), None);
        remove_lapsed(&store, 7, after).await.expect("removed");
        assert_eq!(store.list(&layout::holds(7)).await.expect("a list").len(), 3, "not yet");
        remove_lapsed(&store, 7, until(SPAN * 5)).await.expect("removed");
        assert_eq!(store.list(&layout::holds(7)).await.expect("a list").len(), 1, "the clock stays");
    }

    #[test]
    fn a_recovery_that_goes_on_for_days_moves_what_it_holds() {
        let mut hold = hold("a", 100);
        let begun = DateTime::from_timestamp(1_800_000_000, 0).expect("a time");
        for (hours, asked, from) in
            [(0, 110, 100), (24, 500, 100), (26, 600, 110), (27, 700, 110), (52, 900, 600), (53, 50, 50)]
        {
            hold.goes_on(Lsn(asked), begun + TimeDelta::hours(hours));
            assert_eq!(hold.from, Lsn(from), "after {hours} hours");
        }
    }

    #[tokio::test]
    async fn a_hold_that_cannot_be_read_holds_everything_until_it_ends() {
        let store = Store::over(Arc::new(object_store::memory::InMemory::new()), "memory:///");
        let now = store_time(&store, 7).await.expect("a time");
        let newer = Hold { format: 9, ..hold("a", 5) }.bytes().expect("JSON");
        // A store that somebody else writes into takes what ours would not.
        let large = Bytes::from(vec![b' '; 70_000]);
        for bytes in [newer, Bytes::from_static(b"{"), large] {
            store.objects().put(&layout::hold(7, "a"), bytes.into()).await.expect("stored");
            let found = held(&store, 7, now).await.expect("one");
            assert!(found.from() == Some(Lsn(0)) && found.backup("any"));
            assert_eq!(held(&store, 7, now + SPAN * 2).await.expect("none").from(), None);
        }
    }
}
