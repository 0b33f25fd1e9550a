//! Puts what a build gave into a canonical archive.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use qk_protocol::archive::{
    self, ArchiveError, Contents, EXECUTABLES_PREFIX, InspectError, LICENSES_PREFIX, check_path,
};
use qk_protocol::key::ArtifactKey;
use qk_protocol::statement::Subject;

use crate::build::Collected;

/// Why there is no archive.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// An executable is none.
    #[error("{name}: {error}")]
    Executable {
        /// Its name.
        name: String,
        /// What is wrong with it.
        error: InspectError,
    },
    /// What was built cannot be put into an archive.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// A file cannot be read or written.
    #[error("{path}: {error}")]
    Io {
        /// Which one.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// Writes the archive of `key` to `path` and says what it is called. Licence texts whose names an
/// archive cannot hold are left out, which depends on nothing but the crate.
///
/// # Errors
/// See [`PackError`].
pub fn pack(collected: &Collected, key: &ArtifactKey, path: &Path) -> Result<Subject, PackError> {
    let mut contents = Contents {
        key: key.clone(),
        executables: Default::default(),
    };
    for (name, file) in &collected.bins {
        let read = BufReader::new(File::open(file).map_err(io_at(file))?);
        let executable = archive::inspect(read).map_err(|error| PackError::Executable {
            name: name.clone(),
            error,
        })?;
        contents
            .executables
            .insert(format!("{EXECUTABLES_PREFIX}{name}"), executable);
    }
    let mut licenses = collected.licenses.clone();
    licenses.retain(|name, _| check_path(&format!("{LICENSES_PREFIX}{name}")).is_ok());
    let mut out = BufWriter::new(File::create(path).map_err(io_at(path))?);
    let identity = archive::write(&mut out, &contents, &collected.lock, &licenses, |path| {
        let name = path.strip_prefix(EXECUTABLES_PREFIX).unwrap_or(path);
        let file = collected.bins.get(name).ok_or(io::ErrorKind::NotFound)?;
        File::open(file)
    })?;
    out.flush().map_err(io_at(path))?;
    Ok(Subject {
        root: identity.root,
        sha256: identity.sha256,
        size: identity.size,
    })
}

fn io_at(path: &Path) -> impl FnOnce(io::Error) -> PackError {
    let path = path.to_owned();
    move |error| PackError::Io { path, error }
}
