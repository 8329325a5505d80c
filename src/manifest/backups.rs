//! Base backups that the archive holds.
//!
//! ```text
//! backups/postgres/system=<id>/<YYYYMMDDTHHMMSSZ>-<writer>/base.tar.0000000.zst, …    zstd frames of a tar file, in parts
//!                                                         /16384.tar.0000000.zst, …   of a tablespace
//!                                                         /backup_manifest.zst        the server's own manifest
//!                                                         /backup.json                written last: the commit
//! ```
//!
//! The parts of an archive, put together, are one zstd stream: `cat base.tar.*.zst | zstd -d | tar -x` unpacks it. A
//! folder without `backup.json` is no backup, nor is one of which the chain does not know, once it knows of backups. A backup is of use once the chain holds the WAL from its start to its end.

mod stored;

use std::io::Read;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result, ResultExt};
use crate::escape;
use crate::store::{Created, Store, bounds, layout};
use crate::stream::{Lsn, System, lean, sha256};

/// The newest version of `backup.json`, which an incremental one has: a reader that does not know of parents must not restore it alone.
/// Lower ones are still written where they say everything.
pub const BACKUP_FORMAT: u32 = 3;

/// The version of one that is marked as damaged.
pub const DAMAGED_FORMAT: u32 = 2;

/// A base backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "stored::Stored")]
pub struct Backup {
    /// The version of the format.
    pub format: u32,
    /// The name of its folder.
    pub name: String,
    /// What the server was told that it is called.
    pub label: String,
    /// Of which cluster.
    #[serde(flatten)]
    pub system: System,
    /// The timeline of `start`.
    pub timeline: u32,
    /// A restore needs the WAL from here …
    pub start: Lsn,
    /// … to here, at least.
    pub end: Lsn,
    /// The timeline of `end`.
    pub end_timeline: u32,
    /// When it was begun.
    pub started: DateTime<Utc>,
    /// When the server had sent all of it: no earlier moment can be restored from it.
    pub finished: DateTime<Utc>,
    /// Whether it was read back before it counted.
    #[serde(default, rename = "read_back")]
    pub is_read_back: bool,
    /// What the server found bad in it: it was kept because it was asked for. Such a backup is chosen last, and has
    /// [`DAMAGED_FORMAT`] at least, for a reader that does not know of it must not take it for a sound one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub damaged: Vec<String>,
    /// Whether pages had checksums when it was begun; none where an earlier version took it. An incremental one has the pages of its
    /// parent as they were: one that had none cannot be read by a server that asks for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checksums: Option<bool>,
    /// The one that it builds on, if it is incremental: it holds what was changed since that one began, and is of no use without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Parent>,
    /// The data directory (`base.tar`) and the tablespaces.
    pub archives: Vec<Archive>,
    /// The server's manifest of all files, with their SHA-256.
    pub manifest: Part,
}

/// The base backup that an incremental one builds on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parent {
    /// Its name.
    pub name: String,
    /// The sha256 of the bytes of its `backup.json`.
    pub sha256: String,
}

/// A tar file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Archive {
    /// `base.tar` or `<oid>.tar`.
    pub name: String,
    /// The tablespace that it holds; none for the data directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tablespace: Option<Tablespace>,
    /// In order.
    pub parts: Vec<Part>,
    /// Where entries of the tar file begin, about one in each part: who needs only some of the files begins to read there. None in a
    /// backup of an earlier version.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub places: Vec<Place>,
    /// The directories in which no file lies.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub empty: Vec<String>,
}

/// A place in a tar file at which an entry begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// How many bytes of the tar file stand before it.
    pub at: u64,
    /// How many files stand before it, which are as many of the server's manifest: it names them in the same order.
    pub files: u64,
}

/// A tablespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tablespace {
    /// Its number.
    pub oid: u32,
    /// Where it was on the server.
    pub path: String,
}

