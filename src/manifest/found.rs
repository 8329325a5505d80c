//! The base backups of a system as whoever looks at all of them knows them: of each only a few lines, however many parts it has, of
//! few enough that all together have a bound.
//!
//! ```text
//!   folders ─► those with a backup's name, that the chain counts ─► the newest 8,192 by name ─► backup.json, read one at a time
//!                                                                                                ├─► Brief
//!              other names: ten are named      older ones: a number                              └─► Unreadable: 1 KiB of why
//! ```
//!
//! Whoever needs the parts of one reads that one again, by the hash that its brief has.

use chrono::{DateTime, Utc};
use futures::{StreamExt, stream};
use object_store::path::Path;

use super::backups::{self, Backup, Parent};
use super::path::Taken;
use super::reads_at_once::READS_AT_ONCE;
use crate::error::{Error, Kind, Result};
use crate::escape;
use crate::store::{Store, layout};
use crate::stream::{BackupRef, CountedBackups, System};

/// So many base backups of a system are known at a time, as many as there are objects of coverage: one an hour for eleven months.
/// With what is kept of each that is 32 MiB at the most. Older ones are passed over, and keep what they need.
pub const MOST_BACKUPS: usize = 8_192;

/// So many that cannot be read are named one by one, in the log and for people, and the others as a number.
pub const MOST_NAMED: usize = 10;

/// So many bytes are kept of why one cannot be read, and of each thing that a server found bad in one.
const MOST_SAID: usize = 1 << 10;

/// So many things that a server found bad in a backup are kept.
const MOST_DAMAGED: usize = 2;

/// A base backup without its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Brief {
    /// What a path needs to know of it.
    pub taken: Taken,
    /// Of which cluster.
    pub system: System,
    /// When it was begun.
    pub started: DateTime<Utc>,
    /// Its bytes before compression.
    pub bytes: u64,
    /// The size of its objects.
    pub stored_bytes: u64,
    /// The first of what the server found bad in it.
    pub damaged: Vec<String>,
    /// The one that it builds on, if it is incremental.
    pub parent: Option<Parent>,
    /// The sha256 of its `backup.json`.
    pub sha256: String,
}

impl Brief {
    /// Returns what is kept of a backup, whose `backup.json` has this hash.
    pub fn of(backup: &Backup, sha256: String) -> Self {
        let said = |text: &String| shortened(text);
        Self {
            taken: Taken::of(backup),
            system: backup.system,
            started: backup.started,
            bytes: backup.bytes(),
            stored_bytes: backup.stored_bytes(),
            damaged: backup.damaged.iter().take(MOST_DAMAGED).map(said).collect(),
            // A hash is as long as hashes are, whatever stands there.
            parent: backup.parent.as_ref().map(|parent| Parent { sha256: shortened(&parent.sha256), ..parent.clone() }),
            sha256,
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.taken.name
    }

    /// As an entry of a chain has it.
    pub fn entered(&self) -> BackupRef {
        let Taken { name, parent, .. } = &self.taken;
        BackupRef { name: name.clone(), sha256: self.sha256.clone(), parent: parent.clone() }
    }

    /// All of it, read again.
    ///
    /// # Errors
    /// [`Kind::Incomplete`] if it has gone meanwhile, and those of [`backups::read`].
    pub async fn whole(&self, store: &Store) -> Result<Backup> {
        let read = backups::read(store, self.system.system_id, self.name(), Some(&self.sha256)).await?;
        read.ok_or_else(|| {
            Error::new(Kind::Incomplete, format!("the base backup {} has gone meanwhile", self.name()))
                .hint("retention or somebody else removed it: begin again")
        })
    }
}

/// Text from outside, no longer than is kept of any.
fn shortened(text: &str) -> String {
    let mut text = escape::shortened(text.into(), MOST_SAID).into_owned();
    text.shrink_to_fit();
    text
}

/// A base backup, the `backup.json` of which cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// The name of its folder.
    pub name: String,
    /// Its `backup.json`.
    pub object: String,
    /// The one that it builds on, if the chain says that it is incremental.
    pub parent: Option<String>,
    /// What sort of failure it is.
    pub kind: Kind,
    /// What is wrong with it.
    pub why: String,
    /// What the reader can do about it.
    pub hint: Option<String>,
}

