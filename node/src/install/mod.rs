//! Places executables as `cargo install` does: in cargo's install root, written down so that
//! `cargo install --list` and `cargo uninstall` know of them.
//!
//! Everything here blocks; on the reactor it belongs into `spawn_blocking`.

mod binstall;
mod host;
mod journal;
mod listed;
mod tracking;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use qk_protocol::key::Release;
use serde::{Deserialize, Serialize};

pub use host::{Host, Incompatible, runs_here};
pub use listed::{Listed, Package, Uninstalled};

use crate::registry::CargoConfig;
use journal::Plan;
use tracking::{Locked, Tracking};

/// Longest name of an executable.
const BIN_NAME_BYTES_MAX: usize = 100;
/// Syncs at a time.
const SYNCS_MAX: usize = 16;
/// Most executables of one package.
const BINS_MAX: usize = 1024;

/// The directory that holds `bin` and cargo's list of what is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstallRoot(PathBuf);

/// The choices that an executable was built with, as cargo writes them down.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct InstallMeta {
    /// The version that was asked for, if one was: `14.1.1`, `^14`.
    pub version_req: Option<String>,
    /// Features as asked for.
    pub features: BTreeSet<String>,
    /// `--all-features`.
    pub all_features: bool,
    /// `--no-default-features`.
    pub no_default_features: bool,
    /// Profile of cargo.
    pub profile: String,
    /// Rust's target triple.
    pub target: String,
    /// What `rustc -vV` prints of the compiler.
    pub rustc: String,
    /// Whether only some of the executables were asked for.
    #[serde(default)]
    pub partial: bool,
}

/// How something is installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InstallOptions {
    /// Whether executables of other packages, or of none, are overwritten.
    pub force: bool,
    /// Whether it is written down for cargo. Nothing that is there is overwritten otherwise, unless
    /// with `force`.
    pub track: bool,
}

impl Default for InstallOptions {
    fn default() -> Self {
        Self {
            force: false,
            track: true,
        }
    }
}

/// What an installation did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    /// The executables, absolute.
    pub executables: Vec<PathBuf>,
    /// Those of them that were there before.
    pub replaced: BTreeSet<String>,
    /// Executables of an older version that are gone.
    pub removed: BTreeSet<String>,
}

/// Why nothing was installed. Files that were there before are as they were.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// A file or directory.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What happened.
        error: std::io::Error,
    },
    /// A name that no executable may have.
    #[error("{0:?} is not a name for an executable")]
    Name(String),
    /// Too few or too many executables.
    #[error("{0} has {1} executables to install")]
    Count(String, usize),
    /// An executable that a package does not have.
    #[error(
        "{package} has no executable {bin}; it has {}",
        listed::enumerated(has)
    )]
    NoBin {
        /// The package.
        package: String,
        /// The name that was asked for.
        bin: String,
        /// Those that it has.
        has: BTreeSet<String>,
    },
    /// A package that is not there.
    #[error("{name} is not installed in {}", root.display())]
    NotInstalled {
        /// What was asked for.
        name: String,
        /// Where.
        root: PathBuf,
    },
    /// Several packages of one name.
    #[error("{name} is installed more than once: {}", listed::enumerated(packages))]
    Ambiguous {
        /// The name.
        name: String,
        /// All of them, as cargo names them.
        packages: BTreeSet<String>,
    },
    /// An executable that something else owns.
    #[error("{bin} already exists in {}{}; --force overwrites it", dir.display(), by(owner))]
    Taken {
        /// Name of the executable.
        bin: String,
        /// Where it is.
        dir: PathBuf,
        /// The package it belongs to, as cargo names it; `None` where cargo knows of none.
        owner: Option<String>,
    },
    /// Cargo's list of what is installed.
    #[error("{}: {why}", path.display())]
    Tracking {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Somebody else installs into the same root for too long.
    #[error("{} stays locked by another cargo or qk", .0.display())]
    Busy(PathBuf),
}

