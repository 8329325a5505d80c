//! Full-size blocks go round: the collector fills them, an encoder reads them, and they come back to be filled again.
//!
//! Allocated again each time, blocks of this size make the allocator give memory back to the system and take it again,
//! page by page, or keep holes between them: with the pool the peak of the process is what the blocks hold.

use crate::record::Block;

/// A partition's records are gathered in blocks of this many bytes: large enough that a block's own cost vanishes,
/// small enough that a thousand partitions do not hold much.
pub(super) const BLOCK_BYTES: usize = 128 << 10;

/// Blocks that wait to be filled again.
pub(super) struct Pool {
    blocks: Vec<Block>,
    /// How many may wait; the others are freed.
    most: usize,
}

impl Pool {
    /// A pool that holds about `bytes` at most.
    pub(super) fn new(bytes: usize) -> Self {
        Self { blocks: Vec::new(), most: bytes / BLOCK_BYTES }
    }

    /// An empty block for `partition` that holds `bytes` before it grows.
    pub(super) fn take(&mut self, partition: i32, bytes: usize) -> Block {
        match self.blocks.pop_if(|_| bytes == BLOCK_BYTES) {
            Some(mut block) => {
                block.clear(partition);
                block
            }
            None => Block::new(partition, bytes),
        }
    }

    /// Keeps what is worth it. Small blocks of quiet partitions, grown ones of large records, and those whose rows came
    /// to hold more than their bytes, because the records are tiny, are freed.
    pub(super) fn give_back(&mut self, blocks: Vec<Block>) {
        let fits = |block: &Block| block.capacity() == BLOCK_BYTES && block.memory() <= 2 * BLOCK_BYTES;
        let room = self.most - self.blocks.len();
        self.blocks.extend(blocks.into_iter().filter(fits).take(room));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::TimestampType;

    #[test]
    fn a_block_comes_back_empty_and_only_at_its_size() {
        let mut pool = Pool::new(16 << 20);
        let mut full = pool.take(1, BLOCK_BYTES);
        full.push(7, 5, TimestampType::Create, 0, Some(b"k"), Some(b"v"), std::iter::empty());
        pool.give_back(vec![full, Block::new(2, 4096), Block::new(3, 2 * BLOCK_BYTES)]);
        assert_eq!(pool.blocks.len(), 1);
        assert_eq!(pool.take(4, 4096).capacity(), 4096);
        let again = pool.take(5, BLOCK_BYTES);
        assert_eq!((again.partition(), again.len(), again.raw_bytes(), again.largest_record()), (5, 0, 0, 0));
        assert_eq!((again.first_offset(), again.min_timestamp()), (None, None));
        assert_eq!((pool.blocks.len(), again.capacity()), (0, BLOCK_BYTES));
    }

    #[test]
    fn it_does_not_grow_without_end() {
        let mut pool = Pool::new(16 << 20);
        pool.give_back((0..1000).map(|partition| Block::new(partition, BLOCK_BYTES)).collect());
        pool.give_back(vec![Block::new(0, BLOCK_BYTES)]);
        assert_eq!(pool.blocks.len(), 128);
    }
}