impl Unreadable {
    pub(super) fn of(system_id: u64, name: &str, parent: Option<String>, error: &Error) -> Self {
        Self {
            name: name.to_owned(),
            object: layout::backup_commit(system_id, name).to_string(),
            parent,
            kind: error.kind(),
            why: shortened(&error.to_string()),
            hint: error.hint_text().map(shortened),
        }
    }

    /// A folder among the backups that has no backup's name.
    fn named(folder: &Path) -> Self {
        let name = shortened(folder.filename().unwrap_or_default());
        Self {
            object: folder.to_string(),
            parent: None,
            kind: Kind::Corrupt,
            why: format!("{name:?} cannot be the name of a base backup"),
            hint: Some("no tidelog made that folder: look who may write to the archive, and remove it".to_owned()),
            name,
        }
    }
}

/// Which folders of a system hold backups that are read.
#[derive(Debug, Default)]
pub(super) struct Listed {
    /// Their names, in order.
    pub(super) names: Vec<String>,
    /// Older ones, which are not read: how many.
    pub(super) beyond: u64,
    /// Folders with other names: the first of them.
    odd: Vec<Unreadable>,
    /// And how many more.
    more_odd: u64,
}

/// Lists the folders of the backups that count.
pub(super) async fn listed(store: &Store, system_id: u64, entered: Option<&CountedBackups>) -> Result<Listed> {
    let mut listed = Listed::default();
    for folder in store.list_folders(&layout::backups(system_id)).await? {
        match layout::backup_name(&folder) {
            Some(name) if entered.is_none_or(|entered| entered.contains_key(name)) => {
                listed.names.push(name.to_owned());
            }
            Some(_) => {}
            None if listed.odd.len() < MOST_NAMED => listed.odd.push(Unreadable::named(&folder)),
            None => listed.more_odd += 1,
        }
    }
    // A name begins with the time.
    let beyond = listed.names.len().saturating_sub(MOST_BACKUPS);
    listed.names.drain(..beyond);
    listed.beyond = beyond as u64;
    Ok(listed)
}

/// The base backups of a Postgres system.
#[derive(Debug, Default)]
pub struct Found {
    /// Those that can be read, by the time at which they were finished.
    pub sound: Vec<Brief>,
    /// Those that cannot, or only by a newer version, and those that are not what was entered. They keep nobody from the others.
    pub unreadable: Vec<Unreadable>,
    /// Folders with names that no backup has, beyond the first that are among the unreadable: how many.
    pub more_odd: u64,
    /// Those that are not read, for there are more than [`MOST_BACKUPS`]: how many.
    pub beyond: u64,
    /// Those that the chain knows of, and of which nothing is there.
    pub missing: Vec<String>,
}

impl Found {
    /// Tells the log of those that cannot be read.
    pub fn tell_unreadable(&self) {
        tell(self.unreadable.iter(), self.more_odd, self.beyond);
    }

    /// Takes along those of another system that cannot be read.
    pub fn add_unreadable(&mut self, other: Self) {
        self.unreadable.extend(other.unreadable);
        self.more_odd += other.more_odd;
        self.beyond += other.beyond;
    }

