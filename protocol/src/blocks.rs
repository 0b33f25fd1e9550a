//! Blocks of an artifact: geometry, the messages of `/qk/<network>/blocks/1`, verification.
//!
//! A blob is cut into blocks of 16 KiB, the leaves of its hash tree; the tree's other nodes are
//! its outboard, in pre-order, 64 bytes (two hashes) each, without a header. An answer is the bao
//! encoding of the ranges asked for: the nodes and blocks on the way to them in pre-order. As the
//! size of the blob is known from the statements about it, so is the length of every answer.
//!
//! A request, all integers little-endian:
//!
//! | offset | bytes | |
//! |---|---|---|
//! | 0 | 1 | version, 1 |
//! | 1 | 1 | encoding: 0 raw, 1 zstd |
//! | 2 | 1 | number of ranges `n`, 1 to [`RANGES_MAX`] |
//! | 3 | 32 | root |
//! | 35 | 8 | size of the blob in bytes |
//! | 43 | 5 `n` | ranges, ascending and apart: first block (4), number of blocks (1) |
//!
//! An answer is one byte of [`Status`], and after [`Status::Ok`] exactly [`wire_len`] bytes. The
//! size is part of the request because a reader with a wrong one would take every honest answer
//! for a forged one.

use std::io;

use bao_tree::io::outboard::PreOrderOutboard;
use bao_tree::io::sync::{CreateOutboard, DecodeResponseIter, ReadAt, encode_ranges_validated};
use bao_tree::io::{BaoContentItem, DecodeError as BaoDecodeError, EncodeError as BaoEncodeError};
use bao_tree::iter::BaoChunk;
use bao_tree::{BaoTree, BlockSize, ChunkNum, ChunkRanges, TreeNode};

use crate::hash::Root;

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
/// The part of a request before its ranges.
pub const REQUEST_HEAD_BYTES: usize = 43;
/// A range in a request.
pub const REQUEST_RANGE_BYTES: usize = 5;
/// The longest request.
pub const REQUEST_BYTES_MAX: usize = REQUEST_HEAD_BYTES + RANGES_MAX * REQUEST_RANGE_BYTES;

const VERSION: u8 = 1;

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

/// How an answer's bytes are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// The bao encoding as it is.
    Raw,
    /// The bao encoding compressed; reserved, this version answers [`Status::NotSpoken`].
    Zstd,
}

/// One request of `/qk/<network>/blocks/1`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The blob, as the reader knows it from statements.
    pub blob: Blob,
    /// How the answer is to be packed.
    pub encoding: Encoding,
    /// What is asked for. Checked for form only: [`Blob::check`] compares with the size.
    pub ranges: Ranges,
}

/// Why bytes are not a request. Whoever sent them does not speak this protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// A later version, whose length nobody here knows.
    #[error("request of version {0}, expected {VERSION}")]
    Version(u8),
    /// Neither raw nor zstd.
    #[error("request with encoding {0}")]
    Encoding(u8),
    /// Size or ranges that no request may have.
    #[error("request for what cannot be: {0}")]
    Range(#[from] RangeError),
    /// Too short or too long for the number of ranges in it.
    #[error("request of {got} bytes where its head says {expected}")]
    Length {
        /// What the head says.
        expected: usize,
        /// What was given.
        got: usize,
    },
}

impl Request {
    /// The bytes of the request, at most [`REQUEST_BYTES_MAX`].
    pub fn encode(&self) -> Vec<u8> {
        let ranges = self.ranges.as_slice();
        let mut out = Vec::with_capacity(REQUEST_BYTES_MAX);
        let encoding = match self.encoding {
            Encoding::Raw => 0,
            Encoding::Zstd => 1,
        };
        // Both fit a byte: see RANGES_MAX and UNIT_BLOCKS_MAX.
        out.extend([VERSION, encoding, ranges.len() as u8]);
        out.extend(self.blob.root.0);
        out.extend(self.blob.size.to_le_bytes());
        for range in ranges {
            out.extend(range.start.to_le_bytes());
            out.push(range.blocks() as u8);
        }
        out
    }

    /// How many bytes of ranges follow this head.
    pub fn rest_bytes(head: &[u8; REQUEST_HEAD_BYTES]) -> Result<usize, RequestError> {
        if head[0] != VERSION {
            return Err(RequestError::Version(head[0]));
        }
        let ranges = usize::from(head[2]);
        match (1..=RANGES_MAX).contains(&ranges) {
            true => Ok(ranges * REQUEST_RANGE_BYTES),
            false => Err(RangeError::List.into()),
        }
    }

    /// Reads exactly one request.
    pub fn decode(bytes: &[u8]) -> Result<Self, RequestError> {
        let Some((head, rest)) = bytes.split_first_chunk::<REQUEST_HEAD_BYTES>() else {
            let (expected, got) = (REQUEST_HEAD_BYTES, bytes.len());
            return Err(RequestError::Length { expected, got });
        };
        let rest_bytes = Self::rest_bytes(head)?;
        if rest.len() != rest_bytes {
            let (expected, got) = (REQUEST_HEAD_BYTES + rest_bytes, bytes.len());
            return Err(RequestError::Length { expected, got });
        }
        let encoding = match head[1] {
            0 => Encoding::Raw,
            1 => Encoding::Zstd,
            other => return Err(RequestError::Encoding(other)),
        };
        let root = Root(std::array::from_fn(|i| head[3 + i]));
        let size = u64::from_le_bytes(std::array::from_fn(|i| head[35 + i]));
        let ranges: Result<Vec<_>, _> = rest
            .chunks_exact(REQUEST_RANGE_BYTES)
            .map(decode_range)
            .collect();
        Ok(Self {
            blob: Blob::new(root, size)?,
            encoding,
            ranges: Ranges::new(ranges?)?,
        })
    }
}

/// `bytes` are [`REQUEST_RANGE_BYTES`].
fn decode_range(bytes: &[u8]) -> Result<BlockRange, RangeError> {
    let start = u32::from_le_bytes(std::array::from_fn(|i| bytes[i]));
    // Zero, an empty range, where the sum is no number.
    let end = start.checked_add(u32::from(bytes[4])).unwrap_or_default();
    BlockRange::new(start, end)
}

/// The first byte of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// The encoding follows.
    Ok,
    /// This root is not here, or not whole.
    Lacks,
    /// Ask again later.
    Busy,
    /// The ranges are not in the blob, or the size is not that of the blob here.
    BadRange,
    /// The encoding is not spoken here: ask for [`Encoding::Raw`].
    NotSpoken,
}

impl Status {
    /// The byte that says it.
    pub fn byte(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Lacks => 1,
            Self::Busy => 2,
            Self::BadRange => 3,
            Self::NotSpoken => 4,
        }
    }

    /// What a byte says; none for one that no version-1 node sends.
    pub fn from_byte(byte: u8) -> Option<Self> {
        [
            Self::Ok,
            Self::Lacks,
            Self::Busy,
            Self::BadRange,
            Self::NotSpoken,
        ]
        .into_iter()
        .find(|status| status.byte() == byte)
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

#[cfg(test)]
mod tests;
