//! Artifact keys: everything that decides which bytes a build gives.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::canonical::{self, CanonicalError};
use crate::hash::{Blake3, Fields, KeyId, Location, NetworkKey, Sha256};

/// The canonical bytes of a key may be this long.
pub const KEY_BYTES_MAX: usize = 8 * 1024;
/// Longest name of a crate, a feature, a target or a version.
pub const NAME_BYTES_MAX: usize = 128;
/// Most features and most rustflags of one key.
pub const KEY_LIST_MAX: usize = 64;
/// The version of the normalisation that this code builds with.
pub const RECIPE: u32 = 1;

/// What an artifact is an artifact of. Its canonical bytes are RFC 8785 JSON; members that this
/// version does not know make a key unusable.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ArtifactKey {
    /// Cargo's canonical source id of the registry, whatever replaces it locally.
    pub registry: String,
    /// Name of the crate as the registry spells it.
    pub name: String,
    /// Exact version of the crate.
    pub version: String,
    /// Rust's target triple that the artifact runs on.
    pub target: String,
    /// Everything else that changes the bytes.
    pub flags: Flags,
}

/// What changes the bytes besides crate, version and target.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Flags {
    /// Checksum of the `.crate` file, as the registry's index gives it.
    pub source: Sha256,
    /// SHA-256 of the `Cargo.lock` inside that file.
    pub lock: Sha256,
    /// Features as asked for, without `default`; `--all-features` is expanded before.
    pub features: BTreeSet<String>,
    /// Whether the crate's default features are on.
    pub default_features: bool,
    /// Profile of cargo; `release` unless named.
    pub profile: String,
    /// Allowed code generation options, `-Cname=value`, sorted by name.
    pub rustflags: BTreeSet<String>,
    /// The compiler.
    pub rustc: Rustc,
    /// What links, and against which C library.
    pub linker: Linker,
    /// Version of the normalisation.
    pub recipe: u32,
    /// What is taken from the build.
    pub output: Output,
}

/// A compiler, down to the files that compile.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Rustc {
    /// Release, as `rustc -vV` prints it.
    pub version: String,
    /// Commit, 40 hex digits.
    pub commit_hash: String,
    /// The triple that the compiler itself runs on.
    pub host: String,
    /// Digest over the files that compile ([`sysroot`]).
    pub sysroot: Blake3,
}

/// What links.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "lowercase")]
pub enum Linker {
    /// A pinned zig, independent of the host's C compiler.
    Zig {
        /// SHA-256 of the wheel that zig comes from.
        wheel: Sha256,
        /// Lowest glibc that the artifact runs with, `2.17`; absent for musl.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        glibc: Option<String>,
    },
    /// The host's `cc`.
    System {
        /// Digest over the compiler, its crt files and C library.
        fingerprint: Blake3,
    },
}

/// What is taken from a build. Units of the compile cache are a later variant: until then a key
/// that names one is unusable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Output {
    /// The executables of the package.
    Bins,
}

/// Why a key is unusable.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Not canonical JSON of the expected shape.
    #[error("artifact key: {0}")]
    Canonical(#[from] CanonicalError),
    /// A member has a value outside of what keys allow.
    #[error("artifact key: {member} {value:?} is not allowed: {why}")]
    Member {
        /// The member's name.
        member: &'static str,
        /// The beginning of its value.
        value: String,
        /// What is asked of it.
        why: &'static str,
    },
}

impl ArtifactKey {
    /// Reads and checks a key from its canonical bytes.
    ///
    /// # Errors
    /// For anything but the canonical bytes of a usable key.
    pub fn parse(bytes: &[u8]) -> Result<Self, KeyError> {
        let key: Self = canonical::from_bytes(bytes, KEY_BYTES_MAX)?;
        key.check()?;
        Ok(key)
    }

