//! Copied observations: what rebuilders say of each other's `work`.
//!
//! Whoever builds a key can check everybody's work digest, and whoever only copied a root cannot make
//! one. But a single accuser may lie, and strangers are whoever they like to be. So an observation is
//! dropped only when two assigned principals say that its `work` differs, whose own `work` agrees, as the
//! later of the two says of the earlier one. A client checks none of it itself: it did not build.

use std::collections::{BTreeMap, BTreeSet};

use super::Held;
use super::observed::got;
use crate::hash::{PrincipalId, StatementId};
use crate::statement::Observation;

/// An observation with a principal behind it.
#[derive(Debug, Clone, Copy)]
struct Judge<'a> {
    principal: PrincipalId,
    held: &'a Held,
    observation: &'a Observation,
}

impl<'a> Judge<'a> {
    fn new(principal: PrincipalId, held: &'a Held) -> Option<Self> {
        let observation = held.statement.observation()?;
        observation.work.is_some().then_some(Self {
            principal,
            held,
            observation,
        })
    }

    /// Only who got the same artifact can know, and nobody speaks for itself.
    fn may_judge(&self, other: &Self) -> bool {
        self.principal != other.principal && got(&self.held.statement) == got(&other.held.statement)
    }

    fn says_of(&self, other: &Self) -> Option<bool> {
        let id = other.held.statement.id();
        self.observation.work_checks.get(&id).copied()
    }
}

/// What principals say of each other's `work`.
#[derive(Debug)]
pub(super) struct Checks<'a> {
    /// By the observation that is judged: who said so, and whether it agrees.
    said: BTreeMap<StatementId, Vec<(Judge<'a>, bool)>>,
}

impl<'a> Checks<'a> {
    /// Of observations with the principals behind them.
    pub(super) fn of(observations: impl Iterator<Item = (PrincipalId, &'a Held)>) -> Self {
        let judges = observations.filter_map(|(principal, held)| Judge::new(principal, held));
        let judges: BTreeMap<_, _> = judges.map(|one| (one.held.statement.id(), one)).collect();
        let mut said: BTreeMap<StatementId, Vec<(Judge<'a>, bool)>> = BTreeMap::new();
        for judge in judges.values() {
            for (id, agrees) in &judge.observation.work_checks {
                if judges.get(id).is_some_and(|other| judge.may_judge(other)) {
                    said.entry(*id).or_default().push((*judge, *agrees));
                }
            }
        }
        Self { said }
    }

    /// Observations that are dropped for their `work`. What becomes of the accusers' own observations
    /// does not matter, so that no order does.
    pub(super) fn dropped(&self, assigned: &BTreeSet<PrincipalId>) -> BTreeSet<StatementId> {
        let dropped = self.said.iter().filter(|(_, said)| {
            let differs = said
                .iter()
                .filter(|(judge, agrees)| !agrees && assigned.contains(&judge.principal));
            let accusers: BTreeMap<StatementId, Judge<'a>> = differs
                .map(|(judge, _)| (judge.held.statement.id(), *judge))
                .collect();
            accusers.values().any(|one| is_seconded(one, &accusers))
        });
        dropped.map(|(id, _)| *id).collect()
    }

    /// How many principals say of an observation that its `work` agrees, and that it differs.
    pub(super) fn count(&self, id: StatementId) -> (u32, u32) {
        let said = self.said.get(&id).map_or(&[][..], Vec::as_slice);
        let count = |which: bool| {
            let those = said.iter().filter(|(_, agrees)| *agrees == which);
            let those: BTreeSet<_> = those.map(|(judge, _)| judge.principal).collect();
            u32::try_from(those.len()).unwrap_or(u32::MAX)
        };
        (count(true), count(false))
    }
}

/// Whether the `work` of another accuser agrees with this one's, as one of the two says and the
/// other does not deny.
fn is_seconded(one: &Judge<'_>, accusers: &BTreeMap<StatementId, Judge<'_>>) -> bool {
    let mut checks = one.observation.work_checks.iter();
    checks.any(|(id, agrees)| {
        let second = accusers.get(id).filter(|second| one.may_judge(second));
        second.is_some_and(|second| *agrees && second.says_of(one) != Some(false))
    })
}
