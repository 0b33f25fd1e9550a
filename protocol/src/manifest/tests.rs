use insta::assert_snapshot;
use proptest::prelude::*;

use super::timestamp::TIMESTAMP_TYPE;
use super::*;
use crate::canonical;
use crate::policy::{Count, Group, Override};
use crate::testing::{DAY, NOW, build, key, manifest, network, principal_id, public, secret};

fn why<T: std::fmt::Debug>(result: Result<T, ManifestError>) -> String {
    result.expect_err("refused").to_string()
}

fn checked(change: impl FnOnce(&mut Manifest)) -> String {
    let mut manifest = manifest();
    change(&mut manifest);
    why(Manifest::parse(
        toml::to_string(&manifest).unwrap().as_bytes(),
    ))
}

/// Version n+1 of a network, but for `change`.
fn following(network: &Network, change: impl FnOnce(&mut Manifest)) -> Manifest {
    let mut manifest = network.manifest().clone();
    manifest.version += 1;
    manifest.network = Some(network.id());
    change(&mut manifest);
    manifest
}

fn succeed(network: &Network, next: &Manifest, roots: &[&str]) -> Result<Network, ManifestError> {
    let keys: Vec<SigningKey> = roots.iter().map(|name| secret(name)).collect();
    let keys: Vec<&SigningKey> = keys.iter().collect();
    network.succeed(next, &keys, &secret("clock"), NOW.plus(DAY))
}

fn second() -> Network {
    succeed(
        network(),
        &following(network(), |manifest| manifest.name = "second".to_owned()),
        &["root1", "root2"],
    )
    .unwrap()
}

/// The network's file with another timestamp.
fn timed(
    network: &Network,
    change: impl FnOnce(&mut Timestamp),
    signer: &str,
) -> Result<Network, ManifestError> {
    let mut timestamp = network.timestamp().clone();
    change(&mut timestamp);
    let payload = canonical::to_bytes(&timestamp).unwrap();
    let envelope = dsse::sign(TIMESTAMP_TYPE, &payload, &[&secret(signer)]);
    let timestamp = String::from_utf8(envelope).unwrap();
    network.advance(NetworkFile {
        timestamp,
        ..network.file().clone()
    })
}

#[test]
fn a_chain_grows_and_is_read_again() {
    let second = second();
    assert_eq!(
        (second.id(), second.manifest().version),
        (network().id(), 2)
    );
    let file = NetworkFile::parse(&second.file().to_bytes()).unwrap();
    assert_eq!(Network::verify(file.clone()).unwrap(), second);
    assert_eq!(network().advance(file).unwrap(), second);
    let renewed = second.renew(&secret("clock"), NOW.plus(2 * DAY)).unwrap();
    assert_eq!(second.advance(renewed.file().clone()).unwrap(), renewed);
    assert_eq!(renewed.manifest(), second.manifest());
}

#[test]
fn older_ones_and_other_histories() {
    assert_snapshot!(why(second().advance(network().file().clone())), @"network manifest: version 1 does not follow the version 2 that is known already");
    let fork = following(network(), |manifest| manifest.name = "fork".to_owned());
    let fork = succeed(network(), &fork, &["root2", "root3"]).unwrap();
    assert_snapshot!(why(second().advance(fork.file().clone())), @"network manifest: version 2 does not follow the version 2 that is known already");
    let longer = succeed(&fork, &following(&fork, |_| ()), &["root2", "root3"]).unwrap();
    assert_snapshot!(why(second().advance(longer.file().clone())), @"network manifest: version 3 does not follow the version 2 that is known already");
    // Somebody who knows neither takes either: the chain alone does not say which one is meant.
    assert!(network().advance(longer.file().clone()).is_ok());
}

#[test]
fn other_networks() {
    let mut manifest = manifest();
    manifest.name = "other".to_owned();
    let other = crate::testing::network_of(&manifest);
    assert!(
        why(network().advance(other.file().clone())).starts_with("network manifest: of network")
    );
    let stray = following(network(), |manifest| manifest.network = Some(other.id()));
    assert!(
        why(succeed(network(), &stray, &["root1", "root2"]))
            .starts_with("network manifest: of network")
    );
}