    /// Checks what the types alone do not say. Keys inside statements and archives go through here.
    ///
    /// # Errors
    /// Names the first member that is out of bounds.
    pub fn check(&self) -> Result<(), KeyError> {
        let flags = &self.flags;
        text(
            "registry",
            &self.registry,
            256,
            "a source id of cargo",
            |c| c.is_ascii_graphic(),
        )?;
        check_crate_name(&self.name)?;
        check_version("version", &self.version)?;
        check_triple("target", &self.target)?;
        if flags.features.len() > KEY_LIST_MAX || flags.rustflags.len() > KEY_LIST_MAX {
            return Err(member("flags", "", "at most 64 features and 64 rustflags"));
        }
        for feature in &flags.features {
            check_feature(feature)?;
        }
        text(
            "profile",
            &flags.profile,
            NAME_BYTES_MAX,
            "a profile of cargo",
            |c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'),
        )?;
        check_rustflags(&flags.rustflags)?;
        check_version("rustc.version", &flags.rustc.version)?;
        check_triple("rustc.host", &flags.rustc.host)?;
        let commit = &flags.rustc.commit_hash;
        text(
            "rustc.commit_hash",
            commit,
            40,
            "40 hex digits",
            |c| matches!(c, '0'..='9' | 'a'..='f'),
        )?;
        if commit.len() != 40 {
            return Err(member("rustc.commit_hash", commit, "40 hex digits"));
        }
        if let Linker::Zig { glibc, .. } = &flags.linker {
            check_glibc(glibc.as_deref(), &self.target)?;
        }
        if flags.recipe != RECIPE {
            let recipe = flags.recipe.to_string();
            return Err(member("recipe", &recipe, "only recipe 1 is known here"));
        }
        // Last, when every list is short: what is checked here has to be readable by `parse`.
        let bytes = self.to_bytes().len();
        if bytes > KEY_BYTES_MAX {
            return Err(CanonicalError::TooLarge {
                bytes,
                bytes_max: KEY_BYTES_MAX,
            }
            .into());
        }
        Ok(())
    }

    /// The bytes that are hashed, signed and stored.
    ///
    /// # Panics
    /// Never for a key that [`check`](Self::check) accepts: its members are all strings, booleans
    /// and small integers.
    pub fn to_bytes(&self) -> Vec<u8> {
        canonical::to_bytes(self).expect("a key holds no floats, nulls or large integers")
    }

    /// `BLAKE3 derive_key("qk artifact key v1", canonical bytes)`.
    pub fn id(&self) -> KeyId {
        KeyId(blake3::derive_key("qk artifact key v1", &self.to_bytes()))
    }

    /// Which release of which crate this is about.
    pub fn release(&self) -> Release {
        Release {
            registry: self.registry.clone(),
            name: self.name.clone(),
            version: self.version.clone(),
        }
    }
}

/// One release of a crate: all its targets and flags share a location.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Release {
    /// Cargo's canonical source id.
    pub registry: String,
    /// Name of the crate.
    pub name: String,
    /// Exact version.
    pub version: String,
}

impl Release {
    /// Where the statements of this release are held in the network with this key.
    pub fn location(&self, network: &NetworkKey) -> Location {
        Location(
            Fields::keyed(network.as_bytes())
                .text(&self.registry)
                .text(&self.name)
                .text(&self.version)
                .finish(),
        )
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.version)
    }
}

/// The digest of the files that compile: path below the sysroot to BLAKE3, as canonical JSON.
/// Which files those are is the recipe's: `bin/{cargo,rustc}`, `lib/*.so*` and
/// `lib/rustlib/{host,target}/{bin,lib}/**`, links followed.
pub fn sysroot(files: &std::collections::BTreeMap<String, Blake3>) -> Blake3 {
    let bytes = canonical::to_bytes(files).expect("a map of strings is canonical");
    Blake3(blake3::derive_key("qk sysroot v1", &bytes))
}

/// Checks the spelling of a crate's name: what registries accept.
///
/// # Errors
/// When it is empty, too long, or has other characters than letters, digits, `-` and `_`.
pub fn check_crate_name(name: &str) -> Result<(), KeyError> {
    text(
        "name",
        name,
        64,
        "letters, digits, - and _, a letter first",
        |c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'),
    )?;
    if !name.starts_with(|c: char| c.is_ascii_alphabetic()) {
        return Err(member("name", name, "a letter first"));
    }
    Ok(())
}

