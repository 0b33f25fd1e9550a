//! The life of a network's manifest: who signs it, what it says, how it reaches others, and what
//! whoever serves it cannot do.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use qk_node::home::Joined;
use qk_node::node::unix_now;
use qk_protocol::hash::NetworkId;
use qk_protocol::manifest::draft::Draft;
use qk_protocol::manifest::{Network, NetworkFile, TIMESTAMP_SECONDS_MAX, Timestamp};
use qk_protocol::message::Answer;
use qk_protocol::time::UnixTime;
use qk_tests::artifact::{SPEC, artifact};
use qk_tests::lab::{ALICE, BOB, CAROL, CLIENT, Lab, Ran, run, until};
use qk_tests::peer::Peer;
use serde_json::Value;

/// Two people with a root key each, on machines that join nothing.
const ROOTS: [&str; 2] = ["dora", "emil"];

fn key(lab: &Lab, who: &str, args: &[&str]) -> String {
    let shown = lab.qk(who, &[&["network", "key"], args].concat()).done();
    shown["key"].as_str().expect("a key").to_owned()
}

/// A file in the lab's directory.
fn path(lab: &Lab, name: &str) -> String {
    lab.dir().join(name).display().to_string()
}

fn network(lab: &Lab, args: &[&str]) -> Ran {
    lab.qk(ALICE, &[&["network"], args].concat())
}

/// The texts of a document's changes.
fn changes(document: &Value) -> Vec<String> {
    let all = document["changes"].as_array().cloned().unwrap_or_default();
    let text = |change: &Value| change["text"].as_str().unwrap_or_default().to_owned();
    all.iter().map(text).collect()
}

/// What a command says to a person.
fn text(lab: &Lab, who: &str, args: &[&str]) -> Ran {
    run(&mut lab.command(who, args))
}

#[test]
fn a_version_is_signed_in_turn_and_apart_by_root_keys_that_are_offline() {
    let lab = Lab::new();
    let [dora, emil] = ROOTS.map(|who| key(&lab, who, &["--root"]));
    let alices = lab
        .joined(ALICE)
        .network
        .manifest()
        .root
        .keys
        .first()
        .unwrap()
        .to_string();
    let [next, doras, emils, all] = ["next", "doras", "emils", "all"].map(|name| path(&lab, name));
    let root = ["root", "--add", &dora, "--add", &emil, "--remove", &alices];
    let drafted = network(
        &lab,
        &[&root[..], &["--threshold", "2", "--draft", &next]].concat(),
    );
    let drafted = drafted.done();
    assert_eq!(drafted["ready"], false, "{drafted}");
    assert_eq!(drafted["quorums"][0]["need"], 1);
    assert_eq!(drafted["quorums"][1]["need"], 2);
    // Nothing is in force, and a further change goes into the same version.
    assert_eq!(lab.joined(ALICE).network.manifest().version, 3);
    network(&lab, &["set", "--threshold", "3", "--draft", &next]).done();
    // A person is asked; where nobody can answer, nothing is signed.
    lab.qk("dora", &["network", "sign", &next])
        .failed(2, &["asks before it signs", "--yes"]);
    // In turn: alice for the keys of before, then dora and emil apart.
    network(&lab, &["sign", &next, "--yes"]).done();
    lab.qk(
        "dora",
        &["network", "sign", &next, "--yes", "--output", &doras],
    )
    .done();
    lab.qk(
        "emil",
        &["network", "sign", &next, "--yes", "--output", &emils],
    )
    .done();
    lab.qk(CAROL, &["network", "sign", &next, "--yes"])
        .failed(2, &["no root key"]);
    assert!(lab.home("dora").networks().unwrap().is_empty());
    // A signed version cannot be changed, and half of the signatures are not enough.
    network(&lab, &["set", "--threshold", "1", "--draft", &doras]).failed(2, &["signed already"]);
    network(&lab, &["publish", &doras]).failed(
        2,
        &["signed by 1 of the 2 root keys needed (those of version 4)"],
    );
    let merged = lab.qk(
        CAROL,
        &["network", "sign", &doras, &emils, "--output", &all],
    );
    assert_eq!(merged.done()["ready"], true);
    let file = lab.network_file();
    let file = file.to_str().unwrap();
    let published = network(&lab, &["publish", &all, "--output", file]).done();
    let said = changes(&published).join("\n");
    for word in [&dora, &emil, &alices, "2 becomes 3"] {
        assert!(said.contains(word), "{word} is missing in {said}");
    }
    lab.qk(CLIENT, &["join", file]).done();
    let manifest = lab.joined(CLIENT).network.manifest().clone();
    assert_eq!((manifest.version, manifest.policy.threshold), (4, 3));
    // Alice has lost her say.
    network(&lab, &["remove", CAROL]).failed(
        2,
        &[
            "0 of 2 signatures by root keys of version 4",
            "--draft FILE",
        ],
    );
    network(&lab, &["publish", &all]).failed(2, &["follows version 3"]);
}

