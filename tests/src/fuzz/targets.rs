//! Every decoder of `qk-protocol` that reads bytes of a stranger.
//!
//! A decoder behind a signature is fuzzed twice: as it is, and with the signature made anew over
//! the mutated payload, which is what a hostile member of a network can send.

use std::collections::BTreeMap;
use std::sync::Arc;

use ed25519_dalek::SigningKey;
use qk_protocol::canonical;
use qk_protocol::dsse;
use qk_protocol::hash::{Blake3, NetworkId, Point, PrincipalId, Root, Sha256};
use qk_protocol::key::{ArtifactKey, Flags, Linker, Output, RECIPE, Rustc};
use qk_protocol::manifest::{
    Build, Committee, KeyState, Manifest, Network, NetworkFile, Principal, PrincipalKey,
    PrincipalRole, RootKeys,
};
use qk_protocol::message::{Answer, Contact, Get, Have, NodeId, Provider, Reply, Request};
use qk_protocol::statement::{
    Body, Environment, Failure, Observation, Reason, Retraction, Role, Statement, Subject,
};
use qk_protocol::time::UnixTime;
use serde_bytes::ByteBuf;

use super::Target;

/// As statements have it.
const STATEMENT_TYPE: &str = "application/vnd.in-toto+json";

/// All targets, in the order in which the decoders rest on one another.
pub fn targets() -> Vec<Target> {
    vec![
        canonical_json(),
        artifact_key(),
        statement(),
        statement_payload(),
        manifest(),
        network_file(),
        request(),
        reply(),
    ]
}

fn canonical_json() -> Target {
    Target {
        name: "canonical-json",
        seeds: vec![
            br#"{"a":1,"b":["x",true,"\u0000\n\"\\"],"c":{"d":9007199254740991}}"#.to_vec(),
            key().to_bytes(),
        ],
        run: |input| {
            let Ok(value) = canonical::from_bytes::<serde_json::Value>(input, 64 * 1024) else {
                return false;
            };
            assert_eq!(canonical::to_bytes(&value).unwrap(), input);
            true
        },
    }
}

fn artifact_key() -> Target {
    Target {
        name: "artifact-key",
        seeds: vec![key().to_bytes()],
        run: |input| {
            let Ok(key) = ArtifactKey::parse(input) else {
                return false;
            };
            // One key, one byte string: two spellings of a key would split its proofs.
            assert_eq!(key.to_bytes(), input);
            true
        },
    }
}

fn statement() -> Target {
    Target {
        name: "statement",
        seeds: statements()
            .iter()
            .map(|statement| statement.envelope().to_vec())
            .collect(),
        run: read_statement,
    }
}

fn statement_payload() -> Target {
    Target {
        name: "statement-payload",
        seeds: statements()
            .iter()
            .map(|statement| payload(statement.envelope()))
            .collect(),
        run: |input| read_statement(&dsse::sign(STATEMENT_TYPE, input, &[&signer(1)])),
    }
}

fn read_statement(envelope: &[u8]) -> bool {
    let Ok(statement) = Statement::read(envelope) else {
        return false;
    };
    assert_eq!(statement.envelope(), envelope);
    assert_eq!(statement.key().id(), statement.key_id());
    true
}

fn manifest() -> Target {
    Target {
        name: "manifest",
        seeds: vec![network_manifest().to_toml().unwrap().into_bytes()],
        run: |input| {
            let Ok(manifest) = Manifest::parse(input) else {
                return false;
            };
            // What was read can be written, and says the same when it is read again.
            let written = manifest.to_toml().unwrap();
            assert_eq!(Manifest::parse(written.as_bytes()).unwrap(), manifest);
            true
        },
    }
}

fn network_file() -> Target {
    Target {
        name: "network-file",
        seeds: vec![network().file().to_bytes()],
        run: |input| NetworkFile::parse(input).is_ok_and(|file| Network::verify(file).is_ok()),
    }
}

fn request() -> Target {
    let get = Get {
        point: Point([3; 32]),
        bits: 256,
        observer: Some(dsse::public_key(&signer(1))),
        after: None,
    };
    let have = Have {
        roots: vec![(Point([3; 32]), Root([4; 32]))],
        addrs: vec![ByteBuf::from([4, 127, 0, 0, 1, 6, 16, 0])],
    };
    let requests: Vec<Request> = vec![
        Request::Put(statements()),
        Request::Have(have),
        Request::Get(get),
        Request::Near {
            point: Point([3; 32]),
            limit: 20,
        },
        Request::Network {
            version: 1,
            issued: UnixTime(1_700_000_000),
        },
    ];
    Target {
        name: "request",
        seeds: requests.iter().map(Request::encode).collect(),
        run: |input| {
            let Ok(decoded) = Request::decode(input) else {
                return false;
            };
            let again = Request::decode(&decoded.message.encode()).unwrap();
            assert_eq!(again.message, decoded.message);
            assert_eq!(again.invalid, 0);
            true
        },
    }
}

