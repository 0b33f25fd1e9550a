//! A network of five verifiers and a mirror, and scenarios in it that read as a line of prose.
//!
//! Keys are named after their owners: `ann` and `ann.2` are active keys of principal `ann`,
//! `ann.old` retired [`RETIRED`], `ann.lost` is compromised; `zoe` is no principal. Artifacts are
//! named by a word: `right`, `wrong`.

use std::sync::{Arc, LazyLock};

use ed25519_dalek::SigningKey;

use crate::candidate::Build;
use crate::candidate::Candidate;
use crate::decide::{Decision, Held, Question, Verdict, decide};
use crate::dsse;
use crate::hash::{Blake3, NetworkId, PrincipalId, PublicKey, Root, Sha256};
use crate::key::{ArtifactKey, Flags, Linker, Output, Rustc};
use crate::manifest::{
    Committee, KeyState, Manifest, Network, Principal, PrincipalKey, PrincipalRole, RootKeys,
};
use crate::policy::Policy;
use crate::statement::{
    Body, Environment, Failure, Observation, Reason, Retraction, Role, Statement, Subject,
};
use crate::time::UnixTime;

pub(crate) const DAY: u64 = 24 * 3600;
/// When everything is decided, unless a scenario says otherwise.
pub(crate) const NOW: UnixTime = UnixTime(1_800_000_000);
/// When the `.old` keys retired.
pub(crate) const RETIRED: UnixTime = UnixTime(NOW.0 - 10 * DAY);
pub(crate) const VERIFIERS: [&str; 5] = ["ann", "bob", "cyd", "dan", "eve"];

pub(crate) fn secret(name: &str) -> SigningKey {
    SigningKey::from_bytes(&blake3::derive_key("qk test key", name.as_bytes()))
}

pub(crate) fn public(name: &str) -> PublicKey {
    dsse::public_key(&secret(name))
}

pub(crate) fn principal_id(name: &str) -> PrincipalId {
    PrincipalId(blake3::derive_key("qk test principal", name.as_bytes()))
}

