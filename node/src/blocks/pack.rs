//! Packed answers: zstd, where a slow line makes it worth the processor's time.
//!
//! Both sides know how long an answer is unpacked, so that nothing unpacks to more: a frame that
//! would is refused before it has filled more than that.

use qk_protocol::blocks::PACKED_HEAD_BYTES;

/// As small as what gzip makes of a whole archive, though each range is packed alone (level 1: 7 % more),
/// at some hundred megabytes a second.
const LEVEL: i32 = 3;

/// Bytes that do not unpack to what was asked for. Whoever sent them does not speak this protocol.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// Not zstd, or more than there may be.
    #[error("the answer does not unpack to {expected} bytes: {why}")]
    Malformed {
        /// Bytes of the raw answer.
        expected: u32,
        /// What is wrong.
        why: String,
    },
}

/// The body of a packed answer: its head, and the frame, or `raw` as it is where a frame would be no
/// shorter.
pub(crate) fn pack(raw: &[u8]) -> Vec<u8> {
    let packed = zstd::bulk::compress(raw, LEVEL).ok();
    let packed = packed.filter(|packed| packed.len() < raw.len());
    let body = packed.as_deref().unwrap_or(raw);
    let mut out = Vec::with_capacity(PACKED_HEAD_BYTES + body.len());
    // An answer is shorter than 4 GiB: see the bounds of a request.
    out.extend((body.len() as u32).to_le_bytes());
    out.extend(body);
    out
}

/// The raw answer of `raw_bytes` bytes in `body`, which has that many bytes only if it is not packed.
///
/// # Errors
/// When it unpacks to something else.
pub fn unpack(body: Vec<u8>, raw_bytes: u32) -> Result<Vec<u8>, PackError> {
    if body.len() == raw_bytes as usize {
        return Ok(body);
    }
    let malformed = |why: String| PackError::Malformed {
        expected: raw_bytes,
        why,
    };
    let raw = zstd::bulk::decompress(&body, raw_bytes as usize)
        .map_err(|error| malformed(error.to_string()))?;
    match raw.len() == raw_bytes as usize {
        true => Ok(raw),
        false => Err(malformed(format!("it has {} bytes", raw.len()))),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::blocks::test_bytes;

    fn body(packed: &[u8]) -> Vec<u8> {
        let (head, body) = packed.split_first_chunk::<PACKED_HEAD_BYTES>().unwrap();
        assert_eq!(u32::from_le_bytes(*head) as usize, body.len());
        body.to_vec()
    }

    #[test]
    fn what_does_not_shrink_goes_as_it_is() {
        let noise = test_bytes(100_000, 3);
        assert_eq!(body(&pack(&noise)), noise);
        let text = b"the same again and ".repeat(1000);
        let packed = body(&pack(&text));
        assert!(packed.len() < text.len() / 10);
        assert_eq!(unpack(packed, text.len() as u32).unwrap(), text);
    }

    #[test]
    fn a_bomb_is_refused_at_the_length_that_was_asked_for() {
        let bomb = zstd::bulk::compress(&vec![0; 64 << 20], LEVEL).unwrap();
        assert!(bomb.len() < 10_000);
        // Without the bound it is all of that.
        let unbounded = zstd::stream::decode_all(&bomb[..]).unwrap();
        assert_eq!(unbounded.len(), 64 << 20);
        assert!(unpack(bomb, 1 << 20).is_err());
        let short = zstd::bulk::compress(&[0; 100], LEVEL).unwrap();
        assert!(unpack(short, 101).is_err());
    }

    proptest! {
        #[test]
        fn it_comes_out_as_it_went_in(raw in prop::collection::vec(0_u8..4, 1..5000)) {
            prop_assert_eq!(unpack(body(&pack(&raw)), raw.len() as u32).unwrap(), raw);
        }

        #[test]
        fn garbage_gives_exactly_the_length_or_nothing(
            seed in prop::collection::vec(0_u8..4, 1..5000),
            flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
            raw_bytes in 0_u32..10_000,
        ) {
            let mut packed = body(&pack(&seed));
            for (at, byte) in flips {
                let at = at.index(packed.len());
                packed[at] = byte;
            }
            if let Ok(raw) = unpack(packed, raw_bytes) {
                prop_assert_eq!(raw.len(), raw_bytes as usize);
            }
        }
    }
}
