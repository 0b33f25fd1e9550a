//! The secret of a private network: 32 random bytes in a file of their own.
//!
//! Whoever has it can talk to the network's nodes. It is in no manifest, bundle, log or status;
//! not even its `Debug` says it.

use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use qk_protocol::hash::Blake3;
use qk_protocol::manifest::Manifest;

/// Bytes of a secret.
pub const SECRET_BYTES: usize = 32;
/// A file with one may be this long: hex and some white space.
const SECRET_FILE_BYTES_MAX: u64 = 256;

/// The secret of a private network.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; SECRET_BYTES]);

/// Why a secret is not taken.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file cannot be read or written.
    #[error("{path}: {error}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The file does not hold a secret.
    #[error("{path}: expected 64 hex digits, the secret of a private network")]
    Malformed {
        /// Which file.
        path: PathBuf,
    },
    /// The network is private, and nothing was given.
    #[error("network {network} is private: it is joined with its secret")]
    Missing {
        /// The network's name.
        network: String,
    },
    /// The secret of another network.
    #[error(
        "this is not the secret of network {network}: it has the id {got}, the manifest names {expected}"
    )]
    Wrong {
        /// The network's name.
        network: String,
        /// The id of what was given.
        got: String,
        /// What the manifest names.
        expected: String,
    },
    /// The network has none.
    #[error("network {network} is not private: it has no secret")]
    NotPrivate {
        /// The network's name.
        network: String,
    },
}

impl Secret {
    /// A new one.
    pub fn random() -> Self {
        Self(rand::random())
    }

    /// What a manifest names it by.
    pub fn id(&self) -> Blake3 {
        Blake3::of(&self.0)
    }

    /// The bytes, for deriving keys from.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Hex digits, for a file that only its owner reads.
    pub(crate) fn to_hex(&self) -> String {
        hex::encode(self.0)
    }

    /// The secret that these hex digits are.
    pub(crate) fn from_hex(text: &str) -> Option<Self> {
        let mut secret = [0; SECRET_BYTES];
        hex::decode_to_slice(text.trim(), &mut secret).ok()?;
        Some(Self(secret))
    }

    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read or does not hold a secret.
    pub fn read(path: &Path) -> Result<Self, SecretError> {
        let failed = |error| SecretError::Io {
            path: path.to_owned(),
            error,
        };
        let file = std::fs::File::open(path).map_err(failed)?;
        let mut bytes = Vec::new();
        file.take(SECRET_FILE_BYTES_MAX)
            .read_to_end(&mut bytes)
            .map_err(failed)?;
        let text = std::str::from_utf8(&bytes).unwrap_or_default();
        Self::from_hex(text).ok_or_else(|| SecretError::Malformed {
            path: path.to_owned(),
        })
    }

    /// Writes a new file that only its owner may read.
    ///
    /// # Errors
    /// When it cannot be written, or is there already.
    pub fn write_new(&self, path: &Path) -> Result<(), SecretError> {
        let failed = |error| SecretError::Io {
            path: path.to_owned(),
            error,
        };
        let mut options = OpenOptions::new();
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(failed)?;
        let text = format!("{}\n", self.to_hex());
        file.write_all(text.as_bytes())
            .and_then(|()| file.sync_all())
            .map_err(failed)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// The secret to join a network with, if what was given is what its manifest asks for.
///
/// # Errors
/// When it is missing, another network's, or not asked for.
pub fn fitting(manifest: &Manifest, given: Option<Secret>) -> Result<Option<Secret>, SecretError> {
    let network = manifest.name.clone();
    match (manifest.secret_id, given) {
        (None, None) => Ok(None),
        (None, Some(_)) => Err(SecretError::NotPrivate { network }),
        (Some(_), None) => Err(SecretError::Missing { network }),
        (Some(expected), Some(given)) if given.id() != expected => Err(SecretError::Wrong {
            network,
            got: given.id().short(),
            expected: expected.short(),
        }),
        (Some(_), Some(given)) => Ok(Some(given)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_is_its_owners_alone_and_is_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lab.secret");
        let secret = Secret::random();
        secret.write_new(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(Secret::read(&path).unwrap(), secret);
        assert!(Secret::random().write_new(&path).is_err());
        assert_eq!(Secret::read(&path).unwrap(), secret);
    }

    #[test]
    fn nothing_shows_it() {
        let secret = Secret::random();
        let shown = format!("{secret:?} {secret:#?}");
        assert!(!shown.contains(&secret.to_hex()), "{shown}");
        assert!(!shown.chars().any(|c| c.is_ascii_digit()), "{shown}");
    }

    #[test]
    fn what_is_no_secret_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lab.secret");
        for text in [&b""[..], b"0123", &[b'0'; 300], &[0xff; 64]] {
            std::fs::write(&path, text).unwrap();
            let error = Secret::read(&path).unwrap_err().to_string();
            assert!(
                error.contains("lab.secret: expected 64 hex digits"),
                "{error}"
            );
        }
    }
}
