//! What the configuration in a base backup says: of the server that it was taken from, to be judged before another one runs by it.
//!
//! ```text
//!   postgresql.conf ─► include, include_if_exists, include_dir ─► … ─► postgresql.auto.conf      the last one of a name counts
//! ```
//!
//! The syntax is that of `guc-file.l`: a name, perhaps `=`, a value, perhaps a comment. What cannot be understood is passed over:
//! Postgres itself will refuse it. Files outside of the data directory are read where they are there: Postgres reads them, too.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

/// Includes nest no deeper (`CONF_FILE_MAX_DEPTH`, conffiles.h).
const DEPTH: usize = 10;

/// A longer file is no configuration, and no more files are read, whatever they include: what includes itself twice would never end.
const MOST_BYTES: u64 = 4 << 20;
const MOST_FILES: usize = 1_000;

/// The setting that wins over `-D`.
pub(super) const DATA_DIRECTORY: &str = "data_directory";

/// Settings that name files which are only read, or places that are kept as they are.
const NAMED: [&str; 11] = [
    "hba_file",
    "ident_file",
    "ssl_cert_file",
    "ssl_key_file",
    "ssl_ca_file",
    "ssl_crl_file",
    "ssl_crl_dir",
    "ssl_dh_params_file",
    "krb_server_keyfile",
    "ssl_passphrase_command",
    "unix_socket_directories",
];

/// The settings in force, and where they come from.
#[derive(Debug, Default)]
pub(super) struct Inherited {
    values: BTreeMap<String, String>,
    /// Whether the data directory has a `postgresql.conf`: Debian's lies elsewhere.
    pub(super) has_main: bool,
    /// Files outside of the data directory that are included.
    outside: BTreeSet<PathBuf>,
    /// How many files were read.
    files: usize,
    /// Files that set `data_directory`.
    pub(super) with_data_directory: BTreeSet<PathBuf>,
}

impl Inherited {
    /// Reads the configuration of a data directory.
    pub(super) fn read(data: &Path) -> Self {
        let mut found = Self { has_main: data.join("postgresql.conf").exists(), ..Self::default() };
        for name in ["postgresql.conf", "postgresql.auto.conf"] {
            found.file(data, &data.join(name), 0);
        }
        found
    }

    /// The value of a setting; none where it is the default.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    /// The setting's value if it is a path that leads out of the data directory.
    pub(super) fn outside(&self, name: &str) -> Option<&str> {
        self.get(name).filter(|value| leads_out(Path::new(value)))
    }

    /// Returns what is kept of it, and an operator should know of.
    pub(super) fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        for file in &self.outside {
            let shown = file.display();
            let missing = if file.exists() { "" } else { ", which is not on this machine" };
            notes.push(format!("its configuration includes {shown}{missing}"));
        }
        let named = NAMED.iter().filter_map(|name| Some((name, self.outside(name)?)));
        for (name, value) in named {
            let is_file = name.ends_with("file") || name.ends_with("dir");
            let missing = if is_file && !Path::new(value).exists() { ", which is not on this machine" } else { "" };
            notes.push(format!("{name} is kept: {value}{missing}"));
        }
        if let Some(port) = self.get("port") {
            notes.push(format!(
                "port is kept: {port}; beside the server that it comes from start it with -o '-p ANOTHER'"
            ));
        }
        if let Some(libraries) = self.get("shared_preload_libraries").filter(|value| !value.is_empty()) {
            notes.push(format!("shared_preload_libraries is kept, and what they start runs here, too: {libraries}"));
        }
        notes
    }

    fn file(&mut self, data: &Path, file: &Path, depth: usize) {
        let Some(bytes) = self.content(file) else { return };
        for line in String::from_utf8_lossy(&bytes).lines() {
            let Some((name, value)) = setting(line) else { continue };
            let place = || file.parent().unwrap_or(data).join(&value);
            match name.as_str() {
                "include" | "include_if_exists" => self.include(data, &place(), depth + 1),
                "include_dir" => {
                    self.note_outside(data, &place());
                    let entries = fs::read_dir(place()).into_iter().flatten().flatten();
                    let mut files: Vec<PathBuf> =
                        entries.map(|entry| entry.path()).filter(|path| is_read(path)).collect();
                    files.sort();
                    files.iter().for_each(|file| self.include(data, file, depth + 1));
                }
                _ => {
                    if name == DATA_DIRECTORY {
                        self.with_data_directory.insert(file.to_owned());
                    }
                    self.values.insert(name, value);
                }
            }
        }
    }

    /// Returns what a file holds. A pipe or a device that a hostile backup names would be read for ever.
    fn content(&mut self, file: &Path) -> Option<Vec<u8>> {
        self.files += 1;
        let facts = fs::metadata(file).ok().filter(|facts| facts.is_file() && facts.len() <= MOST_BYTES);
        if self.files > MOST_FILES { None } else { facts.and_then(|_| fs::read(file).ok()) }
    }

    fn include(&mut self, data: &Path, file: &Path, depth: usize) {
        self.note_outside(data, file);
        if depth < DEPTH {
            self.file(data, file, depth);
        }
    }

    fn note_outside(&mut self, data: &Path, path: &Path) {
        if !is_within(data, path) {
            self.outside.insert(path.to_owned());
        }
    }
}

