//! Crates that nobody can vouch for: these tests build, and take as long as that.

use std::process::Command;

use qk_tests::lab::{CLIENT, Lab, run};

/// A library, which resolving and reading are enough for.
#[test]
fn a_crate_without_executables_is_not_installed() {
    let lab = Lab::empty();
    let root = lab.root();
    let root = root.to_str().unwrap();
    let ran = lab.qk(CLIENT, &["fetch", "itoa@1.0.15", "--root", root]);
    ran.failed(13, &["itoa@1.0.15: it has no executables"]);
    lab.qk(CLIENT, &["build", "itoa@1.0.15"])
        .failed(13, &["itoa@1.0.15: it has no executables"]);
    assert!(lab.installed().is_empty());
}

/// Published before cargo packed locks: built and installed, keyed and signed by nobody.
#[test]
fn a_crate_without_a_lock_is_built_and_nothing_is_signed() {
    let mut lab = Lab::new();
    lab.start_alice();
    lab.fetch(&[NO_LOCK]).failed(11, &["unproven"]);
    let mut fetch = lab.command(CLIENT, &["fetch", NO_LOCK, "--root"]);
    let ran = run(fetch.arg(lab.root()).arg("--json"));
    let one = &ran.done()["crates"][0];
    assert_eq!(one["how"], "built", "{one}");
    assert!(one["key_id"].is_null() && one["lock"].is_null(), "{one}");
    let mut program = Command::new(lab.root().join("bin/hexyl"));
    assert!(run(program.arg("--version")).stdout.starts_with("hexyl 0."));
    let proofs = lab.qk(CLIENT, &["proofs", NO_LOCK]).done();
    let lines = proofs["networks"][0]["verdict"]["lines"]
        .as_array()
        .unwrap();
    assert!(lines.is_empty(), "{proofs}");
}

/// A release without a `Cargo.lock` in its `.crate`.
const NO_LOCK: &str = "hexyl@0.2.0";

#[test]
fn without_a_network_it_says_so_and_builds() {
    let lab = Lab::empty();
    let mut fetch = lab.command(CLIENT, &["fetch", "itoa@1.0.15", "--root"]);
    let ran = run(fetch.arg(lab.root()));
    ran.failed(13, &["no network is joined; building it here", "qk join"]);
}
