//! The memory budget: when blocks are to be encoded early, and when fetching has to pause.

use crate::pipeline::kafka::pool::Pool;

/// This part of the memory budget may wait in the pool: two row groups of the default budget, the one that an encoder
/// gives back and the one that is being filled meanwhile.
const POOL_PART: usize = 12;

/// What the process may hold, and the empty blocks that wait for use.
pub(super) struct MemoryBudget {
    budget: usize,
    pub(super) pool: Pool,
    is_full: bool,
}

impl MemoryBudget {
    pub(super) fn new(bytes: u64) -> Self {
        let budget = usize::try_from(bytes).unwrap_or(usize::MAX);
        Self { budget, pool: Pool::new(budget / POOL_PART), is_full: false }
    }

    /// Returns whether fetching has to pause.
    pub(super) fn is_full(&self) -> bool {
        self.is_full
    }

    /// Takes in how much the segmenters hold; returns how much of it is to be encoded now.
    ///
    /// Blocks may hold three eighths of the budget before the largest segmenters are encoded, and half of it before fetching
    /// stops; the rest is for the pool, the encoders and librdkafka. More blocks would only wait longer for an encoder.
    pub(super) fn holds(&mut self, held: usize) -> u64 {
        let much = self.budget / 8 * 3;
        self.is_full = held > if self.is_full { much } else { self.budget / 2 };
        if held > much { (held - self.budget / 4) as u64 } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fetching_pauses_at_half_of_the_budget_and_goes_on_at_three_eighths() {
        let mut memory = MemoryBudget::new(800);
        let mut after = |held| (memory.holds(held), memory.is_full());
        assert_eq!(after(300), (0, false));
        assert_eq!(after(301), (101, false), "the largest are encoded, down to a quarter");
        assert_eq!(after(400), (200, false));
        assert_eq!(after(401), (201, true));
        assert_eq!(after(301), (101, true), "it does not go back and forth");
        assert_eq!(after(300), (0, false));
    }
}
