//! What decides whether a logical slot of a standby lives, and from where on it decodes.
//!
//! ```text
//!  RUNNING_XACTS          i32 running, i32 subtransactions, bool overflowed, u32 next xid, u32 oldest running, u32 latest completed, xids
//!                         (`storage/standbydefs.h`): a slot becomes consistent there, and its catalog_xmin moves to the oldest
//!  from PostgreSQL 16 on, of a relation that logical decoding reads (`isCatalogRel`), with the newest xid whose rows are gone:
//!  Heap2 PRUNE, 16        u32 horizon, u16, u16, bool catalog                            (`access/heapam_xlog.h`)
//!  Heap2 FREEZE_PAGE, 16  u32 horizon, u16, bool catalog
//!  Heap2 PRUNE_*, 17      u8 reason, u8 flags (0x02 catalog, 0x08 the horizon follows), u32 horizon
//!  Heap2 VISIBLE          u32 horizon, u8 flags (0x04 catalog)
//!  Btree DELETE           u32 horizon, u16, u16, bool catalog                            (`access/nbtxlog.h`)
//!  Btree REUSE_PAGE       u32 tablespace, database, relation, block, u64 horizon, bool catalog; the same of GiST
//!  Gist DELETE            u32 horizon, u16, bool catalog                                 (`access/gistxlog.h`)
//!  Hash VACUUM_ONE_PAGE   u32 horizon, u16, bool catalog                                 (`access/hash_xlog.h`)
//!  SPGist VACUUM_REDIRECT u16, u16, u32 horizon, bool catalog                            (`access/spgxlog.h`)
//! ```
//!
//! A standby invalidates the slots of that database (of all, if the relation is shared) with `catalog_xmin` at or before the horizon
//! (`InvalidatePossiblyObsoleteSlot`, replication/slot.c). The records say so only if the server wrote them with `wal_level = logical`.

/// A record that decides about slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotRecord {
    /// The transactions that were running.
    Running(Running),
    /// Rows of a catalog were cleaned up.
    Cleanup(Cleanup),
}

/// Transactions that were running.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Running {
    /// How many, without subtransactions.
    pub running: u32,
    /// The next number that a transaction gets.
    pub next_xid: u32,
    /// The oldest that was running; the next number where none was.
    pub oldest_running_xid: u32,
    /// The latest that had ended.
    pub latest_completed_xid: u32,
    /// Whether subtransactions are missing, for there were too many.
    pub is_overflowed: bool,
}

/// Rows, or entries of an index, of a catalog that are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cleanup {
    /// A slot whose `catalog_xmin` is this or an older one needs what is gone.
    pub horizon: u32,
    /// The database; 0 for a catalog that all share.
    pub database: u32,
    /// The number of the relation's file (`pg_relation_filenode`).
    pub relation: u32,
}

const MANAGER_STANDBY: u8 = 8;
const MANAGER_HEAP2: u8 = 9;
const MANAGER_BTREE: u8 = 11;
const MANAGER_HASH: u8 = 12;
const MANAGER_GIST: u8 = 14;
const MANAGER_SPGIST: u8 = 16;

const RUNNING_XACTS: u8 = 0x10;
/// `XLOG_HEAP_OPMASK`.
const HEAP_OPERATION: u8 = 0x70;
const HEAP2_PRUNE: [u8; 3] = [0x10, 0x20, 0x30];
/// Of 16: what 17 and later have as the second kind of pruning has no horizon there.
const HEAP2_VACUUM: u8 = 0x20;
const HEAP2_FREEZE_PAGE: u8 = 0x30;
const HEAP2_VISIBLE: u8 = 0x40;
const BTREE_DELETE: u8 = 0x70;
const BTREE_REUSE_PAGE: u8 = 0xd0;
const GIST_DELETE: u8 = 0x10;
const GIST_REUSE_PAGE: u8 = 0x20;
const HASH_VACUUM_ONE_PAGE: u8 = 0xc0;
const SPGIST_VACUUM_REDIRECT: u8 = 0x80;

