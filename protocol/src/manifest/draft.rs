//! The next version of a manifest while its signatures are gathered.
//!
//! Root keys lie on machines without network, so a version passes from hand to hand as a file: JSON
//! of the chain so far (`network`), the TOML that is to be signed (`next`) and, once somebody signed,
//! the envelope with the signatures so far (`signed`). Each holder verifies the chain and sees what
//! is to change before adding a signature. Two copies that were signed apart are put together again.
//! Whoever has the timestamp key completes it.

use std::collections::BTreeSet;

use ed25519_dalek::SigningKey;
use serde::{Deserialize, Serialize};

use super::{
    MANIFEST_ENVELOPE_BYTES_MAX, MANIFEST_TYPE, Manifest, ManifestError, NETWORK_FILE_BYTES_MAX,
    Network, NetworkFile,
};
use crate::dsse;
use crate::hash::PublicKey;
use crate::time::UnixTime;

/// A draft may be this long.
pub const DRAFT_BYTES_MAX: usize = NETWORK_FILE_BYTES_MAX + 3 * MANIFEST_ENVELOPE_BYTES_MAX;

/// A next version whose chain is verified, and whose signatures so far are by root keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    before: Network,
    next: Manifest,
    toml: String,
    signed: Option<String>,
    signers: BTreeSet<PublicKey>,
}

/// How many of a version's root keys have signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Quorum {
    /// The version whose root keys are counted.
    pub keys_of: u64,
    /// How many signed.
    pub have: usize,
    /// How many have to.
    pub need: u32,
    /// Those that have not.
    pub missing: BTreeSet<PublicKey>,
}

impl Quorum {
    /// Whether enough have signed.
    pub fn met(&self) -> bool {
        self.have >= self.need as usize
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DraftFile {
    network: NetworkFile,
    next: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    signed: Option<String>,
}

impl Draft {
    /// Begins a next version: `change` is made to the newest one.
    ///
    /// # Errors
    /// When what comes out is no manifest.
    pub fn begin(
        before: &Network,
        change: impl FnOnce(&mut Manifest),
    ) -> Result<Self, ManifestError> {
        let mut next = before.manifest().clone();
        next.network = Some(before.id());
        next.version += 1;
        change(&mut next);
        Self::of(before.clone(), next.to_toml()?, None)
    }

    /// Changes more of a version that nobody has signed yet.
    ///
    /// # Errors
    /// When somebody has, or when what comes out is no manifest.
    pub fn change(self, change: impl FnOnce(&mut Manifest)) -> Result<Self, ManifestError> {
        if !self.signers.is_empty() {
            return Err(ManifestError::Draft(
                "it is signed already, so it cannot be changed",
            ));
        }
        let mut next = self.next;
        change(&mut next);
        Self::of(self.before, next.to_toml()?, None)
    }

    /// Reads a draft of at most [`DRAFT_BYTES_MAX`] bytes and verifies its chain and signatures.
    ///
    /// # Errors
    /// Names what is wrong.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        if bytes.len() > DRAFT_BYTES_MAX {
            return Err(ManifestError::TooLarge {
                bytes_max: DRAFT_BYTES_MAX,
            });
        }
        let file: DraftFile = serde_json::from_slice(bytes)?;
        Self::of(Network::verify(file.network)?, file.next, file.signed)
    }

