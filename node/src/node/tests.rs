//! Nodes in this process that talk to each other over loopback.

mod manifests;

use std::sync::{Arc, Mutex};

use qk_protocol::decide::Decision;
use qk_protocol::hash::{NetworkId, Root};
use qk_protocol::manifest::Manifest;
use qk_protocol::policy::Policy;

use super::*;
use crate::blocks::part::Part;
use crate::control::tests::fixture::{TestHome, artifact_key, fetch_of, key_of};

fn listening() -> NodeOptions {
    NodeOptions {
        listen: vec!["/ip4/127.0.0.1/tcp/0".to_owned()],
        hold: true,
        ..NodeOptions::default()
    }
}

async fn run(home: &TestHome, parent: &[String]) -> Arc<Node> {
    let options = NodeOptions {
        parent: parent.to_vec(),
        ..listening()
    };
    Arc::new(Node::start(home.home.clone(), options).await.unwrap())
}

/// Where a node listens in one network, with its peer id.
async fn address(node: &Node, network: NetworkId) -> String {
    let member = node.member(network).unwrap();
    let net = member.net().unwrap();
    let listens = net.listen_addrs().await.unwrap();
    format!("{}/p2p/{}", listens[0], net.local_peer())
}

/// One observation is enough.
fn easy(manifest: &mut Manifest) {
    manifest.policy = Policy {
        threshold: 1,
        ..Policy::default()
    };
}

/// A publisher's home in a network where its word alone counts, and its node at work.
async fn publisher() -> (TestHome, NetworkId, Arc<Node>) {
    let home = TestHome::new();
    let network = home.join_with("lab", easy);
    let node = run(&home, &[]).await;
    (home, network, node)
}

/// The home of somebody else in that network.
fn guest(of: &TestHome, network: NetworkId) -> TestHome {
    let home = TestHome::new();
    home.join_as(of, network);
    home
}