pub(crate) fn build() -> Build {
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

pub(crate) fn key() -> ArtifactKey {
    let build = build();
    ArtifactKey {
        registry: "registry+https://registry.example/index".to_owned(),
        name: "hello".to_owned(),
        version: "1.2.3".to_owned(),
        target: build.target,
        flags: Flags {
            source: Sha256::of(b"source"),
            lock: Sha256::of(b"lock"),
            features: ["color".to_owned()].into(),
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

/// The artifact that goes by a name.
pub(crate) fn subject(name: &str) -> Subject {
    Subject {
        root: Root::of(name.as_bytes()),
        sha256: Sha256::of(name.as_bytes()),
        size: 1000,
    }
}

pub(crate) fn environment() -> Environment {
    Environment {
        os: "debian 12".to_owned(),
        kernel: "6.1.0".to_owned(),
        tools: [("bwrap".to_owned(), "0.8.0".to_owned())].into(),
        sandbox: "bubblewrap".to_owned(),
        cpus: 2,
    }
}

pub(crate) fn observation(name: &str) -> Observation {
    Observation {
        subject: subject(name),
        role: Role::Verifier,
        environment: environment(),
        log: Blake3::of(b"log"),
        started: UnixTime(NOW.0 - 100),
        finished: UnixTime(NOW.0 - 10),
        work: None,
        work_checks: [].into(),
    }
}

pub(crate) fn failure() -> Failure {
    Failure {
        reason: Reason::OutOfMemory,
        detail: "rustc was killed".to_owned(),
        environment: environment(),
        log: None,
        started: UnixTime(NOW.0 - 100),
        finished: UnixTime(NOW.0 - 10),
    }
}

/// Version 1: any two of the root keys `root1` to `root3` sign, `clock` signs timestamps.
pub(crate) fn manifest() -> Manifest {
    let mut principals: Vec<_> = VERIFIERS
        .into_iter()
        .map(|name| principal(name, PrincipalRole::Verifier))
        .collect();
    principals.push(principal("mia", PrincipalRole::Mirror));
    Manifest {
        format: 1,
        name: "test".to_owned(),
        network: None,
        version: 1,
        timestamp: public("clock"),
        bootstrap: [].into(),
        registries: [key().registry].into(),
        secret_id: None,
        root: RootKeys {
            threshold: 2,
            keys: ["root1", "root2", "root3"].map(public).into(),
        },
        committee: Committee {
            size: 3,
            seed: Blake3::of(b"seed"),
        },
        policy: Policy::default(),
        builds: vec![build()],
        principals,
        blocked: Vec::new(),
    }
}

fn principal(name: &str, role: PrincipalRole) -> Principal {
    let key = |suffix: &str, state, retired| PrincipalKey {
        key: public(&format!("{name}{suffix}")),
        state,
        retired,
    };
    Principal {
        id: principal_id(name),
        name: name.to_owned(),
        roles: [role].into(),
        targets: [].into(),
        toolchains: [].into(),
        keys: vec![
            key("", KeyState::Active, None),
            key(".2", KeyState::Active, None),
            key(".old", KeyState::Retired, Some(RETIRED)),
            key(".lost", KeyState::Compromised, None),
        ],
    }
}

pub(crate) fn network_of(manifest: &Manifest) -> Network {
    let keys = [&secret("root1"), &secret("root2")];
    Network::create(manifest, &keys, &secret("clock"), NOW).unwrap()
}

pub(crate) fn network() -> &'static Network {
    static NETWORK: LazyLock<Network> = LazyLock::new(|| network_of(&manifest()));
    &NETWORK
}

/// What is changed about an observation before it is signed.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) network: NetworkId,
    pub(crate) key: ArtifactKey,
    pub(crate) observation: Observation,
    pub(crate) stored: UnixTime,
}

#[derive(Debug)]
pub(crate) struct Scenario {
    pub(crate) network: Network,
    pub(crate) policy: Policy,
    pub(crate) candidate: Candidate,
    pub(crate) own: Option<PublicKey>,
    pub(crate) now: UnixTime,
    pub(crate) held: Vec<Held>,
    signers: Vec<String>,
}

/// Nothing stated yet, the default policy: two principals.
pub(crate) fn scenario() -> Scenario {
    scenario_in(network().clone())
}

pub(crate) fn scenario_in(network: Network) -> Scenario {
    Scenario {
        network,
        policy: Policy::default(),
        candidate: Candidate::of(&key()),
        own: None,
        now: NOW,
        held: Vec::new(),
        signers: Vec::new(),
    }
}

impl Scenario {
    /// `who` observes the artifact `what`.
    pub(crate) fn says(self, who: &str, what: &str) -> Self {
        self.says_but(who, what, |_| ())
    }

    /// As [`says`](Self::says), with something else about it.
    pub(crate) fn says_but(self, who: &str, what: &str, change: impl FnOnce(&mut Draft)) -> Self {
        let mut draft = Draft {
            network: self.network.id(),
            key: key(),
            observation: observation(what),
            stored: NOW,
        };
        change(&mut draft);
        let body = Body::Observation(draft.observation);
        let statement = Statement::sign(draft.network, draft.key, body, &secret(who)).unwrap();
        self.with(who, statement, draft.stored)
    }

    pub(crate) fn fails(self, who: &str) -> Self {
        let network = self.network.id();
        self.states(who, network, Body::Failure(failure()))
    }

    /// `who` takes back the statement with this index.
    pub(crate) fn retracts(self, who: &str, index: usize) -> Self {
        let network = self.network.id();
        self.retracts_in(network, who, index)
    }

    pub(crate) fn retracts_in(self, network: NetworkId, who: &str, index: usize) -> Self {
        let retraction = Retraction {
            retracts: self.held[index].statement.id(),
            detail: "built on the wrong machine".to_owned(),
            at: NOW,
        };
        self.states(who, network, Body::Retraction(retraction))
    }

    fn states(self, who: &str, network: NetworkId, body: Body) -> Self {
        let statement = Statement::sign(network, key(), body, &secret(who)).unwrap();
        self.with(who, statement, NOW)
    }

    pub(crate) fn with(mut self, who: &str, statement: Statement, stored: UnixTime) -> Self {
        self.held.push(Held {
            statement: Arc::new(statement),
            stored,
        });
        self.signers.push(who.to_owned());
        self
    }

    pub(crate) fn policy(mut self, change: impl FnOnce(&mut Policy)) -> Self {
        change(&mut self.policy);
        self
    }

    pub(crate) fn own(mut self, who: &str) -> Self {
        self.own = Some(public(who));
        self
    }

    pub(crate) fn at(mut self, now: UnixTime) -> Self {
        self.now = now;
        self
    }

    pub(crate) fn verdict(&self) -> Verdict {
        decide(&Question {
            policy: &self.policy,
            network: &self.network,
            candidate: &self.candidate,
            own: self.own,
            statements: &self.held,
            now: self.now,
        })
    }

    /// The decision, and what each statement did, in the order in which they were made.
    pub(crate) fn outcome(&self) -> String {
        let verdict = self.verdict();
        let mut text = self.decision(&verdict.decision);
        for (held, signer) in self.held.iter().zip(&self.signers) {
            let id = held.statement.id();
            let line = verdict.lines.iter().find(|line| line.statement == id);
            let effect = line.map_or("not about the candidate".to_owned(), |line| {
                format!("{:?}", line.effect)
            });
            text += &format!("\n{signer}: {effect}");
        }
        text
    }

    fn decision(&self, decision: &Decision) -> String {
        match decision {
            Decision::Trusted(trusted) => {
                let mut proof: Vec<&str> = self
                    .held
                    .iter()
                    .zip(&self.signers)
                    .filter(|(held, _)| trusted.proof.contains(&held.statement.id()))
                    .map(|(_, signer)| signer.as_str())
                    .collect();
                proof.dedup();
                let contested = trusted.contested.map_or("", |_| ", contested");
                format!(
                    "trusted: {} by {}{contested}",
                    label(trusted.subject.root),
                    proof.join(", ")
                )
            }
            Decision::Unproven(unproven) => format!("unproven: {}", unproven.missing),
            Decision::Disputed { roots } => {
                let roots: Vec<_> = roots.iter().map(|root| label(*root)).collect();
                format!("disputed: {}", roots.join(", "))
            }
            Decision::Stale { why } => format!("stale: {why}"),
            Decision::Blocked { reason } => format!("blocked: {reason}"),
        }
    }
}

fn label(root: Root) -> String {
    let known = ["right", "wrong"]
        .into_iter()
        .find(|name| subject(name).root == root);
    known.map_or_else(|| root.short(), str::to_owned)
}
