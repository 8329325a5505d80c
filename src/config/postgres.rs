//! `[postgres]`: which server, by which slot, and when it counts as archived.

use std::fmt;
use std::time::Duration;

use super::raw::Section;
use super::values::{Lookup, zstd_level};

/// A text of the configuration that no log and no error shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Hidden(String);

impl Hidden {
    pub(super) fn new(text: String) -> Self {
        Self(text)
    }

    /// The text itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// `[postgres]`.
#[derive(Debug, Clone)]
pub struct Postgres {
    /// `url`: libpq's parameters, as a URI or as pairs. It may hold a password.
    pub url: Hidden,
    /// `slot`: the physical replication slot that keeps WAL until it is archived.
    pub slot: String,
    /// `create_slot`: make the slot if it is not there.
    pub create_slot: bool,
    /// `ack`: when the server is told that WAL is safe.
    pub ack: Ack,
    /// `max_age`: WAL is in the archive this long after it came.
    pub max_age: Duration,
    /// `compression`: the level of zstd for WAL.
    pub zstd_level: i32,
    /// `allow_md5`: answer a server that wants the password hashed with md5.
    pub allow_md5: bool,
    /// `[postgres.base_backup]`.
    pub base_backup: BaseBackup,
}

impl Postgres {
    /// The settings for the server that base backups come from.
    #[must_use]
    pub fn for_backups(&self) -> Self {
        let url = self.base_backup.url.clone().unwrap_or_else(|| self.url.clone());
        Self { url, ..self.clone() }
    }
}

/// When the server is told that WAL is safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ack {
    /// Once it is in the archive.
    Archive,
    /// Once it is on the local disk: fit for a synchronous standby.
    Spool,
}

/// `[postgres.base_backup]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseBackup {
    /// `url`: another server of the same system to take backups from, such as a standby.
    pub url: Option<Hidden>,
    /// `every`: how often a base backup is taken; none without the key.
    pub every: Option<Duration>,
    /// `incrementals`: how many incremental ones are taken between two full ones.
    pub incrementals: u64,
    /// `max_rate`: bytes a second that the server is asked to send at most.
    pub max_rate: Option<u64>,
    /// `keep_damaged`: whether a backup in which the server found bad pages is kept, marked.
    pub keep_damaged: bool,
    /// `compression`: the level of zstd.
    pub zstd_level: i32,
}

/// The rates that the server takes (`MAX_RATE_LOWER` and `MAX_RATE_UPPER` in basebackup.h).
const RATES: (u64, u64) = (32 << 10, 1 << 30);

/// No base backup is done sooner, and one takes the server's disk with it.
const LEAST_EVERY: Duration = Duration::from_secs(60);

/// Reads `[postgres]`.
pub(super) fn read(mut section: Section<'_>, lookup: Lookup<'_>) -> Postgres {
    let url = Hidden(section.secret("url", "postgres://replicator@localhost:5432/postgres", lookup));
    let slot = section.parsed("slot", slot, "tidelog".to_owned());
    let create_slot = section.truth("create_slot", true);
    let ack = section.parsed("ack", ack, Ack::Archive);
    let max_age = section.duration("max_age", Duration::from_secs(5), Duration::from_millis(100));
    let level = section.parsed("compression", zstd_level, 1);
    let allow_md5 = section.truth("allow_md5", false);
    let base_backup = match section.section("base_backup") {
        Some(mut section) => {
            let base_backup = BaseBackup {
                url: section.optional_secret("url", "postgres://replicator@standby:5432/postgres", lookup).map(Hidden),
                every: section.optional_duration("every", LEAST_EVERY),
                incrementals: section.optional_count("incrementals").unwrap_or(0),
                max_rate: section.optional_size("max_rate", RATES),
                keep_damaged: section.truth("keep_damaged", false),
                zstd_level: section.parsed("compression", zstd_level, level),
            };
            section.finish();
            base_backup
        }
        None => BaseBackup {
            url: None,
            every: None,
            incrementals: 0,
            max_rate: None,
            keep_damaged: false,
            zstd_level: level,
        },
    };
    section.finish();
    Postgres { url, slot, create_slot, ack, max_age, zstd_level: level, allow_md5, base_backup }
}

/// A slot's name, as `ReplicationSlotValidateName` (slot.c) has it.
fn slot(text: &str) -> Result<String, String> {
    let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    if text.is_empty() || text.len() > 63 || !text.bytes().all(legal) {
        return Err(format!(
            "{text:?} cannot be the name of a replication slot; use lower case letters, digits and _, 63 at most"
        ));
    }
    Ok(text.to_owned())
}

