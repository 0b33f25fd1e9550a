//! What there is before the first event: a real network, really signed statements, an artifact.

use std::sync::Arc;

use ed25519_dalek::SigningKey;
use qk_protocol::candidate::Build;
use qk_protocol::candidate::Candidate;
use qk_protocol::dsse;
use qk_protocol::hash::{Blake3, PrincipalId, Root, Sha256};
use qk_protocol::key::{ArtifactKey, Flags, Linker, Output, Rustc};
use qk_protocol::manifest::{
    Committee, KeyState, Manifest, Network, Principal, PrincipalKey, PrincipalRole, RootKeys,
};
use qk_protocol::policy::Policy;
use qk_protocol::statement::{Body, Environment, Observation, Role, Statement, Subject};
use qk_protocol::time::UnixTime;

use crate::scenario::PRINCIPALS;

/// When a run begins, by the calendar.
pub(crate) const BEGIN: UnixTime = UnixTime(1_800_000_000);

/// The network and what its principals stated.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) network: Arc<Network>,
    pub(crate) policy: Policy,
    pub(crate) candidate: Candidate,
    pub(crate) statements: Vec<Arc<Statement>>,
}

/// A network of three verifiers, the first `observations` of whom observed `artifact`.
///
/// # Errors
/// When a manifest or statement cannot be signed, which says that this file is wrong.
pub(crate) fn stage(artifact: &[u8], observations: usize, threshold: u32) -> anyhow::Result<Stage> {
    let network = Network::create(&manifest(), &[&secret("root")], &secret("clock"), BEGIN)?;
    let key = artifact_key();
    let sign = |index| {
        let body = Body::Observation(observation(artifact));
        Statement::sign(network.id(), key.clone(), body, &secret(&verifier(index)))
    };
    let statements = (0..observations).map(|index| sign(index).map(Arc::new));
    Ok(Stage {
        statements: statements.collect::<Result<_, _>>()?,
        network: Arc::new(network.clone()),
        policy: Policy {
            threshold,
            ..Policy::default()
        },
        candidate: Candidate::of(&key),
    })
}

fn verifier(index: usize) -> String {
    format!("verifier {index}")
}

fn secret(name: &str) -> SigningKey {
    SigningKey::from_bytes(&blake3::derive_key("qk simulator key", name.as_bytes()))
}

fn build() -> Build {
    Build {
        target: "x86_64-unknown-linux-gnu".to_owned(),
        recipe: 1,
        rustc: Rustc {
            version: "1.95.0".to_owned(),
            commit_hash: "0123456789abcdef0123456789abcdef01234567".to_owned(),
            host: "x86_64-unknown-linux-gnu".to_owned(),
            sysroot: Blake3::of(b"sysroot"),
        },
        linker: Linker::Zig {
            wheel: Sha256::of(b"wheel"),
            glibc: Some("2.17".to_owned()),
        },
    }
}

fn artifact_key() -> ArtifactKey {
    let build = build();
    ArtifactKey {
        registry: "registry+https://registry.example/index".to_owned(),
        name: "hello".to_owned(),
        version: "1.2.3".to_owned(),
        target: build.target,
        flags: Flags {
            source: Sha256::of(b"source"),
            lock: Sha256::of(b"lock"),
            features: [].into(),
            default_features: true,
            profile: "release".to_owned(),
            rustflags: [].into(),
            rustc: build.rustc,
            linker: build.linker,
            recipe: build.recipe,
            output: Output::Bins,
        },
    }
}

fn observation(artifact: &[u8]) -> Observation {
    Observation {
        subject: Subject {
            root: Root::of(artifact),
            sha256: Sha256::of(artifact),
            size: artifact.len() as u64,
        },
        role: Role::Verifier,
        environment: Environment {
            os: "debian 12".to_owned(),
            kernel: "6.1.0".to_owned(),
            tools: [].into(),
            sandbox: "bubblewrap".to_owned(),
            cpus: 2,
        },
        log: Blake3::of(b"log"),
        started: UnixTime(BEGIN.0 - 100),
        finished: UnixTime(BEGIN.0 - 10),
        work: None,
        work_checks: [].into(),
    }
}

fn manifest() -> Manifest {
    let principal = |index| {
        let name = verifier(index);
        Principal {
            id: PrincipalId(blake3::derive_key(
                "qk simulator principal",
                name.as_bytes(),
            )),
            roles: [PrincipalRole::Verifier].into(),
            targets: [].into(),
            toolchains: [].into(),
            keys: vec![PrincipalKey {
                key: dsse::public_key(&secret(&name)),
                state: KeyState::Active,
                retired: None,
            }],
            name,
        }
    };
    Manifest {
        format: 1,
        name: "simulated".to_owned(),
        network: None,
        version: 1,
        timestamp: dsse::public_key(&secret("clock")),
        bootstrap: [].into(),
        registries: [artifact_key().registry].into(),
        secret_id: None,
        root: RootKeys {
            threshold: 1,
            keys: [dsse::public_key(&secret("root"))].into(),
        },
        committee: Committee {
            size: 3,
            seed: Blake3::of(b"seed"),
        },
        policy: Policy::default(),
        builds: vec![build()],
        principals: (0..PRINCIPALS).map(principal).collect(),
        blocked: Vec::new(),
    }
}
