//! Bundles: a proof that is checked later, elsewhere, offline, and by other programs.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use qk_tests::artifact::{Artifact, Options, SPEC, artifact, artifact_with};
use qk_tests::lab::{ALICE, BOB, CAROL, CLIENT, Lab, Ran, run};
use qk_tests::python;
use serde_json::Value;

/// Somebody who has nothing but the file.
const STRANGER: &str = "stranger";

/// Other people's readers of the formats that a bundle is made of.
const READERS: [&str; 2] = ["securesystemslib==1.6.0", "in-toto-attestation==0.9.3"];

/// Verifies every statement of a bundle, shows the payload that was signed, and expects that each is
/// refused once a byte of it is another one.
const READ: &str = r#"
import copy, json, sys
from google.protobuf import json_format
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.statement import Statement
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import SSlibKey

def verify(envelope, signer):
    key = SSlibKey(signer, "ed25519", "ed25519", {"public": signer})
    return envelope.verify([key], 1)

seen = []
for one in json.load(open(sys.argv[1]))["statements"]:
    signer = one["signatures"][0]["keyid"]
    envelope = Envelope.from_dict(copy.deepcopy(one))
    assert envelope.payload_type == "application/vnd.in-toto+json"
    assert list(verify(envelope, signer)) == [signer]
    payload = json.loads(envelope.payload)
    statement = json_format.ParseDict(payload, statement_pb2.Statement())
    Statement.copy_from_pb(statement).validate()
    tampered = Envelope.from_dict(copy.deepcopy(one))
    tampered.payload = tampered.payload.replace(b"hexyl", b"hexyx", 1)
    assert tampered.payload != envelope.payload
    other = "00" * 31 + "01"
    for envelope, key in ((tampered, signer), (Envelope.from_dict(one), other)):
        try:
            verify(envelope, key)
        except VerificationError:
            continue
        raise SystemExit("a wrong envelope was taken")
    seen.append(payload["subject"][0]["digest"]["blake3"])
print(json.dumps(seen))
"#;

struct Proven {
    lab: Lab,
    artifact: Artifact,
    file: PathBuf,
}

impl Proven {
    /// Alice and bob agree, and the client wrote that down.
    fn new() -> Self {
        let mut lab = Lab::new();
        lab.start_alice();
        let artifact = artifact(&lab.joined(ALICE).network);
        lab.publish(ALICE, &artifact);
        lab.publish(BOB, &artifact);
        let file = lab.dir().join("hexyl.qkproof");
        let proven = Self {
            lab,
            artifact,
            file,
        };
        let exported = proven.export().done();
        assert_eq!(exported["statements"], 2, "{exported}");
        assert_eq!(exported["verdict"]["decision"], "trusted", "{exported}");
        proven
    }

    fn export(&self) -> Ran {
        let file = self.file.to_str().unwrap();
        self.lab.qk(CLIENT, &["proofs", SPEC, "--export", file])
    }

    fn fingerprint(&self) -> String {
        self.lab.joined(ALICE).network.id().to_string()
    }

    /// `qk proofs --check` where there is no registry and no network.
    fn check(&self, who: &str, args: &[&str]) -> Ran {
        let mut command = self.lab.command(who, &["proofs", "--json", "--check"]);
        command.arg(&self.file).args(args);
        command.env("CARGO_HOME", self.lab.dir().join("no-cargo"));
        command.env("HTTPS_PROXY", "http://127.0.0.1:1");
        run(&mut command)
    }
}

#[test]
fn a_bundle_is_checked_later_elsewhere_and_offline() {
    let mut proven = Proven::new();
    proven.lab.kill(ALICE);
    let id = proven.fingerprint();
    let checked = proven.check(STRANGER, &["--network", &id]).done();
    let root = proven.artifact.subject.root.to_string();
    assert_eq!(checked["result"]["decision"], "trusted", "{checked}");
    assert_eq!(checked["result"]["root"], root);
    assert_eq!(checked["trusted_network"], "named");
    assert_eq!(checked["ended"], false);
    // Whom to believe is not for the bundle to say.
    let unknown = proven.check(STRANGER, &[]);
    unknown.failed(11, &[&id, "are to be believed"]);
    assert_eq!(unknown.json()["result"]["decision"], "trusted");
    proven
        .check(STRANGER, &["--network", &"0".repeat(64)])
        .failed(15, &[&id, "it is of network"]);
    assert_eq!(
        proven.check(CLIENT, &[]).done()["trusted_network"],
        "joined"
    );
    proven.check(CLIENT, &["--network", "lab"]).done();
    proven.check(STRANGER, &["--network", &id, SPEC]).done();
    proven
        .check(STRANGER, &["--network", &id, "hexyl@0.16.0"])
        .failed(15, &["hexyl@0.17.0", "not about hexyl@0.16.0"]);
    proven
        .check(STRANGER, &["--network", &id, "hexyl@~0.16"])
        .failed(15, &["hexyl@0.17.0", "not about hexyl@~0.16"]);
    proven
        .check(STRANGER, &["--network", &id, "hexyl@>=0.16"])
        .done();
    // Whoever checks may ask for more, and a project for more still.
    proven.lab.configure(CLIENT, "[policy]\nthreshold = 3\n");
    proven.check(CLIENT, &[]).failed(11, &["2 of 3 principals"]);
    // Nothing was made in the stranger's home.
    let home = proven.lab.home(STRANGER).dir().to_owned();
    assert!(!home.join("networks").exists() && !home.join("store").exists());
}

