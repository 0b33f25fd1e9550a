//! From files to answers and back, every block and node compared with the root on both sides.

use std::borrow::Cow;
use std::io;
use std::ops::Range;

use bao_tree::io::EncodeError as BaoEncodeError;
use bao_tree::io::outboard::PreOrderOutboard;
use bao_tree::io::sync::{CreateOutboard, ReadAt, encode_ranges_validated, truncate_ranges};
use bao_tree::iter::BaoChunk;
use bao_tree::{ChunkNum, ChunkRanges, TreeNode};
use blake3::hazmat::{HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};

use super::{BLOCK_BYTES, Blob, Block, BlockRange, CHUNK_BYTES, RangeError, Ranges, wire_len};
use crate::hash::Root;

/// Why an answer was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// Whoever sent this lied or is broken: an honest node checks before it sends.
    #[error("block {block} of {root} does not match its parent hash")]
    Wrong {
        /// The blob.
        root: Root,
        /// The block, or the first block below the node, that does not match.
        block: Block,
    },
    /// The sender does not have the rest.
    #[error("the answer for {root} ends before block {block}")]
    Truncated {
        /// The blob.
        root: Root,
        /// The first block that is not covered.
        block: Block,
    },
    /// More bytes than the ranges have.
    #[error("an answer of {got} bytes for {root} where {expected} were asked for")]
    Excess {
        /// The blob.
        root: Root,
        /// See [`wire_len`].
        expected: u32,
        /// What was given.
        got: usize,
    },
    /// What was asked for is not in the blob.
    #[error(transparent)]
    Range(#[from] RangeError),
}

/// Bytes of a blob that were verified against its root. Only [`verify`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    blob: Blob,
    ranges: Ranges,
    bytes: Vec<u8>,
    /// Where each block is in `bytes`, by offset in the blob.
    data: Vec<(u64, Range<usize>)>,
    outboard: Vec<(u64, Vec<u8>)>,
}

impl Verified {
    /// The blob they belong to.
    pub fn blob(&self) -> &Blob {
        &self.blob
    }

    /// The ranges that were asked for, all of which are here.
    pub fn ranges(&self) -> &Ranges {
        &self.ranges
    }

    /// The blocks, by offset in the blob, ascending.
    pub fn data(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.data
            .iter()
            .map(|(at, place)| (*at, &self.bytes[place.clone()]))
    }

    /// Pieces of the pre-order outboard, by offset in it, ascending.
    pub fn outboard(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.outboard.iter().map(|(at, bytes)| (*at, &bytes[..]))
    }

    /// The buffer of the answer that they came in, for the next one.
    pub fn into_buffer(self) -> Vec<u8> {
        self.bytes
    }

    fn add_outboard(&mut self, offset: u64, pair: &[u8; PAIR_BYTES]) {
        match self.outboard.last_mut() {
            Some((at, last)) if *at + last.len() as u64 == offset => last.extend_from_slice(pair),
            Some(_) | None => self.outboard.push((offset, pair.to_vec())),
        }
    }
}

/// A node of the tree: the hashes of its two children.
const PAIR_BYTES: usize = 64;

/// Checks a raw answer (without its status) for `ranges` of `blob` against the root.
///
/// Nothing is read further than the first wrong byte's block, and nothing is returned unless
/// everything is right. Blocks stay where they are in the answer.
///
/// bao-tree walks the tree. Its own decoder would copy each block twice.
pub fn verify<'a>(
    blob: &Blob,
    ranges: &Ranges,
    wire: impl Into<Cow<'a, [u8]>>,
) -> Result<Verified, VerifyError> {
    let bytes = wire.into().into_owned();
    let (root, expected) = (blob.root, wire_len(blob, ranges)?);
    if bytes.len() > expected as usize {
        let got = bytes.len();
        return Err(VerifyError::Excess {
            root,
            expected,
            got,
        });
    }
    let mut verified = Verified {
        blob: *blob,
        ranges: ranges.clone(),
        bytes: Vec::new(),
        data: Vec::new(),
        outboard: Vec::new(),
    };
    let (tree, chunks) = (blob.tree(), ranges.chunks());
    let whole = truncate_ranges(&chunks, blob.size);
    let mut read = 0;
    // Of the subtrees that follow, the next one last.
    let mut hashes = vec![blob.root.0];
    for item in tree.ranges_pre_order_chunks_iter_ref(whole, 0) {
        let wanted = hashes.pop();
        match item {
            BaoChunk::Parent {
                node,
                is_root,
                left,
                right,
                ..
            } => {
                let block = first_block(node);
                let pair = bytes[read..].first_chunk::<PAIR_BYTES>();
                let pair = pair.ok_or(VerifyError::Truncated { root, block })?;
                let children = children(pair);
                if wanted != Some(parent_hash(&children, is_root)) {
                    return Err(VerifyError::Wrong { root, block });
                }
                hashes.extend(right.then_some(children.1));
                hashes.extend(left.then_some(children.0));
                // Nodes inside a block are not stored; a request for whole blocks meets none.
                if let Some(index) = tree.pre_order_offset(node) {
                    verified.add_outboard(index * PAIR_BYTES as u64, pair);
                }
                read += PAIR_BYTES;
            }
            BaoChunk::Leaf {
                start_chunk,
                size,
                is_root,
                ..
            } => {
                let (block, end) = (block_of(start_chunk), read + size);
                let leaf = bytes.get(read..end);
                let leaf = leaf.ok_or(VerifyError::Truncated { root, block })?;
                if wanted != Some(leaf_hash(start_chunk, leaf, is_root)) {
                    return Err(VerifyError::Wrong { root, block });
                }
                verified.data.push((start_chunk.to_bytes(), read..end));
                read = end;
            }
        }
    }
    verified.bytes = bytes;
    Ok(verified)
}

