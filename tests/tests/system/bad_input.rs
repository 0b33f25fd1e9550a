//! What people get wrong, each with its own message and exit code.

use std::fs;

use qk_tests::artifact::{SPEC, artifact};
use qk_tests::lab::{ALICE, BOB, CLIENT, Lab, run};

#[test]
fn unknown_crates_versions_and_targets() {
    let mut lab = Lab::new();
    lab.start_alice();
    lab.fetch(&["qk-no-such-crate-0"])
        .failed(10, &["qk-no-such-crate-0"]);
    lab.fetch(&["hexyl@99.0.0"])
        .failed(10, &["hexyl", "99.0.0", "0.17.0"]);
    let target = "riscv64gc-unknown-linux-gnu";
    lab.fetch(&[SPEC, "--target", target])
        .failed(10, &["no joined network builds for", target]);
    lab.fetch(&["hexyl@0.17"]).failed(
        2,
        &["give all three numbers, or ask for a range with ^0.17"],
    );
    lab.fetch(&["../etc/passwd"]).failed(2, &["name"]);
    lab.qk(CLIENT, &["fetch", SPEC, "--fallback", "perhaps"])
        .failed(2, &["perhaps"]);
    assert!(lab.installed().is_empty());
}

#[test]
fn a_target_that_cannot_be_built_here_says_what_to_run() {
    let lab = Lab::new();
    let ran = lab.qk(
        CLIENT,
        &[
            "build",
            SPEC,
            "--target",
            "x86_64-unknown-linux-musl",
            "--no-publish",
        ],
    );
    // Where even the toolchain for this machine's own target is missing, that is what it says.
    let says = if ran.error().contains("building needs") {
        "qk setup"
    } else {
        "rustup target add"
    };
    ran.failed(13, &[says]);
}

#[test]
fn without_a_network_it_says_so() {
    let lab = Lab::empty();
    lab.fetch(&[SPEC])
        .failed(11, &["no network is joined", "qk join", "qk network new"]);
    lab.qk(CLIENT, &["proofs", SPEC])
        .failed(11, &["no network is joined", "qk join"]);
    lab.qk(CLIENT, &["network", "show"])
        .failed(11, &["no network is joined"]);
    assert!(lab.installed().is_empty());
}

#[test]
fn with_every_node_dead_it_says_so() {
    let lab = Lab::new();
    lab.fetch(&[SPEC]).failed(
        14,
        &[
            "none of the 1 known nodes of network lab answered",
            "qk network show",
        ],
    );
    assert!(lab.installed().is_empty());
}

#[test]
fn offline_only_what_is_here_counts() {
    let mut lab = Lab::new();
    lab.start_alice();
    let artifact = artifact(&lab.joined(ALICE).network);
    lab.publish(ALICE, &artifact);
    lab.state(BOB, &artifact);
    lab.fetch(&[SPEC, "--offline"]).failed(11, &["unproven"]);
    // A registry that was never asked.
    let cargo_home = lab.dir().join("cargo");
    fs::create_dir(&cargo_home).unwrap();
    let ran = run(lab
        .fetch_command(CLIENT, &[SPEC, "--offline"])
        .env("CARGO_HOME", &cargo_home));
    ran.failed(
        14,
        &[
            "hexyl is not in cargo's cache",
            "the network is not to be used",
        ],
    );
    assert!(lab.installed().is_empty());
    lab.fetch(&[SPEC]).done();
}

#[test]
fn a_project_can_only_tighten_the_policy_and_its_file_has_to_be_right() {
    let mut lab = Lab::new();
    lab.start_alice();
    let artifact = artifact(&lab.joined(ALICE).network);
    lab.publish(ALICE, &artifact);
    lab.publish(BOB, &artifact);
    let project = lab.dir().join("project");
    fs::create_dir(&project).unwrap();
    let fetch = |text: &str| {
        fs::write(project.join("qk.toml"), text).unwrap();
        run(lab.fetch_command(CLIENT, &[SPEC]).current_dir(&project))
    };
    fetch("[policy\n").failed(2, &["qk.toml", "line 1"]);
    fetch("[policy]\ntreshold = 3\n").failed(2, &["qk.toml", "treshold"]);
    fetch("[policy]\nthreshold = 3\n").failed(11, &["2 of 3 principals"]);
    assert!(lab.installed().is_empty());
    // One principal would do for the project: the network still asks for two, and has them.
    fetch("[policy]\nthreshold = 1\n").done();
}

#[test]
fn a_malformed_configuration_is_named_with_its_place() {
    let lab = Lab::new();
    let path = lab.home(CLIENT).dir().join("config.toml");
    let path = path.to_str().unwrap();
    let cases = [
        ("quota_bytes = \"much\"\n", "quota_bytes"),
        ("quoat_bytes = 1\n", "quoat_bytes"),
        (
            "[policy]\nthreshold = 0\n",
            "a threshold of 0 would trust what nobody observed",
        ),
        ("= 1\n", "line 3"),
        ("listen = [\"nowhere\"]\n", "nowhere"),
    ];
    for (text, says) in cases {
        lab.configure(CLIENT, text);
        let ran = lab.qk(CLIENT, &["node"]);
        ran.failed(2, &[says]);
        if says != "nowhere" {
            ran.failed(2, &[path]);
            lab.fetch(&[SPEC]).failed(2, &[path, says]);
        }
    }
    fs::write(path, vec![b'#'; 300_000]).unwrap();
    lab.fetch(&[SPEC])
        .failed(2, &[path, "more than 262144 bytes"]);
    assert!(lab.installed().is_empty());
}

#[test]
fn an_owners_policy_is_a_floor() {
    let mut lab = Lab::new();
    lab.start_alice();
    let artifact = artifact(&lab.joined(ALICE).network);
    lab.publish(ALICE, &artifact);
    lab.state(BOB, &artifact);
    lab.configure(CLIENT, "[policy]\nthreshold = 3\n");
    lab.fetch(&[SPEC]).failed(11, &["unproven"]);
    lab.configure(CLIENT, "[policy]\nthreshold = 1\n");
    lab.fetch(&[SPEC]).done();
}

#[test]
fn damaged_homes_are_named() {
    let lab = Lab::new();
    let key = lab.home(CLIENT).dir().join("keys/observer");
    fs::create_dir_all(key.parent().unwrap()).unwrap();
    let kept = fs::read(&key).ok();
    fs::write(&key, "not hex").unwrap();
    lab.fetch(&[SPEC])
        .failed(2, &[key.to_str().unwrap(), "64 hex digits"]);
    match kept {
        Some(kept) => fs::write(&key, kept).unwrap(),
        None => fs::remove_file(&key).unwrap(),
    }
    let networks = lab.home(CLIENT).dir().join("networks");
    let mut files = fs::read_dir(&networks)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let file = files
        .find(|file| file.extension() == Some("json".as_ref()))
        .unwrap();
    let text = fs::read_to_string(&file).unwrap();
    // Another network than the one that was joined: the signature no longer fits.
    let envelope = text.find("payload").unwrap() + 20;
    let mut changed = text.clone().into_bytes();
    changed[envelope] = if changed[envelope] == b'A' {
        b'B'
    } else {
        b'A'
    };
    fs::write(&file, changed).unwrap();
    let ran = lab.fetch(&[SPEC]);
    assert!([2, 15].contains(&ran.code()), "{ran:?}");
    ran.failed(ran.code(), &[file.to_str().unwrap()]);
    fs::write(&file, text).unwrap();
    lab.fetch(&[SPEC])
        .failed(14, &["none of the 1 known nodes"]);
}