    /// The draft's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let file = DraftFile {
            network: self.before.file().clone(),
            next: self.toml.clone(),
            signed: self.signed.clone(),
        };
        serde_json::to_vec_pretty(&file).expect("strings can be written as JSON")
    }

    fn of(before: Network, toml: String, signed: Option<String>) -> Result<Self, ManifestError> {
        let next = Manifest::parse(toml.as_bytes())?;
        if next.network != Some(before.id()) {
            return Err(ManifestError::Draft(
                "it is of another network than its chain",
            ));
        }
        let expected = before.manifest().version + 1;
        if next.version != expected {
            return Err(ManifestError::Gap {
                got: next.version,
                expected,
            });
        }
        let mut draft = Self {
            before,
            next,
            toml,
            signed: None,
            signers: BTreeSet::new(),
        };
        if let Some(envelope) = signed {
            draft.take(envelope)?;
        }
        Ok(draft)
    }

    /// Takes an envelope with signatures of this version in place of the one so far.
    fn take(&mut self, envelope: String) -> Result<(), ManifestError> {
        let bytes = envelope.as_bytes();
        let signed = dsse::verify(bytes, MANIFEST_TYPE, MANIFEST_ENVELOPE_BYTES_MAX)?;
        if signed.payload != self.toml.as_bytes() {
            return Err(ManifestError::Draft("the signatures are of other bytes"));
        }
        if let Some(other) = signed.signers.iter().find(|key| !self.may_sign(**key)) {
            return Err(ManifestError::NoRootKey(*other));
        }
        self.signers = signed.signers;
        self.signed = Some(envelope);
        Ok(())
    }

    /// Adds the signatures of root keys.
    ///
    /// # Errors
    /// When one of them is a root key of neither version.
    pub fn sign(mut self, keys: &[&SigningKey]) -> Result<Self, ManifestError> {
        let added = dsse::sign(MANIFEST_TYPE, self.toml.as_bytes(), keys);
        self.add(added)?;
        Ok(self)
    }

    /// Adds the signatures that another copy has gathered.
    ///
    /// # Errors
    /// When it is of another version than this one.
    pub fn merge(mut self, other: Self) -> Result<Self, ManifestError> {
        if !self.before.same_history(&other.before) || self.toml != other.toml {
            return Err(ManifestError::Draft("the copies say different things"));
        }
        if let Some(signed) = other.signed {
            self.add(signed.into_bytes())?;
        }
        Ok(self)
    }

    fn add(&mut self, envelope: Vec<u8>) -> Result<(), ManifestError> {
        let all = match &self.signed {
            None => envelope,
            Some(signed) => dsse::merge(
                signed.as_bytes(),
                &envelope,
                MANIFEST_TYPE,
                MANIFEST_ENVELOPE_BYTES_MAX,
            )?,
        };
        self.take(String::from_utf8(all).expect("an envelope is JSON"))
    }

    /// Completes the version with a timestamp. Whoever knows the version before takes it from now on.
    ///
    /// # Errors
    /// When signatures are missing, `key` is not its timestamp key, or the chain gets too long.
    pub fn complete(self, key: &SigningKey, now: UnixTime) -> Result<Network, ManifestError> {
        match self.signed {
            Some(signed) => self.before.grow(signed, &self.next, &self.toml, key, now),
            None => {
                let root = &self.before.manifest().root;
                Err(ManifestError::TooFewSignatures {
                    version: self.next.version,
                    keys_of: self.next.version - 1,
                    got: 0,
                    needed: root.threshold,
                })
            }
        }
    }

    /// The network as it is before this version.
    pub fn before(&self) -> &Network {
        &self.before
    }

    /// The version that is to be signed.
    pub fn next(&self) -> &Manifest {
        &self.next
    }

    /// The bytes that are to be signed.
    pub fn toml(&self) -> &str {
        &self.toml
    }

    /// Who signed so far.
    pub fn signers(&self) -> &BTreeSet<PublicKey> {
        &self.signers
    }

    /// Whether a key is a root key of this version or of the one before.
    pub fn may_sign(&self, key: PublicKey) -> bool {
        self.roots()
            .into_iter()
            .any(|(_, root)| root.keys.contains(&key))
    }

    /// How far the signatures reach: of the version before, and of this one. Both have to be met.
    pub fn quorums(&self) -> [Quorum; 2] {
        self.roots().map(|(keys_of, root)| Quorum {
            keys_of,
            have: self.signers.intersection(&root.keys).count(),
            need: root.threshold,
            missing: root.keys.difference(&self.signers).copied().collect(),
        })
    }

    fn roots(&self) -> [(u64, &super::RootKeys); 2] {
        let before = self.before.manifest();
        [
            (before.version, &before.root),
            (self.next.version, &self.next.root),
        ]
    }
}

#[cfg(test)]
mod tests;
