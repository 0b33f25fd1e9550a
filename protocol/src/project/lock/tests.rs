use super::*;
use crate::decide::Decision;
use crate::hash::NetworkId;
use crate::manifest::Network;
use crate::testing::{
    DAY, NOW, Scenario, key, manifest, network, network_of, scenario, scenario_in, subject,
};

const HOST: &str = "x86_64-unknown-linux-gnu";

fn project() -> Project {
    let text = "[tools]\nhello = { version = \"1\", features = [\"color\"] }\n";
    Project::parse(text.as_bytes()).unwrap()
}

fn proof() -> Scenario {
    scenario().says("ann", "right").says("bob", "right")
}

fn bundle(scenario: &Scenario) -> Bundle {
    Bundle::new(&scenario.network, &key(), &scenario.held).unwrap()
}

fn lock_of(scenario: &Scenario) -> Lock {
    let mut lock = Lock::default();
    let tool = &project().tools["hello"];
    lock.pin(tool, &bundle(scenario), &subject("right"), NOW)
        .unwrap();
    lock
}

/// The lock as somebody else wrote it.
fn changed(lock: &Lock, change: impl FnOnce(&mut Value)) -> Lock {
    let mut value = serde_json::to_value(lock).unwrap();
    change(&mut value);
    Lock::parse(&serde_json::to_vec(&value).unwrap()).unwrap()
}

/// What the one tool of a lock comes to for somebody who knows `known`.
fn decided(lock: &Lock, known: Option<&Network>) -> Decision {
    let bundle = lock.bundle(&lock.tools()[0]).unwrap();
    bundle.decide(known, None, NOW).unwrap().decision().clone()
}

fn why(lock: &Lock) -> String {
    lock.bundle(&lock.tools()[0]).unwrap_err().to_string()
}

#[test]
fn a_lock_has_one_form_and_proves_what_it_pins() {
    let lock = lock_of(&proof());
    let bytes = lock.to_bytes();
    assert_eq!(Lock::parse(&bytes).unwrap(), lock);
    assert_eq!(Lock::parse(&bytes).unwrap().to_bytes(), bytes);
    let mut again = lock.clone();
    let tool = &project().tools["hello"];
    again
        .pin(tool, &bundle(&proof()), &subject("right"), NOW)
        .unwrap();
    assert_eq!(again.to_bytes(), bytes, "pinned twice");
    let locked = lock.locked("hello", tool, HOST).unwrap();
    let Decision::Trusted(trusted) = decided(&lock, Some(network())) else {
        panic!("not trusted");
    };
    assert_eq!(trusted.subject.root, locked.root);
    assert!(lock.surplus(&project()).next().is_none());
    let mut pruned = lock;
    assert!(pruned.prune(&Project::default()));
    assert_eq!(pruned, Lock::default(), "its network goes as well");
}

/// The proof still proves the first root: whoever took the lock's word would run another artifact.
#[test]
fn another_root_is_not_what_is_proven() {
    let lock = lock_of(&proof());
    let trojan = subject("trojan").root;
    let lock = changed(&lock, |value| {
        value["tools"][0]["root"] = trojan.to_string().into();
    });
    let pinned = lock
        .locked("hello", &project().tools["hello"], HOST)
        .unwrap();
    assert_eq!(pinned.root, trojan, "by its form nothing is wrong with it");
    let Decision::Trusted(trusted) = decided(&lock, None) else {
        panic!("not trusted");
    };
    assert_ne!(trusted.subject.root, pinned.root);
}

/// Every signature is right, and the artifact was proven: it is not the one that the entry is called.
#[test]
fn a_proof_of_another_key_is_no_proof() {
    let other = |scenario: Scenario, who| {
        scenario.says_but(who, "old", |draft| draft.key.version = "1.0.0".to_owned())
    };
    let scenario = other(other(scenario(), "ann"), "bob");
    let mut old = key();
    old.version = "1.0.0".to_owned();
    let proven = Bundle::new(&scenario.network, &old, &scenario.held).unwrap();
    assert!(matches!(
        proven.decide(None, None, NOW).unwrap().decision(),
        Decision::Trusted(_)
    ));
    let mut lock = Lock::default();
    let tool = &project().tools["hello"];
    lock.pin(tool, &proven, &subject("old"), NOW).unwrap();
    let renamed = changed(&lock, |value| value["tools"][0]["version"] = "1.2.3".into());
    assert!(why(&renamed).contains("version is not that of its artifact key"));
    // With the key of what it is called, the statements are about something else.
    let forged = changed(&lock, |value| {
        let tool = &mut value["tools"][0];
        tool["version"] = "1.2.3".into();
        tool["key"] = serde_json::to_value(key()).unwrap();
        tool["key_id"] = key().id().to_string().into();
    });
    assert!(
        why(&forged).contains("another artifact key"),
        "{}",
        why(&forged)
    );
    let features = changed(&lock_of(&proof()), |value| {
        value["tools"][0]["key"]["flags"]["features"] = Value::Array(Vec::new());
    });
    assert!(why(&features).contains("key_id is not that of its artifact key"));
}

