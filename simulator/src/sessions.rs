//! Who is there when: sessions, partitions, what begins with the run, and the time at which all heals.

use qk_protocol::upkeep::ANNOUNCE_SECONDS;
use rand::RngExt;

use crate::engine::{HOUR, Micros, Random, SECOND};
use crate::node::Kind;
use crate::upkeep::REPAIR_EVERY;
use crate::walking::WALK_EVERY;
use crate::wire::minutes;
use crate::workload::exponential;
use crate::world::{Event, World};

/// Part of a run after which Sybils are there.
const SYBILS_AFTER: f64 = 0.1;
/// Part of a run after which that is released whose dissents Sybils hide.
const HIDDEN_AFTER: f64 = 0.15;
/// Time that final fetches and look-ups have.
const PROBE_TIME: f64 = 15.0;

impl World<'_> {
    pub(crate) fn schedule(&mut self) {
        let scenario = self.scenario;
        for node in 0..self.nodes.len() as u32 {
            self.schedule_node(node);
        }
        for verifier in 0..self.verifiers.len() as u32 {
            let within = minutes(scenario.principals.survey_minutes);
            let at = self.streams.nodes.random_range(0..within.max(2));
            self.queue.at(at, Event::Survey(verifier));
        }
        for mirror in self.mirrors.clone() {
            let at = self.streams.nodes.random_range(0..WALK_EVERY);
            self.queue.at(at, Event::Walk(mirror));
        }
        for sybil in self.sybils.clone() {
            self.queue.at(
                (self.end as f64 * SYBILS_AFTER) as Micros,
                Event::Session(sybil),
            );
        }
        if scenario.hostile.hide_dissent_only {
            let at = (self.end as f64 * HIDDEN_AFTER) as Micros;
            for of in 0..self.targets.len() as u32 {
                self.queue.at(at, Event::ReleaseOf(of));
            }
        }
        for (number, one) in scenario.partitions.iter().enumerate() {
            let begin = minutes(one.at_minutes);
            self.queue.at(begin, Event::Partition(number as u32, true));
            self.queue.at(
                begin + minutes(one.for_minutes),
                Event::Partition(number as u32, false),
            );
        }
        self.later(scenario.workload.releases_a_day, Event::Release);
        if scenario.hostile.victims > 0 && scenario.workload.releases_a_day > 0.0 {
            // One at least, or what means them harm has nothing to do.
            let at = self.streams.workload.random_range(0..self.end / 4);
            self.queue.at(at, Event::ReleaseOf(0));
        }
        self.later(scenario.workload.bursts_a_day, Event::Burst);
        let heal = minutes(scenario.check.heal_minutes);
        if heal > 0 {
            self.queue.at(self.end - heal, Event::Heal);
        }
        if scenario.check.fetches + scenario.check.statements > 0 {
            let before = minutes(PROBE_TIME).min(self.end / 2);
            self.queue.at(self.end - before, Event::Probe);
        }
    }

    fn schedule_node(&mut self, node: u32) {
        let kind = self.nodes[node as usize].kind;
        if let Some(mean) = self.session_hours(node)
            && let Some(churn) = &self.scenario.churn
        {
            let up = mean / (mean + churn.down_hours);
            let is_up = self.streams.nodes.random_range(0.0..1.0) < up;
            if !is_up {
                self.nodes[node as usize].up_from = Micros::MAX;
            }
            // Somewhere in a session.
            let part = self.streams.nodes.random_range(0.0..1.0);
            let takes = self.session_time(node, is_up) as f64 * part;
            self.queue.at(takes as Micros, Event::Session(node));
        }
        let refresh = minutes(self.scenario.network.refresh_minutes);
        if matches!(
            kind,
            Kind::Server | Kind::Mirror | Kind::Operator | Kind::Cache | Kind::Laptop
        ) {
            let at = self.streams.nodes.random_range(0..refresh);
            self.queue.at(at, Event::Refresh(node));
            if kind.is_server() && self.scenario.network.repair {
                let at = self.streams.nodes.random_range(0..REPAIR_EVERY);
                self.queue.at(at, Event::Repair(node));
            }
            let at = self
                .streams
                .nodes
                .random_range(0..ANNOUNCE_SECONDS * SECOND);
            self.queue.at(at, Event::Announce(node));
        }
        if matches!(kind, Kind::Laptop | Kind::Lab) {
            self.later(self.fetches_a_day(kind), Event::Fetch(node));
        }
    }

    /// Mean session of a node that comes and goes.
    fn session_hours(&self, node: u32) -> Option<f64> {
        let churn = self.scenario.churn.as_ref()?;
        let own = &self.nodes[node as usize];
        match own.kind {
            // Who means harm is there.
            Kind::Server => own.is_honest().then_some(churn.server_up_hours),
            Kind::Laptop => Some(churn.laptop_up_hours),
            _ => None,
        }
    }

    fn session_time(&mut self, node: u32, is_up: bool) -> Micros {
        let (Some(mean), Some(churn)) = (self.session_hours(node), &self.scenario.churn) else {
            return Micros::MAX / 2;
        };
        match is_up {
            true => weibull(&mut self.streams.nodes, churn.shape, mean),
            false => exponential(&mut self.streams.nodes, churn.down_hours),
        }
    }

    /// A session ends or begins.
    pub(crate) fn turn(&mut self, node: u32) {
        let was_up = self.nodes[node as usize].is_up();
        if was_up && self.healed {
            return;
        }
        let now = self.queue.now;
        self.trace.record(now, 32 + u8::from(was_up), node, node, 0);
        if was_up {
            self.tally.fault("churn");
            let loses = self
                .scenario
                .churn
                .as_ref()
                .map_or(0.0, |churn| churn.lose_store_percent);
            let loses = loses > 0.0 && self.streams.faults.random_range(0.0..100.0) < loses;
            let own = &mut self.nodes[node as usize];
            (own.was_from, own.was_to, own.up_from) = (own.up_from, now, Micros::MAX);
            own.hints = Default::default();
            (own.up_free, own.down_free) = (0, 0);
            if loses {
                own.held.clear();
                own.blobs.clear();
                self.tally.fault("lost store");
            }
        } else {
            self.nodes[node as usize].up_from = now;
            self.announce_all(node);
        }
        if self.session_hours(node).is_some() && !self.healed {
            let takes = self.session_time(node, !was_up).max(SECOND);
            self.queue.at(now + takes, Event::Session(node));
        }
    }

    pub(crate) fn partition(&mut self, number: u32, begins: bool) {
        self.cut.retain(|one| *one != number);
        if begins && !self.healed {
            self.cut.push(number);
        }
    }

    pub(crate) fn heal(&mut self) {
        self.healed = true;
        self.cut.clear();
        for node in 0..self.nodes.len() as u32 {
            if !self.nodes[node as usize].is_up() {
                self.turn(node);
            }
        }
    }
}

