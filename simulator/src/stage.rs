//! What is there before the first event: a network whose manifest is signed, principals with keys, and
//! artifacts whose statements are signed once, when they are made.

use std::sync::Arc;

use ed25519_dalek::SigningKey;
use qk_protocol::candidate::{Build, Candidate};
use qk_protocol::dsse;
use qk_protocol::hash::{
    Blake3, KeyId, NetworkKey, Point, PrincipalId, PublicKey, Root, Sha256, StatementId, Work,
};
use qk_protocol::key::{ArtifactKey, Linker, Release, Rustc};
use qk_protocol::manifest::{
    Committee, KeyState, Manifest, Network, Principal, PrincipalKey, PrincipalRole, RootKeys,
};
use qk_protocol::policy::{OnDissent, Policy};
use qk_protocol::statement::{Body, Environment, Observation, Role, Statement, Subject};
use qk_protocol::time::UnixTime;
use qk_protocol::work::WorkDigest;

use crate::engine::Micros;
use crate::scenario::Scenario;

/// When a run begins, by the calendar.
pub(crate) const BEGIN: UnixTime = UnixTime(1_800_000_000);

/// What a principal is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Character {
    Publisher,
    Honest,
    /// States the wrong root of each victim, as all of its kind do.
    Colluding,
    /// Builds nothing and repeats the first root that it sees.
    Lazy,
    /// Sometimes states a root that nobody else got.
    Lying,
}

/// Somebody who signs.
#[derive(Debug)]
pub(crate) struct Operator {
    pub(crate) character: Character,
    pub(crate) secret: SigningKey,
    pub(crate) public: PublicKey,
    pub(crate) id: PrincipalId,
}

/// The network and everybody who has a key in it.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) network: Arc<Network>,
    pub(crate) network_key: NetworkKey,
    pub(crate) policy: Policy,
    /// Publishers first.
    pub(crate) operators: Vec<Operator>,
    /// Keys of the mirrors.
    pub(crate) mirrors: Vec<PublicKey>,
    /// Keys that are in no manifest.
    pub(crate) strangers: Vec<Operator>,
    /// Signs timestamps.
    pub(crate) clock: SigningKey,
}

/// One release and all that can be stated about it.
#[derive(Debug)]
pub(crate) struct Artifact {
    pub(crate) key: ArtifactKey,
    pub(crate) key_id: KeyId,
    pub(crate) point: Point,
    pub(crate) right: Subject,
    pub(crate) wrong: Subject,
    /// What whoever builds it knows.
    pub(crate) digest: WorkDigest,
    pub(crate) crate_number: u32,
    /// When it was released.
    pub(crate) released: Micros,
    /// When the first observation was acknowledged by a holder.
    pub(crate) published: Option<Micros>,
    /// When somebody who means well first stated its right root.
    pub(crate) dissented: Option<Micros>,
    /// Verifiers whose observation of the right root a holder acknowledged.
    pub(crate) proofs: Vec<u32>,
}

impl Artifact {
    pub(crate) fn candidate(&self) -> Candidate {
        Candidate::of(&self.key)
    }
}

fn operator(name: &str, character: Character) -> Operator {
    let secret = SigningKey::from_bytes(&blake3::derive_key("qk simulator key", name.as_bytes()));
    Operator {
        character,
        public: dsse::public_key(&secret),
        id: PrincipalId(blake3::derive_key(
            "qk simulator principal",
            name.as_bytes(),
        )),
        secret,
    }
}

