//! The last fetches and look-ups, by which a run is judged.

use std::collections::BTreeMap;

use qk_protocol::decide::{Decision, Held, Question, decide};
use qk_protocol::policy::Policy;
use rand::RngExt;

use crate::job::Then;
use crate::node::Kind;
use crate::stage::BEGIN;
use crate::wire::Cause;
use crate::world::{Stated, World};

impl World<'_> {
    /// What is known of each artifact to somebody who knows every acknowledged statement.
    pub(crate) fn known(&self) -> BTreeMap<u32, Vec<Held>> {
        self.known_if(|one| !one.holders.is_empty())
    }

    fn known_if(&self, is: impl Fn(&Stated) -> bool) -> BTreeMap<u32, Vec<Held>> {
        let mut known: BTreeMap<u32, Vec<Held>> = BTreeMap::new();
        for one in self.stated.iter().filter(|one| is(one)) {
            known.entry(one.artifact).or_default().push(Held {
                statement: one.statement.clone(),
                stored: BEGIN,
            });
        }
        known
    }

    /// Whether one of those that acknowledged a statement is there and has it.
    fn lives(&self, one: &Stated) -> bool {
        let point = self.artifacts[one.artifact as usize].point;
        one.holders.iter().any(|holder| {
            let node = &self.nodes[*holder as usize];
            node.is_up() && node.holds(&point, &one.statement)
        })
    }

    /// The policy with all its defences.
    fn whole_policy(&self) -> Policy {
        Policy {
            threshold: self.scenario.policy.threshold,
            on_dissent: Some(self.scenario.policy.on_dissent),
            ..self.stage.policy.clone()
        }
    }

    /// The last fetches and look-ups, whose end is checked.
    pub(crate) fn probe(&mut self) {
        let (policy, now) = (self.whole_policy(), self.unix());
        let mut wanted = Vec::new();
        // A dissent that nobody acknowledged may lie somewhere all the same; what agrees has to be held.
        let counts = |one: &Stated| {
            let right = self.artifacts[one.artifact as usize].right;
            let got = one.statement.observation().map(|one| one.subject);
            got != Some(right) || self.lives(one)
        };
        for (artifact, statements) in self.known_if(counts) {
            let about = &self.artifacts[artifact as usize];
            let verdict = decide(&Question {
                policy: &policy,
                network: &self.stage.network,
                candidate: &about.candidate(),
                own: None,
                statements: &statements,
                now,
            });
            let is_right =
                matches!(&verdict.decision, Decision::Trusted(one) if one.subject == about.right);
            let has = |node: &crate::node::Node| {
                node.is_up() && node.is_honest() && node.kind.is_server() && node.has(artifact * 2)
            };
            if is_right && self.nodes.iter().any(has) {
                wanted.push(artifact);
            }
        }
        let nodes = self.nodes.iter().enumerate();
        let can_ask = nodes.filter(|(_, node)| {
            node.is_up() && node.is_honest() && node.kind != Kind::Operator && node.skew == 0
        });
        let mut clients: Vec<u32> = can_ask.map(|(at, _)| at as u32).collect();
        clients.sort_by_key(|one| !self.nodes[*one as usize].eclipsed);
        for number in 0..self.scenario.check.fetches as usize {
            if wanted.is_empty() || clients.is_empty() {
                break;
            }
            let eclipsed = clients
                .get(number)
                .filter(|one| self.nodes[**one as usize].eclipsed);
            let client = eclipsed
                .copied()
                .unwrap_or_else(|| clients[self.streams.workload.random_range(0..clients.len())]);
            let artifact = wanted[number % wanted.len()];
            if let Some(key) = self.fetch(client, artifact, true)
                && self.jobs.get_mut(key).is_some()
            {
                self.awaited.insert(key);
            }
        }
        self.probe_statements(&clients);
    }

    fn probe_statements(&mut self, clients: &[u32]) {
        let stated = self
            .stated
            .iter()
            .enumerate()
            .filter(|(_, one)| self.lives(one));
        let living: Vec<u32> = stated.map(|(at, _)| at as u32).collect();
        let wanted = (self.scenario.check.statements as usize).min(living.len());
        // The newest first, and then at random.
        for number in 0..wanted {
            let at = match number < wanted / 2 {
                true => living[living.len() - 1 - number],
                false => living[self.streams.workload.random_range(0..living.len())],
            };
            if clients.is_empty() || self.probes.insert(at, false).is_some() {
                continue;
            }
            let client = clients[self.streams.workload.random_range(0..clients.len())];
            let point = self.artifacts[self.stated[at as usize].artifact as usize].point;
            self.find(client, point, 256, Cause::LookUp, Then::Probe(at));
        }
    }
}
