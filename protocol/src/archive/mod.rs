//! Artifacts: one canonical archive, so that the same build gives the same bytes.
//!
//! An archive is a tar of plain ustar headers, of which exactly one spelling exists: `qk.json`
//! first, then `Cargo.lock`, `bin/*` and `licenses/*` sorted by the bytes of their paths; regular
//! files only; mtime, uid and gid 0, no user or group names; mode 0755 below `bin/`, else 0644;
//! two zero blocks at the end and nothing after them. The root of an artifact is the BLAKE3 of
//! this file.
//!
//! Paths have at most 100 bytes (ustar's name field; its prefix field stays empty) and one
//! directory. Names are ASCII letters, digits, `.`, `_`, `+` and `-`, begin with none of `.` and
//! `-`, and do not end with `.`, so that no two of them mean one file on any system.
//!
//! [`write()`] and [`Reader`] share the code that makes a header: what is written is read, and what
//! is read could have been written.

mod header;
mod inspect;
mod read;
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use serde::{Deserialize, Serialize};

use crate::canonical::{self, CanonicalError};
use crate::hash::{Blake3, Root, Sha256};
use crate::key::{self, ArtifactKey, KeyError};

pub use self::header::{PathFault, check_path};
pub use self::inspect::{InspectError, inspect};
pub use self::read::{Entry, EntryKind, Reader};
pub use self::write::write;

/// The first entry.
pub const CONTENTS_PATH: &str = "qk.json";
/// The second entry.
pub const LOCK_PATH: &str = "Cargo.lock";
/// What the paths of executables begin with.
pub const EXECUTABLES_PREFIX: &str = "bin/";
/// What the paths of licence files begin with.
pub const LICENSES_PREFIX: &str = "licenses/";

/// How large an archive and its parts may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the whole archive.
    pub archive_bytes_max: u64,
    /// Bytes of `qk.json`.
    pub contents_bytes_max: u64,
    /// Bytes of `Cargo.lock`.
    pub lock_bytes_max: u64,
    /// Bytes of one licence file.
    pub license_bytes_max: u64,
    /// Number of licence files.
    pub licenses_max: usize,
    /// Number of executables.
    pub executables_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            archive_bytes_max: 2 << 30,
            contents_bytes_max: 1 << 20,
            lock_bytes_max: 16 << 20,
            license_bytes_max: 1 << 20,
            licenses_max: 256,
            executables_max: 256,
        }
    }
}

/// What `qk.json` says: of which key this is the artifact, and what its executables are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contents {
    /// The key that was built.
    pub key: ArtifactKey,
    /// The executables by path, `bin/hexyl`.
    pub executables: BTreeMap<String, Executable>,
}

/// An executable and what it asks of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Executable {
    /// What kind of file it is.
    pub format: Format,
    /// Length in bytes.
    pub size: u64,
    /// BLAKE3 of the file.
    pub blake3: Blake3,
    /// Processor, in Rust's spelling of `target_arch` (`x86_64`, `aarch64`).
    pub machine: String,
    /// Lowest glibc that has all symbol versions asked for, `2.17`; absent where none is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub glibc: Option<String>,
    /// Libraries that the loader must find, `libc.so.6`.
    pub needed: BTreeSet<String>,
}

/// Formats of executables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Linux and most other Unix systems.
    Elf,
    /// macOS.
    MachO,
    /// Windows.
    Pe,
}

/// Which archive it is: what an observation has as its subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// BLAKE3 of the archive.
    pub root: Root,
    /// SHA-256 of the archive.
    pub sha256: Sha256,
    /// Length of the archive in bytes.
    pub size: u64,
}

/// Most libraries that one executable may need.
pub const NEEDED_MAX: usize = 256;
/// Longest name of a library.
pub const NEEDED_BYTES_MAX: usize = 255;

impl Contents {
    /// Reads `qk.json` from exactly its canonical bytes and checks it.
    ///
    /// # Errors
    /// For any other bytes, an unusable key, or executables out of bounds.
    pub fn parse(bytes: &[u8], limits: &Limits) -> Result<Self, ArchiveError> {
        let bytes_max = usize::try_from(limits.contents_bytes_max).unwrap_or(usize::MAX);
        let contents: Self =
            canonical::from_bytes(bytes, bytes_max).map_err(ArchiveError::Contents)?;
        contents.check(limits)?;
        Ok(contents)
    }

    /// The bytes of `qk.json`.
    ///
    /// # Errors
    /// For what [`parse`](Self::parse) would refuse.
    pub fn to_bytes(&self, limits: &Limits) -> Result<Vec<u8>, ArchiveError> {
        self.check(limits)?;
        let bytes = canonical::to_bytes(self).map_err(ArchiveError::Contents)?;
        check_size(CONTENTS_PATH, bytes.len() as u64, limits.contents_bytes_max)?;
        Ok(bytes)
    }

