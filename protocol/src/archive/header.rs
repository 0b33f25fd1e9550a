//! The one header that each entry can have, and why another one is refused.

use std::fmt;

use super::{ArchiveError, CONTENTS_PATH, EXECUTABLES_PREFIX, LICENSES_PREFIX, LOCK_PATH};

/// Tar's unit: headers have this size, contents are padded to it.
pub(super) const BLOCK: usize = 512;
/// The name field of ustar.
const PATH_BYTES_MAX: usize = 100;

pub(super) type Block = [u8; BLOCK];
pub(super) const ZERO: Block = [0; BLOCK];

/// Fields of a ustar header (POSIX.1-1988): name, offset, length.
const FIELDS: [(&str, usize, usize); 17] = [
    ("name", 0, 100),
    ("mode", 100, 8),
    ("uid", 108, 8),
    ("gid", 116, 8),
    ("size", 124, 12),
    ("mtime", 136, 12),
    ("checksum", 148, 8),
    ("type", 156, 1),
    ("link name", 157, 100),
    ("magic", 257, 6),
    ("version", 263, 2),
    ("user name", 265, 32),
    ("group name", 297, 32),
    ("device major", 329, 8),
    ("device minor", 337, 8),
    ("prefix", 345, 155),
    ("padding", 500, 12),
];

/// Which part of an archive a path names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Contents,
    Lock,
    Executable,
    License,
}

impl Place {
    pub(super) fn mode(self) -> u32 {
        match self {
            Self::Executable => 0o755,
            Self::Contents | Self::Lock | Self::License => 0o644,
        }
    }
}

/// What is wrong with a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathFault {
    /// Nothing at all.
    Empty,
    /// Begins with a slash.
    Absolute,
    /// Has a component `..`.
    Parent,
    /// Has a NUL inside.
    Nul,
    /// Has a backslash, which separates components on Windows.
    Backslash,
    /// Longer than the name field of ustar.
    Long,
    /// Not one of the paths that archives have.
    Place,
    /// A file name with characters that are not allowed, or not there.
    Name,
}

impl fmt::Display for PathFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "is empty",
            Self::Absolute => "is absolute",
            Self::Parent => "leads out of the archive",
            Self::Nul => "has a NUL inside",
            Self::Backslash => "has a backslash",
            Self::Long => "is longer than 100 bytes",
            Self::Place => "is none of qk.json, Cargo.lock, bin/* and licenses/*",
            Self::Name => {
                "has a name other than letters, digits, . _ + - (not . or - first, not . last)"
            }
        })
    }
}

/// Checks that an archive can have an entry with this path.
///
/// # Errors
/// Names what is wrong with it.
pub fn check_path(path: &str) -> Result<(), ArchiveError> {
    place(path).map(|_| ())
}

pub(super) fn place(path: &str) -> Result<Place, ArchiveError> {
    place_or_fault(path.as_bytes()).map_err(|fault| refused(path.as_bytes(), fault))
}

fn refused(path: &[u8], fault: PathFault) -> ArchiveError {
    ArchiveError::Path {
        path: shown(path),
        fault,
    }
}

fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).chars().take(200).collect()
}

fn place_or_fault(path: &[u8]) -> Result<Place, PathFault> {
    let has = |byte| path.contains(&byte);
    if path.is_empty() {
        return Err(PathFault::Empty);
    } else if has(0) {
        return Err(PathFault::Nul);
    } else if path.starts_with(b"/") {
        return Err(PathFault::Absolute);
    } else if has(b'\\') {
        return Err(PathFault::Backslash);
    } else if path.split(|&byte| byte == b'/').any(|part| part == b"..") {
        return Err(PathFault::Parent);
    } else if path.len() > PATH_BYTES_MAX {
        return Err(PathFault::Long);
    }
    let (place, name) = if path == CONTENTS_PATH.as_bytes() {
        (Place::Contents, path)
    } else if path == LOCK_PATH.as_bytes() {
        (Place::Lock, path)
    } else if let Some(name) = path.strip_prefix(EXECUTABLES_PREFIX.as_bytes()) {
        (Place::Executable, name)
    } else if let Some(name) = path.strip_prefix(LICENSES_PREFIX.as_bytes()) {
        (Place::License, name)
    } else {
        return Err(PathFault::Place);
    };
    is_file_name(name).then_some(place).ok_or(PathFault::Name)
}

fn is_file_name(name: &[u8]) -> bool {
    let allowed =
        |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'+' | b'-');
    // A name of letters and digits with dots at its end means the same file on Windows.
    name.iter().all(allowed)
        && !matches!(name.first(), None | Some(b'.' | b'-'))
        && name.last() != Some(&b'.')
}