    /// One error for all that cannot be read; none if there is none.
    pub fn error(&self) -> Option<Error> {
        let Some(first) = self.unreadable.first() else {
            return (self.beyond > 0).then(|| too_many(self.beyond));
        };
        let named = |one: &Unreadable| match &one.parent {
            Some(parent) => format!("{} (it builds on {parent}, which stays)", escape::name(&one.name)),
            None => escape::name(&one.name).into_owned(),
        };
        let names: Vec<String> = self.unreadable.iter().take(MOST_NAMED).map(named).collect();
        let all = self.unreadable.len() as u64 + self.more_odd;
        let others = match all - names.len() as u64 {
            0 => String::new(),
            others => format!(", and {others} more"),
        };
        let names = names.join(", ");
        let message = format!("{all} base backups cannot be read and are passed over: {names}{others}");
        let error = Error::new(Kind::Corrupt, message).source(std::io::Error::other(first.why.clone()));
        Some(error.hint(first.hint.clone().unwrap_or_else(|| "`tidelog verify` lists all damage".to_owned())))
    }
}

/// The error for more base backups than are known at a time.
pub fn too_many(beyond: u64) -> Error {
    Error::new(
        Kind::Corrupt,
        format!("{beyond} base backups are not read: those of a system are {MOST_BACKUPS} at the most, and these have the first names"),
    )
    .hint("look who may write to the archive, and remove the folders that no tidelog made; or expire old ones: `tidelog expire`")
}

/// Tells the log of some that cannot be read one by one, and of the others as a number.
pub(super) fn tell<'a>(unreadable: impl Iterator<Item = &'a Unreadable>, mut more: u64, beyond: u64) {
    for (at, Unreadable { name, parent, why, hint, .. }) in unreadable.enumerate() {
        if at < MOST_NAMED {
            tracing::warn!(name, builds_on = parent, error = why, hint, "a base backup is passed over");
        } else {
            more += 1;
        }
    }
    if more > 0 {
        tracing::warn!(more, "more base backups are passed over: `tidelog verify --json` names those that it can");
    }
    if beyond > 0 {
        let error = too_many(beyond);
        tracing::warn!(%error, hint = error.hint_text(), "base backups are passed over");
    }
}

