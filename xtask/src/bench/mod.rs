//! Benchmarks: rows of `{name, value, unit, goal, met}`, and what they are measured against.

mod binstall;
pub mod cache;
pub mod fetch;
pub mod idle;
pub mod lab;
pub mod nginx;
pub mod sample;
pub mod server;
pub mod service;
pub mod svg;
pub mod tools;
pub mod transfer;
pub mod wire;

use std::io::{self, Write};

use serde::{Serialize, Serializer};

/// One measured value.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// What was measured, in the form `fetch_cold_s`.
    pub name: String,
    /// The value.
    pub value: f64,
    /// Its unit: `s`, `ratio`, `MB/s`.
    pub unit: &'static str,
    /// What it is to be, if anything.
    pub goal: Option<Goal>,
    /// Whether it is; absent without a goal.
    pub met: Option<bool>,
}

/// What a value is to be; written `<= 0.15` or `>= 10`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Goal {
    /// This or less.
    AtMost(f64),
    /// This or more.
    AtLeast(f64),
}

impl Row {
    /// A value that is only reported.
    pub fn new(name: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self {
            name: name.into(),
            value,
            unit,
            goal: None,
            met: None,
        }
    }

    /// The same value, held against a goal.
    pub fn with_goal(self, goal: Goal) -> Self {
        Self {
            met: Some(goal.met(self.value)),
            goal: Some(goal),
            ..self
        }
    }

    /// The same value under another name.
    pub fn named(self, name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            ..self
        }
    }

    /// `self` divided by `other`, named so: below 1, `self` is the smaller one.
    pub fn ratio(&self, other: &Self) -> Self {
        debug_assert_eq!(self.unit, other.unit, "a ratio needs one unit");
        let name = format!("{}/{}", self.name, other.name);
        Self::new(name, self.value / other.value, "ratio")
    }
}

impl Goal {
    fn met(self, value: f64) -> bool {
        match self {
            Self::AtMost(most) => value <= most,
            Self::AtLeast(least) => value >= least,
        }
    }
}

impl std::fmt::Display for Goal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AtMost(most) => write!(f, "<= {most}"),
            Self::AtLeast(least) => write!(f, ">= {least}"),
        }
    }
}

impl Serialize for Goal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Whether every goal that was set is met.
pub fn all_met(rows: &[Row]) -> bool {
    rows.iter().all(|row| row.met != Some(false))
}

/// Writes the rows as one JSON array, or as a table for people.
///
/// # Errors
/// When `out` cannot be written to.
pub fn write(rows: &[Row], json: bool, out: &mut impl Write) -> io::Result<()> {
    if json {
        serde_json::to_writer_pretty(&mut *out, rows)?;
        return writeln!(out);
    }
    let width = rows.iter().map(|row| row.name.len()).max().unwrap_or(0);
    for row in rows {
        write!(out, "{:width$}  {:>10.4} {}", row.name, row.value, row.unit)?;
        if let (Some(goal), Some(met)) = (row.goal, row.met) {
            write!(out, "  goal {goal}: {}", if met { "met" } else { "MISSED" })?;
        }
        writeln!(out)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<Row> {
        let cold = Row::new("cold", 0.125, "s").with_goal(Goal::AtMost(0.15));
        let install = Row::new("install", 50.0, "s");
        let slower = cold.ratio(&install).with_goal(Goal::AtMost(0.002));
        vec![cold, install, slower]
    }

    fn written(json: bool) -> String {
        let mut out = Vec::new();
        write(&rows(), json, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_table_names_what_was_missed() {
        assert_eq!(
            written(false),
            "cold              0.1250 s  goal <= 0.15: met\n\
             install          50.0000 s\n\
             cold/install      0.0025 ratio  goal <= 0.002: MISSED\n"
        );
        assert!(!all_met(&rows()));
        assert!(all_met(&rows()[..2]));
    }

    #[test]
    fn json_rows_have_five_members_each() {
        let rows: serde_json::Value = serde_json::from_str(&written(true)).unwrap();
        assert_eq!(
            rows,
            serde_json::json!([
                { "name": "cold", "value": 0.125, "unit": "s", "goal": "<= 0.15", "met": true },
                { "name": "install", "value": 50.0, "unit": "s", "goal": null, "met": null },
                { "name": "cold/install", "value": 0.0025, "unit": "ratio",
                  "goal": "<= 0.002", "met": false },
            ])
        );
    }

    #[test]
    fn a_value_at_its_goal_meets_it() {
        assert!(Goal::AtMost(0.15).met(0.15) && Goal::AtLeast(2.0).met(2.0));
        assert!(!Goal::AtMost(0.15).met(f64::NAN) && !Goal::AtLeast(2.0).met(f64::NAN));
    }
}
