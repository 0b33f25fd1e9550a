//! Takes the executables out of an archive that is trusted by its root.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use qk_protocol::archive::{self, ArchiveError, Contents, EntryKind, InspectError, Limits, Reader};
use qk_protocol::hash::Root;
use qk_protocol::key::ArtifactKey;
use qk_protocol::statement::Subject;

/// Executables of an archive, as files.
#[derive(Debug)]
pub struct Unpacked {
    /// What the archive says about itself.
    pub contents: Contents,
    /// Name of each executable to its file, in the directory that was given.
    pub bins: BTreeMap<String, PathBuf>,
}

/// Why an archive was not unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// Not a canonical archive.
    #[error("{root}: {error}")]
    Archive {
        /// The archive.
        root: Root,
        /// What is wrong with it.
        error: ArchiveError,
    },
    /// A canonical archive, but another one.
    #[error("{expected}: the file holds another archive, {got}")]
    OtherArchive {
        /// Root that was trusted.
        expected: Root,
        /// Root of the file.
        got: Root,
    },
    /// An archive of another key.
    #[error("{0}: the archive is of another artifact key than the one that is trusted")]
    OtherKey(Root),
    /// An executable is not what the archive says of it.
    #[error("{root}: {name}: {why}")]
    Executable {
        /// The archive.
        root: Root,
        /// The executable.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// A file cannot be read or written.
    #[error("{path}: {error}")]
    Io {
        /// Which one.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// Writes the executables of `archive` into the directory `into`, which is to be private and empty.
/// Everything is checked before this returns: form, digests, that it is the archive of `subject` and
/// `key`, and that the executables ask of a host what `qk.json` says.
///
/// # Errors
/// See [`UnpackError`]; files that were written by then are of no use.
pub fn unpack(
    archive: &Path,
    subject: &Subject,
    key: &ArtifactKey,
    into: &Path,
) -> Result<Unpacked, UnpackError> {
    let root = subject.root;
    let in_archive = |error| UnpackError::Archive { root, error };
    let file = File::open(archive).map_err(io_at(archive))?;
    let mut reader =
        Reader::new(BufReader::new(file), subject.size, Limits::default()).map_err(in_archive)?;
    if reader.contents().key != *key {
        return Err(UnpackError::OtherKey(root));
    }
    let mut bins = BTreeMap::new();
    while let Some(entry) = reader.next_entry().map_err(in_archive)? {
        let Some(name) = entry.path.strip_prefix(archive::EXECUTABLES_PREFIX) else {
            continue;
        };
        debug_assert!(matches!(entry.kind, EntryKind::Executable));
        let path = into.join(name);
        let mut out = BufWriter::new(File::create_new(&path).map_err(io_at(&path))?);
        reader.copy(&mut out).map_err(in_archive)?;
        out.flush().map_err(io_at(&path))?;
        bins.insert(name.to_owned(), path);
    }
    let (contents, identity) = reader.finish().map_err(in_archive)?;
    if (identity.root, identity.sha256) != (subject.root, subject.sha256) {
        return Err(UnpackError::OtherArchive {
            expected: root,
            got: identity.root,
        });
    }
    for (name, path) in &bins {
        check_executable(root, name, path, &contents)?;
    }
    Ok(Unpacked { contents, bins })
}

fn check_executable(
    root: Root,
    name: &str,
    path: &Path,
    contents: &Contents,
) -> Result<(), UnpackError> {
    let wrong = |why: String| UnpackError::Executable {
        root,
        name: name.to_owned(),
        why,
    };
    let file = File::open(path).map_err(io_at(path))?;
    let found = archive::inspect(BufReader::new(file))
        .map_err(|error: InspectError| wrong(error.to_string()))?;
    let stated = contents
        .executables
        .get(&format!("{}{name}", archive::EXECUTABLES_PREFIX));
    if stated != Some(&found) {
        return Err(wrong(
            "asks of a host something else than qk.json says".to_owned(),
        ));
    }
    Ok(())
}

fn io_at(path: &Path) -> impl FnOnce(io::Error) -> UnpackError {
    let path = path.to_owned();
    move |error| UnpackError::Io { path, error }
}
