//! Runs: one, or one scenario with many seeds on several threads.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::rebuilds;
use crate::report::{Check, Performance, Report};
use crate::scenario::Scenario;
use crate::world::{Progress, World};

/// Plays a scenario to its end.
///
/// # Errors
/// When the stage cannot be set. That a check fails is no error, but in the report.
pub fn run(scenario: &Scenario, seed: u64) -> anyhow::Result<Report> {
    run_telling(scenario, seed, &mut |_| {})
}

/// As [`run`], and tells now and then how far it is.
///
/// # Errors
/// As [`run`].
pub fn run_telling(
    scenario: &Scenario,
    seed: u64,
    tell: &mut dyn FnMut(Progress),
) -> anyhow::Result<Report> {
    let (begun, used) = (Instant::now(), processor_seconds());
    let mut report = if scenario.perfect_index {
        rebuilds::play(scenario, seed, tell)?
    } else {
        let mut world = World::new(scenario, seed)?;
        world.play(tell);
        world.report(seed)
    };
    let wall_seconds = begun.elapsed().as_secs_f64();
    let memory_bytes = peak_memory();
    report.performance = Performance {
        wall_seconds,
        processor_seconds: processor_seconds() - used,
        events_per_second: report.events as f64 / wall_seconds,
        memory_bytes,
        bytes_per_node: memory_bytes / report.nodes.max(1),
    };
    Ok(report)
}

/// What this thread had of a processor; 0 where the system does not tell it.
fn processor_seconds() -> f64 {
    let told = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = told.split(' ').next().and_then(|one| one.parse().ok());
    nanos.map_or(0.0, |nanos: u64| nanos as f64 / 1e9)
}

/// The most memory that this process had; 0 where the system does not tell it.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or_default() * 1024
}

/// What many seeds gave.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Campaign {
    /// Runs.
    pub seeds: u64,
    /// Events of all.
    pub events: u64,
    /// Time on the clock.
    pub wall_seconds: f64,
    /// Runs in which a check failed, by seed.
    pub failures: Vec<Failure>,
}

/// A run in which a check failed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Failure {
    /// Its seed.
    pub seed: u64,
    /// The checks that failed.
    pub checks: Vec<Check>,
}

/// Plays a scenario with each of `seeds` seeds from `first` on, on `threads` threads, one a seed. `tell`
/// is told how many have ended.
///
/// # Errors
/// When the stage cannot be set.
pub fn campaign(
    scenario: &Scenario,
    first: u64,
    seeds: u64,
    threads: usize,
    tell: &(dyn Fn(u64) + Sync),
) -> anyhow::Result<Campaign> {
    let begun = Instant::now();
    let (next, done, events) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let failures = Mutex::new(Vec::new());
    let work = || -> anyhow::Result<()> {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= seeds {
                return Ok(());
            }
            let report = run(scenario, first + number)?;
            events.fetch_add(report.events, Ordering::Relaxed);
            if !report.passed() {
                let checks = report.failed().cloned().collect();
                let mut failures = failures.lock().expect("no thread panics with it");
                failures.push(Failure {
                    seed: report.seed,
                    checks,
                });
            }
            tell(done.fetch_add(1, Ordering::Relaxed) + 1);
        }
    };
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(work)).collect();
        let mut ended = all
            .into_iter()
            .map(|one| one.join().expect("a run does not panic"));
        ended.try_for_each(|one| one)
    })?;
    let mut failures = failures.into_inner().expect("no thread panics with it");
    failures.sort_by_key(|one| one.seed);
    Ok(Campaign {
        seeds,
        events: events.into_inner(),
        wall_seconds: begun.elapsed().as_secs_f64(),
        failures,
    })
}
