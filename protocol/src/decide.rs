//! Whether to trust: a pure function of policy, manifest, statements and time.
//!
//! It fails closed. Only positive statements of named principals lead to trust; dissent,
//! retractions and blocks are vetoes, so that leaving a statement out never helps whoever wants a
//! wrong root accepted more than withholding it from the network would.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::assign::Ranking;
use crate::candidate::Candidate;
use crate::hash::{KeyId, PrincipalId, PublicKey, Root, StatementId};
use crate::key::ArtifactKey;
use crate::manifest::{CLOCK_SKEW_SECONDS_MAX, KeyState, Network};
use crate::policy::{Count, OnDissent, Policy};
use crate::statement::{Body, Observation, Statement, Subject};
use crate::time::{DAY_SECONDS, UnixTime};

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
}

/// A decision and why, a line for each statement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
}

/// What a statement did to a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Effect {
    /// Counts for its root.
    Counts,
    /// This client's own build.
    Own,
    /// Repeats what another statement of the same principal says.
    Repeats,
    /// The principal observed another root as well: counts for neither.
    Contradicts,
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
    let case = Case::collect(question);
    let mut notes = Vec::new();
    if question.policy.on_dissent == OnDissent::Escalate {
        notes
            .push("on_dissent = \"escalate\" is not carried out yet: a dissent refuses".to_owned());
    }
    Verdict {
        decision: case.decide(),
        lines: case.lines(),
        notes,
    }
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

/// What somebody got: artifacts of keys with different locks are different artifacts.
type Got = (KeyId, Subject);

/// What each principal observed, retracted observations included.
pub(crate) type Observed = BTreeMap<PrincipalId, BTreeSet<Got>>;

/// What each principal observed of a candidate, as far as its keys may speak.
pub(crate) fn observed(network: &Network, candidate: &Candidate, statements: &[Held]) -> Observed {
    observed_in(network, about(candidate, statements).into_values())
}

/// Principals that observed another artifact than most did, or than the one that comes first where as
/// many observed others. Sorted.
pub(crate) fn dissenters(observed: &Observed) -> BTreeSet<PrincipalId> {
    let mut by_got: BTreeMap<Got, usize> = BTreeMap::new();
    for got in observed.values().flatten() {
        *by_got.entry(*got).or_default() += 1;
    }
    let most = by_got
        .iter()
        .max_by_key(|(got, count)| (**count, Reverse(**got)));
    let others = observed.iter().filter(|(_, gots)| {
        gots.iter()
            .any(|got| most.is_some_and(|(most, _)| got != most))
    });
    others.map(|(principal, _)| *principal).collect()
}

/// The statements about a candidate, each once.
fn about<'a>(candidate: &Candidate, statements: &'a [Held]) -> BTreeMap<StatementId, &'a Held> {
    let mut held: BTreeMap<StatementId, &Held> = BTreeMap::new();
    let about = statements
        .iter()
        .filter(|held| candidate.matches(held.statement.key()));
    for one in about {
        // The earliest time stands: a repetition may not make a statement younger or older.
        let entry = held.entry(one.statement.id()).or_insert(one);
        if one.stored < entry.stored {
            *entry = one;
        }
    }
    held
}

fn observed_in<'a>(network: &Network, held: impl Iterator<Item = &'a Held>) -> Observed {
    let mut observed = Observed::new();
    for one in held {
        if let (Some(principal), Some(got)) = (vetoer(network, one), got(&one.statement)) {
            observed.entry(principal).or_default().insert(got);
        }
    }
    observed
}

/// The principal whose statement this is, if its key may speak at all: also against a root.
fn vetoer(network: &Network, held: &Held) -> Option<PrincipalId> {
    if held.statement.network() != network.id() {
        return None;
    }
    let (principal, key) = network.principal(held.statement.observer())?;
    let speaks = match key.state {
        KeyState::Active => true,
        KeyState::Retired => key.retired.is_some_and(|retired| held.stored < retired),
        KeyState::Compromised => false,
    };
    (speaks && principal.observes()).then_some(principal.id)
}

/// The statements about one candidate, sorted out.
struct Case<'a> {
    question: &'a Question<'a>,
    /// Each statement once, by id.
    statements: BTreeMap<StatementId, (&'a Held, Effect)>,
    observed: Observed,
    /// The candidate's committee: the lock, which candidates lack, does not enter it.
    committee: BTreeSet<PrincipalId>,
}

