//! What is installed in a root, whoever installed it, and how it goes away again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use qk_protocol::key::Release;
use serde::Serialize;

use super::journal::{self, Plan};
use super::tracking::Tracking;
use super::{
    InstallError, InstallMeta, InstallRoot, check_bin_name, io, package_key, package_name, parts_of,
};

/// A package that is installed, as cargo's files have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Cargo's source id of where it is from: `registry+https://…`, `path+file://…`.
    pub source: String,
    /// Its executables.
    pub bins: BTreeSet<String>,
    /// Those of them that are not there any more.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub missing: BTreeSet<String>,
    /// With what choices it was installed.
    #[serde(flatten)]
    pub meta: InstallMeta,
}

/// What is installed in a root, as it was at one moment.
#[derive(Debug)]
pub struct Listed {
    root: InstallRoot,
    tracking: Tracking,
    /// Whether an installation was begun there and not finished.
    is_pending: bool,
}

/// What is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Uninstalled {
    /// Name of the package.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The executables, absolute.
    pub executables: Vec<PathBuf>,
}

impl InstallRoot {
    /// Looks what is installed, without a lock.
    ///
    /// # Errors
    /// When cargo's files cannot be read.
    pub fn list(&self) -> Result<Listed, InstallError> {
        Ok(Listed {
            tracking: Tracking::glance(&self.0)?,
            is_pending: journal::is_pending(&self.0),
            root: self.clone(),
        })
    }

    /// Uninstalls a package, or only some of its executables if `bins` names any: all of them, or
    /// nothing.
    ///
    /// # Errors
    /// When it is not there, or not only once; see [`InstallError`]. Nothing is gone then.
    pub fn uninstall(
        &self,
        name: &str,
        version: Option<&str>,
        bins: &BTreeSet<String>,
    ) -> Result<Uninstalled, InstallError> {
        // Asked first without a lock, which would make files where nothing was ever installed.
        self.list()?.find(name, version)?;
        let locked = self.lock(true)?;
        let listed = Listed {
            root: self.clone(),
            tracking: locked.read()?,
            is_pending: false,
        };
        let (key, has) = listed.find(name, version)?;
        let gone = match bins.is_empty() {
            true => has.clone(),
            false => bins.clone(),
        };
        if let Some(bin) = gone.iter().find(|bin| !has.contains(*bin)) {
            return Err(InstallError::NoBin {
                package: name.to_owned(),
                bin: bin.clone(),
                has,
            });
        }
        gone.iter().try_for_each(|bin| check_bin_name(bin))?;
        let dir = self.bin();
        std::fs::create_dir_all(&dir).map_err(io(&dir))?;
        let mut tracking = listed.tracking;
        tracking.forget(&key, &gone);
        let plan = Plan {
            key: key.clone(),
            bins: BTreeSet::new(),
            orphans: BTreeMap::from([(key.clone(), gone.clone())]),
            meta: InstallMeta::default(),
            texts: tracking.texts()?,
        };
        self.carry_out(&plan, &locked, &BTreeMap::new())?;
        let version = parts_of(&key).map(|(_, version, _)| version.to_owned());
        Ok(Uninstalled {
            name: name.to_owned(),
            version: version.unwrap_or_default(),
            executables: gone.iter().map(|bin| dir.join(bin)).collect(),
        })
    }
}

impl Listed {
    /// Every package, sorted as cargo sorts them.
    pub fn packages(&self) -> Vec<Package> {
        let packages = self.tracking.packages().into_iter();
        packages
            .filter_map(|(key, bins)| self.package(&key, bins))
            .collect()
    }

    /// The executables of a release, if it is installed with the same choices, `bins` are among
    /// them, and they are there.
    pub fn current(
        &self,
        release: &Release,
        meta: &InstallMeta,
        bins: &BTreeSet<String>,
    ) -> Option<BTreeSet<String>> {
        let key = package_key(release);
        let has = self.tracking.packages().remove(&key)?;
        let there = has.iter().all(|bin| self.root.bin().join(bin).is_file());
        let same = bins.is_subset(&has) && self.tracking.is_current(&key, meta);
        (there && same && !self.is_pending).then_some(has)
    }

    fn package(&self, key: &str, bins: BTreeSet<String>) -> Option<Package> {
        let (name, version, source) = parts_of(key)?;
        let dir = self.root.bin();
        Some(Package {
            name: name.to_owned(),
            version: version.to_owned(),
            source: source.to_owned(),
            missing: bins
                .iter()
                .filter(|bin| dir.join(bin).symlink_metadata().is_err())
                .cloned()
                .collect(),
            bins,
            meta: self.tracking.meta(key),
        })
    }

    /// The one package of a name, and its executables.
    fn find(
        &self,
        name: &str,
        version: Option<&str>,
    ) -> Result<(String, BTreeSet<String>), InstallError> {
        let mut found = self.tracking.packages();
        found.retain(|key, _| {
            let other = parts_of(key).map(|(_, version, _)| version);
            package_name(key) == Some(name) && (version.is_none() || version == other)
        });
        let many = found.len() > 1;
        match found.pop_first() {
            Some(first) if !many => Ok(first),
            Some((first, _)) => Err(InstallError::Ambiguous {
                name: name.to_owned(),
                packages: found.into_keys().chain([first]).collect(),
            }),
            None => Err(InstallError::NotInstalled {
                name: match version {
                    Some(version) => format!("{name} {version}"),
                    None => name.to_owned(),
                },
                root: self.root.path().to_owned(),
            }),
        }
    }
}

/// Names in a message.
pub(super) fn enumerated(names: &BTreeSet<String>) -> String {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    names.join(", ")
}
