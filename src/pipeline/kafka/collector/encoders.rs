//! The encoders: how many steps run beside each other, and who has the next one.

use crate::pipeline::kafka::messages::SegmenterId;

/// The encoding steps under way. Every segmenter gets its turn.
pub(super) struct Encoders {
    running: usize,
    most: usize,
    /// The segmenter that had the last step.
    last: Option<SegmenterId>,
}

impl Encoders {
    /// One for each core but one, and four at the most.
    pub(super) fn of_this_machine() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self::new(cores.saturating_sub(1).clamp(1, 4))
    }

    fn new(most: usize) -> Self {
        Self { running: 0, most, last: None }
    }

    /// Picks the segmenter whose turn it is of those that are `ready`, in the order of their ids; none while all encoders have work.
    pub(super) fn next(&mut self, mut ready: impl Iterator<Item = SegmenterId>) -> Option<SegmenterId> {
        if self.running == self.most {
            return None;
        }
        let after = self.last.map_or(0, |id| id.0 + 1);
        let first = ready.next()?;
        let next = if first.0 >= after { first } else { ready.find(|id| id.0 >= after).unwrap_or(first) };
        self.last = Some(next);
        Some(next)
    }

    /// Notes that a step has begun.
    pub(super) fn begin(&mut self) {
        self.running += 1;
    }

    /// Notes that a step has ended, well or not.
    pub(super) fn end(&mut self) {
        self.running -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_segmenter_gets_its_turn_and_no_more_steps_run_than_there_are_encoders() {
        let mut encoders = Encoders::new(2);
        let mut next = |ids: &[u32]| encoders.next(ids.iter().map(|id| SegmenterId(*id))).map(|id| id.0);
        let turns: Vec<_> = (0..5).map(|_| next(&[1, 4, 7])).collect();
        assert_eq!(turns, [Some(1), Some(4), Some(7), Some(1), Some(4)]);
        assert_eq!((next(&[]), next(&[4])), (None, Some(4)), "who is alone goes on");
        encoders.begin();
        encoders.begin();
        assert_eq!(encoders.next([SegmenterId(1)].into_iter()), None);
        encoders.end();
        assert_eq!(encoders.next([SegmenterId(1)].into_iter()), Some(SegmenterId(1)));
    }
}
