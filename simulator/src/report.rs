//! What a run was like, for people and for programs.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// What a run was like. The same scenario and seed give the same report, but for [`Performance`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// What the scenario says of itself.
    pub about: String,
    /// Everything random was drawn from it.
    pub seed: u64,
    /// Simulated time.
    pub hours: f64,
    /// All nodes.
    pub nodes: u64,
    /// What happened, one after the other.
    pub events: u64,
    /// BLAKE3 over all of it in its order, as 64 hex digits.
    pub trace_hash: String,
    /// What was counted, and shares made of it.
    pub measures: BTreeMap<String, f64>,
    /// What was measured many times.
    pub quantiles: BTreeMap<String, Quantiles>,
    /// What was to go wrong, and how often it did.
    pub faults: Vec<Fault>,
    /// What has to hold.
    pub checks: Vec<Check>,
    /// How fast it went here; differs from run to run.
    pub performance: Performance,
}

/// How values are spread.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Quantiles {
    /// How many there are.
    pub count: u64,
    /// Their mean.
    pub mean: f64,
    /// The least.
    pub min: f64,
    /// A tenth is at most this.
    pub p10: f64,
    /// Half are at most this.
    pub p50: f64,
    /// Nine tenths.
    pub p90: f64,
    /// All but one in a hundred.
    pub p99: f64,
    /// The largest.
    pub max: f64,
}

impl Quantiles {
    /// Of these values; nothing of none.
    pub fn of(mut values: Vec<f32>) -> Option<Self> {
        values.sort_unstable_by(f32::total_cmp);
        let last = values.len().checked_sub(1)?;
        let at = |share: f64| f64::from(values[(last as f64 * share).round() as usize]);
        let sum: f64 = values.iter().map(|one| f64::from(*one)).sum();
        Some(Self {
            count: values.len() as u64,
            mean: sum / values.len() as f64,
            min: at(0.0),
            p10: at(0.1),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            max: at(1.0),
        })
    }
}

/// Something that was to go wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// Its name.
    pub name: String,
    /// How often it did.
    pub fired: u64,
}

/// Something that has to hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What.
    pub name: String,
    /// Whether it does.
    pub held: bool,
    /// What was looked at.
    pub detail: String,
}

/// How fast it went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Performance {
    /// Time on the clock.
    pub wall_seconds: f64,
    /// Time of a processor, where the system tells it.
    pub processor_seconds: f64,
    /// Events in a second of the clock.
    pub events_per_second: f64,
    /// The most memory that this process had, where the system tells it.
    pub memory_bytes: u64,
    /// Of that for each node.
    pub bytes_per_node: u64,
}

impl Report {
    /// Whether every check held.
    pub fn passed(&self) -> bool {
        self.checks.iter().all(|check| check.held)
    }

    /// The checks that did not hold.
    pub fn failed(&self) -> impl Iterator<Item = &Check> {
        self.checks.iter().filter(|check| !check.held)
    }

    /// A measure, 0 where nothing was counted.
    pub fn measure(&self, name: &str) -> f64 {
        self.measures.get(name).copied().unwrap_or_default()
    }

    /// The median of what was measured many times.
    pub fn median(&self, name: &str) -> Option<f64> {
        self.quantiles.get(name).map(|one| one.p50)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.about)?;
        writeln!(
            f,
            "{} nodes, {:.1} hours, {} events",
            self.nodes, self.hours, self.events
        )?;
        for (name, value) in &self.measures {
            writeln!(f, "  {name:<44} {}", number(*value))?;
        }
        if !self.quantiles.is_empty() {
            writeln!(
                f,
                "  {:<32} {:>8} {:>10} {:>10} {:>10} {:>10}",
                "", "count", "p10", "p50", "p90", "p99"
            )?;
        }
        for (name, q) in &self.quantiles {
            let [p10, p50, p90, p99] = [q.p10, q.p50, q.p90, q.p99].map(number);
            writeln!(
                f,
                "  {name:<32} {:>8} {p10:>10} {p50:>10} {p90:>10} {p99:>10}",
                q.count
            )?;
        }
        for fault in &self.faults {
            writeln!(f, "  fault {}: {} times", fault.name, fault.fired)?;
        }
        for check in &self.checks {
            let held = if check.held { "holds" } else { "FAILS" };
            writeln!(f, "  {held}: {} ({})", check.name, check.detail)?;
        }
        let speed = &self.performance;
        writeln!(
            f,
            "{:.1} s, {:.1} s of a processor, {:.0} events/s, {} MB, {} bytes per node",
            speed.wall_seconds,
            speed.processor_seconds,
            speed.events_per_second,
            speed.memory_bytes / 1_000_000,
            speed.bytes_per_node
        )?;
        write!(f, "seed {} trace_hash {}", self.seed, self.trace_hash)
    }
}

/// As many digits as say something.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size >= 100.0 || value.fract() == 0.0 => format!("{value:.0}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

/// Two runs side by side: what differs, by how much.
pub fn compare(one: &Report, other: &Report) -> Vec<Difference> {
    let flat = |report: &Report| {
        let mut all = report.measures.clone();
        for (name, q) in &report.quantiles {
            all.insert(format!("{name}, p50"), q.p50);
            all.insert(format!("{name}, p90"), q.p90);
            all.insert(format!("{name}, p99"), q.p99);
        }
        for fault in &report.faults {
            all.insert(format!("fault {}", fault.name), fault.fired as f64);
        }
        for check in &report.checks {
            all.insert(
                format!("check {}", check.name),
                f64::from(u8::from(check.held)),
            );
        }
        all
    };
    let (one, other) = (flat(one), flat(other));
    let mut names: Vec<&String> = one.keys().chain(other.keys()).collect();
    names.sort();
    names.dedup();
    let differences = names.into_iter().map(|name| Difference {
        name: name.clone(),
        before: one.get(name).copied(),
        after: other.get(name).copied(),
    });
    differences.filter(|one| one.before != one.after).collect()
}

/// A measure that differs between two runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// Which one.
    pub name: String,
    /// In the first run, if it is there.
    pub before: Option<f64>,
    /// In the second.
    pub after: Option<f64>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |value: Option<f64>| value.map_or("-".to_owned(), number);
        write!(
            f,
            "{:<48} {:>12} {:>12}",
            self.name,
            of(self.before),
            of(self.after)
        )?;
        match (self.before, self.after) {
            (Some(before), Some(after)) if before != 0.0 => {
                write!(f, " {:>+8.1} %", (after / before - 1.0) * 100.0)
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_there() {
        let q = Quantiles::of((1..=101).rev().map(|one| one as f32).collect()).unwrap();
        assert_eq!(
            (q.min, q.p10, q.p50, q.p90, q.p99, q.max),
            (1.0, 11.0, 51.0, 91.0, 100.0, 101.0)
        );
        assert_eq!(Quantiles::of(Vec::new()), None);
    }
}