/// The header of a regular file. `path` has passed [`place`], `size` is below 8 GiB.
pub(super) fn header(path: &str, size: u64, place: Place) -> Block {
    let mut block = ZERO;
    let mut put = |offset: usize, bytes: &[u8]| {
        block[offset..offset + bytes.len()].copy_from_slice(bytes);
    };
    put(0, path.as_bytes());
    put(100, format!("{:07o}\0", place.mode()).as_bytes());
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{size:011o}\0").as_bytes());
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    put(329, b"0000000\0");
    put(337, b"0000000\0");
    // The checksum counts its own field as eight spaces.
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

/// Reads path, place and size from `block` if it is the very header that [`header`] makes of them.
pub(super) fn parse(block: &Block) -> Result<(String, Place, u64), ArchiveError> {
    let name = &block[..PATH_BYTES_MAX];
    let end = name
        .iter()
        .position(|&byte| byte == 0)
        .unwrap_or(PATH_BYTES_MAX);
    let raw = &name[..end];
    check_type(block[156], raw)?;
    if name[end..].iter().any(|&byte| byte != 0) {
        return Err(refused(raw, PathFault::Nul));
    }
    let place = place_or_fault(raw).map_err(|fault| refused(raw, fault))?;
    // Allowed names are ASCII.
    let path = shown(raw);
    let canonical = |size| header(&path, size, place);
    let not_canonical = |field| ArchiveError::Header {
        path: path.clone(),
        field,
    };
    let size = octal(&block[124..135]).ok_or_else(|| not_canonical("size"))?;
    let expected = canonical(size);
    let differs = FIELDS
        .iter()
        .filter(|(_, offset, length)| {
            let range = *offset..*offset + *length;
            block[range.clone()] != expected[range]
        })
        .map(|(field, ..)| *field)
        // Another mode makes another checksum: the field that was meant is named.
        .reduce(|first, next| if first == "checksum" { next } else { first });
    match differs {
        None => Ok((path, place, size)),
        Some("mode") => Err(ArchiveError::Mode {
            mode: place.mode(),
            path,
        }),
        Some(field) => Err(not_canonical(field)),
    }
}

fn check_type(kind: u8, raw: &[u8]) -> Result<(), ArchiveError> {
    let path = shown(raw);
    match kind {
        b'0' => Ok(()),
        b'1' | b'2' => Err(ArchiveError::Link { path }),
        b'3' | b'4' | b'6' => Err(ArchiveError::Device { path }),
        b'5' => Err(ArchiveError::Directory { path }),
        other => Err(ArchiveError::EntryType {
            path,
            kind: char::from(other),
        }),
    }
}

fn octal(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0, |value, digit| match digit {
        b'0'..=b'7' => Some(value * 8 + u64::from(digit - b'0')),
        _ => None,
    })
}

/// How many zero bytes follow contents of this size.
pub(super) fn padding(size: u64) -> usize {
    let block = BLOCK as u64;
    ((block - size % block) % block) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_cover_the_header_without_gaps() {
        let mut end = 0;
        for (name, offset, length) in FIELDS {
            assert_eq!(offset, end, "{name}");
            end += length;
        }
        assert_eq!(end, BLOCK);
    }

    #[test]
    fn a_header_is_read_back() {
        for (path, size) in [("qk.json", 0), ("bin/hexyl", 8_589_934_591)] {
            let place = place(path).unwrap();
            let block = header(path, size, place);
            assert_eq!(parse(&block).unwrap(), (path.to_owned(), place, size));
        }
    }

    #[test]
    fn each_fault_of_a_path_is_named() {
        let long = format!("bin/{}", "x".repeat(97));
        for (path, fault) in [
            ("", PathFault::Empty),
            ("/bin/x", PathFault::Absolute),
            ("bin/../../x", PathFault::Parent),
            ("bin/x\0y", PathFault::Nul),
            ("bin\\x", PathFault::Backslash),
            (&long, PathFault::Long),
            ("etc/x", PathFault::Place),
            ("cargo.lock", PathFault::Place),
            ("bin", PathFault::Place),
            ("bin/", PathFault::Name),
            ("bin/x/y", PathFault::Name),
            ("bin/.x", PathFault::Name),
            ("bin/-x", PathFault::Name),
            ("bin/x.", PathFault::Name),
            ("bin/x y", PathFault::Name),
            ("licenses/é", PathFault::Name),
        ] {
            assert_eq!(place_or_fault(path.as_bytes()), Err(fault), "{path}");
        }
        let longest = format!("bin/{}", "x".repeat(96));
        for path in ["qk.json", "Cargo.lock", "bin/g++.exe", &longest] {
            check_path(path).unwrap();
        }
    }
}
