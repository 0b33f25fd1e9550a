//! A project's tools: links below a directory of the project's to executables that lie here.
//!
//! What was linked is written down here and not in the project, where anybody may have written: so what is up
//! to date is not the project's word. As long as a link is there, what it leads to is not cleaned up.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use qk_protocol::hash::{Blake3, Root};
use qk_protocol::time::UnixTime;
use serde::{Deserialize, Serialize};

use super::ask::Basis;
use super::{Programs, ProgramsError, at, bin, read, write};
use crate::home::{Home, create_private_dir};

pub(super) const PROJECTS: &str = "projects";

/// The links of one directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Links {
    /// Where they lie.
    dir: PathBuf,
    /// The executable behind each: whose it is.
    links: BTreeMap<String, Root>,
    /// The lock that they were made by.
    lock: Blake3,
    basis: Basis,
}

impl Links {
    /// The links in `dir` to these executables, by a lock with this digest.
    ///
    /// `None` where no network is joined here.
    pub fn new(
        home: &Home,
        dir: &Path,
        links: BTreeMap<String, Root>,
        lock: Blake3,
        now: UnixTime,
    ) -> Option<Self> {
        Some(Self {
            dir: dir.to_owned(),
            links,
            lock,
            basis: Basis::new(home, now)?,
        })
    }

    /// The executables by name.
    pub fn names(&self) -> impl Iterator<Item = (&str, Root)> {
        self.links.iter().map(|(name, root)| (name.as_str(), *root))
    }
}

impl Programs {
    /// The links of a directory, if all are as they were made, by this lock, and nothing changed by
    /// which their artifacts were trusted.
    pub fn current(&self, home: &Home, dir: &Path, lock: Blake3, now: UnixTime) -> Option<Links> {
        let links: Links = read(&self.links_path(dir))?;
        let roots: BTreeSet<Root> = links.links.values().copied().collect();
        let is_current = links.lock == lock
            && links.dir == dir
            && links.basis.holds(home, now)
            && links
                .links
                .iter()
                .all(|(name, root)| self.is_linked(dir, name, *root))
            && roots.iter().all(|root| self.get(*root).is_some());
        is_current.then_some(links)
    }

    /// Links executables into a directory, and removes what was linked there before and is not any more.
    ///
    /// # Errors
    /// When a file of that name is there that was not linked from here, unless `force`; then nothing
    /// is changed. When the directory cannot be written.
    pub fn link(&self, links: &Links, force: bool) -> Result<(), ProgramsError> {
        let dir = &links.dir;
        at(dir, fs::create_dir_all(dir))?;
        for name in links.links.keys() {
            let path = dir.join(name);
            if !force && fs::symlink_metadata(&path).is_ok() && !self.is_ours(&path) {
                let why = "is there already, and was not linked by qk; --force overwrites it";
                let error = io::Error::new(io::ErrorKind::AlreadyExists, why);
                return at(&path, Err(error));
            }
        }
        let before = self.links_in(dir);
        for (name, root) in &links.links {
            if !self.is_linked(dir, name, *root) {
                // Replaced as a whole: it is run at any time.
                let new = dir.join(format!(".{name}.{}", std::process::id()));
                let made = symlink(bin(&self.dir.join(root.to_string()), name), &new);
                let made = made.and_then(|()| fs::rename(&new, dir.join(name)));
                at(&dir.join(name), made)?;
            }
        }
        for name in before.keys() {
            let path = dir.join(name);
            if !links.links.contains_key(name) && self.is_ours(&path) {
                at(&path, fs::remove_file(&path))?;
            }
        }
        let path = self.links_path(dir);
        let projects = self.dir.join(PROJECTS);
        at(&projects, create_private_dir(&projects))?;
        at(&path, write(&path, links))
    }

    /// What was linked in a directory, as it was written down.
    pub fn links_in(&self, dir: &Path) -> BTreeMap<String, Root> {
        let links: Option<Links> = read(&self.links_path(dir));
        links.map(|links| links.links).unwrap_or_default()
    }

    fn is_linked(&self, dir: &Path, name: &str, root: Root) -> bool {
        let to = fs::read_link(dir.join(name));
        to.is_ok_and(|to| to == bin(&self.dir.join(root.to_string()), name))
    }

    fn is_ours(&self, path: &Path) -> bool {
        fs::read_link(path).is_ok_and(|to| to.starts_with(&self.dir))
    }

    fn links_path(&self, dir: &Path) -> PathBuf {
        let name = Blake3::of(dir.as_os_str().as_encoded_bytes());
        self.dir.join(PROJECTS).join(format!("{name}.json"))
    }

    /// The artifacts that links lead to. Of directories without any of theirs nothing stays written.
    pub(super) fn linked(&self) -> BTreeSet<Root> {
        let mut roots = BTreeSet::new();
        let projects = fs::read_dir(self.dir.join(PROJECTS));
        for entry in projects.into_iter().flatten().flatten() {
            let Some(links) = read::<Links>(&entry.path()) else {
                continue;
            };
            let there = links.links.iter();
            let there = there.filter(|(name, root)| self.is_linked(&links.dir, name, **root));
            let there: Vec<Root> = there.map(|(_, root)| *root).collect();
            if there.is_empty() {
                let _ = fs::remove_file(entry.path());
            }
            roots.extend(there);
        }
        roots
    }
}