fn ack(text: &str) -> Result<Ack, String> {
    match text {
        "archive" => Ok(Ack::Archive),
        "spool" => Ok(Ack::Spool),
        _ => Err(format!("{text:?} is not when WAL counts as safe; use \"archive\" or \"spool\"")),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::config::Config;
    use crate::error::Result;

    fn parse(text: &str) -> Result<Postgres> {
        let text = format!("[archive]\nurl = \"memory://\"\n[postgres]\n{text}");
        Config::parse(&text, "test", &BTreeMap::new()).map(|config| config.postgres.expect("[postgres] is there"))
    }

    #[test]
    fn a_url_is_enough() {
        let postgres = parse("url = \"postgres://u:s3cret@h\"\n").expect("it is enough");
        assert_eq!((postgres.slot.as_str(), postgres.create_slot, postgres.ack), ("tidelog", true, Ack::Archive));
        assert_eq!((postgres.max_age, postgres.allow_md5), (Duration::from_secs(5), false));
        assert_eq!(
            postgres.base_backup,
            BaseBackup { url: None, every: None, incrementals: 0, max_rate: None, keep_damaged: false, zstd_level: 1 }
        );
        assert!(!format!("{postgres:?}").contains("s3cret"));
        assert_eq!(postgres.for_backups().url, postgres.url);
        let standby = parse("url = \"host=h\"\n[postgres.base_backup]\nurl = \"host=standby\"\n").expect("it is valid");
        assert_eq!(standby.for_backups().url.reveal(), "host=standby");
        assert_eq!(postgres.url.reveal(), "postgres://u:s3cret@h");
    }

    #[test]
    fn every_key_is_read() {
        let text = "url = \"host=h\"\nslot = \"a_1\"\ncreate_slot = false\nack = \"spool\"\nmax_age = \"1s\"\ncompression = \"zstd:3\"\n\
                    allow_md5 = true\n[postgres.base_backup]\nevery = \"24h\"\nincrementals = 6\nmax_rate = \"50MiB\"\ncompression = \"zstd:5\"\n";
        let postgres = parse(text).expect("it is valid");
        assert_eq!((postgres.create_slot, postgres.ack, postgres.zstd_level), (false, Ack::Spool, 3));
        let expected = BaseBackup {
            url: None,
            every: Some(Duration::from_secs(86_400)),
            incrementals: 6,
            max_rate: Some(50 << 20),
            keep_damaged: false,
            zstd_level: 5,
        };
        assert_eq!(postgres.base_backup, expected);
    }

    #[test]
    fn mistakes_are_told_with_the_way_out() {
        let text = "slot = \"My-Slot\"\nack = \"disk\"\ncreate_slot = \"yes\"\n[postgres.base_backup]\nevery = \"1s\"\nmax_rate = \"1KiB\"\n";
        let error = parse(text).expect_err("it is wrong").to_string();
        for part in [
            "postgres.url: is missing; set it",
            "postgres.slot: \"My-Slot\" cannot be the name",
            "postgres.ack: \"disk\" is not when WAL counts as safe",
            "postgres.create_slot: \"yes\" is neither true nor false",
            "postgres.base_backup.every: 1s is not allowed, use 1m or more",
            "postgres.base_backup.max_rate: 1024 is not allowed, use 32 KiB or more",
        ] {
            assert!(error.contains(part), "{part:?} is not in\n{error}");
        }
    }

    #[test]
    fn the_url_may_be_a_secret_and_truth_may_come_from_the_environment() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), "postgres://u:p@h\n").expect("it can be written");
        let postgres = parse(&format!("url = {{ file = {:?} }}\n", file.path())).expect("it is valid");
        assert_eq!(postgres.url.reveal(), "postgres://u:p@h");
        let error = parse("url = { file = \"/nowhere\" }\n").expect_err("there is no file").to_string();
        assert!(error.contains("postgres.url: its file /nowhere cannot be read"), "{error}");
        let environment = BTreeMap::from([("TIDELOG__POSTGRES__CREATE_SLOT".to_owned(), "false".to_owned())]);
        let text = "[archive]\nurl = \"memory://\"\n[postgres]\nurl = \"host=h\"\n";
        let config = Config::parse(text, "test", &environment).expect("it is valid");
        assert!(!config.postgres.expect("[postgres] is there").create_slot);
    }
}
