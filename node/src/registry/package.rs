//! `.crate` files: found or downloaded, checked, and looked into.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Component, Path, PathBuf};

use qk_protocol::hash::Sha256;
use qk_protocol::key::Release;
use sha2::Digest;

use super::http::{Client, HttpError};

/// A `.crate` file may be this long.
pub const CRATE_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// What a `.crate` file unpacks to may be this long; cargo's own limit.
const UNPACKED_BYTES_MAX: u64 = 512 * 1024 * 1024;
/// A `Cargo.lock` may be this long.
pub const LOCK_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// Most entries of a `.crate` file.
const ENTRIES_MAX: usize = 100_000;

/// Why there is no usable `.crate` file.
#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    /// A file of this machine.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What happened.
        error: std::io::Error,
    },
    /// The registry's server.
    #[error("downloading {release} from the registry: {error}")]
    Http {
        /// The release.
        release: String,
        /// What happened.
        error: HttpError,
    },
    /// What the registry sent is not what its index promised.
    #[error("{release}: the downloaded file has SHA-256 {got}, the registry's index says {want}")]
    Checksum {
        /// The release.
        release: String,
        /// The checksum of the index.
        want: Sha256,
        /// The checksum of the file.
        got: Sha256,
    },
    /// Only the network has it.
    #[error("{0} is not in cargo's cache, and the network is not to be used")]
    Offline(String),
    /// The file is not a package.
    #[error("{release}: its .crate file {why}")]
    Bad {
        /// The release.
        release: String,
        /// What is wrong with it.
        why: String,
    },
}

/// Takes a file as `dest/NAME-VERSION.crate` if its checksum is right. `Ok(None)` otherwise.
pub(super) fn take_file(
    file: &Path,
    dest: &Path,
    checksum: &Sha256,
) -> Result<Option<PathBuf>, PackageError> {
    let Some(name) = file.file_name() else {
        return Ok(None);
    };
    let Ok(mut source) = File::open(file) else {
        return Ok(None);
    };
    if !source.metadata().is_ok_and(|meta| meta.is_file()) {
        return Ok(None);
    }
    let target = dest.join(name);
    let mut download = Download::new(dest)?;
    if download.copy(&mut source).is_err() {
        return Ok(None);
    }
    if download.digest() != *checksum {
        return Ok(None);
    }
    download.keep(&target).map(|()| Some(target))
}

/// Downloads `url` to `target`, hashing on the way.
pub(super) fn download(
    client: &Client,
    url: &str,
    release: &Release,
    checksum: &Sha256,
    target: &Path,
) -> Result<(), PackageError> {
    let dest = target.parent().unwrap_or(Path::new("."));
    let mut local = None;
    let got = client.get(url, &[], &[], |response| {
        let mut download = match Download::new(dest) {
            Ok(download) => download,
            Err(error) => {
                local = Some(error);
                return Ok(None);
            }
        };
        match download.copy(&mut response.into_body().into_reader()) {
            Ok(()) => Ok(Some(download)),
            Err(CopyError::TooLong) => Err(HttpError::TooLong(CRATE_BYTES_MAX)),
            Err(CopyError::Read(error)) => Err(HttpError::Transport(error.to_string())),
            Err(CopyError::Write(error)) => {
                local = Some(io(dest)(error));
                Ok(None)
            }
        }
    });
    let download = match (got, local) {
        (_, Some(error)) => return Err(error),
        (Ok(Some(download)), None) => download,
        (Ok(None), None) => unreachable!("no download only with a local error"),
        (Err(error), None) => {
            let release = release.to_string();
            return Err(PackageError::Http { release, error });
        }
    };
    let got = download.digest();
    if got != *checksum {
        return Err(PackageError::Checksum {
            release: release.to_string(),
            want: *checksum,
            got,
        });
    }
    download.keep(target)
}

/// A `.crate` file on its way to its place.
struct Download {
    temp: tempfile::NamedTempFile,
    hasher: sha2::Sha256,
}

enum CopyError {
    TooLong,
    Read(std::io::Error),
    Write(std::io::Error),
}

impl Download {
    fn new(dest: &Path) -> Result<Self, PackageError> {
        std::fs::create_dir_all(dest).map_err(io(dest))?;
        let temp = tempfile::Builder::new()
            .prefix(".qk-")
            .tempfile_in(dest)
            .map_err(io(dest))?;
        Ok(Self {
            temp,
            hasher: sha2::Sha256::new(),
        })
    }

