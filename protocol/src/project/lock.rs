//! `qk.lock`: which artifact each tool is, and the proof of it.
//!
//! JSON of at most [`LOCK_BYTES_MAX`] bytes, a member a line so that changes can be read, always written the same:
//!
//! | member | what it is |
//! |---|---|
//! | `version` | 1 |
//! | `networks` | by name of a snapshot: its manifests' envelopes and its timestamp's, as in a [bundle](crate::bundle) |
//! | `tools` | sorted by crate, target and version; each with what was asked for, the artifact's root, digest, size and key, its snapshot, the statements about it, and when it was locked |
//!
//! Nothing in it is the word of whoever wrote it. The parts of a tool make a [`Bundle`], which is verified and
//! decided about by whoever reads the lock; name, version, target, root, digest and size stand there for people, and have to be
//! what that comes to. `locked` is for people, too: ages are judged at the end of the snapshot's timestamp at the latest.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Project, TOOLS_MAX, Tool};
use crate::bundle::{BUNDLE_STATEMENTS_MAX, Bundle, BundleError};
use crate::canonical;
use crate::hash::{Blake3, KeyId, Root, Sha256};
use crate::key::ArtifactKey;
use crate::manifest::{ManifestError, Network, NetworkFile};
use crate::statement::Subject;
use crate::time::UnixTime;

/// `qk.lock` may be this long.
pub const LOCK_BYTES_MAX: usize = 16 * 1024 * 1024;
/// What this version of qk writes, and the newest that it reads.
pub const LOCK_VERSION: u32 = 1;
/// Entries: a tool may be locked for several targets.
const ENTRIES_MAX: usize = 4 * TOOLS_MAX;

/// A lock as it was read: its form was checked, nothing else.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    version: u32,
    networks: BTreeMap<String, Snapshot>,
    tools: Vec<Locked>,
}

/// A network as it was known when something was locked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Snapshot {
    manifests: Vec<Value>,
    timestamp: Value,
}

/// One tool for one target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Locked {
    /// The crate.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The target.
    pub target: String,
    /// What `qk.toml` asked for.
    pub asked: Asked,
    /// The artifact.
    pub root: Root,
    /// SHA-256 of its archive.
    pub sha256: Sha256,
    /// Bytes of its archive.
    pub size: u64,
    /// When it was locked.
    pub locked: UnixTime,
    /// The id of `key`.
    pub key_id: KeyId,
    /// The artifact key.
    pub key: ArtifactKey,
    /// Name of the snapshot.
    network: String,
    /// Envelopes of the statements.
    statements: Vec<Value>,
}

/// What was asked for of a tool, written out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Asked(Value);

impl Asked {
    /// What `qk.toml` says.
    pub fn of(tool: &Tool) -> Self {
        Self(serde_json::to_value(tool).unwrap_or_default())
    }
}

/// Why a lock is of no use.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Longer than a lock may be.
    #[error("more than {LOCK_BYTES_MAX} bytes")]
    TooLong,
    /// Two versions of it were merged by a program that could not.
    #[error(
        "line {line} is a mark of a merge that did not end: take one side, then run `qk fetch`"
    )]
    Conflict {
        /// Which line, counted from 1.
        line: usize,
    },
    /// Written by a newer version of qk.
    #[error("its version is {0}, and this qk reads version {LOCK_VERSION}: a newer qk is needed")]
    Newer(u32),
    /// Not what is expected; says where.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// More entries than a lock may have.
    #[error("more than {ENTRIES_MAX} entries")]
    TooMany,
    /// A tool names a snapshot that is not there.
    #[error("{name}: there is no network {network} in the lock")]
    NoNetwork {
        /// The tool.
        name: String,
        /// The snapshot.
        network: String,
    },
    /// A snapshot does not verify.
    #[error("{name}: {error}")]
    Network {
        /// The tool.
        name: String,
        /// Why.
        error: ManifestError,
    },
    /// The proof does not verify.
    #[error("{name}: {error}")]
    Bundle {
        /// The tool.
        name: String,
        /// Why.
        error: BundleError,
    },
    /// What stands there for people is not what the key says.
    #[error("{name}: {what} is not that of its artifact key")]
    OtherKey {
        /// The tool.
        name: String,
        /// Which member.
        what: &'static str,
    },
}

