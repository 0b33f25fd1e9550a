//! DSSE envelopes (the v1.0 protocol of secure-systems-lab), as canonical JSON and with ed25519.
//!
//! An envelope carries bytes, says what they are, and has signatures over both. Here an envelope is
//! read only in its one canonical form, every signature names its key in `keyid`, and ed25519 is
//! verified strictly, so that nobody but the signer can make a second valid envelope of a payload.

use std::collections::BTreeSet;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};

use crate::canonical::{self, CanonicalError};
use crate::hash::PublicKey;

/// Most signatures that one envelope may carry.
pub const SIGNATURES_MAX: usize = 32;

/// Why an envelope is not one, or not signed by whom it says.
#[derive(Debug, thiserror::Error)]
pub enum DsseError {
    /// Not the canonical JSON of an envelope.
    #[error("envelope: {0}")]
    Canonical(#[from] CanonicalError),
    /// Payload or signature is not base64.
    #[error("envelope: {0} is not base64")]
    Base64(&'static str),
    /// The payload is something else than was asked for.
    #[error("envelope: payload type {got:?}, expected {expected:?}")]
    PayloadType {
        /// Type in the envelope.
        got: String,
        /// Type asked for.
        expected: &'static str,
    },
    /// No signature, or more than the kind of envelope may have.
    #[error("envelope: {got} signatures, expected {expected}")]
    SignatureCount {
        /// How many there are.
        got: usize,
        /// What is expected, in words.
        expected: &'static str,
    },
    /// Two signatures by one key.
    #[error("envelope: two signatures by key {0}")]
    DuplicateSigner(PublicKey),
    /// Signatures in another order than that of their keys.
    #[error("envelope: the signature by key {0} is out of order")]
    Order(PublicKey),
    /// Two envelopes that are to be put together carry different things.
    #[error("envelope: the payloads differ")]
    Payloads,
    /// A signature does not verify with the key that it names.
    #[error("envelope: the signature by key {0} is wrong")]
    Signature(PublicKey),
}

/// A payload with its type and signatures that all verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// The bytes that were signed.
    pub payload: Vec<u8>,
    /// Who signed, each once.
    pub signers: BTreeSet<PublicKey>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Envelope {
    payload: String,
    payload_type: String,
    signatures: Vec<EnvelopeSignature>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct EnvelopeSignature {
    keyid: PublicKey,
    sig: String,
}

/// Signs `payload` with each of `keys`.
///
/// # Panics
/// Never: envelopes hold only strings.
pub fn sign(payload_type: &str, payload: &[u8], keys: &[&SigningKey]) -> Vec<u8> {
    let pae = pae(payload_type, payload);
    let signatures = keys.iter().map(|key| EnvelopeSignature {
        keyid: public_key(key),
        sig: STANDARD.encode(key.sign(&pae).to_bytes()),
    });
    let mut envelope = Envelope {
        payload: STANDARD.encode(payload),
        payload_type: payload_type.to_owned(),
        signatures: signatures.collect(),
    };
    envelope.signatures.sort_by_key(|signature| signature.keyid);
    canonical::to_bytes(&envelope).expect("an envelope holds only strings")
}

/// Adds the signatures of `keys` to an envelope; those of keys that signed already are made anew.
///
/// # Errors
/// When `envelope` does not verify as it is, or would not with the new signatures.
pub fn cosign(
    envelope: &[u8],
    payload_type: &'static str,
    bytes_max: usize,
    keys: &[&SigningKey],
) -> Result<Vec<u8>, DsseError> {
    let signed = verify(envelope, payload_type, bytes_max)?;
    let more = sign(payload_type, &signed.payload, keys);
    match keys {
        [] => Ok(envelope.to_vec()),
        _ => merge(envelope, &more, payload_type, bytes_max),
    }
}

/// One envelope with the signatures of both; where both have one by the same key, `other`'s.
///
/// # Errors
/// When one of them does not verify, or their payloads differ.
pub fn merge(
    one: &[u8],
    other: &[u8],
    payload_type: &'static str,
    bytes_max: usize,
) -> Result<Vec<u8>, DsseError> {
    let read = |bytes| -> Result<Envelope, DsseError> {
        verify(bytes, payload_type, bytes_max)?;
        Ok(canonical::from_bytes(bytes, bytes_max)?)
    };
    let (mut whole, mut more) = (read(one)?, read(other)?);
    if whole.payload != more.payload {
        return Err(DsseError::Payloads);
    }
    let again = |keyid| more.signatures.iter().any(|one| one.keyid == keyid);
    whole.signatures.retain(|one| !again(one.keyid));
    whole.signatures.append(&mut more.signatures);
    whole.signatures.sort_by_key(|signature| signature.keyid);
    let bytes = canonical::to_bytes(&whole)?;
    verify(&bytes, payload_type, bytes_max)?;
    Ok(bytes)
}

/// Reads an envelope of at most `bytes_max` bytes and verifies every signature in it.
///
/// # Errors
/// For any envelope that is not canonical, has another payload type, no signature or too many, two
/// by one key, or one that does not verify. Signatures stand in the order of their keys.
pub fn verify(
    envelope: &[u8],
    payload_type: &'static str,
    bytes_max: usize,
) -> Result<Signed, DsseError> {
    let envelope: Envelope = canonical::from_bytes(envelope, bytes_max)?;
    if envelope.payload_type != payload_type {
        return Err(DsseError::PayloadType {
            got: envelope.payload_type.chars().take(80).collect(),
            expected: payload_type,
        });
    }
    let count = envelope.signatures.len();
    if count == 0 || count > SIGNATURES_MAX {
        return Err(DsseError::SignatureCount {
            got: count,
            expected: "1 to 32",
        });
    }
    let payload = STANDARD
        .decode(&envelope.payload)
        .map_err(|_| DsseError::Base64("payload"))?;
    let pae = pae(payload_type, &payload);
    let mut signers = BTreeSet::new();
    for signature in &envelope.signatures {
        // Before the costly part. One order only, so that an envelope has one form.
        if signers.contains(&signature.keyid) {
            return Err(DsseError::DuplicateSigner(signature.keyid));
        }
        if signers.last().is_some_and(|last| *last > signature.keyid) {
            return Err(DsseError::Order(signature.keyid));
        }
        verify_one(signature, &pae)?;
        signers.insert(signature.keyid);
    }
    Ok(Signed { payload, signers })
}

/// The bytes that a signature covers: DSSE's pre-authentication encoding.
pub fn pae(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let mut bytes = format!(
        "DSSEv1 {} {payload_type} {} ",
        payload_type.len(),
        payload.len()
    )
    .into_bytes();
    bytes.extend_from_slice(payload);
    bytes
}

/// The verifying half of a signing key.
pub fn public_key(key: &SigningKey) -> PublicKey {
    PublicKey(key.verifying_key().to_bytes())
}

fn verify_one(signature: &EnvelopeSignature, pae: &[u8]) -> Result<(), DsseError> {
    let wrong = || DsseError::Signature(signature.keyid);
    let bytes = STANDARD
        .decode(&signature.sig)
        .map_err(|_| DsseError::Base64("signature"))?;
    let bytes: [u8; 64] = bytes.try_into().map_err(|_| wrong())?;
    let key = VerifyingKey::from_bytes(signature.keyid.as_bytes()).map_err(|_| wrong())?;
    key.verify_strict(pae, &Signature::from_bytes(&bytes))
        .map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TYPE: &str = "text/plain";

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_bytes(&[seed; 32])
    }

    #[test]
    fn pae_is_the_one_of_the_specification() {
        assert_eq!(
            pae("http://example.com/HelloWorld", b"hello world"),
            b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
        );
    }

    #[test]
    fn signed_by_several_and_added_later() {
        let one = sign(TYPE, b"payload", &[&key(1)]);
        let two = cosign(&one, TYPE, 10_000, &[&key(2), &key(1)]).unwrap();
        assert_eq!(two, sign(TYPE, b"payload", &[&key(2), &key(1)]));
        let other = sign(TYPE, b"payload", &[&key(2)]);
        assert_eq!(merge(&one, &other, TYPE, 10_000).unwrap(), two);
        let differs = merge(&one, &sign(TYPE, b"other", &[&key(2)]), TYPE, 10_000);
        assert!(matches!(differs, Err(DsseError::Payloads)));
        let signed = verify(&two, TYPE, 10_000).unwrap();
        assert_eq!(signed.payload, b"payload");
        assert_eq!(
            signed.signers,
            [public_key(&key(1)), public_key(&key(2))].into()
        );
    }

    #[test]
    fn a_changed_payload_type_or_key_is_refused() {
        let envelope = String::from_utf8(sign(TYPE, b"payload", &[&key(1)])).unwrap();
        let other_payload =
            envelope.replace(&STANDARD.encode(b"payload"), &STANDARD.encode(b"Payload"));
        assert!(matches!(
            verify(other_payload.as_bytes(), TYPE, 10_000),
            Err(DsseError::Signature(_))
        ));
        let other_key = envelope.replace(
            &public_key(&key(1)).to_string(),
            &public_key(&key(2)).to_string(),
        );
        assert!(matches!(
            verify(other_key.as_bytes(), TYPE, 10_000),
            Err(DsseError::Signature(_))
        ));
        assert!(matches!(
            verify(envelope.as_bytes(), "text/html", 10_000),
            Err(DsseError::PayloadType { .. })
        ));
        assert!(matches!(
            verify(envelope.as_bytes(), TYPE, 100),
            Err(DsseError::Canonical(_))
        ));
    }

    #[test]
    fn a_key_that_signs_everything_signs_nothing() {
        // The neutral element as key and as R, and S = 0: lax verification takes it for any message.
        let neutral: [u8; 32] = std::array::from_fn(|i| u8::from(i == 0));
        let forged: [u8; 64] = std::array::from_fn(|i| u8::from(i == 0));
        let lax = VerifyingKey::from_bytes(&neutral).unwrap();
        use ed25519_dalek::Verifier;
        assert!(
            lax.verify(&pae(TYPE, b"x"), &Signature::from_bytes(&forged))
                .is_ok()
        );
        let envelope = Envelope {
            payload: STANDARD.encode(b"x"),
            payload_type: TYPE.to_owned(),
            signatures: vec![EnvelopeSignature {
                keyid: PublicKey(neutral),
                sig: STANDARD.encode(forged),
            }],
        };
        let bytes = canonical::to_bytes(&envelope).unwrap();
        assert!(matches!(
            verify(&bytes, TYPE, 10_000),
            Err(DsseError::Signature(_))
        ));
    }

    #[test]
    fn signatures_have_one_order() {
        let bytes = sign(TYPE, b"x", &[&key(1), &key(2)]);
        let mut envelope: Envelope = canonical::from_bytes(&bytes, 10_000).unwrap();
        envelope.signatures.reverse();
        let other = canonical::to_bytes(&envelope).unwrap();
        assert!(matches!(
            verify(&other, TYPE, 10_000),
            Err(DsseError::Order(_))
        ));
    }

    #[test]
    fn one_signer_cannot_sign_twice() {
        let envelope: Envelope =
            canonical::from_bytes(&sign(TYPE, b"x", &[&key(1)]), 10_000).unwrap();
        let twice = Envelope {
            signatures: [envelope.signatures.clone(), envelope.signatures].concat(),
            payload: envelope.payload,
            payload_type: envelope.payload_type,
        };
        let bytes = canonical::to_bytes(&twice).unwrap();
        assert!(matches!(
            verify(&bytes, TYPE, 10_000),
            Err(DsseError::DuplicateSigner(_))
        ));
    }
}