/// The base backups of a Postgres system. One that cannot be read takes away no other. `entered` is what [`Chain::backups`] says:
/// without it, all that are there count.
///
/// [`Chain::backups`]: super::Chain::backups
///
/// # Errors
/// Only those of a store that does not answer.
pub async fn backups(store: &Store, system_id: u64, entered: Option<&CountedBackups>) -> Result<Found> {
    let Listed { names, beyond, odd, more_odd } = listed(store, system_id, entered).await?;
    let mut found = Found { more_odd, beyond, ..Found::default() };
    if beyond == 0 {
        // Both are in order.
        let is_missing = |name: &&String| names.binary_search(name).is_err();
        found.missing = entered.into_iter().flat_map(CountedBackups::keys).filter(is_missing).cloned().collect();
    }
    let mut read = stream::iter(names)
        .map(|name| async move {
            let counted = entered.and_then(|entered| entered.get(&name));
            let read = backups::hashed(store, system_id, &name, counted.map(|counted| counted.sha256.as_str())).await;
            // Its parts go here, before the next one is looked at.
            let read = read.map(|read| read.map(|(backup, sha256)| Brief::of(&backup, sha256)));
            (name, counted.and_then(|counted| counted.parent.clone()), read)
        })
        .buffered(READS_AT_ONCE);
    while let Some((name, parent, read)) = read.next().await {
        match read {
            Ok(Some(backup)) => found.sound.push(backup),
            Ok(None) => found.missing.extend(entered.map(|_| name)),
            Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::Unsupported) => {
                found.unreadable.push(Unreadable::of(system_id, &name, parent, &error));
            }
            Err(error) => return Err(error),
        }
    }
    // Those that a tidelog made are named first.
    found.unreadable.extend(odd);
    found.sound.sort_by_key(|backup| (backup.taken.finished, backup.taken.start));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::manifest::backups::Part;
    use crate::stream::{FORMAT_VERSION, Lsn, sha256};

    fn backup(name: &str) -> Backup {
        let time = DateTime::from_timestamp(1_800_000_000, 0).expect("a time");
        let object = layout::backup_part(7, name, "backup_manifest.zst").to_string();
        Backup {
            format: FORMAT_VERSION,
            name: name.to_owned(),
            label: String::new(),
            system: System { system_id: 7, wal_segment_size: 16 << 20, server_version: 15 },
            timeline: 1,
            start: Lsn(10),
            end: Lsn(20),
            end_timeline: 1,
            started: time,
            finished: time,
            is_read_back: true,
            damaged: Vec::new(),
            checksums: None,
            parent: None,
            archives: Vec::new(),
            manifest: Part { object, bytes: 1, stored_bytes: 1, sha256: sha256(b"x") },
        }
    }

    /// Returns what is kept of one, with all that it points to.
    fn kept(brief: &Brief) -> usize {
        let Brief { taken, damaged, parent, sha256, .. } = brief;
        let parent = parent.iter().map(|parent| parent.name.capacity() + parent.sha256.capacity());
        let own = taken.name.capacity() + taken.parent.as_ref().map_or(0, String::capacity) + sha256.capacity();
        let damaged = damaged.iter().map(|text| text.capacity() + size_of::<String>());
        size_of::<Brief>() + own + parent.sum::<usize>() + damaged.sum::<usize>()
    }

    #[test]
    fn whatever_backups_say_what_is_known_of_all_has_its_bound() {
        let name = "n".repeat(100);
        let worst = Backup {
            parent: Some(Parent { name: name.clone(), sha256: "f".repeat(100_000) }),
            damaged: vec!["d".repeat(100_000); 1_000],
            ..backup(&name)
        };
        let brief = Brief::of(&worst, sha256(b""));
        assert!(kept(&brief) * MOST_BACKUPS <= 32 << 20, "{}", kept(&brief));
        let error = Error::new(Kind::Corrupt, "m".repeat(100_000)).hint("h".repeat(100_000));
        let unreadable = Unreadable::of(7, &name, Some(name.clone()), &error);
        let Unreadable { object, why, hint, .. } = &unreadable;
        let kept = object.capacity() + why.capacity() + hint.as_ref().map_or(0, String::capacity) + 200;
        assert!((size_of::<Unreadable>() + kept) * MOST_BACKUPS <= 32 << 20, "{kept}");
    }

    #[tokio::test]
    async fn of_too_many_the_newest_are_known_and_the_others_counted() {
        let store = Store::over(Arc::new(object_store::memory::InMemory::new()), "memory:///");
        for number in 0..MOST_BACKUPS + 5 {
            let name = format!("n{number:05}");
            let bytes = serde_json::to_vec(&backup(&name)).expect("JSON");
            store.put(&layout::backup_commit(7, &name), bytes.into()).await.expect("stored");
        }
        let found = backups(&store, 7, None).await.expect("listed");
        assert_eq!((found.sound.len(), found.beyond, found.sound[0].name()), (MOST_BACKUPS, 5, "n00005"));
        assert!(found.error().is_some_and(|error| error.to_string().contains("5 base backups are not read")));
        let mut known = crate::manifest::known::Known::default();
        known.look(&store, 7, None).await.expect("listed");
        assert_eq!(known.taken().len(), MOST_BACKUPS);
    }

    #[tokio::test]
    async fn json_with_a_text_of_megabytes_where_none_belongs_is_told_shortly() {
        let store = Store::over(Arc::new(object_store::memory::InMemory::new()), "memory:///");
        let json = format!("{{\"format\":\"{}\"}}", "x".repeat(8 << 20));
        store.put(&layout::backup_commit(7, "b"), json.into_bytes().into()).await.expect("stored");
        let found = backups(&store, 7, None).await.expect("listed");
        assert_eq!(found.unreadable.len(), 1);
        assert!(found.unreadable[0].why.len() < 1_200, "{}", found.unreadable[0].why.len());
        let error = backups::read(&store, 7, "b", None).await.expect_err("no backup");
        assert!(std::error::Error::source(&error).expect("a reason").to_string().len() < 1_200);
    }
}
