//! Where two artifacts differ, for people: by file, by section of an executable, and with what the bytes
//! themselves suggest as the cause. Nothing here decides anything.

mod cause;
mod library;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};

use object::{Object, ObjectSection};
use qk_protocol::archive::{ArchiveError, Limits, Reader};
use qk_protocol::hash::{Blake3, Root};
use qk_protocol::key::ArtifactKey;
use qk_protocol::statement::Environment;
use serde::Serialize;

pub use self::cause::Cause;
pub(crate) use self::cause::OTHER_HOST;
use self::cause::causes;
pub(crate) use self::library::causes_in_library;

/// Files that are larger are compared as a whole only.
const LOOKED_INTO_BYTES_MAX: u64 = 256 << 20;
/// Sections that are listed of one executable.
const SECTIONS_MAX: usize = 256;

/// Two archives beside each other.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Comparison {
    /// Their roots.
    pub roots: [Root; 2],
    /// Whether both are of one artifact key.
    pub same_key: bool,
    /// Files that differ, by path. None when the archives are the same.
    pub files: Vec<FileDifference>,
}

/// A file that is not the same in both.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct FileDifference {
    /// Its path in the archive.
    pub path: String,
    /// Its size in the first and in the second; none where it is missing.
    pub sizes: [Option<u64>; 2],
    /// Sections that differ, if it is an executable; all of one that one side alone has.
    pub sections: Vec<SectionDifference>,
    /// What the bytes suggest.
    pub causes: BTreeSet<Cause>,
}

/// A section of an executable that is not the same in both.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SectionDifference {
    /// Its name.
    pub name: String,
    /// Its size in the first and in the second.
    pub sizes: [Option<u64>; 2],
}

/// What a difference between two observations looks like. Decides nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(
    feature = "schema",
    derive(schemars::JsonSchema),
    schemars(rename = "DifferenceClass")
)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// The bytes show a cause in what was built: a time, an order, a path.
    Irreproducible,
    /// They do not, and the builds ran on different systems.
    Environment,
    /// Neither.
    Unexplained,
}

impl Class {
    /// The class of a difference; the environments are those of two observations, where they are known.
    pub fn of(comparison: &Comparison, environments: Option<[&Environment; 2]>) -> Self {
        if comparison.files.iter().any(|file| !file.causes.is_empty()) {
            return Self::Irreproducible;
        }
        // In anything that they name: system, kernel, tools, sandbox, processors.
        match environments.is_some_and(|[one, other]| one != other) {
            true => Self::Environment,
            false => Self::Unexplained,
        }
    }

    /// One word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Irreproducible => "irreproducible",
            Self::Environment => "environment",
            Self::Unexplained => "unexplained",
        }
    }
}

/// Why archives cannot be compared.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// One of them cannot be opened.
    #[error("{}: {error}", path.display())]
    Io {
        /// Which one.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// One of them is no archive.
    #[error("{}: {error}", path.display())]
    Archive {
        /// Which one.
        path: PathBuf,
        /// Why.
        error: ArchiveError,
    },
}

/// Compares two archives, which are read as strictly as others' are.
///
/// # Errors
/// When one cannot be read, or is no archive.
pub fn archives(one: &Path, other: &Path) -> Result<Comparison, CompareError> {
    let listed = [Listed::of(one)?, Listed::of(other)?];
    let paths: BTreeSet<&String> = listed.iter().flat_map(|one| one.files.keys()).collect();
    let differ = |path: &&String| listed[0].files.get(*path) != listed[1].files.get(*path);
    let wanted: BTreeSet<String> = paths.into_iter().filter(differ).cloned().collect();
    let contents = [read(one, &wanted)?, read(other, &wanted)?];
    let files = wanted.iter().map(|path| {
        let bytes = [0, 1].map(|side| contents[side].get(path).map(Vec::as_slice));
        FileDifference {
            path: path.clone(),
            sizes: [0, 1].map(|side| Some(listed[side].files.get(path)?.0)),
            sections: match bytes {
                [Some(one), Some(other)] => sections(one, other),
                _ => Vec::new(),
            },
            causes: match bytes {
                [Some(one), Some(other)] => causes(one, other),
                _ => BTreeSet::new(),
            },
        }
    });
    Ok(Comparison {
        roots: [0, 1].map(|side| listed[side].root),
        same_key: listed[0].key == listed[1].key,
        files: files.collect(),
    })
}

