//! The network manifest: who belongs to a network, what it builds with and what it trusts.
//!
//! One TOML document in a DSSE envelope. Version 1 defines the network: its id is a hash of those
//! bytes. Version n+1 names the network and is signed by the thresholds of n and of n+1. An online
//! key signs a [`Timestamp`] for at most seven days, past which nothing new is trusted. A
//! [`Network`] is what came out of verifying a whole chain; there is no other way to make one.

pub mod changes;
pub mod draft;
pub mod membership;
mod timestamp;

use std::collections::{BTreeMap, BTreeSet};

use ed25519_dalek::SigningKey;
use serde::{Deserialize, Serialize};

pub use self::changes::Change;
use crate::candidate::Build;
use crate::canonical::CanonicalError;
use crate::dsse::{self, DsseError};
use crate::hash::{Blake3, Fields, KeyId, NetworkId, NetworkKey, PrincipalId, PublicKey, Root};
use crate::key::KeyError;
use crate::policy::{NOBODY, Policy};
use crate::time::UnixTime;

pub use self::timestamp::Timestamp;

/// A manifest's TOML may be this long.
pub const MANIFEST_BYTES_MAX: usize = 256 * 1024;
/// An envelope around it may be this long: base64 and signatures.
pub const MANIFEST_ENVELOPE_BYTES_MAX: usize = 400 * 1024;
/// A chain may have this many versions.
pub const MANIFEST_VERSIONS_MAX: usize = 1024;
/// A whole network file may be this long; it has to fit into one message.
pub const NETWORK_FILE_BYTES_MAX: usize = 3 * 512 * 1024;
/// Most principals, builds, bootstrap addresses and so on, each.
pub const MANIFEST_LIST_MAX: usize = 1024;
/// Longest time that one timestamp may cover.
pub const TIMESTAMP_SECONDS_MAX: u64 = 7 * 24 * 3600;
/// So long before its end a timestamp that was not renewed is warned of.
pub const TIMESTAMP_WARNING_SECONDS: u64 = 2 * 24 * 3600;
/// How far a clock may be ahead of ours.
pub const CLOCK_SKEW_SECONDS_MAX: u64 = 600;

const MANIFEST_TYPE: &str = "application/vnd.qk.network+toml";

/// One version of a network's definition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Layout of this document; 1.
    pub format: u32,
    /// A name for people.
    pub name: String,
    /// Which network, absent in version 1, whose bytes define it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkId>,
    /// Counts up from 1 without gaps.
    pub version: u64,
    /// The key that signs timestamps.
    pub timestamp: PublicKey,
    /// Where to find nodes: multiaddresses that end in a peer id.
    #[serde(default)]
    pub bootstrap: BTreeSet<String>,
    /// Cargo's source ids of the registries that this network serves.
    pub registries: BTreeSet<String>,
    /// BLAKE3 of the secret of a private network; the secret itself is a file of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_id: Option<Blake3>,
    /// The offline keys that sign manifests.
    pub root: RootKeys,
    /// How committees are drawn.
    pub committee: Committee,
    /// What clients of this network ask for at least.
    #[serde(default)]
    pub policy: Policy,
    /// What this network builds with, newest first.
    #[serde(default)]
    pub builds: Vec<Build>,
    /// Operators.
    #[serde(default)]
    pub principals: Vec<Principal>,
    /// What nobody is to take any more.
    #[serde(default)]
    pub blocked: Vec<Blocked>,
}

/// The keys that sign manifests, and how many of them have to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct RootKeys {
    /// How many distinct keys have to sign.
    pub threshold: u32,
    /// Which ones can.
    pub keys: BTreeSet<PublicKey>,
}

/// How committees are drawn; [`Ranking`](crate::assign::Ranking) draws them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Committee {
    /// Members of one committee.
    pub size: u32,
    /// Random, chosen when the network was made.
    pub seed: Blake3,
}

