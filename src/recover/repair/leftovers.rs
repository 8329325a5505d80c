//! What a repair has made on this machine, taken away again: that alone, for the directories may have been there before it.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use crate::error::{Error, Kind, Result};

/// The journal, which goes last: until then the same command goes on.
const JOURNAL: &str = "journal.json";
/// The lock of the folder, which has no content.
const LOCK: &str = "lock";
/// What else a repair and its server write into the folder.
const FILES: [&str; 5] = ["journal.new", "server.log", "postgresql.conf", "pg_hba.conf", "pg_ident.conf"];
/// The directory of the server's socket.
const SOCKET: &str = "socket";
/// The directory of the rows that were read at the marker.
const ROWS: &str = "rows";
/// How the names of the files in it begin.
const SOCKETS: &str = ".s.PGSQL.";
/// What a file system has at its root.
const LOST_AND_FOUND: &str = "lost+found";

/// The directory of the rows that were read at the marker.
pub(super) fn rows_of(folder: &Path) -> PathBuf {
    folder.join(ROWS)
}

/// Refuses a folder in which somebody else has something: the files of the scratch server would be written among it.
///
/// # Errors
/// [`Kind::Config`] with the first name that is none of a repair's.
pub(super) fn is_for_a_journal(folder: &Path) -> Result<()> {
    let is_own = |name: &OsStr| {
        let own = [JOURNAL, LOCK, SOCKET, ROWS, LOST_AND_FOUND];
        name.to_str().is_some_and(|name| own.contains(&name) || FILES.contains(&name))
    };
    let failed = |source| Error::io(source, format!("cannot look into {}", folder.display()));
    match names(folder).map_err(failed)?.into_iter().find(|path| !path.file_name().is_some_and(is_own)) {
        None => Ok(()),
        Some(other) => Err(Error::new(Kind::Config, format!("the journal would lie beside {}", other.display()))
            .hint("name a directory of its own with --journal, or none")),
    }
}

/// Removes what a repair has written into its folder, the journal last, and the folder if nothing else is in it.
///
/// # Errors
/// A journal that cannot be removed: the same command would go on with it one day.
pub(super) fn clear_folder(folder: &Path) -> Result<()> {
    let socket = folder.join(SOCKET);
    let is_socket =
        |path: &PathBuf| path.file_name().and_then(OsStr::to_str).is_some_and(|name| name.starts_with(SOCKETS));
    for path in names(&socket).unwrap_or_default().iter().filter(|path| is_socket(path)) {
        drop(fs::remove_file(path));
    }
    drop(fs::remove_dir(&socket));
    drop(fs::remove_dir_all(rows_of(folder)));
    FILES.iter().for_each(|name| drop(fs::remove_file(folder.join(name))));
    let journal = folder.join(JOURNAL);
    gone(fs::remove_file(&journal))
        .map_err(|source| Error::io(source, format!("cannot remove {}", journal.display())))?;
    drop(fs::remove_file(folder.join(LOCK)));
    drop(fs::remove_dir(folder));
    Ok(())
}

/// Empties a directory, and removes it where that may be: one to which a file system is mounted stays.
///
/// # Errors
/// Something in it that cannot be removed.
pub(super) fn remove_data(directory: &Path) -> Result<()> {
    let failed = |source| Error::io(source, format!("cannot remove {}", directory.display()));
    for path in names(directory).map_err(failed)? {
        if path.file_name() == Some(OsStr::new(LOST_AND_FOUND)) {
            continue;
        }
        let is_directory = fs::symlink_metadata(&path).is_ok_and(|found| found.is_dir());
        gone(if is_directory { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }).map_err(failed)?;
    }
    drop(fs::remove_dir(directory));
    Ok(())
}

/// What is in a directory; nothing in one that is not there.
fn names(directory: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(directory) {
        Ok(entries) => entries.map(|entry| entry.map(|entry| entry.path())).collect(),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_repair_has_made_goes_and_a_directory_with_more_stays() {
        let place = tempfile::tempdir().expect("a directory");
        let folder = place.path().join("own");
        let fill = || {
            fs::create_dir_all(folder.join(SOCKET)).expect("made");
            fs::create_dir_all(rows_of(&folder)).expect("made");
            fs::write(rows_of(&folder).join("0.keys"), "").expect("written");
            FILES.iter().chain(&[JOURNAL, LOCK]).for_each(|name| fs::write(folder.join(name), "").expect("written"));
            fs::write(folder.join(SOCKET).join(".s.PGSQL.5499.lock"), "").expect("written");
        };
        assert!(is_for_a_journal(&folder).is_ok(), "it is not there yet");
        fill();
        assert!(is_for_a_journal(&folder).is_ok());
        clear_folder(&folder).expect("cleared");
        assert!(!folder.exists());
        fill();
        fs::create_dir(folder.join("photos")).expect("made");
        fs::write(folder.join("photos/one"), "").expect("written");
        assert_eq!(is_for_a_journal(&folder).expect_err("it has more").kind(), Kind::Config);
        clear_folder(&folder).expect("cleared");
        assert_eq!(names(&folder).expect("read"), [folder.join("photos")]);
        assert!(folder.join("photos/one").exists());
    }

    #[test]
    fn a_data_directory_is_emptied_and_what_its_file_system_has_stays() {
        let place = tempfile::tempdir().expect("a directory");
        let data = place.path().join("scratch");
        let fill = || {
            fs::create_dir_all(data.join("base/1")).expect("made");
            fs::write(data.join("base/1/1259"), "").expect("written");
            fs::write(data.join("PG_VERSION"), "17").expect("written");
        };
        remove_data(&data).expect("nothing is there");
        fill();
        remove_data(&data).expect("removed");
        assert!(!data.exists());
        fill();
        fs::create_dir(data.join(LOST_AND_FOUND)).expect("made");
        remove_data(&data).expect("it cannot be removed, and is empty");
        assert_eq!(names(&data).expect("read"), [data.join(LOST_AND_FOUND)]);
    }
}