    fn check(&self, limits: &Limits) -> Result<(), ArchiveError> {
        self.key.check()?;
        if self.executables.is_empty() {
            return Err(ArchiveError::NoExecutables);
        }
        check_count(
            "executables",
            self.executables.len(),
            limits.executables_max,
        )?;
        let mut lowercase = BTreeSet::new();
        for (path, executable) in &self.executables {
            if header::place(path)? != header::Place::Executable {
                return Err(ArchiveError::NotExecutable { path: path.clone() });
            }
            if !lowercase.insert(path.to_ascii_lowercase()) {
                return Err(ArchiveError::Duplicate { path: path.clone() });
            }
            executable.check(path)?;
            check_size(path, executable.size, limits.archive_bytes_max)?;
        }
        Ok(())
    }
}

impl Executable {
    /// Checks that a `qk.json` may say this of the executable at `path`.
    ///
    /// # Errors
    /// Names the first member that is out of bounds.
    pub fn check(&self, path: &str) -> Result<(), ArchiveError> {
        let refuse = |member, value: &str| {
            Err(ArchiveError::Member {
                path: path.to_owned(),
                member,
                value: value.chars().take(80).collect(),
            })
        };
        let lower = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_');
        if self.machine.is_empty() || self.machine.len() > 32 || !self.machine.bytes().all(lower) {
            return refuse("machine", &self.machine);
        }
        if let Some(glibc) = &self.glibc
            && key::parse_glibc(glibc).is_none()
        {
            return refuse("glibc", glibc);
        }
        check_count(
            &format!("libraries of {path:?}"),
            self.needed.len(),
            NEEDED_MAX,
        )?;
        match self.needed.iter().find(|name| !is_library_name(name)) {
            Some(name) => refuse("needed", name),
            None => Ok(()),
        }
    }
}

/// Library names are shown to people and looked up on the host: no spaces, no control characters.
fn is_library_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= NEEDED_BYTES_MAX
        && name.bytes().all(|byte| byte.is_ascii_graphic())
}

fn check_size(path: &str, bytes: u64, bytes_max: u64) -> Result<(), ArchiveError> {
    if bytes > bytes_max {
        return Err(ArchiveError::TooLarge {
            path: path.to_owned(),
            bytes,
            bytes_max,
        });
    }
    Ok(())
}

fn check_count(what: &str, count: usize, count_max: usize) -> Result<(), ArchiveError> {
    if count > count_max {
        return Err(ArchiveError::TooMany {
            what: what.to_owned(),
            count_max,
        });
    }
    Ok(())
}

