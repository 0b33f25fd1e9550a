//! The scenarios of this crate, over many seeds, and what happens when something about them changes.

use std::collections::BTreeSet;
use std::process::Command;

use qk_simulator::{Expect, Report, Scenario, run};

const SEEDS: u64 = 12;

fn one_fetch() -> Scenario {
    Scenario::parse(include_str!("../scenarios/one-fetch.toml")).unwrap()
}

fn one_observation() -> Scenario {
    Scenario::parse(include_str!("../scenarios/one-observation.toml")).unwrap()
}

fn failed(report: &Report) -> Vec<&str> {
    let failed = report.checks.iter().filter(|check| !check.held);
    failed.map(|check| check.name.as_str()).collect()
}

#[test]
fn it_is_fetched_whatever_the_seed() {
    for seed in 0..SEEDS {
        let report = run(&one_fetch(), seed).unwrap();
        assert!(report.passed(), "seed {seed}\n{report}");
        assert!(report.bytes > 6_000_000, "it was transferred");
    }
}

#[test]
fn one_observation_is_not_enough_whatever_the_seed() {
    for seed in 0..SEEDS {
        let report = run(&one_observation(), seed).unwrap();
        assert!(report.passed(), "seed {seed}\n{report}");
        assert!(report.bytes < 1_000_000, "nothing was transferred");
    }
}

/// The same scenario with a client that asks for less: the threshold alone held it back.
#[test]
fn one_observation_is_enough_for_who_asks_for_one() {
    let scenario = Scenario {
        threshold: 1,
        expect: Expect::Done,
        ..one_observation()
    };
    let report = run(&scenario, 1).unwrap();
    assert!(report.passed(), "{report}");
}

#[test]
fn the_seed_alone_decides() {
    let trace = |seed| run(&one_fetch(), seed).unwrap();
    assert_eq!(trace(7), trace(7));
    let hashes: BTreeSet<String> = (0..4).map(|seed| trace(seed).trace_hash).collect();
    assert_eq!(hashes.len(), 4);
}

#[test]
fn a_fault_that_does_not_happen_fails() {
    let mut scenario = one_observation();
    // Nothing is transferred, so nobody can lie about it.
    scenario.faults.lying_providers = 1;
    assert_eq!(
        failed(&run(&scenario, 1).unwrap()),
        ["lying_providers did happen"]
    );
}

#[test]
fn another_end_than_the_expected_fails() {
    let scenario = Scenario {
        expect: Expect::Unproven,
        ..one_fetch()
    };
    assert_eq!(failed(&run(&scenario, 1).unwrap()), ["it ends as expected"]);
}

#[test]
fn more_liars_than_honest_nodes_only_cost_time() {
    let mut scenario = one_fetch();
    scenario.faults.lying_providers = 5;
    let report = run(&scenario, 3).unwrap();
    assert!(report.passed(), "{report}");
    assert!(report.virtual_ms > run(&one_fetch(), 3).unwrap().virtual_ms);
}

#[test]
fn what_cannot_be_played_is_refused() {
    let text = include_str!("../scenarios/one-fetch.toml");
    for (from, to) in [
        ("nodes = 8", "nodes = 3"),
        ("threshold = 2", "threshold = 0"),
        ("observations = 3", "observations = 4"),
        ("lost_one_in = 12", "lost_one_in = 1"),
        ("silent_nodes", "silent_node"),
    ] {
        assert!(Scenario::parse(&text.replace(from, to)).is_err(), "{to}");
    }
}

#[test]
fn the_command_line_says_whether_the_checks_held() {
    let simulator = |file: &std::path::Path| {
        Command::new(env!("CARGO_BIN_EXE_qk-simulator"))
            .args(["run", "--seed", "3", "--json"])
            .arg(file)
            .output()
            .unwrap()
    };
    let good = concat!(env!("CARGO_MANIFEST_DIR"), "/scenarios/one-fetch.toml");
    let output = simulator(good.as_ref());
    assert!(output.status.success());
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let trace_hash = run(&one_fetch(), 3).unwrap().trace_hash;
    assert_eq!(json["trace_hash"], trace_hash);

    let bad = std::env::temp_dir().join(format!("qk-simulator-{}.toml", std::process::id()));
    let text = include_str!("../scenarios/one-fetch.toml").replace("\"done\"", "\"unproven\"");
    std::fs::write(&bad, text).unwrap();
    let output = simulator(&bad);
    std::fs::remove_file(&bad).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(!output.stdout.is_empty());
}
