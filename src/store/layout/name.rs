//! The keys that objects of the archive say: of segments in entries and pages, of parts in `backup.json`. Whoever can write the bucket
//! can write any text there, and the keys are read, printed for other engines and deleted. So a key counts only if it is to
//! the letter what this program would write, for what it is read as.

use std::ops::Range;

use chrono::{DateTime, NaiveDateTime, Utc};
use object_store::path::Path;

use super::keys::{BACKUP_REMOVED, backup_part, segment, state_version, wal_segment};
use crate::error::{Error, Kind, Result};
use crate::stream::{Format, StateOf, StreamId, TopicGeneration, is_name};

/// An object that other objects name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Name {
    /// A segment of records.
    Records {
        /// What it holds a part of.
        generation: TopicGeneration,
        /// When it was sealed.
        sealed: DateTime<Utc>,
        /// Who wrote it.
        writer: String,
        /// The how manyth of that writer it is.
        n: u64,
        /// How it is written.
        format: Format,
    },
    /// A segment of WAL.
    Wal {
        /// The Postgres system.
        system_id: u64,
        /// The timeline.
        timeline: u32,
        /// From where to where.
        lsns: Range<u64>,
        /// Who wrote it.
        writer: String,
        /// The how manyth of that writer it is.
        n: u64,
    },
    /// A version of a state document.
    State {
        /// What the document is of.
        of: StateOf,
        /// Which version.
        version: u64,
        /// Who wrote it.
        writer: String,
        /// The how manyth of that writer it is.
        n: u64,
    },
    /// An object of a base backup.
    Part {
        /// The Postgres system.
        system_id: u64,
        /// The backup's name.
        backup: String,
        /// What it is called within.
        part: String,
    },
}

impl Name {
    /// Reads a key.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] for every text that is not [`Name::key`] of what it says.
    pub fn parse(key: &str) -> Result<Self> {
        read(key).filter(|name| name.key().as_ref() == key).ok_or_else(|| {
            Error::new(Kind::Corrupt, format!("{key:?} cannot be the key of an object of this archive"))
                .hint("no tidelog has written that: whoever may write to the archive did. Restore it from a copy, and see docs/SECURITY.md")
        })
    }

    /// The key.
    pub fn key(&self) -> Path {
        match self {
            Self::Records { generation, sealed, writer, n, format } => {
                segment(generation, *sealed, writer, *n, *format)
            }
            Self::Wal { system_id, timeline, lsns, writer, n } => {
                wal_segment(*system_id, *timeline, lsns.clone(), writer, *n)
            }
            Self::State { of, version, writer, n } => state_version(of, *version, writer, *n),
            Self::Part { system_id, backup, part } => backup_part(*system_id, backup, part),
        }
    }

    /// The stream that it is a segment of.
    pub fn stream(&self) -> Option<StreamId> {
        match self {
            Self::Records { generation, .. } => Some(generation.stream()),
            Self::Wal { system_id, .. } => Some(StreamId::Postgres { system_id: *system_id }),
            Self::State { of, .. } => Some(StreamId::State(of.clone())),
            Self::Part { .. } => None,
        }
    }
}

/// The key of a segment that an entry or a page of `stream` names.
///
/// # Errors
/// [`Kind::Corrupt`] for what is no key, and for one of anything else: a chain disposes of its own objects alone.
pub fn segment_of(stream: &StreamId, key: &str) -> Result<Path> {
    let name = Name::parse(key)?;
    if name.stream().as_ref() == Some(stream) {
        return Ok(name.key());
    }
    Err(Error::new(Kind::Corrupt, format!("{key} is named as a segment of {stream}, and is none"))
        .hint("restore the object that names it from a copy of the archive"))
}

/// The name of the base backup that lies in a folder; none for a folder that no backup can have.
pub fn backup_name(folder: &Path) -> Option<&str> {
    folder.filename().filter(|name| is_name(name))
}

/// Returns whether a base backup may be called that.
pub fn is_backup_name(name: &str) -> bool {
    is_name(name)
}

/// Returns whether an object of a base backup may be called that, `backup.json` aside.
pub(super) fn is_backup_part(name: &str) -> bool {
    let is_tar = || {
        let (archive, number) = name.strip_suffix(".zst")?.rsplit_once('.')?;
        Some(is_digits(number) && is_archive(archive))
    };
    name == BACKUP_REMOVED || name == "backup_manifest.zst" || is_tar().unwrap_or(false)
}

/// Returns whether an archive of a base backup may be called that: `base.tar`, or a tablespace's number and `.tar`.
pub fn is_archive(name: &str) -> bool {
    name.strip_suffix(".tar").is_some_and(|what| what == "base" || is_digits(what))
}

