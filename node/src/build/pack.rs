//! From what a build gave to the archive whose root is signed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufReader, BufWriter};
use std::path::{Path, PathBuf};

use qk_protocol::archive::{
    self, ArchiveError, Contents, EXECUTABLES_PREFIX, Identity, InspectError, LICENSES_PREFIX,
};
use qk_protocol::key::ArtifactKey;

use super::Collected;

/// Why what was built makes no archive.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// An executable that cannot be described.
    #[error("{path}: {error}")]
    Inspect {
        /// Its path in the archive.
        path: String,
        /// What is wrong with it.
        error: InspectError,
    },
    /// The archive's own rules.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The machine did not do what was asked.
    #[error("{}: {error}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// What came back.
        error: io::Error,
    },
}

/// An archive on disk.
#[derive(Debug)]
pub struct Packed {
    /// Of which key.
    pub key: ArtifactKey,
    /// Its root, SHA-256 and size.
    pub identity: Identity,
    /// What its `qk.json` says.
    pub contents: Contents,
}

impl Collected {
    /// Writes the archive of `key` to a new file at `to`. That is [`Self::key`], or for a crate without
    /// a lock of its own one that is never signed.
    ///
    /// # Errors
    /// When the build gave something that an archive cannot hold.
    pub fn pack(&self, key: ArtifactKey, to: &Path) -> Result<Packed, PackError> {
        let mut executables = BTreeMap::new();
        for (name, file) in &self.bins {
            let path = format!("{EXECUTABLES_PREFIX}{name}");
            let opened = BufReader::new(open(file)?);
            let described = archive::inspect(opened).map_err(|error| PackError::Inspect {
                path: path.clone(),
                error,
            })?;
            executables.insert(path, described);
        }
        let contents = Contents { key, executables };
        let io = |error| PackError::Io {
            path: to.to_path_buf(),
            error,
        };
        let file = BufWriter::new(File::create_new(to).map_err(io)?);
        let licenses = fitting(&self.licenses);
        let identity = archive::write(file, &contents, &self.lock, &licenses, |path| {
            let name = path.strip_prefix(EXECUTABLES_PREFIX).unwrap_or(path);
            let file = self.bins.get(name).ok_or(io::ErrorKind::NotFound)?;
            Ok(BufReader::new(File::open(file)?))
        })?;
        Ok(Packed {
            key: contents.key.clone(),
            identity,
            contents,
        })
    }
}

fn open(path: &Path) -> Result<File, PackError> {
    File::open(path).map_err(|error| PackError::Io {
        path: path.to_path_buf(),
        error,
    })
}

/// Leaves out what the archive has no place for: odd names, and the second of two that differ in
/// case only. Part of recipe 1, since it changes the bytes.
fn fitting(licenses: &BTreeMap<String, Vec<u8>>) -> BTreeMap<String, Vec<u8>> {
    let mut seen = BTreeSet::new();
    let fits = |name: &String| archive::check_path(&format!("{LICENSES_PREFIX}{name}")).is_ok();
    licenses
        .iter()
        .filter(|(name, _)| fits(name) && seen.insert(name.to_ascii_lowercase()))
        .map(|(name, text)| (name.clone(), text.clone()))
        .collect()
}
