//! The statements about one candidate, sorted out, and what follows from them.

use std::collections::{BTreeMap, BTreeSet};

use super::observed::{Got, Observed, about, dissenters, got, most_observed, observed_in, vetoer};
use super::work::Checks;
use super::{Decision, Effect, Held, Line, Question, Trusted, Unproven, Verdict};
use crate::assign::Ranking;
use crate::hash::{PrincipalId, StatementId};
use crate::manifest::{CLOCK_SKEW_SECONDS_MAX, KeyState};
use crate::policy::{Count, OnDissent};
use crate::statement::{Body, Observation};
use crate::time::DAY_SECONDS;

/// The statements about one candidate, sorted out.
pub(super) struct Case<'a> {
    question: &'a Question<'a>,
    /// Each statement once, by id.
    statements: BTreeMap<StatementId, (&'a Held, Effect)>,
    observed: Observed,
    dissenters: BTreeSet<PrincipalId>,
    checks: Checks<'a>,
    committee: BTreeSet<PrincipalId>,
    /// The committee and, where the policy escalates, the rounds that dissents called.
    assigned: BTreeSet<PrincipalId>,
}

impl<'a> Case<'a> {
    pub(super) fn collect(question: &'a Question<'a>) -> Self {
        let held = about(question.candidate, question.statements);
        let ranking = Ranking::of(question.network, question.candidate);
        let observed = observed_in(question.network, held.values().copied());
        let dissenters = dissenters(&observed);
        let called = match question.policy.on_dissent() {
            OnDissent::Refuse => 0,
            OnDissent::Escalate => dissenters.len(),
        };
        let by_principals = held.values().filter_map(|one| {
            let principal = vetoer(question.network, one)?;
            Some((principal, *one))
        });
        let mut case = Self {
            question,
            statements: BTreeMap::new(),
            observed,
            dissenters,
            checks: Checks::of(by_principals),
            committee: ranking.committee(),
            assigned: ranking.first(1 + called),
        };
        let refused = Refused {
            retracted: case.retracted(held.values().copied()),
            work_differs: case.checks.dropped(&case.assigned),
        };
        let mut counted = BTreeSet::new();
        for (id, one) in held {
            let effect = case.effect(one, &refused, &mut counted);
            case.statements.insert(id, (one, effect));
        }
        case
    }

