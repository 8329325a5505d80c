//! What a recovery can stop at: commits, aborts and restore points, with their places, times and transactions. And what it
//! needs to know beforehand: limits that were changed, and tablespaces, which it would make at the places that the log names.
//!
//! ```text
//!  COMMIT, ABORT    i64 time, then as `xinfo` says, if `info` has 0x80: u32 xinfo, database, subtransactions, files, statistics,
//!                   invalidations (a commit's only), and of a prepared transaction its xid       (`access/xact.h`)
//!  PREPARE          what a transaction needs to be ended later; its effect is there from here on
//!  RESTORE_POINT    i64 time, 64 bytes of name, up to a zero                                     (`access/xlog_internal.h`)
//!  PARAMETER_CHANGE six u32: connections, workers, senders, prepared transactions, locks, wal_level (`xl_parameter_change`)
//!  TBLSPC_CREATE    u32 number, its place, up to a zero                                          (`commands/tablespace.h`)
//! ```
//!
//! Times are microseconds since 1970, by the clock of the server: just what it compares a target with.

use super::slots::SlotRecord;
use crate::stream::Lsn;

/// A record that a recovery can stop at, or that it needs to know of before it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Where the record begins.
    pub start: Lsn,
    /// Where it ends.
    pub end: Lsn,
    /// Its time, in microseconds since 1970; of a record that has none the least.
    pub at: i64,
    /// What it is.
    pub what: What,
}

/// What a recovery can stop at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// A transaction was committed.
    Commit(Transaction),
    /// A transaction was rolled back. A recovery to a time stops at it, too.
    Abort(Transaction),
    /// A transaction was prepared.
    Prepare,
    /// `pg_create_restore_point(name)`.
    RestorePoint(String),
    /// The server was started with other limits.
    Limits(Limits),
    /// The server was started with `wal_level = minimal`: Postgres recovers nothing over this record
    /// (`CheckRequiredParameterValues`, xlogrecovery.c).
    MinimalWal,
    /// `CREATE TABLESPACE`.
    Tablespace {
        /// Its number.
        oid: u32,
        /// Its place; empty if it lies in the data directory.
        path: String,
    },
    /// What decides about logical slots; told only with [`super::WalScanner::telling_of_slots`].
    OfSlots(SlotRecord),
}

/// A transaction, as the record of its end tells of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Transaction {
    /// Its number, of which the log has 32 bits.
    pub xid: u32,
    /// Its subtransactions that ended with it.
    pub subxids: Vec<u32>,
    /// Whether it was prepared before.
    pub is_prepared: bool,
    /// Its database, where the record names it: always with `wal_level = logical`, else if it changed catalogs.
    pub database: Option<u32>,
}

impl Ended {
    /// Returns where the record ends as Postgres tells it (`pg_waldump`, the positions of logical decoding): with what fills it up to a
    /// multiple of 8 (`XLogReaderState`'s `EndRecPtr`).
    pub fn end_with_padding(&self) -> Lsn {
        Lsn(self.end.0.checked_next_multiple_of(8).unwrap_or(self.end.0))
    }
}

/// `max_connections`, `max_worker_processes`, `max_wal_senders`, `max_prepared_transactions` and `max_locks_per_transaction`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits(pub [u32; 5]);

impl Limits {
    /// Each as high as in one of both.
    #[must_use]
    pub fn max(mut self, other: Self) -> Self {
        self.0.iter_mut().zip(other.0).for_each(|(own, other)| *own = (*own).max(other));
        self
    }
}

/// The manager and operation of records that are told; see [`super::WalScanner::telling`].
const MANAGER_XLOG: u8 = 0;
const MANAGER_XACT: u8 = 1;
const MANAGER_TABLESPACES: u8 = 5;
const XLOG_RESTORE_POINT: u8 = 0x70;
const XLOG_PARAMETER_CHANGE: u8 = 0x60;
const XLOG_TBLSPC_CREATE: u8 = 0x00;
const OPERATION: u8 = 0x70;
const HAS_INFO: u8 = 0x80;
const COMMIT: u8 = 0x00;
const PREPARE: u8 = 0x10;
const ABORT: u8 = 0x20;
const COMMIT_PREPARED: u8 = 0x30;
const ABORT_PREPARED: u8 = 0x40;

const HAS_DATABASE: u32 = 1;
const HAS_SUBTRANSACTIONS: u32 = 1 << 1;
const HAS_FILES: u32 = 1 << 2;
const HAS_INVALIDATIONS: u32 = 1 << 3;
const IS_PREPARED: u32 = 1 << 4;
const HAS_STATISTICS: u32 = 1 << 8;