impl Default for Lock {
    fn default() -> Self {
        Self {
            version: LOCK_VERSION,
            networks: BTreeMap::new(),
            tools: Vec::new(),
        }
    }
}

impl Lock {
    /// Reads a lock. Its form is checked; what it says is not believed before [`bundle`](Self::bundle).
    ///
    /// # Errors
    /// Says where something is that is not expected.
    pub fn parse(bytes: &[u8]) -> Result<Self, LockError> {
        #[derive(Deserialize)]
        struct Peek {
            version: u32,
        }
        if bytes.len() > LOCK_BYTES_MAX {
            return Err(LockError::TooLong);
        }
        let marks: [&[u8]; 3] = [b"<<<<<<<", b"=======", b">>>>>>>"];
        let mut lines = bytes.split(|byte| *byte == b'\n').zip(1..);
        if let Some((_, line)) =
            lines.find(|(line, _)| marks.iter().any(|mark| line.starts_with(mark)))
        {
            return Err(LockError::Conflict { line });
        }
        if let Ok(Peek { version }) = serde_json::from_slice(bytes)
            && version > LOCK_VERSION
        {
            return Err(LockError::Newer(version));
        }
        let lock: Self = serde_json::from_slice(bytes)?;
        if lock.tools.len().max(lock.networks.len()) > ENTRIES_MAX {
            return Err(LockError::TooMany);
        }
        Ok(lock)
    }

