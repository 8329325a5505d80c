//! A data directory out of a base backup, ready to start.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

pub use super::settings::{Action, shell_word};

use super::manifest::{self, Files};
use super::plan::Plan;
use super::settings;
use super::unpack::{Written, sync_directories, unpack};
use crate::error::{Error, Kind, Result};
use crate::manifest::backups::{Archive, Backup, Tablespace};
use crate::store::Store;

/// Where and how to restore.
#[derive(Debug, Clone)]
pub struct Destination {
    /// The data directory: missing or empty.
    pub data: PathBuf,
    /// Other places for tablespaces, by their places on the server.
    pub tablespaces: BTreeMap<PathBuf, PathBuf>,
    /// What Postgres does at the target.
    pub action: Action,
    /// The command that fetches WAL, as a shell takes it, up to `wal-fetch`.
    pub command: String,
}

/// Restores what `plan` says. `done` counts bytes of archives, of the plan's [`bytes`](crate::manifest::backups::Backup::bytes).
///
/// # Errors
/// A directory that is not empty, a part or a file that is missing or damaged, a full disk.
pub async fn restore(store: &Store, plan: &Plan, into: &Destination, done: &Arc<AtomicU64>) -> Result<()> {
    let restored = unpack_and_set_up(store, plan, into, done).await;
    restored.map_err(|error| match error.kind() {
        Kind::Full => error.hint("make room on that disk, empty the directory, and begin again"),
        _ => error,
    })
}

async fn unpack_and_set_up(store: &Store, plan: &Plan, into: &Destination, done: &Arc<AtomicU64>) -> Result<()> {
    let backup = &plan.backup;
    let places = places(&backup.archives, into)?;
    must_be_empty(&into.data)?;
    for place in places.values() {
        must_be_empty(place)?;
    }
    let (text, files) = manifest_of(store, backup).await?;
    make_private(&into.data)?;
    let jobs = backup.archives.iter().map(|archive| {
        let place = archive.tablespace.as_ref().and_then(|tablespace| places.get(&tablespace.oid));
        let target = place.unwrap_or(&into.data);
        let (files, done) = (&files, done);
        async move {
            make_private(target)?;
            unpack(store, archive, (Some(target.clone()), prefix(archive)), files, done).await
        }
    });
    let written = futures::future::try_join_all(jobs).await?;
    all_there(&files, &written)?;
    write_map(&into.data, &backup.archives, &places)?;
    let copy = into.data.join("backup_manifest");
    fs::write(&copy, &text).map_err(|source| Error::io(source, format!("cannot write {}", copy.display())))?;
    settings::write(&into.data, plan, into.action, &into.command)?;
    for root in places.values().chain([&into.data]) {
        sync_directories(root)?;
    }
    Ok(())
}

/// Reads a backup through and checks every file against the server's manifest, without a byte on the disk.
///
/// # Errors
/// [`Kind::Corrupt`] and [`Kind::NotFound`] for what a restore would fail at.
pub async fn check(store: &Store, backup: &Backup) -> Result<()> {
    let (_, files) = manifest_of(store, backup).await?;
    let mut written = Vec::new();
    for archive in &backup.archives {
        written.push(unpack(store, archive, (None, prefix(archive)), &files, &Arc::default()).await?);
    }
    all_there(&files, &written)
}

async fn manifest_of(store: &Store, backup: &Backup) -> Result<(Vec<u8>, Arc<Files>)> {
    let text = backup.manifest.decompress(&backup.manifest.read(store).await?)?;
    let files = Arc::new(manifest::parse(&text)?);
    Ok((text, files))
}

/// What stands before an archive's files in the manifest.
fn prefix(archive: &Archive) -> Vec<u8> {
    archive
        .tablespace
        .as_ref()
        .map(|tablespace| format!("pg_tblspc/{}/", tablespace.oid).into_bytes())
        .unwrap_or_default()
}

/// Where each tablespace goes: to its old place, unless told otherwise.
fn places(archives: &[Archive], into: &Destination) -> Result<BTreeMap<u32, PathBuf>> {
    let tablespaces: Vec<&Tablespace> = archives.iter().filter_map(|archive| archive.tablespace.as_ref()).collect();
    for (old, new) in &into.tablespaces {
        if !tablespaces.iter().any(|tablespace| Path::new(&tablespace.path) == old) {
            let known: Vec<&str> = tablespaces.iter().map(|tablespace| tablespace.path.as_str()).collect();
            let message =
                format!("--tablespace {}={}: the backup has no tablespace there", old.display(), new.display());
            return Err(Error::new(Kind::Config, message).hint(format!("its tablespaces are {}", known.join(", "))));
        }
        if !new.is_absolute() {
            return Err(Error::new(Kind::Config, format!("--tablespace …={} is not an absolute path", new.display())));
        }
    }
    let place = |tablespace: &Tablespace| {
        let old = PathBuf::from(&tablespace.path);
        into.tablespaces.get(&old).cloned().unwrap_or(old)
    };
    Ok(tablespaces.into_iter().map(|tablespace| (tablespace.oid, place(tablespace))).collect())
}

