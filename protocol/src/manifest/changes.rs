//! What one version of a manifest changes about the one before, in words.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;

use serde::{Deserialize, Serialize};

use super::{Blocked, KeyState, Manifest, Principal, PrincipalKey};
use crate::hash::PublicKey;
use crate::key::Linker;
use crate::policy::{OnDissent, Policy};

/// One difference between two versions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Change {
    /// What is different.
    pub text: String,
    /// Whether more is believed than before, or on fewer people's word: a new principal, key, root
    /// key, toolchain or registry, a policy that asks for less, a block that is lifted.
    pub widens: bool,
}

/// All differences, those that widen trust first.
pub fn changes(before: &Manifest, after: &Manifest) -> Vec<Change> {
    let mut all = Changes::default();
    all.basics(before, after);
    all.roots(before, after);
    all.policy(&before.policy, &after.policy);
    all.principals(before, after);
    all.blocked(&before.blocked, &after.blocked);
    let differ = (&before.builds, &before.principals, &before.policy)
        != (&after.builds, &after.principals, &after.policy);
    if differ && all.0.is_empty() {
        // An order, or a part of a policy that has no words here: better said than passed over.
        all.add(
            true,
            "builds, principals or policy are written in another way",
        );
    }
    // Stable: what belongs together stays together.
    all.0.sort_by_key(|change| !change.widens);
    all.0
}

#[derive(Default)]
struct Changes(Vec<Change>);

impl Changes {
    fn add(&mut self, widens: bool, text: impl Into<String>) {
        self.0.push(Change {
            text: text.into(),
            widens,
        });
    }

    /// A single value, if it is another one.
    fn value<T: PartialEq + Display>(&mut self, widens: bool, what: &str, before: T, after: T) {
        if before != after {
            self.add(widens, format!("{what}: {before} becomes {after}"));
        }
    }

    /// What came and what went.
    fn set<T: Ord + Display>(
        &mut self,
        widens: bool,
        what: &str,
        before: &BTreeSet<T>,
        after: &BTreeSet<T>,
    ) {
        for one in after.difference(before) {
            self.add(widens, format!("{what} {one} is added"));
        }
        for one in before.difference(after) {
            self.add(false, format!("{what} {one} is removed"));
        }
    }

    fn basics(&mut self, before: &Manifest, after: &Manifest) {
        self.value(false, "name", &before.name, &after.name);
        self.set(
            false,
            "bootstrap address",
            &before.bootstrap,
            &after.bootstrap,
        );
        self.set(true, "registry", &before.registries, &after.registries);
        if before.secret_id != after.secret_id {
            self.add(false, "the network's secret is another one");
        }
        self.value(
            true,
            "committee size",
            before.committee.size,
            after.committee.size,
        );
        if before.committee.seed != after.committee.seed {
            self.add(true, "committees are drawn anew: the seed is another one");
        }
        let builds = |manifest: &Manifest| -> BTreeSet<String> {
            let build = |build: &crate::candidate::Build| {
                let (rustc, sysroot) = (&build.rustc.version, build.rustc.sysroot.short());
                format!(
                    "for {} with rustc {rustc} ({sysroot}), recipe {}, {}",
                    build.target,
                    build.recipe,
                    linker(&build.linker)
                )
            };
            manifest.builds.iter().map(build).collect()
        };
        self.set(true, "build", &builds(before), &builds(after));
    }

    fn roots(&mut self, before: &Manifest, after: &Manifest) {
        let (old, new) = (before.root.threshold, after.root.threshold);
        self.value(new < old, "root keys that have to sign", old, new);
        self.set(true, "root key", &before.root.keys, &after.root.keys);
        self.value(true, "timestamp key", before.timestamp, after.timestamp);
    }

    fn policy(&mut self, before: &Policy, after: &Policy) {
        let (old, new) = (before.threshold, after.threshold);
        self.value(new < old, "principals that have to agree", old, new);
        if before.count != after.count {
            let text = format!(
                "who counts: {} becomes {}",
                word(&before.count),
                word(&after.count)
            );
            self.add(after.count < before.count, text);
        }
        let (old, new) = (before.on_dissent(), after.on_dissent());
        if old != new {
            let text = match new {
                OnDissent::Escalate => "a dissent no longer refuses, but calls others",
                OnDissent::Refuse => "a dissent refuses",
            };
            self.add(new < old, text);
        }
        // Without a limit, the oldest counts.
        let age = |policy: &Policy| policy.max_age_days.unwrap_or(u32::MAX);
        if age(before) != age(after) {
            let text = match after.max_age_days {
                Some(days) => format!("observations count for {days} days"),
                None => "observations count whatever their age".to_owned(),
            };
            self.add(age(after) > age(before), text);
        }
        if before.principals != after.principals {
            let narrower = before.principals.is_empty()
                || (!after.principals.is_empty() && after.principals.is_subset(&before.principals));
            self.add(!narrower, "which principals the policy counts is changed");
        }
        for group in before
            .groups
            .iter()
            .filter(|one| !after.groups.contains(one))
        {
            self.add(
                true,
                format!("group {:?} is no longer asked for as it was", group.name),
            );
        }
        for group in after
            .groups
            .iter()
            .filter(|one| !before.groups.contains(one))
        {
            let (name, need) = (&group.name, group.threshold);
            self.add(false, format!("group {name:?}: {need} are asked for"));
        }
        let names: BTreeSet<&String> = before.crates.keys().chain(after.crates.keys()).collect();
        for name in names {
            let (old, new) = (before.threshold_of(name), after.threshold_of(name));
            if before.crates.get(name) != after.crates.get(name) {
                let text =
                    format!("principals that have to agree about {name}: {old} becomes {new}");
                self.add(new < old, text);
            }
        }
        let (old, new) = (before.rebuild_percent, after.rebuild_percent);
        self.value(false, "percent of fetches that are rebuilt", old, new);
    }

