//! The bytes of PostgreSQL's protocol 3.0, as far as a replication client meets them. No socket is seen here, and no
//! input makes it panic.
//!
//! ```text
//!   from the server  ──►  tag: u8 | length: i32, itself included | body     frame() ─► Backend::parse()
//!        CopyData body ──►  w  start, server's end, clock, WAL bytes        Stream::parse()     (streaming)
//!                           k  server's end, clock, reply wanted
//!                      ──►  n  archive, tablespace   d  bytes   m  manifest follows   p  bytes done   (base backup, 15+)
//!   to the server    ◄──  CopyData( r  write, flush, apply, clock, reply wanted )       standby_status()
//! ```
//!
//! Chapters "Message Formats" and "Streaming Replication Protocol" of the PostgreSQL documentation. Numbers are big
//! endian, times are microseconds since 2000.

mod message;
mod replication;

pub(super) use message::{Authentication, Backend, frame};
pub(super) use replication::{Archive, Stream, standby_status};

/// Takes numbers and texts off the front of a message; none at its end.
#[derive(Clone, Copy)]
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_be_bytes)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn i32(&mut self) -> Option<i32> {
        self.array().map(i32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    fn i64(&mut self) -> Option<i64> {
        self.array().map(i64::from_be_bytes)
    }

    /// A text that a zero byte ends.
    fn text(&mut self) -> Option<&'a [u8]> {
        let end = self.0.iter().position(|byte| *byte == 0)?;
        let text = self.bytes(end)?;
        self.0 = &self.0[1..];
        Some(text)
    }

    fn rest(self) -> &'a [u8] {
        self.0
    }
}

/// A server's text. What it says before the encoding is agreed on may be in any encoding.
fn lossy(text: &[u8]) -> String {
    String::from_utf8_lossy(text).into_owned()
}

#[cfg(test)]
mod tests;
