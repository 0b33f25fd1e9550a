//! Golden vectors: what is expensive to change later, byte for byte.
//!
//! `QK_BLESS=1 cargo test -p qk-protocol --test golden` writes them anew, which is a change of the
//! format: everybody's keys, statements or networks become other ones. Where another way to the same
//! bytes exists, the vector is checked by that as well, and not only by the code that wrote it.

#![expect(
    clippy::disallowed_methods,
    reason = "tests read and write the vectors; the library does not"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signature, SigningKey, VerifyingKey};
use qk_protocol::assign::Ranking;
use qk_protocol::bundle::Bundle;
use qk_protocol::candidate::{Build, Candidate};
use qk_protocol::canonical;
use qk_protocol::decide::Held;
use qk_protocol::hash::{Blake3, Point, PrincipalId, PublicKey, Root, Sha256, StatementId};
use qk_protocol::key::{self, ArtifactKey, Flags, Linker, Output, Rustc};
use qk_protocol::log::LogPiece;
use qk_protocol::manifest::{
    Committee, KeyState, Manifest, Network, Principal, PrincipalKey, PrincipalRole, RootKeys,
};
use qk_protocol::message::{Answer, Contact, Cursor, Get, Have, NodeId, Provider, Reply, Request};
use qk_protocol::policy::Policy;
use qk_protocol::statement::{
    Body, Environment, Failure, Observation, Reason, Retraction, Role, Statement, Subject,
};
use qk_protocol::time::UnixTime;
use serde_json::{Value, json};

const NOW: UnixTime = UnixTime(1_800_000_000);

