//! What is not trusted, and whom nobody joins.

use ed25519_dalek::SigningKey;
use qk_node::node::unix_now;
use qk_protocol::dsse::public_key;
use qk_protocol::manifest::{Manifest, Network, NetworkFile, TIMESTAMP_SECONDS_MAX, Timestamp};
use qk_protocol::policy::OnDissent;
use qk_protocol::statement::Subject;
use qk_protocol::time::UnixTime;
use qk_tests::artifact::{Artifact, Options, SPEC, artifact, artifact_with};
use qk_tests::lab::{ALICE, BOB, CAROL, CLIENT, Lab, until};

fn other(lab: &Lab) -> Artifact {
    let options = Options {
        mark: " with something else in it".to_owned(),
        ..Options::default()
    };
    artifact_with(&lab.joined(ALICE).network, &options)
}

#[test]
fn two_roots_are_a_dispute_that_never_falls_back() {
    let mut lab = Lab::new();
    lab.start_alice();
    let (one, two) = (artifact(&lab.joined(ALICE).network), other(&lab));
    lab.publish(ALICE, &one);
    lab.publish(BOB, &one);
    lab.publish(CAROL, &two);
    let roots = [one.subject.root.short(), two.subject.root.short()];
    lab.fetch(&[SPEC])
        .failed(12, &["disputed", &roots[0], &roots[1], "qk proofs"]);
    let root = lab.root();
    // With the fallback that is the default: nothing is built either.
    let ran = lab.qk(CLIENT, &["fetch", SPEC, "--root", root.to_str().unwrap()]);
    ran.failed(12, &["disputed"]);
    assert!(lab.installed().is_empty());
    assert!(
        !lab.home(CLIENT).crates().exists(),
        "not even the sources were fetched"
    );
}

/// A next version whose policy escalates, for alice and the client.
fn escalate(lab: &Lab) {
    let network = lab.next_version(|next| {
        next.policy.threshold = 1;
        next.policy.on_dissent = Some(OnDissent::Escalate);
    });
    for name in [ALICE, CLIENT] {
        lab.know(name, network.clone());
    }
}

