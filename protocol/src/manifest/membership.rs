//! Requests to become a principal of a network.
//!
//! Canonical JSON in a DSSE envelope, signed by every key that it names and by no other: whoever adds
//! its author to a manifest knows that the author has them. It says what the author asks for; what
//! the manifest says in the end is for those who sign that.

use std::collections::BTreeSet;

use ed25519_dalek::SigningKey;
use serde::{Deserialize, Serialize};

use super::{KeyState, ManifestError, Principal, PrincipalKey, PrincipalRole};
use crate::canonical;
use crate::dsse;
use crate::hash::{NetworkId, PrincipalId, PublicKey};
use crate::time::UnixTime;

/// A request may be this long.
pub const MEMBERSHIP_BYTES_MAX: usize = 16 * 1024;
/// Most targets, toolchains and keys, each.
pub const MEMBERSHIP_LIST_MAX: usize = 32;

const MEMBERSHIP_TYPE: &str = "application/vnd.qk.membership+json";

/// Who asks for what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Membership {
    /// Layout of this document; 1.
    pub format: u32,
    /// In which network.
    pub network: NetworkId,
    /// A name for people.
    pub name: String,
    /// What the author wants to do there.
    pub roles: BTreeSet<PrincipalRole>,
    /// Targets that the author can build; empty for all of the network's.
    pub targets: BTreeSet<String>,
    /// Versions of rustc that the author has; empty for all of the network's.
    pub toolchains: BTreeSet<String>,
    /// The author's keys.
    pub keys: BTreeSet<PublicKey>,
    /// When it was signed.
    pub issued: UnixTime,
}

impl Membership {
    /// Signs the request; `keys` of it become those that sign.
    ///
    /// # Errors
    /// When it is out of the bounds that a reader checks.
    pub fn sign(mut self, keys: &[&SigningKey]) -> Result<Vec<u8>, ManifestError> {
        self.keys = keys.iter().map(|key| dsse::public_key(key)).collect();
        let envelope = dsse::sign(MEMBERSHIP_TYPE, &canonical::to_bytes(&self)?, keys);
        Self::read(&envelope)?;
        Ok(envelope)
    }

    /// Reads an envelope of at most [`MEMBERSHIP_BYTES_MAX`] bytes and verifies that all keys signed.
    ///
    /// # Errors
    /// Names what is wrong.
    pub fn read(envelope: &[u8]) -> Result<Self, ManifestError> {
        let signed = dsse::verify(envelope, MEMBERSHIP_TYPE, MEMBERSHIP_BYTES_MAX)
            .map_err(ManifestError::RequestEnvelope)?;
        let request: Self = canonical::from_bytes(&signed.payload, MEMBERSHIP_BYTES_MAX)?;
        if request.format != 1 {
            return Err(ManifestError::Request(
                "a format other than 1: a newer qk is needed",
            ));
        }
        if request.keys != signed.signers {
            return Err(ManifestError::Request(
                "not signed by exactly the keys that it names",
            ));
        }
        request.check()?;
        Ok(request)
    }

    fn check(&self) -> Result<(), ManifestError> {
        let lists = [&self.targets, &self.toolchains];
        let lengths = lists.map(BTreeSet::len);
        if lengths
            .iter()
            .chain([&self.keys.len()])
            .any(|len| *len > MEMBERSHIP_LIST_MAX)
        {
            return Err(ManifestError::Request("a list of more than 32 entries"));
        }
        if self.roles.is_empty() {
            return Err(ManifestError::Request("it asks for no role"));
        }
        let unusable = |text: &String| {
            text.is_empty() || text.len() > 64 || text.chars().any(char::is_control)
        };
        if lists
            .into_iter()
            .flatten()
            .chain([&self.name])
            .any(unusable)
        {
            return Err(ManifestError::Request(
                "a name, target or toolchain that is empty, too long or has control characters",
            ));
        }
        Ok(())
    }

    /// The principal that it asks for.
    pub fn principal(&self, id: PrincipalId) -> Principal {
        let active = |key: &PublicKey| PrincipalKey {
            key: *key,
            state: KeyState::Active,
            retired: None,
        };
        Principal {
            id,
            name: self.name.clone(),
            roles: self.roles.clone(),
            targets: self.targets.clone(),
            toolchains: self.toolchains.clone(),
            keys: self.keys.iter().map(active).collect(),
        }
    }
}

#[cfg(test)]
mod tests;