fn secret(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

fn public(seed: u8) -> PublicKey {
    qk_protocol::dsse::public_key(&secret(seed))
}

fn artifact_key(target: &str, glibc: Option<&str>) -> ArtifactKey {
    ArtifactKey {
        registry: "registry+https://registry.example/index".to_owned(),
        name: "hello-world".to_owned(),
        version: "1.2.3-rc.1+build.5".to_owned(),
        target: target.to_owned(),
        flags: Flags {
            source: Sha256::of(b"source"),
            lock: Sha256::of(b"lock"),
            features: ["serde/std", "color"].map(str::to_owned).into(),
            default_features: false,
            profile: "release".to_owned(),
            rustflags: key::rustflags(["-C", "target_cpu=x86-64-v3", "--codegen=lto=fat"]).unwrap(),
            rustc: rustc(),
            linker: Linker::Zig {
                wheel: Sha256::of(b"wheel"),
                glibc: glibc.map(str::to_owned),
            },
            recipe: 1,
            output: Output::Bins,
        },
    }
}

fn rustc() -> Rustc {
    let files = [("bin/rustc", "rustc"), ("lib/librustc_driver.so", "driver")];
    let files = files.map(|(path, bytes)| (path.to_owned(), Blake3::of(bytes.as_bytes())));
    Rustc {
        version: "1.95.0".to_owned(),
        commit_hash: "0123456789abcdef0123456789abcdef01234567".to_owned(),
        host: "x86_64-unknown-linux-gnu".to_owned(),
        sysroot: key::sysroot(&files.into()),
    }
}

fn manifest() -> Manifest {
    let principal = |id: u8, role, keys| Principal {
        id: PrincipalId([id; 32]),
        name: format!("principal {id}"),
        roles: [role].into(),
        targets: [].into(),
        toolchains: [].into(),
        keys,
    };
    let active = |seed| PrincipalKey {
        key: public(seed),
        state: KeyState::Active,
        retired: None,
    };
    let retired = PrincipalKey {
        key: public(90),
        state: KeyState::Retired,
        retired: Some(NOW),
    };
    let mut principals: Vec<_> = (11..17)
        .map(|id| principal(id, PrincipalRole::Verifier, vec![active(id)]))
        .collect();
    principals.push(principal(
        17,
        PrincipalRole::Publisher,
        vec![active(17), retired],
    ));
    let gnu = artifact_key("x86_64-unknown-linux-gnu", Some("2.17")).flags;
    Manifest {
        format: 1,
        name: "golden".to_owned(),
        network: None,
        version: 1,
        timestamp: public(3),
        bootstrap: ["/dns4/node.example/tcp/4001".to_owned()].into(),
        registries: ["registry+https://registry.example/index".to_owned()].into(),
        secret_id: None,
        root: RootKeys {
            threshold: 2,
            keys: [public(1), public(2)].into(),
        },
        committee: Committee {
            size: 4,
            seed: Blake3::of(b"seed"),
        },
        policy: Policy::default(),
        builds: vec![Build {
            target: "x86_64-unknown-linux-gnu".to_owned(),
            recipe: 1,
            rustc: gnu.rustc,
            linker: gnu.linker,
        }],
        principals,
        blocked: Vec::new(),
    }
}

fn network() -> Network {
    Network::create(&manifest(), &[&secret(1), &secret(2)], &secret(3), NOW).unwrap()
}

fn environment() -> Environment {
    Environment {
        os: "debian 12".to_owned(),
        kernel: "6.1.0".to_owned(),
        tools: [("bwrap".to_owned(), "0.8.0".to_owned())].into(),
        sandbox: "bubblewrap".to_owned(),
        cpus: 2,
    }
}

fn statements() -> BTreeMap<&'static str, Statement> {
    let sign = |body| {
        let key = artifact_key("x86_64-unknown-linux-gnu", Some("2.17"));
        Statement::sign(network().id(), key, body, &secret(11)).unwrap()
    };
    let observation = sign(Body::Observation(Observation {
        subject: Subject {
            root: Root::of(b"artifact"),
            sha256: Sha256::of(b"artifact"),
            size: 8,
        },
        role: Role::Publisher,
        environment: environment(),
        log: Blake3::of(b"log"),
        started: UnixTime(NOW.0 - 100),
        finished: NOW,
        work: None,
        work_checks: [].into(),
    }));
    let failure = sign(Body::Failure(Failure {
        reason: Reason::MissingSystemLibrary,
        detail: "no openssl: \"pkg-config\" says ß".to_owned(),
        environment: environment(),
        log: None,
        started: UnixTime(NOW.0 - 100),
        finished: NOW,
    }));
    let retraction = sign(Body::Retraction(Retraction {
        retracts: observation.id(),
        detail: "built on the wrong machine".to_owned(),
        at: NOW,
    }));
    [
        ("observation", observation),
        ("failure", failure),
        ("retraction", retraction),
    ]
    .into()
}

fn contact() -> Contact {
    Contact {
        node: NodeId([&[0, 36, 8, 1, 18, 32], &[7; 32][..]].concat()),
        addrs: vec![vec![4, 127, 0, 0, 1, 6, 15, 161].into()],
    }
}

fn cursor() -> Cursor {
    Cursor {
        point: Point([1; 32]),
        statement: StatementId([2; 32]),
    }
}

fn requests() -> Vec<(&'static str, Request)> {
    let held = Arc::new(statements().remove("observation").unwrap());
    let get = |bits, observer, after| {
        Request::Get(Get {
            point: Point([1; 32]),
            bits,
            observer,
            after,
        })
    };
    vec![
        ("put", Request::Put(vec![held])),
        (
            "have",
            Request::Have(Have {
                roots: vec![(Point([1; 32]), Root([3; 32]))],
                addrs: contact().addrs,
            }),
        ),
        ("get", get(256, None, None)),
        ("get_more", get(12, Some(public(11)), Some(cursor()))),
        (
            "near",
            Request::Near {
                point: Point([1; 32]),
                limit: 20,
            },
        ),
        (
            "network",
            Request::Network {
                version: 1,
                issued: NOW,
            },
        ),
        (
            "log",
            Request::Log {
                point: Point([1; 32]),
                digest: Blake3([2; 32]),
                offset: 1 << 20,
            },
        ),
    ]
}