    fn copy(&mut self, from: &mut impl Read) -> Result<(), CopyError> {
        let mut left = CRATE_BYTES_MAX;
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let read = match from.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(read) => read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(CopyError::Read(error)),
            };
            left = left.checked_sub(read as u64).ok_or(CopyError::TooLong)?;
            self.hasher.update(&buffer[..read]);
            self.temp
                .write_all(&buffer[..read])
                .map_err(CopyError::Write)?;
        }
    }

    fn digest(&self) -> Sha256 {
        Sha256(self.hasher.clone().finalize().into())
    }

    fn keep(self, target: &Path) -> Result<(), PackageError> {
        self.temp
            .persist(target)
            .map(drop)
            .map_err(|error| io(target)(error.error))
    }
}

/// The `Cargo.lock` that a `.crate` file was published with: its SHA-256 and its bytes.
/// `None` where it has none.
///
/// # Errors
/// When the file is not a gzipped tar, is too large when unpacked, or has more than one entry or
/// something else than a regular file in that place.
pub fn lock_digest(
    crate_file: &Path,
    release: &Release,
) -> Result<Option<(Sha256, Vec<u8>)>, PackageError> {
    let file = File::open(crate_file).map_err(io(crate_file))?;
    let bad = |why: String| PackageError::Bad {
        release: release.to_string(),
        why,
    };
    lock_in(file.take(CRATE_BYTES_MAX), release, UNPACKED_BYTES_MAX).map_err(bad)
}

pub(super) fn lock_in(
    packed: impl Read,
    release: &Release,
    unpacked_bytes_max: u64,
) -> Result<Option<(Sha256, Vec<u8>)>, String> {
    let directory = format!("{}-{}", release.name, release.version);
    let lock = entry_in(packed, &directory, "Cargo.lock", unpacked_bytes_max)?;
    Ok(lock.map(|bytes| (Sha256::of(&bytes), bytes)))
}

/// The `Cargo.toml` of a `.crate` file, if that is the one with this checksum.
pub(crate) fn manifest_in(
    mut file: File,
    name: &str,
    version: &str,
    checksum: &Sha256,
) -> Result<Option<Vec<u8>>, String> {
    let about = file.metadata().map_err(|error| error.to_string())?;
    if !about.is_file() || about.len() > CRATE_BYTES_MAX {
        return Ok(None);
    }
    let mut packed = Vec::new();
    let read = (&mut file).take(CRATE_BYTES_MAX).read_to_end(&mut packed);
    read.map_err(|error| error.to_string())?;
    if Sha256::of(&packed) != *checksum {
        return Ok(None);
    }
    let directory = format!("{name}-{version}");
    entry_in(&packed[..], &directory, "Cargo.toml", UNPACKED_BYTES_MAX)
}

/// One file of a `.crate`, which has everything in one directory.
fn entry_in(
    packed: impl Read,
    directory: &str,
    name: &str,
    unpacked_bytes_max: u64,
) -> Result<Option<Vec<u8>>, String> {
    let wanted = Path::new(directory).join(name);
    // Cargo reads one gzip member and no more; so does this.
    let unpacked = flate2::read::GzDecoder::new(packed).take(unpacked_bytes_max + 1);
    let mut archive = tar::Archive::new(unpacked);
    let entries = archive
        .entries()
        .map_err(|error| format!("cannot be read: {error}"))?;
    let mut found = None;
    // The whole archive is read: where a name comes twice, unpacking takes the last one.
    for (number, entry) in entries.enumerate() {
        let mut entry = entry.map_err(|error| format!("cannot be read: {error}"))?;
        if number >= ENTRIES_MAX {
            return Err(format!("has more than {ENTRIES_MAX} entries"));
        }
        let path = entry
            .path()
            .map_err(|error| format!("has an unusable name in it: {error}"))?;
        if !same_place(&path, &wanted) {
            continue;
        }
        if !entry.header().entry_type().is_file() {
            return Err(format!("has something else than a file as {name}"));
        }
        if found.is_some() {
            return Err(format!("has two {name}"));
        }
        let mut bytes = Vec::new();
        (&mut entry)
            .take(LOCK_BYTES_MAX + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| format!("cannot be read: {error}"))?;
        if bytes.len() as u64 > LOCK_BYTES_MAX {
            return Err(format!("has a {name} of more than {LOCK_BYTES_MAX} bytes"));
        }
        found = Some(bytes);
    }
    if archive.into_inner().limit() == 0 {
        return Err(format!("unpacks to more than {unpacked_bytes_max} bytes"));
    }
    Ok(found)
}

/// Whether unpacking would write both names to the same place.
fn same_place(path: &Path, wanted: &Path) -> bool {
    let parts = |path: &Path| -> Vec<_> {
        path.components()
            .filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir))
            .map(|part| part.as_os_str().to_owned())
            .collect()
    };
    parts(path) == parts(wanted)
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> PackageError {
    let path = path.to_owned();
    move |error| PackageError::Io { path, error }
}