impl Tablespace {
    /// Returns whether it lies in the data directory itself (`CREATE TABLESPACE … LOCATION ''` with `allow_in_place_tablespaces`): since
    /// PostgreSQL 16 the server gives it an archive of its own and a relative path, earlier ones have it in `base.tar`.
    pub fn is_in_place(&self) -> bool {
        self.path.strip_prefix("pg_tblspc/").is_some_and(|oid| oid == self.oid.to_string())
    }
}

/// An object with compressed bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Its key.
    pub object: String,
    /// Its bytes before compression.
    pub bytes: u64,
    /// Its size.
    pub stored_bytes: u64,
    /// Its sha256.
    pub sha256: String,
}

impl Backup {
    /// All its objects but `backup.json`.
    pub fn parts(&self) -> impl Iterator<Item = &Part> {
        self.archives.iter().flat_map(|archive| &archive.parts).chain([&self.manifest])
    }

    /// Its bytes before compression.
    pub fn bytes(&self) -> u64 {
        self.parts().fold(0, |sum, part| sum.saturating_add(part.bytes))
    }

    /// The size of its objects.
    pub fn stored_bytes(&self) -> u64 {
        self.parts().fold(0, |sum, part| sum.saturating_add(part.stored_bytes))
    }
}

impl Part {
    /// The object's bytes, checked, still compressed.
    ///
    /// # Errors
    /// [`Kind::Incomplete`] for an object that is missing, [`Kind::Corrupt`] for one that is another than was written.
    pub async fn read(&self, store: &Store) -> Result<Bytes> {
        let key = layout::object(&self.object)?;
        let bytes = store.get_at_most(&key, self.stored_bytes).await?.ok_or_else(|| {
            Error::new(Kind::Incomplete, format!("{key} of a base backup is missing"))
                .hint("restore the object from a copy of the archive, or use another base backup")
        })?;
        let found = sha256(&bytes);
        if found != self.sha256 {
            let message = format!("{key} of a base backup is damaged: its sha256 is {found}, not {}", self.sha256);
            return Err(Error::new(Kind::Corrupt, message)
                .hint("restore the object from a copy of the archive, or use another base backup"));
        }
        Ok(bytes)
    }

    /// The bytes before compression of an object that was [read](Part::read).
    ///
    /// # Errors
    /// [`Kind::Corrupt`] for more or fewer than the backup says, and for more than a part can have.
    pub fn decompress(&self, stored: &[u8]) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let read = self.reader(stored)?.read_to_end(&mut bytes);
        read.or_err(Kind::Corrupt, || format!("{} cannot be decompressed", self.object))?;
        self.is_length(bytes.len() as u64)?;
        Ok(bytes)
    }

    /// The same bytes, one after the other; one more than there should be at the most, which shows that there are more.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] if the backup says more than `stored` can unpack to.
    pub fn reader<'a>(&self, stored: &'a [u8]) -> Result<impl Read + use<'a>> {
        self.unpacks_from(stored.len() as u64)?;
        let decoder = zstd::Decoder::with_buffer(stored);
        let decoder = decoder.or_err(Kind::Corrupt, || format!("{} cannot be decompressed", self.object))?;
        Ok(decoder.take(self.bytes + 1))
    }

    /// Whether an object as small as this can be as long before compression as the backup says.
    fn unpacks_from(&self, stored: u64) -> Result<()> {
        let most = bounds::unpacked(&layout::object(&self.object)?, usize::try_from(stored).unwrap_or(usize::MAX));
        if self.bytes > most {
            return Err(bounds::unpacks_to_too_much(&self.object, most));
        }
        Ok(())
    }

    /// Whether what the backup says of it can be.
    fn is_possible(&self) -> Result<()> {
        let key = layout::object(&self.object)?;
        bounds::is_possible(&key, self.stored_bytes).and_then(|()| self.unpacks_from(self.stored_bytes))
    }

    /// Whether as many bytes were [read](Part::reader) as the backup says.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] if not.
    pub fn is_length(&self, found: u64) -> Result<()> {
        if found == self.bytes {
            return Ok(());
        }
        Err(Error::new(Kind::Corrupt, format!("{} has another length than its backup says", self.object))
            .hint("restore the object from a copy of the archive, or use another base backup"))
    }
}

