//! What the RustSec advisory database has against the packages of an artifact.
//!
//! The database is a checkout that somebody has: nothing is downloaded. Its files are read as any other
//! file that is not qk's own, and one that cannot be understood ends the audit: a hole in the database
//! would look like an artifact without one.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rustsec::Advisory;
use rustsec::advisory::Informational;
use serde::Serialize;

use super::Inventory;
use crate::registry::crates_io_id;

/// An advisory may be this long; the longest has some 20 KiB.
const ADVISORY_BYTES_MAX: u64 = 1 << 20;
/// Advisories of a database; there are a thousand.
const ADVISORIES_MAX: usize = 100_000;

/// The advisories of a database, by the package that they are about.
#[derive(Debug)]
pub struct Advisories {
    by_package: BTreeMap<String, Vec<Advisory>>,
    count: usize,
}

/// Why there are no advisories.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// No database lies there.
    #[error("no advisory database is at {}", .0.display())]
    None(PathBuf),
    /// It cannot be read.
    #[error("{}: {error}", path.display())]
    Io {
        /// Which file or directory.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A file of it is no advisory.
    #[error("{} is no advisory: {why}", path.display())]
    Bad {
        /// Which one.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// Something that is known about a package.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Finding {
    /// What sort it is.
    pub kind: FindingKind,
    /// The advisory, `RUSTSEC-2021-0079`.
    pub id: String,
    /// The package.
    pub package: String,
    /// Its version in the artifact.
    pub version: String,
    /// One line about it.
    pub title: String,
    /// How bad it is, where somebody said so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub severity: Option<String>,
    /// The same in other databases.
    pub aliases: Vec<String>,
    /// Versions in which it is mended.
    pub patched: Vec<String>,
    /// More about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
}

/// Sorts of findings, worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum FindingKind {
    /// A hole.
    Vulnerability,
    /// Can be used in ways that are no Rust.
    Unsound,
    /// Nobody looks after it.
    Unmaintained,
    /// Anything else worth knowing.
    Notice,
}

impl FindingKind {
    /// One word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vulnerability => "vulnerability",
            Self::Unsound => "unsound",
            Self::Unmaintained => "unmaintained",
            Self::Notice => "notice",
        }
    }
}

impl Advisories {
    /// Reads a checkout of the database: `crates/PACKAGE/RUSTSEC-*.md`.
    ///
    /// # Errors
    /// When there is none, or not all of it can be understood.
    pub fn read(database: &Path) -> Result<Self, AuditError> {
        let crates = database.join("crates");
        if !crates.is_dir() {
            return Err(AuditError::None(database.to_owned()));
        }
        let mut found = Self {
            by_package: BTreeMap::new(),
            count: 0,
        };
        for package in listed(&crates)? {
            // What is no directory is a file for people.
            if !is(&package, fs::FileType::is_dir)? {
                continue;
            }
            for path in listed(&package)? {
                if path.extension().is_some_and(|one| one == "md") && !Advisory::is_draft(&path) {
                    found.add(&path)?;
                }
            }
        }
        match found.count {
            0 => Err(AuditError::None(database.to_owned())),
            _ => Ok(found),
        }
    }

    fn add(&mut self, path: &Path) -> Result<(), AuditError> {
        let bad = |why: String| AuditError::Bad {
            path: path.to_owned(),
            why: why.chars().filter(|c| !c.is_control()).take(200).collect(),
        };
        if !is(path, fs::FileType::is_file)? {
            return Err(bad("not a file".to_owned()));
        }
        if self.count >= ADVISORIES_MAX {
            return Err(bad(format!("there are more than {ADVISORIES_MAX}")));
        }
        let mut text = String::new();
        let read = File::open(path).and_then(|file| {
            let mut file = file.take(ADVISORY_BYTES_MAX + 1);
            file.read_to_string(&mut text)
        });
        read.map_err(|error| bad(error.to_string()))?;
        if text.len() as u64 > ADVISORY_BYTES_MAX {
            return Err(bad(format!("more than {ADVISORY_BYTES_MAX} bytes")));
        }
        let advisory: Advisory = text
            .parse()
            .map_err(|error: rustsec::Error| bad(error.to_string()))?;
        self.count += 1;
        if !advisory.withdrawn() {
            let package = advisory.metadata.package.as_str().to_owned();
            self.by_package.entry(package).or_default().push(advisory);
        }
        Ok(())
    }

