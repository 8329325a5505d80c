//! Where a drill restores to: a moment that a seed chooses, so that it can be tried again.

use chrono::{DateTime, Utc};

use crate::manifest::recoverable::Window;

/// How often a moment is drawn again at which something was not there.
pub(super) const MOST_DRAWN: u64 = 64;

/// Returns a moment of these windows, each millisecond as likely as any other; none where there is no window.
pub(super) fn of_seed(windows: &[Window], seed: u64) -> Option<DateTime<Utc>> {
    let spans: Vec<_> = windows.iter().map(|window| (window.from, window.to)).collect();
    of_spans(&spans, seed)
}

/// The same of times, each from the first to the second.
pub(super) fn of_spans(spans: &[(DateTime<Utc>, DateTime<Utc>)], seed: u64) -> Option<DateTime<Utc>> {
    let length =
        |(from, to): &(DateTime<Utc>, DateTime<Utc>)| (*to - *from).num_milliseconds().max(0).unsigned_abs() + 1;
    let all: u64 = spans.iter().map(length).sum();
    let mut at = mixed(seed).checked_rem(all)?;
    for span in spans {
        if at < length(span) {
            return Some(span.0 + chrono::TimeDelta::milliseconds(at.cast_signed()));
        }
        at -= length(span);
    }
    None
}

/// Spreads seeds that lie beside each other (SplitMix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014).
pub(super) fn mixed(seed: u64) -> u64 {
    let mut mixed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::Lsn;

    fn window(from: i64, to: i64) -> Window {
        let at = |ms| DateTime::from_timestamp_millis(ms).expect("a time");
        Window { from: at(from), to: at(to), timeline: 1, start: Lsn(0), end: Lsn(1) }
    }

    #[test]
    fn every_moment_of_every_window_comes_and_no_other() {
        let windows = [window(10, 12), window(20, 20), window(30, 35)];
        let found: std::collections::BTreeSet<i64> =
            (0..500).map(|seed| of_seed(&windows, seed).expect("a moment").timestamp_millis()).collect();
        assert_eq!(found.into_iter().collect::<Vec<_>>(), [10, 11, 12, 20, 30, 31, 32, 33, 34, 35]);
        assert_eq!(of_seed(&windows, 7), of_seed(&windows, 7));
        assert_eq!(of_seed(&[], 7), None);
    }
}
