use insta::assert_snapshot;

use super::*;
use crate::testing::{DAY, NOW, manifest, network, network_of, public, secret};

fn why<T: std::fmt::Debug>(result: Result<T, ManifestError>) -> String {
    result.expect_err("refused").to_string()
}

fn draft() -> Draft {
    Draft::begin(network(), |next| next.name = "second".to_owned()).unwrap()
}

#[test]
fn signatures_are_gathered_in_turn_and_apart() {
    let unsigned = draft();
    assert_eq!(Draft::parse(&unsigned.to_bytes()).unwrap(), unsigned);
    assert_snapshot!(why(unsigned.clone().complete(&secret("clock"), NOW)), @"network manifest version 2: signed by 0 of the 2 root keys needed (those of version 1)");
    let one = unsigned.clone().sign(&[&secret("root1")]).unwrap();
    assert!(!one.quorums()[0].met());
    assert_snapshot!(why(one.clone().complete(&secret("clock"), NOW)), @"network manifest version 2: signed by 1 of the 2 root keys needed (those of version 1)");
    // In turn: the next holder gets the file that the first one signed.
    let passed_on = Draft::parse(&one.to_bytes()).unwrap();
    let in_turn = passed_on.sign(&[&secret("root3")]).unwrap();
    // Apart: both sign their own copy, and the copies are put together.
    let other = unsigned.sign(&[&secret("root3")]).unwrap();
    let merged = one.merge(other).unwrap();
    assert_eq!(merged, in_turn);
    let [before, after] = merged.quorums();
    assert!(before.met() && after.met());
    assert_eq!((before.keys_of, after.keys_of), (1, 2));
    assert_eq!(before.missing, [public("root2")].into());
    let complete = merged.complete(&secret("clock"), NOW.plus(DAY)).unwrap();
    assert_eq!(complete.manifest().name, "second");
    assert!(network().advance(complete.file().clone()).is_ok());
}

#[test]
fn root_keys_are_exchanged_with_the_signatures_of_both() {
    let rotation = Draft::begin(network(), |next| {
        next.root.keys = ["new1", "new2"].map(public).into();
    });
    let rotation = rotation.unwrap();
    let old = rotation.clone().sign(&[&secret("root1"), &secret("root2")]);
    let half = old.unwrap();
    assert_eq!(half.quorums().map(|quorum| quorum.met()), [true, false]);
    assert_snapshot!(why(half.clone().complete(&secret("clock"), NOW)), @"network manifest version 2: signed by 0 of the 2 root keys needed (those of version 2)");
    let whole = half.sign(&[&secret("new1"), &secret("new2")]).unwrap();
    assert!(whole.complete(&secret("clock"), NOW).is_ok());
    assert_snapshot!(why(rotation.sign(&[&secret("root1"), &secret("ann")])), @"next version: key b02b42aa335240eda5757cc7eb1557e0c3cdb5aced77df50afdbe21f3238b17f is a root key neither of it nor of the version before");
}

#[test]
fn what_is_no_draft() {
    let signed = draft().sign(&[&secret("root1")]).unwrap();
    let other = Draft::begin(network(), |next| next.name = "other".to_owned()).unwrap();
    assert_snapshot!(why(signed.clone().merge(other.clone())), @"next version: the copies say different things");
    assert_snapshot!(why(signed.clone().change(|_| ())), @"next version: it is signed already, so it cannot be changed");
    assert!(
        other
            .clone()
            .change(|next| next.name = "another".to_owned())
            .is_ok()
    );
    let changed = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut value = serde_json::from_slice(&signed.to_bytes()).unwrap();
        change(&mut value);
        why(Draft::parse(&serde_json::to_vec(&value).unwrap()))
    };
    assert_snapshot!(changed(&|all| all["next"] = other.toml().into()), @"next version: the signatures are of other bytes");
    assert_snapshot!(changed(&|all| all["next"] = manifest().to_toml().unwrap().into()), @"next version: it is of another network than its chain");
    assert_snapshot!(changed(&|all| all["next"] = draft().toml().replace("version = 2", "version = 3").into()), @"network manifest: version 3 where version 2 belongs");
    assert_snapshot!(why(Draft::begin(network(), |next| next.root.threshold = 0)), @"network manifest: a root threshold between 1 and the number of root keys is needed");
    assert_snapshot!(why(Draft::parse(&vec![b' '; DRAFT_BYTES_MAX + 1])), @"network manifest: more than 2801664 bytes");
    // Signed by somebody else's key, to have it count for something it is not.
    let stray = dsse::sign(MANIFEST_TYPE, draft().toml().as_bytes(), &[&secret("ann")]);
    let stray = String::from_utf8(stray).unwrap();
    assert_snapshot!(changed(&|all| all["signed"] = stray.clone().into()), @"next version: key b02b42aa335240eda5757cc7eb1557e0c3cdb5aced77df50afdbe21f3238b17f is a root key neither of it nor of the version before");
}

#[test]
fn a_chain_that_nobody_could_read_any_more_is_not_signed() {
    let mut large = manifest();
    large.bootstrap = (0..1000).map(|n| format!("{n:0>240}")).collect();
    let mut network = network_of(&large);
    let refused = loop {
        let next = Draft::begin(&network, |_| ()).unwrap();
        let signed = next.sign(&[&secret("root1"), &secret("root2")]).unwrap();
        match signed.complete(&secret("clock"), NOW) {
            Ok(next) => network = next,
            Err(error) => break error,
        }
    };
    assert!(network.manifest().version > 2, "{refused}");
    assert!(NetworkFile::parse(&network.file().to_bytes()).is_ok());
    assert_snapshot!(refused.to_string(), @"network manifest: more than 1572864 bytes");
}