fn is_digits(text: &str) -> bool {
    (1..=20).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn read(key: &str) -> Option<Name> {
    let parts: Vec<&str> = key.split('/').collect();
    match parts.as_slice() {
        ["segments", "kafka", cluster, topic, generation, date, file] => {
            let generation = format!(
                "kafka/{}/{}.{}",
                cluster.strip_prefix("cluster=")?,
                topic.strip_prefix("topic=")?,
                generation.strip_prefix("generation=")?
            );
            let (name, format) = file.rsplit_once('.')?;
            let format = [Format::Parquet, Format::Avro].into_iter().find(|known| known.name() == format)?;
            let (time, rest) = name.split_once('-')?;
            let (writer, n) = written_by(rest)?;
            let sealed = format!("{}T{time}", date.strip_prefix("date=")?);
            let sealed = NaiveDateTime::parse_from_str(&sealed, "%Y-%m-%dT%H%M%S").ok()?.and_utc();
            Some(Name::Records { generation: generation.parse().ok()?, sealed, writer, n, format })
        }
        ["segments", "postgres", system, timeline, file] => {
            let timeline = u32::from_str_radix(timeline.strip_prefix("timeline=")?, 16).ok()?;
            let (start, rest) = file.strip_suffix(".wal.zst")?.split_once('-')?;
            let (end, rest) = rest.split_once('-')?;
            let lsns = u64::from_str_radix(start, 16).ok()?..u64::from_str_radix(end, 16).ok()?;
            let (writer, n) = written_by(rest)?;
            Some(Name::Wal { system_id: system_of(system)?, timeline, lsns, writer, n })
        }
        ["segments", "state", kind, scope, file] => {
            let scope = Some(scope.strip_prefix("scope=")?).filter(|scope| is_name(scope))?.to_owned();
            let (version, rest) = file.strip_suffix(".json.zst")?.split_once('-')?;
            let (writer, n) = written_by(rest)?;
            let of = StateOf { kind: kind.parse().ok()?, scope };
            Some(Name::State { of, version: version.parse().ok()?, writer, n })
        }
        ["backups", "postgres", system, backup, part] if is_name(backup) && is_backup_part(part) => {
            let (backup, part) = ((*backup).to_owned(), (*part).to_owned());
            Some(Name::Part { system_id: system_of(system)?, backup, part })
        }
        _ => None,
    }
}

fn system_of(folder: &str) -> Option<u64> {
    folder.strip_prefix("system=")?.parse().ok()
}

/// `<writer>-<n>`.
fn written_by(text: &str) -> Option<(String, u64)> {
    let (writer, n) = text.rsplit_once('-')?;
    is_name(writer).then(|| Some((writer.to_owned(), n.parse().ok()?)))?
}

/// Returns whether `key` has the name of an object that a base backup consists of, `backup.json` aside.
pub fn is_backup_object(key: &Path) -> bool {
    key.filename().is_some_and(is_backup_part)
}

/// The key that a checkpoint, a page or a backup writes down.
///
/// # Errors
/// [`Kind::Corrupt`] if no object can have that key.
pub fn object(key: &str) -> Result<Path> {
    Name::parse(key).map(|name| name.key())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::stream::StateKind;

    fn name() -> impl Strategy<Value = Name> {
        let id = "[A-Za-z0-9_-][A-Za-z0-9._-]{0,30}";
        let generation = (id, "[A-Za-z0-9_-][A-Za-z0-9._-]{0,60}", any::<u32>());
        let generation = generation.prop_map(|(cluster, topic, number)| TopicGeneration::new(cluster, topic, number));
        let sealed = (0..253_402_300_800_i64).prop_map(|at| DateTime::from_timestamp(at, 0).expect("a time"));
        let format = prop_oneof![Just(Format::Parquet), Just(Format::Avro)];
        let part = prop_oneof![
            "(base|[1-9][0-9]{0,9})\\.tar\\.[0-9]{7}\\.zst",
            Just("backup_manifest.zst".to_owned()),
            Just(BACKUP_REMOVED.to_owned())
        ];
        prop_oneof![
            (generation, sealed, id, any::<u64>(), format).prop_map(|(generation, sealed, writer, n, format)| {
                Name::Records { generation, sealed, writer, n, format }
            }),
            (any::<u64>(), any::<u32>(), any::<Range<u64>>(), id, any::<u64>())
                .prop_map(|(system_id, timeline, lsns, writer, n)| Name::Wal { system_id, timeline, lsns, writer, n }),
            (prop::sample::select(StateKind::ALL.to_vec()), id, any::<u64>(), id, any::<u64>()).prop_map(
                |(kind, scope, version, writer, n)| Name::State { of: StateOf { kind, scope }, version, writer, n }
            ),
            (any::<u64>(), id, part).prop_map(|(system_id, backup, part)| Name::Part { system_id, backup, part }),
        ]
    }

    #[test]
    fn what_others_would_make_of_a_key_is_refused() {
        let good = "segments/kafka/cluster=main/topic=orders/generation=0/date=2026-11-22/101502-a41c-7.parquet";
        Name::parse(good).expect("a segment");
        let wal = "segments/postgres/system=7/timeline=00000001/0000000000000010-0000000000000020-a41c-7.wal.zst";
        Name::parse(wal).expect("a segment of WAL");
        let part = "backups/postgres/system=7/20261128T082141Z-a41c/base.tar.0000000.zst";
        Name::parse(part).expect("a part");
        let wrong = [
            "",
            "/etc/passwd",
            "segments",
            "segments/x.parquet",
            "../segments/kafka",
            "backups/postgres/system=7/x/backup.json",
            "backups/postgres/system=7/../base.tar.0000000.zst",
            "backups/postgres/system=7/b\n/base.tar.0000000.zst",
            "backups/postgres/system=+7/b/base.tar.0000000.zst",
            "backups/postgres/system=7/b/x.tar.0000000.zst",
        ];
        for wrong in wrong {
            assert_eq!(Name::parse(wrong).expect_err(wrong).kind(), Kind::Corrupt);
        }
        let changes = [
            ("orders", "or\u{1b}[2Jders"),
            ("orders", "ord\ners"),
            ("orders", ".."),
            ("orders", "\u{202e}orders"),
            ("orders", "a%2Fb"),
            ("segments/", "/segments/"),
            ("segments/", "segments//"),
            ("segments/", "./segments/"),
            ("main", ".main"),
            ("main", ""),
            ("generation=0", "generation=00"),
            ("generation=0", "generation=+1"),
            ("-7.", "-07."),
            ("2026-11-22", "2026-02-30"),
            ("2026-11-22", "2026-1-22"),
            ("101502", "256199"),
            (".parquet", ".parquet\n"),
            (".parquet", ".wal"),
            ("a41c", "a/c"),
        ];
        for (what, by) in changes {
            let changed = good.replacen(what, by, 1);
            assert_eq!(Name::parse(&changed).expect_err(&changed).kind(), Kind::Corrupt);
        }
        for (what, by) in
            [("00000001", "1"), ("00000001", "0000000a"), ("0000000000000010", "10"), ("system=7", "system=07")]
        {
            let changed = wal.replacen(what, by, 1);
            assert_eq!(Name::parse(&changed).expect_err(&changed).kind(), Kind::Corrupt);
        }
        let (orders, other) =
            (TopicGeneration::new("main", "orders", 0).stream(), TopicGeneration::new("main", "orders", 1).stream());
        assert_eq!(segment_of(&orders, good).expect("its own").as_ref(), good);
        for (stream, key) in
            [(&other, good), (&orders, wal), (&StreamId::Postgres { system_id: 8 }, wal), (&orders, part)]
        {
            assert_eq!(segment_of(stream, key).expect_err(key).kind(), Kind::Corrupt);
        }
    }

    proptest! {
        #[test]
        fn every_key_that_is_written_is_read(name in name()) {
            let key = name.key().to_string();
            prop_assert!(!key.contains(crate::escape::is_unsafe) && !key.split('/').any(|part| part.starts_with('.')), "{}", key);
            prop_assert_eq!(Name::parse(&key).expect("its own key"), name);
        }

        #[test]
        fn nothing_else_is_read(name in name(), at in any::<prop::sample::Index>(), by in "[\u{0}-\u{7f}\u{202e}%/.+ ]{0,2}", cut in 0..2_usize) {
            let mut key = name.key().to_string();
            let at = at.index(key.len() + 1);
            key.replace_range(at..(at + cut).min(key.len()), &by);
            if let Ok(read) = Name::parse(&key) {
                prop_assert_eq!(read.key().to_string(), key.as_str());
                let is_plain = |c: char| c.is_ascii_alphanumeric() || "/=._-".contains(c);
                prop_assert!(key.chars().all(is_plain) && !key.split('/').any(|part| part.is_empty() || part.starts_with('.')), "{}", key);
            }
        }

        #[test]
        fn any_text_is_read_without_a_panic(text in any::<String>()) {
            if let Ok(read) = Name::parse(&text) {
                prop_assert_eq!(read.key().to_string(), text);
            }
        }
    }
}
