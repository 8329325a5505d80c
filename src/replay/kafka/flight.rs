//! How much may be on its way to the target at once: as much as it took in the last seconds, and no more.
//!
//! A transaction ends when everything in it has arrived. Over a link, or under a quota, of 200 kB/s a full queue of 48 MiB
//! takes four minutes, and after one minute the records time out and the transaction with them: nothing would ever get
//! through. So the window begins small and follows what the target takes ([`AHEAD`] of it), up to the whole queue. Where even that was
//! too much, the next run begins with less (see [`super::effort`]).

use std::time::{Duration, Instant};

/// How long what is on its way may take to arrive, by the rate of the moments before.
const AHEAD: Duration = Duration::from_secs(5);
/// How long a rate is measured. A quota lets some seconds' worth through at once and then nothing for as long, so the window
/// grows to twice its size at most in that time, whatever was measured.
const SAMPLE: Duration = Duration::from_millis(500);

/// The window of bytes on their way.
#[derive(Debug)]
pub(super) struct Flight {
    window: u64,
    /// What it begins with and does not fall below.
    least: u64,
    most: u64,
    /// Bytes and records that were sent so far.
    sent: (u64, u64),
    /// What had arrived when the sample began, and when that was.
    sample: (u64, Instant),
}

impl Flight {
    /// A window that begins with `least` and has at most `most` bytes.
    pub(super) fn new(least: u64, most: u64, now: Instant) -> Self {
        let least = least.min(most);
        Self { window: least, least, most, sent: (0, 0), sample: (0, now) }
    }

    /// A record of so many bytes was sent.
    pub(super) fn sent(&mut self, bytes: u64) {
        self.sent = (self.sent.0 + bytes, self.sent.1 + 1);
    }

    /// Returns whether more may be sent while `waiting` records have not arrived. Their bytes are not known, so an average is
    /// taken; the queue's own limit holds besides.
    pub(super) fn has_room(&mut self, waiting: u64, now: Instant) -> bool {
        let (bytes, records) = self.sent;
        let on_the_way = if records == 0 { 0 } else { share(bytes, waiting.min(records), records) };
        let arrived = bytes - on_the_way;
        let (before, since) = self.sample;
        let took = now.saturating_duration_since(since);
        if took >= SAMPLE {
            let rate = arrived.saturating_sub(before) as f64 / took.as_secs_f64();
            let wanted = (rate * AHEAD.as_secs_f64()) as u64;
            // A moment in which little was sent says nothing about what the target takes.
            if wanted > self.window || on_the_way > self.window / 2 {
                let most = self.most.min(self.window.saturating_mul(2));
                self.window = wanted.clamp(self.least.min(most), most);
            }
            self.sample = (arrived, now);
        }
        on_the_way < self.window
    }
}

fn share(total: u64, part: u64, whole: u64) -> u64 {
    u64::try_from(u128::from(total) * u128::from(part) / u128::from(whole)).unwrap_or(total)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Sends for `seconds` into a target that takes `rate` bytes a second, and those of ten seconds at once at the beginning, as a
    /// quota does; the most that was on its way, and how much arrived.
    fn run(rate: u64, record: u64, seconds: u64) -> (u64, u64) {
        let start = Instant::now();
        let mut flight = Flight::new(256 << 10, 48 << 20, start);
        let (mut sent, mut arrived, mut most) = (0_u64, 0_u64, 0_u64);
        let mut allowed = rate * 10;
        for tick in 0..seconds * 200 {
            let now = start + Duration::from_millis(tick * 5);
            allowed += rate / 200;
            let taken = allowed.min(sent - arrived);
            (arrived, allowed) = (arrived + taken, allowed - taken);
            while flight.has_room((sent - arrived).div_ceil(record), now) && sent - arrived < 48 << 20 {
                flight.sent(record);
                sent += record;
            }
            most = most.max(sent - arrived);
        }
        (most, arrived)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
        #[test]
        fn what_is_on_its_way_arrives_in_time_and_the_target_is_kept_busy(kbytes in 20u64..100_000, record in 200u64..50_000) {
            let rate = kbytes * 1_000;
            let (most, arrived) = run(rate, record, 20);
            prop_assert!(most / rate <= 30, "{most} bytes at {rate} a second");
            prop_assert!(arrived >= rate * 20 * 3 / 5, "{arrived} arrived of {}", rate * 20);
        }
    }
}
