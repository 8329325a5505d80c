//! The limits of a server that a recovery of its WAL needs at least as high, or it stops half-way.
//!
//! A recovery that may be read from has room for as many transactions and locks as the server had
//! (`CheckRequiredParameterValues`, xlogrecovery.c): up to PostgreSQL 13 it ends where they are too low, from 14 on it pauses. The
//! values stand in `pg_control` as of the backup, and in an `XLOG_PARAMETER_CHANGE` where they changed later.

use std::path::Path;

use super::foresight::Foreseen;
use super::inherited::Inherited;
use crate::error::{Error, Kind, Result};
use crate::segment::wal::Limits;

/// The settings, in the order of the record and of `pg_control`, with their defaults.
const NAMES: [(&str, u32); 5] = [
    ("max_connections", 100),
    ("max_worker_processes", 8),
    ("max_wal_senders", 10),
    ("max_prepared_transactions", 0),
    ("max_locks_per_transaction", 64),
];

/// Where the version of the layout and the limits stand in `pg_control` (`ControlFileData`, catalog/pg_control.h): the same in
/// PostgreSQL 13 to 18.
const VERSION_AT: usize = 8;
const LIMITS_AT: usize = 180;
const VERSIONS: [u32; 3] = [1300, 1700, 1800];

/// The limits as of the backup.
///
/// # Errors
/// [`Kind::Unsupported`] for a layout that is not known.
pub(super) fn of_control_file(data: &Path) -> Result<Limits> {
    let file = data.join("global/pg_control");
    let bytes = std::fs::read(&file).map_err(|source| Error::io(source, format!("cannot read {}", file.display())))?;
    parse(&bytes).ok_or_else(|| {
        Error::new(Kind::Unsupported, format!("{} has a layout that is not known", file.display()))
            .hint("PostgreSQL 13 to 18 can be restored; a newer one needs a newer tidelog")
    })
}

fn parse(bytes: &[u8]) -> Option<Limits> {
    let number = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
    VERSIONS.contains(&number(VERSION_AT)?).then_some(())?;
    let mut limits = [0; 5];
    for (limit, at) in limits.iter_mut().zip((LIMITS_AT..).step_by(4)) {
        *limit = number(at)?;
    }
    Some(Limits(limits))
}

/// The settings that a server over a restored directory needs at the least, whatever its configuration says.
///
/// # Errors
/// A `pg_control` of a layout that is not known.
pub fn limits_of(data: &Path, foreseen: &Foreseen) -> Result<Vec<(&'static str, u32)>> {
    Ok(to_raise(of_control_file(data)?.max(foreseen.limits), &Inherited::default()))
}

/// The settings that have to be higher than the configuration says.
pub(super) fn to_raise(needed: Limits, inherited: &Inherited) -> Vec<(&'static str, u32)> {
    let all = NAMES.iter().zip(needed.0).map(|((name, default), needed)| (*name, *default, needed));
    // Where the configuration lies elsewhere nobody knows what it says.
    let is_low = |name: &str, default: u32, needed: u32| {
        let configured = inherited.get(name).and_then(|value| value.parse().ok());
        !inherited.has_main || configured.unwrap_or(default) < needed
    };
    all.filter(|(name, default, needed)| is_low(name, *default, *needed))
        .map(|(name, _, needed)| (name, needed))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_configured_high_enough_is_left_alone() {
        let folder = tempfile::tempdir().expect("a directory");
        std::fs::write(folder.path().join("postgresql.conf"), "max_connections = 300\n").expect("written");
        let inherited = Inherited::read(folder.path());
        assert_eq!(to_raise(Limits([300, 8, 12, 0, 64]), &inherited), [("max_wal_senders", 12)]);
        assert_eq!(to_raise(Limits([20, 8, 10, 0, 64]), &Inherited::default()).len(), 5);
    }

    #[test]
    fn a_control_file_of_another_layout_is_refused() {
        let mut bytes = vec![0; 8192];
        assert_eq!(parse(&bytes), None);
        bytes[8..12].copy_from_slice(&1300_u32.to_le_bytes());
        bytes[180..184].copy_from_slice(&7_u32.to_le_bytes());
        assert_eq!(parse(&bytes), Some(Limits([7, 0, 0, 0, 0])));
        assert_eq!(parse(&bytes[..190]), None);
    }
}
