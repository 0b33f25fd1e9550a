//! What a volunteer's machine rebuilds: how it [learns](patrol) of entries, [in which order](Queue) it
//! takes them, and within which [`budget`].
//!
//! All of it is decided here and carried out by whoever has a clock, a disk and a sandbox.

pub mod budget;
pub mod patrol;
mod queue;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

pub use self::queue::{
    AUDIT_EVERY, Building, DELAY_SECONDS_MAX, Done, ENTRIES_MAX, End, Entry, Queue,
    RELEASE_ENTRIES_MAX, RESULTS_MAX,
};
use crate::assign::{Duty, audit, duty};
use crate::candidate::Candidate;
use crate::decide::{Held, observed};
use crate::hash::PrincipalId;
use crate::key::ArtifactKey;
use crate::manifest::Network;

/// Why something is rebuilt; the first is the most urgent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "why", rename_all = "lowercase")]
pub enum Why {
    /// A dissent called this principal's rank: clients may be waiting.
    Called {
        /// Whose dissent.
        by: PrincipalId,
    },
    /// This principal is of its committee.
    Assigned,
    /// It was drawn at random.
    Audit,
}

impl From<Duty> for Why {
    fn from(duty: Duty) -> Self {
        match duty {
            Duty::Assigned => Self::Assigned,
            Duty::Called { by } => Self::Called { by },
        }
    }
}

/// Why a rebuild came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(
    feature = "schema",
    derive(schemars::JsonSchema),
    schemars(rename = "RebuildFailure")
)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// A library or tool of the system that the sandbox does not have.
    MissingSystemLibrary,
    /// The compiler or linker refused.
    CompileError,
    /// Longer than allowed.
    TimeOut,
    /// More memory than allowed.
    OutOfMemory,
    /// Its toolchain is not on this machine.
    ToolchainNotHere,
    /// No room on the disk, or more than the budget allows.
    DiskFull,
    /// The registry or the network could not be reached, or does not have it any more.
    NotHad,
    /// The crate itself cannot be built: no lock or a stale one, no executables, malformed.
    BadCrate,
    /// The key names another source than the registry.
    OtherSource,
    /// This process ended in the middle of it.
    Interrupted,
    /// Anything else.
    Other,
}

impl Class {
    /// How long after the first failure it is tried again; each further one doubles that.
    pub fn first_delay_seconds(self) -> u64 {
        const MINUTE: u64 = 60;
        const DAY: u64 = 24 * 3600;
        match self {
            // Says nothing about the crate the first time; see `Queue`.
            Self::Interrupted => 10 * MINUTE,
            Self::NotHad => MINUTE,
            // Somebody may do something about it.
            Self::ToolchainNotHere | Self::DiskFull => 10 * MINUTE,
            Self::Other => 60 * MINUTE,
            // The same again, most likely.
            Self::MissingSystemLibrary
            | Self::CompileError
            | Self::TimeOut
            | Self::OutOfMemory
            | Self::BadCrate
            | Self::OtherSource => DAY,
        }
    }

    /// For people.
    pub fn in_words(self) -> &'static str {
        match self {
            Self::MissingSystemLibrary => "a library or tool of the system is missing",
            Self::CompileError => "it does not compile",
            Self::TimeOut => "it took too long",
            Self::OutOfMemory => "it took too much memory",
            Self::ToolchainNotHere => "its toolchain is not here",
            Self::DiskFull => "the disk is full",
            Self::NotHad => "the registry or the network cannot be reached or lacks it",
            Self::BadCrate => "the crate cannot be built",
            Self::OtherSource => "its source is not the registry's",
            Self::Interrupted => "this process ended in the middle of it",
            Self::Other => "it failed",
        }
    }
}

/// What a rebuild that gave an artifact says beside others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Agreement {
    /// Nobody had observed it before.
    First,
    /// The same as all principals before.
    Identical,
    /// Another one than somebody.
    Differs,
}

/// What `principal` owes of all that is stated at a point: keys that somebody else's observation
/// stands behind, each once. What only strangers state is owed to nobody, or they would give a
/// committee its work; [audits](audit) look at it.
pub fn duties(network: &Network, held: &[Held], principal: PrincipalId) -> Vec<(ArtifactKey, Why)> {
    let statements = held.iter().map(|one| one.statement.as_ref());
    let keys: BTreeSet<&ArtifactKey> = statements
        .filter(|one| one.network() == network.id() && audit::is_built(network, one.key()))
        .map(|one| one.key())
        .collect();
    let owed = keys.into_iter().filter_map(|key| {
        let candidate = Candidate::of(key);
        if observed(network, &candidate, held).is_empty() {
            return None;
        }
        let duty = duty(network, &candidate, held, principal)?;
        Some((key.clone(), duty.into()))
    });
    owed.collect()
}

#[cfg(test)]
mod tests;