    /// The lock's bytes, the same for the same content.
    ///
    /// # Panics
    /// Never: everything in it came from JSON, or is text and numbers.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).expect("JSON values can be written");
        bytes.push(b'\n');
        bytes
    }

    /// What is locked.
    pub fn tools(&self) -> &[Locked] {
        &self.tools
    }

    /// The entry of a tool for the first of these targets that there is one for.
    pub fn find(&self, name: &str, targets: &[String]) -> Option<&Locked> {
        let of = |target: &String| {
            let mut tools = self.tools.iter();
            tools.find(|one| one.name == name && one.target == *target)
        };
        targets.iter().find_map(of)
    }

    /// The entry that is what a project asks for on this machine, or why there is none.
    ///
    /// # Errors
    /// Says how lock and project differ.
    pub fn locked(&self, name: &str, tool: &Tool, host: &str) -> Result<&Locked, String> {
        let targets = tool.targets(host);
        let Some(locked) = self.find(name, &targets) else {
            return Err(match self.tools.iter().any(|one| one.name == name) {
                true => format!("is not locked for {}", targets.join(" or ")),
                false => "is not in the lock".to_owned(),
            });
        };
        if locked.asked != Asked::of(tool) {
            return Err("was locked when qk.toml asked for something else".to_owned());
        }
        let flags = &locked.key.flags;
        let other = match () {
            () if !tool.takes(&locked.key.version) => "version",
            () if flags.features != tool.features => "features",
            () if flags.default_features != tool.default_features => "default-features",
            () if !flags.rustflags.is_empty() => "rustflags",
            () => return Ok(locked),
        };
        Err(format!(
            "is locked with another {other} than qk.toml asks for"
        ))
    }

    /// Entries of crates that a project does not ask for.
    pub fn surplus<'a>(&'a self, project: &'a Project) -> impl Iterator<Item = &'a Locked> {
        let tools = self.tools.iter();
        tools.filter(|one| !project.tools.contains_key(&one.name))
    }

    /// The proof of a tool, verified: every signature, and that what stands beside it is what the key says.
    /// Whether it suffices is decided by whoever asks.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn bundle(&self, tool: &Locked) -> Result<Bundle, LockError> {
        let name = || tool.name.clone();
        let key = &tool.key;
        let other = [
            ("name", tool.name != key.name),
            ("version", tool.version != key.version),
            ("target", tool.target != key.target),
            ("key_id", tool.key_id != key.id()),
        ];
        if let Some((what, _)) = other.into_iter().find(|(_, differs)| *differs) {
            return Err(LockError::OtherKey { name: name(), what });
        }
        let snapshot = self.networks.get(&tool.network);
        let snapshot = snapshot.ok_or_else(|| LockError::NoNetwork {
            name: name(),
            network: tool.network.clone(),
        })?;
        let in_bundle = |error: BundleError| LockError::Bundle {
            name: name(),
            error,
        };
        if tool.statements.len() > BUNDLE_STATEMENTS_MAX {
            return Err(in_bundle(BundleError::TooMany(tool.statements.len())));
        }
        let network = snapshot.verify();
        let network = network.map_err(|error| match error {
            BundleError::Network(error) => LockError::Network {
                name: name(),
                error,
            },
            error => in_bundle(error),
        })?;
        Bundle::of(network, key.clone(), &tool.statements).map_err(in_bundle)
    }

    /// Pins a tool to what a bundle proves, in place of what it was pinned to for that target.
    ///
    /// # Errors
    /// When the bundle cannot be written.
    pub fn pin(
        &mut self,
        tool: &Tool,
        bundle: &Bundle,
        subject: &Subject,
        now: UnixTime,
    ) -> Result<(), BundleError> {
        let (snapshot, statements) = Snapshot::of(bundle)?;
        let network = snapshot.name()?;
        self.networks.insert(network.clone(), snapshot);
        let key = bundle.key().clone();
        let same = |one: &Locked| (&one.name, &one.target) == (&key.name, &key.target);
        self.tools.retain(|one| !same(one));
        self.tools.push(Locked {
            name: key.name.clone(),
            version: key.version.clone(),
            target: key.target.clone(),
            asked: Asked::of(tool),
            root: subject.root,
            sha256: subject.sha256,
            size: subject.size,
            locked: now,
            key_id: key.id(),
            key,
            network,
            statements,
        });
        self.tidy();
        Ok(())
    }

    /// Drops entries of crates that a project does not ask for; says whether there were any.
    pub fn prune(&mut self, project: &Project) -> bool {
        let before = self.tools.len();
        self.tools
            .retain(|one| project.tools.contains_key(&one.name));
        self.tidy();
        self.tools.len() < before
    }

    fn tidy(&mut self) {
        let order = |one: &Locked| (one.name.clone(), one.target.clone(), one.version.clone());
        self.tools.sort_by_key(order);
        let used = |name: &String| self.tools.iter().any(|one| one.network == *name);
        self.networks.retain(|name, _| used(name));
    }
}

impl Snapshot {
    /// The two parts of a bundle that a lock keeps apart, as values.
    fn of(bundle: &Bundle) -> Result<(Self, Vec<Value>), BundleError> {
        let value = |text: &[u8]| -> Result<Value, BundleError> {
            let value = serde_json::from_slice(text);
            value.map_err(|error| canonical::CanonicalError::from(error).into())
        };
        let file = bundle.network().file();
        let manifests = file.manifests.iter().map(|one| value(one.as_bytes()));
        let statements = bundle.statements().iter().map(|one| value(one.envelope()));
        let snapshot = Self {
            manifests: manifests.collect::<Result<_, _>>()?,
            timestamp: value(file.timestamp.as_bytes())?,
        };
        Ok((snapshot, statements.collect::<Result<_, _>>()?))
    }

    /// What it is called in the lock: the beginning of a hash.
    fn name(&self) -> Result<String, BundleError> {
        Ok(Blake3::of(&canonical::to_bytes(self)?).short())
    }

    fn verify(&self) -> Result<Network, BundleError> {
        let text = |value: &Value| -> Result<String, BundleError> {
            let bytes = canonical::to_bytes(value)?;
            Ok(String::from_utf8(bytes).expect("JSON is UTF-8"))
        };
        let manifests = self.manifests.iter().map(text);
        Ok(Network::verify(NetworkFile {
            manifests: manifests.collect::<Result<_, _>>()?,
            timestamp: text(&self.timestamp)?,
        })?)
    }
}

#[cfg(test)]
mod tests;