/// `XLHP_IS_CATALOG_REL` and `XLHP_HAS_CONFLICT_HORIZON`.
const PRUNE_OF_CATALOG: u8 = 0x02;
const PRUNE_HAS_HORIZON: u8 = 0x08;
/// `VISIBILITYMAP_XLOG_CATALOG_REL`.
const VISIBLE_OF_CATALOG: u8 = 0x04;

/// Of which version on a record says whether it is of a catalog.
const TELLS_CATALOGS: u32 = 16;

/// Returns whether a record with this `info` of this manager may decide about slots.
pub(super) fn is_told(manager: u8, info: u8, server_version: u32) -> bool {
    let operation = info & 0xf0;
    let is_cleanup = match manager {
        MANAGER_STANDBY => return operation == RUNNING_XACTS,
        MANAGER_HEAP2 => match info & HEAP_OPERATION {
            HEAP2_VACUUM => server_version > TELLS_CATALOGS,
            operation => HEAP2_PRUNE.contains(&operation) || operation == HEAP2_VISIBLE,
        },
        MANAGER_BTREE => matches!(operation, BTREE_DELETE | BTREE_REUSE_PAGE),
        MANAGER_HASH => operation == HASH_VACUUM_ONE_PAGE,
        MANAGER_GIST => matches!(operation, GIST_DELETE | GIST_REUSE_PAGE),
        MANAGER_SPGIST => operation == SPGIST_VACUUM_REDIRECT,
        _ => false,
    };
    is_cleanup && server_version >= TELLS_CATALOGS
}

/// Reads the body of a record that [`is_told`]; none for one that decides nothing.
pub(super) fn read(manager: u8, info: u8, body: &[u8], server_version: u32) -> Option<SlotRecord> {
    let Parts { relation, data } = Parts::of(body)?;
    if manager == MANAGER_STANDBY {
        return Some(SlotRecord::Running(Running {
            running: u32_at(data, 0)?,
            is_overflowed: *data.get(8)? != 0,
            next_xid: u32_at(data, 12)?,
            oldest_running_xid: u32_at(data, 16)?,
            latest_completed_xid: u32_at(data, 20)?,
        }));
    }
    let Flag { at, bit } = Flag::of(manager, info, server_version);
    let is_catalog = data.get(at)? & bit != 0;
    let of_page = || Relation::read(data);
    let (horizon, relation) = match (manager, info & 0xf0) {
        (MANAGER_HEAP2, _) if info & HEAP_OPERATION != HEAP2_VISIBLE && server_version > TELLS_CATALOGS => {
            (if data.get(1)? & PRUNE_HAS_HORIZON != 0 { u32_at(data, 2)? } else { 0 }, relation)
        }
        (MANAGER_BTREE, BTREE_REUSE_PAGE) | (MANAGER_GIST, GIST_REUSE_PAGE) => (u32_at(data, 16)?, of_page()),
        (MANAGER_SPGIST, _) => (u32_at(data, 4)?, relation),
        _ => (u32_at(data, 0)?, relation),
    };
    // Without a horizon nothing conflicts (`ResolveRecoveryConflictWithSnapshot`, standby.c).
    let Relation { database, number } = relation.filter(|_| is_catalog && horizon != 0)?;
    Some(SlotRecord::Cleanup(Cleanup { horizon, database, relation: number }))
}

/// Where the main data of a clean-up says that it is of a catalog.
struct Flag {
    at: usize,
    bit: u8,
}

impl Flag {
    fn of(manager: u8, info: u8, server_version: u32) -> Self {
        let (at, bit) = match (manager, info & 0xf0) {
            (MANAGER_HEAP2, _) if info & HEAP_OPERATION == HEAP2_VISIBLE => (4, VISIBLE_OF_CATALOG),
            (MANAGER_HEAP2, _) if server_version > TELLS_CATALOGS => (1, PRUNE_OF_CATALOG),
            (MANAGER_HEAP2, _) if info & HEAP_OPERATION == HEAP2_FREEZE_PAGE => (6, 1),
            (MANAGER_BTREE, BTREE_REUSE_PAGE) | (MANAGER_GIST, GIST_REUSE_PAGE) => (24, 1),
            (MANAGER_GIST | MANAGER_HASH, _) => (6, 1),
            _ => (8, 1),
        };
        Self { at, bit }
    }
}

