//! Walks through the pages and records of WAL as its bytes come, in pieces of any size.
//!
//! ```text
//!  page, 8 KiB    u16 magic, u16 flags, u32 timeline, u64 address, u32 bytes that are left of a record, 4 bytes unused
//!                 the first of a file also: u64 system id, u32 file size, u32 page size
//!  record         u32 length, u32 xid, u64 address of the record before, u8 info, u8 manager, 2 bytes unused, u32 CRC,
//!                 then the body; it begins at a multiple of 8 and goes on after the headers of the pages that it crosses
//! ```
//!
//! All numbers are in the byte order of the server, which is little-endian on every platform that matters here: another
//! one shows at the first page's magic. The CRC is CRC-32C over the body and then the header before it (`xlogreader.c`,
//! `ValidXLogRecord`). Nothing is buffered but a header and the first bytes of a body, so that a record of a gigabyte
//! costs no memory.
//!
//! A scan that begins in the middle of a page has to wait for the next one, whose header says where a record begins.

use super::ended::{self, Ended, What};
use super::slots;
use crate::error::{Error, Kind, Result};
use crate::stream::{Lsn, System};

/// The size of a page, in bytes. `--with-wal-blocksize` could change it when a server is built; the header of a file's first page
/// tells, and anything else is refused.
pub const PAGE: u64 = 8192;
/// The header of a page, in bytes.
pub const SHORT_HEADER: u64 = 24;
/// The header of a file's first page.
pub const LONG_HEADER: u64 = 40;
const RECORD_HEADER: usize = 24;
/// Where the CRC stands in a record's header, and so how much of the header it covers.
const CRC_AT: usize = 20;
/// Records begin at multiples of this (`MAXALIGN`).
const ALIGN: u64 = 8;
/// No record is longer (`MaxAllocSize`; from PostgreSQL 16 on `XLogRecordMaxSize` is a little less).
const LONGEST_RECORD: u32 = 0x3fff_ffff;

const FIRST_IS_CONTINUED: u16 = 0x0001;
const HAS_LONG_HEADER: u16 = 0x0002;
const FIRST_OVERWRITES: u16 = 0x0008;
const ALL_FLAGS: u16 = 0x000f;

/// Managers of records (`access/rmgrlist.h`) and what of their `info` is looked at.
const MANAGER_XLOG: u8 = 0;
const MANAGER_XACT: u8 = 1;
const XLOG_SWITCH: u8 = 0x40;
/// `XLOG_XACT_OPMASK`, and the operations that carry the time of a commit or an abort (`access/xact.h`).
const XACT_OPERATION: u8 = 0x70;
const XACT_ENDS: [u8; 4] = [0x00, 0x20, 0x30, 0x40];

/// Names of the parts before a record's main data (`access/xlogrecord.h`), and how many bytes follow each.
const PART_ORIGIN: (u8, usize) = (253, 2);
const PART_TOPLEVEL_XID: (u8, usize) = (252, 4);
const PART_DATA_SHORT: (u8, usize) = (255, 1);
const PART_DATA_LONG: (u8, usize) = (254, 4);
/// As many bytes of a body as can stand before and in the time of a commit.
const PREFIX: usize = 32;
/// As many bytes of a body are kept where records are told: enough for a commit of two million subtransactions.
const TOLD: usize = 8 << 20;

/// Milliseconds from 1970 to 2000, from where Postgres counts microseconds.
const EPOCH_MS: i64 = 946_684_800_000;

/// The magic number of WAL pages of a major version (`XLOG_PAGE_MAGIC`); none for a version that is not known here.
pub fn page_magic(server_version: u32) -> Option<u16> {
    match server_version {
        13 => Some(0xD106),
        14 => Some(0xD10D),
        15 => Some(0xD110),
        16 => Some(0xD113),
        17 => Some(0xD116),
        18 => Some(0xD118),
        _ => None,
    }
}

/// Looks at the headers of the pages that begin within `bytes`, which stand at `at`: the first thing that WAL from a wrong
/// place or a wrong server would show. All else is the scanner's work.
///
/// # Errors
/// [`Kind::Corrupt`] for a page that does not belong there.
pub fn check_pages(server_version: u32, at: Lsn, bytes: &[u8]) -> Result<()> {
    let first = at.0.next_multiple_of(PAGE) - at.0;
    for start in (first..bytes.len() as u64).step_by(PAGE as usize) {
        // What is cut off is looked at by the scanner.
        let Some(header) = bytes.get(start as usize..).and_then(|rest| rest.get(..SHORT_HEADER as usize)) else {
            break;
        };
        let (magic, address) = (u16_at(header, 0), u64_at(header, 8));
        let unused = header.iter().all(|byte| *byte == 0);
        let place = at.0 + start;
        if !unused && (Some(magic) != page_magic(server_version) || address != place) {
            return Err(damaged(place, &format!("its magic is {magic:04X} and its address {}", Lsn(address))));
        }
    }
    Ok(())
}

