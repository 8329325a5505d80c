//! Which offsets are compared: all of them, or a sample that is told.

use std::ops::Range;

/// How many offsets of a sample lie together: as many as a few batches of a producer have.
pub(super) const PIECE: i64 = 512;

/// So many pieces of a partition make a sample: its beginning, its end, and what lies between at even distances.
const PIECES: i64 = 8;

/// The pieces of `range` that are compared, in order, none next to another. `draw` moves those in the middle, so that every run
/// looks at others.
pub(super) fn pieces(range: &Range<i64>, all: bool, draw: u64) -> Vec<Range<i64>> {
    let length = range.end.saturating_sub(range.start).max(0);
    if length == 0 {
        return Vec::new();
    }
    if all || length <= PIECES * PIECE {
        return vec![range.clone()];
    }
    // The first and the last piece stand still; between them each has a stretch of its own, in which it is drawn.
    let inner = (range.start + PIECE)..(range.end - PIECE);
    let stretch = (inner.end - inner.start) / (PIECES - 2);
    let first = range.start..range.start + PIECE;
    let mut found = vec![first];
    for number in 0..PIECES - 2 {
        let room = (stretch - PIECE).max(1).unsigned_abs();
        let moved = mixed(draw.wrapping_add(number.unsigned_abs())) % room;
        let start = inner.start + number * stretch + i64::try_from(moved).unwrap_or(0);
        found.push(start..start + PIECE);
    }
    found.push(range.end - PIECE..range.end);
    found
}

/// A number that looks like a drawn one (SplitMix64's finish).
fn mixed(number: u64) -> u64 {
    let mut number = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    number = (number ^ (number >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    number = (number ^ (number >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    number ^ (number >> 31)
}

/// What of `range` lies in `window`.
pub(super) fn within(range: &Range<i64>, window: &Range<i64>) -> Range<i64> {
    let start = range.start.max(window.start);
    start..range.end.min(window.end).max(start)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_sample_lies_within_and_has_both_ends(start in 0_i64..1_000_000, length in 0_i64..1_000_000, draw: u64) {
            let range = start..start + length;
            prop_assert_eq!(pieces(&range, true, draw), if length > 0 { vec![range.clone()] } else { vec![] });
            let found = pieces(&range, false, draw);
            let sampled: i64 = found.iter().map(|piece| piece.end - piece.start).sum();
            prop_assert!(sampled <= PIECES * PIECE && sampled >= length.min(PIECES * PIECE), "{found:?}");
            prop_assert!(found.is_sorted_by(|a, b| a.end <= b.start), "{found:?}");
            if length > 0 {
                prop_assert_eq!((found[0].start, found[found.len() - 1].end), (range.start, range.end));
            }
        }
    }

    #[test]
    fn another_draw_looks_elsewhere() {
        assert_ne!(pieces(&(0..1_000_000), false, 1), pieces(&(0..1_000_000), false, 2));
    }
}