/// Takes it out of the body of a clean-up that it is of a catalog: a standby that replays it leaves its slots alone then. Whether it was
/// there.
pub(super) fn hide(manager: u8, info: u8, body: &mut [u8], server_version: u32) -> bool {
    let Flag { at, bit } = Flag::of(manager, info, server_version);
    let Some(length) = Parts::of(body).map(|parts| parts.data.len()) else { return false };
    let flags = body.len().checked_sub(length).and_then(|begins| body.get_mut(begins + at));
    let Some(flags) = flags.filter(|flags| **flags & bit != 0) else { return false };
    *flags &= !bit;
    true
}

/// The relation that a record changes.
#[derive(Clone, Copy)]
struct Relation {
    database: u32,
    number: u32,
}

impl Relation {
    /// Reads tablespace, database and file (`RelFileLocator`).
    fn read(bytes: &[u8]) -> Option<Self> {
        Some(Self { database: u32_at(bytes, 4)?, number: u32_at(bytes, 8)? })
    }
}

/// The parts of a body (`access/xlogrecord.h`).
struct Parts<'a> {
    /// Of the first block; none without one.
    relation: Option<Relation>,
    /// The main data, which stands at the end.
    data: &'a [u8],
}

impl<'a> Parts<'a> {
    fn of(body: &'a [u8]) -> Option<Self> {
        /// `XLR_MAX_BLOCK_ID`.
        const LAST_BLOCK: u8 = 32;
        const HAS_IMAGE: u8 = 0x10;
        const SAME_RELATION: u8 = 0x80;
        /// `BKPIMAGE_HAS_HOLE`, and the ways of compressing an image (15 and newer).
        const HAS_HOLE: u8 = 0x01;
        const IS_COMPRESSED: u8 = 0x1c;
        let (mut relation, mut rest) = (None, body);
        loop {
            let (part, after) = rest.split_first()?;
            match *part {
                255 => return Some(Self { relation, data: last(body, usize::from(*after.first()?))? }),
                254 => return Some(Self { relation, data: last(body, usize::try_from(u32_at(after, 0)?).ok()?)? }),
                253 => rest = after.get(2..)?,
                252 => rest = after.get(4..)?,
                0..=LAST_BLOCK => {
                    let flags = *after.first()?;
                    rest = after.get(3..)?;
                    if flags & HAS_IMAGE != 0 {
                        let image = *rest.get(4)?;
                        let hole = if image & HAS_HOLE != 0 && image & IS_COMPRESSED != 0 { 2 } else { 0 };
                        rest = rest.get(5 + hole..)?;
                    }
                    if flags & SAME_RELATION == 0 {
                        relation = relation.or(Some(Relation::read(rest)?));
                        rest = rest.get(12..)?;
                    }
                    rest = rest.get(4..)?;
                }
                _ => return None,
            }
        }
    }
}