/// What was found in the bytes since the last [`WalScanner::take`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Seen {
    /// Commits and aborts that ended there.
    pub commits: u64,
    /// The least time of one, in ms since 1970.
    pub first_commit: Option<i64>,
    /// The greatest time of one, in ms since 1970.
    pub last_commit: Option<i64>,
    /// The length of the longest record that ended there.
    pub largest_record: u64,
    /// Where the first and the last record begin by which the server went on with `wal_level = minimal`: Postgres recovers nothing
    /// over them.
    pub minimal: Option<(Lsn, Lsn)>,
}

impl Seen {
    /// Adds what was found elsewhere.
    pub fn add(&mut self, other: &Self) {
        self.commits += other.commits;
        self.first_commit = match (self.first_commit, other.first_commit) {
            (Some(one), Some(another)) => Some(one.min(another)),
            (one, another) => one.or(another),
        };
        self.last_commit = self.last_commit.max(other.last_commit);
        self.largest_record = self.largest_record.max(other.largest_record);
        self.minimal = match (self.minimal, other.minimal) {
            (Some(one), Some(another)) => Some((one.0.min(another.0), one.1.max(another.1))),
            (one, another) => one.or(another),
        };
    }

    fn commit(&mut self, at: i64) {
        self.add(&Self { commits: 1, first_commit: Some(at), last_commit: Some(at), ..Self::default() });
    }
}

/// Checks pages and records of one timeline, from one position on.
#[derive(Debug, Clone)]
pub struct WalScanner {
    system: System,
    magic: u16,
    timeline: u32,
    /// Pages from here on belong to the timeline itself; those before were written by an ancestor.
    own_from: u64,
    /// The position of the next byte.
    at: u64,
    page: [u8; LONG_HEADER as usize],
    /// How many bytes of a page's header are there; the header is complete where this is none.
    page_has: Option<usize>,
    /// The timeline of the last page.
    page_timeline: u32,
    state: State,
    /// Where the last record began, which the next one names.
    before: Option<u64>,
    verified: Option<Lsn>,
    seen: Seen,
    /// What a recovery can stop at, where somebody wants to know.
    told: Option<Told>,
}

/// What is told of the records.
#[derive(Debug, Clone, Default)]
struct Told {
    records: Vec<Ended>,
    /// Whether that is also what decides about slots.
    of_slots: bool,
}

#[derive(Debug, Clone)]
enum State {
    /// Before the first page header: where records begin is not known.
    Lost,
    /// Within a record whose beginning was not seen.
    Passing { left: u32 },
    /// Between records: up to the next multiple of 8.
    Between,
    /// Within a record's header.
    Header { start: u64, bytes: [u8; RECORD_HEADER], has: usize },
    /// Within a record's body.
    Body(Body),
    /// After a switch: zeros, to the end of the file.
    Unused,
}

#[derive(Debug, Clone)]
struct Body {
    start: u64,
    header: [u8; RECORD_HEADER],
    prefix: [u8; PREFIX],
    prefix_has: usize,
    /// More of the body, of a record that is to be told.
    kept: Option<Vec<u8>>,
    crc: u32,
    left: u32,
}

impl WalScanner {
    /// A scan from `at` on; `switch` is where the timeline left its parent: 0/0 for the first, the greatest LSN where
    /// that is not known.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] for a major version whose pages are not known.
    pub fn new(system: System, timeline: u32, at: Lsn, switch: Lsn) -> Result<Self> {
        let magic = page_magic(system.server_version).ok_or_else(|| {
            Error::new(Kind::Unsupported, format!("the WAL of PostgreSQL {} is not known", system.server_version))
                .hint("PostgreSQL 13 to 18 can be archived; a newer one needs a newer tidelog")
        })?;
        Ok(Self {
            system,
            magic,
            timeline,
            own_from: switch.0.checked_next_multiple_of(PAGE).unwrap_or(u64::MAX),
            at: at.0,
            page: [0; LONG_HEADER as usize],
            page_has: at.0.is_multiple_of(PAGE).then_some(0),
            page_timeline: 0,
            state: State::Lost,
            before: None,
            verified: None,
            seen: Seen::default(),
            told: None,
        })
    }