/// A Weibull distribution with this shape and mean.
fn weibull(random: &mut Random, shape: f64, mean_hours: f64) -> Micros {
    let draw: f64 = 1.0 - random.random_range(0.0..1.0);
    let scale = mean_hours / gamma(1.0 + 1.0 / shape);
    ((-draw.ln()).powf(1.0 / shape) * scale * HOUR as f64) as Micros
}

/// The gamma function above 1 by Stirling's series, after its recurrence brought the argument beyond 8.
fn gamma(mut x: f64) -> f64 {
    let mut below = 1.0;
    while x < 8.0 {
        below *= x;
        x += 1.0;
    }
    let series = 1.0 / (12.0 * x) - 1.0 / (360.0 * x.powi(3));
    ((x - 0.5) * x.ln() - x + 0.5 * (2.0 * std::f64::consts::PI).ln() + series).exp() / below
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn sessions_have_the_mean_that_was_asked_for() {
        assert!((gamma(5.0) - 24.0).abs() < 1e-4);
        assert!((gamma(1.5) - 0.886_227).abs() < 1e-4);
        let mut random = Random::seed_from_u64(1);
        for shape in [0.5, 1.0, 2.0] {
            let draws = 40_000;
            let sum: u64 = (0..draws)
                .map(|_| weibull(&mut random, shape, 3.0) / 1000)
                .sum();
            let mean = sum as f64 / f64::from(draws) / (HOUR as f64 / 1000.0);
            assert!((mean - 3.0).abs() < 0.15, "{shape}: {mean}");
        }
    }
}
