//! What is known of crates: by name, executable, target and state of proof.
//!
//! A search decides nothing that a fetch relies on. It goes through statements that somebody already
//! has, and says of each artifact key what the policy makes of them now. That the source of a key is the
//! one that the registry lists is checked when it is fetched, and not here; and what no principal
//! states anything about is left out, since strangers can state what they like.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use semver::Version;
use serde::{Deserialize, Serialize};

use crate::candidate::Wanted;
use crate::decide::{Decision, Effect, Held, Question, choose, decide};
use crate::hash::{PublicKey, Root, Sha256};
use crate::key::{NAME_BYTES_MAX, Release};
use crate::manifest::Network;
use crate::policy::Policy;
use crate::time::UnixTime;

/// Targets that one search may name.
pub const SEARCH_TARGETS_MAX: usize = 64;

/// What is looked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Query {
    /// Part of a crate's name or of the name of an executable, whatever its case, with `_` the same as
    /// `-`; empty for everything.
    pub text: String,
    /// Only what has an executable of exactly this name.
    pub bin: Option<String>,
    /// Only these targets; all, if none is named.
    pub targets: BTreeSet<String>,
    /// Only what is proven.
    pub proven: bool,
    /// Every release, not only the newest and the newest that is proven.
    pub all: bool,
}

/// What a search goes through.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    /// The network that it is stated in.
    pub network: &'a Network,
    /// The stricter of the user's and the manifest's policy.
    pub policy: &'a Policy,
    /// This client's own key.
    pub own: Option<PublicKey>,
    /// Statements, in any order.
    pub statements: &'a [Held],
    /// The executables of artifacts, as far as they are known.
    pub executables: &'a BTreeMap<Root, BTreeSet<String>>,
    /// The time.
    pub now: UnixTime,
}

/// What was found: a crate in one version, for one target, with one choice of features.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Hit {
    /// The crate and where it comes from.
    #[serde(flatten)]
    pub release: Release,
    /// Rust's target triple.
    pub target: String,
    /// Features beside the default ones.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub features: BTreeSet<String>,
    /// Whether the default features are on.
    pub default_features: bool,
    /// What the policy makes of what is known.
    pub state: State,
    /// Principals whose observations count.
    pub principals: usize,
    /// When the newest of these ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newest: Option<UnixTime>,
    /// The root that is trusted, or the only one that principals observed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<Root>,
    /// Bytes of that artifact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Its executables; absent where they are not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub executables: Option<BTreeSet<String>>,
}

/// What a policy makes of what is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It would be trusted.
    Proven,
    /// Too few principals observed it, or none.
    Unproven,
    /// Principals observed different artifacts.
    Disputed,
    /// The network says that nobody is to take it.
    Blocked,
    /// What is known is too old, or the network's timestamp is.
    Stale,
}

impl State {
    fn of(decision: &Decision) -> Self {
        match decision {
            Decision::Trusted(_) => Self::Proven,
            Decision::Unproven(_) => Self::Unproven,
            Decision::Disputed { .. } => Self::Disputed,
            Decision::Blocked { .. } => Self::Blocked,
            Decision::Stale { .. } => Self::Stale,
        }
    }
}

impl Query {
    /// Checks what the types do not say.
    ///
    /// # Errors
    /// When a text is longer than any name, or too many targets are named.
    pub fn check(&self) -> Result<(), String> {
        let texts = [Some(&self.text), self.bin.as_ref()].into_iter().flatten();
        if texts
            .chain(&self.targets)
            .any(|text| text.len() > NAME_BYTES_MAX)
        {
            return Err(format!("no name has more than {NAME_BYTES_MAX} bytes"));
        }
        if self.targets.len() > SEARCH_TARGETS_MAX {
            return Err(format!("at most {SEARCH_TARGETS_MAX} targets"));
        }
        Ok(())
    }

    /// Whether a crate of this name may be among what is found, whatever its executables are.
    pub fn names(&self, krate: &str) -> bool {
        plain(krate).contains(&plain(&self.text))
    }

    /// Whether an artifact with these executables may be among what is found, whatever its crate is.
    pub fn runs(&self, executables: &BTreeSet<String>) -> bool {
        match &self.bin {
            Some(bin) => executables.contains(bin),
            None => executables.iter().any(|one| self.names(one)),
        }
    }

    fn wants(&self, hit: &Hit) -> bool {
        let runs = hit.executables.as_ref().is_some_and(|all| self.runs(all));
        let is_named = match self.bin {
            Some(_) => self.names(&hit.release.name) && runs,
            None => self.names(&hit.release.name) || runs,
        };
        is_named
            && (self.targets.is_empty() || self.targets.contains(&hit.target))
            && (!self.proven || hit.state == State::Proven)
    }

    /// The best first: what is called so, what runs under that name, what begins so, the rest.
    fn rank(&self, hit: &Hit) -> u8 {
        let (text, name) = (plain(&self.text), plain(&hit.release.name));
        let bins = hit.executables.iter().flatten().map(|bin| plain(bin));
        let bins: Vec<String> = bins.collect();
        if name == text {
            0
        } else if bins.contains(&text) {
            1
        } else if name.starts_with(&text) {
            2
        } else {
            3
        }
    }
}

