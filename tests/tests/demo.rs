//! The main job, as a user sees it: build, publish, be refused, rebuild, prove, fetch, run.

use std::process::{Command, Stdio};

use serde_json::Value;

/// Four real sandbox builds of a real crate: the slowest test there is.
#[test]
fn the_whole_way_once() {
    let home = tempfile::tempdir().unwrap();
    let output = Command::new(qk_tests::qk())
        .args(["demo", "--crate", "hexyl@0.17.0", "--json"])
        .env("TMPDIR", home.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&output.stdout)
    );
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();

    assert_eq!(report["refused"]["exit_code"], 11);
    let observations = report["observations"].as_array().unwrap();
    let principals: std::collections::BTreeSet<_> = observations
        .iter()
        .map(|one| one["principal"].as_str().unwrap())
        .collect();
    assert_eq!(principals, ["alice", "bob", "carol"].into());
    assert!(observations.iter().all(|one| one["root"] == report["root"]));
    // Alice built twice, and stated her work; both verifiers got the same, and say so.
    for one in report["work"].as_array().unwrap() {
        let (agree, differ) = (&one["agree"], &one["differ"]);
        assert!(agree.as_u64() >= Some(1) && *differ == 0, "{one}");
    }
    assert_eq!(report["b3sum"], report["root"]);
    assert_eq!(report["installed"]["version"], "hexyl 0.17.0");
    assert!(report["blocks_verified"].as_u64().unwrap() > 0);
    assert!(!report["stages"].as_array().unwrap().is_empty());

    let left: Vec<_> = std::fs::read_dir(home.path())
        .unwrap()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}
