//! How fast a replay goes: as fast as the target takes it, so many records or bytes a second, or in the rhythm in
//! which the records were written.
//!
//! Both limits answer one question: at which moment may the next record go? A rate is kept by a moment that moves on
//! by the record's share of a second; it may lie [`SLACK`] behind the clock, so that a sender which wakes late catches
//! up, and after a longer pause nothing is made up for in one burst.

use std::str::FromStr;
use std::time::Duration;

use tokio::time::Instant;

use crate::error::{Error, Kind};

/// How far a sender may run ahead of its rate to go in bursts rather than record by record, and how much of a pause it
/// may catch up.
const SLACK: Duration = Duration::from_millis(50);

/// `--rate`: at most this much a second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rate {
    /// Records a second.
    Records(f64),
    /// Bytes of keys, values and headers a second.
    Bytes(f64),
}

impl FromStr for Rate {
    type Err = Error;

    /// `5000/s`, `5MiB/s`, `500 kB/s`.
    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = || {
            Error::new(Kind::Config, format!("{text:?} is not a rate"))
                .hint("write records a second (--rate 5000/s) or bytes a second (--rate 5MiB/s)")
        };
        let amount = text.trim().strip_suffix("/s").ok_or_else(wrong)?.trim_end();
        let digits = amount.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(amount.len());
        let number: f64 = amount[..digits].parse().map_err(|_| wrong())?;
        if !number.is_finite() || number <= 0.0 {
            return Err(wrong());
        }
        let unit = match amount[digits..].trim_start() {
            "" => return Ok(Self::Records(number)),
            "B" => 1.0,
            "kB" | "KB" => 1e3,
            "MB" => 1e6,
            "GB" => 1e9,
            "KiB" => 1024.0,
            "MiB" => 1_048_576.0,
            "GiB" => 1_073_741_824.0,
            _ => return Err(wrong()),
        };
        Ok(Self::Bytes(number * unit))
    }
}

/// `--speed`: how many times faster than it was written.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Speed(pub(super) f64);

impl FromStr for Speed {
    type Err = Error;

    /// `1x`, `0.5x`, `10x`.
    fn from_str(text: &str) -> Result<Self, Error> {
        let factor = text.trim().strip_suffix('x').unwrap_or(text.trim()).parse::<f64>().ok();
        factor.filter(|factor| factor.is_finite() && *factor > 0.0).map(Self).ok_or_else(|| {
            Error::new(Kind::Config, format!("{text:?} is not a speed"))
                .hint("write a factor of the original pace: --speed 1x, --speed 0.5x, --speed 10x")
        })
    }
}

/// The moments at which records may go.
#[derive(Debug)]
pub(super) struct Pace {
    rate: Option<Rate>,
    /// The moment that the rate allows for the next record.
    allowed: Instant,
    speed: Option<Speed>,
    /// The first record's timestamp, and when it went.
    origin: Option<(i64, Instant)>,
}

impl Pace {
    /// From `now` on.
    pub(super) fn new(rate: Option<Rate>, speed: Option<Speed>, now: Instant) -> Self {
        Self { rate, allowed: now, speed, origin: None }
    }

    /// Returns whether records may go at any moment.
    pub(super) fn is_free(&self) -> bool {
        self.rate.is_none() && self.speed.is_none()
    }

    /// Returns when the next record may go, `bytes` long and due at `timestamp` (which never falls); nothing if at once.
    pub(super) fn wait_until(&self, now: Instant, timestamp: i64) -> Option<Instant> {
        let by_rate = self.rate.map(|_| self.allowed).filter(|allowed| *allowed > now + SLACK);
        let by_speed = self.due(timestamp).filter(|due| *due > now);
        by_rate.max(by_speed)
    }

