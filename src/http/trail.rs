//! What was refused and what was changed, so that whoever looks afterwards finds who it was.
//!
//! Every refusal is counted by its reason. A line in the log tells of the first one and then of one in ten seconds, with how
//! many went untold, so that nobody can fill the disk by guessing. Every change has a line of its own.

use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use metrics::Counter;
use tokio::time::Instant;

use crate::telemetry::metrics::HTTP_REFUSED;

/// The least time between two lines about refusals.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// Why requests are refused, as the metric's label says it.
const REASONS: [&str; 3] = ["host", "origin", "token"];

/// Counts and tells.
pub(super) struct Trail {
    counters: [Counter; REASONS.len()],
    told: Mutex<Told>,
}

#[derive(Debug, Default)]
struct Told {
    last: Option<Instant>,
    untold: u64,
}

impl Told {
    /// Returns whether to tell of a refusal now, with how many were not told of since the last line.
    fn tell(&mut self, now: Instant) -> Option<u64> {
        if self.last.is_some_and(|last| now - last < TELL_EVERY) {
            self.untold += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.untold))
    }
}

impl Trail {
    pub(super) fn new() -> Self {
        Self { counters: REASONS.map(|reason| HTTP_REFUSED.counter(&[("reason", reason)])), told: Mutex::default() }
    }

    /// Notes a request that was refused.
    pub(super) fn refused(&self, reason: &'static str, peer: SocketAddr, request: &str, now: Instant) {
        if let Some(at) = REASONS.iter().position(|known| *known == reason) {
            self.counters[at].increment(1);
        }
        let tell = self.told.lock().unwrap_or_else(PoisonError::into_inner).tell(now);
        if let Some(untold) = tell {
            tracing::warn!(%peer, reason, request, untold, "an HTTP request was refused");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_in_ten_seconds_says_how_many_there_were() {
        let (mut told, start) = (Told::default(), Instant::now());
        let lines: Vec<(u64, u64)> = (0..2500)
            .filter_map(|at| told.tell(start + Duration::from_millis(at * 10)).map(|untold| (at, untold)))
            .collect();
        assert_eq!(lines, [(0, 0), (1000, 999), (2000, 999)]);
    }
}