/// Brings rustflags into the one spelling that keys use: `-Cname=value`, sorted by name. Takes
/// rustc's own spellings: `-C name=value` and `--codegen name=value` as one word or two. An option
/// without a value has several names for its default and is refused.
///
/// # Errors
/// Names the first flag that is not on the allow list.
pub fn rustflags<'a>(
    given: impl IntoIterator<Item = &'a str>,
) -> Result<BTreeSet<String>, KeyError> {
    let mut flags = BTreeSet::new();
    let mut words = given.into_iter();
    while let Some(word) = words.next() {
        let option = match word {
            "-C" | "--codegen" => words.next(),
            _ => word
                .strip_prefix("-C")
                .or_else(|| word.strip_prefix("--codegen=")),
        };
        let Some((name, value)) = option.and_then(|option| option.split_once('=')) else {
            return Err(member("rustflags", word, RUSTFLAGS_WHY));
        };
        // rustc takes `opt_level` for `opt-level`.
        flags.insert(format!("-C{}={value}", name.replace('_', "-")));
    }
    check_rustflags(&flags)?;
    Ok(flags)
}

const RUSTFLAGS_WHY: &str = "only -C of target-feature, target-cpu (not native), opt-level, lto, panic, strip, codegen-units, each once";

fn check_rustflags(flags: &BTreeSet<String>) -> Result<(), KeyError> {
    let mut names = BTreeSet::new();
    for flag in flags {
        let refused = || member("rustflags", flag, RUSTFLAGS_WHY);
        let (name, value) = flag
            .strip_prefix("-C")
            .and_then(|option| option.split_once('='))
            .ok_or_else(refused)?;
        let allowed = match name {
            "target-cpu" => value != "native",
            "target-feature" | "opt-level" | "lto" | "panic" | "strip" | "codegen-units" => true,
            _ => false,
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | ',' | '.' | '_');
        if !allowed
            || value.is_empty()
            || flag.len() > 1024
            || !value.chars().all(plain)
            || !names.insert(name)
        {
            return Err(refused());
        }
    }
    Ok(())
}

fn check_feature(feature: &str) -> Result<(), KeyError> {
    if feature == "default" {
        return Err(member(
            "features",
            feature,
            "said by default_features instead",
        ));
    }
    text(
        "features",
        feature,
        NAME_BYTES_MAX,
        "a feature's name",
        |c| c.is_alphanumeric() || matches!(c, '-' | '_' | '+' | '.' | '/' | '?' | ':'),
    )
}

fn check_version(name: &'static str, version: &str) -> Result<(), KeyError> {
    let parsed =
        semver::Version::parse(version).map_err(|_| member(name, version, "an exact version"))?;
    if version.len() > NAME_BYTES_MAX || parsed.to_string() != version {
        return Err(member(name, version, "an exact version"));
    }
    Ok(())
}

fn check_triple(name: &'static str, triple: &str) -> Result<(), KeyError> {
    text(name, triple, NAME_BYTES_MAX, "a target triple", |c| {
        c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')
    })
}

fn check_glibc(glibc: Option<&str>, target: &str) -> Result<(), KeyError> {
    // Windows has gnu targets as well, without a glibc.
    let has_glibc = target.contains("-linux-gnu");
    match glibc {
        None if has_glibc => Err(member("glibc", "", "needed for a linux-gnu target")),
        Some(version) if !has_glibc => Err(member("glibc", version, "only for linux-gnu targets")),
        Some(version) if parse_glibc(version).is_none() => {
            Err(member("glibc", version, "a version such as 2.17"))
        }
        None | Some(_) => Ok(()),
    }
}

/// Reads `2.17` as `(2, 17)`; `None` for any other form.
pub fn parse_glibc(version: &str) -> Option<(u32, u32)> {
    let (major, minor) = version.split_once('.')?;
    let parsed = (major.parse().ok()?, minor.parse().ok()?);
    (format!("{}.{}", parsed.0, parsed.1) == version).then_some(parsed)
}

fn text(
    name: &'static str,
    value: &str,
    bytes_max: usize,
    why: &'static str,
    allowed: impl Fn(char) -> bool,
) -> Result<(), KeyError> {
    if value.is_empty() || value.len() > bytes_max || !value.chars().all(allowed) {
        return Err(member(name, value, why));
    }
    Ok(())
}

fn member(member: &'static str, value: &str, why: &'static str) -> KeyError {
    KeyError::Member {
        member,
        value: value.chars().take(80).collect(),
        why,
    }
}

#[cfg(test)]
mod tests;
