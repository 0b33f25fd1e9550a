//! Transfer of artifacts: downloads under way, answers to others, and the streams between.

use std::fs::File;
use std::io::{self, Seek};

use qk_protocol::blocks::Blob;

pub mod behaviour;
pub mod download;
pub mod lane;
pub mod pack;
pub mod part;
pub mod serve;
mod shared;
pub mod source;

#[cfg(test)]
mod tests;

/// The blob that a freshly built artifact is, and its pre-order outboard (0.4 % of its size).
/// Reads the whole file from its beginning: call it off the reactor.
pub fn outboard(mut data: &File) -> io::Result<(Blob, Vec<u8>)> {
    data.rewind()?;
    qk_protocol::blocks::outboard(data, data.metadata()?.len())
}

/// Bytes without a pattern that a shifted block could share.
#[cfg(test)]
pub(crate) fn test_bytes(length: usize, seed: u64) -> Vec<u8> {
    let mut out = vec![0; length];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.finalize_xof().fill(&mut out);
    out
}