    /// The record went.
    pub(super) fn sent(&mut self, now: Instant, bytes: u64, timestamp: i64) {
        if self.speed.is_some() {
            self.origin.get_or_insert((timestamp, now));
        }
        let share = match self.rate {
            Some(Rate::Records(records)) => 1.0 / records,
            Some(Rate::Bytes(per_second)) => bytes as f64 / per_second,
            None => return,
        };
        let from = self.allowed.max(now.checked_sub(SLACK).unwrap_or(now));
        self.allowed = from.checked_add(Duration::from_secs_f64(share.min(1e9))).unwrap_or(from);
    }

    fn due(&self, timestamp: i64) -> Option<Instant> {
        let Speed(factor) = self.speed?;
        let (first, started) = self.origin?;
        let after = timestamp.saturating_sub(first).max(0) as f64 / 1000.0 / factor;
        // A span of more than thirty years is a wrong timestamp; waiting for it or for thirty years is the same.
        started.checked_add(Duration::from_secs_f64(after.min(1e9)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rates_and_speeds_are_read() {
        assert_eq!("5000/s".parse::<Rate>().expect("records"), Rate::Records(5000.0));
        assert_eq!("5MiB/s".parse::<Rate>().expect("bytes"), Rate::Bytes(5.0 * 1_048_576.0));
        assert_eq!("1.5 kB/s".parse::<Rate>().expect("bytes"), Rate::Bytes(1500.0));
        assert_eq!("1x".parse::<Speed>().expect("speed"), Speed(1.0));
        assert_eq!("0.5x".parse::<Speed>().expect("speed"), Speed(0.5));
        for wrong in ["", "5", "0/s", "-1/s", "5 apples/s", "/s", "nan/s", "inf/s"] {
            assert_eq!(wrong.parse::<Rate>().expect_err(wrong).exit_code(), 2);
        }
        for wrong in ["", "x", "0x", "-1x", "fast", "nanx", "infx"] {
            assert_eq!(wrong.parse::<Speed>().expect_err(wrong).exit_code(), 2);
        }
    }

    /// Sends `records` of 100 bytes, a millisecond of record time apart, and says how long it took.
    fn play(pace: &mut Pace, start: Instant, records: i64) -> Duration {
        let mut now = start;
        for timestamp in 0..records {
            now = pace.wait_until(now, timestamp).unwrap_or(now);
            pace.sent(now, 100, timestamp);
        }
        now - start
    }

    #[test]
    fn the_original_pace_is_kept_and_scaled() {
        let start = Instant::now();
        for (speed, expected) in [("1x", 999), ("10x", 99), ("0.5x", 1998)] {
            let mut pace = Pace::new(None, Some(speed.parse().expect("speed")), start);
            let took = play(&mut pace, start, 1000);
            assert!(took.as_millis().abs_diff(expected) <= 1, "{speed} took {took:?}");
        }
    }

    #[test]
    fn the_slower_of_rate_and_speed_counts() {
        let start = Instant::now();
        let mut pace = Pace::new(Some(Rate::Records(100.0)), Some(Speed(1.0)), start);
        assert!(play(&mut pace, start, 1000) > Duration::from_secs(9));
    }

    #[test]
    fn a_pause_is_not_made_up_for_in_a_burst() {
        let start = Instant::now();
        let mut pace = Pace::new(Some(Rate::Records(1000.0)), None, start);
        play(&mut pace, start, 10);
        let later = start + Duration::from_secs(3600);
        let mut at_once = 0;
        while pace.wait_until(later, 0).is_none() {
            pace.sent(later, 100, 0);
            at_once += 1;
        }
        assert!(at_once <= 101, "{at_once} records went at once");
    }

    proptest! {
        #[test]
        fn a_rate_is_never_exceeded_by_more_than_the_slack(rate in 1.0f64..100_000.0, records in 2i64..5_000) {
            let start = Instant::now();
            let mut pace = Pace::new(Some(Rate::Records(rate)), None, start);
            let took = play(&mut pace, start, records);
            let fair = (records - 1) as f64 / rate;
            prop_assert!(took.as_secs_f64() >= fair - 2.0 * SLACK.as_secs_f64() - 0.001, "{:?} for {}", took, fair);
            prop_assert!(took.as_secs_f64() <= fair + 0.001);
        }
    }
}
