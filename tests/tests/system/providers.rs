//! Providers that lie, and stores that rot.

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use qk_tests::artifact::{Artifact, Options, SPEC, artifact_with};
use qk_tests::lab::{ALICE, BOB, CAROL, CLIENT, Lab, Ran, run, until};
use qk_tests::peer::{Peer, lying};

fn artifact(lab: &Lab) -> Artifact {
    let options = Options {
        padding_bytes: 1_000_000,
        ..Options::default()
    };
    artifact_with(&lab.joined(ALICE).network, &options)
}

/// A node of this process that says to have an artifact, and sends forged blocks of it.
fn liar(lab: &Lab, artifact: &Artifact) -> (Peer, Arc<AtomicBool>) {
    let asked = Arc::new(AtomicBool::new(false));
    let joined = lab.joined(ALICE);
    let bytes = fs::read(artifact.path()).unwrap();
    let peer = lab.runtime().block_on(async {
        let peer = Peer::start(joined.network.id(), Some(lying(bytes, asked.clone()))).await;
        let point = artifact.key.release().location(&joined.key()).point();
        peer.announce(&lab.addresses(ALICE)[0], point, artifact.subject.root)
            .await;
        peer
    });
    (peer, asked)
}

#[test]
fn forged_blocks_are_refused_and_their_sender_is_banned() {
    let mut lab = Lab::new();
    lab.start_alice();
    let artifact = artifact(&lab);
    lab.state(ALICE, &artifact);
    lab.state(BOB, &artifact);
    let (peer, asked) = liar(&lab, &artifact);
    let mut fetch = lab.command(CLIENT, &["fetch", "--fallback", "none", SPEC, "--root"]);
    let ran = run(fetch.arg(lab.root()));
    assert!(asked.load(Ordering::SeqCst), "{ran:?}");
    let name = peer.net().local_peer().to_string();
    ran.failed(
        14,
        &[
            &name,
            "is forged, refused from now on",
            "is trusted, but could not be had",
        ],
    );
    assert!(lab.installed().is_empty());
    assert!(!lab.blob(CLIENT, artifact.subject.root).exists());
}

#[test]
fn a_lying_provider_is_dropped_and_another_one_used() {
    let mut lab = Lab::new();
    lab.start_alice();
    lab.start_any(BOB);
    let artifact = artifact(&lab);
    lab.state(ALICE, &artifact);
    lab.publish(BOB, &artifact);
    let (peer, asked) = liar(&lab, &artifact);
    // The honest provider sleeps until the liar was asked.
    lab.signal(BOB, "STOP");
    let mut fetch = lab.command(CLIENT, &["fetch", "--fallback", "none", SPEC, "--root"]);
    fetch
        .arg(lab.root())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let fetching = fetch.spawn().unwrap();
    until("the liar is asked", || asked.load(Ordering::SeqCst));
    lab.signal(BOB, "CONT");
    let done = fetching.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{said}");
    let name = peer.net().local_peer().to_string();
    assert!(said.contains(&format!("provider {name} block")), "{said}");
    assert!(said.contains("is forged, refused from now on"), "{said}");
    assert_eq!(
        run(&mut Command::new(lab.root().join("bin/hexyl"))).stdout,
        "hexyl 0.17.0\n"
    );
}

/// Whether readers connect with a host that an attacker names in its hint. What listens there is no
/// node, and never asked for anything.
fn victim_is_dialled(host: &str) -> bool {
    let mut lab = Lab::new();
    lab.start_alice();
    let artifact = artifact(&lab);
    lab.state(ALICE, &artifact);
    lab.state(BOB, &artifact);
    let victim = TcpListener::bind((host, 0)).unwrap();
    victim.set_nonblocking(true).unwrap();
    let address = victim.local_addr().unwrap();
    let joined = lab.joined(ALICE);
    let point = artifact.key.release().location(&joined.key()).point();
    let named = format!("/ip4/{host}/tcp/{}", address.port());
    let named = [named.parse().unwrap()];
    let _attacker = lab.runtime().block_on(async {
        let peer = Peer::asking(joined.network.id()).await;
        let told = peer.claim(
            &lab.addresses(ALICE)[0],
            point,
            artifact.subject.root,
            &named,
        );
        assert!(told.await.is_some());
        peer
    });
    lab.fetch(&[SPEC]).failed(14, &["could not be had"]);
    victim.accept().is_ok()
}

#[test]
fn a_hint_with_a_victims_address_makes_nobody_dial_it() {
    assert!(!victim_is_dialled("127.0.0.2"));
    // The attacker's own host, which it may name: so a reader does dial what a hint says.
    assert!(victim_is_dialled("127.0.0.1"));
}

#[test]
fn a_flipped_bit_is_never_served_and_named_and_fetched_again() {
    let mut lab = Lab::new();
    lab.start_alice();
    lab.start_any(BOB);
    let artifact = artifact(&lab);
    let root = artifact.subject.root;
    lab.publish(ALICE, &artifact);
    lab.state(BOB, &artifact);
    flip(&lab.blob(ALICE, root));

    lab.fetch(&[SPEC])
        .failed(14, &["could not be had", &root.to_string()]);
    assert!(lab.installed().is_empty());
    assert!(
        !lab.blob(ALICE, root).exists(),
        "it was moved aside when it was read"
    );

    // Found by looking as well as by serving; what serving found is told, too.
    lab.publish(ALICE, &artifact);
    flip(&lab.blob(ALICE, root));
    lab.qk(ALICE, &["store", "fsck"])
        .failed(15, &["2 damaged", &root.to_string()]);
    lab.qk(ALICE, &["store", "fsck"]).done();
    lab.fetch(&[SPEC]).failed(14, &["could not be had"]);

    // Somebody else has it: alice's node gets it again, and then gives it to others.
    lab.publish(BOB, &artifact);
    let ran = run(&mut lab.fetch_command(ALICE, &[SPEC]));
    assert_eq!(ran.done()["crates"][0]["how"], "network");
    lab.kill(BOB);
    assert_eq!(
        lab.fetch(&[SPEC]).done()["crates"][0]["root"],
        root.to_string()
    );
}

