//! The journal's format on disk: a segment header and checksummed frames. Pure: bytes in, bytes out.
//!
//! A segment begins with its header written twice, 64 bytes each, so that one bad sector does not
//! take the salt with it:
//!
//! ```text
//! "qkjournl" | version u32 | zero u32 | number u64 | salt [32] | checksum [8]
//! ```
//!
//! Then frames follow without gaps:
//!
//! ```text
//! marker [8] | kind u8 | zero [3] | payload length u32 | checksum [16] | payload
//! ```
//!
//! Integers are little-endian. The marker and the checksum are keyed by the salt, which is random
//! and never leaves the machine: payloads come from strangers, and none of them can contain bytes
//! that pass for a frame when a damaged segment is searched for the next good one. The checksum
//! covers the frame's offset, so that a frame in the wrong place is not a frame.

use qk_protocol::hash::{KeyId, NetworkId, Point, PublicKey, Root, StatementId};
use qk_protocol::time::UnixTime;

use super::{Record, STATEMENT_BYTES_MAX};

/// Version of the journal's format, in every segment's header.
pub(super) const FORMAT: u32 = 1;
/// Bytes before the first frame of a segment.
pub(super) const HEADER_LEN: u64 = 2 * HEADER_COPY_LEN as u64;
/// Bytes of a frame before its payload.
pub(super) const PREFIX_LEN: usize = 32;
/// The largest payload of any frame: that of a manifest's, which earlier versions wrote.
pub(super) const PAYLOAD_MAX: usize = 32 + (256 << 10);

/// The kind of frame that is obsolete; not to be used for anything else.
const MANIFEST_KIND: u8 = 5;
const MAGIC: &[u8; 8] = b"qkjournl";
const HEADER_COPY_LEN: usize = 64;
/// Bytes of a statement's payload before the envelope.
pub(super) const RECORD_FIXED_LEN: usize = 5 * 32 + 1 + 32 + 8;
const RECORD_MAX: usize = RECORD_FIXED_LEN + STATEMENT_BYTES_MAX;

/// What a segment's header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// The number in the segment's name.
    pub(super) number: u64,
    /// Keys the frames' markers and checksums.
    pub(super) salt: [u8; 32],
}

/// Why a segment has no readable header.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum HeaderError {
    /// Neither copy has the right magic and checksum.
    #[error("neither copy of the header is intact")]
    Damaged,
    /// Intact, but of a later format.
    #[error("format version {0}")]
    Newer(u32),
}

impl Header {
    /// Both copies.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut copy = Vec::with_capacity(HEADER_LEN as usize);
        copy.extend_from_slice(MAGIC);
        copy.extend_from_slice(&FORMAT.to_le_bytes());
        copy.extend_from_slice(&[0; 4]);
        copy.extend_from_slice(&self.number.to_le_bytes());
        copy.extend_from_slice(&self.salt);
        copy.extend_from_slice(&header_sum(&copy));
        copy.extend_from_within(..);
        copy
    }

    /// Reads the first intact copy.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, HeaderError> {
        let copies = bytes.chunks_exact(HEADER_COPY_LEN).take(2);
        let mut outcome = Err(HeaderError::Damaged);
        for copy in copies {
            outcome = Self::decode_copy(copy);
            if !matches!(outcome, Err(HeaderError::Damaged)) {
                break;
            }
        }
        outcome
    }

    /// Where a copy is not what it should be, and what that is.
    pub(super) fn damaged_copy(bytes: &[u8]) -> Option<(usize, Vec<u8>)> {
        let whole = Self::decode(bytes).ok()?.encode();
        let copies = whole
            .chunks_exact(HEADER_COPY_LEN)
            .zip(bytes.chunks_exact(HEADER_COPY_LEN));
        let bad = copies.enumerate().find(|(_, (good, found))| good != found);
        bad.map(|(n, (good, _))| (n * HEADER_COPY_LEN, good.to_vec()))
    }

    fn decode_copy(copy: &[u8]) -> Result<Self, HeaderError> {
        let (head, sum) = copy.split_at(HEADER_COPY_LEN - 8);
        if !head.starts_with(MAGIC) || header_sum(head) != sum {
            return Err(HeaderError::Damaged);
        }
        let mut rest = Reader(&head[MAGIC.len()..]);
        let (version, _zero) = (rest.u32(), rest.u32());
        match (version, rest.u64(), rest.array::<32>()) {
            (Some(FORMAT), Some(number), Some(salt)) => Ok(Self { number, salt }),
            (Some(newer), Some(_), Some(_)) if newer > FORMAT => Err(HeaderError::Newer(newer)),
            (_, _, _) => Err(HeaderError::Damaged),
        }
    }
}