/// Why an archive was not written or is refused. Paths are shown escaped: they may be hostile.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The archive could not be read.
    #[error("cannot read the archive: {0}")]
    Read(#[source] io::Error),
    /// What is written to, an archive or an extracted file, failed.
    #[error("cannot write: {0}")]
    Write(#[source] io::Error),
    /// A file that was to become part of an archive could not be read.
    #[error("cannot read what is to become {path:?}: {error}")]
    Source {
        /// Path inside the archive.
        path: String,
        /// What went wrong.
        #[source]
        error: io::Error,
    },
    /// The whole archive is larger than the limit.
    #[error("an archive of {bytes} bytes is larger than the {bytes_max} allowed")]
    ArchiveTooLarge {
        /// Stated or reached size.
        bytes: u64,
        /// The limit.
        bytes_max: u64,
    },
    /// The bytes end before the archive does.
    #[error("the archive breaks off after {offset} bytes")]
    Truncated {
        /// How many bytes there were at least, up to the read that found none.
        offset: u64,
    },
    /// An entry reaches beyond the size that was stated for the archive.
    #[error("the archive goes on beyond its stated size of {stated} bytes")]
    BeyondStated {
        /// The size that was stated.
        stated: u64,
    },
    /// The archive ends before the size that was stated for it.
    #[error("the archive ends at byte {end}, but {stated} bytes were stated")]
    ShorterThanStated {
        /// The size that was stated.
        stated: u64,
        /// Where its end is.
        end: u64,
    },
    /// There are bytes after the stated size.
    #[error("bytes follow the end of the archive")]
    Trailing,
    /// The end is not two zero blocks.
    #[error("the archive does not end with two zero blocks")]
    EndMark,
    /// A path that archives do not have.
    #[error("path {path:?} {fault}")]
    Path {
        /// The path as far as it can be read.
        path: String,
        /// What is wrong with it.
        fault: PathFault,
    },
    /// A symbolic or hard link.
    #[error("{path:?} is a link; archives hold regular files only")]
    Link {
        /// Path of the entry.
        path: String,
    },
    /// A device or a fifo.
    #[error("{path:?} is a device; archives hold regular files only")]
    Device {
        /// Path of the entry.
        path: String,
    },
    /// A directory.
    #[error("{path:?} is a directory; archives hold regular files only")]
    Directory {
        /// Path of the entry.
        path: String,
    },
    /// An extension of tar, such as pax headers, GNU long names or sparse files.
    #[error("{path:?} has tar entry type {kind:?}; archives hold regular files only")]
    EntryType {
        /// Path of the entry.
        path: String,
        /// The type byte of its header.
        kind: char,
    },
    /// A mode other than the one that belongs to the path.
    #[error("{path:?} must have mode {mode:04o}")]
    Mode {
        /// Path of the entry.
        path: String,
        /// The mode that belongs to the path.
        mode: u32,
    },
    /// A header that spells something in another way than the canonical one.
    #[error("the header of {path:?} is not canonical: {field}")]
    Header {
        /// Path of the entry.
        path: String,
        /// The first field that differs.
        field: &'static str,
    },
    /// Bytes other than zeros between entries.
    #[error("the padding after {path:?} is not zero")]
    Padding {
        /// Path of the entry.
        path: String,
    },
    /// A path that was there before, or differs from such a one only by case.
    #[error("{path:?} occurs twice (case does not count)")]
    Duplicate {
        /// The later path.
        path: String,
    },
    /// An entry that should stand before its predecessor.
    #[error("{path:?} is out of order: it stands after {after:?}")]
    Order {
        /// Path of the entry.
        path: String,
        /// Path of the entry before it.
        after: String,
    },
    /// A part that is larger than the limit.
    #[error("{path:?} has {bytes} bytes; {bytes_max} are allowed")]
    TooLarge {
        /// Path of the entry.
        path: String,
        /// Its stated size.
        bytes: u64,
        /// The limit.
        bytes_max: u64,
    },
    /// More of something than the limit.
    #[error("more than {count_max} {what}")]
    TooMany {
        /// Of what there are too many.
        what: String,
        /// The limit.
        count_max: usize,
    },
    /// The first entry is another than `qk.json`, or there is none.
    #[error("the archive does not begin with qk.json")]
    NoContents,
    /// `qk.json` is not canonical JSON of the expected shape.
    #[error("qk.json: {0}")]
    Contents(#[source] CanonicalError),
    /// `qk.json` names an unusable key.
    #[error("qk.json: {0}")]
    Key(#[from] KeyError),
    /// `qk.json` lists no executable.
    #[error("qk.json lists no executable")]
    NoExecutables,
    /// `qk.json` lists something as an executable that is not below `bin/`.
    #[error("qk.json lists {path:?} as an executable; those are below bin/")]
    NotExecutable {
        /// The path listed.
        path: String,
    },
    /// `qk.json` says something of an executable that cannot be.
    #[error("qk.json: {member} of {path:?} cannot be {value:?}")]
    Member {
        /// Path of the executable.
        path: String,
        /// The member's name.
        member: &'static str,
        /// The beginning of its value.
        value: String,
    },
    /// An executable that `qk.json` does not list.
    #[error("{path:?} is not listed in qk.json")]
    Unlisted {
        /// Path of the entry.
        path: String,
    },
    /// An executable that `qk.json` lists, or `Cargo.lock`, is not there.
    #[error("{path:?} is missing")]
    Missing {
        /// Path that should be there.
        path: String,
    },
    /// The size of an executable is not the one in `qk.json`.
    #[error("{path:?} has {got} bytes; qk.json says {stated}")]
    SizeDiffers {
        /// Path of the executable.
        path: String,
        /// Size in `qk.json`.
        stated: u64,
        /// Size found.
        got: u64,
    },
    /// The digest of an executable is not the one in `qk.json`.
    #[error("{path:?} has BLAKE3 {got}; qk.json says {stated}")]
    DigestDiffers {
        /// Path of the executable.
        path: String,
        /// Digest in `qk.json`.
        stated: Blake3,
        /// Digest found.
        got: Blake3,
    },
    /// `Cargo.lock` is not the one that the key names.
    #[error("Cargo.lock has SHA-256 {got}; the key says {stated}")]
    LockDiffers {
        /// Digest in the key.
        stated: Sha256,
        /// Digest found.
        got: Sha256,
    },
    /// The reader was used again after it had refused the archive.
    #[error("the archive was refused before")]
    Refused,
}
