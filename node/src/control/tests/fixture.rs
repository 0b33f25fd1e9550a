//! A home in a temporary directory, a network whose only principal it is, and a node on it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ed25519_dalek::SigningKey;
use qk_protocol::archive::{self, Contents, Executable, Format};
use qk_protocol::candidate::Build;
use qk_protocol::candidate::Wanted;
use qk_protocol::dsse::public_key;
use qk_protocol::hash::{Blake3, NetworkId, PrincipalId, Sha256};
use qk_protocol::key::{ArtifactKey, Flags, Linker, Output, Rustc};
use qk_protocol::manifest::draft::Draft;
use qk_protocol::manifest::{
    Committee, KeyState, Manifest, Network, Principal, PrincipalKey, PrincipalRole, RootKeys,
};
use qk_protocol::policy::Policy;
use qk_protocol::statement::{Body, Environment, Observation, Role, Statement, Subject};
use qk_protocol::time::UnixTime;
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::super::Listener;
use crate::home::{Home, Joined};
use crate::node::{FetchSpec, Node, NodeOptions, unix_now};

const LOCK: &[u8] = b"version = 4\n";

/// A home without multicast, so that tests on one machine do not find each other.
#[derive(Debug)]
pub(crate) struct TestHome {
    dir: TempDir,
    pub(crate) home: Home,
}

impl TestHome {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(
            dir.path().join("config.toml"),
            "mdns = false\nquic = false\n",
        )
        .unwrap();
        let home = Home::at(dir.path());
        Self { dir, home }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Joins a network of its own by this name, with these nodes to begin with.
    pub(crate) fn join(&self, name: &str, bootstrap: &[String]) -> NetworkId {
        self.join_with(name, |manifest| {
            manifest.bootstrap = bootstrap.iter().cloned().collect();
        })
    }

    /// Joins a network of its own by this name, changed before it is signed.
    pub(crate) fn join_with(&self, name: &str, change: impl FnOnce(&mut Manifest)) -> NetworkId {
        let observer = self.home.key("observer").unwrap();
        let (root, clock) = (key_of("root"), key_of("clock"));
        let mut manifest = Manifest {
            format: 1,
            name: name.to_owned(),
            network: None,
            version: 1,
            timestamp: public_key(&clock),
            bootstrap: [].into(),
            registries: [artifact_key("hello").registry].into(),
            secret_id: None,
            root: RootKeys {
                threshold: 1,
                keys: [public_key(&root)].into(),
            },
            committee: Committee {
                size: 5,
                seed: Blake3::of(b"seed"),
            },
            policy: Policy::default(),
            builds: vec![build()],
            principals: vec![Principal {
                id: PrincipalId(*Blake3::of(b"us").as_bytes()),
                name: "us".to_owned(),
                roles: [PrincipalRole::Publisher].into(),
                targets: [].into(),
                toolchains: [].into(),
                keys: vec![PrincipalKey {
                    key: public_key(&observer),
                    state: KeyState::Active,
                    retired: None,
                }],
            }],
            blocked: Vec::new(),
        };
        change(&mut manifest);
        let network = Network::create(&manifest, &[&root], &clock, unix_now()).unwrap();
        let id = network.id();
        self.keep(network);
        id
    }

    /// Signs the next version of a joined network, with another name.
    pub(crate) fn rename(&self, id: NetworkId, name: &str) {
        self.change(id, |next| next.name = name.to_owned());
    }

    /// Signs the next version of a joined network.
    pub(crate) fn change(&self, id: NetworkId, change: impl FnOnce(&mut Manifest)) {
        let networks = self.home.networks().unwrap();
        let joined = networks.iter().find(|one| one.network.id() == id).unwrap();
        let draft = Draft::begin(&joined.network, change).unwrap();
        let signed = draft.sign(&[&key_of("root")]).unwrap();
        self.keep(signed.complete(&key_of("clock"), unix_now()).unwrap());
    }