fn header_sum(head: &[u8]) -> [u8; 8] {
    first(blake3::derive_key("qk journal header v1", head))
}

/// One entry of the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Frame {
    /// A statement was stored.
    Statement(Record),
    /// A statement was evicted.
    Removed(StatementId),
    /// A root was pinned.
    Pin(Root),
    /// A root is pinned no longer.
    Unpin(Root),
    /// What earlier versions wrote and nothing reads any more: a network's manifest.
    Obsolete,
}

/// Why bytes at an offset are not a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum FrameError {
    /// The bytes end before the frame does.
    #[error("the frame is cut short")]
    Short,
    /// The segment's marker is not there.
    #[error("no frame begins here")]
    Marker,
    /// The stated length is beyond the limit.
    #[error("the frame states a payload of {0} bytes")]
    Length(u32),
    /// The checksum differs.
    #[error("the frame's checksum does not match")]
    Checksum,
    /// The checksum matches but the payload is none of the known forms.
    #[error("the frame is intact but of an unknown form (kind {0})")]
    Form(u8),
}

/// Writes and reads the frames of one segment.
#[derive(Debug, Clone)]
pub(super) struct Codec {
    salt: [u8; 32],
    marker: [u8; 8],
}

impl Codec {
    /// The codec of the segment whose header has this salt.
    pub(super) fn new(salt: [u8; 32]) -> Self {
        Self {
            salt,
            marker: first(*blake3::keyed_hash(&salt, b"marker").as_bytes()),
        }
    }

    /// What every frame of this segment begins with.
    pub(super) fn marker(&self) -> &[u8; 8] {
        &self.marker
    }

    /// Appends `frame` to `out` as it is to stand at `offset` of the segment; returns its length.
    pub(super) fn encode(&self, frame: &Frame, offset: u64, out: &mut Vec<u8>) -> u32 {
        self.encode_form(frame.kind(), |out| frame.write_payload(out), offset, out)
    }

    /// As [`Codec::encode`], for a frame of which only the form on disk is known.
    pub(super) fn encode_form(
        &self,
        kind: u8,
        payload: impl FnOnce(&mut Vec<u8>),
        offset: u64,
        out: &mut Vec<u8>,
    ) -> u32 {
        let start = out.len();
        out.extend_from_slice(&self.marker);
        out.extend_from_slice(&[kind, 0, 0, 0]);
        out.extend_from_slice(&[0; PREFIX_LEN - 12]);
        payload(out);
        let payload_len = (out.len() - start - PREFIX_LEN) as u32;
        out[start + 12..start + 16].copy_from_slice(&payload_len.to_le_bytes());
        let sum = self.sum(offset, &out[start..start + 16], &out[start + PREFIX_LEN..]);
        out[start + 16..start + 32].copy_from_slice(&sum);
        PREFIX_LEN as u32 + payload_len
    }

    /// The length of the whole frame that begins with `prefix`.
    pub(super) fn frame_len(&self, prefix: &[u8]) -> Result<usize, FrameError> {
        let prefix = prefix.get(..PREFIX_LEN).ok_or(FrameError::Short)?;
        if prefix[..8] != self.marker {
            return Err(FrameError::Marker);
        }
        let stated = Reader(&prefix[12..]).u32().ok_or(FrameError::Short)?;
        match usize::try_from(stated) {
            Ok(len) if len <= PAYLOAD_MAX => Ok(PREFIX_LEN + len),
            Ok(_) | Err(_) => Err(FrameError::Length(stated)),
        }
    }

    /// Reads the frame that stands at `offset`; `bytes` begin there and may go on beyond it.
    /// Returns its length, too.
    pub(super) fn decode(&self, offset: u64, bytes: &[u8]) -> Result<(Frame, u32), FrameError> {
        let len = self.frame_len(bytes)?;
        let bytes = bytes.get(..len).ok_or(FrameError::Short)?;
        let (prefix, payload) = bytes.split_at(PREFIX_LEN);
        if self.sum(offset, &prefix[..16], payload) != prefix[16..] {
            return Err(FrameError::Checksum);
        }
        let frame = Frame::read(prefix[8], payload).ok_or(FrameError::Form(prefix[8]))?;
        Ok((frame, len as u32))
    }

    fn sum(&self, offset: u64, prefix: &[u8], payload: &[u8]) -> [u8; 16] {
        let mut hasher = blake3::Hasher::new_keyed(&self.salt);
        hasher.update(&offset.to_le_bytes());
        hasher.update(prefix);
        hasher.update(payload);
        first(*hasher.finalize().as_bytes())
    }
}

