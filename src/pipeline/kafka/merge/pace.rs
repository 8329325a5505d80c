//! How fast segments are merged: archiving goes on beside it, and comes first.

use std::time::Duration;

use tokio::time::Instant;

use crate::config::Merge;

/// Rests shorter than this are put together.
const SHORTEST_REST: Duration = Duration::from_millis(20);

/// What was used, and how long is rested for it.
pub(super) struct Pace {
    cpu_percent: u32,
    bytes_per_second: u64,
    owed: Duration,
}

impl Pace {
    pub(super) fn new(merge: &Merge) -> Self {
        let cpu_percent = u32::try_from(merge.cpu_percent).unwrap_or(100).clamp(1, 100);
        Self { cpu_percent, bytes_per_second: merge.bytes_per_second.max(1), owed: Duration::ZERO }
    }

    /// A thread was busy since then. Waiting for the CPU counts, too: where others want it, there is less for this.
    pub(super) async fn worked_since(&mut self, began: Instant) {
        self.owed += rest_after(began.elapsed(), self.cpu_percent);
        self.rest().await;
    }

    /// So many bytes were read or written since then.
    pub(super) async fn moved(&mut self, bytes: u64, began: Instant) {
        self.owed += time_for(bytes, self.bytes_per_second).saturating_sub(began.elapsed());
        self.rest().await;
    }

    async fn rest(&mut self) {
        if self.owed >= SHORTEST_REST {
            tokio::time::sleep(std::mem::take(&mut self.owed)).await;
        }
    }
}

/// How long is rested after work, so that no more than so much of one core is used.
fn rest_after(worked: Duration, percent: u32) -> Duration {
    worked.saturating_mul(100 - percent.min(100)) / percent.max(1)
}

fn time_for(bytes: u64, per_second: u64) -> Duration {
    Duration::from_secs_f64(bytes as f64 / per_second.max(1) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rests_are_as_long_as_the_shares_say() {
        let second = Duration::from_secs(1);
        assert_eq!(rest_after(second, 25), second * 3);
        assert_eq!(rest_after(second, 100), Duration::ZERO);
        assert_eq!(time_for(3 << 20, 2 << 20), Duration::from_millis(1_500));
    }

    #[tokio::test]
    async fn what_is_moved_takes_its_time_and_small_rests_are_put_together() {
        let merge = Merge { bytes_per_second: 10 << 20, ..Merge::default() };
        let (mut pace, began) = (Pace::new(&merge), Instant::now());
        pace.moved(1 << 10, Instant::now()).await;
        assert!(pace.owed > Duration::ZERO, "a tenth of a millisecond is owed");
        for _ in 0..4 {
            pace.moved(1 << 20, Instant::now()).await;
        }
        assert!(began.elapsed() >= Duration::from_millis(390), "{:?}", began.elapsed());
        assert!(pace.owed < SHORTEST_REST);
    }
}
