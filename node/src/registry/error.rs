//! Why a registry could not be read.

use semver::Version;

use super::http::HttpError;
use super::package::PackageError;

/// Why a release could not be found out.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// Cargo's configuration, or what was asked for with options.
    #[error("{0}")]
    Config(String),
    /// Not a name or a version that a registry may have.
    #[error("{0}")]
    Name(String),
    /// A kind of registry that is not read here.
    #[error("{registry} {why}; qk reads sparse indexes and local registries only")]
    Unsupported {
        /// The registry.
        registry: String,
        /// Which kind it is.
        why: &'static str,
    },
    /// The registry wants a token.
    #[error("{0} asks for a token, and qk sends none")]
    Token(String),
    /// No such crate.
    #[error("there is no crate {name} in {registry}{}", also(similar))]
    UnknownCrate {
        /// The name asked for.
        name: String,
        /// The registry.
        registry: String,
        /// Crates whose names differ in `-`, `_` or case.
        similar: Vec<String>,
    },
    /// No version that is asked for.
    #[error("{name} has no version {asked}{}", near(nearest))]
    NoVersion {
        /// The crate.
        name: String,
        /// What was asked for.
        asked: String,
        /// Some versions that there are, newest first.
        nearest: Vec<Version>,
    },
    /// All that would do were withdrawn.
    #[error(
        "{name} {} was yanked from its registry{}",
        list(yanked),
        near(nearest)
    )]
    Yanked {
        /// The crate.
        name: String,
        /// Withdrawn versions that were asked for, newest first.
        yanked: Vec<Version>,
        /// Some versions that there are, newest first.
        nearest: Vec<Version>,
    },
    /// Nothing cached, and the network is not to be used.
    #[error("{name} is not in cargo's cache of {registry}, and the network is not to be used")]
    Offline {
        /// The crate.
        name: String,
        /// The registry.
        registry: String,
    },
    /// The registry's index did not answer.
    #[error("asking {registry} for {what}: {error}")]
    Network {
        /// The registry's index, without secrets.
        registry: String,
        /// What was asked for.
        what: String,
        /// What happened.
        error: HttpError,
    },
    /// The registry's index holds something else than it should.
    #[error("the index of {registry} is unusable for {name}: {why}")]
    BadIndex {
        /// The registry.
        registry: String,
        /// The crate, or the file.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// The `.crate` file.
    #[error(transparent)]
    Package(#[from] PackageError),
}

impl RegistryError {
    /// Whether the registry could not be reached at all.
    pub(super) fn is_transport(&self) -> bool {
        matches!(self, Self::Network { error, .. } if error.is_transport())
    }
}

fn list(items: &[impl ToString]) -> String {
    let items: Vec<_> = items.iter().map(ToString::to_string).collect();
    items.join(", ")
}

fn near(versions: &[Version]) -> String {
    match versions {
        [] => String::new(),
        some => format!("; there is {}", list(some)),
    }
}

fn also(names: &[String]) -> String {
    match names {
        [] => String::new(),
        some => format!("; there is {}", list(some)),
    }
}