impl Frame {
    /// Bytes of the frame, roughly: what bounds a batch.
    pub(super) fn size(&self) -> usize {
        PREFIX_LEN
            + match self {
                Self::Statement(record) => RECORD_FIXED_LEN + record.bytes.len(),
                Self::Removed(_) | Self::Pin(_) | Self::Unpin(_) => 32,
                Self::Obsolete => 0,
            }
    }

    /// Refuses what no reader would take back.
    pub(super) fn check_size(&self) -> Result<(), super::StoreError> {
        match self {
            Self::Statement(record) if record.bytes.len() > STATEMENT_BYTES_MAX => {
                Err(super::StoreError::TooLarge {
                    what: "statement",
                    bytes: record.bytes.len(),
                    bytes_max: STATEMENT_BYTES_MAX,
                })
            }
            Self::Statement(_)
            | Self::Removed(_)
            | Self::Pin(_)
            | Self::Unpin(_)
            | Self::Obsolete => Ok(()),
        }
    }

    fn kind(&self) -> u8 {
        match self {
            Self::Statement(_) => 1,
            Self::Removed(_) => 2,
            Self::Pin(_) => 3,
            Self::Unpin(_) => 4,
            Self::Obsolete => MANIFEST_KIND,
        }
    }

    fn write_payload(&self, out: &mut Vec<u8>) {
        match self {
            Self::Statement(record) => write_record(record, out),
            Self::Removed(id) => out.extend_from_slice(&id.0),
            Self::Pin(root) | Self::Unpin(root) => out.extend_from_slice(&root.0),
            Self::Obsolete => {}
        }
    }

    fn read(kind: u8, payload: &[u8]) -> Option<Self> {
        let mut reader = Reader(payload);
        let frame = match kind {
            1 => return read_record(payload).map(Self::Statement),
            2 => Self::Removed(StatementId(reader.array()?)),
            3 => Self::Pin(Root(reader.array()?)),
            4 => Self::Unpin(Root(reader.array()?)),
            MANIFEST_KIND => return Some(Self::Obsolete),
            _ => return None,
        };
        reader.0.is_empty().then_some(frame)
    }
}

fn write_record(record: &Record, out: &mut Vec<u8>) {
    for id in [
        &record.id.0,
        &record.network.0,
        &record.point.0,
        &record.key.0,
        &record.observer.0,
    ] {
        out.extend_from_slice(id);
    }
    out.push(u8::from(record.root.is_some()));
    out.extend_from_slice(&record.root.map_or([0; 32], |root| root.0));
    out.extend_from_slice(&record.stored.0.to_le_bytes());
    out.extend_from_slice(&record.bytes);
}

fn read_record(payload: &[u8]) -> Option<Record> {
    if payload.len() > RECORD_MAX {
        return None;
    }
    let mut reader = Reader(payload);
    Some(Record {
        id: StatementId(reader.array()?),
        network: NetworkId(reader.array()?),
        point: Point(reader.array()?),
        key: KeyId(reader.array()?),
        observer: PublicKey(reader.array()?),
        root: reader.root()?,
        stored: UnixTime(reader.u64()?),
        bytes: reader.0.to_vec(),
    })
}

/// Takes values from the front of a slice; `None` where it ends too early.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl Reader<'_> {
    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// A flag byte and 32 bytes, which are zero where there is no root.
    pub(super) fn root(&mut self) -> Option<Option<Root>> {
        match (self.array::<1>()?, self.array::<32>()?) {
            ([0], root) if root == [0; 32] => Some(None),
            ([1], root) => Some(Some(Root(root))),
            (_, _) => None,
        }
    }
}

