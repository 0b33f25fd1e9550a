//! What an artifact was made of, as the `Cargo.lock` in it says: an inventory for people and their tools,
//! the licences of it, and what is known to be wrong with it. Nothing here decides whether an artifact is
//! trusted.

mod audit;
mod licences;
mod sbom;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};

use qk_protocol::archive::{ArchiveError, EntryKind, LICENSES_PREFIX, Limits, Reader};
use qk_protocol::hash::Root;
use qk_protocol::key::ArtifactKey;
use rustsec::cargo_lock::{Lockfile, Package};

pub use self::audit::{Advisories, AuditError, Finding, FindingKind};
pub use self::licences::{Licence, Licences};
pub use self::sbom::sbom;

/// Packages that one lock file may list.
const PACKAGES_MAX: usize = 20_000;

/// An artifact's packages and licence files.
#[derive(Debug, Clone)]
pub struct Inventory {
    /// What the archive is.
    pub root: Root,
    /// What was built.
    pub key: ArtifactKey,
    /// Every package of the lock file, the crate itself included: those of all targets and features.
    pub packages: Vec<Package>,
    /// The crate's licence files, by name.
    pub licence_files: BTreeMap<String, String>,
}

/// Why there is no inventory.
#[derive(Debug, thiserror::Error)]
pub enum InventoryError {
    /// The archive cannot be read.
    #[error("{}: {error}", path.display())]
    Io {
        /// Which one.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// It is no archive.
    #[error("{}: {error}", path.display())]
    Archive {
        /// Which one.
        path: PathBuf,
        /// Why.
        error: ArchiveError,
    },
    /// Its lock file is none.
    #[error("the Cargo.lock of {release} cannot be used: {why}")]
    Lock {
        /// The crate and its version.
        release: String,
        /// Why.
        why: String,
    },
}

impl Inventory {
    /// Reads an archive, as strictly as any other.
    ///
    /// # Errors
    /// See [`InventoryError`].
    pub fn read(archive: &Path) -> Result<Self, InventoryError> {
        let io = |error| InventoryError::Io {
            path: archive.to_owned(),
            error,
        };
        let bad = |error| InventoryError::Archive {
            path: archive.to_owned(),
            error,
        };
        let file = File::open(archive).map_err(io)?;
        let size = file.metadata().map_err(io)?.len();
        let mut reader = Reader::new(BufReader::new(file), size, Limits::default()).map_err(bad)?;
        let (mut lock, mut licence_files) = (Vec::new(), BTreeMap::new());
        while let Some(entry) = reader.next_entry().map_err(bad)? {
            match entry.kind {
                EntryKind::Lock => reader.copy(&mut lock).map_err(bad)?,
                EntryKind::License => {
                    let mut text = Vec::new();
                    reader.copy(&mut text).map_err(bad)?;
                    let name = entry.path.strip_prefix(LICENSES_PREFIX);
                    let name = name.unwrap_or(&entry.path).to_owned();
                    licence_files.insert(name, String::from_utf8_lossy(&text).into_owned());
                }
                EntryKind::Executable => {}
            }
        }
        let (contents, identity) = reader.finish().map_err(bad)?;
        let packages = packages(&lock).map_err(|why| InventoryError::Lock {
            release: contents.key.release().to_string(),
            why,
        })?;
        Ok(Self {
            root: identity.root,
            key: contents.key,
            packages,
            licence_files,
        })
    }

    /// Whether a package of the lock file is the crate itself.
    pub fn is_itself(&self, package: &Package) -> bool {
        package.source.is_none()
            && package.name.as_str() == self.key.name
            && package.version.to_string() == self.key.version
    }
}

fn packages(lock: &[u8]) -> Result<Vec<Package>, String> {
    let text = std::str::from_utf8(lock).map_err(|error| error.to_string())?;
    let lock: Lockfile = text
        .parse()
        .map_err(|error: rustsec::cargo_lock::Error| error.to_string())?;
    let mut packages = lock.packages;
    if packages.len() > PACKAGES_MAX {
        return Err(format!("more than {PACKAGES_MAX} packages"));
    }
    // A name ends up in paths and addresses; of crates these are all that may be in it.
    let usual = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let odd = packages.iter().find(|one| {
        let name = one.name.as_str();
        name.is_empty() || !name.chars().all(usual)
    });
    if let Some(odd) = odd {
        return Err(format!("{:?} is no name of a package", odd.name.as_str()));
    }
    packages.sort();
    packages.dedup();
    Ok(packages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_locks_are_refused_by_what_is_odd() {
        let said = |lock: &str| packages(lock.as_bytes()).unwrap_err();
        assert!(said("no toml").contains("TOML"), "{}", said("no toml"));
        let odd = "version = 4\n[[package]]\nname = \"../../etc\"\nversion = \"1.0.0\"\n";
        assert_eq!(said(odd), "\"../../etc\" is no name of a package");
        let version = "version = 4\n[[package]]\nname = \"a\"\nversion = \"newest\"\n";
        assert!(said(version).contains("version"), "{}", said(version));
        assert!(packages(&[0xff, 0xfe]).unwrap_err().contains("utf-8"));
        let twice = "version = 4\n[[package]]\nname = \"a\"\nversion = \"1.0.0\"\n".to_owned();
        let twice = twice.clone() + "[[package]]\nname = \"a\"\nversion = \"1.0.0\"\n";
        assert_eq!(packages(twice.as_bytes()).unwrap().len(), 1);
    }
}
