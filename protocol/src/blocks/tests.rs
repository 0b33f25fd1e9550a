use bao_tree::io::outboard::PreOrderOutboard;
use bao_tree::io::sync::encode_ranges_validated;
use proptest::prelude::*;

use super::*;

/// Bytes without a pattern that a shifted block could share.
fn bytes_of_length(length: usize, seed: u64) -> Vec<u8> {
    let mut out = vec![0; length];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.finalize_xof().fill(&mut out);
    out
}

struct Fixture {
    data: Vec<u8>,
    blob: Blob,
    outboard: Vec<u8>,
}

fn fixture(size: usize) -> Fixture {
    let data = bytes_of_length(size, 7);
    let (blob, outboard) = outboard(&data[..], size as u64).expect("a slice reads");
    Fixture {
        data,
        blob,
        outboard,
    }
}

fn one(start: u32, end: u32) -> Ranges {
    BlockRange::new(start, end).expect("aligned").into()
}

#[test]
fn the_root_is_plain_blake3() {
    for size in [1, 1023, 1024, 16 << 10, (16 << 10) + 1, 300_001] {
        let Fixture {
            data,
            blob,
            outboard,
        } = fixture(size);
        assert_eq!(blob.root(), Root::of(&data));
        assert_eq!(blob.outboard_bytes(), outboard.len() as u64);
        assert!(check_whole(&blob, &data[..], &outboard[..]).is_ok());
    }
}

#[test]
fn sizes_that_no_artifact_has_are_refused() {
    let root = Root([0; 32]);
    assert!(Blob::new(root, 0).is_err());
    assert!(Blob::new(root, BLOB_BYTES_MAX + 1).is_err());
    let largest = Blob::new(root, BLOB_BYTES_MAX).expect("the largest");
    assert_eq!(largest.blocks(), 1 << 20);
    assert!(outboard(&b""[..], 0).is_err());
    assert!(outboard(&b"short"[..], 6).is_err());
}

#[test]
fn a_range_beyond_the_end_is_refused_where_bao_tree_answers_with_the_tail() {
    let Fixture {
        data,
        blob,
        outboard,
    } = fixture(20 << 14);
    let beyond = one(32, 48);
    let tree = PreOrderOutboard {
        root: blob.hash(),
        tree: blob.tree(),
        data: &outboard[..],
    };
    let mut answered = Vec::new();
    encode_ranges_validated(&data[..], tree, &beyond.chunks(), &mut answered)
        .expect("bao-tree answers");
    assert!(answered.ends_with(&data[data.len() - 1024..]));

    assert!(matches!(
        encode(&blob, &beyond, &data[..], &outboard[..]),
        Err(EncodeError::Range(RangeError::BeyondEnd { .. }))
    ));
    assert!(matches!(
        verify(&blob, &beyond, &answered),
        Err(VerifyError::Range(RangeError::BeyondEnd { .. }))
    ));
    assert!(
        wire_len(&blob, &one(16, 20)).is_ok(),
        "the end of the blob need not be aligned"
    );
    assert!(
        wire_len(&blob, &one(0, 10)).is_err(),
        "the end of a range must"
    );
}

#[test]
fn a_flipped_bit_is_found_in_exactly_its_block() {
    let Fixture {
        data,
        blob,
        outboard,
    } = fixture(100 << 14);
    let ranges = one(16, 80);
    let honest = encode(&blob, &ranges, &data[..], &outboard[..]).expect("encodes");
    for block in [16_u32, 17, 40, 79] {
        let start = block as usize * BLOCK_BYTES as usize;
        let begin = &data[start..start + 64];
        let at = honest
            .windows(64)
            .position(|window| window == begin)
            .expect("is sent");
        let mut forged = honest.clone();
        forged[at + 1000] ^= 1;
        assert_eq!(
            verify(&blob, &ranges, &forged),
            Err(VerifyError::Wrong {
                root: blob.root(),
                block: Block(block)
            })
        );
    }
}

