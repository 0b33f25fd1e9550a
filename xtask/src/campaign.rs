//! Campaigns: tests that repeat one thing, told by the environment for how long.

use anyhow::Result;

use crate::{cargo, setup};

/// Runs one test of an integration test, with `settings` in its environment and its output shown.
fn run(package: &str, file: &str, test: &str, settings: &[(&str, Option<String>)]) -> Result<()> {
    run_of(&["--package", package, "--test", file], test, settings)
}

fn run_of(selection: &[&str], test: &str, settings: &[(&str, Option<String>)]) -> Result<()> {
    let mut cargo = cargo::command();
    cargo.arg("test").args(selection);
    cargo.args(["--", "--exact", test, "--nocapture"]);
    for (name, value) in settings {
        if let Some(value) = value {
            cargo.env(name, value);
        }
    }
    cargo::run(&mut cargo)
}

/// Throws mutated input at the decoders for `seconds` altogether.
///
/// # Errors
/// When something is found, or does not compile.
pub fn fuzz(seconds: u64, seed: u64, target: Option<String>) -> Result<()> {
    eprintln!("seed {seed}");
    let settings = [
        ("QK_FUZZ_SECONDS", Some(seconds.to_string())),
        ("QK_FUZZ_SEED", Some(seed.to_string())),
        ("QK_FUZZ_TARGET", target),
    ];
    run(
        "qk-protocol",
        "fuzz",
        "no_decoder_breaks_a_promise",
        &settings,
    )
}

/// Cuts the power under a process that works on a store, `rounds` times at random points.
///
/// # Errors
/// When something acknowledged is lost or something wrong is served, or does not compile.
pub fn power(rounds: u64, seed: u64) -> Result<()> {
    eprintln!("seed {seed}");
    let settings = [
        ("QK_POWER_ROUNDS", Some(rounds.to_string())),
        ("QK_POWER_SEED", Some(seed.to_string())),
    ];
    let test = "nothing_acknowledged_is_lost_to_a_power_cut";
    run("qk-tests", "store_power", test, &settings)
}

/// Lets operations of a store fail with ENOSPC and EIO, one after the other.
///
/// # Errors
/// As [`power`].
pub fn faults(rounds: u64, seed: u64) -> Result<()> {
    eprintln!("seed {seed}");
    let settings = [
        ("QK_FAULT_ROUNDS", Some(rounds.to_string())),
        ("QK_FAULT_SEED", Some(seed.to_string())),
    ];
    let test = "no_failing_operation_loses_what_was_acknowledged";
    run("qk-tests", "store_faults", test, &settings)
}

/// Flips bits in the files of a store, `rounds` of them in each file.
///
/// # Errors
/// As [`power`].
pub fn flips(rounds: u64, seed: u64) -> Result<()> {
    eprintln!("seed {seed}");
    let settings = [
        ("QK_FLIP_ROUNDS", Some(rounds.to_string())),
        ("QK_FLIP_SEED", Some(seed.to_string())),
    ];
    let test = "a_flipped_bit_in_any_file_costs_no_more_than_itself";
    run("qk-tests", "store_flips", test, &settings)
}

/// Lets many nodes rebuild tiny crates, some of which lie, and has every honest client fetch them.
///
/// # Errors
/// When a client does not end with what the source compiles to, or it takes too long; or the machine
/// cannot be prepared.
pub fn crowd(size: Crowd, seed: u64) -> Result<()> {
    setup::prepare()?;
    // One compilation for both: the node under test has the features that the test sees.
    let tests = ["--workspace", "--test", "system"];
    let qk = cargo::build("qk", &[&tests[..], &["--bin", "qk"]].concat())?;
    setup::toolchain(&qk)?;
    eprintln!("seed {seed}");
    let settings = [
        ("QK_BIN", Some(qk.display().to_string())),
        ("QK_CROWD_NODES", Some(size.nodes.to_string())),
        ("QK_CROWD_KEYS", Some(size.keys.to_string())),
        ("QK_CROWD_LIARS", Some(size.liars.to_string())),
        ("QK_CROWD_SEED", Some(seed.to_string())),
    ];
    let test = "crowd::every_honest_client_ends_with_the_right_answer";
    run_of(&tests, test, &settings)
}

/// How large a crowd is.
#[derive(Debug, Clone, Copy)]
pub struct Crowd {
    /// Nodes that rebuild, liars included.
    pub nodes: u64,
    /// Crates.
    pub keys: u64,
    /// Nodes that state a trojan whenever it is their turn.
    pub liars: u64,
}

/// Kills a process that works on a store, `rounds` times at random points.
///
/// # Errors
/// When something acknowledged is lost or something wrong is served, or does not compile.
pub fn kill(rounds: u64, seed: u64) -> Result<()> {
    eprintln!("seed {seed}");
    let settings = [
        ("QK_KILL_ROUNDS", Some(rounds.to_string())),
        ("QK_KILL_SEED", Some(seed.to_string())),
    ];
    let test = "nothing_acknowledged_is_lost_to_kill_9";
    run("qk-tests", "store_kill", test, &settings)
}

/// Lets builds do their worst in the sandbox, `rounds` times.
///
/// # Errors
/// When a process, mount, directory or control group is left, or does not compile.
pub fn bombs(rounds: u64, seed: u64) -> Result<()> {
    eprintln!("seed {seed}");
    let settings = [
        ("QK_BOMB_ROUNDS", Some(rounds.to_string())),
        ("QK_BOMB_SEED", Some(seed.to_string())),
    ];
    run("qk-tests", "bombs", "nothing_is_left_of_a_bomb", &settings)
}
