//! From files to answers and back, every block and node compared with the root on both sides.

use std::io;

use bao_tree::io::outboard::PreOrderOutboard;
use bao_tree::io::sync::{CreateOutboard, DecodeResponseIter, ReadAt, encode_ranges_validated};
use bao_tree::io::{BaoContentItem, DecodeError as BaoDecodeError, EncodeError as BaoEncodeError};
use bao_tree::{ChunkNum, ChunkRanges, TreeNode};

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
    data: Vec<(u64, Vec<u8>)>,
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

    /// Pieces of the blob, by offset in it, ascending and apart.
    pub fn data(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.data.iter().map(|(at, bytes)| (*at, &bytes[..]))
    }

    /// Pieces of the pre-order outboard, by offset in it, ascending.
    pub fn outboard(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.outboard.iter().map(|(at, bytes)| (*at, &bytes[..]))
    }
}

/// Checks a raw answer (without its status) for `ranges` of `blob` against the root.
///
/// The decoder reads no further than the first wrong byte's block, and nothing is returned unless
/// everything is right.
pub fn verify(blob: &Blob, ranges: &Ranges, wire: &[u8]) -> Result<Verified, VerifyError> {
    let expected = wire_len(blob, ranges)?;
    if wire.len() > expected as usize {
        let (root, got) = (blob.root, wire.len());
        return Err(VerifyError::Excess {
            root,
            expected,
            got,
        });
    }
    let (tree, chunks) = (blob.tree(), ranges.chunks());
    let (mut data, mut outboard) = (Vec::new(), Vec::new());
    for item in DecodeResponseIter::new(blob.hash(), tree, wire, &chunks) {
        match item.map_err(|error| blame(blob, &error))? {
            BaoContentItem::Parent(parent) => {
                // Nodes inside a block are not stored; a request for whole blocks meets none.
                if let Some(index) = tree.pre_order_offset(parent.node) {
                    push(&mut outboard, index * 64, parent.pair.0.as_bytes());
                    push(&mut outboard, index * 64 + 32, parent.pair.1.as_bytes());
                }
            }
            BaoContentItem::Leaf(leaf) => push(&mut data, leaf.offset, &leaf.data),
        }
    }
    let (blob, ranges) = (*blob, ranges.clone());
    Ok(Verified {
        blob,
        ranges,
        data,
        outboard,
    })
}

/// Appends to the last piece where `bytes` follow it, so that a unit is one write.
fn push(pieces: &mut Vec<(u64, Vec<u8>)>, offset: u64, bytes: &[u8]) {
    match pieces.last_mut() {
        Some((at, piece)) if *at + piece.len() as u64 == offset => piece.extend_from_slice(bytes),
        Some(_) | None => pieces.push((offset, bytes.to_vec())),
    }
}

fn blame(blob: &Blob, error: &BaoDecodeError) -> VerifyError {
    let root = blob.root;
    match error {
        BaoDecodeError::ParentHashMismatch(node) => VerifyError::Wrong {
            root,
            block: first_block(*node),
        },
        BaoDecodeError::LeafHashMismatch(chunk) => VerifyError::Wrong {
            root,
            block: block_of(*chunk),
        },
        BaoDecodeError::ParentNotFound(node) => VerifyError::Truncated {
            root,
            block: first_block(*node),
        },
        BaoDecodeError::LeafNotFound(chunk) => VerifyError::Truncated {
            root,
            block: block_of(*chunk),
        },
        // A slice has no other error than its end.
        BaoDecodeError::Io(_) => VerifyError::Truncated {
            root,
            block: Block(0),
        },
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