type Hash = [u8; 32];

fn children(pair: &[u8; PAIR_BYTES]) -> (Hash, Hash) {
    let (mut left, mut right) = ([0; 32], [0; 32]);
    left.copy_from_slice(&pair[..32]);
    right.copy_from_slice(&pair[32..]);
    (left, right)
}

fn parent_hash((left, right): &(Hash, Hash), is_root: bool) -> Hash {
    match is_root {
        true => *merge_subtrees_root(left, right, Mode::Hash).as_bytes(),
        false => merge_subtrees_non_root(left, right, Mode::Hash),
    }
}

fn leaf_hash(start: ChunkNum, leaf: &[u8], is_root: bool) -> Hash {
    match is_root {
        true => *blake3::hash(leaf).as_bytes(),
        false => blake3::Hasher::new()
            .set_input_offset(start.to_bytes())
            .update(leaf)
            .finalize_non_root(),
    }
}

fn first_block(node: TreeNode) -> Block {
    block_of(node.chunk_range().start)
}

fn block_of(chunk: ChunkNum) -> Block {
    Block(
        (chunk.0 * CHUNK_BYTES / BLOCK_BYTES)
            .try_into()
            .unwrap_or(u32::MAX),
    )
}

/// Why local bytes of a blob cannot be sent or counted.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// The copy here is not what its root says.
    #[error("the copy of {root} here is corrupt at block {block}")]
    Corrupt {
        /// The blob.
        root: Root,
        /// The block, or the first block below the node, that does not match.
        block: Block,
    },
    /// The files here are shorter than the blob.
    #[error("the copy of {root} here is cut short")]
    Short {
        /// The blob.
        root: Root,
    },
    /// What was asked for is not in the blob.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// The files cannot be read.
    #[error("cannot read the copy of {root} here: {source}")]
    Read {
        /// The blob.
        root: Root,
        /// What the system said.
        source: io::Error,
    },
}

/// The raw answer for `ranges` from `data` and its pre-order `outboard`, every block and node of
/// it compared with the root first: a corrupt copy is an error, never an answer.
pub fn encode<D: ReadAt, O: ReadAt>(
    blob: &Blob,
    ranges: &Ranges,
    data: D,
    outboard: O,
) -> Result<Vec<u8>, EncodeError> {
    let mut wire = Vec::with_capacity(wire_len(blob, ranges)? as usize);
    encode_chunks(blob, &ranges.chunks(), data, outboard, &mut wire)?;
    Ok(wire)
}

/// Whether `range` of `data` and the nodes above it are what the root says.
/// Corrupt and short are `false`, a failure to read is an error.
pub fn is_valid<D: ReadAt, O: ReadAt>(
    blob: &Blob,
    range: BlockRange,
    data: D,
    outboard: O,
) -> Result<bool, EncodeError> {
    let ranges = Ranges::from(range);
    blob.check(&ranges)?;
    match encode_chunks(blob, &ranges.chunks(), data, outboard, &mut io::sink()) {
        Ok(()) => Ok(true),
        Err(EncodeError::Corrupt { .. } | EncodeError::Short { .. }) => Ok(false),
        Err(error @ (EncodeError::Range(_) | EncodeError::Read { .. })) => Err(error),
    }
}

/// Checks every block of `data` and every node of `outboard` against the root.
pub fn check_whole<D: ReadAt, O: ReadAt>(
    blob: &Blob,
    data: D,
    outboard: O,
) -> Result<(), EncodeError> {
    encode_chunks(blob, &ChunkRanges::all(), data, outboard, &mut io::sink())
}

fn encode_chunks<D: ReadAt, O: ReadAt>(
    blob: &Blob,
    chunks: &ChunkRanges,
    data: D,
    outboard: O,
    out: &mut impl io::Write,
) -> Result<(), EncodeError> {
    let tree = PreOrderOutboard {
        root: blob.hash(),
        tree: blob.tree(),
        data: outboard,
    };
    let root = blob.root;
    encode_ranges_validated(data, tree, chunks, out).map_err(|error| match error {
        BaoEncodeError::ParentHashMismatch(node) => EncodeError::Corrupt {
            root,
            block: first_block(node),
        },
        BaoEncodeError::LeafHashMismatch(chunk) => EncodeError::Corrupt {
            root,
            block: block_of(chunk),
        },
        BaoEncodeError::Io(source) if source.kind() == io::ErrorKind::UnexpectedEof => {
            EncodeError::Short { root }
        }
        other => EncodeError::Read {
            root,
            source: other.into(),
        },
    })
}

/// Reads `size` bytes of a fresh artifact and returns it as a blob, with its pre-order outboard
/// (0.4 % of the size). The root is the BLAKE3 of the bytes.
pub fn outboard(data: impl io::Read, size: u64) -> io::Result<(Blob, Vec<u8>)> {
    let refuse = |error: RangeError| io::Error::new(io::ErrorKind::InvalidInput, error);
    // Checked before anything is sized after it.
    let shape = Blob::new(Root([0; 32]), size).map_err(refuse)?;
    let mut tree = PreOrderOutboard {
        root: shape.hash(),
        tree: shape.tree(),
        data: Vec::with_capacity(shape.outboard_bytes() as usize),
    };
    tree.init_from(data)?;
    let blob = Blob {
        root: Root(*tree.root.as_bytes()),
        size,
    };
    Ok((blob, tree.data))
}
