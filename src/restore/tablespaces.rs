//! Where tablespaces go: below a place that was named, or nowhere.
//!
//! A base backup names the places of its tablespaces, and the log those of later ones. Both are what the archive says, and beside the
//! server that it comes from they are that server's own directories. So nothing is written there unless it was asked for.
//!
//! A tablespace in place, a developer's, has no place outside: it is a directory of `pg_tblspc` where others are links, and goes with the
//! data directory. Postgres ends a recovery that comes upon one unless `allow_in_place_tablespaces` is set
//! (`CheckTablespaceDirectory`, xlogrecovery.c).

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::foresight::Foreseen;
use crate::error::{Error, Kind, Result};
use crate::escape::one_line;
use crate::manifest::backups::{Archive, Tablespace};

/// What was asked for.
#[derive(Debug, Clone, Default)]
pub struct Places {
    /// Other places, by the places on the server.
    pub moved: BTreeMap<PathBuf, PathBuf>,
    /// Whether the others go where they were on the server.
    pub old_too: bool,
}

/// The option that accepts the places of the server.
const OLD_TOO: &str = "--tablespaces-at-old-places";

impl Places {
    /// Where each tablespace of a backup goes, but for those in place.
    ///
    /// # Errors
    /// [`Kind::Config`] for a place that was not named, or cannot be one.
    pub fn of(&self, archives: &[Archive], data: &Path) -> Result<BTreeMap<u32, PathBuf>> {
        let tablespaces: Vec<&Tablespace> = archives.iter().filter_map(|archive| archive.tablespace.as_ref()).collect();
        let tablespaces: Vec<&Tablespace> = tablespaces.into_iter().filter(|one| !one.is_in_place()).collect();
        self.check_options(&tablespaces)?;
        let mut places: BTreeMap<u32, PathBuf> = BTreeMap::new();
        let mut unnamed = Vec::new();
        for tablespace in tablespaces {
            let old = PathBuf::from(&tablespace.path);
            let place = match self.moved.get(&old) {
                Some(new) => new.clone(),
                None if self.old_too => old,
                None => {
                    unnamed.push(format!("--tablespace {}=NEW", shown(&old)));
                    continue;
                }
            };
            must_be_outside(&place, data)?;
            if let Some(other) = places.values().find(|other| place.starts_with(other) || other.starts_with(&place)) {
                let message = format!("two tablespaces cannot share {} and {}", shown(other), shown(&place));
                return Err(Error::new(Kind::Config, message).hint("give each one a directory of its own"));
            }
            places.insert(tablespace.oid, place);
        }
        if unnamed.is_empty() {
            return Ok(places);
        }
        let message =
            "the backup has tablespaces outside of the data directory, and their places there may be the server's own";
        let hint =
            format!("name new ones: {}; or, where the server is not on this machine, {OLD_TOO}", unnamed.join(" "));
        Err(Error::new(Kind::Config, message).hint(hint))
    }

    fn check_options(&self, tablespaces: &[&Tablespace]) -> Result<()> {
        for (old, new) in &self.moved {
            if !tablespaces.iter().any(|tablespace| Path::new(&tablespace.path) == old) {
                let known: Vec<_> = tablespaces.iter().map(|tablespace| one_line(&tablespace.path)).collect();
                let message =
                    format!("--tablespace {}={}: the backup has no tablespace there", old.display(), new.display());
                return Err(Error::new(Kind::Config, message).hint(match known[..] {
                    [] => "it has none at all; leave the option out".to_owned(),
                    _ => format!("its tablespaces are {}", known.join(", ")),
                }));
            }
        }
        Ok(())
    }

    /// Where the recovery will make tablespaces.
    ///
    /// # Errors
    /// [`Kind::Config`] unless that was asked for: Postgres takes their places from the log, and none can be moved.
    pub(super) fn made_later(&self, foreseen: &Foreseen, data: &Path) -> Result<Vec<PathBuf>> {
        let places: Vec<PathBuf> = foreseen.tablespaces.values().cloned().collect();
        let named: Vec<String> = places.iter().map(|place| shown(place)).collect();
        if !places.is_empty() && !self.old_too {
            let message = format!(
                "after the base backup tablespaces were made at {}: the recovery would empty these directories and write there",
                named.join(", ")
            );
            return Err(Error::new(Kind::Config, message).hint(format!(
                "choose a target before that, or a base backup that was taken after it; where the server is not on this machine, {OLD_TOO}"
            )));
        }
        places.iter().try_for_each(|place| must_be_outside(place, data))?;
        Ok(places)
    }
}

/// A place as a line of output shows it: the backup and the log say what it is called.
fn shown(place: &Path) -> String {
    one_line(&place.to_string_lossy()).into_owned()
}

fn must_be_outside(place: &Path, data: &Path) -> Result<()> {
    let wrong = |what: &str| {
        Err(Error::new(Kind::Config, format!("a tablespace cannot be at {}, {what}", shown(place)))
            .hint("name another place with --tablespace OLD=NEW"))
    };
    if !place.is_absolute() || place.components().any(|part| part == std::path::Component::ParentDir) {
        return wrong("which is no absolute path");
    }
    if place.starts_with(data) || data.starts_with(place) {
        return wrong("which is within the data directory, or around it");
    }
    Ok(())
}

/// Where a tablespace without a place of its own lies.
pub(super) fn within(data: &Path, oid: u32) -> PathBuf {
    data.join("pg_tblspc").join(oid.to_string())
}