#[test]
fn a_bundle_that_was_tampered_with_says_where() {
    let proven = Proven::new();
    let id = proven.fingerprint();
    let good = fs::read(&proven.file).unwrap();
    let value: Value = serde_json::from_slice(&good).unwrap();
    let with = |change: &dyn Fn(&mut Value)| {
        let mut other = value.clone();
        change(&mut other);
        fs::write(&proven.file, other.to_string()).unwrap();
        proven.check(STRANGER, &["--network", &id])
    };
    with(&|_| ()).done();
    let flip = |value: &mut Value| {
        let text = value.as_str().unwrap();
        let first = if text.starts_with('A') { 'B' } else { 'A' };
        *value = format!("{first}{}", &text[1..]).into();
    };
    with(&|all| flip(&mut all["statements"][1]["signatures"][0]["sig"]))
        .failed(15, &["hexyl.qkproof", "statement 2", "signature by key"]);
    with(&|all| flip(&mut all["statements"][0]["payload"])).failed(15, &["statement 1"]);
    with(&|all| flip(&mut all["manifests"][2]["payload"])).failed(15, &["network manifest"]);
    with(&|all| flip(&mut all["timestamp"]["payload"])).failed(15, &["network timestamp"]);
    with(&|all| all["key"]["version"] = "0.16.0".into())
        .failed(15, &["statement 1", "another artifact key"]);
    with(&|all| drop(all["manifests"].as_array_mut().unwrap().remove(1)))
        .failed(15, &["version 3 where version 2 belongs"]);
    // As text: the same values in another form.
    fs::write(&proven.file, serde_json::to_string_pretty(&value).unwrap()).unwrap();
    proven
        .check(STRANGER, &["--network", &id])
        .failed(15, &["not in canonical form"]);
    fs::write(&proven.file, vec![b' '; 9 << 20]).unwrap();
    proven
        .check(STRANGER, &["--network", &id])
        .failed(15, &["more than the 8388608 allowed"]);
    fs::remove_file(&proven.file).unwrap();
    proven.check(STRANGER, &[]).failed(2, &["hexyl.qkproof"]);
}

#[test]
fn a_dispute_and_what_was_taken_back_since() {
    let proven = Proven::new();
    let lab = &proven.lab;
    let id = proven.fingerprint();
    // Bob's key turns out to be lost, and the client hears of it.
    let bob = lab.qk(BOB, &["network", "key"]).done();
    let bob = bob["key"].as_str().unwrap();
    let file = lab.network_file();
    let to = ["--output", file.to_str().unwrap()];
    let state = ["network", "state", bob, "compromised"];
    lab.qk(ALICE, &[&state[..], &to[..]].concat()).done();
    lab.qk(CLIENT, &["join", to[1]]).done();
    let checked = proven.check(CLIENT, &[]);
    checked.failed(11, &["1 of 2 principals"]);
    assert_eq!(checked.json()["newer_version"], 4);
    assert_eq!(
        checked.json()["verdict"]["decision"],
        "trusted",
        "by the bundle alone"
    );
    // Who does not know of it is not told by the bundle, as the documents say.
    proven.check(STRANGER, &["--network", &id]).done();
    // A dissent of a principal is part of what is exported.
    let other = Options {
        mark: " with something else in it".to_owned(),
        ..Options::default()
    };
    lab.publish(CAROL, &artifact_with(&lab.joined(ALICE).network, &other));
    let back = ["network", "state", bob, "active"];
    lab.qk(ALICE, &[&back[..], &to[..]].concat()).done();
    lab.qk(CLIENT, &["join", to[1]]).done();
    let exported = proven.export().done();
    assert_eq!(exported["verdict"]["decision"], "disputed", "{exported}");
    proven
        .check(STRANGER, &["--network", &id])
        .failed(12, &["disputed"]);
}

#[test]
fn verifiers_of_others_read_the_envelopes() {
    let import = "import in_toto_attestation.v1.statement, securesystemslib.dsse";
    let Some(python) = python::with("readers", &READERS, import) else {
        eprintln!(
            "SKIPPED: {READERS:?} cannot be installed with pip, so no other program read a bundle"
        );
        return;
    };
    let proven = Proven::new();
    let mut read = Command::new(python);
    read.args(["-c", READ]).arg(&proven.file);
    let done = read.output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{said}");
    let roots: Vec<String> = serde_json::from_slice(&done.stdout).unwrap();
    let root = proven.artifact.subject.root.to_string();
    assert_eq!(roots, [root.clone(), root]);
}
