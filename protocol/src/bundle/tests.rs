use insta::assert_snapshot;

use super::*;
use crate::dsse;
use crate::hash::Blake3;
use crate::manifest::{Blocked, KeyState, Manifest};
use crate::testing::{
    DAY, NOW, Scenario, key, manifest, network, network_of, scenario, scenario_in, secret, subject,
};

fn why<T: std::fmt::Debug>(result: Result<T, BundleError>) -> String {
    result.expect_err("refused").to_string()
}

fn bundle(scenario: &Scenario) -> Bundle {
    Bundle::new(&scenario.network, &key(), &scenario.held).unwrap()
}

/// Two principals agree; the default policy is met.
fn proof() -> Scenario {
    scenario().says("ann", "right").says("bob", "right")
}

fn trusted(bundle: &Bundle) -> bool {
    let checked = bundle.decide(None, None, NOW).unwrap();
    matches!(checked.decision(), Decision::Trusted(_))
}

/// The bundle as JSON, changed and written again.
fn changed(bundle: &Bundle, change: impl FnOnce(&mut Value)) -> Result<Bundle, BundleError> {
    let mut value: Value = serde_json::from_slice(&bundle.to_bytes().unwrap()).unwrap();
    change(&mut value);
    Bundle::parse(&canonical::to_bytes(&value).unwrap())
}

/// Version 2 of the network, but for `change`.
fn second(change: impl FnOnce(&mut Manifest)) -> Network {
    let mut next = network().manifest().clone();
    next.version = 2;
    next.network = Some(network().id());
    change(&mut next);
    let roots = [&secret("root1"), &secret("root2")];
    let later = NOW.plus(DAY);
    network()
        .succeed(&next, &roots, &secret("clock"), later)
        .unwrap()
}

#[test]
fn a_bundle_says_what_was_decided_and_has_one_form() {
    let scenario = proof()
        .says("mia", "wrong")
        .says("zoe", "wrong")
        .fails("cyd");
    let bundle = bundle(&scenario);
    let bytes = bundle.to_bytes().unwrap();
    assert_eq!(Bundle::parse(&bytes).unwrap(), bundle);
    assert_eq!(bundle.statements().len(), 4, "all but the stranger's");
    let checked = bundle.decide(None, None, NOW).unwrap();
    assert_eq!(checked.verdict.decision, scenario.verdict().decision);
    assert!(trusted(&bundle) && checked.newer.is_none());
    // Any DSSE verifier can be given an envelope as it lies there.
    let value: Value = serde_json::from_slice(&bytes).unwrap();
    for (envelope, statement) in
        std::iter::zip(value["statements"].as_array().unwrap(), bundle.statements())
    {
        assert_eq!(canonical::to_bytes(envelope).unwrap(), statement.envelope());
    }
    // The order in which statements came does not matter, nor does hearing them twice.
    let mut held = scenario.held.clone();
    held.reverse();
    held.extend(scenario.held.clone());
    let again = Bundle::new(&scenario.network, &key(), &held).unwrap();
    assert_eq!(again.to_bytes().unwrap(), bytes);
}

#[test]
fn every_byte_matters() {
    let bytes = bundle(&proof()).to_bytes().unwrap();
    // Coprime to four and to the length of a line of base64: every place of every kind comes.
    for at in (0..bytes.len()).step_by(7) {
        let mut other = bytes.clone();
        other[at] ^= [1, 0x20, 0x80][at % 3];
        assert!(Bundle::parse(&other).is_err(), "byte {at}");
    }
    assert!(Bundle::parse(&bytes[..bytes.len() - 1]).is_err());
    assert!(Bundle::parse(&[&bytes[..], b"\n"].concat()).is_err());
}