/// An operator. All its keys count once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Principal {
    /// Random; stays when keys change.
    pub id: PrincipalId,
    /// A name for people.
    pub name: String,
    /// What it does here.
    pub roles: BTreeSet<PrincipalRole>,
    /// Targets that it can build; empty for all of the network's.
    #[serde(default)]
    pub targets: BTreeSet<String>,
    /// Versions of rustc that it has; empty for all of the network's.
    #[serde(default)]
    pub toolchains: BTreeSet<String>,
    /// Its keys.
    pub keys: Vec<PrincipalKey>,
}

/// What a principal does in a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum PrincipalRole {
    /// Publishes artifacts.
    Publisher,
    /// Rebuilds what others publish.
    Verifier,
    /// Holds the whole index.
    Mirror,
}

/// One key of a principal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct PrincipalKey {
    /// The key.
    pub key: PublicKey,
    /// What its statements are worth.
    pub state: KeyState,
    /// When it retired; needed when `state` is `retired`, absent otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retired: Option<UnixTime>,
}

/// What the statements of a key are worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum KeyState {
    /// They count.
    Active,
    /// They count if they were stored before the key retired.
    Retired,
    /// They never count.
    Compromised,
}

/// Something that nobody is to take any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Blocked {
    /// A key, whatever its root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<KeyId>,
    /// A root, whatever its key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<Root>,
    /// Why, for people.
    pub reason: String,
}

/// A chain of manifests and the newest timestamp, as they travel: JSON of envelopes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkFile {
    /// Envelopes of versions 1, 2, …, as JSON text.
    pub manifests: Vec<String>,
    /// Envelope of the timestamp, as JSON text.
    pub timestamp: String,
}

/// A network whose chain, signatures and timestamp have been verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    id: NetworkId,
    manifest: Manifest,
    timestamp: Timestamp,
    file: NetworkFile,
    observers: BTreeMap<PublicKey, (usize, PrincipalKey)>,
}