impl InstallRoot {
    /// Where cargo would install: `--root`, `CARGO_INSTALL_ROOT`, `install.root` of cargo's
    /// configuration, `$CARGO_HOME`.
    ///
    /// # Errors
    /// When the path cannot be made absolute.
    pub fn discover(explicit: Option<&Path>, config: &CargoConfig) -> Result<Self, InstallError> {
        let root = explicit
            .map(Path::to_owned)
            .or_else(|| config.install_root())
            .unwrap_or_else(|| config.home().to_owned());
        let root = std::path::absolute(&root).map_err(io(&root))?;
        Ok(Self(root))
    }

    /// The root itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The directory of the executables.
    pub fn bin(&self) -> PathBuf {
        self.0.join("bin")
    }

    /// Whether a shell with this `PATH` finds what is installed here.
    pub fn is_on_path(&self, path: &std::ffi::OsStr) -> bool {
        let bin = self.bin();
        std::env::split_paths(path).any(|dir| dir == bin)
    }

    /// Installs the executables of a release: all of them, or none.
    ///
    /// `bins` is name to file, on any file system; the files stay. An executable that belongs to
    /// another package, or to none, is overwritten only with `force`.
    ///
    /// # Errors
    /// See [`InstallError`]; what was there before is there again.
    pub fn install(
        &self,
        release: &Release,
        bins: &BTreeMap<String, PathBuf>,
        meta: &InstallMeta,
        options: InstallOptions,
    ) -> Result<Installed, InstallError> {
        if bins.is_empty() || bins.len() > BINS_MAX {
            return Err(InstallError::Count(release.to_string(), bins.len()));
        }
        bins.keys().try_for_each(|bin| check_bin_name(bin))?;
        let dir = self.bin();
        std::fs::create_dir_all(&dir).map_err(io(&dir))?;
        let locked = self.lock(options.track)?;
        let mut tracking = locked.read()?;
        let names: BTreeSet<String> = bins.keys().cloned().collect();
        let replaced = self.check_owners(&tracking, release, &names, options.force)?;
        let orphans = orphans(&tracking, release, &names);
        for (key, orphans) in &orphans {
            tracking.forget(key, orphans);
        }
        let key = package_key(release);
        tracking.record(&key, &names, meta);
        let removed: BTreeSet<String> = orphans.values().flatten().cloned().collect();
        let plan = Plan {
            key,
            bins: names.clone(),
            orphans,
            meta: meta.clone(),
            texts: if options.track {
                tracking.texts()?
            } else {
                Vec::new()
            },
        };
        self.carry_out(&plan, &locked, bins)?;
        Ok(Installed {
            executables: names.iter().map(|name| dir.join(name)).collect(),
            replaced,
            removed,
        })
    }

    /// Locks the root and finishes what was begun there.
    fn lock(&self, track: bool) -> Result<Locked, InstallError> {
        if !track {
            let locked = Locked::untracked(&self.0)?;
            if !journal::is_pending(&self.0) {
                return Ok(locked);
            }
            // What was begun may be one of which cargo's files are to know.
            drop(locked);
            drop(self.lock(true)?);
            return Locked::untracked(&self.0);
        }
        let locked = Locked::take(&self.0)?;
        journal::recover(&self.0, &locked)?;
        Ok(locked)
    }

    /// Carries out a plan for which these files are to be copied, or nothing of it.
    fn carry_out(
        &self,
        plan: &Plan,
        locked: &Locked,
        bins: &BTreeMap<String, PathBuf>,
    ) -> Result<(), InstallError> {
        let dir = self.bin();
        let before = locked.texts()?;
        let copies: Vec<PathBuf> = bins
            .keys()
            .map(|name| dir.join(journal::copy_name(name)))
            .collect();
        // Under temporary names first.
        let mut files = bins.values().zip(&copies);
        let copied = files.try_for_each(|(file, to)| copy(file, to));
        let committed = copied.and_then(|()| plan.commit(&self.0, &[copies, vec![dir]].concat()));
        if let Err(error) = committed {
            journal::abandon(&self.0)?;
            return Err(error);
        }
        plan.carry_out(&self.0, locked, &before)
    }