fn must_be_empty(folder: &Path) -> Result<()> {
    match fs::read_dir(folder).map(|mut entries| entries.next().is_none()) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Error::new(Kind::Config, format!("{} is not empty", folder.display()))
            .hint("nothing is written over: name an empty directory, or one that does not exist (tablespaces: --tablespace OLD=NEW)")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::io(error, format!("cannot look into {}", folder.display()))),
    }
}

/// Postgres refuses a data directory that others may read.
fn make_private(folder: &Path) -> Result<()> {
    let made = fs::create_dir_all(folder).and_then(|()| fs::set_permissions(folder, fs::Permissions::from_mode(0o700)));
    made.map_err(|source| Error::io(source, format!("cannot make {}", folder.display())))
}

/// Every file of the manifest must have come out of an archive.
fn all_there(files: &Files, written: &[Written]) -> Result<()> {
    let is_there = |name: &Vec<u8>| written.iter().any(|archive| archive.contains(name));
    match files.keys().find(|name| !is_there(name)) {
        None => Ok(()),
        Some(missing) => {
            let message = format!(
                "the base backup lacks {}, which is in the server's manifest",
                String::from_utf8_lossy(missing)
            );
            Err(Error::new(Kind::Corrupt, message).hint("use another base backup: --backup NAME"))
        }
    }
}

/// Writes where tablespaces are: Postgres makes its links from this file as it starts (`read_tablespace_map`,
/// xlogrecovery.c), in which a backslash stands before a newline and a backslash.
fn write_map(data: &Path, archives: &[Archive], places: &BTreeMap<u32, PathBuf>) -> Result<()> {
    if archives.iter().all(|archive| archive.tablespace.is_none()) {
        return Ok(());
    }
    let mut map = Vec::new();
    for (oid, place) in places {
        map.extend_from_slice(format!("{oid} ").as_bytes());
        for &byte in place.as_os_str().as_bytes() {
            if matches!(byte, b'\n' | b'\r' | b'\\') {
                map.push(b'\\');
            }
            map.push(byte);
        }
        map.push(b'\n');
    }
    let file = data.join("tablespace_map");
    let written = fs::write(&file, map).and_then(|()| fs::File::open(&file)?.sync_all());
    written.map_err(|source| Error::io(source, format!("cannot write {}", file.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn into(data: &Path, tablespaces: &[(&str, &str)]) -> Destination {
        Destination {
            data: data.to_owned(),
            tablespaces: tablespaces.iter().map(|(old, new)| (old.into(), new.into())).collect(),
            action: Action::Promote,
            command: "tidelog".to_owned(),
        }
    }

    fn archive(oid: u32, path: &str) -> Archive {
        Archive { name: format!("{oid}.tar"), tablespace: Some(Tablespace { oid, path: path.into() }), parts: vec![] }
    }

    #[test]
    fn tablespaces_go_to_their_places_or_where_they_are_told() {
        let archives = [archive(1, "/old"), archive(2, "/kept")];
        let found = places(&archives, &into(Path::new("/d"), &[("/old", "/new")])).expect("it is known");
        assert_eq!(found, BTreeMap::from([(1, "/new".into()), (2, "/kept".into())]));
        let error = places(&archives, &into(Path::new("/d"), &[("/x", "/new")])).expect_err("there is none");
        assert!(error.hint_text().is_some_and(|hint| hint.contains("/old, /kept")));
        assert!(places(&archives, &into(Path::new("/d"), &[("/old", "new")])).is_err());
    }

    #[test]
    fn the_map_is_as_postgres_reads_it() {
        let folder = tempfile::tempdir().expect("a directory");
        write_map(folder.path(), &[archive(7, "/o")], &BTreeMap::from([(7, "/a\\b".into())])).expect("written");
        assert_eq!(fs::read(folder.path().join("tablespace_map")).expect("a map"), b"7 /a\\\\b\n");
    }

    #[test]
    fn nothing_is_written_over() {
        let folder = tempfile::tempdir().expect("a directory");
        must_be_empty(folder.path()).expect("it is empty");
        must_be_empty(&folder.path().join("none")).expect("it is missing");
        fs::write(folder.path().join("x"), "").expect("a file");
        assert_eq!(must_be_empty(folder.path()).expect_err("it is not").kind(), Kind::Config);
    }
}
