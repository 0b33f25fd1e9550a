//! Builds crates in the sandbox.
//!
//! A build has two phases. The first fetches sources: with network, without any code or
//! configuration of the crate. The second compiles: without network, at fixed paths, with the
//! files of the toolchain and the tools of [`host::TOOLS`] and nothing else. Then the outputs are
//! taken from the places where cargo puts them, as regular files only.

mod bubblewrap;
mod cgroup;
mod compile;
mod directories;
mod environment;
mod fetch;
mod gate;
pub mod host;
mod landlock;
mod linked;
mod log;
mod outputs;
pub mod pack;
mod quota;
mod remove;
mod run;
pub mod rustc;
pub mod sandbox;
pub mod seccomp;
pub mod sources;
pub mod toolchain;
mod warm;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use qk_protocol::candidate::Build;
use qk_protocol::hash::Sha256;
use qk_protocol::key::{ArtifactKey, Flags, Linker, Output, RECIPE, Rustc};
use qk_protocol::time::UnixTime;

pub use directories::Work;
pub use environment::Environment;
pub use gate::{Findings, First};
pub use linked::Linked;
pub use pack::{PackError, Packed};
pub use quota::{InUse, Removed, TOOLCHAINS_QUOTA_BYTES};
pub use run::Builder;
pub use rustc::{NotHere, RustToolchain};
pub use sandbox::{Cancel, Choice, Limits, Sandbox, SandboxError};
pub use toolchain::{Missing, SetupEvent, Toolchains};

/// The glibc that artifacts run with at the least, unless a key says another.
pub const GLIBC: &str = "2.17";

/// What is to be built.
#[derive(Debug, Clone)]
pub struct Order {
    /// Cargo's canonical source id of the registry.
    pub registry: String,
    /// Name of the crate.
    pub name: String,
    /// Exact version.
    pub version: String,
    /// Rust's target triple.
    pub target: String,
    /// The `.crate` file on disk.
    pub crate_file: PathBuf,
    /// Its checksum, as the registry's index gives it.
    pub source: Sha256,
    /// Features asked for, without `default`.
    pub features: BTreeSet<String>,
    /// Whether the default features are on.
    pub default_features: bool,
    /// Profile of cargo.
    pub profile: String,
    /// `-Cname=value`, as keys have them.
    pub rustflags: BTreeSet<String>,
    /// The compiler asked for; the active one when absent.
    pub rustc: Option<Rustc>,
    /// The lowest glibc of a gnu target, the default when absent.
    pub glibc: Option<String>,
    /// The lock that the `.crate` must hold, where it is known.
    pub lock: Option<Sha256>,
    /// Whether a crate without `Cargo.lock` gets one made; such a build has no key.
    pub resolve_lock: bool,
}

impl Order {
    /// A plain order: default features, release, no flags, the active compiler.
    pub fn new(
        registry: &str,
        name: &str,
        version: &str,
        crate_file: PathBuf,
        source: Sha256,
    ) -> Self {
        Self {
            registry: registry.to_owned(),
            name: name.to_owned(),
            version: version.to_owned(),
            target: rustc::TARGET.to_owned(),
            crate_file,
            source,
            features: BTreeSet::new(),
            default_features: true,
            profile: "release".to_owned(),
            rustflags: BTreeSet::new(),
            rustc: None,
            glibc: None,
            lock: None,
            resolve_lock: false,
        }
    }

    /// What a key asks for.
    ///
    /// # Errors
    /// When this version cannot build what the key names.
    pub fn for_key(key: &ArtifactKey, crate_file: PathBuf) -> Result<Self, BuildError> {
        let flags = &key.flags;
        let glibc = match &flags.linker {
            Linker::Zig { wheel, glibc } if *wheel == toolchain::ZIG.checksum() => glibc.clone(),
            Linker::Zig { wheel, .. } => {
                let what = format!("zig from the wheel {}", wheel.short());
                let run = "qk setup with a version of qk that pins it".to_owned();
                return Err(BuildError::NotHere(NotHere { what, run }));
            }
            Linker::System { fingerprint } => {
                let what = format!("the system linker {}", fingerprint.short());
                let run = "qk build on the machine that has it".to_owned();
                return Err(BuildError::NotHere(NotHere { what, run }));
            }
        };
        Ok(Self {
            target: key.target.clone(),
            features: flags.features.clone(),
            default_features: flags.default_features,
            profile: flags.profile.clone(),
            rustflags: flags.rustflags.clone(),
            rustc: Some(flags.rustc.clone()),
            glibc,
            lock: Some(flags.lock),
            ..Self::new(
                &key.registry,
                &key.name,
                &key.version,
                crate_file,
                flags.source,
            )
        })
    }

    /// The glibc that the target is linked for; nothing for targets without.
    pub(crate) fn linked_glibc(&self) -> Option<String> {
        let gnu = self.target.contains("-gnu");
        gnu.then(|| self.glibc.clone().unwrap_or_else(|| GLIBC.to_owned()))
    }

    /// The key of what this order gives, built with `rustc` from sources locked by `lock`.
    pub fn key(&self, rustc: &Rustc, lock: Sha256) -> ArtifactKey {
        ArtifactKey {
            registry: self.registry.clone(),
            name: self.name.clone(),
            version: self.version.clone(),
            target: self.target.clone(),
            flags: Flags {
                source: self.source,
                lock,
                features: self.features.clone(),
                default_features: self.default_features,
                profile: self.profile.clone(),
                rustflags: self.rustflags.clone(),
                rustc: rustc.clone(),
                linker: Linker::Zig {
                    wheel: toolchain::ZIG.checksum(),
                    glibc: self.linked_glibc(),
                },
                recipe: RECIPE,
                output: Output::Bins,
            },
        }
    }
}

