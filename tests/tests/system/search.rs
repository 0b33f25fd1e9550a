//! `qk search`: what is known here, and what a node of the network lists.

use qk_tests::artifact::{CRATE, Options, artifact_with};
use qk_tests::lab::{ALICE, BOB, CLIENT, Lab};
use serde_json::Value;

fn hits(found: &Value) -> Vec<String> {
    let hits = found["hits"].as_array().expect("hits");
    let text = |hit: &Value| {
        let bins = &hit["executables"];
        format!("{} {} {} {bins}", hit["name"], hit["version"], hit["state"]).replace('"', "")
    };
    hits.iter().map(text).collect()
}

#[test]
fn a_crate_is_found_by_name_executable_and_state() {
    let mut lab = Lab::new();
    lab.start_alice();
    let options = Options {
        bin: Some("hx"),
        ..Options::default()
    };
    let artifact = artifact_with(&lab.joined(ALICE).network, &options);
    lab.publish(ALICE, &artifact);
    let (name, version) = CRATE;
    let ran = lab.qk(CLIENT, &["search", "exy"]).done();
    assert_eq!(hits(&ran), [format!("{name} {version} unproven null")]);
    assert_eq!(ran["networks"][0]["whole"], true);
    assert_eq!(ran["hits"][0]["here"], false);
    lab.qk(CLIENT, &["search", "exy", "--proven"])
        .failed(10, &["nothing that is known is like that"]);

    lab.publish(BOB, &artifact);
    let ran = lab.qk(CLIENT, &["search", "--proven"]).done();
    assert_eq!(hits(&ran), [format!("{name} {version} proven null")]);
    assert_eq!(ran["hits"][0]["principals"], 2);
    lab.qk(
        CLIENT,
        &["search", name, "--target", "aarch64-apple-darwin"],
    )
    .failed(10, &[]);
    // Nothing of it is kept: what a search asks is asked again.
    lab.qk(CLIENT, &["search", name, "--offline"])
        .failed(10, &[]);

    // Whose store has the artifact knows what it runs; a running node is asked, or the store itself.
    let known = [format!("{name} {version} proven [hx]")];
    for _ in 0..2 {
        for args in [["search", "--bin", "hx"], ["search", "hx", "--offline"]] {
            let ran = lab.qk(ALICE, &args).done();
            assert_eq!(hits(&ran), known, "{args:?}");
            assert_eq!(ran["hits"][0]["here"], true);
        }
        lab.qk(ALICE, &["search", "--bin", "h"]).failed(10, &[]);
        if lab.home(ALICE).socket().exists() {
            lab.kill(ALICE);
            std::fs::remove_file(lab.home(ALICE).socket()).unwrap();
        }
    }
    // Nobody is left to answer.
    lab.qk(CLIENT, &["search", "exy"]).failed(10, &[]);
}

#[test]
fn bad_questions_are_refused() {
    let lab = Lab::new();
    let long = "x".repeat(200);
    lab.qk(CLIENT, &["search", &long]).failed(2, &["128 bytes"]);
    lab.qk(CLIENT, &["search", "--limit", "many"])
        .failed(2, &["--limit"]);
    Lab::empty()
        .qk(CLIENT, &["search", "x"])
        .failed(11, &["no network is joined", "qk join"]);
}