/// Microseconds from 1970 to 2000, from where Postgres counts.
const EPOCH_US: i64 = 946_684_800_000_000;
/// `MAXFNAMELEN`.
const NAME: usize = 64;

/// Returns whether a record with this `info` of this manager is one to tell.
pub(super) fn is_told(manager: u8, info: u8) -> bool {
    match manager {
        MANAGER_XLOG => matches!(info & 0xf0, XLOG_RESTORE_POINT | XLOG_PARAMETER_CHANGE),
        MANAGER_TABLESPACES => info & 0xf0 == XLOG_TBLSPC_CREATE,
        MANAGER_XACT => matches!(info & OPERATION, COMMIT | PREPARE | ABORT | COMMIT_PREPARED | ABORT_PREPARED),
        _ => false,
    }
}

/// Reads a record that [`is_told`]; none for one that is cut off or longer than was kept.
pub(super) fn read(
    lsns: std::ops::Range<Lsn>,
    (manager, info, xid): (u8, u8, u32),
    data: &[u8],
    server_version: u32,
) -> Option<Ended> {
    let known = |what| Some(Ended { start: lsns.start, end: lsns.end, at: i64::MIN, what });
    match (manager, info & 0xf0) {
        (MANAGER_XLOG, XLOG_PARAMETER_CHANGE) if is_minimal(info, data) => return known(What::MinimalWal),
        (MANAGER_XLOG, XLOG_PARAMETER_CHANGE) => return known(What::Limits(limits(data)?)),
        (MANAGER_TABLESPACES, _) => {
            let (oid, path) = number(data)?;
            let path = String::from_utf8_lossy(path.split(|byte| *byte == 0).next()?).into_owned();
            return known(What::Tablespace { oid, path });
        }
        (MANAGER_XACT, _) if info & OPERATION == PREPARE => return known(What::Prepare),
        _ => {}
    }
    let (time, rest) = data.split_first_chunk::<8>()?;
    let at = i64::from_le_bytes(*time).saturating_add(EPOCH_US);
    let what = if manager == MANAGER_XLOG {
        let name = rest.get(..NAME)?.split(|byte| *byte == 0).next()?;
        What::RestorePoint(String::from_utf8_lossy(name).into_owned())
    } else {
        let transaction = transaction(info, xid, rest, server_version);
        match info & OPERATION {
            COMMIT | COMMIT_PREPARED => What::Commit(transaction),
            _ => What::Abort(transaction),
        }
    };
    Some(Ended { start: lsns.start, end: lsns.end, at, what })
}

/// The transaction that a record ends (`ParseCommitRecord`, `xactdesc.c`), as far as the record was kept.
fn transaction(info: u8, xid: u32, rest: &[u8], server_version: u32) -> Transaction {
    let is_prepared = matches!(info & OPERATION, COMMIT_PREPARED | ABORT_PREPARED);
    let mut transaction = Transaction { xid, is_prepared, ..Transaction::default() };
    if info & HAS_INFO != 0 {
        let prepared = transaction.read_parts(rest, server_version);
        transaction.xid = prepared.filter(|_| is_prepared).unwrap_or(xid);
    }
    transaction
}

impl Transaction {
    /// Reads what follows the time; gives the number of a prepared transaction.
    fn read_parts(&mut self, rest: &[u8], server_version: u32) -> Option<u32> {
        let (xinfo, mut rest) = number(rest)?;
        if xinfo & HAS_DATABASE != 0 {
            self.database = Some(number(rest)?.0);
            rest = rest.get(8..)?;
        }
        // The statistics' objects have 64 bits from PostgreSQL 18 on.
        let statistics = if server_version >= 18 { 16 } else { 12 };
        let lists = [(HAS_SUBTRANSACTIONS, 4), (HAS_FILES, 12), (HAS_STATISTICS, statistics), (HAS_INVALIDATIONS, 16)];
        for (flag, size) in lists {
            if xinfo & flag != 0 {
                let (count, items) = number(rest)?;
                let length = usize::try_from(count).ok()?.checked_mul(size)?;
                if flag == HAS_SUBTRANSACTIONS {
                    let subxids = items.get(..length)?.chunks_exact(size).filter_map(number);
                    self.subxids = subxids.map(|(xid, _)| xid).collect();
                }
                rest = items.get(length..)?;
            }
        }
        (xinfo & IS_PREPARED != 0).then(|| number(rest)).flatten().map(|(xid, _)| xid)
    }
}

