//! All tests, by whichever runner is there.

use anyhow::Result;

use crate::{cargo, setup};

/// The package whose tests start real processes and need a prepared machine.
const SYSTEM_TESTS: &str = "qk-tests";

/// Runs the tests. `quick` leaves out what needs processes, a network or a prepared machine;
/// `args` go to the test runner, and without them the documentation tests run as well.
///
/// # Errors
/// When the machine cannot be prepared, something does not compile, or a test fails.
pub fn run(quick: bool, args: &[String]) -> Result<()> {
    let mut runner = runner();
    if quick {
        runner.args(["--exclude", SYSTEM_TESTS]);
    } else {
        setup::prepare()?;
        // One build with the features that the tests see: the runner then compiles nothing again,
        // and the executable under test comes from the same compilation.
        let qk = cargo::build("qk", &["--workspace", "--all-targets"])?;
        setup::toolchain(&qk)?;
        runner.env("QK_BIN", qk);
    }
    let tests = cargo::run(runner.args(args));
    if !args.is_empty() {
        return tests;
    }
    // Run even after a failure: one run is to show everything that is wrong.
    let mut documentation = cargo::command();
    documentation.args(["test", "--workspace", "--doc"]);
    let documentation = cargo::run(&mut documentation);
    tests.and(documentation)
}

/// nextest where it is installed, cargo's own runner elsewhere; both without documentation tests.
fn runner() -> std::process::Command {
    let mut runner = cargo::command();
    if cargo::has("nextest") {
        runner.args(["nextest", "run", "--workspace", "--no-fail-fast"]);
    } else {
        runner.args(["test", "--workspace", "--all-targets", "--no-fail-fast"]);
    }
    runner
}