    /// The same scan, which also tells the records that a recovery can stop at.
    #[must_use]
    pub fn telling(self) -> Self {
        Self { told: Some(Told::default()), ..self }
    }

    /// The same, which tells the records as well that decide whether a logical slot of a standby lives.
    #[must_use]
    pub fn telling_of_slots(self) -> Self {
        Self { told: Some(Told { of_slots: true, ..Told::default() }), ..self }
    }

    /// The records since the last call that are told, in their order.
    pub fn told(&mut self) -> Vec<Ended> {
        self.told.as_mut().map(|told| std::mem::take(&mut told.records)).unwrap_or_default()
    }

    /// Whose WAL it is.
    pub(super) fn system(&self) -> System {
        self.system
    }

    /// The timeline.
    pub fn timeline(&self) -> u32 {
        self.timeline
    }

    /// The position of the next byte.
    pub fn position(&self) -> Lsn {
        Lsn(self.at)
    }

    /// The end of the last record whose CRC was right; none before the first.
    pub fn verified(&self) -> Option<Lsn> {
        self.verified
    }

    /// Where the last record began whose CRC was right; none before the first.
    pub fn last_record(&self) -> Option<Lsn> {
        self.before.map(Lsn)
    }

    /// What was found since the last call.
    pub fn take(&mut self) -> Seen {
        std::mem::take(&mut self.seen)
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] for bytes that are no WAL of this system, this timeline and this place. Nothing more can be
    /// taken after that.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let taken = match self.page_has {
                Some(has) => self.page_header(has, bytes)?,
                None => {
                    let to_page_end = PAGE - self.at % PAGE;
                    let piece = &bytes[..bytes.len().min(to_page_end as usize)];
                    self.payload(piece)?;
                    piece.len()
                }
            };
            bytes = &bytes[taken..];
            if self.page_has.is_none() && self.at.is_multiple_of(PAGE) {
                self.page_has = Some(0);
            }
        }
        Ok(())
    }

    /// Takes bytes of a page's header; gives how many.
    fn page_header(&mut self, has: usize, bytes: &[u8]) -> Result<usize> {
        let first_of_file = (self.at - has as u64).is_multiple_of(u64::from(self.system.wal_segment_size));
        let wanted = if first_of_file { LONG_HEADER } else { SHORT_HEADER } as usize;
        let taken = bytes.len().min(wanted - has);
        self.page[has..has + taken].copy_from_slice(&bytes[..taken]);
        self.at += taken as u64;
        self.page_has = Some(has + taken);
        if has + taken == wanted {
            self.page_has = None;
            self.begin_page(self.at - wanted as u64, first_of_file)?;
        }
        Ok(taken)
    }

    fn begin_page(&mut self, start: u64, first_of_file: bool) -> Result<()> {
        // A scan that begins behind a switch has not seen it: what is left of the file has to be zeros then.
        let is_unused = self.page[..SHORT_HEADER as usize].iter().all(|byte| *byte == 0);
        if matches!(self.state, State::Lost) && is_unused && !first_of_file {
            self.state = State::Unused;
        }
        if matches!(self.state, State::Unused) {
            if !first_of_file {
                return self.is_zero(start, &self.page[..SHORT_HEADER as usize]);
            }
            self.state = State::Between;
        }
        let wrong = |what: String| Err(damaged(start, &what));
        let (magic, flags) = (u16_at(&self.page, 0), u16_at(&self.page, 2));
        let (timeline, address, left) = (u32_at(&self.page, 4), u64_at(&self.page, 8), u32_at(&self.page, 16));
        if magic != self.magic {
            let version = self.system.server_version;
            return wrong(format!("its magic is {magic:04X}, that of PostgreSQL {version} is {:04X}", self.magic));
        }
        if address != start {
            return wrong(format!("it says that its address is {}", Lsn(address)));
        }
        if flags & !ALL_FLAGS != 0 || (flags & HAS_LONG_HEADER != 0) != first_of_file {
            return wrong(format!("its flags are {flags:04X}"));
        }
        if timeline > self.timeline
            || timeline < self.page_timeline
            || (start >= self.own_from && timeline != self.timeline)
        {
            return wrong(format!("it belongs to timeline {timeline}, and this is timeline {}", self.timeline));
        }
        self.page_timeline = timeline;
        if first_of_file {
            self.check_file(start)?;
        }
        self.join(start, flags, left)
    }

    /// The first page of a file names the system.
    fn check_file(&self, start: u64) -> Result<()> {
        let (system_id, file, page) = (u64_at(&self.page, 24), u32_at(&self.page, 32), u32_at(&self.page, 36));
        if system_id != self.system.system_id {
            let message = format!("it was written by the system {system_id}, and this is {}", self.system.system_id);
            return Err(damaged(start, &message));
        }
        if file != self.system.wal_segment_size || u64::from(page) != PAGE {
            let message = format!(
                "its files have {file} bytes and pages of {page}, and {} and {PAGE} are expected",
                self.system.wal_segment_size
            );
            return Err(damaged(start, &message));
        }
        Ok(())
    }

    /// What a page says about the record that was under way must be what is missing of it.
    fn join(&mut self, start: u64, flags: u16, left: u32) -> Result<()> {
        let continued = flags & FIRST_IS_CONTINUED != 0;
        let expected = match &self.state {
            State::Lost if continued => {
                self.state = State::Passing { left };
                return Ok(());
            }
            State::Lost => {
                self.state = State::Between;
                return Ok(());
            }
            State::Passing { left } => *left,
            State::Between | State::Unused => 0,
            State::Header { has: 0, .. } => 0,
            State::Header { bytes, has, .. } => u32_at(bytes, 0).saturating_sub(*has as u32),
            State::Body(body) => body.left,
        };
        if flags & FIRST_OVERWRITES != 0 {
            // The rest of that record was never written: the server had crashed, and goes on here (PostgreSQL 14,
            // `XLOG_OVERWRITE_CONTRECORD`).
            self.state = State::Between;
            return Ok(());
        }
        if continued != (expected > 0) || (continued && left != expected) {
            let message = format!("{left} bytes of a record go on there, and {expected} are missing of the last one");
            return Err(damaged(start, &message));
        }
        Ok(())
    }

    /// Takes bytes of a page behind its header.
    fn payload(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let taken = match &mut self.state {
                State::Lost => bytes.len(),
                State::Unused => {
                    self.is_zero(self.at, bytes)?;
                    bytes.len()
                }
                State::Passing { left } => {
                    let taken = bytes.len().min(*left as usize);
                    *left -= taken as u32;
                    if *left == 0 {
                        self.state = State::Between;
                    }
                    taken
                }
                State::Between => match ALIGN - self.at % ALIGN {
                    ALIGN => {
                        self.state = State::Header { start: self.at, bytes: [0; RECORD_HEADER], has: 0 };
                        0
                    }
                    padding => bytes.len().min(padding as usize),
                },
                State::Header { bytes: header, has, start } => {
                    let taken = bytes.len().min(RECORD_HEADER - *has);
                    header[*has..*has + taken].copy_from_slice(&bytes[..taken]);
                    *has += taken;
                    // A page may end within the header, and the length says how much follows on the next one.
                    if *has >= 4 {
                        check_length(*start, u32_at(header, 0))?;
                    }
                    if *has == RECORD_HEADER {
                        let (start, header) = (*start, *header);
                        self.begin_body(start, header, self.at + taken as u64)?;
                    }
                    taken
                }
                State::Body(body) => {
                    let taken = bytes.len().min(body.left as usize);
                    body.take(&bytes[..taken]);
                    if body.left == 0 {
                        let body = body.clone();
                        self.end_record(&body, self.at + taken as u64)?;
                    }
                    taken
                }
            };
            self.at += taken as u64;
            bytes = &bytes[taken..];
        }
        Ok(())
    }

    /// A record's header, from `start`, is complete at `end`.
    fn begin_body(&mut self, start: u64, header: [u8; RECORD_HEADER], end: u64) -> Result<()> {
        let named = u64_at(&header, 8);
        if self.before.is_some_and(|before| before != named) {
            let before = Lsn(self.before.unwrap_or_default());
            return Err(record(
                start,
                &format!("it follows a record at {}, and the last one is at {before}", Lsn(named)),
            ));
        }
        let left = u32_at(&header, 0) - RECORD_HEADER as u32;
        let (manager, info, version) = (header[17], header[16], self.system.server_version);
        let is_told = self.told.as_ref().is_some_and(|told| {
            ended::is_told(manager, info) || (told.of_slots && slots::is_told(manager, info, version))
        });
        let kept = is_told.then(Vec::new);
        let body = Body { start, header, prefix: [0; PREFIX], prefix_has: 0, kept, crc: 0, left };
        if left == 0 {
            return self.end_record(&body, end);
        }
        self.state = State::Body(body);
        Ok(())
    }

    fn end_record(&mut self, body: &Body, end: u64) -> Result<()> {
        let crc = crc32c::crc32c_append(body.crc, &body.header[..CRC_AT]);
        let said = u32_at(&body.header, CRC_AT);
        if crc != said {
            return Err(record(body.start, &format!("its CRC is {crc:08X}, and it says {said:08X}")));
        }
        self.before = Some(body.start);
        self.verified = Some(Lsn(end));
        self.seen.largest_record = self.seen.largest_record.max(u64::from(u32_at(&body.header, 0)));
        let (info, manager) = (body.header[16], body.header[17]);
        if manager == MANAGER_XACT
            && XACT_ENDS.contains(&(info & XACT_OPERATION))
            && let Some(at) = body.main_data().and_then(|data| data.first_chunk::<8>())
        {
            self.seen.commit(i64::from_le_bytes(*at).div_euclid(1_000).saturating_add(EPOCH_MS));
        }
        if manager == MANAGER_XLOG && body.main_data().is_some_and(|data| ended::is_minimal(info, data)) {
            let at = Lsn(body.start);
            self.seen.add(&Seen { minimal: Some((at, at)), ..Seen::default() });
        }
        if let (Some(told), Some(kept)) = (&mut self.told, &body.kept) {
            let (lsns, xid) = (Lsn(body.start)..Lsn(end), u32_at(&body.header, 4));
            let version = self.system.server_version;
            if slots::is_told(manager, info, version) {
                let what = slots::read(manager, info, kept, version);
                told.records.extend(what.map(|what| Ended {
                    start: lsns.start,
                    end: lsns.end,
                    at: i64::MIN,
                    what: What::OfSlots(what),
                }));
            } else {
                let data = main_data(kept).unwrap_or_default();
                told.records.extend(ended::read(lsns, (manager, info, xid), data, version));
            }
        }
        let switch = manager == MANAGER_XLOG && info & 0xf0 == XLOG_SWITCH;
        let file = u64::from(self.system.wal_segment_size);
        self.state = if switch && !end.is_multiple_of(file) { State::Unused } else { State::Between };
        Ok(())
    }

    fn is_zero(&self, at: u64, bytes: &[u8]) -> Result<()> {
        match bytes.iter().position(|byte| *byte != 0) {
            None => Ok(()),
            Some(offset) => {
                let message = "it lies behind a switch of files, where nothing but zeros belongs";
                Err(record(at + offset as u64, message))
            }
        }
    }
}

