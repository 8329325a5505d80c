//! What lies inside CopyData while WAL is streamed or a base backup is sent.

use bytes::{BufMut, BytesMut};

use super::message::broken;
use super::{Reader, lossy};
use crate::error::Result;
use crate::stream::Lsn;

/// From the Unix epoch to Postgres' (2000-01-01), in microseconds.
const EPOCH_US: i64 = 946_684_800_000_000;

/// A message of the server while it streams WAL.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::source::postgres) enum Stream<'a> {
    /// WAL from `start` on. `server_end` is where the server's own log ends, `sent_us` its clock (since 1970).
    Wal { start: Lsn, server_end: Lsn, sent_us: i64, bytes: &'a [u8] },
    /// A keepalive.
    Keepalive { server_end: Lsn, sent_us: i64, reply_requested: bool },
}

impl<'a> Stream<'a> {
    pub(in crate::source::postgres) fn parse(data: &'a [u8]) -> Result<Self> {
        Self::read(Reader(data)).ok_or_else(|| broken("a message of the WAL stream that cannot be read".to_owned()))
    }

    fn read(mut data: Reader<'a>) -> Option<Self> {
        Some(match data.u8()? {
            b'w' => Self::Wal {
                start: Lsn(data.u64()?),
                server_end: Lsn(data.u64()?),
                sent_us: data.i64()?.saturating_add(EPOCH_US),
                bytes: data.rest(),
            },
            b'k' => Self::Keepalive {
                server_end: Lsn(data.u64()?),
                sent_us: data.i64()?.saturating_add(EPOCH_US),
                reply_requested: data.u8()? != 0,
            },
            _ => return None,
        })
    }
}

/// A message of the server while it sends a base backup (15 and newer; before, CopyData holds nothing but the archive).
#[derive(Debug, PartialEq, Eq)]
pub(in crate::source::postgres) enum Archive<'a> {
    /// An archive begins. The tablespace is the path on the server, none for the data directory itself.
    New {
        name: String,
        tablespace: Option<String>,
    },
    Data(&'a [u8]),
    Manifest,
    Progress(u64),
}

impl<'a> Archive<'a> {
    pub(in crate::source::postgres) fn parse(data: &'a [u8]) -> Result<Self> {
        Self::read(Reader(data)).ok_or_else(|| broken("a message of the base backup that cannot be read".to_owned()))
    }

    fn read(mut data: Reader<'a>) -> Option<Self> {
        Some(match data.u8()? {
            b'n' => {
                let (name, tablespace) = (data.text()?, data.text()?);
                Self::New { name: lossy(name), tablespace: (!tablespace.is_empty()).then(|| lossy(tablespace)) }
            }
            b'd' => Self::Data(data.rest()),
            b'm' => Self::Manifest,
            b'p' => Self::Progress(data.u64()?),
            _ => return None,
        })
    }
}

/// Appends a standby's report: how far it has written, flushed and applied, and whether the server is to answer.
/// `now_us` is our clock, since 1970.
pub(in crate::source::postgres) fn standby_status(
    out: &mut BytesMut,
    [write, flush, apply]: [Lsn; 3],
    now_us: i64,
    reply: bool,
) {
    // d, length, r, three positions, clock, reply
    out.reserve(1 + 4 + 34);
    out.put_u8(b'd');
    out.put_i32(4 + 34);
    out.put_u8(b'r');
    out.put_u64(write.0);
    out.put_u64(flush.0);
    out.put_u64(apply.0);
    out.put_i64(now_us.saturating_sub(EPOCH_US));
    out.put_u8(u8::from(reply));
}