#[test]
fn everything_that_a_network_is_can_be_changed() {
    let lab = Lab::new();
    let bob = key(&lab, BOB, &[]);
    let root = "ab".repeat(32);
    let done = |args: &[&str], expected: &str| {
        let shown = network(&lab, args).done();
        let said = changes(&shown).join("\n");
        assert!(said.contains(expected), "{args:?}: {said}");
        shown
    };
    done(
        &["change", BOB, "--role", "mirror"],
        "principal bob: verifier becomes mirror",
    );
    done(
        &[
            "change",
            BOB,
            "--role",
            "verifier",
            "--target",
            "wasm32-wasip1",
        ],
        "targets all become wasm32-wasip1",
    );
    done(
        &["change", BOB, "--target", "all", "--name", "robert"],
        "name of a principal: bob becomes robert",
    );
    // Two of one name cannot be told apart by whoever reads it.
    network(&lab, &["change", "robert", "--name", CAROL])
        .failed(2, &["there is a principal carol already"]);
    done(&["state", &bob, "retired"], "active becomes retired");
    done(
        &["state", &bob, "compromised"],
        "retired becomes compromised",
    );
    let shown = done(&["state", &bob, "active"], "compromised becomes active");
    assert_eq!(shown["changes"][0]["widens"], true, "{shown}");
    done(
        &["block", "--root", &root, "--reason", "a trojan"],
        "is blocked: a trojan",
    );
    done(
        &["block", "--root", &root, "--reason", "two trojans"],
        "is blocked: two trojans",
    );
    assert_eq!(
        network(&lab, &["show"]).done()["networks"][0]["blocked"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    done(&["unblock", &root], "is no longer blocked");
    done(&["remove", CAROL], "principal carol is removed");
    done(
        &[
            "set",
            "--threshold",
            "3",
            "--committee",
            "7",
            "--max-age-days",
            "90",
        ],
        "observations count for 90 days",
    );
    done(&["set", "--max-age-days", "none"], "whatever their age");
    let timestamp = key(&lab, ALICE, &["--timestamp"]);
    done(&["set", "--timestamp", &timestamp], "timestamp key");
    network(&lab, &["renew"]).done();
    // What has no command of its own is edited.
    let toml = text(&lab, ALICE, &["network", "show", "--toml"]).stdout;
    let file = path(&lab, "lab.toml");
    let crates = "[policy.crates.openssl]\nthreshold = 4\n[[builds]]";
    fs::write(&file, toml.replacen("[[builds]]", crates, 1)).unwrap();
    done(
        &["edit", &file],
        "principals that have to agree about openssl: 3 becomes 4",
    );
    fs::write(&file, "format = 1\n").unwrap();
    network(&lab, &["edit", &file]).failed(2, &["lab.toml", "missing field"]);
    let history = network(&lab, &["show", "--history"]).done();
    let version = lab.joined(ALICE).network.manifest().version;
    assert_eq!(
        history["networks"][0]["history"].as_array().unwrap().len() as u64,
        version - 1
    );
    // What is wrong is said, and nothing is signed.
    network(&lab, &["edit", &file]).failed(2, &["missing field"]);
    network(&lab, &["remove", "nobody"])
        .failed(10, &["no principal nobody", "there are: alice, robert"]);
    network(&lab, &["state", &root, "retired"]).failed(10, &["no principal has key"]);
    network(&lab, &["unblock", &root]).failed(10, &["is not blocked"]);
    network(&lab, &["root", "--remove", &root]).failed(10, &["no root key of this network"]);
    network(&lab, &["root", "--threshold", "2"])
        .failed(2, &["root threshold between 1 and the number"]);
    network(&lab, &["set", "--threshold", "3"]).failed(2, &["nothing was changed"]);
    network(&lab, &["set", "--add-bootstrap", "nonsense"]).failed(2, &["nonsense"]);
    network(&lab, &["block", "--reason", "why"]).failed(2, &["--root"]);
    lab.qk(CLIENT, &["network", "remove", BOB])
        .failed(2, &["0 of 1 signatures"]);
    assert_eq!(lab.joined(ALICE).network.manifest().version, version);
}

#[test]
fn a_request_brings_its_author_in_with_one_command() {
    let lab = Lab::new();
    let file = lab.network_file();
    let file = file.to_str().unwrap();
    lab.qk("dave", &["join", file]).done();
    let block = text(
        &lab,
        "dave",
        &["network", "request", "--role", "verifier", "--name", "dave"],
    );
    assert_eq!(block.code(), 0, "{block:?}");
    assert_eq!(block.stdout.lines().count(), 1, "{block:?}");
    let request = path(&lab, "dave.request");
    fs::write(&request, &block.stdout).unwrap();
    // A byte more or less is another request, which nobody signed.
    let tampered = block
        .stdout
        .replacen("\"payload\":\"e", "\"payload\":\"f", 1);
    assert_ne!(tampered, block.stdout);
    let other = path(&lab, "other.request");
    fs::write(&other, tampered).unwrap();
    network(&lab, &["add", &other]).failed(15, &["other.request", "request: "]);
    let added = text(&lab, ALICE, &["network", "add", &request, "--output", file]);
    assert_eq!(added.code(), 0, "{added:?}");
    let dave = key(&lab, "dave", &[]);
    for word in ["! principal dave (verifier; ", &dave, "is added"] {
        assert!(added.stdout.contains(word), "{word}: {added:?}");
    }
    let manifest = lab.joined(ALICE).network.manifest().clone();
    let principal = manifest
        .principals
        .iter()
        .find(|one| one.name == "dave")
        .unwrap();
    let rustc = principal
        .toolchains
        .first()
        .map_or("1.95.0", |one| one.as_str());
    assert!(principal.verifies("x86_64-unknown-linux-gnu", rustc));
    assert!(!principal.verifies("other", rustc));
    assert_eq!(
        principal.toolchains,
        [manifest.builds[0].rustc.version.clone()].into()
    );
    lab.qk("dave", &["join", file]).done();
    assert_eq!(
        lab.qk("dave", &["network", "show"]).done()["networks"][0]["own_roles"][0],
        "verifier"
    );
    // Once is enough, and a name does not make somebody's key out of it.
    network(&lab, &["add", &request]).failed(2, &["belongs to principal dave already"]);
    let request = path(&lab, "mallory.request");
    lab.qk("mallory", &["join", file]).done();
    let block = text(&lab, "mallory", &["network", "request", "--name", BOB]);
    fs::write(&request, &block.stdout).unwrap();
    network(&lab, &["add", &request]).failed(2, &["there is a principal bob already", "--name"]);
    // It is for this network alone.
    let lab = Lab::new();
    network(&lab, &["add", &request]).failed(15, &["the request is for network"]);
}

/// A timestamp for alice's network that was signed then, by a key of her home.
fn timestamp(lab: &Lab, network: &Network, issued: UnixTime, key: &str) -> String {
    let name = format!("{key}-{}", network.id());
    let key = lab.home(ALICE).existing_key(&name).unwrap().unwrap();
    Timestamp::sign(network, issued, TIMESTAMP_SECONDS_MAX, &key)
}

/// What a node says once it took a network file, and kept it, or refused it.
const WHAT_IT_MAKES_OF_IT: [&str; 2] = [
    "took a newer manifest or timestamp",
    "a node's network file was not taken",
];

/// A node of the client's that is told this by the only node it knows; what it knows in the end.
fn told(lab: &mut Lab, file: &NetworkFile) -> Joined {
    let id: NetworkId = lab.joined(CLIENT).network.id();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let enemy = runtime.block_on(Peer::start(id, None));
    enemy.says(Answer::Network(Some(file.clone())));
    let address = runtime.block_on(enemy.address());
    let log = [("QK_LOG", OsStr::new("info,qk_node=debug"))];
    let parent = ["--parent", &address];
    lab.start_with(CLIENT, "/ip4/127.0.0.1/tcp/0", &parent, &log);
    until("it says what it makes of that", || {
        let said = lab.log(CLIENT);
        WHAT_IT_MAKES_OF_IT.iter().any(|words| said.contains(words))
    });
    lab.kill(CLIENT);
    lab.joined(CLIENT)
}

#[test]
fn whoever_serves_manifests_can_only_serve_the_next_one() {
    let mut lab = Lab::new();
    let known = lab.joined(CLIENT).network;
    network(&lab, &["set", "--threshold", "3"]).done();
    network(&lab, &["set", "--threshold", "4"]).done();
    let newest = lab.joined(ALICE).network;
    assert_eq!(
        (known.manifest().version, newest.manifest().version),
        (3, 5)
    );
    let with = |change: &dyn Fn(&mut NetworkFile)| {
        let mut file = newest.file().clone();
        change(&mut file);
        file
    };
    let other = Lab::new().joined(ALICE).network;
    let weaker = Draft::begin(&known, |next| next.policy.threshold = 1).unwrap();
    let own = ed25519_dalek::SigningKey::from_bytes(&[7; 32]);
    let unsigned = weaker.next().sign(&[&own]).unwrap();
    let attacks = [
        ("an older one", with(&|file| file.manifests.truncate(1))),
        ("a gap", with(&|file| drop(file.manifests.remove(3)))),
        (
            "a timestamp by another key",
            with(&|file| {
                file.timestamp = timestamp(&lab, &newest, unix_now(), "root");
            }),
        ),
        (
            "a timestamp of another version",
            with(&|file| {
                file.timestamp = known.file().timestamp.clone();
            }),
        ),
        ("a version that too few signed", {
            let mut file = known.file().clone();
            file.manifests.push(unsigned);
            file
        }),
        ("another network", other.file().clone()),
    ];
    for (what, file) in attacks {
        let after = told(&mut lab, &file).network;
        assert_eq!(after, known, "{what} was taken");
    }
    // The same way leads the true one in, so that it was the checks that kept the others out.
    let after = told(&mut lab, newest.file()).network;
    assert_eq!(after, newest);
}

#[test]
fn a_frozen_manifest_is_warned_of_and_ends() {
    let mut lab = Lab::new();
    lab.start_alice();
    let artifact = artifact(&lab.joined(ALICE).network);
    lab.publish(ALICE, &artifact);
    lab.publish(BOB, &artifact);
    lab.qk(CLIENT, &["proofs", SPEC]).done();
    lab.kill(ALICE);
    let frozen = |left: i64| {
        let joined = lab.joined(CLIENT);
        let network = &joined.network;
        let end = unix_now().0.checked_add_signed(left).unwrap();
        let issued = UnixTime(end - TIMESTAMP_SECONDS_MAX);
        let file = NetworkFile {
            timestamp: timestamp(&lab, network, issued, "timestamp"),
            ..network.file().clone()
        };
        lab.home(CLIENT).leave_network(network.id()).unwrap();
        let network = Network::verify(file).unwrap();
        lab.home(CLIENT)
            .keep_network(&Joined { network, ..joined })
            .unwrap();
    };
    let warned = |ran: &Ran| format!("{}{}", ran.stdout, ran.stderr).contains("ends in");
    let commands: [&[&str]; 4] = [
        &["status"],
        &["network", "show"],
        &["doctor"],
        &["fetch", SPEC, "--offline", "--fallback", "none"],
    ];
    for (left, warns) in [(3 * 24 * 3600, false), (24 * 3600, true)] {
        frozen(left);
        for command in commands {
            let ran = text(&lab, CLIENT, command);
            assert_eq!(
                warned(&ran),
                warns,
                "{left} s before the end, {command:?}: {ran:?}"
            );
        }
    }
    // Whoever holds back the newer one can do so until then, and not longer.
    lab.fetch(&[SPEC, "--offline"])
        .failed(14, &["is trusted, but is not here"]);
    frozen(-60);
    lab.fetch(&[SPEC, "--offline"])
        .failed(17, &["stale", "timestamp"]);
}

#[test]
fn what_a_network_widens_is_shown_before_it_is_used() {
    let lab = Lab::new();
    network(&lab, &["set", "--threshold", "1"]).done();
    took_in_the_background(&lab);
    assert_eq!(lab.joined(CLIENT).accepted, 3);
    let fetch = ["fetch", SPEC, "--offline", "--fallback", "none"];
    let said = text(&lab, CLIENT, &fetch).stderr;
    for word in [
        "network lab is at version 4",
        "in version 3",
        "! principals that have to agree: 2 becomes 1",
    ] {
        assert!(said.contains(word), "{word}: {said}");
    }
    let shown = lab.qk(CLIENT, &["network", "show"]).done();
    assert_eq!(
        shown["networks"][0]["changes"][0]["text"],
        "principals that have to agree: 2 becomes 1"
    );
    let status = lab.qk(CLIENT, &["status"]).done();
    assert_eq!(status["networks"][0]["news"][0]["widens"], true);
    // Whoever wants to be asked is.
    lab.configure(CLIENT, "confirm_changes = true\n");
    lab.fetch(&[SPEC, "--offline"])
        .failed(11, &["2 becomes 1", "qk network accept"]);
    let accepted = lab.qk(CLIENT, &["network", "accept"]).done();
    assert_eq!(accepted["version"], 4);
    lab.fetch(&[SPEC, "--offline"])
        .failed(11, &["0 of 1 principals"]);
    assert!(!text(&lab, CLIENT, &fetch).stderr.contains("trusts more"));
    // Taking a newer version with one's own hands is seeing it.
    network(
        &lab,
        &["set", "--threshold", "2", "--output", &path(&lab, "two")],
    )
    .done();
    let again = lab.qk(CLIENT, &["join", &path(&lab, "two")]).done();
    assert_eq!(
        changes(&again),
        ["principals that have to agree: 1 becomes 2"]
    );
    assert_eq!(lab.joined(CLIENT).accepted, 5);
    // So is every command that keeps it: none takes what came in the background without a word.
    network(&lab, &["set", "--threshold", "1"]).done();
    took_in_the_background(&lab);
    let id = lab.joined(CLIENT).network.id();
    let name = format!("timestamp-{id}");
    let key = lab.home(ALICE).existing_key(&name).unwrap().unwrap();
    lab.home(CLIENT).keep_key(&name, &key).unwrap();
    let renewed = lab.qk(CLIENT, &["network", "renew"]).done();
    assert_eq!(
        changes(&renewed),
        ["principals that have to agree: 2 becomes 1"]
    );
}

#[test]
fn a_network_is_named_once_and_its_file_is_as_other_files_are() {
    let lab = Lab::new();
    network(&lab, &["set", "--threshold", "1"]).done();
    let file = path(&lab, "handed-out.qknet");
    let renewed = network(&lab, &["renew", "--output", &file]);
    let shown: Value = renewed.done();
    let id = lab.joined(ALICE).network.id().to_string();
    assert_eq!(shown["network"], id.as_str());
    // Later versions name it in what is signed, too; JSON of a name twice is read by some as none.
    assert_eq!(
        renewed.stdout.matches("\"network\":").count(),
        1,
        "{renewed:?}"
    );
    let usual = path(&lab, "usual");
    fs::write(&usual, "").unwrap();
    let mode = |path: &str| fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode(&file), mode(&usual));
}

/// The client's node took the newest version, and nobody was there to be told.
fn took_in_the_background(lab: &Lab) {
    let joined = Joined {
        network: lab.joined(ALICE).network,
        ..lab.joined(CLIENT)
    };
    lab.home(CLIENT).keep_network(&joined).unwrap();
}
