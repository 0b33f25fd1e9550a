//! What was asked for, and what it came to: so that asking again needs neither registry nor store.
//!
//! An answer holds as long as nothing changed that went into it: the user's configuration, the joined networks
//! with their timestamps, the project's `qk.toml`, and what the store's journal knows. Otherwise it is decided
//! again. After a day it is, too, since policies may speak of age.

use std::fs;
use std::path::{Path, PathBuf};

use qk_protocol::candidate::Wanted;
use qk_protocol::hash::{Blake3, Root};
use qk_protocol::time::UnixTime;
use serde::{Deserialize, Serialize};

use super::{ASKS, Programs, ProgramsError, Stamp, at, read, write};
use crate::home::{Home, create_private_dir};

/// How long an answer holds.
const HOLDS_SECONDS: u64 = 24 * 3600;

/// What is asked for, as it was typed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Ask {
    /// The crate.
    pub name: String,
    /// Its version, where one was named.
    pub version: Option<String>,
    /// Features.
    pub features: Vec<String>,
    /// `--all-features`.
    pub all_features: bool,
    /// `--no-default-features`.
    pub no_default_features: bool,
    /// Targets.
    pub targets: Vec<String>,
}

/// What it came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    /// What was wanted, with the release that the registry named.
    pub wanted: Wanted,
    /// The artifact.
    pub root: Root,
    /// Whether it was built here and nobody else vouches for it.
    pub built: bool,
    basis: Basis,
}

/// What something was decided by, and when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Basis {
    at: UnixTime,
    files: Vec<(PathBuf, Option<Stamp>)>,
}

impl Basis {
    /// What is in this home and directory now. `None` where somebody else's networks decide: these are
    /// not to be seen from here.
    pub(super) fn new(home: &Home, at: UnixTime) -> Option<Self> {
        let files = inputs(home)?;
        Some(Self { at, files })
    }

    /// Whether nothing changed.
    pub(super) fn holds(&self, home: &Home, now: UnixTime) -> bool {
        now >= self.at
            && now.since(self.at) < HOLDS_SECONDS
            && inputs(home).as_ref() == Some(&self.files)
    }
}

impl Asked {
    /// An answer that holds from now on for what is in this home and directory. `None` where somebody
    /// else's networks decided: these are not to be seen from here.
    pub fn new(
        home: &Home,
        wanted: Wanted,
        root: Root,
        built: bool,
        now: UnixTime,
    ) -> Option<Self> {
        Some(Self {
            wanted,
            root,
            built,
            basis: Basis::new(home, now)?,
        })
    }

    /// Whether nothing changed that it was decided by.
    pub fn holds(&self, home: &Home, now: UnixTime) -> bool {
        self.basis.holds(home, now)
    }
}

impl Programs {
    /// What was answered to this, whether it still holds or not.
    pub fn asked(&self, ask: &Ask) -> Option<Asked> {
        read(&self.ask_path(ask))
    }

    /// Keeps an answer.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn keep_asked(&self, ask: &Ask, asked: &Asked) -> Result<(), ProgramsError> {
        let path = self.ask_path(ask);
        let dir = self.dir.join(ASKS);
        at(&dir, create_private_dir(&dir))?;
        at(&path, write(&path, asked))
    }

    fn ask_path(&self, ask: &Ask) -> PathBuf {
        // A project may have a policy of its own.
        let asked = (ask, std::path::absolute("qk.toml").ok());
        let text = serde_json::to_vec(&asked).unwrap_or_default();
        let name = format!("{}.json", Blake3::of(&text));
        self.dir.join(ASKS).join(name)
    }
}

/// All files that a decision rests on, as they are now.
fn inputs(home: &Home) -> Option<Vec<(PathBuf, Option<Stamp>)>> {
    let mut files = named(&home.dir().join("networks"));
    if files.is_empty() {
        return None;
    }
    files.extend(named(&home.store().join("journal")));
    files.push(home.dir().join("config.toml"));
    files.push(std::path::absolute("qk.toml").ok()?);
    let stamped = files.into_iter().map(|path| {
        let stamp = Stamp::maybe(&path);
        (path, stamp)
    });
    Some(stamped.collect())
}

fn named(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.retain(|path| {
        path.extension()
            .is_some_and(|end| end == "json" || end == "log")
    });
    paths.sort();
    paths
}
