//! As much of Thrift's compact protocol as it takes to look at a footer or the header of a page before the decoder does
//! (<https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md>): numbers, and what is to be passed over.
//!
//! Nothing here allocates, and a list is never longer than the bytes that it is made of.

/// Why bytes cannot be read.
pub(super) type Bad = &'static str;

const ENDS: Bad = "it ends too early";

/// Structs within structs are no deeper than this in a Parquet file.
const DEEPEST: u8 = 12;

/// The types of the protocol that are told apart here.
pub(super) mod kind {
    pub(in super::super) const I32: u8 = 5;
    pub(in super::super) const LIST: u8 = 9;
    pub(in super::super) const STRUCT: u8 = 12;
}

/// Reads from the front of bytes.
pub(super) struct Thrift<'a> {
    rest: &'a [u8],
    /// The longest list that is passed over.
    longest: u64,
}

impl<'a> Thrift<'a> {
    /// Reads these bytes, in which no list is longer than `longest`.
    pub(super) fn new(rest: &'a [u8], longest: u64) -> Self {
        Self { rest, longest }
    }

    /// The bytes not read yet.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    fn byte(&mut self) -> Result<u8, Bad> {
        let (first, rest) = self.rest.split_first().ok_or(ENDS)?;
        self.rest = rest;
        Ok(*first)
    }

    fn bytes(&mut self, count: u64) -> Result<(), Bad> {
        let count = usize::try_from(count).map_err(|_| ENDS)?;
        self.rest = self.rest.get(count..).ok_or(ENDS)?;
        Ok(())
    }

    /// A number in groups of 7 bits.
    pub(super) fn varint(&mut self) -> Result<u64, Bad> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err("a number has more than 64 bits")
    }

    /// A number of a field.
    pub(super) fn number(&mut self) -> Result<i64, Bad> {
        let bits = self.varint()?;
        Ok((bits >> 1).cast_signed() ^ -((bits & 1).cast_signed()))
    }

    /// The next field of a struct, its number and its type; none at the end. `last` is the number of the one before.
    pub(super) fn field(&mut self, last: &mut i64) -> Result<Option<(i64, u8)>, Bad> {
        let head = self.byte()?;
        if head == 0 {
            return Ok(None);
        }
        *last = match head >> 4 {
            0 => self.number()?,
            distance => last.saturating_add(distance.into()),
        };
        Ok(Some((*last, head & 0x0f)))
    }

    /// Passes over a value.
    pub(super) fn skip(&mut self, kind: u8) -> Result<(), Bad> {
        self.skip_at(kind, false, DEEPEST)
    }

    fn skip_at(&mut self, kind: u8, listed: bool, depth: u8) -> Result<(), Bad> {
        let depth = depth.checked_sub(1).ok_or("its structs are too deep")?;
        match kind {
            // A field of the type is its value.
            1 | 2 if !listed => Ok(()),
            1..=3 => self.bytes(1),
            4..=6 => self.varint().map(|_| ()),
            7 => self.bytes(8),
            8 => self.varint().and_then(|length| self.bytes(length)),
            9 | 10 => {
                let (count, kind) = self.list()?;
                (0..count).try_for_each(|_| self.skip_at(kind, true, depth))
            }
            11 => {
                let count = self.varint()?;
                let kinds = if count == 0 { 0 } else { self.byte()? };
                self.is_short(count)?;
                (0..count).try_for_each(|_| {
                    self.skip_at(kinds >> 4, true, depth)?;
                    self.skip_at(kinds & 0x0f, true, depth)
                })
            }
            12 => {
                let mut last = 0;
                while let Some((_, kind)) = self.field(&mut last)? {
                    self.skip_at(kind, false, depth)?;
                }
                Ok(())
            }
            13 => self.bytes(16),
            _ => Err("a type does not exist"),
        }
    }

    /// Returns how many items a list has, and of which type.
    pub(super) fn list(&mut self) -> Result<(u64, u8), Bad> {
        let head = self.byte()?;
        let count = if head >> 4 == 15 { self.varint()? } else { u64::from(head >> 4) };
        self.is_short(count)?;
        Ok((count, head & 0x0f))
    }

    /// Every item has a byte at the least.
    fn is_short(&self, count: u64) -> Result<(), Bad> {
        if count > self.longest || count > self.rest.len() as u64 {
            return Err("a list is too long");
        }
        Ok(())
    }
}