/// Returns which files of a folder count (`GetConfFilesInDir`, conffiles.c).
fn is_read(path: &Path) -> bool {
    path.file_name()
        .and_then(|name| name.to_str())
        .is_some_and(|name| !name.starts_with('.') && name.ends_with(".conf") && name.len() > ".conf".len())
}

pub(super) fn is_within(data: &Path, path: &Path) -> bool {
    path.strip_prefix(data).is_ok_and(|below| !leads_out(below))
}

fn leads_out(path: &Path) -> bool {
    path.components().any(|part| !matches!(part, Component::Normal(_) | Component::CurDir))
}

/// The name, in lower case, and the value that a line sets.
pub(super) fn setting(line: &str) -> Option<(String, String)> {
    let line = line.trim_start();
    let end = line.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '$'))).unwrap_or(line.len());
    let (name, rest) = line.split_at(end);
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let rest = rest.trim_start();
    let rest = rest.strip_prefix('=').unwrap_or(rest).trim_start();
    let value = match rest.strip_prefix('\'') {
        Some(quoted) => unquoted(quoted)?,
        None => rest.split(|c: char| c.is_whitespace() || c == '#').next().unwrap_or_default().to_owned(),
    };
    Some((name.to_ascii_lowercase(), value))
}

/// A quoted value, up to its end: `''` is a quote, and so is one behind a backslash.
fn unquoted(text: &str) -> Option<String> {
    let mut value = String::new();
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '\'' if rest.peek() == Some(&'\'') => value.extend(rest.next()),
            '\'' => return Some(value),
            '\\' => match rest.next()? {
                'n' => value.push('\n'),
                't' => value.push('\t'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(data: &Path, name: &str, text: &str) {
        let file = data.join(name);
        fs::create_dir_all(file.parent().expect("a folder")).expect("a folder");
        fs::write(file, text).expect("written");
    }

    #[test]
    fn a_line_is_read_as_postgres_reads_it() {
        let of = |line: &str| setting(line).map(|(_, value)| value);
        assert_eq!(of("Port = 5433 # beside").as_deref(), Some("5433"));
        assert_eq!(setting("  Port 5433").expect("a setting"), ("port".to_owned(), "5433".to_owned()));
        assert_eq!(of("a = 'it''s \\'here\\' # no comment' # one").as_deref(), Some("it's 'here' # no comment"));
        assert_eq!(of("cron.database_name='x'").as_deref(), Some("x"));
        for none in ["", "  # port = 1", "= 1", "1a = 2", "a = 'open"] {
            assert_eq!(of(none), None, "{none}");
        }
    }

    #[test]
    fn the_last_setting_counts_over_includes_of_every_kind() {
        let folder = tempfile::tempdir().expect("a directory");
        let data = folder.path().join("data");
        written(
            &data,
            "postgresql.conf",
            "port = 1\ninclude 'more/one.conf'\ninclude_dir 'conf.d'\ninclude_if_exists '/nowhere.conf'\n",
        );
        written(&data, "more/one.conf", "work_mem = 1\nlog_directory = '../logs'\ninclude 'two.conf'\n");
        written(&data, "more/two.conf", "work_mem = 2\n");
        written(&data, "conf.d/b.conf", "port = 3\n");
        written(&data, "conf.d/a.conf", "port = 2\nssl_key_file = '/etc/none.key'\n");
        written(&data, "conf.d/.hidden.conf", "port = 9\n");
        written(&data, "postgresql.auto.conf", "hba_file = 'pg_hba.conf'\ninclude 'postgresql.auto.conf'\n");
        let found = Inherited::read(&data);
        assert_eq!((found.get("port"), found.get("work_mem"), found.has_main), (Some("3"), Some("2"), true));
        assert_eq!((found.outside("log_directory"), found.outside("hba_file")), (Some("../logs"), None));
        let notes = found.notes().join("\n");
        for part in
            ["includes /nowhere.conf, which is not", "ssl_key_file is kept: /etc/none.key, which", "port is kept: 3"]
        {
            assert!(notes.contains(part), "{part}: {notes}");
        }
        assert!(!notes.contains("hba_file"), "{notes}");
    }

    #[test]
    fn what_includes_itself_or_a_device_comes_to_an_end() {
        let folder = tempfile::tempdir().expect("a directory");
        let many = "include 'postgresql.conf'\n".repeat(100);
        written(folder.path(), "postgresql.conf", &format!("include '/dev/zero'\nport = 1\n{many}"));
        let found = Inherited::read(folder.path());
        assert_eq!(found.get("port"), Some("1"));
    }

    proptest! {
        #[test]
        fn no_line_makes_it_panic(line in "\\PC*") {
            drop(setting(&line));
        }
    }
}