    pub(super) fn verdict(&self) -> Verdict {
        let decision = self.decide();
        Verdict {
            lines: self.lines(&decision),
            notes: self.notes(&decision),
            decision,
        }
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
        refused: &Refused,
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
        if refused.retracted.contains(&statement.id()) {
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
        if refused.work_differs.contains(&statement.id()) {
            return Effect::WorkDiffers;
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
        let groups = policy.groups.iter().map(|group| (&group.of, group.count));
        let nobody_named = BTreeSet::new();
        let mut demands = groups.chain([(&nobody_named, policy.count)]);
        (policy.principals.is_empty() || policy.principals.contains(&id))
            && demands.any(|(of, count)| counts_for(id, of, count, &self.assigned))
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
        let contested = self.contested();
        if let Some(reason) = self.blocked(own.as_deref().or(contested.as_deref())) {
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
        if self.dissenters.is_empty() {
            return self.agreed();
        }
        contested.map_or_else(|| self.disputed(), Decision::Trusted)
    }

    /// What the principals that observed anything observed alike.
    fn agreed(&self) -> Decision {
        let unproven = match self.tally(&[Effect::Counts]).prove(self, &self.assigned) {
            Ok(trusted) => return Decision::Trusted(trusted),
            Err(unproven) => unproven,
        };
        let with_old = self.tally(&[Effect::Counts, Effect::TooOld]);
        if with_old.prove(self, &self.assigned).is_ok() {
            let days = self.question.policy.max_age_days.unwrap_or_default();
            return Decision::Stale {
                why: format!("enough principals agree, but not within the last {days} days"),
            };
        }
        Decision::Unproven(unproven)
    }

    /// What is trusted although one principal dissents, if the policy escalates: what the first committee
    /// alone proves, and twice as many as the policy asks for observed.
    fn contested(&self) -> Option<Box<Trusted>> {
        let dissenter = self.lone_dissenter()?;
        let tally = self.tally(&[Effect::Counts]);
        let tally = tally.of(most_observed(&self.observed)?);
        let mut trusted = tally.prove(self, &self.committee).ok()?;
        trusted.contested = Some(dissenter);
        let need = self.need();
        let count = self.question.policy.count;
        let agree = tally.count(&BTreeSet::new(), count, &self.assigned);
        let of_committee = tally.count(&BTreeSet::new(), Count::Assigned, &self.committee);
        (of_committee >= need && agree >= need.saturating_mul(2)).then_some(trusted)
    }

    /// The only principal that observed something else than the others, where that is no end of it.
    fn lone_dissenter(&self) -> Option<PrincipalId> {
        let escalates = self.question.policy.on_dissent() == OnDissent::Escalate;
        let lone = self.dissenters.first().copied();
        lone.filter(|_| escalates && self.dissenters.len() == 1)
    }

    fn disputed(&self) -> Decision {
        let gots = self.observed.values().flatten();
        Decision::Disputed {
            roots: gots.map(|(_, subject)| subject.root).collect(),
        }
    }

    /// How many principals have to agree.
    fn need(&self) -> u32 {
        let name = &self.question.candidate.release.name;
        self.question.policy.threshold_of(name)
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
    /// stating a blocked root for it, nor a principal what this client built itself, nor a lone dissenter
    /// what it does not block otherwise.
    fn blocked(&self, settled: Option<&Trusted>) -> Option<String> {
        let gots: Vec<Got> = match settled {
            Some(settled) => vec![(settled.key_id, settled.subject)],
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

    /// Who supports what with statements of these effects.
    fn tally(&self, effects: &[Effect]) -> Tally<'a> {
        let mut supporters = BTreeMap::new();
        for held in self.with(effects) {
            if let Some((principal, _)) = self.question.network.principal(held.statement.observer())
            {
                supporters.entry(principal.id).or_insert(held);
            }
        }
        Tally { supporters }
    }

    fn with(&self, effects: &[Effect]) -> impl Iterator<Item = &'a Held> {
        let chosen = self
            .statements
            .values()
            .filter(|(_, effect)| effects.contains(effect));
        chosen.map(|(held, _)| *held)
    }

    fn lines(&self, decision: &Decision) -> Vec<Line> {
        let trusted = match decision {
            Decision::Trusted(trusted) => {
                trusted.contested.map(|_| (trusted.key_id, trusted.subject))
            }
            Decision::Unproven(_)
            | Decision::Disputed { .. }
            | Decision::Stale { .. }
            | Decision::Blocked { .. } => None,
        };
        let lines = self.statements.values().map(|(held, effect)| {
            let statement = &held.statement;
            let principal = self.question.network.principal(statement.observer());
            let (work_agrees, work_differs) = self.checks.count(statement.id());
            let dissents = trusted.is_some()
                && got(statement).is_some_and(|got| Some(got) != trusted)
                && self.vetoer(held).is_some();
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
                effect: if dissents { Effect::Dissents } else { *effect },
                work_agrees,
                work_differs,
            }
        });
        lines.collect()
    }

    fn notes(&self, decision: &Decision) -> Vec<String> {
        let Some(dissenter) = self.lone_dissenter() else {
            return Vec::new();
        };
        let principal = self.question.network.principal_by_id(dissenter);
        let name = principal.map_or_else(|| dissenter.short(), |one| one.name.clone());
        let twice = self.need().saturating_mul(2);
        match decision {
            Decision::Trusted(trusted) if trusted.contested.is_some() => vec![format!(
                "contested: {name} alone observed another artifact, against {} principals",
                trusted.proof.len()
            )],
            Decision::Disputed { .. } => vec![format!(
                "{name} alone dissents: the next ranks are called, and {twice} principals have to agree against it"
            )],
            Decision::Trusted(_)
            | Decision::Unproven(_)
            | Decision::Stale { .. }
            | Decision::Blocked { .. } => Vec::new(),
        }
    }
}

/// Statements that count for nothing whoever signed them.
struct Refused {
    retracted: BTreeSet<StatementId>,
    work_differs: BTreeSet<StatementId>,
}

/// Each principal with the statement by which it supports something.
struct Tally<'a> {
    supporters: BTreeMap<PrincipalId, &'a Held>,
}

impl<'a> Tally<'a> {
    /// Only who supports this.
    fn of(mut self, what: Got) -> Self {
        self.supporters
            .retain(|_, held| got(&held.statement) == Some(what));
        self
    }

    fn count(
        &self,
        of: &BTreeSet<PrincipalId>,
        count: Count,
        assigned: &BTreeSet<PrincipalId>,
    ) -> u32 {
        let counted = self.supporters.keys();
        let counted = counted.filter(|id| counts_for(**id, of, count, assigned));
        u32::try_from(counted.count()).unwrap_or(u32::MAX)
    }

    /// All demands of the policy, where these are assigned.
    fn prove(
        &self,
        case: &Case<'_>,
        assigned: &BTreeSet<PrincipalId>,
    ) -> Result<Box<Trusted>, Unproven> {
        let policy = case.question.policy;
        let need = case.need();
        let have = self.count(&BTreeSet::new(), policy.count, assigned);
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
            let have = self.count(&group.of, group.count, assigned);
            let need = group.threshold.max(1);
            if have < need {
                return Err(unproven(have, need, &format!("of group {:?}", group.name)));
            }
        }
        let proof: Vec<&Held> = self.supporters.values().copied().collect();
        trusted(&proof).ok_or_else(|| unproven(0, need, "principals"))
    }
}

fn counts_for(
    id: PrincipalId,
    of: &BTreeSet<PrincipalId>,
    count: Count,
    assigned: &BTreeSet<PrincipalId>,
) -> bool {
    (of.is_empty() || of.contains(&id)) && (count == Count::Any || assigned.contains(&id))
}

fn trusted(proof: &[&Held]) -> Option<Box<Trusted>> {
    let first = proof.first()?;
    let (key_id, subject) = got(&first.statement)?;
    Some(Box::new(Trusted {
        key: first.statement.key().clone(),
        key_id,
        subject,
        proof: proof.iter().map(|held| held.statement.id()).collect(),
        contested: None,
    }))
}
