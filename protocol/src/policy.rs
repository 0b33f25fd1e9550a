//! What a client asks before it trusts.
//!
//! A policy is written by the user and by the manifest; where both speak, the stricter holds
//! ([`Policy::stricter`]). [`decide`](crate::decide::decide) applies it.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::hash::PrincipalId;
use crate::manifest::{KeyState, Manifest};

/// How many distinct principals have to agree unless somebody says otherwise.
pub const THRESHOLD_DEFAULT: u32 = 2;
/// Most groups, principals or overrides in one policy.
pub const POLICY_LIST_MAX: usize = 1024;

/// What a client asks before it trusts a root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// Distinct principals that have to have observed the same root.
    pub threshold: u32,
    /// Which principals count towards the threshold.
    pub count: Count,
    /// Only these principals count, if any are named; otherwise all that the manifest names.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub principals: BTreeSet<PrincipalId>,
    /// Further demands, all of which have to be met.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<Group>,
    /// Oldest observation that counts, in days.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_age_days: Option<u32>,
    /// What a dissent does: `refuse`, unless one of the policies says otherwise. `None` has no opinion, so
    /// that who only asks for more principals does not also end a network's escalation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_dissent: Option<OnDissent>,
    /// Share of fetches that this client rebuilds itself, in percent.
    pub rebuild_percent: u8,
    /// Other thresholds for single crates.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub crates: BTreeMap<String, Override>,
}

/// Which principals count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Count {
    /// Every one that the policy names.
    Any,
    /// Only the key's committee.
    Assigned,
}

/// What a dissent does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum OnDissent {
    /// The next ranks are called; against twice the threshold one dissenter alone does not refuse.
    Escalate,
    /// Nothing is trusted.
    Refuse,
}

/// A demand of its own: so many of these.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// A name for people.
    pub name: String,
    /// Distinct principals of this group that have to have observed the root.
    pub threshold: u32,
    /// Who belongs to it; empty for all that the manifest names.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub of: BTreeSet<PrincipalId>,
    /// Whether only the key's committee counts.
    #[serde(default = "any")]
    pub count: Count,
}

/// What one crate needs instead. Only a stricter value has an effect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Override {
    /// Distinct principals that have to agree.
    pub threshold: u32,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            threshold: THRESHOLD_DEFAULT,
            count: Count::Any,
            principals: BTreeSet::new(),
            groups: Vec::new(),
            max_age_days: None,
            on_dissent: Some(OnDissent::Refuse),
            rebuild_percent: 0,
            crates: BTreeMap::new(),
        }
    }
}

impl Policy {
    /// Checks what the types do not say.
    ///
    /// # Errors
    /// Says what is wrong: a threshold of zero would trust what nobody observed.
    pub fn check(&self) -> Result<(), String> {
        let overrides = self
            .crates
            .iter()
            .map(|(name, over)| (name.as_str(), over.threshold));
        let groups = self
            .groups
            .iter()
            .map(|group| (group.name.as_str(), group.threshold));
        for (name, threshold) in overrides.chain(groups).chain([("policy", self.threshold)]) {
            if threshold == 0 {
                return Err(format!(
                    "{name}: a threshold of 0 would trust what nobody observed"
                ));
            }
        }
        if self.rebuild_percent > 100 {
            return Err("rebuild_percent is a share from 0 to 100".to_owned());
        }
        if self
            .groups
            .len()
            .max(self.principals.len())
            .max(self.crates.len())
            > POLICY_LIST_MAX
        {
            return Err("a list of more than 1024 entries in a policy".to_owned());
        }
        Ok(())
    }

    /// How many distinct principals a crate needs; never none. Names are compared as registries
    /// do, so that an override for `serde_json` is not lost on `serde-json`.
    pub fn threshold_of(&self, name: &str) -> u32 {
        let overrides = self
            .crates
            .iter()
            .filter(|(other, _)| same_crate(other, name))
            .map(|(_, over)| over.threshold);
        // A policy that nobody checked must not trust what nobody observed.
        overrides.fold(self.threshold, u32::max).max(1)
    }

    /// What a dissent does.
    pub fn on_dissent(&self) -> OnDissent {
        self.on_dissent.unwrap_or(OnDissent::Refuse)
    }

    /// The policy of a network, which has the last word where nobody has an opinion: what others join with
    /// it may be stricter on a dissent, and not more lenient.
    #[must_use]
    pub fn with_opinion(&self) -> Self {
        Self {
            on_dissent: Some(self.on_dissent()),
            ..self.clone()
        }
    }

