//! What lies already where a restore goes: nothing, an unfinished restore, or with `--delta` a data directory.
//!
//! ```text
//!   postmaster.pid       this process, while it restores: Postgres does not start, and no other restore begins
//!   tidelog.restoring    until all is done: who finds it may write over what lies here, and over the tablespaces that it names
//! ```
//!
//! The manifest decides what stays: a file with its size and its SHA-256. What it does not name is removed, as it would not be there
//! after a restore into an empty directory. `global/pg_control` goes first and comes last, so that Postgres does not start on
//! what is between.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::manifest::{Expected, Files};
use super::runs::CONTROL;
use super::tablespaces::read_map;
use crate::error::{Error, Kind, Result, ResultExt};
use crate::manifest::backups::Backup;

pub(super) const MARK: &str = "tidelog.restoring";
pub(super) const PID: &str = "postmaster.pid";

/// What the mark says.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Mark {
    /// The places of tablespaces into which the restore writes.
    tablespaces: Vec<PathBuf>,
}

/// What may be written over.
#[derive(Debug, Default)]
pub struct Ground {
    /// Whether something is there.
    pub(super) has_files: bool,
    /// The places of tablespaces that belong to it.
    tablespaces: Vec<PathBuf>,
}

impl Ground {
    /// Looks at a directory into which a backup of `system_id` is to be restored; with `delta` it may be a data directory of that system.
    ///
    /// # Errors
    /// [`Kind::Config`] for one that must not be written to.
    pub fn look(data: &Path, delta: bool, system_id: u64) -> Result<Self> {
        if let Some(pid) = running(data)? {
            let message =
                format!("a server, or another restore, runs on {}: process {pid} by its {PID}", data.display());
            return Err(Error::new(Kind::Config, message).hint(format!(
                "stop it; if that process is another program, and no server runs there, remove {}",
                data.join(PID).display()
            )));
        }
        if let Some(mark) = Mark::read(data)? {
            return Ok(Self { has_files: true, tablespaces: mark.tablespaces });
        }
        match must_be_empty(data) {
            Ok(()) => Ok(Self::default()),
            Err(error) if !data.join("PG_VERSION").is_file() => Err(error),
            Err(error) if !delta => {
                Err(error
                    .hint("it is a data directory: with --delta only what differs from the base backup is fetched"))
            }
            Err(_) => Self::of_data_directory(data, system_id),
        }
    }

    fn of_data_directory(data: &Path, system_id: u64) -> Result<Self> {
        if let Some(found) = system_of(data).filter(|found| *found != system_id) {
            let message = format!("{} is of the system {found}, and the backup of {system_id}", data.display());
            return Err(Error::new(Kind::Config, message).hint("name another directory"));
        }
        let links = fs::read_dir(data.join("pg_tblspc")).into_iter().flatten().flatten();
        let links = links.filter_map(|link| fs::read_link(link.path()).ok());
        let tablespaces = links.chain(read_map(data)).collect();
        Ok(Self { has_files: true, tablespaces })
    }

    /// Whether a tablespace may be written to a place: one that is empty, or that belongs to what is written over.
    pub(super) fn accepts(&self, place: &Path) -> Result<()> {
        if self.tablespaces.iter().any(|known| known == place) { Ok(()) } else { must_be_empty(place) }
    }
}

/// The system that a data directory is of (`ControlFileData` begins with it, pg_control.h).
fn system_of(data: &Path) -> Option<u64> {
    let bytes = fs::read(data.join("global/pg_control")).ok()?;
    bytes.first_chunk().map(|id| u64::from_le_bytes(*id))
}

/// The process by `postmaster.pid`, if there is one. Postgres itself asks the same way (`CreateLockFile`, miscinit.c): one of that
/// number, whatever it is. A server that was killed may have left processes behind, which its shared memory tells.
fn running(data: &Path) -> Result<Option<u32>> {
    let file = data.join(PID);
    let text = match fs::read_to_string(&file) {
        Ok(text) => text,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(Error::io(error, format!("cannot read {}", file.display()))),
    };
    let mut lines = text.lines();
    let pid: Option<i64> = lines.next().and_then(|pid| pid.trim().parse().ok());
    // That of a single-user server is negative.
    let pid = pid.and_then(|pid| u32::try_from(pid.unsigned_abs()).ok()).ok_or_else(|| {
        Error::new(Kind::Config, format!("{} names no process", file.display()))
            .hint("remove it if no server runs there")
    })?;
    let memory = lines.nth(5).and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
    let is_running = (pid != std::process::id() && Path::new(&format!("/proc/{pid}")).exists())
        || memory.is_some_and(|id| is_attached(&fs::read_to_string("/proc/sysvipc/shm").unwrap_or_default(), id));
    Ok(is_running.then_some(pid))
}

