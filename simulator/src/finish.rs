//! The end of a run: what has to hold, and what is told.

use std::collections::BTreeMap;

use qk_protocol::decide::{Effect, Question, decide};

use crate::node::Kind;
use crate::report::{Check, Fault, Performance, Report};
use crate::stage::Character;
use crate::wire::Cause;
use crate::world::World;

impl World<'_> {
    pub(crate) fn report(mut self, seed: u64) -> Report {
        let faults = self.faults();
        let checks = self.checks(&faults);
        Report {
            about: self.scenario.about.clone(),
            seed,
            hours: self.scenario.hours,
            nodes: self.nodes.len() as u64,
            events: self.queue.happened,
            trace_hash: self.trace.hash(),
            measures: self.measures(),
            quantiles: self.tally.quantiles(),
            faults,
            checks,
            performance: Performance::default(),
        }
    }

    fn measures(&mut self) -> BTreeMap<String, f64> {
        let count = |what: &str| self.tally.counted(what) as f64;
        let mut all: BTreeMap<String, f64> = self
            .tally
            .counts()
            .map(|(name, count)| (name.to_owned(), count as f64))
            .collect();
        let mut put = |name: String, value: f64| {
            all.insert(name, value);
        };
        let online = self
            .nodes
            .iter()
            .filter(|node| !matches!(node.kind, Kind::Ci | Kind::Lab))
            .count();
        let node_hours = online as f64 * self.scenario.hours;
        let upkeep = [Cause::Refresh, Cause::Announce];
        let upkeep: u64 = upkeep
            .iter()
            .map(|cause| self.tally.bytes_for(*cause))
            .sum();
        put(
            "upkeep bytes per node and hour".to_owned(),
            upkeep as f64 / node_hours,
        );
        for cause in Cause::ALL {
            let bytes = self.tally.bytes_for(cause) as f64;
            put(format!("bytes for {}", cause.name()), bytes);
        }
        if !self.verifiers.is_empty() {
            let bytes = self.tally.bytes_for(Cause::Survey) as f64;
            let hours = self.verifiers.len() as f64 * self.scenario.hours;
            put(
                "survey bytes per verifier and hour".to_owned(),
                bytes / hours,
            );
        }
        put("messages".to_owned(), self.tally.messages() as f64);
        put(
            "bytes into the laboratory".to_owned(),
            self.tally.upstream() as f64,
        );
        let decided = count("look-ups with statements") + count("look-ups without");
        if decided > 0.0 {
            put(
                "look-up success".to_owned(),
                count("look-ups with statements") / decided,
            );
            put(
                "trusted wrong, share".to_owned(),
                count("trusted wrong") / decided,
            );
        }
        let trusted = count("trusted right") + count("trusted wrong");
        if trusted > 0.0 {
            put(
                "delivered, share of trusted".to_owned(),
                count("arrived") / trusted,
            );
        }
        let servers = || self.nodes.iter().filter(|node| node.kind.is_server());
        let held: usize = servers().map(|node| node.held.len()).sum();
        let hints: usize = servers().map(|node| node.hints.len()).sum();
        put(
            "statements held per server".to_owned(),
            held as f64 / servers().count() as f64,
        );
        put(
            "hints held per server".to_owned(),
            hints as f64 / servers().count() as f64,
        );
        put(
            "fetches that did not end".to_owned(),
            self.awaited.len() as f64,
        );
        let given: Vec<f64> = self
            .nodes
            .iter()
            .map(|node| node.given as f64)
            .filter(|one| *one > 0.0)
            .collect();
        for one in given {
            self.tally.measure("bytes given by a provider", one);
        }
        for node in self.nodes.iter().filter(|node| node.kind.is_server()) {
            self.tally
                .measure("hints of a server", node.hints.len() as f64);
        }
        all
    }

    /// What was to go wrong, and how often it did.
    fn faults(&self) -> Vec<Fault> {
        let (network, hostile, who) = (
            &self.scenario.network,
            &self.scenario.hostile,
            &self.scenario.principals,
        );
        let churn = self.scenario.churn.as_ref();
        let partitions = |one_way| {
            self.scenario
                .partitions
                .iter()
                .any(|one| one.one_way == one_way)
        };
        let releases = self.scenario.workload.releases_a_day > 0.0;
        let enabled = [
            ("loss", network.loss_percent > 0.0),
            ("duplication", network.duplicate_percent > 0.0),
            ("reordering", network.reorder_percent > 0.0),
            ("skew", network.skewed_percent > 0.0),
            ("partition", partitions(false)),
            ("one-way partition", partitions(true)),
            ("churn", churn.is_some()),
            (
                "lost store",
                churn.is_some_and(|churn| churn.lose_store_percent > 0.0),
            ),
            ("sybils", hostile.sybils > 0),
            ("eclipse", hostile.eclipsed > 0),
            ("strangers", hostile.strangers > 0 && hostile.victims > 0),
            ("colluding", who.colluding > 0 && hostile.victims > 0),
            ("lazy", who.lazy > 0 && releases),
            ("lying", who.lying > 0 && releases),
            ("forging", hostile.forging > 0),
            ("stalling", hostile.stalling > 0),
            ("lacking", hostile.lacking > 0),
            ("silent", hostile.silent > 0),
        ];
        let enabled = enabled.into_iter().filter(|(_, is_enabled)| *is_enabled);
        enabled
            .map(|(name, _)| Fault {
                name: name.to_owned(),
                fired: self.tally.fired(name),
            })
            .collect()
    }

    fn checks(&self, faults: &[Fault]) -> Vec<Check> {
        let mut checks = Vec::new();
        let mut check = |name: &str, held: bool, detail: String| {
            checks.push(Check {
                name: name.to_owned(),
                held,
                detail,
            });
        };
        let who = &self.scenario.principals;
        let bad = who.colluding + who.lazy;
        if bad < self.scenario.policy.threshold {
            let wrong = self.tally.counted("trusted wrong");
            let detail =
                format!("{wrong} fetches trusted a wrong root, with {bad} principals for it");
            check("safety", wrong == 0, detail);
        }
        let tampered = self.tally.counted("tampered");
        check(
            "integrity",
            tampered == 0,
            format!("{tampered} artifacts have forged blocks"),
        );
        if self.scenario.check.fetches > 0 {
            let arrived = self
                .arrivals
                .iter()
                .filter(|(_, _, arrived)| *arrived)
                .count();
            let all = self.arrivals.len() + self.awaited.len();
            check(
                "liveness",
                arrived == all && all > 0,
                format!("{arrived} of {all} final fetches arrived"),
            );
        }
        if self.scenario.check.statements > 0 {
            let found = self.probes.values().filter(|found| **found).count();
            let all = self.probes.len();
            let detail = format!("{found} of {all} acknowledged statements are found");
            check("conservation", found == all && all > 0, detail);
        }
        if who.lazy > 0 {
            let (found, copiers) = self.copiers();
            let detail = format!("{found} of {copiers} that others could have found");
            check("copiers are found", found == copiers, detail);
        }
        if self.scenario.check.faults_fire {
            for fault in faults {
                check(
                    &format!("{} happened", fault.name),
                    fault.fired > 0,
                    format!("{} times", fault.fired),
                );
            }
        }
        checks
    }

    /// How many copiers a reader of all statements sees, of those that at least three who built judge.
    fn copiers(&self) -> (usize, usize) {
        let mut by_copier: BTreeMap<u32, bool> = BTreeMap::new();
        let known = self.known();
        for one in self.stated.iter().filter(|one| !one.holders.is_empty()) {
            let character = |at: u32| self.operator(at).character;
            if character(one.operator) != Character::Lazy {
                continue;
            }
            let about = &self.artifacts[one.artifact as usize];
            let honest = about
                .proofs
                .iter()
                .filter(|at| character(**at) == Character::Honest);
            let Some(statements) = known.get(&one.artifact).filter(|_| honest.count() >= 3) else {
                continue;
            };
            let verdict = decide(&Question {
                policy: &self.stage.policy,
                network: &self.stage.network,
                candidate: &about.candidate(),
                own: None,
                statements,
                now: self.unix(),
            });
            let id = one.statement.id();
            let line = verdict.lines.iter().find(|line| line.statement == id);
            let is_seen = line
                .is_some_and(|line| line.effect == Effect::WorkDiffers || line.work_differs >= 2);
            *by_copier.entry(one.operator).or_default() |= is_seen;
        }
        (
            by_copier.values().filter(|seen| **seen).count(),
            by_copier.len(),
        )
    }
}