    /// Joins the same network as `other`.
    pub(crate) fn join_as(&self, other: &Self, id: NetworkId) {
        let networks = other.home.networks().unwrap();
        let joined = networks.iter().find(|one| one.network.id() == id).unwrap();
        self.keep(joined.network.clone());
    }

    fn keep(&self, network: Network) {
        let joined = Joined {
            accepted: 1,
            network,
            joined: unix_now(),
            secret: None,
            place: 0,
        };
        self.home.keep_network(&joined).unwrap();
    }

    pub(crate) fn archive_path(&self) -> PathBuf {
        self.path().join("built.tar")
    }

    /// An archive of one executable, and this home's observation of it.
    pub(crate) fn built(&self, network: NetworkId) -> (PathBuf, Statement) {
        let program = b"not a program, but bytes of one";
        let executable = Executable {
            format: Format::Elf,
            size: program.len() as u64,
            blake3: Blake3::of(program),
            machine: "x86_64".to_owned(),
            glibc: None,
            needed: [].into(),
        };
        let contents = Contents {
            key: artifact_key("hello"),
            executables: BTreeMap::from([("bin/hello".to_owned(), executable)]),
        };
        let path = self.archive_path();
        let file = fs::File::create(&path).unwrap();
        let written = archive::write(file, &contents, LOCK, &BTreeMap::new(), |_| {
            Ok(&program[..])
        });
        let identity = written.unwrap();
        let observation = Observation {
            subject: Subject {
                root: identity.root,
                sha256: identity.sha256,
                size: identity.size,
            },
            role: Role::Publisher,
            environment: Environment {
                os: "debian 12".to_owned(),
                kernel: "6.1.0".to_owned(),
                tools: [].into(),
                sandbox: "bubblewrap".to_owned(),
                cpus: 2,
            },
            log: Blake3::of(b"log"),
            started: UnixTime(unix_now().0 - 100),
            finished: UnixTime(unix_now().0 - 10),
            work: None,
            work_checks: [].into(),
        };
        let signed = Statement::sign(
            network,
            contents.key,
            Body::Observation(observation),
            &self.home.key("observer").unwrap(),
        );
        (path, signed.unwrap())
    }

    /// A running node that listens on this machine only, with its control socket.
    pub(crate) async fn run(&self) -> Running {
        let listener = Listener::bind(&self.home).unwrap();
        let options = NodeOptions {
            listen: vec!["/ip4/127.0.0.1/tcp/0".to_owned()],
            hold: true,
            ..NodeOptions::default()
        };
        let node = Arc::new(Node::start(self.home.clone(), options).await.unwrap());
        let (end, ended) = oneshot::channel();
        let serving = listener.serve(node.clone(), async { drop(ended.await) });
        Running {
            node,
            end,
            serving: tokio::spawn(serving),
        }
    }
}

/// A node that runs in this process.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) node: Arc<Node>,
    end: oneshot::Sender<()>,
    serving: JoinHandle<()>,
}

impl Running {
    pub(crate) async fn end(self) {
        let _ = self.end.send(());
        self.serving.await.unwrap();
        self.node.shutdown().await;
    }
}

pub(crate) fn key_of(name: &str) -> SigningKey {
    SigningKey::from_bytes(Blake3::of(name.as_bytes()).as_bytes())
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

pub(crate) fn artifact_key(name: &str) -> ArtifactKey {
    let build = build();
    ArtifactKey {
        registry: "registry+https://registry.example/index".to_owned(),
        name: name.to_owned(),
        version: "1.2.3".to_owned(),
        target: build.target,
        flags: Flags {
            source: Sha256::of(b"source"),
            lock: Sha256::of(LOCK),
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

pub(crate) fn fetch_of(name: &str) -> FetchSpec {
    let key = artifact_key(name);
    FetchSpec {
        wanted: Wanted {
            release: key.release(),
            source: key.flags.source,
            targets: vec![key.target],
            features: [].into(),
            default_features: true,
            rustflags: [].into(),
        },
        refresh: false,
        offline: false,
        network: None,
        policy: None,
    }
}
