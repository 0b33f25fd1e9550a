//! The scenarios of this crate with several seeds, and what happens when a defence is missing.

use std::process::Command;

use qk_simulator::{Report, Scenario, Without, campaign, compare, run};

fn scenario(name: &str) -> Scenario {
    let path = format!("{}/scenarios/{name}.toml", env!("CARGO_MANIFEST_DIR"));
    Scenario::parse(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn hostile() -> Scenario {
    scenario("hostile")
}

fn failed(report: &Report) -> Vec<&str> {
    report.failed().map(|check| check.name.as_str()).collect()
}

/// Two seeds that are always the same, and one that nobody has tried.
#[test]
fn smoke_holds_whatever_the_seed() {
    let random = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .subsec_nanos();
    println!("random seed: {random}");
    for seed in [7, 8, u64::from(random)] {
        let report = run(&scenario("smoke"), seed).unwrap();
        assert!(report.passed(), "seed {seed}\n{report}");
    }
}

#[test]
fn the_seed_alone_decides() {
    let mut scenario = scenario("one-fetch");
    scenario.network.loss_percent = 5.0;
    let trace = |seed| run(&scenario, seed).unwrap();
    let (one, again, other) = (trace(7), trace(7), trace(8));
    assert_eq!(one.trace_hash, again.trace_hash);
    assert_eq!(compare(&one, &again), []);
    assert_ne!(one.trace_hash, other.trace_hash);
    assert!(!compare(&one, &other).is_empty());
}

#[test]
fn everything_hostile_at_once_breaks_nothing() {
    let done = campaign(&hostile(), 0, 3, 2, &|_| {}).unwrap();
    assert!(done.failures.is_empty(), "{:#?}", done.failures);
}

/// With a defence switched off a check fails that holds with it.
fn is_good_for(defence: &str, check: &str) {
    let mut scenario = hostile();
    scenario.without = Without::only(defence).unwrap();
    let mut seen = Vec::new();
    for seed in 0..6 {
        let report = run(&scenario, seed).unwrap();
        seen.extend(failed(&report).into_iter().map(str::to_owned));
        if seen.iter().any(|one| one == check) {
            return;
        }
    }
    panic!("without {defence} only {seen:?}");
}

#[test]
fn a_threshold_keeps_few_from_being_believed() {
    is_good_for("threshold", "safety");
}

#[test]
fn a_manifest_keeps_strangers_from_counting() {
    is_good_for("manifest", "safety");
}

#[test]
fn verified_blocks_are_those_that_were_observed() {
    is_good_for("verification", "integrity");
}

#[test]
fn mirrors_show_what_sybils_withhold() {
    is_good_for("mirrors", "conservation");
}

/// Twenty Sybils are all holders of what they lie around.
#[test]
fn a_mirror_tells_of_a_dissent_that_every_holder_hides() {
    let mut scenario = scenario("withhold");
    scenario.hours = 4.0;
    (scenario.nodes.servers, scenario.nodes.laptops) = (200, 60);
    (scenario.hostile.victims, scenario.hostile.sybil_crates) = (3, 3);
    scenario.hostile.dissent_minutes = 30.0;
    let hidden = |scenario: &Scenario| {
        let report = run(scenario, 1).unwrap();
        assert!(
            report.measure("decisions after a dissent") > 30.0,
            "{report}"
        );
        report.measure("dissents that stayed hidden, share")
    };
    assert!(hidden(&scenario) > 0.5);
    scenario.nodes.mirrors = 1;
    assert!(hidden(&scenario) < 0.02);
}

#[test]
fn keys_outside_the_manifest_decide_nothing_however_many() {
    let mut scenario = scenario("wrong");
    scenario.hours = 12.0;
    scenario.hostile.strangers = 64;
    let wrong = |scenario: &Scenario| run(scenario, 1).unwrap().measure("trusted wrong");
    assert_eq!(wrong(&scenario), 0.0);
    scenario.without.manifest = true;
    assert!(wrong(&scenario) > 0.0);
}

#[test]
fn what_leaves_with_its_holders_is_put_to_those_who_come() {
    let mut scenario = scenario("repair");
    scenario.hours = 8.0;
    scenario.nodes.servers = 100;
    let left = |scenario: &Scenario| run(scenario, 1).unwrap().measure("statements left, share");
    assert!(left(&scenario) > 0.98);
    scenario.network.repair = false;
    assert!(left(&scenario) < 0.95);
}

#[test]
fn deadlines_get_past_who_is_silent() {
    is_good_for("deadlines", "conservation");
}

#[test]
fn work_digests_show_copiers() {
    is_good_for("work_digest", "copiers are found");
}

#[test]
fn a_lone_dissenter_blocks_nothing_where_others_are_called() {
    is_good_for("escalation", "liveness");
}

#[test]
fn it_is_fetched_past_forgers_silence_and_loss() {
    for seed in 0..6 {
        let report = run(&scenario("one-fetch"), seed).unwrap();
        assert!(report.passed(), "seed {seed}\n{report}");
        assert!(
            report.measure("bytes for blocks") > 2_000_000.0,
            "it was transferred"
        );
    }
}

#[test]
fn one_observation_is_enough_for_who_asks_for_one_and_for_nobody_else() {
    let mut scenario = scenario("one-observation");
    for seed in 0..4 {
        let report = run(&scenario, seed).unwrap();
        assert_eq!(report.measure("trusted right"), 0.0, "{report}");
        assert!(report.measure("unproven") > 0.0, "{report}");
        assert_eq!(
            report.measure("bytes for blocks"),
            0.0,
            "nothing was transferred"
        );
    }
    scenario.policy.threshold = 1;
    let report = run(&scenario, 1).unwrap();
    assert!(report.measure("trusted right") > 0.0, "{report}");
}

#[test]
fn a_fault_that_does_not_happen_fails() {
    let mut scenario = scenario("one-observation");
    // Nothing is transferred, so nobody can forge it.
    scenario.hostile.forging = 1;
    assert_eq!(failed(&run(&scenario, 1).unwrap()), ["forging happened"]);
}

fn simulator(arguments: &[&str]) -> std::process::Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qk-simulator"));
    command.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    command.args(arguments).output().unwrap()
}

#[test]
fn the_command_line_says_whether_the_checks_held_and_how_to_play_it_again() {
    let file = "simulator/scenarios/one-fetch.toml";
    let output = simulator(&["run", file, "--seed", "3", "--json"]);
    assert!(output.status.success());
    let report: Report = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        report.trace_hash,
        run(&scenario("one-fetch"), 3).unwrap().trace_hash
    );

    let output = simulator(&["run", file, "--seed", "3", "--without", "verification"]);
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("failed: integrity"), "{told}");
    assert!(
        told.contains(&format!("-- run {file} --seed 3 --without verification")),
        "{told}"
    );
}

