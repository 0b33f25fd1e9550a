//! A blob and its outboard as plain bytes, as HTTP carries them: checked like the wire form, and
//! made into it again by who reads them.

use std::io;
use std::ops::Range;

use bao_tree::io::sync::ReadAt;
use bao_tree::iter::BaoChunk;
use blake3::hazmat::{Mode, merge_subtrees_non_root, merge_subtrees_root};

use super::verify::{EncodeError, encode};
use super::{BLOCK_BYTES, Blob, Block, BlockRange, RangeError, Ranges, wire_len};

/// Two hashes.
const PAIR_BYTES: usize = 64;
/// What is read of an outboard at once.
const WINDOW_BYTES: u64 = 32 << 10;
/// Subtrees that wait on a walk: one for each level of the largest blob, and the one walked.
const DEPTH_MAX: usize = 24;

/// The bytes of `range` from `data` and its pre-order `outboard`, each block compared with the root
/// first: a corrupt copy is an error, never an answer.
pub fn read<D: ReadAt, O: ReadAt>(
    blob: &Blob,
    range: BlockRange,
    data: D,
    outboard: O,
) -> Result<Vec<u8>, EncodeError> {
    let ranges = Ranges::from(range);
    // The very bytes that were compared, not a second reading of the file.
    let mut bytes = encode(blob, &ranges, data, outboard)?;
    let (mut from, mut to) = (0, 0);
    for piece in pieces(blob, &ranges) {
        match piece {
            Piece::Pair(_) => from += PAIR_BYTES,
            Piece::Leaf(size) => {
                bytes.copy_within(from..from + size, to);
                from += size;
                to += size;
            }
        }
    }
    bytes.truncate(to);
    Ok(bytes)
}

/// The wire form of `range` from its plain bytes and the whole outboard, neither of them verified:
/// [`verify`](super::verify) takes it as it takes an answer of `/qk/blocks/1`. Where one is shorter
/// than it has to be, so is the wire form; what is too much of `data` is at its end.
pub fn weave(
    blob: &Blob,
    range: BlockRange,
    data: &[u8],
    outboard: &[u8],
) -> Result<Vec<u8>, RangeError> {
    let ranges = Ranges::from(range);
    let mut wire = Vec::with_capacity(wire_len(blob, &ranges)? as usize);
    let mut rest = data;
    for piece in pieces(blob, &ranges) {
        let (more, whole) = match piece {
            Piece::Pair(at) => {
                let pair = at.and_then(|at| outboard.get(at..)?.get(..PAIR_BYTES));
                (pair.unwrap_or_default(), PAIR_BYTES)
            }
            Piece::Leaf(size) => {
                let (leaf, behind) = rest.split_at(size.min(rest.len()));
                rest = behind;
                (leaf, size)
            }
        };
        wire.extend_from_slice(more);
        if more.len() < whole {
            return Ok(wire);
        }
    }
    wire.extend_from_slice(rest);
    Ok(wire)
}

/// A part of the wire form.
enum Piece {
    /// A node, with its offset in the outboard.
    Pair(Option<usize>),
    /// Bytes of the blob.
    Leaf(usize),
}

fn pieces(blob: &Blob, ranges: &Ranges) -> Vec<Piece> {
    let (tree, chunks) = (blob.tree(), ranges.chunks());
    let whole = bao_tree::io::sync::truncate_ranges(&chunks, blob.size);
    tree.ranges_pre_order_chunks_iter_ref(whole, 0)
        .map(|item| match item {
            BaoChunk::Parent { node, .. } => {
                let index = tree.pre_order_offset(node);
                Piece::Pair(index.map(|index| index as usize * PAIR_BYTES))
            }
            BaoChunk::Leaf { size, .. } => Piece::Leaf(size),
        })
        .collect()
}

/// Reads a range of an outboard, and compares every node that it returns with the root first.
#[derive(Debug)]
pub struct OutboardWalk {
    blob: Blob,
    wanted: Range<u64>,
    /// The next one last.
    subtrees: Vec<Subtree>,
    window: (u64, Vec<u8>),
}

/// A part of the tree that is not walked yet, known by its hash.
#[derive(Debug, Clone, Copy)]
struct Subtree {
    /// Where its nodes begin in the outboard.
    offset: u64,
    first: u32,
    blocks: u32,
    hash: blake3::Hash,
}

impl Subtree {
    /// Bytes of its nodes: one for every block but the first.
    fn bytes(&self) -> u64 {
        u64::from(self.blocks - 1) * PAIR_BYTES as u64
    }
}

