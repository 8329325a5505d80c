//! A base backup that builds on others: all of them are unpacked, and `pg_combinebackup` makes one of them.
//!
//! ```text
//!   <data>/tidelog.chain/<name of the full one>/        unpacked and checked as any other, what is whole is kept
//!                       /<name of an incremental>/
//!                       /combined-<process>/            what pg_combinebackup makes
//!          └── moved up, pg_control last; then the folder goes
//!   <tablespace>/tidelog.chain/…                        the same for each tablespace: nothing is moved from one disk to another
//! ```
//!
//! Only a whole chain is combined, and only what came out whole is moved. Whoever finds the folder after a kill goes on: the unpacked
//! backups are read again file by file, what was combined is made again. It takes room for the chain and for the result.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::programs;
use super::runs::CONTROL_FILE;
use crate::error::{Error, Kind, Result};
use crate::escape::one_line;
use crate::manifest::backups::{Archive, Backup};

/// The folder of what is combined, in the data directory and in each tablespace.
pub(super) const CHAIN: &str = "tidelog.chain";

const PROGRAM: &str = "pg_combinebackup";

/// PostgreSQL's own program that combines backups.
#[derive(Debug, Clone)]
pub struct Combiner {
    program: PathBuf,
}

impl Combiner {
    /// Looks for that of a version: in `bin_dir`, or else on `PATH` and where packages have it.
    ///
    /// # Errors
    /// [`Kind::Config`] if there is none.
    pub fn find(bin_dir: Option<&Path>, version: u32) -> Result<Self> {
        let others = match programs::find(PROGRAM, bin_dir, version) {
            Ok(program) => return Ok(Self { program }),
            Err(others) => others,
        };
        let others = if others.is_empty() { String::new() } else { format!(" ({})", others.join("; ")) };
        let message =
            format!("the base backup is incremental, and no {PROGRAM} of PostgreSQL {version} is found{others}");
        Err(Error::new(Kind::Config, message).hint(format!(
            "name the directory of PostgreSQL {version}'s programs with --bin-dir, or a full base backup with --backup"
        )))
    }

    /// Makes one data directory of several, the full one first; gives its warnings.
    fn combine(&self, members: &[PathBuf], output: &Path, tablespaces: &[(PathBuf, PathBuf)]) -> Result<Vec<String>> {
        let mut command = Command::new(&self.program);
        command.env("LC_ALL", "C").arg("--manifest-checksums=SHA256").arg("--output").arg(output);
        for (from, to) in tablespaces {
            let mut mapping = std::ffi::OsString::from("--tablespace-mapping=");
            mapping.extend([escaped(from).as_os_str(), "=".as_ref(), escaped(to).as_os_str()]);
            command.arg(mapping);
        }
        let failed = || format!("cannot run {}", self.program.display());
        let ended = command.args(members).output().map_err(|source| Error::io(source, failed()))?;
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        let lines = said.lines().map(|line| one_line(line.trim()).into_owned()).filter(|line| !line.is_empty());
        if ended.status.success() {
            return Ok(lines.collect());
        }
        let said: Vec<String> = lines.collect();
        let message = format!("{} ended with {}: {}", self.program.display(), ended.status, said.join("; "));
        Err(Error::new(Kind::Unsupported, message).hint(
            "if the disk is full, make room (the chain and the result lie on it) and run the same command again: what is whole is kept; \
             or use a full base backup: --backup NAME",
        ))
    }
}

/// A path as one side of a mapping: `=` separates (`add_tablespace_mapping`, pg_combinebackup.c).
fn escaped(path: &Path) -> PathBuf {
    use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
    let bytes = path.as_os_str().as_bytes().iter();
    let escaped: Vec<u8> = bytes.flat_map(|byte| if *byte == b'=' { vec![b'\\', b'='] } else { vec![*byte] }).collect();
    std::ffi::OsString::from_vec(escaped).into()
}

/// The places of a chain below those of the result.
pub(super) struct Workshop<'a> {
    data: &'a Path,
    /// The tablespaces of the last backup.
    places: &'a BTreeMap<u32, PathBuf>,
}

impl<'a> Workshop<'a> {
    /// In a directory, and the tablespaces, that a restore may write over.
    pub(super) fn new(data: &'a Path, places: &'a BTreeMap<u32, PathBuf>) -> Self {
        Self { data, places }
    }

    /// Returns where a backup is unpacked: the data directory and the tablespaces. One that the last backup does not have, which is not
    /// looked at, and one in place lie below the data directory.
    pub(super) fn member(&self, backup: &Backup) -> (PathBuf, BTreeMap<u32, PathBuf>) {
        let data = self.data.join(CHAIN).join(&backup.name);
        let place = |archive: &Archive| {
            let oid = archive.tablespace.as_ref()?.oid;
            Some((oid, self.places.get(&oid)?.join(CHAIN).join(&backup.name)))
        };
        let places = backup.archives.iter().filter_map(place).collect();
        (data, places)
    }

