//! What principals observed of a candidate, and who dissents.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::Held;
use crate::candidate::Candidate;
use crate::hash::{KeyId, PrincipalId, StatementId};
use crate::manifest::{KeyState, Network};
use crate::statement::{Statement, Subject};

/// What somebody got: artifacts of keys with different locks are different artifacts.
pub(super) type Got = (KeyId, Subject);

/// What each principal observed, retracted observations included.
pub(crate) type Observed = BTreeMap<PrincipalId, BTreeSet<Got>>;

/// What each principal observed of a candidate, as far as its keys may speak.
pub(crate) fn observed(network: &Network, candidate: &Candidate, statements: &[Held]) -> Observed {
    observed_in(network, about(candidate, statements).into_values())
}

pub(super) fn observed_in<'a>(network: &Network, held: impl Iterator<Item = &'a Held>) -> Observed {
    let mut observed = Observed::new();
    for one in held {
        if let (Some(principal), Some(got)) = (vetoer(network, one), got(&one.statement)) {
            observed.entry(principal).or_default().insert(got);
        }
    }
    observed
}

/// What most principals observed; the first of them where as many observed others.
pub(super) fn most_observed(observed: &Observed) -> Option<Got> {
    let mut by_got: BTreeMap<Got, usize> = BTreeMap::new();
    for got in observed.values().flatten() {
        *by_got.entry(*got).or_default() += 1;
    }
    let most = by_got
        .into_iter()
        .max_by_key(|(got, count)| (*count, Reverse(*got)));
    most.map(|(got, _)| got)
}

/// Principals that observed another artifact than most did, one more than that included. Sorted.
pub(crate) fn dissenters(observed: &Observed) -> BTreeSet<PrincipalId> {
    let most = most_observed(observed);
    let dissents = |gots: &BTreeSet<Got>| gots.iter().any(|got| Some(*got) != most);
    let those = observed.iter().filter(|(_, gots)| dissents(gots));
    those.map(|(principal, _)| *principal).collect()
}

/// The statements about a candidate, each once.
pub(super) fn about<'a>(
    candidate: &Candidate,
    statements: &'a [Held],
) -> BTreeMap<StatementId, &'a Held> {
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

/// The principal whose statement this is, if its key may speak at all: also against a root.
pub(super) fn vetoer(network: &Network, held: &Held) -> Option<PrincipalId> {
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

pub(super) fn got(statement: &Statement) -> Option<Got> {
    let observation = statement.observation()?;
    Some((statement.key_id(), observation.subject))
}
