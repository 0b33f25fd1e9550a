//! Several networks: private first, public on a miss, and nothing private to the public one.

use std::collections::BTreeSet;
use std::sync::Arc;

use ed25519_dalek::SigningKey;
use qk_node::home::Joined;
use qk_node::net::identity_of;
use qk_node::node::{FetchSpec, unix_now};
use qk_node::secret::Secret;
use qk_protocol::candidate::Wanted;
use qk_protocol::dsse::public_key;
use qk_protocol::hash::Sha256;
use qk_protocol::key::{ArtifactKey, Release};
use qk_protocol::manifest::{Manifest, Network};
use qk_protocol::policy::Policy;
use qk_protocol::statement::Role;
use qk_tests::artifact::{Artifact, SPEC, artifact, release, wanted};
use qk_tests::lab::{ALICE, BOB, CAROL, CLIENT, Lab, Ran, feed, free_port, observe, run, until};
use qk_tests::lan::{Capture, Namespace};
use qk_tests::peer::Peer;

const REGISTRY: &str = "sparse+https://registry.example/index/";

/// Alice runs the public network of the lab, bob a private one that serves a registry of its own
/// beside the public one. The client joined both.
struct Two {
    lab: Lab,
    public_port: String,
    private_port: u16,
}

impl Two {
    fn new(namespace: Option<&Arc<Namespace>>) -> Self {
        let mut two = Self::without_alice(namespace);
        two.lab.start_alice();
        two
    }

    fn without_alice(namespace: Option<&Arc<Namespace>>) -> Self {
        let mut lab = Lab::new();
        if let Some(namespace) = namespace {
            lab = lab.inside(namespace);
        }
        let port = lab.alices_address().rsplit('/').next().expect("a port");
        let two = Self {
            public_port: port.to_owned(),
            private_port: free_port(),
            lab,
        };
        two.found_private();
        two
    }

    fn found_private(&self) {
        let lab = &self.lab;
        let secret = Secret::random();
        let peer = lab.qk(BOB, &["network", "key"]).done()["peer"].clone();
        let peer = peer.as_str().expect("a peer id");
        let bootstrap = format!("/ip4/127.0.0.1/tcp/{}/p2p/{peer}", self.private_port);
        let (root, clock) = (
            SigningKey::from_bytes(&[1; 32]),
            SigningKey::from_bytes(&[2; 32]),
        );
        let public = lab.joined(ALICE).network.manifest().clone();
        let mut manifest = Manifest {
            name: "work".to_owned(),
            network: None,
            version: 1,
            bootstrap: [bootstrap].into(),
            registries: public
                .registries
                .iter()
                .cloned()
                .chain([REGISTRY.to_owned()])
                .collect(),
            timestamp: public_key(&clock),
            secret_id: Some(secret.id()),
            policy: Policy {
                threshold: 1,
                ..Policy::default()
            },
            ..public
        };
        manifest.root.keys = [public_key(&root)].into();
        manifest.principals[0].keys[0].key = public_key(&lab.home(CAROL).key("observer").unwrap());
        manifest.principals.truncate(1);
        let network = Network::create(&manifest, &[&root], &clock, unix_now()).unwrap();
        // Bob takes part in the private one alone.
        std::fs::remove_dir_all(lab.home(BOB).dir().join("networks")).unwrap();
        for name in [BOB, CLIENT] {
            let joined = Joined {
                network: network.clone(),
                joined: unix_now(),
                secret: Some(secret.clone()),
                place: 0,
                accepted: 1,
            };
            lab.home(name).keep_network(&joined).unwrap();
        }
    }

    fn start_bob(&mut self) {
        let listen = format!("/ip4/127.0.0.1/tcp/{}", self.private_port);
        // What bob gives is carol's.
        self.lab.start_with(BOB, &listen, &["--share"], &[]);
    }