#[test]
fn a_corrupt_copy_is_never_encoded() {
    let Fixture {
        mut data,
        blob,
        mut outboard,
    } = fixture(40 << 14);
    data[20 << 14] ^= 1;
    let wire = encode(&blob, &one(16, 32), &data[..], &outboard[..]);
    assert!(
        matches!(
            wire,
            Err(EncodeError::Corrupt {
                block: Block(20),
                ..
            })
        ),
        "{wire:?}"
    );
    assert!(encode(&blob, &one(0, 16), &data[..], &outboard[..]).is_ok());

    let short = encode(&blob, &one(32, 40), &data[..30 << 14], &outboard[..]);
    assert!(matches!(short, Err(EncodeError::Short { .. })), "{short:?}");
    outboard.truncate(64);
    assert!(encode(&blob, &one(0, 16), &data[..], &outboard[..]).is_err());
}

#[test]
fn the_length_of_an_answer_is_bounded_by_constants() {
    let blob = Blob::new(Root([1; 32]), BLOB_BYTES_MAX - 5).expect("in bounds");
    let apart = [0, 1 << 18, 1 << 19, (1 << 20) - 16]
        .map(|start| BlockRange::new(start, start + 16).expect("aligned"));
    let ranges = Ranges::new(apart.to_vec()).expect("four of 256 KiB");
    let bytes = wire_len(&blob, &ranges).expect("in the blob");
    assert!(bytes < 2 << 20, "{bytes}");
}

#[test]
fn requests_have_one_layout() {
    let request = Request {
        blob: Blob::new(Root([0xab; 32]), 1_000_000).expect("in bounds"),
        encoding: Encoding::Raw,
        ranges: one(16, 32),
    };
    let hex = hex::encode(request.encode());
    insta::assert_snapshot!(hex, @"010001abababababababababababababababababababababababababababababababab40420f00000000001000000010");
    assert_eq!(Request::decode(&request.encode()), Ok(request));
}

#[test]
fn a_packed_answer_is_never_longer_than_the_raw_one() {
    let of = |bytes: u32| packed_len(bytes.to_le_bytes(), 1000);
    assert_eq!([of(0), of(1001), of(u32::MAX)], [None, None, None]);
    assert_eq!([of(1), of(999), of(1000)], [Some(1), Some(999), Some(1000)]);
}

#[test]
fn malformed_requests_are_refused() {
    let good = Request {
        blob: Blob::new(Root([0xab; 32]), 1_000_000).expect("in bounds"),
        encoding: Encoding::Zstd,
        ranges: Ranges::new(vec![
            BlockRange::new(0, 16).expect("aligned"),
            BlockRange::new(32, 48).expect("aligned"),
        ])
        .expect("apart"),
    }
    .encode();
    let changed = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        Request::decode(&bytes)
    };
    assert!(Request::decode(&good).is_ok());
    assert_eq!(changed(0, 2), Err(RequestError::Version(2)));
    assert_eq!(changed(1, 2), Err(RequestError::Encoding(2)));
    assert!(changed(2, 0).is_err(), "no range");
    assert!(changed(2, 1).is_err(), "a range too many for its number");
    assert!(changed(2, 255).is_err(), "more ranges than allowed");
    assert!(changed(42, 255).is_err(), "a size beyond all bounds");
    assert!(changed(43, 1).is_err(), "not aligned");
    assert!(changed(47, 0).is_err(), "empty");
    assert!(changed(47, 32).is_err(), "touches the next");
    assert!(changed(47, 255).is_err(), "too long");
    let mut last = good.clone();
    last[48..].copy_from_slice(&[0xf0, 0xff, 0xff, 0xff, 16]);
    assert!(Request::decode(&last).is_err(), "past the last number");
    assert!(Request::decode(&good[..good.len() - 1]).is_err());
    assert!(Request::decode(&[&good[..], &[0]].concat()).is_err());
}

