//! Hashes and identities as types of their own, so that none is taken for another.
//!
//! All are 32 raw bytes; in text they are 64 lower-case hex digits. Where several values are hashed
//! together, identities go in as raw bytes and strings with a little-endian `u64` length before
//! them ([`Fields`]), so that no two lists of values give the same input.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Why a text is not one of this module's values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected 64 lower-case hex digits, got {got:?}")]
pub struct ParseHashError {
    /// The beginning of what was given.
    pub got: String,
}

macro_rules! bytes32 {
    ($($(#[$doc:meta])* $name:ident)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 32]);

        impl $name {
            /// The raw 32 bytes.
            pub fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }

            /// The first eight hex digits, for lines a person reads.
            pub fn short(&self) -> String {
                self.to_string()[..8].to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.short())
            }
        }

        impl FromStr for $name {
            type Err = ParseHashError;
            fn from_str(text: &str) -> Result<Self, ParseHashError> {
                parse_hex(text).map(Self)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serialize32(&self.0, self, serializer)
            }
        }

        #[cfg(feature = "schema")]
        impl schemars::JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "type": "string", "pattern": "^[0-9a-f]{64}$" })
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserialize32(deserializer).map(Self)
            }
        }
    )*};
}

bytes32! {
    /// BLAKE3 of an artifact: what `b3sum` prints of the archive.
    Root
    /// Identity of an artifact key.
    KeyId
    /// Identity of a statement.
    StatementId
    /// Identity of a network: a hash of version 1 of its manifest.
    NetworkId
    /// What locations of a network are keyed with; secret on a private network.
    NetworkKey
    /// A point in the key space where the statements of one release are held, before kad's SHA-256.
    Location
    /// SHA-256 of a location or of a node's identity: what distances are measured between.
    Point
    /// An ed25519 verifying key.
    PublicKey
    /// A principal: an operator, however many keys it has. Random, given by the manifest.
    PrincipalId
    /// A BLAKE3 digest of a file that is not an artifact.
    Blake3
    /// A SHA-256 digest.
    Sha256
    /// A work digest, keyed by network, observer and artifact key.
    Work
}

impl Blake3 {
    /// BLAKE3 of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
}

impl Sha256 {
    /// SHA-256 of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        use sha2::Digest;
        Self(sha2::Sha256::digest(bytes).into())
    }
}

impl Root {
    /// BLAKE3 of a whole archive.
    pub fn of(archive: &[u8]) -> Self {
        Self(*blake3::hash(archive).as_bytes())
    }
}

impl Location {
    /// Where this location lies in the key space of kad, which hashes every preimage with SHA-256.
    pub fn point(&self) -> Point {
        Point(Sha256::of(&self.0).0)
    }
}

impl Point {
    /// The XOR distance between two points, most significant byte first.
    pub fn distance(&self, other: &Self) -> [u8; 32] {
        std::array::from_fn(|i| self.0[i] ^ other.0[i])
    }

    /// How many of the first bits of both points are equal, 256 if all are.
    pub fn shared_bits(&self, other: &Self) -> u16 {
        let zeros: u32 = self
            .distance(other)
            .iter()
            .try_fold(0, |sum, byte| match byte {
                0 => Ok(sum + 8),
                _ => Err(sum + byte.leading_zeros()),
            })
            .unwrap_or_else(|stopped| stopped);
        zeros as u16
    }

    /// Whether the first `bits` bits of both points are equal. `bits` above 256 count as 256.
    pub fn shares_prefix(&self, other: &Self, bits: u16) -> bool {
        self.shared_bits(other) >= bits.min(256)
    }
}

/// Feeds several values to one hash so that their borders are part of the input.
#[derive(Debug, Clone)]
pub struct Fields(blake3::Hasher);

impl Fields {
    /// BLAKE3 in key derivation mode.
    pub fn derive(context: &'static str) -> Self {
        Self(blake3::Hasher::new_derive_key(context))
    }

    /// BLAKE3 in keyed mode.
    pub fn keyed(key: &[u8; 32]) -> Self {
        Self(blake3::Hasher::new_keyed(key))
    }

    /// Adds an identity as its raw bytes.
    pub fn id(mut self, id: &[u8; 32]) -> Self {
        self.0.update(id);
        self
    }

    /// Adds a string or byte string with its length before it.
    pub fn text(mut self, text: impl AsRef<[u8]>) -> Self {
        let bytes = text.as_ref();
        self.0.update(&(bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
        self
    }

    /// The 32 bytes of the hash.
    pub fn finish(self) -> [u8; 32] {
        *self.0.finalize().as_bytes()
    }
}

fn parse_hex(text: &str) -> Result<[u8; 32], ParseHashError> {
    let error = || ParseHashError {
        got: text.chars().take(80).collect(),
    };
    let digits = text.as_bytes();
    if digits.len() != 64 {
        return Err(error());
    }
    let mut out = [0; 32];
    for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        let (Some(high), Some(low)) = (nibble(pair[0]), nibble(pair[1])) else {
            return Err(error());
        };
        *byte = high << 4 | low;
    }
    Ok(out)
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

/// Hex in formats for people (JSON, TOML), bytes in binary ones (CBOR).
fn serialize32<S: Serializer>(
    bytes: &[u8; 32],
    text: &impl fmt::Display,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    if serializer.is_human_readable() {
        serializer.collect_str(text)
    } else {
        serializer.serialize_bytes(bytes)
    }
}

fn deserialize32<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 32], D::Error> {
    if deserializer.is_human_readable() {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        parse_hex(&text).map_err(de::Error::custom)
    } else {
        serde_bytes::ByteArray::<32>::deserialize(deserializer)
            .map(serde_bytes::ByteArray::into_array)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_is_strict() {
        let root = Root::of(b"qk");
        assert_eq!(root.to_string().parse(), Ok(root));
        assert!(root.to_string().to_uppercase().parse::<Root>().is_err());
        assert!("é".repeat(32).parse::<Root>().is_err());
    }

    #[test]
    fn borders_of_fields_matter() {
        let one = Fields::derive("qk test").text("ab").text("c").finish();
        let other = Fields::derive("qk test").text("a").text("bc").finish();
        assert_ne!(one, other);
    }

    #[test]
    fn prefixes_are_counted_in_bits() {
        let zero = Point([0; 32]);
        let mut other = Point([0; 32]);
        other.0[1] = 0b0001_0000;
        assert!(zero.shares_prefix(&other, 11));
        assert!(!zero.shares_prefix(&other, 12));
        assert!(zero.shares_prefix(&zero, 256));
    }
}
