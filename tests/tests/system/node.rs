//! Nodes as processes: one a home, one a store, and how they end.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::time::Duration;

use qk_tests::artifact::{SPEC, artifact};
use qk_tests::lab::{ALICE, BOB, CLIENT, Lab, run};

#[test]
fn a_second_node_on_a_home_is_refused() {
    let mut lab = Lab::new();
    lab.start_alice();
    let process = format!("process {}", lab.process(ALICE));
    let again = ["node", "--listen", "/ip4/127.0.0.1/tcp/0"];
    lab.qk(ALICE, &again)
        .failed(1, &["another node is running on", &process]);
    // A socket that somebody removed does not make room for a second one.
    fs::remove_file(lab.home(ALICE).socket()).unwrap();
    lab.qk(ALICE, &again)
        .failed(1, &["another node is running on"]);
}

#[test]
fn a_second_node_on_a_store_is_refused() {
    let mut lab = Lab::new();
    lab.start_alice();
    symlink(lab.home(ALICE).store(), lab.home(BOB).store()).unwrap();
    let ran = lab.qk(BOB, &["node", "--listen", "/ip4/127.0.0.1/tcp/0"]);
    ran.failed(1, &["in use by another process"]);
    lab.qk(ALICE, &["status"]).done();
}

#[test]
fn a_node_is_its_users_own_and_ends_when_told_to() {
    let mut lab = Lab::new();
    let socket = lab.home(ALICE).socket();
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
    // By a service manager, and by Ctrl-C; also at once, when it has just said that it runs.
    for signal in ["TERM", "INT"] {
        lab.start_alice();
        assert_eq!(mode(&socket), 0o600);
        assert_eq!(mode(&lab.home(ALICE).dir().join("keys/observer")), 0o600);
        let (status, took) = lab.stop(ALICE, signal);
        assert_eq!(status.code(), Some(0), "{signal}: {}", lab.log(ALICE));
        assert!(took < Duration::from_secs(2), "{signal}: {took:?}");
        assert!(!socket.exists(), "{signal}");
        let status = lab.qk(ALICE, &["status"]).done();
        assert_eq!(status["running"], false);
    }
}

#[test]
fn a_node_that_was_killed_starts_again_with_everything() {
    let mut lab = Lab::new();
    lab.start_alice();
    let artifact = artifact(&lab.joined(ALICE).network);
    lab.publish(ALICE, &artifact);
    lab.state(BOB, &artifact);
    lab.kill(ALICE);
    assert!(
        lab.home(ALICE).socket().exists(),
        "nobody was there to remove it"
    );
    lab.fetch(&[SPEC])
        .failed(14, &["none of the 1 known nodes of network lab answered"]);
    lab.start_alice();
    assert_eq!(lab.fetch(&[SPEC]).done()["crates"][0]["how"], "network");
}

#[test]
fn a_store_of_a_newer_version_is_left_alone() {
    let mut lab = Lab::new();
    lab.start_alice();
    let artifact = artifact(&lab.joined(ALICE).network);
    lab.publish(ALICE, &artifact);
    lab.state(BOB, &artifact);
    lab.fetch(&[SPEC]).done();
    fs::remove_dir_all(lab.root()).unwrap();
    let version = lab.home(CLIENT).store().join("version");
    let known = fs::read(&version).unwrap();
    fs::write(&version, "99\n").unwrap();
    let says = ["has format version 99, this qk knows up to 1"];
    lab.fetch(&[SPEC]).failed(1, &says);
    lab.qk(CLIENT, &["node", "--listen", "/ip4/127.0.0.1/tcp/0"])
        .failed(1, &says);
    lab.qk(CLIENT, &["store", "ls"]).failed(1, &says);
    assert!(lab.installed().is_empty());
    fs::write(&version, known).unwrap();
    assert_eq!(
        run(&mut lab.fetch_command(CLIENT, &[SPEC])).done()["crates"][0]["how"],
        "store"
    );
}

#[test]
fn a_running_node_takes_a_network_that_is_joined_later() {
    let mut lab = Lab::new();
    lab.start_alice();
    fs::remove_dir_all(lab.home(CLIENT).dir().join("networks")).unwrap();
    lab.start_any(CLIENT);
    lab.fetch(&[SPEC])
        .failed(11, &["no network is joined", "qk join"]);
    let file = lab.network_file();
    lab.qk(CLIENT, &["join", file.to_str().unwrap()]).done();
    let artifact = artifact(&lab.joined(ALICE).network);
    lab.publish(ALICE, &artifact);
    lab.state(BOB, &artifact);
    lab.fetch(&[SPEC]).done();
}