    /// How many there are, withdrawn ones included.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none; a database without one is no database.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// What is known about the packages of an artifact, worst first.
    pub fn about(&self, inventory: &Inventory) -> Vec<Finding> {
        let is_itself_public = inventory.key.registry == crates_io_id();
        let mut findings = Vec::new();
        for package in &inventory.packages {
            let is_public = match &package.source {
                Some(source) => source.is_default_registry(),
                // A package of another registry may have the same name.
                None => inventory.is_itself(package) && is_itself_public,
            };
            let advisories = self.by_package.get(package.name.as_str());
            for advisory in advisories.into_iter().flatten().filter(|_| is_public) {
                if advisory.versions.is_vulnerable(&package.version)
                    && concerns(advisory, &inventory.key.target)
                {
                    findings.push(finding(advisory, &package.version.to_string()));
                }
            }
        }
        findings.sort();
        findings
    }
}

/// Whether an advisory concerns a target: where it names systems or processors, these.
fn concerns(advisory: &Advisory, target: &str) -> bool {
    let Some(affected) = &advisory.affected else {
        return true;
    };
    let mut parts = target.split('-');
    let arch = match parts.next().unwrap_or_default() {
        "i586" | "i686" => "x86",
        arch => arch,
    };
    let os = [
        "linux", "windows", "android", "freebsd", "netbsd", "openbsd",
    ];
    let mut systems = target.split('-').filter_map(|part| match part {
        "darwin" => Some("macos"),
        part => os.into_iter().find(|one| part.starts_with(one)),
    });
    let named = |list: &[String], here: &str| {
        list.is_empty() || list.iter().any(|one| one.eq_ignore_ascii_case(here))
    };
    let by_os = match systems.next() {
        Some(os) => named(&affected.os, os),
        None => true,
    };
    by_os && named(&affected.arch, arch)
}

fn finding(advisory: &Advisory, version: &str) -> Finding {
    let about = &advisory.metadata;
    let kind = match &about.informational {
        None => FindingKind::Vulnerability,
        Some(Informational::Unsound) => FindingKind::Unsound,
        Some(Informational::Unmaintained) => FindingKind::Unmaintained,
        Some(_) => FindingKind::Notice,
    };
    // It comes from a file that anybody may have written.
    let plain = |text: &str| text.chars().filter(|c| !c.is_control()).take(200).collect();
    Finding {
        kind,
        id: plain(about.id.as_str()),
        package: about.package.as_str().to_owned(),
        version: version.to_owned(),
        title: plain(&about.title),
        severity: advisory.severity().map(|one| one.as_str().to_owned()),
        aliases: about
            .aliases
            .iter()
            .map(|one| plain(one.as_str()))
            .collect(),
        patched: advisory
            .versions
            .patched()
            .iter()
            .map(ToString::to_string)
            .collect(),
        url: about.url.as_ref().map(|url| plain(url.as_str())),
    }
}

/// What is in a directory, sorted.
fn listed(dir: &Path) -> Result<Vec<PathBuf>, AuditError> {
    let io = |error| AuditError::Io {
        path: dir.to_owned(),
        error,
    };
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).map_err(io)? {
        paths.push(entry.map_err(io)?.path());
    }
    paths.sort();
    Ok(paths)
}

/// What a path is itself; links lead nowhere.
fn is(path: &Path, kind: fn(&fs::FileType) -> bool) -> Result<bool, AuditError> {
    let about = fs::symlink_metadata(path).map_err(|error| AuditError::Io {
        path: path.to_owned(),
        error,
    })?;
    Ok(kind(&about.file_type()))
}