/// The first `N` bytes of a hash.
pub(super) fn first<const N: usize>(hash: [u8; 32]) -> [u8; N] {
    std::array::from_fn(|i| hash[i])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_frame() -> impl Strategy<Value = Frame> {
        let hash = any::<[u8; 32]>;
        let record = (
            [hash(), hash(), hash(), hash(), hash()],
            proptest::option::of(hash()),
            any::<u64>(),
            proptest::collection::vec(any::<u8>(), 0..400),
        )
            .prop_map(
                |([id, network, point, key, observer], root, stored, bytes)| {
                    Frame::Statement(Record {
                        id: StatementId(id),
                        network: NetworkId(network),
                        point: Point(point),
                        key: KeyId(key),
                        observer: PublicKey(observer),
                        root: root.map(Root),
                        stored: UnixTime(stored),
                        bytes,
                    })
                },
            );
        prop_oneof![
            record,
            hash().prop_map(|id| Frame::Removed(StatementId(id))),
            hash().prop_map(|root| Frame::Pin(Root(root))),
            hash().prop_map(|root| Frame::Unpin(Root(root))),
        ]
    }

    proptest! {
        #[test]
        fn frames_round_trip(frame in any_frame(), salt: [u8; 32], offset: u64) {
            let codec = Codec::new(salt);
            let mut bytes = Vec::new();
            let len = codec.encode(&frame, offset, &mut bytes);
            prop_assert_eq!(len as usize, bytes.len());
            bytes.extend_from_slice(b"what follows");
            prop_assert_eq!(codec.decode(offset, &bytes), Ok((frame, len)));
        }

        #[test]
        fn any_bit_any_cut_and_any_other_place_is_noticed(
            frame in any_frame(), salt: [u8; 32], offset in 0u64..1 << 40, at: prop::sample::Index, bit in 0u8..8,
        ) {
            let codec = Codec::new(salt);
            let mut bytes = Vec::new();
            codec.encode(&frame, offset, &mut bytes);
            let at = at.index(bytes.len());
            prop_assert_eq!(codec.decode(offset, &bytes[..at]), Err(FrameError::Short));
            prop_assert_eq!(codec.decode(offset + 1, &bytes), Err(FrameError::Checksum));
            bytes[at] ^= 1 << bit;
            prop_assert!(codec.decode(offset, &bytes).is_err());
        }

        #[test]
        fn random_bytes_never_pass_and_never_panic(bytes: Vec<u8>, salt: [u8; 32], kind: u8) {
            let codec = Codec::new(salt);
            prop_assert!(codec.decode(0, &bytes).is_err());
            prop_assert!(Header::decode(&bytes).is_err());
            // With the marker right, and with a right checksum around any payload.
            let mut marked = codec.marker().to_vec();
            marked.extend_from_slice(&bytes);
            prop_assert!(codec.decode(0, &marked).is_err());
            if let Some(frame) = Frame::read(kind, &bytes).filter(|frame| *frame != Frame::Obsolete) {
                let mut payload = Vec::new();
                frame.write_payload(&mut payload);
                prop_assert_eq!(payload, bytes);
            }
        }

        #[test]
        fn a_header_survives_damage_to_one_copy(salt: [u8; 32], number: u64, at in 0usize..64, bit in 0u8..8) {
            let header = Header { number, salt };
            let mut bytes = header.encode();
            prop_assert_eq!(bytes.len() as u64, HEADER_LEN);
            bytes[at] ^= 1 << bit;
            prop_assert_eq!(Header::decode(&bytes), Ok(header));
            bytes[64 + at] ^= 1 << bit;
            prop_assert_eq!(Header::decode(&bytes), Err(HeaderError::Damaged));
        }
    }

    #[test]
    fn a_later_format_is_told_from_damage() {
        let mut bytes = Header {
            number: 1,
            salt: [7; 32],
        }
        .encode();
        for copy in bytes.chunks_exact_mut(64) {
            copy[8..12].copy_from_slice(&9u32.to_le_bytes());
            let sum = header_sum(&copy[..56]);
            copy[56..].copy_from_slice(&sum);
        }
        assert_eq!(Header::decode(&bytes), Err(HeaderError::Newer(9)));
    }

    #[test]
    fn the_limits_are_those_that_are_stated() {
        let record = |len| {
            Frame::Statement(Record {
                id: StatementId([1; 32]),
                network: NetworkId([2; 32]),
                point: Point([3; 32]),
                key: KeyId([4; 32]),
                observer: PublicKey([5; 32]),
                root: None,
                stored: UnixTime(0),
                bytes: vec![0; len],
            })
        };
        let codec = Codec::new([0; 32]);
        let (most, over) = (record(STATEMENT_BYTES_MAX), record(STATEMENT_BYTES_MAX + 1));
        let mut bytes = Vec::new();
        codec.encode(&most, 0, &mut bytes);
        assert!(most.check_size().is_ok() && codec.decode(0, &bytes).is_ok());
        bytes.clear();
        codec.encode(&over, 0, &mut bytes);
        assert!(over.check_size().is_err() && codec.decode(0, &bytes).is_err());
        for (len, is_frame) in [(PAYLOAD_MAX, true), (PAYLOAD_MAX + 1, false)] {
            bytes.clear();
            let payload = |out: &mut Vec<u8>| out.resize(out.len() + len, 0);
            codec.encode_form(MANIFEST_KIND, payload, 0, &mut bytes);
            assert_eq!(codec.decode(0, &bytes).is_ok(), is_frame);
        }
    }
}