fn replies() -> Vec<(&'static str, Reply)> {
    let held = Arc::new(statements().remove("observation").unwrap());
    let answers = [
        (
            "taken",
            Answer::Taken {
                taken: 3,
                refused: 1,
            },
        ),
        (
            "statements",
            Answer::Statements {
                statements: vec![held],
                providers: vec![Provider {
                    root: Root([3; 32]),
                    contact: contact(),
                }],
                next: Some(cursor()),
            },
        ),
        ("points", Answer::Points(vec![Point([1; 32])])),
        ("network", Answer::Network(Some(network().file().clone()))),
        ("network_same", Answer::Network(None)),
        (
            "log",
            Answer::Log(LogPiece {
                total: 3,
                bytes: b"log".to_vec().into(),
            }),
        ),
        ("refused", Answer::Refused("not now".to_owned())),
    ];
    let reply = |answer| Reply {
        closer: vec![contact()],
        answer,
    };
    answers
        .into_iter()
        .map(|(name, answer)| (name, reply(answer)))
        .collect()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// What is stored in `vectors/<name>.json`, after it was compared with `made`.
fn golden(name: &str, made: Value) -> Value {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/vectors/{name}.json"));
    if std::env::var_os("QK_BLESS").is_some() {
        let written = serde_json::to_string_pretty(&made).unwrap();
        std::fs::write(&path, written + "\n").unwrap();
    }
    let stored: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    // The bytes that matter are the strings: in which order the file lists them is not one of them.
    assert_eq!(stored, made, "{name}");
    stored
}

fn str_of<'a>(value: &'a Value, member: &str) -> &'a str {
    value[member].as_str().unwrap()
}

fn hex(bytes: impl AsRef<[u8]>) -> String {
    hex::encode(bytes)
}

/// A string as qk hashes it beside others: its length in eight bytes, little-endian, before it.
fn field(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u64).to_le_bytes(), bytes].concat()
}

#[test]
fn keys() {
    let cases = [
        artifact_key("x86_64-unknown-linux-gnu", Some("2.17")),
        artifact_key("x86_64-unknown-linux-musl", None),
    ];
    let network = network();
    let made = cases.map(|key| {
        let location = key.release().location(&network.key(None));
        json!({
            "bytes": text(&key.to_bytes()),
            "id": key.id(),
            "network_key": network.key(None),
            "location": location,
            "point": location.point(),
        })
    });
    for vector in golden("keys", json!(made)).as_array().unwrap() {
        let bytes = str_of(vector, "bytes").as_bytes();
        let key = ArtifactKey::parse(bytes).unwrap();
        assert_eq!(
            str_of(vector, "id"),
            hex(blake3::derive_key("qk artifact key v1", bytes))
        );
        let network_key = hex::decode(str_of(vector, "network_key")).unwrap();
        let release = [&key.registry, &key.name, &key.version].map(|text| field(text.as_bytes()));
        let location = blake3::keyed_hash(&network_key.try_into().unwrap(), &release.concat());
        assert_eq!(str_of(vector, "location"), hex(location.as_bytes()));
        assert_eq!(
            str_of(vector, "point"),
            Sha256::of(location.as_bytes()).to_string()
        );
    }
}

#[test]
fn statement_envelopes() {
    let made: BTreeMap<_, _> = statements()
        .into_iter()
        .map(|(name, statement)| {
            let envelope: Value = serde_json::from_slice(statement.envelope()).unwrap();
            let payload = STANDARD.decode(str_of(&envelope, "payload")).unwrap();
            let vector = json!({
                "id": statement.id(),
                "envelope": text(statement.envelope()),
                "payload": text(&payload),
            });
            (name, vector)
        })
        .collect();
    for (name, vector) in golden("statements", json!(made)).as_object().unwrap() {
        let statement = Statement::read(str_of(vector, "envelope").as_bytes()).unwrap();
        assert_eq!(str_of(vector, "id"), statement.id().to_string());
        by_hand(name, vector);
    }
}

