//! What clients fetch, and how often.

use rand::RngExt;

use crate::engine::{HOUR, Micros, Random};
use crate::job::Then;
use crate::node::Kind;
use crate::wire::Cause;
use crate::world::{Event, World};

impl World<'_> {
    /// Has something happen that happens so often a day, at random.
    pub(crate) fn later(&mut self, a_day: f64, event: Event) {
        if a_day > 0.0 {
            let wait = exponential(&mut self.streams.workload, 24.0 / a_day);
            if self.queue.now + wait < self.end {
                self.queue.at(self.queue.now + wait, event);
            }
        }
    }

    pub(crate) fn fetches_a_day(&self, kind: Kind) -> f64 {
        match kind {
            Kind::Lab => self.scenario.workload.lab_fetches_a_day,
            _ => self.scenario.workload.fetches_a_day,
        }
    }

    pub(crate) fn some_crate(&mut self) -> u32 {
        let total = self.zipf.last().copied().unwrap_or(1.0);
        let draw = self.streams.workload.random_range(0.0..total);
        let rank = self.zipf.partition_point(|sum| *sum <= draw);
        rank.min(self.zipf.len() - 1) as u32
    }

    pub(crate) fn fetch_some(&mut self, node: u32) {
        self.later(
            self.fetches_a_day(self.nodes[node as usize].kind),
            Event::Fetch(node),
        );
        if !self.nodes[node as usize].is_up() {
            return;
        }
        let of = self.some_crate();
        let artifact = self.newest[of as usize];
        let bits = self.scenario.workload.prefix_bits;
        if bits > 0 {
            let point = self.artifacts[artifact as usize].point;
            self.find(node, point, bits, Cause::LookUp, Then::Prefix);
        } else if !self.nodes[node as usize].has(artifact * 2) {
            self.fetch(node, artifact, false);
        }
    }

    /// All CI clients begin at once.
    pub(crate) fn burst(&mut self) {
        self.later(self.scenario.workload.bursts_a_day, Event::Burst);
        let crates: Vec<u32> = (0..self.scenario.workload.burst_crates)
            .map(|_| self.some_crate())
            .collect();
        let ci = self
            .nodes
            .iter()
            .enumerate()
            .filter(|(_, node)| node.kind == Kind::Ci);
        let ci: Vec<u32> = ci.map(|(at, _)| at as u32).collect();
        for node in ci {
            for of in &crates {
                self.fetch(node, self.newest[*of as usize], false);
            }
        }
    }
}

pub(crate) fn exponential(random: &mut Random, mean_hours: f64) -> Micros {
    let draw: f64 = 1.0 - random.random_range(0.0..1.0);
    (-draw.ln() * mean_hours * HOUR as f64) as Micros
}
