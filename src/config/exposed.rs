//! Who else may read or change the configuration, and the directories that it names.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

/// Returns who else owns a file or a directory; none if it is not there, or is root's, or that of the user `own`, or if that is root.
pub(crate) fn another_owner(path: &Path, own: u32) -> Option<u32> {
    let owner = std::fs::metadata(path).ok()?.uid();
    (own != 0 && owner != 0 && owner != own).then_some(owner)
}

/// Returns what is unwise about the rights of the configuration file, for a service of the user `own`.
pub(crate) fn remark(path: &Path, own: u32) -> Option<String> {
    let mode = std::fs::metadata(path).ok()?.permissions().mode();
    if mode & 0o002 != 0 {
        return Some(format!("every user of this machine may write it (mode {:04o}): chmod o-w", mode & 0o7777));
    }
    if let Some(owner) = another_owner(path, own) {
        return Some(format!("it belongs to another user (uid {owner}), who may write it: chown"));
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Where the sticky bit is set, nobody exchanges what is another's.
    let open = std::fs::metadata(folder).ok()?.permissions().mode() & 0o7777;
    if open & 0o1002 == 0o002 {
        return Some(format!(
            "every user of this machine may put another file in its place ({} has mode {open:04o}): chmod o-w",
            folder.display()
        ));
    }
    let table: toml::Table = toml::from_str(&std::fs::read_to_string(path).ok()?).ok()?;
    (mode & 0o004 != 0 && holds_secret(&table)).then(|| {
        let mode = mode & 0o7777;
        format!("it holds a secret, and every user of this machine may read it (mode {mode:04o}): chmod o-r, or write the secret as {{ file = \"…\" }}")
    })
}

/// Returns whether a secret stands in a table as it is.
fn holds_secret(table: &toml::Table) -> bool {
    table.iter().any(|(key, value)| match value {
        // `{ file = … }` and `{ env = … }` say where it is.
        toml::Value::Table(below) => holds_secret(below),
        toml::Value::Array(items) => items.iter().filter_map(toml::Value::as_table).any(holds_secret),
        toml::Value::String(text) => {
            let key = key.to_lowercase();
            if key == "url" || key.ends_with(".url") {
                return text.contains("password=") || holds_password(text);
            }
            ["password", "secret", "jaas", "access_key", "account_key", "token"]
                .iter()
                .any(|part| key.contains(part) && !key.ends_with("_file") && !key.ends_with("_id"))
        }
        _ => false,
    })
}

/// Returns whether a URL holds a password before its host.
fn holds_password(url: &str) -> bool {
    let authority = url.split_once("://").and_then(|(_, rest)| rest.split(['/', '?']).next());
    authority.and_then(|authority| authority.rsplit_once('@')).is_some_and(|(user, _)| user.contains(':'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remarked(text: &str, mode: u32) -> Option<String> {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), text).expect("written");
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).expect("its rights");
        remark(file.path(), 0)
    }

    #[test]
    fn what_another_user_can_exchange_is_remarked() {
        let folder = tempfile::tempdir().expect("a directory");
        let file = folder.path().join("tidelog.toml");
        std::fs::write(&file, "").expect("written");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("its rights");
        let open =
            |mode| std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(mode)).expect("rights");
        open(0o777);
        assert!(remark(&file, 0).is_some_and(|said| said.contains("put another file in its place")));
        for private in [0o1777, 0o775, 0o700] {
            open(private);
            assert_eq!(remark(&file, 0), None, "{private:o}");
        }
        let owner = std::fs::metadata(&file).expect("it is there").uid();
        assert_eq!(remark(&file, owner), None);
        if std::os::unix::fs::chown(&file, Some(12_345), None).is_err() {
            // Only root can give files away.
            return;
        }
        assert!(remark(&file, 54_321).is_some_and(|said| said.contains("another user (uid 12345)")));
        assert_eq!((remark(&file, 12_345), remark(&file, 0)), (None, None));
        assert_eq!(another_owner(&file, 54_321), Some(12_345));
        assert_eq!(another_owner(&folder.path().join("none"), 54_321), None);
    }

    #[test]
    fn a_configuration_that_others_may_write_or_whose_secrets_they_may_read_is_remarked() {
        let secrets = [
            "[kafka.properties]\n\"sasl.password\" = \"x\"\n",
            "[archive.options]\naws_secret_access_key = \"x\"\n",
            "[postgres]\nurl = \"postgres://me:secret@host/db\"\n",
            "[postgres]\nurl = \"host=a password=x\"\n",
        ];
        for text in secrets {
            assert!(
                remarked(text, 0o644).is_some_and(|said| said.contains("mode 0644") && !said.contains("secret@")),
                "{text}"
            );
            assert_eq!(remarked(text, 0o640), None, "{text}");
        }
        for text in [
            "[kafka.properties]\n\"sasl.password\" = { file = \"/p\" }\n",
            "[postgres]\nurl = \"postgres://me@host/db\"\n",
            "[http]\nadmin_token_file = \"/t\"\n[archive.options]\naws_access_key_id = \"a\"\n",
        ] {
            assert_eq!(remarked(text, 0o644), None, "{text}");
        }
        assert!(remarked("", 0o646).is_some_and(|said| said.contains("may write it (mode 0646)")));
    }
}
