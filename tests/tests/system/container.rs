//! The container file. Building it takes an engine; what it starts and how that is looked after can
//! be tried without one.

use std::fs::File;
use std::process::Stdio;

use qk_tests::lab::{CLIENT, Lab, run, send, until, wait};
use qk_tests::lan::Namespace;

const FILE: &str = include_str!("../../../contrib/container/Containerfile");

/// The command lines of the instructions whose words stand in brackets.
fn lines(instruction: &str) -> Vec<Vec<String>> {
    let lines = FILE.lines().map(str::trim);
    let lines = lines.filter_map(|line| line.strip_prefix(instruction));
    lines
        .filter(|words| words.trim().starts_with('['))
        .map(|words| serde_json::from_str(words).expect("words in JSON"))
        .collect()
}

#[test]
fn what_the_container_starts_runs_and_its_health_check_tells() {
    // The ports are those of the file.
    let Some(namespace) = Namespace::new() else {
        return;
    };
    let lab = Lab::new().inside(&namespace);
    assert_eq!(lines("ENTRYPOINT"), [["qk"]]);
    let [check, start] = &lines("CMD")[..] else {
        panic!("the health check's command and the container's");
    };
    let is_healthy = || {
        let mut health = namespace.command(&check[0]);
        run(health.args(&check[1..])).code() == 0
    };
    assert!(!is_healthy(), "nothing runs yet");
    let log = File::create(lab.dir().join("container.log")).unwrap();
    let mut node = lab
        .command(CLIENT, start)
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap();
    until("the node is healthy", is_healthy);
    // STOPSIGNAL
    send(node.id(), "TERM");
    assert_eq!(wait(&mut node).code(), Some(0));
    assert!(!is_healthy());
}
