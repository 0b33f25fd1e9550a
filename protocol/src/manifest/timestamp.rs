//! What says that a version of the manifest is the newest one for now.

use ed25519_dalek::SigningKey;
use serde::{Deserialize, Serialize};

use super::{Manifest, ManifestError, Network, TIMESTAMP_SECONDS_MAX};
use crate::canonical;
use crate::dsse;
use crate::hash::{Blake3, NetworkId};
use crate::time::UnixTime;

pub(super) const TIMESTAMP_TYPE: &str = "application/vnd.qk.timestamp+json";

/// Says that a version of the manifest is the newest one for now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timestamp {
    /// Which network.
    pub network: NetworkId,
    /// Which version.
    pub version: u64,
    /// BLAKE3 of that version's TOML.
    pub digest: Blake3,
    /// When it was signed.
    pub issued: UnixTime,
    /// When it ends, at most seven days later.
    pub expires: UnixTime,
}

impl Timestamp {
    /// Signs that `network`'s newest version is in force until `expires`, at most seven days.
    pub fn sign(network: &Network, issued: UnixTime, seconds: u64, key: &SigningKey) -> String {
        sign(
            network.id,
            &network.manifest,
            network.digest(),
            issued,
            seconds,
            key,
        )
    }
}

pub(super) fn sign(
    network: NetworkId,
    manifest: &Manifest,
    digest: Blake3,
    issued: UnixTime,
    seconds: u64,
    key: &SigningKey,
) -> String {
    let timestamp = Timestamp {
        network,
        version: manifest.version,
        digest,
        issued,
        expires: issued.plus(seconds.min(TIMESTAMP_SECONDS_MAX)),
    };
    let payload = canonical::to_bytes(&timestamp).expect("a timestamp is canonical");
    let envelope = dsse::sign(TIMESTAMP_TYPE, &payload, &[key]);
    String::from_utf8(envelope).expect("an envelope is JSON")
}

pub(super) fn read(
    envelope: &str,
    id: NetworkId,
    manifest: &Manifest,
    digest: Blake3,
) -> Result<Timestamp, ManifestError> {
    let signed = dsse::verify(envelope.as_bytes(), TIMESTAMP_TYPE, 16 * 1024)
        .map_err(ManifestError::TimestampEnvelope)?;
    if !signed.signers.contains(&manifest.timestamp) {
        return Err(ManifestError::Timestamp(
            "not signed by the manifest's timestamp key",
        ));
    }
    let timestamp: Timestamp = canonical::from_bytes(&signed.payload, 4096)?;
    if timestamp.network != id
        || timestamp.version != manifest.version
        || timestamp.digest != digest
    {
        return Err(ManifestError::Timestamp(
            "not of the newest version in the file",
        ));
    }
    if timestamp.expires.since(timestamp.issued) > TIMESTAMP_SECONDS_MAX
        || timestamp.expires < timestamp.issued
    {
        return Err(ManifestError::Timestamp("covers more than seven days"));
    }
    Ok(timestamp)
}