#[test]
fn statuses_are_their_bytes() {
    let known = (0..=255).filter_map(Status::from_byte).map(Status::byte);
    assert_eq!(known.collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
}

fn ranges_in(blocks: u32) -> impl Strategy<Value = Ranges> {
    let units = blocks.div_ceil(UNIT_BLOCKS_MIN);
    prop::collection::btree_set(0..units, 1..=4).prop_map(move |picked| {
        let mut ranges: Vec<BlockRange> = Vec::new();
        for unit in picked {
            let start = unit * UNIT_BLOCKS_MIN;
            let end = (start + UNIT_BLOCKS_MIN).min(blocks);
            match ranges.last_mut() {
                Some(last) if last.end == start => last.end = end,
                Some(_) | None => ranges.push(BlockRange::new(start, end).expect("aligned")),
            }
        }
        Ranges::new(ranges).expect("at most four units")
    })
}

fn blob_and_ranges() -> impl Strategy<Value = (usize, Ranges)> {
    (1_usize..(3 << 20)).prop_flat_map(|size| {
        (
            Just(size),
            ranges_in(size.div_ceil(BLOCK_BYTES as usize) as u32),
        )
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_is_encoded_verifies_and_has_the_length_known_before((size, ranges) in blob_and_ranges()) {
        let Fixture { data, blob, outboard } = fixture(size);
        let wire = encode(&blob, &ranges, &data[..], &outboard[..]).expect("encodes");
        prop_assert_eq!(wire.len(), wire_len(&blob, &ranges).expect("in the blob") as usize);
        let verified = verify(&blob, &ranges, &wire).expect("honest");
        let blocks = |range: &BlockRange| range.start().0..range.end().0;
        let place = |block: u32| {
            let at = u64::from(block) * BLOCK_BYTES;
            at..(at + BLOCK_BYTES).min(blob.size())
        };
        let wanted: Vec<_> = ranges.as_slice().iter().flat_map(blocks).map(place).collect();
        let got: Vec<_> = verified.data().map(|(at, bytes)| at..at + bytes.len() as u64).collect();
        prop_assert_eq!(wanted, got);
        for (at, bytes) in verified.data() {
            prop_assert_eq!(&data[at as usize..at as usize + bytes.len()], bytes);
        }
        for (at, bytes) in verified.outboard() {
            prop_assert_eq!(&outboard[at as usize..at as usize + bytes.len()], bytes);
        }
    }

    #[test]
    fn no_changed_answer_verifies(
        (size, ranges) in blob_and_ranges(), at in any::<prop::sample::Index>(), bit in 0..8_u8,
    ) {
        let Fixture { data, blob, outboard } = fixture(size);
        let honest = encode(&blob, &ranges, &data[..], &outboard[..]).expect("encodes");
        let mut forged = honest.clone();
        forged[at.index(honest.len())] ^= 1_u8 << bit;
        let is_wrong = matches!(verify(&blob, &ranges, &forged), Err(VerifyError::Wrong { .. }));
        prop_assert!(is_wrong);
        let cut = verify(&blob, &ranges, &honest[..at.index(honest.len())]);
        let is_cut = matches!(cut, Err(VerifyError::Truncated { .. }));
        prop_assert!(is_cut);
        let excess = verify(&blob, &ranges, [&honest[..], &[0]].concat());
        let is_excess = matches!(excess, Err(VerifyError::Excess { .. }));
        prop_assert!(is_excess);
    }

    #[test]
    fn requests_survive_the_wire(size in 1..=BLOB_BYTES_MAX, ranges in ranges_in(1 << 20), zstd: bool) {
        let encoding = if zstd { Encoding::Zstd } else { Encoding::Raw };
        let blob = Blob::new(Root([3; 32]), size).expect("in bounds");
        let request = Request { blob, encoding, ranges };
        prop_assert_eq!(Request::decode(&request.encode()), Ok(request));
    }

    #[test]
    fn no_bytes_confuse_the_decoder(mut bytes in prop::collection::vec(any::<u8>(), 0..80)) {
        if let Some(first) = bytes.first_mut() {
            *first = 1;
        }
        if let Ok(request) = Request::decode(&bytes) {
            prop_assert_eq!(request.encode(), bytes);
        }
    }

    #[test]
    fn units_cover_every_block_once(size in 1..(64_u64 << 20), blocks in 0_u32..200) {
        let blob = Blob::new(Root([3; 32]), size).expect("in bounds");
        let mut next = 0;
        for unit in blob.units(blocks) {
            prop_assert_eq!(unit.start().0, next);
            prop_assert!(blob.check(&unit.into()).is_ok());
            next = unit.end().0;
        }
        prop_assert_eq!(next, blob.blocks());
    }
}

/// Sizes around where the tree changes its shape.
const SHAPES: [usize; 10] = [
    1,
    16 << 10,
    (16 << 10) + 1,
    3 << 14,
    (16 << 14) - 5,
    16 << 14,
    (16 << 14) + 1,
    (33 << 14) + 1025,
    (64 << 14) + 9,
    (129 << 14) - 1,
];

#[test]
fn plain_bytes_are_read_and_woven_into_the_wire_form_again() {
    for size in SHAPES {
        let it = fixture(size);
        for range in it.blob.units(48) {
            let span = it.blob.bytes_of(range);
            let honest = &it.data[span.start as usize..span.end as usize];
            let plain = read(&it.blob, range, &it.data[..], &it.outboard[..]).expect("valid");
            assert_eq!(plain, honest);
            let wire = weave(&it.blob, range, &plain, &it.outboard).expect("in the blob");
            let ranges = Ranges::from(range);
            assert_eq!(
                wire,
                encode(&it.blob, &ranges, &it.data[..], &it.outboard[..]).expect("valid")
            );
            // What lies is found, what is short or too long is told apart from it.
            let mut forged = plain.clone();
            let middle = forged.len() / 2;
            forged[middle] ^= 1;
            let wire = weave(&it.blob, range, &forged, &it.outboard).expect("in the blob");
            let found = verify(&it.blob, &ranges, &wire);
            assert!(matches!(found, Err(VerifyError::Wrong { .. })), "{size}");
            let wire = weave(&it.blob, range, &plain[..middle], &it.outboard).expect("in the blob");
            let found = verify(&it.blob, &ranges, &wire);
            assert!(
                matches!(found, Err(VerifyError::Truncated { .. })),
                "{size}"
            );
            let longer = [&plain[..], &[0]].concat();
            let wire = weave(&it.blob, range, &longer, &it.outboard).expect("in the blob");
            let found = verify(&it.blob, &ranges, &wire);
            assert!(matches!(found, Err(VerifyError::Excess { .. })), "{size}");
        }
    }
}

fn walked(blob: &Blob, outboard: &[u8], from: u64, to: u64) -> Result<Vec<u8>, EncodeError> {
    let mut walk = OutboardWalk::new(blob, from..to);
    let mut all = Vec::new();
    loop {
        match walk.next_bytes(outboard, 200)? {
            some if some.is_empty() => return Ok(all),
            some => all.extend(some),
        }
    }
}

#[test]
fn an_outboard_is_walked_in_any_part() {
    for size in SHAPES {
        let Fixture { blob, outboard, .. } = fixture(size);
        let end = outboard.len() as u64;
        for from in (0..=end).step_by(97) {
            for to in (from..=end).step_by(211).chain([end]) {
                let part = walked(&blob, &outboard, from, to).expect("valid");
                assert_eq!(part, &outboard[from as usize..to as usize], "{size}");
            }
        }
    }
}

#[test]
fn no_flipped_bit_of_an_outboard_is_returned() {
    let Fixture { blob, outboard, .. } = fixture((33 << 14) + 1025);
    for at in 0..outboard.len() {
        let mut flipped = outboard.clone();
        flipped[at] ^= 4;
        let whole = walked(&blob, &flipped, 0, u64::MAX);
        assert!(matches!(whole, Err(EncodeError::Corrupt { .. })), "{at}");
        let alone = walked(&blob, &flipped, at as u64, at as u64 + 1);
        assert!(matches!(alone, Err(EncodeError::Corrupt { .. })), "{at}");
    }
    let cut = walked(&blob, &outboard[..outboard.len() - 1], 0, u64::MAX);
    assert!(matches!(cut, Err(EncodeError::Short { .. })));
}

#[test]
fn every_byte_lies_in_a_unit() {
    let blob = fixture((33 << 14) + 1).blob;
    for (offset, unit) in [(0, "0..16"), (16 << 14, "16..32"), (33 << 14, "32..34")] {
        let found = unit_at(&blob, offset).expect("in the blob");
        assert_eq!(found.to_string(), unit);
    }
    assert!(unit_at(&blob, (34 << 14) + (16 << 14)).is_err());
    assert!(unit_at(&blob, u64::MAX).is_err());
}
