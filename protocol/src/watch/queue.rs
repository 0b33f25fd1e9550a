//! The queue of a volunteer: which entry is rebuilt next.
//!
//! Nothing that fails is in anybody's way: what has failed before comes after everything that has not,
//! and only after a delay that doubles. What was under way when the process died counts as failed, so
//! that an entry that takes the machine down does not do so again and again.

use std::cmp::Ordering;
use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::budget::{Budget, Spent};
use super::{Agreement, Class, Why};
use crate::assign::Calls;
use crate::hash::NetworkId;
use crate::key::{ArtifactKey, Release};
use crate::time::UnixTime;

/// Entries that wait; beyond it the least urgent gives way, and is found again by looking.
pub const ENTRIES_MAX: usize = 1024;
/// Entries of one release that wait: a publisher can vary features at will.
pub const RELEASE_ENTRIES_MAX: usize = 16;
/// Results that are remembered.
pub const RESULTS_MAX: usize = 100;
/// Every so many rebuilds one is an audit, however much is owed.
pub const AUDIT_EVERY: u32 = 5;
/// The longest time until something is tried again.
pub const DELAY_SECONDS_MAX: u64 = 30 * 24 * 3600;
/// Bytes of a detail that is remembered.
const DETAIL_CHARS_MAX: usize = 200;

/// Something to rebuild.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// In which network it is published.
    pub network: NetworkId,
    /// What.
    pub key: ArtifactKey,
    /// Why.
    #[serde(flatten)]
    pub why: Why,
    /// When it was noticed.
    pub found: UnixTime,
    /// How often it was tried in vain.
    pub tries: u32,
    /// Not before.
    pub due: UnixTime,
    /// What became of the last try.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<Class>,
}

impl Entry {
    fn is(&self, network: NetworkId, key: &ArtifactKey) -> bool {
        self.network == network && self.key == *key
    }

    fn is_of_release<'a>(&'a self, key: &'a ArtifactKey) -> bool {
        let release = |one: &'a ArtifactKey| (&one.registry, &one.name, &one.version);
        release(&self.key) == release(key)
    }

    /// What is rebuilt first is least. Ids are hashed only where nothing else tells two apart.
    fn urgency(&self, other: &Self) -> Ordering {
        let of = |one: &Self| (one.tries, one.why, one.found);
        of(self)
            .cmp(&of(other))
            .then_with(|| self.key.id().cmp(&other.key.id()))
    }
}

/// What is being rebuilt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Building {
    /// The entry as it was taken.
    pub entry: Entry,
    /// When.
    pub since: UnixTime,
}

/// How a rebuild ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// With an artifact, of which an observation is published.
    Built(Agreement),
    /// Without one.
    Failed {
        /// Why.
        class: Class,
        /// One line for a person.
        detail: String,
    },
    /// Somebody stopped it, or the budget did: nobody's failure.
    Stopped,
    /// It is owed no more: observed meanwhile, or of a network that was left.
    Dropped,
}

/// A result that is remembered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(
    feature = "schema",
    derive(schemars::JsonSchema),
    schemars(rename = "RebuildDone")
)]
pub struct Done {
    /// In which network.
    pub network: NetworkId,
    /// Of what.
    pub release: Release,
    /// For which target.
    pub target: String,
    /// Why it was rebuilt.
    #[serde(flatten)]
    pub why: Why,
    /// When it ended.
    pub at: UnixTime,
    /// How long it took.
    pub seconds: u64,
    /// What others had observed; absent when it came to nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agreement: Option<Agreement>,
    /// Why it came to nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<Class>,
    /// The same in words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

/// Everything that a volunteer's machine remembers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Queue {
    entries: Vec<Entry>,
    building: Option<Building>,
    results: VecDeque<Done>,
    agreed: BTreeMap<Agreement, u64>,
    failed: BTreeMap<Class, u64>,
    since_audit: u32,
    calls: Calls,
    spent: Spent,
}

