//! The roll of a candidate: who is assigned, who was called, who answered and who is silent.
//!
//! It decides nothing. It says openly what [`decide`](super::decide()) draws, with all that enters the
//! hashes, so that a person can draw again.

use serde::{Deserialize, Serialize};

use super::Held;
use super::observed::{about, dissenters, observed_in, vetoer};
use crate::assign::{Rank, Ranking};
use crate::candidate::Candidate;
use crate::hash::{Blake3, PrincipalId, Sha256};
use crate::key::Release;
use crate::manifest::Network;
use crate::statement::Body;

/// Everybody who is ranked for a candidate. Beside the principals, what enters their
/// [digests](crate::assign::Rank::digest).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Roll {
    /// The network's seed.
    pub seed: Blake3,
    /// The release.
    pub release: Release,
    /// Checksum of its source.
    pub source: Sha256,
    /// Rust's target triple.
    pub target: String,
    /// Members of one round; the first one is the committee.
    pub size: u32,
    /// Rounds that are called: the committee, and one more for each dissenter.
    pub rounds: usize,
    /// All verifiers of the target that have the toolchain, first rank first.
    pub seats: Vec<Seat>,
}

/// Somebody who is ranked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Seat {
    /// What ranks it.
    pub digest: Blake3,
    /// Who it is.
    pub principal: PrincipalId,
    /// Its name.
    pub name: String,
    /// In which round it is called; 0 for the committee.
    pub round: usize,
    /// Whether that round is called.
    pub called: bool,
    /// What it said.
    pub said: Said,
}

/// What somebody said of a candidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Said {
    /// Nothing that arrived here.
    Nothing,
    /// That it could not be built.
    Failure,
    /// What came out.
    Observation,
}

impl Roll {
    /// The roll of a candidate under the manifest in force.
    pub fn of(network: &Network, candidate: &Candidate, statements: &[Held]) -> Self {
        let held = about(candidate, statements);
        let observed = observed_in(network, held.values().copied());
        let rounds = 1 + dissenters(&observed).len();
        let ranking = Ranking::of(network, candidate);
        let said = |principal| {
            let own = held
                .values()
                .filter(|one| vetoer(network, one) == Some(principal));
            own.map(|one| match one.statement.body() {
                Body::Observation(_) => Said::Observation,
                Body::Failure(_) => Said::Failure,
                Body::Retraction(_) => Said::Nothing,
            })
            .max()
            .unwrap_or(Said::Nothing)
        };
        let seat = |(place, rank): (usize, &Rank)| {
            let round = place / ranking.size();
            let known = network.principal_by_id(rank.principal);
            Seat {
                digest: rank.digest,
                principal: rank.principal,
                name: known.map_or_else(String::new, |one| one.name.clone()),
                round,
                called: round < rounds,
                said: said(rank.principal),
            }
        };
        Self {
            seed: network.manifest().committee.seed,
            release: candidate.release.clone(),
            source: candidate.source,
            target: candidate.build.target.clone(),
            size: network.manifest().committee.size,
            rounds,
            seats: ranking.ranks().iter().enumerate().map(seat).collect(),
        }
    }

    /// Those who are called and said nothing that arrived here.
    pub fn silent(&self) -> impl Iterator<Item = &Seat> {
        let called = self.seats.iter().filter(|seat| seat.called);
        called.filter(|seat| seat.said == Said::Nothing)
    }
}