fn reply() -> Target {
    let contact = Contact {
        node: NodeId(vec![5; 38]),
        addrs: vec![ByteBuf::from([4, 127, 0, 0, 1, 6, 16, 0])],
    };
    let answers: Vec<Answer> = vec![
        Answer::Taken {
            taken: 3,
            refused: 0,
        },
        Answer::Statements {
            statements: statements(),
            providers: vec![Provider {
                root: Root([4; 32]),
                contact: contact.clone(),
            }],
            next: None,
        },
        Answer::Points(vec![Point([3; 32]), Point([4; 32])]),
        Answer::Network(Some(network().file().clone())),
        Answer::Refused("busy".to_owned()),
    ];
    let encode = |answer| {
        Reply {
            closer: vec![contact.clone()],
            answer,
        }
        .encode()
    };
    Target {
        name: "reply",
        seeds: answers.into_iter().map(encode).collect(),
        run: |input| {
            let Ok(decoded) = Reply::decode(input) else {
                return false;
            };
            let again = Reply::decode(&decoded.message.encode()).unwrap();
            assert_eq!(again.message, decoded.message);
            assert_eq!(again.invalid, 0);
            true
        },
    }
}

fn signer(number: u8) -> SigningKey {
    SigningKey::from_bytes(&[number; 32])
}

/// The payload of an envelope that is known to be right.
fn payload(envelope: &[u8]) -> Vec<u8> {
    dsse::verify(envelope, STATEMENT_TYPE, usize::MAX)
        .unwrap()
        .payload
}

fn rustc() -> Rustc {
    Rustc {
        version: "1.95.0".to_owned(),
        commit_hash: "0123456789abcdef0123456789abcdef01234567".to_owned(),
        host: "x86_64-unknown-linux-gnu".to_owned(),
        sysroot: Blake3([1; 32]),
    }
}

fn linker() -> Linker {
    Linker::Zig {
        wheel: Sha256([2; 32]),
        glibc: Some("2.17".to_owned()),
    }
}

fn key() -> ArtifactKey {
    ArtifactKey {
        registry: "registry+https://registry.example/index".to_owned(),
        name: "hexyl".to_owned(),
        version: "0.17.0".to_owned(),
        target: "x86_64-unknown-linux-gnu".to_owned(),
        flags: Flags {
            source: Sha256([3; 32]),
            lock: Sha256([4; 32]),
            features: ["colour".to_owned(), "json".to_owned()].into(),
            default_features: true,
            profile: "release".to_owned(),
            rustflags: ["-Copt-level=3".to_owned()].into(),
            rustc: rustc(),
            linker: linker(),
            recipe: RECIPE,
            output: Output::Bins,
        },
    }
}

fn environment() -> Environment {
    Environment {
        os: "Debian 13".to_owned(),
        kernel: "6.12".to_owned(),
        tools: BTreeMap::from([("zig".to_owned(), "0.17.0".to_owned())]),
        sandbox: "bubblewrap".to_owned(),
        cpus: 2,
    }
}

/// One statement of each type, signed by `signer(1)`.
fn statements() -> Vec<Arc<Statement>> {
    let sign = |body| Statement::sign(NetworkId([9; 32]), key(), body, &signer(1)).unwrap();
    let observation = sign(Body::Observation(Observation {
        subject: Subject {
            root: Root([5; 32]),
            sha256: Sha256([6; 32]),
            size: 1_234_567,
        },
        role: Role::Verifier,
        environment: environment(),
        log: Blake3([7; 32]),
        started: UnixTime(1_700_000_000),
        finished: UnixTime(1_700_000_060),
        work: None,
        work_checks: BTreeMap::new(),
    }));
    let failure = sign(Body::Failure(Failure {
        reason: Reason::OutOfMemory,
        detail: "killed at 8 GiB".to_owned(),
        environment: environment(),
        log: None,
        started: UnixTime(1_700_000_000),
        finished: UnixTime(1_700_000_060),
    }));
    let retraction = sign(Body::Retraction(Retraction {
        retracts: observation.id(),
        detail: "wrong machine".to_owned(),
        at: UnixTime(1_700_000_100),
    }));
    [observation, failure, retraction].map(Arc::new).into()
}

fn network_manifest() -> Manifest {
    let principal = |number: u8| Principal {
        id: PrincipalId([number; 32]),
        name: format!("builder {number}"),
        roles: [PrincipalRole::Publisher, PrincipalRole::Verifier].into(),
        targets: ["x86_64-unknown-linux-gnu".to_owned()].into(),
        toolchains: Default::default(),
        keys: vec![PrincipalKey {
            key: dsse::public_key(&signer(number)),
            state: KeyState::Active,
            retired: None,
        }],
    };
    Manifest {
        format: 1,
        name: "fuzz".to_owned(),
        network: None,
        version: 1,
        timestamp: dsse::public_key(&signer(20)),
        bootstrap: Default::default(),
        registries: [key().registry].into(),
        secret_id: None,
        root: RootKeys {
            threshold: 1,
            keys: [dsse::public_key(&signer(21))].into(),
        },
        committee: Committee {
            size: 5,
            seed: Blake3([8; 32]),
        },
        policy: Default::default(),
        builds: vec![Build {
            target: key().target,
            recipe: RECIPE,
            rustc: rustc(),
            linker: linker(),
        }],
        principals: vec![principal(1), principal(2)],
        blocked: Vec::new(),
    }
}

fn network() -> Network {
    let start = UnixTime(1_700_000_000);
    Network::create(&network_manifest(), &[&signer(21)], &signer(20), start).unwrap()
}