impl Body {
    fn take(&mut self, bytes: &[u8]) {
        let kept = bytes.len().min(PREFIX - self.prefix_has);
        self.prefix[self.prefix_has..self.prefix_has + kept].copy_from_slice(&bytes[..kept]);
        self.prefix_has += kept;
        if let Some(more) = &mut self.kept {
            more.extend_from_slice(&bytes[..bytes.len().min(TOLD.saturating_sub(more.len()))]);
        }
        self.crc = crc32c::crc32c_append(self.crc, bytes);
        self.left -= bytes.len() as u32;
    }

    /// The beginning of the main data of a record without blocks, as far as it was kept.
    fn main_data(&self) -> Option<&[u8]> {
        main_data(&self.prefix[..self.prefix_has])
    }
}

/// The main data of a record without blocks, of the beginning of its body.
fn main_data(mut rest: &[u8]) -> Option<&[u8]> {
    loop {
        let (part, after) = rest.split_first()?;
        let skipped = [PART_ORIGIN, PART_TOPLEVEL_XID].into_iter().find(|(name, _)| name == part);
        if let Some((_, length)) = skipped {
            rest = after.get(length..)?;
            continue;
        }
        let data = [PART_DATA_SHORT, PART_DATA_LONG].into_iter().find(|(name, _)| name == part);
        return data.and_then(|(_, length)| after.get(length..));
    }
}

fn check_length(start: u64, length: u32) -> Result<()> {
    if (RECORD_HEADER as u32..=LONGEST_RECORD).contains(&length) {
        return Ok(());
    }
    Err(record(start, &format!("it says that it has {length} bytes")))
}

fn damaged(page: u64, what: &str) -> Error {
    Error::new(Kind::Corrupt, format!("the page of WAL at {} cannot be right: {what}", Lsn(page)))
}

fn record(start: u64, what: &str) -> Error {
    Error::new(Kind::Corrupt, format!("the WAL at {} cannot be right: {what}", Lsn(start)))
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes[at..].first_chunk().map_or(0, |bytes| u16::from_le_bytes(*bytes))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..].first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes[at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}