/// Whoever founds a network can prove anything in it.
#[test]
fn a_proof_of_another_network_is_for_others() {
    let mut theirs = manifest();
    theirs.name = "theirs".to_owned();
    let theirs = network_of(&theirs);
    let scenario = scenario_in(theirs)
        .says("ann", "trojan")
        .says("bob", "trojan");
    let mut lock = Lock::default();
    let tool = &project().tools["hello"];
    lock.pin(tool, &bundle(&scenario), &subject("trojan"), NOW)
        .unwrap();
    assert!(matches!(decided(&lock, None), Decision::Trusted(_)));
    let read = lock.bundle(&lock.tools()[0]).unwrap();
    let refused = read.decide(Some(network()), None, NOW).unwrap_err();
    assert!(matches!(refused, BundleError::OtherNetwork { .. }));
    assert_ne!(read.network().id(), NetworkId([0; 32]));
    // Their statements under the name of the real network.
    let real = lock_of(&proof());
    let mixed = changed(&real, |value| {
        let tools = serde_json::to_value(&lock).unwrap()["tools"].clone();
        let name = value["tools"][0]["network"].clone();
        value["tools"] = tools;
        value["tools"][0]["network"] = name;
    });
    assert!(why(&mixed).contains("another network"), "{}", why(&mixed));
    let nowhere = changed(&real, |value| value["tools"][0]["network"] = "00".into());
    assert!(why(&nowhere).contains("there is no network 00"));
}

/// One statement is left: enough for whoever only looks at signatures.
#[test]
fn a_statement_that_was_removed_is_missed() {
    let lock = changed(&lock_of(&proof()), |value| {
        value["tools"][0]["statements"]
            .as_array_mut()
            .unwrap()
            .pop();
    });
    lock.bundle(&lock.tools()[0])
        .expect("all signatures are right");
    assert!(matches!(decided(&lock, None), Decision::Unproven(_)));
    let none = changed(&lock, |value| {
        value["tools"][0]["statements"] = Value::Array(Vec::new());
    });
    assert!(why(&none).contains("no principal"));
}

#[test]
fn what_is_known_since_takes_it_back_and_age_does_not() {
    let lock = lock_of(&proof());
    let bundle = lock.bundle(&lock.tools()[0]).unwrap();
    let later = NOW.plus(100 * DAY);
    let decide = |held: &Scenario| {
        let known = Some(network());
        let checked = bundle
            .decide_knowing(known, None, &held.held, later)
            .unwrap();
        checked.decision().clone()
    };
    assert!(matches!(decide(&scenario()), Decision::Trusted(_)));
    assert!(matches!(decide(&proof()), Decision::Trusted(_)));
    let dissent = scenario().says("cyd", "other");
    assert!(matches!(decide(&dissent), Decision::Disputed { .. }));
    let retracted = proof().retracts("ann", 0);
    assert!(!matches!(decide(&retracted), Decision::Trusted(_)));
    let blocked = {
        let mut next = network().manifest().clone();
        next.version = 2;
        next.network = Some(network().id());
        next.blocked.push(crate::manifest::Blocked {
            key: None,
            root: Some(subject("right").root),
            reason: "it eats files".to_owned(),
        });
        let roots = ["root1", "root2"].map(crate::testing::secret);
        let roots = [&roots[0], &roots[1]];
        let clock = crate::testing::secret("clock");
        network()
            .succeed(&next, &roots, &clock, NOW.plus(DAY))
            .unwrap()
    };
    assert!(matches!(
        decided(&lock, Some(&blocked)),
        Decision::Blocked { .. }
    ));
}

#[test]
fn drift_is_named() {
    let lock = lock_of(&proof());
    let drift = |text: &str, host: &str| {
        let project = Project::parse(text.as_bytes()).unwrap();
        let (name, tool) = project.tools.first_key_value().unwrap();
        lock.locked(name, tool, host).map(drop).unwrap_err()
    };
    let asked = "[tools]\nhello = { version = \"1\", features = [\"color\"] }\n";
    assert_eq!(
        drift(asked, "aarch64-apple-darwin"),
        "is not locked for aarch64-apple-darwin"
    );
    assert_eq!(
        drift("[tools]\nother = \"1\"\n", HOST),
        "is not in the lock"
    );
    let more = "[tools]\nhello = { version = \"1.2\", features = [\"color\"] }\n";
    assert!(drift(more, HOST).contains("asked for something else"));
    // Somebody who changed both files by hand.
    let asked = |value: &mut Value, version: &str| {
        let text =
            format!("[tools]\nhello = {{ version = {version:?}, features = [\"color\"] }}\n");
        let project = Project::parse(text.as_bytes()).unwrap();
        value["tools"][0]["asked"] = serde_json::to_value(&project.tools["hello"]).unwrap();
        project
    };
    let mut project = None;
    let lock = changed(&lock, |value| project = Some(asked(value, "2")));
    let tool = &project.unwrap().tools["hello"];
    let why = lock.locked("hello", tool, HOST).unwrap_err();
    assert_eq!(why, "is locked with another version than qk.toml asks for");
}

#[test]
fn what_is_no_lock_is_refused() {
    let bytes = lock_of(&proof()).to_bytes();
    let why = |bytes: &[u8]| Lock::parse(bytes).unwrap_err().to_string();
    let text = String::from_utf8(bytes.clone()).unwrap();
    let newer = text.replacen("\"version\": 1", "\"version\": 2", 1);
    assert!(why(newer.as_bytes()).contains("a newer qk is needed"));
    // A newer one may have other members.
    assert!(why(b"{\"version\": 7, \"things\": []}").contains("a newer qk is needed"));
    let marked = text.replacen("{\n", "{\n<<<<<<< HEAD\n", 1);
    assert!(why(marked.as_bytes()).contains("line 2 is a mark of a merge"));
    let odd = text.replacen("\"tools\"", "\"more\": 1,\n  \"tools\"", 1);
    assert!(why(odd.as_bytes()).contains("unknown field `more`"));
    assert!(why(&bytes[..bytes.len() / 2]).contains("line"));
    assert!(matches!(
        Lock::parse(&vec![b' '; LOCK_BYTES_MAX + 1]),
        Err(LockError::TooLong)
    ));
}