/// What DSSE and in-toto say of an envelope, without this project's code.
fn by_hand(name: &str, vector: &Value) {
    let envelope: Value = serde_json::from_str(str_of(vector, "envelope")).unwrap();
    let payload = STANDARD.decode(str_of(&envelope, "payload")).unwrap();
    assert_eq!(text(&payload), str_of(vector, "payload"));
    assert_eq!(
        str_of(&envelope, "payloadType"),
        "application/vnd.in-toto+json"
    );
    let pae = format!(
        "DSSEv1 28 application/vnd.in-toto+json {} {}",
        payload.len(),
        text(&payload)
    );
    let [signature] = &envelope["signatures"].as_array().unwrap()[..] else {
        panic!("one signature");
    };
    let observer: [u8; 32] = hex::decode(str_of(signature, "keyid"))
        .unwrap()
        .try_into()
        .unwrap();
    let sig = STANDARD.decode(str_of(signature, "sig")).unwrap();
    VerifyingKey::from_bytes(&observer)
        .unwrap()
        .verify_strict(pae.as_bytes(), &Signature::from_slice(&sig).unwrap())
        .unwrap();
    let id = blake3::derive_key(
        "qk statement v1",
        &[&observer[..], &field(pae.as_bytes())].concat(),
    );
    assert_eq!(str_of(vector, "id"), hex(id));

    let statement: Value = serde_json::from_slice(&payload).unwrap();
    assert_eq!(statement["_type"], "https://in-toto.io/Statement/v1");
    assert_eq!(
        statement["predicateType"],
        format!("urn:qk:predicate:{name}:v1")
    );
    let members: BTreeSet<_> = statement.as_object().unwrap().keys().collect();
    let expected = ["_type", "predicate", "predicateType", "subject"].map(str::to_owned);
    assert_eq!(members, expected.iter().collect());
    let [subject] = &statement["subject"].as_array().unwrap()[..] else {
        panic!("one subject");
    };
    let digests = subject["digest"].as_object().unwrap();
    assert!(subject["name"].is_string() && !digests.is_empty());
    assert!(
        digests
            .values()
            .all(|digest| digest.as_str().unwrap().len() == 64)
    );
    if name == "observation" {
        assert_eq!(digests["blake3"], blake3::hash(b"artifact").to_string());
        assert_eq!(digests["sha256"], Sha256::of(b"artifact").to_string());
    }
    let key = serde_json_canonicalizer::to_vec(&statement["predicate"]["key"]).unwrap();
    let key_id = blake3::derive_key("qk artifact key v1", &key);
    assert_eq!(str_of(&statement["predicate"], "key_id"), hex(key_id));
}

#[test]
fn networks() {
    let network = network();
    let timestamp: Value = serde_json::from_str(&network.file().timestamp).unwrap();
    let key = artifact_key("x86_64-unknown-linux-gnu", Some("2.17"));
    let ranking = Ranking::of(&network, &Candidate::of(&key));
    let ranks = ranking
        .ranks()
        .iter()
        .take(manifest().committee.size as usize);
    let committee: Vec<PrincipalId> = ranks.map(|rank| rank.principal).collect();
    let made = json!({
        "toml": network.manifest().to_toml().unwrap(),
        "id": network.id(),
        "key": network.key(None),
        "key_with_secret": network.key(Some(b"secret")),
        "manifest_envelope": network.file().manifests[0],
        "timestamp_envelope": network.file().timestamp,
        "timestamp": text(&STANDARD.decode(str_of(&timestamp, "payload")).unwrap()),
        "committee": committee,
    });
    let vector = golden("network", made);
    let toml = str_of(&vector, "toml");
    assert_eq!(Manifest::parse(toml.as_bytes()).unwrap(), manifest());
    let id = blake3::derive_key("qk network v1", toml.as_bytes());
    assert_eq!(str_of(&vector, "id"), hex(id));
    for (member, secret) in [("key", &b""[..]), ("key_with_secret", b"secret")] {
        let derived = blake3::derive_key("qk network key v1", &[&id[..], &field(secret)].concat());
        assert_eq!(str_of(&vector, member), hex(derived));
    }
    let envelope: Value = serde_json::from_str(str_of(&vector, "manifest_envelope")).unwrap();
    assert_eq!(
        STANDARD.decode(str_of(&envelope, "payload")).unwrap(),
        toml.as_bytes()
    );
    let timestamp: Value = serde_json::from_str(str_of(&vector, "timestamp")).unwrap();
    assert_eq!(
        timestamp["digest"],
        blake3::hash(toml.as_bytes()).to_string()
    );
    assert_eq!(timestamp["expires"], NOW.0 + 7 * 24 * 3600);
    assert_eq!(vector["committee"], json!(draw(&key)));
}

