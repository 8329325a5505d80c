//! The hash of texts that the server and this program compute alike, so that a whole table is compared by one sum a column.
//!
//! It is `hashtextextended` of PostgreSQL 11 and later on machines whose lowest byte comes first: lookup3 of Bob Jenkins
//! (burtleburtle.net/bob/hash/doobs.html), begun with the number and the seed of `hash_bytes_extended` (src/common/hashfn.c).
//! Whether a server has the same is asked of it before anything is compared.

/// Returns the hash of a text, as `hashtextextended(text COLLATE "C", seed)` tells it.
pub(super) fn hash(text: &[u8], seed: i64) -> i64 {
    let length = u32::try_from(text.len() & 0xffff_ffff).unwrap_or_default();
    let begin = 0x9e37_79b9_u32.wrapping_add(length).wrapping_add(3_923_095);
    let mut state = [begin; 3];
    if seed != 0 {
        let seed = seed.cast_unsigned();
        let [high, low] = [seed >> 32, seed & 0xffff_ffff].map(|half| u32::try_from(half).unwrap_or_default());
        state[0] = state[0].wrapping_add(high);
        state[1] = state[1].wrapping_add(low);
        mix(&mut state);
    }
    let mut blocks = text.chunks_exact(12);
    for block in &mut blocks {
        add(&mut state, block.try_into().unwrap_or_default());
        mix(&mut state);
    }
    // The lowest byte of the last word is the length's: what is left lies above it.
    let rest = blocks.remainder();
    let mut last = [0; 12];
    let (low, high) = rest.split_at(rest.len().min(8));
    last[..low.len()].copy_from_slice(low);
    last[9..9 + high.len()].copy_from_slice(high);
    add(&mut state, last);
    let [_, b, c] = finish(state);
    (u64::from(b) << 32 | u64::from(c)).cast_signed()
}

fn add(state: &mut [u32; 3], block: [u8; 12]) {
    for (word, bytes) in state.iter_mut().zip(block.chunks_exact(4)) {
        *word = word.wrapping_add(u32::from_le_bytes(bytes.try_into().unwrap_or_default()));
    }
}

fn mix(state: &mut [u32; 3]) {
    let [mut a, mut b, mut c] = *state;
    for (first, second) in [(4, 6), (16, 19)] {
        a = a.wrapping_sub(c) ^ c.rotate_left(first);
        c = c.wrapping_add(b);
        b = b.wrapping_sub(a) ^ a.rotate_left(second);
        a = a.wrapping_add(c);
        c = c.wrapping_sub(b) ^ b.rotate_left(if first == 4 { 8 } else { 4 });
        b = b.wrapping_add(a);
    }
    *state = [a, b, c];
}

fn finish([mut a, mut b, mut c]: [u32; 3]) -> [u32; 3] {
    c = (c ^ b).wrapping_sub(b.rotate_left(14));
    a = (a ^ c).wrapping_sub(c.rotate_left(11));
    b = (b ^ a).wrapping_sub(a.rotate_left(25));
    c = (c ^ b).wrapping_sub(b.rotate_left(16));
    a = (a ^ c).wrapping_sub(c.rotate_left(4));
    b = (b ^ a).wrapping_sub(a.rotate_left(14));
    c = (c ^ b).wrapping_sub(b.rotate_left(24));
    [a, b, c]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `SELECT hashtextextended(substr('The whole…', 1, length) COLLATE "C", seed)` of PostgreSQL 15.
    #[test]
    fn it_is_the_server_s() {
        let text = "The whole pipeline at one commit: Æ€𝄞";
        let told = [
            (0, 7_897_695_672_827_216_937, -6_939_563_903_564_495_251),
            (1, -553_526_053_680_400_805, -1_338_225_982_912_146_468),
            (4, 915_512_153_163_820_529, 1_214_481_609_633_084_541),
            (8, -8_752_166_509_748_376_933, 1_011_654_876_270_856_047),
            (9, -6_714_718_968_446_342_317, -2_327_050_194_126_664_367),
            (11, 2_778_675_399_743_303_878, 4_615_711_372_661_542_289),
            (12, 5_328_512_723_490_758_239, -7_665_616_692_202_420_305),
            (13, -562_313_942_052_393_013, -9_214_358_951_420_570_188),
            (24, -6_035_455_571_731_545_457, 3_987_895_099_707_485_727),
            (37, 6_615_452_274_461_159_893, -2_234_145_196_942_119_047),
        ];
        for (length, seeded, plain) in told {
            let part: String = text.chars().take(length).collect();
            assert_eq!((hash(part.as_bytes(), 0), hash(part.as_bytes(), -7)), (plain, seeded), "{part}");
        }
    }
}
