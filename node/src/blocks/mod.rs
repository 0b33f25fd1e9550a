//! Transfer of artifacts: downloads under way, answers to others, and the streams between.

pub mod part;

/// Bytes without a pattern that a shifted block could share.
#[cfg(test)]
pub(crate) fn test_bytes(length: usize, seed: u64) -> Vec<u8> {
    let mut out = vec![0; length];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.finalize_xof().fill(&mut out);
    out
}