#[test]
fn gaps() {
    assert_snapshot!(why(succeed(network(), &following(network(), |manifest| manifest.version = 3), &["root1", "root2"])), @"network manifest: version 3 where version 2 belongs");
    let mut file = second().file().clone();
    file.manifests.remove(0);
    assert_snapshot!(why(Network::verify(file)), @"network manifest: version 2 where version 1 belongs");
    let mut file = second().file().clone();
    file.manifests.swap(0, 1);
    assert_snapshot!(why(Network::verify(file)), @"network manifest: version 2 where version 1 belongs");
    let mut file = second().file().clone();
    file.manifests.clear();
    assert_snapshot!(why(Network::verify(file)), @"network manifest: version 0 where version 1 belongs");
    let mut file = network().file().clone();
    file.manifests.push(file.manifests[0].clone());
    assert_snapshot!(why(Network::verify(file)), @"network manifest: version 1 where version 2 belongs");
}

#[test]
fn signed_by_too_few() {
    let same = following(network(), |_| ());
    assert_snapshot!(why(succeed(network(), &same, &["root1"])), @"network manifest version 2: signed by 1 of the 2 root keys needed (those of version 1)");
    assert_snapshot!(why(succeed(network(), &same, &["root1", "ann"])), @"network manifest version 2: signed by 1 of the 2 root keys needed (those of version 1)");
    let keys = [&secret("root1")];
    assert_snapshot!(why(Network::create(&manifest(), &keys, &secret("clock"), NOW)), @"network manifest version 1: signed by 1 of the 2 root keys needed (those of version 1)");
    // One key twice is one.
    let twice = dsse::sign(
        MANIFEST_TYPE,
        same.to_toml().unwrap().as_bytes(),
        &[&secret("root1"), &secret("root1")],
    );
    let mut file = network().file().clone();
    file.manifests.push(String::from_utf8(twice).unwrap());
    assert!(matches!(
        Network::verify(file),
        Err(ManifestError::Envelope(DsseError::DuplicateSigner(_)))
    ));
}

#[test]
fn new_root_keys_need_the_old_ones_and_themselves() {
    let keys = |manifest: &mut Manifest| {
        manifest.root.keys = ["new1", "new2"].map(public).into();
    };
    let second = following(network(), keys);
    assert_snapshot!(why(succeed(network(), &second, &["new1", "new2"])), @"network manifest version 2: signed by 0 of the 2 root keys needed (those of version 1)");
    assert_snapshot!(why(succeed(network(), &second, &["root1", "root2", "new1"])), @"network manifest version 2: signed by 1 of the 2 root keys needed (those of version 2)");
    let second = succeed(network(), &second, &["root1", "root2", "new1", "new2"]).unwrap();
    let third = following(&second, |_| ());
    assert_snapshot!(why(succeed(&second, &third, &["root1", "root2"])), @"network manifest version 3: signed by 0 of the 2 root keys needed (those of version 2)");
    assert!(succeed(&second, &third, &["new1", "new2"]).is_ok());
}

#[test]
fn signatures_may_be_gathered_and_added() {
    let toml = following(network(), |_| ()).to_toml().unwrap();
    let one = dsse::sign(MANIFEST_TYPE, toml.as_bytes(), &[&secret("root1")]);
    let two = dsse::cosign(
        &one,
        MANIFEST_TYPE,
        MANIFEST_ENVELOPE_BYTES_MAX,
        &[&secret("root2")],
    )
    .unwrap();
    let three = dsse::cosign(
        &two,
        MANIFEST_TYPE,
        MANIFEST_ENVELOPE_BYTES_MAX,
        &[&secret("root3")],
    )
    .unwrap();
    let grown = succeed(
        network(),
        &following(network(), |_| ()),
        &["root1", "root2"],
    )
    .unwrap();
    let mut file = grown.file().clone();
    assert_eq!(file.manifests[1].as_bytes(), two);
    // The same version with one signature more is the same version.
    file.manifests[1] = String::from_utf8(three).unwrap();
    assert_eq!(grown.advance(file).unwrap().manifest(), grown.manifest());
}