#[test]
fn a_file_that_cannot_be_played_is_refused_with_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("bad.toml");
    let file = file.to_str().unwrap();
    std::fs::write(file, "hours = 1\n[nodes]\nservers = 0\n").unwrap();
    let output = simulator(&["run", file]);
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(
        told.contains("line 3: nodes.servers is 0: allowed is 1 to"),
        "{told}"
    );
    let output = simulator(&["run", file, "--without", "luck"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_report_names_the_command_of_each_of_its_figures() {
    let dir = tempfile::tempdir().unwrap();
    let scenarios = dir.path().join("scenarios");
    std::fs::create_dir(&scenarios).unwrap();
    for file in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/scenarios")).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), scenarios.join(file.file_name())).unwrap();
    }
    let path = dir.path().to_str().unwrap();
    let runs = dir.path().join("runs.json");
    let again = [
        "report",
        "--size",
        "small",
        "--dir",
        path,
        "--runs",
        runs.to_str().unwrap(),
    ];
    let output = simulator(&again);
    assert!(output.status.success(), "{output:?}");
    let report = std::fs::read_to_string(dir.path().join("REPORT.md")).unwrap();
    // What was played is not played again.
    std::fs::remove_dir_all(&scenarios).unwrap();
    assert!(simulator(&again).status.success());
    let printed = std::fs::read_to_string(dir.path().join("REPORT.md")).unwrap();
    assert_eq!(printed, report);
    let page = std::fs::read_to_string(dir.path().join("report/index.html")).unwrap();
    let plots = report.matches("](report/").count();
    assert!(plots >= 5 && page.matches("<svg").count() == plots);
    // A command that stands there gives the figure that stands there.
    let command = report
        .lines()
        .find(|line| line.contains("run simulator/scenarios/prefix.toml"));
    let arguments: Vec<&str> = command.unwrap().split_whitespace().collect();
    let output = simulator(&[&arguments[..], &["--json"]].concat());
    let run: Report = serde_json::from_slice(&output.stdout).unwrap();
    let bytes = run.median("bytes by prefix").unwrap();
    assert!(
        report.contains(&format!("| {bytes:.0} |")),
        "{bytes} is not in\n{report}"
    );
}
