//! What becomes of newer manifests and timestamps.

use std::fs;

use qk_protocol::dsse::public_key;
use qk_protocol::manifest::{NetworkFile, Timestamp};
use qk_protocol::time::UnixTime;

use super::*;
use crate::home::Joined;

const DAY: u64 = 24 * 3600;

fn known(home: &TestHome) -> Joined {
    home.home.networks().unwrap().remove(0)
}

/// Puts the network back to a timestamp that was signed then.
fn dated(home: &TestHome, issued: UnixTime) {
    let joined = known(home);
    let network = &joined.network;
    let timestamp = Timestamp::sign(network, issued, 7 * DAY, &key_of("clock"));
    let file = NetworkFile {
        timestamp,
        ..network.file().clone()
    };
    home.home.leave_network(network.id()).unwrap();
    let network = qk_protocol::manifest::Network::verify(file).unwrap();
    home.home
        .keep_network(&Joined { network, ..joined })
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn newer_manifests_travel_from_node_to_node() {
    let (home, network, alice) = publisher().await;
    let bob_home = guest(&home, network);
    let bob = run(&bob_home, &[address(&alice, network).await]).await;
    home.rename(network, "laboratory");
    // Alice has it on disk, and takes it from there.
    alice.refresh().await.unwrap();
    let name = |node: &Node| {
        let joined = node.member(network).unwrap().joined();
        joined.network.manifest().name.clone()
    };
    assert_eq!(name(&alice), "laboratory");
    bob.refresh().await.unwrap();
    assert_eq!(name(&bob), "laboratory");
    let kept = bob_home.home.networks().unwrap();
    assert_eq!(kept[0].network.manifest().version, 2);
    bob.shutdown().await;
    alice.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_timestamp_never_replaces_a_newer_version() {
    let (home, network, alice) = publisher().await;
    let joined = alice.member(network).unwrap().joined();
    let later = qk_protocol::time::UnixTime(unix_now().0 + 100);
    let renewed = joined.network.renew(&key_of("clock"), later).unwrap();
    // The owner signs version 2 with another command before this node has looked.
    home.rename(network, "laboratory");
    alice.advance(network, renewed.file().clone()).unwrap();
    let kept = home.home.networks().unwrap();
    assert_eq!(kept[0].network.manifest().version, 2);
    alice.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_manifest_reaches_whoever_never_meets_its_author() {
    let (home, network, alice) = publisher().await;
    let (bob_home, carol_home) = (guest(&home, network), guest(&home, network));
    let bob = run(&bob_home, &[address(&alice, network).await]).await;
    let carol = run(&carol_home, &[address(&bob, network).await]).await;
    home.rename(network, "laboratory");
    alice.refresh().await.unwrap();
    bob.refresh().await.unwrap();
    alice.shutdown().await;
    carol.refresh().await.unwrap();
    assert_eq!(known(&carol_home).network, known(&home).network);
    // A timestamp alone travels the same way.
    let later = UnixTime(unix_now().0 + 100);
    let renewed = known(&home).network.renew(&key_of("clock"), later).unwrap();
    bob.advance(network, renewed.file().clone()).unwrap();
    carol.refresh().await.unwrap();
    assert_eq!(known(&carol_home).network.timestamp().issued, later);
    bob.shutdown().await;
    carol.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_node_beside_the_timestamp_key_renews_it_daily() {
    let home = TestHome::new();
    let id = home.join("lab", &[]);
    let issued = || known(&home).network.timestamp().issued;
    let options = NodeOptions {
        offline: true,
        ..NodeOptions::default()
    };
    let start = || Node::start(home.home.clone(), options.clone());
    let (young, old) = (
        UnixTime(unix_now().0 - DAY + 60),
        UnixTime(unix_now().0 - DAY - 60),
    );

    // No key here: nothing to renew with.
    dated(&home, old);
    start().await.unwrap().refresh().await.unwrap();
    assert_eq!(issued(), old);
    // Another key than the manifest names does no harm.
    home.home
        .keep_key(&format!("timestamp-{id}"), &key_of("another"))
        .unwrap();
    start().await.unwrap().refresh().await.unwrap();
    assert_eq!(issued(), old);
    // This machine's own timestamp key, which the manifest names.
    home.home.keep_key("timestamp", &key_of("clock")).unwrap();
    assert_eq!(
        public_key(&key_of("clock")),
        known(&home).network.manifest().timestamp
    );
    dated(&home, young);
    start().await.unwrap().refresh().await.unwrap();
    assert_eq!(issued(), young, "not before a day is over");
    dated(&home, old);
    start().await.unwrap().refresh().await.unwrap();
    assert!(unix_now().since(issued()) < 60);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_user_wants_to_be_asked_a_wider_manifest_counts_only_once_it_is_accepted() {
    let home = TestHome::new();
    // Two have to agree, and there is one.
    let network = home.join("lab", &[]);
    let alice = run(&home, &[]).await;
    publish(&home, &alice, network).await;
    let (trusting, asking) = (guest(&home, network), guest(&home, network));
    fs::write(
        asking.path().join("config.toml"),
        "confirm_changes = true\nmdns = false\n",
    )
    .unwrap();
    let parent = [address(&alice, network).await];
    let (bob, carol) = (run(&trusting, &parent).await, run(&asking, &parent).await);
    for node in [&bob, &carol] {
        let refused = node.fetch(&fetch_of("hello"), &|_| {}).await.unwrap_err();
        assert!(
            matches!(refused, FetchError::NotTrusted { .. }),
            "{refused}"
        );
    }
    home.change(network, easy);
    alice.refresh().await.unwrap();
    bob.refresh().await.unwrap();
    carol.refresh().await.unwrap();
    // Without being asked, the weaker policy is in force at once.
    bob.fetch(&fetch_of("hello"), &|_| {}).await.unwrap();
    let refused = carol.fetch(&fetch_of("hello"), &|_| {}).await.unwrap_err();
    assert!(
        matches!(refused, FetchError::NotAccepted { .. }),
        "{refused}"
    );
    assert!(
        refused
            .to_string()
            .contains("principals that have to agree: 2 becomes 1"),
        "{refused}"
    );
    // The version itself is here and goes on to others: what it takes back holds.
    assert_eq!(known(&asking).network.manifest().version, 2);
    asking.home.accept(network, 2).unwrap();
    carol.reload_all().await.unwrap();
    carol.fetch(&fetch_of("hello"), &|_| {}).await.unwrap();
    for node in [alice, bob, carol] {
        node.shutdown().await;
    }
}