async fn publish(home: &TestHome, node: &Node, network: NetworkId) -> Root {
    let (archive, statement) = home.built(network);
    let root = statement.observation().unwrap().subject.root;
    node.publish(Some(archive), statement).await.unwrap();
    root
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_node_publishes_another_finds_and_fetches() {
    let (home, network, alice) = publisher().await;
    let bob_home = guest(&home, network);
    let bob = run(&bob_home, &[address(&alice, network).await]).await;
    let root = publish(&home, &alice, network).await;

    let member = bob.member(network).unwrap();
    let point = artifact_key("hello")
        .release()
        .location(member.key())
        .point();
    let found = member.find(point).await;
    assert_eq!(found.statements.len(), 1);
    assert_eq!(found.providers.len(), 1);
    assert_eq!(found.providers[0].root, root);
    assert_eq!(found.answered.len(), 1);

    let fetched = bob.fetch(&fetch_of("hello"), &|_| {}).await.unwrap();
    assert_eq!(
        (fetched.from, fetched.trusted.subject.root),
        (From::Network, root)
    );
    assert_eq!(
        std::fs::read(&fetched.archive).unwrap(),
        std::fs::read(home.archive_path()).unwrap()
    );
    let again = bob.fetch(&fetch_of("hello"), &|_| {}).await.unwrap();
    assert_eq!((again.from, again.fetched_bytes), (From::Store, 0));
    alice.shutdown().await;
    bob.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_lacks_it_does_not_keep_it_from_arriving() {
    let (home, network, alice) = publisher().await;
    let parent = [address(&alice, network).await];
    let carol_home = guest(&home, network);
    let carol = run(&carol_home, &parent).await;
    let root = publish(&home, &alice, network).await;
    // Carol says that she has it, and has not.
    let member = carol.member(network).unwrap();
    let point = artifact_key("hello")
        .release()
        .location(member.key())
        .point();
    let to = member.find(point).await.answered;
    assert_eq!(member.announce(point, &[root], &to).await, 2);

    let bob_home = guest(&home, network);
    let bob = run(&bob_home, &parent).await;
    let found = bob.member(network).unwrap().find(point).await;
    let mut providers: Vec<_> = found
        .providers
        .iter()
        .map(|one| one.contact.node.clone())
        .collect();
    providers.sort();
    providers.dedup();
    assert_eq!(providers.len(), 2, "{found:?}");
    let fetched = bob.fetch(&fetch_of("hello"), &|_| {}).await.unwrap();
    assert_eq!(
        (fetched.from, fetched.trusted.subject.root),
        (From::Network, root)
    );

    // Without the one that has it, the fetch ends and says so.
    alice.shutdown().await;
    let dave_home = guest(&home, network);
    let dave = run(&dave_home, &[address(&carol, network).await]).await;
    let error = dave.fetch(&fetch_of("hello"), &|_| {}).await.unwrap_err();
    assert!(!matches!(error, FetchError::Node(_)), "{error}");
    for node in [carol, bob, dave] {
        node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_fetches_at_once_download_it_once() {
    let (home, network, alice) = publisher().await;
    let root = publish(&home, &alice, network).await;
    let bob_home = guest(&home, network);
    let bob = run(&bob_home, &[address(&alice, network).await]).await;

    // Somebody else is at it, for now.
    let size = std::fs::metadata(home.archive_path()).unwrap().len();
    let parts = Store::parts_in(bob.door().dir()).unwrap();
    let blob = qk_protocol::blocks::Blob::new(root, size).unwrap();
    let other = Mutex::new(Some(Part::open(&parts, blob).unwrap()));
    let waited = Mutex::new(0);
    let on_event = |event| {
        if event == FetchEvent::Waiting {
            *waited.lock().unwrap() += 1;
            other.lock().unwrap().take();
        }
    };
    let fetched = bob.fetch(&fetch_of("hello"), &on_event).await.unwrap();
    assert_eq!(
        (fetched.from, fetched.trusted.subject.root),
        (From::Network, root)
    );
    assert_eq!(*waited.lock().unwrap(), 1);

    let carol_home = guest(&home, network);
    let carol = run(&carol_home, &[address(&alice, network).await]).await;
    let spec = fetch_of("hello");
    let (one, two) = tokio::join!(carol.fetch(&spec, &|_| {}), carol.fetch(&spec, &|_| {}));
    assert_eq!(one.unwrap().archive, two.unwrap().archive);
    for node in [alice, bob, carol] {
        node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn networks_are_asked_in_order_and_only_for_what_they_serve() {
    let (home, network, alice) = publisher().await;
    let bob_home = TestHome::new();
    // Joined first, it is asked first, and knows nothing; the other one serves another registry.
    let empty = bob_home.join_with("empty", |_| {});
    let foreign = bob_home.join_with("foreign", |manifest| {
        manifest.registries = ["registry+https://other.example/index".to_owned()].into();
    });
    bob_home.join_as(&home, network);
    order(&bob_home, &[empty, foreign, network]);
    let bob = run(&bob_home, &[address(&alice, network).await]).await;
    for (at, id) in [empty, foreign, network].into_iter().enumerate() {
        assert_eq!(bob.members()[at].id(), id);
    }
    let asked = Mutex::new(Vec::new());
    let on_event = |event| {
        if let FetchEvent::Asking { network } = event {
            asked.lock().unwrap().push(network);
        }
    };
    let error = bob.fetch(&fetch_of("hello"), &on_event).await.unwrap_err();
    assert!(
        matches!(&error, FetchError::NotTrusted { decided, .. }
        if matches!(decided.verdict.decision, Decision::Unproven(_))),
        "{error}"
    );
    assert_eq!(asked.lock().unwrap().split_off(0), ["empty", "lab"]);

    let root = publish(&home, &alice, network).await;
    let fetched = bob.fetch(&fetch_of("hello"), &on_event).await.unwrap();
    assert_eq!(
        (fetched.network, fetched.trusted.subject.root),
        (network, root)
    );
    assert_eq!(*asked.lock().unwrap(), ["empty", "lab"]);

    let mut private = fetch_of("hello");
    private.wanted.release.registry = "registry+https://third.example/index".to_owned();
    asked.lock().unwrap().clear();
    let error = bob.fetch(&private, &on_event).await.unwrap_err();
    assert!(matches!(error, FetchError::Registry { .. }), "{error}");
    assert!(asked.lock().unwrap().is_empty());
    bob.shutdown().await;
    alice.shutdown().await;
}

/// Rewrites when networks were joined.
fn order(home: &TestHome, ids: &[NetworkId]) {
    for mut joined in home.home.networks().unwrap() {
        let at = ids
            .iter()
            .position(|id| *id == joined.network.id())
            .unwrap();
        joined.joined = qk_protocol::time::UnixTime(1_000 + at as u64);
        home.home.keep_network(&joined).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fixed_port_is_for_the_first_network() {
    let home = TestHome::new();
    home.join("lab", &[]);
    home.join("public", &[]);
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let options = NodeOptions {
        listen: vec![format!("/ip4/127.0.0.1/tcp/{port}")],
        ..listening()
    };
    let node = Node::start(home.home.clone(), options).await.unwrap();
    let mut listens = Vec::new();
    for member in node.members() {
        listens.extend(member.net().unwrap().listen_addrs().await.unwrap());
    }
    assert_eq!(listens.len(), 2);
    assert_eq!(listens[0].to_string(), format!("/ip4/127.0.0.1/tcp/{port}"));
    assert_ne!(listens[0], listens[1]);
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_is_drawn_that_one_has_not_observed() {
    let (home, network, alice) = publisher().await;
    let bob_home = guest(&home, network);
    let bob = run(&bob_home, &[address(&alice, network).await]).await;
    assert_eq!(bob.draw(network).await.unwrap(), None);
    publish(&home, &alice, network).await;
    assert_eq!(
        bob.draw(network).await.unwrap(),
        Some(artifact_key("hello"))
    );
    assert_eq!(alice.draw(network).await.unwrap(), None);
    bob.shutdown().await;
    alice.shutdown().await;
}

#[test]
fn a_cache_gives_what_it_fetched_unless_it_is_told_to_give_nothing() {
    let config = Config::default();
    let flags = ShareFlags {
        laptop: true,
        ..ShareFlags::default()
    };
    let cache = share_of(&config, &flags, true);
    assert_eq!(cache.fetched, Some(true));
    assert_eq!((cache.upload_rate, cache.connections), (None, None));
    let other = share_of(&config, &flags, false);
    assert_eq!(other.fetched, None);
    assert!(other.upload_rate.is_some() && other.connections.is_some());
    let told = ShareFlags {
        leech: true,
        connections: Some(20),
        ..flags
    };
    let leech = share_of(&config, &told, true);
    assert!(leech.leech && leech.fetched.is_none());
    assert_eq!(leech.connections, Some(20));
}
