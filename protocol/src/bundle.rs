//! Bundles: one file with all that is needed to check a proof later, offline, and elsewhere.
//!
//! A bundle is canonical JSON (RFC 8785) of at most [`BUNDLE_BYTES_MAX`] bytes:
//!
//! | member | what it is |
//! |---|---|
//! | `format` | 1 |
//! | `key` | the artifact key that was decided about; the lock in it is that of what was trusted |
//! | `manifests` | the DSSE envelopes of the network's versions 1, 2, … |
//! | `statements` | the in-toto statements of its principals about the key, in DSSE envelopes, in the order of their ids, at least one |
//! | `timestamp` | the DSSE envelope of the newest version's timestamp |
//!
//! Envelopes are objects and not texts, so that any DSSE verifier can be given one as it is. Nothing
//! in a bundle is the word of whoever made it: each envelope is signed, and `key` has to be what the
//! statements are about. Therefore it holds no time of export, no policy but the manifest's and no
//! time at which a statement was stored. What depends on time is judged when the bundle is checked
//! or, once its timestamp has ended, at that end: the last moment that the network vouched for
//! ([`Network::as_of`]). The secret of a private network is in none of these parts.
//!
//! What a bundle cannot show: that nothing was left out of it, neither a dissent nor a retraction,
//! and that a statement by a retired key is older than the retirement. So statements by retired keys
//! do not count here.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::candidate::{Candidate, Wanted};
use crate::canonical::{self, CanonicalError};
use crate::decide::{Decision, Held, Question, Verdict, decide};
use crate::hash::{NetworkId, StatementId};
use crate::key::{ArtifactKey, KeyError};
use crate::manifest::{ManifestError, Network, NetworkFile};
use crate::policy::Policy;
use crate::statement::{Statement, StatementError};
use crate::time::UnixTime;

/// A bundle may be this long.
pub const BUNDLE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// A bundle may hold this many statements.
pub const BUNDLE_STATEMENTS_MAX: usize = 256;

const FORMAT: u32 = 1;

/// A bundle of which every signature has been verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    network: Network,
    key: ArtifactKey,
    statements: Vec<Arc<Statement>>,
}

/// What a bundle came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// By the manifest in the bundle.
    pub verdict: Verdict,
    /// The time that it was judged at.
    pub as_of: UnixTime,
    /// By a newer version of the manifest that is known to whoever checks, if there is one, and its
    /// number.
    pub newer: Option<(u64, Verdict)>,
    /// With what else whoever checks knows to be stated, if anything is.
    pub since: Option<Verdict>,
}