    /// What a command of the client's does for a crate of any registry, through its node if one runs.
    fn fetch(&self, wanted: &Wanted) -> Ran {
        let spec = FetchSpec {
            wanted: wanted.clone(),
            refresh: true,
            offline: false,
            network: None,
            policy: None,
        };
        let mut fetcher = self.lab.program(env!("CARGO_BIN_EXE_fetcher").as_ref());
        fetcher.env("QK_HOME", self.lab.home(CLIENT).dir());
        feed(&mut fetcher, &serde_json::to_string(&spec).unwrap())
    }

    /// Has somebody's node publish in the private network what carol observed of a crate of the
    /// private registry.
    fn publish_private(&self, name: &str, artifact: &Artifact, version: &str) {
        let release = private(artifact, version).release;
        let key = ArtifactKey {
            registry: release.registry,
            name: release.name,
            version: release.version,
            ..artifact.key.clone()
        };
        let signer = self.lab.home(CAROL).key("observer").unwrap();
        let network = self.lab.joined(BOB).network.id();
        let statement = observe(network, Role::Publisher, &key, artifact.subject, &signer);
        self.lab
            .put(name, Some(artifact.path()), statement)
            .unwrap();
    }
}

fn private(artifact: &Artifact, version: &str) -> Wanted {
    Wanted {
        release: Release {
            registry: REGISTRY.to_owned(),
            name: "internal-billing".to_owned(),
            version: version.to_owned(),
        },
        source: artifact.key.flags.source,
        features: BTreeSet::new(),
        ..wanted(&release().resolved)
    }
}

#[test]
fn not_a_packet_goes_to_the_public_network_for_what_is_private() {
    let Some(namespace) = Namespace::new() else {
        return;
    };
    let mut two = Two::new(Some(&namespace));
    two.start_bob();
    let artifact = artifact(&two.lab.joined(ALICE).network);
    two.publish_private(BOB, &artifact, &artifact.key.version);
    let (public, private_port) = (format!("port {}", two.public_port), two.private_port);
    let during = |wanted: &Wanted| {
        let file = two.lab.dir().join("captured");
        let capture = namespace.capture(&file)?;
        let ran = two.fetch(wanted);
        Some((ran, capture.end()))
    };

    // A crate of the private registry that the private network has.
    let Some((ran, packets)) = during(&private(&artifact, &artifact.key.version)) else {
        return;
    };
    assert_eq!(ran.stdout.trim(), "work", "{ran:?}");
    assert!(packets.count(&format!("tcp port {private_port}")) > 0);
    assert_eq!(packets.count(&public), 0);

    // One that it does not have: a miss goes nowhere else either.
    let (ran, packets) = during(&private(&artifact, "9.9.9")).unwrap();
    assert!(ran.stderr.starts_with("NotTrusted"), "{ran:?}");
    assert!(packets.count(&format!("tcp port {private_port}")) > 0);
    assert_eq!(packets.count(&public), 0);

    // One of the public registry that the private network does not have: now the other is asked.
    let wanted = Wanted {
        source: Sha256::of(b"unknown"),
        ..wanted(&release().resolved)
    };
    let (ran, packets) = during(&wanted).unwrap();
    assert!(ran.stderr.starts_with("NotTrusted"), "{ran:?}");
    assert!(packets.count(&public) > 0, "the capture sees what is sent");
}

