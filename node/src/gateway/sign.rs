//! The key that a gateway signs what it packs with, as minisign does.

use std::io::Read;

use minisign::{KeyPair, PublicKey, SecretKey, SecretKeyBox};

use crate::home::{Home, HomeError};

/// Its file below `keys/`, which minisign reads, too.
const KEY: &str = "minisign";
/// Bytes of that file.
const KEY_BYTES_MAX: u64 = 1024;
const UNTRUSTED: &str = "signature of a qk gateway";

/// The signing key of a gateway. Its signatures say "this gateway served these bytes", for tools that ask
/// for nothing better; no node of qk believes them.
pub struct GatewayKey {
    secret: SecretKey,
    public: PublicKey,
}

impl std::fmt::Debug for GatewayKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("GatewayKey").field(&self.public()).finish()
    }
}

impl GatewayKey {
    /// The key of this home, made on first use.
    ///
    /// # Errors
    /// When the file cannot be read or written, or does not hold a key.
    pub fn of(home: &Home) -> Result<Self, HomeError> {
        let made = || {
            let pair = KeyPair::generate_unencrypted_keypair()?;
            Ok::<_, minisign::PError>(pair.sk.to_box(Some("key of a qk gateway"))?.into_string())
        };
        let text = home.secret_text(KEY, KEY_BYTES_MAX, || {
            made().map_err(|error| error.to_string())
        })?;
        Self::parse(&text).map_err(|why| home.malformed_key(KEY, why))
    }

    fn parse(text: &str) -> Result<Self, String> {
        let secret =
            SecretKeyBox::from_string(text).and_then(SecretKeyBox::into_unencrypted_secret_key);
        let secret =
            secret.map_err(|error| format!("no minisign key without a password: {error}"))?;
        let public = PublicKey::from_secret_key(&secret).map_err(|error| error.to_string())?;
        Ok(Self { secret, public })
    }

    /// The verifying half in one line, as minisign's `-P` and cargo-binstall's `pubkey` have it.
    pub fn public(&self) -> String {
        self.public.to_base64()
    }

    /// The verifying half as a file of minisign's.
    pub fn public_file(&self) -> String {
        format!(
            "untrusted comment: public key of a qk gateway\n{}\n",
            self.public()
        )
    }

    /// The signature of what is read, as a file of minisign's. `comment` is signed, too, and one line.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) fn sign(&self, read: impl Read, comment: &str) -> std::io::Result<String> {
        let made = minisign::sign(
            Some(&self.public),
            &self.secret,
            read,
            Some(comment),
            Some(UNTRUSTED),
        );
        made.map(|made| made.into_string())
            .map_err(std::io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use minisign::{SignatureBox, verify};

    use super::*;

    #[test]
    fn the_key_stays_and_its_signatures_verify() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::at(dir.path());
        let key = GatewayKey::of(&home).unwrap();
        assert_eq!(GatewayKey::of(&home).unwrap().public(), key.public());
        let path = dir.path().join("keys/minisign");
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);

        let text = key.sign(&b"bytes"[..], "file:a b").unwrap();
        let signature = SignatureBox::from_string(&text).unwrap();
        assert_eq!(signature.trusted_comment().unwrap(), "file:a b");
        let public = PublicKey::from_base64(&key.public()).unwrap();
        let is_by = |bytes: &[u8]| {
            let bytes = std::io::Cursor::new(bytes.to_vec());
            verify(&public, &signature, bytes, true, false, false).is_ok()
        };
        assert!(is_by(b"bytes") && !is_by(b"bytez"));
        // The comment is signed, too.
        let forged = SignatureBox::from_string(&text.replace("file:a b", "file:a c")).unwrap();
        let bytes = std::io::Cursor::new(b"bytes".to_vec());
        assert!(verify(&public, &forged, bytes, true, false, false).is_err());

        std::fs::write(&path, "nothing\n").unwrap();
        let error = GatewayKey::of(&home).unwrap_err().to_string();
        assert!(error.contains("keys/minisign"), "{error}");
    }
}