#[test]
fn a_lone_dissenter_is_named_and_under_escalation_does_not_block() {
    let mut lab = Lab::new();
    lab.start_alice();
    let (one, two) = (artifact(&lab.joined(ALICE).network), other(&lab));
    lab.publish(ALICE, &one);
    let roll = |lab: &Lab| -> Vec<String> {
        let proofs = lab.qk(CLIENT, &["proofs", SPEC]).done();
        let seats = proofs["networks"][0]["roll"]["seats"].as_array().unwrap();
        let said = |seat: &serde_json::Value| format!("{} {}", seat["name"], seat["said"]);
        let mut said: Vec<_> = seats.iter().map(said).collect();
        said.sort();
        said
    };
    let silent = roll(&lab);
    assert!(
        silent.contains(&r#""bob" "nothing""#.to_owned()),
        "{silent:?}"
    );
    lab.publish(BOB, &one);
    lab.publish(CAROL, &two);
    assert!(roll(&lab).contains(&r#""bob" "observation""#.to_owned()));
    let by = format!("{} by {CAROL}", two.subject.root.short());
    lab.fetch(&[SPEC]).failed(12, &["disputed", &by]);
    lab.kill(ALICE);
    escalate(&lab);
    lab.start_alice();
    let fetched = lab.fetch(&[SPEC]).done();
    assert_eq!(fetched["crates"][0]["root"], one.subject.root.to_string());
    assert_eq!(fetched["crates"][0]["contested_by"], CAROL);
    let proofs = lab.qk(CLIENT, &["proofs", SPEC]).done();
    assert!(
        proofs["networks"][0]["verdict"]["contested"].is_string(),
        "{proofs}"
    );
}

#[test]
fn one_principal_with_two_roots_counts_for_neither() {
    let mut lab = Lab::new();
    lab.start_alice();
    let (one, two) = (artifact(&lab.joined(ALICE).network), other(&lab));
    lab.publish(ALICE, &one);
    lab.publish(BOB, &one);
    lab.state(BOB, &two);
    lab.fetch(&[SPEC]).failed(12, &["disputed"]);
    let proofs = lab.qk(CLIENT, &["proofs", SPEC]).done();
    let lines = proofs["networks"][0]["verdict"]["lines"]
        .as_array()
        .unwrap();
    let effects = |name: &str| -> Vec<_> {
        let own = lines.iter().filter(|line| line["principal"] == name);
        own.map(|line| line["effect"].as_str().unwrap()).collect()
    };
    assert_eq!(effects(BOB), ["contradicts", "contradicts"]);
    assert_eq!(effects(ALICE), ["counts"]);
    assert!(lab.installed().is_empty());
}

#[test]
fn the_same_principal_twice_and_strangers_do_not_make_a_proof() {
    let mut lab = Lab::new();
    lab.start_alice();
    let artifact = artifact(&lab.joined(ALICE).network);
    lab.publish(ALICE, &artifact);
    // Signed anew a moment later: another statement, the same principal.
    let mut again = lab.observe(ALICE, &artifact.key, artifact.subject);
    while again.id() == lab.observe(ALICE, &artifact.key, artifact.subject).id() {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    again = lab.observe(ALICE, &artifact.key, artifact.subject);
    lab.put(ALICE, None, again).unwrap();
    // The client's own home signs, too, but belongs to no principal, so others do not count it.
    lab.publish(CLIENT, &artifact);
    let fetch = lab.fetch_command(BOB, &[SPEC]).output().unwrap();
    assert_eq!(fetch.status.code(), Some(11), "{fetch:?}");
    assert!(lab.installed().is_empty());
    // Shows that the client's statement did arrive: for itself it suffices.
    assert_eq!(lab.fetch(&[SPEC]).done()["crates"][0]["how"], "store");
}

#[test]
fn observations_that_agree_in_one_digest_alone_are_a_dispute() {
    let mut lab = Lab::new();
    lab.start_alice();
    let (one, two) = (artifact(&lab.joined(ALICE).network), other(&lab));
    lab.publish(ALICE, &one);
    let subject = Subject {
        sha256: two.subject.sha256,
        ..one.subject
    };
    lab.put(BOB, None, lab.observe(BOB, &one.key, subject))
        .unwrap();
    lab.fetch(&[SPEC]).failed(12, &["disputed"]);
    assert!(lab.installed().is_empty());
}

#[test]
fn another_source_than_the_registrys_is_not_considered() {
    let mut lab = Lab::new();
    lab.start_alice();
    let mut artifact = artifact(&lab.joined(ALICE).network);
    artifact.key.flags.source = artifact.key.flags.lock;
    lab.publish(ALICE, &artifact);
    lab.publish(BOB, &artifact);
    lab.fetch(&[SPEC]).failed(11, &["unproven"]);
    let proofs = lab.qk(CLIENT, &["proofs", SPEC]).done();
    assert_eq!(
        proofs["networks"][0]["others"], 2,
        "they arrived, and are about something else: {proofs}"
    );
}

/// The network as somebody knows it, with a timestamp that ended an hour ago.
fn expired(lab: &Lab) -> Network {
    ending(lab, UnixTime(unix_now().0 - 3600))
}

/// The network with a timestamp that ends then.
fn ending(lab: &Lab, end: UnixTime) -> Network {
    let network = lab.joined(ALICE).network;
    let key = lab.network_key("timestamp");
    let issued = UnixTime(end.0 - TIMESTAMP_SECONDS_MAX);
    let timestamp = Timestamp::sign(&network, issued, TIMESTAMP_SECONDS_MAX, &key);
    let manifests = network.file().manifests.clone();
    Network::verify(NetworkFile {
        manifests,
        timestamp,
    })
    .unwrap()
}

#[test]
fn past_the_timestamp_nothing_new_is_trusted_until_somebody_has_a_newer_one() {
    let mut lab = Lab::new();
    lab.start_alice();
    let artifact = artifact(&lab.joined(ALICE).network);
    lab.publish(ALICE, &artifact);
    lab.publish(BOB, &artifact);
    // Now the client knows all that it needs, but for somebody to say that the manifest is current.
    lab.qk(CLIENT, &["proofs", SPEC]).done();
    lab.kill(ALICE);
    lab.know(CLIENT, expired(&lab));
    lab.fetch(&[SPEC]).failed(17, &["stale", "timestamp"]);
    lab.fetch(&[SPEC, "--offline"]).failed(17, &["stale"]);
    assert!(lab.installed().is_empty());
    lab.start_alice();
    lab.fetch(&[SPEC]).done();
    assert!(lab.joined(CLIENT).network.fresh(unix_now()));
}

#[test]
fn what_was_accepted_before_the_timestamp_ended_stays_usable() {
    let mut lab = Lab::new();
    lab.start_alice();
    let artifact = artifact(&lab.joined(ALICE).network);
    lab.publish(ALICE, &artifact);
    lab.publish(BOB, &artifact);
    lab.fetch(&[SPEC]).done();
    lab.kill(ALICE);
    std::fs::remove_dir_all(lab.root()).unwrap();
    let end = unix_now().plus(1);
    lab.know(CLIENT, ending(&lab, end));
    until("the timestamp has ended", || unix_now() > end);
    let fetched = lab.fetch(&[SPEC, "--offline"]).done();
    assert_eq!(fetched["crates"][0]["how"], "store");
    // The statements are still here, but the artifact would have to be trusted anew.
    std::fs::remove_file(lab.blob(CLIENT, artifact.subject.root)).unwrap();
    lab.fetch(&[SPEC, "--offline"]).failed(17, &["stale"]);
}

#[test]
fn a_network_file_that_ended_is_not_joined() {
    let lab = Lab::new();
    let file = lab.dir().join("old.qknet");
    std::fs::write(&file, expired(&lab).file().to_bytes()).unwrap();
    let newcomer = lab.dir().join("newcomer");
    std::fs::create_dir(&newcomer).unwrap();
    let ran = lab.qk("newcomer", &["join", file.to_str().unwrap()]);
    ran.failed(
        17,
        &["the timestamp of network lab ended", "ask whoever runs it"],
    );
    assert!(!newcomer.join("networks").exists());
}

#[test]
fn a_manifest_never_goes_back() {
    let lab = Lab::new();
    let network = lab.joined(ALICE).network;
    assert_eq!(network.manifest().version, 3);
    let file = lab.first_network_file();
    let ran = lab.qk(CLIENT, &["join", file.to_str().unwrap()]);
    ran.failed(
        15,
        &["version 1 does not follow the version 3 that is known already"],
    );
    assert_eq!(lab.joined(CLIENT).network.manifest().version, 3);
    // Somebody who knows nothing newer may take it: the refusal is about going back.
    lab.qk("newcomer", &["join", file.to_str().unwrap()]).done();
}

#[test]
fn a_manifest_that_too_few_signed_is_not_joined() {
    let lab = Lab::new();
    let network = lab.joined(ALICE).network;
    let (one, two) = (
        SigningKey::from_bytes(&[1; 32]),
        SigningKey::from_bytes(&[2; 32]),
    );
    let mut manifest = Manifest {
        network: None,
        version: 1,
        ..network.manifest().clone()
    };
    manifest.root.keys = [public_key(&one), public_key(&two)].into();
    manifest.root.threshold = 2;
    let timestamp_key = lab.network_key("timestamp");
    let signed_by_both =
        Network::create(&manifest, &[&one, &two], &timestamp_key, unix_now()).unwrap();
    let mut file = signed_by_both.file().clone();
    file.manifests = vec![manifest.sign(&[&one]).unwrap()];
    let path = lab.dir().join("other.qknet");
    std::fs::write(&path, file.to_bytes()).unwrap();
    let path = path.to_str().unwrap();
    lab.qk(CLIENT, &["join", path])
        .failed(15, &["signed by 1 of the 2 root keys needed"]);
    assert_eq!(lab.home(CLIENT).networks().unwrap().len(), 1);
    std::fs::write(path, signed_by_both.file().to_bytes()).unwrap();
    lab.qk(CLIENT, &["join", path]).done();
}

#[test]
fn another_network_than_the_one_that_was_meant_is_not_joined() {
    let lab = Lab::new();
    let file = lab.network_file();
    let file = file.to_str().unwrap();
    let id = lab.joined(ALICE).network.id().to_string();
    let wrong = "0".repeat(64);
    lab.qk("newcomer", &["join", file, "--fingerprint", &wrong])
        .failed(15, &[&id, &wrong]);
    assert!(lab.home("newcomer").networks().unwrap().is_empty());
    lab.qk("newcomer", &["join", file, "--fingerprint", &id])
        .done();
}

#[test]
fn what_is_no_network_file_is_not_joined() {
    let lab = Lab::empty();
    let file = lab.dir().join("file");
    std::fs::write(&file, "not one").unwrap();
    lab.qk(CLIENT, &["join", file.to_str().unwrap()])
        .failed(15, &["network file"]);
    lab.qk(CLIENT, &["join", "http://lab.example/lab.qknet"])
        .failed(2, &["over https only"]);
    lab.qk(CLIENT, &["join", "/nowhere/lab.qknet"])
        .failed(2, &["/nowhere/lab.qknet"]);
    std::fs::write(&file, "x".repeat(2 << 20)).unwrap();
    lab.qk(CLIENT, &["join", file.to_str().unwrap()])
        .failed(15, &["more than 1572864 bytes"]);
}