impl Queue {
    /// Takes what was remembered up after a process ended, in order or not: what was under way then
    /// comes again, after everything else the first time and after a delay from then on.
    pub fn resumed(mut self, now: UnixTime) -> Self {
        self.entries.truncate(ENTRIES_MAX);
        self.results.truncate(RESULTS_MAX);
        if self.building.is_some() {
            let class = Class::Interrupted;
            let detail = "this process ended in the middle of it".to_owned();
            self.end(End::Failed { class, detail }, now);
        }
        self
    }

    /// Adds something to rebuild, and says whether that is new. A call beyond those that are answered
    /// in a day is not taken; it is found again on another day.
    pub fn add(&mut self, network: NetworkId, key: ArtifactKey, why: Why, now: UnixTime) -> bool {
        let building = self.building.as_ref().map(|building| &building.entry);
        if building.is_some_and(|entry| entry.is(network, &key)) {
            return false;
        }
        let at = self.entries.iter().position(|one| one.is(network, &key));
        if let Some(entry) = at.and_then(|at| self.entries.get_mut(at)) {
            let answers = match why {
                Why::Called { by } => self.calls.answer(by, key.id(), now),
                Why::Assigned | Why::Audit => true,
            };
            if answers {
                entry.why = entry.why.min(why);
            }
            return false;
        }
        let new = Entry {
            network,
            key,
            why,
            found: now,
            tries: 0,
            due: now,
            last: None,
        };
        let same = self.entries.iter().filter(|one| one.network == network);
        let same = same.filter(|one| one.is_of_release(&new.key)).count();
        if same >= RELEASE_ENTRIES_MAX
            || (self.entries.len() >= ENTRIES_MAX && !self.makes_room_for(&new))
        {
            return false;
        }
        if let Why::Called { by } = why
            && !self.calls.answer(by, new.key.id(), now)
        {
            return false;
        }
        self.entries.push(new);
        true
    }

    /// Removes the least urgent entry, if it is less urgent than this one.
    fn makes_room_for(&mut self, new: &Entry) -> bool {
        let all = self.entries.iter().enumerate();
        let last = all.max_by(|(_, one), (_, other)| one.urgency(other));
        let at = last.filter(|(_, entry)| entry.urgency(new).is_gt());
        let at = at.map(|(at, _)| at);
        at.map(|at| self.entries.swap_remove(at)).is_some()
    }

    /// Drops entries that are owed no more.
    pub fn retain(&mut self, keep: impl FnMut(&Entry) -> bool) {
        self.entries.retain(keep);
    }

    /// Takes the entry that is rebuilt next; `None` when none is due, or one is being rebuilt.
    pub fn begin(&mut self, now: UnixTime) -> Option<&Entry> {
        if self.building.is_some() {
            return None;
        }
        let due = self.entries.iter().enumerate();
        let due = due.filter(|(_, entry)| entry.due <= now);
        let audit_first = self.since_audit + 1 >= AUDIT_EVERY;
        // An audit that failed before has had its turn.
        let has_its_turn =
            |entry: &Entry| audit_first && entry.why == Why::Audit && entry.tries == 0;
        let next = due.min_by(|(_, one), (_, other)| {
            let turn = has_its_turn(other).cmp(&has_its_turn(one));
            turn.then_with(|| one.urgency(other))
        });
        let at = next.map(|(at, _)| at)?;
        let entry = self.entries.swap_remove(at);
        self.since_audit = match entry.why {
            Why::Audit => 0,
            Why::Called { .. } | Why::Assigned => self.since_audit.saturating_add(1),
        };
        let building = Building { entry, since: now };
        Some(&self.building.insert(building).entry)
    }