/// The same for a node that is at work on both networks. Beside what a private crate causes there are
/// pings and the like; what it causes would be there each time.
#[test]
fn a_running_node_sends_the_public_network_not_a_packet_for_what_is_private() {
    let Some(namespace) = Namespace::new() else {
        return;
    };
    let mut two = Two::new(Some(&namespace));
    two.start_bob();
    two.lab.start_any(CLIENT);
    let artifact = artifact(&two.lab.joined(ALICE).network);
    two.publish_private(BOB, &artifact, &artifact.key.version);
    let file = two.lab.dir().join("captured");
    if namespace.capture(&file).map(Capture::end).is_none() {
        return;
    }
    let during = |act: &dyn Fn()| {
        let capture = namespace.capture(&file).expect("as before");
        act();
        capture.end()
    };
    let public = format!("tcp port {}", two.public_port);
    let mut round = 0;
    until("only the private network hears of private crates", || {
        round += 1;
        let packets = during(&|| {
            // One that is there, one that nobody has, and one that the node has and tells of.
            let ran = two.fetch(&private(&artifact, &artifact.key.version));
            assert_eq!(ran.stdout.trim(), "work", "{ran:?}");
            let ran = two.fetch(&private(&artifact, &format!("8.8.{round}")));
            assert!(ran.stderr.starts_with("NotTrusted"), "{ran:?}");
            two.publish_private(CLIENT, &artifact, &format!("9.9.{round}"));
        });
        assert!(packets.count(&format!("tcp port {}", two.private_port)) > 0);
        packets.count(&public) == 0
    });
    let unknown = Wanted {
        source: Sha256::of(b"unknown"),
        ..wanted(&release().resolved)
    };
    let packets = during(&|| {
        let ran = two.fetch(&unknown);
        assert!(ran.stderr.starts_with("NotTrusted"), "{ran:?}");
    });
    assert!(packets.count(&public) > 0, "what is public is asked there");
}

/// What the packets are about, also of all that a node tells when it starts: in alice's place is a
/// node that remembers every request.
#[test]
fn a_running_node_tells_the_public_network_nothing_of_what_is_private() {
    let mut two = Two::without_alice(None);
    let alice = two.lab.home(ALICE).key("node").unwrap();
    let (public, address) = (two.lab.joined(ALICE), two.lab.alices_address().to_owned());
    let recorder = two.lab.runtime().block_on(Peer::start_at(
        &address,
        identity_of(alice.to_bytes()).unwrap(),
        public.network.id(),
        None,
    ));
    two.start_bob();
    let artifact = artifact(&public.network);
    let work = two.lab.joined(BOB).key();
    let secret = private(&artifact, "1.2.3");
    let open = artifact.key.release();
    for restart in [false, true] {
        two.lab.start_any(CLIENT);
        if !restart {
            two.publish_private(CLIENT, &artifact, &secret.release.version);
            let signer = two.lab.home(CLIENT).key("observer").unwrap();
            let (id, key) = (public.network.id(), &artifact.key);
            let statement = observe(id, Role::Verifier, key, artifact.subject, &signer);
            let path = Some(artifact.path());
            two.lab.put(CLIENT, path, statement).unwrap();
        }
        let ran = two.fetch(&secret);
        assert_eq!(ran.stdout.trim(), "work", "{ran:?}");
        let announced = two
            .lab
            .with_access(CLIENT, async |access| access.announce().await);
        announced.unwrap();
        two.lab.stop(CLIENT, "TERM");
        for key in [&work, &public.key()] {
            assert!(!recorder.was_told_of(&secret.release, key));
        }
    }
    assert!(recorder.was_given(&open), "what is public is told there");
    assert!(recorder.was_told_of(&open, &public.key()));
}

