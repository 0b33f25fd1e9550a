//! What a run was like, for people and for programs.

use std::fmt;

use serde::Serialize;

/// What a run was like. The same scenario and seed give the same report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Everything random was drawn from it.
    pub seed: u64,
    /// How the fetch ended: `done`, or why not.
    pub outcome: String,
    /// When it ended.
    pub virtual_ms: u64,
    /// Messages sent, lost ones included.
    pub messages: u64,
    /// Their length.
    pub bytes: u64,
    /// BLAKE3 over all events in their order, as 64 hex digits.
    pub trace_hash: String,
    /// What was to go wrong, and how often it did.
    pub faults: Vec<Fault>,
    /// What has to hold.
    pub checks: Vec<Check>,
}

/// Something that was to go wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// Its name in the scenario.
    pub name: &'static str,
    /// How often it did.
    pub fired: u64,
}

/// Something that has to hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What.
    pub name: String,
    /// Whether it does.
    pub held: bool,
}

impl Report {
    /// Whether every check held.
    pub fn passed(&self) -> bool {
        self.checks.iter().all(|check| check.held)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "outcome     {}", self.outcome)?;
        writeln!(f, "seed        {}", self.seed)?;
        writeln!(f, "virtual ms  {}", self.virtual_ms)?;
        writeln!(f, "messages    {}", self.messages)?;
        writeln!(f, "bytes       {}", self.bytes)?;
        for fault in &self.faults {
            writeln!(f, "fault       {}: {} times", fault.name, fault.fired)?;
        }
        for check in &self.checks {
            let held = if check.held { "holds" } else { "FAILS" };
            writeln!(f, "check       {held}: {}", check.name)?;
        }
        write!(f, "trace_hash  {}", self.trace_hash)
    }
}