/// Returns whether processes are attached to a shared memory segment, by the system's list: key, shmid, perms, size, cpid, lpid, nattch.
fn is_attached(list: &str, id: u64) -> bool {
    list.lines().any(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        columns.get(1) == Some(&id.to_string().as_str()) && columns.get(6).is_some_and(|attached| *attached != "0")
    })
}

impl Mark {
    fn read(data: &Path) -> Result<Option<Self>> {
        let file = data.join(MARK);
        match fs::read(&file) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes).unwrap_or_default())),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
            Err(error) => Err(Error::io(error, format!("cannot read {}", file.display()))),
        }
    }
}

/// A directory that is being restored into.
#[derive(Debug)]
pub(super) struct Restoring {
    data: PathBuf,
}

impl Restoring {
    /// Keeps others from it.
    pub(super) fn begin(data: &Path) -> Result<Self> {
        let pid = data.join(PID);
        let failed = |source| Error::io(source, format!("cannot write {}", pid.display()));
        remove_if_there(&pid)?;
        let mut file = File::options().write(true).create_new(true).open(&pid).map_err(failed)?;
        let restoring = Self { data: data.to_owned() };
        write!(file, "{}\n{}\n", std::process::id(), data.display()).map_err(failed)?;
        Ok(restoring)
    }

    /// Marks it, with the places of its tablespaces: from now on it holds nothing that must not be written over.
    pub(super) fn mark(&self, ground: &Ground, tablespaces: impl Iterator<Item = PathBuf>) -> Result<()> {
        let mark = self.data.join(MARK);
        let said = Mark { tablespaces: tablespaces.chain(ground.tablespaces.iter().cloned()).collect() };
        let json =
            serde_json::to_vec(&said).or_err(Kind::Internal, || "cannot write the mark of a restore".to_owned())?;
        let written = File::create(&mark).and_then(|mut file| {
            file.write_all(&json)?;
            file.sync_all()
        });
        let durable = written.and_then(|()| File::open(&self.data)?.sync_all());
        durable.map_err(|source| Error::io(source, format!("cannot write {}", mark.display())))
    }

    /// The directory is whole: it is marked no more.
    pub(super) fn finish(self) -> Result<()> {
        remove_if_there(&self.data.join(MARK))
    }
}

impl Drop for Restoring {
    fn drop(&mut self) {
        if let Err(error) = remove_if_there(&self.data.join(PID)) {
            tracing::warn!(%error, "Postgres will take this restore for a server that runs there");
        }
    }
}

fn remove_if_there(file: &Path) -> Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io(error, format!("cannot remove {}", file.display())))
        }
        _ => Ok(()),
    }
}

/// Returns whether a restore into a directory was begun that can be gone on with.
pub fn is_begun(data: &Path) -> bool {
    data.join(MARK).exists()
}

/// What is there and not in the manifest.
pub(super) struct Expirable<'a> {
    files: &'a Files,
    removed: Vec<PathBuf>,
    /// Those below come first.
    folders: Vec<PathBuf>,
}

impl<'a> Expirable<'a> {
    /// Looks for it.
    ///
    /// # Errors
    /// [`Kind::Config`] for a link: what lies behind it may be somebody else's.
    pub(super) fn find(
        data: &Path,
        places: &BTreeMap<u32, PathBuf>,
        backup: &Backup,
        files: &'a Files,
    ) -> Result<Self> {
        let mut expirable = Self { files, removed: Vec::new(), folders: Vec::new() };
        expirable.look(data, b"")?;
        for (oid, place) in places {
            // Those of another version of the server, which may lie beside it, are not touched.
            let own = format!("PG_{}_", backup.system.server_version);
            let entries = fs::read_dir(place).into_iter().flatten().flatten();
            for entry in entries.filter(|entry| entry.file_name().as_bytes().starts_with(own.as_bytes())) {
                let name = [format!("pg_tblspc/{oid}/").as_bytes(), entry.file_name().as_bytes()].concat();
                expirable.look(&entry.path(), &[&name[..], b"/"].concat())?;
            }
        }
        Ok(expirable)
    }

    /// Removes it, and the control file. Gives how many files that were.
    pub(super) fn remove(&self, data: &Path) -> Result<u64> {
        remove_if_there(&data.join("global/pg_control"))?;
        self.removed.iter().try_for_each(|file| remove_if_there(file))?;
        for folder in &self.folders {
            fs::remove_dir(folder)
                .map_err(|source| Error::io(source, format!("cannot remove {}", folder.display())))?;
        }
        Ok(self.removed.len() as u64)
    }