fn order(ran: &Ran) -> Vec<String> {
    let shown = ran.done();
    let names = shown["networks"].as_array().into_iter().flatten();
    names
        .map(|one| one["name"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn private_first_public_on_a_miss_and_the_user_may_say_otherwise() {
    let mut two = Two::new(None);
    two.start_bob();
    let lab = &two.lab;
    assert_eq!(
        order(&lab.qk(CLIENT, &["network", "order"])),
        ["work", "lab"]
    );
    let artifact = artifact(&lab.joined(ALICE).network);
    lab.publish(ALICE, &artifact);
    let network = lab.joined(CAROL).network.id();
    let also = lab.observe(CAROL, &artifact.key, artifact.subject);
    assert_eq!(also.network(), network);
    lab.put(CAROL, None, also).unwrap();
    // The private one knows nothing of it.
    let ran = lab.fetch(&[SPEC, "--refresh"]).done();
    assert_eq!(ran["crates"][0]["network"], "lab");
    // Now both have it.
    let signer = lab.home(CAROL).key("observer").unwrap();
    let work = lab.joined(BOB).network.id();
    let (key, role) = (&artifact.key, Role::Publisher);
    let statement = observe(work, role, key, artifact.subject, &signer);
    lab.put(BOB, Some(artifact.path()), statement).unwrap();
    let ran = lab.fetch(&[SPEC, "--refresh"]).done();
    assert_eq!(ran["crates"][0]["network"], "work");
    let changed = lab.qk(CLIENT, &["network", "order", "lab", "work"]);
    assert_eq!(order(&changed), ["lab", "work"]);
    let ran = lab.fetch(&[SPEC, "--refresh"]).done();
    assert_eq!(ran["crates"][0]["network"], "lab");
    let file = lab.network_file();
    lab.qk(CLIENT, &["network", "order", "work"]).done();
    assert_eq!(
        order(&lab.qk(CLIENT, &["network", "order"])),
        ["work", "lab"]
    );
    lab.qk(CLIENT, &["join", file.to_str().unwrap(), "--first"])
        .done();
    assert_eq!(
        order(&lab.qk(CLIENT, &["network", "order"])),
        ["lab", "work"]
    );
    lab.qk(CLIENT, &["network", "order", "lab", "lab"])
        .failed(2, &["named twice"]);
}

/// A private network that is down is a miss like any other.
#[test]
fn a_network_that_is_down_does_not_keep_the_next_from_being_asked() {
    let two = Two::new(None);
    let lab = &two.lab;
    let artifact = artifact(&lab.joined(ALICE).network);
    lab.publish(ALICE, &artifact);
    lab.state(CAROL, &artifact);
    let ran = lab.fetch(&[SPEC]).done();
    assert_eq!(ran["crates"][0]["network"], "lab");
}

#[test]
fn a_network_that_cannot_start_stops_no_other_and_is_tried_again() {
    let mut two = Two::new(None);
    let taken = std::net::TcpListener::bind(("127.0.0.1", two.private_port)).unwrap();
    let own = format!(
        "[networks.work]\nlisten = [\"/ip4/127.0.0.1/tcp/{}\"]\n",
        two.private_port
    );
    two.lab.configure(CLIENT, &own);
    two.lab.start_with(CLIENT, "/ip4/127.0.0.1/tcp/0", &[], &[]);
    let online = |lab: &Lab, name: &str| {
        let status = lab.qk(CLIENT, &["status"]).done();
        let networks = status["networks"].as_array().unwrap().clone();
        let one = networks
            .into_iter()
            .find(|one| one["name"] == name)
            .unwrap();
        one["online"].as_bool().unwrap()
    };
    assert!(online(&two.lab, "lab") && !online(&two.lab, "work"));
    assert!(
        two.lab.log(CLIENT).contains("cannot listen on"),
        "{}",
        two.lab.log(CLIENT)
    );
    drop(taken);
    // Joining anything tells the node to look again.
    let file = two.lab.network_file();
    two.lab.qk(CLIENT, &["join", file.to_str().unwrap()]).done();
    assert!(online(&two.lab, "lab") && online(&two.lab, "work"));
    let status = two.lab.qk(CLIENT, &["status"]).done().to_string();
    assert!(
        status.contains(&format!("/tcp/{}", two.private_port)),
        "{status}"
    );
    // Alone, what cannot listen fails as a whole, with the reason.
    let listen = two.lab.addresses(ALICE)[0].clone();
    let listen = listen.split("/p2p/").next().unwrap();
    two.lab
        .qk(CAROL, &["node", "--listen", listen])
        .failed(2, &["cannot listen on"]);
    let ran = run(&mut two
        .lab
        .command(CAROL, &["node", "--listen", "nonsense", "--json"]));
    ran.failed(2, &["nonsense"]);
}
