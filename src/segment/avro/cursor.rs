//! Avro's binary encoding, read from bytes that nothing is known about, and written.
//!
//! An int or a long is a zigzag varint, bytes and strings are a long and that many bytes, a union is the number of its
//! branch and its value, an array or a map is blocks of a count and that many items, ended by the count 0.

use crate::error::{Error, Kind, Result};

/// Why bytes cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bad {
    /// They end too early.
    Short,
    /// They are not what they should be.
    Wrong(&'static str),
}

impl Bad {
    /// Returns what a user is told.
    pub(super) fn report(self) -> Error {
        let what = match self {
            Self::Short => "it ends too early",
            Self::Wrong(what) => what,
        };
        Error::new(Kind::Corrupt, format!("it cannot be decoded as Avro: {what}"))
    }
}

/// Reads from the front of bytes.
pub(super) struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The bytes not read yet.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub(super) fn take(&mut self, length: usize) -> Result<&'a [u8], Bad> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(Bad::Short)?;
        self.rest = rest;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Bad> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(Bad::Short)?;
        self.rest = rest;
        Ok(*taken)
    }

    pub(super) fn long(&mut self) -> Result<i64, Bad> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let [byte] = self.array()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok((value >> 1) as i64 ^ -((value & 1) as i64));
            }
        }
        Err(Bad::Wrong("a number has more than 64 bits"))
    }

    pub(super) fn int(&mut self) -> Result<i32, Bad> {
        i32::try_from(self.long()?).map_err(|_| Bad::Wrong("a number has more than 32 bits"))
    }

    /// A length or a count.
    pub(super) fn length(&mut self) -> Result<usize, Bad> {
        usize::try_from(self.long()?).map_err(|_| Bad::Wrong("a length is negative"))
    }

    pub(super) fn bytes(&mut self) -> Result<&'a [u8], Bad> {
        let length = self.length()?;
        self.take(length)
    }

    pub(super) fn string(&mut self) -> Result<&'a str, Bad> {
        std::str::from_utf8(self.bytes()?).map_err(|_| Bad::Wrong("a string is not UTF-8"))
    }

    /// A union of null and bytes.
    pub(super) fn nullable(&mut self) -> Result<Option<&'a [u8]>, Bad> {
        match self.long()? {
            0 => Ok(None),
            1 => self.bytes().map(Some),
            _ => Err(Bad::Wrong("a union has a branch that does not exist")),
        }
    }

    /// The count of a block of an array or a map; 0 after the last.
    pub(super) fn count(&mut self) -> Result<u64, Bad> {
        let count = self.long()?;
        if count < 0 {
            // A negative count stands before the block's length in bytes, for readers that skip it.
            self.length()?;
        }
        Ok(count.unsigned_abs())
    }
}

pub(super) fn put_long(out: &mut Vec<u8>, value: i64) {
    let mut rest = ((value << 1) ^ (value >> 63)) as u64;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

pub(super) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_long(out, bytes.len() as i64);
    out.extend_from_slice(bytes);
}

pub(super) fn put_nullable(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    put_long(out, i64::from(bytes.is_some()));
    if let Some(bytes) = bytes {
        put_bytes(out, bytes);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_are_written_as_the_specification_says() {
        for (number, bytes) in [(0, &[0x00][..]), (-1, &[0x01]), (1, &[0x02]), (-64, &[0x7f]), (64, &[0x80, 0x01])] {
            let mut out = Vec::new();
            put_long(&mut out, number);
            assert_eq!(out, bytes, "{number}");
        }
    }

    #[test]
    fn a_number_of_more_than_64_bits_is_refused() {
        let long = Cursor::new(&[0xff; 12]).long();
        assert_eq!(long, Err(Bad::Wrong("a number has more than 64 bits")));
        let tenth_byte_too_large = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02];
        assert!(Cursor::new(&tenth_byte_too_large).long().is_err());
    }

    proptest! {
        #[test]
        fn numbers_and_bytes_come_back(number: i64, bytes: Option<Vec<u8>>) {
            let mut out = Vec::new();
            put_long(&mut out, number);
            put_nullable(&mut out, bytes.as_deref());
            let mut cursor = Cursor::new(&out);
            prop_assert_eq!(cursor.long(), Ok(number));
            prop_assert_eq!(cursor.nullable(), Ok(bytes.as_deref()));
            prop_assert!(cursor.rest().is_empty());
        }
    }
}
