//! Artifacts beside each other, and the logs of builds.

use qk_protocol::hash::Blake3;
use qk_tests::artifact::{Artifact, Options, SPEC, artifact, artifact_with};
use qk_tests::lab::{ALICE, BOB, CAROL, CLIENT, Lab};
use serde_json::Value;

fn other(lab: &Lab) -> Artifact {
    let options = Options {
        mark: ", built at 1795671000 s".to_owned(),
        ..Options::default()
    };
    artifact_with(&lab.joined(ALICE).network, &options)
}

#[test]
fn what_principals_dispute_is_got_to_look_at_and_no_more() {
    let mut lab = Lab::new();
    lab.start_alice();
    let (one, two) = (artifact(&lab.joined(ALICE).network), other(&lab));
    lab.publish(ALICE, &one);
    lab.start_any(BOB);
    lab.publish(BOB, &two);
    // Nobody trusts either of them.
    lab.fetch(&[SPEC]).failed(12, &["disputed"]);
    let ran = lab.qk(CLIENT, &["diff", SPEC]);
    assert_eq!(ran.code(), 12, "{}{}", ran.stdout, ran.stderr);
    let said = ran.json();
    let mut roots = [one.subject.root.to_string(), two.subject.root.to_string()];
    roots.sort();
    assert_eq!(said["roots"], serde_json::json!(roots));
    assert_eq!(said["class"], "irreproducible");
    let files = said["files"].as_array().unwrap();
    let paths: Vec<_> = files
        .iter()
        .map(|file| file["path"].as_str().unwrap())
        .collect();
    assert_eq!(paths, ["bin/hexyl"]);
    assert_eq!(files[0]["causes"], serde_json::json!(["time"]));
    let sections = files[0]["sections"].as_array().unwrap();
    assert!(
        sections.iter().any(|one| one["name"] == ".rodata"),
        "{sections:?}"
    );
    // Nothing of it stays.
    for artifact in [&one, &two] {
        assert!(!lab.blob(CLIENT, artifact.subject.root).exists());
    }
    // Files, and a root in one's own store.
    let file = two.path();
    let file = file.to_str().unwrap();
    let root = one.subject.root.to_string();
    let ran = lab.qk(ALICE, &["diff", &root[..10], file]);
    assert_eq!(ran.code(), 12, "{}{}", ran.stdout, ran.stderr);
    let same = lab.qk(CLIENT, &["diff", file, file]).done();
    assert_eq!(
        (&same["files"], &same["class"]),
        (&serde_json::json!([]), &Value::Null)
    );
}

#[test]
fn what_cannot_be_compared_is_named() {
    let mut lab = Lab::new();
    lab.start_alice();
    let one = artifact(&lab.joined(ALICE).network);
    lab.publish(ALICE, &one);
    lab.qk(CLIENT, &["diff", SPEC]).failed(
        2,
        &["two artifacts are compared, and this names 1 artifact"],
    );
    lab.qk(CLIENT, &["diff", "0123456789", "0123456789"])
        .failed(10, &["0123456789"]);
    lab.qk(CLIENT, &["diff", "no/file", "no/file"])
        .failed(2, &["no/file"]);
    let path = one.path();
    let bad = lab.dir().join("bad.tar");
    std::fs::write(&bad, b"no archive at all").unwrap();
    let (path, bad) = (path.to_str().unwrap(), bad.to_str().unwrap());
    lab.qk(CLIENT, &["diff", path, bad])
        .failed(15, &["bad.tar"]);
}

#[test]
fn the_log_of_a_build_is_found_by_crate_and_by_digest() {
    let mut lab = Lab::new();
    lab.start_alice();
    let one = artifact(&lab.joined(ALICE).network);
    lab.publish(ALICE, &one);
    // What the lab's observations name.
    let log = b"nothing was built";
    let digest = Blake3::of(log).to_string();
    lab.qk(ALICE, &["log", SPEC])
        .failed(10, &["none of them is here"]);
    lab.home(ALICE).logs().keep(log).unwrap();
    for which in [SPEC, &digest] {
        let said = lab.qk(ALICE, &["log", which]).done();
        assert_eq!(said["log"], "nothing was built");
        assert_eq!(said["digest"], digest.as_str());
    }
    lab.qk(CAROL, &["log", &digest]).failed(10, &[&digest]);
    lab.qk(CAROL, &["log", "no crate!"])
        .failed(2, &["neither a digest"]);
}
