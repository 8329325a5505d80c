//! Positions in Postgres' write-ahead log.

use std::fmt;
use std::ops::{Add, Sub};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::{Error, Kind};

/// A byte position in the write-ahead log, counted from its very beginning.
///
/// Written as Postgres writes it (`pg_lsn`): the upper and the lower 32 bits in hexadecimal, `16/B374D848`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

impl Lsn {
    /// The position of a chain's range that stands for this LSN. The log ends long before the 63rd bit: what lies
    /// beyond is held at the end.
    pub fn position(self) -> i64 {
        i64::try_from(self.0).unwrap_or(i64::MAX)
    }

    /// The LSN that a chain's position stands for; a negative one is none of ours and becomes the beginning.
    pub fn at(position: i64) -> Self {
        Self(u64::try_from(position).unwrap_or(0))
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Lsn {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        // pg_lsn_in_internal (pg_lsn.c): one to eight hexadecimal digits on each side, and nothing else.
        let half = |digits: &str| {
            let legal = (1..=8).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
            legal.then(|| u64::from_str_radix(digits, 16).ok()).flatten()
        };
        let halves = text.split_once('/').and_then(|(high, low)| Some((half(high)?, half(low)?)));
        halves.map(|(high, low)| Self(high << 32 | low)).ok_or_else(|| {
            Error::new(Kind::Config, format!("{text:?} is not an LSN"))
                .hint("write it as Postgres does, two hexadecimal numbers with a slash: 16/B374D848")
        })
    }
}

impl Add<u64> for Lsn {
    type Output = Self;

    fn add(self, bytes: u64) -> Self {
        Self(self.0.saturating_add(bytes))
    }
}

impl Sub for Lsn {
    type Output = u64;

    /// The bytes from `earlier` to here; none if it lies later.
    fn sub(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl Serialize for Lsn {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Lsn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|_| serde::de::Error::custom(format!("{text:?} is not an LSN")))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_lsn_is_written_and_read_as_postgres_does() {
        let lsn: Lsn = "16/B374D848".parse().expect("it is one");
        assert_eq!((lsn, lsn.to_string().as_str()), (Lsn(0x16_B374_D848), "16/B374D848"));
        assert_eq!(Lsn(0).to_string(), "0/0");
        assert_eq!("0/00a".parse::<Lsn>().expect("leading zeros are read"), Lsn(10));
        for text in ["", "/", "1", "1/", "/1", "1/G", "+1/0", "123456789/0", "1/2/3", " 1/2"] {
            let error = text.parse::<Lsn>().expect_err(text);
            assert_eq!(error.kind(), Kind::Config, "{text}");
        }
        assert!(serde_json::from_str::<Lsn>("\"x\"").is_err());
    }

    #[test]
    fn distances_never_wrap() {
        assert_eq!(Lsn(7) - Lsn(3), 4);
        assert_eq!(Lsn(3) - Lsn(7), 0);
        assert_eq!(Lsn(u64::MAX) + 1, Lsn(u64::MAX));
        assert_eq!((Lsn::at(-1), Lsn(u64::MAX).position()), (Lsn(0), i64::MAX));
    }

    proptest! {
        #[test]
        fn every_lsn_survives_text_and_position(value in 0..=i64::MAX.cast_unsigned()) {
            let lsn = Lsn(value);
            prop_assert_eq!(lsn.to_string().parse::<Lsn>().expect("own output"), lsn);
            prop_assert_eq!(Lsn::at(lsn.position()), lsn);
            let json = serde_json::to_string(&lsn).expect("it is text");
            prop_assert_eq!(serde_json::from_str::<Lsn>(&json).expect("own output"), lsn);
        }
    }
}