#[test]
fn timestamps() {
    let second = second();
    assert!(timed(&second, |_| (), "clock").is_ok());
    assert_snapshot!(why(timed(&second, |_| (), "root1")), @"network timestamp: not signed by the manifest's timestamp key");
    assert_snapshot!(why(timed(&second, |timestamp| timestamp.version = 1, "clock")), @"network timestamp: not of the newest version in the file");
    assert_snapshot!(why(timed(&second, |timestamp| timestamp.digest = Blake3::of(b""), "clock")), @"network timestamp: not of the newest version in the file");
    assert_snapshot!(why(timed(&second, |timestamp| timestamp.network = NetworkId([1; 32]), "clock")), @"network timestamp: not of the newest version in the file");
    assert_snapshot!(why(timed(&second, |timestamp| timestamp.expires = timestamp.expires.plus(1), "clock")), @"network timestamp: covers more than seven days");
    assert_snapshot!(why(timed(&second, |timestamp| timestamp.expires.0 = timestamp.issued.0 - 1, "clock")), @"network timestamp: covers more than seven days");
    assert_snapshot!(why(timed(&second, |timestamp| { timestamp.issued.0 -= 1; timestamp.expires.0 -= 1; }, "clock")), @"network timestamp: older than the one that is known already");
    let mut file = second.file().clone();
    file.timestamp = network().file().timestamp.clone();
    assert_snapshot!(why(Network::verify(file)), @"network timestamp: not of the newest version in the file");
    let mut file = second.file().clone();
    file.timestamp = file.manifests[1].clone();
    assert_snapshot!(why(Network::verify(file)), @r#"network timestamp: envelope: payload type "application/vnd.qk.network+toml", expected "application/vnd.qk.timestamp+json""#);
}

#[test]
fn nothing_is_fresh_past_the_timestamp_or_far_before_it() {
    let end = NOW.plus(TIMESTAMP_SECONDS_MAX);
    assert!(network().fresh(NOW) && network().fresh(end));
    assert!(!network().fresh(end.plus(1)));
    assert!(network().fresh(UnixTime(NOW.0 - CLOCK_SKEW_SECONDS_MAX)));
    assert!(!network().fresh(UnixTime(NOW.0 - CLOCK_SKEW_SECONDS_MAX - 1)));
    let renewed = network().renew(&secret("clock"), end).unwrap();
    assert!(renewed.fresh(end.plus(1)));
    assert!(
        network()
            .renew(&secret("clock"), UnixTime(NOW.0 - 1))
            .is_err()
    );
    assert!(network().renew(&secret("ann"), end).is_err());
}

#[test]
fn a_timestamp_dated_ahead_is_healed_by_a_new_key() {
    let year_3000 = UnixTime(32_503_680_000);
    let ahead = network().renew(&secret("clock"), year_3000).unwrap();
    assert!(!ahead.fresh(NOW), "it does no more than stop new trust");
    // The stolen key's owner cannot go back behind it, ...
    assert_snapshot!(why(ahead.renew(&secret("clock"), NOW.plus(DAY))), @"network timestamp: older than the one that is known already");
    // ... nor does a new version with the same key; the root keys name another one.
    let same = following(&ahead, |_| ());
    assert!(succeed(&ahead, &same, &["root1", "root2"]).is_err());
    let other = following(&ahead, |manifest| manifest.timestamp = public("clock2"));
    let healed = ahead
        .succeed(
            &other,
            &[&secret("root1"), &secret("root2")],
            &secret("clock2"),
            NOW.plus(DAY),
        )
        .unwrap();
    assert!(healed.fresh(NOW.plus(DAY)));
    assert!(timed(&healed, |_| (), "clock").is_err());
}

#[test]
fn what_a_manifest_may_hold() {
    let some = |name: &str| Principal {
        name: name.to_owned(),
        ..manifest().principals[0].clone()
    };
    let block = |reason: &str| Blocked {
        key: None,
        root: None,
        reason: reason.to_owned(),
    };
    assert_snapshot!(checked(|manifest| manifest.format = 2), @"network manifest: a format other than 1: a newer qk is needed");
    assert_snapshot!(checked(|manifest| manifest.version = 0), @"network manifest: version 1 names no network, every later one does");
    assert_snapshot!(checked(|manifest| manifest.version = 2), @"network manifest: version 1 names no network, every later one does");
    assert_snapshot!(checked(|manifest| manifest.network = Some(NetworkId([1; 32]))), @"network manifest: version 1 names no network, every later one does");
    assert_snapshot!(checked(|manifest| manifest.name = "a\u{1b}".to_owned()), @"network manifest: a name of 1 to 64 bytes without control characters is needed");
    assert_snapshot!(checked(|manifest| manifest.root.threshold = 0), @"network manifest: a root threshold between 1 and the number of root keys is needed");
    assert_snapshot!(checked(|manifest| manifest.root.threshold = 4), @"network manifest: a root threshold between 1 and the number of root keys is needed");
    assert_snapshot!(checked(|manifest| manifest.committee.size = 0), @"network manifest: a committee needs members");
    assert_snapshot!(checked(|manifest| manifest.policy.threshold = 0), @"network manifest: policy: a threshold of 0 would trust what nobody observed");
    assert_snapshot!(checked(|manifest| manifest.builds[0].recipe = 9), @r#"network manifest: builds: artifact key: recipe "9" is not allowed: only recipe 1 is known here"#);
    assert_snapshot!(checked(|manifest| manifest.builds[0].target = "x86_64-unknown-linux-musl".to_owned()), @r#"network manifest: builds: artifact key: glibc "2.17" is not allowed: only for linux-gnu targets"#);
    assert_snapshot!(checked(|manifest| manifest.principals.push(some("twin"))), @"network manifest: principal 7fe16c151a72d4adbc527599f5f5aa592d0ea24ff111fa839f98e7eb9f9df990 occurs twice");
    assert_snapshot!(checked(|manifest| manifest.principals[1].keys = manifest.principals[0].keys.clone()), @"network manifest: key b02b42aa335240eda5757cc7eb1557e0c3cdb5aced77df50afdbe21f3238b17f occurs twice");
    assert_snapshot!(checked(|manifest| manifest.principals[0].id = NOBODY), @r#"network manifest: principal "ann" has the id that stands for nobody"#);
    assert_snapshot!(checked(|manifest| manifest.principals[0].keys[0].retired = Some(NOW)), @"network manifest: key b02b42aa335240eda5757cc7eb1557e0c3cdb5aced77df50afdbe21f3238b17f of ann: `retired` is given exactly when the state is retired");
    assert_snapshot!(checked(|manifest| manifest.principals[0].keys[2].retired = None), @"network manifest: key eca5c88d6ae421572555f13f67ec5ab990464b37c469e4a9dcf8de4caba7cc09 of ann: `retired` is given exactly when the state is retired");
    assert_snapshot!(checked(|manifest| manifest.blocked.push(block("nothing"))), @"network manifest: a blocked entry names a key or a root");
    assert_snapshot!(checked(|manifest| manifest.bootstrap = (0..1025).map(|n| n.to_string()).collect()), @"network manifest: a list of more than 1024 entries");
    assert_snapshot!(why(Manifest::parse(&vec![b'#'; MANIFEST_BYTES_MAX + 1])), @"network manifest: more than 262144 bytes");
    assert_snapshot!(why(NetworkFile::parse(&vec![b' '; NETWORK_FILE_BYTES_MAX + 1])), @"network manifest: more than 1572864 bytes");
    let toml = manifest().to_toml().unwrap();
    assert!(
        Manifest::parse(format!("zone = 1\n{toml}").as_bytes()).is_err(),
        "unknown members"
    );
    assert!(
        Manifest::parse(format!("format = 1\n{toml}").as_bytes()).is_err(),
        "duplicate members"
    );
}

#[test]
fn blocked_by_key_or_by_root() {
    let mut manifest = manifest();
    let root = Root::of(b"bad");
    let reasons = [(Some(key().id()), None, "key"), (None, Some(root), "root")];
    manifest.blocked = reasons
        .map(|(key, root, reason)| Blocked {
            key,
            root,
            reason: reason.to_owned(),
        })
        .into();
    let network = crate::testing::network_of(&manifest);
    let other = KeyId([1; 32]);
    assert_eq!(network.blocked(key().id(), None), Some("key"));
    assert_eq!(network.blocked(other, Some(root)), Some("root"));
    assert_eq!(network.blocked(other, Some(Root::of(b"good"))), None);
    assert_eq!(
        network.blocked(other, None),
        None,
        "no root is not a blocked root"
    );
}

#[test]
fn nobody_enters_where_two_policies_have_nobody_in_common() {
    let named = |name: &str| Policy {
        threshold: 1,
        principals: [principal_id(name)].into(),
        ..Policy::default()
    };
    let both = named("ann").stricter(&named("bob"));
    assert_eq!(both.principals, [NOBODY].into());
    let own = crate::testing::scenario()
        .policy(|policy| *policy = both)
        .says("ann", "right")
        .says("bob", "right");
    assert_snapshot!(own.outcome(), @r"
        unproven: 0 of 1 principals
        ann: NotCounted
        bob: NotCounted
        ");
}

#[test]
fn the_secret_of_a_private_network_hides_its_locations() {
    let location = |secret: Option<&[u8]>| key().release().location(&network().key(secret));
    assert_ne!(location(None), location(Some(b"secret")));
    assert_ne!(location(Some(b"secret")), location(Some(b"Secret")));
}

fn manifests() -> impl Strategy<Value = Manifest> {
    let text = "[ -~äß漢]{1,20}";
    let group = (text, 1..5u32, any::<bool>()).prop_map(|(name, threshold, named)| Group {
        name,
        threshold,
        of: named.then(|| principal_id("ann")).into_iter().collect(),
        count: Count::Assigned,
    });
    let policy = (
        1..5u32,
        prop::collection::vec(group, 0..3),
        prop::option::of(1..400u32),
        prop::collection::btree_map(
            "[a-z]{1,5}",
            (1..9u32).prop_map(|threshold| Override { threshold }),
            0..3,
        ),
    )
        .prop_map(|(threshold, groups, max_age_days, crates)| Policy {
            threshold,
            groups,
            max_age_days,
            crates,
            ..Policy::default()
        });
    let blocked = (any::<[u8; 32]>(), any::<bool>(), text).prop_map(|(id, key, reason)| Blocked {
        key: key.then_some(KeyId(id)),
        root: (!key).then_some(Root(id)),
        reason,
    });
    (
        text,
        policy,
        prop::collection::vec(blocked, 0..3),
        0..3usize,
        prop::option::of(any::<[u8; 32]>()),
        0..6usize,
    )
        .prop_map(|(name, policy, blocked, builds, secret, principals)| {
            let mut manifest = manifest();
            manifest.principals.truncate(principals);
            Manifest {
                name,
                policy,
                blocked,
                builds: vec![build(); builds],
                secret_id: secret.map(Blake3),
                ..manifest
            }
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn manifests_survive_toml(manifest in manifests()) {
        let toml = manifest.to_toml().unwrap();
        prop_assert_eq!(&Manifest::parse(toml.as_bytes()).unwrap(), &manifest);
        prop_assert_eq!(manifest.to_toml().unwrap(), toml);
    }

    /// What is signed are bytes: any other byte in any envelope of a file is refused, or changes
    /// nothing but the layout of the file around the envelopes.
    #[test]
    fn a_changed_byte_of_a_file_is_refused(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = network().file().to_bytes();
        let at = at.index(bytes.len());
        prop_assume!(bytes[at] != byte);
        bytes[at] = byte;
        if let Ok(other) = NetworkFile::parse(&bytes).and_then(Network::verify) {
            prop_assert_eq!(&other, network());
        }
    }

    #[test]
    fn any_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(Manifest::parse(&bytes).is_err());
        prop_assert!(NetworkFile::parse(&bytes).and_then(Network::verify).is_err());
    }
}