/// Returns whether a record of this `info` of the log's own manager says that the server writes too little for a recovery from now on.
pub(super) fn is_minimal(info: u8, data: &[u8]) -> bool {
    /// `WAL_LEVEL_MINIMAL`, and where the level stands.
    const MINIMAL: &[u8] = &[0; 4];
    info & 0xf0 == XLOG_PARAMETER_CHANGE && data.get(20..24) == Some(MINIMAL)
}

fn limits(mut data: &[u8]) -> Option<Limits> {
    let mut limits = Limits::default();
    for limit in &mut limits.0 {
        (*limit, data) = number(data)?;
    }
    Some(limits)
}

fn number(bytes: &[u8]) -> Option<(u32, &[u8])> {
    bytes.split_first_chunk().map(|(number, rest)| (u32::from_le_bytes(*number), rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn data(xinfo: u32, parts: &[&[u8]]) -> Vec<u8> {
        [&1_500_000_i64.to_le_bytes()[..], &xinfo.to_le_bytes(), &parts.concat()].concat()
    }

    #[test]
    fn a_prepared_transaction_is_found_behind_whatever_stands_before_it() {
        let xid = 0x1234_u32.to_le_bytes();
        let list = |count: u32, size: usize| [&count.to_le_bytes()[..], &vec![9; count as usize * size]].concat();
        for (version, statistics) in [(13, 12), (17, 12), (18, 16)] {
            let all = data(
                HAS_DATABASE | HAS_SUBTRANSACTIONS | HAS_FILES | HAS_STATISTICS | HAS_INVALIDATIONS | IS_PREPARED,
                &[&[7; 8], &list(3, 4), &list(2, 12), &list(1, statistics), &list(4, 16), &xid],
            );
            let lsns = Lsn(8)..Lsn(16);
            let found = read(lsns.clone(), (MANAGER_XACT, COMMIT_PREPARED | HAS_INFO, 7), &all, version);
            let transaction = Transaction {
                xid: 0x1234,
                subxids: vec![0x0909_0909; 3],
                is_prepared: true,
                database: Some(0x0707_0707),
            };
            let what = What::Commit(transaction);
            assert_eq!(found, Some(Ended { start: Lsn(8), end: Lsn(16), at: EPOCH_US + 1_500_000, what }));
            let none = read(lsns, (MANAGER_XACT, ABORT, 7), &data(0, &[]), version).map(|ended| ended.what);
            assert_eq!(none, Some(What::Abort(Transaction { xid: 7, ..Transaction::default() })));
        }
    }

    #[test]
    fn a_restore_point_has_a_name() {
        let mut record = data(0, &[&[0; 80]]);
        record[8..8 + 7].copy_from_slice(b"release");
        let found = read(Lsn(0)..Lsn(1), (MANAGER_XLOG, XLOG_RESTORE_POINT, 0), &record, 15);
        assert_eq!(found.map(|ended| ended.what), Some(What::RestorePoint("release".to_owned())));
    }

    #[test]
    fn limits_and_tablespaces_are_told_and_have_no_time() {
        let numbers: Vec<u8> = [300_u32, 8, 10, 2, 64, 1].iter().flat_map(|number| number.to_le_bytes()).collect();
        let found = read(Lsn(0)..Lsn(1), (MANAGER_XLOG, XLOG_PARAMETER_CHANGE, 0), &numbers, 15).expect("read");
        assert_eq!((found.at, found.what), (i64::MIN, What::Limits(Limits([300, 8, 10, 2, 64]))));
        let minimal: Vec<u8> = [300_u32, 8, 0, 2, 64, 0].iter().flat_map(|number| number.to_le_bytes()).collect();
        let found = read(Lsn(0)..Lsn(1), (MANAGER_XLOG, XLOG_PARAMETER_CHANGE, 0), &minimal, 15).expect("read");
        assert_eq!(found.what, What::MinimalWal);
        let place = [&7_u32.to_le_bytes()[..], b"/fast disk\0"].concat();
        let found = read(Lsn(0)..Lsn(1), (MANAGER_TABLESPACES, XLOG_TBLSPC_CREATE, 0), &place, 15).expect("read");
        assert_eq!(found.what, What::Tablespace { oid: 7, path: "/fast disk".to_owned() });
        assert!(!is_told(MANAGER_TABLESPACES, 0x10), "a drop makes nothing");
        assert_eq!(Limits([1, 9, 3, 0, 5]).max(Limits([2, 8, 3, 1, 4])), Limits([2, 9, 3, 1, 5]));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(data in prop::collection::vec(any::<u8>(), 0..200), info in any::<u8>(), manager in 0..6_u8) {
            drop(read(Lsn(0)..Lsn(1), (manager, info, 1), &data, 18));
        }
    }
}