/// A store of a command without a node: what is in it is looked at before it is installed.
#[test]
fn a_flipped_bit_in_ones_own_store_is_not_installed() {
    let mut lab = Lab::new();
    lab.start_alice();
    let artifact = artifact(&lab);
    let root = artifact.subject.root;
    lab.publish(ALICE, &artifact);
    lab.state(BOB, &artifact);
    lab.fetch(&[SPEC]).done();
    fs::remove_dir_all(lab.root()).unwrap();
    lab.signal(ALICE, "STOP");
    flip(&lab.blob(CLIENT, root));
    let ran = lab.fetch(&[SPEC, "--offline"]);
    assert_ne!(ran.code(), 0, "{ran:?}");
    assert!(lab.installed().is_empty());
    lab.signal(ALICE, "CONT");
    lab.qk(CLIENT, &["store", "fsck"]);
    lab.fetch(&[SPEC]).done();
    lab.qk(CLIENT, &["store", "fsck"]).done();
}

/// Three nodes have it, and one fetch takes parts of it from all of them at once.
#[test]
fn a_fetch_is_striped_over_all_providers() {
    let mut lab = Lab::new();
    lab.start_alice();
    let options = Options {
        padding_bytes: 24 << 20,
        ..Options::default()
    };
    let artifact = artifact_with(&lab.joined(ALICE).network, &options);
    for name in [BOB, CAROL] {
        lab.start_any(name);
    }
    for name in [ALICE, BOB, CAROL] {
        lab.publish(name, &artifact);
    }
    let done = lab.fetch(&[SPEC]).done();
    let providers = done["crates"][0]["providers"].as_array().unwrap();
    assert_eq!(providers.len(), 3, "{done}");
    let bytes = providers.iter().map(|one| one["bytes"].as_u64().unwrap());
    assert!(bytes.clone().all(|bytes| bytes > 0), "{done}");
    assert_eq!(bytes.sum::<u64>(), artifact.subject.size, "{done}");
}

/// How fast providers give that are to be met while they do.
const SLOW: [&str; 2] = ["--upload-rate", "768 KiB"];

/// A fetch from bob, and from carol if she is `beside` him, all of them slow; once bob has given an
/// answer and is sending the next ones, his node gets this signal.
fn fetch_while_bob_gets(lab: &mut Lab, signal: &str, beside: bool, json: bool) -> (Ran, Artifact) {
    lab.start_alice();
    let options = Options {
        padding_bytes: 3 << 20,
        ..Options::default()
    };
    let artifact = artifact_with(&lab.joined(ALICE).network, &options);
    lab.state(ALICE, &artifact);
    for name in [BOB, CAROL] {
        if name == BOB || beside {
            lab.start_with(name, "/ip4/127.0.0.1/tcp/0", &SLOW, &[]);
            lab.publish(name, &artifact);
        }
    }
    let mut fetch = lab.command(CLIENT, &["fetch", "--fallback", "none", SPEC, "--root"]);
    fetch.arg(lab.root()).args(json.then_some("--json"));
    fetch.stdout(Stdio::piped()).stderr(Stdio::piped());
    let fetching = fetch.spawn().unwrap();
    until("bob has given an answer", || lab.sent_bytes(BOB) > 0);
    lab.signal(BOB, signal);
    (fetching.wait_with_output().unwrap().into(), artifact)
}

/// `kill -9` in the middle of an answer, and a stop that leaves the connections open.
#[test]
fn a_provider_that_vanishes_while_it_sends_is_replaced_by_another() {
    for signal in ["KILL", "STOP"] {
        let mut lab = Lab::new();
        let (ran, _) = fetch_while_bob_gets(&mut lab, signal, true, true);
        let done = ran.done();
        let providers = done["crates"][0]["providers"].as_array().unwrap();
        let bytes = providers.iter().map(|one| one["bytes"].as_u64().unwrap());
        let bytes: Vec<u64> = bytes.collect();
        assert_eq!(bytes.len(), 2, "{signal}: {done}");
        assert!(bytes.iter().all(|bytes| *bytes > 0), "{signal}: {done}");
        let program = run(&mut Command::new(lab.root().join("bin/hexyl")));
        assert_eq!(program.stdout, "hexyl 0.17.0\n");
    }
}

/// The same without anybody else: what was under way is lost, and nothing of it is installed; what
/// was verified before is not fetched again.
#[test]
fn a_provider_that_vanishes_alone_costs_what_was_under_way() {
    let mut lab = Lab::new();
    let (ran, artifact) = fetch_while_bob_gets(&mut lab, "KILL", false, false);
    let broke = "lacks the rest of the range";
    ran.failed(14, &[broke, "is trusted, but could not be had"]);
    assert!(lab.installed().is_empty());
    lab.start_any(CAROL);
    lab.publish(CAROL, &artifact);
    let done = lab.fetch(&[SPEC]).done();
    let given = done["crates"][0]["providers"][0]["bytes"].as_u64().unwrap();
    assert!(given < artifact.subject.size, "{done}");
}

fn flip(path: &Path) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    // Within the padding: neither a header nor anything else that a reader would look at.
    file.read_exact_at(&mut byte, 500_000).unwrap();
    file.write_all_at(&[byte[0] ^ 8], 500_000).unwrap();
}