    /// Removes what lies where the result comes, and what an earlier attempt has combined; the unpacked backups stay.
    pub(super) fn clear(&self, version: u32) -> Result<()> {
        remove(&self.data.join(CONTROL_FILE))?;
        let kept = [CHAIN, super::existing::MARK, super::existing::PID, "lost+found"];
        for entry in entries(self.data)? {
            if !kept.iter().any(|kept| entry.file_name().is_some_and(|name| name == *kept)) {
                remove(&entry)?;
            }
        }
        for place in self.places.values() {
            for entry in entries(place)? {
                if is_of_version(&entry, version) {
                    remove(&entry)?;
                }
            }
        }
        for chain in self.chains() {
            for entry in entries(&chain)? {
                if entry.file_name().is_some_and(|name| name.to_string_lossy().starts_with(COMBINED)) {
                    remove(&entry)?;
                }
            }
        }
        Ok(())
    }

    /// Combines the unpacked backups, and moves the result to where it belongs; gives warnings.
    pub(super) fn combine(&self, combiner: &Combiner, line: &[&Backup]) -> Result<Vec<String>> {
        let Some(last) = line.last() else { return Ok(Vec::new()) };
        let members: Vec<PathBuf> = line.iter().map(|backup| self.member(backup).0).collect();
        for backup in line {
            self.link(backup)?;
        }
        let name = format!("{COMBINED}{}", std::process::id());
        let output = self.data.join(CHAIN).join(&name);
        let place = |place: &PathBuf, name: &str| place.join(CHAIN).join(name);
        let mapped: Vec<(PathBuf, PathBuf)> =
            self.places.values().map(|to| (place(to, &last.name), place(to, &name))).collect();
        let warnings = combiner.combine(&members, &output, &mapped)?;
        for (oid, to) in self.places {
            remove(&output.join("pg_tblspc").join(oid.to_string()))?;
            move_up(&place(to, &name), to)?;
        }
        // Postgres does not start without it.
        let control = self.data.join(CHAIN).join("pg_control");
        rename(&output.join(CONTROL_FILE), &control)?;
        move_up(&output, self.data)?;
        rename(&control, &self.data.join(CONTROL_FILE))?;
        Ok(warnings)
    }

    /// Links the tablespaces of an unpacked backup, as a server has them.
    fn link(&self, backup: &Backup) -> Result<()> {
        let (data, places) = self.member(backup);
        for (oid, place) in &places {
            let link = data.join("pg_tblspc").join(oid.to_string());
            remove(&link)?;
            let linked =
                fs::create_dir_all(data.join("pg_tblspc")).and_then(|()| std::os::unix::fs::symlink(place, &link));
            linked.map_err(|source| Error::io(source, format!("cannot make {}", link.display())))?;
        }
        Ok(())
    }

    /// Removes the folders of the chain.
    pub(super) fn finish(&self) -> Result<()> {
        self.chains().try_for_each(|chain| remove(&chain))
    }

    fn chains(&self) -> impl Iterator<Item = PathBuf> {
        self.places.values().map(PathBuf::as_path).chain([self.data]).map(|place| place.join(CHAIN))
    }
}

/// What `pg_combinebackup` makes; behind it stands the process that started it: one that was killed may have left it running.
const COMBINED: &str = "combined-";

fn is_of_version(entry: &Path, version: u32) -> bool {
    entry.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&format!("PG_{version}_")))
}

/// Returns what lies in a directory; nothing where there is none.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let failed = |source| Error::io(source, format!("cannot look into {}", folder.display()));
    match fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        found => {
            let paths = found.map_err(failed)?.map(|entry| entry.map(|entry| entry.path()));
            paths.collect::<std::io::Result<_>>().map_err(failed)
        }
    }
}

/// Removes a file, a link or a directory, and never what a link leads to.
fn remove(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(facts) if facts.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io(error, format!("cannot remove {}", path.display()))
                .hint("if a pg_combinebackup of an earlier attempt still runs, end it, and run the same command again"))
        }
        _ => Ok(()),
    }
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to)
        .map_err(|source| Error::io(source, format!("cannot move {} to {}", from.display(), to.display())))
}

/// Moves what lies in a directory into another one on the same disk.
fn move_up(from: &Path, into: &Path) -> Result<()> {
    for entry in entries(from)? {
        rename(&entry, &into.join(entry.file_name().unwrap_or_default()))?;
    }
    Ok(())
}
