//! Small changes to an input.

use rand::RngExt;
use rand::rngs::StdRng;

/// Numbers and bytes at which decoders change their minds.
const TOKENS: &[&[u8]] = &[
    b"\0",
    b"\"",
    b"\\",
    b"/",
    b"..",
    b",",
    b":",
    b"{",
    b"}",
    b"[",
    b"]",
    b"-",
    b"0",
    b"1",
    b"null",
    b"true",
    b"1e9",
    b"9007199254740991",
    b"9007199254740992",
    b"18446744073709551615",
    b"\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\xc3\xa4",
    b"\xf0\x9f\xa6\x80",
    b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\x5f",
    b"\x9f",
    b"\xbf",
    b"\n",
    b" ",
];

/// Applies one to four random changes; `other` is a second input to borrow from.
pub(crate) fn mutate(input: &mut Vec<u8>, other: &[u8], rng: &mut StdRng) {
    for _ in 0..rng.random_range(1..=4) {
        change(input, other, rng);
    }
}

fn change(input: &mut Vec<u8>, other: &[u8], rng: &mut StdRng) {
    let at = rng.random_range(0..=input.len());
    match rng.random_range(0..9) {
        0 => on_byte(
            input,
            at,
            |byte, rng| byte ^ (1 << rng.random_range(0..8)),
            rng,
        ),
        1 => on_byte(input, at, |_, rng| rng.random(), rng),
        2 => on_byte(input, at, |byte, _| byte.wrapping_add(1), rng),
        3 => insert(input, at, TOKENS[rng.random_range(0..TOKENS.len())]),
        4 => drop(input.drain(piece(input.len(), at, 8, rng))),
        5 => drop(input.drain(piece(input.len(), at, usize::MAX, rng))),
        6 => {
            let copy = input[piece(input.len(), at, 256, rng)].to_vec();
            insert(input, at, &copy);
        }
        7 => {
            let from = rng.random_range(0..=other.len());
            let borrowed = other[piece(other.len(), from, 256, rng)].to_vec();
            insert(input, at, &borrowed);
        }
        _ => {
            let token = TOKENS[rng.random_range(0..TOKENS.len())];
            let end = input.len().min(at + token.len());
            input[at..end].copy_from_slice(&token[..end - at]);
        }
    }
}

fn on_byte(input: &mut [u8], at: usize, new: impl Fn(u8, &mut StdRng) -> u8, rng: &mut StdRng) {
    if let Some(byte) = input.get_mut(at) {
        *byte = new(*byte, rng);
    }
}

fn insert(input: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    input.splice(at..at, bytes.iter().copied());
}

/// A range from `at` of at most `most` bytes.
fn piece(len: usize, at: usize, most: usize, rng: &mut StdRng) -> std::ops::Range<usize> {
    at..at + rng.random_range(0..=(len - at).min(most))
}
