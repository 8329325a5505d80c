//! The names of the files that Postgres asks for.

use crate::error::{Error, Kind, Result};
use crate::stream::Lsn;

/// What Postgres asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Name {
    /// A WAL file.
    Wal(WalName),
    /// A timeline's history.
    History(u32),
    /// A backup's history file or the like, which the archive never has.
    Other,
}

/// The name of a WAL file: the timeline, and two numbers that depend on the size of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalName {
    timeline: u32,
    log: u32,
    file: u32,
}

impl WalName {
    /// The timeline.
    pub fn timeline(self) -> u32 {
        self.timeline
    }

    /// The position of the file's first byte (`XLogFromFileName`, xlog_internal.h).
    ///
    /// # Errors
    /// [`Kind::Config`] for a name that a server with files of that size never asks for.
    pub fn start(self, size: u64) -> Result<Lsn> {
        if size == 0 || u64::from(self.file) >= (1 << 32) / size {
            let message = format!("{self} is no WAL file of a server whose files have {size} bytes");
            return Err(Error::new(Kind::Config, message).hint("the archive is that of another server"));
        }
        Ok(Lsn((u64::from(self.log) << 32) + u64::from(self.file) * size))
    }

    /// The file after it.
    #[must_use]
    pub fn next(self, size: u64) -> Self {
        let last = ((1u64 << 32) / size.max(1)).saturating_sub(1);
        if u64::from(self.file) < last {
            Self { file: self.file + 1, ..self }
        } else {
            Self { log: self.log.wrapping_add(1), file: 0, ..self }
        }
    }
}

impl std::fmt::Display for WalName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:08X}{:08X}{:08X}", self.timeline, self.log, self.file)
    }
}

impl std::str::FromStr for Name {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let hexadecimal = |text: &str| text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'A'..=b'F'));
        let number = |text: &str| u32::from_str_radix(text, 16).ok();
        let stem = name.split_once('.').map_or(name, |(stem, _)| stem);
        let known = || match (stem.len(), name.len()) {
            _ if !hexadecimal(stem) => None,
            (24, 24) => Some(Self::Wal(WalName {
                timeline: number(&name[..8])?,
                log: number(&name[8..16])?,
                file: number(&name[16..])?,
            })),
            (8, 16) if name.ends_with(".history") => Some(Self::History(number(stem)?)),
            (24, _) => Some(Self::Other),
            _ => None,
        };
        known().ok_or_else(|| {
            Error::new(Kind::Config, format!("{name:?} is not a file of a write-ahead log"))
                .hint("use it as restore_command = 'tidelog wal-fetch %f %p'")
        })
    }
}

impl std::str::FromStr for WalName {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name.parse()? {
            Name::Wal(name) => Ok(name),
            _ => Err(Error::new(Kind::Config, format!("{name:?} is not a WAL file"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 16 << 20;

    fn wal(name: &str) -> WalName {
        match name.parse().expect("a name") {
            Name::Wal(wal) => wal,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn names_are_what_postgres_asks_for() {
        let name = wal("00000002000000A1000000FE");
        assert_eq!(name.start(SIZE).expect("a position"), Lsn(0xA1_FE00_0000));
        assert_eq!(name.next(SIZE).to_string(), "00000002000000A1000000FF");
        assert_eq!(name.next(SIZE).next(SIZE).to_string(), "00000002000000A200000000");
        assert_eq!(wal("000000010000000000000003").next(1 << 30).to_string(), "000000010000000100000000");
        assert_eq!(name.start(64 << 20).expect_err("of another size").kind(), Kind::Config);
        assert_eq!("00000003.history".parse::<Name>().expect("a name"), Name::History(3));
        for other in ["000000010000000000000002.00000028.backup", "000000010000000000000002.partial"] {
            assert_eq!(other.parse::<Name>().expect("a name"), Name::Other, "{other}");
        }
        for wrong in ["", "x", "00000003", "%f", "00000001000000000000000g", "../00000003.history"] {
            assert!(wrong.parse::<Name>().is_err(), "{wrong}");
        }
    }
}
