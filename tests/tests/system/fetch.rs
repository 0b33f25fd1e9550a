//! The main job: refused until it is proven, then installed as `cargo install` does.

use std::path::Path;
use std::process::Command;

use qk_tests::artifact::{CRATE, Options, SPEC, artifact, artifact_with};
use qk_tests::lab::{ALICE, BOB, CAROL, CLIENT, Lab, Ran, run};

#[test]
fn what_is_unproven_is_refused_and_what_is_proven_is_installed() {
    let mut lab = Lab::new();
    lab.start_alice();
    let artifact = artifact(&lab.joined(ALICE).network);
    let published = lab.publish(ALICE, &artifact);
    assert_eq!(published.holders, 1, "nobody else runs");

    lab.fetch(&[SPEC])
        .failed(11, &["unproven", "network lab", "qk proofs"]);
    assert!(lab.installed().is_empty());

    lab.publish(BOB, &artifact);
    lab.publish(CAROL, &artifact);
    let fetched = lab.fetch(&[SPEC]).done();
    let one = &fetched["crates"][0];
    assert_eq!(one["how"], "network", "{one}");
    assert_eq!(one["root"], artifact.subject.root.to_string());
    assert_eq!(one["key_id"], artifact.key.id().to_string());
    assert_eq!(one["bytes"], artifact.subject.size);
    let mut names: Vec<_> = one["observations"]
        .as_array()
        .unwrap()
        .iter()
        .map(|line| &line["principal"])
        .collect();
    names.sort_by_key(|name| name.to_string());
    assert_eq!(names, [ALICE, BOB, CAROL]);

    let program = lab.root().join("bin/hexyl");
    assert_eq!(one["installed"][0], program.to_str().unwrap());
    assert_eq!(run(&mut Command::new(&program)).stdout, "hexyl 0.17.0\n");
    let (name, version) = CRATE;
    assert_eq!(
        cargo(&lab.root(), &["install", "--list"]).stdout,
        format!("{name} v{version}:\n    {name}\n")
    );
    cargo(&lab.root(), &["uninstall", name]).done();
    assert!(!program.exists());
    assert_eq!(cargo(&lab.root(), &["install", "--list"]).stdout, "");
}

#[test]
fn what_was_fetched_comes_from_the_store_when_every_node_is_dead() {
    let mut lab = Lab::new();
    lab.start_alice();
    let artifact = artifact(&lab.joined(ALICE).network);
    lab.publish(ALICE, &artifact);
    lab.publish(BOB, &artifact);
    lab.fetch(&[SPEC]).done();
    lab.kill(ALICE);
    std::fs::remove_dir_all(lab.root()).unwrap();
    for more in [&[SPEC][..], &[SPEC, "--offline"]] {
        let fetched = lab.fetch(more).done();
        assert_eq!(fetched["crates"][0]["how"], "store");
        assert_eq!(
            run(&mut Command::new(lab.root().join("bin/hexyl"))).stdout,
            "hexyl 0.17.0\n"
        );
    }
    let proofs = lab.qk(CLIENT, &["proofs", SPEC, "--offline"]).done();
    assert_eq!(
        proofs["networks"][0]["verdict"]["decision"], "trusted",
        "{proofs}"
    );
}

#[test]
fn a_running_node_fetches_for_its_commands() {
    let mut lab = Lab::new();
    lab.start_alice();
    lab.start_any(CLIENT);
    let artifact = artifact(&lab.joined(ALICE).network);
    lab.publish(ALICE, &artifact);
    lab.fetch(&[SPEC]).failed(11, &["unproven"]);
    lab.publish(BOB, &artifact);
    let fetched = lab.fetch(&[SPEC]).done();
    assert_eq!(fetched["crates"][0]["how"], "network");
    let status = lab.qk(CLIENT, &["status"]).done();
    assert_eq!(status["running"], true);
    assert_eq!(status["process"], lab.process(CLIENT));
    assert_eq!(status["store"]["artifacts"], 1);
}

#[test]
fn one_failure_keeps_its_reason_and_several_give_1() {
    let mut lab = Lab::new();
    lab.start_alice();
    let artifact = artifact(&lab.joined(ALICE).network);
    lab.publish(ALICE, &artifact);
    lab.publish(BOB, &artifact);
    let ran = lab.fetch(&["qk-no-such-crate-0", SPEC]);
    ran.failed(10, &["qk-no-such-crate-0"]);
    assert_eq!(ran.json()["crates"][0]["name"], "hexyl");
    assert!(
        lab.root().join("bin/hexyl").is_file(),
        "what can be installed is"
    );
    lab.fetch(&["qk-no-such-crate-0", "sd@1.0.0"])
        .failed(1, &["2 crates failed"]);
}

#[test]
fn a_program_that_asks_for_a_newer_glibc_is_not_installed() {
    let mut lab = Lab::new();
    lab.start_alice();
    let options = Options {
        future_glibc: true,
        ..Options::default()
    };
    let artifact = artifact_with(&lab.joined(ALICE).network, &options);
    lab.publish(ALICE, &artifact);
    lab.publish(BOB, &artifact);
    lab.fetch(&[SPEC])
        .failed(16, &["hexyl: needs glibc 2.99, and this machine has 2."]);
    assert!(lab.installed().is_empty());
}

fn cargo(root: &Path, args: &[&str]) -> Ran {
    let mut cargo = Command::new("cargo");
    cargo.args(args).arg("--root").arg(root).arg("--quiet");
    let ran = run(&mut cargo);
    assert_eq!(ran.code(), 0, "{}", ran.stderr);
    ran
}
