//! Blocks of an artifact: geometry, the messages of `/qk/<network>/blocks/1`, verification.
//!
//! A blob is cut into blocks of 16 KiB, the leaves of its hash tree; the tree's other nodes are
//! its outboard, in pre-order, 64 bytes (two hashes) each, without a header. An answer is the bao
//! encoding of the ranges asked for: the nodes and blocks on the way to them in pre-order. As the
//! size of the blob is known from the statements about it, so is the length of every answer.

use bao_tree::iter::BaoChunk;
use bao_tree::{BaoTree, BlockSize, ChunkNum, ChunkRanges};

use crate::hash::Root;

mod message;
mod plain;
mod verify;

pub use message::{
    Encoding, PACKED_HEAD_BYTES, REQUEST_BYTES_MAX, REQUEST_HEAD_BYTES, REQUEST_RANGE_BYTES,
    Request, RequestError, Status, packed_len,
};
pub use plain::{OutboardWalk, read, unit_at, weave};
pub use verify::{
    EncodeError, Verified, VerifyError, check_whole, encode, is_valid, outboard, verify,
};

/// What BLAKE3 hashes at once.
pub const CHUNK_BYTES: u64 = 1024;
/// The unit of verification.
pub const BLOCK_BYTES: u64 = 16 * CHUNK_BYTES;
/// [`BLOCK_BYTES`] as bao-tree counts.
pub const BLOCK_SIZE: BlockSize = BlockSize::from_chunk_log(4);
/// Ranges begin at a multiple of this: 256 KiB. Also the smallest range, but for a blob's end.
pub const UNIT_BLOCKS_MIN: u32 = 16;
/// The most blocks that one request names, over all its ranges: 1 MiB.
pub const UNIT_BLOCKS_MAX: u32 = 64;
/// Ranges in a request: more aligned ones that do not touch do not fit in [`UNIT_BLOCKS_MAX`].
pub const RANGES_MAX: usize = 4;
/// The largest blob: 16 GiB, 2^20 blocks.
pub const BLOB_BYTES_MAX: u64 = 16 << 30;

/// Index of a block in a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Block(pub u32);

impl std::fmt::Display for Block {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Why ranges of a blob cannot be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// An artifact has at least one byte and at most [`BLOB_BYTES_MAX`].
    #[error("a blob of {size} bytes: expected 1 to {BLOB_BYTES_MAX}")]
    Size {
        /// What was claimed.
        size: u64,
    },
    /// Empty, longer than [`UNIT_BLOCKS_MAX`] or not at a multiple of [`UNIT_BLOCKS_MIN`].
    #[error("blocks {start}..{end} are not an aligned range of at most {UNIT_BLOCKS_MAX} blocks")]
    Unaligned {
        /// The first block.
        start: u32,
        /// The block after the last.
        end: u32,
    },
    /// None, too many, or not ascending with a gap between them.
    #[error(
        "ranges are not 1 to {RANGES_MAX}, ascending and apart, of {UNIT_BLOCKS_MAX} blocks in sum"
    )]
    List,
    /// Past the last block. bao-tree would answer with the last one instead.
    #[error("blocks {start}..{end} of {root}, which has {blocks}")]
    BeyondEnd {
        /// The blob.
        root: Root,
        /// The first block.
        start: u32,
        /// The block after the last.
        end: u32,
        /// Blocks of the blob.
        blocks: u32,
    },
}

/// A blob by root and size; the geometry of its tree follows from the size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Blob {
    root: Root,
    size: u64,
}

impl Blob {
    /// A blob of `size` bytes, which must be 1 to [`BLOB_BYTES_MAX`].
    pub fn new(root: Root, size: u64) -> Result<Self, RangeError> {
        match size {
            1..=BLOB_BYTES_MAX => Ok(Self { root, size }),
            _ => Err(RangeError::Size { size }),
        }
    }

    /// BLAKE3 of the blob.
    pub fn root(&self) -> Root {
        self.root
    }

    /// Bytes of the blob.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Number of blocks, the last of which may be short.
    pub fn blocks(&self) -> u32 {
        // At most 2^20, see BLOB_BYTES_MAX.
        self.size.div_ceil(BLOCK_BYTES) as u32
    }

    /// Bytes of the outboard: 64 for every node above the blocks.
    pub fn outboard_bytes(&self) -> u64 {
        self.tree().outboard_size()
    }

    /// Cuts the blob into aligned ranges of `blocks`, the last one possibly shorter.
    /// `blocks` is rounded to a multiple of [`UNIT_BLOCKS_MIN`] up to [`UNIT_BLOCKS_MAX`].
    pub fn units(&self, blocks: u32) -> impl Iterator<Item = BlockRange> + use<> {
        let step =
            (blocks / UNIT_BLOCKS_MIN * UNIT_BLOCKS_MIN).clamp(UNIT_BLOCKS_MIN, UNIT_BLOCKS_MAX);
        let end = self.blocks();
        (0..end)
            .step_by(step as usize)
            .map(move |start| BlockRange {
                start,
                end: (start + step).min(end),
            })
    }