#[test]
fn what_is_wrong_is_named() {
    let good = bundle(&proof());
    let flip = |value: &mut Value| {
        let text = value.as_str().unwrap();
        let first = if text.starts_with('A') { "B" } else { "A" };
        *value = format!("{first}{}", &text[1..]).into();
    };
    assert_snapshot!(why(changed(&good, |all| flip(&mut all["statements"][1]["signatures"][0]["sig"]))), @"bundle: statement 2: statement: envelope: the signature by key a4f5338f0ad1ed86a8cf70d9c6ccf8e58cc2fdfda76e3729c1288c8a505f8b12 is wrong");
    assert_snapshot!(why(changed(&good, |all| flip(&mut all["statements"][0]["payload"]))), @"bundle: statement 1: statement: envelope: the signature by key b02b42aa335240eda5757cc7eb1557e0c3cdb5aced77df50afdbe21f3238b17f is wrong");
    assert_snapshot!(why(changed(&good, |all| flip(&mut all["manifests"][0]["payload"]))), @"bundle: network manifest: envelope: the signature by key 394fd8bb1f9f38b32ef393411ec4da4051040e2aae34ada958e84ad48a7c3887 is wrong");
    assert_snapshot!(why(changed(&good, |all| flip(&mut all["timestamp"]["payload"]))), @"bundle: network timestamp: envelope: the signature by key d371184bc693d79ed1121ed018cb6b382ce8d8ad80ff22402778a1bfcfb6ea81 is wrong");
    assert_snapshot!(why(changed(&good, |all| all["timestamp"] = all["manifests"][0].clone())), @r#"bundle: network timestamp: envelope: payload type "application/vnd.qk.network+toml", expected "application/vnd.qk.timestamp+json""#);
    assert_snapshot!(why(changed(&good, |all| all["manifests"] = [0; 0].into())), @"bundle: network manifest: version 0 where version 1 belongs");
    assert_snapshot!(why(changed(&good, |all| all["key"]["name"] = "other".into())), @"bundle: statement 1 (336399f07a4596a08b47c6e37b716c1bbdb85054829c1e29e28a140b8ccb000b): it is about another artifact key");
    assert_snapshot!(why(changed(&good, |all| all["key"]["flags"]["lock"] = all["key"]["flags"]["source"].clone())), @"bundle: no principal of the network states anything about the artifact key");
    assert_snapshot!(why(changed(&good, |all| all["key"]["flags"]["rustc"]["version"] = "1.80.0".into())), @"bundle: its network builds nothing with the toolchain and flags of its artifact key");
    assert_snapshot!(why(changed(&good, |all| all["format"] = 2.into())), @"bundle: format 2: a newer qk is needed");
    assert_snapshot!(why(changed(&good, |all| all["policy"] = 2.into())), @"bundle: not the expected JSON: unknown field `policy`, expected one of `format`, `key`, `manifests`, `statements`, `timestamp` at line 1 column 7451");
    assert_snapshot!(why(changed(&good, |all| all["statements"] = [0; 0].into())), @"bundle: no principal of the network states anything about the artifact key");
    assert_snapshot!(why(changed(&good, |all| {
        let twice = all["statements"][0].clone();
        all["statements"].as_array_mut().unwrap().insert(0, twice);
    })), @"bundle: statement 2 (336399f07a4596a08b47c6e37b716c1bbdb85054829c1e29e28a140b8ccb000b): not in the order of the ids");
    assert_snapshot!(why(changed(&good, |all| {
        let one = all["statements"][0].clone();
        all["statements"] = vec![one; 300].into();
    })), @"bundle: 300 statements, more than 256");
    assert_snapshot!(why(Bundle::parse(&vec![b' '; BUNDLE_BYTES_MAX + 1])), @"bundle: 8388609 bytes are more than the 8388608 allowed");
    assert_snapshot!(why(Bundle::new(network(), &key(), &[])), @"bundle: no principal of the network states anything about the artifact key");
}

#[test]
fn what_does_not_belong_into_a_bundle() {
    let good = bundle(&proof());
    let add = |stray: Scenario| {
        let stray = stray.held[0].statement.clone();
        let value: Value = serde_json::from_slice(stray.envelope()).unwrap();
        changed(&good, |all| {
            let all = all["statements"].as_array_mut().unwrap();
            all.insert(0, value);
        })
    };
    let mut other = manifest();
    other.name = "other".to_owned();
    let other = network_of(&other);
    // Nothing is wrong with it in its own network: there it counts.
    let foreign = scenario_in(other.clone())
        .says("ann", "right")
        .says("bob", "right");
    assert!(matches!(foreign.verdict().decision, Decision::Trusted(_)));
    let reason = why(add(foreign));
    assert!(reason.ends_with("it speaks in another network"), "{reason}");
    let reason = why(add(scenario().says("zoe", "right")));
    assert!(
        reason.ends_with("by no principal of the network"),
        "{reason}"
    );
    let about = scenario().says_but("ann", "right", |draft| {
        draft.key.version = "2.0.0".to_owned()
    });
    let reason = why(add(about));
    assert!(reason.ends_with("about another artifact key"), "{reason}");
    // A key that the network does not build has no bundle, whoever states something about it.
    let odd = |draft: &mut crate::testing::Draft| {
        draft.key.flags.rustflags = ["-Copt-level=3".to_owned()].into();
    };
    let odd = scenario().says_but("ann", "right", odd);
    let key = odd.held[0].statement.key().clone();
    assert!(matches!(
        Bundle::new(network(), &key, &odd.held),
        Err(BundleError::NotBuilt)
    ));
}

#[test]
fn a_dissent_in_a_bundle_speaks_and_one_that_was_left_out_cannot() {
    let disputed = bundle(&proof().says("eve", "wrong"));
    let checked = disputed.decide(None, None, NOW).unwrap();
    assert!(matches!(checked.decision(), Decision::Disputed { .. }));
    // What the documents say that a bundle does not show.
    let left_out = changed(&disputed, |all| {
        let wrong = subject("wrong").root.to_string();
        let statements = all["statements"].as_array_mut().unwrap();
        statements.retain(|one| {
            let read = Statement::read(&canonical::to_bytes(one).unwrap()).unwrap();
            read.observation().unwrap().subject.root.to_string() != wrong
        });
    });
    assert!(trusted(&left_out.unwrap()));
}

#[test]
fn time_is_judged_at_the_end_of_the_timestamp_at_the_latest() {
    let bundle = bundle(&proof());
    let end = network().timestamp().expires;
    let at = |now: UnixTime| bundle.decide(None, None, now).unwrap();
    assert_eq!(at(NOW).as_of, NOW);
    assert_eq!(at(end.plus(1000 * DAY)).as_of, end);
    assert!(matches!(
        at(end.plus(1000 * DAY)).decision(),
        Decision::Trusted(_)
    ));
    // A clock from before the network's word.
    let before = at(UnixTime(NOW.0 - DAY));
    assert!(matches!(before.decision(), Decision::Stale { .. }));
    // An age that was met at the end is met for ever, one that was not never.
    let aged = |days: u32, now: UnixTime| {
        let policy = Policy {
            max_age_days: Some(days),
            ..Policy::default()
        };
        let checked = bundle.decide(None, Some(&policy), now).unwrap();
        matches!(checked.decision(), Decision::Trusted(_))
    };
    assert!(aged(8, end.plus(1000 * DAY)) && !aged(6, end.plus(1000 * DAY)));
    // A statement that ends after the network's word does not count.
    let late = |draft: &mut crate::testing::Draft| {
        draft.observation.finished = end.plus(DAY);
    };
    let late = self::bundle(
        &scenario()
            .says_but("ann", "right", late)
            .says("bob", "right"),
    );
    assert!(!matches!(
        late.decide(None, None, end.plus(2 * DAY))
            .unwrap()
            .decision(),
        Decision::Trusted(_)
    ));
}

#[test]
fn whoever_checks_may_ask_for_more_and_never_for_less() {
    let need = |threshold: u32, scenario: &Scenario| {
        let policy = Policy {
            threshold,
            ..Policy::default()
        };
        let checked = bundle(scenario).decide(None, Some(&policy), NOW).unwrap();
        matches!(checked.decision(), Decision::Trusted(_))
    };
    assert!(need(2, &proof()) && !need(3, &proof()));
    assert!(!need(1, &scenario().says("ann", "right")));
}

#[test]
fn keys_that_retired_or_were_lost_do_not_count_in_a_bundle() {
    for who in ["ann.old", "ann.lost"] {
        let stored_before = |draft: &mut crate::testing::Draft| {
            draft.stored = UnixTime(NOW.0 - 100 * DAY);
        };
        let scenario = scenario()
            .says_but(who, "right", stored_before)
            .says("bob", "right");
        assert!(!trusted(&bundle(&scenario)), "{who}");
        // This client knows when it stored the statement; a reader of the bundle does not.
        let here = matches!(scenario.verdict().decision, Decision::Trusted(_));
        assert_eq!(here, who == "ann.old");
    }
}

#[test]
fn what_a_newer_manifest_took_back_is_taken_back_here_too() {
    let bundle = bundle(&proof());
    let by = |known: &Network| {
        let checked = bundle.decide(Some(known), None, NOW.plus(2 * DAY)).unwrap();
        assert!(
            matches!(checked.verdict.decision, Decision::Trusted(_)),
            "by itself"
        );
        serde_json::to_value(checked.decision()).unwrap()["decision"].clone()
    };
    assert_eq!(by(network()), "trusted");
    assert_eq!(by(&second(|_| ())), "trusted");
    assert_eq!(
        by(&second(
            |next| next.principals[0].keys[0].state = KeyState::Compromised
        )),
        "unproven"
    );
    assert_eq!(
        by(&second(|next| drop(next.principals.remove(0)))),
        "unproven"
    );
    assert_eq!(by(&second(|next| next.policy.threshold = 3)), "unproven");
    assert_eq!(
        by(&second(|next| next.blocked.push(Blocked {
            key: None,
            root: Some(subject("right").root),
            reason: "a bad compiler".to_owned(),
        }))),
        "blocked"
    );
    // It never adds anything: what is unproven by the bundle stays so.
    let alone = self::bundle(&scenario().says("ann", "right"));
    let easier = second(|next| next.policy.threshold = 1);
    let checked = alone
        .decide(Some(&easier), None, NOW.plus(2 * DAY))
        .unwrap();
    assert!(matches!(checked.decision(), Decision::Unproven(_)));
    // A bundle that is newer than what is known here is judged by itself.
    let newer = Bundle::new(&second(|_| ()), &key(), &proof().held).unwrap();
    assert!(
        newer
            .decide(Some(network()), None, NOW.plus(2 * DAY))
            .unwrap()
            .newer
            .is_none()
    );
}

#[test]
fn another_history_or_network_than_the_known_one() {
    let fork = second(|next| next.name = "fork".to_owned());
    let bundle = Bundle::new(&fork, &key(), &proof().held).unwrap();
    assert!(
        bundle.decide(None, None, NOW.plus(DAY)).is_ok(),
        "the bundle alone cannot tell"
    );
    let known = second(|next| next.name = "known".to_owned());
    assert!(matches!(
        bundle.decide(Some(&known), None, NOW.plus(DAY)),
        Err(BundleError::OtherHistory(_))
    ));
    let mut other = manifest();
    other.committee.seed = Blake3::of(b"other");
    assert!(matches!(
        bundle.decide(Some(&network_of(&other)), None, NOW.plus(DAY)),
        Err(BundleError::OtherNetwork { .. })
    ));
}

#[test]
fn a_bundle_of_an_old_manifest_needs_the_signatures_of_its_own_chain() {
    // Too few signatures, a gap, a timestamp by another key: as for every network file.
    let two = Bundle::new(&second(|_| ()), &key(), &proof().held).unwrap();
    assert!(two.decide(None, None, NOW.plus(DAY)).is_ok());
    assert_snapshot!(why(changed(&two, |all| drop(all["manifests"].as_array_mut().unwrap().remove(0)))), @"bundle: network manifest: version 2 where version 1 belongs");
    assert_snapshot!(why(changed(&two, |all| drop(all["manifests"].as_array_mut().unwrap().remove(1)))), @"bundle: network timestamp: not of the newest version in the file");
    assert_snapshot!(why(changed(&two, |all| drop(all["manifests"][1]["signatures"].as_array_mut().unwrap().remove(1)))), @"bundle: network manifest version 2: signed by 1 of the 2 root keys needed (those of version 1)");
    assert_snapshot!(why(changed(&two, |all| {
        let payload = serde_json::to_vec(&serde_json::json!({})).unwrap();
        let envelope = dsse::sign("application/vnd.qk.timestamp+json", &payload, &[&secret("ann")]);
        all["timestamp"] = serde_json::from_slice(&envelope).unwrap();
    })), @"bundle: network timestamp: not signed by the manifest's timestamp key");
}
