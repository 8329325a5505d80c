//! Frames, and the messages in them.

use super::{Reader, lossy};
use crate::error::{Error, Kind, Result};
use crate::source::postgres::error::ServerError;

/// No message that we ask for is longer: rows are short, and copied data come in pieces of at most 128 KiB
/// (`MAX_SEND_SIZE`, walsender.c). A larger number is not a length but noise.
const LONGEST: usize = 64 << 20;

/// The whole length of the message at the front of `buffer`; none while its header is not complete.
///
/// # Errors
/// [`Kind::Corrupt`] for a length that no message has: what speaks there is not PostgreSQL, or the stream is broken.
pub(in crate::source::postgres) fn frame(buffer: &[u8]) -> Result<Option<usize>> {
    let mut reader = Reader(buffer);
    let (Some(tag), Some(length)) = (reader.u8(), reader.i32()) else { return Ok(None) };
    match usize::try_from(length) {
        Ok(length @ 4..LONGEST) => Ok(Some(length + 1)),
        _ => Err(broken(format!("a message {:?} of {length} bytes", char::from(tag)))),
    }
}

/// A message of the server.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::source::postgres) enum Backend<'a> {
    Authentication(Authentication<'a>),
    ParameterStatus {
        name: &'a [u8],
        value: &'a [u8],
    },
    ReadyForQuery,
    RowDescription,
    DataRow(Row<'a>),
    CommandComplete,
    EmptyQuery,
    CopyBoth,
    CopyOut,
    CopyIn,
    CopyData(&'a [u8]),
    CopyDone,
    Error(ServerError),
    Notice(ServerError),
    /// What the protocol allows at any time and we have no use for: keys for cancelling, notifications, the version
    /// that the server would rather speak.
    Ignored,
}

/// What the server wants before it lets us in.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::source::postgres) enum Authentication<'a> {
    Ok,
    Cleartext,
    Md5 {
        salt: [u8; 4],
    },
    /// The mechanisms that it offers.
    Sasl(Vec<&'a [u8]>),
    SaslContinue(&'a [u8]),
    SaslFinal(&'a [u8]),
    /// By its number: Kerberos, GSSAPI, SSPI and the like.
    Other(i32),
}

impl<'a> Backend<'a> {
    /// The message with this tag and body.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] for a message that the protocol does not know or that is cut off.
    pub(in crate::source::postgres) fn parse(tag: u8, body: &'a [u8]) -> Result<Self> {
        Self::read(tag, Reader(body))
            .ok_or_else(|| broken(format!("a message {:?} that cannot be read", char::from(tag))))
    }

    fn read(tag: u8, mut body: Reader<'a>) -> Option<Self> {
        Some(match tag {
            b'R' => Self::Authentication(Authentication::read(body)?),
            b'S' => Self::ParameterStatus { name: body.text()?, value: body.text()? },
            b'Z' => Self::ReadyForQuery,
            b'T' => Self::RowDescription,
            b'D' => Self::DataRow(Row::read(body)?),
            b'C' => Self::CommandComplete,
            b'I' => Self::EmptyQuery,
            b'W' => Self::CopyBoth,
            b'H' => Self::CopyOut,
            b'G' => Self::CopyIn,
            b'd' => Self::CopyData(body.rest()),
            b'c' => Self::CopyDone,
            b'E' => Self::Error(server_error(body)?),
            b'N' => Self::Notice(server_error(body)?),
            b'K' | b'A' | b'v' => Self::Ignored,
            _ => return None,
        })
    }
}

impl<'a> Authentication<'a> {
    fn read(mut body: Reader<'a>) -> Option<Self> {
        Some(match body.i32()? {
            0 => Self::Ok,
            3 => Self::Cleartext,
            5 => Self::Md5 { salt: body.array()? },
            10 => {
                let mut mechanisms = Vec::new();
                loop {
                    match body.text()? {
                        [] => break Self::Sasl(mechanisms),
                        mechanism => mechanisms.push(mechanism),
                    }
                }
            }
            11 => Self::SaslContinue(body.rest()),
            12 => Self::SaslFinal(body.rest()),
            other => Self::Other(other),
        })
    }
}

/// A row of a result, its columns as text.
#[derive(Debug, PartialEq, Eq, Clone)]
pub(in crate::source::postgres) struct Row<'a>(Vec<Option<&'a [u8]>>);

impl<'a> Row<'a> {
    fn read(mut body: Reader<'a>) -> Option<Self> {
        let columns = body.u16()?;
        let column = |_| match body.i32()? {
            -1 => Some(None),
            length => usize::try_from(length).ok().and_then(|length| body.bytes(length)).map(Some),
        };
        (0..columns).map(column).collect::<Option<_>>().map(Self)
    }

    /// All columns as texts.
    pub(in crate::source::postgres) fn texts(&self) -> Vec<Option<String>> {
        self.0.iter().map(|column| column.map(lossy)).collect()
    }

    /// The bytes of column `index`; none if it is null or not there.
    pub(in crate::source::postgres) fn bytes(&self, index: usize) -> Option<&'a [u8]> {
        self.0.get(index).copied().flatten()
    }
}

/// Fields are a letter and a text each, until a zero byte.
fn server_error(mut body: Reader<'_>) -> Option<ServerError> {
    let mut error = ServerError::default();
    loop {
        let field = body.u8()?;
        if field == 0 {
            return Some(error);
        }
        let text = lossy(body.text()?);
        match field {
            b'V' => error.severity = text,
            // The translated severity, for servers that do not send the other; all that we support do.
            b'S' if error.severity.is_empty() => error.severity = text,
            b'C' => error.sqlstate = text,
            b'M' => error.message = text,
            b'D' => error.detail = Some(text),
            b'H' => error.hint = Some(text),
            _ => {}
        }
    }
}

/// The stream of messages cannot be understood.
pub(super) fn broken(what: String) -> Error {
    Error::new(Kind::Corrupt, format!("the server sent {what}"))
        .hint("look for a proxy between tidelog and the server that does not speak PostgreSQL's protocol")
}
