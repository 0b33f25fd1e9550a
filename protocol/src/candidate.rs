//! What somebody wants, before a network says what there is.
//!
//! A client derives everything that it would accept from what it knows by itself, and only then asks:
//! so an old compiler or odd flags are never slipped in by whoever answers.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::hash::Sha256;
use crate::key::{ArtifactKey, Flags, KeyError, Linker, Output, Release, Rustc};

/// A toolchain and recipe for one target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Build {
    /// Rust's target triple.
    pub target: String,
    /// Version of the normalisation.
    pub recipe: u32,
    /// The compiler.
    pub rustc: Rustc,
    /// What links.
    pub linker: Linker,
}

impl Build {
    /// Goes through the same checks as a key that is built with it.
    ///
    /// # Errors
    /// Names the first member that is out of bounds.
    pub fn check(&self) -> Result<(), KeyError> {
        let wanted = Wanted {
            release: Release {
                registry: "registry".to_owned(),
                name: "name".to_owned(),
                version: "0.0.0".to_owned(),
            },
            source: Sha256([0; 32]),
            targets: vec![self.target.clone()],
            features: BTreeSet::new(),
            default_features: true,
            rustflags: BTreeSet::new(),
        };
        let candidates = wanted.candidates(std::slice::from_ref(self));
        candidates
            .iter()
            .try_for_each(|candidate| candidate.key(Sha256([0; 32])).check())
    }
}

/// What a client wants, with everything that it knows by itself: an artifact key but for the digest
/// of the lock, which `source` determines and observers read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Release of the crate.
    pub release: Release,
    /// Checksum of the `.crate` file in the client's own copy of the registry's index.
    pub source: Sha256,
    /// Features asked for.
    pub features: BTreeSet<String>,
    /// Whether the default features are wanted.
    pub default_features: bool,
    /// Profile.
    pub profile: String,
    /// Code generation options.
    pub rustflags: BTreeSet<String>,
    /// Target, toolchain and recipe.
    pub build: Build,
}

/// What somebody asks for, before a network says with what it is built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    /// Release of the crate.
    pub release: Release,
    /// Checksum of the `.crate` file in the client's own copy of the registry's index.
    pub source: Sha256,
    /// Target triples, most wanted first.
    pub targets: Vec<String>,
    /// Features asked for, without `default`.
    pub features: BTreeSet<String>,
    /// Whether the default features are wanted.
    pub default_features: bool,
    /// Code generation options.
    pub rustflags: BTreeSet<String>,
}

impl Wanted {
    /// Everything that would do: each target with each of these builds for it, which are given
    /// newest first. What is accepted is derived here, before anybody is asked, so that an old
    /// compiler or odd flags are never slipped in.
    pub fn candidates(&self, builds: &[Build]) -> Vec<Candidate> {
        let of_target = |target: &String| {
            let target = target.clone();
            builds.iter().filter(move |build| build.target == target)
        };
        self.targets
            .iter()
            .flat_map(of_target)
            .map(|build| self.with(build))
            .collect()
    }

    fn with(&self, build: &Build) -> Candidate {
        Candidate {
            release: self.release.clone(),
            source: self.source,
            features: self.features.clone(),
            default_features: self.default_features,
            profile: "release".to_owned(),
            rustflags: self.rustflags.clone(),
            build: build.clone(),
        }
    }
}

impl Candidate {
    /// The artifact key, once the digest of the lock is known.
    pub fn key(&self, lock: Sha256) -> ArtifactKey {
        ArtifactKey {
            registry: self.release.registry.clone(),
            name: self.release.name.clone(),
            version: self.release.version.clone(),
            target: self.build.target.clone(),
            flags: Flags {
                source: self.source,
                lock,
                features: self.features.clone(),
                default_features: self.default_features,
                profile: self.profile.clone(),
                rustflags: self.rustflags.clone(),
                rustc: self.build.rustc.clone(),
                linker: self.build.linker.clone(),
                recipe: self.build.recipe,
                output: Output::Bins,
            },
        }
    }

    /// Whether `key` is this candidate, whatever its lock.
    pub fn matches(&self, key: &ArtifactKey) -> bool {
        *key == self.key(key.flags.lock)
    }

    /// The candidate that a key belongs to, with the key's own `source`: for looking at what others
    /// state, not for deciding what to take.
    pub fn of(key: &ArtifactKey) -> Self {
        let flags = key.flags.clone();
        Self {
            release: key.release(),
            source: flags.source,
            features: flags.features,
            default_features: flags.default_features,
            profile: flags.profile,
            rustflags: flags.rustflags,
            build: Build {
                target: key.target.clone(),
                recipe: flags.recipe,
                rustc: flags.rustc,
                linker: flags.linker,
            },
        }
    }
}