/// One base backup; none if there is no such backup. With a hash, its `backup.json` must have that.
///
/// # Errors
/// [`Kind::Corrupt`] and [`Kind::Unsupported`] for one that cannot be read, and the store's errors.
pub async fn read(store: &Store, system_id: u64, name: &str, hash: Option<&str>) -> Result<Option<Backup>> {
    Ok(hashed(store, system_id, name, hash).await?.map(|(backup, _)| backup))
}

/// The same, with the sha256 of its `backup.json`.
///
/// # Errors
/// Those of [`read`].
pub async fn hashed(store: &Store, system_id: u64, name: &str, hash: Option<&str>) -> Result<Option<(Backup, String)>> {
    let key = layout::backup_commit(system_id, name);
    let Some(bytes) = store.get(&key).await? else { return Ok(None) };
    let found = sha256(&bytes);
    if let Some(hash) = hash.filter(|hash| **hash != found) {
        let message =
            format!("{key} is not the one that was entered: its sha256 is {found}, and the chain says {hash}");
        return Err(Error::new(Kind::Corrupt, message).hint(
            "restore the object from a copy of the archive or an older version of it; a restore from another base backup passes over it",
        ));
    }
    let backup = parse(&key, &bytes).and_then(|backup| belongs(&key, system_id, name, backup))?;
    Ok(Some((backup, found)))
}

/// A backup says itself where it lies.
fn belongs(key: &object_store::path::Path, system_id: u64, name: &str, backup: Backup) -> Result<Backup> {
    if backup.name == name && backup.system.system_id == system_id {
        return names_its_own(key, &backup).map(|()| backup);
    }
    let message =
        format!("{key} says that it is {} of the system {}", escape::name(&backup.name), backup.system.system_id);
    Err(Error::new(Kind::Corrupt, message).hint("the object was moved or copied by hand: put it back"))
}

/// A backup consists of what lies in its own folder: its objects are read, and expired with it.
fn names_its_own(key: &object_store::path::Path, backup: &Backup) -> Result<()> {
    let own = |object: &str| match layout::Name::parse(object)? {
        layout::Name::Part { system_id, backup: name, .. }
            if (system_id, &name) == (backup.system.system_id, &backup.name) =>
        {
            Ok(())
        }
        _ => Err(Error::new(Kind::Corrupt, format!("{object:?} is no part of it"))
            .hint("restore backup.json from a copy of the archive, or use another base backup")),
    };
    let odd = backup.archives.iter().find(|archive| !layout::is_archive(&archive.name));
    if let Some(odd) = odd {
        return Err(Error::new(Kind::Corrupt, format!("{key} names an archive {:?}, which no server sends", odd.name))
            .hint("restore backup.json from a copy of the archive, or use another base backup"));
    }
    backup.parts().try_for_each(|part| own(&part.object)).map_err(|error| error.context(key))
}

pub(super) fn parse(key: &object_store::path::Path, bytes: &[u8]) -> Result<Backup> {
    #[derive(Deserialize)]
    struct Version {
        format: u32,
    }
    let corrupt = |error: serde_json::Error| {
        Error::new(Kind::Corrupt, format!("{key} cannot be read as a base backup"))
            // What it says may hold a text of the object, of megabytes.
            .source(escape::shortened(error.to_string().into(), MOST_SAID).into_owned())
            .hint("restore the object from a copy of the archive; a restore from another base backup passes over it")
    };
    let Version { format } = serde_json::from_slice(bytes).map_err(corrupt)?;
    if format > BACKUP_FORMAT {
        let message = format!("{key} has format version {format}, this tidelog reads up to {BACKUP_FORMAT}");
        return Err(Error::new(Kind::Unsupported, message).hint("read it with the newer tidelog that wrote it"));
    }
    let backup: Backup = lean::parse(bytes).map_err(corrupt)?;
    if let Some(parent) = &backup.parent
        && (format < BACKUP_FORMAT || parent.name == backup.name || !layout::is_backup_name(&parent.name))
    {
        return Err(Error::new(Kind::Corrupt, format!("{key} names {:?} as its parent, which cannot be", parent.name))
            .hint("restore the object from a copy of the archive; a restore from another base backup passes over it"));
    }
    // Sums of them, and whatever is made of those, fit into numbers from here on.
    backup.parts().try_for_each(Part::is_possible)?;
    if !backup.is_read_back && backup.manifest.bytes == CUT_MANIFEST {
        let message =
            format!("the base backup {} cannot be restored: its manifest was written over in pieces", backup.name);
        return Err(Error::new(Kind::Corrupt, message).hint(
            "an earlier version took it of a directory with very many files: take another with `tidelog backup`",
        ));
    }
    Ok(backup)
}