/// As registries compare names.
fn plain(name: &str) -> String {
    name.to_lowercase().replace('_', "-")
}

/// What a key is one of, however it is built.
type Group<'a> = (
    Release,
    &'a str,
    Sha256,
    &'a BTreeSet<String>,
    bool,
    &'a BTreeSet<String>,
);

/// Goes through what is known; the best hits first.
pub fn search(query: &Query, known: &Known<'_>) -> Vec<Hit> {
    let mut groups: BTreeMap<Group<'_>, Vec<Held>> = BTreeMap::new();
    for held in known.statements {
        let (key, observer) = (held.statement.key(), held.statement.observer());
        let counts = known.network.principal(observer).is_some() || known.own == Some(observer);
        if counts && held.statement.network() == known.network.id() {
            let flags = &key.flags;
            let group = (
                key.release(),
                key.target.as_str(),
                flags.source,
                &flags.features,
                flags.default_features,
                &flags.rustflags,
            );
            groups.entry(group).or_default().push(held.clone());
        }
    }
    let hits = groups
        .into_iter()
        .map(|(group, held)| hit(known, group, &held));
    let mut hits: Vec<Hit> = hits.filter(|hit| query.wants(hit)).collect();
    // All releases of a crate stand together, where the best of them belongs.
    let mut ranks: BTreeMap<String, u8> = BTreeMap::new();
    for hit in &hits {
        let rank = ranks.entry(hit.release.name.clone()).or_insert(u8::MAX);
        *rank = (*rank).min(query.rank(hit));
    }
    hits.sort_by_cached_key(|hit| {
        let name = hit.release.name.clone();
        let newest_first = std::cmp::Reverse(Version::parse(&hit.release.version).ok());
        (
            ranks[&name],
            name,
            newest_first,
            hit.state,
            hit.target.clone(),
        )
    });
    if !query.all {
        newest(&mut hits);
    }
    hits
}

fn hit(known: &Known<'_>, group: Group<'_>, held: &[Held]) -> Hit {
    let (release, target, source, features, default_features, rustflags) = group;
    let wanted = Wanted {
        release: release.clone(),
        source,
        targets: vec![target.to_owned()],
        features: features.clone(),
        default_features,
        rustflags: rustflags.clone(),
    };
    let candidates = wanted.candidates(&known.network.manifest().builds);
    let verdicts = candidates.iter().map(|candidate| {
        decide(&Question {
            policy: known.policy,
            network: known.network,
            candidate,
            own: known.own,
            statements: held,
            now: known.now,
        })
    });
    let verdict = choose(verdicts).map(|(_, verdict)| verdict);
    let decision = verdict.as_ref().map(|verdict| &verdict.decision);
    let lines = verdict.iter().flat_map(|verdict| &verdict.lines);
    let counting: Vec<_> = lines.filter(|line| line.effect == Effect::Counts).collect();
    let names: BTreeSet<_> = counting.iter().map(|line| &line.principal).collect();
    let observed = held.iter().filter_map(|one| one.statement.observation());
    let subjects: BTreeSet<_> = observed.map(|one| one.subject).collect();
    let subject = match decision {
        Some(Decision::Trusted(trusted)) => Some(trusted.subject),
        _ if subjects.len() == 1 => subjects.first().copied(),
        _ => None,
    };
    let mut roots = subjects.iter().map(|subject| subject.root);
    let executables = subject
        .and_then(|subject| known.executables.get(&subject.root))
        .or_else(|| roots.find_map(|root| known.executables.get(&root)));
    Hit {
        release,
        target: target.to_owned(),
        features: features.clone(),
        default_features,
        // No toolchain of the network's makes it any more.
        state: decision.map_or(State::Unproven, State::of),
        principals: names.len(),
        newest: counting.iter().map(|line| line.at).max(),
        root: subject.map(|subject| subject.root),
        size: subject.map(|subject| subject.size),
        executables: executables.cloned(),
    }
}

/// Leaves the newest release of each crate, target and choice of features, and the newest that is
/// proven.
fn newest(hits: &mut Vec<Hit>) {
    let mut seen = BTreeSet::new();
    hits.retain(|hit| {
        let Release { registry, name, .. } = &hit.release;
        let of = (registry.clone(), name.clone(), hit.target.clone());
        let of = (of, hit.features.clone(), hit.default_features);
        let is_newest = seen.insert((of.clone(), false));
        let is_newest_proven = hit.state == State::Proven && seen.insert((of, true));
        is_newest || is_newest_proven
    });
}

/// The crate that an envelope says that it is about. Its signature is not looked at: only to pass over
/// what is not looked for before the costly part.
pub fn crate_of(envelope: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Envelope {
        payload: String,
    }
    #[derive(Deserialize)]
    struct Payload {
        predicate: Predicate,
    }
    #[derive(Deserialize)]
    struct Predicate {
        key: Key,
    }
    #[derive(Deserialize)]
    struct Key {
        name: String,
    }
    let envelope: Envelope = serde_json::from_slice(envelope).ok()?;
    let payload = STANDARD.decode(envelope.payload).ok()?;
    let payload: Payload = serde_json::from_slice(&payload).ok()?;
    Some(payload.predicate.key.name)
}

#[cfg(test)]
mod tests;