impl OutboardWalk {
    /// A walk through `wanted`, in bytes of the outboard of `blob`.
    pub fn new(blob: &Blob, wanted: Range<u64>) -> Self {
        let whole = Subtree {
            offset: 0,
            first: 0,
            blocks: blob.blocks(),
            hash: blob.hash(),
        };
        Self {
            blob: *blob,
            wanted: wanted.start.min(blob.outboard_bytes())..wanted.end.min(blob.outboard_bytes()),
            subtrees: vec![whole],
            window: (0, Vec::new()),
        }
    }

    /// The next bytes, at least `bytes_max` and at most one node more unless the walk ends; none at
    /// its end.
    ///
    /// # Errors
    /// When the copy here is not what the root says, or cannot be read.
    pub fn next_bytes<O: ReadAt>(
        &mut self,
        outboard: O,
        bytes_max: usize,
    ) -> Result<Vec<u8>, EncodeError> {
        let mut bytes = Vec::with_capacity(bytes_max + PAIR_BYTES);
        while bytes.len() < bytes_max
            && let Some(subtree) = self.subtrees.pop()
        {
            let (begin, end) = (subtree.offset, subtree.offset + subtree.bytes());
            // Also where there are no nodes: a block alone.
            if end <= self.wanted.start.max(begin) || begin >= self.wanted.end {
                continue;
            }
            let pair = self.pair(&outboard, &subtree)?;
            self.descend(&subtree, &pair)?;
            let part = |at: u64| at.saturating_sub(begin).min(PAIR_BYTES as u64) as usize;
            bytes.extend_from_slice(&pair[part(self.wanted.start)..part(self.wanted.end)]);
        }
        Ok(bytes)
    }

    fn descend(&mut self, subtree: &Subtree, pair: &[u8; PAIR_BYTES]) -> Result<(), EncodeError> {
        let (mut left, mut right) = ([0; 32], [0; 32]);
        left.copy_from_slice(&pair[..32]);
        right.copy_from_slice(&pair[32..]);
        let found = match subtree.blocks == self.blob.blocks() {
            true => merge_subtrees_root(&left, &right, Mode::Hash),
            false => merge_subtrees_non_root(&left, &right, Mode::Hash).into(),
        };
        if found != subtree.hash {
            return Err(EncodeError::Corrupt {
                root: self.blob.root,
                block: Block(subtree.first),
            });
        }
        // BLAKE3 puts the largest power of two that leaves something to the left.
        let blocks = subtree.blocks.next_power_of_two() / 2;
        let left = Subtree {
            offset: subtree.offset + PAIR_BYTES as u64,
            first: subtree.first,
            blocks,
            hash: left.into(),
        };
        let right = Subtree {
            offset: left.offset + left.bytes(),
            first: subtree.first + blocks,
            blocks: subtree.blocks - blocks,
            hash: right.into(),
        };
        debug_assert!(self.subtrees.len() < DEPTH_MAX);
        self.subtrees.extend([right, left]);
        Ok(())
    }

    fn pair(
        &mut self,
        outboard: impl ReadAt,
        subtree: &Subtree,
    ) -> Result<[u8; PAIR_BYTES], EncodeError> {
        let root = self.blob.root;
        let (start, window) = &self.window;
        let here = subtree
            .offset
            .checked_sub(*start)
            .and_then(|at| window.get(at as usize..)?.first_chunk());
        if let Some(pair) = here {
            return Ok(*pair);
        }
        let left = self.blob.outboard_bytes() - subtree.offset;
        let mut window = vec![0; left.min(WINDOW_BYTES) as usize];
        let read = outboard.read_exact_at(subtree.offset, &mut window);
        read.map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => EncodeError::Short { root },
            _ => EncodeError::Read { root, source },
        })?;
        let pair = window.first_chunk().copied();
        self.window = (subtree.offset, window);
        pair.ok_or(EncodeError::Short { root })
    }
}

/// The range of [`UNIT_BLOCKS_MIN`](super::UNIT_BLOCKS_MIN) blocks that the byte at `offset` lies in.
///
/// # Errors
/// When the blob has no such byte.
pub fn unit_at(blob: &Blob, offset: u64) -> Result<BlockRange, RangeError> {
    let step = super::UNIT_BLOCKS_MIN;
    let block = (offset / BLOCK_BYTES).min(u64::from(u32::MAX - step)) as u32;
    let start = block / step * step;
    let range = BlockRange {
        start,
        end: (start + step).min(blob.blocks().max(start + 1)),
    };
    blob.check(&range.into())?;
    Ok(range)
}
