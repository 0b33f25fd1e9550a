//! Who is to rebuild what: committees by rank, the ranks that a dissent calls, and [audits](audit).
//!
//! All verifiers of a target are ranked for each release by a hash that nothing enters which a
//! publisher may vary, and no time, so there is no drawing twice. The first `m` are the release's
//! committee; the next `m` are called when a principal dissents, and so on. Anybody can compute it from
//! the manifest in force, so silence is visible.

pub mod audit;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::candidate::Candidate;
use crate::decide::{Held, dissenters, observed};
use crate::hash::{Blake3, Fields, KeyId, PrincipalId};
use crate::manifest::Network;
use crate::time::{DAY_SECONDS, UnixTime};

/// Calls by one dissenter that a verifier answers in a day: a liar cannot make everybody build for
/// nothing all day.
pub const CALLS_A_DAY_MAX: usize = 10;

/// All verifiers of a target with a toolchain, ranked for one release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ranking {
    size: usize,
    ranks: Vec<Rank>,
}

/// A place in a ranking.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Rank {
    /// What decides: `derive_key("qk committee v1", seed, registry, name, version, source, target,
    /// principal)`, ids raw and texts with their length before them. The lowest is first.
    pub digest: Blake3,
    /// Who has it.
    pub principal: PrincipalId,
}

/// Why somebody is to rebuild something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "duty", rename_all = "lowercase")]
pub enum Duty {
    /// It is of the committee.
    Assigned,
    /// A dissent called its rank.
    Called {
        /// Whose dissent; [`Calls`] counts them.
        by: PrincipalId,
    },
}

impl Ranking {
    /// The ranking for a candidate under the manifest in force. Which toolchain is meant matters only
    /// where the manifest says that a verifier lacks it.
    pub fn of(network: &Network, candidate: &Candidate) -> Self {
        let manifest = network.manifest();
        let (release, build) = (&candidate.release, &candidate.build);
        // The same for all of them.
        let release = Fields::derive("qk committee v1")
            .id(&manifest.committee.seed.0)
            .text(&release.registry)
            .text(&release.name)
            .text(&release.version)
            .id(&candidate.source.0)
            .text(&build.target);
        let rank = |principal: PrincipalId| release.clone().id(&principal.0).finish();
        let verifiers = manifest.principals.iter();
        let verifiers = verifiers.filter(|one| one.verifies(&build.target, &build.rustc.version));
        let mut ranks: Vec<Rank> = verifiers
            .map(|one| Rank {
                digest: Blake3(rank(one.id)),
                principal: one.id,
            })
            .collect();
        ranks.sort_unstable();
        Self {
            size: manifest.committee.size as usize,
            ranks,
        }
    }

    /// Members of one round; never 0.
    pub fn size(&self) -> usize {
        self.size.max(1)
    }

    /// All of them, first rank first.
    pub fn ranks(&self) -> &[Rank] {
        &self.ranks
    }

    /// Members of the first `rounds` rounds: one round is the committee.
    pub fn first(&self, rounds: usize) -> BTreeSet<PrincipalId> {
        let members = self.ranks.iter().take(self.size.saturating_mul(rounds));
        members.map(|rank| rank.principal).collect()
    }

    /// The committee.
    pub fn committee(&self) -> BTreeSet<PrincipalId> {
        self.first(1)
    }

    /// In which round somebody is called; 0 for the committee, `None` for who is not ranked.
    pub fn round_of(&self, principal: PrincipalId) -> Option<usize> {
        let mut ranks = self.ranks.iter();
        let place = ranks.position(|rank| rank.principal == principal)?;
        Some(place / self.size())
    }
}

/// Why `principal` is to rebuild a candidate, if it is and has not done so yet. Each dissenter calls one
/// round, in the order of their ids, whatever policy clients have: the more there are, the more people
/// want to know.
pub fn duty(
    network: &Network,
    candidate: &Candidate,
    held: &[Held],
    principal: PrincipalId,
) -> Option<Duty> {
    let round = Ranking::of(network, candidate).round_of(principal)?;
    let observed = observed(network, candidate, held);
    if observed.contains_key(&principal) {
        return None;
    }
    match round.checked_sub(1) {
        None => Some(Duty::Assigned),
        Some(call) => {
            let by = dissenters(&observed).into_iter().nth(call)?;
            Some(Duty::Called { by })
        }
    }
}

/// The calls that a verifier has answered, kept by itself: [`CALLS_A_DAY_MAX`] of each dissenter in a
/// day of its own clock, so that nothing that a dissenter writes into its statements raises the number.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Calls {
    day: u64,
    answered: BTreeMap<PrincipalId, BTreeSet<KeyId>>,
}

impl Calls {
    /// Whether a call is to be answered today; if so, it is counted. The same one counts once a day.
    pub fn answer(&mut self, by: PrincipalId, key: KeyId, now: UnixTime) -> bool {
        let day = now.0 / DAY_SECONDS;
        if day != self.day {
            *self = Self {
                day,
                ..Self::default()
            };
        }
        let answered = self.answered.entry(by).or_default();
        if !answered.contains(&key) && answered.len() >= CALLS_A_DAY_MAX {
            return false;
        }
        answered.insert(key);
        true
    }
}

#[cfg(test)]
mod tests;
