//! A project's tools: `qk.toml`, which says what is wanted, and `qk.lock`, which says what that is.
//!
//! Both lie in a directory that anybody may have written. `qk.toml` names tools, may name a network whose word
//! its tools need, and may have a policy, which only makes the reader's own stricter. Neither file joins a network, and
//! neither is believed: what a lock pins is decided about again, by the statements in it ([`lock`]).
//!
//! ```toml
//! [tools]
//! ripgrep = "14"                          # as in Cargo.toml: ^14
//! fd-find = { version = "10", bins = ["fd"], features = [], default-features = true, target = "x86_64-unknown-linux-musl" }
//!
//! [network]
//! from = "https://example.org/lab.qknet"  # or a file beside qk.toml
//! fingerprint = "5f21…"
//!
//! [policy]
//! threshold = 3
//! ```

pub mod lock;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use semver::{Version, VersionReq};
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::hash::NetworkId;
use crate::key::{NAME_BYTES_MAX, check_crate_name};
use crate::policy::Policy;

/// `qk.toml` may be this long.
pub const PROJECT_BYTES_MAX: usize = 64 * 1024;
/// Tools that one project may have.
pub const TOOLS_MAX: usize = 256;
/// Features, executables or targets that one tool may name.
pub const CHOICES_MAX: usize = 256;

/// A project, as `qk.toml` says.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Project {
    /// Crates by name, and which of them.
    pub tools: BTreeMap<String, Tool>,
    /// The network that its tools have to be proven in; any that is joined, where none is named.
    pub network: Option<ProjectNetwork>,
    /// A policy, which only makes the reader's own stricter.
    pub policy: Option<Policy>,
}

/// A network that a project names.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProjectNetwork {
    /// Its network file: a path, from where `qk.toml` is, or a URL.
    pub from: String,
    /// Its fingerprint, which is what counts.
    pub fingerprint: NetworkId,
}

/// What is asked for of a tool. In `qk.lock` it says what was asked for when it was locked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Tool {
    /// A requirement, as Cargo.toml has them.
    pub version: VersionReq,
    /// Features beside the default ones.
    pub features: BTreeSet<String>,
    /// Whether the default features are wanted.
    pub default_features: bool,
    /// The executables that are wanted; all, if none is named.
    pub bins: BTreeSet<String>,
    /// Target triples, most wanted first; the machine's own, if none is named.
    pub target: Vec<String>,
}

/// Why bytes are no project.
#[derive(Debug, thiserror::Error)]
pub enum ProjectError {
    /// Longer than a project may be.
    #[error("more than {PROJECT_BYTES_MAX} bytes")]
    TooLong,
    /// Not UTF-8.
    #[error("it is not UTF-8: {0}")]
    Text(#[from] std::str::Utf8Error),
    /// Not what is expected; says where, and what may stand there.
    #[error("{0}")]
    Toml(#[from] toml::de::Error),
    /// A policy that nobody may have.
    #[error("{0}")]
    Policy(String),
    /// A value that cannot be used.
    #[error("{place}: {why}")]
    Value {
        /// Where.
        place: String,
        /// Why not.
        why: String,
    },
}

impl Project {
    /// Reads `qk.toml`.
    ///
    /// # Errors
    /// Says where something is that is not expected, and what may stand there.
    pub fn parse(bytes: &[u8]) -> Result<Self, ProjectError> {
        if bytes.len() > PROJECT_BYTES_MAX {
            return Err(ProjectError::TooLong);
        }
        let project: Self = toml::from_str(std::str::from_utf8(bytes)?)?;
        project.check()?;
        Ok(project)
    }

    fn check(&self) -> Result<(), ProjectError> {
        let bad = |place: &str, why: String| ProjectError::Value {
            place: place.to_owned(),
            why,
        };
        if let Some(policy) = &self.policy {
            policy.check().map_err(ProjectError::Policy)?;
        }
        if self.tools.len() > TOOLS_MAX {
            return Err(bad("tools", format!("more than {TOOLS_MAX} tools")));
        }
        for (name, tool) in &self.tools {
            let place = format!("tools.{name}");
            check_crate_name(name).map_err(|error| bad(&place, error.to_string()))?;
            tool.check().map_err(|why| bad(&place, why))?;
        }
        Ok(())
    }
}

impl Tool {
    fn check(&self) -> Result<(), String> {
        let lists = [self.features.len(), self.bins.len(), self.target.len()];
        let texts = self.features.iter().chain(&self.bins).chain(&self.target);
        if lists.into_iter().any(|len| len > CHOICES_MAX) {
            return Err(format!("a list of more than {CHOICES_MAX}"));
        }
        match texts
            .into_iter()
            .find(|text| text.is_empty() || text.len() > NAME_BYTES_MAX)
        {
            Some(text) => Err(format!(
                "{text:?} is no name of 1 to {NAME_BYTES_MAX} bytes"
            )),
            None => Ok(()),
        }
    }

    /// Whether a release would do.
    pub fn takes(&self, version: &str) -> bool {
        Version::parse(version).is_ok_and(|version| self.version.matches(&version))
    }

    /// The targets that would do on a machine with this one, most wanted first.
    pub fn targets(&self, host: &str) -> Vec<String> {
        match self.target.is_empty() {
            true => vec![host.to_owned()],
            false => self.target.clone(),
        }
    }
}

/// Either a requirement or a table.
impl<'de> Deserialize<'de> for Tool {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = Tool;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a version such as \"14\", or a table with version, features, default-features, bins and target")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Tool, E> {
                Ok(Tool {
                    version: requirement(text)?,
                    features: BTreeSet::new(),
                    default_features: true,
                    bins: BTreeSet::new(),
                    target: Vec::new(),
                })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Tool, A::Error> {
                let table = Table::deserialize(MapAccessDeserializer::new(map))?;
                Ok(Tool {
                    version: requirement(&table.version)?,
                    features: table.features,
                    default_features: table.default_features,
                    bins: table.bins,
                    target: table.target.0,
                })
            }
        }

        deserializer.deserialize_any(Either)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Table {
    version: String,
    #[serde(default)]
    features: BTreeSet<String>,
    #[serde(default = "yes")]
    default_features: bool,
    #[serde(default)]
    bins: BTreeSet<String>,
    #[serde(default)]
    target: Targets,
}

fn yes() -> bool {
    true
}

/// One target or several.
#[derive(Default)]
struct Targets(Vec<String>);

impl<'de> Deserialize<'de> for Targets {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a target triple, or a list of them")]
        enum Either {
            One(String),
            Several(Vec<String>),
        }
        Ok(match Either::deserialize(deserializer)? {
            Either::One(target) => Self(vec![target]),
            Either::Several(targets) => Self(targets),
        })
    }
}

fn requirement<E: de::Error>(text: &str) -> Result<VersionReq, E> {
    let bad = |why: &dyn fmt::Display| {
        E::custom(format!(
            "{text:?} is no requirement such as 14, ^1.2 or =1.2.3: {why}"
        ))
    };
    if text.len() > NAME_BYTES_MAX {
        return Err(bad(&"too long"));
    }
    VersionReq::parse(text).map_err(|error| bad(&error))
}

#[cfg(test)]
mod tests;