impl Stage {
    /// # Errors
    /// When the manifest is too large to be signed.
    pub(crate) fn new(scenario: &Scenario) -> anyhow::Result<Self> {
        let who = &scenario.principals;
        let character = |index: u32| match index {
            _ if index < who.colluding => Character::Colluding,
            _ if index < who.colluding + who.lazy => Character::Lazy,
            _ if index < who.colluding + who.lazy + who.lying => Character::Lying,
            _ => Character::Honest,
        };
        let publishers =
            (0..who.publishers).map(|at| operator(&format!("p{at}"), Character::Publisher));
        let verifiers = (0..who.verifiers).map(|at| operator(&format!("v{at}"), character(at)));
        let operators: Vec<Operator> = publishers.chain(verifiers).collect();
        let mirrors: Vec<Operator> = (0..scenario.nodes.mirrors)
            .map(|at| operator(&format!("m{at}"), Character::Honest))
            .collect();
        let strangers: Vec<Operator> = (0..scenario.hostile.strangers)
            .map(|at| operator(&format!("s{at}"), Character::Colluding))
            .collect();
        let role = |one: &Operator| match one.character {
            Character::Publisher => PrincipalRole::Publisher,
            _ => PrincipalRole::Verifier,
        };
        let mut principals: Vec<Principal> = operators
            .iter()
            .enumerate()
            .map(|(at, one)| principal(format!("o{at}"), one, role(one)))
            .collect();
        if !scenario.without.mirrors {
            let named = mirrors.iter().enumerate();
            principals.extend(
                named.map(|(at, one)| principal(format!("m{at}"), one, PrincipalRole::Mirror)),
            );
        }
        if scenario.without.manifest {
            let all = strangers.iter().enumerate();
            principals.extend(
                all.map(|(at, one)| principal(format!("s{at}"), one, PrincipalRole::Verifier)),
            );
        }
        let model = &scenario.policy;
        let escalates = !scenario.without.escalation;
        let policy = Policy {
            threshold: if scenario.without.threshold {
                1
            } else {
                model.threshold
            },
            count: model.count,
            on_dissent: Some(if escalates {
                model.on_dissent
            } else {
                OnDissent::Refuse
            }),
            ..Policy::default()
        };
        let root = operator("root", Character::Honest).secret;
        let clock = operator("clock", Character::Honest).secret;
        let manifest = Manifest {
            format: 1,
            name: "simulated".to_owned(),
            network: None,
            version: 1,
            timestamp: dsse::public_key(&clock),
            bootstrap: [].into(),
            registries: [REGISTRY.to_owned()].into(),
            secret_id: None,
            root: RootKeys {
                threshold: 1,
                keys: [dsse::public_key(&root)].into(),
            },
            committee: Committee {
                size: model.committee,
                seed: Blake3::of(b"seed"),
            },
            policy: policy.clone(),
            builds: vec![build()],
            principals,
            blocked: Vec::new(),
        };
        let network = Network::create(&manifest, &[&root], &clock, BEGIN)?;
        Ok(Self {
            network_key: network.key(None),
            network: Arc::new(network),
            policy,
            operators,
            mirrors: mirrors.into_iter().map(|one| one.public).collect(),
            strangers,
            clock,
        })
    }

    /// Whether an operator states what it got; beyond the operators are strangers, who do not.
    pub(crate) fn means_well(&self, operator: u32) -> bool {
        let one = self.operators.get(operator as usize);
        one.is_some_and(|one| matches!(one.character, Character::Publisher | Character::Honest))
    }

    /// The release `number` of a crate.
    pub(crate) fn artifact(&self, crate_number: u32, number: u32, kib: u64) -> Artifact {
        let release = Release {
            registry: REGISTRY.to_owned(),
            name: format!("crate{crate_number}"),
            version: format!("1.{number}.0"),
        };
        let name = format!("{}-{}", release.name, release.version);
        let point = release.location(&self.network_key).point();
        let candidate = Candidate {
            source: Sha256::of(name.as_bytes()),
            features: [].into(),
            default_features: true,
            profile: "release".to_owned(),
            rustflags: [].into(),
            build: build(),
            release,
        };
        let key = candidate.key(Sha256::of(b"lock"));
        let digest = WorkDigest::of([Blake3::of(format!("{name} objects").as_bytes())]);
        Artifact {
            key_id: key.id(),
            key,
            point,
            right: subject(&name, kib),
            wrong: subject(&format!("{name} with a backdoor"), kib),
            digest: digest.expect("one input"),
            crate_number,
            released: 0,
            published: None,
            dissented: None,
            proofs: Vec::new(),
        }
    }

    /// What an operator signs when it says that it got `subject`.
    pub(crate) fn observe(
        &self,
        by: &Operator,
        artifact: &Artifact,
        subject: Subject,
        finished: UnixTime,
        work: Option<Work>,
        work_checks: std::collections::BTreeMap<StatementId, bool>,
    ) -> Arc<Statement> {
        let observation = Observation {
            subject,
            role: match by.character {
                Character::Publisher => Role::Publisher,
                _ => Role::Verifier,
            },
            environment: Environment {
                os: "debian 12".to_owned(),
                kernel: "6.1.0".to_owned(),
                tools: [("bwrap".to_owned(), "0.8.0".to_owned())].into(),
                sandbox: "bubblewrap".to_owned(),
                cpus: 2,
            },
            log: Blake3::of(b"log"),
            started: UnixTime(finished.0 - 60),
            finished,
            work,
            work_checks,
        };
        let body = Body::Observation(observation);
        let signed = Statement::sign(self.network.id(), artifact.key.clone(), body, &by.secret);
        Arc::new(signed.expect("within the bounds of a statement"))
    }

    /// The `work` of who built an artifact.
    pub(crate) fn work(&self, by: &Operator, artifact: &Artifact, subject: Subject) -> Work {
        let (network, key) = (self.network.id(), artifact.key_id);
        artifact.digest.work(network, by.public, key, subject.root)
    }
}

const REGISTRY: &str = "registry+https://registry.example/index";

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

/// An artifact that goes by a name.
pub(crate) fn subject(name: &str, kib: u64) -> Subject {
    Subject {
        root: Root::of(name.as_bytes()),
        sha256: Sha256::of(name.as_bytes()),
        size: kib * 1024,
    }
}

fn principal(name: String, one: &Operator, role: PrincipalRole) -> Principal {
    Principal {
        id: one.id,
        name,
        roles: [role].into(),
        targets: [].into(),
        toolchains: [].into(),
        keys: vec![PrincipalKey {
            key: one.public,
            state: KeyState::Active,
            retired: None,
        }],
    }
}
