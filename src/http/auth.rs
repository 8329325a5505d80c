//! Who may change something, and who may see what records hold: whoever knows the token for it.
//!
//! The token is the content of a file that only its user and group can reach. It is read again for each call that needs it, so
//! that a token can be exchanged while the process runs. It is compared by its SHA-256, whose comparison tells nothing
//! about the token by the time that it takes.
//!
//! It comes as a bearer token (RFC 6750). Clients of Kafka Connect know only Basic authentication (RFC 7617), so it is also
//! taken as a password, whatever the user's name.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use super::refusal::refusal;
use crate::error::{Error, Kind, Result};

/// The key of the token of changing calls.
pub(super) const ADMIN: &str = "http.admin_token_file";

/// The key of the token with which records are shown.
pub(super) const READER: &str = "http.reader_token_file";

/// A shorter token could be guessed.
const LEAST_BYTES: usize = 16;

/// A longer file is no token.
const MOST_BYTES: u64 = 4096;

/// The rights of everybody else (chmod(2)).
const OTHERS: u32 = 0o007;

/// The right of the group to put its own token there.
const GROUP_WRITES: u32 = 0o020;

/// The file that holds the token.
#[derive(Debug)]
pub(super) struct Token {
    /// The key of the configuration that names the file.
    key: &'static str,
    file: PathBuf,
}

impl Token {
    /// Takes a file whose token can be used.
    ///
    /// # Errors
    /// [`Kind::Config`]: the file cannot be read, is open to everybody, or holds no token.
    pub(super) fn open(key: &'static str, file: &Path) -> Result<Self> {
        let token = Self { key, file: file.to_owned() };
        token.read().map(|_| token)
    }

    fn wrong(&self, what: &str) -> Error {
        Error::new(Kind::Config, format!("{}: {} {what}", self.key, self.file.display()))
    }

    /// The SHA-256 of the token.
    fn read(&self) -> Result<[u8; 32]> {
        let unreadable = |source| {
            self.wrong("cannot be read").source(source).hint(
                "write a random text into it, for example `openssl rand -hex 32`, and give it to tidelog's user; or \
                 remove the key",
            )
        };
        let facts = fs::metadata(&self.file).map_err(unreadable)?;
        let mode = facts.permissions().mode();
        if mode & OTHERS != 0 {
            return Err(self.wrong(&format!("is open to every user of this machine (mode {:04o})", mode & 0o7777)).hint(
                "take the rights of others away: chmod o-rwx, or defaultMode: 0440 of a Kubernetes volume with fsGroup",
            ));
        }
        if !facts.is_file() {
            // Reading a pipe would wait for whoever writes into it.
            return Err(self.wrong("is no regular file").hint("write the token into a file"));
        }
        if mode & GROUP_WRITES != 0 {
            return Err(self
                .wrong(&format!("can be written by its group (mode {:04o})", mode & 0o7777))
                .hint("whoever writes it makes the changes: chmod g-w"));
        }
        // Whoever owns it can write it. Root's files are those of whoever set the machine up.
        let own = fs::metadata("/proc/self").map_or(facts.uid(), |own| own.uid());
        if facts.uid() != 0 && facts.uid() != own {
            return Err(self
                .wrong(&format!("belongs to another user (uid {})", facts.uid()))
                .hint("give it to root or to the user that runs tidelog: chown"));
        }
        if facts.len() > MOST_BYTES {
            return Err(self.wrong("is too large for a token").hint("it holds one line of 16 to 4096 characters"));
        }
        let text = fs::read_to_string(&self.file).map_err(unreadable)?;
        let token = text.trim_end_matches(['\r', '\n']);
        if token.len() < LEAST_BYTES || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(self
                .wrong("holds no token")
                .hint("it holds one line of 16 or more printable ASCII characters without a space"));
        }
        Ok(digest(token))
    }

    /// Returns how the token came, if it is this one.
    fn accept(&self, (way, given): (Way, String)) -> Result<Way, Box<Response>> {
        match self.read() {
            Ok(expected) if same(&expected, &digest(&given)) => Ok(way),
            Ok(_) => refuse(StatusCode::FORBIDDEN, &format!("this is not the token of {}", self.key)),
            Err(error) => {
                tracing::error!(%error, hint = error.hint_text(), "a request was refused");
                refuse(StatusCode::FORBIDDEN, "the token file cannot be used now; the log says why")
            }
        }
    }
}

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

/// How the token came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// By `Bearer`.
    Bearer,
    /// As the password of `Basic`.
    Password,
}

/// Returns how the request's caller has shown that it may change something; else the answer to it.
pub(super) fn allow(token: Option<&Token>, headers: &HeaderMap) -> Result<Way, Box<Response>> {
    let Some(token) = token else {
        return refuse(StatusCode::FORBIDDEN, "nothing can be changed here: http.admin_token_file is not set");
    };
    let given = headers.get(header::AUTHORIZATION).and_then(|value| presented(value.to_str().ok()?));
    let Some(given) = given else {
        let mut answer = refusal(StatusCode::UNAUTHORIZED, "changing needs the header Authorization: Bearer <token>");
        answer.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"tidelog\""));
        return Err(Box::new(answer));
    };
    token.accept(given)
}

