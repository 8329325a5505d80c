//! Whether an incremental base backup and all that it builds on have room where they go, before anything is read.
//!
//! ```text
//!   unpacked   the full one, the incremental ones       as many bytes as `backup.json` says
//!   combined   what pg_combinebackup makes of them      as much as the last one at the least, about as much as the full one
//! ```
//!
//! Both lie there at a time (see `restore::combine`). What an earlier attempt has left is used or removed, so it counts as free.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::cli::human;
use crate::error::{Error, Kind, Result};
use crate::manifest::backups::{Archive, Backup};
use crate::restore::plan::Plan;
use crate::restore::postgres::Places;
use crate::restore::room::{compresses, existing, free};
use crate::stream::total;

/// What a restore takes of one disk.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Disk {
    /// A place on it to which it goes.
    place: PathBuf,
    /// All backups, unpacked.
    chain: u64,
    /// What is made of them takes this at the least …
    least: u64,
    /// … and about this.
    likely: u64,
    free: u64,
    /// What lies on it may take less than it is long.
    compresses: bool,
}

impl Disk {
    /// Returns what is to be known of it before it is filled.
    ///
    /// # Errors
    /// [`Kind::Full`] if it cannot hold what comes.
    pub(super) fn check(&self) -> Result<String> {
        let takes = format!(
            "{}: restoring takes {} for the base backups and about {} for what is made of them, and {} are free",
            self.place.display(),
            human::bytes(self.chain),
            human::bytes(self.likely),
            human::bytes(self.free)
        );
        if self.chain.saturating_add(self.least) > self.free && !self.compresses {
            return Err(Error::new(Kind::Full, takes).hint(
                "make room there, name another place with --into or --tablespace, or a full base backup, which takes its own size only: \
                 --backup NAME (`tidelog restore-postgres --list`)",
            ));
        }
        if self.chain.saturating_add(self.likely) > self.free {
            return Ok(format!(
                "{takes}: it may not be enough. If the disk is full at the end, the same command goes on with what is unpacked once there is room"
            ));
        }
        Ok(takes)
    }
}

/// The disks that a restore fills; none where there is nothing to combine.
pub(super) fn disks(plan: &Plan, data: &Path, tablespaces: &Places) -> Result<Vec<Disk>> {
    let Some(full) = plan.parents.first() else { return Ok(Vec::new()) };
    let places = tablespaces.of(&plan.backup.archives, data)?;
    let oid = |archive: &Archive| archive.tablespace.as_ref().map(|tablespace| tablespace.oid);
    let place_of = |archive: &Archive| oid(archive).and_then(|oid| places.get(&oid)).map_or(data, PathBuf::as_path);
    let size = |archive: &Archive| total(archive.parts.iter().map(|part| part.bytes));
    let size_in =
        |backup: &Backup, of: Option<u32>| backup.archives.iter().find(|archive| oid(archive) == of).map_or(0, &size);
    let mut disks: BTreeMap<u64, Disk> = BTreeMap::new();
    for place in places.values().map(PathBuf::as_path).chain([data]) {
        let there = existing(place);
        let failed = |source| Error::io(source, format!("cannot look at {}", there.display()));
        let device = fs::metadata(there).map_err(failed)?.dev();
        let disk = match disks.entry(device) {
            std::collections::btree_map::Entry::Occupied(disk) => disk.into_mut(),
            std::collections::btree_map::Entry::Vacant(disk) => disk.insert(Disk {
                place: place.to_owned(),
                free: free(there).map_err(failed)?,
                compresses: compresses(there).map_err(failed)?,
                ..Disk::default()
            }),
        };
        disk.free = disk.free.saturating_add(taken(place));
        let unpacked = plan.backups().flat_map(|backup| &backup.archives).filter(|archive| place_of(archive) == place);
        disk.chain = total([disk.chain, total(unpacked.map(&size))]);
        for archive in plan.backup.archives.iter().filter(|archive| place_of(archive) == place) {
            disk.least = total([disk.least, size(archive)]);
            disk.likely = total([disk.likely, size(archive).max(size_in(full, oid(archive)))]);
        }
    }
    Ok(disks.into_values().collect())
}

/// The bytes that lie in a directory.
fn taken(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(facts) if facts.is_dir() => taken(&entry.path()),
        // Blocks of 512 bytes, whatever those of the disk are.
        Ok(facts) => facts.blocks().saturating_mul(512),
        Err(_) => 0,
    });
    total(sizes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_fit_is_refused_and_what_may_not_is_told() {
        let disk = |free| Disk { place: "/data".into(), chain: 700, least: 100, likely: 600, free, compresses: false };
        let refused = disk(799).check().expect_err("too little for any result");
        assert_eq!((refused.kind(), refused.exit_code()), (Kind::Full, 1));
        assert!(refused.to_string().contains("700 B for the base backups and about 600 B"), "{refused}");
        for (free, doubtful) in [(800, true), (1_299, true), (1_300, false)] {
            let told = disk(free).check().expect("it may fit");
            assert_eq!(told.contains("may not be enough"), doubtful, "{told}");
        }
        let told = Disk { compresses: true, ..disk(1) }.check().expect("nobody knows");
        assert!(told.contains("may not be enough"), "{told}");
    }

    #[test]
    fn what_is_there_of_an_earlier_attempt_counts_as_free() {
        let folder = tempfile::tempdir().expect("a directory");
        let below = folder.path().join("a/b");
        assert_eq!(existing(&below.join("c")), folder.path());
        assert_eq!(taken(&below), 0);
        fs::create_dir_all(&below).expect("made");
        fs::write(below.join("file"), vec![1; 100_000]).expect("written");
        std::os::unix::fs::symlink("/", below.join("link")).expect("linked");
        assert!((100_000..200_000).contains(&taken(folder.path())), "{}", taken(folder.path()));
        assert!(free(folder.path()).expect("known") > 0);
        compresses(folder.path()).expect("known");
    }
}
