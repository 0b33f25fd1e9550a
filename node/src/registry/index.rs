//! Lines of a registry's index, and cargo's cache of them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::Path;

use qk_protocol::hash::Sha256;
use semver::Version;
use serde::Deserialize;
use tame_index::index::JsonLines;
use tame_index::index::cache::{CacheWrite, HttpRevision, Revision, ValidCacheEntry};

use super::Ask;

/// All lines of one crate may be this long; the longest of crates.io has 4 MiB.
pub(super) const ENTRY_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// Newest version of the index's format that cargo reads; lines of later ones are passed over.
const INDEX_FORMAT_MAX: u32 = 2;

/// One version of a crate, as the index gives it. Dependencies are left out: cargo resolves them.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Line {
    pub(super) name: String,
    pub(super) vers: Version,
    pub(super) cksum: Sha256,
    #[serde(default)]
    features: BTreeMap<String, BTreeSet<String>>,
    #[serde(default)]
    features2: Option<BTreeMap<String, BTreeSet<String>>>,
    #[serde(default)]
    pub(super) yanked: bool,
    #[serde(default)]
    pub(super) rust_version: Option<String>,
    #[serde(default)]
    v: Option<u32>,
}

impl Line {
    /// Every feature with what it turns on.
    pub(super) fn all_features(&self) -> BTreeMap<String, BTreeSet<String>> {
        let mut all = self.features.clone();
        all.extend(self.features2.clone().into_iter().flatten());
        all
    }
}

/// The lines of one crate and the revision that the server gave them.
#[derive(Debug)]
pub(super) struct Entry {
    bytes: Vec<u8>,
    cached: bool,
}

/// Why an entry cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// Not an entry of an index at all.
    #[error("not lines of JSON: {0}")]
    Lines(tame_index::error::InvalidJsonLines),
    /// None of its lines is one that this version understands.
    #[error("none of its {lines} lines can be read: {first}")]
    NoLine {
        /// How many lines there are.
        lines: usize,
        /// What is wrong with the first one.
        first: String,
    },
}

impl Entry {
    /// Takes the body of an answer, or a file of a local registry.
    pub(super) fn from_lines(bytes: Vec<u8>) -> Result<Self, IndexError> {
        JsonLines::validate(&bytes).map_err(IndexError::Lines)?;
        Ok(Self {
            bytes,
            cached: false,
        })
    }

    /// Reads an entry from cargo's cache. Anything unusable counts as absent, as with cargo: the
    /// network knows better.
    pub(super) fn from_cache(file: &Path) -> Option<Self> {
        // No memory map and no lock: a file that is being rewritten is at worst one that does not
        // parse.
        let mut bytes = Vec::new();
        let open = std::fs::File::open(file).ok()?;
        open.take(ENTRY_BYTES_MAX + 1)
            .read_to_end(&mut bytes)
            .ok()?;
        if bytes.len() as u64 > ENTRY_BYTES_MAX {
            return None;
        }
        ValidCacheEntry::read(&bytes).ok()?;
        Some(Self {
            bytes,
            cached: true,
        })
    }

    /// The `etag` or `last-modified` header that this entry came with.
    pub(super) fn revision(&self) -> Option<HttpRevision<'_>> {
        match ValidCacheEntry::read(&self.bytes).ok()?.revision {
            Revision::Http(revision) => Some(revision),
            Revision::Git(_) | Revision::Unknown => None,
        }
    }

    /// All lines that can be read, in the order of their publication.
    pub(super) fn lines(&self) -> Result<Vec<Line>, IndexError> {
        let mut first = None;
        let mut count = 0;
        let mut lines = Vec::new();
        for json in self.json().map(|(_, json)| json) {
            count += 1;
            match parse(json) {
                Ok(line) => lines.push(line),
                Err(error) => first = first.or(Some(error)),
            }
        }
        match first {
            Some(first) if lines.is_empty() => Err(IndexError::NoLine {
                lines: count,
                first,
            }),
            _ => Ok(lines),
        }
    }

    /// The line of one version, without reading the others, where the cache tells them apart.
    pub(super) fn line(&self, version: &Version) -> Option<Line> {
        let wanted = version.to_string();
        let mut json = self.json();
        json.find(|(name, _)| *name == Some(wanted.as_bytes()))
            .and_then(|(_, json)| parse(json).ok())
            .filter(|line| line.vers == *version)
    }

    /// The newest line that is asked for and not yanked, without reading others than newer yanked
    /// ones; none where the versions cannot be told apart without reading.
    pub(super) fn newest(&self, ask: &Ask) -> Option<Line> {
        let version = |name: Option<&[u8]>| std::str::from_utf8(name?).ok()?.parse().ok();
        let mut lines: Vec<(Version, &[u8])> = self
            .json()
            .filter_map(|(name, json)| Some((version(name)?, json)))
            .filter(|(version, _)| ask.matches(version))
            .collect();
        lines.sort_by(|(one, _), (other, _)| other.cmp(one));
        let mut lines = lines
            .into_iter()
            .filter_map(|(version, json)| parse(json).ok().filter(|line| line.vers == version));
        lines.find(|line| !line.yanked)
    }

    /// Writes the entry into cargo's cache, in its format, by renaming a finished file.
    pub(super) fn store(&self, file: &Path, revision: &Revision<'_>) -> std::io::Result<()> {
        let Ok(lines) = JsonLines::validate(&self.bytes) else {
            return Ok(());
        };
        let dir = file.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(dir)?;
        let mut temp = tempfile::Builder::new().prefix(".qk-").tempfile_in(dir)?;
        CacheWrite::from(lines).write_cache_entry(&mut temp, revision)?;
        temp.persist(file)?;
        Ok(())
    }

    /// Version (where known without reading) and JSON of every line.
    fn json(&self) -> impl Iterator<Item = (Option<&[u8]>, &[u8])> {
        let (bytes, separator) = match ValidCacheEntry::read(&self.bytes) {
            Ok(entry) if self.cached => (entry.version_entries, 0),
            _ => (self.bytes.as_slice(), b'\n'),
        };
        let mut parts = bytes
            .split(move |byte| *byte == separator)
            .filter(|part| !part.is_empty());
        let cached = self.cached;
        std::iter::from_fn(move || {
            let version = if cached { Some(parts.next()?) } else { None };
            Some((version, parts.next()?))
        })
    }
}

fn parse(json: &[u8]) -> Result<Line, String> {
    let line: Line = serde_json::from_slice(json).map_err(|error| error.to_string())?;
    if line.v.unwrap_or(1) > INDEX_FORMAT_MAX {
        return Err("a format of the index that is not known here".to_owned());
    }
    Ok(line)
}