#[test]
fn bundles() {
    let mut key = artifact_key("x86_64-unknown-linux-gnu", Some("2.17"));
    // Nobody is given other flags than the usual ones who did not ask for them.
    key.flags.rustflags.clear();
    let about = |statement: Statement| {
        let body = statement.body().clone();
        Statement::sign(network().id(), key.clone(), body, &secret(11)).unwrap()
    };
    let held: Vec<Held> = statements()
        .into_values()
        .map(|statement| Held {
            statement: Arc::new(about(statement)),
            stored: NOW,
        })
        .collect();
    let made = Bundle::new(&network(), &key, &held).unwrap();
    let vector = golden(
        "bundle",
        serde_json::from_slice(&made.to_bytes().unwrap()).unwrap(),
    );
    let bytes = canonical::to_bytes(&vector).unwrap();
    assert_eq!(Bundle::parse(&bytes).unwrap(), made);
    assert_eq!(made.to_bytes().unwrap(), bytes);
    // The envelopes are those of the network file, as objects.
    let file = network().file().clone();
    assert_eq!(
        [
            vector["manifests"][0].to_string(),
            vector["timestamp"].to_string()
        ],
        [file.manifests[0].clone(), file.timestamp]
    );
    assert_eq!(vector["statements"].as_array().unwrap().len(), 3);
}

/// The committee by sorting everybody by hand.
fn draw(key: &ArtifactKey) -> Vec<String> {
    let mut ranks: Vec<_> = (11..17_u8)
        .map(|id| {
            let input = [
                blake3::hash(b"seed").as_bytes().to_vec(),
                field(key.registry.as_bytes()),
                field(key.name.as_bytes()),
                field(key.version.as_bytes()),
                key.flags.source.0.to_vec(),
                field(key.target.as_bytes()),
                vec![id; 32],
            ];
            (
                blake3::derive_key("qk committee v1", &input.concat()),
                hex([id; 32]),
            )
        })
        .collect();
    ranks.sort();
    ranks.into_iter().take(4).map(|(_, id)| id).collect()
}

#[test]
fn messages() {
    let requests: BTreeMap<_, _> = requests().into_iter().collect();
    let replies: BTreeMap<_, _> = replies().into_iter().collect();
    let made = json!({
        "requests": requests.iter().map(|(name, one)| (*name, hex(one.encode()))).collect::<BTreeMap<_, _>>(),
        "replies": replies.iter().map(|(name, one)| (*name, hex(one.encode()))).collect::<BTreeMap<_, _>>(),
    });
    let vectors = golden("messages", made);
    for (name, request) in &requests {
        let bytes = hex::decode(str_of(&vectors["requests"], name)).unwrap();
        assert_eq!(Request::decode(&bytes).unwrap().message, *request, "{name}");
    }
    for (name, reply) in &replies {
        let bytes = hex::decode(str_of(&vectors["replies"], name)).unwrap();
        assert_eq!(Reply::decode(&bytes).unwrap().message, *reply, "{name}");
    }
    // RFC 8949 by hand: a map of one, "Near", a map of two, and so on.
    let point = "01".repeat(32);
    assert_eq!(
        str_of(&vectors["requests"], "near"),
        format!("a1644e656172a265706f696e745820{point}656c696d697414")
    );
    assert_eq!(
        str_of(&vectors["requests"], "get"),
        format!(
            "a163476574a465706f696e745820{point}6462697473190100686f62736572766572f6656166746572f6"
        )
    );
}