/// Returns whether a restored directory has tablespaces in place, before Postgres has made its links.
pub(super) fn has_in_place(data: &Path) -> bool {
    let mut entries = fs::read_dir(data.join("pg_tblspc")).into_iter().flatten().flatten();
    entries.any(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
}

/// Writes where tablespaces are: Postgres makes its links from this file as it starts (`read_tablespace_map`,
/// xlogrecovery.c), in which a backslash stands before a newline and a backslash. That of the backup has the server's places.
pub(super) fn write_map(data: &Path, places: &BTreeMap<u32, PathBuf>) -> Result<()> {
    let file = data.join("tablespace_map");
    let failed = |source| Error::io(source, format!("cannot write {}", file.display()));
    if places.is_empty() {
        return match fs::remove_file(&file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed(error)),
            _ => Ok(()),
        };
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
    fs::write(&file, map).and_then(|()| fs::File::open(&file)?.sync_all()).map_err(failed)
}

/// The places that a map names; none without one. Postgres removes it as it starts, and a restore that was not started has no links.
pub(super) fn read_map(data: &Path) -> Vec<PathBuf> {
    let (mut places, mut line, mut is_escaped) = (Vec::new(), Vec::new(), false);
    for byte in fs::read(data.join("tablespace_map")).unwrap_or_default() {
        match byte {
            b'\n' if !is_escaped => {
                let place = line.iter().position(|byte| *byte == b' ').map(|space| &line[space + 1..]);
                places.extend(place.map(|place| PathBuf::from(std::ffi::OsStr::from_bytes(place))));
                line.clear();
            }
            b'\\' if !is_escaped => {
                is_escaped = true;
                continue;
            }
            byte => line.push(byte),
        }
        is_escaped = false;
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(moved: &[(&str, &str)], old_too: bool) -> Places {
        Places { moved: moved.iter().map(|(old, new)| (old.into(), new.into())).collect(), old_too }
    }

    fn archive(oid: u32, path: &str) -> Archive {
        let tablespace = Some(Tablespace { oid, path: path.into() });
        Archive { name: format!("{oid}.tar"), tablespace, parts: vec![], places: vec![], empty: vec![] }
    }

    fn refused(asked: &Places, archives: &[Archive]) -> String {
        let error = asked.of(archives, Path::new("/d/data")).expect_err("it is refused");
        assert_eq!(error.kind(), Kind::Config);
        format!("{error} {}", error.hint_text().unwrap_or_default())
    }

    #[test]
    fn tablespaces_go_where_they_are_told_and_nowhere_else() {
        let archives = [archive(1, "/old"), archive(2, "/kept")];
        let places = asked(&[("/old", "/new")], true).of(&archives, Path::new("/d/data")).expect("they are known");
        assert_eq!(places, BTreeMap::from([(1, "/new".into()), (2, "/kept".into())]));
        assert!(refused(&asked(&[("/old", "/new")], false), &archives).contains("--tablespace /kept=NEW; or"));
        assert!(refused(&asked(&[("/x", "/new")], true), &archives).contains("/old, /kept"));
        for place in ["new", "/a/../d/data/x", "/d/data/x", "/d", "/", "/kept/below"] {
            refused(&asked(&[("/old", place)], true), &archives);
        }
        for place in ["relative", "", "/d/data/base", "../up", "pg_tblspc/2", "pg_tblspc/01", "pg_tblspc/1/.."] {
            refused(&asked(&[], true), &[archive(1, place)]);
        }
    }

    #[test]
    fn a_tablespace_in_place_needs_no_name_and_takes_none() {
        let archives = [archive(1, "pg_tblspc/1"), archive(2, "/old")];
        let places = asked(&[("/old", "/new")], false).of(&archives, Path::new("/d/data")).expect("they are known");
        assert_eq!(places, BTreeMap::from([(2, "/new".into())]));
        assert!(refused(&asked(&[("pg_tblspc/1", "/new")], true), &archives).contains("no tablespace there"));
    }

    #[test]
    fn a_tablespace_that_the_log_makes_is_refused_unless_it_was_asked_for() {
        let foreseen = |path: &str| Foreseen { tablespaces: [(7, path.into())].into(), ..Foreseen::default() };
        let data = Path::new("/d/data");
        let error = asked(&[], false).made_later(&foreseen("/fast"), data).expect_err("it is refused");
        assert!(error.to_string().contains("/fast"), "{error}");
        let forged = asked(&[], false).made_later(&foreseen("/a\nerror: forged\u{1b}[2J"), data).expect_err("refused");
        assert!(!forged.to_string().contains(['\n', '\u{1b}']), "{forged}");
        assert_eq!(asked(&[], true).made_later(&foreseen("/fast"), data).expect("asked for"), [Path::new("/fast")]);
        assert!(asked(&[], true).made_later(&foreseen("/d/data/base"), data).is_err());
        assert!(asked(&[], false).made_later(&Foreseen::default(), data).expect("none").is_empty());
    }

    #[test]
    fn the_map_is_as_postgres_reads_it_and_that_of_the_server_is_gone() {
        let folder = tempfile::tempdir().expect("a directory");
        let file = folder.path().join("tablespace_map");
        let places = BTreeMap::from([(7, PathBuf::from("/a\\b")), (8, "/line\nbreak".into())]);
        write_map(folder.path(), &places).expect("written");
        assert_eq!(fs::read(&file).expect("a map"), b"7 /a\\\\b\n8 /line\\\nbreak\n");
        assert_eq!(read_map(folder.path()), places.into_values().collect::<Vec<_>>());
        write_map(folder.path(), &BTreeMap::new()).expect("removed");
        assert!(!file.exists() && read_map(folder.path()).is_empty());
        write_map(folder.path(), &BTreeMap::new()).expect("nothing to remove");
    }
}