/// Why bytes are no bundle, or why none can be made.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// Not canonical JSON of the expected shape.
    #[error("bundle: {0}")]
    Canonical(#[from] CanonicalError),
    /// Written by a newer version of qk.
    #[error("bundle: format {0}: a newer qk is needed")]
    Format(u32),
    /// The artifact key in it is unusable.
    #[error("bundle: {0}")]
    Key(#[from] KeyError),
    /// The chain of manifests or the timestamp does not verify.
    #[error("bundle: {0}")]
    Network(#[from] ManifestError),
    /// The network does not build the key: another registry, toolchain or profile, or odd flags.
    #[error("bundle: its network builds nothing with the toolchain and flags of its artifact key")]
    NotBuilt,
    /// A statement does not verify.
    #[error("bundle: statement {number}: {error}")]
    Statement {
        /// Which one, counted from 1.
        number: usize,
        /// Why.
        error: StatementError,
    },
    /// A statement does not belong into it.
    #[error("bundle: statement {number} ({id}): {why}")]
    Stray {
        /// Which one, counted from 1.
        number: usize,
        /// Its id.
        id: StatementId,
        /// Why not.
        why: &'static str,
    },
    /// Nothing is stated about the key.
    #[error("bundle: no principal of the network states anything about the artifact key")]
    Empty,
    /// More statements than a bundle may hold; none is left out, because it might be a dissent.
    #[error("bundle: {0} statements, more than {BUNDLE_STATEMENTS_MAX}")]
    TooMany(usize),
    /// Of another network than the one that was meant.
    #[error("bundle: of network {got}, expected {expected}")]
    OtherNetwork {
        /// Network found.
        got: NetworkId,
        /// Network expected.
        expected: NetworkId,
    },
    /// Its manifests are not those that are known here under the same id.
    #[error("bundle: another history of network {0} than the one that is known here")]
    OtherHistory(NetworkId),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BundleFile {
    format: u32,
    key: ArtifactKey,
    manifests: Vec<Value>,
    statements: Vec<Value>,
    timestamp: Value,
}

impl Bundle {
    /// Puts together what the network's principals state about a candidate. `key` is the one that
    /// was trusted or, where none was, any of the candidate's.
    ///
    /// # Errors
    /// When nothing is stated, too much, or the network does not build the key.
    pub fn new(
        network: &Network,
        key: &ArtifactKey,
        statements: &[Held],
    ) -> Result<Self, BundleError> {
        let candidate = Candidate::of(key);
        let mut chosen: Vec<Arc<Statement>> = statements
            .iter()
            .map(|held| held.statement.clone())
            .filter(|one| stray(network, &candidate, one).is_none())
            .collect();
        chosen.sort_by_key(|one| one.id());
        chosen.dedup_by_key(|one| one.id());
        let bundle = Self {
            network: network.clone(),
            key: key.clone(),
            statements: chosen,
        };
        bundle.check()?;
        Ok(bundle)
    }

    /// Reads a bundle and verifies everything in it that can be verified without knowing more: the
    /// chain of manifests from version 1, the timestamp, each statement, and that they are about the
    /// key and by principals.
    ///
    /// # Errors
    /// Names the part that is wrong.
    pub fn parse(bytes: &[u8]) -> Result<Self, BundleError> {
        let file: BundleFile = canonical::from_bytes(bytes, BUNDLE_BYTES_MAX)?;
        if file.format != FORMAT {
            return Err(BundleError::Format(file.format));
        }
        if file.statements.len() > BUNDLE_STATEMENTS_MAX {
            return Err(BundleError::TooMany(file.statements.len()));
        }
        let network = Network::verify(NetworkFile {
            manifests: file.manifests.iter().map(text).collect::<Result<_, _>>()?,
            timestamp: text(&file.timestamp)?,
        })?;
        Self::of(network, file.key, &file.statements)
    }

    /// A bundle of these parts: a network that was verified, the artifact key, and the envelopes of
    /// statements, at most [`BUNDLE_STATEMENTS_MAX`], in the order of their ids.
    ///
    /// # Errors
    /// As [`parse`](Self::parse).
    pub fn of(
        network: Network,
        key: ArtifactKey,
        statements: &[Value],
    ) -> Result<Self, BundleError> {
        let statements = statements.iter().zip(1..).map(|(value, number)| {
            let read = Statement::read(&canonical::to_bytes(value)?);
            read.map(Arc::new)
                .map_err(|error| BundleError::Statement { number, error })
        });
        let bundle = Self {
            statements: statements.collect::<Result<_, _>>()?,
            network,
            key,
        };
        bundle.check()?;
        Ok(bundle)
    }

    /// The bundle's bytes.
    ///
    /// # Errors
    /// When there are more than [`BUNDLE_BYTES_MAX`].
    pub fn to_bytes(&self) -> Result<Vec<u8>, BundleError> {
        let value = |text: &str| serde_json::from_str(text).map_err(CanonicalError::from);
        let network = self.network.file();
        let statements = self.statements.iter().map(|one| {
            serde_json::from_slice(one.envelope())
                .map_err(|error| CanonicalError::from(error).into())
        });
        let bytes = canonical::to_bytes(&BundleFile {
            format: FORMAT,
            key: self.key.clone(),
            manifests: (network.manifests.iter().map(|one| value(one)))
                .collect::<Result<_, _>>()?,
            statements: statements.collect::<Result<_, BundleError>>()?,
            timestamp: value(&network.timestamp)?,
        })?;
        if bytes.len() > BUNDLE_BYTES_MAX {
            return Err(BundleError::Canonical(CanonicalError::TooLarge {
                bytes: bytes.len(),
                bytes_max: BUNDLE_BYTES_MAX,
            }));
        }
        Ok(bytes)
    }

    fn check(&self) -> Result<(), BundleError> {
        self.key.check()?;
        let candidate = Candidate::of(&self.key);
        if !accepted(&self.network, &self.key) {
            return Err(BundleError::NotBuilt);
        }
        match self.statements.len() {
            0 => return Err(BundleError::Empty),
            count if count > BUNDLE_STATEMENTS_MAX => return Err(BundleError::TooMany(count)),
            _ => {}
        }
        let mut before = None;
        for (statement, number) in self.statements.iter().zip(1..) {
            let id = statement.id();
            let order = (before >= Some(id)).then_some("not in the order of the ids");
            if let Some(why) = stray(&self.network, &candidate, statement).or(order) {
                return Err(BundleError::Stray { number, id, why });
            }
            before = Some(id);
        }
        // The lock is the only part of the key that a candidate does not fix.
        if !self.statements.iter().any(|one| *one.key() == self.key) {
            return Err(BundleError::Empty);
        }
        Ok(())
    }

    /// The network, as the bundle knows it.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// The artifact key that was decided about.
    pub fn key(&self) -> &ArtifactKey {
        &self.key
    }

    /// What principals state about it, in the order of the ids.
    pub fn statements(&self) -> &[Arc<Statement>] {
        &self.statements
    }

    /// Decides from the bundle alone: by its manifest's policy and `own`, whichever is stricter. Where
    /// a newer version of the manifest is `known` here, what it took back counts as well: principals
    /// and keys that are gone, blocks, a stricter policy. Ages are judged once, by the bundle.
    ///
    /// # Errors
    /// When `known` is another network, or another history of this one.
    pub fn decide(
        &self,
        known: Option<&Network>,
        own: Option<&Policy>,
        now: UnixTime,
    ) -> Result<Checked, BundleError> {
        self.decide_knowing(known, own, &[], now)
    }

    /// As [`decide`](Self::decide), and what is `held` here about the key can take back what the bundle
    /// says: a dissent, a retraction. It cannot add to it, since the bundle has to suffice by itself.
    ///
    /// # Errors
    /// As [`decide`](Self::decide).
    pub fn decide_knowing(
        &self,
        known: Option<&Network>,
        own: Option<&Policy>,
        held: &[Held],
        now: UnixTime,
    ) -> Result<Checked, BundleError> {
        let policy = with(&self.network, own);
        let newer = match known {
            None => None,
            Some(known) => {
                if known.id() != self.network.id() {
                    return Err(BundleError::OtherNetwork {
                        got: self.network.id(),
                        expected: known.id(),
                    });
                }
                if !known.same_history(&self.network) {
                    return Err(BundleError::OtherHistory(known.id()));
                }
                let version = known.manifest().version;
                let policy = Policy {
                    max_age_days: None,
                    ..policy.stricter(&known.manifest().policy)
                };
                (version > self.network.manifest().version)
                    .then(|| (version, self.verdict(known, &policy, &[], known.as_of(now))))
            }
        };
        let as_of = self.network.as_of(now);
        let since = (!held.is_empty()).then(|| {
            let network = known.unwrap_or(&self.network);
            let policy = Policy {
                max_age_days: None,
                ..policy.stricter(&network.manifest().policy)
            };
            self.verdict(network, &policy, held, network.as_of(now))
        });
        Ok(Checked {
            verdict: self.verdict(&self.network, &policy, &[], as_of),
            as_of,
            newer,
            since,
        })
    }

    fn verdict(&self, network: &Network, policy: &Policy, more: &[Held], at: UnixTime) -> Verdict {
        let held = |statement: &Arc<Statement>| Held {
            statement: statement.clone(),
            stored: at,
        };
        let mut statements: Vec<Held> = self.statements.iter().map(held).collect();
        statements.extend(more.iter().cloned());
        decide(&Question {
            policy,
            network,
            candidate: &Candidate::of(&self.key),
            own: None,
            statements: &statements,
            now: at,
        })
    }
}

impl Checked {
    /// What it comes to: the newer manifest can only take back what the bundle's says.
    pub fn decision(&self) -> &Decision {
        &self.decisive().decision
    }

    /// The verdict that [`decision`](Self::decision) is of.
    pub fn decisive(&self) -> &Verdict {
        let newer = self.newer.as_ref().map(|(_, newer)| newer);
        let is_trusted = |one: &Verdict| matches!(one.decision, Decision::Trusted(_));
        let later = [newer, self.since.as_ref()].into_iter().flatten();
        let last = later.clone().last().unwrap_or(&self.verdict);
        let mut all = [&self.verdict].into_iter().chain(later);
        all.find(|one| !is_trusted(one)).unwrap_or(last)
    }
}

fn with(network: &Network, own: Option<&Policy>) -> Policy {
    let policy = &network.manifest().policy;
    own.map_or_else(|| policy.clone(), |own| policy.stricter(own))
}

/// Why a statement has no place in a bundle about a candidate, if it has none. Those of strangers
/// never count, for nor against.
fn stray(network: &Network, candidate: &Candidate, one: &Statement) -> Option<&'static str> {
    if one.network() != network.id() {
        return Some("it speaks in another network");
    }
    if !candidate.matches(one.key()) {
        return Some("it is about another artifact key");
    }
    let known = network.principal(one.observer());
    known
        .is_none()
        .then_some("it is by no principal of the network")
}

/// Whether a client of the network would accept the key, as it derives by itself what it accepts.
fn accepted(network: &Network, key: &ArtifactKey) -> bool {
    let manifest = network.manifest();
    let wanted = Wanted {
        release: key.release(),
        source: key.flags.source,
        targets: vec![key.target.clone()],
        features: key.flags.features.clone(),
        default_features: key.flags.default_features,
        rustflags: [].into(),
    };
    let candidates = wanted.candidates(&manifest.builds);
    manifest.registries.contains(&key.registry) && candidates.iter().any(|one| one.matches(key))
}

fn text(value: &Value) -> Result<String, CanonicalError> {
    let bytes = canonical::to_bytes(value)?;
    Ok(String::from_utf8(bytes).expect("JSON is UTF-8"))
}

#[cfg(test)]
mod tests;