    /// Which executables are there already; an error if one of them may not be replaced.
    fn check_owners(
        &self,
        tracking: &Tracking,
        release: &Release,
        names: &BTreeSet<String>,
        force: bool,
    ) -> Result<BTreeSet<String>, InstallError> {
        let packages = tracking.packages();
        let there = names
            .iter()
            .filter(|name| self.bin().join(name).symlink_metadata().is_ok());
        let there: BTreeSet<String> = there.cloned().collect();
        for bin in &there {
            let owner = packages.iter().find(|(_, bins)| bins.contains(bin));
            let owner = owner.map(|(key, _)| key.as_str());
            if !force && owner.and_then(package_name) != Some(&release.name) {
                return Err(InstallError::Taken {
                    bin: bin.clone(),
                    dir: self.bin(),
                    owner: owner.map(str::to_owned),
                });
            }
        }
        Ok(there)
    }
}

/// What other versions of the package own and this one does not have, by their package.
fn orphans(
    tracking: &Tracking,
    release: &Release,
    names: &BTreeSet<String>,
) -> BTreeMap<String, BTreeSet<String>> {
    let source = format!(" ({})", release.registry);
    let same = |key: &str, bins: &BTreeSet<String>| {
        // The same crate from elsewhere counts, as with cargo, if it is being replaced.
        package_name(key) == Some(&release.name)
            && (key.ends_with(&source) || !bins.is_disjoint(names))
    };
    tracking
        .packages()
        .into_iter()
        .filter(|(key, bins)| same(key, bins))
        .map(|(key, bins)| (key, bins.difference(names).cloned().collect()))
        .filter(|(_, left): &(_, BTreeSet<String>)| {
            !left.is_empty() && left.iter().all(|bin| check_bin_name(bin).is_ok())
        })
        .collect()
}

/// How cargo's files name a package: `ripgrep 14.1.1 (registry+https://…)`.
fn package_key(release: &Release) -> String {
    format!(
        "{} {} ({})",
        release.name, release.version, release.registry
    )
}

/// Name, version and source out of such a key.
fn parts_of(key: &str) -> Option<(&str, &str, &str)> {
    let (name, rest) = key.split_once(' ')?;
    let (version, source) = rest.split_once(' ')?;
    let source = source.strip_prefix('(')?.strip_suffix(')')?;
    Some((name, version, source))
}

fn package_name(key: &str) -> Option<&str> {
    key.split(' ').next()
}

/// Names come out of archives that others made: no paths, nothing hidden, nothing like an option.
fn check_bin_name(name: &str) -> Result<(), InstallError> {
    let fits = (1..=BIN_NAME_BYTES_MAX).contains(&name.len())
        && !name.starts_with(['.', '-'])
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '+'));
    if fits {
        Ok(())
    } else {
        let start = name.chars().take(BIN_NAME_BYTES_MAX).collect();
        Err(InstallError::Name(start))
    }
}

/// Copies an executable; it is not on the disk yet. Nothing that is there is followed.
fn copy(from: &Path, to: &Path) -> Result<(), InstallError> {
    let mut source = File::open(from).map_err(io(from))?;
    if !source.metadata().map_err(io(from))?.is_file() {
        return Err(io(from)(ErrorKind::InvalidInput.into()));
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o755);
    let mut target = options.open(to).map_err(io(to))?;
    std::io::copy(&mut source, &mut target)
        .map(drop)
        .map_err(io(to))
}

/// Puts files or directories on the disk, all at once: the file system then writes its journal
/// once or twice instead of once for each, which is most of the time that an installation takes.
fn sync(paths: &[PathBuf]) -> Result<(), InstallError> {
    let one = |path: &PathBuf| {
        let synced = File::open(path).and_then(|file| file.sync_all());
        synced.map_err(io(path))
    };
    for some in paths.chunks(SYNCS_MAX) {
        std::thread::scope(|scope| {
            let (last, others) = some.split_last().expect("chunks are not empty");
            let running: Vec<_> = others
                .iter()
                .map(|path| scope.spawn(|| one(path)))
                .collect();
            let last = one(last);
            running
                .into_iter()
                .map(|sync| sync.join().expect("a sync does not panic"))
                .fold(last, Result::and)
        })?;
    }
    Ok(())
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> InstallError {
    let path = path.to_owned();
    move |error| InstallError::Io { path, error }
}

fn by(owner: &Option<String>) -> String {
    match owner {
        Some(owner) => format!(" as part of {owner}"),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests;
