//! Requests and the first byte of answers.
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
//! An answer is one byte of [`Status`], and after [`Status::Ok`] exactly [`wire_len`] bytes. Where
//! zstd was asked for, a length of four bytes comes between, and then as many bytes as that says: one
//! zstd frame that unpacks to exactly [`wire_len`] bytes, or, where the length is [`wire_len`], these
//! as they are. A larger length is none that an honest node sends: see [`packed_len`]. The size is
//! part of the request because a reader with a wrong one would take every honest answer for a forged
//! one.

use super::{Blob, BlockRange, RANGES_MAX, RangeError, Ranges};
use crate::hash::Root;

/// The part of a request before its ranges.
pub const REQUEST_HEAD_BYTES: usize = 43;
/// A range in a request.
pub const REQUEST_RANGE_BYTES: usize = 5;
/// The longest request.
pub const REQUEST_BYTES_MAX: usize = REQUEST_HEAD_BYTES + RANGES_MAX * REQUEST_RANGE_BYTES;
/// The length before a packed answer.
pub const PACKED_HEAD_BYTES: usize = 4;
const VERSION: u8 = 1;

/// How an answer's bytes are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// The bao encoding as it is.
    Raw,
    /// The bao encoding compressed. A node that does not do that answers [`Status::NotSpoken`].
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

/// How many bytes of a packed answer follow its head, where the raw one has `raw_bytes`; none where
/// nobody packs like this.
pub fn packed_len(head: [u8; PACKED_HEAD_BYTES], raw_bytes: u32) -> Option<u32> {
    let bytes = u32::from_le_bytes(head);
    (1..=raw_bytes).contains(&bytes).then_some(bytes)
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
