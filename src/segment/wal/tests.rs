//! WAL that is made here, byte by byte, as the server makes it.

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::stream::{Format, SegmentRef, sha256};

const OBJECT: &str = "segments/postgres/system=7/timeline=00000001/0000000000000010-0000000000000020-a41c-7.wal.zst";

const FILE: u32 = 1 << 20;

fn system() -> System {
    System { system_id: 7_291_123_456_789_012_345, wal_segment_size: FILE, server_version: 15 }
}

/// Writes records over pages.
struct Log {
    start: u64,
    bytes: Vec<u8>,
    timeline: u32,
    before: u64,
}

impl Log {
    fn new(start: u64, timeline: u32) -> Self {
        Self { start, bytes: Vec::new(), timeline, before: 0 }
    }

    fn at(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    fn page(&mut self, flags: u16, left: u32) {
        let (at, first) = (self.at(), self.at().is_multiple_of(u64::from(FILE)));
        let flags = if first { flags | 0x0002 } else { flags };
        self.bytes.extend_from_slice(&0xD110_u16.to_le_bytes());
        self.bytes.extend_from_slice(&flags.to_le_bytes());
        self.bytes.extend_from_slice(&self.timeline.to_le_bytes());
        self.bytes.extend_from_slice(&at.to_le_bytes());
        self.bytes.extend_from_slice(&left.to_le_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        if first {
            self.bytes.extend_from_slice(&system().system_id.to_le_bytes());
            self.bytes.extend_from_slice(&FILE.to_le_bytes());
            self.bytes.extend_from_slice(&8192_u32.to_le_bytes());
        }
    }

    /// Puts a record down, over as many pages as it needs; `most` bytes of it at the most.
    fn put(&mut self, record: &[u8], most: usize) {
        let mut written = 0;
        while written < record.len().min(most) {
            if self.at().is_multiple_of(8192) {
                let (flags, left) = if written > 0 { (1, record.len() - written) } else { (0, 0) };
                self.page(flags, u32::try_from(left).expect("it fits"));
            }
            let room = (8192 - self.at() % 8192) as usize;
            let piece = room.min(record.len().min(most) - written);
            self.bytes.extend_from_slice(&record[written..written + piece]);
            written += piece;
        }
    }

    fn record(&mut self, manager: u8, info: u8, body: &[u8]) {
        if self.at().is_multiple_of(8192) {
            self.page(0, 0);
        }
        let start = self.at();
        let record = encode(self.before, manager, info, body);
        self.put(&record, usize::MAX);
        self.before = start;
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
    }

    fn commit(&mut self, at_ms: i64) {
        let mut body = vec![252, 9, 9, 9, 9, 255, 8];
        body.extend_from_slice(&((at_ms - 946_684_800_000) * 1000).to_le_bytes());
        self.record(1, 0x80, &body);
    }

    /// A switch of files: the rest of this one is zeros.
    fn switch(&mut self) {
        self.record(0, 0x40, &[]);
        self.bytes.resize(self.bytes.len() + ((self.at().next_multiple_of(u64::from(FILE)) - self.at()) as usize), 0);
    }
}

fn encode(before: u64, manager: u8, info: u8, body: &[u8]) -> Vec<u8> {
    let mut record = Vec::new();
    record.extend_from_slice(&(24 + u32::try_from(body.len()).expect("it fits")).to_le_bytes());
    record.extend_from_slice(&7_u32.to_le_bytes());
    record.extend_from_slice(&before.to_le_bytes());
    record.extend_from_slice(&[info, manager, 0, 0]);
    let crc = crc32c::crc32c_append(crc32c::crc32c(body), &record);
    record.extend_from_slice(&crc.to_le_bytes());
    record.extend_from_slice(body);
    record
}

fn body(length: usize, seed: u8) -> Vec<u8> {
    (0..length).map(|n| (n as u8).wrapping_mul(31).wrapping_add(seed)).collect()
}

/// Three files: records of all lengths, two commits and an abort, a switch in the second file.
fn log() -> Log {
    let mut log = Log::new(u64::from(FILE), 1);
    for n in 0..2_000_usize {
        log.record(10, 0, &body(n * 37 % 900, n as u8));
    }
    log.commit(2_000);
    log.record(10, 0, &body(30_000, 3));
    log.commit(1_000);
    log.record(1, 0x20, &[253, 0, 0, 254, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    log.record(1, 0x10, &[255, 0]);
    log.switch();
    log.record(10, 0, &body(100, 1));
    log
}

fn scan(log: &Log, piece: usize) -> Result<Seen> {
    let mut scanner = WalScanner::new(system(), log.timeline, Lsn(log.start), Lsn(0))?;
    for bytes in log.bytes.chunks(piece) {
        scanner.feed(bytes)?;
    }
    assert_eq!(scanner.position(), Lsn(log.at()));
    Ok(scanner.take())
}

#[test]
fn records_are_followed_over_pages_and_files_whatever_the_pieces() {
    let log = log();
    let expected = Seen {
        commits: 3,
        first_commit: Some(1_000),
        last_commit: Some(946_684_800_000),
        largest_record: 30_024,
        minimal: None,
    };
    for piece in [1, 7, 24, 8_191, 8_192, 100_000, usize::MAX] {
        assert_eq!(scan(&log, piece).expect("sound WAL"), expected, "pieces of {piece}");
    }
}

#[test]
fn a_scan_may_begin_anywhere() {
    let log = log();
    let feed = |begin: usize, bytes: &[u8]| {
        let mut scanner = WalScanner::new(system(), 1, Lsn(log.start + begin as u64), Lsn(0)).expect("a known version");
        scanner.feed(&bytes[begin..]).map(|()| scanner)
    };
    // The last two begin behind the switch: in a generation of a timeline that follows an abandoned one, nobody has seen it.
    let unused = (1 << 20) - 8_192 * 2 + 12;
    for begin in [8, 8_192, 20_000, 8_192 * 40, 8_192 * 40 + 12, 1 << 20, unused, (1 << 20) - 8_192] {
        let mut scanner = feed(begin, &log.bytes).expect("sound WAL");
        assert_eq!(scanner.take().last_commit, if begin < unused { Some(946_684_800_000) } else { None }, "{begin}");
        assert_eq!(scanner.verified().map(|end| end.0), Some(log.at() - 4), "{begin}");
    }
    // Zeros count only up to the end of the file.
    let mut damaged = log.bytes.clone();
    damaged[(1 << 20) - 100] = 1;
    let error = feed(unused, &damaged).map(drop).expect_err("it is no zero");
    assert!(error.to_string().contains("behind a switch"), "{error}");
    damaged[1 << 20] = 0;
    assert!(feed(1 << 20, &damaged).is_err());
}

#[test]
fn what_is_wrong_is_named_with_its_place() {
    let sound = log();
    let said = |at: usize, bytes: &[u8]| {
        let mut log = log();
        log.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        let error = scan(&log, usize::MAX).expect_err("damage");
        assert_eq!(error.kind(), Kind::Corrupt);
        error.to_string()
    };
    assert!(
        said(0, &[0x13, 0xD1]).contains("0/100000 cannot be right: its magic is D113, that of PostgreSQL 15 is D110")
    );
    assert!(said(8_192 + 8, &[1]).contains("its address is 0/102001"));
    assert!(said(8_192 + 2, &[0x11]).contains("flags"));
    assert!(said(4, &[2]).contains("belongs to timeline 2"));
    assert!(said(24, &[1]).contains("written by the system"));
    assert!(said(33, &[1]).contains("files have"));
    assert!(said(8_192 + 16, &[99]).contains("99 bytes of a record go on there"));
    assert!(said(40, &[3, 0]).contains("it has 3 bytes"));
    assert!(said(64 + 8, &[1]).contains("the last one is at 0/100028"));
    assert!(said(64 + 30, &[1]).contains("its CRC is"));
    assert!(said((1 << 20) - 8_192, &[1]).contains("behind a switch"));
    assert!(said((1 << 20) - 1, &[1]).contains("behind a switch"));
    scan(&sound, 10_000).expect("the original is sound");
    let unknown = System { server_version: 12, ..system() };
    assert_eq!(WalScanner::new(unknown, 1, Lsn(0), Lsn(0)).expect_err("too old").kind(), Kind::Unsupported);
}

#[test]
fn a_record_that_a_crash_cut_off_is_overwritten() {
    let mut log = Log::new(0, 1);
    log.record(10, 0, &body(100, 1));
    let cut = encode(log.before, 10, 0, &body(20_000, 2));
    log.put(&cut, 8_192 - 24 - log.at() as usize % 8_192 + 8_168 - 100);
    // The server has written no further than to the end of a page, and goes on with the next one.
    let end = log.bytes.len().next_multiple_of(8_192).min(8_192);
    log.bytes.truncate(end);
    log.page(0x8, 0);
    log.record(0, 0xd0, &body(16, 3));
    log.commit(5_000);
    assert_eq!(scan(&log, 1_000).expect("sound WAL").commits, 1);
}

#[test]
fn a_timeline_begins_with_pages_of_its_parent() {
    let mut log = Log::new(0, 1);
    log.record(10, 0, &body(10_000, 1));
    log.timeline = 2;
    let switch = log.at();
    log.record(0, 0x90, &body(24, 1));
    log.record(10, 0, &body(9_000, 1));
    let mut scanner = WalScanner::new(system(), 2, Lsn(0), Lsn(switch)).expect("a known version");
    scanner.feed(&log.bytes).expect("sound WAL");
    // A page of the parent's cannot lie beyond the switch.
    let mut scanner = WalScanner::new(system(), 2, Lsn(0), Lsn(8_192)).expect("a known version");
    assert!(scanner.feed(&log.bytes).expect_err("the second page").to_string().contains("timeline 1"));
}

fn facts(length: u64) -> WalFacts {
    let created = DateTime::from_timestamp(1_800_000_000, 0).expect("a time");
    WalFacts::new(system(), 1, Lsn(u64::from(FILE))..Lsn(u64::from(FILE) + length), "a41c", created)
}

/// A segment, as a checkpoint names it, and its object.
fn written(bytes: &[u8]) -> (SegmentRef, Vec<u8>) {
    let seen = Seen { commits: 2, first_commit: Some(1), last_commit: Some(5), largest_record: 9, minimal: None };
    let facts = facts(bytes.len() as u64);
    let (segment, object) = seal(&OBJECT.into(), &facts, bytes, &seen, 1).expect("it is sealed");
    assert_eq!((segment.format, segment.bytes, &segment.sha256), (Format::Wal, object.len() as u64, &sha256(&object)));
    assert_eq!((segment.partitions[0].records, segment.partitions[0].max_timestamp), (2, Some(5)));
    (segment, object.into())
}

#[test]
fn an_object_gives_back_its_bytes_and_is_plain_zstd() {
    let log = log();
    let (segment, object) = written(&log.bytes);
    assert!(segment.bytes < segment.raw_bytes / 2);
    assert_eq!(zstd::decode_all(&object[..]).expect("a skippable frame is passed over"), log.bytes);
    let reader = WalReader::decode(object.into()).expect("a segment");
    assert_eq!(*reader.facts(), facts(log.bytes.len() as u64));
    assert_eq!(reader.all().expect("all bytes"), log.bytes);
}

#[test]
fn a_segment_of_the_wrong_length_is_not_sealed() {
    let sealed = seal(&OBJECT.into(), &facts(10), &[1; 9], &Seen::default(), 1);
    assert_eq!(sealed.expect_err("a byte is missing").kind(), Kind::Internal);
}

#[tokio::test]
async fn another_object_than_the_checkpoint_names_is_refused() {
    let store = Store::over(std::sync::Arc::new(object_store::memory::InMemory::new()), "memory:///");
    let (segment, object) = written(&log().bytes);
    let key = crate::store::layout::object(&segment.object).expect("a key");
    let kind = async |segment: &SegmentRef| WalReader::open(&store, segment).await.err().map(|error| error.kind());
    assert_eq!(kind(&segment).await, Some(Kind::NotFound));
    store.put(&key, object.clone().into()).await.expect("it is stored");
    assert_eq!(kind(&segment).await, None);
    let mut other = segment.clone();
    other.partitions[0].end += 1;
    assert_eq!(kind(&other).await, Some(Kind::Corrupt));
    let mut changed = object;
    changed[100] ^= 1;
    store.put(&key, changed.into()).await.expect("it is stored");
    assert_eq!(kind(&segment).await, Some(Kind::Corrupt));
}

use crate::store::Store;

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_make_the_scanner_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..20_000), at in 0..40_000_u64, piece in 1..9_000_usize,
    ) {
        let mut scanner = WalScanner::new(system(), 1, Lsn(at), Lsn(0)).expect("a known version");
        for piece in bytes.chunks(piece) {
            if scanner.feed(piece).is_err() {
                break;
            }
        }
    }

    #[test]
    fn a_changed_byte_is_found_or_was_padding(at in any::<prop::sample::Index>(), flip in 1..=255_u8, piece in 1..9_000_usize) {
        let mut log = log();
        let at = at.index(log.bytes.len());
        log.bytes[at] ^= flip;
        if scan(&log, piece).is_ok() {
            // Unused bytes: the end of a page's header, and up to the next multiple of 8 behind a record. A flag that
            // says that a page may be removed means nothing here.
            let in_header = at % 8_192;
            let padding = log.bytes[at] == flip || (in_header == 2 && flip == 4);
            prop_assert!(padding || (20..24).contains(&in_header), "the byte {at} was changed unseen");
        }
    }

    #[test]
    fn damaged_objects_are_an_error_and_never_a_panic(at in any::<prop::sample::Index>(), flip in 1..=255_u8, cut in any::<bool>()) {
        let bytes = body(30_000, 7);
        let (_, mut object) = written(&bytes);
        let at = at.index(object.len());
        if cut { object.truncate(at) } else { object[at] ^= flip }
        if let Ok(read) = WalReader::decode(Bytes::from(object)).and_then(WalReader::all) {
            // Only the facts can have changed: what is behind them has a checksum.
            prop_assert!(!cut && read == bytes);
        }
    }
}
