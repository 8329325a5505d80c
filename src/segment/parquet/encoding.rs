//! Two of Parquet's encodings, as
//! <https://github.com/apache/parquet-format/blob/master/Encodings.md> has them: the hybrid of run lengths and bit
//! packing, for levels and for places in a dictionary, and delta binary packing, for lengths.

/// Values that are bit-packed together in the hybrid.
const GROUP: usize = 8;
/// Deltas of a block, and of each of its miniblocks: the least that the format allows.
const DELTA_BLOCK: usize = 128;
const DELTA_MINIBLOCKS: usize = 4;
const DELTA_MINIBLOCK: usize = DELTA_BLOCK / DELTA_MINIBLOCKS;

/// Returns how many bits it takes to write a number.
pub(super) fn width(greatest: u32) -> u32 {
    u32::BITS - greatest.leading_zeros()
}

/// A number in groups of 7 bits, the least first.
pub(super) fn varint(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// A number that may be negative, so that small ones stay small.
pub(super) fn zigzag(number: i64, out: &mut Vec<u8>) {
    varint(((number << 1) ^ (number >> 63)) as u64, out);
}

/// The hybrid (`RLE`), without a length before it. Every value fits into `width` bits.
pub(super) fn hybrid(values: &[u32], width: u32, out: &mut Vec<u8>) {
    let mut rest = values;
    while let Some(first) = rest.first() {
        let run = run(rest);
        if run >= GROUP {
            varint((run as u64) << 1, out);
            out.extend_from_slice(&first.to_le_bytes()[..width.div_ceil(8) as usize]);
            rest = &rest[run..];
            continue;
        }
        // Whole groups, up to one that begins a long run.
        let mut length = GROUP;
        while length < rest.len() && run_is_short(&rest[length..]) {
            length += GROUP;
        }
        let (packed, after) = rest.split_at(length.min(rest.len()));
        varint((length / GROUP) as u64 * 2 + 1, out);
        pack(packed.iter().copied(), length, width, out);
        rest = after;
    }
}

/// Returns how often the first value is repeated, itself counted.
fn run(values: &[u32]) -> usize {
    values.iter().take_while(|value| Some(*value) == values.first()).count()
}

fn run_is_short(values: &[u32]) -> bool {
    run(&values[..values.len().min(GROUP)]) < GROUP
}

/// Delta binary packing (`DELTA_BINARY_PACKED`) of numbers that are not negative.
pub(super) fn delta(values: &[u32], out: &mut Vec<u8>) {
    varint(DELTA_BLOCK as u64, out);
    varint(DELTA_MINIBLOCKS as u64, out);
    varint(values.len() as u64, out);
    zigzag(values.first().copied().unwrap_or(0).into(), out);
    let mut deltas = [0_i64; DELTA_BLOCK];
    let mut before = values;
    while let [_, after @ ..] = before
        && !after.is_empty()
    {
        let length = after.len().min(DELTA_BLOCK);
        let deltas = &mut deltas[..length];
        for ((delta, value), last) in deltas.iter_mut().zip(after).zip(before) {
            *delta = i64::from(*value) - i64::from(*last);
        }
        let least = deltas.iter().copied().min().unwrap_or(0);
        zigzag(least, out);
        let widths = out.len();
        out.extend_from_slice(&[0; DELTA_MINIBLOCKS]);
        for (at, miniblock) in deltas.chunks(DELTA_MINIBLOCK).enumerate() {
            let above = miniblock.iter().map(|delta| (delta - least) as u32);
            let width = width(above.clone().max().unwrap_or(0));
            out[widths + at] = width as u8;
            pack(above, DELTA_MINIBLOCK, width, out);
        }
        before = &before[length..];
    }
}

/// Packs values of `width` bits, the least first, and zeros after them up to `count` values, a multiple of 8.
fn pack(values: impl Iterator<Item = u32>, count: usize, width: u32, out: &mut Vec<u8>) {
    let end = out.len() + count * width as usize / 8;
    let mut bits = 0_u64;
    let mut held = 0;
    for value in values {
        bits |= u64::from(value) << held;
        held += width;
        while held >= 8 {
            out.push(bits as u8);
            bits >>= 8;
            held -= 8;
        }
    }
    if held > 0 {
        out.push(bits as u8);
    }
    out.resize(end, 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_hybrid(values: &[u32], width: u32) -> Vec<u8> {
        let mut out = Vec::new();
        hybrid(values, width, &mut out);
        out
    }

    /// The examples of the specification: 0 to 7 in 3 bits, and a run.
    #[test]
    fn the_hybrid_is_that_of_the_specification() {
        assert_eq!(of_hybrid(&[0, 1, 2, 3, 4, 5, 6, 7], 3), [3, 0b1000_1000, 0b1100_0110, 0b1111_1010]);
        assert_eq!(of_hybrid(&[1; 100], 1), [200, 1, 1]);
        assert_eq!(of_hybrid(&[300; 8], 9), [16, 44, 1]);
        assert_eq!(of_hybrid(&[], 1), Vec::<u8>::new());
        assert_eq!(of_hybrid(&[1, 0], 1), [3, 1], "the last group is filled up");
        assert_eq!(of_hybrid(&[[0, 1, 0, 1, 0, 1, 0, 1], [1; 8]].concat(), 1), [3, 0b1010_1010, 16, 1]);
    }

    /// The examples of the specification: 1 to 5, and 7, 5, 3, 1, 2, 3, 4, 5.
    #[test]
    fn delta_packing_is_that_of_the_specification() {
        let mut out = Vec::new();
        delta(&[1, 2, 3, 4, 5], &mut out);
        assert_eq!(out, [128, 1, 4, 5, 2, 2, 0, 0, 0, 0]);
        out.clear();
        delta(&[7, 5, 3, 1, 2, 3, 4, 5], &mut out);
        assert_eq!(out, [128, 1, 4, 8, 14, 3, 2, 0, 0, 0, 0b1100_0000, 0b0011_1111, 0, 0, 0, 0, 0, 0]);
    }
}