impl<'a> Case<'a> {
    fn collect(question: &'a Question<'a>) -> Self {
        let held = about(question.candidate, question.statements);
        let mut case = Self {
            question,
            statements: BTreeMap::new(),
            observed: observed_in(question.network, held.values().copied()),
            committee: Ranking::of(question.network, question.candidate).committee(),
        };
        let retracted = case.retracted(held.values().copied());
        let mut counted = BTreeSet::new();
        for (id, one) in held {
            let effect = case.effect(one, &retracted, &mut counted);
            case.statements.insert(id, (one, effect));
        }
        case
    }

    fn vetoer(&self, held: &Held) -> Option<PrincipalId> {
        vetoer(self.question.network, held)
    }

    /// Statements taken back by the principal, or the observer, who made them.
    fn retracted(&self, all: impl Iterator<Item = &'a Held> + Clone) -> BTreeSet<StatementId> {
        let author = |held: &Held| (self.vetoer(held), held.statement.observer());
        let authors: BTreeMap<_, _> = all
            .clone()
            .map(|held| (held.statement.id(), author(held)))
            .collect();
        let taken_back = all.filter_map(|held| {
            let Body::Retraction(retraction) = held.statement.body() else {
                return None;
            };
            if held.statement.network() != self.question.network.id() {
                return None;
            }
            let (principal, observer) = authors.get(&retraction.retracts)?;
            let (by_principal, by) = author(held);
            let same = *observer == by || (principal.is_some() && *principal == by_principal);
            same.then_some(retraction.retracts)
        });
        taken_back.collect()
    }

    fn effect(
        &self,
        held: &Held,
        retracted: &BTreeSet<StatementId>,
        counted: &mut BTreeSet<PrincipalId>,
    ) -> Effect {
        let statement = &held.statement;
        if statement.network() != self.question.network.id() {
            return Effect::OtherNetwork;
        }
        let observation = match statement.body() {
            Body::Observation(observation) => observation,
            Body::Failure(_) => return Effect::Failure,
            Body::Retraction(_) => return Effect::Retraction,
        };
        let known = self.question.network.principal(statement.observer());
        if retracted.contains(&statement.id()) {
            return Effect::Retracted;
        }
        if observation.finished > self.question.now.plus(CLOCK_SKEW_SECONDS_MAX) {
            return Effect::InFuture;
        }
        if self.question.own == Some(statement.observer()) {
            return Effect::Own;
        }
        let Some((principal, key)) = known else {
            return Effect::Stranger;
        };
        match (key.state, self.vetoer(held)) {
            (KeyState::Compromised, _) => return Effect::KeyCompromised,
            (KeyState::Retired, None) => return Effect::KeyRetired,
            (KeyState::Active, None) => return Effect::NotCounted,
            (KeyState::Active | KeyState::Retired, Some(_)) => {}
        }
        if self
            .observed
            .get(&principal.id)
            .is_some_and(|observed| observed.len() > 1)
        {
            return Effect::Contradicts;
        }
        if !self.counts_somewhere(principal.id) {
            return Effect::NotCounted;
        }
        if self.too_old(observation) {
            return Effect::TooOld;
        }
        if !counted.insert(principal.id) {
            return Effect::Repeats;
        }
        Effect::Counts
    }

    /// Whether the policy lets this principal count towards any of its demands.
    fn counts_somewhere(&self, id: PrincipalId) -> bool {
        let policy = self.question.policy;
        (policy.principals.is_empty() || policy.principals.contains(&id))
            && (self.counts_for(id, &BTreeSet::new(), policy.count)
                || policy
                    .groups
                    .iter()
                    .any(|group| self.counts_for(id, &group.of, group.count)))
    }

    fn counts_for(&self, id: PrincipalId, of: &BTreeSet<PrincipalId>, count: Count) -> bool {
        (of.is_empty() || of.contains(&id)) && (count == Count::Any || self.committee.contains(&id))
    }

    fn too_old(&self, observation: &Observation) -> bool {
        let max_age = self
            .question
            .policy
            .max_age_days
            .map(|days| u64::from(days) * DAY_SECONDS);
        max_age.is_some_and(|max_age| self.question.now.since(observation.finished) > max_age)
    }

    fn decide(&self) -> Decision {
        let own = self.own();
        if let Some(reason) = self.blocked(own.as_deref()) {
            return Decision::Blocked { reason };
        }
        if let Some(own) = own {
            return Decision::Trusted(own);
        }
        if !self.question.network.fresh(self.question.now) {
            return Decision::Stale {
                why: self.why_stale(),
            };
        }
        let all: BTreeSet<Got> = self.observed.values().flatten().copied().collect();
        if all.len() > 1 {
            return Decision::Disputed {
                roots: all.iter().map(|(_, subject)| subject.root).collect(),
            };
        }
        let unproven = match self.prove(&[Effect::Counts]) {
            Ok(trusted) => return Decision::Trusted(trusted),
            Err(unproven) => unproven,
        };
        if self.prove(&[Effect::Counts, Effect::TooOld]).is_ok() {
            let days = self.question.policy.max_age_days.unwrap_or_default();
            return Decision::Stale {
                why: format!("enough principals agree, but not within the last {days} days"),
            };
        }
        Decision::Unproven(unproven)
    }

