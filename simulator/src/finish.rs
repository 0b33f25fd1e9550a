//! The end of a run: what has to hold, and what is told.

use std::collections::{BTreeMap, BTreeSet};

use qk_protocol::decide::{Effect, Question, decide};
use qk_protocol::hash::StatementId;

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
            let hours = self.verifiers.len() as f64 * self.scenario.hours;
            for (name, cause) in [
                ("survey bytes per verifier and hour", Cause::Survey),
                ("look bytes per verifier and hour", Cause::Look),
            ] {
                let bytes = self.tally.bytes_for(cause) as f64;
                put(name.to_owned(), bytes / hours);
            }
            put(
                "looks per verifier and hour".to_owned(),
                count("looks") / hours,
            );
        }
        put(
            "repair bytes per node and hour".to_owned(),
            self.tally.bytes_for(Cause::Repair) as f64 / node_hours,
        );
        if !self.stated.is_empty() {
            put("statements left, share".to_owned(), self.left());
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
        let after = count("decisions after a dissent");
        if after > 0.0 {
            put(
                "dissents that stayed hidden, share".to_owned(),
                count("dissents that stayed hidden") / after,
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

    /// The share of acknowledged statements that a server still holds, beside mirrors and whoever made them.
    fn left(&self) -> f64 {
        let servers = self.nodes.iter();
        let servers = servers.filter(|node| node.kind == Kind::Server && node.is_up());
        let held: BTreeSet<StatementId> = servers
            .flat_map(|node| node.held.iter().map(|(_, one)| one.id()))
            .collect();
        let stated = || self.stated.iter().filter(|one| !one.holders.is_empty());
        let left = stated().filter(|one| held.contains(&one.statement.id()));
        left.count() as f64 / stated().count().max(1) as f64
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
            let missed: Vec<_> = self.arrivals.iter().filter(|one| one.2.is_some()).collect();
            let all = self.arrivals.len() + self.awaited.len();
            let arrived = self.arrivals.len() - missed.len();
            let mut detail = format!("{arrived} of {all} final fetches arrived");
            if let Some((owner, artifact, Some(ended))) = missed.first() {
                let (node, key) = (
                    &self.nodes[*owner as usize],
                    &self.artifacts[*artifact as usize].key,
                );
                let eclipsed = if node.eclipsed { " eclipsed" } else { "" };
                detail += &format!(
                    "; not {} {} at the{eclipsed} {:?} {owner}: {ended}",
                    key.name, key.version, node.kind
                );
            }
            check("liveness", arrived == all && all > 0, detail);
        }
        if self.scenario.check.statements > 0 {
            let found = self.probes.values().filter(|found| **found).count();
            let all = self.probes.len();
            let mut detail = format!("{found} of {all} acknowledged statements are found");
            let missed = self.probes.iter().find(|(_, found)| !**found);
            if let Some((at, _)) = missed {
                detail += &self.told_of(*at);
            }
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

    /// Which statement was not found, and who holds it.
    fn told_of(&self, stated: u32) -> String {
        let one = &self.stated[stated as usize];
        let about = &self.artifacts[one.artifact as usize];
        let nodes = self.nodes.iter().enumerate();
        let holds = nodes.filter(|(_, node)| node.holds(&about.point, &one.statement));
        let holds: Vec<String> = holds
            .map(|(at, node)| {
                let up = if node.is_up() { "" } else { " away" };
                format!("{at} {:?} {:?}{up}", node.kind, node.manners)
            })
            .collect();
        format!(
            "; not that of operator {} about {} {}, which these nodes hold: {}",
            one.operator,
            about.key.name,
            about.key.version,
            holds.join(", ")
        )
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
