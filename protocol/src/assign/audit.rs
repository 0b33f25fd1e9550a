//! Audits: what a verifier rebuilds that nobody assigned to it.
//!
//! It takes entries near random points of the key space, asked of several nodes, and chooses one of
//! them. Randomness comes from the caller.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::candidate::Candidate;
use crate::hash::{KeyId, PrincipalId};
use crate::key::ArtifactKey;
use crate::manifest::{KeyState, Network};
use crate::statement::{Observation, Statement, Subject};
use crate::time::{DAY_SECONDS, UnixTime};

/// Share of audits in which all that principals state has the same chance, in percent: whatever the
/// weights miss is looked at all the same.
pub const UNIFORM_PERCENT: u64 = 20;
/// Share of audits that goes to what only strangers state, in percent, and no more: anybody can state
/// anything.
pub const STRANGERS_PERCENT: u64 = 5;
/// Weeks without an observation that add to a weight; later ones add nothing.
const AGE_WEEKS_MAX: u64 = 26;
/// How much each missing proof adds to a weight.
const MISSING_WEIGHT: u64 = 4;
/// How often a stranger's dissent multiplies a weight, however many strangers there are.
const DISSENT_FACTOR: u64 = 4;

/// Something that may be audited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What.
    pub key: ArtifactKey,
    /// Its weight among the others; never 0.
    pub weight: u64,
    /// Whether no principal observed it.
    pub strangers_only: bool,
}

/// The entries among statements: keys of the manifest's registries and builds that somebody observed,
/// sorted by key id. A weight grows with the principals that are missing to the manifest's threshold,
/// with the time since anybody observed it, and by a stranger's dissent.
pub fn entries(network: &Network, statements: &[Arc<Statement>], now: UnixTime) -> Vec<Entry> {
    let mut by_key: BTreeMap<KeyId, Vec<&Statement>> = BTreeMap::new();
    for one in statements {
        if one.network() == network.id() && is_built(network, one.key()) {
            by_key.entry(one.key_id()).or_default().push(one);
        }
    }
    let entries = by_key
        .values()
        .filter_map(|of_key| entry(network, of_key, now));
    entries.collect()
}

/// Whether clients of the network may take it at all: nobody is to build the rest.
pub fn is_built(network: &Network, key: &ArtifactKey) -> bool {
    let manifest = network.manifest();
    let build = Candidate::of(key).build;
    manifest.registries.contains(&key.registry) && manifest.builds.contains(&build)
}

fn entry(network: &Network, of_key: &[&Statement], now: UnixTime) -> Option<Entry> {
    let mut by_principal: BTreeMap<PrincipalId, Subject> = BTreeMap::new();
    let mut by_strangers: Vec<Subject> = Vec::new();
    let mut newest: Option<&Observation> = None;
    for one in of_key {
        let Some(observation) = one.observation() else {
            continue;
        };
        match network.principal(one.observer()) {
            Some((principal, key))
                if principal.observes() && key.state != KeyState::Compromised =>
            {
                by_principal.insert(principal.id, observation.subject);
                if newest.is_none_or(|newest| newest.finished < observation.finished) {
                    newest = Some(observation);
                }
            }
            Some(_) | None => by_strangers.push(observation.subject),
        }
    }
    if by_principal.is_empty() && by_strangers.is_empty() {
        return None;
    }
    let key = of_key.first()?.key().clone();
    let need = network.manifest().policy.threshold_of(&key.name);
    let have = u32::try_from(by_principal.len()).unwrap_or(u32::MAX);
    let missing = u64::from(need.saturating_sub(have)).min(100);
    // What strangers say of the time is nothing to go by.
    let age = newest.map_or(0, |newest| now.since(newest.finished) / (7 * DAY_SECONDS));
    let known = |subject| by_principal.values().any(|one| *one == subject);
    let dissent = !by_principal.is_empty() && by_strangers.into_iter().any(|one| !known(one));
    Some(Entry {
        key,
        weight: (1 + MISSING_WEIGHT * missing)
            * (1 + age.min(AGE_WEEKS_MAX))
            * if dissent { DISSENT_FACTOR } else { 1 },
        strangers_only: by_principal.is_empty(),
    })
}

/// Chooses one of the entries near random points. The first random number decides in which way: with
/// the same chance for all that principals state ([`UNIFORM_PERCENT`]), among what only strangers state
/// ([`STRANGERS_PERCENT`]), or by weight. Where strangers state nothing, their share goes to the others,
/// and never the other way round: then there is nothing to choose.
pub fn choose(entries: &[Entry], random: [u64; 2]) -> Option<&Entry> {
    let [way, which] = random;
    let way = way % 100;
    let strangers = (UNIFORM_PERCENT..UNIFORM_PERCENT + STRANGERS_PERCENT).contains(&way)
        && entries.iter().any(|entry| entry.strangers_only);
    let weight = |entry: &Entry| match way < UNIFORM_PERCENT || strangers {
        true => 1,
        false => entry.weight,
    };
    let mut those = entries
        .iter()
        .filter(|entry| entry.strangers_only == strangers);
    let total: u64 = those.clone().map(weight).sum();
    let mut left = which.checked_rem(total)?;
    those.find(|entry| match left.checked_sub(weight(entry)) {
        Some(rest) => {
            left = rest;
            false
        }
        None => true,
    })
}

#[cfg(test)]
mod tests;