    fn why_stale(&self) -> String {
        let (timestamp, now) = (self.question.network.timestamp(), self.question.now);
        if timestamp.issued > now {
            return format!(
                "the network's timestamp was signed at {}, but the clock here says {now}",
                timestamp.issued
            );
        }
        format!(
            "the network's timestamp ended at {} (it was signed at {}); it is renewed by the node that holds the timestamp key",
            timestamp.expires, timestamp.issued
        )
    }

    /// Only what could be trusted is looked at: a stranger must not be able to have a key refused by
    /// stating a blocked root for it, nor a principal what this client built itself.
    fn blocked(&self, own: Option<&Trusted>) -> Option<String> {
        let gots: Vec<Got> = match own {
            Some(own) => vec![(own.key_id, own.subject)],
            None => self.observed.values().flatten().copied().collect(),
        };
        gots.iter()
            .find_map(|(key, subject)| self.question.network.blocked(*key, Some(subject.root)))
            .map(str::to_owned)
    }

    /// What this client built itself; nothing, if it got different artifacts.
    fn own(&self) -> Option<Box<Trusted>> {
        let own: Vec<_> = self.with(&[Effect::Own]).collect();
        let gots: BTreeSet<Got> = own.iter().filter_map(|held| got(&held.statement)).collect();
        if gots.len() != 1 {
            return None;
        }
        trusted(&own[..1])
    }

    /// All demands of the policy against the statements with these effects.
    fn prove(&self, effects: &[Effect]) -> Result<Box<Trusted>, Unproven> {
        let policy = self.question.policy;
        let mut by_principal = BTreeMap::new();
        for held in self.with(effects) {
            if let Some((principal, _)) = self.question.network.principal(held.statement.observer())
            {
                by_principal.entry(principal.id).or_insert(held);
            }
        }
        let proof: Vec<&Held> = by_principal.values().copied().collect();
        let count = |of: &BTreeSet<PrincipalId>, count: Count| -> u32 {
            let counted = by_principal
                .keys()
                .filter(|id| self.counts_for(**id, of, count));
            u32::try_from(counted.count()).unwrap_or(u32::MAX)
        };
        let need = policy.threshold_of(&self.question.candidate.release.name);
        let have = count(&BTreeSet::new(), policy.count);
        let unproven = |have: u32, need: u32, who: &str| Unproven {
            have,
            need,
            missing: format!("{have} of {need} {who}"),
        };
        if have < need {
            let who = match policy.count {
                Count::Any => "principals",
                Count::Assigned => "assigned principals",
            };
            return Err(unproven(have, need, who));
        }
        for group in &policy.groups {
            let have = count(&group.of, group.count);
            let need = group.threshold.max(1);
            if have < need {
                return Err(unproven(have, need, &format!("of group {:?}", group.name)));
            }
        }
        trusted(&proof).ok_or_else(|| unproven(0, need, "principals"))
    }

    fn with(&self, effects: &[Effect]) -> impl Iterator<Item = &'a Held> {
        let chosen = self
            .statements
            .values()
            .filter(|(_, effect)| effects.contains(effect));
        chosen.map(|(held, _)| *held)
    }

    fn lines(&self) -> Vec<Line> {
        let lines = self.statements.values().map(|(held, effect)| {
            let statement = &held.statement;
            let principal = self.question.network.principal(statement.observer());
            Line {
                statement: statement.id(),
                observer: statement.observer(),
                principal: principal.map(|(principal, _)| principal.name.clone()),
                root: statement
                    .observation()
                    .map(|observation| observation.subject.root),
                at: match statement.body() {
                    Body::Observation(observation) => observation.finished,
                    Body::Failure(failure) => failure.finished,
                    Body::Retraction(retraction) => retraction.at,
                },
                effect: *effect,
            }
        });
        lines.collect()
    }
}

fn got(statement: &Statement) -> Option<Got> {
    let observation = statement.observation()?;
    Some((statement.key_id(), observation.subject))
}

fn trusted(proof: &[&Held]) -> Option<Box<Trusted>> {
    let first = proof.first()?;
    let (key_id, subject) = got(&first.statement)?;
    Some(Box::new(Trusted {
        key: first.statement.key().clone(),
        key_id,
        subject,
        proof: proof.iter().map(|held| held.statement.id()).collect(),
    }))
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