    /// What was begun has ended. Says when it is tried again, if it is.
    pub fn end(&mut self, end: End, now: UnixTime) -> Option<UnixTime> {
        let Building { mut entry, since } = self.building.take()?;
        let done = Done {
            network: entry.network,
            release: entry.key.release(),
            target: entry.key.target.clone(),
            why: entry.why,
            at: now,
            seconds: now.since(since),
            agreement: None,
            class: None,
            detail: String::new(),
        };
        match end {
            End::Dropped => None,
            End::Stopped => {
                let due = entry.due;
                self.entries.push(entry);
                Some(due)
            }
            End::Built(agreement) => {
                *self.agreed.entry(agreement).or_default() += 1;
                self.remember(Done {
                    agreement: Some(agreement),
                    ..done
                });
                None
            }
            End::Failed { class, detail } => {
                *self.failed.entry(class).or_default() += 1;
                let detail = detail.chars().filter(|c| !c.is_control());
                self.remember(Done {
                    class: Some(class),
                    detail: detail.take(DETAIL_CHARS_MAX).collect(),
                    ..done
                });
                entry.tries = entry.tries.saturating_add(1);
                entry.due = now.plus(delay_seconds(class, entry.tries));
                entry.last = Some(class);
                let due = entry.due;
                self.entries.push(entry);
                Some(due)
            }
        }
    }

    fn remember(&mut self, done: Done) {
        self.results.truncate(RESULTS_MAX - 1);
        self.results.push_front(done);
    }

    /// Whether one more entry is to be drawn for an audit: none waits, and either it would have its
    /// turn or nothing else is due.
    pub fn wants_audit(&self, now: UnixTime) -> bool {
        let fresh = |entry: &&Entry| entry.tries == 0;
        let mut fresh = self.entries.iter().filter(fresh);
        let none_waits = fresh.clone().all(|entry| entry.why != Why::Audit);
        let has_its_turn = self.since_audit + 1 >= AUDIT_EVERY;
        none_waits && (has_its_turn || !fresh.any(|entry| entry.due <= now))
    }

    /// When the next entry that is not due yet will be.
    pub fn next_due(&self, now: UnixTime) -> Option<UnixTime> {
        let later = self.entries.iter().map(|entry| entry.due);
        later.filter(|due| *due > now).min()
    }

    /// What waits, the next one first.
    pub fn waiting(&self, now: UnixTime) -> Vec<&Entry> {
        let mut all: Vec<&Entry> = self.entries.iter().collect();
        let wait = |entry: &Entry| entry.due.since(now);
        all.sort_by(|one, other| {
            let wait = wait(one).cmp(&wait(other));
            wait.then_with(|| one.urgency(other))
        });
        all
    }

    /// What is being rebuilt.
    pub fn building(&self) -> Option<&Building> {
        self.building.as_ref()
    }

    /// The last results, newest first.
    pub fn results(&self) -> impl Iterator<Item = &Done> {
        self.results.iter()
    }

    /// How many artifacts were rebuilt, by what others had observed.
    pub fn agreed(&self) -> &BTreeMap<Agreement, u64> {
        &self.agreed
    }

    /// How many tries came to nothing, by why.
    pub fn failed(&self) -> &BTreeMap<Class, u64> {
        &self.failed
    }

    /// Counts milliseconds that a rebuild took of the processors.
    pub fn spend(&mut self, cpu_millis: u64, budget: &Budget, now: UnixTime) {
        self.spent.spend(cpu_millis, budget, now);
    }

    /// What was taken of the processors today.
    pub fn spent(&self) -> &Spent {
        &self.spent
    }
}

/// How long after so many failures in a row something is tried again.
fn delay_seconds(class: Class, tries: u32) -> u64 {
    let doublings = match class {
        // The process may have been ended by anything, a reboot for instance: once that is nobody's fault.
        Class::Interrupted if tries <= 1 => return 0,
        _ => tries.saturating_sub(1).min(32),
    };
    (class.first_delay_seconds() << doublings).min(DELAY_SECONDS_MAX)
}