/// What this version of qk builds a target with: the pinned zig and the lowest glibc.
pub fn build_with(rustc: Rustc, target: &str) -> Build {
    Build {
        target: target.to_owned(),
        recipe: RECIPE,
        rustc,
        linker: Linker::Zig {
            wheel: toolchain::ZIG.checksum(),
            glibc: target.contains("-gnu").then(|| GLIBC.to_owned()),
        },
    }
}

/// How a build is carried out; none of it changes the bytes.
#[derive(Debug, Clone)]
pub struct Options {
    /// Parallel jobs.
    pub jobs: u32,
    /// What it may use.
    pub limits: Limits,
    /// Another system's root directory to take tools and libraries from; `/` unless given.
    pub root: PathBuf,
    /// The host name that the build sees.
    pub hostname: String,
    /// Processors that it may use at once, whatever it starts; all if not set.
    pub cores: Option<u32>,
    /// Whether it gives way to everything else on the machine.
    pub background: bool,
    /// Whether the files that the linker was given stay until [`Collected`] goes, to be compared.
    pub keep_linked: bool,
}

impl Default for Options {
    fn default() -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            jobs: u32::try_from(cpus).unwrap_or(1),
            limits: Limits::default(),
            root: PathBuf::from("/"),
            hostname: "qk".to_owned(),
            cores: None,
            background: false,
            keep_linked: false,
        }
    }
}

/// What a build is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Fills the linker's cache, once for a toolchain and target.
    Preparing,
    /// Unpacks the `.crate`.
    Unpacking,
    /// Gets the dependencies; the latest line of cargo.
    Fetching {
        /// For example `Downloading clap v4.5.0`.
        line: String,
    },
    /// Compiles.
    Compiling {
        /// What was finished last, `name version`.
        krate: String,
        /// Packages finished.
        done: usize,
        /// Packages in all, as far as it can be known before.
        total: usize,
    },
    /// Takes the outputs.
    Collecting,
}

/// What came out of a build.
#[derive(Debug)]
pub struct Collected {
    /// The executables, by file name, in [`directory`](Self::directory).
    pub bins: BTreeMap<String, PathBuf>,
    /// What the linker was given, where a record of it could be made.
    pub linked: Option<Linked>,
    /// The `Cargo.lock` that was built with.
    pub lock: Vec<u8>,
    /// Licence texts at the top of the crate, by file name.
    pub licenses: BTreeMap<String, Vec<u8>>,
    /// What cargo said, in [`directory`](Self::directory).
    pub log: PathBuf,
    /// What it was built on.
    pub environment: Environment,
    /// The key; nothing for a crate without a lock of its own.
    pub key: Option<ArtifactKey>,
    /// When it started.
    pub started: UnixTime,
    /// When it was finished.
    pub finished: UnixTime,
    /// Holds the files above and goes with this value.
    pub directory: tempfile::TempDir,
}

/// Why there is no artifact. The classes of a failure statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// A library or header of the system that the sandbox does not have.
    SystemLibrary,
    /// A build tool that is not in the recipe's list.
    BuildTool,
    /// The compiler or linker refused.
    Compile,
    /// Longer than allowed.
    TimeOut,
    /// More memory than allowed.
    OutOfMemory,
    /// No room on the disk, or a file larger than allowed.
    DiskFull,
    /// `Cargo.lock` does not fit `Cargo.toml`.
    StaleLock,
    /// The crate has no `Cargo.lock`.
    NoLock,
    /// The crate has no executables with these features.
    NoBinaries,
    /// The dependencies could not be fetched.
    Fetch,
    /// The `.crate` is malformed.
    BadCrate,
}

/// Why a build gave no artifact.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The crate does not build; would be stated as a failure.
    #[error("{release}: {detail}")]
    Failed {
        /// Which release.
        release: String,
        /// The class.
        reason: Reason,
        /// One line for a person.
        detail: String,
        /// The end of what cargo said.
        tail: String,
    },
    /// Another toolchain is needed: says nothing about the crate.
    #[error(transparent)]
    NotHere(#[from] NotHere),
    /// No compiler could be found or read.
    #[error(transparent)]
    Rustc(rustc::RustcError),
    /// No sandbox here.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The host lacks what every build needs.
    #[error("{0}; run `qk setup` or `qk doctor`")]
    Host(#[from] host::HostError),
    /// The `.crate` on disk is not the one of the index.
    #[error("the .crate of {release} has SHA-256 {got}, the registry's index says {want}")]
    Source {
        /// Which release.
        release: String,
        /// What the index says.
        want: Sha256,
        /// What the file has.
        got: Sha256,
    },
    /// The caller stopped it.
    #[error("the build was cancelled")]
    Cancelled,
    /// The machine did not do what was asked.
    #[error("build: {doing}: {error}")]
    Io {
        /// What was under way.
        doing: &'static str,
        /// What came back.
        error: std::io::Error,
    },
}

impl From<rustc::RustcError> for BuildError {
    fn from(error: rustc::RustcError) -> Self {
        match error {
            rustc::RustcError::NotHere(not_here) => Self::NotHere(not_here),
            other => Self::Rustc(other),
        }
    }
}