fn last(body: &[u8], length: usize) -> Option<&[u8]> {
    body.get(body.len().checked_sub(length)?..)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|number| u32::from_le_bytes(*number))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A body with one block of the relation 1663/5/2619, with an image, and these main data.
    fn body(data: &[u8]) -> Vec<u8> {
        let image = [1_u8; 100];
        let numbers = [1663_u32, 5, 2619, 7].map(u32::to_le_bytes).concat();
        [
            &[253, 1, 1, 252, 9, 9, 9, 9][..],
            &[0, HAS_IMAGE_AND_DATA, 3, 0, 100, 0, 40, 0, 0x05, 60, 0],
            &numbers,
            &[1, 0x80, 0, 0, 8, 0, 0, 0],
            &[255, u8::try_from(data.len()).expect("it is short")],
            &image,
            &[2; 3],
            data,
        ]
        .concat()
    }
    const HAS_IMAGE_AND_DATA: u8 = 0x30;

    fn found(manager: u8, info: u8, data: &[u8], version: u32) -> Option<Cleanup> {
        assert!(is_told(manager, info, version), "{manager} {info:x} of {version}");
        read(manager, info, &body(data), version).map(|what| match what {
            SlotRecord::Cleanup(cleanup) => cleanup,
            other @ SlotRecord::Running(_) => panic!("{other:?}"),
        })
    }

    #[test]
    fn a_cleanup_of_a_catalog_is_told_whoever_wrote_it() {
        let horizon = 0x0102_0304_u32.to_le_bytes();
        let with = |before: &[u8], after: &[u8]| [before, &horizon, after].concat();
        let page = [1663_u32, 5, 2619, 7].map(u32::to_le_bytes).concat();
        let expected = Some(Cleanup { horizon: 0x0102_0304, database: 5, relation: 2619 });
        // What it is, and where in it the flag stands.
        let cases = [
            (MANAGER_HEAP2, 0x10, 16, with(&[], &[1, 0, 1, 0, 1]), 8, 1),
            (MANAGER_HEAP2, 0x30, 16, with(&[], &[1, 0, 1, 0]), 6, 1),
            (MANAGER_HEAP2, 0x10, 17, with(&[0, 0x2a], &[]), 1, 2),
            (MANAGER_HEAP2, 0x20, 18, with(&[0, 0x2a], &[]), 1, 2),
            (MANAGER_HEAP2, 0x40, 16, with(&[], &[0x07]), 4, 4),
            (MANAGER_BTREE, 0x70, 18, with(&[], &[1, 0, 1, 0, 1]), 8, 1),
            (MANAGER_BTREE, 0xd0, 18, with(&page, &[0, 0, 0, 0, 1]), 24, 1),
            (MANAGER_GIST, 0x10, 17, with(&[], &[1, 0, 1, 0]), 6, 1),
            (MANAGER_GIST, 0x20, 17, with(&page, &[0, 0, 0, 0, 1]), 24, 1),
            (MANAGER_HASH, 0xc0, 16, with(&[], &[1, 0, 1, 0]), 6, 1),
            (MANAGER_SPGIST, 0x80, 16, with(&[1, 0, 1, 0], &[1]), 8, 1),
        ];
        for (manager, info, version, mut data, at, bit) in cases {
            assert_eq!(found(manager, info, &data, version), expected, "{manager} {info:x} of {version}");
            let mut hidden = body(&data);
            assert!(hide(manager, info, &mut hidden, version) && !hide(manager, info, &mut hidden, version));
            data[at] &= !bit;
            assert_eq!(hidden, body(&data), "and nothing else: {manager} {info:x} of {version}");
            assert_eq!(found(manager, info, &data, version), None, "of no catalog: {manager} {info:x} of {version}");
            assert!(!is_told(manager, info, 15), "15 does not say of what a record is");
        }
        assert_eq!(found(MANAGER_HEAP2, 0x10, &[0, 0x22], 17), None, "without a horizon nothing conflicts");
        assert!(!is_told(MANAGER_HEAP2, 0x20, 16), "XLOG_HEAP2_VACUUM of 16 has no horizon");
    }

    #[test]
    fn running_transactions_are_told_of_every_version() {
        let numbers = [2_i32, 1, 0x0f0f_0f01, 900, 890, 899, 890, 895, 896];
        let data: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        let body = [&[255, u8::try_from(data.len()).expect("short")][..], &data].concat();
        let expected = Running {
            running: 2,
            next_xid: 900,
            oldest_running_xid: 890,
            latest_completed_xid: 899,
            is_overflowed: true,
        };
        for version in 13..=18 {
            assert!(is_told(MANAGER_STANDBY, 0x10, version));
            assert_eq!(read(MANAGER_STANDBY, 0x10, &body, version), Some(SlotRecord::Running(expected)));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            body in prop::collection::vec(any::<u8>(), 0..200), manager in 8..17_u8, info in any::<u8>(), version in 13..19_u32,
        ) {
            if is_told(manager, info, version) {
                let _ = read(manager, info, &body, version);
                let _ = hide(manager, info, &mut body.clone(), version);
            }
        }
    }
}