    /// Looks through a directory, which `prefix` stands for in the manifest; whether something in it stays.
    fn look(&mut self, folder: &Path, prefix: &[u8]) -> Result<bool> {
        let failed = |source| Error::io(source, format!("cannot look into {}", folder.display()));
        let mut stays = false;
        for entry in fs::read_dir(folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = [prefix, entry.file_name().as_bytes()].concat();
            let kind = entry.file_type().map_err(failed)?;
            if kind.is_dir() {
                let is_kept = prefix.is_empty() && name == b"lost+found";
                if is_kept || self.look(&entry.path(), &[&name[..], b"/"].concat())? {
                    stays = true;
                } else {
                    self.folders.push(entry.path());
                }
            } else if kind.is_symlink() && prefix != b"pg_tblspc/" {
                let message = format!("{} is a link, and what it leads to may be in use", entry.path().display());
                return Err(Error::new(Kind::Config, message)
                    .hint("remove the link, or restore into an empty directory and move the data afterwards"));
            } else if self.files.contains_key(&name) || matches!(&name[..], b"tidelog.restoring" | b"postmaster.pid") {
                stays = true;
            } else {
                self.removed.push(entry.path());
            }
        }
        Ok(stays)
    }
}

/// The files that are whole, and durable: `names` of them stand below `root`, in the manifest below `prefix`.
pub(super) fn whole(root: &Path, prefix: &[u8], names: &[Vec<u8>], files: &Files) -> BTreeSet<Vec<u8>> {
    let is_whole = |name: &&Vec<u8>| {
        let expected = files.get(*name).filter(|_| name.as_slice() != CONTROL);
        let path = name.get(prefix.len()..).map(|below| root.join(std::ffi::OsStr::from_bytes(below)));
        // What cannot be read is fetched.
        expected.zip(path).is_some_and(|(expected, path)| is_as_expected(&path, expected).unwrap_or(false))
    };
    names.iter().filter(is_whole).cloned().collect()
}

fn is_as_expected(path: &Path, expected: &Expected) -> io::Result<bool> {
    let (facts, Some(sha256)) = (fs::symlink_metadata(path)?, &expected.sha256) else { return Ok(false) };
    if !facts.is_file() || facts.len() != expected.size {
        return Ok(false);
    }
    let (mut file, mut hash, mut buffer) = (File::open(path)?, Sha256::new(), vec![0; 256 << 10]);
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            count => hash.update(&buffer[..count]),
        }
    }
    let found: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    if found != *sha256 {
        return Ok(false);
    }
    if expected.size > 0 {
        // A restore that was killed may have written it, and the machine not yet.
        file.sync_all()?;
    }
    Ok(true)
}