    /// Bytes of the blob that `range` covers.
    pub fn bytes_of(&self, range: BlockRange) -> std::ops::Range<u64> {
        let at = |block: u32| (u64::from(block) * BLOCK_BYTES).min(self.size);
        at(range.start)..at(range.end)
    }

    /// Whether `ranges` lie in this blob and end at a multiple of [`UNIT_BLOCKS_MIN`] or its end.
    pub fn check(&self, ranges: &Ranges) -> Result<(), RangeError> {
        ranges.0.iter().try_for_each(|range| self.check_one(*range))
    }

    fn check_one(&self, BlockRange { start, end }: BlockRange) -> Result<(), RangeError> {
        let (root, blocks) = (self.root, self.blocks());
        if end > blocks {
            return Err(RangeError::BeyondEnd {
                root,
                start,
                end,
                blocks,
            });
        }
        if end != blocks && !end.is_multiple_of(UNIT_BLOCKS_MIN) {
            return Err(RangeError::Unaligned { start, end });
        }
        Ok(())
    }

    fn tree(&self) -> BaoTree {
        BaoTree::new(self.size, BLOCK_SIZE)
    }

    fn hash(&self) -> blake3::Hash {
        blake3::Hash::from_bytes(self.root.0)
    }
}

/// Blocks `start..end`: `start` a multiple of [`UNIT_BLOCKS_MIN`], 1 to [`UNIT_BLOCKS_MAX`] long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct BlockRange {
    start: u32,
    end: u32,
}

impl BlockRange {
    /// Checks the alignment of the start and the length; the end needs [`Blob::check`].
    pub fn new(start: u32, end: u32) -> Result<Self, RangeError> {
        let length = end.saturating_sub(start);
        let aligned = start.is_multiple_of(UNIT_BLOCKS_MIN);
        if !aligned || !(1..=UNIT_BLOCKS_MAX).contains(&length) {
            return Err(RangeError::Unaligned { start, end });
        }
        Ok(Self { start, end })
    }

    /// The first block.
    pub fn start(&self) -> Block {
        Block(self.start)
    }

    /// The block after the last.
    pub fn end(&self) -> Block {
        Block(self.end)
    }

    /// Number of blocks, never zero.
    pub fn blocks(&self) -> u32 {
        self.end - self.start
    }
}

impl std::fmt::Display for BlockRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

/// What one request asks for: 1 to [`RANGES_MAX`] ranges, ascending, apart, bounded in sum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ranges(Vec<BlockRange>);

impl Ranges {
    /// Checks number, order and sum.
    pub fn new(ranges: Vec<BlockRange>) -> Result<Self, RangeError> {
        let apart = ranges.windows(2).all(|pair| pair[0].end < pair[1].start);
        let sum: u32 = ranges.iter().take(RANGES_MAX).map(BlockRange::blocks).sum();
        let number = (1..=RANGES_MAX).contains(&ranges.len());
        match number && apart && sum <= UNIT_BLOCKS_MAX {
            true => Ok(Self(ranges)),
            false => Err(RangeError::List),
        }
    }

    /// The ranges, at least one.
    pub fn as_slice(&self) -> &[BlockRange] {
        &self.0
    }

    /// Number of blocks, never zero.
    pub fn blocks(&self) -> u32 {
        self.0.iter().map(BlockRange::blocks).sum()
    }

    fn chunks(&self) -> ChunkRanges {
        let per_block = BLOCK_BYTES / CHUNK_BYTES;
        let mut chunks = ChunkRanges::empty();
        for range in &self.0 {
            let at = |block: u32| ChunkNum(u64::from(block) * per_block);
            chunks |= ChunkRanges::from(at(range.start)..at(range.end));
        }
        chunks
    }
}

impl From<BlockRange> for Ranges {
    fn from(range: BlockRange) -> Self {
        Self(vec![range])
    }
}
/// Bytes after the status of the raw answer for `ranges` of `blob`: 64 for each node, the blocks'
/// sizes. Below 2 MiB by the limits on ranges.
pub fn wire_len(blob: &Blob, ranges: &Ranges) -> Result<u32, RangeError> {
    blob.check(ranges)?;
    let (tree, chunks) = (blob.tree(), ranges.chunks());
    let whole = bao_tree::io::sync::truncate_ranges(&chunks, blob.size);
    let bytes: usize = tree
        .ranges_pre_order_chunks_iter_ref(whole, 0)
        .map(|item| match item {
            BaoChunk::Parent { .. } => 64,
            BaoChunk::Leaf { size, .. } => size,
        })
        .sum();
    Ok(bytes as u32)
}

#[cfg(test)]
mod tests;
