//! Writing an archive: one pass, hashed on the way.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};

use sha2::Digest;

use super::header::{self, Place, ZERO};
use super::{
    ArchiveError, CONTENTS_PATH, Contents, Identity, LICENSES_PREFIX, LOCK_PATH, Limits,
    check_count, check_size,
};
use crate::hash::{Blake3, Root, Sha256};

/// Writes the archive of `contents` to `out` and says which one it is.
///
/// `lock` is the `Cargo.lock` of the crate, `licenses` are file names (without directory) and
/// their texts. `open` is called once for each executable, in order, with its path (`bin/hexyl`);
/// what it returns is read once and must have the size and digest that `contents` says.
///
/// # Errors
/// For everything that [`Reader`](super::Reader) would refuse, and when reading or writing fails;
/// what was written until then is no archive.
pub fn write<W: Write, R: Read>(
    out: W,
    contents: &Contents,
    lock: &[u8],
    licenses: &BTreeMap<String, Vec<u8>>,
    mut open: impl FnMut(&str) -> std::io::Result<R>,
) -> Result<Identity, ArchiveError> {
    let limits = Limits::default();
    let description = contents.to_bytes(&limits)?;
    check_size(LOCK_PATH, lock.len() as u64, limits.lock_bytes_max)?;
    let (stated, got) = (contents.key.flags.lock, Sha256::of(lock));
    if stated != got {
        return Err(ArchiveError::LockDiffers { stated, got });
    }
    check_licenses(licenses, &limits)?;

    let mut out = Hashed::new(out);
    out.file(CONTENTS_PATH, &description)?;
    out.file(LOCK_PATH, lock)?;
    for (path, executable) in &contents.executables {
        let source = |error| ArchiveError::Source {
            path: path.clone(),
            error,
        };
        let read = open(path).map_err(source)?;
        out.executable(path, read, executable.size, executable.blake3)?;
    }
    for (name, text) in licenses {
        out.file(&format!("{LICENSES_PREFIX}{name}"), text)?;
    }
    out.put(&ZERO)?;
    out.put(&ZERO)?;
    out.finish(&limits)
}

fn check_licenses(
    licenses: &BTreeMap<String, Vec<u8>>,
    limits: &Limits,
) -> Result<(), ArchiveError> {
    check_count("licence files", licenses.len(), limits.licenses_max)?;
    let mut lowercase = BTreeSet::new();
    for (name, text) in licenses {
        let path = format!("{LICENSES_PREFIX}{name}");
        header::place(&path)?;
        check_size(&path, text.len() as u64, limits.license_bytes_max)?;
        if !lowercase.insert(path.to_ascii_lowercase()) {
            return Err(ArchiveError::Duplicate { path });
        }
    }
    Ok(())
}

/// Counts and hashes what passes through.
struct Hashed<W> {
    out: W,
    blake3: blake3::Hasher,
    sha256: sha2::Sha256,
    size: u64,
}

impl<W: Write> Hashed<W> {
    fn new(out: W) -> Self {
        Self {
            out,
            blake3: blake3::Hasher::new(),
            sha256: sha2::Sha256::new(),
            size: 0,
        }
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), ArchiveError> {
        self.out.write_all(bytes).map_err(ArchiveError::Write)?;
        self.blake3.update(bytes);
        self.sha256.update(bytes);
        self.size += bytes.len() as u64;
        Ok(())
    }

    fn head(&mut self, path: &str, size: u64) -> Result<(), ArchiveError> {
        let place: Place = header::place(path)?;
        self.put(&header::header(path, size, place))
    }

    fn pad(&mut self, size: u64) -> Result<(), ArchiveError> {
        self.put(&ZERO[..header::padding(size)])
    }

    fn file(&mut self, path: &str, bytes: &[u8]) -> Result<(), ArchiveError> {
        let size = bytes.len() as u64;
        self.head(path, size)?;
        self.put(bytes)?;
        self.pad(size)
    }

    fn executable(
        &mut self,
        path: &str,
        read: impl Read,
        size: u64,
        stated: Blake3,
    ) -> Result<(), ArchiveError> {
        self.head(path, size)?;
        // One byte more than stated shows that there is more.
        let mut read = read.take(size.saturating_add(1));
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; super::read::BUFFER_BYTES];
        let mut got = 0;
        loop {
            let n = match read.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    return Err(ArchiveError::Source {
                        path: path.to_owned(),
                        error,
                    });
                }
            };
            got += n as u64;
            hasher.update(&buffer[..n]);
            self.put(&buffer[..n])?;
        }
        check_executable(path, (size, stated), (got, &hasher))?;
        self.pad(size)
    }

    fn finish(mut self, limits: &Limits) -> Result<Identity, ArchiveError> {
        if self.size > limits.archive_bytes_max {
            return Err(ArchiveError::ArchiveTooLarge {
                bytes: self.size,
                bytes_max: limits.archive_bytes_max,
            });
        }
        self.out.flush().map_err(ArchiveError::Write)?;
        Ok(Identity {
            root: Root(*self.blake3.finalize().as_bytes()),
            sha256: Sha256(self.sha256.finalize().into()),
            size: self.size,
        })
    }
}

fn check_executable(
    path: &str,
    (stated_size, stated): (u64, Blake3),
    (size, hasher): (u64, &blake3::Hasher),
) -> Result<(), ArchiveError> {
    let path = path.to_owned();
    let got = Blake3(*hasher.finalize().as_bytes());
    if size != stated_size {
        return Err(ArchiveError::SizeDiffers {
            path,
            stated: stated_size,
            got: size,
        });
    }
    if got != stated {
        return Err(ArchiveError::DigestDiffers { path, stated, got });
    }
    Ok(())
}
