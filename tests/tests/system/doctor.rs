//! `qk doctor`: what is not in order, and how to mend it.

use qk_protocol::policy::Count;
use qk_tests::lab::{ALICE, CLIENT, Lab, Ran};
use serde_json::Value;

/// What is said about something: whether it is in order, and how to mend it.
#[track_caller]
fn said(ran: &Ran, about: &str, words: &str) -> (bool, String) {
    let report = ran.json();
    let checks = report["checks"].as_array().expect("checks").iter();
    let is = |check: &&Value| {
        check["about"] == about
            && check["what"]
                .as_str()
                .is_some_and(|what| what.contains(words))
    };
    let check = checks.clone().find(is);
    let check = check.unwrap_or_else(|| panic!("{about} {words:?} is missing in {}", ran.stdout));
    let how = check["how"].as_str().unwrap_or_default().to_owned();
    (check["ok"] == true, how)
}

#[track_caller]
fn mended_by(ran: &Ran, about: &str, words: &str, how: &str) {
    let (is_ok, told) = said(ran, about, words);
    assert!(!is_ok && told.contains(how), "{told}");
    assert_eq!(ran.code(), 1, "{}", ran.stdout);
    let error = ran.json()["error"].as_str().unwrap_or_default().to_owned();
    assert!(
        error.contains("not in order") && error.contains(words),
        "{error}"
    );
}

#[test]
fn networks_nodes_clock_and_trust() {
    let mut lab = Lab::new();
    let doctor = |lab: &Lab, args: &[&str]| lab.qk(CLIENT, &[&["doctor"], args].concat());
    mended_by(
        &doctor(&lab, &[]),
        "network",
        "nodes of network lab",
        "none answered: do /ip4/127.0.0.1/tcp/",
    );
    lab.start_alice();
    let ran = doctor(&lab, &[]);
    for (about, words) in [
        ("network", "nodes of network lab answer (1)"),
        ("network", "the timestamp of network lab"),
        ("clock", "the clock is not behind"),
        ("trust", "the policy in network lab can be met"),
        ("sandbox", "the sandbox works"),
        ("toolchain", "rustc"),
    ] {
        assert!(said(&ran, about, words).0, "{about} {words}");
    }
    // A running node does not count itself.
    lab.start_any(CLIENT);
    assert!(said(&doctor(&lab, &[]), "network", "answer (1)").0);
    lab.kill(CLIENT);
    // Who asks for more than there is.
    lab.configure(CLIENT, "[policy]\nthreshold = 4\n");
    let how = "the policy asks for 4 principals, and 3 that count can observe";
    mended_by(
        &doctor(&lab, &["--offline"]),
        "trust",
        "the policy in network lab",
        how,
    );
    lab.configure(
        CLIENT,
        "[policy]\nthreshold = 3\n[policy.crates.hexyl]\nthreshold = 9\n",
    );
    let how = "hexyl asks for 9 principals";
    mended_by(
        &doctor(&lab, &["--offline"]),
        "trust",
        "the policy in network lab",
        how,
    );
    lab.configure(CLIENT, "");
    let next = lab.next_version(|manifest| {
        manifest.policy.count = Count::Assigned;
        manifest.committee.size = 1;
    });
    lab.know(CLIENT, next);
    let how = "asks for 2 principals, and 1 that count can be assigned";
    mended_by(
        &doctor(&lab, &["--offline"]),
        "trust",
        "the policy in network lab",
        how,
    );
    // Offline nobody is asked.
    let ran = doctor(&lab, &["--offline"]);
    assert!(!ran.stdout.contains("nodes of network"), "{}", ran.stdout);
    assert_eq!(lab.joined(ALICE).network.manifest().name, "lab");
}

#[test]
fn a_machine_that_is_not_set_up() {
    let lab = Lab::empty();
    let mut without = lab.command(CLIENT, &["doctor", "--json", "--offline"]);
    let bin = lab.dir().join("cargo/bin");
    without.env("CARGO_HOME", lab.dir().join("cargo"));
    let ran: Ran = without.output().expect("it starts").into();
    mended_by(&ran, "network", "no network is joined", "qk join FILE|URL");
    let how = format!("export PATH=\"{}:$PATH\"", bin.display());
    mended_by(&ran, "path", "is not on PATH", &how);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(std::env::split_paths(&path).chain([bin])).unwrap();
    let ran: Ran = without
        .env("PATH", path)
        .output()
        .expect("it starts")
        .into();
    assert!(said(&ran, "path", "is on PATH").0);
    // As much as no disk has.
    lab.configure(CLIENT, "free_floor_bytes = 4000000000000000000\n");
    let ran: Ran = without.output().expect("it starts").into();
    mended_by(&ran, "disk", "free on the disk of", "`qk store gc`");
    lab.configure(CLIENT, "nonsense = 1\n");
    let ran: Ran = without.output().expect("it starts").into();
    mended_by(&ran, "disk", "config.toml", "nonsense");
    // A file where the directory should be.
    let file = lab.dir().join("file");
    std::fs::write(&file, "").unwrap();
    let ran: Ran = without
        .env("QK_HOME", &file)
        .output()
        .expect("it starts")
        .into();
    mended_by(&ran, "disk", "cannot be written", "QK_HOME");
}