    fn principals(&mut self, before: &Manifest, after: &Manifest) {
        let by_id = |manifest: &Manifest| -> BTreeMap<_, Principal> {
            let all = manifest.principals.iter().cloned();
            all.map(|one| (one.id, one)).collect()
        };
        let (old, new) = (by_id(before), by_id(after));
        for (id, principal) in &new {
            match old.get(id) {
                None => self.add(true, format!("principal {} is added", described(principal))),
                Some(before) => self.principal(before, principal),
            }
        }
        for principal in old.iter().filter(|(id, _)| !new.contains_key(id)) {
            self.add(false, format!("principal {} is removed", principal.1.name));
        }
    }

    fn principal(&mut self, before: &Principal, after: &Principal) {
        let name = &after.name;
        self.value(false, "name of a principal", &before.name, name);
        if before.roles != after.roles {
            let (old, new) = (words(&before.roles), words(&after.roles));
            let more = !after.roles.is_subset(&before.roles);
            self.add(more, format!("principal {name}: {old} becomes {new}"));
        }
        for (what, old, new) in [
            ("targets", &before.targets, &after.targets),
            ("toolchains", &before.toolchains, &after.toolchains),
        ] {
            if old != new {
                let all = |set: &BTreeSet<String>| match set.is_empty() {
                    true => "all".to_owned(),
                    false => set.iter().cloned().collect::<Vec<_>>().join(", "),
                };
                let text = format!("principal {name}: {what} {} become {}", all(old), all(new));
                self.add(false, text);
            }
        }
        let keys = |principal: &Principal| -> BTreeMap<PublicKey, PrincipalKey> {
            principal.keys.iter().map(|key| (key.key, *key)).collect()
        };
        let (old, new) = (keys(before), keys(after));
        for (key, state) in &new {
            let active = state.state == KeyState::Active;
            match old.get(key) {
                None => {
                    let state = word(&state.state);
                    self.add(
                        active,
                        format!("principal {name}: key {key} is added, {state}"),
                    );
                }
                Some(before) if before != state => {
                    let (old, new) = (word(&before.state), word(&state.state));
                    // A later retirement lets more count, too.
                    let more = worth(*state) > worth(*before);
                    self.add(
                        more,
                        format!("principal {name}: key {key}: {old} becomes {new}"),
                    );
                }
                Some(_) => {}
            }
        }
        for key in old.keys().filter(|key| !new.contains_key(key)) {
            self.add(false, format!("principal {name}: key {key} is removed"));
        }
    }

    fn blocked(&mut self, before: &[Blocked], after: &[Blocked]) {
        let described = |entry: &Blocked| {
            let key = entry.key.map(|key| format!("key {key}"));
            let root = entry.root.map(|root| format!("root {root}"));
            let both: Vec<String> = key.into_iter().chain(root).collect();
            both.join(" and ")
        };
        for entry in after.iter().filter(|one| !before.contains(one)) {
            self.add(
                false,
                format!("{} is blocked: {}", described(entry), entry.reason),
            );
        }
        for entry in before.iter().filter(|one| !after.contains(one)) {
            self.add(true, format!("{} is no longer blocked", described(entry)));
        }
    }
}

/// How much of what a key signed counts.
fn worth(key: PrincipalKey) -> u64 {
    match key.state {
        KeyState::Active => u64::MAX,
        KeyState::Retired => key.retired.map_or(0, |retired| retired.0),
        KeyState::Compromised => 0,
    }
}

fn linker(linker: &Linker) -> String {
    match linker {
        Linker::Zig { wheel, glibc } => {
            let glibc = glibc.as_ref().map(|glibc| format!(", glibc {glibc}"));
            format!("zig {}{}", wheel.short(), glibc.unwrap_or_default())
        }
        Linker::System { fingerprint } => format!("the host's linker {}", fingerprint.short()),
    }
}

fn described(principal: &Principal) -> String {
    let keys: Vec<String> = principal
        .keys
        .iter()
        .map(|key| key.key.to_string())
        .collect();
    let (name, roles) = (&principal.name, words(&principal.roles));
    format!("{name} ({roles}; {})", keys.join(", "))
}

fn words<T: Serialize>(all: &BTreeSet<T>) -> String {
    all.iter().map(word).collect::<Vec<_>>().join(", ")
}

/// The word that stands for a value in the manifest itself.
fn word(value: &impl Serialize) -> String {
    let value = serde_json::to_value(value).unwrap_or_default();
    value.as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests;
