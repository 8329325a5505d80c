//! Passwords: one that is never shown, and the file in which libpq's users keep theirs.

use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// A text that no log and no error shows.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Secret(String);

impl Secret {
    pub(super) fn new(text: String) -> Self {
        Self(text)
    }

    pub(super) fn reveal(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// Which password is looked for.
pub(super) struct Wanted<'a> {
    /// The host's name; the socket's directory for a Unix socket, `localhost` if that is libpq's default.
    pub(super) host: &'a str,
    pub(super) port: u16,
    /// `replication` for a replication connection, as libpq's tools do it.
    pub(super) database: &'a str,
    pub(super) user: &'a str,
}

/// The password of the first line of `file` that fits (`passwordFromFile` in fe-connect.c).
///
/// As libpq does, a file that others may read is left alone, with a warning; a file that is not there is no mistake.
pub(super) fn from_file(file: &Path, wanted: &Wanted<'_>) -> Option<Secret> {
    let facts = std::fs::metadata(file).ok()?;
    if !facts.is_file() || facts.permissions().mode() & 0o077 != 0 {
        tracing::warn!(file = %file.display(), "the password file is not used: it must be a file that only its owner may read (chmod 0600)");
        return None;
    }
    let text = std::fs::read_to_string(file).ok()?;
    text.lines().filter(|line| !line.starts_with('#')).find_map(|line| from_line(line, wanted))
}

/// `host:port:database:user:password`; `*` fits everything, `\` takes the meaning from `:` and `\`.
fn from_line(line: &str, wanted: &Wanted<'_>) -> Option<Secret> {
    let mut fields = vec![String::new()];
    let mut is_escaped = false;
    for c in line.chars() {
        match (c, is_escaped) {
            ('\\', false) => {
                is_escaped = true;
                continue;
            }
            // The fifth field is the password; it may hold colons.
            (':', false) if fields.len() < 5 => fields.push(String::new()),
            (c, _) => fields.last_mut()?.push(c),
        }
        is_escaped = false;
    }
    let [host, port, database, user, password] = fields.try_into().ok()?;
    let fits = |field: &str, value: &str| field == "*" || field == value;
    let all = fits(&host, wanted.host)
        && fits(&port, &wanted.port.to_string())
        && fits(&database, wanted.database)
        && fits(&user, wanted.user);
    all.then(|| Secret::new(password))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTED: Wanted<'_> = Wanted { host: "h", port: 5432, database: "replication", user: "u" };

    #[test]
    fn the_first_line_that_fits_counts() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let text = "# comment\nother:*:*:*:no\nh:5432:postgres:u:no\nh:*:replication:u:p\\:a\\\\s:s\n*:*:*:*:later\n";
        std::fs::write(file.path(), text).expect("it can be written");
        let found = from_file(file.path(), &WANTED).expect("a line fits");
        assert_eq!(found.reveal(), b"p:a\\s:s");
        assert_eq!(format!("{found:?}"), "…");
        let other = Wanted { host: "x", ..WANTED };
        assert_eq!(from_file(file.path(), &other).expect("the last line fits").reveal(), b"later");
    }

    #[test]
    fn a_file_that_others_may_read_is_not_used() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "*:*:*:*:p\n").expect("it can be written");
        assert!(from_file(file.path(), &WANTED).is_some());
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o644)).expect("its rights can be set");
        assert!(from_file(file.path(), &WANTED).is_none());
        assert!(from_file(Path::new("/nowhere"), &WANTED).is_none());
        assert!(from_line("h:5432:replication:u", &WANTED).is_none(), "a line without a password");
    }
}
