//! Whether to trust: a pure function of policy, manifest, statements and time.
//!
//! It fails closed. Only positive statements of named principals lead to trust; dissent,
//! retractions, blocks and what is said of `work` are vetoes, so that leaving a statement out never
//! helps whoever wants a wrong root accepted more than withholding it from the network would.
//!
//! Under `on_dissent = "refuse"` a dissent refuses. Under `escalate` each dissenter calls the next round
//! of the key's [ranking](crate::assign::Ranking), whose members then count as assigned, too; if the
//! first committee alone meets the policy and twice the threshold agree, one dissenter does not refuse:
//! the root is trusted and contested. Who is called follows from the statements about the key, so all
//! who know the same ones decide the same.

mod case;
mod observed;
mod roll;
mod work;

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use self::case::Case;
pub(crate) use self::observed::{dissenters, observed};
pub use self::roll::{Roll, Said, Seat};
use crate::candidate::Candidate;
use crate::hash::{KeyId, PrincipalId, PublicKey, Root, StatementId};
use crate::key::ArtifactKey;
use crate::manifest::Network;
use crate::policy::Policy;
use crate::statement::{Statement, Subject};
use crate::time::UnixTime;

/// A statement and when this node stored it.
#[derive(Debug, Clone)]
pub struct Held {
    /// The statement.
    pub statement: Arc<Statement>,
    /// When it was stored here; now, for one that just arrived.
    pub stored: UnixTime,
}

/// What [`decide`] is asked.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// The stricter of the user's and the manifest's policy.
    pub policy: &'a Policy,
    /// The network.
    pub network: &'a Network,
    /// What is wanted.
    pub candidate: &'a Candidate,
    /// This client's own key: its own build suffices for itself.
    pub own: Option<PublicKey>,
    /// What is known, in any order; statements about other things are passed over.
    pub statements: &'a [Held],
    /// The time.
    pub now: UnixTime,
}

/// What came out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "decision", rename_all = "lowercase")]
pub enum Decision {
    /// The policy is met.
    Trusted(Box<Trusted>),
    /// Not enough has been observed.
    Unproven(Unproven),
    /// Principals observed different artifacts.
    Disputed {
        /// All of them.
        roots: BTreeSet<Root>,
    },
    /// The manifest's timestamp has ended, or only observations that are too old meet the policy.
    Stale {
        /// Which of the two, in words.
        why: String,
    },
    /// The manifest says that nobody is to take it.
    Blocked {
        /// The manifest's reason.
        reason: String,
    },
}

/// The first demand of a policy that is not met.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Unproven {
    /// Distinct principals that count.
    pub have: u32,
    /// How many are needed.
    pub need: u32,
    /// The demand, in words.
    pub missing: String,
}

/// What may be taken, and on whose word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Trusted {
    /// The artifact key, now with its lock.
    pub key: ArtifactKey,
    /// Its id.
    pub key_id: KeyId,
    /// The artifact.
    #[serde(flatten)]
    pub subject: Subject,
    /// The statements that count, one a principal.
    pub proof: Vec<StatementId>,
    /// The principal that observed another artifact, where `escalate` trusts this one all the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contested: Option<PrincipalId>,
}

/// A decision and why, a line for each statement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Verdict {
    /// What came out.
    #[serde(flatten)]
    pub decision: Decision,
    /// One line for each statement about the candidate, in the order of their ids.
    pub lines: Vec<Line>,
    /// What else there is to say.
    pub notes: Vec<String>,
}

/// What one statement did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Line {
    /// Which statement.
    pub statement: StatementId,
    /// Who signed it.
    pub observer: PublicKey,
    /// The operator behind that key, if the manifest knows one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principal: Option<String>,
    /// What was observed, unless it is a failure or a retraction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<Root>,
    /// When the build ended, or the retraction was made.
    pub at: UnixTime,
    /// What it did.
    pub effect: Effect,
    /// Other principals that made the same from what the linker was given, as its `work` shows.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub work_agrees: u32,
    /// Other principals that say that its `work` is not what whoever builds it gets.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub work_differs: u32,
}

/// What a statement did to a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Effect {
    /// Counts for its root.
    Counts,
    /// This client's own build.
    Own,
    /// Repeats what another statement of the same principal says.
    Repeats,
    /// Another artifact than the one that is trusted and contested.
    Dissents,
    /// The principal observed another root as well: counts for neither.
    Contradicts,
    /// Two assigned principals who made the same say that its `work` differs: counts for nothing, but
    /// still against other roots.
    WorkDiffers,
    /// Retracted: no longer counts for its root, but still against others.
    Retracted,
    /// Older than the policy allows.
    TooOld,
    /// Ends in the future.
    InFuture,
    /// By a key that had retired when it was stored.
    KeyRetired,
    /// By a key that is known to be compromised.
    KeyCompromised,
    /// By a principal that the policy does not count.
    NotCounted,
    /// By no principal of the manifest.
    Stranger,
    /// A failure: never counts for or against a root.
    Failure,
    /// Takes back another statement.
    Retraction,
    /// Of another network.
    OtherNetwork,
}

/// Decides about one candidate. The order and repetition of statements do not matter.
pub fn decide(question: &Question<'_>) -> Verdict {
    Case::collect(question).verdict()
}

/// Decides about several candidates in order of preference: the first trusted one wins, and a
/// disputed or blocked one stops the search, so that no veto is evaded by asking for something else.
/// A stale one does not: the next may be this client's own build, or younger. Where none is trusted,
/// the first stale one is reported, or else the one closest to proven. Returns the index of the
/// candidate that the verdict is about; `None` for no candidates.
pub fn choose(verdicts: impl IntoIterator<Item = Verdict>) -> Option<(usize, Verdict)> {
    let mut best: Option<((bool, u32), (usize, Verdict))> = None;
    for (index, verdict) in verdicts.into_iter().enumerate() {
        let worth = match &verdict.decision {
            Decision::Trusted(_) | Decision::Disputed { .. } | Decision::Blocked { .. } => {
                return Some((index, verdict));
            }
            Decision::Stale { .. } => (true, 0),
            Decision::Unproven(Unproven { have, .. }) => (false, *have),
        };
        if best.as_ref().is_none_or(|(other, _)| worth > *other) {
            best = Some((worth, (index, verdict)));
        }
    }
    best.map(|(_, choice)| choice)
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde asks for a reference"
)]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

#[cfg(test)]
mod attacks;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
