//! A crate of a private registry, and a network that does not serve that registry: nothing about
//! the crate leaves the machine.

use std::collections::BTreeSet;

use ed25519_dalek::SigningKey;
use qk_node::access::{FindSpec, ProblemKind};
use qk_node::home::Joined;
use qk_node::net::Keypair;
use qk_node::node::{FetchSpec, unix_now};
use qk_protocol::candidate::Wanted;
use qk_protocol::dsse::public_key;
use qk_protocol::hash::{Root, Sha256};
use qk_protocol::key::Release;
use qk_protocol::manifest::{Manifest, Network};
use qk_protocol::message::{Get, Request};
use qk_protocol::statement::Subject;
use qk_tests::artifact::{release, wanted};
use qk_tests::lab::{ALICE, Lab, free_port};
use qk_tests::peer::Peer;

const REGISTRY: &str = "sparse+https://registry.example/index/";
const NAME: &str = "internal-billing";
const HOME: &str = "employee";

/// A home that joined a network whose only other node remembers everything that it is asked.
struct Watched {
    lab: Lab,
    recorder: Peer,
}

impl Watched {
    fn new(registries: &[&str]) -> Self {
        let lab = Lab::new();
        let identity = Keypair::generate_ed25519();
        let listen = format!("/ip4/127.0.0.1/tcp/{}", free_port());
        let address = format!("{listen}/p2p/{}", identity.public().to_peer_id());
        let own = lab.home(HOME).key("observer").unwrap();
        let network = network(&lab, &address, registries, &own);
        let joined = Joined {
            joined: unix_now(),
            secret: None,
            place: 0,
            accepted: 1,
            network,
        };
        lab.home(HOME).keep_network(&joined).unwrap();
        let id = joined.network.id();
        let recorder = lab
            .runtime()
            .block_on(Peer::start_at(&listen, identity, id, None));
        Self { lab, recorder }
    }

    fn saw_anything_about(&self, release: &Release) -> bool {
        let key = self.lab.joined(HOME).key();
        self.recorder.was_told_of(release, &key)
    }

    fn fetch(&self, wanted: Wanted) -> ProblemKind {
        let spec = FetchSpec {
            wanted,
            refresh: false,
            offline: false,
            network: None,
            policy: None,
        };
        let fetched = self
            .lab
            .with_access(HOME, async |access| access.fetch(&spec, &|_| {}).await);
        fetched.unwrap_err().kind
    }
}

fn network(lab: &Lab, bootstrap: &str, registries: &[&str], own: &SigningKey) -> Network {
    let (root, timestamp) = (
        SigningKey::from_bytes(&[1; 32]),
        SigningKey::from_bytes(&[2; 32]),
    );
    let mut manifest = Manifest {
        network: None,
        version: 1,
        bootstrap: [bootstrap.to_owned()].into(),
        registries: registries.iter().map(|one| (*one).to_owned()).collect(),
        timestamp: public_key(&timestamp),
        ..lab.joined(ALICE).network.manifest().clone()
    };
    manifest.root.keys = [public_key(&root)].into();
    manifest.principals[0].keys[0].key = public_key(own);
    Network::create(&manifest, &[&root], &timestamp, unix_now()).unwrap()
}

fn crates_io() -> &'static str {
    &release().resolved.release.registry
}

fn private() -> Wanted {
    Wanted {
        release: Release {
            registry: REGISTRY.to_owned(),
            name: NAME.to_owned(),
            version: "1.2.3".to_owned(),
        },
        source: Sha256::of(b"the .crate"),
        features: BTreeSet::new(),
        ..wanted(&release().resolved)
    }
}

/// Everything that a command or a node may do about a release.
fn do_everything(watched: &Watched, wanted: &Wanted) -> (ProblemKind, bool) {
    let kind = watched.fetch(wanted.clone());
    let lab = &watched.lab;
    let joined = lab.joined(HOME);
    let spec = FindSpec {
        network: joined.network.id(),
        release: wanted.release.clone(),
        offline: false,
    };
    let _ = lab.with_access(HOME, async |access| access.find(&spec).await);
    let key = wanted.candidates(&joined.network.manifest().builds)[0].key(Sha256::of(b"a lock"));
    let subject = Subject {
        root: Root::of(b"an archive"),
        sha256: Sha256::of(b"an archive"),
        size: 10,
    };
    let published = lab.put(HOME, None, lab.observe(HOME, &key, subject));
    lab.with_access(HOME, async |access| access.announce().await)
        .unwrap();
    (kind, published.is_ok())
}

#[test]
fn nothing_about_a_private_crate_is_asked_put_or_announced() {
    let watched = Watched::new(&[crates_io()]);
    let wanted = private();
    let (kind, published) = do_everything(&watched, &wanted);
    assert_eq!(kind, ProblemKind::Registry);
    assert!(!published, "an observation about it was taken");
    assert!(
        !watched.saw_anything_about(&wanted.release),
        "{:?}",
        watched.recorder.asked()
    );
    // The recorder does see what is asked about a crate that the network serves.
    let public = qk_tests::artifact::wanted(&release().resolved);
    assert_eq!(watched.fetch(public.clone()), ProblemKind::NotTrusted);
    assert!(watched.saw_anything_about(&public.release));
}

#[test]
fn on_a_network_that_serves_its_registry_it_is_asked_for() {
    let watched = Watched::new(&[crates_io(), REGISTRY]);
    let wanted = private();
    let (kind, published) = do_everything(&watched, &wanted);
    assert_eq!(kind, ProblemKind::NotTrusted);
    assert!(published);
    let point = wanted
        .release
        .location(&watched.lab.joined(HOME).key())
        .point();
    let get = Request::Get(Get {
        point,
        bits: 256,
        observer: None,
        after: None,
    });
    assert!(watched.recorder.asked().contains(&get.encode()));
    assert!(watched.recorder.was_given(&wanted.release));
}