/// So many bytes of why JSON cannot be read are told.
const MOST_SAID: usize = 1 << 10;

/// The length of the first piece of a manifest that was cut. Its pieces went to one key, so that only one of them is left.
const CUT_MANIFEST: u64 = 24 << 20;

/// Removes what there is of a backup that was never committed.
pub async fn remove_parts(store: &Store, system_id: u64, name: &str) -> Result<()> {
    for object in store.list(&layout::backup(system_id, name)).await? {
        store.delete(&object.location).await?;
    }
    Ok(())
}

/// Stores the `backup.json` of a backup, all other objects of which are durable; gives its hash, to be entered in the chain.
pub async fn commit(store: &Store, backup: &Backup) -> Result<String> {
    let key = layout::backup_commit(backup.system.system_id, &backup.name);
    let json = serde_json::to_vec_pretty(backup).or_err(Kind::Internal, || format!("cannot write {key}"))?;
    let hash = sha256(&json);
    match store.create(&key, json.into()).await? {
        Created::Yes | Created::Same => Ok(hash),
        Created::Other(_) => Err(Error::new(Kind::Fenced, format!("{key} is there already, and is another backup's"))
            .hint("this backup counts for nothing; the next one has a name of its own")),
    }
}

/// Expires a backup: it no longer counts. Its parts stay for a while, for a restore may have chosen it before: see
/// [`super::leftovers`].
pub async fn remove(store: &Store, system_id: u64, name: &str) -> Result<()> {
    let mark = layout::backup_part(system_id, name, layout::BACKUP_REMOVED);
    store.put(&mark, Bytes::from_static(br#"{"format":1}"#)).await?;
    store.delete(&layout::backup_commit(system_id, name)).await
}

#[cfg(test)]
mod tests {
    use crate::stream::FORMAT_VERSION;
    use std::collections::BTreeMap;
    use std::path::PathBuf;

    use super::*;
    use crate::manifest::found::{self, Brief};

    fn memory() -> Store {
        let archive = crate::config::Archive {
            url: url::Url::parse("memory:///").expect("a URL"),
            spool_dir: PathBuf::new(),
            options: BTreeMap::new(),
        };
        Store::open(&archive).expect("a store")
    }

    async fn backup(store: &Store, name: &str, finished_ms: i64) -> Backup {
        let raw = vec![7; 100_000];
        let stored = zstd::bulk::compress(&raw, 1).expect("compressed");
        let key = layout::backup_part(1, name, "base.tar.00000.zst");
        store.put(&key, stored.clone().into()).await.expect("stored");
        let part = Part {
            object: key.to_string(),
            bytes: raw.len() as u64,
            stored_bytes: stored.len() as u64,
            sha256: sha256(&stored),
        };
        let time = DateTime::from_timestamp_millis(finished_ms).expect("a time");
        Backup {
            format: FORMAT_VERSION,
            name: name.to_owned(),
            label: "test".to_owned(),
            system: System { system_id: 1, wal_segment_size: 16 << 20, server_version: 15 },
            timeline: 1,
            start: Lsn(1),
            end: Lsn(2),
            end_timeline: 1,
            started: time,
            finished: time,
            is_read_back: true,
            damaged: Vec::new(),
            checksums: None,
            parent: None,
            archives: vec![Archive {
                name: "base.tar".into(),
                tablespace: None,
                parts: vec![part.clone()],
                places: Vec::new(),
                empty: Vec::new(),
            }],
            manifest: part,
        }
    }

    #[tokio::test]
    async fn a_backup_counts_from_its_commit_to_its_removal() {
        let store = memory();
        let (later, earlier) = (backup(&store, "a", 2000).await, backup(&store, "b", 1000).await);
        assert_eq!(listed(&store).await, [], "parts alone are no backup");
        for one in [&later, &earlier] {
            commit(&store, one).await.expect("committed");
            commit(&store, one).await.expect("a second try finds its own");
        }
        assert_eq!(listed(&store).await, [brief(&earlier), brief(&later)]);
        let other = Backup { label: "other".into(), ..earlier.clone() };
        assert_eq!(commit(&store, &other).await.expect_err("the name is taken").kind(), Kind::Fenced);
        remove(&store, 1, &earlier.name).await.expect("removed");
        assert_eq!(listed(&store).await, [brief(&later)]);
        let left = store.list(&layout::backup(1, "b")).await.expect("a list");
        assert_eq!(left.len(), 2, "a part, for whoever reads it, and the mark: {left:?}");
    }

    #[tokio::test]
    async fn a_part_is_what_was_written_or_an_error() {
        let store = memory();
        let part = backup(&store, "a", 0).await.manifest;
        let stored = part.read(&store).await.expect("it is sound");
        assert_eq!(part.decompress(&stored).expect("it is sound"), vec![7; 100_000]);
        for bytes in [99_999, 100_001] {
            let wrong = Part { bytes, ..part.clone() };
            assert_eq!(wrong.decompress(&stored).expect_err("another length").kind(), Kind::Corrupt);
        }
        store.put(&layout::object(&part.object).expect("a key"), vec![0; 9].into()).await.expect("damaged");
        assert_eq!(part.read(&store).await.expect_err("it is damaged").kind(), Kind::Corrupt);
        store.delete(&layout::object(&part.object).expect("a key")).await.expect("deleted");
        assert_eq!(part.read(&store).await.expect_err("it is missing").exit_code(), 3);
    }

    fn brief(backup: &Backup) -> Brief {
        Brief::of(backup, sha256(&serde_json::to_vec_pretty(backup).expect("JSON")))
    }

    async fn listed(store: &Store) -> Vec<Brief> {
        let found = found::backups(store, 1, None).await.expect("a list");
        assert!(found.unreadable.is_empty() && found.error().is_none(), "{found:?}");
        found.sound
    }

    #[tokio::test]
    async fn a_backup_that_cannot_be_read_takes_away_no_other() {
        let store = memory();
        let sound = backup(&store, "sound", 1000).await;
        commit(&store, &sound).await.expect("committed");
        let moved = serde_json::to_vec(&sound).expect("JSON");
        let cut = Part { bytes: 24 << 20, ..sound.manifest.clone() };
        let cut = Backup { name: "cut".into(), is_read_back: false, manifest: cut, ..sound.clone() };
        let cut = serde_json::to_vec(&cut).expect("JSON");
        let bytes = [
            ("cut", &cut[..]),
            ("moved", &moved[..]),
            ("newer", br#"{"format":9,"name":1}"#),
            ("none", b"{}"),
            ("zero", b""),
        ];
        for (name, bytes) in bytes {
            store.put(&layout::backup_commit(1, name), bytes.to_vec().into()).await.expect("stored");
        }
        let found = found::backups(&store, 1, None).await.expect("a list");
        assert_eq!(found.sound, [brief(&sound)]);
        let kinds: Vec<_> = found.unreadable.iter().map(|one| (one.name.as_str(), one.kind)).collect();
        let expected = [
            ("cut", Kind::Corrupt),
            ("moved", Kind::Corrupt),
            ("newer", Kind::Unsupported),
            ("none", Kind::Corrupt),
            ("zero", Kind::Corrupt),
        ];
        assert_eq!(kinds, expected, "a newer one is not misread");
        assert!(found.error().is_some_and(|error| error.to_string().contains("cut, moved, newer, none, zero")));
    }
}