/// What is in an archive, without the bytes.
struct Listed {
    root: Root,
    key: ArtifactKey,
    files: BTreeMap<String, (u64, Blake3)>,
}

impl Listed {
    fn of(path: &Path) -> Result<Self, CompareError> {
        let mut files = BTreeMap::new();
        let mut reader = open(path)?;
        let failed = |error| CompareError::Archive {
            path: path.to_owned(),
            error,
        };
        while let Some(entry) = reader.next_entry().map_err(failed)? {
            let mut hasher = blake3::Hasher::new();
            reader.copy(&mut hasher).map_err(failed)?;
            let digest = Blake3(*hasher.finalize().as_bytes());
            files.insert(entry.path, (entry.size, digest));
        }
        let (contents, identity) = reader.finish().map_err(failed)?;
        Ok(Self {
            root: identity.root,
            key: contents.key,
            files,
        })
    }
}

/// The bytes of these files, but for what is too large to look into.
fn read(path: &Path, wanted: &BTreeSet<String>) -> Result<BTreeMap<String, Vec<u8>>, CompareError> {
    let mut contents = BTreeMap::new();
    if wanted.is_empty() {
        return Ok(contents);
    }
    let mut reader = open(path)?;
    let failed = |error| CompareError::Archive {
        path: path.to_owned(),
        error,
    };
    while let Some(entry) = reader.next_entry().map_err(failed)? {
        if wanted.contains(&entry.path) && entry.size <= LOOKED_INTO_BYTES_MAX {
            let mut bytes = Vec::new();
            reader.copy(&mut bytes).map_err(failed)?;
            contents.insert(entry.path, bytes);
        }
    }
    Ok(contents)
}

fn open(path: &Path) -> Result<Reader<BufReader<File>>, CompareError> {
    let io = |error| CompareError::Io {
        path: path.to_owned(),
        error,
    };
    let file = File::open(path).map_err(io)?;
    let size = file.metadata().map_err(io)?.len();
    Reader::new(BufReader::new(file), size, Limits::default()).map_err(|error| {
        CompareError::Archive {
            path: path.to_owned(),
            error,
        }
    })
}

/// Which sections of two executables differ; none if one of them is no executable.
fn sections(one: &[u8], other: &[u8]) -> Vec<SectionDifference> {
    let (Some(one), Some(other)) = (by_name(one), by_name(other)) else {
        return Vec::new();
    };
    let names: BTreeSet<&String> = one.keys().chain(other.keys()).collect();
    let differ = |name: &&String| one.get(*name) != other.get(*name);
    let differing = names.into_iter().filter(differ).take(SECTIONS_MAX);
    differing
        .map(|name| SectionDifference {
            name: name.clone(),
            sizes: [&one, &other].map(|side| Some(side.get(name)?.0)),
        })
        .collect()
}

/// Size and digest of each section; a name that comes again gets a number.
fn by_name(bytes: &[u8]) -> Option<BTreeMap<String, (u64, Blake3)>> {
    let file = object::File::parse(bytes).ok()?;
    let mut found = BTreeMap::new();
    for section in file.sections().take(SECTIONS_MAX) {
        let name = String::from_utf8_lossy(section.name_bytes().unwrap_or_default()).into_owned();
        let mut name: String = name.chars().filter(|c| !c.is_control()).take(80).collect();
        while found.contains_key(&name) {
            name.push('+');
        }
        let data = section.data().unwrap_or_default();
        found.insert(name, (section.size(), Blake3::of(data)));
    }
    Some(found)
}