/// Why a manifest, a chain or a timestamp is refused.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// An envelope is wrong, or a signature.
    #[error("network manifest: {0}")]
    Envelope(#[from] DsseError),
    /// Not canonical JSON of the expected shape.
    #[error("network file: {0}")]
    Canonical(#[from] CanonicalError),
    /// Not JSON of the expected shape.
    #[error("network file: {0}")]
    Json(#[from] serde_json::Error),
    /// Not TOML of the expected shape.
    #[error("network manifest: {0}")]
    Toml(#[from] toml::de::Error),
    /// Not writable as TOML.
    #[error("network manifest: {0}")]
    TomlWrite(#[from] toml::ser::Error),
    /// A document or list is longer than allowed.
    #[error("network manifest: more than {bytes_max} bytes")]
    TooLarge {
        /// The limit.
        bytes_max: usize,
    },
    /// Too few of the keys that have to sign did.
    #[error(
        "network manifest version {version}: signed by {got} of the {needed} root keys needed (those of version {keys_of})"
    )]
    TooFewSignatures {
        /// Version that is signed.
        version: u64,
        /// Version whose root keys were counted.
        keys_of: u64,
        /// How many signed.
        got: usize,
        /// How many have to.
        needed: u32,
    },
    /// The chain misses a version or begins elsewhere than at 1.
    #[error("network manifest: version {got} where version {expected} belongs")]
    Gap {
        /// Version found.
        got: u64,
        /// Version expected.
        expected: u64,
    },
    /// Of another network.
    #[error("network manifest: of network {got}, expected {expected}")]
    OtherNetwork {
        /// Network found.
        got: NetworkId,
        /// Network expected.
        expected: NetworkId,
    },
    /// Older than, or beside, what is known already.
    #[error(
        "network manifest: version {got} does not follow the version {have} that is known already"
    )]
    Older {
        /// Version given.
        got: u64,
        /// Version known.
        have: u64,
    },
    /// The timestamp's envelope is wrong, or its signature.
    #[error("network timestamp: {0}")]
    TimestampEnvelope(DsseError),
    /// The timestamp is of another manifest, not signed by the timestamp key, or covers too long.
    #[error("network timestamp: {0}")]
    Timestamp(&'static str),
    /// A next version that is not one.
    #[error("next version: {0}")]
    Draft(&'static str),
    /// Signed by somebody whose signature means nothing.
    #[error("next version: key {0} is a root key neither of it nor of the version before")]
    NoRootKey(PublicKey),
    /// A request's envelope is wrong, or a signature.
    #[error("request: {0}")]
    RequestEnvelope(DsseError),
    /// A request that is none.
    #[error("request: {0}")]
    Request(&'static str),
    /// A build names something unusable.
    #[error("network manifest: builds: {0}")]
    Build(#[from] KeyError),
    /// A member contradicts another one or is out of bounds.
    #[error("network manifest: {0}")]
    Bounds(String),
}

impl Manifest {
    /// Reads and checks TOML of at most [`MANIFEST_BYTES_MAX`] bytes.
    ///
    /// # Errors
    /// For anything else.
    pub fn parse(toml: &[u8]) -> Result<Self, ManifestError> {
        if toml.len() > MANIFEST_BYTES_MAX {
            return Err(ManifestError::TooLarge {
                bytes_max: MANIFEST_BYTES_MAX,
            });
        }
        let manifest: Self = toml::from_slice(toml)?;
        manifest.check()?;
        Ok(manifest)
    }

    /// TOML of this manifest. What is signed are the bytes that this gave once, not the value.
    ///
    /// # Errors
    /// When the manifest is not one that [`parse`](Self::parse) takes.
    pub fn to_toml(&self) -> Result<String, ManifestError> {
        self.check()?;
        Ok(toml::to_string(self)?)
    }

    /// Signs this manifest with root keys.
    ///
    /// # Errors
    /// As [`to_toml`](Self::to_toml).
    pub fn sign(&self, keys: &[&SigningKey]) -> Result<String, ManifestError> {
        let envelope = dsse::sign(MANIFEST_TYPE, self.to_toml()?.as_bytes(), keys);
        Ok(String::from_utf8(envelope).expect("an envelope is JSON"))
    }

    fn check(&self) -> Result<(), ManifestError> {
        let bounds = |why: &str| Err(ManifestError::Bounds(why.to_owned()));
        let lists = [
            self.bootstrap.len(),
            self.registries.len(),
            self.builds.len(),
        ];
        let more = [
            self.principals.len(),
            self.blocked.len(),
            self.root.keys.len(),
        ];
        if lists
            .iter()
            .chain(&more)
            .any(|len| *len > MANIFEST_LIST_MAX)
        {
            return bounds("a list of more than 1024 entries");
        }
        if self.format != 1 {
            return bounds("a format other than 1: a newer qk is needed");
        }
        if self.network.is_none() != (self.version == 1) {
            return bounds("version 1 names no network, every later one does");
        }
        if self.name.is_empty() || self.name.len() > 64 || self.name.chars().any(char::is_control) {
            return bounds("a name of 1 to 64 bytes without control characters is needed");
        }
        if self.root.threshold == 0 || self.root.threshold as usize > self.root.keys.len() {
            return bounds("a root threshold between 1 and the number of root keys is needed");
        }
        if self.committee.size == 0 {
            return bounds("a committee needs members");
        }
        if self
            .blocked
            .iter()
            .any(|entry| entry.key.is_none() && entry.root.is_none())
        {
            return bounds("a blocked entry names a key or a root");
        }
        let mut texts = self
            .bootstrap
            .iter()
            .chain(&self.registries)
            .chain(self.blocked.iter().map(|entry| &entry.reason));
        if texts.any(|text| text.chars().any(char::is_control)) {
            return bounds("a bootstrap address, registry or reason with control characters");
        }
        self.policy.check().map_err(ManifestError::Bounds)?;
        self.builds.iter().try_for_each(Build::check)?;
        self.check_principals()
    }

    fn check_principals(&self) -> Result<(), ManifestError> {
        let mut keys = BTreeSet::new();
        let mut ids = BTreeSet::new();
        for principal in &self.principals {
            let name = &principal.name;
            if principal.id == NOBODY {
                return Err(ManifestError::Bounds(format!(
                    "principal {name:?} has the id that stands for nobody"
                )));
            }
            if !ids.insert(principal.id) {
                return Err(ManifestError::Bounds(format!(
                    "principal {} occurs twice",
                    principal.id
                )));
            }
            if name.is_empty() || name.len() > 64 || name.chars().any(char::is_control) {
                return Err(ManifestError::Bounds(format!(
                    "principal {} has no usable name",
                    principal.id
                )));
            }
            for key in &principal.keys {
                if !keys.insert(key.key) {
                    return Err(ManifestError::Bounds(format!(
                        "key {} occurs twice",
                        key.key
                    )));
                }
                if key.retired.is_some() != (key.state == KeyState::Retired) {
                    return Err(ManifestError::Bounds(format!(
                        "key {} of {name}: `retired` is given exactly when the state is retired",
                        key.key
                    )));
                }
            }
        }
        Ok(())
    }
}

impl NetworkFile {
    /// Reads a file of at most [`NETWORK_FILE_BYTES_MAX`] bytes. Verifies nothing.
    ///
    /// # Errors
    /// When it is too long or not JSON of this shape.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        if bytes.len() > NETWORK_FILE_BYTES_MAX {
            return Err(ManifestError::TooLarge {
                bytes_max: NETWORK_FILE_BYTES_MAX,
            });
        }
        Ok(serde_json::from_slice(bytes)?)
    }

    /// The file's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self).expect("strings can be written as JSON")
    }
}

impl Network {
    /// Makes version 1 of a new network and its first timestamp.
    ///
    /// # Errors
    /// When the manifest is not a usable version 1.
    pub fn create(
        manifest: &Manifest,
        root_keys: &[&SigningKey],
        timestamp_key: &SigningKey,
        now: UnixTime,
    ) -> Result<Self, ManifestError> {
        let envelope = manifest.sign(root_keys)?;
        let toml = manifest.to_toml()?;
        let id = network_id(toml.as_bytes());
        let digest = Blake3::of(toml.as_bytes());
        let timestamp = timestamp::sign(
            id,
            manifest,
            digest,
            now,
            TIMESTAMP_SECONDS_MAX,
            timestamp_key,
        );
        Self::verify(NetworkFile {
            manifests: vec![envelope],
            timestamp,
        })
    }

    /// Verifies a whole chain from version 1 and its timestamp. Whether the timestamp is still in
    /// force is [`fresh`](Self::fresh)'s to say, and whether this is the network that was meant, the
    /// caller's: compare [`id`](Self::id).
    ///
    /// # Errors
    /// For a gap, too few signatures, another network's version, a wrong timestamp.
    pub fn verify(file: NetworkFile) -> Result<Self, ManifestError> {
        if file.manifests.len() > MANIFEST_VERSIONS_MAX {
            return Err(ManifestError::Bounds("more than 1024 versions".to_owned()));
        }
        let mut newest: Option<(NetworkId, Manifest, Blake3)> = None;
        for envelope in &file.manifests {
            let signed = dsse::verify(
                envelope.as_bytes(),
                MANIFEST_TYPE,
                MANIFEST_ENVELOPE_BYTES_MAX,
            )?;
            let manifest = Manifest::parse(&signed.payload)?;
            let id = newest
                .as_ref()
                .map_or_else(|| network_id(&signed.payload), |(id, ..)| *id);
            let expected = newest
                .as_ref()
                .map_or(1, |(_, before, _)| before.version + 1);
            if manifest.version != expected {
                return Err(ManifestError::Gap {
                    got: manifest.version,
                    expected,
                });
            }
            if let Some(got) = manifest.network.filter(|got| *got != id) {
                return Err(ManifestError::OtherNetwork { got, expected: id });
            }
            let before = newest.as_ref().map(|(_, before, _)| before);
            for keys in before.into_iter().chain([&manifest]) {
                check_signers(&signed.signers, keys, manifest.version)?;
            }
            newest = Some((id, manifest, Blake3::of(&signed.payload)));
        }
        let Some((id, manifest, digest)) = newest else {
            return Err(ManifestError::Gap {
                got: 0,
                expected: 1,
            });
        };
        let timestamp = timestamp::read(&file.timestamp, id, &manifest, digest)?;
        let observers = observers(&manifest);
        Ok(Self {
            id,
            manifest,
            timestamp,
            file,
            observers,
        })
    }

    /// Takes what a peer or a file says is newer. The chain so far has to be its beginning, so that
    /// no second history is taken, and the timestamp may not go back while its key stays the same.
    ///
    /// # Errors
    /// When it is of another network, older, or does not verify.
    pub fn advance(&self, file: NetworkFile) -> Result<Self, ManifestError> {
        let newer = Self::verify(file)?;
        if newer.id != self.id {
            return Err(ManifestError::OtherNetwork {
                got: newer.id,
                expected: self.id,
            });
        }
        if newer.manifest.version < self.manifest.version || !newer.same_history(self) {
            return Err(ManifestError::Older {
                got: newer.manifest.version,
                have: self.manifest.version,
            });
        }
        // A stolen timestamp key could otherwise date one so far ahead that no later one is taken,
        // even after the root keys named another timestamp key.
        if newer.manifest.timestamp == self.manifest.timestamp
            && newer.timestamp.issued < self.timestamp.issued
        {
            return Err(ManifestError::Timestamp(
                "older than the one that is known already",
            ));
        }
        Ok(newer)
    }

    /// Signs the next version and a timestamp for it.
    ///
    /// # Errors
    /// When `next` is not version n+1 of this network, or the keys do not meet both thresholds.
    pub fn succeed(
        &self,
        next: &Manifest,
        root_keys: &[&SigningKey],
        timestamp_key: &SigningKey,
        now: UnixTime,
    ) -> Result<Self, ManifestError> {
        let envelope = next.sign(root_keys)?;
        self.grow(envelope, next, &next.to_toml()?, timestamp_key, now)
    }

    /// This chain with one more version, which `envelope` signs and whose bytes are `toml`.
    fn grow(
        &self,
        envelope: String,
        next: &Manifest,
        toml: &str,
        timestamp_key: &SigningKey,
        now: UnixTime,
    ) -> Result<Self, ManifestError> {
        let digest = Blake3::of(toml.as_bytes());
        let mut file = self.file.clone();
        file.manifests.push(envelope);
        file.timestamp = timestamp::sign(
            self.id,
            next,
            digest,
            now,
            TIMESTAMP_SECONDS_MAX,
            timestamp_key,
        );
        // What nobody could read any more is not to be signed.
        if file.to_bytes().len() > NETWORK_FILE_BYTES_MAX {
            return Err(ManifestError::TooLarge {
                bytes_max: NETWORK_FILE_BYTES_MAX,
            });
        }
        self.advance(file)
    }

    /// The same chain with a new timestamp.
    ///
    /// # Errors
    /// When `key` is not the timestamp key, or `now` is before the present timestamp.
    pub fn renew(&self, key: &SigningKey, now: UnixTime) -> Result<Self, ManifestError> {
        let mut file = self.file.clone();
        file.timestamp = Timestamp::sign(self, now, TIMESTAMP_SECONDS_MAX, key);
        self.advance(file)
    }

    /// What the network is called everywhere: `derive_key("qk network v1", version 1)`.
    pub fn id(&self) -> NetworkId {
        self.id
    }

    /// The newest version.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The newest timestamp.
    pub fn timestamp(&self) -> &Timestamp {
        &self.timestamp
    }

    /// The chain as it travels.
    pub fn file(&self) -> &NetworkFile {
        &self.file
    }

    /// Whether new trust may still be derived from this manifest: the timestamp has not ended and
    /// does not lie in the future by more than ten minutes.
    pub fn fresh(&self, now: UnixTime) -> bool {
        now <= self.timestamp.expires && self.timestamp.issued <= now.plus(CLOCK_SKEW_SECONDS_MAX)
    }

    /// When something is judged that cannot be renewed, such as a bundle: now, or the end of the
    /// timestamp once that is past, the last moment that the network vouched for.
    pub fn as_of(&self, now: UnixTime) -> UnixTime {
        now.min(self.timestamp.expires)
    }

    /// Whether the shorter of two chains is the beginning of the other one.
    pub fn same_history(&self, other: &Self) -> bool {
        self.id == other.id
            && (self.payloads().zip(other.payloads())).all(|(one, other)| one == other)
    }

    /// Seconds until the timestamp ends, if it is in force and this is to be warned of: a network
    /// whose timestamp is renewed daily never comes that near.
    pub fn ends_soon(&self, now: UnixTime) -> Option<u64> {
        let left = self.timestamp.expires.since(now);
        (self.fresh(now) && left <= TIMESTAMP_WARNING_SECONDS).then_some(left)
    }

    /// The version with this number, if the chain has it.
    pub fn version(&self, number: u64) -> Option<Manifest> {
        let index = usize::try_from(number.checked_sub(1)?).ok()?;
        let payload = self.payloads().nth(index)??;
        Manifest::parse(&payload).ok()
    }

    /// What was changed since an older version; nothing, if the chain does not have that.
    pub fn changes_since(&self, number: u64) -> Vec<Change> {
        let before = self.version(number);
        before.map_or_else(Vec::new, |before| changes::changes(&before, &self.manifest))
    }

    /// What locations are keyed with: `derive_key("qk network key v1", id ‖ secret or nothing)`.
    pub fn key(&self, secret: Option<&[u8]>) -> NetworkKey {
        let fields = Fields::derive("qk network key v1").id(self.id.as_bytes());
        NetworkKey(fields.text(secret.unwrap_or_default()).finish())
    }

    /// The principal behind an observer's key, and the state of that key.
    pub fn principal(&self, observer: PublicKey) -> Option<(&Principal, PrincipalKey)> {
        let (index, key) = self.observers.get(&observer)?;
        Some((&self.manifest.principals[*index], *key))
    }

    /// The principal with this id.
    pub fn principal_by_id(&self, id: PrincipalId) -> Option<&Principal> {
        self.manifest
            .principals
            .iter()
            .find(|principal| principal.id == id)
    }

    /// Why a key or root is blocked, if it is.
    pub fn blocked(&self, key: KeyId, root: Option<Root>) -> Option<&str> {
        let hit = |entry: &&Blocked| {
            entry.key == Some(key) || (entry.root.is_some() && entry.root == root)
        };
        self.manifest
            .blocked
            .iter()
            .find(hit)
            .map(|entry| entry.reason.as_str())
    }

    fn digest(&self) -> Blake3 {
        self.timestamp.digest
    }

    /// What was signed in each version; the envelopes around them may have gained signatures.
    fn payloads(&self) -> impl Iterator<Item = Option<Vec<u8>>> {
        self.file.manifests.iter().map(|envelope| {
            let verified = dsse::verify(
                envelope.as_bytes(),
                MANIFEST_TYPE,
                MANIFEST_ENVELOPE_BYTES_MAX,
            );
            verified.ok().map(|signed| signed.payload)
        })
    }
}

impl Principal {
    /// Whether it is a verifier of this target that has this version of rustc.
    pub fn verifies(&self, target: &str, rustc: &str) -> bool {
        let any_or = |of: &BTreeSet<String>, one| of.is_empty() || of.contains(one);
        self.roles.contains(&PrincipalRole::Verifier)
            && any_or(&self.targets, target)
            && any_or(&self.toolchains, rustc)
    }

    /// Whether what it observes counts at all: a mirror only keeps what others state.
    pub fn observes(&self) -> bool {
        self.roles.contains(&PrincipalRole::Verifier)
            || self.roles.contains(&PrincipalRole::Publisher)
    }
}

fn network_id(version_1: &[u8]) -> NetworkId {
    NetworkId(blake3::derive_key("qk network v1", version_1))
}

fn observers(manifest: &Manifest) -> BTreeMap<PublicKey, (usize, PrincipalKey)> {
    let principals = manifest.principals.iter().enumerate();
    principals
        .flat_map(|(index, principal)| {
            principal
                .keys
                .iter()
                .map(move |key| (key.key, (index, *key)))
        })
        .collect()
}

fn check_signers(
    signers: &BTreeSet<PublicKey>,
    keys_of: &Manifest,
    version: u64,
) -> Result<(), ManifestError> {
    let got = signers.intersection(&keys_of.root.keys).count();
    if got < keys_of.root.threshold as usize {
        return Err(ManifestError::TooFewSignatures {
            version,
            keys_of: keys_of.version,
            got,
            needed: keys_of.root.threshold,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