    /// Why nothing for a target can be trusted in a network, whoever agrees: each demand that asks for more
    /// principals than the manifest names. None where all can be met.
    pub fn shortages(&self, manifest: &Manifest, target: &str) -> Vec<String> {
        let any: BTreeSet<PrincipalId> = manifest
            .principals
            .iter()
            .filter(|one| one.observes())
            .filter(|one| one.keys.iter().any(|key| key.state == KeyState::Active))
            .map(|one| one.id)
            .collect();
        let builds = manifest.builds.iter().filter(|one| one.target == target);
        let assigned = builds.map(|build| {
            let verifiers = manifest
                .principals
                .iter()
                .filter(|one| any.contains(&one.id) && one.verifies(target, &build.rustc.version));
            verifiers.map(|one| one.id).collect::<BTreeSet<_>>()
        });
        // What one compiler's committee can prove suffices.
        let assigned = assigned.max_by_key(BTreeSet::len).unwrap_or_default();
        let size = manifest.committee.size as usize;
        let at_most = |count: Count, of: &BTreeSet<PrincipalId>| {
            let among = |all: &BTreeSet<PrincipalId>| match of.is_empty() {
                true => all.len(),
                false => all.intersection(of).count(),
            };
            match count {
                Count::Any => among(&any),
                Count::Assigned => among(&assigned).min(size),
            }
        };
        let mut demands = vec![("the policy", self.threshold, self.count, &self.principals)];
        demands.extend(
            self.groups
                .iter()
                .map(|group| (group.name.as_str(), group.threshold, group.count, &group.of)),
        );
        demands.extend(
            self.crates
                .iter()
                .map(|(name, over)| (name.as_str(), over.threshold, self.count, &self.principals)),
        );
        let short =
            demands
                .into_iter()
                .filter_map(|(name, threshold, count, of)| {
                    let have = at_most(count, of);
                    let counted = match count {
                        Count::Any => "can observe",
                        Count::Assigned => "can be assigned",
                    };
                    (have < threshold as usize).then(|| {
                format!("{name} asks for {threshold} principals, and {have} that count {counted}")
            })
                });
        short.collect()
    }

    /// Whether this client rebuilds what it fetches this time; `random` is the caller's.
    pub fn rebuilds(&self, random: u64) -> bool {
        random % 100 < u64::from(self.rebuild_percent)
    }

    /// What satisfies both: the higher threshold, the shorter age, all groups, and only principals
    /// that both name.
    #[must_use]
    pub fn stricter(&self, other: &Self) -> Self {
        let mut crates = self.crates.clone();
        for (name, over) in &other.crates {
            let entry = crates.entry(name.clone()).or_insert_with(|| over.clone());
            entry.threshold = entry.threshold.max(over.threshold);
        }
        Self {
            threshold: self.threshold.max(other.threshold),
            count: self.count.max(other.count),
            principals: both(&self.principals, &other.principals),
            groups: [&self.groups[..], &other.groups[..]].concat(),
            max_age_days: match (self.max_age_days, other.max_age_days) {
                (Some(one), Some(two)) => Some(one.min(two)),
                (one, two) => one.or(two),
            },
            on_dissent: self.on_dissent.max(other.on_dissent),
            rebuild_percent: self.rebuild_percent.max(other.rebuild_percent),
            crates,
        }
    }
}

/// Names nobody: no manifest may give it to a principal.
pub(crate) const NOBODY: PrincipalId = PrincipalId([0; 32]);

/// Two lists where an empty one means everybody. Where they have nobody in common, the result names
/// [`NOBODY`], because an empty list would mean everybody again.
fn both(one: &BTreeSet<PrincipalId>, two: &BTreeSet<PrincipalId>) -> BTreeSet<PrincipalId> {
    match (one.is_empty(), two.is_empty()) {
        (true, _) => two.clone(),
        (_, true) => one.clone(),
        (false, false) => {
            let common: BTreeSet<_> = one.intersection(two).copied().collect();
            if common.is_empty() {
                return [NOBODY].into();
            }
            common
        }
    }
}

/// Whether a registry would refuse one name because the other one is taken.
fn same_crate(one: &str, other: &str) -> bool {
    let fold = |c: u8| match c {
        b'-' => b'_',
        _ => c.to_ascii_lowercase(),
    };
    one.bytes().map(fold).eq(other.bytes().map(fold))
}

fn any() -> Count {
    Count::Any
}
