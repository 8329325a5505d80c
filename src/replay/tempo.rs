//! How fast a replay may go, and how long it then takes.

use std::time::Duration;

use super::pace::{Rate, Speed};
use super::plan::Plan;

/// How fast records go.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tempo {
    /// At most so much a second.
    pub rate: Option<Rate>,
    /// In the rhythm in which the records were written, so many times faster.
    pub speed: Option<Speed>,
}

impl Tempo {
    /// Returns how long it makes `plan` take at the least; none where it holds nothing up.
    pub fn least_time(&self, plan: &Plan) -> Option<Duration> {
        least_time(self, (plan.records().0, plan.bytes()), plan.span())
    }
}

/// Returns how long `tempo` makes a replay of so many records and bytes take at the least, the timestamps of which lie `span` ms
/// apart; none where it does not hold them up.
fn least_time(tempo: &Tempo, (records, bytes): (u64, u64), span: u64) -> Option<Duration> {
    let by_speed = tempo.speed.map(|speed| span as f64 / 1000.0 / speed.0);
    let by_rate = tempo.rate.map(|rate| match rate {
        Rate::Records(per_second) => records as f64 / per_second,
        Rate::Bytes(per_second) => bytes as f64 / per_second,
    });
    let seconds = by_speed.into_iter().chain(by_rate).reduce(f64::max)?;
    Some(Duration::from_secs_f64(seconds.clamp(0.0, 1e15)))
}