/// Refuses a directory in which something is.
///
/// # Errors
/// [`Kind::Config`] for one that is not empty.
fn must_be_empty(folder: &Path) -> Result<()> {
    let failed = |error| Error::io(error, format!("cannot look into {}", folder.display()));
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(failed)?,
    };
    let names = entries.take(2).map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>();
    let refused = |what: &str| Error::new(Kind::Config, format!("{} {what}", folder.display()));
    match &names.map_err(failed)?[..] {
        [] => Ok(()),
        // Postgres wants a directory of its own, too (`warn_on_mount_point`, initdb.c).
        [name] if name == "lost+found" => {
            let below = folder.join("data");
            Err(refused("is the root of a file system: it holds lost+found")
                .hint(format!("name a directory below it: {}", below.display())))
        }
        _ => Err(refused("is not empty").hint(
            "nothing is written over: name an empty directory, or one that does not exist (tablespaces: --tablespace OLD=NEW)",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::restore::plan::tests::backup;
    use crate::stream::sha256;

    fn expected(bytes: &[u8]) -> Expected {
        Expected { size: bytes.len() as u64, sha256: Some(sha256(bytes)), number: 0 }
    }

    fn put(root: &Path, name: &str, bytes: &[u8]) {
        let file = root.join(name);
        fs::create_dir_all(file.parent().expect("a folder")).expect("made");
        fs::write(file, bytes).expect("written");
    }

    #[test]
    fn nothing_is_written_over() {
        let folder = tempfile::tempdir().expect("a directory");
        Ground::look(folder.path(), false, 1).expect("it is empty");
        Ground::look(&folder.path().join("none"), false, 1).expect("it is missing");
        put(folder.path(), "x", b"");
        for delta in [false, true] {
            let refused = Ground::look(folder.path(), delta, 1).expect_err("it is no data directory");
            assert_eq!(refused.kind(), Kind::Config);
        }
        put(folder.path(), "PG_VERSION", b"15");
        let refused = Ground::look(folder.path(), false, 1).expect_err("it is one");
        assert!(refused.hint_text().is_some_and(|hint| hint.contains("--delta")));
        assert!(Ground::look(folder.path(), true, 1).expect("it was asked for").has_files);
        put(folder.path(), "global/pg_control", &7_u64.to_le_bytes());
        Ground::look(folder.path(), true, 7).expect("of this system");
        let other = Ground::look(folder.path(), true, 8).expect_err("of another system").to_string();
        assert!(other.contains("system 7"), "{other}");
    }

    #[test]
    fn a_directory_in_use_is_refused_and_a_mark_lets_one_go_on() {
        let folder = tempfile::tempdir().expect("a directory");
        let data = folder.path();
        let restoring = Restoring::begin(data).expect("begun");
        restoring.mark(&Ground::default(), [PathBuf::from("/fast")].into_iter()).expect("marked");
        let pid = fs::read_to_string(data.join(PID)).expect("a file");
        assert_eq!(pid.lines().next(), Some(&*std::process::id().to_string()));
        drop(restoring);
        assert!(!data.join(PID).exists());
        let ground = Ground::look(data, false, 1).expect("it goes on");
        assert!(ground.has_files);
        ground.accepts(Path::new("/fast")).expect("it wrote there before");
        // That of the process with the number 1 runs always; that of none does not.
        let pids = [("1", true), ("-1", true), ("4194305", false), ("", true), ("x", true)];
        for (pid, is_refused) in pids {
            fs::write(data.join(PID), format!("{pid}\n/data\n")).expect("written");
            assert_eq!(Ground::look(data, true, 1).is_err(), is_refused, "{pid:?}");
        }
        let restoring = Restoring::begin(data).expect("what is stale goes");
        restoring.finish().expect("finished");
        assert_eq!(fs::read_dir(data).expect("a directory").count(), 0);
    }

    #[test]
    fn the_list_of_the_system_tells_who_is_attached() {
        let list = "       key      shmid perms                  size  cpid  lpid nattch   uid\n  1 65537  600 56 100 100 6 0\n  2 65538  600 56 100 100 0 0\n";
        assert!(is_attached(list, 65_537) && !is_attached(list, 65_538) && !is_attached(list, 6));
    }

    #[test]
    fn the_manifest_decides_what_stays() {
        let folder = tempfile::tempdir().expect("a directory");
        let (data, place) = (folder.path().join("data"), folder.path().join("fast"));
        let names = [("PG_VERSION", &b"15"[..]), ("base/1/a", b"aa"), ("base/1/b", b"bb"), ("global/pg_control", b"c")];
        names.iter().for_each(|(name, bytes)| put(&data, name, bytes));
        for other in ["base/1/old", "base/2/old", "tidelog.restored.conf", "pg_wal/1", "lost+found/x"] {
            put(&data, other, b"x");
        }
        put(&place, "PG_15_1/1/a", b"t");
        put(&place, "PG_15_1/1/old", b"t");
        put(&place, "PG_14_1/1/a", b"of another server");
        fs::create_dir(data.join("pg_tblspc")).expect("made");
        std::os::unix::fs::symlink(&place, data.join("pg_tblspc/7")).expect("linked");
        let mut files: Files = names.iter().map(|(name, bytes)| (name.as_bytes().to_vec(), expected(bytes))).collect();
        files.insert(b"pg_tblspc/7/PG_15_1/1/a".to_vec(), expected(b"t"));
        files.insert(b"base/1/b".to_vec(), expected(b"other"));
        let places = BTreeMap::from([(7, place.clone())]);

        let link = data.join("pg_wal/elsewhere");
        std::os::unix::fs::symlink(&place, &link).expect("linked");
        let of = backup("b", 1, 1, 2);
        let refused = Expirable::find(&data, &places, &of, &files).err().expect("a link");
        assert!(refused.to_string().contains("elsewhere") && data.join("base/2/old").exists(), "{refused}");
        fs::remove_file(link).expect("removed");
        let removed = Expirable::find(&data, &places, &of, &files)
            .and_then(|expirable| expirable.remove(&data))
            .expect("removed");
        assert_eq!(removed, 6, "with the link of the tablespace");
        for (gone, stays) in [("base/2", "base/1/a"), ("pg_wal", "base/1/b"), ("global/pg_control", "lost+found/x")] {
            assert!(!data.join(gone).exists() && data.join(stays).exists(), "{gone}, {stays}");
        }
        assert!(place.join("PG_15_1/1/a").exists() && place.join("PG_14_1/1/a").exists());
        assert!(!place.join("PG_15_1/1/old").exists());
        let names: Vec<Vec<u8>> = files.keys().filter(|name| !name.starts_with(b"pg_tblspc")).cloned().collect();
        let kept = whole(&data, b"", &names, &files);
        assert_eq!(kept, [&b"PG_VERSION"[..], b"base/1/a"].map(<[u8]>::to_vec).into());
        put(&data, "global/pg_control", b"c");
        assert_eq!(whole(&data, b"", &names, &files).len(), 2, "the control file is never kept");
    }
}
