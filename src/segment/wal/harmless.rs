//! A copy of WAL in which clean-ups of some catalogs do not say any more that they are of a catalog.
//!
//! ```text
//!   record          header, … CRC │ blocks, main data with the flag `isCatalogRel`          (see `slots`)
//!                              ▲                              │ cleared
//!                              └──── made again ◄─────────────┘                 length and all positions stay
//! ```
//!
//! A standby takes that flag alone for the reason to invalidate its logical slots (`ResolveRecoveryConflictWithSnapshot`, standby.c).
//! Decoding reads no statistics of the planner, so for those it invalidates without need. For other catalogs the need is real: a slot
//! that lived on would decode with rows that are gone ("could not map filenumber … to relation OID").

use std::collections::BTreeSet;
use std::ops::Range;

use super::ended::What;
use super::records::{LONG_HEADER, PAGE, SHORT_HEADER, WalScanner};
use super::slots::{self, SlotRecord};
use crate::error::{Error, Kind, Result};
use crate::stream::Lsn;

/// Files of relations: of which database, and the number.
pub type Relations = BTreeSet<(u32, u32)>;

const RECORD_HEADER: usize = 24;
/// Where the CRC stands in a record's header.
const CRC_AT: usize = 20;

/// Clears the flag in the records of these relations that are whole within `bytes`, which begin at the position of `scanner`; gives how
/// many there were.
///
/// # Errors
/// [`Kind::Corrupt`] for bytes that are no WAL of that system.
pub fn make_harmless(scanner: WalScanner, bytes: &mut [u8], relations: &Relations) -> Result<usize> {
    let (at, system) = (scanner.position(), scanner.system());
    let mut scanner = scanner.telling_of_slots();
    scanner.feed(bytes)?;
    let mut count = 0;
    for ended in scanner.told() {
        let What::OfSlots(SlotRecord::Cleanup(cleanup)) = ended.what else { continue };
        if !relations.contains(&(cleanup.database, cleanup.relation)) {
            continue;
        }
        let places = places(ended.start..ended.end, at, u64::from(system.wal_segment_size));
        let mut record: Vec<u8> = places.iter().filter_map(|place| bytes.get(*place).copied()).collect();
        let Some((header, body)) = record.split_at_mut_checked(RECORD_HEADER) else {
            return Err(out_of_step(&ended.start));
        };
        if !slots::hide(header[17], header[16], body, system.server_version) {
            return Err(out_of_step(&ended.start));
        }
        let crc = crc32c::crc32c_append(crc32c::crc32c(body), &header[..CRC_AT]);
        header[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        for (place, byte) in places.into_iter().zip(record) {
            bytes[place] = byte;
        }
        count += 1;
    }
    Ok(count)
}

/// Where the bytes of a record stand, without the headers of the pages that it crosses, in bytes that begin at a position.
fn places(record: Range<Lsn>, at: Lsn, file: u64) -> Vec<usize> {
    let is_header = |position: u64| {
        let page = position - position % PAGE;
        position - page < if page.is_multiple_of(file.max(1)) { LONG_HEADER } else { SHORT_HEADER }
    };
    let positions = (record.start.0..record.end.0).filter(|position| !is_header(*position));
    positions.filter_map(|position| usize::try_from(position.checked_sub(at.0)?).ok()).collect()
}

fn out_of_step(at: &Lsn) -> Error {
    Error::new(Kind::Internal, format!("the record at {at} was read one way and is another"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::System;

    const FILE: u64 = 1 << 20;
    const SYSTEM: System = System { system_id: 7, wal_segment_size: 1 << 20, server_version: 17 };

    /// WAL of 17 from the beginning of its second file: records of clean-ups, one after the other, over several pages.
    fn wal(relations: &[(u32, u32)]) -> Vec<u8> {
        let (mut bytes, mut before) = (Vec::new(), 0_u64);
        for (database, number) in relations {
            let place = [1663_u32, *database, *number, 7].map(u32::to_le_bytes).concat();
            // A block with an image, and the main data of a prune: its reason, its flags, its horizon.
            let body =
                [&[0, 0x30, 0, 0, 0xd0, 0x07, 0, 0, 0][..], &place, &[255, 6], &[5; 2000], &[0, 0x0a], &[9, 0, 0, 0]]
                    .concat();
            while !(FILE + bytes.len() as u64).is_multiple_of(8) {
                push(&mut bytes, &[0], 0);
            }
            // Records begin behind the header of a page.
            if (FILE + bytes.len() as u64).is_multiple_of(PAGE) {
                page(&mut bytes, 0);
            }
            let start = FILE + bytes.len() as u64;
            let length = u32::try_from(RECORD_HEADER + body.len()).expect("short");
            let mut header = [&length.to_le_bytes()[..], &[0; 4], &before.to_le_bytes(), &[0x10, 9, 0, 0]].concat();
            let crc = crc32c::crc32c_append(crc32c::crc32c(&body), &header);
            header.extend(crc.to_le_bytes());
            let record = [header, body].concat();
            push(&mut bytes, &record, record.len());
            before = start;
        }
        bytes
    }

    fn push(bytes: &mut Vec<u8>, piece: &[u8], of_record: usize) {
        for (at, byte) in piece.iter().enumerate() {
            if (FILE + bytes.len() as u64).is_multiple_of(PAGE) {
                page(bytes, of_record.saturating_sub(at));
            }
            bytes.push(*byte);
        }
    }

    fn page(bytes: &mut Vec<u8>, left: usize) {
        let at = FILE + bytes.len() as u64;
        let is_first = at.is_multiple_of(FILE);
        let flags = u16::from(left > 0) | if is_first { 2 } else { 0 };
        bytes.extend(0xD116_u16.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(1_u32.to_le_bytes());
        bytes.extend(at.to_le_bytes());
        bytes.extend(u32::try_from(left).expect("short").to_le_bytes());
        bytes.extend([0; 4]);
        if is_first {
            bytes.extend(7_u64.to_le_bytes());
            bytes.extend(u32::try_from(FILE).expect("short").to_le_bytes());
            bytes.extend(8192_u32.to_le_bytes());
        }
    }

    fn told(bytes: &[u8], at: Lsn) -> Vec<u32> {
        let scanner = WalScanner::new(SYSTEM, 1, at, Lsn(0)).expect("a scanner");
        let mut scanner = scanner.telling_of_slots();
        scanner.feed(bytes).expect("its CRCs are right");
        let relation = |what: &What| match what {
            What::OfSlots(SlotRecord::Cleanup(cleanup)) => cleanup.relation,
            other => panic!("{other:?}"),
        };
        scanner.told().iter().map(|ended| relation(&ended.what)).collect()
    }

    #[test]
    fn only_the_named_relations_of_that_database_stop_being_catalogs_and_every_crc_is_right() {
        let all: Vec<(u32, u32)> = (0..40).map(|n| [(5, 2619), (5, 1259), (6, 2619), (5, 2696)][n % 4]).collect();
        let whole = wal(&all);
        assert_eq!(told(&whole, Lsn(FILE)).len(), 40);
        let relations = Relations::from([(5, 2619), (5, 2696)]);
        let scanner = || WalScanner::new(SYSTEM, 1, Lsn(FILE), Lsn(0)).expect("a scanner");
        let mut bytes = whole.clone();
        assert_eq!(make_harmless(scanner(), &mut bytes, &relations).expect("WAL"), 20);
        let left = told(&bytes, Lsn(FILE));
        assert_eq!(left, (0..20).map(|n| [1259, 2619][n % 2]).collect::<Vec<_>>());
        // Of each record one byte of flags and the CRC, and nothing else.
        let differ = whole.iter().zip(&bytes).filter(|(one, other)| one != other).count();
        assert!((20 * 2..=20 * 5).contains(&differ), "{differ}");
        let again = make_harmless(scanner(), &mut bytes, &relations).expect("WAL");
        assert_eq!(again, 0, "there is nothing left to do");
        let elsewhere = Relations::from([(7, 2619)]);
        assert_eq!(make_harmless(scanner(), &mut whole.clone(), &elsewhere).expect("WAL"), 0);
    }

    #[test]
    fn a_record_that_goes_beyond_what_is_there_stays_as_it_is() {
        let whole = wal(&[(5, 2619); 12]);
        let relations = Relations::from([(5, 2619)]);
        let cut = 3 * usize::try_from(PAGE).expect("small");
        let mut part = whole[..cut].to_vec();
        let scanner = WalScanner::new(SYSTEM, 1, Lsn(FILE), Lsn(0)).expect("a scanner");
        let count = make_harmless(scanner, &mut part, &relations).expect("WAL");
        assert_eq!(count, 11);
        // The same from the second page on: that of which the header was not seen is not one's own.
        let from = usize::try_from(PAGE).expect("small");
        let mut rest = whole[from..].to_vec();
        let scanner = WalScanner::new(SYSTEM, 1, Lsn(FILE + PAGE), Lsn(0)).expect("a scanner");
        assert_eq!(make_harmless(scanner, &mut rest, &relations).expect("WAL"), 12 - 4);
    }
}