/// Returns whether the request's caller may see what records hold: not who shows no token. Another token than the reader's is refused.
pub(super) fn may_read(token: &Token, headers: &HeaderMap) -> Result<bool, Box<Response>> {
    let Some(given) = headers.get(header::AUTHORIZATION) else { return Ok(false) };
    match given.to_str().ok().and_then(presented) {
        Some(given) => token.accept(given).map(|_| true),
        None => refuse(StatusCode::FORBIDDEN, "records are shown for the header Authorization: Bearer <token>")
            .map(|_| true),
    }
}

fn refuse(status: StatusCode, message: &str) -> Result<Way, Box<Response>> {
    Err(Box::new(refusal(status, message)))
}

/// The token of `Bearer <token>` or `Basic <base64 of user:token>`; the scheme's name in any case (RFC 9110, 11.1).
fn presented(value: &str) -> Option<(Way, String)> {
    let (scheme, credentials) = value.split_once(' ')?;
    let (way, token) = if scheme.eq_ignore_ascii_case("bearer") {
        (Way::Bearer, credentials.trim().to_owned())
    } else if scheme.eq_ignore_ascii_case("basic") {
        let pair = String::from_utf8(STANDARD.decode(credentials.trim()).ok()?).ok()?;
        (Way::Password, pair.split_once(':')?.1.to_owned())
    } else {
        return None;
    };
    (!token.is_empty()).then_some((way, token))
}

/// Looks at every byte, whether or not one differed before.
fn same(left: &[u8; 32], right: &[u8; 32]) -> bool {
    left.iter().zip(right).fold(0, |different, (left, right)| different | (left ^ right)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str, mode: u32) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        fs::write(file.path(), text).expect("it can be written");
        fs::set_permissions(file.path(), fs::Permissions::from_mode(mode)).expect("its rights can be set");
        file
    }

    #[test]
    fn a_token_file_must_be_private_and_hold_a_token() {
        let good = file("0123456789abcdef\n", 0o640);
        let token = Token::open(ADMIN, good.path()).expect("it is private");
        assert_eq!(token.read().expect("it is read"), digest("0123456789abcdef"));
        for (text, mode, says) in [
            ("0123456789abcdef", 0o644, "is open to every user of this machine (mode 0644)"),
            ("0123456789abcdef", 0o642, "mode 0642"),
            ("0123456789abcdef", 0o660, "can be written by its group (mode 0660)"),
            ("0123456789abcde\n", 0o600, "holds no token"),
            ("0123456789 abcdef", 0o600, "holds no token"),
            (&"x".repeat(5000), 0o600, "is too large"),
            ("", 0o600, "holds no token"),
        ] {
            let error = Token::open(ADMIN, file(text, mode).path()).expect_err(says);
            assert!(error.to_string().contains(says) && error.hint_text().is_some(), "{error:?}");
            assert!(error.to_string().starts_with("http.admin_token_file: ") && error.exit_code() == 2);
            assert!(text.is_empty() || !format!("{error:?}").contains(text), "the token is not repeated");
        }
        let error = Token::open(ADMIN, Path::new("/does/not/exist")).expect_err("no such file");
        assert!(error.to_string().contains("cannot be read: No such file"), "{error}");
    }

    #[test]
    fn a_pipe_is_no_token_and_is_not_waited_for() {
        let folder = tempfile::tempdir().expect("a directory");
        let pipe = folder.path().join("token");
        let made = std::process::Command::new("mkfifo").args(["-m", "600"]).arg(&pipe).status().expect("it runs");
        assert!(made.success());
        let error = Token::open(ADMIN, &pipe).expect_err("it is none");
        assert!(error.to_string().contains("is no regular file"), "{error}");
    }

    #[test]
    fn a_token_of_another_user_is_refused() {
        let held = file("0123456789abcdef", 0o600);
        if std::os::unix::fs::chown(held.path(), Some(12_345), None).is_err() {
            // Only root can give files away.
            return;
        }
        let error = Token::open(ADMIN, held.path()).expect_err("it is another's");
        assert!(error.to_string().contains("belongs to another user (uid 12345)"), "{error}");
    }

    #[test]
    fn a_token_is_exchanged_by_writing_the_file() {
        let held = file("0123456789abcdef", 0o600);
        let token = Token::open(ADMIN, held.path()).expect("it is private");
        fs::write(held.path(), "fedcba9876543210").expect("it can be written");
        assert_eq!(token.read().expect("it is read"), digest("fedcba9876543210"));
    }

    #[test]
    fn a_token_comes_as_a_bearer_or_as_a_password() {
        let password = format!("Basic {}", STANDARD.encode("me:abc"));
        for (value, way) in [("Bearer abc", Way::Bearer), ("bearer  abc ", Way::Bearer), (&*password, Way::Password)] {
            assert_eq!(presented(value), Some((way, "abc".to_owned())), "{value}");
        }
        let nothing = format!("Basic {}", STANDARD.encode("me:"));
        for value in ["Digest abc", "Basic abc", "Basic !", "Bearer", "Bearer ", "abc", &nothing] {
            assert_eq!(presented(value), None, "{value}");
        }
        assert!(same(&digest("a"), &digest("a")) && !same(&digest("a"), &digest("b")));
    }
}
